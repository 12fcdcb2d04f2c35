//! What is too large for clients with the usual limit of 4 MiB is left out and named.

use serde_json::json;
use stepwell::proto::*;
use tonic::Code;

use ingest_request::Write as W;
use ingest_response::Result as R;

use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::server::Server;
use crate::support::values::*;
use crate::support::{Watch, in_time};

const MIB: usize = 1024 * 1024;

/// A value of this many encoded bytes.
fn encoded(bytes: usize) -> prost_types::Value {
    use prost::Message as _;
    let overhead = value(json!(text(bytes))).encoded_len() - bytes;
    let value = value(json!(text(bytes - overhead)));
    assert_eq!(value.encoded_len(), bytes);
    value
}

fn with_input(id: &str, step_id: i32, input: prost_types::Value) -> StartStepRequest {
    StartStepRequest { input: Some(input), ..start(id, step_id) }
}

fn with_payloads(id: &str) -> WatchExecutionRequest {
    WatchExecutionRequest { include_steps: true, include_payloads: true, follow: true, ..watch(id) }
}

/// A watch of a client that has the limits of every client.
async fn usual_watch(s: &Server, request: WatchExecutionRequest) -> Watch {
    let mut client = s.executions().max_decoding_message_size(4 * MIB);
    let answer = in_time("watch", client.watch_execution(request)).await;
    Watch::one(answer.expect("the watch begins").into_inner())
}

pub async fn a_great_payload_ends_no_watch(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let mut live = usual_watch(&s, with_payloads("e")).await;
    live.snapshot().await;
    let by_filter = WatchExecutionsRequest {
        include_steps: true,
        include_payloads: true,
        snapshot: WatchSnapshot::All.into(),
        ..watch_all()
    };
    let mut client = s.executions().max_decoding_message_size(4 * MIB);
    let answer = in_time("watch", client.watch_executions(by_filter)).await;
    let mut filtered = Watch::many(answer.expect("the watch begins").into_inner());
    filtered.snapshot().await;
    // Sizes around the limit, and inputs and outputs that fit one by one and together do not.
    for (step_id, input, output, left_out) in [
        (1, 5 * MIB, 10, vec!["input"]),
        (2, 10, 5 * MIB, vec!["output"]),
        (3, 5 * MIB, 5 * MIB, vec!["input", "output"]),
        (4, MIB, MIB, vec![]),
        (5, MIB + 1, MIB, vec!["input"]),
        (6, MIB, MIB + 1, vec!["output"]),
    ] {
        s.start_step(with_input("e", step_id, encoded(input))).await;
        let end = FinishStepRequest {
            output: Some(encoded(output)),
            ..finish_step("e", step_id, StepStatus::Completed)
        };
        let answer = s.finish_step(end).await;
        assert!(answer.omitted_fields.is_empty(), "an answer has no payloads to begin with");
        for watch in [&mut live, &mut filtered] {
            let event = watch
                .until("the end of the step", |event| {
                    event.step().is_some_and(|(_, step)| step.revision == answer.revision)
                })
                .await;
            let (_, step) = event.step().expect("a step");
            let mut omitted = step.omitted_fields.clone();
            omitted.sort();
            assert_eq!(omitted, left_out, "{step_id}");
            assert_eq!(step.input.is_none(), left_out.contains(&"input"), "{step_id}");
            assert_eq!(step.output.is_none(), left_out.contains(&"output"), "{step_id}");
        }
        let whole = s.step("e", step_id).await;
        assert_eq!((whole.input, whole.output), (Some(encoded(input)), Some(encoded(output))));
        assert!(whole.omitted_fields.is_empty());
    }
    // The snapshot of a new watch, and a resume, are no different.
    let token = live.token.clone();
    let mut again = usual_watch(&s, with_payloads("e")).await;
    assert_eq!(again.snapshot().await.len(), 7);
    s.start_step(with_input("e", 7, encoded(4 * MIB))).await;
    let resume = WatchExecutionRequest { resume_token: Some(token), ..with_payloads("e") };
    let next = again.next_change().await;
    // After a resume a change may come once more.
    let mut resumed = usual_watch(&s, resume).await;
    let resumed = resumed
        .until("the new step", |event| {
            event.step().is_some_and(|(_, step)| step.step_id == Some(7))
        })
        .await;
    for event in [next, resumed] {
        let (_, step) = event.step().expect("a step");
        assert_eq!((step.step_id, &step.omitted_fields[..]), (Some(7), &["input".to_owned()][..]));
    }
}

