//! What rollups need of a store. They are derived from the log of changes by one server at a time, which writes what
//! every execution counts as, the rollups, and its position in the log in one transaction: whatever happens, the
//! rollups are the sum of what is written down.

use std::collections::HashMap;

use async_trait::async_trait;

use super::{Cursor, Result};
use crate::domain::Millis;
use crate::domain::rollup::{
    Counted, Deltas, Failure, FailureKey, Group, Level, Rollup, RollupKey,
};

/// Whose executions a report is about. Within a list one value must match; empty: all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    pub app_ids: Vec<i32>,
    pub app_names: Vec<String>,
    pub sub_app_ids: Vec<i32>,
    pub user_ids: Vec<String>,
}

impl Selection {
    pub fn matches(&self, group: &Group) -> bool {
        fn any<T: PartialEq>(wanted: &[T], actual: Option<&T>) -> bool {
            wanted.is_empty() || actual.is_some_and(|actual| wanted.contains(actual))
        }
        any(&self.app_ids, group.app_id.as_ref())
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

/// Which rollups exist, with what they hold.
pub type Rollups = Vec<(RollupKey, Rollup)>;
pub type FailureCounts = Vec<(FailureKey, [i64; 4])>;

/// One transaction.
#[derive(Debug, Clone, Default)]
pub struct RollupBatch {
    /// What executions count as from now on. `None`: nothing.
    pub counted: Vec<(String, Option<Counted>)>,
    /// What this adds and takes away. Rollups that become empty go.
    pub deltas: Deltas,
    /// The new position.
    pub cursor: Option<Cursor>,
    /// The new time since which they are exact.
    pub exact_since: Option<Millis>,
}

/// Rollups, durable.
#[async_trait]
pub trait RollupStore: Send + Sync + 'static {
    async fn state(&self) -> Result<RollupState>;

    /// What these executions count as, of at most a few hundred.
    async fn counted(&self, execution_ids: &[String]) -> Result<HashMap<String, Counted>>;

    /// Executions that count as something, by id, after this one: to find those that are gone.
    async fn counted_after(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Counted)>>;

    /// The failed steps of these executions.
    async fn failed_steps(&self, execution_ids: &[String])
    -> Result<HashMap<String, Vec<Failure>>>;

    /// Writes a batch, whole or not at all, if `holder` still has the right to (`Store::lead`); `false`: it has not,
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
        visit: &mut (dyn FnMut(FailureKey, [i64; 4]) + Send),
    ) -> Result<()>;

    /// When these errors were first and last seen in what is kept, and the latest of them, at most `samples` each.
    async fn seen(
        &self,
        fingerprints: &[String],
        selection: &Selection,
        samples: usize,
    ) -> Result<Vec<Seen>>;
}
