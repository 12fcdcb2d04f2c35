//! Export: a walk over everything that matches a filter, then what changed meanwhile from the log of changes, so that
//! nothing acknowledged before it began is missing, however long it takes. It stops anywhere and goes on from a token.

mod batch;
mod follow;
mod parts;
mod question;
mod sent;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::batch::{Batch, Name, named};
pub use self::question::wants_configuration;
pub use self::question::{Part, Question};
use self::sent::Sent;
use super::token::{Kind, Tokens};
use super::{App, Error, Result};
use crate::clock::Clock;
use crate::domain::access::AppScope;
use crate::domain::configuration::{AppRef, ConfigurationQuery, Place};
use crate::domain::query::{ExecutionKey, ExecutionOrder, ExecutionQuery};
use crate::domain::{Artifact, Configuration, Execution, MetricPoint, Millis, Step};
use crate::store::configurations::ConfigurationStore;
use crate::store::metrics::MetricStore;
use crate::store::scan::ScanStore;
use crate::store::{Change, ChangeLog, Changed, Cursor, Record, RecordKey, Store};

/// Executions, artifacts and configurations asked of the store at a time.
const RECORDS: usize = 100;
/// Changed records loaded with their payloads at a time, of which one may have 12 MiB: so many while they are small, and one
/// after those that were not.
const LOADED: usize = 16;
const LOADED_BYTES: usize = 4 * 1024 * 1024;
/// Executions of which what belongs to them is read together: most have little, and waiting for one after the other takes longer
/// than all the reading.
const READ_AHEAD: usize = 8;

/// Pieces, each with what is left after it where that can be said, and what is left after all of them.
type Pieces = (Vec<(Option<Within>, Piece)>, Within);
/// First pages, by execution and kind.
type Ahead = HashMap<(String, std::mem::Discriminant<Within>), Pieces>;

/// How long an error waits for a client that does not read.
const LAST_WITHIN: Duration = Duration::from_secs(3);

/// One thing that is exported.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    Execution(Arc<Execution>),
    Step(Arc<Step>),
    Artifact(Arc<Artifact>),
    Points {
        execution_id: String,
        points: Vec<MetricPoint>,
    },
    Configuration(Configuration),
    /// There no more; without a step or an artifact the execution with all it had.
    Removed {
        execution_id: String,
        step_id: Option<i32>,
        artifact_id: Option<String>,
    },
    /// With how many documents that are no records, where that was asked for.
    Walked(u64),
    /// Where the log was at the beginning, and up to where it is in. `None`: there is no log.
    Complete(Option<(u64, u64)>),
    /// Everything up to this position was sent. How long ago the log was there.
    CaughtUp {
        position: u64,
        age: Duration,
    },
}

/// A piece with the token to go on from after it, and the position of the log as new as which it surely is.
pub type Exported = (String, Option<u64>, Piece);

/// What of an execution is still to come after it was sent itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Within {
    Steps(Option<i32>),
    Artifacts(Option<Vec<u8>>),
    Points(Option<(Millis, Vec<u8>)>),
    Nothing,
}

/// The key of an execution: its start, its id, what stands there instead, and how many of this key were passed.
type Key = (Option<Millis>, String, Option<Vec<u8>>, u32);

fn key_of(key: ExecutionKey) -> Key {
    (key.started_at, key.execution_id, key.odd, key.passed)
}

/// Where an export stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum At {
    /// After this execution, of which this is left.
    Executions {
        after: Option<Key>,
        within: Within,
    },
    Configurations {
        after: Option<Vec<u8>>,
    },
    /// What belongs to no execution.
    Rest,
    /// After this cursor of the log, until this position is in.
    Log {
        after: Vec<u8>,
        until: u64,
    },
    Complete,
    /// After this cursor of the log, without an end.
    Follow {
        after: Vec<u8>,
    },
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Standing {
    /// The log at the beginning: its cursor and position.
    since: Option<(Vec<u8>, u64)>,
    at: At,
}

