//! Rollups: what reports are made of, so that they need not read executions.
//!
//! Every execution counts once, in the hour in which it started, under its app, part and user and with its present
//! status; every failure (a failed execution or step) once under the same and its fingerprint. What an execution
//! counts as right now is written down beside the rollups (`Counted`), so that the next change of it takes exactly
//! that away again, however often a change is taken in.
//!
//! An hour keeps its quarters apart: the offset of every time zone in use is a multiple of 15 minutes, so the days of
//! all of them begin between two quarters.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use hdrhistogram::Histogram;

use super::{Execution, ExecutionStatus, Millis};

/// Changes with what executions count as by these rules: the buckets of durations, the fingerprints of errors. Rollups
/// made by other rules are made anew.
pub const RULES: i64 = 4;

/// A quarter of an hour.
pub const QUARTER_MS: i64 = 15 * 60 * 1000;
pub const QUARTERS_OF_HOUR: i64 = 4;
pub const QUARTERS_OF_DAY: i64 = 96;

/// Significant decimal digits of a duration in a sketch: buckets are narrower than 1/100 of their values.
const DIGITS: u8 = 2;
/// Longer durations count as this: some 35,000 years.
const LONGEST_MS: u64 = 1 << 50;

/// Whose executions are counted together. In answers, what was not asked apart is `None` or empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Group {
    pub app_id: Option<i32>,
    pub app_name: String,
    pub sub_app_id: Option<i32>,
    pub sub_app_name: Option<String>,
    pub user_id: Option<String>,
}

impl Group {
    pub fn of(execution: &Execution) -> Group {
        Group {
            app_id: execution.app_id,
            app_name: execution.app_name.clone(),
            sub_app_id: execution.sub_app_id,
            sub_app_name: execution.sub_app_name.clone(),
            user_id: execution.user_id.clone(),
        }
    }

    pub fn without_user(&self) -> Group {
        Group { user_id: None, ..self.clone() }
    }
}

/// The status under which an execution counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    Running,
    Completed,
    Failed,
    Cancelled,
    /// A word of another program that is no status, or none.
    Unknown,
}

impl Outcome {
    pub const ALL: [Outcome; 5] = [
        Outcome::Running,
        Outcome::Completed,
        Outcome::Failed,
        Outcome::Cancelled,
        Outcome::Unknown,
    ];

    pub fn of(status: Option<ExecutionStatus>) -> Outcome {
        match status {
            Some(ExecutionStatus::Running) => Outcome::Running,
            Some(ExecutionStatus::Completed) => Outcome::Completed,
            Some(ExecutionStatus::Failed) => Outcome::Failed,
            Some(ExecutionStatus::Cancelled) => Outcome::Cancelled,
            None => Outcome::Unknown,
        }
    }

    /// One letter, as it is stored.
    pub fn letter(self) -> &'static str {
        match self {
            Outcome::Running => "r",
            Outcome::Completed => "c",
            Outcome::Failed => "f",
            Outcome::Cancelled => "x",
            Outcome::Unknown => "u",
        }
    }

    pub fn parse(letter: &str) -> Option<Outcome> {
        Outcome::ALL.into_iter().find(|outcome| outcome.letter() == letter)
    }
}

/// A sketch of durations: how many fell into each bucket of an HdrHistogram with two significant digits
/// (<https://github.com/HdrHistogram/HdrHistogram>). Sketches add up and subtract exactly; a quantile read off one is
/// within 1 % of a duration at that rank, and exact below 256 ms.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Durations(BTreeMap<u64, i64>);

fn buckets() -> &'static Histogram<u64> {
    static BUCKETS: OnceLock<Histogram<u64>> = OnceLock::new();
    BUCKETS.get_or_init(|| {
        Histogram::new_with_bounds(1, LONGEST_MS, DIGITS)
            .expect("the bounds are constants that the crate documents as valid")
    })
}

impl Durations {
    /// The bucket of a duration: the least duration that is in it.
    pub fn bucket(duration_ms: i64) -> u64 {
        let value = u64::try_from(duration_ms).unwrap_or(0).min(LONGEST_MS);
        buckets().lowest_equivalent(value)
    }

