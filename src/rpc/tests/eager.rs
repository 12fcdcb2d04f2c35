//! Tests of reading streams ahead.

use tokio::sync::mpsc;
use tokio::sync::oneshot;

use super::*;
use crate::rpc::budget::Budget;

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
    let rules = Rules { message_bytes: 64 * 1024 * 1024, ..Default::default() };
    let (body, taking) = eager(Body::new(Wire(receiver)), rules);
    (frames, body, taking)
}

async fn read(body: &mut EagerBody) -> Option<Result<Bytes, Status>> {
    let frame =
        std::future::poll_fn(|context| http_body::Body::poll_frame(Pin::new(&mut *body), context));
    Some(frame.await?.map(|frame| frame.into_data().expect("data")))
}

/// A message of gRPC.
fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("small");
    [&[0][..], &length.to_be_bytes(), message].concat().into()
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
        frames.send(Ok(framed(&number.to_be_bytes()))).expect("open");
    }
    while waiting(&taking) < 9000 {
        tokio::task::yield_now().await;
    }
    let all = read(&mut body).await.expect("open").expect("bytes");
    let expected: Vec<u8> = (0..1000_u32).flat_map(|n| framed(&n.to_be_bytes())).collect();
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
    let frame = framed(&vec![7; 64 * 1024 - PREFIX_BYTES]);
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

fn packed(message: &[u8]) -> Vec<u8> {
    let packed = zstd::encode_all(message, 3).expect("memory");
    let length = u32::try_from(packed.len()).expect("small");
    [&[1][..], &length.to_be_bytes(), &packed].concat()
}

#[tokio::test]
async fn compressed_messages_of_one_frame_are_unpacked_as_they_are_wanted() {
    const MIB: usize = 1024 * 1024;
    let (frames, receiver) = mpsc::unbounded_channel();
    let rules =
        Rules { encoding: Some(Encoding::Zstd), message_bytes: 16 * MIB, ..Default::default() };
    let (mut body, taking) = eager(Body::new(Wire(receiver)), rules);
    // A plain one, an empty one, bombs, and the beginning of the next in the same frame.
    let bomb = packed(&vec![0; 15 * MIB]);
    let frame = [&framed(b"plain")[..], &packed(b""), &bomb.repeat(7), &packed(b"last")].concat();
    assert!(frame.len() < FRAME_BYTES, "{}", frame.len());
    let (now, later) = frame.split_at(frame.len() - 3);
    frames.send(Ok(Bytes::copy_from_slice(now))).expect("open");
    let mut all = Vec::new();
    while all.len() < 7 * 15 * MIB {
        taking.poll(&Context::from_waker(Waker::noop()));
        assert!(waiting(&taking) < 16 * MIB, "{}", waiting(&taking));
        let bytes = read(&mut body).await.expect("open").expect("bytes");
        assert!(bytes.len() < 16 * MIB, "{}", bytes.len());
        all.extend_from_slice(&bytes);
    }
    frames.send(Ok(Bytes::copy_from_slice(later))).expect("open");
    drop(frames);
    while let Some(more) = read(&mut body).await {
        all.extend_from_slice(&more.expect("bytes"));
    }
    let zeros = framed(&vec![0; 15 * MIB]).repeat(7);
    let expected = [&framed(b"plain")[..], &framed(b""), &zeros, &framed(b"last")].concat();
    assert!(all == expected, "in order, and whole");
}

