//! Between records and messages. Field by field, without rules; what a request may hold is checked in
//! `requests`.

use std::collections::BTreeMap;

use bson::{Bson, Document};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Timestamp, Value};

pub use crate::domain::plain::EXACT_INTEGER;
use crate::domain::plain::{SHOWN_SECONDS, as_text, too_deep};
use crate::domain::query::StepCounts;
use crate::domain::{self, ExecutionStatus, Millis, RunError, StepStatus};
use crate::proto;

pub fn timestamp(at: Millis) -> Timestamp {
    Timestamp {
        seconds: at.div_euclid(1000),
        nanos: i32::try_from(at.rem_euclid(1000) * 1_000_000).unwrap_or(0),
    }
}

/// The same for a time that another program may have stored: `None` where no valid Timestamp can say it, since
/// clients would refuse the whole message.
pub fn shown_time(at: Millis) -> Option<Timestamp> {
    SHOWN_SECONDS.contains(&at.div_euclid(1000)).then(|| timestamp(at))
}

/// Milliseconds of a timestamp, cut; `None` outside of years 1 to 9999 or with impossible nanos.
pub fn millis(at: &Timestamp) -> Option<Millis> {
    let in_range = SHOWN_SECONDS.contains(&at.seconds);
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
        step_key: record.step_key.clone(),
        omitted_fields: Vec::new(),
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
        omitted_fields: Vec::new(),
    }
}

pub fn metric_point(execution_id: &str, point: &domain::MetricPoint) -> proto::MetricPoint {
    proto::MetricPoint {
        timestamp: Some(timestamp(point.at)),
        execution_id: execution_id.to_owned(),
        metrics: point.metrics.iter().map(|(name, value)| (name.clone(), *value)).collect(),
        step_id: point.step_id,
        step_key: point.step_key.clone(),
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
    let kind = match as_text(stored) {
        Some(text) => Kind::StringValue(text),
        None => match stored {
            Bson::Boolean(stored) => Kind::BoolValue(*stored),
            Bson::Int32(stored) => Kind::NumberValue(f64::from(*stored)),
            Bson::Int64(stored) => Kind::NumberValue(*stored as f64),
            Bson::Double(stored) => Kind::NumberValue(*stored),
            Bson::String(stored) => Kind::StringValue(stored.clone()),
            Bson::Array(values) => match too_deep(stored, depth) {
                Some(text) => Kind::StringValue(text),
                None => Kind::ListValue(ListValue {
                    values: values.iter().map(|value| value_at(value, depth + 1)).collect(),
                }),
            },
            Bson::Document(object) => match too_deep(stored, depth) {
                Some(text) => Kind::StringValue(text),
                None => Kind::StructValue(object_at(object, depth)),
            },
            _ => Kind::NullValue(0),
        },
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
