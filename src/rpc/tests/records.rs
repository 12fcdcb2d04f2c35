//! A record with every field of the API: what is put is shown as it was sent. A field that is new does not compile here until it has
//! a value, and fails wherever it is forgotten; so it does with what the client commands do with records.

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Struct, Timestamp, Value};

use crate::domain::limits::Limits;
use crate::domain::{ExecutionOp, StepOp};
use crate::proto;
use crate::rpc::records;
use crate::store::Op;

fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 7_000_000 })
}

fn object(name: &str) -> Option<Struct> {
    let fields = [(name.to_owned(), text(name))].into();
    Some(Struct { fields })
}

fn text(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

fn error() -> Option<proto::Error> {
    Some(proto::Error {
        message: "broke".to_owned(),
        code: "E1".to_owned(),
        stack_trace: "at x".to_owned(),
        details: object("details"),
    })
}

/// Complete.
pub fn execution() -> proto::Execution {
    proto::Execution {
        execution_id: "e".to_owned(),
        app_id: Some(1),
        app_name: "app".to_owned(),
        sub_app_id: Some(2),
        sub_app_name: Some("part".to_owned()),
        user_id: Some("user".to_owned()),
        status: proto::ExecutionStatus::Failed.into(),
        started_at: at(1),
        completed_at: at(2),
        duration_ms: Some(1000),
        error: error(),
        metadata: object("metadata"),
        created_at: at(3),
        updated_at: at(4),
        // The server counts them itself.
        revision: 0,
        heartbeat_timeout_ms: Some(5000),
        last_heartbeat_at: at(5),
        cancel_requested_at: at(6),
        cancel_reason: Some("why".to_owned()),
        parent_execution_id: Some("parent".to_owned()),
        pinned: Some(true),
        configuration_version: Some("version".to_owned()),
        update_sequence: Some(9),
        // What is not whole is not put.
        omitted_fields: Vec::new(),
    }
}

/// Complete, but that a step depends on others by their numbers or by their keys.
pub fn steps() -> [proto::Step; 2] {
    let both = proto::Step {
        execution_id: "e".to_owned(),
        step_id: Some(3),
        step_key: Some("key".to_owned()),
        step_name: "name".to_owned(),
        step_version: Some("1".to_owned()),
        status: proto::StepStatus::Failed.into(),
        started_at: at(1),
        completed_at: at(2),
        duration_ms: Some(1000),
        input: Some(text("input")),
        output: Some(text("output")),
        error: error(),
        retry_count: 1,
        metadata: object("metadata"),
        revision: 0,
        created_at: at(3),
        updated_at: at(4),
        depends_on: vec![1],
        depends_on_keys: vec!["other".to_owned()],
        parent_step_id: Some(2),
        parent_step_key: Some("parent".to_owned()),
        progress: Some(0.5),
        progress_message: Some("half".to_owned()),
        update_sequence: Some(9),
        attempts: vec![proto::Attempt {
            started_at: at(1),
            completed_at: at(2),
            error: error(),
            duration_ms: Some(1000),
        }],
        omitted_fields: Vec::new(),
    };
    let by_number = proto::Step { depends_on_keys: Vec::new(), ..both.clone() };
    [by_number, proto::Step { depends_on: Vec::new(), ..both }]
}

/// Every field of a message, from its descriptor.
pub fn fields_of(message: &str) -> BTreeSet<String> {
    let set = prost_types::FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap();
    let mut messages = set.file.iter().flat_map(|file| &file.message_type);
    let found = messages.find(|found| found.name() == message).unwrap();
    found.field.iter().map(|field| field.name().to_owned()).collect()
}

#[test]
fn what_is_put_is_shown_as_it_was_sent() {
    let limits = Limits::default();
    let (_, op) = records::put_execution(&limits, execution(), None).unwrap();
    let Op::Execution(ExecutionOp::Put(put)) = op else { panic!("not a put") };
    assert_eq!(records::execution(&put), execution());
    for step in steps() {
        let (_, op) = records::put_step(&limits, step.clone(), None).unwrap();
        let Op::Step { op, .. } = op else { panic!("not of a step") };
        let StepOp::Put(put) = *op else { panic!("not a put") };
        assert_eq!(records::step(&put, true), step);
    }
}
