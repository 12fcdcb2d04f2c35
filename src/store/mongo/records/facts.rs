//! What the rules have to know before they decide: remembered where this server has lately read or written it, else
//! loaded.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bson::{Document, RawDocumentBuf, doc};

use super::room::Records;
use super::step::no_payloads;
use super::{execution, step};
use crate::domain::{Refusal, StepRef};
use crate::store::mongo::db::Connection;
use crate::store::mongo::db::values::{field, integer};
use crate::store::mongo::names::{EXECUTIONS, STEPS};
use crate::store::plan::{Facts, Needs, Plan};
use crate::store::{Error, Op, Record, RecordKey, Result, Write};

/// How long the app of an execution is taken for what it was: less than a second passes until another program's change
/// of it counts.
const APP_TRUSTED_FOR: Duration = Duration::from_millis(700);

/// Alternatives in one query.
const ALTERNATIVES: usize = 100;

/// What the rules are told, and how much of that is more than a guess.
#[derive(Default)]
pub struct Known {
    pub facts: Facts,
    /// Executions about which a cached or assumed fact was told. A refusal of theirs is decided again.
    pub guessed: HashSet<String>,
    /// Executions that this batch is expected to create.
    created: HashSet<String>,
    /// The documents of the records that were loaded.
    pub documents: HashMap<RecordKey, RawDocumentBuf>,
    /// Executions with a record that cannot be read.
    pub corrupt: HashMap<String, (&'static str, String, &'static str)>,
}

/// Loads what is not remembered.
#[derive(Clone, Copy)]
pub struct Loader<'a> {
    pub records: &'a Records,
    pub ready: &'a Connection,
}

