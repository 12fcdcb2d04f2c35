//! IngestService: the same writes over one stream.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::Either;
use futures::stream::FuturesUnordered;
use prost::Message as _;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Response, Status, Streaming};

use super::requests::PlanAsked;
use super::{artifact_requests, configurations, convert, metric_requests, requests, status};
use crate::app::configurations::Configurations;
use crate::app::metrics::{Metrics, Request};
use crate::app::{App, Artifacts, Error, Result, ids};
use crate::domain::Configuration;
use crate::proto;
use crate::proto::ingest_request::Write;
use crate::proto::ingest_response::Result as Outcome;
use crate::store::artifacts::Created;
use crate::store::configurations::Stored;
use crate::store::{Answer, Op};

/// Answers that may wait for the client to read them; then reading pauses too.
const ANSWERS: usize = 512;
/// Bytes of writes beside the lanes that one stream may have under way, unless one alone has more. Those in the lanes
/// are bounded for all streams together.
const ASIDE_BYTES: usize = 32 * 1024 * 1024;

/// Serves IngestService.
pub struct Ingest {
    pub app: Arc<App>,
    pub configurations: Arc<Configurations>,
    pub metrics: Arc<Metrics>,
    pub artifacts: Arc<Artifacts>,
    pub lease_made: Arc<Notify>,
    pub tasks: TaskTracker,
    /// Ends the streams: no more is read, what was read is answered.
    pub stop: CancellationToken,
    /// Writes of one stream that may wait for their answer; then reading pauses, and HTTP/2 flow control
    /// slows the client down.
    pub in_flight: usize,
}

/// Which kind of answer a write expects.
#[derive(Clone, Copy)]
enum Expects {
    Record,
    Heartbeat,
}

#[tonic::async_trait]
impl proto::ingest_service_server::IngestService for Ingest {
    type IngestStream = ReceiverStream<Result<proto::IngestResponse, Status>>;

