//! What is seen of every call: one span, its count, its duration, how many are open.
//!
//! It stands in the way of every request, so handles are made beforehand and nothing is allocated for a call
//! that succeeds unnoticed. Only method names of our own descriptors become labels: a client cannot make
//! series by calling names of its own.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use pin_project_lite::pin_project;
use tonic::{Code, Status};
use tower_layer::Layer;
use tower_service::Service;
use tracing::field::Empty;
use tracing::{Level, Span};

use super::catalog;
use super::codes::code_name;
use crate::clock::Clock;
use crate::detached::in_reply;
use crate::domain::audit::RequestId;
use crate::telemetry::metrics as names;
use crate::telemetry::traces;

/// By this a caller names its call; an answer that is an error always has one.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_BYTES: usize = 128;
/// What calls of unknown methods count as.
const OTHER: &str = "other";
/// Codes of gRPC are 0 to 16.
const CODES: usize = 17;

/// One method with its handles.
struct Method {
    path: String,
    service: String,
    method: String,
    in_flight: Gauge,
    duration: Histogram,
    ended: [OnceLock<Counter>; CODES],
}

impl Method {
    fn new(service: &str, method: &str) -> Arc<Method> {
        let labels = [("service", service.to_owned()), ("method", method.to_owned())];
        Arc::new(Method {
            path: format!("{service}/{method}"),
            service: service.to_owned(),
            method: method.to_owned(),
            in_flight: gauge!(names::RPC_IN_FLIGHT, &labels),
            duration: histogram!(names::RPC_DURATION, &labels),
            ended: Default::default(),
        })
    }

    fn ended(&self, code: Code) -> &Counter {
        self.ended[code as usize].get_or_init(|| {
            let labels = [
                ("service", self.service.clone()),
                ("method", self.method.clone()),
                ("code", code_name(code).to_owned()),
            ];
            counter!(names::RPC_REQUESTS, &labels)
        })
    }
}

struct Methods {
    by_path: HashMap<String, Arc<Method>>,
    other: Arc<Method>,
    /// Tells this server's request ids from another's.
    server: u32,
    requests: AtomicU64,
    /// Whether calls are recorded further in, by their ids.
    recorded: bool,
    clock: Arc<dyn Clock>,
}

impl Methods {
    fn of(&self, path: &str) -> &Arc<Method> {
        self.by_path.get(path).unwrap_or(&self.other)
    }

    fn request_id(&self, number: u64) -> HeaderValue {
        let id = RequestId::Numbered { server: self.server, number };
        HeaderValue::from_str(&id.to_string())
            .expect("hexadecimal digits and a dash are a header value")
    }
}

/// Layer that observes calls. `methods` are pairs of full service name and method.
#[derive(Clone)]
pub struct Observe {
    methods: Arc<Methods>,
}

impl Observe {
    /// Observes these methods by name and all others together. `server` tells servers' request ids apart.
    pub fn new<'a>(
        methods: impl IntoIterator<Item = (&'a str, &'a str)>,
        server: u32,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let by_path = methods
            .into_iter()
            .map(|(service, method)| (format!("/{service}/{method}"), Method::new(service, method)))
            .collect();
        let other = Method::new(OTHER, OTHER);
        Observe {
            methods: Arc::new(Methods {
                by_path,
                other,
                server,
                requests: AtomicU64::new(1),
                recorded: false,
                clock,
            }),
        }
    }

    /// Observes every method that is served. `recorded`: calls are recorded further in, by their ids.
    pub fn served(server: u32, recorded: bool, clock: Arc<dyn Clock>) -> Self {
        // In containers every server is process 1: the moment of the start tells them apart.
        let server = server.rotate_left(16) ^ clock.now().micros as u32;
        let services: Vec<catalog::Service> = catalog::all().collect();
        let methods = services.iter().flat_map(|service| {
            service.methods.iter().map(|method| (service.name.as_str(), method.as_str()))
        });
        let mut served = Self::new(methods, server, clock);
        if let Some(methods) = Arc::get_mut(&mut served.methods) {
            methods.recorded = recorded;
        }
        served
    }
}

impl<S> Layer<S> for Observe {
    type Service = ObserveService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ObserveService { inner, methods: Arc::clone(&self.methods) }
    }
}

/// See `Observe`.
#[derive(Clone)]
pub struct ObserveService<S> {
    inner: S,
    methods: Arc<Methods>,
}

