//! Takes what clients stream off the wire before the work on it, within a bound.
//!
//! HTTP/2 flow control is what slows a client down, and it counts bytes. The library also counts DATA frames smaller
//! than 256 bytes that nobody has taken yet, and ends the whole connection (GOAWAY, `too_many_data_frames`) when
//! what they lack to 256 bytes adds up to `LACKING_BYTES`: an honest client that sends small
//! records as fast as its window allows, while the store is slow. So frames are taken as they come, whether or not
//! the handler wants the next message, until `TAKEN_BYTES` of a stream wait; and a few streams may have their windows full
//! of the smallest messages on the wire, since nobody may have come to take them yet.

use std::collections::{HashMap, VecDeque};
use std::future::Ready;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::Either;
use futures::task::AtomicWaker;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::budget::{Account, Hold, LOOK_AGAIN};
use super::pace::Pace;
use super::unpack::{self, Encoding, PREFIX_BYTES, Packed};
use super::weight::{Kind, Weights};
use super::{codec, status};
use crate::app::Error;

/// The one stream whose client never has a reason to pause.
const UPLOAD: &str = "/stepwell.v1.ArtifactService/UploadArtifact";
/// The largest frame of HTTP/2 that a client may send.
const FRAME_BYTES: usize = 16 * 1024;

/// What a client may send on one stream before the server has taken it.
pub const STREAM_WINDOW: u32 = 512 * 1024;
/// The same for all streams of a connection together.
pub const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;
/// Bytes of one stream that are taken and wait for the handler, at most.
const TAKEN_BYTES: usize = 1024 * 1024;
/// Messages smaller than this are gathered.
const SMALL_BYTES: usize = 4 * 1024;
/// Small messages gathered in one piece, at least.
const PIECE_BYTES: usize = 16 * 1024;

/// The library counts what frames lack to this.
const SMALL_FRAME: u32 = 256;
/// No write of Ingest takes less: its prefix, a sequence, and an id of one character.
const SMALLEST_MESSAGE: u32 = 12;
/// So many streams of a connection may stand still with their windows full of such messages, one in each frame.
const STALLED_STREAMS: u32 = 4;
/// What frames that nobody has taken may lack, all of a connection together. The library would take half of the window of
/// the connection, which two such streams use up.
pub const LACKING_BYTES: usize = (STALLED_STREAMS
    * (STREAM_WINDOW / SMALLEST_MESSAGE)
    * (SMALL_FRAME - SMALLEST_MESSAGE)) as usize;

/// The body of a request that is read ahead.
struct State {
    inner: Body,
    rules: Rules,
    /// Whole messages, as they are handed over, or parts of one that is too large to be waited for.
    pieces: VecDeque<Bytes>,
    /// Small messages after all pieces.
    gathered: BytesMut,
    /// Of pieces and gathered.
    bytes: usize,
    /// The beginning of a message that is not there yet.
    partial: BytesMut,
    /// What is to come of a message that is too large: whoever reads it says so.
    through: usize,
    /// The message that is unpacked next, and what came in one frame with it and after it.
    packed: Option<Packed>,
    rest: Bytes,
    /// After all bytes.
    end: Option<End>,
    /// For everything above, and what was handed over last.
    hold: Option<Hold>,
    lent: usize,
    /// When to look again whether there is room.
    short: Option<Pin<Box<Sleep>>>,
    pace: Pace,
}

/// What goes for one request.
#[derive(Default)]
struct Rules {
    account: Option<Arc<Account>>,
    encoding: Option<Encoding>,
    kind: Option<Kind>,
    /// Bytes of a message at most.
    message_bytes: usize,
    /// How long the client may keep the server waiting, and whether it may between messages.
    idle: Option<Duration>,
    between: bool,
}

enum End {
    Closed,
    Trailers(HeaderMap),
    Failed(Status),
}

/// Whoever waits for the wire: the handler that wants a message, and whoever takes frames beside it.
#[derive(Default)]
struct Wakers {
    reader: AtomicWaker,
    taker: AtomicWaker,
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.reader.wake();
        self.taker.wake();
    }
}

struct Shared {
    state: Mutex<State>,
    wakers: Arc<Wakers>,
    /// Wakes all of them.
    waker: Waker,
}

impl State {
    /// Bytes of everything that is there.
    fn all(&self) -> usize {
        let packed = self.packed.as_ref().map_or(0, Packed::len) + self.rest.len();
        self.bytes + self.partial.len() + packed + self.lent
    }

