//! Rollups in their tables: reading them. Everything a batch changes (`rollup_writes`) is changed in one transaction of the
//! writer.

use std::collections::HashMap;

use async_trait::async_trait;
use bson::raw::RawDocument;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, params, params_from_iter};

use super::SqliteStore;
use super::rollup_rows::{
    GROUP, NO_TIME, corrupt, counted_columns, counts_as, failure_at, failures_of, group_at,
};
use super::rollup_writes::{add, recount, replace, set};
use crate::domain::access::{self, AppPattern, Name, Number};
use crate::domain::rollup::{
    Counted, CountsAs, Failure, FailureKey, Level, Outcome, Parts, RULES, Rollup, RollupKey,
};
use crate::domain::{Millis, fingerprint};
use crate::store::rollups::{
    FAILURES_OF_ONE, FailureQuery, RollupBatch, RollupQuery, RollupState, RollupStore, Seen,
    Selection, read_rollup,
};
use crate::store::{Cursor, Error, Result};

/// Rows of a long answer read at a time, so that none keeps the log of the file from being emptied.
const PIECE: usize = 2_000;

/// Conditions on the columns of a group, with their parameters.
fn selected(selection: &Selection) -> (String, Vec<Value>) {
    let mut sql = String::new();
    let mut values = Vec::new();
    let mut one_of = |column: &str, wanted: Vec<Value>| {
        if !wanted.is_empty() {
            let marks = vec!["?"; wanted.len()].join(", ");
            sql.push_str(&format!(" AND {column} IN ({marks})"));
            values.extend(wanted);
        }
    };
    one_of("app_id", selection.app_ids.iter().copied().map(Value::from).collect());
    one_of("app_name", selection.app_names.iter().cloned().map(Value::from).collect());
    one_of("sub_app_id", selection.sub_app_ids.iter().copied().map(Value::from).collect());
    one_of("user_id", selection.user_ids.iter().cloned().map(Value::from).collect());
    if let Some(patterns) = selection.scope.patterns() {
        let any: Vec<String> =
            patterns.iter().map(|pattern| in_pattern(pattern, &mut values)).collect();
        let any = if any.is_empty() { "false".to_owned() } else { any.join(" OR ") };
        sql.push_str(&format!(" AND ({any})"));
    }
    (sql, values)
}

/// The condition of one pattern of a scope.
fn in_pattern(pattern: &AppPattern, values: &mut Vec<Value>) -> String {
    let mut all = vec![match &pattern.name {
        Name::Exact(name) => {
            values.push(Value::from(name.clone()));
            "app_name = ?".to_owned()
        }
        Name::Beginning(beginning) => {
            let bytes = beginning.as_bytes().to_vec();
            let length = bytes.len();
            values.push(Value::from(bytes));
            format!("substr(CAST(app_name AS BLOB), 1, {length}) = ?")
        }
    }];
    match pattern.number {
        Number::Any => {}
        Number::None => all.push("app_id IS NULL".to_owned()),
        Number::Exact(number) => all.push(format!("app_id = {number}")),
    }
    match &pattern.part {
        access::Part::Any => {}
        access::Part::Number(number) => all.push(format!("sub_app_id = {number}")),
        access::Part::Name(name) => {
            values.push(Value::from(name.clone()));
            all.push("sub_app_name = ?".to_owned());
        }
    }
    format!("({})", all.join(" AND "))
}

fn counted_of(
    connection: &Connection,
    (execution_id, counts_as): (String, CountsAs),
) -> Result<(String, Counted)> {
    let failures = failures_of(connection, &execution_id)?;
    Ok((execution_id, Counted { counts_as, failures }))
}

/// Counted executions that a query finds.
fn counted_by(
    connection: &Connection,
    condition: &str,
    values: Vec<Value>,
) -> Result<Vec<(String, Counted)>> {
    let sql = format!("SELECT {} FROM rollup_counted WHERE {condition}", counted_columns());
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(counted_of(connection, counts_as(row)?)?);
    }
    Ok(found)
}

fn state(connection: &Connection) -> Result<RollupState> {
    let value = |name: &str| -> Result<Option<Value>> {
        let mut statement = connection.prepare_cached("SELECT value FROM meta WHERE name = ?1")?;
        Ok(statement.query_row([name], |row| row.get(0)).optional()?)
    };
    let rules = value("rollups_rules")?;
    if rules != Some(Value::Integer(RULES)) {
        return Ok(RollupState::default());
    }
    let cursor = match value("rollups_cursor")? {
        Some(Value::Blob(bytes)) => Some(Cursor(bytes)),
        _ => None,
    };
    let exact_since = match value("rollups_exact_since")? {
        Some(Value::Integer(at)) => Some(at),
        _ => None,
    };
    Ok(RollupState { cursor, exact_since })
}

