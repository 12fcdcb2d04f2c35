//! Bounds and errors: every bad field is named with size and limit, all at once, before anything is looked up.

use stepwell::proto::*;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::values::*;

const KIB: usize = 1024;

/// Fails unless exactly this field is refused, naming both numbers.
#[track_caller]
fn names<T: std::fmt::Debug>(answer: Answer<T>, field: &str, size: Option<usize>, limit: usize) {
    let fields = bad_fields(answer);
    assert_eq!(fields.len(), 1, "{fields:?}");
    let (named, description) = &fields[0];
    assert_eq!(named, field, "{fields:?}");
    assert!(description.contains(&limit.to_string()), "no limit {limit}: {fields:?}");
    if let Some(size) = size {
        assert!(description.contains(&size.to_string()), "no size {size}: {fields:?}");
    }
}

pub async fn names_and_ids_have_at_most_256_characters(b: Backend) {
    let s = b.serve().await;
    // Characters, not bytes.
    let (longest, long) = ("é".repeat(256), "é".repeat(257));
    let created = s
        .create_execution(CreateExecutionRequest {
            app_name: longest.clone(),
            sub_app_name: Some(longest.clone()),
            user_id: Some(longest.clone()),
            ..create("e")
        })
        .await;
    assert_eq!(created.app_name, longest);
    let step = StartStepRequest {
        step_key: Some(longest.clone()),
        step_name: longest.clone(),
        step_version: Some(longest.clone()),
        ..start("e", 1)
    };
    assert_eq!(s.start_step(step).await.step_name, longest);

    let long = || long.clone();
    let creates = [
        ("app_name", CreateExecutionRequest { app_name: long(), ..create("x") }),
        ("sub_app_name", CreateExecutionRequest { sub_app_name: Some(long()), ..create("x") }),
        ("user_id", CreateExecutionRequest { user_id: Some(long()), ..create("x") }),
    ];
    for (field, request) in creates {
        names(s.try_create_execution(request).await, field, Some(257), 256);
    }
    names(s.try_create_execution(create(&text(129))).await, "execution_id", Some(129), 128);
    let request = CreateExecutionRequest { parent_execution_id: Some(text(129)), ..create("x") };
    names(s.try_create_execution(request).await, "parent_execution_id", Some(129), 128);
    let starts = [
        ("step_key", StartStepRequest { step_key: Some(long()), ..start("e", 2) }),
        ("step_name", StartStepRequest { step_name: long(), ..start("e", 2) }),
        ("step_version", StartStepRequest { step_version: Some(long()), ..start("e", 2) }),
    ];
    for (field, request) in starts {
        names(s.try_start_step(request).await, field, Some(257), 256);
    }
    let finishes = [
        (
            "step_key",
            FinishStepRequest { step_key: Some(long()), ..finish_step("e", 1, StepStatus::Failed) },
        ),
        (
            "step_name",
            FinishStepRequest {
                step_name: Some(long()),
                ..finish_step("e", 1, StepStatus::Failed)
            },
        ),
        (
            "step_version",
            FinishStepRequest {
                step_version: Some(long()),
                ..finish_step("e", 1, StepStatus::Failed)
            },
        ),
        (
            "error.code",
            FinishStepRequest {
                error: Some(Error { code: long(), ..run_error("x") }),
                ..finish_step("e", 1, StepStatus::Failed)
            },
        ),
    ];
    for (field, request) in finishes {
        names(s.try_finish_step(request).await, field, Some(257), 256);
    }
    let steps = vec![PlannedStep { step_id: Some(5), step_name: long(), ..Default::default() }];
    let answer = s
        .try_plan_steps(PlanStepsRequest { execution_id: "e".into(), steps, ..Default::default() })
        .await;
    names(answer, "steps[0].step_name", Some(257), 256);
    let request = RequestCancelRequest { execution_id: "e".into(), reason: text(4097) };
    names(s.try_request_cancel(request).await, "reason", Some(4097), 4096);
    let request = UpdateStepRequest { progress_message: Some(text(4097)), ..update_step("e", 1) };
    names(s.try_update_step(request).await, "progress_message", Some(4097), 4096);
}