pub async fn a_run_is_read_back_with_its_payloads_in_pages(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let sizes = [100, MIB, MIB - 1, 5 * MIB, 3, MIB, MIB, MIB, MIB / 2, 2 * MIB + 100, 7];
    for (step_id, bytes) in (1..).zip(sizes) {
        s.start_step(with_input("e", step_id, encoded(bytes))).await;
    }
    let list = ListStepsRequest {
        execution_id: "e".into(),
        include_payloads: true,
        page_size: 100,
        ..Default::default()
    };
    let mut client = s.steps().max_decoding_message_size(4 * MIB);
    let (mut steps, mut token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = ListStepsRequest { page_token: token, ..list.clone() };
        let page = in_time("a page", client.list_steps(page)).await.expect("fits").into_inner();
        steps.extend(page.steps);
        pages += 1;
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert!(pages > 1 && pages <= sizes.len(), "{pages} pages");
    assert_eq!(steps.len(), sizes.len());
    for (step, bytes) in steps.iter().zip(sizes) {
        match bytes > MIB {
            true => assert_eq!(
                (&step.input, &step.omitted_fields[..]),
                (&None, &["input".to_owned()][..])
            ),
            false => {
                assert_eq!((&step.input, step.omitted_fields.len()), (&Some(encoded(bytes)), 0))
            }
        }
        assert!(step.output.is_some(), "null is a value");
    }
    // Without asking there are none, and the pages of one are not those of the other.
    let plain = ListStepsRequest { include_payloads: false, page_size: 2, ..list.clone() };
    let page = s.list_steps(plain).await;
    assert!(page.steps.iter().all(|step| step.input.is_none() && step.omitted_fields.is_empty()));
    let mixed = ListStepsRequest { page_token: page.next_page_token, page_size: 2, ..list.clone() };
    refused(s.try_list_steps(mixed).await, Code::InvalidArgument, "INVALID_TOKEN");
    // Only some statuses.
    s.end("e", 3, StepStatus::Completed).await;
    let ended = ListStepsRequest { statuses: vec![StepStatus::Completed.into()], ..list };
    let ended = s.list_steps(ended).await.steps;
    assert_eq!((ended.len(), &ended[0].input), (1, &Some(encoded(MIB - 1))));
}

pub async fn one_step_is_sent_whole_or_up_to_a_size(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    s.start_step(with_input("e", 1, encoded(5 * MIB))).await;
    let end = FinishStepRequest {
        output: Some(encoded(1000)),
        ..finish_step("e", 1, StepStatus::Completed)
    };
    s.finish_step(end).await;
    let get = |max_payload_bytes: Option<i64>| GetStepRequest {
        execution_id: "e".into(),
        step_id: Some(1),
        max_payload_bytes,
        ..Default::default()
    };
    for (most, left_out) in [
        (None, vec![]),
        (Some(i64::MAX), vec!["input"]),
        (Some(MIB as i64), vec!["input"]),
        (Some(1000), vec!["input"]),
        (Some(999), vec!["input", "output"]),
        (Some(0), vec!["input", "output"]),
    ] {
        let step = s.get_step(get(most)).await;
        assert_eq!(step.omitted_fields, left_out, "{most:?}");
        assert_eq!(step.input.is_none(), left_out.contains(&"input"), "{most:?}");
        assert_eq!(step.output.is_none(), left_out.contains(&"output"), "{most:?}");
    }
    let fields = bad_fields(s.try_get_step(get(Some(-1))).await);
    assert_eq!(fields[0].0, "max_payload_bytes");
}

pub async fn a_great_record_loses_its_largest_fields_and_stays_listed(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let error = |bytes: usize| Error {
        message: text(60 * 1024),
        stack_trace: text(bytes),
        details: meta(json!({ "x": text(bytes) })),
        ..Default::default()
    };
    // Twenty tries of more than 160 KiB each are more than 3 MiB, beside an error and metadata.
    let attempt = Attempt { error: Some(error(60 * 1024)), ..Default::default() };
    let great = Step {
        execution_id: "e".into(),
        step_id: Some(1),
        step_name: "work".into(),
        status: StepStatus::Failed.into(),
        attempts: vec![attempt; 20],
        error: Some(error(100 * 1024)),
        metadata: meta(json!({ "m": text(200 * 1024) })),
        ..Default::default()
    };
    let keys: Vec<String> = (0..10_000).map(|n| format!("{n:0>250}")).collect();
    let mut many = great.clone();
    many.step_id = Some(2);
    many.attempts.truncate(10);
    many.depends_on_keys = keys.clone();
    let answers = s.ingest_all(vec![W::PutStep(great.clone()), W::PutStep(many.clone())]).await;
    assert!(answers.iter().all(|answer| matches!(answer, R::Step(_))), "{answers:?}");
    let mut client = s.steps().max_decoding_message_size(4 * MIB);
    let list = ListStepsRequest { execution_id: "e".into(), ..Default::default() };
    let mut steps = Vec::new();
    let mut token = String::new();
    loop {
        let page = ListStepsRequest { page_token: token, ..list.clone() };
        let page = in_time("a page", client.list_steps(page)).await.expect("fits").into_inner();
        steps.extend(page.steps);
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(steps.len(), 2);
    assert_eq!(steps[0].omitted_fields, ["attempts"]);
    assert_eq!(steps[0].error, great.error, "the rest stays");
    assert_eq!(steps[1].omitted_fields, ["depends_on_keys"]);
    assert_eq!(steps[1].attempts.len(), 10);
    // So in a watch, in the answer to a write, and in the whole execution.
    let mut watch = usual_watch(&s, with_payloads("e")).await;
    let snapshot = watch.snapshot().await;
    let seen: Vec<_> = snapshot.iter().filter_map(|event| event.step()).collect();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|(_, step)| step.omitted_fields.len() == 1));
    let update = UpdateStepRequest { progress: Some(0.5), ..update_step("e", 1) };
    let answer = in_time("update", client.update_step(update)).await.expect("fits").into_inner();
    assert_eq!(answer.step.expect("a step").omitted_fields, ["attempts"]);
    let full = GetExecutionRequest { execution_id: "e".into(), view: ExecutionView::Full.into() };
    let mut executions = s.executions().max_decoding_message_size(4 * MIB);
    let full = in_time("full", executions.get_execution(full)).await.expect("fits").into_inner();
    assert!(!full.steps.is_empty() && full.steps[0].omitted_fields == ["attempts"]);
    let whole = s.step("e", 2).await;
    assert_eq!((whole.attempts.len(), whole.depends_on_keys), (10, keys));
}

