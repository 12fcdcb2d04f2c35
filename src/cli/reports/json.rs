//! Reports as JSON: the names of the API, every key always there.

use serde_json::{Value as Json, json};

use crate::cli::json::time;
use crate::proto;

fn freshness(freshness: Option<&proto::Freshness>) -> Json {
    freshness.map_or(Json::Null, |freshness| {
        json!({
            "complete": freshness.complete,
            "exact_since": time(freshness.exact_since.as_ref()),
            "counted_until": time(freshness.counted_until.as_ref()),
            "not_counted_since": time(freshness.not_counted_since.as_ref()),
            "executions_read": freshness.executions_read,
            "unreadable": freshness.unreadable,
            "read_from": time(freshness.read_from.as_ref()),
        })
    })
}

/// The numbers that every row of a report has.
macro_rules! summary {
    ($row:expr, { $($name:literal: $value:expr),* $(,)? }) => {{
        let row = $row;
        json!({
            $($name: $value,)*
            "executions": row.executions,
            "completed": row.completed,
            "failed": row.failed,
            "cancelled": row.cancelled,
            "running": row.running,
            "success_rate": row.success_rate,
            "p50_duration_ms": row.p50_duration_ms,
            "p90_duration_ms": row.p90_duration_ms,
            "p99_duration_ms": row.p99_duration_ms,
            "mean_duration_ms": row.mean_duration_ms,
        })
    }};
}

fn change(change: Option<&proto::ReportChange>) -> Json {
    change.map_or(Json::Null, |change| {
        json!({
            "previous_executions": change.previous_executions,
            "executions_change": change.executions_change,
            "success_rate_change": change.success_rate_change,
            "p50_duration_change": change.p50_duration_change,
            "p90_duration_change": change.p90_duration_change,
            "p99_duration_change": change.p99_duration_change,
            "mean_duration_change": change.mean_duration_change,
        })
    })
}

fn report_row(row: &proto::ReportRow) -> Json {
    let app = |app: &proto::ReportApp| {
        summary!(app, {
            "app_id": app.app_id,
            "app_name": app.app_name,
            "change": change(app.change.as_ref()),
        })
    };
    let step = |step: &proto::FailingStep| {
        json!({
            "app_id": step.app_id,
            "app_name": step.app_name,
            "step_name": step.step_name,
            "failed": step.failed,
            "errors": step.errors,
            "top_fingerprint": step.top_fingerprint,
        })
    };
    summary!(row, {
        "label": row.label,
        "start": time(row.start.as_ref()),
        "end": time(row.end.as_ref()),
        "partial": row.partial,
        "change": change(row.change.as_ref()),
        "apps": row.apps.iter().map(app).collect::<Vec<_>>(),
        "total_apps": row.total_apps,
        "top_failing_steps": row.top_failing_steps.iter().map(step).collect::<Vec<_>>(),
    })
}

pub fn report(report: &proto::GetReportResponse) -> Json {
    json!({
        "periods": report.periods.iter().map(report_row).collect::<Vec<_>>(),
        "time_zone": report.time_zone,
        "truncated": report.truncated,
        "freshness": freshness(report.freshness.as_ref()),
    })
}

pub fn trends(trends: &proto::GetTrendsResponse) -> Json {
    let interval = |interval: &proto::TrendInterval| {
        summary!(interval, {
            "start": time(interval.start.as_ref()),
            "end": time(interval.end.as_ref()),
            "app_id": interval.app_id,
            "app_name": interval.app_name,
        })
    };
    let app = |app: &proto::AppTrend| {
        json!({
            "app_id": app.app_id,
            "app_name": app.app_name,
            "executions": app.executions,
            "direction": app.direction().as_str_name(),
            "text": app.text,
            "significant": app.significant,
            "recent_since": time(app.recent_since.as_ref()),
            "earlier_p90_duration_ms": app.earlier_p90_duration_ms,
            "recent_p90_duration_ms": app.recent_p90_duration_ms,
            "earlier_durations": app.earlier_durations,
            "recent_durations": app.recent_durations,
        })
    };
    json!({
        "intervals": trends.intervals.iter().map(interval).collect::<Vec<_>>(),
        "apps": trends.apps.iter().map(app).collect::<Vec<_>>(),
        "total_apps": trends.total_apps,
        "time_zone": trends.time_zone,
        "freshness": freshness(trends.freshness.as_ref()),
    })
}

pub fn errors(errors: &proto::ListTopErrorsResponse) -> Json {
    let sample = |sample: &proto::ErrorSample| {
        json!({
            "execution_id": sample.execution_id,
            "step_id": sample.step_id,
            "step_name": sample.step_name,
            "failed_at": time(sample.failed_at.as_ref()),
            "message": sample.message,
        })
    };
    let error = |error: &proto::TopError| {
        json!({
            "fingerprint": error.fingerprint,
            "pattern": error.pattern,
            "count": error.count,
            "executions": error.executions,
            "steps": error.steps,
            "first_seen": time(error.first_seen.as_ref()),
            "last_seen": time(error.last_seen.as_ref()),
            "samples": error.samples.iter().map(sample).collect::<Vec<_>>(),
            "trend": error.trend,
            "app_names": error.app_names,
            "step_names": error.step_names,
        })
    };
    json!({
        "errors": errors.errors.iter().map(error).collect::<Vec<_>>(),
        "total_errors": errors.total_errors,
        "interval_starts":
            errors.interval_starts.iter().map(|at| time(Some(at))).collect::<Vec<_>>(),
        "since": time(errors.since.as_ref()),
        "until": time(errors.until.as_ref()),
        "freshness": freshness(errors.freshness.as_ref()),
    })
}

pub fn activity(activity: &proto::GetUserActivityResponse) -> Json {
    fn hours(hours: &[proto::HourActivity]) -> Vec<Json> {
        let hour = |hour: &proto::HourActivity| json!({ "hour_of_week": hour.hour_of_week, "executions": hour.executions });
        hours.iter().map(hour).collect()
    }
    let user = |user: &proto::UserActivity| {
        json!({
            "user_id": user.user_id,
            "executions": user.executions,
            "hours": hours(&user.hours),
        })
    };
    json!({
        "users": activity.users.iter().map(user).collect::<Vec<_>>(),
        "total_users": activity.total_users,
        "hours": hours(&activity.hours),
        "executions": activity.executions,
        "since": time(activity.since.as_ref()),
        "until": time(activity.until.as_ref()),
        "time_zone": activity.time_zone,
        "freshness": freshness(activity.freshness.as_ref()),
    })
}
