//! Rows and records. The columns are those of the table of stored fields, and reading and writing follow its order.
//! Knows no connection.

use std::sync::LazyLock;

use bson::{Bson, Document, RawDocument};
use rusqlite::Row;
use rusqlite::types::{FromSql, ToSql, ToSqlOutput, ValueRef};

use super::schema::NO_START;
use crate::domain::stored::{self, Field, Set};
use crate::domain::{Attempt, Digests, Execution, Payload, RunError, Step, execution, step};
use crate::store::{Error, Result};

/// Payloads up to this length stand in the row of their step; it is rewritten with every change.
pub const INLINE_BYTES: usize = 2048;

const IS_DOCUMENT: u8 = 0;
const HOLDS_VALUE: u8 = 1;

/// What stands after the fields of a record.
const REST: [&str; 4] = ["revision", "create_digest", "start_digest", "finish_digest"];

/// Fields of an execution, all columns.
const EXECUTION_WIDTH: usize = 1 + execution::FIELDS.len() + REST.len();
/// Fields of a step that are columns here: all but the two payloads.
const STEP_WIDTH: usize = 1 + step::FIELDS.len() - 2 + REST.len();

fn columns<R>(id: &'static str, fields: &'static [Field<R>]) -> Vec<&'static str> {
    let fields = fields.iter().filter(|field| !field.is_payload()).map(Field::name);
    [id].into_iter().chain(fields).chain(REST).collect()
}

pub static EXECUTION_COLUMNS: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| columns("execution_id", execution::FIELDS));

/// Without the execution: `steps.execution` is its row.
pub static STEP_COLUMNS: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| columns("step_id", step::FIELDS));

/// The payloads as the columns after `STEP_COLUMNS`.
pub const STEP_PAYLOADS: &str = "\
    CASE length(input) WHEN 0 THEN (SELECT value FROM step_payloads p WHERE p.id = 2 * steps.id) \
        ELSE input END, \
    CASE length(output) WHEN 0 THEN (SELECT value FROM step_payloads p WHERE p.id = 2 * steps.id + 1) \
        ELSE output END";

/// One column of a record, borrowed: comparing two of them costs no encoding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell<'a> {
    Null,
    Integer(i64),
    Real(f64),
    Text(&'a str),
    Blob(&'a [u8]),
    Document(&'a Document),
    ErrorInfo(&'a RunError),
    Ids(&'a [i32]),
    Keys(&'a [String]),
    Attempts(&'a [Attempt]),
}

impl ToSql for Cell<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Cell::Null => ToSqlOutput::Borrowed(ValueRef::Null),
            Cell::Integer(value) => ToSqlOutput::Borrowed(ValueRef::Integer(*value)),
            Cell::Real(value) => ToSqlOutput::Borrowed(ValueRef::Real(*value)),
            Cell::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
            Cell::Blob(bytes) => ToSqlOutput::Borrowed(ValueRef::Blob(bytes)),
            Cell::Document(document) => encode(document)?.into(),
            Cell::ErrorInfo(error) => encode(&error_info(error))?.into(),
            Cell::Ids(ids) => serde_json::to_string(ids).map_err(unwritable)?.into(),
            Cell::Keys(keys) => serde_json::to_string(keys).map_err(unwritable)?.into(),
            Cell::Attempts(attempts) => encode(&attempts_document(attempts))?.into(),
        })
    }
}

fn unwritable(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
}

fn encode(document: &Document) -> rusqlite::Result<Vec<u8>> {
    document.to_vec().map_err(unwritable)
}

/// A payload as its column: `None` is nothing. The first byte says whether the document that follows is the
/// value, or holds it under `v` because BSON encodes nothing but documents.
fn encode_payload(value: &Bson) -> rusqlite::Result<Option<Vec<u8>>> {
    let (kind, document) = match value {
        Bson::Null => return Ok(None),
        Bson::Document(document) => (IS_DOCUMENT, encode(document)?),
        value => (HOLDS_VALUE, encode(&bson::doc! { "v": value })?),
    };
    let mut bytes = Vec::with_capacity(1 + document.len());
    bytes.push(kind);
    bytes.extend(document);
    Ok(Some(bytes))
}

fn decode_payload(bytes: &[u8]) -> Option<Bson> {
    let (kind, document) = bytes.split_first()?;
    let document = RawDocument::from_bytes(document).ok()?;
    match *kind {
        IS_DOCUMENT => Some(Bson::Document(document.try_into().ok()?)),
        HOLDS_VALUE => document.get("v").ok()??.try_into().ok(),
        _ => None,
    }
}

fn text(value: &Option<String>) -> Cell<'_> {
    value.as_deref().map_or(Cell::Null, Cell::Text)
}

/// A field as its column. What is empty is NULL, and a status that nobody knows ''.
fn cell<'a, R>(field: &Field<R>, record: &'a R) -> Cell<'a> {
    match (field.get)(record) {
        stored::Cell::Null if matches!(field.set, Set::Word(..)) => Cell::Text(""),
        stored::Cell::Null | stored::Cell::Payload(_) => Cell::Null,
        stored::Cell::Int32(value) => Cell::Integer(value.into()),
        stored::Cell::Int64(value) | stored::Cell::Date(value) => Cell::Integer(value),
        stored::Cell::Bool(value) => Cell::Integer(value.into()),
        stored::Cell::Real(value) => Cell::Real(value),
        stored::Cell::Text(value) => Cell::Text(value),
        stored::Cell::Object(value) if value.is_empty() => Cell::Null,
        stored::Cell::Object(value) => Cell::Document(value),
        stored::Cell::Error(error) => Cell::Text(&error.message),
        stored::Cell::ErrorInfo(error) => Cell::ErrorInfo(error),
        stored::Cell::Ids([]) | stored::Cell::Keys([]) | stored::Cell::Attempts([]) => Cell::Null,
        stored::Cell::Ids(ids) => Cell::Ids(ids),
        stored::Cell::Keys(keys) => Cell::Keys(keys),
        stored::Cell::Attempts(attempts) => Cell::Attempts(attempts),
    }
}

