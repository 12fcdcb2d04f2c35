//! Messages as JSON for programs: the names of the API, RFC 3339 times, the names of enum values, numbers as
//! numbers. A field that is not set is null, so that every object has the same keys.

use prost_types::value::Kind;
use prost_types::{Struct, Timestamp, Value};
use serde_json::{Map, Value as Json, json};

use crate::proto;

pub fn step_counts(counts: &proto::StepCounts) -> Json {
    json!({
        "pending": counts.pending,
        "running": counts.running,
        "completed": counts.completed,
        "failed": counts.failed,
        "skipped": counts.skipped,
        "exact": counts.exact,
    })
}

pub fn execution(record: &proto::Execution) -> Json {
    json!({
        "execution_id": record.execution_id,
        "app_id": record.app_id,
        "app_name": record.app_name,
        "sub_app_id": record.sub_app_id,
        "sub_app_name": record.sub_app_name,
        "user_id": record.user_id,
        "status": record.status().as_str_name(),
        "started_at": time(record.started_at.as_ref()),
        "completed_at": time(record.completed_at.as_ref()),
        "duration_ms": record.duration_ms,
        "error": error(record.error.as_ref()),
        "metadata": object(record.metadata.as_ref()),
        "created_at": time(record.created_at.as_ref()),
        "updated_at": time(record.updated_at.as_ref()),
        "revision": record.revision,
        "heartbeat_timeout_ms": record.heartbeat_timeout_ms,
        "last_heartbeat_at": time(record.last_heartbeat_at.as_ref()),
        "cancel_requested_at": time(record.cancel_requested_at.as_ref()),
        "cancel_reason": record.cancel_reason,
        "parent_execution_id": record.parent_execution_id,
        "pinned": record.pinned,
        "configuration_version": record.configuration_version,
        "update_sequence": record.update_sequence,
        "omitted_fields": record.omitted_fields,
    })
}

/// A step; without `payloads` it has no keys `input` and `output`, as they were not asked for.
pub fn step(record: &proto::Step, payloads: bool) -> Json {
    let mut step = json!({
        "execution_id": record.execution_id,
        "step_id": record.step_id,
        "step_key": record.step_key,
        "step_name": record.step_name,
        "step_version": record.step_version,
        "status": record.status().as_str_name(),
        "started_at": time(record.started_at.as_ref()),
        "completed_at": time(record.completed_at.as_ref()),
        "duration_ms": record.duration_ms,
        "error": error(record.error.as_ref()),
        "retry_count": record.retry_count,
        "metadata": object(record.metadata.as_ref()),
        "revision": record.revision,
        "created_at": time(record.created_at.as_ref()),
        "updated_at": time(record.updated_at.as_ref()),
        "depends_on": record.depends_on,
        "depends_on_keys": record.depends_on_keys,
        "parent_step_id": record.parent_step_id,
        "parent_step_key": record.parent_step_key,
        "progress": record.progress,
        "progress_message": record.progress_message,
        "update_sequence": record.update_sequence,
        "attempts": record.attempts.iter().map(attempt).collect::<Vec<_>>(),
        "omitted_fields": record.omitted_fields,
    });
    if payloads && let Some(fields) = step.as_object_mut() {
        fields.insert("input".to_owned(), value(record.input.as_ref()));
        fields.insert("output".to_owned(), value(record.output.as_ref()));
    }
    step
}

fn attempt(record: &proto::Attempt) -> Json {
    json!({
        "started_at": time(record.started_at.as_ref()),
        "completed_at": time(record.completed_at.as_ref()),
        "error": error(record.error.as_ref()),
        "duration_ms": record.duration_ms,
    })
}

pub fn artifact(record: &proto::Artifact) -> Json {
    json!({
        "artifact_id": record.artifact_id,
        "execution_id": record.execution_id,
        "step_id": record.step_id,
        "step_key": record.step_key,
        "artifact_type": record.artifact_type,
        "artifact_name": record.artifact_name,
        "mime_type": record.mime_type,
        "size_bytes": record.size_bytes,
        "storage_type": record.storage_type,
        "storage_path": record.storage_path,
        "metadata": object(record.metadata.as_ref()),
        "created_at": time(record.created_at.as_ref()),
        "sha256": record.sha256,
        "omitted_fields": record.omitted_fields,
    })
}

fn point(record: &proto::MetricPoint) -> Json {
    let metrics: Map<String, Json> =
        record.metrics.iter().map(|(name, value)| (name.clone(), number(*value))).collect();
    json!({
        "timestamp": time(record.timestamp.as_ref()),
        "execution_id": record.execution_id,
        "metrics": metrics,
        "step_id": record.step_id,
        "step_key": record.step_key,
    })
}

