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
pub const STORE_OPERATION_SECONDS: &str = "stepwell_store_operation_seconds";
pub const STORE_ERRORS: &str = "stepwell_store_errors_total";
pub const WATCHERS: &str = "stepwell_watchers";
pub const WATCH_EVENTS: &str = "stepwell_watch_events_total";
pub const WATCH_COALESCED: &str = "stepwell_watch_coalesced_total";
pub const WATCH_LOOKUPS: &str = "stepwell_watch_lookups_total";
pub const WATCH_CATCH_UP_READERS: &str = "stepwell_watch_catch_up_readers";
pub const RETENTION_REMOVED: &str = "stepwell_retention_removed_total";
pub const LEASES_EXPIRED: &str = "stepwell_leases_expired_total";
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
    metric(STORE_UP, Kind::Gauge, None, &[], "1 while the database responds, otherwise 0."),
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
        "Failed store operations, by kind: unavailable, contention, corrupt, failed.",
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

/// What the operating system says about this process; nothing outside Linux.
#[derive(Default)]
struct Process {
    resident_bytes: Option<f64>,
    cpu_seconds: Option<f64>,
    open_fds: Option<f64>,
}

impl Process {
    fn read() -> Process {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        Process {
            resident_bytes: resident_bytes(&status),
            cpu_seconds: cpu_seconds(&stat),
            open_fds: std::fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as f64),
        }
    }
}

fn resident_bytes(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kib| kib * 1024.0)
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    // The name in parentheses may contain spaces; user and system time are the 12th and 13th field after it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    // The kernel counts these in 1/100 s for user space, whatever its own tick is.
    Some((user + system) / 100.0)
}

/// What a server of this kind is, for dashboards.
pub fn build_info(store: &'static str) {
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION"), "store" => store).set(1.0);
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

/// 1 while the database answers.
pub fn store_up() -> Gauge {
    gauge!(STORE_UP)
}

/// Executions that this server ended because their client went silent.
pub fn leases_expired() -> Counter {
    counter!(LEASES_EXPIRED)
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
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules() {
        let mut seen = std::collections::BTreeSet::new();
        for metric in METRICS {
            let Metric { name, kind, unit, help, .. } = *metric;
            assert!(seen.insert(name), "{name} is there twice");
            assert!(name.starts_with("stepwell_") || name.starts_with("process_"), "{name}");
            assert!(help.ends_with('.') && !help.contains('\n'), "{name}: {help}");
            assert_eq!(name.ends_with("_total"), kind == Kind::Counter, "{name}");
            if unit == Some(Unit::Seconds) {
                assert!(name.contains("_seconds"), "{name}");
            }
            if let Kind::Histogram(buckets) = kind {
                assert!(!buckets.is_empty() && buckets.is_sorted(), "{name}");
            }
        }
    }

    #[test]
    fn everything_counted_is_rendered_once_with_its_help() {
        install();
        install();
        build_info("sqlite");
        let writes = WriteMetrics::new();
        writes.applied.increment(3);
        writes.batch_size.record(7.0);
        writes.batch_seconds.record(0.004);
        writes.queue_depth.set(2.0);
        WatchMetrics::new().lookups.increment(1);
        store_up().set(1.0);
        leases_expired().increment(1);
        retention_removed("executions").increment(1);
        let text = render();
        for line in [
            "# HELP stepwell_write_batch_size Writes in one batch to the store.",
            "# TYPE stepwell_write_batch_size histogram",
            "stepwell_write_batch_size_bucket{le=\"8\"} 1",
            "stepwell_write_batch_size_bucket{le=\"4\"} 0",
            "stepwell_write_batch_seconds_bucket{le=\"0.005\"} 1",
            "stepwell_writes_total{outcome=\"applied\"} 3",
            "# TYPE stepwell_store_up gauge",
            "stepwell_store_up 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nnot in\n{text}");
        }
        assert_eq!(text.matches("# TYPE process_resident_memory_bytes gauge").count(), 1);
        assert!(text.contains(concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"")), "{text}");
        // Whatever is rendered is in the list.
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let name = line.split(' ').next().unwrap_or_default();
            assert!(METRICS.iter().any(|metric| metric.name == name), "{name}");
        }
    }

    #[test]
    fn the_process_is_read_from_proc() {
        assert_eq!(resident_bytes("VmPeak:\t  1 kB\nVmRSS:\t   2048 kB\n"), Some(2_097_152.0));
        assert_eq!(resident_bytes(""), None);
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 1 0 100 1 1";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        assert_eq!(cpu_seconds("7"), None);
    }

    #[test]
    fn the_reference_lists_every_metric() {
        assert_eq!(reference_table().lines().count(), METRICS.len() + 2);
    }
}
