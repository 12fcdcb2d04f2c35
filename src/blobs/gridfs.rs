//! Bytes in MongoDB, in the layout that every driver calls GridFS: a document per file, and its bytes in chunks.
//! The bucket is `artifacts`; files that other programs put into it are read as well. Other buckets are theirs.
//!
//! Chunks are written one by one and not by the driver's own stream, which can neither stop and go on, nor
//! send the next chunk before the last one is acknowledged.

use std::future::IntoFuture;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bson::oid::ObjectId;
use bson::raw::{RawBsonRef, RawDocumentBuf, cstr};
use bson::spec::BinarySubtype;
use bson::{Bson, DateTime, Document, RawBinaryRef, doc};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt as _, stream};
use mongodb::error::ErrorKind;
use mongodb::options::{CollectionOptions, ReadPreference, SelectionCriteria};
use mongodb::{Collection, Cursor, Database};
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinSet;

use super::ahead::{self, Ahead};
use super::{Error, PIECE_BYTES, Pieces, Result, Storage, Writer};
use crate::clock::Clock;

const BUCKET: &str = "artifacts";
const CHUNK_BYTES: usize = 1024 * 1024;
/// Chunks of one file that are sent before the first of them is acknowledged.
const CHUNKS_AHEAD: usize = 2;
/// Chunks of all files that are under way to the database.
const CHUNKS_UNDER_WAY: usize = 24;
/// Chunks fetched at a time by who may read ahead; others fetch one.
const CHUNKS_FETCHED: u32 = 4;
/// How long one call of the driver may take.
const PATIENCE: Duration = Duration::from_secs(30);
const DUPLICATE_KEY: i32 = 11000;

/// The database, or why there is none just now.
pub type Connect =
    Box<dyn Fn() -> BoxFuture<'static, Result<Database, crate::store::Error>> + Send + Sync>;

/// GridFS of one database.
pub struct GridFs {
    inner: Arc<Inner>,
}

struct Inner {
    connect: Connect,
    clock: Arc<dyn Clock>,
    prepared: OnceCell<()>,
    room: Arc<Semaphore>,
    /// Downloads that may read ahead.
    ahead: Ahead,
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

/// A file that is complete.
struct File {
    id: Bson,
    length: u64,
    chunk_bytes: u64,
}

struct Bucket {
    files: Collection<Document>,
    chunks: Collection<RawDocumentBuf>,
}

impl Bucket {
    fn of(database: &Database) -> Self {
        let options = || {
            let mut options = CollectionOptions::default();
            let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
            options.selection_criteria = Some(primary);
            options
        };
        Bucket {
            files: database.collection_with_options(&format!("{BUCKET}.files"), options()),
            chunks: database.collection_with_options(&format!("{BUCKET}.chunks"), options()),
        }
    }

    /// The file of this name: its id in any of the types that programs use, or what it is called.
    async fn find(&self, name: &str) -> Result<Option<File>> {
        let mut ids = vec![Bson::from(name)];
        ids.extend(ObjectId::parse_str(name).ok().map(Bson::from));
        ids.extend(bson::Uuid::parse_str(name).ok().map(Bson::from));
        let by_id = self.files.find_one(doc! { "_id": { "$in": ids } });
        let found = match call(by_id).await? {
            Some(found) => Some(found),
            None => {
                let named = self.files.find_one(doc! { "filename": name });
                call(named.sort(doc! { "uploadDate": -1 })).await?
            }
        };
        let Some(found) = found else { return Ok(None) };
        let number = |key: &str| match found.get(key) {
            Some(Bson::Int32(number)) => u64::try_from(*number).ok(),
            Some(Bson::Int64(number)) => u64::try_from(*number).ok(),
            Some(Bson::Double(number)) if *number >= 0.0 => Some(*number as u64),
            _ => None,
        };
        match (found.get("_id"), number("length"), number("chunkSize")) {
            (Some(id), Some(length), Some(chunk_bytes)) if chunk_bytes > 0 => {
                Ok(Some(File { id: id.clone(), length, chunk_bytes }))
            }
            _ => Ok(None),
        }
    }
}

impl Inner {
    async fn database(&self) -> Result<Database> {
        (self.connect)().await.map_err(|error| Error::Unavailable(error.into()))
    }

    async fn bucket(&self, path: &str) -> Result<(Bucket, String)> {
        let name = parse(path).ok_or(Error::Missing)?;
        Ok((Bucket::of(&self.database().await?), name.to_owned()))
    }

