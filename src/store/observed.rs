//! A store as seen from outside: how long each operation took and how it ended. Decides nothing.
//!
//! One table per trait lists every method with the operation that it counts as; several methods may be one
//! operation. What a table leaves out does not compile.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt as _;
use metrics::{Counter, Histogram, counter, histogram};
use tracing::Instrument as _;

use super::artifacts::{ArtifactStore, Created, Upload, Usage};
use super::configurations::{ConfigurationStore, Listed, Stored};
use super::inspect::{Facts, IndexCheck, Inspect};
use super::leads::{Claim, Leads};
use super::metrics::{
    Arrived, EachArrived, IntervalKey, IntervalQuery, MetricStore, PointId, PointKey, Recorded,
    Recording, Span,
};
use super::retention::{AgeKey, Aged, Piece, Removed, RetentionStore};
use super::rollups::{
    FailureQuery, RollupBatch, RollupQuery, RollupState, RollupStore, Seen, Selection,
};
use super::search::{CandidateQuery, Candidates, SearchBatch, SearchStore};
use super::{Applied, ChangeLog, Cursor, Error, Lease, Result, Store, StoreInfo, Write};
use crate::clock::Clock;
use crate::domain::configuration::{ConfigurationQuery, Part, Place, Scope};
use crate::domain::execution::SignOfLife;
use crate::domain::query::{
    ArtifactKey, ArtifactQuery, Count, CountQuery, ExecutionKey, ExecutionQuery, Page, StepCounts,
    StepQuery,
};
use crate::domain::retention::{Kind, Policy};
use crate::domain::rollup::{Counted, Failure, FailureKey, Parts, Rollup, RollupKey};
use crate::domain::search::query::Term;
use crate::domain::{
    Artifact, Configuration, Execution, MetricInterval, MetricPoint, Millis, Step, StepRef,
    artifact,
};
use crate::telemetry::metrics::{STORE_ERRORS, STORE_OPERATION_SECONDS, WriteMetrics};

/// Operations that run by the clock, whatever clients do; as traces they would be noise.
const REGULAR: &[&str] = &[
    "arrived_since",
    "idle_uploads",
    "lead",
    "leases",
    "marked_artifacts",
    "newest",
    "ping",
    "rollup_state",
    "search_cursor",
    "sweep",
];

/// One operation with its handles.
struct Operation {
    name: &'static str,
    clock: Arc<dyn Clock>,
    seconds: Histogram,
    unavailable: Counter,
    contention: Counter,
    corrupt: Counter,
    failed: Counter,
}

impl Operation {
    fn new(name: &'static str, clock: Arc<dyn Clock>) -> Self {
        let errors = |kind| counter!(STORE_ERRORS, "operation" => name, "kind" => kind);
        Operation {
            name,
            clock,
            seconds: histogram!(STORE_OPERATION_SECONDS, "operation" => name),
            unavailable: errors("unavailable"),
            contention: errors("contention"),
            corrupt: errors("corrupt"),
            failed: errors("failed"),
        }
    }

    fn failed(&self, error: &Error) {
        match error {
            Error::Unavailable(_) => self.unavailable.increment(1),
            Error::Contention => self.contention.increment(1),
            Error::Corrupt { .. } => self.corrupt.increment(1),
            Error::Failed(_) => self.failed.increment(1),
            // Answers, not failures.
            Error::Refused(_) | Error::CursorExpired | Error::BadCursor | Error::NoLog => {}
        }
    }

    async fn run<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let span = if REGULAR.contains(&self.name) {
            tracing::trace_span!("store", store.operation = self.name)
        } else {
            tracing::debug_span!("store", store.operation = self.name)
        };
        let (outcome, _) = self.timed(operation.instrument(span)).await;
        if let Err(error) = &outcome {
            self.failed(error);
        }
        outcome
    }

    /// The answers to many writes at once, and how long they took.
    async fn run_many<T>(
        &self,
        writes: usize,
        operation: impl Future<Output = T>,
    ) -> (T, Duration) {
        let span =
            tracing::debug_span!("store", store.operation = self.name, store.writes = writes);
        self.timed(operation.instrument(span)).await
    }

    async fn timed<T>(&self, operation: impl Future<Output = T>) -> (T, Duration) {
        let began = self.clock.instant();
        let outcome = operation.await;
        let took = self.clock.elapsed(began);
        self.seconds.record(took.as_secs_f64());
        (outcome, took)
    }
}

/// How long a stream was waited for, told when it ends or is let go.
struct Waited<'a> {
    operation: &'a Operation,
    waited: Duration,
}

impl Waited<'_> {
    fn since(&mut self, began: Instant) {
        self.waited += self.operation.clock.elapsed(began);
    }
}

