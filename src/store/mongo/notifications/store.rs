//! Subscriptions, and reading what was told and what waits.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use bson::raw::RawDocument;
use bson::{Document, doc};

use super::commit::{self, commit};
use super::ids::{LEAD, told_id, told_to};
use crate::domain::Millis;
use crate::domain::notification::DeliveryState;
use crate::domain::query::Page;
use crate::store::mongo::db::values::{any, date, field, integer, millis, raw, small, text};
use crate::store::mongo::db::{Connection, Db, Index, failure, update_document};
use crate::store::mongo::names::{DELIVERIES, META, Name, SUBSCRIPTIONS, TOLD};
use crate::store::notifications::{
    Attempted, DEAD_COUNTED, Delivery, DeliveryQuery, Head, Moved, NotificationBatch,
    NotificationStore, Progress, Subscribed, Subscription, Told, ToldKey, Undelivered, Waiting,
    documents,
};
use crate::store::{Cursor, Error, Result};

/// Keys asked for in one query.
const ASKED_AT_ONCE: usize = 1_000;
/// Documents removed at a time.
const REMOVED_AT_ONCE: usize = 1_000;
/// Ends of tries in one command.
const NOTED_AT_ONCE: usize = 500;

pub fn wanted() -> Vec<Index> {
    vec![
        Index::plain(DELIVERIES, doc! { "subscription_id": 1, "number": -1 }),
        Index::plain(DELIVERIES, doc! { "subscription_id": 1, "state": 1, "number": 1 }),
        Index::plain(DELIVERIES, doc! { "created_at": 1 }),
        Index::plain(TOLD, doc! { "at": 1 }),
    ]
}

/// Notifications.
pub struct NotificationRoom {
    db: Arc<Db>,
}

impl NotificationRoom {
    pub fn new(db: Arc<Db>) -> NotificationRoom {
        NotificationRoom { db }
    }
}

fn progress_of(document: &RawDocument) -> Progress {
    let progress = field(document, "progress").and_then(|value| value.as_document());
    progress.map(documents::read_progress).unwrap_or_default()
}

fn told_key(document: &RawDocument) -> Option<ToldKey> {
    let id = field(document, "_id")?.as_document()?;
    let step_id = field(id, "t").and_then(small)?;
    Some(ToldKey {
        subscription: field(id, "s").and_then(text)?,
        execution_id: field(id, "e").and_then(text)?,
        step_id: (step_id >= 0).then_some(step_id),
    })
}

fn delivery(document: &RawDocument) -> Option<Delivery> {
    let data = field(document, "data").and_then(text).unwrap_or_default();
    documents::read_delivery(&field(document, "_id").and_then(text)?, document, data)
}

/// Removes a piece of what matches; whether there may be more.
async fn remove_piece(ready: &Connection, name: Name, filter: Document) -> Result<bool> {
    let own = ready.own(name);
    let limit = i64::try_from(REMOVED_AT_ONCE).unwrap_or(i64::MAX);
    let find = own.find(filter).projection(doc! { "_id": 1 }).limit(limit);
    let found = ready.collect(find).await?;
    let ids: Vec<_> = found.iter().filter_map(|found| field(found, "_id").and_then(any)).collect();
    if ids.is_empty() {
        return Ok(false);
    }
    let more = ids.len() >= REMOVED_AT_ONCE;
    ready.call(own.delete_many(doc! { "_id": { "$in": ids } })).await?;
    Ok(more)
}

/// What a delivery becomes that is to be tried again.
fn again(now: Millis) -> Document {
    let pending = DeliveryState::Pending.as_str();
    doc! { "$set": { "state": pending, "tries": 0, "next_at": date(now), "delivered_at": null } }
}

impl NotificationRoom {
    async fn asked(&self, ready: &Connection, subscription: &str) -> Result<()> {
        let own = ready.own(SUBSCRIPTIONS);
        let one_more = doc! { "$inc": { "progress.asked": 1_i64 } };
        ready.call(own.update_one(doc! { "_id": subscription }, one_more)).await.map(drop)
    }
}

#[async_trait]
impl NotificationStore for NotificationRoom {
    async fn subscriptions(&self) -> Result<Vec<Subscribed>> {
        let ready = self.db.ready().await?;
        let own = ready.own(SUBSCRIPTIONS);
        let found = ready.collect(own.find(doc! {}).sort(doc! { "_id": 1 })).await?;
        let read = |document: &bson::RawDocumentBuf| {
            let id = field(document, "_id").and_then(text)?;
            let subscription = documents::read_subscription(&id, document)?;
            Some(Subscribed { subscription, progress: progress_of(document) })
        };
        Ok(found.iter().filter_map(read).collect())
    }

