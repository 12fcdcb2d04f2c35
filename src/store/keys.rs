//! Keys of callers, as they are stored: everything but the secret.

use async_trait::async_trait;

use super::error::Result;
use crate::domain::Millis;
use crate::domain::access::{AppPattern, Grant, Role};

/// Keys that a database may have.
pub const KEYS_MOST: usize = 10_000;

/// After which a key that nobody uses is idle.
const IDLE_MS: Millis = 90 * 24 * 3600 * 1000;

/// What a key was before it was rotated, for as long as that is still good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Previous {
    pub secret_sha256: [u8; 32],
    pub until: Millis,
}

/// A key. Its grants never change.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredKey {
    pub id: String,
    pub name: String,
    pub grants: Vec<Grant>,
    /// Of the whole key as text.
    pub secret_sha256: [u8; 32],
    pub previous: Option<Previous>,
    pub created_at: Millis,
    pub created_by: String,
    pub expires_at: Option<Millis>,
    pub revoked_at: Option<Millis>,
    pub revoked_by: Option<String>,
    pub last_used_at: Option<Millis>,
    pub calls_per_second: Option<f64>,
    pub burst: Option<i32>,
}

impl StoredKey {
    /// Whether it is good and nobody has used it for long.
    pub fn is_idle(&self, now: Millis) -> bool {
        let is_good =
            self.revoked_at.is_none() && self.expires_at.is_none_or(|expires_at| expires_at > now);
        let last = self.last_used_at.unwrap_or(self.created_at).max(self.created_at);
        is_good && now.saturating_sub(last) > IDLE_MS
    }
}

/// Those of the keys that are idle, by id and name.
pub fn idle(keys: &[StoredKey], now: Millis) -> Vec<String> {
    let idle = keys.iter().filter(|key| key.is_idle(now));
    idle.map(|key| format!("{} ({})", key.id, key.name)).collect()
}

/// Keeps keys.
#[async_trait]
pub trait KeyStore: Send + Sync + 'static {
    /// All of them, by id. One that cannot be read is left out: it opens nothing.
    async fn keys(&self) -> Result<Vec<StoredKey>>;

    /// Stores a new one. False: there are `KEYS_MOST`, or the id is taken.
    async fn add_key(&self, key: &StoredKey) -> Result<bool>;

    /// Gives a key that is not revoked another secret. False: there is none, or its secret is not `from` any more.
    async fn rotate_key(
        &self,
        id: &str,
        from: [u8; 32],
        to: [u8; 32],
        until: Millis,
    ) -> Result<bool>;

    /// Revokes a key; the first time counts. False: there is none.
    async fn revoke_key(&self, id: &str, at: Millis, by: &str) -> Result<bool>;

    /// Notes when keys were last used, unless something later is noted.
    async fn keys_used(&self, used: &[(String, Millis)]) -> Result<()>;
}

/// A grant in the words in which it is stored; `None`: it says something that is not known here.
pub fn grant(role: &str, apps: &[&str], reveal: bool) -> Option<Grant> {
    let apps: Option<Vec<AppPattern>> =
        apps.iter().map(|app| AppPattern::parse(app).ok()).collect();
    Some(Grant { role: Role::parse(role)?, apps: apps?, reveal })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_good_key_that_nobody_uses_is_idle() {
        let day = 24 * 3600 * 1000;
        let now = 1_000 * day;
        let key = |created_at: Millis| StoredKey {
            id: "id".to_owned(),
            name: "name".to_owned(),
            grants: Vec::new(),
            secret_sha256: [0; 32],
            previous: None,
            created_at,
            created_by: String::new(),
            expires_at: None,
            revoked_at: None,
            revoked_by: None,
            last_used_at: None,
            calls_per_second: None,
            burst: None,
        };
        let old = key(now - 91 * day);
        assert!(old.is_idle(now) && !key(now - 89 * day).is_idle(now));
        assert!(!StoredKey { last_used_at: Some(now - 89 * day), ..old.clone() }.is_idle(now));
        assert!(StoredKey { last_used_at: Some(now - 91 * day), ..old.clone() }.is_idle(now));
        assert!(!StoredKey { revoked_at: Some(now - 1), ..old.clone() }.is_idle(now));
        assert!(!StoredKey { expires_at: Some(now - 1), ..old.clone() }.is_idle(now));
        assert!(StoredKey { expires_at: Some(now + 1), ..old.clone() }.is_idle(now));
        assert_eq!(idle(&[old, key(now)], now), ["id (name)"]);
    }
}
