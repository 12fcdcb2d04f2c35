//! The two watches of ExecutionService. They are served beside the generated server, because their answers are
//! encoded once for all watchers: the two messages are the same on the wire, and what differs between watchers of
//! one thing is nothing.

use std::convert::Infallible;
use std::future::Future;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use prost::Message as _;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::{Request, Response, Status};

use super::shared_codec::SharedCodec;
use super::{convert, requests, status};
use crate::app::token::{Kind, Tokens};
use crate::app::{App, Error};
use crate::domain::Refusal;
use crate::proto;
use crate::proto::watch_execution_response::Event as Sent;
use crate::store::{ChangeKind, Cursor, Record, RecordKey};
use crate::watch::{Arrivals, Delivery, Failure, Hub, Options, Scope, Snapshot, Watch};

const WATCH_EXECUTION: &str = "/stepwell.v1.ExecutionService/WatchExecution";
const WATCH_EXECUTIONS: &str = "/stepwell.v1.ExecutionService/WatchExecutions";

/// Serves the watches itself and passes every other call on.
#[derive(Clone)]
pub struct WatchRoutes<S> {
    inner: S,
    watches: Watches,
    request_bytes: usize,
}

impl<S> WatchRoutes<S> {
    pub fn new(inner: S, app: Arc<App>, hub: Arc<Hub>, arrivals: Arc<Arrivals>) -> Self {
        let request_bytes = app.limits().request_bytes;
        WatchRoutes { inner, watches: Watches { app, hub, arrivals }, request_bytes }
    }

    fn grpc<T: prost::Message + prost::Name + Default + Send + 'static>(
        &self,
    ) -> Grpc<SharedCodec<T>> {
        Grpc::new(SharedCodec::default())
            .apply_max_message_size_config(Some(self.request_bytes), Some(usize::MAX))
    }
}

impl<S: NamedService> NamedService for WatchRoutes<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for WatchRoutes<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let watches = self.watches.clone();
        match request.uri().path() {
            WATCH_EXECUTION => {
                let mut grpc = self.grpc();
                Box::pin(async move { Ok(grpc.server_streaming(One(watches), request).await) })
            }
            WATCH_EXECUTIONS => {
                let mut grpc = self.grpc();
                Box::pin(async move { Ok(grpc.server_streaming(Many(watches), request).await) })
            }
            _ => Box::pin(self.inner.call(request)),
        }
    }
}

#[derive(Clone)]
struct Watches {
    app: Arc<App>,
    hub: Arc<Hub>,
    arrivals: Arc<Arrivals>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
type Answering = Pin<Box<dyn Future<Output = Result<Response<Answers>, Status>> + Send>>;

struct One(Watches);

impl ServerStreamingService<proto::WatchExecutionRequest> for One {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = Answering;

    fn call(&mut self, request: Request<proto::WatchExecutionRequest>) -> Self::Future {
        let watches = self.0.clone();
        Box::pin(async move {
            let request = request.into_inner();
            let mut check = requests::Check::new(watches.app.limits());
            check.execution_id(&request.execution_id);
            check.done(()).map_err(|error| status::of(&error))?;
            let identity = format!("execution/{}", request.execution_id);
            let options = Options {
                steps: request.include_steps,
                artifacts: request.include_artifacts,
                payloads: request.include_payloads,
                metrics: request.include_metrics.then(|| Arc::clone(&watches.arrivals)),
                follow: request.follow,
                snapshot: Snapshot::All,
                scope: Scope::Execution(request.execution_id),
                resume: None,
            };
            watches.start(options, identity, request.resume_token).await
        })
    }
}

struct Many(Watches);

impl ServerStreamingService<proto::WatchExecutionsRequest> for Many {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = Answering;

