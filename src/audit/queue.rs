//! Records that wait to be stored, in order.

use std::collections::VecDeque;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::domain::audit::Entry;

/// Records that are stored together.
const TOGETHER: usize = 500;
const TOGETHER_BYTES: usize = 1024 * 1024;
pub type Told = oneshot::Sender<(i64, OwnedSemaphorePermit)>;

/// A record that waits.
pub struct Queued {
    pub entry: Entry,
    /// Of what is begun, until it has ended.
    pub slot: Option<OwnedSemaphorePermit>,
    /// Whoever waits for it.
    pub told: Option<Told>,
}

/// What waits to be stored.
#[derive(Default)]
pub struct Queue {
    waiting: VecDeque<Queued>,
    /// Those that nobody has a place for but this.
    notes: usize,
    closed: bool,
}

impl Queue {
    /// False: nothing is stored any more.
    pub fn wait_for(&mut self, entry: Entry, slot: OwnedSemaphorePermit, told: Told) -> bool {
        if !self.closed {
            self.waiting.push_back(Queued { entry, slot: Some(slot), told: Some(told) });
        }
        !self.closed
    }

    pub fn end(&mut self, entry: Entry, slot: OwnedSemaphorePermit) {
        if !self.closed {
            self.waiting.push_back(Queued { entry, slot: Some(slot), told: None });
        }
    }

    /// `Some`: there is no room.
    pub fn note(&mut self, entry: Entry, most: usize) -> Option<Entry> {
        if self.notes >= most {
            return Some(entry);
        }
        if !self.closed {
            self.notes += 1;
            self.waiting.push_back(Queued { entry, slot: None, told: None });
        }
        None
    }

    /// The next ones. Those whose callers wait no more are not done, and left out.
    pub fn take(&mut self) -> Vec<Queued> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(next) = self.waiting.front() {
            bytes += next.entry.weight();
            if taken.len() >= TOGETHER || (!taken.is_empty() && bytes > TOGETHER_BYTES) {
                break;
            }
            let Some(next) = self.waiting.pop_front() else { break };
            if next.slot.is_none() {
                self.notes -= 1;
            }
            if next.told.as_ref().is_none_or(|told| !told.is_closed()) {
                taken.push(next);
            }
        }
        taken
    }

    pub fn put_back(&mut self, taken: Vec<Queued>) {
        for queued in taken.into_iter().rev() {
            if queued.slot.is_none() {
                self.notes += 1;
            }
            self.waiting.push_front(queued);
        }
    }

    pub fn somebody_waits(&self) -> bool {
        self.waiting.iter().any(|queued| queued.told.is_some())
    }

    /// Those who wait are told that it cannot be.
    pub fn give_up_waiting(&mut self) {
        self.waiting.retain(|queued| queued.told.is_none());
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Nothing is stored any more.
    pub fn close(&mut self) {
        self.closed = true;
    }
}
