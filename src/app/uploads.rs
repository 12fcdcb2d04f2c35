//! The way of an artifact's bytes into a storage. An upload is written down before its first byte is stored, so
//! that whatever a crash leaves behind is found: either a client goes on with it, or the sweep removes it.
//!
//! Memory is flat: bytes go on in units of the storage, and the next part of the stream is asked for only when
//! the last one is under way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::artifacts::Artifacts;
use super::digest::Passing;
use super::{Error, Result, execution_not_found, ids};
use crate::blobs::unit::Unit;
use crate::blobs::{self, Storage, Writer};
use crate::domain::access::AppScope;
use crate::domain::{Artifact, Description, Origin, Refusal};
use crate::store;
use crate::store::artifacts::{Created, Upload};

/// After so many bytes, or so much time, an upload that can be gone on with is made safe as far as it has come.
const SAVED_BYTES: u64 = 8 * 1024 * 1024;
const SAVED_AFTER: Duration = Duration::from_secs(2);
/// How often one that cannot is marked as still going on; more often where uploads expire sooner.
const TOUCHED_AFTER: Duration = Duration::from_secs(60);
/// How often one looks whether it still may go on, also when nothing comes of it.
const LOOKED_AFTER: Duration = Duration::from_secs(2);

/// What an upload begins with.
enum Begun {
    /// It was stored before.
    Stored(Artifact),
    Going(Box<Run>),
}

/// One connection's part of an upload.
struct Run {
    upload: Upload,
    storage: Arc<dyn Storage>,
    writer: Box<dyn Writer>,
    digest: Passing,
    /// The unit that is being filled.
    unit: Unit,
    /// Bytes that the writer took.
    written: u64,
    saved: u64,
    saved_at: Instant,
    resumable: bool,
}

impl Artifacts {
    /// Stores an artifact out of a stream of its bytes, or finds it stored. An error in the stream, and the end
    /// of the server, keep what has come of an upload with an id; everything else leaves nothing behind.
    pub async fn upload(
        &self,
        description: Description,
        scope: &AppScope,
        chunks: BoxStream<'_, Result<Bytes>>,
    ) -> Result<Artifact> {
        let execution_id = &description.execution_id;
        self.app.execution(execution_id, scope).await?;
        let ended = self.upload_to(&description, chunks).await;
        if let Err(Error::Refused(
            Refusal::UploadTaken { .. }
            | Refusal::UploadNotFound { .. }
            | Refusal::UploadOffset { .. },
        )) = &ended
            && self.app.store().execution(execution_id).await?.is_none()
        {
            // The delete of the execution took it along.
            return Err(execution_not_found(execution_id));
        }
        ended
    }

    /// The same, when the execution was there a moment ago.
    async fn upload_to(
        &self,
        description: &Description,
        mut chunks: BoxStream<'_, Result<Bytes>>,
    ) -> Result<Artifact> {
        let execution_id = &description.execution_id;
        if let Some(sha256) = &description.sha256 {
            let digest = description.artifact_digest(sha256);
            if let Some(found) = self.store.artifact_by_digest(execution_id, &digest).await? {
                return Ok(found);
            }
            // It is a new one. Without a digest only the bytes tell, and whether there is room is said at the end.
            let usage = self.store.artifact_usage(execution_id).await?;
            usage.admits(description.size_bytes.unwrap_or(0), self.app.limits())?;
        }

        let place = match &description.upload_id {
            Some(upload_id) => {
                // Only another connection of the same upload takes over.
                let stored = self.store.upload(upload_id).await?;
                if stored.is_some_and(|stored| stored.digest != description.digest()) {
                    return Err(Refusal::UploadExists { upload_id: upload_id.clone() }.into());
                }
                Some(self.active.enter(upload_id).await)
            }
            None => None,
        };
        let taken_over = place.as_ref().map(|place| place.going.stop.clone()).unwrap_or_default();
        let mut run = match self.begin(description).await? {
            Begun::Stored(artifact) => return Ok(artifact),
            Begun::Going(run) => run,
        };
        // The delete of an execution marks it and looks for uploads then; this is one now, and looks for the mark.
        let lost = match self.has_lost_its_execution(&run.upload).await {
            Ok(false) => None,
            Ok(true) => Some(execution_not_found(execution_id)),
            Err(error) => Some(error),
        };
        if let Some(error) = lost {
            let may_go_on = may_go_on(&error);
            self.break_off(*run, &error, may_go_on).await;
            return Err(error);
        }
        let came = match self.receive(&mut run, description, &mut chunks, &taken_over).await {
            Ok(came) => came,
            Err(error) => {
                let error = run.told(error);
                self.break_off(*run, &error, may_go_on(&error)).await;
                return Err(error);
            }
        };
        if let Some(declared) = description.size_bytes
            && came != declared
        {
            let description = format!("is {declared}, but {came} bytes arrived");
            let error = Error::invalid("description.size_bytes", description);
            // The others may follow.
            self.break_off(*run, &error, true).await;
            return Err(error);
        }
        self.end(*run, description).await
    }

