//! `stepwell executions count`.

use crate::cli::connection::{Connection, call};
use crate::cli::exit::{Exit, Result};
use crate::cli::filter::FilterArgs;
use crate::cli::output::Output;
use crate::clock::Clock;
use crate::proto;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    filter: FilterArgs,
    /// Stop counting here; servers count to 100000 at most.
    #[arg(long, short = 'n', default_value_t = 10_000, value_name = "NUMBER")]
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    limit: i32,
}

pub async fn run(
    args: &Args,
    connection: &Connection,
    output: &Output,
    clock: &dyn Clock,
) -> Result<Exit> {
    let request = proto::CountExecutionsRequest {
        filter: Some(args.filter.resolve(clock.now())),
        limit: args.limit,
    };
    let counted = connection.executions().count_executions(call(request)).await?.into_inner();
    if output.is_json() {
        output.json(&serde_json::json!({ "count": counted.count, "exact": counted.exact }))?;
    } else {
        let least = if counted.exact { "" } else { "at least " };
        output.line(&format!("{least}{}", counted.count))?;
    }
    Ok(Exit::Done)
}
