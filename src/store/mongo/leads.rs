//! The right to be the one server that does something in the background: a document of each in `stepwell_meta`, by the
//! clock of the database, which all servers share.

use std::future::IntoFuture as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bson::{doc, rawdoc};

use super::db::values::epoch;
use super::db::{Connection, Db, failure};
use super::names::META;
use crate::store::Result;
use crate::store::leads::{Claim, Leads, TAKEN_WITHIN};

/// A transaction that was left alone for so long is one of a server that died. A busy machine may take a second
/// between two commands.
pub const ABANDONED: Duration = Duration::from_secs(4);
const _: () = assert!(
    TAKEN_WITHIN.as_millis() > ABANDONED.as_millis(),
    "whoever waits for a lease that the transaction of a dead server holds can then end that transaction"
);

/// Who leads.
pub struct LeadRoom {
    db: Arc<Db>,
}

impl LeadRoom {
    pub fn new(db: Arc<Db>) -> LeadRoom {
        LeadRoom { db }
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Whether somebody leads in `name` just now.
pub async fn is_held(ready: &Connection, name: &str) -> Result<bool> {
    let lease = doc! { "_id": name, "$expr": { "$gt": ["$expires_at", "$$NOW"] } };
    Ok(ready.call(ready.latest(META).count_documents(lease)).await? > 0)
}

#[async_trait]
impl Leads for LeadRoom {
    async fn lead(&self, name: &str, holder: &str, length: Duration, claim: Claim) -> Result<bool> {
        let ready = self.db.ready().await?;
        let leases = ready.own(META);
        // By the clock of the database, which all servers share.
        let time = |field: &str| doc! { "$ifNull": [field, epoch()] };
        let free = doc! { "$or": [
            { "$eq": ["$holder", holder] },
            { "$lte": [time("$expires_at"), "$$NOW"] },
        ] };
        let filter = match claim {
            Claim::ByForce => doc! { "_id": name },
            Claim::IfFree => doc! { "_id": name, "$expr": free },
            Claim::IfHeld => doc! { "_id": name, "holder": holder },
            Claim::UnlessDoneWithin(within) => {
                let since = doc! { "$subtract": ["$$NOW", millis(within)] };
                let rested = doc! { "$lte": [time("$ended_at"), since] };
                doc! { "_id": name, "$expr": { "$and": [free, rested] } }
            }
        };
        let until = doc! { "$add": ["$$NOW", millis(length)] };
        let update = vec![doc! { "$set": { "holder": holder, "expires_at": until } }];
        for _ in 0..2 {
            let taken = leases.update_one(filter.clone(), update.clone()).into_future();
            let taken = match tokio::time::timeout(TAKEN_WITHIN, taken).await {
                Ok(taken) => taken.map_err(failure::error)?,
                // A server that died in the middle of its transaction still holds the document.
                Err(_) => {
                    ready.end_abandoned(ABANDONED).await;
                    ready.call(leases.update_one(filter.clone(), update.clone())).await?
                }
            };
            if taken.matched_count == 1 {
                return Ok(true);
            }
            if claim == Claim::IfHeld {
                return Ok(false);
            }
            match ready.try_call(leases.insert_one(rawdoc! { "_id": name })).await? {
                Ok(_) => {}
                Err(error) if failure::code(&error) == Some(failure::DUPLICATE_KEY) => {
                    return Ok(false);
                }
                Err(error) => return Err(failure::error(error)),
            }
        }
        Ok(false)
    }

    async fn cede(&self, name: &str, holder: &str, done: bool) -> Result<()> {
        let ready = self.db.ready().await?;
        let mut set = doc! { "expires_at": epoch() };
        if done {
            set.insert("ended_at", "$$NOW");
        }
        let update = vec![doc! { "$set": set }, doc! { "$unset": "holder" }];
        let filter = doc! { "_id": name, "holder": holder };
        ready.call(ready.own(META).update_one(filter, update)).await.map(drop)
    }
}
