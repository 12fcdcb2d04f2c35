//! Artifacts as MongoDB documents and back, by the rules of `records::execution`. The id of an artifact is the `_id` of
//! its document, in hex. Knows nothing of connections and commands.

use bson::oid::ObjectId;
use bson::raw::{RawDocument, RawDocumentBuf, cstr};
use bson::{DateTime, Document, doc, rawdoc};

use super::db::values::{
    corrupt, date, field, integer, is_marked, millis, nullable, object, present, raw, small, text,
};
use super::names::ARTIFACTS;
use super::records::parts::read_digests;
use crate::domain::{Artifact, Origin};
use crate::store::Result;

/// Between the two parts of `last_change`.
const SEPARATOR: &str = "//";
/// Ends `last_change` of an artifact that is marked as deleted.
const DELETED: &str = "/deleted";

/// The value of `last_change` after any change of an artifact: it has no revision, for it only comes and goes.
pub fn last_change(execution_id: &str, artifact_id: &str) -> String {
    format!("{execution_id}{SEPARATOR}{artifact_id}")
}

/// The same of a delete: a field that is set to what it is already is in no event.
pub fn last_change_of_delete(execution_id: &str, artifact_id: &str) -> String {
    last_change(execution_id, artifact_id) + DELETED
}

/// Execution and artifact out of `last_change`; an execution id may itself have slashes.
pub fn parse_last_change(text: &str) -> Option<(&str, &str)> {
    text.strip_suffix(DELETED)
        .unwrap_or(text)
        .rsplit_once(SEPARATOR)
        .filter(|(_, artifact_id)| ObjectId::parse_str(artifact_id).is_ok())
}

