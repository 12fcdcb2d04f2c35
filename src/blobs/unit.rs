//! The unit of a storage that is being filled. A large one (a part of S3 has 5 MiB at least) is filled in memory only
//! as long as there is room for it, and otherwise in a file without a name: fifty clients that send slowly take
//! no memory, and nobody waits for them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::room::{Buffer, Held, Room};
use super::{Error, PIECE_BYTES, Result};

/// Room is asked for in such steps, so that small artifacts take little.
const STEP_BYTES: usize = 256 * 1024;

/// What has come of a unit.
pub struct Unit {
    room: Arc<Room>,
    /// When it is full.
    full_bytes: usize,
    bytes: usize,
    kept: Kept,
}

enum Kept {
    Nothing,
    /// At most a piece. Of a small unit it is what every transfer may have; of a large one it has room.
    Small {
        bytes: BytesMut,
        held: Option<Held>,
        room_for: usize,
    },
    Large {
        buffer: Buffer,
        held: Held,
    },
    Disk(Arc<File>),
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        // The disk is full, or nothing may be written there, which may pass.
        Ok(done) => done.map_err(|error| Error::Unavailable(error.into())),
        Err(error) => Err(Error::Failed(error.into())),
    }
}

impl Unit {
    pub fn new(room: Arc<Room>, full_bytes: usize) -> Self {
        Unit { room, full_bytes, bytes: 0, kept: Kept::Nothing }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub fn is_full(&self) -> bool {
        self.bytes == self.full_bytes
    }

    /// Takes as much of a chunk as there is place for, and leaves the rest.
    pub async fn take(&mut self, chunk: &mut Bytes) -> Result<()> {
        let part = chunk.split_to(chunk.len().min(self.full_bytes - self.bytes));
        let after = self.bytes + part.len();
        self.make_room(after).await?;
        match &mut self.kept {
            Kept::Nothing => {}
            Kept::Small { bytes, .. } => bytes.extend_from_slice(&part),
            Kept::Large { buffer, .. } => buffer.bytes.extend_from_slice(&part),
            Kept::Disk(file) => {
                let (file, at) = (Arc::clone(file), self.bytes as u64);
                blocking(move || file.write_all_at(&part, at)).await?;
            }
        }
        self.bytes = after;
        Ok(())
    }

    /// Finds a place for so many bytes, which are more than before.
    async fn make_room(&mut self, wanted: usize) -> Result<()> {
        if matches!(self.kept, Kept::Nothing) {
            let bytes = BytesMut::with_capacity(self.full_bytes.min(PIECE_BYTES));
            self.kept = Kept::Small { bytes, held: None, room_for: 0 };
        }
        let Kept::Small { bytes, held, room_for } = &mut self.kept else { return Ok(()) };
        if self.full_bytes <= PIECE_BYTES || wanted <= *room_for {
            return Ok(());
        }
        if wanted <= PIECE_BYTES {
            let more = (wanted - *room_for).next_multiple_of(STEP_BYTES);
            if let Some(spare) = self.room.spare(more) {
                *room_for += more;
                match held {
                    Some(held) => held.and(spare),
                    None => *held = Some(spare),
                }
                return Ok(());
            }
        } else if let Some(held) = self.room.spare(self.full_bytes) {
            let mut buffer = self.room.buffer(self.full_bytes);
            buffer.bytes.extend_from_slice(bytes);
            self.kept = Kept::Large { buffer, held };
            return Ok(());
        }
        let so_far = std::mem::take(bytes);
        let file = blocking(move || {
            let file = tempfile::tempfile()?;
            file.write_all_at(&so_far, 0)?;
            Ok(file)
        });
        self.kept = Kept::Disk(Arc::new(file.await?));
        Ok(())
    }

    /// What has come, all in memory and with room for it, for the storage to take. The next unit begins.
    pub async fn end(&mut self) -> Result<Bytes> {
        let length = std::mem::take(&mut self.bytes);
        match std::mem::replace(&mut self.kept, Kept::Nothing) {
            Kept::Nothing => Ok(Bytes::new()),
            Kept::Small { bytes, held: None, .. } => Ok(bytes.freeze()),
            Kept::Small { bytes, held: Some(held), .. } => Ok(held.with(bytes)),
            Kept::Large { buffer, held } => Ok(buffer.freeze(held)),
            Kept::Disk(file) => {
                let turn = self.room.turn(length).await;
                let turn =
                    turn.ok_or_else(|| Error::Failed("a unit larger than the room".into()))?;
                let mut buffer = self.room.buffer(self.full_bytes);
                let read = blocking(move || {
                    buffer.bytes.resize(length, 0);
                    file.read_exact_at(&mut buffer.bytes, 0)?;
                    Ok(buffer)
                });
                Ok(read.await?.freeze(turn))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = 3 * PIECE_BYTES;

    fn chunk(seed: u8, length: usize) -> Bytes {
        (0..length).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect()
    }

    async fn fill(unit: &mut Unit, chunks: &[Bytes]) {
        for chunk in chunks {
            let mut chunk = chunk.clone();
            unit.take(&mut chunk).await.unwrap();
            assert!(chunk.is_empty());
        }
    }

    #[tokio::test]
    async fn a_unit_that_there_is_no_room_for_goes_over_the_disk() {
        let room = Arc::new(Room::with(2 * PIECE_BYTES + LARGE, LARGE));
        let chunks = [chunk(1, PIECE_BYTES), chunk(2, 7), chunk(3, 2 * PIECE_BYTES - 7)];
        let (mut one, mut other) = (Unit::new(room.clone(), LARGE), Unit::new(room.clone(), LARGE));
        // Both begin in memory; the second has no room to go on, the first has.
        fill(&mut other, &chunks[..1]).await;
        fill(&mut one, &chunks[..2]).await;
        fill(&mut other, &chunks[1..]).await;
        assert!(matches!(other.kept, Kept::Disk(_)));
        fill(&mut one, &chunks[2..]).await;
        assert!(matches!(one.kept, Kept::Large { .. }));
        let expected = chunks.concat();
        for unit in [&mut one, &mut other] {
            assert!(unit.is_full());
            assert_eq!(unit.end().await.unwrap(), expected);
            assert!(unit.is_empty());
        }
        assert!(room.spare(2 * PIECE_BYTES + LARGE).is_some(), "all room is free again");
    }

    #[tokio::test]
    async fn who_waits_for_a_turn_gets_it_when_a_storage_has_taken_the_bytes() {
        let room = Arc::new(Room::with(0, LARGE));
        let (mut one, mut other) = (Unit::new(room.clone(), LARGE), Unit::new(room.clone(), LARGE));
        let chunks = [chunk(1, LARGE)];
        fill(&mut one, &chunks).await;
        fill(&mut other, &chunks).await;
        let sent = one.end().await.unwrap();
        let mut waiting = std::pin::pin!(other.end());
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        drop(sent);
        assert_eq!(waiting.await.unwrap(), chunks[0]);
    }

    #[tokio::test]
    async fn small_units_need_no_room_and_chunks_are_split_between_units() {
        let room = Arc::new(Room::with(0, 0));
        let mut unit = Unit::new(Arc::clone(&room), PIECE_BYTES);
        let mut chunk = chunk(1, PIECE_BYTES + 5);
        unit.take(&mut chunk).await.unwrap();
        assert!(unit.is_full());
        assert_eq!(chunk.len(), 5);
        assert_eq!(unit.end().await.unwrap().len(), PIECE_BYTES);
    }
}
