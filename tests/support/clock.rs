//! The machine's clock with a time of day that a test may set.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use stepwell::clock::{Clock, SystemClock};
use stepwell::domain::Now;

/// How far it is ahead of the machine's.
#[derive(Debug, Default)]
pub struct SetClock(AtomicI64);

impl SetClock {
    pub fn set_ahead_ms(&self, ms: i64) {
        self.0.store(ms, Ordering::SeqCst);
    }
}

impl Clock for SetClock {
    fn now(&self) -> Now {
        Now { micros: SystemClock.now().micros + self.0.load(Ordering::SeqCst) * 1000 }
    }

    fn instant(&self) -> Instant {
        SystemClock.instant()
    }
}
