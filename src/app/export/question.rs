//! What an export is asked for.

use std::collections::BTreeSet;

use crate::domain::Configuration;
use crate::domain::access;
pub use crate::domain::plain::Part;
use crate::domain::query::ExecutionFilter;

/// An export as asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    pub filter: ExecutionFilter,
    /// Empty: everything.
    pub parts: BTreeSet<Part>,
    /// Empty: from the beginning.
    pub token: String,
    /// Goes on with changes as they happen, and has what belongs to no execution.
    pub follow: bool,
}

impl Question {
    pub(super) fn wants(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }

    pub(super) fn identity(&self) -> String {
        format!("{}/{:?}", self.filter.identity(), self.parts)
    }

    /// Whether an execution may come to match by a change.
    pub(super) fn may_come_to_match(&self) -> bool {
        let ExecutionFilter {
            statuses,
            min_duration_ms,
            metadata,
            // Of these no execution changes.
            app_ids: _,
            app_names: _,
            sub_app_ids: _,
            user_ids: _,
            started_at_from: _,
            started_at_until: _,
            scope: _,
        } = &self.filter;
        !statuses.is_empty() || min_duration_ms.is_some() || !metadata.is_empty()
    }
}

/// Whether a configuration is of an app that the filter names, if it names one.
pub fn wants_configuration(filter: &ExecutionFilter, record: &Configuration) -> bool {
    filter.scope.holds(access::App::of_configuration(record))
        && (filter.app_ids.is_empty()
            || record.app_id.is_some_and(|app_id| filter.app_ids.contains(&app_id)))
        && (filter.app_names.is_empty() || filter.app_names.contains(&record.app_name))
}
