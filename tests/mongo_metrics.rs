//! Metrics as only MongoDB can show them: the collection itself, other programs beside us, and requests that were
//! cut short.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::collections::HashMap;
use std::time::Duration;

use mongodb::bson::{Bson, DateTime, Decimal128, Document, doc, oid::ObjectId};
use mongodb::{Collection, Database};
use stepwell::config::Config;
use stepwell::proto::*;
use tonic::Code;

use support::backend::{Backend, Kind};
use support::client::*;
use support::server::Server;
use support::values::*;
use support::*;

const THIRTY_DAYS: i64 = 30 * 24 * 3600;

/// A case on a database of its own.
fn conduct<F: Future<Output = ()>>(case: impl FnOnce(Backend) -> F) {
    run(async {
        let backend = Backend::fresh(Kind::Mongodb);
        case(backend.clone()).await;
        backend.remove().await;
    });
}

/// The same with a time series, and with an ordinary collection that was there before.
fn conduct_on_both<F: Future<Output = ()>>(case: impl Fn(Backend) -> F) {
    conduct(&case);
    conduct(async |b| {
        b.mongodb().await.create_collection("execution_metrics").await.expect("created");
        case(b).await;
    });
}

async fn metrics(b: &Backend) -> Collection<Document> {
    b.mongodb().await.collection("execution_metrics")
}

async fn documents(b: &Backend) -> Vec<Document> {
    let mut found = Vec::new();
    let mut cursor = metrics(b).await.find(doc! {}).sort(doc! { "_id": 1 }).await.expect("found");
    while cursor.advance().await.expect("read") {
        found.push(cursor.deserialize_current().expect("a document"));
    }
    found
}

fn keep(seconds: u64) -> impl FnOnce(&mut Config) {
    move |config| config.retention.metrics = Duration::from_secs(seconds)
}

fn point(at: i64, name: &str, value: f64) -> MetricPoint {
    MetricPoint {
        timestamp: Some(time(at)),
        metrics: HashMap::from([(name.to_owned(), value)]),
        ..Default::default()
    }
}

fn record(points: Vec<MetricPoint>, request_id: Option<&str>) -> RecordMetricsRequest {
    let request_id = request_id.map(str::to_owned);
    RecordMetricsRequest { execution_id: "e".into(), points, request_id }
}

async fn query(s: &Server) -> Vec<MetricPoint> {
    let request = QueryMetricsRequest { execution_id: "e".into(), ..Default::default() };
    s.query_metrics(request).await.points
}

/// How `listCollections` describes the metrics.
async fn described(database: &Database) -> Document {
    let command = doc! { "listCollections": 1, "filter": { "name": "execution_metrics" } };
    let reply = database.run_command(command).await.expect("collections are listed");
    let batch = reply.get_document("cursor").expect("a cursor").get_array("firstBatch");
    let found = batch.expect("a batch")[0].as_document().expect("a collection");
    found.clone()
}

/// Keys and age of each index.
async fn indexes(b: &Backend) -> Vec<(String, Option<i64>)> {
    let command = doc! { "listIndexes": "execution_metrics" };
    let reply = b.mongodb().await.run_command(command).await.expect("indexes are listed");
    let batch = reply.get_document("cursor").expect("a cursor").get_array("firstBatch");
    let described = |index: &Bson| {
        let index = index.as_document().expect("an index");
        let keys = index.get_document("key").expect("keys");
        let age = index.get("expireAfterSeconds").and_then(|age| {
            age.as_i64().or_else(|| age.as_i32().map(i64::from)).or(age.as_f64().map(|n| n as i64))
        });
        (keys.keys().cloned().collect::<Vec<_>>().join(","), age)
    };
    batch.expect("a batch").iter().map(described).collect()
}

