//! `stepwell executions list`.

use clap::ValueEnum;

use crate::cli::connection::{Connection, call};
use crate::cli::exit::{Exit, Result};
use crate::cli::filter::FilterArgs;
use crate::cli::output::{Output, message};
use crate::cli::table::{Column, Content};
use crate::cli::{json, table, text};
use crate::clock::Clock;
use crate::proto;

/// The largest page that servers answer by default.
const PAGE: usize = 500;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Order {
    /// Newest start first.
    #[default]
    Newest,
    /// Oldest start first; executions without a start time come first.
    Oldest,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    filter: FilterArgs,
    /// Sort order.
    #[arg(long, value_enum, default_value_t, value_name = "ORDER")]
    order: Order,
    /// Maximum number to show; 0: all.
    #[arg(long, short = 'n', default_value_t = 50, value_name = "NUMBER")]
    limit: usize,
    /// Also show how many steps of each execution have each status.
    #[arg(long)]
    steps: bool,
}

pub async fn run(
    args: &Args,
    connection: &Connection,
    output: &Output,
    clock: &dyn Clock,
) -> Result<Exit> {
    let mut client = connection.executions();
    let limit = if args.limit == 0 { usize::MAX } else { args.limit };
    let mut request = proto::ListExecutionsRequest {
        filter: Some(args.filter.resolve(clock.now())),
        order: match args.order {
            Order::Newest => proto::ExecutionOrder::StartedAtDesc.into(),
            Order::Oldest => proto::ExecutionOrder::StartedAtAsc.into(),
        },
        // One page size for all pages: it is part of what the token is bound to.
        page_size: i32::try_from(limit.min(PAGE)).unwrap_or(i32::MAX),
        page_token: String::new(),
        include_step_counts: args.steps,
    };
    let mut rows: Vec<Vec<Content>> = Vec::new();
    let mut shown = 0;
    let more = loop {
        let page = client.list_executions(call(request.clone())).await?.into_inner();
        let left = limit - shown;
        let cut = page.executions.len() > left;
        let mut counts = page.step_counts.iter();
        for execution in page.executions.into_iter().take(left) {
            shown += 1;
            let counts = counts.next();
            if output.is_json() {
                let mut shape = json::execution(&execution);
                if let (Some(counts), Some(fields)) = (counts, shape.as_object_mut()) {
                    fields.insert("step_counts".to_owned(), json::step_counts(counts));
                }
                output.json(&shape)?;
            } else {
                let mut row = row(&execution);
                row.extend(counts.map(|counts| Content::from(text::step_counts(counts))));
                rows.push(row);
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
            message("no executions");
        } else {
            let columns = if args.steps { &COLUMNS[..] } else { &COLUMNS[..COLUMNS.len() - 1] };
            for line in table::render(output, columns, rows) {
                output.line(&line)?;
            }
        }
        if more {
            message(&format!(
                "the first {shown}; there may be more: --limit N, or --limit 0 for all"
            ));
        }
    }
    Ok(Exit::Done)
}

/// The last one only if asked for.
const COLUMNS: [Column; 9] = [
    Column::whole("EXECUTION ID"),
    Column::cut("APP", 12),
    Column::cut("PART", 8).spare(3),
    Column::cut("USER", 8).spare(4),
    Column::whole("STATUS"),
    Column::whole("STARTED (UTC)").spare(1),
    Column::whole("DURATION").right().spare(2),
    Column::cut("ERROR", 12).spare(5),
    Column::whole("STEPS"),
];

fn row(execution: &proto::Execution) -> Vec<Content> {
    let optional = |text: &Option<String>| Content::from(text.clone().unwrap_or_default());
    vec![
        execution.execution_id.clone().into(),
        execution.app_name.clone().into(),
        optional(&execution.sub_app_name),
        optional(&execution.user_id),
        table::status(text::execution_status(execution.status)),
        text::time(execution.started_at.as_ref()).into(),
        text::duration_ms(execution.duration_ms).into(),
        text::error(execution.error.as_ref()).into(),
    ]
}
