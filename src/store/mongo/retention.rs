//! Retention on MongoDB. The age of a document is the time in its `_id`, so each collection is walked along the
//! index it has anyhow.
//!
//! An execution is marked by an update that is guarded by all that decided. Steps and artifacts are in other
//! collections than the flag that keeps them: they go in a transaction that changes their execution too, so that
//! whoever pins or revives it just then comes before, and keeps them, or after. A standalone mongod has no
//! transactions; there the order of these commands has to do.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use bson::oid::ObjectId;
use bson::raw::cstr;
use bson::{Bson, DateTime, Document, RawDocumentBuf, doc, rawdoc};
use mongodb::{ClientSession, Collection};

use super::command::Fate;
use super::remove::{
    bytes_of, forget_steps, is_transient, is_unknown_commit, mark_artifacts, mark_steps, stored_at,
};
use super::{Inner, MongoStore, Ready, documents, failure, remove, schema};
use crate::domain::query::Page;
use crate::domain::retention::{Kind, Owner, Policy};
use crate::domain::{ExecutionStatus, Millis};
use crate::store::retention::{AgeKey, Aged, LEAD, Piece, Removed, RetentionStore};
use crate::store::{Error, RecordKey, Result};

/// How often a transaction that met another writer is tried.
const ATTEMPTS: usize = 3;

fn collection_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Executions => schema::EXECUTIONS,
        Kind::Steps => schema::STEPS,
        Kind::Artifacts => schema::ARTIFACTS,
    }
}

fn owner_fields() -> Document {
    doc! {
        "execution_id": 1, "app_id": 1, "app_name": 1, "status": 1, "pinned": 1, "revision": 1, "deleted_at": 1,
    }
}

/// An execution as a record's owner.
#[derive(Clone)]
enum Owned {
    By(Owner),
    /// By one that is being deleted.
    Deleted,
}

fn owner_of(raw: &RawDocumentBuf) -> Option<Owned> {
    let execution = documents::read_execution(raw).ok()?;
    if execution.deleted_at.is_some() {
        return Some(Owned::Deleted);
    }
    let id = raw.get("_id").ok().flatten().and_then(|id| Bson::try_from(id).ok());
    Some(Owned::By(Owner {
        execution_id: execution.execution_id,
        app_id: execution.app_id,
        app_name: execution.app_name,
        status: execution.status,
        pinned: execution.pinned.unwrap_or(false),
        // Without a time it has no age.
        stored_at: id.as_ref().and_then(stored_at).unwrap_or(Millis::MAX),
    }))
}

fn ids_of(records: &[Aged]) -> Vec<ObjectId> {
    let id = |record: &Aged| record.id.as_slice().try_into().map(ObjectId::from_bytes).ok();
    records.iter().filter_map(id).collect()
}

impl Inner {
    async fn owners(
        &self,
        ready: &Ready,
        execution_ids: HashSet<&str>,
    ) -> Result<HashMap<String, Owned>> {
        if execution_ids.is_empty() {
            return Ok(HashMap::new());
        }
        let ids: Vec<&str> = execution_ids.into_iter().collect();
        let filter = doc! { "execution_id": { "$in": ids } };
        Ok(by_id(&self.all(&ready.executions, filter, Some(owner_fields())).await?))
    }
}

fn by_id(found: &[RawDocumentBuf]) -> HashMap<String, Owned> {
    let owner = |raw: &RawDocumentBuf| {
        let id = raw.get_str("execution_id").ok()?.to_owned();
        Some((id, owner_of(raw)?))
    };
    found.iter().filter_map(owner).collect()
}

