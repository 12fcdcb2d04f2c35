//! The collection of points as it has to be, or as it is.

use std::time::Duration;

use bson::{Bson, Document, doc};

use crate::store::Result;
use crate::store::mongo::db::values::integer_of;
use crate::store::mongo::db::{self, Connection, Index, failure};
use crate::store::mongo::names::{METRIC_HOURS, METRIC_REQUESTS, METRICS};

const NAMESPACE_EXISTS: i32 = 48;
/// The greatest age that an index can have: 68 years.
const LONGEST_SECONDS: i64 = i32::MAX as i64;

/// Makes what is missing, and sets how long points are kept (`None`: for ever). Whether the points are in a time series.
/// `ordinary`: a collection that is made is no time series, so that other programs can make the index themselves that ends
/// points.
pub async fn prepare(ready: &Connection, kept: Option<Duration>, ordinary: bool) -> Result<bool> {
    let kept = kept.map(|kept| i64::try_from(kept.as_secs()).unwrap_or(i64::MAX).max(1));
    let time_series = match existing(ready).await? {
        Some(found) => adopt(ready, &found, kept, ordinary).await?,
        None if ordinary => {
            age_by_index(ready, kept, ordinary).await?;
            false
        }
        None => match create(ready, kept).await? {
            true => true,
            // Another server was first.
            false => match existing(ready).await? {
                Some(found) => adopt(ready, &found, kept, ordinary).await?,
                None => false,
            },
        },
    };
    let indexes = vec![
        Index::plain(METRICS, doc! { "execution_id": 1, "timestamp": 1 }).common(),
        Index::plain(METRIC_REQUESTS, doc! { "execution_id": 1 }),
        Index::ending(METRIC_REQUESTS, doc! { "known_until": 1 }, Some(0)),
        Index::plain(METRIC_HOURS, doc! { "dirty": 1, "at": 1 }),
        Index::ending(METRIC_HOURS, doc! { "ends": 1 }, Some(0)),
    ];
    db::make(ready, indexes).await?;
    Ok(time_series)
}

/// Whether there is a collection of points.
pub async fn is_there(ready: &Connection) -> Result<bool> {
    Ok(existing(ready).await?.is_some())
}

async fn existing(ready: &Connection) -> Result<Option<Document>> {
    let command = doc! { "listCollections": 1, "filter": { "name": METRICS } };
    let reply = ready.command(command).await?;
    let cursor = reply.get_document("cursor").ok();
    let batch = cursor.and_then(|cursor| cursor.get_array("firstBatch").ok());
    Ok(batch.and_then(|batch| batch.first()).and_then(Bson::as_document).cloned())
}

/// `false`: it is there already.
async fn create(ready: &Connection, kept: Option<i64>) -> Result<bool> {
    let mut command = doc! {
        "create": METRICS,
        "timeseries": { "timeField": "timestamp", "metaField": "execution_id" },
    };
    // Only this option ends points of a time series; an index by age is refused.
    if let Some(kept) = kept {
        command.insert("expireAfterSeconds", kept);
    }
    match ready.try_command(command).await? {
        Ok(_) => Ok(true),
        Err(error) if failure::code(&error) == Some(NAMESPACE_EXISTS) => Ok(false),
        Err(error) if failure::is_passing(&error) => Err(failure::error(error)),
        Err(error) => {
            tracing::error!(
                collection = %METRICS,
                error = %failure::words(&error),
                "a time series cannot be made; an ordinary collection does it as well, but slower"
            );
            age_by_index(ready, kept, false).await?;
            Ok(false)
        }
    }
}

/// Takes the collection as it is but for the age of its points. Whether it is a time series.
async fn adopt(
    ready: &Connection,
    found: &Document,
    kept: Option<i64>,
    ordinary: bool,
) -> Result<bool> {
    if found.get_str("type").ok() != Some("timeseries") {
        age_by_index(ready, kept, ordinary).await?;
        return Ok(false);
    }
    let options = found.get_document("options").ok();
    let fields = options.and_then(|options| options.get_document("timeseries").ok());
    let field = |name| fields.and_then(|fields| fields.get_str(name).ok());
    if field("timeField") != Some("timestamp") || field("metaField") != Some("execution_id") {
        tracing::error!(
            collection = %METRICS,
            "this time series is not one by timestamp and execution_id: metrics cannot be deleted \
             with their execution"
        );
    }
    let set = options.and_then(|options| integer_of(options.get("expireAfterSeconds")?));
    if set != kept {
        let seconds = kept.map_or(Bson::from("off"), Bson::from);
        modify(ready, doc! { "collMod": METRICS, "expireAfterSeconds": seconds }).await?;
        tracing::info!(before = set, now = kept, "metrics are kept for another time, in seconds");
    }
    Ok(true)
}

/// In an ordinary collection an index on the time ends points. With `ordinary` other programs make it too, newest first,
/// and where points are kept for ever here, whether and when they end is left to those.
async fn age_by_index(ready: &Connection, kept: Option<i64>, ordinary: bool) -> Result<()> {
    let on_time = |index: &Document| {
        let keys = index.get_document("key");
        keys.is_ok_and(|keys| keys.len() == 1 && keys.contains_key("timestamp"))
    };
    let there = db::existing(ready, METRICS).await?;
    let ending =
        there.iter().find(|index| on_time(index) && index.contains_key("expireAfterSeconds"));
    let index = ending.or(there.iter().find(|index| on_time(index)));
    let seconds = kept.map(|kept| kept.min(LONGEST_SECONDS));
    if ordinary && seconds.is_none() {
        if let Some(seconds) =
            index.and_then(|index| index.get("expireAfterSeconds").and_then(integer_of))
        {
            tracing::warn!(
                seconds,
                "metrics are kept for ever as far as this server is concerned, but an index of another program ends them"
            );
        }
        // In the other direction, which is in nobody's way.
        let by_time = Index::plain(METRICS, doc! { "timestamp": 1 });
        return db::make(ready, vec![by_time]).await.map(drop);
    }
    let by_time = doc! { "timestamp": if ordinary { -1 } else { 1 } };
    let Some(index) = index else {
        return db::make(ready, vec![Index::ending(METRICS, by_time, seconds).common()])
            .await
            .map(drop);
    };
    let set = index.get("expireAfterSeconds").and_then(integer_of);
    // An age that was set cannot be taken back, only made to be never reached.
    let wanted = seconds.or(set.map(|_| LONGEST_SECONDS));
    if set == wanted {
        return Ok(());
    }
    let name = index.get_str("name").unwrap_or_default();
    let index = doc! { "name": name, "expireAfterSeconds": wanted };
    modify(ready, doc! { "collMod": METRICS, "index": index }).await?;
    tracing::info!(before = set, now = wanted, "metrics are kept for another time, in seconds");
    Ok(())
}

async fn modify(ready: &Connection, command: Document) -> Result<()> {
    match ready.try_command(command).await? {
        Ok(_) => Ok(()),
        Err(error) if failure::is_passing(&error) => Err(failure::error(error)),
        Err(error) => {
            tracing::error!(
                collection = %METRICS,
                error = %failure::words(&error),
                "how long metrics are kept cannot be set: they are kept as before"
            );
            Ok(())
        }
    }
}
