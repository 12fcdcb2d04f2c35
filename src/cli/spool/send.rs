//! Sends what processes have left, over the sender of `import`: in order, again where something failed for now. What is
//! refused for good is kept elsewhere, and only when everything of a process is settled its files go.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use prost_types::Timestamp;
use tokio::sync::mpsc;

use super::folder::{About, Aim};
use super::format::{self, Maker, Records, execution_of};
use super::hold::{self, Claimed};
use super::left::Left;
use super::open_runs::OpenRuns;
use super::refused::{Keeping, keep_artifact};
use super::uploads::{self, Uploaded};
use crate::cli::connection::Connection;
use crate::cli::import::{Listener, Outcome, Outgoing, Read, Sender, Stopped};
use crate::cli::output::message;
use crate::cli::text;
use crate::clock::Clock;
use crate::proto::ingest_request::Write;

/// Batches that wait for the sender, and records and bytes in each, at most.
const BATCHES: usize = 4;
const BATCH_RECORDS: usize = 64;
const BATCH_BYTES: usize = 1024 * 1024;
/// Refusals that are named each by itself. `spool list` names more of them.
const NAMED: u64 = 20;

/// What became of all that is for one server.
#[derive(Debug, Default)]
pub struct Sent {
    pub writes: u64,
    pub artifacts: u64,
    /// They are kept.
    pub refused: u64,
    /// What stays in the spool as it is.
    pub left: u64,
}

/// What became of the writes of one process.
#[derive(Debug)]
struct Heard {
    stored: u64,
    refusals: Vec<String>,
    refused: u64,
    /// Runs that the server does not know, with how many writes are about each.
    unknown: BTreeMap<String, u64>,
    /// Runs whose creation was refused.
    unmade: HashSet<String>,
    /// Why all of it has to stay as it is.
    stays: Option<String>,
    keeping: Arc<Mutex<Keeping>>,
}

impl Heard {
    fn refuse(&mut self, what: &str, reason: &str) {
        if self.refused < NAMED {
            self.refusals.push(format!("{what}: {reason}"));
        }
        self.refused += 1;
    }
}

impl Listener for Heard {
    fn read(&mut self, read: &Read) {
        match read {
            // The reader has kept it.
            Read::Refused { reason, .. } => self.refuse("a write", reason),
            Read::Unreadable { reason, .. } => self.stays = Some(reason.clone()),
            _ => {}
        }
    }

    fn outcome(&mut self, record: &Outgoing, outcome: Outcome) {
        // That the end of a run was only assumed and is refused is no news: the run has ended, or is not there.
        if record.assumed {
            return;
        }
        let reason = match outcome {
            Outcome::Points(points) if points.too_old + points.in_future > 0 => format!(
                "{} points are older than the server keeps, {} ahead of its clock",
                points.too_old, points.in_future
            ),
            Outcome::Stored | Outcome::AlreadyThere | Outcome::Points(_) => {
                self.stored += 1;
                return;
            }
            Outcome::Denied(reason) => {
                self.stays = Some(reason);
                return;
            }
            Outcome::NoExecution(reason) => {
                // Whether that is for good shows when everything is sent.
                let execution = execution_of(&record.write).to_owned();
                *self.unknown.entry(execution).or_default() += 1;
                self.keeping.lock().keep_write(&record.write, &reason);
                return;
            }
            Outcome::Refused(reason) => reason,
        };
        if let Write::CreateExecution(create) = &record.write {
            self.unmade.extend(create.execution_id.clone());
        }
        self.keeping.lock().keep_write(&record.write, &reason);
        self.refuse(&format::title(&record.write), &reason);
    }

    fn trouble(&mut self, reason: &str) {
        message(&text::one_line(&format!("note: retrying: {reason}")));
    }
}

/// Sends everything to one server.
pub struct Sending<'a> {
    connection: &'a Connection,
    clock: &'a dyn Clock,
    /// Runs whose creation the server has refused: what is about them has nothing to wait for.
    unmade: HashSet<String>,
    named: u64,
    sent: Sent,
    /// Why there is no use in going on.
    stopped: Option<String>,
}

impl<'a> Sending<'a> {
    pub fn new(connection: &'a Connection, clock: &'a dyn Clock) -> Self {
        Sending {
            connection,
            clock,
            unmade: HashSet::new(),
            named: 0,
            sent: Sent::default(),
            stopped: None,
        }
    }

