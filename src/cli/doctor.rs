//! `stepwell doctor`: shows what the look at the database of the server's own configuration found.

use serde_json::json;

use super::exit::{Exit, Failure, Result};
use super::output::{Output, message};
use crate::config::Config;
use crate::doctor::{self, State};

/// Prints the command that makes the role: the command alone on stdout, for other programs to run.
pub fn print_role(config: &Config, output: &Output) -> Result<Exit> {
    output.line(&doctor::role(config))?;
    let database = &config.mongodb.database;
    message(&format!(
        "run it with db.runCommand(...) in the database {database}, and give the role to the user of the server: \
         {{ role: \"stepwell\", db: \"{database}\" }}"
    ));
    Ok(Exit::Done)
}

/// Prints the commands that spread the database over shards, and runs none.
pub fn print_shard_plan(config: &Config, output: &Output) -> Result<Exit> {
    output.line(doctor::shard_plan(config).trim_end())?;
    Ok(Exit::Done)
}

/// Looks and tells. `Refused` stands for something to do.
pub async fn run(config: &Config, output: &Output) -> Result<Exit> {
    let findings = doctor::examine(config).await.map_err(|error| {
        Failure::CouldNotStart(format!("cannot inspect the database: {error:#}"))
    })?;
    let to_do = findings.iter().filter(|finding| finding.state == State::ToDo).count();
    if output.is_json() {
        let findings: Vec<_> = findings
            .iter()
            .map(|finding| {
                json!({
                    "subject": finding.subject,
                    "state": finding.state.word(),
                    "says": finding.says,
                    "advice": finding.advice,
                })
            })
            .collect();
        output.json(&json!({ "findings": findings, "to_do": to_do }))?;
        return Ok(Exit::refused_if(to_do > 0));
    }
    for finding in &findings {
        output.line(&format!(
            "{:5}  {}: {}",
            finding.state.word(),
            finding.subject,
            finding.says
        ))?;
        if !finding.advice.is_empty() {
            output.line(&format!("       -> {}", finding.advice))?;
        }
    }
    match to_do {
        0 => message("everything is in order"),
        1 => message("1 thing to do"),
        more => message(&format!("{more} things to do")),
    }
    Ok(Exit::refused_if(to_do > 0))
}
