//! Points of metrics as documents, and when they were taken.

use bson::oid::ObjectId;
use bson::raw::{CStr, RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::{DateTime, Document, doc};

use crate::domain::{MetricPoint, Millis};
use crate::store::mongo::db::values::{field, millis, number};
use crate::store::{Error, Result};

pub const METRICS: &str = "execution_metrics";
/// Where the database packs the points of the time series.
pub const BUCKETS: &str = "system.buckets.execution_metrics";
/// Requests that may come again, and how far they got.
pub const METRIC_REQUESTS: &str = "stepwell_metric_requests";
/// Hours into which points came, and their figures.
pub const METRIC_HOURS: &str = "stepwell_metric_hours";

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
    Ok(document)
}

/// A stored point, whoever stored it. What is no finite number is passed over; `None`: it has no time.
pub fn read_point(document: &RawDocument) -> Option<MetricPoint> {
    let step_id = field(document, "step_id").and_then(number).filter(|id| id.fract() == 0.0);
    let mut point = MetricPoint {
        at: time_of(document)?,
        step_id: step_id.filter(|id| (0.0..=f64::from(i32::MAX)).contains(id)).map(|id| id as i32),
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

pub fn within(from: Option<Millis>, until: Option<Millis>) -> Document {
    // Said even where there is no bound: what has no date for a time is no point.
    let mut range = doc! { "$type": "date" };
    if let Some(from) = from {
        range.insert("$gte", DateTime::from_millis(from));
    }
    if let Some(until) = until {
        range.insert("$lt", DateTime::from_millis(until));
    }
    range
}

pub fn time_of(document: &RawDocument) -> Option<Millis> {
    field(document, "timestamp").and_then(millis)
}