    /// `times` durations more, or fewer.
    pub fn add(&mut self, bucket: u64, times: i64) {
        let count = self.0.entry(bucket).or_default();
        *count += times;
        if *count == 0 {
            self.0.remove(&bucket);
        }
    }

    pub fn merge(&mut self, other: &Durations) {
        for (bucket, times) in &other.0 {
            self.add(*bucket, *times);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Buckets and how many durations are in each.
    pub fn iter(&self) -> impl Iterator<Item = (u64, i64)> + '_ {
        self.0.iter().map(|(bucket, times)| (*bucket, *times))
    }

    /// How many durations there are.
    pub fn count(&self) -> i64 {
        self.0.values().sum()
    }

    /// The duration at a quantile from 0 to 1: the middle of the bucket of the one at that rank (nearest rank).
    /// `None`: there are none.
    pub fn quantile(&self, quantile: f64) -> Option<i64> {
        let total = self.count();
        if total <= 0 {
            return None;
        }
        self.at_rank(((quantile.clamp(0.0, 1.0) * total as f64).ceil() as i64).clamp(1, total))
    }

    /// The duration at a rank from 1: the middle of its bucket.
    pub fn at_rank(&self, rank: i64) -> Option<i64> {
        let mut seen = 0;
        for (bucket, times) in &self.0 {
            seen += times;
            if seen >= rank {
                return i64::try_from(buckets().median_equivalent(*bucket)).ok();
            }
        }
        None
    }
}

/// Executions of one status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tally {
    pub executions: i64,
    /// Those of them with a duration.
    pub timed: i64,
    pub duration_sum_ms: i64,
    /// Of those with a duration.
    pub durations: Durations,
}

impl Tally {
    pub fn is_empty(&self) -> bool {
        *self == Tally::default()
    }

    pub fn merge(&mut self, other: &Tally) {
        self.executions += other.executions;
        self.timed += other.timed;
        self.duration_sum_ms = self.duration_sum_ms.saturating_add(other.duration_sum_ms);
        self.durations.merge(&other.durations);
    }

    pub fn mean_ms(&self) -> Option<f64> {
        (self.timed > 0).then(|| self.duration_sum_ms as f64 / self.timed as f64)
    }
}

/// Executions by status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tallies([Tally; 5]);

impl Tallies {
    pub fn of(&self, outcome: Outcome) -> &Tally {
        &self.0[outcome as usize]
    }

    pub fn of_mut(&mut self, outcome: Outcome) -> &mut Tally {
        &mut self.0[outcome as usize]
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Tally::is_empty)
    }

    pub fn merge(&mut self, other: &Tallies) {
        for outcome in Outcome::ALL {
            self.of_mut(outcome).merge(other.of(outcome));
        }
    }

    /// Adds what one execution counts as, `times` times: 1, or -1 to take it away.
    pub fn count(&mut self, counts_as: &CountsAs, times: i64) {
        let tally = self.of_mut(counts_as.outcome);
        tally.executions += times;
        if let Some(duration) = counts_as.duration_ms {
            tally.timed += times;
            tally.duration_sum_ms =
                tally.duration_sum_ms.saturating_add(duration.saturating_mul(times));
            tally.durations.add(Durations::bucket(duration), times);
        }
    }

    /// All of these statuses together; empty: of all.
    pub fn sum(&self, outcomes: &[Outcome]) -> Tally {
        let mut sum = Tally::default();
        for outcome in Outcome::ALL {
            if outcomes.is_empty() || outcomes.contains(&outcome) {
                sum.merge(self.of(outcome));
            }
        }
        sum
    }
}

/// What an execution counts as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountsAs {
    pub group: Group,
    /// Number of the quarter of an hour in which it started, since the epoch. `None`: nobody knows.
    pub quarter: Option<i64>,
    pub outcome: Outcome,
    pub duration_ms: Option<i64>,
}

/// The quarter of an hour of a time, since the epoch.
pub fn quarter(at: Millis) -> i64 {
    at.div_euclid(QUARTER_MS)
}

