//! One connection of a gRPC client, from its handshake to its end.
//!
//! HTTP/2 is spoken here and not by a library above it, because what a connection may cost is decided here: how
//! long its handshake takes, how long it may be open without a call, how much of a reply is handed on before the client
//! has room for it, and how long a reply waits for a client that reads nothing.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io::{IoSlice, Result as Done};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower_service::Service;

use super::budget::Account;
use super::eager::{CONNECTION_WINDOW, LACKING_BYTES, STREAM_WINDOW};
use crate::auth::caller::Caller;

/// Calls given up by their client before they were looked at, beyond which the connection is closed as an attack
/// (CVE-2023-44487). The library's 20 also meets a client whose calls all ran into their deadline while the
/// server stood still, and would take its watches along.
const PENDING_RESETS: usize = 1024;
/// What a client has to read until its connection is closed, once it was told to go.
const LEAVE: Duration = Duration::from_secs(1);
/// The preface of HTTP/2, and the head of the frame that follows it: the client's settings.
const PREFACE_BYTES: usize = 24;
const FRAME_HEAD_BYTES: usize = 9;

/// How connections are served.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Open calls at most.
    pub streams: u32,
    /// A silent connection is asked for a sign of life so often, and has so long to give one.
    pub ping_interval: Duration,
    pub ping_timeout: Duration,
    /// How long the client has until its settings have come.
    pub handshake: Duration,
    /// How long a connection may be open without a call.
    pub idle: Duration,
    /// How long a reply, other than those of `endless`, waits for a client that reads nothing of it.
    pub reply_idle: Duration,
    /// Paths of calls whose replies wait for ever.
    pub endless: &'static [&'static str],
}

/// Who is at the other end of a connection; in the extensions of every request.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    /// Who the client is by the certificate that it has shown and the server has verified.
    pub certified: Option<Arc<Caller>>,
}

/// Why a connection came to its end, for those who count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Its client closed it, or broke the protocol.
    ByClient,
    /// The handshake took too long.
    Handshake,
    /// The handshake of TLS failed.
    Tls,
    /// There was no sign of life.
    Silent,
    /// There was no call for too long.
    Idle,
    /// Its place was needed.
    SentAway,
    /// The server is going down.
    Shutdown,
}

/// What others know of an open connection.
#[derive(Debug)]
pub struct Open {
    calls: AtomicUsize,
    /// Microseconds from `began` to the end of its last call.
    last_call: AtomicU64,
    began: Instant,
    away: CancellationToken,
}

impl Open {
    pub fn new() -> Arc<Open> {
        Arc::new(Open {
            calls: AtomicUsize::new(0),
            last_call: AtomicU64::new(0),
            began: Instant::now(),
            away: CancellationToken::new(),
        })
    }

    /// Since when it has had no call; `None` while it has one.
    pub fn idle_since(&self) -> Option<Instant> {
        let last_call = Duration::from_micros(self.last_call.load(Ordering::Acquire));
        (self.calls.load(Ordering::Acquire) == 0).then(|| self.began + last_call)
    }

    /// Tells its client to go, and closes it soon after.
    pub fn send_away(&self) {
        self.away.cancel();
    }

    /// Waits until its client is to go.
    pub async fn sent_away(&self) {
        self.away.cancelled().await;
    }

    pub fn is_sent_away(&self) -> bool {
        self.away.is_cancelled()
    }

    /// Counts a call for as long as what is returned is there.
    pub fn call(self: &Arc<Self>) -> InCall {
        self.calls.fetch_add(1, Ordering::AcqRel);
        InCall(Arc::clone(self))
    }
}

/// Counts a call while it is there.
#[derive(Debug)]
pub struct InCall(Arc<Open>);

