//! Deleting an execution: it is marked, which ends it for everybody and tells watchers. `remove` takes away what is
//! left of it.

use std::collections::HashMap;

use bson::doc;

use super::execution;
use super::guard::Guard;
use super::room::Records;
use crate::domain::{Execution, Refusal};
use crate::store::mongo::db::{Connection, Fate, failure};
use crate::store::mongo::names::EXECUTIONS;
use crate::store::plan::{Facts, Planned, plan};
use crate::store::{Answer, Applied, Error, RecordKey, Result, Write};

const ROUNDS: usize = 8;

pub async fn apply(records: &Records, ready: &Connection, write: &Write) -> Applied {
    Applied { outcomes: vec![delete(records, ready, write).await], written: Vec::new() }
}

async fn delete(records: &Records, ready: &Connection, write: &Write) -> Result<Answer> {
    let id = &write.execution_id;
    records.cache.forget(&RecordKey::execution(id));
    for _ in 0..ROUNDS {
        let executions = ready.latest(EXECUTIONS);
        let found = executions.find_one(doc! { "execution_id": { "$eq": id, "$type": "string" } });
        let found = match records.may_have_doubles() {
            true => found.sort(doc! { "revision": -1 }),
            false => found,
        };
        let document = ready.call(found).await?;
        let stored = document.as_deref().map(execution::read).transpose()?;
        let stored = stored.map(std::sync::Arc::new);
        let bound = records.indexes()?.bound();
        let facts =
            Facts { executions: HashMap::from([(id.clone(), stored.clone())]), ..Facts::default() };
        let decided = plan(std::slice::from_ref(write), &facts, &records.limits);
        match decided.outcomes.into_iter().next() {
            Some(Err(refusal)) => return Err(Error::Refused(refusal)),
            Some(Ok(Planned { answer: answer @ Answer::Superseded(_), .. })) => return Ok(answer),
            _ => {}
        }
        let Some(stored) = stored else {
            return Err(Error::Refused(Refusal::ExecutionNotFound { execution_id: id.clone() }));
        };
        if stored.deleted_at.is_none() {
            let marked = Execution {
                deleted_at: Some(write.now.millis()),
                updated_at: Some(write.now.millis()),
                revision: write.now.revision_after(stored.revision.max(bound)),
                ..stored.as_ref().clone()
            };
            let guard = if write.scope.is_all() { Guard::Decision } else { Guard::Scoped };
            let mark = records.update_mark();
            let update = execution::update(&stored, &marked, guard, document.as_deref(), mark)?;
            let statements = [update.statement];
            let fates = ready.commander().update(EXECUTIONS, &statements, None).await;
            match fates.first() {
                Some(Fate::Done) => {}
                Some(Fate::Duplicate(_)) => {
                    let execution_id = id.clone();
                    return Err(Refusal::DuplicateId { execution_id, step: None }.into());
                }
                Some(Fate::Unmatched | Fate::Doubtful) => continue,
                Some(Fate::Refused(code)) => return Err(failure::statement(*code, &EXECUTIONS)),
                Some(Fate::Unknown) | None => return Err(ready.explained(failure::timeout())),
            }
        }
        records.cache.forget_all(id);
        return Ok(Answer::Deleted);
    }
    Err(Error::Contention)
}
