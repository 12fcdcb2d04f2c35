//! Retention on SQLite. Candidates are read beside the writer; whether they go is decided again in the transaction
//! that takes them, so whoever writes first wins.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::SqliteStore;
use super::batch::Batch;
use super::changes::Entry;
use super::metrics;
use crate::domain::query::Page;
use crate::domain::retention::{Kind, Owner, Policy};
use crate::domain::{ExecutionStatus, Millis};
use crate::store::retention::{AgeKey, Aged, LEAD, Piece, Removed, RetentionStore};
use crate::store::{Error, RecordKey, Result};

/// What the run of retention has marked last, which nobody else takes away while it is at it.
#[derive(Debug, Default)]
pub(super) struct InHand(Mutex<HashSet<String>>);

impl SqliteStore {
    /// Those that no run of retention is at.
    pub(super) fn not_in_hand(&self, mut marked: Vec<String>) -> Vec<String> {
        if self.leads.is_held(LEAD, self.clock.instant()) {
            let in_hand = self.in_hand.0.lock();
            marked.retain(|id| !in_hand.contains(id));
        }
        marked
    }
}

/// A row of `owner` columns from this place on.
const OWNER: &str =
    "e.execution_id, e.app_id, e.app_name, e.status, e.pinned, e.stored_at, e.deleted_at";

/// An execution as a record's owner.
enum Owned {
    /// By nobody.
    Nobody,
    By(Owner),
    /// By one that is being deleted.
    Deleted,
}

fn owner_of(row: &Row<'_>, place: usize) -> rusqlite::Result<Owned> {
    let Some(execution_id) = row.get(place)? else { return Ok(Owned::Nobody) };
    if row.get::<_, Option<Millis>>(place + 6)?.is_some() {
        return Ok(Owned::Deleted);
    }
    Ok(Owned::By(Owner {
        execution_id,
        app_id: row.get(place + 1)?,
        app_name: row.get(place + 2)?,
        status: ExecutionStatus::parse(&row.get::<_, String>(place + 3)?),
        pinned: row.get::<_, Option<bool>>(place + 4)?.unwrap_or(false),
        stored_at: row.get(place + 5)?,
    }))
}

/// What the tables of a kind have in common: row, time, bytes, and the columns of the owner.
fn from_where(kind: Kind) -> &'static str {
    match kind {
        Kind::Executions => "e.id, e.stored_at, 0 FROM executions e INDEXED BY executions_stored",
        Kind::Steps => {
            "r.id, r.stored_at, 0 FROM steps r INDEXED BY steps_stored \
             LEFT JOIN executions e ON e.id = r.execution"
        }
        Kind::Artifacts => {
            "r.id, r.stored_at, r.size_bytes FROM artifacts r INDEXED BY artifacts_stored \
             LEFT JOIN executions e ON e.execution_id = r.execution_id"
        }
    }
}

fn by_age(
    connection: &Connection,
    kind: Kind,
    after: Option<(Millis, i64)>,
    limit: usize,
) -> Result<Page<Aged, AgeKey>> {
    let table = if kind == Kind::Executions { "e" } else { "r" };
    let only = if kind == Kind::Artifacts { "AND r.deleted_at IS NULL" } else { "" };
    let sql = format!(
        "SELECT {OWNER}, {} WHERE ({table}.stored_at, {table}.id) > (?1, ?2) {only} \
         ORDER BY {table}.stored_at, {table}.id LIMIT ?3",
        from_where(kind)
    );
    let (at, row) = after.unwrap_or((i64::MIN, i64::MIN));
    let mut statement = connection.prepare_cached(&sql)?;
    let most = i64::try_from(limit.max(1)).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![at, row, most])?;
    let mut page = Page { records: Vec::new(), next: None };
    let (mut looked_at, mut last) = (0, None);
    while let Some(row) = rows.next()? {
        looked_at += 1;
        let (id, stored_at): (i64, Millis) = (row.get(7)?, row.get(8)?);
        last = Some((stored_at, id));
        let owner = match owner_of(row, 0)? {
            Owned::Deleted => continue,
            Owned::Nobody => None,
            Owned::By(owner) => Some(owner),
        };
        let bytes = row.get::<_, Option<i64>>(9)?.unwrap_or(0);
        page.records.push(Aged { id: id.to_be_bytes().to_vec(), stored_at, owner, bytes });
    }
    if looked_at == limit.max(1) {
        page.next = last.map(key_of);
    }
    Ok(page)
}

