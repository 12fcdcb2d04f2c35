//! From entries of the log to events: finds the records. What this server wrote itself is at hand; everything
//! else is one query for a whole batch of entries, and only for records that somebody watches.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::event::Event;
use crate::domain::Execution;
use crate::store::{Change, ChangeKind, ChangeLog, Changed, Record, RecordKey, Result};

/// Memory for records that wait for their own entry in the log.
const OWN_BYTES: usize = 16 * 1024 * 1024;
/// Memory for executions by which filters are decided.
const EXECUTIONS_BYTES: u64 = 16 * 1024 * 1024;
/// Documents whose identity is remembered, to understand deletes of other programs.
const DOCUMENTS: usize = 16 * 1024;
/// Deleted executions remembered while the log tells of the documents that go with them.
const DELETED: usize = 4096;

/// What somebody wants of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Want {
    Nothing,
    Record,
    /// A step with input and output.
    Payloads,
}

/// Who wants what.
pub trait Interest {
    fn of(&self, key: &RecordKey) -> Want;
    /// Whether anybody wants anything.
    fn any(&self) -> bool;
    /// Whether anybody watches by filter.
    fn by_filter(&self) -> bool;
}

#[derive(Clone)]
struct ByWeight;

impl Weighter<String, Arc<Execution>> for ByWeight {
    fn weight(&self, key: &String, execution: &Arc<Execution>) -> u64 {
        (key.len() + execution.weight()) as u64
    }
}

/// Finds records for entries of the log.
pub struct Resolver {
    own: Mutex<Own>,
    /// Whether anybody watches; without watchers nothing is kept.
    active: AtomicBool,
    executions: Cache<String, Arc<Execution>, ByWeight>,
    documents: Cache<Vec<u8>, RecordKey>,
    /// Executions whose deletion was told: it covers what is then deleted of them.
    deleted: Cache<String, ()>,
    pub lookups: AtomicU64,
}

#[derive(Default)]
struct Own {
    records: HashMap<(RecordKey, i64), Record>,
    order: VecDeque<(RecordKey, i64)>,
    bytes: usize,
}

impl Resolver {
    pub fn new() -> Self {
        Resolver {
            own: Mutex::default(),
            active: AtomicBool::new(false),
            executions: Cache::with_weighter(4096, EXECUTIONS_BYTES, ByWeight),
            documents: Cache::new(DOCUMENTS),
            deleted: Cache::new(DELETED),
            lookups: AtomicU64::new(0),
        }
    }

    /// Begins or stops to keep what this server writes.
    pub fn set_active(&self, active: bool) {
        self.active.store(active, Ordering::Relaxed);
        if !active {
            *self.own.lock() = Own::default();
            self.executions.clear();
        }
    }

    /// Keeps what this server wrote until its entry comes round in the log.
    pub fn wrote(&self, records: Vec<Record>) {
        if !self.active.load(Ordering::Relaxed) {
            return;
        }
        let mut own = self.own.lock();
        for record in records {
            let key = (record.key(), record.revision());
            own.bytes += record.weight();
            own.order.push_back(key.clone());
            own.records.insert(key, record);
        }
        while own.bytes > OWN_BYTES {
            let Some(oldest) = own.order.pop_front() else { break };
            if let Some(record) = own.records.remove(&oldest) {
                own.bytes = own.bytes.saturating_sub(record.weight());
            }
        }
    }

