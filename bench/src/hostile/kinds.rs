//! The hostile clients. Each does one thing as much as it can until it is told to stop, and comes back when it was sent away.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::{Builder, SendRequest};
use prost::Message;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use stepwell::proto::execution_service_client::ExecutionServiceClient;
use stepwell::proto::upload_artifact_request::Part;
use stepwell::proto::{ArtifactDescription, UploadArtifactRequest, WatchExecutionsRequest};

use super::{APP_NAME, Counted, create};
use crate::connect::Server;

const CREATE: &str = "/stepwell.v1.ExecutionService/CreateExecution";
const WATCH: &str = "/stepwell.v1.ExecutionService/WatchExecutions";
const UPLOAD: &str = "/stepwell.v1.ArtifactService/UploadArtifact";
/// Before it comes back.
const AGAIN: Duration = Duration::from_millis(100);
const MIB: usize = 1024 * 1024;
/// Calls in flight on one connection.
const CALLS_PER_CONNECTION: usize = 1000;

/// What a hostile client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// 400 watches on 4 connections of which nothing is read.
    Unread,
    /// 1,000 connections that say nothing.
    Silent,
    /// 256 requests on 8 connections that announce 16 MiB, of which 1 MiB comes.
    Unfinished,
    /// 1,000 uploads on 2 connections that bring no bytes.
    Uploads,
    /// Calls that are reset as soon as they are begun, as fast as they are taken.
    Resets,
    /// Not hostile: as many calls in flight as the server does best with.
    Best,
    /// As many calls in flight as `--calls` says, each followed by the next at once, however it ended.
    Calls,
}

impl Kind {
    pub const ALL: [Kind; 7] = [
        Kind::Unread,
        Kind::Silent,
        Kind::Unfinished,
        Kind::Uploads,
        Kind::Resets,
        Kind::Best,
        Kind::Calls,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Unread => "unread watches",
            Kind::Silent => "silent connections",
            Kind::Unfinished => "unfinished messages",
            Kind::Uploads => "half-open uploads",
            Kind::Resets => "rapid reset",
            Kind::Best => "best rate",
            Kind::Calls => "calls in flight",
        }
    }

    pub fn begin(
        self,
        clients: &mut JoinSet<()>,
        server: &Server,
        calls: usize,
        counted: &Arc<Counted>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let address = server.address().trim_start_matches("http://").to_owned();
        let connections = match self {
            Kind::Unread => 4,
            Kind::Silent => 1000,
            Kind::Unfinished => 8,
            Kind::Uploads => 2,
            Kind::Resets => 1,
            Kind::Best => calls / 32,
            Kind::Calls => calls.div_ceil(CALLS_PER_CONNECTION),
        };
        for _ in 0..connections {
            if matches!(self, Kind::Best | Kind::Calls) {
                let channel = server.for_writes()?;
                for _ in 0..calls / connections {
                    let executions = ExecutionServiceClient::new(channel.clone());
                    clients.spawn(call(executions, Arc::clone(counted), stop.clone()));
                }
                continue;
            }
            let (address, stop) = (address.clone(), stop.clone());
            clients.spawn(async move {
                while !stop.is_cancelled() {
                    tokio::select! {
                        () = stop.cancelled() => break,
                        _ = self.once(&address) => {}
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            });
        }
        Ok(())
    }

    /// One connection, until it is closed.
    async fn once(self, address: &str) -> anyhow::Result<()> {
        let socket = TcpStream::connect(address).await?;
        if self == Kind::Silent {
            // Ends when the server closes it.
            socket.readable().await?;
            return Ok(());
        }
        let mut builder = Builder::new();
        if self == Kind::Unread {
            builder.initial_window_size(0);
        }
        let (send, connection) = builder.handshake::<_, Bytes>(socket).await?;
        let calls = async {
            let mut open = Vec::new();
            match self {
                Kind::Unread => {
                    for _ in 0..100 {
                        open.push(ask(&send, address, WATCH, &watch()).await?);
                    }
                }
                Kind::Unfinished => {
                    for _ in 0..32 {
                        let mut part = announced(16 * MIB);
                        part.put_bytes(0, MIB);
                        open.push(begin(&send, address, CREATE, part.freeze()).await?);
                    }
                }
                Kind::Uploads => {
                    for _ in 0..500 {
                        let part = framed(&description());
                        open.push(begin(&send, address, UPLOAD, part).await?);
                    }
                }
                Kind::Resets => loop {
                    let (_, mut body) = begin(&send, address, CREATE, framed(&create())).await?;
                    body.send_reset(h2::Reason::CANCEL);
                    // The connection has its turn.
                    tokio::task::yield_now().await;
                },
                Kind::Silent | Kind::Best | Kind::Calls => {}
            }
            std::future::pending::<anyhow::Result<()>>().await
        };
        tokio::select! {
            ended = connection => Ok(ended?),
            ended = calls => ended,
        }
    }
}

type Call = (h2::client::ResponseFuture, h2::SendStream<Bytes>);

async fn begin(
    send: &SendRequest<Bytes>,
    address: &str,
    path: &str,
    part: Bytes,
) -> anyhow::Result<Call> {
    let request = http::Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let mut send = send.clone().ready().await?;
    let (reply, mut body) = send.send_request(request, false)?;
    body.send_data(part, false).context("it takes no more")?;
    Ok((reply, body))
}

/// A call with a whole request of which no reply is read.
async fn ask(
    send: &SendRequest<Bytes>,
    address: &str,
    path: &str,
    message: &impl Message,
) -> anyhow::Result<Call> {
    let (reply, mut body) = begin(send, address, path, framed(message)).await?;
    body.send_data(Bytes::new(), true)?;
    Ok((reply, body))
}

fn announced(length: usize) -> BytesMut {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    bytes
}

fn framed(message: &impl Message) -> Bytes {
    let encoded = message.encode_to_vec();
    let mut bytes = announced(encoded.len());
    bytes.extend_from_slice(&encoded);
    bytes.freeze()
}

fn watch() -> WatchExecutionsRequest {
    WatchExecutionsRequest { include_steps: true, ..Default::default() }
}

fn description() -> UploadArtifactRequest {
    let description = ArtifactDescription {
        execution_id: APP_NAME.to_owned(),
        artifact_name: "never".to_owned(),
        artifact_type: "log".to_owned(),
        ..Default::default()
    };
    UploadArtifactRequest { part: Some(Part::Description(description)) }
}

/// One call after the other.
async fn call(
    mut executions: ExecutionServiceClient<crate::connect::Channel>,
    counted: Arc<Counted>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => break,
            answer = executions.create_execution(create()) => match answer {
                Ok(_) => counted.done(),
                Err(_) => counted.refused(),
            },
        }
    }
}
