//! Persists what a plan changed, under the guard that it still is what the decision was made on, and finds out what
//! became of each record.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use bson::raw::RawDocument;
use bson::{Document, RawDocumentBuf, doc};

use super::alive::{Checks, UNCHECKED, check_trusted};
use super::cache::Birth;
use super::facts::{Known, Loader};
use super::failed::{Failed, keeps_ids_apart};
use super::guard::{Guard, Update, Writes};
use super::indexes::RecordIndexes;
use super::recorded::Recorded;
use super::{execution, marks, step};
use crate::domain::{Execution, Step};
use crate::store::mongo::db::values::epoch;
use crate::store::mongo::db::{Durability, Fate};
use crate::store::mongo::names::{EXECUTIONS, STEPS};
use crate::store::plan::{Dirty, Needs, Plan};
use crate::store::{Answer, RecordKey, Result};

/// What became of the records of a round.
pub struct Persisted {
    /// Before anything was sent.
    pub began: Instant,
    /// Decide again: the record was not what the decision was made on.
    pub lost: HashSet<RecordKey>,
    pub failed: HashMap<RecordKey, Failed>,
    /// Written, but other fields than those written may be different from what is known here.
    pub inexact: HashSet<RecordKey>,
    /// Written, and changed again by another server since.
    pub superseded: HashSet<RecordKey>,
    /// The documents of the new steps.
    pub births: HashMap<RecordKey, Birth>,
    /// The marks of the updates.
    marks: HashMap<RecordKey, i64>,
}

/// Persists one plan after the other.
#[derive(Clone, Copy)]
pub struct Persister<'a> {
    pub loader: Loader<'a>,
    pub guard: Guard,
    /// What was loaded, and who refuses a second record of one id.
    pub known: &'a Known,
    pub indexes: &'a RecordIndexes,
}

