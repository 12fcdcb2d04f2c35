//! What documents of executions and steps have in common: errors, digests, tries, and values of any type.

use bson::raw::{CStr, RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::{Bson, RawArrayBuf};

use crate::domain::{Attempt, Digests, RunError};
use crate::store::mongo::db::values::{
    any, date, field, integer, millis, nullable, object, present, raw, text,
};
use crate::store::{Error, Result};

pub fn append_value(to: &mut RawDocumentBuf, key: &'static CStr, value: &Bson) -> Result<()> {
    match value {
        Bson::Null => to.append(key, RawBsonRef::Null),
        Bson::String(text) => to.append(key, text.as_str()),
        Bson::Document(document) => to.append(key, raw(document)?),
        other => to.append(key, bson::RawBson::try_from(other.clone()).map_err(Error::failed)?),
    }
    Ok(())
}

/// What of an error does not fit the seed field `error`.
pub fn error_info(error: &RunError) -> Result<RawDocumentBuf> {
    let mut info = RawDocumentBuf::new();
    info.append(cstr!("code"), error.code.as_str());
    info.append(cstr!("stack_trace"), error.stack_trace.as_str());
    info.append(cstr!("details"), raw(&error.details)?);
    Ok(info)
}

pub fn digests(digests: &Digests) -> Option<RawDocumentBuf> {
    if *digests == Digests::default() {
        return None;
    }
    let mut document = RawDocumentBuf::new();
    present(&mut document, cstr!("create"), digests.create.as_deref());
    present(&mut document, cstr!("start"), digests.start.as_deref());
    present(&mut document, cstr!("finish"), digests.finish.as_deref());
    Some(document)
}

pub fn integers(values: &[i32]) -> RawArrayBuf {
    values.iter().copied().collect()
}

pub fn texts(values: &[String]) -> RawArrayBuf {
    values.iter().map(String::as_str).collect()
}

pub fn attempts(attempts: &[Attempt]) -> Result<RawArrayBuf> {
    let mut array = RawArrayBuf::new();
    for attempt in attempts {
        let mut document = RawDocumentBuf::new();
        nullable(&mut document, cstr!("started_at"), attempt.started_at.map(date));
        nullable(&mut document, cstr!("completed_at"), attempt.completed_at.map(date));
        nullable(&mut document, cstr!("duration_ms"), attempt.duration_ms);
        let message = attempt.error.as_ref().map(|error| error.message.as_str());
        nullable(&mut document, cstr!("error"), message);
        if let Some(error) = attempt.error.as_ref().filter(|error| error.has_more()) {
            document.append(cstr!("error_info"), error_info(error)?);
        }
        array.push(document);
    }
    Ok(array)
}

/// Other programs store text, some an object with a message.
pub fn error_message(value: RawBsonRef<'_>) -> Option<String> {
    match value {
        RawBsonRef::Null | RawBsonRef::Undefined => None,
        RawBsonRef::String(text) => Some(text.to_owned()),
        RawBsonRef::Document(document) => match document.get("message") {
            Ok(Some(RawBsonRef::String(text))) => Some(text.to_owned()),
            _ => Some(Bson::Document(object(value)).into_relaxed_extjson().to_string()),
        },
        other => any(other).map(|value| value.into_relaxed_extjson().to_string()),
    }
}

fn read_error(message: Option<String>, info: Option<&RawDocument>) -> Option<RunError> {
    if message.is_none() && info.is_none() {
        return None;
    }
    let mut error = RunError { message: message.unwrap_or_default(), ..RunError::default() };
    if let Some(info) = info {
        fill_in_info(&mut error, info);
    }
    Some(error)
}

/// What an error has beside its message.
pub fn fill_in_info(error: &mut RunError, info: &RawDocument) {
    error.code = field(info, "code").and_then(text).unwrap_or_default();
    error.stack_trace = field(info, "stack_trace").and_then(text).unwrap_or_default();
    error.details = field(info, "details").map(object).unwrap_or_default();
}

pub fn read_digests(value: RawBsonRef<'_>) -> Digests {
    let Some(document) = value.as_document() else { return Digests::default() };
    let digest = |name| field(document, name).and_then(text);
    Digests { create: digest("create"), start: digest("start"), finish: digest("finish") }
}

pub fn read_attempts(value: RawBsonRef<'_>) -> Vec<Attempt> {
    let Some(array) = value.as_array() else { return Vec::new() };
    let entries = array.into_iter().flatten().filter_map(RawBsonRef::as_document);
    entries
        .map(|entry| Attempt {
            started_at: field(entry, "started_at").and_then(millis),
            completed_at: field(entry, "completed_at").and_then(millis),
            duration_ms: field(entry, "duration_ms").and_then(integer),
            error: read_error(
                field(entry, "error").and_then(error_message),
                field(entry, "error_info").and_then(RawBsonRef::as_document),
            ),
        })
        .collect()
}
