//! Bytes in MongoDB, in the layout that every driver calls GridFS: a document per file, and its bytes in chunks.
//! The bucket is `artifacts`; files that other programs put into it are read as well. Other buckets are theirs.
//!
//! Chunks are written one by one and not by the driver's own stream, which can neither stop and go on, nor
//! send the next chunk before the last one is acknowledged.

use std::collections::VecDeque;
use std::future::IntoFuture;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bson::oid::ObjectId;
use bson::raw::{RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::spec::BinarySubtype;
use bson::{Bson, DateTime, Document, RawBinaryRef, doc};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, stream};
use mongodb::Collection;
use mongodb::error::ErrorKind;
use mongodb::raw_batch_cursor::RawBatch;
use tokio::sync::{OnceCell, Semaphore};

use super::under_way::UnderWay;
use super::{Error, PIECE_BYTES, Pieces, Result, Storage, Writer, pieces};
use crate::clock::Clock;

const BUCKET: &str = "artifacts";
const CHUNK_BYTES: usize = 1024 * 1024;
/// Chunks of one file that are sent before the first of them is acknowledged.
const CHUNKS_AHEAD: usize = 2;
/// Chunks of all files that are under way to the database.
const CHUNKS_UNDER_WAY: usize = 24;
/// Chunks fetched at a time at most, however small they are.
const CHUNKS_FETCHED: u64 = 1000;
/// How long one call of the driver may take.
const PATIENCE: Duration = Duration::from_secs(30);
const DUPLICATE_KEY: i32 = 11000;

/// The bucket of the database, or why there is none just now.
pub type Connect =
    Box<dyn Fn() -> BoxFuture<'static, Result<Bucket, crate::store::Error>> + Send + Sync>;

/// GridFS of one database.
pub struct GridFs {
    inner: Arc<Inner>,
}

struct Inner {
    connect: Connect,
    clock: Arc<dyn Clock>,
    prepared: OnceCell<()>,
    room: Arc<Semaphore>,
}

/// A driver's error without anything that tells where the database is.
fn failure(error: &mongodb::error::Error) -> Error {
    let code = match error.kind.as_ref() {
        ErrorKind::Command(error) => Some(error.code),
        ErrorKind::Write(mongodb::error::WriteFailure::WriteError(error)) => Some(error.code),
        _ => None,
    };
    let words = match code {
        Some(code) => format!("the database answered with code {code}"),
        None => "the driver failed".to_owned(),
    };
    let passing = error.contains_label(mongodb::error::RETRYABLE_WRITE_ERROR)
        // The chunk is there: another writer of the same upload was faster.
        || code == Some(DUPLICATE_KEY)
        || !matches!(
            error.kind.as_ref(),
            ErrorKind::Command(_)
                | ErrorKind::Write(_)
                | ErrorKind::InvalidArgument { .. }
                | ErrorKind::Bson(_)
        );
    if passing { Error::Unavailable(words.into()) } else { Error::Failed(words.into()) }
}

async fn call<T, F>(call: F) -> Result<T>
where
    F: IntoFuture<Output = mongodb::error::Result<T>>,
{
    match tokio::time::timeout(PATIENCE, call.into_future()).await {
        Ok(answer) => answer.map_err(|error| failure(&error)),
        Err(_) => Err(Error::Unavailable("no answer in time".into())),
    }
}

/// The name in a path of our bucket.
fn parse(path: &str) -> Option<&str> {
    let (bucket, name) = path.strip_prefix("gridfs://")?.split_once('/')?;
    (bucket == BUCKET && !name.is_empty()).then_some(name)
}

fn path_of(name: &str) -> String {
    format!("gridfs://{BUCKET}/{name}")
}

/// A file that is complete.
struct File {
    id: Bson,
    filename: Option<String>,
    length: u64,
    chunk_bytes: u64,
}

/// The ids that a name may mean, the likeliest first. Each id is written in one way only.
fn ids_of(name: &str) -> Vec<Bson> {
    let object_id = ObjectId::parse_str(name).ok().filter(|id| id.to_hex() == name);
    let uuid = bson::Uuid::parse_str(name).ok().filter(|id| id.to_string() == name);
    let others = [object_id.map(Bson::from), uuid.map(Bson::from)];
    std::iter::once(Bson::from(name)).chain(others.into_iter().flatten()).collect()
}

/// The way in which an id is written.
fn name_of(id: &Bson) -> Option<String> {
    match id {
        Bson::String(name) => Some(name.clone()),
        Bson::ObjectId(id) => Some(id.to_hex()),
        Bson::Binary(binary) => binary.to_uuid().ok().map(|id| id.to_string()),
        _ => None,
    }
}