fn key_of((stored_at, row): (Millis, i64)) -> AgeKey {
    AgeKey([stored_at.to_be_bytes(), row.to_be_bytes()].concat())
}

fn place_of(key: &AgeKey) -> Result<(Millis, i64)> {
    let number = |bytes: &[u8]| bytes.try_into().map(i64::from_be_bytes).ok();
    let halves = key.0.split_at_checked(8);
    let place = halves.and_then(|(at, row)| Some((number(at)?, number(row)?)));
    place.ok_or(Error::BadCursor)
}

fn rows_of(records: &[Aged]) -> impl Iterator<Item = i64> {
    let row = |record: &Aged| record.id.as_slice().try_into().map(i64::from_be_bytes).ok();
    records.iter().filter_map(row)
}

/// What a candidate is now: when it was stored, its owner, and two columns of its own.
struct Candidate<T, U> {
    stored_at: Millis,
    owner: Option<Owner>,
    own: (T, U),
}

impl Batch<'_> {
    fn candidate<T: rusqlite::types::FromSql, U: rusqlite::types::FromSql>(
        &self,
        sql: &str,
        row: i64,
    ) -> Result<Option<Candidate<T, U>>> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let found = statement.query_row([row], |row| {
            let owner = match owner_of(row, 0)? {
                Owned::Deleted => return Ok(None),
                Owned::Nobody => None,
                Owned::By(owner) => Some(owner),
            };
            let own = (row.get(8)?, row.get(9)?);
            Ok(Some(Candidate { stored_at: row.get(7)?, owner, own }))
        });
        Ok(found.optional()?.flatten())
    }

    fn expire_executions(
        &mut self,
        records: &[Aged],
        policy: &Policy,
        now: Millis,
    ) -> Result<Vec<String>> {
        let sql = format!("SELECT {OWNER}, e.stored_at, 0, 0 FROM executions e WHERE e.id = ?1");
        let mut marked = Vec::new();
        for row in rows_of(records) {
            let found = self.candidate::<i64, i64>(&sql, row)?;
            let Some(Candidate { owner: Some(owner), .. }) = found else { continue };
            if !policy.execution_is_over(&owner, now) {
                continue;
            }
            if let Some(known) = self.execution(&owner.execution_id)? {
                self.mark(&known)?;
                marked.push(owner.execution_id);
            }
        }
        Ok(marked)
    }

    fn expire_steps(&mut self, records: &[Aged], policy: &Policy, now: Millis) -> Result<Removed> {
        let sql = format!(
            "SELECT {OWNER}, r.stored_at, r.step_id, r.revision FROM steps r \
             LEFT JOIN executions e ON e.id = r.execution WHERE r.id = ?1"
        );
        let mut removed = Removed::default();
        for row in rows_of(records) {
            let found = self.candidate::<i32, i64>(&sql, row)?;
            let Some(Candidate { stored_at, owner, own: (step_id, revision) }) = found else {
                continue;
            };
            if !policy.is_over(Kind::Steps, owner.as_ref(), stored_at, now) {
                continue;
            }
            let execution_id = owner.map(|owner| owner.execution_id).unwrap_or_default();
            self.remove_step(row, &execution_id, step_id)?;
            let revision = revision.saturating_add(1).max(self.at.saturating_mul(1000));
            let key = RecordKey::step(execution_id, step_id);
            self.log(Entry::of_delete(&key, revision))?;
            removed.steps += 1;
        }
        Ok(removed)
    }

    fn expire_artifacts(
        &mut self,
        records: &[Aged],
        policy: &Policy,
        now: Millis,
    ) -> Result<Removed> {
        let sql = format!(
            "SELECT {OWNER}, r.stored_at, r.artifact_id, r.size_bytes FROM artifacts r \
             LEFT JOIN executions e ON e.execution_id = r.execution_id \
             WHERE r.id = ?1 AND r.deleted_at IS NULL"
        );
        let mut removed = Removed::default();
        for row in rows_of(records) {
            let found = self.candidate::<String, Option<i64>>(&sql, row)?;
            let Some(Candidate { stored_at, owner, own: (artifact_id, bytes) }) = found else {
                continue;
            };
            if !policy.is_over(Kind::Artifacts, owner.as_ref(), stored_at, now) {
                continue;
            }
            let execution_id: String = self
                .connection
                .prepare_cached(
                    "UPDATE artifacts SET deleted_at = ?1 WHERE id = ?2 RETURNING execution_id",
                )?
                .query_row([self.at, row], |row| row.get(0))?;
            self.log(Entry::of_delete(&RecordKey::artifact(execution_id, artifact_id), 0))?;
            let artifact_bytes = bytes.unwrap_or(0);
            removed.add(&Removed { artifacts: 1, artifact_bytes, ..Removed::default() });
        }
        Ok(removed)
    }
}

