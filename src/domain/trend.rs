//! Whether durations moved: two sketches, compared by what their p90 can be told from.
//!
//! The p90 of a sample is only an estimate. Whatever the durations are distributed like, the number of them that are
//! below the true p90 is binomial, which gives two ranks between which it lies with a given confidence (order
//! statistics: W. J. Conover, Practical Nonparametric Statistics, 3.2). Two such intervals that have nothing in common
//! are taken for a change, if it is also large enough to matter.

use super::rollup::Durations;

/// The quantile that is compared.
const QUANTILE: f64 = 0.9;
/// Chance that the true p90 is beyond one end of its interval: 95 % confidence in all.
const TAIL: f64 = 0.025;
/// The standard normal quantile of that.
const DEVIATIONS: f64 = 1.96;
/// Up to here the binomial distribution is summed up, beyond it is normal for all that matters.
const SUMMED_UP_TO: i64 = 250;
/// The least change that matters.
const EFFECT: f64 = 0.10;
/// Fewer durations on a side say nothing.
pub const FEWEST: i64 = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// There are too few durations.
    Unknown,
    Steady,
    Slower,
    Faster,
}

/// Ranks from 1 between which the true p90 of `count` durations lies. An end is `None` where so few durations have none.
fn ranks(count: i64) -> (Option<i64>, Option<i64>) {
    let (lower, upper) = if count <= SUMMED_UP_TO {
        // P(fewer than `rank` of the durations are below the true p90).
        let (mut lower, mut upper) = (0, count + 1);
        let odds = QUANTILE / (1.0 - QUANTILE);
        let mut exactly = (count as f64 * (1.0 - QUANTILE).ln()).exp();
        let mut up_to = 0.0;
        for below in 0..=count {
            up_to += exactly;
            if up_to <= TAIL {
                lower = below + 1;
            }
            if up_to >= 1.0 - TAIL && upper > count {
                upper = below + 1;
            }
            exactly *= odds * (count - below) as f64 / (below + 1) as f64;
        }
        (lower, upper)
    } else {
        let mean = count as f64 * QUANTILE;
        let spread = DEVIATIONS * (mean * (1.0 - QUANTILE)).sqrt();
        ((mean - spread).floor() as i64, (mean + spread).ceil() as i64 + 1)
    };
    ((lower >= 1).then_some(lower), (upper <= count).then_some(upper))
}

/// What became of the p90 from earlier durations to recent ones.
pub fn direction(earlier: &Durations, recent: &Durations) -> Direction {
    let (few, many) = (earlier.count(), recent.count());
    let p90s = earlier.quantile(QUANTILE).zip(recent.quantile(QUANTILE));
    let Some((before, now)) = p90s.filter(|_| few >= FEWEST && many >= FEWEST) else {
        return Direction::Unknown;
    };
    let apart = |low: &Durations, high: &Durations| {
        let end = ranks(low.count()).1.and_then(|rank| low.at_rank(rank));
        let begin = ranks(high.count()).0.and_then(|rank| high.at_rank(rank));
        end.zip(begin).is_some_and(|(end, begin)| end < begin)
    };
    let ratio = now as f64 / before.max(1) as f64;
    if ratio >= 1.0 + EFFECT && apart(earlier, recent) {
        Direction::Slower
    } else if ratio <= 1.0 - EFFECT && apart(recent, earlier) {
        Direction::Faster
    } else {
        Direction::Steady
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(durations: impl IntoIterator<Item = i64>) -> Durations {
        let mut sketch = Durations::default();
        for duration in durations {
            sketch.add(Durations::bucket(duration), 1);
        }
        sketch
    }

    /// Numbers that look random, the same in every run.
    fn noise(seed: u64, count: usize) -> impl Iterator<Item = i64> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        (0..count).map(move |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % 1000) as i64
        })
    }

    #[test]
    fn ranks_are_those_of_the_binomial_distribution() {
        // 0.9^n above 2.5 %: no duration is surely above the p90.
        assert_eq!(ranks(35).1, None);
        assert_eq!(ranks(36).1, Some(36));
        assert_eq!(ranks(100), (Some(84), Some(96)));
        let (summed, normal) = (ranks(250), ranks(251));
        assert!((summed.0.unwrap() - normal.0.unwrap()).abs() <= 2);
        assert!((summed.1.unwrap() - normal.1.unwrap()).abs() <= 2);
    }

    #[test]
    fn a_clear_change_is_told_and_no_change_is_not() {
        let usual = || sample(noise(1, 300).map(|n| 1000 + n));
        assert_eq!(
            direction(&usual(), &sample(noise(2, 200).map(|n| 1000 + n))),
            Direction::Steady
        );
        assert_eq!(direction(&usual(), &sample(noise(3, 60).map(|n| 2000 + n))), Direction::Slower);
        assert_eq!(direction(&usual(), &sample(noise(4, 60).map(|n| 400 + n))), Direction::Faster);
        // Significant, but too small to matter.
        let many = sample((0..20_000).map(|n| 1000 + n % 50));
        let hardly = sample((0..20_000).map(|n| 1060 + n % 50));
        assert_eq!(direction(&many, &hardly), Direction::Steady);
        // One slow run among few is no trend.
        let one = sample(noise(5, 30).map(|n| 1000 + n).chain([90_000]));
        assert_eq!(direction(&usual(), &one), Direction::Steady);
    }

    #[test]
    fn few_durations_say_nothing() {
        let few = sample([1000; 19]);
        let many = sample([9000; 500]);
        assert_eq!(direction(&few, &many), Direction::Unknown);
        assert_eq!(direction(&many, &Durations::default()), Direction::Unknown);
        assert_eq!(direction(&sample([0; 50]), &sample([0; 50])), Direction::Steady);
    }

    #[test]
    fn false_alarms_are_rare() {
        let mut alarms = 0;
        for run in 0..400 {
            let earlier = sample(noise(run * 2 + 7, 150).map(|n| 1000 + n * n / 200));
            let recent = sample(noise(run * 2 + 8, 50).map(|n| 1000 + n * n / 200));
            let told = direction(&earlier, &recent);
            alarms += u32::from(matches!(told, Direction::Slower | Direction::Faster));
        }
        assert!(alarms <= 8, "{alarms} of 400");
    }
}
