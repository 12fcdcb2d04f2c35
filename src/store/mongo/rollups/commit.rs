//! One batch as one transaction.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bson::{Bson, DateTime, Document, RawDocumentBuf, doc};
use futures::FutureExt as _;

use super::documents::{LEAD, day_of, group_fields};
use crate::domain::rollup::{Counted, Failure, FailureKey, RULES, RollupKey};
use crate::store::Result;
use crate::store::mongo::db::values::binary;
use crate::store::mongo::db::{
    Connection, Db, Effort, Ended, Failed, Transaction, delete_document, update_document,
};
use crate::store::mongo::leads::ABANDONED;
use crate::store::mongo::names::{COUNTED, FAILURE_COUNTS, FAILURES, META, Name, ROLLUPS};
use crate::store::rollups::{Recount, RollupBatch, failure_id, group_id, numbers, rollup_document};

/// For how long a batch is tried: longer than the transaction of a dead server is left alone.
const EFFORT: Effort = Effort { within: Duration::from_secs(6), abandoned: ABANDONED };
const _: () = assert!(EFFORT.within.as_millis() > EFFORT.abandoned.as_millis());
/// From so many on it is looked up which of them are there.
const MANY_ROLLUPS: usize = 100;
/// Statements in one command.
const STATEMENTS: usize = 1_000;

/// What one collection gets.
#[derive(Default)]
struct Changes {
    /// Documents that were not there when the batch was made: a third of what it costs to look again.
    inserts: Vec<Document>,
    updates: Vec<Document>,
    deletes: Vec<Document>,
}

impl Changes {
    fn insert(&mut self, id: impl Into<Bson>, mut document: Document) {
        document.insert("_id", id);
        self.inserts.push(document);
    }

    fn put(&mut self, id: impl Into<Bson>, document: Document) {
        self.upsert(doc! { "_id": id }, document);
    }

    fn upsert(&mut self, filter: Document, update: Document) {
        let mut statement = update_document(filter, update);
        statement.insert("upsert", true);
        self.updates.push(statement);
    }

    fn remove(&mut self, id: impl Into<Bson>) {
        self.deletes.push(delete_document(doc! { "_id": id }));
    }

    /// Makes a document what it should be. `None`: it should not be.
    fn replace(&mut self, id: Document, document: Option<Document>) {
        match document {
            Some(document) => self.put(id, document),
            None => self.remove(id),
        }
    }

    /// Adds to a document, which is made where it is missing, and goes when nothing is left that it counts.
    fn increment(
        &mut self,
        id: Document,
        counted: i64,
        numbers: Vec<(String, i64)>,
        fixed: Document,
    ) {
        let mut increments = doc! { "n": counted };
        increments.extend(numbers.into_iter().map(|(at, n)| (format!("p.{at}"), Bson::from(n))));
        let update = doc! { "$inc": increments, "$setOnInsert": fixed };
        self.upsert(doc! { "_id": &id }, update);
        if counted < 0 {
            self.deletes.push(delete_document(doc! { "_id": id, "n": { "$lte": 0_i64 } }));
        }
    }
}

/// The ids of rollups that are there already.
struct There(HashSet<Vec<u8>>);

impl There {
    fn contains(&self, id: &Document) -> bool {
        RawDocumentBuf::try_from(id).is_ok_and(|raw| self.0.contains(raw.as_bytes()))
    }
}

/// Which of the rollups of a batch are there, where it has many: to insert one is a third of what it costs to look for
/// it and add to it. Nobody but who leads makes any, and who does not will not commit.
async fn there(ready: &Connection, batch: &RollupBatch) -> Result<Option<There>> {
    if batch.deltas.rollups.len() < MANY_ROLLUPS {
        return Ok(None);
    }
    let mut there = HashSet::new();
    let rollups: Vec<Document> = batch.deltas.rollups.keys().map(rollup_id).collect();
    let counts: Vec<Document> = batch.deltas.failures.keys().map(failure_count_id).collect();
    for (name, ids) in [(ROLLUPS, rollups), (FAILURE_COUNTS, counts)] {
        let collection = ready.own(name);
        for ids in ids.chunks(STATEMENTS) {
            let find = doc! { "_id": { "$in": ids.to_vec() } };
            for raw in ready.all(&collection, find, Some(doc! { "_id": 1 })).await? {
                there.extend(raw.get_document("_id").ok().map(|id| id.as_bytes().to_vec()));
            }
        }
    }
    Ok(Some(There(there)))
}