    /// Whether there is room for so many bytes beside what is there; else it is looked again later.
    fn room(&mut self, bytes: usize, waker: &Waker) -> bool {
        let all = self.all() + bytes;
        let Some(hold) = &mut self.hold else { return true };
        if hold.resize(all) {
            self.short = None;
            return true;
        }
        let mut later = Box::pin(sleep(LOOK_AGAIN));
        // A timer that is made now is not over.
        let _ = later.as_mut().poll(&mut Context::from_waker(waker));
        self.short = Some(later);
        // It is not the client who is waited for.
        self.pace.begin();
        false
    }

    /// Gives back what is not needed any more.
    fn settle(&mut self) {
        let all = self.all();
        if let Some(hold) = &mut self.hold
            && hold.bytes() > all
        {
            let _ = hold.resize(all);
        }
    }

    /// Takes in the next frame, if there is one.
    fn poll_inner(&mut self, waker: &Waker) -> Poll<()> {
        if self.end.is_some() {
            return Poll::Ready(());
        }
        let mut context = Context::from_waker(waker);
        if let Some(later) = &mut self.short
            && later.as_mut().poll(&mut context).is_pending()
        {
            return Poll::Pending;
        }
        if let Some(packed) = self.packed.take() {
            return self.unpack(packed, waker);
        }
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            self.add(rest);
            return Poll::Ready(());
        }
        if !self.room(FRAME_BYTES, waker) {
            return Poll::Pending;
        }
        let frame = http_body::Body::poll_frame(Pin::new(&mut self.inner), &mut context);
        let Poll::Ready(frame) = frame else {
            self.settle();
            return Poll::Pending;
        };
        match frame.map(|frame| frame.map(Frame::into_data)) {
            None => self.end = Some(End::Closed),
            Some(Err(error)) => self.end = Some(End::Failed(error)),
            Some(Ok(Ok(data))) => {
                self.pace.came(data.len());
                self.add(data);
            }
            Some(Ok(Err(frame))) => {
                self.end = Some(frame.into_trailers().map_or(End::Closed, End::Trailers));
            }
        }
        if self.end.is_some() && !self.partial.is_empty() {
            // The rest of a message that does not come: whoever reads it complains of its beginning.
            let partial = self.partial.split().freeze();
            self.push(partial);
        }
        self.settle();
        Poll::Ready(())
    }

    /// Takes in a message that is compressed, once there is room for what it expands to.
    fn unpack(&mut self, mut packed: Packed, waker: &Waker) -> Poll<()> {
        let Some(encoding) = self.rules.encoding else { return Poll::Ready(()) };
        let (limit, held) = (self.rules.message_bytes, packed.len());
        match packed.unpacked(encoding, limit, |bytes| self.room(held.max(bytes), waker)) {
            Ok(Some(message)) => self.push(message),
            Ok(None) => {
                self.packed = Some(packed);
                return Poll::Pending;
            }
            Err(status) => self.end = Some(End::Failed(status)),
        }
        self.settle();
        Poll::Ready(())
    }

    /// Takes in bytes of the wire, up to the next message that has to be unpacked.
    fn add(&mut self, mut data: Bytes) {
        while !data.is_empty() {
            if self.through > 0 {
                let now = data.split_to(data.len().min(self.through));
                self.through -= now.len();
                self.push(now);
                continue;
            }
            if self.partial.is_empty() {
                let whole = self.whole_messages(&data);
                if whole > 0 {
                    self.push(data.split_to(whole));
                    continue;
                }
                // Where nobody may wait between messages, a message that begins is no progress.
                if self.rules.between {
                    self.pace.begin();
                }
            }
            let length = unpack::length(&self.partial);
            let wanted = PREFIX_BYTES + length.unwrap_or(0) - self.partial.len();
            let now = data.split_to(data.len().min(wanted));
            self.partial.extend_from_slice(&now);
            let Some(length) = unpack::length(&self.partial) else { continue };
            if length > self.rules.message_bytes {
                let prefix = self.partial.split().freeze();
                self.push(prefix);
                self.through = length;
            } else if self.partial.len() == PREFIX_BYTES + length {
                let message = std::mem::take(&mut self.partial).freeze();
                if message[0] == 1 && self.rules.encoding.is_some() {
                    (self.packed, self.rest) = (Some(Packed::new(message)), data);
                    return;
                }
                self.push(message);
            }
        }
    }

    /// How many bytes at the beginning are whole messages that go on as they are.
    fn whole_messages(&self, data: &[u8]) -> usize {
        let mut whole = 0;
        loop {
            let rest = &data[whole..];
            match unpack::length(rest) {
                Some(length)
                    if length <= self.rules.message_bytes
                        && rest.len() >= PREFIX_BYTES + length
                        && (rest[0] == 0 || self.rules.encoding.is_none()) =>
                {
                    whole += PREFIX_BYTES + length;
                }
                _ => return whole,
            }
        }
    }

    fn push(&mut self, data: Bytes) {
        self.bytes += data.len();
        if data.len() < SMALL_BYTES {
            self.gathered.extend_from_slice(&data);
            if self.gathered.len() < PIECE_BYTES {
                return;
            }
            self.pieces.push_back(self.gathered.split().freeze());
        } else {
            if !self.gathered.is_empty() {
                self.pieces.push_back(self.gathered.split().freeze());
            }
            self.pieces.push_back(data);
        }
    }

    /// What is handed over next, once there is room for what it decodes to.
    fn next(&mut self, waker: &Waker) -> Poll<Option<Bytes>> {
        if self.pieces.is_empty() {
            if self.gathered.is_empty() {
                return Poll::Ready(None);
            }
            self.pieces.push_back(self.gathered.split().freeze());
        }
        let Some(first) = self.pieces.front() else { return Poll::Ready(None) };
        // Small messages are decoded one at a time.
        if let Some(kind) = self.rules.kind
            && first.len() >= SMALL_BYTES
            && unpack::length(first).is_some_and(|length| first.len() == PREFIX_BYTES + length)
            && let Ok(decoded) = codec::weigh(kind, &first[PREFIX_BYTES..])
            && decoded > first.len()
        {
            let more = decoded - first.len();
            if !self.room(more, waker) {
                return Poll::Pending;
            }
            self.lent = more;
        }
        let piece = self.pieces.pop_front();
        let length = piece.as_ref().map_or(0, Bytes::len);
        self.bytes -= length;
        self.lent += length;
        self.pace.goes_away();
        Poll::Ready(piece)
    }

    /// Whether the client has kept the server waiting for too long; else it is looked again when it will have.
    fn stands_still(&mut self, waker: &Waker) -> bool {
        let Some(idle) = self.rules.idle else { return false };
        if (self.rules.between && self.partial.is_empty() && self.through == 0)
            || self.short.is_some()
        {
            self.pace.stop();
            return false;
        }
        self.pace.is_over(idle, waker)
    }
}

