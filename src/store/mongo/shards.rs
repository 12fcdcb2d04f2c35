//! A look at how the database is spread over the shards of a cluster, and at how long its log takes to tell of a change.

use std::time::{Duration, Instant};

use bson::{Bson, Document, RawDocumentBuf, doc};

use super::db::values::{field, integer, text};
use super::db::{self, Connection, failure};
use super::names::{LISTED, Listed, METRICS, NUDGES, Use};
use crate::store::Result;
use crate::store::inspect::{ShardedCollection, Shards};

/// A probe that is not told of by then is not waited for.
const TOLD_WITHIN: Duration = Duration::from_secs(15);

/// All that can be read of it. Writes one document, to see when the log tells of it.
pub async fn look(ready: &Connection) -> Shards {
    let mut found = Shards::default();
    for listed in LISTED {
        if listed.spread.key().is_empty() || listed.used == Use::Read {
            continue;
        }
        match collection(ready, listed).await {
            Ok(collection) => found.collections.push(collection),
            Err(_) => {
                found.unread.push("config.collections and config.chunks".to_owned());
                found.collections.clear();
                break;
            }
        }
    }
    match ready.command_on("admin", doc! { "balancerStatus": 1 }).await {
        Ok(status) => found.balancer = status.get_str("mode").ok().map(|mode| mode != "off"),
        Err(_) => found.unread.push("balancerStatus".to_owned()),
    }
    let version = doc! { "find": "system.version", "filter": { "_id": "featureCompatibilityVersion" }, "limit": 1 };
    match ready.command_on("admin", version).await {
        Ok(reply) => {
            found.features =
                first(&reply).and_then(|one| one.get_str("version").ok().map(str::to_owned))
        }
        Err(_) => found.unread.push("admin.system.version".to_owned()),
    }
    match lag(ready).await {
        Ok(lag) => found.lag_ms = lag,
        Err(_) => found.unread.push("the log of changes".to_owned()),
    }
    found
}

fn first(reply: &Document) -> Option<&Document> {
    reply.get_document("cursor").ok()?.get_array("firstBatch").ok()?.first()?.as_document()
}

fn words(key: &Document) -> String {
    let parts = key.iter().map(|(field, way)| match way {
        Bson::String(way) => format!("{field}: {way}"),
        way => format!("{field}: {way}"),
    });
    parts.collect::<Vec<_>>().join(", ")
}

async fn collection(ready: &Connection, listed: &Listed) -> Result<ShardedCollection> {
    let key = listed.spread.key();
    let wanted = key.iter().map(|(field, way)| format!("{field}: {}", way.trim_matches('"')));
    let mut found = ShardedCollection {
        name: listed.name.to_string(),
        wanted: wanted.collect::<Vec<_>>().join(", "),
        ..ShardedCollection::default()
    };
    // A time series is spread by its buckets, in which the field has another name.
    let series = format!("{}.system.buckets.{}", ready.name(), listed.name);
    let names = [format!("{}.{}", ready.name(), listed.name), series];
    let find =
        doc! { "find": "collections", "filter": { "_id": { "$in": names.to_vec() } }, "limit": 1 };
    let reply = ready.command_on("config", find).await?;
    if let Some(entry) = first(&reply)
        && let Ok(by) = entry.get_document("key")
    {
        let by = words(by);
        let is_series =
            listed.name == METRICS && entry.get_str("_id").is_ok_and(|id| id == names[1]);
        found.key = Some(if is_series { by.replacen("meta", key[0].0, 1) } else { by });
        let of = match entry.get("uuid") {
            Some(uuid) => doc! { "$or": [{ "uuid": uuid }, { "ns": entry.get("_id") }] },
            None => doc! { "ns": entry.get("_id") },
        };
        let group = doc! { "_id": "$shard", "n": { "$sum": 1 },
        "jumbo": { "$sum": { "$cond": [{ "$eq": ["$jumbo", true] }, 1, 0] } } };
        let pipeline =
            vec![doc! { "$match": of }, doc! { "$group": group }, doc! { "$sort": { "_id": 1 } }];
        let count =
            doc! { "aggregate": "chunks", "pipeline": pipeline, "cursor": { "batchSize": 10_000 } };
        let reply = ready.command_on("config", count).await?;
        let counted = reply
            .get_document("cursor")
            .ok()
            .and_then(|cursor| cursor.get_array("firstBatch").ok());
        for shard in counted.into_iter().flatten().filter_map(Bson::as_document) {
            let raw = RawDocumentBuf::try_from(shard).map_err(crate::store::Error::failed)?;
            let number = |name| field(&raw, name).and_then(integer).unwrap_or(0).unsigned_abs();
            let name = field(&raw, "_id").and_then(text).unwrap_or_default();
            found.chunks.push((name, number("n")));
            found.jumbo += number("jumbo");
        }
    }
    for index in db::existing(ready, listed.name).await? {
        let is_unique = index.get_bool("unique").unwrap_or(false);
        if is_unique && !may_be_unique(&index, key) {
            found.in_the_way.push(index.get_str("name").unwrap_or_default().to_owned());
        }
    }
    Ok(found)
}

/// Whether an index of these keys may be unique where this is the shard key: it begins with all of it, or with `_id`.
fn may_be_unique(index: &Document, key: &[(&str, &str)]) -> bool {
    let Ok(keys) = index.get_document("key") else { return false };
    let begins = keys.keys().zip(key).all(|(field, (own, _))| field == own);
    keys.keys().next().is_some_and(|first| first == "_id") || (begins && keys.len() >= key.len())
}

/// How long the log takes to tell of a change. `None`: no server has been here yet, or it was not told in time.
async fn lag(ready: &Connection) -> Result<Option<i64>> {
    let there = doc! { "listCollections": 1, "filter": { "name": NUDGES }, "nameOnly": true };
    if first(&ready.command(there).await?).is_none() {
        return Ok(None);
    }
    let only = doc! { "$match": { "ns.coll": NUDGES, "documentKey._id": "probe" } };
    let mut stream = ready.call(ready.watch([only])).await?;
    let began = Instant::now();
    let nudges = ready.own(NUDGES);
    let probe = doc! { "$inc": { "nudges": 1_i64 } };
    ready.call(nudges.update_one(doc! { "_id": "probe" }, probe).upsert(true)).await?;
    while began.elapsed() < TOLD_WITHIN {
        if stream.next_if_any().await.map_err(failure::stream_error)?.is_some() {
            return Ok(i64::try_from(began.elapsed().as_millis()).ok());
        }
    }
    Ok(Some(i64::try_from(TOLD_WITHIN.as_millis()).unwrap_or(i64::MAX)))
}
