//! Executions that look like those of a year, and questions about them. Everything follows from a number, so that
//! the same data can be asked again by a later run.

use crate::domain::Millis;
use crate::proto;

pub const APPS: u64 = 200;
pub const USERS: u64 = 10_000;
const DAY_MS: i64 = 86_400_000;
const YEAR_MS: i64 = 365 * DAY_MS;
/// Executions that a page has at most.
pub const PAGE: usize = 50;

/// Numbers that look random, the same ones every time (SplitMix64).
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Chance(seed.wrapping_mul(0xd134_2543_de82_ef95))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to less than 1.
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// One of so many, the first ones far more often.
    fn skewed(&mut self, count: u64, skew: i32) -> u64 {
        ((count as f64 * self.part().powi(skew)) as u64).min(count - 1)
    }

    /// Normally distributed, by twelve even ones.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.part()).sum::<f64>() - 6.0
    }

    fn app(&mut self) -> u64 {
        self.skewed(APPS, 2)
    }

    fn user(&mut self) -> u64 {
        self.skewed(USERS, 2)
    }
}

fn time(at: Millis) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: at.div_euclid(1000),
        nanos: (at.rem_euclid(1000) * 1_000_000) as i32,
    }
}

fn app_name(app: u64) -> String {
    format!("stepwell-bench {app}")
}

/// Execution number `number` of a year that ends at `newest`.
pub fn execution(number: u64, newest: Millis) -> proto::Execution {
    let mut chance = Chance::new(number);
    let (app, user) = (chance.app(), chance.user());
    let ago = (chance.part() * YEAR_MS as f64) as i64;
    let started_at = newest - if number == 0 { 0 } else { ago };
    let duration_ms = (8.0 + 1.3 * chance.normal()).exp() as i64;
    let status = match (chance.part() * 1000.0) as u64 {
        0..50 => proto::ExecutionStatus::Failed,
        50..60 => proto::ExecutionStatus::Cancelled,
        _ => proto::ExecutionStatus::Completed,
    };
    let failed = status == proto::ExecutionStatus::Failed;
    proto::Execution {
        execution_id: format!("bench-lists-{number:010}"),
        app_id: Some(app as i32),
        app_name: app_name(app),
        sub_app_id: Some((app % 7) as i32),
        user_id: Some(format!("user {user}")),
        status: status.into(),
        started_at: Some(time(started_at)),
        completed_at: Some(time(started_at + duration_ms)),
        duration_ms: Some(duration_ms),
        error: failed.then(|| proto::Error {
            message: format!("upstream answered 503 after {duration_ms} ms"),
            ..Default::default()
        }),
        created_at: Some(time(started_at)),
        updated_at: Some(time(started_at + duration_ms)),
        ..Default::default()
    }
}

/// A question of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// The latest of a user that have one status.
    OfUser,
    /// What failed in the last 24 hours.
    Failed,
    /// A page of an app in a week.
    OfApp,
}

impl Question {
    pub const ALL: [Self; 3] = [Self::OfUser, Self::Failed, Self::OfApp];

    pub fn name(self) -> &'static str {
        match self {
            Self::OfUser => "user's latest 50 by status",
            Self::Failed => "failed in the last 24 h",
            Self::OfApp => "app page in a window",
        }
    }

    /// The filter of one asking.
    pub fn filter(self, chance: &mut Chance, newest: Millis) -> proto::ExecutionFilter {
        let status = |status: proto::ExecutionStatus| vec![i32::from(status)];
        match self {
            Self::OfUser => proto::ExecutionFilter {
                user_ids: vec![format!("user {}", chance.user())],
                statuses: status(proto::ExecutionStatus::Completed),
                ..Default::default()
            },
            Self::Failed => proto::ExecutionFilter {
                statuses: status(proto::ExecutionStatus::Failed),
                started_at_from: Some(time(newest - DAY_MS)),
                ..Default::default()
            },
            Self::OfApp => {
                let until = newest - (chance.part() * (YEAR_MS - 7 * DAY_MS) as f64) as i64;
                proto::ExecutionFilter {
                    app_names: vec![app_name(chance.app())],
                    started_at_from: Some(time(until - 7 * DAY_MS)),
                    started_at_until: Some(time(until)),
                    ..Default::default()
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_looks_like_a_year() {
        let all: Vec<_> = (0..20_000).map(|number| execution(number, YEAR_MS * 40)).collect();
        assert_eq!(all[7], execution(7, YEAR_MS * 40));
        let failed = i32::from(proto::ExecutionStatus::Failed);
        let failed = all.iter().filter(|record| record.status == failed).count();
        assert!((800..1200).contains(&failed), "{failed}");
        let of_first = all.iter().filter(|record| record.app_id == Some(0)).count();
        assert!((1000..2000).contains(&of_first), "the first of 200 apps has {of_first}");
        let first = all.iter().filter_map(|record| record.started_at).map(|at| at.seconds).min();
        assert!(first.is_some_and(|at| at >= YEAR_MS * 39 / 1000));
    }
}
