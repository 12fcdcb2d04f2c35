//! Making, rotating and revoking keys.

use std::sync::Arc;
use std::time::Duration;

use super::caller::Permit;
use super::key::Key;
use super::keyring::Keyring;
use crate::app::{Error, Result};
use crate::clock::Clock;
use crate::domain::access::Grant;
use crate::domain::{Millis, Refusal};
use crate::store;
use crate::store::keys::{KEYS_MOST, StoredKey};

/// How often a key is made anew because its id is taken, or rotated again because somebody else was faster.
const ROUNDS: usize = 5;

/// A key as asked for.
#[derive(Debug, Clone)]
pub struct NewKey {
    pub name: String,
    pub grants: Vec<Grant>,
    pub expires_at: Option<Millis>,
    pub calls_per_second: Option<f64>,
    pub burst: Option<i32>,
}

/// The operations on keys.
pub struct Keys {
    keyring: Arc<Keyring>,
    clock: Arc<dyn Clock>,
}

fn not_found(key_id: &str) -> Error {
    Refusal::KeyNotFound { key_id: key_id.to_owned() }.into()
}

fn no_randomness(error: getrandom::Error) -> Error {
    store::Error::failed(error.to_string()).into()
}

impl Keys {
    pub fn new(keyring: Arc<Keyring>, clock: Arc<dyn Clock>) -> Keys {
        Keys { keyring, clock }
    }

    pub fn now(&self) -> Millis {
        self.clock.now().millis()
    }

    /// The keys that the caller may see, by id.
    pub async fn list(&self, permit: &Permit) -> Result<Vec<StoredKey>> {
        let scope = permit.scope();
        let mut keys = self.keyring.store().keys().await?;
        keys.retain(|key| scope.covers(&key.grants));
        Ok(keys)
    }

    async fn key(&self, permit: &Permit, key_id: &str) -> Result<StoredKey> {
        let mut keys = self.list(permit).await?.into_iter();
        keys.find(|key| key.id == key_id).ok_or_else(|| not_found(key_id))
    }

    /// Makes a key: as stored, and in clear.
    pub async fn create(&self, permit: &Permit, new: NewKey) -> Result<(StoredKey, Key)> {
        if !permit.scope().covers(&new.grants) {
            return Err(Refusal::ScopeForbids.into());
        }
        for _ in 0..ROUNDS {
            let key = Key::generate().map_err(no_randomness)?;
            let record = StoredKey {
                id: key.id().to_owned(),
                name: new.name.clone(),
                grants: new.grants.clone(),
                secret_sha256: key.hash(),
                previous: None,
                created_at: self.now(),
                created_by: permit.author().unwrap_or_default().to_owned(),
                expires_at: new.expires_at,
                revoked_at: None,
                revoked_by: None,
                last_used_at: None,
                calls_per_second: new.calls_per_second,
                burst: new.burst,
            };
            if self.keyring.store().add_key(&record).await? {
                self.known().await;
                return Ok((record, key));
            }
        }
        Err(Error::invalid(
            "name",
            format!("is of one key too many: there are {KEYS_MOST}, the limit"),
        ))
    }

    /// Gives a key another secret.
    pub async fn rotate(
        &self,
        permit: &Permit,
        key_id: &str,
        overlap: Duration,
    ) -> Result<(StoredKey, Key)> {
        for _ in 0..ROUNDS {
            let stored = self.key(permit, key_id).await?;
            if stored.revoked_at.is_some() {
                return Err(not_found(key_id));
            }
            let key = Key::with_id(key_id).map_err(no_randomness)?;
            let until =
                self.now().saturating_add(i64::try_from(overlap.as_millis()).unwrap_or(i64::MAX));
            let store = self.keyring.store();
            if store.rotate_key(key_id, stored.secret_sha256, key.hash(), until).await? {
                self.known().await;
                return Ok((self.key(permit, key_id).await?, key));
            }
        }
        Err(store::Error::Contention.into())
    }

    pub async fn revoke(&self, permit: &Permit, key_id: &str) -> Result<StoredKey> {
        self.key(permit, key_id).await?;
        let by = permit.author().unwrap_or_default();
        if !self.keyring.store().revoke_key(key_id, self.now(), by).await? {
            return Err(not_found(key_id));
        }
        self.known().await;
        self.key(permit, key_id).await
    }

    /// This server need not wait for its next read.
    async fn known(&self) {
        if let Err(error) = self.keyring.refresh().await {
            let error = &error as &dyn std::error::Error;
            tracing::debug!(error, "the keys are read a little later");
        }
    }
}
