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
use crate::store::plan::{Facts, plan};
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
        let found = executions.find_one(doc! { "execution_id": id });
        let stored = match ready.call(found).await? {
            Some(raw) => Some(std::sync::Arc::new(execution::read(&raw)?)),
            None => None,
        };
        let facts =
            Facts { executions: HashMap::from([(id.clone(), stored.clone())]), ..Facts::default() };
        let decided = plan(std::slice::from_ref(write), &facts, &records.limits);
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
                execution::update(&stored, &marked, Guard::Decision, records.update_mark())?;
            let statements = [update.statement];
            let fates = ready.commander().update(EXECUTIONS, &statements, None).await;
            match fates.first() {
                Some(Fate::Done) => {}
                Some(Fate::Unmatched | Fate::Doubtful | Fate::Duplicate) => continue,
                Some(Fate::Refused(code)) => return Err(failure::statement(*code)),
                Some(Fate::Unknown) | None => return Err(failure::timeout()),
            }
        }
        records.cache.forget_all(id);
        return Ok(Answer::Deleted);
    }
    Err(Error::Contention)
}
