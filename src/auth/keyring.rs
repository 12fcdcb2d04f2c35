//! All keys of the database, in memory: a call is decided without asking it. Read again every two seconds, so that a key
//! that was revoked is good nowhere for longer than five.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use subtle::ConstantTimeEq as _;
use tokio_util::sync::CancellationToken;

use super::caller::{Caller, CallerKind};
use super::denied::Denied;
use super::key::{Key, KeyHash};
use super::throttle::Bucket;
use crate::clock::Clock;
use crate::domain::Millis;
use crate::domain::access::Grant;
use crate::store;
use crate::store::keys::{KeyStore, StoredKey};

/// How often the keys are read.
pub const READ_EVERY: Duration = Duration::from_secs(2);
/// A copy older than this lets nobody in.
pub const GOOD_FOR: Duration = Duration::from_secs(60);
/// How often it is noted when a key was used.
const NOTED_EVERY: Duration = Duration::from_secs(60);
/// Revocation and expiry hold everywhere within this.
const HOLDS_WITHIN: Duration = Duration::from_secs(5);
const _: () = assert!(
    READ_EVERY.as_millis() * 2 < HOLDS_WITHIN.as_millis(),
    "a key that was revoked just after a read is known to be with the next one, even if that takes its time"
);

/// One of the secrets under which a key is good.
struct Secret {
    hash: KeyHash,
    until: Option<Millis>,
    caller: Arc<Caller>,
}

/// A key with all that does not change between two reads.
struct Entry {
    key: StoredKey,
    secrets: Vec<Secret>,
    /// When it was last used here; 0: never.
    used_at: Arc<AtomicI64>,
}

impl Entry {
    fn is_over(&self, now: Millis) -> bool {
        self.key.revoked_at.is_some() || self.key.expires_at.is_some_and(|at| at <= now)
    }
}

#[derive(Default)]
struct Table {
    by_id: HashMap<String, Arc<Entry>>,
    read_at: Option<Instant>,
}

/// The keys.
pub struct Keyring {
    store: Arc<dyn KeyStore>,
    clock: Arc<dyn Clock>,
    table: RwLock<Arc<Table>>,
    /// One read at a time, so that an older one never comes last.
    reading: tokio::sync::Mutex<()>,
    noted: Mutex<HashMap<String, Millis>>,
}

impl Keyring {
    pub fn new(store: Arc<dyn KeyStore>, clock: Arc<dyn Clock>) -> Keyring {
        Keyring {
            store,
            clock,
            table: RwLock::default(),
            reading: tokio::sync::Mutex::default(),
            noted: Mutex::default(),
        }
    }

    pub fn store(&self) -> &Arc<dyn KeyStore> {
        &self.store
    }

    /// Whose key this is. Compares in constant time, and says that it has expired only to who has the secret.
    pub fn caller(&self, key: &Key, hash: &KeyHash) -> Result<Arc<Caller>, Denied> {
        let table = Arc::clone(&self.table.read());
        let now = self.clock.instant();
        let is_fresh =
            table.read_at.is_some_and(|at| now.saturating_duration_since(at) <= GOOD_FOR);
        if !is_fresh {
            return Err(Denied::Unavailable);
        }
        let Some(entry) = table.by_id.get(key.id()) else {
            // As long as for one that is known.
            let _ = std::hint::black_box([0u8; 32].ct_eq(hash));
            return Err(Denied::Invalid);
        };
        let mut found = None;
        for secret in &entry.secrets {
            if bool::from(secret.hash.ct_eq(hash)) {
                found = Some(secret);
            }
        }
        let at = self.clock.now().millis();
        let secret = found.ok_or(Denied::Invalid)?;
        if entry.key.revoked_at.is_some() || secret.until.is_some_and(|until| until <= at) {
            return Err(Denied::Invalid);
        }
        if entry.is_over(at) {
            return Err(Denied::Expired);
        }
        if let Some(bucket) = &secret.caller.bucket {
            bucket.take(now).map_err(|retry_after| Denied::RateLimited { retry_after })?;
        }
        entry.used_at.store(at, Ordering::Relaxed);
        Ok(Arc::clone(&secret.caller))
    }

