//! Storing configurations, and lists of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bson::{Bson, Document, doc};
use mongodb::options::Hint;
use tokio::sync::{Mutex, MutexGuard};

use super::documents::{
    Found, by_app, by_name, by_time, found, in_scope, of_version, others_mirrored, published_id,
    switch_id,
};
use super::switch::{Switched, Why, finish, insert, stored, switch};
use crate::domain::access::AppScope;
use crate::domain::configuration::{ConfigurationQuery, Part, Place, Scope};
use crate::domain::mirrored::Verdict;
use crate::domain::query::Page;
use crate::domain::{Configuration, Refusal};
use crate::store::configurations::{
    ConfigurationStore, Listed, Stored, configuration_conflict, is_listed, mirrored_configuration,
};
use crate::store::mongo::db::values::{date, field, small, text};
use crate::store::mongo::db::{Connection, Db, failure};
use crate::store::mongo::names::{CONFIGURATIONS, META};
use crate::store::{Cause, Denial, Error, Result};

/// Rounds of looking and writing before a race counts as lost.
const ROUNDS: usize = 5;
/// Unfinished switches taken up by one sweep.
const SWEPT_AT_ONCE: i64 = 100;

/// Configurations. Every write of one waits for the majority, whatever the connection string says: lists are read as of
/// one moment, which is a moment of the majority.
pub struct Configurations {
    db: Arc<Db>,
    /// Writes come one at a time from this server; they are few, and would only be in each other's way.
    turn: Mutex<()>,
    /// Whether the database itself refuses a second record of a version.
    unique: AtomicBool,
}

impl Configurations {
    pub fn new(db: Arc<Db>) -> Configurations {
        Configurations { db, turn: Mutex::new(()), unique: AtomicBool::new(false) }
    }

    /// Whether the database itself refuses a second record of a version, from now on.
    pub fn prepare(&self, unique: bool) {
        self.unique.store(unique, Ordering::Relaxed);
    }

    async fn turn(&self) -> Result<MutexGuard<'_, ()>> {
        let turn = tokio::time::timeout(self.db.patience(), self.turn.lock());
        turn.await.map_err(|_| failure::timeout())
    }
}

/// The active one. Of several (other programs, a switch under way without transactions) the intended one.
async fn active(ready: &Connection, scope: &Scope) -> Result<Option<Configuration>> {
    let mut filter = in_scope(scope);
    filter.insert("active", true);
    let mut rows = ready.at_one_moment(CONFIGURATIONS, |all| all.find(filter)).await?;
    let mut all = Vec::new();
    while let Some(raw) = rows.next().await? {
        all.push(found(raw).record);
    }
    if all.len() > 1 {
        let intent = doc! { "_id": switch_id(scope) };
        let intent = ready.call(ready.own(META).find_one(intent)).await?.unwrap_or_default();
        let intended = intent.get_str("version").unwrap_or_default();
        if let Some(index) = all.iter().position(|record| record.version == intended) {
            return Ok(Some(all.swap_remove(index)));
        }
    }
    Ok(all.pop())
}

fn exists(record: &Configuration) -> Error {
    Error::Refused(Refusal::ConfigurationExists {
        scope: record.scope().to_string(),
        version: record.version.clone(),
    })
}

async fn put(room: &Configurations, record: Configuration) -> Result<Stored> {
    let ready = room.db.ready().await?;
    let _turn = room.turn().await?;
    let scope = record.scope();
    let unique = room.unique.load(Ordering::Relaxed);
    let mut holder = None;
    for _ in 0..ROUNDS {
        let there = stored(&ready, &scope, &record.version).await?;
        if let Some(Found { record: before, .. }) = there {
            if !before.same_content(&record) {
                return Err(exists(&record));
            }
            let repeated = async || {
                let id = doc! { "_id": published_id(&scope, &record.version) };
                Ok::<_, Error>(ready.call(ready.own(META).find_one(id)).await?.is_some())
            };
            if !record.active || repeated().await? {
                return Ok(Stored { record: before, created: false });
            }
            match switch(&ready, &scope, &record.version, Why::Published).await? {
                Switched::Done(record) => return Ok(Stored { record: *record, created: false }),
                Switched::Missing | Switched::Taken(_) => continue,
            }
        }
        let created = match record.active {
            false => {
                // Of a version that another program took away.
                let id = doc! { "_id": published_id(&scope, &record.version) };
                ready.call(ready.own(META).delete_one(id)).await?;
                insert(&ready, &record, unique).await?
            }
            true => {
                switch(&ready, &scope, &record.version, Why::New { record: &record, unique })
                    .await?
            }
        };
        match created {
            Switched::Done(_) => return Ok(Stored { record, created: true }),
            // Somebody else was first: look again.
            Switched::Missing => {}
            Switched::Taken(index) => holder = index,
        }
    }
    // The version is taken and yet not found in its scope: another program's index knows no scopes by name.
    match holder {
        Some(index) => Err(Denial::new(Cause::Index(index), &CONFIGURATIONS).into()),
        None => Err(Error::Contention),
    }
}

