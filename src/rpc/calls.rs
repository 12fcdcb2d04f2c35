//! What every call goes through before and after its handler: its deadline, its request as a whole and within the budget,
//! its place, and its reply within the budget.
//!
//! A request that is one message is taken off the wire here, as it comes and for as long as there is room: a length
//! that is announced reserves nothing. What it decodes to is estimated before anything decodes it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body::{Body as HttpBody, Frame, SizeHint};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout_at};
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::budget::{Account, Hold, LOOK_AGAIN, Work};
use super::catalog;
use super::codec;
use super::places::Place;
use super::status;
use super::unpack::{self, Encoding, PREFIX_BYTES};
use super::weight::{Kind, Weights};
use crate::app::Error;
use crate::auth::need::{self, Need};

/// Calls whose work goes on when nobody waits for them any more.
const GO_ON: [&str; 1] = ["/stepwell.v1.ExecutionService/DeleteExecution"];

/// Calls that send everything, until they end or their client goes.
const READINGS: [&str; 2] =
    ["/stepwell.v1.ExportService/Export", "/stepwell.v1.VerifyService/GetDigests"];

/// The call that brings bytes for as long as its client sends them.
const UPLOAD: &str = "/stepwell.v1.ArtifactService/UploadArtifact";

/// How long a call waits for a place. Clients that ask again at once are slowed down by it, and a call that is given a
/// place still has most of its time.
const PLACE_WITHIN: Duration = Duration::from_secs(2);

/// What calls may cost.
#[derive(Debug, Clone, Copy)]
pub struct CallLimits {
    pub request_bytes: usize,
    /// How long a call with one request and one reply may take, from its headers on, and how long the one request
    /// of any other may take to come.
    pub call: Duration,
}

/// What is to be known of a method.
#[derive(Debug, Clone, Copy)]
struct Method {
    one_request: bool,
    one_reply: bool,
    /// By which its request is weighed.
    kind: Option<Kind>,
    goes_on: bool,
    /// It needs a place among those that are worked on.
    place: Option<Work>,
}

impl Method {
    /// A method that nobody knows: the library refuses it.
    const UNKNOWN: Method =
        Method { one_request: false, one_reply: false, kind: None, goes_on: false, place: None };
}

/// What a method does. Whoever asks whether the server serves is answered however much it has to do.
fn work(path: &str, one_request: bool, one_reply: bool) -> Option<Work> {
    match need::of_path(path) {
        _ if READINGS.contains(&path) => Some(Work::Reading),
        _ if path == UPLOAD => Some(Work::Upload),
        _ if !(one_request && one_reply) => None,
        Some(Need::Open) => None,
        Some(Need::Report) => Some(Work::Report),
        Some(_) | None => Some(Work::Other),
    }
}

fn methods() -> HashMap<String, Method> {
    let mut methods = HashMap::new();
    for set in catalog::DESCRIPTOR_SETS {
        // Made by builds; a test reads all of them.
        let set = FileDescriptorSet::decode(set).unwrap_or_default();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let service = format!("{}.{}", file.package(), service.name());
                    let path = format!("/{service}/{}", method.name());
                    let input = method.input_type().trim_start_matches('.');
                    let (one_request, one_reply) =
                        (!method.client_streaming(), !method.server_streaming());
                    let known = Method {
                        one_request,
                        one_reply,
                        kind: Weights::get().request(input),
                        goes_on: GO_ON.contains(&path.as_str()),
                        place: work(&path, one_request, one_reply),
                    };
                    methods.insert(path, known);
                }
            }
        }
    }
    methods
}

/// The layer.
#[derive(Clone)]
pub struct Calls {
    methods: Arc<HashMap<String, Method>>,
    limits: CallLimits,
    tasks: TaskTracker,
}

impl Calls {
    pub fn new(limits: CallLimits, tasks: TaskTracker) -> Self {
        Calls { methods: Arc::new(methods()), limits, tasks }
    }
}

impl<S> Layer<S> for Calls {
    type Service = CallsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CallsService { inner, calls: self.clone() }
    }
}

/// See `Calls`.
#[derive(Clone)]
pub struct CallsService<S> {
    inner: S,
    calls: Calls,
}

type Answering =
    Pin<Box<dyn Future<Output = Result<http::Response<ReplyBody>, Infallible>> + Send>>;

impl<S> Service<http::Request<Body>> for CallsService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    type Response = http::Response<ReplyBody>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Answering {
        let began = Instant::now();
        let path = request.uri().path();
        let method = self.calls.methods.get(path).copied().unwrap_or(Method::UNKNOWN);
        let asked = asked_timeout(request.headers()).and_then(|asked| began.checked_add(asked));
        let mine = began + self.calls.limits.call;
        let deadline = match asked {
            Some(asked) if method.one_request && method.one_reply => Some(asked.min(mine)),
            None if method.one_request && method.one_reply => Some(mine),
            asked => asked,
        };
        let call = Call {
            method,
            account: request.extensions().get::<Arc<Account>>().cloned(),
            request_bytes: self.calls.limits.request_bytes,
            comes_by: deadline.map_or(mine, |deadline| deadline.min(mine)),
            deadline,
            tasks: self.calls.tasks.clone(),
        };
        let inner = self.inner.clone();
        Box::pin(async move {
            let answered = match call.deadline {
                None => call.run(inner, request).await,
                Some(deadline) if deadline <= Instant::now() => {
                    Err(status::of(&Error::DeadlineExceeded))
                }
                Some(deadline) => match timeout_at(deadline, call.run(inner, request)).await {
                    Ok(answered) => answered,
                    Err(_) => Err(status::of(&Error::DeadlineExceeded)),
                },
            };
            Ok(answered.unwrap_or_else(|status| status.into_http().map(ReplyBody::plain)))
        })
    }
}