impl<S, Q, B> Service<http::Request<Q>> for ObserveService<S>
where
    S: Service<http::Request<Q>, Response = http::Response<B>>,
{
    type Response = http::Response<ObservedBody<B>>;
    type Error = S::Error;
    type Future = ObservedFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Q>) -> Self::Future {
        let call = Call::begin(&self.methods, request.uri().path(), request.headers());
        if self.methods.recorded {
            request.extensions_mut().insert(call.id());
        }
        let entered = call.span.enter();
        let inner = self.inner.call(request);
        drop(entered);
        ObservedFuture { inner, call: Some(call) }
    }
}

/// One open call. Ends once: with its code, or as CANCELLED when it is dropped before.
struct Call {
    methods: Arc<Methods>,
    method: Arc<Method>,
    began: Instant,
    span: Span,
    number: u64,
    request_id: Option<HeaderValue>,
    open: bool,
}

impl Call {
    fn begin(methods: &Arc<Methods>, path: &str, headers: &HeaderMap) -> Call {
        let method = Arc::clone(methods.of(path));
        method.in_flight.increment(1.0);
        let span = tracing::debug_span!(
            "rpc",
            otel.name = method.path,
            otel.kind = "server",
            otel.status_code = Empty,
            rpc.system = "grpc",
            rpc.service = method.service,
            rpc.method = method.method,
            rpc.grpc.status_code = Empty,
            request.id = Empty,
        );
        let request_id = headers
            .get(REQUEST_ID)
            .filter(|id| {
                !id.is_empty()
                    && id.len() <= REQUEST_ID_BYTES
                    && id.as_bytes().iter().all(u8::is_ascii_graphic)
            })
            .cloned();
        let mut call = Call {
            methods: Arc::clone(methods),
            method,
            began: methods.clock.instant(),
            span,
            number: methods.requests.fetch_add(1, Ordering::Relaxed),
            request_id,
            open: true,
        };
        if !call.span.is_disabled() {
            traces::continue_trace(&call.span, headers);
            let id = call.request_id();
            call.span.record("request.id", id.to_str().unwrap_or_default());
        }
        call
    }

    /// The id the caller gave, else one of ours.
    fn request_id(&mut self) -> HeaderValue {
        let (methods, number) = (&self.methods, self.number);
        self.request_id.get_or_insert_with(|| methods.request_id(number)).clone()
    }

    /// The same for who records the call.
    fn id(&self) -> RequestId {
        match self.request_id.as_ref().and_then(|id| id.to_str().ok()) {
            Some(given) => RequestId::Given(Arc::from(given)),
            None => RequestId::Numbered { server: self.methods.server, number: self.number },
        }
    }

    /// Puts the request id into an answer: always with an error, else if the caller gave one.
    fn mark(&mut self, code: Code, headers: &mut HeaderMap) {
        if code != Code::Ok || self.request_id.is_some() {
            headers.insert(REQUEST_ID, self.request_id());
        }
    }

    fn end(&mut self, code: Code) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let took = self.methods.clock.elapsed(self.began);
        self.method.in_flight.decrement(1.0);
        self.method.duration.record(took.as_secs_f64());
        self.method.ended(code).increment(1);
        let failed = matches!(code, Code::Internal | Code::Unknown | Code::DataLoss);
        if !self.span.is_disabled() {
            self.span.record("rpc.grpc.status_code", code as i32);
            let fault =
                matches!(code, Code::DeadlineExceeded | Code::Unimplemented | Code::Unavailable);
            if failed || fault {
                self.span.record("otel.status_code", "ERROR");
            }
        }
        if failed || tracing::enabled!(Level::DEBUG) {
            let id = self.request_id();
            let _entered = self.span.enter();
            let (id, duration_ms) = (id.to_str().unwrap_or_default(), took.as_secs_f64() * 1e3);
            let (service, method) = (self.method.service.as_str(), self.method.method.as_str());
            let code = code_name(code);
            if failed {
                tracing::warn!(
                    rpc.service = service,
                    rpc.method = method,
                    rpc.code = code,
                    request.id = id,
                    duration_ms,
                    "call failed"
                );
            } else {
                tracing::debug!(
                    rpc.service = service,
                    rpc.method = method,
                    rpc.code = code,
                    request.id = id,
                    duration_ms,
                    "call ended"
                );
            }
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()))
}

pin_project! {
    /// See `Observe`.
    pub struct ObservedFuture<F> {
        #[pin]
        inner: F,
        call: Option<Call>,
    }
}

