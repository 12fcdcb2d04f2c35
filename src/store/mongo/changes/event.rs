//! What an event of the change stream means for a record.

use std::sync::Arc;

use bson::raw::{RawBsonRef, RawDocument, RawDocumentBuf};
use bson::{Bson, rawdoc};

use super::standing;
use crate::domain::{Millis, StepStatus};
use crate::store::mongo::artifact_documents;
use crate::store::mongo::db::values::{field, id_of, is_marked};
use crate::store::mongo::names::{ARTIFACTS, NUDGES, Name, STEPS};
use crate::store::mongo::records::{execution, step};
use crate::store::{Change, ChangeKind, Changed, Collection, Cursor, Record, RecordKey};

/// The `_id` of a document as bytes, whatever type another program chose for it.
pub fn document_id(document: &RawDocument) -> Option<Vec<u8>> {
    let id = field(document, "_id")?;
    Some(rawdoc! { "_id": id }.into_bytes())
}

pub fn document_id_value(bytes: &[u8]) -> Option<Bson> {
    let document = RawDocument::from_bytes(bytes).ok()?;
    id_of(document)
}

/// `execution_id/step_id/revision`, of an artifact `execution_id//artifact_id`; an execution id may itself have
/// slashes.
fn parse_last_change(collection: Collection, text: &str) -> Option<(RecordKey, i64)> {
    if collection == Collection::Artifacts {
        let (execution_id, artifact_id) = artifact_documents::parse_last_change(text)?;
        return Some((RecordKey::artifact(execution_id, artifact_id), 0));
    }
    let mut parts = text.rsplitn(3, '/');
    let revision = parts.next()?.parse().ok()?;
    let step_id = parts.next()?;
    let execution_id = parts.next()?;
    let key = match step_id {
        "" => RecordKey::execution(execution_id),
        step_id => RecordKey::step(execution_id, step_id.parse().ok()?),
    };
    Some((key, revision))
}

fn touches(name: &str, field: &str) -> bool {
    name.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn moment(event: &RawDocument) -> Millis {
    match (event.get("wallTime"), event.get("clusterTime")) {
        (Ok(Some(RawBsonRef::DateTime(at))), _) => at.timestamp_millis(),
        (_, Ok(Some(RawBsonRef::Timestamp(at)))) => i64::from(at.time) * 1000,
        _ => 0,
    }
}

/// What a change event means; `None` where it is no change of a record. One that is not `whole` lacks the document and most
/// of what changed.
pub fn read_event(event: &RawDocument, cursor: &Cursor, whole: bool) -> Option<Change> {
    let collection = match Name::of(event.get_document("ns").ok()?.get_str("coll").ok()?) {
        Some(STEPS) => Collection::Steps,
        Some(ARTIFACTS) => Collection::Artifacts,
        Some(NUDGES) => return None,
        _ => Collection::Executions,
    };
    let id = event.get_document("documentKey").ok().and_then(document_id);
    let mut change = Change {
        cursor: cursor.clone(),
        at: moment(event),
        what: Changed::Unknown { collection, id: id.clone().unwrap_or_default() },
        kind: ChangeKind::Updated,
        revision: None,
        status_changed: true,
        metadata_changed: true,
        failed: None,
        standing: None,
        body: None,
        document_id: id,
    };
    match event.get_str("operationType").ok()? {
        // The record is looked up by its `_id`.
        operation @ ("insert" | "replace") if !whole => {
            if operation == "insert" {
                change.kind = ChangeKind::Created;
            }
        }
        operation @ ("insert" | "replace") => {
            let document = event.get_document("fullDocument").ok()?;
            let (record, deleted) = match collection {
                Collection::Steps => {
                    (Record::Step(Arc::new(step::read(document, false).ok()?)), false)
                }
                Collection::Executions => {
                    let execution = execution::read(document).ok()?;
                    let deleted = execution.deleted_at.is_some();
                    (Record::Execution(Arc::new(execution)), deleted)
                }
                Collection::Artifacts => {
                    let deleted = is_marked(document);
                    (Record::Artifact(Arc::new(artifact_documents::read(document).ok()?)), deleted)
                }
            };
            if deleted {
                return None;
            }
            change.what = Changed::Record(record.key());
            if let Record::Step(step) = &record {
                change.failed = Some(step.status == Some(StepStatus::Failed));
            }
            if operation == "insert" {
                change.kind = ChangeKind::Created;
                // We never replace, so only an insert can be ours.
                change.revision = Some(record.revision()).filter(|revision| *revision > 0);
            }
            change.body = Some(record);
        }
        "update" => {
            let nothing = RawDocumentBuf::new();
            let description = match event.get_document("updateDescription") {
                Ok(description) => description,
                Err(_) if !whole => nothing.as_ref(),
                Err(_) => return None,
            };
            let updated = match description.get_document("updatedFields") {
                Ok(updated) => updated,
                Err(_) if !whole => nothing.as_ref(),
                Err(_) => return None,
            };
            let removed = description.get_array("removedFields").ok();
            let removed = removed.into_iter().flatten().flatten().filter_map(|name| name.as_str());
            let mut names: Vec<&str> = removed.collect();
            let mut last_change = None;
            let mut deleted = false;
            let mut status = None;
            for element in updated {
                let (name, value) = element.ok()?;
                match name.as_str() {
                    "last_change" => {
                        let parse = |text: &str| parse_last_change(collection, text);
                        last_change = value.as_str().and_then(parse);
                    }
                    "deleted_at" => deleted = true,
                    "status" => status = value.as_str(),
                    _ => {}
                }
                names.push(name.as_str());
            }
            let says = |name: &str| !whole || names.iter().any(|found| touches(found, name));
            change.failed = match status {
                // The words of the error may be others now.
                None if says("error") => None,
                status => Some(status == Some(StepStatus::Failed.as_str())),
            };
            change.standing = whole.then(|| standing::read(collection, updated));
            change.status_changed = says("status");
            change.metadata_changed = says("metadata");
            match last_change {
                Some((key, revision)) => {
                    change.what = Changed::Record(key);
                    change.revision = Some(revision);
                    if deleted {
                        change.kind = ChangeKind::Deleted;
                    }
                }
                // Stored, and no change: a heartbeat, or that retention was there.
                None if names == ["last_heartbeat_at"] || names == ["trims"] => return None,
                None => {}
            }
        }
        "delete" => change.kind = ChangeKind::Deleted,
        _ => return None,
    }
    Some(change)
}
