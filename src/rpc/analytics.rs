//! AnalyticsService.

use std::sync::Arc;

use prost::Message;
use tonic::{Request, Response, Status};

use super::{analytics_requests as requests, authenticate, convert, status};
use crate::app::analytics::activity::Hours;
use crate::app::analytics::errors::TopError;
use crate::app::analytics::report::{Change, FailingStep, Row, RowOfApp};
use crate::app::analytics::steps::SlowStep;
use crate::app::analytics::trends::AppTrend;
use crate::app::analytics::{Analytics, Freshness, Summary};
use crate::app::{Error, Result};
use crate::domain::Millis;
use crate::domain::fingerprint;
use crate::domain::rollup::Group;
use crate::domain::trend::Direction;
use crate::proto;

/// Left in a reply for what comes beside its rows.
const BESIDE_ROWS: usize = 64 * 1024;

/// Serves AnalyticsService.
pub struct Reports {
    pub analytics: Arc<Analytics>,
}

fn number(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn refused(error: Error) -> Status {
    status::of(&error)
}

fn freshness(freshness: &Freshness) -> Option<proto::Freshness> {
    Some(proto::Freshness {
        complete: freshness.complete,
        exact_since: freshness.exact_since.map(convert::timestamp),
        counted_until: freshness.counted_until.map(convert::timestamp),
        executions_read: i64::try_from(freshness.executions_read).unwrap_or(i64::MAX),
        read_from: freshness.read_from.and_then(convert::shown_time),
        unreadable: i64::try_from(freshness.unreadable).unwrap_or(i64::MAX),
        not_counted_since: freshness.not_counted_since.map(convert::timestamp),
    })
}

/// Leaves out the last rows where a reply would be too large; says whether it did.
fn fit<T: Message>(rows: &mut Vec<T>, bytes: &mut usize) -> bool {
    let mut kept = 0;
    for row in rows.iter() {
        // Tag and length come before each row.
        let size = row.encoded_len() + 8;
        if size > *bytes {
            break;
        }
        *bytes -= size;
        kept += 1;
    }
    let cut = kept < rows.len();
    rows.truncate(kept);
    cut
}

fn success_rate((group, summary): (Group, Summary)) -> proto::SuccessRate {
    proto::SuccessRate {
        app_id: group.app_id,
        app_name: group.app_name,
        sub_app_id: group.sub_app_id,
        sub_app_name: group.sub_app_name,
        user_id: group.user_id,
        total: summary.executions,
        completed: summary.completed,
        failed: summary.failed,
        cancelled: summary.cancelled,
        running: summary.running,
        success_rate: summary.success_rate(),
        mean_duration_ms: summary.mean_ms,
    }
}

fn change(change: &Change) -> proto::ReportChange {
    proto::ReportChange {
        previous_executions: change.previous_executions,
        executions_change: change.executions,
        success_rate_change: change.success_rate,
        p50_duration_change: change.p50,
        p90_duration_change: change.p90,
        p99_duration_change: change.p99,
        mean_duration_change: change.mean,
    }
}

fn report_app(row: &RowOfApp) -> proto::ReportApp {
    let summary = &row.summary;
    proto::ReportApp {
        app_id: row.app.app_id,
        app_name: row.app.app_name.clone(),
        executions: summary.executions,
        completed: summary.completed,
        failed: summary.failed,
        cancelled: summary.cancelled,
        running: summary.running,
        success_rate: summary.success_rate(),
        p50_duration_ms: summary.p50_ms,
        p90_duration_ms: summary.p90_ms,
        p99_duration_ms: summary.p99_ms,
        mean_duration_ms: summary.mean_ms,
        change: row.change.as_ref().map(change),
    }
}

fn failing_step(step: &FailingStep) -> proto::FailingStep {
    proto::FailingStep {
        app_id: step.app.app_id,
        app_name: step.app.app_name.clone(),
        step_name: step.step_name.clone(),
        failed: step.failed,
        errors: number(step.errors),
        top_fingerprint: step.top_fingerprint.clone(),
    }
}

fn report_row(row: &Row) -> proto::ReportRow {
    let summary = &row.summary;
    proto::ReportRow {
        label: row.named.label.clone(),
        start: Some(convert::timestamp(row.named.window.from)),
        end: Some(convert::timestamp(row.named.window.until)),
        partial: row.partial,
        executions: summary.executions,
        completed: summary.completed,
        failed: summary.failed,
        cancelled: summary.cancelled,
        running: summary.running,
        success_rate: summary.success_rate(),
        p50_duration_ms: summary.p50_ms,
        p90_duration_ms: summary.p90_ms,
        p99_duration_ms: summary.p99_ms,
        mean_duration_ms: summary.mean_ms,
        change: row.change.as_ref().map(change),
        apps: row.apps.iter().map(report_app).collect(),
        total_apps: number(row.total_apps),
        top_failing_steps: row.failing.iter().map(failing_step).collect(),
    }
}

fn trend_intervals(trend: &AppTrend) -> impl Iterator<Item = proto::TrendInterval> + '_ {
    trend.intervals.iter().map(|interval| {
        let summary = &interval.summary;
        proto::TrendInterval {
            start: Some(convert::timestamp(interval.window.from)),
            end: Some(convert::timestamp(interval.window.until)),
            app_id: trend.app.app_id,
            app_name: trend.app.app_name.clone(),
            executions: summary.executions,
            completed: summary.completed,
            failed: summary.failed,
            cancelled: summary.cancelled,
            running: summary.running,
            success_rate: summary.success_rate(),
            p50_duration_ms: summary.p50_ms,
            p90_duration_ms: summary.p90_ms,
            p99_duration_ms: summary.p99_ms,
            mean_duration_ms: summary.mean_ms,
        }
    })
}

