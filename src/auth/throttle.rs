//! How often: calls of one key, and bad credentials from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Bad credentials from one address within `WINDOW` beyond which further bad ones are not looked into.
pub const BAD_MOST: u32 = 20;
pub const WINDOW: Duration = Duration::from_secs(10);
/// Addresses that are remembered. Beyond it those whose window has passed are forgotten, then all.
const ADDRESSES_MOST: usize = 10_000;

/// Calls that may come now, and how fast more may.
#[derive(Debug)]
pub struct Bucket {
    per_second: f64,
    burst: f64,
    level: Mutex<(f64, Instant)>,
}

impl Bucket {
    pub fn new(per_second: f64, burst: Option<i32>, now: Instant) -> Bucket {
        let burst = burst.map_or_else(|| per_second.max(1.0), f64::from).max(1.0);
        Bucket { per_second, burst, level: Mutex::new((burst, now)) }
    }

    /// Takes one call; else how long until there is one.
    pub fn take(&self, now: Instant) -> Result<(), Duration> {
        let mut level = self.level.lock();
        let passed = now.saturating_duration_since(level.1).as_secs_f64();
        level.0 = (level.0 + passed * self.per_second).min(self.burst);
        level.1 = level.1.max(now);
        if level.0 >= 1.0 {
            level.0 -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64(((1.0 - level.0) / self.per_second).clamp(0.001, 3600.0)))
    }
}

/// Bad credentials, by address.
#[derive(Debug, Default)]
pub struct BadOnes(Mutex<HashMap<Option<IpAddr>, (Instant, u32)>>);

impl BadOnes {
    /// Counts a bad one. `Some`: there were too many, and how long until it is counted anew.
    pub fn count(&self, address: Option<IpAddr>, now: Instant) -> Option<Duration> {
        let mut all = self.0.lock();
        if all.len() >= ADDRESSES_MOST && !all.contains_key(&address) {
            all.retain(|_, (since, _)| now.saturating_duration_since(*since) < WINDOW);
            if all.len() >= ADDRESSES_MOST {
                all.clear();
            }
        }
        let (since, count) = all.entry(address).or_insert((now, 0));
        let passed = now.saturating_duration_since(*since);
        if passed >= WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        (*count > BAD_MOST).then(|| WINDOW.saturating_sub(passed).max(Duration::from_millis(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock as _, SystemClock};

    #[test]
    fn a_bucket_fills_up_as_time_passes() {
        let start = SystemClock.instant();
        let at = |ms| start + Duration::from_millis(ms);
        let bucket = Bucket::new(10.0, Some(2), start);
        assert!(bucket.take(at(0)).is_ok() && bucket.take(at(0)).is_ok());
        let wait = bucket.take(at(0)).unwrap_err();
        assert!((90..=110).contains(&wait.as_millis()), "{wait:?}");
        assert!(bucket.take(at(100)).is_ok() && bucket.take(at(110)).is_err());
        assert!(bucket.take(at(60_000)).is_ok() && bucket.take(at(60_000)).is_ok());
        assert!(bucket.take(at(60_000)).is_err(), "no more than the burst is saved up");
    }

    #[test]
    fn bad_ones_are_counted_by_address() {
        let start = SystemClock.instant();
        let bad = BadOnes::default();
        let (one, other) = (Some(IpAddr::from([10, 0, 0, 1])), Some(IpAddr::from([10, 0, 0, 2])));
        for _ in 0..BAD_MOST {
            assert_eq!(bad.count(one, start), None);
        }
        assert!(bad.count(one, start + Duration::from_secs(3)).is_some());
        assert_eq!(bad.count(other, start), None);
        assert_eq!(bad.count(one, start + WINDOW), None, "a new window");
    }
}
