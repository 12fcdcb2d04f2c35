//! Reports: questions about many executions at once, answered from rollups where these can, else from the executions
//! themselves, within bounds (`direct`). Every answer says what it covers.

pub mod activity;
mod direct;
pub mod errors;
mod failures;
pub mod report;
pub mod steps;
mod success;
mod tallies;
pub mod trends;

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::App;
use super::error::Result;
use super::rollups::Rollups;
use crate::clock::Clock;
use crate::domain::Millis;
use crate::domain::calendar::Window;
use crate::domain::query::ExecutionFilter;
use crate::domain::rollup::{Outcome, QUARTER_MS, Tallies, quarter};
use crate::follow::CaughtUp;
use crate::store::rollups::Selection;

/// Answers that read executions, at a time.
const DIRECT_AT_ONCE: usize = 4;

/// Reports.
pub struct Analytics {
    app: Arc<App>,
    rollups: Rollups,
    clock: Arc<dyn Clock>,
    direct: Semaphore,
}

/// What an answer covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    /// Everything that was asked for is in.
    pub complete: bool,
    /// Since when rollups are kept, if any were used.
    pub exact_since: Option<Millis>,
    /// Everything acknowledged up to here is in.
    pub counted_until: Option<Millis>,
    /// What was acknowledged since then may not be in, where rollups are behind.
    pub not_counted_since: Option<Millis>,
    /// Executions that were read.
    pub executions_read: u64,
    /// What started earlier was not read.
    pub read_from: Option<Millis>,
    /// Executions without a usable id, which are left out.
    pub unreadable: u64,
}

impl Freshness {
    /// What two parts of an answer cover together.
    fn add(&mut self, other: Freshness) {
        self.complete &= other.complete;
        self.exact_since = self.exact_since.max(other.exact_since);
        self.counted_until =
            self.counted_until.zip(other.counted_until).map(|(one, two)| one.min(two));
        self.not_counted_since = match (self.not_counted_since, other.not_counted_since) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        self.executions_read += other.executions_read;
        self.read_from = self.read_from.max(other.read_from);
        self.unreadable = self.unreadable.max(other.unreadable);
    }
}

/// Where an answer comes from.
#[derive(Debug, Clone, Copy)]
struct Source {
    rollups: bool,
    freshness: Freshness,
}

/// Executions in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Summary {
    pub executions: i64,
    pub completed: i64,
    pub failed: i64,
    pub cancelled: i64,
    pub running: i64,
    pub p50_ms: Option<i64>,
    pub p90_ms: Option<i64>,
    pub p99_ms: Option<i64>,
    pub mean_ms: Option<f64>,
}

impl Summary {
    fn of(tallies: &Tallies) -> Summary {
        let sum = tallies.sum(&[]);
        let of = |outcome| tallies.of(outcome).executions;
        Summary {
            executions: sum.executions,
            completed: of(Outcome::Completed),
            failed: of(Outcome::Failed),
            cancelled: of(Outcome::Cancelled),
            running: of(Outcome::Running),
            p50_ms: sum.durations.quantile(0.5),
            p90_ms: sum.durations.quantile(0.9),
            p99_ms: sum.durations.quantile(0.99),
            mean_ms: sum.mean_ms(),
        }
    }

    /// Completed ones of all, from 0 to 1.
    pub fn success_rate(&self) -> f64 {
        if self.executions > 0 { self.completed as f64 / self.executions as f64 } else { 0.0 }
    }
}

impl Analytics {
    pub fn new(app: Arc<App>, rollups: Rollups, clock: Arc<dyn Clock>) -> Analytics {
        Analytics { app, rollups, clock, direct: Semaphore::new(DIRECT_AT_ONCE) }
    }

    pub fn limits(&self) -> &crate::domain::limits::Limits {
        self.app.limits()
    }

    fn now(&self) -> Millis {
        self.clock.now().millis()
    }

    /// The records themselves, as they are from now on.
    fn records_only(&self) -> Source {
        let freshness = Freshness {
            complete: true,
            exact_since: None,
            counted_until: Some(self.now()),
            not_counted_since: None,
            executions_read: 0,
            read_from: None,
            unreadable: 0,
        };
        Source { rollups: false, freshness }
    }

    /// Whether rollups answer for this filter, and what they cover. `users`: whether they tell users apart there.
    async fn source(&self, filter: &ExecutionFilter, users: bool) -> Result<Source> {
        let mut direct = self.records_only();
        direct.freshness.unreadable = self.app.unreadable_executions().await?;
        let ExecutionFilter {
            user_ids,
            min_duration_ms,
            metadata,
            // Rollups tell these apart.
            app_ids: _,
            app_names: _,
            sub_app_ids: _,
            statuses: _,
            started_at_from: _,
            started_at_until: _,
            scope: _,
        } = filter;
        let unknown_to_rollups =
            min_duration_ms.is_some() || !metadata.is_empty() || !users && !user_ids.is_empty();
        if unknown_to_rollups {
            return Ok(direct);
        }
        let (caught_up, state) = self.rollups.caught_up().await?;
        // Rollups that are only being built know nothing yet.
        if caught_up == CaughtUp::NoLog || state.exact_since.is_none() || state.cursor.is_none() {
            return Ok(direct);
        }
        let caught_up = caught_up == CaughtUp::Yes;
        let freshness = Freshness {
            complete: caught_up,
            exact_since: state.exact_since,
            counted_until: direct.freshness.counted_until.filter(|_| caught_up),
            // From before what is read: more may be in by then, never less.
            not_counted_since: match caught_up {
                true => None,
                false => self.rollups.counted_until().await,
            },
            ..direct.freshness
        };
        Ok(Source { rollups: true, freshness })
    }

    /// The window of a filter, or else so many milliseconds up to its end or the end of this quarter of an hour.
    fn window(&self, filter: &ExecutionFilter, default_ms: i64) -> Window {
        let this_quarter = (quarter(self.now()) + 1) * QUARTER_MS;
        let from = filter.started_at_from;
        let until =
            filter.started_at_until.unwrap_or_else(|| this_quarter.max(from.unwrap_or_default()));
        Window { from: from.unwrap_or_else(|| until.saturating_sub(default_ms)), until }
    }
}

/// Whose executions a filter is about.
fn selection(filter: &ExecutionFilter) -> Selection {
    Selection {
        app_ids: filter.app_ids.clone(),
        app_names: filter.app_names.clone(),
        sub_app_ids: filter.sub_app_ids.clone(),
        user_ids: filter.user_ids.clone(),
        scope: filter.scope.clone(),
    }
}

/// The statuses a filter is about; empty: all.
fn outcomes(filter: &ExecutionFilter) -> Vec<Outcome> {
    filter.statuses.iter().map(|status| Outcome::of(Some(*status))).collect()
}
