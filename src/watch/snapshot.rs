//! The current state, page by page as the watcher reads: an execution, its steps by id, its artifacts, the next
//! execution.
//!
//! A watcher that does not read keeps what was read for it, so pages are as small as their records are large.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::subscriber::Scope;
use crate::clock::Clock;
use crate::domain::query::{
    ArtifactKey, ArtifactQuery, ExecutionFilter, ExecutionKey, ExecutionOrder, ExecutionQuery,
    StepQuery,
};
use crate::domain::{Artifact, Execution, ExecutionStatus, Millis, Step, StepStatus};
use crate::store::{ChangeLog, Changed, Cursor, Record, RecordKey, Result, Store};

/// Which current state comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshot {
    All,
    Active,
    None,
}

/// Bytes of records read at a time, roughly.
const PAGE_BYTES: usize = 24 * 1024;
/// Records of the first page, and of the largest.
const FIRST_PAGE: usize = 16;
const LARGEST_PAGE: usize = 250;
/// Records examined for one page.
const EXAMINE: usize = 5000;

/// How many records to read next, learned from those that were read.
#[derive(Debug)]
struct Page(usize);

impl Page {
    fn learn<'a>(&mut self, weights: impl Iterator<Item = usize> + 'a) {
        let (records, bytes) = weights.fold((0, 0), |(n, sum), weight| (n + 1, sum + weight));
        let Some(typical): Option<usize> = bytes.checked_div(records) else { return };
        let fitting = PAGE_BYTES / typical.max(1);
        self.0 = fitting.clamp(1, LARGEST_PAGE.min(self.0 * 4));
    }
}

/// What is read of which records.
#[derive(Debug)]
pub struct Plan {
    pub scope: Scope,
    pub snapshot: Snapshot,
    /// All steps are wanted, or only the running ones, or none.
    pub steps: Steps,
    pub artifacts: bool,
    pub payloads: bool,
    /// Only what may have changed since this moment, and what is running: the watcher has the rest.
    pub since: Option<Millis>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steps {
    All,
    /// To know when the execution is over.
    Running,
    None,
}

/// How far the snapshot is.
#[derive(Debug)]
pub struct Reading {
    clock: Arc<dyn Clock>,
    plan: Plan,
    /// Where the stream goes on after it.
    pub attached_at: Cursor,
    /// It is sent because history is gone, to a watcher that had a state before.
    pub again: bool,
    /// After which execution to go on; `None` when all pages were read.
    next_page: Option<Option<ExecutionKey>>,
    executions: VecDeque<Execution>,
    /// Of the execution whose steps are being sent: its id, and after which step to go on.
    steps_of: Option<(String, Option<i32>)>,
    /// Steps read without payloads that are to be sent with them.
    steps: VecDeque<Step>,
    /// Of the execution whose artifacts come next: its id, and after which artifact to go on.
    artifacts_of: Option<(String, Option<ArtifactKey>)>,
    executions_page: Page,
    steps_page: Page,
    payloads_page: Page,
    artifacts_page: Page,
}

/// A piece of the snapshot, in order. `None`: that was all.
pub type Piece = Option<(Vec<Record>, Instant)>;

impl Reading {
    pub fn new(
        clock: Arc<dyn Clock>,
        plan: Plan,
        attached_at: Cursor,
        again: bool,
        first: Option<Execution>,
    ) -> Self {
        let by_filter = matches!(plan.scope, Scope::Filter(_));
        let pages = by_filter && (again || plan.snapshot != Snapshot::None);
        Reading {
            clock,
            plan,
            attached_at,
            again,
            next_page: pages.then_some(None),
            executions: first.into_iter().collect(),
            steps_of: None,
            steps: VecDeque::new(),
            artifacts_of: None,
            executions_page: Page(FIRST_PAGE),
            steps_page: Page(FIRST_PAGE),
            payloads_page: Page(1),
            artifacts_page: Page(FIRST_PAGE),
        }
    }

    /// Reads on. Nothing is lost when it fails: the same piece is read again.
    pub async fn next(&mut self, store: &dyn Store, log: &dyn ChangeLog) -> Result<Piece> {
        loop {
            if !self.steps.is_empty() {
                return self.payloads(log).await.map(Some);
            }
            if let Some((execution_id, after)) = self.steps_of.clone() {
                if let Some(piece) = self.steps(store, execution_id, after).await? {
                    return Ok(Some(piece));
                }
                continue;
            }
            if let Some((execution_id, after)) = self.artifacts_of.clone() {
                if let Some(piece) = self.artifacts(store, execution_id, after).await? {
                    return Ok(Some(piece));
                }
                continue;
            }
            if let Some(execution) = self.executions.pop_front() {
                if self.plan.steps != Steps::None {
                    self.steps_of = Some((execution.execution_id.clone(), None));
                }
                if self.plan.artifacts {
                    self.artifacts_of = Some((execution.execution_id.clone(), None));
                }
                if self.is_old(&execution) {
                    continue;
                }
                let record = Record::Execution(Arc::new(execution));
                return Ok(Some((vec![record], self.clock.instant())));
            }
            let Some(after) = self.next_page.clone() else { return Ok(None) };
            self.executions(store, after).await?;
        }
    }

