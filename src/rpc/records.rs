//! Executions and steps as messages and back: a stored field is in both directions here.

use bson::Bson;

use super::check::Check;
use super::convert;
use super::requests::Asked;
use crate::app::Result;
use crate::domain::limits::{ATTEMPTS_KEPT, HEARTBEAT_TIMEOUT_MS, Limits};
use crate::domain::{self, Attempt, Digests, Execution, ExecutionOp, Payload, Step, StepOp};
use crate::proto;
use crate::store::Op;

pub fn execution(record: &domain::Execution) -> proto::Execution {
    proto::Execution {
        execution_id: record.execution_id.clone(),
        app_id: record.app_id,
        app_name: record.app_name.clone(),
        sub_app_id: record.sub_app_id,
        sub_app_name: record.sub_app_name.clone(),
        user_id: record.user_id.clone(),
        status: convert::execution_status(record.status).into(),
        started_at: record.started_at.and_then(convert::shown_time),
        completed_at: record.completed_at.and_then(convert::shown_time),
        duration_ms: record.duration_ms,
        error: record.error.as_ref().map(convert::error),
        metadata: Some(convert::object(&record.metadata)),
        created_at: record.created_at.and_then(convert::shown_time),
        updated_at: record.updated_at.and_then(convert::shown_time),
        revision: record.revision,
        heartbeat_timeout_ms: record.heartbeat_timeout_ms,
        last_heartbeat_at: record.last_heartbeat_at.and_then(convert::shown_time),
        cancel_requested_at: record.cancel_requested_at.and_then(convert::shown_time),
        cancel_reason: record.cancel_reason.clone(),
        parent_execution_id: record.parent_execution_id.clone(),
        pinned: record.pinned,
        configuration_version: record.configuration_version.clone(),
        update_sequence: record.update_sequence,
        omitted_fields: Vec::new(),
    }
}

/// With `payloads`, input and output as far as the record has them at hand.
pub fn step(record: &domain::Step, payloads: bool) -> proto::Step {
    let payload = |payload: &Payload| match payload {
        Payload::Value(found) if payloads => Some(convert::value(found)),
        _ => None,
    };
    proto::Step {
        execution_id: record.execution_id.clone(),
        step_id: Some(record.step_id),
        step_key: record.step_key.clone(),
        step_name: record.step_name.clone(),
        step_version: record.step_version.clone(),
        status: convert::step_status(record.status).into(),
        started_at: record.started_at.and_then(convert::shown_time),
        completed_at: record.completed_at.and_then(convert::shown_time),
        duration_ms: record.duration_ms,
        input: payload(&record.input),
        output: payload(&record.output),
        error: record.error.as_ref().map(convert::error),
        retry_count: record.retry_count,
        metadata: Some(convert::object(&record.metadata)),
        revision: record.revision,
        created_at: record.created_at.and_then(convert::shown_time),
        updated_at: record.updated_at.and_then(convert::shown_time),
        depends_on: record.depends_on.clone(),
        depends_on_keys: record.depends_on_keys.clone(),
        parent_step_id: record.parent_step_id,
        parent_step_key: record.parent_step_key.clone(),
        progress: record.progress,
        progress_message: record.progress_message.clone(),
        update_sequence: record.update_sequence,
        attempts: record.attempts.iter().map(attempt).collect(),
        omitted_fields: Vec::new(),
    }
}

fn attempt(record: &Attempt) -> proto::Attempt {
    proto::Attempt {
        started_at: record.started_at.and_then(convert::shown_time),
        completed_at: record.completed_at.and_then(convert::shown_time),
        error: record.error.as_ref().map(convert::error),
        duration_ms: record.duration_ms,
    }
}