/// The longest duration that counts, some 35 years: sums of billions of them stay numbers.
pub const LONGEST_COUNTED_MS: i64 = 1 << 40;

impl CountsAs {
    pub fn of(execution: &Execution) -> CountsAs {
        CountsAs {
            group: Group::of(execution),
            quarter: execution.started_at.map(quarter),
            outcome: Outcome::of(execution.status),
            duration_ms: execution
                .duration_ms
                .map(|duration| duration.clamp(0, LONGEST_COUNTED_MS)),
        }
    }
}

/// A failed execution, or a failed step of an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// `None`: the execution itself.
    pub step_id: Option<i32>,
    pub step_name: Option<String>,
    pub failed_at: Option<Millis>,
    /// Which errors are the same one: `fingerprint::of`.
    pub fingerprint: String,
    /// The message, cut.
    pub message: String,
}

/// All that an execution counts as: it is written down with the rollups, in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    pub counts_as: CountsAs,
    /// By step; the execution's own first.
    pub failures: Vec<Failure>,
}

/// How fine a rollup is, and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Quarters of an hour apart.
    Hour,
    /// As a whole.
    Day,
    /// Quarters of an hour apart; hardly any user has more than a few.
    UserDay,
}

impl Level {
    pub const ALL: [Level; 3] = [Level::Hour, Level::Day, Level::UserDay];

    /// As it is stored.
    pub fn word(self) -> &'static str {
        match self {
            Level::Hour => "hour",
            Level::Day => "day",
            Level::UserDay => "user_day",
        }
    }

    pub fn parse(word: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.word() == word)
    }

    /// How long a rollup is.
    pub fn quarters(self) -> i64 {
        match self {
            Level::Hour => QUARTERS_OF_HOUR,
            Level::Day | Level::UserDay => QUARTERS_OF_DAY,
        }
    }

    /// Whether users are counted apart.
    pub fn by_user(self) -> bool {
        self == Level::UserDay
    }

    /// Which rollup a quarter of an hour belongs to, and which part of it.
    pub fn slot(self, quarter: Option<i64>) -> (Option<i64>, u8) {
        let at = quarter.map(|quarter| quarter.div_euclid(self.quarters()));
        let part = match quarter {
            Some(quarter) if self != Level::Day => quarter.rem_euclid(self.quarters()),
            _ => 0,
        };
        // Below 96.
        (at, part as u8)
    }

    /// The quarter of an hour in which a part of a rollup begins.
    pub fn quarter(self, at: i64, part: u8) -> i64 {
        at.saturating_mul(self.quarters()).saturating_add(i64::from(part))
    }
}

/// Which rollup.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RollupKey {
    pub level: Level,
    /// Number of the hour or day since the epoch, UTC. `None`: executions without a start time.
    pub at: Option<i64>,
    pub group: Group,
}

/// One rollup, or a change of one: its parts, as far as anything is in them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rollup(pub BTreeMap<u8, Tallies>);

impl Rollup {
    pub fn is_empty(&self) -> bool {
        self.0.values().all(Tallies::is_empty)
    }

    pub fn part(&mut self, part: u8) -> &mut Tallies {
        self.0.entry(part).or_default()
    }

    /// Leaves out parts that are empty.
    pub fn settle(&mut self) {
        self.0.retain(|_, tallies| !tallies.is_empty());
    }

    pub fn merge(&mut self, other: &Rollup) {
        for (part, tallies) in &other.0 {
            self.part(*part).merge(tallies);
        }
    }

    /// Executions in it.
    pub fn executions(&self) -> i64 {
        let of =
            |tallies: &Tallies| -> i64 { tallies.0.iter().map(|tally| tally.executions).sum() };
        self.0.values().map(of).sum()
    }
}

/// Which count of failures. Failures are counted by app and part, not by user.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FailureKey {
    /// `Hour` (with quarters apart) or `Day`.
    pub level: Level,
    pub at: Option<i64>,
    /// Without a user.
    pub group: Group,
    /// Of the execution.
    pub outcome: Outcome,
    /// `None`: executions failed, not steps.
    pub step_name: Option<String>,
    pub fingerprint: String,
}