impl Persister<'_> {
    /// Persists what the plan changed, in one chain of commands: new executions, new steps, changed steps, changed
    /// executions.
    pub async fn persist(
        &self,
        decided: &Plan,
        places: &[usize],
        recorded: &mut Recorded<'_>,
    ) -> Persisted {
        let mut persisted = Persisted::new();
        let mut new_executions = Statements::default();
        let mut executions = Statements::default();
        let order = in_order(decided);
        for key in order.iter().filter(|key| key.step_id.is_none()) {
            let Some(dirty) = decided.executions.get(&key.execution_id) else { continue };
            let key = key.clone();
            match (&dirty.before, &dirty.after) {
                (None, Some(after)) => match self.indexes.forbids(self.indexes.executions) {
                    Some(failed) => drop(persisted.failed.insert(key, failed)),
                    None => new_executions.push(key, execution::insert(after), &mut persisted),
                },
                (Some(before), Some(after)) => {
                    let mark = self.loader.records.update_mark();
                    let stored = self.stored(&key);
                    let update = execution::update(before, after, self.guard, stored, mark);
                    let statement = persisted.note(&key, update, mark);
                    executions.push(key, statement, &mut persisted);
                }
                // A delete comes alone and goes another way.
                (_, None) => {}
            }
        }
        let mut new_steps = Statements::default();
        let mut steps_of_new = Statements::default();
        let mut steps = Statements::default();
        for key in order.iter().filter(|key| key.step_id.is_some()) {
            let Some(dirty) = decided.steps.get(key) else { continue };
            match (&dirty.before, &dirty.after) {
                (None, Some(after)) => {
                    if let Some(failed) = self.indexes.forbids(self.indexes.steps) {
                        persisted.failed.insert(key.clone(), failed);
                        continue;
                    }
                    let waits = decided
                        .executions
                        .get(&key.execution_id)
                        .is_some_and(|execution| execution.before.is_none());
                    let to = if waits { &mut steps_of_new } else { &mut new_steps };
                    to.push(key.clone(), step::insert(after), &mut persisted);
                }
                (Some(before), Some(after)) => {
                    let mark = self.loader.records.update_mark();
                    let birth = self.loader.records.cache.birth(before);
                    let stored = self.stored(key);
                    let update = step::update(before, after, self.guard, birth, stored, mark);
                    let statement = persisted.note(key, update, mark);
                    steps.push(key.clone(), statement, &mut persisted);
                }
                (_, None) => {}
            }
        }

        // A watcher that sees an execution end has seen what its steps did before, so executions come last.
        let commander = self.loader.ready.commander();
        let step_key = self.indexes.step_key.as_deref();
        let execution_key = self.indexes.execution_key.as_deref();
        let chain = commander.chain();
        let begun = recorded.begin(&chain, self.loader.ready, places, decided).await;
        if begun.is_err() {
            persisted.failed.extend(order.into_iter().map(|key| (key, Failed::Unaudited)));
            return persisted;
        }
        let updates_follow = !steps.documents.is_empty() || !executions.documents.is_empty();
        let steps_follow = !new_steps.documents.is_empty() || !steps_of_new.documents.is_empty();
        let mut new_fates = chain
            .insert(EXECUTIONS, &new_executions.documents, steps_follow || updates_follow)
            .await;
        let mut there = HashSet::new();
        for (key, fate) in new_executions.keys.iter().zip(&new_fates) {
            if *fate == Fate::Done {
                there.insert(key.execution_id.as_str());
            }
        }
        let (ready, held) = steps_of_new.split(|key| there.contains(key.execution_id.as_str()));
        let older = new_steps.keys.len();
        new_steps.append(ready);
        let executions_follow = !executions.documents.is_empty();
        // Both at once: changed steps take longer, so the inserts are in the log before them, nearly always.
        let (mut new_step_fates, mut step_fates, ()) = tokio::join!(
            chain.insert(STEPS, &new_steps.documents, updates_follow),
            chain.update(STEPS, &steps.documents, step_key, executions_follow,),
            self.look_at_marks(older > 0),
        );
        let (mut vanished, execution_fates) = tokio::join!(
            self.vanished(&new_steps, &new_step_fates, older),
            chain.update(EXECUTIONS, &executions.documents, execution_key, false,),
        );
        let durability = match chain.finish().await {
            Durability::Elected if !recorded.elected(self.loader.ready).await => {
                Durability::Unknown
            }
            durability => durability,
        };
        match durability {
            Durability::Certain => recorded.durable(),
            Durability::Elected => {
                new_fates = commander.insert_again(EXECUTIONS, &new_executions.documents).await;
                new_step_fates = commander.insert_again(STEPS, &new_steps.documents).await;
                // Time has passed, and the marks that were looked at may be those of the old primary.
                self.loader.records.deletes.distrust();
                let all = new_steps.keys.len();
                vanished = self.vanished(&new_steps, &new_step_fates, all).await;
                let doubt = |fate: &mut Fate| *fate = fate.clone().or_doubtful();
                step_fates.iter_mut().for_each(doubt);
            }
            Durability::Unknown => {
                let all = [&mut new_fates, &mut new_step_fates, &mut step_fates];
                all.into_iter().flatten().for_each(|fate| *fate = fate.clone().or_unknown());
            }
        }

        persisted.take(new_executions.keys, &new_fates);
        // Never sent, because the execution was there already or its fate is unknown.
        for key in held.keys {
            let execution = RecordKey::execution(&key.execution_id);
            match persisted.failed.get(&execution) {
                Some(failed) => {
                    let failed = failed.clone();
                    persisted.failed.insert(key, failed);
                }
                None => {
                    persisted.lost.insert(key);
                }
            }
        }
        let births = new_steps.keys.iter().zip(new_steps.documents.iter().map(Birth::of));
        let births = births.filter_map(|(key, birth)| Some((key.clone(), birth?)));
        persisted.births = births.collect();
        persisted.take(new_steps.keys, &new_step_fates);
        for key in vanished {
            persisted.failed.insert(key, Failed::NoExecution);
        }
        for (keys, fates) in [(&steps.keys, &step_fates), (&executions.keys, &execution_fates)] {
            // An update leaves the id alone, so another record with it came first into the index of newer ones.
            for (key, fate) in keys.iter().zip(fates) {
                let named = if key.step_id.is_some() { "step_id" } else { "execution_id" };
                if let Fate::Duplicate(holder) = fate
                    && keeps_ids_apart(key, holder)
                    && holder.keys.last().is_some_and(|last| last == named)
                {
                    persisted.failed.insert(key.clone(), Failed::DuplicateId);
                }
            }
        }
        let doubtful_steps = persisted.take(steps.keys, &step_fates);
        let doubtful_executions = persisted.take(executions.keys, &execution_fates);
        self.resolve(decided, doubtful_executions, doubtful_steps, &mut persisted).await;
        self.undo_half_plans(decided, &mut persisted).await;
        persisted
    }

    /// The document of a record, where a guard of what was decided on has failed often enough.
    fn stored(&self, key: &RecordKey) -> Option<&RawDocument> {
        let stored = self.known.documents.get(key).filter(|_| self.guard == Guard::Decision)?;
        Some(stored)
    }

    /// Looks which executions are being deleted, now and then.
    async fn look_at_marks(&self, has_new_steps: bool) {
        if !has_new_steps {
            return;
        }
        let Some(turn) = self.loader.records.deletes.turn(Instant::now()) else { return };
        let filter = doc! { "deleted_at": { "$gt": epoch() } };
        let executions = self.loader.ready.latest(EXECUTIONS);
        let find = executions.find(filter).projection(doc! { "execution_id": 1 });
        let find = find.limit(i64::try_from(marks::MOST).unwrap_or(i64::MAX));
        let look = async {
            let mut marked = Vec::new();
            let look = self.loader.ready.each(find, |raw| {
                marked.extend(raw.get_str("execution_id").ok().map(str::to_owned));
                ControlFlow::Continue(())
            });
            look.await.map(|()| marked)
        };
        let (marked, ()) =
            tokio::join!(look, check_trusted(self.loader.records, self.loader.ready));
        turn.saw(marked.ok(), Instant::now());
    }

    /// Of the first `older` new steps, those whose execution is gone: another server deleted it after we last saw
    /// it. They are taken back, since the delete may have passed by already.
    async fn vanished(
        &self,
        inserted: &Statements,
        fates: &[Fate],
        older: usize,
    ) -> Vec<RecordKey> {
        let trust = self.loader.records.deletes.trust(Instant::now());
        let (mut asked, mut trusted) = (Vec::new(), Vec::new());
        let new = inserted.keys.iter().zip(&inserted.documents).zip(fates).take(older);
        for ((key, document), fate) in new {
            let (Fate::Done, Ok(id)) = (fate, document.get_object_id("_id")) else { continue };
            let alive_at =
                self.loader.records.cache.alive_at(&RecordKey::execution(&key.execution_id));
            let to = match trust.is_alive(&key.execution_id, alive_at) {
                true => &mut trusted,
                false => &mut asked,
            };
            to.push((key.clone(), id));
        }
        if !trusted.is_empty() {
            let mut unchecked = self.loader.records.unchecked.lock();
            let room = UNCHECKED.saturating_sub(unchecked.len()).min(trusted.len());
            asked.extend(trusted.split_off(room));
            unchecked.extend(trusted);
        }
        if asked.is_empty() {
            return Vec::new();
        }
        let checks = Checks { records: self.loader.records, ready: self.loader.ready };
        // Without an answer the steps stay; the sweep of a delete that runs just now takes them along.
        let gone = checks.take_back_gone(&asked).await.unwrap_or_default();
        gone.into_iter().collect()
    }

    /// Tells which records of a command that matched too few have been written after all.
    async fn resolve(
        &self,
        decided: &Plan,
        executions: Vec<RecordKey>,
        steps: Vec<RecordKey>,
        persisted: &mut Persisted,
    ) {
        if executions.is_empty() && steps.is_empty() {
            return;
        }
        let needs = Needs {
            executions: executions.iter().map(|key| key.execution_id.clone()).collect(),
            ..Needs::default()
        };
        let mut numbers: HashMap<String, HashSet<i32>> = HashMap::new();
        for key in &steps {
            let numbers = numbers.entry(key.execution_id.clone()).or_default();
            numbers.extend(key.step_id);
        }
        let found = tokio::try_join!(
            self.loader.load_executions(&needs),
            self.loader.load_steps(step::alternatives(&numbers, &HashMap::new()), false),
        );
        let Ok((found_executions, found_steps)) = found else {
            let doubtful = executions.into_iter().chain(steps);
            persisted.failed.extend(doubtful.map(|key| (key, Failed::Unknown)));
            return;
        };
        let now: HashMap<String, (Execution, Writes)> = found_executions
            .iter()
            .filter_map(|raw| Some((execution::read(raw).ok()?, Writes::of(raw))))
            .map(|(execution, writes)| (execution.execution_id.clone(), (execution, writes)))
            .collect();
        for key in executions {
            let Some(dirty) = decided.executions.get(&key.execution_id) else { continue };
            let Some((stored, writes)) = now.get(&key.execution_id) else {
                persisted.lost.insert(key);
                continue;
            };
            let revisions = dirty.revisions(stored.revision, |execution| execution.revision);
            let told = match (&dirty.after, dirty.changed) {
                (Some(after), false) => Some(same_execution(after, stored)),
                _ => persisted.tell_of(&key, writes, &revisions),
            };
            persisted.judge(key, told, &revisions);
        }
        let now: HashMap<RecordKey, (Step, Writes)> = found_steps
            .iter()
            .filter_map(|raw| Some((step::read(raw, false).ok()?, Writes::of(raw))))
            .map(|(step, writes)| {
                (RecordKey::step(&step.execution_id, step.step_id), (step, writes))
            })
            .collect();
        for key in steps {
            let Some(dirty) = decided.steps.get(&key) else { continue };
            let Some((stored, writes)) = now.get(&key) else {
                persisted.lost.insert(key);
                continue;
            };
            let revisions = dirty.revisions(stored.revision, |step| step.revision);
            let told = match (&dirty.after, dirty.changed) {
                (Some(after), false) => Some(same_step(after, stored)),
                _ => persisted.tell_of(&key, writes, &revisions),
            };
            persisted.judge(key, told, &revisions);
        }
    }

    /// A plan of steps of which one lost a race must leave none behind, since it may be refused when it is
    /// decided again.
    async fn undo_half_plans(&self, decided: &Plan, persisted: &mut Persisted) {
        let mut undone: HashMap<&str, Vec<i32>> = HashMap::new();
        for planned in decided.outcomes.iter().flatten() {
            let Answer::Steps(_) = planned.answer else { continue };
            if !planned.touched.iter().any(|key| persisted.lost.contains(key)) {
                continue;
            }
            for key in &planned.touched {
                let new = decided.steps.get(key).is_some_and(|dirty| dirty.before.is_none());
                if new
                    && !persisted.lost.contains(key)
                    && !persisted.failed.contains_key(key)
                    && let Some(step_id) = key.step_id
                {
                    undone.entry(&key.execution_id).or_default().push(step_id);
                }
            }
        }
        for (execution_id, step_ids) in undone {
            let statements: Vec<Document> = step_ids
                .iter()
                .filter_map(|step_id| {
                    let key = RecordKey::step(execution_id, *step_id);
                    let after = decided.steps.get(&key)?.after.as_deref()?;
                    Some(doc! { "step_id": step_id, "revision": after.revision })
                })
                .collect();
            let filter = doc! { "execution_id": execution_id, "$or": statements };
            let steps = self.loader.ready.latest(STEPS);
            if self.loader.ready.call(steps.delete_many(filter)).await.is_err() {
                continue;
            }
            persisted.lost.extend(step_ids.iter().map(|id| RecordKey::step(execution_id, *id)));
        }
    }
}

