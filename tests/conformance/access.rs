//! Who may do what: every method with every role.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use stepwell::proto::*;
use stepwell::rpc::catalog;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::access::{Caller, Guarded, grant};
use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::eventually;
use crate::support::values::{time, wall_clock_ms};

const ROLES: [&str; 6] = ["reporter", "viewer", "editor", "operator", "auditor", "admin"];

/// Which roles may call which methods, as the contract says. An admin may call all.
const MAY: &[(&[&str], &[&str])] = &[
    (
        &["reporter", "viewer", "editor", "operator", "auditor"],
        &[
            "AuthService/WhoAmI",
            "AdminService/GetServerInfo",
            "ServerReflection/ServerReflectionInfo",
        ],
    ),
    (
        &["reporter", "editor"],
        &[
            "ExecutionService/CreateExecution",
            "ExecutionService/UpdateExecution",
            "ExecutionService/FinishExecution",
            "ExecutionService/Heartbeat",
            "StepService/PlanSteps",
            "StepService/StartStep",
            "StepService/UpdateStep",
            "StepService/FinishStep",
            "IngestService/Ingest",
            "ArtifactService/UploadArtifact",
            "ArtifactService/GetUpload",
            "MetricService/RecordMetrics",
            "MetricService/StreamMetrics",
        ],
    ),
    (&["reporter", "viewer", "editor"], &["ConfigurationService/GetConfiguration"]),
    (
        &["viewer", "editor"],
        &[
            "ExecutionService/GetExecution",
            "ExecutionService/ListExecutions",
            "ExecutionService/CountExecutions",
            "ExecutionService/WatchExecution",
            "ExecutionService/WatchExecutions",
            "StepService/GetStep",
            "StepService/ListSteps",
            "ArtifactService/GetArtifact",
            "ArtifactService/ListArtifacts",
            "ArtifactService/DownloadArtifact",
            "MetricService/QueryMetrics",
            "ConfigurationService/ListConfigurations",
            "ConfigurationService/DiffConfigurations",
            "AnalyticsService/GetSuccessRates",
            "AnalyticsService/GetReport",
            "AnalyticsService/GetTrends",
            "AnalyticsService/GetUserActivity",
            "AnalyticsService/ListSlowestSteps",
            "AnalyticsService/ListTopErrors",
            "SearchService/Search",
            "ExportService/Export",
            "VerifyService/GetDigests",
        ],
    ),
    (
        &["editor"],
        &[
            "ExecutionService/RequestCancel",
            "ExecutionService/DeleteExecution",
            "ArtifactService/DeleteArtifact",
            "ConfigurationService/PublishConfiguration",
            "ConfigurationService/ActivateConfiguration",
            "NotificationService/CreateSubscription",
            "NotificationService/GetSubscription",
            "NotificationService/ListSubscriptions",
            "NotificationService/UpdateSubscription",
            "NotificationService/DeleteSubscription",
            "NotificationService/RotateSecret",
            "NotificationService/TestSubscription",
            "NotificationService/ListDeliveries",
            "NotificationService/Redeliver",
        ],
    ),
    (
        &["operator"],
        &[
            "AdminService/CheckIndexes",
            "AdminService/RunRetention",
            "AdminService/RebuildAnalytics",
            "MirrorService/Begin",
            "MirrorService/Advance",
            "MirrorService/Get",
            "MirrorService/Finish",
        ],
    ),
    (
        &["auditor"],
        &[
            "AuthService/ListKeys",
            "AuditService/ListAuditEvents",
            "AuditService/GetAuditHeads",
            "AuditService/VerifyAudit",
        ],
    ),
    (&[], &["AuthService/CreateKey", "AuthService/RotateKey", "AuthService/RevokeKey"]),
];

/// Methods of auditors that are about the whole of the record.
const ABOUT_ALL: [&str; 2] = ["AuditService/GetAuditHeads", "AuditService/VerifyAudit"];

/// The roles that may call a method. A method that the contract does not name has nobody but an admin.
fn may(method: &str) -> BTreeSet<&'static str> {
    let short = method.rsplit('.').next().unwrap_or_default();
    let rows = MAY.iter().filter(|(_, methods)| methods.contains(&short));
    rows.flat_map(|(roles, _)| roles.iter().copied()).chain(["admin"]).collect()
}

pub fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    details.error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// What there is of one app for a method to be called about.
pub struct Fixture {
    pub app: &'static str,
    pub id: String,
    pub artifact: String,
}

