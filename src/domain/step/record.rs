//! A step as stored, and what it is made of.

use std::collections::HashMap;

use bson::Document;
use bson::raw::cstr;

use super::held::{Attempt, Payload};
use crate::domain::execution::error_weight;
use crate::domain::stored::Guarded::{Always, Changed, Never, Whole};
use crate::domain::stored::Nothing::{Absent, Empty, Null};
use crate::domain::stored::{Cell, Field, Set, row};
use crate::domain::terms::{Digests, Millis, RunError};
use crate::domain::value;

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StepStatus {
    Pending,
    Running,
    Completed,
    Failed,
    Skipped,
}

impl StepStatus {
    pub const ALL: [Self; 5] =
        [Self::Pending, Self::Running, Self::Completed, Self::Failed, Self::Skipped];

    /// The words in the documents.
    pub const WORDS: [&'static str; 5] = ["pending", "running", "completed", "failed", "skipped"];

    /// The word in the documents.
    pub fn as_str(self) -> &'static str {
        Self::WORDS[self as usize]
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }

    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }
}

/// How a request names a step: by number, or by the client's own key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct StepRef {
    pub step_id: Option<i32>,
    pub step_key: Option<String>,
}

impl std::fmt::Display for StepRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.step_id, &self.step_key) {
            (Some(id), _) => write!(f, "{id}"),
            (None, Some(key)) => f.write_str(key),
            (None, None) => f.write_str("?"),
        }
    }
}

/// All names of one step, as far as they are known. What belongs to the step was stored under any of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StepNames {
    pub step_id: Option<i32>,
    pub step_key: Option<String>,
}

impl StepNames {
    /// Whether something that was stored under these names belongs to the step.
    pub fn is(&self, step_id: Option<i32>, step_key: Option<&str>) -> bool {
        (self.step_id.is_some() && self.step_id == step_id)
            || (self.step_key.is_some() && self.step_key.as_deref() == step_key)
    }
}

/// A step as stored.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Step {
    pub execution_id: String,
    pub step_id: i32,
    pub step_key: Option<String>,
    pub step_name: String,
    pub step_version: Option<String>,
    /// `None`: another program stored a word that is no status.
    pub status: Option<StepStatus>,
    pub started_at: Option<Millis>,
    pub completed_at: Option<Millis>,
    pub duration_ms: Option<i64>,
    pub input: Payload,
    pub output: Payload,
    pub error: Option<RunError>,
    pub retry_count: i32,
    pub metadata: Document,
    /// 0: another program wrote the record.
    pub revision: i64,
    pub created_at: Option<Millis>,
    pub updated_at: Option<Millis>,
    pub depends_on: Vec<i32>,
    /// By the clients' own keys.
    pub depends_on_keys: Vec<String>,
    /// As the client sent it, or the number of the parent of `parent_step_key` if that was stored before.
    pub parent_step_id: Option<i32>,
    /// The parent by the client's own key.
    pub parent_step_key: Option<String>,
    pub progress: Option<f64>,
    pub progress_message: Option<String>,
    /// Of the latest update of this try that carried one; those that are not greater come too late.
    pub update_sequence: Option<i64>,
    pub attempts: Vec<Attempt>,
    /// As in `Execution`.
    pub mirrored_position: Option<i64>,
    pub mirrored_revision: Option<i64>,
    pub digests: Digests,
}

