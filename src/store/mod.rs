//! What a store promises, whichever database is behind it. Backends are twins: the same files, the same
//! conformance suite. Nothing here or above names a driver.

pub mod artifacts;
pub mod audit;
pub mod configurations;
pub mod error;
pub mod inspect;
pub mod keys;
pub mod leads;
pub mod metrics;
pub mod mirrors;
pub mod mongo;
pub mod notifications;
pub mod observed;
pub mod plan;
pub mod retention;
pub mod rollups;
pub mod scan;
pub mod search;
pub mod signals;
pub mod sqlite;
pub mod write;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;

use crate::domain::execution::SignOfLife;
use crate::domain::notification::Standing;
use crate::domain::query::{
    ArtifactKey, ArtifactQuery, Count, CountQuery, ExecutionKey, ExecutionQuery, Page, StepCounts,
    StepQuery,
};
use crate::domain::{Artifact, Execution, Millis, Step, StepRef};

pub use error::{Cause, Denial, Error, Outage, Result, Unavailable};
pub use write::{Answer, Applied, By, Op, Record, RecordKey, Write};

/// What the database is, for GetServerInfo and logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreInfo {
    /// "sqlite" or "mongodb".
    pub name: &'static str,
    /// Version of the database; empty while it is away.
    pub version: String,
    /// Its id, which is kept in it; empty until it was reached.
    pub database_id: String,
    /// Whether there is a log to watch (not on a standalone mongod).
    pub watchable: bool,
}

/// A running execution with a heartbeat timeout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub execution_id: String,
    pub heartbeat_timeout_ms: i64,
    /// What its own record shows.
    pub sign: SignOfLife,
    /// It is as a mirror has brought it.
    pub held_elsewhere: bool,
}

/// Executions and steps, durable.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Applies writes, each atomically and each with its own outcome, in the order given for writes of one
    /// execution. An answer means the write is durable (and safe from a failover). Two calls never carry
    /// writes of one execution at the same time; a Delete comes alone. Never half-applies a write, except that
    /// a plan of many steps cut short by a crash is completed by its repetition. A Delete only marks the
    /// execution, which ends it for everybody and tells watchers; `remove` does the rest.
    async fn apply(&self, writes: Vec<Write>) -> Applied;

    /// How many `apply` calls this store wants at a time, from 1.
    fn lanes(&self) -> usize;

    /// The execution, unless it is being deleted.
    async fn execution(&self, execution_id: &str) -> Result<Option<Execution>>;

    /// Whether there is such an execution that is being deleted. What it has is there for nobody any more, though
    /// it goes piece by piece.
    async fn is_being_deleted(&self, execution_id: &str) -> Result<bool>;

    /// The step, with its payloads if asked.
    async fn step(
        &self,
        execution_id: &str,
        step: &StepRef,
        payloads: bool,
    ) -> Result<Option<Step>>;

    /// One page by start time, keyset, at most `limit` records found among at most `examine` read.
    async fn executions(&self, query: &ExecutionQuery) -> Result<Page<Execution, ExecutionKey>>;

    /// How many executions match, from the indexes alone where they decide.
    async fn count_executions(&self, query: &CountQuery) -> Result<Count>;

    /// How many documents of executions have no usable id, so that they are in no list and no report: other programs may
    /// store such. Counted up to some ten thousand.
    async fn unreadable_executions(&self) -> Result<u64>;

    /// How many steps of each execution stand where, in the order asked for, by one query that reads at most
    /// `examine` keys of an index. Steps are counted by execution id: where that is too few, the last ids come
    /// out with too little and say so.
    async fn step_counts(
        &self,
        execution_ids: &[String],
        examine: usize,
    ) -> Result<Vec<StepCounts>>;

    /// One page of steps by id, at most `limit` found among at most `examine` read.
    async fn steps(&self, query: &StepQuery) -> Result<Page<Step, i32>>;

    /// One page of the artifacts of an execution, in the order in which they were stored.
    async fn artifacts(&self, query: &ArtifactQuery) -> Result<Page<Artifact, ArtifactKey>>;

    /// Running executions with a heartbeat timeout.
    async fn leases(&self) -> Result<Vec<Lease>>;

    /// What the steps of these executions show, of those that have steps. A client's own time that lies after `now`
    /// shows nothing.
    async fn signs_in_steps(
        &self,
        execution_ids: &[String],
        now: Millis,
    ) -> Result<HashMap<String, SignOfLife>>;

    /// A secret of 32 bytes that all servers on this database share, for signing tokens; made on first use.
    async fn secret(&self) -> Result<[u8; 32]>;

    /// Answers when the database does, with nothing written.
    async fn ping(&self) -> Result<()>;

    /// Writes something of its own, as durable as a record, that nobody sees: whether writes are possible.
    async fn probe_write(&self) -> Result<()>;

    /// What it is.
    fn info(&self) -> StoreInfo;

    /// The log of changes. `Error::NoLog` on a standalone mongod.
    fn log(&self) -> Result<Arc<dyn ChangeLog>>;

    /// Takes a marked execution away with everything it has: its steps, and its artifacts, which it marks for
    /// the sweep of their bytes; at last the record, and with that the id is free again. In pieces, so that
    /// writers get their turn in between. Does nothing if there is no such execution or it is not marked. May be
    /// cut short anywhere and called again, also by several at once: what is stored under the id afterwards is
    /// never touched. The answer is how many artifacts it has marked.
    async fn remove(&self, execution_id: &str) -> Result<u64>;

    /// Goes on with deletes that a crash cut short, and does what else keeps the store bounded.
    async fn sweep(&self) -> Result<()>;

    /// Ends background work and flushes. Nothing is called afterwards.
    async fn close(&self);
}