async fn by_age(
    inner: &Inner,
    kind: Kind,
    after: Option<&AgeKey>,
    limit: usize,
) -> Result<Page<Aged, AgeKey>> {
    let ready = inner.ready().await?;
    let after = match after {
        None => [0; 12],
        Some(key) => key.0.as_slice().try_into().map_err(|_| Error::BadCursor)?,
    };
    let limit = i64::try_from(limit.max(1)).unwrap_or(i64::MAX);
    let (collection, fields) = match kind {
        Kind::Executions => (&ready.executions, owner_fields()),
        Kind::Steps => (&ready.steps, doc! { "execution_id": 1 }),
        Kind::Artifacts => {
            (&ready.artifacts, doc! { "execution_id": 1, "size_bytes": 1, "deleted_at": 1 })
        }
    };
    // Only ids of this type carry a time, and only they are greater than one of them.
    let filter = doc! { "_id": { "$gt": ObjectId::from_bytes(after) } };
    let found = inner
        .call(async {
            let mut found = Vec::new();
            let find = collection.find(filter).sort(doc! { "_id": 1 }).projection(fields);
            let mut cursor = find.limit(limit).batch_size(1000).await?;
            while cursor.advance().await? {
                found.push(cursor.current().to_owned());
            }
            Ok(found)
        })
        .await?;
    let mut page = Page { records: Vec::new(), next: None };
    if found.len() as i64 == limit {
        let last = found.last().and_then(|raw| raw.get_object_id("_id").ok());
        page.next = last.map(|id| AgeKey(id.bytes().to_vec()));
    }
    let owners = match kind {
        Kind::Executions => by_id(&found),
        Kind::Steps | Kind::Artifacts => {
            let ids = found.iter().filter_map(|raw| raw.get_str("execution_id").ok());
            inner.owners(&ready, ids.collect()).await?
        }
    };
    for raw in &found {
        // What does not say to which execution it belongs is left alone.
        let (Ok(id), Ok(execution_id)) = (raw.get_object_id("_id"), raw.get_str("execution_id"))
        else {
            continue;
        };
        let deleted = raw.get("deleted_at").ok().flatten();
        let owner = match owners.get(execution_id) {
            _ if deleted.is_some_and(|at| at.as_datetime().is_some()) => continue,
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
    inner: &Inner,
    records: &[Aged],
    policy: &Policy,
    now: Millis,
) -> Result<Vec<String>> {
    let ready = inner.ready().await?;
    let moment = inner.clock.now();
    let filter = doc! { "_id": { "$in": ids_of(records) } };
    let found = inner.all(&ready.executions, filter, Some(owner_fields())).await?;
    let mut documents = Vec::new();
    let mut statements = Vec::new();
    for raw in &found {
        let (Some(Owned::By(owner)), Ok(id)) = (owner_of(raw), raw.get_object_id("_id")) else {
            continue;
        };
        let Some(status) = owner.status.filter(|_| policy.execution_is_over(&owner, now)) else {
            continue;
        };
        let revision = raw.get("revision").ok().flatten().and_then(documents::integer).unwrap_or(0);
        let mut query = rawdoc! {
            "_id": id,
            "status": status.as_str(),
            "pinned": { "$ne": true },
            "deleted_at": { "$not": { "$type": "date" } },
        };
        documents::guard_revision(&mut query, revision);
        let after = moment.revision_after(revision);
        let mut set = rawdoc! { "deleted_at": documents::date(moment.millis()) };
        set.append(cstr!("updated_at"), documents::date(moment.millis()));
        set.append(cstr!("revision"), after);
        let last_change = format!("{}//{after}", owner.execution_id);
        set.append(cstr!("last_change"), last_change.as_str());
        // So that nobody else takes it away, and counts what goes, while this run is at it.
        set.append(cstr!("retention"), true);
        statements.push(rawdoc! { "q": query, "u": { "$set": set } });
        documents.push((id, owner.execution_id, last_change));
    }
    let fates = ready.commander.update(schema::EXECUTIONS, &statements, None).await;
    for (_, execution_id, _) in &documents {
        inner.cache.forget(&RecordKey::execution(execution_id));
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
    let filter = doc! { "_id": { "$in": ids }, "deleted_at": { "$gt": schema::epoch() } };
    let marked = inner.all(&ready.executions, filter, Some(doc! { "last_change": 1 })).await?;
    let ours: HashSet<&str> =
        marked.iter().filter_map(|raw| raw.get_str("last_change").ok()).collect();
    let is_ours = |last_change: &str| ours.contains(last_change);
    let documents = documents.into_iter().filter(|(_, _, last_change)| is_ours(last_change));
    Ok(documents.map(|(_, execution_id, _)| execution_id).collect())
}

/// One attempt to delete steps or artifacts.
struct Parts<'a> {
    inner: &'a Inner,
    ready: &'a Ready,
    kind: Kind,
    ids: Vec<ObjectId>,
    execution_ids: Vec<String>,
    policy: &'a Policy,
    now: Millis,
}

type Driver<T> = mongodb::error::Result<T>;

impl Parts<'_> {
    fn collection(&self, name: &str) -> Collection<RawDocumentBuf> {
        // Without read and write concerns of its own: in a transaction those of the transaction hold.
        self.ready.database.collection(name)
    }

    async fn in_transaction(&self) -> Driver<(Removed, Vec<RawDocumentBuf>)> {
        let mut session = self.ready.client.start_session().await?;
        session.start_transaction().await?;
        let done = self.run(Some(&mut session)).await;
        match done {
            Ok((removed, gone)) if gone.is_empty() => {
                let _ = session.abort_transaction().await;
                Ok((removed, gone))
            }
            Ok(done) => {
                let mut committed = session.commit_transaction().await;
                if committed.as_ref().is_err_and(is_unknown_commit) {
                    committed = session.commit_transaction().await;
                }
                committed.map(|()| done)
            }
            Err(error) => {
                let _ = session.abort_transaction().await;
                Err(error)
            }
        }
    }

    /// What was deleted, as counts and as documents.
    async fn run(
        &self,
        mut session: Option<&mut ClientSession>,
    ) -> Driver<(Removed, Vec<RawDocumentBuf>)> {
        let executions = self.collection(schema::EXECUTIONS);
        let ended: Vec<&str> = ExecutionStatus::ALL
            .into_iter()
            .filter(|status| status.is_terminal())
            .map(ExecutionStatus::as_str)
            .collect();
        let free = doc! {
            "execution_id": { "$in": &self.execution_ids },
            "status": { "$in": ended },
            "pinned": { "$ne": true },
            "deleted_at": { "$not": { "$type": "date" } },
        };
        // A change of each that may lose something: nobody else changes it until this is over.
        let touch = executions.update_many(free, doc! { "$inc": { "trims": 1 } });
        match session.as_deref_mut() {
            Some(session) => touch.session(session).await?,
            None => touch.await?,
        };
        let filter = doc! { "execution_id": { "$in": &self.execution_ids } };
        let owners = find(&executions, filter, owner_fields(), session.as_deref_mut()).await?;
        let owners = by_id(&owners);
        let collection = self.collection(collection_of(self.kind));
        let filter = doc! { "_id": { "$in": &self.ids } };
        let fields = doc! { "execution_id": 1, "step_id": 1, "size_bytes": 1, "deleted_at": 1 };
        let mut gone = find(&collection, filter, fields, session.as_deref_mut()).await?;
        gone.retain(|raw| self.is_over(raw, &owners));
        let ids: Vec<ObjectId> =
            gone.iter().filter_map(|raw| raw.get_object_id("_id").ok()).collect();
        if ids.is_empty() {
            return Ok((Removed::default(), gone));
        }
        let filter = doc! { "_id": { "$in": ids } };
        let moment = self.inner.clock.now();
        let at = DateTime::from_millis(moment.millis());
        let mark = match self.kind {
            Kind::Artifacts => mark_artifacts(at),
            _ => mark_steps(at, moment.micros),
        };
        let update = collection.update_many(filter.clone(), mark);
        match session.as_deref_mut() {
            Some(session) => update.session(session).await?,
            None => update.await?,
        };
        let count = gone.len() as u64;
        if self.kind == Kind::Artifacts {
            let artifact_bytes = gone.iter().map(bytes_of).sum();
            let removed = Removed { artifacts: count, artifact_bytes, ..Removed::default() };
            return Ok((removed, gone));
        }
        let delete = collection.delete_many(filter);
        match session {
            Some(session) => delete.session(session).await?,
            None => delete.await?,
        };
        Ok((Removed { steps: count, ..Removed::default() }, gone))
    }

    fn is_over(&self, raw: &RawDocumentBuf, owners: &HashMap<String, Owned>) -> bool {
        let marked = raw.get("deleted_at").ok().flatten();
        let (Ok(id), Ok(execution_id)) = (raw.get_object_id("_id"), raw.get_str("execution_id"))
        else {
            return false;
        };
        let owner = match owners.get(execution_id) {
            Some(Owned::By(owner)) => Some(owner),
            Some(Owned::Deleted) => return false,
            None => None,
        };
        let stored_at = id.timestamp().timestamp_millis();
        marked.is_none_or(|at| at.as_datetime().is_none())
            && self.policy.is_over(self.kind, owner, stored_at, self.now)
    }
}

async fn find(
    collection: &Collection<RawDocumentBuf>,
    filter: Document,
    fields: Document,
    session: Option<&mut ClientSession>,
) -> Driver<Vec<RawDocumentBuf>> {
    let find = collection.find(filter).projection(fields).batch_size(1000);
    let mut found = Vec::new();
    match session {
        Some(session) => {
            let mut cursor = find.session(&mut *session).await?;
            while cursor.advance(session).await? {
                found.push(cursor.current().to_owned());
            }
        }
        None => {
            let mut cursor = find.await?;
            while cursor.advance().await? {
                found.push(cursor.current().to_owned());
            }
        }
    }
    Ok(found)
}

async fn expire_parts(
    inner: &Inner,
    kind: Kind,
    records: &[Aged],
    policy: &Policy,
    now: Millis,
) -> Result<Removed> {
    let ready = inner.ready().await?;
    let owners = records.iter().filter_map(|record| record.owner.as_ref());
    let execution_ids: HashSet<String> = owners.map(|owner| owner.execution_id.clone()).collect();
    let parts = Parts {
        inner,
        ready: &ready,
        kind,
        ids: ids_of(records),
        execution_ids: execution_ids.into_iter().collect(),
        policy,
        now,
    };
    for _ in 0..ATTEMPTS {
        let done = match ready.replica_set {
            true => inner.try_call(parts.in_transaction()).await?,
            false => inner.try_call(parts.run(None)).await?,
        };
        match done {
            Ok((removed, gone)) => {
                if kind == Kind::Steps {
                    forget_steps(inner, &gone);
                }
                return Ok(removed);
            }
            // Another writer was at one of these executions: look again.
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(failure::error(error)),
        }
    }
    Ok(Removed::default())
}

/// The greatest ids of executions and steps: each new one is greater, by the clock of whoever gives it.
async fn newest(inner: &Inner) -> Result<Vec<u8>> {
    let ready = inner.ready().await?;
    let (execution, step) =
        tokio::try_join!(last_id(inner, &ready.executions), last_id(inner, &ready.steps))?;
    Ok([execution, step].concat())
}

async fn last_id(inner: &Inner, collection: &Collection<RawDocumentBuf>) -> Result<Vec<u8>> {
    let ids = doc! { "_id": { "$lte": ObjectId::from_bytes([0xff; 12]) } };
    let last = collection.find_one(ids).sort(doc! { "_id": -1 }).projection(doc! { "_id": 1 });
    let last = inner.call(last).await?.and_then(|raw| raw.get_object_id("_id").ok());
    Ok(last.map_or(Vec::new(), |id| id.bytes().to_vec()))
}

async fn weigh(inner: &Inner, execution_ids: &[String]) -> Result<Removed> {
    let ready = inner.ready().await?;
    let filter = doc! { "execution_id": { "$in": execution_ids } };
    let (steps, points) = tokio::try_join!(
        inner.call(ready.steps.count_documents(filter.clone())),
        super::metrics::number_of_points(inner, &ready, filter.clone()),
    )?;
    let fields = doc! { "size_bytes": 1, "deleted_at": 1 };
    let mut artifacts = inner.all(&ready.artifacts, filter, Some(fields)).await?;
    artifacts.retain(|raw| {
        let deleted = raw.get("deleted_at").ok().flatten();
        deleted.is_none_or(|at| at.as_datetime().is_none())
    });
    Ok(Removed {
        executions: execution_ids.len() as u64,
        steps,
        artifacts: artifacts.len() as u64,
        artifact_bytes: artifacts.iter().map(bytes_of).sum(),
        points,
        uploads: 0,
    })
}

/// Whether somebody runs retention just now.
pub(super) async fn is_running(inner: &Inner, ready: &Ready) -> Result<bool> {
    let lease = doc! { "_id": LEAD, "$expr": { "$gt": ["$expires_at", "$$NOW"] } };
    Ok(inner.call(ready.leases().count_documents(lease)).await? > 0)
}

#[async_trait]
impl RetentionStore for MongoStore {
    async fn by_age(
        &self,
        kind: Kind,
        after: Option<&AgeKey>,
        limit: usize,
    ) -> Result<Page<Aged, AgeKey>> {
        by_age(&self.inner, kind, after, limit).await
    }

    async fn expire_executions(
        &self,
        records: Vec<Aged>,
        policy: Arc<Policy>,
        now: Millis,
    ) -> Result<Vec<String>> {
        expire_executions(&self.inner, &records, &policy, now).await
    }

    async fn expire_parts(
        &self,
        kind: Kind,
        records: Vec<Aged>,
        policy: Arc<Policy>,
        now: Millis,
    ) -> Result<Removed> {
        expire_parts(&self.inner, kind, &records, &policy, now).await
    }

    async fn remove_piece(&self, execution_ids: Vec<String>) -> Result<Piece> {
        remove::remove_piece(&self.inner, execution_ids).await
    }

    async fn newest(&self) -> Result<Vec<u8>> {
        newest(&self.inner).await
    }

    async fn weigh(&self, execution_ids: &[String]) -> Result<Removed> {
        weigh(&self.inner, execution_ids).await
    }

    async fn oldest_point(&self) -> Result<Option<Millis>> {
        super::metrics::oldest(&self.inner).await
    }
}