    /// Writes the upload down, or finds where to go on.
    async fn begin(&self, description: &Description) -> Result<Begun> {
        let storage = self.storages.default();
        let new = || Upload {
            upload_id: description.upload_id.clone().unwrap_or_else(ids::blob_id),
            execution_id: description.execution_id.clone(),
            digest: description.digest(),
            artifact_id: ids::artifact_id(),
            storage_type: storage.kind().to_owned(),
            storage_path: storage.path(&ids::blob_id()),
            // An id that is used again has turns that no connection of before can have.
            turn: self.now(),
            received_bytes: 0,
            hash_state: Vec::new(),
            storage_state: Vec::new(),
            finished: false,
            updated_at: self.now(),
        };
        let ours = new();
        let stored = self.store.begin_upload(&ours).await?;
        let upload_id = stored.upload_id.clone();
        let offset = description.offset;
        let cannot_go_on = |received| {
            let upload_id = upload_id.clone();
            Error::from(Refusal::UploadOffset { upload_id, offset, received })
        };
        let upload = if stored == ours {
            if offset != 0 {
                self.store.remove_upload(&ours.upload_id, ours.turn).await?;
                return Err(Refusal::UploadNotFound { upload_id }.into());
            }
            stored
        } else {
            if stored.digest != ours.digest {
                return Err(Refusal::UploadExists { upload_id }.into());
            }
            // Also when the server ended right after it had stored the record.
            if let Some(artifact) = self.record_of(&stored).await? {
                return Ok(Begun::Stored(artifact));
            }
            let received = match stored.finished || self.has_expired(&stored) {
                true => 0,
                false => stored.received_bytes,
            };
            if offset != 0 && offset != received {
                return Err(cannot_go_on(received));
            }
            let mut taken =
                Upload { turn: stored.turn + 1, updated_at: self.now(), ..stored.clone() };
            if offset == 0 {
                // Whatever is cut short from here on, nobody goes on with these bytes.
                taken.received_bytes = 0;
            }
            self.replace(stored.turn, &taken).await?;
            if offset == 0 {
                self.abandon(&taken).await?;
                let again = Upload { turn: taken.turn + 1, ..new() };
                self.replace(taken.turn, &again).await?;
                again
            } else {
                taken
            }
        };
        let (kind, path) = (&upload.storage_type, &upload.storage_path);
        let Some(storage) = self.storages.of(kind, path).map(Arc::clone) else {
            let why = "the storage of the upload is not configured";
            return Err(blobs::Error::Unavailable(why.into()).into());
        };
        let (writer, digest) = match upload.received_bytes {
            0 => (storage.create(path).await, Some(Passing::new())),
            received => (
                storage.resume(path, received, &upload.storage_state).await,
                Passing::from_state(&upload.hash_state),
            ),
        };
        let (writer, digest) = match (writer, digest) {
            (Ok(writer), Some(digest)) => (writer, digest),
            (Err(blobs::Error::Missing), _) | (Ok(_), None) => {
                let gone = Upload { received_bytes: 0, ..upload.clone() };
                self.replace(upload.turn, &gone).await?;
                return Err(cannot_go_on(0));
            }
            (Err(error), _) => return Err(error.into()),
        };
        let mut run = Box::new(Run {
            written: upload.received_bytes,
            saved: upload.received_bytes,
            saved_at: self.clock.instant(),
            resumable: description.upload_id.is_some(),
            unit: Unit::new(Arc::clone(self.storages.room()), storage.unit_bytes()),
            upload,
            storage,
            writer,
            digest,
        });
        if run.written == 0 {
            // A storage may have made something already that only its own words lead to.
            let storage_state = run.writer.checkpoint().await?;
            if !storage_state.is_empty() {
                run.upload.storage_state = storage_state;
                self.replace(run.upload.turn, &run.upload).await?;
            }
        }
        Ok(Begun::Going(run))
    }

