//! From writes to commands: load what the rules have to know, let them decide, persist what changed under the
//! guard that it still is what the decision was made on, and decide again what lost a race.
//!
//! In the usual case everything is known from the cache or expected to be new, so a batch is one chain of commands.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use bson::{Document, RawDocumentBuf, doc};

use super::alive::{Checks, UNCHECKED, check_trusted};
use super::cache::Birth;
use super::command::{Durability, Fate};
use super::documents::{Guard, Update, Writes};
use super::{Inner, Ready, delete, documents, failure, marks, no_payloads, schema};
use crate::domain::{Execution, Refusal, Step, StepRef};
use crate::store::plan::{Dirty, Facts, Needs, Plan, plan};
use crate::store::{Answer, Applied, Error, Op, Record, RecordKey, Result, Write};

/// Attempts at a write before it is given up as lost to other writers.
const ROUNDS: usize = 8;
/// Attempts that guard the whole document. After them only what the decision was made on: the document may hold
/// something that no guard matches.
const WHOLE_ROUNDS: usize = 3;
/// Alternatives in one query.
const ALTERNATIVES: usize = 100;

pub(super) async fn apply(inner: &Inner, writes: Vec<Write>) -> Applied {
    let ready = match inner.ready().await {
        Ok(ready) => ready,
        Err(_) => {
            let outcomes = writes.iter().map(|_| Err(failure::away())).collect();
            return Applied { outcomes, written: Vec::new() };
        }
    };
    if let [write] = writes.as_slice()
        && write.is_delete()
    {
        return delete::apply(inner, &ready, write).await;
    }
    let mut outcomes: Vec<Option<Result<Answer>>> = Vec::new();
    outcomes.resize_with(writes.len(), || None);
    let mut written = HashMap::new();
    let mut batch = Batch {
        inner,
        ready: &ready,
        careful: HashSet::new(),
        cautious: !ready.indexes.unique,
        guard: Guard::Whole,
    };
    let mut pending: Vec<(usize, Write)> = writes.into_iter().enumerate().collect();
    for round in 0..ROUNDS {
        if round > 2 {
            // Other servers are at the same records: step out of their rhythm.
            tokio::time::sleep(std::time::Duration::from_millis(round as u64)).await;
        }
        if round == WHOLE_ROUNDS {
            batch.guard = Guard::Decision;
        }
        let (places, current): (Vec<usize>, Vec<Write>) = pending.into_iter().unzip();
        let settled = batch.round(&current, &mut written).await;
        pending = Vec::new();
        for ((place, write), outcome) in places.into_iter().zip(current).zip(settled) {
            match outcome {
                Some(outcome) => outcomes[place] = Some(outcome),
                None => pending.push((place, write)),
            }
        }
        if pending.is_empty() {
            break;
        }
    }
    let outcomes = outcomes.into_iter().map(|outcome| outcome.unwrap_or(Err(Error::Contention)));
    Applied { outcomes: outcomes.collect(), written: written.into_values().collect() }
}

struct Batch<'a> {
    inner: &'a Inner,
    ready: &'a Ready,
    /// Executions about which nothing is taken for granted any more: their records are loaded.
    careful: HashSet<String>,
    /// The same for all of them: the database does not keep ids unique.
    cautious: bool,
    guard: Guard,
}

/// What the rules are told, and how much of that is more than a guess.
#[derive(Default)]
struct Known {
    facts: Facts,
    /// Executions about which a cached or assumed fact was told. A refusal of theirs is decided again.
    guessed: HashSet<String>,
    /// Executions that this batch is expected to create.
    created: HashSet<String>,
    /// Executions with a record that cannot be read.
    corrupt: HashMap<String, (&'static str, String, &'static str)>,
}

/// What became of the records of a round.
struct Persisted {
    /// Before anything was sent.
    began: Instant,
    /// Decide again: the record was not what the decision was made on.
    lost: HashSet<RecordKey>,
    failed: HashMap<RecordKey, Failed>,
    /// Written, but other fields than those written may be different from what is known here.
    inexact: HashSet<RecordKey>,
    /// Written, and changed again by another server since.
    superseded: HashSet<RecordKey>,
    /// The documents of the new steps.
    births: HashMap<RecordKey, Birth>,
    /// The marks of the updates.
    marks: HashMap<RecordKey, i64>,
}