struct Call {
    method: Method,
    account: Option<Arc<Account>>,
    request_bytes: usize,
    /// When the request must be there, if it is one message.
    comes_by: Instant,
    deadline: Option<Instant>,
    tasks: TaskTracker,
}

impl Call {
    async fn run<S>(
        &self,
        mut inner: S,
        request: http::Request<Body>,
    ) -> Result<http::Response<ReplyBody>, Status>
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
        S::Future: Send + 'static,
    {
        let (mut parts, body) = request.into_parts();
        let mut held = None;
        let body = if self.method.one_request {
            let encoding = unpack::encoding(&mut parts.headers)?;
            let gathering = self.gather(body, encoding, &mut held);
            let body = match timeout_at(self.comes_by, gathering).await {
                Ok(body) => body?,
                Err(_) => return Err(status::of(&Error::DeadlineExceeded)),
            };
            Body::new(body)
        } else {
            body
        };
        // Only now: a request that does not come keeps no place.
        let place = match (&self.account, self.method.place) {
            (Some(account), Some(work)) => {
                let place = account.place(work, PLACE_WITHIN).await;
                Some(place.ok_or_else(|| status::of(&Error::TooManyCalls))?)
            }
            _ => None,
        };
        let answering = inner.call(http::Request::from_parts(parts, body));
        let answered = if self.method.goes_on {
            let going = self.tasks.spawn(answering);
            match going.await {
                Ok(answered) => answered,
                Err(error) => {
                    return Err(status::of(&Error::Store(crate::store::Error::failed(error))));
                }
            }
        } else {
            answering.await
        };
        drop(held);
        let Ok(answered) = answered;
        let mut answered = self.reply(answered).await?;
        if !self.method.one_reply {
            answered.body_mut().place = place;
        }
        Ok(answered)
    }

    /// Takes a request of one message off the wire.
    async fn gather(
        &self,
        mut body: Body,
        encoding: Option<Encoding>,
        held: &mut Option<Hold>,
    ) -> Result<Gathered, Status> {
        let mut hold = self.account.as_ref().map(Account::hold);
        let mut room = |bytes: usize| {
            let is_room = hold.as_mut().is_none_or(|hold| hold.resize(bytes));
            if is_room { Ok(()) } else { Err(status::of(&Error::OverBudget)) }
        };
        let mut message = Bytes::new();
        let mut more = BytesMut::new();
        let mut end = None;
        loop {
            match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                None => break,
                Some(Err(error)) => {
                    end = Some(error);
                    break;
                }
                Some(Ok(frame)) => {
                    // Trailers of a request say nothing.
                    let Ok(data) = frame.into_data() else { continue };
                    if message.is_empty() && more.is_empty() {
                        room(data.len())?;
                        message = data;
                    } else {
                        if more.is_empty() {
                            more.extend_from_slice(&message);
                            message = Bytes::new();
                        }
                        room(more.len() + data.len())?;
                        more.extend_from_slice(&data);
                    }
                    let so_far = if more.is_empty() { &message[..] } else { &more[..] };
                    let length = unpack::length(so_far);
                    let over = so_far.len() > PREFIX_BYTES + self.request_bytes;
                    if over || length.is_some_and(|length| length > self.request_bytes) {
                        // The library says so; nothing more of it is read.
                        break;
                    }
                }
            }
        }
        if !more.is_empty() {
            message = more.freeze();
        }
        let whole = unpack::length(&message).is_some_and(|length| {
            length <= self.request_bytes && message.len() == PREFIX_BYTES + length
        });
        if whole && end.is_none() {
            if message[0] == 1
                && let Some(encoding) = encoding
            {
                message = unpack::unpacked(&message, encoding, self.request_bytes)?;
                room(message.len())?;
            }
            if message[0] == 0
                && let Some(kind) = self.method.kind
            {
                let taken = codec::weigh(kind, &message[PREFIX_BYTES..]);
                room(taken.map_err(|error| status::of(&error))?.max(message.len()))?;
            }
        }
        *held = hold;
        Ok(Gathered { message: Some(message).filter(|message| !message.is_empty()), end })
    }

    /// Puts a reply under the budget.
    async fn reply(
        &self,
        answered: http::Response<Body>,
    ) -> Result<http::Response<ReplyBody>, Status> {
        let mut answered = answered.map(ReplyBody::plain);
        let body = answered.body_mut();
        if body.inner.is_end_stream() {
            return Ok(answered);
        }
        if self.method.one_reply {
            // It is encoded now and not when the client has room for it: then nobody would know what it takes.
            let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut body.inner).poll_frame(cx))).await;
            if let Poll::Ready(Some(Ok(frame))) = first {
                body.first = Some(match frame.into_data() {
                    Ok(data) => Frame::data(self.account.as_ref().map_or_else(
                        || Ok(data.clone()),
                        |account| {
                            let mut hold = account.hold();
                            if hold.resize(data.len()) {
                                Ok(hold.with(data.clone()))
                            } else {
                                Err(status::of(&Error::OverBudget))
                            }
                        },
                    )?),
                    Err(other) => other,
                });
            } else if let Poll::Ready(Some(Err(status))) = first {
                return Err(status);
            }
        }
        body.account.clone_from(&self.account);
        if !self.method.one_reply {
            body.deadline = self.deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        }
        Ok(answered)
    }
}

