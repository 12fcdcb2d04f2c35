//! Sends records over one Ingest stream with a bounded number in flight, and hears what became of each. A stream
//! that breaks is opened again and what was not answered is sent again: the same record twice is stored once.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::RpcStatusExt as _;

use super::outgoing::Outgoing;
use super::reader::Read;
use crate::cli::connection::{self, Connection};
use crate::proto;
use crate::proto::ingest_response::Result as Answer;

/// Records in flight at most, together and in bytes. One is always let through.
const WINDOW_RECORDS: usize = 2048;
const WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// Tries without a single answer between them before it is given up, and the pauses between them: about half
/// a minute together.
const TRIES: u32 = 10;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What became of one record.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It is durable; it was not there before.
    Stored,
    /// The same record was there before.
    AlreadyThere,
    /// Of several points of metrics, how many.
    Points(proto::RecordMetricsResponse),
    /// The server does not know the execution that it is about.
    NoExecution(String),
    /// The caller may not write it.
    Denied(String),
    Refused(String),
}

/// Hears what happens, in the order in which it happens.
pub trait Listener {
    fn read(&mut self, read: &Read);
    fn outcome(&mut self, record: &Outgoing, outcome: Outcome);
    /// The stream broke and is opened again after a pause.
    fn trouble(&mut self, reason: &str);
}

/// It is given up.
#[derive(Debug)]
pub struct Stopped(pub String);

/// Sends what the reader finds. Records of one phase are all answered before `send` returns.
pub struct Sender {
    connection: Connection,
    /// Revisions below this were given before the import began, in microseconds.
    began: i64,
    /// Records and revisions answered, as hashes: the same answer again is a record sent twice.
    answered: HashSet<u64>,
    stream: Option<Stream>,
    next_sequence: i64,
    /// To be sent, in order.
    queue: VecDeque<Outgoing>,
    /// Sent on this stream and not answered.
    in_flight: BTreeMap<i64, Outgoing>,
    in_flight_bytes: usize,
    /// Answered with "not now"; they are still in flight as far as the window is concerned. What belongs to the same
    /// executions is held up on this stream, so these go over a new one once everything else is answered.
    later: BTreeSet<i64>,
    /// Nothing is sent before this.
    pause_until: Option<Instant>,
    tries: u32,
    /// After the first try; each later pause is twice as long.
    first_pause: Duration,
    /// After the server ended a stream for what was in it: so many records go one by one, to find the one.
    one_by_one: usize,
}

struct Stream {
    requests: mpsc::Sender<proto::IngestRequest>,
    answers: Streaming<proto::IngestResponse>,
}

/// What woke the sender up.
enum Woken {
    Answer(Result<Option<proto::IngestResponse>, Status>),
    Batch(Option<Vec<Read>>),
    PauseOver,
}

impl Sender {
    pub fn new(connection: Connection, began: i64) -> Self {
        Sender {
            connection,
            began,
            answered: HashSet::new(),
            stream: None,
            next_sequence: 1,
            queue: VecDeque::new(),
            in_flight: BTreeMap::new(),
            in_flight_bytes: 0,
            later: BTreeSet::new(),
            pause_until: None,
            tries: 0,
            first_pause: FIRST_PAUSE,
            one_by_one: 0,
        }
    }

    /// Sends everything that comes over `batches`, and returns when all of it is answered.
    pub async fn send(
        &mut self,
        mut batches: mpsc::Receiver<Vec<Read>>,
        listener: &mut dyn Listener,
    ) -> Result<(), Stopped> {
        let mut reading = true;
        loop {
            if self.pause_until.is_none() && self.later.is_empty() {
                self.fill(listener).await?;
            }
            if !reading && self.queue.is_empty() && self.in_flight.is_empty() {
                return Ok(());
            }
            let pause_until = self.pause_until;
            let take_batch = reading && self.queue.is_empty();
            let woken = tokio::select! {
                answer = next_answer(&mut self.stream), if self.stream.is_some() => Woken::Answer(answer),
                batch = batches.recv(), if take_batch => Woken::Batch(batch),
                () = until(pause_until), if pause_until.is_some() => Woken::PauseOver,
            };
            match woken {
                Woken::Answer(Ok(Some(answer))) => self.hear(answer, listener),
                Woken::Answer(Ok(None)) => {
                    self.broke(&Status::unavailable("the server ended the stream"), listener)?;
                }
                Woken::Answer(Err(status)) => self.broke(&status, listener)?,
                Woken::Batch(None) => reading = false,
                Woken::Batch(Some(batch)) => {
                    for read in batch {
                        listener.read(&read);
                        if let Read::Write(outgoing) = read {
                            self.queue.push_back(*outgoing);
                        }
                    }
                }
                Woken::PauseOver => self.pause_until = None,
            }
            if self.later.is_empty() || self.later.len() < self.in_flight.len() {
                continue;
            }
            self.put_back();
            let reason = "the server is overloaded";
            self.pause(reason, listener)?;
        }
    }

