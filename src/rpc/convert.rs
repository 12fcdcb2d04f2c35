//! Between records and messages. Field by field, without rules; what a request may hold is checked in
//! `requests`.

use std::collections::BTreeMap;

use base64::Engine as _;
use bson::{Bson, Document};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Timestamp, Value};

use crate::domain::limits::NESTING_DEPTH;
use crate::domain::query::StepCounts;
use crate::domain::{self, Attempt, ExecutionStatus, Millis, Payload, RunError, StepStatus};
use crate::proto;

/// Greatest integer that a double, and so a `google.protobuf.Value`, holds exactly: 2^53.
pub const EXACT_INTEGER: i64 = 1 << 53;

/// What a Timestamp may hold: the years 1 to 9999.
const TIMESTAMP_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

pub fn timestamp(at: Millis) -> Timestamp {
    Timestamp {
        seconds: at.div_euclid(1000),
        nanos: i32::try_from(at.rem_euclid(1000) * 1_000_000).unwrap_or(0),
    }
}

/// The same for a time that another program may have stored: `None` where no valid Timestamp can say it, since
/// clients would refuse the whole message.
pub fn shown_time(at: Millis) -> Option<Timestamp> {
    TIMESTAMP_SECONDS.contains(&at.div_euclid(1000)).then(|| timestamp(at))
}

/// Milliseconds of a timestamp, cut; `None` outside of years 1 to 9999 or with impossible nanos.
pub fn millis(at: &Timestamp) -> Option<Millis> {
    let in_range = TIMESTAMP_SECONDS.contains(&at.seconds);
    if !in_range || !(0..1_000_000_000).contains(&at.nanos) {
        return None;
    }
    Some(at.seconds * 1000 + i64::from(at.nanos) / 1_000_000)
}

pub fn execution_status(status: Option<ExecutionStatus>) -> proto::ExecutionStatus {
    match status {
        None => proto::ExecutionStatus::Unspecified,
        Some(ExecutionStatus::Running) => proto::ExecutionStatus::Running,
        Some(ExecutionStatus::Completed) => proto::ExecutionStatus::Completed,
        Some(ExecutionStatus::Failed) => proto::ExecutionStatus::Failed,
        Some(ExecutionStatus::Cancelled) => proto::ExecutionStatus::Cancelled,
    }
}

pub fn step_status(status: Option<StepStatus>) -> proto::StepStatus {
    match status {
        None => proto::StepStatus::Unspecified,
        Some(StepStatus::Pending) => proto::StepStatus::Pending,
        Some(StepStatus::Running) => proto::StepStatus::Running,
        Some(StepStatus::Completed) => proto::StepStatus::Completed,
        Some(StepStatus::Failed) => proto::StepStatus::Failed,
        Some(StepStatus::Skipped) => proto::StepStatus::Skipped,
    }
}

pub fn execution(record: &domain::Execution) -> proto::Execution {
    proto::Execution {
        execution_id: record.execution_id.clone(),
        app_id: record.app_id,
        app_name: record.app_name.clone(),
        sub_app_id: record.sub_app_id,
        sub_app_name: record.sub_app_name.clone(),
        user_id: record.user_id.clone(),
        status: execution_status(record.status).into(),
        started_at: record.started_at.and_then(shown_time),
        completed_at: record.completed_at.and_then(shown_time),
        duration_ms: record.duration_ms,
        error: record.error.as_ref().map(error),
        metadata: Some(object(&record.metadata)),
        created_at: record.created_at.and_then(shown_time),
        updated_at: record.updated_at.and_then(shown_time),
        revision: record.revision,
        heartbeat_timeout_ms: record.heartbeat_timeout_ms,
        last_heartbeat_at: record.last_heartbeat_at.and_then(shown_time),
        cancel_requested_at: record.cancel_requested_at.and_then(shown_time),
        cancel_reason: record.cancel_reason.clone(),
        parent_execution_id: record.parent_execution_id.clone(),
        pinned: record.pinned,
        configuration_version: record.configuration_version.clone(),
        update_sequence: record.update_sequence,
    }
}

