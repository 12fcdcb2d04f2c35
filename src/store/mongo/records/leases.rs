//! Running executions with a heartbeat timeout, and the signs of life that they and their steps show.

use std::collections::HashMap;

use bson::{Bson, DateTime, doc};

use super::execution;
use super::room::Records;
use crate::domain::Millis;
use crate::domain::execution::SignOfLife;
use crate::store::mongo::db::values::{field, integer, millis};
use crate::store::mongo::names::{EXECUTIONS, STEPS};
use crate::store::{Lease, Result};

/// Executions whose steps are asked about in one query.
const ASKED_AT_ONCE: usize = 200;
/// Of this, the sum over all steps of an execution is a number that the database can hold.
const WRITES_MODULUS: i64 = 1 << 32;

pub async fn leases(records: &Records) -> Result<Vec<Lease>> {
    let ready = records.ready().await?;
    // The words of the partial index, so that it serves.
    let filter = doc! { "heartbeat_timeout_ms": { "$gt": 0 }, "status": "running" };
    let projection = doc! {
        "_id": 0,
        "execution_id": 1,
        "heartbeat_timeout_ms": 1,
        "last_heartbeat_at": 1,
        "updated_at": 1,
        "created_at": 1,
        "deleted_at": 1,
        "revision": 1,
        "mirrored_revision": 1,
    };
    let mut leases = Vec::new();
    for raw in ready.all(&ready.own(EXECUTIONS), filter, Some(projection)).await? {
        let Ok(execution) = execution::read(&raw) else { continue };
        let Some(timeout_ms) = execution.heartbeat_timeout_ms.filter(|ms| *ms > 0) else {
            continue;
        };
        if execution.deleted_at.is_none() {
            leases.push(Lease {
                heartbeat_timeout_ms: timeout_ms,
                sign: SignOfLife::of(&execution),
                held_elsewhere: execution.is_held_elsewhere(),
                execution_id: execution.execution_id,
            });
        }
    }
    Ok(leases)
}

pub async fn signs_in_steps(
    records: &Records,
    execution_ids: &[String],
    now: Millis,
) -> Result<HashMap<String, SignOfLife>> {
    let ready = records.ready().await?;
    // Other programs may not keep `updated_at`; a client's own time that lies ahead proves nothing.
    let now = DateTime::from_millis(now);
    let past = |time| {
        let ahead = doc! { "$gt": [time, now] };
        Bson::Document(doc! { "$cond": [ahead, Bson::Null, time] })
    };
    let times =
        ["$updated_at".into(), "$created_at".into(), past("$started_at"), past("$completed_at")];
    let numbered = doc! { "$isNumber": "$revision" };
    let revision = doc! { "$mod": ["$revision", WRITES_MODULUS] };
    let revision = doc! { "$cond": [numbered, revision, 0] };
    let mut signs = HashMap::new();
    for asked in execution_ids.chunks(ASKED_AT_ONCE) {
        let pipeline = [
            doc! { "$match": { "execution_id": { "$in": asked } } },
            doc! { "$group": {
                "_id": "$execution_id",
                "last": { "$max": { "$max": times.to_vec() } },
                "writes": { "$sum": &revision },
            } },
        ];
        for raw in ready.collect(ready.own(STEPS).aggregate(pipeline)).await? {
            let sign = SignOfLife {
                at: field(&raw, "last").and_then(millis),
                writes: field(&raw, "writes").and_then(integer).unwrap_or(0),
            };
            if let Ok(id) = raw.get_str("_id") {
                signs.insert(id.to_owned(), sign);
            }
        }
    }
    Ok(signs)
}
