//! Writes about steps as values, and why they are refused.

use bson::{Bson, Document};

use super::record::{Step, StepRef, StepStatus};
use crate::domain::refusal::Refusal;
use crate::domain::terms::{Millis, RunError};

/// What describes a step, whichever request brings it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepFields {
    pub step_version: Option<String>,
    /// `None`: not sent.
    pub input: Option<Bson>,
    pub metadata: Document,
    pub depends_on: Vec<i32>,
    /// Instead of `depends_on`.
    pub depends_on_keys: Vec<String>,
    pub parent_step_id: Option<i32>,
    /// Instead of `parent_step_id`.
    pub parent_step_key: Option<String>,
    pub started_at: Option<Millis>,
}

/// One write about a step.
#[derive(Debug, Clone, PartialEq)]
pub enum StepOp {
    Plan {
        step_name: String,
        fields: StepFields,
    },
    Start {
        step_name: String,
        fields: StepFields,
        attempt: Option<i32>,
    },
    Update {
        progress: Option<f64>,
        progress_message: Option<String>,
        metadata: Document,
        /// An object is merged into the stored one, anything else replaces it. `None`: not sent.
        output: Option<Bson>,
        update_sequence: Option<i64>,
    },
    Finish {
        status: StepStatus,
        output: Option<Bson>,
        error: Option<RunError>,
        completed_at: Option<Millis>,
        /// Given: an unknown step is created. Its `fields.metadata` is what is merged.
        step_name: Option<String>,
        fields: StepFields,
    },
    /// A whole record as it is: import, or with a `mirrored_position` a mirror. Its revision and digests are ignored.
    Put(Box<Step>),
}

impl StepOp {
    /// Whether it may create the record.
    pub fn may_create(&self) -> bool {
        match self {
            Self::Plan { .. } | Self::Start { .. } | Self::Put(_) => true,
            Self::Update { .. } => false,
            Self::Finish { step_name, .. } => step_name.is_some(),
        }
    }

    /// Whether a mirror brings it, so that it says nothing of who is alive.
    pub fn is_mirrored(&self) -> bool {
        matches!(self, Self::Put(record) if record.mirrored_position.is_some())
    }

    /// The key of the parent, where the client names it by that.
    pub fn parent_step_key(&self) -> Option<&String> {
        match self {
            Self::Plan { fields, .. }
            | Self::Start { fields, .. }
            | Self::Finish { fields, .. } => fields.parent_step_key.as_ref(),
            Self::Update { .. } | Self::Put(_) => None,
        }
    }

    /// Whether a store may try to insert without looking for the record first, because it hardly ever exists.
    pub fn expects_to_create(&self) -> bool {
        matches!(self, Self::Plan { .. } | Self::Start { .. } | Self::Put(_))
    }
}

/// Which step a write is about: the names the client gave, and the number the record has or will get.
#[derive(Debug, Clone, PartialEq)]
pub struct Target<'a> {
    pub execution_id: &'a str,
    /// As the client named it.
    pub named: &'a StepRef,
    /// The number of the record, if it has to be created.
    pub step_id: i32,
    /// The number of the parent that the request names by key, where that is stored.
    pub parent_step_id: Option<i32>,
}

pub(super) fn not_found(target: &Target<'_>) -> Refusal {
    Refusal::StepNotFound {
        execution_id: target.execution_id.to_owned(),
        step: target.named.to_string(),
    }
}

pub(super) fn exists(target: &Target<'_>) -> Refusal {
    Refusal::StepExists {
        execution_id: target.execution_id.to_owned(),
        step: match target.named.step_id.is_some() || target.named.step_key.is_some() {
            true => target.named.to_string(),
            false => target.step_id.to_string(),
        },
    }
}

pub(super) fn wrong_status(stored: &Step, to: &'static str, why: &'static str) -> Refusal {
    Refusal::Status {
        what: format!("step {} of execution {}", stored.step_id, stored.execution_id),
        from: stored.status.map_or("unknown", StepStatus::as_str),
        to,
        why,
    }
}
