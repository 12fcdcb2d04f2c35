//! Every collection that Stepwell opens, with what it does there and by what it is sharded: the one list of them. A name
//! can be made here alone, and nothing opens a collection by anything else, so a collection that is not in the list is
//! neither opened nor left out of the role (`role`) and the plan of shards (`shards`).

use std::fmt;
use std::ops::Deref;

use bson::{Bson, RawBson};

/// The name of a collection of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(&'static str);

impl Name {
    pub const fn as_str(self) -> &'static str {
        self.0
    }

    /// The one that is called so.
    pub fn of(text: &str) -> Option<Name> {
        LISTED.iter().map(|listed| listed.name).find(|name| name.0 == text)
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.0)
    }
}

impl From<Name> for Bson {
    fn from(name: Name) -> Bson {
        Bson::from(name.0)
    }
}

impl From<Name> for RawBson {
    fn from(name: Name) -> RawBson {
        RawBson::from(name.0)
    }
}

/// What is done with the documents of a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// They are inserted, changed and removed.
    Changed,
    /// They are inserted, and stay: the database lets them go by their age.
    Appended,
    /// They are read: the database itself keeps the collection.
    Read,
}

/// How a collection is spread over shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// By the hash of the execution that a document belongs to.
    ByExecution,
    /// By the hash of `_id`.
    ById,
    /// By the file that a piece belongs to, and its number in it.
    ByPiece,
    /// Not at all: it is small, or written by one server at a time.
    Whole,
}

/// A collection of the list.
#[derive(Debug, Clone, Copy)]
pub struct Listed {
    pub name: Name,
    pub used: Use,
    pub spread: Spread,
}

/// A constant cannot be written down without its row.
macro_rules! collections {
    ($($(#[$doc:meta])* $constant:ident = $name:literal, $used:ident, $spread:ident;)+) => {
        $($(#[$doc])* pub const $constant: Name = Name($name);)+

        /// All of them.
        pub const LISTED: &[Listed] = &[
            $(Listed { name: $constant, used: Use::$used, spread: Spread::$spread },)+
        ];
    };
}

collections! {
    // Of the data model, which other programs share.
    EXECUTIONS = "executions", Changed, ByExecution;
    STEPS = "execution_steps", Changed, ByExecution;
    CONFIGURATIONS = "app_configurations", Changed, Whole;
    ARTIFACTS = "execution_artifacts", Changed, ByExecution;
    /// Points of metrics.
    METRICS = "execution_metrics", Changed, ByExecution;
    /// Where they are, if their collection is a time series.
    BUCKETS = "system.buckets.execution_metrics", Read, Whole;
    /// The bytes of artifacts, as GridFS has it: what there is.
    FILES = "artifacts.files", Changed, Whole;
    /// And its pieces.
    CHUNKS = "artifacts.chunks", Changed, ByPiece;

    // What Stepwell keeps for itself.
    META = "stepwell_meta", Changed, Whole;
    /// A change in it wakes whoever reads the log.
    NUDGES = "stepwell_nudges", Changed, Whole;
    /// Bytes of artifacts on their way.
    UPLOADS = "stepwell_uploads", Changed, Whole;
    /// Requests that brought points, so that each is stored once.
    METRIC_REQUESTS = "stepwell_metric_requests", Changed, Whole;
    /// Figures of whole hours.
    METRIC_HOURS = "stepwell_metric_hours", Changed, ById;
    /// What each execution was counted as.
    COUNTED = "stepwell_rollup_counted", Changed, ById;
    FAILURES = "stepwell_rollup_failures", Changed, Whole;
    ROLLUPS = "stepwell_rollups", Changed, Whole;
    FAILURE_COUNTS = "stepwell_rollup_failure_counts", Changed, Whole;
    /// The index of search.
    TEXTS = "stepwell_search_texts", Changed, ById;
    /// Keys of callers.
    KEYS = "stepwell_keys", Changed, Whole;
    /// Who is told what happens.
    SUBSCRIPTIONS = "stepwell_subscriptions", Changed, Whole;
    /// Notifications, until they are too old.
    DELIVERIES = "stepwell_deliveries", Changed, Whole;
    /// What subscriptions were told of each record.
    TOLD = "stepwell_told", Changed, Whole;
    /// What callers were let do, and were not.
    AUDIT_LOG = "audit_log", Appended, Whole;
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_is_listed_once() {
        let names: HashSet<Name> = LISTED.iter().map(|listed| listed.name).collect();
        assert_eq!(names.len(), LISTED.len());
    }
}
