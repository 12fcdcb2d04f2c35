//! The writer: one thread that owns the connection that writes. Calls that wait are taken into one
//! transaction together; an answer goes out after the commit. Knows no rules: `store::plan` has them.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, params_from_iter};
use tokio::sync::{mpsc, oneshot};

use super::changes::{self, CHANGES_PRUNED, Entry};
use super::rows::{
    Cell, EXECUTION_COLUMNS, INLINE_BYTES, STEP_COLUMNS, encode_payload, execution_cells,
    step_cells,
};
use super::{LogEnds, SqliteOptions, read};
use crate::clock::Clock;
use crate::domain::limits::Limits;
use crate::domain::{Execution, Millis, Payload, Refusal, Step, StepRef};
use crate::store::plan::{Dirty, Facts, Needs, Plan, plan};
use crate::store::{Answer, Applied, Error, Op, Record, RecordKey, Result, Write};

/// Writes in one transaction, beyond the first call's.
const BATCH_WRITES: usize = 512;

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
    /// Moves the write-ahead log into the database file.
    Checkpoint {
        reply: oneshot::Sender<Result<()>>,
    },
    Close {
        reply: oneshot::Sender<()>,
    },
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
    updates: HashMap<(&'static str, u64), String>,
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
        Writer {
            connection,
            options,
            limits,
            clock,
            ends,
            newest,
            updates: HashMap::new(),
            _lock: lock,
        }
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
                    self.apply(calls);
                }
                // Nobody may wait any longer for these answers, and that is fine.
                Job::Prune { reply } => {
                    let _ = reply.send(self.prune());
                }
                Job::Checkpoint { reply } => {
                    let _ = reply.send(self.checkpoint());
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

    fn apply(&mut self, calls: Vec<Call>) {
        let done = self.transaction(|batch| {
            calls.iter().map(|call| batch.apply(&call.writes)).collect::<Result<Vec<_>>>()
        });
        let done = match done {
            Ok(applied) => Ok(applied),
            Err(error @ Error::Unavailable(_)) => Err(error),
            // One write may spoil the transaction for all others: find out which.
            Err(_) => self.transaction(|batch| {
                calls.iter().map(|call| batch.apply_singly(&call.writes)).collect()
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
                            Error::Unavailable(_) => Err(Error::unavailable(shared.clone())),
                            _ => Err(Error::failed(shared.clone())),
                        })
                        .collect();
                    let _ = call.reply.send(Applied { outcomes, written: Vec::new() });
                }
            }
        }
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

    /// Runs `work` in one transaction. Readers are woken only after the commit returned: woken earlier they
    /// would find nothing and sleep until the next, unrelated change.
    fn transaction<T>(&mut self, work: impl FnOnce(&mut Batch<'_>) -> Result<T>) -> Result<T> {
        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let mut batch = Batch {
            connection: &transaction,
            limits: &self.limits,
            updates: &mut self.updates,
            newest: self.newest,
            at: self.clock.now().millis(),
        };
        let done = work(&mut batch)?;
        let newest = batch.newest;
        transaction.commit()?;
        if newest != self.newest {
            self.newest = newest;
            self.ends.committed.send_replace(newest);
        }
        Ok(done)
    }

    fn prune(&mut self) -> Result<bool> {
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

    fn checkpoint(&self) -> Result<()> {
        // Answers a row even when readers keep it from finishing, which is no failure.
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }
}

/// One transaction of the writer.
struct Batch<'a> {
    connection: &'a Connection,
    limits: &'a Limits,
    /// UPDATE statements by table and the set of columns they change.
    updates: &'a mut HashMap<(&'static str, u64), String>,
    newest: u64,
    at: Millis,
}