    /// The events of a batch of entries that somebody wants, in order.
    pub async fn resolve(
        &self,
        log: &dyn ChangeLog,
        changes: Vec<Change>,
        interest: &(dyn Interest + Sync),
    ) -> Result<Vec<Arc<Event>>> {
        if !interest.any() {
            return Ok(Vec::new());
        }
        let mut found: HashMap<Changed, Record> = HashMap::new();
        let mut plain = HashSet::new();
        let mut with_payloads = HashSet::new();
        let mut bodies: Vec<Option<Record>> = Vec::with_capacity(changes.len());
        for change in &changes {
            if let (Changed::Record(key), Some(id)) = (&change.what, &change.document_id) {
                self.documents.insert(id.clone(), key.clone());
            }
            let mut body = None;
            let want = match &change.what {
                Changed::Record(key) => interest.of(key),
                Changed::Unknown { steps: true, .. } if interest.by_filter() => Want::Record,
                Changed::Unknown { .. } => Want::Record,
            };
            if change.kind != ChangeKind::Deleted && want != Want::Nothing {
                match want {
                    Want::Payloads => {
                        with_payloads.insert(change.what.clone());
                    }
                    _ => {
                        body = change.body.clone().or_else(|| self.own(change));
                        if body.is_none() {
                            plain.insert(change.what.clone());
                        }
                    }
                }
            }
            bodies.push(body);
        }
        for (wanted, payloads) in [(plain, false), (with_payloads, true)] {
            if !wanted.is_empty() {
                self.lookups.fetch_add(1, Ordering::Relaxed);
                let wanted: Vec<Changed> = wanted.into_iter().collect();
                found.extend(log.load(&wanted, payloads).await?);
            }
        }

        let executions = match interest.by_filter() {
            true => self.executions_of(log, &changes, &bodies, &found, interest).await?,
            false => HashMap::new(),
        };
        let mut events = Vec::with_capacity(changes.len());
        for (change, body) in changes.into_iter().zip(bodies) {
            let record = body.or_else(|| found.get(&change.what).cloned());
            let key = match (&change.what, &record) {
                (_, Some(record)) => record.key(),
                (Changed::Record(key), None) => key.clone(),
                (Changed::Unknown { id, .. }, None) => match self.documents.get(id) {
                    Some(key) => key,
                    None => continue,
                },
            };
            let deleted = change.kind == ChangeKind::Deleted;
            match (deleted, &change.what) {
                (true, Changed::Record(_)) if key.step_id.is_none() => {
                    self.deleted.insert(key.execution_id.clone(), ());
                }
                (true, Changed::Unknown { .. })
                    if self.deleted.get(&key.execution_id).is_some() =>
                {
                    continue;
                }
                (false, _) if key.step_id.is_none() => {
                    self.deleted.remove(&key.execution_id);
                }
                _ => {}
            }
            if interest.of(&key) == Want::Nothing {
                continue;
            }
            if !deleted && record.is_none() {
                // Gone since; its deletion comes later in the log.
                continue;
            }
            let record = if deleted { None } else { record };
            let (mut execution, mut before) = (None, None);
            if interest.by_filter() {
                if key.step_id.is_some() {
                    execution = executions.get(&key.execution_id).cloned();
                } else {
                    // A look-up may have brought a version as new as this change: that is not the one before.
                    before = self.executions.get(&key.execution_id).filter(|known| {
                        match (change.revision, &record) {
                            (Some(revision), _) => known.revision < revision,
                            (None, Some(Record::Execution(now))) => known != now,
                            (None, _) => true,
                        }
                    });
                    match &record {
                        Some(Record::Execution(now)) => {
                            self.executions.insert(key.execution_id.clone(), Arc::clone(now));
                        }
                        _ => {
                            self.executions.remove(&key.execution_id);
                        }
                    }
                }
            }
            events.push(Arc::new(Event::new(
                change.cursor,
                change.at,
                key,
                change.kind,
                change.revision,
                record,
                execution,
                before,
                (change.status_changed, change.metadata_changed),
            )));
        }
        Ok(events)
    }

    fn own(&self, change: &Change) -> Option<Record> {
        let (Changed::Record(key), Some(revision)) = (&change.what, change.revision) else {
            return None;
        };
        self.own.lock().records.get(&(key.clone(), revision)).cloned()
    }

    /// The executions of the steps in a batch, by which filters decide about them.
    async fn executions_of(
        &self,
        log: &dyn ChangeLog,
        changes: &[Change],
        bodies: &[Option<Record>],
        found: &HashMap<Changed, Record>,
        interest: &(dyn Interest + Sync),
    ) -> Result<HashMap<String, Arc<Execution>>> {
        let mut known: HashMap<String, Arc<Execution>> = HashMap::new();
        let mut missing = HashSet::new();
        for (change, body) in changes.iter().zip(bodies) {
            let key = match (body.as_ref().or_else(|| found.get(&change.what)), &change.what) {
                (Some(record), _) => record.key(),
                (None, Changed::Record(key)) => key.clone(),
                (None, Changed::Unknown { .. }) => continue,
            };
            if key.step_id.is_none() || interest.of(&key) == Want::Nothing {
                continue;
            }
            let id = key.execution_id;
            if known.contains_key(&id) {
                continue;
            }
            match self.executions.get(&id) {
                Some(execution) => {
                    known.insert(id, execution);
                }
                None => {
                    missing.insert(Changed::Record(RecordKey::execution(id)));
                }
            }
        }
        // A change of the execution in this very batch is newer than what was known before it.
        for record in bodies.iter().flatten().chain(found.values()) {
            if let Record::Execution(execution) = record {
                missing.remove(&Changed::Record(RecordKey::execution(&execution.execution_id)));
                known.insert(execution.execution_id.clone(), Arc::clone(execution));
            }
        }
        if !missing.is_empty() {
            self.lookups.fetch_add(1, Ordering::Relaxed);
            let missing: Vec<Changed> = missing.into_iter().collect();
            for (_, record) in log.load(&missing, false).await? {
                if let Record::Execution(execution) = record {
                    self.executions.insert(execution.execution_id.clone(), Arc::clone(&execution));
                    known.insert(execution.execution_id.clone(), execution);
                }
            }
        }
        Ok(known)
    }
}
