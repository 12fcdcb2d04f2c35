//! Every metric, in one list. Names end with their unit; labels come from fixed sets, so the number of series
//! is bounded whatever clients send.
//!
//! Handles are made once and kept by whoever counts: counting is then one atomic operation. Before `install`
//! (or without it) handles count nothing.

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Unit, counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

use super::process::Process;
use crate::clock::{Clock, SystemClock};

/// How a metric counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    /// With these upper bounds of its buckets.
    Histogram(&'static [f64]),
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Option<Unit>,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

const SECONDS: &[f64] = &[
    0.000_25, 0.000_5, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0, 60.0,
];
const BATCH: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 500.0];

pub const BUILD_INFO: &str = "stepwell_build_info";
pub const RPC_REQUESTS: &str = "stepwell_rpc_requests_total";
pub const RPC_DURATION: &str = "stepwell_rpc_duration_seconds";
pub const RPC_IN_FLIGHT: &str = "stepwell_rpc_in_flight";
pub const WRITES: &str = "stepwell_writes_total";
pub const WRITES_REJECTED: &str = "stepwell_writes_rejected_total";
pub const WRITE_BATCH_SIZE: &str = "stepwell_write_batch_size";
pub const WRITE_BATCH_SECONDS: &str = "stepwell_write_batch_seconds";
pub const WRITE_QUEUE_DEPTH: &str = "stepwell_write_queue_depth";
pub const STORE_UP: &str = "stepwell_store_up";
pub const STORE_OUTAGE: &str = "stepwell_store_outage";
pub const STORE_OPERATION_SECONDS: &str = "stepwell_store_operation_seconds";
pub const STORE_ERRORS: &str = "stepwell_store_errors_total";
pub const STORE_INDEXES_LOST: &str = "stepwell_store_indexes_lost_total";
pub const STORE_INDEXES_MISSING: &str = "stepwell_store_indexes_missing";
pub const WATCHERS: &str = "stepwell_watchers";
pub const WATCH_EVENTS: &str = "stepwell_watch_events_total";
pub const WATCH_COALESCED: &str = "stepwell_watch_coalesced_total";
pub const WATCH_LOOKUPS: &str = "stepwell_watch_lookups_total";
pub const WATCH_CATCH_UP_READERS: &str = "stepwell_watch_catch_up_readers";
pub const WATCH_LAG: &str = "stepwell_watch_lag_seconds";
pub const CHANGES_SKIPPED: &str = "stepwell_changes_skipped_total";
pub const RETENTION_REMOVED: &str = "stepwell_retention_removed_total";
pub const LEASES_EXPIRED: &str = "stepwell_leases_expired_total";
pub const CONNECTIONS: &str = "stepwell_connections";
pub const CONNECTIONS_ENDED: &str = "stepwell_connections_ended_total";
pub const AUTH: &str = "stepwell_auth_total";
pub const AUDIT_RECORDS: &str = "stepwell_audit_records_total";
pub const NOTIFICATIONS: &str = "stepwell_notifications_total";
pub const NOTIFICATION_GAPS: &str = "stepwell_notifications_gaps_total";
pub const RELOAD_FAILURES: &str = "stepwell_reload_failures_total";
pub const CERTIFICATE_EXPIRY: &str = "stepwell_certificate_expiry_seconds";
pub const PROCESS_START_TIME: &str = "process_start_time_seconds";
pub const PROCESS_MEMORY: &str = "process_resident_memory_bytes";
pub const PROCESS_CPU: &str = "process_cpu_seconds_total";
pub const PROCESS_OPEN_FDS: &str = "process_open_fds";

const fn metric(
    name: &'static str,
    kind: Kind,
    unit: Option<Unit>,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind, unit, labels, help }
}

