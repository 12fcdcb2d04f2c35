//! What a notification says, and what it never says.

use std::collections::BTreeSet;

use bson::{DateTime, doc};
use prost::Message as _;

use super::*;
use crate::domain::notification::{Identity, Status};
use crate::domain::{Digests, Payload};
use crate::proto;

fn record() -> Execution {
    let whose = Identity {
        app_id: Some(7),
        app_name: "shop".to_owned(),
        sub_app_id: Some(1),
        sub_app_name: Some("cart".to_owned()),
        user_id: Some("u".to_owned()),
        started_at: Some(0),
    };
    Execution {
        completed_at: Some(1_500),
        duration_ms: Some(1_500),
        error: Some(RunError {
            message: "broke".to_owned(),
            code: "X".to_owned(),
            stack_trace: "secret stack".to_owned(),
            details: doc! { "secret": "detail" },
        }),
        metadata: doc! { "model": "m", "at": DateTime::from_millis(0), "n": 1_i64 << 60 },
        created_at: Some(0),
        updated_at: Some(2),
        revision: 3,
        heartbeat_timeout_ms: Some(4),
        last_heartbeat_at: Some(5),
        cancel_requested_at: Some(6),
        cancel_reason: Some("why".to_owned()),
        parent_execution_id: Some("p".to_owned()),
        pinned: Some(false),
        configuration_version: Some("v".to_owned()),
        update_sequence: Some(8),
        mirrored_position: None,
        mirrored_revision: None,
        ..whose.execution("e/1 ü", Some(Status::Failed))
    }
}

fn failed_step() -> Step {
    Step {
        execution_id: "e/1 ü".to_owned(),
        step_id: 3,
        step_key: Some("k".to_owned()),
        step_name: "call".to_owned(),
        step_version: Some("2".to_owned()),
        status: Some(StepStatus::Failed),
        started_at: Some(0),
        completed_at: Some(1),
        duration_ms: Some(1),
        input: Payload::Value(Bson::from("secret input")),
        output: Payload::Value(Bson::from("secret output")),
        error: record().error,
        retry_count: 1,
        metadata: doc! { "a": [1, { "b": null }] },
        revision: 1,
        created_at: Some(0),
        updated_at: Some(0),
        depends_on: vec![1],
        depends_on_keys: vec!["x".to_owned()],
        parent_step_id: Some(1),
        parent_step_key: Some("y".to_owned()),
        progress: Some(0.5),
        progress_message: Some("half".to_owned()),
        update_sequence: Some(1),
        mirrored_position: None,
        mirrored_revision: None,
        attempts: Vec::new(),
        digests: Digests::default(),
    }
}

fn json_of(happening: &Happening<'_>) -> Json {
    serde_json::from_str(&data(happening)).unwrap()
}

/// Every field of a message, from its descriptor.
fn fields_of(message: &str) -> BTreeSet<String> {
    let set = prost_types::FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap();
    let mut messages = set.file.iter().flat_map(|file| &file.message_type);
    let found = messages.find(|found| found.name() == message).unwrap();
    found.field.iter().map(|field| field.name().to_owned()).collect()
}

#[test]
fn records_have_the_fields_of_the_api_but_those_that_are_never_sent() {
    let (execution, step) = (record(), failed_step());
    let happening = Happening {
        execution: &execution,
        step: Some(&step),
        failed_steps: &[],
        include_metadata: true,
        public_url: Some("https://runs.example/"),
    };
    let data = json_of(&happening);
    let keys = |record: &str| -> BTreeSet<String> {
        data[record].as_object().unwrap().keys().cloned().collect()
    };
    let missing = |message: &str, record: &str| -> Vec<String> {
        assert!(keys(record).is_subset(&fields_of(message)), "{data}");
        fields_of(message).difference(&keys(record)).cloned().collect()
    };
    assert_eq!(missing("Execution", "execution"), ["omitted_fields"]);
    assert_eq!(missing("Step", "step"), ["attempts", "input", "omitted_fields", "output"]);
    assert!(!data.to_string().contains("secret"), "{data}");
    assert_eq!(data["execution"]["status"], "EXECUTION_STATUS_FAILED");
    assert_eq!(data["execution"]["started_at"], "1970-01-01T00:00:00Z");
    assert_eq!(data["execution"]["error"], json!({ "message": "broke", "code": "X" }));
    assert_eq!(data["execution"]["metadata"]["n"], "1152921504606846976");
    assert_eq!(data["step"]["metadata"], json!({ "a": [1, { "b": null }] }));
    assert_eq!(data["url"], "https://runs.example/executions/e%2F1%20%C3%BC");
    let bare =
        json_of(&Happening { include_metadata: false, step: None, public_url: None, ..happening });
    assert!(bare["execution"].get("metadata").is_none());
    assert!(bare.get("step").is_none() && bare.get("url").is_none());
}

