//! Tables of stored fields as documents of MongoDB: written exactly, read tolerantly, and guarded against other writers.

use bson::raw::{CStr, RawBsonRef, RawDocument, RawDocumentBuf};
use bson::{Bson, RawArrayBuf, rawdoc};

use super::guard::{DEPENDS_ON_GUARDED, Difference, Guard, METADATA_GUARDED_BYTES};
use super::parts::{
    append_value, attempts, error_info, error_message, fill_in_info, integers, read_attempts, texts,
};
use crate::domain::stored::{Cell, Field, Guarded, Nothing, Set};
use crate::domain::{Payload, value};
use crate::store::Result;
use crate::store::mongo::db::values::{
    any, date, integer, millis, number, object, raw, small, text,
};

/// Writes a value as it is.
fn append(to: &mut RawDocumentBuf, key: &'static CStr, cell: Cell<'_>) -> Result<()> {
    match cell {
        Cell::Null => to.append(key, RawBsonRef::Null),
        Cell::Int32(value) => to.append(key, value),
        Cell::Int64(value) => to.append(key, value),
        Cell::Real(value) => to.append(key, value),
        Cell::Bool(value) => to.append(key, value),
        Cell::Text(value) => to.append(key, value),
        Cell::Date(at) => to.append(key, date(at)),
        Cell::Object(value) => to.append(key, raw(value)?),
        Cell::Error(error) => to.append(key, error.message.as_str()),
        Cell::ErrorInfo(error) => to.append(key, error_info(error)?),
        Cell::Ids(ids) => to.append(key, integers(ids)),
        Cell::Keys(keys) => to.append(key, texts(keys)),
        Cell::Attempts(tries) => to.append(key, attempts(tries)?),
        Cell::Payload(payload) => {
            append_value(to, key, payload.value().unwrap_or(&Bson::Null))?;
        }
    }
    Ok(())
}

fn is_nothing(cell: Cell<'_>) -> bool {
    match cell {
        Cell::Null => true,
        Cell::Ids(ids) => ids.is_empty(),
        Cell::Keys(keys) => keys.is_empty(),
        Cell::Attempts(attempts) => attempts.is_empty(),
        Cell::Object(object) => object.is_empty(),
        Cell::Payload(payload) => matches!(payload.value(), None | Some(Bson::Null)),
        _ => false,
    }
}

/// The fields of a new document.
pub fn insert<R>(to: &mut RawDocumentBuf, fields: &[Field<R>], record: &R) -> Result<()> {
    for field in fields {
        let cell = (field.get)(record);
        match (is_nothing(cell), field.nothing) {
            (true, Nothing::Absent) => {}
            (true, Nothing::Empty) if field.is_payload() => {
                to.append(field.key, RawDocumentBuf::new());
            }
            _ => append(to, field.key, cell)?,
        }
    }
    Ok(())
}

/// The fields in which a document has to change. A payload that is not at hand stays.
pub fn differences<R>(
    to: &mut Difference,
    fields: &[Field<R>],
    before: &R,
    after: &R,
) -> Result<()> {
    for field in fields {
        let cell = (field.get)(after);
        if (field.get)(before) == cell || matches!(cell, Cell::Payload(Payload::Stored)) {
            continue;
        }
        match field.nothing == Nothing::Absent && is_nothing(cell) {
            true => to.unset(field.key),
            false => append(&mut to.set, field.key, cell)?,
        }
    }
    Ok(())
}

/// Matches a document only if its fields still are what the decision was made on. Whether the document is known in
/// whole if it matches.
pub fn guards<R>(
    query: &mut RawDocumentBuf,
    fields: &[Field<R>],
    (before, after): (&R, &R),
    guard: Guard,
) -> Result<bool> {
    let whole = guard == Guard::Whole;
    let mut exact = whole;
    for field in fields {
        let cell = (field.get)(before);
        let same = cell == (field.get)(after);
        match field.guarded {
            Guarded::Always => match cell {
                Cell::Null => guard_nothing(query, field),
                cell => append(query, field.key, cell)?,
            },
            Guarded::Changed if whole || !same => {
                exact &= guard_changed(query, field.key, cell, same)?;
            }
            Guarded::Whole if whole && same => guard_rest(query, field.key, cell)?,
            Guarded::Owner if (whole || guard == Guard::Scoped) && same => {
                guard_rest(query, field.key, cell)?;
            }
            Guarded::Changed | Guarded::Whole | Guarded::Owner | Guarded::Never => {}
        }
    }
    Ok(exact)
}

/// The fields that have to be as they were in the very document that was read: what the decision was made on.
pub fn decisive<R>(
    fields: &'static [Field<R>],
    (before, after): (&R, &R),
    guard: Guard,
) -> impl Iterator<Item = &'static CStr> {
    let is_decisive = move |field: &&Field<R>| match field.guarded {
        Guarded::Always => true,
        Guarded::Changed => field.differs(before, after),
        Guarded::Owner => guard == Guard::Scoped,
        Guarded::Whole | Guarded::Never => false,
    };
    fields.iter().filter(is_decisive).map(|field| field.key)
}

