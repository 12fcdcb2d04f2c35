//! What both edges see of a failure: facts for the client, and a private source for the log.

use crate::audit::Unaudited;
use crate::blobs;
use crate::domain::Refusal;
use crate::store;

/// One field of a request that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field in the request, for instance `steps[3].step_name`.
    pub field: String,
    /// What is wrong with it, with size and limit where it is about size.
    pub description: String,
}

/// What is wrong with one request: the first violations, and how many there are in all. A request may have millions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Violations {
    listed: Vec<Violation>,
    count: usize,
}

impl Violations {
    /// Violations that are kept; the others are only counted.
    pub const LISTED: usize = 30;

    pub fn add(&mut self, field: &str, description: impl Into<String>) {
        self.count += 1;
        if self.listed.len() < Self::LISTED {
            let violation = Violation { field: field.to_owned(), description: description.into() };
            self.listed.push(violation);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many there are, listed or not.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The first ones.
    pub fn listed(&self) -> &[Violation] {
        &self.listed
    }
}

/// A failure of an operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request breaks rules that can be seen without looking anything up.
    #[error("{} invalid field(s)", .0.count())]
    Invalid(Violations),
    /// The request would take more memory than it may once it is decoded.
    #[error("the message would take about {bytes} bytes once decoded, more than {limit}")]
    MessageTooLarge { bytes: usize, limit: usize },
    /// The rules do not allow it.
    #[error("{0:?}")]
    Refused(Refusal),
    /// A page or resume token that is forged or of another request.
    #[error("{0} is not valid for this request")]
    BadToken(&'static str),
    /// Too many writes are waiting.
    #[error("the write queue is full")]
    QueueFull,
    /// The deadline of the call has passed: its client's, or the server's own.
    #[error("the deadline has passed")]
    DeadlineExceeded,
    /// The bytes of messages that this connection, or all of them together, have in memory are as many as they may be.
    #[error("the budget of bytes is used up")]
    OverBudget,
    /// Too many calls wait for their turn.
    #[error("too many calls are waiting")]
    TooManyCalls,
    /// An upload, or a message of another stream, does not go on.
    #[error("the stream stands still")]
    StandsStill,
    /// The server is going down.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The client broke the stream off.
    #[error("the client broke off the stream")]
    BrokenOff,
    /// The storage of the bytes failed.
    #[error(transparent)]
    Bytes(blobs::Error),
    /// An earlier write of the same execution on the same stream failed for now; this one may or may not have been
    /// applied.
    #[error("an earlier write of this execution failed (sequence {failed})")]
    EarlierWriteFailed {
        /// The number of that write.
        failed: i64,
    },
    /// Writes of more executions failed for now than a stream remembers.
    #[error("writes of more than {limit} executions failed")]
    TooManyFailed { limit: usize },
    /// Retention is being run already, here or on another server.
    #[error("retention is already running")]
    RetentionRunning,
    /// Texts are not indexed here.
    #[error("search is switched off")]
    SearchDisabled,
    /// It cannot be recorded, so it was not done.
    #[error("it cannot be recorded")]
    Unaudited,
    /// The store failed.
    #[error(transparent)]
    Store(store::Error),
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Refused(refusal) => Error::Refused(refusal),
            store::Error::Unaudited(_) => Error::Unaudited,
            other => Error::Store(other),
        }
    }
}

impl From<Unaudited> for Error {
    fn from(_: Unaudited) -> Self {
        Error::Unaudited
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Error::Refused(refusal)
    }
}

impl From<blobs::Error> for Error {
    fn from(error: blobs::Error) -> Self {
        Error::Bytes(error)
    }
}

impl Error {
    /// Whether the same request may well succeed in a moment: its status says when to come back.
    pub fn is_for_now(&self) -> bool {
        match self {
            Error::QueueFull
            | Error::OverBudget
            | Error::TooManyCalls
            | Error::ShuttingDown
            | Error::Unaudited
            | Error::TooManyFailed { .. } => true,
            Error::Bytes(error) => matches!(error, blobs::Error::Unavailable(_)),
            Error::Store(error) => error.is_retryable(),
            _ => false,
        }
    }

    /// One invalid field.
    pub fn invalid(field: impl AsRef<str>, description: impl Into<String>) -> Self {
        let mut violations = Violations::default();
        violations.add(field.as_ref(), description);
        Error::Invalid(violations)
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