    /// Sends what processes have left, one after the other. What is about a run that the server does not know is tried
    /// once more in the end: its maker may be among them. What fails stays for the next time.
    pub async fn everything(mut self, lefts: Vec<(Left, About)>) -> Sent {
        let mut again = Vec::new();
        for (left, about) in lefts {
            let waiting = about.writes + left.artifacts.len() as u64;
            if self.stopped.is_some() {
                self.sent.left += waiting;
                continue;
            }
            let server = match about.aim {
                Aim::Server(server) => Some(server),
                _ => None,
            };
            let folder = left.folder.clone();
            match hold::claim(left, server, self.clock) {
                Ok(Some(one)) => {
                    if let Some(one) = self.one(one, waiting, false).await {
                        again.push((one, waiting));
                    }
                }
                // Somebody else sends it.
                Ok(None) => {}
                Err(error) => self.stays(waiting, &format!("{}: {error}", folder.display())),
            }
        }
        for (one, waiting) in again {
            match &self.stopped {
                Some(_) => self.sent.left += waiting,
                None => drop(self.one(one, waiting, true).await),
            }
        }
        if let Some(reason) = &self.stopped {
            message(&text::one_line(&format!("error: stopped: {reason}")));
        }
        self.sent
    }

    fn stays(&mut self, count: u64, reason: &str) {
        self.sent.left += count;
        message(&text::one_line(&format!("error: {count} stay in the spool: {reason}")));
    }

    /// Sends all of one process. It comes back if something is about a run that the server does not know, unless this is
    /// the last time.
    async fn one(&mut self, mut one: Claimed, waiting: u64, is_last: bool) -> Option<Claimed> {
        let heard = match self.writes(&one).await {
            Ok(heard) => heard,
            Err(Stopped(reason)) => {
                self.sent.left += waiting;
                self.stopped = Some(reason);
                return None;
            }
        };
        if let Some(reason) = heard.stays {
            self.stays(waiting, &reason);
            return None;
        }
        self.unmade.extend(heard.unmade);
        let waits = heard.unknown.keys().find(|run| !self.unmade.contains(*run)).cloned();
        if let Some(run) = waits {
            if !is_last {
                return Some(one);
            }
            self.stays(waiting, &format!("the server does not know the execution {run}"));
            return None;
        }
        let keeping = Arc::into_inner(heard.keeping).map(Mutex::into_inner);
        let kept = keeping.map_or(Ok(()), |keeping| keeping.commit(one.died_at()));
        if let Err(error) = kept {
            self.stays(waiting, &format!("what is refused cannot be kept: {error}"));
            return None;
        }
        self.sent.writes += heard.stored;
        for said in &heard.refusals {
            self.name(said);
        }
        for (run, count) in &heard.unknown {
            let writes = text::count(*count, "write", "writes");
            self.name(&format!("{writes} about execution {run}: its creation was refused"));
        }
        self.sent.refused += heard.refused + heard.unknown.values().sum::<u64>();
        self.artifacts(&mut one).await;
        if let Err(error) = one.forget_records() {
            // They are stored, and sent again they change nothing.
            message(&text::one_line(&format!("error: what is sent cannot be removed: {error}")));
        }
        None
    }

    /// Names something that was refused.
    fn name(&mut self, said: &str) {
        self.named += 1;
        if self.named <= NAMED {
            message(&text::one_line(&format!("refused: {said}")));
        } else if self.named == NAMED + 1 {
            message("refused: and more, which `stepwell spool list --output json` names");
        }
    }

    async fn artifacts(&mut self, one: &mut Claimed) {
        let maker = one.left().maker;
        for path in one.left().artifacts.clone() {
            if self.stopped.is_some() {
                self.sent.left += 1;
                continue;
            }
            let Some(described) = uploads::describe(&path, maker) else {
                self.stays(1, &format!("{} describes no artifact", path.display()));
                continue;
            };
            let name = described.description.artifact_name.clone();
            let in_spool = described.is_copy.then_some(described.bytes.as_path());
            let reason = match uploads::send(self.connection, &described).await {
                Uploaded::Stored => {
                    self.sent.artifacts += 1;
                    one.forget_artifact(&path, in_spool);
                    continue;
                }
                Uploaded::ForNow(reason) => {
                    self.stays(1, &format!("artifact {name}: {reason}"));
                    continue;
                }
                Uploaded::NoExecution(reason)
                    if !self.unmade.contains(&described.description.execution_id) =>
                {
                    self.stays(1, &format!("artifact {name}: {reason}"));
                    continue;
                }
                Uploaded::Away(reason) => {
                    self.sent.left += 1;
                    self.stopped = Some(reason);
                    continue;
                }
                Uploaded::Refused(reason) | Uploaded::NoExecution(reason) => reason,
            };
            self.sent.refused += 1;
            self.name(&format!("{}: {reason}", uploads::title(&described.description)));
            if maker == Maker::Refused {
                continue;
            }
            match keep_artifact(one, &described, &reason, self.clock) {
                Ok(()) => one.forget_artifact(&path, in_spool),
                Err(error) => self.stays(1, &format!("artifact {name} cannot be kept: {error}")),
            }
        }
    }