    /// What a key allows now; `None`: nothing any more. `Err`: nobody can say, also of one that was made just now.
    pub fn grants(&self, id: &str) -> Result<Option<Vec<Grant>>, Denied> {
        let table = Arc::clone(&self.table.read());
        let now = self.clock.instant();
        let is_fresh =
            table.read_at.is_some_and(|at| now.saturating_duration_since(at) <= GOOD_FOR);
        let entry = table.by_id.get(id).filter(|_| is_fresh).ok_or(Denied::Unavailable)?;
        let is_over = entry.is_over(self.clock.now().millis());
        Ok((!is_over).then(|| entry.key.grants.clone()))
    }

    /// Reads the keys.
    pub async fn refresh(&self) -> store::Result<()> {
        let _one = self.reading.lock().await;
        // What is true at the beginning of the read is true of the copy.
        let began = self.clock.instant();
        let keys = self.store.keys().await?;
        let before = Arc::clone(&self.table.read());
        let mut by_id = HashMap::with_capacity(keys.len());
        for key in keys {
            let known = before.by_id.get(&key.id);
            let entry = match known {
                Some(known) if same(&known.key, &key) => Arc::clone(known),
                known => Arc::new(self.entry(key, known)),
            };
            by_id.insert(entry.key.id.clone(), entry);
        }
        for (id, entry) in &before.by_id {
            let still = |secret: &Secret| {
                let now = by_id.get(id).map(|entry| entry.secrets.as_slice()).unwrap_or_default();
                now.iter().any(|other| other.hash == secret.hash)
            };
            entry
                .secrets
                .iter()
                .filter(|secret| !still(secret))
                .for_each(|secret| secret.caller.ended.cancel());
        }
        *self.table.write() = Arc::new(Table { by_id, read_at: Some(began) });
        self.end_what_is_over();
        Ok(())
    }

    fn entry(&self, key: StoredKey, before: Option<&Arc<Entry>>) -> Entry {
        let known = before.and_then(|entry| entry.secrets.first());
        let bucket = known.and_then(|secret| secret.caller.bucket.clone()).or_else(|| {
            let per_second = key.calls_per_second.filter(|calls| *calls > 0.0)?;
            Some(Arc::new(Bucket::new(per_second, key.burst, self.clock.instant())))
        });
        let previous = key.previous.as_ref();
        let hashes = std::iter::once((key.secret_sha256, None))
            .chain(previous.map(|previous| (previous.secret_sha256, Some(previous.until))));
        let secrets = hashes
            .map(|(hash, until)| {
                let known =
                    before.and_then(|entry| entry.secrets.iter().find(|known| known.hash == hash));
                let caller = known.map_or_else(
                    || {
                        let (id, name) = (key.id.as_str(), key.name.as_str());
                        let grants = key.grants.clone();
                        let caller = Caller::new(CallerKind::Key, id, name, grants, key.expires_at);
                        Arc::new(caller.limited(bucket.clone()))
                    },
                    |known| Arc::clone(&known.caller),
                );
                Secret { hash, until, caller }
            })
            .collect();
        let used_at = before.map(|entry| Arc::clone(&entry.used_at)).unwrap_or_default();
        Entry { key, secrets, used_at }
    }

    /// Ends the streams of keys that are good no more.
    fn end_what_is_over(&self) {
        let table = Arc::clone(&self.table.read());
        let now = self.clock.now().millis();
        for entry in table.by_id.values() {
            let over = entry.is_over(now);
            for secret in &entry.secrets {
                if over || secret.until.is_some_and(|until| until <= now) {
                    secret.caller.ended.cancel();
                }
            }
        }
    }

    /// Notes in the database when keys were used.
    async fn note_uses(&self) -> store::Result<()> {
        let table = Arc::clone(&self.table.read());
        let used: Vec<(String, Millis)> = {
            let noted = self.noted.lock();
            let uses = table.by_id.values().filter_map(|entry| {
                let at = entry.used_at.load(Ordering::Relaxed);
                let before =
                    noted.get(&entry.key.id).copied().or(entry.key.last_used_at).unwrap_or(0);
                let due = at.saturating_sub(before) >= NOTED_EVERY.as_millis() as i64;
                (at > 0 && due).then(|| (entry.key.id.clone(), at))
            });
            uses.collect()
        };
        if used.is_empty() {
            return Ok(());
        }
        self.store.keys_used(&used).await?;
        self.noted.lock().extend(used);
        Ok(())
    }

