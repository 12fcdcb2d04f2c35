//! Rows of the tables of rollups. A time that nobody knows is stored as the smallest integer.

use rusqlite::types::Value;
use rusqlite::{Connection, Row};

use crate::domain::rollup::{CountsAs, Failure, Group, Outcome, QUARTERS_OF_DAY};
use crate::store::{Error, Result};

/// Stored for a time that nobody knows.
pub(super) const NO_TIME: i64 = i64::MIN;
/// Stored for the execution among its steps.
pub(super) const NO_STEP: i32 = -1;
pub(super) const GROUP: &str = "app_id, app_name, sub_app_id, sub_app_name, user_id";

pub(super) fn day_of(quarter: Option<i64>) -> i64 {
    quarter.map_or(NO_TIME, |quarter| quarter.div_euclid(QUARTERS_OF_DAY))
}

pub(super) fn group_at(row: &Row<'_>, first: usize) -> rusqlite::Result<Group> {
    Ok(Group {
        app_id: row.get(first)?,
        app_name: row.get(first + 1)?,
        sub_app_id: row.get(first + 2)?,
        sub_app_name: row.get(first + 3)?,
        user_id: row.get(first + 4)?,
    })
}

pub(super) fn group_values(group: &Group) -> [Value; 5] {
    [
        Value::from(group.app_id),
        Value::from(group.app_name.clone()),
        Value::from(group.sub_app_id),
        Value::from(group.sub_app_name.clone()),
        Value::from(group.user_id.clone()),
    ]
}

pub(super) fn corrupt(id: &str, field: &'static str) -> Error {
    Error::Corrupt { collection: "rollups", id: id.to_owned(), field }
}

pub(super) fn counted_columns() -> String {
    format!("execution_id, quarter, outcome, duration_ms, {GROUP}")
}

pub(super) fn counts_as(row: &Row<'_>) -> Result<(String, CountsAs)> {
    let execution_id: String = row.get(0)?;
    let outcome: String = row.get(2)?;
    let outcome = Outcome::parse(&outcome).ok_or_else(|| corrupt(&execution_id, "outcome"))?;
    let counts_as = CountsAs {
        quarter: row.get(1)?,
        outcome,
        duration_ms: row.get(3)?,
        group: group_at(row, 4)?,
    };
    Ok((execution_id, counts_as))
}

pub(super) fn failures_of(connection: &Connection, execution_id: &str) -> Result<Vec<Failure>> {
    let mut statement = connection.prepare_cached(
        "SELECT step_id, step_name, failed_at, fingerprint, message FROM rollup_failures \
         WHERE execution_id = ?1 ORDER BY step_id",
    )?;
    let found = statement.query_map([execution_id], |row| failure_at(row, 0))?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn failure_at(row: &Row<'_>, first: usize) -> rusqlite::Result<Failure> {
    Ok(Failure {
        step_id: Some(row.get(first)?).filter(|id| *id != NO_STEP),
        step_name: row.get(first + 1)?,
        failed_at: row.get(first + 2)?,
        fingerprint: row.get(first + 3)?,
        message: row.get(first + 4)?,
    })
}
