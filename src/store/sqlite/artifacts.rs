//! Artifacts and uploads as rows. The record is checked and stored in one transaction of the writer, so nothing
//! comes between its execution being there and the record being stored.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::artifact_rows::{self, COLUMNS, artifact_of};
use super::batch::Batch;
use super::changes::Entry;
use super::{SqliteStore, read};
use crate::domain::mirrored::Verdict;
use crate::domain::query::Page;
use crate::domain::{Artifact, ArtifactQuery, Millis, Origin, Refusal};
use crate::store::artifacts::{
    ArtifactStore, Created, Upload, Usage, artifact_conflict, mirrored_artifact,
};
use crate::store::{ChangeKind, RecordKey, Result};

const UPLOAD_COLUMNS: &str = "upload_id, digest, artifact_id, storage_type, storage_path, turn, \
    received_bytes, hash_state, storage_state, finished, updated_at, execution_id";

fn upload_of(row: &Row<'_>) -> rusqlite::Result<Upload> {
    Ok(Upload {
        upload_id: row.get(0)?,
        digest: row.get(1)?,
        artifact_id: row.get(2)?,
        storage_type: row.get(3)?,
        storage_path: row.get(4)?,
        turn: row.get(5)?,
        received_bytes: u64::try_from(row.get::<_, i64>(6)?).unwrap_or(0),
        hash_state: row.get(7)?,
        storage_state: row.get(8)?,
        finished: row.get(9)?,
        updated_at: row.get(10)?,
        execution_id: row.get(11)?,
    })
}

fn find(connection: &Connection, condition: &str, value: &str) -> Result<Option<Artifact>> {
    let sql = format!("SELECT {COLUMNS} FROM artifacts WHERE {condition}");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([value])?;
    rows.next()?.map(artifact_of).transpose()
}

fn by_digest(connection: &Connection, digest: &str) -> Result<Option<Artifact>> {
    find(connection, "create_digest = ?1 AND deleted_at IS NULL", digest)
}

fn upload(connection: &Connection, upload_id: &str) -> Result<Option<Upload>> {
    let sql = format!("SELECT {UPLOAD_COLUMNS} FROM artifact_uploads WHERE upload_id = ?1");
    let mut statement = connection.prepare_cached(&sql)?;
    Ok(statement.query_row([upload_id], upload_of).optional()?)
}

fn usage(connection: &Connection, execution_id: &str) -> Result<Usage> {
    let mut statement = connection.prepare_cached(
        "SELECT count(*), coalesce(sum(size_bytes) FILTER (WHERE sha256 IS NOT NULL), 0) FROM artifacts \
         WHERE execution_id = ?1 AND deleted_at IS NULL",
    )?;
    Ok(statement.query_row([execution_id], |row| {
        let (artifacts, bytes): (i64, i64) = (row.get(0)?, row.get(1)?);
        Ok(Usage { artifacts: artifacts.max(0) as u64, bytes: bytes.max(0) as u64 })
    })?)
}

fn create(batch: &mut Batch<'_>, record: &Artifact, digest: &str) -> Result<Created> {
    if let Some(found) = by_digest(batch.connection, digest)? {
        return Ok(Created::Found(found));
    }
    let taken = batch
        .connection
        .prepare_cached("SELECT 1 FROM artifacts WHERE artifact_id = ?1")?
        .exists([&record.artifact_id])?;
    if taken {
        let artifact_id = record.artifact_id.clone();
        return Err(Refusal::ArtifactExists { artifact_id }.into());
    }
    if !record.execution_id.is_empty() {
        if read::parent(batch.connection, &record.execution_id)?.is_none() {
            let execution_id = record.execution_id.clone();
            return Err(Refusal::ExecutionNotFound { execution_id }.into());
        }
        let usage = usage(batch.connection, &record.execution_id)?;
        usage.admits(record.uploaded_bytes(), batch.limits)?;
    }
    artifact_rows::insert(batch.connection, record, batch.at, digest)?;
    let key = RecordKey::artifact(&record.execution_id, &record.artifact_id);
    batch.log(Entry { kind: ChangeKind::Created, ..Entry::of_delete(&key, 0) })?;
    Ok(Created::New(record.clone()))
}

