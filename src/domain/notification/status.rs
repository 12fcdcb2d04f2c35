//! Where an execution stands, for who is told of it.

use super::event::Event;
use crate::domain::{Execution, ExecutionStatus};

/// Where an execution stands, for who is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    Running,
    Completed,
    Failed,
    Cancelled,
    /// Failed by the guess of a server that heard nothing.
    Silent,
}

impl Status {
    pub const ALL: [Status; 5] =
        [Status::Running, Status::Completed, Status::Failed, Status::Cancelled, Status::Silent];

    /// `None`: the status is no known word.
    pub fn of(execution: &Execution) -> Option<Status> {
        match execution.status? {
            ExecutionStatus::Failed if execution.ended_for_silence() => Some(Status::Silent),
            status => Some(Status::plain(status)),
        }
    }

    /// Of an end that is no guess.
    pub fn plain(status: ExecutionStatus) -> Status {
        match status {
            ExecutionStatus::Running => Status::Running,
            ExecutionStatus::Completed => Status::Completed,
            ExecutionStatus::Failed => Status::Failed,
            ExecutionStatus::Cancelled => Status::Cancelled,
        }
    }

    /// The status of the record.
    pub fn stored(self) -> ExecutionStatus {
        match self {
            Status::Running => ExecutionStatus::Running,
            Status::Completed => ExecutionStatus::Completed,
            Status::Failed | Status::Silent => ExecutionStatus::Failed,
            Status::Cancelled => ExecutionStatus::Cancelled,
        }
    }

    /// The word under which it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Silent => "silent",
            status => status.stored().as_str(),
        }
    }

    pub fn parse(word: &str) -> Option<Status> {
        Status::ALL.into_iter().find(|status| status.as_str() == word)
    }

    /// The event of having ended so.
    pub fn end(self) -> Option<Event> {
        match self {
            Status::Running => None,
            Status::Completed => Some(Event::ExecutionCompleted),
            Status::Failed => Some(Event::ExecutionFailed),
            Status::Cancelled => Some(Event::ExecutionCancelled),
            Status::Silent => Some(Event::ExecutionHeartbeatTimeout),
        }
    }
}
