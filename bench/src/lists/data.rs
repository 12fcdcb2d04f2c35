//! The executions that lists are read from: 200 apps and 10,000 users of very different size, a year of times, a few
//! failures. Every number has its execution, the same in every run, so a set that was kept can be read again.

use bson::{Document, doc};

use crate::dice::{Dice, Skewed, mixed};
use stepwell::domain::{ExecutionStatus, Millis};

pub const APPS: usize = 200;
pub const USERS: usize = 10_000;
/// What the ids of all these executions begin with.
pub const PREFIX: &str = "bench-lists-";
/// Greater than every id that begins with it, and smaller than all that follow those.
pub const AFTER_PREFIX: &str = "bench-lists.";
pub const DAY_MS: Millis = 24 * 60 * 60 * 1000;
/// When the year ends: 2026-01-01 00:00 UTC. Nothing starts later.
pub const END: Millis = 1_767_225_600_000;
const YEAR_MS: Millis = 365 * DAY_MS;
/// How many executions a set can have. Each step adds to the one before, from the beginning of the year to its end.
pub const SIZES: [u64; 5] = [2_000, 20_000, 100_000, 1_000_000, 10_000_000];

const MODELS: [&str; 5] = ["gpt-large", "gpt-small", "sonnet", "haiku", "local-7b"];
const REGIONS: [&str; 4] = ["eu-west", "us-east", "us-west", "ap-south"];
const ERRORS: [&str; 6] = [
    "the model did not answer within 60 s",
    "rate limit of the provider exceeded",
    "the answer is no valid JSON",
    "tool `search` returned 502 Bad Gateway",
    "context length of 128000 tokens exceeded",
    "out of memory",
];

/// Number of an app, 0 being the busiest. Every tenth has a name alone.
pub fn app_id(app: usize) -> Option<i32> {
    (app % 10 != 9).then(|| 1000 + i32::try_from(app).unwrap_or_default())
}

pub fn app_name(app: usize) -> String {
    format!("bench-app-{app:03}")
}

/// A user, 0 being the busiest.
pub fn user_id(user: usize) -> String {
    format!("user-{user:05}@example.com")
}

/// One execution.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub execution_id: String,
    pub app: usize,
    pub sub_app: Option<i32>,
    pub user: usize,
    pub status: ExecutionStatus,
    pub started_at: Millis,
    /// Not of one that is running.
    pub duration_ms: Option<i64>,
    pub error: Option<&'static str>,
    pub model: &'static str,
    pub region: &'static str,
    pub tokens: i64,
}

impl Run {
    pub fn completed_at(&self) -> Option<Millis> {
        self.duration_ms.map(|duration| self.started_at + duration)
    }

    pub fn metadata(&self) -> Document {
        doc! {
            "model": self.model,
            "region": self.region,
            "tokens": self.tokens,
            "options": { "temperature": 0.2, "stream": true },
        }
    }
}

/// All of them.
#[derive(Debug)]
pub struct Runs {
    apps: Skewed,
    users: Skewed,
}

/// Id of an execution. They follow no order, as those that servers make.
pub fn execution_id(number: u64) -> String {
    format!("{PREFIX}{:016x}", mixed(number))
}

/// When an execution starts: those of one step of `SIZES` one after the other, from one end of the year to the other.
fn started_at(number: u64, dice: &mut Dice) -> Millis {
    let end = SIZES.into_iter().find(|size| number < *size).unwrap_or(u64::MAX);
    let begin = SIZES.into_iter().rfind(|size| *size <= number).unwrap_or(0);
    let place = ((number - begin) as f64 + dice.fraction()) / (end - begin) as f64;
    let since = (YEAR_MS as f64 * place) as Millis;
    (END - YEAR_MS + since).min(END - 1)
}

impl Runs {
    pub fn new() -> Self {
        Runs { apps: Skewed::new(APPS), users: Skewed::new(USERS) }
    }

    pub fn get(&self, number: u64) -> Run {
        let mut dice = Dice::new(number);
        let started_at = started_at(number, &mut dice);
        let app = self.apps.choose(&mut dice);
        let user = self.users.choose(&mut dice);
        let sub_app = (app % 5 < 3).then(|| 1 + i32::try_from(dice.below(5)).unwrap_or_default());
        // Half take less than 20 s, 1 of 20 more than 4 minutes.
        let duration = (20_000.0 * (1.5 * dice.normal()).exp()).min(DAY_MS as f64) as i64;
        let (status, error) = match dice.below(100) {
            _ if started_at + duration >= END => (ExecutionStatus::Running, None),
            0..5 => (ExecutionStatus::Failed, Some(ERRORS[dice.below(ERRORS.len())])),
            5..7 => (ExecutionStatus::Cancelled, None),
            _ => (ExecutionStatus::Completed, None),
        };
        Run {
            execution_id: execution_id(number),
            app,
            sub_app,
            user,
            status,
            started_at,
            duration_ms: (status != ExecutionStatus::Running).then_some(duration),
            error,
            model: MODELS[dice.below(MODELS.len())],
            region: REGIONS[dice.below(REGIONS.len())],
            tokens: i64::try_from(200 + dice.below(30_000)).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_set_looks_like_a_year_of_real_use() {
        let runs = Runs::new();
        let all: Vec<Run> = (0..20_000).map(|number| runs.get(number)).collect();
        assert_eq!(all[77], Runs::new().get(77));
        let ids: HashSet<&str> = all.iter().map(|run| run.execution_id.as_str()).collect();
        assert_eq!(ids.len(), all.len());
        assert!(ids.iter().all(|id| (PREFIX..AFTER_PREFIX).contains(id)));
        let share = |test: &dyn Fn(&Run) -> bool| {
            all.iter().filter(|run| test(run)).count() as f64 / all.len() as f64
        };
        let failed = share(&|run| run.status == ExecutionStatus::Failed);
        assert!((0.04..0.06).contains(&failed), "{failed}");
        let busiest = share(&|run| run.app == 0);
        assert!((0.15..0.19).contains(&busiest), "{busiest}");
        assert!(share(&|run| run.app == APPS - 1) < 0.003);
        let short = share(&|run| run.duration_ms.is_some_and(|duration| duration < 20_000));
        assert!((0.47..0.53).contains(&short), "{short}");
        let last_day = share(&|run| run.started_at >= END - DAY_MS);
        assert!((0.002..0.0035).contains(&last_day), "{last_day}");
        assert!(all.iter().all(|run| (END - YEAR_MS..END).contains(&run.started_at)));
    }

    #[test]
    fn what_runs_at_the_end_has_no_end_yet() {
        let runs = Runs::new();
        // The last hour of the largest set.
        let last = SIZES[SIZES.len() - 1];
        let all: Vec<Run> = (last - 1_000..last).map(|number| runs.get(number)).collect();
        let running = all.iter().filter(|run| run.status == ExecutionStatus::Running);
        assert!((1..200).contains(&running.clone().count()));
        assert!(running.clone().all(|run| run.completed_at().is_none() && run.error.is_none()));
        let ended = all.iter().filter_map(Run::completed_at);
        assert!(ended.clone().all(|at| at < END));
    }
}
