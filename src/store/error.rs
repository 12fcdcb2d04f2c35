//! What can go wrong in a store. The driver's error is only a boxed source: no word of it reaches a client.

use crate::domain::Refusal;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// A store's failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rules do not allow the write; nothing was applied.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// The database is away or did not answer. A write may or may not have been applied; the same write again
    /// finds out.
    #[error("the database is unavailable")]
    Unavailable(#[source] Option<Source>),
    /// Other writers changed the record every time; nothing was applied.
    #[error("lost the race for the record too often")]
    Contention,
    /// The log no longer reaches back to the cursor.
    #[error("history no longer covers the cursor")]
    CursorExpired,
    /// The bytes are no position of this log.
    #[error("not a cursor of this log")]
    BadCursor,
    /// The database keeps no log (a standalone mongod).
    #[error("the database keeps no log of changes")]
    NoLog,
    /// A stored record that cannot be read.
    #[error("{collection} {id}: field {field} cannot be read")]
    Corrupt { collection: &'static str, id: String, field: &'static str },
    /// Anything else; a defect of ours or of the set-up.
    #[error("the store failed")]
    Failed(#[source] Source),
}

impl Error {
    pub fn failed(source: impl Into<Source>) -> Self {
        Self::Failed(source.into())
    }

    pub fn unavailable(source: impl Into<Source>) -> Self {
        Self::Unavailable(Some(source.into()))
    }

    /// Whether the same call may well succeed in a moment.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Contention)
    }

    /// Whether the write is known not to have been applied.
    pub fn surely_not_applied(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Contention)
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
