//! What happened, how it is written, and what became of telling it: the words.

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Event {
    ExecutionStarted,
    ExecutionCompleted,
    ExecutionFailed,
    ExecutionCancelled,
    /// Instead of failed, where only the guess of a server that heard nothing ended it.
    ExecutionHeartbeatTimeout,
    /// An end that was a guess is taken back.
    ExecutionRevived,
    ExecutionCancelRequested,
    StepFailed,
    StepRetried,
}

impl Event {
    pub const ALL: [Event; 9] = [
        Event::ExecutionStarted,
        Event::ExecutionCompleted,
        Event::ExecutionFailed,
        Event::ExecutionCancelled,
        Event::ExecutionHeartbeatTimeout,
        Event::ExecutionRevived,
        Event::ExecutionCancelRequested,
        Event::StepFailed,
        Event::StepRetried,
    ];

    /// The word under which it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Event::ExecutionStarted => "execution_started",
            Event::ExecutionCompleted => "execution_completed",
            Event::ExecutionFailed => "execution_failed",
            Event::ExecutionCancelled => "execution_cancelled",
            Event::ExecutionHeartbeatTimeout => "execution_heartbeat_timeout",
            Event::ExecutionRevived => "execution_revived",
            Event::ExecutionCancelRequested => "execution_cancel_requested",
            Event::StepFailed => "step_failed",
            Event::StepRetried => "step_retried",
        }
    }

    pub fn parse(word: &str) -> Option<Event> {
        Event::ALL.into_iter().find(|event| event.as_str() == word)
    }

    /// The `type` of its CloudEvent.
    pub fn cloud_type(self) -> &'static str {
        match self {
            Event::ExecutionStarted => "stepwell.execution.started",
            Event::ExecutionCompleted => "stepwell.execution.completed",
            Event::ExecutionFailed => "stepwell.execution.failed",
            Event::ExecutionCancelled => "stepwell.execution.cancelled",
            Event::ExecutionHeartbeatTimeout => "stepwell.execution.heartbeat_timeout",
            Event::ExecutionRevived => "stepwell.execution.revived",
            Event::ExecutionCancelRequested => "stepwell.execution.cancel_requested",
            Event::StepFailed => "stepwell.step.failed",
            Event::StepRetried => "stepwell.step.retried",
        }
    }

    /// Whether a failure is what happened.
    pub fn is_failure(self) -> bool {
        matches!(
            self,
            Event::ExecutionFailed | Event::ExecutionHeartbeatTimeout | Event::StepFailed
        )
    }
}

/// How a notification is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    CloudEvents,
    Slack,
}

impl Format {
    pub const ALL: [Format; 2] = [Format::CloudEvents, Format::Slack];

    /// The word under which it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::CloudEvents => "cloudevents",
            Format::Slack => "slack",
        }
    }

    pub fn parse(word: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|format| format.as_str() == word)
    }
}

/// What became of a notification so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeliveryState {
    /// It is tried, or will be again.
    Pending,
    Delivered,
    /// It was tried as often as it is; only somebody who asks for it has it tried again.
    Dead,
}

impl DeliveryState {
    pub const ALL: [DeliveryState; 3] =
        [DeliveryState::Pending, DeliveryState::Delivered, DeliveryState::Dead];

    /// The word under which it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            DeliveryState::Pending => "pending",
            DeliveryState::Delivered => "delivered",
            DeliveryState::Dead => "dead",
        }
    }

    pub fn parse(word: &str) -> Option<DeliveryState> {
        DeliveryState::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back() {
        for event in Event::ALL {
            assert_eq!(Event::parse(event.as_str()), Some(event));
            let words = event.cloud_type().trim_start_matches("stepwell.").replace('.', "_");
            assert_eq!(words, event.as_str());
        }
        assert!(Format::ALL.iter().all(|one| Format::parse(one.as_str()) == Some(*one)));
        assert!(
            DeliveryState::ALL.iter().all(|one| DeliveryState::parse(one.as_str()) == Some(*one))
        );
    }
}
