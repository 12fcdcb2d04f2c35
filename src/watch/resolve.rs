//! From entries of the log to events: finds the records. What this server wrote itself is at hand; everything
//! else is one query for a whole batch of entries, and only for records that somebody watches.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::event::{Event, Made};
use crate::clock::Clock;
use crate::domain::Execution;
use crate::store::{Change, ChangeKind, ChangeLog, Changed, Error, Record, RecordKey, Result};

/// Memory for records that wait for their own entry in the log.
const OWN_BYTES: usize = 16 * 1024 * 1024;
/// Memory for steps with payloads that several watchers may be about to send.
const PAYLOADS_BYTES: u64 = 16 * 1024 * 1024;
/// Documents whose identity is remembered, to understand deletes of other programs.
const DOCUMENTS: usize = 16 * 1024;
/// Executions remembered as deleted by us, whose documents go away after that.
const DELETED: usize = 4 * 1024;
/// Records looked up in one query.
const LOOKED_UP: usize = 500;

/// Who wants what.
pub trait Interest {
    /// Whether anybody wants this record.
    fn of(&self, key: &RecordKey) -> bool;
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

impl Weighter<(RecordKey, Vec<u8>), Option<Arc<Event>>> for ByWeight {
    fn weight(&self, key: &(RecordKey, Vec<u8>), event: &Option<Arc<Event>>) -> u64 {
        // The encoded form is kept with the event.
        let event = event.as_ref().map_or(0, |event| event.weight() * 2);
        (128 + key.0.execution_id.len() + key.1.len() + event) as u64
    }
}

/// What one pass over the log knows of executions. Each pass has its own: another one is at another place of the
/// log.
pub struct Pass {
    /// By these filters are decided.
    executions: Cache<String, Arc<Execution>, ByWeight>,
    /// Deleted by us and not created again since. What the log still says of their steps and artifacts is no news.
    deleted: Cache<String, ()>,
}

impl Pass {
    pub fn new(bytes: u64) -> Self {
        Pass {
            executions: Cache::with_weighter(1024, bytes, ByWeight),
            deleted: Cache::new(DELETED),
        }
    }

    fn forget_executions(&self) {
        if !self.executions.is_empty() {
            self.executions.clear();
        }
    }

    /// Whether the change is about something of an execution that is deleted at this place of the log.
    fn is_over(&self, key: &RecordKey) -> bool {
        !key.is_execution() && self.deleted.get(&key.execution_id).is_some()
    }

    /// Takes note of an execution that comes or goes.
    fn note(&self, change: &Change, key: &RecordKey) {
        if !key.is_execution() {
            return;
        }
        match change.kind {
            // Another program's delete leaves the steps alone.
            ChangeKind::Deleted if change.revision.is_some() => {
                self.deleted.insert(key.execution_id.clone(), ());
            }
            ChangeKind::Created if !self.deleted.is_empty() => {
                self.deleted.remove(&key.execution_id);
            }
            _ => {}
        }
    }
}

/// Finds records for entries of the log.
pub struct Resolver {
    clock: Arc<dyn Clock>,
    own: Mutex<Own>,
    /// Whether anybody watches; without watchers nothing is kept.
    active: AtomicBool,
    documents: Cache<Vec<u8>, RecordKey>,
    payloads: Cache<(RecordKey, Vec<u8>), Option<Arc<Event>>, ByWeight>,
    pub lookups: AtomicU64,
}

#[derive(Default)]
struct Own {
    records: HashMap<(RecordKey, i64), Record>,
    order: VecDeque<(RecordKey, i64)>,
    bytes: usize,
}

/// An entry with its record, while a batch is put together.
struct Found {
    change: Change,
    key: RecordKey,
    record: Option<Record>,
    looked_up: bool,
}

impl Resolver {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Resolver {
            clock,
            own: Mutex::default(),
            active: AtomicBool::new(false),
            documents: Cache::new(DOCUMENTS),
            payloads: Cache::with_weighter(256, PAYLOADS_BYTES, ByWeight),
            lookups: AtomicU64::new(0),
        }
    }

