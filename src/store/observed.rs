//! A store as seen from outside: how long each operation took and how it ended. Decides nothing.
//!
//! One table per trait lists every method with the operation that it counts as; several methods may be one
//! operation. What a table leaves out does not compile.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bson::raw::RawDocumentBuf;
use futures::StreamExt as _;
use metrics::{Counter, Histogram, counter, histogram};
use tokio::sync::mpsc;
use tracing::Instrument as _;

use super::artifacts::{ArtifactStore, Created, Upload, Usage};
use super::audit::{Appended, AuditKey, AuditQuery, AuditStore, Opening};
use super::configurations::{ConfigurationStore, Listed, Stored};
use super::inspect::{Facts, IndexCheck, Inspect};
use super::keys::{KeyStore, StoredKey};
use super::leads::{Claim, Leads};
use super::metrics::{
    Arrived, EachArrived, IntervalKey, IntervalQuery, MetricStore, PointId, PointKey, Recorded,
    Recording, Span,
};
use super::mirrors::{Kept, MirrorStore};
use super::notifications::{
    Attempted, Delivery, DeliveryQuery, Head, Moved, NotificationBatch, NotificationStore,
    Subscribed, Subscription, Told, ToldKey, Undelivered, Waiting,
};
use super::retention::{AgeKey, Aged, Piece, Removed, RetentionStore};
use super::rollups::{
    FailureQuery, RollupBatch, RollupQuery, RollupState, RollupStore, Seen, Selection,
};
use super::scan::{ScanStore, Scanned};
use super::search::{CandidateQuery, Candidates, SearchBatch, SearchStore};
use super::signals::Signals;
use super::{Applied, ChangeLog, Cursor, Error, Lease, Outage, Result, Store, StoreInfo, Write};
use crate::clock::Clock;
use crate::domain::access::AppScope;
use crate::domain::audit::{self, Entry};
use crate::domain::configuration::{ConfigurationQuery, Part, Place, Scope};
use crate::domain::execution::SignOfLife;
use crate::domain::mirror::Mirror;
use crate::domain::query::{
    ArtifactKey, ArtifactQuery, Count, CountQuery, ExecutionKey, ExecutionQuery, Page, StepCounts,
    StepQuery,
};
use crate::domain::retention::{Kind, Policy};
use crate::domain::rollup::{Counted, Failure, FailureKey, Parts, Rollup, RollupKey};
use crate::domain::search::query::Term;
use crate::domain::{
    Artifact, Configuration, Execution, MetricInterval, MetricPoint, Millis, Step, StepRef,
    artifact, plain,
};
use crate::telemetry::metrics::{STORE_ERRORS, STORE_OPERATION_SECONDS, WriteMetrics};

/// Operations that run by the clock, whatever clients do; as traces they would be noise.
const REGULAR: &[&str] = &[
    "arrived_since",
    "forget_deliveries",
    "idle_uploads",
    "keys",
    "keys_used",
    "lead",
    "leases",
    "marked_artifacts",
    "mirrors",
    "newest",
    "notification_head",
    "ping",
    "probe_write",
    "rollup_state",
    "search_cursor",
    "subscriptions",
    "sweep",
];

/// One operation with its handles.
struct Operation {
    name: &'static str,
    clock: Arc<dyn Clock>,
    seconds: Histogram,
    signals: Arc<Signals>,
    outages: [Counter; Outage::ALL.len()],
    contention: Counter,
    corrupt: Counter,
    denied: Counter,
    failed: Counter,
}

impl Operation {
    fn new(name: &'static str, observer: &Observer) -> Self {
        let errors = |kind| counter!(STORE_ERRORS, "operation" => name, "kind" => kind);
        Operation {
            name,
            clock: Arc::clone(&observer.clock),
            seconds: histogram!(STORE_OPERATION_SECONDS, "operation" => name),
            signals: Arc::clone(&observer.signals),
            outages: Outage::ALL.map(|outage| errors(outage.name())),
            contention: errors("contention"),
            corrupt: errors("corrupt"),
            denied: errors("refused_by_database"),
            failed: errors("failed"),
        }
    }

