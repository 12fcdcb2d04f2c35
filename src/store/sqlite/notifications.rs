//! Subscriptions, what they were told, and deliveries in their tables. Everything a batch changes is changed in one
//! transaction of the writer.

use std::collections::HashMap;

use async_trait::async_trait;
use bson::Document;
use bson::raw::RawDocument;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Row, params, params_from_iter};

use super::SqliteStore;
use crate::domain::Millis;
use crate::domain::notification::DeliveryState;
use crate::domain::query::Page;
use crate::store::notifications::{
    Attempted, DEAD_COUNTED, Delivery, DeliveryQuery, GAPS_KEPT, Head, Moved, NotificationBatch,
    NotificationStore, Progress, Subscribed, Subscription, Told, ToldKey, Undelivered, Waiting,
    documents,
};
use crate::store::{Cursor, Error, Result};

/// Rows removed in one transaction.
const REMOVED_AT_ONCE: i64 = 1_000;
/// Stored for the execution among its steps.
const NO_STEP: i32 = -1;
/// Where the log is read from, in `meta`.
const CURSOR: &str = "notifications_cursor";
const CURSOR_AT: &str = "notifications_at";
const NUMBERED: &str = "notifications_numbered";

const DELIVERY: &str = "id, delivery, state, tries, next_at, last_try_at, last_status, last_failure, \
                        delivered_at";

fn bytes(document: &Document) -> Result<Vec<u8>> {
    document.to_vec().map_err(Error::failed)
}

fn raw(bytes: &[u8]) -> Result<&RawDocument> {
    RawDocument::from_bytes(bytes).map_err(Error::failed)
}

fn set(connection: &Connection, name: &str, value: Value) -> Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)")?
        .execute(params![name, value])?;
    Ok(())
}

fn get(connection: &Connection, name: &str) -> Result<Option<Value>> {
    let mut statement = connection.prepare_cached("SELECT value FROM meta WHERE name = ?1")?;
    Ok(statement.query_row([name], |row| row.get(0)).optional()?)
}

fn progress_of(connection: &Connection, id: &str) -> Result<Option<Progress>> {
    let mut statement =
        connection.prepare_cached("SELECT progress FROM subscriptions WHERE id = ?1")?;
    let found: Option<Vec<u8>> = statement.query_row([id], |row| row.get(0)).optional()?;
    found.map(|bytes| Ok(documents::read_progress(raw(&bytes)?))).transpose()
}

/// Changes how far a subscription is, if it is still there.
fn progressed(connection: &Connection, id: &str, change: impl FnOnce(&mut Progress)) -> Result<()> {
    let Some(mut progress) = progress_of(connection, id)? else { return Ok(()) };
    change(&mut progress);
    connection
        .prepare_cached("UPDATE subscriptions SET progress = ?2 WHERE id = ?1")?
        .execute(params![id, bytes(&documents::progress(&progress))?])?;
    Ok(())
}

fn move_to(connection: &Connection, moved: &Moved) -> Result<()> {
    progressed(connection, &moved.subscription, |progress| {
        progress.cursor.clone_from(&moved.cursor);
        progress.at = moved.at;
        progress.gaps.extend(moved.gap);
        let excess = progress.gaps.len().saturating_sub(GAPS_KEPT);
        progress.gaps.drain(..excess);
    })
}

fn subscribed(row: &Row<'_>) -> Result<Option<Subscribed>> {
    let id: String = row.get(0)?;
    let (definition, progress): (Vec<u8>, Vec<u8>) = (row.get(1)?, row.get(2)?);
    let Some(subscription) = documents::read_subscription(&id, raw(&definition)?) else {
        return Ok(None);
    };
    let progress = documents::read_progress(raw(&progress)?);
    Ok(Some(Subscribed { subscription, progress }))
}

fn tell(connection: &Connection, (key, told): &(ToldKey, Told)) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO subscription_told (subscription, execution_id, step_id, at, told) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            key.subscription,
            key.execution_id,
            key.step_id.unwrap_or(NO_STEP),
            told.at,
            bytes(&documents::told(told))?,
        ])?;
    Ok(())
}

fn told(connection: &Connection, key: &ToldKey) -> Result<Option<Told>> {
    let mut statement = connection.prepare_cached(
        "SELECT told FROM subscription_told \
         WHERE subscription = ?1 AND execution_id = ?2 AND step_id = ?3",
    )?;
    let step_id = key.step_id.unwrap_or(NO_STEP);
    let found: Option<Vec<u8>> = statement
        .query_row(params![key.subscription, key.execution_id, step_id], |row| row.get(0))
        .optional()?;
    let Some(found) = found else { return Ok(None) };
    Ok(documents::read_told(raw(&found)?, key.step_id.is_some()))
}

