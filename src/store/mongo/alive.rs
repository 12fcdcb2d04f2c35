//! Whether the executions of steps that were just inserted are still there. Steps whose execution is gone are taken
//! back: the delete that took it may have passed by before they came.

use std::collections::HashSet;
use std::time::Instant;

use bson::oid::ObjectId;
use bson::raw::cstr;
use bson::{RawArrayBuf, doc, rawdoc};

use super::{Inner, Ready, schema};
use crate::store::{RecordKey, Result};

/// New steps at most whose executions are looked up later.
pub(super) const UNCHECKED: usize = 20_000;

/// New steps that this server inserted on trust, checked now: another program that deletes executions leaves no
/// mark.
pub(super) async fn check_trusted(inner: &Inner, ready: &Ready) {
    let unchecked = std::mem::take(&mut *inner.unchecked.lock());
    if !unchecked.is_empty() && (Checks { inner, ready }).take_back_gone(&unchecked).await.is_err()
    {
        let mut later = inner.unchecked.lock();
        let room = UNCHECKED.saturating_sub(later.len());
        later.extend(unchecked.into_iter().take(room));
    }
}

/// Whether the executions of new steps are still there.
pub(super) struct Checks<'a> {
    pub(super) inner: &'a Inner,
    pub(super) ready: &'a Ready,
}

impl Checks<'_> {
    /// Takes back those of the steps whose execution is not there or is being deleted.
    pub(super) async fn take_back_gone(
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
            |id: &str| self.inner.cache.note_alive(&RecordKey::execution(id), asked_at);
        if self.ready.indexes.unique && self.all_alive(&ids).await {
            ids.into_iter().for_each(note_alive);
            return Ok(HashSet::new());
        }
        let filter = doc! { "execution_id": { "$in": ids.iter().copied().collect::<Vec<_>>() } };
        let projection = doc! { "_id": 0, "execution_id": 1, "deleted_at": 1 };
        let found = self.inner.all(&self.ready.executions, filter, Some(projection)).await?;
        let alive: HashSet<&str> = found
            .iter()
            .filter(|raw| !matches!(raw.get("deleted_at"), Ok(Some(value)) if value.as_datetime().is_some()))
            .filter_map(|raw| raw.get_str("execution_id").ok())
            .collect();
        alive.iter().copied().for_each(note_alive);
        let keys = steps.iter().map(|(key, _)| key);
        Ok(keys.filter(|key| !alive.contains(key.execution_id.as_str())).cloned().collect())
    }

    fn forget_gone(&self, step: &RecordKey) {
        self.inner.cache.forget(step);
        self.inner.cache.forget(&RecordKey::execution(&step.execution_id));
    }

    /// Whether so many executions are there and none of them is being deleted, as a number: nearly always the
    /// answer, and cheaper than documents. False may also mean that there was no answer.
    async fn all_alive(&self, ids: &HashSet<&str>) -> bool {
        let mut wanted = RawArrayBuf::new();
        ids.iter().for_each(|id| wanted.push(*id));
        let mut command = rawdoc! {
            "count": schema::EXECUTIONS,
            "query": { "execution_id": { "$in": wanted }, "deleted_at": null },
            "readConcern": { "level": "local" },
        };
        if let Some(index) = self.ready.indexes.execution_key.as_deref() {
            command.append(cstr!("hint"), index);
        }
        let count = self.ready.writes.run_raw_command(command);
        let found = self.inner.call(count).await.ok().and_then(|reply| {
            let count = reply.get_i32("n").map(i64::from).or_else(|_| reply.get_i64("n")).ok()?;
            usize::try_from(count).ok()
        });
        found == Some(ids.len())
    }

    /// Deletes those of the steps that this server inserted which are `gone`.
    async fn take_back(&self, steps: &[(RecordKey, ObjectId)], gone: &HashSet<RecordKey>) {
        if gone.is_empty() {
            return;
        }
        let ids = steps.iter().filter(|(key, _)| gone.contains(key)).map(|(_, id)| *id);
        let delete =
            self.ready.steps.delete_many(doc! { "_id": { "$in": ids.collect::<Vec<_>>() } });
        if let Err(error) = self.inner.call(delete).await {
            tracing::warn!(%error, "steps of a deleted execution were left behind");
        }
    }
}
