//! The index of search: one document of each text with its terms as an array, which an index with a key per term
//! serves. `o` is the order in which texts were first indexed, so that a word that many have is read newest first.

use std::time::Duration;

use async_trait::async_trait;
use bson::oid::ObjectId;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use mongodb::options::{CollectionOptions, WriteConcern};
use mongodb::{Collection, Cursor};

use super::{MongoStore, Ready, failure, schema};
use crate::domain::Millis;
use crate::domain::search::query::Term;
use crate::domain::search::{Kind, RULES};
use crate::store::search::{
    Candidate, CandidateQuery, Candidates, Entry, EntryKey, SearchBatch, SearchStore,
};
use crate::store::{self, Error, Result};

pub(super) const TEXTS: &str = "stepwell_search_texts";
/// The document that says how far the index is.
const PROGRESS: &str = "search";
/// Texts written with one command; and their bytes, terms included.
const WRITTEN_AT_ONCE: usize = 250;
const BYTES_AT_ONCE: usize = 4 * 1024 * 1024;
/// Commands at a time: most of the work is that of one thread of the database for each.
const COMMANDS_AT_ONCE: usize = 2;
/// Texts read at a time.
const READ_AT_ONCE: u32 = 200;
/// How long the database may sort texts that begin with something very common.
const SORTING: Duration = Duration::from_secs(10);

/// The index that finds texts by their terms.
pub(super) fn texts_by_term() -> Document {
    doc! { "t": 1, "o": -1 }
}

fn id(key: &EntryKey) -> Document {
    doc! { "e": &key.execution_id, "k": key.kind as i32, "p": key.part() }
}

/// Everything of an execution.
fn of_execution(execution_id: &str) -> Document {
    let from = doc! { "e": execution_id, "k": Bson::MinKey };
    let until = doc! { "e": execution_id, "k": Bson::MaxKey };
    doc! { "_id": { "$gte": from, "$lt": until } }
}

fn has(term: &Term) -> Document {
    match term.prefix {
        false => doc! { "t": &term.text },
        // The condition is about one and the same term.
        true => {
            let beyond = format!("{}\u{10FFFF}", term.text);
            doc! { "t": { "$elemMatch": { "$gte": &term.text, "$lt": beyond } } }
        }
    }
}

/// All terms of one of the lists.
fn has_one_of(ways: &[Vec<Term>]) -> Document {
    let all = |way: &Vec<Term>| match way.as_slice() {
        [only] => has(only),
        terms => doc! { "$and": terms.iter().map(has).collect::<Vec<_>>() },
    };
    match ways {
        [only] => all(only),
        ways => doc! { "$or": ways.iter().map(all).collect::<Vec<_>>() },
    }
}

fn entry(document: &Document) -> Option<Entry> {
    let id = document.get_document("_id").ok()?;
    let key = EntryKey {
        execution_id: id.get_str("e").ok()?.to_owned(),
        kind: Kind::from_number(id.get_i32("k").ok()?)?,
        step_id: document.get_i32("s").ok(),
        artifact_id: document.get_str("a").ok().map(str::to_owned),
    };
    Some(Entry {
        key,
        name: document.get_str("n").ok().map(str::to_owned),
        text: document.get_str("x").ok()?.to_owned(),
        truncated: document.get_bool("c").unwrap_or(false),
    })
}

fn update(entry: &Entry, terms: &[String], seen: Millis) -> (Document, usize) {
    let key = &entry.key;
    let bytes = entry.text.len() + terms.iter().map(|term| term.len() + 12).sum::<usize>();
    let set = doc! {
        "s": key.step_id,
        "a": key.artifact_id.as_deref(),
        "n": entry.name.as_deref(),
        "x": &entry.text,
        "c": entry.truncated,
        "v": seen,
        "t": terms,
    };
    let change = doc! { "$set": set, "$setOnInsert": { "o": ObjectId::new() } };
    (doc! { "q": { "_id": id(key) }, "u": change, "upsert": true }, bytes)
}

impl Ready {
    fn texts(&self) -> Collection<Document> {
        self.database.collection(TEXTS)
    }

    fn progress(&self) -> Collection<Document> {
        let mut options = CollectionOptions::default();
        options.write_concern = Some(WriteConcern::majority());
        self.database.collection_with_options(schema::META, options)
    }
}