/// What a batch of changes adds to the rollups and takes away.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Deltas {
    pub rollups: HashMap<RollupKey, Rollup>,
    pub failures: HashMap<FailureKey, Parts>,
}

/// Failures by part of their hour; of a day only the first counts.
pub type Parts = [i64; 4];

impl Deltas {
    /// What changes when an execution that counted as `before` counts as `after`.
    pub fn replace(&mut self, before: Option<&Counted>, after: Option<&Counted>) {
        if before == after {
            return;
        }
        if let Some(before) = before {
            self.add(before, -1);
        }
        if let Some(after) = after {
            self.add(after, 1);
        }
    }

    /// Adds all that an execution counts as.
    pub fn add(&mut self, counted: &Counted, times: i64) {
        let counts_as = &counted.counts_as;
        for level in Level::ALL {
            let (at, part) = level.slot(counts_as.quarter);
            let group = if level.by_user() {
                counts_as.group.clone()
            } else {
                counts_as.group.without_user()
            };
            let rollup = self.rollups.entry(RollupKey { level, at, group }).or_default();
            rollup.part(part).count(counts_as, times);
        }
        for failure in &counted.failures {
            for level in [Level::Hour, Level::Day] {
                let (at, part) = level.slot(counts_as.quarter);
                let key = FailureKey {
                    level,
                    at,
                    group: counts_as.group.without_user(),
                    outcome: counts_as.outcome,
                    step_name: failure.step_name.clone(),
                    fingerprint: failure.fingerprint.clone(),
                };
                self.failures.entry(key).or_default()[usize::from(part)] += times;
            }
        }
    }

    /// Leaves out what adds up to nothing.
    pub fn settle(&mut self) {
        self.rollups.retain(|_, rollup| {
            rollup.settle();
            !rollup.is_empty()
        });
        self.failures.retain(|_, parts| parts.iter().any(|count| *count != 0));
    }
}

/// Quarters of an hour, `until` exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub from: i64,
    pub until: i64,
}

/// Rollups of one level that lie in a span, `from` and `until` (exclusive) in hours or days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    pub days: bool,
    pub from: i64,
    pub until: i64,
}

impl Span {
    /// The whole of time.
    pub const ALL: Span = Span { from: -(QUARTERS_OF_DAY << 40), until: QUARTERS_OF_DAY << 40 };

    /// The fewest rollups that cover the span: whole days where it has some, hours around them. Hours at its ends
    /// may reach beyond it, by quarters.
    pub fn stretches(self) -> Vec<Stretch> {
        let Span { from, until } = self;
        if from >= until {
            return Vec::new();
        }
        let ceil = |quarter: i64, of: i64| -(-quarter).div_euclid(of);
        let hours = (from.div_euclid(QUARTERS_OF_HOUR), ceil(until, QUARTERS_OF_HOUR));
        let days = (ceil(from, QUARTERS_OF_DAY), until.div_euclid(QUARTERS_OF_DAY));
        let hour = |from: i64, until: i64| Stretch { days: false, from, until };
        if days.0 >= days.1 {
            return vec![hour(hours.0, hours.1)];
        }
        let around = [
            hour(hours.0, days.0.saturating_mul(24)),
            Stretch { days: true, from: days.0, until: days.1 },
            hour(days.1.saturating_mul(24), hours.1),
        ];
        around.into_iter().filter(|stretch| stretch.from < stretch.until).collect()
    }

    /// Whether a part of an hour's rollup is in the span.
    pub fn has(self, hour: i64, part: u8) -> bool {
        (self.from..self.until).contains(&Level::Hour.quarter(hour, part))
    }

    /// The days that cover the span.
    pub fn days(self) -> Stretch {
        let from = self.from.div_euclid(QUARTERS_OF_DAY);
        Stretch { days: true, from, until: -(-self.until).div_euclid(QUARTERS_OF_DAY) }
    }
}

#[cfg(test)]
#[path = "tests/rollup.rs"]
mod tests;
