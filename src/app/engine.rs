//! The one write path: group commit. Every change of an execution or a step, whoever asks, is queued here and
//! applied in batches.
//!
//! Linger is 0: a lane takes what queued up while its last batch was in flight and never waits for more. A lane
//! is chosen by the execution's id, so two writes of one record are never in two batches at once and writes of
//! one execution apply in the order they came. The queue is bounded in number and bytes; full means
//! `Error::QueueFull` for a single call, and waiting for a stream, whose flow control then slows the client.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::error::{Error, Result};
use crate::clock::Clock;
use crate::domain::value;
use crate::domain::{ExecutionOp, StepOp};
use crate::store::{self, Answer, Op, Record, Store, Write};

/// Bounds of the write path.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Writes in one batch at most.
    pub batch_writes: usize,
    /// Bytes in one batch at most; a single larger write goes alone.
    pub batch_bytes: usize,
    /// Writes waiting in one lane at most.
    pub lane_writes: usize,
    /// Bytes waiting in all lanes at most.
    pub queue_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            batch_writes: 500,
            batch_bytes: 8 * 1024 * 1024,
            lane_writes: 4096,
            queue_bytes: 128 * 1024 * 1024,
        }
    }
}

/// Told of what became durable.
pub trait Observer: Send + Sync + 'static {
    /// The records as committed. Called after the commit, before the writers hear of it.
    fn written(&self, records: Vec<Record>);

    /// A write was refused because the queue is full.
    fn rejected(&self);
}

struct Queued {
    /// `None`: only wants to know when everything before it has been applied.
    write: Option<Write>,
    bytes: usize,
    answer: oneshot::Sender<store::Result<Answer>>,
    /// Gives the room in the queue back when the write leaves it.
    _room: OwnedSemaphorePermit,
}

/// Cheap handle to the write path.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    lanes: Vec<mpsc::Sender<Queued>>,
    /// Room in the queue, in KiB.
    room: Arc<Semaphore>,
    room_kib: u32,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
}

/// The answer to come of a write that is in the queue. Dropping it does not take the write back.
pub struct Pending(oneshot::Receiver<store::Result<Answer>>);

impl Pending {
    pub async fn answer(self) -> Result<Answer> {
        match self.0.await {
            Ok(outcome) => outcome.map_err(Error::from),
            // The lane ended with the process's work: whether the write was applied is not known.
            Err(_) => Err(Error::ShuttingDown),
        }
    }
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
        let lanes = (0..store.lanes().max(1))
            .map(|_| {
                let (sender, receiver) = mpsc::channel(bounds.lane_writes);
                tasks.spawn(lane(receiver, Arc::clone(&store), Arc::clone(&observer), bounds));
                sender
            })
            .collect();
        let room_kib = u32::try_from(bounds.queue_bytes / 1024).unwrap_or(u32::MAX >> 4);
        Engine {
            inner: Arc::new(Inner {
                lanes,
                room: Arc::new(Semaphore::new(room_kib as usize)),
                room_kib,
                clock,
                observer,
            }),
        }
    }

    fn queued(&self, execution_id: String, op: Op) -> (Write, usize, u32) {
        let write = Write { execution_id, op, now: self.inner.clock.now() };
        let bytes = weight(&write);
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX).min(self.inner.room_kib);
        (write, bytes, kib)
    }

    fn lane(&self, execution_id: &str) -> &mpsc::Sender<Queued> {
        let lanes = &self.inner.lanes;
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(execution_id);
        &lanes[(hash % lanes.len() as u64) as usize]
    }

    fn full(&self) -> Error {
        self.inner.observer.rejected();
        Error::QueueFull
    }

    /// Applies one write. Refuses at once when the queue is full.
    pub async fn write(&self, execution_id: String, op: Op) -> Result<Answer> {
        let (write, bytes, kib) = self.queued(execution_id, op);
        let room =
            Arc::clone(&self.inner.room).try_acquire_many_owned(kib).map_err(|_| self.full())?;
        let (answer, pending) = oneshot::channel();
        self.lane(&write.execution_id)
            .try_send(Queued { write: Some(write), bytes, answer, _room: room })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => self.full(),
                mpsc::error::TrySendError::Closed(_) => Error::ShuttingDown,
            })?;
        Pending(pending).answer().await
    }

    /// Queues one write, waiting for room as long as it takes; the answer comes through `Pending`.
    pub async fn enqueue(&self, execution_id: String, op: Op) -> Result<Pending> {
        let (write, bytes, kib) = self.queued(execution_id, op);
        let room = Arc::clone(&self.inner.room)
            .acquire_many_owned(kib)
            .await
            .map_err(|_| Error::ShuttingDown)?;
        let (answer, pending) = oneshot::channel();
        self.lane(&write.execution_id)
            .send(Queued { write: Some(write), bytes, answer, _room: room })
            .await
            .map_err(|_| Error::ShuttingDown)?;
        Ok(Pending(pending))
    }

    /// Waits until every write of this execution that is queued now has been applied or refused.
    pub async fn passed(&self, execution_id: &str) -> Result<()> {
        let room = Arc::clone(&self.inner.room)
            .acquire_many_owned(1)
            .await
            .map_err(|_| Error::ShuttingDown)?;
        let (answer, passed) = oneshot::channel();
        self.lane(execution_id)
            .send(Queued { write: None, bytes: 0, answer, _room: room })
            .await
            .map_err(|_| Error::ShuttingDown)?;
        // Its sender is dropped when the lane has come to it.
        let _ = passed.await;
        Ok(())
    }

    /// Writes waiting in all lanes.
    pub fn depth(&self) -> usize {
        self.inner.lanes.iter().map(|lane| lane.max_capacity() - lane.capacity()).sum()
    }
}

