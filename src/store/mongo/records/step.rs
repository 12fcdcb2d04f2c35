//! Steps as MongoDB documents and back. Field names and types are shared with other programs, so writing is exact and
//! reading is tolerant.

use std::collections::{HashMap, HashSet};

use bson::oid::ObjectId;
use bson::raw::{RawDocument, RawDocumentBuf, cstr};
use bson::{Bson, Document, doc, rawdoc};

use super::cache::Birth;
use super::guard::{
    DEPENDS_ON_GUARDED, Difference, Guard, METADATA_GUARDED_BYTES, Rest, Update, guard_date,
    guard_document, guard_metadata, guard_revision, guard_status,
};
use super::parts::{
    append_value, attempts, digests, error_info, error_message, integers, message, read_attempts,
    read_digests, read_error,
};
use crate::domain::{Digests, Payload, Step, StepStatus, value};
use crate::store::Result;
use crate::store::mongo::db::values::{
    any, corrupt, date, integer, millis, nullable, number, object, present, raw, small, text,
};
use crate::store::mongo::names::STEPS;

/// A new step.
pub fn insert(record: &Step) -> Result<RawDocumentBuf> {
    let mut to = RawDocumentBuf::new();
    to.append(cstr!("_id"), ObjectId::new());
    to.append(cstr!("execution_id"), record.execution_id.as_str());
    to.append(cstr!("step_id"), record.step_id);
    present(&mut to, cstr!("step_key"), record.step_key.as_deref());
    to.append(cstr!("step_name"), record.step_name.as_str());
    nullable(&mut to, cstr!("step_version"), record.step_version.as_deref());
    nullable(&mut to, cstr!("status"), record.status.map(StepStatus::as_str));
    nullable(&mut to, cstr!("started_at"), record.started_at.map(date));
    nullable(&mut to, cstr!("completed_at"), record.completed_at.map(date));
    nullable(&mut to, cstr!("duration_ms"), record.duration_ms);
    match record.input.value() {
        None | Some(Bson::Null) => to.append(cstr!("input"), RawDocumentBuf::new()),
        Some(input) => append_value(&mut to, cstr!("input"), input)?,
    }
    append_value(&mut to, cstr!("output"), record.output.value().unwrap_or(&Bson::Null))?;
    nullable(&mut to, cstr!("error"), message(record.error.as_ref()));
    to.append(cstr!("retry_count"), record.retry_count);
    to.append(cstr!("metadata"), raw(&record.metadata)?);
    to.append(cstr!("revision"), record.revision);
    nullable(&mut to, cstr!("created_at"), record.created_at.map(date));
    nullable(&mut to, cstr!("updated_at"), record.updated_at.map(date));
    present(&mut to, cstr!("error_info"), error_info(record.error.as_ref())?);
    to.append(cstr!("depends_on"), integers(&record.depends_on));
    present(&mut to, cstr!("parent_step_id"), record.parent_step_id);
    present(&mut to, cstr!("progress"), record.progress);
    present(&mut to, cstr!("progress_message"), record.progress_message.as_deref());
    present(&mut to, cstr!("update_sequence"), record.update_sequence);
    to.append(cstr!("attempts"), attempts(&record.attempts)?);
    present(&mut to, cstr!("digests"), digests(&record.digests));
    to.append(cstr!("last_change"), record.last_change().as_str());
    Ok(to)
}

/// Whether a step has nothing but what a size and a few values tell of its document.
fn is_plain(step: &Step) -> bool {
    step.error.is_none()
        && step.attempts.is_empty()
        && step.completed_at.is_none()
        && step.depends_on.len() <= DEPENDS_ON_GUARDED
        && value::size_of_document(&step.metadata) <= METADATA_GUARDED_BYTES
}

/// Matches the document of a step as this server has inserted it. A third of the predicates of `guarded_step` and
/// three quarters of its time: the size stands for all fields without a value.
fn born_step(step: &Step, birth: Birth) -> Result<RawDocumentBuf> {
    let mut query = rawdoc! { "_id": birth.id };
    query.append(cstr!("revision"), step.revision);
    present(&mut query, cstr!("status"), step.status.map(StepStatus::as_str));
    query.append(cstr!("step_name"), step.step_name.as_str());
    present(&mut query, cstr!("step_key"), step.step_key.as_deref());
    present(&mut query, cstr!("step_version"), step.step_version.as_deref());
    present(&mut query, cstr!("started_at"), step.started_at.map(date));
    present(&mut query, cstr!("duration_ms"), step.duration_ms);
    present(&mut query, cstr!("created_at"), step.created_at.map(date));
    present(&mut query, cstr!("updated_at"), step.updated_at.map(date));
    query.append(cstr!("retry_count"), step.retry_count);
    if !step.metadata.is_empty() {
        query.append(cstr!("metadata"), rawdoc! { "$eq": raw(&step.metadata)? });
    }
    if !step.depends_on.is_empty() {
        query.append(cstr!("depends_on"), integers(&step.depends_on));
    }
    present(&mut query, cstr!("parent_step_id"), step.parent_step_id);
    present(&mut query, cstr!("progress"), step.progress);
    present(&mut query, cstr!("progress_message"), step.progress_message.as_deref());
    present(&mut query, cstr!("update_sequence"), step.update_sequence);
    let size = rawdoc! { "$bsonSize": "$$ROOT" };
    query.append(cstr!("$expr"), rawdoc! { "$eq": [size, birth.bytes] });
    Ok(query)
}

