//! Lists of executions, and counts of them and of their steps. `walks` says along which index.

use std::collections::HashMap;

use bson::{Bson, Document, RawDocument, doc};
use mongodb::options::Hint;

use super::execution;
use super::read::FETCHED_AT_ONCE;
use super::room::Records;
use super::segments::{Segment, key_of, segments};
use super::walks::{Leaves, Walk, walks, window, worth_comparing};
use crate::domain::query::{
    Count, CountQuery, ExecutionFilter, ExecutionKey, ExecutionOrder, ExecutionQuery, Page,
    StepCounts,
};
use crate::domain::{Execution, StepStatus};
use crate::store::mongo::db::values::{epoch, field, integer};
use crate::store::mongo::db::{Connection, Rows, failure};
use crate::store::mongo::names::{EXECUTIONS, STEPS};
use crate::store::{Error, Result};

/// Keys counted to compare two walks.
const PROBED: u64 = 1_000;

/// One part of a list as the database is asked.
async fn open(
    records: &Records,
    ready: &Connection,
    walk: &Walk,
    segment: &Segment,
    order: ExecutionOrder,
    how: &How,
    limit: usize,
) -> Result<Rows> {
    let mut filter = walk.equal.clone();
    filter.extend(segment.filter.clone());
    let way = if order == ExecutionOrder::StartedAtDesc { -1 } else { 1 };
    // Several ranges are merged in index order only if what the filter fixes is not named again.
    let one_moment = match segment.filter.get("started_at") {
        // There is one least value, and nothing to sort by.
        Some(Bson::Document(condition))
            if condition.get_str("$type").is_ok_and(|name| name == "minKey") =>
        {
            true
        }
        None | Some(Bson::Document(_)) => segment.tied,
        Some(_) => true,
    };
    let sort = match one_moment {
        true => doc! { "execution_id": way },
        false => doc! { "started_at": way, "execution_id": way },
    };
    let executions = ready.committed(EXECUTIONS);
    let find = || {
        let find = executions.find(filter.clone()).sort(sort.clone());
        let find = find.batch_size(how.batch).limit(i64::try_from(limit).unwrap_or(i64::MAX));
        let find = match segment.passed {
            0 => find,
            passed => find.skip(u64::from(passed)),
        };
        match how.keys {
            // Nothing but what the index holds, so that no document is fetched.
            true => find.projection(in_keys(walk)),
            false => find,
        }
    };
    match records.indexes()?.named(&walk.index) {
        None => ready.rows(find()).await,
        Some(name) => match ready.rows(find().hint(Hint::Name(name.to_owned()))).await {
            // Somebody dropped the index since.
            Err(Error::Failed(_)) => ready.rows(find()).await,
            answer => answer,
        },
    }
}

/// What of a list the keys of the walk's index tell. A single field more, and every document is fetched for it.
fn in_keys(walk: &Walk) -> Document {
    let told = ["execution_id", "started_at", "duration_ms", "sub_app_id"]
        .into_iter()
        .filter(|field| walk.index.contains_key(field))
        .map(|field| (field.to_owned(), Bson::Int32(1)));
    let mut projection = doc! { "_id": 0 };
    projection.extend(told);
    projection
}

/// How a list is read.
struct How {
    batch: u32,
    /// Only what the index holds.
    keys: bool,
}

/// Shows `visit` what the walk comes by, in order, with how many it has seen, until it says that is enough or
/// `query.examine` are examined and there is one more. Whether that was all.
async fn each(
    records: &Records,
    ready: &Connection,
    walk: &Walk,
    query: &ExecutionQuery,
    how: &How,
    mut visit: impl FnMut(&RawDocument) -> Result<bool>,
) -> Result<bool> {
    let mut examined = 0;
    for segment in segments(query, records.may_have_doubles())? {
        // One more than may be examined tells whether that was all.
        let limit = query.examine - examined + 1;
        let mut rows = open(records, ready, walk, &segment, query.order, how, limit).await?;
        while let Some(raw) = rows.next().await? {
            if examined == query.examine || !visit(raw)? {
                return Ok(false);
            }
            examined += 1;
        }
    }
    Ok(true)
}

