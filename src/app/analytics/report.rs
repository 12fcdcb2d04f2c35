//! Days, weeks or months: how many executions, how well, how long, what failed, and what changed.

use std::collections::HashMap;

use super::{Analytics, Freshness, Summary};
use crate::app::error::{Error, Result};
use crate::app::rollups::{Apart, FailureTally, TallyRow};
use crate::domain::Millis;
use crate::domain::calendar::{Named, Period, Window, Zone};
use crate::domain::query::ExecutionFilter;
use crate::domain::rollup::{Group, QUARTER_MS, Tallies, quarter};

/// Periods of a report when nothing says how many.
const DEFAULT_PERIODS: usize = 7;
/// Periods of a report at most.
pub const PERIODS: usize = 400;

pub struct ReportAsked {
    pub period: Period,
    pub zone: Zone,
    /// `None`: as many as the window touches, or a few without a window.
    pub periods: Option<usize>,
    /// Apps and steps in each.
    pub limit: usize,
}

/// What changed against the period before, as factors less 1, and the success rate as a difference.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Change {
    pub previous_executions: i64,
    pub executions: Option<f64>,
    pub success_rate: Option<f64>,
    pub p50: Option<f64>,
    pub p90: Option<f64>,
    pub p99: Option<f64>,
    pub mean: Option<f64>,
}

pub struct RowOfApp {
    pub app: Group,
    pub summary: Summary,
    pub change: Option<Change>,
}

pub struct FailingStep {
    pub app: Group,
    pub step_name: String,
    pub failed: i64,
    /// Different ones.
    pub errors: usize,
    pub top_fingerprint: String,
}

/// One period.
pub struct Row {
    pub named: Named,
    /// It is not over, or the filter's window cuts it.
    pub partial: bool,
    pub summary: Summary,
    pub change: Option<Change>,
    pub apps: Vec<RowOfApp>,
    pub total_apps: usize,
    pub failing: Vec<FailingStep>,
}

pub struct Report {
    pub rows: Vec<Row>,
    pub freshness: Freshness,
}

fn factor(now: Option<f64>, before: Option<f64>) -> Option<f64> {
    let (now, before) = now.zip(before)?;
    (before > 0.0).then(|| now / before - 1.0)
}

fn change(now: &Summary, before: &Summary) -> Change {
    let of_p = |p: fn(&Summary) -> Option<i64>| {
        factor(p(now).map(|ms| ms as f64), p(before).map(|ms| ms as f64))
    };
    Change {
        previous_executions: before.executions,
        executions: factor(Some(now.executions as f64), Some(before.executions as f64)),
        success_rate: (now.executions > 0 && before.executions > 0)
            .then(|| now.success_rate() - before.success_rate()),
        p50: of_p(|summary| summary.p50_ms),
        p90: of_p(|summary| summary.p90_ms),
        p99: of_p(|summary| summary.p99_ms),
        mean: factor(now.mean_ms, before.mean_ms),
    }
}

/// One period on the way: as much of it as is counted.
struct Plan {
    named: Named,
    /// What of it is in the window of the filter.
    counted: Window,
    /// Where the part ends with which the next period is compared, if that is not over.
    compared_until: Option<Millis>,
}

/// Tallies of a period, in all and by app.
#[derive(Default)]
struct Counted {
    all: Tallies,
    by_app: HashMap<Group, Tallies>,
}

impl Counted {
    fn add(&mut self, row: &TallyRow) {
        self.all.merge(&row.tallies);
        self.by_app.entry(row.group.clone()).or_default().merge(&row.tallies);
    }
}

impl Analytics {
    pub async fn report(&self, filter: &ExecutionFilter, asked: &ReportAsked) -> Result<Report> {
        let now = self.now();
        let plans = self.plans(filter, asked, now)?;
        // A period that is compared in part has two slots.
        let mut slots = Vec::new();
        let mut of_slots = Vec::new();
        for (number, plan) in plans.iter().enumerate() {
            let Window { from, until } = plan.counted;
            match plan.compared_until {
                None => slots.push(plan.counted),
                Some(cut) => {
                    slots.extend([Window { from, until: cut }, Window { from: cut, until }]);
                    of_slots.push((number, true));
                }
            }
            of_slots.push((number, false));
        }
        let apart = Apart { apps: true, ..Apart::default() };
        let mut source = self.source(filter, true).await?;
        let rows = self.tallies(filter, &slots, apart, true, &mut source).await?;
        let mut counted: Vec<Counted> = plans.iter().map(|_| Counted::default()).collect();
        let mut compared: HashMap<usize, Counted> = HashMap::new();
        for row in &rows {
            let Some((number, to_compare)) = of_slots.get(row.span) else { continue };
            counted[*number].add(row);
            if *to_compare {
                compared.entry(*number).or_default().add(row);
            }
        }
        let windows: Vec<Window> = plans[1..].iter().map(|plan| plan.counted).collect();
        let mut of_failures = self.source(filter, false).await?;
        let found = self.failures(filter, &windows, apart, 0, &mut of_failures).await?;
        let mut failing = failing(found.tallies, windows.len(), asked.limit);

        let summaries: Vec<Summary> =
            counted.iter().map(|counted| Summary::of(&counted.all)).collect();
        let mut report = Vec::with_capacity(windows.len());
        for number in 1..plans.len() {
            let (plan, before) = (&plans[number], &plans[number - 1]);
            let cut = plan.counted != plan.named.window;
            let partial = cut || plan.named.window.until > now;
            // An empty place stands where there is no period before.
            let comparable = !cut
                && before.counted == before.named.window
                && before.named.window.until == plan.named.window.from;
            let part = before.compared_until.map(|_| compared.remove(&(number - 1)));
            let part = part.map(Option::unwrap_or_default);
            let (previous, previous_summary) = match &part {
                Some(part) => (part, Summary::of(&part.all)),
                None => (&counted[number - 1], summaries[number - 1]),
            };
            let mut apps: Vec<(&Group, Summary)> = counted[number]
                .by_app
                .iter()
                .map(|(app, tallies)| (app, Summary::of(tallies)))
                .collect();
            let total_apps = apps.len();
            apps.sort_by(|(a, x), (b, y)| y.executions.cmp(&x.executions).then_with(|| a.cmp(b)));
            apps.truncate(asked.limit);
            let of_app = |(app, summary): (&Group, Summary)| RowOfApp {
                app: app.clone(),
                summary,
                change: comparable.then(|| {
                    let before = previous.by_app.get(app).map(Summary::of).unwrap_or_default();
                    change(&summary, &before)
                }),
            };
            report.push(Row {
                named: plan.named.clone(),
                partial,
                summary: summaries[number],
                change: comparable.then(|| change(&summaries[number], &previous_summary)),
                apps: apps.into_iter().map(of_app).collect(),
                total_apps,
                failing: std::mem::take(&mut failing[number - 1]),
            });
        }
        let mut freshness = source.freshness;
        freshness.add(of_failures.freshness);
        Ok(Report { rows: report, freshness })
    }

