//! How fast a client sends while the server waits for it.

use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// What has to come in the time that a client may keep the server waiting.
const PROGRESS_BYTES: usize = 64 * 1024;

/// The pace of one stream.
pub struct Pace {
    /// Since when fewer than `PROGRESS_BYTES` have come.
    since: Instant,
    bytes: usize,
    /// When the reader went away with what it was given.
    away: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    pub fn new() -> Pace {
        Pace { since: Instant::now(), bytes: 0, away: None, timer: None }
    }

    /// Counts from now on.
    pub fn begin(&mut self) {
        (self.since, self.bytes, self.timer) = (Instant::now(), 0, None);
    }

    pub fn came(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= PROGRESS_BYTES {
            self.begin();
        }
    }

    /// The reader works on what it was given: nobody waits for the client.
    pub fn goes_away(&mut self) {
        self.away = Some(Instant::now());
    }

    pub fn comes_back(&mut self) {
        if let Some(away) = self.away.take() {
            self.since += away.elapsed();
        }
    }

    /// Nothing is due any more.
    pub fn stop(&mut self) {
        self.timer = None;
    }

    /// Whether too little has come for so long; else the waker is woken when that may be so.
    pub fn is_over(&mut self, idle: Duration, waker: &Waker) -> bool {
        let due = self.since + idle;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(&mut Context::from_waker(waker)).is_ready()
    }
}
