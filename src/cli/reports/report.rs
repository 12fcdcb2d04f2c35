//! `stepwell report day|week|month`.

use clap::ValueEnum;

use super::{ZoneArgs, chart, json, say_freshness};
use crate::cli::connection::{Connection, call};
use crate::cli::exit::{Exit, Result};
use crate::cli::filter::FilterArgs;
use crate::cli::output::Output;
use crate::cli::table::{self, Column, Content};
use crate::cli::text;
use crate::clock::Clock;
use crate::proto;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Period {
    /// From midnight to midnight.
    Day,
    /// From Monday to Sunday.
    Week,
    /// Calendar months.
    Month,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// How long a period is.
    #[arg(value_enum, value_name = "PERIOD")]
    period: Period,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    zone: ZoneArgs,
    /// How many periods, at most 400; default: 7, or with --since all since then.
    #[arg(
        long,
        short = 'n',
        value_name = "NUMBER",
        default_value_t = 0,
        hide_default_value = true
    )]
    #[arg(value_parser = clap::value_parser!(i32).range(0..=400))]
    periods: i32,
    /// How many apps and steps to show for the last period.
    #[arg(long, value_name = "NUMBER", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(i32).range(1..=200))]
    limit: i32,
}

pub async fn run(
    args: &Args,
    connection: &Connection,
    output: &Output,
    clock: &dyn Clock,
) -> Result<Exit> {
    let request = proto::GetReportRequest {
        filter: Some(args.filter.resolve(clock.now())),
        period: match args.period {
            Period::Day => proto::ReportPeriod::Day.into(),
            Period::Week => proto::ReportPeriod::Week.into(),
            Period::Month => proto::ReportPeriod::Month.into(),
        },
        time_zone: args.zone.time_zone.clone(),
        periods: args.periods,
        limit: args.limit,
    };
    let report = connection.analytics().get_report(call(request)).await?.into_inner();
    if output.is_json() {
        output.json(&json::report(&report))?;
    } else {
        show(&report, args.period, output)?;
    }
    say_freshness(report.freshness.as_ref());
    Ok(Exit::Done)
}

/// Characters of the longest bar.
fn bar_width(output: &Output) -> usize {
    output.width.map_or(24, |width| usize::from(width).saturating_sub(84).clamp(8, 40))
}

fn show(report: &proto::GetReportResponse, period: Period, output: &Output) -> Result<()> {
    let (name, many) = match period {
        Period::Day => ("day", "Days"),
        Period::Week => ("week", "Weeks"),
        Period::Month => ("month", "Months"),
    };
    let all: i64 = report.periods.iter().map(|row| row.executions).sum();
    let title = format!("{many} in {}: {} executions", report.time_zone, chart::grouped(all));
    output.line(&chart::bold(&title, output.colour))?;
    output.line("")?;
    let most = report.periods.iter().map(|row| row.executions).max().unwrap_or(0) as f64;
    let width = bar_width(output);
    let rows = report.periods.iter().map(|row| {
        let numbers = Numbers {
            executions: row.executions,
            failed: row.failed,
            running: row.running,
            success_rate: row.success_rate,
            durations: [row.p50_duration_ms, row.p90_duration_ms, row.p99_duration_ms],
            change: row.change.as_ref(),
        };
        let partial = if row.partial { "*" } else { "" };
        numbers.cells(format!("{}{partial}", row.label), most, width)
    });
    let columns = columns(match period {
        Period::Day => "DAY",
        Period::Week => "WEEK",
        Period::Month => "MONTH",
    });
    for line in table::render(output, &columns, rows.collect()) {
        output.line(&line)?;
    }
    if report.periods.iter().any(|row| row.partial) {
        output.line(&format!(
            "* not the whole {name}; changes are relative to the same part of the previous one"
        ))?;
    }
    let Some(last) = report.periods.iter().rev().find(|row| row.executions > 0) else {
        return Ok(());
    };
    apps(last, output)?;
    failing(last, output)
}

/// What a line of a report shows.
struct Numbers<'a> {
    executions: i64,
    failed: i64,
    running: i64,
    success_rate: f64,
    durations: [Option<i64>; 3],
    change: Option<&'a proto::ReportChange>,
}

fn columns(first: &'static str) -> [Column; 10] {
    [
        Column::cut(first, 10),
        Column::whole("EXECUTIONS").right(),
        Column::whole("").spare(3),
        Column::whole("CHANGE").right().spare(4),
        Column::whole("SUCCESS").right(),
        Column::whole("FAILED").right().spare(6),
        Column::whole("RUNNING").right().spare(7),
        Column::whole("P50").right().spare(2),
        Column::whole("P90").right().spare(1),
        Column::whole("P99").right().spare(5),
    ]
}

impl Numbers<'_> {
    fn cells(&self, name: String, most: f64, width: usize) -> Vec<Content> {
        let some = |number: i64| if number == 0 { String::new() } else { chart::grouped(number) };
        let success = if self.executions > 0 {
            chart::percent(self.success_rate)
        } else {
            text::NOTHING.to_owned()
        };
        let [p50, p90, p99] = self.durations.map(text::duration_ms);
        vec![
            name.into(),
            chart::grouped(self.executions).into(),
            chart::bar(self.executions as f64, most, width).into(),
            chart::change(self.change.and_then(|change| change.executions_change)).into(),
            success.into(),
            some(self.failed).into(),
            some(self.running).into(),
            p50.into(),
            p90.into(),
            p99.into(),
        ]
    }
}

fn apps(row: &proto::ReportRow, output: &Output) -> Result<()> {
    let most = row.apps.iter().map(|app| app.executions).max().unwrap_or(0) as f64;
    let rows = row.apps.iter().map(|app| {
        let numbers = Numbers {
            executions: app.executions,
            failed: app.failed,
            running: app.running,
            success_rate: app.success_rate,
            durations: [app.p50_duration_ms, app.p90_duration_ms, app.p99_duration_ms],
            change: app.change.as_ref(),
        };
        numbers.cells(app.app_name.clone(), most, bar_width(output))
    });
    let rows: Vec<Vec<Content>> = rows.collect();
    let left = row.total_apps - i64::try_from(rows.len()).unwrap_or(0);
    output.line("")?;
    output.line(&chart::bold(&format!("Apps of {}", row.label), output.colour))?;
    for line in table::render(output, &columns("APP"), rows) {
        output.line(&line)?;
    }
    if left > 0 {
        output.line(&format!("and {left} more apps"))?;
    }
    Ok(())
}

fn failing(row: &proto::ReportRow, output: &Output) -> Result<()> {
    if row.top_failing_steps.is_empty() {
        return Ok(());
    }
    let columns = [
        Column::cut("STEP", 12),
        Column::cut("APP", 8).spare(1),
        Column::whole("FAILED").right(),
        Column::whole("").spare(3),
        Column::whole("ERRORS").right().spare(2),
    ];
    let most = row.top_failing_steps.iter().map(|step| step.failed).max().unwrap_or(0) as f64;
    let rows = row.top_failing_steps.iter().map(|step| -> Vec<Content> {
        vec![
            step.step_name.clone().into(),
            step.app_name.clone().into(),
            chart::grouped(step.failed).into(),
            chart::bar(step.failed as f64, most, bar_width(output)).into(),
            text::count(u64::try_from(step.errors).unwrap_or(0), "kind", "kinds").into(),
        ]
    });
    output.line("")?;
    output.line(&chart::bold(
        &format!("Most frequently failing steps in {}", row.label),
        output.colour,
    ))?;
    for line in table::render(output, &columns, rows.collect()) {
        output.line(&line)?;
    }
    Ok(())
}
