//! From documents of the data model to the records that a server is asked to put, as they are: nulls, times,
//! durations and retry counts are kept and nothing is invented. What does not fit the model is refused with
//! the reason.

use bson::{Bson, Document};
use clap::ValueEnum;
use prost_types::{Struct, Timestamp, Value};

use crate::cli::time::rfc3339;
use crate::domain::limits::{METRICS_PER_POINT, NESTING_DEPTH};
use crate::domain::value;
use crate::proto;
use crate::rpc::convert;

/// The status of records that do not say theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AssumedStatus {
    Completed,
    Failed,
    /// Steps become skipped: they have no cancelled.
    Cancelled,
    Running,
}

impl AssumedStatus {
    fn of_execution(self) -> proto::ExecutionStatus {
        match self {
            AssumedStatus::Completed => proto::ExecutionStatus::Completed,
            AssumedStatus::Failed => proto::ExecutionStatus::Failed,
            AssumedStatus::Cancelled => proto::ExecutionStatus::Cancelled,
            AssumedStatus::Running => proto::ExecutionStatus::Running,
        }
    }

    fn of_step(self) -> proto::StepStatus {
        match self {
            AssumedStatus::Completed => proto::StepStatus::Completed,
            AssumedStatus::Failed => proto::StepStatus::Failed,
            AssumedStatus::Cancelled => proto::StepStatus::Skipped,
            AssumedStatus::Running => proto::StepStatus::Running,
        }
    }
}

/// A converted document.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted<T> {
    pub record: T,
    /// Whether its status is the assumed one.
    pub assumed: bool,
    /// Keys of the document that are not part of the model, and were left out.
    pub left_out: Vec<String>,
}

/// Why a document is refused.
pub type Refused = String;

pub fn execution(
    document: Document,
    assume: Option<AssumedStatus>,
) -> Result<Converted<proto::Execution>, Refused> {
    let mut fields = Fields { document, nested: "" };
    let word = fields.text("status")?;
    let status = match &word {
        Some(word) => execution_status(word)?,
        None => assume.ok_or_else(no_status)?.of_execution(),
    };
    let record = proto::Execution {
        execution_id: fields.required_text("execution_id")?,
        app_id: fields.int32("app_id")?,
        app_name: fields.required_text("app_name")?,
        sub_app_id: fields.int32("sub_app_id")?,
        sub_app_name: fields.text("sub_app_name")?,
        user_id: fields.text("user_id")?,
        status: status.into(),
        started_at: fields.time("started_at")?,
        completed_at: fields.time("completed_at")?,
        duration_ms: fields.int64("duration_ms")?,
        error: fields.error()?,
        metadata: fields.object("metadata")?,
        created_at: fields.time("created_at")?,
        updated_at: fields.time("updated_at")?,
        // The server's own: it grows on this server, whatever it was on another.
        revision: 0,
        heartbeat_timeout_ms: fields.int64("heartbeat_timeout_ms")?,
        last_heartbeat_at: fields.time("last_heartbeat_at")?,
        cancel_requested_at: fields.time("cancel_requested_at")?,
        cancel_reason: fields.text("cancel_reason")?,
        parent_execution_id: fields.text("parent_execution_id")?,
        pinned: fields.boolean("pinned")?,
        configuration_version: fields.text("configuration_version")?,
        update_sequence: fields.int64("update_sequence")?,
        // The server refuses what lacks something.
        omitted_fields: fields.omitted()?,
    };
    Ok(Converted { record, assumed: word.is_none(), left_out: fields.left_out() })
}

pub fn step(
    document: Document,
    assume: Option<AssumedStatus>,
) -> Result<Converted<proto::Step>, Refused> {
    let mut fields = Fields { document, nested: "" };
    let word = fields.text("status")?;
    let status = match &word {
        Some(word) => step_status(word)?,
        None => assume.ok_or_else(no_status)?.of_step(),
    };
    let (step_id, step_key) = fields.step_ids()?;
    let (depends_on, depends_on_keys) = fields.dependencies()?;
    let (parent_step_id, parent_step_key) =
        fields.step_named("parent_step_id", "parent_step_key")?;
    let record = proto::Step {
        execution_id: fields.required_text("execution_id")?,
        step_id,
        step_key,
        step_name: fields.required_text("step_name")?,
        step_version: fields.text("step_version")?,
        status: status.into(),
        started_at: fields.time("started_at")?,
        completed_at: fields.time("completed_at")?,
        duration_ms: fields.int64("duration_ms")?,
        input: fields.payload("input")?,
        output: fields.payload("output")?,
        error: fields.error()?,
        retry_count: fields.int32("retry_count")?.unwrap_or(0),
        metadata: fields.object("metadata")?,
        revision: 0,
        created_at: fields.time("created_at")?,
        updated_at: fields.time("updated_at")?,
        depends_on,
        depends_on_keys,
        parent_step_id,
        parent_step_key,
        progress: fields.double("progress")?,
        progress_message: fields.text("progress_message")?,
        update_sequence: fields.int64("update_sequence")?,
        attempts: fields.attempts()?,
        omitted_fields: fields.omitted()?,
    };
    Ok(Converted { record, assumed: word.is_none(), left_out: fields.left_out() })
}