/// Exports over the stores.
pub struct Exports {
    app: Arc<App>,
    configurations: Arc<dyn ConfigurationStore>,
    metrics: Arc<dyn MetricStore>,
    scan: Arc<dyn ScanStore>,
    clock: Arc<dyn Clock>,
}

/// One export under way.
pub struct Export {
    exports: Arc<Exports>,
    question: Question,
    identity: String,
    tokens: Arc<Tokens>,
    standing: Standing,
    /// What the token of the last message says.
    told_standing: Standing,
    /// As new as that is what is sent now.
    position: Option<u64>,
    /// Not sent yet: its token may be the one after it.
    held: Option<(Option<u64>, Piece)>,
    sent: Sent,
    ahead: Ahead,
    /// Changed records loaded at a time.
    at_once: usize,
    /// For who may not see every app: executions that were told of. Of a delete the log keeps no more than the id, and
    /// only who was told of the execution is told that it is gone.
    told: Option<HashSet<String>>,
    out: mpsc::Sender<Result<Exported>>,
}

/// The reader is gone, or reading failed.
enum Ended {
    Unread,
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Ended {
    fn from(error: E) -> Self {
        Ended::Failed(error.into())
    }
}

impl Exports {
    pub fn new(
        app: Arc<App>,
        configurations: Arc<dyn ConfigurationStore>,
        metrics: Arc<dyn MetricStore>,
        scan: Arc<dyn ScanStore>,
        clock: Arc<dyn Clock>,
    ) -> Arc<Exports> {
        Arc::new(Exports { app, configurations, metrics, scan, clock })
    }

    pub fn app(&self) -> &App {
        &self.app
    }

    pub(super) fn configurations(&self) -> &Arc<dyn ConfigurationStore> {
        &self.configurations
    }

    pub(super) fn metrics(&self) -> &Arc<dyn MetricStore> {
        &self.metrics
    }

    pub(super) fn scan(&self) -> &Arc<dyn ScanStore> {
        &self.scan
    }

    fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    fn store(&self) -> &Arc<dyn Store> {
        self.app.store()
    }

