//! `stepwell executions watch`: one execution, or all that match, live.

mod all;
mod lines;
mod one;
mod screen;
mod source;
mod view;

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::ValueEnum;

use super::connection::{Connection, call};
use super::exit::{Exit, Failure, Result};
use super::filter::FilterArgs;
use super::output::{Output, message};
use super::time::parse_duration;
use crate::clock::Clock;
use crate::proto;
use proto::watch_execution_response::Event;
use source::{Next, Source, What};
use view::View;

/// Which current state to show first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Snapshot {
    /// Every execution that matches.
    All,
    /// Only the running ones of these.
    Active,
    /// None: only changes from now on.
    None,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
With an ID, the command ends when the execution ends: with exit code 0 if it completed, with 1 if it failed,
was cancelled or was deleted. Without an ID it continues until interrupted. On a terminal it shows a live view;
otherwise, and with --output json, every event is one line. After a lost connection it reconnects and resumes;
the last event before the loss may then be shown twice.")]
pub struct Args {
    /// Which execution; without an ID: all, or those that match the filter.
    #[arg(value_name = "ID", conflicts_with_all = ["all", "app_id", "app_name", "sub_app_id", "user", "status",
        "since", "until", "min_duration", "metadata", "snapshot"])]
    execution_id: Option<String>,
    /// Watch all executions that match the filter; the same as giving no ID.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: FilterArgs,
    /// Which current state to show first; default: running executions, or with a filter all that match.
    #[arg(long, value_enum, value_name = "WHICH")]
    snapshot: Option<Snapshot>,
    /// Resume after the event with this token, instead of starting from the current state.
    #[arg(long, value_name = "TOKEN")]
    resume_token: Option<String>,
    /// Continue after the execution has ended.
    #[arg(long, requires = "execution_id")]
    follow: bool,
    /// Do not show steps.
    #[arg(long)]
    no_steps: bool,
    /// Include the input and output of steps; only with --output json.
    #[arg(long, conflicts_with = "no_steps")]
    payloads: bool,
    /// How long to try to reconnect after the connection was lost.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    retry_for: Duration,
}

/// How often a live view moves its clocks.
const TICK: Duration = Duration::from_millis(100);

pub async fn run(
    args: &Args,
    connection: &Connection,
    output: &Output,
    clock: &dyn Clock,
) -> Result<Exit> {
    if args.payloads && !output.is_json() {
        message("note: --payloads shows only with --output json");
    }
    let filter = args.filter.resolve(clock.now());
    let what = match &args.execution_id {
        Some(execution_id) => What::One(proto::WatchExecutionRequest {
            execution_id: execution_id.clone(),
            resume_token: None,
            include_steps: !args.no_steps,
            include_artifacts: false,
            include_metrics: false,
            include_payloads: args.payloads && output.is_json(),
            follow: args.follow,
        }),
        None => What::All(proto::WatchExecutionsRequest {
            filter: Some(filter),
            resume_token: None,
            include_steps: !args.no_steps,
            include_payloads: args.payloads && output.is_json(),
            snapshot: match args.snapshot {
                None => proto::WatchSnapshot::Unspecified,
                Some(Snapshot::All) => proto::WatchSnapshot::All,
                Some(Snapshot::Active) => proto::WatchSnapshot::Active,
                Some(Snapshot::None) => proto::WatchSnapshot::None,
            }
            .into(),
        }),
    };
    // A person wants a picture, a pipe wants lines.
    let live = !output.is_json()
        && std::io::stdout().is_terminal()
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
    let mut view: Box<dyn View> = match &args.execution_id {
        Some(execution_id) if live => Box::new(one::OneView::new(execution_id, output, clock)),
        None if live => Box::new(all::AllView::new(output, clock)),
        _ => Box::new(lines::LinesView::new(output, args.payloads, args.execution_id.is_none())),
    };
    let mut source =
        Source::new(connection.clone(), what, args.resume_token.clone(), args.retry_for);
    let mut end = End::default();
    let ended = follow(&mut source, view.as_mut(), &mut end).await;
    view.finish();
    ended?;
    match &args.execution_id {
        Some(execution_id) => verdict(execution_id, end, connection).await,
        None => Ok(Exit::Done),
    }
}

/// What is known of the end of the one execution.
#[derive(Debug, Default)]
struct End {
    status: Option<i32>,
    deleted: bool,
}

async fn follow(source: &mut Source, view: &mut dyn View, end: &mut End) -> Result<()> {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        let next = tokio::select! {
            next = source.next() => next?,
            _ = ticks.tick() => {
                view.tick();
                continue;
            }
        };
        match next {
            Next::Event(event) => {
                if let Some(Event::Execution(changed)) = &event.event {
                    end.deleted = changed.change_type() == proto::ChangeType::Deleted;
                    end.status = changed.execution.as_ref().map(|execution| execution.status);
                }
                view.event(&event)?;
            }
            Next::Lost(reason) => view.notice(&format!("connection lost, retrying: {reason}")),
            Next::Restarted(reason) => {
                view.notice(&reason);
                view.restart();
            }
            Next::Ended => return Ok(()),
        }
    }
}

/// The exit code says how the execution ended.
async fn verdict(execution_id: &str, end: End, connection: &Connection) -> Result<Exit> {
    if end.deleted {
        return Err(Failure::Refused(format!("{execution_id} was deleted")));
    }
    let status = match end.status {
        Some(status) => status,
        // Resumed after the last change: nothing came that says it.
        None => {
            let request = proto::GetExecutionRequest {
                execution_id: execution_id.to_owned(),
                view: proto::ExecutionView::Basic.into(),
            };
            let answer = connection.executions().get_execution(call(request)).await?.into_inner();
            answer.execution.unwrap_or_default().status
        }
    };
    Ok(Exit::refused_if(status != i32::from(proto::ExecutionStatus::Completed)))
}