/// A record that a mirror brings.
fn mirror(
    batch: &mut Batch<'_>,
    record: &Artifact,
    digest: &str,
    position: i64,
) -> Result<Created> {
    let Some(stored) = artifact_rows::by_id(batch.connection, &record.artifact_id)? else {
        let created = create(batch, record, digest)?;
        if let Created::New(record) = &created {
            artifact_rows::note_mirrored(batch.connection, &record.artifact_id, position)?;
        }
        return Ok(created);
    };
    let before = artifact_rows::mirrored_position(batch.connection, &record.artifact_id)?;
    match mirrored_artifact(&stored, before, record, position)? {
        Verdict::Late => return Ok(Created::Found(stored)),
        Verdict::Replaces => {}
        Verdict::Conflict => return Err(artifact_conflict(record)),
    }
    artifact_rows::note_mirrored(batch.connection, &record.artifact_id, position)?;
    if stored != *record {
        artifact_rows::replace(batch.connection, record, digest)?;
        let key = RecordKey::artifact(&record.execution_id, &record.artifact_id);
        batch.log(Entry { kind: ChangeKind::Updated, ..Entry::of_delete(&key, 0) })?;
    }
    Ok(Created::Found(record.clone()))
}

fn mark(batch: &mut Batch<'_>, artifact_id: &str, at: Millis) -> Result<bool> {
    let execution_id: Option<String> = batch
        .connection
        .prepare_cached(
            "UPDATE artifacts SET deleted_at = ?2 \
             WHERE artifact_id = ?1 AND deleted_at IS NULL RETURNING execution_id",
        )?
        .query_row(params![artifact_id, at], |row| row.get(0))
        .optional()?;
    let Some(execution_id) = execution_id else { return Ok(false) };
    let key = RecordKey::artifact(execution_id, artifact_id);
    batch.log(Entry::of_delete(&key, batch.at.saturating_mul(1000).max(1)))?;
    Ok(true)
}

fn page(connection: &Connection, query: &ArtifactQuery) -> Result<Page<Artifact, String>> {
    let sql = format!(
        "SELECT {COLUMNS}, deleted_at FROM artifacts WHERE execution_id = ?1 AND artifact_id < ?2 \
         ORDER BY artifact_id DESC LIMIT ?3"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    // "g" is greater than every hex digit.
    let after = query.after.as_deref().unwrap_or("g");
    let limit = i64::try_from(query.examine.saturating_add(1)).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![query.execution_id, after, limit])?;
    let mut page = Page { records: Vec::new(), next: None };
    let (mut examined, mut last) = (0, None);
    while let Some(row) = rows.next()? {
        if page.records.len() == query.limit || examined == query.examine {
            page.next = last;
            break;
        }
        examined += 1;
        let record = artifact_of(row)?;
        last = Some(record.artifact_id.clone());
        let deleted_at: Option<Millis> = row.get(15)?;
        if deleted_at.is_none() && query.admits(&record) {
            page.records.push(record);
        }
    }
    Ok(page)
}

fn put_upload(connection: &Connection, verb: &str, upload: &Upload) -> Result<()> {
    let sql = format!(
        "{verb} INTO artifact_uploads ({UPLOAD_COLUMNS}) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"
    );
    connection.prepare_cached(&sql)?.execute(params![
        upload.upload_id,
        upload.digest,
        upload.artifact_id,
        upload.storage_type,
        upload.storage_path,
        upload.turn,
        i64::try_from(upload.received_bytes).unwrap_or(i64::MAX),
        upload.hash_state,
        upload.storage_state,
        upload.finished,
        upload.updated_at,
        upload.execution_id,
    ])?;
    Ok(())
}

#[async_trait]
impl ArtifactStore for SqliteStore {
    async fn create_artifact(&self, record: &Artifact, digest: &str) -> Result<Created> {
        let (record, digest) = (record.clone(), digest.to_owned());
        self.write(move |batch| create(batch, &record, &digest)).await
    }

    async fn mirror_artifact(
        &self,
        record: &Artifact,
        digest: &str,
        position: i64,
    ) -> Result<Created> {
        let (record, digest) = (record.clone(), digest.to_owned());
        self.write(move |batch| mirror(batch, &record, &digest, position)).await
    }

    async fn artifact_by_digest(&self, _: &str, digest: &str) -> Result<Option<Artifact>> {
        let digest = digest.to_owned();
        self.readers.run(move |connection| by_digest(connection, &digest)).await
    }

    async fn artifact(&self, artifact_id: &str) -> Result<Option<Artifact>> {
        let id = artifact_id.to_owned();
        self.readers
            .run(move |connection| find(connection, "artifact_id = ?1 AND deleted_at IS NULL", &id))
            .await
    }

    async fn artifacts(&self, query: &ArtifactQuery) -> Result<Page<Artifact, String>> {
        let query = query.clone();
        self.readers.run(move |connection| page(connection, &query)).await
    }

    async fn artifact_usage(&self, execution_id: &str) -> Result<Usage> {
        let id = execution_id.to_owned();
        self.readers.run(move |connection| usage(connection, &id)).await
    }

