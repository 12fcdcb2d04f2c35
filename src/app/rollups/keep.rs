//! Keeps rollups up to date: looks which executions changed, what each counts as now, and has the difference to what
//! is written down of it added to the rollups. So a change may be taken in again, or too late, or together with later
//! ones: what counts is the record as it is.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;

use crate::clock::Clock;
use crate::domain::query::{ExecutionFilter, ExecutionOrder, ExecutionQuery};
use crate::domain::rollup::{
    Counted, CountsAs, Deltas, Failure, FailureKey, Level, Parts, QUARTERS_OF_DAY, Rollup,
    RollupKey,
};
use crate::domain::{Execution, Millis, fingerprint};
use crate::follow::Consumer;
use crate::store::rollups::{
    FAILURES_OF_ONE, FailureQuery, Recount, RollupBatch, RollupQuery, RollupStore, Selection,
};
use crate::store::{
    Change, ChangeKind, Changed, Collection, Cursor, Error, Record, RecordKey, Result, Store,
};

/// Executions in one transaction.
const EXECUTIONS_AT_ONCE: usize = 1_000;
/// Of those, how many whose failed steps are asked for together: each may have a thousand.
const WITH_STEPS_AT_ONCE: usize = 50;
/// Failures in one transaction, unless one execution has more.
const FAILURES_AT_ONCE: usize = 5_000;
/// Failed steps that are loaded before what is known of them is written.
const FAILURES_LOADED: usize = 20_000;
/// Records loaded at a time.
const LOADED_AT_ONCE: usize = 500;
/// Executions read at a time when everything is counted anew: the more, the more of them share a rollup.
const REBUILT_AT_ONCE: usize = 2_000;
/// Rollups corrected in one transaction.
const ROLLUPS_AT_ONCE: usize = 1_000;

/// What a rebuild did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rebuilt {
    /// Executions that were counted.
    pub executions: u64,
    /// Of those, how many counted as something else than they are; but for those that changed meanwhile.
    pub wrong: u64,
    /// Executions that were counted and are gone.
    pub gone: u64,
    /// Rollups that were not the sum of what is counted.
    pub rollups_wrong: u64,
}

/// Keeps rollups up to date.
pub struct Keeper {
    records: Arc<dyn Store>,
    rollups: Arc<dyn RollupStore>,
    clock: Arc<dyn Clock>,
    /// As the lease of the follower names this server.
    holder: String,
    /// What the last rebuild did.
    rebuilt: parking_lot::Mutex<Rebuilt>,
}

/// An execution whose counting has to be looked at.
#[derive(Debug, Clone, Copy, Default)]
struct Look {
    /// Its record changed, or may have.
    record: bool,
    /// Its failed steps changed, or may have.
    steps: bool,
    /// A step of it is not failed any longer, if it ever was.
    mended: bool,
}

impl Keeper {
    pub fn new(
        records: Arc<dyn Store>,
        rollups: Arc<dyn RollupStore>,
        clock: Arc<dyn Clock>,
        holder: String,
    ) -> Keeper {
        let rebuilt = parking_lot::Mutex::default();
        Keeper { records, rollups, clock, holder, rebuilt }
    }

    /// What the last rebuild on this server did.
    pub fn rebuilt(&self) -> Rebuilt {
        *self.rebuilt.lock()
    }

    async fn commit(&self, batch: RollupBatch) -> Result<()> {
        // Another server leads now, and takes the same in.
        match self.rollups.commit(&self.holder, batch).await? {
            true => Ok(()),
            false => Err(Error::away()),
        }
    }

