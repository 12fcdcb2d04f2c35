//! Lists of executions, and counts of them and of their steps. Every function takes the connection it runs on.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator as _;
use rusqlite::types::Value;
use rusqlite::{Connection, Row, Rows};

use super::rows::{EXECUTION_COLUMNS, execution_of};
use super::schema::NO_START;
use crate::domain::query::{
    Count, CountQuery, ExecutionFilter, ExecutionKey, ExecutionOrder, ExecutionQuery, Page,
    StepCounts,
};
use crate::domain::{Execution, ExecutionStatus, StepStatus};
use crate::store::Result;

/// Ranges of an index that one query may merge.
const RANGES: usize = 256;

/// One stretch of an index in which every record agrees with part of the filter.
struct Range {
    index: &'static str,
    /// Equalities of the leading columns; `?1`, `?2` are `values`.
    equal: &'static str,
    values: Vec<Value>,
}

/// The stretches that together hold every match of the filter. They have no record in common.
fn ranges(filter: &ExecutionFilter) -> Vec<Range> {
    fn distinct<T: Clone + Ord>(values: &[T]) -> Vec<T> {
        let mut values = values.to_vec();
        values.sort();
        values.dedup();
        values
    }
    let statuses: Vec<&str> = if filter.statuses.is_empty() {
        ExecutionStatus::ALL.iter().map(|status| status.as_str()).chain([""]).collect()
    } else {
        distinct(&filter.statuses.iter().map(|status| status.as_str()).collect::<Vec<_>>())
    };
    let with_statuses = |index, equal, values: Vec<Value>| {
        let pair = |value: &Value| {
            let value = value.clone();
            statuses.iter().map(move |status| Range {
                index,
                equal,
                values: vec![value.clone(), Value::from((*status).to_owned())],
            })
        };
        values.iter().flat_map(pair).collect::<Vec<_>>()
    };
    let app_ids = distinct(&filter.app_ids);
    let sub_app_ids = distinct(&filter.sub_app_ids);
    if !filter.user_ids.is_empty() {
        let users = distinct(&filter.user_ids).into_iter().map(Value::from).collect();
        with_statuses("executions_user", "user_id = ?1 AND status = ?2", users)
    } else if !app_ids.is_empty()
        && !sub_app_ids.is_empty()
        && app_ids.len() * sub_app_ids.len() <= RANGES
    {
        let pair = |app_id: &i32| {
            let app_id = *app_id;
            sub_app_ids.iter().map(move |sub_app_id| Range {
                index: "executions_sub_app",
                equal: "app_id = ?1 AND sub_app_id = ?2",
                values: vec![Value::from(app_id), Value::from(*sub_app_id)],
            })
        };
        app_ids.iter().flat_map(pair).collect()
    } else if !app_ids.is_empty() {
        let apps = app_ids.into_iter().map(Value::from).collect();
        with_statuses("executions_app", "app_id = ?1 AND status = ?2", apps)
    } else if !filter.app_names.is_empty() {
        let names = distinct(&filter.app_names).into_iter().map(Value::from).collect();
        with_statuses("executions_app_name", "app_name = ?1 AND status = ?2", names)
    } else if !filter.statuses.is_empty() {
        let one = |status: &&str| Range {
            index: "executions_status",
            equal: "status = ?1",
            values: vec![Value::from((*status).to_owned())],
        };
        statuses.iter().map(one).collect()
    } else {
        vec![Range { index: "executions_started", equal: "TRUE", values: Vec::new() }]
    }
}

/// Where in each stretch the page lies: at most one bound on either side, so that the index serves both.
/// `None`: nowhere.
fn bounds(query: &ExecutionQuery) -> Option<(String, Vec<Value>)> {
    let filter = &query.filter;
    let after = query.after.as_ref().map(|key| (key.started_at.unwrap_or(NO_START), key));
    let windowed = filter.started_at_from.is_some() || filter.started_at_until.is_some();
    // A record without a start time is in no window.
    let from = windowed.then(|| filter.started_at_from.unwrap_or(NO_START).max(NO_START + 1));
    let until = filter.started_at_until;
    if let (Some(from), Some(until)) = (from, until)
        && from >= until
    {
        return None;
    }
    let (mut sql, mut values) = (String::new(), Vec::new());
    let descending = query.order == ExecutionOrder::StartedAtDesc;
    // The page starts after a record, unless the window starts later still.
    if let Some((at, key)) = after {
        let in_window = match descending {
            true => until.is_none_or(|until| at < until),
            false => from.is_none_or(|from| at >= from),
        };
        if in_window {
            let sign = if descending { '<' } else { '>' };
            sql += &format!(" AND (started_at, execution_id) {sign} (?, ?)");
            values.extend([Value::from(at), Value::from(key.execution_id.clone())]);
            let (far_sign, far) = if descending { (">=", from) } else { ("<", until) };
            if let Some(far) = far {
                sql += &format!(" AND started_at {far_sign} ?");
                values.push(Value::from(far));
            }
            return Some((sql, values));
        }
    }
    if let Some(from) = from {
        sql += " AND started_at >= ?";
        values.push(Value::from(from));
    }
    if let Some(until) = until {
        sql += " AND started_at < ?";
        values.push(Value::from(until));
    }
    Some((sql, values))
}

