//! Configurations in their table. A time that is not known is stored as the smallest integer, so that such
//! records are the oldest of every list.

use async_trait::async_trait;
use bson::Document;
use rusqlite::types::Value;
use rusqlite::{Connection, Row, params, params_from_iter};

use super::SqliteStore;
use crate::domain::access::AppScope;
use crate::domain::configuration::{AppRef, ConfigurationQuery, Part, Place, Scope};
use crate::domain::mirrored::Verdict;
use crate::domain::query::Page;
use crate::domain::{Configuration, Millis, Refusal};
use crate::store::configurations::{
    ConfigurationStore, Listed, MirroredBefore, Stored, configuration_conflict, is_listed,
    mirrored_configuration,
};
use crate::store::{Error, Result};

/// Stored for a time that is not known.
const NO_TIME: i64 = i64::MIN;

/// The row comes first, the document last.
pub(super) const COLUMNS: &str = "id, app_id, app_name, sub_app_id, sub_app_name, version, active, created_at, \
     created_by, configuration, published_active, mirrored_position, mirrored_active";

/// A record with its row.
struct Found {
    row: i64,
    record: Configuration,
    /// Whether it was made active by who stored it.
    published_active: bool,
    mirrored: MirroredBefore,
}

impl Found {
    fn place(&self) -> Place {
        let created_at = self.record.created_at.unwrap_or(NO_TIME);
        let mut bytes = created_at.to_be_bytes().to_vec();
        bytes.extend(self.row.to_be_bytes());
        Place(bytes)
    }
}

fn created_at_and_row(place: &Place) -> Option<(i64, i64)> {
    let (created_at, row) = place.0.split_at_checked(8)?;
    let number = |bytes: &[u8]| Some(i64::from_be_bytes(bytes.try_into().ok()?));
    Some((number(created_at)?, number(row)?))
}

fn found(row: &Row<'_>) -> Result<Found> {
    let id: i64 = row.get(0)?;
    let document =
        row.get_ref(9)?.as_blob().ok().and_then(|bytes| Document::from_reader(bytes).ok());
    let corrupt = || Error::Corrupt {
        collection: "configurations",
        id: id.to_string(),
        field: "configuration",
    };
    let record = Configuration {
        app_id: row.get(1)?,
        app_name: row.get(2)?,
        sub_app_id: row.get(3)?,
        sub_app_name: row.get(4)?,
        version: row.get(5)?,
        active: row.get(6)?,
        created_at: Some(row.get(7)?).filter(|at: &Millis| *at != NO_TIME),
        created_by: row.get(8)?,
        configuration: document.ok_or_else(corrupt)?,
    };
    let mirrored = MirroredBefore { position: row.get(11)?, active: row.get(12)? };
    Ok(Found { row: id, record, published_active: row.get(10)?, mirrored })
}

/// The record in a row of `COLUMNS`.
pub(super) fn record_of(row: &Row<'_>) -> Result<Configuration> {
    found(row).map(|found| found.record)
}

/// Conditions for SQL, with their parameters.
struct Conditions {
    sql: Vec<&'static str>,
    values: Vec<Value>,
}

impl Conditions {
    fn new() -> Self {
        Conditions { sql: Vec::new(), values: Vec::new() }
    }

    fn and(mut self, sql: &'static str, values: impl IntoIterator<Item = Value>) -> Self {
        self.sql.push(sql);
        self.values.extend(values);
        self
    }

    fn in_scope(self, scope: &Scope) -> Self {
        match scope {
            Scope::Numbers { app_id, sub_app_id } => {
                let numbers = self.and("app_id = ?", [Value::from(*app_id)]);
                match sub_app_id {
                    Some(id) => numbers.and("sub_app_id = ?", [Value::from(*id)]),
                    None => numbers.and("sub_app_id IS NULL", []),
                }
            }
            Scope::Names { app_name, sub_app_name } => {
                let names =
                    self.and("app_id IS NULL AND app_name = ?", [Value::from(app_name.clone())]);
                match sub_app_name {
                    Some(name) => names.and("sub_app_name = ?", [Value::from(name.clone())]),
                    None => names.and("sub_app_name IS NULL", []),
                }
            }
        }
    }

    fn in_list_of(self, app: &AppRef) -> Self {
        match (app.app_id, &app.app_name) {
            (Some(app_id), _) => self.and("app_id = ?", [Value::from(app_id)]),
            (None, Some(app_name)) => {
                self.and("app_id IS NULL AND app_name = ?", [Value::from(app_name.clone())])
            }
            (None, None) => self,
        }
    }

    fn text(&self) -> String {
        match self.sql.is_empty() {
            true => "true".to_owned(),
            false => self.sql.join(" AND "),
        }
    }
}

