//! Artifacts: their records, reading their bytes, and what becomes of both in the end. `uploads` is the way in.
//!
//! A record is there only while its bytes are: they come first and go last. Deleting marks the record, which
//! makes it invisible at once; then the bytes go, and then the record. Whatever is cut short in between is ended
//! by the sweep.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::digest::Passing;
use super::turns::Active;
use super::{App, Error, PageAnswer, PageRequest, Result, ids, token};
use crate::blobs::{self, PIECE_BYTES, Storage, Storages, pieces};
use crate::clock::Clock;
use crate::detached::detached;
use crate::domain::access::AppScope;
use crate::domain::{Artifact, ArtifactQuery, Millis, Origin, Refusal, StepRef};
use crate::store::artifacts::{ArtifactStore, Created, Upload};

/// What is complete may get its record as long as this, however soon uploads expire.
const FINISHED_MS: i64 = 15_000;
/// Marked records and idle uploads looked at in one question of the sweep.
const SWEPT_AT_ONCE: usize = 100;
/// What a download has in memory where there is room to read ahead, and how much of it is read at once.
const AHEAD_BYTES: usize = 8 * PIECE_BYTES;
const AHEAD_AT_ONCE_BYTES: usize = 4 * PIECE_BYTES;

/// The part of an artifact's bytes that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    From {
        offset: u64,
        /// `None`: all.
        limit: Option<u64>,
    },
    /// The last so many.
    Tail(u64),
}

/// The operations on artifacts.
pub struct Artifacts {
    pub(super) app: Arc<App>,
    pub(super) store: Arc<dyn ArtifactStore>,
    pub(super) storages: Storages,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) upload_expiry: Duration,
    /// The server is going down: transfers end, what uploads have is kept.
    pub(super) stop: CancellationToken,
    tasks: TaskTracker,
    pub(super) active: Active,
}

/// A download that has begun: the record, and its bytes, which end with an error if they are not those that
/// were stored.
pub struct Download {
    pub artifact: Artifact,
    pub bytes: BoxStream<'static, Result<Bytes>>,
}