pub fn configuration(document: Document) -> Result<Converted<proto::Configuration>, Refused> {
    let mut fields = Fields { document, nested: "" };
    let record = proto::Configuration {
        app_id: fields.int32("app_id")?,
        app_name: fields.required_text("app_name")?,
        sub_app_id: fields.int32("sub_app_id")?,
        sub_app_name: fields.text("sub_app_name")?,
        version: fields.required_text("version")?,
        configuration: fields.object("configuration")?,
        active: fields.boolean("active")?.unwrap_or(false),
        created_at: fields.time("created_at")?,
        created_by: fields.text("created_by")?,
        omitted_fields: fields.omitted()?,
    };
    Ok(Converted { record, assumed: false, left_out: fields.left_out() })
}

/// A record without bytes: what its source says of them is kept.
pub fn artifact(document: Document) -> Result<Converted<proto::Artifact>, Refused> {
    let mut fields = Fields { document, nested: "" };
    let (step_id, step_key) = fields.step_of()?;
    let record = proto::Artifact {
        // A new one: the age of a record counts from when it is stored here, and on MongoDB the id tells it.
        artifact_id: String::new(),
        execution_id: fields.text("execution_id")?.unwrap_or_default(),
        step_id,
        step_key,
        artifact_type: fields.text("artifact_type")?.unwrap_or_default(),
        artifact_name: fields.text("artifact_name")?.unwrap_or_default(),
        mime_type: fields.text("mime_type")?,
        size_bytes: fields.int64("size_bytes")?,
        storage_type: fields.text("storage_type")?,
        storage_path: fields.text("storage_path")?,
        metadata: fields.object("metadata")?,
        created_at: fields.time("created_at")?,
        sha256: fields.text("sha256")?,
        omitted_fields: fields.omitted()?,
    };
    Ok(Converted { record, assumed: false, left_out: fields.left_out() })
}

/// One point of metrics. It is checked here as the server would, as it goes there together with others.
pub fn metric_point(document: Document) -> Result<Converted<proto::MetricPoint>, Refused> {
    let mut fields = Fields { document, nested: "" };
    let timestamp = fields.time("timestamp")?.ok_or("has no timestamp")?;
    let metrics = match fields.take("metrics") {
        Some(Bson::Document(metrics)) if !metrics.is_empty() => metrics,
        None | Some(Bson::Document(_)) => return Err("has no metrics".to_owned()),
        Some(other) => return Err(fields.refused("metrics", &other, "an object")),
    };
    let limit = METRICS_PER_POINT;
    if metrics.len() > limit {
        return Err(format!("has {} metrics, more than the limit of {limit}", metrics.len()));
    }
    let metrics = metrics.into_iter().map(|(name, found)| match number(&found) {
        _ if name.is_empty() || name.contains('\0') => {
            Err("metrics has a name that is empty or contains U+0000".to_owned())
        }
        Some(number) => Ok((name, number)),
        None => Err(format!("metrics.{name} is {}, not a finite number", described(&found))),
    });
    let (step_id, step_key) = fields.step_of()?;
    let record = proto::MetricPoint {
        timestamp: Some(timestamp),
        execution_id: fields.required_text("execution_id")?,
        metrics: metrics.collect::<Result<_, _>>()?,
        step_id,
        step_key,
    };
    Ok(Converted { record, assumed: false, left_out: fields.left_out() })
}

/// A finite number, however it was written.
fn number(found: &Bson) -> Option<f64> {
    let number = match found {
        Bson::Double(number) => *number,
        Bson::Int32(number) => f64::from(*number),
        Bson::Int64(number) => *number as f64,
        Bson::Decimal128(number) => number.to_string().parse().ok()?,
        _ => return None,
    };
    number.is_finite().then_some(number)
}