/// Fills the columns of a record from left to right.
fn cells<'a, R, const WIDTH: usize>(
    id: Cell<'a>,
    fields: &[Field<R>],
    record: &'a R,
    revision: i64,
    digests: &'a Digests,
) -> [Cell<'a>; WIDTH] {
    let fields = fields.iter().filter(|field| !field.is_payload());
    let rest = [
        Cell::Integer(revision),
        text(&digests.create),
        text(&digests.start),
        text(&digests.finish),
    ];
    let mut all = [id].into_iter().chain(fields.map(|field| cell(field, record))).chain(rest);
    std::array::from_fn(|_| all.next().unwrap_or(Cell::Null))
}

/// The columns of an execution, in the order of `EXECUTION_COLUMNS`.
pub fn execution_cells(execution: &Execution) -> [Cell<'_>; EXECUTION_WIDTH] {
    let id = Cell::Text(&execution.execution_id);
    let (revision, digests) = (execution.revision, &execution.digests);
    let mut cells: [Cell<'_>; EXECUTION_WIDTH] =
        cells(id, execution::FIELDS, execution, revision, digests);
    if execution.started_at.is_none() {
        cells[*STARTED_AT] = Cell::Integer(NO_START);
    }
    cells
}

/// The column `started_at` of executions, which has a value of its own for none.
static STARTED_AT: LazyLock<usize> = LazyLock::new(|| {
    EXECUTION_COLUMNS.iter().position(|name| *name == "started_at").unwrap_or_default()
});

/// The columns of a step but its payloads, in the order of `STEP_COLUMNS`.
pub fn step_cells(step: &Step) -> [Cell<'_>; STEP_WIDTH] {
    cells(Cell::Integer(step.step_id.into()), step::FIELDS, step, step.revision, &step.digests)
}

/// Reads the columns of one row from left to right.
struct Columns<'a, 'r> {
    row: &'a Row<'r>,
    next: usize,
    names: &'static [&'static str],
    /// The execution of which this row is a step.
    step_of: Option<&'a str>,
}