impl Artifacts {
    pub fn new(
        app: Arc<App>,
        store: Arc<dyn ArtifactStore>,
        storages: Storages,
        clock: Arc<dyn Clock>,
        upload_expiry: Duration,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Self {
        let active = Active::default();
        Artifacts { app, store, storages, clock, upload_expiry, stop, tasks, active }
    }

    pub fn app(&self) -> &App {
        &self.app
    }

    pub(super) fn now(&self) -> Millis {
        self.clock.now().millis()
    }

    pub async fn artifact(&self, artifact_id: &str, scope: &AppScope) -> Result<Artifact> {
        let found = self.store.artifact(&artifact_id.to_ascii_lowercase()).await?;
        let found = found.ok_or_else(|| not_found(artifact_id))?;
        if !scope.is_all() {
            // One of no execution is of no app.
            let execution = self.app.store().execution(&found.execution_id).await?;
            return match execution.is_some_and(|execution| scope.holds_execution(&execution)) {
                true => Ok(found),
                false => Err(not_found(artifact_id)),
            };
        }
        // It goes with its execution: the record and the bytes a moment later.
        match self.app.store().is_being_deleted(&found.execution_id).await? {
            true => Err(not_found(artifact_id)),
            false => Ok(found),
        }
    }

    /// One page of the artifacts of an execution, newest first; `size_of` is what a record takes in a reply.
    pub async fn list(
        &self,
        execution_id: &str,
        scope: &AppScope,
        step: Option<StepRef>,
        artifact_type: Option<String>,
        page: PageRequest,
        size_of: impl Fn(&Artifact) -> usize,
    ) -> Result<PageAnswer<Artifact>> {
        let tokens = self.app.tokens().await?;
        let whose = scope.identity();
        let identity = match &step {
            Some(StepRef { step_id: None, step_key }) => {
                format!("{whose}{execution_id}/{step_key:?}/{artifact_type:?}")
            }
            step => {
                let step_id = step.as_ref().and_then(|step| step.step_id);
                format!("{whose}{execution_id}/{step_id:?}/{artifact_type:?}")
            }
        };
        let kind = token::Kind::ArtifactPage;
        let after = match page.token.as_str() {
            "" => None,
            text => Some(
                tokens
                    .open(kind, identity.as_bytes(), text)
                    .and_then(|bytes| String::from_utf8(bytes).ok())
                    .ok_or(Error::BadToken("page_token"))?,
            ),
        };
        self.app.execution(execution_id, scope).await?;
        let step = match &step {
            None => None,
            Some(named) => Some(self.app.names_of(execution_id, named).await?),
        };
        let query = |after, limit, examine| ArtifactQuery {
            execution_id: execution_id.to_owned(),
            step: step.clone(),
            artifact_type: artifact_type.clone(),
            after,
            limit,
            examine,
        };
        let key_of = |artifact: &Artifact| artifact.artifact_id.clone();
        let found = self
            .app
            .fill(page.size, after, size_of, key_of, |after, limit, examine| {
                let query = query(after, limit, examine);
                async move { self.store.artifacts(&query).await.map_err(Error::from) }
            })
            .await?;
        // One that was deleted meanwhile has none any more, and no half of them is told.
        self.app.still_there(execution_id, scope).await?;
        let next_page_token = found
            .next
            .map(|key| tokens.seal(kind, identity.as_bytes(), key.as_bytes()))
            .unwrap_or_default();
        Ok(PageAnswer { records: found.records, next_page_token })
    }

    /// Stores a record as it is, without bytes, or finds it stored.
    pub async fn put(
        &self,
        mut record: Artifact,
        mirrored: Option<i64>,
        scope: &AppScope,
    ) -> Result<Created> {
        self.app.check_within(&record.execution_id, scope).await?;
        let digest = record.put_digest();
        if record.artifact_id.is_empty() {
            record.artifact_id = ids::artifact_id();
        }
        Ok(match mirrored {
            None => self.store.create_artifact(&record, &digest).await?,
            Some(position) => {
                let there = self.store.artifact(&record.artifact_id).await?;
                if let Some(there) = there.filter(|there| there.execution_id != record.execution_id)
                {
                    self.app.check_within(&there.execution_id, scope).await?;
                }
                self.store.mirror_artifact(&record, &digest, position).await?
            }
        })
    }

    /// Begins to read the bytes. The digest is checked where all of them are read.
    pub async fn download(
        &self,
        artifact_id: &str,
        part: Part,
        scope: &AppScope,
    ) -> Result<Download> {
        let artifact = self.artifact(artifact_id, scope).await?;
        let artifact_id = artifact.artifact_id.clone();
        let lost =
            || Error::Refused(Refusal::ArtifactBytesLost { artifact_id: artifact_id.clone() });
        let without =
            || Error::Refused(Refusal::ArtifactWithoutBytes { artifact_id: artifact_id.clone() });
        let Some((storage, path)) = self.bytes_of(&artifact) else { return Err(without()) };
        // What we never stored cannot be lost: another program's record may name bytes that were never here.
        let absent = || match artifact.origin {
            Origin::Uploaded => lost(),
            Origin::Imported | Origin::Foreign => without(),
        };
        let size = match storage.size(path).await {
            Ok(size) => Some(size),
            Err(blobs::Error::Missing) => None,
            Err(error) => return Err(error.into()),
        };
        let stored = artifact.size_bytes;
        let as_stored = |size: &u64| stored.is_none_or(|stored| u64::try_from(stored) == Ok(*size));
        let Some(size) = size.filter(as_stored) else {
            // They may be gone with their record by now.
            return Err(match is_gone(&self.store, &artifact_id).await? {
                true => not_found(&artifact_id),
                false => absent(),
            });
        };
        let range = range_of(part, size);
        let whole = range == (0..size);
        let digest = artifact.sha256.clone().filter(|_| whole);
        // One piece at a time is what each download has. Whoever comes while there is room has the next ones ready.
        let held = match range.end - range.start > PIECE_BYTES as u64 {
            true => self.storages.room().spare(AHEAD_BYTES),
            false => None,
        };
        let pieces = match &held {
            Some(_) => pieces::ahead(storage.read(path, range, AHEAD_AT_ONCE_BYTES), &self.tasks),
            None => pieces::one_by_one(storage.read(path, range, PIECE_BYTES), &self.tasks),
        };
        let pieces = pieces.then({
            let (store, tasks) = (Arc::clone(&self.store), self.tasks.clone());
            let artifact_id = artifact_id.clone();
            move |piece| {
                let _until_the_end = &held;
                // They may have gone with their record, since the download began.
                let gone = matches!(piece, Err(blobs::Error::Missing)).then(|| {
                    let (store, artifact_id) = (Arc::clone(&store), artifact_id.clone());
                    detached(&tasks, async move { is_gone(&store, &artifact_id).await })
                });
                let artifact_id = artifact_id.clone();
                async move {
                    let gone = match gone {
                        Some(gone) => gone.await?,
                        None => false,
                    };
                    piece.map_err(|error| match error {
                        blobs::Error::Missing if gone => not_found(&artifact_id),
                        blobs::Error::Missing => Refusal::ArtifactBytesLost { artifact_id }.into(),
                        other => Error::Bytes(other),
                    })
                }
            }
        });
        let bytes = match digest {
            None => pieces.boxed(),
            Some(digest) => checked(pieces.boxed(), digest, artifact_id),
        };
        Ok(Download { artifact, bytes: until_stopped(bytes, self.stop.clone()) })
    }

    /// Where the bytes of a record are, if they are where this server keeps such. An imported one has none: its client
    /// could have named those of anybody.
    fn bytes_of<'a>(&self, artifact: &'a Artifact) -> Option<(&Arc<dyn Storage>, &'a str)> {
        if artifact.origin == Origin::Imported {
            return None;
        }
        let path = artifact.storage_path.as_deref()?;
        let storage = self.storages.of(artifact.storage_type.as_deref()?, path)?;
        Some((storage, path))
    }