impl Loader<'_> {
    /// Needs of the writes, less what the cache knows. Of those that are `careful` nothing is taken for granted.
    pub fn recall(&self, writes: &[Write], is_careful: impl Fn(&Write) -> bool) -> (Known, Needs) {
        let mut known = Known::default();
        known.facts.revisions_above = self.records.indexes().map_or(0, |indexes| indexes.bound());
        let mut needs = Needs::default();
        for write in writes {
            let careful = is_careful(write);
            let id = &write.execution_id;
            let mut wanted = Needs::of(std::slice::from_ref(write), !careful);
            if let Op::Execution(op) = &write.op
                && op.may_create()
                && !careful
                && !known.facts.executions.contains_key(id)
            {
                known.guessed.insert(id.clone());
                // Of one that is known, this is a repeat.
                match self.records.cache.execution(&RecordKey::execution(id)) {
                    Some(stored) => {
                        known.facts.executions.insert(id.clone(), Some(stored));
                    }
                    None => drop(known.created.insert(id.clone())),
                }
            }
            if known.created.contains(id) {
                wanted.executions.clear();
                wanted.greatest_step_ids.clear();
            }
            if !careful {
                self.recall_from_cache(write, &mut wanted, &mut known);
                if let Op::Step { named, op } = &write.op
                    && op.expects_to_create()
                {
                    self.recall_repeated(id, named, &mut known);
                }
            }
            // A step that is remembered needs no number.
            if let Op::Step { named, op } = &write.op
                && !op.expects_to_create()
                && named.step_id.is_some()
                && wanted.steps.is_empty()
            {
                wanted.greatest_step_ids.clear();
            }
            // Whether these steps are there depends on their execution too: one that is being deleted has none.
            let looks_up = !wanted.steps.is_empty() || !wanted.keys.is_empty();
            if looks_up && !known.created.contains(id) && !known.facts.executions.contains_key(id) {
                wanted.executions.insert(id.clone());
            }
            needs.executions.extend(wanted.executions);
            needs.greatest_step_ids.extend(wanted.greatest_step_ids);
            for (id, steps) in wanted.steps {
                needs.steps.entry(id).or_default().extend(steps);
            }
            for (id, keys) in wanted.keys {
                needs.keys.entry(id).or_default().extend(keys);
            }
        }
        (known, needs)
    }

    fn recall_from_cache(&self, write: &Write, wanted: &mut Needs, known: &mut Known) {
        let id = write.execution_id.as_str();
        let cache = &self.records.cache;
        let execution = |key: &RecordKey| match write.scope.is_all() {
            true => cache.execution(key),
            // Another program may have given it to another app.
            false => cache.fresh_execution(key, APP_TRUSTED_FOR),
        };
        let mut guessed = false;
        wanted.executions.retain(|id| {
            if known.facts.executions.contains_key(id) {
                return false;
            }
            match execution(&RecordKey::execution(id)) {
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

    /// A step that is started may be known already: then this is a repeat.
    fn recall_repeated(&self, id: &str, named: &StepRef, known: &mut Known) {
        let cache = &self.records.cache;
        let by_key = || {
            let key = named.step_key.clone()?;
            let step_id = cache.step_of_key(&(id.to_owned(), key))?;
            cache.step(&RecordKey::step(id, step_id)).filter(|step| step.step_key == named.step_key)
        };
        let by_number = named.step_id.and_then(|number| cache.step(&RecordKey::step(id, number)));
        for step in by_number.into_iter().chain(by_key()) {
            let key = RecordKey::step(id, step.step_id);
            if !known.facts.steps.contains_key(&key) {
                known.facts.add_step(step);
                known.guessed.insert(id.to_owned());
            }
        }
    }

    /// Loads what is needed: at most one query of each kind, all at once.
    pub async fn load(&self, needs: &Needs, known: &mut Known) -> Result<()> {
        if needs.is_empty() {
            return Ok(());
        }
        let asked_at = Instant::now();
        let (executions, steps, greatest) = tokio::try_join!(
            self.load_executions(needs),
            self.load_steps(step::alternatives(&needs.steps, &needs.keys), false),
            self.load_greatest(needs),
        )?;
        let mut deleted = HashSet::new();
        for raw in executions {
            match execution::read(&raw) {
                Ok(execution) => {
                    let execution = Arc::new(execution);
                    let id = execution.execution_id.clone();
                    if execution.deleted_at.is_some() {
                        deleted.insert(id.clone());
                    }
                    let record = Record::Execution(Arc::clone(&execution));
                    let key = RecordKey::execution(&id);
                    match execution.deleted_at {
                        None => self.records.cache.put_alive(key.clone(), record, asked_at),
                        Some(_) => self.records.cache.put(key.clone(), record),
                    }
                    known.facts.executions.insert(id, Some(execution));
                    known.documents.insert(key, raw);
                }
                Err(error) => known.note_corrupt(&raw, error)?,
            }
        }
        for raw in steps {
            match step::read(&raw, false) {
                Ok(step) if deleted.contains(&step.execution_id) => {}
                Ok(step) => {
                    let step = Arc::new(step);
                    let key = RecordKey::step(&step.execution_id, step.step_id);
                    self.records.cache.put(key.clone(), Record::Step(Arc::clone(&step)));
                    known.facts.add_step(step);
                    known.documents.insert(key, raw);
                }
                Err(error) => known.note_corrupt(&raw, error)?,
            }
        }
        for (id, greatest) in greatest {
            self.records.cache.put_greatest(id.clone(), greatest);
            known.facts.greatest_step_ids.insert(id, greatest);
        }
        Ok(())
    }

    pub async fn load_executions(&self, needs: &Needs) -> Result<Vec<RawDocumentBuf>> {
        if needs.executions.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<&String> = needs.executions.iter().collect();
        let filter = doc! { "execution_id": { "$in": ids } };
        let mut found = self.ready.all(&self.ready.latest(EXECUTIONS), filter, None).await?;
        // An id in a list is none.
        found.retain(|raw| raw.get_str("execution_id").is_ok());
        self.latest_last(&mut found);
        Ok(found)
    }

    pub async fn load_steps(
        &self,
        alternatives: Vec<Document>,
        payloads: bool,
    ) -> Result<Vec<RawDocumentBuf>> {
        let steps = self.ready.latest(STEPS);
        let mut found = Vec::new();
        for alternatives in alternatives.chunks(ALTERNATIVES) {
            let filter = match alternatives {
                [one] => one.clone(),
                several => doc! { "$or": several },
            };
            let projection = (!payloads).then(no_payloads);
            found.extend(self.ready.all(&steps, filter, projection).await?);
        }
        found.retain(|raw| raw.get_str("execution_id").is_ok());
        self.latest_last(&mut found);
        Ok(found)
    }

    /// Of several with one id, the last one counts: that is the one that was changed last.
    fn latest_last(&self, found: &mut [RawDocumentBuf]) {
        if found.len() > 1 && self.records.may_have_doubles() {
            found.sort_by_key(|raw| field(raw, "revision").and_then(integer).unwrap_or(0));
        }
    }

    async fn load_greatest(&self, needs: &Needs) -> Result<Vec<(String, i32)>> {
        if needs.greatest_step_ids.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<&String> = needs.greatest_step_ids.iter().collect();
        // The unique index answers this with one key for each execution.
        let pipeline = [
            // Other programs may store any number, and what is no number at all sorts after them.
            doc! { "$match": {
                "execution_id": { "$in": ids },
                "step_id": { "$gte": 0, "$lte": i32::MAX },
            } },
            doc! { "$sort": { "execution_id": -1, "step_id": -1 } },
            doc! { "$group": { "_id": "$execution_id", "greatest": { "$first": "$step_id" } } },
            // They need not be whole.
            doc! { "$set": { "greatest": { "$toLong": { "$floor": "$greatest" } } } },
        ];
        let mut greatest: HashMap<String, i32> =
            needs.greatest_step_ids.iter().map(|id| (id.clone(), 0)).collect();
        let steps = self.ready.latest(STEPS);
        for raw in self.ready.collect(steps.aggregate(pipeline)).await? {
            let id = field(&raw, "_id").and_then(|id| id.as_str());
            let step_id = field(&raw, "greatest").and_then(integer);
            if let (Some(id), Some(step_id)) = (id, step_id) {
                greatest.insert(id.to_owned(), i32::try_from(step_id).unwrap_or(i32::MAX));
            }
        }
        Ok(greatest.into_iter().collect())
    }

    /// Counts the steps of executions of which rules asked how many there are. True: decide again.
    pub async fn load_counts(
        &self,
        writes: &[Write],
        decided: &Plan,
        known: &mut Known,
        is_careful: impl Fn(&Write) -> bool,
    ) -> Result<bool> {
        let outcomes = writes.iter().zip(&decided.outcomes);
        let asked = outcomes.filter(|(_, outcome)| matches!(outcome, Err(Refusal::NeedsStepCount)));
        let mut loaded = false;
        for (write, _) in asked {
            let id = &write.execution_id;
            if known.facts.step_counts.contains_key(id) {
                continue;
            }
            let cache = &self.records.cache;
            let remembered = if is_careful(write) { None } else { cache.step_count(id) };
            let count = match remembered {
                Some(count) => {
                    known.guessed.insert(id.clone());
                    count
                }
                None => {
                    let steps = self.ready.latest(STEPS);
                    let count =
                        self.ready.call(steps.count_documents(doc! { "execution_id": id })).await?;
                    let count = usize::try_from(count).unwrap_or(usize::MAX);
                    cache.put_step_count(id, count, self.records.limits.steps_per_execution);
                    count
                }
            };
            known.facts.step_counts.insert(id.clone(), count);
            loaded = true;
        }
        Ok(loaded)
    }

    /// Loads the payloads that rules asked for. True: decide again.
    pub async fn load_payloads(
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
        for raw in self.load_steps(step::alternatives(&steps, &HashMap::new()), true).await? {
            match step::read(&raw, true) {
                Ok(step) => {
                    let key = RecordKey::step(&step.execution_id, step.step_id);
                    known.facts.add_step(Arc::new(step));
                    known.documents.insert(key, raw);
                }
                Err(error) => known.note_corrupt(&raw, error)?,
            }
        }
        Ok(true)
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
