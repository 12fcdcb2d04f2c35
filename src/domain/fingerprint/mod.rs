//! Which errors are the same one: what is left of a message without what differs from one time to the next.

mod codes;
mod context;
mod exits;
mod names;
mod pattern;
mod settle;
mod shapes;
mod values;

#[cfg(test)]
mod tests;

use super::digest::Digest;
use super::rollup::Failure;
use super::{Execution, ExecutionStatus, RunError, Step};

pub use pattern::pattern;

/// The identity of an error: 16 hexadecimal digits.
pub fn of(error: &RunError) -> String {
    let mut digits = Digest::new("fingerprint")
        .text("code", Some(&error.code))
        .text("pattern", Some(&settle::key(&pattern(&error.message))))
        .finish();
    digits.truncate(16);
    digits
}

/// Characters of a message that are kept with a failure.
const KEPT: usize = 500;

fn failure(error: Option<&RunError>) -> Failure {
    let none = RunError::default();
    let error = error.unwrap_or(&none);
    Failure {
        step_id: None,
        step_name: None,
        failed_at: None,
        fingerprint: of(error),
        message: error.message.chars().take(KEPT).collect(),
    }
}

/// A failed step as a failure; also one without an error.
pub fn failure_of_step(step: &Step) -> Failure {
    Failure {
        step_id: Some(step.step_id),
        step_name: Some(step.step_name.clone()),
        failed_at: step.completed_at.or(step.updated_at),
        ..failure(step.error.as_ref())
    }
}

/// An execution as a failure, if it failed.
pub fn failure_of_execution(execution: &Execution) -> Option<Failure> {
    (execution.status == Some(ExecutionStatus::Failed)).then(|| Failure {
        failed_at: execution.completed_at.or(execution.updated_at),
        ..failure(execution.error.as_ref())
    })
}