impl Drop for InCall {
    fn drop(&mut self) {
        let since = u64::try_from(self.0.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.0.last_call.store(since, Ordering::Release);
        self.0.calls.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What has come over a connection.
#[derive(Debug, Default)]
struct Arrived {
    bytes: AtomicU64,
    /// The client's preface and settings are there.
    settled: AtomicBool,
}

/// A connection that counts what arrives.
struct Watched<T> {
    inner: T,
    arrived: Arc<Arrived>,
    /// Until it is settled: the first bytes.
    head: Vec<u8>,
}

impl<T> Watched<T> {
    fn saw(&mut self, bytes: &[u8]) {
        let before = self.arrived.bytes.fetch_add(bytes.len() as u64, Ordering::AcqRel);
        if self.arrived.settled.load(Ordering::Acquire) {
            return;
        }
        const HEAD: usize = PREFACE_BYTES + FRAME_HEAD_BYTES;
        let wanted = HEAD.saturating_sub(self.head.len());
        self.head.extend_from_slice(&bytes[..bytes.len().min(wanted)]);
        if let Some(&[first, second, third]) = self.head.get(PREFACE_BYTES..PREFACE_BYTES + 3)
            && self.head.len() == HEAD
        {
            let settings = u32::from_be_bytes([0, first, second, third]);
            if before + bytes.len() as u64 >= HEAD as u64 + u64::from(settings) {
                self.arrived.settled.store(true, Ordering::Release);
                self.head = Vec::new();
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Done<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        self.saw(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Done<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<Done<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// The body of a request as it comes over the wire.
struct Received {
    stream: RecvStream,
    all_data: bool,
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.all_data {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only for more than was received.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.all_data = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx));
        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}

/// The times at which something is due.
struct Dues {
    /// The handshake must be done.
    handshake: Option<Instant>,
    /// The next sign of life is asked for, or missed.
    life: Instant,
    /// What had arrived when somebody looked last, and whether a sign of life was asked for then.
    arrived: u64,
    asked: bool,
    /// A client that was told to go has had its time, unless it still has a call.
    left: Option<Instant>,
}

/// Serves a connection to its end, which takes its bytes from `account`. `stop` asks every client to finish its calls and go.
#[expect(clippy::too_many_arguments, reason = "it is called in one place")]
pub async fn serve<T, S, B>(
    io: T,
    peer: Peer,
    open: Arc<Open>,
    service: S,
    account: Arc<Account>,
    settings: &Settings,
    stop: CancellationToken,
    since: Instant,
) -> Ended
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Service<http::Request<Body>, Response = http::Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display + Send,
{
    let arrived = Arc::<Arrived>::default();
    let io = Watched { inner: io, arrived: Arc::clone(&arrived), head: Vec::new() };
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .data_frame_budget(LACKING_BYTES)
        .max_concurrent_streams(settings.streams)
        .max_header_list_size(16 * 1024)
        .max_pending_accept_reset_streams(PENDING_RESETS);
    let handshake = since + settings.handshake;
    let connection = tokio::select! {
        connection = builder.handshake(io) => match connection {
            Ok(connection) => connection,
            Err(_) => return Ended::ByClient,
        },
        () = sleep_until(handshake) => return Ended::Handshake,
        () = open.sent_away() => return Ended::SentAway,
        () = stop.cancelled() => return Ended::Shutdown,
    };
    let dues = Dues {
        handshake: Some(handshake),
        life: Instant::now() + settings.ping_interval,
        arrived: 0,
        asked: false,
        left: None,
    };
    let ending = None;
    let serving =
        Serving { connection, arrived, peer, account, open, service, settings, dues, ending };
    serving.run(stop).await
}

struct Serving<'a, T, S> {
    connection: Connection<Watched<T>, Bytes>,
    arrived: Arc<Arrived>,
    peer: Peer,
    account: Arc<Account>,
    open: Arc<Open>,
    service: S,
    settings: &'a Settings,
    dues: Dues,
    /// Why the client was told to go.
    ending: Option<Ended>,
}

impl<T, S, B> Serving<'_, T, S>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Service<http::Request<Body>, Response = http::Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display + Send,
{
    async fn run(mut self, stop: CancellationToken) -> Ended {
        let open = Arc::clone(&self.open);
        let (mut stopped, mut away) = (pin!(stop.cancelled()), pin!(open.away.cancelled()));
        let mut pings = self.connection.ping_pong();
        let mut timer = pin!(sleep_until(self.next_due()));
        loop {
            let next = poll_fn(|cx| {
                if let Poll::Ready(accepted) = self.connection.poll_accept(cx) {
                    return Poll::Ready(Next::Call(accepted));
                }
                if self.ending.is_none() {
                    if stopped.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(Next::Leave(Ended::Shutdown));
                    }
                    if away.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(Next::Leave(Ended::SentAway));
                    }
                }
                timer.as_mut().poll(cx).map(|()| Next::Due)
            })
            .await;
            match next {
                Next::Call(Some(Ok((request, respond)))) => {
                    self.begin(request, respond);
                    continue;
                }
                Next::Call(Some(Err(error))) => {
                    tracing::debug!(%error, "a connection broke");
                    return self.ending.unwrap_or(Ended::ByClient);
                }
                Next::Call(None) => return self.ending.unwrap_or(Ended::ByClient),
                Next::Leave(why) => self.leave(why),
                Next::Due => {
                    if let Some(ended) = self.due(pings.as_mut()) {
                        return ended;
                    }
                }
            }
            timer.as_mut().reset(self.next_due());
        }
    }

    /// Begins a call in a task of its own.
    fn begin(&mut self, request: http::Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let call = self.open.call();
        let (mut parts, stream) = request.into_parts();
        let idle = (!self.settings.endless.contains(&parts.uri.path()))
            .then_some(self.settings.reply_idle);
        parts.extensions.insert(self.peer.clone());
        parts.extensions.insert(Arc::clone(&self.account));
        let body = Body::new(Received { stream, all_data: false });
        let answer = self.service.call(http::Request::from_parts(parts, body));
        tokio::spawn(async move {
            let _call = call;
            let mut answer = pin!(answer);
            let answered = poll_fn(|cx| {
                if let Poll::Ready(answered) = answer.as_mut().poll(cx) {
                    return Poll::Ready(Some(answered));
                }
                // Its client has given it up, and the work with it.
                respond.poll_reset(cx).map(|_| None)
            });
            let Some(Ok(answered)) = answered.await else { return };
            // An error means that nobody waits for the reply any more.
            let _ = reply(respond, answered, idle).await;
        });
    }

    /// Asks the client to finish its calls and go.
    fn leave(&mut self, why: Ended) {
        self.ending = Some(why);
        self.connection.graceful_shutdown();
        // While the server goes down, whoever waits for the connections knows how long.
        self.dues.left = (why != Ended::Shutdown).then(|| Instant::now() + LEAVE);
    }

    /// When it will have been without a call for too long.
    fn idle_due(&self) -> Option<Instant> {
        let since = self.open.idle_since().unwrap_or_else(Instant::now);
        self.ending.is_none().then(|| since + self.settings.idle)
    }

    fn next_due(&self) -> Instant {
        let others = [self.dues.handshake, self.dues.left, self.idle_due()];
        others.into_iter().flatten().fold(self.dues.life, Instant::min)
    }

    /// Does what is due; the end of the connection, if it is that.
    fn due(&mut self, pings: Option<&mut h2::PingPong>) -> Option<Ended> {
        let now = Instant::now();
        if self.dues.left.is_some_and(|left| left <= now) {
            if self.open.idle_since().is_some() {
                return self.ending;
            }
            self.dues.left = Some(now + LEAVE);
        }
        if self.dues.handshake.is_some_and(|handshake| handshake <= now) {
            if !self.arrived.settled.load(Ordering::Acquire) {
                return Some(Ended::Handshake);
            }
            self.dues.handshake = None;
        }
        if self.dues.life <= now {
            let arrived = self.arrived.bytes.load(Ordering::Acquire);
            let silent = arrived == self.dues.arrived;
            if silent && self.dues.asked {
                return Some(Ended::Silent);
            }
            (self.dues.arrived, self.dues.asked) = (arrived, silent);
            self.dues.life = now + self.settings.ping_interval;
            if silent && let Some(pings) = pings {
                self.dues.life = now + self.settings.ping_timeout;
                // An earlier pong makes room for the next ping.
                let _ = pings.poll_pong(&mut Context::from_waker(Waker::noop()));
                let _ = pings.send_ping(h2::Ping::opaque());
            }
        }
        if self.idle_due().is_some_and(|due| due <= now) {
            self.leave(Ended::Idle);
        }
        None
    }
}

enum Next<T> {
    Call(T),
    Leave(Ended),
    Due,
}

/// Nobody waits for a reply any more.
struct Unread;

impl From<h2::Error> for Unread {
    fn from(_: h2::Error) -> Self {
        Unread
    }
}

/// Sends a reply as fast as its client takes it. What the client has no room for is not asked of the body.
async fn reply<B>(
    mut respond: SendResponse<Bytes>,
    answered: http::Response<B>,
    idle: Option<Duration>,
) -> Result<(), Unread>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let (head, mut body) = answered.into_parts();
    let whole = body.is_end_stream();
    let mut send = respond.send_response(http::Response::from_parts(head, ()), whole)?;
    if whole {
        return Ok(());
    }
    loop {
        send.reserve_capacity(1);
        room(&mut send, idle).await?;
        let frame = poll_fn(|cx| {
            if send.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Unread));
            }
            Pin::new(&mut body).poll_frame(cx).map(Ok)
        });
        let frame = match frame.await? {
            None => return Ok(send.send_data(Bytes::new(), true)?),
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                tracing::debug!(%error, "a reply broke off");
                send.send_reset(Reason::INTERNAL_ERROR);
                return Err(Unread);
            }
        };
        match frame.into_data() {
            Ok(data) => pass(&mut send, data, body.is_end_stream(), idle).await?,
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_else(|_| HeaderMap::new());
                // Room that was asked for and is not needed belongs to the connection.
                send.reserve_capacity(0);
                return Ok(send.send_trailers(trailers)?);
            }
        }
    }
}

