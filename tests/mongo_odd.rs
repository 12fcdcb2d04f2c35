//! Documents and collections of other programs on MongoDB: any type in any field, and metrics in whatever collection.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::collections::{BTreeSet, HashMap};

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Binary, Bson, DateTime, Decimal128, Document, Regex, Timestamp, doc};
use serde_json::json;
use stepwell::proto::*;

use support::backend::{Backend, Kind};
use support::client::*;
use support::values::*;
use support::*;

/// A case on a database of its own.
fn conduct<F: Future<Output = ()>>(case: impl FnOnce(Backend) -> F) {
    run(async {
        let backend = Backend::fresh(Kind::Mongodb);
        case(backend.clone()).await;
        backend.remove().await;
    });
}

async fn command(b: &Backend, command: Document) {
    b.mongodb().await.run_command(command).await.expect("the command is right");
}

/// A document as old programs left it: an id, and what else is given.
fn old(id: &str, more: Document) -> Document {
    let mut document = doc! {
        "execution_id": id, "app_id": 1, "app_name": "app", "status": "running", "metadata": {},
        "started_at": DateTime::from_millis(1_600_000_000_000),
    };
    document.extend(more);
    document
}

/// The indexes of a collection by name.
async fn indexes(b: &Backend, collection: &str) -> HashMap<String, Document> {
    let list = doc! { "listIndexes": collection };
    let Ok(reply) = b.mongodb().await.run_command(list).await else { return HashMap::new() };
    let cursor = reply.get_document("cursor").expect("a cursor");
    let all = cursor.get_array("firstBatch").expect("a batch").iter();
    let all = all.map(|index| index.as_document().expect("an index").clone());
    all.map(|index| (index.get_str("name").expect("a name").to_owned(), index)).collect()
}

/// Values of every type that may stand where a time of start belongs.
fn odd_values() -> Vec<Bson> {
    let code = |code: &str| Bson::JavaScriptCode(code.to_owned());
    let regex = Regex {
        pattern: "a".try_into().expect("a pattern"),
        options: "".try_into().expect("none"),
    };
    vec![
        DateTime::from_millis(1_700_000_000_000).into(),
        DateTime::from_millis(1_700_000_000_000).into(),
        DateTime::from_millis(-5).into(),
        "2021-01-01T00:00:00Z".into(),
        "2021".into(),
        "".into(),
        7.into(),
        7_i64.into(),
        3.5.into(),
        f64::NAN.into(),
        f64::NEG_INFINITY.into(),
        Bson::Decimal128("7.0".parse::<Decimal128>().expect("a number")),
        true.into(),
        false.into(),
        Bson::Null,
        Bson::Null,
        doc! {}.into(),
        doc! { "$date": "2021" }.into(),
        ObjectId::from_bytes([1; 12]).into(),
        Bson::Binary(Binary { subtype: 0.into(), bytes: vec![1, 2] }),
        Bson::Timestamp(Timestamp { time: 5, increment: 1 }),
        Bson::RegularExpression(regex),
        code("a"),
        code("b"),
        Bson::MinKey,
        Bson::MaxKey,
    ]
}

