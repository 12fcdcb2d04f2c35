//! Time as a parameter: the only place that reads the machine's clocks. The time of day is for what is stored and
//! shown, and may jump; how long something takes, and when it is due, is measured by the monotonic clock.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::domain::Now;

/// Tells the time.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The time of day. It goes back when somebody sets the machine's clock back.
    fn now(&self) -> Now;

    /// The monotonic time: never goes back, whatever happens to the time of day.
    fn instant(&self) -> Instant;

    /// The monotonic time that has passed since then.
    fn elapsed(&self, since: Instant) -> Duration {
        self.instant().saturating_duration_since(since)
    }
}

/// The machine's clocks.
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

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the clock that everybody else is handed"
    )]
    fn instant(&self) -> Instant {
        Instant::now()
    }
}

/// A clock that tests move by hand.
#[derive(Debug)]
pub struct ManualClock {
    micros: AtomicI64,
    began: Instant,
    passed_micros: AtomicU64,
}

impl ManualClock {
    pub fn at(micros: i64) -> Self {
        let began = SystemClock.instant();
        ManualClock { micros: AtomicI64::new(micros), began, passed_micros: AtomicU64::new(0) }
    }

    /// Time passes.
    pub fn advance_ms(&self, ms: i64) {
        let passed =
            u64::try_from(ms).expect("time passes forward; `set` is for what a person does");
        self.passed_micros.fetch_add(passed * 1000, Ordering::SeqCst);
        self.micros.fetch_add(ms * 1000, Ordering::SeqCst);
    }

    /// Somebody sets the time of day, which takes no time.
    pub fn set(&self, micros: i64) {
        self.micros.store(micros, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Now {
        Now { micros: self.micros.load(Ordering::SeqCst) }
    }

    fn instant(&self) -> Instant {
        self.began + Duration::from_micros(self.passed_micros.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_goes_on_while_the_time_of_day_goes_back() {
        let clock = ManualClock::at(10_000_000);
        let began = clock.instant();
        clock.advance_ms(1500);
        assert_eq!((clock.now().micros, clock.elapsed(began).as_millis()), (11_500_000, 1500));
        clock.set(4_000_000);
        assert_eq!((clock.now().micros, clock.elapsed(began).as_millis()), (4_000_000, 1500));
        clock.advance_ms(500);
        assert_eq!((clock.now().micros, clock.elapsed(began).as_millis()), (4_500_000, 2000));
    }

    #[test]
    fn what_lies_ahead_has_not_begun() {
        let clock = ManualClock::at(0);
        assert_eq!(clock.elapsed(clock.instant() + Duration::from_secs(1)), Duration::ZERO);
    }
}
