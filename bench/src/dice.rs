//! Numbers that look random and are the same in every run.

use std::f64::consts::TAU;

/// A number that looks random; another one for every other number (SplitMix64).
pub fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Numbers that look random, the same ones for the same seed.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Dice(mixed(seed))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    /// From 0 to below 1.
    pub fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0 to below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        ((self.fraction() * end as f64) as usize).min(end.saturating_sub(1))
    }

    /// Of a normal distribution (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.fraction()).ln()).sqrt();
        radius * (TAU * self.fraction()).cos()
    }
}

/// Choices of which the first is the most frequent: number n comes 1/n times as often (Zipf).
#[derive(Debug)]
pub struct Skewed(Vec<f64>);

impl Skewed {
    pub fn new(choices: usize) -> Self {
        let mut sum = 0.0;
        let up_to = (1..=choices).map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        });
        Skewed(up_to.collect())
    }

    pub fn choose(&self, dice: &mut Dice) -> usize {
        let Some(sum) = self.0.last() else { return 0 };
        let at = dice.fraction() * sum;
        self.0.partition_point(|up_to| *up_to <= at).min(self.0.len() - 1)
    }
}
