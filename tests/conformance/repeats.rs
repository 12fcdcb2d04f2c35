//! Idempotence: the same request again is harmless, another one under the same id is refused.

use stepwell::proto::*;
use tonic::Code;

use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::values::*;
use crate::support::*;

pub async fn creating_again_returns_the_stored_record(b: Backend) {
    let (one, two) = b.pair().await;
    let request = CreateExecutionRequest {
        app_id: Some(1),
        user_id: Some("u".into()),
        metadata: meta(json!({ "a": { "b": 1 }, "z": [1, 2] })),
        ..create("e")
    };
    let created = one.create_execution(request.clone()).await;
    assert_eq!(one.create_execution(request.clone()).await, created);
    assert_eq!(two.create_execution(request.clone()).await, created, "also through another server");

    // Other updates come between: the repeat changes nothing and shows the record as it is.
    let update = UpdateExecutionRequest {
        metadata: meta(json!({ "a": { "b": 2 } })),
        pinned: Some(true),
        ..update("e")
    };
    let updated = two.update_execution(update).await;
    assert_eq!(one.create_execution(request.clone()).await, updated);
    one.start("e", 1).await;
    let ended = one.finish("e", ExecutionStatus::Completed).await;
    assert_eq!(two.create_execution(request).await, ended);
}

pub async fn creating_with_other_content_is_refused(b: Backend) {
    let s = b.serve().await;
    let request = CreateExecutionRequest {
        app_id: Some(1),
        sub_app_id: Some(2),
        sub_app_name: Some("sub".into()),
        user_id: Some("u".into()),
        metadata: meta(json!({ "a": 1 })),
        started_at: Some(time(1_000)),
        heartbeat_timeout: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        parent_execution_id: Some("p".into()),
        ..create("e")
    };
    let created = s.create_execution(request.clone()).await;
    let others = [
        CreateExecutionRequest { app_id: None, ..request.clone() },
        CreateExecutionRequest { app_id: Some(0), ..request.clone() },
        CreateExecutionRequest { app_name: "App".into(), ..request.clone() },
        CreateExecutionRequest { sub_app_id: Some(3), ..request.clone() },
        CreateExecutionRequest { sub_app_name: None, ..request.clone() },
        CreateExecutionRequest { user_id: Some("U".into()), ..request.clone() },
        CreateExecutionRequest { metadata: None, ..request.clone() },
        CreateExecutionRequest { metadata: meta(json!({ "a": "1" })), ..request.clone() },
        CreateExecutionRequest { metadata: meta(json!({ "a": 1, "b": null })), ..request.clone() },
        CreateExecutionRequest { started_at: Some(time(1_001)), ..request.clone() },
        CreateExecutionRequest { started_at: None, ..request.clone() },
        CreateExecutionRequest { heartbeat_timeout: None, ..request.clone() },
        CreateExecutionRequest { parent_execution_id: None, ..request.clone() },
    ];
    for other in others {
        let answer = s.try_create_execution(other).await;
        let details = refused(answer, Code::AlreadyExists, "EXECUTION_ALREADY_EXISTS");
        assert_eq!(details.resource_info().map(|r| r.resource_name.as_str()), Some("e"));
    }
    assert_eq!(s.execution("e").await, created);
}

pub async fn absent_null_and_empty_are_the_same_request(b: Backend) {
    let s = b.serve().await;
    let empties = || [None, meta(json!({}))];
    for (number, first) in empties().into_iter().enumerate() {
        let id = format!("e{number}");
        let request = CreateExecutionRequest { metadata: first, ..create(&id) };
        let created = s.create_execution(request).await;
        for again in empties() {
            let request = CreateExecutionRequest { metadata: again, ..create(&id) };
            assert_eq!(s.create_execution(request).await, created);
        }
    }
    let inputs = || {
        [
            None,
            Some(prost_types::Value { kind: None }),
            Some(value(json!(null))),
            Some(value(json!({}))),
        ]
    };
    for (step_id, first) in inputs().into_iter().enumerate() {
        let step_id = i32::try_from(step_id).expect("small");
        let started = s.start_step(StartStepRequest { input: first, ..start("e0", step_id) }).await;
        for input in inputs() {
            for metadata in empties() {
                let request =
                    StartStepRequest { input: input.clone(), metadata, ..start("e0", step_id) };
                assert_eq!(s.start_step(request).await, started);
            }
        }
        let other = StartStepRequest { input: Some(value(json!([]))), ..start("e0", step_id) };
        refused(s.try_start_step(other).await, Code::AlreadyExists, "STEP_ALREADY_EXISTS");
        assert_eq!(
            plain_field(&s.step("e0", step_id).await.input),
            json!({}),
            "stored as an empty object"
        );
    }
}

