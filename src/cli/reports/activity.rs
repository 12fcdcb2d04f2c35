//! `stepwell activity`: when executions are started, as a heat map of the week.

use super::{ZoneArgs, chart, json, say_freshness};
use crate::cli::connection::{Connection, call};
use crate::cli::exit::{Exit, Result};
use crate::cli::filter::FilterArgs;
use crate::cli::output::{Output, message};
use crate::cli::table::{self, Column, Content};
use crate::cli::text;
use crate::clock::Clock;
use crate::proto;

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    zone: ZoneArgs,
    /// How many users to show; those with the most executions.
    #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(i32).range(1..=1000))]
    limit: i32,
}

pub async fn run(
    args: &Args,
    connection: &Connection,
    output: &Output,
    clock: &dyn Clock,
) -> Result<Exit> {
    let request = proto::GetUserActivityRequest {
        filter: Some(args.filter.resolve(clock.now())),
        time_zone: args.zone.time_zone.clone(),
        limit: args.limit,
    };
    let activity = connection.analytics().get_user_activity(call(request)).await?.into_inner();
    if output.is_json() {
        output.json(&json::activity(&activity))?;
    } else if activity.executions == 0 {
        message("no executions");
    } else {
        show(&activity, output)?;
    }
    say_freshness(activity.freshness.as_ref());
    Ok(Exit::Done)
}

/// All 168 hours.
fn week(hours: &[proto::HourActivity]) -> [i64; 168] {
    let mut week = [0; 168];
    for hour in hours {
        let place = usize::try_from(hour.hour_of_week).ok();
        if let Some(place) = place.and_then(|place| week.get_mut(place)) {
            *place = hour.executions;
        }
    }
    week
}

fn show(activity: &proto::GetUserActivityResponse, output: &Output) -> Result<()> {
    let title = format!(
        "Executions by hour of the week in {}: {} from {} to {} UTC",
        activity.time_zone,
        chart::grouped(activity.executions),
        text::time(activity.since.as_ref()),
        text::time(activity.until.as_ref()),
    );
    output.line(&chart::bold(&title, output.colour))?;
    output.line("")?;
    let all = week(&activity.hours);
    for line in heat_map(&all, output) {
        output.line(&line)?;
    }
    output.line("")?;
    let most = activity.users.iter().map(|user| user.executions).max().unwrap_or(0) as f64;
    let rows = activity.users.iter().map(|user| -> Vec<Content> {
        let hours = week(&user.hours);
        let by_day: Vec<Option<f64>> =
            hours.chunks(24).map(|day| Some(day.iter().sum::<i64>() as f64)).collect();
        let by_hour: Vec<Option<f64>> = (0..24)
            .map(|hour| Some(hours.iter().skip(hour).step_by(24).sum::<i64>() as f64))
            .collect();
        vec![
            user.user_id.clone().unwrap_or_else(|| text::NOTHING.to_owned()).into(),
            chart::grouped(user.executions).into(),
            chart::bar(user.executions as f64, most, 16).into(),
            chart::spark(&by_day).into(),
            chart::spark(&by_hour).into(),
        ]
    });
    let columns = [
        Column::cut("USER", 12),
        Column::whole("EXECUTIONS").right(),
        Column::whole("").spare(3),
        Column::whole("MON–SUN").spare(2),
        Column::whole("0–24 H").spare(1),
    ];
    for line in table::render(output, &columns, rows.collect()) {
        output.line(&line)?;
    }
    let left = activity.total_users - i64::try_from(activity.users.len()).unwrap_or(0);
    if left > 0 {
        output.line(&format!("and {left} more users"))?;
    }
    Ok(())
}

/// A line a day, a cell an hour, and what the shades mean.
fn heat_map(week: &[i64; 168], output: &Output) -> Vec<String> {
    let cell: usize = match output.width {
        Some(..56) => 1,
        Some(100..) => 3,
        _ => 2,
    };
    let most = week.iter().copied().max().unwrap_or(0);
    let mut hours = "     ".to_owned();
    for hour in (0..24).step_by(if cell == 1 { 6 } else { 3 }) {
        let until = 5 + hour * cell;
        hours.push_str(&" ".repeat(until.saturating_sub(hours.len())));
        hours.push_str(&format!("{hour:02}"));
    }
    let mut lines = vec![hours];
    for (day, name) in week.chunks(24).zip(DAYS) {
        let cells: String =
            day.iter().map(|count| chart::heat(*count, most, cell, output.colour)).collect();
        let sum = chart::grouped(day.iter().sum());
        lines.push(format!("{name}  {cells}  {sum}"));
    }
    let shades: String =
        [0, 1, 4, 9, 16].iter().map(|shade| chart::heat(*shade, 16, cell, output.colour)).collect();
    lines.push(format!(
        "     {shades} from none to {} in an hour of the week",
        chart::grouped(most)
    ));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::Format;

    #[test]
    fn a_heat_map_has_a_line_a_day_and_fits() {
        let mut week = [0; 168];
        (week[0], week[167]) = (1, 1000);
        for (width, cell) in [(Some(40), 1), (None, 2), (Some(80), 2), (Some(120), 3)] {
            let output = Output { format: Format::Table, width, colour: false };
            let lines = heat_map(&week, &output);
            assert_eq!(lines.len(), 9);
            let monday: Vec<char> = lines[1].chars().skip(5).take(24 * cell).collect();
            assert_eq!(monday.len(), 24 * cell);
            assert_eq!((monday[0], monday[cell]), ('░', '·'));
            assert!(lines[7].contains('█') && lines[7].ends_with("1,000"));
            if let Some(width) = width {
                assert!(lines[..8].iter().all(|line| line.chars().count() <= usize::from(width)));
            }
        }
    }
}
