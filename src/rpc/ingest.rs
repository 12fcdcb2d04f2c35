//! IngestService: the same writes over one stream. Reads messages and makes answers; what happens in between, and in
//! which order, is `app::ingest`.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Code, Request, Response, Status, Streaming};

use super::codec::compressions;
use super::eager::Taking;
use super::ingest_codec::{IngestCodec, Read, Shortened};
use super::requests::PlanAsked;
use super::{
    artifact_requests, authenticate, configurations, convert, edge_errors, metric_requests,
    records, requests, status,
};
use crate::app::ingest::{Answered, Beside, Done, Ended, Ingest, Message, Write};
use crate::app::{Error, Result, ids};
use crate::audit::Level;
use crate::auth::{Need, Permit};
use crate::clock::Clock;
use crate::domain::Refusal;
use crate::domain::access::AppScope;
use crate::domain::audit::{Asked, Target};
use crate::domain::limits::Limits;
use crate::domain::{Execution, ExecutionOp, Step, StepOp};
use crate::proto;
use crate::proto::ingest_request::Write as Sent;
use crate::proto::ingest_response::Result as Outcome;
use crate::store::artifacts::Created;
use crate::store::configurations::Stored;
use crate::store::scan::Scanned;
use crate::store::{Answer, By, Op, Record};

/// Answers that may wait for the client to read them; then reading pauses too.
const ANSWERS: usize = 512;

const INGEST: &str = "/stepwell.v1.IngestService/Ingest";

/// Serves IngestService.
#[derive(Clone)]
pub struct IngestRoutes {
    ingest: Arc<Ingest>,
    clock: Arc<dyn Clock>,
}

impl IngestRoutes {
    pub fn new(ingest: Arc<Ingest>, clock: Arc<dyn Clock>) -> Self {
        IngestRoutes { ingest, clock }
    }
}

impl NamedService for IngestRoutes {
    const NAME: &'static str = "stepwell.v1.IngestService";
}

impl Service<http::Request<Body>> for IngestRoutes {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != INGEST {
            let answer = status::unknown_method().into_http();
            return Box::pin(std::future::ready(Ok(answer)));
        }
        let limit = self.ingest.app.limits().request_bytes;
        let request = request.map(|body| Shortened::new(body, limit));
        let calls = Calls(Arc::clone(&self.ingest), Arc::clone(&self.clock));
        Box::pin(async move {
            let mut grpc = Grpc::new(IngestCodec { limit })
                .apply_max_message_size_config(Some(limit), Some(usize::MAX))
                .apply_compression_config(Default::default(), compressions());
            Ok(grpc.streaming(calls, request).await)
        })
    }
}

struct Calls(Arc<Ingest>, Arc<dyn Clock>);

type Answers = BoxStream<'static, Result<proto::IngestResponse, Status>>;
type Answering = Pin<Box<dyn Future<Output = Result<Response<Answers>, Status>> + Send>>;

impl StreamingService<Read> for Calls {
    type Response = proto::IngestResponse;
    type ResponseStream = Answers;
    type Future = Answering;

