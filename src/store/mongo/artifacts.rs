//! Artifacts as documents that other programs share, and uploads as documents of our own.
//!
//! There is no transaction here, so a record that is stored while its execution is deleted is seen by one of the
//! two: the delete marks the execution first and the artifacts then; this stores the artifact first and looks at
//! the execution then.

use async_trait::async_trait;
use bson::oid::ObjectId;
use bson::raw::{RawBsonRef, RawDocument, RawDocumentBuf};
use bson::spec::BinarySubtype;
use bson::{Binary, Document, doc};

use super::artifact_documents::{last_change, read_stored};
use super::command::Fate;
use super::documents::{corrupt, date, integer, millis, raw, text};
use super::{Inner, MongoStore, Ready, artifact_documents, failure, schema};
use crate::domain::query::Page;
use crate::domain::{Artifact, ArtifactQuery, Millis, Origin, Refusal};
use crate::store::artifacts::{ArtifactStore, Created, Upload, Usage};
use crate::store::{Error, Result};

/// How often a lost race is decided again.
const ROUNDS: usize = 8;
/// Documents fetched at a time.
const FETCHED_AT_ONCE: u32 = 500;

fn id_of(artifact_id: &str) -> Option<ObjectId> {
    ObjectId::parse_str(artifact_id).ok()
}

fn upload_document(upload: &Upload) -> Result<RawDocumentBuf> {
    let bytes = |bytes: &[u8]| Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() };
    raw(&doc! {
        "_id": &upload.upload_id,
        "execution_id": &upload.execution_id,
        "digest": &upload.digest,
        "artifact_id": &upload.artifact_id,
        "storage_type": &upload.storage_type,
        "storage_path": &upload.storage_path,
        "turn": upload.turn,
        "received_bytes": i64::try_from(upload.received_bytes).unwrap_or(i64::MAX),
        "hash_state": bytes(&upload.hash_state),
        "storage_state": bytes(&upload.storage_state),
        "finished": upload.finished,
        "updated_at": date(upload.updated_at),
    })
}

fn read_upload(raw: &RawDocument) -> Result<Upload> {
    let field = |key: &'static str| {
        raw.get(key).ok().flatten().ok_or_else(|| corrupt(schema::UPLOADS, raw, key))
    };
    let words = |key| field(key).map(|value| text(value).unwrap_or_default());
    let number = |key| field(key).map(|value| integer(value).unwrap_or(0));
    let bytes = |key| {
        field(key).map(|value| match value {
            RawBsonRef::Binary(binary) => binary.bytes.to_vec(),
            _ => Vec::new(),
        })
    };
    Ok(Upload {
        upload_id: words("_id")?,
        // One from before has none.
        execution_id: words("execution_id").unwrap_or_default(),
        digest: words("digest")?,
        artifact_id: words("artifact_id")?,
        storage_type: words("storage_type")?,
        storage_path: words("storage_path")?,
        turn: number("turn")?,
        received_bytes: u64::try_from(number("received_bytes")?).unwrap_or(0),
        hash_state: bytes("hash_state")?,
        storage_state: bytes("storage_state")?,
        finished: field("finished")?.as_bool().unwrap_or(false),
        updated_at: millis(field("updated_at")?).unwrap_or(0),
    })
}

/// Whether an execution is there, as the primary has it.
async fn is_there(inner: &Inner, ready: &Ready, execution_id: &str) -> Result<bool> {
    let find = ready
        .executions
        .find_one(doc! { "execution_id": execution_id })
        .projection(doc! { "_id": 1, "deleted_at": 1 });
    let found = inner.call(find).await?;
    Ok(found.is_some_and(|found| found.get_datetime("deleted_at").is_err()))
}

async fn usage(inner: &Inner, ready: &Ready, execution_id: &str) -> Result<Usage> {
    let group = doc! { "$group": {
        "_id": null,
        "artifacts": { "$sum": 1 },
        "bytes": { "$sum": { "$cond": [{ "$gt": ["$sha256", null] }, "$size_bytes", 0] } },
    } };
    let only = doc! { "$match": { "execution_id": execution_id, "deleted_at": null } };
    let found = inner.aggregate(&ready.artifacts, [only, group]).await?;
    let Some(found) = found.first() else { return Ok(Usage::default()) };
    let field = |key: &str| {
        let value = found.get(key).ok().flatten().and_then(integer).unwrap_or(0);
        u64::try_from(value).unwrap_or(0)
    };
    Ok(Usage { artifacts: field("artifacts"), bytes: field("bytes") })
}