fn no_status() -> Refused {
    "has no status (--assume-status gives it one)".to_owned()
}

fn execution_status(word: &str) -> Result<proto::ExecutionStatus, Refused> {
    match word {
        "running" => Ok(proto::ExecutionStatus::Running),
        "completed" => Ok(proto::ExecutionStatus::Completed),
        "failed" => Ok(proto::ExecutionStatus::Failed),
        "cancelled" => Ok(proto::ExecutionStatus::Cancelled),
        _ => Err(format!("status is {word:?}, not running, completed, failed or cancelled")),
    }
}

fn step_status(word: &str) -> Result<proto::StepStatus, Refused> {
    match word {
        "pending" => Ok(proto::StepStatus::Pending),
        "running" => Ok(proto::StepStatus::Running),
        "completed" => Ok(proto::StepStatus::Completed),
        "failed" => Ok(proto::StepStatus::Failed),
        "skipped" => Ok(proto::StepStatus::Skipped),
        _ => Err(format!("status is {word:?}, not pending, running, completed, failed or skipped")),
    }
}

/// Keys that servers keep for themselves; they are not asked to put them.
const INTERNAL: [&str; 5] = ["_id", "revision", "last_change", "deleted_at", "digests"];

/// The fields of a document that were not taken yet.
struct Fields {
    document: Document,
    /// Begins the names of fields in refusals.
    nested: &'static str,
}

impl Fields {
    /// The value of a field; null is the same as absent.
    fn take(&mut self, key: &str) -> Option<Bson> {
        self.document.remove(key).filter(|value| !matches!(value, Bson::Null | Bson::Undefined))
    }