    /// Sends the writes of one process, and the ends of what it left open.
    async fn writes(&self, one: &Claimed) -> Result<Heard, Stopped> {
        let keeping = Arc::new(Mutex::new(Keeping::new(one, self.clock)));
        let (batches, receiver) = mpsc::channel(BATCHES);
        let reader = Reader {
            maker: one.left().maker,
            keeping: Arc::clone(&keeping),
            batches,
            batch: Vec::new(),
            bytes: 0,
        };
        let files = one.left().records.clone();
        let died_at = Timestamp::from(one.died_at());
        let reading = tokio::task::spawn_blocking(move || reader.read(&files, died_at));
        let mut heard = Heard {
            stored: 0,
            refusals: Vec::new(),
            refused: 0,
            unknown: BTreeMap::new(),
            unmade: HashSet::new(),
            stays: None,
            keeping,
        };
        // Nothing is made of whether a record was there before.
        let mut sender = Sender::new(self.connection.clone(), 0);
        let result = sender.send(receiver, &mut heard).await;
        sender.close().await;
        // It has let go of what is kept.
        if let Err(error) = reading.await {
            heard.stays = Some(format!("the spool cannot be read: {error}"));
        }
        result.map(|()| heard)
    }
}

/// Reads files a bounded step ahead of the sender.
struct Reader {
    maker: Maker,
    keeping: Arc<Mutex<Keeping>>,
    batches: mpsc::Sender<Vec<Read>>,
    batch: Vec<Read>,
    bytes: usize,
}

impl Reader {
    fn read(mut self, files: &[PathBuf], died_at: Timestamp) {
        let mut open = OpenRuns::default();
        for path in files {
            match self.read_file(path, &mut open) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    let reason = format!("{}: {error}", path.display());
                    self.push(Read::Unreadable { file: 0, line: 0, reason }, 0);
                    self.flush();
                    return;
                }
            }
        }
        for write in open.ends(died_at) {
            if !self.push(outgoing(write, 200, true), 200) {
                return;
            }
        }
        self.flush();
    }

    /// `false`: nobody wants more.
    fn read_file(&mut self, path: &Path, open: &mut OpenRuns) -> std::io::Result<bool> {
        let mut records = Records::open(path, self.maker)?;
        for record in records.by_ref() {
            let record = record?;
            if let Some(note) = format::note(&record) {
                open.restore(&note);
                continue;
            }
            let read = match format::write_of(&record) {
                Some(write) => {
                    open.observe(&write);
                    outgoing(write, record.len(), false)
                }
                None => {
                    let reason = "cannot be read".to_owned();
                    self.keeping.lock().keep(&record, &reason);
                    Read::Refused { file: 0, line: 0, reason }
                }
            };
            if !self.push(read, record.len()) {
                return Ok(false);
            }
        }
        let cut = std::fs::metadata(path)?.len().saturating_sub(records.whole());
        if cut > 0 {
            let bytes = text::count(cut, "byte", "bytes");
            message(&text::one_line(&format!(
                "note: {}: {bytes} at the end were cut off as they were written, and are no write",
                path.display()
            )));
        }
        Ok(true)
    }

    fn push(&mut self, read: Read, bytes: usize) -> bool {
        self.batch.push(read);
        self.bytes += bytes;
        self.batch.len() < BATCH_RECORDS && self.bytes < BATCH_BYTES || self.flush()
    }

    fn flush(&mut self) -> bool {
        self.bytes = 0;
        self.batches.blocking_send(std::mem::take(&mut self.batch)).is_ok()
    }
}

fn outgoing(write: Write, bytes: usize, assumed: bool) -> Read {
    let left_out = Vec::new();
    Read::Write(Box::new(Outgoing {
        file: 0,
        line: 0,
        documents: 1,
        write,
        bytes,
        assumed,
        left_out,
    }))
}
