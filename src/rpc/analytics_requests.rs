//! From requests of reports to questions, as `requests` does it for the rest.

use super::requests::Check;
use crate::app::Result;
use crate::app::analytics::errors::ErrorsAsked;
use crate::app::analytics::report::{PERIODS, ReportAsked};
use crate::app::rollups::Apart;
use crate::domain::calendar::{Period, Zone};
use crate::domain::limits::Limits;
use crate::domain::query::ExecutionFilter;
use crate::domain::rollup::QUARTER_MS;
use crate::proto;

const DAY_MS: i64 = 24 * 3600 * 1000;
/// The longest interval of trends.
const LONGEST_INTERVAL_MS: i64 = 366 * DAY_MS;

impl Check<'_> {
    /// How many at most; 0: `default`.
    fn at_most(&mut self, field: &str, given: i32, default: usize, limit: usize) -> usize {
        match usize::try_from(given) {
            Ok(0) => default,
            Ok(given) if given <= limit => given,
            Ok(given) => {
                self.bad(field, format!("is {given}, more than the limit of {limit}"));
                default
            }
            Err(_) => {
                self.bad(field, "must not be negative");
                default
            }
        }
    }

    fn zone(&mut self, name: &str) -> Option<Zone> {
        let zone = Zone::named(name);
        if zone.is_none() {
            self.bad(
                "time_zone",
                "is not a known time zone (use an IANA name such as Europe/Berlin)",
            );
        }
        zone
    }
}

/// Filter, what is counted apart, and how many groups.
pub fn success_rates(
    limits: &Limits,
    request: &proto::GetSuccessRatesRequest,
) -> Result<(ExecutionFilter, Apart, usize)> {
    use proto::SuccessRateGroupBy as By;
    let mut check = Check::new(limits);
    let filter = window(&mut check, request.filter.as_ref());
    let apart = match By::try_from(request.group_by) {
        Ok(By::Unspecified | By::App) => Apart { apps: true, ..Apart::default() },
        Ok(By::SubApp) => Apart { apps: true, sub_apps: true, users: false },
        Ok(By::User) => Apart { users: true, ..Apart::default() },
        Err(_) => {
            check.bad("group_by", "is not a known grouping");
            Apart::default()
        }
    };
    let limit = check.at_most("limit", request.limit, 1000, 1000);
    check.done((filter, apart, limit))
}

pub fn report(
    limits: &Limits,
    request: &proto::GetReportRequest,
) -> Result<(ExecutionFilter, ReportAsked)> {
    use proto::ReportPeriod as Given;
    let mut check = Check::new(limits);
    let filter = window(&mut check, request.filter.as_ref());
    let period = match Given::try_from(request.period) {
        Ok(Given::Unspecified | Given::Day) => Period::Day,
        Ok(Given::Week) => Period::Week,
        Ok(Given::Month) => Period::Month,
        Err(_) => {
            check.bad("period", "is not a known period");
            Period::Day
        }
    };
    let zone = check.zone(&request.time_zone);
    let periods = check.at_most("periods", request.periods, 0, PERIODS);
    let limit = check.at_most("limit", request.limit, 10, 200);
    let zone = finish(check, zone)?;
    let periods = (periods > 0).then_some(periods);
    Ok((filter, ReportAsked { period, zone, periods, limit }))
}

/// The filter, whose window must not end before it begins.
fn window(check: &mut Check<'_>, filter: Option<&proto::ExecutionFilter>) -> ExecutionFilter {
    let filter = check.filter(filter);
    if let (Some(from), Some(until)) = (filter.started_at_from, filter.started_at_until)
        && until < from
    {
        check.bad("filter.started_at_until", "must not be before filter.started_at_from");
    }
    filter
}

/// A zone that was not found is among what is wrong.
fn finish(check: Check<'_>, zone: Option<Zone>) -> Result<Zone> {
    check.done(())?;
    zone.ok_or_else(|| crate::app::Error::invalid("time_zone", "is not a known time zone"))
}

/// Filter, length of intervals, zone, and how many apps.
pub fn trends(
    limits: &Limits,
    request: &proto::GetTrendsRequest,
) -> Result<(ExecutionFilter, i64, Zone, usize)> {
    let mut check = Check::new(limits);
    let filter = window(&mut check, request.filter.as_ref());
    let interval_ms = match &request.interval {
        None => DAY_MS,
        Some(interval) => {
            let ms = interval.seconds.checked_mul(1000).filter(|_| interval.nanos == 0);
            match ms {
                Some(ms) if ms > 0 && ms <= LONGEST_INTERVAL_MS && ms % QUARTER_MS == 0 => ms,
                _ => {
                    let rule = "must be a multiple of 15 minutes, up to 366 days";
                    check.bad("interval", rule);
                    DAY_MS
                }
            }
        }
    };
    let zone = check.zone(&request.time_zone);
    let limit = check.at_most("limit", request.limit, 20, 200);
    let zone = finish(check, zone)?;
    Ok((filter, interval_ms, zone, limit))
}

/// Filter, zone, and how many users.
pub fn activity(
    limits: &Limits,
    request: &proto::GetUserActivityRequest,
) -> Result<(ExecutionFilter, Zone, usize)> {
    let mut check = Check::new(limits);
    let filter = window(&mut check, request.filter.as_ref());
    let zone = check.zone(&request.time_zone);
    let limit = check.at_most("limit", request.limit, 100, 1000);
    let zone = finish(check, zone)?;
    Ok((filter, zone, limit))
}

/// Filter, how many steps, and how many executions are read.
pub fn slowest_steps(
    limits: &Limits,
    request: &proto::ListSlowestStepsRequest,
) -> Result<(ExecutionFilter, usize, usize)> {
    let mut check = Check::new(limits);
    let filter = window(&mut check, request.filter.as_ref());
    let limit = check.at_most("limit", request.limit, 50, 1000);
    let executions = check.at_most("max_executions", request.max_executions, 1000, 10_000);
    check.done((filter, limit, executions))
}

pub fn top_errors(
    limits: &Limits,
    request: &proto::ListTopErrorsRequest,
) -> Result<(ExecutionFilter, ErrorsAsked)> {
    let mut check = Check::new(limits);
    let filter = window(&mut check, request.filter.as_ref());
    let limit = check.at_most("limit", request.limit, 20, 200);
    let samples = check.at_most("samples", request.samples, 3, 10);
    check.done((filter, ErrorsAsked { limit, samples }))
}
