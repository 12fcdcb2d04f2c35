//! The generated client behind short names: every call in two forms, one that must succeed and returns the
//! record, one (`try_…`) that returns the status too.

use stepwell::proto::admin_service_client::AdminServiceClient;
use stepwell::proto::analytics_service_client::AnalyticsServiceClient;
use stepwell::proto::artifact_service_client::ArtifactServiceClient;
use stepwell::proto::configuration_service_client::ConfigurationServiceClient;
use stepwell::proto::execution_service_client::ExecutionServiceClient;
use stepwell::proto::export_service_client::ExportServiceClient;
use stepwell::proto::ingest_service_client::IngestServiceClient;
use stepwell::proto::metric_service_client::MetricServiceClient;
use stepwell::proto::search_service_client::SearchServiceClient;
use stepwell::proto::step_service_client::StepServiceClient;
use stepwell::proto::verify_service_client::VerifyServiceClient;
use stepwell::proto::*;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{Watch, in_time};

/// Records alone may pass the 4 MiB of a reply: input and output have 6 MiB each.
const GREATEST_REPLY: usize = 32 * 1024 * 1024;

pub type Answer<T> = Result<T, Status>;

/// A client of one server. Cheap to clone; clones share a connection.
#[derive(Debug, Clone)]
pub struct Client {
    pub channel: Channel,
    /// host:port of the server.
    pub address: String,
}

fn one<T>(answer: Result<Response<T>, Status>) -> Answer<T> {
    answer.map(Response::into_inner)
}

/// The record of a call that must succeed.
#[track_caller]
pub fn ok<T>(answer: Answer<T>) -> T {
    match answer {
        Ok(record) => record,
        Err(status) => panic!("refused: {:?} {}", status.code(), status.message()),
    }
}

/// The details of a call that must be refused with this code and reason.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Answer<T>, code: Code, reason: &str) -> ErrorDetails {
    let status = match answer {
        Ok(record) => panic!("not refused: {record:?}"),
        Err(status) => status,
    };
    check_refusal(&status, code, reason)
}

#[track_caller]
pub fn check_refusal(status: &Status, code: Code, reason: &str) -> ErrorDetails {
    let details = status.get_error_details();
    let info = details.error_info().map(|info| (info.domain.as_str(), info.reason.as_str()));
    assert_eq!((status.code(), info), (code, Some(("stepwell", reason))), "{status:?}");
    for secret in ["mongodb://", "127.0.0.1", ".rs:", "/tmp/", "sqlite3"] {
        assert!(!status.message().contains(secret), "the message leaks: {}", status.message());
    }
    match code {
        Code::Unavailable | Code::ResourceExhausted => {
            assert!(details.retry_info().is_some(), "no RetryInfo: {status:?}");
        }
        Code::NotFound => {
            let resource = details.resource_info().expect("NOT_FOUND has a ResourceInfo");
            assert!(!resource.resource_type.is_empty() && !resource.resource_name.is_empty());
        }
        Code::InvalidArgument => {
            let fields = details.bad_request().map_or(0, |bad| bad.field_violations.len());
            assert!(fields > 0, "INVALID_ARGUMENT names no field: {status:?}");
        }
        _ => {}
    }
    details
}

/// The bad fields of a call that must be INVALID_ARGUMENT, with their descriptions.
#[track_caller]
pub fn bad_fields<T: std::fmt::Debug>(answer: Answer<T>) -> Vec<(String, String)> {
    let details = refused(answer, Code::InvalidArgument, "INVALID_ARGUMENT");
    let mut fields: Vec<_> = details
        .bad_request()
        .expect("checked by refused")
        .field_violations
        .iter()
        .map(|violation| (violation.field.clone(), violation.description.clone()))
        .collect();
    fields.sort();
    fields
}