/// Where in a table of rollups a long answer goes on.
struct Stretch {
    level: Level,
    selection: Selection,
    from: i64,
    until: i64,
    undated: bool,
    after: Option<(i64, String)>,
}

impl Stretch {
    /// Condition and order of the next piece; `id` is the column after the time in the key.
    fn sql(&self, id: &str) -> (String, Vec<Value>) {
        let (conditions, selected) = selected(&self.selection);
        let mut values = vec![
            Value::from(self.level.word().to_owned()),
            Value::from(self.from),
            Value::from(self.until),
        ];
        let mut sql = "level = ? AND (at >= ? AND at < ?".to_owned();
        if self.undated {
            sql.push_str(" OR at = ?");
            values.push(Value::from(NO_TIME));
        }
        sql.push(')');
        if let Some((at, last)) = &self.after {
            sql.push_str(&format!(" AND (at, {id}) > (?, ?)"));
            values.extend([Value::from(*at), Value::from(last.clone())]);
        }
        sql.push_str(&conditions);
        values.extend(selected);
        sql.push_str(&format!(" ORDER BY at, {id} LIMIT {PIECE}"));
        (sql, values)
    }
}

type Found<T> = (Vec<T>, Option<(i64, String)>);

fn rollups(
    connection: &Connection,
    stretch: &Stretch,
    durations: bool,
) -> Result<Found<(RollupKey, Rollup)>> {
    let (condition, values) = stretch.sql("group_id");
    let sql = format!("SELECT at, group_id, data, {GROUP} FROM rollups WHERE {condition}");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut found = Vec::new();
    let mut last = None;
    while let Some(row) = rows.next()? {
        let (at, id): (i64, String) = (row.get(0)?, row.get(1)?);
        let bytes = row.get_ref(2)?.as_blob().map_err(|_| corrupt(&id, "data"))?;
        let document = RawDocument::from_bytes(bytes).map_err(|_| corrupt(&id, "data"))?;
        let at_known = Some(at).filter(|at| *at != NO_TIME);
        let key = RollupKey { level: stretch.level, at: at_known, group: group_at(row, 3)? };
        found.push((key, read_rollup(document, durations)));
        last = Some((at, id));
    }
    let last = if found.len() < PIECE { None } else { last };
    Ok((found, last))
}