#[derive(Clone, Copy)]
enum Failed {
    Unknown,
    Refused(i32),
    /// The execution of a new step is gone.
    NoExecution,
}

impl Batch<'_> {
    fn is_careful(&self, write: &Write) -> bool {
        // A plan is all or nothing, so it looks before it inserts.
        self.cautious
            || self.careful.contains(&write.execution_id)
            || matches!(write.op, Op::Plan(_))
    }

    /// Decides and persists `writes` once. `None`: has to be decided again.
    async fn round(
        &mut self,
        writes: &[Write],
        written: &mut HashMap<RecordKey, Record>,
    ) -> Vec<Option<Result<Answer>>> {
        let (mut known, needs) = self.recall(writes);
        if let Err(error) = self.load(&needs, &mut known).await {
            return all_failed(writes.len(), &error);
        }
        let mut decided = plan(writes, &known.facts, &self.inner.limits);
        for _ in 0..4 {
            match self.load_payloads(writes, &decided, &mut known).await {
                Ok(false) => break,
                Ok(true) => decided = plan(writes, &known.facts, &self.inner.limits),
                Err(error) => return all_failed(writes.len(), &error),
            }
        }
        let persisted = self.persist(&decided).await;
        self.settle(writes, decided, &known, &persisted, written)
    }

    /// Needs of the writes, less what the cache knows.
    fn recall(&self, writes: &[Write]) -> (Known, Needs) {
        let mut known = Known::default();
        let mut needs = Needs::default();
        for write in writes {
            let careful = self.is_careful(write);
            let id = &write.execution_id;
            let mut wanted = Needs::of(std::slice::from_ref(write), !careful, &self.inner.limits);
            if let Op::Execution(op) = &write.op
                && op.may_create()
                && !careful
            {
                known.created.insert(id.clone());
                known.guessed.insert(id.clone());
            }
            if known.created.contains(id) {
                wanted.executions.clear();
                wanted.greatest_step_ids.clear();
            }
            if !careful {
                self.recall_from_cache(id, &mut wanted, &mut known);
            }
            // Whether these steps are there depends on their execution too: one that is being deleted has none.
            let looks_up = !wanted.steps.is_empty() || !wanted.keys.is_empty();
            if looks_up && !known.created.contains(id) && !known.facts.executions.contains_key(id) {
                wanted.executions.insert(id.clone());
            }
            needs.executions.extend(wanted.executions);
            needs.greatest_step_ids.extend(wanted.greatest_step_ids);
            needs.step_counts.extend(wanted.step_counts);
            for (id, steps) in wanted.steps {
                needs.steps.entry(id).or_default().extend(steps);
            }
            for (id, keys) in wanted.keys {
                needs.keys.entry(id).or_default().extend(keys);
            }
        }
        (known, needs)
    }

    fn recall_from_cache(&self, id: &str, wanted: &mut Needs, known: &mut Known) {
        let cache = &self.inner.cache;
        let mut guessed = false;
        wanted.executions.retain(|id| {
            if known.facts.executions.contains_key(id) {
                return false;
            }
            match cache.execution(&RecordKey::execution(id)) {
                Some(execution) => {
                    known.facts.executions.insert(id.clone(), Some(execution));
                    guessed = true;
                    false
                }
                None => true,
            }
        });
        for steps in wanted.steps.values_mut() {
            steps.retain(|step_id| match cache.step(&RecordKey::step(id, *step_id)) {
                Some(step) => {
                    known.facts.add_step(step);
                    guessed = true;
                    false
                }
                None => true,
            });
        }
        for keys in wanted.keys.values_mut() {
            keys.retain(|key| {
                let named = (id.to_owned(), key.clone());
                let step = cache
                    .step_of_key(&named)
                    .and_then(|step_id| cache.step(&RecordKey::step(id, step_id)))
                    .filter(|step| step.step_key.as_ref() == Some(key));
                match step {
                    Some(step) => {
                        known.facts.add_step(step);
                        guessed = true;
                        false
                    }
                    None => true,
                }
            });
        }
        wanted.greatest_step_ids.retain(|id| match cache.greatest(id) {
            Some(greatest) => {
                known.facts.greatest_step_ids.insert(id.clone(), greatest);
                guessed = true;
                false
            }
            None => true,
        });
        wanted.steps.retain(|_, steps| !steps.is_empty());
        wanted.keys.retain(|_, keys| !keys.is_empty());
        if guessed {
            known.guessed.insert(id.to_owned());
        }
    }

    /// Loads what is needed: at most one query of each kind, all at once.
    async fn load(&self, needs: &Needs, known: &mut Known) -> Result<()> {
        if needs.is_empty() {
            return Ok(());
        }
        let asked_at = Instant::now();
        let (executions, steps, greatest, counts) = tokio::try_join!(
            self.load_executions(needs),
            self.load_steps(step_alternatives(&needs.steps, &needs.keys), false),
            self.load_greatest(needs),
            self.load_counts(needs),
        )?;
        let mut deleted = HashSet::new();
        for raw in executions {
            match documents::read_execution(&raw) {
                Ok(execution) => {
                    let execution = Arc::new(execution);
                    let id = execution.execution_id.clone();
                    if execution.deleted_at.is_some() {
                        deleted.insert(id.clone());
                    }
                    let record = Record::Execution(Arc::clone(&execution));
                    let key = RecordKey::execution(&id);
                    match execution.deleted_at {
                        None => self.inner.cache.put_alive(key, record, asked_at),
                        Some(_) => self.inner.cache.put(key, record),
                    }
                    known.facts.executions.insert(id, Some(execution));
                }
                Err(error) => known.note_corrupt(&raw, error)?,
            }
        }
        for raw in steps {
            match documents::read_step(&raw, false) {
                Ok(step) if deleted.contains(&step.execution_id) => {}
                Ok(step) => {
                    let step = Arc::new(step);
                    let key = RecordKey::step(&step.execution_id, step.step_id);
                    self.inner.cache.put(key, Record::Step(Arc::clone(&step)));
                    known.facts.add_step(step);
                }
                Err(error) => known.note_corrupt(&raw, error)?,
            }
        }
        for (id, greatest) in greatest {
            self.inner.cache.put_greatest(id.clone(), greatest);
            known.facts.greatest_step_ids.insert(id, greatest);
        }
        known.facts.step_counts.extend(counts);
        Ok(())
    }

    async fn load_executions(&self, needs: &Needs) -> Result<Vec<RawDocumentBuf>> {
        if needs.executions.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<&String> = needs.executions.iter().collect();
        let filter = doc! { "execution_id": { "$in": ids } };
        self.inner.all(&self.ready.executions, filter, None).await
    }

    async fn load_steps(
        &self,
        alternatives: Vec<Document>,
        payloads: bool,
    ) -> Result<Vec<RawDocumentBuf>> {
        let mut found = Vec::new();
        for alternatives in alternatives.chunks(ALTERNATIVES) {
            let filter = match alternatives {
                [one] => one.clone(),
                several => doc! { "$or": several },
            };
            let projection = (!payloads).then(no_payloads);
            found.extend(self.inner.all(&self.ready.steps, filter, projection).await?);
        }
        Ok(found)
    }

    async fn load_greatest(&self, needs: &Needs) -> Result<Vec<(String, i32)>> {
        if needs.greatest_step_ids.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<&String> = needs.greatest_step_ids.iter().collect();
        // The unique index answers this with one key for each execution.
        let pipeline = [
            doc! { "$match": { "execution_id": { "$in": ids } } },
            doc! { "$sort": { "execution_id": -1, "step_id": -1 } },
            doc! { "$group": { "_id": "$execution_id", "greatest": { "$first": "$step_id" } } },
        ];
        let mut greatest: HashMap<String, i32> =
            needs.greatest_step_ids.iter().map(|id| (id.clone(), 0)).collect();
        let found = self.inner.aggregate(&self.ready.steps, pipeline).await?;
        for raw in found {
            let id = raw.get("_id").ok().flatten().and_then(|id| id.as_str());
            let step_id = raw.get("greatest").ok().flatten().and_then(documents::integer);
            if let (Some(id), Some(step_id)) = (id, step_id) {
                greatest.insert(id.to_owned(), i32::try_from(step_id).unwrap_or(i32::MAX));
            }
        }
        Ok(greatest.into_iter().collect())
    }

    async fn load_counts(&self, needs: &Needs) -> Result<Vec<(String, usize)>> {
        let mut counts = Vec::new();
        for id in &needs.step_counts {
            let count = self.ready.steps.count_documents(doc! { "execution_id": id });
            let count = self.inner.call(count).await?;
            counts.push((id.clone(), usize::try_from(count).unwrap_or(usize::MAX)));
        }
        Ok(counts)
    }

    /// Loads the payloads that rules asked for. True: decide again.
    async fn load_payloads(
        &self,
        writes: &[Write],
        decided: &Plan,
        known: &mut Known,
    ) -> Result<bool> {
        let mut steps: HashMap<String, HashSet<i32>> = HashMap::new();
        let refused = writes.iter().zip(&decided.outcomes);
        for (write, _) in
            refused.filter(|(_, outcome)| matches!(outcome, Err(Refusal::NeedsPayload)))
        {
            let mut ask = |named: &StepRef| {
                let id = &write.execution_id;
                let by_key = || {
                    let key = named.step_key.clone()?;
                    known.facts.keys.get(&(id.clone(), key)).copied().flatten()
                };
                if let Some(step_id) = named.step_id.or_else(by_key) {
                    steps.entry(id.clone()).or_default().insert(step_id);
                }
            };
            match &write.op {
                Op::Step { named, .. } => ask(named),
                Op::Plan(steps) => steps.iter().for_each(|(named, _)| ask(named)),
                Op::Execution(_) => {}
            }
        }
        if steps.is_empty() {
            return Ok(false);
        }
        // A step that turns out to be gone has no facts left.
        for (id, steps) in &steps {
            for step_id in steps {
                known.facts.steps.insert(RecordKey::step(id, *step_id), None);
            }
        }
        for raw in self.load_steps(step_alternatives(&steps, &HashMap::new()), true).await? {
            match documents::read_step(&raw, true) {
                Ok(step) => known.facts.add_step(Arc::new(step)),
                Err(error) => known.note_corrupt(&raw, error)?,
            }
        }
        Ok(true)
    }

    /// Persists what the plan changed, in one chain of commands: new executions, new steps, changed steps, changed
    /// executions.
    async fn persist(&self, decided: &Plan) -> Persisted {
        let mut persisted = Persisted::new();
        let mut new_executions = Statements::default();
        let mut executions = Statements::default();
        let order = in_order(decided);
        for key in order.iter().filter(|key| key.step_id.is_none()) {
            let Some(dirty) = decided.executions.get(&key.execution_id) else { continue };
            let key = key.clone();
            match (&dirty.before, &dirty.after) {
                (None, Some(after)) => {
                    new_executions.push(key, documents::insert_execution(after), &mut persisted);
                }
                (Some(before), Some(after)) => {
                    let mark = self.inner.mark();
                    let update = documents::update_execution(before, after, self.guard, mark);
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
                    let waits = decided
                        .executions
                        .get(&key.execution_id)
                        .is_some_and(|execution| execution.before.is_none());
                    let to = if waits { &mut steps_of_new } else { &mut new_steps };
                    to.push(key.clone(), documents::insert_step(after), &mut persisted);
                }
                (Some(before), Some(after)) => {
                    let mark = self.inner.mark();
                    let birth = self.inner.cache.birth(before);
                    let update = documents::update_step(before, after, self.guard, birth, mark);
                    let statement = persisted.note(key, update, mark);
                    steps.push(key.clone(), statement, &mut persisted);
                }
                (_, None) => {}
            }
        }

        // A watcher that sees an execution end has seen what its steps did before, so executions come last.
        let commander = &self.ready.commander;
        let chain = commander.chain();
        let updates_follow = !steps.documents.is_empty() || !executions.documents.is_empty();
        let steps_follow = !new_steps.documents.is_empty() || !steps_of_new.documents.is_empty();
        let mut new_fates = chain
            .insert(schema::EXECUTIONS, &new_executions.documents, steps_follow || updates_follow)
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
            chain.insert(schema::STEPS, &new_steps.documents, updates_follow),
            chain.update(
                schema::STEPS,
                &steps.documents,
                self.ready.indexes.step_key.as_deref(),
                executions_follow,
            ),
            self.look_at_marks(older > 0),
        );
        let (mut vanished, execution_fates) = tokio::join!(
            self.vanished(&new_steps, &new_step_fates, older),
            chain.update(
                schema::EXECUTIONS,
                &executions.documents,
                self.ready.indexes.execution_key.as_deref(),
                false,
            ),
        );
        match chain.finish().await {
            Durability::Certain => {}
            Durability::Elected => {
                new_fates =
                    commander.insert_again(schema::EXECUTIONS, &new_executions.documents).await;
                new_step_fates = commander.insert_again(schema::STEPS, &new_steps.documents).await;
                // Time has passed, and the marks that were looked at may be those of the old primary.
                self.inner.deletes.distrust();
                let all = new_steps.keys.len();
                vanished = self.vanished(&new_steps, &new_step_fates, all).await;
                let doubt = |fate: &mut Fate| *fate = fate.or_doubtful();
                step_fates.iter_mut().for_each(doubt);
            }
            Durability::Unknown => {
                let all = [&mut new_fates, &mut new_step_fates, &mut step_fates];
                all.into_iter().flatten().for_each(|fate| *fate = fate.or_unknown());
            }
        }

        persisted.take(new_executions.keys, &new_fates);
        // Never sent, because the execution was there already or its fate is unknown.
        for key in held.keys {
            let execution = RecordKey::execution(&key.execution_id);
            match persisted.failed.get(&execution) {
                Some(failed) => {
                    let failed = *failed;
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
        let doubtful_steps = persisted.take(steps.keys, &step_fates);
        let doubtful_executions = persisted.take(executions.keys, &execution_fates);
        self.resolve(decided, doubtful_executions, doubtful_steps, &mut persisted).await;
        self.undo_half_plans(decided, &mut persisted).await;
        persisted
    }

    /// Looks which executions are being deleted, now and then.
    async fn look_at_marks(&self, has_new_steps: bool) {
        if !has_new_steps {
            return;
        }
        let Some(turn) = self.inner.deletes.turn(Instant::now()) else { return };
        let filter = doc! { "deleted_at": { "$gt": schema::epoch() } };
        let find = self.ready.executions.find(filter).projection(doc! { "execution_id": 1 });
        let find = find.limit(i64::try_from(marks::MOST).unwrap_or(i64::MAX));
        let look = self.inner.call(async {
            let mut marked = Vec::new();
            let mut cursor = find.await?;
            while cursor.advance().await? {
                marked.extend(cursor.current().get_str("execution_id").ok().map(str::to_owned));
            }
            Ok(marked)
        });
        let (marked, ()) = tokio::join!(look, check_trusted(self.inner, self.ready));
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
        let trust = self.inner.deletes.trust(Instant::now());
        let (mut asked, mut trusted) = (Vec::new(), Vec::new());
        let new = inserted.keys.iter().zip(&inserted.documents).zip(fates).take(older);
        for ((key, document), fate) in new {
            let (Fate::Done, Ok(id)) = (fate, document.get_object_id("_id")) else { continue };
            let alive_at = self.inner.cache.alive_at(&RecordKey::execution(&key.execution_id));
            let to = match trust.is_alive(&key.execution_id, alive_at) {
                true => &mut trusted,
                false => &mut asked,
            };
            to.push((key.clone(), id));
        }
        if !trusted.is_empty() {
            let mut unchecked = self.inner.unchecked.lock();
            let room = UNCHECKED.saturating_sub(unchecked.len()).min(trusted.len());
            asked.extend(trusted.split_off(room));
            unchecked.extend(trusted);
        }
        if asked.is_empty() {
            return Vec::new();
        }
        let checks = Checks { inner: self.inner, ready: self.ready };
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
            self.load_executions(&needs),
            self.load_steps(step_alternatives(&numbers, &HashMap::new()), false),
        );
        let Ok((found_executions, found_steps)) = found else {
            let doubtful = executions.into_iter().chain(steps);
            persisted.failed.extend(doubtful.map(|key| (key, Failed::Unknown)));
            return;
        };
        let now: HashMap<String, (Execution, Writes)> = found_executions
            .iter()
            .filter_map(|raw| Some((documents::read_execution(raw).ok()?, Writes::of(raw))))
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
            .filter_map(|raw| Some((documents::read_step(raw, false).ok()?, Writes::of(raw))))
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
            if self.inner.call(self.ready.steps.delete_many(filter)).await.is_err() {
                continue;
            }
            persisted.lost.extend(step_ids.iter().map(|id| RecordKey::step(execution_id, *id)));
        }
    }

    /// The answers that are good now, and the cache brought up to date.
    fn settle(
        &mut self,
        writes: &[Write],
        decided: Plan,
        known: &Known,
        persisted: &Persisted,
        written: &mut HashMap<RecordKey, Record>,
    ) -> Vec<Option<Result<Answer>>> {
        let lost_executions: HashSet<&str> =
            persisted.lost.iter().map(|key| key.execution_id.as_str()).collect();
        let mut light: HashMap<RecordKey, Arc<Step>> = HashMap::new();
        let mut again = HashSet::new();
        let mut outcomes = Vec::with_capacity(writes.len());
        for (write, planned) in writes.iter().zip(decided.outcomes) {
            let id = write.execution_id.as_str();
            if let Some((collection, record, field)) = known.corrupt.get(id) {
                let id = record.clone();
                outcomes.push(Some(Err(Error::Corrupt { collection, id, field })));
                continue;
            }
            let outcome = match planned {
                Ok(planned) => {
                    let failed = planned.touched.iter().find_map(|key| persisted.failed.get(key));
                    if let Some(failed) = failed {
                        Some(Err(failed.error(id)))
                    } else if planned.touched.iter().any(|key| persisted.lost.contains(key)) {
                        None
                    } else {
                        if let ([key], Answer::Step(step)) =
                            (planned.touched.as_slice(), &planned.answer)
                        {
                            light.insert(key.clone(), Arc::clone(step));
                        }
                        Some(Ok(planned.answer))
                    }
                }
                Err(_) if self.is_guess(write, known, &lost_executions) => None,
                Err(Refusal::NeedsPayload) => None,
                Err(refusal) => Some(Err(Error::Refused(refusal))),
            };
            if outcome.is_none() {
                again.insert(id.to_owned());
            }
            outcomes.push(outcome);
        }
        self.remember(&decided.executions, &decided.steps, persisted, &light, known, written);
        self.careful.extend(again);
        outcomes
    }

    /// Whether a refusal rests on something that was not read from the database in this round.
    fn is_guess(&self, write: &Write, known: &Known, lost: &HashSet<&str>) -> bool {
        let id = write.execution_id.as_str();
        if lost.contains(id) {
            return true;
        }
        let surely_loaded = self.cautious || self.careful.contains(id);
        !surely_loaded && known.guessed.contains(id)
    }

    fn remember(
        &self,
        executions: &HashMap<String, Dirty<Execution>>,
        steps: &HashMap<RecordKey, Dirty<Step>>,
        persisted: &Persisted,
        light: &HashMap<RecordKey, Arc<Step>>,
        known: &Known,
        written: &mut HashMap<RecordKey, Record>,
    ) {
        let cache = &self.inner.cache;
        let good =
            |key: &RecordKey| !persisted.lost.contains(key) && !persisted.failed.contains_key(key);
        for (id, dirty) in executions {
            let key = RecordKey::execution(id);
            let Some(after) = dirty.after.as_ref().filter(|_| good(&key)) else {
                cache.forget(&key);
                continue;
            };
            let record = Record::Execution(Arc::clone(after));
            if dirty.before.is_none() {
                cache.put_greatest(id.clone(), 0);
            }
            if persisted.inexact.contains(&key) {
                // Whoever wants to know it has to look.
                cache.forget(&key);
                written.remove(&key);
                continue;
            }
            if dirty.changed {
                written.insert(key.clone(), record.clone());
            }
            match dirty.stored {
                true if persisted.superseded.contains(&key) => cache.forget(&key),
                // The insert or the guard says so.
                true if dirty.changed => cache.put_alive(key, record, persisted.began),
                true => cache.put(key, record),
                false => {}
            }
        }
        for (key, dirty) in steps {
            let Some(after) = dirty.after.as_ref().filter(|_| good(key)) else {
                cache.forget(key);
                continue;
            };
            let step = match light.get(key) {
                Some(light) if light.revision == after.revision => Arc::clone(light),
                _ if after.input.value().is_none() && after.output.value().is_none() => {
                    Arc::clone(after)
                }
                _ => Arc::new(after.without_payloads()),
            };
            if dirty.before.is_none() {
                let id = &key.execution_id;
                let before =
                    cache.greatest(id).or_else(|| known.facts.greatest_step_ids.get(id).copied());
                if let Some(greatest) = before {
                    cache.put_greatest(id.clone(), greatest.max(after.step_id));
                }
            }
            if persisted.inexact.contains(key) {
                cache.forget_record(key);
                written.remove(key);
                continue;
            }
            let record = Record::Step(step);
            if dirty.changed {
                written.insert(key.clone(), record.clone());
            }
            if persisted.superseded.contains(key) {
                cache.forget_record(key);
            } else if dirty.stored {
                cache.put_born(key.clone(), record, persisted.births.get(key).copied());
            }
        }
    }
}

