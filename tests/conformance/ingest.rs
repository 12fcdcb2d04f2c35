//! The fast way in: writes over one stream, and whole records as they are.

use std::collections::HashMap;

use ingest_request::Write as W;
use ingest_response::Result as R;
use stepwell::proto::*;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::{RpcStatusExt as _, StatusExt as _};

use stepwell::rpc::shared_codec::SharedCodec;

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
        send.send(IngestRequest { sequence, write, mirrored: None })
            .await
            .expect("the stream is open");
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
        send.send(IngestRequest { sequence, write, mirrored: None })
            .await
            .expect("the stream is open");
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
        update_sequence: Some(12),
        omitted_fields: Vec::new(),
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
        update_sequence: Some(13),
        attempts: vec![Attempt {
            started_at: Some(time(1)),
            completed_at: None,
            error: Some(run_error("earlier")),
            duration_ms: Some(3),
        }],
        parent_step_key: Some("parent".into()),
        depends_on_keys: Vec::new(),
        omitted_fields: Vec::new(),
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
        mirrored: None,
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

/// An open stream, written to one message after the other.
struct Ingesting {
    send: tokio::sync::mpsc::Sender<IngestRequest>,
    answers: Streaming<IngestResponse>,
}

impl Ingesting {
    async fn open(client: &Client) -> Ingesting {
        let (send, requests) = tokio::sync::mpsc::channel(64);
        let answers = client.ingest().ingest(ReceiverStream::new(requests)).await;
        Ingesting { send, answers: ok(answers).into_inner() }
    }

    async fn send(&self, sequence: i64, write: W) {
        let request = IngestRequest { sequence, write: Some(write), mirrored: None };
        self.send.send(request).await.expect("the stream is open");
    }

    async fn answer(&mut self, sequence: i64) -> R {
        let answer = ok(in_time("an answer", self.answers.message()).await).expect("an answer");
        assert_eq!(answer.sequence, sequence);
        answer.result.expect("a result")
    }

    async fn ask(&mut self, sequence: i64, write: W) -> R {
        self.send(sequence, write).await;
        self.answer(sequence).await
    }

    /// That a write is not applied, because of an earlier one.
    #[track_caller]
    fn held_up(answer: &R, failed: i64) {
        let R::Error(status) = answer else { panic!("not held up: {answer:?}") };
        let info = status.get_details_error_info().expect("an ErrorInfo");
        assert_eq!(
            (status.code, info.reason.as_str()),
            (Code::Aborted as i32, "EARLIER_WRITE_FAILED")
        );
        assert_eq!(info.metadata["failed_sequence"], failed.to_string());
        assert!(status.get_details_retry_info().is_none(), "on this stream never");
    }
}

fn numbered(id: &str, number: i64) -> W {
    let metadata = meta(json!({ "number": number }));
    W::UpdateExecution(UpdateExecutionRequest { metadata, ..update(id) })
}

pub async fn nothing_follows_a_write_that_failed_for_now(b: Backend) {
    let s = b
        .serve_with(|config| {
            config.mongodb.server_selection_timeout = Some(std::time::Duration::from_secs(1));
        })
        .await;
    s.create("e").await;
    s.create("other").await;
    s.finish("other", ExecutionStatus::Completed).await;
    let mut stream = Ingesting::open(&s).await;
    assert!(matches!(stream.ask(1, numbered("e", 1)).await, R::Execution(_)));
    // Another program holds the execution, on SQLite the file, for longer than a write waits.
    let foreign = b.open_transaction("e").await;
    stream.send(2, numbered("e", 2)).await;
    stream.send(3, numbered("e", 3)).await;
    let R::Error(failed) = stream.answer(2).await else { panic!("it is applied") };
    assert!(failed.get_details_retry_info().is_some(), "it failed for now: {failed:?}");
    Ingesting::held_up(&stream.answer(3).await, 2);
    foreign.abort().await;
    // The database is there again, and yet nothing of this execution is applied on this stream.
    let delete = DeleteExecutionRequest { execution_id: "e".into(), force: true };
    for (sequence, write) in [
        (4, numbered("e", 4)),
        (5, W::StartStep(start("e", 1))),
        (6, W::Heartbeat(HeartbeatRequest { execution_id: "e".into() })),
        (7, W::DeleteExecution(delete)),
    ] {
        Ingesting::held_up(&stream.ask(sequence, write).await, 2);
    }
    let stored = s.execution("e").await;
    let number = plain_meta(&stored.metadata)["number"].clone();
    assert!(number == json!(1) || number == json!(2) || number == json!(3), "{number}");
    refused(s.try_step("e", 1).await, Code::NotFound, "STEP_NOT_FOUND");
    // Other executions, points and artifacts go on; a malformed write is refused for what it is.
    assert!(matches!(stream.ask(8, numbered("other", 8)).await, R::Execution(_)));
    let points = RecordMetricsRequest {
        execution_id: "e".into(),
        points: vec![MetricPoint {
            timestamp: Some(time(wall_clock_ms())),
            metrics: [("m".to_owned(), 1.0)].into(),
            ..Default::default()
        }],
        request_id: None,
    };
    assert!(matches!(stream.ask(9, W::RecordMetrics(points)).await, R::Metrics(_)));
    let artifact = Artifact {
        execution_id: "e".into(),
        artifact_type: "log".into(),
        artifact_name: "a".into(),
        ..Default::default()
    };
    assert!(matches!(stream.ask(10, W::PutArtifact(artifact)).await, R::Artifact(_)));
    let malformed = W::UpdateStep(UpdateStepRequest { progress: Some(7.0), ..update_step("e", 1) });
    let R::Error(status) = stream.ask(11, malformed).await else { panic!("not refused") };
    assert_eq!(status.code, Code::InvalidArgument as i32);
    // The same again over a new stream, from the one that failed.
    let mut again = Ingesting::open(&s).await;
    for number in 2..=4 {
        assert!(matches!(again.ask(number, numbered("e", number)).await, R::Execution(_)));
    }
    assert!(matches!(again.ask(5, W::StartStep(start("e", 1))).await, R::Step(_)));
    assert_eq!(plain_meta(&s.execution("e").await.metadata), json!({ "number": 4 }));
    // The old one ends as its client ends it.
    drop(stream.send);
    assert!(ok(in_time("the end", stream.answers.message()).await).is_none());
}