/// The statements of a batch by collection, ready to be sent.
struct Statements([(Name, Changes); 4]);

fn failure_document_id(execution_id: &str, failure: &Failure) -> Document {
    doc! { "e": execution_id, "s": failure.step_id.unwrap_or(-1) }
}

fn recount(recount: &Recount, counted: &mut Changes, failed: &mut Changes) {
    let Recount { execution_id, before, after } = recount;
    let none = Vec::new();
    let old = before.as_ref().map_or(&none, |counted| &counted.failures);
    let new = after.as_ref().map_or(&none, |counted| &counted.failures);
    for gone in old.iter().filter(|old| !new.iter().any(|new| new.step_id == old.step_id)) {
        failed.remove(failure_document_id(execution_id, gone));
    }
    let Some(Counted { counts_as, failures }) = after else {
        counted.remove(execution_id.as_str());
        return;
    };
    let group = group_fields(&counts_as.group);
    let moved = before.as_ref().is_none_or(|before| before.counts_as.group != counts_as.group);
    let is_new = before.is_none();
    for failure in failures.iter().filter(|new| moved || !old.contains(new)) {
        let mut document = group.clone();
        document.insert("step_name", &failure.step_name);
        document.insert("failed_at", failure.failed_at.map(DateTime::from_millis));
        document.insert("fingerprint", &failure.fingerprint);
        document.insert("message", &failure.message);
        let id = failure_document_id(execution_id, failure);
        match is_new {
            true => failed.insert(id, document),
            false => failed.put(id, document),
        }
    }
    let mut document = doc! {
        "day": day_of(counts_as.quarter),
        "quarter": counts_as.quarter,
        "outcome": counts_as.outcome.letter(),
        "duration_ms": counts_as.duration_ms,
    };
    if !failures.is_empty() {
        document.insert("failures", i64::try_from(failures.len()).unwrap_or(i64::MAX));
    }
    document.extend(group);
    match before {
        None => counted.insert(execution_id.as_str(), document),
        Some(_) => counted.put(execution_id.as_str(), document),
    }
}

fn rollup_id(key: &RollupKey) -> Document {
    doc! { "l": key.level.word(), "t": key.at, "g": group_id(&key.group) }
}

fn failure_count_id(key: &FailureKey) -> Document {
    doc! { "l": key.level.word(), "t": key.at, "g": failure_id(key) }
}

fn failure_fields(key: &FailureKey) -> Document {
    let mut fields = group_fields(&key.group);
    fields.insert("outcome", key.outcome.letter());
    fields.insert("step_name", &key.step_name);
    fields.insert("fingerprint", &key.fingerprint);
    fields
}

impl Statements {
    /// What is not `there` is inserted, as far as it is known what is.
    fn of(batch: &RollupBatch, there: Option<&There>) -> Statements {
        let is_new = |id: &Document, counted: i64| {
            counted > 0 && there.is_some_and(|there| !there.contains(id))
        };
        let (mut counted, mut failed) = (Changes::default(), Changes::default());
        for changed in &batch.recounts {
            recount(changed, &mut counted, &mut failed);
        }
        let mut rollups = Changes::default();
        for (key, delta) in &batch.deltas.rollups {
            let (id, counted) = (rollup_id(key), delta.executions());
            let mut fixed = group_fields(&key.group);
            if is_new(&id, counted) {
                fixed.extend(doc! { "n": counted, "p": rollup_document(delta) });
                rollups.insert(id, fixed);
            } else {
                rollups.increment(id, counted, numbers(delta), fixed);
            }
        }
        let mut counts = Changes::default();
        for (key, parts) in &batch.deltas.failures {
            let (id, counted) = (failure_count_id(key), parts.iter().sum::<i64>());
            let mut fixed = failure_fields(key);
            let named = parts.iter().enumerate().map(|(part, count)| (part.to_string(), *count));
            let named: Vec<(String, i64)> = named.filter(|(_, count)| *count != 0).collect();
            if is_new(&id, counted) {
                let parts = named.into_iter().map(|(part, count)| (part, Bson::from(count)));
                fixed.extend(doc! { "n": counted, "p": parts.collect::<Document>() });
                counts.insert(id, fixed);
            } else {
                counts.increment(id, counted, named, fixed);
            }
        }
        for (key, rollup) in &batch.rollups {
            let counted = rollup.executions();
            let document = (!rollup.is_empty()).then(|| {
                let mut document = group_fields(&key.group);
                document.extend(doc! { "n": counted, "p": rollup_document(rollup) });
                document
            });
            rollups.replace(rollup_id(key), document);
        }
        for (key, parts) in &batch.failures {
            let sum: i64 = parts.iter().sum();
            let document = (sum > 0).then(|| {
                let mut document = failure_fields(key);
                let named = parts.iter().enumerate().filter(|(_, count)| **count != 0);
                let named = named.map(|(part, count)| (part.to_string(), Bson::from(*count)));
                document.extend(doc! { "n": sum, "p": named.collect::<Document>() });
                document
            });
            counts.replace(failure_count_id(key), document);
        }
        Statements([
            (COUNTED, counted),
            (FAILURES, failed),
            (ROLLUPS, rollups),
            (FAILURE_COUNTS, counts),
        ])
    }