    async fn add_subscription(&self, new: &Subscribed, most: usize) -> Result<bool> {
        let ready = self.db.ready().await?;
        let own = ready.own(SUBSCRIPTIONS);
        let count = ready.call(own.count_documents(doc! {})).await?;
        if usize::try_from(count).unwrap_or(usize::MAX) >= most {
            return Ok(false);
        }
        let mut document = doc! { "_id": &new.subscription.id };
        document.extend(documents::subscription(&new.subscription));
        document.insert("progress", documents::progress(&new.progress));
        match ready.try_call(own.insert_one(raw(&document)?)).await? {
            Ok(_) => Ok(true),
            Err(error) if failure::code(&error) == Some(failure::DUPLICATE_KEY) => Ok(false),
            Err(error) => Err(failure::error(error)),
        }
    }

    async fn change_subscription(
        &self,
        subscription: &Subscription,
        from: i64,
        moved: Option<&Moved>,
    ) -> Result<bool> {
        let ready = self.db.ready().await?;
        let mut update = moved.map(commit::moved).unwrap_or_default();
        let mut set = documents::subscription(subscription);
        if let Ok(moved) = update.get_document("$set") {
            set.extend(moved.clone());
        }
        update.insert("$set", set);
        let filter = doc! { "_id": &subscription.id, "revision": from };
        let changed = ready.call(ready.own(SUBSCRIPTIONS).update_one(filter, update)).await?;
        Ok(changed.matched_count == 1)
    }

    async fn remove_subscription(&self, id: &str) -> Result<bool> {
        let ready = self.db.ready().await?;
        let removed = ready.own(SUBSCRIPTIONS);
        let removed = ready.call(removed.delete_one(doc! { "_id": id })).await?;
        Ok(removed.deleted_count == 1)
    }

    async fn purge_subscription(&self, id: &str) -> Result<bool> {
        let ready = self.db.ready().await?;
        let told = remove_piece(&ready, TOLD, told_to(id)).await?;
        let of = doc! { "subscription_id": id };
        Ok(remove_piece(&ready, DELIVERIES, of).await? || told)
    }

    async fn notification_head(&self) -> Result<Option<Head>> {
        let ready = self.db.ready().await?;
        let found = ready.call(ready.own(META).find_one(doc! { "_id": LEAD })).await?;
        let Some(found) = found else { return Ok(None) };
        let Ok(cursor) = found.get_binary("cursor") else { return Ok(None) };
        let cursor = Cursor(cursor.bytes.to_vec());
        let at = field(&found, "at").and_then(millis).unwrap_or_default();
        let numbered = field(&found, "numbered").and_then(integer).unwrap_or(0);
        Ok(Some(Head { cursor, at, numbered }))
    }

    async fn told(&self, keys: &[ToldKey]) -> Result<HashMap<ToldKey, Told>> {
        let ready = self.db.ready().await?;
        let own = ready.own(TOLD);
        let mut told = HashMap::new();
        for keys in keys.chunks(ASKED_AT_ONCE) {
            let ids: Vec<Document> = keys.iter().map(told_id).collect();
            for found in ready.all(&own, doc! { "_id": { "$in": ids } }, None).await? {
                let Some(key) = told_key(&found) else { continue };
                if let Some(read) = documents::read_told(&found, key.step_id.is_some()) {
                    told.insert(key, read);
                }
            }
        }
        Ok(told)
    }

    async fn notify(&self, holder: &str, batch: NotificationBatch) -> Result<bool> {
        commit(&self.db, holder, &batch).await
    }

    async fn waiting(&self, subscription: &str, limit: usize) -> Result<Vec<Waiting>> {
        let ready = self.db.ready().await?;
        let own = ready.own(DELIVERIES);
        let pending = DeliveryState::Pending.as_str();
        let find = own
            .find(doc! { "subscription_id": subscription, "state": pending })
            .sort(doc! { "number": 1 })
            .projection(doc! { "number": 1, "execution_id": 1, "tries": 1, "next_at": 1 })
            .limit(i64::try_from(limit).unwrap_or(i64::MAX));
        let found = ready.collect(find).await?;
        let read = |found: &bson::RawDocumentBuf| {
            documents::read_waiting(&field(found, "_id").and_then(text)?, found)
        };
        Ok(found.iter().filter_map(read).collect())
    }

    async fn delivery(&self, id: &str) -> Result<Option<Delivery>> {
        let ready = self.db.ready().await?;
        let found = ready.call(ready.own(DELIVERIES).find_one(doc! { "_id": id })).await?;
        Ok(found.and_then(|found| delivery(&found)))
    }