macro_rules! calls {
    ($($client:ident . $call:ident / $try_call:ident ($request:ty) -> $answer:ty $(, $field:ident)?;)*) => {
        impl Client {
            $(
                pub async fn $try_call(&self, request: $request) -> Answer<$answer> {
                    let answer = in_time(stringify!($call), self.$client().$call(request)).await;
                    one(answer)$(.map(|answer| answer.$field.expect("the answer carries the record")))?
                }

                #[track_caller]
                pub fn $call(&self, request: $request) -> impl Future<Output = $answer> + Send + use<> {
                    let caller = std::panic::Location::caller();
                    let client = self.clone();
                    async move {
                        match client.$try_call(request).await {
                            Ok(answer) => answer,
                            Err(status) => panic!(
                                "{} at {caller} is refused: {:?} {}",
                                stringify!($call), status.code(), status.message()
                            ),
                        }
                    }
                }
            )*
        }
    };
}

calls! {
    executions.create_execution / try_create_execution (CreateExecutionRequest) -> Execution, execution;
    executions.get_execution / try_get_execution (GetExecutionRequest) -> GetExecutionResponse;
    executions.list_executions / try_list_executions (ListExecutionsRequest) -> ListExecutionsResponse;
    executions.count_executions / try_count_executions (CountExecutionsRequest) -> CountExecutionsResponse;
    executions.update_execution / try_update_execution (UpdateExecutionRequest) -> Execution, execution;
    executions.finish_execution / try_finish_execution (FinishExecutionRequest) -> Execution, execution;
    executions.heartbeat / try_heartbeat (HeartbeatRequest) -> HeartbeatResponse;
    executions.request_cancel / try_request_cancel (RequestCancelRequest) -> Execution, execution;
    executions.delete_execution / try_delete_execution (DeleteExecutionRequest) -> DeleteExecutionResponse;
    steps.plan_steps / try_plan_steps (PlanStepsRequest) -> PlanStepsResponse;
    steps.start_step / try_start_step (StartStepRequest) -> Step, step;
    steps.update_step / try_update_step (UpdateStepRequest) -> Step, step;
    steps.finish_step / try_finish_step (FinishStepRequest) -> Step, step;
    steps.get_step / try_get_step (GetStepRequest) -> Step, step;
    steps.list_steps / try_list_steps (ListStepsRequest) -> ListStepsResponse;
    configurations.publish_configuration / try_publish_configuration (PublishConfigurationRequest) -> Configuration, configuration;
    configurations.get_configuration / try_get_configuration (GetConfigurationRequest) -> Configuration, configuration;
    configurations.list_configurations / try_list_configurations (ListConfigurationsRequest) -> ListConfigurationsResponse;
    configurations.activate_configuration / try_activate_configuration (ActivateConfigurationRequest) -> Configuration, configuration;
    configurations.diff_configurations / try_diff_configurations (DiffConfigurationsRequest) -> DiffConfigurationsResponse;
    admin.check_indexes / try_check_indexes (CheckIndexesRequest) -> CheckIndexesResponse;
    metrics.record_metrics / try_record_metrics (RecordMetricsRequest) -> RecordMetricsResponse;
    metrics.query_metrics / try_query_metrics (QueryMetricsRequest) -> QueryMetricsResponse;
    artifacts.get_upload / try_get_upload (GetUploadRequest) -> GetUploadResponse;
    artifacts.get_artifact / try_get_artifact (GetArtifactRequest) -> Artifact, artifact;
    artifacts.list_artifacts / try_list_artifacts (ListArtifactsRequest) -> ListArtifactsResponse;
    artifacts.delete_artifact / try_delete_artifact (DeleteArtifactRequest) -> DeleteArtifactResponse;
    searches.search / try_search (SearchRequest) -> SearchResponse;
    analytics.get_success_rates / try_get_success_rates (GetSuccessRatesRequest) -> GetSuccessRatesResponse;
    analytics.get_report / try_get_report (GetReportRequest) -> GetReportResponse;
    analytics.get_trends / try_get_trends (GetTrendsRequest) -> GetTrendsResponse;
    analytics.get_user_activity / try_get_user_activity (GetUserActivityRequest) -> GetUserActivityResponse;
    analytics.list_slowest_steps / try_list_slowest_steps (ListSlowestStepsRequest) -> ListSlowestStepsResponse;
    analytics.list_top_errors / try_list_top_errors (ListTopErrorsRequest) -> ListTopErrorsResponse;
    admin.get_server_info / try_get_server_info (GetServerInfoRequest) -> GetServerInfoResponse;
}

