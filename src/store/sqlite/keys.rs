//! Keys of callers in their table.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::SqliteStore;
use crate::domain::Millis;
use crate::domain::access::Grant;
use crate::store::keys::{KEYS_MOST, KeyStore, Previous, StoredKey, grant};
use crate::store::{Error, Result};

const COLUMNS: &str = "id, name, grants, secret_sha256, previous_sha256, previous_until, created_at, \
     created_by, expires_at, revoked_at, revoked_by, last_used_at, calls_per_second, burst";

/// Grants as JSON: role, apps, reveal.
fn grants_text(grants: &[Grant]) -> Result<String> {
    let rows: Vec<(&str, Vec<String>, bool)> = grants
        .iter()
        .map(|grant| {
            let apps = grant.apps.iter().map(ToString::to_string).collect();
            (grant.role.as_str(), apps, grant.reveal)
        })
        .collect();
    serde_json::to_string(&rows).map_err(Error::failed)
}

fn grants_of(text: &str) -> Option<Vec<Grant>> {
    let rows: Vec<(String, Vec<String>, bool)> = serde_json::from_str(text).ok()?;
    let of = |(role, apps, reveal): &(String, Vec<String>, bool)| {
        let apps: Vec<&str> = apps.iter().map(String::as_str).collect();
        grant(role, &apps, *reveal)
    };
    rows.iter().map(of).collect()
}

fn key_of(row: &Row<'_>) -> rusqlite::Result<Option<StoredKey>> {
    let grants: String = row.get(2)?;
    let Some(grants) = grants_of(&grants) else { return Ok(None) };
    let previous = match (row.get::<_, Option<[u8; 32]>>(4)?, row.get(5)?) {
        (Some(secret_sha256), Some(until)) => Some(Previous { secret_sha256, until }),
        _ => None,
    };
    Ok(Some(StoredKey {
        id: row.get(0)?,
        name: row.get(1)?,
        grants,
        secret_sha256: row.get(3)?,
        previous,
        created_at: row.get(6)?,
        created_by: row.get(7)?,
        expires_at: row.get(8)?,
        revoked_at: row.get(9)?,
        revoked_by: row.get(10)?,
        last_used_at: row.get(11)?,
        calls_per_second: row.get(12)?,
        burst: row.get(13)?,
    }))
}

/// All keys, by id.
pub fn all(connection: &Connection) -> Result<Vec<StoredKey>> {
    let sql = format!("SELECT {COLUMNS} FROM keys ORDER BY id");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut keys = Vec::new();
    for key in statement.query_map([], key_of)? {
        keys.extend(key?);
    }
    Ok(keys)
}

#[async_trait]
impl KeyStore for SqliteStore {
    async fn keys(&self) -> Result<Vec<StoredKey>> {
        self.readers.run(all).await
    }

    async fn add_key(&self, key: &StoredKey) -> Result<bool> {
        let (key, grants) = (key.clone(), grants_text(&key.grants)?);
        self.write(move |batch| {
            let count: i64 =
                batch.connection.query_row("SELECT count(*) FROM keys", [], |row| row.get(0))?;
            if count >= KEYS_MOST as i64 {
                return Ok(false);
            }
            let sql = format!(
                "INSERT INTO keys ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, \
                 ?13, ?14) ON CONFLICT DO NOTHING"
            );
            let previous = key.previous.as_ref();
            let stored = batch.connection.execute(
                &sql,
                params![
                    key.id,
                    key.name,
                    grants,
                    key.secret_sha256,
                    previous.map(|previous| previous.secret_sha256),
                    previous.map(|previous| previous.until),
                    key.created_at,
                    key.created_by,
                    key.expires_at,
                    key.revoked_at,
                    key.revoked_by,
                    key.last_used_at,
                    key.calls_per_second,
                    key.burst,
                ],
            )?;
            Ok(stored == 1)
        })
        .await
    }

    async fn rotate_key(
        &self,
        id: &str,
        from: [u8; 32],
        to: [u8; 32],
        until: Millis,
    ) -> Result<bool> {
        let id = id.to_owned();
        self.write(move |batch| {
            let changed = batch.connection.execute(
                "UPDATE keys SET secret_sha256 = ?3, previous_sha256 = ?2, previous_until = ?4 \
                 WHERE id = ?1 AND secret_sha256 = ?2 AND revoked_at IS NULL",
                params![id, from, to, until],
            )?;
            Ok(changed == 1)
        })
        .await
    }

    async fn revoke_key(&self, id: &str, at: Millis, by: &str) -> Result<bool> {
        let (id, by) = (id.to_owned(), by.to_owned());
        self.write(move |batch| {
            batch.connection.execute(
                "UPDATE keys SET revoked_at = ?2, revoked_by = ?3 \
                 WHERE id = ?1 AND revoked_at IS NULL",
                params![id, at, by],
            )?;
            let found = batch
                .connection
                .query_row("SELECT 1 FROM keys WHERE id = ?1", [id], |_| Ok(()))
                .optional()?;
            Ok(found.is_some())
        })
        .await
    }

    async fn keys_used(&self, used: &[(String, Millis)]) -> Result<()> {
        let used = used.to_vec();
        self.write(move |batch| {
            for (id, at) in used {
                batch.connection.execute(
                    "UPDATE keys SET last_used_at = ?2 \
                     WHERE id = ?1 AND (last_used_at IS NULL OR last_used_at < ?2)",
                    params![id, at],
                )?;
            }
            Ok(())
        })
        .await
    }
}
