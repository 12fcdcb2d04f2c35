//! From requests to writes and queries. Every bad field is named at once, with size and limit, before anything
//! is looked up. Unary calls and the Ingest stream come through the same functions.

use bson::{Bson, Document};
use prost_types::{Duration, Struct, Timestamp, Value};

use super::convert;
use crate::app::{Error, Result, Violations};
use crate::domain::execution::CreateExecution;
use crate::domain::limits::{
    ATTEMPTS_KEPT, COUNT_DEFAULT, COUNT_MOST, FILTER_VALUES, HEARTBEAT_TIMEOUT_MS, Limits,
    NESTING_DEPTH, PAGE_SIZE_DEFAULT,
};
use crate::domain::query::{ExecutionFilter, ExecutionOrder, parse_path};
use crate::domain::step::StepFields;
use crate::domain::{
    Attempt, Digests, Execution, ExecutionOp, ExecutionStatus, Millis, Payload, RunError, Step,
    StepOp, StepRef, StepStatus, value,
};
use crate::proto;
use crate::store::Op;

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

    fn bytes(&mut self, field: &str, size: usize, limit: usize) {
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

    fn new_execution_id(&mut self, id: &str) {
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

    fn object_within(&mut self, field: &str, object: Option<&Struct>, bytes: usize) -> Document {
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

    fn nesting(&mut self, field: &str, stored: &Bson) {
        let depth = value::depth(stored);
        if depth > NESTING_DEPTH {
            self.bad(
                field,
                format!("is nested {depth} levels deep, more than the limit of {NESTING_DEPTH}"),
            );
        }
    }

    fn payload(&mut self, field: &str, sent: Option<&Value>) -> Option<Bson> {
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

    fn error(&mut self, field: &str, error: Option<&proto::Error>) -> Option<RunError> {
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

    fn step_key(&mut self, field: &str, key: Option<&String>) -> Option<String> {
        let key = key?;
        self.required_name(field, key);
        Some(key.clone())
    }

    fn depends_on(&mut self, field: &str, ids: &[i32]) -> Vec<i32> {
        if !self.fits(field, ids.len(), "ids", self.limits.depends_on_ids) {
            return Vec::new();
        }
        if ids.iter().any(|id| *id < 0) {
            self.bad(field, "must not have negative ids");
        }
        ids.to_vec()
    }

    fn named(&mut self, step_id: Option<i32>, step_key: Option<&String>) -> StepRef {
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

    fn step_status(&mut self, field: &str, status: i32) -> Option<StepStatus> {
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

    fn execution_status(&mut self, field: &str, status: i32) -> Option<ExecutionStatus> {
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

    fn duration_ms(&mut self, field: &str, duration: Option<&Duration>) -> Option<i64> {
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
        }
    }
}

/// A write as a request asks for it: the execution, and what to do.
pub type Asked = (String, Op);

pub fn create_execution(
    limits: &Limits,
    request: proto::CreateExecutionRequest,
    new_id: impl FnOnce() -> String,
) -> Result<Asked> {
    let mut check = Check::new(limits);
    if let Some(id) = &request.execution_id {
        check.new_execution_id(id);
    }
    check.required_name("app_name", &request.app_name);
    check.optional_name("sub_app_name", request.sub_app_name.as_ref());
    check.optional_name("user_id", request.user_id.as_ref());
    if let Some(parent) = &request.parent_execution_id {
        check.id_in("parent_execution_id", parent);
    }
    if let Some(version) = &request.configuration_version {
        check.required_name("configuration_version", version);
    }
    let create = CreateExecution {
        metadata: check.object("metadata", request.metadata.as_ref()),
        started_at: check.time("started_at", request.started_at.as_ref()),
        heartbeat_timeout_ms: check
            .duration_ms("heartbeat_timeout", request.heartbeat_timeout.as_ref()),
        app_id: request.app_id,
        app_name: request.app_name,
        sub_app_id: request.sub_app_id,
        sub_app_name: request.sub_app_name,
        user_id: request.user_id,
        parent_execution_id: request.parent_execution_id,
        configuration_version: request.configuration_version,
    };
    check.done(())?;
    let id = request.execution_id.unwrap_or_else(new_id);
    Ok((id, Op::Execution(ExecutionOp::Create(Box::new(create)))))
}

impl Check<'_> {
    /// Chosen by the client.
    fn update_sequence(&mut self, sent: Option<i64>) -> Option<i64> {
        if sent.is_some_and(|sequence| sequence <= 0) {
            self.bad("update_sequence", "must be greater than 0");
        }
        sent
    }
}

pub fn update_execution(limits: &Limits, request: proto::UpdateExecutionRequest) -> Result<Asked> {
    let mut check = Check::new(limits);
    check.execution_id(&request.execution_id);
    let op = ExecutionOp::Update {
        metadata: check.object("metadata", request.metadata.as_ref()),
        pinned: request.pinned,
        expected_revision: request.expected_revision,
        update_sequence: check.update_sequence(request.update_sequence),
    };
    check.done((request.execution_id, Op::Execution(op)))
}

pub fn finish_execution(limits: &Limits, request: proto::FinishExecutionRequest) -> Result<Asked> {
    let mut check = Check::new(limits);
    check.execution_id(&request.execution_id);
    let status = check.execution_status("status", request.status);
    if status == Some(ExecutionStatus::Running) {
        check.bad("status", "must be COMPLETED, FAILED or CANCELLED");
    }
    let op = ExecutionOp::Finish {
        status: status.unwrap_or(ExecutionStatus::Completed),
        error: check.error("error", request.error.as_ref()),
        completed_at: check.time("completed_at", request.completed_at.as_ref()),
        metadata: check.object("metadata", request.metadata.as_ref()),
    };
    check.done((request.execution_id, Op::Execution(op)))
}

pub fn heartbeat(limits: &Limits, request: proto::HeartbeatRequest) -> Result<Asked> {
    let mut check = Check::new(limits);
    check.execution_id(&request.execution_id);
    check.done((request.execution_id, Op::Execution(ExecutionOp::Heartbeat)))
}

pub fn request_cancel(limits: &Limits, request: proto::RequestCancelRequest) -> Result<Asked> {
    let mut check = Check::new(limits);
    check.execution_id(&request.execution_id);
    check.message("reason", &request.reason);
    let op = ExecutionOp::RequestCancel { reason: request.reason };
    check.done((request.execution_id, Op::Execution(op)))
}

pub fn delete_execution(limits: &Limits, request: &proto::DeleteExecutionRequest) -> Result<()> {
    let mut check = Check::new(limits);
    check.execution_id(&request.execution_id);
    check.done(())
}

/// What PlanSteps asks for.
pub enum PlanAsked {
    /// These steps.
    Steps(Asked),
    /// Those of a version of the execution's configuration.
    Version { execution_id: String, version: String },
}

pub fn plan(limits: &Limits, mut request: proto::PlanStepsRequest) -> Result<PlanAsked> {
    let Some(version) = request.configuration_version.take() else {
        return plan_steps(limits, request).map(PlanAsked::Steps);
    };
    let mut check = Check::new(limits);
    check.execution_id(&request.execution_id);
    check.required_name("configuration_version", &version);
    if !request.steps.is_empty() {
        check.bad("steps", "must be empty when configuration_version supplies the steps");
    }
    check.done(PlanAsked::Version { execution_id: request.execution_id, version })
}

pub fn plan_steps(limits: &Limits, request: proto::PlanStepsRequest) -> Result<Asked> {
    let mut check = Check::new(limits);
    check.execution_id(&request.execution_id);
    if request.steps.is_empty() {
        check.bad("steps", "must have at least one step unless configuration_version is given");
    }
    if !check.fits("steps", request.steps.len(), "steps", limits.steps_per_execution) {
        return check.done((request.execution_id, Op::Plan(Vec::new())));
    }
    // The answer has all steps without their inputs, and has to stay a readable reply.
    let reply_bytes = request
        .steps
        .iter()
        .map(|step| {
            let input = step.input.as_ref().map_or(0, prost::Message::encoded_len);
            prost::Message::encoded_len(step) - input + 64
        })
        .sum();
    let reply_limit = limits.page_bytes - limits.page_bytes / 8;
    check.bytes("steps without input", reply_bytes, reply_limit);
    let mut ids = std::collections::HashSet::new();
    let mut keys = std::collections::HashSet::new();
    let mut steps = Vec::with_capacity(request.steps.len());
    for (index, step) in request.steps.into_iter().enumerate() {
        let field = |name: &str| format!("steps[{index}].{name}");
        match step.step_id {
            None => check.bad(&field("step_id"), "is required"),
            Some(id) if !ids.insert(id) => {
                check.bad(
                    &field("step_id"),
                    format!("is {id}, which another step of this plan has too"),
                );
            }
            Some(_) => {}
        }
        if let Some(key) = &step.step_key
            && !keys.insert(key.clone())
        {
            check.bad(&field("step_key"), "is also that of another step of this plan");
        }
        check.required_name(&field("step_name"), &step.step_name);
        check.optional_name(&field("step_version"), step.step_version.as_ref());
        let named = StepRef {
            step_id: check.step_id(&field("step_id"), step.step_id),
            step_key: check.step_key(&field("step_key"), step.step_key.as_ref()),
        };
        let fields = StepFields {
            input: check.payload(&field("input"), step.input.as_ref()),
            metadata: check.object(&field("metadata"), step.metadata.as_ref()),
            depends_on: check.depends_on(&field("depends_on"), &step.depends_on),
            step_version: step.step_version,
            parent_step_id: None,
            started_at: None,
        };
        steps.push((named, StepOp::Plan { step_name: step.step_name, fields }));
    }
    check.done((request.execution_id, Op::Plan(steps)))
}

pub fn start_step(limits: &Limits, request: proto::StartStepRequest) -> Result<Asked> {
    let mut check = Check::new(limits);
    check.execution_id(&request.execution_id);
    let named = check.named(request.step_id, request.step_key.as_ref());
    check.required_name("step_name", &request.step_name);
    check.optional_name("step_version", request.step_version.as_ref());
    if request.attempt.is_some_and(|attempt| attempt < 1) {
        check.bad("attempt", "must be at least 1");
    }
    let fields = StepFields {
        input: check.payload("input", request.input.as_ref()),
        metadata: check.object("metadata", request.metadata.as_ref()),
        depends_on: check.depends_on("depends_on", &request.depends_on),
        parent_step_id: check.step_id("parent_step_id", request.parent_step_id),
        started_at: check.time("started_at", request.started_at.as_ref()),
        step_version: request.step_version,
    };
    let op = StepOp::Start { step_name: request.step_name, fields, attempt: request.attempt };
    check.done((request.execution_id, Op::Step { named, op: Box::new(op) }))
}

pub fn update_step(limits: &Limits, request: proto::UpdateStepRequest) -> Result<Asked> {
    let mut check = Check::new(limits);
    check.execution_id(&request.execution_id);
    let named = check.existing_step(request.step_id, request.step_key.as_ref());
    // NaN is in no range.
    if request.progress.is_some_and(|progress| !(0.0..=1.0).contains(&progress)) {
        check.bad("progress", "must be between 0 and 1");
    }
    if let Some(message) = &request.progress_message {
        check.message("progress_message", message);
    }
    let op = StepOp::Update {
        metadata: check.object("metadata", request.metadata.as_ref()),
        output: check.payload("output", request.output.as_ref()),
        progress: request.progress,
        progress_message: request.progress_message,
        update_sequence: check.update_sequence(request.update_sequence),
    };
    check.done((request.execution_id, Op::Step { named, op: Box::new(op) }))
}

pub fn finish_step(limits: &Limits, request: proto::FinishStepRequest) -> Result<Asked> {
    let mut check = Check::new(limits);
    check.execution_id(&request.execution_id);
    let named = check.existing_step(request.step_id, request.step_key.as_ref());
    let status = check.step_status("status", request.status);
    if status.is_some_and(|status| !status.is_terminal()) {
        check.bad("status", "must be COMPLETED, FAILED or SKIPPED");
    }
    let step_name = request.step_name.filter(|name| !name.is_empty());
    check.optional_name("step_name", step_name.as_ref());
    check.optional_name("step_version", request.step_version.as_ref());
    let op = StepOp::Finish {
        status: status.unwrap_or(StepStatus::Completed),
        output: check.payload("output", request.output.as_ref()),
        error: check.error("error", request.error.as_ref()),
        completed_at: check.time("completed_at", request.completed_at.as_ref()),
        step_name,
        fields: StepFields {
            input: check.payload("input", request.input.as_ref()),
            metadata: check.object("metadata", request.metadata.as_ref()),
            depends_on: check.depends_on("depends_on", &request.depends_on),
            parent_step_id: check.step_id("parent_step_id", request.parent_step_id),
            started_at: check.time("started_at", request.started_at.as_ref()),
            step_version: request.step_version,
        },
    };
    check.done((request.execution_id, Op::Step { named, op: Box::new(op) }))
}

pub fn put_execution(limits: &Limits, record: proto::Execution) -> Result<Asked> {
    let mut check = Check::new(limits);
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
        digests: Digests::default(),
        deleted_at: None,
    };
    let op = ExecutionOp::Put(Box::new(execution));
    check.done((record.execution_id, Op::Execution(op)))
}

pub fn put_step(limits: &Limits, record: proto::Step) -> Result<Asked> {
    let mut check = Check::new(limits);
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
        parent_step_id: check.step_id("parent_step_id", record.parent_step_id),
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
        digests: Digests::default(),
    };
    let op = Op::Step { named, op: Box::new(StepOp::Put(Box::new(step))) };
    check.done((record.execution_id, op))
}
