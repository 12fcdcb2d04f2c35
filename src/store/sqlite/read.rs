//! What is asked of the tables. Every function takes the connection it runs on, so that the writer can ask
//! inside its transaction. Knows no thread and no queue.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::LazyLock;

use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator as _;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Rows, params};

use super::rows::{EXECUTION_COLUMNS, STEP_COLUMNS, STEP_PAYLOADS, execution_of, step_of};
use super::schema::NO_START;
use crate::domain::query::{
    ExecutionFilter, ExecutionKey, ExecutionOrder, ExecutionQuery, Page, StepQuery,
};
use crate::domain::{Execution, ExecutionStatus, Millis, Step, StepRef};
use crate::store::{Leases, Result, Silent};

/// Ranges of an index that one query may merge.
const RANGES: usize = 256;

struct Queries {
    execution: String,
    step_by_id: [String; 2],
    step_by_key: [String; 2],
    steps: String,
}

static QUERIES: LazyLock<Queries> = LazyLock::new(|| {
    let executions = format!("SELECT {}, id FROM executions", EXECUTION_COLUMNS.join(", "));
    let bare = format!("SELECT {} FROM steps", STEP_COLUMNS.join(", "));
    let full = format!("SELECT {}, {STEP_PAYLOADS} FROM steps", STEP_COLUMNS.join(", "));
    let both = |condition: &str| {
        [format!("{bare} WHERE {condition}"), format!("{full} WHERE {condition}")]
    };
    Queries {
        execution: format!("{executions} WHERE execution_id = ?1"),
        step_by_id: both("execution = ?1 AND step_id = ?2"),
        step_by_key: both("execution = ?1 AND step_key = ?2"),
        steps: format!("{bare} WHERE execution = ?1 AND step_id >= ?2 ORDER BY step_id"),
    }
});

/// An execution as its steps know it: by its row, which another execution may have once this one is deleted.
/// Good only inside the transaction that found it.
#[derive(Debug, Clone, Copy)]
pub struct Parent<'a> {
    pub row: i64,
    pub execution_id: &'a str,
}

/// The execution of this id, unless it is being deleted.
pub fn execution(connection: &Connection, execution_id: &str) -> Result<Option<Execution>> {
    let found = any_execution(connection, execution_id)?.map(|(_, execution)| execution);
    Ok(found.filter(|execution| execution.deleted_at.is_none()))
}

/// Whether the execution of this id is being deleted.
pub fn is_being_deleted(connection: &Connection, execution_id: &str) -> Result<bool> {
    let mut statement = connection.prepare_cached(
        "SELECT 1 FROM executions WHERE execution_id = ?1 AND deleted_at IS NOT NULL",
    )?;
    Ok(statement.exists([execution_id])?)
}

/// The execution of this id, being deleted or not, with its row.
pub fn any_execution(
    connection: &Connection,
    execution_id: &str,
) -> Result<Option<(i64, Execution)>> {
    let mut statement = connection.prepare_cached(&QUERIES.execution)?;
    let mut rows = statement.query([execution_id])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some((row.get(EXECUTION_COLUMNS.len())?, execution_of(row)?)))
}

/// The row of this execution, unless it is being deleted.
pub fn parent<'a>(connection: &Connection, execution_id: &'a str) -> Result<Option<Parent<'a>>> {
    let mut statement = connection.prepare_cached(
        "SELECT id FROM executions WHERE execution_id = ?1 AND deleted_at IS NULL",
    )?;
    let row = statement.query_row([execution_id], |row| row.get(0)).optional()?;
    Ok(row.map(|row| Parent { row, execution_id }))
}

/// The step of this number.
pub fn step_by_id(
    connection: &Connection,
    parent: Parent<'_>,
    step_id: i32,
    payloads: bool,
) -> Result<Option<Step>> {
    let sql = &QUERIES.step_by_id[usize::from(payloads)];
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![parent.row, step_id])?;
    rows.next()?.map(|row| step_of(row, parent.execution_id, payloads)).transpose()
}

/// The step of this key.
pub fn step_by_key(
    connection: &Connection,
    parent: Parent<'_>,
    step_key: &str,
    payloads: bool,
) -> Result<Option<Step>> {
    let sql = &QUERIES.step_by_key[usize::from(payloads)];
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![parent.row, step_key])?;
    rows.next()?.map(|row| step_of(row, parent.execution_id, payloads)).transpose()
}

/// The step that is named so, with payloads. The number decides where both names are given.
pub fn step(connection: &Connection, execution_id: &str, step: &StepRef) -> Result<Option<Step>> {
    let snapshot = connection.unchecked_transaction()?;
    let Some(parent) = parent(&snapshot, execution_id)? else { return Ok(None) };
    match (step.step_id, &step.step_key) {
        (Some(step_id), _) => step_by_id(&snapshot, parent, step_id, true),
        (None, Some(key)) => step_by_key(&snapshot, parent, key, true),
        (None, None) => Ok(None),
    }
}