impl<F, B, E> Future for ObservedFuture<F>
where
    F: Future<Output = Result<http::Response<B>, E>>,
{
    type Output = Result<http::Response<ObservedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let polled = match this.call {
            Some(call) => {
                let _entered = call.span.enter();
                this.inner.poll(context)
            }
            None => this.inner.poll(context),
        };
        let mut response = match ready!(polled) {
            Ok(response) => response,
            Err(error) => {
                if let Some(mut call) = this.call.take() {
                    call.end(Code::Unknown);
                }
                return Poll::Ready(Err(error));
            }
        };
        let mut call = this.call.take();
        if let Some(open) = &mut call {
            // An error before any message comes as headers alone; so does what is no gRPC at all.
            let plain = (!response.status().is_success()).then_some(Code::Unknown);
            if let Some(code) = code_in(response.headers()).or(plain) {
                open.mark(code, response.headers_mut());
                open.end(code);
                call = None;
            } else {
                open.mark(Code::Ok, response.headers_mut());
            }
        }
        Poll::Ready(Ok(response.map(|inner| ObservedBody { inner, call })))
    }
}

/// See `Observe`.
pub struct ObservedBody<B> {
    inner: B,
    call: Option<Call>,
}

impl<B: Default> Default for ObservedBody<B> {
    fn default() -> Self {
        ObservedBody { inner: B::default(), call: None }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for ObservedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        let polled = match &this.call {
            Some(call) => {
                let _entered = call.span.enter();
                in_reply(|| Pin::new(&mut this.inner).poll_frame(context))
            }
            None => in_reply(|| Pin::new(&mut this.inner).poll_frame(context)),
        };
        let mut frame = ready!(polled);
        let code = match &mut frame {
            Some(Ok(frame)) if frame.is_data() => None,
            Some(Ok(frame)) => frame.trailers_mut().map(|trailers| {
                let code = code_in(trailers).unwrap_or(Code::Unknown);
                if code != Code::Ok
                    && let Some(call) = &mut this.call
                {
                    call.mark(code, trailers);
                }
                code
            }),
            // A body that breaks off has no code to tell.
            Some(Err(_)) | None => Some(Code::Unknown),
        };
        if let Some(code) = code
            && let Some(mut call) = this.call.take()
        {
            call.end(code);
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt as _, Empty as EmptyBody, Full, StreamBody};
    use tower::{ServiceExt as _, service_fn};

    use super::*;
    use crate::clock::SystemClock;

    type TestBody = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

    fn clock() -> Arc<dyn Clock> {
        Arc::new(SystemClock)
    }

    fn observe(service: &str) -> Observe {
        names::install();
        Observe::new([(service, "Do")], 7, clock())
    }

    fn request(path: &str, id: Option<&str>) -> http::Request<()> {
        let mut request = http::Request::new(());
        *request.uri_mut() = path.parse().expect("a path");
        if let Some(id) = id {
            request.headers_mut().insert(REQUEST_ID, id.parse().expect("a value"));
        }
        request
    }

    /// A message, then trailers with this code.
    fn with_trailers(code: Code) -> http::Response<TestBody> {
        let mut trailers = HeaderMap::new();
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from(code as i32));
        let frames = vec![Ok(Frame::data(Bytes::from_static(b"m"))), Ok(Frame::trailers(trailers))];
        http::Response::new(StreamBody::new(futures::stream::iter(frames)).boxed_unsync())
    }

    fn headers_only(code: Code) -> http::Response<TestBody> {
        let mut response = http::Response::new(EmptyBody::new().boxed_unsync());
        response.headers_mut().insert(Status::GRPC_STATUS, HeaderValue::from(code as i32));
        response
    }

    async fn call(
        observe: &Observe,
        request: http::Request<()>,
        answer: fn() -> http::Response<TestBody>,
    ) -> http::Response<ObservedBody<TestBody>> {
        let service =
            observe.layer(service_fn(move |_| async move { Ok::<_, Infallible>(answer()) }));
        service.oneshot(request).await.expect("an answer")
    }

    fn value(service: &str, code: &str) -> Option<String> {
        let text = names::render();
        let line = format!(
            "stepwell_rpc_requests_total{{service=\"{service}\",method=\"Do\",code=\"{code}\"}} "
        );
        text.lines().find_map(|found| found.strip_prefix(&line)).map(str::to_owned)
    }

