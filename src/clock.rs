//! Time as a parameter: the only place that reads the system clock.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::domain::Now;

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Now;
}

/// The machine's clock.
#[derive(Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the clock that everybody else is handed"
    )]
    fn now(&self) -> Now {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { micros: i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX) }
    }
}

/// A clock that tests move by hand.
#[derive(Debug, Default)]
pub struct ManualClock {
    micros: AtomicI64,
}

impl ManualClock {
    pub fn at(micros: i64) -> Self {
        ManualClock { micros: AtomicI64::new(micros) }
    }

    pub fn advance_ms(&self, ms: i64) {
        self.micros.fetch_add(ms * 1000, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Now {
        Now { micros: self.micros.load(Ordering::SeqCst) }
    }
}