    /// Leaves the bytes of an upload whose client begins anew. The connection before may be at them yet, through
    /// another server: what it still writes, and what it has finished but never gets to name in a record, is
    /// the sweep's.
    async fn abandon(&self, taken: &Upload) -> Result<()> {
        let upload_id = abandoned(&taken.artifact_id);
        self.store.begin_upload(&Upload { upload_id, ..taken.clone() }).await?;
        // Once these are finished they may be those of a record at any moment; before that, with the turn taken,
        // they never will.
        if !taken.finished
            && let Err(error) = self.drop_bytes(taken).await
        {
            tracing::debug!(error = &error as &dyn std::error::Error, "the sweep will try again");
        }
        Ok(())
    }

    async fn replace(&self, turn: i64, upload: &Upload) -> Result<()> {
        match self.store.replace_upload(turn, upload).await? {
            true => Ok(()),
            false => Err(Refusal::UploadTaken { upload_id: upload.upload_id.clone() }.into()),
        }
    }

    async fn receive(
        &self,
        run: &mut Run,
        description: &Description,
        chunks: &mut BoxStream<'_, Result<Bytes>>,
        taken_over: &CancellationToken,
    ) -> Result<u64> {
        let limit = self.app.limits().artifact_bytes as u64;
        let mut came = run.written;
        let mut look =
            tokio::time::interval_at(tokio::time::Instant::now() + LOOKED_AFTER, LOOKED_AFTER);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let chunk = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Error::ShuttingDown),
                () = taken_over.cancelled() => {
                    let upload_id = run.upload.upload_id.clone();
                    return Err(Refusal::UploadTaken { upload_id }.into());
                }
                // Another server, or the delete of the execution, may have taken it away.
                _ = look.tick() => {
                    self.check_turn(&run.upload).await?;
                    continue;
                }
                chunk = chunks.next() => chunk,
            };
            let Some(chunk) = chunk else { return Ok(came) };
            let chunk = chunk?;
            came += chunk.len() as u64;
            if let Some(declared) = description.size_bytes
                && came > declared
            {
                return Err(Error::invalid(
                    "description.size_bytes",
                    format!("is {declared}, but {came} bytes have arrived and more may follow"),
                ));
            }
            if came > limit {
                return Err(Error::invalid(
                    "chunk",
                    format!("brings the artifact to {came} bytes, more than the limit of {limit}"),
                ));
            }
            self.take(run, chunk).await?;
        }
    }

    async fn take(&self, run: &mut Run, mut chunk: Bytes) -> Result<()> {
        let unit_bytes = run.storage.unit_bytes();
        while !chunk.is_empty() {
            let unit = if run.unit.is_empty() && chunk.len() >= unit_bytes {
                chunk.split_to(unit_bytes)
            } else {
                run.unit.take(&mut chunk).await?;
                if !run.unit.is_full() {
                    return Ok(());
                }
                run.unit.end().await?
            };
            run.write(unit).await?;
            let since = self.clock.elapsed(run.saved_at);
            let due = match run.resumable {
                true => run.written - run.saved >= SAVED_BYTES || since >= SAVED_AFTER,
                false => since >= TOUCHED_AFTER.min(self.upload_expiry / 4),
            };
            if due {
                self.save(run).await?;
            }
        }
        Ok(())
    }

    /// Makes safe what the writer took.
    async fn save(&self, run: &mut Run) -> Result<()> {
        let storage_state = run.writer.checkpoint().await?;
        let saved = Upload {
            received_bytes: run.written,
            hash_state: run.digest.state().await?,
            storage_state,
            updated_at: self.now(),
            ..run.upload.clone()
        };
        self.replace(saved.turn, &saved).await?;
        run.upload = saved;
        run.saved = run.written;
        run.saved_at = self.clock.instant();
        Ok(())
    }

    /// All bytes have come: makes them readable, and stores the record.
    async fn end(&self, mut run: Run, description: &Description) -> Result<Artifact> {
        match self.complete(&mut run, description).await {
            Ok(sha256) => self.record(run, description, sha256).await,
            Err(error) => {
                let error = run.told(error);
                self.break_off(run, &error, may_go_on(&error)).await;
                Err(error)
            }
        }
    }

    async fn complete(&self, run: &mut Run, description: &Description) -> Result<String> {
        // Whatever is safe so far can be gone on with should the rest fail; and whose turn has passed ends here.
        if run.resumable {
            self.save(run).await?;
        }
        if !run.unit.is_empty() {
            let last = run.unit.end().await?;
            run.write(last).await?;
        }
        let sha256 = run.digest.hex().await?;
        if let Some(declared) = &description.sha256
            && *declared != sha256
        {
            return Err(Error::invalid(
                "description.sha256",
                format!("is {declared}, but the digest of the bytes is {sha256}"),
            ));
        }
        Ok(sha256)
    }

    async fn record(
        &self,
        run: Run,
        description: &Description,
        sha256: String,
    ) -> Result<Artifact> {
        let Run { mut upload, writer, written, resumable, .. } = run;
        // From here on an error that leaves the outcome open leaves everything as it is: the client finds the
        // record, goes on, or the sweep decides.
        match writer.finish().await {
            Ok(()) => {}
            Err(blobs::Error::Missing) => {
                self.let_go(&upload, true).await?;
                return Err(Refusal::UploadNotFound { upload_id: upload.upload_id }.into());
            }
            Err(error) => return Err(error.into()),
        }
        // The turn is looked at once more, and taken from everyone else: nobody goes on with these bytes, or
        // removes them, while the record that names them is being stored.
        let turn = upload.turn;
        upload = Upload {
            turn: turn + 1,
            received_bytes: written,
            hash_state: Vec::new(),
            storage_state: Vec::new(),
            finished: true,
            updated_at: self.now(),
            ..upload
        };
        if !self.store.replace_upload(turn, &upload).await? {
            self.drop_if_nameless(&upload).await?;
            return Err(Refusal::UploadTaken { upload_id: upload.upload_id }.into());
        }
        let digest = description.artifact_digest(&sha256);
        let record = Artifact {
            artifact_id: upload.artifact_id.clone(),
            execution_id: description.execution_id.clone(),
            step_id: description.step_id,
            step_key: description.step_key.clone(),
            artifact_type: description.artifact_type.clone(),
            artifact_name: description.artifact_name.clone(),
            mime_type: description.mime_type.clone(),
            size_bytes: i64::try_from(written).ok(),
            storage_type: Some(upload.storage_type.clone()),
            storage_path: Some(upload.storage_path.clone()),
            metadata: description.metadata.clone(),
            created_at: Some(self.now()),
            sha256: Some(sha256),
            origin: Origin::Uploaded,
        };
        let stored = match self.store.create_artifact(&record, &digest).await {
            Ok(Created::New(stored) | Created::Found(stored)) => stored,
            Err(store::Error::Refused(refusal)) => {
                if !self.has_record(&upload).await? {
                    self.drop_bytes(&upload).await?;
                }
                self.store.remove_upload(&upload.upload_id, upload.turn).await?;
                self.app.sweeps().ask();
                return Err(refusal.into());
            }
            Err(error) => return Err(error.into()),
        };
        let forgotten = self.forget(upload, &stored, resumable).await;
        if let Err(error) = forgotten {
            // The record is stored; what is left of the upload is the sweep's.
            tracing::debug!(error = &error as &dyn std::error::Error, "cannot end an upload yet");
        }
        Ok(stored)
    }

    async fn forget(&self, upload: Upload, stored: &Artifact, resumable: bool) -> Result<()> {
        if stored.storage_path.as_deref() != Some(&upload.storage_path) {
            // The same bytes were stored before.
            self.drop_bytes(&upload).await?;
        }
        if !resumable {
            self.store.remove_upload(&upload.upload_id, upload.turn).await?;
            return Ok(());
        }
        if stored.artifact_id == upload.artifact_id {
            return Ok(());
        }
        let found = Upload { artifact_id: stored.artifact_id.clone(), ..upload };
        self.replace(found.turn, &found).await
    }

    /// Removes the bytes of an upload, unless another connection has gone on with them; `for_good`: what is written
    /// down of it too.
    async fn let_go(&self, upload: &Upload, for_good: bool) -> Result<()> {
        let (id, turn) = (upload.upload_id.as_str(), upload.turn);
        let claimed =
            Upload { turn: turn + 1, received_bytes: 0, updated_at: self.now(), ..upload.clone() };
        if self.store.replace_upload(turn, &claimed).await? {
            self.drop_bytes(&claimed).await?;
            if for_good {
                self.store.remove_upload(id, claimed.turn).await?;
            }
            return Ok(());
        }
        self.drop_if_nameless(upload).await
    }

    /// Removes bytes that neither an upload nor a record names any more.
    async fn drop_if_nameless(&self, upload: &Upload) -> Result<()> {
        let now = self.store.upload(&upload.upload_id).await?;
        // Where none of them is safe any more, nobody goes on with them.
        let is_named = now.is_some_and(|now| {
            now.storage_path == upload.storage_path && (now.received_bytes > 0 || now.finished)
        }) || self.store.upload(&abandoned(&upload.artifact_id)).await?.is_some();
        if !is_named && !self.has_record(upload).await? {
            self.drop_bytes(upload).await?;
        }
        Ok(())
    }

    /// Keeps what can be gone on with, and removes everything else.
    async fn break_off(&self, mut run: Run, error: &Error, may_go_on: bool) {
        let is_taken = |error: &Error| matches!(error, Error::Refused(Refusal::UploadTaken { .. }));
        let mut taken = is_taken(error);
        let done = if run.resumable && may_go_on && run.saved < run.written && !run.is_ending() {
            self.save(&mut run).await
        } else {
            // Nothing of ours may arrive after the removal, or in the bytes of whoever took over.
            run.writer.checkpoint().await.map(drop).map_err(Error::from)
        };
        if let Err(error) = done {
            tracing::debug!(error = &error as &dyn std::error::Error, "an upload was cut off");
            taken |= is_taken(&error);
        }
        if run.resumable && may_go_on && !taken {
            return;
        }
        let Run { upload, writer, .. } = run;
        drop(writer);
        // Where the storage failed, some of the bytes may arrive yet: the sweep removes them once more.
        let for_good = !matches!(error, Error::Bytes(_));
        let removed = match taken {
            // The turn may be ours yet: who takes over in this server waits until we are done.
            true => self.drop_if_nameless(&upload).await,
            false => self.let_go(&upload, for_good).await,
        };
        if let Err(error) = removed {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot remove the remains of an upload yet"
            );
        }
    }
}

