//! The same as `observed` for metrics.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use tracing::Instrument as _;

use super::Result;
use super::metrics::{
    Arrived, EachArrived, IntervalKey, IntervalQuery, MetricStore, PointId, PointKey, Recorded,
    Recording, Span,
};
use super::observed::Operation;
use crate::domain::query::Page;
use crate::domain::{MetricInterval, MetricPoint, Millis};

/// Wraps a store of metrics.
pub struct ObservedMetrics {
    inner: Arc<dyn MetricStore>,
    record: Operation,
    points: Operation,
    intervals: Operation,
    arrived_since: Operation,
    arrived_from: Operation,
}

impl ObservedMetrics {
    pub fn new(inner: Arc<dyn MetricStore>) -> Self {
        ObservedMetrics {
            inner,
            record: Operation::new("record_metrics"),
            points: Operation::new("metric_points"),
            intervals: Operation::new("metric_intervals"),
            arrived_since: Operation::new("arrived_since"),
            arrived_from: Operation::new("arrived_from"),
        }
    }
}

#[async_trait]
impl MetricStore for ObservedMetrics {
    async fn record(&self, requests: Vec<Recording>) -> Vec<Result<Recorded>> {
        let began = Instant::now();
        let span = tracing::debug_span!(
            "store",
            store.operation = "record_metrics",
            store.writes = requests.len()
        );
        let outcomes = self.inner.record(requests).instrument(span).await;
        self.record.seconds.record(began.elapsed().as_secs_f64());
        for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            self.record.failed(error);
        }
        outcomes
    }

    fn metric_lanes(&self) -> usize {
        self.inner.metric_lanes()
    }

    async fn points(
        &self,
        span: &Span,
        after: Option<&PointKey>,
        limit: usize,
    ) -> Result<Page<(PointKey, MetricPoint), PointKey>> {
        self.points.run(self.inner.points(span, after, limit)).await
    }

    async fn intervals(&self, query: &IntervalQuery) -> Result<Page<MetricInterval, IntervalKey>> {
        self.intervals.run(self.inner.intervals(query)).await
    }

    async fn has_points(&self, execution_id: &str) -> Result<bool> {
        self.points.run(self.inner.has_points(execution_id)).await
    }

    fn arrivals_elsewhere(&self) -> bool {
        self.inner.arrivals_elsewhere()
    }

    fn least_id(&self, since: Millis) -> PointId {
        self.inner.least_id(since)
    }

    async fn arrived_since(
        &self,
        execution_ids: &[String],
        since: Millis,
        each: &mut EachArrived<'_>,
    ) -> Result<()> {
        self.arrived_since.run(self.inner.arrived_since(execution_ids, since, each)).await
    }

    async fn arrived_from(
        &self,
        execution_id: &str,
        from: PointId,
        limit: usize,
    ) -> Result<Vec<Arrived>> {
        self.arrived_from.run(self.inner.arrived_from(execution_id, from, limit)).await
    }
}