    /// Which executions the changes are about.
    async fn looks(&self, changes: &[Change]) -> Result<HashMap<String, Look>> {
        let mut looks: HashMap<String, Look> = HashMap::new();
        let mut unknown = Vec::new();
        for change in changes {
            match &change.what {
                Changed::Record(key) if key.artifact_id.is_some() => {}
                Changed::Record(RecordKey { execution_id, step_id: None, .. }) => {
                    let look = looks.entry(execution_id.clone()).or_default();
                    look.record = true;
                    // Another program may have stored the steps first, as a dump that is restored does; and what an
                    // earlier execution of this id had is gone with it.
                    look.steps |= change.kind != ChangeKind::Updated;
                }
                Changed::Record(RecordKey { execution_id, .. }) => {
                    let failed = match change.kind {
                        ChangeKind::Deleted => Some(false),
                        _ => change.failed,
                    };
                    let created = change.kind == ChangeKind::Created;
                    match failed {
                        Some(false) if created => {}
                        Some(false) => looks.entry(execution_id.clone()).or_default().mended = true,
                        Some(true) | None => {
                            looks.entry(execution_id.clone()).or_default().steps = true;
                        }
                    }
                }
                // A delete does not say of what; the next rebuild finds out.
                Changed::Unknown { collection: Collection::Artifacts, .. } => {}
                Changed::Unknown { .. } if change.kind == ChangeKind::Deleted => {}
                Changed::Unknown { .. } => unknown.push(change.what.clone()),
            }
        }
        let log = self.records.log()?;
        for piece in unknown.chunks(LOADED_AT_ONCE) {
            for (_, record) in log.load(piece, false).await? {
                match record {
                    Record::Execution(execution) => {
                        looks.entry(execution.execution_id.clone()).or_default().record = true;
                    }
                    Record::Step(step) => {
                        looks.entry(step.execution_id.clone()).or_default().steps = true;
                    }
                    Record::Artifact(_) => {}
                }
            }
        }
        Ok(looks)
    }

    /// What these executions count as now, beside what they counted as; and those that were left for the next time,
    /// since so many steps failed in the others.
    async fn recounts(
        &self,
        looks: &[(String, Look)],
    ) -> Result<(Vec<Recount>, Vec<(String, Look)>)> {
        let ids: Vec<String> = looks.iter().map(|(id, _)| id.clone()).collect();
        let mut before = self.rollups.counted(&ids).await?;
        // A step that is not failed is of no interest where none was.
        let had_failed_steps = |counted: Option<&Counted>| {
            counted.is_some_and(|counted| counted.failures.iter().any(|f| f.step_id.is_some()))
        };
        let looks: Vec<&(String, Look)> = looks
            .iter()
            .filter(|(id, look)| look.record || look.steps || had_failed_steps(before.get(id)))
            .collect();
        let of_steps: Vec<String> = looks
            .iter()
            .filter(|(id, look)| look.steps || look.mended && had_failed_steps(before.get(id)))
            .map(|(id, _)| id.clone())
            .collect();
        let (mut steps, mut loaded) = (HashMap::new(), 0);
        let mut later: HashSet<&str> = HashSet::new();
        for ids in of_steps.chunks(WITH_STEPS_AT_ONCE) {
            if loaded >= FAILURES_LOADED {
                later.extend(ids.iter().map(String::as_str));
                continue;
            }
            let found = self.rollups.failed_steps(ids).await?;
            loaded += found.values().map(Vec::len).sum::<usize>();
            steps.extend(found);
        }
        let (later, looks): (Vec<_>, Vec<_>) =
            looks.into_iter().partition(|(id, _)| later.contains(id.as_str()));
        let later: Vec<(String, Look)> = later.into_iter().cloned().collect();
        let of_steps: HashSet<String> = of_steps.into_iter().collect();
        let keys: Vec<Changed> =
            looks.iter().map(|(id, _)| Changed::Record(RecordKey::execution(id))).collect();
        let mut executions = HashMap::new();
        for (_, record) in self.records.log()?.load(&keys, false).await? {
            if let Record::Execution(execution) = record {
                executions.insert(execution.execution_id.clone(), execution);
            }
        }
        let mut recounts = Vec::new();
        for (id, _) in looks {
            let before = before.remove(id);
            let after = executions.get(id).map(|execution| {
                let of_steps = match of_steps.contains(id) {
                    true => steps.remove(id).unwrap_or_default(),
                    false => step_failures(before.as_ref()),
                };
                counted(execution, of_steps)
            });
            if before != after {
                recounts.push(Recount { execution_id: id.clone(), before, after });
            }
        }
        Ok((recounts, later))
    }

    async fn write(
        &self,
        recounts: Vec<Recount>,
        cursor: Option<Cursor>,
        exact_since: Option<Millis>,
    ) -> Result<()> {
        if recounts.is_empty() && cursor.is_none() && exact_since.is_none() {
            return Ok(());
        }
        let mut batches = in_batches(recounts).into_iter().peekable();
        while let Some(recounts) = batches.next() {
            let mut deltas = Deltas::default();
            for recount in &recounts {
                deltas.replace(recount.before.as_ref(), recount.after.as_ref());
            }
            deltas.settle();
            let mut batch = RollupBatch { recounts, deltas, ..RollupBatch::default() };
            // Only with the last of them everything is taken in.
            if batches.peek().is_none() {
                batch.cursor = cursor.clone();
                batch.exact_since = exact_since;
            }
            self.commit(batch).await?;
        }
        Ok(())
    }
}

