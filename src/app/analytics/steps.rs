//! The steps that take longest. Rollups do not count steps that went well, so executions and their steps are read.

use std::collections::HashMap;

use futures::{StreamExt as _, stream};

use super::tallies::ALWAYS;
use super::{Analytics, Freshness, Source};
use crate::app::error::Result;
use crate::domain::calendar::Window;
use crate::domain::query::{ExecutionFilter, StepQuery};
use crate::domain::rollup::{Durations, Group};
use crate::domain::{Execution, Step, StepStatus};

/// Steps read for one answer.
const STEPS: usize = 200_000;
/// Steps read at a time.
const AT_ONCE: usize = 1_000;
/// Executions whose steps are read at the same time.
const TOGETHER: usize = 8;

pub struct SlowStep {
    pub app: Group,
    pub step_name: String,
    pub count: i64,
    pub failed: i64,
    pub timed: i64,
    pub mean_ms: f64,
    pub p50_ms: i64,
    pub p90_ms: i64,
    pub p99_ms: i64,
    pub max_ms: i64,
    /// The one that took longest.
    pub execution_id: String,
    pub step_id: i32,
}

pub struct SlowSteps {
    /// By p90, longest first.
    pub steps: Vec<SlowStep>,
    pub steps_read: usize,
    pub freshness: Freshness,
}

#[derive(Default)]
struct Sum {
    count: i64,
    failed: i64,
    timed: i64,
    sum_ms: i64,
    durations: Durations,
    longest: Option<(i64, String, i32)>,
}

impl Sum {
    fn add(&mut self, step: Step) {
        self.count += 1;
        self.failed += i64::from(step.status == Some(StepStatus::Failed));
        let Some(duration) = step.duration_ms.map(|duration| duration.max(0)) else { return };
        self.timed += 1;
        self.sum_ms = self.sum_ms.saturating_add(duration);
        self.durations.add(Durations::bucket(duration), 1);
        if self.longest.as_ref().is_none_or(|(longest, ..)| duration > *longest) {
            self.longest = Some((duration, step.execution_id, step.step_id));
        }
    }
}

impl Analytics {
    pub async fn slowest_steps(
        &self,
        filter: &ExecutionFilter,
        max_executions: usize,
    ) -> Result<SlowSteps> {
        let window = match (filter.started_at_from, filter.started_at_until) {
            (None, None) => ALWAYS,
            (from, until) => {
                Window { from: from.unwrap_or(i64::MIN), until: until.unwrap_or(i64::MAX) }
            }
        };
        let Source { mut freshness, .. } = self.records_only();
        freshness.unreadable = self.app.unreadable_executions().await?;
        let mut sums: HashMap<(Group, String), Sum> = HashMap::new();
        let mut steps_read = 0;
        let mut budget = self.budget(max_executions).await;
        let mut scan = self.scan(filter, window);
        'all: while let Some(executions) = scan.next(&mut budget).await? {
            let mut read = stream::iter(executions)
                .map(|execution| self.steps_of(execution))
                .buffered(TOGETHER);
            while let Some(of_one) = read.next().await {
                let (execution, steps, all) = of_one?;
                let app = Group {
                    app_id: execution.app_id,
                    app_name: execution.app_name.clone(),
                    ..Group::default()
                };
                steps_read += steps.len();
                for step in steps {
                    sums.entry((app.clone(), step.step_name.clone())).or_default().add(step);
                }
                if !all || steps_read >= STEPS {
                    budget.cut_at(execution.started_at);
                }
                if steps_read >= STEPS {
                    break 'all;
                }
            }
        }
        budget.settle(&mut freshness);
        let step = |((app, step_name), sum): ((Group, String), Sum)| {
            let (max_ms, execution_id, step_id) = sum.longest?;
            Some(SlowStep {
                app,
                step_name,
                count: sum.count,
                failed: sum.failed,
                timed: sum.timed,
                mean_ms: sum.sum_ms as f64 / sum.timed as f64,
                p50_ms: sum.durations.quantile(0.5)?.min(max_ms),
                p90_ms: sum.durations.quantile(0.9)?.min(max_ms),
                p99_ms: sum.durations.quantile(0.99)?.min(max_ms),
                max_ms,
                execution_id,
                step_id,
            })
        };
        let mut steps: Vec<SlowStep> = sums.into_iter().filter_map(step).collect();
        steps.sort_by(|a, b| {
            (b.p90_ms, b.max_ms)
                .cmp(&(a.p90_ms, a.max_ms))
                .then_with(|| (&a.app, &a.step_name).cmp(&(&b.app, &b.step_name)))
        });
        Ok(SlowSteps { steps, steps_read, freshness })
    }

    /// The steps of an execution, and whether these are all.
    async fn steps_of(&self, execution: Execution) -> Result<(Execution, Vec<Step>, bool)> {
        let mut steps: Vec<Step> = Vec::new();
        let mut after = None;
        loop {
            let query = StepQuery {
                execution_id: execution.execution_id.clone(),
                statuses: Vec::new(),
                after,
                limit: AT_ONCE,
                examine: AT_ONCE * 2,
                payloads: None,
            };
            let page = self.app.store().steps(&query).await?;
            steps.extend(page.records);
            match page.next {
                None => return Ok((execution, steps, true)),
                Some(_) if steps.len() >= STEPS / TOGETHER => return Ok((execution, steps, false)),
                next => after = next,
            }
        }
    }
}