fn app_trend(trend: &AppTrend) -> proto::AppTrend {
    let direction = match trend.direction {
        Direction::Unknown => proto::TrendDirection::Unknown,
        Direction::Steady => proto::TrendDirection::Steady,
        Direction::Slower => proto::TrendDirection::Slower,
        Direction::Faster => proto::TrendDirection::Faster,
    };
    proto::AppTrend {
        app_id: trend.app.app_id,
        app_name: trend.app.app_name.clone(),
        executions: trend.executions,
        direction: direction.into(),
        text: trend_text(trend),
        significant: matches!(trend.direction, Direction::Slower | Direction::Faster),
        recent_since: trend.recent_since.map(convert::timestamp),
        earlier_p90_duration_ms: trend.earlier_p90_ms,
        recent_p90_duration_ms: trend.recent_p90_ms,
        earlier_durations: trend.earlier_durations,
        recent_durations: trend.recent_durations,
    }
}

/// A duration as a sentence has it.
fn spoken(ms: i64) -> String {
    let of = |unit: f64| ms as f64 / unit;
    match ms {
        ..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.1} s", of(1e3)),
        60_000..3_600_000 => format!("{:.1} min", of(6e4)),
        3_600_000..86_400_000 => format!("{:.1} h", of(3.6e6)),
        _ => format!("{:.1} days", of(8.64e7)),
    }
}

fn trend_text(trend: &AppTrend) -> String {
    let (Some(earlier), Some(recent)) = (trend.earlier_p90_ms, trend.recent_p90_ms) else {
        return "too few durations to tell".to_owned();
    };
    let percent = (recent as f64 / earlier.max(1) as f64 - 1.0) * 100.0;
    let from_to = format!("p90 {} → {}", spoken(earlier), spoken(recent));
    match trend.direction {
        Direction::Unknown => "too few durations to tell".to_owned(),
        Direction::Steady => format!("steady: {from_to}, no significant change"),
        Direction::Slower => format!("slower: {from_to} (+{percent:.0} %)"),
        Direction::Faster => format!("faster: {from_to} (−{:.0} %)", percent.abs()),
    }
}

fn hours(hours: &Hours) -> Vec<proto::HourActivity> {
    let hour = |(hour, executions): (&usize, &i64)| proto::HourActivity {
        // Below 168.
        hour_of_week: i32::try_from(*hour).unwrap_or_default(),
        executions: *executions,
    };
    hours.iter().map(hour).collect()
}

