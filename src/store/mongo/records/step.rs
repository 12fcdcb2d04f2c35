//! Steps as MongoDB documents and back. Field names and types are shared with other programs, so writing is exact and
//! reading is tolerant.

use std::collections::{HashMap, HashSet};

use bson::oid::ObjectId;
use bson::raw::{RawDocument, RawDocumentBuf, cstr};
use bson::{Bson, Document, doc, rawdoc};

use super::cache::Birth;
use super::fields;
use super::guard::{
    DEPENDS_ON_GUARDED, Difference, Guard, METADATA_GUARDED_BYTES, Update, guard_document,
    guard_revision, guard_stored,
};
use super::parts::{digests, read_digests};
use crate::domain::step::FIELDS;
use crate::domain::{Payload, Step, value};
use crate::store::Result;
use crate::store::mongo::db::values::{corrupt, integer, present, small, text};
use crate::store::mongo::names::STEPS;

/// A new step.
pub fn insert(record: &Step) -> Result<RawDocumentBuf> {
    let mut to = RawDocumentBuf::new();
    to.append(cstr!("_id"), ObjectId::new());
    to.append(cstr!("execution_id"), record.execution_id.as_str());
    to.append(cstr!("step_id"), record.step_id);
    fields::insert(&mut to, FIELDS, record)?;
    to.append(cstr!("revision"), record.revision);
    present(&mut to, cstr!("digests"), digests(&record.digests));
    to.append(cstr!("last_change"), record.last_change().as_str());
    Ok(to)
}

/// Whether a step has nothing but what a size and a few values tell of its document.
fn is_plain(step: &Step) -> bool {
    step.error.is_none()
        && step.attempts.is_empty()
        && step.completed_at.is_none()
        && step.depends_on.len() + step.depends_on_keys.len() <= DEPENDS_ON_GUARDED
        && value::size_of_document(&step.metadata) <= METADATA_GUARDED_BYTES
}

/// Matches the document of a step as this server has inserted it. A third of the predicates of `guarded_step` and
/// three quarters of its time: the size stands for all fields without a value.
fn born_step(step: &Step, birth: Birth) -> Result<RawDocumentBuf> {
    // The execution says on which shard it is.
    let mut query = rawdoc! { "_id": birth.id, "execution_id": step.execution_id.as_str() };
    query.append(cstr!("revision"), step.revision);
    fields::values(&mut query, FIELDS, step)?;
    let size = rawdoc! { "$bsonSize": "$$ROOT" };
    query.append(cstr!("$expr"), rawdoc! { "$eq": [size, birth.bytes] });
    Ok(query)
}

fn guarded_step(before: &Step, after: &Step, guard: Guard) -> Result<(RawDocumentBuf, bool)> {
    let mut query = rawdoc! {
        "execution_id": before.execution_id.as_str(),
        "step_id": before.step_id,
    };
    guard_revision(&mut query, before.revision);
    let exact = fields::guards(&mut query, FIELDS, (before, after), guard)?;
    if before.output != after.output
        && let (Payload::Value(Bson::Document(read)), Payload::Value(Bson::Document(_))) =
            (&before.output, &after.output)
    {
        // Merged into what was read.
        guard_document(&mut query, cstr!("output"), read)?;
    }
    Ok((query, exact))
}

/// Guards the very document. `merged`: what the output was matters too, and the document was read with it.
fn guard_of(
    stored: &RawDocument,
    before: &Step,
    after: &Step,
    guard: Guard,
    merged: bool,
) -> Option<RawDocumentBuf> {
    let mut keys = vec![cstr!("execution_id"), cstr!("step_id"), cstr!("revision")];
    keys.extend(fields::decisive(FIELDS, (before, after), guard));
    if merged {
        keys.push(cstr!("output"));
    }
    guard_stored(stored, &keys)
}

/// An update of a step from one state to another, which changes nothing unless the document still is what the
/// decision was made on.
pub fn update(
    before: &Step,
    after: &Step,
    guard: Guard,
    birth: Option<Birth>,
    stored: Option<&RawDocument>,
    mark: i64,
) -> Result<Update> {
    let merged = before.output != after.output
        && matches!(before.output.value(), Some(Bson::Document(_)))
        && matches!(after.output.value(), Some(Bson::Document(_)));
    let plain = guard == Guard::Whole && is_plain(before) && !merged;
    let stored = stored.and_then(|stored| guard_of(stored, before, after, guard, merged));
    let (query, exact) = match (stored, birth.filter(|_| plain)) {
        (Some(query), _) => (query, false),
        (None, Some(birth)) => (born_step(before, birth)?, true),
        (None, None) => guarded_step(before, after, guard)?,
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

/// A step as some program stored it. With `payloads` the document was read whole, so an absent input or output
/// is none; without, they were left out of the question.
pub fn read(raw: &RawDocument, payloads: bool) -> Result<Step> {
    let mut execution_id = None;
    let mut step_id = None;
    let mut record = Step::default();
    if payloads {
        record.input = Payload::Value(Bson::Document(Document::new()));
        record.output = Payload::Value(Bson::Null);
    }
    fields::read(raw, FIELDS, &mut record, payloads, |record, key, value| match key {
        "execution_id" => execution_id = text(value),
        "step_id" => step_id = small(value),
        "revision" => record.revision = integer(value).unwrap_or(0),
        "digests" => record.digests = read_digests(value),
        _ => {}
    })
    .map_err(|_| corrupt(STEPS, raw, "document"))?;
    record.execution_id = execution_id.ok_or_else(|| corrupt(STEPS, raw, "execution_id"))?;
    record.step_id = step_id.ok_or_else(|| corrupt(STEPS, raw, "step_id"))?;
    Ok(record)
}

/// The projection without payloads.
pub fn no_payloads() -> Document {
    doc! { "input": 0, "output": 0 }
}

/// Filters for steps by their numbers and their keys.
pub fn alternatives(
    steps: &HashMap<String, HashSet<i32>>,
    keys: &HashMap<String, HashSet<String>>,
) -> Vec<Document> {
    let mut alternatives = Vec::new();
    for (id, steps) in steps {
        let numbers: Vec<i32> = steps.iter().copied().collect();
        match numbers.as_slice() {
            [] => {}
            [one] => alternatives.push(doc! { "execution_id": id, "step_id": *one }),
            _ => alternatives.push(doc! { "execution_id": id, "step_id": { "$in": numbers } }),
        }
    }
    for (id, keys) in keys {
        // One by one: the partial index on keys is used by plain equality.
        for key in keys {
            alternatives.push(doc! { "execution_id": id, "step_key": key });
        }
    }
    alternatives
}