/// The list. The table in `docs/operating.md` is made from it.
pub const METRICS: &[Metric] = &[
    metric(
        BUILD_INFO,
        Kind::Gauge,
        None,
        &["version", "store"],
        "Always 1; the labels say what runs.",
    ),
    metric(
        RPC_REQUESTS,
        Kind::Counter,
        None,
        &["service", "method", "code"],
        "Calls that ended, by gRPC code. A call whose client disconnected counts as CANCELLED.",
    ),
    metric(
        RPC_DURATION,
        Kind::Histogram(SECONDS),
        Some(Unit::Seconds),
        &["service", "method"],
        "Duration of calls; of streams, until their end.",
    ),
    metric(RPC_IN_FLIGHT, Kind::Gauge, None, &["service", "method"], "Open calls and streams."),
    metric(
        WRITES,
        Kind::Counter,
        None,
        &["outcome"],
        "Writes by outcome: applied, refused, contention, unavailable, failed.",
    ),
    metric(
        WRITES_REJECTED,
        Kind::Counter,
        None,
        &[],
        "Writes rejected because the queue was full.",
    ),
    metric(
        WRITE_BATCH_SIZE,
        Kind::Histogram(BATCH),
        None,
        &[],
        "Writes in one batch to the store.",
    ),
    metric(
        WRITE_BATCH_SECONDS,
        Kind::Histogram(SECONDS),
        Some(Unit::Seconds),
        &[],
        "Duration of one batch in the store.",
    ),
    metric(WRITE_QUEUE_DEPTH, Kind::Gauge, None, &[], "Writes waiting for the store."),
    metric(
        STORE_UP,
        Kind::Gauge,
        None,
        &[],
        "1 while the database responds and takes writes, otherwise 0.",
    ),
    metric(
        STORE_OUTAGE,
        Kind::Gauge,
        None,
        &["reason"],
        "1 while the server is not ready for this reason, otherwise 0: away, full, read_only, gone.",
    ),
    metric(
        STORE_OPERATION_SECONDS,
        Kind::Histogram(SECONDS),
        Some(Unit::Seconds),
        &["operation"],
        "Duration of reads and other store operations.",
    ),
    metric(
        STORE_ERRORS,
        Kind::Counter,
        None,
        &["operation", "kind"],
        "Failed store operations, by kind: away, full, read_only, gone, busy, contention, corrupt, refused_by_database, failed.",
    ),
    metric(
        STORE_INDEXES_LOST,
        Kind::Counter,
        None,
        &["collection"],
        "Indexes of MongoDB that were gone while the server ran, and were made again.",
    ),
    metric(
        STORE_INDEXES_MISSING,
        Kind::Gauge,
        None,
        &[],
        "Indexes of MongoDB that are not there and cannot be made; the log says why.",
    ),
    metric(WATCHERS, Kind::Gauge, None, &[], "Open watch streams."),
    metric(WATCH_EVENTS, Kind::Counter, None, &[], "Events sent to watchers."),
    metric(
        WATCH_COALESCED,
        Kind::Counter,
        None,
        &[],
        "Events left out because a newer one of the same record was waiting for the same slow watcher.",
    ),
    metric(
        WATCH_LOOKUPS,
        Kind::Counter,
        None,
        &[],
        "Lookups of records that the log did not contain.",
    ),
    metric(
        WATCH_CATCH_UP_READERS,
        Kind::Gauge,
        None,
        &[],
        "History readers serving resuming watchers.",
    ),
    metric(
        WATCH_LAG,
        Kind::Gauge,
        Some(Unit::Seconds),
        &[],
        "How long after the last change this server read it in the log, by its own clock and the database's. On a sharded cluster: until every shard has told how far it is.",
    ),
    metric(
        CHANGES_SKIPPED,
        Kind::Counter,
        None,
        &[],
        "Changes left out of the log because the _id of their document is larger than 1 MiB.",
    ),
    metric(
        LEASES_EXPIRED,
        Kind::Counter,
        None,
        &[],
        "Executions that this server marked FAILED because they were silent for too long.",
    ),
    metric(
        RETENTION_REMOVED,
        Kind::Counter,
        None,
        &["collection"],
        "Records deleted by retention on this server.",
    ),
    metric(CONNECTIONS, Kind::Gauge, None, &[], "Open connections of gRPC clients."),
    metric(
        CONNECTIONS_ENDED,
        Kind::Counter,
        None,
        &["reason"],
        "Connections that ended: client, handshake (took too long), silent (no sign of life), idle (no call for too long), tls (its TLS handshake failed), limit (its place was needed), refused (no place), shutdown.",
    ),
    metric(
        AUTH,
        Kind::Counter,
        None,
        &["kind", "outcome"],
        "Calls by how the caller is known and whether they were let in: ok, missing, invalid, expired, role_forbids, scope_forbids, rate_limited, unavailable. Only with auth.mode = required.",
    ),
    metric(
        AUDIT_RECORDS,
        Kind::Counter,
        None,
        &["outcome"],
        "Records of who did what that were stored, by how what they tell ended: ok, denied, failed, begun; and unavailable: those that could not be stored, so that what they were to tell was not done or is tried again.",
    ),
    metric(
        RELOAD_FAILURES,
        Kind::Counter,
        None,
        &["what"],
        "Files read again that could not be used, by the setting that names them; what was read before stays in force.",
    ),
    metric(
        CERTIFICATE_EXPIRY,
        Kind::Gauge,
        Some(Unit::Seconds),
        &["file"],
        "When the first certificate of a file expires, in Unix time; the file by the setting that names it: tls.cert_file, tls.client_ca_file.",
    ),
    metric(
        NOTIFICATIONS,
        Kind::Counter,
        None,
        &["outcome"],
        "Requests of notifications that ended on this server: delivered, failed (tried again later), dead (not tried again).",
    ),
    metric(
        NOTIFICATION_GAPS,
        Kind::Counter,
        None,
        &[],
        "Times of which a subscription was told nothing, because the log of changes no longer had them.",
    ),
    metric(
        PROCESS_START_TIME,
        Kind::Gauge,
        Some(Unit::Seconds),
        &[],
        "Start time of the process, in Unix time.",
    ),
    metric(PROCESS_MEMORY, Kind::Gauge, Some(Unit::Bytes), &[], "Resident memory."),
    metric(PROCESS_CPU, Kind::Counter, Some(Unit::Seconds), &[], "User and system CPU time spent."),
    metric(PROCESS_OPEN_FDS, Kind::Gauge, None, &[], "Open file descriptors."),
];