#[test]
fn pages_cross_types() {
    conduct(async |b| {
        let mut documents: Vec<Document> = odd_values()
            .into_iter()
            .enumerate()
            .map(|(number, value)| old(&format!("e{number:02}"), doc! { "started_at": value }))
            .collect();
        let mut missing = old("missing", doc! {});
        missing.remove("started_at");
        documents.push(missing);
        let all: BTreeSet<String> = documents
            .iter()
            .map(|one| one.get_str("execution_id").expect("an id").to_owned())
            .collect();
        b.executions().await.insert_many(documents).await.expect("stored");
        let s = b.serve().await;
        let by_app = ExecutionFilter { app_ids: vec![1], ..Default::default() };
        let by_status =
            ExecutionFilter { statuses: vec![ExecutionStatus::Running.into()], ..by_app.clone() };
        let by_name = ExecutionFilter { app_names: vec!["app".into()], ..Default::default() };
        for filter in [ExecutionFilter::default(), by_app, by_status, by_name] {
            for order in [ExecutionOrder::StartedAtDesc, ExecutionOrder::StartedAtAsc] {
                let mut orders = BTreeSet::new();
                for page_size in [1, 2, 3, 4, 50] {
                    let mut listed = Vec::new();
                    let mut page_token = String::new();
                    loop {
                        let page = s
                            .list_executions(ListExecutionsRequest {
                                filter: Some(filter.clone()),
                                order: order.into(),
                                page_size,
                                page_token,
                                ..Default::default()
                            })
                            .await;
                        listed.extend(page.executions.into_iter().map(|one| one.execution_id));
                        page_token = page.next_page_token;
                        if page_token.is_empty() {
                            break;
                        }
                    }
                    let set: BTreeSet<String> = listed.iter().cloned().collect();
                    assert_eq!(set, all, "{filter:?} {order:?} {page_size}");
                    assert_eq!(listed.len(), all.len(), "{filter:?} {order:?} {page_size}: twice");
                    orders.insert(listed);
                }
                assert_eq!(
                    orders.len(),
                    1,
                    "{filter:?} {order:?}: the size of a page changes nothing"
                );
            }
        }
        let count = s.count_executions(CountExecutionsRequest::default()).await;
        assert_eq!((count.count, count.exact), (all.len() as i64, true));
    });
}

