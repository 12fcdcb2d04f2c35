//! From requests to writes. Every bad field is named at once, with size and limit, before anything is looked up. Unary
//! calls and the Ingest stream come through the same functions.

pub use super::check::Check;
use crate::app::Result;
use crate::domain::execution::CreateExecution;
use crate::domain::limits::Limits;
use crate::domain::step::StepFields;
use crate::domain::{ExecutionOp, ExecutionStatus, StepOp, StepRef, StepStatus};
use crate::proto;
use crate::store::Op;

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
            prost::Message::encoded_len(step) - input + request.execution_id.len() + 72
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
            depends_on_keys: check.depends_on_keys(
                &field("depends_on_keys"),
                &step.depends_on_keys,
                &step.depends_on,
            ),
            parent_step_id: check.step_id(&field("parent_step_id"), step.parent_step_id),
            parent_step_key: check.key_instead(
                &field("parent_step_key"),
                step.parent_step_key.as_ref(),
                ("parent_step_id", step.parent_step_id),
            ),
            step_version: step.step_version,
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
        depends_on_keys: check.depends_on_keys(
            "depends_on_keys",
            &request.depends_on_keys,
            &request.depends_on,
        ),
        parent_step_id: check.step_id("parent_step_id", request.parent_step_id),
        parent_step_key: check.key_instead(
            "parent_step_key",
            request.parent_step_key.as_ref(),
            ("parent_step_id", request.parent_step_id),
        ),
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
            depends_on_keys: check.depends_on_keys(
                "depends_on_keys",
                &request.depends_on_keys,
                &request.depends_on,
            ),
            parent_step_id: check.step_id("parent_step_id", request.parent_step_id),
            parent_step_key: check.key_instead(
                "parent_step_key",
                request.parent_step_key.as_ref(),
                ("parent_step_id", request.parent_step_id),
            ),
            started_at: check.time("started_at", request.started_at.as_ref()),
            step_version: request.step_version,
        },
    };
    check.done((request.execution_id, Op::Step { named, op: Box::new(op) }))
}
