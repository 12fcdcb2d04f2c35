//! What is asked of digests, and what they tell.

use std::collections::HashMap;

use crate::domain::plain::{Part, Sum, Total};
use crate::domain::query::ExecutionFilter;
use crate::domain::{Artifact, Configuration, Millis, Origin};

/// What to tell of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Ranges,
    Records,
    Fields { values: bool },
}

/// Which ranges of a kind: `None` are all.
pub type Ranges = Option<Vec<usize>>;

/// One record or a few, by their names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    Execution(String),
    Step(String, i32),
    /// All of an execution.
    Artifacts(String),
    Points(String),
    /// All of the apps of this name.
    Configurations(String),
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    pub filter: ExecutionFilter,
    /// Empty: everything.
    pub selections: HashMap<Part, Ranges>,
    pub level: Level,
    /// Only these.
    pub keys: Option<Vec<Key>>,
}

impl Question {
    pub(super) fn wants(&self, part: Part) -> bool {
        self.selections.is_empty() || self.selections.contains_key(&part)
    }
}

/// What is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// The position of the log, if there is one.
    Begun(Option<u64>),
    Ranges(Vec<RangeTotal>),
    Records(Vec<Digested>),
    /// Records read so far.
    Progress(u64),
    /// Documents that are no records.
    Complete(u64),
}

/// The total of one kind in one range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeTotal {
    pub part: Part,
    pub range: usize,
    pub total: Total,
}

/// By which a record is told from others.
#[derive(Debug, Clone, PartialEq)]
pub enum Named {
    Execution {
        execution_id: String,
    },
    Step {
        execution_id: String,
        step_id: i32,
        step_key: Option<String>,
    },
    Artifact {
        artifact: Box<Artifact>,
    },
    Point {
        execution_id: String,
        at: Millis,
        step_id: Option<i32>,
        step_key: Option<String>,
    },
    Configuration {
        /// Without what it configures.
        record: Box<Configuration>,
    },
}

/// A plain field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldDigest {
    pub name: &'static str,
    pub digest: Sum,
    pub value: Option<String>,
}

/// A record.
#[derive(Debug, Clone, PartialEq)]
pub struct Digested {
    pub named: Named,
    pub digest: Sum,
    /// Where they are wanted.
    pub fields: Vec<FieldDigest>,
}

impl Named {
    /// SHA-256 of the bytes that are stored with an artifact.
    pub fn bytes_sha256(&self) -> Option<&str> {
        match self {
            Named::Artifact { artifact } if artifact.origin != Origin::Imported => {
                artifact.sha256.as_deref()
            }
            _ => None,
        }
    }
}
