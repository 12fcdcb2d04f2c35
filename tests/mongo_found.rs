//! MongoDB as it is found: what other programs have done to the collections, before a server starts and while it serves.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::collections::HashMap;

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{DateTime, Document, doc};
use serde_json::json;
use stepwell::proto::*;
use tonic::Code;

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

/// That the database refused, and what the refusal names.
#[track_caller]
fn store_refused<T: std::fmt::Debug>(answer: Answer<T>) -> HashMap<String, String> {
    let details = refused(answer, Code::FailedPrecondition, "STORE_REFUSED");
    details.error_info().expect("checked by refused").metadata.clone()
}

async fn command(b: &Backend, command: Document) {
    b.mongodb().await.run_command(command).await.expect("the command is right");
}

#[test]
fn what_the_database_refuses_is_refused_by_name() {
    conduct(async |b| {
        let validator = doc! { "user_id": { "$type": "string" } };
        command(&b, doc! { "create": "executions", "validator": validator }).await;
        let steps = doc! { "createIndexes": "execution_steps", "indexes": [
            { "key": { "step_name": 1 }, "name": "one of a name", "unique": true },
        ] };
        command(&b, steps).await;
        let s = b.serve().await;

        let named = store_refused(s.try_create_execution(create("e")).await);
        assert_eq!(named["cause"], "validator");
        assert_eq!(named["collection"], "executions");
        let with_user = |id| CreateExecutionRequest { user_id: Some("u".into()), ..create(id) };
        s.try_create_execution(with_user("e")).await.expect("what the validator accepts is stored");

        s.try_start_step(start("e", 1)).await.expect("the first of a name");
        let named = store_refused(s.try_start_step(start("e", 2)).await);
        assert_eq!(named["cause"], "unique_index");
        assert_eq!(named["index"], "one of a name");
        assert_eq!(named["collection"], "execution_steps");
        s.try_start_step(start("e", 1)).await.expect("a repeat is the stored step");
    });
}