fn send(connection: &Connection, delivery: &Delivery) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO deliveries (id, subscription, number, execution_id, state, tries, next_at, \
             created_at, at, delivery, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) \
             ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            delivery.id,
            delivery.subscription,
            delivery.number,
            delivery.execution_id,
            delivery.state.as_str(),
            delivery.tries,
            delivery.next_at,
            delivery.created_at,
            delivery.at,
            bytes(&documents::delivery(delivery))?,
            delivery.data,
        ])?;
    Ok(())
}

/// The columns of `DELIVERY`.
fn delivery(row: &Row<'_>, data: String) -> Result<Option<Delivery>> {
    let (id, made): (String, Vec<u8>) = (row.get(0)?, row.get(1)?);
    let Some(made) = documents::read_delivery(&id, raw(&made)?, data) else { return Ok(None) };
    let state: String = row.get(2)?;
    Ok(Some(Delivery {
        state: DeliveryState::parse(&state).unwrap_or(made.state),
        tries: row.get(3)?,
        next_at: row.get(4)?,
        last_try_at: row.get(5)?,
        last_status: row.get(6)?,
        last_failure: row.get(7)?,
        delivered_at: row.get(8)?,
        ..made
    }))
}

fn attempted(connection: &Connection, ended: &Attempted) -> Result<()> {
    let delivered = (ended.state == DeliveryState::Delivered).then_some(ended.at);
    connection
        .prepare_cached(
            "UPDATE deliveries SET state = ?2, tries = ?3, next_at = ?4, last_try_at = ?5, \
             last_status = ?6, last_failure = ?7, delivered_at = ?8 \
             WHERE id = ?1 AND state = 'pending' AND tries = ?3 - 1",
        )?
        .execute(params![
            ended.id,
            ended.state.as_str(),
            ended.tries,
            ended.next_at,
            ended.at,
            ended.status,
            ended.failure,
            delivered,
        ])?;
    Ok(())
}

fn purge(connection: &Connection, table: &str, condition: &str, value: Value) -> Result<bool> {
    // A table without row ids has its key instead.
    let key = match table {
        "subscription_told" => "subscription, execution_id, step_id",
        _ => "id",
    };
    let sql = format!(
        "DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE {condition} LIMIT {REMOVED_AT_ONCE})"
    );
    let removed = connection.prepare_cached(&sql)?.execute([value])?;
    Ok(removed as i64 >= REMOVED_AT_ONCE)
}

/// Has deliveries tried again that these conditions choose.
fn again(connection: &Connection, condition: &str, values: &[Value], now: Millis) -> Result<u64> {
    let sql = format!(
        "UPDATE deliveries SET state = 'pending', tries = 0, next_at = ?, delivered_at = NULL \
         WHERE id IN (SELECT id FROM deliveries WHERE {condition})"
    );
    let values = std::iter::once(Value::from(now)).chain(values.iter().cloned());
    let changed = connection.prepare_cached(&sql)?.execute(params_from_iter(values))?;
    Ok(changed as u64)
}