fn failure_counts(
    connection: &Connection,
    stretch: &Stretch,
) -> Result<Found<(FailureKey, Parts)>> {
    let (condition, values) = stretch.sql("id");
    let sql = format!(
        "SELECT at, id, outcome, step_name, fingerprint, p0, p1, p2, p3, {GROUP} \
         FROM rollup_failure_counts WHERE {condition}"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut found = Vec::new();
    let mut last = None;
    while let Some(row) = rows.next()? {
        let (at, id): (i64, String) = (row.get(0)?, row.get(1)?);
        let outcome: String = row.get(2)?;
        let key = FailureKey {
            level: stretch.level,
            at: Some(at).filter(|at| *at != NO_TIME),
            group: group_at(row, 9)?,
            outcome: Outcome::parse(&outcome).ok_or_else(|| corrupt(&id, "outcome"))?,
            step_name: row.get(3)?,
            fingerprint: row.get(4)?,
        };
        found.push((key, [row.get(5)?, row.get(6)?, row.get(7)?, row.get(8)?]));
        last = Some((at, id));
    }
    let last = if found.len() < PIECE { None } else { last };
    Ok((found, last))
}

fn seen(
    connection: &Connection,
    fingerprint: &str,
    selection: &Selection,
    samples: usize,
) -> Result<Seen> {
    let (conditions, selected) = selected(selection);
    let with = |more: Vec<Value>| {
        let mut values = vec![Value::from(fingerprint.to_owned())];
        values.extend(selected.clone());
        values.extend(more);
        params_from_iter(values)
    };
    let from = "FROM rollup_failures INDEXED BY rollup_failures_seen WHERE fingerprint = ?";
    let end = |order: &str| -> Result<Option<Millis>> {
        let sql = format!(
            "SELECT failed_at {from}{conditions} AND failed_at IS NOT NULL \
             ORDER BY failed_at {order} LIMIT 1"
        );
        let mut statement = connection.prepare_cached(&sql)?;
        Ok(statement.query_row(with(Vec::new()), |row| row.get(0)).optional()?)
    };
    let sql = format!(
        "SELECT execution_id, step_id, step_name, failed_at, fingerprint, message {from}{conditions} \
         ORDER BY failed_at DESC LIMIT ?"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let most = Value::from(i64::try_from(samples).unwrap_or(i64::MAX));
    let rows = statement
        .query_map(with(vec![most]), |row| Ok((row.get::<_, String>(0)?, failure_at(row, 1)?)))?;
    Ok(Seen {
        fingerprint: fingerprint.to_owned(),
        first: end("ASC")?,
        last: end("DESC")?,
        samples: rows.collect::<rusqlite::Result<_>>()?,
    })
}

fn failed_steps(connection: &Connection, execution_id: &str) -> Result<Vec<Failure>> {
    let Some(parent) = super::read::parent(connection, execution_id)? else {
        return Ok(Vec::new());
    };
    let sql = format!(
        "SELECT {} FROM steps INDEXED BY steps_failed \
         WHERE execution = ?1 AND status = 'failed' ORDER BY step_id LIMIT ?2",
        super::rows::STEP_COLUMNS.join(", ")
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let most = FAILURES_OF_ONE as i64 - 1;
    let mut rows = statement.query(params![parent.row, most])?;
    let mut failures = Vec::new();
    while let Some(row) = rows.next()? {
        failures.push(fingerprint::failure_of_step(&super::rows::step_of(
            row,
            execution_id,
            false,
        )?));
    }
    Ok(failures)
}

#[async_trait]
impl RollupStore for SqliteStore {
    async fn state(&self) -> Result<RollupState> {
        self.readers.run(state).await
    }

    async fn counted(&self, execution_ids: &[String]) -> Result<HashMap<String, Counted>> {
        let ids = execution_ids.to_vec();
        self.readers
            .run(move |connection| {
                let mut found = HashMap::new();
                for id in ids {
                    let by_id = vec![Value::from(id)];
                    found.extend(counted_by(connection, "execution_id = ?", by_id)?);
                }
                Ok(found)
            })
            .await
    }

    async fn counted_after(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Counted)>> {
        let values = vec![
            Value::from(after.unwrap_or_default().to_owned()),
            Value::from(i64::try_from(limit).unwrap_or(i64::MAX)),
        ];
        self.readers
            .run(move |connection| {
                counted_by(connection, "execution_id > ? ORDER BY execution_id LIMIT ?", values)
            })
            .await
    }

    async fn counted_on(
        &self,
        day: Option<i64>,
        visit: &mut (dyn FnMut(String, Counted) + Send),
    ) -> Result<()> {
        let day = day.unwrap_or(NO_TIME);
        let mut after = String::new();
        loop {
            let last = after.clone();
            let found = self
                .readers
                .run(move |connection| {
                    let condition =
                        format!("day = ? AND execution_id > ? ORDER BY execution_id LIMIT {PIECE}");
                    let values = vec![Value::from(day), Value::from(last)];
                    counted_by(connection, &condition, values)
                })
                .await?;
            match found.last() {
                Some((id, _)) => after.clone_from(id),
                None => return Ok(()),
            }
            found.into_iter().for_each(|(id, counted)| visit(id, counted));
        }
    }

    async fn day_after(&self, day: Option<i64>) -> Result<Option<i64>> {
        let after = day.unwrap_or(NO_TIME);
        self.readers
            .run(move |connection| {
                let mut next = None;
                for sql in [
                    "SELECT min(day) FROM rollup_counted WHERE day > ?1",
                    "SELECT min(at) FROM rollups WHERE level = 'day' AND at > ?1",
                    "SELECT min(at) FROM rollups WHERE level = 'user_day' AND at > ?1",
                    "SELECT min(at) FROM rollup_failure_counts WHERE level = 'day' AND at > ?1",
                ] {
                    let found: Option<i64> =
                        connection.prepare_cached(sql)?.query_row([after], |row| row.get(0))?;
                    next = next.into_iter().chain(found).min();
                }
                for sql in [
                    "SELECT min(at) FROM rollups WHERE level = 'hour' AND at >= ?1",
                    "SELECT min(at) FROM rollup_failure_counts WHERE level = 'hour' AND at >= ?1",
                ] {
                    let from = after.saturating_add(1).saturating_mul(24);
                    let found: Option<i64> = connection
                        .prepare_cached(sql)?
                        .query_row([from.max(NO_TIME + 1)], |row| row.get(0))?;
                    let found = found.map(|hour| hour.div_euclid(24));
                    next = next.into_iter().chain(found).min();
                }
                Ok(next)
            })
            .await
    }

    async fn failed_steps(
        &self,
        execution_ids: &[String],
    ) -> Result<HashMap<String, Vec<Failure>>> {
        let ids = execution_ids.to_vec();
        self.readers
            .run(move |connection| {
                let mut found = HashMap::new();
                for id in ids {
                    let failures = failed_steps(connection, &id)?;
                    if !failures.is_empty() {
                        found.insert(id, failures);
                    }
                }
                Ok(found)
            })
            .await
    }

    async fn with_failed_steps(
        &self,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<(Vec<String>, Option<Vec<u8>>)> {
        let after = match after {
            None => i64::MIN,
            Some(bytes) => {
                bytes.try_into().map(i64::from_be_bytes).map_err(|_| Error::BadCursor)?
            }
        };
        let most = i64::try_from(limit).unwrap_or(i64::MAX);
        self.readers
            .run(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT DISTINCT s.execution, e.execution_id FROM steps s INDEXED BY steps_failed \
                     JOIN executions e ON e.id = s.execution \
                     WHERE s.status = 'failed' AND s.execution > ?1 ORDER BY s.execution LIMIT ?2",
                )?;
                let mut rows = statement.query([after, most])?;
                let (mut ids, mut last) = (Vec::new(), None);
                while let Some(row) = rows.next()? {
                    last = Some(row.get::<_, i64>(0)?.to_be_bytes().to_vec());
                    ids.push(row.get(1)?);
                }
                let last = if ids.len() < limit { None } else { last };
                Ok((ids, last))
            })
            .await
    }

    async fn commit(&self, _holder: &str, batch: RollupBatch) -> Result<bool> {
        self.write(move |writing| {
            for changed in &batch.recounts {
                recount(writing.connection, changed)?;
            }
            add(writing.connection, &batch.deltas)?;
            replace(writing.connection, &batch)?;
            if let Some(cursor) = batch.cursor {
                set(writing.connection, "rollups_cursor", Value::from(cursor.0))?;
                set(writing.connection, "rollups_rules", Value::from(RULES))?;
            }
            if let Some(at) = batch.exact_since {
                set(writing.connection, "rollups_exact_since", Value::from(at))?;
            }
            Ok(true)
        })
        .await
    }

    async fn rollups(
        &self,
        query: &RollupQuery,
        visit: &mut (dyn FnMut(RollupKey, Rollup) + Send),
    ) -> Result<()> {
        let mut after = None;
        loop {
            let stretch = Stretch {
                level: query.level,
                selection: query.selection.clone(),
                from: query.from,
                until: query.until,
                undated: query.undated,
                after,
            };
            let durations = query.durations;
            let piece = move |connection: &Connection| rollups(connection, &stretch, durations);
            let (found, last) = self.readers.run(piece).await?;
            found.into_iter().for_each(|(key, rollup)| visit(key, rollup));
            if last.is_none() {
                return Ok(());
            }
            after = last;
        }
    }

    async fn failures(
        &self,
        query: &FailureQuery,
        visit: &mut (dyn FnMut(FailureKey, Parts) + Send),
    ) -> Result<()> {
        let mut after = None;
        loop {
            let stretch = Stretch {
                level: query.level,
                selection: Selection { user_ids: Vec::new(), ..query.selection.clone() },
                from: query.from,
                until: query.until,
                undated: query.undated,
                after,
            };
            let piece = move |connection: &Connection| failure_counts(connection, &stretch);
            let (found, last) = self.readers.run(piece).await?;
            found.into_iter().for_each(|(key, parts)| visit(key, parts));
            if last.is_none() {
                return Ok(());
            }
            after = last;
        }
    }

    async fn seen(
        &self,
        fingerprints: &[String],
        selection: &Selection,
        samples: usize,
    ) -> Result<Vec<Seen>> {
        let (fingerprints, selection) = (fingerprints.to_vec(), selection.clone());
        self.readers
            .run(move |connection| {
                let one = |fingerprint: &String| seen(connection, fingerprint, &selection, samples);
                fingerprints.iter().map(one).collect()
            })
            .await
    }
}