impl Persisted {
    fn new() -> Self {
        Persisted {
            began: Instant::now(),
            lost: HashSet::new(),
            failed: HashMap::new(),
            inexact: HashSet::new(),
            superseded: HashSet::new(),
            births: HashMap::new(),
            marks: HashMap::new(),
        }
    }

    /// Whether the update of a record was applied to the document that tells of these.
    fn tell_of(&self, key: &RecordKey, writes: &Writes, revisions: &Revisions) -> Option<bool> {
        let Revisions { before, after, stored } = *revisions;
        writes.tell_of(before, after, self.marks.get(key).copied()?, stored)
    }

    /// Takes in whether a doubtful update was applied. Others may have changed the record since: what was applied
    /// must not be decided again, and what nobody can tell neither.
    fn judge(&mut self, key: RecordKey, applied: Option<bool>, revisions: &Revisions) {
        match applied {
            Some(true) if revisions.stored == revisions.after => {}
            Some(true) => {
                self.superseded.insert(key);
            }
            Some(false) => {
                self.lost.insert(key);
            }
            None => {
                self.failed.insert(key, Failed::Unknown);
            }
        }
    }

    /// Notes what is not known for sure after an update.
    fn note(
        &mut self,
        key: &RecordKey,
        update: Result<Update>,
        mark: i64,
    ) -> Result<RawDocumentBuf> {
        let update = update?;
        self.marks.insert(key.clone(), mark);
        if !update.exact {
            self.inexact.insert(key.clone());
        }
        Ok(update.statement)
    }

