//! Single records, and pages of what one execution has. Lists of executions are in `lists`.

use bson::doc;
use bson::oid::ObjectId;

use super::{Inner, artifact_documents, documents, no_payloads, schema};
use crate::domain::query::{ArtifactKey, ArtifactQuery, Page, StepQuery};
use crate::domain::{Artifact, Execution, Step, StepRef};
use crate::store::{Error, Result};

/// Documents fetched at a time when most of them may not match.
pub(super) const FETCHED_AT_ONCE: u32 = 500;

pub(super) async fn execution(inner: &Inner, execution_id: &str) -> Result<Option<Execution>> {
    let ready = inner.ready().await?;
    let find = ready.committed_executions.find_one(doc! { "execution_id": execution_id });
    let Some(raw) = inner.call(find).await? else { return Ok(None) };
    let execution = documents::read_execution(&raw)?;
    Ok(execution.deleted_at.is_none().then_some(execution))
}

pub(super) async fn is_being_deleted(inner: &Inner, execution_id: &str) -> Result<bool> {
    let ready = inner.ready().await?;
    let marked = doc! { "execution_id": execution_id, "deleted_at": { "$gt": schema::epoch() } };
    let find = ready.committed_executions.find_one(marked).projection(doc! { "_id": 1 });
    Ok(inner.call(find).await?.is_some())
}

pub(super) async fn step(
    inner: &Inner,
    execution_id: &str,
    step: &StepRef,
) -> Result<Option<Step>> {
    let ready = inner.ready().await?;
    let mut filter = doc! { "execution_id": execution_id };
    if let Some(step_id) = step.step_id {
        filter.insert("step_id", step_id);
    }
    if let Some(step_key) = &step.step_key {
        filter.insert("step_key", step_key);
    }
    if filter.len() == 1 {
        return Ok(None);
    }
    let (found, gone) = tokio::try_join!(
        inner.call(ready.committed_steps.find_one(filter)),
        // The steps of an execution that is being deleted go away one by one, but for everybody at once.
        is_being_deleted(inner, execution_id),
    )?;
    match found {
        Some(raw) if !gone => documents::read_step(&raw, true).map(Some),
        _ => Ok(None),
    }
}

pub(super) async fn artifacts(
    inner: &Inner,
    query: &ArtifactQuery,
) -> Result<Page<Artifact, ArtifactKey>> {
    let ready = inner.ready().await?;
    let mut filter = doc! { "execution_id": &query.execution_id };
    if let Some(after) = &query.after {
        let after = after.0.as_slice().try_into().map_err(|_| Error::BadCursor)?;
        filter.insert("_id", doc! { "$gt": ObjectId::from_bytes(after) });
    }
    let limit = query.limit.max(1);
    let find = ready
        .committed_artifacts
        .find(filter)
        .sort(doc! { "_id": 1 })
        .batch_size(u32::try_from(limit + 1).unwrap_or(FETCHED_AT_ONCE));
    let mut cursor = inner.call(find).await?;
    let mut page = Page { records: Vec::new(), next: None };
    let mut last = None;
    while inner.call(cursor.advance()).await? {
        if page.records.len() == limit {
            page.next = last;
            break;
        }
        let raw = cursor.current();
        match artifact_documents::read(raw) {
            Ok(_) if artifact_documents::deleted_at(raw).is_some() => {}
            Ok(artifact) => {
                last = raw.get_object_id("_id").ok().map(|id| ArtifactKey(id.bytes().to_vec()));
                page.records.push(artifact);
            }
            Err(Error::Corrupt { collection, id, field }) => {
                tracing::warn!(collection, id, field, "a stored record cannot be read");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(page)
}

pub(super) async fn steps(inner: &Inner, query: &StepQuery) -> Result<Page<Step, i32>> {
    let ready = inner.ready().await?;
    let mut filter = doc! { "execution_id": &query.execution_id };
    if let Some(after) = query.after {
        filter.insert("step_id", doc! { "$gt": after });
    }
    let batch = match query.statuses.is_empty() {
        true => u32::try_from(query.limit + 1).unwrap_or(FETCHED_AT_ONCE),
        false => FETCHED_AT_ONCE,
    };
    let find = ready
        .committed_steps
        .find(filter)
        .sort(doc! { "step_id": 1 })
        .projection(no_payloads())
        .batch_size(batch)
        .limit(i64::try_from(query.examine + 1).unwrap_or(i64::MAX));
    let mut cursor = inner.call(find).await?;
    let mut page = Page { records: Vec::new(), next: None };
    let mut examined = 0;
    let mut last_examined = None;
    while inner.call(cursor.advance()).await? {
        if page.records.len() == query.limit {
            page.next = page.records.last().map(|step: &Step| step.step_id);
            return Ok(page);
        }
        if examined == query.examine {
            page.next = last_examined;
            return Ok(page);
        }
        examined += 1;
        match documents::read_step(cursor.current(), false) {
            Ok(step) => {
                last_examined = Some(step.step_id);
                let wanted = query.statuses.is_empty()
                    || step.status.is_some_and(|status| query.statuses.contains(&status));
                if wanted {
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
