//! A stored field as one row of a table, which everything walks that writes, reads, guards, compares or digests records.
//!
//! A table has every field of a record but its ids, its revision and its digests, in the order in which they are digested:
//! add one at the end, or digests of before are those of other records.

use bson::Document;
use bson::raw::CStr;

use super::digest::Digest;
use super::step::held::{Attempt, Payload};
use super::terms::{Millis, RunError};

/// The value of a field, borrowed: comparing two of them costs no encoding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell<'a> {
    Null,
    Int32(i32),
    Int64(i64),
    Real(f64),
    Bool(bool),
    Text(&'a str),
    Date(Millis),
    Object(&'a Document),
    /// An error by its message.
    Error(&'a RunError),
    /// What an error has beside its message.
    ErrorInfo(&'a RunError),
    Ids(&'a [i32]),
    Keys(&'a [String]),
    Attempts(&'a [Attempt]),
    Payload(&'a Payload),
}

impl<'a> Cell<'a> {
    pub fn int32(value: Option<i32>) -> Self {
        value.map_or(Cell::Null, Cell::Int32)
    }

    pub fn int64(value: Option<i64>) -> Self {
        value.map_or(Cell::Null, Cell::Int64)
    }

    pub fn real(value: Option<f64>) -> Self {
        value.map_or(Cell::Null, Cell::Real)
    }

    pub fn boolean(value: Option<bool>) -> Self {
        value.map_or(Cell::Null, Cell::Bool)
    }

    pub fn date(value: Option<Millis>) -> Self {
        value.map_or(Cell::Null, Cell::Date)
    }

    pub fn text(value: &'a Option<String>) -> Self {
        value.as_deref().map_or(Cell::Null, Cell::Text)
    }

    pub fn word(value: Option<&'static str>) -> Self {
        value.map_or(Cell::Null, Cell::Text)
    }

    pub fn error(value: &'a Option<RunError>) -> Self {
        value.as_ref().map_or(Cell::Null, Cell::Error)
    }

    pub fn error_info(value: &'a Option<RunError>) -> Self {
        match value {
            Some(error) if error.has_more() => Cell::ErrorInfo(error),
            _ => Cell::Null,
        }
    }
}

/// How a value gets into the record, by its type.
pub enum Set<R> {
    Int32(fn(&mut R, Option<i32>)),
    Int64(fn(&mut R, Option<i64>)),
    Real(fn(&mut R, Option<f64>)),
    Bool(fn(&mut R, Option<bool>)),
    Text(fn(&mut R, Option<String>)),
    /// One of these words, or another program's, which is none.
    Word(&'static [&'static str], fn(&mut R, &str)),
    Date(fn(&mut R, Option<Millis>)),
    Object(fn(&mut R, Document)),
    Error(fn(&mut R) -> &mut Option<RunError>),
    ErrorInfo(fn(&mut R) -> &mut Option<RunError>),
    Ids(fn(&mut R, Vec<i32>)),
    Keys(fn(&mut R, Vec<String>)),
    Attempts(fn(&mut R, Vec<Attempt>)),
    Payload(fn(&mut R, Payload)),
}

/// How a document says that there is no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nothing {
    /// As the data model of before has it.
    Null,
    /// Fields of ours alone.
    Absent,
    /// The empty list or object.
    Empty,
}

/// When an update has to make sure that the field still has the value which the decision was made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarded {
    /// Every decision rests on it.
    Always,
    /// Where it changes, and where the whole record has to be as it was.
    Changed,
    /// Where the whole record has to be as it was, unless it changes: then it is known afterwards anyway.
    Whole,
    /// As `Whole`, and where some write is only allowed for some apps: this tells whose the record is.
    Owner,
    /// By itself never.
    Never,
}

/// One stored field.
pub struct Field<R> {
    pub key: &'static CStr,
    pub nothing: Nothing,
    pub guarded: Guarded,
    pub get: fn(&R) -> Cell<'_>,
    pub set: Set<R>,
}

impl<R> Field<R> {
    pub fn name(&self) -> &'static str {
        self.key.as_str()
    }

    pub fn is_payload(&self) -> bool {
        matches!(self.set, Set::Payload(_))
    }

    pub fn differs(&self, before: &R, after: &R) -> bool {
        (self.get)(before) != (self.get)(after)
    }

    /// Gives one record the value of another.
    pub fn copy(&self, from: &R, to: &mut R) {
        match ((self.get)(from), &self.set) {
            (Cell::Int32(value), Set::Int32(set)) => set(to, Some(value)),
            (Cell::Int64(value), Set::Int64(set)) => set(to, Some(value)),
            (Cell::Real(value), Set::Real(set)) => set(to, Some(value)),
            (Cell::Bool(value), Set::Bool(set)) => set(to, Some(value)),
            (Cell::Date(value), Set::Date(set)) => set(to, Some(value)),
            (Cell::Text(value), Set::Text(set)) => set(to, Some(value.to_owned())),
            (Cell::Text(value), Set::Word(_, set)) => set(to, value),
            (Cell::Object(value), Set::Object(set)) => set(to, value.clone()),
            (Cell::Error(value), Set::Error(error)) => *error(to) = Some(value.clone()),
            (Cell::Ids(value), Set::Ids(set)) => set(to, value.to_vec()),
            (Cell::Keys(value), Set::Keys(set)) => set(to, value.to_vec()),
            (Cell::Attempts(value), Set::Attempts(set)) => set(to, value.to_vec()),
            (Cell::Payload(value), Set::Payload(set)) => set(to, value.clone()),
            // Nothing, or what came with the message of the error.
            _ => {}
        }
    }
}

/// A row of a table.
pub const fn row<R>(
    key: &'static CStr,
    nothing: Nothing,
    guarded: Guarded,
    get: fn(&R) -> Cell<'_>,
    set: Set<R>,
) -> Field<R> {
    Field { key, nothing, guarded, get, set }
}

/// Digest of a whole record that a client puts.
pub fn digest<R>(kind: &str, fields: &[Field<R>], record: &R) -> String {
    let mut digest = Digest::new(kind);
    for field in fields {
        let name = field.name();
        digest = match (field.get)(record) {
            Cell::Null | Cell::ErrorInfo(_) => digest,
            Cell::Int32(value) => digest.integer(name, Some(i64::from(value))),
            Cell::Int64(value) | Cell::Date(value) => digest.integer(name, Some(value)),
            Cell::Bool(value) => digest.integer(name, Some(i64::from(value))),
            Cell::Real(value) => digest.value(name, Some(&bson::Bson::Double(value))),
            Cell::Text(value) => digest.text(name, Some(value)),
            Cell::Object(value) => digest.object(name, value),
            Cell::Error(error) => digest.error(Some(error)),
            Cell::Ids(ids) => digest.integers(name, ids),
            Cell::Keys(keys) => digest.texts(name, keys),
            Cell::Payload(payload) => digest.value(name, payload.value()),
            Cell::Attempts(attempts) => attempts.iter().fold(digest, |digest, attempt| {
                digest
                    .integer("attempt.started_at", attempt.started_at)
                    .integer("attempt.completed_at", attempt.completed_at)
                    .integer("attempt.duration_ms", attempt.duration_ms)
                    .error(attempt.error.as_ref())
            }),
        };
    }
    digest.finish()
}