    /// Begins or stops to keep what this server writes.
    pub fn set_active(&self, active: bool) {
        self.active.store(active, Ordering::Relaxed);
        if !active {
            *self.own.lock() = Own::default();
            self.payloads.clear();
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
            if let Some(replaced) = own.records.insert(key, record) {
                own.bytes = own.bytes.saturating_sub(replaced.weight());
            }
        }
        while own.bytes > OWN_BYTES {
            let Some(oldest) = own.order.pop_front() else { break };
            if let Some(record) = own.records.remove(&oldest) {
                own.bytes = own.bytes.saturating_sub(record.weight());
            }
        }
    }

    fn own(&self, change: &Change) -> Option<Record> {
        let (Changed::Record(key), Some(revision)) = (&change.what, change.revision) else {
            return None;
        };
        self.own.lock().records.get(&(key.clone(), revision)).cloned()
    }

    /// The record of an entry, where it is at hand. What another program changed is looked up: its entry may
    /// carry a revision that says nothing about the order of things.
    fn at_hand(&self, change: &Change) -> Option<Record> {
        let exact = change.revision.is_some() || change.kind == ChangeKind::Created;
        change.body.clone().filter(|_| exact).or_else(|| self.own(change))
    }

    /// The events of a batch of entries that somebody wants, in order.
    pub async fn resolve(
        &self,
        log: &dyn ChangeLog,
        changes: Vec<Change>,
        interest: &(dyn Interest + Sync),
        pass: &Pass,
    ) -> Result<Vec<Arc<Event>>> {
        let by_filter = interest.by_filter();
        if !by_filter {
            // Nobody keeps it up to date from here on.
            pass.forget_executions();
        }
        let anybody = interest.any();
        let mut wanted = HashSet::new();
        let mut entries = Vec::with_capacity(changes.len());
        for mut change in changes {
            let known = match &change.what {
                Changed::Record(key) => {
                    // Whether anybody wants it or not: somebody may come.
                    pass.note(&change, key);
                    if let Some(id) = &change.document_id {
                        self.identify(id, key, change.kind);
                    }
                    interest.of(key) && !pass.is_over(key)
                }
                Changed::Unknown { id, .. } if change.kind == ChangeKind::Deleted => {
                    let Some(key) = self.documents.get(id) else { continue };
                    // The documents of an execution that we deleted go away one by one; watchers know already.
                    let known = interest.of(&key) && pass.deleted.get(&key.execution_id).is_none();
                    change.what = Changed::Record(key);
                    known
                }
                Changed::Unknown { .. } => anybody,
            };
            if !known {
                continue;
            }
            let mut record = None;
            if change.kind != ChangeKind::Deleted {
                record = self.at_hand(&change);
                if record.is_none() {
                    wanted.insert(change.what.clone());
                }
            }
            entries.push((change, record));
        }
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let began = self.clock.instant();
        let loaded: HashMap<Changed, Record> = self.load(log, wanted).await?.into_iter().collect();
        let looked_up = (began, self.clock.instant());

        let mut found = Vec::with_capacity(entries.len());
        for (change, record) in entries {
            found.extend(self.found(change, record, &loaded, interest, pass));
        }
        merge(&mut found);
        let steps_of = match by_filter {
            true => self.executions_of(log, &found, pass).await?,
            false => HashMap::new(),
        };
        Ok(found
            .into_iter()
            .map(|found| {
                let looked_up = found.looked_up.then_some(looked_up);
                let judged = match by_filter {
                    true => judge(&found, pass, &steps_of),
                    false => (None, None),
                };
                Arc::new(event(found, judged, looked_up))
            })
            .collect())
    }

    /// Remembers which record a document holds. After our own mark of a deletion the document itself goes away,
    /// and that is nothing new.
    fn identify(&self, id: &[u8], key: &RecordKey, kind: ChangeKind) {
        if kind == ChangeKind::Deleted {
            self.documents.remove(id);
        } else {
            self.documents.insert(id.to_owned(), key.clone());
        }
    }

