//! Collections and their indexes. Indexes are made when they are missing; one that another program made with
//! the same keys is used as it is.

use std::collections::HashMap;

use bson::{Bson, DateTime, Document, doc};
use mongodb::Database;

use super::failure;
use super::rollups::{COUNTED, FAILURES, ROLLUPS};
use super::search::TEXTS;
use crate::store::Result;

pub const EXECUTIONS: &str = "executions";
pub const STEPS: &str = "execution_steps";
pub const CONFIGURATIONS: &str = "app_configurations";
pub const ARTIFACTS: &str = "execution_artifacts";
/// Bytes of artifacts on their way.
pub(super) const UPLOADS: &str = "stepwell_uploads";
/// A change of it wakes who reads the log.
pub(super) const NUDGES: &str = "stepwell_nudges";
/// What Stepwell keeps for itself.
pub(super) const META: &str = "stepwell_meta";

const NAMESPACE_NOT_FOUND: i32 = 26;
const INDEX_KEY_SPECS_CONFLICT: i32 = 86;

/// An index that has to be there.
struct Index {
    collection: &'static str,
    keys: Document,
    unique: bool,
    partial: Option<Document>,
    /// Whether an index that only begins with these keys serves as well.
    prefix_serves: bool,
    /// Whether a unique index over all documents serves a unique one over some: it forbids more, but the
    /// program that made it wants just that.
    stricter_serves: bool,
}

/// The indexes that lists of configurations walk along, newest first.
pub(super) fn configurations_by_time() -> Document {
    doc! { "created_at": -1, "_id": -1 }
}

pub(super) fn configurations_of_app() -> Document {
    doc! { "app_id": 1, "created_at": -1, "_id": -1 }
}

pub(super) fn configurations_of_name() -> Document {
    doc! { "app_name": 1, "created_at": -1, "_id": -1 }
}

/// The index of steps by execution and status: steps are counted in it, and rollups find failed ones.
fn steps_by_status() -> Document {
    doc! { "execution_id": 1, "status": 1 }
}

/// An index that lists of executions walk along: newest first where these fields are equal.
pub(super) fn executions_by(fields: &[&str]) -> Document {
    let mut index: Document =
        fields.iter().map(|field| (field.to_string(), Bson::Int32(1))).collect();
    index.extend(doc! { "started_at": -1, "execution_id": -1 });
    index
}

/// The one of an app, whose keys tell too what ran long.
pub(super) fn executions_of_app() -> Document {
    let mut index = executions_by(&["app_id"]);
    index.insert("duration_ms", 1);
    index
}

/// The one of an app by its name, whose keys tell too what ran long, and the part of the app.
pub(super) fn executions_of_name() -> Document {
    let mut index = executions_by(&["app_name"]);
    index.extend(doc! { "duration_ms": 1, "sub_app_id": 1 });
    index
}

/// The oldest date of interest; every real one is greater, and a missing one is not.
pub(super) fn epoch() -> DateTime {
    DateTime::from_millis(0)
}

