//! The layer that has calls recorded, once they were let in. What only some may do begins once it is recorded that it
//! does; writes are given along who asks for them, so that the store records them along with what they do; reads and
//! streams are recorded where everything is. No handler knows of it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower_layer::Layer;
use tower_service::Service;
use tracing::Instrument as _;

use super::catalog::DESCRIPTOR_SETS;
use super::codes::code_name;
use super::connection::Peer;
use super::targets::{self, Found, Shape};
use super::unpack::{self, PREFIX_BYTES};
use super::{edge_errors, status};
use crate::app::Error;
use crate::audit::{Audit, Level, Open};
use crate::auth::{Need, Permit, Turned, need};
use crate::domain::audit::{Actor, Asked, RequestId, Target};

const INGEST: &str = "stepwell.v1.IngestService/Ingest";
const UPLOAD: &str = "stepwell.v1.ArtifactService/UploadArtifact";
const STREAM_METRICS: &str = "stepwell.v1.MetricService/StreamMetrics";
const GET_UPLOAD: &str = "stepwell.v1.ArtifactService/GetUpload";
const UPDATE_EXECUTION: &str = "stepwell.v1.ExecutionService/UpdateExecution";

/// Events of methods whose names do not say it: verb, then what it is about.
const EVENTS: &[(&str, &str)] = &[
    ("Advance", "mirror.advance"),
    ("Begin", "mirror.begin"),
    ("Export", "records.export"),
    ("Finish", "mirror.finish"),
    ("Get", "mirror.get"),
    ("Heartbeat", "execution.heartbeat"),
    ("Ingest", "records.ingest"),
    ("PlanSteps", "steps.plan"),
    ("Redeliver", "delivery.redeliver"),
    ("RequestCancel", "execution.cancel"),
    ("Search", "texts.search"),
    ("ServerReflectionInfo", "reflection.read"),
    ("WhoAmI", "caller.identify"),
];
/// Of an update that keeps an execution for ever, or lets it go.
const PIN: &str = "execution.pin";

/// How calls of a method are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Only that somebody may not make them.
    Denials,
    /// Along with the writes that they make.
    Writes,
    /// Before they are made, and how they ended.
    Around,
    /// Both: what a stream writes, and the stream.
    Both,
    /// Before their answer goes out.
    Once,
    /// As it is in the request: it may need more than its method says.
    Pins,
}

/// What is to be known of a method.
#[derive(Debug)]
struct Method {
    rpc: String,
    event: String,
    need: Option<Need>,
    client_streams: bool,
    server_streams: bool,
    shape: Shape,
}

static METHODS: LazyLock<HashMap<String, Method>> = LazyLock::new(|| {
    let mut methods = HashMap::new();
    for set in DESCRIPTOR_SETS {
        // Made by builds; a test reads all of them.
        let set = FileDescriptorSet::decode(set).unwrap_or_default();
        let messages = targets::messages(&set);
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let rpc = format!("{}.{}/{}", file.package(), service.name(), method.name());
                    let path = format!("/{rpc}");
                    let known = Method {
                        event: event_of(method.name()),
                        need: need::of_path(&path),
                        client_streams: method.client_streaming(),
                        server_streams: method.server_streaming(),
                        shape: Shape::of(method.input_type(), &messages),
                        rpc,
                    };
                    methods.insert(path, known);
                }
            }
        }
    }
    methods
});

