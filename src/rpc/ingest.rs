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
use tonic::{Request, Response, Status, Streaming};

use super::eager::Taking;
use super::ingest_codec::{IngestCodec, Read, Shortened};
use super::requests::PlanAsked;
use super::{
    artifact_requests, configurations, convert, edge_errors, metric_requests, requests, status,
};
use crate::app::ingest::{Answered, Beside, Done, Ended, Ingest, Message, Write};
use crate::app::{Error, Result, ids};
use crate::domain::limits::Limits;
use crate::domain::{Execution, Step};
use crate::proto;
use crate::proto::ingest_request::Write as Asked;
use crate::proto::ingest_response::Result as Outcome;
use crate::store::artifacts::Created;
use crate::store::configurations::Stored;
use crate::store::{Answer, Record};

/// Answers that may wait for the client to read them; then reading pauses too.
const ANSWERS: usize = 512;

const INGEST: &str = "/stepwell.v1.IngestService/Ingest";

/// Serves IngestService.
#[derive(Clone)]
pub struct IngestRoutes {
    ingest: Arc<Ingest>,
}

impl IngestRoutes {
    pub fn new(ingest: Arc<Ingest>) -> Self {
        IngestRoutes { ingest }
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
        let calls = Calls(Arc::clone(&self.ingest));
        Box::pin(async move {
            let mut grpc = Grpc::new(IngestCodec { limit })
                .apply_max_message_size_config(Some(limit), Some(usize::MAX));
            Ok(grpc.streaming(calls, request).await)
        })
    }
}

struct Calls(Arc<Ingest>);

type Answers = BoxStream<'static, Result<proto::IngestResponse, Status>>;
type Answering = Pin<Box<dyn Future<Output = Result<Response<Answers>, Status>> + Send>>;

impl StreamingService<Read> for Calls {
    type Response = proto::IngestResponse;
    type ResponseStream = Answers;
    type Future = Answering;

    fn call(&mut self, mut request: Request<Streaming<Read>>) -> Answering {
        let ingest = Arc::clone(&self.0);
        let taking = request.extensions_mut().remove::<Taking>();
        let app = Arc::clone(&ingest.app);
        let mut last_sequence = None;
        let messages = request.into_inner().map(move |read| match read {
            Ok(read) => {
                let message = message(app.limits(), read);
                last_sequence = Some(message.sequence);
                Ok(message)
            }
            // The stream broke, or a message of it cannot be read: the rest of it is lost to us.
            Err(broken) => Err(match edge_errors::bad_message(broken.code(), broken.message()) {
                Some((field, why)) => status::of_bad_message(&field, &why, last_sequence),
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
        let answers = ReceiverStream::new(answered).map(|answered| match answered {
            Ok(answered) => Ok(answer(answered)),
            Err(Ended::Failed(error)) => Err(status::of(&error)),
            Err(Ended::Broken(broken)) => Err(broken),
        });
        Box::pin(std::future::ready(Ok(Response::new(answers.boxed()))))
    }
}

fn message(limits: &Limits, read: Read) -> Message {
    match read {
        Read::Request(request) => {
            Message { sequence: request.sequence, write: write(limits, request.write) }
        }
        Read::Refused { sequence, error } => Message { sequence, write: Err(error) },
    }
}

/// Checks a write.
fn write(limits: &Limits, asked: Option<Asked>) -> Result<Write> {
    let (execution_id, op) = match asked {
        None => return Err(Error::invalid("write", "is required")),
        Some(Asked::CreateExecution(write)) => {
            requests::create_execution(limits, write, ids::execution_id)
        }
        Some(Asked::UpdateExecution(write)) => requests::update_execution(limits, write),
        Some(Asked::FinishExecution(write)) => requests::finish_execution(limits, write),
        Some(Asked::Heartbeat(write)) => requests::heartbeat(limits, write),
        Some(Asked::RequestCancel(write)) => requests::request_cancel(limits, write),
        Some(Asked::StartStep(write)) => requests::start_step(limits, write),
        Some(Asked::UpdateStep(write)) => requests::update_step(limits, write),
        Some(Asked::FinishStep(write)) => requests::finish_step(limits, write),
        Some(Asked::PutExecution(record)) => requests::put_execution(limits, record),
        Some(Asked::PutStep(record)) => requests::put_step(limits, record),
        Some(Asked::PlanSteps(write)) => match requests::plan(limits, write)? {
            PlanAsked::Steps(asked) => Ok(asked),
            PlanAsked::Version { execution_id, version } => {
                return Ok(Write::Beside(Beside::Plan { execution_id, version }));
            }
        },
        Some(Asked::DeleteExecution(write)) => {
            requests::delete_execution(limits, &write)?;
            let proto::DeleteExecutionRequest { execution_id, force } = write;
            return Ok(Write::Beside(Beside::Delete { execution_id, force }));
        }
        Some(Asked::PutConfiguration(record)) => {
            let record = configurations::put(limits, record)?;
            return Ok(Write::Beside(Beside::Configuration(record)));
        }
        Some(Asked::RecordMetrics(request)) => {
            let request = metric_requests::record(limits, request)?;
            return Ok(Write::Beside(Beside::Points(request)));
        }
        Some(Asked::PutMetrics(request)) => {
            let request = metric_requests::put(limits, request)?;
            return Ok(Write::Beside(Beside::Points(request)));
        }
        Some(Asked::PutArtifact(record)) => {
            let record = artifact_requests::put_artifact(limits, record)?;
            return Ok(Write::Beside(Beside::Artifact(record)));
        }
    }?;
    Ok(Write::Lane { execution_id, op })
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
