//! A store as seen from outside: how long each operation took and how it ended. Decides nothing.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use metrics::{Counter, Histogram, counter, histogram};
use tracing::Instrument as _;

use super::configurations::{ConfigurationStore, Listed, Stored};
use super::{Applied, ChangeLog, Error, Leases, Result, Store, StoreInfo, Write};
use crate::domain::configuration::{ConfigurationQuery, Part, Place, Scope};
use crate::domain::query::{
    ArtifactKey, ArtifactQuery, Count, CountQuery, ExecutionKey, ExecutionQuery, Page, StepCounts,
    StepQuery,
};
use crate::domain::{Artifact, Configuration, Execution, Millis, Step, StepRef};
use crate::telemetry::metrics::{STORE_ERRORS, STORE_OPERATION_SECONDS, WriteMetrics};

/// One operation with its handles.
pub(super) struct Operation {
    name: &'static str,
    /// Runs by the clock, whatever clients do; as a trace it would be noise.
    regular: bool,
    pub(super) seconds: Histogram,
    unavailable: Counter,
    contention: Counter,
    corrupt: Counter,
    failed: Counter,
}

impl Operation {
    pub(super) fn new(name: &'static str) -> Self {
        let errors = |kind| counter!(STORE_ERRORS, "operation" => name, "kind" => kind);
        Operation {
            name,
            regular: matches!(
                name,
                "ping"
                    | "leases"
                    | "sweep"
                    | "arrived_since"
                    | "marked_artifacts"
                    | "idle_uploads"
                    | "retention_lease"
                    | "newest"
            ),
            seconds: histogram!(STORE_OPERATION_SECONDS, "operation" => name),
            unavailable: errors("unavailable"),
            contention: errors("contention"),
            corrupt: errors("corrupt"),
            failed: errors("failed"),
        }
    }

    pub(super) fn failed(&self, error: &Error) {
        match error {
            Error::Unavailable(_) => self.unavailable.increment(1),
            Error::Contention => self.contention.increment(1),
            Error::Corrupt { .. } => self.corrupt.increment(1),
            Error::Failed(_) => self.failed.increment(1),
            // Answers, not failures.
            Error::Refused(_) | Error::CursorExpired | Error::BadCursor | Error::NoLog => {}
        }
    }

    pub(super) async fn run<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let began = Instant::now();
        let span = if self.regular {
            tracing::trace_span!("store", store.operation = self.name)
        } else {
            tracing::debug_span!("store", store.operation = self.name)
        };
        let outcome = operation.instrument(span).await;
        self.seconds.record(began.elapsed().as_secs_f64());
        if let Err(error) = &outcome {
            self.failed(error);
        }
        outcome
    }
}

/// Wraps a store.
pub struct Observed {
    inner: Arc<dyn Store>,
    writes: WriteMetrics,
    apply: Operation,
    execution: Operation,
    step: Operation,
    executions: Operation,
    count_executions: Operation,
    step_counts: Operation,
    steps: Operation,
    artifacts: Operation,
    remove: Operation,
    leases: Operation,
    secret: Operation,
    ping: Operation,
    sweep: Operation,
}

impl Observed {
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Observed {
            inner,
            writes: WriteMetrics::new(),
            apply: Operation::new("apply"),
            execution: Operation::new("execution"),
            step: Operation::new("step"),
            executions: Operation::new("executions"),
            count_executions: Operation::new("count_executions"),
            step_counts: Operation::new("step_counts"),
            steps: Operation::new("steps"),
            artifacts: Operation::new("artifacts"),
            remove: Operation::new("remove"),
            leases: Operation::new("leases"),
            secret: Operation::new("secret"),
            ping: Operation::new("ping"),
            sweep: Operation::new("sweep"),
        }
    }
}

