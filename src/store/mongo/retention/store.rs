//! Records by age, and executions whose time is over. The age of a document is the time in its `_id`, so each collection is
//! walked along the index it has anyhow.
//!
//! An execution is marked by an update that is guarded by all that decided.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use bson::oid::ObjectId;
use bson::raw::cstr;
use bson::{doc, rawdoc};

use super::owners::{Owned, by_id, ids_of, owner_fields, owner_of, owners};
use super::parts;
use crate::clock::Clock;
use crate::domain::Millis;
use crate::domain::query::Page;
use crate::domain::retention::{Kind, Policy};
use crate::store::mongo::artifact_documents::bytes_of;
use crate::store::mongo::db::values::{date, epoch, field, integer, is_marked};
use crate::store::mongo::db::{Connection, Db, Fate, failure, update_statement};
use crate::store::mongo::names::{ARTIFACTS, EXECUTIONS, Name, STEPS};
use crate::store::mongo::records::Records;
use crate::store::mongo::records::guard::guard_revision;
use crate::store::mongo::{metrics, removal::Removal};
use crate::store::retention::{AgeKey, Aged, Piece, Removed, RetentionStore};
use crate::store::{Error, Result};

/// Documents fetched at a time.
const FETCHED_AT_ONCE: u32 = 1000;

/// What is kept for how long.
pub struct Retention {
    db: Arc<Db>,
    clock: Arc<dyn Clock>,
    records: Arc<Records>,
    removal: Arc<Removal>,
}

impl Retention {
    pub fn new(
        db: Arc<Db>,
        clock: Arc<dyn Clock>,
        records: Arc<Records>,
        removal: Arc<Removal>,
    ) -> Retention {
        Retention { db, clock, records, removal }
    }
}

async fn by_age(
    ready: &Connection,
    kind: Kind,
    after: Option<&AgeKey>,
    limit: usize,
) -> Result<Page<Aged, AgeKey>> {
    let after = match after {
        None => [0; 12],
        Some(key) => key.0.as_slice().try_into().map_err(|_| Error::BadCursor)?,
    };
    let limit = i64::try_from(limit.max(1)).unwrap_or(i64::MAX);
    let (collection, fields) = match kind {
        Kind::Executions => (EXECUTIONS, owner_fields()),
        Kind::Steps => (STEPS, doc! { "execution_id": 1 }),
        Kind::Artifacts => {
            (ARTIFACTS, doc! { "execution_id": 1, "size_bytes": 1, "deleted_at": 1 })
        }
    };
    let collection = ready.own(collection);
    // Only ids of this type carry a time, and only they are greater than one of them.
    let filter = doc! { "_id": { "$gt": ObjectId::from_bytes(after) } };
    let find = collection.find(filter).sort(doc! { "_id": 1 }).projection(fields);
    let found = ready.collect(find.limit(limit).batch_size(FETCHED_AT_ONCE)).await?;
    let mut page = Page { records: Vec::new(), next: None };
    if found.len() as i64 == limit {
        let last = found.last().and_then(|raw| raw.get_object_id("_id").ok());
        page.next = last.map(|id| AgeKey(id.bytes().to_vec()));
    }
    let owner_of_each = match kind {
        Kind::Executions => by_id(&found),
        Kind::Steps | Kind::Artifacts => {
            let ids = found.iter().filter_map(|raw| raw.get_str("execution_id").ok());
            owners(ready, ids.collect()).await?
        }
    };
    for raw in &found {
        // What does not say to which execution it belongs is left alone.
        let (Ok(id), Ok(execution_id)) = (raw.get_object_id("_id"), raw.get_str("execution_id"))
        else {
            continue;
        };
        let owner = match owner_of_each.get(execution_id) {
            _ if is_marked(raw) => continue,
            Some(Owned::Deleted) => continue,
            Some(Owned::By(owner)) => Some(owner.clone()),
            None => None,
        };
        page.records.push(Aged {
            id: id.bytes().to_vec(),
            stored_at: id.timestamp().timestamp_millis(),
            owner,
            bytes: bytes_of(raw),
        });
    }
    Ok(page)
}

