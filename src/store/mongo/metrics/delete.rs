//! Points that go, and how many there are.

use bson::{Document, doc};

use super::dirty::forget;
use super::points::time_of;
use crate::domain::Millis;
use crate::store::Result;
use crate::store::mongo::db::{Connection, failure};
use crate::store::mongo::names::{METRIC_REQUESTS, METRICS};

/// Executions whose points go with one command.
const DELETED_AT_ONCE: usize = 100;

/// Removes the points of executions, and lets go of their requests: an id that is used again is a new one. How many
/// points there were.
pub async fn delete(ready: &Connection, execution_ids: &[&str]) -> Result<u64> {
    let mut gone = 0;
    for ids in execution_ids.chunks(DELETED_AT_ONCE) {
        let of_them = doc! { "execution_id": { "$in": ids } };
        let (points, requests) = (ready.latest(METRICS), ready.latest(METRIC_REQUESTS));
        // Many points take their time; while the database answers at all, that is fine.
        let deleted = points.delete_many(of_them.clone()).await.map_err(failure::error)?;
        gone += deleted.deleted_count;
        requests.delete_many(of_them).await.map_err(failure::error)?;
        // Last: figures may have been made while the points went.
        forget(ready, ids).await?;
    }
    Ok(gone)
}

/// How many points there are.
pub async fn number_of_points(ready: &Connection, of: Document) -> Result<u64> {
    ready.call(ready.own(METRICS).count_documents(of)).await
}

/// The time of the oldest point of all.
pub async fn oldest(ready: &Connection) -> Result<Option<Millis>> {
    let points = &ready.own(METRICS);
    let oldest = points.find_one(doc! { "timestamp": { "$type": "date" } });
    let oldest = oldest.sort(doc! { "timestamp": 1 });
    let oldest = ready.call(oldest.projection(doc! { "_id": 0, "timestamp": 1 })).await?;
    Ok(oldest.and_then(|raw| time_of(&raw)))
}
