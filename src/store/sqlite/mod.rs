//! The SQLite backend: one file, one writer thread, a few connections that read. Everything that blocks runs
//! on threads of its own, never on the runtime's. Knows nothing of protocols.

mod apply;
mod artifact_rows;
mod artifacts;
mod audit;
mod batch;
mod changes;
mod configurations;
mod files;
pub mod inspect;
mod keys;
mod known;
mod leads;
mod lists;
mod metrics;
mod mirrors;
mod notifications;
mod read;
mod remove;
mod retention;
mod rollup_rows;
mod rollup_writes;
mod rollups;
mod rows;
mod scan;
mod schema;
mod search;
mod standing;

use std::collections::HashMap;
use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::{
    Applied, ChangeLog, Error, Lease, Outage, Result, Store, StoreInfo, Unavailable, Write,
};
use crate::clock::Clock;
use crate::detached::outside_replies;
use crate::domain::execution::SignOfLife;
use crate::domain::limits::Limits;
use crate::domain::query::{
    ArtifactKey, ArtifactQuery, Count, CountQuery, ExecutionKey, ExecutionQuery, Page, StepCounts,
    StepQuery,
};
use crate::domain::{Artifact, Execution, Millis, Step, StepRef};

use apply::{Job, Writer};
use files::Files;

/// The database in its directory. Other files there are left alone.
const DATABASE_FILE: &str = "stepwell.db";
/// Held locked while a server uses the directory; the kernel lets go of it however the server ends.
const LOCK_FILE: &str = "stepwell.lock";
/// Who may read and write the database: its owner.
const PRIVATE: u32 = 0o600;
/// SQLITE_READONLY_DBMOVED.
const MOVED: i32 = 1032;
/// How long a write waits for the writer and the disk before its client is told that there is no answer.
const WRITE_PATIENCE: Duration = Duration::from_millis(9_500);
/// How long a read waits for one of the connections.
const READ_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes that are written to find out whether there is room: more than what is left in a page.
const PROBE_BYTES: i64 = 256 * 1024;
/// Calls that may wait for the writer; it takes several into one transaction.
const QUEUED_JOBS: usize = 64;

/// When a commit counts as durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Synchronous {
    /// When the disk has it: a power cut loses nothing that was answered.
    #[default]
    Full,
    /// When the system has it: a power cut may lose the last moments, a crash of the server loses nothing.
    Normal,
}

/// What an operator may choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteOptions {
    pub synchronous: Synchronous,
    /// Changes kept for watchers that resume.
    pub changes_kept: u64,
    /// How long a change is kept at most.
    pub changes_age: Duration,
    /// How long a point of metrics is kept; `None`: for ever.
    pub metrics_kept: Option<Duration>,
    /// How long a record of who did what is kept; `None`: for ever.
    pub audit_kept: Option<Duration>,
    /// Connections that read, and so reads at a time.
    pub readers: usize,
    /// How long to wait for another program that holds the database file.
    pub busy_timeout: Duration,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        SqliteOptions {
            synchronous: Synchronous::Full,
            changes_kept: 2_000_000,
            changes_age: Duration::from_secs(7 * 24 * 3600),
            metrics_kept: Some(Duration::from_secs(30 * 24 * 3600)),
            audit_kept: None,
            readers: 4,
            busy_timeout: Duration::from_secs(5),
        }
    }
}

/// Why a data directory cannot be used. These words are for the operator at the start of the server.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the data directory {} is in use by another server", .dir.display())]
    InUse { dir: PathBuf },
    #[error("cannot use {}", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is a database of another program", .path.display())]
    NotOurs { path: PathBuf },
    #[error(
        "{} has schema version {found}, this server knows versions up to {known}: use a newer one",
        .path.display()
    )]
    TooNew { path: PathBuf, found: i64, known: i64 },
    #[error("the database failed")]
    Database(#[from] rusqlite::Error),
}

