//! How fast work that nobody waits for may go: without a rest while nobody else writes, and else resting as long as
//! it worked.
//!
//! Whether anybody writes is seen in two places: what this server has written for its callers, and whether the
//! newest records of the database are still the same, which other servers and programs change.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::store::retention::RetentionStore;

/// How much this server has written so far for its callers.
pub type Applied = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Fewer writes of this server than that in a second hardly meet a batch: signs of life, a lone client.
const FEW_A_SECOND: f64 = 10.0;
/// How long a writer is expected to come back.
const BUSY: Duration = Duration::from_secs(3);
/// The longest rest.
const LONGEST: Duration = Duration::from_secs(2);

/// The pace of one run.
pub(super) struct Pace {
    store: Arc<dyn RetentionStore>,
    applied: Applied,
    seen: Seen,
}

impl Pace {
    pub fn new(store: Arc<dyn RetentionStore>, applied: Applied) -> Self {
        let seen = Seen::new(applied(), Instant::now());
        Pace { store, applied, seen }
    }

    /// How long to rest after so much work.
    pub async fn rest(&mut self, worked: Duration) -> Duration {
        // A store that does not tell is one to be careful with.
        let newest = self.store.newest().await.ok();
        let busy = self.seen.is_busy((self.applied)(), newest, Instant::now());
        if busy { worked.min(LONGEST) } else { Duration::ZERO }
    }
}

/// What there was to see of others the last time.
struct Seen {
    applied: u64,
    newest: Option<Vec<u8>>,
    at: Instant,
    busy_until: Instant,
}

impl Seen {
    /// Nobody knows yet who writes.
    fn new(applied: u64, at: Instant) -> Self {
        Seen { applied, newest: None, at, busy_until: at + BUSY }
    }

    fn is_busy(&mut self, applied: u64, newest: Option<Vec<u8>>, now: Instant) -> bool {
        let few = FEW_A_SECOND * now.duration_since(self.at).as_secs_f64().max(1.0);
        let changed = newest.is_none() || (self.newest.is_some() && self.newest != newest);
        if changed || applied.saturating_sub(self.applied) as f64 > few {
            self.busy_until = now + BUSY;
        }
        // A look a moment later must not see a part of a second as few.
        if now.duration_since(self.at) >= Duration::from_secs(1) {
            (self.applied, self.at) = (applied, now);
        }
        self.newest = newest;
        now < self.busy_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rests_while_anybody_writes_and_a_while_longer() {
        let start = Instant::now();
        let second = |n: u64| start + Duration::from_millis(1000 * n + 1);
        let newest = |n: u8| Some(vec![n]);
        let mut seen = Seen::new(1000, start);
        assert!(seen.is_busy(1000, newest(1), second(0)), "nobody knows yet");
        assert!(!seen.is_busy(1000, newest(1), second(4)), "nobody wrote");
        assert!(!seen.is_busy(1009, newest(1), second(5)), "signs of life");
        assert!(seen.is_busy(1100, newest(1), second(6)), "writers here");
        assert!(seen.is_busy(1100, newest(1), second(8)), "they may come back");
        assert!(!seen.is_busy(1100, newest(1), second(10)), "they did not");
        assert!(seen.is_busy(1100, newest(2), second(11)), "writers elsewhere");
        assert!(!seen.is_busy(1100, newest(2), second(15)));
        assert!(seen.is_busy(1100, None, second(16)), "the store does not tell");
    }

    #[test]
    fn many_looks_in_a_second_add_up() {
        let start = Instant::now();
        let mut seen = Seen::new(0, start);
        assert!(!seen.is_busy(0, Some(vec![]), start + Duration::from_secs(5)));
        let looks = (1..=8).map(|n| {
            let at = start + Duration::from_millis(5000 + 100 * n);
            seen.is_busy(2 * n, Some(vec![]), at)
        });
        assert_eq!(looks.filter(|busy| *busy).count(), 3, "from the eleventh write on");
    }
}