/// What there is, and the pieces of it: opened by who knows the database.
pub struct Bucket {
    pub files: Collection<Document>,
    pub chunks: Collection<RawDocumentBuf>,
}

impl Bucket {
    /// The file of this name: its id in any of the types that programs use, or what it is called.
    async fn find(&self, name: &str) -> Result<Option<File>> {
        let mut found = None;
        for id in ids_of(name) {
            found = call(self.files.find_one(doc! { "_id": id })).await?;
            if found.is_some() {
                break;
            }
        }
        if found.is_none() {
            let named = self.files.find_one(doc! { "filename": name });
            found = call(named.sort(doc! { "uploadDate": -1, "_id": -1 })).await?;
        }
        let Some(found) = found else { return Ok(None) };
        let number = |key: &str| match found.get(key) {
            Some(Bson::Int32(number)) => u64::try_from(*number).ok(),
            Some(Bson::Int64(number)) => u64::try_from(*number).ok(),
            Some(Bson::Double(number)) if *number >= 0.0 => Some(*number as u64),
            _ => None,
        };
        match (found.get("_id"), number("length"), number("chunkSize")) {
            (Some(id), Some(length), Some(chunk_bytes)) if chunk_bytes > 0 => {
                let filename = found.get_str("filename").ok().map(str::to_owned);
                Ok(Some(File { id: id.clone(), filename, length, chunk_bytes }))
            }
            _ => Ok(None),
        }
    }
}

impl Inner {
    async fn connected(&self) -> Result<Bucket> {
        (self.connect)().await.map_err(|error| Error::Unavailable(error.into()))
    }

    async fn bucket(&self, path: &str) -> Result<(Bucket, String)> {
        let name = parse(path).ok_or(Error::Missing)?;
        Ok((self.connected().await?, name.to_owned()))
    }

