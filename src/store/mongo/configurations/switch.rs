//! The switch of the active configuration of a scope.
//!
//! On a replica set a switch is one transaction. It begins with a write to a document of its scope in `stepwell_meta`, so
//! that two switches of one scope are never both executed: without that, two that find nothing active would not touch
//! the same document.
//!
//! A standalone mongod has no transactions. There the same document holds the intent: which version is to be active. It
//! is written first, then the flags follow, the new one before the old one goes, then the intent is marked as done.
//! Whoever finds it not done (the next switch, the sweep) sets the flags again, and meanwhile a reader that finds two
//! flags believes the intent. So there is always one answer, whatever is killed when.

use std::time::Duration;

use bson::{Bson, doc};
use futures::FutureExt as _;
use mongodb::options::ReturnDocument;

use super::documents::{
    Found, found, intent, new_document, of_version, others, published, switch_id,
};
use crate::domain::Configuration;
use crate::domain::configuration::Scope;
use crate::store::mongo::db::values::{any, field, id_of};
use crate::store::mongo::db::{Connection, Effort, Ended, Failed, failure};
use crate::store::mongo::names::{CONFIGURATIONS, META};
use crate::store::{Cause, Denial, Error, Result};

/// Switches of other servers that may overtake one, each of which it helps to its end.
const SWITCHES: usize = 100;
/// A transaction takes milliseconds; nobody goes on with one that was left alone for so long.
const ABANDONED: Duration = Duration::from_secs(1);

/// Why a version becomes the active one.
#[derive(Clone, Copy)]
pub enum Why<'a> {
    /// It is stored now, as that. Without a unique index that is looked for once more.
    New {
        record: &'a Configuration,
        unique: bool,
    },
    /// It was stored before, and now again as the active one.
    Published,
    Activated,
}

/// What became of an attempt to make a version the active one.
pub enum Switched {
    Done(Box<Configuration>),
    /// There is no such version.
    Missing,
    /// The version to insert is there already; so says this index, or what was found.
    Taken(Option<String>),
}

/// The configuration as the primary has it now.
pub async fn stored(ready: &Connection, scope: &Scope, version: &str) -> Result<Option<Found>> {
    let all = ready.own(CONFIGURATIONS);
    let raw = ready.call(all.find_one(of_version(scope, version))).await?;
    Ok(raw.map(|raw| found(&raw)))
}

/// Makes a version the active one, or inserts it as that.
pub async fn switch(
    ready: &Connection,
    scope: &Scope,
    version: &str,
    why: Why<'_>,
) -> Result<Switched> {
    if ready.replica_set() {
        return switch_at_once(ready, scope, version, why).await;
    }
    if let Why::New { record, unique } = why {
        let inactive = Configuration { active: false, ..record.clone() };
        match insert(ready, &inactive, unique).await? {
            Switched::Done(_) => {}
            taken => return Ok(taken),
        }
    }
    let switched = switch_step_by_step(ready, scope, version).await?;
    if !matches!(why, Why::Activated) && matches!(switched, Switched::Done(_)) {
        let (id, set) = published(scope, version);
        ready.call(ready.own(META).update_one(id, set).upsert(true)).await?;
    }
    Ok(switched)
}

/// In one transaction.
async fn switch_at_once(
    ready: &Connection,
    scope: &Scope,
    version: &str,
    why: Why<'_>,
) -> Result<Switched> {
    let (all, meta) = (&ready.own(CONFIGURATIONS), &ready.own(META));
    let stored = &ready.latest(CONFIGURATIONS);
    let new = match why {
        Why::New { record, unique } => Some((new_document(record)?, record, unique)),
        Why::Published | Why::Activated => None,
    };
    let new = &new;
    let effort = Effort { within: ready.patience(), abandoned: ABANDONED };
    let work = ready.transaction(effort, |transaction| {
        async move {
            let id = doc! { "_id": switch_id(scope) };
            let switch = meta.update_one(id, intent(scope, version, true)).upsert(true);
            switch.session(transaction.session()).await?;
            if !matches!(why, Why::Activated) {
                let (id, set) = published(scope, version);
                let note = meta.update_one(id, set).upsert(true);
                note.session(transaction.session()).await?;
            }
            let (id, record) = match new {
                Some((document, record, unique)) => {
                    let same = stored.find_one(of_version(scope, version));
                    if !unique && same.session(transaction.session()).await?.is_some() {
                        return Ok(Ended::Abort(Switched::Taken(None)));
                    }
                    all.insert_one(document).session(transaction.session()).await?;
                    (id_of(document).unwrap_or(Bson::Null), Configuration::clone(record))
                }
                None => {
                    let set = doc! { "$set": { "active": true } };
                    let flag = all
                        .find_one_and_update(of_version(scope, version), set)
                        .return_document(ReturnDocument::After);
                    let Some(raw) = flag.session(transaction.session()).await? else {
                        return Ok(Ended::Abort(Switched::Missing));
                    };
                    let Found { id, record, .. } = found(&raw);
                    (id, record)
                }
            };
            let unflag = all.update_many(others(scope, &id), doc! { "$set": { "active": false } });
            unflag.session(transaction.session()).await?;
            Ok(Ended::Commit(Switched::Done(Box::new(record))))
        }
        .boxed()
    });
    match work.await? {
        Ok(switched) => Ok(switched),
        Err(Failed::Driver(error)) if failure::doubled(&error).is_some() => {
            Ok(Switched::Taken(failure::doubled(&error)))
        }
        Err(failed) => {
            let error = failed.error("the database refused to switch a configuration");
            Err(error.of_collection(&CONFIGURATIONS))
        }
    }
}

