//! An execution as stored.

use bson::Document;
use bson::raw::cstr;

use crate::domain::stored::Guarded::{Always, Changed, Never, Owner, Whole};
use crate::domain::stored::Nothing::{Absent, Empty, Null};
use crate::domain::stored::{Cell, Field, Set, row};
use crate::domain::terms::{Digests, Millis, RunError};
use crate::domain::value;

/// Where an execution stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExecutionStatus {
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl ExecutionStatus {
    pub const ALL: [Self; 4] = [Self::Running, Self::Completed, Self::Failed, Self::Cancelled];

    /// The words in the documents.
    pub const WORDS: [&'static str; 4] = ["running", "completed", "failed", "cancelled"];

    /// The word in the documents.
    pub fn as_str(self) -> &'static str {
        Self::WORDS[self as usize]
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }

    pub fn is_terminal(self) -> bool {
        self != Self::Running
    }
}

/// Error code of an execution that was ended for its silence. The mark is a guess: a heartbeat takes it back.
pub const HEARTBEAT_TIMEOUT: &str = "HEARTBEAT_TIMEOUT";
/// Error code by which a client says that it saw the process of an execution go. It may be wrong about that, so this end
/// is a guess as well.
pub const PROCESS_DIED: &str = "PROCESS_DIED";

/// An execution as stored.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Execution {
    pub execution_id: String,
    pub app_id: Option<i32>,
    pub app_name: String,
    pub sub_app_id: Option<i32>,
    pub sub_app_name: Option<String>,
    pub user_id: Option<String>,
    /// `None`: another program stored a word that is no status.
    pub status: Option<ExecutionStatus>,
    pub started_at: Option<Millis>,
    /// What another program stored in the place of a time of start, in the form in which the store keeps it. No field of
    /// its own: it is read out of `started_at`, and never written.
    pub odd_start: Option<Vec<u8>>,
    pub completed_at: Option<Millis>,
    pub duration_ms: Option<i64>,
    pub error: Option<RunError>,
    pub metadata: Document,
    pub created_at: Option<Millis>,
    pub updated_at: Option<Millis>,
    /// 0: another program wrote the record.
    pub revision: i64,
    pub heartbeat_timeout_ms: Option<i64>,
    pub last_heartbeat_at: Option<Millis>,
    pub cancel_requested_at: Option<Millis>,
    pub cancel_reason: Option<String>,
    pub parent_execution_id: Option<String>,
    pub pinned: Option<bool>,
    /// The version of the app's configuration that it ran with, as its client said.
    pub configuration_version: Option<String>,
    /// Of the latest update that carried one; those that are not greater come too late.
    pub update_sequence: Option<i64>,
    /// The place in the log of its source that the latest mirrored write of it had.
    pub mirrored_position: Option<i64>,
    /// The revision that this write made. While it is the revision, nobody else has changed the record.
    pub mirrored_revision: Option<i64>,
    pub digests: Digests,
    /// Set while the record and its steps are being deleted; such a record exists for nobody.
    pub deleted_at: Option<Millis>,
}