/// `DeleteExecution` is `execution.delete`.
fn event_of(method: &str) -> String {
    if let Some((_, event)) = EVENTS.iter().find(|(name, _)| *name == method) {
        return (*event).to_owned();
    }
    let mut words: Vec<String> = Vec::new();
    for character in method.chars() {
        if character.is_ascii_uppercase() || words.is_empty() {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut() {
            word.push(character.to_ascii_lowercase());
        }
    }
    let verb = words.remove(0);
    format!("{}.{verb}", words.join("_"))
}

impl Method {
    fn is_stream(&self) -> bool {
        self.client_streams || self.server_streams
    }

    fn way(&self, level: Level) -> Way {
        let at = |least: Level, way: Way| if level >= least { way } else { Way::Denials };
        match (self.need, self.rpc.as_str()) {
            (None | Some(Need::Open), _) => Way::Denials,
            (Some(Need::Edit | Need::Operate | Need::Administer), _) => Way::Around,
            // Some of what comes over it only editors may do.
            (_, INGEST) if level < Level::All => Way::Writes,
            (_, INGEST) => Way::Both,
            (_, STREAM_METRICS) if level == Level::All => Way::Both,
            (_, UPLOAD) => at(Level::Writes, Way::Around),
            (_, GET_UPLOAD) => at(Level::All, Way::Once),
            (_, UPDATE_EXECUTION) => Way::Pins,
            (Some(Need::Report), _) => at(Level::Writes, Way::Writes),
            (
                Some(Need::Read | Need::Configured | Need::Known | Need::Audit | Need::AuditAll),
                _,
            ) => at(Level::All, if self.is_stream() { Way::Around } else { Way::Once }),
        }
    }
}

/// The method of a path, as records name it: its full name and its event.
pub fn named(path: &str) -> Option<(&'static str, &'static str)> {
    METHODS.get(path).map(|method| (method.rpc.as_str(), method.event.as_str()))
}

/// Code and reason of a failure, as records name them.
pub fn words_of(error: &Error) -> (&'static str, Option<String>) {
    let (code, reason) = status::words(error);
    (code_name(code), Some(reason.to_owned()))
}

/// The code of a failure of the store, as records name it.
pub fn code_of(error: &crate::store::Error) -> &'static str {
    code_name(status::code_of_store(error))
}

/// A call that was turned away, recorded.
pub fn turned_away<Q>(audit: &Audit, request: &http::Request<Q>, turned: &Turned) {
    if !audit.is_on() {
        return;
    }
    let actor = match &turned.caller {
        Some(caller) => Arc::clone(&caller.actor),
        None => Arc::new(Actor::new("unknown", "", "")),
    };
    let rpc = named(request.uri().path()).map_or("", |(rpc, _)| rpc);
    let asked = asked_by(actor, request, rpc);
    let (code, reason) = status::denied_words(turned.denied);
    match &turned.caller {
        // Nobody knows whether it is a bad one.
        None if code == Code::Unavailable => {}
        None => audit.refused(&asked, reason, code_name(code)),
        Some(_) => audit.denied(&asked, Target::default(), reason.to_owned()),
    }
}

fn asked_by<Q>(actor: Arc<Actor>, request: &http::Request<Q>, rpc: &'static str) -> Asked {
    let extensions = request.extensions();
    Asked {
        actor,
        peer: extensions.get::<Peer>().map(|peer| peer.address.ip().to_canonical()),
        rpc,
        request_id: extensions.get::<RequestId>().cloned(),
    }
}

/// Layer that has calls recorded.
#[derive(Clone)]
pub struct Audited {
    audit: Audit,
    tasks: TaskTracker,
}

impl Audited {
    pub fn new(audit: Audit, tasks: TaskTracker) -> Audited {
        Audited { audit, tasks }
    }
}

impl<S> Layer<S> for Audited {
    type Service = AuditedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AuditedService { inner, layer: self.clone() }
    }
}

/// See `Audited`.
#[derive(Clone)]
pub struct AuditedService<S> {
    inner: S,
    layer: Audited,
}

type Answer = Result<http::Response<Body>, Infallible>;

impl<S> Service<http::Request<Body>> for AuditedService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answering<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let plain = |inner| Answering::Watched { inner, watch: None };
        let audit = &self.layer.audit;
        let permit = request.extensions().get::<Permit>().filter(|_| audit.is_on());
        let Some(actor) = permit.map(|permit| Arc::clone(&permit.caller.actor)) else {
            return plain(self.inner.call(request));
        };
        let Some(method) = METHODS.get(request.uri().path()) else {
            return plain(self.inner.call(request));
        };
        let asked = asked_by(actor, &request, &method.rpc);
        let way = method.way(audit.level());
        if matches!(way, Way::Writes | Way::Both) {
            request.extensions_mut().insert(asked.clone());
        }
        if matches!(way, Way::Denials | Way::Writes) {
            let inner = self.inner.call(request);
            return Answering::Watched { inner, watch: Some((audit.clone(), asked)) };
        }
        let inner = self.inner.clone();
        let call = Call { layer: self.layer.clone(), method, asked };
        Answering::Recorded { answer: Box::pin(call.run(inner, request, way)) }
    }
}

