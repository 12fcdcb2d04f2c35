//! Deletes what is not kept any longer, in bounded batches. While anybody writes, each is followed by a pause as long
//! as it took, so that writers hardly notice. One run at a time on a database, whichever server it is on.
//!
//! A run walks through each collection from the oldest record on, up to the first that is too young for any rule.
//! It only proposes: the store decides again in the very moment of the delete.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::error::{Error, Result};
use super::{BYTES_WAITED_FOR, Sweeps, ids};
use crate::clock::Clock;
use crate::domain::Millis;
use crate::domain::retention::{Kind, Policy};
use crate::follow::pace::{Applied, EXPIRING, Newest, Pace};
use crate::store::leads::{Claim, Leads, TAKEN_WITHIN};
use crate::store::retention::{Aged, LEAD, Removed, RetentionStore};
use crate::telemetry::metrics;

/// Records looked at, and deleted, at a time.
const BATCH: usize = 500;
/// Executions of which everything is counted at a time.
const WEIGHED_AT_ONCE: usize = 50;
/// How long a run is the only one without a sign of life; it gives one three times as often.
const LEASE: Duration = Duration::from_secs(15);
const _: () = assert!(
    LEASE.as_millis() / 3 + TAKEN_WITHIN.as_millis() < LEASE.as_millis(),
    "a run gives a sign of life before another server may begin one"
);
/// How often a server looks whether it is time for a run, at most and at least.
const LOOKS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(15 * 60)];

/// What retention did to one collection, or would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    pub records: u64,
    /// Size of artifacts.
    pub bytes: i64,
    /// When the oldest record that is kept was stored.
    pub oldest_kept: Option<Millis>,
}

/// What retention did, or would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub executions: Count,
    pub steps: Count,
    pub artifacts: Count,
    /// Points that go with their executions. The oldest that is kept goes by its own time, as their expiry does.
    pub points: Count,
}

impl Counts {
    fn of(&mut self, kind: Kind) -> &mut Count {
        match kind {
            Kind::Executions => &mut self.executions,
            Kind::Steps => &mut self.steps,
            Kind::Artifacts => &mut self.artifacts,
        }
    }

    fn add(&mut self, removed: &Removed) {
        self.executions.records += removed.executions;
        self.steps.records += removed.steps;
        self.artifacts.records += removed.artifacts;
        self.artifacts.bytes = self.artifacts.bytes.saturating_add(removed.artifact_bytes);
        self.points.records += removed.points;
    }

    fn is_nothing(&self) -> bool {
        self.executions.records + self.steps.records + self.artifacts.records == 0
    }
}

/// Retention of one database.
pub struct Retention {
    store: Arc<dyn RetentionStore>,
    leads: Arc<dyn Leads>,
    policy: Arc<Policy>,
    clock: Arc<dyn Clock>,
    sweeps: Arc<Sweeps>,
    applied: Applied,
}

impl Retention {
    /// `sweeps` is asked for the bytes of the artifacts that a run has marked; `applied` tells of writers.
    pub fn new(
        store: Arc<dyn RetentionStore>,
        leads: Arc<dyn Leads>,
        policy: Policy,
        clock: Arc<dyn Clock>,
        sweeps: Arc<Sweeps>,
        applied: Applied,
    ) -> Self {
        Retention { store, leads, policy: Arc::new(policy), clock, sweeps, applied }
    }

    /// Begins a run: from now on no other one begins until this one ends.
    pub async fn begin(&self, dry_run: bool) -> Result<Run> {
        self.try_begin(dry_run, Claim::IfFree).await?.ok_or(Error::RetentionRunning)
    }

    async fn try_begin(&self, dry_run: bool, claim: Claim) -> Result<Option<Run>> {
        let holder = ids::retention_run();
        let taken = self.leads.lead(LEAD, &holder, LEASE, claim).await?;
        Ok(taken.then(|| Run {
            store: Arc::clone(&self.store),
            leads: Arc::clone(&self.leads),
            policy: Arc::clone(&self.policy),
            now: self.clock.now().millis(),
            dry_run,
            holder,
            counts: Counts::default(),
            sweeps: Arc::clone(&self.sweeps),
            clock: Arc::clone(&self.clock),
            pace: Pace::new(EXPIRING, Arc::clone(&self.applied), self.clock.instant()),
        }))
    }

    /// Runs every `interval` on one server of the cluster, until the token is cancelled.
    pub async fn keep(self: Arc<Self>, interval: Duration, stop: CancellationToken) {
        if interval.is_zero() {
            return;
        }
        let look = (interval / 4).clamp(LOOKS[0], LOOKS[1]);
        while stop.run_until_cancelled(tokio::time::sleep(look)).await.is_some() {
            let outcome = match self.try_begin(false, Claim::UnlessDoneWithin(interval)).await {
                Ok(Some(run)) => run.finish(&stop, |_| {}).await,
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(counts) if counts.is_nothing() => {}
                Ok(counts) => tracing::info!(
                    retention.executions = counts.executions.records,
                    retention.steps = counts.steps.records,
                    retention.artifacts = counts.artifacts.records,
                    retention.artifact_bytes = counts.artifacts.bytes,
                    "retention deleted records"
                ),
                Err(Error::ShuttingDown) => return,
                Err(error) => tracing::warn!(%error, "retention stopped early"),
            }
        }
    }
}

/// One run, which is the only one.
pub struct Run {
    store: Arc<dyn RetentionStore>,
    leads: Arc<dyn Leads>,
    policy: Arc<Policy>,
    /// Ages are those of the beginning.
    now: Millis,
    dry_run: bool,
    holder: String,
    counts: Counts,
    sweeps: Arc<Sweeps>,
    clock: Arc<dyn Clock>,
    pace: Pace,
}