pub async fn starting_again_returns_the_stored_record(b: Backend) {
    let (one, two) = b.pair().await;
    one.create("e").await;
    let request = StartStepRequest {
        step_key: Some("k".into()),
        input: Some(value(json!({ "a": [1, 2] }))),
        metadata: meta(json!({ "m": 1 })),
        depends_on: vec![7],
        ..start("e", 1)
    };
    let started = one.start_step(request.clone()).await;
    assert_eq!(two.start_step(request.clone()).await, started);
    let update = UpdateStepRequest {
        metadata: meta(json!({ "m": 2 })),
        progress: Some(0.5),
        ..update_step("e", 1)
    };
    let updated = two.update_step(update).await;
    assert_eq!(one.start_step(request.clone()).await, updated);
    let ended = one.end("e", 1, StepStatus::Completed).await;
    assert_eq!(two.start_step(request.clone()).await, ended, "also after its end");
    let others = [
        StartStepRequest { step_name: "play".into(), ..request.clone() },
        StartStepRequest { step_version: Some("v".into()), ..request.clone() },
        StartStepRequest { input: Some(value(json!({ "a": [2, 1] }))), ..request.clone() },
        StartStepRequest { metadata: None, ..request.clone() },
        StartStepRequest { depends_on: vec![8], ..request.clone() },
        StartStepRequest { parent_step_id: Some(1), ..request.clone() },
        StartStepRequest { started_at: Some(time(5)), ..request.clone() },
    ];
    for other in others {
        refused(one.try_start_step(other).await, Code::AlreadyExists, "STEP_ALREADY_EXISTS");
    }
    assert_eq!(Step { input: None, output: None, ..two.step("e", 1).await }, ended);
}

pub async fn starting_again_by_key_returns_the_number_it_got(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let request = StartStepRequest { step_id: None, step_key: Some("k".into()), ..start("e", 0) };
    let first = s.start_step(request.clone()).await;
    s.start("e", 40).await;
    assert_eq!(s.start_step(request.clone()).await, first);
    s.end("e", 1, StepStatus::Failed).await;
    let retry = s.start_step(request).await;
    assert_eq!((retry.step_id, retry.retry_count), (Some(1), 1), "a failed step is retried");
}

pub async fn finishing_an_execution_again_returns_the_stored_record(b: Backend) {
    let (one, two) = b.pair().await;
    one.create("e").await;
    let request = FinishExecutionRequest {
        error: Some(run_error("bad")),
        metadata: meta(json!({ "result": 1 })),
        ..finish("e", ExecutionStatus::Failed)
    };
    let ended = one.finish_execution(request.clone()).await;
    assert_eq!(two.finish_execution(request.clone()).await, ended);
    let update = UpdateExecutionRequest { metadata: meta(json!({ "result": 2 })), ..update("e") };
    let updated = one.update_execution(update).await;
    assert_eq!(two.finish_execution(request.clone()).await, updated, "other updates came between");
    let others = [
        FinishExecutionRequest { error: None, ..request.clone() },
        FinishExecutionRequest { error: Some(run_error("worse")), ..request.clone() },
        FinishExecutionRequest { metadata: None, ..request.clone() },
        FinishExecutionRequest { completed_at: Some(time(9)), ..request.clone() },
    ];
    for other in others {
        let answer = one.try_finish_execution(other).await;
        refused(answer, Code::AlreadyExists, "EXECUTION_ALREADY_EXISTS");
    }
    let other_end = finish("e", ExecutionStatus::Completed);
    refused(two.try_finish_execution(other_end).await, Code::FailedPrecondition, "WRONG_STATUS");
    assert_eq!(two.execution("e").await, updated);
}

