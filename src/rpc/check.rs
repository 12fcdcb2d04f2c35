//! The checks of what requests hold: every bad field is named at once, with size and limit, before anything is looked up.

use bson::{Bson, Document};
use prost_types::{Duration, Struct, Timestamp, Value};

use super::convert;
use crate::app::{Error, Result, Violations};
use crate::domain::access::AppScope;
use crate::domain::limits::{
    COUNT_DEFAULT, COUNT_MOST, FILTER_VALUES, HEARTBEAT_TIMEOUT_MS, Limits, NESTING_DEPTH,
    PAGE_SIZE_DEFAULT,
};
use crate::domain::query::{ExecutionFilter, ExecutionOrder, parse_path};
use crate::domain::{ExecutionStatus, Millis, RunError, StepRef, StepStatus, value};
use crate::proto;

/// Longest id of an execution that another program stored and that can still be asked for.
const FOREIGN_ID_CHARACTERS: usize = 4096;

/// Collects what is wrong with a request.
pub struct Check<'a> {
    limits: &'a Limits,
    violations: Violations,
}

impl<'a> Check<'a> {
    pub fn new(limits: &'a Limits) -> Self {
        Check { limits, violations: Violations::default() }
    }

    /// The converted request, if nothing was wrong.
    pub fn done<T>(self, value: T) -> Result<T> {
        if self.violations.is_empty() { Ok(value) } else { Err(Error::Invalid(self.violations)) }
    }

    pub fn bad(&mut self, field: &str, description: impl Into<String>) {
        self.violations.add(field, description);
    }

