//! Counting and timing: what happened between two moments, and medians of such rounds.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;

/// Clients share this many histograms, so that thousands of them stay small and none waits for another.
const SHARDS: usize = 16;
/// Error messages kept of one round; all are counted.
const MESSAGES: usize = 8;
/// The longest latency told apart, in microseconds.
const LONGEST_US: u64 = 120_000_000;

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, 3)
        .expect("the bounds are constants that the histogram accepts")
}

/// Collects what clients report. Counts between `begin` and `end` only, except errors, which always count.
#[derive(Debug)]
pub struct Recorder {
    measuring: AtomicBool,
    began: Mutex<Instant>,
    shards: Vec<Mutex<Shard>>,
}

#[derive(Debug)]
struct Shard {
    latencies: Histogram<u64>,
    bytes: u64,
    errors: u64,
    messages: Vec<String>,
}

impl Shard {
    fn new() -> Self {
        Shard { latencies: histogram(), bytes: 0, errors: 0, messages: Vec::new() }
    }
}

impl Recorder {
    pub fn new() -> Self {
        Recorder {
            measuring: AtomicBool::new(false),
            began: Mutex::new(Instant::now()),
            shards: (0..SHARDS).map(|_| Mutex::new(Shard::new())).collect(),
        }
    }

    pub fn is_measuring(&self) -> bool {
        self.measuring.load(Ordering::Relaxed)
    }

    /// Something of `bytes` bytes was done after `latency`, by client number `client`.
    pub fn done(&self, client: usize, latency: Duration, bytes: usize) {
        if !self.is_measuring() {
            return;
        }
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let mut shard = self.shards[client % SHARDS].lock();
        shard.latencies.saturating_record(us.max(1));
        shard.bytes += bytes as u64;
    }

    pub fn failed(&self, client: usize, message: impl std::fmt::Display) {
        let mut shard = self.shards[client % SHARDS].lock();
        shard.errors += 1;
        if shard.messages.len() < MESSAGES {
            let message = message.to_string();
            if !shard.messages.contains(&message) {
                shard.messages.push(message);
            }
        }
    }

    /// From now on it counts.
    pub fn begin(&self) {
        *self.began.lock() = Instant::now();
        self.measuring.store(true, Ordering::SeqCst);
    }

    /// What happened since `begin`. Errors that come later count in the next round.
    pub fn end(&self) -> Measured {
        let seconds = self.began.lock().elapsed().as_secs_f64();
        self.measuring.store(false, Ordering::SeqCst);
        let mut measured =
            Measured { seconds, latencies: histogram(), bytes: 0, errors: 0, messages: Vec::new() };
        for shard in &self.shards {
            let shard = std::mem::replace(&mut *shard.lock(), Shard::new());
            measured.latencies += &shard.latencies;
            measured.bytes += shard.bytes;
            measured.take_errors(shard.errors, shard.messages);
        }
        measured
    }

    /// Adds errors that came after `end` to what it returned.
    pub fn add_late_errors(&self, measured: &mut Measured) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let messages = std::mem::take(&mut shard.messages);
            measured.take_errors(std::mem::take(&mut shard.errors), messages);
        }
    }
}

/// What happened in one round.
#[derive(Debug, Clone)]
pub struct Measured {
    pub seconds: f64,
    pub latencies: Histogram<u64>,
    pub bytes: u64,
    pub errors: u64,
    pub messages: Vec<String>,
}

impl Measured {
    fn take_errors(&mut self, errors: u64, messages: Vec<String>) {
        self.errors += errors;
        for message in messages {
            if self.messages.len() < MESSAGES && !self.messages.contains(&message) {
                self.messages.push(message);
            }
        }
    }

    pub fn count(&self) -> u64 {
        self.latencies.len()
    }

    pub fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.seconds.max(f64::EPSILON)
    }

    pub fn latency(&self) -> Latency {
        let at = |quantile: f64| self.latencies.value_at_quantile(quantile) as f64 / 1000.0;
        if self.latencies.is_empty() {
            return Latency::default();
        }
        Latency {
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            max_ms: self.latencies.max() as f64 / 1000.0,
        }
    }
}

/// Half, nine tenths, 99 of 100 and all were at least as quick as this.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latency {
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl Latency {
    /// Each figure's median over the rounds, but the worst of the maxima.
    pub fn of_rounds(rounds: &[Latency]) -> Self {
        let of = |pick: fn(&Latency) -> f64| median(rounds.iter().map(pick));
        Latency {
            p50_ms: of(|latency| latency.p50_ms),
            p90_ms: of(|latency| latency.p90_ms),
            p99_ms: of(|latency| latency.p99_ms),
            max_ms: rounds.iter().map(|latency| latency.max_ms).fold(0.0, f64::max),
        }
    }
}

/// The middle one; of an even number the mean of the two in the middle. 0 of none.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_do_not_care_for_order() {
        for (values, expected) in [
            (vec![], 0.0),
            (vec![3.0], 3.0),
            (vec![9.0, 1.0, 5.0], 5.0),
            (vec![4.0, 1.0, 2.0, 100.0], 3.0),
        ] {
            assert_eq!(median(values.iter().copied()), expected, "{values:?}");
        }
    }

    #[test]
    fn only_what_happens_between_begin_and_end_counts_but_every_error_does() {
        let recorder = Recorder::new();
        recorder.done(0, Duration::from_millis(1), 10);
        recorder.failed(0, "early");
        recorder.begin();
        recorder.done(1, Duration::from_millis(2), 10);
        recorder.done(17, Duration::from_millis(4), 10);
        recorder.failed(3, "amid");
        let mut measured = recorder.end();
        recorder.done(0, Duration::from_millis(8), 10);
        recorder.failed(0, "late");
        recorder.add_late_errors(&mut measured);
        assert_eq!((measured.count(), measured.bytes, measured.errors), (2, 20, 3));
        assert_eq!(measured.messages, ["early", "amid", "late"]);
        let max_ms = measured.latency().max_ms;
        assert!((4.0..4.01).contains(&max_ms), "{max_ms}");
        assert_eq!(recorder.end().errors, 0);
    }
}
