//! Takes away what executions that are marked as deleted have, piece by piece. A crash leaves the mark, and the
//! sweep goes on from there.
//!
//! Several may be at it at once, on this server and others, and as soon as one has ended, the id is free for a new
//! execution. So everything goes by the `_id` of documents that were found while the mark was there: no
//! document that came later can be among them.

use std::collections::HashSet;
use std::time::Duration;

use bson::oid::ObjectId;
use bson::{Bson, DateTime, Document, RawDocumentBuf, doc};

use super::{Inner, Ready, alive, artifact_documents, documents, metrics, retention, schema};
use crate::store::retention::{Piece, Removed};
use crate::store::{RecordKey, Result};

/// Documents of a kind that go at once.
const PIECE: i64 = 1000;
/// Uploads are found again by the id and turn of each.
const UPLOADS_AT_ONCE: i64 = 100;
/// A delete younger than this is left to whoever began it.
const LEFT_ALONE_MS: i64 = 5_000;
const SWEPT_AT_ONCE: i64 = 100;
/// On an execution that a run of retention has marked.
pub(super) const RETENTION: &str = "retention";

pub(super) async fn remove(inner: &Inner, execution_id: &str) -> Result<u64> {
    remove_all(inner, vec![execution_id.to_owned()]).await
}

/// How many artifacts were marked and uploads ended.
async fn remove_all(inner: &Inner, mut execution_ids: Vec<String>) -> Result<u64> {
    let mut with_bytes = 0;
    while !execution_ids.is_empty() {
        let piece = remove_piece(inner, execution_ids).await?;
        with_bytes += piece.removed.artifacts + piece.removed.uploads;
        execution_ids = piece.left;
    }
    Ok(with_bytes)
}

