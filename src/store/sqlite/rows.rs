//! Rows and records. The order of the columns is said once per table, and reading and writing follow it.
//! Knows no connection.

use bson::{Bson, Document, RawDocument};
use rusqlite::Row;
use rusqlite::types::{FromSql, ToSql, ToSqlOutput, ValueRef};

use super::schema::NO_START;
use crate::domain::{
    Attempt, Digests, Execution, ExecutionStatus, Payload, RunError, Step, StepStatus,
};
use crate::store::{Error, Result};

/// Payloads up to this length stand in the row of their step; it is rewritten with every change.
pub const INLINE_BYTES: usize = 2048;

const IS_DOCUMENT: u8 = 0;
const HOLDS_VALUE: u8 = 1;

pub const EXECUTION_COLUMNS: [&str; 28] = [
    "execution_id",
    "app_id",
    "app_name",
    "sub_app_id",
    "sub_app_name",
    "user_id",
    "status",
    "started_at",
    "completed_at",
    "duration_ms",
    "error",
    "error_info",
    "metadata",
    "created_at",
    "updated_at",
    "revision",
    "heartbeat_timeout_ms",
    "last_heartbeat_at",
    "cancel_requested_at",
    "cancel_reason",
    "parent_execution_id",
    "pinned",
    "configuration_version",
    "update_sequence",
    "create_digest",
    "start_digest",
    "finish_digest",
    "deleted_at",
];

/// Without the execution: `steps.execution` is its row.
pub const STEP_COLUMNS: [&str; 24] = [
    "step_id",
    "step_key",
    "step_name",
    "step_version",
    "status",
    "started_at",
    "completed_at",
    "duration_ms",
    "error",
    "error_info",
    "retry_count",
    "metadata",
    "revision",
    "created_at",
    "updated_at",
    "depends_on",
    "parent_step_id",
    "progress",
    "progress_message",
    "update_sequence",
    "attempts",
    "create_digest",
    "start_digest",
    "finish_digest",
];

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

fn integer(value: Option<impl Into<i64>>) -> Cell<'static> {
    value.map_or(Cell::Null, |value| Cell::Integer(value.into()))
}

fn document(value: &Document) -> Cell<'_> {
    if value.is_empty() { Cell::Null } else { Cell::Document(value) }
}

fn error_cells(error: &Option<RunError>) -> [Cell<'_>; 2] {
    match error {
        None => [Cell::Null, Cell::Null],
        Some(error) => {
            let rest = !error.code.is_empty()
                || !error.stack_trace.is_empty()
                || !error.details.is_empty();
            [Cell::Text(&error.message), if rest { Cell::ErrorInfo(error) } else { Cell::Null }]
        }
    }
}

/// The columns of an execution, in the order of `EXECUTION_COLUMNS`.
pub fn execution_cells(execution: &Execution) -> [Cell<'_>; EXECUTION_COLUMNS.len()] {
    let [error, error_info] = error_cells(&execution.error);
    [
        Cell::Text(&execution.execution_id),
        integer(execution.app_id),
        Cell::Text(&execution.app_name),
        integer(execution.sub_app_id),
        text(&execution.sub_app_name),
        text(&execution.user_id),
        Cell::Text(execution.status.map_or("", ExecutionStatus::as_str)),
        Cell::Integer(execution.started_at.unwrap_or(NO_START)),
        integer(execution.completed_at),
        integer(execution.duration_ms),
        error,
        error_info,
        document(&execution.metadata),
        integer(execution.created_at),
        integer(execution.updated_at),
        Cell::Integer(execution.revision),
        integer(execution.heartbeat_timeout_ms),
        integer(execution.last_heartbeat_at),
        integer(execution.cancel_requested_at),
        text(&execution.cancel_reason),
        text(&execution.parent_execution_id),
        integer(execution.pinned),
        text(&execution.configuration_version),
        integer(execution.update_sequence),
        text(&execution.digests.create),
        text(&execution.digests.start),
        text(&execution.digests.finish),
        integer(execution.deleted_at),
    ]
}