    /// The same, looking whether documents are there.
    fn cautious(&mut self) {
        for (_, changes) in &mut self.0 {
            for mut document in std::mem::take(&mut changes.inserts) {
                if let Some(id) = document.remove("_id") {
                    changes.put(id, document);
                }
            }
        }
    }

    async fn send(&self, transaction: &mut Transaction<'_>) -> Result<(), Failed> {
        for (collection, changes) in &self.0 {
            for (name, field, all) in [
                ("insert", "documents", &changes.inserts),
                ("update", "updates", &changes.updates),
                ("delete", "deletes", &changes.deletes),
            ] {
                for piece in all.chunks(STATEMENTS) {
                    let command = doc! { name: *collection, field: piece.to_vec() };
                    transaction.command(command).await?;
                }
            }
        }
        Ok(())
    }
}

/// Whether the batch is in: else somebody else leads.
async fn attempt(
    ready: &Connection,
    statements: &Statements,
    filter: &Document,
    progress: &Document,
) -> Result<Result<bool, Failed>> {
    let meta = &ready.own(META);
    let work = ready.transaction(EFFORT, |transaction| {
        async move {
            let lead = meta.update_one(filter.clone(), progress.clone());
            if lead.session(transaction.session()).await?.matched_count == 0 {
                return Ok(Ended::Abort(false));
            }
            statements.send(transaction).await?;
            Ok(Ended::Commit(true))
        }
        .boxed()
    });
    work.await
}

pub async fn commit(db: &Arc<Db>, holder: &str, batch: &RollupBatch) -> Result<bool> {
    let ready = db.ready().await?;
    let meta = ready.own(META);
    // Always a change, so that whoever takes the lease by force meets it.
    let mut progress = doc! { "$inc": { "commits": 1_i64 } };
    let mut set = Document::new();
    if let Some(cursor) = &batch.cursor {
        set.insert("cursor", binary(&cursor.0));
        set.insert("rules", RULES);
    }
    if let Some(at) = batch.exact_since {
        set.insert("exact_since", DateTime::from_millis(at));
    }
    if !set.is_empty() {
        progress.insert("$set", set);
    }
    let filter = doc! { "_id": LEAD, "holder": holder };
    if batch.recounts.is_empty()
        && batch.rollups.is_empty()
        && batch.failures.is_empty()
        && batch.deltas.rollups.is_empty()
        && batch.deltas.failures.is_empty()
    {
        let moved = ready.call(meta.update_one(filter, progress)).await?;
        return Ok(moved.matched_count == 1);
    }
    let there = there(&ready, batch).await?;
    let statements = Statements::of(batch, there.as_ref());
    // A document that should not be there is: another program put it there, or has two executions of one id.
    let refused = "the database refused to change a rollup";
    match attempt(&ready, &statements, &filter, &progress).await? {
        Err(Failed::Refused) => {
            let mut statements = Statements::of(batch, None);
            statements.cautious();
            let done = attempt(&ready, &statements, &filter, &progress).await?;
            done.map_err(|failed| failed.error(refused))
        }
        done => done.map_err(|failed| failed.error(refused)),
    }
}
