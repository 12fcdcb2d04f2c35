//! The record of who did what. What is written along with a record is in one transaction with it.

use std::sync::Arc;

use async_trait::async_trait;
use bson::raw::RawDocumentBuf;
use parking_lot::Mutex;
use rusqlite::{Connection, params};

use super::SqliteStore;
use super::batch::Batch;
use crate::domain::Millis;
use crate::domain::audit::entry::{Written, packed};
use crate::domain::audit::{Entry, Head, Phase, record};
use crate::domain::query::Page;
use crate::store::audit::{
    Appended, AuditKey, AuditQuery, AuditStore, Chain, Linked, Opening, count_lost, not_open,
};
use crate::store::{Error, Result};

/// Records that go in one transaction for their age.
const EXPIRED_AT_ONCE: i64 = 1000;

/// The chain of this process, in the hands of the writer.
#[derive(Debug, Default)]
pub struct Ledger {
    chain: Option<Chain>,
    /// Of the transaction under way.
    fresh: Vec<Linked>,
    head: OwnHead,
}

/// The newest record that is stored, for others to see.
pub type OwnHead = Arc<Mutex<Option<Head>>>;

impl Ledger {
    pub fn new(head: OwnHead) -> Ledger {
        Ledger { head, ..Ledger::default() }
    }

    /// Before a transaction.
    pub fn chain(&self) -> Option<Chain> {
        self.chain.clone()
    }

    /// The transaction is committed.
    pub fn committed(&mut self) {
        for linked in &self.fresh {
            linked.count();
        }
        if let Some(last) = self.fresh.pop() {
            *self.head.lock() = Some(last.head);
        }
        self.fresh.clear();
    }

    /// It is not: the chain is as it was.
    pub fn undone(&mut self, before: Option<Chain>) {
        if !self.fresh.is_empty() {
            count_lost(self.fresh.len());
            self.fresh.clear();
        }
        self.chain = before;
    }

    /// It was given up in the middle, and nobody has kept how the chain was: it is as it is stored.
    pub fn unwound(&mut self) {
        self.fresh.clear();
        let stored = self.head.lock().clone();
        self.chain = self.chain.take().zip(stored).map(|(chain, head)| chain.back_to(&head));
    }

    fn open(&mut self, opening: &Opening) {
        self.chain = Some(Chain::new(&opening.server, opening.codes));
    }

    fn next_seq(&self) -> i64 {
        self.chain.as_ref().map_or(1, Chain::next_seq)
    }

    fn append(&mut self, connection: &Connection, entry: &Entry, now: Millis) -> Result<()> {
        let chain = self.chain.as_mut().ok_or_else(not_open)?;
        let linked = chain.link(entry, now);
        let head = &linked.head;
        let sql = "INSERT INTO audit_log (server, seq, at, document) VALUES (?1, ?2, ?3, ?4)";
        let inserted = connection.prepare_cached(sql).and_then(|mut insert| {
            insert.execute(params![head.server, head.seq, head.at, linked.document.as_bytes()])
        });
        self.fresh.push(linked);
        match inserted.map_err(Error::from) {
            Ok(_) => Ok(()),
            Err(away @ Error::Unavailable(_)) => Err(away),
            Err(error) => Err(Error::unaudited(error)),
        }
    }
}

impl Batch<'_> {
    /// Writes a record in this transaction.
    pub fn record(&mut self, entry: &Entry) -> Result<()> {
        self.audit.append(self.connection, entry, self.at)
    }

    /// Writes down what this transaction does. The canonical codes are those of its outcomes.
    pub fn record_writes(&mut self, written: &[Written]) -> Result<()> {
        packed(Phase::Once, written, None).iter().try_for_each(|entry| self.record(entry))
    }

    /// The canonical code of what became of a write.
    pub fn code<T>(&self, outcome: &Result<T>) -> &'static str {
        self.audit.chain.as_ref().map_or("", |chain| chain.code(outcome))
    }
}

fn document(bytes: Vec<u8>) -> RawDocumentBuf {
    // What somebody made unreadable is shown as nothing.
    RawDocumentBuf::from_bytes(bytes).unwrap_or_default()
}

#[async_trait]
impl AuditStore for SqliteStore {
    async fn open_chain(&self, opening: Opening) -> Result<()> {
        self.write(move |batch| {
            batch.audit.open(&opening);
            batch.record(&opening.entry)
        })
        .await
    }