#[test]
fn pages_leave_out_no_double() {
    conduct(async |b| {
        let twice: Vec<Document> =
            (0..7).map(|n| old("same", doc! { "user_id": n.to_string() })).collect();
        b.executions().await.insert_many(twice).await.expect("stored");
        b.executions().await.insert_one(old("other", doc! {})).await.expect("stored");
        let s = b.serve().await;
        for page_size in [1, 2, 3, 50] {
            let mut users = Vec::new();
            let mut page_token = String::new();
            loop {
                let request = ListExecutionsRequest { page_size, page_token, ..Default::default() };
                let page = s.list_executions(request).await;
                users.extend(page.executions.into_iter().map(|one| one.user_id));
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
            assert_eq!(users.len(), 8, "{page_size}");
            assert_eq!(users.iter().collect::<BTreeSet<_>>().len(), 8, "{page_size}");
        }
    });
}

#[test]
fn steps_of_one_number_are_all_listed_and_numbers_that_are_not_whole_are_counted_on_from() {
    conduct(async |b| {
        let step = |id: Bson, name: &str| doc! { "execution_id": "e", "step_id": id, "step_name": name, "status": "running" };
        let twice = ["a", "b", "c"].map(|name| step(1.into(), name));
        b.steps().await.insert_many(twice).await.expect("stored");
        b.steps().await.insert_one(step(2.into(), "d")).await.expect("stored");
        b.executions().await.insert_one(old("e", doc! {})).await.expect("stored");
        let s = b.serve().await;
        for page_size in [1, 2, 3, 50] {
            let mut names = Vec::new();
            let mut page_token = String::new();
            loop {
                let request = ListStepsRequest {
                    execution_id: "e".into(),
                    page_size,
                    page_token,
                    ..Default::default()
                };
                let page = ok(s.try_list_steps(request).await);
                names.extend(page.steps.into_iter().map(|step| step.step_name));
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
            names.sort();
            assert_eq!(names, ["a", "b", "c", "d"], "{page_size}");
        }
        let decimal: Decimal128 = "12.25".parse().expect("a decimal");
        for (number, odd) in [(8, Bson::from(7.5)), (13, decimal.into()), (21, Bson::from(20_i64))]
        {
            b.steps().await.insert_one(step(odd, "odd")).await.expect("stored");
            // Another server knows nothing of the steps before.
            let other = b.serve().await;
            let request = StartStepRequest { step_id: None, ..start("e", 0) };
            let started = ok(other.try_start_step(request).await);
            assert_eq!(started.step_id, Some(number));
        }
    });
}

#[test]
fn documents_of_any_type_are_changed_and_keep_what_is_not_set() {
    conduct(async |b| {
        let odd: Vec<Bson> = odd_values();
        let fields = [
            "revision",
            "metadata",
            "started_at",
            "updated_at",
            "status",
            "user_id",
            "duration_ms",
            "error",
        ];
        let mut documents = Vec::new();
        for (number, value) in odd.iter().enumerate() {
            for field in fields {
                documents.push(old(&format!("{field}-{number}"), doc! { field: value.clone() }));
            }
        }
        for (name, value) in [
            ("list", Bson::from(vec![1, 2])),
            ("objects", Bson::from(vec![doc! { "a": 1 }])),
            ("greatest", Bson::from(1_i64 << 61)),
        ] {
            for field in ["revision", "metadata", "updated_at"] {
                documents.push(old(&format!("{field}-{name}"), doc! { field: value.clone() }));
            }
        }
        b.executions().await.insert_many(&documents).await.expect("stored");
        let s = b.serve().await;
        for before in &documents {
            let id = before.get_str("execution_id").expect("an id");
            let name = id.split('-').next().expect("a name");
            for value in 1..3 {
                let metadata = meta(json!({ "n": value }));
                let request = UpdateExecutionRequest { metadata, ..update(id) };
                let changed = s.try_update_execution(request).await;
                changed.unwrap_or_else(|status| panic!("{before}: {status:?}"));
            }
            ok(s.try_request_cancel(RequestCancelRequest {
                execution_id: id.into(),
                ..Default::default()
            })
            .await);
            let raw = b.executions().await.clone_with_type::<mongodb::bson::RawDocumentBuf>();
            let found = raw.find_one(doc! { "execution_id": id }).await;
            let after = Document::try_from(found.expect("found").expect("one")).expect("BSON");
            assert_eq!(
                after.get_document("metadata").expect("an object").get("n").and_then(Bson::as_i32),
                Some(2)
            );
            for (field, value) in before {
                let may_change = ["revision", "metadata", "updated_at"].contains(&field.as_str());
                if !may_change && !value.as_f64().is_some_and(f64::is_nan) {
                    assert_eq!(after.get(field), Some(value), "{name}: {field} of {before}");
                }
            }
        }
        // The same for steps.
        let steps: Vec<Document> =
            odd.iter()
                .enumerate()
                .flat_map(|(number, value)| {
                    ["revision", "metadata", "started_at", "retry_count", "output", "depends_on"]
                        .map(|field| {
                            let id = format!("revision-{number}");
                            let mut step =
                                doc! { "execution_id": id, "step_name": "s", "status": "running" };
                            step.insert("step_id", 1);
                            step.insert("step_key", field);
                            step.insert(field, value.clone());
                            step
                        })
                })
                .enumerate()
                .map(|(number, mut step)| {
                    step.insert("step_id", number as i32 + 1);
                    step
                })
                .collect();
        b.steps().await.insert_many(&steps).await.expect("stored");
        for before in &steps {
            let (id, step_id) = (
                before.get_str("execution_id").expect("an id"),
                before.get_i32("step_id").expect("a number"),
            );
            let metadata = meta(json!({ "n": 1 }));
            let request = UpdateStepRequest { metadata, ..update_step(id, step_id) };
            s.try_update_step(request)
                .await
                .unwrap_or_else(|status| panic!("{before}: {status:?}"));
            let finish = finish_step(id, step_id, StepStatus::Failed);
            s.try_finish_step(finish).await.unwrap_or_else(|status| panic!("{before}: {status:?}"));
        }
    });
}

#[test]
fn documents_without_a_usable_id_are_counted_as_unreadable() {
    conduct(async |b| {
        let ids: [Bson; 6] = [
            Bson::Null,
            7.into(),
            doc! { "a": 1 }.into(),
            true.into(),
            ObjectId::new().into(),
            7.5.into(),
        ];
        let mut documents: Vec<Document> =
            ids.iter().map(|id| old("", doc! { "execution_id": id.clone() })).collect();
        documents.push(old("readable", doc! {}));
        documents.push(old("other", doc! { "app_id": 2, "execution_id": "x" }));
        documents.push(old("", doc! { "app_id": 2, "execution_id": 8 }));
        b.executions().await.insert_many(documents).await.expect("stored");
        let s = b.serve().await;
        let listed = s.list_executions(ListExecutionsRequest::default()).await.executions;
        assert_eq!(listed.len(), 2);
        let count = s.count_executions(CountExecutionsRequest::default()).await;
        assert_eq!((count.count, count.exact, count.unreadable), (2, true, 7));
        let filter = Some(ExecutionFilter { app_ids: vec![1], ..Default::default() });
        let count =
            s.count_executions(CountExecutionsRequest { filter, ..Default::default() }).await;
        assert_eq!((count.count, count.exact, count.unreadable), (1, true, 6));
        let rates = s.get_success_rates(GetSuccessRatesRequest::default()).await;
        assert_eq!(rates.freshness.expect("freshness").unreadable, 7);
    });
}

#[test]
fn points_are_found_from_the_beginning_of_time_on() {
    for kind in Kind::ALL {
        run(async {
            let b = Backend::fresh(kind);
            let s =
                b.serve_with(|config| config.retention.metrics = std::time::Duration::ZERO).await;
            s.create("e").await;
            let hour = 3600_i64;
            let times = [
                0,
                1,
                hour,
                24 * hour,
                26 * 365 * 24 * hour,
                29 * 365 * 24 * hour,
                50 * 365 * 24 * hour,
            ];
            let at = |seconds: i64| prost_types::Timestamp { seconds, nanos: 0 };
            let points = times.iter().map(|seconds| MetricPoint {
                timestamp: Some(at(*seconds)),
                metrics: [("m".to_owned(), *seconds as f64)].into(),
                ..Default::default()
            });
            let request = RecordMetricsRequest {
                execution_id: "e".into(),
                points: points.collect(),
                ..Default::default()
            };
            assert_eq!(s.record_metrics(request).await.accepted, times.len() as i64);
            let far = 200 * 365 * 24 * hour;
            for (since, until) in [
                (0, 30 * 365 * 24 * hour),
                (1, far),
                (hour, far),
                (0, 1),
                (-hour, far),
                (24 * hour, 27 * 365 * 24 * hour),
            ] {
                let expected: Vec<i64> =
                    times.iter().copied().filter(|time| (since..until).contains(time)).collect();
                for page_size in [1, 2, 100] {
                    let mut found = Vec::new();
                    let mut page_token = String::new();
                    loop {
                        let request = QueryMetricsRequest {
                            execution_id: "e".into(),
                            since: Some(at(since)),
                            until: Some(at(until)),
                            page_size,
                            page_token,
                            ..Default::default()
                        };
                        let page = s.query_metrics(request).await;
                        found.extend(
                            page.points
                                .iter()
                                .map(|point| point.timestamp.expect("a time").seconds),
                        );
                        page_token = page.next_page_token;
                        if page_token.is_empty() {
                            break;
                        }
                    }
                    assert_eq!(found, expected, "{kind:?} from {since} to {until}");
                }
            }
            b.remove().await;
        });
    }
}

#[test]
fn an_ordinary_collection_of_metrics_leaves_others_their_index() {
    conduct(async |b| {
        let month = 30 * 24 * 3600;
        for kept in [month, 0] {
            command(&b, doc! { "dropDatabase": 1 }).await;
            let s = b
                .serve_with(|config| {
                    config.mongodb.metrics_collection = "ordinary".to_owned();
                    config.retention.metrics = std::time::Duration::from_secs(kept);
                })
                .await;
            s.create("e").await;
            let theirs = doc! { "createIndexes": "execution_metrics", "indexes": [
                { "key": { "execution_id": 1, "timestamp": 1 }, "name": "execution_id_1_timestamp_1" },
                { "key": { "timestamp": -1 }, "name": "timestamp_-1", "expireAfterSeconds": month as i64 },
            ] };
            command(&b, theirs).await;
            let there = indexes(&b, "execution_metrics").await;
            let ending = &there["timestamp_-1"];
            assert_eq!(
                ending
                    .get("expireAfterSeconds")
                    .and_then(Bson::as_i64)
                    .or(ending.get("expireAfterSeconds").and_then(Bson::as_i32).map(i64::from)),
                Some(month as i64)
            );
            s.shutdown().await;
        }
    });
}
