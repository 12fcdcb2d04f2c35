//! The memory that all transfers of a server share. What a transfer cannot do without, a piece or two of at most
//! `PIECE_BYTES`, it just takes. Everything beyond that is asked for here, and there are two ways to ask, so that
//! no transfer ever waits for the client of another one:
//!
//! - `spare` is there or not. Who gets none reads nothing ahead, or fills a unit on the disk (`unit`).
//! - `turn` waits, in order. It is given back as soon as a storage has taken the bytes, whatever clients do.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::domain::limits::{TRANSFER_SPARE_BYTES, TRANSFER_TURN_BYTES};

/// The room of one server.
pub struct Room {
    spare: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    turn_bytes: usize,
    buffers: Mutex<Buffers>,
}

/// Large blocks of memory. They are used again: what many threads take from the allocator and give back to it does
/// not go back to the machine soon.
#[derive(Default)]
struct Buffers {
    free: Vec<Vec<u8>>,
    used: usize,
}

/// A part of the room, until it is dropped.
pub struct Held(OwnedSemaphorePermit);

impl Default for Room {
    fn default() -> Self {
        Self::with(TRANSFER_SPARE_BYTES, TRANSFER_TURN_BYTES)
    }
}

impl Room {
    pub fn with(spare_bytes: usize, turn_bytes: usize) -> Self {
        let semaphore = |bytes| Arc::new(Semaphore::new(bytes));
        let (spare, turns) = (semaphore(spare_bytes), semaphore(turn_bytes));
        Room { spare, turns, turn_bytes, buffers: Mutex::default() }
    }

    /// Room for something that can be done without, if there is some.
    pub fn spare(&self, bytes: usize) -> Option<Held> {
        let bytes = u32::try_from(bytes).ok()?;
        Arc::clone(&self.spare).try_acquire_many_owned(bytes).ok().map(Held)
    }

    /// Room for bytes that a storage takes now. `None`: there never is so much.
    pub async fn turn(&self, bytes: usize) -> Option<Held> {
        let bytes = u32::try_from(bytes).ok().filter(|_| bytes <= self.turn_bytes)?;
        Arc::clone(&self.turns).acquire_many_owned(bytes).await.ok().map(Held)
    }

    /// An empty buffer for so many bytes. Who takes one has room for all of them, so there never are many.
    pub fn buffer(self: &Arc<Self>, capacity: usize) -> Buffer {
        let mut buffers = self.buffers.lock();
        buffers.used += 1;
        let mut bytes = buffers.free.pop().unwrap_or_default();
        drop(buffers);
        bytes.reserve_exact(capacity);
        Buffer { bytes, room: Arc::clone(self) }
    }
}

/// A large block of memory, until it is dropped.
pub struct Buffer {
    pub bytes: Vec<u8>,
    room: Arc<Room>,
}

impl Buffer {
    /// Its bytes, for which this room was taken: both are free again when the last copy of them is dropped.
    pub fn freeze(self, held: Held) -> Bytes {
        held.with(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut buffers = self.room.buffers.lock();
        buffers.used -= 1;
        buffers.free.push(bytes);
        if buffers.used == 0 {
            // All transfers are over, or none needs so much.
            buffers.free = Vec::new();
        }
    }
}

impl Held {
    /// One of both together. They are of the same kind.
    pub fn and(&mut self, more: Held) {
        self.0.merge(more.0);
    }

    /// The bytes for which this was taken: the room is free again when the last copy of them is dropped.
    pub fn with(self, bytes: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        Bytes::from_owner(Owned { bytes, _held: self })
    }
}

struct Owned<T> {
    bytes: T,
    _held: Held,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Owned<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn room_is_free_again_with_the_last_copy_of_its_bytes() {
        let room = Arc::new(Room::with(10, 10));
        let mut held = room.spare(4).unwrap();
        held.and(room.spare(6).unwrap());
        assert!(room.spare(1).is_none());
        let mut buffer = room.buffer(10);
        buffer.bytes.extend_from_slice(&[7; 10]);
        let bytes = buffer.freeze(held);
        let part = bytes.slice(3..4);
        drop(bytes);
        assert!(room.spare(1).is_none());
        drop(part);
        assert!(room.spare(10).is_some());
        // Turns have nothing to do with it.
        let _all = room.spare(10).unwrap();
        assert!(room.turn(10).await.is_some());
        assert!(room.turn(11).await.is_none());
    }

    #[test]
    fn buffers_are_used_again_and_go_with_the_last_one() {
        let room = Arc::new(Room::with(10, 10));
        let first = room.buffer(1000);
        let second = room.buffer(1000);
        let place = second.bytes.as_ptr();
        drop(second);
        let third = room.buffer(1000);
        assert_eq!(third.bytes.as_ptr(), place);
        assert!(third.bytes.is_empty());
        drop(first);
        assert_eq!(room.buffers.lock().free.len(), 1);
        drop(third);
        assert_eq!(room.buffers.lock().free.len(), 0);
    }
}