impl Drop for Waited<'_> {
    fn drop(&mut self) {
        self.operation.seconds.record(self.waited.as_secs_f64());
    }
}

/// Wraps a store in one of its roles.
pub struct Observed<S: ?Sized> {
    inner: Arc<S>,
    /// By name.
    operations: HashMap<&'static str, Operation>,
    writes: WriteMetrics,
}

/// The operations of a role: each method with the name that it counts under.
pub trait Role {
    const TRAIT: &'static str;
    const OPERATIONS: &'static [(&'static str, &'static str)];
}

impl<S: Role + ?Sized> Observed<S> {
    pub fn new(inner: Arc<S>, clock: &Arc<dyn Clock>) -> Self {
        // Made now: a counter that is there from the start shows its first increment as a change.
        let operations = S::OPERATIONS.iter().map(|(_, name)| {
            let operation = Operation::new(name, Arc::clone(clock));
            (*name, operation)
        });
        Observed { inner, operations: operations.collect(), writes: WriteMetrics::new() }
    }

    fn operation(&self, name: &'static str) -> &Operation {
        self.operations.get(name).expect("the table that names it has made it")
    }
}

/// Implements a trait for what wraps it. First what needs more than a line, then a line per method: the operation,
/// the method, its arguments, and what it returns.
macro_rules! observed {
    (
        $role:ident {
            $([$($own:literal $own_method:ident),+] $($code:tt)*)?
        }
        $($name:literal $method:ident($($argument:ident: $type:ty),*) -> $answer:ty;)+
    ) => {
        impl Role for dyn $role {
            const TRAIT: &'static str = stringify!($role);
            const OPERATIONS: &'static [(&'static str, &'static str)] = &[
                $($((stringify!($own_method), $own),)+)?
                $((stringify!($method), $name),)+
            ];
        }

        #[async_trait]
        impl $role for Observed<dyn $role> {
            $($($code)*)?
            $(
                async fn $method(&self, $($argument: $type),*) -> Result<$answer> {
                    self.operation($name).run(self.inner.$method($($argument),*)).await
                }
            )+
        }
    };
}

observed! {
    Store {
        ["apply" apply]

        async fn apply(&self, writes: Vec<Write>) -> Applied {
            let operation = self.operation("apply");
            self.writes.batch_size.record(writes.len() as f64);
            let (applied, took) =
                operation.run_many(writes.len(), self.inner.apply(writes)).await;
            self.writes.batch_seconds.record(took.as_secs_f64());
            let mut good = 0;
            for outcome in &applied.outcomes {
                let Err(error) = outcome else {
                    good += 1;
                    continue;
                };
                operation.failed(error);
                match error {
                    Error::Refused(_) => self.writes.refused.increment(1),
                    Error::Unavailable(_) => self.writes.unavailable.increment(1),
                    Error::Contention => self.writes.contention.increment(1),
                    _ => self.writes.failed.increment(1),
                }
            }
            self.writes.applied.increment(good);
            applied
        }

        fn lanes(&self) -> usize {
            self.inner.lanes()
        }

        fn info(&self) -> StoreInfo {
            self.inner.info()
        }

        fn log(&self) -> Result<Arc<dyn ChangeLog>> {
            self.inner.log()
        }

        async fn close(&self) {
            self.inner.close().await;
        }
    }
    "execution" execution(execution_id: &str) -> Option<Execution>;
    "execution" is_being_deleted(execution_id: &str) -> bool;
    "step" step(execution_id: &str, step: &StepRef) -> Option<Step>;
    "executions" executions(query: &ExecutionQuery) -> Page<Execution, ExecutionKey>;
    "count_executions" count_executions(query: &CountQuery) -> Count;
    "step_counts" step_counts(execution_ids: &[String], examine: usize) -> Vec<StepCounts>;
    "steps" steps(query: &StepQuery) -> Page<Step, i32>;
    "artifacts" artifacts(query: &ArtifactQuery) -> Page<Artifact, ArtifactKey>;
    "remove" remove(execution_id: &str) -> u64;
    "leases" leases() -> Vec<Lease>;
    "leases" signs_in_steps(execution_ids: &[String], now: Millis) -> HashMap<String, SignOfLife>;
    "secret" secret() -> [u8; 32];
    "ping" ping() -> ();
    "sweep" sweep() -> ();
}

observed! {
    ConfigurationStore {}
    "put_configuration" put_configuration(record: Configuration) -> Stored;
    "activate_configuration" activate_configuration(scope: &Scope, version: &str) -> Configuration;
    "configuration" configuration(scope: &Scope, version: Option<&str>) -> Option<Configuration>;
    "configurations" scopes_named(app_name: &str, limit: usize) -> Vec<Part>;
    "configurations" configurations(query: &ConfigurationQuery) -> Page<Listed, Place>;
}