/// What goes with one transaction each; at least one batch, which may be empty.
fn in_batches(recounts: Vec<Recount>) -> Vec<Vec<Recount>> {
    let failures = |counted: &Option<Counted>| counted.as_ref().map_or(0, |c| c.failures.len());
    let mut batches = vec![Vec::new()];
    let mut weight = 0;
    for recount in recounts {
        let more = failures(&recount.before).max(failures(&recount.after));
        if weight > 0 && weight + more > FAILURES_AT_ONCE {
            batches.push(Vec::new());
            weight = 0;
        }
        weight += more;
        if let Some(last) = batches.last_mut() {
            last.push(recount);
        }
    }
    batches
}

fn step_failures(counted: Option<&Counted>) -> Vec<Failure> {
    let failures = counted.map_or(&[][..], |counted| &counted.failures);
    failures.iter().filter(|failure| failure.step_id.is_some()).cloned().collect()
}

fn counted(execution: &Execution, of_steps: Vec<Failure>) -> Counted {
    let mut failures: Vec<Failure> =
        fingerprint::failure_of_execution(execution).into_iter().collect();
    failures.extend(of_steps.into_iter().take(FAILURES_OF_ONE - 1));
    Counted { counts_as: CountsAs::of(execution), failures }
}

#[async_trait]
impl Consumer for Keeper {
    fn name(&self) -> &'static str {
        "rollups"
    }

    async fn cursor(&self) -> Result<Option<Cursor>> {
        Ok(self.rollups.state().await?.cursor)
    }

    async fn take(&self, changes: &[Change], through: &Cursor) -> Result<()> {
        let looks: Vec<(String, Look)> = self.looks(changes).await?.into_iter().collect();
        if looks.is_empty() {
            return self.write(Vec::new(), Some(through.clone()), None).await;
        }
        // What is counted next is looked up while what was is written: no execution is in both.
        let mut pieces: VecDeque<Vec<(String, Look)>> =
            looks.chunks(EXECUTIONS_AT_ONCE).map(<[_]>::to_vec).collect();
        let mut recounted = None;
        loop {
            let next = pieces.pop_front();
            let is_last = next.is_none();
            let look_up = async {
                match &next {
                    Some(piece) => self.recounts(piece).await.map(Some),
                    None => Ok(None),
                }
            };
            let write = async {
                match recounted.take() {
                    Some(recounts) => {
                        self.write(recounts, is_last.then(|| through.clone()), None).await
                    }
                    None => Ok(()),
                }
            };
            let (looked_up, written) = tokio::join!(look_up, write);
            written?;
            let Some((recounts, later)) = looked_up? else { return Ok(()) };
            if !later.is_empty() {
                pieces.push_front(later);
            }
            recounted = Some(recounts);
        }
    }

    async fn rebuild(&self, through: &Cursor) -> Result<()> {
        let begun = self.clock.now().millis();
        let mut rebuilt = Rebuilt::default();
        *self.rebuilt.lock() = rebuilt;
        let anew = self.is_empty().await?;
        self.count_executions(begun, &mut rebuilt).await?;
        self.count_failed_steps(begun, &mut rebuilt).await?;
        // Where nothing was, nothing can be wrong: each note went with its sums.
        match anew {
            true => self.sum_up_day(None, &mut rebuilt).await?,
            false => {
                self.find_gone(begun, &mut rebuilt).await?;
                self.sum_up(&mut rebuilt).await?;
            }
        }
        self.write(Vec::new(), Some(through.clone()), Some(begun)).await?;
        *self.rebuilt.lock() = rebuilt;
        tracing::info!(
            executions = rebuilt.executions,
            wrong = rebuilt.wrong,
            gone = rebuilt.gone,
            rollups_wrong = rebuilt.rollups_wrong,
            "reports are ready"
        );
        Ok(())
    }
}

