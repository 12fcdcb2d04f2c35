//! The log of changes: a table that the writer adds to in the transaction of the change itself, so that its
//! order is the order of commits. A wake-up only means: look again.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, params};
use tokio::sync::watch;

use super::{LogEnds, Readers, artifact_rows, read, standing};
use crate::domain::notification::Standing;
use crate::domain::{Execution, Millis, Step};
use crate::store::{
    Change, ChangeKind, ChangeLog, ChangeReader, Changed, Cursor, Error, Record, RecordKey, Result,
};

/// Changes read at a time.
const CHANGES_READ: i64 = 512;
/// How long a reader waits for a change before it says that there is none.
const WAIT: Duration = Duration::from_secs(1);
/// Changes pruned in one transaction.
pub const CHANGES_PRUNED: i64 = 10_000;

const STATUS_CHANGED: i64 = 1;
const METADATA_CHANGED: i64 = 2;

/// A change about to be logged.
pub struct Entry<'a> {
    pub seq: u64,
    pub at: Millis,
    pub key: &'a RecordKey,
    pub kind: ChangeKind,
    pub status_changed: bool,
    pub metadata_changed: bool,
    pub revision: i64,
    pub standing: Standing,
}

impl<'a> Entry<'a> {
    pub fn of_execution(
        key: &'a RecordKey,
        before: Option<&Execution>,
        after: &Execution,
    ) -> Entry<'a> {
        Entry {
            seq: 0,
            at: 0,
            key,
            kind: if before.is_some() { ChangeKind::Updated } else { ChangeKind::Created },
            status_changed: before.is_some_and(|before| before.status != after.status),
            metadata_changed: before.is_some_and(|before| before.metadata != after.metadata),
            revision: after.revision,
            standing: Standing::of_execution(before, after),
        }
    }

    pub fn of_step(key: &'a RecordKey, before: Option<&Step>, after: &Step) -> Entry<'a> {
        Entry {
            seq: 0,
            at: 0,
            key,
            kind: if before.is_some() { ChangeKind::Updated } else { ChangeKind::Created },
            status_changed: false,
            metadata_changed: false,
            revision: after.revision,
            standing: Standing::of_step(before, after),
        }
    }

    pub fn of_delete(key: &'a RecordKey, revision: i64) -> Entry<'a> {
        Entry {
            seq: 0,
            at: 0,
            key,
            kind: ChangeKind::Deleted,
            status_changed: false,
            metadata_changed: false,
            revision,
            standing: Standing::default(),
        }
    }
}

/// Adds one change, in the transaction of the change itself.
pub fn insert(connection: &Connection, entry: &Entry<'_>) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO changes \
         (seq, at, execution_id, step_id, kind, flags, revision, artifact_id, standing) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    statement.execute(params![
        entry.seq as i64,
        entry.at,
        entry.key.execution_id,
        entry.key.step_id,
        match entry.kind {
            ChangeKind::Created => 0,
            ChangeKind::Updated => 1,
            ChangeKind::Deleted => 2,
        },
        i64::from(entry.status_changed) * STATUS_CHANGED
            + i64::from(entry.metadata_changed) * METADATA_CHANGED,
        entry.revision,
        entry.key.artifact_id,
        standing::stored(&entry.standing),
    ])?;
    Ok(())
}

/// The newest number given, and the newest no longer kept.
pub fn ends(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
    let pruned: i64 = connection.query_row(
        "SELECT value FROM meta WHERE name = 'pruned_through'",
        [],
        |row| row.get(0),
    )?;
    let newest: Option<i64> =
        connection.query_row("SELECT max(seq) FROM changes", [], |row| row.get(0))?;
    Ok((newest.unwrap_or(pruned).max(pruned) as u64, pruned as u64))
}

/// Drops the oldest changes while they are numbered up to `through` or committed before `before`, one piece of
/// them, and says up to which number. `None`: there is nothing to drop.
pub fn prune(
    connection: &Connection,
    through: u64,
    before: Millis,
) -> rusqlite::Result<Option<u64>> {
    let mut oldest =
        connection.prepare_cached("SELECT seq, at FROM changes ORDER BY seq LIMIT ?1")?;
    let mut rows = oldest.query([CHANGES_PRUNED])?;
    let mut last = None;
    while let Some(row) = rows.next()? {
        let (seq, at): (i64, Millis) = (row.get(0)?, row.get(1)?);
        if seq as u64 > through && at >= before {
            break;
        }
        last = Some(seq);
    }
    drop(rows);
    let Some(last) = last else { return Ok(None) };
    connection.prepare_cached("DELETE FROM changes WHERE seq <= ?1")?.execute([last])?;
    connection
        .prepare_cached("UPDATE meta SET value = ?1 WHERE name = 'pruned_through'")?
        .execute([last])?;
    Ok(Some(last as u64))
}

fn cursor_at(seq: u64) -> Cursor {
    Cursor(seq.to_be_bytes().to_vec())
}

fn seq_of(cursor: &Cursor) -> Option<u64> {
    cursor.0.as_slice().try_into().ok().map(u64::from_be_bytes)
}

