//! One thing that was looked at, and how it is.

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Well,
    /// Nothing is known that would have to be done.
    Note,
    ToDo,
}

impl State {
    pub fn word(self) -> &'static str {
        match self {
            State::Well => "ok",
            State::Note => "note",
            State::ToDo => "to do",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// One word or a name, for instance "clock" or "index executions (user_id)".
    pub subject: String,
    pub state: State,
    pub says: String,
    /// What to do; empty when there is nothing.
    pub advice: String,
}

impl Finding {
    pub fn new(subject: impl Into<String>, state: State, says: impl Into<String>) -> Finding {
        Finding { subject: subject.into(), state, says: says.into(), advice: String::new() }
    }

    pub fn to_do(
        subject: impl Into<String>,
        says: impl Into<String>,
        advice: impl Into<String>,
    ) -> Finding {
        Finding { advice: advice.into(), ..Finding::new(subject, State::ToDo, says) }
    }
}
