//! The checks of what is asked about artifacts, as `requests` has them for executions and steps.

use super::requests::Check;
use crate::app::Result;
use crate::app::artifacts::Part;
use crate::domain::limits::Limits;
use crate::domain::{Artifact, Description, Origin};
use crate::proto;

/// Hex digits of an artifact id, and of a SHA-256.
const ARTIFACT_ID_CHARACTERS: usize = 24;
const SHA256_CHARACTERS: usize = 64;

fn is_hex(text: &str, characters: usize) -> bool {
    text.len() == characters && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Check<'_> {
    /// The number, which must not be negative.
    fn count(&mut self, field: &str, number: Option<i64>) -> Option<u64> {
        let number = number?;
        if number < 0 {
            self.bad(field, format!("is {number}, but must not be negative"));
        }
        u64::try_from(number).ok()
    }

    fn sha256(&mut self, field: &str, text: Option<&String>) {
        if text.is_some_and(|text| !is_hex(text, SHA256_CHARACTERS)) {
            self.bad(field, format!("must be {SHA256_CHARACTERS} hex digits"));
        }
    }

    /// An id that names an existing artifact. One that cannot exist is not found, like any other.
    pub fn artifact_id(&mut self, id: &str) {
        self.required_name("artifact_id", id);
    }

    pub fn upload_id(&mut self, field: &str, id: &str) {
        if id.is_empty() {
            self.bad(field, "is required");
        }
        self.characters(field, id, 128);
    }
}

pub fn description(limits: &Limits, sent: proto::ArtifactDescription) -> Result<Description> {
    let mut check = Check::new(limits);
    check.id_in("description.execution_id", &sent.execution_id);
    check.name("description.artifact_type", &sent.artifact_type);
    check.required_name("description.artifact_name", &sent.artifact_name);
    check.optional_name("description.mime_type", sent.mime_type.as_ref());
    check.sha256("description.sha256", sent.sha256.as_ref());
    let size_bytes = check.count("description.size_bytes", sent.size_bytes);
    if let Some(size) = size_bytes
        && size > limits.artifact_bytes as u64
    {
        let limit = limits.artifact_bytes;
        check.bad(
            "description.size_bytes",
            format!("is {size} bytes, more than the limit of {limit}"),
        );
    }
    if let Some(upload_id) = &sent.upload_id {
        check.upload_id("description.upload_id", upload_id);
    }
    let offset = check.count("description.offset", Some(sent.offset)).unwrap_or(0);
    if offset > 0 && sent.upload_id.is_none() {
        check.bad("description.offset", "needs an upload_id to continue");
    }
    if size_bytes.is_some_and(|size| offset > size) {
        check.bad("description.offset", "is beyond size_bytes");
    }
    let description = Description {
        step_id: check.step_id("description.step_id", sent.step_id),
        step_key: check.key_instead(
            "description.step_key",
            sent.step_key.as_ref(),
            ("description.step_id", sent.step_id),
        ),
        metadata: check.object("description.metadata", sent.metadata.as_ref()),
        execution_id: sent.execution_id,
        artifact_type: sent.artifact_type,
        artifact_name: sent.artifact_name,
        mime_type: sent.mime_type,
        size_bytes,
        sha256: sent.sha256.map(|sha256| sha256.to_ascii_lowercase()),
        upload_id: sent.upload_id,
        offset,
    };
    check.done(description)
}

pub fn part(limits: &Limits, request: &proto::DownloadArtifactRequest) -> Result<Part> {
    let mut check = Check::new(limits);
    check.artifact_id(&request.artifact_id);
    let offset = check.count("offset", request.offset);
    let limit = check.count("limit", request.limit);
    let tail = check.count("tail", request.tail);
    if request.tail.is_some() && (request.offset.is_some() || request.limit.is_some()) {
        check.bad("tail", "cannot be combined with offset and limit");
    }
    check.done(match tail {
        Some(tail) => Part::Tail(tail),
        None => Part::From { offset: offset.unwrap_or(0), limit },
    })
}

/// A whole record, as it is. One of no execution is one of a program that keeps such.
pub fn put_artifact(limits: &Limits, sent: proto::Artifact) -> Result<Artifact> {
    let mut check = Check::new(limits);
    check.whole("omitted_fields", &sent.omitted_fields);
    if !sent.artifact_id.is_empty() && !is_hex(&sent.artifact_id, ARTIFACT_ID_CHARACTERS) {
        check.bad("artifact_id", format!("must be {ARTIFACT_ID_CHARACTERS} hex digits"));
    }
    check.characters("execution_id", &sent.execution_id, limits.execution_id_characters);
    check.name("artifact_type", &sent.artifact_type);
    check.name("artifact_name", &sent.artifact_name);
    check.optional_name("mime_type", sent.mime_type.as_ref());
    check.optional_name("storage_type", sent.storage_type.as_ref());
    if let Some(path) = &sent.storage_path {
        check.message("storage_path", path);
    }
    check.sha256("sha256", sent.sha256.as_ref());
    check.count("size_bytes", sent.size_bytes);
    let artifact = Artifact {
        step_id: check.step_id("step_id", sent.step_id),
        step_key: check.key_instead("step_key", sent.step_key.as_ref(), ("step_id", sent.step_id)),
        metadata: check.object("metadata", sent.metadata.as_ref()),
        created_at: check.time("created_at", sent.created_at.as_ref()),
        artifact_id: sent.artifact_id.to_ascii_lowercase(),
        execution_id: sent.execution_id,
        artifact_type: sent.artifact_type,
        artifact_name: sent.artifact_name,
        mime_type: sent.mime_type,
        size_bytes: sent.size_bytes,
        storage_type: sent.storage_type,
        storage_path: sent.storage_path,
        sha256: sent.sha256,
        origin: Origin::Imported,
    };
    check.done(artifact)
}