fn guarded_step(before: &Step, after: &Step, guard: Guard) -> Result<(RawDocumentBuf, bool)> {
    let mut exact = guard == Guard::Whole;
    let mut query = rawdoc! {
        "execution_id": before.execution_id.as_str(),
        "step_id": before.step_id,
    };
    guard_revision(&mut query, before.revision);
    guard_status(
        &mut query,
        before.status.map(StepStatus::as_str),
        &StepStatus::ALL.map(StepStatus::as_str),
    );
    guard_date(&mut query, cstr!("started_at"), before.started_at);
    guard_date(&mut query, cstr!("updated_at"), before.updated_at);
    if before.metadata != after.metadata {
        guard_document(&mut query, cstr!("metadata"), &before.metadata)?;
    }
    if guard == Guard::Whole {
        if before.metadata == after.metadata {
            exact = guard_metadata(&mut query, &before.metadata)?;
        }
        let mut rest = Rest(&mut query);
        rest.text(cstr!("step_key"), before.step_key.as_ref(), after.step_key.as_ref());
        rest.text(cstr!("step_name"), Some(&before.step_name), Some(&after.step_name));
        rest.text(cstr!("step_version"), before.step_version.as_ref(), after.step_version.as_ref());
        rest.date(cstr!("completed_at"), before.completed_at, after.completed_at);
        rest.value(cstr!("duration_ms"), before.duration_ms, after.duration_ms);
        rest.error(before.error.as_ref(), after.error.as_ref())?;
        rest.date(cstr!("created_at"), before.created_at, after.created_at);
        rest.integers(cstr!("depends_on"), &before.depends_on, &after.depends_on);
        rest.value(cstr!("parent_step_id"), before.parent_step_id, after.parent_step_id);
        rest.value(cstr!("progress"), before.progress, after.progress);
        rest.text(
            cstr!("progress_message"),
            before.progress_message.as_ref(),
            after.progress_message.as_ref(),
        );
        rest.value(cstr!("update_sequence"), before.update_sequence, after.update_sequence);
    }
    if guard == Guard::Whole
        || before.retry_count != after.retry_count
        || before.attempts != after.attempts
    {
        match before.retry_count {
            0 => query.append(cstr!("retry_count"), rawdoc! { "$in": [0, null] }),
            count => query.append(cstr!("retry_count"), count),
        }
        match i32::try_from(before.attempts.len()) {
            Ok(0) | Err(_) => {
                query.append(cstr!("attempts"), rawdoc! { "$in": [null, []] });
            }
            Ok(count) => query.append(cstr!("attempts"), rawdoc! { "$size": count }),
        }
    }
    if before.output != after.output
        && let (Payload::Value(Bson::Document(read)), Payload::Value(Bson::Document(_))) =
            (&before.output, &after.output)
    {
        // Merged into what was read.
        guard_document(&mut query, cstr!("output"), read)?;
    }
    Ok((query, exact))
}

