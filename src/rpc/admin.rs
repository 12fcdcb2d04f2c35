//! AdminService.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use super::{convert, status};
use crate::app::retention::Retention;
use crate::app::retention::{Count, Counts};
use crate::app::rollups::{Rebuilt, Rollups};
use crate::app::{self, App};
use crate::clock::Clock;
use crate::domain::limits::{
    COUNT_MOST, FILTER_VALUES, METRIC_NAMES, METRIC_PAGE_RECORDS, METRIC_POINTS, METRICS_PER_POINT,
    NESTING_DEPTH, RECORD_BYTES, REQUEST_ID_CHARACTERS, UPLOAD_CHUNK_BYTES,
};
use crate::proto;
use crate::store::inspect::Inspect;

/// Serves AdminService.
pub struct Admin {
    pub app: Arc<App>,
    /// What CheckIndexes looks at.
    pub database: Arc<dyn Inspect>,
    pub retention: Arc<Retention>,
    pub rollups: Rollups,
    /// Whether texts are indexed.
    pub searchable: bool,
    /// Whether it is recorded who does what.
    pub recorded: bool,
    pub clock: Arc<dyn Clock>,
    pub tasks: TaskTracker,
    /// Ends what takes long.
    pub stop: CancellationToken,
}

/// What a client may look for before it calls, and the service or the method that does it.
const FEATURES: &[(&str, &str)] = &[
    ("analytics", "AnalyticsService"),
    ("artifacts", "ArtifactService"),
    ("audit", "AuditService"),
    ("auth", "AuthService"),
    ("configurations", "ConfigurationService"),
    ("export", "ExportService"),
    ("ingest", "IngestService"),
    ("leases", "ExecutionService/Heartbeat"),
    ("metrics", "MetricService"),
    ("mirrors", "MirrorService"),
    ("notifications", "NotificationService"),
    ("plans", "StepService/PlanSteps"),
    ("retention", "AdminService/RunRetention"),
    ("search", "SearchService"),
    ("verify", "VerifyService"),
    ("watch", "ExecutionService/WatchExecution"),
];

fn rebuild_answer(rebuilt: &Rebuilt, done: bool) -> proto::RebuildAnalyticsResponse {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    proto::RebuildAnalyticsResponse {
        executions: number(rebuilt.executions),
        wrong: number(rebuilt.wrong),
        gone: number(rebuilt.gone),
        rollups_wrong: number(rebuilt.rollups_wrong),
        done,
    }
}

/// How long the receipt waits for a client that does not read.
const RECEIPT_WITHIN: Duration = Duration::from_secs(3);
/// Progress is told this often at most.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

fn counts(counts: &Counts) -> Vec<proto::RetentionCount> {
    let count = |collection: &str, count: &Count| proto::RetentionCount {
        collection: collection.to_owned(),
        records: i64::try_from(count.records).unwrap_or(i64::MAX),
        bytes: count.bytes,
        oldest_kept: count.oldest_kept.map(convert::timestamp),
    };
    vec![
        count("executions", &counts.executions),
        count("execution_steps", &counts.steps),
        count("execution_artifacts", &counts.artifacts),
        count("execution_metrics", &counts.points),
    ]
}

fn message(message: proto::run_retention_response::Message) -> proto::RunRetentionResponse {
    proto::RunRetentionResponse { message: Some(message) }
}

#[tonic::async_trait]
impl proto::admin_service_server::AdminService for Admin {
    type RunRetentionStream = ReceiverStream<Result<proto::RunRetentionResponse, Status>>;
    type RebuildAnalyticsStream = ReceiverStream<Result<proto::RebuildAnalyticsResponse, Status>>;

    async fn check_indexes(
        &self,
        _request: Request<proto::CheckIndexesRequest>,
    ) -> Result<Response<proto::CheckIndexesResponse>, Status> {
        let found = self.database.indexes().await.map_err(|error| status::of(&error.into()))?;
        let indexes = found
            .into_iter()
            .map(|check| proto::IndexCheck {
                collection: check.lookup.collection.to_owned(),
                keys: check.lookup.words(),
                unique: check.lookup.unique,
                served_by: check.served_by,
                advice: check.advice,
            })
            .collect();
        Ok(Response::new(proto::CheckIndexesResponse { indexes }))
    }

