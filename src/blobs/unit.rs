//! The unit of a storage that is being filled. A part of S3 has 5 MiB at least, so fifty uploads whose clients send
//! slowly would hold hundreds of megabytes. Only a few units at a time are filled in memory; others in files without
//! a name, which go with the process. So nobody waits for the client of another upload.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Error, Result};

/// A unit up to this size is always filled in memory.
const SMALL_BYTES: usize = 1024 * 1024;
/// Larger units that are filled in memory at a time.
const IN_MEMORY: usize = 12;
/// Units that are read back from their files at a time. Each is handed to its storage at once.
const READ_BACK: usize = 4;

/// The memory that all uploads of a server share.
pub struct Room {
    memory: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

impl Default for Room {
    fn default() -> Self {
        Room::of(IN_MEMORY, READ_BACK)
    }
}

impl Room {
    fn of(memory: usize, turns: usize) -> Self {
        Room { memory: Arc::new(Semaphore::new(memory)), turns: Arc::new(Semaphore::new(turns)) }
    }
}

/// What has come of a unit.
pub struct Unit {
    room: Arc<Room>,
    bytes: usize,
    length: usize,
    kept: Kept,
}

enum Kept {
    Nothing,
    Memory(BytesMut, Option<OwnedSemaphorePermit>),
    File(Arc<File>),
}

/// A whole unit, with its share of the memory.
pub struct Filled {
    pub bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        // The disk is full, or nothing may be written there: that may pass.
        Ok(done) => done.map_err(|error| Error::Unavailable(error.into())),
        Err(error) => Err(Error::Failed(error.into())),
    }
}

impl Unit {
    /// An empty unit of this size.
    pub fn new(room: Arc<Room>, bytes: usize) -> Self {
        Unit { room, bytes, length: 0, kept: Kept::Nothing }
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How much more goes into it.
    pub fn missing(&self) -> usize {
        self.bytes - self.length
    }

    /// Adds bytes, no more than are missing.
    pub async fn push(&mut self, bytes: Bytes) -> Result<()> {
        if matches!(self.kept, Kept::Nothing) {
            self.kept = self.begin().await?;
        }
        let offset = self.length as u64;
        self.length += bytes.len();
        match &mut self.kept {
            Kept::Nothing => {}
            Kept::Memory(kept, _) => kept.extend_from_slice(&bytes),
            Kept::File(file) => {
                let file = Arc::clone(file);
                blocking(move || file.write_all_at(&bytes, offset)).await?;
            }
        }
        Ok(())
    }

    async fn begin(&self) -> Result<Kept> {
        if self.bytes <= SMALL_BYTES {
            return Ok(Kept::Memory(BytesMut::with_capacity(self.bytes), None));
        }
        match Arc::clone(&self.room.memory).try_acquire_owned() {
            Ok(room) => Ok(Kept::Memory(BytesMut::with_capacity(self.bytes), Some(room))),
            Err(_) => Ok(Kept::File(Arc::new(blocking(tempfile::tempfile).await?))),
        }
    }

    /// What has come so far, and begins anew.
    pub async fn take(&mut self) -> Result<Filled> {
        let length = std::mem::take(&mut self.length);
        match std::mem::replace(&mut self.kept, Kept::Nothing) {
            Kept::Nothing => Ok(Filled { bytes: Bytes::new(), _room: None }),
            Kept::Memory(bytes, room) => Ok(Filled { bytes: bytes.freeze(), _room: room }),
            Kept::File(file) => {
                let turn = Arc::clone(&self.room.turns).acquire_owned().await;
                let turn = turn.map_err(|error| Error::Failed(error.into()))?;
                let read = blocking(move || {
                    let mut bytes = vec![0; length];
                    file.read_exact_at(&mut bytes, 0)?;
                    Ok(bytes)
                });
                Ok(Filled { bytes: read.await?.into(), _room: Some(turn) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = 3 * SMALL_BYTES;

    async fn filled(room: &Arc<Room>, bytes: usize, seed: u8) -> Unit {
        let mut unit = Unit::new(Arc::clone(room), bytes);
        while unit.missing() > 0 {
            let piece = unit.missing().min(700_000);
            unit.push(Bytes::from(vec![seed.wrapping_add(unit.missing() as u8); piece]))
                .await
                .unwrap();
        }
        unit
    }

    #[tokio::test]
    async fn a_unit_is_the_same_in_memory_and_in_a_file() {
        let room = Arc::new(Room::of(1, 1));
        let mut first = filled(&room, LARGE, 5).await;
        let mut second = filled(&room, LARGE, 5).await;
        assert!(matches!(first.kept, Kept::Memory(..)));
        assert!(matches!(second.kept, Kept::File(_)));
        let read_back = second.take().await.unwrap();
        assert_eq!(first.take().await.unwrap().bytes, read_back.bytes);
        assert_eq!(read_back.bytes.len(), LARGE);
        // Begun anew, and there is room again.
        assert!(second.is_empty());
        second.push(Bytes::from_static(b"abc")).await.unwrap();
        assert!(matches!(second.kept, Kept::Memory(..)));
        assert_eq!(second.take().await.unwrap().bytes, Bytes::from_static(b"abc"));
        assert_eq!(second.take().await.unwrap().bytes, Bytes::new());
    }

    #[tokio::test]
    async fn small_units_take_no_room() {
        let room = Arc::new(Room::of(0, 0));
        let mut unit = filled(&room, SMALL_BYTES, 1).await;
        assert_eq!(unit.take().await.unwrap().bytes.len(), SMALL_BYTES);
    }
}