fn one(connection: &Connection, conditions: &Conditions) -> Result<Option<Found>> {
    let sql = format!("SELECT {COLUMNS} FROM configurations WHERE {}", conditions.text());
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(&conditions.values))?;
    rows.next()?.map(found).transpose()
}

fn of_version(connection: &Connection, scope: &Scope, version: &str) -> Result<Option<Found>> {
    let conditions =
        Conditions::new().in_scope(scope).and("version = ?", [Value::from(version.to_owned())]);
    one(connection, &conditions)
}

/// Makes this row the active one of its scope.
fn activate(connection: &Connection, scope: &Scope, row: i64) -> Result<()> {
    let others = Conditions::new().in_scope(scope).and("active = 1 AND id <> ?", [row.into()]);
    let sql = format!("UPDATE configurations SET active = 0 WHERE {}", others.text());
    connection.prepare_cached(&sql)?.execute(params_from_iter(&others.values))?;
    connection
        .prepare_cached("UPDATE configurations SET active = 1 WHERE id = ?")?
        .execute([row])?;
    Ok(())
}

/// Notes that who stored it made it active: doing so again changes nothing.
fn publish_active(connection: &Connection, row: i64) -> Result<()> {
    connection
        .prepare_cached("UPDATE configurations SET published_active = 1 WHERE id = ?")?
        .execute([row])?;
    Ok(())
}

/// A refusal is an answer: nothing was written, so nothing has to be rolled back.
type Answer<T> = std::result::Result<T, Refusal>;

fn put(connection: &Connection, at: Millis, record: Configuration) -> Result<Answer<Stored>> {
    let scope = record.scope();
    if let Some(Found { row, record: mut stored, published_active, .. }) =
        of_version(connection, &scope, &record.version)?
    {
        if !stored.same_content(&record) {
            return Ok(Err(Refusal::ConfigurationExists {
                scope: scope.to_string(),
                version: record.version,
            }));
        }
        if record.active && !published_active {
            activate(connection, &scope, row)?;
            publish_active(connection, row)?;
            stored.active = true;
        }
        return Ok(Ok(Stored { record: stored, created: false }));
    }
    let document = record.configuration.to_vec().map_err(Error::failed)?;
    let row = connection
        .prepare_cached(
            "INSERT INTO configurations (stored_at, app_id, app_name, sub_app_id, sub_app_name, version, \
                 active, created_at, created_by, configuration) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7, ?8, ?9)",
        )?
        .insert(params![
            at,
            record.app_id,
            record.app_name,
            record.sub_app_id,
            record.sub_app_name,
            record.version,
            record.created_at.unwrap_or(NO_TIME),
            record.created_by,
            document,
        ])?;
    if record.active {
        activate(connection, &scope, row)?;
        publish_active(connection, row)?;
    }
    Ok(Ok(Stored { record, created: true }))
}

/// A version that a mirror brings.
fn mirror(
    connection: &Connection,
    at: Millis,
    record: Configuration,
    position: i64,
) -> Result<Answer<Stored>> {
    let scope = record.scope();
    let there = of_version(connection, &scope, &record.version)?;
    let stored = match there {
        None => {
            let active = record.active;
            let stored = match put(connection, at, record)? {
                Ok(stored) => stored,
                Err(refusal) => return Ok(Err(refusal)),
            };
            let found = of_version(connection, &scope, &stored.record.version)?;
            if let Some(Found { row, .. }) = found {
                note_mirrored(connection, &scope, row, position, active)?;
            }
            return Ok(Ok(stored));
        }
        Some(there) => there,
    };
    match mirrored_configuration(&stored.record, stored.mirrored, &record, position)? {
        Verdict::Late => return Ok(Ok(Stored { record: stored.record, created: false })),
        Verdict::Replaces => {}
        Verdict::Conflict => return Ok(Err(configuration_conflict(&record))),
    }
    let document = record.configuration.to_vec().map_err(Error::failed)?;
    let is_switch = stored.mirrored.is_switch(&record);
    let active = if is_switch { record.active } else { stored.record.active };
    connection
        .prepare_cached(
            "UPDATE configurations SET app_name = ?2, sub_app_name = ?3, created_at = ?4, created_by = ?5, \
                 configuration = ?6, active = ?7 WHERE id = ?1",
        )?
        .execute(params![
            stored.row,
            record.app_name,
            record.sub_app_name,
            record.created_at.unwrap_or(NO_TIME),
            record.created_by,
            document,
            active && !is_switch,
        ])?;
    if is_switch {
        if record.active {
            activate(connection, &scope, stored.row)?;
        }
        note_mirrored(connection, &scope, stored.row, position, record.active)?;
    } else {
        let sql = "UPDATE configurations SET mirrored_position = ?2 WHERE id = ?1";
        connection.prepare_cached(sql)?.execute(params![stored.row, position])?;
    }
    Ok(Ok(Stored { record: Configuration { active, ..record }, created: false }))
}