    fn is_old(&self, execution: &Execution) -> bool {
        let running = execution.status == Some(ExecutionStatus::Running);
        let ours = execution.revision > 0;
        !running && ours && self.plan.since.is_some_and(|since| execution.revision / 1000 < since)
    }

    async fn executions(&mut self, store: &dyn Store, after: Option<ExecutionKey>) -> Result<()> {
        let Scope::Filter(filter) = &self.plan.scope else {
            self.next_page = None;
            return Ok(());
        };
        let mut filter: ExecutionFilter = filter.clone();
        if self.plan.snapshot == Snapshot::Active && !self.again {
            let running = ExecutionStatus::Running;
            if !filter.statuses.is_empty() && !filter.statuses.contains(&running) {
                // Running and, by the filter, not running: nothing.
                self.next_page = None;
                return Ok(());
            }
            filter.statuses = vec![running];
        }
        let query = ExecutionQuery {
            filter,
            order: ExecutionOrder::StartedAtDesc,
            after,
            limit: self.executions_page.0,
            examine: EXAMINE,
        };
        let page = store.executions(&query).await?;
        self.executions_page.learn(page.records.iter().map(Execution::weight));
        self.executions = page.records.into();
        self.next_page = page.next.map(Some);
        Ok(())
    }

    async fn steps(
        &mut self,
        store: &dyn Store,
        execution_id: String,
        after: Option<i32>,
    ) -> Result<Piece> {
        let query = StepQuery {
            execution_id: execution_id.clone(),
            statuses: match self.plan.steps {
                Steps::All => Vec::new(),
                Steps::Running | Steps::None => vec![StepStatus::Running],
            },
            after,
            limit: self.steps_page.0,
            examine: EXAMINE,
            payloads: None,
        };
        let page = store.steps(&query).await?;
        let read_at = self.clock.instant();
        self.steps_of = page.next.map(|next| (execution_id, Some(next)));
        self.steps_page.learn(page.records.iter().map(Step::weight));
        if self.plan.payloads && self.plan.steps == Steps::All {
            self.steps = page.records.into();
            return Ok(None);
        }
        if page.records.is_empty() {
            return Ok(None);
        }
        let steps = page.records.into_iter().map(|step| Record::Step(Arc::new(step))).collect();
        Ok(Some((steps, read_at)))
    }

    async fn artifacts(
        &mut self,
        store: &dyn Store,
        execution_id: String,
        after: Option<ArtifactKey>,
    ) -> Result<Piece> {
        let limit = self.artifacts_page.0;
        let query = ArtifactQuery { execution_id: execution_id.clone(), after, limit };
        let page = store.artifacts(&query).await?;
        let read_at = self.clock.instant();
        self.artifacts_of = page.next.map(|next| (execution_id, Some(next)));
        self.artifacts_page.learn(page.records.iter().map(Artifact::weight));
        if page.records.is_empty() {
            return Ok(None);
        }
        let artifacts = page.records.into_iter();
        Ok(Some((artifacts.map(|found| Record::Artifact(Arc::new(found))).collect(), read_at)))
    }

    async fn payloads(&mut self, log: &dyn ChangeLog) -> Result<(Vec<Record>, Instant)> {
        let count = self.payloads_page.0.min(self.steps.len());
        let wanted: Vec<Changed> = self
            .steps
            .iter()
            .take(count)
            .map(|step| Changed::Record(RecordKey::step(&step.execution_id, step.step_id)))
            .collect();
        let loaded = log.load(&wanted, true).await?;
        let read_at = self.clock.instant();
        self.steps.drain(..count);
        let mut records: Vec<Record> = loaded.into_iter().map(|(_, record)| record).collect();
        records.sort_by_key(|record| record.key().step_id);
        self.payloads_page.learn(records.iter().map(Record::weight));
        Ok((records, read_at))
    }
}

/// The running steps of an execution.
pub async fn running_steps(store: &dyn Store, execution_id: &str) -> Result<Vec<i32>> {
    let mut running = Vec::new();
    let mut after = None;
    loop {
        let query = StepQuery {
            execution_id: execution_id.to_owned(),
            statuses: vec![StepStatus::Running],
            after,
            limit: LARGEST_PAGE,
            examine: EXAMINE,
            payloads: None,
        };
        let page = store.steps(&query).await?;
        running.extend(page.records.iter().map(|step| step.step_id));
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(running),
        }
    }
}
