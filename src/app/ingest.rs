//! Many writes over one stream, whichever edge it came in by: each begins in its turn (`order`), is queued or done
//! beside the lanes, and is answered once it is durable.

use std::sync::Arc;

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt as _};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::configurations::Configurations;
use super::engine::Pending;
use super::metrics::{Metrics, Request};
use super::order::{Order, Place};
use super::{App, Artifacts, Error, Result};
use crate::domain::{Artifact, Configuration, ExecutionOp, MetricCounts};
use crate::store::artifacts::Created;
use crate::store::configurations::Stored;
use crate::store::{Answer, Op};

/// What one message of a stream asks for.
#[derive(Debug)]
pub enum Write {
    /// A change of an execution or a step, through the lanes of the engine.
    Lane {
        execution_id: String,
        op: Op,
    },
    Beside(Beside),
}

/// What does not go through the lanes.
#[derive(Debug)]
pub enum Beside {
    /// The steps of a version of the execution's configuration.
    Plan {
        execution_id: String,
        version: String,
    },
    Delete {
        execution_id: String,
        force: bool,
    },
    Points(Request),
    /// A record without its bytes.
    Artifact(Artifact),
    Configuration(Configuration),
}

/// What became of a write.
#[derive(Debug)]
pub enum Done {
    Record(Answer),
    Heartbeat { cancel_requested: bool },
    Deleted { execution_id: String },
    Points(MetricCounts),
    Artifact(Created),
    Configuration(Stored),
}

/// A message of a stream.
pub struct Message {
    /// Chosen by the client; comes back with the answer.
    pub sequence: i64,
    /// Or why it is refused, at once.
    pub write: Result<Write>,
}

/// The answer to a message.
pub struct Answered {
    pub sequence: i64,
    pub outcome: Result<Done>,
}

/// Why a stream ended that the client had not ended. `E`: what the edge calls a broken stream.
pub enum Ended<E> {
    Failed(Error),
    Broken(E),
}

/// Serves such streams.
pub struct Ingest {
    pub app: Arc<App>,
    pub configurations: Arc<Configurations>,
    pub metrics: Arc<Metrics>,
    pub artifacts: Arc<Artifacts>,
    /// Woken when a lease is made.
    pub lease_made: Arc<Notify>,
    pub tasks: TaskTracker,
    /// Ends the streams: no more is read, what was read is answered.
    pub stop: CancellationToken,
    /// Writes of one stream that may wait for their answer; then reading pauses.
    pub in_flight: usize,
}

/// A write that was begun, or was refused instead.
enum Begun {
    Queued { pending: Pending, is_heartbeat: bool },
    Beside(JoinHandle<Result<Done>>),
    Refused(Error),
}

impl Begun {
    async fn outcome(self) -> Result<Done> {
        match self {
            Begun::Queued { pending, is_heartbeat } => match pending.answer().await? {
                Answer::Execution(execution) if is_heartbeat => Ok(Done::Heartbeat {
                    cancel_requested: execution.cancel_requested_at.is_some(),
                }),
                answer => Ok(Done::Record(answer)),
            },
            Begun::Beside(task) => task.await.unwrap_or(Err(Error::ShuttingDown)),
            Begun::Refused(error) => Err(error),
        }
    }
}

