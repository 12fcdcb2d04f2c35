//! From writes to commands: load what the rules have to know, let them decide, persist what changed under the
//! guard that it still is what the decision was made on, and decide again what lost a race.
//!
//! In the usual case everything is known from the cache or expected to be new, so a batch is one chain of commands.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::delete;
use super::facts::{Known, Loader};
use super::failed::Failed;
use super::guard::Guard;
use super::indexes::RecordIndexes;
use super::persist::{Persisted, Persister};
use super::recorded::Recorded;
use super::room::Records;
use crate::domain::{Execution, Refusal, Step};
use crate::store::mongo::db::{Connection, failure};
use crate::store::plan::{Dirty, Plan, plan};
use crate::store::{Answer, Applied, Error, Op, Record, RecordKey, Result, Write};

/// Attempts at a write before it is given up as lost to other writers.
const ROUNDS: usize = 8;
/// Attempts that guard the whole document. After them only what the decision was made on: the document may hold
/// something that no guard matches.
const WHOLE_ROUNDS: usize = 3;
pub async fn apply(records: &Records, writes: Vec<Write>) -> Applied {
    let ready = match records.ready().await {
        Ok(ready) => ready,
        Err(error) => {
            let outcomes = writes.iter().map(|_| Err(failure::again(&error))).collect();
            return Applied { outcomes, written: Vec::new() };
        }
    };
    if let [write] = writes.as_slice()
        && write.is_delete()
    {
        return delete::apply(records, &ready, write).await;
    }
    let indexes = match records.settled_indexes().await {
        Ok(indexes) => indexes,
        Err(_) => {
            let outcomes = writes.iter().map(|_| Err(failure::away())).collect();
            return Applied { outcomes, written: Vec::new() };
        }
    };
    let mut outcomes: Vec<Option<Result<Answer>>> = Vec::new();
    outcomes.resize_with(writes.len(), || None);
    let mut written = HashMap::new();
    let mut batch = Batch {
        records,
        recorded: Recorded::of(records, &writes),
        ready: &ready,
        careful: HashSet::new(),
        cautious: !indexes.keep_unique(),
        indexes,
        guard: Guard::Whole,
    };
    let mut pending: Vec<(usize, Write)> = writes.into_iter().enumerate().collect();
    for round in 0..ROUNDS {
        if round > 2 {
            // Other servers are at the same records: step out of their rhythm.
            tokio::time::sleep(std::time::Duration::from_millis(round as u64)).await;
        }
        if round == WHOLE_ROUNDS {
            let scoped = pending.iter().any(|(_, write)| !write.scope.is_all());
            batch.guard = if scoped { Guard::Scoped } else { Guard::Decision };
        }
        let (places, current): (Vec<usize>, Vec<Write>) = pending.into_iter().unzip();
        let settled = batch.round(&places, &current, &mut written).await;
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
    let outcomes: Vec<Result<Answer>> = outcomes.collect();
    batch.recorded.end(&outcomes);
    Applied { outcomes, written: written.into_values().collect() }
}

struct Batch<'a> {
    records: &'a Records,
    recorded: Recorded<'a>,
    ready: &'a Connection,
    indexes: Arc<RecordIndexes>,
    /// Executions about which nothing is taken for granted any more: their records are loaded.
    careful: HashSet<String>,
    /// The same for all of them: the database does not keep ids unique.
    cautious: bool,
    guard: Guard,
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
        places: &[usize],
        writes: &[Write],
        written: &mut HashMap<RecordKey, Record>,
    ) -> Vec<Option<Result<Answer>>> {
        let loader = Loader { records: self.records, ready: self.ready };
        let (mut known, needs) = loader.recall(writes, |write| self.is_careful(write));
        if let Err(error) = loader.load(&needs, &mut known).await {
            return all_failed(writes.len(), &error);
        }
        let mut decided = plan(writes, &known.facts, &self.records.limits);
        for _ in 0..4 {
            let counts =
                loader.load_counts(writes, &decided, &mut known, |write| self.is_careful(write));
            let counted = match counts.await {
                Ok(counted) => counted,
                Err(error) => return all_failed(writes.len(), &error),
            };
            match loader.load_payloads(writes, &decided, &mut known).await {
                Ok(loaded) if !loaded && !counted => break,
                Ok(_) => decided = plan(writes, &known.facts, &self.records.limits),
                Err(error) => return all_failed(writes.len(), &error),
            }
        }
        let indexes = &self.indexes;
        let persister = Persister { loader, guard: self.guard, known: &known, indexes };
        let persisted = persister.persist(&decided, places, &mut self.recorded).await;
        self.settle(writes, decided, &known, &persisted, written)
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
                    let failed = |key| Some((key, persisted.failed.get(key)?));
                    if let Some((key, failed)) = planned.touched.iter().find_map(failed) {
                        // A repeat of what is stored may be refused for another reason than that it is. And what
                        // is not recorded is not held up by what cannot be.
                        let again = (failed.is_refused() && !self.is_surely_loaded(id))
                            || (matches!(failed, Failed::Unaudited) && write.asked.is_none());
                        (!again).then(|| Err(self.ready.explained(failed.error(key))))
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
                Err(Refusal::NeedsPayload | Refusal::NeedsStepCount) => None,
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
        !self.is_surely_loaded(id) && known.guessed.contains(id)
    }

    fn is_surely_loaded(&self, execution_id: &str) -> bool {
        self.cautious || self.careful.contains(execution_id)
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
        let cache = &self.records.cache;
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
                cache.count_step(id);
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

fn all_failed(count: usize, error: &Error) -> Vec<Option<Result<Answer>>> {
    (0..count).map(|_| Some(Err(failure::again(error)))).collect()
}
