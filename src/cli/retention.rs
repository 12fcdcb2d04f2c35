//! `stepwell retention run`: deletes what is not kept any longer, or counts it.

use clap::Subcommand;
use serde_json::{Value as Json, json};

use super::connection::{self, Connection};
use super::exit::{Exit, Failure, Result};
use super::output::{Output, message};
use super::{json, table, text};
use crate::proto;
use crate::proto::run_retention_response::Message;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Delete what is older than the server's retention times, and print a receipt. The server also does this by
    /// itself.
    Run(Args),
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only count what would be deleted.
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(command: Command, connection: &Connection, output: &Output) -> Result<Exit> {
    let Command::Run(args) = command;
    let request = proto::RunRetentionRequest { dry_run: args.dry_run };
    // Takes as long as it takes, so it has no deadline.
    let mut run = connection.admin().run_retention(request).await?.into_inner();
    while let Some(answer) = run.message().await.map_err(broke_off)? {
        match answer.message {
            Some(Message::Progress(progress)) if output.is_json() => {
                output.json(&json!({ "progress": counts(&progress.collections) }))?;
            }
            Some(Message::Progress(progress)) => {
                message(&format!("{}: {}", so_far(args.dry_run), sentence(&progress.collections)));
            }
            Some(Message::Receipt(receipt)) if output.is_json() => {
                let collections = counts(&receipt.collections);
                output.json(&json!({ "receipt": collections, "dry_run": receipt.dry_run }))?;
                return Ok(Exit::Done);
            }
            Some(Message::Receipt(receipt)) => {
                show(&receipt, output)?;
                return Ok(Exit::Done);
            }
            None => {}
        }
    }
    Err(Failure::Refused("the server ended the run without a receipt".to_owned()))
}

/// Something may be deleted already, so it has started.
fn broke_off(status: tonic::Status) -> Failure {
    Failure::Refused(connection::describe(&status))
}

fn so_far(dry_run: bool) -> &'static str {
    if dry_run { "counted so far" } else { "deleted so far" }
}

fn sentence(collections: &[proto::RetentionCount]) -> String {
    let part = |count: &proto::RetentionCount| {
        format!("{} of {}", count.records, text::one_line(&count.collection))
    };
    collections.iter().map(part).collect::<Vec<_>>().join(", ")
}

fn counts(collections: &[proto::RetentionCount]) -> Json {
    let count = |count: &proto::RetentionCount| {
        json!({
            "collection": count.collection,
            "records": count.records,
            "bytes": count.bytes,
            "oldest_kept": json::time(count.oldest_kept.as_ref()),
        })
    };
    collections.iter().map(count).collect()
}

fn show(receipt: &proto::RetentionReceipt, output: &Output) -> Result<()> {
    const COLUMNS: [table::Column; 4] = [
        table::Column::whole("COLLECTION"),
        table::Column::whole("RECORDS").right(),
        table::Column::whole("BYTES").right(),
        table::Column::whole("OLDEST KEPT"),
    ];
    let rows = receipt.collections.iter().map(|count| {
        vec![
            text::one_line(&count.collection).into(),
            count.records.to_string().into(),
            count.bytes.to_string().into(),
            text::time(count.oldest_kept.as_ref()).into(),
        ]
    });
    for line in table::render(output, &COLUMNS, rows.collect()) {
        output.line(&line)?;
    }
    if receipt.dry_run {
        message("nothing was deleted: this was a dry run");
    }
    Ok(())
}