    /// The periods of the report, oldest first, and before them the one that the first is compared with.
    fn plans(
        &self,
        filter: &ExecutionFilter,
        asked: &ReportAsked,
        now: Millis,
    ) -> Result<Vec<Plan>> {
        let ReportAsked { period, zone, periods, .. } = asked;
        let (from, until) = (filter.started_at_from, filter.started_at_until);
        let most = periods.unwrap_or(PERIODS);
        let mut named = match from {
            None => {
                let last = until.map_or(now, |until| until.saturating_sub(1));
                zone.last(*period, last, periods.unwrap_or(DEFAULT_PERIODS))
            }
            Some(from) => {
                let until = until.unwrap_or_else(|| now.max(from).saturating_add(1));
                let (named, more) = zone.touching(*period, Window { from, until }, most);
                if more && periods.is_none() {
                    return Err(Error::invalid(
                        "filter.started_at_from",
                        format!("makes the report longer than the limit of {PERIODS} periods"),
                    ));
                }
                named
            }
        };
        let window = Window { from: from.unwrap_or(i64::MIN), until: until.unwrap_or(i64::MAX) };
        let first = named.first().map(|named| named.window.from);
        let before = first.and_then(|first| zone.last(*period, first - 1, 1).pop());
        let before = before.unwrap_or(Named {
            label: String::new(),
            window: Window { from: i64::MIN + 1, until: i64::MIN + 1 },
        });
        named.insert(0, before);
        let plan = |(number, named): (usize, Named)| Plan {
            // The one before the first is compared with as a whole, though it is outside of the window.
            counted: if number == 0 { named.window } else { named.window.within(window) },
            named,
            compared_until: None,
        };
        let mut plans: Vec<Plan> = named.into_iter().enumerate().map(plan).collect();
        for number in 1..plans.len() {
            let this = plans[number].named.window;
            if (this.from..this.until).contains(&now) {
                let passed = (quarter(now - this.from) + 1) * QUARTER_MS;
                let before = &mut plans[number - 1];
                let Window { from, until } = before.counted;
                let cut = from.saturating_add(passed);
                before.compared_until = (from < cut && cut < until).then_some(cut);
            }
        }
        Ok(plans)
    }
}

/// The steps that failed most, by period.
fn failing(tallies: Vec<FailureTally>, periods: usize, limit: usize) -> Vec<Vec<FailingStep>> {
    let mut sums: HashMap<(usize, Group, String), HashMap<String, i64>> = HashMap::new();
    for tally in tallies {
        let Some(step_name) = tally.step_name else { continue };
        let errors = sums.entry((tally.span, tally.group, step_name)).or_default();
        *errors.entry(tally.fingerprint).or_default() += tally.count;
    }
    let mut failing: Vec<Vec<FailingStep>> = (0..periods).map(|_| Vec::new()).collect();
    for ((period, app, step_name), errors) in sums {
        let failed: i64 = errors.values().sum();
        let different = errors.len();
        let top = errors.into_iter().max_by(|a, b| a.1.cmp(&b.1).then_with(|| b.0.cmp(&a.0)));
        if let (Some((top_fingerprint, _)), Some(failing)) = (top, failing.get_mut(period)) {
            failing.push(FailingStep {
                app,
                step_name,
                failed,
                errors: different,
                top_fingerprint,
            });
        }
    }
    for failing in &mut failing {
        failing.sort_by(|a, b| {
            b.failed
                .cmp(&a.failed)
                .then_with(|| (&a.app, &a.step_name).cmp(&(&b.app, &b.step_name)))
        });
        failing.truncate(limit);
    }
    failing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_factors_and_missing_where_nothing_can_be_compared() {
        let summary = |executions, completed, p50_ms| Summary {
            executions,
            completed,
            p50_ms,
            ..Summary::default()
        };
        let told = change(&summary(30, 15, Some(150)), &summary(20, 20, Some(100)));
        assert_eq!((told.previous_executions, told.executions), (20, Some(0.5)));
        assert_eq!((told.success_rate, told.p50, told.p90), (Some(-0.5), Some(0.5), None));
        let first = change(&summary(3, 3, Some(1)), &summary(0, 0, None));
        assert_eq!(first, Change::default());
        assert_eq!(change(&summary(1, 0, Some(5)), &summary(1, 0, Some(0))).p50, None);
    }
}
