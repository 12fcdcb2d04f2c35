//! `stepwell artifacts …`: bring files to an execution, fetch them, list and delete them.

pub mod get;
pub mod progress;
mod put;

pub use put::{Broken, upload};

use clap::Subcommand;
use serde_json::json;

use super::connection::{self, Connection, call};
use super::exit::{Exit, Failure, Result};
use super::output::{Output, message};
use super::table::{Column, Content};
use super::{json, table, text};
use crate::proto;

/// Records asked for at a time.
const PAGE: usize = 500;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Upload files to an execution. An interrupted upload resumes where it stopped, also in another run of the
    /// command.
    Put(put::Args),
    /// Download the bytes of an artifact, or a part of them.
    Get(get::Args),
    /// List the artifacts of an execution, newest first.
    List(ListArgs),
    /// Delete artifacts with their bytes.
    Rm(RmArgs),
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// The execution they belong to.
    #[arg(value_name = "EXECUTION")]
    execution_id: String,
    /// Only those of this step.
    #[arg(long, value_name = "NUMBER", conflicts_with = "step_key")]
    step: Option<i32>,
    /// Only those of the step with this key.
    #[arg(long, value_name = "KEY")]
    step_key: Option<String>,
    /// Only those of this type.
    #[arg(long = "type", value_name = "TYPE")]
    artifact_type: Option<String>,
    /// Maximum number to show; 0: all.
    #[arg(long, short = 'n', default_value_t = 50, value_name = "NUMBER")]
    limit: usize,
}

#[derive(Debug, clap::Args)]
pub struct RmArgs {
    /// Which artifacts.
    #[arg(value_name = "ARTIFACT", required = true)]
    artifact_ids: Vec<String>,
}

pub async fn run(command: Command, connection: &Connection, output: &Output) -> Result<Exit> {
    match command {
        Command::Put(args) => put::run(&args, connection, output).await,
        Command::Get(args) => get::run(&args, connection, output).await,
        Command::List(args) => list(args, connection, output).await,
        Command::Rm(args) => rm(args, connection, output).await,
    }
}

async fn list(args: ListArgs, connection: &Connection, output: &Output) -> Result<Exit> {
    let mut client = connection.artifacts();
    let limit = if args.limit == 0 { usize::MAX } else { args.limit };
    let mut request = proto::ListArtifactsRequest {
        execution_id: args.execution_id,
        step_id: args.step,
        step_key: args.step_key,
        artifact_type: args.artifact_type,
        page_size: i32::try_from(limit.min(PAGE)).unwrap_or(i32::MAX),
        page_token: String::new(),
    };
    let mut rows: Vec<Vec<Content>> = Vec::new();
    let mut shown = 0;
    let more = loop {
        let page = client.list_artifacts(call(request.clone())).await?.into_inner();
        let cut = page.artifacts.len() > limit - shown;
        for artifact in page.artifacts.into_iter().take(limit - shown) {
            shown += 1;
            if output.is_json() {
                output.json(&json::artifact(&artifact))?;
            } else {
                rows.push(row(&artifact));
            }
        }
        if cut || shown == limit && !page.next_page_token.is_empty() {
            break true;
        }
        if page.next_page_token.is_empty() {
            break false;
        }
        request.page_token = page.next_page_token;
    };
    if !output.is_json() {
        if rows.is_empty() {
            message("no artifacts");
        } else {
            for line in table::render(output, &COLUMNS, rows) {
                output.line(&line)?;
            }
        }
        if more {
            message(&format!(
                "the newest {shown}; there may be more: --limit N, or --limit 0 for all"
            ));
        }
    }
    Ok(Exit::Done)
}

const COLUMNS: [Column; 6] = [
    Column::whole("ARTIFACT ID"),
    Column::whole("STEP").right().spare(2),
    Column::cut("TYPE", 8).spare(3),
    Column::cut("NAME", 12),
    Column::whole("BYTES").right(),
    Column::whole("CREATED (UTC)").spare(1),
];

fn row(artifact: &proto::Artifact) -> Vec<Content> {
    let number = |number: Option<i64>| number.map_or_else(String::new, |number| number.to_string());
    vec![
        artifact.artifact_id.clone().into(),
        match &artifact.step_key {
            Some(key) => text::one_line(key).into(),
            None => number(artifact.step_id.map(i64::from)).into(),
        },
        text::one_line(&artifact.artifact_type).into(),
        text::one_line(&artifact.artifact_name).into(),
        number(artifact.size_bytes).into(),
        text::time(artifact.created_at.as_ref()).into(),
    ]
}

/// Each is tried, whatever became of those before; only a server that is not there ends it early.
async fn rm(args: RmArgs, connection: &Connection, output: &Output) -> Result<Exit> {
    let mut client = connection.artifacts();
    let mut refused = false;
    for (position, artifact_id) in args.artifact_ids.into_iter().enumerate() {
        let request = proto::DeleteArtifactRequest { artifact_id: artifact_id.clone() };
        match client.delete_artifact(call(request)).await {
            Ok(_) if output.is_json() => {
                output.json(&json!({ "artifact_id": artifact_id, "deleted": true }))?;
            }
            Ok(_) => output.line(&text::one_line(&format!("deleted {artifact_id}")))?,
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
                        &json!({ "artifact_id": artifact_id, "deleted": false, "error": said }),
                    )?;
                }
                message(&format!("error: {}: {said}", text::one_line(&artifact_id)));
            }
        }
    }
    Ok(Exit::refused_if(refused))
}