/// What is stored of a step beside its ids, its revision and its digests.
pub const FIELDS: &[Field<Step>] = &[
    row(
        cstr!("step_key"),
        Absent,
        Whole,
        |s| Cell::text(&s.step_key),
        Set::Text(|s, v| s.step_key = v.filter(|key| !key.is_empty())),
    ),
    row(
        cstr!("step_name"),
        Null,
        Whole,
        |s| Cell::Text(&s.step_name),
        Set::Text(|s, v| s.step_name = v.unwrap_or_default()),
    ),
    row(
        cstr!("step_version"),
        Null,
        Whole,
        |s| Cell::text(&s.step_version),
        Set::Text(|s, v| s.step_version = v),
    ),
    row(
        cstr!("status"),
        Null,
        Always,
        |s| Cell::word(s.status.map(StepStatus::as_str)),
        Set::Word(&StepStatus::WORDS, |s, v| s.status = StepStatus::parse(v)),
    ),
    row(
        cstr!("started_at"),
        Null,
        Always,
        |s| Cell::date(s.started_at),
        Set::Date(|s, v| s.started_at = v),
    ),
    row(
        cstr!("completed_at"),
        Null,
        Whole,
        |s| Cell::date(s.completed_at),
        Set::Date(|s, v| s.completed_at = v),
    ),
    row(
        cstr!("duration_ms"),
        Null,
        Whole,
        |s| Cell::int64(s.duration_ms),
        Set::Int64(|s, v| s.duration_ms = v),
    ),
    row(
        cstr!("input"),
        Empty,
        Never,
        |s| Cell::Payload(&s.input),
        Set::Payload(|s, v| s.input = v),
    ),
    row(
        cstr!("output"),
        Null,
        Never,
        |s| Cell::Payload(&s.output),
        Set::Payload(|s, v| s.output = v),
    ),
    row(cstr!("error"), Null, Whole, |s| Cell::error(&s.error), Set::Error(|s| &mut s.error)),
    row(
        cstr!("error_info"),
        Absent,
        Whole,
        |s| Cell::error_info(&s.error),
        Set::ErrorInfo(|s| &mut s.error),
    ),
    row(
        cstr!("retry_count"),
        Null,
        Changed,
        |s| Cell::Int32(s.retry_count),
        Set::Int32(|s, v| s.retry_count = v.unwrap_or(0)),
    ),
    row(
        cstr!("metadata"),
        Empty,
        Changed,
        |s| Cell::Object(&s.metadata),
        Set::Object(|s, v| s.metadata = v),
    ),
    row(
        cstr!("created_at"),
        Null,
        Whole,
        |s| Cell::date(s.created_at),
        Set::Date(|s, v| s.created_at = v),
    ),
    row(
        cstr!("updated_at"),
        Null,
        Always,
        |s| Cell::date(s.updated_at),
        Set::Date(|s, v| s.updated_at = v),
    ),
    row(
        cstr!("depends_on"),
        Empty,
        Whole,
        |s| Cell::Ids(&s.depends_on),
        Set::Ids(|s, v| s.depends_on = v),
    ),
    row(
        cstr!("depends_on_keys"),
        Absent,
        Whole,
        |s| Cell::Keys(&s.depends_on_keys),
        Set::Keys(|s, v| s.depends_on_keys = v),
    ),
    row(
        cstr!("parent_step_id"),
        Absent,
        Whole,
        |s| Cell::int32(s.parent_step_id),
        Set::Int32(|s, v| s.parent_step_id = v),
    ),
    row(
        cstr!("parent_step_key"),
        Absent,
        Whole,
        |s| Cell::text(&s.parent_step_key),
        Set::Text(|s, v| s.parent_step_key = v),
    ),
    row(
        cstr!("progress"),
        Absent,
        Whole,
        |s| Cell::real(s.progress),
        Set::Real(|s, v| s.progress = v),
    ),
    row(
        cstr!("progress_message"),
        Absent,
        Whole,
        |s| Cell::text(&s.progress_message),
        Set::Text(|s, v| s.progress_message = v),
    ),
    row(
        cstr!("update_sequence"),
        Absent,
        Whole,
        |s| Cell::int64(s.update_sequence),
        Set::Int64(|s, v| s.update_sequence = v),
    ),
    row(
        cstr!("attempts"),
        Empty,
        Changed,
        |s| Cell::Attempts(&s.attempts),
        Set::Attempts(|s, v| s.attempts = v),
    ),
    row(
        cstr!("mirrored_position"),
        Absent,
        Whole,
        |s| Cell::int64(s.mirrored_position),
        Set::Int64(|s, v| s.mirrored_position = v),
    ),
    row(
        cstr!("mirrored_revision"),
        Absent,
        Whole,
        |s| Cell::int64(s.mirrored_revision),
        Set::Int64(|s, v| s.mirrored_revision = v),
    ),
];

impl Step {
    pub fn is_terminal(&self) -> bool {
        self.status.is_some_and(StepStatus::is_terminal)
    }

    /// The value of `last_change` after this record's current revision.
    pub fn last_change(&self) -> String {
        format!("{}/{}/{}", self.execution_id, self.step_id, self.revision)
    }

    /// The same record without its payloads at hand.
    pub fn without_payloads(&self) -> Step {
        let mut step = Step {
            execution_id: self.execution_id.clone(),
            step_id: self.step_id,
            revision: self.revision,
            digests: self.digests.clone(),
            ..Step::default()
        };
        for field in FIELDS.iter().filter(|field| !field.is_payload()) {
            field.copy(self, &mut step);
        }
        step
    }

    /// Bytes it takes in memory, roughly: for bounded caches.
    pub fn weight(&self) -> usize {
        let payload = |payload: &Payload| payload.value().map_or(0, value::size);
        512 + self.step_name.len()
            + value::size_of_document(&self.metadata)
            + self.depends_on.len() * 4
            + self.depends_on_keys.iter().map(|key| 24 + key.len()).sum::<usize>()
            + self.error.as_ref().map_or(0, error_weight)
            + self
                .attempts
                .iter()
                .map(|attempt| 64 + attempt.error.as_ref().map_or(0, error_weight))
                .sum::<usize>()
            + payload(&self.input)
            + payload(&self.output)
    }
}

/// Gives steps the numbers of parents among them that they name by key alone. What is stored stays as it is.
pub fn fill_in_parents(steps: &mut [Step]) {
    let has_key = |step: &Step| step.parent_step_id.is_none() && step.parent_step_key.is_some();
    if !steps.iter().any(has_key) {
        return;
    }
    let numbers: HashMap<String, i32> =
        steps.iter().filter_map(|step| Some((step.step_key.clone()?, step.step_id))).collect();
    for step in steps.iter_mut().filter(|step| step.parent_step_id.is_none()) {
        let parent = step.parent_step_key.as_ref().and_then(|key| numbers.get(key));
        step.parent_step_id = parent.copied();
    }
}
