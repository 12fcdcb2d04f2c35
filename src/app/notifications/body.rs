//! What a receiver reads: records with the names of the API, cut to what a notification may have, as a CloudEvent or as a
//! message for Slack. Never input or output, stack or details of an error.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bson::{Bson, Document};
use serde_json::{Map, Value as Json, json};

use crate::domain::notification::{ERROR_BYTES, Event, Format, cut};
use crate::domain::{Execution, ExecutionStatus, Millis, RunError, Step, StepStatus};

/// Bytes of a notification.
pub const BODY_BYTES: usize = 64 * 1024;
/// Of that, what is around the data of a CloudEvent; and what one text may have where all together is too much.
const ENVELOPE_BYTES: usize = 12 * 1024;
const TEXT_BYTES: usize = 256;
/// Failed steps that are named, and the bytes of their messages.
pub const FAILED_STEPS: usize = 5;
const FAILED_STEP_BYTES: usize = 1024;
/// Characters of a text in a message for Slack, and of what quotes an error.
const SLACK_CHARACTERS: usize = 2_800;
const QUOTED_CHARACTERS: usize = 1_000;
/// Levels of metadata that are shown.
const DEPTH: usize = 32;

/// A failed step of an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedStep {
    pub step_id: i32,
    pub step_name: String,
    pub message: String,
}

/// What happened to which record.
#[derive(Debug, Clone, Copy)]
pub struct Happening<'a> {
    pub execution: &'a Execution,
    pub step: Option<&'a Step>,
    pub failed_steps: &'a [FailedStep],
    pub include_metadata: bool,
    /// Where people look at it.
    pub public_url: Option<&'a str>,
}

struct Fields(Map<String, Json>);

impl Fields {
    fn put(&mut self, name: &str, value: impl Into<Json>) {
        let value = value.into();
        if !value.is_null() {
            self.0.insert(name.to_owned(), value);
        }
    }

    fn time(&mut self, name: &str, at: Option<Millis>) {
        self.put(name, at.and_then(time));
    }

    fn error(&mut self, error: Option<&RunError>) {
        let Some(error) = error else { return };
        let message = cut(&error.message, ERROR_BYTES);
        self.put("error", json!({ "message": message, "code": error.code }));
    }

    fn metadata(&mut self, metadata: &Document, is_asked: bool) {
        if is_asked {
            self.put("metadata", object(metadata, 1));
        }
    }
}

/// RFC 3339; `None`: there is no such form of it.
pub fn time(at: Millis) -> Option<String> {
    bson::DateTime::from_millis(at).try_to_rfc3339_string().ok()
}

fn object(document: &Document, depth: usize) -> Json {
    Json::Object(
        document.iter().map(|(key, stored)| (key.clone(), value(stored, depth + 1))).collect(),
    )
}

/// A stored value as JSON, as the API shows it.
fn value(stored: &Bson, depth: usize) -> Json {
    match stored {
        Bson::Null | Bson::Undefined => Json::Null,
        Bson::Boolean(stored) => json!(stored),
        Bson::Int32(stored) => json!(stored),
        Bson::Int64(stored) if stored.unsigned_abs() <= 1 << 53 => json!(stored),
        Bson::Double(stored) if stored.is_finite() => json!(stored),
        Bson::String(text) | Bson::Symbol(text) => json!(text),
        Bson::Array(_) | Bson::Document(_) if depth > DEPTH => json!("…"),
        Bson::Array(values) => values.iter().map(|stored| value(stored, depth + 1)).collect(),
        Bson::Document(document) => object(document, depth),
        Bson::DateTime(at) => json!(time(at.timestamp_millis())),
        Bson::ObjectId(id) => json!(id.to_hex()),
        Bson::Binary(binary) => json!(STANDARD.encode(&binary.bytes)),
        Bson::Decimal128(number) => json!(number.to_string()),
        Bson::Int64(number) => json!(number.to_string()),
        Bson::Double(number) => json!(number.to_string()),
        other => other.clone().into_relaxed_extjson(),
    }
}

fn execution_status(status: Option<ExecutionStatus>) -> String {
    let word = status.map_or("unspecified", ExecutionStatus::as_str);
    format!("EXECUTION_STATUS_{}", word.to_ascii_uppercase())
}

fn step_status(status: Option<StepStatus>) -> String {
    let word = status.map_or("unspecified", StepStatus::as_str);
    format!("STEP_STATUS_{}", word.to_ascii_uppercase())
}