/// What is empty in a record is null in the document: the other programs' word for unknown.
fn filled(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// A new artifact, with the digest of the request that made it.
pub fn insert(id: ObjectId, record: &Artifact, digest: &str) -> Result<RawDocumentBuf> {
    let mut to = RawDocumentBuf::new();
    to.append(cstr!("_id"), id);
    nullable(&mut to, cstr!("execution_id"), filled(&record.execution_id));
    nullable(&mut to, cstr!("step_id"), record.step_id);
    present(&mut to, cstr!("step_key"), record.step_key.as_deref());
    nullable(&mut to, cstr!("artifact_type"), filled(&record.artifact_type));
    nullable(&mut to, cstr!("artifact_name"), filled(&record.artifact_name));
    nullable(&mut to, cstr!("mime_type"), record.mime_type.as_deref());
    nullable(&mut to, cstr!("size_bytes"), record.size_bytes);
    nullable(&mut to, cstr!("storage_type"), record.storage_type.as_deref());
    nullable(&mut to, cstr!("storage_path"), record.storage_path.as_deref());
    to.append(cstr!("metadata"), raw(&record.metadata)?);
    nullable(&mut to, cstr!("created_at"), record.created_at.map(date));
    nullable(&mut to, cstr!("sha256"), record.sha256.as_deref());
    // An upload is told by its digest, and its document has what the contract says and nothing more.
    if record.origin == Origin::Imported {
        to.append(cstr!("record_only"), true);
    }
    to.append(cstr!("digests"), rawdoc! { "create": digest });
    to.append(
        cstr!("last_change"),
        last_change(&record.execution_id, &record.artifact_id).as_str(),
    );
    Ok(to)
}

/// A document as some program stored it, with what of it is not part of the record. Only `_id` has to be what
/// it is elsewhere.
pub struct Stored {
    pub record: Artifact,
    pub digest: Option<String>,
    pub deleted: bool,
}

pub fn read_stored(raw: &RawDocument) -> Result<Stored> {
    let mut id = None;
    let mut digest = None;
    let mut deleted = false;
    let mut record_only = None;
    let mut record = Artifact {
        artifact_id: String::new(),
        execution_id: String::new(),
        step_id: None,
        step_key: None,
        artifact_type: String::new(),
        artifact_name: String::new(),
        mime_type: None,
        size_bytes: None,
        storage_type: None,
        storage_path: None,
        metadata: Document::new(),
        created_at: None,
        sha256: None,
        origin: Origin::Foreign,
    };
    for element in raw {
        let (key, value) = element.map_err(|_| corrupt(ARTIFACTS, raw, "document"))?;
        match key.as_str() {
            "_id" => id = value.as_object_id(),
            "execution_id" => record.execution_id = text(value).unwrap_or_default(),
            "step_id" => record.step_id = small(value),
            "step_key" => record.step_key = text(value),
            "artifact_type" => record.artifact_type = text(value).unwrap_or_default(),
            "artifact_name" => record.artifact_name = text(value).unwrap_or_default(),
            "mime_type" => record.mime_type = text(value),
            "size_bytes" => record.size_bytes = integer(value),
            "storage_type" => record.storage_type = text(value),
            "storage_path" => record.storage_path = text(value),
            "metadata" => record.metadata = object(value),
            "created_at" => record.created_at = millis(value),
            "sha256" => record.sha256 = text(value),
            "digests" => digest = read_digests(value).create,
            "record_only" => record_only = value.as_bool(),
            "deleted_at" => deleted = millis(value).is_some(),
            _ => {}
        }
    }
    record.artifact_id = id.ok_or_else(|| corrupt(ARTIFACTS, raw, "_id"))?.to_hex();
    record.origin = Origin::of(&record, record_only, digest.as_deref());
    Ok(Stored { record, digest, deleted })
}

/// The record alone, of an execution.
pub fn read(raw: &RawDocument) -> Result<Artifact> {
    match read_stored(raw)?.record {
        record if record.execution_id.is_empty() => Err(corrupt(ARTIFACTS, raw, "execution_id")),
        record => Ok(record),
    }
}

/// Any record that is not marked as deleted, also one of no execution.
pub fn read_any_alive(raw: &RawDocument) -> Result<Option<Artifact>> {
    let stored = read_stored(raw)?;
    Ok((!stored.deleted).then_some(stored.record))
}

/// The same of one that is not marked as deleted; such a document is no artifact any more.
pub fn read_alive(raw: &RawDocument) -> Result<Option<Artifact>> {
    let artifact = read(raw)?;
    Ok((!is_marked(raw)).then_some(artifact))
}

/// The size of an artifact's bytes, as its document says.
pub fn bytes_of(raw: &RawDocument) -> i64 {
    field(raw, "size_bytes").and_then(integer).unwrap_or(0)
}

/// The update that marks artifacts as deleted. The sweep of their bytes takes the documents away.
pub fn marking(at: DateTime) -> Vec<Document> {
    let id = doc! { "$toString": "$_id" };
    let last_change = doc! { "$concat": ["$execution_id", SEPARATOR, id] };
    vec![doc! { "$set": { "deleted_at": at, "last_change": last_change } }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Error;

    #[test]
    fn an_artifact_comes_back_as_it_was_stored() {
        let record = Artifact {
            artifact_id: ObjectId::new().to_hex(),
            execution_id: "a/b/".to_owned(),
            step_id: None,
            step_key: Some("shot".to_owned()),
            artifact_type: "log".to_owned(),
            artifact_name: "../../out.txt".to_owned(),
            mime_type: Some("text/plain".to_owned()),
            size_bytes: Some(1 << 40),
            storage_type: Some("local".to_owned()),
            storage_path: Some("file:x".to_owned()),
            metadata: doc! { "a.b": { "$c": 1 } },
            created_at: Some(1_700_000_000_123),
            sha256: Some("00".repeat(32)),
            origin: Origin::Uploaded,
        };
        let id = ObjectId::parse_str(&record.artifact_id).unwrap();
        let stored = insert(id, &record, "digest").unwrap();
        assert_eq!(read_stored(&stored).unwrap().digest.as_deref(), Some("digest"));
        assert_eq!(read(&stored).unwrap(), record);
        let last_change = stored.get_str("last_change").unwrap();
        let parts = (record.execution_id.as_str(), record.artifact_id.as_str());
        assert_eq!(parse_last_change(last_change), Some(parts));
        assert_eq!(parse_last_change("e//17"), None);
    }

    #[test]
    fn the_origin_is_in_the_document_and_was_in_its_digest_before() {
        let id = ObjectId::new();
        let record = |artifact_id: &str, origin| Artifact {
            execution_id: "e".to_owned(),
            storage_type: Some("gridfs".to_owned()),
            storage_path: Some("gridfs://artifacts/x".to_owned()),
            metadata: doc! { "n": 1, "deep": { "x": [1.5, null] } },
            created_at: Some(7),
            origin,
            ..read_stored(&rawdoc! { "_id": ObjectId::parse_str(artifact_id).unwrap() })
                .unwrap()
                .record
        };
        let named = record(&id.to_hex(), Origin::Imported);
        let unnamed = Artifact { artifact_id: String::new(), ..named.clone() };
        for digest in [named.put_digest(), unnamed.put_digest()] {
            let stored = insert(id, &named, &digest).unwrap();
            assert_eq!(read(&stored).unwrap().origin, Origin::Imported);
            let mut before = Document::try_from(&*stored).unwrap();
            before.remove("record_only");
            assert_eq!(read(&raw(&before).unwrap()).unwrap().origin, Origin::Imported);
        }
        let stored = insert(id, &record(&id.to_hex(), Origin::Uploaded), "digest").unwrap();
        assert_eq!(read(&stored).unwrap().origin, Origin::Uploaded);
        let mut before = Document::try_from(&*stored).unwrap();
        before.remove("record_only");
        assert_eq!(read(&raw(&before).unwrap()).unwrap().origin, Origin::Uploaded);
        before.remove("digests");
        assert_eq!(read(&raw(&before).unwrap()).unwrap().origin, Origin::Foreign);
    }

    #[test]
    fn absent_and_odd_fields_read_as_nothing() {
        let id = ObjectId::new();
        let raw = rawdoc! {
            "_id": id, "execution_id": "e", "size_bytes": 12.0, "metadata": "none", "mime_type": 7,
        };
        let record = read(&raw).unwrap();
        assert_eq!((record.size_bytes, record.mime_type), (Some(12), None));
        assert_eq!(record.metadata, Document::new());
        assert!(read_alive(&raw).unwrap().is_some());
        for (raw, field) in [
            (rawdoc! { "_id": "x", "execution_id": "e" }, "_id"),
            (rawdoc! { "_id": id }, "execution_id"),
        ] {
            assert!(
                matches!(read(&raw), Err(Error::Corrupt { field: found, .. }) if found == field)
            );
        }
    }
}
