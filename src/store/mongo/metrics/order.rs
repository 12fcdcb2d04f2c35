//! Points of one time in an order of their own: that of their `_id`s, whatever these are. A time series keeps no index over
//! them, so they may be of any type, even a list; several points may have one, and a point may have none. Only the database
//! compares all of that, and as parts of an object, which no sort takes apart.

use bson::raw::RawBsonRef;
use bson::{Bson, Document, RawDocument, RawDocumentBuf, doc};

use super::points::time_of;
use crate::domain::Millis;
use crate::store::metrics::PointKey;
use crate::store::mongo::db::values::{field, id_of};
use crate::store::mongo::db::{Collection, Connection};
use crate::store::{Error, Result};

/// Documents fetched at a time.
const FETCHED_AT_ONCE: u32 = 2000;
/// In a document on its way: what it is sorted by, and whether that is what the page begins after.
const PLACE: &str = "_place";
const SAME: &str = "_same";
/// In a key: the `_id`, if there is one, and how many points before have the same.
const ID: &str = "_";
const BEFORE: &str = "n";

/// The last point that was passed.
pub struct Passed {
    at: Millis,
    /// An object with the `_id`, as far as there is one; `None`: nothing was passed.
    id: Option<Document>,
    before: i64,
}

impl Passed {
    pub fn by(key: Option<&PointKey>) -> Result<Passed> {
        let Some(key) = key else { return Ok(Passed { at: 0, id: None, before: 0 }) };
        let mut id = Document::from_reader(key.id.as_slice()).map_err(|_| Error::BadCursor)?;
        let before = match id.remove(BEFORE) {
            None => 0,
            Some(before) => before.as_i64().ok_or(Error::BadCursor)?,
        };
        Ok(Passed { at: key.at, id: Some(id), before })
    }

    /// Passes the next point. Its key; `None`: it has no time.
    pub fn one_more(&mut self, raw: &RawDocument) -> Option<PointKey> {
        let at = time_of(raw)?;
        let mut id = Document::new();
        id.extend(id_of(raw).map(|value| (ID.to_owned(), value)));
        let is_double =
            at == self.at && self.id.as_ref().is_some_and(|last| is_same(last.get(ID), id.get(ID)));
        self.before = if is_double { self.before + 1 } else { 0 };
        let mut key = id.clone();
        (self.at, self.id) = (at, Some(id));
        if self.before > 0 {
            key.insert(BEFORE, self.before);
        }
        Some(PointKey { at, id: key.to_vec().ok()? })
    }
}

/// Whether the database takes them for equal.
fn is_same(last: Option<&Bson>, next: Option<&Bson>) -> bool {
    match (last, next) {
        (None, None) => true,
        (Some(last), Some(next)) => is_equal(last, next),
        _ => false,
    }
}

/// Numbers are equal whatever their type, also within objects and lists.
fn is_equal(last: &Bson, next: &Bson) -> bool {
    match (last, next) {
        (Bson::Int32(last), Bson::Int32(next)) => last == next,
        (Bson::Int64(last), Bson::Int64(next)) => last == next,
        (Bson::Document(last), Bson::Document(next)) => {
            last.len() == next.len()
                && last
                    .iter()
                    .zip(next.iter())
                    .all(|(one, other)| one.0 == other.0 && is_equal(one.1, other.1))
        }
        (Bson::Array(last), Bson::Array(next)) => {
            last.len() == next.len()
                && last.iter().zip(next.iter()).all(|(one, other)| is_equal(one, other))
        }
        _ => match (value_of(last), value_of(next)) {
            (Some(last), Some(next)) => last == next || last.is_nan() && next.is_nan(),
            _ => last == next,
        },
    }
}

/// The value of any number.
fn value_of(value: &Bson) -> Option<f64> {
    match value {
        Bson::Double(value) => Some(*value),
        Bson::Int32(value) => Some(f64::from(*value)),
        Bson::Int64(value) => Some(*value as f64),
        Bson::Decimal128(value) => value.to_string().parse().ok(),
        _ => None,
    }
}

/// Points that match, by time and place; behind the one that was passed, if all of them are of its time.
pub async fn in_order(
    ready: &Connection,
    points: &Collection,
    filter: Document,
    after: Option<&Passed>,
    limit: usize,
) -> Result<Vec<RawDocumentBuf>> {
    let mut limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut pipeline = vec![doc! { "$match": filter }];
    let place = doc! { ID: "$_id" };
    let mut set = doc! { PLACE: &place };
    let mut left = 0;
    if let Some(Passed { id: Some(last), before, .. }) = after {
        let last = doc! { "$literal": last };
        pipeline.push(doc! { "$match": { "$expr": { "$gte": [&place, &last] } } });
        set.insert(SAME, doc! { "$eq": [place, last] });
        left = before.saturating_add(1);
        limit = limit.saturating_add(left);
    }
    pipeline.push(doc! { "$set": set });
    // Those of one id by what else they have: what is equal in all of it may stand in any order.
    let sort = doc! { "timestamp": 1, PLACE: 1, "metrics": 1, "step_id": 1, "step_key": 1 };
    pipeline.push(doc! { "$sort": sort });
    pipeline.push(doc! { "$limit": limit });
    let asked = points.aggregate(pipeline).allow_disk_use(true).batch_size(FETCHED_AT_ONCE);
    let mut found = ready.collect(asked).await?;
    let is_passed =
        |raw: &RawDocumentBuf| matches!(field(raw, SAME), Some(RawBsonRef::Boolean(true)));
    let same = found.iter().take_while(|raw| is_passed(raw)).count();
    found.drain(..same.min(usize::try_from(left).unwrap_or(usize::MAX)));
    Ok(found)
}