/// A version that a mirror brings. It is made the active one before its place is noted: whoever brings it again after a
/// crash in between does both.
async fn mirror(room: &Configurations, record: Configuration, position: i64) -> Result<Stored> {
    let scope = record.scope();
    let mut created = false;
    for _ in 0..ROUNDS {
        let ready = room.db.ready().await?;
        let Some(there) = stored(&ready, &scope, &record.version).await? else {
            created |= put(room, record.clone()).await?.created;
            continue;
        };
        let _turn = room.turn().await?;
        match mirrored_configuration(&there.record, there.mirrored, &record, position)? {
            Verdict::Late => return Ok(Stored { record: there.record, created }),
            Verdict::Replaces => {}
            Verdict::Conflict => return Err(configuration_conflict(&record).into()),
        }
        let is_switch = there.mirrored.is_switch(&record);
        if is_switch && record.active {
            let all = ready.own(CONFIGURATIONS);
            let no_more = doc! { "$unset": { "mirrored_active": "" } };
            ready.call(all.update_many(others_mirrored(&scope, &there.id), no_more)).await?;
            switch(&ready, &scope, &record.version, Why::Activated).await?;
        }
        let mut set = doc! {
            "app_name": &record.app_name,
            "sub_app_name": record.sub_app_name.as_deref(),
            "configuration": record.configuration.clone(),
            "created_at": record.created_at.map(date),
            "created_by": record.created_by.as_deref(),
            "mirrored_position": position,
            "mirrored_active": record.active,
        };
        if is_switch && !record.active {
            set.insert("active", false);
        }
        let this = doc! { "_id": &there.id, "mirrored_position": there.mirrored.position };
        let replaced = ready.own(CONFIGURATIONS);
        let replaced = replaced.update_one(this, doc! { "$set": set });
        if ready.call(replaced).await?.matched_count > 0 {
            let active = if is_switch { record.active } else { there.record.active };
            return Ok(Stored { record: Configuration { active, ..record }, created });
        }
    }
    Err(Error::Contention)
}

/// Goes on with switches that a crash cut short on a mongod without transactions.
pub async fn sweep(room: &Configurations) -> Result<()> {
    let ready = room.db.ready().await?;
    if ready.replica_set() {
        return Ok(());
    }
    let _turn = room.turn().await?;
    let meta = ready.own(META);
    let unfinished = meta.find(doc! { "done": false }).limit(SWEPT_AT_ONCE);
    for intent in ready.collect(unfinished).await? {
        let name = |field: &str| intent.get_str(field).ok().map(str::to_owned);
        let scope = match (intent.get_i32("app_id"), name("app_name")) {
            (Ok(app_id), _) => {
                Scope::Numbers { app_id, sub_app_id: intent.get_i32("sub_app_id").ok() }
            }
            (Err(_), Some(app_name)) => {
                Scope::Names { app_name, sub_app_name: name("sub_app_name") }
            }
            (Err(_), None) => continue,
        };
        finish(&ready, &scope).await?;
    }
    Ok(())
}

/// The index that a list walks along, and the values of its leading keys.
fn walk(query: &ConfigurationQuery) -> (Document, Document) {
    match (query.app.app_id, &query.app.app_name) {
        (Some(app_id), _) => (by_app(), doc! { "app_id": app_id }),
        (None, Some(app_name)) => (by_name(), doc! { "app_name": app_name }),
        (None, None) => (by_time(), doc! {}),
    }
}

fn place(found: &Found) -> Result<Place> {
    let key = doc! { "created_at": found.created_at.clone(), "_id": found.id.clone() };
    key.to_vec().map(Place).map_err(Error::failed)
}

/// What is at this place and after it, newest first, in the order that the index has: across types, and what is
/// missing is null.
fn from_place(leading: &Document, place: &Document) -> Document {
    let literal = |key: &str| doc! { "$literal": place.get(key).cloned().unwrap_or(Bson::Null) };
    let at = doc! { "$ifNull": ["$created_at", Bson::Null] };
    let mut filter = leading.clone();
    filter.insert(
        "$expr",
        doc! { "$or": [
            { "$lt": [at.clone(), literal("created_at")] },
            { "$and": [
                { "$eq": [at, literal("created_at")] },
                { "$lte": ["$_id", literal("_id")] },
            ] },
        ] },
    );
    filter
}

