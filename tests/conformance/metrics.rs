//! Metrics: recorded once, told by time and per interval, gone with their execution.

use std::collections::HashMap;

use ingest_request::Write as W;
use ingest_response::Result as R;
use stepwell::proto::*;
use tonic::Code;

use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::server::Server;
use crate::support::values::*;
use crate::support::*;

const HOUR_MS: i64 = 3_600_000;

/// Keeps points of every age.
async fn serve_keeping_all(b: &Backend) -> Server {
    b.serve_with(|config| config.retention.metrics = std::time::Duration::ZERO).await
}

fn map<const N: usize>(metrics: [(&str, f64); N]) -> HashMap<String, f64> {
    metrics.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

pub fn point<const N: usize>(at: i64, metrics: [(&str, f64); N]) -> MetricPoint {
    MetricPoint { timestamp: Some(time(at)), metrics: map(metrics), ..Default::default() }
}

pub fn record(id: &str, points: Vec<MetricPoint>) -> RecordMetricsRequest {
    RecordMetricsRequest { execution_id: id.into(), points, request_id: None }
}

pub fn again(id: &str, request_id: &str, points: Vec<MetricPoint>) -> RecordMetricsRequest {
    RecordMetricsRequest { request_id: Some(request_id.into()), ..record(id, points) }
}

fn query(id: &str) -> QueryMetricsRequest {
    QueryMetricsRequest { execution_id: id.into(), ..Default::default() }
}

fn every(ms: i64) -> Option<prost_types::Duration> {
    let nanos = i32::try_from(ms % 1000 * 1_000_000).expect("below a second");
    Some(prost_types::Duration { seconds: ms / 1000, nanos })
}

/// All pages of a query: points, intervals, and how many pages there were.
async fn all(
    s: &Server,
    request: QueryMetricsRequest,
) -> (Vec<MetricPoint>, Vec<MetricInterval>, usize) {
    let (mut points, mut intervals, mut pages) = (Vec::new(), Vec::new(), 0);
    let mut token = String::new();
    loop {
        let request = QueryMetricsRequest { page_token: token, ..request.clone() };
        let page = s.query_metrics(request).await;
        pages += 1;
        assert!(pages < 1000, "the pages do not come to an end");
        points.extend(page.points);
        intervals.extend(page.intervals);
        token = page.next_page_token;
        if token.is_empty() {
            return (points, intervals, pages);
        }
    }
}

/// The values of one metric in the order of the points.
pub fn values(points: &[MetricPoint], name: &str) -> Vec<f64> {
    points.iter().filter_map(|point| point.metrics.get(name).copied()).collect()
}

pub async fn points_come_back_by_time_and_in_order_of_arrival(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let now = wall_clock_ms();
    // Out of order, and five calls of one time.
    let first = vec![
        point(now - 1000, [("n", 10.0)]),
        MetricPoint { step_id: Some(0), ..point(now - 3000, [("n", 0.0), ("m", 0.5)]) },
        MetricPoint { execution_id: "e".into(), ..point(now - 2000, [("n", 1.0)]) },
    ];
    assert_eq!(s.record_metrics(record("e", first)).await.accepted, 3);
    for n in 2..7 {
        let two = vec![
            point(now - 2000, [("n", f64::from(n))]),
            point(now - 2000, [("n", f64::from(n) + 0.5)]),
        ];
        assert_eq!(s.record_metrics(record("e", two)).await.accepted, 2);
    }
    let expected = [0.0, 1.0, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5, 10.0];
    for page_size in [0, 1, 2, 3, 5, 12, 13, 14] {
        let (points, _, _) = all(&s, QueryMetricsRequest { page_size, ..query("e") }).await;
        assert_eq!(values(&points, "n"), expected, "pages of {page_size}");
    }
    let page = s.query_metrics(QueryMetricsRequest { page_size: 13, ..query("e") }).await;
    assert_eq!(page.next_page_token, "", "there is no more");
    assert_eq!(page.intervals, []);
    assert_eq!(
        page.points[0],
        MetricPoint {
            execution_id: "e".into(),
            step_id: Some(0),
            ..point(now - 3000, [("n", 0.0), ("m", 0.5)])
        }
    );
    assert_eq!(page.points[1].step_id, None);
    let between = QueryMetricsRequest {
        since: Some(time(now - 2000)),
        until: Some(time(now - 1000)),
        page_size: 4,
        ..query("e")
    };
    assert_eq!(values(&all(&s, between).await.0, "n"), expected[1..12]);
}

pub async fn points_are_told_by_name(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let now = wall_clock_ms();
    let points = (0..50)
        .map(|n| match n % 10 {
            0 => point(now - 1000 + n, [("rare", n as f64), ("often", 1.0)]),
            _ => point(now - 1000 + n, [("often", 1.0)]),
        })
        .collect();
    s.record_metrics(record("e", points)).await;
    let rare = QueryMetricsRequest { names: vec!["rare".into()], page_size: 2, ..query("e") };
    let (points, _, _) = all(&s, rare).await;
    assert_eq!(values(&points, "rare"), [0.0, 10.0, 20.0, 30.0, 40.0]);
    assert!(points.iter().all(|point| point.metrics.len() == 1), "{points:?}");
    let both = QueryMetricsRequest { names: vec!["often".into(), "rare".into()], ..query("e") };
    assert_eq!(all(&s, both).await.0.len(), 50);
    let none = QueryMetricsRequest { names: vec!["never".into()], ..query("e") };
    assert_eq!(all(&s, none).await.0, []);
}

pub async fn names_of_metrics_may_have_dots_dollars_and_any_unicode(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let now = wall_clock_ms();
    let names = ["a.b", "$set", "$a.$b", ".", "$", "é\u{1}\u{1f600}", " ", "m.k", "__proto__", "0"];
    let metrics: HashMap<String, f64> =
        names.iter().enumerate().map(|(n, name)| ((*name).to_owned(), n as f64)).collect();
    let sent = MetricPoint { metrics: metrics.clone(), ..point(now - 1, []) };
    s.record_metrics(record("e", vec![sent.clone(), sent])).await;
    let page = s.query_metrics(query("e")).await;
    assert_eq!(page.points.len(), 2);
    assert!(page.points.iter().all(|point| point.metrics == metrics), "{:?}", page.points);
    for (n, name) in names.iter().enumerate() {
        let one = QueryMetricsRequest { names: vec![(*name).into()], ..query("e") };
        assert_eq!(values(&s.query_metrics(one.clone()).await.points, name), [n as f64; 2]);
        let told = s.query_metrics(QueryMetricsRequest { interval: every(1000), ..one }).await;
        assert_eq!(told.intervals.len(), 1, "{name:?}: {told:?}");
        assert_eq!((told.intervals[0].name.as_str(), told.intervals[0].count), (*name, 2));
    }
    let mut sorted: Vec<&str> = names.to_vec();
    sorted.sort_unstable();
    let told = s.query_metrics(QueryMetricsRequest { interval: every(1000), ..query("e") }).await;
    let told: Vec<&str> = told.intervals.iter().map(|told| told.name.as_str()).collect();
    assert_eq!(told, sorted, "by name within an interval");
}

pub async fn intervals_have_least_greatest_mean_last_and_count(b: Backend) {
    let s = serve_keeping_all(&b).await;
    s.create("e").await;
    let base = 1_400_000_400_000 - 1_400_000_400_000 % HOUR_MS;
    let points = vec![
        // Before 1970, too, intervals begin at multiples of their length.
        point(-1, [("a", 7.0)]),
        point(-HOUR_MS, [("a", 5.0)]),
        point(base + 3, [("a", 4.0), ("b", -1.0)]),
        point(base, [("a", 1.0)]),
        point(base + HOUR_MS - 1, [("a", 0.25)]),
        point(base + HOUR_MS - 1, [("a", 2.5)]),
        point(base + HOUR_MS, [("b", 1e300)]),
        point(base + 50 * HOUR_MS, [("a", 3.0)]),
    ];
    assert_eq!(s.record_metrics(record("e", points)).await.accepted, 8);
    let told = |name: &str, start, min, max, mean, last, count| MetricInterval {
        name: name.into(),
        start: Some(time(start)),
        min,
        max,
        mean,
        last,
        count,
    };
    let expected = [
        told("a", -HOUR_MS, 5.0, 7.0, 6.0, 7.0, 2),
        told("a", base, 0.25, 4.0, 1.9375, 2.5, 4),
        told("b", base, -1.0, -1.0, -1.0, -1.0, 1),
        told("b", base + HOUR_MS, 1e300, 1e300, 1e300, 1e300, 1),
        told("a", base + 50 * HOUR_MS, 3.0, 3.0, 3.0, 3.0, 1),
    ];
    let hourly = QueryMetricsRequest { interval: every(HOUR_MS), ..query("e") };
    for page_size in [0, 1, 2, 3, 4, 5, 6] {
        let (points, intervals, pages) =
            all(&s, QueryMetricsRequest { page_size, ..hourly.clone() }).await;
        assert_eq!(intervals, expected, "pages of {page_size}");
        assert_eq!(points, []);
        let fitting = usize::try_from(page_size).expect("positive").max(1);
        assert!(page_size == 0 || pages == 5_usize.div_ceil(fitting), "{pages} of {page_size}");
    }
    let a = QueryMetricsRequest { names: vec!["a".into()], ..hourly.clone() };
    let (_, intervals, _) = all(&s, QueryMetricsRequest { page_size: 1, ..a }).await;
    assert_eq!(intervals, [&expected[0], &expected[1], &expected[4]].map(Clone::clone));
    // Bounds cut the intervals that they fall into.
    let cut = QueryMetricsRequest {
        since: Some(time(base + 1)),
        until: Some(time(base + HOUR_MS - 1)),
        ..hourly.clone()
    };
    assert_eq!(
        all(&s, cut).await.1,
        [told("a", base, 4.0, 4.0, 4.0, 4.0, 1), told("b", base, -1.0, -1.0, -1.0, -1.0, 1)]
    );
    let finest = QueryMetricsRequest { interval: every(1), page_size: 2, ..query("e") };
    assert_eq!(all(&s, finest).await.1.len(), 8);
    let coarsest = QueryMetricsRequest { interval: every(366 * 24 * HOUR_MS), ..query("e") };
    let counts: i64 = all(&s, coarsest).await.1.iter().map(|told| told.count).sum();
    assert_eq!(counts, 9);
}

pub async fn many_points_make_many_pages_of_intervals(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let base = (wall_clock_ms() / HOUR_MS - 24) * HOUR_MS;
    // Six hours of a point a second, in calls of 1000.
    let points: Vec<MetricPoint> = (0..6 * 3600)
        .map(|n| point(base + n * 1000, [("v", (n % 100) as f64), ("w", n as f64)]))
        .collect();
    for piece in points.chunks(1000) {
        s.record_metrics(record("e", piece.to_vec())).await;
    }
    let minutes = QueryMetricsRequest { interval: every(60_000), page_size: 50, ..query("e") };
    let (_, intervals, pages) = all(&s, minutes).await;
    assert_eq!((intervals.len(), pages), (2 * 360, 15));
    for (n, pair) in intervals.chunks(2).enumerate() {
        let start = base + n as i64 * 60_000;
        assert_eq!(millis(&pair[0].start), Some(start));
        assert_eq!((pair[0].count, pair[1].count), (60, 60));
        let last = (n * 60 + 59) as f64;
        assert_eq!((pair[1].last, pair[1].mean), (last, last - 29.5), "{:?}", pair[1]);
    }
    let (points, _, pages) = all(&s, QueryMetricsRequest { page_size: 5000, ..query("e") }).await;
    assert_eq!((points.len(), pages), (6 * 3600, 5));
    assert!(values(&points, "w").iter().enumerate().all(|(n, value)| n as f64 == *value));
}

pub async fn a_page_of_intervals_looks_at_a_bounded_number_of_points(b: Backend) {
    // Fifty points for each.
    let s = b.serve_with(|config| config.limits.page_examined_records = 2).await;
    s.create("e").await;
    let base = (wall_clock_ms() / HOUR_MS - 24) * HOUR_MS;
    let points: Vec<MetricPoint> =
        (0..1000).map(|n| point(base + n * 1000, [("v", n as f64)])).collect();
    s.record_metrics(record("e", points)).await;
    let tens = QueryMetricsRequest { interval: every(10_000), page_size: 500, ..query("e") };
    let first = s.query_metrics(tens.clone()).await;
    assert!((1..=11).contains(&first.intervals.len()), "{} intervals", first.intervals.len());
    assert_ne!(first.next_page_token, "");
    let (_, intervals, pages) = all(&s, tens.clone()).await;
    assert_eq!(intervals.len(), 100);
    for (n, told) in intervals.iter().enumerate() {
        let first = (n * 10) as f64;
        assert_eq!((told.count, told.min, told.max), (10, first, first + 9.0));
        assert_eq!((told.last, told.mean), (first + 9.0, first + 4.5));
    }
    assert!(pages >= 9, "{pages} pages");
    // A page may be empty, and the one after it not.
    let none = QueryMetricsRequest { names: vec!["w".into()], ..tens.clone() };
    let first = s.query_metrics(none.clone()).await;
    assert_eq!(first.intervals, []);
    assert_ne!(first.next_page_token, "");
    assert_eq!(all(&s, none).await.1, []);
    // One interval is never cut.
    let whole = QueryMetricsRequest { interval: every(HOUR_MS), ..query("e") };
    let (_, intervals, _) = all(&s, whole).await;
    assert_eq!(intervals.iter().map(|told| told.count).collect::<Vec<_>>(), [1000]);
}

pub async fn too_old_and_too_new_points_are_counted_and_not_stored(b: Backend) {
    let hour = std::time::Duration::from_secs(3600);
    let s = b.serve_with(|config| config.retention.metrics = hour).await;
    s.create("e").await;
    let now = wall_clock_ms();
    let points = vec![
        point(now - HOUR_MS - 10_000, [("n", 0.0)]),
        point(now - HOUR_MS + 60_000, [("n", 1.0)]),
        point(now + 30_000, [("n", 2.0)]),
        point(now + 120_000, [("n", 3.0)]),
        point(-86_400_000, [("n", 4.0)]),
    ];
    let answer = s.record_metrics(record("e", points.clone())).await;
    assert_eq!((answer.accepted, answer.too_old, answer.in_future), (2, 2, 1));
    assert_eq!(values(&s.query_metrics(query("e")).await.points, "n"), [1.0, 2.0]);
    s.shutdown().await;

    let s = serve_keeping_all(&b).await;
    s.create("f").await;
    let answer = s.record_metrics(record("f", points)).await;
    assert_eq!((answer.accepted, answer.too_old, answer.in_future), (4, 0, 1));
    assert_eq!(values(&s.query_metrics(query("f")).await.points, "n"), [4.0, 0.0, 1.0, 2.0]);
}

pub async fn a_request_id_makes_a_retry_safe(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    s.create("f").await;
    let now = wall_clock_ms();
    let points = || {
        vec![
            point(now - 1000, [("n", 1.0)]),
            point(now - 1000, [("n", 1.0)]),
            point(now + 3_600_000, [("n", 2.0)]),
        ]
    };
    let first = s.record_metrics(again("e", "r", points())).await;
    assert_eq!((first.accepted, first.too_old, first.in_future), (2, 0, 1));
    assert_eq!(s.record_metrics(again("e", "r", points())).await, first);
    // Other points, another order, another step: none of them is the same request.
    let other = vec![point(now - 1000, [("n", 1.5)])];
    let mut turned = points();
    turned.reverse();
    let mut of_step = points();
    of_step[0].step_id = Some(0);
    for other in [other.clone(), turned, of_step] {
        let answer = s.try_record_metrics(again("e", "r", other)).await;
        refused(answer, Code::AlreadyExists, "METRIC_REQUEST_ALREADY_EXISTS");
    }
    // The id belongs to its execution.
    assert_eq!(s.record_metrics(again("f", "r", other)).await.accepted, 1);
    s.shutdown().await;

    let s = b.serve().await;
    assert_eq!(s.record_metrics(again("e", "r", points())).await, first);
    assert_eq!(values(&s.query_metrics(query("e")).await.points, "n"), [1.0, 1.0]);
    // Without an id everything is new.
    s.record_metrics(record("e", points())).await;
    assert_eq!(s.query_metrics(query("e")).await.points.len(), 4);
}

pub async fn of_many_equal_requests_at_once_one_is_stored(b: Backend) {
    let (one, two) = b.pair().await;
    one.create("e").await;
    let now = wall_clock_ms();
    let points: Vec<_> = (0..100).map(|n| point(now - n, [("n", n as f64)])).collect();
    let racers = (0..20).map(async |n| {
        let client = if n % 2 == 0 { &one } else { &two };
        eventually("the request is answered", async || {
            match client.try_record_metrics(again("e", "r", points.clone())).await {
                Ok(answer) => Some(answer),
                Err(status) => {
                    // Under way on the other server.
                    check_refusal(&status, Code::Unavailable, "STORE_AWAY");
                    None
                }
            }
        })
        .await
    });
    for answer in futures::future::join_all(racers).await {
        assert_eq!((answer.accepted, answer.too_old, answer.in_future), (100, 0, 0));
    }
    assert_eq!(one.query_metrics(query("e")).await.points.len(), 100);
}

pub async fn many_writers_of_one_execution_lose_nothing(b: Backend) {
    let (one, two) = b.pair().await;
    one.create("e").await;
    let now = wall_clock_ms();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..16_i64 {
        let client = if writer % 2 == 0 { (*one).clone() } else { (*two).clone() };
        writers.spawn(async move {
            for n in 0..20 {
                let points = vec![point(now - 1000, [("n", (writer * 100 + n) as f64)])];
                client.record_metrics(record("e", points)).await;
            }
        });
    }
    writers.join_all().await;
    let (points, _, _) = all(&two, QueryMetricsRequest { page_size: 17, ..query("e") }).await;
    let values = values(&points, "n");
    assert_eq!(values.len(), 320);
    for writer in 0..16 {
        let own: Vec<f64> =
            values.iter().copied().filter(|value| (*value as i64) / 100 == writer).collect();
        assert!(own.is_sorted() && own.len() == 20, "in order of arrival: {own:?}");
    }
}

pub async fn deleting_an_execution_takes_its_metrics_along(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    s.create("other").await;
    let now = wall_clock_ms();
    let points = || vec![point(now - 1000, [("n", 1.0)])];
    s.record_metrics(again("e", "r", points())).await;
    s.record_metrics(record("other", points())).await;
    s.delete_execution(DeleteExecutionRequest { execution_id: "e".into(), force: true }).await;
    let gone = |answer| refused(answer, Code::NotFound, "EXECUTION_NOT_FOUND");
    gone(s.try_query_metrics(query("e")).await);
    s.create("e").await;
    assert_eq!(s.query_metrics(query("e")).await.points, []);
    // The id of the request went with the execution.
    assert_eq!(s.record_metrics(again("e", "r", points())).await.accepted, 1);
    assert_eq!(s.query_metrics(query("e")).await.points.len(), 1);
    assert_eq!(s.query_metrics(query("other")).await.points.len(), 1);
}

pub async fn points_that_race_a_delete_leave_nothing_behind(b: Backend) {
    let (one, two) = b.pair().await;
    let now = wall_clock_ms();
    for round in 0..10 {
        let id = format!("e{round}");
        one.create(&id).await;
        let mut racers = tokio::task::JoinSet::new();
        for n in 0..6 {
            let client = if n % 2 == 0 { (*one).clone() } else { (*two).clone() };
            let request = record(&id, vec![point(now - n, [("n", 1.0)])]);
            racers.spawn(async move { client.try_record_metrics(request).await.map(drop) });
        }
        let request = DeleteExecutionRequest { execution_id: id.clone(), force: true };
        one.delete_execution(request).await;
        for answer in racers.join_all().await {
            if answer.is_err() {
                refused(answer, Code::NotFound, "EXECUTION_NOT_FOUND");
            }
        }
        let answer = two.try_query_metrics(query(&id)).await;
        refused(answer, Code::NotFound, "EXECUTION_NOT_FOUND");
    }
}

pub async fn an_unknown_execution_has_no_metrics(b: Backend) {
    let s = b.serve().await;
    let points = vec![point(wall_clock_ms(), [("n", 1.0)])];
    let answer = s.try_record_metrics(again("nobody", "r", points.clone())).await;
    let details = refused(answer, Code::NotFound, "EXECUTION_NOT_FOUND");
    assert_eq!(details.resource_info().expect("checked by refused").resource_name, "nobody");
    for interval in [None, every(1000)] {
        let answer = s.try_query_metrics(QueryMetricsRequest { interval, ..query("nobody") }).await;
        refused(answer, Code::NotFound, "EXECUTION_NOT_FOUND");
    }
    // A request that was refused is not known.
    s.create("nobody").await;
    assert_eq!(s.query_metrics(query("nobody")).await, QueryMetricsResponse::default());
    assert_eq!(s.record_metrics(again("nobody", "r", points)).await.accepted, 1);
}

pub async fn every_bad_field_of_a_point_is_named_at_once(b: Backend) {
    let s = b.serve().await;
    let now = wall_clock_ms();
    let bad = vec![
        point(now, [("n", f64::NAN)]),
        point(now, [("n", f64::INFINITY), ("m", f64::NEG_INFINITY)]),
        MetricPoint { timestamp: None, ..point(now, [("n", 1.0)]) },
        point(now, []),
        point(now, [("", 1.0)]),
        point(now, [("a\0b", 1.0)]),
        MetricPoint { step_id: Some(-1), ..point(now, [("n", 1.0)]) },
        MetricPoint { execution_id: "other".into(), ..point(now, [("n", 1.0)]) },
        MetricPoint {
            timestamp: Some(prost_types::Timestamp { seconds: 0, nanos: -1 }),
            ..point(now, [("n", 1.0)])
        },
        point(now, [("fine", 1.0)]),
    ];
    // The execution is not there, and that is not looked up.
    let fields = bad_fields(s.try_record_metrics(again("nobody", "", bad.clone())).await);
    let named: Vec<&str> = fields.iter().map(|(field, _)| field.as_str()).collect();
    let expected = [
        "points[0].metrics",
        "points[1].metrics",
        "points[2].timestamp",
        "points[3].metrics",
        "points[4].metrics",
        "points[5].metrics",
        "points[6].step_id",
        "points[7].execution_id",
        "points[8].timestamp",
        "request_id",
    ];
    assert_eq!(named, expected, "{fields:?}");
    // So many that they would not fit into an answer.
    let many = vec![point(now, [("n", f64::NAN)]); 5000];
    let fields = bad_fields(s.try_record_metrics(record("nobody", many)).await);
    assert!((10..100).contains(&fields.len()), "{}", fields.len());
}

pub async fn metrics_have_bounds(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let now = wall_clock_ms();
    let named = |answer: Answer<RecordMetricsResponse>, field: &str, sizes: &[&str]| {
        let fields = bad_fields(answer);
        assert_eq!(fields.len(), 1, "{fields:?}");
        assert_eq!(fields[0].0, field, "{fields:?}");
        assert!(sizes.iter().all(|size| fields[0].1.contains(size)), "{fields:?}");
    };
    let many = |count| vec![point(now - 1, [("n", 1.0)]); count];
    assert_eq!(s.record_metrics(record("e", many(10_000))).await.accepted, 10_000);
    let answer = s.try_record_metrics(record("e", many(10_001))).await;
    named(answer, "points", &["10001", "10000"]);
    let wide = |count| {
        let metrics = (0..count).map(|n| (format!("m{n}"), 1.0)).collect();
        MetricPoint { metrics, ..point(now, []) }
    };
    assert_eq!(s.record_metrics(record("e", vec![wide(1000)])).await.accepted, 1);
    let answer = s.try_record_metrics(record("e", vec![wide(1001)])).await;
    named(answer, "points[0].metrics", &["1001", "1000"]);
    let longest = "é".repeat(256);
    let answer = s.record_metrics(record("e", vec![point(now, [(&longest, 1.0)])])).await;
    assert_eq!(answer.accepted, 1);
    let long = "é".repeat(257);
    let answer = s.try_record_metrics(record("e", vec![point(now, [(&long, 1.0)])])).await;
    named(answer, "points[0].metrics", &["256"]);
    let answer = s.try_record_metrics(again("e", &text(129), many(1))).await;
    named(answer, "request_id", &["129", "128"]);
    assert_eq!(s.record_metrics(again("e", &text(128), many(1))).await.accepted, 1);

    let bad = QueryMetricsRequest {
        execution_id: String::new(),
        names: vec!["n".into(); 51],
        since: Some(time(5)),
        until: Some(time(5)),
        interval: Some(prost_types::Duration { seconds: 0, nanos: 500_000 }),
        page_size: 10_001,
        page_token: String::new(),
        ..Default::default()
    };
    let fields = bad_fields(s.try_query_metrics(bad).await);
    let named: Vec<&str> = fields.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(named, ["execution_id", "interval", "names", "page_size", "until"]);
    for interval in [every(0), every(-1000), every(367 * 24 * HOUR_MS)] {
        let fields =
            bad_fields(s.try_query_metrics(QueryMetricsRequest { interval, ..query("e") }).await);
        assert_eq!(fields[0].0, "interval");
    }
    // A page ends before its reply gets too large.
    let page = QueryMetricsRequest { page_size: 10_000, ..query("e") };
    for _ in 0..300 {
        s.record_metrics(record("e", vec![wide(1000)])).await;
    }
    let (points, _, pages) = all(&s, page).await;
    assert!(pages > 1 && points.len() == 10_000 + 303, "{} in {pages}", points.len());
}

pub async fn forged_and_foreign_tokens_of_metrics_are_refused(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    s.create("f").await;
    let now = wall_clock_ms();
    let points = (0..3).map(|n| point(now - n * 10_000, [("n", 1.0)])).collect();
    s.record_metrics(record("e", points)).await;
    let raw = QueryMetricsRequest { page_size: 1, ..query("e") };
    let by_interval = QueryMetricsRequest { interval: every(1000), ..raw.clone() };
    let token_of = async |request: &QueryMetricsRequest| {
        let token = s.query_metrics(request.clone()).await.next_page_token;
        assert!(!token.is_empty());
        token
    };
    let (raw_token, interval_token) = (token_of(&raw).await, token_of(&by_interval).await);
    let uses = [
        (by_interval.clone(), raw_token.clone()),
        (raw.clone(), interval_token),
        (raw.clone(), "forged".to_owned()),
        (QueryMetricsRequest { execution_id: "f".into(), ..raw.clone() }, raw_token.clone()),
        (QueryMetricsRequest { names: vec!["n".into()], ..raw.clone() }, raw_token.clone()),
        (QueryMetricsRequest { since: Some(time(0)), ..raw.clone() }, raw_token.clone()),
    ];
    for (request, page_token) in uses {
        let answer = s.try_query_metrics(QueryMetricsRequest { page_token, ..request }).await;
        refused(answer, Code::InvalidArgument, "INVALID_TOKEN");
    }
    let page = QueryMetricsRequest { page_size: 2, page_token: raw_token, ..query("e") };
    assert_eq!(s.query_metrics(page).await.points.len(), 2, "another page size is fine");
}

pub async fn a_stream_of_metrics_is_answered_with_sums(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    s.create("f").await;
    let now = wall_clock_ms();
    let messages: Vec<StreamMetricsRequest> = (0..200)
        .map(|n| StreamMetricsRequest {
            execution_id: if n % 4 == 0 { "f" } else { "e" }.into(),
            points: vec![
                point(now - 1000, [("n", n as f64)]),
                point(now - 1000 + n, [("m", n as f64)]),
                point(1000, [("n", -1.0)]),
            ],
            request_id: None,
        })
        .collect();
    let answer = ok(s.try_stream_metrics(messages).await);
    assert_eq!((answer.accepted, answer.too_old, answer.in_future), (400, 200, 0));
    let named = |id: &str| QueryMetricsRequest { names: vec!["n".into()], ..query(id) };
    let (e, _, _) = all(&s, named("e")).await;
    assert_eq!(e.len(), 150);
    assert!(values(&e, "n").is_sorted(), "in order of arrival");
    assert_eq!(all(&s, named("f")).await.0.len(), 50);
    let nothing = ok(s.try_stream_metrics(Vec::new()).await);
    assert_eq!(nothing, StreamMetricsResponse::default());
}

pub async fn a_bad_message_ends_a_stream_of_metrics_and_says_what_is_stored(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let now = wall_clock_ms();
    let message = |id: &str, value: f64| StreamMetricsRequest {
        execution_id: id.into(),
        points: vec![point(now - 1000, [("n", value)]), point(0, [("n", value)])],
        request_id: None,
    };
    for (last, code, reason) in [
        (message("e", f64::NAN), Code::InvalidArgument, "INVALID_ARGUMENT"),
        (message("nobody", 1.0), Code::NotFound, "EXECUTION_NOT_FOUND"),
    ] {
        let messages = vec![message("e", 1.0), message("e", 2.0), message("e", 3.0), last];
        let details = refused(s.try_stream_metrics(messages).await, code, reason);
        let told = &details.error_info().expect("checked by refused").metadata;
        let told = |name: &str| told.get(name).map(String::as_str);
        assert_eq!(
            (told("message"), told("accepted"), told("too_old"), told("in_future")),
            (Some("4"), Some("3"), Some("3"), Some("0"))
        );
    }
    assert_eq!(
        values(&s.query_metrics(query("e")).await.points, "n"),
        [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]
    );
}

pub async fn metrics_flow_through_ingest_in_order(b: Backend) {
    let s = b.serve().await;
    let now = wall_clock_ms();
    let mut writes = vec![
        W::RecordMetrics(record("e", vec![point(now, [("n", 0.0)])])),
        W::CreateExecution(create("e")),
    ];
    for n in 1..100 {
        writes.push(W::RecordMetrics(record("e", vec![point(now - 1000, [("n", f64::from(n))])])));
    }
    writes.push(W::RecordMetrics(record("e", vec![point(now, [("n", f64::NAN)])])));
    writes.push(W::FinishExecution(finish("e", ExecutionStatus::Completed)));
    let answers = s.ingest_all(writes).await;
    let code = |answer: &R| match answer {
        R::Error(error) => Code::from_i32(error.code),
        _ => Code::Ok,
    };
    assert_eq!(code(&answers[0]), Code::NotFound, "{:?}", answers[0]);
    for answer in &answers[2..101] {
        let R::Metrics(answer) = answer else { panic!("{answer:?}") };
        assert_eq!(answer.accepted, 1);
    }
    assert_eq!(code(&answers[101]), Code::InvalidArgument);
    assert_eq!(code(&answers[102]), Code::Ok, "a refusal ends nothing");
    let stored = values(&s.query_metrics(query("e")).await.points, "n");
    assert_eq!(stored, (1..100).map(f64::from).collect::<Vec<_>>());
}

pub async fn points_are_put_as_they_are_and_once(b: Backend) {
    let s = serve_keeping_all(&b).await;
    let points = || -> Vec<MetricPoint> {
        (0..50).map(|n| point(1_300_000_000_000 + n / 2, [("n", (n / 4) as f64)])).collect()
    };
    let put = async |request: RecordMetricsRequest| -> (i64, i64) {
        let answers = s.ingest_all(vec![W::PutMetrics(request)]).await;
        let R::Metrics(answer) = &answers[0] else { panic!("{answers:?}") };
        assert_eq!((answer.too_old, answer.in_future), (0, 0));
        (answer.accepted, answer.already_there)
    };
    // Of an execution that is not stored.
    assert_eq!(put(record("later", points())).await, (50, 0));
    assert_eq!(s.query_metrics(query("later")).await.points.len(), 50);
    assert_eq!(put(record("later", points())).await, (50, 50));
    // With an id, known or not, it is no different.
    assert_eq!(put(again("later", "r", points())).await, (50, 50));
    assert_eq!(put(again("later", "r", points())).await, (50, 50));
    let mut more = points();
    more.insert(7, point(1_300_000_000_005, [("n", 1.0)]));
    more.push(point(1_300_000_000_000, [("n", 0.0)]));
    assert_eq!(put(record("later", more.clone())).await, (52, 50));
    assert_eq!(put(record("later", more)).await, (52, 52));
    assert_eq!(s.query_metrics(query("later")).await.points.len(), 52);
    // Once the execution is there, they are its points.
    s.create("later").await;
    s.delete_execution(DeleteExecutionRequest { execution_id: "later".into(), force: true }).await;
    let answer = s.try_query_metrics(query("later")).await;
    refused(answer, Code::NotFound, "EXECUTION_NOT_FOUND");
    // What is too old is counted here as well.
    s.shutdown().await;
    let s = b.serve().await;
    let answers = s.ingest_all(vec![W::PutMetrics(record("later", points()))]).await;
    let R::Metrics(answer) = &answers[0] else { panic!("{answers:?}") };
    assert_eq!((answer.accepted, answer.too_old), (0, 50));
}

pub async fn metrics_are_shared_by_all_servers(b: Backend) {
    let (one, two) = b.pair().await;
    one.create("e").await;
    let now = wall_clock_ms();
    one.record_metrics(record("e", vec![point(now - 2, [("n", 1.0)])])).await;
    two.record_metrics(record("e", vec![point(now - 1, [("n", 2.0)])])).await;
    for s in [&one, &two] {
        assert_eq!(values(&s.query_metrics(query("e")).await.points, "n"), [1.0, 2.0]);
    }
    let page = QueryMetricsRequest { page_size: 1, ..query("e") };
    let page_token = one.query_metrics(page.clone()).await.next_page_token;
    let next = two.query_metrics(QueryMetricsRequest { page_token, ..page }).await;
    assert_eq!(values(&next.points, "n"), [2.0]);
}
