//! A write as a plain value: it can be queued, batched, retried and tested.

use std::sync::Arc;

use super::error::Result;
use crate::domain::access::AppScope;
use crate::domain::audit::Asked;
use crate::domain::audit::entry::Written;
use crate::domain::{Artifact, Execution, ExecutionOp, Now, Step, StepOp, StepRef};

/// Whoever asks for something.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct By {
    /// The apps for which they may ask for it.
    pub scope: AppScope,
    /// The call, where it is recorded along with what it does.
    pub asked: Option<Asked>,
}

impl By {
    /// The same, with what is recorded named so.
    pub fn named(scope: AppScope, asked: Option<&Asked>, rpc: &'static str) -> By {
        By { scope, asked: asked.map(|asked| Asked { rpc, ..asked.clone() }) }
    }
}

impl From<AppScope> for By {
    fn from(scope: AppScope) -> By {
        By { scope, asked: None }
    }
}

/// One change asked for, of one execution or of steps of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    pub execution_id: String,
    pub op: Op,
    /// When the server took it.
    pub now: Now,
    /// The apps for which whoever asks may ask for it.
    pub scope: AppScope,
    /// The call, where it is recorded along with the write: an answer then means that the record is durable too.
    pub asked: Option<Asked>,
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
        matches!(
            self.op,
            Op::Execution(ExecutionOp::Delete { .. } | ExecutionOp::DeleteMirrored { .. })
        )
    }

    /// What is recorded of it before it is done, if anything is.
    pub fn recorded(&self) -> Option<Written> {
        let step_id = match &self.op {
            Op::Step { named, .. } => named.step_id,
            Op::Execution(_) | Op::Plan(_) => None,
        };
        let (asked, execution_id) = (self.asked.clone()?, self.execution_id.clone());
        Some(Written { asked, execution_id, step_id, code: None })
    }

    /// Whether it is a sign of life, which is a change only where it brings an execution back.
    pub fn is_heartbeat(&self) -> bool {
        matches!(self.op, Op::Execution(ExecutionOp::Heartbeat))
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

impl Answer {
    /// The number of the step that it is about.
    pub fn step_id(&self) -> Option<i32> {
        match self {
            Answer::Step(step) | Answer::Superseded(Record::Step(step)) => Some(step.step_id),
            _ => None,
        }
    }
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