    fn refused(&self, key: &str, found: &Bson, expected: &str) -> Refused {
        format!("{}{key} is {}, not {expected}", self.nested, described(found))
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, Refused> {
        match self.take(key) {
            None => Ok(None),
            Some(Bson::String(text) | Bson::Symbol(text)) => Ok(Some(text)),
            Some(other) => Err(self.refused(key, &other, "text")),
        }
    }

    fn required_text(&mut self, key: &str) -> Result<String, Refused> {
        match self.text(key)? {
            Some(text) if !text.is_empty() => Ok(text),
            Some(_) => Err(format!("{}{key} is empty", self.nested)),
            None => Err(format!("has no {}{key}", self.nested)),
        }
    }

    fn int64(&mut self, key: &str) -> Result<Option<i64>, Refused> {
        match self.take(key) {
            None => Ok(None),
            Some(found) => match integer(&found) {
                Some(number) => Ok(Some(number)),
                None => Err(self.refused(key, &found, "a whole number")),
            },
        }
    }

    fn int32(&mut self, key: &str) -> Result<Option<i32>, Refused> {
        match self.int64(key)? {
            None => Ok(None),
            Some(number) => i32::try_from(number).map(Some).map_err(|_| {
                format!("{}{key} is {number}, which is not a 32-bit number", self.nested)
            }),
        }
    }

    fn double(&mut self, key: &str) -> Result<Option<f64>, Refused> {
        match self.take(key) {
            None => Ok(None),
            Some(Bson::Double(number)) => Ok(Some(number)),
            Some(Bson::Int32(number)) => Ok(Some(f64::from(number))),
            Some(other) => Err(self.refused(key, &other, "a number")),
        }
    }

    fn boolean(&mut self, key: &str) -> Result<Option<bool>, Refused> {
        match self.take(key) {
            None => Ok(None),
            Some(Bson::Boolean(value)) => Ok(Some(value)),
            Some(other) => Err(self.refused(key, &other, "true or false")),
        }
    }

    /// A date, or the same written as RFC 3339 text with its zone.
    fn time(&mut self, key: &str) -> Result<Option<Timestamp>, Refused> {
        match self.take(key) {
            None => Ok(None),
            Some(Bson::DateTime(at)) => Ok(Some(convert::timestamp(at.timestamp_millis()))),
            Some(Bson::String(text)) => match rfc3339(&text) {
                Some(at) => Ok(Some(at)),
                None => Err(format!("{}{key} is {text:?}, not a time with its zone", self.nested)),
            },
            Some(other) => Err(self.refused(key, &other, "a date")),
        }
    }

    fn object(&mut self, key: &str) -> Result<Option<Struct>, Refused> {
        match self.take(key) {
            None => Ok(None),
            Some(Bson::Document(document)) => {
                let found = Bson::Document(document);
                self.nesting(key, &found)?;
                match found {
                    Bson::Document(document) => Ok(Some(convert::object(&document))),
                    _ => Ok(None),
                }
            }
            Some(other) => Err(self.refused(key, &other, "an object")),
        }
    }

    fn payload(&mut self, key: &str) -> Result<Option<Value>, Refused> {
        match self.take(key) {
            None => Ok(None),
            Some(found) => {
                self.nesting(key, &found)?;
                Ok(Some(convert::value(&found)))
            }
        }
    }

    /// Checked here and not left to the server, as deeper messages do not even get through a decoder and would
    /// end the whole stream.
    fn nesting(&self, key: &str, found: &Bson) -> Result<(), Refused> {
        let depth = value::depth(found);
        if depth > NESTING_DEPTH {
            return Err(format!(
                "{}{key} is nested {depth} levels deep, more than the limit of {NESTING_DEPTH}",
                self.nested
            ));
        }
        Ok(())
    }

    /// `error` is the message, `error_info` the rest.
    fn error(&mut self) -> Result<Option<proto::Error>, Refused> {
        let message = self.text("error")?;
        let info = match self.take("error_info") {
            None => None,
            Some(Bson::Document(document)) => {
                let mut info = Fields { document, nested: "error_info." };
                Some((info.text("code")?, info.text("stack_trace")?, info.object("details")?))
            }
            Some(other) => return Err(self.refused("error_info", &other, "an object")),
        };
        if message.is_none() && info.is_none() {
            return Ok(None);
        }
        let (code, stack_trace, details) = info.unwrap_or_default();
        Ok(Some(proto::Error {
            message: message.unwrap_or_default(),
            code: code.unwrap_or_default(),
            stack_trace: stack_trace.unwrap_or_default(),
            details,
        }))
    }

    /// Number and key of a step. A text in `step_id` is the client's own id, and so the key.
    fn step_ids(&mut self) -> Result<(Option<i32>, Option<String>), Refused> {
        let key = self.text("step_key")?;
        match self.document.get("step_id") {
            Some(Bson::String(text)) => {
                let text = text.clone();
                self.document.remove("step_id");
                match key {
                    Some(key) if key != text => {
                        Err(format!("step_id is the text {text:?}, but step_key is {key:?}"))
                    }
                    _ if text.is_empty() => Err("step_id is empty".to_owned()),
                    _ => Ok((None, Some(text))),
                }
            }
            _ => match (self.int32("step_id")?, key) {
                (None, None) => Err("has neither step_id nor step_key".to_owned()),
                (Some(number), _) if number < 0 => {
                    Err(format!("step_id is {number}, which is negative"))
                }
                found => Ok(found),
            },
        }
    }

    /// What a program that read the record from a server was not sent.
    fn omitted(&mut self) -> Result<Vec<String>, Refused> {
        match self.take("omitted_fields") {
            None => Ok(Vec::new()),
            Some(Bson::Array(values)) => texts("omitted_fields", "the name of a field", values),
            Some(other) => Err(self.refused("omitted_fields", &other, "a list of names")),
        }
    }

    /// Number and key of the step to which something belongs: the number where both are there, as one is enough.
    fn step_of(&mut self) -> Result<(Option<i32>, Option<String>), Refused> {
        let (step_id, step_key) = self.step_named("step_id", "step_key")?;
        let step_key = step_key.filter(|_| step_id.is_none());
        Ok((step_id, step_key))
    }

    /// Number and key of a step that another one names. A text in the place of the number is the key.
    fn step_named(
        &mut self,
        number_field: &str,
        key_field: &str,
    ) -> Result<(Option<i32>, Option<String>), Refused> {
        let key = self.text(key_field)?;
        if let Some(Bson::String(text)) = self.document.get(number_field) {
            let text = text.clone();
            self.document.remove(number_field);
            return match key {
                Some(key) if key != text => {
                    Err(format!("{number_field} is the text {text:?}, but {key_field} is {key:?}"))
                }
                _ if text.is_empty() => Err(format!("{number_field} is empty")),
                _ => Ok((None, Some(text))),
            };
        }
        match self.int32(number_field)? {
            Some(number) if number < 0 => {
                Err(format!("{number_field} is {number}, which is negative"))
            }
            number => Ok((number, key)),
        }
    }

    /// Numbers and keys of the steps that had to end first. Texts among the numbers are keys; a list of both cannot be
    /// stored.
    fn dependencies(&mut self) -> Result<(Vec<i32>, Vec<String>), Refused> {
        let mut keys = match self.take("depends_on_keys") {
            None => Vec::new(),
            Some(Bson::Array(values)) => texts("depends_on_keys", "a step key", values)?,
            Some(other) => {
                return Err(self.refused("depends_on_keys", &other, "a list of step keys"));
            }
        };
        if let Some(Bson::Array(values)) = self.document.get("depends_on")
            && !values.is_empty()
            && values.iter().all(|value| matches!(value, Bson::String(_)))
            && let Some(Bson::Array(values)) = self.take("depends_on")
        {
            keys.extend(texts("depends_on", "a step key", values)?);
        }
        let numbers = self.step_numbers("depends_on")?;
        match !numbers.is_empty() && !keys.is_empty() {
            true => Err("has both depends_on and depends_on_keys".to_owned()),
            false => Ok((numbers, keys)),
        }
    }

    fn step_numbers(&mut self, key: &str) -> Result<Vec<i32>, Refused> {
        let found = match self.take(key) {
            None => return Ok(Vec::new()),
            Some(Bson::Array(values)) => values,
            Some(other) => return Err(self.refused(key, &other, "a list of step numbers")),
        };
        found
            .iter()
            .map(|found| {
                integer(found).and_then(|number| i32::try_from(number).ok()).ok_or_else(|| {
                    format!(
                        "{}{key} has {}, which is not a step number",
                        self.nested,
                        described(found)
                    )
                })
            })
            .collect()
    }

    fn attempts(&mut self) -> Result<Vec<proto::Attempt>, Refused> {
        let found = match self.take("attempts") {
            None => return Ok(Vec::new()),
            Some(Bson::Array(values)) => values,
            Some(other) => return Err(self.refused("attempts", &other, "a list")),
        };
        found
            .into_iter()
            .map(|found| match found {
                Bson::Document(document) => {
                    let mut attempt = Fields { document, nested: "attempts." };
                    Ok(proto::Attempt {
                        started_at: attempt.time("started_at")?,
                        completed_at: attempt.time("completed_at")?,
                        error: attempt.error()?,
                        duration_ms: attempt.int64("duration_ms")?,
                    })
                }
                other => Err(self.refused("attempts", &other, "a list of objects")),
            })
            .collect()
    }

    /// Keys that nobody took and that say something.
    fn left_out(self) -> Vec<String> {
        self.document
            .into_iter()
            .filter(|(key, value)| {
                !INTERNAL.contains(&key.as_str()) && !matches!(value, Bson::Null | Bson::Undefined)
            })
            .map(|(key, _)| key)
            .collect()
    }
}

fn texts(key: &str, what: &str, values: Vec<Bson>) -> Result<Vec<String>, Refused> {
    let text = |value| match value {
        Bson::String(text) if !text.is_empty() => Ok(text),
        other => Err(format!("{key} has {}, which is not {what}", described(&other))),
    };
    values.into_iter().map(text).collect()
}

/// A whole number, however it was written.
fn integer(found: &Bson) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match found {
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Int64(number) => Some(*number),
        Bson::Double(number) if number.fract() == 0.0 && number.abs() <= EXACT => {
            Some(*number as i64)
        }
        _ => None,
    }
}

/// What a value is, for refusals: short, whatever its size.
fn described(found: &Bson) -> String {
    match found {
        Bson::String(text) => {
            let short: String = text.chars().take(40).collect();
            let more = if short.len() < text.len() { "…" } else { "" };
            format!("the text {short:?}{more}")
        }
        Bson::Double(number) => format!("the number {number}"),
        Bson::Int32(number) => format!("the number {number}"),
        Bson::Int64(number) => format!("the number {number}"),
        Bson::Boolean(value) => value.to_string(),
        Bson::Null => "null".to_owned(),
        Bson::Array(_) => "a list".to_owned(),
        Bson::Document(_) => "an object".to_owned(),
        Bson::DateTime(_) => "a date".to_owned(),
        Bson::ObjectId(_) => "an ObjectId".to_owned(),
        other => format!("of BSON type {:?}", other.element_type()),
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