#[tokio::test]
async fn small_and_large_frames_stay_in_order_and_the_end_comes_last() {
    let (frames, mut body, taking) = wire();
    for (byte, length) in [(1, 10), (2, 20), (3, SMALL_BYTES), (4, 1)] {
        frames.send(Ok(framed(&vec![byte; length]))).expect("open");
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
    let messages = [vec![1; 10], vec![2; 20], vec![3; SMALL_BYTES], vec![4; 1]];
    let expected = messages.map(|message| framed(&message)).concat();
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
    frames.send(Ok(framed(b"late"))).expect("open");
    let read = reading.await.expect("it reads").expect("open").expect("bytes");
    assert_eq!(read, framed(b"late"));
}

#[tokio::test]
async fn only_whole_messages_are_handed_over_however_the_bytes_come() {
    let sizes = [0, 1, 10, SMALL_BYTES, 3, 20_000, 0, 7];
    let messages = sizes.map(|size| framed(&vec![9; size])).concat();
    for step in [1, 4, 5, 6, 1000, 16 * 1024, messages.len()] {
        let (frames, mut body, _taking) = wire();
        for piece in messages.chunks(step) {
            frames.send(Ok(Bytes::copy_from_slice(piece))).expect("open");
        }
        drop(frames);
        let mut all = Vec::new();
        while let Some(piece) = read(&mut body).await {
            let piece = piece.expect("bytes");
            let mut rest = &piece[..];
            while !rest.is_empty() {
                let length = unpack::length(rest).expect("a prefix");
                rest = rest.get(PREFIX_BYTES + length..).expect("a whole message");
            }
            all.extend_from_slice(&piece);
        }
        assert_eq!(all, messages, "in pieces of {step}");
    }
}

#[tokio::test]
async fn what_does_not_come_whole_or_is_too_large_is_handed_over_as_it_is() {
    let cut = framed(&[1; 100]).slice(..50);
    let too_large = Bytes::from_static(&[0, 0x7f, 0xff, 0xff, 0xff, 1, 2, 3]);
    for odd in [cut, too_large] {
        let (frames, mut body, _taking) = wire();
        for piece in odd.chunks(3) {
            frames.send(Ok(Bytes::copy_from_slice(piece))).expect("open");
        }
        drop(frames);
        let mut all = Vec::new();
        while let Some(piece) = read(&mut body).await {
            all.extend_from_slice(&piece.expect("bytes"));
        }
        assert_eq!(all, odd);
    }
}

#[tokio::test]
async fn what_there_is_no_room_for_is_left_on_the_wire() {
    let budget = Budget::new(400_000, 1);
    let account = budget.account();
    let (frames, receiver) = mpsc::unbounded_channel();
    let rules = Rules {
        message_bytes: 1024 * 1024,
        account: Some(Arc::clone(&account)),
        ..Default::default()
    };
    let (mut body, taking) = eager(Body::new(Wire(receiver)), rules);
    for _ in 0..40 {
        frames.send(Ok(framed(&[1; 10_000]))).expect("open");
    }
    drop(frames);
    taking.poll(&Context::from_waker(Waker::noop()));
    assert!((80_000..=100_000).contains(&waiting(&taking)), "{}", waiting(&taking));
    assert!((80_000..=100_000).contains(&budget.taken()), "{}", budget.taken());
    let mut bytes = 0;
    while let Some(piece) = read(&mut body).await {
        bytes += piece.expect("bytes").len();
        assert!(budget.taken() <= 100_000, "{}", budget.taken());
    }
    assert_eq!(bytes, 40 * 10_005);
    drop((body, taking));
    assert_eq!(budget.taken(), 0);
}

#[tokio::test]
async fn only_a_client_that_is_waited_for_stands_still() {
    let begin = |between: bool| {
        let (frames, receiver) = mpsc::unbounded_channel();
        let idle = Some(Duration::from_millis(50));
        let rules = Rules { message_bytes: 1 << 20, idle, between, ..Default::default() };
        let (body, _) = eager(Body::new(Wire(receiver)), rules);
        (frames, body)
    };
    // In the middle of a message, and where there is none in an upload.
    for (between, sent) in [(true, &framed(&[1; 9])[..7]), (false, &[][..]), (false, &[0][..])] {
        let (frames, mut body) = begin(between);
        frames.send(Ok(Bytes::copy_from_slice(sent))).expect("open");
        let end = read(&mut body).await.expect("an end").expect_err("it stands still");
        assert_eq!(end.code(), tonic::Code::DeadlineExceeded);
        drop(frames);
    }
    // Between messages of other streams a client may take its time.
    let (frames, mut body) = begin(true);
    frames.send(Ok(framed(b"one"))).expect("open");
    read(&mut body).await.expect("open").expect("bytes");
    let next = tokio::time::timeout(Duration::from_millis(200), read(&mut body)).await;
    assert!(next.is_err(), "{next:?}");
    frames.send(Ok(framed(b"two"))).expect("open");
    assert!(read(&mut body).await.expect("open").is_ok());
}

#[tokio::test]
async fn messages_that_straddle_frames_are_no_progress_where_nobody_may_wait_between_them() {
    for between in [false, true] {
        let (frames, receiver) = mpsc::unbounded_channel();
        let idle = Some(Duration::from_secs(1));
        let rules = Rules { message_bytes: 1024, idle, between, ..Default::default() };
        let (mut body, _) = eager(Body::new(Wire(receiver)), rules);
        let message = framed(b"x");
        let (head, tail) = message.split_at(1);
        frames.send(Ok(Bytes::copy_from_slice(head))).expect("open");
        // Each frame ends a message and begins the next, more often than the client may stand still.
        let straddling: Bytes = [tail, head].concat().into();
        let mut whole = 0;
        let mut every = tokio::time::interval(Duration::from_millis(20));
        let end = loop {
            tokio::select! {
                read = read(&mut body) => match read.expect("it goes on") {
                    Ok(bytes) => whole += bytes.len() / message.len(),
                    Err(end) => break Some(end),
                },
                _ = every.tick() => drop(frames.send(Ok(straddling.clone()))),
            }
            // For twice as long as it may stand still.
            if between && whole > 100 {
                break None;
            }
        };
        assert_eq!(end.is_none(), between, "{end:?} after {whole} messages");
    }
}

#[test]
fn all_streams_of_clients_are_read_ahead() {
    let eager = Eager::described(crate::proto::DESCRIPTORS, 1, Duration::ZERO);
    let mut paths: Vec<_> = eager.methods.keys().map(String::as_str).collect();
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
