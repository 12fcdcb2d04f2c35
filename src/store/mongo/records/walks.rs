//! Which index a list of executions walks along. A list is one or more plain ranges of an index in its own order,
//! so the database never sorts and never skips. What the index holds beyond that is decided on its keys, and only
//! what is left on documents.

use bson::{Bson, DateTime, Document, doc};

use super::indexes::{executions_by, executions_of_app, executions_of_name};
use crate::domain::query::ExecutionFilter;

/// Ranges the database walks side by side at most; beyond that it would sort in memory.
const RANGES: usize = 200;

/// The index a list walks along: equality on its first fields, then time and id, then what else its keys tell.
#[derive(Debug, Clone)]
pub struct Walk {
    pub equal: Document,
    pub index: Document,
}

/// What a walk leaves to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leaves {
    /// Nothing: what it comes by matches.
    Nothing,
    /// Only what the keys of the index tell.
    Keys,
    Documents,
}

impl Walk {
    pub fn leaves(&self, filter: &ExecutionFilter) -> Leaves {
        let decided = |field: &str, given: bool| match given && !self.equal.contains_key(field) {
            false => Leaves::Nothing,
            true if self.index.contains_key(field) => Leaves::Keys,
            true => Leaves::Documents,
        };
        let ExecutionFilter {
            app_ids,
            app_names,
            sub_app_ids,
            user_ids,
            statuses,
            // Every walk goes through this time alone.
            started_at_from: _,
            started_at_until: _,
            min_duration_ms,
            metadata,
            scope,
        } = filter;
        [
            decided("app_id", !app_ids.is_empty()),
            decided("app_name", !app_names.is_empty()),
            decided("sub_app_id", !sub_app_ids.is_empty()),
            decided("user_id", !user_ids.is_empty()),
            decided("status", !statuses.is_empty()),
            decided("duration_ms", min_duration_ms.is_some()),
            decided("metadata", !metadata.is_empty()),
            // No index holds all by which an app is told.
            if scope.is_all() { Leaves::Nothing } else { Leaves::Documents },
        ]
        .into_iter()
        .max()
        .unwrap_or(Leaves::Nothing)
    }

    /// Whether `other` goes the same way through fewer records.
    fn is_wider_than(&self, other: &Walk) -> bool {
        self.equal.len() < other.equal.len()
            && self.equal.keys().all(|field| other.equal.contains_key(field))
    }
}

/// Condition on one field, and how many values it allows.
struct Condition {
    field: &'static str,
    values: Vec<Bson>,
}

fn condition<T: Into<Bson>>(field: &'static str, values: impl Iterator<Item = T>) -> Condition {
    let mut distinct: Vec<Bson> = Vec::new();
    for value in values.map(Into::into) {
        if !distinct.contains(&value) {
            distinct.push(value);
        }
    }
    Condition { field, values: distinct }
}

/// The walks that could answer, the most promising first; the last one always can.
pub fn walks(filter: &ExecutionFilter) -> Vec<Walk> {
    let app = condition("app_id", filter.app_ids.iter().copied());
    let name = condition("app_name", filter.app_names.iter().map(String::as_str));
    let sub_app = condition("sub_app_id", filter.sub_app_ids.iter().copied());
    let user = condition("user_id", filter.user_ids.iter().map(String::as_str));
    let status = condition("status", filter.statuses.iter().map(|status| status.as_str()));
    let by: [(&[&Condition], Document); 9] = [
        (&[&user, &status], executions_by(&["user_id", "status"])),
        (&[&user], executions_by(&["user_id"])),
        (&[&app, &sub_app], executions_by(&["app_id", "sub_app_id"])),
        (&[&app, &status], executions_by(&["app_id", "status"])),
        (&[&app], executions_of_app()),
        (&[&name, &status], executions_by(&["app_name", "status"])),
        (&[&name], executions_of_name()),
        (&[&status], executions_by(&["status"])),
        (&[], executions_by(&[])),
    ];
    let mut walks = Vec::new();
    for (conditions, index) in by {
        let ranges: usize = conditions.iter().map(|condition| condition.values.len()).product();
        if ranges == 0 || (ranges > RANGES && conditions.len() > 1) {
            continue;
        }
        let mut equal = Document::new();
        for condition in conditions {
            let value = match condition.values.as_slice() {
                [one] => one.clone(),
                several => Bson::Document(doc! { "$in": several }),
            };
            equal.insert(condition.field, value);
        }
        walks.push(Walk { equal, index });
    }
    walks
}

/// What is worth comparing of `walks`, whose indexes are all there: one walk if its index decides, else those of
/// which none goes through what another one goes through anyway.
pub fn worth_comparing(mut walks: Vec<Walk>, filter: &ExecutionFilter) -> Vec<Walk> {
    let best = walks.iter().enumerate().min_by_key(|(_, walk)| walk.leaves(filter));
    if let Some((best, walk)) = best
        && walk.leaves(filter) < Leaves::Documents
    {
        return vec![walks.swap_remove(best)];
    }
    let all = walks.clone();
    walks.retain(|walk| !all.iter().any(|other| walk.is_wider_than(other)));
    walks
}

/// The part of the filter that says when.
pub fn window(filter: &ExecutionFilter) -> Document {
    let mut window = Document::new();
    if let Some(from) = filter.started_at_from {
        window.insert("$gte", DateTime::from_millis(from));
    }
    if let Some(until) = filter.started_at_until {
        window.insert("$lt", DateTime::from_millis(until));
    }
    window
}
