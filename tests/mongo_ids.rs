//! Documents of other programs on MongoDB whose ids are whatever they like: read page by page, each once.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::collections::BTreeSet;

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Binary, Bson, DateTime, Decimal128, Document, Timestamp, doc};
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

/// Ids of all types, some of them equal to the database; in a time series also such as no other collection takes.
fn odd_ids(any: bool) -> Vec<Bson> {
    let code = |code: &str| Bson::JavaScriptCode(code.to_owned());
    let mut ids: Vec<Bson> = vec![
        DateTime::from_millis(1_700_000_000_000).into(),
        DateTime::from_millis(-5).into(),
        "2021".into(),
        "".into(),
        3.5.into(),
        f64::NAN.into(),
        f64::NEG_INFINITY.into(),
        Bson::Decimal128("7.0".parse::<Decimal128>().expect("a number")),
        true.into(),
        false.into(),
        Bson::Null,
        doc! {}.into(),
        ObjectId::from_bytes([1; 12]).into(),
        Bson::Binary(Binary { subtype: 0.into(), bytes: vec![1, 2] }),
        Bson::Timestamp(Timestamp { time: 5, increment: 1 }),
        code("a"),
        code("b"),
        Bson::MinKey,
        Bson::MaxKey,
    ];
    ids.extend((0..5).map(|_| Bson::from(ObjectId::new())));
    ids.extend((0..5).map(|n| Bson::from(format!("point-{n}"))));
    ids.extend((0..5).map(Bson::from));
    ids.extend((0..5_u8).map(|n| Bson::Binary(Binary { subtype: 4.into(), bytes: vec![n; 16] })));
    ids.extend((0..5).map(|n| Bson::from(doc! { "host": "a", "n": n })));
    if any {
        let twice: [Bson; 5] = [
            "point-3".into(),
            3_i64.into(),
            3.0.into(),
            ObjectId::from_bytes([1; 12]).into(),
            f64::NAN.into(),
        ];
        ids.extend(twice);
        ids.extend([Bson::from(vec![1, 9]), Bson::from(vec![2]), Bson::from(Vec::<i32>::new())]);
    }
    ids
}

#[test]
fn points_with_any_ids_are_paged_without_loss_or_doubles() {
    for time_series in [true, false] {
        conduct(async |b| {
            let database = b.mongodb().await;
            if !time_series {
                database.create_collection("execution_metrics").await.expect("created");
            }
            let s = b.serve().await;
            let base = wall_clock_ms() - 10_000;
            let mut documents = Vec::new();
            for (number, id) in odd_ids(time_series).into_iter().enumerate() {
                // Most of one time, and of every second one another name.
                let at = base + i64::from(number % 10 == 0);
                let name = if number % 2 == 0 { "n" } else { "m" };
                documents.push(doc! {
                    "_id": id,
                    "timestamp": DateTime::from_millis(at),
                    "execution_id": "e",
                    "metrics": { name: number as i32 },
                });
            }
            if time_series {
                // Without any id, as the database takes it from who gives none.
                let mut without = documents[0].clone();
                without.remove("_id");
                without.insert("metrics", doc! { "n": 1000 });
                documents.push(without);
            }
            // One by one: of what is equal to the database an ordinary collection takes one.
            for document in documents {
                let insert = doc! { "insert": "execution_metrics", "documents": [document] };
                database.run_command(insert).await.expect("an answer");
            }
            let all = database.collection::<Document>("execution_metrics");
            let stored = all.count_documents(doc! {}).await.expect("counted") as usize;
            assert!(stored > 40, "{stored}");
            for names in [vec![], vec!["n".to_owned()]] {
                let mut orders = BTreeSet::new();
                for page_size in [1, 2, 3, 4, 7, 1000] {
                    let mut found: Vec<(String, i64)> = Vec::new();
                    let mut page_token = String::new();
                    loop {
                        let request = QueryMetricsRequest {
                            execution_id: "e".into(),
                            names: names.clone(),
                            page_size,
                            page_token,
                            ..Default::default()
                        };
                        let page = s.query_metrics(request).await;
                        let metrics = page.points.into_iter().flat_map(|point| point.metrics);
                        found.extend(metrics.map(|(name, value)| (name, value as i64)));
                        assert!(found.len() <= stored, "{page_size}: more than there are");
                        page_token = page.next_page_token;
                        if page_token.is_empty() {
                            break;
                        }
                    }
                    let set: BTreeSet<_> = found.iter().cloned().collect();
                    assert_eq!(set.len(), found.len(), "{names:?} {page_size}: twice");
                    if names.is_empty() {
                        assert_eq!(found.len(), stored, "{page_size}: some are left out");
                    }
                    orders.insert(found);
                }
                assert_eq!(orders.len(), 1, "{names:?}: the size of a page changes nothing");
            }
        });
    }
}

