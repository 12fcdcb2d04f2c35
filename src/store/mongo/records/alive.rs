//! Whether the executions of steps that were just inserted are still there. Steps whose execution is gone are taken
//! back: the delete that took it may have passed by before they came.

use std::collections::HashSet;
use std::time::Instant;

use bson::oid::ObjectId;
use bson::{RawArrayBuf, doc, rawdoc};
use mongodb::options::Hint;

use super::room::Records;
use crate::store::mongo::db::Connection;
use crate::store::mongo::db::values::is_marked;
use crate::store::mongo::names::{EXECUTIONS, STEPS};
use crate::store::{RecordKey, Result};

/// New steps at most whose executions are looked up later.
pub const UNCHECKED: usize = 20_000;

/// New steps that this server inserted on trust, checked now: another program that deletes executions leaves no
/// mark.
pub async fn check_trusted(records: &Records, ready: &Connection) {
    let unchecked = std::mem::take(&mut *records.unchecked.lock());
    if !unchecked.is_empty()
        && (Checks { records, ready }).take_back_gone(&unchecked).await.is_err()
    {
        let mut later = records.unchecked.lock();
        let room = UNCHECKED.saturating_sub(later.len());
        later.extend(unchecked.into_iter().take(room));
    }
}

/// Whether the executions of new steps are still there.
pub struct Checks<'a> {
    pub records: &'a Records,
    pub ready: &'a Connection,
}

impl Checks<'_> {
    /// Takes back those of the steps whose execution is not there or is being deleted.
    pub async fn take_back_gone(
        &self,
        steps: &[(RecordKey, ObjectId)],
    ) -> Result<HashSet<RecordKey>> {
        let gone = self.gone(steps).await?;
        self.take_back(steps, &gone).await;
        gone.iter().for_each(|key| self.forget_gone(key));
        Ok(gone)
    }

    /// The steps whose execution is not there or is being deleted.
    async fn gone(&self, steps: &[(RecordKey, ObjectId)]) -> Result<HashSet<RecordKey>> {
        let ids: HashSet<&str> = steps.iter().map(|(key, _)| key.execution_id.as_str()).collect();
        let asked_at = Instant::now();
        let note_alive =
            |id: &str| self.records.cache.note_alive(&RecordKey::execution(id), asked_at);
        if self.records.indexes()?.keep_unique() && self.all_alive(&ids).await {
            ids.into_iter().for_each(note_alive);
            return Ok(HashSet::new());
        }
        let filter = doc! { "execution_id": { "$in": ids.iter().copied().collect::<Vec<_>>() } };
        let projection = doc! { "_id": 0, "execution_id": 1, "deleted_at": 1 };
        let executions = self.ready.latest(EXECUTIONS);
        let found = self.ready.all(&executions, filter, Some(projection)).await?;
        let alive: HashSet<&str> = found
            .iter()
            .filter(|raw| !is_marked(raw))
            .filter_map(|raw| raw.get_str("execution_id").ok())
            .collect();
        alive.iter().copied().for_each(note_alive);
        let keys = steps.iter().map(|(key, _)| key);
        Ok(keys.filter(|key| !alive.contains(key.execution_id.as_str())).cloned().collect())
    }

    fn forget_gone(&self, step: &RecordKey) {
        self.records.cache.forget(step);
        self.records.cache.forget(&RecordKey::execution(&step.execution_id));
    }

    /// Whether so many executions are there and none of them is being deleted, as a number: nearly always the
    /// answer, and cheaper than documents. False may also mean that there was no answer.
    async fn all_alive(&self, ids: &HashSet<&str>) -> bool {
        let mut wanted = RawArrayBuf::new();
        ids.iter().for_each(|id| wanted.push(*id));
        let there = rawdoc! { "execution_id": { "$in": wanted }, "deleted_at": null };
        let indexes = self.records.indexes().ok();
        let index = indexes.as_deref().and_then(|all| all.execution_key.as_deref());
        let count = self.ready.count(EXECUTIONS, there, index).await;
        count.is_ok_and(|count| usize::try_from(count) == Ok(ids.len()))
    }

    /// Deletes those of the steps that this server inserted which are `gone`.
    async fn take_back(&self, inserted: &[(RecordKey, ObjectId)], gone: &HashSet<RecordKey>) {
        if gone.is_empty() {
            return;
        }
        let ids = inserted.iter().filter(|(key, _)| gone.contains(key)).map(|(_, id)| *id);
        // They say on which shards the steps are.
        let of: HashSet<&str> = gone.iter().map(|key| key.execution_id.as_str()).collect();
        let steps = self.ready.latest(STEPS);
        let delete = steps.delete_many(doc! {
            "_id": { "$in": ids.collect::<Vec<_>>() },
            "execution_id": { "$in": of.into_iter().collect::<Vec<_>>() },
        });
        let delete = delete.hint(Hint::Keys(doc! { "_id": 1 }));
        if let Err(error) = self.ready.call(delete).await {
            tracing::warn!(%error, "steps of a deleted execution were left behind");
        }
    }
}