pub async fn required_names_are_required(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let request = CreateExecutionRequest { app_name: String::new(), ..create("x") };
    assert_eq!(bad_fields(s.try_create_execution(request).await)[0].0, "app_name");
    let request = StartStepRequest { step_name: String::new(), ..start("e", 1) };
    assert_eq!(bad_fields(s.try_start_step(request).await)[0].0, "step_name");
    let request = StartStepRequest { step_key: Some(String::new()), ..start("e", 1) };
    assert_eq!(bad_fields(s.try_start_step(request).await)[0].0, "step_key");
    assert_eq!(bad_fields(s.try_start_step(start("e", -1)).await)[0].0, "step_id");
    let request = StartStepRequest { depends_on: vec![-1], ..start("e", 1) };
    assert_eq!(bad_fields(s.try_start_step(request).await)[0].0, "depends_on");
    let steps = vec![PlannedStep { step_name: "work".into(), ..Default::default() }];
    let answer = s
        .try_plan_steps(PlanStepsRequest { execution_id: "e".into(), steps, ..Default::default() })
        .await;
    assert_eq!(bad_fields(answer)[0].0, "steps[0].step_id");
    assert_eq!(bad_fields(s.try_execution("").await)[0].0, "execution_id");
    let bad_time = Some(prost_types::Timestamp { seconds: 1, nanos: -1 });
    let request = CreateExecutionRequest { started_at: bad_time, ..create("x") };
    assert_eq!(bad_fields(s.try_create_execution(request).await)[0].0, "started_at");
    for (seconds, nanos) in [(0, 0), (-5, 0), (0, 99_000_000), (31 * 24 * 3600, 0)] {
        let timeout = Some(prost_types::Duration { seconds, nanos });
        let request = CreateExecutionRequest { heartbeat_timeout: timeout, ..create("x") };
        assert_eq!(bad_fields(s.try_create_execution(request).await)[0].0, "heartbeat_timeout");
    }
}

pub async fn metadata_has_at_most_256_kib(b: Backend) {
    let s = b.serve().await;
    let limit = 256 * KIB;
    let fits = || meta(json!({ "text": text(limit - 100) }));
    let large = || meta(json!({ "text": text(limit) }));
    s.create_execution(CreateExecutionRequest { metadata: fits(), ..create("e") }).await;
    s.start_step(StartStepRequest { metadata: fits(), ..start("e", 1) }).await;
    let request = CreateExecutionRequest { metadata: large(), ..create("x") };
    names(s.try_create_execution(request).await, "metadata", None, limit);
    let request = UpdateExecutionRequest { metadata: large(), ..update("e") };
    names(s.try_update_execution(request).await, "metadata", None, limit);
    let request = StartStepRequest { metadata: large(), ..start("e", 2) };
    names(s.try_start_step(request).await, "metadata", None, limit);
    let request = UpdateStepRequest { metadata: large(), ..update_step("e", 1) };
    names(s.try_update_step(request).await, "metadata", None, limit);
    let request =
        FinishStepRequest { metadata: large(), ..finish_step("e", 1, StepStatus::Completed) };
    names(s.try_finish_step(request).await, "metadata", None, limit);
    let request =
        FinishExecutionRequest { metadata: large(), ..finish("e", ExecutionStatus::Completed) };
    names(s.try_finish_execution(request).await, "metadata", None, limit);
}

