//! The two watches of ExecutionService. They are served beside the generated server, because their answers are
//! encoded once for all watchers: the two messages are the same on the wire, and what differs between watchers of
//! one thing is nothing.

use std::collections::HashSet;
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

use super::codec::compressions;
use super::shared_codec::SharedCodec;
use super::{authenticate, convert, requests, shown, status};
use crate::app::token::{Kind, Tokens};
use crate::app::{App, Error};
use crate::domain::Refusal;
use crate::domain::access::AppScope;
use crate::proto;
use crate::proto::watch_execution_response::Event as Sent;
use crate::store::{ChangeKind, ChangeLog, Cursor, Record, RecordKey};
use crate::watch::{Arrivals, Delivery, Failure, Hub, Options, Scope, Snapshot, Watch};

const WATCH_EXECUTION: &str = "/stepwell.v1.ExecutionService/WatchExecution";
const WATCH_EXECUTIONS: &str = "/stepwell.v1.ExecutionService/WatchExecutions";

/// The paths of the watches: their replies wait for a client however long it reads nothing.
pub const PATHS: [&str; 2] = [WATCH_EXECUTION, WATCH_EXECUTIONS];

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
            .apply_compression_config(Default::default(), compressions())
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
            let scope = authenticate::scope(&request)?;
            let request = request.into_inner();
            let mut check = requests::Check::new(watches.app.limits());
            check.execution_id(&request.execution_id);
            check.done(()).map_err(|error| status::of(&error))?;
            let identity = format!("{}execution/{}", scope.identity(), request.execution_id);
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
            watches.start(options, scope, identity, request.resume_token).await
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
            let scope = authenticate::scope(&request)?;
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
            let filter = filter.within(scope.clone());
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
            watches.start(options, scope, identity, request.resume_token).await
        })
    }
}

impl Watches {
    async fn start(
        self,
        mut options: Options,
        scope: AppScope,
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
        let log = self.hub.log().map_err(|error| fail(Failure::Store(error)))?;
        let tokens = self.app.tokens().await.map_err(|error| status::of(&error))?;
        if let Some(token) = resume_token.filter(|token| !token.is_empty()) {
            let cursor = tokens
                .open(Kind::Resume, identity.as_bytes(), &token)
                .ok_or_else(|| status::of(&Error::BadToken("resume_token")))?;
            options.resume = Some(Cursor(cursor));
        }
        if options.resume.is_none()
            && let Scope::Execution(id) = &options.scope
        {
            self.app.check_within(id, &scope).await.map_err(|error| status::of(&error))?;
        }
        let payloads = options.payloads.then_some(self.app.limits().inline_payload_bytes);
        let watch = Watch::start(self.hub, options).await.map_err(&fail)?;
        let edge = Edge {
            variant: BuildHasherDefault::<DefaultHasher>::default().hash_one((&identity, payloads)),
            tokens,
            identity,
            payloads,
            execution_id,
            log,
            sight: (!scope.is_all()).then(|| Sight::new(scope)),
        };
        // One allocation, or every message would move the whole stream about.
        let watching = Box::new((watch, edge));
        let answers = futures::stream::unfold(Some(watching), move |state| {
            let fail = fail.clone();
            async move {
                let mut state = state?;
                loop {
                    let delivery = match state.0.next().await? {
                        Ok(delivery) => delivery,
                        Err(failure) => return Some((Err(fail(failure)), None)),
                    };
                    let seen = match &mut state.1.sight {
                        None => Seen::Whole,
                        Some(sight) => sight.of(&delivery),
                    };
                    let bytes = match seen {
                        Seen::Whole => state.1.encode(&delivery),
                        Seen::Gone => state.1.gone(&delivery),
                        Seen::Nothing => continue,
                    };
                    // Another's execution has taken the place of the one that was watched.
                    let over = seen == Seen::Gone && !state.1.execution_id.is_empty();
                    return Some((Ok(bytes), if over { None } else { Some(state) }));
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
    /// Of these, the bytes that are sent at most; `None`: they are not asked for.
    payloads: Option<usize>,
    /// The one that is watched; empty for a watch by filter.
    execution_id: String,
    /// Knows which positions are too long for a token.
    log: Arc<dyn ChangeLog>,
    /// Tells encoded forms of one event apart.
    variant: u64,
    /// Of a watcher who may not see every app.
    sight: Option<Sight>,
}

/// What a watcher sees of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Whole,
    /// That the execution is gone.
    Gone,
    Nothing,
}

/// Executions that a watcher with a scope has been told of at most; beyond it all are forgotten.
const TOLD_MOST: usize = 100_000;

/// What a watcher who may not see every app has been told of. Of a delete the log keeps no more than the id: only who has
/// been told of the execution is told that it is gone.
struct Sight {
    scope: AppScope,
    told: HashSet<String>,
}

impl Sight {
    fn new(scope: AppScope) -> Sight {
        Sight { scope, told: HashSet::new() }
    }

    fn of(&mut self, delivery: &Delivery) -> Seen {
        let (record, key) = match delivery {
            Delivery::Current(record, _) => (Some(record), record.key()),
            Delivery::Event(event) => (event.record.as_ref(), event.key.clone()),
            _ => return Seen::Whole,
        };
        let was_told = self.told.contains(&key.execution_id);
        match record {
            Some(Record::Execution(execution)) if !self.scope.holds_execution(execution) => {
                match self.told.remove(&key.execution_id) {
                    true => Seen::Gone,
                    false => Seen::Nothing,
                }
            }
            Some(_) => {
                if !was_told {
                    if self.told.len() >= TOLD_MOST {
                        self.told.clear();
                    }
                    self.told.insert(key.execution_id);
                }
                Seen::Whole
            }
            None if was_told => {
                if key.is_execution() {
                    self.told.remove(&key.execution_id);
                }
                Seen::Whole
            }
            // Deleted, and known to have been in the scope.
            None => match delivery {
                Delivery::Event(event) if event.before.is_some() || event.execution.is_some() => {
                    Seen::Whole
                }
                _ => Seen::Nothing,
            },
        }
    }
}

impl Edge {
    fn encode(&self, delivery: &Delivery) -> Bytes {
        let token = |cursor: &Cursor| {
            let shorter = self.log.shortened(cursor);
            let cursor = shorter.as_ref().unwrap_or(cursor);
            self.tokens.seal(Kind::Resume, self.identity.as_bytes(), &cursor.0)
        };
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

    /// That the execution of a delivery is gone, whatever became of it.
    fn gone(&self, delivery: &Delivery) -> Bytes {
        let (key, resume_token) = match delivery {
            Delivery::Event(event) => {
                let identity = self.identity.as_bytes();
                (event.key.clone(), self.tokens.seal(Kind::Resume, identity, &event.cursor.0))
            }
            Delivery::Current(record, _) => (record.key(), String::new()),
            _ => (RecordKey::execution(self.execution_id.as_str()), String::new()),
        };
        let event = Some(self.change(ChangeKind::Deleted, None, &key));
        Bytes::from(proto::WatchExecutionResponse { resume_token, event }.encode_to_vec())
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
                execution: Some(shown::execution(execution)),
            }),
            (Some(Record::Step(step)), _) => Sent::Step(proto::StepChange {
                change_type,
                step: Some(match self.payloads {
                    None => shown::step(step),
                    Some(bytes) => shown::step_with_payloads(step, bytes),
                }),
            }),
            (Some(Record::Artifact(artifact)), _) => Sent::Artifact(proto::ArtifactChange {
                change_type,
                artifact: Some(shown::artifact(artifact)),
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
