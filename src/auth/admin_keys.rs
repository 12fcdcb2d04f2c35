//! Keys of the server's own file: what opens a server whose database has no key yet.

use std::sync::Arc;

use parking_lot::RwLock;
use subtle::ConstantTimeEq as _;

use super::caller::{Caller, CallerKind};
use super::key::{Key, KeyHash};
use crate::domain::access::{Grant, Role};

/// Lines of keys at most.
const KEYS_MOST: usize = 16;
const HASH_PREFIX: &str = "sha256:";

/// One line.
#[derive(Debug, Clone)]
struct AdminKey {
    hash: KeyHash,
    caller: Arc<Caller>,
}

/// What is in the file, as of when it was last read.
#[derive(Debug, Default)]
pub struct AdminKeys {
    keys: RwLock<Arc<Vec<AdminKey>>>,
}

/// The hash of a line and the id by which its key is known.
fn line(text: &str) -> Option<(KeyHash, String)> {
    if let Some(digits) = text.strip_prefix(HASH_PREFIX) {
        let hash: KeyHash = hex::decode(digits).ok()?.try_into().ok()?;
        return Some((hash, hex::encode(&hash[..6])));
    }
    let key = Key::parse(text)?;
    Some((key.hash(), key.id().to_owned()))
}

/// The keys of a file; else what is wrong with it. Never what is in it.
fn read(text: &str) -> Result<Vec<(KeyHash, String)>, String> {
    let mut keys = Vec::new();
    for (number, text) in text.lines().enumerate() {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let bad =
            || format!("line {} is neither a key nor {HASH_PREFIX} and 64 hex digits", number + 1);
        keys.push(line(text).ok_or_else(bad)?);
    }
    match keys.len() {
        0 => Err("has no key".to_owned()),
        count if count > KEYS_MOST => {
            Err(format!("has {count} keys, more than the limit of {KEYS_MOST}"))
        }
        _ => Ok(keys),
    }
}

impl AdminKeys {
    /// Takes what is in the file. What is wrong with it leaves the keys of before.
    pub fn take(&self, text: &str) -> Result<(), String> {
        let read = read(text)?;
        let before = Arc::clone(&self.keys.read());
        let keep = |(hash, id): (KeyHash, String)| {
            let same = before.iter().find(|key| key.hash == hash).cloned();
            same.unwrap_or_else(|| {
                let grants = vec![Grant::everywhere(Role::Admin, false)];
                let name = format!("admin/{id}");
                AdminKey {
                    hash,
                    caller: Arc::new(Caller::new(CallerKind::AdminKey, id, name, grants, None)),
                }
            })
        };
        let now: Vec<AdminKey> = read.into_iter().map(keep).collect();
        for gone in before.iter().filter(|key| now.iter().all(|other| other.hash != key.hash)) {
            gone.caller.ended.cancel();
        }
        *self.keys.write() = Arc::new(now);
        Ok(())
    }

    /// Whether a key of this id is in the file.
    pub fn has(&self, id: &str) -> bool {
        self.keys.read().iter().any(|key| key.caller.id == id)
    }

    /// Whose key this is. Takes as long for a wrong one as for a right one.
    pub fn caller(&self, hash: &KeyHash) -> Option<Arc<Caller>> {
        let keys = Arc::clone(&self.keys.read());
        let mut found = None;
        for key in keys.iter() {
            if bool::from(key.hash.ct_eq(hash)) {
                found = Some(Arc::clone(&key.caller));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_keys_or_their_hashes_and_two_are_a_rotation() {
        let (one, two) = (Key::generate().unwrap(), Key::generate().unwrap());
        let hashed = format!("sha256:{}", hex::encode(two.hash()));
        let keys = AdminKeys::default();
        keys.take(&format!("# first\n{}\n\n{hashed}\n", one.expose())).unwrap();
        let first = keys.caller(&one.hash()).unwrap();
        assert!(first.id == one.id() && keys.caller(&two.hash()).is_some());
        assert!(keys.caller(&Key::generate().unwrap().hash()).is_none());
        let open = keys.caller(&two.hash()).unwrap();
        keys.take(&hashed).unwrap();
        assert!(keys.caller(&one.hash()).is_none() && first.ended.is_cancelled());
        assert!(!open.ended.is_cancelled(), "what stays is not cut off");
        for bad in ["", "# nothing\n", "swk_wrong", "sha256:12", &format!("{hashed}00")] {
            let why = keys.take(bad).unwrap_err();
            assert!(!why.contains("swk_wrong"), "{why}");
            assert!(keys.caller(&two.hash()).is_some(), "the keys of before stay: {bad}");
        }
    }
}
