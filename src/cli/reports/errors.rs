//! `stepwell errors`.

use super::{chart, json, say_freshness};
use crate::cli::connection::{Connection, call};
use crate::cli::exit::{Exit, Result};
use crate::cli::filter::FilterArgs;
use crate::cli::output::{Output, message};
use crate::cli::table::{self, Column, Content};
use crate::cli::text;
use crate::clock::Clock;
use crate::proto;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    filter: FilterArgs,
    /// How many errors to show; the most frequent ones.
    #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(i32).range(1..=200))]
    limit: i32,
}

pub async fn run(
    args: &Args,
    connection: &Connection,
    output: &Output,
    clock: &dyn Clock,
) -> Result<Exit> {
    let request = proto::ListTopErrorsRequest {
        filter: Some(args.filter.resolve(clock.now())),
        limit: args.limit,
        samples: 0,
    };
    let errors = connection.analytics().list_top_errors(call(request)).await?.into_inner();
    if output.is_json() {
        output.json(&json::errors(&errors))?;
    } else if errors.errors.is_empty() {
        message("no errors");
    } else {
        show(&errors, output)?;
    }
    say_freshness(errors.freshness.as_ref());
    Ok(Exit::Done)
}

fn show(errors: &proto::ListTopErrorsResponse, output: &Output) -> Result<()> {
    let title = format!(
        "Errors of {} to {} UTC: {}",
        text::time(errors.since.as_ref()),
        text::time(errors.until.as_ref()),
        text::count(u64::try_from(errors.total_errors).unwrap_or(0), "kind", "kinds"),
    );
    output.line(&chart::bold(&title, output.colour))?;
    output.line("")?;
    let columns = [
        Column::whole("COUNT").right(),
        Column::whole("").spare(4),
        Column::whole("LAST SEEN (UTC)").spare(2),
        Column::cut("APP", 8).spare(3),
        Column::cut("STEP", 8).spare(1),
        Column::cut("ERROR", 20),
        Column::whole("FOR INSTANCE").spare(5),
    ];
    let several = |names: &[String]| match names {
        [] => String::new(),
        [one] => one.clone(),
        [one, others @ ..] => format!("{one} +{}", others.len()),
    };
    let rows = errors.errors.iter().map(|error| -> Vec<Content> {
        let trend: Vec<Option<f64>> = error.trend.iter().map(|count| Some(*count as f64)).collect();
        let told = if error.pattern.is_empty() { "(no message)" } else { &error.pattern };
        let sample = error.samples.first();
        vec![
            chart::grouped(error.count).into(),
            chart::spark(&trend).into(),
            text::time(error.last_seen.as_ref()).into(),
            several(&error.app_names).into(),
            several(&error.step_names).into(),
            told.into(),
            sample.map(|sample| sample.execution_id.clone()).unwrap_or_default().into(),
        ]
    });
    for line in table::render(output, &columns, rows.collect()) {
        output.line(&line)?;
    }
    Ok(())
}