/// The driver's error in the words of a store. `Files::judged` says more of one that has to do with the files.
fn store_error(error: rusqlite::Error) -> Error {
    use ErrorCode::*;
    match error.sqlite_error_code() {
        Some(DiskFull) => Error::out(Outage::Full, error),
        Some(ReadOnly) if error.sqlite_error().is_some_and(|said| said.extended_code == MOVED) => {
            Error::out(Outage::Gone, error)
        }
        Some(ReadOnly) => Error::out(Outage::ReadOnly, error),
        // The state of the machine, not of the call: the same call may succeed in a moment.
        Some(
            DatabaseBusy
            | DatabaseLocked
            | SystemIoFailure
            | CannotOpen
            | OutOfMemory
            | PermissionDenied
            | FileLockingProtocolFailed
            | OperationInterrupted,
        ) => Error::unavailable(error),
        _ => Error::failed(error),
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        store_error(error)
    }
}

/// How far the log reaches.
struct LogEnds {
    /// The newest number that is committed. Its change is the wake-up of readers.
    committed: watch::Sender<u64>,
    /// The newest number that is no longer kept.
    pruned_through: AtomicU64,
}

impl LogEnds {
    fn newest(&self) -> u64 {
        *self.committed.borrow()
    }

    fn pruned_through(&self) -> u64 {
        self.pruned_through.load(Ordering::Acquire)
    }
}

/// A bounded number of connections that read.
struct Readers {
    path: PathBuf,
    busy_timeout: Duration,
    count: usize,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
    /// Let go only after the connections.
    files: Arc<Files>,
}

impl Readers {
    fn open(
        path: &Path,
        busy_timeout: Duration,
        count: usize,
        files: &Arc<Files>,
    ) -> Result<Arc<Readers>, OpenError> {
        let mut idle = Vec::with_capacity(count);
        for _ in 0..count {
            idle.push(schema::open_reader(path, busy_timeout)?);
        }
        Ok(Arc::new(Readers {
            path: path.to_owned(),
            busy_timeout,
            count,
            permits: Arc::new(Semaphore::new(count)),
            idle: Mutex::new(idle),
            files: Arc::clone(files),
        }))
    }

    /// Runs `work` on a thread that may block, with a connection of its own.
    async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = outside_replies(Arc::clone(&self.permits).acquire_owned());
        let permit = match tokio::time::timeout(READ_PATIENCE, permit).await {
            Ok(permit) => permit.map_err(|_| Error::away())?,
            Err(_) => return Err(Error::out(Outage::Busy, "no connection became free in time")),
        };
        let readers = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let idle = readers.idle.lock().pop();
            let connection = match idle {
                Some(connection) => connection,
                // A panic took its connection along.
                None => schema::open_reader(&readers.path, readers.busy_timeout)
                    .map_err(Error::unavailable)
                    .map_err(|error| readers.files.judged(error))?,
            };
            // What is elsewhere now is no answer about the database.
            let done = readers.files.check().and_then(|()| work(&connection));
            let done = done.map_err(|error| readers.files.judged(error));
            readers.idle.lock().push(connection);
            done
        });
        done.await.map_err(Error::failed)?
    }
}

/// Executions and steps in one SQLite file.
pub struct SqliteStore {
    jobs: mpsc::Sender<Job>,
    readers: Arc<Readers>,
    /// That of the probe, which waits for no other read.
    probe: Arc<Readers>,
    ends: Arc<LogEnds>,
    secret: [u8; 32],
    database_id: String,
    clock: Arc<dyn Clock>,
    metrics_kept_ms: Option<i64>,
    audit_kept_ms: Option<i64>,
    own_head: audit::OwnHead,
    leads: leads::Table,
    in_hand: retention::InHand,
}

