//! A write as a plain value: it can be queued, batched, retried and tested.

use std::sync::Arc;

use super::error::Result;
use crate::domain::{Artifact, Execution, ExecutionOp, Now, Step, StepOp, StepRef};

/// One change asked for, of one execution or of steps of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    pub execution_id: String,
    pub op: Op,
    /// When the server took it.
    pub now: Now,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    Execution(ExecutionOp),
    Step {
        named: StepRef,
        op: Box<StepOp>,
    },
    /// Several steps at once: all of them or none.
    Plan(Vec<(StepRef, StepOp)>),
}

impl Write {
    /// Whether it has to be applied in a call of its own.
    pub fn is_delete(&self) -> bool {
        matches!(self.op, Op::Execution(ExecutionOp::Delete { .. }))
    }
}

/// The stored record after a write. Steps come without payloads.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Execution(Arc<Execution>),
    Step(Arc<Step>),
    Steps(Vec<Arc<Step>>),
    /// The record as it is: the update came too late and was dropped whole.
    Superseded(Record),
    Deleted,
}

/// Which record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordKey {
    pub execution_id: String,
    /// With an `artifact_id` always `None`. Both `None`: the execution itself.
    pub step_id: Option<i32>,
    pub artifact_id: Option<String>,
}

impl RecordKey {
    pub fn execution(execution_id: impl Into<String>) -> Self {
        RecordKey { execution_id: execution_id.into(), step_id: None, artifact_id: None }
    }

    pub fn artifact(execution_id: impl Into<String>, artifact_id: impl Into<String>) -> Self {
        let artifact_id = Some(artifact_id.into());
        RecordKey { execution_id: execution_id.into(), step_id: None, artifact_id }
    }

    pub fn is_execution(&self) -> bool {
        self.step_id.is_none() && self.artifact_id.is_none()
    }

    pub fn step(execution_id: impl Into<String>, step_id: i32) -> Self {
        RecordKey { execution_id: execution_id.into(), step_id: Some(step_id), artifact_id: None }
    }
}

/// A record of any kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    Execution(Arc<Execution>),
    Step(Arc<Step>),
    /// Comes from the log of changes alone, never out of `apply`.
    Artifact(Arc<Artifact>),
}

impl Record {
    pub fn key(&self) -> RecordKey {
        match self {
            Record::Execution(execution) => RecordKey::execution(&execution.execution_id),
            Record::Step(step) => RecordKey::step(&step.execution_id, step.step_id),
            Record::Artifact(artifact) => {
                RecordKey::artifact(&artifact.execution_id, &artifact.artifact_id)
            }
        }
    }

    pub fn revision(&self) -> i64 {
        match self {
            Record::Execution(execution) => execution.revision,
            Record::Step(step) => step.revision,
            // Never changes.
            Record::Artifact(_) => 0,
        }
    }

    pub fn weight(&self) -> usize {
        match self {
            Record::Execution(execution) => execution.weight(),
            Record::Step(step) => step.weight(),
            Record::Artifact(artifact) => artifact.weight(),
        }
    }
}

/// What became of the writes of one `apply`.
#[derive(Debug, Default)]
pub struct Applied {
    /// One per write, in order.
    pub outcomes: Vec<Result<Answer>>,
    /// The records that changed, as committed, without payloads: they spare the watchers a look-up.
    pub written: Vec<Record>,
}
