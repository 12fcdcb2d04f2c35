//! What a store keeps of artifacts: their records, and the uploads under way. Where the bytes are is only text
//! here.

use async_trait::async_trait;

use super::error::{Error, Result};
use crate::domain::limits::Limits;
use crate::domain::mirrored::{self, Mirrored, Verdict};
use crate::domain::query::Page;
use crate::domain::{Artifact, ArtifactQuery, Millis, Origin, Refusal};

/// What became of a new record.
#[derive(Debug, Clone, PartialEq)]
pub enum Created {
    New(Artifact),
    /// The same was stored before, under an id of its own.
    Found(Artifact),
}

/// How much of an execution its artifacts take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub artifacts: u64,
    /// Of those that were uploaded; what is only recorded takes no room here.
    pub bytes: u64,
}

impl Usage {
    /// Refuses one artifact more, with so many bytes, if that would be more than allowed.
    pub fn admits(self, bytes: u64, limits: &Limits) -> Result<(), Refusal> {
        let check = |field, size: u64, limit: usize| match size > limit as u64 {
            true => Err(Refusal::ArtifactLimit { field, size, limit: limit as u64 }),
            false => Ok(()),
        };
        check("artifacts", self.artifacts + 1, limits.artifacts_per_execution)?;
        match bytes {
            0 => Ok(()),
            bytes => {
                let together = self.bytes.saturating_add(bytes);
                check("artifact_bytes", together, limits.artifact_bytes_per_execution)
            }
        }
    }
}

/// What becomes of a mirrored write over the record of its id. Records with bytes of this server are nobody's to replace.
pub(super) fn mirrored_artifact(
    stored: &Artifact,
    before: Option<i64>,
    record: &Artifact,
    position: i64,
) -> Result<Verdict> {
    let untouched = stored.origin == Origin::Imported && stored.execution_id == record.execution_id;
    let same = || Ok(*stored == Artifact { created_at: stored.created_at, ..record.clone() });
    mirrored::judge(Mirrored { position: before, untouched }, position, same)
}

pub(super) fn artifact_conflict(record: &Artifact) -> Error {
    Refusal::MirrorConflict { what: format!("artifact {}", record.artifact_id) }.into()
}

/// Bytes on their way: known before the first of them is stored, so that whatever a crash leaves can be found. A store
/// that removes an execution takes the turn of its uploads and makes them as old as can be: nobody goes on with them,
/// and the sweep removes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// The client's, or one of ours where it gave none.
    pub upload_id: String,
    /// The execution that its artifact is of, and with which it goes.
    pub execution_id: String,
    /// Of the description: the id belongs to no other.
    pub digest: String,
    /// The id that the record will get; of a finished upload, the id of the record.
    pub artifact_id: String,
    pub storage_type: String,
    pub storage_path: String,
    /// Counts the connections that went on with it, and its end. Only the latest may write.
    pub turn: i64,
    /// How many bytes are safe.
    pub received_bytes: u64,
    /// State of the SHA-256 of those bytes.
    pub hash_state: Vec<u8>,
    /// What the storage has to know to go on.
    pub storage_state: Vec<u8>,
    /// The bytes are complete, and the record is being stored or was: no other connection may write any more. What
    /// is left of it is kept for a client that lost the answer.
    pub finished: bool,
    pub updated_at: Millis,
}

/// Records of artifacts and uploads, durable.
#[async_trait]
pub trait ArtifactStore: Send + Sync + 'static {
    /// Stores a record and logs that it was created, at once and only if its execution is there (unless it is of
    /// none). `digest` tells it from others: one that is stored already is found instead, also by racing calls.
    /// Refuses an id that another record has, and more artifacts or bytes than the execution may have; the latter
    /// may be passed by what ends at the same moment through other servers.
    async fn create_artifact(&self, record: &Artifact, digest: &str) -> Result<Created>;

    /// Stores a record that a mirror brings, or replaces by it the record of this id and execution that a mirror brought
    /// from a lesser position. One that is not newer is found as it is. `Refusal::MirrorConflict` where somebody else
    /// has stored another record under the id.
    async fn mirror_artifact(
        &self,
        record: &Artifact,
        digest: &str,
        position: i64,
    ) -> Result<Created>;

    /// The record of this digest, which is of this execution (empty: of none).
    async fn artifact_by_digest(
        &self,
        execution_id: &str,
        digest: &str,
    ) -> Result<Option<Artifact>>;

    /// The record, unless it is marked as deleted.
    async fn artifact(&self, artifact_id: &str) -> Result<Option<Artifact>>;

    /// Newest first by id, keyset, at most `limit` found among at most `examine` read.
    async fn artifacts(&self, query: &ArtifactQuery) -> Result<Page<Artifact, String>>;

    /// What the artifacts of an execution take.
    async fn artifact_usage(&self, execution_id: &str) -> Result<Usage>;

    /// Marks a record as deleted, which makes it invisible and frees its digest, and logs the deletion. False:
    /// there is none.
    async fn mark_artifact(&self, artifact_id: &str, at: Millis) -> Result<bool>;

    /// Records that are marked, by id, after this one.
    async fn marked_artifacts(&self, after: Option<&str>, limit: usize) -> Result<Vec<Artifact>>;

    /// Removes a marked record.
    async fn remove_artifact(&self, artifact_id: &str) -> Result<()>;

    /// Whether a record that is not marked has its bytes at one of these paths. Imported ones have none, and the one
    /// of the id `except` does not count.
    async fn record_has_bytes(&self, paths: &[String], except: Option<&str>) -> Result<bool>;

    /// Whether an upload brings the bytes of another artifact than this one to one of these paths.
    async fn upload_has_bytes(&self, paths: &[String], artifact_id: &str) -> Result<bool>;

    /// Stores a new upload. One of the same id that is there already is returned instead, unchanged.
    async fn begin_upload(&self, upload: &Upload) -> Result<Upload>;

    async fn upload(&self, upload_id: &str) -> Result<Option<Upload>>;

    /// Replaces the upload if its turn still is this one. False: it is not, or there is no such upload.
    async fn replace_upload(&self, turn: i64, upload: &Upload) -> Result<bool>;

    /// Removes the upload if its turn still is this one.
    async fn remove_upload(&self, upload_id: &str, turn: i64) -> Result<bool>;

    /// Uploads that were last touched before this moment, the oldest first, and those of one moment by id: what
    /// comes after the one that was touched then and has this id.
    async fn idle_uploads(
        &self,
        before: Millis,
        after: Option<(Millis, &str)>,
        limit: usize,
    ) -> Result<Vec<Upload>>;
}