fn weigh(connection: &Connection, execution_ids: &[String]) -> Result<Removed> {
    let snapshot = connection.unchecked_transaction()?;
    let mut steps = snapshot.prepare_cached(
        "SELECT count(*) FROM steps WHERE execution = (SELECT id FROM executions WHERE execution_id = ?1)",
    )?;
    let mut artifacts = snapshot.prepare_cached(
        "SELECT count(*), coalesce(sum(size_bytes), 0) FROM artifacts INDEXED BY artifacts_execution \
         WHERE execution_id = ?1 AND deleted_at IS NULL",
    )?;
    let mut weight = Removed::default();
    for id in execution_ids {
        let of_steps: i64 = steps.query_row([id], |row| row.get(0))?;
        let (of_artifacts, artifact_bytes): (i64, i64) =
            artifacts.query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
        weight.add(&Removed {
            executions: 1,
            steps: of_steps.unsigned_abs(),
            artifacts: of_artifacts.unsigned_abs(),
            artifact_bytes,
            points: metrics::number(&snapshot, id)?,
            uploads: 0,
        });
    }
    Ok(weight)
}

#[async_trait]
impl RetentionStore for SqliteStore {
    async fn newest(&self) -> Result<Vec<u8>> {
        // Nobody else writes here.
        Ok(Vec::new())
    }

    async fn by_age(
        &self,
        kind: Kind,
        after: Option<&AgeKey>,
        limit: usize,
    ) -> Result<Page<Aged, AgeKey>> {
        let after = after.map(place_of).transpose()?;
        self.readers.run(move |connection| by_age(connection, kind, after, limit)).await
    }

    async fn expire_executions(
        &self,
        records: Vec<Aged>,
        policy: Arc<Policy>,
        now: Millis,
    ) -> Result<Vec<String>> {
        let owners: Vec<String> = records
            .iter()
            .filter_map(|record| record.owner.as_ref())
            .map(|owner| owner.execution_id.clone())
            .collect();
        let marking = self.write(move |batch| batch.expire_executions(&records, &policy, now));
        // Before a sweep can see a mark: it looks at marks, and then at what is in hand.
        let ids = owners.into_iter().collect();
        *self.in_hand.0.lock() = ids;
        marking.await
    }

    async fn expire_parts(
        &self,
        kind: Kind,
        records: Vec<Aged>,
        policy: Arc<Policy>,
        now: Millis,
    ) -> Result<Removed> {
        self.write(move |batch| match kind {
            Kind::Executions => Ok(Removed::default()),
            Kind::Steps => batch.expire_steps(&records, &policy, now),
            Kind::Artifacts => batch.expire_artifacts(&records, &policy, now),
        })
        .await
    }

    async fn remove_piece(&self, execution_ids: Vec<String>) -> Result<Piece> {
        self.remove_some(execution_ids).await
    }

    async fn weigh(&self, execution_ids: &[String]) -> Result<Removed> {
        let execution_ids = execution_ids.to_vec();
        self.readers.run(move |connection| weigh(connection, &execution_ids)).await
    }

    async fn oldest_point(&self) -> Result<Option<Millis>> {
        self.readers.run(metrics::oldest).await
    }
}