/// Histograms keep their samples until somebody folds them into buckets; without scrapes nobody else would.
const FOLD_EVERY: Duration = Duration::from_secs(5);

static INSTALLED: OnceLock<Installed> = OnceLock::new();

struct Installed {
    handle: PrometheusHandle,
    started_at_seconds: f64,
}

/// Makes the process count. Any number of servers in one process share the one set of metrics; the first call
/// installs it, the others do nothing.
pub fn install() {
    INSTALLED.get_or_init(|| {
        let mut builder = PrometheusBuilder::new();
        for metric in METRICS {
            if let Kind::Histogram(buckets) = metric.kind {
                builder = builder
                    .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)
                    .expect("no histogram in the list is without buckets; a test looks");
            }
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another metrics recorder is already installed; /metrics will be empty");
        }
        describe();
        begin();
        let started_at_seconds = SystemClock.now().micros as f64 / 1e6;
        Installed { handle, started_at_seconds }
    });
}

fn describe() {
    for metric in METRICS {
        // The recorder adds no unit to a name by itself: the names in the list have it already.
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram(_) => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}

/// Counts what may never happen from 0 on, so that it is shown and its first increment is a change.
fn begin() {
    metrics::counter!(AUTH, "kind" => "key", "outcome" => "ok").increment(0);
    metrics::counter!(RELOAD_FAILURES, "what" => "auth.admin_key_file").increment(0);
    metrics::counter!(AUDIT_RECORDS, "outcome" => "unavailable").increment(0);
    metrics::counter!(CONNECTIONS_ENDED, "reason" => "client").increment(0);
    for outcome in ["delivered", "failed", "dead"] {
        notification(outcome).increment(0);
    }
    notification_gaps().increment(0);
    metrics::counter!(STORE_INDEXES_LOST, "collection" => "executions").increment(0);
    metrics::gauge!(STORE_INDEXES_MISSING).set(0.0);
}

/// Folds samples into buckets from time to time until the server ends.
pub async fn upkeep(stop: CancellationToken) {
    let mut every = tokio::time::interval(FOLD_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(every.tick()).await.is_some() {
        if let Some(installed) = INSTALLED.get() {
            installed.handle.run_upkeep();
        }
    }
}

/// All metrics in the text format of Prometheus.
pub fn render() -> String {
    let Some(installed) = INSTALLED.get() else { return String::new() };
    let mut text = installed.handle.render();
    let process = Process::read();
    let mut line = |name: &str, value: Option<f64>| {
        if let (Some(value), Some(metric)) =
            (value, METRICS.iter().find(|metric| metric.name == name))
        {
            let kind = if matches!(metric.kind, Kind::Counter) { "counter" } else { "gauge" };
            // Writing into a String cannot fail.
            let _ = write!(
                text,
                "# HELP {name} {}\n# TYPE {name} {kind}\n{name} {value}\n\n",
                metric.help
            );
        }
    };
    line(PROCESS_START_TIME, Some(installed.started_at_seconds));
    line(PROCESS_MEMORY, process.resident_bytes);
    line(PROCESS_CPU, process.cpu_seconds);
    line(PROCESS_OPEN_FDS, process.open_fds);
    text
}

/// What a server of this kind is, for dashboards.
pub fn build_info(store: &'static str) {
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION"), "store" => store).set(1.0);
}

/// Requests of notifications that ended so, for one of the outcomes in the list.
pub fn notification(outcome: &'static str) -> Counter {
    counter!(NOTIFICATIONS, "outcome" => outcome)
}

/// Times of which somebody was told nothing.
pub fn notification_gaps() -> Counter {
    counter!(NOTIFICATION_GAPS)
}

/// How many connections are open.
pub fn connections(open: usize) {
    gauge!(CONNECTIONS).set(open as f64);
}

/// A connection ended, for one of the reasons in the list.
pub fn connection_ended(reason: &'static str) {
    counter!(CONNECTIONS_ENDED, "reason" => reason).increment(1);
}

/// Handles of the write path.
pub struct WriteMetrics {
    pub applied: Counter,
    pub refused: Counter,
    pub contention: Counter,
    pub unavailable: Counter,
    pub failed: Counter,
    pub rejected: Counter,
    pub batch_size: Histogram,
    pub batch_seconds: Histogram,
    pub queue_depth: Gauge,
}

impl WriteMetrics {
    pub fn new() -> Self {
        WriteMetrics {
            applied: counter!(WRITES, "outcome" => "applied"),
            refused: counter!(WRITES, "outcome" => "refused"),
            contention: counter!(WRITES, "outcome" => "contention"),
            unavailable: counter!(WRITES, "outcome" => "unavailable"),
            failed: counter!(WRITES, "outcome" => "failed"),
            rejected: counter!(WRITES_REJECTED),
            batch_size: histogram!(WRITE_BATCH_SIZE),
            batch_seconds: histogram!(WRITE_BATCH_SECONDS),
            queue_depth: gauge!(WRITE_QUEUE_DEPTH),
        }
    }
}

impl Default for WriteMetrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Handles of watching.
pub struct WatchMetrics {
    pub watchers: Gauge,
    pub events: Counter,
    pub coalesced: Counter,
    pub lookups: Counter,
    pub catch_up_readers: Gauge,
}

impl WatchMetrics {
    pub fn new() -> Self {
        WatchMetrics {
            watchers: gauge!(WATCHERS),
            events: counter!(WATCH_EVENTS),
            coalesced: counter!(WATCH_COALESCED),
            lookups: counter!(WATCH_LOOKUPS),
            catch_up_readers: gauge!(WATCH_CATCH_UP_READERS),
        }
    }
}

impl Default for WatchMetrics {
    fn default() -> Self {
        Self::new()
    }
}

/// 1 while the database answers and takes writes.
pub fn store_up() -> Gauge {
    gauge!(STORE_UP)
}

/// 1 while the server is not ready for this reason.
pub fn store_outage(reason: &'static str) -> Gauge {
    gauge!(STORE_OUTAGE, "reason" => reason)
}

/// How long after a change it is read in the log.
pub fn watch_lag() -> Gauge {
    gauge!(WATCH_LAG)
}

/// Changes that nobody is told of, since their key is too large.
pub fn changes_skipped() -> Counter {
    counter!(CHANGES_SKIPPED)
}

/// Executions that this server ended because their client went silent.
pub fn leases_expired() -> Counter {
    counter!(LEASES_EXPIRED)
}

/// Calls by how their caller is known and what became of them.
pub fn auth(kind: &'static str, outcome: &'static str) -> Counter {
    counter!(AUTH, "kind" => kind, "outcome" => outcome)
}

/// Files that were read again and could not be used.
pub fn reload_failures(what: &'static str) -> Counter {
    counter!(RELOAD_FAILURES, "what" => what)
}

/// When a certificate of the file that this setting names is good no more, in milliseconds since 1970.
pub fn certificate_expiry(setting: &'static str, at_millis: i64) {
    gauge!(CERTIFICATE_EXPIRY, "file" => setting).set((at_millis / 1000) as f64);
}

/// Records of a collection that retention deleted.
pub fn retention_removed(collection: &'static str) -> Counter {
    counter!(RETENTION_REMOVED, "collection" => collection)
}

/// The list as a Markdown table, for `docs/operating.md`.
pub fn reference_table() -> String {
    let mut table =
        String::from("| Metric | Type | Labels | Meaning |\n| --- | --- | --- | --- |\n");
    for metric in METRICS {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        // Writing into a String cannot fail.
        let _ = writeln!(
            table,
            "| `{}` | {kind} | {} | {} |",
            metric.name,
            labels.join(", "),
            metric.help.replace('|', "\\|")
        );
    }
    table
}

#[cfg(test)]
mod tests;
