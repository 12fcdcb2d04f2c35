//! The fast way in: writes over one stream, and whole records as they are.

use std::collections::HashMap;

use ingest_request::Write as W;
use ingest_response::Result as R;
use stepwell::proto::*;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::values::*;
use crate::support::*;

pub async fn every_write_is_answered_in_short(b: Backend) {
    let s = b.serve().await;
    let plan = PlanStepsRequest {
        execution_id: "e".into(),
        steps: vec![
            PlannedStep { step_id: Some(8), step_name: "b".into(), ..Default::default() },
            PlannedStep { step_id: Some(7), step_name: "a".into(), ..Default::default() },
        ],
        ..Default::default()
    };
    let answers = s
        .ingest_all(vec![
            W::CreateExecution(create("e")),
            W::StartStep(StartStepRequest {
                step_id: None,
                step_key: Some("k".into()),
                ..start("e", 0)
            }),
            W::UpdateStep(UpdateStepRequest { progress: Some(0.5), ..update_step("e", 1) }),
            W::FinishStep(finish_step("e", 1, StepStatus::Skipped)),
            W::PlanSteps(plan),
            W::UpdateExecution(UpdateExecutionRequest { pinned: Some(true), ..update("e") }),
            W::RequestCancel(RequestCancelRequest { execution_id: "e".into(), reason: "r".into() }),
            W::Heartbeat(HeartbeatRequest { execution_id: "e".into() }),
            W::FinishExecution(finish("e", ExecutionStatus::Cancelled)),
            W::CreateExecution(create("gone")),
            W::DeleteExecution(DeleteExecutionRequest { execution_id: "gone".into(), force: true }),
        ])
        .await;
    let execution = s.execution("e").await;
    assert_eq!((execution.pinned, execution.status()), (Some(true), ExecutionStatus::Cancelled));
    for (number, status) in [
        (0, ExecutionStatus::Running),
        (5, ExecutionStatus::Running),
        (6, ExecutionStatus::Running),
        (8, ExecutionStatus::Cancelled),
    ] {
        let R::Execution(answer) = &answers[number] else { panic!("{:?}", answers[number]) };
        assert_eq!((answer.execution_id.as_str(), answer.status()), ("e", status));
        assert!(answer.revision > 0 && answer.revision <= execution.revision);
    }
    for (number, status) in
        [(1, StepStatus::Running), (2, StepStatus::Running), (3, StepStatus::Skipped)]
    {
        let R::Step(answer) = &answers[number] else { panic!("{:?}", answers[number]) };
        assert_eq!((answer.execution_id.as_str(), answer.status()), ("e", status));
        assert_eq!((answer.step_id, answer.step_key.as_deref()), (Some(1), Some("k")));
    }
    let R::Steps(planned) = &answers[4] else { panic!("{:?}", answers[4]) };
    let ids: Vec<_> = planned.steps.iter().map(|step| (step.step_id, step.status())).collect();
    assert_eq!(ids, [(Some(8), StepStatus::Pending), (Some(7), StepStatus::Pending)]);
    assert!(matches!(&answers[7], R::Heartbeat(HeartbeatResponse { cancel_requested: true })));
    assert!(matches!(&answers[10], R::Deleted(gone) if gone.execution_id == "gone"));
    refused(s.try_execution("gone").await, Code::NotFound, "EXECUTION_NOT_FOUND");
}

pub async fn writes_of_one_execution_apply_in_order(b: Backend) {
    const ROUNDS: i32 = 150;
    let s = b.serve().await;
    let ids: Vec<String> = (0..8).map(|n| format!("e{n}")).collect();
    let mut writes: Vec<W> = ids.iter().map(|id| W::CreateExecution(create(id))).collect();
    for round in 0..ROUNDS {
        for id in &ids {
            writes.push(W::UpdateExecution(UpdateExecutionRequest {
                metadata: meta(json!({ "round": round })),
                ..update(id)
            }));
        }
    }
    let answers = s.ingest_all(writes).await;
    let mut last: HashMap<&str, i64> = HashMap::new();
    for answer in &answers {
        let R::Execution(answer) = answer else { panic!("{answer:?}") };
        let before = last.insert(&answer.execution_id, answer.revision);
        assert!(
            before.is_none_or(|before| before < answer.revision),
            "in the order they were sent"
        );
    }
    for id in &ids {
        let execution = s.execution(id).await;
        assert_eq!(plain_meta(&execution.metadata), json!({ "round": ROUNDS - 1 }));
        assert_eq!(execution.revision, last[id.as_str()]);
    }
}