impl Client {
    /// A client of the server at `address` (host:port), connected when it is first used.
    pub fn of(address: impl std::fmt::Display) -> Client {
        let address = address.to_string();
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        // Watches of slow readers share the connection with everything else of a test.
        let endpoint = endpoint.initial_connection_window_size(16 * 1024 * 1024);
        Client { channel: endpoint.connect_lazy(), address }
    }

    /// For services without calls of their own here.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub fn executions(&self) -> ExecutionServiceClient<Channel> {
        ExecutionServiceClient::new(self.channel.clone()).max_decoding_message_size(GREATEST_REPLY)
    }

    pub fn steps(&self) -> StepServiceClient<Channel> {
        StepServiceClient::new(self.channel.clone()).max_decoding_message_size(GREATEST_REPLY)
    }

    pub fn artifacts(&self) -> ArtifactServiceClient<Channel> {
        ArtifactServiceClient::new(self.channel.clone())
    }

    pub fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    pub fn analytics(&self) -> AnalyticsServiceClient<Channel> {
        AnalyticsServiceClient::new(self.channel.clone())
    }

    pub async fn try_export(&self, request: ExportRequest) -> Answer<Streaming<ExportResponse>> {
        let exports = ExportServiceClient::new(self.channel.clone());
        let mut exports = exports.max_decoding_message_size(GREATEST_REPLY);
        one(in_time("export", exports.export(request)).await)
    }

    pub async fn try_get_digests(
        &self,
        request: GetDigestsRequest,
    ) -> Answer<Streaming<GetDigestsResponse>> {
        let mut verify = VerifyServiceClient::new(self.channel.clone());
        one(in_time("digests", verify.get_digests(request)).await)
    }

    pub fn searches(&self) -> SearchServiceClient<Channel> {
        SearchServiceClient::new(self.channel.clone())
    }

    pub fn configurations(&self) -> ConfigurationServiceClient<Channel> {
        ConfigurationServiceClient::new(self.channel.clone())
            .max_decoding_message_size(GREATEST_REPLY)
    }

    pub fn metrics(&self) -> MetricServiceClient<Channel> {
        MetricServiceClient::new(self.channel.clone())
    }

    /// Sends messages over one StreamMetrics and ends it.
    pub async fn try_stream_metrics(
        &self,
        messages: Vec<StreamMetricsRequest>,
    ) -> Answer<StreamMetricsResponse> {
        let messages = tokio_stream::iter(messages);
        one(in_time("stream_metrics", self.metrics().stream_metrics(messages)).await)
    }

    pub fn ingest(&self) -> IngestServiceClient<Channel> {
        IngestServiceClient::new(self.channel.clone())
    }

    /// Creates an execution of the app `app`.
    pub async fn create(&self, id: &str) -> Execution {
        self.create_execution(create(id)).await
    }

    /// The stored execution.
    pub async fn execution(&self, id: &str) -> Execution {
        self.try_execution(id).await.expect("the execution is stored")
    }

    pub async fn try_execution(&self, id: &str) -> Answer<Execution> {
        let request = GetExecutionRequest { execution_id: id.into(), ..Default::default() };
        let answer = self.try_get_execution(request).await?;
        Ok(answer.execution.expect("the answer carries the execution"))
    }

    /// The stored step, with payloads.
    pub async fn step(&self, id: &str, step_id: i32) -> Step {
        ok(self.try_step(id, step_id).await)
    }

    pub async fn try_step(&self, id: &str, step_id: i32) -> Answer<Step> {
        self.try_get_step(GetStepRequest {
            execution_id: id.into(),
            step_id: Some(step_id),
            step_key: None,
            ..Default::default()
        })
        .await
    }

    /// Starts step `step_id`, named `work`.
    pub async fn start(&self, id: &str, step_id: i32) -> Step {
        self.start_step(start(id, step_id)).await
    }

    /// Finishes a step.
    pub async fn end(&self, id: &str, step_id: i32, status: StepStatus) -> Step {
        self.finish_step(finish_step(id, step_id, status)).await
    }

    /// Finishes an execution.
    pub async fn finish(&self, id: &str, status: ExecutionStatus) -> Execution {
        self.finish_execution(finish(id, status)).await
    }

    pub async fn try_watch(&self, request: WatchExecutionRequest) -> Answer<Watch> {
        let answer = in_time("watch_execution", self.executions().watch_execution(request)).await;
        one(answer).map(Watch::one)
    }

    pub async fn watch(&self, request: WatchExecutionRequest) -> Watch {
        ok(self.try_watch(request).await)
    }

    pub async fn try_watch_all(&self, request: WatchExecutionsRequest) -> Answer<Watch> {
        let answer = in_time("watch_executions", self.executions().watch_executions(request)).await;
        one(answer).map(Watch::many)
    }

    pub async fn watch_all(&self, request: WatchExecutionsRequest) -> Watch {
        ok(self.try_watch_all(request).await)
    }

    pub async fn try_run_retention(
        &self,
        dry_run: bool,
    ) -> Answer<Streaming<RunRetentionResponse>> {
        let request = RunRetentionRequest { dry_run };
        one(in_time("run_retention", self.admin().run_retention(request)).await)
    }

    /// Has everything counted anew for reports; what was wrong.
    pub async fn rebuild_analytics(&self) -> RebuildAnalyticsResponse {
        let request = RebuildAnalyticsRequest {};
        let run = in_time("rebuild_analytics", self.admin().rebuild_analytics(request)).await;
        let mut run = ok(one(run));
        let mut last = None;
        while let Some(answer) = ok(in_time("the rebuild", run.message()).await) {
            last = Some(answer);
        }
        last.filter(|last| last.done).expect("a rebuild ends with its result")
    }

    /// Every execution counts as what it is, and every rollup is the sum of that. How many executions there are.
    pub async fn counts_right(&self) -> i64 {
        let found = self.rebuild_analytics().await;
        assert_eq!((found.wrong, found.gone, found.rollups_wrong), (0, 0, 0), "{found:?}");
        found.executions
    }

    /// Runs retention to its end; the receipt, by collection.
    pub async fn run_retention(&self, dry_run: bool) -> Receipt {
        receipt_of(ok(self.try_run_retention(dry_run).await)).await
    }

    /// Sends writes over one Ingest stream, numbered from 0; the answers by number.
    pub async fn ingest_all(
        &self,
        writes: Vec<ingest_request::Write>,
    ) -> Vec<ingest_response::Result> {
        let count = writes.len();
        let requests = writes.into_iter().enumerate().map(|(sequence, write)| IngestRequest {
            sequence: i64::try_from(sequence).expect("few writes"),
            write: Some(write),
            mirrored: None,
        });
        let requests: Vec<_> = requests.collect();
        let mut ingest = self.ingest();
        let answers = in_time("ingest", ingest.ingest(tokio_stream::iter(requests))).await;
        let mut answers: Streaming<IngestResponse> = ok(one(answers));
        let mut results: Vec<Option<ingest_response::Result>> = (0..count).map(|_| None).collect();
        while let Some(answer) = ok(in_time("an answer of ingest", answers.message()).await) {
            let slot = &mut results[usize::try_from(answer.sequence).expect("our own number")];
            assert!(slot.is_none(), "write {} is answered twice", answer.sequence);
            *slot = Some(answer.result.expect("an answer says what became of the write"));
        }
        results.into_iter().map(|result| result.expect("every write is answered")).collect()
    }
}

