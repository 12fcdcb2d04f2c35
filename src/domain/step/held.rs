//! What a step has besides plain values: its payloads, and its earlier tries.

use bson::Bson;

use crate::domain::terms::{Millis, RunError};

/// Input or output of a step. Most reads and writes never touch it, so a record may not have it at hand.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Payload {
    /// Whatever is stored; not loaded.
    #[default]
    Stored,
    /// This; `Bson::Null` is nothing.
    Value(Bson),
}

impl Payload {
    pub fn value(&self) -> Option<&Bson> {
        match self {
            Self::Stored => None,
            Self::Value(value) => Some(value),
        }
    }
}

/// One earlier try of a step that was retried.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Attempt {
    pub started_at: Option<Millis>,
    pub completed_at: Option<Millis>,
    pub duration_ms: Option<i64>,
    pub error: Option<RunError>,
}
