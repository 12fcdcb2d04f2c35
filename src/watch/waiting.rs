//! Who waits for history, and how many readers there are for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::queue::Queue;
use super::subscriber::Subscriber;
use crate::store::Cursor;

/// A watcher's wish: everything after `from` up to `until`, into the queue.
pub struct Request {
    pub subscriber: Arc<Subscriber>,
    pub from: Cursor,
    pub until: Cursor,
    pub queue: Arc<Queue>,
}

/// Readers of history.
pub struct CatchUp {
    pub(super) waiting: Mutex<Vec<Request>>,
    pub(super) running: AtomicUsize,
    pub(super) most: usize,
}

impl CatchUp {
    pub fn new(most: usize) -> Self {
        CatchUp { waiting: Mutex::default(), running: AtomicUsize::new(0), most: most.max(1) }
    }

    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    pub(super) fn others_wait(&self) -> bool {
        !self.waiting.lock().is_empty()
    }

    pub(super) fn take(&self) -> Option<Vec<Request>> {
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() {
            // Under the lock: who comes next sees the free place.
            self.running.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(std::mem::take(&mut *waiting))
    }

    /// Those who wait for what a reader at this place will read anyhow.
    pub(super) fn take_after(&self, cursor: &Cursor) -> Vec<Request> {
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() {
            return Vec::new();
        }
        let (taken, kept) = waiting.drain(..).partition(|request| request.from >= *cursor);
        *waiting = kept;
        taken
    }
}
