//! From the state that was last told to the events that are told now.

use super::event::Event;
use super::identity::Identity;
use super::status::Status;
use crate::domain::{Execution, Millis, RunError, Step, StepStatus};

/// Rises of a retry count in one change that are told, the last ones: other programs may store any number.
const RISES_MOST: i32 = 100;

/// What a change of the log says of where its record stands. What it left alone is not in it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Standing {
    /// Of an execution: the status that it has since.
    pub status: Option<Status>,
    /// An execution that was given up for its silence has really ended, as failed.
    pub heard: bool,
    /// A wish to cancel was stored.
    pub cancel_requested: bool,
    /// Of a step: whether it is failed since.
    pub failed: Option<bool>,
    pub retry_count: Option<i32>,
    /// Where the record tells later of something else: the error, with its code, and the time of the end.
    pub error: Option<Box<RunError>>,
    pub completed_at: Option<Millis>,
    /// Of a new execution, where the log has no more of it.
    pub whose: Option<Box<Identity>>,
}

impl Standing {
    /// What a change of an execution says to who is told of it.
    pub fn of_execution(before: Option<&Execution>, after: &Execution) -> Standing {
        let (was, is) = (before.and_then(Status::of), Status::of(after));
        let had = before.is_some_and(|before| before.cancel_requested_at.is_some());
        let heard = was == Some(Status::Silent) && is == Some(Status::Failed);
        let status = is.filter(|is| was != Some(*is) && !heard);
        let standing = Standing {
            status,
            heard,
            cancel_requested: after.cancel_requested_at.is_some() && !had,
            whose: before.is_none().then(|| Box::new(Identity::of(after))),
            ..Standing::default()
        };
        match status.is_some() || heard {
            true => standing.ended(after.error.as_ref(), after.completed_at),
            false => standing,
        }
    }

    /// The same of a step.
    pub fn of_step(before: Option<&Step>, after: &Step) -> Standing {
        let is_failed = |step: &Step| step.status == Some(StepStatus::Failed);
        let (was, is) = (before.is_some_and(is_failed), is_failed(after));
        let retries = before.map_or(0, |before| before.retry_count);
        let failed = (was != is || (is && retries != after.retry_count)).then_some(is);
        let standing = Standing {
            failed,
            retry_count: (retries != after.retry_count).then_some(after.retry_count),
            ..Standing::default()
        };
        match failed {
            Some(true) => standing.ended(after.error.as_ref(), after.completed_at),
            _ => standing,
        }
    }

    fn ended(self, error: Option<&RunError>, completed_at: Option<Millis>) -> Standing {
        let error = error.map(|error| {
            Box::new(RunError {
                message: cut(&error.message, ERROR_BYTES).to_owned(),
                code: error.code.clone(),
                ..RunError::default()
            })
        });
        Standing { error, completed_at, ..self }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Standing::default()
    }
}

/// Bytes of the message of an error that somebody is told.
pub const ERROR_BYTES: usize = 4 * 1024;

/// The beginning of a text.
pub fn cut(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// What kind of knowledge a change brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The record is new.
    New,
    /// The log says what was set, and what it does not name was left alone.
    Changed,
    /// How the record is, without saying what of it is new. `ended`: whether its end came after who is told of it began
    /// to listen.
    Whole { ended: bool },
}

/// What was told of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExecutionTold {
    /// `None`: a word that is no status.
    pub status: Option<Status>,
    pub cancel_requested: bool,
}

/// What a change says of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExecutionNews {
    pub status: Option<Status>,
    pub heard: bool,
    pub cancel_requested: bool,
}

impl ExecutionNews {
    pub fn of(execution: &Execution) -> ExecutionNews {
        ExecutionNews {
            status: Status::of(execution),
            heard: false,
            cancel_requested: execution.cancel_requested_at.is_some(),
        }
    }

    pub fn said(standing: &Standing) -> ExecutionNews {
        ExecutionNews {
            status: standing.status,
            heard: standing.heard,
            cancel_requested: standing.cancel_requested,
        }
    }

