//! What a client can find out about the server: its services, their messages, its health and its limits.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorProto};
use stepwell::proto::*;
use stepwell::rpc::catalog;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_prost::ProstCodec;

use crate::support::backend::Backend;
use crate::support::in_time;

const SERVICES: [&str; 16] = [
    "grpc.health.v1.Health",
    "stepwell.v1.AdminService",
    "stepwell.v1.AnalyticsService",
    "stepwell.v1.ArtifactService",
    "stepwell.v1.AuditService",
    "stepwell.v1.AuthService",
    "stepwell.v1.ConfigurationService",
    "stepwell.v1.ExecutionService",
    "stepwell.v1.ExportService",
    "stepwell.v1.IngestService",
    "stepwell.v1.MetricService",
    "stepwell.v1.MirrorService",
    "stepwell.v1.NotificationService",
    "stepwell.v1.SearchService",
    "stepwell.v1.StepService",
    "stepwell.v1.VerifyService",
];

/// Every service by reflection, and every file that holds one, with all that it imports.
macro_rules! reflect {
    ($version:ident, $channel:expr) => {{
        use tonic_reflection::pb::$version::ServerReflectionRequest;
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest as Ask;
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse as Answer;
        let mut client = ServerReflectionClient::new($channel);
        let mut ask = async |ask: Ask| {
            let request =
                ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
            let answers = client.server_reflection_info(tokio_stream::iter([request])).await;
            let mut answers = answers.expect("reflection answers").into_inner();
            let answer = answers.message().await.expect("an answer").expect("an answer");
            answer.message_response.expect("an answer")
        };
        let Answer::ListServicesResponse(list) = ask(Ask::ListServices(String::new())).await else {
            panic!("no list of services");
        };
        let services: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
        let mut files = BTreeMap::new();
        for service in &services {
            let Answer::FileDescriptorResponse(found) =
                ask(Ask::FileContainingSymbol(service.clone())).await
            else {
                panic!("no file of {service}");
            };
            let mut wanted: Vec<FileDescriptorProto> = decode(found.file_descriptor_proto);
            while let Some(file) = wanted.pop() {
                for import in &file.dependency {
                    if files.contains_key(import) {
                        continue;
                    }
                    let Answer::FileDescriptorResponse(found) =
                        ask(Ask::FileByFilename(import.clone())).await
                    else {
                        panic!("no file {import}");
                    };
                    wanted.extend(decode(found.file_descriptor_proto));
                }
                files.insert(file.name().to_owned(), file);
            }
        }
        (services, files)
    }};
}

fn decode(files: Vec<Vec<u8>>) -> Vec<FileDescriptorProto> {
    files
        .into_iter()
        .map(|bytes| FileDescriptorProto::decode(bytes.as_slice()).expect("a file descriptor"))
        .collect()
}

pub async fn reflection_lists_every_service_with_its_imports(b: Backend) {
    let s = b.serve().await;
    let (mut services, files) = reflect!(v1, s.channel.clone());
    let (mut old_services, old_files) = reflect!(v1alpha, s.channel.clone());
    for listed in [&mut services, &mut old_services] {
        listed.retain(|service| !service.starts_with("grpc.reflection."));
        listed.sort();
        assert_eq!(*listed, SERVICES);
    }
    assert_eq!(files, old_files);
    for import in [
        "google/protobuf/struct.proto",
        "google/protobuf/timestamp.proto",
        "google/rpc/status.proto",
    ] {
        assert!(files.contains_key(import), "{import} is missing");
    }
}

