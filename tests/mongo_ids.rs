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
