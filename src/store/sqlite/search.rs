//! The index of search: texts in a table, their terms in a full-text index (FTS5) without content, under the same row.
//! Terms are made before; its tokenizer only has to keep them as they are.

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, params, params_from_iter};

use super::SqliteStore;
use crate::domain::Millis;
use crate::domain::search::query::Term;
use crate::domain::search::{Kind, RULES};
use crate::store::search::{
    Candidate, CandidateQuery, Candidates, Entry, EntryKey, SearchBatch, SearchStore,
};
use crate::store::{Cursor, Error, Result};

/// Rows removed in one transaction.
const REMOVED_AT_ONCE: i64 = 500;
/// Texts read at a time.
const READ_AT_ONCE: usize = 50;

/// Terms of one list each, as an expression of FTS5.
fn expression(ways: &[Vec<Term>]) -> String {
    let term = |term: &Term| {
        let star = if term.prefix { "*" } else { "" };
        // Terms have letters and digits alone.
        format!("\"{}\"{star}", term.text)
    };
    let all = |way: &Vec<Term>| way.iter().map(term).collect::<Vec<_>>().join(" AND ");
    let any: Vec<String> = ways.iter().map(|way| format!("({})", all(way))).collect();
    format!("({})", any.join(" OR "))
}

fn set(connection: &Connection, name: &str, value: Value) -> Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)")?
        .execute(params![name, value])?;
    Ok(())
}

fn get(connection: &Connection, name: &str) -> Result<Option<Value>> {
    let mut statement = connection.prepare_cached("SELECT value FROM meta WHERE name = ?1")?;
    Ok(statement.query_row([name], |row| row.get(0)).optional()?)
}

fn remove(connection: &Connection, condition: &str, values: &[Value]) -> Result<usize> {
    let sql = format!("SELECT id FROM search_texts WHERE {condition} LIMIT {REMOVED_AT_ONCE}");
    let mut statement = connection.prepare_cached(&sql)?;
    let ids = statement
        .query_map(params_from_iter(values), |row| row.get::<_, i64>(0))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    for id in &ids {
        connection.prepare_cached("DELETE FROM search_terms WHERE rowid = ?1")?.execute([id])?;
        connection.prepare_cached("DELETE FROM search_texts WHERE id = ?1")?.execute([id])?;
    }
    Ok(ids.len())
}

fn put(connection: &Connection, entry: &Entry, terms: &[String], seen: Millis) -> Result<()> {
    let key = &entry.key;
    let before: Option<i64> = connection
        .prepare_cached(
            "SELECT id FROM search_texts WHERE execution_id = ?1 AND kind = ?2 AND part = ?3",
        )?
        .query_row(params![key.execution_id, key.kind as i32, key.part()], |row| row.get(0))
        .optional()?;
    if let Some(id) = before {
        connection.prepare_cached("DELETE FROM search_terms WHERE rowid = ?1")?.execute([id])?;
    }
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO search_texts \
             (id, execution_id, kind, part, step_id, artifact_id, name, text, truncated, seen) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            before,
            key.execution_id,
            key.kind as i32,
            key.part(),
            key.step_id,
            key.artifact_id,
            entry.name,
            entry.text,
            entry.truncated,
            seen,
        ])?;
    let id = before.unwrap_or_else(|| connection.last_insert_rowid());
    connection
        .prepare_cached("INSERT INTO search_terms (rowid, terms) VALUES (?1, ?2)")?
        .execute(params![id, terms.join(" ")])?;
    Ok(())
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<(i64, Option<Entry>)> {
    let key = Kind::from_number(row.get(2)?).map(|kind| -> rusqlite::Result<EntryKey> {
        Ok(EntryKey {
            execution_id: row.get(1)?,
            kind,
            step_id: row.get(3)?,
            artifact_id: row.get(4)?,
        })
    });
    let entry = match key.transpose()? {
        Some(key) => {
            Some(Entry { key, name: row.get(5)?, text: row.get(6)?, truncated: row.get(7)? })
        }
        None => None,
    };
    Ok((row.get(0)?, entry))
}

#[async_trait]
impl SearchStore for SqliteStore {
    async fn search_cursor(&self) -> Result<Option<Cursor>> {
        self.readers
            .run(|connection| {
                if get(connection, "search_rules")? != Some(Value::Integer(RULES)) {
                    return Ok(None);
                }
                match get(connection, "search_cursor")? {
                    Some(Value::Blob(bytes)) => Ok(Some(Cursor(bytes))),
                    _ => Ok(None),
                }
            })
            .await
    }