/// What retention did to executions, steps and artifacts.
#[derive(Debug, Clone, PartialEq)]
pub struct Receipt {
    pub dry_run: bool,
    pub executions: RetentionCount,
    pub steps: RetentionCount,
    pub artifacts: RetentionCount,
    pub points: RetentionCount,
}

impl Receipt {
    /// Records of executions, steps and artifacts.
    pub fn records(&self) -> [i64; 3] {
        [self.executions.records, self.steps.records, self.artifacts.records]
    }
}

/// Reads a run to its receipt, which is the last message.
pub async fn receipt_of(mut run: Streaming<RunRetentionResponse>) -> Receipt {
    use run_retention_response::Message;
    let mut found = None;
    while let Some(answer) = ok(in_time("the receipt", run.message()).await) {
        assert!(found.is_none(), "something comes after the receipt: {answer:?}");
        match answer.message.expect("a message says what it is") {
            Message::Progress(progress) => {
                assert!(progress.collections.iter().all(|count| count.records >= 0));
            }
            Message::Receipt(receipt) => found = Some(receipt),
        }
    }
    let RetentionReceipt { collections, dry_run } = found.expect("a run ends with a receipt");
    let of = |name: &str| {
        let count = collections.iter().find(|count| count.collection == name);
        count.unwrap_or_else(|| panic!("the receipt has no {name}")).clone()
    };
    Receipt {
        dry_run,
        executions: of("executions"),
        steps: of("execution_steps"),
        artifacts: of("execution_artifacts"),
        points: of("execution_metrics"),
    }
}