/// The execution that was read, unless it is being deleted, does not match or cannot be read.
fn match_of(
    raw: &RawDocument,
    filter: &ExecutionFilter,
) -> Result<(Option<ExecutionKey>, Option<Execution>)> {
    // What has no place of its own in the order of a list is not in it; it is found by its id.
    let Some((key, usable)) = key_of(raw) else { return Ok((None, None)) };
    if !usable {
        return Ok((Some(key), None));
    }
    match execution::read(raw) {
        Ok(execution) => {
            let found = execution.deleted_at.is_none() && filter.matches(&execution);
            Ok((Some(key), found.then_some(execution)))
        }
        Err(Error::Corrupt { collection, id, field }) => {
            tracing::warn!(collection, id, field, "a stored record cannot be read");
            Ok((Some(key), None))
        }
        Err(error) => Err(error),
    }
}

/// Where a walk is: the key of the record it came by last, and how many before that had the same.
struct Passed {
    last: Option<ExecutionKey>,
}

impl Passed {
    fn after(query: &ExecutionQuery) -> Passed {
        Passed { last: query.after.clone() }
    }

    fn by(&mut self, mut key: ExecutionKey) {
        let same = self.last.as_ref().filter(|last| {
            last.execution_id == key.execution_id
                && last.started_at == key.started_at
                && last.odd == key.odd
        });
        key.passed = same.map_or(0, |last| last.passed.max(1)) + 1;
        self.last = Some(key);
    }
}

pub async fn executions(
    records: &Records,
    query: &ExecutionQuery,
) -> Result<Page<Execution, ExecutionKey>> {
    let ready = records.ready().await?;
    let walk = choose(records, &ready, &query.filter).await?;
    let leaves = walk.leaves(&query.filter);
    if leaves == Leaves::Keys {
        return by_keys(records, &ready, &walk, query).await;
    }
    if leaves != Leaves::Nothing {
        return Ok(read(records, &ready, &walk, query, FETCHED_AT_ONCE).await?.page());
    }
    // Everything on the way is on the page: with as many as it needs the database is done in one answer, and has no
    // cursor left over.
    let examine = query.limit.min(query.examine);
    let batch = u32::try_from(query.limit + 1).unwrap_or(FETCHED_AT_ONCE);
    let first = ExecutionQuery { examine, ..query.clone() };
    let mut first = read(records, &ready, &walk, &first, batch).await?;
    if first.all || first.records.len() == query.limit || examine == query.examine {
        return Ok(first.page());
    }
    // Those that are being deleted, and those that cannot be read, leave room.
    let rest = ExecutionQuery {
        after: first.last,
        limit: query.limit - first.records.len(),
        examine: query.examine - examine,
        ..query.clone()
    };
    let rest = read(records, &ready, &walk, &rest, FETCHED_AT_ONCE).await?;
    first.records.extend(rest.records);
    Ok(Read { records: first.records, ..rest }.page())
}

/// What was come by.
struct Read {
    records: Vec<Execution>,
    /// Where to go on.
    last: Option<ExecutionKey>,
    all: bool,
}

impl Read {
    fn page(self) -> Page<Execution, ExecutionKey> {
        Page { records: self.records, next: if self.all { None } else { self.last } }
    }
}

/// A page of what the walk comes by.
async fn read(
    records: &Records,
    ready: &Connection,
    walk: &Walk,
    query: &ExecutionQuery,
    batch: u32,
) -> Result<Read> {
    let mut listed: Vec<Execution> = Vec::new();
    let mut passed = Passed::after(query);
    let how = How { batch, keys: false };
    let all = each(records, ready, walk, query, &how, |raw| {
        if listed.len() == query.limit {
            // To who sees some apps only, a token says that there is more of theirs, and not that there is something.
            let is_seen = query.filter.scope.is_all();
            return Ok(!is_seen && match_of(raw, &query.filter)?.1.is_none());
        }
        let (key, found) = match_of(raw, &query.filter)?;
        key.into_iter().for_each(|key| passed.by(key));
        listed.extend(found);
        Ok(true)
    })
    .await?;
    Ok(Read { records: listed, last: passed.last, all })
}

