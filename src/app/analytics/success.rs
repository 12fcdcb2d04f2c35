//! How many executions of each group there are, by status.

use super::tallies::ALWAYS;
use super::{Analytics, Freshness, Summary};
use crate::app::error::Result;
use crate::app::rollups::Apart;
use crate::domain::calendar::Window;
use crate::domain::query::ExecutionFilter;
use crate::domain::rollup::Group;

impl Analytics {
    /// By number of executions, most first.
    pub async fn success_rates(
        &self,
        filter: &ExecutionFilter,
        apart: Apart,
    ) -> Result<(Vec<(Group, Summary)>, Freshness)> {
        let slot = match (filter.started_at_from, filter.started_at_until) {
            (None, None) => ALWAYS,
            (from, until) => {
                Window { from: from.unwrap_or(i64::MIN), until: until.unwrap_or(i64::MAX) }
            }
        };
        let mut source = self.source(filter, true).await?;
        let rows = self.tallies(filter, &[slot], apart, false, &mut source).await?;
        let mut groups: Vec<(Group, Summary)> =
            rows.into_iter().map(|row| (row.group, Summary::of(&row.tallies))).collect();
        groups.sort_by(|(a, x), (b, y)| y.executions.cmp(&x.executions).then_with(|| a.cmp(b)));
        Ok((groups, source.freshness))
    }
}
