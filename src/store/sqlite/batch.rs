//! One transaction of the writer: loads what the rules have to know, runs them, stores what they changed and
//! logs it. Knows no rules (`store::plan` has them) and no queue.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use rusqlite::{Connection, ErrorCode, params_from_iter};

use super::audit::Ledger;
use super::changes::{self, Entry};
use super::known::{Known, KnownExecution};
use super::read;
use super::rows::{
    Cell, EXECUTION_COLUMNS, PayloadChange, STEP_COLUMNS, differences, execution_cells, step_cells,
};
use crate::domain::limits::Limits;
use crate::domain::{Execution, Millis, Payload, Refusal, Step, StepRef};
use crate::store::plan::{Dirty, Facts, Needs, Plan, plan};
use crate::store::{Answer, Applied, Error, Op, Record, RecordKey, Result, Write};

/// UPDATE statements by table and the set of columns they change.
pub type Updates = HashMap<(&'static str, u64), String>;

/// One transaction of the writer.
pub struct Batch<'a> {
    pub connection: &'a Connection,
    pub limits: &'a Limits,
    pub known: &'a mut Known,
    pub updates: &'a mut Updates,
    pub newest: &'a mut u64,
    pub audit: &'a mut Ledger,
    pub at: Millis,
}

impl Batch<'_> {
    /// Applies writes together. An error means that the transaction has to be rolled back.
    pub fn apply(&mut self, writes: &[Write]) -> Result<Applied> {
        let mut facts = self.facts(&Needs::of(writes, false))?;
        let mut planned = plan(writes, &facts, self.limits);
        while self.load_wanted(writes, &planned, &mut facts)? {
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
    pub fn apply_singly(&mut self, writes: &[Write]) -> Result<Applied> {
        let mut all = Applied::default();
        for write in writes {
            let newest = *self.newest;
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
                    *self.newest = newest;
                    self.known.clear();
                    all.outcomes.push(Err(blame(write, error)));
                }
            }
        }
        Ok(all)
    }

    /// Being deleted or not.
    pub(super) fn execution(&mut self, execution_id: &str) -> Result<Option<KnownExecution>> {
        if let Some(known) = self.known.execution(execution_id) {
            return Ok(Some(known.clone()));
        }
        let Some((row, record)) = read::any_execution(self.connection, execution_id)? else {
            return Ok(None);
        };
        let known = KnownExecution::new(row, Arc::new(record), None);
        self.known.put_execution(known.clone());
        Ok(Some(known))
    }

    /// One that may have steps: those of an execution that is being deleted are none any more.
    fn parent(&mut self, execution_id: &str) -> Result<Option<KnownExecution>> {
        let known = self.execution(execution_id)?;
        Ok(known.filter(|known| known.record.deleted_at.is_none()))
    }

    /// The greatest number of a step, -1 without steps.
    fn greatest(&mut self, known: &KnownExecution) -> Result<i32> {
        let greatest = match known.greatest {
            Some(greatest) => greatest,
            None => {
                let greatest = read::greatest_step_id(self.connection, known.parent())?;
                self.known.set_greatest(&known.record.execution_id, greatest);
                greatest
            }
        };
        Ok(greatest)
    }

    fn facts(&mut self, needs: &Needs) -> Result<Facts> {
        let mut facts = Facts::default();
        for id in &needs.executions {
            let execution = self.execution(id)?.map(|known| known.record);
            facts.executions.insert(id.clone(), execution);
        }
        for (id, step_ids) in &needs.steps {
            let Some(known) = self.parent(id)? else { continue };
            let greatest = self.greatest(&known)?;
            for step_id in step_ids {
                let key = RecordKey::step(id, *step_id);
                if let Some(step) = self.known.step(&key) {
                    facts.add_step(Arc::clone(step));
                    continue;
                }
                let loaded = match *step_id <= greatest {
                    true => read::step_by_id(self.connection, known.parent(), *step_id, false)?,
                    false => None,
                };
                self.add_step(&mut facts, known.row, loaded);
            }
        }
        for (id, keys) in &needs.keys {
            let Some(known) = self.parent(id)? else { continue };
            if self.greatest(&known)? < 0 {
                continue;
            }
            for key in keys {
                if let Some(step) = self.known.step_by_key(known.row, id, key) {
                    facts.add_step(Arc::clone(step));
                    continue;
                }
                let loaded = read::step_by_key(self.connection, known.parent(), key, false)?;
                self.add_step(&mut facts, known.row, loaded);
            }
        }
        for id in &needs.greatest_step_ids {
            if let Some(known) = self.parent(id)? {
                facts.greatest_step_ids.insert(id.clone(), self.greatest(&known)?);
            }
        }
        Ok(facts)
    }

    /// Notes a step that was loaded. One that is in no fact is taken for missing, which it is.
    fn add_step(&mut self, facts: &mut Facts, row: i64, loaded: Option<Step>) {
        if let Some(step) = loaded.map(Arc::new) {
            self.known.put_step(row, Arc::clone(&step));
            facts.add_step(step);
        }
    }

    /// How many steps an execution has.
    fn count(&mut self, execution_id: &str) -> Result<Option<usize>> {
        let Some(known) = self.parent(execution_id)? else { return Ok(None) };
        if let Some(count) = known.count {
            return Ok(Some(count));
        }
        let count = read::step_count(self.connection, known.parent())?;
        self.known.set_count(execution_id, count);
        Ok(Some(count))
    }

    /// Loads what rules asked for: payloads of steps, and how many steps there are. `false`: none did.
    fn load_wanted(&mut self, writes: &[Write], planned: &Plan, facts: &mut Facts) -> Result<bool> {
        let mut asked = false;
        let mut loaded = false;
        for (write, outcome) in writes.iter().zip(&planned.outcomes) {
            match outcome {
                Err(Refusal::NeedsPayload) => asked = true,
                Err(Refusal::NeedsStepCount) => {
                    let count = self.count(&write.execution_id)?.unwrap_or(0);
                    asked = true;
                    loaded |= facts.step_counts.insert(write.execution_id.clone(), count).is_none();
                    continue;
                }
                _ => continue,
            }
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
                let step_id = step.step_id;
                let Some(known) = self.parent(&write.execution_id)? else { continue };
                let full = read::step_by_id(self.connection, known.parent(), step_id, true)?;
                if let Some(full) = full {
                    facts.add_step(Arc::new(full));
                    loaded = true;
                }
            }
        }
        if asked && !loaded {
            return Err(Error::failed("a rule asked for what it was given"));
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
                Answer::Superseded(record) => {
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
        // Steps hang on the rows of their executions.
        for (id, dirty) in &planned.executions {
            self.persist_execution(id, dirty)?;
        }
        let mut written = Vec::with_capacity(places.len());
        for (place, (key, record)) in order.into_iter().enumerate() {
            if places.get(key) != Some(&place) {
                continue;
            }
            let changed = match key.step_id {
                None => {
                    let dirty = planned.executions.get(&key.execution_id);
                    dirty.map_or(Ok(false), |dirty| self.log_execution(key, dirty))?
                }
                Some(_) => match (planned.steps.get(key), &record) {
                    (Some(dirty), Some(Record::Step(bare))) => {
                        self.persist_step(key, dirty, bare)?
                    }
                    _ => false,
                },
            };
            if changed {
                written.extend(record);
            }
        }
        Ok(written)
    }

    fn persist_execution(&mut self, id: &str, dirty: &Dirty<Execution>) -> Result<()> {
        if !dirty.stored {
            return Ok(());
        }
        let Some(after) = &dirty.after else {
            return match self.parent(id)? {
                Some(known) => self.mark(&known),
                // Marked before.
                None => Ok(()),
            };
        };
        match dirty.before.as_deref() {
            None => {
                let cells = execution_cells(after);
                let stored_at = [Cell::Integer(self.at)];
                let row = self
                    .connection
                    .prepare_cached(&INSERTS.execution)?
                    .insert(params_from_iter(cells.iter().chain(&stored_at)))?;
                let known = KnownExecution::new(row, Arc::clone(after), Some(-1));
                self.known.put_execution(known);
            }
            Some(before) => {
                let Some(known) = self.execution(id)? else {
                    return Err(Error::failed("an execution is gone in the midst of its change"));
                };
                let (old, new) = (execution_cells(before), execution_cells(after));
                let changes = differences(&EXECUTION_COLUMNS, &old, &new);
                self.update("executions", "id = ?", changes, &[Cell::Integer(known.row)])?;
                let known = KnownExecution::new(known.row, Arc::clone(after), known.greatest);
                self.known.put_execution(known);
            }
        }
        Ok(())
    }

    fn log_execution(&mut self, key: &RecordKey, dirty: &Dirty<Execution>) -> Result<bool> {
        match (dirty.before.as_deref(), dirty.after.as_deref()) {
            (before, Some(after)) if dirty.changed => {
                self.log(Entry::of_execution(key, before, after))?;
                Ok(true)
            }
            // What the mark of a deletion tells is logged with it.
            _ => Ok(false),
        }
    }

    /// `bare` is the step after the change, without payloads.
    fn persist_step(
        &mut self,
        key: &RecordKey,
        dirty: &Dirty<Step>,
        bare: &Arc<Step>,
    ) -> Result<bool> {
        let before = dirty.before.as_deref();
        let Some(after) = dirty.after.as_deref().filter(|_| dirty.stored) else {
            return Ok(false);
        };
        let Some(KnownExecution { row, .. }) = self.execution(&key.execution_id)? else {
            return Err(Error::failed("an execution is gone in the midst of a change of its step"));
        };
        let step_id = Cell::Integer(after.step_id.into());
        let input = PayloadChange::of(before.map(|before| &before.input), &after.input)?;
        let output = PayloadChange::of(before.map(|before| &before.output), &after.output)?;
        match before {
            None => {
                let cells = step_cells(after);
                let rest = [
                    Cell::Integer(row),
                    Cell::Integer(self.at),
                    input.cell().unwrap_or(Cell::Null),
                    output.cell().unwrap_or(Cell::Null),
                ];
                self.connection
                    .prepare_cached(&INSERTS.step)?
                    .execute(params_from_iter(cells.iter().chain(&rest)))?;
                self.known.count_step(&key.execution_id);
            }
            Some(before) => {
                let (old, new) = (step_cells(before), step_cells(after));
                let mut changes = differences(&STEP_COLUMNS, &old, &new);
                let next = STEP_COLUMNS.len();
                changes.extend(input.cell().map(|cell| (next, "input", cell)));
                changes.extend(output.cell().map(|cell| (next + 1, "output", cell)));
                let name = [Cell::Integer(row), step_id];
                self.update("steps", "execution = ? AND step_id = ?", changes, &name)?;
            }
        }
        for (side, change) in [input, output].into_iter().enumerate() {
            if let PayloadChange::Apart(bytes) = change {
                // Where a long payload gives way to a short one, the long one stays here unused until the
                // execution goes: that costs less than looking for it with every change.
                self.connection
                    .prepare_cached(
                        "INSERT OR REPLACE INTO step_payloads (id, value) \
                         SELECT 2 * id + ?1, ?2 FROM steps WHERE execution = ?3 AND step_id = ?4",
                    )?
                    .execute((side as i64, bytes, row, after.step_id))?;
            }
        }
        self.known.put_step(row, Arc::clone(bare));
        if dirty.changed {
            self.log(Entry::of_step(key, before, after))?;
        }
        Ok(dirty.changed)
    }

    /// Writes only the columns that change, so that only their indexes are touched.
    fn update(
        &mut self,
        table: &'static str,
        condition: &str,
        changes: Vec<(usize, &'static str, Cell<'_>)>,
        name: &[Cell<'_>],
    ) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let set = changes.iter().fold(0, |set, (bit, ..)| set | 1 << bit);
        let sql = self.updates.entry((table, set)).or_insert_with(|| {
            let columns: Vec<_> =
                changes.iter().map(|(_, name, _)| format!("{name} = ?")).collect();
            format!("UPDATE {table} SET {} WHERE {condition}", columns.join(", "))
        });
        let cells = changes.iter().map(|(_, _, cell)| cell).chain(name);
        let updated = self.connection.prepare_cached(sql)?.execute(params_from_iter(cells))?;
        if updated != 1 {
            return Err(Error::failed(format!("{updated} rows of {table} were updated, not 1")));
        }
        Ok(())
    }

    /// Marks an execution as deleted: from here on it is one for nobody. `remove` takes it away.
    pub(super) fn mark(&mut self, before: &KnownExecution) -> Result<()> {
        let marked = Execution {
            deleted_at: Some(self.at),
            updated_at: Some(self.at),
            revision: before.record.revision.saturating_add(1).max(self.at.saturating_mul(1000)),
            ..before.record.as_ref().clone()
        };
        let cells = (execution_cells(&before.record), execution_cells(&marked));
        let changes = differences(&EXECUTION_COLUMNS, &cells.0, &cells.1);
        self.update("executions", "id = ?", changes, &[Cell::Integer(before.row)])?;
        let key = RecordKey::execution(&marked.execution_id);
        self.log(Entry::of_delete(&key, marked.revision))?;
        let known = KnownExecution::new(before.row, Arc::new(marked), before.greatest);
        self.known.put_execution(known);
        Ok(())
    }

    /// Logs a change under the next number.
    pub fn log(&mut self, entry: Entry<'_>) -> Result<()> {
        let seq = *self.newest + 1;
        changes::insert(self.connection, &Entry { seq, at: self.at, ..entry })?;
        *self.newest = seq;
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
        step: sql(
            "steps",
            &[&STEP_COLUMNS[..], &["execution", "stored_at", "input", "output"]].concat(),
        ),
    }
});

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