#[test]
fn points_have_the_types_of_the_data_model() {
    conduct_on_both(async |b| {
        let s = b.serve().await;
        s.create("e").await;
        let now = wall_clock_ms();
        let of_step = MetricPoint { step_id: Some(3), ..point(now, "b.$c", 2.0) };
        s.record_metrics(record(vec![point(now - 1, "a", 0.5), of_step], None)).await;
        let found = documents(&b).await;
        assert_eq!(found.len(), 2);
        let date = |ms| Bson::DateTime(DateTime::from_millis(ms));
        for (document, at, metrics) in
            [(&found[0], now - 1, doc! { "a": 0.5 }), (&found[1], now, doc! { "b.$c": 2.0 })]
        {
            assert!(matches!(document["_id"], Bson::ObjectId(_)));
            assert_eq!(document["timestamp"], date(at));
            assert_eq!(document["execution_id"], Bson::from("e"));
            assert_eq!(document["metrics"], Bson::Document(metrics));
        }
        assert_eq!((found[0].len(), found[0].get("step_id")), (4, None));
        assert_eq!((found[1].len(), found[1].get("step_id")), (5, Some(&Bson::Int32(3))));
    });
}

#[test]
fn the_time_series_ends_points_as_the_setting_says() {
    conduct(async |b| {
        b.serve().await.shutdown().await;
        let database = b.mongodb().await;
        let found = described(&database).await;
        assert_eq!(found.get_str("type").ok(), Some("timeseries"));
        let options = found.get_document("options").expect("options").clone();
        let series = options.get_document("timeseries").expect("a time series");
        assert_eq!(series.get_str("timeField").ok(), Some("timestamp"));
        assert_eq!(series.get_str("metaField").ok(), Some("execution_id"));
        let age = |options: &Document| match options.get("expireAfterSeconds") {
            None => None,
            Some(Bson::Int32(seconds)) => Some(i64::from(*seconds)),
            Some(Bson::Int64(seconds)) => Some(*seconds),
            Some(other) => panic!("{other:?}"),
        };
        assert_eq!(age(&options), Some(THIRTY_DAYS));
        assert_eq!(indexes(&b).await, [("execution_id,timestamp".to_owned(), None)]);
        for (seconds, expected) in [(3600, Some(3600)), (0, None), (7200, Some(7200))] {
            // The setting changes, and a second start with it changes nothing.
            for _ in 0..2 {
                b.serve_with(keep(seconds)).await.shutdown().await;
                let found = described(&database).await;
                assert_eq!(age(found.get_document("options").expect("options")), expected);
            }
        }
        assert_eq!(indexes(&b).await.len(), 1);
    });
}

#[test]
fn an_ordinary_collection_is_used_as_it_is() {
    conduct(async |b| {
        let now = wall_clock_ms();
        let before = doc! {
            "timestamp": DateTime::from_millis(now - 5000),
            "execution_id": "e",
            "metrics": { "n": 1 },
        };
        metrics(&b).await.insert_one(before).await.expect("inserted");
        let s = b.serve().await;
        s.create("e").await;
        let found = described(&b.mongodb().await).await;
        assert_eq!(found.get_str("type").ok(), Some("collection"));
        let of = |age: Option<i64>| {
            vec![
                ("_id".to_owned(), None),
                ("timestamp".to_owned(), age),
                ("execution_id,timestamp".to_owned(), None),
            ]
        };
        assert_eq!(indexes(&b).await, of(Some(THIRTY_DAYS)));
        s.record_metrics(record(vec![point(now, "n", 2.0)], None)).await;
        let points = query(&s).await;
        assert_eq!(points.iter().map(|point| point.metrics["n"]).collect::<Vec<_>>(), [1.0, 2.0]);
        s.shutdown().await;
        b.serve_with(keep(60)).await.shutdown().await;
        assert_eq!(indexes(&b).await, of(Some(60)));
        // An age cannot be taken from an index: it gets the greatest there is.
        let s = b.serve_with(keep(0)).await;
        assert_eq!(indexes(&b).await, of(Some(i64::from(i32::MAX))));
        s.delete_execution(DeleteExecutionRequest { execution_id: "e".into(), force: true }).await;
        assert_eq!(documents(&b).await, Vec::<Document>::new());
    });
}