fn execution(record: &Execution, metadata: bool) -> Json {
    let mut fields = Fields(Map::new());
    fields.put("execution_id", record.execution_id.as_str());
    fields.put("app_id", record.app_id);
    fields.put("app_name", record.app_name.as_str());
    fields.put("sub_app_id", record.sub_app_id);
    fields.put("sub_app_name", record.sub_app_name.as_deref());
    fields.put("user_id", record.user_id.as_deref());
    fields.put("status", execution_status(record.status));
    fields.time("started_at", record.started_at);
    fields.time("completed_at", record.completed_at);
    fields.put("duration_ms", record.duration_ms);
    fields.error(record.error.as_ref());
    fields.metadata(&record.metadata, metadata);
    fields.time("created_at", record.created_at);
    fields.time("updated_at", record.updated_at);
    fields.put("revision", record.revision);
    fields.put("heartbeat_timeout_ms", record.heartbeat_timeout_ms);
    fields.time("last_heartbeat_at", record.last_heartbeat_at);
    fields.time("cancel_requested_at", record.cancel_requested_at);
    fields.put("cancel_reason", record.cancel_reason.as_deref());
    fields.put("parent_execution_id", record.parent_execution_id.as_deref());
    fields.put("pinned", record.pinned);
    fields.put("configuration_version", record.configuration_version.as_deref());
    fields.put("update_sequence", record.update_sequence);
    Json::Object(fields.0)
}

fn step(record: &Step, metadata: bool) -> Json {
    let mut fields = Fields(Map::new());
    fields.put("execution_id", record.execution_id.as_str());
    fields.put("step_id", record.step_id);
    fields.put("step_key", record.step_key.as_deref());
    fields.put("step_name", record.step_name.as_str());
    fields.put("step_version", record.step_version.as_deref());
    fields.put("status", step_status(record.status));
    fields.time("started_at", record.started_at);
    fields.time("completed_at", record.completed_at);
    fields.put("duration_ms", record.duration_ms);
    fields.error(record.error.as_ref());
    fields.put("retry_count", record.retry_count);
    fields.metadata(&record.metadata, metadata);
    fields.put("revision", record.revision);
    fields.time("created_at", record.created_at);
    fields.time("updated_at", record.updated_at);
    fields.put("depends_on", record.depends_on.clone());
    fields.put("depends_on_keys", record.depends_on_keys.clone());
    fields.put("parent_step_id", record.parent_step_id);
    fields.put("parent_step_key", record.parent_step_key.as_deref());
    fields.put("progress", record.progress);
    fields.put("progress_message", record.progress_message.as_deref());
    fields.put("update_sequence", record.update_sequence);
    Json::Object(fields.0)
}

/// Where people look at an execution.
fn link(public_url: &str, execution_id: &str) -> String {
    let mut url = format!("{}/executions/", public_url.trim_end_matches('/'));
    for byte in execution_id.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                url.push(char::from(byte));
            }
            byte => url.push_str(&format!("%{byte:02X}")),
        }
    }
    url
}

/// `data` of a CloudEvent, as text. What would be too large loses metadata and lists, which `omitted_fields` names, and at
/// last the ends of all texts.
pub fn data(happening: &Happening<'_>) -> String {
    let Happening { include_metadata, failed_steps, .. } = *happening;
    let mut fields = Fields(Map::new());
    fields.put("execution", execution(happening.execution, include_metadata));
    fields.put("step", happening.step.map(|record| step(record, include_metadata)));
    if !failed_steps.is_empty() {
        let named = failed_steps.iter().take(FAILED_STEPS).map(|failed| {
            json!({
                "step_id": failed.step_id,
                "step_name": failed.step_name,
                "message": cut(&failed.message, FAILED_STEP_BYTES),
            })
        });
        fields.put("failed_steps", named.collect::<Vec<Json>>());
    }
    let url = happening.public_url.map(|url| link(url, &happening.execution.execution_id));
    fields.put("url", url);
    let mut data = Json::Object(fields.0);
    within(&mut data, BODY_BYTES - ENVELOPE_BYTES)
}

fn within(data: &mut Json, most: usize) -> String {
    let mut text = data.to_string();
    let mut omitted = Vec::new();
    for (record, name) in [
        ("step", "depends_on"),
        ("step", "depends_on_keys"),
        ("step", "metadata"),
        ("execution", "metadata"),
    ] {
        if text.len() <= most {
            return text;
        }
        let fields = data.get_mut(record).and_then(Json::as_object_mut);
        if fields.and_then(|fields| fields.remove(name)).is_some() {
            omitted.push(format!("{record}.{name}"));
            data["omitted_fields"] = json!(omitted);
            text = data.to_string();
        }
    }
    // A character may take six in JSON.
    for bytes in [TEXT_BYTES, TEXT_BYTES / 4] {
        if text.len() > most {
            shorten(data, bytes);
            text = data.to_string();
        }
    }
    text
}

fn shorten(value: &mut Json, bytes: usize) {
    match value {
        Json::String(text) => {
            let end = cut(text, bytes).len();
            text.truncate(end);
        }
        Json::Array(values) => values.iter_mut().for_each(|value| shorten(value, bytes)),
        Json::Object(fields) => fields.values_mut().for_each(|value| shorten(value, bytes)),
        _ => {}
    }
}