    /// Ends the stream in order.
    pub async fn close(mut self) {
        if let Some(Stream { requests, mut answers }) = self.stream.take() {
            drop(requests);
            // Nothing is in flight; the server's end of the stream is waited for, but not for long.
            let _ = tokio::time::timeout(Duration::from_secs(2), answers.message()).await;
        }
    }

    /// Records that were taken from the reader and not answered.
    pub fn unanswered(&self) -> impl Iterator<Item = &Outgoing> {
        self.in_flight.values().chain(self.queue.iter())
    }

    /// Sends as much as the window takes; opens the stream when there is something to send.
    async fn fill(&mut self, listener: &mut dyn Listener) -> Result<(), Stopped> {
        while let Some(next) = self.queue.front() {
            let full = match self.one_by_one {
                0 => {
                    self.in_flight.len() >= WINDOW_RECORDS
                        || self.in_flight_bytes + next.bytes > WINDOW_BYTES
                }
                _ => true,
            };
            if full && !self.in_flight.is_empty() {
                return Ok(());
            }
            let Some(next) = self.queue.pop_front() else { return Ok(()) };
            let sequence = self.next_sequence;
            self.next_sequence += 1;
            self.in_flight_bytes += next.bytes;
            let request =
                proto::IngestRequest { sequence, write: Some(next.write.clone()), mirrored: None };
            self.in_flight.insert(sequence, next);
            match &self.stream {
                // A stream that is closed says why with its next answer.
                Some(stream) => {
                    let _ = stream.requests.try_send(request);
                }
                None => {
                    if let Err(status) = self.open(request).await {
                        return self.broke(&status, listener);
                    }
                }
            }
        }
        Ok(())
    }

    /// Opens the stream with its first request in it.
    async fn open(&mut self, first: proto::IngestRequest) -> Result<(), Status> {
        let (requests, receiver) = mpsc::channel(WINDOW_RECORDS + 1);
        let _ = requests.try_send(first);
        let answers =
            self.connection.ingest().ingest(ReceiverStream::new(receiver)).await?.into_inner();
        self.stream = Some(Stream { requests, answers });
        Ok(())
    }

    fn hear(&mut self, answer: proto::IngestResponse, listener: &mut dyn Listener) {
        if let Some(Answer::Error(error)) = &answer.result
            && is_passing(Code::from_i32(error.code))
            && self.in_flight.contains_key(&answer.sequence)
        {
            self.later.insert(answer.sequence);
            return;
        }
        let Some(record) = self.in_flight.remove(&answer.sequence) else { return };
        self.later.remove(&answer.sequence);
        self.in_flight_bytes -= record.bytes;
        self.tries = 0;
        self.one_by_one = self.one_by_one.saturating_sub(1);
        let outcome = match &answer.result {
            Some(Answer::Execution(stored)) => {
                self.stored(stored.revision, (&stored.execution_id, None::<i32>))
            }
            Some(Answer::Step(stored)) => {
                self.stored(stored.revision, (&stored.execution_id, stored.step_id))
            }
            Some(Answer::Configuration(stored)) if stored.created => Outcome::Stored,
            Some(Answer::Configuration(_)) => Outcome::AlreadyThere,
            Some(Answer::Metrics(counts)) => Outcome::Points(*counts),
            Some(Answer::Artifact(stored)) if stored.created => Outcome::Stored,
            Some(Answer::Artifact(_)) => Outcome::AlreadyThere,
            Some(Answer::Error(error)) if is_about_no_execution(error) => {
                Outcome::NoExecution(refusal(error))
            }
            Some(Answer::Error(error)) if is_denied(Code::from_i32(error.code)) => {
                Outcome::Denied(refusal(error))
            }
            Some(Answer::Error(error)) => Outcome::Refused(refusal(error)),
            _ => Outcome::Refused("the server sent an unexpected answer".to_owned()),
        };
        listener.outcome(&record, outcome);
    }

