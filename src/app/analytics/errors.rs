//! Errors by what their messages have in common, the most frequent first.

use std::collections::HashMap;

use super::{Analytics, Freshness, selection};
use crate::app::error::Result;
use crate::app::rollups::Apart;
use crate::domain::Millis;
use crate::domain::calendar::Window;
use crate::domain::query::ExecutionFilter;
use crate::domain::rollup::{QUARTER_MS, quarter};
use crate::store::rollups::Seen;

/// The window when the filter has none.
const DEFAULT_MS: i64 = 7 * 24 * 3600 * 1000;
/// Intervals of a trend at most.
const INTERVALS: i64 = 32;
/// Lengths that intervals of trends have, in quarters of an hour; longer ones are multiples of the last.
const LENGTHS: [i64; 11] = [1, 2, 4, 8, 12, 24, 48, 96, 192, 672, 2688];
/// Names of apps and steps told with an error.
const NAMES: usize = 5;

pub struct ErrorsAsked {
    pub limit: usize,
    pub samples: usize,
}

pub struct TopError {
    pub seen: Seen,
    pub executions: i64,
    pub steps: i64,
    /// By interval.
    pub trend: Vec<i64>,
    pub app_names: Vec<String>,
    pub step_names: Vec<String>,
}

pub struct TopErrors {
    pub errors: Vec<TopError>,
    pub total_errors: usize,
    pub interval_starts: Vec<Millis>,
    pub window: Window,
    pub freshness: Freshness,
}

#[derive(Default)]
struct Sum {
    executions: i64,
    steps: i64,
    trend: Vec<i64>,
    apps: HashMap<String, i64>,
    step_names: HashMap<String, i64>,
}

/// The window cut into intervals of a round length, whose borders are multiples of it.
fn intervals(window: Window) -> Vec<Window> {
    if window.is_empty() {
        return Vec::new();
    }
    let quarters = window.until.saturating_sub(window.from) / QUARTER_MS + 1;
    // One more than this may be touched.
    let least = quarters / (INTERVALS - 1) + 1;
    let longest = LENGTHS[LENGTHS.len() - 1];
    let round = LENGTHS.into_iter().find(|length| *length >= least);
    let length = round.unwrap_or_else(|| (least / longest + 1) * longest) * QUARTER_MS;
    let mut intervals = Vec::new();
    let mut from = quarter(window.from) * QUARTER_MS;
    from -= from.rem_euclid(length);
    while from < window.until {
        intervals.push(Window { from, until: from + length }.within(window));
        from += length;
    }
    intervals
}

fn most(names: HashMap<String, i64>) -> Vec<String> {
    let mut names: Vec<(String, i64)> = names.into_iter().collect();
    names.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    names.into_iter().take(NAMES).map(|(name, _)| name).collect()
}

impl Analytics {
    pub async fn top_errors(
        &self,
        filter: &ExecutionFilter,
        asked: &ErrorsAsked,
    ) -> Result<TopErrors> {
        let window = self.window(filter, DEFAULT_MS);
        let slots = intervals(window);
        let mut source = self.source(filter, false).await?;
        let apart = Apart { apps: true, ..Apart::default() };
        let found = self.failures(filter, &slots, apart, asked.samples, &mut source).await?;
        let mut sums: HashMap<String, Sum> = HashMap::new();
        for tally in found.tallies {
            let sum = sums.entry(tally.fingerprint).or_default();
            sum.trend.resize(slots.len(), 0);
            if let Some(slot) = sum.trend.get_mut(tally.span) {
                *slot += tally.count;
            }
            *sum.apps.entry(tally.group.app_name).or_default() += tally.count;
            match tally.step_name {
                None => sum.executions += tally.count,
                Some(name) => {
                    sum.steps += tally.count;
                    *sum.step_names.entry(name).or_default() += tally.count;
                }
            }
        }
        sums.retain(|_, sum| sum.executions + sum.steps > 0);
        let total_errors = sums.len();
        let mut top: Vec<(String, Sum)> = sums.into_iter().collect();
        top.sort_by(|(a, x), (b, y)| {
            (y.executions + y.steps).cmp(&(x.executions + x.steps)).then_with(|| a.cmp(b))
        });
        top.truncate(asked.limit);
        let mut seen = match found.seen {
            Some(seen) => seen,
            None => {
                let prints: Vec<String> = top.iter().map(|(print, _)| print.clone()).collect();
                let selection = selection(filter);
                let seen = self.rollups.reader().seen(&prints, &selection, asked.samples).await?;
                seen.into_iter().map(|seen| (seen.fingerprint.clone(), seen)).collect()
            }
        };
        let error = |(fingerprint, sum): (String, Sum)| TopError {
            seen: seen
                .remove(&fingerprint)
                .unwrap_or_else(|| Seen { fingerprint, ..Seen::default() }),
            executions: sum.executions,
            steps: sum.steps,
            trend: sum.trend,
            app_names: most(sum.apps),
            step_names: most(sum.step_names),
        };
        Ok(TopErrors {
            errors: top.into_iter().map(error).collect(),
            total_errors,
            interval_starts: slots.iter().map(|slot| slot.from).collect(),
            window,
            freshness: source.freshness,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_round_and_few_and_cover_the_window() {
        for (from, length) in [
            (0, 1),
            (17, QUARTER_MS),
            (123_456_789, 24 * 3600 * 1000),
            (1_000_000_007, 7 * 24 * 3600 * 1000),
            (-5, 366 * 24 * 3600 * 1000),
            (-62_135_596_800_000, 315_537_897_599_999),
        ] {
            let window = Window { from, until: from + length };
            let cut = intervals(window);
            assert!(!cut.is_empty() && cut.len() <= INTERVALS as usize, "{from} {}", cut.len());
            assert_eq!((cut[0].from, cut[cut.len() - 1].until), (window.from, window.until));
            assert!(cut.windows(2).all(|two| two[0].until == two[1].from));
            let inner = cut.iter().skip(1);
            assert!(inner.into_iter().all(|interval| interval.from % QUARTER_MS == 0));
        }
        assert!(intervals(Window { from: 5, until: 5 }).is_empty());
    }
}