    /// Deletes an artifact: it is invisible when this returns, and normally gone.
    pub async fn delete(&self, artifact_id: &str, scope: &AppScope) -> Result<()> {
        let artifact = self.artifact(artifact_id, scope).await?;
        if !self.store.mark_artifact(&artifact.artifact_id, self.now()).await? {
            return Err(not_found(artifact_id));
        }
        self.try_remove(&artifact).await;
        Ok(())
    }

    /// Removes bytes and record of a marked artifact. What fails is left to the next sweep.
    pub(super) async fn try_remove(&self, artifact: &Artifact) {
        if let Err(error) = self.remove(artifact).await {
            tracing::warn!(
                artifact.id = artifact.artifact_id,
                error = &error as &dyn std::error::Error,
                "cannot remove the bytes of a deleted artifact yet"
            );
        }
    }

    async fn remove(&self, artifact: &Artifact) -> Result<()> {
        let id = &artifact.artifact_id;
        match self.bytes_of(artifact) {
            Some((storage, path)) => {
                // Records of other programs may share them, by this name or another.
                let names = storage.names(path).await?;
                if !self.store.record_has_bytes(&names, Some(id)).await?
                    && !self.store.upload_has_bytes(&names, id).await?
                {
                    storage.remove(path, &[]).await?;
                }
            }
            None => {
                let kept = artifact.storage_type.as_deref().zip(artifact.storage_path.as_deref());
                if let Some(("s3", path)) = kept
                    && path.starts_with("s3://")
                    && artifact.sha256.is_some()
                    && artifact.origin != Origin::Imported
                {
                    return Err(Error::Bytes(blobs::Error::Unavailable(
                        "the bucket of the artifact is not configured".into(),
                    )));
                }
            }
        }
        self.store.remove_artifact(id).await?;
        Ok(())
    }

    /// Ends what was cut short: deletes of artifacts and of whole executions, and uploads that do not go on.
    pub async fn sweep(&self) -> Result<()> {
        let mut after: Option<String> = None;
        loop {
            let marked = self.store.marked_artifacts(after.as_deref(), SWEPT_AT_ONCE).await?;
            for artifact in &marked {
                self.try_remove(artifact).await;
            }
            match marked.last() {
                Some(last) => after = Some(last.artifact_id.clone()),
                None => break,
            }
        }
        let expiry = i64::try_from(self.upload_expiry.as_millis()).unwrap_or(i64::MAX);
        let before = self.now().saturating_sub(expiry);
        // Each of them once: what cannot be removed yet is no reason to leave those behind it.
        let mut after: Option<(Millis, String)> = None;
        loop {
            let place = after.as_ref().map(|(at, id)| (*at, id.as_str()));
            let idle = self.store.idle_uploads(before, place, SWEPT_AT_ONCE).await?;
            for upload in &idle {
                if let Err(error) = self.expire(upload).await {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot remove an abandoned upload yet"
                    );
                }
            }
            match idle.last() {
                Some(last) => after = Some((last.updated_at, last.upload_id.clone())),
                None => return Ok(()),
            }
        }
    }

    /// Removes an upload with its bytes, unless they became those of a record.
    async fn expire(&self, upload: &Upload) -> Result<()> {
        // The record may still be on its way.
        if upload.finished && self.now() - upload.updated_at < FINISHED_MS {
            return Ok(());
        }
        // From now on no connection can go on with it. It stays idle: whatever is cut short here is done again.
        let claimed = Upload { turn: upload.turn + 1, received_bytes: 0, ..upload.clone() };
        if !self.store.replace_upload(upload.turn, &claimed).await? {
            return Ok(());
        }
        if !self.has_record(upload).await? {
            self.drop_bytes(&claimed).await?;
        }
        self.store.remove_upload(&claimed.upload_id, claimed.turn).await?;
        Ok(())
    }

    /// Whether the bytes of an upload are those of a record.
    pub(super) async fn has_record(&self, upload: &Upload) -> Result<bool> {
        let path = std::slice::from_ref(&upload.storage_path);
        Ok(self.store.record_has_bytes(path, None).await?)
    }

    /// The record that an upload made or found. A client may have given the same id to one of its own.
    pub(super) async fn record_of(&self, upload: &Upload) -> Result<Option<Artifact>> {
        let found = self.store.artifact(&upload.artifact_id).await?;
        Ok(found.filter(|found| found.origin != Origin::Imported))
    }

    pub(super) async fn drop_bytes(&self, upload: &Upload) -> Result<()> {
        match self.storages.of(&upload.storage_type, &upload.storage_path) {
            Some(storage) => {
                storage.remove(&upload.storage_path, &upload.storage_state).await?;
                Ok(())
            }
            None => Err(Error::Bytes(blobs::Error::Unavailable(
                "the storage of the upload is not configured".into(),
            ))),
        }
    }
}

