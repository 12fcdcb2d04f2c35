//! Values of documents, read tolerantly and written exactly. Other programs choose other types for a number, and leave
//! out what they do not know.

use bson::oid::ObjectId;
use bson::raw::{BindRawBsonRef, CStr, RawBsonRef, RawDocument, RawDocumentBuf};
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Document};

use super::names::Name;
use crate::domain::Millis;
use crate::store::{Error, Result};

/// Beyond this a double does not hold every integer.
const WHOLE: f64 = 9e15;

/// A document as it goes out.
pub fn raw(document: &Document) -> Result<RawDocumentBuf> {
    RawDocumentBuf::try_from(document).map_err(Error::failed)
}

pub fn date(at: Millis) -> DateTime {
    DateTime::from_millis(at)
}

/// The oldest date of interest; every real one is greater, and a missing one is not.
pub fn epoch() -> DateTime {
    DateTime::from_millis(0)
}

pub fn binary(bytes: &[u8]) -> Binary {
    Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() }
}

/// A field that is always there: null where there is no value.
pub fn nullable(to: &mut RawDocumentBuf, key: &'static CStr, value: Option<impl BindRawBsonRef>) {
    match value {
        Some(value) => to.append(key, value),
        None => to.append(key, RawBsonRef::Null),
    }
}

/// A field that is absent where there is no value.
pub fn present(to: &mut RawDocumentBuf, key: &'static CStr, value: Option<impl BindRawBsonRef>) {
    if let Some(value) = value {
        to.append(key, value);
    }
}

/// A field of a document, if it is there and readable.
pub fn field<'a>(document: &'a RawDocument, name: &str) -> Option<RawBsonRef<'a>> {
    document.get(name).ok().flatten()
}

pub fn text(value: RawBsonRef<'_>) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// An integer, whatever numeric type another program chose for it.
pub fn integer(value: RawBsonRef<'_>) -> Option<i64> {
    match value {
        RawBsonRef::Int32(value) => Some(i64::from(value)),
        RawBsonRef::Int64(value) => Some(value),
        RawBsonRef::Double(value) => whole(value),
        _ => None,
    }
}

/// The same of a document that was read whole.
pub fn integer_of(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(value) => Some(i64::from(*value)),
        Bson::Int64(value) => Some(*value),
        Bson::Double(value) => whole(*value),
        _ => None,
    }
}

fn whole(value: f64) -> Option<i64> {
    (value.fract() == 0.0 && value.abs() < WHOLE).then_some(value as i64)
}

/// An integer of 32 bits.
pub fn small(value: RawBsonRef<'_>) -> Option<i32> {
    integer(value).and_then(|value| i32::try_from(value).ok())
}

/// A finite number, however wide.
pub fn number(value: RawBsonRef<'_>) -> Option<f64> {
    let number = match value {
        RawBsonRef::Double(value) => value,
        RawBsonRef::Int32(value) => f64::from(value),
        RawBsonRef::Int64(value) => value as f64,
        RawBsonRef::Decimal128(value) => value.to_string().parse().ok()?,
        _ => return None,
    };
    number.is_finite().then_some(number)
}

/// The same of a document that was read whole.
pub fn number_of(value: &Bson) -> Option<f64> {
    match value {
        Bson::Double(value) => value.is_finite().then_some(*value),
        Bson::Int32(value) => Some(f64::from(*value)),
        Bson::Int64(value) => Some(*value as f64),
        _ => None,
    }
}

pub fn millis(value: RawBsonRef<'_>) -> Option<Millis> {
    value.as_datetime().map(DateTime::timestamp_millis)
}

/// An object; anything else another program put there reads as none.
pub fn object(value: RawBsonRef<'_>) -> Document {
    value.as_document().and_then(|raw| Document::try_from(raw).ok()).unwrap_or_default()
}

pub fn any(value: RawBsonRef<'_>) -> Option<Bson> {
    Bson::try_from(value).ok()
}

/// The `_id` of a document, whatever type another program chose for it.
pub fn id_of(document: &RawDocument) -> Option<Bson> {
    field(document, "_id").and_then(any)
}

/// When a document was stored, by its `_id`. `None`: another program chose an id of another type.
pub fn stored_at(id: &Bson) -> Option<Millis> {
    id.as_object_id().map(|id| ObjectId::timestamp(&id).timestamp_millis())
}

/// Whether a document is marked as deleted.
pub fn is_marked(document: &RawDocument) -> bool {
    field(document, "deleted_at").is_some_and(|at| at.as_datetime().is_some())
}

/// The failure of reading one field of a document, or the whole document.
pub fn corrupt(collection: Name, document: &RawDocument, field: &'static str) -> Error {
    let id = match id_of(document) {
        Some(Bson::ObjectId(id)) => id.to_hex(),
        Some(value) => value.to_string(),
        None => String::new(),
    };
    Error::Corrupt { collection: collection.as_str(), id, field }
}