pub fn step_counts(counts: &StepCounts) -> proto::StepCounts {
    let of = |status| i64::try_from(counts.of(status)).unwrap_or(i64::MAX);
    proto::StepCounts {
        pending: of(domain::StepStatus::Pending),
        running: of(domain::StepStatus::Running),
        completed: of(domain::StepStatus::Completed),
        failed: of(domain::StepStatus::Failed),
        skipped: of(domain::StepStatus::Skipped),
        exact: counts.exact,
    }
}

/// With `payloads`, input and output as far as the record has them at hand.
pub fn step(record: &domain::Step, payloads: bool) -> proto::Step {
    let payload = |payload: &Payload| match payload {
        Payload::Value(found) if payloads => Some(value(found)),
        _ => None,
    };
    proto::Step {
        execution_id: record.execution_id.clone(),
        step_id: Some(record.step_id),
        step_key: record.step_key.clone(),
        step_name: record.step_name.clone(),
        step_version: record.step_version.clone(),
        status: step_status(record.status).into(),
        started_at: record.started_at.and_then(shown_time),
        completed_at: record.completed_at.and_then(shown_time),
        duration_ms: record.duration_ms,
        input: payload(&record.input),
        output: payload(&record.output),
        error: record.error.as_ref().map(error),
        retry_count: record.retry_count,
        metadata: Some(object(&record.metadata)),
        revision: record.revision,
        created_at: record.created_at.and_then(shown_time),
        updated_at: record.updated_at.and_then(shown_time),
        depends_on: record.depends_on.clone(),
        parent_step_id: record.parent_step_id,
        progress: record.progress,
        progress_message: record.progress_message.clone(),
        update_sequence: record.update_sequence,
        attempts: record.attempts.iter().map(attempt).collect(),
    }
}

pub fn artifact(record: &domain::Artifact) -> proto::Artifact {
    proto::Artifact {
        artifact_id: record.artifact_id.clone(),
        execution_id: record.execution_id.clone(),
        step_id: record.step_id,
        artifact_type: record.artifact_type.clone(),
        artifact_name: record.artifact_name.clone(),
        mime_type: record.mime_type.clone(),
        size_bytes: record.size_bytes,
        storage_type: record.storage_type.clone(),
        storage_path: record.storage_path.clone(),
        metadata: Some(object(&record.metadata)),
        created_at: record.created_at.map(timestamp),
        sha256: record.sha256.clone(),
    }
}

pub fn configuration(record: &domain::Configuration) -> proto::Configuration {
    proto::Configuration {
        app_id: record.app_id,
        app_name: record.app_name.clone(),
        sub_app_id: record.sub_app_id,
        sub_app_name: record.sub_app_name.clone(),
        version: record.version.clone(),
        configuration: Some(object(&record.configuration)),
        active: record.active,
        created_at: record.created_at.map(timestamp),
        created_by: record.created_by.clone(),
    }
}

pub fn metric_point(execution_id: &str, point: &domain::MetricPoint) -> proto::MetricPoint {
    proto::MetricPoint {
        timestamp: Some(timestamp(point.at)),
        execution_id: execution_id.to_owned(),
        metrics: point.metrics.iter().map(|(name, value)| (name.clone(), *value)).collect(),
        step_id: point.step_id,
    }
}

pub fn metric_interval(interval: &domain::MetricInterval) -> proto::MetricInterval {
    proto::MetricInterval {
        name: interval.name.clone(),
        start: Some(timestamp(interval.start)),
        min: interval.min,
        max: interval.max,
        mean: interval.mean,
        last: interval.last,
        count: interval.count,
    }
}

pub fn metric_counts(counts: domain::MetricCounts) -> proto::RecordMetricsResponse {
    proto::RecordMetricsResponse {
        accepted: counts.accepted,
        too_old: counts.too_old,
        in_future: counts.in_future,
        already_there: counts.already_there,
    }
}

fn attempt(record: &Attempt) -> proto::Attempt {
    proto::Attempt {
        started_at: record.started_at.and_then(shown_time),
        completed_at: record.completed_at.and_then(shown_time),
        error: record.error.as_ref().map(error),
        duration_ms: record.duration_ms,
    }
}

pub fn error(record: &RunError) -> proto::Error {
    proto::Error {
        message: record.message.clone(),
        code: record.code.clone(),
        stack_trace: record.stack_trace.clone(),
        details: (!record.details.is_empty()).then(|| object(&record.details)),
    }
}