/// An event of a watch.
pub fn event(event: &proto::WatchExecutionResponse, payloads: bool) -> Json {
    use proto::watch_execution_response::Event;
    let change = |change_type: proto::ChangeType, name: &str, record: Json| json!({ "change_type": change_type.as_str_name(), name: record });
    let (name, body) = match &event.event {
        None => ("unknown", json!({})),
        Some(Event::Execution(changed)) => (
            "execution",
            change(
                changed.change_type(),
                "execution",
                changed.execution.as_ref().map_or(Json::Null, execution),
            ),
        ),
        Some(Event::Step(changed)) => (
            "step",
            change(
                changed.change_type(),
                "step",
                changed.step.as_ref().map_or(Json::Null, |record| step(record, payloads)),
            ),
        ),
        Some(Event::Artifact(changed)) => (
            "artifact",
            change(
                changed.change_type(),
                "artifact",
                changed.artifact.as_ref().map_or(Json::Null, artifact),
            ),
        ),
        Some(Event::Metrics(recorded)) => {
            ("metrics", json!({ "points": recorded.points.iter().map(point).collect::<Vec<_>>() }))
        }
        Some(Event::SnapshotComplete(_)) => ("snapshot_complete", json!({})),
        Some(Event::Keepalive(_)) => ("keepalive", json!({})),
    };
    json!({ "resume_token": event.resume_token, name: body })
}

pub fn server_info(info: &proto::GetServerInfoResponse) -> Json {
    let limits: Map<String, Json> =
        info.limits.iter().map(|(name, limit)| (name.clone(), json!(limit))).collect();
    json!({
        "version": info.version,
        "store": info.store,
        "store_version": info.store_version,
        "database_id": info.database_id,
        "features": info.features,
        "limits": limits,
    })
}

fn error(error: Option<&proto::Error>) -> Json {
    error.map_or(Json::Null, |error| {
        json!({
            "message": error.message,
            "code": error.code,
            "stack_trace": error.stack_trace,
            "details": error.details.as_ref().map(|details| object(Some(details))),
        })
    })
}

pub fn time(at: Option<&Timestamp>) -> Json {
    at.map_or(Json::Null, |at| Json::String(at.to_string()))
}

pub fn object(object: Option<&Struct>) -> Json {
    let fields = object.map(|object| &object.fields).into_iter().flatten();
    Json::Object(fields.map(|(key, field)| (key.clone(), value(Some(field)))).collect())
}

pub fn value(value: Option<&Value>) -> Json {
    match value.and_then(|value| value.kind.as_ref()) {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(value)) => Json::Bool(*value),
        Some(Kind::NumberValue(value)) => number(*value),
        Some(Kind::StringValue(text)) => Json::String(text.clone()),
        Some(Kind::StructValue(fields)) => object(Some(fields)),
        Some(Kind::ListValue(list)) => {
            Json::Array(list.values.iter().map(|element| self::value(Some(element))).collect())
        }
    }
}

/// An integral number without a fraction, as it was stored.
fn number(value: f64) -> Json {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT { json!(value as i64) } else { json!(value) }
}

/// A JSON value given on the command line.
pub fn parse(json: &Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.iter().map(parse).collect() })
        }
        Json::Object(fields) => Kind::StructValue(Struct {
            fields: fields.iter().map(|(key, field)| (key.clone(), parse(field))).collect(),
        }),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_as_they_went_in() {
        let given = json!({
            "integer": 42, "negative": -7, "fraction": 0.5, "large": 9_007_199_254_740_992_i64,
            "text": "a\nb", "null": null, "list": [1, [true], {}], "a.b": {"$ref": "#/x"},
        });
        assert_eq!(value(Some(&parse(&given))), given);
    }

    #[test]
    fn an_execution_has_the_names_of_the_api() {
        let record = proto::Execution {
            execution_id: "e-1".to_owned(),
            app_name: "app".to_owned(),
            status: proto::ExecutionStatus::Failed.into(),
            started_at: Some(Timestamp { seconds: 0, nanos: 1_000_000 }),
            error: Some(proto::Error { message: "broke".to_owned(), ..Default::default() }),
            duration_ms: Some(-5),
            ..Default::default()
        };
        let json = execution(&record);
        assert_eq!(json["execution_id"], "e-1");
        assert_eq!(json["status"], "EXECUTION_STATUS_FAILED");
        assert_eq!(json["started_at"], "1970-01-01T00:00:00.001Z");
        assert_eq!(json["completed_at"], Json::Null);
        assert_eq!(json["duration_ms"], -5);
        assert_eq!(json["error"]["message"], "broke");
        assert_eq!(json["metadata"], json!({}));
        // A status that this program does not know yet is no panic.
        let unknown = proto::Execution { status: 99, ..record };
        assert_eq!(execution(&unknown)["status"], "EXECUTION_STATUS_UNSPECIFIED");
    }

    #[test]
    fn events_carry_their_token_and_the_name_of_what_happened() {
        use proto::watch_execution_response::Event;
        let step_changed = proto::WatchExecutionResponse {
            resume_token: "t".to_owned(),
            event: Some(Event::Step(proto::StepChange {
                change_type: proto::ChangeType::Updated.into(),
                step: Some(proto::Step { step_id: Some(0), ..Default::default() }),
            })),
        };
        let json = event(&step_changed, false);
        assert_eq!(json["resume_token"], "t");
        assert_eq!(json["step"]["change_type"], "CHANGE_TYPE_UPDATED");
        assert_eq!(json["step"]["step"]["step_id"], 0);
        assert!(json["step"]["step"].get("output").is_none());
        assert!(event(&step_changed, true)["step"]["step"].get("output").is_some());
    }
}