    pub(super) fn log(&self) -> Result<Option<Arc<dyn ChangeLog>>> {
        match self.store().log() {
            Ok(log) => Ok(Some(log)),
            Err(crate::store::Error::NoLog) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Prepares an export, whose pieces go to `out`.
    pub async fn begin(
        self: &Arc<Self>,
        question: Question,
        out: mpsc::Sender<Result<Exported>>,
    ) -> Result<Export> {
        let tokens = self.app.tokens().await?;
        let identity = question.identity();
        let standing = if question.token.is_empty() {
            let since = match self.log()? {
                None => None,
                Some(log) => match log.open(None).await {
                    Err(crate::store::Error::NoLog) => None,
                    opened => {
                        let cursor = opened?.cursor();
                        let position = log.position_of(&cursor).unwrap_or(0);
                        Some((cursor.0, position))
                    }
                },
            };
            Standing { since, at: At::Executions { after: None, within: Within::Nothing } }
        } else {
            tokens
                .open(Kind::Export, identity.as_bytes(), &question.token)
                .and_then(|bytes| serde_json::from_slice(&bytes).ok())
                .ok_or(Error::BadToken("resume_token"))?
        };
        if !question.token.is_empty() && !question.filter.scope.is_all() {
            // What the stream before has told of is not known any more.
            return Err(Error::Store(crate::store::Error::CursorExpired));
        }
        if question.follow && standing.since.is_none() {
            return Err(Error::Store(crate::store::Error::NoLog));
        }
        let exports = Arc::clone(self);
        let told = (!question.filter.scope.is_all()).then(HashSet::new);
        Ok(Export {
            exports,
            question,
            identity,
            tokens,
            told_standing: standing.clone(),
            position: standing.since.as_ref().map(|(_, position)| *position),
            standing,
            held: None,
            sent: Sent::default(),
            ahead: Ahead::default(),
            at_once: 1,
            told,
            out,
        })
    }
}

impl Export {
    /// Sends everything that is left, at last an error if there was one. Ends early when nobody receives it any more.
    pub async fn run(mut self, stop: CancellationToken) {
        let error = match stop.run_until_cancelled(self.all()).await {
            Some(Ok(()) | Err(Ended::Unread)) => return,
            Some(Err(Ended::Failed(error))) => error,
            None => Error::ShuttingDown,
        };
        // The client may be slow, but not slower than the shutdown.
        let _ = tokio::time::timeout(LAST_WITHIN, self.out.send(Err(error))).await;
    }

    async fn all(&mut self) -> std::result::Result<(), Ended> {
        loop {
            match self.standing.at.clone() {
                At::Executions { after, within } => self.executions(after, within).await?,
                At::Configurations { after } => self.all_configurations(after).await?,
                At::Rest => self.walked().await?,
                At::Log { after, until } => self.changes(Cursor(after), until).await?,
                At::Follow { after } if self.question.follow => self.follow(Cursor(after)).await?,
                At::Complete | At::Follow { .. } => return Ok(()),
            }
        }
    }

    /// Sends a piece. Until `moved_to` says otherwise a resume sends it again.
    async fn push(&mut self, piece: Piece) -> std::result::Result<(), Ended> {
        if let Some(told) = &mut self.told {
            match &piece {
                Piece::Removed { execution_id, step_id, artifact_id } => {
                    if !told.contains(execution_id) {
                        return Ok(());
                    }
                    if step_id.is_none() && artifact_id.is_none() {
                        told.remove(execution_id);
                    }
                }
                Piece::Step(step) => drop(told.insert(step.execution_id.clone())),
                Piece::Execution(execution) => drop(told.insert(execution.execution_id.clone())),
                Piece::Artifact(artifact) => drop(told.insert(artifact.execution_id.clone())),
                Piece::Points { execution_id, .. } => drop(told.insert(execution_id.clone())),
                Piece::Configuration(_)
                | Piece::Walked(_)
                | Piece::Complete(_)
                | Piece::CaughtUp { .. } => {}
            }
        }
        self.flush().await?;
        self.held = Some((self.position, piece));
        Ok(())
    }

    /// After all that was pushed so far an export goes on from here.
    async fn moved_to(&mut self, at: At) -> std::result::Result<(), Ended> {
        self.standing.at = at;
        if self.held.is_some() {
            self.told_standing = self.standing.clone();
        }
        self.flush().await
    }

    /// Sends what is held, with the token of the message before it unless the export has moved on since.
    async fn flush(&mut self) -> std::result::Result<(), Ended> {
        let Some((position, piece)) = self.held.take() else { return Ok(()) };
        let place = serde_json::to_vec(&self.told_standing).expect("numbers, bytes and texts");
        let token = self.tokens.seal(Kind::Export, self.identity.as_bytes(), &place);
        self.out.send(Ok((token, position, piece))).await.map_err(|_| Ended::Unread)
    }

    async fn executions(
        &mut self,
        after: Option<Key>,
        within: Within,
    ) -> std::result::Result<(), Ended> {
        if let Some(key) = &after {
            self.parts_of(key.clone(), within).await?;
        }
        let mut after = after;
        loop {
            let query =
                ExecutionQuery {
                    filter: self.question.filter.clone(),
                    order: ExecutionOrder::StartedAtAsc,
                    after: after.clone().map(|(started_at, execution_id, odd, passed)| {
                        ExecutionKey { started_at, execution_id, odd, passed }
                    }),
                    limit: RECORDS,
                    examine: self.exports.app.limits().page_examined_records,
                };
            let page = self.exports.store().executions(&query).await?;
            let first = |index: usize| index.is_multiple_of(READ_AHEAD);
            let ids: Vec<String> =
                page.records.iter().map(|record| record.execution_id.clone()).collect();
            for (index, record) in page.records.into_iter().enumerate() {
                if first(index) {
                    self.read_ahead(ids[index..].iter().take(READ_AHEAD)).await?;
                }
                let key = key_of(ExecutionKey::of(&record));
                if self.question.wants(Part::Executions) {
                    self.push(Piece::Execution(Arc::new(record))).await?;
                }
                let within = Within::Steps(None);
                self.moved_to(At::Executions { after: Some(key.clone()), within }).await?;
                self.parts_of(key, Within::Steps(None)).await?;
            }
            match page.next {
                Some(key) => after = Some(key_of(key)),
                None => break,
            }
        }
        self.moved_to(At::Configurations { after: None }).await
    }

    async fn all_configurations(
        &mut self,
        mut after: Option<Vec<u8>>,
    ) -> std::result::Result<(), Ended> {
        while self.question.wants(Part::Configurations) {
            let limits = self.exports.app.limits();
            let query = ConfigurationQuery {
                app: AppRef::default(),
                after: after.clone().map(Place),
                limit: RECORDS,
                examine: limits.page_examined_records,
                bytes: limits.page_bytes,
            };
            let page = self.exports.configurations.configurations(&query, &AppScope::all()).await?;
            for listed in page.records {
                if wants_configuration(&self.question.filter, &listed.record) {
                    self.sent.is_new(&listed.record);
                    self.push(Piece::Configuration(listed.record)).await?;
                }
                self.moved_to(At::Configurations { after: Some(listed.place.0) }).await?;
            }
            match page.next {
                Some(place) => after = Some(place.0),
                None => break,
            }
        }
        self.moved_to(At::Rest).await
    }

    /// The end of the walk.
    async fn walked(&mut self) -> std::result::Result<(), Ended> {
        let unreadable = if self.question.follow { self.without_execution().await? } else { 0 };
        match (&self.standing.since, self.exports.log()?) {
            (Some((cursor, _)), Some(log)) => {
                let until = log.position().await?;
                let at = At::Log { after: cursor.clone(), until };
                self.push(Piece::Walked(unreadable)).await?;
                self.moved_to(at).await
            }
            _ => {
                self.push(Piece::Walked(unreadable)).await?;
                self.push(Piece::Complete(None)).await?;
                self.moved_to(At::Complete).await
            }
        }
    }

    /// What changed from the beginning to the end of the walk.
    async fn changes(&mut self, after: Cursor, until: u64) -> std::result::Result<(), Ended> {
        let Some(log) = self.exports.log()? else {
            return Err(Error::Store(crate::store::Error::NoLog).into());
        };
        let mut reader = log.open(Some(&after)).await?;
        loop {
            let through = reader.cursor();
            if log.complete_through(&through).is_some_and(|position| position >= until) {
                break;
            }
            let changes = reader.next().await?;
            if changes.is_empty() {
                // The end of the log may be behind what was asked for until something is written.
                log.nudge().await?;
            } else {
                self.at_position(log.position_of(&reader.cursor()));
                self.changed(log.as_ref(), &changes).await?;
                self.moved_to(At::Log { after: reader.cursor().0, until }).await?;
            }
        }
        let since = self.standing.since.as_ref().map_or(0, |(_, position)| *position);
        self.push(Piece::Complete(Some((since, until)))).await?;
        self.moved_to(match self.question.follow {
            true => At::Follow { after: reader.cursor().0 },
            false => At::Complete,
        })
        .await
    }

    /// The records of some changes, as they are by now.
    async fn changed(
        &mut self,
        log: &dyn ChangeLog,
        changes: &[Change],
    ) -> std::result::Result<(), Ended> {
        self.ahead.clear();
        let mut batch = Batch::of(changes, self.question.may_come_to_match());
        let told: HashSet<Name> = batch.deleted.iter().cloned().collect();
        for (execution_id, step_id, artifact_id) in std::mem::take(&mut batch.deleted) {
            self.push(Piece::Removed { execution_id, step_id, artifact_id }).await?;
        }
        if batch.lost && self.question.follow {
            let (execution_id, step_id, artifact_id) = (String::new(), None, None);
            self.push(Piece::Removed { execution_id, step_id, artifact_id }).await?;
        }
        let mut found: Vec<Record> = Vec::new();
        let mut left = batch.what.as_slice();
        while !left.is_empty() {
            let some;
            (some, left) = left.split_at(self.at_once.min(left.len()));
            let loaded = log.load(some, true).await?;
            let bytes: usize = loaded.iter().map(|(_, record)| record.weight()).sum();
            self.at_once = if bytes > LOADED_BYTES { 1 } else { (self.at_once * 2).min(LOADED) };
            let there: HashSet<&Changed> = loaded.iter().map(|(changed, _)| changed).collect();
            for changed in some.iter().filter(|changed| !there.contains(changed)) {
                if let Changed::Record(key) = changed {
                    let (execution_id, step_id, artifact_id) = named(key);
                    let name = (execution_id.clone(), step_id, artifact_id.clone());
                    if told.contains(&name) || told.contains(&(execution_id.clone(), None, None)) {
                        continue;
                    }
                    self.push(Piece::Removed { execution_id, step_id, artifact_id }).await?;
                }
            }
            found.extend(loaded.into_iter().map(|(_, record)| record));
            let matching = self.matching(log, &found).await?;
            let whole: Vec<String> = found
                .iter()
                .filter(|record| record.key().is_execution())
                .map(|record| record.key().execution_id)
                .filter(|id| batch.whole.contains(id) && matching.get(id) == Some(&true))
                .collect();
            let mut whole = whole.chunks(READ_AHEAD);
            for record in found.drain(..) {
                let is_whole =
                    record.key().is_execution() && batch.whole.contains(&record.key().execution_id);
                if is_whole
                    && self.ahead.is_empty()
                    && let Some(some) = whole.next()
                {
                    self.read_ahead(some.iter()).await?;
                }
                self.record(record, &matching, &batch.whole).await?;
            }
        }
        Ok(())
    }

    /// Which executions that these records are of match the filter.
    async fn matching(
        &self,
        log: &dyn ChangeLog,
        records: &[Record],
    ) -> std::result::Result<HashMap<String, bool>, Ended> {
        let mut ids: BTreeSet<String> =
            records.iter().map(|record| named(&record.key()).0).collect();
        let mut matching = HashMap::new();
        for record in records {
            if let Record::Execution(execution) = record {
                ids.remove(&execution.execution_id);
                let matches = self.question.filter.matches(execution);
                matching.insert(execution.execution_id.clone(), matches);
            }
        }
        if self.question.filter.is_empty() {
            matching.extend(ids.into_iter().map(|id| (id, true)));
            return Ok(matching);
        }
        let what: Vec<Changed> =
            ids.iter().map(|id| Changed::Record(RecordKey::execution(id))).collect();
        for (_, record) in log.load(&what, false).await? {
            if let Record::Execution(execution) = record {
                let matches = self.question.filter.matches(&execution);
                matching.insert(execution.execution_id.clone(), matches);
            }
        }
        Ok(matching)
    }

    async fn record(
        &mut self,
        record: Record,
        matching: &HashMap<String, bool>,
        whole: &HashSet<String>,
    ) -> std::result::Result<(), Ended> {
        let (execution_id, ..) = named(&record.key());
        let matches = matching.get(&execution_id) == Some(&true);
        match record {
            Record::Execution(execution) if matches => {
                if self.question.wants(Part::Executions) {
                    self.push(Piece::Execution(execution)).await?;
                }
                let mut within = if whole.contains(&execution_id) {
                    // Of one that was there before, nobody may have any more what was sent.
                    self.sent.begin_points(&execution_id);
                    Within::Steps(None)
                } else {
                    Within::Nothing
                };
                while within != Within::Nothing {
                    let (pieces, next) = self.some_of(&execution_id, &within).await?;
                    for (_, piece) in pieces {
                        self.push(piece).await?;
                    }
                    within = next;
                }
                Ok(())
            }
            Record::Execution(_) => {
                self.push(Piece::Removed { execution_id, step_id: None, artifact_id: None }).await
            }
            Record::Step(step) if matches && self.question.wants(Part::Steps) => {
                self.push(Piece::Step(step)).await
            }
            Record::Artifact(artifact) if matches && self.question.wants(Part::Artifacts) => {
                self.push(Piece::Artifact(artifact)).await
            }
            Record::Step(_) | Record::Artifact(_) => Ok(()),
        }
    }
}