    /// A record keeps its revision when it is put again, and revisions are microseconds of the server's clock:
    /// one from before the import, or one heard before, says that the record was there. Where the clocks of
    /// client and server differ, only this count is off, and only for records of the last moments.
    fn stored(&mut self, revision: i64, id: impl std::hash::Hash) -> Outcome {
        let mut hasher = DefaultHasher::new();
        (id, revision).hash(&mut hasher);
        let first = self.answered.insert(hasher.finish());
        if first && revision >= self.began { Outcome::Stored } else { Outcome::AlreadyThere }
    }

    /// Gives the stream up; what is in flight comes first on the next one, in the same order. How many that are.
    fn put_back(&mut self) -> usize {
        self.stream = None;
        self.later.clear();
        let unanswered = std::mem::take(&mut self.in_flight);
        let count = unanswered.len();
        self.in_flight_bytes = 0;
        for (_, record) in unanswered.into_iter().rev() {
            self.queue.push_front(record);
        }
        count
    }

    /// The stream ended with records unanswered, or could not be opened.
    fn broke(&mut self, status: &Status, listener: &mut dyn Listener) -> Result<(), Stopped> {
        let count = self.put_back();
        match status.code() {
            Code::Unimplemented => Err(Stopped(connection::describe(status))),
            code if is_denied(code) => Err(Stopped(connection::describe(status))),
            _ if count == 0 => Ok(()),
            _ if connection::is_passing(status) => {
                self.pause(&connection::describe(status), listener)
            }
            // The server's own verdict about what was in the stream.
            _ if self.one_by_one > 0 && count == 1 => {
                self.one_by_one -= 1;
                if let Some(record) = self.queue.pop_front() {
                    listener.outcome(&record, Outcome::Refused(connection::describe(status)));
                }
                Ok(())
            }
            _ => {
                self.one_by_one = count;
                Ok(())
            }
        }
    }

    fn pause(&mut self, reason: &str, listener: &mut dyn Listener) -> Result<(), Stopped> {
        self.tries += 1;
        if self.tries > TRIES {
            return Err(Stopped(reason.to_owned()));
        }
        listener.trouble(reason);
        let pause = self.first_pause.saturating_mul(1 << (self.tries - 1)).min(LONGEST_PAUSE);
        self.pause_until = Some(Instant::now() + pause);
        Ok(())
    }
}

/// Whether the same write may work a moment later.
fn is_passing(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::ResourceExhausted | Code::Aborted)
}

/// Whether it is refused for who asks, not for what is asked.
pub fn is_denied(code: Code) -> bool {
    matches!(code, Code::Unauthenticated | Code::PermissionDenied)
}

fn is_about_no_execution(error: &tonic_types::Status) -> bool {
    let details = error.get_error_details();
    details.error_info().is_some_and(|info| info.reason == "EXECUTION_NOT_FOUND")
}

async fn next_answer(stream: &mut Option<Stream>) -> Result<Option<proto::IngestResponse>, Status> {
    match stream {
        Some(stream) => stream.answers.message().await,
        None => std::future::pending().await,
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Why a server refused a record.
fn refusal(error: &tonic_types::Status) -> String {
    let details = error.get_error_details();
    let fields: Vec<(&str, &str)> = details
        .bad_request()
        .map(|bad| bad.field_violations.iter())
        .into_iter()
        .flatten()
        .map(|violation| (violation.field.as_str(), violation.description.as_str()))
        .collect();
    connection::sentence(&error.message, &fields, Code::from_i32(error.code))
}

#[cfg(test)]
#[path = "send_tests.rs"]
mod tests;
