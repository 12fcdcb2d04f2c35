//! The writer: one thread that owns the connection that writes. Calls that wait are taken into one
//! transaction together; an answer goes out after the commit.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::audit::Ledger;
use super::batch::{Batch, Updates};
use super::changes::{self, CHANGES_PRUNED};
use super::files::Files;
use super::known::Known;
use super::{LogEnds, SqliteOptions};
use crate::clock::Clock;
use crate::domain::audit::entry::Written;
use crate::domain::limits::Limits;
use crate::store::{Answer, Applied, Error, Record, Result, Write};

/// Writes in one transaction, beyond the first call's.
const BATCH_WRITES: usize = 512;

/// Length of the write-ahead log that is out of the ordinary.
const LOG_BYTES_BOUND: u64 = 128 * 1024 * 1024;
/// Commits between two looks at that length.
const COMMITS_PER_LOOK: u64 = 256;

/// What the writer is asked to do.
pub enum Job {
    Apply {
        writes: Vec<Write>,
        reply: oneshot::Sender<Applied>,
    },
    /// Drops a piece of the oldest changes; answers whether there may be more to drop.
    Prune {
        reply: oneshot::Sender<Result<bool>>,
    },
    /// Anything else that writes, in a transaction of its own.
    Write(Box<dyn WriteJob>),
    Close {
        reply: oneshot::Sender<()>,
    },
}

/// Work of other parts for the writer thread.
pub trait WriteJob: Send {
    /// Does it and answers whoever asked.
    fn run(self: Box<Self>, writer: &mut Writer);
}

struct Work<T, F> {
    work: F,
    reply: oneshot::Sender<Result<T>>,
}

