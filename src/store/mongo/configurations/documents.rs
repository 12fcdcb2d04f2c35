//! Configurations as documents, and the documents in `stepwell_meta` that say which of them is to be active.

use bson::raw::{RawBsonRef, RawDocument, RawDocumentBuf};
use bson::{Bson, Document, doc};

use crate::domain::Configuration;
use crate::domain::configuration::Scope;
use crate::store::Result;
use crate::store::configurations::MirroredBefore;
use crate::store::mongo::db::Index;
use crate::store::mongo::db::values::{
    any, date, field, integer, millis, object, raw, small, text,
};
use crate::store::mongo::names::CONFIGURATIONS;

/// The indexes that lists walk along, newest first.
pub fn by_time() -> Document {
    doc! { "created_at": -1, "_id": -1 }
}

pub fn by_app() -> Document {
    doc! { "app_id": 1, "created_at": -1, "_id": -1 }
}

pub fn by_name() -> Document {
    doc! { "app_name": 1, "created_at": -1, "_id": -1 }
}

pub fn wanted() -> Vec<Index> {
    let plain = Index::plain;
    vec![
        // Every number, and not null: apps without one are told apart by name.
        Index::unique(CONFIGURATIONS, doc! { "app_id": 1, "sub_app_id": 1, "version": 1 })
            .only(doc! { "app_id": { "$gte": i64::MIN } })
            .or_stricter(),
        Index::unique(CONFIGURATIONS, doc! { "app_name": 1, "sub_app_name": 1, "version": 1 })
            .only(doc! { "app_id": null, "version": { "$gte": "" } }),
        plain(CONFIGURATIONS, doc! { "active": 1 }).common(),
        plain(CONFIGURATIONS, by_time()),
        plain(CONFIGURATIONS, by_app()),
        plain(CONFIGURATIONS, by_name()),
    ]
}

/// A document as it was found.
pub struct Found {
    pub id: Bson,
    /// Whatever stands there, for the place in a list.
    pub created_at: Bson,
    pub mirrored: MirroredBefore,
    pub record: Configuration,
}

pub fn found(raw: &RawDocument) -> Found {
    let value = |name: &str| field(raw, name).and_then(any);
    Found {
        id: value("_id").unwrap_or(Bson::Null),
        created_at: value("created_at").unwrap_or(Bson::Null),
        mirrored: MirroredBefore {
            position: field(raw, "mirrored_position").and_then(integer),
            active: field(raw, "mirrored_active").and_then(RawBsonRef::as_bool),
        },
        record: Configuration {
            app_id: field(raw, "app_id").and_then(small),
            app_name: field(raw, "app_name").and_then(text).unwrap_or_default(),
            sub_app_id: field(raw, "sub_app_id").and_then(small),
            sub_app_name: field(raw, "sub_app_name").and_then(text),
            version: field(raw, "version").map(version).unwrap_or_default(),
            configuration: field(raw, "configuration").map(object).unwrap_or_default(),
            active: field(raw, "active").and_then(RawBsonRef::as_bool).unwrap_or(false),
            created_at: field(raw, "created_at").and_then(millis),
            created_by: field(raw, "created_by").and_then(text),
        },
    }
}

/// The record alone.
pub fn record_of(raw: &RawDocument) -> Configuration {
    found(raw).record
}

/// Other programs store numbers too.
fn version(value: RawBsonRef<'_>) -> String {
    match (text(value), integer(value)) {
        (Some(text), _) => text,
        (None, Some(number)) => number.to_string(),
        (None, None) => String::new(),
    }
}

pub fn new_document(record: &Configuration) -> Result<RawDocumentBuf> {
    raw(&doc! {
        "_id": bson::oid::ObjectId::new(),
        "app_id": record.app_id,
        "app_name": &record.app_name,
        "sub_app_id": record.sub_app_id,
        "sub_app_name": record.sub_app_name.as_deref(),
        "version": &record.version,
        "configuration": record.configuration.clone(),
        "active": record.active,
        "created_at": record.created_at.map(date),
        "created_by": record.created_by.as_deref(),
    })
}

pub fn in_scope(scope: &Scope) -> Document {
    match scope {
        Scope::Numbers { app_id, sub_app_id } => {
            doc! { "app_id": *app_id, "sub_app_id": *sub_app_id }
        }
        Scope::Names { app_name, sub_app_name } => {
            doc! { "app_id": null, "app_name": app_name, "sub_app_name": sub_app_name.as_deref() }
        }
    }
}

pub fn of_version(scope: &Scope, version: &str) -> Document {
    let mut filter = in_scope(scope);
    filter.insert("version", version);
    filter
}

pub fn others(scope: &Scope, id: &Bson) -> Document {
    let mut filter = in_scope(scope);
    filter.insert("active", true);
    filter.insert("_id", doc! { "$ne": id });
    filter
}

/// Those that the source of a mirror has called the active one.
pub fn others_mirrored(scope: &Scope, id: &Bson) -> Document {
    let mut filter = in_scope(scope);
    filter.insert("mirrored_active", true);
    filter.insert("_id", doc! { "$ne": id });
    filter
}

/// `_id` of the document in `stepwell_meta` that all switches of a scope write to.
pub fn switch_id(scope: &Scope) -> String {
    format!("configuration/{}", scope.identity())
}

/// `_id` of the document in `stepwell_meta` which says that who stored a version made it active: doing so again
/// changes nothing.
pub fn published_id(scope: &Scope, version: &str) -> String {
    format!("configuration_published_active/{}/{version}", scope.identity())
}

pub fn intent(scope: &Scope, version: &str, done: bool) -> Document {
    let mut set = in_scope(scope);
    set.insert("version", version);
    set.insert("done", done);
    doc! { "$set": set, "$inc": { "number": 1_i64 } }
}

/// The update that notes it.
pub fn published(scope: &Scope, version: &str) -> (Document, Document) {
    (doc! { "_id": published_id(scope, version) }, doc! { "$set": { "version": version } })
}