/// What is stored of an execution beside its id, its revision and its digests.
pub const FIELDS: &[Field<Execution>] = &[
    row(cstr!("app_id"), Null, Owner, |e| Cell::int32(e.app_id), Set::Int32(|e, v| e.app_id = v)),
    row(
        cstr!("app_name"),
        Null,
        Owner,
        |e| Cell::Text(&e.app_name),
        Set::Text(|e, v| e.app_name = v.unwrap_or_default()),
    ),
    row(
        cstr!("sub_app_id"),
        Null,
        Owner,
        |e| Cell::int32(e.sub_app_id),
        Set::Int32(|e, v| e.sub_app_id = v),
    ),
    row(
        cstr!("sub_app_name"),
        Null,
        Owner,
        |e| Cell::text(&e.sub_app_name),
        Set::Text(|e, v| e.sub_app_name = v),
    ),
    row(cstr!("user_id"), Null, Whole, |e| Cell::text(&e.user_id), Set::Text(|e, v| e.user_id = v)),
    row(
        cstr!("status"),
        Null,
        Always,
        |e| Cell::word(e.status.map(ExecutionStatus::as_str)),
        Set::Word(&ExecutionStatus::WORDS, |e, v| e.status = ExecutionStatus::parse(v)),
    ),
    row(
        cstr!("started_at"),
        Null,
        Always,
        |e| Cell::date(e.started_at),
        Set::Date(|e, v| e.started_at = v),
    ),
    row(
        cstr!("completed_at"),
        Null,
        Whole,
        |e| Cell::date(e.completed_at),
        Set::Date(|e, v| e.completed_at = v),
    ),
    row(
        cstr!("duration_ms"),
        Null,
        Whole,
        |e| Cell::int64(e.duration_ms),
        Set::Int64(|e, v| e.duration_ms = v),
    ),
    row(cstr!("error"), Null, Whole, |e| Cell::error(&e.error), Set::Error(|e| &mut e.error)),
    row(
        cstr!("error_info"),
        Absent,
        Whole,
        |e| Cell::error_info(&e.error),
        Set::ErrorInfo(|e| &mut e.error),
    ),
    row(
        cstr!("metadata"),
        Empty,
        Changed,
        |e| Cell::Object(&e.metadata),
        Set::Object(|e, v| e.metadata = v),
    ),
    row(
        cstr!("created_at"),
        Null,
        Whole,
        |e| Cell::date(e.created_at),
        Set::Date(|e, v| e.created_at = v),
    ),
    row(
        cstr!("updated_at"),
        Null,
        Always,
        |e| Cell::date(e.updated_at),
        Set::Date(|e, v| e.updated_at = v),
    ),
    row(
        cstr!("heartbeat_timeout_ms"),
        Absent,
        Whole,
        |e| Cell::int64(e.heartbeat_timeout_ms),
        Set::Int64(|e, v| e.heartbeat_timeout_ms = v),
    ),
    // A heartbeat is no change: that another server stored one makes nobody decide again.
    row(
        cstr!("last_heartbeat_at"),
        Absent,
        Never,
        |e| Cell::date(e.last_heartbeat_at),
        Set::Date(|e, v| e.last_heartbeat_at = v),
    ),
    row(
        cstr!("cancel_requested_at"),
        Absent,
        Whole,
        |e| Cell::date(e.cancel_requested_at),
        Set::Date(|e, v| e.cancel_requested_at = v),
    ),
    row(
        cstr!("cancel_reason"),
        Absent,
        Whole,
        |e| Cell::text(&e.cancel_reason),
        Set::Text(|e, v| e.cancel_reason = v),
    ),
    row(
        cstr!("parent_execution_id"),
        Absent,
        Whole,
        |e| Cell::text(&e.parent_execution_id),
        Set::Text(|e, v| e.parent_execution_id = v),
    ),
    row(
        cstr!("pinned"),
        Absent,
        Whole,
        |e| Cell::boolean(e.pinned),
        Set::Bool(|e, v| e.pinned = v),
    ),
    row(
        cstr!("configuration_version"),
        Absent,
        Whole,
        |e| Cell::text(&e.configuration_version),
        Set::Text(|e, v| e.configuration_version = v),
    ),
    row(
        cstr!("update_sequence"),
        Absent,
        Whole,
        |e| Cell::int64(e.update_sequence),
        Set::Int64(|e, v| e.update_sequence = v),
    ),
    row(
        cstr!("deleted_at"),
        Absent,
        Never,
        |e| Cell::date(e.deleted_at),
        Set::Date(|e, v| e.deleted_at = v),
    ),
    row(
        cstr!("mirrored_position"),
        Absent,
        Whole,
        |e| Cell::int64(e.mirrored_position),
        Set::Int64(|e, v| e.mirrored_position = v),
    ),
    row(
        cstr!("mirrored_revision"),
        Absent,
        Whole,
        |e| Cell::int64(e.mirrored_revision),
        Set::Int64(|e, v| e.mirrored_revision = v),
    ),
];

impl Execution {
    pub fn is_terminal(&self) -> bool {
        self.status.is_some_and(ExecutionStatus::is_terminal)
    }

    /// Whether its end is only the guess of a server that heard nothing.
    pub fn ended_for_silence(&self) -> bool {
        // A client may choose the same code for an end of its own.
        self.digests.finish.is_none() && self.failed_with(HEARTBEAT_TIMEOUT)
    }

    /// Whether its end is only a guess: a heartbeat takes it back, and any later end replaces it.
    pub fn end_is_a_guess(&self) -> bool {
        self.ended_for_silence() || self.failed_with(PROCESS_DIED)
    }

    fn failed_with(&self, code: &str) -> bool {
        self.status == Some(ExecutionStatus::Failed)
            && self.error.as_ref().is_some_and(|error| error.code == code)
    }

    /// Whether it is as a mirror has brought it, so that its life is its source's to judge.
    pub fn is_held_elsewhere(&self) -> bool {
        self.mirrored_revision == Some(self.revision)
    }

    /// The value of `last_change` after this record's current revision.
    pub fn last_change(&self) -> String {
        format!("{}//{}", self.execution_id, self.revision)
    }

    /// Bytes it takes in memory, roughly: for bounded caches.
    pub fn weight(&self) -> usize {
        512 + self.app_name.len()
            + value::size_of_document(&self.metadata)
            + self.error.as_ref().map_or(0, error_weight)
    }
}

pub(in crate::domain) fn error_weight(error: &RunError) -> usize {
    error.message.len() + error.stack_trace.len() + value::size_of_document(&error.details)
}