pub async fn errors_have_at_most_64_kib_of_message(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let with = |error: Error| FinishStepRequest {
        error: Some(error),
        step_name: Some("work".into()),
        ..finish_step("e", 1, StepStatus::Failed)
    };
    let answer = s.try_finish_step(with(run_error(&text(64 * KIB + 1)))).await;
    names(answer, "error.message", Some(64 * KIB + 1), 64 * KIB);
    let long = Error { stack_trace: text(256 * KIB + 1), ..run_error("x") };
    names(s.try_finish_step(with(long)).await, "error.stack_trace", Some(256 * KIB + 1), 256 * KIB);
    let large = Error { details: meta(json!({ "text": text(256 * KIB) })), ..run_error("x") };
    names(s.try_finish_step(with(large)).await, "error.details", None, 256 * KIB);
    let longest = Error {
        stack_trace: text(256 * KIB),
        details: meta(json!({ "text": text(256 * KIB - 100) })),
        ..run_error(&text(64 * KIB))
    };
    let step = s.finish_step(with(longest.clone())).await;
    assert_eq!(step.error, Some(longest));
}

pub async fn input_and_output_have_at_most_6_mib(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let limit = 6 * KIB * KIB;
    let large = || Some(value(json!(text(limit))));
    let request = StartStepRequest { input: large(), ..start("e", 1) };
    names(s.try_start_step(request).await, "input", None, limit);
    s.start("e", 1).await;
    let request = UpdateStepRequest { output: large(), ..update_step("e", 1) };
    names(s.try_update_step(request).await, "output", None, limit);
    let request =
        FinishStepRequest { output: large(), ..finish_step("e", 1, StepStatus::Completed) };
    names(s.try_finish_step(request).await, "output", None, limit);
    let request = FinishStepRequest {
        input: large(),
        step_name: Some("work".into()),
        ..finish_step("e", 2, StepStatus::Completed)
    };
    names(s.try_finish_step(request).await, "input", None, limit);
}

pub async fn merged_output_stays_within_its_bound(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    s.start("e", 1).await;
    let half = |key: &str| UpdateStepRequest {
        output: Some(value(json!({ key: text(4 * KIB * KIB) }))),
        ..update_step("e", 1)
    };
    s.update_step(half("a")).await;
    let fields = bad_fields(s.try_update_step(half("b")).await);
    assert_eq!(fields[0].0, "output", "the merged output would be 8 MiB");
    let stored = plain_field(&s.step("e", 1).await.output);
    assert_eq!(stored.as_object().map(|fields| fields.len()), Some(1));
}

pub async fn depends_on_has_at_most_10_000_ids(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let ids = |count: i32| (0..count).collect::<Vec<_>>();
    let request = StartStepRequest { depends_on: ids(10_000), ..start("e", 20_000) };
    assert_eq!(s.start_step(request).await.depends_on.len(), 10_000);
    let request = StartStepRequest { depends_on: ids(10_001), ..start("e", 20_001) };
    names(s.try_start_step(request).await, "depends_on", Some(10_001), 10_000);
    let request = FinishStepRequest {
        depends_on: ids(10_001),
        step_name: Some("work".into()),
        ..finish_step("e", 20_001, StepStatus::Completed)
    };
    names(s.try_finish_step(request).await, "depends_on", Some(10_001), 10_000);
    let step = PlannedStep {
        step_id: Some(20_001),
        step_name: "work".into(),
        depends_on: ids(10_001),
        ..Default::default()
    };
    let request =
        PlanStepsRequest { execution_id: "e".into(), steps: vec![step], ..Default::default() };
    names(s.try_plan_steps(request).await, "steps[0].depends_on", Some(10_001), 10_000);
}

