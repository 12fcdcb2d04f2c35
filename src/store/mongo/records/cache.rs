//! What this server has lately read or written, without payloads, so that most writes need no look-up. It may
//! be stale: every write is guarded by what it read, and nothing is refused on its word alone.

use std::sync::Arc;
use std::time::Instant;

use bson::RawDocumentBuf;
use bson::oid::ObjectId;
use quick_cache::Weighter;

use crate::domain::{Execution, Step};
use crate::store::{Record, RecordKey};

const RECORD_BYTES: u64 = 64 * 1024 * 1024;
const RECORDS_EXPECTED: usize = 100_000;
const NUMBERS: usize = 50_000;

#[derive(Clone)]
struct Weigh;

#[derive(Clone)]
struct Known {
    record: Record,
    weight: u32,
    birth: Option<Birth>,
    /// When an execution was surely there and not being deleted.
    alive_at: Option<Instant>,
}

/// The document of a step as this server inserted it: as long as its size is the same and the fields that have a
/// value have the same one, nobody has given one to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Birth {
    pub id: ObjectId,
    pub bytes: i32,
}

impl Birth {
    pub fn of(document: &RawDocumentBuf) -> Option<Birth> {
        let bytes = i32::try_from(document.as_bytes().len()).ok()?;
        Some(Birth { id: document.get_object_id("_id").ok()?, bytes })
    }
}

impl Weighter<RecordKey, Known> for Weigh {
    fn weight(&self, _: &RecordKey, value: &Known) -> u64 {
        u64::from(value.weight)
    }
}

/// Bounded by bytes and by counts. `apply` uses it, of which no two calls hold the same execution, and what checks
/// afterwards whether executions are still there, which at worst makes a record staler or forgotten.
pub struct Cache {
    records: quick_cache::sync::Cache<RecordKey, Known, Weigh>,
    /// (execution, step key) -> step number.
    keys: quick_cache::sync::Cache<(String, String), i32>,
    /// Execution -> greatest step number.
    greatest: quick_cache::sync::Cache<String, i32>,
}

impl Cache {
    pub fn new() -> Self {
        Cache {
            records: quick_cache::sync::Cache::with_weighter(RECORDS_EXPECTED, RECORD_BYTES, Weigh),
            keys: quick_cache::sync::Cache::new(NUMBERS),
            greatest: quick_cache::sync::Cache::new(NUMBERS),
        }
    }

    pub fn execution(&self, key: &RecordKey) -> Option<Arc<Execution>> {
        match self.records.get(key)?.record {
            Record::Execution(execution) => Some(execution),
            Record::Step(_) | Record::Artifact(_) => None,
        }
    }

    pub fn step(&self, key: &RecordKey) -> Option<Arc<Step>> {
        match self.records.get(key)?.record {
            Record::Step(step) => Some(step),
            Record::Execution(_) | Record::Artifact(_) => None,
        }
    }

    /// The document of a step that this server has inserted and nothing has changed since, as far as is known.
    pub fn birth(&self, step: &Step) -> Option<Birth> {
        let key = RecordKey::step(&step.execution_id, step.step_id);
        let known = self.records.get(&key)?;
        match &known.record {
            Record::Step(same) if same.revision == step.revision => known.birth,
            _ => None,
        }
    }

    pub fn step_of_key(&self, key: &(String, String)) -> Option<i32> {
        self.keys.get(key)
    }

    pub fn greatest(&self, execution_id: &str) -> Option<i32> {
        self.greatest.get(execution_id)
    }

    /// `record` has no payloads.
    pub fn put(&self, key: RecordKey, record: Record) {
        let alive_at = self.records.get(&key).and_then(|known| known.alive_at);
        self.put_known(key, record, None, alive_at);
    }

    /// A new step.
    pub fn put_born(&self, key: RecordKey, record: Record, birth: Option<Birth>) {
        self.put_known(key, record, birth, None);
    }

    /// An execution that was there and not being deleted at that time.
    pub fn put_alive(&self, key: RecordKey, record: Record, at: Instant) {
        self.put_known(key, record, None, Some(at));
    }

    /// Notes that it was, if the execution is known here.
    pub fn note_alive(&self, key: &RecordKey, at: Instant) {
        if let Some(known) = self.records.get(key) {
            self.put_known(key.clone(), known.record, None, Some(at));
        }
    }

    pub fn alive_at(&self, key: &RecordKey) -> Option<Instant> {
        self.records.get(key)?.alive_at
    }

    fn put_known(
        &self,
        key: RecordKey,
        record: Record,
        birth: Option<Birth>,
        alive_at: Option<Instant>,
    ) {
        if let Record::Step(step) = &record
            && let Some(step_key) = &step.step_key
        {
            self.keys.insert((step.execution_id.clone(), step_key.clone()), step.step_id);
        }
        let overhead = 2 * key.execution_id.len() + 64;
        let weight = u32::try_from(record.weight() + overhead).unwrap_or(u32::MAX);
        self.records.insert(key, Known { record, weight, birth, alive_at });
    }

    pub fn put_greatest(&self, execution_id: String, step_id: i32) {
        self.greatest.insert(execution_id, step_id);
    }

    /// Forgets the record alone; what is known of numbers stays.
    pub fn forget_record(&self, key: &RecordKey) {
        self.records.remove(key);
    }

    /// Forgets the execution with all its steps. Looks at everything there is: not for every write.
    pub fn forget_all(&self, execution_id: &str) {
        self.records.retain(|key, _| key.execution_id != execution_id);
        self.greatest.remove(execution_id);
    }

    pub fn forget(&self, key: &RecordKey) {
        self.records.remove(key);
        if key.step_id.is_some() {
            self.greatest.remove(&key.execution_id);
        }
    }
}
