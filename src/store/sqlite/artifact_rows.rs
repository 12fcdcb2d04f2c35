//! Rows of the table `artifacts` and records. A row that is marked as deleted is no artifact any more. Knows no
//! thread and no queue.

use bson::{Document, RawDocument};
use rusqlite::types::{FromSql, ValueRef};
use rusqlite::{Connection, Row, params};

use crate::domain::query::{ArtifactKey, ArtifactQuery, Page};
use crate::domain::{Artifact, Millis, Origin};
use crate::store::{Error, Result};

/// The columns of an artifact, in the order in which they are read and written.
pub const COLUMNS: &str = "artifact_id, execution_id, step_id, artifact_type, artifact_name, mime_type, size_bytes, \
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
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)"
    );
    connection.prepare_cached(&sql)?.execute(params![
        artifact.artifact_id,
        artifact.execution_id,
        artifact.step_id,
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
