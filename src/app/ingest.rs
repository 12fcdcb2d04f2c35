//! Many writes over one stream, whichever edge it came in by: each begins in its turn (`order`), is queued or done
//! beside the lanes, and is answered once it is durable.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt as _};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::artifacts::Artifacts;
use super::configurations::Configurations;
use super::engine::{self, Pending};
use super::metrics::{Metrics, Request};
use super::order::{self, Order, Parked, Place};
use super::{App, Error, Result};
use crate::audit::Audit;
use crate::domain::audit::Target;
use crate::domain::audit::entry::short;
use crate::domain::{Artifact, Configuration, ExecutionOp, MetricCounts};
use crate::store::artifacts::Created;
use crate::store::configurations::Stored;
use crate::store::{Answer, By, Op};

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
        /// The place that a mirror gives it.
        mirrored: Option<i64>,
    },
    Points(Request),
    /// A record without its bytes; with the place that a mirror gives it, as `Configuration` has it too.
    Artifact(Artifact, Option<i64>),
    Configuration(Configuration, Option<i64>),
}

impl Write {
    /// Bytes it takes in memory, roughly.
    fn weight(&self) -> usize {
        match self {
            Write::Lane { op, .. } => engine::weight(op),
            Write::Beside(beside) => beside.weight(),
        }
    }
}

impl Beside {
    fn weight(&self) -> usize {
        match self {
            Beside::Plan { execution_id, .. } | Beside::Delete { execution_id, .. } => {
                256 + execution_id.len()
            }
            Beside::Points(request) => request.points.iter().map(|point| point.weight()).sum(),
            Beside::Artifact(record, _) => record.weight(),
            Beside::Configuration(record, _) => record.weight(),
        }
    }
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
    /// Whoever asks for it.
    pub by: By,
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
    pub audit: Audit,
    /// Code and reason of a failure, as records name them.
    pub codes: fn(&Error) -> (&'static str, Option<String>),
    /// Woken when a lease is made.
    pub lease_made: Arc<Notify>,
    pub tasks: TaskTracker,
    /// Ends the streams: no more is read, what was read is answered.
    pub stop: CancellationToken,
    /// Writes of one stream that may wait for their answer; then reading pauses.
    pub in_flight: usize,
    /// Bytes of the writes of all streams that wait for their turn.
    pub parked: Arc<AtomicUsize>,
}

/// A write that was read.
struct Asked {
    sequence: i64,
    write: Write,
    by: By,
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
        let mut parked = Parked::counted_in(&self.parked);
        // The last one that was read, while there is no room for it.
        let mut held: Option<(Place, Asked)> = None;
        let mut reading = true;
        let mut end = None;
        loop {
            if let Some((place, asked)) = held.take_if(|(place, _)| !order.is_full_for(place)) {
                order.admit(&place);
                if order.has_to_wait(&place) || parked.holds_up(&place) {
                    let bytes = asked.write.weight();
                    parked.park(place, bytes, asked);
                    continue;
                }
                waiting.push(self.begin_in_turn(&mut order, place, asked).await);
                continue;
            }
            if let Some((place, asked)) = parked.next(&order) {
                waiting.push(self.begin_in_turn(&mut order, place, asked).await);
                continue;
            }
            if answers.is_closed() && held.is_none() && parked.is_empty() {
                return;
            }
            let has_room = held.is_none()
                && waiting.len() + parked.len() < self.in_flight
                && !parked.is_full();
            let message = tokio::select! {
                biased;
                Some((answered, ended)) = waiting.next() => {
                    // Nobody may be listening any more.
                    reading &= answers.send(Ok(answered)).await.is_ok();
                    parked.ended(&ended);
                    if let Err(error) = order.ended(ended) {
                        reading = false;
                        end.get_or_insert(Ended::Failed(error));
                    }
                    continue;
                }
                () = self.stop.cancelled(), if reading => Some(Err(Ended::Failed(Error::ShuttingDown))),
                message = messages.next(), if reading && has_room => {
                    message.map(|read| read.map_err(Ended::Broken))
                }
                else => break,
            };
            match message {
                Some(Ok(Message { sequence, write: Ok(write), by })) => {
                    held = Some((place(&write), Asked { sequence, write, by }));
                }
                Some(Ok(Message { sequence, write: Err(error), .. })) => {
                    let refused = Answered { sequence, outcome: Err(error) };
                    reading &= answers.send(Ok(refused)).await.is_ok();
                }
                Some(Err(ended)) => {
                    reading = false;
                    end = Some(ended);
                }
                None => reading = false,
            }
        }
        if let Some(end) = end {
            // The client may be gone.
            let _ = answers.send(Err(end)).await;
        }
    }

    /// Begins a write, unless an earlier one has failed for now. What comes of it is its answer, in its turn.
    async fn begin_in_turn(
        self: &Arc<Self>,
        order: &mut Order,
        place: Place,
        asked: Asked,
    ) -> impl Future<Output = (Answered, order::Ended)> + use<> {
        let Asked { sequence, write, by } = asked;
        let begun = match order.may_begin(&place) {
            Ok(()) => self.begin(write, by).await,
            Err(error) => Begun::Refused(error),
        };
        let turn = order.turn(sequence, place);
        async move {
            let (outcome, ended) = turn.answer(begun.outcome()).await;
            (Answered { sequence, outcome }, ended)
        }
    }