/// One lane: take what is there, apply it, answer, again.
async fn lane(
    mut queue: mpsc::Receiver<Queued>,
    store: Arc<dyn Store>,
    observer: Arc<dyn Observer>,
    bounds: Bounds,
) {
    // What was taken from the queue but did not fit into the batch.
    let mut next: Option<Queued> = None;
    loop {
        let first = match next.take() {
            Some(first) => first,
            None => match queue.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        // A delete goes alone: it takes its steps along, whatever their number.
        let is_delete =
            |queued: &Queued| queued.write.as_ref().is_some_and(|write| write.is_delete());
        let alone = is_delete(&first);
        let mut bytes = first.bytes;
        let mut batch = vec![first];
        while !alone && batch.len() < bounds.batch_writes {
            let Ok(queued) = queue.try_recv() else { break };
            if is_delete(&queued) || bytes + queued.bytes > bounds.batch_bytes {
                next = Some(queued);
                break;
            }
            bytes += queued.bytes;
            batch.push(queued);
        }

        let mut writes = Vec::with_capacity(batch.len());
        let mut answers = Vec::with_capacity(batch.len());
        // Told only after the batch: what comes before them may be in it.
        let mut passing = Vec::new();
        for queued in batch {
            match queued.write {
                Some(write) => {
                    writes.push(write);
                    answers.push((queued.answer, queued._room));
                }
                None => passing.push((queued.answer, queued._room)),
            }
        }
        if writes.is_empty() {
            continue;
        }
        let applied = store.apply(writes).await;
        // Only after the commit: a watcher woken earlier would read the log and find nothing.
        if !applied.written.is_empty() {
            observer.written(applied.written);
        }
        debug_assert_eq!(applied.outcomes.len(), answers.len());
        for ((answer, _room), outcome) in answers.into_iter().zip(applied.outcomes) {
            // The caller may have gone; the write stands all the same.
            let _ = answer.send(outcome);
        }
        drop(passing);
    }
}

/// Bytes a write takes in memory, roughly.
fn weight(write: &Write) -> usize {
    let step = |op: &StepOp| match op {
        StepOp::Plan { fields, .. } | StepOp::Start { fields, .. } => fields_weight(fields),
        StepOp::Update { metadata, output, .. } => {
            value::size_of_document(metadata) + output.as_ref().map_or(0, value::size)
        }
        StepOp::Finish { output, fields, error, .. } => {
            fields_weight(fields)
                + output.as_ref().map_or(0, value::size)
                + error.as_ref().map_or(0, |error| error.message.len() + error.stack_trace.len())
        }
        StepOp::Put(step) => step.weight(),
    };
    256 + match &write.op {
        Op::Execution(ExecutionOp::Create(create)) => value::size_of_document(&create.metadata),
        Op::Execution(ExecutionOp::Update { metadata, .. }) => value::size_of_document(metadata),
        Op::Execution(ExecutionOp::Finish { metadata, error, .. }) => {
            value::size_of_document(metadata)
                + error.as_ref().map_or(0, |error| error.message.len() + error.stack_trace.len())
        }
        Op::Execution(ExecutionOp::Put(execution)) => execution.weight(),
        Op::Execution(_) => 0,
        Op::Step { op, .. } => step(op),
        Op::Plan(steps) => steps.iter().map(|(_, op)| 128 + step(op)).sum(),
    }
}

fn fields_weight(fields: &crate::domain::step::StepFields) -> usize {
    value::size_of_document(&fields.metadata)
        + fields.input.as_ref().map_or(0, value::size)
        + fields.depends_on.len() * 4
}
