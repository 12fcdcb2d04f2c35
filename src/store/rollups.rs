//! What rollups need of a store. They are derived from the log of changes by one server at a time, which writes what
//! every execution counts as, the rollups, and its position in the log in one transaction: whatever happens, the
//! rollups are the sum of what is written down.

use std::collections::HashMap;

use async_trait::async_trait;
use bson::raw::{RawBsonRef, RawDocument};
use bson::{Bson, Document};

use super::{Cursor, Result};
use crate::domain::Millis;
use crate::domain::access::{App, AppScope};
use crate::domain::digest::Digest;
use crate::domain::rollup::{
    Counted, Deltas, Failure, FailureKey, Group, Level, Outcome, Parts, Rollup, RollupKey, Tally,
};

/// Whose executions a report is about. Within a list one value must match; empty: all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    pub app_ids: Vec<i32>,
    pub app_names: Vec<String>,
    pub sub_app_ids: Vec<i32>,
    pub user_ids: Vec<String>,
    pub scope: AppScope,
}

impl Selection {
    pub fn matches(&self, group: &Group) -> bool {
        fn any<T: PartialEq>(wanted: &[T], actual: Option<&T>) -> bool {
            wanted.is_empty() || actual.is_some_and(|actual| wanted.contains(actual))
        }
        self.scope.holds(App::of_group(group))
            && any(&self.app_ids, group.app_id.as_ref())
            && any(&self.app_names, Some(&group.app_name))
            && any(&self.sub_app_ids, group.sub_app_id.as_ref())
            && any(&self.user_ids, group.user_id.as_ref())
    }
}

/// Rollups of one level, `from` and `until` (exclusive) in its hours or days.
#[derive(Debug, Clone, PartialEq)]
pub struct RollupQuery {
    pub level: Level,
    pub selection: Selection,
    pub from: i64,
    pub until: i64,
    /// Whether those without a time are wanted too.
    pub undated: bool,
    /// Whether sketches are wanted.
    pub durations: bool,
}

/// Counts of failures of one level, `Hour` or `Day`.
#[derive(Debug, Clone, PartialEq)]
pub struct FailureQuery {
    pub level: Level,
    /// Without users.
    pub selection: Selection,
    pub from: i64,
    pub until: i64,
    pub undated: bool,
}

/// What is known of one error.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Seen {
    pub fingerprint: String,
    pub first: Option<Millis>,
    pub last: Option<Millis>,
    /// The latest failures, newest first: execution, step, step name, message.
    pub samples: Vec<(String, Failure)>,
}

/// How far the rollups are, and since when they are exact.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RollupState {
    /// Everything up to here is counted. `None`: they were never built.
    pub cursor: Option<Cursor>,
    /// When they were last built from the records: what another program deleted since is still counted.
    pub exact_since: Option<Millis>,
}

/// Failed executions and steps that one execution counts as, at most: of more steps, those with the lowest ids.
pub const FAILURES_OF_ONE: usize = 1_000;

/// What an execution counted as, and counts as from now on. `None`: nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Recount {
    pub execution_id: String,
    pub before: Option<Counted>,
    pub after: Option<Counted>,
}

/// One transaction.
#[derive(Debug, Clone, Default)]
pub struct RollupBatch {
    /// Each execution once.
    pub recounts: Vec<Recount>,
    /// What is added to rollups and taken away. Those that become empty go.
    pub deltas: Deltas,
    /// Rollups that become this, whatever they were; empty ones go.
    pub rollups: Vec<(RollupKey, Rollup)>,
    pub failures: Vec<(FailureKey, Parts)>,
    /// The new position.
    pub cursor: Option<Cursor>,
    /// The new time since which they are exact.
    pub exact_since: Option<Millis>,
}

/// Rollups, durable.
#[async_trait]
pub trait RollupStore: Send + Sync + 'static {
    async fn state(&self) -> Result<RollupState>;

    /// What these executions count as, of at most a few thousand.
    async fn counted(&self, execution_ids: &[String]) -> Result<HashMap<String, Counted>>;

    /// Executions that count as something, by id, after this one: to find those that are gone.
    async fn counted_after(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Counted)>>;

    /// What the executions count as that started on this day (number since the epoch, UTC; `None`: nobody knows when).
    async fn counted_on(
        &self,
        day: Option<i64>,
        visit: &mut (dyn FnMut(String, Counted) + Send),
    ) -> Result<()>;

    /// The next day after this one on which executions count as something, or of which there is a rollup.
    async fn day_after(&self, day: Option<i64>) -> Result<Option<i64>>;

    /// The failed steps of these executions, at most `FAILURES_OF_ONE - 1` of each.
    async fn failed_steps(&self, execution_ids: &[String])
    -> Result<HashMap<String, Vec<Failure>>>;

    /// The executions that have failed steps, each at least once: those after a key of this answer, and the key to go on from.
    async fn with_failed_steps(
        &self,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<(Vec<String>, Option<Vec<u8>>)>;

    /// Writes a batch, whole or not at all, if `holder` still leads (`Leads`); `false`: it has not,
    /// and nothing is written.
    async fn commit(&self, holder: &str, batch: RollupBatch) -> Result<bool>;

    /// Reads rollups, each handed to `visit` as it comes.
    async fn rollups(
        &self,
        query: &RollupQuery,
        visit: &mut (dyn FnMut(RollupKey, Rollup) + Send),
    ) -> Result<()>;

    /// Reads counts of failures.
    async fn failures(
        &self,
        query: &FailureQuery,
        visit: &mut (dyn FnMut(FailureKey, Parts) + Send),
    ) -> Result<()>;

    /// When these errors were first and last seen in what is kept, and the latest of them, at most `samples` each.
    async fn seen(
        &self,
        fingerprints: &[String],
        selection: &Selection,
        samples: usize,
    ) -> Result<Vec<Seen>>;
}