/// Absent, null and foreign types all read as nothing.
fn guard_nothing<R>(query: &mut RawDocumentBuf, field: &Field<R>) {
    match field.set {
        Set::Word(words, _) => {
            let words: RawArrayBuf = words.iter().copied().collect();
            query.append(field.key, rawdoc! { "$nin": words });
        }
        _ => query.append(field.key, rawdoc! { "$not": { "$type": "date" } }),
    }
}

/// False: it is not guarded, as it is too large for that and does not change.
fn guard_changed(
    query: &mut RawDocumentBuf,
    key: &'static CStr,
    cell: Cell<'_>,
    same: bool,
) -> Result<bool> {
    match cell {
        Cell::Object(object)
            if same && value::size_of_document(object) > METADATA_GUARDED_BYTES =>
        {
            return Ok(false);
        }
        Cell::Object(object) if object.is_empty() => {
            query.append(key, rawdoc! { "$in": [null, {}] });
        }
        // `$eq` takes the value literally, whatever its keys are called.
        Cell::Object(object) => query.append(key, rawdoc! { "$eq": raw(object)? }),
        Cell::Int32(0) => query.append(key, rawdoc! { "$in": [0, null] }),
        Cell::Attempts(tries) => guard_list(query, key, tries.len(), None),
        other => append(query, key, other)?,
    }
    Ok(true)
}

/// Plain equality, which null has with absent too; a foreign type that reads as nothing is equal to nothing.
fn guard_rest(query: &mut RawDocumentBuf, key: &'static CStr, cell: Cell<'_>) -> Result<()> {
    match cell {
        Cell::ErrorInfo(error) => query.append(key, rawdoc! { "$eq": error_info(error)? }),
        Cell::Ids(ids) => guard_list(query, key, ids.len(), Some(integers(ids))),
        Cell::Keys(keys) => guard_list(query, key, keys.len(), Some(texts(keys))),
        other => append(query, key, other)?,
    }
    Ok(())
}

/// A long list is guarded by its length.
fn guard_list(
    query: &mut RawDocumentBuf,
    key: &'static CStr,
    length: usize,
    list: Option<RawArrayBuf>,
) {
    match (list, i32::try_from(length)) {
        (_, Ok(0) | Err(_)) => query.append(key, rawdoc! { "$in": [null, []] }),
        (Some(list), _) if length <= DEPENDS_ON_GUARDED => query.append(key, list),
        (_, Ok(length)) => query.append(key, rawdoc! { "$size": length }),
    }
}

/// Matches all fields that have a value. The size of the document stands for those without one.
pub fn values<R>(query: &mut RawDocumentBuf, fields: &[Field<R>], record: &R) -> Result<()> {
    for field in fields.iter().filter(|field| !field.is_payload()) {
        match (field.get)(record) {
            cell if is_nothing(cell) => {}
            Cell::Object(object) => query.append(field.key, rawdoc! { "$eq": raw(object)? }),
            cell => append(query, field.key, cell)?,
        }
    }
    Ok(())
}

/// Reads the fields of a document that some program stored, and hands over what is no field of the table.
pub fn read<'a, R>(
    document: &'a RawDocument,
    fields: &[Field<R>],
    record: &mut R,
    payloads: bool,
    mut rest: impl FnMut(&mut R, &str, RawBsonRef<'a>),
) -> std::result::Result<(), bson::error::Error> {
    // In the documents of servers they come in the order of the table.
    let mut next = 0;
    for element in document {
        let (key, value) = element?;
        let ahead = fields[next..].iter().chain(&fields[..next]);
        let Some(place) = ahead.clone().position(|field| *field.key == *key) else {
            rest(record, key.as_str(), value);
            continue;
        };
        let place = (next + place) % fields.len();
        next = (place + 1) % fields.len();
        let field = &fields[place];
        if payloads || !field.is_payload() {
            set(field, record, value);
        }
    }
    Ok(())
}

fn set<R>(field: &Field<R>, record: &mut R, value: RawBsonRef<'_>) {
    match &field.set {
        Set::Int32(set) => set(record, small(value)),
        Set::Int64(set) => set(record, integer(value)),
        Set::Real(set) => set(record, number(value)),
        Set::Bool(set) => set(record, value.as_bool()),
        Set::Text(set) => set(record, text(value)),
        Set::Word(_, set) => set(record, value.as_str().unwrap_or_default()),
        Set::Date(set) => set(record, millis(value)),
        Set::Object(set) => set(record, object(value)),
        Set::Error(error) => {
            if let Some(message) = error_message(value) {
                error(record).get_or_insert_default().message = message;
            }
        }
        Set::ErrorInfo(error) => {
            if let Some(info) = value.as_document() {
                fill_in_info(error(record).get_or_insert_default(), info);
            }
        }
        Set::Ids(set) => {
            let array = value.as_array().into_iter().flatten().flatten();
            set(record, array.filter_map(small).collect());
        }
        Set::Keys(set) => {
            let array = value.as_array().into_iter().flatten().flatten();
            set(record, array.filter_map(text).collect());
        }
        Set::Attempts(set) => set(record, read_attempts(value)),
        Set::Payload(set) => set(record, Payload::Value(any(value).unwrap_or(Bson::Null))),
    }
}