pub(super) fn not_found(artifact_id: &str) -> Error {
    Refusal::ArtifactNotFound { artifact_id: artifact_id.to_owned() }.into()
}

/// Whether an artifact is deleted. Bytes go only once their record is marked, which hides it.
async fn is_gone(store: &Arc<dyn ArtifactStore>, artifact_id: &str) -> Result<bool> {
    Ok(store.artifact(artifact_id).await?.is_none())
}

/// The bytes that a part means. What lies beyond the end is nothing.
fn range_of(part: Part, size: u64) -> Range<u64> {
    match part {
        Part::From { offset, limit } => {
            let begin = offset.min(size);
            let end = limit.map_or(size, |limit| begin.saturating_add(limit).min(size));
            begin..end
        }
        Part::Tail(bytes) => size.saturating_sub(bytes)..size,
    }
}

/// The same pieces, and an error at their end if they do not have this digest.
fn checked(
    pieces: BoxStream<'static, Result<Bytes>>,
    expected: String,
    artifact_id: String,
) -> BoxStream<'static, Result<Bytes>> {
    let begun = Some((pieces, Passing::new(), expected, artifact_id));
    stream::unfold(begun, |going| async move {
        let (mut pieces, mut digest, expected, artifact_id) = going?;
        let (piece, more) = match pieces.next().await {
            Some(Ok(piece)) => (digest.add(piece.clone()).await.map(|()| piece), true),
            Some(Err(error)) => (Err(error), false),
            None => match digest.hex().await {
                Ok(found) if found == expected.to_ascii_lowercase() => return None,
                Ok(_) => (
                    Err(Refusal::ArtifactBytesLost { artifact_id: artifact_id.clone() }.into()),
                    false,
                ),
                Err(error) => (Err(error), false),
            },
        };
        let going = (more && piece.is_ok()).then_some((pieces, digest, expected, artifact_id));
        Some((piece, going))
    })
    .boxed()
}

/// The same pieces, until the server goes down.
fn until_stopped(
    pieces: BoxStream<'static, Result<Bytes>>,
    stop: CancellationToken,
) -> BoxStream<'static, Result<Bytes>> {
    stream::unfold(Some((pieces, stop)), |going| async move {
        let (mut pieces, stop) = going?;
        match stop.run_until_cancelled(pieces.next()).await {
            Some(piece) => piece.map(|piece| (piece, Some((pieces, stop)))),
            None => Some((Err(Error::ShuttingDown), None)),
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_never_reaches_beyond_the_end() {
        let from = |offset, limit| Part::From { offset, limit };
        for (part, expected) in [
            (from(0, None), 0..10),
            (from(3, None), 3..10),
            (from(3, Some(2)), 3..5),
            (from(3, Some(0)), 3..3),
            (from(3, Some(u64::MAX)), 3..10),
            (from(10, None), 10..10),
            (from(u64::MAX, Some(u64::MAX)), 10..10),
            (Part::Tail(4), 6..10),
            (Part::Tail(0), 10..10),
            (Part::Tail(u64::MAX), 0..10),
        ] {
            assert_eq!(range_of(part, 10), expected, "{part:?}");
        }
    }
}
