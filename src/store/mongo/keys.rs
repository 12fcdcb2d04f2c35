//! Keys of callers. Every write waits for the majority: a key that was revoked stays so.

use std::sync::Arc;

use async_trait::async_trait;
use bson::raw::{RawBsonRef, RawDocument};
use bson::{Bson, Document, doc};

use super::db::values::{binary, date, field, millis, number, raw, small, text};
use super::db::{Connection, Db, failure};
use super::names::KEYS;
use crate::domain::Millis;
use crate::domain::access::Grant;
use crate::store::Result;
use crate::store::keys::{KEYS_MOST, KeyStore, Previous, StoredKey, grant};

/// Keeps keys.
pub struct KeyRoom {
    db: Arc<Db>,
}

impl KeyRoom {
    pub fn new(db: Arc<Db>) -> KeyRoom {
        KeyRoom { db }
    }
}

fn grant_document(grant: &Grant) -> Document {
    let apps: Vec<Bson> = grant.apps.iter().map(|app| Bson::from(app.to_string())).collect();
    doc! { "role": grant.role.as_str(), "apps": apps, "reveal": grant.reveal }
}

fn document(key: &StoredKey) -> Document {
    let grants: Vec<Document> = key.grants.iter().map(grant_document).collect();
    let mut document = doc! {
        "_id": &key.id,
        "name": &key.name,
        "grants": grants,
        "secret_sha256": binary(&key.secret_sha256),
        "created_at": date(key.created_at),
        "created_by": &key.created_by,
    };
    if let Some(at) = key.expires_at {
        document.insert("expires_at", date(at));
    }
    if let Some(calls) = key.calls_per_second {
        document.insert("calls_per_second", calls);
    }
    if let Some(burst) = key.burst {
        document.insert("burst", burst);
    }
    document
}

fn hash(value: RawBsonRef<'_>) -> Option<[u8; 32]> {
    match value {
        RawBsonRef::Binary(binary) => binary.bytes.try_into().ok(),
        _ => None,
    }
}

fn grant_of(raw: RawBsonRef<'_>) -> Option<Grant> {
    let raw = raw.as_document()?;
    let mut apps = Vec::new();
    for app in field(raw, "apps")?.as_array()? {
        apps.push(app.ok()?.as_str()?);
    }
    let reveal = field(raw, "reveal").and_then(|value| value.as_bool()).unwrap_or(false);
    grant(field(raw, "role")?.as_str()?, &apps, reveal)
}

/// `None`: somebody else wrote it, and it opens nothing.
fn read(raw: &RawDocument) -> Option<StoredKey> {
    let words = |name| field(raw, name).and_then(text);
    let time = |name| field(raw, name).and_then(millis);
    let mut grants = Vec::new();
    for grant in field(raw, "grants")?.as_array()? {
        grants.push(grant_of(grant.ok()?)?);
    }
    // A time that cannot be read must not make a key good for ever.
    for name in ["expires_at", "revoked_at"] {
        let there = field(raw, name).filter(|value| value.as_null().is_none());
        if there.is_some() && time(name).is_none() {
            return None;
        }
    }
    let previous = field(raw, "previous").and_then(|value| value.as_document()).and_then(|raw| {
        let secret_sha256 = field(raw, "secret_sha256").and_then(hash)?;
        Some(Previous { secret_sha256, until: field(raw, "until").and_then(millis)? })
    });
    Some(StoredKey {
        id: words("_id")?,
        name: words("name")?,
        grants,
        secret_sha256: field(raw, "secret_sha256").and_then(hash)?,
        previous,
        created_at: time("created_at").unwrap_or_default(),
        created_by: words("created_by").unwrap_or_default(),
        expires_at: time("expires_at"),
        revoked_at: time("revoked_at"),
        revoked_by: words("revoked_by"),
        last_used_at: time("last_used_at"),
        calls_per_second: field(raw, "calls_per_second").and_then(number),
        burst: field(raw, "burst").and_then(small),
    })
}

/// All keys, by id.
pub async fn all(ready: &Connection) -> Result<Vec<StoredKey>> {
    let own = ready.own(KEYS);
    let most = i64::try_from(KEYS_MOST).unwrap_or(i64::MAX);
    let find = own.find(doc! {}).sort(doc! { "_id": 1 }).batch_size(1000).limit(most);
    let found = ready.collect(find).await?;
    let mut keys = Vec::with_capacity(found.len());
    for raw in &found {
        match read(raw) {
            Some(key) => keys.push(key),
            None => {
                tracing::warn!(collection = %KEYS, "a stored key cannot be read and is ignored");
            }
        }
    }
    Ok(keys)
}

#[async_trait]
impl KeyStore for KeyRoom {
    async fn keys(&self) -> Result<Vec<StoredKey>> {
        all(&*self.db.ready().await?).await
    }

    async fn add_key(&self, key: &StoredKey) -> Result<bool> {
        let ready = self.db.ready().await?;
        let own = ready.own(KEYS);
        let most = KEYS_MOST as u64;
        if ready.call(own.count_documents(doc! {}).limit(most)).await? >= most {
            return Ok(false);
        }
        match ready.try_call(own.insert_one(raw(&document(key))?)).await? {
            Ok(_) => Ok(true),
            Err(error) if failure::code(&error) == Some(failure::DUPLICATE_KEY) => Ok(false),
            Err(error) => Err(failure::error(error)),
        }
    }

    async fn rotate_key(
        &self,
        id: &str,
        from: [u8; 32],
        to: [u8; 32],
        until: Millis,
    ) -> Result<bool> {
        let ready = self.db.ready().await?;
        let only = doc! { "_id": id, "secret_sha256": binary(&from), "revoked_at": null };
        let previous = doc! { "secret_sha256": binary(&from), "until": date(until) };
        let set = doc! { "$set": { "secret_sha256": binary(&to), "previous": previous } };
        let done = ready.call(ready.own(KEYS).update_one(only, set)).await?;
        Ok(done.matched_count == 1)
    }

    async fn revoke_key(&self, id: &str, at: Millis, by: &str) -> Result<bool> {
        let ready = self.db.ready().await?;
        let own = ready.own(KEYS);
        let only = doc! { "_id": id, "revoked_at": null };
        let set = doc! { "$set": { "revoked_at": date(at), "revoked_by": by } };
        if ready.call(own.update_one(only, set)).await?.matched_count == 1 {
            return Ok(true);
        }
        Ok(ready.call(own.count_documents(doc! { "_id": id })).await? == 1)
    }

    async fn keys_used(&self, used: &[(String, Millis)]) -> Result<()> {
        let ready = self.db.ready().await?;
        let own = ready.own(KEYS);
        for (id, at) in used {
            let set = doc! { "$max": { "last_used_at": date(*at) } };
            ready.call(own.update_one(doc! { "_id": id.as_str() }, set)).await?;
        }
        Ok(())
    }
}
