//! What this server has lately read or written, without payloads, so that most writes need no look-up. It may
//! be stale: every write is guarded by what it read, and nothing is refused on its word alone.

use std::sync::Arc;

use quick_cache::Weighter;

use crate::domain::{Execution, Step};
use crate::store::{Record, RecordKey};

const RECORD_BYTES: u64 = 64 * 1024 * 1024;
const RECORDS_EXPECTED: usize = 100_000;
const NUMBERS: usize = 50_000;

#[derive(Clone)]
struct Weigh;

impl Weighter<RecordKey, (Record, u32)> for Weigh {
    fn weight(&self, _: &RecordKey, value: &(Record, u32)) -> u64 {
        u64::from(value.1)
    }
}

/// Bounded by bytes and by counts. `apply` alone uses it: no two calls hold the same execution.
pub(super) struct Cache {
    records: quick_cache::sync::Cache<RecordKey, (Record, u32), Weigh>,
    /// (execution, step key) -> step number.
    keys: quick_cache::sync::Cache<(String, String), i32>,
    /// Execution -> greatest step number.
    greatest: quick_cache::sync::Cache<String, i32>,
}

impl Cache {
    pub(super) fn new() -> Self {
        Cache {
            records: quick_cache::sync::Cache::with_weighter(RECORDS_EXPECTED, RECORD_BYTES, Weigh),
            keys: quick_cache::sync::Cache::new(NUMBERS),
            greatest: quick_cache::sync::Cache::new(NUMBERS),
        }
    }

    pub(super) fn execution(&self, key: &RecordKey) -> Option<Arc<Execution>> {
        match self.records.get(key)?.0 {
            Record::Execution(execution) => Some(execution),
            Record::Step(_) | Record::Artifact(_) => None,
        }
    }

    pub(super) fn step(&self, key: &RecordKey) -> Option<Arc<Step>> {
        match self.records.get(key)?.0 {
            Record::Step(step) => Some(step),
            Record::Execution(_) | Record::Artifact(_) => None,
        }
    }

    pub(super) fn step_of_key(&self, key: &(String, String)) -> Option<i32> {
        self.keys.get(key)
    }

    pub(super) fn greatest(&self, execution_id: &str) -> Option<i32> {
        self.greatest.get(execution_id)
    }

    /// `record` has no payloads.
    pub(super) fn put(&self, key: RecordKey, record: Record) {
        if let Record::Step(step) = &record
            && let Some(step_key) = &step.step_key
        {
            self.keys.insert((step.execution_id.clone(), step_key.clone()), step.step_id);
        }
        let overhead = 2 * key.execution_id.len() + 64;
        let weight = u32::try_from(record.weight() + overhead).unwrap_or(u32::MAX);
        self.records.insert(key, (record, weight));
    }

    pub(super) fn put_greatest(&self, execution_id: String, step_id: i32) {
        self.greatest.insert(execution_id, step_id);
    }

    /// Forgets the record alone; what is known of numbers stays.
    pub(super) fn forget_record(&self, key: &RecordKey) {
        self.records.remove(key);
    }

    /// Forgets the execution with all its steps. Looks at everything there is: not for every write.
    pub(super) fn forget_all(&self, execution_id: &str) {
        self.records.retain(|key, _| key.execution_id != execution_id);
        self.greatest.remove(execution_id);
    }

    pub(super) fn forget(&self, key: &RecordKey) {
        self.records.remove(key);
        if key.step_id.is_some() {
            self.greatest.remove(&key.execution_id);
        }
    }
}