/// An update of a step from one state to another, which changes nothing unless the document still is what the
/// decision was made on.
pub fn update(
    before: &Step,
    after: &Step,
    guard: Guard,
    birth: Option<Birth>,
    mark: i64,
) -> Result<Update> {
    let merged = before.output != after.output
        && matches!(before.output.value(), Some(Bson::Document(_)))
        && matches!(after.output.value(), Some(Bson::Document(_)));
    let plain = guard == Guard::Whole && is_plain(before) && !merged;
    let (query, exact) = match birth.filter(|_| plain) {
        Some(birth) => (born_step(before, birth)?, true),
        None => guarded_step(before, after, guard)?,
    };
    let mut to = Difference::new();
    to.present(cstr!("step_key"), before.step_key != after.step_key, after.step_key.as_deref());
    to.nullable(
        cstr!("step_version"),
        before.step_version != after.step_version,
        after.step_version.as_deref(),
    );
    let status = after.status.map(StepStatus::as_str);
    to.nullable(cstr!("status"), before.status != after.status, status);
    to.nullable(
        cstr!("started_at"),
        before.started_at != after.started_at,
        after.started_at.map(date),
    );
    to.nullable(
        cstr!("completed_at"),
        before.completed_at != after.completed_at,
        after.completed_at.map(date),
    );
    to.nullable(cstr!("duration_ms"), before.duration_ms != after.duration_ms, after.duration_ms);
    if let Some(input) = after.input.value()
        && before.input != after.input
    {
        append_value(&mut to.set, cstr!("input"), input)?;
    }
    if let Some(output) = after.output.value()
        && before.output != after.output
    {
        append_value(&mut to.set, cstr!("output"), output)?;
    }
    to.error(before.error.as_ref(), after.error.as_ref())?;
    if before.retry_count != after.retry_count {
        to.set.append(cstr!("retry_count"), after.retry_count);
    }
    if before.metadata != after.metadata {
        to.set.append(cstr!("metadata"), raw(&after.metadata)?);
    }
    to.nullable(
        cstr!("updated_at"),
        before.updated_at != after.updated_at,
        after.updated_at.map(date),
    );
    if before.depends_on != after.depends_on {
        to.set.append(cstr!("depends_on"), integers(&after.depends_on));
    }
    to.present(
        cstr!("parent_step_id"),
        before.parent_step_id != after.parent_step_id,
        after.parent_step_id,
    );
    to.present(cstr!("progress"), before.progress != after.progress, after.progress);
    to.present(
        cstr!("progress_message"),
        before.progress_message != after.progress_message,
        after.progress_message.as_deref(),
    );
    to.present(
        cstr!("update_sequence"),
        before.update_sequence != after.update_sequence,
        after.update_sequence,
    );
    if before.attempts != after.attempts {
        to.set.append(cstr!("attempts"), attempts(&after.attempts)?);
    }
    if before.revision != after.revision {
        to.set.append(cstr!("revision"), after.revision);
        to.set.append(cstr!("last_change"), after.last_change().as_str());
        to.digests(&before.digests, &after.digests);
        to.made(after.revision, mark);
    }
    let by_id = query.get_object_id("_id").is_ok();
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
    let mut error = None;
    let mut info = None;
    let absent = || match payloads {
        true => Payload::Value(Bson::Null),
        false => Payload::Stored,
    };
    let mut record = Step {
        execution_id: String::new(),
        step_id: 0,
        step_key: None,
        step_name: String::new(),
        step_version: None,
        status: None,
        started_at: None,
        completed_at: None,
        duration_ms: None,
        input: match payloads {
            true => Payload::Value(Bson::Document(Document::new())),
            false => Payload::Stored,
        },
        output: absent(),
        error: None,
        retry_count: 0,
        metadata: Document::new(),
        revision: 0,
        created_at: None,
        updated_at: None,
        depends_on: Vec::new(),
        parent_step_id: None,
        progress: None,
        progress_message: None,
        update_sequence: None,
        attempts: Vec::new(),
        digests: Digests::default(),
    };
    for element in raw {
        let (key, value) = element.map_err(|_| corrupt(STEPS, raw, "document"))?;
        match key.as_str() {
            "execution_id" => execution_id = text(value),
            "step_id" => step_id = small(value),
            "step_key" => record.step_key = text(value).filter(|key| !key.is_empty()),
            "step_name" => record.step_name = text(value).unwrap_or_default(),
            "step_version" => record.step_version = text(value),
            "status" => record.status = value.as_str().and_then(StepStatus::parse),
            "started_at" => record.started_at = millis(value),
            "completed_at" => record.completed_at = millis(value),
            "duration_ms" => record.duration_ms = integer(value),
            "input" if payloads => {
                record.input = Payload::Value(any(value).unwrap_or(Bson::Null));
            }
            "output" if payloads => {
                record.output = Payload::Value(any(value).unwrap_or(Bson::Null));
            }
            "error" => error = error_message(value),
            "error_info" => info = value.as_document(),
            "retry_count" => record.retry_count = small(value).unwrap_or(0),
            "metadata" => record.metadata = object(value),
            "revision" => record.revision = integer(value).unwrap_or(0),
            "created_at" => record.created_at = millis(value),
            "updated_at" => record.updated_at = millis(value),
            "depends_on" => {
                if let Some(array) = value.as_array() {
                    record.depends_on = array.into_iter().flatten().filter_map(small).collect();
                }
            }
            "parent_step_id" => record.parent_step_id = small(value),
            "progress" => record.progress = number(value),
            "progress_message" => record.progress_message = text(value),
            "update_sequence" => record.update_sequence = integer(value),
            "attempts" => record.attempts = read_attempts(value),
            "digests" => record.digests = read_digests(value),
            _ => {}
        }
    }
    record.execution_id = execution_id.ok_or_else(|| corrupt(STEPS, raw, "execution_id"))?;
    record.step_id = step_id.ok_or_else(|| corrupt(STEPS, raw, "step_id"))?;
    record.error = read_error(error, info);
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