    /// The indexes that GridFS is specified with.
    async fn prepare(&self) -> Result<()> {
        let make = || async {
            let Bucket { files, chunks } = self.connected().await?;
            let database = files.client().database(&files.namespace().db);
            for (collection, keys, unique) in [
                (files.name(), doc! { "filename": 1, "uploadDate": 1 }, false),
                (chunks.name(), doc! { "files_id": 1, "n": 1 }, true),
            ] {
                let names = keys.keys().map(|key| format!("{key}_1")).collect::<Vec<_>>();
                let index = doc! { "key": keys, "name": names.join("_"), "unique": unique };
                let command = doc! { "createIndexes": collection, "indexes": [index] };
                match call(database.run_command(command)).await {
                    // One with the same keys is there under another name.
                    Ok(_) | Err(Error::Failed(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        self.prepared.get_or_try_init(make).await.copied()
    }
}

impl GridFs {
    pub fn new(connect: Connect, clock: Arc<dyn Clock>) -> Self {
        let room = Arc::new(Semaphore::new(CHUNKS_UNDER_WAY));
        GridFs { inner: Arc::new(Inner { connect, clock, prepared: OnceCell::new(), room }) }
    }

    async fn writer(&self, path: &str, chunks: u64) -> Result<Box<dyn Writer>> {
        let (bucket, id) = self.inner.bucket(path).await?;
        Ok(Box::new(ChunkWriter {
            inner: Arc::clone(&self.inner),
            bucket,
            id,
            next: i32::try_from(chunks).map_err(|error| Error::Failed(error.into()))?,
            length: chunks * CHUNK_BYTES as u64,
            under_way: UnderWay::default(),
        }))
    }
}

#[async_trait]
impl Storage for GridFs {
    fn kind(&self) -> &'static str {
        "gridfs"
    }

    fn owns(&self, path: &str) -> bool {
        parse(path).is_some()
    }

    async fn names(&self, path: &str) -> Result<Vec<String>> {
        let (bucket, name) = self.inner.bucket(path).await?;
        let mut names = vec![path_of(&name)];
        let Some(file) = bucket.find(&name).await? else { return Ok(names) };
        for other in [name_of(&file.id), file.filename].into_iter().flatten() {
            let path = path_of(&other);
            // A name may mean another file: one that has it as its id, or a newer one.
            if !names.contains(&path)
                && bucket.find(&other).await?.is_some_and(|found| found.id == file.id)
            {
                names.push(path);
            }
        }
        Ok(names)
    }

    fn path(&self, blob_id: &str) -> String {
        path_of(blob_id)
    }

    fn unit_bytes(&self) -> usize {
        CHUNK_BYTES
    }

    async fn create(&self, path: &str) -> Result<Box<dyn Writer>> {
        self.inner.prepare().await?;
        self.writer(path, 0).await
    }

    async fn resume(&self, path: &str, bytes: u64, _state: &[u8]) -> Result<Box<dyn Writer>> {
        let (bucket, id) = self.inner.bucket(path).await?;
        let kept = bytes / CHUNK_BYTES as u64;
        if !bytes.is_multiple_of(CHUNK_BYTES as u64) {
            return Err(Error::Missing);
        }
        let number = i64::try_from(kept).unwrap_or(i64::MAX);
        let later = doc! { "files_id": &id, "n": { "$gte": number } };
        call(bucket.chunks.delete_many(later)).await?;
        let there = call(bucket.chunks.count_documents(doc! { "files_id": &id })).await?;
        if there != kept {
            return Err(Error::Missing);
        }
        self.writer(path, kept).await
    }

    async fn size(&self, path: &str) -> Result<u64> {
        let (bucket, name) = self.inner.bucket(path).await?;
        bucket.find(&name).await?.map(|file| file.length).ok_or(Error::Missing)
    }

    fn read(&self, path: &str, range: Range<u64>, at_once_bytes: usize) -> Pieces {
        let inner = Arc::clone(&self.inner);
        let path = path.to_owned();
        let open = async move {
            let (bucket, name) = inner.bucket(&path).await?;
            let file = bucket.find(&name).await?.ok_or(Error::Missing)?;
            if range.end > file.length {
                return Err(Error::Missing);
            }
            let chunk = range.start / file.chunk_bytes;
            let fetched = (at_once_bytes as u64 / file.chunk_bytes).clamp(1, CHUNKS_FETCHED);
            let Range { start: at, end } = range;
            Ok(Reading { bucket, file, chunk, fetched, at, end, rest: VecDeque::new() })
        };
        let read = stream::once(open).flat_map(|opened| match opened {
            Err(error) => stream::once(async { Err(error) }).boxed(),
            Ok(reading) => stream::try_unfold(reading, Reading::next).boxed(),
        });
        pieces::joined(read.boxed())
    }

    async fn remove(&self, path: &str, _state: &[u8]) -> Result<()> {
        let (bucket, name) = self.inner.bucket(path).await?;
        // Bytes that are not complete have no file yet; their id is what we called them.
        let id = bucket.find(&name).await?.map_or(Bson::from(name), |file| file.id);
        // The file last: as long as it is there, what is left can be found.
        let chunks = bucket.chunks.delete_many(doc! { "files_id": &id });
        // Thousands of chunks take their time; while the database answers at all, that is fine.
        chunks.await.map_err(|error| failure(&error))?;
        call(bucket.files.delete_one(doc! { "_id": id })).await?;
        Ok(())
    }
}

/// One pass over the chunks of a file. Each fetch is a query of its own, which has all of its answer at once and
/// leaves nothing open.
struct Reading {
    bucket: Bucket,
    file: File,
    /// The chunk that comes next.
    chunk: u64,
    /// How many of them at a time.
    fetched: u64,
    at: u64,
    end: u64,
    /// What was fetched and is not on its way yet.
    rest: VecDeque<Bytes>,
}

/// The answer of the database, of which chunks are parts.
struct Answer(RawBatch);

impl AsRef<[u8]> for Answer {
    fn as_ref(&self) -> &[u8] {
        self.0.as_raw_document().as_bytes()
    }
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        if self.at >= self.end {
            return Ok(None);
        }
        if self.rest.is_empty() {
            self.fetch().await?;
        }
        let mut first = self.rest.pop_front().ok_or(Error::Missing)?;
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let piece = first.split_to(first.len().min(PIECE_BYTES).min(left));
        if !first.is_empty() {
            self.rest.push_front(first);
        }
        self.at += piece.len() as u64;
        Ok(Some((piece, self)))
    }

    async fn fetch(&mut self) -> Result<()> {
        let due = self.end.div_ceil(self.file.chunk_bytes) - self.chunk;
        let number = |chunk: u64| i64::try_from(chunk).unwrap_or(i64::MAX);
        let last = self.chunk + due.min(self.fetched);
        let chunks = doc! {
            "files_id": &self.file.id,
            "n": { "$gte": number(self.chunk), "$lt": number(last) },
        };
        // A negative limit: one answer, as much as has place in it, and no cursor.
        let find = self.bucket.chunks.find(chunks).sort(doc! { "n": 1 });
        let find = find.limit(-number(last - self.chunk)).projection(doc! { "n": 1, "data": 1 });
        let mut batches = call(find.batch()).await?;
        let Some(batch) = call(batches.next().map(Option::transpose)).await? else {
            return Err(Error::Missing);
        };
        let answer = Bytes::from_owner(Answer(batch));
        self.read_chunks(&answer).ok_or(Error::Missing)
    }

    /// Takes the chunks out of an answer, as they are; `None` if one is not what comes next, or not as long as it
    /// has to be.
    fn read_chunks(&mut self, answer: &Bytes) -> Option<()> {
        let document = RawDocument::from_bytes(answer).ok()?;
        let chunks = document.get_document("cursor").ok()?.get_array("firstBatch").ok()?;
        for chunk in chunks {
            let chunk = chunk.ok()?.as_document()?;
            let number = match chunk.get("n").ok()?? {
                RawBsonRef::Int32(number) => u64::try_from(number).ok()?,
                RawBsonRef::Int64(number) => u64::try_from(number).ok()?,
                _ => return None,
            };
            let bytes = match chunk.get("data").ok()?? {
                RawBsonRef::Binary(binary) => binary.bytes,
                _ => return None,
            };
            let begins = self.chunk * self.file.chunk_bytes;
            let due = (self.file.length - begins).min(self.file.chunk_bytes);
            if number != self.chunk || bytes.len() as u64 != due {
                return None;
            }
            self.chunk += 1;
            // Only the first chunk is begun in its middle.
            let skipped = usize::try_from(self.at.saturating_sub(begins)).ok()?;
            self.rest.push_back(answer.slice_ref(bytes.get(skipped..)?));
        }
        Some(())
    }
}

struct ChunkWriter {
    inner: Arc<Inner>,
    bucket: Bucket,
    id: String,
    next: i32,
    length: u64,
    under_way: UnderWay<()>,
}

#[async_trait]
impl Writer for ChunkWriter {
    async fn write(&mut self, unit: Bytes) -> Result<()> {
        self.under_way.settle(CHUNKS_AHEAD - 1).await?;
        let room = Arc::clone(&self.inner.room).acquire_owned().await;
        let room = room.map_err(|error| Error::Failed(error.into()))?;
        let mut chunk = RawDocumentBuf::new();
        chunk.append(cstr!("_id"), ObjectId::new());
        chunk.append(cstr!("files_id"), self.id.as_str());
        chunk.append(cstr!("n"), self.next);
        chunk.append(cstr!("data"), RawBinaryRef { subtype: BinarySubtype::Generic, bytes: &unit });
        self.next += 1;
        self.length += unit.len() as u64;
        let chunks = self.bucket.chunks.clone();
        self.under_way.add(async move {
            let _room = room;
            call(chunks.insert_one(chunk)).await.map(drop)
        });
        Ok(())
    }

    async fn checkpoint(&mut self) -> Result<Vec<u8>> {
        self.under_way.settle(0).await?;
        Ok(Vec::new())
    }

    async fn finish(mut self: Box<Self>) -> Result<()> {
        self.under_way.settle(0).await?;
        let at = DateTime::from_millis(self.inner.clock.now().millis());
        let length = i64::try_from(self.length).unwrap_or(i64::MAX);
        let chunk_bytes = i32::try_from(CHUNK_BYTES).unwrap_or(i32::MAX);
        let file = doc! {
            "_id": &self.id,
            "length": length,
            "chunkSize": chunk_bytes,
            "uploadDate": at,
            "filename": &self.id,
        };
        // Not an insert: whoever lost the answer may end it once more.
        let only = doc! { "_id": &self.id };
        call(self.bucket.files.replace_one(only, file).upsert(true)).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_in_one_way() {
        let (object_id, uuid) =
            ("0123456789abcdef01234567", "3f2a0000-0000-4000-8000-000000000000");
        for (name, ids) in [
            (object_id.to_owned(), 2),
            (object_id.to_ascii_uppercase(), 1),
            (uuid.to_owned(), 2),
            (uuid.to_ascii_uppercase(), 1),
            (uuid.replace('-', ""), 1),
            (format!("{{{uuid}}}"), 1),
            (format!("urn:uuid:{uuid}"), 1),
        ] {
            let found = ids_of(&name);
            assert_eq!(found.len(), ids, "{name}");
            assert!(found.iter().all(|id| name_of(id).as_ref() == Some(&name)), "{name}");
        }
    }

    #[test]
    fn only_files_of_our_bucket_are_touched() {
        assert_eq!(parse("gridfs://artifacts/a-b"), Some("a-b"));
        assert_eq!(parse("gridfs://artifacts/name/with/slashes"), Some("name/with/slashes"));
        for bad in ["gridfs://", "gridfs://artifacts/", "gridfs://fs/x", "gridfs:///x", "file:x"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
