//! The side that a mirror writes to: one Ingest stream, a bounded number of writes under way, and what is not answered is
//! sent again, in order, over the next stream. What the source said is done once everything before it is.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::cli::connection::{self, Connection};
use crate::cli::exit::{Failure, Result};
use crate::proto;
use crate::proto::ingest_request::Write;
use crate::proto::ingest_response::Result as Answer;

/// Messages of the source under way at most, and bytes of their writes. One is always let through.
const WINDOW: usize = 2048;
const WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// The pause before what failed is tried again.
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);
pub const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a message of the source was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Execution,
    Step,
    Artifact,
    Points,
    Configuration,
    Deletion,
    /// A deletion by a call of its own.
    ArtifactDeletion,
    /// A deletion that was found by comparing; what is not the mirror's stays.
    Gone,
    /// An execution that is made for steps without one.
    Adopted,
    /// Nothing to write: the source was read up to this position, and was there at this moment.
    Marker {
        position: i64,
        as_of: Instant,
    },
    /// Nothing to write.
    Passed,
}

/// A message of the source under way.
#[derive(Debug)]
pub struct Entry {
    pub kind: Kind,
    /// Goes on after it; `None`: after the message before.
    pub token: Option<String>,
    pub position: i64,
    pub write: Option<Write>,
    /// Something that is written for it by a call of its own is not done.
    waits: bool,
    bytes: usize,
    /// The step for which an execution is made.
    pub made_for: Option<i64>,
    /// An execution was made for it.
    pub adopted: bool,
}

impl Entry {
    pub fn new(kind: Kind, token: Option<String>, position: i64, write: Option<Write>) -> Entry {
        use prost::Message as _;
        let request = proto::IngestRequest { sequence: 0, write, mirrored: None };
        let bytes = request.encoded_len();
        let write = request.write;
        let waits = kind == Kind::ArtifactDeletion;
        Entry { kind, token, position, write, waits, bytes, made_for: None, adopted: false }
    }

    fn request(&self, sequence: i64) -> Option<proto::IngestRequest> {
        let mirrored = Some(proto::Mirrored { source_position: self.position });
        Some(proto::IngestRequest { sequence, write: Some(self.write.clone()?), mirrored })
    }
}

struct Stream {
    requests: mpsc::Sender<proto::IngestRequest>,
    answers: Streaming<proto::IngestResponse>,
}

/// The side that is written to.
pub struct Target {
    connection: Connection,
    stream: Option<Stream>,
    /// In the order of the source; the number of the first one, and its write once it is answered is gone.
    entries: VecDeque<Entry>,
    first: i64,
    bytes: usize,
    unanswered: usize,
    /// What is not answered is sent again then.
    again_at: Option<Instant>,
    tries: u32,
}

impl Target {
    pub fn new(connection: Connection) -> Target {
        Target {
            connection,
            stream: None,
            entries: VecDeque::new(),
            first: 1,
            bytes: 0,
            unanswered: 0,
            again_at: None,
            tries: 0,
        }
    }

    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    pub fn is_full(&self) -> bool {
        self.entries.len() >= WINDOW || self.bytes >= WINDOW_BYTES
    }

    pub fn is_idle(&self) -> bool {
        self.unanswered == 0
    }

    pub fn entry(&mut self, sequence: i64) -> Option<&mut Entry> {
        let index = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        self.entries.get_mut(index)
    }

    /// Whether a write about this artifact is not answered.
    pub fn is_putting(&self, artifact_id: &str) -> bool {
        self.entries.iter().any(|entry| match &entry.write {
            Some(Write::PutArtifact(record)) => record.artifact_id == artifact_id,
            _ => false,
        })
    }

    /// Takes a message in, and sends what it writes. Its number.
    pub async fn push(&mut self, entry: Entry) -> i64 {
        let sequence = self.first + self.entries.len() as i64;
        let request = entry.request(sequence);
        if request.is_some() {
            self.unanswered += 1;
            self.bytes += entry.bytes;
        }
        self.entries.push_back(entry);
        if let Some(request) = request {
            self.send(request).await;
        }
        sequence
    }

