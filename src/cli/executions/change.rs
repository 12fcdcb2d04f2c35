//! `stepwell executions cancel` and `delete`.

use serde_json::json;

use crate::cli::connection::{self, Connection, call};
use crate::cli::exit::{Exit, Failure, Result};
use crate::cli::output::{Output, message};
use crate::cli::{json, text};
use crate::proto;

#[derive(Debug, clap::Args)]
pub struct CancelArgs {
    /// Which execution.
    #[arg(value_name = "ID")]
    execution_id: String,
    /// The reason, shown to the app and stored in the record.
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
}

#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// Which executions.
    #[arg(value_name = "ID", required = true)]
    execution_ids: Vec<String>,
    /// Delete running ones too.
    #[arg(long)]
    force: bool,
}

pub async fn cancel(args: CancelArgs, connection: &Connection, output: &Output) -> Result<Exit> {
    let request =
        proto::RequestCancelRequest { execution_id: args.execution_id, reason: args.reason };
    let answer = connection.executions().request_cancel(call(request)).await?.into_inner();
    let execution = answer.execution.unwrap_or_default();
    if output.is_json() {
        output.json(&json::execution(&execution))?;
    } else {
        let reason = execution.cancel_reason.as_deref().unwrap_or_default();
        let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        output.line(&text::one_line(&format!(
            "asked {} to stop{reason}; its app decides when to end it",
            execution.execution_id
        )))?;
    }
    Ok(Exit::Done)
}

/// Each is tried, whatever became of those before; only a server that is not there ends it early.
pub async fn delete(args: DeleteArgs, connection: &Connection, output: &Output) -> Result<Exit> {
    let mut client = connection.executions();
    let mut refused = false;
    for (position, execution_id) in args.execution_ids.into_iter().enumerate() {
        let request =
            proto::DeleteExecutionRequest { execution_id: execution_id.clone(), force: args.force };
        match client.delete_execution(call(request)).await {
            Ok(_) if output.is_json() => {
                output.json(&json!({ "execution_id": execution_id, "deleted": true }))?;
            }
            Ok(_) => output.line(&text::one_line(&format!("deleted {execution_id}")))?,
            Err(status) if status.code() == tonic::Code::Unavailable => {
                let failure = Failure::from(status);
                // Some are gone already, so it has started.
                return Err(if position == 0 {
                    failure
                } else {
                    Failure::Refused(failure.to_string())
                });
            }
            Err(status) => {
                refused = true;
                let said = connection::describe(&status);
                if output.is_json() {
                    output.json(
                        &json!({ "execution_id": execution_id, "deleted": false, "error": said }),
                    )?;
                }
                message(&format!("error: {}: {said}", text::one_line(&execution_id)));
            }
        }
    }
    Ok(Exit::refused_if(refused))
}