    /// Keeps the copy fresh until `stop`.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let mut away = false;
        loop {
            let read = async {
                self.refresh().await?;
                self.note_uses().await
            };
            match read.await {
                Ok(()) if away => {
                    tracing::info!("the keys of callers can be read again");
                    away = false;
                }
                Ok(()) => {}
                Err(error) => {
                    // An expiry holds all the same.
                    self.end_what_is_over();
                    if !away {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(
                            error,
                            "the keys of callers cannot be read; the copy is good for a minute"
                        );
                    }
                    away = true;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(READ_EVERY) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

/// Whether nothing but the last use differs.
fn same(one: &StoredKey, other: &StoredKey) -> bool {
    let without = |key: &StoredKey| StoredKey { last_used_at: None, ..key.clone() };
    without(one) == without(other)
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::clock::ManualClock;
    use crate::domain::access::Role;
    use crate::store::keys::Previous;

    #[derive(Default)]
    struct Memory {
        keys: Mutex<Vec<StoredKey>>,
        away: std::sync::atomic::AtomicBool,
        used: Mutex<Vec<(String, Millis)>>,
    }

    #[async_trait]
    impl KeyStore for Memory {
        async fn keys(&self) -> store::Result<Vec<StoredKey>> {
            match self.away.load(Ordering::SeqCst) {
                true => Err(store::Error::away()),
                false => Ok(self.keys.lock().clone()),
            }
        }

        async fn add_key(&self, key: &StoredKey) -> store::Result<bool> {
            self.keys.lock().push(key.clone());
            Ok(true)
        }

        async fn rotate_key(
            &self,
            _: &str,
            _: [u8; 32],
            _: [u8; 32],
            _: Millis,
        ) -> store::Result<bool> {
            Ok(false)
        }

        async fn revoke_key(&self, _: &str, _: Millis, _: &str) -> store::Result<bool> {
            Ok(false)
        }

        async fn keys_used(&self, used: &[(String, Millis)]) -> store::Result<()> {
            self.used.lock().extend(used.to_vec());
            Ok(())
        }
    }

    fn stored(key: &Key) -> StoredKey {
        StoredKey {
            id: key.id().to_owned(),
            name: "n".to_owned(),
            grants: vec![Grant::everywhere(Role::Viewer, false)],
            secret_sha256: key.hash(),
            previous: None,
            created_at: 0,
            created_by: String::new(),
            expires_at: None,
            revoked_at: None,
            revoked_by: None,
            last_used_at: None,
            calls_per_second: None,
            burst: None,
        }
    }

    struct Rig {
        store: Arc<Memory>,
        clock: Arc<ManualClock>,
        ring: Keyring,
        key: Key,
    }

    impl Rig {
        async fn new(change: impl FnOnce(&mut StoredKey)) -> Rig {
            let (store, clock) =
                (Arc::new(Memory::default()), Arc::new(ManualClock::at(1_000_000_000)));
            let key = Key::generate().unwrap();
            let mut record = stored(&key);
            change(&mut record);
            store.keys.lock().push(record);
            let ring = Keyring::new(Arc::clone(&store) as _, Arc::clone(&clock) as _);
            ring.refresh().await.unwrap();
            Rig { store, clock, ring, key }
        }

        fn caller(&self, key: &Key) -> Result<Arc<Caller>, Denied> {
            self.ring.caller(key, &key.hash())
        }
    }

    #[tokio::test]
    async fn a_key_is_good_until_it_is_revoked_or_expires() {
        let rig = Rig::new(|key| key.expires_at = Some(1_060_000)).await;
        let caller = rig.caller(&rig.key).unwrap();
        assert_eq!(rig.caller(&Key::generate().unwrap()).unwrap_err(), Denied::Invalid);
        assert_eq!(rig.caller(&Key::with_id(rig.key.id()).unwrap()).unwrap_err(), Denied::Invalid);
        rig.clock.advance_ms(60_000);
        assert_eq!(rig.caller(&rig.key).unwrap_err(), Denied::Expired);
        let wrong = Key::with_id(rig.key.id()).unwrap();
        assert_eq!(
            rig.caller(&wrong).unwrap_err(),
            Denied::Invalid,
            "only the secret tells of an expiry"
        );
        assert_eq!(rig.ring.grants(rig.key.id()), Ok(None));
        assert!(!caller.ended.is_cancelled());
        rig.ring.refresh().await.unwrap();
        assert!(caller.ended.is_cancelled());

        let rig = Rig::new(|_| {}).await;
        let caller = rig.caller(&rig.key).unwrap();
        let viewer = vec![Grant::everywhere(Role::Viewer, false)];
        assert_eq!(rig.ring.grants(rig.key.id()), Ok(Some(viewer)));
        assert_eq!(rig.ring.grants("unknown"), Err(Denied::Unavailable));
        rig.store.keys.lock()[0].revoked_at = Some(5);
        rig.ring.refresh().await.unwrap();
        assert_eq!(rig.caller(&rig.key).unwrap_err(), Denied::Invalid);
        assert_eq!(rig.ring.grants(rig.key.id()), Ok(None));
        assert!(caller.ended.is_cancelled());
    }

    #[tokio::test]
    async fn a_rotated_key_is_good_under_both_secrets_for_a_while() {
        let rig = Rig::new(|_| {}).await;
        let old = rig.caller(&rig.key).unwrap();
        let next = Key::with_id(rig.key.id()).unwrap();
        {
            let mut keys = rig.store.keys.lock();
            keys[0].previous = Some(Previous { secret_sha256: rig.key.hash(), until: 1_005_000 });
            keys[0].secret_sha256 = next.hash();
        }
        rig.ring.refresh().await.unwrap();
        let new = rig.caller(&next).unwrap();
        assert!(rig.caller(&rig.key).is_ok() && !old.ended.is_cancelled());
        rig.clock.advance_ms(5_000);
        assert_eq!(rig.caller(&rig.key).unwrap_err(), Denied::Invalid);
        rig.ring.refresh().await.unwrap();
        assert!(old.ended.is_cancelled() && !new.ended.is_cancelled());
        assert!(rig.caller(&next).is_ok());
    }

    #[tokio::test]
    async fn a_copy_is_good_for_a_minute_and_open_streams_go_on() {
        let rig = Rig::new(|_| {}).await;
        rig.store.away.store(true, Ordering::SeqCst);
        let caller = rig.caller(&rig.key).unwrap();
        rig.clock.advance_ms(60_000);
        assert!(rig.ring.refresh().await.is_err() && rig.caller(&rig.key).is_ok());
        rig.clock.advance_ms(1);
        assert_eq!(rig.caller(&rig.key).unwrap_err(), Denied::Unavailable);
        assert!(!caller.ended.is_cancelled());
        rig.store.away.store(false, Ordering::SeqCst);
        rig.ring.refresh().await.unwrap();
        assert!(rig.caller(&rig.key).is_ok());
        let fresh = Keyring::new(Arc::clone(&rig.store) as _, Arc::clone(&rig.clock) as _);
        assert_eq!(fresh.caller(&rig.key, &rig.key.hash()).unwrap_err(), Denied::Unavailable);
    }

    #[tokio::test]
    async fn uses_are_noted_once_a_minute_at_most() {
        let rig = Rig::new(|_| {}).await;
        for _ in 0..100 {
            rig.ring.refresh().await.unwrap();
            rig.caller(&rig.key).unwrap();
            rig.ring.note_uses().await.unwrap();
            rig.clock.advance_ms(1_000);
        }
        assert_eq!(rig.store.used.lock().len(), 2);
    }

    #[tokio::test]
    async fn a_limit_of_calls_survives_a_read() {
        let rig = Rig::new(|key| (key.calls_per_second, key.burst) = (Some(1.0), Some(2))).await;
        assert!(rig.caller(&rig.key).is_ok() && rig.caller(&rig.key).is_ok());
        rig.store.keys.lock()[0].last_used_at = Some(7);
        rig.ring.refresh().await.unwrap();
        assert!(matches!(rig.caller(&rig.key), Err(Denied::RateLimited { .. })));
    }
}
