//! One change as watchers get it, shared between all of them.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::domain::query::ExecutionFilter;
use crate::domain::{Execution, ExecutionStatus, Millis};
use crate::store::{ChangeKind, Cursor, Record, RecordKey};

/// Encoded forms kept with an event: one for each identity of watchers and payload variant that asked first.
const ENCODED_KEPT: usize = 4;

/// A change with its record.
#[derive(Debug)]
pub struct Event {
    /// The position right after the change.
    pub cursor: Cursor,
    /// When it was committed.
    pub at: Millis,
    pub key: RecordKey,
    pub kind: ChangeKind,
    /// The revision of the change. `None`: another program's, which left the revision alone.
    pub revision: Option<i64>,
    /// The record with this change or a later one; `None` when it was deleted.
    pub record: Option<Record>,
    /// For a step, while somebody watches by filter: its execution.
    pub execution: Option<Arc<Execution>>,
    /// For an execution, where known: the version before, by which leaving a filter is seen.
    pub before: Option<Arc<Execution>>,
    pub status_changed: bool,
    pub metadata_changed: bool,
    /// When the look-up that found the record began and ended; `None` where the record is exactly the one of
    /// this change.
    pub looked_up: Option<(Instant, Instant)>,
    pub(super) made: Made,
}

/// What is made of an event once, for all watchers.
#[derive(Debug, Default)]
pub(super) struct Made {
    weight: OnceLock<usize>,
    encoded: Mutex<Vec<(u64, Bytes)>>,
}

impl Event {
    /// The deletion of an execution that was found to be gone without an entry in the log.
    pub fn gone(cursor: Cursor, execution_id: &str) -> Self {
        Event {
            cursor,
            at: 0,
            key: RecordKey::execution(execution_id),
            kind: ChangeKind::Deleted,
            revision: None,
            record: None,
            execution: None,
            before: None,
            status_changed: false,
            metadata_changed: false,
            looked_up: None,
            made: Made::default(),
        }
    }

    /// The same change with a record that was loaded for it.
    pub fn with_record(&self, record: Record, looked_up: (Instant, Instant)) -> Self {
        Event {
            cursor: self.cursor.clone(),
            at: self.at,
            key: self.key.clone(),
            kind: self.kind,
            revision: self.revision,
            record: Some(record),
            execution: None,
            before: None,
            status_changed: self.status_changed,
            metadata_changed: self.metadata_changed,
            looked_up: Some(looked_up),
            made: Made::default(),
        }
    }

    /// Bytes it takes in memory, roughly.
    pub fn weight(&self) -> usize {
        let weight = || 256 + self.record.as_ref().map_or(0, Record::weight);
        *self.made.weight.get_or_init(weight)
    }

    /// The encoded form for these watchers, made by whoever needs it first. `variant` tells the forms apart.
    pub fn encoded(&self, variant: u64, encode: impl FnOnce() -> Bytes) -> Bytes {
        let mut kept = self.made.encoded.lock();
        if let Some((_, bytes)) = kept.iter().find(|(known, _)| *known == variant) {
            return bytes.clone();
        }
        let bytes = encode();
        if kept.len() < ENCODED_KEPT {
            kept.push((variant, bytes.clone()));
        }
        bytes
    }

    /// Whether a watcher by filter gets this.
    pub fn is_for(&self, filter: &ExecutionFilter) -> bool {
        if filter.is_empty() {
            return true;
        }
        if !self.key.is_execution() {
            return self
                .execution
                .as_ref()
                .is_some_and(|execution| matches_at(filter, execution, self.at));
        }
        match &self.record {
            Some(Record::Execution(execution)) => {
                filter.matches(execution)
                    || self.left(filter, execution)
                    // Another program may have given it to another app; whoever had it is told that it is gone.
                    || (self.before.is_none()
                        && self.revision.is_none()
                        && !filter.scope.holds_execution(execution))
            }
            // Deleted: those who had it must hear of it; who had it is not always known.
            _ => self.before.as_ref().is_none_or(|before| filter.matches(before)),
        }
    }

    /// Whether the execution matched before this change, and no longer does.
    fn left(&self, filter: &ExecutionFilter, execution: &Execution) -> bool {
        if let Some(before) = &self.before {
            return filter.matches(before);
        }
        // The version before is not known. Our own changes touch the status, with the duration, and the metadata;
        // of the status the rules tell what it was.
        if !filter.matches_fixed(execution) || self.kind == ChangeKind::Created {
            return false;
        }
        if self.metadata_changed && !filter.metadata.is_empty() {
            return true;
        }
        if !self.status_changed && self.revision.is_some() {
            return false;
        }
        let mut before = execution.clone();
        if execution.is_terminal() {
            before.status = Some(ExecutionStatus::Running);
            before.duration_ms = None;
        } else {
            before.status = Some(ExecutionStatus::Failed);
        }
        filter.matches(&before)
    }
}

/// Whether a filter matched the execution at a moment: one that ended later was running then.
fn matches_at(filter: &ExecutionFilter, execution: &Execution, at: Millis) -> bool {
    if filter.matches(execution) {
        return true;
    }
    let ended_later =
        execution.is_terminal() && execution.updated_at.is_some_and(|ended| at <= ended);
    if !ended_later {
        return false;
    }
    let mut then = execution.clone();
    then.status = Some(ExecutionStatus::Running);
    then.duration_ms = None;
    filter.matches(&then)
}