/// What the keys of an index tell of an execution: its place in the list, and whether it matches.
fn told_of(raw: &RawDocument, filter: &ExecutionFilter) -> Option<(ExecutionKey, bool)> {
    let (key, usable) = key_of(raw)?;
    let number = |name| field(raw, name).and_then(integer);
    let long = filter
        .min_duration_ms
        .is_none_or(|min| number("duration_ms").is_some_and(|duration| duration >= min));
    let part = filter.sub_app_ids.is_empty()
        || number("sub_app_id")
            .is_some_and(|id| filter.sub_app_ids.iter().any(|wanted| i64::from(*wanted) == id));
    let window = match key.started_at {
        Some(at) => {
            filter.started_at_from.is_none_or(|from| at >= from)
                && filter.started_at_until.is_none_or(|until| at < until)
        }
        None => filter.started_at_from.is_none() && filter.started_at_until.is_none(),
    };
    Some((key, usable && long && part && window))
}

/// A page of which the keys of the index tell who is on it: only those are fetched.
async fn by_keys(
    records: &Records,
    ready: &Connection,
    walk: &Walk,
    query: &ExecutionQuery,
) -> Result<Page<Execution, ExecutionKey>> {
    let mut found: Vec<ExecutionKey> = Vec::new();
    let mut passed = Passed::after(query);
    let how = How { batch: FETCHED_AT_ONCE, keys: true };
    let all = each(records, ready, walk, query, &how, |raw| {
        if found.len() == query.limit {
            return Ok(false);
        }
        if let Some((key, matches)) = told_of(raw, &query.filter) {
            if matches {
                found.push(key.clone());
            }
            passed.by(key);
        }
        Ok(true)
    })
    .await?;
    let ids: Vec<&str> = found.iter().map(|key| key.execution_id.as_str()).collect();
    let executions = ready.committed(EXECUTIONS);
    let find = executions
        .find(doc! { "execution_id": { "$in": ids } })
        .batch_size(u32::try_from(query.limit + 1).unwrap_or(FETCHED_AT_ONCE));
    let mut fetched: HashMap<String, Vec<Execution>> = HashMap::new();
    if !found.is_empty() {
        let mut rows = ready.rows(find).await?;
        while let Some(raw) = rows.next().await? {
            // It may have changed since its key was read.
            if let (_, Some(execution)) = match_of(raw, &query.filter)? {
                fetched.entry(execution.execution_id.clone()).or_default().push(execution);
            }
        }
    }
    // Other programs may have stored several under one id.
    let take = |key: &ExecutionKey| {
        let of_id = fetched.get_mut(&key.execution_id)?;
        let same = |found: &Execution| found.started_at == key.started_at;
        let place = of_id.iter().position(same).or((!of_id.is_empty()).then_some(0))?;
        Some(of_id.remove(place))
    };
    let records = found.iter().filter_map(take).collect();
    Ok(Page { records, next: if all { None } else { passed.last } })
}

/// The walk that decides by its index alone; else the one with the fewest keys, as far as a short look tells, the
/// first among equals.
async fn choose(records: &Records, ready: &Connection, filter: &ExecutionFilter) -> Result<Walk> {
    let mut walks = walks(filter);
    let all = walks.last().cloned();
    let indexes = records.indexes()?;
    walks.retain(|walk| indexes.named(&walk.index).is_some());
    let mut walks = worth_comparing(walks, filter);
    if walks.len() < 2 {
        return walks.pop().or(all).ok_or_else(failure::away);
    }
    let mut best: Option<(u64, Walk)> = None;
    for walk in walks {
        let found = counted(records, ready, &walk, filter, PROBED).await?;
        if best.as_ref().is_none_or(|(least, _)| found < *least) {
            best = Some((found, walk));
        }
    }
    best.map(|(_, walk)| walk).or(all).ok_or_else(failure::away)
}

