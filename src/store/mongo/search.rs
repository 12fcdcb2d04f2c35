//! The index of search: one document of each text with its terms as an array, which an index with a key per term
//! serves. `o` is the order in which texts were first indexed, so that a word that many have is read newest first.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bson::oid::ObjectId;
use bson::raw::{RawDocument, RawDocumentBuf};
use bson::{Bson, Document, doc};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::db::values::{binary, field, small, text};
use super::db::{Connection, Db, Index, Rows, update_document};
use super::names::{META, TEXTS};
use crate::domain::Millis;
use crate::domain::search::query::Term;
use crate::domain::search::{Kind, RULES};
use crate::store::search::{
    Candidate, CandidateQuery, Candidates, Entry, EntryKey, SearchBatch, SearchStore,
};
use crate::store::{self, Error, Result};

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

/// Texts and their terms.
pub struct Texts {
    db: Arc<Db>,
}

impl Texts {
    pub fn new(db: Arc<Db>) -> Texts {
        Texts { db }
    }
}

pub fn wanted() -> Vec<Index> {
    vec![
        // Finds texts by their terms.
        Index::plain(TEXTS, doc! { "t": 1, "o": -1 }),
        Index::plain(TEXTS, doc! { "v": 1 }),
    ]
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

fn entry(document: &RawDocument) -> Option<Entry> {
    let id = document.get_document("_id").ok()?;
    let words = |name| field(document, name).and_then(text);
    let key = EntryKey {
        execution_id: id.get_str("e").ok()?.to_owned(),
        kind: Kind::from_number(id.get_i32("k").ok()?)?,
        step_id: field(document, "s").and_then(small),
        artifact_id: words("a"),
    };
    Some(Entry {
        key,
        name: words("n"),
        text: words("x")?,
        truncated: document.get_bool("c").unwrap_or(false),
    })
}

/// What is stored of a text, and about how many bytes that is.
fn stored(entry: &Entry, terms: &[String], seen: Millis) -> (Document, usize) {
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
    (set, bytes)
}

/// Texts with their ids, written with one command each for those that are new and those that are there already: an
/// insert is a third of what a look and an update are.
async fn put(ready: &Connection, texts: Vec<(Document, Document)>) -> Result<()> {
    if texts.is_empty() {
        return Ok(());
    }
    let ids: Vec<&Document> = texts.iter().map(|(id, _)| id).collect();
    let find = doc! { "_id": { "$in": ids } };
    let own = ready.own(TEXTS);
    let there = ready.all(&own, find, Some(doc! { "_id": 1 })).await?;
    let there: HashSet<Vec<u8>> = there
        .iter()
        .filter_map(|raw| raw.get_document("_id").ok().map(|id| id.as_bytes().to_vec()))
        .collect();
    let is_there = |id: &Document| {
        RawDocumentBuf::try_from(id).is_ok_and(|raw| there.contains(raw.as_bytes()))
    };
    let (known, new): (Vec<_>, Vec<_>) = texts.into_iter().partition(|(id, _)| is_there(id));
    let documents = new.iter().map(|(id, set)| {
        let mut document = doc! { "_id": id, "o": ObjectId::new() };
        document.extend(set.clone());
        document
    });
    let mut updates = known;
    if !write(ready, "insert", "documents", documents.collect()).await? {
        // Somebody else has put one there just now.
        updates.extend(new);
    }
    let updates = updates.into_iter().map(|(id, set)| {
        let change = doc! { "$set": set, "$setOnInsert": { "o": ObjectId::new() } };
        let mut update = update_document(doc! { "_id": id }, change);
        update.insert("upsert", true);
        update
    });
    match write(ready, "update", "updates", updates.collect()).await? {
        true => Ok(()),
        false => Err(Error::failed("the database refused to index a text")),
    }
}

/// Whether all of them are written.
async fn write(ready: &Connection, name: &str, field: &str, all: Vec<Document>) -> Result<bool> {
    if all.is_empty() {
        return Ok(true);
    }
    let command = doc! {
        name: TEXTS,
        field: all,
        "ordered": false,
        "writeConcern": { "w": "majority", "wtimeout": i64::try_from(ready.patience().as_millis()).unwrap_or(i64::MAX) },
    };
    let answer = ready.command(command).await?;
    // The place in the log must not be passed before the texts are safe from a failover.
    if answer.contains_key("writeConcernError") {
        return Err(Error::unavailable("texts are not safe from a failover yet"));
    }
    Ok(!answer.contains_key("writeErrors"))
}

#[async_trait]
impl SearchStore for Texts {
    async fn search_cursor(&self) -> Result<Option<store::Cursor>> {
        let ready = self.db.ready().await?;
        let found = ready.call(ready.own(META).find_one(doc! { "_id": PROGRESS })).await?;
        let found = found.filter(|found| found.get_i64("rules").ok() == Some(RULES));
        let cursor = found.as_ref().and_then(|found| found.get_binary("cursor").ok());
        Ok(cursor.map(|cursor| store::Cursor(cursor.bytes.to_vec())))
    }

    async fn index(&self, batch: SearchBatch) -> Result<()> {
        let ready = self.db.ready().await?;
        let texts = ready.own(TEXTS);
        for id in &batch.gone_executions {
            ready.call(texts.delete_many(of_execution(id))).await?;
        }
        for piece in batch.gone.chunks(WRITTEN_AT_ONCE) {
            let ids: Vec<Document> = piece.iter().map(id).collect();
            ready.call(texts.delete_many(doc! { "_id": { "$in": ids } })).await?;
        }
        let (mut pieces, mut bytes) = (vec![Vec::new()], 0);
        for (entry, terms) in &batch.put {
            let (set, size) = stored(entry, terms, batch.seen);
            let one = (id(&entry.key), set);
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
        stream::iter(pieces.into_iter().map(|piece| put(&ready, piece)))
            .buffer_unordered(COMMANDS_AT_ONCE)
            .try_collect::<()>()
            .await?;
        if let Some(cursor) = batch.cursor {
            let set = doc! { "$set": { "cursor": binary(&cursor.0), "rules": RULES } };
            let meta = ready.own(META);
            let moved = meta.update_one(doc! { "_id": PROGRESS }, set).upsert(true);
            ready.call(moved).await?;
        }
        Ok(())
    }

    async fn forget(&self, before: Millis) -> Result<()> {
        let ready = self.db.ready().await?;
        let stale = doc! { "v": { "$lt": before } };
        ready.call(ready.own(TEXTS).delete_many(stale)).await.map(drop)
    }

    async fn texts_with(&self, ways: &[Vec<Term>], most: u64) -> Result<u64> {
        let ready = self.db.ready().await?;
        let texts = ready.own(TEXTS);
        ready.call(texts.count_documents(has_one_of(ways)).limit(most)).await
    }

    fn candidates(&self, query: CandidateQuery) -> Candidates<'_> {
        let opened = stream::once(self.found(query)).map_ok(|rows| {
            stream::try_unfold(rows, async |mut rows| {
                let Some(document) = rows.next().await? else { return Ok(None) };
                let place = document.get_object_id("o").map(|o| o.bytes().to_vec());
                let place = place.map_err(|_| Error::failed("a text has no place"))?;
                let candidate = Candidate { place, entry: entry(document) };
                Ok(Some((candidate, rows)))
            })
        });
        opened.try_flatten().boxed()
    }
}

fn place(bytes: &[u8]) -> Result<ObjectId> {
    let bytes = <[u8; 12]>::try_from(bytes).map_err(|_| Error::BadCursor)?;
    Ok(ObjectId::from_bytes(bytes))
}

impl Texts {
    /// One query for all: where only beginnings of words are asked for the database has to sort, and does it once.
    async fn found(&self, query: CandidateQuery) -> Result<Rows> {
        let ready = self.db.ready().await?;
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
        let texts = ready.own(TEXTS);
        let find = texts
            .find(doc! { "$and": all })
            .projection(doc! { "t": 0 })
            .sort(doc! { "o": -1 })
            .limit(i64::try_from(query.limit).unwrap_or(i64::MAX))
            .batch_size(READ_AT_ONCE)
            .max_time(SORTING)
            .allow_disk_use(true);
        ready.rows_within(find, SORTING + ready.patience()).await
    }
}