/// `mirrored`: the place that a mirror gives it.
pub fn put_execution(
    limits: &Limits,
    record: proto::Execution,
    mirrored: Option<i64>,
) -> Result<Asked> {
    let mut check = Check::new(limits);
    check.whole("omitted_fields", &record.omitted_fields);
    check.new_execution_id(&record.execution_id);
    check.required_name("app_name", &record.app_name);
    check.optional_name("sub_app_name", record.sub_app_name.as_ref());
    check.optional_name("user_id", record.user_id.as_ref());
    if let Some(reason) = &record.cancel_reason {
        check.message("cancel_reason", reason);
    }
    if record.heartbeat_timeout_ms.is_some_and(|ms| !HEARTBEAT_TIMEOUT_MS.contains(&ms)) {
        check.bad("heartbeat_timeout_ms", "is out of range");
    }
    if let Some(parent) = &record.parent_execution_id {
        check.id_in("parent_execution_id", parent);
    }
    if let Some(version) = &record.configuration_version {
        check.required_name("configuration_version", version);
    }
    let execution = Execution {
        execution_id: record.execution_id.clone(),
        status: check.execution_status("status", record.status),
        started_at: check.time("started_at", record.started_at.as_ref()),
        completed_at: check.time("completed_at", record.completed_at.as_ref()),
        error: check.error("error", record.error.as_ref()),
        metadata: check.object("metadata", record.metadata.as_ref()),
        created_at: check.time("created_at", record.created_at.as_ref()),
        updated_at: check.time("updated_at", record.updated_at.as_ref()),
        last_heartbeat_at: check.time("last_heartbeat_at", record.last_heartbeat_at.as_ref()),
        cancel_requested_at: check.time("cancel_requested_at", record.cancel_requested_at.as_ref()),
        app_id: record.app_id,
        app_name: record.app_name,
        sub_app_id: record.sub_app_id,
        sub_app_name: record.sub_app_name,
        user_id: record.user_id,
        duration_ms: record.duration_ms,
        revision: 0,
        heartbeat_timeout_ms: record.heartbeat_timeout_ms,
        cancel_reason: record.cancel_reason,
        parent_execution_id: record.parent_execution_id,
        pinned: record.pinned,
        configuration_version: record.configuration_version,
        update_sequence: check.update_sequence(record.update_sequence),
        mirrored_position: mirrored,
        ..Execution::default()
    };
    let op = ExecutionOp::Put(Box::new(execution));
    check.done((record.execution_id, Op::Execution(op)))
}

/// `mirrored`: the place that a mirror gives it.
pub fn put_step(limits: &Limits, record: proto::Step, mirrored: Option<i64>) -> Result<Asked> {
    let mut check = Check::new(limits);
    check.whole("omitted_fields", &record.omitted_fields);
    check.execution_id(&record.execution_id);
    let named = check.existing_step(record.step_id, record.step_key.as_ref());
    check.required_name("step_name", &record.step_name);
    check.optional_name("step_version", record.step_version.as_ref());
    if record.progress.is_some_and(|progress| !(0.0..=1.0).contains(&progress)) {
        check.bad("progress", "must be between 0 and 1");
    }
    if let Some(message) = &record.progress_message {
        check.message("progress_message", message);
    }
    if record.retry_count < 0 {
        check.bad("retry_count", "must not be negative");
    }
    let attempts = match check.fits("attempts", record.attempts.len(), "attempts", ATTEMPTS_KEPT) {
        true => record.attempts.as_slice(),
        false => &[],
    };
    let payload = |sent: Option<Bson>| Payload::Value(sent.unwrap_or(Bson::Null));
    let step = Step {
        execution_id: record.execution_id.clone(),
        // Replaced by the assigned number when the record brings none.
        step_id: named.step_id.unwrap_or(0),
        step_key: named.step_key.clone(),
        status: check.step_status("status", record.status),
        started_at: check.time("started_at", record.started_at.as_ref()),
        completed_at: check.time("completed_at", record.completed_at.as_ref()),
        input: payload(check.payload("input", record.input.as_ref())),
        output: payload(check.payload("output", record.output.as_ref())),
        error: check.error("error", record.error.as_ref()),
        metadata: check.object("metadata", record.metadata.as_ref()),
        created_at: check.time("created_at", record.created_at.as_ref()),
        updated_at: check.time("updated_at", record.updated_at.as_ref()),
        depends_on: check.depends_on("depends_on", &record.depends_on),
        depends_on_keys: check.depends_on_keys(
            "depends_on_keys",
            &record.depends_on_keys,
            &record.depends_on,
        ),
        // A stored step has both where its parent was stored before it.
        parent_step_id: check.step_id("parent_step_id", record.parent_step_id),
        parent_step_key: check.step_key("parent_step_key", record.parent_step_key.as_ref()),
        attempts: attempts
            .iter()
            .map(|attempt| Attempt {
                started_at: check.time("attempts.started_at", attempt.started_at.as_ref()),
                completed_at: check.time("attempts.completed_at", attempt.completed_at.as_ref()),
                duration_ms: attempt.duration_ms,
                error: check.error("attempts.error", attempt.error.as_ref()),
            })
            .collect(),
        step_name: record.step_name,
        step_version: record.step_version,
        duration_ms: record.duration_ms,
        retry_count: record.retry_count,
        revision: 0,
        progress: record.progress,
        progress_message: record.progress_message,
        update_sequence: check.update_sequence(record.update_sequence),
        mirrored_position: mirrored,
        mirrored_revision: None,
        digests: Digests::default(),
    };
    let op = Op::Step { named, op: Box::new(StepOp::Put(Box::new(step))) };
    check.done((record.execution_id, op))
}
