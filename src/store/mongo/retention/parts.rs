//! Steps and artifacts whose time is over.
//!
//! They are in other collections than the flag that keeps them: they go in a transaction that changes their execution
//! too, so that whoever pins or revives it just then comes before, and keeps them, or after. A standalone mongod has no
//! transactions; there the order of these commands has to do.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bson::oid::ObjectId;
use bson::{DateTime, Document, RawDocumentBuf, doc};
use futures::FutureExt as _;
use mongodb::action::{Delete, Find, Update};
use mongodb::options::Hint;

use super::owners::{Owned, by_id, ids_of, owner_fields};
use crate::domain::retention::{Kind, Policy};
use crate::domain::{ExecutionStatus, Millis, Now};
use crate::store::mongo::artifact_documents::{self, bytes_of};
use crate::store::mongo::db::values::is_marked;
use crate::store::mongo::db::{Connection, Effort, Ended, Failed, Transaction};
use crate::store::mongo::names::{ARTIFACTS, EXECUTIONS, STEPS};
use crate::store::retention::{Aged, Removed};
use crate::store::{Error, Result};

/// A transaction of a server that is gone.
const ABANDONED: Duration = Duration::from_secs(4);

/// Where the commands go.
enum Way<'t, 'a> {
    Transaction(&'t mut Transaction<'a>),
    /// One by one.
    Plain(&'t Connection),
}

impl Way<'_, '_> {
    async fn update(&mut self, update: Update<'_>) -> Result<(), Failed> {
        match self {
            Way::Transaction(transaction) => update.session(transaction.session()).await?,
            Way::Plain(ready) => ready.call(update).await?,
        };
        Ok(())
    }

    async fn delete(&mut self, delete: Delete<'_>) -> Result<(), Failed> {
        match self {
            Way::Transaction(transaction) => delete.session(transaction.session()).await?,
            Way::Plain(ready) => ready.call(delete).await?,
        };
        Ok(())
    }

    async fn collect(
        &mut self,
        find: Find<'_, RawDocumentBuf>,
    ) -> Result<Vec<RawDocumentBuf>, Failed> {
        Ok(match self {
            Way::Transaction(transaction) => transaction.collect(find).await?,
            Way::Plain(ready) => ready.collect(find).await?,
        })
    }
}

/// What is to be deleted, if it still may.
struct Parts<'a> {
    ready: &'a Connection,
    kind: Kind,
    ids: Vec<ObjectId>,
    execution_ids: Vec<String>,
    policy: &'a Policy,
    now: Millis,
    moment: Now,
}

/// What was deleted, as counts and as documents.
type Gone = (Removed, Vec<RawDocumentBuf>);

impl Parts<'_> {
    async fn delete(&self, mut way: Way<'_, '_>) -> Result<Gone, Failed> {
        let executions = self.ready.latest(EXECUTIONS);
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
        way.update(executions.update_many(free, doc! { "$inc": { "trims": 1 } })).await?;
        let filter = doc! { "execution_id": { "$in": &self.execution_ids } };
        let owners = way.collect(executions.find(filter).projection(owner_fields())).await?;
        let owners = by_id(&owners);
        let collection = self.ready.latest(match self.kind {
            Kind::Executions => EXECUTIONS,
            Kind::Steps => STEPS,
            Kind::Artifacts => ARTIFACTS,
        });
        let filter = doc! { "_id": { "$in": &self.ids } };
        let fields = doc! { "execution_id": 1, "step_id": 1, "size_bytes": 1, "deleted_at": 1 };
        let mut gone = way.collect(collection.find(filter).projection(fields)).await?;
        gone.retain(|raw| self.is_over(raw, &owners));
        let ids: Vec<ObjectId> =
            gone.iter().filter_map(|raw| raw.get_object_id("_id").ok()).collect();
        if ids.is_empty() {
            return Ok((Removed::default(), gone));
        }
        // With the executions, which say on which shards they are.
        let of: HashSet<&str> =
            gone.iter().filter_map(|raw| raw.get_str("execution_id").ok()).collect();
        let of: Vec<&str> = of.into_iter().collect();
        let filter = doc! { "_id": { "$in": ids }, "execution_id": { "$in": of } };
        let by_id = || Hint::Keys(doc! { "_id": 1 });
        let at = DateTime::from_millis(self.moment.millis());
        let mark = match self.kind {
            Kind::Artifacts => artifact_documents::marking(at),
            _ => mark_steps(at, self.moment.micros),
        };
        way.update(collection.update_many(filter.clone(), mark).hint(by_id())).await?;
        let count = gone.len() as u64;
        if self.kind == Kind::Artifacts {
            let artifact_bytes = gone.iter().map(|raw| bytes_of(raw)).sum();
            let removed = Removed { artifacts: count, artifact_bytes, ..Removed::default() };
            return Ok((removed, gone));
        }
        way.delete(collection.delete_many(filter).hint(by_id())).await?;
        Ok((Removed { steps: count, ..Removed::default() }, gone))
    }

    fn is_over(&self, raw: &RawDocumentBuf, owners: &HashMap<String, Owned>) -> bool {
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
        !is_marked(raw) && self.policy.is_over(self.kind, owner, stored_at, self.now)
    }
}

/// The update that tells watchers which steps are deleted, right before they are.
fn mark_steps(at: DateTime, revision: i64) -> Vec<Document> {
    let step_id = doc! { "$toString": "$step_id" };
    let last_change =
        doc! { "$concat": ["$execution_id", "/", step_id, "/", revision.to_string()] };
    vec![doc! { "$set": { "deleted_at": at, "last_change": last_change } }]
}

/// Deletes those of the records that still may go. Where other writers are in the way all the time, none.
pub async fn expire(
    ready: &Connection,
    kind: Kind,
    records: &[Aged],
    policy: &Policy,
    now: Millis,
    moment: Now,
) -> Result<Gone> {
    let owners = records.iter().filter_map(|record| record.owner.as_ref());
    let execution_ids: HashSet<String> = owners.map(|owner| owner.execution_id.clone()).collect();
    let ids = ids_of(records);
    let execution_ids = execution_ids.into_iter().collect();
    let parts = &Parts { ready, kind, ids, execution_ids, policy, now, moment };
    let refused = "the database refused to delete what is old";
    if !ready.replica_set() {
        let done = parts.delete(Way::Plain(ready)).await;
        return done.map_err(|failed| failed.error(refused));
    }
    let effort = Effort { within: ready.patience(), abandoned: ABANDONED };
    let work = ready.transaction(effort, |transaction| {
        async move {
            let done = parts.delete(Way::Transaction(transaction)).await?;
            Ok(if done.1.is_empty() { Ended::Abort(done) } else { Ended::Commit(done) })
        }
        .boxed()
    });
    match work.await {
        Ok(done) => done.map_err(|failed| failed.error(refused)),
        // The next run looks again.
        Err(Error::Contention) => Ok((Removed::default(), Vec::new())),
        Err(error) => Err(error),
    }
}