pub async fn a_filter_list_has_at_most_50_values(b: Backend) {
    let s = b.serve().await;
    let none = ExecutionFilter::default;
    let words = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>();
    let numbers = |count: i32| (0..count).collect::<Vec<_>>();
    let filters = [
        ("filter.app_ids", ExecutionFilter { app_ids: numbers(51), ..none() }),
        ("filter.app_names", ExecutionFilter { app_names: words(51), ..none() }),
        ("filter.sub_app_ids", ExecutionFilter { sub_app_ids: numbers(51), ..none() }),
        ("filter.user_ids", ExecutionFilter { user_ids: words(51), ..none() }),
        ("filter.statuses", ExecutionFilter { statuses: vec![1; 51], ..none() }),
    ];
    for (field, filter) in filters {
        let list = ListExecutionsRequest { filter: Some(filter.clone()), ..Default::default() };
        names(s.try_list_executions(list).await, field, Some(51), 50);
        let watch = WatchExecutionsRequest { filter: Some(filter), ..Default::default() };
        let answer = match s.try_watch_all(watch).await {
            Ok(watch) => Err::<(), _>(watch.broken().await),
            Err(status) => Err(status),
        };
        names(answer, field, Some(51), 50);
    }
    let widest = ExecutionFilter {
        app_ids: numbers(50),
        app_names: words(50),
        sub_app_ids: numbers(50),
        user_ids: words(50),
        statuses: vec![1; 50],
        ..none()
    };
    let list = ListExecutionsRequest { filter: Some(widest), ..Default::default() };
    assert_eq!(s.list_executions(list).await.executions, []);
}

pub async fn an_execution_has_a_bounded_number_of_steps(b: Backend) {
    let s = b.serve_with(|config| config.limits.steps_per_execution = 10).await;
    s.create("e").await;
    for step_id in 0..10 {
        s.start("e", step_id).await;
    }
    let too_many = async |answer: Answer<()>| {
        let status = answer.expect_err("the eleventh step");
        let details = check_refusal(&status, Code::InvalidArgument, "TOO_MANY_STEPS");
        let shown = format!("{} {:?}", status.message(), details.bad_request());
        assert!(shown.contains("10") && shown.contains("11"), "{shown}");
    };
    too_many(s.try_start_step(start("e", 10)).await.map(drop)).await;
    too_many(s.try_start_step(StartStepRequest { step_id: None, ..start("e", 0) }).await.map(drop))
        .await;
    let whole = FinishStepRequest {
        step_name: Some("work".into()),
        ..finish_step("e", 5000, StepStatus::Completed)
    };
    too_many(s.try_finish_step(whole).await.map(drop)).await;
    s.start("e", 9).await;
    s.end("e", 9, StepStatus::Completed).await;
    s.create("gaps").await;
    for step_id in [7, 50_000, 2_000_000_000] {
        s.start("gaps", step_id).await;
    }
    let list = ListStepsRequest { execution_id: "e".into(), ..Default::default() };
    assert_eq!(s.list_steps(list).await.steps.len(), 10);
}

pub async fn an_incoming_message_has_at_most_16_mib(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    // Two fields that would each be refused as well: the message is refused before it is read.
    let request =
        StartStepRequest { input: Some(value(json!(text(17 * KIB * KIB)))), ..start("e", 1) };
    let status = s.try_start_step(request).await.expect_err("17 MiB");
    let details = check_refusal(&status, Code::InvalidArgument, "INVALID_ARGUMENT");
    let shown = format!("{} {:?}", status.message(), details.bad_request());
    assert!(shown.contains(&(16 * KIB * KIB).to_string()), "{shown}");
    assert_eq!(s.try_step("e", 1).await.expect_err("refused").code(), Code::NotFound);
}

pub async fn every_bad_field_is_named_at_once_before_any_look_up(b: Backend) {
    let s = b.serve().await;
    let request = StartStepRequest {
        execution_id: "nobody".into(),
        step_id: Some(-1),
        step_key: Some(text(300)),
        step_name: String::new(),
        step_version: Some(text(300)),
        input: Some(value(nested(31))),
        metadata: meta(json!({ "text": text(300 * KIB) })),
        depends_on: vec![-4],
        parent_step_id: Some(-2),
        started_at: Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }),
        attempt: Some(0),
        ..Default::default()
    };
    let fields = bad_fields(s.try_start_step(request).await);
    let named: Vec<_> = fields.iter().map(|(field, _)| field.as_str()).collect();
    let expected = [
        "attempt",
        "depends_on",
        "input",
        "metadata",
        "parent_step_id",
        "started_at",
        "step_id",
        "step_key",
        "step_name",
        "step_version",
    ];
    assert_eq!(named, expected);
    let request = FinishExecutionRequest {
        execution_id: "nobody".into(),
        status: 99,
        error: Some(run_error(&text(65 * KIB))),
        completed_at: Some(prost_types::Timestamp { seconds: 0, nanos: 1_000_000_000 }),
        metadata: meta(nested(31)),
    };
    let fields = bad_fields(s.try_finish_execution(request).await);
    let named: Vec<_> = fields.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(named, ["completed_at", "error.message", "metadata", "status"]);
    let request = ListExecutionsRequest {
        filter: Some(ExecutionFilter {
            user_ids: vec![text(300)],
            statuses: vec![42],
            ..Default::default()
        }),
        order: 9,
        page_size: -1,
        page_token: "forged".into(),
        include_step_counts: true,
    };
    let fields = bad_fields(s.try_list_executions(request).await);
    let named: Vec<_> = fields.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(named, ["filter.statuses", "filter.user_ids", "order", "page_size"]);
}