    /// Queues a write, or begins it beside the lanes.
    async fn begin(self: &Arc<Self>, write: Write, by: By) -> Begun {
        match write {
            Write::Lane { execution_id, op } => {
                if let Op::Execution(ExecutionOp::Create(create)) = &op
                    && create.heartbeat_timeout_ms.is_some()
                {
                    self.lease_made.notify_one();
                }
                let is_heartbeat = matches!(op, Op::Execution(ExecutionOp::Heartbeat));
                match self.app.engine().enqueue(execution_id, op, by).await {
                    Ok(pending) => Begun::Queued { pending, is_heartbeat },
                    Err(error) => Begun::Refused(error),
                }
            }
            // A task of its own: what it holds, others wait for, and this stream may stand still for as long as its
            // client reads no answers. It goes on when the client is gone.
            Write::Beside(beside) => {
                Begun::Beside(self.tasks.spawn(Arc::clone(self).recorded(beside, by)))
            }
        }
    }

    /// Does a write beside the lanes. What no store records along with it is recorded before and after.
    async fn recorded(self: Arc<Self>, write: Beside, by: By) -> Result<Done> {
        let Some((event, target, asked)) = event(&write).zip(by.asked.clone()).map(flat) else {
            return self.beside(write, by).await;
        };
        let (audit, codes) = (self.audit.clone(), self.codes);
        let open = audit.begin(event, &asked, target).await?;
        let done = self.beside(write, by).await;
        let (code, reason) = done.as_ref().err().map_or(("OK", None), codes);
        open.end(code, reason, made(&done));
        done
    }

    /// The same, once everything queued for its execution has passed.
    async fn beside(self: Arc<Self>, write: Beside, by: By) -> Result<Done> {
        let engine = self.app.engine();
        let scope = by.scope.clone();
        match write {
            Beside::Plan { execution_id, version } => {
                engine.passed(&execution_id).await?;
                let plan = self.configurations.plan(&execution_id, &version, &scope).await?;
                let pending = engine.enqueue(execution_id, plan, by).await?;
                pending.answer().await.map(Done::Record)
            }
            // It marks the execution in its lane and then takes its time; what follows about the same execution
            // waits for its end, when the id is free again.
            Beside::Delete { execution_id, force, mirrored } => {
                engine.passed(&execution_id).await?;
                let id = execution_id.clone();
                match mirrored {
                    None => self.app.delete_execution(id, force, scope).await?,
                    Some(position) => self.app.delete_mirrored(id, position, scope).await?,
                }
                Ok(Done::Deleted { execution_id })
            }
            Beside::Points(request) => {
                // The execution may be created by a write that is queued before.
                if !request.put {
                    engine.passed(&request.execution_id).await?;
                }
                let pending = self.metrics.enqueue(request, by).await?;
                pending.answer().await.map(Done::Points)
            }
            Beside::Artifact(record, mirrored) => {
                if !record.execution_id.is_empty() {
                    engine.passed(&record.execution_id).await?;
                }
                self.artifacts.put(record, mirrored, &scope).await.map(Done::Artifact)
            }
            Beside::Configuration(record, mirrored) => {
                self.configurations.put(record, mirrored, &scope).await.map(Done::Configuration)
            }
        }
    }
}

/// What is recorded before a write is done, and what it is about. The others are recorded along with what they store.
fn event(write: &Beside) -> Option<(&'static str, Target)> {
    match write {
        Beside::Plan { .. } | Beside::Points(_) => None,
        Beside::Delete { execution_id, .. } => {
            Some(("execution.delete", Target::execution(execution_id)))
        }
        Beside::Artifact(record, _) => {
            let step_id = record.step_id;
            Some(("artifact.put", Target { step_id, ..Target::execution(&record.execution_id) }))
        }
        Beside::Configuration(record, _) => {
            let (app_name, version) = (short(&record.app_name), short(&record.version));
            let (app_name, version) = (Some(app_name), Some(version));
            Some(("configuration.put", Target { app_name, version, ..Target::default() }))
        }
    }
}

fn flat<A, B, C>(((a, b), c): ((A, B), C)) -> (A, B, C) {
    (a, b, c)
}

/// What has got its name with being done.
fn made(done: &Result<Done>) -> Target {
    let artifact_id = match done {
        Ok(Done::Artifact(Created::New(stored) | Created::Found(stored))) => {
            Some(stored.artifact_id.clone())
        }
        _ => None,
    };
    Target { artifact_id, ..Target::default() }
}

fn place(write: &Write) -> Place {
    let beside = match write {
        Write::Lane { execution_id, .. } => return Place::lane(execution_id.clone()),
        Write::Beside(beside) => beside,
    };
    let bytes = beside.weight();
    match beside {
        Beside::Plan { execution_id, .. } | Beside::Delete { execution_id, .. } => {
            Place::alone(execution_id.clone())
        }
        Beside::Points(request) => Place::apart(request.execution_id.clone(), bytes),
        Beside::Artifact(record, _) => Place::together(record.execution_id.clone(), bytes),
        Beside::Configuration(record, _) => {
            let about = format!("configurations of {}", record.scope().identity());
            Place::apart(about, bytes)
        }
    }
}