/// The update that frees the digest of a record, and writes down what only the digest told.
fn free_digest(record: &Artifact, mut set: Document) -> Document {
    match record.origin {
        Origin::Foreign => {}
        origin => drop(set.insert("record_only", origin == Origin::Imported)),
    }
    let mut change = doc! { "$unset": { "digests": "" } };
    if !set.is_empty() {
        change.insert("$set", set);
    }
    change
}

/// What holds a digest or an id already.
enum Holder {
    Nobody,
    Same(Artifact),
    Other,
    /// A record that is about to go held the digest; it has let go of it.
    Freed,
}

async fn holder(inner: &Inner, ready: &Ready, id: ObjectId, digest: &str) -> Result<Holder> {
    let same = ready.artifacts.find_one(doc! { "digests.create": digest });
    if let Some(raw) = inner.call(same).await? {
        let stored = read_stored(&raw)?;
        if !stored.deleted {
            return Ok(Holder::Same(stored.record));
        }
        let gone = doc! { "_id": id_of(&stored.record.artifact_id) };
        let free = ready.artifacts.update_one(gone, free_digest(&stored.record, Document::new()));
        inner.call(free).await?;
        return Ok(Holder::Freed);
    }
    let taken = inner.call(ready.artifacts.find_one(doc! { "_id": id })).await?;
    match taken.map(|raw| read_stored(&raw)).transpose()? {
        None => Ok(Holder::Nobody),
        Some(stored) if stored.digest.as_deref() == Some(digest) && !stored.deleted => {
            Ok(Holder::Same(stored.record))
        }
        Some(_) => Ok(Holder::Other),
    }
}

async fn create(inner: &Inner, record: &Artifact, digest: &str) -> Result<Created> {
    let ready = inner.ready().await?;
    let id = id_of(&record.artifact_id)
        .ok_or_else(|| Error::failed("an artifact id that is no ObjectId"))?;
    let unknown = || {
        let execution_id = record.execution_id.clone();
        Error::Refused(Refusal::ExecutionNotFound { execution_id })
    };
    let document = artifact_documents::insert(id, record, digest)?;
    for _ in 0..ROUNDS {
        match holder(inner, &ready, id, digest).await? {
            Holder::Nobody => {}
            Holder::Freed => continue,
            Holder::Same(record) => return Ok(Created::Found(record)),
            Holder::Other => {
                let artifact_id = record.artifact_id.clone();
                return Err(Refusal::ArtifactExists { artifact_id }.into());
            }
        }
        if !record.execution_id.is_empty() {
            if !is_there(inner, &ready, &record.execution_id).await? {
                return Err(unknown());
            }
            let usage = usage(inner, &ready, &record.execution_id).await?;
            usage.admits(record.uploaded_bytes(), &inner.limits)?;
        }
        let fates =
            ready.commander.insert(schema::ARTIFACTS, std::slice::from_ref(&document)).await;
        match fates.first() {
            Some(Fate::Done) => {}
            Some(Fate::Duplicate | Fate::Unmatched | Fate::Doubtful) => continue,
            Some(Fate::Refused(code)) => return Err(failure::statement(*code)),
            Some(Fate::Unknown) | None => return Err(failure::timeout()),
        }
        if !record.execution_id.is_empty() && !is_there(inner, &ready, &record.execution_id).await?
        {
            mark(inner, &ready, &record.artifact_id, inner.clock.now().millis()).await?;
            return Err(unknown());
        }
        return Ok(Created::New(record.clone()));
    }
    Err(Error::Contention)
}