/// All of a kind, and how many documents are no records.
async fn digests(s: &Client, kind: ExportKind) -> (Vec<RecordDigest>, i64) {
    let request = GetDigestsRequest {
        level: DigestLevel::Records.into(),
        selections: vec![DigestSelection { kind: kind.into(), ranges: Vec::new() }],
        ..Default::default()
    };
    let mut told = ok(s.try_get_digests(request).await);
    let mut records = Vec::new();
    while let Some(answer) = ok(in_time("digests", told.message()).await) {
        match answer.part.expect("a part") {
            get_digests_response::Part::Records(some) => records.extend(some.records),
            get_digests_response::Part::Complete(complete) => {
                return (records, complete.unreadable);
            }
            _ => {}
        }
    }
    panic!("complete is the last");
}

#[test]
fn digests_have_everything_once_whatever_its_id() {
    conduct(async |b| {
        let id = |number: i32| -> Bson {
            match number % 6 {
                0 => number.into(),
                1 => f64::from(number).into(),
                2 => format!("{number}").into(),
                3 => doc! { "n": number }.into(),
                4 => Bson::Binary(Binary {
                    subtype: 4.into(),
                    bytes: i128::from(number).to_be_bytes().into(),
                }),
                _ => ObjectId::new().into(),
            }
        };
        // More of each type than are read at a time.
        let steps = (0..5_000).map(|number| {
            doc! {
                "_id": id(number), "execution_id": format!("e{}", number % 7), "step_id": number,
                "step_name": "s", "status": "running",
            }
        });
        b.steps().await.insert_many(steps).await.expect("stored");
        b.steps()
            .await
            .insert_one(doc! { "_id": Bson::MaxKey, "step_id": 1 })
            .await
            .expect("stored");
        let base = wall_clock_ms() - 10_000;
        let point = |execution_id: String, number: i32| {
            doc! {
                "_id": id(number), "execution_id": execution_id, "metrics": { "n": number },
                "timestamp": DateTime::from_millis(base + i64::from(number % 50)),
            }
        };
        // Executions of a few, and of more than are read at a time.
        let few = (0..1_500).map(|number| point(format!("few-{}", number / 3), number));
        let many = (1_500..5_500).map(|number| point(format!("many-{}", number % 2), number));
        let s = b.serve().await;
        let database = b.mongodb().await;
        let points = database.collection::<Document>("execution_metrics");
        points.insert_many(few.chain(many)).await.expect("stored");
        for (kind, expected) in [(ExportKind::Steps, 5_000), (ExportKind::Metrics, 5_500)] {
            let (records, unreadable) = digests(&s, kind).await;
            let different: BTreeSet<_> = records.iter().map(|record| &record.digest).collect();
            assert_eq!((records.len(), different.len()), (expected, expected), "{kind:?}");
            assert_eq!(unreadable, i64::from(kind == ExportKind::Steps));
        }
    });
}

#[test]
fn steps_without_a_usable_number_are_counted_and_not_listed() {
    conduct(async |b| {
        let step = doc! { "execution_id": "e", "step_name": "s", "status": "running" };
        let ids: [Option<Bson>; 6] = [
            Some(1.into()),
            Some("x".into()),
            Some(7.5.into()),
            Some((1_i64 << 40).into()),
            Some(doc! { "n": 1 }.into()),
            None,
        ];
        for id in ids {
            let mut step = step.clone();
            step.extend(id.map(|id| ("step_id".to_owned(), id)));
            b.steps().await.insert_one(step).await.expect("stored");
        }
        let execution = doc! { "execution_id": "e", "app_name": "app", "status": "running" };
        b.executions().await.insert_one(execution).await.expect("stored");
        let s = b.serve().await;
        let request = ListStepsRequest { execution_id: "e".into(), ..Default::default() };
        let listed = ok(s.try_list_steps(request).await).steps;
        assert_eq!(listed.iter().map(|step| step.step_id).collect::<Vec<_>>(), [Some(1)]);
        let request = ListExecutionsRequest { include_step_counts: true, ..Default::default() };
        let counts = s.list_executions(request).await.step_counts;
        assert_eq!(counts.iter().map(|counts| counts.running).collect::<Vec<_>>(), [6]);
        let (records, unreadable) = digests(&s, ExportKind::Steps).await;
        assert_eq!((records.len(), unreadable), (1, 5));
    });
}