/// A request that is there, as far as it came.
struct Gathered {
    message: Option<Bytes>,
    end: Option<Status>,
}

impl HttpBody for Gathered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let message = self.message.take().map(|message| Ok(Frame::data(message)));
        Poll::Ready(message.or_else(|| self.end.take().map(Err)))
    }

    fn is_end_stream(&self) -> bool {
        self.message.is_none() && self.end.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// A reply that is under the budget until it is on the wire, and that ends when its call's deadline has passed.
pub struct ReplyBody {
    inner: Body,
    /// What was taken from it already.
    first: Option<Frame<Bytes>>,
    account: Option<Arc<Account>>,
    /// What there is no room for yet.
    waiting: Option<(Bytes, Pin<Box<Sleep>>)>,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Of a call that is worked on for as long as it replies.
    place: Option<Place>,
    over: bool,
}

impl ReplyBody {
    fn plain(inner: Body) -> ReplyBody {
        ReplyBody {
            inner,
            first: None,
            account: None,
            waiting: None,
            deadline: None,
            place: None,
            over: false,
        }
    }

    /// The data, once there is room for it.
    fn poll_room(
        &mut self,
        data: Bytes,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(account) = &self.account else {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        };
        let mut hold = account.hold();
        if hold.resize(data.len()) {
            return Poll::Ready(Some(Ok(Frame::data(hold.with(data)))));
        }
        let mut later = Box::pin(sleep(LOOK_AGAIN));
        let _ = later.as_mut().poll(context);
        self.waiting = Some((data, later));
        Poll::Pending
    }
}

impl HttpBody for ReplyBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        if self.over {
            return Poll::Ready(None);
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            (self.over, self.waiting, self.inner, self.place) = (true, None, Body::empty(), None);
            let mut trailers = HeaderMap::new();
            // Fails only on metadata that is no header; there is none.
            let _ = status::of(&Error::DeadlineExceeded).add_header(&mut trailers);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if let Some((data, mut later)) = self.waiting.take() {
            if later.as_mut().poll(context).is_pending() {
                self.waiting = Some((data, later));
                return Poll::Pending;
            }
            return self.poll_room(data, context);
        }
        match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => self.poll_room(data, context),
                Err(other) => Poll::Ready(Some(Ok(other))),
            },
            other => Poll::Ready(other),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none()
            && (self.over || (self.waiting.is_none() && self.inner.is_end_stream()))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// How long the client waits, as its headers say; a value that cannot be read is none.
fn asked_timeout(headers: &HeaderMap) -> Option<Duration> {
    parsed(headers.get("grpc-timeout")?)
}

fn parsed(value: &HeaderValue) -> Option<Duration> {
    let (digits, unit) = value.to_str().ok()?.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit())
    {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_has_them() {
        let read = |text: &str| parsed(&HeaderValue::from_str(text).expect("a value"));
        assert_eq!(read("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(read("2M"), Some(Duration::from_secs(120)));
        assert_eq!(read("0S"), Some(Duration::ZERO));
        assert_eq!(read("5m"), Some(Duration::from_millis(5)));
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        assert_eq!(read("8n"), Some(Duration::from_nanos(8)));
        for odd in ["", "S", "1", "1s", "123456789S", "-1S", "+1S", "1.5S", " 1S", "1 S", "1SS"] {
            assert_eq!(read(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn every_method_is_known_with_its_streams() {
        let methods = methods();
        for service in catalog::all() {
            for method in &service.methods {
                assert!(methods.contains_key(&format!("/{}/{method}", service.name)), "{method}");
            }
        }
        let streams = |path: &str| {
            let method = methods[path];
            (!method.one_request, !method.one_reply)
        };
        assert_eq!(streams("/stepwell.v1.IngestService/Ingest"), (true, true));
        assert_eq!(streams("/stepwell.v1.ArtifactService/UploadArtifact"), (true, false));
        assert_eq!(streams("/stepwell.v1.ExecutionService/WatchExecutions"), (false, true));
        assert_eq!(streams("/stepwell.v1.StepService/StartStep"), (false, false));
        for path in GO_ON {
            assert!(methods[path].goes_on);
        }
        for path in READINGS {
            assert_eq!(methods[path].place, Some(Work::Reading));
        }
    }
}
