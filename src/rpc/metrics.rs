//! MetricService.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{authenticate, convert, metric_requests, status};
use crate::app::metrics::{Metrics, Query};
use crate::app::{App, Error, Result};
use crate::domain::MetricCounts;
use crate::proto;
use crate::store::By;

/// Messages of one stream that may wait for their points to be stored; then reading pauses, and HTTP/2 flow
/// control slows the client down.
const MESSAGES: usize = 8;

/// Serves MetricService.
pub struct MetricRpc {
    pub app: Arc<App>,
    pub metrics: Arc<Metrics>,
    /// Ends the streams.
    pub stop: CancellationToken,
}

#[tonic::async_trait]
impl proto::metric_service_server::MetricService for MetricRpc {
    async fn record_metrics(
        &self,
        request: Request<proto::RecordMetricsRequest>,
    ) -> Result<Response<proto::RecordMetricsResponse>, Status> {
        let by = authenticate::by(&request)?;
        let recorded = async {
            let asked = metric_requests::record(self.app.limits(), request.into_inner())?;
            self.metrics.record(asked, by).await
        };
        let counts = recorded.await.map_err(|error| status::of(&error))?;
        Ok(Response::new(convert::metric_counts(counts)))
    }

    async fn stream_metrics(
        &self,
        request: Request<Streaming<proto::StreamMetricsRequest>>,
    ) -> Result<Response<proto::StreamMetricsResponse>, Status> {
        let by = authenticate::by(&request)?;
        let counts = self.stream(request.into_inner(), by).await?;
        Ok(Response::new(proto::StreamMetricsResponse {
            accepted: counts.accepted,
            too_old: counts.too_old,
            in_future: counts.in_future,
        }))
    }

    async fn query_metrics(
        &self,
        request: Request<proto::QueryMetricsRequest>,
    ) -> Result<Response<proto::QueryMetricsResponse>, Status> {
        let scope = authenticate::scope(&request)?;
        let asked = metric_requests::query(self.app.limits(), request.into_inner());
        let (query, interval_ms) = asked.map_err(|error| status::of(&error))?;
        let query = Query { scope, ..query };
        let id = &query.span.execution_id;
        let mut answer = proto::QueryMetricsResponse::default();
        match interval_ms {
            None => {
                let size_of = |point: &_| convert::metric_point(id, point).encoded_len();
                let told = self.metrics.points(&query, size_of).await;
                let told = told.map_err(|error| status::of(&error))?;
                let points = told.records.iter();
                answer.points = points.map(|point| convert::metric_point(id, point)).collect();
                answer.next_page_token = told.next_page_token;
            }
            Some(interval_ms) => {
                let size_of = |interval: &_| convert::metric_interval(interval).encoded_len();
                let told = self.metrics.intervals(&query, interval_ms, size_of).await;
                let told = told.map_err(|error| status::of(&error))?;
                answer.intervals = told.records.iter().map(convert::metric_interval).collect();
                answer.next_page_token = told.next_page_token;
            }
        }
        Ok(Response::new(answer))
    }
}

impl MetricRpc {
    async fn stream(
        &self,
        mut inbound: Streaming<proto::StreamMetricsRequest>,
        by: By,
    ) -> Result<MetricCounts, Status> {
        let mut counts = MetricCounts::default();
        let mut waiting = FuturesOrdered::new();
        let mut number = 0;
        // The first message that failed, by its number.
        let mut failed: Option<(u64, Error)> = None;
        let broken = loop {
            let message = tokio::select! {
                biased;
                Some((number, outcome)) = waiting.next() => {
                    match outcome {
                        Ok(stored) => counts.add(stored),
                        Err(error) => {
                            failed = Some((number, error));
                            break None;
                        }
                    }
                    continue;
                }
                () = self.stop.cancelled() => {
                    failed = Some((number + 1, Error::ShuttingDown));
                    break None;
                }
                message = inbound.message(), if waiting.len() < MESSAGES => message,
            };
            let request = match message {
                Ok(Some(request)) => request,
                Ok(None) => break None,
                Err(broken) => break Some(broken),
            };
            number += 1;
            let request = proto::RecordMetricsRequest {
                execution_id: request.execution_id,
                points: request.points,
                request_id: request.request_id,
            };
            let queued = match metric_requests::record(self.app.limits(), request) {
                Ok(asked) => self.metrics.enqueue(asked, by.clone()).await,
                Err(error) => Err(error),
            };
            match queued {
                Ok(pending) => {
                    waiting.push_back(async move { (number, pending.answer().await) });
                }
                Err(error) => {
                    failed = Some((number, error));
                    break None;
                }
            }
        };
        // What was taken in is stored, or refused as well: the earliest refusal is told.
        while let Some((number, outcome)) = waiting.next().await {
            match outcome {
                Ok(stored) => counts.add(stored),
                Err(error) if failed.as_ref().is_none_or(|(first, _)| number < *first) => {
                    failed = Some((number, error));
                }
                Err(_) => {}
            }
        }
        match (failed, broken) {
            (Some((number, error)), _) => Err(status::of_metric_stream(&error, number, counts)),
            (None, Some(broken)) => Err(broken),
            (None, None) => Ok(counts),
        }
    }
}