pin_project! {
    /// See `Audited`.
    #[project = AnsweringProjection]
    pub enum Answering<F> {
        /// Only that it is denied is recorded here.
        Watched { #[pin] inner: F, watch: Option<(Audit, Asked)> },
        Recorded { answer: Pin<Box<dyn Future<Output = Answer> + Send>> },
    }
}

impl<F: Future<Output = Answer>> Future for Answering<F> {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        match self.project() {
            AnsweringProjection::Watched { inner, watch } => {
                let Ok(answer) = ready!(inner.poll(context));
                if let Some((audit, asked)) = watch
                    && code_in(answer.headers()) == Some(Code::PermissionDenied)
                {
                    let (_, reason) = ended(answer.headers());
                    audit.denied(asked, Target::default(), reason.unwrap_or_default());
                }
                Poll::Ready(Ok(answer))
            }
            AnsweringProjection::Recorded { answer } => answer.as_mut().poll(context),
        }
    }
}

fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()))
}

/// Code and reason of an answer, or of its end.
fn ended(headers: &HeaderMap) -> (&'static str, Option<String>) {
    let Some(found) = Status::from_header_map(headers) else { return ("OK", None) };
    if found.code() == Code::Ok {
        return ("OK", None);
    }
    let found = edge_errors::rewrite(found.code(), found.message()).unwrap_or(found);
    let details = found.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone());
    (code_name(found.code()), reason)
}

fn unaudited() -> http::Response<Body> {
    status::of(&Error::Unaudited).into_http()
}

/// One call that is recorded here.
struct Call {
    layer: Audited,
    method: &'static Method,
    asked: Asked,
}

impl Call {
    async fn run<S>(self, mut inner: S, request: http::Request<Body>, way: Way) -> Answer
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
            + Send
            + 'static,
        S::Future: Send + 'static,
    {
        let audit = self.layer.audit.clone();
        let (mut request, found) = match self.method.client_streams && way == Way::Both {
            // What a stream writes says what it is about.
            true => (request, Found::default()),
            false => self.look_into(request).await,
        };
        let (mut event, mut way) = (self.method.event.as_str(), way);
        if way == Way::Pins {
            (event, way) = match found.pinned {
                true => (PIN, Way::Around),
                false => (event, Way::Writes),
            };
            if way == Way::Writes {
                if audit.level() >= Level::Writes {
                    request.extensions_mut().insert(self.asked.clone());
                }
                let watch = Some((audit, self.asked));
                return Answering::Watched { inner: inner.call(request), watch }.await;
            }
        }
        if way == Way::Once {
            let Ok(answer) = inner.call(request).await;
            let ending = ended(answer.headers());
            let told = audit.once(event, &self.asked, found.target, ending).await;
            return Ok(told.map_or_else(|_| unaudited(), |()| answer));
        }
        let Ok(open) = audit.begin(event, &self.asked, found.target).await else {
            return Ok(unaudited());
        };
        let server_streams = self.method.server_streams;
        let answering = async move {
            let Ok(answer) = inner.call(request).await;
            finished(answer, open, server_streams)
        };
        if self.method.client_streams {
            return Ok(answering.await);
        }
        // It goes on when its client is gone, so that it is known how it ended.
        let going = self.layer.tasks.spawn(answering.in_current_span());
        Ok(going.await.unwrap_or_else(|error| {
            status::of(&Error::Store(crate::store::Error::failed(error))).into_http()
        }))
    }

    /// Reads off the first message what the call is about.
    async fn look_into(&self, request: http::Request<Body>) -> (http::Request<Body>, Found) {
        let (parts, mut body) = request.into_parts();
        let first = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        let message = first.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
        let message = message.and_then(|data| {
            let whole = data.get(..PREFIX_BYTES + unpack::length(data)?)?;
            (whole[0] == 0).then(|| &whole[PREFIX_BYTES..])
        });
        let found = message.map(|message| self.method.shape.find(message)).unwrap_or_default();
        let body = Body::new(Peeked { first, rest: body });
        (http::Request::from_parts(parts, body), found)
    }
}