/// The log of one database.
pub struct SqliteLog {
    pub(super) readers: Arc<Readers>,
    pub(super) ends: Arc<LogEnds>,
}

#[async_trait]
impl ChangeLog for SqliteLog {
    async fn open(&self, after: Option<&Cursor>) -> Result<Box<dyn ChangeReader>> {
        let newest = self.ends.newest();
        let seq = match after {
            None => newest,
            Some(cursor) => seq_of(cursor).ok_or(Error::BadCursor)?,
        };
        if seq > newest {
            return Err(Error::BadCursor);
        }
        if seq < self.ends.pruned_through() {
            return Err(Error::CursorExpired);
        }
        Ok(Box::new(Reader {
            readers: Arc::clone(&self.readers),
            ends: Arc::clone(&self.ends),
            committed: self.ends.committed.subscribe(),
            seq,
        }))
    }

    async fn position(&self) -> Result<u64> {
        Ok(self.ends.newest())
    }

    async fn nudge(&self) -> Result<()> {
        // Readers hear of every commit, and the log has nothing else.
        Ok(())
    }

    fn position_of(&self, cursor: &Cursor) -> Option<u64> {
        seq_of(cursor)
    }

    fn oldest(&self) -> Option<Cursor> {
        Some(cursor_at(self.ends.pruned_through()))
    }

    async fn load(&self, what: &[Changed], payloads: bool) -> Result<Vec<(Changed, Record)>> {
        let what = what.to_vec();
        self.readers
            .run(move |connection| {
                let snapshot = connection.unchecked_transaction()?;
                let mut found = Vec::with_capacity(what.len());
                for changed in what {
                    // This log always says which record it is about.
                    let Changed::Record(key) = &changed else { continue };
                    let record = match (key.step_id, &key.artifact_id) {
                        (None, Some(artifact_id)) => artifact_rows::by_id(&snapshot, artifact_id)?
                            .map(|artifact| Record::Artifact(Arc::new(artifact))),
                        (None, None) => read::execution(&snapshot, &key.execution_id)?
                            .map(|execution| Record::Execution(Arc::new(execution))),
                        (Some(step_id), _) => match read::parent(&snapshot, &key.execution_id)? {
                            Some(parent) => read::step_by_id(&snapshot, parent, step_id, payloads)?
                                .map(|step| Record::Step(Arc::new(step))),
                            None => None,
                        },
                    };
                    found.extend(record.map(|record| (changed, record)));
                }
                Ok(found)
            })
            .await
    }
}

struct Reader {
    readers: Arc<Readers>,
    ends: Arc<LogEnds>,
    committed: watch::Receiver<u64>,
    seq: u64,
}

#[async_trait]
impl ChangeReader for Reader {
    async fn next(&mut self) -> Result<Vec<Change>> {
        if *self.committed.borrow_and_update() <= self.seq {
            match tokio::time::timeout(WAIT, self.committed.changed()).await {
                Err(_) => return Ok(Vec::new()),
                Ok(Err(_)) => return Err(Error::away()),
                Ok(Ok(())) => {}
            }
        }
        let after = self.seq;
        let changes = self.readers.run(move |connection| changes_after(connection, after)).await?;
        match changes.first() {
            // Numbers have no gaps, so what is missing at the front was pruned.
            Some((seq, _)) if *seq != after + 1 => return Err(Error::CursorExpired),
            None if after < self.ends.pruned_through() => return Err(Error::CursorExpired),
            _ => {}
        }
        if let Some((seq, _)) = changes.last() {
            self.seq = *seq;
        }
        Ok(changes.into_iter().map(|(_, change)| change).collect())
    }

    fn cursor(&self) -> Cursor {
        cursor_at(self.seq)
    }
}

fn changes_after(connection: &Connection, after: u64) -> Result<Vec<(u64, Change)>> {
    let mut statement = connection.prepare_cached(
        "SELECT seq, at, execution_id, step_id, kind, flags, revision, artifact_id, standing \
         FROM changes WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )?;
    let mut rows = statement.query(params![after as i64, CHANGES_READ])?;
    let mut changes = Vec::new();
    while let Some(row) = rows.next()? {
        let seq = row.get::<_, i64>(0)? as u64;
        let flags: i64 = row.get(5)?;
        changes.push((
            seq,
            Change {
                cursor: cursor_at(seq),
                at: row.get(1)?,
                what: Changed::Record(RecordKey {
                    execution_id: row.get(2)?,
                    step_id: row.get(3)?,
                    artifact_id: row.get(7)?,
                }),
                kind: match row.get::<_, i64>(4)? {
                    0 => ChangeKind::Created,
                    2 => ChangeKind::Deleted,
                    _ => ChangeKind::Updated,
                },
                revision: Some(row.get(6)?),
                status_changed: flags & STATUS_CHANGED != 0,
                metadata_changed: flags & METADATA_CHANGED != 0,
                failed: None,
                standing: Some(standing::read(row.get_ref(8)?.as_blob().ok())),
                body: None,
                document_id: None,
            },
        ));
    }
    Ok(changes)
}
