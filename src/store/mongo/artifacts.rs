//! Artifacts as documents that other programs share, and uploads as documents of our own.
//!
//! There is no transaction here, so a record that is stored while its execution is deleted is seen by one of the
//! two: the delete marks the execution first and the artifacts then; this stores the artifact first and looks at
//! the execution then.

use std::sync::Arc;

use async_trait::async_trait;
use bson::oid::ObjectId;
use bson::raw::{RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::{Bson, Document, doc};

use super::artifact_documents::{self, last_change_of_delete, read_stored};
use super::db::values::{any, binary, corrupt, date, epoch, field, integer, millis, raw, text};
use super::db::{Connection, Db, Fate, Index, failure};
use super::names::{ARTIFACTS, EXECUTIONS, UPLOADS};
use crate::clock::Clock;
use crate::domain::limits::Limits;
use crate::domain::mirrored::Verdict;
use crate::domain::query::{self, ArtifactKey, Page};
use crate::domain::{Artifact, ArtifactQuery, Millis, Origin, Refusal};
use crate::store::artifacts::{
    ArtifactStore, Created, Upload, Usage, artifact_conflict, mirrored_artifact,
};
use crate::store::{Error, Result};

/// How often a lost race is decided again.
const ROUNDS: usize = 8;
/// Documents fetched at a time.
const FETCHED_AT_ONCE: u32 = 500;

/// Artifacts and uploads.
pub struct Artifacts {
    db: Arc<Db>,
    limits: Limits,
    clock: Arc<dyn Clock>,
}

impl Artifacts {
    pub fn new(db: Arc<Db>, limits: Limits, clock: Arc<dyn Clock>) -> Artifacts {
        Artifacts { db, limits, clock }
    }

    async fn ready(&self) -> Result<Arc<Connection>> {
        self.db.ready().await
    }

    async fn find_upload(&self, ready: &Connection, upload_id: &str) -> Result<Option<Upload>> {
        let found = ready.call(ready.latest(UPLOADS).find_one(doc! { "_id": upload_id })).await?;
        found.map(|raw| read_upload(&raw)).transpose()
    }
}

pub fn wanted() -> Vec<Index> {
    let plain = Index::plain;
    let partial = Index::partial;
    vec![
        plain(ARTIFACTS, doc! { "execution_id": 1, "_id": -1 }),
        plain(ARTIFACTS, doc! { "execution_id": 1, "step_id": 1 }).common(),
        plain(ARTIFACTS, doc! { "artifact_type": 1 }).common(),
        plain(ARTIFACTS, doc! { "created_at": -1 }).common(),
        partial(ARTIFACTS, doc! { "storage_path": 1 }, doc! { "storage_path": { "$gt": "" } }),
        partial(ARTIFACTS, doc! { "deleted_at": 1 }, doc! { "deleted_at": { "$gt": epoch() } }),
        // The execution first: a unique index of a sharded collection begins with what it is sharded by.
        Index::unique(ARTIFACTS, doc! { "execution_id": 1, "digests.create": 1 })
            .only(doc! { "digests.create": { "$gte": "0" } }),
        plain(UPLOADS, doc! { "updated_at": 1, "_id": 1 }),
        plain(UPLOADS, doc! { "execution_id": 1, "updated_at": 1 }),
        plain(UPLOADS, doc! { "storage_path": 1 }),
    ]
}

/// The digest of a record of this execution, or of none.
fn of_digest(execution_id: &str, digest: &str) -> Document {
    let execution_id = Some(execution_id).filter(|id| !id.is_empty());
    doc! { "execution_id": execution_id, "digests.create": digest }
}

/// This very document, with what says on which shard it is.
fn this(raw: &RawDocument) -> Document {
    let value = |name| field(raw, name).and_then(any).unwrap_or(Bson::Null);
    doc! { "_id": value("_id"), "execution_id": { "$eq": value("execution_id") } }
}

fn id_of(artifact_id: &str) -> Option<ObjectId> {
    ObjectId::parse_str(artifact_id).ok()
}

fn upload_document(upload: &Upload) -> Result<RawDocumentBuf> {
    raw(&doc! {
        "_id": &upload.upload_id,
        "execution_id": &upload.execution_id,
        "digest": &upload.digest,
        "artifact_id": &upload.artifact_id,
        "storage_type": &upload.storage_type,
        "storage_path": &upload.storage_path,
        "turn": upload.turn,
        "received_bytes": i64::try_from(upload.received_bytes).unwrap_or(i64::MAX),
        "hash_state": binary(&upload.hash_state),
        "storage_state": binary(&upload.storage_state),
        "finished": upload.finished,
        "updated_at": date(upload.updated_at),
    })
}

fn read_upload(raw: &RawDocument) -> Result<Upload> {
    let field = |key: &'static str| field(raw, key).ok_or_else(|| corrupt(UPLOADS, raw, key));
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
async fn is_there(ready: &Connection, execution_id: &str) -> Result<bool> {
    let executions = ready.latest(EXECUTIONS);
    let find = executions
        .find_one(doc! { "execution_id": execution_id })
        .projection(doc! { "_id": 1, "deleted_at": 1 });
    let found = ready.call(find).await?;
    Ok(found.is_some_and(|found| found.get_datetime("deleted_at").is_err()))
}

async fn usage(ready: &Connection, execution_id: &str) -> Result<Usage> {
    let group = doc! { "$group": {
        "_id": null,
        "artifacts": { "$sum": 1 },
        "bytes": { "$sum": { "$cond": [{ "$gt": ["$sha256", null] }, "$size_bytes", 0] } },
    } };
    let only = doc! { "$match": { "execution_id": execution_id, "deleted_at": null } };
    let found = ready.collect(ready.latest(ARTIFACTS).aggregate([only, group])).await?;
    let Some(found) = found.first() else { return Ok(Usage::default()) };
    let number = |name| {
        let value = field(found, name).and_then(integer).unwrap_or(0);
        u64::try_from(value).unwrap_or(0)
    };
    Ok(Usage { artifacts: number("artifacts"), bytes: number("bytes") })
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

async fn holder(
    ready: &Connection,
    id: ObjectId,
    execution_id: &str,
    digest: &str,
) -> Result<Holder> {
    let artifacts = ready.latest(ARTIFACTS);
    let same = artifacts.find_one(of_digest(execution_id, digest));
    if let Some(raw) = ready.call(same).await? {
        let stored = read_stored(&raw)?;
        if !stored.deleted {
            return Ok(Holder::Same(stored.record));
        }
        let free = artifacts.update_one(this(&raw), free_digest(&stored.record, Document::new()));
        ready.call(free).await?;
        return Ok(Holder::Freed);
    }
    let taken = ready.call(artifacts.find_one(doc! { "_id": id })).await?;
    match taken.map(|raw| read_stored(&raw)).transpose()? {
        None => Ok(Holder::Nobody),
        Some(stored) if stored.digest.as_deref() == Some(digest) && !stored.deleted => {
            Ok(Holder::Same(stored.record))
        }
        Some(_) => Ok(Holder::Other),
    }
}

async fn create(
    artifacts: &Artifacts,
    record: &Artifact,
    digest: &str,
    mirrored: Option<i64>,
) -> Result<Created> {
    let ready = artifacts.ready().await?;
    let id = id_of(&record.artifact_id)
        .ok_or_else(|| Error::failed("an artifact id that is no ObjectId"))?;
    let unknown = || {
        let execution_id = record.execution_id.clone();
        Error::Refused(Refusal::ExecutionNotFound { execution_id })
    };
    let mut document = artifact_documents::insert(id, record, digest)?;
    if let Some(position) = mirrored {
        document.append(cstr!("mirrored_position"), position);
    }
    for _ in 0..ROUNDS {
        match holder(&ready, id, &record.execution_id, digest).await? {
            Holder::Nobody => {}
            Holder::Freed => continue,
            Holder::Same(record) => return Ok(Created::Found(record)),
            Holder::Other => {
                let artifact_id = record.artifact_id.clone();
                return Err(Refusal::ArtifactExists { artifact_id }.into());
            }
        }
        if !record.execution_id.is_empty() {
            if !is_there(&ready, &record.execution_id).await? {
                return Err(unknown());
            }
            let usage = usage(&ready, &record.execution_id).await?;
            usage.admits(record.uploaded_bytes(), &artifacts.limits)?;
        }
        let fates = ready.commander().insert(ARTIFACTS, std::slice::from_ref(&document)).await;
        match fates.first() {
            Some(Fate::Done) => {}
            Some(Fate::Duplicate(_) | Fate::Unmatched | Fate::Doubtful) => continue,
            Some(Fate::Refused(code)) => return Err(failure::statement(*code, &ARTIFACTS)),
            Some(Fate::Unknown) | None => return Err(ready.explained(failure::timeout())),
        }
        if !record.execution_id.is_empty() && !is_there(&ready, &record.execution_id).await? {
            mark(&ready, &record.artifact_id, artifacts.clock.now().millis()).await?;
            return Err(unknown());
        }
        return Ok(Created::New(record.clone()));
    }
    Err(Error::Contention)
}

/// A record that a mirror brings.
async fn mirror(
    artifacts: &Artifacts,
    record: &Artifact,
    digest: &str,
    position: i64,
) -> Result<Created> {
    let ready = artifacts.ready().await?;
    let id = id_of(&record.artifact_id)
        .ok_or_else(|| Error::failed("an artifact id that is no ObjectId"))?;
    for _ in 0..ROUNDS {
        let there = ready.call(ready.latest(ARTIFACTS).find_one(doc! { "_id": id })).await?;
        let there = there.map(|raw| read_stored(&raw).map(|stored| (raw, stored))).transpose()?;
        let Some((raw, stored)) = there.filter(|(_, stored)| !stored.deleted) else {
            return create(artifacts, record, digest, Some(position)).await;
        };
        let before = field(&raw, "mirrored_position").and_then(integer);
        match mirrored_artifact(&stored.record, before, record, position)? {
            Verdict::Late => return Ok(Created::Found(stored.record)),
            Verdict::Replaces => {}
            Verdict::Conflict => return Err(artifact_conflict(record)),
        }
        let document = artifact_documents::insert(id, record, digest)?;
        let mut set = Document::try_from(&*document).map_err(Error::failed)?;
        set.remove("_id");
        set.remove("execution_id");
        set.insert("mirrored_position", position);
        let mut change = doc! { "$set": set };
        if record.step_key.is_none() {
            change.insert("$unset", doc! { "step_key": "" });
        }
        let mut only = this(&raw);
        only.insert("deleted_at", Bson::Null);
        only.insert("mirrored_position", before);
        let replaced = ready.latest(ARTIFACTS);
        if ready.call(replaced.update_one(only, change)).await?.matched_count > 0 {
            return Ok(Created::Found(record.clone()));
        }
    }
    Err(Error::Contention)
}

async fn mark(ready: &Connection, artifact_id: &str, at: Millis) -> Result<bool> {
    let Some(id) = id_of(artifact_id) else { return Ok(false) };
    let artifacts = ready.latest(ARTIFACTS);
    let Some(raw) = ready.call(artifacts.find_one(doc! { "_id": id })).await? else {
        return Ok(false);
    };
    let stored = read_stored(&raw)?;
    if stored.deleted {
        return Ok(false);
    }
    let record = &stored.record;
    let last_change = last_change_of_delete(&record.execution_id, &record.artifact_id);
    let change = free_digest(record, doc! { "deleted_at": date(at), "last_change": last_change });
    let mut only = this(&raw);
    only.insert("deleted_at", Bson::Null);
    let done = ready.call(artifacts.update_one(only, change)).await?;
    Ok(done.matched_count > 0)
}

async fn page(artifacts: &Artifacts, query: &ArtifactQuery) -> Result<Page<Artifact, String>> {
    let ready = artifacts.ready().await?;
    let mut filter = doc! { "execution_id": &query.execution_id };
    if let Some(after) = query.after.as_deref().and_then(id_of) {
        filter.insert("_id", doc! { "$lt": after });
    }
    let committed = ready.committed(ARTIFACTS);
    let find = committed
        .find(filter)
        .sort(doc! { "_id": -1 })
        .batch_size(FETCHED_AT_ONCE.min(u32::try_from(query.limit + 1).unwrap_or(u32::MAX)))
        .limit(i64::try_from(query.examine.saturating_add(1)).unwrap_or(i64::MAX));
    let mut rows = ready.rows(find).await?;
    let mut page = Page { records: Vec::new(), next: None };
    let (mut examined, mut last) = (0, None);
    while let Some(raw) = rows.next().await? {
        if page.records.len() == query.limit || examined == query.examine {
            page.next = last;
            break;
        }
        examined += 1;
        match read_stored(raw) {
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

/// The artifacts of one execution, as its whole state has them.
pub async fn of_execution(
    artifacts: &Artifacts,
    query: &query::ArtifactQuery,
) -> Result<Page<Artifact, ArtifactKey>> {
    let ready = artifacts.ready().await?;
    let of_none = query.execution_id.is_empty();
    let mut filter = match of_none {
        false => doc! { "execution_id": &query.execution_id },
        true => doc! { "execution_id": { "$not": { "$gt": "" } } },
    };
    if let Some(after) = &query.after {
        let after = after.0.as_slice().try_into().map_err(|_| Error::BadCursor)?;
        filter.insert("_id", doc! { "$gt": ObjectId::from_bytes(after) });
    }
    let limit = query.limit.max(1);
    let committed = ready.committed(ARTIFACTS);
    let find = committed
        .find(filter)
        .sort(doc! { "_id": 1 })
        .batch_size(u32::try_from(limit + 1).unwrap_or(FETCHED_AT_ONCE));
    let mut rows = ready.rows(find).await?;
    let mut page = Page { records: Vec::new(), next: None };
    let mut last = None;
    while let Some(raw) = rows.next().await? {
        if page.records.len() == limit {
            page.next = last;
            break;
        }
        let found = match of_none {
            false => artifact_documents::read_alive(raw),
            true => artifact_documents::read_any_alive(raw),
        };
        match found {
            Ok(None) => {}
            Ok(Some(artifact)) => {
                last = raw.get_object_id("_id").ok().map(|id| ArtifactKey(id.bytes().to_vec()));
                page.records.push(artifact);
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
impl ArtifactStore for Artifacts {
    async fn create_artifact(&self, record: &Artifact, digest: &str) -> Result<Created> {
        create(self, record, digest, None).await
    }

    async fn mirror_artifact(
        &self,
        record: &Artifact,
        digest: &str,
        position: i64,
    ) -> Result<Created> {
        mirror(self, record, digest, position).await
    }

    async fn artifact_by_digest(
        &self,
        execution_id: &str,
        digest: &str,
    ) -> Result<Option<Artifact>> {
        let ready = self.ready().await?;
        let committed = ready.committed(ARTIFACTS);
        let find = committed.find_one(of_digest(execution_id, digest));
        let found = ready.call(find).await?.map(|raw| read_stored(&raw)).transpose()?;
        Ok(found.filter(|found| !found.deleted).map(|found| found.record))
    }

    async fn artifact(&self, artifact_id: &str) -> Result<Option<Artifact>> {
        let ready = self.ready().await?;
        let Some(id) = id_of(artifact_id) else { return Ok(None) };
        let committed = ready.committed(ARTIFACTS);
        let found = ready
            .call(committed.find_one(doc! { "_id": id }))
            .await?
            .map(|raw| read_stored(&raw))
            .transpose()?;
        Ok(found.filter(|found| !found.deleted).map(|found| found.record))
    }

    async fn artifacts(&self, query: &ArtifactQuery) -> Result<Page<Artifact, String>> {
        page(self, query).await
    }

    async fn artifact_usage(&self, execution_id: &str) -> Result<Usage> {
        let ready = self.ready().await?;
        usage(&ready, execution_id).await
    }

    async fn mark_artifact(&self, artifact_id: &str, at: Millis) -> Result<bool> {
        let ready = self.ready().await?;
        mark(&ready, artifact_id, at).await
    }

    async fn marked_artifacts(&self, after: Option<&str>, limit: usize) -> Result<Vec<Artifact>> {
        let ready = self.ready().await?;
        // Other ids are those of other programs, and none of ours follows from them.
        let after = after.and_then(id_of).unwrap_or(ObjectId::from_bytes([0; 12]));
        let filter = doc! { "deleted_at": { "$gt": epoch() }, "_id": { "$gt": after } };
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let artifacts = ready.latest(ARTIFACTS);
        let find = artifacts.find(filter).sort(doc! { "_id": 1 }).limit(limit);
        let found = ready.collect(find).await?;
        Ok(found.iter().filter_map(|raw| Some(read_stored(raw).ok()?.record)).collect())
    }

    async fn remove_artifact(&self, artifact_id: &str) -> Result<()> {
        let ready = self.ready().await?;
        let Some(id) = id_of(artifact_id) else { return Ok(()) };
        let artifacts = ready.latest(ARTIFACTS);
        let marked = doc! { "_id": id, "deleted_at": { "$gt": epoch() } };
        let Some(raw) = ready.call(artifacts.find_one(marked)).await? else { return Ok(()) };
        let mut only = this(&raw);
        only.insert("deleted_at", doc! { "$gt": epoch() });
        ready.call(artifacts.delete_one(only)).await?;
        Ok(())
    }

    async fn record_has_bytes(&self, paths: &[String], except: Option<&str>) -> Result<bool> {
        let ready = self.ready().await?;
        // One that is marked, too, is no reason to keep them: else two of them wait for each other.
        let others = doc! {
            "storage_path": { "$in": paths },
            "_id": { "$ne": except.and_then(id_of) },
            "deleted_at": { "$not": { "$type": "date" } },
            "record_only": { "$ne": true },
        };
        let artifacts = ready.latest(ARTIFACTS);
        let mut rows = ready.rows(artifacts.find(others).batch_size(FETCHED_AT_ONCE)).await?;
        while let Some(raw) = rows.next().await? {
            // What cannot be read may have bytes as well.
            if !matches!(read_stored(raw), Ok(found) if found.record.origin == Origin::Imported) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn upload_has_bytes(&self, paths: &[String], artifact_id: &str) -> Result<bool> {
        let ready = self.ready().await?;
        let others =
            doc! { "storage_path": { "$in": paths }, "artifact_id": { "$ne": artifact_id } };
        Ok(ready.call(ready.latest(UPLOADS).find_one(others)).await?.is_some())
    }

    async fn begin_upload(&self, upload: &Upload) -> Result<Upload> {
        let ready = self.ready().await?;
        for _ in 0..ROUNDS {
            if let Some(found) = self.find_upload(&ready, &upload.upload_id).await? {
                return Ok(found);
            }
            match ready.call(ready.latest(UPLOADS).insert_one(upload_document(upload)?)).await {
                Ok(_) => return Ok(upload.clone()),
                Err(Error::Failed(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::Contention)
    }

    async fn upload(&self, upload_id: &str) -> Result<Option<Upload>> {
        let ready = self.ready().await?;
        self.find_upload(&ready, upload_id).await
    }

    async fn replace_upload(&self, turn: i64, upload: &Upload) -> Result<bool> {
        let ready = self.ready().await?;
        let only = doc! { "_id": &upload.upload_id, "turn": turn };
        let uploads = ready.latest(UPLOADS);
        let replace = uploads.replace_one(only, upload_document(upload)?);
        Ok(ready.call(replace).await?.matched_count > 0)
    }

    async fn remove_upload(&self, upload_id: &str, turn: i64) -> Result<bool> {
        let ready = self.ready().await?;
        let uploads = ready.latest(UPLOADS);
        let remove = uploads.delete_one(doc! { "_id": upload_id, "turn": turn });
        Ok(ready.call(remove).await?.deleted_count > 0)
    }

    async fn idle_uploads(
        &self,
        before: Millis,
        after: Option<(Millis, &str)>,
        limit: usize,
    ) -> Result<Vec<Upload>> {
        let ready = self.ready().await?;
        let mut filter = doc! { "updated_at": { "$lt": date(before) } };
        if let Some((at, id)) = after {
            let at = date(at);
            filter = doc! {
                "updated_at": { "$gte": at, "$lt": date(before) },
                "$or": [{ "updated_at": { "$gt": at } }, { "_id": { "$gt": id } }],
            };
        }
        let uploads = ready.latest(UPLOADS);
        let find = uploads
            .find(filter)
            .sort(doc! { "updated_at": 1, "_id": 1 })
            .limit(i64::try_from(limit).unwrap_or(i64::MAX));
        ready.collect(find).await?.iter().map(|raw| read_upload(raw)).collect()
    }
}
