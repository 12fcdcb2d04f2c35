//! A client that asks and does not read: every window of HTTP/2 is in the test's hand.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use prost::Message;
use tokio::net::TcpStream;
use tokio::sync::Notify;

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
fn framed(message: &impl Message) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.encoded_len()).expect("a small message"));
    message.encode(&mut framed).expect("there is room");
    framed.freeze()
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
        let request = http::Request::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("a request");
        let mut send = in_time("a stream", self.send.clone().ready()).await.expect("open");
        let (asked, mut body) = send.send_request(request, false).expect("sent");
        for (index, message) in messages.iter().enumerate() {
            let last = !goes_on && index + 1 == messages.len();
            body.send_data(framed(message), last).expect("sent");
        }
        self.asked.push(asked);
        self.requests.push(body);
        if self.asked.len() >= AT_ONCE {
            self.answered().await;
        }
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

    /// From now on not even the socket is read.
    pub fn freeze(&self) {
        self.freeze.notify_one();
    }
}