/// Something of an app for one call alone: many of them change it.
pub async fn fixture(admin: &Caller, app: &'static str, id: &str) -> Fixture {
    let request = CreateExecutionRequest {
        execution_id: Some(id.to_owned()),
        app_name: app.to_owned(),
        ..Default::default()
    };
    let _: CreateExecutionResponse =
        ok(admin.unary("ExecutionService/CreateExecution", request).await);
    let _: StartStepResponse = ok(admin.unary("StepService/StartStep", start(id, 1)).await);
    let answers =
        ok(admin.call("/stepwell.v1.ArtifactService/UploadArtifact", upload(id, None)).await);
    let uploaded = UploadArtifactResponse::decode(answers[0].as_slice()).expect("an artifact");
    let artifact = uploaded.artifact.expect("an artifact").artifact_id;
    Fixture { app, id: id.to_owned(), artifact }
}

fn upload(id: &str, upload_id: Option<&str>) -> Vec<Vec<u8>> {
    use upload_artifact_request::Part;
    let description = ArtifactDescription {
        execution_id: id.to_owned(),
        artifact_type: "log".to_owned(),
        artifact_name: upload_id.unwrap_or("log").to_owned(),
        upload_id: upload_id.map(str::to_owned),
        ..Default::default()
    };
    [Part::Description(description), Part::Chunk("the words of a log".into())]
        .map(|part| UploadArtifactRequest { part: Some(part) }.encode_to_vec())
        .to_vec()
}

pub fn configuration(app: &str, version: &str) -> Configuration {
    Configuration { app_name: app.to_owned(), version: version.to_owned(), ..Default::default() }
}