pub async fn a_record_with_omitted_fields_is_put_nowhere(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    s.start_step(with_input("e", 1, encoded(2 * MIB + 100))).await;
    let list =
        ListStepsRequest { execution_id: "e".into(), include_payloads: true, ..Default::default() };
    let read = s.list_steps(list).await.steps.remove(0);
    assert_eq!(read.omitted_fields, ["input"]);
    let omitted_fields = vec!["metadata".to_owned()];
    let writes = vec![
        W::PutStep(Step { step_id: Some(2), ..read }),
        W::PutExecution(Execution {
            execution_id: "x".into(),
            app_name: "app".into(),
            status: ExecutionStatus::Completed.into(),
            omitted_fields: omitted_fields.clone(),
            ..Default::default()
        }),
        W::PutArtifact(Artifact {
            execution_id: "e".into(),
            artifact_name: "x".into(),
            omitted_fields: omitted_fields.clone(),
            ..Default::default()
        }),
        W::PutConfiguration(Configuration {
            app_name: "app".into(),
            version: "1".into(),
            omitted_fields: omitted_fields.clone(),
            ..Default::default()
        }),
    ];
    for answer in s.ingest_all(writes).await {
        let R::Error(error) = answer else { panic!("{answer:?}") };
        assert_eq!(error.code, Code::InvalidArgument as i32);
        assert!(error.message.contains("omitted_fields"), "{error:?}");
    }
    let published = PublishConfigurationRequest {
        configuration: Some(Configuration {
            app_name: "app".into(),
            version: "1".into(),
            omitted_fields,
            ..Default::default()
        }),
        activate: false,
    };
    let fields = bad_fields(s.try_publish_configuration(published).await);
    assert_eq!(fields[0].0, "configuration.omitted_fields");
    assert_eq!(s.try_step("e", 2).await.expect_err("not put").code(), Code::NotFound);
}

pub async fn a_great_configuration_is_listed_without_it(b: Backend) {
    let s = b.serve().await;
    let publish = |version: &str, bytes: usize| PublishConfigurationRequest {
        configuration: Some(Configuration {
            app_id: Some(1),
            app_name: "app".into(),
            version: version.into(),
            configuration: meta(json!({ "text": text(bytes) })),
            ..Default::default()
        }),
        activate: false,
    };
    for (version, bytes) in [("small", 10), ("fits", 3 * MIB - 1000), ("great", 5 * MIB)] {
        s.publish_configuration(publish(version, bytes)).await;
    }
    let mut client = s.configurations().max_decoding_message_size(4 * MIB);
    let mut found = Vec::new();
    let mut token = String::new();
    loop {
        let list =
            ListConfigurationsRequest { app_id: Some(1), page_token: token, ..Default::default() };
        let page = in_time("a page", client.list_configurations(list)).await.expect("fits");
        let page = page.into_inner();
        found.extend(page.configurations);
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let omitted: Vec<_> =
        found.iter().map(|one| (one.version.as_str(), one.omitted_fields.len())).collect();
    assert_eq!(omitted, [("great", 1), ("fits", 0), ("small", 0)]);
    assert_eq!(found[0].omitted_fields, ["configuration"]);
    let get = GetConfigurationRequest {
        app_id: Some(1),
        version: Some("great".into()),
        ..Default::default()
    };
    let whole = s.get_configuration(get).await;
    assert!(whole.omitted_fields.is_empty() && whole.configuration.is_some());
}