    async fn append(&self, entries: Vec<Entry>) -> Result<Appended> {
        if entries.is_empty() {
            return Ok(Appended::Surely { first: 0 });
        }
        let all = move |batch: &mut Batch<'_>| {
            let first = batch.audit.next_seq();
            entries.iter().try_for_each(|entry| batch.record(entry)).map(|()| first)
        };
        Ok(Appended::Surely { first: self.write(all).await? })
    }

    fn is_settled(&self) -> bool {
        true
    }

    fn own_head(&self) -> Option<Head> {
        self.own_head.lock().clone()
    }

    async fn heads(&self, after: Option<&str>, limit: usize) -> Result<Vec<Head>> {
        let after = after.unwrap_or_default().to_owned();
        self.readers.run(move |connection| heads(connection, &after, limit)).await
    }

    async fn chain(
        &self,
        server: &str,
        from: i64,
        limit: usize,
        bytes: usize,
    ) -> Result<Vec<RawDocumentBuf>> {
        let server = server.to_owned();
        self.readers
            .run(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT document FROM audit_log WHERE server = ?1 AND seq >= ?2 \
                     ORDER BY seq LIMIT ?3",
                )?;
                let limit = i64::try_from(limit).unwrap_or(i64::MAX);
                let mut rows = statement.query(params![server, from, limit])?;
                let (mut found, mut size) = (Vec::new(), 0);
                while let Some(row) = rows.next()? {
                    let bytes_of_row: Vec<u8> = row.get(0)?;
                    size += bytes_of_row.len();
                    if size > bytes && !found.is_empty() {
                        break;
                    }
                    found.push(document(bytes_of_row));
                }
                Ok(found)
            })
            .await
    }

    async fn events(&self, query: &AuditQuery) -> Result<Page<RawDocumentBuf, AuditKey>> {
        let query = query.clone();
        self.readers.run(move |connection| events(connection, &query)).await
    }
}

fn heads(connection: &Connection, after: &str, limit: usize) -> Result<Vec<Head>> {
    // From one server to the next along the index, and not over all records.
    let mut statement = connection.prepare_cached(
        "WITH RECURSIVE servers (server, number) AS ( \
             SELECT min(server), 1 FROM audit_log WHERE server > ?1 \
             UNION ALL \
             SELECT (SELECT min(server) FROM audit_log WHERE server > servers.server), number + 1 \
             FROM servers WHERE servers.server IS NOT NULL AND number < ?2) \
         SELECT server, seq, at, document FROM audit_log JOIN servers USING (server) \
         WHERE seq = (SELECT max(seq) FROM audit_log WHERE server = servers.server) \
         ORDER BY server",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![after, limit])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let head = record::head(&document(row.get(3)?));
        found.push(Head {
            server: row.get(0)?,
            seq: row.get(1)?,
            at: row.get(2)?,
            hash: head.as_ref().map_or([0; 32], |head| head.hash),
            stopped: head.is_some_and(|head| head.stopped),
        });
    }
    Ok(found)
}

fn key(at: Millis, id: i64) -> AuditKey {
    AuditKey([at.to_be_bytes(), id.to_be_bytes()].concat())
}

fn place(key: &AuditKey) -> Option<(Millis, i64)> {
    let (at, id) = key.0.split_at_checked(8)?;
    Some((i64::from_be_bytes(at.try_into().ok()?), i64::from_be_bytes(id.try_into().ok()?)))
}

fn events(connection: &Connection, query: &AuditQuery) -> Result<Page<RawDocumentBuf, AuditKey>> {
    let (since, until) = (query.filter.since, query.filter.until);
    let mut from = since.unwrap_or(Millis::MIN);
    let mut until = until.map_or(Millis::MAX, |until| until.saturating_sub(1));
    let after = match &query.after {
        Some(key) => Some(place(key).ok_or(Error::BadCursor)?),
        None => None,
    };
    if let Some((at, _)) = after {
        match query.oldest_first {
            true => from = from.max(at),
            false => until = until.min(at),
        }
    }
    let (way, beyond) = match query.oldest_first {
        true => ("ASC", "at > ?3 OR id > ?4"),
        false => ("DESC", "at < ?3 OR id < ?4"),
    };
    let beyond = if after.is_some() { beyond } else { "?3 IS NULL AND ?4 IS NULL" };
    let sql = format!(
        "SELECT id, at, document FROM audit_log WHERE at BETWEEN ?1 AND ?2 AND ({beyond}) \
         ORDER BY at {way}, id {way} LIMIT ?5"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let examine = i64::try_from(query.examine).unwrap_or(i64::MAX);
    let (at, id) = (after.map(|(at, _)| at), after.map(|(_, id)| id));
    let mut rows = statement.query(params![from, until, at, id, examine])?;
    let (mut records, mut bytes, mut examined, mut last) = (Vec::new(), 0, 0, None);
    while let Some(row) = rows.next()? {
        let found = document(row.get(2)?);
        let place = key(row.get(1)?, row.get(0)?);
        if query.filter.matches(&found) {
            bytes += found.as_bytes().len();
            if !records.is_empty() && (records.len() >= query.limit || bytes > query.bytes) {
                return Ok(Page { records, next: last });
            }
            records.push(found);
        }
        examined += 1;
        last = Some(place);
    }
    let next = if examined >= query.examine { last } else { None };
    Ok(Page { records, next })
}

/// Takes a piece of what is too old; whether there may be more.
pub fn expire(connection: &Connection, now: Millis, kept_ms: Option<i64>) -> Result<bool> {
    let Some(kept_ms) = kept_ms else { return Ok(false) };
    let gone = connection
        .prepare_cached(
            "DELETE FROM audit_log WHERE id IN \
             (SELECT id FROM audit_log WHERE at < ?1 ORDER BY at, id LIMIT ?2)",
        )?
        .execute(params![now.saturating_sub(kept_ms), EXPIRED_AT_ONCE])?;
    Ok(gone as i64 == EXPIRED_AT_ONCE)
}