impl Known {
    fn note_corrupt(&mut self, raw: &RawDocumentBuf, error: Error) -> Result<()> {
        match (error, raw.get_str("execution_id")) {
            (Error::Corrupt { collection, id, field }, Ok(execution_id)) => {
                tracing::warn!(collection, id, field, "a stored record cannot be read");
                self.corrupt.insert(execution_id.to_owned(), (collection, id, field));
                Ok(())
            }
            (error, _) => Err(error),
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
                Fate::Duplicate | Fate::Unmatched => {
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

impl Failed {
    fn error(self, execution_id: &str) -> Error {
        match self {
            Failed::Unknown => failure::timeout(),
            Failed::Refused(code) => failure::statement(code),
            Failed::NoExecution => {
                Error::Refused(Refusal::ExecutionNotFound { execution_id: execution_id.to_owned() })
            }
        }
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

fn all_failed(count: usize, error: &Error) -> Vec<Option<Result<Answer>>> {
    let copy = || match error {
        Error::Unavailable(_) => failure::timeout(),
        other => Error::failed(other.to_string()),
    };
    (0..count).map(|_| Some(Err(copy()))).collect()
}

pub(super) fn step_alternatives(
    steps: &HashMap<String, HashSet<i32>>,
    keys: &HashMap<String, HashSet<String>>,
) -> Vec<Document> {
    let mut alternatives = Vec::new();
    for (id, steps) in steps {
        let numbers: Vec<i32> = steps.iter().copied().collect();
        match numbers.as_slice() {
            [] => {}
            [one] => alternatives.push(doc! { "execution_id": id, "step_id": *one }),
            _ => alternatives.push(doc! { "execution_id": id, "step_id": { "$in": numbers } }),
        }
    }
    for (id, keys) in keys {
        // One by one: the partial index on keys is used by plain equality.
        for key in keys {
            alternatives.push(doc! { "execution_id": id, "step_key": key });
        }
    }
    alternatives
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