/// A stored object as a Struct. What JSON cannot say is shown as text.
pub fn object(document: &Document) -> Struct {
    object_at(document, 1)
}

/// A stored value as JSON. What JSON cannot say is shown as text.
pub fn value(stored: &Bson) -> Value {
    value_at(stored, 1)
}

fn object_at(document: &Document, depth: usize) -> Struct {
    let fields: BTreeMap<String, Value> =
        document.iter().map(|(key, stored)| (key.clone(), value_at(stored, depth + 1))).collect();
    Struct { fields }
}

fn value_at(stored: &Bson, depth: usize) -> Value {
    let text = |text: String| Kind::StringValue(text);
    let kind = match stored {
        Bson::Null | Bson::Undefined => Kind::NullValue(0),
        Bson::Boolean(stored) => Kind::BoolValue(*stored),
        Bson::Int32(stored) => Kind::NumberValue(f64::from(*stored)),
        Bson::Int64(stored) if (-EXACT_INTEGER..=EXACT_INTEGER).contains(stored) => {
            Kind::NumberValue(*stored as f64)
        }
        Bson::Int64(stored) => text(stored.to_string()),
        Bson::Double(stored) if stored.is_finite() => Kind::NumberValue(*stored),
        Bson::Double(stored) if stored.is_nan() => text("NaN".to_owned()),
        Bson::Double(stored) => {
            text(if *stored > 0.0 { "Infinity" } else { "-Infinity" }.to_owned())
        }
        Bson::String(stored) | Bson::Symbol(stored) => text(stored.clone()),
        // Other programs may nest deeper than decoders of other languages stand: from there on, text.
        Bson::Array(_) | Bson::Document(_) if depth > NESTING_DEPTH + 1 => {
            text(stored.clone().into_relaxed_extjson().to_string())
        }
        Bson::Array(stored) => Kind::ListValue(ListValue {
            values: stored.iter().map(|stored| value_at(stored, depth + 1)).collect(),
        }),
        Bson::Document(stored) => Kind::StructValue(object_at(stored, depth)),
        Bson::DateTime(at) => {
            let millis = at.timestamp_millis();
            // RFC 3339 has four digits for the year.
            let shown = TIMESTAMP_SECONDS
                .contains(&millis.div_euclid(1000))
                .then(|| at.try_to_rfc3339_string().ok());
            text(shown.flatten().unwrap_or_else(|| millis.to_string()))
        }
        Bson::ObjectId(id) => text(id.to_hex()),
        Bson::Binary(binary) => {
            text(base64::engine::general_purpose::STANDARD.encode(&binary.bytes))
        }
        Bson::Decimal128(number) => text(number.to_string()),
        other => text(other.clone().into_relaxed_extjson().to_string()),
    };
    Value { kind: Some(kind) }
}

/// A JSON value as it is stored: integral numbers up to 2^53 as int32 or int64. `Err`: what is wrong with it.
pub fn stored(value: &Value) -> Result<Bson, &'static str> {
    Ok(match &value.kind {
        None | Some(Kind::NullValue(_)) => Bson::Null,
        Some(Kind::BoolValue(value)) => Bson::Boolean(*value),
        Some(Kind::NumberValue(value)) => number(*value)?,
        Some(Kind::StringValue(value)) => Bson::String(value.clone()),
        Some(Kind::StructValue(value)) => Bson::Document(stored_object(value)?),
        Some(Kind::ListValue(list)) => {
            Bson::Array(list.values.iter().map(stored).collect::<Result<_, _>>()?)
        }
    })
}

pub fn stored_object(object: &Struct) -> Result<Document, &'static str> {
    let mut document = Document::new();
    for (key, value) in &object.fields {
        if key.contains('\0') {
            return Err("has a key with the character U+0000, which cannot be stored");
        }
        document.insert(key.clone(), stored(value)?);
    }
    Ok(document)
}

fn number(value: f64) -> Result<Bson, &'static str> {
    if !value.is_finite() {
        return Err("has a number that is NaN or infinite, which JSON cannot represent");
    }
    if value.fract() != 0.0 || value.abs() > EXACT_INTEGER as f64 {
        return Ok(Bson::Double(value));
    }
    let integer = value as i64;
    Ok(match i32::try_from(integer) {
        Ok(small) => Bson::Int32(small),
        Err(_) => Bson::Int64(integer),
    })
}