/// Bounds of the index decide where a page begins, not comparisons: those know dates only, and other programs
/// may have stored something else.
async fn page(
    room: &Configurations,
    query: &ConfigurationQuery,
    access: &AppScope,
) -> Result<Page<Listed, Place>> {
    let ready = room.db.ready().await?;
    let (index, leading) = walk(query);
    let mut begin = leading.clone();
    match &query.after {
        None => begin.extend(doc! { "created_at": Bson::MaxKey, "_id": Bson::MaxKey }),
        Some(after) => {
            begin.extend(Document::from_reader(after.0.as_slice()).map_err(|_| Error::BadCursor)?);
        }
    }
    let mut end = leading.clone();
    end.extend(doc! { "created_at": Bson::MinKey, "_id": Bson::MinKey });
    // The first may be the one that the page before ended with, and one more tells whether that was all.
    let limit = i64::try_from(query.examine + 2).unwrap_or(i64::MAX);
    let along = ready.at_one_moment(CONFIGURATIONS, |all| {
        all.find(doc! {}).hint(Hint::Keys(index)).min(begin.clone()).max(end).limit(limit)
    });
    let mut rows = match along.await {
        Ok(rows) => rows,
        Err(Error::Failed(_)) => {
            // Somebody dropped the index. A sort keeps no more than the page while it looks at all there are.
            let filter = from_place(&leading, &begin);
            let sorted = ready.at_one_moment(CONFIGURATIONS, |all| {
                let newest_first = doc! { "created_at": -1, "_id": -1 };
                all.find(filter).sort(newest_first).limit(limit)
            });
            sorted.await?
        }
        Err(error) => return Err(error),
    };
    let mut page = Page { records: Vec::new(), next: None };
    let (mut examined, mut bytes) = (0, 0);
    let mut last = None;
    while let Some(raw) = rows.next().await? {
        let found = found(raw);
        let place = place(&found)?;
        if query.after.as_ref() == Some(&place) {
            continue;
        }
        let weight = found.record.weight();
        let full = page.records.len() == query.limit
            || (bytes + weight > query.bytes && !page.records.is_empty());
        let listed = is_listed(query, access, &found.record);
        if examined == query.examine || (full && listed) {
            page.next = last;
            break;
        }
        examined += 1;
        if full {
            continue;
        }
        last = Some(place.clone());
        if listed {
            bytes += weight;
            page.records.push(Listed { record: found.record, place });
        }
    }
    Ok(page)
}

#[async_trait]
impl ConfigurationStore for Configurations {
    async fn put_configuration(&self, record: Configuration) -> Result<Stored> {
        put(self, record).await
    }

    async fn mirror_configuration(&self, record: Configuration, position: i64) -> Result<Stored> {
        mirror(self, record, position).await
    }

    async fn activate_configuration(&self, scope: &Scope, version: &str) -> Result<Configuration> {
        let ready = self.db.ready().await?;
        let _turn = self.turn().await?;
        match switch(&ready, scope, version, Why::Activated).await? {
            Switched::Done(record) => Ok(*record),
            Switched::Missing | Switched::Taken(_) => {
                Err(Error::Refused(Refusal::ConfigurationNotFound {
                    scope: scope.to_string(),
                    version: Some(version.to_owned()),
                }))
            }
        }
    }

    async fn configuration(
        &self,
        scope: &Scope,
        version: Option<&str>,
    ) -> Result<Option<Configuration>> {
        let ready = self.db.ready().await?;
        let Some(version) = version else { return active(&ready, scope).await };
        let committed = ready.committed(CONFIGURATIONS);
        let raw = ready.call(committed.find_one(of_version(scope, version))).await?;
        Ok(raw.map(|raw| found(&raw).record))
    }

    async fn scopes_named(&self, app_name: &str, limit: usize) -> Result<Vec<Part>> {
        let ready = self.db.ready().await?;
        let pipeline = [
            doc! { "$match": { "app_name": app_name } },
            doc! { "$group": { "_id": {
                "app_id": "$app_id",
                "sub_app_id": "$sub_app_id",
                "sub_app_name": "$sub_app_name",
            } } },
            doc! { "$limit": i64::try_from(limit).unwrap_or(i64::MAX) },
            doc! { "$replaceWith": "$_id" },
        ];
        let found = ready.collect(ready.committed(CONFIGURATIONS).aggregate(pipeline)).await?;
        let parts = found.iter().map(|raw| Part {
            app_id: field(raw, "app_id").and_then(small),
            sub_app_id: field(raw, "sub_app_id").and_then(small),
            sub_app_name: field(raw, "sub_app_name").and_then(text),
        });
        Ok(parts.collect())
    }

    async fn configurations(
        &self,
        query: &ConfigurationQuery,
        access: &AppScope,
    ) -> Result<Page<Listed, Place>> {
        page(self, query, access).await
    }
}