/// A position in the log of changes: opaque bytes that sort in log order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cursor(pub Vec<u8>);

/// What happened to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    Created,
    Updated,
    Deleted,
}

/// What kind of records a document is one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Collection {
    Executions,
    Steps,
    Artifacts,
}

/// Which record a change is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Changed {
    Record(RecordKey),
    /// Another program changed or deleted a document and the log does not say which record it holds: its `_id`.
    /// `ChangeLog::load` can still find it by that.
    Unknown {
        collection: Collection,
        id: Vec<u8>,
    },
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The position right after this change.
    pub cursor: Cursor,
    /// When it was committed.
    pub at: Millis,
    pub what: Changed,
    pub kind: ChangeKind,
    /// The record's revision with this change. `None`: another program's change left the revision alone. Says
    /// nothing about artifacts, which only come and go.
    pub revision: Option<i64>,
    /// Whether the change set the status or the metadata of an execution: it may have left a filter.
    pub status_changed: bool,
    pub metadata_changed: bool,
    /// Of a step: whether it is failed with this change. `None`: the log does not tell.
    pub failed: Option<bool>,
    /// What it says of where its record stands. `None`: the log does not tell, and nobody knows what the change set; or it
    /// has the whole record.
    pub standing: Option<Standing>,
    /// The whole new record without payloads, where the log itself carries it.
    pub body: Option<Record>,
    /// Identity of the stored document, where the log tells: by it a later `Unknown` delete is understood.
    pub document_id: Option<Vec<u8>>,
}

/// The log of changes in commit order: a change stream, or a table. The log alone makes events, their order
/// and their tokens.
#[async_trait]
pub trait ChangeLog: Send + Sync {
    /// A reader of everything after `after`, or after now. `Error::CursorExpired` when history no longer
    /// covers it.
    async fn open(&self, after: Option<&Cursor>) -> Result<Box<dyn ChangeReader>>;

    /// The number of the newest change committed so far; `ChangeReader::position` reaches it in time.
    async fn position(&self) -> Result<u64>;

    /// Makes readers that wait for a change answer now, with none, and with a cursor at or after this moment.
    async fn nudge(&self) -> Result<()>;

    /// The number behind a cursor, comparable with `position`. `None`: these bytes are no cursor.
    fn position_of(&self, cursor: &Cursor) -> Option<u64>;

    /// The number up to which surely every change is before this cursor. Several changes may have one number, and a
    /// cursor may be between them.
    fn complete_through(&self, cursor: &Cursor) -> Option<u64> {
        self.position_of(cursor)
    }

    /// A cursor a little before this one, where this one is too long for a client to keep. What lies between comes once
    /// more to who goes on from it.
    fn shortened(&self, _: &Cursor) -> Option<Cursor> {
        None
    }

    /// The oldest cursor from which everything is still there, where the log tells.
    fn oldest(&self) -> Option<Cursor> {
        None
    }

    /// When what has this number was committed, where the number says it.
    fn moment_of(&self, _position: u64) -> Option<Millis> {
        None
    }

    /// The current records, in one query per collection. What is gone is left out. With `payloads`, steps come
    /// with input and output.
    async fn load(&self, what: &[Changed], payloads: bool) -> Result<Vec<(Changed, Record)>>;
}

/// One pass over the log.
#[async_trait]
pub trait ChangeReader: Send {
    /// The next changes, oldest first, at most a few hundred. Waits up to a second for one; empty means that
    /// there is none yet, and the cursor may have moved all the same. Cancel-safe.
    async fn next(&mut self) -> Result<Vec<Change>>;

    /// The position after everything returned so far.
    fn cursor(&self) -> Cursor;
}
