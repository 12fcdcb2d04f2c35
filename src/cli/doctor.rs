//! `stepwell doctor`: shows what the look at the database of the server's own configuration found.

use serde_json::json;

use super::exit::{Exit, Failure, Result};
use super::output::{Output, message};
use crate::config::Config;
use crate::doctor::{self, State};

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