fn wanted() -> Vec<Index> {
    let plain = |collection, keys| Index {
        collection,
        keys,
        unique: false,
        partial: None,
        prefix_serves: true,
        stricter_serves: false,
    };
    let unique = |collection, keys| Index {
        collection,
        keys,
        unique: true,
        partial: None,
        prefix_serves: false,
        stricter_serves: false,
    };
    let partial = |collection, keys, filter| Index {
        collection,
        keys,
        unique: false,
        partial: Some(filter),
        prefix_serves: false,
        stricter_serves: false,
    };
    vec![
        unique(EXECUTIONS, doc! { "execution_id": 1 }),
        unique(STEPS, doc! { "execution_id": 1, "step_id": 1 }),
        Index {
            // Plain equality on `step_key` uses this filter; `$type` or `$exists` would not do.
            partial: Some(doc! { "step_key": { "$gt": "" } }),
            ..unique(STEPS, doc! { "execution_id": 1, "step_key": 1 })
        },
        plain(EXECUTIONS, executions_by(&["app_id", "sub_app_id"])),
        plain(EXECUTIONS, executions_by(&["app_id", "status"])),
        plain(EXECUTIONS, executions_of_app()),
        plain(EXECUTIONS, executions_by(&["app_name", "status"])),
        plain(EXECUTIONS, executions_of_name()),
        plain(EXECUTIONS, executions_by(&["user_id", "status"])),
        plain(EXECUTIONS, executions_by(&["user_id"])),
        plain(EXECUTIONS, executions_by(&["status"])),
        plain(EXECUTIONS, executions_by(&[])),
        partial(
            EXECUTIONS,
            doc! { "heartbeat_timeout_ms": 1 },
            doc! { "heartbeat_timeout_ms": { "$gt": 0 }, "status": "running" },
        ),
        partial(EXECUTIONS, doc! { "deleted_at": 1 }, doc! { "deleted_at": { "$gt": epoch() } }),
        plain(STEPS, doc! { "status": 1 }),
        plain(STEPS, doc! { "step_name": 1 }),
        plain(STEPS, doc! { "started_at": -1 }),
        Index {
            // Every number, and not null: apps without one are told apart by name.
            partial: Some(doc! { "app_id": { "$gte": i32::MIN } }),
            stricter_serves: true,
            ..unique(CONFIGURATIONS, doc! { "app_id": 1, "sub_app_id": 1, "version": 1 })
        },
        Index {
            partial: Some(doc! { "app_id": null }),
            ..unique(CONFIGURATIONS, doc! { "app_name": 1, "sub_app_name": 1, "version": 1 })
        },
        plain(CONFIGURATIONS, doc! { "active": 1 }),
        plain(CONFIGURATIONS, configurations_by_time()),
        plain(CONFIGURATIONS, configurations_of_app()),
        plain(CONFIGURATIONS, configurations_of_name()),
        plain(ARTIFACTS, doc! { "execution_id": 1, "_id": -1 }),
        plain(ARTIFACTS, doc! { "execution_id": 1, "step_id": 1 }),
        plain(ARTIFACTS, doc! { "artifact_type": 1 }),
        plain(ARTIFACTS, doc! { "created_at": -1 }),
        partial(ARTIFACTS, doc! { "storage_path": 1 }, doc! { "storage_path": { "$gt": "" } }),
        partial(ARTIFACTS, doc! { "deleted_at": 1 }, doc! { "deleted_at": { "$gt": epoch() } }),
        Index {
            partial: Some(doc! { "digests.create": { "$gt": "" } }),
            ..unique(ARTIFACTS, doc! { "digests.create": 1 })
        },
        plain(UPLOADS, doc! { "updated_at": 1, "_id": 1 }),
        plain(UPLOADS, doc! { "execution_id": 1, "updated_at": 1 }),
        plain(UPLOADS, doc! { "storage_path": 1 }),
        plain(TEXTS, super::search::texts_by_term()),
        plain(TEXTS, doc! { "v": 1 }),
        plain(STEPS, steps_by_status()),
        plain(COUNTED, doc! { "day": 1 }),
        plain(FAILURES, doc! { "fingerprint": 1, "failed_at": -1 }),
        partial(ROLLUPS, doc! { "user_id": 1, "_id.t": 1 }, doc! { "user_id": { "$gt": "" } }),
    ]
}

/// What became of the indexes.
#[derive(Debug, Default)]
pub(super) struct Indexes {
    /// Whether the database itself refuses a second record of the same id. Without that a write has to look first.
    pub(super) unique: bool,
    /// The names of the indexes that tell records apart.
    pub(super) execution_key: Option<String>,
    pub(super) step_key: Option<String>,
    /// The name of the index in which steps are counted.
    pub(super) steps_by_status: Option<String>,
    /// Indexes that lists of executions walk along: their leading keys and their names.
    lists: Vec<(Document, String)>,
}

impl Indexes {
    /// The name of an index that begins with these keys.
    pub(super) fn named(&self, keys: &Document) -> Option<&str> {
        self.lists.iter().find(|(leading, _)| leading == keys).map(|(_, name)| name.as_str())
    }
}

fn direction(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(value) => Some(i64::from(*value)),
        Bson::Int64(value) => Some(*value),
        Bson::Double(value) => Some(*value as i64),
        _ => None,
    }
}

pub(super) fn begins_with(keys: &Document, wanted: &Document) -> bool {
    keys.len() >= wanted.len()
        && keys.iter().zip(wanted).all(|((name, way), (wanted_name, wanted_way))| {
            name == wanted_name
                && direction(way).is_some()
                && direction(way) == direction(wanted_way)
        })
}

/// Whether nothing but a condition on the records keeps an index from serving everybody.
pub(super) fn is_plain(index: &Document) -> bool {
    !index.get_bool("hidden").unwrap_or(false) && !index.contains_key("collation")
}

/// Whether `existing`, as listIndexes describes it, does the job of `wanted`.
fn serves(existing: &Document, wanted: &Index) -> bool {
    let Ok(keys) = existing.get_document("key") else { return false };
    let same_keys = keys.len() == wanted.keys.len();
    if !begins_with(keys, &wanted.keys) || (!same_keys && !wanted.prefix_serves) {
        return false;
    }
    if !is_plain(existing) {
        return false;
    }
    if wanted.unique && !existing.get_bool("unique").unwrap_or(false) {
        return false;
    }
    let sparse = existing.get_bool("sparse").unwrap_or(false);
    match (&wanted.partial, existing.get_document("partialFilterExpression").ok()) {
        (None, None) => !sparse,
        (None, Some(_)) => false,
        // One over all documents serves too, unless it is unique and so forbids more.
        (Some(_), None) => !sparse && (!wanted.unique || wanted.stricter_serves),
        (Some(wanted), Some(existing)) => wanted == existing,
    }
}