/// How many keys the walk has, at most `limit`.
async fn counted(
    records: &Records,
    ready: &Connection,
    walk: &Walk,
    filter: &ExecutionFilter,
    limit: u64,
) -> Result<u64> {
    let mut equal = walk.equal.clone();
    let window = window(filter);
    if !window.is_empty() {
        equal.insert("started_at", window);
    }
    let executions = ready.committed(EXECUTIONS);
    let count = || executions.count_documents(equal.clone()).limit(limit);
    match records.indexes()?.named(&walk.index) {
        None => ready.call(count()).await,
        Some(name) => match ready.call(count().hint(Hint::Name(name.to_owned()))).await {
            // Somebody dropped the index since.
            Err(Error::Failed(_)) => ready.call(count()).await,
            answer => answer,
        },
    }
}

/// How many match: the number of keys where the index decides, else what is found among those examined.
pub async fn count(records: &Records, query: &CountQuery) -> Result<Count> {
    let ready = records.ready().await?;
    let filter = &query.filter;
    let walk = choose(records, &ready, filter).await?;
    let leaves = walk.leaves(filter);
    let limit = query.limit as u64;
    let left_out = unreadable_of(records, &ready, filter, query.examine).await?;
    let (unreadable, mut exact) = (left_out.number, left_out.exact);
    if leaves == Leaves::Nothing {
        // Those that are being deleted still have keys. They are few, and soon none.
        let marked = left_out.number + marked(&ready, filter, query.examine, &mut exact).await?;
        let keys = counted(records, &ready, &walk, filter, limit + marked + 1).await?;
        let number = keys.saturating_sub(marked);
        exact &= number <= limit;
        return Ok(Count { number: number.min(limit), exact, unreadable });
    }
    let list = ExecutionQuery {
        filter: filter.clone(),
        order: ExecutionOrder::StartedAtDesc,
        after: None,
        limit: query.limit,
        examine: query.examine,
    };
    if leaves == Leaves::Keys {
        let marked = marked(&ready, filter, query.examine, &mut exact).await?;
        let most = limit + marked;
        let mut keys = 0;
        let how = How { batch: FETCHED_AT_ONCE, keys: true };
        let all = each(records, &ready, &walk, &list, &how, |raw| {
            let matches = told_of(raw, filter).is_some_and(|(_, matches)| matches);
            let more = matches && keys == most;
            keys += u64::from(matches && !more);
            Ok(!more)
        })
        .await?;
        let number = keys.saturating_sub(marked);
        return Ok(Count { number, exact: all && exact, unreadable });
    }
    let mut number = 0;
    let how = How { batch: FETCHED_AT_ONCE, keys: false };
    let all = each(records, &ready, &walk, &list, &how, |raw| {
        let (_, found) = match_of(raw, filter)?;
        let more = found.is_some() && number == limit;
        number += u64::from(found.is_some() && !more);
        Ok(!more)
    })
    .await?;
    Ok(Count { number, exact: all && exact, unreadable })
}

/// Types that are no id, but for arrays, which an index has no place for, and symbols, which are among the texts.
const NO_ID: [&str; 13] = [
    "minKey",
    "number",
    "object",
    "binData",
    "objectId",
    "bool",
    "date",
    "timestamp",
    "regex",
    "dbPointer",
    "javascript",
    "javascriptWithScope",
    "maxKey",
];

/// What no id is stored in. The index is read only where such types are: a negation would read all of it.
pub fn without_id() -> Document {
    let types: Vec<Bson> = NO_ID.iter().map(|name| Bson::from(*name)).collect();
    doc! { "$or": [{ "execution_id": Bson::Null }, { "execution_id": { "$type": types } }] }
}

/// Documents without a usable id, as far as `limit` of them.
pub async fn unreadable(records: &Records, limit: u64) -> Result<u64> {
    let ready = records.ready().await?;
    let executions = ready.committed(EXECUTIONS);
    ready.call(executions.count_documents(without_id()).limit(limit)).await
}

