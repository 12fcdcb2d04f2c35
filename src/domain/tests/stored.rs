//! Tables of stored fields: what walks them makes what was made field by field before there were any.

use bson::{Bson, doc};

use crate::domain::digest::Digest;
use crate::domain::{
    Attempt, Digests, Execution, ExecutionStatus, Payload, RunError, Step, StepStatus, execution,
    step, stored,
};

fn error() -> RunError {
    RunError { message: "m".to_owned(), details: doc! { "a": 1 }, ..RunError::default() }
}

fn full_step() -> Step {
    Step {
        execution_id: "e".to_owned(),
        step_id: 7,
        step_key: Some("k".to_owned()),
        step_name: "n".to_owned(),
        step_version: Some("v".to_owned()),
        status: Some(StepStatus::Failed),
        started_at: Some(1),
        completed_at: Some(2),
        duration_ms: Some(3),
        input: Payload::Value(Bson::Int32(4)),
        output: Payload::Value(doc! { "o": [1.5] }.into()),
        error: Some(error()),
        retry_count: 5,
        metadata: doc! { "m": 1 },
        revision: 6,
        created_at: Some(8),
        updated_at: Some(9),
        depends_on: vec![1, 2],
        depends_on_keys: vec!["x".to_owned()],
        parent_step_id: Some(10),
        parent_step_key: Some("p".to_owned()),
        progress: Some(0.5),
        progress_message: Some("half".to_owned()),
        update_sequence: Some(11),
        mirrored_position: None,
        mirrored_revision: None,
        attempts: vec![Attempt {
            started_at: Some(12),
            error: Some(error()),
            ..Attempt::default()
        }],
        digests: Digests { create: Some("c".to_owned()), ..Digests::default() },
    }
}

/// As it was before there was a table; records that were put then are still known by it.
fn step_digest(record: &Step) -> String {
    let mut digest = Digest::new("put_step")
        .text("step_key", record.step_key.as_deref())
        .text("step_name", Some(&record.step_name))
        .text("step_version", record.step_version.as_deref())
        .text("status", record.status.map(StepStatus::as_str))
        .integer("started_at", record.started_at)
        .integer("completed_at", record.completed_at)
        .integer("duration_ms", record.duration_ms)
        .value("input", record.input.value())
        .value("output", record.output.value())
        .error(record.error.as_ref())
        .integer("retry_count", Some(i64::from(record.retry_count)))
        .object("metadata", &record.metadata)
        .integer("created_at", record.created_at)
        .integer("updated_at", record.updated_at)
        .integers("depends_on", &record.depends_on)
        .texts("depends_on_keys", &record.depends_on_keys)
        .integer("parent_step_id", record.parent_step_id.map(i64::from))
        .text("parent_step_key", record.parent_step_key.as_deref())
        .value("progress", record.progress.map(Bson::Double).as_ref())
        .text("progress_message", record.progress_message.as_deref())
        .integer("update_sequence", record.update_sequence);
    for attempt in &record.attempts {
        digest = digest
            .integer("attempt.started_at", attempt.started_at)
            .integer("attempt.completed_at", attempt.completed_at)
            .integer("attempt.duration_ms", attempt.duration_ms)
            .error(attempt.error.as_ref());
    }
    digest.finish()
}

#[test]
fn the_digest_of_a_put_is_what_it_was() {
    let bare = Step { input: Payload::Value(Bson::Null), ..Step::default() };
    for record in [full_step(), bare, Step { error: None, ..full_step() }] {
        assert_eq!(stored::digest("put_step", step::FIELDS, &record), step_digest(&record));
    }
    let record = Execution {
        app_id: Some(1),
        app_name: "a".to_owned(),
        status: Some(ExecutionStatus::Failed),
        started_at: Some(2),
        error: Some(error()),
        metadata: doc! { "m": 1 },
        heartbeat_timeout_ms: Some(3),
        cancel_reason: Some("r".to_owned()),
        pinned: Some(true),
        update_sequence: Some(4),
        mirrored_position: None,
        mirrored_revision: None,
        ..Execution::default()
    };
    let by_hand = Digest::new("put_execution")
        .integer("app_id", Some(1))
        .text("app_name", Some("a"))
        .text("status", Some("failed"))
        .integer("started_at", Some(2))
        .error(record.error.as_ref())
        .object("metadata", &record.metadata)
        .integer("heartbeat_timeout_ms", Some(3))
        .text("cancel_reason", Some("r"))
        .integer("pinned", Some(1))
        .integer("update_sequence", Some(4))
        .finish();
    assert_eq!(stored::digest("put_execution", execution::FIELDS, &record), by_hand);
}

#[test]
fn a_copy_without_payloads_lacks_nothing_else() {
    let full = full_step();
    let bare = full.without_payloads();
    assert_eq!((&bare.input, &bare.output), (&Payload::Stored, &Payload::Stored));
    assert_eq!(Step { input: full.input.clone(), output: full.output.clone(), ..bare }, full);
    assert_eq!(Step::default().without_payloads(), Step::default());
}

#[test]
fn the_words_of_a_status_are_in_the_order_of_its_values() {
    for status in StepStatus::ALL {
        assert_eq!(StepStatus::parse(status.as_str()), Some(status));
    }
    for status in ExecutionStatus::ALL {
        assert_eq!(ExecutionStatus::parse(status.as_str()), Some(status));
    }
    assert_eq!(StepStatus::Skipped.as_str(), "skipped");
    assert_eq!(ExecutionStatus::Cancelled.as_str(), "cancelled");
}