/// What is around the data.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    pub id: &'a str,
    pub kind: &'a str,
    pub database_id: &'a str,
    /// The execution.
    pub subject: Option<&'a str>,
    pub at: Millis,
}

/// The whole of what is sent.
pub fn body(format: Format, envelope: &Envelope<'_>, data: &str) -> String {
    match format {
        Format::CloudEvents => cloud_event(envelope, data),
        Format::Slack => {
            let data = serde_json::from_str(data).unwrap_or(Json::Null);
            slack(envelope.kind, &data).to_string()
        }
    }
}

/// The media type of a body.
pub fn content_type(format: Format) -> &'static str {
    match format {
        Format::CloudEvents => "application/cloudevents+json",
        Format::Slack => "application/json",
    }
}

fn cloud_event(envelope: &Envelope<'_>, data: &str) -> String {
    let mut fields = Fields(Map::new());
    fields.put("specversion", "1.0");
    fields.put("id", envelope.id);
    fields.put("source", format!("/stepwell/{}", envelope.database_id));
    fields.put("type", envelope.kind);
    // Other programs choose ids as they like.
    fields.put("subject", envelope.subject.map(|subject| cut(subject, TEXT_BYTES * 4)));
    fields.time("time", Some(envelope.at));
    fields.put("datacontenttype", "application/json");
    let mut text = Json::Object(fields.0).to_string();
    text.pop();
    text.push_str(",\"data\":");
    text.push_str(data);
    text.push('}');
    text
}

/// Text of records as Slack takes it: with what would be markup escaped.
fn escaped(text: &str, characters: usize) -> String {
    let mut escaped = String::new();
    for c in text.chars().take(characters) {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '`' => escaped.push('\''),
            c => escaped.push(c),
        }
    }
    if text.chars().nth(characters).is_some() {
        escaped.push('…');
    }
    escaped
}

/// What an event of this kind says happened.
fn happened(kind: &str) -> &'static str {
    let event = Event::ALL.into_iter().find(|event| event.cloud_type() == kind);
    match event {
        Some(Event::ExecutionStarted) => "started",
        Some(Event::ExecutionCompleted) => "completed",
        Some(Event::ExecutionFailed) => "failed",
        Some(Event::ExecutionCancelled) => "was cancelled",
        Some(Event::ExecutionHeartbeatTimeout) => "failed: no sign of life",
        Some(Event::ExecutionRevived) => "is running again",
        Some(Event::ExecutionCancelRequested) => "is asked to cancel",
        Some(Event::StepFailed) => "failed",
        Some(Event::StepRetried) => "is retried",
        None => "sends a test notification",
    }
}

fn slack(kind: &str, data: &Json) -> Json {
    let text = |record: &str, name: &str| data[record][name].as_str().unwrap_or_default();
    let name = |text: &str| escaped(text, TEXT_BYTES);
    let execution_id = name(text("execution", "execution_id"));
    let mut summary = match (data.get("step"), data.get("execution")) {
        (Some(step), _) => format!(
            "Step *{}* ({}) of *{}*",
            name(text("step", "step_name")),
            step["step_id"],
            name(text("execution", "app_name")),
        ),
        (None, Some(_)) => format!("*{}*", name(text("execution", "app_name"))),
        (None, None) => "Stepwell".to_owned(),
    };
    summary.push_str(&format!(" {}", happened(kind)));
    let mut lines = vec![summary.clone()];
    let record = if data.get("step").is_some() { "step" } else { "execution" };
    if let Some(message) = data[record]["error"]["message"].as_str().filter(|m| !m.is_empty()) {
        lines.push(format!("```{}```", escaped(message, QUOTED_CHARACTERS)));
    }
    for failed in data["failed_steps"].as_array().into_iter().flatten() {
        let of = |name: &str| failed[name].as_str().unwrap_or_default();
        let message = escaped(of("message"), TEXT_BYTES);
        lines.push(format!("• {} ({}): {message}", name(of("step_name")), failed["step_id"]));
    }
    let section: String = lines.join("\n").chars().take(SLACK_CHARACTERS).collect();
    let mut blocks =
        vec![json!({ "type": "section", "text": { "type": "mrkdwn", "text": section } })];
    if !execution_id.is_empty() {
        // A link ends at |, which no percent-encoded one has.
        let shown = match data["url"].as_str() {
            Some(url) => format!("<{url}|{execution_id}>"),
            None => execution_id,
        };
        let element = json!({ "type": "mrkdwn", "text": shown });
        blocks.push(json!({ "type": "context", "elements": [element] }));
    }
    json!({ "text": summary, "blocks": blocks })
}

#[cfg(test)]
mod tests;
