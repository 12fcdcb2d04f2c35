//! Executions as MongoDB documents and back. Field names and types are shared with other programs, so writing is exact
//! and reading is tolerant.

use bson::oid::ObjectId;
use bson::raw::{RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::rawdoc;

use super::fields;
use super::guard::{Difference, Guard, Update, guard_date, guard_revision, guard_stored};
use super::parts::{digests, read_digests};
use super::segments::odd_start;
use crate::domain::Execution;
use crate::domain::execution::FIELDS;
use crate::store::Result;
use crate::store::mongo::db::values::{corrupt, field, integer, present, text};
use crate::store::mongo::names::EXECUTIONS;

/// A new execution.
pub fn insert(record: &Execution) -> Result<RawDocumentBuf> {
    let mut to = RawDocumentBuf::new();
    to.append(cstr!("_id"), ObjectId::new());
    to.append(cstr!("execution_id"), record.execution_id.as_str());
    fields::insert(&mut to, FIELDS, record)?;
    to.append(cstr!("revision"), record.revision);
    present(&mut to, cstr!("digests"), digests(&record.digests));
    to.append(cstr!("last_change"), record.last_change().as_str());
    Ok(to)
}

/// An update of an execution from one state to another, which changes nothing unless the document still is what
/// the decision was made on. Another program leaves `revision` alone, so everything that was read is guarded.
///
/// `stored` is the document that was read, once nothing less is good enough.
pub fn update(
    before: &Execution,
    after: &Execution,
    guard: Guard,
    stored: Option<&RawDocument>,
    mark: i64,
) -> Result<Update> {
    let stored = stored.and_then(|stored| guard_of(stored, before, after, guard));
    let (query, exact) = match stored {
        Some(query) => (query, false),
        None => guarded(before, after, guard)?,
    };
    let mut to = Difference::new();
    fields::differences(&mut to, FIELDS, before, after)?;
    if before.revision != after.revision {
        to.revision(after.revision, &after.last_change(), mark);
        to.digests(&before.digests, &after.digests);
    }
    let by_id = matches!(query.get("_id"), Ok(Some(_)));
    let mut statement = to.statement(query, &before.execution_id);
    if by_id {
        statement.append(cstr!("hint"), "_id_");
    }
    Ok(Update { statement, exact })
}

/// Guards the very document.
fn guard_of(
    stored: &RawDocument,
    before: &Execution,
    after: &Execution,
    guard: Guard,
) -> Option<RawDocumentBuf> {
    let mut keys = vec![cstr!("execution_id"), cstr!("revision")];
    keys.extend(fields::decisive(FIELDS, (before, after), guard));
    if before.last_heartbeat_at != after.last_heartbeat_at || after.ended_for_silence() {
        keys.push(cstr!("last_heartbeat_at"));
    }
    guard_stored(stored, &keys)
}

fn guarded(before: &Execution, after: &Execution, guard: Guard) -> Result<(RawDocumentBuf, bool)> {
    let mut query = rawdoc! { "execution_id": before.execution_id.as_str() };
    guard_revision(&mut query, before.revision);
    let exact = fields::guards(&mut query, FIELDS, (before, after), guard)?;
    if before.last_heartbeat_at != after.last_heartbeat_at
        || (after.ended_for_silence() && !before.ended_for_silence())
    {
        guard_date(&mut query, cstr!("last_heartbeat_at"), before.last_heartbeat_at);
    }
    Ok((query, exact))
}

/// An execution as some program stored it. Only `execution_id` has to be readable.
pub fn read(raw: &RawDocument) -> Result<Execution> {
    match raw.get_str("execution_id") {
        Ok(_) => read_without_id(raw),
        Err(_) => Err(corrupt(EXECUTIONS, raw, "execution_id")),
    }
}

/// The same of a document that may have none.
pub fn read_without_id(raw: &RawDocument) -> Result<Execution> {
    let mut execution_id = None;
    let mut record = Execution::default();
    fields::read(raw, FIELDS, &mut record, true, |record, key, value| match key {
        "execution_id" => execution_id = text(value),
        "revision" => record.revision = integer(value).unwrap_or(0),
        "digests" => record.digests = read_digests(value),
        _ => {}
    })
    .map_err(|_| corrupt(EXECUTIONS, raw, "document"))?;
    record.execution_id = execution_id.unwrap_or_default();
    if record.started_at.is_none()
        && !matches!(field(raw, "started_at"), None | Some(RawBsonRef::Null))
    {
        record.odd_start = odd_start(raw);
    }
    Ok(record)
}