    async fn ingest(
        &self,
        request: tonic::Request<Streaming<proto::IngestRequest>>,
    ) -> Result<Response<Self::IngestStream>, Status> {
        let (answers, stream) = mpsc::channel(ANSWERS);
        let run = Run {
            app: Arc::clone(&self.app),
            configurations: Arc::clone(&self.configurations),
            metrics: Arc::clone(&self.metrics),
            artifacts: Arc::clone(&self.artifacts),
            lease_made: Arc::clone(&self.lease_made),
            tasks: self.tasks.clone(),
            stop: self.stop.clone(),
            in_flight: self.in_flight.max(1),
            answers,
        };
        self.tasks.spawn(run.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

struct Run {
    app: Arc<App>,
    configurations: Arc<Configurations>,
    metrics: Arc<Metrics>,
    artifacts: Arc<Artifacts>,
    lease_made: Arc<Notify>,
    tasks: TaskTracker,
    stop: CancellationToken,
    in_flight: usize,
    answers: mpsc::Sender<Result<proto::IngestResponse, Status>>,
}

impl Run {
    async fn run(self, mut inbound: Streaming<proto::IngestRequest>) {
        let mut waiting = FuturesUnordered::new();
        // Writes beside the lanes that are under way, by what they are about.
        let mut asides = Asides::default();
        let mut in_order = InOrder::default();
        let end = loop {
            let message = tokio::select! {
                biased;
                Some((answer, aside)) = waiting.next() => {
                    asides.ended(aside);
                    if self.answers.send(Ok(answer)).await.is_err() {
                        // The client is gone. What it sent is applied all the same.
                        return;
                    }
                    continue;
                }
                () = self.stop.cancelled() => break Err(Error::ShuttingDown),
                message = inbound.message(), if waiting.len() < self.in_flight => message,
            };
            match message {
                Ok(Some(request)) => {
                    let sequence = request.sequence;
                    let bytes = request.encoded_len();
                    let taken = match self.take(request) {
                        // In order: what is under way about the same comes first.
                        Ok(taken) => {
                            while asides.hold_up(&taken, bytes)
                                && let Some((answer, aside)) = waiting.next().await
                            {
                                asides.ended(aside);
                                if self.answers.send(Ok(answer)).await.is_err() {
                                    return;
                                }
                            }
                            self.begin(taken).await
                        }
                        Err(error) => Err(error),
                    };
                    match taken {
                        Ok(Begun::Lane(pending, execution_id, expects)) => {
                            let answered = in_order
                                .answer(&execution_id, async move { pending.answer().await });
                            waiting.push(Either::Left(async move {
                                let outcome = answered.await;
                                (answer(sequence, outcome, execution_id, expects), None)
                            }));
                        }
                        Ok(Begun::Aside { key, alone, running }) => {
                            let aside = Aside { key, alone, bytes };
                            asides.begun(&aside);
                            waiting.push(Either::Right(async move {
                                let result = running.await.unwrap_or_else(|error| {
                                    Outcome::Error(status::message_of(&error))
                                });
                                let result = Some(result);
                                (proto::IngestResponse { sequence, result }, Some(aside))
                            }));
                        }
                        Err(error) => {
                            let refused = proto::IngestResponse {
                                sequence,
                                result: Some(Outcome::Error(status::message_of(&error))),
                            };
                            if self.answers.send(Ok(refused)).await.is_err() {
                                return;
                            }
                        }
                    }
                }
                Ok(None) => break Ok(()),
                // The stream broke, or a message of it could not be read: the rest of it is lost to us.
                Err(broken) => {
                    while let Some((answer, _)) = waiting.next().await {
                        let _ = self.answers.send(Ok(answer)).await;
                    }
                    let _ = self.answers.send(Err(broken)).await;
                    return;
                }
            }
        };
        while let Some((answer, _)) = waiting.next().await {
            if self.answers.send(Ok(answer)).await.is_err() {
                return;
            }
        }
        if let Err(error) = end {
            let _ = self.answers.send(Err(status::of(&error))).await;
        }
    }

    /// Checks a write.
    fn take(&self, request: proto::IngestRequest) -> Result<Taken> {
        let limits = self.app.limits();
        let mut expects = Expects::Record;
        let (execution_id, op) = match request.write {
            None => return Err(Error::invalid("write", "is required")),
            Some(Write::CreateExecution(write)) => {
                if write.heartbeat_timeout.is_some() {
                    self.lease_made.notify_one();
                }
                requests::create_execution(limits, write, ids::execution_id)
            }
            Some(Write::UpdateExecution(write)) => requests::update_execution(limits, write),
            Some(Write::FinishExecution(write)) => requests::finish_execution(limits, write),
            Some(Write::Heartbeat(write)) => {
                expects = Expects::Heartbeat;
                requests::heartbeat(limits, write)
            }
            Some(Write::RequestCancel(write)) => requests::request_cancel(limits, write),
            Some(Write::DeleteExecution(write)) => {
                requests::delete_execution(limits, &write)?;
                return Ok(self.delete(write));
            }
            Some(Write::PlanSteps(write)) => match requests::plan(limits, write)? {
                PlanAsked::Steps(asked) => Ok(asked),
                PlanAsked::Version { execution_id, version } => {
                    return Ok(self.plan(execution_id, version));
                }
            },
            Some(Write::StartStep(write)) => requests::start_step(limits, write),
            Some(Write::UpdateStep(write)) => requests::update_step(limits, write),
            Some(Write::FinishStep(write)) => requests::finish_step(limits, write),
            Some(Write::PutExecution(record)) => requests::put_execution(limits, record),
            Some(Write::PutStep(record)) => requests::put_step(limits, record),
            Some(Write::PutConfiguration(record)) => {
                return configurations::put(limits, record)
                    .map(|record| self.configuration(record));
            }
            Some(Write::RecordMetrics(request)) => {
                let request = metric_requests::record(limits, request)?;
                // The execution may be created by a write that is queued before.
                let execution_id = Some(request.execution_id.clone());
                return Ok(self.metrics(request, execution_id));
            }
            Some(Write::PutMetrics(request)) => {
                let request = metric_requests::put(limits, request)?;
                return Ok(self.metrics(request, None));
            }
            Some(Write::PutArtifact(record)) => {
                let record = artifact_requests::put_artifact(limits, record)?;
                let execution_id = record.execution_id.clone();
                let artifacts = Arc::clone(&self.artifacts);
                let running = Box::pin(async move {
                    let (stored, created) = match artifacts.put(record).await? {
                        Created::New(stored) => (stored, true),
                        Created::Found(stored) => (stored, false),
                    };
                    let artifact_id = stored.artifact_id;
                    Ok(Outcome::Artifact(proto::IngestedArtifact { artifact_id, created }))
                });
                return Ok(Taken::Beside { execution_id, running });
            }
        }?;
        Ok(Taken::Lane(execution_id, op, expects))
    }

    /// A plan from a configuration, which has to be looked up first.
    fn plan(&self, execution_id: String, version: String) -> Taken {
        let (app, configurations) = (Arc::clone(&self.app), Arc::clone(&self.configurations));
        let id = execution_id.clone();
        let running = Box::pin(async move {
            let plan = configurations.plan(&id, &version).await?;
            let pending = app.engine().enqueue(id.clone(), plan).await?;
            Ok(outcome(pending.answer().await, id, Expects::Record))
        });
        Taken::Aside { key: execution_id.clone(), execution_id: Some(execution_id), running }
    }

    fn configuration(&self, record: Configuration) -> Taken {
        let configurations = Arc::clone(&self.configurations);
        // No execution has an id with a space in it.
        let key = format!("configurations of {}", record.scope().identity());
        let running = Box::pin(async move {
            let Stored { record, created } = configurations.put(record).await?;
            Ok(Outcome::Configuration(proto::IngestedConfiguration {
                version: record.version,
                active: record.active,
                created,
            }))
        });
        Taken::Aside { key, execution_id: None, running }
    }

    fn metrics(&self, request: Request, execution_id: Option<String>) -> Taken {
        let key = request.execution_id.clone();
        let metrics = Arc::clone(&self.metrics);
        let running = Box::pin(async move {
            let pending = metrics.recorder().enqueue(request).await?;
            pending.answer().await.map(|counts| Outcome::Metrics(convert::metric_counts(counts)))
        });
        Taken::Aside { key, execution_id, running }
    }

    /// A delete marks the execution in its lane and then takes its time; what follows about the same execution waits
    /// for its end, when the id is free again.
    fn delete(&self, write: proto::DeleteExecutionRequest) -> Taken {
        let app = Arc::clone(&self.app);
        let execution_id = write.execution_id.clone();
        let running = async move {
            app.delete_execution(write.execution_id.clone(), write.force).await?;
            Ok(Outcome::Deleted(proto::IngestedDeletion { execution_id: write.execution_id }))
        };
        let key = execution_id.clone();
        Taken::Aside { key, execution_id: Some(execution_id), running: Box::pin(running) }
    }

    /// Queues a write, or begins it beside the lanes once everything queued for its execution has passed.
    async fn begin(&self, taken: Taken) -> Result<Begun> {
        match taken {
            Taken::Lane(execution_id, op, expects) => {
                let pending = self.app.engine().enqueue(execution_id.clone(), op).await?;
                Ok(Begun::Lane(pending, execution_id, expects))
            }
            Taken::Beside { execution_id, running } => {
                let after = Some(execution_id.clone()).filter(|id| !id.is_empty());
                Ok(self.aside(execution_id, false, after, running))
            }
            Taken::Aside { key, execution_id, running } => {
                Ok(self.aside(key, true, execution_id, running))
            }
        }
    }

    /// A task of its own: what it holds, others wait for, and this stream may stand still for as long as its client
    /// reads no answers. It goes on when the client is gone.
    fn aside(
        &self,
        key: String,
        alone: bool,
        execution_id: Option<String>,
        running: Running,
    ) -> Begun {
        let engine = self.app.engine().clone();
        let task = self.tasks.spawn(async move {
            if let Some(execution_id) = execution_id {
                engine.passed(&execution_id).await?;
            }
            running.await
        });
        let ended = async move { task.await.unwrap_or(Err(Error::ShuttingDown)) };
        Begun::Aside { key, alone, running: Box::pin(ended) }
    }
}

/// A write that does not go through the lanes, under way.
type Running = Pin<Box<dyn Future<Output = Result<Outcome>> + Send>>;

/// A write that was checked.
enum Taken {
    Lane(String, Op, Expects),
    /// One beside the lanes.
    Aside {
        /// What it is about: writes about the same go one after the other. For an execution its id.
        key: String,
        /// The execution whose queued writes come first.
        execution_id: Option<String>,
        running: Running,
    },
    /// One beside the lanes that depends on its execution and not on others of its kind.
    Beside {
        /// Empty: of none.
        execution_id: String,
        running: Running,
    },
}

/// A write beside the lanes that is under way.
struct Aside {
    key: String,
    /// Whether others about the same wait for it, whatever they are.
    alone: bool,
    bytes: usize,
}

/// All of them of one stream.
#[derive(Default)]
struct Asides {
    /// By what they are about: those that go alone, and all.
    about: HashMap<String, (usize, usize)>,
    bytes: usize,
}

impl Asides {
    /// Whether a write of so many bytes has to wait for one of them.
    fn hold_up(&self, taken: &Taken, bytes: usize) -> bool {
        let about = |key: &str| self.about.get(key).copied().unwrap_or_default();
        let full = self.bytes > 0 && self.bytes + bytes > ASIDE_BYTES;
        match taken {
            Taken::Lane(execution_id, ..) => about(execution_id).1 > 0,
            Taken::Aside { key, .. } => about(key).1 > 0 || full,
            Taken::Beside { execution_id, .. } => about(execution_id).0 > 0 || full,
        }
    }

    fn begun(&mut self, aside: &Aside) {
        let (alone, all) = self.about.entry(aside.key.clone()).or_default();
        *alone += usize::from(aside.alone);
        *all += 1;
        self.bytes += aside.bytes;
    }

    fn ended(&mut self, aside: Option<Aside>) {
        let Some(aside) = aside else { return };
        self.bytes = self.bytes.saturating_sub(aside.bytes);
        if let Some((alone, all)) = self.about.get_mut(&aside.key) {
            *alone = alone.saturating_sub(usize::from(aside.alone));
            *all -= 1;
            if *all == 0 {
                self.about.remove(&aside.key);
            }
        }
    }
}

/// Executions of which the last write is remembered before those that are answered are let go of.
const REMEMBERED: usize = 1_024;

/// Answers about one execution come in the order of its writes, as their revisions do.
#[derive(Default)]
struct InOrder {
    /// Ends with the answer to the last write about an execution.
    last: HashMap<String, oneshot::Receiver<()>>,
    left: usize,
}

impl InOrder {
    /// The same answer, after those to earlier writes about the same.
    fn answer<F>(
        &mut self,
        execution_id: &str,
        answer: F,
    ) -> impl Future<Output = F::Output> + Send + use<F>
    where
        F: Future + Send,
        F::Output: Send,
    {
        if self.last.len() >= REMEMBERED.max(2 * self.left) {
            self.last.retain(|_, turn| matches!(turn.try_recv(), Err(TryRecvError::Empty)));
            self.left = self.last.len();
        }
        let (ended, turn) = oneshot::channel::<()>();
        let before = self.last.insert(execution_id.to_owned(), turn);
        async move {
            let answer = answer.await;
            if let Some(before) = before {
                // It ends without a word.
                let _ = before.await;
            }
            drop(ended);
            answer
        }
    }
}

/// A write that was begun.
enum Begun {
    Lane(crate::app::engine::Pending, String, Expects),
    Aside { key: String, alone: bool, running: Running },
}

fn answer(
    sequence: i64,
    answered: Result<Answer>,
    execution_id: String,
    expects: Expects,
) -> proto::IngestResponse {
    let result = Some(outcome(answered, execution_id, expects));
    proto::IngestResponse { sequence, result }
}

/// What became of a write that went through the lanes.
fn outcome(answered: Result<Answer>, execution_id: String, expects: Expects) -> Outcome {
    let step = |step: &crate::domain::Step| proto::IngestedStep {
        execution_id: step.execution_id.clone(),
        step_id: Some(step.step_id),
        step_key: step.step_key.clone(),
        revision: step.revision,
        status: convert::step_status(step.status).into(),
    };
    match (answered, expects) {
        (Ok(Answer::Execution(execution)), Expects::Heartbeat) => {
            Outcome::Heartbeat(proto::HeartbeatResponse {
                cancel_requested: execution.cancel_requested_at.is_some(),
            })
        }
        (Ok(Answer::Execution(execution)), Expects::Record) => {
            Outcome::Execution(proto::IngestedExecution {
                execution_id: execution.execution_id.clone(),
                revision: execution.revision,
                status: convert::execution_status(execution.status).into(),
            })
        }
        (Ok(Answer::Step(record)), _) => Outcome::Step(step(&record)),
        (Ok(Answer::Steps(records)), _) => Outcome::Steps(proto::IngestedSteps {
            steps: records.iter().map(|record| step(record)).collect(),
        }),
        // Deletes do not come this way.
        (Ok(Answer::Deleted), _) => Outcome::Deleted(proto::IngestedDeletion { execution_id }),
        (Err(error), _) => Outcome::Error(status::message_of(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_about_one_execution_come_in_order() {
        let mut in_order = InOrder::default();
        let waiting = FuturesUnordered::new();
        let mut answers = Vec::new();
        for number in 0..6_usize {
            let (send, receive) = oneshot::channel();
            let answer = async move { receive.await.expect("it is answered") };
            waiting.push(in_order.answer(["a", "b"][number % 2], answer));
            answers.push(send);
        }
        // The last ones are there first.
        for (number, answer) in answers.into_iter().enumerate().rev() {
            answer.send(number).expect("somebody waits");
        }
        let found: Vec<usize> = waiting.collect().await;
        let of = |rest: usize| -> Vec<usize> {
            found.iter().copied().filter(|number| number % 2 == rest).collect()
        };
        assert_eq!((of(0), of(1)), (vec![0, 2, 4], vec![1, 3, 5]));
    }

    #[tokio::test]
    async fn what_is_answered_is_let_go_of() {
        let mut in_order = InOrder::default();
        for number in 0..10 * REMEMBERED {
            in_order.answer(&number.to_string(), std::future::ready(())).await;
        }
        assert!(in_order.last.len() <= REMEMBERED, "{}", in_order.last.len());
    }
}