/// The body that the handler reads.
struct EagerBody(Arc<Shared>);

impl http_body::Body for EagerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Shared { state, wakers, waker } = &*self.0;
        wakers.reader.register(context.waker());
        let mut state = state.lock();
        // Whoever comes for more is done with what it has.
        if std::mem::take(&mut state.lent) > 0 {
            state.settle();
        }
        state.pace.comes_back();
        loop {
            let full = state.bytes >= TAKEN_BYTES;
            if let Some(piece) = ready!(state.next(waker)) {
                if full {
                    // There is room again.
                    wakers.taker.wake();
                }
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            match state.end.take() {
                None => {}
                Some(End::Closed) => {
                    state.end = Some(End::Closed);
                    return Poll::Ready(None);
                }
                Some(end) => {
                    state.end = Some(End::Closed);
                    return Poll::Ready(Some(match end {
                        End::Failed(error) => Err(error),
                        End::Trailers(trailers) => Ok(Frame::trailers(trailers)),
                        End::Closed => return Poll::Ready(None),
                    }));
                }
            }
            if state.poll_inner(waker).is_pending() {
                if state.stands_still(waker) {
                    state.end = Some(End::Closed);
                    return Poll::Ready(Some(Err(status::of(&Error::StandsStill))));
                }
                return Poll::Pending;
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = self.0.state.lock();
        state.bytes + state.partial.len() == 0
            && state.packed.is_none()
            && state.rest.is_empty()
            && match state.end {
                None | Some(End::Closed) => state.inner.is_end_stream(),
                Some(_) => false,
            }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Takes frames of one request off the wire; in the extensions of a request that streams.
#[derive(Clone)]
pub struct Taking(Arc<Shared>);

impl Taking {
    fn poll(&self, context: &Context<'_>) {
        let Shared { state, wakers, waker } = &*self.0;
        wakers.taker.register(context.waker());
        let mut state = state.lock();
        // The rest of a message of which a part is there is taken, however large it is.
        while (state.bytes < TAKEN_BYTES || (state.bytes == 0 && !state.partial.is_empty()))
            && state.end.is_none()
            && state.poll_inner(waker).is_ready()
        {}
    }

    /// Does some work and takes frames meanwhile.
    pub async fn beside<F: Future>(self, work: F) -> F::Output {
        Beside { work, taking: Some(self) }.await
    }
}

pin_project! {
    /// Work that goes on while frames are taken, if there are any.
    pub struct Beside<F> {
        #[pin]
        work: F,
        taking: Option<Taking>,
    }
}

impl<F: Future> Future for Beside<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let polled = this.work.poll(context);
        if let Some(taking) = this.taking
            && polled.is_pending()
        {
            taking.poll(context);
        }
        polled
    }
}

/// A body that is read ahead by whoever has the other one.
fn eager(inner: Body, rules: Rules) -> (EagerBody, Taking) {
    let wakers = Arc::<Wakers>::default();
    let state = State {
        inner,
        hold: rules.account.as_ref().map(Account::hold),
        rules,
        pieces: VecDeque::new(),
        gathered: BytesMut::new(),
        bytes: 0,
        partial: BytesMut::new(),
        through: 0,
        packed: None,
        rest: Bytes::new(),
        end: None,
        lent: 0,
        short: None,
        pace: Pace::new(),
    };
    let waker = Waker::from(Arc::clone(&wakers));
    let shared = Arc::new(Shared { state: Mutex::new(state), wakers, waker });
    (EagerBody(Arc::clone(&shared)), Taking(shared))
}

/// Layer that reads the requests of these methods ahead until they are answered. A method that answers before it has
/// read its request goes on with `Taking`.
#[derive(Clone)]
pub struct Eager {
    methods: Arc<HashMap<String, Option<Kind>>>,
    message_bytes: usize,
    idle: Duration,
}

impl Eager {
    /// For all methods of this encoded file descriptor set whose requests are streams, of messages of so many bytes.
    /// A client that keeps the server waiting for so long, in the middle of a message or of an upload, is not waited for.
    pub fn described(set: &[u8], message_bytes: usize, idle: Duration) -> Self {
        use prost::Message as _;
        // Made by our own build; a set that cannot be read only costs its methods the reading ahead.
        let set = prost_types::FileDescriptorSet::decode(set).unwrap_or_default();
        let services = set.file.iter().flat_map(|file| {
            file.service
                .iter()
                .map(|service| (format!("{}.{}", file.package(), service.name()), service))
        });
        let methods = services.flat_map(|(name, service)| {
            let streams = service.method.iter().filter(|method| method.client_streaming());
            streams.map(move |method| {
                let kind = Weights::get().request(method.input_type().trim_start_matches('.'));
                (format!("/{name}/{}", method.name()), kind)
            })
        });
        Eager { methods: Arc::new(methods.collect()), message_bytes, idle }
    }
}

impl<S> Layer<S> for Eager {
    type Service = EagerService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        EagerService { inner, eager: self.clone() }
    }
}

/// See `Eager`.
#[derive(Clone)]
pub struct EagerService<S> {
    inner: S,
    eager: Eager,
}

impl<S> Service<http::Request<Body>> for EagerService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<Beside<S::Future>, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let Some(&kind) = self.eager.methods.get(path) else {
            return Either::Left(Beside { work: self.inner.call(request), taking: None });
        };
        let between = path != UPLOAD;
        let (mut parts, body) = request.into_parts();
        let encoding = match unpack::encoding(&mut parts.headers) {
            Ok(encoding) => encoding,
            Err(status) => return Either::Right(std::future::ready(Ok(status.into_http()))),
        };
        let rules = Rules {
            account: parts.extensions.get::<Arc<Account>>().cloned(),
            encoding,
            kind,
            message_bytes: self.eager.message_bytes,
            idle: Some(self.eager.idle),
            between,
        };
        let (body, taking) = eager(body, rules);
        parts.extensions.insert(taking.clone());
        let request = http::Request::from_parts(parts, Body::new(body));
        Either::Left(Beside { work: self.inner.call(request), taking: Some(taking) })
    }
}

#[cfg(test)]
#[path = "tests/eager.rs"]
mod tests;
