//! Takes what clients stream off the wire before the work on it, within a bound.
//!
//! HTTP/2 flow control is what slows a client down, and it counts bytes. The library also counts DATA frames smaller
//! than 256 bytes that nobody has taken yet, and ends the whole connection (GOAWAY, `too_many_data_frames`) when
//! what they lack to 256 bytes adds up to half the connection's window: an honest client that sends small
//! records as fast as its window allows, while the store is slow. So frames are taken as they come, whether or not
//! the handler wants the next message, until `TAKEN_BYTES` of a stream wait; and the windows are such that what a few
//! stalled streams have left on the wire stays below the library's count.

use std::collections::{HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use bytes::{Bytes, BytesMut};
use futures::task::AtomicWaker;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tonic::Status;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

/// What a client may send on one stream before the server has taken it.
pub const STREAM_WINDOW: u32 = 512 * 1024;
/// The same for all streams of a connection together.
pub const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;
/// Bytes of one stream that are taken and wait for the handler, at most.
const TAKEN_BYTES: usize = 1024 * 1024;
/// Frames smaller than this are gathered: each would keep the buffer it was read into.
const SMALL_BYTES: usize = 4 * 1024;
/// Small frames gathered in one piece, at least.
const PIECE_BYTES: usize = 16 * 1024;

/// A message of Ingest with an id of its own is hardly smaller.
const SMALL_MESSAGE: u32 = 64;
/// So many streams of a connection may stand still with their windows full of such messages, one in each frame.
const STALLED_STREAMS: u32 = 8;
/// What the library lets the frames of a connection lack.
const LACKING: u32 = CONNECTION_WINDOW / 2;
const _: () = assert!(
    STALLED_STREAMS * (STREAM_WINDOW / SMALL_MESSAGE) * (256 - SMALL_MESSAGE) <= LACKING,
    "what stalled streams have left on the wire must not end their connection"
);

/// The body of a request that is read ahead.
struct State {
    inner: Body,
    pieces: VecDeque<Bytes>,
    /// Small frames after all pieces.
    gathered: BytesMut,
    /// Of pieces and gathered.
    bytes: usize,
    /// After all bytes.
    end: Option<End>,
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
    /// Takes in the next frame, if there is one.
    fn poll_inner(&mut self, waker: &Waker) -> Poll<()> {
        if self.end.is_some() {
            return Poll::Ready(());
        }
        let frame = Pin::new(&mut self.inner);
        let frame = match http_body::Body::poll_frame(frame, &mut Context::from_waker(waker)) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(frame) => frame,
        };
        match frame.map(|frame| frame.map(Frame::into_data)) {
            None => self.end = Some(End::Closed),
            Some(Err(error)) => self.end = Some(End::Failed(error)),
            Some(Ok(Ok(data))) => self.add(data),
            Some(Ok(Err(frame))) => {
                self.end = Some(frame.into_trailers().map_or(End::Closed, End::Trailers));
            }
        }
        Poll::Ready(())
    }

    fn add(&mut self, data: Bytes) {
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

    fn next(&mut self) -> Option<Bytes> {
        let piece = match self.pieces.pop_front() {
            Some(piece) => piece,
            None if self.gathered.is_empty() => return None,
            None => self.gathered.split().freeze(),
        };
        self.bytes -= piece.len();
        Some(piece)
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
        loop {
            if let Some(piece) = state.next() {
                if state.bytes + piece.len() >= TAKEN_BYTES {
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
                return Poll::Pending;
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = self.0.state.lock();
        state.bytes == 0
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
        while state.bytes < TAKEN_BYTES && state.end.is_none() && state.poll_inner(waker).is_ready()
        {
        }
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
fn eager(inner: Body) -> (EagerBody, Taking) {
    let wakers = Arc::<Wakers>::default();
    let state =
        State { inner, pieces: VecDeque::new(), gathered: BytesMut::new(), bytes: 0, end: None };
    let waker = Waker::from(Arc::clone(&wakers));
    let shared = Arc::new(Shared { state: Mutex::new(state), wakers, waker });
    (EagerBody(Arc::clone(&shared)), Taking(shared))
}

/// Layer that reads the requests of these methods ahead until they are answered. A method that answers before it has
/// read its request goes on with `Taking`.
#[derive(Clone)]
pub struct Eager {
    paths: Arc<HashSet<String>>,
}

impl Eager {
    /// For all methods of this encoded file descriptor set whose requests are streams.
    pub fn described(set: &[u8]) -> Self {
        use prost::Message as _;
        // Made by our own build; a set that cannot be read only costs its methods the reading ahead.
        let set = prost_types::FileDescriptorSet::decode(set).unwrap_or_default();
        let services = set.file.iter().flat_map(|file| {
            file.service
                .iter()
                .map(|service| (format!("{}.{}", file.package(), service.name()), service))
        });
        let paths = services.flat_map(|(name, service)| {
            let streams = service.method.iter().filter(|method| method.client_streaming());
            streams.map(move |method| format!("/{name}/{}", method.name()))
        });
        Eager { paths: Arc::new(paths.collect()) }
    }
}

impl<S> Layer<S> for Eager {
    type Service = EagerService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        EagerService { inner, paths: Arc::clone(&self.paths) }
    }
}

/// See `Eager`.
#[derive(Clone)]
pub struct EagerService<S> {
    inner: S,
    paths: Arc<HashSet<String>>,
}

impl<S> Service<http::Request<Body>> for EagerService<S>
where
    S: Service<http::Request<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Beside<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if !self.paths.contains(request.uri().path()) {
            return Beside { work: self.inner.call(request), taking: None };
        }
        let (mut parts, body) = request.into_parts();
        let (body, taking) = eager(body);
        parts.extensions.insert(taking.clone());
        let request = http::Request::from_parts(parts, Body::new(body));
        Beside { work: self.inner.call(request), taking: Some(taking) }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;
    use tokio::sync::oneshot;

    use super::*;

    /// A body as the transport hands it over, and how much of it was taken.
    struct Wire(mpsc::UnboundedReceiver<Result<Bytes, Status>>);

    impl http_body::Body for Wire {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.poll_recv(context).map(|next| next.map(|next| next.map(Frame::data)))
        }
    }

    type Frames = mpsc::UnboundedSender<Result<Bytes, Status>>;

    fn wire() -> (Frames, EagerBody, Taking) {
        let (frames, receiver) = mpsc::unbounded_channel();
        let (body, taking) = eager(Body::new(Wire(receiver)));
        (frames, body, taking)
    }

    async fn read(body: &mut EagerBody) -> Option<Result<Bytes, Status>> {
        let frame = std::future::poll_fn(|context| {
            http_body::Body::poll_frame(Pin::new(&mut *body), context)
        });
        Some(frame.await?.map(|frame| frame.into_data().expect("data")))
    }

    fn waiting(taking: &Taking) -> usize {
        taking.0.state.lock().bytes
    }

    #[tokio::test]
    async fn frames_are_taken_while_the_handler_does_something_else() {
        let (frames, mut body, taking) = wire();
        let (go_on, work) = oneshot::channel::<()>();
        let working = tokio::spawn(taking.clone().beside(work));
        for number in 0..1000_u32 {
            frames.send(Ok(Bytes::copy_from_slice(&number.to_be_bytes()))).expect("open");
        }
        while waiting(&taking) < 4000 {
            tokio::task::yield_now().await;
        }
        let all = read(&mut body).await.expect("open").expect("bytes");
        let expected: Vec<u8> = (0..1000_u32).flat_map(u32::to_be_bytes).collect();
        assert_eq!(all, expected, "in order, and gathered");
        assert_eq!(waiting(&taking), 0);
        go_on.send(()).expect("it works");
        working.await.expect("it ends").expect("sent");
    }

    #[tokio::test]
    async fn no_more_is_taken_than_the_bound_until_some_is_read() {
        let (frames, mut body, taking) = wire();
        let (_go_on, work) = oneshot::channel::<()>();
        let working = tokio::spawn(taking.clone().beside(work));
        let frame = Bytes::from(vec![7; 64 * 1024]);
        for _ in 0..32 {
            frames.send(Ok(frame.clone())).expect("open");
        }
        while waiting(&taking) < TAKEN_BYTES {
            tokio::task::yield_now().await;
        }
        for _ in 0..10 {
            tokio::task::yield_now().await;
            assert_eq!(waiting(&taking), TAKEN_BYTES);
        }
        let mut bytes = read(&mut body).await.expect("open").expect("bytes").len();
        while waiting(&taking) < TAKEN_BYTES {
            tokio::task::yield_now().await;
        }
        drop(frames);
        while let Some(more) = read(&mut body).await {
            bytes += more.expect("bytes").len();
        }
        assert_eq!(bytes, 32 * 64 * 1024);
        working.abort();
    }

    #[tokio::test]
    async fn small_and_large_frames_stay_in_order_and_the_end_comes_last() {
        let (frames, mut body, taking) = wire();
        for (byte, length) in [(1, 10), (2, 20), (3, SMALL_BYTES), (4, 1)] {
            frames.send(Ok(Bytes::from(vec![byte; length]))).expect("open");
        }
        frames.send(Err(Status::aborted("cut off"))).expect("open");
        let noop = Waker::noop();
        taking.poll(&Context::from_waker(noop));
        let mut all = Vec::new();
        let end = loop {
            match read(&mut body).await {
                Some(Ok(bytes)) => all.extend_from_slice(&bytes),
                end => break end,
            }
        };
        let expected = [vec![1; 10], vec![2; 20], vec![3; SMALL_BYTES], vec![4; 1]].concat();
        assert_eq!(all, expected);
        assert_eq!(end.expect("an error").expect_err("an error").message(), "cut off");
        assert!(read(&mut body).await.is_none());
    }

    #[tokio::test]
    async fn the_reader_hears_of_what_comes_later() {
        let (frames, mut body, taking) = wire();
        let reading = tokio::spawn(async move { read(&mut body).await });
        tokio::task::yield_now().await;
        taking.poll(&Context::from_waker(Waker::noop()));
        frames.send(Ok(Bytes::from_static(b"late"))).expect("open");
        let read = reading.await.expect("it reads").expect("open").expect("bytes");
        assert_eq!(read, "late");
    }

    #[test]
    fn all_streams_of_clients_are_read_ahead() {
        let Eager { paths } = Eager::described(crate::proto::DESCRIPTORS);
        let mut paths: Vec<_> = paths.iter().map(String::as_str).collect();
        paths.sort_unstable();
        assert_eq!(
            paths,
            [
                "/stepwell.v1.ArtifactService/UploadArtifact",
                "/stepwell.v1.IngestService/Ingest",
                "/stepwell.v1.MetricService/StreamMetrics",
            ]
        );
    }
}