/// Ends what was begun: now, or with the stream that is the answer.
fn finished(answer: http::Response<Body>, open: Open, is_stream: bool) -> http::Response<Body> {
    let made = answer.extensions().get::<Target>().cloned().unwrap_or_default();
    if !is_stream || code_in(answer.headers()).is_some() {
        let (code, reason) = ended(answer.headers());
        open.end(code, reason, made);
        return answer;
    }
    answer.map(|inner| Body::new(AuditedBody { inner, open: Some(open) }))
}

/// A request of which the first frame was looked at.
struct Peeked {
    first: Option<Result<Frame<Bytes>, Status>>,
    rest: Body,
}

impl HttpBody for Peeked {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// A stream of answers that is recorded to have ended when it has.
struct AuditedBody {
    inner: Body,
    open: Option<Open>,
}

impl AuditedBody {
    fn end(&mut self, code: &'static str, reason: Option<String>) {
        if let Some(open) = self.open.take() {
            open.end(code, reason, Target::default());
        }
    }
}

impl HttpBody for AuditedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    let (code, reason) = ended(trailers);
                    self.end(code, reason);
                }
            }
            Some(Err(error)) => self.end(code_name(error.code()), None),
            None => self.end("UNKNOWN", None),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for AuditedBody {
    fn drop(&mut self) {
        self.end("CANCELLED", None);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn way(rpc: &str, level: Level) -> Way {
        METHODS[&format!("/{rpc}")].way(level)
    }

    #[test]
    fn what_only_some_may_do_is_recorded_around_at_every_level() {
        for method in METHODS.values() {
            let is_own = matches!(method.need, Some(Need::Edit | Need::Operate | Need::Administer));
            for level in [Level::Security, Level::Writes, Level::All] {
                assert!(!is_own || method.way(level) == Way::Around, "{}", method.rpc);
            }
        }
        assert!(METHODS.values().filter(|method| method.need == Some(Need::Edit)).count() >= 5);
    }

    #[test]
    fn at_all_every_method_is_recorded_but_health() {
        for method in METHODS.values() {
            let silent = method.way(Level::All) == Way::Denials;
            let is_open = method.need == Some(Need::Open);
            assert_eq!(silent, is_open, "{}", method.rpc);
        }
    }

    #[test]
    fn at_security_neither_reads_nor_reports_are_recorded() {
        for (rpc, expected) in [
            ("stepwell.v1.ExecutionService/GetExecution", Way::Denials),
            ("stepwell.v1.StepService/StartStep", Way::Denials),
            (UPLOAD, Way::Denials),
            (STREAM_METRICS, Way::Denials),
            (INGEST, Way::Writes),
            (UPDATE_EXECUTION, Way::Pins),
        ] {
            assert_eq!(way(rpc, Level::Security), expected, "{rpc}");
        }
        assert_eq!(way("stepwell.v1.StepService/StartStep", Level::Writes), Way::Writes);
        assert_eq!(way(UPLOAD, Level::Writes), Way::Around);
        assert_eq!(way(GET_UPLOAD, Level::Writes), Way::Denials);
        assert_eq!(way(INGEST, Level::All), Way::Both);
    }

    #[test]
    fn every_event_is_what_and_verb_and_no_two_methods_share_one() {
        let mut events: BTreeMap<&str, &str> = BTreeMap::new();
        for method in METHODS.values().filter(|method| !method.rpc.starts_with("grpc.")) {
            let event = method.event.as_str();
            let (what, verb) = event.split_once('.').expect("two words");
            assert!(!what.is_empty() && !verb.is_empty(), "{event}");
            if let Some(other) = events.insert(event, &method.rpc) {
                panic!("{other} and {} are both {event}", method.rpc);
            }
        }
        assert_eq!(event_of("CreateKey"), "key.create");
        assert_eq!(event_of("DeleteExecution"), "execution.delete");
        assert_eq!(event_of("RunRetention"), "retention.run");
        assert_eq!(event_of("ListAuditEvents"), "audit_events.list");
    }
}