impl SqliteStore {
    /// Opens the database in `dir`, making both where they are missing, and keeps other servers out.
    pub fn open(
        dir: &Path,
        options: SqliteOptions,
        limits: Limits,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<SqliteStore>, OpenError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            |source| OpenError::Io { path, source }
        };
        // What users report is nobody else's on this machine. A directory that is there already is its owner's to open.
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io(dir))?;
        let lock = lock(dir, &dir.join(LOCK_FILE))?;
        let path = dir.join(DATABASE_FILE);
        let database = private(&path).map_err(io(&path))?;
        let connection = schema::open_writer(&path, options.synchronous, options.busy_timeout)?;
        let new_id =
            "INSERT OR IGNORE INTO meta VALUES ('database_id', lower(hex(randomblob(16))))";
        connection.execute(new_id, [])?;
        let id = "SELECT value FROM meta WHERE name = 'database_id'";
        let database_id = connection.query_row(id, [], |row| row.get(0))?;
        let files = Arc::new(Files::of(database, &path).map_err(io(&path))?);
        let secret =
            connection.query_row("SELECT value FROM meta WHERE name = 'secret'", [], |row| {
                row.get::<_, [u8; 32]>(0)
            })?;
        let readers = Readers::open(&path, options.busy_timeout, options.readers.max(1), &files)?;
        let probe = Readers::open(&path, options.busy_timeout, 1, &files)?;
        let (newest, pruned_through) = changes::ends(&connection)?;
        let ends = Arc::new(LogEnds {
            committed: watch::Sender::new(newest),
            pruned_through: AtomicU64::new(pruned_through),
        });
        let millis = |kept: Duration| i64::try_from(kept.as_millis()).unwrap_or(i64::MAX);
        let metrics_kept_ms = options.metrics_kept.map(millis);
        let audit_kept_ms = options.audit_kept.map(millis);
        let own_head = audit::OwnHead::default();
        let writer =
            Writer::new(connection, options, limits, Arc::clone(&clock), Arc::clone(&ends), lock)
                .on(&files)
                .recording(audit::Ledger::new(Arc::clone(&own_head)));
        let (jobs, queue) = mpsc::channel(QUEUED_JOBS);
        std::thread::Builder::new()
            .name("sqlite-writer".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(io(&path))?;
        let (leads, in_hand) = (leads::Table::default(), retention::InHand::default());
        Ok(Arc::new(SqliteStore {
            jobs,
            readers,
            probe,
            ends,
            secret,
            database_id,
            clock,
            metrics_kept_ms,
            audit_kept_ms,
            own_head,
            leads,
            in_hand,
        }))
    }

    /// Hands a job to the writer and waits for its answer.
    async fn job<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).await.map_err(|_| Error::away())?;
        answer.await.map_err(|_| Error::away())
    }
}

impl SqliteStore {
    /// Runs `work` on the writer thread, in a transaction of its own; an error rolls it back.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut batch::Batch<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.job(|reply| Job::write(work, reply)).await?
    }
}