impl Batch<'_> {
    fn apply(&mut self, writes: &[Write]) -> Result<Applied> {
        let mut facts = self.facts(&Needs::of(writes, false, self.limits))?;
        let mut planned = plan(writes, &facts, self.limits);
        while self.load_payloads(writes, &planned, &mut facts)? {
            planned = plan(writes, &facts, self.limits);
        }
        let written = self.persist(&planned)?;
        let outcomes = planned
            .outcomes
            .into_iter()
            .map(|outcome| match outcome {
                Ok(planned) => Ok(planned.answer),
                Err(refusal) => Err(refusal.into()),
            })
            .collect();
        Ok(Applied { outcomes, written })
    }

    /// Each write by itself: one that cannot be applied fails alone.
    fn apply_singly(&mut self, writes: &[Write]) -> Result<Applied> {
        let mut all = Applied::default();
        for write in writes {
            let newest = self.newest;
            self.connection.execute_batch("SAVEPOINT one_write")?;
            match self.apply(std::slice::from_ref(write)) {
                Ok(applied) => {
                    self.connection.execute_batch("RELEASE one_write")?;
                    all.outcomes.extend(applied.outcomes);
                    all.written.extend(applied.written);
                }
                Err(error @ Error::Unavailable(_)) => return Err(error),
                Err(error) => {
                    self.connection.execute_batch("ROLLBACK TO one_write; RELEASE one_write")?;
                    self.newest = newest;
                    all.outcomes.push(Err(blame(write, error)));
                }
            }
        }
        Ok(all)
    }

    fn facts(&self, needs: &Needs) -> Result<Facts> {
        let mut facts = Facts::default();
        for id in &needs.executions {
            let execution = read::execution(self.connection, id)?;
            facts.executions.insert(id.clone(), execution.map(Arc::new));
        }
        for (id, step_ids) in &needs.steps {
            for step_id in step_ids {
                match read::step_by_id(self.connection, id, *step_id, false)? {
                    Some(step) => facts.add_step(Arc::new(step)),
                    None => {
                        facts.steps.insert(RecordKey::step(id, *step_id), None);
                    }
                }
            }
        }
        for (id, keys) in &needs.keys {
            for key in keys {
                let name = (id.clone(), key.clone());
                if facts.keys.contains_key(&name) {
                    continue;
                }
                match read::step_by_key(self.connection, id, key, false)? {
                    Some(step) => facts.add_step(Arc::new(step)),
                    None => {
                        facts.keys.insert(name, None);
                    }
                }
            }
        }
        for id in &needs.greatest_step_ids {
            let greatest = read::greatest_step_id(self.connection, id)?;
            facts.greatest_step_ids.insert(id.clone(), greatest);
        }
        for id in &needs.step_counts {
            let count = read::step_count(self.connection, id)?;
            facts.step_counts.insert(id.clone(), count);
        }
        Ok(facts)
    }

    /// Loads the payloads of the steps whose rules asked for them. `false`: none did.
    fn load_payloads(&self, writes: &[Write], planned: &Plan, facts: &mut Facts) -> Result<bool> {
        let mut asked = false;
        let mut loaded = false;
        for (write, outcome) in writes.iter().zip(&planned.outcomes) {
            if !matches!(outcome, Err(Refusal::NeedsPayload)) {
                continue;
            }
            asked = true;
            let named: Vec<&StepRef> = match &write.op {
                Op::Execution(_) => Vec::new(),
                Op::Step { named, .. } => vec![named],
                Op::Plan(steps) => steps.iter().map(|(named, _)| named).collect(),
            };
            for named in named {
                let by_key =
                    |key: &String| *facts.keys.get(&(write.execution_id.clone(), key.clone()))?;
                let known = |step_id: i32| {
                    let step = facts.steps.get(&RecordKey::step(&write.execution_id, step_id))?;
                    step.as_ref().filter(|step| {
                        step.input == Payload::Stored || step.output == Payload::Stored
                    })
                };
                let step_ids = [named.step_id, named.step_key.as_ref().and_then(by_key)];
                let Some(step) = step_ids.into_iter().flatten().find_map(known) else { continue };
                let full =
                    read::step_by_id(self.connection, &step.execution_id, step.step_id, true)?;
                if let Some(full) = full {
                    facts.add_step(Arc::new(full));
                    loaded = true;
                }
            }
        }
        if asked && !loaded {
            return Err(Error::failed("a rule asked for payloads that it was given"));
        }
        Ok(asked)
    }

    /// Stores what the plan changed and logs it, every record at the place of its last write: a watcher that
    /// sees an execution end has seen what happened before.
    fn persist(&mut self, planned: &Plan) -> Result<Vec<Record>> {
        let mut order: Vec<(&RecordKey, Option<Record>)> = Vec::new();
        let mut places: HashMap<&RecordKey, usize> = HashMap::new();
        let mut touch = |key, record| {
            if let Some(earlier) = places.insert(key, order.len()) {
                order[earlier].1 = None;
            }
            order.push((key, record));
        };
        for outcome in planned.outcomes.iter().flatten() {
            let touched = outcome.touched.iter();
            match &outcome.answer {
                Answer::Execution(record) => {
                    let record = Record::Execution(Arc::clone(record));
                    touched.for_each(|key| touch(key, Some(record.clone())));
                }
                Answer::Step(record) => {
                    let record = Record::Step(Arc::clone(record));
                    touched.for_each(|key| touch(key, Some(record.clone())));
                }
                Answer::Steps(records) => {
                    for (key, record) in touched.zip(records) {
                        touch(key, Some(Record::Step(Arc::clone(record))));
                    }
                }
                Answer::Deleted => touched.for_each(|key| touch(key, None)),
            }
        }
        let mut written = Vec::with_capacity(places.len());
        for (place, (key, record)) in order.into_iter().enumerate() {
            if places.get(key) != Some(&place) {
                continue;
            }
            let changed = match key.step_id {
                None => {
                    let dirty = planned.executions.get(&key.execution_id);
                    dirty.map_or(Ok(false), |dirty| self.persist_execution(key, dirty))?
                }
                Some(_) => {
                    let dirty = planned.steps.get(key);
                    dirty.map_or(Ok(false), |dirty| self.persist_step(key, dirty))?
                }
            };
            if changed {
                written.extend(record);
            }
        }
        Ok(written)
    }

    fn persist_execution(&mut self, key: &RecordKey, dirty: &Dirty<Execution>) -> Result<bool> {
        if !dirty.stored {
            return Ok(false);
        }
        let before = dirty.before.as_deref();
        let Some(after) = dirty.after.as_deref() else {
            let Some(before) = before else { return Ok(false) };
            self.delete(&key.execution_id)?;
            let revision = before.revision.saturating_add(1).max(self.at.saturating_mul(1000));
            self.log(Entry::of_delete(key, revision))?;
            return Ok(true);
        };
        match before {
            None => {
                let cells = execution_cells(after);
                let stored_at = [Cell::Integer(self.at)];
                self.connection
                    .prepare_cached(&INSERTS.execution)?
                    .execute(params_from_iter(cells.iter().chain(&stored_at)))?;
            }
            Some(before) => {
                let (old, new) = (execution_cells(before), execution_cells(after));
                let changes = differences(&EXECUTION_COLUMNS, &old, &new);
                self.update("executions", key, changes)?;
            }
        }
        if dirty.changed {
            self.log(Entry::of_execution(key, before, after))?;
        }
        Ok(dirty.changed)
    }

    fn persist_step(&mut self, key: &RecordKey, dirty: &Dirty<Step>) -> Result<bool> {
        let before = dirty.before.as_deref();
        let Some(after) = dirty.after.as_deref().filter(|_| dirty.stored) else {
            return Ok(false);
        };
        let input = PayloadChange::of(before.map(|before| &before.input), &after.input)?;
        let output = PayloadChange::of(before.map(|before| &before.output), &after.output)?;
        match before {
            None => {
                let cells = step_cells(after);
                let rest = [
                    Cell::Integer(self.at),
                    input.cell().unwrap_or(Cell::Null),
                    output.cell().unwrap_or(Cell::Null),
                ];
                self.connection
                    .prepare_cached(&INSERTS.step)?
                    .execute(params_from_iter(cells.iter().chain(&rest)))?;
            }
            Some(before) => {
                let (old, new) = (step_cells(before), step_cells(after));
                let mut changes = differences(&STEP_COLUMNS, &old, &new);
                let next = STEP_COLUMNS.len();
                changes.extend(input.cell().map(|cell| (next, "input", cell)));
                changes.extend(output.cell().map(|cell| (next + 1, "output", cell)));
                self.update("steps", key, changes)?;
            }
        }
        for (side, change) in [input, output].into_iter().enumerate() {
            if let PayloadChange::Apart(bytes) = change {
                // Where a long payload gives way to a short one, the long one stays here unused until the
                // execution goes: that costs less than looking for it with every change.
                self.connection
                    .prepare_cached(
                        "INSERT OR REPLACE INTO step_payloads (id, value) \
                         SELECT 2 * id + ?1, ?2 FROM steps \
                         WHERE execution_id = ?3 AND step_id = ?4",
                    )?
                    .execute((side as i64, bytes, &key.execution_id, key.step_id))?;
            }
        }
        if dirty.changed {
            self.log(Entry::of_step(key, before, after))?;
        }
        Ok(dirty.changed)
    }

    /// Writes only the columns that change, so that only their indexes are touched.
    fn update(
        &mut self,
        table: &'static str,
        key: &RecordKey,
        changes: Vec<(usize, &'static str, Cell<'_>)>,
    ) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let set = changes.iter().fold(0, |set, (bit, ..)| set | 1 << bit);
        let sql = self.updates.entry((table, set)).or_insert_with(|| {
            let columns: Vec<_> =
                changes.iter().map(|(_, name, _)| format!("{name} = ?")).collect();
            let step = if key.step_id.is_some() { " AND step_id = ?" } else { "" };
            format!("UPDATE {table} SET {} WHERE execution_id = ?{step}", columns.join(", "))
        });
        let cells = changes.iter().map(|(_, _, cell)| *cell);
        let step_id = key.step_id.map(|step_id| Cell::Integer(step_id.into()));
        let names = std::iter::once(Cell::Text(&key.execution_id)).chain(step_id);
        let updated =
            self.connection.prepare_cached(sql)?.execute(params_from_iter(cells.chain(names)))?;
        if updated != 1 {
            return Err(Error::failed(format!("{updated} rows of {table} were updated, not 1")));
        }
        Ok(())
    }

    fn delete(&self, execution_id: &str) -> Result<()> {
        for sql in [
            "DELETE FROM step_payloads WHERE id IN (\
             SELECT 2 * id FROM steps WHERE execution_id = ?1 UNION ALL \
             SELECT 2 * id + 1 FROM steps WHERE execution_id = ?1)",
            "DELETE FROM steps WHERE execution_id = ?1",
            "DELETE FROM executions WHERE execution_id = ?1",
        ] {
            self.connection.prepare_cached(sql)?.execute([execution_id])?;
        }
        Ok(())
    }

    /// Logs a change under the next number.
    fn log(&mut self, entry: Entry<'_>) -> Result<()> {
        let seq = self.newest + 1;
        changes::insert(self.connection, &Entry { seq, at: self.at, ..entry })?;
        self.newest = seq;
        Ok(())
    }
}