/// Gives signs of life, whatever the run is at. Ends when another server has begun.
async fn keep(leads: Arc<dyn Leads>, holder: String) {
    loop {
        tokio::time::sleep(LEASE / 3).await;
        // A database that is away now knows of nobody else either.
        if let Ok(false) = leads.lead(LEAD, &holder, LEASE, Claim::IfHeld).await {
            return;
        }
    }
}

impl Run {
    /// Does it all. `progress` is told after each batch how much was deleted so far.
    pub async fn finish(
        mut self,
        stop: &CancellationToken,
        mut progress: impl FnMut(&Counts),
    ) -> Result<Counts> {
        let lease = keep(Arc::clone(&self.leads), self.holder.clone());
        let outcome = tokio::select! {
            outcome = self.all(stop, &mut progress) => outcome,
            // It took too long, and another server has begun.
            () = lease => Err(Error::RetentionRunning),
        };
        let ended = outcome.is_ok() && !self.dry_run;
        if let Err(error) = self.leads.cede(LEAD, &self.holder, ended).await {
            tracing::debug!(%error, "the retention lease was not released; it will expire");
        }
        match ended && self.counts.artifacts.records > 0 {
            true => self.sweeps.ask_and_wait(BYTES_WAITED_FOR).await,
            false => {
                self.sweeps.ask();
            }
        }
        outcome.map(|()| self.counts)
    }

    async fn all(
        &mut self,
        stop: &CancellationToken,
        progress: &mut impl FnMut(&Counts),
    ) -> Result<()> {
        for kind in Kind::ALL {
            let horizon = self.policy.horizon(kind, self.now);
            let mut after = None;
            loop {
                let began = self.clock.instant();
                let page = self.store.by_age(kind, after.as_ref(), BATCH).await?;
                let youngest = page.records.last().map(|record| record.stored_at);
                let over = self.judge(kind, page.records);
                if !over.is_empty() {
                    self.take(kind, over, stop, progress).await?;
                }
                progress(&self.counts);
                let old_ones_left = match (youngest, horizon) {
                    (None, _) => true,
                    (Some(youngest), Some(horizon)) => youngest < horizon,
                    (Some(_), None) => false,
                };
                // Beyond the horizon only the oldest that is kept is looked for.
                let done = !old_ones_left && self.counts.of(kind).oldest_kept.is_some();
                match page.next {
                    Some(next) if !done => after = Some(next),
                    _ => break,
                }
                self.pause(began, stop).await?;
            }
        }
        self.counts.points.oldest_kept = self.store.oldest_point().await?;
        Ok(())
    }

    /// Those that are not kept. What belongs to an execution that is not kept went with it, or would go.
    fn judge(&mut self, kind: Kind, records: Vec<Aged>) -> Vec<Aged> {
        let (policy, now) = (Arc::clone(&self.policy), self.now);
        let mut over = Vec::new();
        for record in records {
            let owner = record.owner.as_ref();
            if kind != Kind::Executions
                && owner.is_some_and(|owner| policy.execution_is_over(owner, now))
            {
                continue;
            }
            if policy.is_over(kind, owner, record.stored_at, now) {
                over.push(record);
            } else {
                self.counts.of(kind).oldest_kept.get_or_insert(record.stored_at);
            }
        }
        over
    }

    /// Deletes what is over, or counts it.
    async fn take(
        &mut self,
        kind: Kind,
        over: Vec<Aged>,
        stop: &CancellationToken,
        progress: &mut impl FnMut(&Counts),
    ) -> Result<()> {
        if self.dry_run {
            let would_go = match kind {
                Kind::Executions => {
                    let owners = over.into_iter().filter_map(|record| record.owner);
                    let ids: Vec<String> = owners.map(|owner| owner.execution_id).collect();
                    let mut weight = Removed::default();
                    for ids in ids.chunks(WEIGHED_AT_ONCE) {
                        weight.add(&self.store.weigh(ids).await?);
                    }
                    weight
                }
                Kind::Steps => Removed { steps: over.len() as u64, ..Removed::default() },
                Kind::Artifacts => Removed {
                    artifacts: over.len() as u64,
                    artifact_bytes: over.iter().map(|record| record.bytes).sum(),
                    ..Removed::default()
                },
            };
            self.counts.add(&would_go);
            return Ok(());
        }
        let policy = Arc::clone(&self.policy);
        if kind != Kind::Executions {
            let removed = self.store.expire_parts(kind, over, policy, self.now).await?;
            self.removed(&removed);
            return Ok(());
        }
        let mut left = self.store.expire_executions(over, policy, self.now).await?;
        self.removed(&Removed { executions: left.len() as u64, ..Removed::default() });
        while !left.is_empty() {
            let began = self.clock.instant();
            let piece = self.store.remove_piece(left).await?;
            left = piece.left;
            self.removed(&piece.removed);
            progress(&self.counts);
            self.pause(began, stop).await?;
        }
        Ok(())
    }

    fn removed(&mut self, removed: &Removed) {
        self.counts.add(removed);
        for (collection, count) in [
            ("executions", removed.executions),
            ("execution_steps", removed.steps),
            ("execution_artifacts", removed.artifacts),
            ("execution_metrics", removed.points),
        ] {
            if count > 0 {
                metrics::retention_removed(collection).increment(count);
            }
        }
    }

    /// Leaves the database to others, if there are any, for as long as it was kept busy.
    async fn pause(&mut self, began: Instant, stop: &CancellationToken) -> Result<()> {
        let worked = self.clock.elapsed(began);
        let newest = self.store.newest().await.map_or(Newest::Unknown, Newest::Is);
        let pause = self.pace.rest(worked, newest, self.clock.instant());
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return Err(Error::ShuttingDown);
        }
        Ok(())
    }
}
