//! Executions as the owners of what retention looks at.

use std::collections::{HashMap, HashSet};

use bson::oid::ObjectId;
use bson::raw::{RawDocument, RawDocumentBuf};
use bson::{Document, doc};

use crate::domain::Millis;
use crate::domain::retention::Owner;
use crate::store::Result;
use crate::store::mongo::db::Connection;
use crate::store::mongo::db::values::{id_of, stored_at};
use crate::store::mongo::names::EXECUTIONS;
use crate::store::mongo::records::execution;
use crate::store::retention::Aged;

pub fn owner_fields() -> Document {
    doc! {
        "execution_id": 1, "app_id": 1, "app_name": 1, "status": 1, "pinned": 1, "revision": 1, "deleted_at": 1,
    }
}

/// An execution as a record's owner.
#[derive(Clone)]
pub enum Owned {
    By(Owner),
    /// By one that is being deleted.
    Deleted,
}

pub fn owner_of(raw: &RawDocument) -> Option<Owned> {
    let execution = execution::read(raw).ok()?;
    if execution.deleted_at.is_some() {
        return Some(Owned::Deleted);
    }
    Some(Owned::By(Owner {
        execution_id: execution.execution_id,
        app_id: execution.app_id,
        app_name: execution.app_name,
        status: execution.status,
        pinned: execution.pinned.unwrap_or(false),
        // Without a time it has no age.
        stored_at: id_of(raw).as_ref().and_then(stored_at).unwrap_or(Millis::MAX),
    }))
}

pub fn ids_of(records: &[Aged]) -> Vec<ObjectId> {
    let id = |record: &Aged| record.id.as_slice().try_into().map(ObjectId::from_bytes).ok();
    records.iter().filter_map(id).collect()
}

pub fn by_id(found: &[RawDocumentBuf]) -> HashMap<String, Owned> {
    let owner = |raw: &RawDocumentBuf| {
        let id = raw.get_str("execution_id").ok()?.to_owned();
        Some((id, owner_of(raw)?))
    };
    found.iter().filter_map(owner).collect()
}

/// The owners of these ids, as the primary has them.
pub async fn owners(
    ready: &Connection,
    execution_ids: HashSet<&str>,
) -> Result<HashMap<String, Owned>> {
    if execution_ids.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<&str> = execution_ids.into_iter().collect();
    let filter = doc! { "execution_id": { "$in": ids } };
    Ok(by_id(&ready.all(&ready.own(EXECUTIONS), filter, Some(owner_fields())).await?))
}
