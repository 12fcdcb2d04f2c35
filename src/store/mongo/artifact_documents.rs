//! Artifacts as MongoDB documents and back: the same rules as in `documents`. The id of an artifact is the `_id` of
//! its document, in hex. Knows nothing of connections and commands.

use bson::oid::ObjectId;
use bson::raw::{BindRawBsonRef, CStr, RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::{Bson, Document};

use super::documents::{date, integer};
use crate::domain::{Artifact, Millis};
use crate::store::{Error, Result};

const COLLECTION: &str = super::schema::ARTIFACTS;

fn nullable(to: &mut RawDocumentBuf, key: &'static CStr, value: Option<impl BindRawBsonRef>) {
    match value {
        Some(value) => to.append(key, value),
        None => to.append(key, RawBsonRef::Null),
    }
}

/// Between the two parts of `last_change`.
pub(super) const SEPARATOR: &str = "//";

/// The value of `last_change` after any change of an artifact: it has no revision, for it only comes and goes.
pub(super) fn last_change(execution_id: &str, artifact_id: &str) -> String {
    format!("{execution_id}{SEPARATOR}{artifact_id}")
}

/// Execution and artifact out of `last_change`; an execution id may itself have slashes.
pub(super) fn parse_last_change(text: &str) -> Option<(&str, &str)> {
    text.rsplit_once(SEPARATOR).filter(|(_, artifact_id)| ObjectId::parse_str(artifact_id).is_ok())
}

/// A new artifact. Its id has to be that of an ObjectId.
pub(super) fn insert(record: &Artifact) -> Result<RawDocumentBuf> {
    let id = ObjectId::parse_str(&record.artifact_id).map_err(Error::failed)?;
    let mut to = RawDocumentBuf::new();
    to.append(cstr!("_id"), id);
    to.append(cstr!("execution_id"), record.execution_id.as_str());
    nullable(&mut to, cstr!("step_id"), record.step_id);
    to.append(cstr!("artifact_type"), record.artifact_type.as_str());
    to.append(cstr!("artifact_name"), record.artifact_name.as_str());
    nullable(&mut to, cstr!("mime_type"), record.mime_type.as_deref());
    nullable(&mut to, cstr!("size_bytes"), record.size_bytes);
    nullable(&mut to, cstr!("storage_type"), record.storage_type.as_deref());
    nullable(&mut to, cstr!("storage_path"), record.storage_path.as_deref());
    let metadata = RawDocumentBuf::try_from(&record.metadata).map_err(Error::failed)?;
    to.append(cstr!("metadata"), metadata);
    nullable(&mut to, cstr!("created_at"), record.created_at.map(date));
    nullable(&mut to, cstr!("sha256"), record.sha256.as_deref());
    let last_change = last_change(&record.execution_id, &record.artifact_id);
    to.append(cstr!("last_change"), last_change.as_str());
    Ok(to)
}

fn corrupt(raw: &RawDocument, field: &'static str) -> Error {
    let id = match raw.get("_id") {
        Ok(Some(RawBsonRef::ObjectId(id))) => id.to_hex(),
        Ok(Some(value)) => {
            Bson::try_from(value).map_or_else(|_| String::new(), |id| id.to_string())
        }
        _ => String::new(),
    };
    Error::Corrupt { collection: COLLECTION, id, field }
}

/// An artifact as some program stored it. Only `_id` and `execution_id` have to be readable.
pub(super) fn read(raw: &RawDocument) -> Result<Artifact> {
    let text = |value: RawBsonRef<'_>| value.as_str().map(str::to_owned);
    let mut artifact_id = None;
    let mut execution_id = None;
    let mut record = Artifact {
        artifact_id: String::new(),
        execution_id: String::new(),
        step_id: None,
        artifact_type: String::new(),
        artifact_name: String::new(),
        mime_type: None,
        size_bytes: None,
        storage_type: None,
        storage_path: None,
        metadata: Document::new(),
        created_at: None,
        sha256: None,
    };
    for element in raw {
        let (key, value) = element.map_err(|_| corrupt(raw, "document"))?;
        match key.as_str() {
            "_id" => artifact_id = value.as_object_id().map(ObjectId::to_hex),
            "execution_id" => execution_id = text(value),
            "step_id" => record.step_id = integer(value).and_then(|id| i32::try_from(id).ok()),
            "artifact_type" => record.artifact_type = text(value).unwrap_or_default(),
            "artifact_name" => record.artifact_name = text(value).unwrap_or_default(),
            "mime_type" => record.mime_type = text(value),
            "size_bytes" => record.size_bytes = integer(value),
            "storage_type" => record.storage_type = text(value),
            "storage_path" => record.storage_path = text(value),
            "metadata" => {
                let object = value.as_document().and_then(|raw| Document::try_from(raw).ok());
                record.metadata = object.unwrap_or_default();
            }
            "created_at" => record.created_at = value.as_datetime().map(|at| at.timestamp_millis()),
            "sha256" => record.sha256 = text(value),
            _ => {}
        }
    }
    record.artifact_id = artifact_id.ok_or_else(|| corrupt(raw, "_id"))?;
    record.execution_id = execution_id.ok_or_else(|| corrupt(raw, "execution_id"))?;
    Ok(record)
}

/// When the artifact was marked as deleted. Such a document is no artifact any more.
pub(super) fn deleted_at(raw: &RawDocument) -> Option<Millis> {
    let at = raw.get("deleted_at").ok().flatten()?;
    at.as_datetime().map(|at| at.timestamp_millis())
}

#[cfg(test)]
mod tests {
    use bson::{doc, rawdoc};

    use super::*;

    #[test]
    fn an_artifact_comes_back_as_it_was_stored() {
        let record = Artifact {
            artifact_id: ObjectId::new().to_hex(),
            execution_id: "a/b/".to_owned(),
            step_id: Some(3),
            artifact_type: "log".to_owned(),
            artifact_name: "../../out.txt".to_owned(),
            mime_type: Some("text/plain".to_owned()),
            size_bytes: Some(1 << 40),
            storage_type: Some("local".to_owned()),
            storage_path: Some("file:x".to_owned()),
            metadata: doc! { "a.b": { "$c": 1 } },
            created_at: Some(1_700_000_000_123),
            sha256: Some("00".repeat(32)),
        };
        let stored = insert(&record).unwrap();
        assert_eq!(read(&stored).unwrap(), record);
        let last_change = stored.get_str("last_change").unwrap();
        let parts = (record.execution_id.as_str(), record.artifact_id.as_str());
        assert_eq!(parse_last_change(last_change), Some(parts));
        assert_eq!(parse_last_change("e//17"), None);
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
        assert_eq!(deleted_at(&raw), None);
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
