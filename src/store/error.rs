//! What can go wrong in a store. The driver's error is only a boxed source: no word of it reaches a client.

use crate::domain::Refusal;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why the database cannot do what it is asked just now. Each is told by a reason, a line in the log and a metric of its
/// own, since each is mended by somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outage {
    /// There is no connection, it does not answer, or another database is at its address.
    Away,
    /// Its disk is full.
    Full,
    /// It cannot be written to.
    ReadOnly,
    /// Its files were deleted or replaced while they were open.
    Gone,
    /// All connections that this server may use are in use.
    Busy,
}

impl Outage {
    pub const ALL: [Outage; 5] =
        [Outage::Away, Outage::Full, Outage::ReadOnly, Outage::Gone, Outage::Busy];

    /// As a label of metrics and a field of the log.
    pub fn name(self) -> &'static str {
        match self {
            Outage::Away => "away",
            Outage::Full => "full",
            Outage::ReadOnly => "read_only",
            Outage::Gone => "gone",
            Outage::Busy => "busy",
        }
    }

    /// For operators: a sentence without its end.
    pub fn words(self) -> &'static str {
        match self {
            Outage::Away => "the database is away",
            Outage::Full => "the disk of the database is full",
            Outage::ReadOnly => "the database cannot be written to",
            Outage::Gone => "the files of the database were deleted or replaced",
            Outage::Busy => "all connections to the database are in use",
        }
    }
}

const NO_ANSWER: &str = "no answer in time";

/// That the database cannot do it just now, and what it said.
#[derive(Debug, thiserror::Error)]
#[error("{}", .outage.words())]
pub struct Unavailable {
    pub outage: Outage,
    #[source]
    source: Option<Source>,
}

/// What was said to the first who met a failure, for another whom it struck.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Said(String);

impl Unavailable {
    /// The same for another of those whom it struck.
    pub fn again(&self) -> Unavailable {
        let source = self.why().map(|why| Said(why).into());
        Unavailable { outage: self.outage, source }
    }

    /// There was no answer in time.
    pub fn unanswered() -> Unavailable {
        Unavailable { outage: Outage::Away, source: Some(Said(NO_ANSWER.to_owned()).into()) }
    }

    pub fn is_unanswered(&self) -> bool {
        self.why().as_deref() == Some(NO_ANSWER)
    }

    /// What the database said, for the log.
    pub fn why(&self) -> Option<String> {
        self.source.as_ref().map(ToString::to_string)
    }
}

/// A store's failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rules do not allow the write; nothing was applied.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// The database cannot do it just now. A write may or may not have been applied; the same write again finds out.
    #[error(transparent)]
    Unavailable(Unavailable),
    /// The database itself refuses, and does so until somebody changes something there; nothing was applied.
    #[error("{0}")]
    Denied(Denial),
    /// What has to be recorded of the call cannot be, so nothing was applied.
    #[error("it cannot be recorded")]
    Unaudited(#[source] Source),
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

    pub fn unaudited(source: impl Into<Source>) -> Self {
        Self::Unaudited(source.into())
    }

    /// The database is away, and nothing more is known.
    pub fn away() -> Self {
        Self::Unavailable(Unavailable { outage: Outage::Away, source: None })
    }

    /// The database is away, and this is what was said.
    pub fn unavailable(source: impl Into<Source>) -> Self {
        Self::out(Outage::Away, source)
    }

    pub fn out(outage: Outage, source: impl Into<Source>) -> Self {
        Self::Unavailable(Unavailable { outage, source: Some(source.into()) })
    }

    /// Why the database could not do it.
    pub fn outage(&self) -> Option<Outage> {
        match self {
            Self::Unavailable(unavailable) => Some(unavailable.outage),
            _ => None,
        }
    }

    /// Whether the same call may well succeed in a moment.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Contention | Self::Unaudited(_))
    }

    /// Whether the write is known not to have been applied.
    pub fn surely_not_applied(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Denied(_) | Self::Contention | Self::Unaudited(_))
    }

    /// The same, told of this collection unless it names one.
    pub fn of_collection(self, collection: &str) -> Self {
        match self {
            Self::Denied(denial) => Self::Denied(denial.of_collection(collection)),
            other => other,
        }
    }
}

/// Why the database itself refuses a write, in names that a client may see.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.words())]
pub struct Denial {
    pub cause: Cause,
    /// Where it was to be written, if that is known.
    pub collection: Option<String>,
}

/// What in the database refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The rules that somebody gave a collection for its documents.
    Validator,
    /// The user of the connection may not do it.
    Privilege,
    /// A unique index that another program made.
    Index(String),
    /// No unique index keeps ids apart, and none can be made.
    NoUniqueIndex,
    /// Anything else that is about this collection, by the code that the database gives it.
    Code(i32),
}

impl Cause {
    /// As metadata of an error names it.
    pub fn name(&self) -> &'static str {
        match self {
            Cause::Validator => "validator",
            Cause::Privilege => "privilege",
            Cause::Index(_) => "unique_index",
            Cause::NoUniqueIndex => "no_unique_index",
            Cause::Code(_) => "code",
        }
    }

    /// The code that MongoDB gives it.
    pub fn code(&self) -> i32 {
        match self {
            Cause::Validator => 121,
            Cause::Privilege => 13,
            Cause::Index(_) | Cause::NoUniqueIndex => 11000,
            Cause::Code(code) => *code,
        }
    }
}

impl Denial {
    pub fn new(cause: Cause, collection: &str) -> Self {
        Denial { cause, collection: Some(collection.to_owned()) }
    }

    /// The same, unless it names a collection.
    pub fn of_collection(mut self, collection: &str) -> Self {
        self.collection.get_or_insert_with(|| collection.to_owned());
        self
    }

    fn words(&self) -> String {
        let of = match &self.collection {
            Some(collection) => format!("the collection {collection}"),
            None => "a collection".to_owned(),
        };
        match &self.cause {
            Cause::Validator => format!("the validator of {of} does not accept the document"),
            Cause::Privilege => format!("the database user lacks a privilege on {of}"),
            Cause::Index(name) => {
                format!(
                    "the unique index {name} of {of}, made by another program, does not allow it"
                )
            }
            Cause::NoUniqueIndex => {
                format!("{of} has no unique index on its ids, and none can be made")
            }
            Cause::Code(code) => format!("the database refused it in {of} with code {code}"),
        }
    }
}

impl From<Denial> for Error {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