pub async fn finishing_a_step_again_returns_the_stored_record(b: Backend) {
    let (one, two) = b.pair().await;
    one.create("e").await;
    one.start("e", 1).await;
    let request = FinishStepRequest {
        output: Some(value(json!({ "answer": 42 }))),
        metadata: meta(json!({ "tokens": 12 })),
        ..finish_step("e", 1, StepStatus::Completed)
    };
    let ended = one.finish_step(request.clone()).await;
    assert_eq!(two.finish_step(request.clone()).await, ended);
    let update =
        UpdateStepRequest { output: Some(value(json!({ "more": 1 }))), ..update_step("e", 1) };
    let updated = two.update_step(update).await;
    assert_eq!(one.finish_step(request.clone()).await, updated);
    let others = [
        FinishStepRequest { output: None, ..request.clone() },
        FinishStepRequest { output: Some(value(json!({ "answer": 43 }))), ..request.clone() },
        FinishStepRequest { metadata: meta(json!({ "tokens": 13 })), ..request.clone() },
        FinishStepRequest { error: Some(run_error("x")), ..request.clone() },
        FinishStepRequest { completed_at: Some(time(9)), ..request.clone() },
    ];
    for other in others {
        refused(one.try_finish_step(other).await, Code::AlreadyExists, "STEP_ALREADY_EXISTS");
    }
    for other in [StepStatus::Failed, StepStatus::Skipped] {
        let answer = two.try_finish_step(finish_step("e", 1, other)).await;
        refused(answer, Code::FailedPrecondition, "WRONG_STATUS");
    }
    let stored = two.step("e", 1).await;
    assert_eq!(plain_field(&stored.output), json!({ "answer": 42, "more": 1 }));
}

pub async fn a_repeat_is_no_change(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    s.start("e", 1).await;
    let mut watch = s.watch(WatchExecutionRequest { follow: true, ..watch("e") }).await;
    watch.snapshot().await;
    let merge = UpdateExecutionRequest { metadata: meta(json!({ "a": 1 })), ..update("e") };
    let merged = s.update_execution(merge.clone()).await;
    watch.until_revision(("e", None), merged.revision).await;
    assert_eq!(s.update_execution(merge).await, merged, "a merge that changes nothing");
    let cancel = RequestCancelRequest { execution_id: "e".into(), reason: "r".into() };
    let asked = s.request_cancel(cancel.clone()).await;
    watch.until_revision(("e", None), asked.revision).await;
    assert_eq!(s.request_cancel(cancel).await, asked);
    s.create("e").await;
    s.start("e", 1).await;
    let progress = UpdateStepRequest { progress: Some(0.5), ..update_step("e", 1) };
    let half = s.update_step(progress.clone()).await;
    assert_eq!(s.update_step(progress).await, half);
    s.heartbeat(HeartbeatRequest { execution_id: "e".into() }).await;
    let ended = s.end("e", 1, StepStatus::Completed).await;
    assert_eq!(s.end("e", 1, StepStatus::Completed).await, ended);
    let last = s.finish("e", ExecutionStatus::Completed).await;
    s.finish("e", ExecutionStatus::Completed).await;
    let events = watch.until_revision(("e", None), last.revision).await;
    let seen: Vec<i64> =
        events.iter().filter_map(|e| e.record()).map(|(_, revision)| revision).collect();
    for revision in &seen {
        assert!([half.revision, ended.revision, last.revision].contains(revision), "{events:?}");
    }
    assert_eq!(s.execution("e").await, last);
}