#[async_trait]
impl NotificationStore for SqliteStore {
    async fn subscriptions(&self) -> Result<Vec<Subscribed>> {
        self.readers
            .run(|connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT id, definition, progress FROM subscriptions ORDER BY id",
                )?;
                let mut rows = statement.query([])?;
                let mut all = Vec::new();
                while let Some(row) = rows.next()? {
                    all.extend(subscribed(row)?);
                }
                Ok(all)
            })
            .await
    }

    async fn add_subscription(&self, new: &Subscribed, most: usize) -> Result<bool> {
        let (id, revision) = (new.subscription.id.clone(), new.subscription.revision);
        let definition = bytes(&documents::subscription(&new.subscription))?;
        let progress = bytes(&documents::progress(&new.progress))?;
        self.write(move |batch| {
            let sql = "SELECT count(*) FROM subscriptions";
            let count: i64 = batch.connection.query_row(sql, [], |row| row.get(0))?;
            if usize::try_from(count).unwrap_or(0) >= most {
                return Ok(false);
            }
            let stored = batch.connection.execute(
                "INSERT INTO subscriptions (id, revision, definition, progress) \
                 VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
                params![id, revision, definition, progress],
            )?;
            Ok(stored == 1)
        })
        .await
    }

    async fn change_subscription(
        &self,
        subscription: &Subscription,
        from: i64,
        moved: Option<&Moved>,
    ) -> Result<bool> {
        let (id, revision) = (subscription.id.clone(), subscription.revision);
        let definition = bytes(&documents::subscription(subscription))?;
        let moved = moved.cloned();
        self.write(move |batch| {
            let changed = batch.connection.execute(
                "UPDATE subscriptions SET revision = ?3, definition = ?4 \
                 WHERE id = ?1 AND revision = ?2",
                params![id, from, revision, definition],
            )?;
            if changed == 1
                && let Some(moved) = moved
            {
                move_to(batch.connection, &moved)?;
            }
            Ok(changed == 1)
        })
        .await
    }

    async fn remove_subscription(&self, id: &str) -> Result<bool> {
        let id = id.to_owned();
        self.write(move |batch| {
            let sql = "DELETE FROM subscriptions WHERE id = ?1";
            Ok(batch.connection.execute(sql, [id])? == 1)
        })
        .await
    }

    async fn purge_subscription(&self, id: &str) -> Result<bool> {
        let id = Value::from(id.to_owned());
        self.write(move |batch| {
            let condition = "subscription = ?1";
            let told = purge(batch.connection, "subscription_told", condition, id.clone())?;
            let deliveries = purge(batch.connection, "deliveries", condition, id)?;
            Ok(told || deliveries)
        })
        .await
    }

    async fn notification_head(&self) -> Result<Option<Head>> {
        self.readers
            .run(|connection| {
                let number = |name| {
                    Ok::<_, Error>(match get(connection, name)? {
                        Some(Value::Integer(number)) => number,
                        _ => 0,
                    })
                };
                let Some(Value::Blob(cursor)) = get(connection, CURSOR)? else { return Ok(None) };
                let (at, numbered) = (number(CURSOR_AT)?, number(NUMBERED)?);
                Ok(Some(Head { cursor: Cursor(cursor), at, numbered }))
            })
            .await
    }

    async fn told(&self, keys: &[ToldKey]) -> Result<HashMap<ToldKey, Told>> {
        let keys = keys.to_vec();
        self.readers
            .run(move |connection| {
                let mut found = HashMap::new();
                for key in keys {
                    if let Some(told) = told(connection, &key)? {
                        found.insert(key, told);
                    }
                }
                Ok(found)
            })
            .await
    }

    async fn notify(&self, _holder: &str, batch: NotificationBatch) -> Result<bool> {
        // Only one server uses the file.
        self.write(move |writing| {
            let connection = writing.connection;
            for (subscription, execution_id) in &batch.gone {
                connection
                    .prepare_cached(
                        "DELETE FROM subscription_told WHERE subscription = ?1 AND execution_id = ?2",
                    )?
                    .execute([subscription, execution_id])?;
            }
            for one in &batch.told {
                tell(connection, one)?;
            }
            for delivery in &batch.deliveries {
                send(connection, delivery)?;
            }
            for moved in &batch.moved {
                move_to(connection, moved)?;
            }
            if let Some((cursor, at)) = batch.head {
                set(connection, CURSOR, Value::from(cursor.0))?;
                set(connection, CURSOR_AT, Value::from(at))?;
            }
            let numbered = match get(connection, NUMBERED)? {
                Some(Value::Integer(number)) => number,
                _ => 0,
            };
            if batch.numbered > numbered {
                set(connection, NUMBERED, Value::from(batch.numbered))?;
            }
            Ok(true)
        })
        .await
    }

    async fn waiting(&self, subscription: &str, limit: usize) -> Result<Vec<Waiting>> {
        let subscription = subscription.to_owned();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.readers
            .run(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT id, number, execution_id, tries, next_at FROM deliveries \
                     WHERE subscription = ?1 AND state = 'pending' ORDER BY number LIMIT ?2",
                )?;
                let waiting = statement.query_map(params![subscription, limit], |row| {
                    Ok(Waiting {
                        id: row.get(0)?,
                        number: row.get(1)?,
                        execution_id: row.get(2)?,
                        tries: row.get(3)?,
                        next_at: row.get(4)?,
                    })
                })?;
                Ok(waiting.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    async fn delivery(&self, id: &str) -> Result<Option<Delivery>> {
        let id = id.to_owned();
        self.readers
            .run(move |connection| {
                let sql = format!("SELECT {DELIVERY}, data FROM deliveries WHERE id = ?1");
                let mut statement = connection.prepare_cached(&sql)?;
                let mut rows = statement.query([id])?;
                match rows.next()? {
                    Some(row) => delivery(row, row.get(9)?),
                    None => Ok(None),
                }
            })
            .await
    }

    async fn attempted(&self, tries: &[Attempted]) -> Result<()> {
        let tries = tries.to_vec();
        self.write(move |batch| {
            let mut last: HashMap<&str, Option<u16>> = HashMap::new();
            for ended in &tries {
                attempted(batch.connection, ended)?;
                last.insert(&ended.subscription, ended.status);
            }
            for (subscription, status) in last {
                progressed(batch.connection, subscription, |progress| {
                    progress.last_status = status;
                })?;
            }
            Ok(())
        })
        .await
    }

    async fn deliveries(&self, query: &DeliveryQuery) -> Result<Page<Delivery, i64>> {
        let query = query.clone();
        self.readers
            .run(move |connection| {
                let states: Vec<String> =
                    query.states.iter().map(|state| format!("'{}'", state.as_str())).collect();
                let of_state = match states.is_empty() {
                    true => String::new(),
                    false => format!("AND state IN ({})", states.join(", ")),
                };
                let sql = format!(
                    "SELECT {DELIVERY} FROM deliveries WHERE subscription = ?1 AND number < ?2 \
                     {of_state} ORDER BY number DESC LIMIT ?3"
                );
                let mut statement = connection.prepare_cached(&sql)?;
                let before = query.before.unwrap_or(i64::MAX);
                let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
                let mut rows = statement.query(params![query.subscription, before, limit])?;
                let mut records = Vec::new();
                while let Some(row) = rows.next()? {
                    records.extend(delivery(row, String::new())?);
                }
                let last = records.last().map(|delivery: &Delivery| delivery.number);
                let next = last.filter(|_| records.len() >= query.limit);
                Ok(Page { records, next })
            })
            .await
    }

    async fn redeliver(&self, id: &str, now: Millis) -> Result<bool> {
        let id = Value::from(id.to_owned());
        self.write(move |batch| {
            let sql = "SELECT subscription FROM deliveries WHERE id = ?1";
            let of: Option<String> =
                batch.connection.query_row(sql, [&id], |row| row.get(0)).optional()?;
            let Some(subscription) = of else { return Ok(false) };
            again(batch.connection, "id = ?", &[id], now)?;
            progressed(batch.connection, &subscription, |progress| progress.asked += 1)?;
            Ok(true)
        })
        .await
    }

    async fn redeliver_dead(&self, subscription: &str, limit: usize, now: Millis) -> Result<u64> {
        let subscription = subscription.to_owned();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.write(move |batch| {
            let condition = "subscription = ? AND state = 'dead' ORDER BY number LIMIT ?";
            let values = [Value::from(subscription.clone()), Value::from(limit)];
            let changed = again(batch.connection, condition, &values, now)?;
            progressed(batch.connection, &subscription, |progress| progress.asked += 1)?;
            Ok(changed)
        })
        .await
    }

    async fn undelivered(&self, subscription: &str) -> Result<Undelivered> {
        let subscription = subscription.to_owned();
        self.readers
            .run(move |connection| {
                let most = i64::try_from(DEAD_COUNTED).unwrap_or(i64::MAX);
                let count = |state: DeliveryState| -> Result<u64> {
                    let count: i64 = connection
                        .prepare_cached(
                            "SELECT count(*) FROM (SELECT 1 FROM deliveries \
                             WHERE subscription = ?1 AND state = ?2 LIMIT ?3)",
                        )?
                        .query_row(params![subscription, state.as_str(), most], |row| row.get(0))?;
                    Ok(u64::try_from(count).unwrap_or(0))
                };
                let oldest_at = connection
                    .prepare_cached(
                        "SELECT at FROM deliveries WHERE subscription = ?1 AND state = 'pending' \
                         ORDER BY number LIMIT 1",
                    )?
                    .query_row([&subscription], |row| row.get(0))
                    .optional()?;
                let (pending, dead) = (count(DeliveryState::Pending)?, count(DeliveryState::Dead)?);
                Ok(Undelivered { pending, dead, oldest_at })
            })
            .await
    }

    async fn forget_deliveries(&self, before: Millis) -> Result<bool> {
        self.write(move |batch| {
            let connection = batch.connection;
            let deliveries =
                purge(connection, "deliveries", "created_at < ?1", Value::from(before))?;
            let told = purge(connection, "subscription_told", "at < ?1", Value::from(before))?;
            Ok(deliveries || told)
        })
        .await
    }
}
