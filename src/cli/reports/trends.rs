//! `stepwell trends`.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{ZoneArgs, chart, json, say_freshness};
use crate::cli::connection::{Connection, call};
use crate::cli::exit::{Exit, Result};
use crate::cli::filter::FilterArgs;
use crate::cli::output::{Output, message};
use crate::cli::table::{self, Column, Content};
use crate::cli::text;
use crate::cli::time::parse_duration;
use crate::clock::Clock;
use crate::proto;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    zone: ZoneArgs,
    /// Length of an interval, such as 15m, 1h or 7d: a multiple of 15 minutes.
    #[arg(long, value_name = "DURATION", default_value = "1d", value_parser = parse_duration)]
    interval: Duration,
    /// How many apps to show; those with the most executions.
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(i32).range(1..=200))]
    limit: i32,
}

pub async fn run(
    args: &Args,
    connection: &Connection,
    output: &Output,
    clock: &dyn Clock,
) -> Result<Exit> {
    let request = proto::GetTrendsRequest {
        filter: Some(args.filter.resolve(clock.now())),
        interval: Some(prost_types::Duration {
            seconds: i64::try_from(args.interval.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(args.interval.subsec_nanos()).unwrap_or_default(),
        }),
        time_zone: args.zone.time_zone.clone(),
        limit: args.limit,
    };
    let trends = connection.analytics().get_trends(call(request)).await?.into_inner();
    if output.is_json() {
        output.json(&json::trends(&trends))?;
    } else if trends.apps.is_empty() {
        message("no executions");
    } else {
        show(&trends, output)?;
    }
    say_freshness(trends.freshness.as_ref());
    Ok(Exit::Done)
}

fn show(trends: &proto::GetTrendsResponse, output: &Output) -> Result<()> {
    let seconds = |at: &Option<prost_types::Timestamp>| at.as_ref().map_or(0, |at| at.seconds);
    let starts: BTreeSet<i64> =
        trends.intervals.iter().map(|interval| seconds(&interval.start)).collect();
    let starts: Vec<i64> = starts.into_iter().collect();
    let width = output.width.map_or(30, |width| usize::from(width / 5).clamp(8, 40));
    let mut intervals = trends.intervals.iter().peekable();
    let mut rows = Vec::new();
    for app in &trends.apps {
        let mut counts = vec![None; starts.len()];
        let mut p90s = vec![None; starts.len()];
        let of_app = |interval: &&proto::TrendInterval| {
            interval.app_id == app.app_id && interval.app_name == app.app_name
        };
        while let Some(interval) = intervals.next_if(of_app) {
            if let Ok(place) = starts.binary_search(&seconds(&interval.start)) {
                counts[place] = Some(interval.executions as f64);
                p90s[place] = interval.p90_duration_ms.map(|ms| ms as f64);
            }
        }
        let told = table::coloured(
            &app.text,
            match app.direction() {
                proto::TrendDirection::Slower => Some(table::Colour::Bad),
                proto::TrendDirection::Faster => Some(table::Colour::Good),
                _ => None,
            },
        );
        let row: Vec<Content> = vec![
            app.app_name.clone().into(),
            chart::grouped(app.executions).into(),
            chart::spark(&chart::squeeze(&counts, width, |a, b| a + b)).into(),
            text::duration_ms(app.recent_p90_duration_ms).into(),
            chart::spark(&chart::squeeze(&p90s, width, f64::max)).into(),
            told,
        ];
        rows.push(row);
    }
    let columns = [
        Column::cut("APP", 12),
        Column::whole("EXECUTIONS").right(),
        Column::whole("").spare(3),
        Column::whole("P90").right().spare(1),
        Column::whole("").spare(2),
        Column::cut("TREND", 20),
    ];
    let title = format!(
        "Trends in {}: {} to {} UTC",
        trends.time_zone,
        text::time(
            trends
                .intervals
                .iter()
                .filter_map(|one| one.start.as_ref())
                .min_by_key(|at| at.seconds)
        ),
        text::time(
            trends.intervals.iter().filter_map(|one| one.end.as_ref()).max_by_key(|at| at.seconds)
        ),
    );
    output.line(&chart::bold(&title, output.colour))?;
    output.line("")?;
    for line in table::render(output, &columns, rows) {
        output.line(&line)?;
    }
    let left = trends.total_apps - i64::try_from(trends.apps.len()).unwrap_or(0);
    if left > 0 {
        output.line(&format!("and {left} more apps"))?;
    }
    Ok(())
}
