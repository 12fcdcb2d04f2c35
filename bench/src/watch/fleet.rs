//! Watchers by the thousand, on connections they share: those that read, and those that never do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::connect::Channel;
use anyhow::bail;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tonic::{Status, Streaming};

use super::codec::{Event, Received, TokenSlot, WatchCodec};
use super::writer::{APP_NAME, Acknowledgements, Busy, Seen};
use crate::connect::{Server, Windows};
use crate::measure::Recorder;
use stepwell::proto;

/// Streams that are being opened at a time.
const OPENING: usize = 256;
/// What HTTP/2 gives a stream that says nothing else.
const STREAM_WINDOW: u32 = 65_535;

/// What is watched, and how.
#[derive(Debug, Clone)]
pub struct Target {
    pub busy: Busy,
    /// All executions of the load generator instead of the one.
    pub all_executions: bool,
    pub per_connection: usize,
}

impl Target {
    fn connections(&self, server: &Server, watchers: usize) -> anyhow::Result<Vec<Channel>> {
        let streams = u32::try_from(self.per_connection).unwrap_or(u32::MAX);
        let windows = Windows {
            stream: STREAM_WINDOW,
            // Room for every stream of it, so that none is stopped by its neighbours.
            connection: STREAM_WINDOW.saturating_mul(streams).min(i32::MAX as u32),
        };
        (0..watchers.div_ceil(self.per_connection).max(1))
            .map(|_| server.connection(windows))
            .collect()
    }

    /// Opens a stream, from a token or with the current state first.
    async fn open(
        &self,
        channel: Channel,
        resume_token: Option<String>,
        token: TokenSlot,
    ) -> Result<Streaming<Received>, Status> {
        // Thousands of streams: nothing of the generated client's state is kept for each.
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let response = if self.all_executions {
            let request = proto::WatchExecutionsRequest {
                filter: Some(proto::ExecutionFilter {
                    app_names: vec![APP_NAME.to_owned()],
                    ..Default::default()
                }),
                resume_token,
                include_steps: true,
                include_payloads: false,
                snapshot: proto::WatchSnapshot::None.into(),
            };
            let path = http::uri::PathAndQuery::from_static(
                "/stepwell.v1.ExecutionService/WatchExecutions",
            );
            client
                .server_streaming(tonic::Request::new(request), path, WatchCodec::new(token))
                .await
        } else {
            let request = proto::WatchExecutionRequest {
                execution_id: self.busy.execution_id.clone(),
                resume_token,
                include_steps: true,
                follow: true,
                ..Default::default()
            };
            let path = http::uri::PathAndQuery::from_static(
                "/stepwell.v1.ExecutionService/WatchExecution",
            );
            client
                .server_streaming(tonic::Request::new(request), path, WatchCodec::new(token))
                .await
        };
        response.map(tonic::Response::into_inner)
    }
}

/// When a watcher leaves by itself.
#[derive(Debug, Clone, Copy)]
pub enum Leave {
    Never,
    /// With the first change of this number or a later one.
    At(u64),
    /// When it has seen the newest state of every step: the last change of each, `count` of them up to `last`.
    CaughtUp {
        last: u64,
        count: u64,
    },
}

/// What became of a watcher that left.
#[derive(Debug)]
pub struct Left {
    /// Its newest token.
    pub token: String,
    pub after: Duration,
}

/// What all watchers of a fleet share.
#[derive(Debug)]
pub struct Shared {
    pub deliveries: Recorder,
    acknowledgements: Arc<Acknowledgements>,
    opening: Semaphore,
    ready: AtomicUsize,
    ready_changed: Notify,
    failed: AtomicUsize,
    /// Deliveries that came before the writer had read the acknowledgement.
    pub early: AtomicU64,
}

/// Watchers that read all they get.
#[derive(Debug)]
pub struct Fleet {
    pub shared: Arc<Shared>,
    tasks: JoinSet<Option<Left>>,
    size: usize,
}

/// One watcher to open.
#[derive(Debug)]
pub struct Watcher {
    pub resume_token: Option<String>,
    pub leave: Leave,
}

impl Fleet {
    /// Begins to open watchers. Returns at once.
    pub fn open(
        server: &Server,
        target: &Target,
        acknowledgements: &Arc<Acknowledgements>,
        watchers: Vec<Watcher>,
    ) -> anyhow::Result<Self> {
        let size = watchers.len();
        let connections = target.connections(server, size)?;
        let shared = Arc::new(Shared {
            deliveries: Recorder::new(),
            acknowledgements: Arc::clone(acknowledgements),
            opening: Semaphore::new(OPENING),
            ready: AtomicUsize::new(0),
            ready_changed: Notify::new(),
            failed: AtomicUsize::new(0),
            early: AtomicU64::new(0),
        });
        let target = Arc::new(target.clone());
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        for (number, watcher) in watchers.into_iter().enumerate() {
            let channel = connections[number / target.per_connection].clone();
            let (shared, target) = (Arc::clone(&shared), Arc::clone(&target));
            tasks.spawn(async move {
                match watch(number, &target, channel, watcher, &shared, began).await {
                    Ok(left) => Some(left),
                    Err(message) => {
                        shared.deliveries.failed(number, format!("watcher: {message}"));
                        shared.failed.fetch_add(1, Ordering::SeqCst);
                        shared.ready_changed.notify_one();
                        None
                    }
                }
            });
        }
        Ok(Fleet { shared, tasks, size })
    }