impl<T: Send, F> WriteJob for Work<T, F>
where
    F: FnOnce(&mut Batch<'_>) -> Result<T> + Send,
{
    fn run(self: Box<Self>, writer: &mut Writer) {
        let Work { work, reply } = *self;
        let _ = reply.send(writer.transaction(work));
    }
}

impl Job {
    /// `work` in a transaction of its own; an error rolls it back.
    pub fn write<T: Send + 'static>(
        work: impl FnOnce(&mut Batch<'_>) -> Result<T> + Send + 'static,
        reply: oneshot::Sender<Result<T>>,
    ) -> Job {
        Job::Write(Box::new(Work { work, reply }))
    }
}

struct Call {
    writes: Vec<Write>,
    reply: oneshot::Sender<Applied>,
}

/// The state of the writer thread.
pub struct Writer {
    connection: Connection,
    options: SqliteOptions,
    limits: Limits,
    clock: Arc<dyn Clock>,
    ends: Arc<LogEnds>,
    newest: u64,
    commits: u64,
    log_file: PathBuf,
    /// Whether the database still is the one at its path.
    files: Option<Arc<Files>>,
    /// Length of the write-ahead log at which it is started over.
    log_bytes_bound: u64,
    known: Known,
    /// Tells whether another program wrote to the file since.
    data_version: i64,
    updates: Updates,
    audit: Ledger,
    /// Let go only after the connection.
    _lock: File,
}

/// A transaction's error, shared by all the writes it failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
struct Shared(Arc<Error>);

impl Writer {
    pub fn new(
        connection: Connection,
        options: SqliteOptions,
        limits: Limits,
        clock: Arc<dyn Clock>,
        ends: Arc<LogEnds>,
        lock: File,
    ) -> Writer {
        let newest = ends.newest();
        let log_file = PathBuf::from(format!("{}-wal", connection.path().unwrap_or_default()));
        Writer {
            connection,
            options,
            limits,
            clock,
            ends,
            newest,
            commits: 0,
            log_file,
            files: None,
            log_bytes_bound: LOG_BYTES_BOUND,
            known: Known::new(),
            data_version: 0,
            updates: Updates::new(),
            audit: Ledger::default(),
            _lock: lock,
        }
    }

    /// Who did what is recorded here.
    pub fn recording(mut self, audit: Ledger) -> Writer {
        self.audit = audit;
        self
    }

    /// From now on nothing counts as stored that is not in these files.
    pub fn on(mut self, files: &Arc<Files>) -> Writer {
        self.files = Some(Arc::clone(files));
        self
    }

    fn check_files(&self) -> Result<()> {
        self.files.as_ref().map_or(Ok(()), |files| files.check())
    }

    /// Works until the store is closed or dropped.
    pub fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut held = None;
        while let Some(job) = held.take().or_else(|| queue.blocking_recv()) {
            match job {
                Job::Apply { writes, reply } => {
                    let mut size = writes.len();
                    let mut calls = vec![Call { writes, reply }];
                    while size < BATCH_WRITES
                        && let Ok(job) = queue.try_recv()
                    {
                        match job {
                            Job::Apply { writes, reply } => {
                                size += writes.len();
                                calls.push(Call { writes, reply });
                            }
                            other => {
                                held = Some(other);
                                break;
                            }
                        }
                    }
                    // A defect that panics must cost its callers their answers, not the server its writer.
                    let done = catch_unwind(AssertUnwindSafe(|| self.apply(calls)));
                    if done.is_err() {
                        self.after_panic();
                    }
                }
                // Nobody may wait any longer for these answers, and that is fine.
                Job::Prune { reply } => {
                    let _ = reply.send(self.prune());
                }
                Job::Write(work) => {
                    let done = catch_unwind(AssertUnwindSafe(|| work.run(&mut self)));
                    if done.is_err() {
                        self.after_panic();
                    }
                }
                Job::Close { reply } => {
                    queue.close();
                    drop(self);
                    let _ = reply.send(());
                    return;
                }
            }
        }
    }

    /// A transaction was given up in the middle, and rolled back with that.
    fn after_panic(&mut self) {
        self.newest = self.ends.newest();
        self.known.clear();
        self.audit.unwound();
    }

    fn apply(&mut self, calls: Vec<Call>) {
        let done = self.transaction(|batch| {
            let applied = calls.iter().map(|call| batch.apply(&call.writes));
            let applied = applied.collect::<Result<Vec<_>>>()?;
            record(batch, &calls, &applied)?;
            Ok(applied)
        });
        let done = match done {
            Ok(applied) => Ok(applied),
            Err(error @ Error::Unavailable(_)) => Err(error),
            Err(Error::Unaudited(why)) => self.apply_unrecorded(&calls, &why.to_string()),
            // One write may spoil the transaction for all others: find out which.
            Err(_) => self.transaction(|batch| {
                let applied = calls.iter().map(|call| batch.apply_singly(&call.writes));
                let applied = applied.collect::<Result<Vec<_>>>()?;
                record(batch, &calls, &applied)?;
                Ok(applied)
            }),
        };
        match done {
            Ok(applied) => {
                for (call, applied) in calls.into_iter().zip(applied) {
                    let _ = call.reply.send(applied);
                }
            }
            Err(error) => {
                let shared = Shared(Arc::new(error));
                for call in calls {
                    let outcomes = call
                        .writes
                        .iter()
                        .map(|_| match &*shared.0 {
                            Error::Unavailable(why) => Err(Error::Unavailable(why.again())),
                            Error::Unaudited(why) => Err(Error::unaudited(why.to_string())),
                            _ => Err(Error::failed(shared.clone())),
                        })
                        .collect();
                    let _ = call.reply.send(Applied { outcomes, written: Vec::new() });
                }
            }
        }
        self.bound_log();
        let kept = self.newest - self.ends.pruned_through();
        if kept > self.options.changes_kept.saturating_add(CHANGES_PRUNED as u64)
            && let Err(error) = self.prune()
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "could not prune the log of changes"
            );
        }
    }

    /// What is to be recorded cannot be, so it is not done: the others are not held up by that.
    fn apply_unrecorded(&mut self, calls: &[Call], why: &str) -> Result<Vec<Applied>> {
        self.transaction(|batch| {
            let mut all = Vec::with_capacity(calls.len());
            for call in calls {
                let mut applied = Applied::default();
                for write in &call.writes {
                    if write.asked.is_some() {
                        applied.outcomes.push(Err(Error::unaudited(why)));
                        continue;
                    }
                    let one = batch.apply_singly(std::slice::from_ref(write))?;
                    applied.outcomes.extend(one.outcomes);
                    applied.written.extend(one.written);
                }
                all.push(applied);
            }
            Ok(all)
        })
    }

    /// Runs `work` in one transaction. Readers are woken only after the commit returned: woken earlier they
    /// would find nothing and sleep until the next, unrelated change.
    fn transaction<T>(&mut self, work: impl FnOnce(&mut Batch<'_>) -> Result<T>) -> Result<T> {
        // Nothing is written where nobody will find it.
        self.check_files()?;
        let newest = self.newest;
        let chain = self.audit.chain();
        let done = self.attempt(work);
        match &done {
            Ok(_) => self.audit.committed(),
            Err(_) => self.audit.undone(chain),
        }
        if done.is_err() {
            self.newest = newest;
            self.known.clear();
        } else if newest != self.newest {
            self.ends.committed.send_replace(self.newest);
        }
        match done {
            // It is committed, and perhaps to a file that is no longer the database: only the writer may not be told
            // that it is stored.
            Ok(done) => self.check_files().map(|()| done),
            Err(error) => Err(match &self.files {
                Some(files) => files.judged(error),
                None => error,
            }),
        }
    }

    fn attempt<T>(&mut self, work: impl FnOnce(&mut Batch<'_>) -> Result<T>) -> Result<T> {
        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let data_version =
            transaction.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        if self.data_version != data_version {
            self.data_version = data_version;
            self.known.clear();
        }
        let done = work(&mut Batch {
            connection: &transaction,
            limits: &self.limits,
            known: &mut self.known,
            updates: &mut self.updates,
            newest: &mut self.newest,
            audit: &mut self.audit,
            at: self.clock.now().millis(),
        })?;
        transaction.commit()?;
        Ok(done)
    }

    fn prune(&mut self) -> Result<bool> {
        self.check_files()?;
        let through = self.newest.saturating_sub(self.options.changes_kept);
        let age = i64::try_from(self.options.changes_age.as_millis()).unwrap_or(i64::MAX);
        let before = self.clock.now().millis().saturating_sub(age);
        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let Some(last) = changes::prune(&transaction, through, before)? else {
            return Ok(false);
        };
        transaction.commit()?;
        let before = self.ends.pruned_through.swap(last, Ordering::AcqRel);
        Ok(last - before >= CHANGES_PRUNED as u64)
    }

    /// Starts the write-ahead log over when it has grown past all measure. A commit moves it into the database
    /// file only as far as no reader still needs it, so reads that always overlap would let it grow for ever.
    fn bound_log(&mut self) {
        self.commits += 1;
        if !self.commits.is_multiple_of(COMMITS_PER_LOOK) {
            return;
        }
        let bytes = std::fs::metadata(&self.log_file).map_or(0, |file| file.len());
        if bytes < self.log_bytes_bound {
            return;
        }
        // Waits for the reads of now, never for later ones. Answers a row also when they took too long.
        let started = self.clock.instant();
        let busy = self
            .connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
        match busy {
            Ok(false) => self.log_bytes_bound = LOG_BYTES_BOUND,
            // Another program reads for long: do not stop for it again soon.
            _ => self.log_bytes_bound = bytes.saturating_mul(2),
        }
        let waited_ms = u64::try_from(self.clock.elapsed(started).as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(bytes, waited_ms, ?busy, "started the write-ahead log over");
    }
}

/// Writes down what these calls do, in their transaction.
fn record(batch: &mut Batch<'_>, calls: &[Call], applied: &[Applied]) -> Result<()> {
    let mut written = Vec::new();
    for (call, applied) in calls.iter().zip(applied) {
        for (write, outcome) in call.writes.iter().zip(&applied.outcomes) {
            let Some(recorded) = write.recorded() else { continue };
            let is_change = |record: &Record| matches!(record, Record::Execution(one) if one.execution_id == write.execution_id);
            // A sign of life that changes nothing is no write.
            if write.is_heartbeat() && outcome.is_ok() && !applied.written.iter().any(is_change) {
                continue;
            }
            let step_id = outcome.as_ref().ok().and_then(Answer::step_id).or(recorded.step_id);
            let code = Some(batch.code(outcome));
            written.push(Written { step_id, code, ..recorded });
        }
    }
    batch.record_writes(&written)
}

#[cfg(test)]
mod tests {
    use super::super::{LogEnds, Synchronous, schema};
    use super::*;
    use crate::clock::ManualClock;
    use crate::domain::execution::CreateExecution;
    use crate::domain::{ExecutionOp, Now};
    use crate::store::{Op, Outage};
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;
    use tokio::sync::watch;

    fn writer(dir: &std::path::Path) -> Writer {
        let path = dir.join("stepwell.db");
        let connection =
            schema::open_writer(&path, Synchronous::Normal, Duration::from_millis(20)).unwrap();
        let ends = LogEnds { committed: watch::Sender::new(0), pruned_through: AtomicU64::new(0) };
        Writer::new(
            connection,
            SqliteOptions::default(),
            Limits::default(),
            Arc::new(ManualClock::at(1)),
            Arc::new(ends),
            File::create(dir.join("lock")).unwrap(),
        )
    }

    fn create(writer: &mut Writer, ids: std::ops::Range<usize>) -> Vec<Result<(), Error>> {
        let writes = ids.map(|n| {
            let request =
                CreateExecution { app_name: "x".repeat(2000), ..CreateExecution::default() };
            Write {
                execution_id: format!("e{n}"),
                op: Op::Execution(ExecutionOp::Create(Box::new(request))),
                now: Now { micros: 1 },
                scope: Default::default(),
                asked: None,
            }
        });
        let (reply, mut answer) = oneshot::channel();
        writer.apply(vec![Call { writes: writes.collect(), reply }]);
        let applied = answer.try_recv().unwrap();
        applied.outcomes.into_iter().map(|outcome| outcome.map(|_| ())).collect()
    }

    fn rows(writer: &Writer) -> i64 {
        let sql = "SELECT (SELECT count(*) FROM executions) + (SELECT count(*) FROM changes)";
        writer.connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_full_disk_applies_nothing_and_says_that_it_may_pass() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        assert!(create(&mut writer, 0..1)[0].is_ok());
        writer.connection.pragma_update(None, "max_page_count", 30).unwrap();
        let outcomes = create(&mut writer, 1..100);
        assert_eq!(outcomes.len(), 99);
        let full = |outcome: &Result<()>| {
            outcome.as_ref().is_err_and(|error| error.outage() == Some(Outage::Full))
        };
        assert!(outcomes.iter().all(full), "{outcomes:?}");
        assert_eq!((rows(&writer), writer.ends.newest()), (2, 1));
        writer.connection.pragma_update(None, "max_page_count", 100_000).unwrap();
        assert!(create(&mut writer, 0..100).iter().all(Result::is_ok));
        assert_eq!((rows(&writer), writer.ends.newest()), (200, 100));
    }

    #[test]
    fn a_locked_database_applies_nothing_and_says_that_it_may_pass() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        let theirs = Connection::open(dir.path().join("stepwell.db")).unwrap();
        theirs.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert!(matches!(create(&mut writer, 0..1)[0], Err(Error::Unavailable(_))));
        theirs.execute_batch("COMMIT").unwrap();
        assert!(create(&mut writer, 0..1)[0].is_ok());
    }

    #[test]
    fn a_write_ahead_log_out_of_measure_is_started_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path());
        assert!(create(&mut writer, 0..20).iter().all(Result::is_ok));
        let bytes = |writer: &Writer| std::fs::metadata(&writer.log_file).unwrap().len();
        assert!(bytes(&writer) > 0);
        (writer.log_bytes_bound, writer.commits) = (1, COMMITS_PER_LOOK - 1);
        writer.bound_log();
        assert_eq!((bytes(&writer), writer.log_bytes_bound), (0, LOG_BYTES_BOUND));
    }
}
