//! A client that asks and does not read: every window of HTTP/2 is in the test's hand.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use prost::Message;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tonic::Status;

use super::in_time;

/// Calls that wait for their headers. More small frames at once are an attack to the server.
const AT_ONCE: usize = 32;

/// How much the client takes without ever saying that it wants more.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    pub stream: u32,
    pub connection: u32,
}

impl Windows {
    /// Not a byte of any reply.
    pub const ZERO: Windows = Windows { stream: 0, connection: 65_535 };
    /// The beginning of each reply.
    pub const PAUSE: Windows = Windows { stream: 256, connection: 16 * 1024 * 1024 };
    /// As much as one reply of some size has.
    pub const ONE_REPLY: Windows = Windows { stream: 16 * 1024 * 1024, connection: 65_535 };
    /// Whatever comes.
    pub const WIDE: Windows = Windows { stream: 256 * 1024, connection: 1024 * 1024 * 1024 };
}

/// One connection, and the replies that nobody reads.
pub struct Deaf {
    send: SendRequest<Bytes>,
    address: String,
    /// Stops the reading of the socket.
    freeze: Arc<Notify>,
    asked: Vec<ResponseFuture>,
    replies: Vec<RecvStream>,
    requests: Vec<SendStream<Bytes>>,
}

/// A message as gRPC sends it.
pub fn framed(message: &[u8]) -> Bytes {
    with_flag(0, message)
}

/// The same with this flag: 1 for one that is compressed.
pub fn with_flag(flag: u8, message: &[u8]) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(flag);
    framed.put_u32(u32::try_from(message.len()).expect("a small message"));
    framed.put_slice(message);
    framed.freeze()
}

/// How a call ended, as its headers or trailers say.
fn told(headers: &http::HeaderMap) -> Option<Status> {
    Status::from_header_map(headers)
}

impl Deaf {
    pub async fn connect(address: &str, windows: Windows) -> Deaf {
        let socket = TcpStream::connect(address).await.expect("connected");
        let mut builder = Builder::new();
        builder
            .initial_window_size(windows.stream)
            .initial_connection_window_size(windows.connection);
        let (send, mut connection) = builder.handshake(socket).await.expect("HTTP/2");
        let freeze = Arc::new(Notify::new());
        let frozen = Arc::clone(&freeze);
        tokio::spawn(async move {
            tokio::select! {
                _ = &mut connection => {}
                // It stays open.
                () = frozen.notified() => std::future::pending().await,
            }
        });
        Deaf {
            send,
            address: address.to_owned(),
            freeze,
            asked: Vec::new(),
            replies: Vec::new(),
            requests: Vec::new(),
        }
    }

    /// Begins a call with these messages. One that goes on may send more.
    pub async fn ask<M: Message>(&mut self, path: &str, messages: &[M], goes_on: bool) {
        let (asked, mut body) = self.open(path, &[]).await;
        for (index, message) in messages.iter().enumerate() {
            let last = !goes_on && index + 1 == messages.len();
            body.send_data(framed(&message.encode_to_vec()), last).expect("sent");
        }
        self.asked.push(asked);
        self.requests.push(body);
        if self.asked.len() >= AT_ONCE {
            self.answered().await;
        }
    }

    async fn open(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let mut request = http::Request::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a request");
        let mut send = in_time("a stream", self.send.clone().ready()).await.expect("open");
        send.send_request(request, false).expect("sent")
    }

    /// Begins a call whose request does not end.
    pub async fn begin(&mut self, path: &str, headers: &[(&str, &str)], part: Bytes) {
        let (asked, mut body) = self.open(path, headers).await;
        body.send_data(part, false).expect("sent");
        self.asked.push(asked);
        self.requests.push(body);
    }

    /// Begins a call with a whole request.
    pub async fn begin_whole(&mut self, path: &str, headers: &[(&str, &str)], message: Bytes) {
        let (asked, mut body) = self.open(path, headers).await;
        body.send_data(message, true).expect("sent");
        self.asked.push(asked);
    }

    /// The first of all these calls that is refused.
    pub async fn first_refusal(&mut self) -> Status {
        let mut asked: FuturesUnordered<_> = self.asked.drain(..).collect();
        loop {
            let answer = in_time("a refusal", asked.next()).await.expect("one is refused");
            let answer = answer.expect("an answer");
            match told(answer.headers()) {
                Some(status) => {
                    self.asked = asked.into_iter().collect();
                    return status;
                }
                None => self.replies.push(answer.into_body()),
            }
        }
    }

    /// One call to its end: how it ended. Its messages are read and forgotten.
    pub async fn outcome(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        part: Option<Bytes>,
        ends: bool,
    ) -> Status {
        let (asked, mut body) = self.open(path, headers).await;
        if part.is_some() || ends {
            // It may have been answered before, and then takes no more.
            let _ = body.send_data(part.unwrap_or_default(), ends);
        }
        let answer = in_time(path, asked).await.expect("an answer");
        assert_eq!(answer.status(), http::StatusCode::OK);
        if let Some(status) = told(answer.headers()) {
            return status;
        }
        let mut reply = answer.into_body();
        while let Some(data) = in_time(path, reply.data()).await {
            let data = data.expect("the reply goes on");
            reply.flow_control().release_capacity(data.len()).expect("it was taken");
        }
        let trailers = in_time(path, reply.trailers()).await.expect("an end").expect("trailers");
        told(&trailers).expect("a status")
    }

    /// Waits until each call was answered with headers, which no window holds back, and keeps the replies unread.
    pub async fn answered(&mut self) {
        for asked in self.asked.drain(..) {
            let answer = in_time("the headers of a reply", asked).await.expect("answered");
            assert_eq!(answer.status(), http::StatusCode::OK);
            let status = answer.headers().get("grpc-status");
            assert!(status.is_none(), "refused: {:?}", answer.headers());
            self.replies.push(answer.into_body());
        }
    }

    /// Waits for the first bytes of each reply, which are not acknowledged.
    pub async fn begun(&mut self) {
        for reply in &mut self.replies {
            in_time("the beginning of a reply", reply.data())
                .await
                .expect("it begins")
                .expect("bytes");
        }
    }

    /// The replies that were answered, in the order in which they were.
    pub fn replies(&mut self) -> &mut [RecvStream] {
        &mut self.replies
    }

    /// How the server gives a reply up: the reason, or `None` if the reply ends by itself.
    pub async fn reset(reply: &mut RecvStream) -> Option<h2::Reason> {
        loop {
            match reply.data().await? {
                Ok(_) => {}
                Err(error) => return error.reason(),
            }
        }
    }

    /// From now on not even the socket is read.
    pub fn freeze(&self) {
        self.freeze.notify_one();
    }
}