    /// Puts entry and record together. `None`: there is nothing to tell.
    fn found(
        &self,
        change: Change,
        record: Option<Record>,
        loaded: &HashMap<Changed, Record>,
        interest: &(dyn Interest + Sync),
        pass: &Pass,
    ) -> Option<Found> {
        let deleted = change.kind == ChangeKind::Deleted;
        let looked_up = !deleted && record.is_none();
        let record = record.or_else(|| loaded.get(&change.what).cloned()).filter(|_| !deleted);
        let key = match (&change.what, &record) {
            (Changed::Record(key), Some(_)) => key.clone(),
            (Changed::Record(key), None) if deleted => key.clone(),
            // Only now it is known what the document holds.
            (Changed::Unknown { .. }, Some(record)) => {
                let key = record.key();
                (interest.of(&key) && !pass.is_over(&key)).then_some(key)?
            }
            // What cannot be found is gone since; its deletion comes later in the log.
            (_, None) => return None,
        };
        Some(Found { change, key, record, looked_up })
    }

    /// What `with_payloads` answers, if another watcher has asked for it.
    pub fn payloads_at_hand(&self, event: &Event) -> Option<Option<Arc<Event>>> {
        self.payloads.get(&(event.key.clone(), event.cursor.0.clone()))
    }

    /// The event with input and output of its step. `None`: the step is gone. One look-up serves all watchers
    /// that ask at the same time.
    pub async fn with_payloads(
        &self,
        log: &dyn ChangeLog,
        event: &Event,
    ) -> Result<Option<Arc<Event>>> {
        let key = (event.key.clone(), event.cursor.0.clone());
        self.payloads
            .get_or_insert_async(&key, async {
                self.lookups.fetch_add(1, Ordering::Relaxed);
                let began = self.clock.instant();
                let what = [Changed::Record(event.key.clone())];
                let record = log.load(&what, true).await?.into_iter().next();
                let looked_up = (began, self.clock.instant());
                Ok(record.map(|(_, record)| Arc::new(event.with_record(record, looked_up))))
            })
            .await
    }