async fn mark(inner: &Inner, ready: &Ready, artifact_id: &str, at: Millis) -> Result<bool> {
    let Some(id) = id_of(artifact_id) else { return Ok(false) };
    let found = inner.call(ready.artifacts.find_one(doc! { "_id": id })).await?;
    let Some(stored) =
        found.map(|raw| read_stored(&raw)).transpose()?.filter(|found| !found.deleted)
    else {
        return Ok(false);
    };
    let record = &stored.record;
    let last_change = last_change(&record.execution_id, &record.artifact_id);
    let change = free_digest(record, doc! { "deleted_at": date(at), "last_change": last_change });
    let only = doc! { "_id": id, "deleted_at": null };
    let done = inner.call(ready.artifacts.update_one(only, change)).await?;
    Ok(done.matched_count > 0)
}

async fn page(inner: &Inner, query: &ArtifactQuery) -> Result<Page<Artifact, String>> {
    let ready = inner.ready().await?;
    let mut filter = doc! { "execution_id": &query.execution_id };
    if let Some(after) = query.after.as_deref().and_then(id_of) {
        filter.insert("_id", doc! { "$lt": after });
    }
    let find = ready
        .committed_artifacts
        .find(filter)
        .sort(doc! { "_id": -1 })
        .batch_size(FETCHED_AT_ONCE.min(u32::try_from(query.limit + 1).unwrap_or(u32::MAX)))
        .limit(i64::try_from(query.examine.saturating_add(1)).unwrap_or(i64::MAX));
    let mut cursor = inner.call(find).await?;
    let mut page = Page { records: Vec::new(), next: None };
    let (mut examined, mut last) = (0, None);
    while inner.call(cursor.advance()).await? {
        if page.records.len() == query.limit || examined == query.examine {
            page.next = last;
            break;
        }
        examined += 1;
        match read_stored(cursor.current()) {
            Ok(stored) => {
                last = Some(stored.record.artifact_id.clone());
                if !stored.deleted && query.admits(&stored.record) {
                    page.records.push(stored.record);
                }
            }
            Err(Error::Corrupt { collection, id, field }) => {
                tracing::warn!(collection, id, field, "a stored record cannot be read");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(page)
}

#[async_trait]
impl ArtifactStore for MongoStore {
    async fn create_artifact(&self, record: &Artifact, digest: &str) -> Result<Created> {
        create(&self.inner, record, digest).await
    }

    async fn artifact_by_digest(&self, digest: &str) -> Result<Option<Artifact>> {
        let ready = self.inner.ready().await?;
        let find = ready.committed_artifacts.find_one(doc! { "digests.create": digest });
        let found = self.inner.call(find).await?.map(|raw| read_stored(&raw)).transpose()?;
        Ok(found.filter(|found| !found.deleted).map(|found| found.record))
    }

    async fn artifact(&self, artifact_id: &str) -> Result<Option<Artifact>> {
        let ready = self.inner.ready().await?;
        let Some(id) = id_of(artifact_id) else { return Ok(None) };
        let find = ready.committed_artifacts.find_one(doc! { "_id": id });
        let found = self.inner.call(find).await?.map(|raw| read_stored(&raw)).transpose()?;
        Ok(found.filter(|found| !found.deleted).map(|found| found.record))
    }

    async fn artifacts(&self, query: &ArtifactQuery) -> Result<Page<Artifact, String>> {
        page(&self.inner, query).await
    }

    async fn artifact_usage(&self, execution_id: &str) -> Result<Usage> {
        let ready = self.inner.ready().await?;
        usage(&self.inner, &ready, execution_id).await
    }

    async fn mark_artifact(&self, artifact_id: &str, at: Millis) -> Result<bool> {
        let ready = self.inner.ready().await?;
        mark(&self.inner, &ready, artifact_id, at).await
    }

    async fn marked_artifacts(&self, after: Option<&str>, limit: usize) -> Result<Vec<Artifact>> {
        let ready = self.inner.ready().await?;
        // Other ids are those of other programs, and none of ours follows from them.
        let after = after.and_then(id_of).unwrap_or(ObjectId::from_bytes([0; 12]));
        let filter = doc! { "deleted_at": { "$gt": schema::epoch() }, "_id": { "$gt": after } };
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let find = ready.artifacts.find(filter).sort(doc! { "_id": 1 }).limit(limit);
        let found = self
            .inner
            .call(async {
                let mut found = Vec::new();
                let mut cursor = find.await?;
                while cursor.advance().await? {
                    found.extend(read_stored(cursor.current()).map(|stored| stored.record));
                }
                Ok(found)
            })
            .await?;
        Ok(found)
    }

    async fn remove_artifact(&self, artifact_id: &str) -> Result<()> {
        let ready = self.inner.ready().await?;
        let Some(id) = id_of(artifact_id) else { return Ok(()) };
        let only = doc! { "_id": id, "deleted_at": { "$gt": schema::epoch() } };
        self.inner.call(ready.artifacts.delete_one(only)).await?;
        Ok(())
    }

    async fn record_has_bytes(&self, paths: &[String], except: Option<&str>) -> Result<bool> {
        let ready = self.inner.ready().await?;
        // One that is marked, too, is no reason to keep them: else two of them wait for each other.
        let others = doc! {
            "storage_path": { "$in": paths },
            "_id": { "$ne": except.and_then(id_of) },
            "deleted_at": { "$not": { "$type": "date" } },
            "record_only": { "$ne": true },
        };
        let find = ready.artifacts.find(others).batch_size(FETCHED_AT_ONCE);
        let mut cursor = self.inner.call(find).await?;
        while self.inner.call(cursor.advance()).await? {
            // What cannot be read may have bytes as well.
            if !matches!(read_stored(cursor.current()), Ok(found) if found.record.origin == Origin::Imported)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn upload_has_bytes(&self, paths: &[String], artifact_id: &str) -> Result<bool> {
        let ready = self.inner.ready().await?;
        let others =
            doc! { "storage_path": { "$in": paths }, "artifact_id": { "$ne": artifact_id } };
        Ok(self.inner.call(ready.uploads.find_one(others)).await?.is_some())
    }

    async fn begin_upload(&self, upload: &Upload) -> Result<Upload> {
        let ready = self.inner.ready().await?;
        for _ in 0..ROUNDS {
            if let Some(found) = self.upload(&upload.upload_id).await? {
                return Ok(found);
            }
            match self.inner.call(ready.uploads.insert_one(upload_document(upload)?)).await {
                Ok(_) => return Ok(upload.clone()),
                Err(Error::Failed(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::Contention)
    }

    async fn upload(&self, upload_id: &str) -> Result<Option<Upload>> {
        let ready = self.inner.ready().await?;
        let found = self.inner.call(ready.uploads.find_one(doc! { "_id": upload_id })).await?;
        found.map(|raw| read_upload(&raw)).transpose()
    }

    async fn replace_upload(&self, turn: i64, upload: &Upload) -> Result<bool> {
        let ready = self.inner.ready().await?;
        let only = doc! { "_id": &upload.upload_id, "turn": turn };
        let replace = ready.uploads.replace_one(only, upload_document(upload)?);
        Ok(self.inner.call(replace).await?.matched_count > 0)
    }

    async fn remove_upload(&self, upload_id: &str, turn: i64) -> Result<bool> {
        let ready = self.inner.ready().await?;
        let remove = ready.uploads.delete_one(doc! { "_id": upload_id, "turn": turn });
        Ok(self.inner.call(remove).await?.deleted_count > 0)
    }

    async fn idle_uploads(
        &self,
        before: Millis,
        after: Option<(Millis, &str)>,
        limit: usize,
    ) -> Result<Vec<Upload>> {
        let ready = self.inner.ready().await?;
        let mut filter = doc! { "updated_at": { "$lt": date(before) } };
        if let Some((at, id)) = after {
            let at = date(at);
            filter = doc! {
                "updated_at": { "$gte": at, "$lt": date(before) },
                "$or": [{ "updated_at": { "$gt": at } }, { "_id": { "$gt": id } }],
            };
        }
        let find = ready
            .uploads
            .find(filter)
            .sort(doc! { "updated_at": 1, "_id": 1 })
            .limit(i64::try_from(limit).unwrap_or(i64::MAX));
        let found = self
            .inner
            .call(async {
                let mut found = Vec::new();
                let mut cursor = find.await?;
                while cursor.advance().await? {
                    found.push(cursor.current().to_owned());
                }
                Ok(found)
            })
            .await?;
        found.iter().map(|raw| read_upload(raw)).collect()
    }
}