#[async_trait]
impl Store for Observed {
    async fn apply(&self, writes: Vec<Write>) -> Applied {
        let began = Instant::now();
        self.writes.batch_size.record(writes.len() as f64);
        let span =
            tracing::debug_span!("store", store.operation = "apply", store.writes = writes.len());
        let applied = self.inner.apply(writes).instrument(span).await;
        let seconds = began.elapsed().as_secs_f64();
        self.writes.batch_seconds.record(seconds);
        self.apply.seconds.record(seconds);
        let mut good = 0;
        for outcome in &applied.outcomes {
            match outcome {
                Ok(_) => good += 1,
                Err(error) => {
                    self.apply.failed(error);
                    match error {
                        Error::Refused(_) => self.writes.refused.increment(1),
                        Error::Unavailable(_) => self.writes.unavailable.increment(1),
                        Error::Contention => self.writes.contention.increment(1),
                        _ => self.writes.failed.increment(1),
                    }
                }
            }
        }
        self.writes.applied.increment(good);
        applied
    }

    fn lanes(&self) -> usize {
        self.inner.lanes()
    }

    async fn execution(&self, execution_id: &str) -> Result<Option<Execution>> {
        self.execution.run(self.inner.execution(execution_id)).await
    }

    async fn is_being_deleted(&self, execution_id: &str) -> Result<bool> {
        self.execution.run(self.inner.is_being_deleted(execution_id)).await
    }

    async fn step(&self, execution_id: &str, step: &StepRef) -> Result<Option<Step>> {
        self.step.run(self.inner.step(execution_id, step)).await
    }

    async fn executions(&self, query: &ExecutionQuery) -> Result<Page<Execution, ExecutionKey>> {
        self.executions.run(self.inner.executions(query)).await
    }

    async fn count_executions(&self, query: &CountQuery) -> Result<Count> {
        self.count_executions.run(self.inner.count_executions(query)).await
    }

    async fn step_counts(
        &self,
        execution_ids: &[String],
        examine: usize,
    ) -> Result<Vec<StepCounts>> {
        self.step_counts.run(self.inner.step_counts(execution_ids, examine)).await
    }

    async fn steps(&self, query: &StepQuery) -> Result<Page<Step, i32>> {
        self.steps.run(self.inner.steps(query)).await
    }

    async fn artifacts(&self, query: &ArtifactQuery) -> Result<Page<Artifact, ArtifactKey>> {
        self.artifacts.run(self.inner.artifacts(query)).await
    }

    async fn remove(&self, execution_id: &str) -> Result<u64> {
        self.remove.run(self.inner.remove(execution_id)).await
    }

    async fn leases(&self, now: Millis) -> Result<Leases> {
        self.leases.run(self.inner.leases(now)).await
    }

    async fn secret(&self) -> Result<[u8; 32]> {
        self.secret.run(self.inner.secret()).await
    }

    async fn ping(&self) -> Result<()> {
        self.ping.run(self.inner.ping()).await
    }

    fn info(&self) -> StoreInfo {
        self.inner.info()
    }

    fn log(&self) -> Result<Arc<dyn ChangeLog>> {
        self.inner.log()
    }

    async fn sweep(&self) -> Result<()> {
        self.sweep.run(self.inner.sweep()).await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

/// The same for configurations.
pub struct ObservedConfigurations {
    inner: Arc<dyn ConfigurationStore>,
    put: Operation,
    activate: Operation,
    get: Operation,
    list: Operation,
}

impl ObservedConfigurations {
    pub fn new(inner: Arc<dyn ConfigurationStore>) -> Self {
        ObservedConfigurations {
            inner,
            put: Operation::new("put_configuration"),
            activate: Operation::new("activate_configuration"),
            get: Operation::new("configuration"),
            list: Operation::new("configurations"),
        }
    }
}

#[async_trait]
impl ConfigurationStore for ObservedConfigurations {
    async fn put_configuration(&self, record: Configuration) -> Result<Stored> {
        self.put.run(self.inner.put_configuration(record)).await
    }

    async fn activate_configuration(&self, scope: &Scope, version: &str) -> Result<Configuration> {
        self.activate.run(self.inner.activate_configuration(scope, version)).await
    }

    async fn configuration(
        &self,
        scope: &Scope,
        version: Option<&str>,
    ) -> Result<Option<Configuration>> {
        self.get.run(self.inner.configuration(scope, version)).await
    }

    async fn scopes_named(&self, app_name: &str, limit: usize) -> Result<Vec<Part>> {
        self.list.run(self.inner.scopes_named(app_name, limit)).await
    }

    async fn configurations(&self, query: &ConfigurationQuery) -> Result<Page<Listed, Place>> {
        self.list.run(self.inner.configurations(query)).await
    }
}
