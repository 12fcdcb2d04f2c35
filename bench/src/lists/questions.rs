//! What is asked of the lists, once as a request to the server and once as a query of the driver.

use bson::{DateTime, Document, doc};
use serde::Serialize;

use super::data::{self, DAY_MS, END};
use crate::dice::Dice;
use stepwell::domain::{ExecutionStatus, Millis};
use stepwell::proto;
use stepwell::rpc::convert;

/// Executions of a page.
pub const PAGE: u16 = 50;
/// Among how many of the busiest users one is chosen; their pages are full from 20,000 executions on.
const BUSY_USERS: usize = 20;
/// The same of apps.
const BUSY_APPS: usize = 5;
/// How much of the year the page of an app is taken from.
const WINDOW_MS: Millis = 60 * DAY_MS;

/// A kind of question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    UserAndStatus,
    FailedLastDay,
    AppInWindow,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::UserAndStatus, Kind::FailedLastDay, Kind::AppInWindow];

    pub fn name(self) -> &'static str {
        match self {
            Kind::UserAndStatus => "user + status",
            Kind::FailedLastDay => "failed, last 24 h",
            Kind::AppInWindow => "app in a window",
        }
    }
}

/// The newest `PAGE` executions that match all of this.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Question {
    app_id: Option<i32>,
    user_id: Option<String>,
    status: Option<ExecutionStatus>,
    from: Option<Millis>,
    until: Option<Millis>,
}

impl Question {
    pub fn new(kind: Kind, dice: &mut Dice) -> Self {
        match kind {
            Kind::UserAndStatus => Question {
                user_id: Some(data::user_id(dice.below(BUSY_USERS))),
                status: Some(ExecutionStatus::Completed),
                ..Question::default()
            },
            Kind::FailedLastDay => Question {
                status: Some(ExecutionStatus::Failed),
                from: Some(END - DAY_MS),
                ..Question::default()
            },
            Kind::AppInWindow => {
                // Somewhere in the second half of the year.
                let until = END - (dice.fraction() * 100.0) as Millis * DAY_MS;
                Question {
                    app_id: data::app_id(dice.below(BUSY_APPS)),
                    from: Some(until - WINDOW_MS),
                    until: Some(until),
                    ..Question::default()
                }
            }
        }
    }

    pub fn request(&self) -> proto::ListExecutionsRequest {
        let filter = proto::ExecutionFilter {
            app_ids: self.app_id.into_iter().collect(),
            user_ids: self.user_id.clone().into_iter().collect(),
            statuses: self
                .status
                .map(|status| convert::execution_status(Some(status)).into())
                .into_iter()
                .collect(),
            started_at_from: self.from.map(convert::timestamp),
            started_at_until: self.until.map(convert::timestamp),
            ..Default::default()
        };
        proto::ListExecutionsRequest {
            filter: Some(filter),
            page_size: PAGE.into(),
            ..Default::default()
        }
    }

    pub fn query(&self) -> Document {
        let mut query = Document::new();
        if let Some(app_id) = self.app_id {
            query.insert("app_id", app_id);
        }
        if let Some(user_id) = &self.user_id {
            query.insert("user_id", user_id);
        }
        if let Some(status) = self.status {
            query.insert("status", status.as_str());
        }
        let mut window = Document::new();
        if let Some(from) = self.from {
            window.insert("$gte", DateTime::from_millis(from));
        }
        if let Some(until) = self.until {
            window.insert("$lt", DateTime::from_millis(until));
        }
        if !window.is_empty() {
            query.insert("started_at", window);
        }
        query
    }

    /// The order of the pages, newest first.
    pub fn order() -> Document {
        doc! { "started_at": -1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_and_driver_are_asked_the_same() {
        let mut dice = Dice::new(1);
        let question = Question::new(Kind::UserAndStatus, &mut dice);
        let filter = question.request().filter.expect("a filter");
        let user_id = filter.user_ids[0].as_str();
        assert_eq!(filter.statuses, [i32::from(proto::ExecutionStatus::Completed)]);
        assert_eq!(question.query(), doc! { "user_id": user_id, "status": "completed" });

        let question = Question::new(Kind::FailedLastDay, &mut dice);
        let filter = question.request().filter.expect("a filter");
        let from = filter.started_at_from.expect("a bound").seconds * 1000;
        let from = doc! { "$gte": DateTime::from_millis(from) };
        assert_eq!(question.query(), doc! { "status": "failed", "started_at": from });

        let question = Question::new(Kind::AppInWindow, &mut dice);
        let filter = question.request().filter.expect("a filter");
        let [from, until] = [filter.started_at_from, filter.started_at_until]
            .map(|at| DateTime::from_millis(at.expect("a bound").seconds * 1000));
        let window = doc! { "$gte": from, "$lt": until };
        assert_eq!(question.query(), doc! { "app_id": filter.app_ids[0], "started_at": window });
    }
}