    fn call(&mut self, mut request: Request<Streaming<Read>>) -> Answering {
        let ingest = Arc::clone(&self.0);
        let permit = match authenticate::permit(&request) {
            Ok(permit) => permit,
            Err(denied) => return Box::pin(std::future::ready(Err(denied))),
        };
        let taking = request.extensions_mut().remove::<Taking>();
        let app = Arc::clone(&ingest.app);
        let (audit, asked) = (ingest.audit.clone(), authenticate::asked(&request));
        let asks = Asks { permit: permit.clone(), asked: asked.clone(), level: audit.level() };
        let mut last_sequence = None;
        let (waits, clock) = (permit.clone(), Arc::clone(&self.1));
        let read = request.into_inner();
        let read = match permit.caller.bucket {
            None => read.left_stream(),
            // A caller with a limit is read as slowly as that.
            Some(_) => read
                .then(move |read| {
                    let (permit, clock) = (waits.clone(), Arc::clone(&clock));
                    async move {
                        permit.turn(clock.as_ref()).await;
                        read
                    }
                })
                .boxed()
                .right_stream(),
        };
        let messages = read.map(move |read| match read {
            Ok(read) => {
                let message = message(app.limits(), &asks, read);
                last_sequence = Some(message.sequence);
                Ok(message)
            }
            // The stream broke, or a message of it cannot be read: the rest of it is lost to us.
            Err(broken) => Err(match edge_errors::bad_message(broken.code(), broken.message()) {
                Some((field, why)) => status::of_bad_message(&field, &why, last_sequence),
                // It was found out here.
                None if broken.code() == Code::InvalidArgument => {
                    let why = broken.message();
                    let why = why.strip_prefix("message ").unwrap_or(why);
                    status::of_bad_message("message", why, last_sequence)
                }
                None => broken,
            }),
        });
        let (answers, answered) = mpsc::channel(ANSWERS);
        let tasks = ingest.tasks.clone();
        let run = ingest.run(messages, answers);
        tasks.spawn(async move {
            match taking {
                Some(taking) => taking.beside(run).await,
                None => run.await,
            }
        });
        let answers = ReceiverStream::new(answered).map(move |answered| match answered {
            Ok(answered) => {
                if let (Some(asked), Err(Error::Refused(why))) = (&asked, &answered.outcome) {
                    let reason = match why {
                        Refusal::RoleForbids => Some("ROLE_FORBIDS"),
                        Refusal::ScopeForbids => Some("SCOPE_FORBIDS"),
                        _ => None,
                    };
                    if let Some(reason) = reason {
                        audit.denied(asked, Target::default(), reason.to_owned());
                    }
                }
                Ok(answer(answered))
            }
            Err(Ended::Failed(error)) => Err(status::of(&error)),
            Err(Ended::Broken(broken)) => Err(broken),
        });
        Box::pin(std::future::ready(Ok(Response::new(answers.boxed()))))
    }
}

/// Who asks for what comes over a stream.
struct Asks {
    permit: Permit,
    /// The call, if anything of it is recorded.
    asked: Option<Asked>,
    level: Level,
}

fn message(limits: &Limits, asks: &Asks, read: Read) -> Message {
    match read {
        Read::Request(request) => {
            let Some((need, rpc)) = request.write.as_ref().map(need) else {
                let by = By::from(AppScope::of([]));
                return Message {
                    sequence: request.sequence,
                    write: write(limits, None, None),
                    by,
                };
            };
            let (scope, write) = match authenticate::scope_for(&asks.permit, need) {
                Ok(scope) => (scope, write(limits, request.write, request.mirrored)),
                Err(error) => (AppScope::of([]), Err(error)),
            };
            // What only editors may do is recorded at every level.
            let recorded = need == Need::Edit || asks.level >= Level::Writes;
            let by = By::named(scope, asks.asked.as_ref().filter(|_| recorded), rpc);
            Message { sequence: request.sequence, write, by }
        }
        Read::Refused { sequence, error } => {
            Message { sequence, write: Err(error), by: By::from(AppScope::of([])) }
        }
    }
}