/// Tells a group from others, the same on every server.
pub fn group_id(group: &Group) -> String {
    group_digest(group).finish()
}

fn group_digest(group: &Group) -> Digest {
    Digest::new("rollup_group")
        .integer("app_id", group.app_id.map(i64::from))
        .text("app_name", Some(&group.app_name))
        .integer("sub_app_id", group.sub_app_id.map(i64::from))
        .text("sub_app_name", group.sub_app_name.as_deref())
        .text("user_id", group.user_id.as_deref())
}

/// Tells a count of failures from others of the same time.
pub fn failure_id(key: &FailureKey) -> String {
    group_digest(&key.group)
        .text("outcome", Some(key.outcome.letter()))
        .text("step_name", key.step_name.as_deref())
        .text("fingerprint", Some(&key.fingerprint))
        .finish()
}

/// Every number in a rollup that is not 0, by its path: part, status, then `n` executions, `t` of them with a duration,
/// `s` the sum of these in milliseconds, or `d` and a bucket of the sketch.
pub fn numbers(rollup: &Rollup) -> Vec<(String, i64)> {
    let mut numbers = Vec::new();
    for (part, tallies) in &rollup.0 {
        for outcome in Outcome::ALL {
            let Tally { executions, timed, duration_sum_ms, durations } = tallies.of(outcome);
            let path = format!("{part}.{}", outcome.letter());
            let plain = [("n", executions), ("t", timed), ("s", duration_sum_ms)];
            let plain = plain.into_iter().filter(|(_, number)| **number != 0);
            numbers.extend(plain.map(|(name, number)| (format!("{path}.{name}"), *number)));
            let buckets = durations.iter();
            numbers.extend(buckets.map(|(bucket, times)| (format!("{path}.d.{bucket}"), times)));
        }
    }
    numbers
}

/// A rollup as a document: `numbers`, nested.
pub fn rollup_document(rollup: &Rollup) -> Document {
    let mut document = Document::new();
    for (path, number) in numbers(rollup) {
        let mut at = &mut document;
        let mut names = path.split('.').peekable();
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                at.insert(name, number);
                break;
            }
            let entry = at.entry(name.to_owned()).or_insert_with(|| Bson::from(Document::new()));
            match entry {
                Bson::Document(inner) => at = inner,
                // No number's path begins with that of another.
                _ => break,
            }
        }
    }
    document
}

fn integer(value: RawBsonRef<'_>) -> i64 {
    match value {
        RawBsonRef::Int32(number) => i64::from(number),
        RawBsonRef::Int64(number) => number,
        _ => 0,
    }
}

/// Reads what `rollup_document` wrote. What it does not know it leaves out.
pub fn read_rollup(document: &RawDocument, durations: bool) -> Rollup {
    let mut rollup = Rollup::default();
    for (part, statuses) in document.iter().flatten() {
        let (Ok(part), Some(statuses)) = (part.as_str().parse(), statuses.as_document()) else {
            continue;
        };
        let tallies = rollup.part(part);
        for (letter, tally) in statuses.iter().flatten() {
            let (Some(outcome), Some(numbers)) =
                (Outcome::parse(letter.as_str()), tally.as_document())
            else {
                continue;
            };
            let tally = tallies.of_mut(outcome);
            for (name, value) in numbers.iter().flatten() {
                match (name.as_str(), value) {
                    ("n", value) => tally.executions = integer(value),
                    ("t", value) => tally.timed = integer(value),
                    ("s", value) => tally.duration_sum_ms = integer(value),
                    ("d", RawBsonRef::Document(buckets)) if durations => {
                        for (bucket, times) in buckets.iter().flatten() {
                            if let Ok(bucket) = bucket.as_str().parse() {
                                tally.durations.add(bucket, integer(times));
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    rollup.settle();
    rollup
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::rollup::CountsAs;

    #[test]
    fn a_rollup_comes_back_as_it_was_written() {
        let mut rollup = Rollup::default();
        for (part, outcome, duration_ms) in [
            (0, Outcome::Completed, Some(0)),
            (0, Outcome::Completed, Some(1 << 45)),
            (95, Outcome::Running, None),
            (3, Outcome::Failed, Some(777)),
        ] {
            let group = Group::default();
            let counts_as = CountsAs { group, quarter: None, outcome, duration_ms };
            rollup.part(part).count(&counts_as, 1);
        }
        let bytes = bson::RawDocumentBuf::try_from(&rollup_document(&rollup)).unwrap();
        assert_eq!(read_rollup(&bytes, true), rollup);
        let without = read_rollup(&bytes, false);
        assert_eq!(without.executions(), 4);
        assert!(without.0.values().all(|part| part.sum(&[]).durations.is_empty()));
    }
}