pub async fn a_refused_write_does_not_end_the_stream(b: Backend) {
    let s = b.serve().await;
    let (send, requests) = tokio::sync::mpsc::channel(16);
    let mut ingest = s.ingest();
    let mut answers =
        ok(in_time("ingest", ingest.ingest(ReceiverStream::new(requests))).await).into_inner();
    let mut sequence = 40;
    let mut ask = async |write: Option<W>| {
        sequence += 1;
        send.send(IngestRequest { sequence, write }).await.expect("the stream is open");
        let answer = ok(in_time("an answer", answers.message()).await).expect("an answer");
        assert_eq!(answer.sequence, sequence);
        answer.result.expect("a result")
    };
    let refusals = [
        (Some(W::StartStep(start("nobody", 1))), Code::NotFound),
        (Some(W::CreateExecution(create("not an id"))), Code::InvalidArgument),
        (Some(W::CreateExecution(CreateExecutionRequest::default())), Code::InvalidArgument),
        (None, Code::InvalidArgument),
        (Some(W::UpdateStep(update_step("nobody", 1))), Code::NotFound),
    ];
    for (write, code) in refusals {
        let R::Error(status) = ask(write).await else { panic!("not refused") };
        assert_eq!(status.code, code as i32, "{status:?}");
        let fine = W::CreateExecution(create("fine"));
        assert!(matches!(ask(Some(fine)).await, R::Execution(_)), "the stream goes on");
    }
    drop(send);
    assert!(
        ok(in_time("the end", answers.message()).await).is_none(),
        "it ends when the client ends it"
    );
}

pub async fn an_answer_comes_without_the_end_of_the_stream(b: Backend) {
    // A client that waits for each answer before it sends on must not wait for ever.
    let s = b.serve().await;
    let (send, requests) = tokio::sync::mpsc::channel(1);
    let mut ingest = s.ingest();
    let mut answers =
        ok(in_time("ingest", ingest.ingest(ReceiverStream::new(requests))).await).into_inner();
    for sequence in 0..50 {
        let write = Some(W::CreateExecution(create(&format!("e{sequence}"))));
        send.send(IngestRequest { sequence, write }).await.expect("the stream is open");
        let answer = ok(in_time("an answer", answers.message()).await).expect("an answer");
        assert_eq!(answer.sequence, sequence);
        // It is durable: everybody reads it.
        s.execution(&format!("e{sequence}")).await;
    }
}

pub async fn thousands_of_writes_flow_through_one_stream(b: Backend) {
    let s = b.serve().await;
    let mut writes = Vec::new();
    for n in 0..300 {
        let id = format!("e{n}");
        writes.push(W::CreateExecution(create(&id)));
        for step_id in 0..5 {
            writes.push(W::StartStep(start(&id, step_id)));
            writes.push(W::FinishStep(finish_step(&id, step_id, StepStatus::Completed)));
        }
        writes.push(W::FinishExecution(finish(&id, ExecutionStatus::Completed)));
    }
    let answers = s.ingest_all(writes).await;
    assert_eq!(answers.len(), 300 * 12);
    for answer in answers {
        assert!(!matches!(answer, R::Error(_)), "{answer:?}");
    }
    for n in [0, 150, 299] {
        let id = format!("e{n}");
        assert_eq!(s.execution(&id).await.status(), ExecutionStatus::Completed);
        let list = ListStepsRequest { execution_id: id, ..Default::default() };
        let steps = s.list_steps(list).await.steps;
        assert_eq!(steps.len(), 5);
        assert!(steps.iter().all(|step| step.status() == StepStatus::Completed));
    }
}

