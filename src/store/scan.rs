//! Everything of one kind, from one end of its collection to the other: for who compares or copies a whole database, to
//! whom the order does not matter.

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::Result;
use crate::domain::plain::Part;
use crate::domain::{Artifact, Configuration, Execution, MetricPoint, Step};

/// Records in one piece of a scan at most, and bytes after which a piece ends.
pub const PIECE_RECORDS: usize = 1_000;
pub const PIECE_BYTES: usize = 4 * 1024 * 1024;

/// One stored record.
#[derive(Debug, Clone, PartialEq)]
pub enum Scanned {
    Execution(Execution),
    /// With its payloads.
    Step(Step),
    Artifact(Artifact),
    Point {
        execution_id: String,
        point: MetricPoint,
    },
    Configuration(Configuration),
}

impl Scanned {
    /// Bytes it takes in memory, roughly.
    pub fn weight(&self) -> usize {
        match self {
            Scanned::Execution(record) => record.weight(),
            Scanned::Step(record) => record.weight(),
            Scanned::Artifact(record) => record.weight(),
            Scanned::Point { execution_id, point } => execution_id.len() + point.weight(),
            Scanned::Configuration(record) => record.weight(),
        }
    }
}

/// A store that can be read from end to end.
#[async_trait]
pub trait ScanStore: Send + Sync + 'static {
    /// Sends everything of one kind, piece by piece, in the order that is cheapest. What is being deleted is left out;
    /// what belongs to an execution comes whether or not that is stored. What changes meanwhile comes as it was or as it
    /// is. While a piece waits to be received nothing of the database is held for it. Ends early when nobody receives it
    /// any more. The answer: how many documents have no usable id, so that they are no records.
    async fn scan(&self, part: Part, out: mpsc::Sender<Vec<Scanned>>) -> Result<u64>;
}