/// Field -> (type, label, optional) of a message.
fn fields(message: &DescriptorProto) -> BTreeMap<&str, (Type, Label, bool)> {
    message
        .field
        .iter()
        .map(|field| (field.name(), (field.r#type(), field.label(), field.proto3_optional())))
        .collect()
}

pub async fn the_names_are_those_of_the_contract(b: Backend) {
    let s = b.serve().await;
    let (_, files) = reflect!(v1, s.channel.clone());
    let ours = || files.values().filter(|file| file.package() == "stepwell.v1");
    let calls: BTreeSet<String> = ours()
        .flat_map(|file| &file.service)
        .flat_map(|service| {
            service.method.iter().map(move |call| format!("{}.{}", service.name(), call.name()))
        })
        .collect();
    let expected = [
        "AdminService.CheckIndexes",
        "AdminService.GetServerInfo",
        "AdminService.RebuildAnalytics",
        "AdminService.RunRetention",
        "AnalyticsService.GetReport",
        "AnalyticsService.GetSuccessRates",
        "AnalyticsService.GetTrends",
        "AnalyticsService.GetUserActivity",
        "AnalyticsService.ListSlowestSteps",
        "AnalyticsService.ListTopErrors",
        "ArtifactService.DeleteArtifact",
        "ArtifactService.DownloadArtifact",
        "ArtifactService.GetArtifact",
        "ArtifactService.GetUpload",
        "ArtifactService.ListArtifacts",
        "ArtifactService.UploadArtifact",
        "AuditService.GetAuditHeads",
        "AuditService.ListAuditEvents",
        "AuditService.VerifyAudit",
        "AuthService.CreateKey",
        "AuthService.ListKeys",
        "AuthService.RevokeKey",
        "AuthService.RotateKey",
        "AuthService.WhoAmI",
        "ConfigurationService.ActivateConfiguration",
        "ConfigurationService.DiffConfigurations",
        "ConfigurationService.GetConfiguration",
        "ConfigurationService.ListConfigurations",
        "ConfigurationService.PublishConfiguration",
        "ExecutionService.CountExecutions",
        "ExecutionService.CreateExecution",
        "ExecutionService.DeleteExecution",
        "ExecutionService.FinishExecution",
        "ExecutionService.GetExecution",
        "ExecutionService.Heartbeat",
        "ExecutionService.ListExecutions",
        "ExecutionService.RequestCancel",
        "ExecutionService.UpdateExecution",
        "ExecutionService.WatchExecution",
        "ExecutionService.WatchExecutions",
        "ExportService.Export",
        "IngestService.Ingest",
        "MetricService.QueryMetrics",
        "MetricService.RecordMetrics",
        "MetricService.StreamMetrics",
        "MirrorService.Advance",
        "MirrorService.Begin",
        "MirrorService.Finish",
        "MirrorService.Get",
        "NotificationService.CreateSubscription",
        "NotificationService.DeleteSubscription",
        "NotificationService.GetSubscription",
        "NotificationService.ListDeliveries",
        "NotificationService.ListSubscriptions",
        "NotificationService.Redeliver",
        "NotificationService.RotateSecret",
        "NotificationService.TestSubscription",
        "NotificationService.UpdateSubscription",
        "SearchService.Search",
        "StepService.FinishStep",
        "StepService.GetStep",
        "StepService.ListSteps",
        "StepService.PlanSteps",
        "StepService.StartStep",
        "StepService.UpdateStep",
        "VerifyService.GetDigests",
    ];
    assert_eq!(calls.iter().map(String::as_str).collect::<Vec<_>>(), expected);

    let messages: BTreeMap<&str, &DescriptorProto> = ours()
        .flat_map(|file| &file.message_type)
        .map(|message| (message.name(), message))
        .collect();
    let words = |text: &'static str| text.split_whitespace().collect::<Vec<_>>();
    for (message, names) in [
        (
            "Execution",
            "execution_id app_id app_name sub_app_id sub_app_name user_id status started_at completed_at \
             duration_ms error metadata created_at updated_at revision heartbeat_timeout_ms \
             last_heartbeat_at cancel_requested_at cancel_reason parent_execution_id pinned",
        ),
        (
            "Step",
            "execution_id step_id step_key step_name step_version status started_at completed_at \
             duration_ms input output error retry_count metadata revision created_at updated_at \
             depends_on parent_step_id progress progress_message attempts",
        ),
        ("Error", "message code stack_trace details"),
        (
            "ExecutionFilter",
            "app_ids app_names sub_app_ids user_ids statuses started_at_from started_at_until \
             min_duration_ms metadata",
        ),
        (
            "CreateExecutionRequest",
            "execution_id app_id app_name sub_app_id sub_app_name user_id metadata started_at \
             heartbeat_timeout parent_execution_id",
        ),
        ("GetExecutionRequest", "execution_id view"),
        ("GetExecutionResponse", "execution steps artifacts steps_truncated"),
        ("ListExecutionsRequest", "filter order page_size page_token"),
        ("ListExecutionsResponse", "executions next_page_token"),
        (
            "UpdateExecutionRequest",
            "execution_id metadata pinned expected_revision update_sequence",
        ),
        ("FinishExecutionRequest", "execution_id status error completed_at metadata"),
        ("HeartbeatRequest", "execution_id"),
        ("HeartbeatResponse", "cancel_requested"),
        ("RequestCancelRequest", "execution_id reason"),
        ("DeleteExecutionRequest", "execution_id force"),
        (
            "WatchExecutionRequest",
            "execution_id resume_token include_steps include_artifacts include_metrics include_payloads \
             follow",
        ),
        ("WatchExecutionsRequest", "filter resume_token include_steps include_payloads snapshot"),
        (
            "WatchExecutionResponse",
            "resume_token execution step artifact metrics snapshot_complete keepalive",
        ),
        ("PlanStepsRequest", "execution_id steps configuration_version"),
        (
            "Configuration",
            "app_id app_name sub_app_id sub_app_name version configuration active created_at created_by",
        ),
        ("PublishConfigurationRequest", "configuration activate"),
        ("GetConfigurationRequest", "app_id app_name sub_app_id version"),
        ("DiffConfigurationsRequest", "from_version to_version"),
        ("MetricPoint", "timestamp execution_id metrics step_id"),
        ("RecordMetricsRequest", "execution_id points request_id"),
        ("RecordMetricsResponse", "accepted"),
        ("StreamMetricsRequest", "execution_id points request_id"),
        ("QueryMetricsRequest", "execution_id names since until interval page_size page_token"),
        ("QueryMetricsResponse", "points intervals next_page_token"),
        ("MetricInterval", "min max mean last count"),
        ("PlannedStep", "step_id step_key step_name step_version depends_on input metadata"),
        (
            "StartStepRequest",
            "execution_id step_id step_key step_name step_version input metadata depends_on \
             parent_step_id started_at attempt",
        ),
        (
            "UpdateStepRequest",
            "execution_id step_id step_key progress progress_message metadata output",
        ),
        (
            "FinishStepRequest",
            "execution_id step_id step_key status output error completed_at metadata step_name \
             step_version input started_at depends_on parent_step_id",
        ),
        ("GetStepRequest", "execution_id step_id step_key"),
        ("ListStepsRequest", "execution_id statuses page_size page_token"),
        ("ListStepsResponse", "steps next_page_token"),
        (
            "Artifact",
            "artifact_id execution_id step_id artifact_type artifact_name mime_type size_bytes \
             storage_type storage_path metadata created_at sha256",
        ),
        ("GetUploadRequest", "upload_id"),
        ("GetUploadResponse", "received_bytes"),
        ("DownloadArtifactRequest", "artifact_id offset limit"),
        ("ListArtifactsRequest", "execution_id step_id artifact_type page_size page_token"),
        ("UploadArtifactResponse", "artifact"),
    ] {
        let found = fields(messages[message]);
        for name in words(names) {
            assert!(found.contains_key(name), "{message}.{name} is missing");
        }
    }
    let execution = fields(messages["Execution"]);
    let step = fields(messages["Step"]);
    assert_eq!(execution["duration_ms"], (Type::Int64, Label::Optional, true));
    assert_eq!(execution["revision"].0, Type::Int64);
    assert_eq!(execution["app_id"], (Type::Int32, Label::Optional, true));
    assert_eq!(step["step_id"], (Type::Int32, Label::Optional, true));
    assert_eq!(step["retry_count"].0, Type::Int32);
    assert_eq!(step["progress"], (Type::Double, Label::Optional, true));
    for (name, message) in &messages {
        for (field, (_, label, optional)) in fields(message) {
            // A keyword of Python, where it could only be set through a dictionary.
            assert_ne!(field, "from", "{name}");
            let is_id = matches!(field, "step_id" | "parent_step_id");
            assert!(
                !is_id || (label == Label::Optional && optional),
                "{name}.{field} is not optional"
            );
        }
    }
    let enums: BTreeMap<&str, Vec<&str>> = ours()
        .flat_map(|file| &file.enum_type)
        .map(|kind| (kind.name(), kind.value.iter().map(|value| value.name()).collect()))
        .collect();
    for (kind, values) in &enums {
        assert!(values[0].ends_with("_UNSPECIFIED"), "{kind}: {values:?}");
    }
    for (kind, value) in [
        ("ExecutionStatus", "EXECUTION_STATUS_RUNNING"),
        ("StepStatus", "STEP_STATUS_SKIPPED"),
        ("ExecutionView", "EXECUTION_VIEW_FULL"),
        ("ExecutionOrder", "EXECUTION_ORDER_STARTED_AT_ASC"),
        ("ChangeType", "CHANGE_TYPE_DELETED"),
        ("SuccessRateGroupBy", "SUCCESS_RATE_GROUP_BY_SUB_APP"),
        ("ReportPeriod", "REPORT_PERIOD_WEEK"),
    ] {
        assert!(enums[kind].contains(&value), "{value} is missing");
    }
}

pub async fn health_says_serving(b: Backend) {
    let s = b.serve().await;
    let mut health = HealthClient::new(s.channel.clone());
    let services = catalog::api().iter().map(|service| service.name.as_str());
    for service in services.chain([""]) {
        let request = HealthCheckRequest { service: service.into() };
        let answer = health.check(request).await;
        let answer = answer.unwrap_or_else(|status| panic!("{service:?}: {status:?}"));
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service:?}");
    }
}

pub async fn every_method_of_the_descriptors_is_served(b: Backend) {
    let s = b.serve().await;
    let mut called = 0;
    for service in catalog::all() {
        for method in &service.methods {
            let path = format!("/{}/{method}", service.name);
            let mut client = tonic::client::Grpc::new(s.channel.clone());
            client.ready().await.expect("connected");
            // One empty message, which each method answers or refuses in its own way.
            let request = Request::new(tokio_stream::iter([()]));
            let target = path.parse().expect("a path");
            let codec = ProstCodec::<(), ()>::default();
            let answer = in_time(&path, client.streaming(request, target, codec)).await;
            let code = answer.map_or_else(|status| status.code(), |_| Code::Ok);
            assert_ne!(code, Code::Unimplemented, "{path}");
            called += 1;
        }
    }
    assert!(called > 40, "only {called} methods");
}

pub async fn the_server_says_what_it_is(b: Backend) {
    let s = b.serve().await;
    let info = s.get_server_info(GetServerInfoRequest {}).await;
    assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(info.store, b.kind.name());
    assert!(!info.store_version.is_empty());
    assert_eq!(
        info.features,
        [
            "analytics",
            "artifacts",
            "auth",
            "configurations",
            "export",
            "ingest",
            "leases",
            "metrics",
            "mirrors",
            "notifications",
            "plans",
            "retention",
            "search",
            "verify",
            "watch"
        ]
    );
    for (limit, value) in [
        ("name_characters", 256),
        ("execution_id_characters", 128),
        ("metadata_bytes", 256 * 1024),
        ("error_message_bytes", 64 * 1024),
        ("payload_bytes", 6 * 1024 * 1024),
        ("steps_per_execution", 100_000),
        ("depends_on_ids", 10_000),
        ("request_bytes", 16 * 1024 * 1024),
        ("decoded_bytes", 256 * 1024 * 1024),
        ("page_records", 1000),
        ("page_bytes", 4 * 1024 * 1024),
        ("page_examined_records", 20_000),
        ("metric_points", 10_000),
        ("metrics_per_point", 1000),
        ("metric_names", 50),
        ("metric_page_records", 10_000),
        ("request_id_characters", 128),
        ("artifact_bytes", 5 * 1024 * 1024 * 1024),
        ("artifacts_per_execution", 10_000),
        ("upload_chunk_bytes", 4 * 1024 * 1024),
    ] {
        assert_eq!(info.limits.get(limit), Some(&value), "{limit}: {:?}", info.limits);
    }
}