/// What a write needs, the same as the call by itself, and how records name it.
fn need(sent: &Sent) -> (Need, &'static str) {
    macro_rules! named {
        ($name:literal) => {
            concat!("stepwell.v1.IngestService/Ingest/", $name)
        };
    }
    match sent {
        Sent::CreateExecution(_) => (Need::Report, named!("create_execution")),
        Sent::FinishExecution(_) => (Need::Report, named!("finish_execution")),
        Sent::Heartbeat(_) => (Need::Report, named!("heartbeat")),
        Sent::PlanSteps(_) => (Need::Report, named!("plan_steps")),
        Sent::StartStep(_) => (Need::Report, named!("start_step")),
        Sent::UpdateStep(_) => (Need::Report, named!("update_step")),
        Sent::FinishStep(_) => (Need::Report, named!("finish_step")),
        Sent::RecordMetrics(_) => (Need::Report, named!("record_metrics")),
        Sent::UpdateExecution(request) => {
            let need = if request.pinned.is_none() { Need::Report } else { Need::Edit };
            (need, named!("update_execution"))
        }
        Sent::RequestCancel(_) => (Need::Edit, named!("request_cancel")),
        Sent::DeleteExecution(_) => (Need::Edit, named!("delete_execution")),
        Sent::PutExecution(_) => (Need::Edit, named!("put_execution")),
        Sent::PutStep(_) => (Need::Edit, named!("put_step")),
        Sent::PutArtifact(_) => (Need::Edit, named!("put_artifact")),
        Sent::PutMetrics(_) => (Need::Edit, named!("put_metrics")),
        Sent::PutConfiguration(_) => (Need::Edit, named!("put_configuration")),
    }
}

/// The records that a put_* would store, checked as it is. `Err`: why it would be refused.
pub fn put_records(limits: &Limits, sent: Sent) -> Result<Vec<Scanned>> {
    Ok(match write(limits, Some(sent), None)? {
        Write::Lane { op: Op::Execution(ExecutionOp::Put(record)), .. } => {
            vec![Scanned::Execution(*record)]
        }
        Write::Lane { op: Op::Step { op, .. }, .. } => match *op {
            StepOp::Put(record) => vec![Scanned::Step(*record)],
            _ => Vec::new(),
        },
        Write::Beside(Beside::Artifact(record, _)) => vec![Scanned::Artifact(record)],
        Write::Beside(Beside::Configuration(record, _)) => vec![Scanned::Configuration(record)],
        Write::Beside(Beside::Points(request)) => {
            let point =
                |point| Scanned::Point { execution_id: request.execution_id.clone(), point };
            request.points.iter().cloned().map(point).collect()
        }
        Write::Lane { .. } | Write::Beside(_) => Vec::new(),
    })
}

/// Checks a write.
fn write(limits: &Limits, sent: Option<Sent>, mirrored: Option<proto::Mirrored>) -> Result<Write> {
    let position =
        mirrored.map(|mirrored| source_position(sent.as_ref(), &mirrored)).transpose()?;
    let (execution_id, op) = match sent {
        None => return Err(Error::invalid("write", "is required")),
        Some(Sent::CreateExecution(write)) => {
            requests::create_execution(limits, write, ids::execution_id)
        }
        Some(Sent::UpdateExecution(write)) => requests::update_execution(limits, write),
        Some(Sent::FinishExecution(write)) => requests::finish_execution(limits, write),
        Some(Sent::Heartbeat(write)) => requests::heartbeat(limits, write),
        Some(Sent::RequestCancel(write)) => requests::request_cancel(limits, write),
        Some(Sent::StartStep(write)) => requests::start_step(limits, write),
        Some(Sent::UpdateStep(write)) => requests::update_step(limits, write),
        Some(Sent::FinishStep(write)) => requests::finish_step(limits, write),
        Some(Sent::PutExecution(record)) => records::put_execution(limits, record, position),
        Some(Sent::PutStep(record)) => records::put_step(limits, record, position),
        Some(Sent::PlanSteps(write)) => match requests::plan(limits, write)? {
            PlanAsked::Steps(asked) => Ok(asked),
            PlanAsked::Version { execution_id, version } => {
                return Ok(Write::Beside(Beside::Plan { execution_id, version }));
            }
        },
        Some(Sent::DeleteExecution(write)) => {
            requests::delete_execution(limits, &write)?;
            let proto::DeleteExecutionRequest { execution_id, force } = write;
            return Ok(Write::Beside(Beside::Delete { execution_id, force, mirrored: position }));
        }
        Some(Sent::PutConfiguration(record)) => {
            let record = configurations::put(limits, record)?;
            return Ok(Write::Beside(Beside::Configuration(record, position)));
        }
        Some(Sent::RecordMetrics(request)) => {
            let request = metric_requests::record(limits, request)?;
            return Ok(Write::Beside(Beside::Points(request)));
        }
        Some(Sent::PutMetrics(request)) => {
            let request = metric_requests::put(limits, request)?;
            return Ok(Write::Beside(Beside::Points(request)));
        }
        Some(Sent::PutArtifact(record)) => {
            let record = artifact_requests::put_artifact(limits, record)?;
            return Ok(Write::Beside(Beside::Artifact(record, position)));
        }
    }?;
    Ok(Write::Lane { execution_id, op })
}

