//! Takes away what executions that are marked as deleted have, piece by piece. A crash leaves the mark, and the
//! sweep goes on from there.
//!
//! Several may be at it at once, on this server and others, and as soon as one has ended, the id is free for a new
//! execution. So everything goes by the `_id` of documents that were found while the mark was there: no
//! document that came later can be among them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bson::{Bson, DateTime, Document, RawDocumentBuf, doc};
use mongodb::options::Hint;

use super::artifact_documents::{self, bytes_of};
use super::db::values::{epoch, id_of};
use super::db::{Connection, Db};
use super::names::{ARTIFACTS, EXECUTIONS, Name, STEPS, UPLOADS};
use super::records::{Records, check_trusted};
use super::{leads, metrics};
use crate::clock::Clock;
use crate::store::Result;
use crate::store::retention::{LEAD, Piece, Removed};

/// The field of an execution that a run of retention has marked as deleted.
const OF_RETENTION: &str = "retention";
/// Documents of a kind that go at once.
const PIECE: i64 = 1000;
/// Uploads are found again by the id and turn of each.
const UPLOADS_AT_ONCE: i64 = 100;
/// A delete younger than this is left to whoever began it.
const LEFT_ALONE_MS: i64 = 5_000;
const SWEPT_AT_ONCE: i64 = 100;
/// Documents fetched at a time.
const FETCHED_AT_ONCE: u32 = 1000;

/// What takes executions away.
pub struct Removal {
    db: Arc<Db>,
    clock: Arc<dyn Clock>,
    records: Arc<Records>,
}

impl Removal {
    pub fn new(db: Arc<Db>, clock: Arc<dyn Clock>, records: Arc<Records>) -> Removal {
        Removal { db, clock, records }
    }

    pub async fn remove(&self, execution_id: &str) -> Result<u64> {
        self.remove_all(vec![execution_id.to_owned()]).await
    }

    /// How many artifacts were marked and uploads ended.
    async fn remove_all(&self, mut execution_ids: Vec<String>) -> Result<u64> {
        let mut with_bytes = 0;
        while !execution_ids.is_empty() {
            let piece = self.remove_piece(execution_ids).await?;
            with_bytes += piece.removed.artifacts + piece.removed.uploads;
            execution_ids = piece.left;
        }
        Ok(with_bytes)
    }

    /// Goes on with deletes that somebody began and did not end.
    pub async fn sweep(&self) -> Result<()> {
        let ready = self.db.ready().await?;
        check_trusted(&self.records, &ready).await;
        loop {
            let before = DateTime::from_millis(self.clock.now().millis() - LEFT_ALONE_MS);
            let mut filter = doc! { "deleted_at": { "$gt": epoch(), "$lt": before } };
            if leads::is_held(&ready, LEAD).await? {
                filter.insert(OF_RETENTION, doc! { "$ne": true });
            }
            let found = find(&ready, EXECUTIONS, filter, SWEPT_AT_ONCE).await?;
            let ids: Vec<String> = found.iter().filter_map(execution_id).collect();
            if ids.is_empty() {
                return Ok(());
            }
            self.remove_all(ids).await?;
        }
    }