/// Goes on with deletes that somebody began and did not end.
pub(super) async fn sweep(inner: &Inner) -> Result<()> {
    let ready = inner.ready().await?;
    alive::check_trusted(inner, &ready).await;
    loop {
        let before = DateTime::from_millis(inner.clock.now().millis() - LEFT_ALONE_MS);
        let mut filter = doc! { "deleted_at": { "$gt": schema::epoch(), "$lt": before } };
        if retention::is_running(inner, &ready).await? {
            filter.insert(RETENTION, doc! { "$ne": true });
        }
        let found = find(inner, &ready, schema::EXECUTIONS, filter, SWEPT_AT_ONCE).await?;
        let ids: Vec<String> = found.iter().filter_map(execution_id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        remove_all(inner, ids).await?;
    }
}

fn execution_id(raw: &RawDocumentBuf) -> Option<String> {
    raw.get_str("execution_id").ok().map(str::to_owned)
}

/// Documents with what tells them apart, read where writes go.
async fn find(
    inner: &Inner,
    ready: &Ready,
    collection: &str,
    filter: Document,
    most: i64,
) -> Result<Vec<RawDocumentBuf>> {
    let collection = match collection {
        schema::EXECUTIONS => &ready.executions,
        schema::ARTIFACTS => &ready.artifacts,
        schema::UPLOADS => &ready.uploads,
        _ => &ready.steps,
    };
    let projection = doc! { "_id": 1, "execution_id": 1, "step_id": 1, "size_bytes": 1, "turn": 1 };
    inner
        .call(async {
            let mut found = Vec::new();
            let find = collection.find(filter).projection(projection).limit(most).batch_size(1000);
            let mut cursor = find.await?;
            while cursor.advance().await? {
                found.push(cursor.current().to_owned());
            }
            Ok(found)
        })
        .await
}

/// The marked executions among these documents, or of these ids.
async fn marked(inner: &Inner, ready: &Ready, mut filter: Document) -> Result<Vec<(Bson, String)>> {
    filter.insert("deleted_at", doc! { "$gt": schema::epoch() });
    let found = find(inner, ready, schema::EXECUTIONS, filter, 0).await?;
    let marked = found.iter().filter_map(|raw| Some((document_id(raw)?, execution_id(raw)?)));
    Ok(marked.collect())
}

fn document_id(raw: &RawDocumentBuf) -> Option<Bson> {
    raw.get("_id").ok().flatten().and_then(|id| Bson::try_from(id).ok())
}

pub(super) async fn remove_piece(inner: &Inner, execution_ids: Vec<String>) -> Result<Piece> {
    let ready = inner.ready().await?;
    let asked = doc! { "execution_id": { "$in": &execution_ids } };
    let began = marked(inner, &ready, asked).await?;
    if began.is_empty() {
        return Ok(Piece::default());
    }
    let (documents, ids): (Vec<Bson>, Vec<String>) = began.into_iter().unzip();
    let grace = inner.deletes.grace(documents.iter());
    let parts = doc! { "execution_id": { "$in": ids.clone() } };
    let alive = doc! { "deleted_at": { "$not": { "$type": "date" } } };
    let mut artifacts = parts.clone();
    artifacts.extend(alive.clone());
    let mut uploads = parts.clone();
    uploads.insert("updated_at", doc! { "$gt": schema::epoch() });
    let (steps, artifacts, uploads) = tokio::try_join!(
        find(inner, &ready, schema::STEPS, parts, PIECE),
        find(inner, &ready, schema::ARTIFACTS, artifacts, PIECE),
        find(inner, &ready, schema::UPLOADS, uploads, UPLOADS_AT_ONCE),
    )?;
    if steps.is_empty() && artifacts.is_empty() && uploads.is_empty() {
        if grace > Duration::ZERO {
            // A server that has not seen the mark may have inserted a step since these were looked for.
            tokio::time::sleep(grace).await;
            return Ok(Piece { removed: Removed::default(), left: ids });
        }
        // By the id of the execution, as nothing else is told of points; so only while the mark was there a
        // moment ago.
        let of_all: Vec<&str> = ids.iter().map(String::as_str).collect();
        let points = metrics::delete(&ready, &of_all).await?;
        let gone = doc! {
            "_id": { "$in": &documents },
            "deleted_at": { "$gt": schema::epoch() },
        };
        inner.call(ready.executions.delete_many(gone)).await?;
        for id in &ids {
            inner.cache.forget(&RecordKey::execution(id));
        }
        inner.deletes.bury(documents.iter());
        return Ok(Piece { removed: Removed { points, ..Removed::default() }, left: Vec::new() });
    }
    // Only what was found before this look is taken.
    let still = marked(inner, &ready, doc! { "_id": { "$in": documents } }).await?;
    let still: HashSet<String> = still.into_iter().map(|(_, id)| id).collect();
    let of_marked = |found: Vec<RawDocumentBuf>| {
        let mut found = found;
        found.retain(|raw| execution_id(raw).is_some_and(|id| still.contains(&id)));
        found
    };
    let (steps, artifacts, uploads) = (of_marked(steps), of_marked(artifacts), of_marked(uploads));
    let mut removed = Removed::default();
    if !steps.is_empty() {
        let gone: Vec<Bson> = steps.iter().filter_map(document_id).collect();
        let delete = ready.steps.delete_many(doc! { "_id": { "$in": gone } });
        removed.steps = inner.call(delete).await?.deleted_count;
        forget_steps(inner, &steps);
    }
    if !artifacts.is_empty() {
        let gone: Vec<Bson> = artifacts.iter().filter_map(document_id).collect();
        let mut filter = doc! { "_id": { "$in": gone } };
        filter.extend(alive);
        let mark = mark_artifacts(DateTime::from_millis(inner.clock.now().millis()));
        let update = ready.artifacts.update_many(filter, mark);
        removed.artifacts = inner.call(update).await?.modified_count;
        removed.artifact_bytes = artifacts.iter().map(bytes_of).sum();
    }
    if !uploads.is_empty() {
        removed.uploads = end_uploads(inner, &ready, &uploads).await?;
    }
    Ok(Piece { removed, left: still.into_iter().collect() })
}

/// Takes the turn of these uploads, so that nobody goes on with them. An id may be used again by then: another upload
/// has another turn. The sweep removes them with their bytes.
async fn end_uploads(inner: &Inner, ready: &Ready, uploads: &[RawDocumentBuf]) -> Result<u64> {
    let turn = |raw: &RawDocumentBuf| raw.get_i64("turn").unwrap_or(0);
    let one = |raw| Some(doc! { "_id": document_id(raw)?, "turn": turn(raw) });
    let only: Vec<Document> = uploads.iter().filter_map(one).collect();
    let change = doc! {
        "$inc": { "turn": 1 },
        "$set": { "received_bytes": 0_i64, "updated_at": schema::epoch() },
    };
    let update = ready.uploads.update_many(doc! { "$or": only }, change);
    Ok(inner.call(update).await?.modified_count)
}

/// The cache holds steps by their number.
pub(super) fn forget_steps(inner: &Inner, steps: &[RawDocumentBuf]) {
    for raw in steps {
        let step_id = raw.get("step_id").ok().flatten().and_then(documents::integer);
        if let (Ok(id), Some(step_id)) = (raw.get_str("execution_id"), step_id)
            && let Ok(step_id) = i32::try_from(step_id)
        {
            inner.cache.forget_record(&RecordKey::step(id, step_id));
        }
    }
}

/// The size of an artifact's bytes, as its document says.
pub(super) fn bytes_of(raw: &RawDocumentBuf) -> i64 {
    raw.get("size_bytes").ok().flatten().and_then(documents::integer).unwrap_or(0)
}

/// The update that marks artifacts as deleted. The sweep of their bytes takes the documents away.
pub(super) fn mark_artifacts(at: DateTime) -> Vec<Document> {
    let id = doc! { "$toString": "$_id" };
    let last_change = doc! { "$concat": ["$execution_id", artifact_documents::SEPARATOR, id] };
    vec![doc! { "$set": { "deleted_at": at, "last_change": last_change } }]
}

/// The update that tells watchers which steps are deleted, right before they are.
pub(super) fn mark_steps(at: DateTime, revision: i64) -> Vec<Document> {
    let step_id = doc! { "$toString": "$step_id" };
    let last_change =
        doc! { "$concat": ["$execution_id", "/", step_id, "/", revision.to_string()] };
    vec![doc! { "$set": { "deleted_at": at, "last_change": last_change } }]
}

/// When a document was stored, by its `_id`. `None`: another program chose an id of another type.
pub(super) fn stored_at(id: &Bson) -> Option<i64> {
    id.as_object_id().map(|id| ObjectId::timestamp(&id).timestamp_millis())
}

/// A failure of a transaction after which it may be tried once more from the start.
pub(super) fn is_transient(error: &mongodb::error::Error) -> bool {
    error.contains_label(mongodb::error::TRANSIENT_TRANSACTION_ERROR)
}

/// A commit that got no answer: it may be sent again.
pub(super) fn is_unknown_commit(error: &mongodb::error::Error) -> bool {
    error.contains_label(mongodb::error::UNKNOWN_TRANSACTION_COMMIT_RESULT)
}
