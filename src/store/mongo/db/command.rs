//! Write commands that may be sent twice and are executed once.
//!
//! The driver alone carries many guarded updates at once only through `run_command`, and that it never retries.
//! So a command whose answer was lost is sent again here, as it was. That is safe because each statement is
//! good for one execution only: an update is guarded by the revision that it replaces, an insert brings its own
//! `_id`. And it can be told afterwards whether the first sending was executed: by the mark that an update leaves,
//! and by the `_id`. Retryable writes of the server would tell the same for a third more of its time for each
//! update.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bson::oid::ObjectId;
use bson::raw::cstr;
use bson::{Document, RawArrayBuf, RawDocumentBuf, Timestamp, doc, rawdoc};
use mongodb::Database;
use mongodb::options::{
    Acknowledgment, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern,
};
use parking_lot::Mutex;

use super::collection::{Collection, Rows};
use super::failure;
use super::names::{META, Name};
use super::statements::{
    BAD_VALUE, Fate, NO_OBJECT, Reply, concern_failure, hinted, insert_command, mended,
    ordered_insert_command, pieces, read_ordered, read_reply, refused, update_command,
    update_statement,
};
use super::view::{ASKED_FOR, View, silent};
use crate::store::{Denial, Error, Result};

const PAUSE_BEFORE_RESEND: Duration = Duration::from_millis(50);
/// Within which a chain of commands ends, whatever the database does.
const CHAIN_WITHIN: Duration = Duration::from_secs(8);
/// Within which who sent them is answered.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
const _: () = assert!(
    CHAIN_WITHIN.as_millis() + 2 * ASKED_FOR.as_millis() < ANSWERED_WITHIN.as_millis(),
    "a write to a database that hangs is answered in time"
);

/// When a command is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// When what it wrote is durable, as the write concern says.
    Durable,
    /// When the primary has executed it: a later command of the same chain waits for both.
    Executed,
}

/// A place in the log of one primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OpTime {
    election: ObjectId,
    term: i64,
    at: Timestamp,
}

impl OpTime {
    fn of(reply: &Document) -> Option<OpTime> {
        let time = reply.get_document("opTime").ok()?;
        Some(OpTime {
            election: reply.get_object_id("electionId").ok()?,
            term: time.get_i64("t").ok()?,
            at: time.get_timestamp("ts").ok()?,
        })
    }

    /// Whether that this place is durable says the same of an earlier one. Not after an election: the new primary
    /// may never have had it.
    fn covers(&self, earlier: &OpTime) -> bool {
        self.election == earlier.election && self.term == earlier.term && self.at >= earlier.at
    }
}

/// Whether that `last` is durable says the same of all earlier ones.
fn is_covered(earlier: &[OpTime], last: Option<OpTime>) -> bool {
    earlier.iter().all(|earlier| last.is_some_and(|last| last.covers(earlier)))
}

/// What is known of the commands of a chain when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    Certain,
    /// Another primary was elected meanwhile. What it has is durable, but it may lack some of the writes.
    Elected,
    Unknown,
}

/// Commands one after the other, of which only the last waits until what it wrote is durable: the log is in their
/// order, so that says it of all. Each wait costs a flush of the journal, which is more than the commands cost.
pub struct Chain<'a> {
    commander: &'a Commander,
    earlier: Mutex<Vec<OpTime>>,
    last: Mutex<Option<OpTime>>,
    /// The database went away: what would follow is not sent.
    broken: AtomicBool,
    /// When it is given up.
    until: Instant,
}