pub async fn a_whole_execution_is_kept_as_it_is(b: Backend) {
    let s = b.serve().await;
    let bare = Execution {
        execution_id: "bare".into(),
        app_name: "app".into(),
        status: ExecutionStatus::Failed.into(),
        ..Default::default()
    };
    let full = Execution {
        execution_id: "full".into(),
        app_id: Some(1),
        app_name: "app".into(),
        sub_app_id: Some(2),
        sub_app_name: Some("sub".into()),
        user_id: Some("u".into()),
        status: ExecutionStatus::Completed.into(),
        started_at: Some(time(5_000)),
        completed_at: Some(time(4_000)),
        // As it was measured, however odd.
        duration_ms: Some(-1_000),
        error: Some(Error { code: "E".into(), details: meta(json!({ "a": 1 })), ..run_error("m") }),
        metadata: meta(json!({ "a": { "b": null } })),
        created_at: Some(time(6_000)),
        updated_at: Some(time(7_000)),
        revision: 3,
        heartbeat_timeout_ms: None,
        last_heartbeat_at: None,
        cancel_requested_at: Some(time(5_500)),
        cancel_reason: Some("r".into()),
        parent_execution_id: Some("p".into()),
        pinned: Some(true),
        configuration_version: Some("v7".into()),
    };
    let running = Execution {
        execution_id: "running".into(),
        status: ExecutionStatus::Running.into(),
        ..bare.clone()
    };
    for record in [&bare, &full, &running] {
        let answers = s.ingest_all(vec![W::PutExecution(record.clone())]).await;
        let R::Execution(answer) = &answers[0] else { panic!("{answers:?}") };
        let stored = s.execution(&record.execution_id).await;
        assert_eq!(answer.revision, stored.revision);
        let expected = Execution {
            revision: stored.revision,
            metadata: Some(record.metadata.clone().unwrap_or_default()),
            ..record.clone()
        };
        assert_eq!(stored, expected, "nothing is invented");
        // Again: nothing changes, whatever revision it claims.
        let again = Execution { revision: 99, ..record.clone() };
        let again = s.ingest_all(vec![W::PutExecution(again)]).await;
        assert_eq!(again, answers);
        assert_eq!(s.execution(&record.execution_id).await, stored);
        let other = Execution { duration_ms: Some(12), ..record.clone() };
        let answers = s.ingest_all(vec![W::PutExecution(other)]).await;
        let R::Error(status) = &answers[0] else { panic!("{answers:?}") };
        assert_eq!(status.code, Code::AlreadyExists as i32);
    }
    let list = s.list_executions(ListExecutionsRequest::default()).await;
    let ids: Vec<_> = list.executions.iter().map(|e| e.execution_id.as_str()).collect();
    assert_eq!(ids[0], "full", "a missing start is the oldest");
    assert_eq!(ids.len(), 3);
}

