//! Why a record of a plan could not be stored, and what that means for the writes that rest on it.

use super::indexes::RecordIndexes;
use crate::domain::Refusal;
use crate::store::mongo::db::{Holder, Unique, failure};
use crate::store::mongo::names::{EXECUTIONS, STEPS};
use crate::store::{Cause, Denial, Error, RecordKey};

#[derive(Clone)]
pub enum Failed {
    Unknown,
    /// By the database, with this code.
    Refused(i32),
    /// By a unique index that keeps apart something else than ids.
    Index(String),
    /// Nobody would refuse a second record of the same id, and that stays so; or it is being mended just now.
    NotUnique,
    Mending,
    /// Another record of the same id is the one that is changed.
    DuplicateId,
    /// The execution of a new step is gone.
    NoExecution,
    /// What has to be recorded of the batch cannot be.
    Unaudited,
}

impl RecordIndexes {
    /// Why no new record may be made.
    pub fn forbids(&self, unique: Unique) -> Option<Failed> {
        match unique {
            Unique::Whole | Unique::Above(_) => None,
            Unique::Missing if self.mending => Some(Failed::Mending),
            Unique::Missing => Some(Failed::NotUnique),
        }
    }
}

impl Failed {
    /// Whether the database answered, and would not have it.
    pub fn is_refused(&self) -> bool {
        matches!(self, Failed::Refused(_) | Failed::Index(_))
    }

    /// What it means for a write of the record with this key.
    pub fn error(&self, key: &RecordKey) -> Error {
        match self {
            Failed::Unknown | Failed::Mending => failure::timeout(),
            Failed::NotUnique => Denial::new(Cause::NoUniqueIndex, collection_of(key)).into(),
            Failed::DuplicateId => {
                let execution_id = key.execution_id.clone();
                let step = key.step_id.map(|step_id| step_id.to_string());
                Error::Refused(Refusal::DuplicateId { execution_id, step })
            }
            Failed::Refused(code) => failure::statement(*code, collection_of(key)),
            Failed::Index(name) => {
                Denial::new(Cause::Index(name.clone()), collection_of(key)).into()
            }
            Failed::Unaudited => Error::unaudited(failure::timeout()),
            Failed::NoExecution => {
                let execution_id = key.execution_id.clone();
                Error::Refused(Refusal::ExecutionNotFound { execution_id })
            }
        }
    }
}

fn collection_of(key: &RecordKey) -> &'static str {
    if key.step_id.is_some() { STEPS.as_str() } else { EXECUTIONS.as_str() }
}

/// Whether an index forbids what a look-up by id finds.
pub fn keeps_ids_apart(key: &RecordKey, holder: &Holder) -> bool {
    match key.step_id {
        None => holder.is_of(&["execution_id"]),
        Some(_) => {
            holder.is_of(&["execution_id", "step_id"])
                || holder.is_of(&["execution_id", "step_key"])
        }
    }
}