impl Ingest {
    /// Runs one stream to its end. Nobody listening to the answers any more ends it too; what was read by then is
    /// applied all the same.
    pub async fn run<E>(
        self: Arc<Self>,
        mut messages: impl Stream<Item = Result<Message, E>> + Unpin,
        answers: mpsc::Sender<Result<Answered, Ended<E>>>,
    ) {
        let mut waiting = FuturesUnordered::new();
        let mut order = Order::default();
        let end = loop {
            let message = tokio::select! {
                biased;
                Some((answered, ended)) = waiting.next() => {
                    if answers.send(Ok(answered)).await.is_err() {
                        return;
                    }
                    match order.ended(ended) {
                        Ok(()) => continue,
                        Err(error) => break Some(Ended::Failed(error)),
                    }
                }
                () = self.stop.cancelled() => break Some(Ended::Failed(Error::ShuttingDown)),
                message = messages.next(), if waiting.len() < self.in_flight => message,
            };
            let Message { sequence, write } = match message {
                Some(Ok(message)) => message,
                Some(Err(broken)) => break Some(Ended::Broken(broken)),
                None => break None,
            };
            let write = match write {
                Ok(write) => write,
                Err(error) => {
                    let refused = Answered { sequence, outcome: Err(error) };
                    if answers.send(Ok(refused)).await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let place = place(&write);
            // In order: what is under way about the same comes first.
            let mut held_up = Ok(());
            while held_up.is_ok()
                && order.has_to_wait(&place)
                && let Some((answered, ended)) = waiting.next().await
            {
                if answers.send(Ok(answered)).await.is_err() {
                    return;
                }
                held_up = order.ended(ended);
            }
            if let Err(error) = held_up {
                break Some(Ended::Failed(error));
            }
            let begun = match order.may_begin(&place) {
                Ok(()) => self.begin(write).await,
                Err(error) => Begun::Refused(error),
            };
            let turn = order.turn(sequence, place);
            waiting.push(async move {
                let (outcome, ended) = turn.answer(begun.outcome()).await;
                (Answered { sequence, outcome }, ended)
            });
        };
        while let Some((answered, _)) = waiting.next().await {
            if answers.send(Ok(answered)).await.is_err() {
                return;
            }
        }
        if let Some(end) = end {
            // The client may be gone.
            let _ = answers.send(Err(end)).await;
        }
    }

    /// Queues a write, or begins it beside the lanes.
    async fn begin(self: &Arc<Self>, write: Write) -> Begun {
        match write {
            Write::Lane { execution_id, op } => {
                if let Op::Execution(ExecutionOp::Create(create)) = &op
                    && create.heartbeat_timeout_ms.is_some()
                {
                    self.lease_made.notify_one();
                }
                let is_heartbeat = matches!(op, Op::Execution(ExecutionOp::Heartbeat));
                match self.app.engine().enqueue(execution_id, op).await {
                    Ok(pending) => Begun::Queued { pending, is_heartbeat },
                    Err(error) => Begun::Refused(error),
                }
            }
            // A task of its own: what it holds, others wait for, and this stream may stand still for as long as its
            // client reads no answers. It goes on when the client is gone.
            Write::Beside(beside) => {
                Begun::Beside(self.tasks.spawn(Arc::clone(self).beside(beside)))
            }
        }
    }

    /// Does a write beside the lanes, once everything queued for its execution has passed.
    async fn beside(self: Arc<Self>, write: Beside) -> Result<Done> {
        let engine = self.app.engine();
        match write {
            Beside::Plan { execution_id, version } => {
                engine.passed(&execution_id).await?;
                let plan = self.configurations.plan(&execution_id, &version).await?;
                let pending = engine.enqueue(execution_id, plan).await?;
                pending.answer().await.map(Done::Record)
            }
            // It marks the execution in its lane and then takes its time; what follows about the same execution
            // waits for its end, when the id is free again.
            Beside::Delete { execution_id, force } => {
                engine.passed(&execution_id).await?;
                self.app.delete_execution(execution_id.clone(), force).await?;
                Ok(Done::Deleted { execution_id })
            }
            Beside::Points(request) => {
                // The execution may be created by a write that is queued before.
                if !request.put {
                    engine.passed(&request.execution_id).await?;
                }
                let pending = self.metrics.recorder().enqueue(request).await?;
                pending.answer().await.map(Done::Points)
            }
            Beside::Artifact(record) => {
                if !record.execution_id.is_empty() {
                    engine.passed(&record.execution_id).await?;
                }
                self.artifacts.put(record).await.map(Done::Artifact)
            }
            Beside::Configuration(record) => {
                self.configurations.put(record).await.map(Done::Configuration)
            }
        }
    }
}

fn place(write: &Write) -> Place {
    let beside = match write {
        Write::Lane { execution_id, .. } => return Place::lane(execution_id.clone()),
        Write::Beside(beside) => beside,
    };
    match beside {
        Beside::Plan { execution_id, .. } | Beside::Delete { execution_id, .. } => {
            Place::alone(execution_id.clone())
        }
        Beside::Points(request) => {
            let bytes = request.points.iter().map(|point| point.weight()).sum();
            Place::apart(request.execution_id.clone(), bytes)
        }
        Beside::Artifact(record) => Place::together(record.execution_id.clone(), record.weight()),
        Beside::Configuration(record) => {
            let about = format!("configurations of {}", record.scope().identity());
            Place::apart(about, record.weight())
        }
    }
}
