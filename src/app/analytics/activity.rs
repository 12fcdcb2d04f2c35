//! When users start executions: by hour of the week.

use std::collections::{BTreeMap, HashMap};

use super::{Analytics, Freshness};
use crate::app::error::Result;
use crate::app::rollups::Apart;
use crate::domain::calendar::{Window, Zone};
use crate::domain::query::ExecutionFilter;

/// The window when the filter has none.
const DEFAULT_MS: i64 = 28 * 24 * 3600 * 1000;
/// The longest window.
const LONGEST_DAYS: i64 = 366;

/// Executions by hour of the week.
pub type Hours = BTreeMap<usize, i64>;

pub struct Activity {
    /// Each with all its executions, most first.
    pub users: Vec<(Option<String>, i64, Hours)>,
    pub all: Hours,
    pub window: Window,
    pub freshness: Freshness,
}

impl Analytics {
    pub async fn activity(&self, filter: &ExecutionFilter, zone: &Zone) -> Result<Activity> {
        let window = self.window(filter, DEFAULT_MS);
        if window.until.saturating_sub(window.from) > LONGEST_DAYS * 24 * 3600 * 1000 {
            return Err(crate::app::Error::invalid(
                "filter.started_at_from",
                format!(
                    "is more than the limit of {LONGEST_DAYS} days before the end of the window"
                ),
            ));
        }
        let hours = zone.hours(window);
        let slots: Vec<Window> = hours.iter().map(|(_, window)| *window).collect();
        let apart = Apart { users: true, ..Apart::default() };
        let mut source = self.source(filter, true).await?;
        let rows = self.tallies(filter, &slots, apart, false, &mut source).await?;
        let mut all = Hours::new();
        let mut by_user: HashMap<Option<String>, (i64, Hours)> = HashMap::new();
        for row in rows {
            let executions = row.tallies.sum(&[]).executions;
            let Some((hour, _)) = hours.get(row.span) else { continue };
            *all.entry(*hour).or_default() += executions;
            let (total, of_user) = by_user.entry(row.group.user_id).or_default();
            *total += executions;
            *of_user.entry(*hour).or_default() += executions;
        }
        let mut users: Vec<_> =
            by_user.into_iter().map(|(user, (total, hours))| (user, total, hours)).collect();
        users.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        Ok(Activity { users, all, window, freshness: source.freshness })
    }
}
