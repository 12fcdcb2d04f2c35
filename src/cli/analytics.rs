//! `stepwell analytics rebuild`: has everything counted anew that reports are made of.

use clap::Subcommand;
use serde_json::json;

use super::connection::{self, Connection};
use super::exit::{Exit, Failure, Result};
use super::output::{Output, message};
use crate::proto;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Recount every execution for reports, and report what was wrong; exit code 1 if anything was. Only needed after
    /// another program has deleted executions directly in the database without the log showing it.
    Rebuild,
}

pub async fn run(command: Command, connection: &Connection, output: &Output) -> Result<Exit> {
    let Command::Rebuild = command;
    let request = proto::RebuildAnalyticsRequest {};
    // Takes as long as it takes, so it has no deadline.
    let mut run = connection.admin().rebuild_analytics(request).await?.into_inner();
    let broke_off = |status: tonic::Status| Failure::Refused(connection::describe(&status));
    while let Some(now) = run.message().await.map_err(broke_off)? {
        let all = json!({
            "executions": now.executions,
            "wrong": now.wrong,
            "gone": now.gone,
            "rollups_wrong": now.rollups_wrong,
        });
        match (output.is_json(), now.done) {
            (true, false) => output.json(&json!({ "progress": all }))?,
            (true, true) => output.json(&json!({ "done": all }))?,
            (false, false) => message(&format!("counted so far: {} executions", now.executions)),
            (false, true) => output.line(&format!(
                "{} executions counted; {} had been counted incorrectly, {} no longer existed, \
                 {} rollups were wrong",
                now.executions, now.wrong, now.gone, now.rollups_wrong
            ))?,
        }
        if now.done {
            return Ok(Exit::refused_if(now.wrong + now.gone + now.rollups_wrong > 0));
        }
    }
    Err(Failure::Refused("the server ended the rebuild without a result".to_owned()))
}