/// The messages of a call of a method about a fixture, which succeeds for who may make it.
pub fn messages(method: &str, about: &Fixture) -> Vec<Vec<u8>> {
    let id = || about.id.clone();
    let app = || about.app.to_owned();
    let short = method.rsplit('.').next().unwrap_or_default();
    let point = MetricPoint {
        timestamp: Some(time(wall_clock_ms())),
        metrics: [("m".to_owned(), 1.0)].into(),
        ..Default::default()
    };
    let key = |version: &str| {
        let version = Some(version.to_owned());
        Some(ConfigurationKey { app_name: Some(app()), version, ..Default::default() })
    };
    let message = match short {
        "ExecutionService/CreateExecution" => CreateExecutionRequest {
            execution_id: Some(format!("{}-new", about.id)),
            app_name: app(),
            ..Default::default()
        }
        .encode_to_vec(),
        "ExecutionService/UpdateExecution" => update(&about.id).encode_to_vec(),
        "ExecutionService/FinishExecution" => {
            finish(&about.id, ExecutionStatus::Completed).encode_to_vec()
        }
        "ExecutionService/Heartbeat" => HeartbeatRequest { execution_id: id() }.encode_to_vec(),
        "ExecutionService/RequestCancel" => {
            RequestCancelRequest { execution_id: id(), ..Default::default() }.encode_to_vec()
        }
        "ExecutionService/DeleteExecution" => {
            DeleteExecutionRequest { execution_id: id(), force: true }.encode_to_vec()
        }
        "ExecutionService/GetExecution" => {
            GetExecutionRequest { execution_id: id(), ..Default::default() }.encode_to_vec()
        }
        "ExecutionService/WatchExecution" => watch(&about.id).encode_to_vec(),
        "StepService/PlanSteps" => PlanStepsRequest {
            execution_id: id(),
            steps: vec![PlannedStep {
                step_id: Some(7),
                step_name: "later".to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        }
        .encode_to_vec(),
        "StepService/StartStep" => start(&about.id, 2).encode_to_vec(),
        "StepService/UpdateStep" => update_step(&about.id, 1).encode_to_vec(),
        "StepService/FinishStep" => {
            finish_step(&about.id, 1, StepStatus::Completed).encode_to_vec()
        }
        "StepService/GetStep" => {
            GetStepRequest { execution_id: id(), step_id: Some(1), ..Default::default() }
                .encode_to_vec()
        }
        "StepService/ListSteps" => {
            ListStepsRequest { execution_id: id(), ..Default::default() }.encode_to_vec()
        }
        "IngestService/Ingest" => {
            let write = ingest_request::Write::Heartbeat(HeartbeatRequest { execution_id: id() });
            IngestRequest { sequence: 1, write: Some(write), mirrored: None }.encode_to_vec()
        }
        "ArtifactService/UploadArtifact" => {
            return upload(&about.id, Some(&format!("{}-upload", about.id)));
        }
        "ArtifactService/GetUpload" => {
            GetUploadRequest { upload_id: format!("{}-first", about.id) }.encode_to_vec()
        }
        "ArtifactService/GetArtifact" => {
            GetArtifactRequest { artifact_id: about.artifact.clone() }.encode_to_vec()
        }
        "ArtifactService/DownloadArtifact" => {
            DownloadArtifactRequest { artifact_id: about.artifact.clone(), ..Default::default() }
                .encode_to_vec()
        }
        "ArtifactService/DeleteArtifact" => {
            DeleteArtifactRequest { artifact_id: about.artifact.clone() }.encode_to_vec()
        }
        "ArtifactService/ListArtifacts" => {
            ListArtifactsRequest { execution_id: id(), ..Default::default() }.encode_to_vec()
        }
        "MetricService/RecordMetrics" => {
            RecordMetricsRequest { execution_id: id(), points: vec![point], ..Default::default() }
                .encode_to_vec()
        }
        "MetricService/StreamMetrics" => {
            StreamMetricsRequest { execution_id: id(), points: vec![point], ..Default::default() }
                .encode_to_vec()
        }
        "MetricService/QueryMetrics" => {
            QueryMetricsRequest { execution_id: id(), ..Default::default() }.encode_to_vec()
        }
        "ConfigurationService/PublishConfiguration" => PublishConfigurationRequest {
            configuration: Some(configuration(about.app, &about.id)),
            activate: false,
        }
        .encode_to_vec(),
        "ConfigurationService/GetConfiguration" => {
            GetConfigurationRequest { app_name: Some(app()), ..Default::default() }.encode_to_vec()
        }
        "ConfigurationService/ActivateConfiguration" => ActivateConfigurationRequest {
            app_name: Some(app()),
            version: "1".to_owned(),
            ..Default::default()
        }
        .encode_to_vec(),
        "ConfigurationService/ListConfigurations" => {
            ListConfigurationsRequest { app_name: Some(app()), ..Default::default() }
                .encode_to_vec()
        }
        "ConfigurationService/DiffConfigurations" => {
            DiffConfigurationsRequest { from_version: key("1"), to_version: key("1") }
                .encode_to_vec()
        }
        // Of reflection: list_services.
        "ServerReflection/ServerReflectionInfo" => vec![0x3a, 0],
        "SearchService/Search" => {
            SearchRequest { query: "words".to_owned(), ..Default::default() }.encode_to_vec()
        }
        "NotificationService/CreateSubscription" => CreateSubscriptionRequest {
            name: "nobody".to_owned(),
            events: vec![NotificationEvent::ExecutionFailed.into()],
            url: "https://example.com/".to_owned(),
            enabled: Some(false),
            ..Default::default()
        }
        .encode_to_vec(),
        "NotificationService/Redeliver" => {
            let target = Some(redeliver_request::Target::SubscriptionId("unknown".to_owned()));
            RedeliverRequest { target }.encode_to_vec()
        }
        // The first field of all of them is the id.
        "NotificationService/GetSubscription"
        | "NotificationService/UpdateSubscription"
        | "NotificationService/DeleteSubscription"
        | "NotificationService/RotateSecret"
        | "NotificationService/TestSubscription"
        | "NotificationService/ListDeliveries" => {
            GetSubscriptionRequest { subscription_id: "unknown".to_owned() }.encode_to_vec()
        }
        "MirrorService/Begin" => {
            let (name, source) = ("begun".to_owned(), "source".to_owned());
            MirrorServiceBeginRequest { name, source }.encode_to_vec()
        }
        // The first field of all of them is the name.
        "MirrorService/Advance" => MirrorServiceAdvanceRequest {
            name: "unknown".to_owned(),
            session: 1,
            told: Some(mirror_service_advance_request::Told::Verification(Default::default())),
        }
        .encode_to_vec(),
        "MirrorService/Get" | "MirrorService/Finish" => {
            MirrorServiceGetRequest { name: "unknown".to_owned() }.encode_to_vec()
        }
        "AdminService/RunRetention" => RunRetentionRequest { dry_run: true }.encode_to_vec(),
        "AuthService/CreateKey" => CreateKeyRequest {
            name: "made".to_owned(),
            grants: vec![grant("viewer", &["mine"])],
            ..Default::default()
        }
        .encode_to_vec(),
        "AuthService/RotateKey" => {
            RotateKeyRequest { key_id: "0".repeat(12), ..Default::default() }.encode_to_vec()
        }
        "AuthService/RevokeKey" => RevokeKeyRequest { key_id: "0".repeat(12) }.encode_to_vec(),
        _ => Vec::new(),
    };
    vec![message]
}

/// Every method that is served, as its path.
fn methods() -> Vec<String> {
    catalog::all()
        .flat_map(|service| {
            let name = service.name;
            service.methods.into_iter().map(move |method| format!("{name}/{method}"))
        })
        .collect()
}

/// Every method, with no credential, with every role for another app or for none of the right ones, and with every role
/// for the app it is called about. With a second server on the database, the calls go to both in turn.
pub async fn every_method_is_decided_by_role(b: Backend) {
    let g = Guarded::start(&b).await;
    let second = g.second().await;
    let active = PublishConfigurationRequest {
        configuration: Some(configuration("mine", "1")),
        activate: true,
    };
    let _: PublishConfigurationResponse =
        ok(g.admin.unary("ConfigurationService/PublishConfiguration", active).await);
    let mut callers = BTreeMap::new();
    for role in ROLES {
        let apps: &[&str] = if role == "operator" { &["*"] } else { &["mine"] };
        callers.insert(role, g.caller(role, apps).await);
    }
    for caller in callers.values() {
        let other = caller.at(&second);
        eventually("the key is known everywhere", async || {
            other.unary::<_, WhoAmIResponse>("AuthService/WhoAmI", WhoAmIRequest {}).await.ok()
        })
        .await;
    }
    let (mut cells, mut let_in) = (0, 0);
    for method in methods() {
        let path = format!("/{method}");
        let server = if cells % 2 == 0 { &g.server } else { &second };
        cells += 1;
        if method.starts_with("grpc.health.") {
            let opened = Caller::nobody(server).open(&path, vec![Vec::new()]).await;
            assert!(opened.is_ok(), "{method}: {opened:?}");
            continue;
        }
        let nobody = Caller::nobody(server).call(&path, vec![Vec::new()]).await;
        refused(nobody, Code::Unauthenticated, "CREDENTIAL_MISSING");
        let about = fixture(&g.admin, "mine", &method.replace(['/', '.'], "-")).await;
        let first = upload(&about.id, Some(&format!("{}-first", about.id)));
        ok(g.admin.call("/stepwell.v1.ArtifactService/UploadArtifact", first).await);
        for role in ROLES {
            let server = if cells % 2 == 0 { &g.server } else { &second };
            cells += 1;
            let caller = callers[role].at(server);
            if !may(&method).contains(role) {
                // The role is looked at before the request.
                let answer = caller.call(&path, vec![Vec::new()]).await;
                refused(answer, Code::PermissionDenied, "ROLE_FORBIDS");
                let answer = caller.call(&path, messages(&method, &about)).await;
                refused(answer, Code::PermissionDenied, "ROLE_FORBIDS");
                continue;
            }
            let_in += 1;
            // An admin of one app does not look after the server, nor does anybody else of one app.
            let about_server = may(&method) == BTreeSet::from(["admin", "operator"])
                || ABOUT_ALL.iter().any(|all| method.ends_with(all));
            let answer = caller.call(&path, messages(&method, &about)).await;
            match answer {
                Err(status) if about_server && ["admin", "auditor"].contains(&role) => {
                    check_refusal(&status, Code::PermissionDenied, "SCOPE_FORBIDS");
                }
                Ok(_) => {}
                Err(status) => {
                    // What an earlier role has ended or taken away is no more there for a later one.
                    let passed = matches!(status.code(), Code::NotFound | Code::FailedPrecondition)
                        || reason(&status) == "RETENTION_RUNNING"
                        // Who publishes is part of what is published.
                        || reason(&status) == "CONFIGURATION_ALREADY_EXISTS";
                    assert!(passed, "{role} {method}: {status:?}");
                    let first = ROLES.into_iter().find(|other| may(&method).contains(other));
                    let has_target = !method.ends_with("eKey")
                        && !method.contains("NotificationService")
                        && !method.contains("MirrorService");
                    assert!(first != Some(role) || !has_target, "{role} {method}: {status:?}");
                }
            }
        }
    }
    let methods = methods().len();
    assert!(methods > 50 && cells > methods * ROLES.len(), "{cells} cells of {methods} methods");
    println!("{}: {methods} methods, {cells} cells, {let_in} let in", b.kind.name());
}

pub async fn what_a_caller_is_told_about_itself_is_true(b: Backend) {
    let g = Guarded::start(&b).await;
    for role in ROLES {
        let (id, secret) = g.key(role, &["mine", "shop*#7/2"]).await;
        let caller = Caller::new(&g.server, &secret);
        let who: WhoAmIResponse = ok(caller.unary("AuthService/WhoAmI", WhoAmIRequest {}).await);
        assert_eq!((who.kind(), who.id), (CallerKind::Key, id));
        assert_eq!(who.grants, [grant(role, &["mine", "shop*#7/2"])]);
        let told: BTreeSet<String> = who.methods.into_iter().collect();
        for method in methods() {
            let is_told = told.contains(&method.replace('/', "."));
            let may = may(&method).contains(role) || method.starts_with("grpc.health.");
            assert_eq!(is_told, may, "{role} {method}");
        }
    }
    let who: WhoAmIResponse = ok(g.admin.unary("AuthService/WhoAmI", WhoAmIRequest {}).await);
    assert_eq!(who.kind(), CallerKind::AdminKey);
    assert_eq!(who.grants, [grant("admin", &["*"])], "without reveal");

    let open = b.clone();
    drop(g);
    if open.kind == crate::support::backend::Kind::Mongodb {
        let s = open.serve().await;
        let caller = Caller::nobody(&s);
        let who: WhoAmIResponse = ok(caller.unary("AuthService/WhoAmI", WhoAmIRequest {}).await);
        assert_eq!(who.kind(), CallerKind::Anonymous);
        assert!(who.grants[0].role == "admin" && who.grants[0].reveal);
    }
}

pub async fn a_write_within_a_call_needs_what_the_call_by_itself_needs(b: Backend) {
    use ingest_request::Write;
    let g = Guarded::start(&b).await;
    let reporter = g.caller("reporter", &["mine"]).await;
    let about = fixture(&g.admin, "mine", "run").await;
    let pinned = UpdateExecutionRequest { pinned: Some(true), ..update("run") };
    let answer = reporter
        .unary::<_, UpdateExecutionResponse>("ExecutionService/UpdateExecution", pinned.clone());
    refused(answer.await, Code::PermissionDenied, "ROLE_FORBIDS");
    let writes = [
        (Write::Heartbeat(HeartbeatRequest { execution_id: about.id.clone() }), true),
        (Write::UpdateExecution(update("run")), true),
        (Write::UpdateExecution(pinned), false),
        (Write::StartStep(start("run", 2)), true),
        (
            Write::RequestCancel(RequestCancelRequest {
                execution_id: "run".into(),
                ..Default::default()
            }),
            false,
        ),
        (
            Write::DeleteExecution(DeleteExecutionRequest {
                execution_id: "run".into(),
                force: true,
            }),
            false,
        ),
        (
            Write::PutExecution(Execution {
                execution_id: "x".into(),
                app_name: "mine".into(),
                ..Default::default()
            }),
            false,
        ),
        (
            Write::PutStep(Step {
                execution_id: "run".into(),
                step_id: Some(9),
                step_name: "s".into(),
                ..Default::default()
            }),
            false,
        ),
        (Write::PutConfiguration(configuration("mine", "2")), false),
        (Write::FinishStep(finish_step("run", 1, StepStatus::Completed)), true),
    ];
    let messages = writes.iter().zip(1..).map(|((write, _), sequence)| {
        IngestRequest { sequence, write: Some(write.clone()), mirrored: None }.encode_to_vec()
    });
    let answers = ok(reporter.call("/stepwell.v1.IngestService/Ingest", messages.collect()).await);
    assert_eq!(answers.len(), writes.len(), "a refusal does not end the stream");
    for answer in answers {
        let answer = IngestResponse::decode(answer.as_slice()).expect("an answer");
        let (write, allowed) = &writes[usize::try_from(answer.sequence - 1).expect("ours")];
        match answer.result.expect("a result") {
            ingest_response::Result::Error(error) => {
                assert!(
                    !allowed && error.code == Code::PermissionDenied as i32,
                    "{write:?}: {error:?}"
                );
            }
            _ => assert!(allowed, "{write:?}"),
        }
    }
    assert!(
        g.admin
            .unary::<_, GetExecutionResponse>(
                "ExecutionService/GetExecution",
                GetExecutionRequest { execution_id: "run".into(), ..Default::default() },
            )
            .await
            .is_ok()
    );
}