    async fn run_retention(
        &self,
        request: Request<proto::RunRetentionRequest>,
    ) -> Result<Response<Self::RunRetentionStream>, Status> {
        use proto::run_retention_response::Message;
        let dry_run = request.into_inner().dry_run;
        let run = self.retention.begin(dry_run).await.map_err(|error| status::of(&error))?;
        let (answers, stream) = mpsc::channel(1);
        let (halt, clock) = (self.stop.child_token(), Arc::clone(&self.clock));
        self.tasks.spawn(async move {
            let mut told_at = clock.instant();
            let progress = |so_far: &Counts| {
                if clock.elapsed(told_at) >= PROGRESS_EVERY {
                    told_at = clock.instant();
                    let collections = counts(so_far);
                    let progress = Message::Progress(proto::RetentionProgress { collections });
                    // A client that does not read misses progress; the run never waits for it.
                    let _ = answers.try_send(Ok(message(progress)));
                }
            };
            let mut work = std::pin::pin!(run.finish(&halt, progress));
            let outcome = tokio::select! {
                outcome = &mut work => outcome,
                // Nobody waits for the receipt any more: what is left is left to the next run.
                () = answers.closed() => {
                    halt.cancel();
                    work.await
                }
            };
            let last = match outcome {
                Ok(done) => {
                    let collections = counts(&done);
                    Ok(message(Message::Receipt(proto::RetentionReceipt { collections, dry_run })))
                }
                Err(error) => Err(status::of(&error)),
            };
            // The client may be slow, but not slower than the shutdown.
            let _ = tokio::time::timeout(RECEIPT_WITHIN, answers.send(last)).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn rebuild_analytics(
        &self,
        _request: Request<proto::RebuildAnalyticsRequest>,
    ) -> Result<Response<Self::RebuildAnalyticsStream>, Status> {
        let (answers, stream) = mpsc::channel(1);
        let (rollups, stop) = (self.rollups.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            // It ends what it is at, whoever waits for it: a commit must not be left in the middle.
            let mut work = tokio::spawn({
                let rollups = rollups.clone();
                async move { rollups.rebuild().await }
            });
            let last = loop {
                tokio::select! {
                    outcome = &mut work => break match outcome {
                        Ok(Ok(rebuilt)) => Ok(rebuild_answer(&rebuilt, true)),
                        Ok(Err(error)) => Err(status::of(&error)),
                        Err(_) => Err(status::of(&app::Error::ShuttingDown)),
                    },
                    () = stop.cancelled() => break Err(status::of(&app::Error::ShuttingDown)),
                    // Nobody waits for it any more.
                    () = answers.closed() => return,
                    () = tokio::time::sleep(PROGRESS_EVERY) => {
                        let _ = answers.try_send(Ok(rebuild_answer(&rollups.rebuilt(), false)));
                    }
                }
            };
            let _ = tokio::time::timeout(RECEIPT_WITHIN, answers.send(last)).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn get_server_info(
        &self,
        _request: Request<proto::GetServerInfoRequest>,
    ) -> Result<Response<proto::GetServerInfoResponse>, Status> {
        let store = self.app.store_info();
        let limits = self.app.limits();
        let limits: HashMap<String, i64> = [
            ("name_characters", limits.name_characters),
            ("execution_id_characters", limits.execution_id_characters),
            ("message_characters", limits.message_characters),
            ("metadata_bytes", limits.metadata_bytes),
            ("error_message_bytes", limits.error_message_bytes),
            ("stack_trace_bytes", limits.stack_trace_bytes),
            ("payload_bytes", limits.payload_bytes),
            ("inline_payload_bytes", limits.inline_payload_bytes),
            ("record_bytes", RECORD_BYTES),
            ("steps_per_execution", limits.steps_per_execution),
            ("depends_on_ids", limits.depends_on_ids),
            ("request_bytes", limits.request_bytes),
            ("decoded_bytes", limits.decoded_bytes),
            ("page_records", limits.page_records),
            ("page_bytes", limits.page_bytes),
            ("artifact_bytes", limits.artifact_bytes),
            ("artifacts_per_execution", limits.artifacts_per_execution),
            ("artifact_bytes_per_execution", limits.artifact_bytes_per_execution),
            ("upload_chunk_bytes", UPLOAD_CHUNK_BYTES),
            ("page_examined_records", limits.page_examined_records),
            ("nesting_depth", NESTING_DEPTH),
            ("filter_values", FILTER_VALUES),
            ("counted_executions", COUNT_MOST),
            ("metric_points", METRIC_POINTS),
            ("metrics_per_point", METRICS_PER_POINT),
            ("metric_names", METRIC_NAMES),
            ("metric_page_records", METRIC_PAGE_RECORDS),
            ("request_id_characters", REQUEST_ID_CHARACTERS),
        ]
        .into_iter()
        .map(|(name, limit)| (name.to_owned(), i64::try_from(limit).unwrap_or(i64::MAX)))
        .collect();
        let works = |feature: &str| match feature {
            "audit" => self.recorded,
            "search" => self.searchable,
            "watch" => store.watchable,
            _ => true,
        };
        let features = FEATURES.iter().map(|(feature, _)| *feature);
        let features = features.filter(|feature| works(feature)).map(str::to_owned).collect();
        Ok(Response::new(proto::GetServerInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store: store.name.to_owned(),
            store_version: store.version,
            database_id: store.database_id,
            features,
            limits,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalog;
    use super::FEATURES;

    #[test]
    fn every_service_has_a_feature_and_every_feature_is_served() {
        let names: Vec<&str> = FEATURES.iter().map(|(feature, _)| *feature).collect();
        assert!(names.is_sorted(), "{names:?}");
        let short = |service: &'static catalog::Service| {
            service.name.rsplit('.').next().unwrap_or_default()
        };
        for (feature, what) in FEATURES {
            let (service, method) = what.split_once('/').unwrap_or((what, ""));
            let served = catalog::api().iter().find(|found| short(found) == service);
            let served = served.unwrap_or_else(|| panic!("{feature}: there is no {service}"));
            assert!(method.is_empty() || served.methods.iter().any(|m| m == method), "{feature}");
        }
        for service in catalog::api() {
            let name = short(service);
            let is_its = |what: &str| what.split('/').next() == Some(name);
            assert!(FEATURES.iter().any(|(_, what)| is_its(what)), "no feature tells of {name}");
        }
    }
}
