//! The record of one file that a run produced. Where and how its bytes are kept is not known here.

use bson::{Bson, Document};

use super::digest::Digest;
use super::step::StepNames;
use super::terms::Millis;
use super::value;

/// How a record came to name bytes. That decides what its clients may do with them: a name alone gives no right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// An upload: this server stored the bytes, under a name that it made up.
    Uploaded,
    /// `put_artifact`: its client may have written any name into it, so it has no bytes.
    Imported,
    /// Another program stored the record in the database, where it could reach all bytes anyway.
    Foreign,
}

impl Origin {
    /// The origin of a stored record: of what is marked, or else by the digest of the request that made it.
    pub fn of(record: &Artifact, record_only: Option<bool>, digest: Option<&str>) -> Self {
        match (record_only, digest) {
            (Some(true), _) => Origin::Imported,
            (Some(false), _) => Origin::Uploaded,
            (None, None) => Origin::Foreign,
            (None, Some(digest)) => {
                // The id may have been made after the digest.
                let without_id = Artifact { artifact_id: String::new(), ..record.clone() };
                match digest == record.put_digest() || digest == without_id.put_digest() {
                    true => Origin::Imported,
                    false => Origin::Uploaded,
                }
            }
        }
    }
}

/// An artifact as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Artifact {
    /// 24 hex digits of an ObjectId, on every backend.
    pub artifact_id: String,
    pub execution_id: String,
    pub step_id: Option<i32>,
    /// Instead of `step_id`.
    pub step_key: Option<String>,
    pub artifact_type: String,
    pub artifact_name: String,
    pub mime_type: Option<String>,
    pub size_bytes: Option<i64>,
    /// "gridfs", "s3" or "local"; other programs may have other words.
    pub storage_type: Option<String>,
    /// Where the bytes are, as a URL.
    pub storage_path: Option<String>,
    pub metadata: Document,
    pub created_at: Option<Millis>,
    /// Of the bytes, 64 lower-case hex digits.
    pub sha256: Option<String>,
    pub origin: Origin,
}

impl Artifact {
    /// Bytes it takes in memory, roughly.
    pub fn weight(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        256 + self.artifact_id.len()
            + self.execution_id.len()
            + self.artifact_type.len()
            + self.artifact_name.len()
            + text(&self.step_key)
            + text(&self.mime_type)
            + text(&self.storage_path)
            + text(&self.sha256)
            + value::size_of_document(&self.metadata)
    }

    /// Bytes that were uploaded with it; what is only recorded takes no room.
    pub fn uploaded_bytes(&self) -> u64 {
        match self.sha256 {
            Some(_) => u64::try_from(self.size_bytes.unwrap_or(0)).unwrap_or(0),
            None => 0,
        }
    }

    /// Proof that a put of this record is the same put again. `created_at` is not part of it, as a source
    /// without one says it anew each time.
    pub fn put_digest(&self) -> String {
        let id = Some(self.artifact_id.as_str()).filter(|id| !id.is_empty());
        let metadata = (!self.metadata.is_empty()).then(|| Bson::Document(self.metadata.clone()));
        Digest::new("put_artifact")
            .text("artifact_id", id)
            .text("execution_id", Some(&self.execution_id))
            .integer("step_id", self.step_id.map(i64::from))
            .text("step_key", self.step_key.as_deref())
            .text("artifact_type", Some(&self.artifact_type))
            .text("artifact_name", Some(&self.artifact_name))
            .text("mime_type", self.mime_type.as_deref())
            .integer("size_bytes", self.size_bytes)
            .text("storage_type", self.storage_type.as_deref())
            .text("storage_path", self.storage_path.as_deref())
            .text("sha256", self.sha256.as_deref())
            .value("metadata", metadata.as_ref())
            .finish()
    }
}

/// What a client says of the bytes that it is about to upload.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    pub execution_id: String,
    pub step_id: Option<i32>,
    /// Instead of `step_id`.
    pub step_key: Option<String>,
    pub artifact_type: String,
    pub artifact_name: String,
    pub mime_type: Option<String>,
    pub metadata: Document,
    /// How many bytes will come.
    pub size_bytes: Option<u64>,
    /// 64 lower-case hex digits.
    pub sha256: Option<String>,
    pub upload_id: Option<String>,
    /// Where the bytes that follow begin.
    pub offset: u64,
}

impl Description {
    /// Tells this upload from others: an upload id belongs to one of them.
    pub fn digest(&self) -> String {
        let metadata = (!self.metadata.is_empty()).then(|| Bson::Document(self.metadata.clone()));
        let size = self.size_bytes.map(|size| i64::try_from(size).unwrap_or(i64::MAX));
        Digest::new("upload")
            .text("execution_id", Some(&self.execution_id))
            .integer("step_id", self.step_id.map(i64::from))
            .text("step_key", self.step_key.as_deref())
            .text("artifact_type", Some(&self.artifact_type))
            .text("artifact_name", Some(&self.artifact_name))
            .text("mime_type", self.mime_type.as_deref())
            .integer("size_bytes", size)
            .text("sha256", self.sha256.as_deref())
            .value("metadata", metadata.as_ref())
            .finish()
    }

    /// Tells the artifact from others: uploads of the same bytes under the same name are one artifact.
    pub fn artifact_digest(&self, sha256: &str) -> String {
        Digest::new("artifact")
            .text("execution_id", Some(&self.execution_id))
            .integer("step_id", self.step_id.map(i64::from))
            .text("step_key", self.step_key.as_deref())
            .text("artifact_name", Some(&self.artifact_name))
            .text("sha256", Some(sha256))
            .finish()
    }
}

/// One page of the artifacts of an execution, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct ArtifactQuery {
    pub execution_id: String,
    /// Only those of this step.
    pub step: Option<StepNames>,
    pub artifact_type: Option<String>,
    /// Only those stored before the one of this id.
    pub after: Option<String>,
    /// Records at most.
    pub limit: usize,
    /// Records read at most, found or not.
    pub examine: usize,
}

impl ArtifactQuery {
    /// Whether a record of the execution is one of those asked for.
    pub fn admits(&self, record: &Artifact) -> bool {
        self.step.as_ref().is_none_or(|step| step.is(record.step_id, record.step_key.as_deref()))
            && self.artifact_type.as_ref().is_none_or(|wanted| record.artifact_type == *wanted)
    }
}
