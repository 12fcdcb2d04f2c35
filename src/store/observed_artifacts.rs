//! The same as `observed` for artifacts and for retention.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::Result;
use super::artifacts::{ArtifactStore, Created, Upload, Usage};
use super::observed::Operation;
use super::retention::{AgeKey, Aged, Piece, Removed, RetentionStore};
use crate::domain::query::Page;
use crate::domain::retention::{Kind, Policy};
use crate::domain::{Artifact, ArtifactQuery, Millis};

/// Wraps a store of artifacts.
pub struct ObservedArtifacts {
    inner: Arc<dyn ArtifactStore>,
    create: Operation,
    artifact: Operation,
    list: Operation,
    usage: Operation,
    mark: Operation,
    marked: Operation,
    remove: Operation,
    upload: Operation,
    replace_upload: Operation,
    remove_upload: Operation,
    idle_uploads: Operation,
}

impl ObservedArtifacts {
    pub fn new(inner: Arc<dyn ArtifactStore>) -> Self {
        ObservedArtifacts {
            inner,
            create: Operation::new("create_artifact"),
            artifact: Operation::new("artifact"),
            list: Operation::new("list_artifacts"),
            usage: Operation::new("artifact_usage"),
            mark: Operation::new("mark_artifact"),
            marked: Operation::new("marked_artifacts"),
            remove: Operation::new("remove_artifact"),
            upload: Operation::new("upload"),
            replace_upload: Operation::new("replace_upload"),
            remove_upload: Operation::new("remove_upload"),
            idle_uploads: Operation::new("idle_uploads"),
        }
    }
}

#[async_trait]
impl ArtifactStore for ObservedArtifacts {
    async fn create_artifact(&self, record: &Artifact, digest: &str) -> Result<Created> {
        self.create.run(self.inner.create_artifact(record, digest)).await
    }

    async fn artifact_by_digest(&self, digest: &str) -> Result<Option<Artifact>> {
        self.artifact.run(self.inner.artifact_by_digest(digest)).await
    }

    async fn artifact(&self, artifact_id: &str) -> Result<Option<Artifact>> {
        self.artifact.run(self.inner.artifact(artifact_id)).await
    }

    async fn artifacts(&self, query: &ArtifactQuery) -> Result<Page<Artifact, String>> {
        self.list.run(self.inner.artifacts(query)).await
    }

    async fn artifact_usage(&self, execution_id: &str) -> Result<Usage> {
        self.usage.run(self.inner.artifact_usage(execution_id)).await
    }

    async fn mark_artifact(&self, artifact_id: &str, at: Millis) -> Result<bool> {
        self.mark.run(self.inner.mark_artifact(artifact_id, at)).await
    }

    async fn marked_artifacts(&self, after: Option<&str>, limit: usize) -> Result<Vec<Artifact>> {
        self.marked.run(self.inner.marked_artifacts(after, limit)).await
    }

    async fn remove_artifact(&self, artifact_id: &str) -> Result<()> {
        self.remove.run(self.inner.remove_artifact(artifact_id)).await
    }

    async fn record_has_bytes(&self, paths: &[String], except: Option<&str>) -> Result<bool> {
        self.artifact.run(self.inner.record_has_bytes(paths, except)).await
    }

    async fn upload_has_bytes(&self, paths: &[String], artifact_id: &str) -> Result<bool> {
        self.upload.run(self.inner.upload_has_bytes(paths, artifact_id)).await
    }

    async fn begin_upload(&self, upload: &Upload) -> Result<Upload> {
        self.upload.run(self.inner.begin_upload(upload)).await
    }

    async fn upload(&self, upload_id: &str) -> Result<Option<Upload>> {
        self.upload.run(self.inner.upload(upload_id)).await
    }

    async fn replace_upload(&self, turn: i64, upload: &Upload) -> Result<bool> {
        self.replace_upload.run(self.inner.replace_upload(turn, upload)).await
    }

    async fn remove_upload(&self, upload_id: &str, turn: i64) -> Result<bool> {
        self.remove_upload.run(self.inner.remove_upload(upload_id, turn)).await
    }

    async fn idle_uploads(
        &self,
        before: Millis,
        after: Option<(Millis, &str)>,
        limit: usize,
    ) -> Result<Vec<Upload>> {
        self.idle_uploads.run(self.inner.idle_uploads(before, after, limit)).await
    }
}

/// Wraps a store for what retention does with it.
pub struct ObservedRetention {
    inner: Arc<dyn RetentionStore>,
    lease: Operation,
    by_age: Operation,
    expire: Operation,
    remove_piece: Operation,
    newest: Operation,
    weigh: Operation,
    oldest_point: Operation,
}

impl ObservedRetention {
    pub fn new(inner: Arc<dyn RetentionStore>) -> Self {
        ObservedRetention {
            inner,
            lease: Operation::new("retention_lease"),
            by_age: Operation::new("by_age"),
            expire: Operation::new("expire"),
            remove_piece: Operation::new("remove_piece"),
            newest: Operation::new("newest"),
            weigh: Operation::new("weigh"),
            oldest_point: Operation::new("oldest_point"),
        }
    }
}

#[async_trait]
impl RetentionStore for ObservedRetention {
    async fn take_lease(
        &self,
        holder: &str,
        length: Duration,
        unless_ended_within: Option<Duration>,
    ) -> Result<bool> {
        self.lease.run(self.inner.take_lease(holder, length, unless_ended_within)).await
    }

    async fn keep_lease(&self, holder: &str, length: Duration) -> Result<bool> {
        self.lease.run(self.inner.keep_lease(holder, length)).await
    }

    async fn drop_lease(&self, holder: &str, ended: bool) -> Result<()> {
        self.lease.run(self.inner.drop_lease(holder, ended)).await
    }

    async fn by_age(
        &self,
        kind: Kind,
        after: Option<&AgeKey>,
        limit: usize,
    ) -> Result<Page<Aged, AgeKey>> {
        self.by_age.run(self.inner.by_age(kind, after, limit)).await
    }

    async fn expire_executions(
        &self,
        records: Vec<Aged>,
        policy: Arc<Policy>,
        now: Millis,
    ) -> Result<Vec<String>> {
        self.expire.run(self.inner.expire_executions(records, policy, now)).await
    }

    async fn expire_parts(
        &self,
        kind: Kind,
        records: Vec<Aged>,
        policy: Arc<Policy>,
        now: Millis,
    ) -> Result<Removed> {
        self.expire.run(self.inner.expire_parts(kind, records, policy, now)).await
    }

    async fn remove_piece(&self, execution_ids: Vec<String>) -> Result<Piece> {
        self.remove_piece.run(self.inner.remove_piece(execution_ids)).await
    }

    async fn newest(&self) -> Result<Vec<u8>> {
        self.newest.run(self.inner.newest()).await
    }

    async fn weigh(&self, execution_ids: &[String]) -> Result<Removed> {
        self.weigh.run(self.inner.weigh(execution_ids)).await
    }

    async fn oldest_point(&self) -> Result<Option<Millis>> {
        self.oldest_point.run(self.inner.oldest_point()).await
    }
}