#[test]
fn points_of_other_programs_are_read_as_far_as_they_go() {
    conduct_on_both(async |b| {
        let s = b.serve().await;
        let now = wall_clock_ms();
        let base = now - now % 1000 - 10_000;
        let foreign = |offset: i64, rest: Document| {
            let mut document = doc! {
                "timestamp": DateTime::from_millis(base + offset),
                "execution_id": "e",
            };
            document.extend(rest);
            document
        };
        let decimal: Decimal128 = "2.5".parse().expect("a number");
        let theirs = [
            foreign(
                1,
                doc! { "metrics": { "n": 1, "text": "x", "list": [1, 2], "in": { "n": 1 } } },
            ),
            foreign(
                2,
                doc! { "metrics": { "n": 5_000_000_000_i64 }, "step_id": 3.0, "more": true },
            ),
            foreign(3, doc! { "metrics": { "n": decimal }, "step_id": "x" }),
            foreign(4, doc! { "metrics": { "n": f64::NAN, "m": f64::INFINITY } }),
            foreign(5, doc! { "metrics": { "n": Bson::Null } }),
            foreign(6, doc! { "metrics": [1, 2] }),
            foreign(7, doc! {}),
            foreign(8, doc! { "metrics": { "n": -0.5 }, "step_id": -1 }),
        ];
        metrics(&b).await.insert_many(theirs).await.expect("inserted");
        // There is no such execution, but there are points of it.
        let points = query(&s).await;
        let found: Vec<_> = points
            .iter()
            .map(|point| {
                let at = millis(&point.timestamp).expect("a time") - base;
                assert_eq!(point.metrics.len(), 1, "{point:?}");
                (at, point.metrics["n"], point.step_id)
            })
            .collect();
        assert_eq!(found, [(1, 1.0, None), (2, 5e9, Some(3)), (3, 2.5, None), (8, -0.5, None)]);
        for names in [vec![], vec!["n".to_owned()], vec!["n".to_owned(), "list".to_owned()]] {
            let asked = QueryMetricsRequest {
                execution_id: "e".into(),
                names,
                interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
                ..Default::default()
            };
            let told = s.query_metrics(asked).await.intervals;
            assert_eq!(told.len(), 1, "{told:?}");
            let told = &told[0];
            assert_eq!((told.name.as_str(), told.count), ("n", 4));
            assert_eq!((told.min, told.max, told.last), (-0.5, 5e9, -0.5));
            assert_eq!(told.mean, (1.0 + 5e9 + 2.5 - 0.5) / 4.0);
        }
    });
}

/// The document of the one request.
async fn request(b: &Backend) -> Document {
    let requests = b.mongodb().await.collection::<Document>("stepwell_metric_requests");
    requests.find_one(doc! {}).await.expect("found").expect("a request")
}

async fn set_request(b: &Backend, fields: Document) {
    let requests = b.mongodb().await.collection::<Document>("stepwell_metric_requests");
    requests.update_one(doc! {}, doc! { "$set": fields }).await.expect("updated");
}

#[test]
fn a_request_that_was_cut_short_is_completed_once() {
    conduct_on_both(async |b| {
        let s = b.serve().await;
        s.create("e").await;
        let now = wall_clock_ms();
        let mut points: Vec<MetricPoint> =
            (0..100).map(|n| point(now - 1000 + n / 10, "n", n as f64)).collect();
        points.push(point(now + 3_600_000, "n", -1.0));
        let send = async || s.try_record_metrics(record(points.clone(), Some("r"))).await;
        let first = ok(send().await);
        assert_eq!((first.accepted, first.in_future), (100, 1));
        let stored = documents(&b).await;
        assert_eq!(stored.len(), 100);
        assert!(request(&b).await.get_bool("done").expect("a mark"));

        let past = DateTime::from_millis(now - 1);
        let cut_short = || doc! { "done": false, "until": past, "owner": ObjectId::new() };
        // Nothing was inserted, some, every second one, all but the mark, all but one.
        let kept: [Box<dyn Fn(usize) -> bool>; 5] = [
            Box::new(|_| false),
            Box::new(|n| n < 37),
            Box::new(|n| n % 2 == 1),
            Box::new(|_| true),
            Box::new(|n| n != 50),
        ];
        for kept in kept {
            metrics(&b).await.delete_many(doc! { "execution_id": "e" }).await.expect("deleted");
            let rest: Vec<_> =
                stored.iter().enumerate().filter(|(n, _)| kept(*n)).map(|(_, d)| d).collect();
            if !rest.is_empty() {
                metrics(&b).await.insert_many(rest).await.expect("inserted");
            }
            set_request(&b, cut_short()).await;
            assert_eq!(ok(send().await), first, "the first answer");
            assert_eq!(documents(&b).await, stored, "each point once, under its own id");
            assert_eq!(ok(send().await), first);
            assert_eq!(documents(&b).await.len(), 100);
        }

        // Another server is at it just now.
        let later = DateTime::from_millis(now + 60_000);
        set_request(&b, doc! { "done": false, "until": later }).await;
        refused(send().await, Code::Unavailable, "STORE_AWAY");
        assert_eq!(documents(&b).await.len(), 100);
        // Other points are not the same request, however far that got.
        let other = s.try_record_metrics(record(vec![point(now, "n", 0.0)], Some("r"))).await;
        refused(other, Code::AlreadyExists, "METRIC_REQUEST_ALREADY_EXISTS");
        // After its day it is a new one, also before the database has let go of it.
        set_request(&b, doc! { "known_until": past }).await;
        assert_eq!(ok(send().await), first);
        assert_eq!(documents(&b).await.len(), 200);
    });
}