observed! {
    MetricStore {
        ["record_metrics" record]

        async fn record(&self, requests: Vec<Recording>) -> Vec<Result<Recorded>> {
            let operation = self.operation("record_metrics");
            let (outcomes, _) =
                operation.run_many(requests.len(), self.inner.record(requests)).await;
            for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
                operation.failed(error);
            }
            outcomes
        }

        fn metric_lanes(&self) -> usize {
            self.inner.metric_lanes()
        }

        fn arrivals_elsewhere(&self) -> bool {
            self.inner.arrivals_elsewhere()
        }

        fn least_id(&self, since: Millis) -> PointId {
            self.inner.least_id(since)
        }
    }
    "metric_points" points(span: &Span, after: Option<&PointKey>, limit: usize)
        -> Page<(PointKey, MetricPoint), PointKey>;
    "metric_intervals" intervals(query: &IntervalQuery) -> Page<MetricInterval, IntervalKey>;
    "metric_points" has_points(execution_id: &str) -> bool;
    "arrived_since" arrived_since(
        execution_ids: &[String],
        since: Millis,
        each: &mut EachArrived<'_>
    ) -> ();
    "arrived_from" arrived_from(execution_id: &str, from: PointId, limit: usize) -> Vec<Arrived>;
}

observed! {
    ArtifactStore {}
    "create_artifact" create_artifact(record: &Artifact, digest: &str) -> Created;
    "artifact" artifact_by_digest(digest: &str) -> Option<Artifact>;
    "artifact" artifact(artifact_id: &str) -> Option<Artifact>;
    "list_artifacts" artifacts(query: &artifact::ArtifactQuery) -> Page<Artifact, String>;
    "artifact_usage" artifact_usage(execution_id: &str) -> Usage;
    "mark_artifact" mark_artifact(artifact_id: &str, at: Millis) -> bool;
    "marked_artifacts" marked_artifacts(after: Option<&str>, limit: usize) -> Vec<Artifact>;
    "remove_artifact" remove_artifact(artifact_id: &str) -> ();
    "artifact" record_has_bytes(paths: &[String], except: Option<&str>) -> bool;
    "upload" upload_has_bytes(paths: &[String], artifact_id: &str) -> bool;
    "upload" begin_upload(upload: &Upload) -> Upload;
    "upload" upload(upload_id: &str) -> Option<Upload>;
    "replace_upload" replace_upload(turn: i64, upload: &Upload) -> bool;
    "remove_upload" remove_upload(upload_id: &str, turn: i64) -> bool;
    "idle_uploads" idle_uploads(before: Millis, after: Option<(Millis, &str)>, limit: usize)
        -> Vec<Upload>;
}

observed! {
    RetentionStore {}
    "by_age" by_age(kind: Kind, after: Option<&AgeKey>, limit: usize) -> Page<Aged, AgeKey>;
    "expire" expire_executions(records: Vec<Aged>, policy: Arc<Policy>, now: Millis) -> Vec<String>;
    "expire" expire_parts(kind: Kind, records: Vec<Aged>, policy: Arc<Policy>, now: Millis)
        -> Removed;
    "remove_piece" remove_piece(execution_ids: Vec<String>) -> Piece;
    "newest" newest() -> Vec<u8>;
    "weigh" weigh(execution_ids: &[String]) -> Removed;
    "oldest_point" oldest_point() -> Option<Millis>;
}

observed! {
    RollupStore {}
    "rollup_state" state() -> RollupState;
    "counted" counted(execution_ids: &[String]) -> HashMap<String, Counted>;
    "counted" counted_after(after: Option<&str>, limit: usize) -> Vec<(String, Counted)>;
    "counted" counted_on(
        day: Option<i64>,
        visit: &mut (dyn FnMut(String, Counted) + Send)
    ) -> ();
    "counted" day_after(day: Option<i64>) -> Option<i64>;
    "failed_steps" failed_steps(execution_ids: &[String]) -> HashMap<String, Vec<Failure>>;
    "failed_steps" with_failed_steps(after: Option<&[u8]>, limit: usize)
        -> (Vec<String>, Option<Vec<u8>>);
    "commit_rollups" commit(holder: &str, batch: RollupBatch) -> bool;
    "rollups" rollups(
        query: &RollupQuery,
        visit: &mut (dyn FnMut(RollupKey, Rollup) + Send)
    ) -> ();
    "failures" failures(
        query: &FailureQuery,
        visit: &mut (dyn FnMut(FailureKey, Parts) + Send)
    ) -> ();
    "failures" seen(fingerprints: &[String], selection: &Selection, samples: usize) -> Vec<Seen>;
}