#[test]
fn a_body_never_has_more_than_it_may() {
    let mut execution = record();
    execution.error = Some(RunError { message: "ü".repeat(30_000), ..RunError::default() });
    let failed = FailedStep { step_id: 1, step_name: "s".repeat(256), message: "m".repeat(60_000) };
    let failed = vec![failed; 9];
    let happening = Happening {
        execution: &execution,
        step: None,
        failed_steps: &failed,
        include_metadata: true,
        public_url: None,
    };
    let cut = json_of(&happening);
    assert_eq!(cut["execution"]["error"]["message"].as_str().unwrap().len(), 4096);
    assert_eq!(cut["failed_steps"].as_array().unwrap().len(), 5);
    let mut great = execution.clone();
    great.metadata.insert("text", "x".repeat(60_000));
    let mut step = failed_step();
    step.depends_on = (0..10_000).collect();
    let without = json_of(&Happening { execution: &great, step: Some(&step), ..happening });
    assert_eq!(
        without["omitted_fields"],
        json!(["step.depends_on", "step.depends_on_keys", "step.metadata", "execution.metadata"])
    );
    // Another program may store anything.
    great.app_name = "\"".repeat(1_000_000);
    great.execution_id = "\u{1}".repeat(1_000_000);
    great.cancel_reason = Some("\u{1}".repeat(100_000));
    let data = data(&Happening { execution: &great, ..happening });
    let envelope = Envelope {
        id: "msg_1",
        kind: "stepwell.execution.failed",
        database_id: "d",
        subject: Some(&great.execution_id),
        at: 0,
    };
    for format in Format::ALL {
        let body = body(format, &envelope, &data);
        assert!(body.len() <= BODY_BYTES, "{}", body.len());
        assert!(serde_json::from_str::<Json>(&body).is_ok());
    }
}

#[test]
fn a_cloud_event_has_what_the_standard_asks_for() {
    let envelope = Envelope {
        id: "msg_1",
        kind: "stepwell.execution.failed",
        database_id: "abc",
        subject: Some("e"),
        at: 1_001,
    };
    let event: Json =
        serde_json::from_str(&body(Format::CloudEvents, &envelope, "{\"a\":1}")).unwrap();
    assert_eq!(
        event,
        json!({
            "specversion": "1.0",
            "id": "msg_1",
            "source": "/stepwell/abc",
            "type": "stepwell.execution.failed",
            "subject": "e",
            "time": "1970-01-01T00:00:01.001Z",
            "datacontenttype": "application/json",
            "data": { "a": 1 },
        })
    );
}

#[test]
fn a_message_for_slack_is_text_and_blocks_without_markup_of_others() {
    let mut execution = record();
    execution.app_name = "<!channel> & co".to_owned();
    let failed =
        [FailedStep { step_id: 2, step_name: "call".to_owned(), message: "a > b".to_owned() }];
    let happening = Happening {
        execution: &execution,
        step: None,
        failed_steps: &failed,
        include_metadata: false,
        public_url: Some("https://runs.example"),
    };
    let envelope = Envelope {
        id: "i",
        kind: "stepwell.execution.failed",
        database_id: "d",
        subject: None,
        at: 0,
    };
    let message: Json =
        serde_json::from_str(&body(Format::Slack, &envelope, &data(&happening))).unwrap();
    assert_eq!(message["text"], "*&lt;!channel&gt; &amp; co* failed");
    let section = message["blocks"][0]["text"]["text"].as_str().unwrap();
    assert!(
        section.contains("```broke```") && section.contains("• call (2): a &gt; b"),
        "{section}"
    );
    let link = message["blocks"][1]["elements"][0]["text"].as_str().unwrap();
    assert_eq!(link, "<https://runs.example/executions/e%2F1%20%C3%BC|e/1 ü>");
    let step = failed_step();
    let of_step = data(&Happening { step: Some(&step), ..happening });
    let of_step =
        body(Format::Slack, &Envelope { kind: "stepwell.step.failed", ..envelope }, &of_step);
    let of_step: Json = serde_json::from_str(&of_step).unwrap();
    assert_eq!(of_step["text"], "Step *call* (3) of *&lt;!channel&gt; &amp; co* failed");
    let test =
        body(Format::Slack, &Envelope { kind: "stepwell.subscription.test", ..envelope }, "{}");
    let test: Json = serde_json::from_str(&test).unwrap();
    assert_eq!(test["text"], "Stepwell sends a test notification");
}
