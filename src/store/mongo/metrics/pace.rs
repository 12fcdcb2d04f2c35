//! How much the database is asked to compute at a time.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Hours of which figures are computed in one query; fewer where that takes too long.
pub const HOURS_AT_ONCE: usize = 100;

/// How many hours were computed in one query without trouble.
pub struct Pace(AtomicUsize);

impl Default for Pace {
    fn default() -> Self {
        Pace(AtomicUsize::new(HOURS_AT_ONCE))
    }
}

impl Pace {
    pub fn hours(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Fewer hours after a query that was too long, a little more after each that was not.
    pub fn learn(&self, hours: usize, succeeded: bool) {
        let next = match succeeded {
            true => (self.hours() + hours.div_ceil(4)).min(HOURS_AT_ONCE),
            false => (hours / 2).max(1),
        };
        self.0.store(next, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_that_was_too_long_is_made_shorter() {
        let pace = Pace::default();
        assert_eq!(pace.hours(), HOURS_AT_ONCE);
        for hours in [100, 50, 25, 12, 6, 3, 1] {
            pace.learn(hours, false);
        }
        assert_eq!(pace.hours(), 1);
        pace.learn(1, false);
        assert_eq!(pace.hours(), 1);
        for _ in 0..40 {
            pace.learn(pace.hours(), true);
        }
        assert_eq!(pace.hours(), HOURS_AT_ONCE);
    }
}