pub(super) async fn existing(database: &Database, collection: &str) -> Result<Vec<Document>> {
    let reply =
        database.run_command(doc! { "listIndexes": collection, "cursor": { "batchSize": 1000 } });
    match reply.await {
        Ok(reply) => {
            let cursor = reply.get_document("cursor").ok();
            let batch = cursor.and_then(|cursor| cursor.get_array("firstBatch").ok());
            let batch = batch.into_iter().flatten().filter_map(Bson::as_document);
            Ok(batch.cloned().collect())
        }
        Err(error) if failure::code(&error) == Some(NAMESPACE_NOT_FOUND) => Ok(Vec::new()),
        Err(error) => Err(failure::error(error)),
    }
}

fn name_of(keys: &Document) -> String {
    let parts = keys.iter().map(|(key, way)| format!("{key}_{}", direction(way).unwrap_or(1)));
    parts.collect::<Vec<_>>().join("_")
}

/// Makes one plain index unless one serves already: one that ends documents, if `ends_after` says when in seconds.
pub(super) async fn make(
    database: &Database,
    collection: &'static str,
    keys: Document,
    ends_after: Option<i64>,
) -> Result<()> {
    let prefix_serves = ends_after.is_none();
    let wanted = Index {
        collection,
        keys,
        unique: false,
        partial: None,
        prefix_serves,
        stricter_serves: false,
    };
    if existing(database, collection).await?.iter().any(|existing| serves(existing, &wanted)) {
        return Ok(());
    }
    let mut index = doc! { "key": wanted.keys.clone(), "name": name_of(&wanted.keys) };
    if let Some(seconds) = ends_after {
        index.insert("expireAfterSeconds", seconds);
    }
    match database.run_command(doc! { "createIndexes": collection, "indexes": [index] }).await {
        Ok(_) => Ok(()),
        Err(error) if failure::is_passing(&error) => Err(failure::error(error)),
        Err(error) => {
            tracing::error!(
                collection,
                keys = %wanted.keys,
                error = %failure::words(&error),
                "an index cannot be made; until it is there it is done without"
            );
            Ok(())
        }
    }
}

/// Makes the indexes that are missing. What cannot be made is told in the log and lived without.
pub(super) async fn prepare(database: &Database) -> Result<Indexes> {
    let mut indexes = Indexes { unique: true, ..Indexes::default() };
    let wanted = wanted();
    let mut there: HashMap<&str, Vec<Document>> = HashMap::new();
    for Index { collection, .. } in &wanted {
        if !there.contains_key(collection) {
            there.insert(collection, existing(database, collection).await?);
        }
    }
    for wanted in wanted {
        let there = &there[wanted.collection];
        let serving = there.iter().find(|existing| serves(existing, &wanted));
        let mut name = serving.and_then(|index| index.get_str("name").ok()).map(str::to_owned);
        if serving.is_none() {
            let mut new_name = name_of(&wanted.keys);
            let mut index = doc! { "key": wanted.keys.clone(), "name": &new_name };
            if wanted.unique {
                index.insert("unique", true);
            }
            if let Some(filter) = &wanted.partial {
                index.insert("partialFilterExpression", filter.clone());
            }
            let create = |index: &Document| {
                let index = index.clone();
                doc! { "createIndexes": wanted.collection, "indexes": [index] }
            };
            let mut made = database.run_command(create(&index)).await;
            if made.as_ref().err().and_then(failure::code) == Some(INDEX_KEY_SPECS_CONFLICT) {
                // Only the name is taken, by an index of other keys.
                new_name = format!("{new_name}_stepwell");
                index.insert("name", &new_name);
                made = database.run_command(create(&index)).await;
            }
            match made {
                Ok(_) => name = Some(new_name),
                Err(error) if failure::is_passing(&error) => return Err(failure::error(error)),
                Err(error) => tracing::error!(
                    collection = wanted.collection,
                    keys = %wanted.keys,
                    unique = wanted.unique,
                    error = %failure::words(&error),
                    "an index cannot be made: drop or repair what is in its way, then restart; \
                     until then it is done without"
                ),
            }
        }
        // Artifacts are looked for before they are stored, so they do without.
        if wanted.unique && [EXECUTIONS, STEPS].contains(&wanted.collection) {
            indexes.unique &= name.is_some();
            match wanted.collection {
                EXECUTIONS => {
                    indexes.unique &= name.is_some();
                    indexes.execution_key = name;
                }
                STEPS => {
                    indexes.unique &= name.is_some();
                    // The first of the two is the one over all steps.
                    if wanted.partial.is_none() {
                        indexes.step_key = name;
                    }
                }
                _ => {}
            }
        } else if let Some(name) = name
            && wanted.partial.is_none()
        {
            match wanted.collection {
                EXECUTIONS => indexes.lists.push((wanted.keys, name)),
                STEPS if wanted.keys == steps_by_status() => indexes.steps_by_status = Some(name),
                _ => {}
            }
        }
    }
    Ok(indexes)
}
