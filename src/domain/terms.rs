//! What all rules speak of: moments, decisions, errors of runs, digests of requests.

use super::value;

/// Milliseconds since the Unix epoch, UTC. Finer times are cut, never rounded up.
pub type Millis = i64;

/// One moment of the server's clock, as the rules need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Microseconds since the Unix epoch.
    pub micros: i64,
}

impl Now {
    /// The moment in milliseconds, cut.
    pub fn millis(self) -> Millis {
        self.micros.div_euclid(1000)
    }

    /// The revision of a record that changes at this moment: it grows with every change and never goes back,
    /// even after another program replaced the document and dropped the old one.
    pub fn revision_after(self, stored: i64) -> i64 {
        self.micros.max(stored.saturating_add(1))
    }
}

/// What a rule made of a record and a write.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision<T> {
    /// The request was applied before; the stored record is the answer and nothing is written.
    Keep,
    /// A later update was applied before; the stored record is the answer and nothing is written.
    Superseded,
    /// The record is written as this: created, or changed with a new revision.
    Put(T),
    /// The record is written as this, but it is no change: no new revision, no event for watchers.
    Touch(T),
    /// The record goes away.
    Remove,
}

/// What went wrong in a run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunError {
    pub message: String,
    pub code: String,
    pub stack_trace: String,
    pub details: bson::Document,
}

impl RunError {
    /// Bytes it takes in memory, roughly.
    pub fn weight(&self) -> usize {
        self.message.len() + self.stack_trace.len() + value::weight_of_document(&self.details)
    }

    /// Whether it has more than its message.
    pub fn has_more(&self) -> bool {
        !self.code.is_empty() || !self.stack_trace.is_empty() || !self.details.is_empty()
    }
}

/// Digests of what a client sent, by which a repeated request is recognised. Absent in foreign records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Digests {
    /// Of the request that created, planned or put the record.
    pub create: Option<String>,
    /// Of the request that started the step (its current try).
    pub start: Option<String>,
    /// Of the request that ended it.
    pub finish: Option<String>,
}

/// `completed_at - started_at`, 0 where the clocks disagree.
pub(crate) fn duration_ms(started_at: Option<Millis>, completed_at: Millis) -> Option<i64> {
    started_at.map(|started_at| completed_at.saturating_sub(started_at).max(0))
}