async fn expire_executions(
    room: &Retention,
    records: &[Aged],
    policy: &Policy,
    now: Millis,
) -> Result<Vec<String>> {
    let ready = room.db.ready().await?;
    let executions = ready.latest(EXECUTIONS);
    let moment = room.clock.now();
    let filter = doc! { "_id": { "$in": ids_of(records) } };
    let found = ready.all(&executions, filter, Some(owner_fields())).await?;
    let mut documents = Vec::new();
    let mut statements = Vec::new();
    for raw in &found {
        let (Some(Owned::By(owner)), Ok(id)) = (owner_of(raw), raw.get_object_id("_id")) else {
            continue;
        };
        let Some(status) = owner.status.filter(|_| policy.execution_is_over(&owner, now)) else {
            continue;
        };
        let revision = field(raw, "revision").and_then(integer).unwrap_or(0);
        let mut query = rawdoc! {
            "_id": id,
            "execution_id": owner.execution_id.as_str(),
            "status": status.as_str(),
            "pinned": { "$ne": true },
            "deleted_at": { "$not": { "$type": "date" } },
        };
        guard_revision(&mut query, revision);
        let after = moment.revision_after(revision);
        let mut set = rawdoc! { "deleted_at": date(moment.millis()) };
        set.append(cstr!("updated_at"), date(moment.millis()));
        set.append(cstr!("revision"), after);
        let last_change = format!("{}//{after}", owner.execution_id);
        set.append(cstr!("last_change"), last_change.as_str());
        // So that nobody else takes it away, and counts what goes, while this run is at it.
        set.append(cstr!("retention"), true);
        statements.push(update_statement(query, rawdoc! { "$set": set }));
        documents.push((id, owner.execution_id, last_change));
    }
    let fates = ready.commander().update(EXECUTIONS, &statements, None).await;
    for (_, execution_id, _) in &documents {
        room.records.forget_execution(execution_id);
    }
    if fates.contains(&Fate::Unknown) {
        // What was marked is swept.
        return Err(failure::timeout());
    }
    if fates.iter().all(|fate| *fate == Fate::Done) {
        return Ok(documents.into_iter().map(|(_, execution_id, _)| execution_id).collect());
    }
    // Some lost a race, and the answer does not say which.
    let ids: Vec<ObjectId> = documents.iter().map(|(id, ..)| *id).collect();
    let filter = doc! { "_id": { "$in": ids }, "deleted_at": { "$gt": epoch() } };
    let marked = ready.all(&executions, filter, Some(doc! { "last_change": 1 })).await?;
    let ours: HashSet<&str> =
        marked.iter().filter_map(|raw| raw.get_str("last_change").ok()).collect();
    let is_ours = |last_change: &str| ours.contains(last_change);
    let documents = documents.into_iter().filter(|(_, _, last_change)| is_ours(last_change));
    Ok(documents.map(|(_, execution_id, _)| execution_id).collect())
}

/// The greatest ids of executions and steps: each new one is greater, by the clock of whoever gives it.
async fn newest(ready: &Connection) -> Result<Vec<u8>> {
    let (execution, step) = tokio::try_join!(last_id(ready, EXECUTIONS), last_id(ready, STEPS))?;
    Ok([execution, step].concat())
}

async fn last_id(ready: &Connection, collection: Name) -> Result<Vec<u8>> {
    let collection = ready.own(collection);
    let ids = doc! { "_id": { "$lte": ObjectId::from_bytes([0xff; 12]) } };
    let last = collection.find_one(ids).sort(doc! { "_id": -1 }).projection(doc! { "_id": 1 });
    let last = ready.call(last).await?.and_then(|raw| raw.get_object_id("_id").ok());
    Ok(last.map_or(Vec::new(), |id| id.bytes().to_vec()))
}

async fn weigh(ready: &Connection, execution_ids: &[String]) -> Result<Removed> {
    let filter = doc! { "execution_id": { "$in": execution_ids } };
    let steps = ready.own(STEPS);
    let (steps, points) = tokio::try_join!(
        ready.call(steps.count_documents(filter.clone())),
        metrics::number_of_points(ready, filter.clone()),
    )?;
    let fields = doc! { "size_bytes": 1, "deleted_at": 1 };
    let mut artifacts = ready.all(&ready.own(ARTIFACTS), filter, Some(fields)).await?;
    artifacts.retain(|raw| !is_marked(raw));
    Ok(Removed {
        executions: execution_ids.len() as u64,
        steps,
        artifacts: artifacts.len() as u64,
        artifact_bytes: artifacts.iter().map(|raw| bytes_of(raw)).sum(),
        points,
        uploads: 0,
    })
}

#[async_trait]
impl RetentionStore for Retention {
    async fn by_age(
        &self,
        kind: Kind,
        after: Option<&AgeKey>,
        limit: usize,
    ) -> Result<Page<Aged, AgeKey>> {
        by_age(&*self.db.ready().await?, kind, after, limit).await
    }

    async fn expire_executions(
        &self,
        records: Vec<Aged>,
        policy: Arc<Policy>,
        now: Millis,
    ) -> Result<Vec<String>> {
        expire_executions(self, &records, &policy, now).await
    }

    async fn expire_parts(
        &self,
        kind: Kind,
        records: Vec<Aged>,
        policy: Arc<Policy>,
        now: Millis,
    ) -> Result<Removed> {
        let ready = self.db.ready().await?;
        let moment = self.clock.now();
        let (removed, gone) = parts::expire(&ready, kind, &records, &policy, now, moment).await?;
        if kind == Kind::Steps {
            self.records.forget_steps(&gone);
        }
        Ok(removed)
    }

    async fn remove_piece(&self, execution_ids: Vec<String>) -> Result<Piece> {
        self.removal.remove_piece(execution_ids).await
    }

    async fn newest(&self) -> Result<Vec<u8>> {
        newest(&*self.db.ready().await?).await
    }

    async fn weigh(&self, execution_ids: &[String]) -> Result<Removed> {
        weigh(&*self.db.ready().await?, execution_ids).await
    }

    async fn oldest_point(&self) -> Result<Option<Millis>> {
        metrics::oldest(&*self.db.ready().await?).await
    }
}
