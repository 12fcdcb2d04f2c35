//! Records as documents of the data model, which `import` reads: the reverse of its `record`.

use bson::{Bson, DateTime, Document};
use prost_types::{Struct, Timestamp, Value};

use crate::proto;
use crate::rpc::convert;

/// A document that is being filled; what is unset is null.
struct Fields(Document);

impl Fields {
    fn new() -> Self {
        Fields(Document::new())
    }

    fn put(mut self, key: &str, value: impl Into<Bson>) -> Self {
        self.0.insert(key, value.into());
        self
    }

    /// A field of the data model that is null where there is nothing.
    fn nullable(self, key: &str, value: Option<impl Into<Bson>>) -> Self {
        let value = value.map_or(Bson::Null, Into::into);
        self.put(key, value)
    }

    /// An additional field, which is absent where there is nothing.
    fn also(self, key: &str, value: Option<impl Into<Bson>>) -> Self {
        match value {
            Some(value) => self.put(key, value),
            None => self,
        }
    }

    fn time(self, key: &str, at: &Option<Timestamp>) -> Self {
        self.nullable(key, date(at))
    }

    fn error(self, error: &Option<proto::Error>) -> Self {
        let Some(error) = error else { return self.put("error", Bson::Null) };
        let this = self.put("error", error.message.clone());
        let info = Fields::new()
            .also("code", Some(&error.code).filter(|code| !code.is_empty()))
            .also("stack_trace", Some(&error.stack_trace).filter(|trace| !trace.is_empty()))
            .also("details", error.details.as_ref().map(object));
        if info.0.is_empty() { this } else { this.put("error_info", info.0) }
    }
}

fn date(at: &Option<Timestamp>) -> Option<Bson> {
    at.as_ref().and_then(convert::millis).map(|at| DateTime::from_millis(at).into())
}

/// What a server sends can be stored.
fn object(object: &Struct) -> Bson {
    convert::stored_object(object).map_or(Bson::Null, Bson::Document)
}

fn payload(value: &Value) -> Bson {
    convert::stored(value).unwrap_or(Bson::Null)
}

fn metadata(given: &Option<Struct>) -> Bson {
    given.as_ref().map_or_else(|| Bson::Document(Document::new()), object)
}

fn texts(texts: &[String]) -> Option<Vec<Bson>> {
    let texts: Vec<Bson> = texts.iter().cloned().map(Bson::String).collect();
    (!texts.is_empty()).then_some(texts)
}

fn numbers(numbers: &[i32]) -> Option<Vec<Bson>> {
    let numbers: Vec<Bson> = numbers.iter().map(|number| Bson::Int32(*number)).collect();
    (!numbers.is_empty()).then_some(numbers)
}

pub fn execution(record: &proto::Execution) -> Document {
    let status = match record.status() {
        proto::ExecutionStatus::Unspecified => None,
        proto::ExecutionStatus::Running => Some("running"),
        proto::ExecutionStatus::Completed => Some("completed"),
        proto::ExecutionStatus::Failed => Some("failed"),
        proto::ExecutionStatus::Cancelled => Some("cancelled"),
    };
    Fields::new()
        .put("execution_id", record.execution_id.clone())
        .nullable("app_id", record.app_id)
        .put("app_name", record.app_name.clone())
        .nullable("sub_app_id", record.sub_app_id)
        .nullable("sub_app_name", record.sub_app_name.clone())
        .nullable("user_id", record.user_id.clone())
        .nullable("status", status)
        .time("started_at", &record.started_at)
        .time("completed_at", &record.completed_at)
        .nullable("duration_ms", record.duration_ms)
        .error(&record.error)
        .put("metadata", metadata(&record.metadata))
        .time("created_at", &record.created_at)
        .time("updated_at", &record.updated_at)
        .put("revision", record.revision)
        .also("heartbeat_timeout_ms", record.heartbeat_timeout_ms)
        .also("last_heartbeat_at", date(&record.last_heartbeat_at))
        .also("cancel_requested_at", date(&record.cancel_requested_at))
        .also("cancel_reason", record.cancel_reason.clone())
        .also("parent_execution_id", record.parent_execution_id.clone())
        .also("pinned", record.pinned)
        .also("configuration_version", record.configuration_version.clone())
        .also("update_sequence", record.update_sequence)
        .0
}