    pub(super) fn limits(&self) -> &'a Limits {
        self.limits
    }

    /// Whether a text has 1 character to as many as a name may have.
    pub(super) fn is_name(&self, text: &str) -> bool {
        let limit = self.limits.name_characters;
        !text.is_empty() && (text.len() <= limit || text.chars().count() <= limit)
    }

    pub(super) fn too_large(&mut self, field: &str, size: usize, unit: &str, limit: usize) {
        self.bad(field, format!("has {size} {unit}, more than the limit of {limit}"));
    }

    /// Whether a repeated field has no more elements than it may, which is looked at before any of them is.
    #[must_use]
    pub(super) fn fits(&mut self, field: &str, count: usize, unit: &str, limit: usize) -> bool {
        if count > limit {
            self.too_large(field, count, unit, limit);
        }
        count <= limit
    }

    pub(super) fn characters(&mut self, field: &str, text: &str, limit: usize) {
        // Bytes are an upper bound of characters, so counting is rarely needed.
        if text.len() > limit {
            let size = text.chars().count();
            if size > limit {
                self.too_large(field, size, "characters", limit);
            }
        }
    }

    pub(super) fn bytes(&mut self, field: &str, size: usize, limit: usize) {
        if size > limit {
            self.too_large(field, size, "bytes", limit);
        }
    }

    /// An id that names an existing execution: other programs choose theirs as they like.
    pub fn execution_id(&mut self, id: &str) {
        if id.is_empty() {
            self.bad("execution_id", "is required");
        }
        self.characters("execution_id", id, FOREIGN_ID_CHARACTERS);
    }

    pub(super) fn id_in(&mut self, field: &str, id: &str) {
        if id.is_empty() {
            self.bad(field, "is required");
        }
        self.characters(field, id, self.limits.execution_id_characters);
    }

    pub(super) fn new_execution_id(&mut self, id: &str) {
        self.id_in("execution_id", id);
        if !id.bytes().all(|byte| (0x21..=0x7e).contains(&byte)) {
            self.bad("execution_id", "may contain only printable ASCII characters, without spaces");
        }
    }

    pub(super) fn name(&mut self, field: &str, text: &str) {
        self.characters(field, text, self.limits.name_characters);
    }

    pub fn required_name(&mut self, field: &str, text: &str) {
        if text.is_empty() {
            self.bad(field, "is required");
        }
        self.name(field, text);
    }

    pub fn optional_name(&mut self, field: &str, text: Option<&String>) {
        if let Some(text) = text {
            self.name(field, text);
        }
    }

    pub(super) fn message(&mut self, field: &str, text: &str) {
        self.characters(field, text, self.limits.message_characters);
    }

    pub fn time(&mut self, field: &str, at: Option<&Timestamp>) -> Option<Millis> {
        let at = at?;
        let millis = convert::millis(at);
        if millis.is_none() {
            self.bad(field, "must be a valid time in the years 1 to 9999");
        }
        millis
    }

    pub(super) fn object(&mut self, field: &str, object: Option<&Struct>) -> Document {
        self.object_within(field, object, self.limits.metadata_bytes)
    }

    /// An object as large as a payload.
    pub fn great_object(&mut self, field: &str, object: Option<&Struct>) -> Document {
        self.object_within(field, object, self.limits.payload_bytes)
    }

    pub(super) fn object_within(
        &mut self,
        field: &str,
        object: Option<&Struct>,
        bytes: usize,
    ) -> Document {
        let Some(object) = object else { return Document::new() };
        let stored = match convert::stored_object(object) {
            Ok(stored) => Bson::Document(stored),
            Err(description) => {
                self.bad(field, description);
                return Document::new();
            }
        };
        self.nesting(field, &stored);
        self.bytes(field, value::size(&stored), bytes);
        match stored {
            Bson::Document(document) => document,
            _ => Document::new(),
        }
    }

    pub(super) fn nesting(&mut self, field: &str, stored: &Bson) {
        let depth = value::depth(stored);
        if depth > NESTING_DEPTH {
            self.bad(
                field,
                format!("is nested {depth} levels deep, more than the limit of {NESTING_DEPTH}"),
            );
        }
    }

    pub(super) fn payload(&mut self, field: &str, sent: Option<&Value>) -> Option<Bson> {
        let stored = match convert::stored(sent?) {
            Ok(stored) => stored,
            Err(description) => {
                self.bad(field, description);
                return None;
            }
        };
        self.nesting(field, &stored);
        self.bytes(field, value::size(&stored), self.limits.payload_bytes);
        Some(stored)
    }

    pub(super) fn error(&mut self, field: &str, error: Option<&proto::Error>) -> Option<RunError> {
        let error = error?;
        self.bytes(
            &format!("{field}.message"),
            error.message.len(),
            self.limits.error_message_bytes,
        );
        self.name(&format!("{field}.code"), &error.code);
        let limit = self.limits.stack_trace_bytes;
        self.bytes(&format!("{field}.stack_trace"), error.stack_trace.len(), limit);
        Some(RunError {
            message: error.message.clone(),
            code: error.code.clone(),
            stack_trace: error.stack_trace.clone(),
            details: self.object(&format!("{field}.details"), error.details.as_ref()),
        })
    }

    pub(super) fn step_id(&mut self, field: &str, step_id: Option<i32>) -> Option<i32> {
        if step_id.is_some_and(|id| id < 0) {
            self.bad(field, "must not be negative");
        }
        step_id
    }

    pub(super) fn step_key(&mut self, field: &str, key: Option<&String>) -> Option<String> {
        let key = key?;
        self.required_name(field, key);
        Some(key.clone())
    }

    pub(super) fn depends_on(&mut self, field: &str, ids: &[i32]) -> Vec<i32> {
        if !self.fits(field, ids.len(), "ids", self.limits.depends_on_ids) {
            return Vec::new();
        }
        if ids.iter().any(|id| *id < 0) {
            self.bad(field, "must not have negative ids");
        }
        ids.to_vec()
    }

    /// The keys of steps that others wait for, which may be given instead of their numbers.
    pub(super) fn depends_on_keys(
        &mut self,
        field: &str,
        keys: &[String],
        ids: &[i32],
    ) -> Vec<String> {
        if !self.fits(field, keys.len(), "keys", self.limits.depends_on_ids) {
            return Vec::new();
        }
        if !keys.is_empty() && !ids.is_empty() {
            self.bad(field, "cannot be combined with depends_on");
        }
        if keys.iter().any(|key| !self.is_name(key)) {
            let limit = self.limits.name_characters;
            self.bad(field, format!("must have 1 to {limit} characters each"));
        }
        keys.to_vec()
    }

    /// The key of a step, which may be given instead of its number.
    pub(super) fn key_instead(
        &mut self,
        field: &str,
        key: Option<&String>,
        (number_field, number): (&str, Option<i32>),
    ) -> Option<String> {
        if key.is_some() && number.is_some() {
            self.bad(field, format!("cannot be combined with {number_field}"));
        }
        self.step_key(field, key)
    }

    /// The step that is asked about, where one is: by number or by key.
    pub fn of_step(&mut self, step_id: Option<i32>, step_key: Option<&String>) -> Option<StepRef> {
        let step_id = self.step_id("step_id", step_id);
        let step_key = self.key_instead("step_key", step_key, ("step_id", step_id));
        (step_id.is_some() || step_key.is_some()).then_some(StepRef { step_id, step_key })
    }

    /// Refuses a record that was read with fields left out: what is missing would be lost.
    pub(super) fn whole(&mut self, field: &str, omitted_fields: &[String]) {
        if let Some(first) = omitted_fields.first() {
            let first: String = first.chars().take(64).collect();
            self.bad(field, format!("must be empty: the record lacks {first:?}"));
        }
    }

    pub(super) fn named(&mut self, step_id: Option<i32>, step_key: Option<&String>) -> StepRef {
        StepRef {
            step_id: self.step_id("step_id", step_id),
            step_key: self.step_key("step_key", step_key),
        }
    }

    /// Names a step that must exist.
    pub fn existing_step(&mut self, step_id: Option<i32>, step_key: Option<&String>) -> StepRef {
        if step_id.is_none() && step_key.is_none() {
            self.bad("step_id", "or step_key is required");
        }
        self.named(step_id, step_key)
    }

    /// Records a page, from what the request says.
    pub fn page_size(&mut self, page_size: i32) -> usize {
        match usize::try_from(page_size) {
            Ok(0) => PAGE_SIZE_DEFAULT.min(self.limits.page_records),
            Ok(size) => {
                if size > self.limits.page_records {
                    let limit = self.limits.page_records;
                    self.bad("page_size", format!("is {size}, more than the limit of {limit}"));
                }
                size
            }
            Err(_) => {
                self.bad("page_size", "must not be negative");
                1
            }
        }
    }

    /// Bytes of a payload that are sent at most. `None`: all.
    pub fn payload_bytes(&mut self, sent: Option<i64>) -> Option<usize> {
        let sent = sent?;
        if sent < 0 {
            self.bad("max_payload_bytes", format!("is {sent}, but must not be negative"));
        }
        Some(usize::try_from(sent).unwrap_or_default())
    }

    pub fn count_limit(&mut self, limit: i32) -> usize {
        match usize::try_from(limit) {
            Ok(0) => COUNT_DEFAULT,
            Ok(limit) => {
                if limit > COUNT_MOST {
                    self.bad("limit", format!("is {limit}, more than the limit of {COUNT_MOST}"));
                }
                limit
            }
            Err(_) => {
                self.bad("limit", "must not be negative");
                1
            }
        }
    }

    pub fn order(&mut self, order: i32) -> ExecutionOrder {
        match proto::ExecutionOrder::try_from(order) {
            Ok(proto::ExecutionOrder::Unspecified | proto::ExecutionOrder::StartedAtDesc) => {
                ExecutionOrder::StartedAtDesc
            }
            Ok(proto::ExecutionOrder::StartedAtAsc) => ExecutionOrder::StartedAtAsc,
            Err(_) => {
                self.bad("order", "is not a known order");
                ExecutionOrder::default()
            }
        }
    }

    pub fn step_statuses(&mut self, statuses: &[i32]) -> Vec<StepStatus> {
        let few = self.few("statuses", statuses).iter();
        few.filter_map(|status| self.step_status("statuses", *status)).collect()
    }

    pub(super) fn step_status(&mut self, field: &str, status: i32) -> Option<StepStatus> {
        let known = match proto::StepStatus::try_from(status) {
            Ok(proto::StepStatus::Pending) => Some(StepStatus::Pending),
            Ok(proto::StepStatus::Running) => Some(StepStatus::Running),
            Ok(proto::StepStatus::Completed) => Some(StepStatus::Completed),
            Ok(proto::StepStatus::Failed) => Some(StepStatus::Failed),
            Ok(proto::StepStatus::Skipped) => Some(StepStatus::Skipped),
            Ok(proto::StepStatus::Unspecified) | Err(_) => None,
        };
        if known.is_none() {
            self.bad(field, "is required and must be a known status");
        }
        known
    }

    pub(super) fn execution_status(&mut self, field: &str, status: i32) -> Option<ExecutionStatus> {
        let known = match proto::ExecutionStatus::try_from(status) {
            Ok(proto::ExecutionStatus::Running) => Some(ExecutionStatus::Running),
            Ok(proto::ExecutionStatus::Completed) => Some(ExecutionStatus::Completed),
            Ok(proto::ExecutionStatus::Failed) => Some(ExecutionStatus::Failed),
            Ok(proto::ExecutionStatus::Cancelled) => Some(ExecutionStatus::Cancelled),
            Ok(proto::ExecutionStatus::Unspecified) | Err(_) => None,
        };
        if known.is_none() {
            self.bad(field, "is required and must be a known status");
        }
        known
    }

    pub(super) fn duration_ms(&mut self, field: &str, duration: Option<&Duration>) -> Option<i64> {
        let duration = duration?;
        let millis = duration
            .seconds
            .checked_mul(1000)
            .and_then(|millis| millis.checked_add(i64::from(duration.nanos) / 1_000_000));
        match millis {
            Some(millis) if HEARTBEAT_TIMEOUT_MS.contains(&millis) => Some(millis),
            _ => {
                self.bad(
                    field,
                    format!(
                        "must be between {} ms and {} ms",
                        HEARTBEAT_TIMEOUT_MS.start(),
                        HEARTBEAT_TIMEOUT_MS.end()
                    ),
                );
                None
            }
        }
    }

    /// The values of a list of a filter, or none of them where there are too many.
    pub(super) fn few<'v, T>(&mut self, field: &str, values: &'v [T]) -> &'v [T] {
        if self.fits(field, values.len(), "values", FILTER_VALUES) { values } else { &[] }
    }

    pub fn filter(&mut self, filter: Option<&proto::ExecutionFilter>) -> ExecutionFilter {
        let Some(filter) = filter else { return ExecutionFilter::default() };
        self.few("filter.app_ids", &filter.app_ids);
        self.few("filter.sub_app_ids", &filter.sub_app_ids);
        for name in self.few("filter.app_names", &filter.app_names) {
            self.name("filter.app_names", name);
        }
        for id in self.few("filter.user_ids", &filter.user_ids) {
            self.name("filter.user_ids", id);
        }
        let statuses = self
            .few("filter.statuses", &filter.statuses)
            .iter()
            .filter_map(|status| self.execution_status("filter.statuses", *status))
            .collect();
        let started_at_from = self.time("filter.started_at_from", filter.started_at_from.as_ref());
        let started_at_until =
            self.time("filter.started_at_until", filter.started_at_until.as_ref());
        let fits = self.fits("filter.metadata", filter.metadata.len(), "values", FILTER_VALUES);
        let mut metadata: Vec<(Vec<String>, Bson)> = Vec::new();
        for (path, wanted) in filter.metadata.iter().filter(|_| fits) {
            let field = "filter.metadata";
            self.characters(field, path, self.limits.message_characters);
            let keys = parse_path(path);
            if keys.is_none() {
                self.bad(
                    field,
                    format!("has the path {path:?}, which is empty or ends in a single \\"),
                );
            }
            let wanted = self.payload(field, Some(wanted));
            if let (Some(keys), Some(wanted)) = (keys, wanted) {
                metadata.push((keys, wanted));
            }
        }
        // The order of a map is chance; sorted, equal filters are equal.
        metadata.sort_by(|a, b| a.0.cmp(&b.0));
        ExecutionFilter {
            app_ids: filter.app_ids.clone(),
            app_names: filter.app_names.clone(),
            sub_app_ids: filter.sub_app_ids.clone(),
            user_ids: filter.user_ids.clone(),
            statuses,
            started_at_from,
            started_at_until,
            min_duration_ms: filter.min_duration_ms,
            metadata,
            // Who asks is none of the request's business.
            scope: AppScope::all(),
        }
    }

    /// Chosen by the client.
    pub(super) fn update_sequence(&mut self, sent: Option<i64>) -> Option<i64> {
        if sent.is_some_and(|sequence| sequence <= 0) {
            self.bad("update_sequence", "must be greater than 0");
        }
        sent
    }
}
