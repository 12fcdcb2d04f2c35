//! What is rendered, and that all of it is in the list.

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
    store_outage("away").set(0.0);
    leases_expired().increment(1);
    changes_skipped().increment(1);
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
fn the_reference_lists_every_metric() {
    assert_eq!(reference_table().lines().count(), METRICS.len() + 2);
}