pub async fn a_refusal_holds_nothing_up(b: Backend) {
    let s = b.serve().await;
    let mut stream = Ingesting::open(&s).await;
    let created = s.create("e").await;
    let stale = W::UpdateExecution(UpdateExecutionRequest {
        expected_revision: Some(created.revision - 1),
        ..update("e")
    });
    for (sequence, write, code) in [
        (1, stale, Code::Aborted),
        (2, W::UpdateStep(update_step("e", 9)), Code::NotFound),
        (
            3,
            W::CreateExecution(CreateExecutionRequest { app_name: "x".into(), ..create("e") }),
            Code::AlreadyExists,
        ),
    ] {
        let R::Error(status) = stream.ask(sequence, write).await else { panic!("not refused") };
        assert_eq!(status.code, code as i32, "{status:?}");
        let number = 10 * sequence;
        assert!(matches!(stream.ask(number, numbered("e", number)).await, R::Execution(_)));
    }
}

/// A stream of messages as they are on the wire.
async fn ingest_raw(
    s: &Client,
    messages: Vec<Vec<u8>>,
) -> (Vec<IngestResponse>, Result<(), Status>) {
    let mut client = tonic::client::Grpc::new(s.channel.clone());
    client.ready().await.expect("connected");
    let codec = SharedCodec::<IngestResponse>::default();
    let messages = tokio_stream::iter(messages.into_iter().map(bytes::Bytes::from));
    let path = http::uri::PathAndQuery::from_static("/stepwell.v1.IngestService/Ingest");
    let answers = client.streaming(tonic::Request::new(messages), path, codec).await;
    let mut answers = ok(answers).into_inner();
    let mut all = Vec::new();
    loop {
        match in_time("an answer", answers.message()).await {
            Ok(Some(answer)) => all.push(answer),
            Ok(None) => return (all, Ok(())),
            Err(status) => return (all, Err(status)),
        }
    }
}

pub async fn a_message_that_cannot_be_read_is_a_refusal_while_its_sequence_can(b: Backend) {
    use prost::Message as _;

    let s = b.serve_with(|config| {
        config.limits.request_bytes = 1024 * 1024;
        config.limits.payload_bytes = 1024 * 1024;
    });
    let s = s.await;
    let message = |sequence: i64, write: W| {
        IngestRequest { sequence, write: Some(write), mirrored: None }.encode_to_vec()
    };
    let created =
        |sequence: i64| message(sequence, W::CreateExecution(create(&format!("e{sequence}"))));
    let deep = (0..60).fold(json!(1), |inner, _| json!([inner]));
    let deep = StartStepRequest { input: Some(value(deep)), ..start("e1", 1) };
    let large = value(json!("x".repeat(2 * 1024 * 1024)));
    let large = StartStepRequest { input: Some(large), ..start("e1", 2) };
    let no_utf8 = [created(4), vec![0x1a, 2, 0xff, 0xfe]].concat();
    let messages = vec![
        created(1),
        message(2, W::StartStep(deep)),
        message(-3, W::StartStep(large)),
        no_utf8,
        created(5),
    ];
    let (answers, end) = ingest_raw(&s, messages.clone()).await;
    end.expect("the stream goes on, and ends with its client");
    let mut answers: HashMap<i64, R> = answers
        .into_iter()
        .map(|answer| (answer.sequence, answer.result.expect("a result")))
        .collect();
    assert_eq!(answers.len(), 5);
    for (sequence, field, why) in [
        (2, "write", "is nested deeper than the limit of 30"),
        (-3, "message", "bytes, more than the limit of 1048576"),
        (4, "", "is not valid protobuf"),
    ] {
        let Some(R::Error(status)) = answers.remove(&sequence) else { panic!("{answers:?}") };
        assert_eq!(status.code, Code::InvalidArgument as i32);
        let violations = status.get_details_bad_request().expect("a BadRequest").field_violations;
        assert!(violations[0].field.contains(field), "{violations:?}");
        assert!(violations[0].description.contains(why), "{violations:?}");
    }
    assert!(answers.values().all(|answer| matches!(answer, R::Execution(_))), "{answers:?}");

    // What cannot be told apart ends the stream; everything before it is answered.
    let (answers, end) = ingest_raw(&s, vec![created(6), vec![0xff; 9], created(7)]).await;
    assert!(matches!(answers.as_slice(), [IngestResponse { sequence: 6, .. }]), "{answers:?}");
    let details = check_refusal(&end.expect_err("it ended"), Code::InvalidArgument, "BAD_MESSAGE");
    assert_eq!(details.error_info().expect("ErrorInfo").metadata["last_sequence"], "6");
    refused(s.try_execution("e7").await, Code::NotFound, "EXECUTION_NOT_FOUND");
    let (_, end) = ingest_raw(&s, vec![vec![0xff; 9]]).await;
    let details = end.expect_err("it ended").get_error_details();
    assert!(details.error_info().expect("ErrorInfo").metadata.is_empty(), "there was none");
}
