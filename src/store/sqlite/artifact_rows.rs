//! Rows of the table `artifacts` and records. A row that is marked as deleted is no artifact any more. Knows no
//! thread and no queue.

use bson::{Document, RawDocument};
use rusqlite::types::{FromSql, ValueRef};
use rusqlite::{Connection, Row, params};

use crate::domain::query::{ArtifactKey, ArtifactQuery, Page};
use crate::domain::{Artifact, Millis, Origin};
use crate::store::{Error, Result};

/// The columns of an artifact, in the order in which they are read and written.
pub const COLUMNS: &str = "artifact_id, execution_id, step_id, step_key, artifact_type, artifact_name, mime_type, size_bytes, \
    storage_type, storage_path, metadata, created_at, sha256, record_only, create_digest";

/// Reads the columns of one row from left to right.
struct Columns<'a, 'r> {
    row: &'a Row<'r>,
    next: usize,
}

impl Columns<'_, '_> {
    fn corrupt(&self, index: usize) -> Error {
        let id = match self.row.get_ref(0) {
            Ok(ValueRef::Text(id)) => String::from_utf8_lossy(id).into_owned(),
            _ => String::new(),
        };
        let field = COLUMNS.split(',').nth(index).map_or("", str::trim);
        Error::Corrupt { collection: "artifacts", id, field }
    }

    fn get<T: FromSql>(&mut self) -> Result<T> {
        let index = self.next;
        self.next += 1;
        self.row.get(index).map_err(|_| self.corrupt(index))
    }

    /// The column as BSON; NULL is an empty document.
    fn document(&mut self) -> Result<Document> {
        let index = self.next;
        self.next += 1;
        let read = || match self.row.get_ref(index).ok()? {
            ValueRef::Null => Some(Document::new()),
            ValueRef::Blob(bytes) => RawDocument::from_bytes(bytes).ok()?.try_into().ok(),
            _ => None,
        };
        read().ok_or_else(|| self.corrupt(index))
    }
}

/// The artifact in a row of `COLUMNS`.
pub fn artifact_of(row: &Row<'_>) -> Result<Artifact> {
    let mut columns = Columns { row, next: 0 };
    let mut record = Artifact {
        artifact_id: columns.get()?,
        execution_id: columns.get()?,
        step_id: columns.get()?,
        step_key: columns.get()?,
        artifact_type: columns.get()?,
        artifact_name: columns.get()?,
        mime_type: columns.get()?,
        size_bytes: columns.get()?,
        storage_type: columns.get()?,
        storage_path: columns.get()?,
        metadata: columns.document()?,
        created_at: columns.get()?,
        sha256: columns.get()?,
        origin: Origin::Foreign,
    };
    let (record_only, digest): (Option<bool>, Option<String>) = (columns.get()?, columns.get()?);
    record.origin = Origin::of(&record, record_only, digest.as_deref());
    Ok(record)
}

/// Adds an artifact that this digest tells from others.
pub fn insert(
    connection: &Connection,
    artifact: &Artifact,
    stored_at: Millis,
    digest: &str,
) -> Result<()> {
    let metadata = match artifact.metadata.is_empty() {
        true => None,
        false => Some(artifact.metadata.to_vec().map_err(Error::failed)?),
    };
    let sql = format!(
        "INSERT INTO artifacts ({COLUMNS}, stored_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)"
    );
    connection.prepare_cached(&sql)?.execute(params![
        artifact.artifact_id,
        artifact.execution_id,
        artifact.step_id,
        artifact.step_key,
        artifact.artifact_type,
        artifact.artifact_name,
        artifact.mime_type,
        artifact.size_bytes,
        artifact.storage_type,
        artifact.storage_path,
        metadata,
        artifact.created_at,
        artifact.sha256,
        artifact.origin == Origin::Imported,
        digest,
        stored_at,
    ])?;
    Ok(())
}

/// Writes a record over the one of its id and execution.
pub fn replace(connection: &Connection, artifact: &Artifact, digest: &str) -> Result<()> {
    let metadata = match artifact.metadata.is_empty() {
        true => None,
        false => Some(artifact.metadata.to_vec().map_err(Error::failed)?),
    };
    let sql = "UPDATE artifacts SET step_id = ?2, step_key = ?3, artifact_type = ?4, artifact_name = ?5, mime_type = ?6, \
               size_bytes = ?7, storage_type = ?8, storage_path = ?9, metadata = ?10, created_at = ?11, sha256 = ?12, \
               record_only = ?13, create_digest = ?14 WHERE artifact_id = ?1";
    connection.prepare_cached(sql)?.execute(params![
        artifact.artifact_id,
        artifact.step_id,
        artifact.step_key,
        artifact.artifact_type,
        artifact.artifact_name,
        artifact.mime_type,
        artifact.size_bytes,
        artifact.storage_type,
        artifact.storage_path,
        metadata,
        artifact.created_at,
        artifact.sha256,
        artifact.origin == Origin::Imported,
        digest,
    ])?;
    Ok(())
}

/// The place that the latest mirrored write of it had.
pub fn mirrored_position(connection: &Connection, artifact_id: &str) -> Result<Option<i64>> {
    let sql = "SELECT mirrored_position FROM artifacts WHERE artifact_id = ?1";
    Ok(connection.prepare_cached(sql)?.query_row([artifact_id], |row| row.get(0))?)
}

pub fn note_mirrored(connection: &Connection, artifact_id: &str, position: i64) -> Result<()> {
    let sql = "UPDATE artifacts SET mirrored_position = ?2 WHERE artifact_id = ?1";
    connection.prepare_cached(sql)?.execute(params![artifact_id, position])?;
    Ok(())
}

/// The artifact of this id.
pub fn by_id(connection: &Connection, artifact_id: &str) -> Result<Option<Artifact>> {
    let sql =
        format!("SELECT {COLUMNS} FROM artifacts WHERE artifact_id = ?1 AND deleted_at IS NULL");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([artifact_id])?;
    rows.next()?.map(artifact_of).transpose()
}

/// One page of the artifacts of an execution by id, which is the order in which they were stored.
pub fn page(connection: &Connection, query: &ArtifactQuery) -> Result<Page<Artifact, ArtifactKey>> {
    let after = match &query.after {
        None => String::new(),
        Some(key) => String::from_utf8(key.0.clone()).map_err(|_| Error::BadCursor)?,
    };
    let sql = format!(
        "SELECT {COLUMNS} FROM artifacts INDEXED BY artifacts_execution \
         WHERE execution_id = ?1 AND artifact_id > ?2 AND deleted_at IS NULL ORDER BY artifact_id"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params![query.execution_id, after])?;
    let mut page: Page<Artifact, ArtifactKey> = Page { records: Vec::new(), next: None };
    while let Some(row) = rows.next()? {
        if page.records.len() >= query.limit.max(1) {
            let last = page.records.last();
            page.next = last.map(|last| ArtifactKey(last.artifact_id.clone().into_bytes()));
            break;
        }
        page.records.push(artifact_of(row)?);
    }
    Ok(page)
}