/// Under which id the bytes of an upload are kept that its client has begun anew.
fn abandoned(artifact_id: &str) -> String {
    format!("abandoned:{artifact_id}")
}

/// Whether an upload may succeed after this. Too many bytes, and other ones than declared, are not what was meant.
fn may_go_on(error: &Error) -> bool {
    matches!(error, Error::BrokenOff | Error::ShuttingDown | Error::Bytes(_) | Error::Store(_))
}

impl Run {
    /// Stores and hashes a unit, side by side, and beside the coming of the next one. What the writer does not
    /// take has no part in the digest.
    async fn write(&mut self, unit: Bytes) -> Result<()> {
        let bytes = unit.len() as u64;
        self.writer.write(unit.clone()).await?;
        self.digest.add(unit).await?;
        self.written += bytes;
        Ok(())
    }

    /// An error as its client sees it: where the storage has lost what came before, there is no upload any more.
    fn told(&self, error: Error) -> Error {
        match error {
            Error::Bytes(blobs::Error::Missing) => {
                Refusal::UploadNotFound { upload_id: self.upload.upload_id.clone() }.into()
            }
            other => other,
        }
    }

    /// Whether the last unit was written, which is no place to go on from.
    fn is_ending(&self) -> bool {
        !self.written.is_multiple_of(self.storage.unit_bytes() as u64)
    }
}
