//! What a batch changes in the tables of rollups.

use bson::raw::RawDocument;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, params, params_from_iter};

use super::rollup_rows::{GROUP, NO_STEP, NO_TIME, corrupt, day_of, group_values};
use crate::domain::rollup::{Counted, Deltas, Rollup};
use crate::store::rollups::{
    Recount, RollupBatch, failure_id, group_id, read_rollup, rollup_document,
};
use crate::store::{Error, Result};

pub(super) fn set(connection: &Connection, name: &str, value: Value) -> Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)")?
        .execute(params![name, value])?;
    Ok(())
}

pub(super) fn recount(connection: &Connection, recount: &Recount) -> Result<()> {
    let Recount { execution_id, before, after } = recount;
    let none = Vec::new();
    let old = before.as_ref().map_or(&none, |counted| &counted.failures);
    let new = after.as_ref().map_or(&none, |counted| &counted.failures);
    let group_of =
        |counted: &Option<Counted>| counted.as_ref().map(|counted| counted.counts_as.group.clone());
    let moved = group_of(before) != group_of(after);
    let mut remove = connection
        .prepare_cached("DELETE FROM rollup_failures WHERE execution_id = ?1 AND step_id = ?2")?;
    for gone in old.iter().filter(|old| !new.iter().any(|new| new.step_id == old.step_id)) {
        remove.execute(params![execution_id, gone.step_id.unwrap_or(NO_STEP)])?;
    }
    let Some(Counted { counts_as, .. }) = after else {
        connection
            .prepare_cached("DELETE FROM rollup_counted WHERE execution_id = ?1")?
            .execute([execution_id])?;
        return Ok(());
    };
    let put = format!(
        "INSERT OR REPLACE INTO rollup_failures (execution_id, step_id, step_name, failed_at, \
         fingerprint, message, {GROUP}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)"
    );
    let mut put = connection.prepare_cached(&put)?;
    for failure in new.iter().filter(|new| moved || !old.contains(new)) {
        let mut values = vec![
            Value::from(execution_id.clone()),
            Value::from(failure.step_id.unwrap_or(NO_STEP)),
            Value::from(failure.step_name.clone()),
            Value::from(failure.failed_at),
            Value::from(failure.fingerprint.clone()),
            Value::from(failure.message.clone()),
        ];
        values.extend(group_values(&counts_as.group));
        put.execute(params_from_iter(values))?;
    }
    let put = format!(
        "INSERT OR REPLACE INTO rollup_counted (execution_id, day, quarter, outcome, duration_ms, {GROUP}) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
    );
    let mut values = vec![
        Value::from(execution_id.clone()),
        Value::from(day_of(counts_as.quarter)),
        Value::from(counts_as.quarter),
        Value::from(counts_as.outcome.letter().to_owned()),
        Value::from(counts_as.duration_ms),
    ];
    values.extend(group_values(&counts_as.group));
    connection.prepare_cached(&put)?.execute(params_from_iter(values))?;
    Ok(())
}

pub(super) fn add(connection: &Connection, deltas: &Deltas) -> Result<()> {
    let mut find = connection.prepare_cached(
        "SELECT data FROM rollups WHERE level = ?1 AND at = ?2 AND group_id = ?3",
    )?;
    let mut change = connection.prepare_cached(
        "UPDATE rollups SET data = ?4 WHERE level = ?1 AND at = ?2 AND group_id = ?3",
    )?;
    let mut remove = connection
        .prepare_cached("DELETE FROM rollups WHERE level = ?1 AND at = ?2 AND group_id = ?3")?;
    let insert = format!(
        "INSERT INTO rollups (level, at, group_id, data, {GROUP}) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"
    );
    let mut insert = connection.prepare_cached(&insert)?;
    for (key, delta) in &deltas.rollups {
        let (level, at) = (key.level.word(), key.at.unwrap_or(NO_TIME));
        let id = group_id(&key.group);
        let found: Option<Vec<u8>> =
            find.query_row(params![level, at, id], |row| row.get(0)).optional()?;
        let is_new = found.is_none();
        let mut rollup = match &found {
            Some(bytes) => {
                let document = RawDocument::from_bytes(bytes).map_err(|_| corrupt(&id, "data"))?;
                read_rollup(document, true)
            }
            None => Rollup::default(),
        };
        rollup.merge(delta);
        rollup.settle();
        let data = || -> Result<Vec<u8>> {
            bson::serialize_to_vec(&rollup_document(&rollup)).map_err(Error::failed)
        };
        if rollup.is_empty() {
            remove.execute(params![level, at, id])?;
        } else if is_new {
            let mut values = vec![
                Value::from(level.to_owned()),
                Value::from(at),
                Value::from(id),
                Value::from(data()?),
            ];
            values.extend(group_values(&key.group));
            insert.execute(params_from_iter(values))?;
        } else {
            change.execute(params![level, at, id, data()?])?;
        }
    }
    add_failures(connection, deltas)
}

fn add_failures(connection: &Connection, deltas: &Deltas) -> Result<()> {
    let put = format!(
        "INSERT INTO rollup_failure_counts (level, at, id, outcome, step_name, fingerprint, {GROUP}, \
         p0, p1, p2, p3) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) \
         ON CONFLICT DO UPDATE SET p0 = p0 + excluded.p0, p1 = p1 + excluded.p1, \
         p2 = p2 + excluded.p2, p3 = p3 + excluded.p3"
    );
    let mut put = connection.prepare_cached(&put)?;
    let mut remove = connection.prepare_cached(
        "DELETE FROM rollup_failure_counts WHERE level = ?1 AND at = ?2 AND id = ?3 \
         AND p0 = 0 AND p1 = 0 AND p2 = 0 AND p3 = 0",
    )?;
    for (key, parts) in &deltas.failures {
        let (level, at) = (key.level.word(), key.at.unwrap_or(NO_TIME));
        let id = failure_id(key);
        let mut values = vec![
            Value::from(level.to_owned()),
            Value::from(at),
            Value::from(id.clone()),
            Value::from(key.outcome.letter().to_owned()),
            Value::from(key.step_name.clone()),
            Value::from(key.fingerprint.clone()),
        ];
        values.extend(group_values(&key.group));
        values.extend(parts.map(Value::from));
        put.execute(params_from_iter(values))?;
        if parts.iter().any(|count| *count < 0) {
            remove.execute(params![level, at, id])?;
        }
    }
    Ok(())
}

/// Makes rollups what they should be: takes away what they are, and adds what they should be to nothing.
pub(super) fn replace(connection: &Connection, batch: &RollupBatch) -> Result<()> {
    let mut remove = connection
        .prepare_cached("DELETE FROM rollups WHERE level = ?1 AND at = ?2 AND group_id = ?3")?;
    let mut remove_count = connection.prepare_cached(
        "DELETE FROM rollup_failure_counts WHERE level = ?1 AND at = ?2 AND id = ?3",
    )?;
    let mut anew = Deltas::default();
    for (key, rollup) in &batch.rollups {
        remove.execute(params![
            key.level.word(),
            key.at.unwrap_or(NO_TIME),
            group_id(&key.group)
        ])?;
        anew.rollups.insert(key.clone(), rollup.clone());
    }
    for (key, parts) in &batch.failures {
        let id = failure_id(key);
        remove_count.execute(params![key.level.word(), key.at.unwrap_or(NO_TIME), id])?;
        anew.failures.insert(key.clone(), *parts);
    }
    anew.settle();
    add(connection, &anew)
}