    /// Takes in what became of statements; the keys of the doubtful ones come back.
    fn take(&mut self, keys: Vec<RecordKey>, fates: &[Fate]) -> Vec<RecordKey> {
        let mut doubtful = Vec::new();
        for (key, fate) in keys.into_iter().zip(fates) {
            match fate {
                Fate::Done => {}
                Fate::Duplicate(holder) if !keeps_ids_apart(&key, holder) => {
                    self.failed.insert(key, Failed::Index(holder.index.clone()));
                }
                Fate::Duplicate(_) if self.failed.contains_key(&key) => {}
                Fate::Duplicate(_) | Fate::Unmatched => {
                    self.lost.insert(key);
                }
                Fate::Doubtful => doubtful.push(key),
                Fate::Unknown => {
                    self.failed.insert(key, Failed::Unknown);
                }
                Fate::Refused(code) => {
                    self.failed.insert(key, Failed::Refused(*code));
                }
            }
        }
        doubtful
    }
}

/// The revision that a change was made on, the one it made, and the one that is stored.
struct Revisions {
    before: i64,
    after: i64,
    stored: i64,
}

impl<T> Dirty<T> {
    fn revisions(&self, stored: i64, of: impl Fn(&T) -> i64) -> Revisions {
        let revision = |record: &Option<Arc<T>>| record.as_deref().map_or(0, &of);
        Revisions { before: revision(&self.before), after: revision(&self.after), stored }
    }
}