async fn switch_step_by_step(ready: &Connection, scope: &Scope, version: &str) -> Result<Switched> {
    if stored(ready, scope, version).await?.is_none() {
        return Ok(Switched::Missing);
    }
    let id = doc! { "_id": switch_id(scope) };
    let meta = ready.own(META);
    ready.call(meta.update_one(id, intent(scope, version, false)).upsert(true)).await?;
    finish(ready, scope).await?;
    match stored(ready, scope, version).await? {
        Some(found) => Ok(Switched::Done(Box::new(Configuration {
            // Another switch may have come after this one; this one took place all the same.
            active: true,
            ..found.record
        }))),
        None => Ok(Switched::Missing),
    }
}

/// Sets the flags of a scope as its intent says.
pub async fn finish(ready: &Connection, scope: &Scope) -> Result<()> {
    let (meta, all) = (ready.own(META), ready.own(CONFIGURATIONS));
    let mut overtaken = false;
    for _ in 0..SWITCHES {
        let intent = ready.call(meta.find_one(doc! { "_id": switch_id(scope) })).await?;
        let Some(intent) = intent else { return Ok(()) };
        if intent.get_bool("done").unwrap_or(false) && !overtaken {
            return Ok(());
        }
        let version = intent.get_str("version").unwrap_or_default();
        if let Some(target) = stored(ready, scope, version).await? {
            let flag = doc! { "$set": { "active": true } };
            ready.call(all.update_one(doc! { "_id": &target.id }, flag)).await?;
            let unflag = doc! { "$set": { "active": false } };
            ready.call(all.update_many(others(scope, &target.id), unflag)).await?;
        }
        let number = field(&intent, "number").and_then(any).unwrap_or(Bson::Null);
        let this = doc! { "_id": switch_id(scope), "number": number };
        let closed = meta.update_one(this, doc! { "$set": { "done": true } });
        if ready.call(closed).await?.matched_count > 0 {
            return Ok(());
        }
        // Another server noted a later one, and may have set its flags before ours.
        overtaken = true;
    }
    Err(Error::Contention)
}

/// Stores a version, as it is. Where no unique index forbids it twice, a write to the document of its scope does.
pub async fn insert(ready: &Connection, record: &Configuration, unique: bool) -> Result<Switched> {
    let all = ready.own(CONFIGURATIONS);
    if !unique {
        return insert_looked_for(ready, record).await;
    }
    match ready.try_call(all.insert_one(new_document(record)?)).await? {
        Ok(_) => Ok(Switched::Done(Box::new(record.clone()))),
        Err(error) if failure::doubled(&error).is_some() => {
            Ok(Switched::Taken(failure::doubled(&error)))
        }
        Err(error) => Err(failure::error(error).of_collection(&CONFIGURATIONS)),
    }
}

async fn insert_looked_for(ready: &Connection, record: &Configuration) -> Result<Switched> {
    if !ready.replica_set() {
        return Err(Denial::new(Cause::NoUniqueIndex, &CONFIGURATIONS).into());
    }
    let (all, meta) = (&ready.own(CONFIGURATIONS), &ready.own(META));
    let stored = &ready.latest(CONFIGURATIONS);
    let (document, scope) = (&new_document(record)?, &record.scope());
    let effort = Effort { within: ready.patience(), abandoned: ABANDONED };
    let work = ready.transaction(effort, |transaction| {
        async move {
            let id = doc! { "_id": switch_id(scope) };
            let turn = meta.update_one(id, doc! { "$inc": { "number": 1_i64 } }).upsert(true);
            turn.session(transaction.session()).await?;
            let same = stored.find_one(of_version(scope, &record.version));
            if same.session(transaction.session()).await?.is_some() {
                return Ok(Ended::Abort(Switched::Taken(None)));
            }
            all.insert_one(document).session(transaction.session()).await?;
            Ok(Ended::Commit(Switched::Done(Box::new(record.clone()))))
        }
        .boxed()
    });
    match work.await? {
        Ok(inserted) => Ok(inserted),
        Err(Failed::Driver(error)) if failure::doubled(&error).is_some() => {
            Ok(Switched::Taken(failure::doubled(&error)))
        }
        Err(failed) => {
            let error = failed.error("the database refused to store a configuration");
            Err(error.of_collection(&CONFIGURATIONS))
        }
    }
}
