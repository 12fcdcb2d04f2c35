//! The record of one file that a run produced. Where and how its bytes are kept is not known here.

use bson::Document;

use super::{Millis, value};

/// An artifact as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Artifact {
    /// 24 hex digits of an ObjectId, on every backend.
    pub artifact_id: String,
    pub execution_id: String,
    pub step_id: Option<i32>,
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
}

impl Artifact {
    /// Bytes it takes in memory, roughly.
    pub fn weight(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        256 + self.artifact_id.len()
            + self.execution_id.len()
            + self.artifact_type.len()
            + self.artifact_name.len()
            + text(&self.mime_type)
            + text(&self.storage_path)
            + text(&self.sha256)
            + value::size_of_document(&self.metadata)
    }
}
