//! What retention needs of a store: records by age, and deletes that decide again whether they may. The right to be
//! the only one at it is a lead (`leads`).

use std::sync::Arc;

use async_trait::async_trait;

use super::Result;
use crate::domain::Millis;
use crate::domain::query::Page;
use crate::domain::retention::{Kind, Owner, Policy};

/// Names the lead that a run of retention has.
pub const LEAD: &str = "retention";

/// A record as retention sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Aged {
    /// How the store finds it again.
    pub id: Vec<u8>,
    pub stored_at: Millis,
    /// The execution to which it belongs, or that it is. `None`: there is none.
    pub owner: Option<Owner>,
    /// Size of an artifact's bytes; 0 for everything else.
    pub bytes: i64,
}

/// Where a record stands in the order of age: bytes of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgeKey(pub Vec<u8>);

/// What was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removed {
    pub executions: u64,
    pub steps: u64,
    pub artifacts: u64,
    /// Size of the artifacts.
    pub artifact_bytes: i64,
    /// Points of metrics.
    pub points: u64,
    /// Uploads that were under way.
    pub uploads: u64,
}

impl Removed {
    pub fn add(&mut self, other: &Removed) {
        self.executions += other.executions;
        self.steps += other.steps;
        self.artifacts += other.artifacts;
        self.artifact_bytes = self.artifact_bytes.saturating_add(other.artifact_bytes);
        self.points += other.points;
        self.uploads += other.uploads;
    }
}

/// What became of one piece of a removal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Piece {
    /// Steps, artifacts and points.
    pub removed: Removed,
    /// Executions of which something is left.
    pub left: Vec<String>,
}

/// A store whose old records can be deleted.
#[async_trait]
pub trait RetentionStore: Send + Sync + 'static {
    /// Records of a kind in the order in which they were stored, of at most `limit` that are looked at. What is
    /// marked as deleted already, or belongs to an execution that is, is left out; so is what has no age.
    async fn by_age(
        &self,
        kind: Kind,
        after: Option<&AgeKey>,
        limit: usize,
    ) -> Result<Page<Aged, AgeKey>>;

    /// Marks those of these executions as deleted that the policy still does not keep in the very moment, as a
    /// Delete does: the answer is their ids, for `remove_piece`. Whoever pins, revives or changes one just then
    /// wins.
    async fn expire_executions(
        &self,
        records: Vec<Aged>,
        policy: Arc<Policy>,
        now: Millis,
    ) -> Result<Vec<String>>;

    /// Deletes those of these steps or artifacts (which it marks, for the sweep of their bytes) that the policy
    /// still does not keep in the very moment: an execution that is pinned or revived first keeps them. Watchers
    /// of the execution are told. May leave some to the next run.
    async fn expire_parts(
        &self,
        kind: Kind,
        records: Vec<Aged>,
        policy: Arc<Policy>,
        now: Millis,
    ) -> Result<Removed>;

    /// Takes a bounded piece of what these executions have, which are marked as deleted: their steps and artifacts,
    /// and themselves when nothing else is left. `Store::remove` is this until nothing is left.
    async fn remove_piece(&self, execution_ids: Vec<String>) -> Result<Piece>;

    /// Something that is another once anybody else, another server or program, has stored an execution or a step.
    async fn newest(&self) -> Result<Vec<u8>>;

    /// How many steps, artifacts and points these executions have.
    async fn weigh(&self, execution_ids: &[String]) -> Result<Removed>;

    /// The time of the oldest point of metrics there is, of whatever execution.
    async fn oldest_point(&self) -> Result<Option<Millis>>;
}
