//! A MongoDB database as a server may find it: other programs have made its collections in their way, old documents of any
//! type stand beside, some with the same id, and all indexes are dropped while the server serves.

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, DateTime, Document, doc};

use super::eventually;

const COLLECTIONS: [&str; 5] = [
    "executions",
    "execution_steps",
    "execution_artifacts",
    "app_configurations",
    "execution_metrics",
];
/// Documents of any type in any field, none of which has a usable id: they are in nobody's lists.
const ODD: usize = 100;

/// Before a server starts.
pub async fn prepare(database: &mongodb::Database) {
    let run = async |command: Document| {
        database.run_command(command).await.expect("the command is right");
    };
    for name in COLLECTIONS {
        let collation = doc! { "locale": "en", "strength": 2 };
        let mut create = doc! { "create": name, "collation": collation };
        if name == "executions" {
            create.insert("validator", doc! { "execution_id": { "$exists": true } });
        }
        run(create).await;
    }
    // The indexes of the data model that are in nobody's way, by their usual names, with the collation of the collection.
    for (collection, keys) in [
        ("executions", doc! { "user_id": 1 }),
        ("executions", doc! { "status": 1 }),
        ("executions", doc! { "started_at": -1 }),
        ("executions", doc! { "app_id": 1, "sub_app_id": 1 }),
        ("execution_steps", doc! { "execution_id": 1 }),
        ("execution_steps", doc! { "status": 1 }),
        ("execution_steps", doc! { "step_name": 1 }),
        ("execution_steps", doc! { "started_at": -1 }),
        ("app_configurations", doc! { "active": 1 }),
        ("execution_artifacts", doc! { "execution_id": 1, "step_id": 1 }),
        ("execution_artifacts", doc! { "artifact_type": 1 }),
        ("execution_artifacts", doc! { "created_at": -1 }),
    ] {
        let name: Vec<String> = keys.iter().map(|(key, way)| format!("{key}_{way}")).collect();
        let index = doc! { "key": keys, "name": name.join("_") };
        run(doc! { "createIndexes": collection, "indexes": [index] }).await;
    }
    let values = odd_values();
    let fields = [
        "app_id",
        "app_name",
        "user_id",
        "status",
        "started_at",
        "completed_at",
        "duration_ms",
        "metadata",
        "revision",
        "error",
        "created_at",
        "updated_at",
        "heartbeat_timeout_ms",
        "digests",
        "deleted_by",
    ];
    let mut executions = Vec::new();
    let mut steps = Vec::new();
    for number in 0..ODD {
        let value = |offset: usize| values[(number + offset) % values.len()].clone();
        let mut odd = Document::new();
        for (place, field) in fields.iter().enumerate() {
            odd.insert(*field, value(place * 3));
        }
        // Each of these ids is there several times.
        let id: Bson = match number % 4 {
            0 => 7.into(),
            1 => Bson::Null,
            2 => doc! { "id": 1 }.into(),
            _ => true.into(),
        };
        odd.insert("execution_id", id);
        steps.push({
            let mut step = odd.clone();
            step.insert("step_id", value(1));
            step
        });
        executions.push(odd);
    }
    database.collection("executions").insert_many(executions).await.expect("stored");
    database.collection("execution_steps").insert_many(steps).await.expect("stored");
}

fn odd_values() -> Vec<Bson> {
    vec![
        "text".into(),
        7.into(),
        3.5.into(),
        true.into(),
        doc! {}.into(),
        doc! { "a": 1 }.into(),
        DateTime::from_millis(1_600_000_000_000).into(),
        ObjectId::from_bytes([3; 12]).into(),
        Bson::Null,
        f64::NAN.into(),
        (1_i64 << 60).into(),
        Bson::MinKey,
        Bson::MaxKey,
    ]
}

/// While a server serves: every index is gone, and comes again.
pub async fn drop_indexes(database: &mongodb::Database) {
    for name in COLLECTIONS {
        let drop = doc! { "dropIndexes": name, "index": "*" };
        database.run_command(drop).await.expect("dropped");
    }
    for name in ["executions", "execution_steps", "app_configurations"] {
        eventually("the indexes are made again", async || {
            let reply = database.run_command(doc! { "listIndexes": name }).await.ok()?;
            let batch = reply.get_document("cursor").ok()?.get_array("firstBatch").ok()?.clone();
            let unique = batch
                .iter()
                .filter_map(Bson::as_document)
                .filter(|index| index.get_bool("unique").unwrap_or(false));
            (unique.count() > usize::from(name != "executions")).then_some(())
        })
        .await;
    }
}