/// How many of those that match have no usable id. They have keys in every index and are in no list.
async fn unreadable_of(
    records: &Records,
    ready: &Connection,
    filter: &ExecutionFilter,
    examine: usize,
) -> Result<Count> {
    let executions = ready.committed(EXECUTIONS);
    let limit = i64::try_from(examine + 1).unwrap_or(i64::MAX);
    let find = || executions.find(without_id()).limit(limit);
    let indexes = records.indexes()?;
    let mut rows = match indexes.execution_key.as_deref() {
        None => ready.rows(find()).await?,
        Some(name) => match ready.rows(find().hint(Hint::Name(name.to_owned()))).await {
            // Somebody dropped the index since.
            Err(Error::Failed(_)) => ready.rows(find()).await?,
            answer => answer?,
        },
    };
    let mut count = Count { exact: true, ..Count::default() };
    let mut examined = 0;
    while let Some(raw) = rows.next().await? {
        if examined == examine {
            count.exact = false;
            break;
        }
        examined += 1;
        let matches = execution::read_without_id(raw).is_ok_and(|found| filter.matches(&found));
        count.number += u64::from(matches);
    }
    Ok(count)
}

/// How many of those that match are being deleted.
async fn marked(
    ready: &Connection,
    filter: &ExecutionFilter,
    examine: usize,
    exact: &mut bool,
) -> Result<u64> {
    let marked = doc! { "deleted_at": { "$gt": epoch() } };
    let limit = i64::try_from(examine + 1).unwrap_or(i64::MAX);
    let executions = ready.committed(EXECUTIONS);
    let mut rows = ready.rows(executions.find(marked).limit(limit)).await?;
    let (mut number, mut examined) = (0, 0);
    while let Some(raw) = rows.next().await? {
        if examined == examine {
            *exact = false;
            break;
        }
        examined += 1;
        if let Ok(execution) = execution::read(raw) {
            number += u64::from(filter.matches(&execution));
        }
    }
    Ok(number)
}

/// How many steps of each stand where, in one walk along the index of execution and status.
pub async fn step_counts(
    records: &Records,
    execution_ids: &[String],
    examine: usize,
) -> Result<Vec<StepCounts>> {
    let ready = records.ready().await?;
    let keys = i64::try_from(examine + 1).unwrap_or(i64::MAX);
    let pipeline = [
        doc! { "$match": { "execution_id": { "$in": execution_ids } } },
        doc! { "$sort": { "execution_id": 1, "status": 1 } },
        doc! { "$limit": keys },
        doc! { "$group": {
            "_id": { "execution": "$execution_id", "status": "$status" }, "number": { "$sum": 1 },
        } },
    ];
    let steps = ready.committed(STEPS);
    let aggregate = || steps.aggregate(pipeline.clone()).batch_size(10_000);
    let answer = match records.steps_by_status() {
        None => ready.rows(aggregate()).await,
        Some(name) => match ready.rows(aggregate().hint(Hint::Name(name))).await {
            // Somebody dropped the index since.
            Err(Error::Failed(_)) => ready.rows(aggregate()).await,
            answer => answer,
        },
    };
    let mut rows = answer?;
    let mut found: HashMap<String, StepCounts> = HashMap::new();
    let (mut seen, mut last) = (0, None);
    while let Some(raw) = rows.next().await? {
        let Ok(id) = raw.get_document("_id") else { continue };
        let Ok(execution) = id.get_str("execution") else { continue };
        let number = field(raw, "number").and_then(integer).unwrap_or(0);
        let number = u64::try_from(number).unwrap_or(0);
        seen += number;
        let status = id.get_str("status").ok();
        let status = StepStatus::ALL.into_iter().find(|known| Some(known.as_str()) == status);
        let counts = found.entry(execution.to_owned()).or_default();
        if let Some(status) = status {
            counts.add(status, number);
        }
        if last.as_deref().is_none_or(|last: &str| last < execution) {
            last = Some(execution.to_owned());
        }
    }
    // One key more than was to be read: where the walk was cut, and after it, some are missing.
    let cut = if seen > examine as u64 { last } else { None };
    let of = |id: &String| {
        let counts = found.get(id).copied().unwrap_or_default();
        StepCounts { exact: cut.as_ref().is_none_or(|cut| id < cut), ..counts }
    };
    Ok(execution_ids.iter().map(of).collect())
}
