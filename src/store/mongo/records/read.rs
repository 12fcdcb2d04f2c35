//! Single records, and pages of what one execution has. Lists of executions are in `lists`.

use bson::{Document, doc};

use super::room::Records;
use super::step::no_payloads;
use super::{execution, step};
use crate::domain::query::{Page, StepQuery};
use crate::domain::{Execution, Step, StepRef};
use crate::store::mongo::db::values::{epoch, field, integer};
use crate::store::mongo::names::{EXECUTIONS, STEPS};
use crate::store::{Error, Result};

/// Documents fetched at a time when most of them may not match.
pub const FETCHED_AT_ONCE: u32 = 500;

pub async fn execution(records: &Records, execution_id: &str) -> Result<Option<Execution>> {
    let ready = records.ready().await?;
    let executions = ready.committed(EXECUTIONS);
    let find = executions.find_one(doc! { "execution_id": execution_id });
    let find = match records.may_have_doubles() {
        true => find.sort(changed_last()),
        false => find,
    };
    let Some(raw) = ready.call(find).await? else { return Ok(None) };
    let execution = execution::read(&raw)?;
    Ok(execution.deleted_at.is_none().then_some(execution))
}

/// Of several records with one id, the one that was changed last counts.
fn changed_last() -> Document {
    doc! { "revision": -1 }
}

pub async fn is_being_deleted(records: &Records, execution_id: &str) -> Result<bool> {
    let ready = records.ready().await?;
    let marked = doc! { "execution_id": execution_id, "deleted_at": { "$gt": epoch() } };
    let executions = ready.committed(EXECUTIONS);
    let find = executions.find_one(marked).projection(doc! { "_id": 1 });
    Ok(ready.call(find).await?.is_some())
}

pub async fn step(
    records: &Records,
    execution_id: &str,
    named: &StepRef,
    payloads: bool,
) -> Result<Option<Step>> {
    let ready = records.ready().await?;
    let mut filter = doc! { "execution_id": execution_id };
    if let Some(step_id) = named.step_id {
        filter.insert("step_id", step_id);
    }
    if let Some(step_key) = &named.step_key {
        filter.insert("step_key", step_key);
    }
    if filter.len() == 1 {
        return Ok(None);
    }
    let steps = ready.committed(STEPS);
    let find = steps.find_one(filter);
    let find = if payloads { find } else { find.projection(no_payloads()) };
    let find = match records.may_have_doubles() {
        true => find.sort(changed_last()),
        false => find,
    };
    let (found, gone) = tokio::try_join!(
        ready.call(find),
        // The steps of an execution that is being deleted go away one by one, but for everybody at once.
        is_being_deleted(records, execution_id),
    )?;
    match found {
        Some(raw) if !gone => step::read(&raw, payloads).map(Some),
        _ => Ok(None),
    }
}

pub async fn steps(records: &Records, query: &StepQuery) -> Result<Page<Step, i32>> {
    let ready = records.ready().await?;
    let mut filter = doc! { "execution_id": &query.execution_id };
    // Of numbers alone: what is none is no id.
    let after = query.after.map_or(doc! { "$gte": i32::MIN }, |after| doc! { "$gt": after });
    filter.insert("step_id", after);
    let batch = match query.statuses.is_empty() {
        true => u32::try_from(query.limit + 1).unwrap_or(FETCHED_AT_ONCE),
        false => FETCHED_AT_ONCE,
    };
    let steps = ready.committed(STEPS);
    let find = steps
        .find(filter)
        .sort(doc! { "step_id": 1 })
        .batch_size(batch)
        .limit(i64::try_from(query.examine + 1).unwrap_or(i64::MAX));
    let find = match query.payloads {
        None => find.projection(no_payloads()),
        Some(_) => find,
    };
    let mut rows = ready.rows(find).await?;
    let mut page = Page { records: Vec::new(), next: None };
    let mut examined = 0;
    let mut room = query.payloads.unwrap_or(usize::MAX);
    let mut last_examined = None;
    while let Some(raw) = rows.next().await? {
        let is_full = page.records.len() == query.limit || room == 0;
        // A page never ends between documents of one number, which there may be of before this server: the next one begins
        // after the number.
        let is_double = || {
            let last = page.records.last().map(|step: &Step| i64::from(step.step_id));
            last.is_some() && field(raw, "step_id").and_then(integer) == last
        };
        if is_full && !is_double() {
            page.next = page.records.last().map(|step: &Step| step.step_id);
            return Ok(page);
        }
        if examined == query.examine {
            page.next = last_examined;
            return Ok(page);
        }
        examined += 1;
        match step::read(raw, query.payloads.is_some()) {
            Ok(step) => {
                last_examined = Some(step.step_id);
                let wanted = query.statuses.is_empty()
                    || step.status.is_some_and(|status| query.statuses.contains(&status));
                if wanted {
                    if query.payloads.is_some() {
                        room = room.saturating_sub(step.weight());
                    }
                    page.records.push(step);
                }
            }
            Err(Error::Corrupt { collection, id, field }) => {
                tracing::warn!(collection, id, field, "a stored record cannot be read");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(page)
}