impl MongoStore {
    async fn put(&self, ready: &Ready, updates: Vec<Document>) -> Result<()> {
        if updates.is_empty() {
            return Ok(());
        }
        let command = doc! { "update": TEXTS, "updates": updates, "ordered": false };
        let answer = self.inner.call(ready.database.run_command(command)).await?;
        match answer.contains_key("writeErrors") {
            true => Err(Error::failed("the database refused to index a text")),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl SearchStore for MongoStore {
    async fn search_cursor(&self) -> Result<Option<store::Cursor>> {
        let ready = self.inner.ready().await?;
        let found = ready.progress();
        let found = self.inner.call(found.find_one(doc! { "_id": PROGRESS })).await?;
        let found = found.filter(|found| found.get_i64("rules").ok() == Some(RULES));
        Ok(match found.as_ref().and_then(|found| found.get("cursor")) {
            Some(Bson::Binary(binary)) => Some(store::Cursor(binary.bytes.clone())),
            _ => None,
        })
    }

    async fn index(&self, batch: SearchBatch) -> Result<()> {
        let ready = self.inner.ready().await?;
        let texts = ready.texts();
        for id in &batch.gone_executions {
            self.inner.call(texts.delete_many(of_execution(id))).await?;
        }
        for piece in batch.gone.chunks(WRITTEN_AT_ONCE) {
            let ids: Vec<Document> = piece.iter().map(id).collect();
            self.inner.call(texts.delete_many(doc! { "_id": { "$in": ids } })).await?;
        }
        let (mut pieces, mut bytes) = (vec![Vec::new()], 0);
        for (entry, terms) in &batch.put {
            let (one, size) = update(entry, terms, batch.seen);
            bytes += size;
            match pieces.last_mut() {
                Some(piece) if piece.len() < WRITTEN_AT_ONCE && bytes <= BYTES_AT_ONCE => {
                    piece.push(one);
                }
                _ => {
                    pieces.push(vec![one]);
                    bytes = size;
                }
            }
        }
        stream::iter(pieces.into_iter().map(|piece| self.put(&ready, piece)))
            .buffer_unordered(COMMANDS_AT_ONCE)
            .try_collect::<()>()
            .await?;
        if let Some(cursor) = batch.cursor {
            let bytes = Binary { subtype: BinarySubtype::Generic, bytes: cursor.0 };
            let set = doc! { "$set": { "cursor": bytes, "rules": RULES } };
            let progress = ready.progress();
            let moved = progress.update_one(doc! { "_id": PROGRESS }, set).upsert(true);
            self.inner.call(moved).await?;
        }
        Ok(())
    }

    async fn forget(&self, before: Millis) -> Result<()> {
        let ready = self.inner.ready().await?;
        let stale = doc! { "v": { "$lt": before } };
        self.inner.call(ready.texts().delete_many(stale)).await.map(drop)
    }

    async fn texts_with(&self, ways: &[Vec<Term>], most: u64) -> Result<u64> {
        let ready = self.inner.ready().await?;
        let texts = ready.texts();
        self.inner.call(texts.count_documents(has_one_of(ways)).limit(most)).await
    }

    fn candidates(&self, query: CandidateQuery) -> Candidates<'_> {
        let opened = stream::once(self.found(query)).map_ok(|cursor| {
            stream::try_unfold(cursor, async |mut cursor| {
                if !self.inner.call(cursor.advance()).await? {
                    return Ok(None);
                }
                let document = cursor.deserialize_current().map_err(failure::error)?;
                let place = document.get_object_id("o").map(|o| o.bytes().to_vec());
                let place = place.map_err(|_| Error::failed("a text has no place"))?;
                Ok(Some((Candidate { place, entry: entry(&document) }, cursor)))
            })
        });
        opened.try_flatten().boxed()
    }
}

fn place(bytes: &[u8]) -> Result<ObjectId> {
    let bytes = <[u8; 12]>::try_from(bytes).map_err(|_| Error::BadCursor)?;
    Ok(ObjectId::from_bytes(bytes))
}

impl MongoStore {
    /// One query for all: where only beginnings of words are asked for the database has to sort, and does it once.
    async fn found(&self, query: CandidateQuery) -> Result<Cursor<Document>> {
        let ready = self.inner.ready().await?;
        let mut all: Vec<Document> = query.needs.iter().map(|ways| has_one_of(ways)).collect();
        if let Some(before) = &query.before {
            all.push(doc! { "o": { "$lt": place(before)? } });
        }
        if let Some(from) = &query.from {
            all.push(doc! { "o": { "$gte": place(from)? } });
        }
        if !query.kinds.is_empty() {
            let kinds: Vec<i32> = query.kinds.iter().map(|kind| *kind as i32).collect();
            all.push(doc! { "_id.k": { "$in": kinds } });
        }
        let texts = ready.texts();
        let find = texts
            .find(doc! { "$and": all })
            .projection(doc! { "t": 0 })
            .sort(doc! { "o": -1 })
            .limit(i64::try_from(query.limit).unwrap_or(i64::MAX))
            .batch_size(READ_AT_ONCE)
            .max_time(SORTING)
            .allow_disk_use(true);
        match tokio::time::timeout(SORTING + self.inner.patience, find).await {
            Ok(found) => found.map_err(failure::error),
            Err(_) => Err(failure::timeout()),
        }
    }
}
