//! What the writer remembers of records it lately wrote or read. It alone writes, so what it remembers is what
//! is stored; whoever rolls back or finds that another program wrote must `clear`. Bounded: what is not here
//! is asked of the tables.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::unsync::Cache;

use super::read::Parent;
use crate::domain::{Execution, Step};
use crate::store::{Record, RecordKey};

const EXECUTION_BYTES: u64 = 32 * 1024 * 1024;
const STEP_BYTES: u64 = 64 * 1024 * 1024;
const RECORDS_EXPECTED: usize = 16 * 1024;
const KEYS: usize = 64 * 1024;

/// An execution with its row.
#[derive(Debug, Clone)]
pub struct KnownExecution {
    pub row: i64,
    pub record: Arc<Execution>,
    /// The greatest number of its steps, -1 without steps. `None`: not known.
    pub greatest: Option<i32>,
    /// How many steps it has. `None`: not counted.
    pub count: Option<usize>,
    weight: u32,
}

impl KnownExecution {
    pub fn new(row: i64, record: Arc<Execution>, greatest: Option<i32>) -> KnownExecution {
        let weight = weight(&Record::Execution(Arc::clone(&record)));
        KnownExecution { row, record, greatest, count: None, weight }
    }

    pub fn parent(&self) -> Parent<'_> {
        Parent { row: self.row, execution_id: &self.record.execution_id }
    }
}

#[derive(Debug, Clone, Copy)]
struct Weigh;

impl Weighter<String, KnownExecution> for Weigh {
    fn weight(&self, _: &String, known: &KnownExecution) -> u64 {
        known.weight.into()
    }
}

impl Weighter<RecordKey, (Arc<Step>, u32)> for Weigh {
    fn weight(&self, _: &RecordKey, (_, weight): &(Arc<Step>, u32)) -> u64 {
        (*weight).into()
    }
}

fn weight(record: &Record) -> u32 {
    u32::try_from(record.weight()).unwrap_or(u32::MAX)
}

/// The writer's memory.
pub struct Known {
    executions: Cache<String, KnownExecution, Weigh>,
    /// Without payloads.
    steps: Cache<RecordKey, (Arc<Step>, u32), Weigh>,
    /// (row of the execution, key) -> number.
    keys: Cache<(i64, String), i32>,
}

impl Known {
    pub fn new() -> Known {
        Known {
            executions: Cache::with_weighter(RECORDS_EXPECTED, EXECUTION_BYTES, Weigh),
            steps: Cache::with_weighter(RECORDS_EXPECTED, STEP_BYTES, Weigh),
            keys: Cache::new(KEYS),
        }
    }

    pub fn clear(&mut self) {
        self.executions.clear();
        self.steps.clear();
        self.keys.clear();
    }

    pub fn execution(&self, execution_id: &str) -> Option<&KnownExecution> {
        self.executions.get(execution_id)
    }

    pub fn put_execution(&mut self, known: KnownExecution) {
        self.executions.insert(known.record.execution_id.clone(), known);
    }

    /// Its steps are forgotten one by one, for they went before it.
    pub fn forget_execution(&mut self, execution_id: &str) {
        self.executions.remove(execution_id);
    }

    pub fn forget_step(&mut self, execution_id: &str, step_id: i32) {
        self.steps.remove(&RecordKey::step(execution_id, step_id));
        if let Some(mut known) = self.executions.get_mut(execution_id) {
            known.count = None;
        }
    }

    pub fn set_count(&mut self, execution_id: &str, count: usize) {
        if let Some(mut known) = self.executions.get_mut(execution_id) {
            known.count = Some(count);
        }
    }

    /// Notes that an execution has one step more.
    pub fn count_step(&mut self, execution_id: &str) {
        if let Some(mut known) = self.executions.get_mut(execution_id) {
            known.count = known.count.map(|count| count + 1);
        }
    }

    pub fn set_greatest(&mut self, execution_id: &str, greatest: i32) {
        if let Some(mut known) = self.executions.get_mut(execution_id) {
            known.greatest = Some(greatest);
        }
    }

    pub fn step(&self, key: &RecordKey) -> Option<&Arc<Step>> {
        self.steps.get(key).map(|(step, _)| step)
    }

    /// Takes in a step that is stored, without its payloads.
    pub fn put_step(&mut self, row: i64, step: Arc<Step>) {
        if let Some(key) = &step.step_key {
            self.keys.insert((row, key.clone()), step.step_id);
        }
        if let Some(mut known) = self.executions.get_mut(&step.execution_id)
            && let Some(greatest) = &mut known.greatest
        {
            *greatest = step.step_id.max(*greatest);
        }
        let weight = weight(&Record::Step(Arc::clone(&step)));
        self.steps.insert(RecordKey::step(&step.execution_id, step.step_id), (step, weight));
    }

    /// The step with this key in the execution of this row.
    pub fn step_by_key(&self, row: i64, execution_id: &str, key: &str) -> Option<&Arc<Step>> {
        let step_id = *self.keys.get(&(row, key.to_owned()))?;
        // A deleted execution's keys stay until they are pushed out, and its row may have a new owner.
        self.step(&RecordKey::step(execution_id, step_id))
            .filter(|step| step.step_key.as_deref() == Some(key))
    }
}
