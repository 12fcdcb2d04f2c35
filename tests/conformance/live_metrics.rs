//! Metrics as watchers see them: as they are recorded, wherever that is, and none is missed.

use stepwell::proto::*;

use super::metrics::{again, point, record, values};
use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::values::*;
use crate::support::*;

fn watch_metrics(id: &str) -> WatchExecutionRequest {
    WatchExecutionRequest { include_metrics: true, ..watch(id) }
}

/// Reads a watch until so many points came; the values of `n` in the order in which they came.
async fn live(watch: &mut Watch, count: usize) -> Vec<f64> {
    let mut told = Vec::new();
    while told.len() < count {
        let event = watch.next_change().await;
        if let Some(points) = event.metrics() {
            assert!(!event.token.is_empty(), "an event with points has a token");
            assert!(points.iter().all(|point| point.execution_id == "e"), "{points:?}");
            told.extend(values(points, "n"));
        }
    }
    assert_eq!(told.len(), count, "more points than were recorded: {told:?}");
    told
}

pub async fn a_watcher_gets_points_as_they_are_recorded(b: Backend) {
    let (one, two) = b.pair().await;
    one.create("e").await;
    one.create("other").await;
    let now = wall_clock_ms();
    let sent = |n: f64| vec![point(now - 1000, [("n", n)]), point(now - 2000, [("n", n + 0.5)])];
    one.record_metrics(record("e", sent(-1.0))).await;
    let mut here = one.watch(watch_metrics("e")).await;
    let mut there = two.watch(watch_metrics("e")).await;
    let mut without = one.watch(watch("e")).await;
    for watch in [&mut here, &mut there, &mut without] {
        let current = watch.snapshot().await;
        assert!(current.iter().all(|event| event.metrics().is_none()), "{current:?}");
    }
    one.record_metrics(record("other", sent(-2.0))).await;
    for n in 0..5 {
        let n = f64::from(n) * 2.0;
        one.record_metrics(record("e", sent(n))).await;
        two.record_metrics(record("e", sent(n + 1.0))).await;
        for watch in [&mut here, &mut there] {
            let mut told = live(watch, 4).await;
            told.sort_by(f64::total_cmp);
            assert_eq!(told, [n, n + 0.5, n + 1.0, n + 1.5]);
        }
    }
    // A request that is sent again is no news.
    one.record_metrics(again("e", "r", sent(100.0))).await;
    one.record_metrics(again("e", "r", sent(100.0))).await;
    one.record_metrics(record("e", sent(101.0))).await;
    for watch in [&mut here, &mut there] {
        assert_eq!(live(watch, 4).await, [100.0, 100.5, 101.0, 101.5]);
    }
    one.finish("e", ExecutionStatus::Completed).await;
    let (rest, end) = without.rest().await;
    assert!(end.is_ok() && rest.iter().all(|event| event.metrics().is_none()), "{rest:?}");
}

pub async fn the_last_points_come_before_the_end_of_a_watch(b: Backend) {
    let (one, two) = b.pair().await;
    one.create("e").await;
    let now = wall_clock_ms();
    let mut watch = one.watch(watch_metrics("e")).await;
    watch.snapshot().await;
    for n in 0..20 {
        let s = if n % 2 == 0 { &one } else { &two };
        s.record_metrics(record("e", vec![point(now, [("n", f64::from(n))])])).await;
    }
    two.finish("e", ExecutionStatus::Completed).await;
    let (events, end) = watch.rest().await;
    end.expect("the watch ends in order");
    let points = events.iter().filter_map(|event| event.metrics()).flatten().cloned();
    let mut told = values(&points.collect::<Vec<_>>(), "n");
    told.sort_by(f64::total_cmp);
    assert_eq!(told, (0..20).map(f64::from).collect::<Vec<_>>());
}

pub async fn a_slow_watcher_of_metrics_misses_no_point(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let now = wall_clock_ms();
    let mut slow = s.watch(watch_metrics("e")).await;
    slow.snapshot().await;
    // Far more than fits into an inbox and the buffers of a connection.
    let padding = text(200);
    let mut recorded = 0;
    for _ in 0..60 {
        let points = (0..1000)
            .map(|n| point(now - n % 7, [("n", (recorded + n) as f64), (&padding, 1.0)]))
            .collect();
        recorded += 1000;
        s.record_metrics(record("e", points)).await;
    }
    let told = live(&mut slow, 60_000).await;
    let expected: Vec<f64> = (0..60_000).map(f64::from).collect();
    assert!(told == expected, "each point once, in order of arrival");
    // And it is live again.
    s.record_metrics(record("e", vec![point(now, [("n", 1.0)])])).await;
    assert_eq!(live(&mut slow, 1).await, [1.0]);
}

pub async fn an_event_with_points_can_be_resumed_after(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let now = wall_clock_ms();
    let mut watch = s.watch(watch_metrics("e")).await;
    watch.snapshot().await;
    s.record_metrics(record("e", vec![point(now, [("n", 1.0)])])).await;
    live(&mut watch, 1).await;
    let resume_token = Some(watch.token.clone());
    drop(watch);
    s.start("e", 1).await;
    s.record_metrics(record("e", vec![point(now, [("n", 2.0)])])).await;
    let mut resumed = s.watch(WatchExecutionRequest { resume_token, ..watch_metrics("e") }).await;
    // Changes of the time between come, points do not.
    assert!(resumed.next_change().await.step().is_some());
    s.record_metrics(record("e", vec![point(now, [("n", 3.0)])])).await;
    assert_eq!(live(&mut resumed, 1).await, [3.0]);
}
