//! Points of metrics: a time-series collection, or the ordinary one that was there before us.
//!
//! `setup` makes or adopts the collection, `record` stores points so that a request is stored once, `read` answers
//! queries, `ids` gives points identities that sort in order of arrival.

mod hours;
mod ids;
mod reach;
mod read;
mod record;
mod setup;

use async_trait::async_trait;
use bson::oid::ObjectId;
use bson::raw::{CStr, cstr};
use bson::{DateTime, RawBsonRef, RawDocument, RawDocumentBuf};
use mongodb::options::CollectionOptions;
use mongodb::{Collection, Database};

use super::{Inner, MongoStore, Ready};
use crate::domain::query::Page;
use crate::domain::{MetricInterval, MetricPoint, Millis};
use crate::store::metrics::{
    Arrived, EachArrived, IntervalKey, IntervalQuery, MetricStore, PointId, PointKey, Recorded,
    Recording, Span,
};
use crate::store::{Error, Result};

pub(super) use hours::{Marked, Pace, settle};
pub(super) use ids::Ids;
pub(super) use setup::prepare;

/// Executions whose points go with one command.
const DELETED_AT_ONCE: usize = 100;

pub const METRICS: &str = "execution_metrics";
/// Requests that may come again, and how far they got.
pub(super) const METRIC_REQUESTS: &str = "stepwell_metric_requests";

/// The collections of metrics, once they are set up.
pub(super) struct Metrics {
    points: Collection<RawDocumentBuf>,
    committed_points: Collection<RawDocumentBuf>,
    /// Of the time series, if they are for us to see.
    buckets: Collection<RawDocumentBuf>,
    requests: Collection<RawDocumentBuf>,
    hours: Collection<RawDocumentBuf>,
    /// Whether the points are in a time series: then no index keeps their ids apart.
    time_series: bool,
}

impl Metrics {
    /// The same, with what takes points in on connections of its own.
    pub(super) fn writing(self, database: &Database) -> Self {
        let own = |collection: &Collection<RawDocumentBuf>| {
            let mut options = CollectionOptions::default();
            options.selection_criteria = collection.selection_criteria().cloned();
            options.read_concern = collection.read_concern().cloned();
            options.write_concern = collection.write_concern().cloned();
            database.collection_with_options(collection.name(), options)
        };
        let (points, requests, hours) = (own(&self.points), own(&self.requests), own(&self.hours));
        Metrics { points, requests, hours, ..self }
    }
}

#[async_trait]
impl MetricStore for MongoStore {
    async fn record(&self, requests: Vec<Recording>) -> Vec<Result<Recorded>> {
        record::record(&self.inner, requests).await
    }

    fn metric_lanes(&self) -> usize {
        super::METRIC_LANES
    }

    async fn points(
        &self,
        span: &Span,
        after: Option<&PointKey>,
        limit: usize,
    ) -> Result<Page<(PointKey, MetricPoint), PointKey>> {
        read::points(&self.inner, span, after, limit).await
    }

    async fn intervals(&self, query: &IntervalQuery) -> Result<Page<MetricInterval, IntervalKey>> {
        read::intervals(&self.inner, query).await
    }

    async fn has_points(&self, execution_id: &str) -> Result<bool> {
        read::has_points(&self.inner, execution_id).await
    }

    fn arrivals_elsewhere(&self) -> bool {
        true
    }

    fn least_id(&self, since: Millis) -> PointId {
        ids::point_id(ids::least(since))
    }

    async fn arrived_since(
        &self,
        execution_ids: &[String],
        since: Millis,
        each: &mut EachArrived<'_>,
    ) -> Result<()> {
        read::arrived_since(&self.inner, execution_ids, since, each).await
    }

    async fn arrived_from(
        &self,
        execution_id: &str,
        from: PointId,
        limit: usize,
    ) -> Result<Vec<Arrived>> {
        read::arrived_from(&self.inner, execution_id, from, limit).await
    }
}

/// Removes the points of executions, and lets go of their requests: an id that is used again is a new one. How many
/// points there were.
pub(super) async fn delete(ready: &Ready, execution_ids: &[&str]) -> Result<u64> {
    let mut gone = 0;
    for ids in execution_ids.chunks(DELETED_AT_ONCE) {
        let of_them = bson::doc! { "execution_id": { "$in": ids } };
        let points = ready.metrics.points.delete_many(of_them.clone());
        // Many points take their time; while the database answers at all, that is fine.
        gone += points.await.map_err(super::failure::error)?.deleted_count;
        ready.metrics.requests.delete_many(of_them).await.map_err(super::failure::error)?;
        // Last: figures may have been made while the points went.
        hours::forget(ready, ids).await?;
    }
    Ok(gone)
}

/// How many points there are.
pub(super) async fn number_of_points(
    inner: &Inner,
    ready: &Ready,
    of: bson::Document,
) -> Result<u64> {
    inner.call(ready.metrics.points.count_documents(of)).await
}

/// The time of the oldest point of all.
pub(super) async fn oldest(inner: &Inner) -> Result<Option<Millis>> {
    let ready = inner.ready().await?;
    let points = &ready.metrics.points;
    let oldest = points.find_one(bson::doc! { "timestamp": { "$type": "date" } });
    let oldest = oldest.sort(bson::doc! { "timestamp": 1 });
    let oldest = inner.call(oldest.projection(bson::doc! { "_id": 0, "timestamp": 1 })).await?;
    Ok(oldest.and_then(|raw| read::time_of(&raw)))
}

/// The document of a point.
pub(super) fn write_point(
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
fn read_point(document: &RawDocument) -> Option<MetricPoint> {
    let field = |name| document.get(name).ok().flatten();
    let RawBsonRef::DateTime(at) = field("timestamp")? else { return None };
    let step_id = field("step_id").and_then(number).filter(|id| id.fract() == 0.0);
    let mut point = MetricPoint {
        at: at.timestamp_millis(),
        step_id: step_id.filter(|id| (0.0..=f64::from(i32::MAX)).contains(id)).map(|id| id as i32),
        ..MetricPoint::default()
    };
    if let Some(RawBsonRef::Document(metrics)) = field("metrics") {
        for (name, value) in metrics.into_iter().flatten() {
            if let Some(value) = number(value) {
                point.metrics.insert(name.as_str().to_owned(), value);
            }
        }
    }
    Some(point)
}

/// A finite number, however wide.
fn number(value: RawBsonRef<'_>) -> Option<f64> {
    let number = match value {
        RawBsonRef::Double(value) => value,
        RawBsonRef::Int32(value) => f64::from(value),
        RawBsonRef::Int64(value) => value as f64,
        RawBsonRef::Decimal128(value) => value.to_string().parse().ok()?,
        _ => return None,
    };
    number.is_finite().then_some(number)
}

impl Inner {
    fn metrics_kept_ms(&self) -> Option<i64> {
        let kept = self.options.metrics_kept?;
        Some(i64::try_from(kept.as_millis()).unwrap_or(i64::MAX))
    }
}
