//! How fast work that nobody waits for may go: without a rest while nobody else needs the database, and else resting in
//! proportion to what it worked.
//!
//! Whether anybody writes is seen in two places: what this server has written for its callers, and, where the work
//! asks for it, whether the newest records of the database are still the same, which other servers and programs
//! change.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much this server has written so far for its callers.
pub type Applied = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The longest rest.
const LONGEST: Duration = Duration::from_secs(2);

/// How a kind of work gives way.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// Writes of this server in a second that are not worth a rest.
    few_a_second: f64,
    /// They are counted over this time at least: a look a moment later must not see a part of a second as few.
    counted_over: Duration,
    /// How long a writer is expected to come back. Also at the beginning, when nobody knows yet who writes.
    busy_for: Duration,
    /// The rest as a multiple of the work.
    factor: u32,
}

/// Following the log: it is behind as long as anybody writes much, and catches up when they are done.
pub const FOLLOWING: Manner = Manner {
    few_a_second: 300.0,
    counted_over: Duration::ZERO,
    busy_for: Duration::ZERO,
    factor: 5,
};

/// Deleting what is not kept: there is no hurry at all. Fewer writes than that hardly meet a batch: signs of life, a
/// lone client.
pub const EXPIRING: Manner = Manner {
    few_a_second: 10.0,
    counted_over: Duration::from_secs(1),
    busy_for: Duration::from_secs(3),
    factor: 1,
};

/// What the database's newest records tell of other writers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Newest {
    NotAsked,
    /// A store that does not tell is one to be careful with.
    Unknown,
    /// Another value once anybody has written.
    Is(Vec<u8>),
}

/// The pace of one piece of work.
pub struct Pace {
    manner: Manner,
    applied: Applied,
    /// How much was applied the last time it was counted, and when that was.
    counted: (u64, Instant),
    newest: Option<Vec<u8>>,
    busy_until: Instant,
}

impl Pace {
    pub fn new(manner: Manner, applied: Applied, now: Instant) -> Self {
        let counted = (applied(), now);
        Pace { manner, applied, counted, newest: None, busy_until: now + manner.busy_for }
    }

    /// How long to rest after so much work.
    pub fn rest(&mut self, worked: Duration, newest: Newest, now: Instant) -> Duration {
        match self.is_busy(newest, now) {
            true => (worked * self.manner.factor).min(LONGEST),
            false => Duration::ZERO,
        }
    }

    /// Whether others need the database more.
    fn is_busy(&mut self, newest: Newest, now: Instant) -> bool {
        let applied = (self.applied)();
        let (before, at) = self.counted;
        let passed = now.duration_since(at).max(self.manner.counted_over);
        let many =
            applied.saturating_sub(before) as f64 > self.manner.few_a_second * passed.as_secs_f64();
        let changed = match newest {
            Newest::NotAsked => false,
            Newest::Unknown => {
                self.newest = None;
                true
            }
            Newest::Is(newest) => {
                let before = self.newest.replace(newest);
                before.is_some() && before != self.newest
            }
        };
        if now.duration_since(at) >= self.manner.counted_over {
            self.counted = (applied, now);
        }
        if many || changed {
            self.busy_until = now + self.manner.busy_for;
        }
        many || changed || now < self.busy_until
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::clock::{Clock as _, SystemClock};

    fn pace(manner: Manner, start: Instant, before: u64) -> (Pace, Arc<AtomicU64>) {
        let count = Arc::new(AtomicU64::new(before));
        let applied = Arc::clone(&count);
        let applied: Applied = Arc::new(move || applied.load(Ordering::Relaxed));
        (Pace::new(manner, applied, start), count)
    }

    #[test]
    fn it_rests_while_anybody_writes_and_a_while_longer() {
        let start = SystemClock.instant();
        let second = |n: u64| start + Duration::from_millis(1000 * n + 1);
        let newest = |n: u8| Newest::Is(vec![n]);
        let (mut pace, count) = pace(EXPIRING, start, 1000);
        let mut is_busy = |applied, newest, at| {
            count.store(applied, Ordering::Relaxed);
            pace.is_busy(newest, at)
        };
        assert!(is_busy(1000, newest(1), second(0)), "nobody knows yet");
        assert!(!is_busy(1000, newest(1), second(4)), "nobody wrote");
        assert!(!is_busy(1009, newest(1), second(5)), "signs of life");
        assert!(is_busy(1100, newest(1), second(6)), "writers here");
        assert!(is_busy(1100, newest(1), second(8)), "they may come back");
        assert!(!is_busy(1100, newest(1), second(10)), "they did not");
        assert!(is_busy(1100, newest(2), second(11)), "writers elsewhere");
        assert!(!is_busy(1100, newest(2), second(15)));
        assert!(is_busy(1100, Newest::Unknown, second(16)), "the store does not tell");
        assert!(is_busy(1100, Newest::Unknown, second(20)), "it still does not");
    }

    #[test]
    fn many_looks_in_a_second_add_up() {
        let start = SystemClock.instant();
        let (mut pace, count) = pace(EXPIRING, start, 0);
        assert!(!pace.is_busy(Newest::Is(vec![]), start + Duration::from_secs(5)));
        let looks = (1..=8).map(|n| {
            let at = start + Duration::from_millis(5000 + 100 * n);
            count.store(2 * n, Ordering::Relaxed);
            pace.is_busy(Newest::Is(vec![]), at)
        });
        assert_eq!(looks.filter(|busy| *busy).count(), 3, "from the eleventh write on");
    }

    #[test]
    fn what_follows_the_log_gives_way_only_to_what_was_written_meanwhile() {
        let start = SystemClock.instant();
        let (mut pace, count) = pace(FOLLOWING, start, 0);
        let at = |ms| start + Duration::from_millis(ms);
        assert!(!pace.is_busy(Newest::NotAsked, at(100)), "nothing");
        count.store(31, Ordering::Relaxed);
        assert!(pace.is_busy(Newest::NotAsked, at(200)), "310 in a second");
        count.store(60, Ordering::Relaxed);
        assert!(!pace.is_busy(Newest::NotAsked, at(300)), "290 in a second");
        count.store(1000, Ordering::Relaxed);
        assert_eq!(pace.rest(Duration::from_secs(1), Newest::NotAsked, at(400)), LONGEST);
    }
}
