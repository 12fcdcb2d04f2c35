//! `stepwell executions show ID`.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;

use crate::cli::connection::{Connection, call};
use crate::cli::exit::{Exit, Result};
use crate::cli::output::Output;
use crate::cli::table::{Column, Content};
use crate::cli::{json, table, text};
use crate::proto;

/// Steps asked for at a time.
const PAGE: i32 = 500;
/// Steps with input and output asked for side by side.
const PARALLEL: usize = 8;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which execution.
    #[arg(value_name = "ID")]
    execution_id: String,
    /// Show its steps; this is the default.
    #[arg(long, overrides_with = "no_steps")]
    steps: bool,
    /// Do not show its steps.
    #[arg(long, overrides_with = "steps")]
    no_steps: bool,
    /// Also show the input and output of each step.
    #[arg(long, conflicts_with = "no_steps")]
    payloads: bool,
}

pub async fn run(args: &Args, connection: &Connection, output: &Output) -> Result<Exit> {
    let request = proto::GetExecutionRequest {
        execution_id: args.execution_id.clone(),
        view: proto::ExecutionView::Basic.into(),
    };
    let answer = connection.executions().get_execution(call(request)).await?.into_inner();
    let execution = answer.execution.unwrap_or_default();
    let mut steps = Vec::new();
    if !args.no_steps {
        steps = all_steps(args, connection).await?;
        if args.payloads {
            steps = whole_steps(steps, connection).await?;
        }
    }
    if output.is_json() {
        let mut document = json!({ "execution": json::execution(&execution) });
        if !args.no_steps {
            document["steps"] = steps.iter().map(|step| json::step(step, args.payloads)).collect();
        }
        output.json(&document)?;
        return Ok(Exit::Done);
    }
    for line in table::record(output, fields(&execution)) {
        output.line(&line)?;
    }
    if args.no_steps {
        return Ok(Exit::Done);
    }
    output.line("")?;
    if steps.is_empty() {
        output.line("no steps")?;
        return Ok(Exit::Done);
    }
    for line in table::render(output, &COLUMNS, steps.iter().map(row).collect()) {
        output.line(&line)?;
    }
    for step in steps.iter().filter(|step| step.error.is_some()) {
        if let Some(error) = &step.error {
            output.line("")?;
            output.line(&format!("error of step {}:", text::step_label(step)))?;
            output.line(&indented(&full_error(error)))?;
        }
    }
    if args.payloads {
        for step in &steps {
            output.line("")?;
            output.line(&format!("step {}:", text::step_label(step)))?;
            for (name, value) in [("input", &step.input), ("output", &step.output)] {
                let pretty = format!("{:#}", json::value(value.as_ref()));
                output.line(&indented(&format!("{name}: {}", text::lines(&pretty))))?;
            }
        }
    }
    Ok(Exit::Done)
}

async fn all_steps(args: &Args, connection: &Connection) -> Result<Vec<proto::Step>> {
    let mut client = connection.steps();
    let mut request = proto::ListStepsRequest {
        execution_id: args.execution_id.clone(),
        page_size: PAGE,
        include_payloads: args.payloads,
        ..Default::default()
    };
    let mut steps = Vec::new();
    loop {
        let page = client.list_steps(call(request.clone())).await?.into_inner();
        steps.extend(page.steps);
        if page.next_page_token.is_empty() {
            return Ok(steps);
        }
        request.page_token = page.next_page_token;
    }
}

/// Lists leave large fields out, so steps without them are asked for again.
async fn whole_steps(steps: Vec<proto::Step>, connection: &Connection) -> Result<Vec<proto::Step>> {
    let found: Vec<proto::Step> = stream::iter(steps)
        .map(|step| {
            let mut client = connection.steps();
            async move {
                if step.omitted_fields.is_empty() {
                    return Ok(step);
                }
                let request = proto::GetStepRequest {
                    execution_id: step.execution_id.clone(),
                    step_id: step.step_id,
                    step_key: step.step_key.clone().filter(|_| step.step_id.is_none()),
                    max_payload_bytes: None,
                };
                let answer = client.get_step(call(request)).await?.into_inner();
                Ok::<_, tonic::Status>(answer.step.unwrap_or(step))
            }
        })
        .buffered(PARALLEL)
        .try_collect()
        .await?;
    Ok(found)
}

