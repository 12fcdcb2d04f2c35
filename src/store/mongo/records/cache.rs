//! What this server has lately read or written, without payloads, so that most writes need no look-up. It may
//! be stale: every write is guarded by what it read, and nothing is refused on its word alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bson::RawDocumentBuf;
use bson::oid::ObjectId;
use quick_cache::Weighter;

use crate::domain::{Execution, Step};
use crate::store::{Record, RecordKey};

const RECORD_BYTES: u64 = 64 * 1024 * 1024;
const RECORDS_EXPECTED: usize = 100_000;
const NUMBERS: usize = 50_000;
const COUNTS: usize = 5_000;

#[derive(Clone)]
struct Weigh;

#[derive(Clone)]
struct Known {
    record: Record,
    weight: u32,
    birth: Option<Birth>,
    /// When an execution was surely there and not being deleted.
    alive_at: Option<Instant>,
    /// When the record was read or written.
    known_at: Instant,
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
    /// Execution -> how many steps it has, of those with numbers beyond the limit.
    counts: quick_cache::sync::Cache<String, Counted>,
}

/// How many steps an execution has, as far as this server knows.
#[derive(Debug, Clone, Copy)]
struct Counted {
    steps: usize,
    /// Beyond this they have to be counted again: other servers add some too.
    good_until: usize,
}

/// The part of the room that is left for steps after which they are counted again. As many servers may add to one
/// execution and none of them passes the limit unseen.
const COUNTED_PART: usize = 8;

impl Cache {
    pub fn new() -> Self {
        Cache {
            records: quick_cache::sync::Cache::with_weighter(RECORDS_EXPECTED, RECORD_BYTES, Weigh),
            keys: quick_cache::sync::Cache::new(NUMBERS),
            greatest: quick_cache::sync::Cache::new(NUMBERS),
            counts: quick_cache::sync::Cache::new(COUNTS),
        }
    }

    pub fn execution(&self, key: &RecordKey) -> Option<Arc<Execution>> {
        match self.records.get(key)?.record {
            Record::Execution(execution) => Some(execution),
            Record::Step(_) | Record::Artifact(_) => None,
        }
    }

    /// The same, unless it has been known for longer than that.
    pub fn fresh_execution(&self, key: &RecordKey, within: Duration) -> Option<Arc<Execution>> {
        let known = self.records.get(key)?;
        match known.record {
            Record::Execution(execution) if known.known_at.elapsed() <= within => Some(execution),
            _ => None,
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
            // That it is there tells nothing new about what is in it.
            let known_at = known.known_at;
            self.put_known_at(key.clone(), known.record, None, Some(at), known_at);
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
        self.put_known_at(key, record, birth, alive_at, Instant::now());
    }

    fn put_known_at(
        &self,
        key: RecordKey,
        record: Record,
        birth: Option<Birth>,
        alive_at: Option<Instant>,
        known_at: Instant,
    ) {
        if let Record::Step(step) = &record
            && let Some(step_key) = &step.step_key
        {
            self.keys.insert((step.execution_id.clone(), step_key.clone()), step.step_id);
        }
        let overhead = 2 * key.execution_id.len() + 64;
        let weight = u32::try_from(record.weight() + overhead).unwrap_or(u32::MAX);
        self.records.insert(key, Known { record, weight, birth, alive_at, known_at });
    }

    pub fn put_greatest(&self, execution_id: String, step_id: i32) {
        self.greatest.insert(execution_id, step_id);
    }

    pub fn step_count(&self, execution_id: &str) -> Option<usize> {
        Some(self.counts.get(execution_id)?.steps)
    }

    /// Takes in a count of the steps of an execution, of which there may be `limit`.
    pub fn put_step_count(&self, execution_id: &str, steps: usize, limit: usize) {
        let good_until = steps + limit.saturating_sub(steps) / COUNTED_PART;
        self.counts.insert(execution_id.to_owned(), Counted { steps, good_until });
    }

    /// Notes that this server has added a step.
    pub fn count_step(&self, execution_id: &str) {
        if self.counts.is_empty() {
            return;
        }
        if let Some(Counted { steps, good_until }) = self.counts.get(execution_id) {
            match steps < good_until {
                true => self
                    .counts
                    .insert(execution_id.to_owned(), Counted { steps: steps + 1, good_until }),
                false => drop(self.counts.remove(execution_id)),
            }
        }
    }

    /// Forgets the record alone; what is known of numbers stays.
    pub fn forget_record(&self, key: &RecordKey) {
        self.records.remove(key);
    }

    /// Forgets the execution with all its steps. Looks at everything there is: not for every write.
    pub fn forget_all(&self, execution_id: &str) {
        self.records.retain(|key, _| key.execution_id != execution_id);
        self.greatest.remove(execution_id);
        self.counts.remove(execution_id);
    }

    /// Forgets everything: the database may be as it was some time ago.
    pub fn clear(&self) {
        self.records.clear();
        self.keys.clear();
        self.greatest.clear();
    }

    pub fn forget(&self, key: &RecordKey) {
        self.records.remove(key);
        if key.step_id.is_some() {
            self.greatest.remove(&key.execution_id);
        }
    }
}