/// The place that a mirror gives a record.
fn source_position(sent: Option<&Sent>, mirrored: &proto::Mirrored) -> Result<i64> {
    let position = mirrored.source_position;
    match sent {
        _ if position < 0 => Err(Error::invalid(
            "mirrored.source_position",
            format!("is {position}, but must not be negative"),
        )),
        Some(
            Sent::PutExecution(_)
            | Sent::PutStep(_)
            | Sent::PutArtifact(_)
            | Sent::PutConfiguration(_)
            | Sent::PutMetrics(_)
            | Sent::DeleteExecution(_),
        )
        | None => Ok(position),
        Some(_) => Err(Error::invalid("mirrored", "is for put_* and delete_execution only")),
    }
}

fn answer(answered: Answered) -> proto::IngestResponse {
    let Answered { sequence, outcome } = answered;
    let result = match outcome {
        Ok(done) => short(done),
        Err(error) => Outcome::Error(status::message_of(&error)),
    };
    proto::IngestResponse { sequence, result: Some(result) }
}

/// What became of a write, in short.
fn short(done: Done) -> Outcome {
    let execution = |execution: &Execution, superseded| proto::IngestedExecution {
        execution_id: execution.execution_id.clone(),
        revision: execution.revision,
        status: convert::execution_status(execution.status).into(),
        superseded,
    };
    let step = |step: &Step, superseded| proto::IngestedStep {
        execution_id: step.execution_id.clone(),
        step_id: Some(step.step_id),
        step_key: step.step_key.clone(),
        revision: step.revision,
        status: convert::step_status(step.status).into(),
        superseded,
    };
    match done {
        Done::Record(Answer::Execution(record)) => Outcome::Execution(execution(&record, false)),
        Done::Record(Answer::Step(record)) => Outcome::Step(step(&record, false)),
        Done::Record(Answer::Superseded(Record::Execution(record))) => {
            Outcome::Execution(execution(&record, true))
        }
        Done::Record(Answer::Superseded(Record::Step(record))) => {
            Outcome::Step(step(&record, true))
        }
        Done::Record(Answer::Steps(records)) => Outcome::Steps(proto::IngestedSteps {
            steps: records.iter().map(|record| step(record, false)).collect(),
        }),
        // Deletes do not come this way, and nothing supersedes the record of an artifact.
        Done::Record(Answer::Deleted | Answer::Superseded(Record::Artifact(_))) => {
            Outcome::Deleted(proto::IngestedDeletion::default())
        }
        Done::Heartbeat { cancel_requested } => {
            Outcome::Heartbeat(proto::HeartbeatResponse { cancel_requested })
        }
        Done::Deleted { execution_id } => {
            Outcome::Deleted(proto::IngestedDeletion { execution_id })
        }
        Done::Points(counts) => Outcome::Metrics(convert::metric_counts(counts)),
        Done::Artifact(created) => {
            let (stored, created) = match created {
                Created::New(stored) => (stored, true),
                Created::Found(stored) => (stored, false),
            };
            let artifact_id = stored.artifact_id;
            Outcome::Artifact(proto::IngestedArtifact { artifact_id, created })
        }
        Done::Configuration(Stored { record, created }) => {
            Outcome::Configuration(proto::IngestedConfiguration {
                version: record.version,
                active: record.active,
                created,
            })
        }
    }
}