    /// Sends the write of an entry once more.
    pub async fn repeat(&mut self, sequence: i64) {
        if let Some(request) = self.entry(sequence).and_then(|entry| entry.request(sequence)) {
            self.send(request).await;
        }
    }

    async fn send(&mut self, request: proto::IngestRequest) {
        if self.again_at.is_some() {
            // It goes with the others.
            return;
        }
        match &self.stream {
            // A stream that is closed says why with its next answer.
            Some(stream) => {
                if stream.requests.try_send(request).is_err() {
                    self.broke();
                }
            }
            None => {
                if self.open(vec![request]).await.is_err() {
                    self.broke();
                }
            }
        }
    }

    async fn open(&mut self, first: Vec<proto::IngestRequest>) -> std::result::Result<(), Status> {
        // With room for all that goes first, however much that is: what were left out would never be answered.
        let (requests, receiver) = mpsc::channel(first.len() + 4 * WINDOW);
        for request in first {
            let _ = requests.try_send(request);
        }
        let answers = self.connection.ingest().ingest(ReceiverStream::new(receiver)).await?;
        self.stream = Some(Stream { requests, answers: answers.into_inner() });
        Ok(())
    }

    /// Gives the stream up; everything that is not answered is sent again after a pause.
    fn broke(&mut self) {
        self.stream = None;
        let pause = FIRST_PAUSE.saturating_mul(1 << self.tries.min(10)).min(LONGEST_PAUSE);
        self.tries += 1;
        self.again_at = Some(Instant::now() + pause);
    }

    /// The next answer, with the number of what it answers. `None`: something has to be sent again first, which was done if
    /// its time has come.
    pub async fn answer(&mut self) -> Result<Option<(i64, Answer)>> {
        if let Some(at) = self.again_at {
            tokio::time::sleep_until(at).await;
            // Until that is done it is still to be done: who waits for this may stop to.
            self.send_again().await?;
            return Ok(None);
        }
        let Some(stream) = &mut self.stream else {
            return std::future::pending().await;
        };
        let answer = match stream.answers.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => {
                self.broke();
                return Ok(None);
            }
            Err(status) => {
                self.failed(status)?;
                return Ok(None);
            }
        };
        match answer.result {
            Some(Answer::Error(error)) if is_passing(error.code) => {
                self.broke();
                Ok(None)
            }
            Some(result) => {
                self.tries = 0;
                Ok(Some((answer.sequence, result)))
            }
            None => Ok(None),
        }
    }

    fn failed(&mut self, status: Status) -> Result<()> {
        if !connection::is_passing(&status) && status.code() != Code::Internal {
            return Err(Failure::Refused(connection::describe(&status)));
        }
        self.broke();
        Ok(())
    }

    async fn send_again(&mut self) -> Result<()> {
        // Executions that were made for steps may not have been stored.
        self.entries.iter_mut().for_each(|entry| entry.adopted = false);
        let numbered = self.entries.iter().zip(self.first..);
        let requests: Vec<_> = numbered.filter_map(|(entry, n)| entry.request(n)).collect();
        if requests.is_empty() {
            self.again_at = None;
            return Ok(());
        }
        match self.open(requests).await {
            Ok(()) => {
                self.again_at = None;
                Ok(())
            }
            Err(status) => self.failed(status),
        }
    }

    /// What is written by an entry is done, or refused for good.
    pub fn done(&mut self, sequence: i64) {
        let mut freed = 0;
        if let Some(entry) = self.entry(sequence) {
            entry.waits = false;
            if entry.write.take().is_some() {
                freed = entry.bytes;
            }
        }
        if freed > 0 {
            self.bytes -= freed;
            self.unanswered -= 1;
        }
    }

    /// Takes out the first message if it is done.
    pub fn pop(&mut self) -> Option<Entry> {
        self.entries.front().filter(|entry| entry.write.is_none() && !entry.waits)?;
        self.first += 1;
        self.entries.pop_front()
    }
}

/// Whether the same write may work a moment later.
fn is_passing(code: i32) -> bool {
    matches!(Code::from_i32(code), Code::Unavailable | Code::ResourceExhausted | Code::Aborted)
}
