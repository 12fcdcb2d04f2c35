//! The bounded queue between the log and one watcher. A full queue first forgets intermediate states of records,
//! never the latest; when that is not enough it takes nothing more, and the watcher goes on from the log.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::event::Event;
use super::resolve::Later;
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
    Ended(End),
}

/// What became of an event that was pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    Queued,
    Full,
    /// Nobody will take anything any more.
    Gone,
}

/// A queue with one reader.
#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    drained: Notify,
    bounds: Bounds,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    end: Option<End>,
    closed: bool,
    waker: Option<Waker>,
}

impl State {
    fn fits(&self, event: &Event, bounds: &Bounds) -> bool {
        self.events.is_empty()
            || (self.events.len() < bounds.events && self.bytes + event.weight() <= bounds.bytes)
    }

    fn add(&mut self, event: &Arc<Event>) -> Option<Waker> {
        self.bytes += event.weight();
        self.events.push_back(Arc::clone(event));
        self.waker.take()
    }

    /// Keeps the newest event of each record, of steps also the newest before the end of their execution, in order.
    fn coalesce(&mut self) -> usize {
        let before = self.events.len();
        let mut seen = HashSet::with_capacity(before);
        let mut later = Later::default();
        let mut kept = VecDeque::with_capacity(before);
        for event in self.events.drain(..).rev() {
            // A deletion and what comes after it are both facts: never merged away.
            let deleted = event.kind == store::ChangeKind::Deleted;
            let ends = later.ends(&event.key, event.record.as_ref());
            if seen.insert((event.key.clone(), ends)) || deleted {
                kept.push_front(event);
            }
        }
        self.events = kept;
        self.bytes = self.events.iter().map(|event| event.weight()).sum();
        before - self.events.len()
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Queue {
    pub fn new(bounds: Bounds) -> Self {
        Queue { state: Mutex::default(), drained: Notify::new(), bounds }
    }

    /// Adds an event, coalescing if it has to. The number is how many were coalesced. `Full` is the end of the
    /// queue: its reader goes on from the log.
    pub fn push(&self, event: &Arc<Event>) -> (usize, Pushed) {
        let mut state = self.state.lock();
        if state.closed {
            return (0, Pushed::Gone);
        }
        if state.end.is_some() {
            return (0, Pushed::Full);
        }
        let mut coalesced = 0;
        if !state.fits(event, &self.bounds) {
            coalesced = state.coalesce();
            // Half empty at least, or the next pushes would coalesce again and again.
            let roomy = state.events.len() <= self.bounds.events / 2
                && state.bytes + event.weight() <= self.bounds.bytes;
            if !roomy && !state.events.is_empty() {
                state.end = Some(End::Full);
                let waker = state.waker.take();
                drop(state);
                wake(waker);
                return (coalesced, Pushed::Full);
            }
        }
        let waker = state.add(event);
        drop(state);
        wake(waker);
        (coalesced, Pushed::Queued)
    }

    /// Adds an event if there is room.
    pub fn try_push(&self, event: &Arc<Event>) -> Pushed {
        let mut state = self.state.lock();
        if state.closed || state.end.is_some() {
            return Pushed::Gone;
        }
        if !state.fits(event, &self.bounds) {
            return Pushed::Full;
        }
        let waker = state.add(event);
        drop(state);
        wake(waker);
        Pushed::Queued
    }

    /// Says that nothing more comes. The first end counts.
    pub fn end(&self, end: End) {
        let mut state = self.state.lock();
        state.end.get_or_insert(end);
        let waker = state.waker.take();
        drop(state);
        wake(waker);
    }

    /// Says that nobody will take anything any more.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.events = VecDeque::new();
        state.bytes = 0;
        drop(state);
        self.drained.notify_one();
    }

    /// What is there to take just now.
    #[cfg(test)]
    pub fn next(&self) -> Option<Next> {
        let mut state = self.state.lock();
        self.take(&mut state)
    }

    fn take(&self, state: &mut State) -> Option<Next> {
        match state.events.pop_front() {
            Some(event) => {
                state.bytes -= event.weight().min(state.bytes);
                self.drained.notify_one();
                Some(Next::Event(event))
            }
            None => state.end.take().map(Next::Ended),
        }
    }

    /// Takes the next event, or the end once all events are taken, waiting for it. One reader at a time.
    pub fn poll_next(&self, context: &Context<'_>) -> Poll<Next> {
        let mut state = self.state.lock();
        match self.take(&mut state) {
            Some(next) => Poll::Ready(next),
            None => {
                match &mut state.waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    none => *none = Some(context.waker().clone()),
                }
                Poll::Pending
            }
        }
    }

    /// Empty and open.
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.events.is_empty() && state.end.is_none()
    }

    /// Waits until something was taken. One waiter at a time.
    pub async fn drained(&self) {
        self.drained.notified().await;
    }
}
