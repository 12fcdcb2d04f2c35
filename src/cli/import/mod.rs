//! `stepwell import PATH...`: records of the data model, one Extended JSON document a line, into a server.

mod extended_json;
mod find;
mod lines;
mod outgoing;
mod points;
mod reader;
mod record;
mod send;
mod summary;
#[cfg(test)]
mod whole_tests;

use std::path::PathBuf;

use super::connection::{Connection, call};
use super::exit::{Exit, Failure, Result};
use super::output::{Output, message};
use crate::clock::Clock;
use crate::domain::limits::Limits;
use crate::proto;
pub use find::{Collection, Found, find};
pub use lines::{Line, Lines};
pub use outgoing::Outgoing;
pub use reader::{Pass, Read, Rules, start as read_files};
pub use record::AssumedStatus;
pub use send::{Listener, Outcome, Sender, Stopped, is_denied};
use summary::Summary;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folders, searched for executions.jsonl, execution_steps.jsonl, execution_artifacts.jsonl,
    /// execution_metrics.jsonl, app_configurations.jsonl and the same with .gz; or single files.
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// The status for records whose own status is null or absent; without this flag they are refused. For a step,
    /// cancelled means skipped.
    #[arg(long, value_enum, value_name = "STATUS")]
    assume_status: Option<AssumedStatus>,
}

pub async fn run(
    args: &Args,
    connection: &Connection,
    output: &Output,
    clock: &dyn Clock,
) -> Result<Exit> {
    let files = find(&args.paths)?;
    let info = connection
        .admin()
        .get_server_info(call(proto::GetServerInfoRequest {}))
        .await
        .map_err(|status| match Failure::from(status) {
            Failure::Refused(message) => Failure::CouldNotStart(message),
            other => other,
        })?
        .into_inner();
    let message_bytes = info
        .limits
        .get("request_bytes")
        .and_then(|limit| usize::try_from(*limit).ok())
        .unwrap_or_else(|| Limits::default().request_bytes);
    let mut summary = Summary::new(&files);
    let mut sender = Sender::new(connection.clone(), clock.now().micros);
    let mut stopped = None;
    for pass in Pass::ALL {
        let files = files.iter().cloned().enumerate();
        let files: Vec<_> = files
            .filter(|(index, file)| pass.reads(file.collection, summary.has_unnumbered(*index)))
            .collect();
        let rules = Rules { pass, assume: args.assume_status, message_bytes };
        let batches = read_files(files, rules);
        if let Err(Stopped(reason)) = sender.send(batches, &mut summary).await {
            for record in sender.unanswered() {
                summary.not_sent(record);
            }
            if pass == Pass::Numbered {
                summary.unnumbered_not_sent();
            }
            stopped = Some(reason);
            break;
        }
    }
    if stopped.is_none() {
        sender.close().await;
    }
    summary.finish();
    summary.print(output)?;
    if let Some(reason) = &stopped {
        message(&format!(
            "error: stopped: {reason}. Run the same import again later: what has been imported is not changed"
        ));
    }
    Ok(Exit::refused_if(stopped.is_some() || summary.anything_refused()))
}
