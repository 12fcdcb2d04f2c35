//! States of mirrors in their table.

use async_trait::async_trait;
use rusqlite::{Connection, Row, params};

use super::SqliteStore;
use crate::domain::mirror::Mirror;
use crate::store::mirrors::{Kept, MIRRORS_MOST, MirrorStore};
use crate::store::{Error, Result};

fn kept(row: &Row<'_>) -> Result<Kept> {
    let (name, state): (String, String) = (row.get(0)?, row.get(2)?);
    let corrupt = |_| Error::Corrupt { collection: "mirrors", id: name.clone(), field: "state" };
    Ok(Kept { version: row.get(1)?, mirror: serde_json::from_str(&state).map_err(corrupt)? })
}

fn all(connection: &Connection) -> Result<Vec<Kept>> {
    let sql = "SELECT name, version, state FROM mirrors ORDER BY name LIMIT ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([MIRRORS_MOST as i64])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(kept(row)?);
    }
    Ok(found)
}

#[async_trait]
impl MirrorStore for SqliteStore {
    async fn mirrors(&self) -> Result<Vec<Kept>> {
        self.readers.run(all).await
    }

    async fn mirror(&self, name: &str) -> Result<Option<Kept>> {
        let name = name.to_owned();
        self.readers
            .run(move |connection| {
                let sql = "SELECT name, version, state FROM mirrors WHERE name = ?1";
                let mut statement = connection.prepare_cached(sql)?;
                let mut rows = statement.query([&name])?;
                rows.next()?.map(kept).transpose()
            })
            .await
    }

    async fn store_mirror(&self, before: Option<i64>, mirror: &Mirror) -> Result<bool> {
        let name = mirror.name.clone();
        let state = serde_json::to_string(mirror).map_err(Error::failed)?;
        self.write(move |batch| {
            let changed = match before {
                None => batch.connection.execute(
                    "INSERT INTO mirrors (name, version, state) VALUES (?1, 1, ?2) ON CONFLICT DO NOTHING",
                    params![name, state],
                )?,
                Some(version) => batch.connection.execute(
                    "UPDATE mirrors SET version = version + 1, state = ?3 WHERE name = ?1 AND version = ?2",
                    params![name, version, state],
                )?,
            };
            Ok(changed == 1)
        })
        .await
    }
}