impl Chain<'_> {
    /// Inserts documents, in no order. Each has its `_id`.
    pub async fn insert(
        &self,
        collection: Name,
        documents: &[RawDocumentBuf],
        more_follows: bool,
    ) -> Vec<Fate> {
        let mut fates = Vec::with_capacity(documents.len());
        for piece in pieces(documents) {
            let (mut now, sent_again) =
                self.send_all(collection, piece, insert_command(collection), more_follows).await;
            if sent_again && now.iter().any(is_duplicate) {
                self.commander.recognise(collection, piece, &mut now).await;
            }
            fates.extend(now);
        }
        fates
    }

    /// Inserts documents in their order, and none after one that is not inserted: how many are there, and what became of
    /// the next one. Each has its `_id`: one that is there already was inserted before.
    pub async fn insert_in_order(
        &self,
        collection: Name,
        documents: &[RawDocumentBuf],
        more_follows: bool,
    ) -> (usize, Option<Fate>) {
        let mut done = 0;
        while let Some(piece) = pieces(&documents[done..]).next() {
            if self.broken.load(Ordering::Relaxed) {
                return (done, Some(Fate::Unknown));
            }
            let last = !more_follows && done + piece.len() == documents.len();
            let wait = if last { Wait::Durable } else { Wait::Executed };
            let command = ordered_insert_command(collection, piece.iter().collect());
            let fate = match self.send(command, wait).await {
                Ok(reply) => {
                    if let Some(error) = failure::met_by_statements(&reply.document) {
                        self.commander.view.met(&error);
                    }
                    let (inserted, fate) = read_ordered(&reply, piece.len());
                    done += inserted;
                    fate
                }
                Err(Error::Failed(source)) => Some(refused(collection, &source)),
                Err(Error::Denied(denial)) => Some(Fate::Refused(denial.cause.code())),
                Err(error) => {
                    self.commander.view.met(&error);
                    self.broken.store(true, Ordering::Relaxed);
                    Some(Fate::Unknown)
                }
            };
            let Some(fate) = fate else { continue };
            let mut fates = [fate];
            self.commander.recognise(collection, &documents[done..=done], &mut fates).await;
            let [fate] = fates;
            if fate != Fate::Done {
                return (done, Some(fate));
            }
            done += 1;
        }
        (done, None)
    }

    /// Which primary has executed what was sent last, where answers say so.
    pub fn election(&self) -> Option<ObjectId> {
        let last = *self.last.lock();
        last.or_else(|| self.earlier.lock().last().copied()).map(|time| time.election)
    }

    /// When it is given up.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Runs guarded updates, in no order.
    pub async fn update(
        &self,
        collection: Name,
        statements: &[RawDocumentBuf],
        index: Option<&str>,
        more_follows: bool,
    ) -> Vec<Fate> {
        let command = update_command(collection);
        let hints = &self.commander.hints;
        let mut fates = Vec::with_capacity(statements.len());
        for piece in pieces(statements) {
            let index = index.filter(|_| hints.load(Ordering::Relaxed));
            let (mut now, _) = match index {
                None => self.send_all(collection, piece, &command, more_follows).await,
                Some(index) => {
                    let hinted: Vec<RawDocumentBuf> =
                        piece.iter().map(|statement| hinted(statement, index)).collect();
                    self.send_all(collection, &hinted, &command, more_follows).await
                }
            };
            for (fate, statement) in now.iter_mut().zip(piece) {
                // It was not executed, as it is.
                let Fate::Refused(BAD_VALUE | NO_OBJECT) = fate else { continue };
                let again = std::slice::from_ref(statement);
                if let Some(index) = index.filter(|_| *fate == Fate::Refused(BAD_VALUE)) {
                    *fate = self.send_again(collection, again, &command, more_follows).await;
                    if matches!(*fate, Fate::Done | Fate::Doubtful) {
                        tracing::warn!(%collection, index, "an index is gone that was there before");
                        hints.store(false, Ordering::Relaxed);
                    }
                }
                if let Fate::Refused(code @ (BAD_VALUE | NO_OBJECT)) = fate
                    && let Some(mended) = mended(statement, *code)
                {
                    let again = [mended];
                    *fate = self.send_again(collection, &again, &command, more_follows).await;
                }
            }
            fates.extend(now);
        }
        fates
    }

    /// One statement once more, which was refused.
    async fn send_again(
        &self,
        collection: Name,
        statement: &[RawDocumentBuf],
        command: impl Fn(RawArrayBuf) -> RawDocumentBuf,
        more_follows: bool,
    ) -> Fate {
        let (fates, _) = self.send_all(collection, statement, command, more_follows).await;
        match fates.first() {
            // What was sent first may have been executed before it was refused.
            Some(Fate::Unmatched) => Fate::Doubtful,
            Some(fate) => fate.clone(),
            None => Fate::Unknown,
        }
    }

    /// Whether everything is durable that was said to be done.
    pub async fn finish(self) -> Durability {
        let earlier = self.earlier.into_inner();
        if is_covered(&earlier, self.last.into_inner()) {
            return Durability::Certain;
        }
        let started = Instant::now();
        loop {
            match self.commander.attempt(self.commander.barrier_command(), self.until).await {
                Ok(reply) if is_covered(&earlier, OpTime::of(&reply)) => {
                    return Durability::Certain;
                }
                Ok(_) => return Durability::Elected,
                Err(Error::Unavailable(_))
                    if started.elapsed() < self.commander.patience
                        && Instant::now() < self.until =>
                {
                    tokio::time::sleep(PAUSE_BEFORE_RESEND).await;
                }
                Err(_) => return Durability::Unknown,
            }
        }
    }

    /// One command for all statements, or one for each if the database refuses it as a whole: a statement that
    /// is too large, say, must not take the others with it.
    async fn send_all(
        &self,
        collection: Name,
        statements: &[RawDocumentBuf],
        command: impl Fn(RawArrayBuf) -> RawDocumentBuf,
        more_follows: bool,
    ) -> (Vec<Fate>, bool) {
        if self.broken.load(Ordering::Relaxed) {
            return (vec![Fate::Unknown; statements.len()], false);
        }
        let denied = |denial: Denial| Fate::Refused(denial.cause.code());
        let wait = if more_follows { Wait::Executed } else { Wait::Durable };
        match self.send(command(statements.iter().collect()), wait).await {
            Ok(reply) => {
                if let Some(error) = failure::met_by_statements(&reply.document) {
                    self.commander.view.met(&error);
                }
                (read_reply(&reply, statements.len()), reply.sent_again)
            }
            Err(Error::Failed(_)) if statements.len() > 1 => {
                let mut fates = Vec::with_capacity(statements.len());
                let mut sent_again = false;
                for statement in statements {
                    let alone: RawArrayBuf = std::iter::once(statement).collect();
                    match self.send(command(alone), wait).await {
                        Ok(reply) => {
                            sent_again = true;
                            // All of them together may have been executed and answered too late.
                            let reply = Reply { sent_again: true, ..reply };
                            fates.extend(read_reply(&reply, 1));
                        }
                        Err(Error::Failed(source)) => fates.push(refused(collection, &source)),
                        Err(Error::Denied(denial)) => fates.push(denied(denial)),
                        Err(_) => fates.push(Fate::Unknown),
                    }
                }
                (fates, sent_again)
            }
            Err(Error::Failed(source)) => (vec![refused(collection, &source)], false),
            Err(Error::Denied(denial)) => (vec![denied(denial); statements.len()], false),
            Err(error) => {
                self.commander.view.met(&error);
                self.broken.store(true, Ordering::Relaxed);
                (vec![Fate::Unknown; statements.len()], false)
            }
        }
    }

    async fn send(&self, command: RawDocumentBuf, wait: Wait) -> Result<Reply> {
        let logged = self.commander.logged.load(Ordering::Relaxed);
        let wait = if logged { wait } else { Wait::Durable };
        let earlier = self.earlier.lock().clone();
        let reply = self.commander.send(command, wait, &earlier, self.until).await?;
        let time = OpTime::of(&reply.document);
        match (wait, time) {
            (Wait::Durable, time) => *self.last.lock() = time,
            (Wait::Executed, Some(time)) => self.earlier.lock().push(time),
            (Wait::Executed, None) => {
                // From now on each command waits for itself.
                self.commander.logged.store(false, Ordering::Relaxed);
                return Err(failure::no_op_time());
            }
        }
        Ok(reply)
    }
}