fn slow_step(step: SlowStep) -> proto::SlowStep {
    proto::SlowStep {
        app_id: step.app.app_id,
        app_name: step.app.app_name,
        step_name: step.step_name,
        count: step.count,
        failed: step.failed,
        timed: step.timed,
        mean_duration_ms: step.mean_ms,
        p50_duration_ms: step.p50_ms,
        p90_duration_ms: step.p90_ms,
        p99_duration_ms: step.p99_ms,
        max_duration_ms: step.max_ms,
        execution_id: step.execution_id,
        step_id: Some(step.step_id),
    }
}

fn top_error(error: TopError) -> proto::TopError {
    let time = |at: Option<Millis>| at.and_then(convert::shown_time);
    let samples: Vec<proto::ErrorSample> = error
        .seen
        .samples
        .into_iter()
        .map(|(execution_id, failure)| proto::ErrorSample {
            execution_id,
            step_id: failure.step_id,
            step_name: failure.step_name,
            failed_at: time(failure.failed_at),
            message: failure.message,
        })
        .collect();
    proto::TopError {
        fingerprint: error.seen.fingerprint,
        pattern: samples
            .first()
            .map(|sample| fingerprint::pattern(&sample.message))
            .unwrap_or_default(),
        count: error.executions + error.steps,
        executions: error.executions,
        steps: error.steps,
        first_seen: time(error.seen.first),
        last_seen: time(error.seen.last),
        samples,
        trend: error.trend,
        app_names: error.app_names,
        step_names: error.step_names,
    }
}

impl Reports {
    /// Bytes that the rows of a reply may take.
    fn bytes(&self) -> usize {
        self.analytics.limits().page_bytes.saturating_sub(BESIDE_ROWS)
    }
}

#[tonic::async_trait]
impl proto::analytics_service_server::AnalyticsService for Reports {
    async fn get_success_rates(
        &self,
        request: Request<proto::GetSuccessRatesRequest>,
    ) -> Result<Response<proto::GetSuccessRatesResponse>, Status> {
        let limits = self.analytics.limits();
        let (filter, apart, limit) =
            requests::success_rates(limits, request.get_ref()).map_err(refused)?;
        let filter = filter.within(authenticate::scope(&request)?);
        let answer = self.analytics.success_rates(&filter, apart).await;
        let (mut groups, fresh) = answer.map_err(refused)?;
        let total_groups = number(groups.len());
        groups.truncate(limit);
        let mut groups = groups.into_iter().map(success_rate).collect();
        fit(&mut groups, &mut self.bytes());
        let freshness = freshness(&fresh);
        Ok(Response::new(proto::GetSuccessRatesResponse { groups, total_groups, freshness }))
    }

    async fn get_report(
        &self,
        request: Request<proto::GetReportRequest>,
    ) -> Result<Response<proto::GetReportResponse>, Status> {
        let limits = self.analytics.limits();
        let (filter, asked) = requests::report(limits, request.get_ref()).map_err(refused)?;
        let filter = filter.within(authenticate::scope(&request)?);
        let report = self.analytics.report(&filter, &asked).await.map_err(refused)?;
        let mut periods: Vec<proto::ReportRow> = report.rows.iter().map(report_row).collect();
        let size = |row: &proto::ReportRow| row.encoded_len() + 8;
        let mut bytes: usize = periods.iter().map(size).sum();
        let mut truncated = false;
        for row in &mut periods {
            if bytes <= self.bytes() {
                break;
            }
            bytes -= size(row);
            row.apps.clear();
            row.top_failing_steps.clear();
            bytes += size(row);
            truncated = true;
        }
        Ok(Response::new(proto::GetReportResponse {
            periods,
            time_zone: asked.zone.name().to_owned(),
            truncated,
            freshness: freshness(&report.freshness),
        }))
    }