    fn in_flight(service: &str) -> Option<String> {
        let text = names::render();
        let line = format!("stepwell_rpc_in_flight{{service=\"{service}\",method=\"Do\"}} ");
        text.lines().find_map(|found| found.strip_prefix(&line)).map(str::to_owned)
    }

    #[tokio::test]
    async fn a_call_counts_when_its_trailers_have_passed() {
        let observe = observe("test.Trailers");
        let response =
            call(&observe, request("/test.Trailers/Do", None), || with_trailers(Code::Ok)).await;
        assert_eq!(in_flight("test.Trailers").as_deref(), Some("1"));
        assert_eq!(value("test.Trailers", "OK"), None);
        assert!(response.headers().get(REQUEST_ID).is_none());
        let collected = response.into_body().collect().await.expect("a body");
        assert!(collected.trailers().expect("trailers").get(REQUEST_ID).is_none());
        assert_eq!(collected.to_bytes(), "m");
        assert_eq!(in_flight("test.Trailers").as_deref(), Some("0"));
        assert_eq!(value("test.Trailers", "OK").as_deref(), Some("1"));
    }

    #[tokio::test]
    async fn errors_carry_a_request_id() {
        let observe = observe("test.Errors");
        let answer =
            call(&observe, request("/test.Errors/Do", None), || headers_only(Code::NotFound)).await;
        let id =
            answer.headers().get(REQUEST_ID).expect("an id").to_str().expect("text").to_owned();
        assert!(id.starts_with("00000007-"), "{id}");
        assert_eq!(value("test.Errors", "NOT_FOUND").as_deref(), Some("1"));

        let answer = call(&observe, request("/test.Errors/Do", Some("mine")), || {
            with_trailers(Code::Internal)
        })
        .await;
        assert_eq!(answer.headers().get(REQUEST_ID).expect("an id"), "mine");
        let collected = answer.into_body().collect().await.expect("a body");
        assert_eq!(collected.trailers().expect("trailers").get(REQUEST_ID).expect("an id"), "mine");
        assert_eq!(value("test.Errors", "INTERNAL").as_deref(), Some("1"));
    }

    #[tokio::test]
    async fn a_caller_that_leaves_counts_as_cancelled() {
        let observe = observe("test.Leaves");
        drop(call(&observe, request("/test.Leaves/Do", None), || with_trailers(Code::Ok)).await);
        assert_eq!(value("test.Leaves", "CANCELLED").as_deref(), Some("1"));
        let waiting = observe.layer(service_fn(|_: http::Request<()>| {
            std::future::pending::<Result<http::Response<TestBody>, Infallible>>()
        }));
        drop(waiting.oneshot(request("/test.Leaves/Do", None)));
        assert_eq!(in_flight("test.Leaves").as_deref(), Some("0"));
    }

    #[tokio::test]
    async fn unknown_methods_and_strange_answers_make_no_series_of_their_own() {
        let observe = observe("test.Known");
        for path in ["/test.Known/Nope", "/x/y", "/"] {
            let answer =
                call(&observe, request(path, None), || headers_only(Code::Unimplemented)).await;
            drop(answer);
        }
        let plain = call(&observe, request("/test.Known/Do", None), || {
            let mut response =
                http::Response::new(Full::new(Bytes::from_static(b"no")).boxed_unsync());
            *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
            response
        })
        .await;
        drop(plain);
        assert_eq!(value("test.Known", "UNKNOWN").as_deref(), Some("1"));
        let text = names::render();
        assert!(
            !text.contains("Nope") && text.contains("method=\"other\",code=\"UNIMPLEMENTED\""),
            "{text}"
        );
    }

    #[test]
    fn every_method_of_the_descriptors_is_known() {
        let observe = Observe::served(1, false, clock());
        for path in [
            "/stepwell.v1.ExecutionService/WatchExecution",
            "/stepwell.v1.IngestService/Ingest",
            "/grpc.health.v1.Health/Check",
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ] {
            assert_ne!(observe.methods.of(path).service, OTHER, "{path}");
        }
    }

    #[test]
    fn request_ids_of_callers_are_bounded() {
        let observe = observe("test.Ids");
        for (given, kept) in
            [("abc-1", true), ("with space", false), ("", false), (&"x".repeat(129), false)]
        {
            let request = request("/test.Ids/Do", Some(given));
            let call = Call::begin(&observe.methods, "/test.Ids/Do", request.headers());
            assert_eq!(call.request_id.as_ref().is_some_and(|id| id == given), kept, "{given}");
        }
    }
}