/// Hands on as much of the data at a time as the client has room for.
async fn pass(
    send: &mut SendStream<Bytes>,
    mut data: Bytes,
    last: bool,
    idle: Option<Duration>,
) -> Result<(), Unread> {
    loop {
        if data.is_empty() {
            return if last { Ok(send.send_data(data, true)?) } else { Ok(()) };
        }
        send.reserve_capacity(data.len());
        let now = room(send, idle).await?.min(data.len());
        let piece = data.split_to(now);
        let last = last && data.is_empty();
        send.send_data(piece, last)?;
        if last {
            return Ok(());
        }
    }
}

/// Waits until something may be sent: how much. A client that reads nothing for too long is not waited for.
async fn room(send: &mut SendStream<Bytes>, idle: Option<Duration>) -> Result<usize, Unread> {
    let at_once = send.capacity();
    if at_once > 0 {
        return Ok(at_once);
    }
    let waiting = poll_fn(|cx| {
        loop {
            match ready!(send.poll_capacity(cx)) {
                Some(Ok(0)) => {}
                Some(Ok(room)) => return Poll::Ready(Ok(room)),
                Some(Err(_)) | None => return Poll::Ready(Err(Unread)),
            }
        }
    });
    let Some(idle) = idle else { return waiting.await };
    match timeout(idle, waiting).await {
        Ok(room) => room,
        Err(_) => {
            send.send_reset(Reason::CANCEL);
            Err(Unread)
        }
    }
}
