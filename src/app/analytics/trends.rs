//! Durations and counts by interval and app, and where they go.

use std::collections::{BTreeMap, HashMap};

use super::{Analytics, Freshness, Summary};
use crate::app::error::{Error, Result};
use crate::app::rollups::Apart;
use crate::domain::Millis;
use crate::domain::calendar::{Window, Zone};
use crate::domain::query::ExecutionFilter;
use crate::domain::rollup::{Durations, Group, Tallies};
use crate::domain::trend::{self, Direction};

/// The window when the filter has none.
const DEFAULT_MS: i64 = 30 * 24 * 3600 * 1000;
/// Intervals of a window at most.
pub const INTERVALS: usize = 1_000;
/// Intervals in an answer at most, of all apps together.
const INTERVALS_OF_ALL: usize = 20_000;

pub struct TrendInterval {
    pub window: Window,
    pub summary: Summary,
}

pub struct AppTrend {
    pub app: Group,
    pub executions: i64,
    pub direction: Direction,
    pub recent_since: Option<Millis>,
    pub earlier_p90_ms: Option<i64>,
    pub recent_p90_ms: Option<i64>,
    pub earlier_durations: i64,
    pub recent_durations: i64,
    pub intervals: Vec<TrendInterval>,
}

pub struct Trends {
    /// By number of executions, most first.
    pub apps: Vec<AppTrend>,
    pub total_apps: usize,
    pub freshness: Freshness,
}

impl Analytics {
    pub async fn trends(
        &self,
        filter: &ExecutionFilter,
        interval_ms: i64,
        zone: &Zone,
        limit: usize,
    ) -> Result<Trends> {
        let window = self.window(filter, DEFAULT_MS);
        let Some(intervals) = zone.intervals(interval_ms, window, INTERVALS) else {
            return Err(Error::invalid(
                "interval",
                format!("divides the window into more than the limit of {INTERVALS} intervals"),
            ));
        };
        let slots: Vec<Window> = intervals.iter().map(|interval| interval.within(window)).collect();
        let apart = Apart { apps: true, ..Apart::default() };
        let mut source = self.source(filter, true).await?;
        let rows = self.tallies(filter, &slots, apart, true, &mut source).await?;
        let mut by_app: HashMap<Group, BTreeMap<usize, Tallies>> = HashMap::new();
        for row in rows {
            by_app.entry(row.group).or_default().insert(row.span, row.tallies);
        }
        let total_apps = by_app.len();
        let mut apps: Vec<AppTrend> =
            by_app.into_iter().map(|(app, slots)| app_trend(app, &slots, &intervals)).collect();
        apps.sort_by(|a, b| b.executions.cmp(&a.executions).then_with(|| a.app.cmp(&b.app)));
        apps.truncate(limit);
        let mut left = INTERVALS_OF_ALL;
        apps.retain(|app| {
            let fits = app.intervals.len() <= left;
            left = if fits { left - app.intervals.len() } else { 0 };
            fits
        });
        Ok(Trends { apps, total_apps, freshness: source.freshness })
    }
}

fn app_trend(app: Group, slots: &BTreeMap<usize, Tallies>, intervals: &[Window]) -> AppTrend {
    let timed: Vec<(usize, Durations)> = slots
        .iter()
        .map(|(slot, tallies)| (*slot, tallies.sum(&[]).durations))
        .filter(|(_, durations)| !durations.is_empty())
        .collect();
    // The last quarter of them, and one at least.
    let recent = timed.len() - (timed.len() / 4).max(1).min(timed.len());
    let merged = |some: &[(usize, Durations)]| {
        let mut merged = Durations::default();
        some.iter().for_each(|(_, durations)| merged.merge(durations));
        merged
    };
    let (before, after) = (merged(&timed[..recent]), merged(&timed[recent..]));
    let compared = recent > 0;
    let since = timed.get(recent).and_then(|(slot, _)| intervals.get(*slot));
    let interval = |(slot, tallies): (&usize, &Tallies)| {
        Some(TrendInterval { window: *intervals.get(*slot)?, summary: Summary::of(tallies) })
    };
    let intervals: Vec<TrendInterval> = slots.iter().filter_map(interval).collect();
    AppTrend {
        app,
        executions: intervals.iter().map(|interval| interval.summary.executions).sum(),
        direction: trend::direction(&before, &after),
        recent_since: since.map(|window| window.from).filter(|_| compared),
        earlier_p90_ms: before.quantile(0.9),
        recent_p90_ms: after.quantile(0.9),
        earlier_durations: before.count(),
        recent_durations: after.count(),
        intervals,
    }
}