    /// Waits until every watcher has the current state.
    pub async fn ready(&self, patience: Duration) -> anyhow::Result<()> {
        let all = async {
            while self.shared.ready.load(Ordering::SeqCst) < self.size {
                if self.shared.failed.load(Ordering::SeqCst) > 0 {
                    return false;
                }
                self.shared.ready_changed.notified().await;
            }
            true
        };
        let ready = tokio::time::timeout(patience, all).await;
        if ready != Ok(true) {
            let messages = self.shared.deliveries.end().messages;
            let (ready, size) = (self.shared.ready.load(Ordering::SeqCst), self.size);
            bail!(
                "only {ready} of {size} watchers have the current state: {}",
                messages.join("; ")
            );
        }
        Ok(())
    }

    /// Waits until every watcher has left by itself, in any order. Those that failed are left out.
    pub async fn all_left(&mut self, patience: Duration) -> anyhow::Result<Vec<Left>> {
        let mut all = Vec::with_capacity(self.size);
        let waited = tokio::time::timeout(patience, async {
            while let Some(ended) = self.tasks.join_next().await {
                all.extend(ended.ok().flatten());
            }
        });
        if waited.await.is_err() {
            bail!(
                "{} of {} watchers did not get there in {patience:?}",
                self.tasks.len(),
                self.size
            );
        }
        Ok(all)
    }

    /// Ends all streams.
    pub async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn watch(
    number: usize,
    target: &Target,
    channel: Channel,
    watcher: Watcher,
    shared: &Shared,
    began: Instant,
) -> Result<Left, String> {
    let kept = match watcher.leave {
        Leave::At(_) => Some(Arc::new(Mutex::new(Vec::new()))),
        Leave::Never | Leave::CaughtUp { .. } => None,
    };
    let resumed = watcher.resume_token.is_some();
    let mut events = {
        let _turn = shared.opening.acquire().await.map_err(|error| error.to_string())?;
        target
            .open(channel, watcher.resume_token, kept.clone())
            .await
            .map_err(|status| format!("{:?}: {}", status.code(), status.message()))?
    };
    let mut seen_last = 0_u64;
    let mut newest = vec![
        false;
        match watcher.leave {
            Leave::CaughtUp { count, .. } => usize::try_from(count).unwrap_or(0),
            Leave::Never | Leave::At(_) => 0,
        }
    ];
    if resumed {
        is_ready(shared);
    }
    loop {
        let received = match events.message().await {
            Ok(Some(received)) => received,
            Ok(None) => return Err("the stream ended".to_owned()),
            Err(status) => return Err(format!("{:?}: {}", status.code(), status.message())),
        };
        let sequence = match received.event {
            Event::Step(Some(sequence)) => sequence,
            Event::SnapshotComplete => {
                is_ready(shared);
                continue;
            }
            Event::Step(None) | Event::Execution | Event::Keepalive | Event::Other => continue,
        };
        match shared.acknowledgements.seen(sequence) {
            Seen::After(latency) => shared.deliveries.done(number, latency, received.bytes),
            Seen::Before => {
                if shared.deliveries.is_measuring() {
                    shared.early.fetch_add(1, Ordering::Relaxed);
                }
                shared.deliveries.done(number, Duration::ZERO, received.bytes);
            }
            Seen::Forgotten => {}
        }
        let leaves = match watcher.leave {
            Leave::Never => false,
            Leave::At(first) => {
                // The snapshot has no token: without one there is nothing to resume with.
                sequence >= first && kept.as_ref().is_some_and(|kept| !kept.lock().is_empty())
            }
            Leave::CaughtUp { last, count } => {
                let back = last.checked_sub(sequence).filter(|back| *back < count);
                if let Some(seen) =
                    back.and_then(|back| newest.get_mut(usize::try_from(back).ok()?))
                    && !std::mem::replace(seen, true)
                {
                    seen_last += 1;
                }
                seen_last == count
            }
        };
        if leaves {
            let token = kept.map(|kept| kept.lock().clone()).unwrap_or_default();
            let token = String::from_utf8(token).map_err(|error| error.to_string())?;
            return Ok(Left { token, after: began.elapsed() });
        }
    }
}

fn is_ready(shared: &Shared) {
    shared.ready.fetch_add(1, Ordering::SeqCst);
    shared.ready_changed.notify_one();
}

/// Watchers that never read: what they are sent fills their window and stays there.
#[derive(Debug)]
pub struct Stuck {
    streams: Vec<Streaming<Received>>,
}

impl Stuck {
    pub async fn open(server: &Server, target: &Target, watchers: usize) -> anyhow::Result<Self> {
        let connections = target.connections(server, watchers)?;
        let target = Arc::new(target.clone());
        let opening = Arc::new(Semaphore::new(OPENING));
        let mut tasks = JoinSet::new();
        for number in 0..watchers {
            let channel = connections[number / target.per_connection].clone();
            let (target, opening) = (Arc::clone(&target), Arc::clone(&opening));
            tasks.spawn(async move {
                let _turn = opening.acquire().await;
                target.open(channel, None, None).await
            });
        }
        let mut streams = Vec::with_capacity(watchers);
        while let Some(opened) = tasks.join_next().await {
            streams.push(opened??);
        }
        Ok(Stuck { streams })
    }

    pub fn len(&self) -> usize {
        self.streams.len()
    }
}