pub async fn a_whole_step_is_kept_as_it_is(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let bare = Step {
        execution_id: "e".into(),
        step_id: Some(4),
        step_name: "work".into(),
        status: StepStatus::Completed.into(),
        ..Default::default()
    };
    let full = Step {
        execution_id: "e".into(),
        step_id: Some(5),
        step_key: Some("five".into()),
        step_name: "work".into(),
        step_version: Some("v".into()),
        status: StepStatus::Failed.into(),
        started_at: None,
        completed_at: Some(time(10)),
        duration_ms: Some(-7),
        input: Some(value(json!(["in"]))),
        output: Some(value(json!("out"))),
        error: Some(run_error("m")),
        retry_count: 4,
        metadata: meta(json!({ "m": [1] })),
        revision: 1,
        created_at: Some(time(20)),
        updated_at: None,
        depends_on: vec![3, 4],
        parent_step_id: Some(1),
        progress: Some(0.75),
        progress_message: Some("p".into()),
        attempts: vec![Attempt {
            started_at: Some(time(1)),
            completed_at: None,
            error: Some(run_error("earlier")),
            duration_ms: Some(3),
        }],
    };
    for record in [&bare, &full] {
        let answers = s.ingest_all(vec![W::PutStep(record.clone())]).await;
        let R::Step(answer) = &answers[0] else { panic!("{answers:?}") };
        let stored = s.step("e", record.step_id.expect("set")).await;
        assert_eq!(answer.revision, stored.revision);
        let expected = Step {
            revision: stored.revision,
            metadata: Some(record.metadata.clone().unwrap_or_default()),
            input: Some(record.input.clone().unwrap_or_else(|| value(json!({})))),
            output: Some(record.output.clone().unwrap_or_else(|| value(json!(null)))),
            ..record.clone()
        };
        assert_eq!(stored, expected, "nothing is invented");
        assert_eq!(s.ingest_all(vec![W::PutStep(record.clone())]).await, answers);
        let other = Step { retry_count: 5, ..record.clone() };
        let answers = s.ingest_all(vec![W::PutStep(other)]).await;
        let R::Error(status) = &answers[0] else { panic!("{answers:?}") };
        assert_eq!(status.code, Code::AlreadyExists as i32);
    }
    // With a text for its id, the server assigns the number; again, it is the same one.
    let keyed = |key: &str| Step { step_id: None, step_key: Some(key.into()), ..bare.clone() };
    let writes = vec![W::PutStep(keyed("a")), W::PutStep(keyed("b")), W::PutStep(keyed("a"))];
    let answers = s.ingest_all(writes).await;
    let numbers: Vec<_> = answers
        .iter()
        .map(|answer| match answer {
            R::Step(step) => step.step_id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(numbers, [Some(6), Some(7), Some(6)]);
    let answers = s
        .ingest_all(vec![
            W::PutStep(Step { step_id: None, ..bare.clone() }),
            W::PutStep(Step { execution_id: "nobody".into(), ..bare.clone() }),
            W::PutStep(Step { status: 0, step_id: Some(50), ..bare.clone() }),
        ])
        .await;
    let codes: Vec<_> = answers
        .iter()
        .map(|answer| match answer {
            R::Error(status) => status.code,
            other => panic!("{other:?}"),
        })
        .collect();
    let expected =
        [Code::InvalidArgument, Code::NotFound, Code::InvalidArgument].map(|code| code as i32);
    assert_eq!(codes, expected);
}

pub async fn a_put_record_is_watched_and_goes_on_like_any_other(b: Backend) {
    let s = b.serve().await;
    let mut watch = s.watch_all(watch_all()).await;
    watch.snapshot().await;
    let record = Execution {
        execution_id: "e".into(),
        app_name: "app".into(),
        status: ExecutionStatus::Running.into(),
        ..Default::default()
    };
    s.ingest_all(vec![W::PutExecution(record)]).await;
    let event = watch.next_change().await;
    assert_eq!(
        event.execution().map(|(change, e)| (change, e.execution_id.as_str())),
        Some((ChangeType::Created, "e"))
    );
    let step = s.start("e", 1).await;
    watch.until_revision(("e", Some(1)), step.revision).await;
    let ended = s.finish("e", ExecutionStatus::Completed).await;
    assert_eq!((ended.started_at, ended.duration_ms), (None, None), "no start, no duration");
    watch.until_revision(("e", None), ended.revision).await;
}

pub async fn a_slow_reader_of_answers_holds_up_only_itself(b: Backend) {
    let s = b.serve().await;
    let writes = (0..20_000).map(|n| IngestRequest {
        sequence: n,
        write: Some(W::Heartbeat(HeartbeatRequest { execution_id: format!("nobody{n}") })),
    });
    let requests: Vec<_> = writes.collect();
    let stuck = Client::of(s.address());
    let mut ingest = stuck.ingest();
    let answers =
        ok(in_time("ingest", ingest.ingest(tokio_stream::iter(requests))).await).into_inner();
    // Nobody reads these answers yet; everybody else goes on.
    for n in 0..50 {
        s.create(&format!("e{n}")).await;
    }
    let counted = in_time(
        "all answers",
        answers.fold(0, |count, answer| {
            assert!(answer.is_ok());
            count + 1
        }),
    )
    .await;
    assert_eq!(counted, 20_000, "nothing was dropped");
}