    async fn index(&self, batch: SearchBatch) -> Result<()> {
        self.write(move |writing| {
            let connection = writing.connection;
            for id in &batch.gone_executions {
                while remove(connection, "execution_id = ?", &[Value::from(id.clone())])? > 0 {}
            }
            for key in &batch.gone {
                let values = [
                    Value::from(key.execution_id.clone()),
                    Value::from(key.kind as i64),
                    Value::from(key.part()),
                ];
                remove(connection, "execution_id = ? AND kind = ? AND part = ?", &values)?;
            }
            for (entry, terms) in &batch.put {
                put(connection, entry, terms, batch.seen)?;
            }
            if let Some(cursor) = batch.cursor {
                set(connection, "search_cursor", Value::from(cursor.0))?;
                set(connection, "search_rules", Value::from(RULES))?;
            }
            Ok(())
        })
        .await
    }

    async fn forget(&self, before: Millis) -> Result<()> {
        loop {
            let removed = self
                .write(move |writing| {
                    remove(writing.connection, "seen < ?", &[Value::from(before)])
                })
                .await?;
            if removed == 0 {
                return Ok(());
            }
        }
    }

    async fn texts_with(&self, ways: &[Vec<Term>], most: u64) -> Result<u64> {
        let asked = expression(ways);
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        self.readers
            .run(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT count(*) FROM (SELECT rowid FROM search_terms WHERE search_terms MATCH ?1 \
                     LIMIT ?2)",
                )?;
                let count: i64 = statement.query_row(params![asked, most], |row| row.get(0))?;
                Ok(u64::try_from(count).unwrap_or(0))
            })
            .await
    }

    fn candidates(&self, query: CandidateQuery) -> Candidates<'_> {
        let found = stream::once(self.ids(query)).map_ok(|ids| {
            let pieces: Vec<Vec<i64>> = ids.chunks(READ_AT_ONCE).map(<[i64]>::to_vec).collect();
            let texts = async |ids: Vec<i64>| {
                let found = self.readers.run(move |connection| texts(connection, &ids)).await?;
                Ok::<_, Error>(stream::iter(found.into_iter().map(Ok)))
            };
            stream::iter(pieces).then(texts).try_flatten()
        });
        found.try_flatten().boxed()
    }
}

fn place(bytes: Option<&[u8]>, otherwise: i64) -> Result<i64> {
    match bytes.map(<[u8; 8]>::try_from) {
        None => Ok(otherwise),
        Some(Ok(bytes)) => Ok(i64::from_be_bytes(bytes)),
        Some(Err(_)) => Err(Error::BadCursor),
    }
}

/// Those of these rows that are still there, in their order.
fn texts(connection: &Connection, ids: &[i64]) -> Result<Vec<Candidate>> {
    let mut statement = connection.prepare_cached(
        "SELECT id, execution_id, kind, step_id, artifact_id, name, text, truncated \
         FROM search_texts WHERE id = ?1",
    )?;
    let mut found = Vec::with_capacity(ids.len());
    for id in ids {
        if let Some((id, entry)) = statement.query_row([id], entry).optional()? {
            found.push(Candidate { place: id.to_be_bytes().to_vec(), entry });
        }
    }
    Ok(found)
}

impl SqliteStore {
    /// The rows that have the terms.
    async fn ids(&self, query: CandidateQuery) -> Result<Vec<i64>> {
        let before = place(query.before.as_deref(), i64::MAX)?;
        let from = place(query.from.as_deref(), i64::MIN)?;
        let asked: Vec<String> = query.needs.iter().map(|ways| expression(ways)).collect();
        let asked = asked.join(" AND ");
        let kinds: Vec<String> =
            query.kinds.iter().map(|kind| (*kind as i32).to_string()).collect();
        let of_kind = match kinds.is_empty() {
            true => String::new(),
            false => format!(
                "AND (SELECT kind FROM search_texts WHERE id = search_terms.rowid) IN ({})",
                kinds.join(", ")
            ),
        };
        let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
        self.readers
            .run(move |connection| {
                let sql = format!(
                    "SELECT rowid FROM search_terms WHERE search_terms MATCH ?1 AND rowid < ?2 \
                     AND rowid >= ?3 {of_kind} ORDER BY rowid DESC LIMIT ?4"
                );
                let mut statement = connection.prepare_cached(&sql)?;
                let found =
                    statement.query_map(params![asked, before, from, limit], |row| row.get(0))?;
                Ok(found.collect::<rusqlite::Result<Vec<i64>>>()?)
            })
            .await
    }
}