    async fn mark_artifact(&self, artifact_id: &str, at: Millis) -> Result<bool> {
        let id = artifact_id.to_owned();
        self.write(move |batch| mark(batch, &id, at)).await
    }

    async fn marked_artifacts(&self, after: Option<&str>, limit: usize) -> Result<Vec<Artifact>> {
        let after = after.unwrap_or_default().to_owned();
        self.readers
            .run(move |connection| {
                let sql = format!(
                    "SELECT {COLUMNS} FROM artifacts INDEXED BY artifacts_deleted \
                     WHERE deleted_at IS NOT NULL AND artifact_id > ?1 ORDER BY artifact_id LIMIT ?2"
                );
                let mut statement = connection.prepare_cached(&sql)?;
                let mut rows = statement.query(params![after, limit as i64])?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()? {
                    found.push(artifact_of(row)?);
                }
                Ok(found)
            })
            .await
    }

    async fn remove_artifact(&self, artifact_id: &str) -> Result<()> {
        let id = artifact_id.to_owned();
        self.write(move |batch| {
            batch
                .connection
                .prepare_cached(
                    "DELETE FROM artifacts WHERE artifact_id = ?1 AND deleted_at IS NOT NULL",
                )?
                .execute([id])?;
            Ok(())
        })
        .await
    }

    async fn record_has_bytes(&self, paths: &[String], except: Option<&str>) -> Result<bool> {
        let (paths, except) = (paths.to_owned(), except.unwrap_or_default().to_owned());
        self.readers
            .run(move |connection| {
                let sql = format!(
                    "SELECT {COLUMNS} FROM artifacts WHERE storage_path = ?1 AND artifact_id <> ?2 \
                     AND deleted_at IS NULL AND record_only IS NOT 1"
                );
                let mut statement = connection.prepare_cached(&sql)?;
                for path in &paths {
                    let mut rows = statement.query([path, &except])?;
                    while let Some(row) = rows.next()? {
                        if artifact_of(row)?.origin != Origin::Imported {
                            return Ok(true);
                        }
                    }
                }
                Ok(false)
            })
            .await
    }

    async fn upload_has_bytes(&self, paths: &[String], artifact_id: &str) -> Result<bool> {
        let (paths, id) = (paths.to_owned(), artifact_id.to_owned());
        self.readers
            .run(move |connection| {
                let sql =
                    "SELECT 1 FROM artifact_uploads WHERE storage_path = ?1 AND artifact_id <> ?2";
                let mut statement = connection.prepare_cached(sql)?;
                for path in &paths {
                    if statement.exists([path, &id])? {
                        return Ok(true);
                    }
                }
                Ok(false)
            })
            .await
    }

    async fn begin_upload(&self, new: &Upload) -> Result<Upload> {
        let new = new.clone();
        self.write(move |batch| {
            if let Some(found) = upload(batch.connection, &new.upload_id)? {
                return Ok(found);
            }
            put_upload(batch.connection, "INSERT", &new)?;
            Ok(new)
        })
        .await
    }

    async fn upload(&self, upload_id: &str) -> Result<Option<Upload>> {
        let id = upload_id.to_owned();
        self.readers.run(move |connection| upload(connection, &id)).await
    }

    async fn replace_upload(&self, turn: i64, new: &Upload) -> Result<bool> {
        let new = new.clone();
        self.write(move |batch| {
            let stored = upload(batch.connection, &new.upload_id)?;
            if stored.is_none_or(|stored| stored.turn != turn) {
                return Ok(false);
            }
            put_upload(batch.connection, "INSERT OR REPLACE", &new)?;
            Ok(true)
        })
        .await
    }

    async fn remove_upload(&self, upload_id: &str, turn: i64) -> Result<bool> {
        let id = upload_id.to_owned();
        self.write(move |batch| {
            let sql = "DELETE FROM artifact_uploads WHERE upload_id = ?1 AND turn = ?2";
            Ok(batch.connection.prepare_cached(sql)?.execute(params![id, turn])? > 0)
        })
        .await
    }

    async fn idle_uploads(
        &self,
        before: Millis,
        after: Option<(Millis, &str)>,
        limit: usize,
    ) -> Result<Vec<Upload>> {
        let (at, id) = after.unwrap_or((Millis::MIN, ""));
        let id = id.to_owned();
        self.readers
            .run(move |connection| {
                let sql = format!(
                    "SELECT {UPLOAD_COLUMNS} FROM artifact_uploads \
                     WHERE updated_at < ?1 AND (updated_at, upload_id) > (?2, ?3) \
                     ORDER BY updated_at, upload_id LIMIT ?4"
                );
                let mut statement = connection.prepare_cached(&sql)?;
                let found =
                    statement.query_map(params![before, at, id, limit as i64], upload_of)?;
                Ok(found.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }
}