    /// The indexes that GridFS is specified with.
    async fn prepare(&self) -> Result<()> {
        let make = || async {
            let database = self.database().await?;
            for (collection, keys, unique) in [
                (format!("{BUCKET}.files"), doc! { "filename": 1, "uploadDate": 1 }, false),
                (format!("{BUCKET}.chunks"), doc! { "files_id": 1, "n": 1 }, true),
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
        let prepared = OnceCell::new();
        let ahead = Ahead::default();
        GridFs { inner: Arc::new(Inner { connect, clock, prepared, room, ahead }) }
    }

    async fn writer(&self, path: &str, chunks: u64) -> Result<Box<dyn Writer>> {
        let (bucket, id) = self.inner.bucket(path).await?;
        Ok(Box::new(ChunkWriter {
            inner: Arc::clone(&self.inner),
            bucket,
            id,
            next: i32::try_from(chunks).map_err(|error| Error::Failed(error.into()))?,
            length: chunks * CHUNK_BYTES as u64,
            under_way: JoinSet::new(),
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

    fn path(&self, blob_id: &str) -> String {
        format!("gridfs://{BUCKET}/{blob_id}")
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

    fn read(&self, path: &str, range: Range<u64>) -> Pieces {
        let inner = Arc::clone(&self.inner);
        let path = path.to_owned();
        let allowed = inner.ahead.allowed();
        let fetched = if allowed.is_some() { CHUNKS_FETCHED } else { 1 };
        let open = async move {
            let (bucket, name) = inner.bucket(&path).await?;
            let file = bucket.find(&name).await?.ok_or(Error::Missing)?;
            if range.end > file.length {
                return Err(Error::Missing);
            }
            let first = range.start / file.chunk_bytes;
            let chunks = doc! {
                "files_id": &file.id,
                "n": { "$gte": i64::try_from(first).unwrap_or(i64::MAX) },
            };
            let find = bucket.chunks.find(chunks).sort(doc! { "n": 1 });
            let cursor = call(find.batch_size(fetched)).await?;
            let (at, end) = (range.start, range.end);
            Ok(Reading { cursor, file, chunk: first, at, end, rest: Bytes::new() })
        };
        let pieces = stream::once(open).flat_map(|opened| match opened {
            Err(error) => stream::once(async { Err(error) }).boxed(),
            Ok(reading) => stream::try_unfold(reading, Reading::next).boxed(),
        });
        ahead::pieces(pieces.boxed(), allowed)
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

/// One pass over the chunks of a file.
struct Reading {
    cursor: Cursor<RawDocumentBuf>,
    file: File,
    /// The chunk that comes next.
    chunk: u64,
    at: u64,
    end: u64,
    /// Of the chunk before, what was too much for one piece.
    rest: Bytes,
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        if self.at >= self.end {
            return Ok(None);
        }
        if self.rest.is_empty() {
            if !call(self.cursor.advance()).await? {
                return Err(Error::Missing);
            }
            self.rest = self.read_chunk().ok_or(Error::Missing)?;
        }
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES).min(left));
        self.at += piece.len() as u64;
        Ok(Some((piece, self)))
    }

    /// The bytes of the chunk that the cursor is at from `at` on; `None` if it is not the one that comes next,
    /// or not as long as it has to be.
    fn read_chunk(&mut self) -> Option<Bytes> {
        let document = self.cursor.current();
        let number = match document.get("n").ok()?? {
            RawBsonRef::Int32(number) => u64::try_from(number).ok()?,
            RawBsonRef::Int64(number) => u64::try_from(number).ok()?,
            _ => return None,
        };
        let bytes = match document.get("data").ok()?? {
            RawBsonRef::Binary(binary) => binary.bytes,
            _ => return None,
        };
        let begins = self.chunk * self.file.chunk_bytes;
        let due = (self.file.length - begins).min(self.file.chunk_bytes);
        if number != self.chunk || bytes.len() as u64 != due {
            return None;
        }
        self.chunk += 1;
        let skipped = usize::try_from(self.at - begins).ok()?;
        Some(Bytes::copy_from_slice(bytes.get(skipped..)?))
    }
}

struct ChunkWriter {
    inner: Arc<Inner>,
    bucket: Bucket,
    id: String,
    next: i32,
    length: u64,
    under_way: JoinSet<Result<()>>,
}

impl ChunkWriter {
    /// Waits until at most so many chunks are under way.
    async fn settle(&mut self, left: usize) -> Result<()> {
        let mut failed = None;
        while self.under_way.len() > left
            && let Some(done) = self.under_way.join_next().await
        {
            match done {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failed = Some(error),
                Err(error) => failed = Some(Error::Failed(error.into())),
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

#[async_trait]
impl Writer for ChunkWriter {
    async fn write(&mut self, unit: Bytes) -> Result<()> {
        self.settle(CHUNKS_AHEAD - 1).await?;
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
        self.under_way.spawn(async move {
            let _room = room;
            call(chunks.insert_one(chunk)).await.map(drop)
        });
        Ok(())
    }

    async fn checkpoint(&mut self) -> Result<Vec<u8>> {
        self.settle(0).await?;
        Ok(Vec::new())
    }

    async fn finish(mut self: Box<Self>) -> Result<()> {
        self.settle(0).await?;
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
    fn only_files_of_our_bucket_are_touched() {
        assert_eq!(parse("gridfs://artifacts/a-b"), Some("a-b"));
        assert_eq!(parse("gridfs://artifacts/name/with/slashes"), Some("name/with/slashes"));
        for bad in ["gridfs://", "gridfs://artifacts/", "gridfs://fs/x", "gridfs:///x", "file:x"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
