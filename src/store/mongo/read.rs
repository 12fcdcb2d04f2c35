//! Single records and pages. A page is a walk along an index: each of its parts is a plain range in index
//! order, so the database never sorts and never skips.

use bson::oid::ObjectId;
use bson::{Bson, DateTime, Document, RawDocumentBuf, doc};
use mongodb::options::Hint;
use mongodb::{Collection, Cursor};

use super::{Inner, Ready, artifact_documents, documents, failure, no_payloads, schema};
use crate::domain::query::{
    ArtifactKey, ArtifactQuery, ExecutionFilter, ExecutionKey, ExecutionOrder, ExecutionQuery,
    Page, StepQuery,
};
use crate::domain::{Artifact, Execution, ExecutionStatus, Millis, Step, StepRef};
use crate::store::{Error, Result};

/// Ranges the database walks side by side at most; beyond that it would sort in memory.
const RANGES: usize = 100;
/// Documents fetched at a time when most of them may not match.
const FETCHED_AT_ONCE: u32 = 500;

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

/// The index a list walks along: equality on its first fields, then time and id.
struct Walk {
    equal: Document,
    index: Document,
}

fn one_or_in<T: Clone + Into<Bson>>(values: &[T]) -> Bson {
    match values {
        [one] => one.clone().into(),
        several => {
            let values: Vec<Bson> = several.iter().cloned().map(Into::into).collect();
            Bson::Document(doc! { "$in": values })
        }
    }
}

fn statuses(statuses: &[ExecutionStatus]) -> Vec<&'static str> {
    statuses.iter().map(|status| status.as_str()).collect()
}

/// The walks that could answer, the most promising first; the last one always can.
fn walks(filter: &ExecutionFilter) -> Vec<Walk> {
    let mut walks = Vec::new();
    let mut walk = |fields: &[(&str, Bson)]| {
        let mut equal = Document::new();
        let mut index = Document::new();
        for (field, value) in fields {
            equal.insert(*field, value.clone());
            index.insert(*field, 1);
        }
        index.insert("started_at", -1);
        index.insert("execution_id", -1);
        walks.push(Walk { equal, index });
    };
    let running_only = filter.statuses == [ExecutionStatus::Running];
    if running_only {
        // What runs just now is little.
        walk(&[("status", "running".into())]);
    }
    if !filter.user_ids.is_empty() {
        walk(&[("user_id", one_or_in(&filter.user_ids))]);
    }
    if !filter.app_ids.is_empty() {
        let ranges = filter.app_ids.len() * filter.sub_app_ids.len();
        if (1..=RANGES).contains(&ranges) {
            walk(&[
                ("app_id", one_or_in(&filter.app_ids)),
                ("sub_app_id", one_or_in(&filter.sub_app_ids)),
            ]);
        }
        walk(&[("app_id", one_or_in(&filter.app_ids))]);
    }
    if !filter.app_names.is_empty() {
        walk(&[("app_name", one_or_in(&filter.app_names))]);
    }
    if !filter.statuses.is_empty() && !running_only {
        walk(&[("status", one_or_in(&statuses(&filter.statuses)))]);
    }
    walk(&[]);
    walks
}

/// The parts of the list after `after`, in order: conditions on time and id.
fn segments(query: &ExecutionQuery) -> Vec<Document> {
    let filter = &query.filter;
    let mut window = Document::new();
    if let Some(from) = filter.started_at_from {
        window.insert("$gte", DateTime::from_millis(from));
    }
    if let Some(until) = filter.started_at_until {
        window.insert("$lt", DateTime::from_millis(until));
    }
    let dates_only = !window.is_empty();
    let descending = query.order == ExecutionOrder::StartedAtDesc;
    let Some(after) = &query.after else {
        return vec![if dates_only {
            doc! { "started_at": window }
        } else {
            Document::new()
        }];
    };
    let beyond = if descending { "$lt" } else { "$gt" };
    let tied = |started_at: Bson| {
        doc! { "started_at": started_at, "execution_id": { beyond: &after.execution_id } }
    };
    let dates_beyond = |at: Millis| {
        let mut range = window.clone();
        let at = DateTime::from_millis(at);
        // The tighter of the window's bound and the key's.
        let bound = range.get_datetime(beyond).ok().copied();
        let tighter = match bound {
            Some(bound) if descending => bound.min(at),
            Some(bound) => bound.max(at),
            None => at,
        };
        range.insert(beyond, tighter);
        doc! { "started_at": range }
    };
    let within = |at: Millis| {
        filter.started_at_from.is_none_or(|from| at >= from)
            && filter.started_at_until.is_none_or(|until| at < until)
    };
    let mut segments = Vec::new();
    match (after.started_at, descending) {
        (Some(at), _) => {
            if within(at) {
                segments.push(tied(Bson::DateTime(DateTime::from_millis(at))));
            }
            segments.push(dates_beyond(at));
            if descending && !dates_only {
                segments.push(doc! { "started_at": Bson::Null });
            }
        }
        (None, true) => segments.push(tied(Bson::Null)),
        (None, false) => {
            if !dates_only {
                segments.push(tied(Bson::Null));
            }
            let mut dates = window.clone();
            if !dates.contains_key("$gte") {
                dates.insert("$gte", DateTime::MIN);
            }
            segments.push(doc! { "started_at": dates });
        }
    }
    segments
}

