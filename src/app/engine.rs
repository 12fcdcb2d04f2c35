//! The one write path: every change of an execution or a step, whoever asks, is queued here and applied in the
//! batches of `lanes`.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use super::error::Result;
use super::lanes::{self, Bounds, Lanes, Work};
use crate::clock::Clock;
use crate::domain::value;
use crate::domain::{ExecutionOp, RunError, StepOp};
use crate::store::{self, Answer, By, Op, Record, Store, Write};

/// Told of what became durable.
pub trait Observer: Send + Sync + 'static {
    /// The records as committed. Called after the commit, before the writers hear of it.
    fn written(&self, records: Vec<Record>);

    /// A write was refused because the queue is full.
    fn rejected(&self);
}

/// The answer to come of a write that is in the queue.
pub type Pending = lanes::Pending<Answer>;

/// Cheap handle to the write path.
#[derive(Clone)]
pub struct Engine {
    lanes: Arc<Lanes<Writes>>,
    clock: Arc<dyn Clock>,
}

impl Engine {
    /// Starts the lanes. They end when every handle is gone and what is queued has been applied.
    pub fn start(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        observer: Arc<dyn Observer>,
        bounds: Bounds,
        tasks: &TaskTracker,
    ) -> Engine {
        let lanes = store.lanes();
        let lanes = Lanes::start(Writes { store, observer }, lanes, bounds, tasks);
        Engine { lanes: Arc::new(lanes), clock }
    }

    fn taken(&self, execution_id: String, op: Op, by: By) -> Write {
        let By { scope, asked } = by;
        Write { execution_id, op, now: self.clock.now(), scope, asked }
    }

    /// Applies one write. Refuses at once when the queue is full.
    pub async fn write(&self, execution_id: String, op: Op, by: impl Into<By>) -> Result<Answer> {
        self.lanes.submit(self.taken(execution_id, op, by.into())).await
    }

    /// Queues one write, waiting for room as long as it takes.
    pub async fn enqueue(
        &self,
        execution_id: String,
        op: Op,
        by: impl Into<By>,
    ) -> Result<Pending> {
        self.lanes.enqueue(self.taken(execution_id, op, by.into())).await
    }

    /// Waits until every write of this execution that is queued now has been applied or refused.
    pub async fn passed(&self, execution_id: &str) -> Result<()> {
        self.lanes.passed(execution_id).await
    }

    /// Writes waiting in all lanes.
    pub fn depth(&self) -> usize {
        self.lanes.depth()
    }
}

/// Applies writes.
struct Writes {
    store: Arc<dyn Store>,
    observer: Arc<dyn Observer>,
}

impl Work for Writes {
    type Item = Write;
    type Answer = Answer;

    fn execution_id(write: &Write) -> &str {
        &write.execution_id
    }

    fn bytes(write: &Write) -> usize {
        weight(&write.op)
    }

    fn count(_: &Write) -> usize {
        1
    }

    /// A delete goes alone: it takes its steps along, whatever their number.
    fn joins(batch: &[Write], next: &Write) -> bool {
        !next.is_delete() && !batch[0].is_delete()
    }

    async fn apply(&self, writes: Vec<Write>) -> Vec<store::Result<Answer>> {
        let applied = self.store.apply(writes).await;
        // Only after the commit: a watcher woken earlier would read the log and find nothing.
        if !applied.written.is_empty() {
            self.observer.written(applied.written);
        }
        applied.outcomes
    }

    fn rejected(&self) {
        self.observer.rejected();
    }
}

/// Bytes a write takes in memory, roughly.
pub fn weight(op: &Op) -> usize {
    let step = |op: &StepOp| match op {
        StepOp::Plan { fields, .. } | StepOp::Start { fields, .. } => fields_weight(fields),
        StepOp::Update { metadata, output, .. } => {
            value::weight_of_document(metadata) + output.as_ref().map_or(0, value::weight)
        }
        StepOp::Finish { output, fields, error, .. } => {
            fields_weight(fields)
                + output.as_ref().map_or(0, value::weight)
                + error.as_ref().map_or(0, RunError::weight)
        }
        StepOp::Put(step) => step.weight(),
    };
    256 + match op {
        Op::Execution(ExecutionOp::Create(create)) => value::weight_of_document(&create.metadata),
        Op::Execution(ExecutionOp::Update { metadata, .. }) => value::weight_of_document(metadata),
        Op::Execution(ExecutionOp::Finish { metadata, error, .. }) => {
            value::weight_of_document(metadata) + error.as_ref().map_or(0, RunError::weight)
        }
        Op::Execution(ExecutionOp::Put(execution)) => execution.weight(),
        Op::Execution(_) => 0,
        Op::Step { op, .. } => step(op),
        Op::Plan(steps) => steps.iter().map(|(_, op)| 128 + step(op)).sum(),
    }
}

fn fields_weight(fields: &crate::domain::step::StepFields) -> usize {
    value::weight_of_document(&fields.metadata)
        + fields.input.as_ref().map_or(0, value::weight)
        + fields.depends_on.len() * 4
        + fields.depends_on_keys.iter().map(|key| 24 + key.len()).sum::<usize>()
}
