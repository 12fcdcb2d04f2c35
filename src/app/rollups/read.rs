//! Reading rollups: which ones cover the asked spans, and adding them up.

use std::collections::HashMap;
use std::sync::Arc;

use crate::app::error::Result;
use crate::domain::rollup::{Failure, Group, Level, Outcome, Rollup, Span, Stretch, Tallies};
use crate::store::rollups::{FailureQuery, RollupQuery, RollupState, RollupStore, Seen, Selection};

/// What is counted apart; all else is counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Apart {
    pub apps: bool,
    /// Parts of apps; with `apps`.
    pub sub_apps: bool,
    pub users: bool,
}

impl Apart {
    /// What of a group is kept.
    pub fn group(self, group: &Group) -> Group {
        let mut apart = Group::default();
        if self.apps {
            apart.app_id = group.app_id;
            apart.app_name.clone_from(&group.app_name);
        }
        if self.sub_apps {
            apart.sub_app_id = group.sub_app_id;
            apart.sub_app_name.clone_from(&group.sub_app_name);
        }
        if self.users {
            apart.user_id.clone_from(&group.user_id);
        }
        apart
    }
}

/// How many executions there are, and how long they took.
#[derive(Debug, Clone, PartialEq)]
pub struct TallyQuery {
    pub selection: Selection,
    /// In order, none overlapping another.
    pub spans: Vec<Span>,
    /// Whether executions without a start time belong to the first span too.
    pub undated: bool,
    pub apart: Apart,
    /// Whether sketches of durations are wanted.
    pub durations: bool,
}

/// Executions of one span and group.
#[derive(Debug, Clone, PartialEq)]
pub struct TallyRow {
    pub span: usize,
    pub group: Group,
    pub tallies: Tallies,
}

/// How many failures there are.
#[derive(Debug, Clone, PartialEq)]
pub struct FailuresQuery {
    /// Without users: failures are not counted by them.
    pub selection: Selection,
    /// In order, none overlapping another.
    pub spans: Vec<Span>,
    pub undated: bool,
    /// Only of executions with one of these statuses; empty: all.
    pub outcomes: Vec<Outcome>,
    pub apart: Apart,
}

/// Failures of one span, group, step name and kind of error.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FailureTally {
    pub span: usize,
    pub group: Group,
    /// `None`: of executions.
    pub step_name: Option<String>,
    pub fingerprint: String,
    pub count: i64,
}

/// Rollups of one level in one go: `from` and `until` in its hours or days.
struct Run {
    level: Level,
    from: i64,
    until: i64,
}

/// The fewest runs of rollups that cover all spans.
fn runs(spans: &[Span], by_user: bool) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for days in [false, true] {
        let of_span = |span: &Span| match by_user {
            false => span.stretches(),
            true => vec![span.days()],
        };
        for Stretch { from, until, .. } in
            spans.iter().flat_map(of_span).filter(|stretch| stretch.days == days)
        {
            let level = match (days, by_user) {
                (false, _) => Level::Hour,
                (true, false) => Level::Day,
                (true, true) => Level::UserDay,
            };
            match runs.last_mut() {
                // Two spans may share the hour or day between them.
                Some(last) if last.level == level && from <= last.until => {
                    last.until = last.until.max(until);
                }
                _ => runs.push(Run { level, from, until }),
            }
        }
    }
    runs
}

/// The span in which a part of a rollup lies.
fn span_of(spans: &[Span], level: Level, at: i64, part: u8) -> Option<usize> {
    let quarter = level.quarter(at, part);
    let next = spans.partition_point(|span| span.until <= quarter);
    spans.get(next).is_some_and(|span| span.from <= quarter).then_some(next)
}

/// Reads what the rollups say.
#[derive(Clone)]
pub struct Reader {
    store: Arc<dyn RollupStore>,
}

impl Reader {
    pub fn new(store: Arc<dyn RollupStore>) -> Self {
        Reader { store }
    }

    /// How far they are, and since when they are exact.
    pub async fn state(&self) -> Result<RollupState> {
        Ok(self.store.state().await?)
    }

    pub async fn tallies(&self, query: &TallyQuery) -> Result<Vec<TallyRow>> {
        let by_user = query.apart.users || !query.selection.user_ids.is_empty();
        let mut sums: HashMap<(usize, Group), Tallies> = HashMap::new();
        let mut undated = query.undated;
        for run in runs(&query.spans, by_user) {
            let asked = RollupQuery {
                level: run.level,
                selection: query.selection.clone(),
                from: run.from,
                until: run.until,
                undated: std::mem::take(&mut undated),
                durations: query.durations,
            };
            let mut add = |group: Group, at: Option<i64>, rollup: Rollup| {
                for (part, tallies) in rollup.0 {
                    let span = match at {
                        Some(at) => span_of(&query.spans, run.level, at, part),
                        None => Some(0),
                    };
                    if let Some(span) = span
                        && !tallies.is_empty()
                    {
                        sums.entry((span, query.apart.group(&group))).or_default().merge(&tallies);
                    }
                }
            };
            self.store.rollups(&asked, &mut |key, rollup| add(key.group, key.at, rollup)).await?;
        }
        let row = |((span, group), tallies)| TallyRow { span, group, tallies };
        let mut rows: Vec<TallyRow> = sums.into_iter().map(row).collect();
        rows.sort_by(|a, b| (a.span, &a.group).cmp(&(b.span, &b.group)));
        Ok(rows)
    }

    pub async fn failures(&self, query: &FailuresQuery) -> Result<Vec<FailureTally>> {
        type Key = (usize, Group, Option<String>, String);
        let mut sums: HashMap<Key, i64> = HashMap::new();
        let mut undated = query.undated;
        for run in runs(&query.spans, false) {
            let asked = FailureQuery {
                level: run.level,
                selection: query.selection.clone(),
                from: run.from,
                until: run.until,
                undated: std::mem::take(&mut undated),
            };
            self.store
                .failures(&asked, &mut |key, parts| {
                    if !query.outcomes.is_empty() && !query.outcomes.contains(&key.outcome) {
                        return;
                    }
                    for (part, count) in (0..).zip(parts) {
                        let span = match key.at {
                            Some(at) => span_of(&query.spans, run.level, at, part),
                            None => Some(0),
                        };
                        if let Some(span) = span
                            && count != 0
                        {
                            let group = query.apart.group(&key.group);
                            let key = (span, group, key.step_name.clone(), key.fingerprint.clone());
                            *sums.entry(key).or_default() += count;
                        }
                    }
                })
                .await?;
        }
        let tally = |((span, group, step_name, fingerprint), count)| FailureTally {
            span,
            group,
            step_name,
            fingerprint,
            count,
        };
        let mut tallies: Vec<FailureTally> = sums.into_iter().map(tally).collect();
        tallies.sort_by(|a, b| {
            (a.span, -a.count, &a.group, &a.step_name, &a.fingerprint).cmp(&(
                b.span,
                -b.count,
                &b.group,
                &b.step_name,
                &b.fingerprint,
            ))
        });
        Ok(tallies)
    }

    /// The failed steps of these executions, read from the steps themselves.
    pub async fn failed_steps(
        &self,
        execution_ids: &[String],
    ) -> Result<HashMap<String, Vec<Failure>>> {
        Ok(self.store.failed_steps(execution_ids).await?)
    }

    /// When these errors were first and last seen, and the latest of each.
    pub async fn seen(
        &self,
        fingerprints: &[String],
        selection: &Selection,
        samples: usize,
    ) -> Result<Vec<Seen>> {
        Ok(self.store.seen(fingerprints, selection, samples).await?)
    }
}