observed! {
    SearchStore {
        ["search_candidates" candidates]

        fn candidates(&self, query: CandidateQuery) -> Candidates<'_> {
            let operation = self.operation("search_candidates");
            let waited = Waited { operation, waited: Duration::ZERO };
            let read = (self.inner.candidates(query), waited);
            Box::pin(futures::stream::unfold(read, |(mut candidates, mut waited)| async move {
                let began = waited.operation.clock.instant();
                let candidate = candidates.next().await;
                waited.since(began);
                if let Some(Err(error)) = &candidate {
                    waited.operation.failed(error);
                }
                Some((candidate?, (candidates, waited)))
            }))
        }
    }
    "search_cursor" search_cursor() -> Option<Cursor>;
    "search_index" index(batch: SearchBatch) -> ();
    "search_forget" forget(before: Millis) -> ();
    "search_candidates" texts_with(ways: &[Vec<Term>], most: u64) -> u64;
}

observed! {
    Leads {}
    "lead" lead(name: &str, holder: &str, length: Duration, claim: Claim) -> bool;
    "lead" cede(name: &str, holder: &str, done: bool) -> ();
}

observed! {
    Inspect {}
    "check_indexes" indexes() -> Vec<IndexCheck>;
    "facts" facts() -> Facts;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::clock::ManualClock;
    use crate::telemetry;

    /// What answers from memory, or ends the store: there is nothing to measure.
    const NOT_OPERATIONS: [(&str, &str); 7] = [
        ("MetricStore", "arrivals_elsewhere"),
        ("MetricStore", "least_id"),
        ("MetricStore", "metric_lanes"),
        ("Store", "close"),
        ("Store", "info"),
        ("Store", "lanes"),
        ("Store", "log"),
    ];

    fn table<S: Role + ?Sized>() -> Vec<(String, String)> {
        let methods = S::OPERATIONS.iter();
        methods.map(|(method, _)| (S::TRAIT.to_owned(), (*method).to_owned())).collect()
    }

    /// Trait and method of every trait that a backend implements, as they are written in `store/*.rs`.
    fn written() -> BTreeSet<(String, String)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store");
        let mut methods = BTreeSet::new();
        for file in std::fs::read_dir(folder).unwrap() {
            let file = file.unwrap().path();
            if file.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(&file).unwrap();
            let mut name = None;
            for line in text.lines() {
                if let Some(line) = line.strip_prefix("pub trait ") {
                    // Those of a store as a whole, not what it hands out.
                    let of_store = line.contains(": Send + Sync + 'static {");
                    name = of_store.then(|| line.split(':').next().unwrap().to_owned());
                } else if line == "}" {
                    name = None;
                }
                let line = line.trim_start().trim_start_matches("async ");
                if let (Some(name), Some(rest)) = (&name, line.strip_prefix("fn ")) {
                    methods.insert((name.clone(), rest.split('(').next().unwrap().to_owned()));
                }
            }
        }
        methods
    }

    #[test]
    fn every_method_of_every_store_trait_is_an_operation() {
        let mut observed: BTreeSet<(String, String)> = [
            table::<dyn Store>(),
            table::<dyn ConfigurationStore>(),
            table::<dyn MetricStore>(),
            table::<dyn ArtifactStore>(),
            table::<dyn RetentionStore>(),
            table::<dyn RollupStore>(),
            table::<dyn SearchStore>(),
            table::<dyn Leads>(),
            table::<dyn Inspect>(),
        ]
        .concat()
        .into_iter()
        .collect();
        assert!(observed.len() > 60, "{observed:?}");
        observed.extend(NOT_OPERATIONS.map(|(role, method)| (role.to_owned(), method.to_owned())));
        assert_eq!(observed, written());
    }

    struct Away;

    #[async_trait]
    impl Leads for Away {
        async fn lead(&self, _: &str, _: &str, _: Duration, _: Claim) -> Result<bool> {
            Ok(true)
        }

        async fn cede(&self, _: &str, _: &str, _: bool) -> Result<()> {
            Err(Error::unavailable("away"))
        }
    }

    #[tokio::test]
    async fn an_operation_is_timed_and_its_failure_counted() {
        telemetry::metrics::install();
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(0));
        let observed = Observed::<dyn Leads>::new(Arc::new(Away), &clock);
        assert!(observed.lead("a", "b", Duration::ZERO, Claim::IfFree).await.unwrap());
        assert!(observed.cede("a", "b", false).await.is_err());
        let text = telemetry::metrics::render();
        for line in [
            "stepwell_store_operation_seconds_count{operation=\"lead\"} 2",
            "stepwell_store_errors_total{operation=\"lead\",kind=\"unavailable\"} 1",
            "stepwell_store_errors_total{operation=\"lead\",kind=\"failed\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nnot in\n{text}");
        }
    }
}