/// Sends write commands.
pub struct Commander {
    database: Database,
    concern: WriteConcern,
    /// The same as commands carry it.
    raw_concern: RawDocumentBuf,
    /// Whether answers say where in the log the writes are.
    logged: AtomicBool,
    patience: Duration,
    call_timeout: Duration,
    view: Arc<View>,
    /// Whether updates may name their index, which spares the database the choice.
    hints: AtomicBool,
}

impl Commander {
    pub(super) fn new(
        database: Database,
        concern: WriteConcern,
        logged: bool,
        patience: Duration,
        view: Arc<View>,
    ) -> Self {
        Commander {
            database,
            raw_concern: raw_concern(&concern),
            concern,
            logged: AtomicBool::new(logged),
            patience,
            call_timeout: patience * 2,
            view,
            hints: AtomicBool::new(true),
        }
    }

    /// The indexes are there again.
    pub fn trust_hints(&self) {
        self.hints.store(true, Ordering::Relaxed);
    }

    pub fn chain(&self) -> Chain<'_> {
        Chain {
            commander: self,
            earlier: Mutex::default(),
            last: Mutex::default(),
            broken: AtomicBool::new(false),
            until: Instant::now() + CHAIN_WITHIN,
        }
    }

    /// Inserts documents durably, in no order. Each has its `_id`.
    pub async fn insert(&self, collection: Name, documents: &[RawDocumentBuf]) -> Vec<Fate> {
        self.chain().insert(collection, documents, false).await
    }

    /// Inserts documents that have been inserted before by a primary that is one no more. `Done` are those that
    /// are there, from then or from now.
    pub async fn insert_again(&self, collection: Name, documents: &[RawDocumentBuf]) -> Vec<Fate> {
        let mut fates = self.insert(collection, documents).await;
        self.recognise(collection, documents, &mut fates).await;
        fates
    }

    /// Runs guarded updates durably, in no order.
    pub async fn update(
        &self,
        collection: Name,
        statements: &[RawDocumentBuf],
        index: Option<&str>,
    ) -> Vec<Fate> {
        self.chain().update(collection, statements, index, false).await
    }

    /// Sends one command until it is answered or patience ends. It is not sent to another primary than `earlier`
    /// commands were, which may lack what these wrote.
    async fn send(
        &self,
        mut command: RawDocumentBuf,
        wait: Wait,
        earlier: &[OpTime],
        until: Instant,
    ) -> Result<Reply> {
        match wait {
            Wait::Durable => command.append(cstr!("writeConcern"), &self.raw_concern),
            Wait::Executed => command.append(cstr!("writeConcern"), rawdoc! { "w": 1 }),
        }
        let started = Instant::now();
        let mut sent_again = false;
        loop {
            let same_primary = match sent_again && !earlier.is_empty() {
                true => self.attempt(self.barrier_command(), until).await,
                false => Ok(Document::new()),
            };
            let tried = match same_primary {
                Ok(reply) if sent_again && !is_covered(earlier, OpTime::of(&reply)) => {
                    return Err(failure::elected());
                }
                Ok(_) => self.attempt(command.clone(), until).await,
                Err(error) => Err(error),
            };
            match tried {
                Ok(document) => return Ok(Reply { document, sent_again }),
                Err(failed)
                    if !matches!(failed, Error::Unavailable(_))
                        || started.elapsed() >= self.patience
                        || Instant::now() >= until =>
                {
                    return Err(failed);
                }
                Err(_) => tokio::time::sleep(PAUSE_BEFORE_RESEND).await,
            }
            sent_again = true;
        }
    }

    async fn attempt(&self, command: RawDocumentBuf, until: Instant) -> Result<Document> {
        let left = until.saturating_duration_since(Instant::now()).min(self.call_timeout);
        let attempt = self.attempt_within(command, left);
        self.view.guarded(left.min(self.patience), attempt).await
    }

    async fn attempt_within(&self, command: RawDocumentBuf, left: Duration) -> Result<Document> {
        let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
        let call = self.database.run_raw_command(command).selection_criteria(primary);
        let answer = tokio::time::timeout(left, call).await;
        if matches!(answer, Ok(Ok(_))) {
            self.view.heard();
        }
        match answer {
            Err(_) => Err(silent(&self.database, &self.view).await),
            Ok(Ok(document)) => match concern_failure(&document) {
                None => Ok(document),
                Some(code) => Err(failure::concern(code)),
            },
            Ok(Err(error)) => Err(self.view.judged(failure::error(error))),
        }
    }

    /// Changes nothing. A write that changes nothing waits until everything before it is durable.
    fn barrier_command(&self) -> RawDocumentBuf {
        let nothing =
            update_statement(rawdoc! { "_id": "nothing" }, rawdoc! { "$set": { "value": 0 } });
        let mut command = update_command(META)(std::iter::once(&nothing).collect());
        command.append(cstr!("writeConcern"), &self.raw_concern);
        command
    }

    /// Of the documents whose keys were taken when they were sent again, finds those that took them themselves.
    async fn recognise(&self, collection: Name, documents: &[RawDocumentBuf], fates: &mut [Fate]) {
        if !fates.iter().any(is_duplicate) {
            return;
        }
        let id = |document: &RawDocumentBuf| document.get_object_id("_id").ok();
        let asked: Vec<ObjectId> = documents
            .iter()
            .zip(fates.iter())
            .filter(|(_, fate)| is_duplicate(fate))
            .filter_map(|(document, _)| id(document))
            .collect();
        let find = async {
            let mut found = HashSet::new();
            let local = ReadConcern::local();
            let collection = Collection::open(
                (&self.database, &self.database),
                collection,
                local,
                self.concern.clone(),
            );
            let find = collection.find(doc! { "_id": { "$in": asked } });
            let mut rows =
                Rows::open(find.projection(doc! { "_id": 1 }), self.call_timeout).await?;
            while let Some(raw) = rows.next().await? {
                found.extend(raw.get_object_id("_id").ok());
            }
            Ok::<_, Error>(found)
        };
        let found = match tokio::time::timeout(self.call_timeout, find).await {
            Ok(Ok(found)) => Some(found),
            _ => None,
        };
        for (document, fate) in documents.iter().zip(fates) {
            if !is_duplicate(fate) {
                continue;
            }
            match &found {
                None => *fate = Fate::Unknown,
                Some(found) if id(document).is_some_and(|id| found.contains(&id)) => {
                    *fate = Fate::Done;
                }
                Some(_) => {}
            }
        }
    }
}

fn is_duplicate(fate: &Fate) -> bool {
    matches!(fate, Fate::Duplicate(_))
}

/// A write concern as commands carry it.
fn raw_concern(concern: &WriteConcern) -> RawDocumentBuf {
    let mut document = RawDocumentBuf::new();
    match &concern.w {
        Some(Acknowledgment::Nodes(nodes)) => {
            document.append(cstr!("w"), i32::try_from(*nodes).unwrap_or(1).max(1));
        }
        Some(Acknowledgment::Custom(tag)) => document.append(cstr!("w"), tag.as_str()),
        _ => document.append(cstr!("w"), "majority"),
    }
    if let Some(journal) = concern.journal {
        document.append(cstr!("j"), journal);
    }
    if let Some(wait) = concern.w_timeout {
        let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
        document.append(cstr!("wtimeout"), wait);
    }
    document
}