/// One part of a list as the database is asked.
#[expect(clippy::too_many_arguments, reason = "the parts of one query, put together in one place")]
async fn open(
    inner: &Inner,
    collection: &Collection<RawDocumentBuf>,
    ready: &Ready,
    walk: &Walk,
    segment: &Document,
    descending: bool,
    batch: u32,
    limit: usize,
) -> Result<Cursor<RawDocumentBuf>> {
    let mut filter = walk.equal.clone();
    filter.extend(segment.clone());
    let way = if descending { -1 } else { 1 };
    let one_moment = match segment.get("started_at") {
        None | Some(Bson::Document(_)) => false,
        Some(_) => true,
    };
    // Several ranges are merged in index order only if what the filter fixes is not named again.
    let sort = match one_moment {
        true => doc! { "execution_id": way },
        false => doc! { "started_at": way, "execution_id": way },
    };
    let find = || {
        let find = collection.find(filter.clone()).sort(sort.clone()).batch_size(batch);
        find.limit(i64::try_from(limit).unwrap_or(i64::MAX))
    };
    match ready.indexes.named(&walk.index) {
        None => inner.call(find()).await,
        Some(name) => match inner.call(find().hint(Hint::Name(name.to_owned()))).await {
            // Somebody dropped the index since.
            Err(Error::Failed(_)) => inner.call(find()).await,
            answer => answer,
        },
    }
}

pub(super) async fn executions(
    inner: &Inner,
    query: &ExecutionQuery,
) -> Result<Page<Execution, ExecutionKey>> {
    let ready = inner.ready().await?;
    let walks = walks(&query.filter);
    let Some(walk) = choose(inner, &ready, walks, query).await? else {
        return Err(failure::away());
    };
    let descending = query.order == ExecutionOrder::StartedAtDesc;
    let every_one_matches = everything_in(&walk, &query.filter);
    let batch = match every_one_matches {
        true => u32::try_from(query.limit + 1).unwrap_or(FETCHED_AT_ONCE),
        false => FETCHED_AT_ONCE,
    };
    let mut page = Page { records: Vec::new(), next: None };
    let mut examined = 0;
    let mut last_examined = None;
    for segment in segments(query) {
        // One more than may be examined tells whether that was all.
        let limit = query.examine - examined + 1;
        let collection = &ready.committed_executions;
        let mut cursor =
            open(inner, collection, &ready, &walk, &segment, descending, batch, limit).await?;
        while inner.call(cursor.advance()).await? {
            if page.records.len() == query.limit {
                page.next = page.records.last().map(ExecutionKey::of);
                return Ok(page);
            }
            if examined == query.examine {
                page.next = last_examined;
                return Ok(page);
            }
            examined += 1;
            let execution = match documents::read_execution(cursor.current()) {
                Ok(execution) => execution,
                Err(Error::Corrupt { collection, id, field }) => {
                    tracing::warn!(collection, id, field, "a stored record cannot be read");
                    continue;
                }
                Err(error) => return Err(error),
            };
            last_examined = Some(ExecutionKey::of(&execution));
            if execution.deleted_at.is_none() && query.filter.matches(&execution) {
                page.records.push(execution);
            }
        }
    }
    Ok(page)
}

/// Whether the walk alone decides, so that no document is read in vain.
fn everything_in(walk: &Walk, filter: &ExecutionFilter) -> bool {
    let has = |field: &str| walk.equal.contains_key(field);
    (filter.app_ids.is_empty() || has("app_id"))
        && (filter.app_names.is_empty() || has("app_name"))
        && (filter.sub_app_ids.is_empty() || has("sub_app_id"))
        && (filter.user_ids.is_empty() || has("user_id"))
        && (filter.statuses.is_empty() || has("status"))
        && filter.min_duration_ms.is_none()
        && filter.metadata.is_empty()
}

/// Keys counted to compare two walks.
const PROBED: u64 = 1_000;

/// The walk with the fewest keys, as far as a short look tells; the first among equals.
async fn choose(
    inner: &Inner,
    ready: &Ready,
    mut walks: Vec<Walk>,
    query: &ExecutionQuery,
) -> Result<Option<Walk>> {
    let all = walks.pop();
    if walks.len() < 2 {
        return Ok(walks.pop().or(all));
    }
    let mut window = Document::new();
    if let Some(from) = query.filter.started_at_from {
        window.insert("$gte", DateTime::from_millis(from));
    }
    if let Some(until) = query.filter.started_at_until {
        window.insert("$lt", DateTime::from_millis(until));
    }
    let mut best: Option<(u64, Walk)> = None;
    for walk in walks {
        let Some(name) = ready.indexes.named(&walk.index) else { continue };
        let mut filter = walk.equal.clone();
        if !window.is_empty() {
            filter.insert("started_at", window.clone());
        }
        let count = ready
            .executions
            .count_documents(filter)
            .hint(Hint::Name(name.to_owned()))
            .limit(PROBED);
        let count = inner.call(count).await?;
        if best.as_ref().is_none_or(|(least, _)| count < *least) {
            best = Some((count, walk));
        }
    }
    Ok(best.map(|(_, walk)| walk).or(all))
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
