//! Points of metrics: a time-series collection, or the ordinary one that was there before us.
//!
//! `setup` makes or adopts the collection, `record` stores points so that a request is stored once, `dirty` says before
//! into which hours, `read` answers queries, from `hours` where figures of whole hours are good and else from what a
//! `stretch` of points says, `reach` tells how far a look goes, `ids` gives points identities that sort in order of
//! arrival, `order` sorts also those that others gave.

mod delete;
mod dirty;
mod hours;
mod ids;
mod order;
mod pace;
mod points;
mod reach;
mod read;
mod record;
mod room;
mod setup;
mod stretch;

use async_trait::async_trait;

use crate::domain::audit::entry::Written;
use crate::domain::query::Page;
use crate::domain::{MetricInterval, MetricPoint, Millis};
use crate::store::metrics::{
    Arrived, EachArrived, IntervalKey, IntervalQuery, MetricStore, PointId, PointKey, Recorded,
    Recording, Span,
};
use crate::store::{Error, Result};

pub use delete::{delete, number_of_points, oldest};
pub use hours::settle;
pub use points::{read_point, write_point};
pub use read::page_of;
pub use room::Metrics;
pub use setup::{is_there, prepare};

/// Batches of points under way at a time. They come many in a request anyway.
const METRIC_LANES: usize = 4;

#[async_trait]
impl MetricStore for Metrics {
    async fn record(&self, requests: Vec<Recording>) -> Vec<Result<Recorded>> {
        let written: Vec<Option<Written>> = requests.iter().map(Recording::recorded).collect();
        let begun: Vec<Written> = written.iter().flatten().cloned().collect();
        if begun.is_empty() {
            return record::record(self, requests).await;
        }
        let started = match self.ledger.begin_alone(&begun).await {
            Ok(started) => started,
            Err(error) => {
                let error = || Error::unaudited(error.to_string());
                return requests.iter().map(|_| Err(error())).collect();
            }
        };
        let outcomes = record::record(self, requests).await;
        let ended = written.into_iter().zip(&outcomes).filter_map(|(written, outcome)| {
            Some(Written { code: Some(self.ledger.code(outcome)), ..written? })
        });
        self.ledger.end(&ended.collect::<Vec<_>>(), Some(started));
        outcomes
    }

    fn metric_lanes(&self) -> usize {
        METRIC_LANES
    }

    async fn points(
        &self,
        span: &Span,
        after: Option<&PointKey>,
        limit: usize,
    ) -> Result<Page<(PointKey, MetricPoint), PointKey>> {
        read::points(self, span, after, limit).await
    }

    async fn intervals(&self, query: &IntervalQuery) -> Result<Page<MetricInterval, IntervalKey>> {
        read::intervals(self, query).await
    }

    async fn has_points(&self, execution_id: &str) -> Result<bool> {
        read::has_points(self, execution_id).await
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
        read::arrived_since(self, execution_ids, since, each).await
    }

    async fn arrived_from(
        &self,
        execution_id: &str,
        from: PointId,
        limit: usize,
    ) -> Result<Vec<Arrived>> {
        read::arrived_from(self, execution_id, from, limit).await
    }
}
