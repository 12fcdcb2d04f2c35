//! The events of a watch, over as many connections as it takes: a lost one is opened again with the last token.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

use crate::cli::connection::{self, Connection};
use crate::cli::exit::{Failure, Result};
use crate::proto;
use proto::watch_execution_response::Event;
use proto::watch_executions_response::Event as EventOfAll;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What is watched.
#[derive(Debug, Clone)]
pub enum What {
    One(proto::WatchExecutionRequest),
    All(proto::WatchExecutionsRequest),
}

/// What comes next.
#[derive(Debug)]
pub enum Next {
    Event(Box<proto::WatchExecutionResponse>),
    /// The connection broke; said once until it is there again.
    Lost(String),
    /// What follows begins with the current state again.
    Restarted(String),
    /// The server ended the watch: there is nothing more to come.
    Ended,
}

enum Stream {
    One(Streaming<proto::WatchExecutionResponse>),
    All(Streaming<proto::WatchExecutionsResponse>),
}

type Opening = Pin<Box<dyn Future<Output = std::result::Result<Stream, Status>> + Send>>;

pub struct Source {
    connection: Connection,
    what: What,
    /// Of the last event that had one.
    token: Option<String>,
    /// Whether the token is the user's own, and nothing came after it yet.
    token_given: bool,
    retry_for: Duration,
    stream: Option<Stream>,
    /// The stream that is being opened. Kept, since whoever waits for it looks at other things in between.
    opening: Option<Opening>,
    /// Whether there was a connection before.
    opened: bool,
    /// Since when there is none.
    lost: Option<Lost>,
}

#[derive(Debug, Clone, Copy)]
struct Lost {
    since: Instant,
    pause: Duration,
    try_at: Instant,
}

impl Source {
    pub fn new(
        connection: Connection,
        what: What,
        token: Option<String>,
        retry_for: Duration,
    ) -> Self {
        let token = token.filter(|token| !token.is_empty());
        Source {
            connection,
            what,
            token_given: token.is_some(),
            token,
            retry_for,
            stream: None,
            opening: None,
            opened: false,
            lost: None,
        }
    }

    /// The next event. Cancel safe: what was received is never lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Next> {
        loop {
            if let Some(Lost { try_at, .. }) = self.lost
                && self.stream.is_none()
            {
                tokio::time::sleep_until(try_at).await;
            }
            let received = match &mut self.stream {
                None => {
                    if self.opening.is_none() {
                        self.opening = Some(Box::pin(self.open()));
                    }
                    let opened = match &mut self.opening {
                        Some(opening) => opening.await,
                        None => continue,
                    };
                    self.opening = None;
                    match opened {
                        Ok(stream) => {
                            self.opened = true;
                            self.stream = Some(stream);
                            continue;
                        }
                        Err(status) => Err(status),
                    }
                }
                Some(Stream::One(stream)) => stream.message().await,
                Some(Stream::All(stream)) => stream.message().await.map(|event| event.map(of_one)),
            };
            match received {
                Ok(Some(event)) => {
                    self.lost = None;
                    if !event.resume_token.is_empty() {
                        self.token = Some(event.resume_token.clone());
                        self.token_given = false;
                    }
                    return Ok(Next::Event(Box::new(event)));
                }
                Ok(None) => return Ok(Next::Ended),
                Err(status) => {
                    self.stream = None;
                    if let Some(next) = self.failed(&status)? {
                        return Ok(next);
                    }
                }
            }
        }
    }

    fn open(&self) -> impl Future<Output = std::result::Result<Stream, Status>> + Send + 'static {
        let mut client = self.connection.executions();
        let (what, resume_token) = (self.what.clone(), self.token.clone());
        async move {
            Ok(match what {
                What::One(request) => {
                    let request = proto::WatchExecutionRequest { resume_token, ..request };
                    Stream::One(client.watch_execution(request).await?.into_inner())
                }
                What::All(request) => {
                    let request = proto::WatchExecutionsRequest { resume_token, ..request };
                    Stream::All(client.watch_executions(request).await?.into_inner())
                }
            })
        }
    }

    /// What a failure means: the end, a word about it, or silence and another try.
    fn failed(&mut self, status: &Status) -> Result<Option<Next>> {
        if status.code() == Code::OutOfRange && self.token.is_some() {
            if self.token_given {
                return Err(Failure::Refused(format!(
                    "{}; omit --resume-token to start from the current state",
                    connection::describe(status)
                )));
            }
            self.token = None;
            return Ok(Some(Next::Restarted(
                "history no longer reaches back to the last event: starting from the current state"
                    .to_owned(),
            )));
        }
        if !self.opened || !connection::is_passing(status) {
            return Err(status.clone().into());
        }
        let now = Instant::now();
        match &mut self.lost {
            None => {
                self.lost =
                    Some(Lost { since: now, pause: FIRST_PAUSE, try_at: now + FIRST_PAUSE });
                let reason = connection::describe(status);
                Ok(Some(if self.token.is_some() || self.is_changes_only() {
                    Next::Lost(reason)
                } else {
                    // It broke within the snapshot, which has no tokens.
                    Next::Restarted(format!("connection lost, starting again: {reason}"))
                }))
            }
            Some(lost) if now.duration_since(lost.since) >= self.retry_for => {
                Err(Failure::Refused(format!(
                    "the connection was lost: {}",
                    connection::describe(status)
                )))
            }
            Some(lost) => {
                lost.pause = (lost.pause * 2).min(LONGEST_PAUSE);
                lost.try_at = now + lost.pause;
                Ok(None)
            }
        }
    }

    fn is_changes_only(&self) -> bool {
        match &self.what {
            What::One(_) => false,
            What::All(request) => request.snapshot() == proto::WatchSnapshot::None,
        }
    }
}

/// The two kinds of event are the same on the wire.
fn of_one(event: proto::WatchExecutionsResponse) -> proto::WatchExecutionResponse {
    let resume_token = event.resume_token;
    let event = event.event.map(|event| match event {
        EventOfAll::Execution(changed) => Event::Execution(changed),
        EventOfAll::Step(changed) => Event::Step(changed),
        EventOfAll::Artifact(changed) => Event::Artifact(changed),
        EventOfAll::Metrics(recorded) => Event::Metrics(recorded),
        EventOfAll::SnapshotComplete(complete) => Event::SnapshotComplete(complete),
        EventOfAll::Keepalive(keepalive) => Event::Keepalive(keepalive),
    });
    proto::WatchExecutionResponse { resume_token, event }
}