#[test]
fn points_of_other_programs_reach_a_watcher() {
    conduct_on_both(async |b| {
        let s = b.serve().await;
        s.create("e").await;
        let now = wall_clock_ms();
        let theirs = |execution_id: &str, n: i32| {
            doc! {
                "timestamp": DateTime::from_millis(now),
                "execution_id": execution_id,
                "metrics": { "n": n },
            }
        };
        let before = [theirs("e", 0), theirs("other", 0)];
        metrics(&b).await.insert_many(before).await.expect("inserted");
        let mut watch = s
            .watch(WatchExecutionRequest {
                execution_id: "e".into(),
                include_metrics: true,
                ..Default::default()
            })
            .await;
        watch.snapshot().await;
        for n in 1..4 {
            let new = [theirs("other", n), theirs("e", n)];
            metrics(&b).await.insert_many(new).await.expect("inserted");
            let event = watch.next_change().await;
            let points = event.metrics().expect("points").to_vec();
            assert_eq!(points.len(), 1, "{points:?}");
            assert_eq!(points[0].metrics["n"], f64::from(n));
        }
    });
}

const HOUR_MS: i64 = 3_600_000;

async fn hours(b: &Backend) -> Collection<Document> {
    b.mongodb().await.collection::<Document>("stepwell_metric_hours")
}

/// Lets two minutes go by since the last points, and waits until every hour has its figures.
async fn settled(b: &Backend) {
    let hours = hours(b).await;
    let past = DateTime::from_millis(wall_clock_ms() - 120_000);
    hours.update_many(doc! {}, doc! { "$set": { "at": past } }).await.expect("aged");
    eventually("the figures are computed", async || {
        let dirty = hours.count_documents(doc! { "dirty": true }).await.expect("counted");
        (dirty == 0).then_some(())
    })
    .await;
}

/// Every page of a query per interval: start, name, least, greatest, mean, last, count.
async fn per_interval(
    s: &Server,
    hours: i64,
    change: impl Fn(&mut QueryMetricsRequest),
) -> Vec<Told> {
    let interval = Some(prost_types::Duration { seconds: hours * 3600, nanos: 0 });
    let mut request = QueryMetricsRequest {
        execution_id: "e".into(),
        interval,
        page_size: 7,
        ..Default::default()
    };
    change(&mut request);
    let mut told = Vec::new();
    loop {
        let page = s.query_metrics(request.clone()).await;
        for i in page.intervals {
            let start = i.start.expect("a start").seconds * 1000;
            told.push((start, i.name, [i.min, i.max, i.mean, i.last], i.count));
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return told;
        }
    }
}

type Change = Box<dyn Fn(&mut QueryMetricsRequest)>;
type Told = (i64, String, [f64; 4], i64);

/// But for the last digits of means.
fn same(told: &[Told], expected: &[Told]) {
    assert_eq!(told.len(), expected.len(), "{told:?} {expected:?}");
    for (told, expected) in told.iter().zip(expected) {
        assert_eq!((told.0, &told.1, told.3), (expected.0, &expected.1, expected.3));
        for (told, expected) in told.2.iter().zip(expected.2) {
            assert!((told - expected).abs() <= expected.abs() * 1e-12, "{told} {expected}");
        }
    }
}

