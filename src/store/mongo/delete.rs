//! Deleting an execution: first it is marked, which ends it for everybody and tells watchers; then its steps go,
//! then the record. A crash in between leaves the mark, and the sweep goes on from there.

use std::collections::HashMap;

use bson::{DateTime, doc};

use super::command::Fate;
use super::documents::Guard;
use super::{Inner, Ready, documents, failure, metrics, schema};
use crate::domain::{Execution, Refusal};
use crate::store::plan::{Facts, plan};
use crate::store::{Answer, Applied, Error, RecordKey, Result, Write};

const ROUNDS: usize = 8;
/// A delete younger than this is left to whoever began it.
const LEFT_ALONE_MS: i64 = 30_000;
const SWEPT_AT_ONCE: i64 = 100;

pub(super) async fn apply(inner: &Inner, ready: &Ready, write: &Write) -> Applied {
    Applied { outcomes: vec![delete(inner, ready, write).await], written: Vec::new() }
}

async fn delete(inner: &Inner, ready: &Ready, write: &Write) -> Result<Answer> {
    let id = &write.execution_id;
    inner.cache.forget(&RecordKey::execution(id));
    for _ in 0..ROUNDS {
        let found = ready.executions.find_one(doc! { "execution_id": id });
        let stored = match inner.call(found).await? {
            Some(raw) => Some(std::sync::Arc::new(documents::read_execution(&raw)?)),
            None => None,
        };
        let facts =
            Facts { executions: HashMap::from([(id.clone(), stored.clone())]), ..Facts::default() };
        let decided = plan(std::slice::from_ref(write), &facts, &inner.limits);
        if let Some(Err(refusal)) = decided.outcomes.into_iter().next() {
            return Err(Error::Refused(refusal));
        }
        let Some(stored) = stored else {
            return Err(Error::Refused(Refusal::ExecutionNotFound { execution_id: id.clone() }));
        };
        if stored.deleted_at.is_none() {
            let marked = Execution {
                deleted_at: Some(write.now.millis()),
                updated_at: Some(write.now.millis()),
                revision: write.now.revision_after(stored.revision),
                ..stored.as_ref().clone()
            };
            let update =
                documents::update_execution(&stored, &marked, Guard::Decision, inner.mark())?;
            let statements = [update.statement];
            let fates = ready.commander.update(schema::EXECUTIONS, &statements, None).await;
            match fates.first() {
                Some(Fate::Done) => {}
                Some(Fate::Doubtful { .. } | Fate::Duplicate) => continue,
                Some(Fate::Refused(code)) => return Err(failure::statement(*code)),
                Some(Fate::Unknown) | None => return Err(failure::timeout()),
            }
        }
        remove(inner, ready, id).await?;
        return Ok(Answer::Deleted);
    }
    Err(Error::Contention)
}

/// Removes the steps, the metrics and the record of a marked execution.
async fn remove(inner: &Inner, ready: &Ready, execution_id: &str) -> Result<()> {
    let steps = ready.steps.delete_many(doc! { "execution_id": execution_id });
    // A hundred thousand steps take their time; while the database answers at all, that is fine.
    steps.await.map_err(failure::error)?;
    metrics::delete(ready, execution_id).await?;
    let record = doc! { "execution_id": execution_id, "deleted_at": { "$gt": schema::epoch() } };
    inner.call(ready.executions.delete_one(record)).await?;
    inner.cache.forget(&RecordKey::execution(execution_id));
    Ok(())
}

/// Goes on with deletes that somebody began and did not end.
pub(super) async fn sweep(inner: &Inner) -> Result<()> {
    let ready = inner.ready().await?;
    let before = DateTime::from_millis(inner.clock.now().millis() - LEFT_ALONE_MS);
    let filter = doc! { "deleted_at": { "$gt": schema::epoch(), "$lt": before } };
    let find =
        ready.executions.find(filter).projection(doc! { "execution_id": 1 }).limit(SWEPT_AT_ONCE);
    let marked = inner
        .call(async {
            let mut found = Vec::new();
            let mut cursor = find.await?;
            while cursor.advance().await? {
                found.push(cursor.current().to_owned());
            }
            Ok(found)
        })
        .await?;
    for raw in marked {
        if let Ok(execution_id) = raw.get_str("execution_id") {
            remove(inner, &ready, execution_id).await?;
        }
    }
    Ok(())
}