/// The greatest number of a step, -1 if there is none.
pub fn greatest_step_id(connection: &Connection, parent: Parent<'_>) -> Result<i32> {
    let mut statement =
        connection.prepare_cached("SELECT max(step_id) FROM steps WHERE execution = ?1")?;
    let greatest: Option<i32> = statement.query_row([parent.row], |row| row.get(0))?;
    Ok(greatest.unwrap_or(-1))
}

/// How many steps there are.
pub fn step_count(connection: &Connection, parent: Parent<'_>) -> Result<usize> {
    let mut statement =
        connection.prepare_cached("SELECT count(*) FROM steps WHERE execution = ?1")?;
    let count: i64 = statement.query_row([parent.row], |row| row.get(0))?;
    Ok(count as usize)
}

/// One page of the steps of an execution.
pub fn steps(connection: &Connection, query: &StepQuery) -> Result<Page<Step, i32>> {
    let mut page = Page { records: Vec::new(), next: None };
    let from = match query.after {
        None => i64::MIN,
        Some(after) => i64::from(after) + 1,
    };
    let snapshot = connection.unchecked_transaction()?;
    let Some(parent) = parent(&snapshot, &query.execution_id)? else { return Ok(page) };
    let mut statement = snapshot.prepare_cached(&QUERIES.steps)?;
    let mut rows = statement.query(params![parent.row, from])?;
    let (mut examined, mut last) = (0, query.after);
    while let Some(row) = rows.next()? {
        if page.records.len() >= query.limit.max(1) || examined >= query.examine.max(1) {
            page.next = last;
            break;
        }
        examined += 1;
        let step = step_of(row, &query.execution_id, false)?;
        let found = query.statuses.is_empty()
            || step.status.is_some_and(|status| query.statuses.contains(&status));
        last = Some(step.step_id);
        if found {
            page.records.push(step);
        }
    }
    Ok(page)
}

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
    let Some((bounds, bound_values)) = bounds(query) else { return Vec::new() };
    let direction = match query.order {
        ExecutionOrder::StartedAtDesc => "DESC",
        ExecutionOrder::StartedAtAsc => "ASC",
    };
    let columns = EXECUTION_COLUMNS.join(", ");
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

/// One page of executions: the stretches of an index that hold the matches, merged in order row by row. What
/// the index does not decide is decided by `ExecutionFilter::matches`, so a filter has one meaning.
pub fn executions(
    connection: &Connection,
    query: &ExecutionQuery,
) -> Result<Page<Execution, ExecutionKey>> {
    // All stretches are read from one state of the database.
    let snapshot = connection.unchecked_transaction()?;
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
    let mut page = Page { records: Vec::new(), next: None };
    let (mut examined, mut last) = (0, query.after.clone());
    while let Some(next) = heads.pop() {
        if page.records.len() >= query.limit.max(1) || examined >= query.examine.max(1) {
            page.next = last;
            break;
        }
        examined += 1;
        let cursor = &mut cursors[next.range];
        let row = cursor.get().expect("a cursor whose head was not taken stands on a row");
        let execution = execution_of(row)?;
        last = Some(ExecutionKey::of(&execution));
        if execution.deleted_at.is_none() && query.filter.matches(&execution) {
            page.records.push(execution);
        }
        heads.extend(head(cursor, next.range)?);
    }
    Ok(page)
}

/// Running executions whose own record shows no sign of life within their timeout.
pub fn leases(connection: &Connection, now: Millis) -> Result<Leases> {
    let snapshot = connection.unchecked_transaction()?;
    let mut leases = Leases::default();
    let mut statement = snapshot.prepare_cached(
        "SELECT execution_id, heartbeat_timeout_ms, stored_at, \
                last_heartbeat_at, updated_at, created_at, id \
         FROM executions INDEXED BY executions_lease \
         WHERE status = 'running' AND heartbeat_timeout_ms IS NOT NULL AND deleted_at IS NULL",
    )?;
    let mut of_steps =
        snapshot.prepare_cached("SELECT max(updated_at) FROM steps WHERE execution = ?1")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let timeout_ms: i64 = row.get(1)?;
        let smallest = leases.smallest_timeout_ms.get_or_insert(timeout_ms);
        *smallest = timeout_ms.min(*smallest);
        let signs: [Option<Millis>; 3] = [row.get(3)?, row.get(4)?, row.get(5)?];
        let own = match signs.into_iter().flatten().max() {
            Some(own) => own,
            None => row.get(2)?,
        };
        if own.saturating_add(timeout_ms) > now {
            continue;
        }
        let execution_id: String = row.get(0)?;
        let steps: Option<Millis> =
            of_steps.query_row([row.get::<_, i64>(6)?], |row| row.get(0))?;
        let last_sign_of_life = steps.unwrap_or(own).max(own);
        leases.silent.push(Silent {
            execution_id,
            heartbeat_timeout_ms: timeout_ms,
            last_sign_of_life,
            seen_in_steps: last_sign_of_life > own,
        });
    }
    Ok(leases)
}