/// Building anew: first what every execution counts as, then whether the rollups are the sum of that. Nobody else
/// changes them meanwhile.
impl Keeper {
    async fn correct(
        &self,
        recounts: Vec<Recount>,
        executions: &HashMap<&str, &Execution>,
        begun: Millis,
        rebuilt: &mut Rebuilt,
    ) -> Result<()> {
        for Recount { execution_id, before, after } in &recounts {
            if after.is_none() {
                rebuilt.gone += 1;
                continue;
            }
            let changed_at = executions.get(execution_id.as_str()).and_then(|e| e.updated_at);
            // What was never counted is new, and what has just changed is not taken in yet.
            if before.is_some() && changed_at.is_none_or(|at| at < begun) {
                rebuilt.wrong += 1;
            }
        }
        match recounts.is_empty() {
            true => Ok(()),
            false => self.write(recounts, None, None).await,
        }
    }

    /// Whether nothing is counted, and no rollup of a day is there.
    async fn is_empty(&self) -> Result<bool> {
        let counted = self.rollups.counted_after(None, 1).await?;
        Ok(counted.is_empty() && self.rollups.day_after(None).await?.is_none())
    }

    async fn count_executions(&self, begun: Millis, rebuilt: &mut Rebuilt) -> Result<()> {
        let mut query = ExecutionQuery {
            filter: ExecutionFilter::default(),
            order: ExecutionOrder::StartedAtAsc,
            after: None,
            limit: REBUILT_AT_ONCE,
            examine: REBUILT_AT_ONCE * 4,
        };
        let mut page = self.records.executions(&query).await?;
        loop {
            let ids: Vec<String> = page.records.iter().map(|e| e.execution_id.clone()).collect();
            let mut before = self.rollups.counted(&ids).await?;
            let mut recounts = Vec::new();
            for execution in &page.records {
                rebuilt.executions += 1;
                let before = before.remove(&execution.execution_id);
                let after = Some(counted(execution, step_failures(before.as_ref())));
                if before != after {
                    let execution_id = execution.execution_id.clone();
                    recounts.push(Recount { execution_id, before, after });
                }
            }
            let by_id = page.records.iter().map(|e| (e.execution_id.as_str(), e)).collect();
            // The next page is read while this one is written.
            let ahead = async {
                let Some(next) = page.next.clone() else { return Ok(None) };
                query.after = Some(next);
                self.records.executions(&query).await.map(Some)
            };
            let correct = self.correct(recounts, &by_id, begun, rebuilt);
            let (corrected, ahead) = tokio::join!(correct, ahead);
            corrected?;
            *self.rebuilt.lock() = *rebuilt;
            match ahead? {
                Some(next) => page = next,
                None => return Ok(()),
            }
        }
    }

    /// Takes a look at executions of which steps have to be counted.
    async fn look_again(
        &self,
        ids: Vec<String>,
        begun: Millis,
        rebuilt: &mut Rebuilt,
    ) -> Result<()> {
        let look = Look { record: true, steps: true, mended: false };
        let mut looks: Vec<(String, Look)> = ids.into_iter().map(|id| (id, look)).collect();
        while !looks.is_empty() {
            let (recounts, later) = self.recounts(&looks).await?;
            looks = later;
            // Failed steps of executions that are counted for the first time come only now.
            let expected = |recount: &Recount| {
                recount.before.as_ref().is_some_and(|before| step_failures(Some(before)).is_empty())
            };
            let (new, wrong): (Vec<Recount>, Vec<Recount>) =
                recounts.into_iter().partition(expected);
            if !new.is_empty() {
                self.write(new, None, None).await?;
            }
            self.correct(wrong, &HashMap::new(), begun, rebuilt).await?;
        }
        Ok(())
    }