/// CreateExecution of `id` for the app `app`.
pub fn create(id: &str) -> CreateExecutionRequest {
    CreateExecutionRequest {
        execution_id: Some(id.into()),
        app_name: "app".into(),
        ..Default::default()
    }
}

/// FinishExecution with nothing but its status.
pub fn finish(id: &str, status: ExecutionStatus) -> FinishExecutionRequest {
    FinishExecutionRequest { execution_id: id.into(), status: status.into(), ..Default::default() }
}

/// StartStep of a step named `work`.
pub fn start(id: &str, step_id: i32) -> StartStepRequest {
    StartStepRequest {
        execution_id: id.into(),
        step_id: Some(step_id),
        step_name: "work".into(),
        ..Default::default()
    }
}

/// FinishStep with nothing but its status.
pub fn finish_step(id: &str, step_id: i32, status: StepStatus) -> FinishStepRequest {
    FinishStepRequest {
        execution_id: id.into(),
        step_id: Some(step_id),
        status: status.into(),
        ..Default::default()
    }
}

/// UpdateStep that changes nothing yet.
pub fn update_step(id: &str, step_id: i32) -> UpdateStepRequest {
    UpdateStepRequest { execution_id: id.into(), step_id: Some(step_id), ..Default::default() }
}

/// UpdateExecution that changes nothing yet.
pub fn update(id: &str) -> UpdateExecutionRequest {
    UpdateExecutionRequest { execution_id: id.into(), ..Default::default() }
}

/// WatchExecution with steps.
pub fn watch(id: &str) -> WatchExecutionRequest {
    WatchExecutionRequest { execution_id: id.into(), include_steps: true, ..Default::default() }
}

/// WatchExecutions of everything, with steps.
pub fn watch_all() -> WatchExecutionsRequest {
    WatchExecutionsRequest { include_steps: true, ..Default::default() }
}

/// An error of a run.
pub fn run_error(message: &str) -> Error {
    Error { message: message.into(), ..Default::default() }
}