#[test]
fn a_unique_index_with_a_collation_refuses_by_name() {
    conduct(async |b| {
        let indexes = doc! { "createIndexes": "executions", "indexes": [
            { "key": { "execution_id": 1 }, "name": "any case", "unique": true,
              "collation": { "locale": "en", "strength": 2 } },
        ] };
        command(&b, indexes).await;
        let s = b.serve().await;
        s.create("Run-1").await;
        let named = store_refused(s.try_create_execution(create("RUN-1")).await);
        assert_eq!(
            (named["cause"].as_str(), named["index"].as_str()),
            ("unique_index", "any case")
        );
        s.try_create_execution(create("Run-1")).await.expect("a repeat is the stored execution");
        s.create("Run-2").await;
    });
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

async fn number_of(b: &Backend, collection: &str, filter: Document) -> u64 {
    let collection = b.mongodb().await.collection::<Document>(collection);
    collection.count_documents(filter).await.expect("counted")
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

fn is_unique_on(index: &Document, keys: &Document) -> bool {
    index.get_bool("unique").unwrap_or(false)
        && index.get_document("key").is_ok_and(|key| key == keys)
}

/// Waits until the unique indexes on ids are there again.
async fn mended(b: &Backend) {
    eventually("the indexes are made again", async || {
        let executions = indexes(b, "executions").await;
        let steps = indexes(b, "execution_steps").await;
        let there =
            executions.values().any(|index| is_unique_on(index, &doc! { "execution_id": 1 }))
                && steps
                    .values()
                    .any(|index| is_unique_on(index, &doc! { "execution_id": 1, "step_id": 1 }));
        there.then_some(())
    })
    .await;
}

#[test]
fn ids_stay_unique_beside_old_doubles() {
    conduct(async |b| {
        let twice = [
            old("old", doc! { "revision": 5_i64, "user_id": "one" }),
            old("old", doc! { "revision": 9_i64, "user_id": "two" }),
            old("odd", doc! { "revision": "7" }),
            old("odd", doc! {}),
        ];
        b.executions().await.insert_many(twice).await.expect("stored");
        let steps =
            [1, 1].map(|id| doc! { "execution_id": "old", "step_id": id, "step_name": "s" });
        b.steps().await.insert_many(steps).await.expect("stored");
        let (one, two) = b.pair().await;
        for _ in 0..3 {
            one.create("new").await;
            two.create("new").await;
            one.start("new", 1).await;
            two.start("new", 1).await;
        }
        let with_user = CreateExecutionRequest { user_id: Some("x".into()), ..create("new") };
        refused(
            one.try_create_execution(with_user).await,
            Code::AlreadyExists,
            "EXECUTION_ALREADY_EXISTS",
        );
        // Raced from two servers, each id is stored once.
        for number in 0..30 {
            let id = format!("raced{number}");
            let (first, second) = tokio::join!(
                one.try_create_execution(create(&id)),
                two.try_create_execution(create(&id))
            );
            assert_eq!(ok(first).revision, ok(second).revision);
            let (first, second) =
                tokio::join!(one.try_start_step(start(&id, 1)), two.try_start_step(start(&id, 1)));
            assert_eq!(ok(first).revision, ok(second).revision);
            assert_eq!(number_of(&b, "executions", doc! { "execution_id": &id }).await, 1);
            assert_eq!(number_of(&b, "execution_steps", doc! { "execution_id": &id }).await, 1);
        }
        // Of doubles, one is changed: always the same one.
        for value in 0..3 {
            let request =
                UpdateExecutionRequest { metadata: meta(json!({ "n": value })), ..update("old") };
            one.update_execution(request).await;
            let changed = number_of(&b, "executions", doc! { "metadata.n": value }).await;
            assert_eq!(changed, 1);
        }
        assert_eq!(one.execution("old").await.user_id.as_deref(), Some("two"));
        assert_eq!(
            number_of(&b, "executions", doc! { "metadata.n": 2, "user_id": "two" }).await,
            1
        );
        // Somebody makes the other one the newer: changing it would make two of them.
        let newer = doc! { "$set": { "revision": i64::MAX / 4 } };
        b.executions()
            .await
            .update_one(doc! { "user_id": "one" }, newer)
            .await
            .expect_err("unique");
        // Once the doubles are gone, the index over all comes by itself; until then this one stays.
        let above = indexes(&b, "executions").await;
        let above = above.values().find(|index| is_unique_on(index, &doc! { "execution_id": 1 }));
        let above = above.expect("a unique index over newer records");
        assert!(above.get_str("name").expect("a name").contains("stepwell"));
        assert!(
            above
                .get_document("partialFilterExpression")
                .expect("partial")
                .contains_key("revision")
        );
    });
}

#[test]
fn the_second_of_two_doubles_is_refused() {
    conduct(async |b| {
        let twice = [old("e", doc! { "user_id": "one" }), old("e", doc! { "user_id": "two" })];
        b.executions().await.insert_many(twice).await.expect("stored");
        let s = b.serve().await;
        s.update_execution(UpdateExecutionRequest {
            metadata: meta(json!({ "n": 1 })),
            ..update("e")
        })
        .await;
        // Another program takes the newer one out of the way of look-ups, and leaves its id.
        let changed = doc! { "metadata.n": 1 };
        let found =
            b.executions().await.find_one(changed.clone()).await.expect("found").expect("one");
        let other = doc! { "execution_id": "e", "_id": { "$ne": &found["_id"] } };
        let above = found.get_i64("revision").expect("a revision") - 1;
        let set = doc! { "$set": { "revision": above as f64 + 0.5 } };
        let refused_by_index = b.executions().await.update_one(other.clone(), set).await;
        refused_by_index.expect_err("the index over newer records holds the id");
        assert_eq!(number_of(&b, "executions", doc! { "execution_id": "e" }).await, 2);
    });
}

#[test]
fn a_loss_while_serving_is_mended() {
    conduct(async |b| {
        let s = b.serve().await;
        s.create("before").await;
        s.start("before", 1).await;
        let database = b.mongodb().await;
        let losses: [(&str, Document); 4] = [
            ("indexes", doc! { "dropIndexes": "executions", "index": "*" }),
            ("steps", doc! { "dropIndexes": "execution_steps", "index": "*" }),
            ("collection", doc! { "drop": "executions" }),
            ("database", doc! { "dropDatabase": 1 }),
        ];
        for (what, loss) in losses {
            database.run_command(loss).await.expect("lost");
            // Also before the loss is seen, a repeat is no second record.
            for _ in 0..7 {
                ok(s.try_create_execution(create(what)).await);
                ok(s.try_start_step(start(what, 1)).await);
            }
            mended(&b).await;
            for collection in ["executions", "execution_steps"] {
                let number = number_of(&b, collection, doc! { "execution_id": what }).await;
                assert_eq!(number, 1, "{collection} after the loss of {what}");
            }
            ok(s.try_create_execution(create(&format!("after-{what}"))).await);
            ok(s.try_finish_step(finish_step(what, 1, StepStatus::Completed)).await);
        }
        let rename = doc! {
            "renameCollection": format!("{}.executions", b.database_name()),
            "to": format!("{}.elsewhere", b.database_name()),
        };
        database.client().database("admin").run_command(rename).await.expect("renamed");
        ok(s.try_create_execution(create("renamed")).await);
        mended(&b).await;
        assert_eq!(number_of(&b, "executions", doc! { "execution_id": "renamed" }).await, 1);
    });
}

#[test]
fn doubles_of_a_loss_are_kept_apart_afterwards() {
    conduct(async |b| {
        let s = b.serve().await;
        s.create("kept").await;
        let drop = doc! { "dropIndexes": "executions", "index": "*" };
        b.mongodb().await.run_command(drop).await.expect("dropped");
        // Another program stores the id once more, with everything.
        let mut copy = b.executions().await.find_one(doc! {}).await.expect("found").expect("one");
        copy.insert("_id", ObjectId::new());
        b.executions().await.insert_one(copy).await.expect("stored");
        mended(&b).await;
        for _ in 0..3 {
            ok(s.try_create_execution(create("kept")).await);
            ok(s.try_create_execution(create("later")).await);
        }
        assert_eq!(number_of(&b, "executions", doc! { "execution_id": "kept" }).await, 2);
        assert_eq!(number_of(&b, "executions", doc! { "execution_id": "later" }).await, 1);
    });
}

#[test]
fn without_any_unique_index_nothing_is_created() {
    conduct(async |b| {
        // As many indexes as a collection may have, and doubles.
        let many: Vec<Document> = (0..63)
            .map(|number| doc! { "key": { format!("f{number}"): 1 }, "name": format!("f{number}") })
            .collect();
        command(&b, doc! { "createIndexes": "executions", "indexes": many }).await;
        b.executions().await.insert_one(old("there", doc! {})).await.expect("stored");
        let s = b.serve().await;
        let named = store_refused(s.try_create_execution(create("e")).await);
        assert_eq!(
            (named["cause"].as_str(), named["collection"].as_str()),
            ("no_unique_index", "executions")
        );
        assert_eq!(number_of(&b, "executions", doc! { "execution_id": "e" }).await, 0);
        // What is there is worked on all the same.
        ok(s.try_start_step(start("there", 1)).await);
        let request =
            UpdateExecutionRequest { metadata: meta(json!({ "n": 1 })), ..update("there") };
        ok(s.try_update_execution(request).await);
        // With room for it, the index comes by itself.
        command(&b, doc! { "dropIndexes": "executions", "index": (0..40).map(|n| format!("f{n}")).collect::<Vec<_>>() }).await;
        eventually("creating works", async || s.try_create_execution(create("e")).await.ok()).await;
    });
}

#[test]
fn indexes_of_ours_are_in_nobodys_way() {
    conduct(async |b| {
        // What an earlier version made under names that other programs need.
        let before = doc! { "createIndexes": "app_configurations", "indexes": [
            { "key": { "app_id": 1, "sub_app_id": 1, "version": 1 }, "name": "app_id_1_sub_app_id_1_version_1",
              "unique": true, "partialFilterExpression": { "app_id": { "$gte": i32::MIN } } },
        ] };
        command(&b, before).await;
        let before = doc! { "createIndexes": "executions", "indexes": [
            { "key": { "deleted_at": 1 }, "name": "deleted_at_1",
              "partialFilterExpression": { "deleted_at": { "$gt": DateTime::from_millis(0) } } },
        ] };
        command(&b, before).await;
        let s = b.serve().await;
        s.create("e").await;
        for collection in
            ["executions", "execution_steps", "app_configurations", "execution_artifacts"]
        {
            for (name, index) in indexes(&b, collection).await {
                let ours = name.contains("stepwell");
                assert!(
                    ours || !index.contains_key("partialFilterExpression"),
                    "{collection}: {index}"
                );
                assert!(!index.contains_key("collation"), "{collection}: {index}");
            }
        }
        // The indexes of the data model as other programs make them, by their usual names.
        let usual: [(&str, Document, bool); 15] = [
            ("executions", doc! { "execution_id": 1 }, true),
            ("executions", doc! { "app_id": 1, "sub_app_id": 1 }, false),
            ("executions", doc! { "user_id": 1 }, false),
            ("executions", doc! { "status": 1 }, false),
            ("executions", doc! { "started_at": -1 }, false),
            ("execution_steps", doc! { "execution_id": 1, "step_id": 1 }, true),
            ("execution_steps", doc! { "execution_id": 1 }, false),
            ("execution_steps", doc! { "status": 1 }, false),
            ("execution_steps", doc! { "step_name": 1 }, false),
            ("execution_steps", doc! { "started_at": -1 }, false),
            ("app_configurations", doc! { "app_id": 1, "sub_app_id": 1, "version": 1 }, true),
            ("app_configurations", doc! { "active": 1 }, false),
            ("execution_artifacts", doc! { "execution_id": 1, "step_id": 1 }, false),
            ("execution_artifacts", doc! { "artifact_type": 1 }, false),
            ("execution_artifacts", doc! { "created_at": -1 }, false),
        ];
        for (collection, keys, unique) in usual {
            let name: Vec<String> = keys.iter().map(|(key, way)| format!("{key}_{way}")).collect();
            let mut index = doc! { "key": keys, "name": name.join("_") };
            if unique {
                index.insert("unique", true);
            }
            command(&b, doc! { "createIndexes": collection, "indexes": [index] }).await;
        }
        // Their index tells no apps apart that have no number.
        let publish = |app: &str| PublishConfigurationRequest {
            configuration: Some(Configuration {
                app_name: app.into(),
                version: "1".into(),
                configuration: meta(json!({ "description": app })),
                ..Default::default()
            }),
            ..Default::default()
        };
        ok(s.try_publish_configuration(publish("first")).await);
        let named = store_refused(s.try_publish_configuration(publish("second")).await);
        assert_eq!(named["index"], "app_id_1_sub_app_id_1_version_1");
        assert_eq!(named["collection"], "app_configurations");
    });
}