    async fn count_failed_steps(&self, begun: Millis, rebuilt: &mut Rebuilt) -> Result<()> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let (ids, next) =
                self.rollups.with_failed_steps(after.as_deref(), EXECUTIONS_AT_ONCE).await?;
            if !ids.is_empty() {
                self.look_again(ids, begun, rebuilt).await?;
            }
            match next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Executions that are counted and no longer there, and those of which failed steps are.
    async fn find_gone(&self, begun: Millis, rebuilt: &mut Rebuilt) -> Result<()> {
        let mut after: Option<String> = None;
        loop {
            let found = self.rollups.counted_after(after.as_deref(), EXECUTIONS_AT_ONCE).await?;
            let Some((last, _)) = found.last() else { return Ok(()) };
            after = Some(last.clone());
            let keys: Vec<Changed> =
                found.iter().map(|(id, _)| Changed::Record(RecordKey::execution(id))).collect();
            let there: HashSet<String> = self
                .records
                .log()?
                .load(&keys, false)
                .await?
                .into_iter()
                .map(|(_, record)| record.key().execution_id)
                .collect();
            let (there, gone): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|(id, _)| there.contains(id));
            let with_steps = |(id, counted): (String, Counted)| {
                (!step_failures(Some(&counted)).is_empty()).then_some(id)
            };
            let with_steps: Vec<String> = there.into_iter().filter_map(with_steps).collect();
            if !with_steps.is_empty() {
                self.look_again(with_steps, begun, rebuilt).await?;
            }
            rebuilt.gone += gone.len() as u64;
            let recount = |(execution_id, counted)| Recount {
                execution_id,
                before: Some(counted),
                after: None,
            };
            let recounts: Vec<Recount> = gone.into_iter().map(recount).collect();
            if !recounts.is_empty() {
                self.write(recounts, None, None).await?;
            }
        }
    }

    /// Day by day, the rollups against the sum of what is counted.
    async fn sum_up(&self, rebuilt: &mut Rebuilt) -> Result<()> {
        self.sum_up_day(None, rebuilt).await?;
        let mut day = None;
        while let Some(next) = self.rollups.day_after(day).await? {
            self.sum_up_day(Some(next), rebuilt).await?;
            day = Some(next);
        }
        Ok(())
    }

    async fn sum_up_day(&self, day: Option<i64>, rebuilt: &mut Rebuilt) -> Result<()> {
        let mut wanted = Deltas::default();
        self.rollups.counted_on(day, &mut |_, counted| wanted.add(&counted, 1)).await?;
        wanted.settle();
        // What is right is taken out, what should not be there is put in as nothing.
        let Deltas { mut rollups, mut failures } = wanted;
        for level in Level::ALL {
            let of_day = QUARTERS_OF_DAY / level.quarters();
            // An empty stretch where only those without a time are wanted.
            let from = day.unwrap_or(0).saturating_mul(of_day);
            let until = if day.is_some() { from.saturating_add(of_day) } else { from };
            let selection = Selection::default();
            let query = RollupQuery {
                level,
                selection: selection.clone(),
                from,
                until,
                undated: day.is_none(),
                durations: true,
            };
            let mut compare = |key: RollupKey, rollup: Rollup| {
                if rollups.get(&key) == Some(&rollup) {
                    rollups.remove(&key);
                } else {
                    rollups.entry(key).or_default();
                }
            };
            self.rollups.rollups(&query, &mut compare).await?;
            if level.by_user() {
                continue;
            }
            let query = FailureQuery { level, selection, from, until, undated: day.is_none() };
            let mut compare = |key: FailureKey, parts: Parts| {
                if failures.get(&key) == Some(&parts) {
                    failures.remove(&key);
                } else {
                    failures.entry(key).or_default();
                }
            };
            self.rollups.failures(&query, &mut compare).await?;
        }
        rebuilt.rollups_wrong += (rollups.len() + failures.len()) as u64;
        let mut rollups = rollups.into_iter().peekable();
        let mut failures = failures.into_iter().peekable();
        while rollups.peek().is_some() || failures.peek().is_some() {
            let batch = RollupBatch {
                rollups: rollups.by_ref().take(ROLLUPS_AT_ONCE).collect(),
                failures: failures.by_ref().take(ROLLUPS_AT_ONCE).collect(),
                ..RollupBatch::default()
            };
            self.commit(batch).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::rollup::{Group, Outcome};

    fn recount(name: &str, failures: usize) -> Recount {
        let failure = |step_id| Failure {
            step_id: Some(step_id),
            step_name: Some("s".to_owned()),
            failed_at: None,
            fingerprint: "f".to_owned(),
            message: "m".to_owned(),
        };
        let counts_as = CountsAs {
            group: Group::default(),
            quarter: None,
            outcome: Outcome::Failed,
            duration_ms: None,
        };
        let failures = (0..failures as i32).map(failure).collect();
        let after = Some(Counted { counts_as, failures });
        Recount { execution_id: name.to_owned(), before: None, after }
    }

    #[test]
    fn no_transaction_has_too_many_failures() {
        let sizes = |recounts: Vec<Recount>| -> Vec<usize> {
            in_batches(recounts).iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(Vec::new()), [0]);
        assert_eq!(sizes((0..700).map(|_| recount("a", 0)).collect()), [700]);
        assert_eq!(sizes((0..12).map(|_| recount("a", 999)).collect()), [5, 5, 2]);
        assert_eq!(sizes(vec![recount("a", 999), recount("b", 0), recount("c", 1)]), [3]);
    }
}
