//! What is asked of the tables. Every function takes the connection it runs on, so that the writer can ask
//! inside its transaction. Knows no thread and no queue.

use std::collections::HashMap;
use std::sync::LazyLock;

use rusqlite::{Connection, OptionalExtension as _, params};

use super::rows::{EXECUTION_COLUMNS, STEP_COLUMNS, STEP_PAYLOADS, execution_of, step_of};
use crate::domain::execution::SignOfLife;
use crate::domain::query::{Page, StepQuery};
use crate::domain::{Execution, Millis, Step, StepRef};
use crate::store::{Lease, Result};

struct Queries {
    execution: String,
    step_by_id: [String; 2],
    step_by_key: [String; 2],
    steps: [String; 2],
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
        steps: both("execution = ?1 AND step_id >= ?2 ORDER BY step_id"),
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

/// The step that is named so. The number decides where both names are given.
pub fn step(
    connection: &Connection,
    execution_id: &str,
    step: &StepRef,
    payloads: bool,
) -> Result<Option<Step>> {
    let snapshot = connection.unchecked_transaction()?;
    let Some(parent) = parent(&snapshot, execution_id)? else { return Ok(None) };
    match (step.step_id, &step.step_key) {
        (Some(step_id), _) => step_by_id(&snapshot, parent, step_id, payloads),
        (None, Some(key)) => step_by_key(&snapshot, parent, key, payloads),
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
    let mut statement =
        snapshot.prepare_cached(&QUERIES.steps[usize::from(query.payloads.is_some())])?;
    let mut rows = statement.query(params![parent.row, from])?;
    let (mut examined, mut last) = (0, query.after);
    let mut room = query.payloads.unwrap_or(usize::MAX);
    while let Some(row) = rows.next()? {
        let full = page.records.len() >= query.limit.max(1) || room == 0;
        if full || examined >= query.examine.max(1) {
            page.next = last;
            break;
        }
        examined += 1;
        let step = step_of(row, &query.execution_id, query.payloads.is_some())?;
        let found = query.statuses.is_empty()
            || step.status.is_some_and(|status| query.statuses.contains(&status));
        last = Some(step.step_id);
        if found {
            if query.payloads.is_some() {
                room = room.saturating_sub(step.weight());
            }
            page.records.push(step);
        }
    }
    Ok(page)
}

/// Running executions with a heartbeat timeout.
pub fn leases(connection: &Connection) -> Result<Vec<Lease>> {
    let mut statement = connection.prepare_cached(
        "SELECT execution_id, heartbeat_timeout_ms, revision, \
                last_heartbeat_at, updated_at, created_at, mirrored_revision \
         FROM executions INDEXED BY executions_lease \
         WHERE status = 'running' AND heartbeat_timeout_ms IS NOT NULL AND deleted_at IS NULL",
    )?;
    let leases = statement.query_map([], |row| {
        let times: [Option<Millis>; 3] = [row.get(3)?, row.get(4)?, row.get(5)?];
        let (revision, mirrored): (i64, Option<i64>) = (row.get(2)?, row.get(6)?);
        Ok(Lease {
            execution_id: row.get(0)?,
            heartbeat_timeout_ms: row.get(1)?,
            sign: SignOfLife { at: times.into_iter().flatten().max(), writes: revision },
            held_elsewhere: mirrored == Some(revision),
        })
    })?;
    Ok(leases.collect::<rusqlite::Result<_>>()?)
}

/// The newest time of an execution's steps, and a number that each write to one of them changes.
pub fn signs_in_steps(
    connection: &Connection,
    execution_ids: Vec<String>,
) -> Result<HashMap<String, SignOfLife>> {
    // The sum of whole revisions of many steps is more than an integer can hold.
    let mut statement = connection.prepare_cached(
        "SELECT max(updated_at), sum(revision & 0xffffffff) FROM steps \
         WHERE execution = (SELECT id FROM executions WHERE execution_id = ?1)",
    )?;
    let mut signs = HashMap::new();
    for execution_id in execution_ids {
        let (at, writes): (Option<Millis>, Option<i64>) =
            statement.query_row([&execution_id], |row| Ok((row.get(0)?, row.get(1)?)))?;
        if let Some(writes) = writes {
            signs.insert(execution_id, SignOfLife { at, writes });
        }
    }
    Ok(signs)
}