/// The columns of a step but its payloads, in the order of `STEP_COLUMNS`.
pub fn step_cells(step: &Step) -> [Cell<'_>; STEP_COLUMNS.len()] {
    let [error, error_info] = error_cells(&step.error);
    [
        Cell::Integer(step.step_id.into()),
        text(&step.step_key),
        Cell::Text(&step.step_name),
        text(&step.step_version),
        Cell::Text(step.status.map_or("", StepStatus::as_str)),
        integer(step.started_at),
        integer(step.completed_at),
        integer(step.duration_ms),
        error,
        error_info,
        Cell::Integer(step.retry_count.into()),
        document(&step.metadata),
        Cell::Integer(step.revision),
        integer(step.created_at),
        integer(step.updated_at),
        if step.depends_on.is_empty() { Cell::Null } else { Cell::Ids(&step.depends_on) },
        integer(step.parent_step_id),
        step.progress.map_or(Cell::Null, Cell::Real),
        text(&step.progress_message),
        integer(step.update_sequence),
        if step.attempts.is_empty() { Cell::Null } else { Cell::Attempts(&step.attempts) },
        text(&step.digests.create),
        text(&step.digests.start),
        text(&step.digests.finish),
    ]
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

    fn error(&mut self) -> Result<Option<RunError>> {
        let message: Option<String> = self.get()?;
        let info = self.document()?;
        Ok(message.map(|message| run_error(message, info)))
    }

    fn digests(&mut self) -> Result<Digests> {
        Ok(Digests { create: self.get()?, start: self.get()?, finish: self.get()? })
    }

    fn ids(&mut self) -> Result<Vec<i32>> {
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
    Ok(Execution {
        execution_id: columns.get()?,
        app_id: columns.get()?,
        app_name: columns.get()?,
        sub_app_id: columns.get()?,
        sub_app_name: columns.get()?,
        user_id: columns.get()?,
        status: ExecutionStatus::parse(&columns.get::<String>()?),
        started_at: Some(columns.get()?).filter(|at| *at != NO_START),
        completed_at: columns.get()?,
        duration_ms: columns.get()?,
        error: columns.error()?,
        metadata: columns.document()?,
        created_at: columns.get()?,
        updated_at: columns.get()?,
        revision: columns.get()?,
        heartbeat_timeout_ms: columns.get()?,
        last_heartbeat_at: columns.get()?,
        cancel_requested_at: columns.get()?,
        cancel_reason: columns.get()?,
        parent_execution_id: columns.get()?,
        pinned: columns.get()?,
        configuration_version: columns.get()?,
        update_sequence: columns.get()?,
        digests: columns.digests()?,
        deleted_at: columns.get()?,
    })
}

/// The step of this execution in a row of `STEP_COLUMNS`, followed by `STEP_PAYLOADS` if `payloads`.
pub fn step_of(row: &Row<'_>, execution_id: &str, payloads: bool) -> Result<Step> {
    let mut columns = Columns { row, next: 0, names: &STEP_COLUMNS, step_of: Some(execution_id) };
    let mut step = Step {
        execution_id: execution_id.to_owned(),
        step_id: columns.get()?,
        step_key: columns.get()?,
        step_name: columns.get()?,
        step_version: columns.get()?,
        status: StepStatus::parse(&columns.get::<String>()?),
        started_at: columns.get()?,
        completed_at: columns.get()?,
        duration_ms: columns.get()?,
        input: Payload::Stored,
        output: Payload::Stored,
        error: columns.error()?,
        retry_count: columns.get()?,
        metadata: columns.document()?,
        revision: columns.get()?,
        created_at: columns.get()?,
        updated_at: columns.get()?,
        depends_on: columns.ids()?,
        parent_step_id: columns.get()?,
        progress: columns.get()?,
        progress_message: columns.get()?,
        update_sequence: columns.get()?,
        attempts: columns.attempts()?,
        digests: columns.digests()?,
    };
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