struct Inserts {
    execution: String,
    step: String,
}

static INSERTS: LazyLock<Inserts> = LazyLock::new(|| {
    let sql = |table: &str, columns: &[&str]| {
        let values = vec!["?"; columns.len()].join(", ");
        format!("INSERT INTO {table} ({}) VALUES ({values})", columns.join(", "))
    };
    Inserts {
        execution: sql("executions", &[&EXECUTION_COLUMNS[..], &["stored_at"]].concat()),
        step: sql("steps", &[&STEP_COLUMNS[..], &["stored_at", "input", "output"]].concat()),
    }
});

/// The columns in which two records differ: place, name and new value.
fn differences<'a>(
    names: &[&'static str],
    old: &[Cell<'_>],
    new: &[Cell<'a>],
) -> Vec<(usize, &'static str, Cell<'a>)> {
    let columns = names.iter().zip(old).zip(new).enumerate();
    columns
        .filter(|(_, ((_, old), new))| old != new)
        .map(|(place, ((name, _), new))| (place, *name, *new))
        .collect()
}

/// What becomes of a payload's column.
enum PayloadChange {
    Same,
    /// In the row of the step.
    Inline(Option<Vec<u8>>),
    /// In a row of its own, too long to be rewritten with every change of the step.
    Apart(Vec<u8>),
}

impl PayloadChange {
    fn of(before: Option<&Payload>, after: &Payload) -> Result<PayloadChange> {
        let Payload::Value(value) = after else { return Ok(PayloadChange::Same) };
        if before == Some(after) {
            return Ok(PayloadChange::Same);
        }
        Ok(match encode_payload(value)? {
            Some(bytes) if bytes.len() > INLINE_BYTES => PayloadChange::Apart(bytes),
            bytes => PayloadChange::Inline(bytes),
        })
    }

    fn cell(&self) -> Option<Cell<'_>> {
        match self {
            PayloadChange::Same => None,
            PayloadChange::Inline(None) => Some(Cell::Null),
            PayloadChange::Inline(Some(bytes)) => Some(Cell::Blob(bytes)),
            PayloadChange::Apart(_) => Some(Cell::Blob(&[])),
        }
    }
}

/// What an error says about the one write that caused it.
fn blame(write: &Write, error: Error) -> Error {
    let taken = matches!(
        &error,
        Error::Failed(source) if source
            .downcast_ref::<rusqlite::Error>()
            .and_then(rusqlite::Error::sqlite_error_code)
            == Some(ErrorCode::ConstraintViolation)
    );
    match &write.op {
        // The key that a known step was to get belongs to another step.
        Op::Step { named, .. } if taken => {
            let (execution_id, step) = (write.execution_id.clone(), named.to_string());
            Refusal::StepExists { execution_id, step }.into()
        }
        _ => error,
    }
}