impl Columns<'_, '_> {
    fn corrupt(&self, index: usize) -> Error {
        let first = match self.row.get_ref(0) {
            Ok(ValueRef::Integer(step_id)) => step_id.to_string(),
            Ok(ValueRef::Text(id)) => String::from_utf8_lossy(id).into_owned(),
            _ => String::new(),
        };
        let field = self.names.get(index).copied().unwrap_or("payload");
        match self.step_of {
            None => Error::Corrupt { collection: "executions", id: first, field },
            Some(execution_id) => {
                Error::Corrupt { collection: "steps", id: format!("{execution_id}/{first}"), field }
            }
        }
    }

    fn get<T: FromSql>(&mut self) -> Result<T> {
        let index = self.next;
        self.next += 1;
        self.row.get(index).map_err(|_| self.corrupt(index))
    }

    /// The column as BSON; NULL is an empty document.
    fn document(&mut self) -> Result<Document> {
        let index = self.next;
        self.next += 1;
        let read = || match self.row.get_ref(index).ok()? {
            ValueRef::Null => Some(Document::new()),
            ValueRef::Blob(bytes) => RawDocument::from_bytes(bytes).ok()?.try_into().ok(),
            _ => None,
        };
        read().ok_or_else(|| self.corrupt(index))
    }

    fn payload(&mut self) -> Result<Payload> {
        let index = self.next;
        self.next += 1;
        let read = || match self.row.get_ref(index).ok()? {
            ValueRef::Null => Some(Bson::Null),
            ValueRef::Blob(bytes) => decode_payload(bytes),
            _ => None,
        };
        read().map(Payload::Value).ok_or_else(|| self.corrupt(index))
    }

    /// The fields of a table, which follow each other.
    fn fields<R>(&mut self, fields: &[Field<R>], record: &mut R) -> Result<()> {
        for field in fields.iter().filter(|field| !field.is_payload()) {
            match &field.set {
                Set::Int32(set) => set(record, self.get()?),
                Set::Int64(set) | Set::Date(set) => set(record, self.get()?),
                Set::Real(set) => set(record, self.get()?),
                Set::Bool(set) => set(record, self.get()?),
                Set::Text(set) => set(record, self.get()?),
                Set::Word(_, set) => set(record, &self.get::<String>()?),
                Set::Object(set) => set(record, self.document()?),
                Set::Error(error) => {
                    let message: Option<String> = self.get()?;
                    *error(record) =
                        message.map(|message| RunError { message, ..RunError::default() });
                }
                Set::ErrorInfo(error) => {
                    let info = self.document()?;
                    if let Some(error) = error(record) {
                        let message = std::mem::take(&mut error.message);
                        *error = run_error(message, info);
                    }
                }
                Set::Ids(set) => set(record, self.list()?),
                Set::Keys(set) => set(record, self.list()?),
                Set::Attempts(set) => set(record, self.attempts()?),
                Set::Payload(_) => {}
            }
        }
        Ok(())
    }

    fn digests(&mut self) -> Result<Digests> {
        Ok(Digests { create: self.get()?, start: self.get()?, finish: self.get()? })
    }

    fn list<T: serde::de::DeserializeOwned>(&mut self) -> Result<Vec<T>> {
        let index = self.next;
        let text: Option<String> = self.get()?;
        match text {
            None => Ok(Vec::new()),
            Some(text) => serde_json::from_str(&text).map_err(|_| self.corrupt(index)),
        }
    }

    fn attempts(&mut self) -> Result<Vec<Attempt>> {
        let index = self.next;
        let document = self.document()?;
        attempts_of(document).ok_or_else(|| self.corrupt(index))
    }
}

/// The execution in a row of `EXECUTION_COLUMNS`.
pub fn execution_of(row: &Row<'_>) -> Result<Execution> {
    let mut columns = Columns { row, next: 0, names: &EXECUTION_COLUMNS, step_of: None };
    let mut execution = Execution { execution_id: columns.get()?, ..Execution::default() };
    columns.fields(execution::FIELDS, &mut execution)?;
    execution.started_at = execution.started_at.filter(|at| *at != NO_START);
    execution.revision = columns.get()?;
    execution.digests = columns.digests()?;
    Ok(execution)
}

