//! Bytes of artifacts, behind one trait with three storages. Knows no records: a caller names bytes by the path
//! that a storage made up for them, and keeps that.
//!
//! Bytes arrive in units of the storage and become readable all at once, with `Writer::finish`. Until then a
//! checkpoint says how much of them would survive a crash, and `Storage::resume` goes on from one.

pub mod gridfs;
pub mod local;
pub mod pieces;
pub mod room;
pub mod s3;
mod under_way;
pub mod unit;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use room::Room;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// A storage's failure. The source is for the log; no word of it reaches a client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not there, or not all of them.
    #[error("the bytes are missing")]
    Missing,
    /// The storage is away, full, or another writer has the bytes: the same call may succeed later.
    #[error("the storage is unavailable")]
    Unavailable(#[source] Source),
    /// Anything else; a defect of ours or of the set-up.
    #[error("the storage failed")]
    Failed(#[source] Source),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Bytes that are on their way out, in pieces of at most `PIECE_BYTES`, in order.
pub type Pieces = BoxStream<'static, Result<Bytes>>;

/// Largest piece of what is read.
pub const PIECE_BYTES: usize = 1024 * 1024;

/// Whether this is a name as we give them: a UUID, written in the one way that we write it.
fn is_blob_id(name: &str) -> bool {
    uuid::Uuid::try_parse(name).is_ok_and(|id| id.hyphenated().to_string() == name)
}

/// One storage.
#[async_trait]
pub trait Storage: Send + Sync + 'static {
    /// Its word in `storage_type`.
    fn kind(&self) -> &'static str;

    /// Whether a path is one that this storage reads: its one way to write it, or that of another program. Others are
    /// not touched, whatever they say.
    fn owns(&self, path: &str) -> bool;

    /// All paths that name the same bytes as this one, which is among them.
    async fn names(&self, path: &str) -> Result<Vec<String>> {
        Ok(vec![path.to_owned()])
    }

    /// The path of new bytes; `blob_id` is a UUID.
    fn path(&self, blob_id: &str) -> String;

    /// Bytes taken at a time.
    fn unit_bytes(&self) -> usize;

    /// Begins to write.
    async fn create(&self, path: &str) -> Result<Box<dyn Writer>>;

    /// Goes on from the checkpoint with this state; what was written after it is dropped. `Missing`: there is
    /// nothing to go on with.
    async fn resume(&self, path: &str, bytes: u64, state: &[u8]) -> Result<Box<dyn Writer>>;

    /// How many bytes there are.
    async fn size(&self, path: &str) -> Result<u64>;

    /// Reads a range that is within the size, and has about so many bytes of it in memory at once, or one piece if
    /// it cannot do with less. Ends with `Missing` where bytes are missing.
    fn read(&self, path: &str, range: Range<u64>, at_once_bytes: usize) -> Pieces;

    /// Removes bytes, complete or not; `state` is that of their last checkpoint, if there was one. Nothing being
    /// there is fine.
    async fn remove(&self, path: &str, state: &[u8]) -> Result<()>;
}

/// Bytes on their way in.
#[async_trait]
pub trait Writer: Send {
    /// Takes the next unit; only the last one may be shorter.
    async fn write(&mut self, unit: Bytes) -> Result<()>;

    /// Waits until everything taken is safe from a crash, and says what is needed to go on from here. After it
    /// the writer may be dropped, or go on.
    async fn checkpoint(&mut self) -> Result<Vec<u8>>;

    /// Makes all that was taken readable, durably.
    async fn finish(self: Box<Self>) -> Result<()>;
}

/// The storages that this server can reach, and which of them gets new bytes.
pub struct Storages {
    by_kind: HashMap<&'static str, Arc<dyn Storage>>,
    default: Arc<dyn Storage>,
    room: Arc<Room>,
}

impl Storages {
    /// `default` gets new bytes; `others` are only read, gone on with, and removed from. All transfers share the
    /// room.
    pub fn new(
        room: Room,
        default: Arc<dyn Storage>,
        others: impl IntoIterator<Item = Arc<dyn Storage>>,
    ) -> Self {
        let all = others.into_iter().chain([Arc::clone(&default)]);
        let by_kind = all.map(|storage| (storage.kind(), storage)).collect();
        Storages { by_kind, default, room: Arc::new(room) }
    }

    pub fn room(&self) -> &Arc<Room> {
        &self.room
    }

    pub fn default(&self) -> &Arc<dyn Storage> {
        &self.default
    }

    /// The storage of bytes that a record speaks of, if they are in one that this server can reach.
    pub fn of(&self, kind: &str, path: &str) -> Option<&Arc<dyn Storage>> {
        self.by_kind.get(kind).filter(|storage| storage.owns(path))
    }
}
