//! The secret that all servers on a database share, by which they know each other's tokens.

use bson::{doc, rawdoc};
use sha2::{Digest as _, Sha256};

use super::db::values::binary;
use super::db::{Connection, failure};
use super::names::META;
use crate::store::{Error, Result};

const ID: &str = "token_secret";

#[expect(clippy::disallowed_methods, reason = "a key is made here once for each database")]
fn random() -> [u8; 32] {
    // 244 random bits from the operating system, spread evenly.
    let mut hash = Sha256::new();
    hash.update(uuid::Uuid::new_v4().as_bytes());
    hash.update(uuid::Uuid::new_v4().as_bytes());
    hash.finalize().into()
}

/// The secret of a database. The first server to insert it wins.
pub async fn shared(ready: &Connection) -> Result<[u8; 32]> {
    let meta = ready.own(META);
    for _ in 0..10 {
        if let Some(found) = ready.call(meta.find_one(doc! { "_id": ID })).await? {
            let value = found.get_binary("value").ok();
            let bytes = value.and_then(|value| <[u8; 32]>::try_from(value.bytes).ok());
            let unreadable =
                || Error::Corrupt { collection: META.as_str(), id: ID.to_owned(), field: "value" };
            let secret = bytes.ok_or_else(unreadable)?;
            // A write that changes nothing waits until what it found is safe from a failover.
            let same = doc! { "_id": ID, "value": binary(&secret) };
            let safe = meta.update_one(same, doc! { "$set": { "value": binary(&secret) } });
            if ready.call(safe).await?.matched_count == 1 {
                return Ok(secret);
            }
            continue;
        }
        let secret = meta.insert_one(rawdoc! { "_id": ID, "value": binary(&random()) });
        match ready.try_call(secret).await? {
            Ok(_) => {}
            // Another server was first.
            Err(error) if failure::code(&error) == Some(failure::DUPLICATE_KEY) => {}
            Err(error) => return Err(failure::error(error)),
        }
    }
    Err(failure::away())
}
