//! Takes away what executions that are marked as deleted have, piece by piece, each piece in a transaction of its
//! own: other writes get their turn in between, and a crash leaves a mark from which to go on.

use rusqlite::{Connection, params};

use super::batch::Batch;
use super::{SqliteStore, metrics};
use crate::store::Result;
use crate::store::retention::{Piece, Removed};

/// Rows that go in one transaction.
const PIECE: usize = 500;

impl SqliteStore {
    /// Removes all of these that are marked, to the end. How many artifacts were marked and uploads ended.
    pub(super) async fn remove_all(&self, mut execution_ids: Vec<String>) -> Result<u64> {
        let mut with_bytes = 0;
        while !execution_ids.is_empty() {
            let piece = self.remove_some(execution_ids).await?;
            with_bytes += piece.removed.artifacts + piece.removed.uploads;
            execution_ids = piece.left;
        }
        Ok(with_bytes)
    }

    /// Removes one piece.
    pub(super) async fn remove_some(&self, execution_ids: Vec<String>) -> Result<Piece> {
        self.write(move |batch| batch.remove(execution_ids)).await
    }
}

/// Executions that are marked.
pub fn marked(connection: &Connection) -> Result<Vec<String>> {
    let sql = "SELECT execution_id FROM executions INDEXED BY executions_deleted \
               WHERE deleted_at IS NOT NULL";
    let mut statement = connection.prepare_cached(sql)?;
    let ids = statement.query_map([], |row| row.get(0))?;
    Ok(ids.collect::<rusqlite::Result<_>>()?)
}

impl Batch<'_> {
    fn remove(&mut self, execution_ids: Vec<String>) -> Result<Piece> {
        let mut removed = Removed::default();
        let mut room = PIECE;
        let mut ids = execution_ids.into_iter();
        while let Some(id) = ids.next() {
            // In the same transaction: the row and the id may have a new owner once they are free.
            let Some(known) = self.execution(&id)?.filter(|k| k.record.deleted_at.is_some()) else {
                continue;
            };
            let steps = self.remove_steps(known.row, &id, room)?;
            removed.steps += steps as u64;
            room -= steps;
            let artifacts = self.mark_artifacts(&id, room, &mut removed)?;
            room -= artifacts;
            let uploads = self.end_uploads(&id, room)?;
            removed.uploads += uploads as u64;
            room -= uploads;
            let (points, requests) = metrics::delete(self.connection, &id, room)?;
            removed.points += points as u64;
            room -= points + requests;
            if room == 0 {
                let left = std::iter::once(id).chain(ids).collect();
                return Ok(Piece { removed, left });
            }
            self.connection
                .prepare_cached("DELETE FROM executions WHERE id = ?1")?
                .execute([known.row])?;
            self.known.forget_execution(&id);
            room -= 1;
            if room == 0 {
                break;
            }
        }
        Ok(Piece { removed, left: ids.collect() })
    }

    fn remove_steps(&mut self, execution: i64, execution_id: &str, most: usize) -> Result<usize> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let mut find = self.connection.prepare_cached(
            "SELECT id, step_id FROM steps WHERE execution = ?1 ORDER BY step_id LIMIT ?2",
        )?;
        let found: Vec<(i64, i32)> = find
            .query_map([execution, most], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for (row, step_id) in &found {
            self.remove_step(*row, execution_id, *step_id)?;
        }
        Ok(found.len())
    }

    /// Removes the step in this row with its payloads.
    pub(super) fn remove_step(&mut self, row: i64, execution_id: &str, step_id: i32) -> Result<()> {
        self.connection
            .prepare_cached("DELETE FROM step_payloads WHERE id IN (2 * ?1, 2 * ?1 + 1)")?
            .execute([row])?;
        self.connection.prepare_cached("DELETE FROM steps WHERE id = ?1")?.execute([row])?;
        self.known.forget_step(execution_id, step_id);
        Ok(())
    }

    /// Takes the turn of uploads, so that nobody goes on with them. Their rows stay until their bytes are gone.
    fn end_uploads(&mut self, execution_id: &str, most: usize) -> Result<usize> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let mut end = self.connection.prepare_cached(
            "UPDATE artifact_uploads SET turn = turn + 1, received_bytes = 0, updated_at = 0 \
             WHERE upload_id IN (SELECT upload_id FROM artifact_uploads \
                 WHERE execution_id = ?1 AND updated_at > 0 LIMIT ?2)",
        )?;
        Ok(end.execute(params![execution_id, most])?)
    }

    /// The rows stay until their bytes are gone.
    fn mark_artifacts(
        &mut self,
        execution_id: &str,
        most: usize,
        removed: &mut Removed,
    ) -> Result<usize> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let mut find = self.connection.prepare_cached(
            "SELECT id, size_bytes FROM artifacts INDEXED BY artifacts_execution \
             WHERE execution_id = ?1 AND deleted_at IS NULL LIMIT ?2",
        )?;
        let found: Vec<(i64, Option<i64>)> = find
            .query_map(params![execution_id, most], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let mut mark =
            self.connection.prepare_cached("UPDATE artifacts SET deleted_at = ?1 WHERE id = ?2")?;
        for (row, bytes) in &found {
            mark.execute([self.at, *row])?;
            let bytes = bytes.unwrap_or(0);
            removed.add(&Removed { artifacts: 1, artifact_bytes: bytes, ..Removed::default() });
        }
        Ok(found.len())
    }
}
