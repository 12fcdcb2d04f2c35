//! States of mirrors, among what the servers of a database share.

use std::sync::Arc;

use async_trait::async_trait;
use bson::{RawDocument, doc};

use super::db::values::raw;
use super::db::{Db, failure};
use super::names::META;
use crate::domain::mirror::Mirror;
use crate::store::mirrors::{Kept, MIRRORS_MOST, MirrorStore};
use crate::store::{Error, Result};

/// Begins the `_id` of a state; its name follows.
const PREFIX: &str = "mirror/";
/// Comes after all of them.
const AFTER: &str = "mirror0";

/// Keeps states of mirrors.
pub struct MirrorRoom {
    db: Arc<Db>,
}

impl MirrorRoom {
    pub fn new(db: Arc<Db>) -> MirrorRoom {
        MirrorRoom { db }
    }
}

fn id(name: &str) -> String {
    format!("{PREFIX}{name}")
}

fn kept(found: &RawDocument) -> Result<Kept> {
    let state = found.get_str("state").ok().and_then(|state| serde_json::from_str(state).ok());
    match (found.get_i64("version"), state) {
        (Ok(version), Some(mirror)) => Ok(Kept { version, mirror }),
        _ => Err(Error::Corrupt {
            collection: META.as_str(),
            id: found.get_str("_id").unwrap_or_default().to_owned(),
            field: "state",
        }),
    }
}

#[async_trait]
impl MirrorStore for MirrorRoom {
    async fn mirrors(&self) -> Result<Vec<Kept>> {
        let ready = self.db.ready().await?;
        let meta = ready.own(META);
        let limit = i64::try_from(MIRRORS_MOST).unwrap_or(i64::MAX);
        let find = meta.find(doc! { "_id": { "$gte": PREFIX, "$lt": AFTER } });
        let found = ready.collect(find.sort(doc! { "_id": 1 }).limit(limit)).await?;
        found.iter().map(|found| kept(found)).collect()
    }

    async fn mirror(&self, name: &str) -> Result<Option<Kept>> {
        let ready = self.db.ready().await?;
        let found = ready.call(ready.latest(META).find_one(doc! { "_id": id(name) })).await?;
        found.map(|found| kept(&found)).transpose()
    }

    async fn store_mirror(&self, before: Option<i64>, mirror: &Mirror) -> Result<bool> {
        let ready = self.db.ready().await?;
        let meta = ready.own(META);
        let state = serde_json::to_string(mirror).map_err(Error::failed)?;
        let Some(version) = before else {
            let new = raw(&doc! { "_id": id(&mirror.name), "version": 1_i64, "state": state })?;
            return match ready.try_call(meta.insert_one(new)).await? {
                Ok(_) => Ok(true),
                Err(error) if failure::code(&error) == Some(failure::DUPLICATE_KEY) => Ok(false),
                Err(error) => Err(failure::error(error)),
            };
        };
        let this = doc! { "_id": id(&mirror.name), "version": version };
        let change = doc! { "$set": { "state": state }, "$inc": { "version": 1_i64 } };
        Ok(ready.call(meta.update_one(this, change)).await?.matched_count > 0)
    }
}