/// Notes what the source says of a version.
fn note_mirrored(
    connection: &Connection,
    scope: &Scope,
    row: i64,
    position: i64,
    active: bool,
) -> Result<()> {
    let sql =
        "UPDATE configurations SET mirrored_position = ?2, mirrored_active = ?3 WHERE id = ?1";
    connection.prepare_cached(sql)?.execute(params![row, position, active])?;
    if active {
        let others =
            Conditions::new().in_scope(scope).and("mirrored_active = 1 AND id <> ?", [row.into()]);
        let sql =
            format!("UPDATE configurations SET mirrored_active = NULL WHERE {}", others.text());
        connection.prepare_cached(&sql)?.execute(params_from_iter(&others.values))?;
    }
    Ok(())
}

fn page(
    connection: &Connection,
    query: &ConfigurationQuery,
    access: &AppScope,
) -> Result<Page<Listed, Place>> {
    let mut conditions = Conditions::new().in_list_of(&query.app);
    if let Some(after) = &query.after {
        let (created_at, row) = created_at_and_row(after).ok_or(Error::BadCursor)?;
        conditions = conditions.and("(created_at, id) < (?, ?)", [created_at.into(), row.into()]);
    }
    let sql = format!(
        "SELECT {COLUMNS} FROM configurations WHERE {} ORDER BY created_at DESC, id DESC",
        conditions.text()
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(&conditions.values))?;
    let mut page = Page { records: Vec::new(), next: None };
    let (mut examined, mut bytes) = (0, 0);
    let mut last = None;
    while let Some(row) = rows.next()? {
        let found = found(row)?;
        let weight = found.record.weight();
        let full = page.records.len() == query.limit
            || (bytes + weight > query.bytes && !page.records.is_empty());
        let listed = is_listed(query, access, &found.record);
        if examined == query.examine || (full && listed) {
            page.next = last;
            break;
        }
        examined += 1;
        if full {
            continue;
        }
        let place = found.place();
        last = Some(place.clone());
        if listed {
            bytes += weight;
            page.records.push(Listed { record: found.record, place });
        }
    }
    Ok(page)
}

#[async_trait]
impl ConfigurationStore for SqliteStore {
    async fn put_configuration(&self, record: Configuration) -> Result<Stored> {
        let answer = self.write(move |batch| put(batch.connection, batch.at, record)).await?;
        answer.map_err(Error::Refused)
    }

    async fn mirror_configuration(&self, record: Configuration, position: i64) -> Result<Stored> {
        let answer =
            self.write(move |batch| mirror(batch.connection, batch.at, record, position)).await?;
        answer.map_err(Error::Refused)
    }

    async fn activate_configuration(&self, scope: &Scope, version: &str) -> Result<Configuration> {
        let (scope, version) = (scope.clone(), version.to_owned());
        let answer = self
            .write(move |batch| {
                let Some(Found { row, mut record, .. }) =
                    of_version(batch.connection, &scope, &version)?
                else {
                    return Ok(Err(Refusal::ConfigurationNotFound {
                        scope: scope.to_string(),
                        version: Some(version),
                    }));
                };
                if !record.active {
                    activate(batch.connection, &scope, row)?;
                    record.active = true;
                }
                Ok(Ok(record))
            })
            .await?;
        answer.map_err(Error::Refused)
    }

    async fn configuration(
        &self,
        scope: &Scope,
        version: Option<&str>,
    ) -> Result<Option<Configuration>> {
        let (scope, version) = (scope.clone(), version.map(str::to_owned));
        self.readers
            .run(move |connection| {
                let found = match &version {
                    Some(version) => of_version(connection, &scope, version)?,
                    None => {
                        one(connection, &Conditions::new().in_scope(&scope).and("active = 1", []))?
                    }
                };
                Ok(found.map(|found| found.record))
            })
            .await
    }

    async fn scopes_named(&self, app_name: &str, limit: usize) -> Result<Vec<Part>> {
        let (app_name, limit) = (app_name.to_owned(), i64::try_from(limit).unwrap_or(i64::MAX));
        self.readers
            .run(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT DISTINCT app_id, sub_app_id, sub_app_name FROM configurations \
                     WHERE app_name = ?1 LIMIT ?2",
                )?;
                let parts = statement.query_map(params![app_name, limit], |row| {
                    Ok(Part {
                        app_id: row.get(0)?,
                        sub_app_id: row.get(1)?,
                        sub_app_name: row.get(2)?,
                    })
                })?;
                Ok(parts.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    async fn configurations(
        &self,
        query: &ConfigurationQuery,
        access: &AppScope,
    ) -> Result<Page<Listed, Place>> {
        let (query, access) = (query.clone(), access.clone());
        self.readers.run(move |connection| page(connection, &query, &access)).await
    }
}