pub fn step(record: &proto::Step) -> Document {
    let status = match record.status() {
        proto::StepStatus::Unspecified => None,
        proto::StepStatus::Pending => Some("pending"),
        proto::StepStatus::Running => Some("running"),
        proto::StepStatus::Completed => Some("completed"),
        proto::StepStatus::Failed => Some("failed"),
        proto::StepStatus::Skipped => Some("skipped"),
    };
    let attempts: Vec<Bson> = record.attempts.iter().map(attempt).collect();
    Fields::new()
        .put("execution_id", record.execution_id.clone())
        .nullable("step_id", record.step_id)
        .also("step_key", record.step_key.clone())
        .put("step_name", record.step_name.clone())
        .nullable("step_version", record.step_version.clone())
        .nullable("status", status)
        .time("started_at", &record.started_at)
        .time("completed_at", &record.completed_at)
        .nullable("duration_ms", record.duration_ms)
        .put("input", record.input.as_ref().map_or(Bson::Document(Document::new()), payload))
        .nullable("output", record.output.as_ref().map(payload))
        .error(&record.error)
        .put("retry_count", record.retry_count)
        .put("metadata", metadata(&record.metadata))
        .put("revision", record.revision)
        .also("created_at", date(&record.created_at))
        .also("updated_at", date(&record.updated_at))
        .also("depends_on", numbers(&record.depends_on))
        .also("parent_step_id", record.parent_step_id)
        .also("parent_step_key", record.parent_step_key.clone())
        .also("depends_on_keys", texts(&record.depends_on_keys))
        .also("progress", record.progress)
        .also("progress_message", record.progress_message.clone())
        .also("update_sequence", record.update_sequence)
        .also("attempts", Some(attempts).filter(|attempts| !attempts.is_empty()))
        .0
}

fn attempt(attempt: &proto::Attempt) -> Bson {
    let fields = Fields::new()
        .time("started_at", &attempt.started_at)
        .time("completed_at", &attempt.completed_at)
        .nullable("duration_ms", attempt.duration_ms)
        .error(&attempt.error);
    Bson::Document(fields.0)
}

pub fn artifact(record: &proto::Artifact) -> Document {
    let id = bson::oid::ObjectId::parse_str(&record.artifact_id);
    Fields::new()
        .put("_id", id.map_or(Bson::String(record.artifact_id.clone()), Bson::ObjectId))
        .put("execution_id", record.execution_id.clone())
        .nullable("step_id", record.step_id)
        .also("step_key", record.step_key.clone())
        .put("artifact_type", record.artifact_type.clone())
        .put("artifact_name", record.artifact_name.clone())
        .nullable("mime_type", record.mime_type.clone())
        .nullable("size_bytes", record.size_bytes)
        .nullable("storage_type", record.storage_type.clone())
        .nullable("storage_path", record.storage_path.clone())
        .put("metadata", metadata(&record.metadata))
        .time("created_at", &record.created_at)
        .also("sha256", record.sha256.clone())
        .0
}

pub fn point(record: &proto::MetricPoint) -> Document {
    // A map has no order of its own.
    let metrics: std::collections::BTreeMap<_, _> = record.metrics.iter().collect();
    let metrics: Document =
        metrics.into_iter().map(|(name, number)| (name.clone(), Bson::Double(*number))).collect();
    Fields::new()
        .time("timestamp", &record.timestamp)
        .put("execution_id", record.execution_id.clone())
        .put("metrics", metrics)
        .also("step_id", record.step_id)
        .also("step_key", record.step_key.clone())
        .0
}

pub fn configuration(record: &proto::Configuration) -> Document {
    Fields::new()
        .nullable("app_id", record.app_id)
        .put("app_name", record.app_name.clone())
        .nullable("sub_app_id", record.sub_app_id)
        .nullable("sub_app_name", record.sub_app_name.clone())
        .put("version", record.version.clone())
        .put("configuration", metadata(&record.configuration))
        .put("active", record.active)
        .time("created_at", &record.created_at)
        .nullable("created_by", record.created_by.clone())
        .0
}