    /// Looks records up, many at a time. One that cannot be read is left out, for it would hold up all others.
    async fn load(
        &self,
        log: &dyn ChangeLog,
        wanted: HashSet<Changed>,
    ) -> Result<Vec<(Changed, Record)>> {
        let wanted: Vec<Changed> = wanted.into_iter().collect();
        let mut loaded = Vec::with_capacity(wanted.len());
        for wanted in wanted.chunks(LOOKED_UP) {
            self.lookups.fetch_add(1, Ordering::Relaxed);
            match log.load(wanted, false).await {
                Ok(records) => loaded.extend(records),
                Err(error @ Error::Corrupt { .. }) => {
                    tracing::warn!(%error, "cannot read a record for watchers");
                    for one in wanted {
                        match log.load(std::slice::from_ref(one), false).await {
                            Ok(records) => loaded.extend(records),
                            Err(Error::Corrupt { .. }) => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(loaded)
    }

    /// The executions of the steps in a batch that this pass does not know.
    async fn executions_of(
        &self,
        log: &dyn ChangeLog,
        found: &[Found],
        pass: &Pass,
    ) -> Result<HashMap<String, Arc<Execution>>> {
        let mut wanted = HashSet::new();
        let mut earlier: HashSet<&str> = HashSet::new();
        for found in found {
            let id = found.key.execution_id.as_str();
            if found.key.is_execution() {
                earlier.insert(id);
            } else if found.key.step_id.is_some()
                && !earlier.contains(id)
                && pass.executions.get(id).is_none()
            {
                wanted.insert(Changed::Record(RecordKey::execution(id)));
            }
        }
        let loaded = self.load(log, wanted).await?;
        Ok(loaded
            .into_iter()
            .filter_map(|(_, record)| match record {
                Record::Execution(execution) => Some((execution.execution_id.clone(), execution)),
                Record::Step(_) | Record::Artifact(_) => None,
            })
            .collect())
    }
}

/// Of several entries about a record that were answered by the same look-up, one event is enough: the last, which
/// then says what all of them said.
fn merge(found: &mut Vec<Found>) {
    let mut later = Later::default();
    let mut latest: HashMap<(RecordKey, bool), usize> = HashMap::new();
    let mut kept: Vec<Found> = Vec::with_capacity(found.len());
    for entry in found.drain(..).rev() {
        let key = (entry.key.clone(), later.ends(&entry.key, entry.record.as_ref()));
        if entry.record.is_none() || !entry.looked_up {
            // What is exact is told as it is, and nothing is merged across it.
            latest.remove(&key);
            kept.push(entry);
            continue;
        }
        match latest.get(&key) {
            Some(index) => {
                let change = &mut kept[*index].change;
                change.status_changed |= entry.change.status_changed;
                change.metadata_changed |= entry.change.metadata_changed;
                if entry.change.kind == ChangeKind::Created {
                    change.kind = ChangeKind::Created;
                }
            }
            None => {
                latest.insert(key, kept.len());
                kept.push(entry);
            }
        }
    }
    kept.reverse();
    *found = kept;
}

/// Executions whose end comes later, for who goes through events from the last to the first. What is told of a step before the
/// end of its execution is not put off until after it: nobody may be there any more.
#[derive(Debug, Default)]
pub struct Later(HashSet<String>);

impl Later {
    /// Whether the end of its execution comes after this event of a record.
    pub fn ends(&mut self, key: &RecordKey, record: Option<&Record>) -> bool {
        if !key.is_execution() {
            return self.0.contains(&key.execution_id);
        }
        if let Some(Record::Execution(execution)) = record
            && execution.is_terminal()
        {
            self.0.insert(key.execution_id.clone());
        }
        false
    }
}

/// The execution of a step, or the version of an execution before the change, by which filters are decided.
type Judged = (Option<Arc<Execution>>, Option<Arc<Execution>>);

fn judge(found: &Found, pass: &Pass, steps_of: &HashMap<String, Arc<Execution>>) -> Judged {
    let id = &found.key.execution_id;
    if !found.key.is_execution() {
        if let Some(known) = pass.executions.get(id) {
            return (Some(known), None);
        }
        let loaded = steps_of.get(id).cloned();
        if let Some(execution) = &loaded {
            pass.executions.insert(id.clone(), Arc::clone(execution));
        }
        return (loaded, None);
    }
    // A look-up may have brought a version as new as this change: that is not the one before.
    let before =
        pass.executions.get(id).filter(|known| match (found.change.revision, &found.record) {
            (Some(revision), _) => known.revision < revision,
            (None, Some(Record::Execution(now))) => known != now,
            (None, _) => true,
        });
    match &found.record {
        Some(Record::Execution(now)) => pass.executions.insert(id.clone(), Arc::clone(now)),
        _ => {
            pass.executions.remove(id);
        }
    }
    (None, before)
}

fn event(found: Found, judged: Judged, looked_up: Option<(Instant, Instant)>) -> Event {
    let Found { change, key, record, .. } = found;
    Event {
        cursor: change.cursor,
        at: change.at,
        key,
        kind: change.kind,
        revision: change.revision,
        record,
        execution: judged.0,
        before: judged.1,
        status_changed: change.status_changed,
        metadata_changed: change.metadata_changed,
        looked_up,
        made: Made::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ExecutionStatus, Step};
    use crate::store::Cursor;

    fn found(number: u8, record: Record) -> Found {
        let key = record.key();
        let change = Change {
            cursor: Cursor(vec![number]),
            at: 0,
            what: Changed::Record(key.clone()),
            kind: ChangeKind::Updated,
            revision: Some(i64::from(number)),
            status_changed: false,
            metadata_changed: false,
            failed: None,
            standing: None,
            body: None,
            document_id: None,
        };
        Found { change, key, record: Some(record), looked_up: true }
    }

    fn execution(status: ExecutionStatus) -> Record {
        let status = Some(status);
        let execution = Execution { execution_id: "e".to_owned(), status, ..Default::default() };
        Record::Execution(Arc::new(execution))
    }

    fn step(step_id: i32) -> Record {
        let execution_id = "e".to_owned();
        Record::Step(Arc::new(Step { execution_id, step_id, ..Default::default() }))
    }

    #[test]
    fn no_step_is_put_off_until_after_the_end_of_its_execution() {
        let merged = |end: ExecutionStatus| {
            let mut all = vec![
                found(1, step(1)),
                found(2, execution(end)),
                found(3, step(1)),
                found(4, step(2)),
                found(5, execution(end)),
                found(6, step(1)),
                found(7, step(1)),
            ];
            merge(&mut all);
            all.iter().map(|found| found.change.cursor.0[0]).collect::<Vec<_>>()
        };
        assert_eq!(merged(ExecutionStatus::Completed), [3, 4, 5, 7]);
        assert_eq!(merged(ExecutionStatus::Running), [4, 5, 7], "it goes on");
    }
}
