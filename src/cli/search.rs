//! `stepwell search`: where words stand in errors, outputs and text artifacts.

use clap::ValueEnum;
use serde_json::json;

use super::connection::{Connection, call};
use super::exit::{Exit, Result};
use super::filter::FilterArgs;
use super::output::{Output, message};
use super::text;
use crate::clock::Clock;
use crate::proto;

/// Pages without a hit that are asked for one after the other.
const PAGES: usize = 20;

/// Where a text stands, as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    ExecutionError,
    StepError,
    StepOutput,
    ArtifactText,
}

impl From<Kind> for proto::SearchKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::ExecutionError => proto::SearchKind::ExecutionError,
            Kind::StepError => proto::SearchKind::StepError,
            Kind::StepOutput => proto::SearchKind::StepOutput,
            Kind::ArtifactText => proto::SearchKind::ArtifactText,
        }
    }
}

fn word(kind: proto::SearchKind) -> &'static str {
    match kind {
        proto::SearchKind::ExecutionError => "execution-error",
        proto::SearchKind::StepError => "step-error",
        proto::SearchKind::StepOutput => "step-output",
        proto::SearchKind::ArtifactText => "artifact-text",
        proto::SearchKind::Unspecified => "unknown",
    }
}

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Words that must all occur, "phrases", prefixes* and -exclusions. Several arguments form one query.
    #[arg(required = true, value_name = "QUERY")]
    pub query: Vec<String>,
    /// Only search these; may be repeated, or several separated by commas.
    #[arg(long, value_enum, value_name = "KIND", value_delimiter = ',')]
    pub kind: Vec<Kind>,
    /// Maximum number of hits.
    #[arg(long, default_value_t = 20, value_name = "NUMBER")]
    pub limit: usize,
    #[command(flatten)]
    pub filter: FilterArgs,
}

/// The snippet in one line, with what was found in bold.
fn marked(hit: &proto::SearchHit, colour: bool) -> String {
    let mut characters = hit.snippet.chars();
    let mut at = 0;
    let mut line = String::new();
    let mut take = |line: &mut String, at: &mut i32, until: i32| {
        let count = usize::try_from(until - *at).unwrap_or(0);
        let piece: String = characters.by_ref().take(count).collect();
        line.push_str(&text::lines(&piece).replace('\n', " "));
        *at = until.max(*at);
    };
    for place in &hit.highlights {
        take(&mut line, &mut at, place.offset);
        line.push_str(if colour { "\u{1b}[1;33m" } else { "" });
        take(&mut line, &mut at, place.offset + place.length);
        line.push_str(if colour { "\u{1b}[0m" } else { "" });
    }
    take(&mut line, &mut at, i32::MAX);
    line.trim().to_owned()
}

fn place(hit: &proto::SearchHit) -> String {
    let mut place = text::one_line(&hit.execution_id);
    if let Some(step_id) = hit.step_id {
        place.push_str(&format!(" step {step_id}"));
    }
    for name in [&hit.step_name, &hit.artifact_name].into_iter().flatten() {
        place.push_str(&format!(" {}", text::one_line(name)));
    }
    if let Some(artifact_id) = &hit.artifact_id {
        place.push_str(&format!(" ({})", text::one_line(artifact_id)));
    }
    place
}

fn as_json(hit: &proto::SearchHit) -> serde_json::Value {
    let highlights: Vec<serde_json::Value> = hit
        .highlights
        .iter()
        .map(|place| json!({ "offset": place.offset, "length": place.length }))
        .collect();
    json!({
        "kind": word(hit.kind()),
        "execution_id": hit.execution_id,
        "step_id": hit.step_id,
        "step_name": hit.step_name,
        "artifact_id": hit.artifact_id,
        "artifact_name": hit.artifact_name,
        "snippet": hit.snippet,
        "highlights": highlights,
        "score": hit.score,
        "truncated": hit.truncated,
    })
}

pub async fn run(
    args: &Args,
    connection: &Connection,
    output: &Output,
    clock: &dyn Clock,
) -> Result<Exit> {
    let mut request = proto::SearchRequest {
        query: args.query.join(" "),
        filter: Some(args.filter.resolve(clock.now())),
        kinds: args.kind.iter().map(|kind| proto::SearchKind::from(*kind).into()).collect(),
        ..Default::default()
    };
    let (mut left, mut empty) = (args.limit, 0);
    let mut more = false;
    while left > 0 && empty < PAGES {
        request.page_size = i32::try_from(left.min(100)).unwrap_or(100);
        let page = connection.searches().search(call(request.clone())).await?.into_inner();
        if !page.up_to_date {
            message("the latest changes are not indexed yet");
        }
        empty = if page.hits.is_empty() { empty + 1 } else { 0 };
        left = left.saturating_sub(page.hits.len());
        for hit in &page.hits {
            if output.is_json() {
                output.json(&as_json(hit))?;
                continue;
            }
            output.line(&format!("{}  {}", word(hit.kind()), place(hit)))?;
            output.line(&format!("    {}", marked(hit, output.colour)))?;
        }
        more = !page.next_page_token.is_empty();
        if !more {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if more {
        message("there may be more: raise --limit, or make the query more specific");
    }
    Ok(Exit::Done)
}