pub async fn unary_calls_and_ingest_share_their_idempotence(b: Backend) {
    use ingest_request::Write as W;
    use ingest_response::Result as R;
    let s = b.serve().await;
    let created = s.create("e").await;
    let started = s.start("e", 1).await;
    let answers = s
        .ingest_all(vec![
            W::CreateExecution(create("e")),
            W::StartStep(start("e", 1)),
            W::FinishStep(finish_step("e", 1, StepStatus::Completed)),
            W::FinishStep(finish_step("e", 1, StepStatus::Completed)),
        ])
        .await;
    let [R::Execution(execution), R::Step(again), R::Step(ended), R::Step(ended_again)] =
        answers.as_slice()
    else {
        panic!("{answers:?}");
    };
    assert_eq!(execution.revision, created.revision);
    assert_eq!(again.revision, started.revision);
    assert_eq!(ended, ended_again);
    assert_eq!(s.end("e", 1, StepStatus::Completed).await.revision, ended.revision);
}

pub async fn a_late_repeat_of_an_update_undoes_nothing(b: Backend) {
    let (one, two) = b.pair().await;
    one.create("e").await;
    one.start("e", 1).await;
    let progress = |progress: f64, sequence: i64| UpdateStepRequest {
        progress: Some(progress),
        update_sequence: Some(sequence),
        ..update_step("e", 1)
    };
    let send = async |s: &Client, request: UpdateStepRequest| {
        let mut steps = s.steps();
        let answer = ok(in_time("update", steps.update_step(request)).await).into_inner();
        (answer.step.expect("the record"), answer.superseded)
    };
    let (_, superseded) = send(&one, progress(0.2, 10)).await;
    assert!(!superseded);
    let (newest, superseded) = send(&two, progress(0.9, 11)).await;
    assert!(!superseded);
    assert_eq!((newest.progress, newest.update_sequence), (Some(0.9), Some(11)));
    for late in [progress(0.2, 10), progress(0.9, 11), progress(0.3, 1)] {
        let (stored, superseded) = send(&one, late.clone()).await;
        assert!(superseded);
        assert_eq!(stored, newest, "nothing changes, and that is told");
        let answers = two.ingest_all(vec![ingest_request::Write::UpdateStep(late)]).await;
        let ingest_response::Result::Step(answer) = &answers[0] else { panic!("{answers:?}") };
        assert_eq!((answer.superseded, answer.revision), (true, newest.revision));
    }
    // Without a number the last to arrive wins, and the number stays.
    let plain = UpdateStepRequest { progress: Some(0.5), ..update_step("e", 1) };
    let (plain, superseded) = send(&one, plain).await;
    assert_eq!((plain.progress, plain.update_sequence, superseded), (Some(0.5), Some(11), false));
    // A retry begins anew.
    one.end("e", 1, StepStatus::Failed).await;
    let retried = one.start_step(StartStepRequest { attempt: Some(2), ..start("e", 1) }).await;
    assert_eq!(retried.update_sequence, None);
    assert!(!send(&two, progress(0.1, 3)).await.1);

    let numbered = |number: i64, sequence: i64| UpdateExecutionRequest {
        metadata: meta(json!({ "number": number })),
        update_sequence: Some(sequence),
        ..update("e")
    };
    let send = async |s: &Client, request: UpdateExecutionRequest| {
        let mut executions = s.executions();
        let answer = ok(in_time("update", executions.update_execution(request)).await).into_inner();
        (answer.execution.expect("the record"), answer.superseded)
    };
    assert!(!send(&one, numbered(1, 1)).await.1);
    let (newest, superseded) = send(&two, numbered(2, i64::MAX)).await;
    assert!(!superseded, "none is refused for being far ahead");
    // It is looked at before the revision, which is stale.
    let stale = UpdateExecutionRequest { expected_revision: Some(1), ..numbered(1, 1) };
    let (stored, superseded) = send(&one, stale).await;
    assert_eq!((stored, superseded), (newest, true));
    let zero = UpdateExecutionRequest { update_sequence: Some(0), ..update("e") };
    let fields =
        refused(one.try_update_execution(zero).await, Code::InvalidArgument, "INVALID_ARGUMENT");
    assert_eq!(fields.bad_request().expect("fields").field_violations[0].field, "update_sequence");
}