    /// What is told now, in order, and what was told with that. `told`: what was so far; `None`: nothing is known of it.
    pub fn events(self, told: Option<ExecutionTold>, basis: Basis) -> (Vec<Event>, ExecutionTold) {
        let mut events = Vec::new();
        // A new record has nothing to do with one of the same id before it.
        let told = told.filter(|_| basis != Basis::New);
        let before = told.unwrap_or_default();
        if basis == Basis::New {
            events.push(Event::ExecutionStarted);
        }
        let is_known = told.is_some() || basis == Basis::New;
        let whole = matches!(basis, Basis::Whole { .. });
        if self.cancel_requested && !before.cancel_requested && (is_known || !whole) {
            events.push(Event::ExecutionCancelRequested);
        }
        let status = match self.status {
            None if self.heard && before.status == Some(Status::Silent) => Some(Status::Failed),
            status => status,
        };
        events.extend(status.and_then(|status| {
            match (basis, told) {
                // It went on where it had ended; nobody knows what it was before another word or of another time.
                (_, Some(told)) if status == Status::Running => told
                    .status
                    .is_some_and(|told| told != Status::Running)
                    .then_some(Event::ExecutionRevived),
                (Basis::Changed, None) if status == Status::Running => {
                    Some(Event::ExecutionRevived)
                }
                (Basis::Whole { .. }, Some(told)) if told.status == Some(status) => None,
                (Basis::Whole { ended: false }, None) => None,
                // Where the log says that it was set, it was another one before, whatever was told.
                _ => status.end(),
            }
        }));
        let told = ExecutionTold {
            status: status.or(before.status),
            cancel_requested: self.cancel_requested || before.cancel_requested,
        };
        (events, told)
    }
}

/// What was told of a step: of one that neither failed nor was retried, nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepTold {
    /// Its current attempt.
    pub failed: bool,
    pub retry_count: i32,
}

/// What a change says of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepNews {
    pub failed: Option<bool>,
    pub retry_count: Option<i32>,
}

impl StepNews {
    pub fn of(step: &Step) -> StepNews {
        StepNews {
            failed: Some(step.status == Some(StepStatus::Failed)),
            retry_count: Some(step.retry_count),
        }
    }

    pub fn said(standing: &Standing) -> StepNews {
        StepNews { failed: standing.failed, retry_count: standing.retry_count }
    }

    /// Whether there may be something to tell.
    pub fn matters(self) -> bool {
        self.failed == Some(true) || self.retry_count.is_some_and(|count| count > 0)
    }

    /// What is told now, each with the attempt it is about (from 1), in order, and what was told with that. `told`: what
    /// was so far. `seen`: its execution was seen from its beginning on, so of what is not known nothing has happened.
    pub fn events(
        self,
        told: Option<StepTold>,
        basis: Basis,
        seen: bool,
    ) -> (Vec<(Event, i32)>, StepTold) {
        let told = told.filter(|_| basis != Basis::New);
        let before = told.unwrap_or_else(|| match (basis, self.retry_count) {
            (Basis::New, _) => StepTold::default(),
            _ if seen => StepTold::default(),
            // Retried at least once, and what failed did so before anybody listened.
            (Basis::Changed, Some(count)) if count > 0 => {
                StepTold { failed: true, retry_count: count.saturating_sub(1) }
            }
            (Basis::Whole { ended }, Some(count)) => {
                StepTold { failed: !ended && self.failed == Some(true), retry_count: count }
            }
            _ => StepTold::default(),
        });
        let retry_count = self.retry_count.unwrap_or(before.retry_count);
        let first = before.retry_count.max(retry_count.saturating_sub(RISES_MOST)).max(0);
        let mut events = Vec::new();
        for attempt in first..retry_count {
            let is_told = before.failed && attempt == before.retry_count;
            if !is_told {
                events.push((Event::StepFailed, attempt.saturating_add(1)));
            }
            events.push((Event::StepRetried, attempt.saturating_add(2)));
        }
        let rose = retry_count > before.retry_count;
        let failed = self.failed.unwrap_or(before.failed && !rose);
        let is_told = match basis {
            // Where the log says that it was set, it was not before.
            Basis::Changed => self.failed.is_none(),
            Basis::New => false,
            Basis::Whole { .. } => before.failed && !rose,
        };
        if failed && !is_told {
            events.push((Event::StepFailed, retry_count.saturating_add(1)));
        }
        (events, StepTold { failed, retry_count })
    }
}

#[cfg(test)]
mod tests;