/// Statements for one collection with the records they are about.
#[derive(Default)]
struct Statements {
    keys: Vec<RecordKey>,
    documents: Vec<RawDocumentBuf>,
}

impl Statements {
    fn push(
        &mut self,
        key: RecordKey,
        document: Result<RawDocumentBuf>,
        persisted: &mut Persisted,
    ) {
        match document {
            Ok(document) => {
                self.keys.push(key);
                self.documents.push(document);
            }
            Err(_) => {
                persisted.failed.insert(key, Failed::Refused(0));
            }
        }
    }

    fn append(&mut self, more: Statements) {
        self.keys.extend(more.keys);
        self.documents.extend(more.documents);
    }

    fn split(self, mut keep: impl FnMut(&RecordKey) -> bool) -> (Statements, Statements) {
        let (mut yes, mut no) = (Statements::default(), Statements::default());
        for (key, document) in self.keys.into_iter().zip(self.documents) {
            let to = if keep(&key) { &mut yes } else { &mut no };
            to.keys.push(key);
            to.documents.push(document);
        }
        (yes, no)
    }
}

/// The records of a plan in the order of the last write of each; at the end those that no write answers for, such
/// as executions with a sign of life.
fn in_order(decided: &Plan) -> Vec<RecordKey> {
    let touched: Vec<&RecordKey> =
        decided.outcomes.iter().flatten().flat_map(|planned| &planned.touched).collect();
    let mut seen = HashSet::with_capacity(touched.len());
    let mut order: Vec<RecordKey> =
        touched.into_iter().rev().filter(|key| seen.insert(*key)).cloned().collect();
    order.reverse();
    let executions = decided.executions.keys().map(RecordKey::execution);
    let others: Vec<RecordKey> = executions.filter(|key| !seen.contains(key)).collect();
    order.extend(others);
    order
}

/// Whether the stored record is as it was written, where that made no revision.
fn same_execution(written: &Execution, stored: &Execution) -> bool {
    written.revision == stored.revision
        && written.status == stored.status
        && written.updated_at == stored.updated_at
        && written.digests == stored.digests
        && written.last_heartbeat_at == stored.last_heartbeat_at
        && written.cancel_requested_at == stored.cancel_requested_at
        && written.pinned == stored.pinned
        && written.update_sequence == stored.update_sequence
        && written.deleted_at == stored.deleted_at
        && written.error == stored.error
        && written.metadata.len() == stored.metadata.len()
}

fn same_step(written: &Step, stored: &Step) -> bool {
    written.revision == stored.revision
        && written.status == stored.status
        && written.updated_at == stored.updated_at
        && written.digests == stored.digests
        && written.retry_count == stored.retry_count
        && written.progress == stored.progress
        && written.progress_message == stored.progress_message
        && written.update_sequence == stored.update_sequence
        && written.error == stored.error
        && written.metadata.len() == stored.metadata.len()
}