#[test]
fn figures_of_hours_say_what_the_points_say() {
    conduct_on_both(async |b| {
        let s = b.serve().await;
        // Looks at fifty points or figures for a page.
        let narrow = b.serve_with(|config| config.limits.page_examined_records = 1).await;
        s.create("e").await;
        let newest = wall_clock_ms().div_euclid(24 * HOUR_MS) * 24 * HOUR_MS;
        // Two days of a point every 7 minutes, with a night in which nothing happens; in whole numbers, so that means
        // are exact.
        let points: Vec<MetricPoint> = (0..48 * 60 / 7)
            .filter(|n| !(18..26).contains(&(n * 7 / 60)))
            .map(|n| {
                let mut point =
                    point(newest - 48 * HOUR_MS + n * 7 * 60_000, "a.b", (n % 13) as f64);
                point.metrics.insert("c".to_owned(), (n * n % 31) as f64 - 9.0);
                point
            })
            .collect();
        s.record_metrics(record(points, None)).await;
        let shapes: [(i64, Change); 5] = [
            (1, Box::new(|_| {})),
            (24, Box::new(|_| {})),
            (5, Box::new(|request| request.names = vec!["c".to_owned()])),
            (
                6,
                Box::new(move |request| {
                    request.since = Some(time(newest - 47 * HOUR_MS - 1_234_567));
                    request.until = Some(time(newest - 3 * HOUR_MS + 1_234_567));
                }),
            ),
            (2, Box::new(move |request| request.since = Some(time(newest - 20 * HOUR_MS)))),
        ];
        let mut from_points = Vec::new();
        for (hours, change) in &shapes {
            from_points.push(per_interval(&s, *hours, change).await);
        }
        for ((hours, change), expected) in shapes.iter().zip(&from_points) {
            same(&per_interval(&narrow, *hours, change).await, expected);
        }
        assert!(from_points.iter().all(|told| told.len() >= 2));
        settled(&b).await;
        for ((hours, change), expected) in shapes.iter().zip(&from_points) {
            same(&per_interval(&s, *hours, change).await, expected);
            same(&per_interval(&narrow, *hours, change).await, expected);
        }
        let hourly = QueryMetricsRequest {
            execution_id: "e".into(),
            interval: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
            page_size: 500,
            ..Default::default()
        };
        let page = narrow.query_metrics(hourly).await;
        assert!((40..=50).contains(&page.intervals.len()), "{}", page.intervals.len());
        assert_ne!(page.next_page_token, "");

        // They are what is read.
        let all = hours(&b).await;
        let hour = (newest - 10 * HOUR_MS) / HOUR_MS;
        let one = doc! { "_id": { "e": "e", "h": hour } };
        all.update_one(one.clone(), doc! { "$set": { "m.$[].n": 1000_i64 } })
            .await
            .expect("spoilt");
        let of_hour = move |request: &mut QueryMetricsRequest| {
            request.since = Some(time(hour * HOUR_MS));
            request.until = Some(time((hour + 1) * HOUR_MS));
        };
        let told = per_interval(&s, 1, of_hour).await;
        assert_eq!(told.iter().map(|told| told.3).collect::<Vec<_>>(), [1000, 1000]);
        // One more point, and they are good for nothing. Through a server that has not marked the hour a moment ago:
        // no figures are computed so soon after that, unless time is made to jump.
        narrow.record_metrics(record(vec![point(hour * HOUR_MS + 5, "c", 50.0)], None)).await;
        let told = per_interval(&s, 1, of_hour).await;
        let c = told.iter().find(|told| told.1 == "c").expect("c");
        assert_eq!(c.2[1], 50.0);
        assert!(c.3 < 20, "{told:?}");
        settled(&b).await;
        assert_eq!(per_interval(&s, 1, of_hour).await, told);

        // They go with the execution.
        s.delete_execution(DeleteExecutionRequest { execution_id: "e".into(), force: true }).await;
        eventually("nothing is left", async || {
            (all.count_documents(doc! {}).await.expect("counted") == 0).then_some(())
        })
        .await;
    });
}