fn lock(dir: &Path, path: &Path) -> Result<File, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { dir: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

/// Makes the file of the database, and keeps others on this machine from reading it. SQLite makes the files beside it
/// alike.
fn private(path: &Path) -> std::io::Result<File> {
    let mut made = File::options();
    let file = made.create(true).truncate(false).write(true).mode(PRIVATE).open(path)?;
    file.set_permissions(Permissions::from_mode(PRIVATE))?;
    Ok(file)
}

#[async_trait]
impl Store for SqliteStore {
    async fn apply(&self, writes: Vec<Write>) -> Applied {
        let count = writes.len();
        let job = self.job(|reply| Job::Apply { writes, reply });
        let failed = match tokio::time::timeout(WRITE_PATIENCE, job).await {
            Ok(Ok(applied)) => return applied,
            Ok(Err(Error::Unavailable(why))) => why,
            // The writer comes to it all the same, in its turn.
            _ => Unavailable::unanswered(),
        };
        Applied {
            outcomes: (0..count).map(|_| Err(Error::Unavailable(failed.again()))).collect(),
            written: Vec::new(),
        }
    }

    fn lanes(&self) -> usize {
        // There is one writer, but with a second call at hand it need not wait for the next.
        2
    }

    async fn execution(&self, execution_id: &str) -> Result<Option<Execution>> {
        let execution_id = execution_id.to_owned();
        self.readers.run(move |connection| read::execution(connection, &execution_id)).await
    }

    async fn is_being_deleted(&self, execution_id: &str) -> Result<bool> {
        let execution_id = execution_id.to_owned();
        self.readers.run(move |connection| read::is_being_deleted(connection, &execution_id)).await
    }

    async fn step(
        &self,
        execution_id: &str,
        step: &StepRef,
        payloads: bool,
    ) -> Result<Option<Step>> {
        let (execution_id, step) = (execution_id.to_owned(), step.clone());
        self.readers
            .run(move |connection| read::step(connection, &execution_id, &step, payloads))
            .await
    }

    async fn executions(&self, query: &ExecutionQuery) -> Result<Page<Execution, ExecutionKey>> {
        let query = query.clone();
        self.readers.run(move |connection| lists::executions(connection, &query)).await
    }

    async fn count_executions(&self, query: &CountQuery) -> Result<Count> {
        let query = query.clone();
        self.readers.run(move |connection| lists::count(connection, &query)).await
    }

    async fn unreadable_executions(&self) -> Result<u64> {
        Ok(0)
    }

    async fn step_counts(
        &self,
        execution_ids: &[String],
        examine: usize,
    ) -> Result<Vec<StepCounts>> {
        let ids = execution_ids.to_vec();
        self.readers.run(move |connection| lists::step_counts(connection, &ids, examine)).await
    }

    async fn steps(&self, query: &StepQuery) -> Result<Page<Step, i32>> {
        let query = query.clone();
        self.readers.run(move |connection| read::steps(connection, &query)).await
    }

    async fn artifacts(&self, query: &ArtifactQuery) -> Result<Page<Artifact, ArtifactKey>> {
        let query = query.clone();
        self.readers.run(move |connection| artifact_rows::page(connection, &query)).await
    }

    async fn remove(&self, execution_id: &str) -> Result<u64> {
        self.remove_all(vec![execution_id.to_owned()]).await
    }

    async fn leases(&self) -> Result<Vec<Lease>> {
        self.readers.run(read::leases).await
    }

    async fn signs_in_steps(
        &self,
        execution_ids: &[String],
        _: Millis,
    ) -> Result<HashMap<String, SignOfLife>> {
        let execution_ids = execution_ids.to_owned();
        self.readers.run(move |connection| read::signs_in_steps(connection, execution_ids)).await
    }

    async fn secret(&self) -> Result<[u8; 32]> {
        Ok(self.secret)
    }

    async fn ping(&self) -> Result<()> {
        if self.jobs.is_closed() {
            return Err(Error::away());
        }
        self.probe
            .run(|connection| {
                // Reads the file, unlike a constant.
                connection.query_row("SELECT count(*) FROM meta", [], |_| Ok(()))?;
                Ok(())
            })
            .await
    }

    async fn probe_write(&self) -> Result<()> {
        let put = "INSERT OR REPLACE INTO meta VALUES ('probe', zeroblob(?1))";
        self.write(move |batch| Ok(batch.connection.execute(put, [PROBE_BYTES])?)).await?;
        let take = "DELETE FROM meta WHERE name = 'probe'";
        self.write(move |batch| Ok(batch.connection.execute(take, [])?)).await.map(drop)
    }

    fn info(&self) -> StoreInfo {
        StoreInfo {
            name: "sqlite",
            version: rusqlite::version().to_owned(),
            database_id: self.database_id.clone(),
            watchable: true,
        }
    }

    fn log(&self) -> Result<Arc<dyn ChangeLog>> {
        Ok(Arc::new(changes::SqliteLog {
            readers: Arc::clone(&self.readers),
            ends: Arc::clone(&self.ends),
        }))
    }

    async fn sweep(&self) -> Result<()> {
        // Piece by piece, so that writes get their turn in between.
        while self.job(|reply| Job::Prune { reply }).await?? {}
        let (now, kept_ms) = (self.clock.now().millis(), self.metrics_kept_ms);
        while self.write(move |batch| metrics::expire(batch.connection, now, kept_ms)).await? {}
        let kept_ms = self.audit_kept_ms;
        while self.write(move |batch| audit::expire(batch.connection, now, kept_ms)).await? {}
        let marked = self.readers.run(remove::marked).await?;
        self.remove_all(self.not_in_hand(marked)).await.map(drop)
    }

    async fn close(&self) {
        // Waits for the reads of now, so that the writer's connection is the last: its end moves the
        // write-ahead log into the database file.
        for readers in [&self.readers, &self.probe] {
            let all = u32::try_from(readers.count).unwrap_or(u32::MAX);
            let _ended = readers.permits.acquire_many(all).await;
            readers.permits.close();
            readers.idle.lock().clear();
        }
        // An error means that the writer has ended before.
        let _ = self.job(|reply| Job::Close { reply }).await;
    }
}

#[cfg(test)]
mod tests;