    pub async fn remove_piece(&self, execution_ids: Vec<String>) -> Result<Piece> {
        let ready = self.db.ready().await?;
        let asked = doc! { "execution_id": { "$in": &execution_ids } };
        let began = marked(&ready, asked).await?;
        if began.is_empty() {
            return Ok(Piece::default());
        }
        let (documents, ids): (Vec<Bson>, Vec<String>) = began.into_iter().unzip();
        let grace = self.records.grace(documents.iter());
        let parts = doc! { "execution_id": { "$in": ids.clone() } };
        let alive = doc! { "deleted_at": { "$not": { "$type": "date" } } };
        let mut artifacts = parts.clone();
        artifacts.extend(alive.clone());
        let mut uploads = parts.clone();
        uploads.insert("updated_at", doc! { "$gt": epoch() });
        let (steps, artifacts, uploads) = tokio::try_join!(
            find(&ready, STEPS, parts, PIECE),
            find(&ready, ARTIFACTS, artifacts, PIECE),
            find(&ready, UPLOADS, uploads, UPLOADS_AT_ONCE),
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
                "execution_id": { "$in": &ids },
                "deleted_at": { "$gt": epoch() },
            };
            ready.call(ready.latest(EXECUTIONS).delete_many(gone).hint(by_id())).await?;
            for id in &ids {
                self.records.forget_execution(id);
            }
            self.records.bury(documents.iter());
            return Ok(Piece {
                removed: Removed { points, ..Removed::default() },
                left: Vec::new(),
            });
        }
        // Only what was found before this look is taken.
        let same = doc! { "_id": { "$in": documents }, "execution_id": { "$in": ids } };
        let still = marked(&ready, same).await?;
        let still: HashSet<String> = still.into_iter().map(|(_, id)| id).collect();
        let of_marked = |found: Vec<RawDocumentBuf>| {
            let mut found = found;
            found.retain(|raw| execution_id(raw).is_some_and(|id| still.contains(&id)));
            found
        };
        let (steps, artifacts, uploads) =
            (of_marked(steps), of_marked(artifacts), of_marked(uploads));
        let mut removed = Removed::default();
        if !steps.is_empty() {
            let gone: Vec<Bson> = steps.iter().filter_map(|raw| id_of(raw)).collect();
            let all = ready.latest(STEPS);
            // With the executions, which say on which shards they are.
            let of: Vec<&String> = still.iter().collect();
            let gone = doc! { "_id": { "$in": gone }, "execution_id": { "$in": of } };
            let delete = all.delete_many(gone).hint(by_id());
            removed.steps = ready.call(delete).await?.deleted_count;
            self.records.forget_steps(&steps);
        }
        if !artifacts.is_empty() {
            let gone: Vec<Bson> = artifacts.iter().filter_map(|raw| id_of(raw)).collect();
            let of: Vec<&String> = still.iter().collect();
            let mut filter = doc! { "_id": { "$in": gone }, "execution_id": { "$in": of } };
            filter.extend(alive);
            let mark =
                artifact_documents::marking(DateTime::from_millis(self.clock.now().millis()));
            let all = ready.latest(ARTIFACTS);
            let mark = all.update_many(filter, mark).hint(by_id());
            removed.artifacts = ready.call(mark).await?.modified_count;
            removed.artifact_bytes = artifacts.iter().map(|raw| bytes_of(raw)).sum();
        }
        if !uploads.is_empty() {
            removed.uploads = end_uploads(&ready, &uploads).await?;
        }
        Ok(Piece { removed, left: still.into_iter().collect() })
    }
}

/// The index of `_id`: along one of what executions have, the database would go through all that these have.
fn by_id() -> Hint {
    Hint::Keys(doc! { "_id": 1 })
}

fn execution_id(raw: &RawDocumentBuf) -> Option<String> {
    raw.get_str("execution_id").ok().map(str::to_owned)
}

/// Documents with what tells them apart, read where writes go.
async fn find(
    ready: &Connection,
    collection: Name,
    filter: Document,
    most: i64,
) -> Result<Vec<RawDocumentBuf>> {
    let collection = ready.latest(collection);
    let fields = doc! { "_id": 1, "execution_id": 1, "step_id": 1, "size_bytes": 1, "turn": 1 };
    let find = collection.find(filter).projection(fields).limit(most);
    ready.collect(find.batch_size(FETCHED_AT_ONCE)).await
}

/// The marked executions among these documents, or of these ids.
async fn marked(ready: &Connection, mut filter: Document) -> Result<Vec<(Bson, String)>> {
    filter.insert("deleted_at", doc! { "$gt": epoch() });
    let found = find(ready, EXECUTIONS, filter, 0).await?;
    let marked = found.iter().filter_map(|raw| Some((id_of(raw)?, execution_id(raw)?)));
    Ok(marked.collect())
}

/// Takes the turn of these uploads, so that nobody goes on with them. An id may be used again by then: another upload
/// has another turn. The sweep removes them with their bytes.
async fn end_uploads(ready: &Connection, uploads: &[RawDocumentBuf]) -> Result<u64> {
    let turn = |raw: &RawDocumentBuf| raw.get_i64("turn").unwrap_or(0);
    let one = |raw: &RawDocumentBuf| Some(doc! { "_id": id_of(raw)?, "turn": turn(raw) });
    let only: Vec<Document> = uploads.iter().filter_map(one).collect();
    let change = doc! {
        "$inc": { "turn": 1 },
        "$set": { "received_bytes": 0_i64, "updated_at": epoch() },
    };
    let all = ready.latest(UPLOADS);
    Ok(ready.call(all.update_many(doc! { "$or": only }, change)).await?.modified_count)
}
