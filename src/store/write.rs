//! A write as a plain value: it can be queued, batched, retried and tested.

use std::sync::Arc;

use super::error::Result;
use crate::domain::{Execution, ExecutionOp, Now, Step, StepOp, StepRef};

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
    Deleted,
}

/// Which record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordKey {
    pub execution_id: String,
    /// `None`: the execution itself.
    pub step_id: Option<i32>,
}

impl RecordKey {
    pub fn execution(execution_id: impl Into<String>) -> Self {
        RecordKey { execution_id: execution_id.into(), step_id: None }
    }

    pub fn step(execution_id: impl Into<String>, step_id: i32) -> Self {
        RecordKey { execution_id: execution_id.into(), step_id: Some(step_id) }
    }
}

/// A record of either kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    Execution(Arc<Execution>),
    Step(Arc<Step>),
}

impl Record {
    pub fn key(&self) -> RecordKey {
        match self {
            Record::Execution(execution) => RecordKey::execution(&execution.execution_id),
            Record::Step(step) => RecordKey::step(&step.execution_id, step.step_id),
        }
    }

    pub fn revision(&self) -> i64 {
        match self {
            Record::Execution(execution) => execution.revision,
            Record::Step(step) => step.revision,
        }
    }

    pub fn weight(&self) -> usize {
        match self {
            Record::Execution(execution) => execution.weight(),
            Record::Step(step) => step.weight(),
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