/// The SQL of every stretch and its parameters.
pub fn scans(query: &ExecutionQuery) -> Vec<(String, Vec<Value>)> {
    selects(query, &EXECUTION_COLUMNS.join(", "))
}

fn selects(query: &ExecutionQuery, columns: &str) -> Vec<(String, Vec<Value>)> {
    let Some((bounds, bound_values)) = bounds(query) else { return Vec::new() };
    let direction = match query.order {
        ExecutionOrder::StartedAtDesc => "DESC",
        ExecutionOrder::StartedAtAsc => "ASC",
    };
    ranges(&query.filter)
        .into_iter()
        .map(|Range { index, equal, mut values }| {
            let sql = format!(
                "SELECT {columns} FROM executions INDEXED BY {index} WHERE {equal}{bounds} \
                 ORDER BY started_at {direction}, execution_id {direction}"
            );
            values.extend(bound_values.iter().cloned());
            (sql, values)
        })
        .collect()
}

/// The next record of one stretch. The greatest is the next of the page.
struct Head {
    descending: bool,
    started_at: i64,
    execution_id: String,
    range: usize,
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        let order = (self.started_at, &self.execution_id, self.range).cmp(&(
            other.started_at,
            &other.execution_id,
            other.range,
        ));
        if self.descending { order } else { order.reverse() }
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head {}

/// Shows `visit` the records of all stretches, merged in order row by row, until it says that is enough or
/// `query.examine` are examined and there is one more. Whether that was all.
fn each(
    snapshot: &Connection,
    query: &ExecutionQuery,
    mut visit: impl FnMut(&Row<'_>) -> Result<bool>,
) -> Result<bool> {
    let mut statements = Vec::new();
    for (sql, values) in scans(query) {
        let mut statement = snapshot.prepare_cached(&sql)?;
        for (index, value) in values.iter().enumerate() {
            statement.raw_bind_parameter(index + 1, value)?;
        }
        statements.push(statement);
    }
    let mut cursors: Vec<Rows<'_>> =
        statements.iter_mut().map(|statement| statement.raw_query()).collect();
    let descending = query.order == ExecutionOrder::StartedAtDesc;
    let head = |cursor: &mut Rows<'_>, range| -> Result<Option<Head>> {
        let Some(row) = cursor.next()? else { return Ok(None) };
        let (started_at, execution_id) = (row.get("started_at")?, row.get(0)?);
        Ok(Some(Head { descending, started_at, execution_id, range }))
    };
    let mut heads = BinaryHeap::new();
    for (range, cursor) in cursors.iter_mut().enumerate() {
        heads.extend(head(cursor, range)?);
    }
    let mut examined = 0;
    while let Some(next) = heads.pop() {
        let cursor = &mut cursors[next.range];
        let row = cursor.get().expect("a cursor whose head was not taken stands on a row");
        if examined >= query.examine.max(1) || !visit(row)? {
            return Ok(false);
        }
        examined += 1;
        heads.extend(head(cursor, next.range)?);
    }
    Ok(true)
}

fn is_match(execution: &Execution, filter: &ExecutionFilter) -> bool {
    execution.deleted_at.is_none() && filter.matches(execution)
}

/// One page of executions. What the index does not decide is decided by `ExecutionFilter::matches`, so a filter
/// has one meaning.
pub fn executions(
    connection: &Connection,
    query: &ExecutionQuery,
) -> Result<Page<Execution, ExecutionKey>> {
    // All stretches are read from one state of the database.
    let snapshot = connection.unchecked_transaction()?;
    let mut records = Vec::new();
    let mut last = query.after.clone();
    let all = each(&snapshot, query, |row| {
        if records.len() >= query.limit.max(1) {
            // To who sees some apps only, a token says that there is more of theirs, and not that there is something.
            let is_seen = query.filter.scope.is_all();
            return Ok(!is_seen && !is_match(&execution_of(row)?, &query.filter));
        }
        let execution = execution_of(row)?;
        last = Some(ExecutionKey::of(&execution));
        if is_match(&execution, &query.filter) {
            records.push(execution);
        }
        Ok(true)
    })?;
    Ok(Page { records, next: if all { None } else { last } })
}

/// Whether the stretches of the filter hold nothing but matches.
fn ranges_decide(filter: &ExecutionFilter) -> bool {
    let ranges = ranges(filter);
    let has = |column: &str| {
        let mut parts = ranges.iter().flat_map(|range| range.equal.split(" AND "));
        parts.any(|part| part.split(' ').next() == Some(column))
    };
    let ExecutionFilter {
        app_ids,
        app_names,
        sub_app_ids,
        user_ids,
        statuses,
        // Every stretch is one of time.
        started_at_from: _,
        started_at_until: _,
        min_duration_ms,
        metadata,
        scope,
    } = filter;
    (app_ids.is_empty() || has("app_id"))
        && (app_names.is_empty() || has("app_name"))
        && (sub_app_ids.is_empty() || has("sub_app_id"))
        && (user_ids.is_empty() || has("user_id"))
        && (statuses.is_empty() || has("status"))
        && min_duration_ms.is_none()
        && metadata.is_empty()
        && scope.is_all()
}

/// How many match: entries of the index where it decides, else what is found among the records examined.
pub fn count(connection: &Connection, query: &CountQuery) -> Result<Count> {
    let snapshot = connection.unchecked_transaction()?;
    let list = ExecutionQuery {
        filter: query.filter.clone(),
        order: ExecutionOrder::StartedAtDesc,
        after: None,
        limit: query.limit,
        examine: query.examine,
    };
    let limit = query.limit as u64;
    if !ranges_decide(&query.filter) {
        let mut number = 0;
        let all = each(&snapshot, &list, |row| {
            let found = is_match(&execution_of(row)?, &query.filter);
            let more = found && number == limit;
            number += u64::from(found && !more);
            Ok(!more)
        })?;
        return Ok(Count { number, exact: all, unreadable: 0 });
    }
    // Those that are being deleted still are in the index. They are few, and soon none.
    let (marked, all_marked) = marked(&snapshot, &query.filter, query.examine)?;
    let mut number = 0;
    for (sql, mut values) in selects(&list, "1") {
        let left = (limit + marked + 1).saturating_sub(number);
        values.push(Value::from(i64::try_from(left).unwrap_or(i64::MAX)));
        let mut statement =
            snapshot.prepare_cached(&format!("SELECT count(*) FROM ({sql} LIMIT ?)"))?;
        let found: i64 =
            statement.query_row(rusqlite::params_from_iter(values), |row| row.get(0))?;
        number += found as u64;
    }
    let number = number.saturating_sub(marked);
    let exact = number <= limit && all_marked;
    Ok(Count { number: number.min(limit), exact, unreadable: 0 })
}

/// How many of those that match are being deleted, and whether these are all.
fn marked(snapshot: &Connection, filter: &ExecutionFilter, examine: usize) -> Result<(u64, bool)> {
    let mut statement = snapshot.prepare_cached(&format!(
        "SELECT {} FROM executions INDEXED BY executions_deleted WHERE deleted_at IS NOT NULL",
        EXECUTION_COLUMNS.join(", ")
    ))?;
    let mut rows = statement.query([])?;
    let (mut number, mut examined) = (0, 0);
    while let Some(row) = rows.next()? {
        if examined == examine {
            return Ok((number, false));
        }
        examined += 1;
        number += u64::from(filter.matches(&execution_of(row)?));
    }
    Ok((number, true))
}

/// The steps of executions whose ids are a JSON array, by execution id.
pub const STEPS_BY_STATUS: &str = "SELECT e.execution_id, s.status FROM executions e \
     CROSS JOIN steps s INDEXED BY steps_status ON s.execution = e.id \
     WHERE e.execution_id IN (SELECT value FROM json_each(?1)) \
     ORDER BY e.execution_id LIMIT ?2";

/// How many steps of each stand where, in one walk along the index of execution and status.
pub fn step_counts(
    connection: &Connection,
    execution_ids: &[String],
    examine: usize,
) -> Result<Vec<StepCounts>> {
    let mut statement = connection.prepare_cached(STEPS_BY_STATUS)?;
    let ids = bson::Bson::from(execution_ids.to_vec()).into_relaxed_extjson().to_string();
    let keys = i64::try_from(examine + 1).unwrap_or(i64::MAX);
    let mut rows = statement.query(rusqlite::params![ids, keys])?;
    let mut found: HashMap<String, StepCounts> = HashMap::new();
    let (mut seen, mut last) = (0, String::new());
    while let Some(row) = rows.next()? {
        seen += 1;
        let status: String = row.get(1)?;
        last = row.get(0)?;
        let status = StepStatus::ALL.into_iter().find(|known| known.as_str() == status);
        if let Some(status) = status {
            found.entry(last.clone()).or_default().add(status, 1);
        }
    }
    // One key more than was to be read: where the walk was cut, and after it, some are missing.
    let cut = (seen > examine).then_some(last);
    let of = |id: &String| {
        let counts = found.get(id).copied().unwrap_or_default();
        StepCounts { exact: cut.as_ref().is_none_or(|cut| id < cut), ..counts }
    };
    Ok(execution_ids.iter().map(of).collect())
}
