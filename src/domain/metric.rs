//! Points of metrics: which of them are kept, what makes a request the same request again, and what is told of an
//! interval.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::terms::Millis;

/// How far ahead of the server's clock the time of a point may be.
pub const AHEAD_MS: i64 = 60_000;

/// Values of some metrics of an execution at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MetricPoint {
    pub at: Millis,
    pub step_id: Option<i32>,
    /// Instead of `step_id`.
    pub step_key: Option<String>,
    /// Name -> finite number.
    pub metrics: BTreeMap<String, f64>,
}

impl MetricPoint {
    /// Bytes it takes in memory and in the store, roughly.
    pub fn weight(&self) -> usize {
        64 + self.step_key.as_ref().map_or(0, String::len)
            + self.metrics.keys().map(|name| name.len() + 24).sum::<usize>()
    }

    /// Only the metrics of these names; no names: all.
    pub fn only(mut self, names: &[String]) -> Self {
        if !names.is_empty() {
            self.metrics.retain(|name, _| names.contains(name));
        }
        self
    }

    /// What tells this point from others.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        self.feed(&mut hash);
        hash.finalize().into()
    }

    fn feed(&self, hash: &mut Sha256) {
        hash.update(self.at.to_le_bytes());
        hash.update([u8::from(self.step_id.is_some()) + 2 * u8::from(self.step_key.is_some())]);
        hash.update(self.step_id.unwrap_or(0).to_le_bytes());
        if let Some(key) = &self.step_key {
            hash.update((key.len() as u64).to_le_bytes());
            hash.update(key.as_bytes());
        }
        hash.update((self.metrics.len() as u64).to_le_bytes());
        for (name, value) in &self.metrics {
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update(value.to_le_bytes());
        }
    }
}

/// Digest of what a client sent, by which a request that comes again is recognised.
pub fn digest(points: &[MetricPoint]) -> String {
    let mut hash = Sha256::new();
    for point in points {
        point.feed(&mut hash);
    }
    hex::encode(&hash.finalize()[..16])
}

/// How many points of a request were stored and how many were not, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MetricCounts {
    /// They are stored.
    pub accepted: i64,
    /// Of the accepted, those that were there before and were not stored once more.
    pub already_there: i64,
    /// Older than what is kept.
    pub too_old: i64,
    pub in_future: i64,
}

impl MetricCounts {
    pub fn add(&mut self, other: MetricCounts) {
        self.accepted += other.accepted;
        self.already_there += other.already_there;
        self.too_old += other.too_old;
        self.in_future += other.in_future;
    }
}

/// Leaves only the points that are kept, and counts the others: what is older than `kept_ms` would vanish a
/// minute later.
pub fn admit(points: &mut Vec<MetricPoint>, now: Millis, kept_ms: Option<i64>) -> MetricCounts {
    let oldest = kept_ms.map_or(i64::MIN, |kept_ms| now.saturating_sub(kept_ms));
    let newest = now.saturating_add(AHEAD_MS);
    let mut counts = MetricCounts::default();
    points.retain(|point| {
        if point.at < oldest {
            counts.too_old += 1;
        } else if point.at > newest {
            counts.in_future += 1;
        } else {
            counts.accepted += 1;
        }
        (oldest..=newest).contains(&point.at)
    });
    counts
}

/// What was recorded of one metric in one interval.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricInterval {
    pub name: String,
    pub start: Millis,
    pub min: f64,
    pub max: f64,
    pub mean: f64,
    pub last: f64,
    pub count: i64,
}

/// Where the interval that holds a moment begins. Intervals begin at multiples of their length since the epoch.
pub fn interval_start(at: Millis, interval_ms: i64) -> Millis {
    at.saturating_sub(at.rem_euclid(interval_ms))
}

/// Values of one metric in one interval, as they come by time.
#[derive(Debug, Clone)]
pub struct Summary {
    min: f64,
    max: f64,
    last: f64,
    sum: f64,
    /// What rounding took from the sum, so that the mean of many values is exact to the last digit.
    lost: f64,
    count: i64,
}

impl Summary {
    pub fn of(value: f64) -> Self {
        Summary { min: value, max: value, last: value, sum: value, lost: 0.0, count: 1 }
    }

    pub fn add(&mut self, value: f64) {
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.last = value;
        self.count += 1;
        let sum = self.sum + value;
        self.lost += if self.sum.abs() >= value.abs() {
            (self.sum - sum) + value
        } else {
            (value - sum) + self.sum
        };
        self.sum = sum;
    }

    pub fn interval(&self, name: String, start: Millis) -> MetricInterval {
        MetricInterval {
            name,
            start,
            min: self.min,
            max: self.max,
            mean: (self.sum + self.lost) / self.count as f64,
            last: self.last,
            count: self.count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(at: Millis) -> MetricPoint {
        MetricPoint {
            at,
            step_id: None,
            step_key: None,
            metrics: BTreeMap::from([("a".to_owned(), 1.0)]),
        }
    }

    #[test]
    fn what_is_too_old_or_ahead_is_counted_and_left_out() {
        let times = [-1, 0, 99, 100, 1000, 61_000, 61_001];
        let mut points: Vec<_> = times.map(point).to_vec();
        let counts = admit(&mut points, 1000, Some(900));
        assert_eq!((counts.accepted, counts.too_old, counts.in_future), (3, 3, 1));
        let kept: Vec<_> = points.iter().map(|point| point.at).collect();
        assert_eq!(kept, [100, 1000, 61_000]);
        let mut points: Vec<_> = times.map(point).to_vec();
        assert_eq!(admit(&mut points, 1000, None).too_old, 0);
    }

    #[test]
    fn a_digest_tells_every_part_of_a_point() {
        let base = point(1);
        let key = |key: &str| MetricPoint { step_key: Some(key.to_owned()), ..base.clone() };
        let numbered = MetricPoint { step_id: Some(0), ..base.clone() };
        let mut others = vec![point(2), numbered, key("a"), key("")];
        assert_ne!(key("a").digest(), key("b").digest());
        for (name, value) in [("a", 2.0), ("b", 1.0)] {
            let metrics = BTreeMap::from([(name.to_owned(), value)]);
            others.push(MetricPoint { metrics, ..base.clone() });
        }
        for other in others {
            assert_ne!(other.digest(), base.digest(), "{other:?}");
            assert_ne!(digest(&[other]), digest(std::slice::from_ref(&base)));
        }
        assert_ne!(digest(&[base.clone(), base.clone()]), digest(&[base]));
    }

    #[test]
    fn intervals_begin_at_multiples_also_before_1970() {
        assert_eq!(interval_start(3_599_999, 3_600_000), 0);
        assert_eq!(interval_start(-1, 3_600_000), -3_600_000);
        assert_eq!(interval_start(-3_600_000, 3_600_000), -3_600_000);
    }

    #[test]
    fn a_mean_loses_nothing_to_rounding() {
        let mut summary = Summary::of(1e16);
        for _ in 0..9 {
            summary.add(1.0);
        }
        summary.add(-1e16);
        let told = summary.interval("a".to_owned(), 0);
        assert_eq!((told.mean, told.count), (9.0 / 11.0, 11));
        assert_eq!((told.min, told.max, told.last), (-1e16, 1e16, -1e16));
    }
}
