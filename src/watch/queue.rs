//! The bounded queue between the log and one watcher. A full queue first forgets intermediate states of records,
//! never the latest; when that is not enough it takes nothing more, and the watcher goes on from the log.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::event::Event;
use crate::store;

/// Bounds of a queue. One event always fits.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub events: usize,
    pub bytes: usize,
}

/// Why no more events will come through a queue.
#[derive(Debug)]
pub enum End {
    /// It was full: go on from the log after what is in it.
    Full,
    /// Everything that was asked for is in it.
    Done,
    /// The log could not be read.
    Failed(store::Error),
}

/// What a look into a queue found.
#[derive(Debug)]
pub enum Next {
    Event(Arc<Event>),
    Empty,
    Ended(End),
}

#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    filled: Notify,
    drained: Notify,
    bounds: Bounds,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    end: Option<End>,
}

impl State {
    fn fits(&self, event: &Event, bounds: &Bounds) -> bool {
        self.events.is_empty()
            || (self.events.len() < bounds.events && self.bytes + event.weight <= bounds.bytes)
    }

    /// Keeps the newest event of each record, in order.
    fn coalesce(&mut self) -> usize {
        let before = self.events.len();
        let mut seen = HashSet::with_capacity(before);
        let mut kept = VecDeque::with_capacity(before);
        for event in self.events.drain(..).rev() {
            // A deletion and what comes after it are both facts: never merged away.
            let deleted = event.kind == store::ChangeKind::Deleted;
            if seen.insert(event.key.clone()) || deleted {
                kept.push_front(event);
            }
        }
        self.events = kept;
        self.bytes = self.events.iter().map(|event| event.weight).sum();
        before - self.events.len()
    }
}

impl Queue {
    pub fn new(bounds: Bounds) -> Self {
        Queue { state: Mutex::default(), filled: Notify::new(), drained: Notify::new(), bounds }
    }

    /// Adds an event, coalescing if it has to. The numbers are how many were coalesced, and whether the queue has
    /// ended because it is full.
    pub fn push(&self, event: &Arc<Event>) -> (usize, bool) {
        let mut state = self.state.lock();
        if state.end.is_some() {
            return (0, true);
        }
        let mut coalesced = 0;
        if !state.fits(event, &self.bounds) {
            coalesced = state.coalesce();
            // Half empty at least, or the next pushes would coalesce again and again.
            let roomy = state.events.len() <= self.bounds.events / 2
                && state.bytes + event.weight <= self.bounds.bytes;
            if !roomy && !state.events.is_empty() {
                state.end = Some(End::Full);
                drop(state);
                self.filled.notify_one();
                return (coalesced, true);
            }
        }
        state.bytes += event.weight;
        state.events.push_back(Arc::clone(event));
        drop(state);
        self.filled.notify_one();
        (coalesced, false)
    }

    /// Adds an event if there is room.
    pub fn try_push(&self, event: &Arc<Event>) -> bool {
        let mut state = self.state.lock();
        if state.end.is_some() || !state.fits(event, &self.bounds) {
            return false;
        }
        state.bytes += event.weight;
        state.events.push_back(Arc::clone(event));
        drop(state);
        self.filled.notify_one();
        true
    }

    /// Says that nothing more comes. The first end counts.
    pub fn end(&self, end: End) {
        self.state.lock().end.get_or_insert(end);
        self.filled.notify_one();
    }

    /// Takes the next event, or the end once all events are taken.
    pub fn next(&self) -> Next {
        let mut state = self.state.lock();
        match state.events.pop_front() {
            Some(event) => {
                state.bytes -= event.weight.min(state.bytes);
                drop(state);
                self.drained.notify_one();
                Next::Event(event)
            }
            None => match state.end.take() {
                Some(end) => Next::Ended(end),
                None => Next::Empty,
            },
        }
    }

    /// Empty and open.
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.events.is_empty() && state.end.is_none()
    }

    /// Waits until there may be something to take. One waiter at a time.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Waits until something was taken. One waiter at a time.
    pub async fn drained(&self) {
        self.drained.notified().await;
    }
}
