//! Points of metrics as documents, and when they were taken.

use bson::oid::ObjectId;
use bson::raw::{CStr, RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::{DateTime, Document, doc};

use crate::domain::{MetricPoint, Millis, StepNames};
use crate::store::mongo::db::values::{field, millis, number, text};
use crate::store::{Error, Result};

/// The document of a point.
pub fn write_point(
    id: ObjectId,
    execution_id: &str,
    point: &MetricPoint,
) -> Result<RawDocumentBuf> {
    let mut metrics = RawDocumentBuf::new();
    for (name, value) in &point.metrics {
        metrics.append(<&CStr>::try_from(name.as_str()).map_err(Error::failed)?, *value);
    }
    let mut document = RawDocumentBuf::new();
    document.append(cstr!("_id"), id);
    document.append(cstr!("timestamp"), DateTime::from_millis(point.at));
    document.append(cstr!("execution_id"), execution_id);
    document.append(cstr!("metrics"), metrics);
    if let Some(step_id) = point.step_id {
        document.append(cstr!("step_id"), step_id);
    }
    if let Some(step_key) = &point.step_key {
        document.append(cstr!("step_key"), step_key.as_str());
    }
    Ok(document)
}

/// A stored point, whoever stored it. What is no finite number is passed over; `None`: it has no time.
pub fn read_point(document: &RawDocument) -> Option<MetricPoint> {
    let step_id = field(document, "step_id").and_then(number).filter(|id| id.fract() == 0.0);
    let mut point = MetricPoint {
        at: time_of(document)?,
        step_id: step_id.filter(|id| (0.0..=f64::from(i32::MAX)).contains(id)).map(|id| id as i32),
        step_key: field(document, "step_key").and_then(text),
        ..MetricPoint::default()
    };
    if let Some(RawBsonRef::Document(metrics)) = field(document, "metrics") {
        for (name, value) in metrics.into_iter().flatten() {
            if let Some(value) = number(value) {
                point.metrics.insert(name.as_str().to_owned(), value);
            }
        }
    }
    Some(point)
}

/// The points of an execution, or of one of its steps, without regard to their time.
pub fn points_of(execution_id: &str, step: Option<&StepNames>) -> Document {
    let mut filter = doc! { "execution_id": execution_id };
    let Some(step) = step else { return filter };
    let number = step.step_id.map(|step_id| doc! { "step_id": step_id });
    let key = step.step_key.as_ref().map(|key| doc! { "step_key": key });
    match [number, key].into_iter().flatten().collect::<Vec<_>>() {
        names if names.is_empty() => filter,
        names => {
            filter.insert("$or", names);
            filter
        }
    }
}

/// From the bound of a time the database also makes one for the ids of its buckets, which hold seconds since 1970 in 32
/// bits and begin up to a bucket's length before. Beyond these two times it gets them wrong and finds nothing: there the
/// bound is compared as a number, of which it makes none.
const BUCKET_IDS: std::ops::Range<Millis> = 366 * DAY_MS..(1 << 32) * 1000 - 366 * DAY_MS;
const DAY_MS: Millis = 24 * 3600 * 1000;

/// The filter, for points of this time alone.
pub fn within(mut filter: Document, from: Option<Millis>, until: Option<Millis>) -> Document {
    // Said even where there is no bound: what has no date for a time is no point.
    let mut range = doc! { "$type": "date" };
    let mut numbers = Vec::new();
    for (way, bound) in [("$gte", from), ("$lt", until)] {
        match bound {
            None => {}
            Some(at) if BUCKET_IDS.contains(&at) => {
                range.insert(way, DateTime::from_millis(at));
            }
            Some(at) => {
                numbers.push(doc! { "$expr": { way: [{ "$toLong": "$timestamp" }, at] } });
            }
        }
    }
    filter.insert("timestamp", range);
    if !numbers.is_empty() {
        filter.insert("$and", numbers);
    }
    filter
}

/// The filter, for points of this very time.
pub fn at(filter: Document, at: Millis) -> Document {
    match BUCKET_IDS.contains(&at) {
        true => {
            let mut filter = filter;
            filter.insert("timestamp", DateTime::from_millis(at));
            filter
        }
        false => within(filter, Some(at), Some(at.saturating_add(1))),
    }
}

pub fn time_of(document: &RawDocument) -> Option<Millis> {
    field(document, "timestamp").and_then(millis)
}
