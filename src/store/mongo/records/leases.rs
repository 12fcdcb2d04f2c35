//! Who has gone silent: running executions with a heartbeat timeout whose record is older than that, and what
//! their steps show.

use std::collections::HashMap;

use bson::{Bson, DateTime, doc};

use super::execution;
use super::room::Records;
use crate::domain::Millis;
use crate::store::mongo::db::values::{field, millis};
use crate::store::mongo::names::{EXECUTIONS, STEPS};
use crate::store::{Leases, Result, Silent};

/// Executions whose steps are asked about in one query.
const ASKED_AT_ONCE: usize = 200;

pub async fn leases(records: &Records, now: Millis) -> Result<Leases> {
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
    };
    let mut leases = Leases::default();
    for raw in ready.all(&ready.own(EXECUTIONS), filter, Some(projection)).await? {
        let Ok(execution) = execution::read(&raw) else { continue };
        let Some(timeout_ms) = execution.heartbeat_timeout_ms.filter(|ms| *ms > 0) else {
            continue;
        };
        if execution.deleted_at.is_some() {
            continue;
        }
        let smallest = leases.smallest_timeout_ms.unwrap_or(timeout_ms);
        leases.smallest_timeout_ms = Some(smallest.min(timeout_ms));
        let last = crate::domain::execution::last_sign_of_life(&execution);
        // A record of another program may show nothing at all: then its silence begins when it is first seen,
        // which nobody remembers, so it is left alone.
        let Some(last) = last else { continue };
        if last.saturating_add(timeout_ms) <= now {
            leases.silent.push(Silent {
                execution_id: execution.execution_id,
                heartbeat_timeout_ms: timeout_ms,
                last_sign_of_life: last,
                seen_in_steps: false,
            });
        }
    }
    let mut in_steps: HashMap<String, Millis> = HashMap::new();
    for asked in leases.silent.chunks(ASKED_AT_ONCE) {
        let ids: Vec<&str> = asked.iter().map(|silent| silent.execution_id.as_str()).collect();
        // Other programs may not keep `updated_at`. A server's clock may be a little ahead of this one; a
        // client's own time that lies ahead proves nothing.
        let now = DateTime::from_millis(now);
        let times = [
            ("$updated_at", Bson::DateTime(now)),
            ("$created_at", Bson::DateTime(now)),
            ("$started_at", Bson::Null),
            ("$completed_at", Bson::Null),
        ];
        let known = times.map(|(time, when_ahead)| {
            let ahead = doc! { "$gt": [time, now] };
            Bson::Document(doc! { "$cond": [ahead, when_ahead, time] })
        });
        let pipeline = [
            doc! { "$match": { "execution_id": { "$in": ids } } },
            doc! { "$group": {
                "_id": "$execution_id",
                "last": { "$max": { "$max": known.to_vec() } },
            } },
        ];
        for raw in ready.collect(ready.own(STEPS).aggregate(pipeline)).await? {
            let last = field(&raw, "last").and_then(millis);
            if let (Ok(id), Some(last)) = (raw.get_str("_id"), last) {
                in_steps.insert(id.to_owned(), last);
            }
        }
    }
    for silent in &mut leases.silent {
        if let Some(last) = in_steps.get(&silent.execution_id)
            && *last > silent.last_sign_of_life
        {
            silent.last_sign_of_life = *last;
            silent.seen_in_steps = true;
        }
    }
    Ok(leases)
}