fn fields(execution: &proto::Execution) -> Vec<(&'static str, Content)> {
    let number = |number: Option<i32>| number.map(|number| number.to_string());
    let time = |at: &Option<prost_types::Timestamp>| at.as_ref().map(text::exact_time);
    let metadata = execution.metadata.as_ref().filter(|metadata| !metadata.fields.is_empty());
    let omitted = Some(execution.omitted_fields.join(", ")).filter(|names| !names.is_empty());
    let optional: [(&'static str, Option<String>); 20] = [
        ("app id", number(execution.app_id)),
        ("part", execution.sub_app_name.clone()),
        ("part id", number(execution.sub_app_id)),
        ("user", execution.user_id.clone()),
        ("started", time(&execution.started_at)),
        ("completed", time(&execution.completed_at)),
        ("duration", execution.duration_ms.map(|ms| text::duration_ms(Some(ms)))),
        ("error", execution.error.as_ref().map(full_error)),
        ("cancel requested", time(&execution.cancel_requested_at)),
        ("cancel reason", execution.cancel_reason.clone()),
        ("heartbeat timeout", execution.heartbeat_timeout_ms.map(|ms| text::duration_ms(Some(ms)))),
        ("last heartbeat", time(&execution.last_heartbeat_at)),
        ("parent", execution.parent_execution_id.clone()),
        ("configuration", execution.configuration_version.clone()),
        ("pinned", execution.pinned.map(|pinned| if pinned { "yes" } else { "no" }.to_owned())),
        ("created", time(&execution.created_at)),
        ("updated", time(&execution.updated_at)),
        ("revision", Some(execution.revision.to_string())),
        ("left out for its size", omitted),
        ("metadata", metadata.map(|metadata| format!("{:#}", json::object(Some(metadata))))),
    ];
    let mut fields: Vec<(&'static str, Content)> = vec![
        ("execution", execution.execution_id.clone().into()),
        ("status", table::status(text::execution_status(execution.status))),
        ("app", execution.app_name.clone().into()),
    ];
    fields.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?.into()))));
    fields
}

const COLUMNS: [Column; 9] = [
    Column::whole("STEP").right(),
    Column::cut("KEY", 6).spare(5),
    Column::cut("NAME", 12),
    Column::whole("STATUS"),
    Column::whole("STARTED (UTC)").spare(3),
    Column::whole("DURATION").right().spare(1),
    Column::whole("RETRIES").right().spare(4),
    Column::cut("AFTER", 5).spare(7),
    Column::cut("PROGRESS / ERROR", 16).spare(2),
];

fn row(step: &proto::Step) -> Vec<Content> {
    let numbers = step.depends_on.iter().map(i32::to_string);
    let after: Vec<String> = numbers.chain(step.depends_on_keys.iter().cloned()).collect();
    vec![
        step.step_id.map_or_else(|| text::NOTHING.to_owned(), |id| id.to_string()).into(),
        step.step_key.clone().unwrap_or_default().into(),
        step.step_name.clone().into(),
        table::status(text::step_status(step.status)),
        text::time(step.started_at.as_ref()).into(),
        text::duration_ms(step.duration_ms).into(),
        if step.retry_count == 0 { String::new() } else { step.retry_count.to_string() }.into(),
        after.join(" ").into(),
        remark(step).into(),
    ]
}

/// The error of a step that has one, else how far it is. One that has completed is not at the 67 % that were said last.
fn remark(step: &proto::Step) -> String {
    if step.error.is_some() {
        return text::error(step.error.as_ref());
    }
    let message = step.progress_message.as_deref().unwrap_or_default();
    match step.progress.filter(|_| step.status() != proto::StepStatus::Completed) {
        Some(progress) => format!("{:.0} % {message}", progress * 100.0),
        None => message.to_owned(),
    }
}

fn full_error(error: &proto::Error) -> String {
    let message = text::lines(&error.message);
    let mut said = match error.code.as_str() {
        "" => message,
        code => format!("{}: {message}", text::one_line(code)),
    };
    if !error.stack_trace.is_empty() {
        said = format!("{said}\n{}", text::lines(&error.stack_trace));
    }
    if let Some(details) = error.details.as_ref().filter(|details| !details.fields.is_empty()) {
        said = format!("{said}\n{:#}", json::object(Some(details)));
    }
    said
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
