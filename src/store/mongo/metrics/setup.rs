//! The collection of points as it has to be, or as it is.

use bson::{Bson, Document, RawDocumentBuf, doc};
use mongodb::options::CollectionOptions;
use mongodb::{Collection, Database};
use std::time::Duration;

use super::hours::METRIC_HOURS;
use super::{METRIC_REQUESTS, METRICS, Metrics};
use crate::store::Result;
use crate::store::mongo::failure;
use crate::store::mongo::schema;

/// Where the database packs the points of the time series.
const BUCKETS: &str = "system.buckets.execution_metrics";
const NAMESPACE_EXISTS: i32 = 48;
/// The greatest age that an index can have: 68 years.
const LONGEST_SECONDS: i64 = i32::MAX as i64;

/// Makes what is missing, and sets how long points are kept (`None`: for ever).
pub(in crate::store::mongo) async fn prepare(
    database: &Database,
    kept: Option<Duration>,
    options: CollectionOptions,
    committed: CollectionOptions,
) -> Result<Metrics> {
    let kept = kept.map(|kept| i64::try_from(kept.as_secs()).unwrap_or(i64::MAX).max(1));
    let time_series = match existing(database).await? {
        Some(found) => adopt(database, &found, kept).await?,
        None => match create(database, kept).await? {
            true => true,
            // Another server was first.
            false => match existing(database).await? {
                Some(found) => adopt(database, &found, kept).await?,
                None => false,
            },
        },
    };
    schema::make(database, METRICS, doc! { "execution_id": 1, "timestamp": 1 }, None).await?;
    schema::make(database, METRIC_REQUESTS, doc! { "execution_id": 1 }, None).await?;
    schema::make(database, METRIC_REQUESTS, doc! { "known_until": 1 }, Some(0)).await?;
    schema::make(database, METRIC_HOURS, doc! { "dirty": 1, "at": 1 }, None).await?;
    schema::make(database, METRIC_HOURS, doc! { "ends": 1 }, Some(0)).await?;
    let collection = |name, options| -> Collection<RawDocumentBuf> {
        database.collection_with_options(name, options)
    };
    Ok(Metrics {
        points: collection(METRICS, options.clone()),
        committed_points: collection(METRICS, committed.clone()),
        buckets: collection(BUCKETS, committed),
        requests: collection(METRIC_REQUESTS, options.clone()),
        hours: collection(METRIC_HOURS, options),
        time_series,
    })
}

async fn existing(database: &Database) -> Result<Option<Document>> {
    let command = doc! { "listCollections": 1, "filter": { "name": METRICS } };
    let reply = database.run_command(command).await.map_err(failure::error)?;
    let cursor = reply.get_document("cursor").ok();
    let batch = cursor.and_then(|cursor| cursor.get_array("firstBatch").ok());
    Ok(batch.and_then(|batch| batch.first()).and_then(Bson::as_document).cloned())
}

/// `false`: it is there already.
async fn create(database: &Database, kept: Option<i64>) -> Result<bool> {
    let mut command = doc! {
        "create": METRICS,
        "timeseries": { "timeField": "timestamp", "metaField": "execution_id" },
    };
    // Only this option ends points of a time series; an index by age is refused.
    if let Some(kept) = kept {
        command.insert("expireAfterSeconds", kept);
    }
    match database.run_command(command).await {
        Ok(_) => Ok(true),
        Err(error) if failure::code(&error) == Some(NAMESPACE_EXISTS) => Ok(false),
        Err(error) if failure::is_passing(&error) => Err(failure::error(error)),
        Err(error) => {
            tracing::error!(
                collection = METRICS,
                error = %failure::words(&error),
                "a time series cannot be made; an ordinary collection does it as well, but slower"
            );
            age_by_index(database, kept).await?;
            Ok(false)
        }
    }
}

/// Takes the collection as it is but for the age of its points. Whether it is a time series.
async fn adopt(database: &Database, found: &Document, kept: Option<i64>) -> Result<bool> {
    if found.get_str("type").ok() != Some("timeseries") {
        age_by_index(database, kept).await?;
        return Ok(false);
    }
    let options = found.get_document("options").ok();
    let fields = options.and_then(|options| options.get_document("timeseries").ok());
    let field = |name| fields.and_then(|fields| fields.get_str(name).ok());
    if field("timeField") != Some("timestamp") || field("metaField") != Some("execution_id") {
        tracing::error!(
            collection = METRICS,
            "this time series is not one by timestamp and execution_id: metrics cannot be deleted \
             with their execution"
        );
    }
    let set = options.and_then(|options| whole(options.get("expireAfterSeconds")));
    if set != kept {
        let seconds = kept.map_or(Bson::from("off"), Bson::from);
        modify(database, doc! { "collMod": METRICS, "expireAfterSeconds": seconds }).await?;
        tracing::info!(before = set, now = kept, "metrics are kept for another time, in seconds");
    }
    Ok(true)
}

/// In an ordinary collection an index on the time ends points.
async fn age_by_index(database: &Database, kept: Option<i64>) -> Result<()> {
    let by_time = doc! { "timestamp": 1 };
    let index = schema::existing(database, METRICS).await?.into_iter().find(|index| {
        index
            .get_document("key")
            .is_ok_and(|keys| keys.len() == 1 && keys.contains_key("timestamp"))
    });
    let seconds = kept.map(|kept| kept.min(LONGEST_SECONDS));
    let Some(index) = index else {
        return schema::make(database, METRICS, by_time, seconds).await;
    };
    let set = whole(index.get("expireAfterSeconds"));
    // An age that was set cannot be taken back, only made to be never reached.
    let wanted = seconds.or(set.map(|_| LONGEST_SECONDS));
    if set == wanted {
        return Ok(());
    }
    let name = index.get_str("name").unwrap_or_default();
    let index = doc! { "name": name, "expireAfterSeconds": wanted };
    modify(database, doc! { "collMod": METRICS, "index": index }).await?;
    tracing::info!(before = set, now = wanted, "metrics are kept for another time, in seconds");
    Ok(())
}

async fn modify(database: &Database, command: Document) -> Result<()> {
    match database.run_command(command).await {
        Ok(_) => Ok(()),
        Err(error) if failure::is_passing(&error) => Err(failure::error(error)),
        Err(error) => {
            tracing::error!(
                collection = METRICS,
                error = %failure::words(&error),
                "how long metrics are kept cannot be set: they are kept as before"
            );
            Ok(())
        }
    }
}

fn whole(value: Option<&Bson>) -> Option<i64> {
    match value? {
        Bson::Int32(value) => Some(i64::from(*value)),
        Bson::Int64(value) => Some(*value),
        Bson::Double(value) => Some(*value as i64),
        _ => None,
    }
}
