//! One watcher, as those who have events for it know it.

use std::sync::atomic::AtomicU64;

use super::event::Event;
use super::queue::Queue;
use crate::domain::query::ExecutionFilter;
use crate::store::{Error, RecordKey};

/// Whose changes a watcher wants.
#[derive(Debug, Clone, PartialEq)]
pub enum Scope {
    Execution(String),
    Filter(ExecutionFilter),
}

/// One registered watcher.
#[derive(Debug)]
pub struct Subscriber {
    pub(super) id: u64,
    pub scope: Scope,
    /// Whether it gets steps; a watcher of one execution follows them also to know when it is over.
    pub steps: bool,
    pub artifacts: bool,
    pub queue: Queue,
    /// The batch that was being published at its last registration: what it gets comes after that.
    pub(super) registered: AtomicU64,
}

impl Subscriber {
    /// Whether it gets this event.
    pub fn wants(&self, event: &Event) -> bool {
        self.wants_key(&event.key)
            && match &self.scope {
                Scope::Execution(_) => true,
                Scope::Filter(filter) => event.is_for(filter),
            }
    }

    /// Whether it may want something about this record, before the record is known.
    pub fn wants_key(&self, key: &RecordKey) -> bool {
        let kind = match (key.step_id, &key.artifact_id) {
            (Some(_), _) => self.steps,
            (None, Some(_)) => self.artifacts,
            (None, None) => true,
        };
        kind && match &self.scope {
            Scope::Execution(id) => *id == key.execution_id,
            Scope::Filter(_) => true,
        }
    }
}

/// The same failure for somebody else. Its cause stays with the first.
pub(super) fn again(error: &Error) -> Error {
    match error {
        Error::NoLog => Error::NoLog,
        Error::CursorExpired => Error::CursorExpired,
        Error::BadCursor => Error::BadCursor,
        Error::Failed(cause) => Error::failed(cause.to_string()),
        Error::Unavailable(unavailable) => Error::Unavailable(unavailable.again()),
        _ => Error::away(),
    }
}