pub async fn a_full_queue_is_resource_exhausted(b: Backend) {
    let s = b.serve_with(|config| config.writes.queue_writes = 1).await;
    s.create("e").await;
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..400 {
        let client = (*s).clone();
        calls.spawn(async move { (n, client.try_start_step(start("e", n)).await) });
    }
    let mut stored = Vec::new();
    let mut turned_away = 0;
    for (n, answer) in calls.join_all().await {
        match answer {
            Ok(_) => stored.push(n),
            Err(status) => {
                check_refusal(&status, Code::ResourceExhausted, "QUEUE_FULL");
                turned_away += 1;
            }
        }
    }
    assert!(turned_away > 0, "400 calls at once fit into a queue of one");
    // What was turned away was not applied, and a plain retry is all it takes.
    let list = ListStepsRequest { execution_id: "e".into(), page_size: 1000, ..Default::default() };
    let listed = s.list_steps(list).await.steps;
    let mut listed: Vec<_> = listed.into_iter().filter_map(|step| step.step_id).collect();
    stored.sort();
    listed.sort();
    assert_eq!(listed, stored);
    s.start("e", 1000).await;
}

pub async fn an_unknown_call_is_unimplemented(b: Backend) {
    let s = b.serve().await;
    let mut grpc = tonic::client::Grpc::new(s.channel.clone());
    grpc.ready().await.expect("connected");
    let codec = tonic_prost::ProstCodec::<HeartbeatRequest, HeartbeatResponse>::default();
    let path = "/stepwell.v1.ExecutionService/NoSuchCall".parse().expect("a path");
    let answer = grpc.unary(Request::new(HeartbeatRequest::default()), path, codec).await;
    assert_eq!(answer.expect_err("no such call").code(), Code::Unimplemented);
}

pub async fn a_refusal_carries_its_reason_in_ingest_too(b: Backend) {
    use ingest_request::Write as W;
    use ingest_response::Result as R;
    let s = b.serve().await;
    let answers = s
        .ingest_all(vec![
            W::StartStep(start("nobody", 1)),
            W::CreateExecution(CreateExecutionRequest { app_name: text(300), ..create("e") }),
            W::CreateExecution(create("fine")),
        ])
        .await;
    let [R::Error(unknown), R::Error(invalid), R::Execution(_)] = answers.as_slice() else {
        panic!("{answers:?}");
    };
    for (answer, unary) in [
        (unknown, s.try_start_step(start("nobody", 1)).await.map(drop)),
        (
            invalid,
            s.try_create_execution(CreateExecutionRequest { app_name: text(300), ..create("e") })
                .await
                .map(drop),
        ),
    ] {
        let unary = unary.expect_err("refused");
        assert_eq!(answer.code, unary.code() as i32);
        assert_eq!(answer.message, unary.message());
        let details = unary.get_error_details_vec();
        assert_eq!(answer.details.len(), details.len());
        assert!(
            answer
                .details
                .iter()
                .all(|any| any.type_url.starts_with("type.googleapis.com/google.rpc."))
        );
    }
}