    async fn attempted(&self, tries: &[Attempted]) -> Result<()> {
        let ready = self.db.ready().await?;
        let mut last: HashMap<&str, Option<u16>> = HashMap::new();
        let statement = |ended: &Attempted| {
            let delivered = (ended.state == DeliveryState::Delivered).then(|| date(ended.at));
            let pending = DeliveryState::Pending.as_str();
            let filter = doc! { "_id": &ended.id, "state": pending, "tries": ended.tries - 1 };
            let set = doc! {
                "state": ended.state.as_str(),
                "tries": ended.tries,
                "next_at": date(ended.next_at),
                "last_try_at": date(ended.at),
                "last_status": ended.status.map(i32::from),
                "last_failure": ended.failure,
                "delivered_at": delivered,
            };
            update_document(filter, doc! { "$set": set })
        };
        for tries in tries.chunks(NOTED_AT_ONCE) {
            let updates: Vec<Document> = tries.iter().map(statement).collect();
            let patience = i64::try_from(ready.patience().as_millis()).unwrap_or(i64::MAX);
            let answer = ready
                .command(doc! {
                    "update": DELIVERIES,
                    "updates": updates,
                    "ordered": true,
                    "writeConcern": { "w": "majority", "wtimeout": patience },
                })
                .await?;
            if answer.contains_key("writeErrors") || answer.contains_key("writeConcernError") {
                return Err(Error::unavailable("ends of deliveries are not stored yet"));
            }
            last.extend(tries.iter().map(|ended| (ended.subscription.as_str(), ended.status)));
        }
        for (subscription, status) in last {
            let set = doc! { "$set": { "progress.last_status": status.map(i32::from) } };
            let own = ready.own(SUBSCRIPTIONS);
            ready.call(own.update_one(doc! { "_id": subscription }, set)).await?;
        }
        Ok(())
    }

    async fn deliveries(&self, query: &DeliveryQuery) -> Result<Page<Delivery, i64>> {
        let ready = self.db.ready().await?;
        let mut filter = doc! { "subscription_id": &query.subscription };
        if let Some(before) = query.before {
            filter.insert("number", doc! { "$lt": before });
        }
        if !query.states.is_empty() {
            let states: HashSet<&str> = query.states.iter().map(|state| state.as_str()).collect();
            let states: Vec<&str> = states.into_iter().collect();
            filter.insert("state", doc! { "$in": states });
        }
        let own = ready.own(DELIVERIES);
        let find = own
            .find(filter)
            .sort(doc! { "number": -1 })
            .projection(doc! { "data": 0 })
            .limit(i64::try_from(query.limit).unwrap_or(i64::MAX));
        let found = ready.collect(find).await?;
        let records: Vec<Delivery> = found.iter().filter_map(|found| delivery(found)).collect();
        let last = found.last().and_then(|last| field(last, "number")).and_then(integer);
        Ok(Page { next: last.filter(|_| found.len() >= query.limit), records })
    }

    async fn redeliver(&self, id: &str, now: Millis) -> Result<bool> {
        let ready = self.db.ready().await?;
        let own = ready.own(DELIVERIES);
        let changed = own.find_one_and_update(doc! { "_id": id }, again(now));
        let Some(found) = ready.call(changed).await? else { return Ok(false) };
        if let Some(subscription) = field(&found, "subscription_id").and_then(text) {
            self.asked(&ready, &subscription).await?;
        }
        Ok(true)
    }

    async fn redeliver_dead(&self, subscription: &str, limit: usize, now: Millis) -> Result<u64> {
        let ready = self.db.ready().await?;
        let own = ready.own(DELIVERIES);
        let dead = DeliveryState::Dead.as_str();
        let find = own
            .find(doc! { "subscription_id": subscription, "state": dead })
            .sort(doc! { "number": 1 })
            .projection(doc! { "_id": 1 })
            .limit(i64::try_from(limit).unwrap_or(i64::MAX));
        let found = ready.collect(find).await?;
        let ids: Vec<_> =
            found.iter().filter_map(|found| field(found, "_id").and_then(any)).collect();
        let mut changed = 0;
        for ids in ids.chunks(ASKED_AT_ONCE) {
            let filter = doc! { "_id": { "$in": ids.to_vec() }, "state": dead };
            changed += ready.call(own.update_many(filter, again(now))).await?.matched_count;
        }
        self.asked(&ready, subscription).await?;
        Ok(changed)
    }

    async fn undelivered(&self, subscription: &str) -> Result<Undelivered> {
        let ready = self.db.ready().await?;
        let own = ready.own(DELIVERIES);
        let of = |state: DeliveryState| doc! { "subscription_id": subscription, "state": state.as_str() };
        let count =
            async |state| ready.call(own.count_documents(of(state)).limit(DEAD_COUNTED)).await;
        let (pending, dead) =
            (count(DeliveryState::Pending).await?, count(DeliveryState::Dead).await?);
        let oldest = own
            .find_one(of(DeliveryState::Pending))
            .sort(doc! { "number": 1 })
            .projection(doc! { "at": 1 });
        let oldest = ready.call(oldest).await?;
        let oldest_at = oldest.and_then(|found| field(&found, "at").and_then(millis));
        Ok(Undelivered { pending, dead, oldest_at })
    }

    async fn forget_deliveries(&self, before: Millis) -> Result<bool> {
        let ready = self.db.ready().await?;
        let deliveries = doc! { "created_at": { "$lt": date(before) } };
        let told = doc! { "at": { "$lt": date(before) } };
        let more = remove_piece(&ready, TOLD, told).await?;
        Ok(remove_piece(&ready, DELIVERIES, deliveries).await? || more)
    }
}