    fn failed(&self, error: &Error) {
        match error {
            Error::Unavailable(unavailable) => {
                self.outages[unavailable.outage as usize].increment(1);
                // The probe hears of what others meet.
                if !REGULAR.contains(&self.name) {
                    self.signals.met(unavailable.outage);
                }
            }
            Error::Contention => self.contention.increment(1),
            Error::Corrupt { .. } => self.corrupt.increment(1),
            Error::Denied(_) | Error::Unaudited(_) => self.denied.increment(1),
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

/// What all operations are measured by, and whom they tell.
#[derive(Clone)]
pub struct Observer {
    pub clock: Arc<dyn Clock>,
    pub signals: Arc<Signals>,
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
    pub fn new(inner: Arc<S>, observer: &Observer) -> Self {
        // Made now: a counter that is there from the start shows its first increment as a change.
        let operations =
            S::OPERATIONS.iter().map(|(_, name)| (*name, Operation::new(name, observer)));
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
            $([$($own:literal $own_method:ident),*] $($code:tt)*)?
        }
        $($name:literal $method:ident($($argument:ident: $type:ty),*) -> $answer:ty;)+
    ) => {
        impl Role for dyn $role {
            const TRAIT: &'static str = stringify!($role);
            const OPERATIONS: &'static [(&'static str, &'static str)] = &[
                $($((stringify!($own_method), $own),)*)?
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
    "step" step(execution_id: &str, step: &StepRef, payloads: bool) -> Option<Step>;
    "executions" executions(query: &ExecutionQuery) -> Page<Execution, ExecutionKey>;
    "count_executions" count_executions(query: &CountQuery) -> Count;
    "count_executions" unreadable_executions() -> u64;
    "step_counts" step_counts(execution_ids: &[String], examine: usize) -> Vec<StepCounts>;
    "steps" steps(query: &StepQuery) -> Page<Step, i32>;
    "artifacts" artifacts(query: &ArtifactQuery) -> Page<Artifact, ArtifactKey>;
    "remove" remove(execution_id: &str) -> u64;
    "leases" leases() -> Vec<Lease>;
    "leases" signs_in_steps(execution_ids: &[String], now: Millis) -> HashMap<String, SignOfLife>;
    "secret" secret() -> [u8; 32];
    "ping" ping() -> ();
    "ping" probe_write() -> ();
    "sweep" sweep() -> ();
}

observed! {
    ConfigurationStore {}
    "put_configuration" put_configuration(record: Configuration) -> Stored;
    "put_configuration" mirror_configuration(record: Configuration, position: i64) -> Stored;
    "activate_configuration" activate_configuration(scope: &Scope, version: &str) -> Configuration;
    "configuration" configuration(scope: &Scope, version: Option<&str>) -> Option<Configuration>;
    "configurations" scopes_named(app_name: &str, limit: usize) -> Vec<Part>;
    "configurations" configurations(query: &ConfigurationQuery, access: &AppScope) -> Page<Listed, Place>;
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
    "create_artifact" mirror_artifact(record: &Artifact, digest: &str, position: i64) -> Created;
    "artifact" artifact_by_digest(execution_id: &str, digest: &str) -> Option<Artifact>;
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
    KeyStore {}
    "keys" keys() -> Vec<StoredKey>;
    "change_key" add_key(key: &StoredKey) -> bool;
    "change_key" rotate_key(id: &str, from: [u8; 32], to: [u8; 32], until: Millis) -> bool;
    "change_key" revoke_key(id: &str, at: Millis, by: &str) -> bool;
    "keys_used" keys_used(used: &[(String, Millis)]) -> ();
}

observed! {
    AuditStore {
        []

        fn is_settled(&self) -> bool {
            self.inner.is_settled()
        }

        fn own_head(&self) -> Option<audit::Head> {
            self.inner.own_head()
        }
    }
    "audit_append" open_chain(opening: Opening) -> ();
    "audit_append" append(entries: Vec<Entry>) -> Appended;
    "audit_read" heads(after: Option<&str>, limit: usize) -> Vec<audit::Head>;
    "audit_read" chain(server: &str, from: i64, limit: usize, bytes: usize)
        -> Vec<RawDocumentBuf>;
    "audit_read" events(query: &AuditQuery) -> Page<RawDocumentBuf, AuditKey>;
}

observed! {
    ScanStore {}
    "scan" scan(part: plain::Part, out: mpsc::Sender<Vec<Scanned>>) -> u64;
}

observed! {
    NotificationStore {}
    "subscriptions" subscriptions() -> Vec<Subscribed>;
    "change_subscription" add_subscription(new: &Subscribed, most: usize) -> bool;
    "change_subscription" change_subscription(
        subscription: &Subscription,
        from: i64,
        moved: Option<&Moved>
    ) -> bool;
    "change_subscription" remove_subscription(id: &str) -> bool;
    "purge_subscription" purge_subscription(id: &str) -> bool;
    "notification_head" notification_head() -> Option<Head>;
    "told" told(keys: &[ToldKey]) -> HashMap<ToldKey, Told>;
    "notify" notify(holder: &str, batch: NotificationBatch) -> bool;
    "deliveries" waiting(subscription: &str, limit: usize) -> Vec<Waiting>;
    "delivery" delivery(id: &str) -> Option<Delivery>;
    "attempted" attempted(tries: &[Attempted]) -> ();
    "deliveries" deliveries(query: &DeliveryQuery) -> Page<Delivery, i64>;
    "redeliver" redeliver(id: &str, now: Millis) -> bool;
    "redeliver" redeliver_dead(subscription: &str, limit: usize, now: Millis) -> u64;
    "deliveries" undelivered(subscription: &str) -> Undelivered;
    "forget_deliveries" forget_deliveries(before: Millis) -> bool;
}

observed! {
    MirrorStore {}
    "mirrors" mirrors() -> Vec<Kept>;
    "mirror" mirror(name: &str) -> Option<Kept>;
    "store_mirror" store_mirror(before: Option<i64>, mirror: &Mirror) -> bool;
}

observed! {
    Inspect {}
    "check_indexes" indexes() -> Vec<IndexCheck>;
    "facts" facts() -> Facts;
}

#[cfg(test)]
mod tests;