/// The step of this execution in a row of `STEP_COLUMNS`, followed by `STEP_PAYLOADS` if `payloads`.
pub fn step_of(row: &Row<'_>, execution_id: &str, payloads: bool) -> Result<Step> {
    let mut columns = Columns { row, next: 0, names: &STEP_COLUMNS, step_of: Some(execution_id) };
    let mut step =
        Step { execution_id: execution_id.to_owned(), step_id: columns.get()?, ..Step::default() };
    columns.fields(step::FIELDS, &mut step)?;
    step.revision = columns.get()?;
    step.digests = columns.digests()?;
    if payloads {
        step.input = columns.payload()?;
        step.output = columns.payload()?;
    }
    Ok(step)
}

fn error_info(error: &RunError) -> Document {
    let mut info = Document::new();
    info.insert("code", error.code.as_str());
    info.insert("stack_trace", error.stack_trace.as_str());
    info.insert("details", error.details.clone());
    info
}

fn run_error(message: String, mut info: Document) -> RunError {
    let mut text = |name| match info.remove(name) {
        Some(Bson::String(text)) => text,
        _ => String::new(),
    };
    let (code, stack_trace) = (text("code"), text("stack_trace"));
    let details = match info.remove("details") {
        Some(Bson::Document(details)) => details,
        _ => Document::new(),
    };
    RunError { message, code, stack_trace, details }
}

fn attempts_document(attempts: &[Attempt]) -> Document {
    let attempts = attempts.iter().map(|attempt| {
        let mut document = Document::new();
        document.insert("started_at", attempt.started_at);
        document.insert("completed_at", attempt.completed_at);
        document.insert("duration_ms", attempt.duration_ms);
        if let Some(error) = &attempt.error {
            document.insert("error", error.message.as_str());
            document.insert("error_info", error_info(error));
        }
        Bson::Document(document)
    });
    let mut document = Document::new();
    document.insert("attempts", attempts.collect::<Vec<_>>());
    document
}

fn attempts_of(mut document: Document) -> Option<Vec<Attempt>> {
    let attempts = match document.remove("attempts") {
        None => return Some(Vec::new()),
        Some(Bson::Array(attempts)) => attempts,
        Some(_) => return None,
    };
    attempts
        .into_iter()
        .map(|attempt| {
            let Bson::Document(mut attempt) = attempt else { return None };
            let info = match attempt.remove("error_info") {
                Some(Bson::Document(info)) => info,
                _ => Document::new(),
            };
            let error = match attempt.remove("error") {
                Some(Bson::String(message)) => Some(run_error(message, info)),
                _ => None,
            };
            let integer = |name| attempt.get_i64(name).ok();
            Some(Attempt {
                started_at: integer("started_at"),
                completed_at: integer("completed_at"),
                duration_ms: integer("duration_ms"),
                error,
            })
        })
        .collect()
}

/// The columns in which two records differ: place, name and new value.
pub fn differences<'a>(
    names: &[&'static str],
    old: &[Cell<'_>],
    new: &[Cell<'a>],
) -> Vec<(usize, &'static str, Cell<'a>)> {
    let columns = names.iter().zip(old).zip(new).enumerate();
    columns
        .filter(|(_, ((_, old), new))| old != new)
        .map(|(place, ((name, _), new))| (place, *name, *new))
        .collect()
}

/// What becomes of a payload's column.
pub enum PayloadChange {
    Same,
    /// In the row of the step.
    Inline(Option<Vec<u8>>),
    /// In a row of its own, too long to be rewritten with every change of the step.
    Apart(Vec<u8>),
}

impl PayloadChange {
    pub fn of(before: Option<&Payload>, after: &Payload) -> Result<PayloadChange> {
        let Payload::Value(value) = after else { return Ok(PayloadChange::Same) };
        if before == Some(after) {
            return Ok(PayloadChange::Same);
        }
        Ok(match encode_payload(value)? {
            Some(bytes) if bytes.len() > INLINE_BYTES => PayloadChange::Apart(bytes),
            bytes => PayloadChange::Inline(bytes),
        })
    }

    pub fn cell(&self) -> Option<Cell<'_>> {
        match self {
            PayloadChange::Same => None,
            PayloadChange::Inline(None) => Some(Cell::Null),
            PayloadChange::Inline(Some(bytes)) => Some(Cell::Blob(bytes)),
            PayloadChange::Apart(_) => Some(Cell::Blob(&[])),
        }
    }
}