    fn call(&mut self, request: Request<proto::WatchExecutionsRequest>) -> Self::Future {
        let watches = self.0.clone();
        Box::pin(async move {
            let request = request.into_inner();
            let mut check = requests::Check::new(watches.app.limits());
            let filter = check.filter(request.filter.as_ref());
            let snapshot = match proto::WatchSnapshot::try_from(request.snapshot) {
                Ok(proto::WatchSnapshot::All) => Snapshot::All,
                Ok(proto::WatchSnapshot::Active) => Snapshot::Active,
                Ok(proto::WatchSnapshot::None) => Snapshot::None,
                Ok(proto::WatchSnapshot::Unspecified) if filter.is_empty() => Snapshot::Active,
                Ok(proto::WatchSnapshot::Unspecified) => Snapshot::All,
                Err(_) => {
                    check.bad("snapshot", "is not a known kind of snapshot");
                    Snapshot::None
                }
            };
            check.done(()).map_err(|error| status::of(&error))?;
            let identity = format!("filter/{}", filter.identity());
            let options = Options {
                scope: Scope::Filter(filter),
                steps: request.include_steps,
                artifacts: false,
                payloads: request.include_payloads,
                metrics: None,
                follow: true,
                snapshot,
                resume: None,
            };
            watches.start(options, identity, request.resume_token).await
        })
    }
}

impl Watches {
    async fn start(
        self,
        mut options: Options,
        identity: String,
        resume_token: Option<String>,
    ) -> Result<Response<Answers>, Status> {
        let of_one = match &options.scope {
            Scope::Execution(id) => Some(id.clone()),
            Scope::Filter(_) => None,
        };
        let execution_id = of_one.clone().unwrap_or_default();
        let fail = move |failure: Failure| {
            status::of(&match failure {
                Failure::ExecutionNotFound => Error::Refused(Refusal::ExecutionNotFound {
                    execution_id: of_one.clone().unwrap_or_default(),
                }),
                Failure::ShuttingDown => Error::ShuttingDown,
                Failure::Store(error) => error.into(),
            })
        };
        // A database without a log is told before anything is looked up.
        self.hub.check().map_err(|error| fail(Failure::Store(error)))?;
        let tokens = self.app.tokens().await.map_err(|error| status::of(&error))?;
        if let Some(token) = resume_token.filter(|token| !token.is_empty()) {
            let cursor = tokens
                .open(Kind::Resume, identity.as_bytes(), &token)
                .ok_or_else(|| status::of(&Error::BadToken("resume_token")))?;
            options.resume = Some(Cursor(cursor));
        }
        let payloads = options.payloads;
        let watch = Watch::start(self.hub, options).await.map_err(&fail)?;
        let edge = Edge {
            variant: BuildHasherDefault::<DefaultHasher>::default().hash_one((&identity, payloads)),
            tokens,
            identity,
            payloads,
            execution_id,
        };
        // One allocation, or every message would move the whole stream about.
        let watching = Box::new((watch, edge));
        let answers = futures::stream::unfold(Some(watching), move |state| {
            let fail = fail.clone();
            async move {
                let mut state = state?;
                match state.0.next().await? {
                    Ok(delivery) => {
                        let bytes = state.1.encode(&delivery);
                        Some((Ok(bytes), Some(state)))
                    }
                    Err(failure) => Some((Err(fail(failure)), None)),
                }
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

/// How one kind of watcher sees events.
struct Edge {
    tokens: Arc<Tokens>,
    identity: String,
    payloads: bool,
    /// The one that is watched; empty for a watch by filter.
    execution_id: String,
    /// Tells encoded forms of one event apart.
    variant: u64,
}

impl Edge {
    fn encode(&self, delivery: &Delivery) -> Bytes {
        let token =
            |cursor: &Cursor| self.tokens.seal(Kind::Resume, self.identity.as_bytes(), &cursor.0);
        let message = |resume_token: String, event: Sent| {
            let message = proto::WatchExecutionResponse { resume_token, event: Some(event) };
            Bytes::from(message.encode_to_vec())
        };
        match delivery {
            Delivery::Event(event) => event.encoded(self.variant, || {
                let change = self.change(event.kind, event.record.as_ref(), &event.key);
                message(token(&event.cursor), change)
            }),
            Delivery::Current(record, kind) => {
                message(String::new(), self.change(*kind, Some(record), &record.key()))
            }
            Delivery::SnapshotComplete(cursor) => {
                let complete = Sent::SnapshotComplete(proto::SnapshotComplete {});
                message(token(cursor), complete)
            }
            Delivery::Metrics(points, cursor) => {
                let id = self.execution_id.as_str();
                let points = points.iter().map(|point| convert::metric_point(id, point)).collect();
                message(token(cursor), Sent::Metrics(proto::MetricsRecorded { points }))
            }
            Delivery::Keepalive(cursor) => {
                message(token(cursor), Sent::Keepalive(proto::Keepalive {}))
            }
        }
    }

    fn change(&self, kind: ChangeKind, record: Option<&Record>, key: &RecordKey) -> Sent {
        let change_type = match kind {
            ChangeKind::Created => proto::ChangeType::Created,
            ChangeKind::Updated => proto::ChangeType::Updated,
            ChangeKind::Deleted => proto::ChangeType::Deleted,
        }
        .into();
        match (record, key.step_id) {
            (Some(Record::Execution(execution)), _) => Sent::Execution(proto::ExecutionChange {
                change_type,
                execution: Some(convert::execution(execution)),
            }),
            (Some(Record::Step(step)), _) => Sent::Step(proto::StepChange {
                change_type,
                step: Some(convert::step(step, self.payloads)),
            }),
            (Some(Record::Artifact(artifact)), _) => Sent::Artifact(proto::ArtifactChange {
                change_type,
                artifact: Some(convert::artifact(artifact)),
            }),
            (None, None) if let Some(artifact_id) = &key.artifact_id => {
                Sent::Artifact(proto::ArtifactChange {
                    change_type,
                    artifact: Some(proto::Artifact {
                        execution_id: key.execution_id.clone(),
                        artifact_id: artifact_id.clone(),
                        ..Default::default()
                    }),
                })
            }
            (None, None) => Sent::Execution(proto::ExecutionChange {
                change_type,
                execution: Some(proto::Execution {
                    execution_id: key.execution_id.clone(),
                    ..Default::default()
                }),
            }),
            (None, Some(step_id)) => Sent::Step(proto::StepChange {
                change_type,
                step: Some(proto::Step {
                    execution_id: key.execution_id.clone(),
                    step_id: Some(step_id),
                    ..Default::default()
                }),
            }),
        }
    }
}