    async fn get_trends(
        &self,
        request: Request<proto::GetTrendsRequest>,
    ) -> Result<Response<proto::GetTrendsResponse>, Status> {
        let limits = self.analytics.limits();
        let (filter, interval_ms, zone, limit) =
            requests::trends(limits, request.get_ref()).map_err(refused)?;
        let filter = filter.within(authenticate::scope(&request)?);
        let answer = self.analytics.trends(&filter, interval_ms, &zone, limit).await;
        let trends = answer.map_err(refused)?;
        let mut bytes = self.bytes();
        let (mut apps, mut intervals) = (Vec::new(), Vec::new());
        for trend in &trends.apps {
            let mut of_app: Vec<proto::TrendInterval> = trend_intervals(trend).collect();
            let mut app = vec![app_trend(trend)];
            // An app comes with all its intervals or not at all.
            if fit(&mut app, &mut bytes) || fit(&mut of_app, &mut bytes) {
                break;
            }
            apps.append(&mut app);
            intervals.append(&mut of_app);
        }
        Ok(Response::new(proto::GetTrendsResponse {
            intervals,
            apps,
            total_apps: number(trends.total_apps),
            time_zone: zone.name().to_owned(),
            freshness: freshness(&trends.freshness),
        }))
    }

    async fn get_user_activity(
        &self,
        request: Request<proto::GetUserActivityRequest>,
    ) -> Result<Response<proto::GetUserActivityResponse>, Status> {
        let limits = self.analytics.limits();
        let (filter, zone, limit) =
            requests::activity(limits, request.get_ref()).map_err(refused)?;
        let filter = filter.within(authenticate::scope(&request)?);
        let activity = self.analytics.activity(&filter, &zone).await.map_err(refused)?;
        let total_users = number(activity.users.len());
        let user = |(user_id, executions, of_user): &(Option<String>, i64, Hours)| {
            let (user_id, hours) = (user_id.clone(), hours(of_user));
            proto::UserActivity { user_id, executions: *executions, hours }
        };
        let mut users = activity.users.iter().take(limit).map(user).collect();
        fit(&mut users, &mut self.bytes());
        Ok(Response::new(proto::GetUserActivityResponse {
            users,
            total_users,
            hours: hours(&activity.all),
            executions: activity.all.values().sum(),
            since: Some(convert::timestamp(activity.window.from)),
            until: Some(convert::timestamp(activity.window.until)),
            time_zone: zone.name().to_owned(),
            freshness: freshness(&activity.freshness),
        }))
    }

    async fn list_slowest_steps(
        &self,
        request: Request<proto::ListSlowestStepsRequest>,
    ) -> Result<Response<proto::ListSlowestStepsResponse>, Status> {
        let limits = self.analytics.limits();
        let (filter, limit, max_executions) =
            requests::slowest_steps(limits, request.get_ref()).map_err(refused)?;
        let filter = filter.within(authenticate::scope(&request)?);
        let answer = self.analytics.slowest_steps(&filter, max_executions).await;
        let slow = answer.map_err(refused)?;
        let total_steps = number(slow.steps.len());
        let mut steps = slow.steps.into_iter().take(limit).map(slow_step).collect();
        fit(&mut steps, &mut self.bytes());
        Ok(Response::new(proto::ListSlowestStepsResponse {
            steps,
            total_steps,
            max_executions: number(max_executions),
            steps_read: number(slow.steps_read),
            freshness: freshness(&slow.freshness),
        }))
    }

    async fn list_top_errors(
        &self,
        request: Request<proto::ListTopErrorsRequest>,
    ) -> Result<Response<proto::ListTopErrorsResponse>, Status> {
        let limits = self.analytics.limits();
        let (filter, asked) = requests::top_errors(limits, request.get_ref()).map_err(refused)?;
        let filter = filter.within(authenticate::scope(&request)?);
        let top = self.analytics.top_errors(&filter, &asked).await.map_err(refused)?;
        let mut errors = top.errors.into_iter().map(top_error).collect();
        fit(&mut errors, &mut self.bytes());
        Ok(Response::new(proto::ListTopErrorsResponse {
            errors,
            total_errors: number(top.total_errors),
            interval_starts: top.interval_starts.into_iter().map(convert::timestamp).collect(),
            since: Some(convert::timestamp(top.window.from)),
            until: Some(convert::timestamp(top.window.until)),
            freshness: freshness(&top.freshness),
        }))
    }
}
