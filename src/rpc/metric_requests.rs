//! From requests of metrics to points and queries, as `requests` does it for the rest.

use super::convert;
use super::requests::Check;
use crate::app::Result;
use crate::app::metrics::{Query, Request};
use crate::domain::access::AppScope;
use crate::domain::limits::{
    Limits, METRIC_NAMES, METRIC_PAGE_DEFAULT, METRIC_PAGE_RECORDS, METRIC_POINTS,
    METRICS_PER_POINT, REQUEST_ID_CHARACTERS,
};
use crate::domain::{MetricPoint, Millis};
use crate::proto;
use crate::store::metrics::Span;

const INTERVAL_MS: std::ops::RangeInclusive<i64> = 1..=366 * 24 * 3600 * 1000;

pub fn record(limits: &Limits, request: proto::RecordMetricsRequest) -> Result<Request> {
    let mut check = Check::new(limits);
    check.execution_id(&request.execution_id);
    if let Some(id) = &request.request_id {
        if id.is_empty() {
            check.bad("request_id", "must not be empty");
        }
        check.characters("request_id", id, REQUEST_ID_CHARACTERS);
    }
    if !check.fits("points", request.points.len(), "points", METRIC_POINTS) {
        return check.done(Request {
            execution_id: String::new(),
            points: Vec::new(),
            request_id: None,
            put: false,
            asked: None,
        });
    }
    let mut points = Vec::with_capacity(request.points.len());
    for (place, sent) in request.points.into_iter().enumerate() {
        points.push(point(&mut check, place, &request.execution_id, sent));
    }
    check.done(Request {
        execution_id: request.execution_id,
        points,
        request_id: request.request_id,
        put: false,
        asked: None,
    })
}

pub fn put(limits: &Limits, request: proto::RecordMetricsRequest) -> Result<Request> {
    record(limits, request).map(|request| Request { put: true, ..request })
}

fn point(
    check: &mut Check<'_>,
    place: usize,
    execution_id: &str,
    sent: proto::MetricPoint,
) -> MetricPoint {
    let field = |name: &str| format!("points[{place}].{name}");
    if !sent.execution_id.is_empty() && sent.execution_id != execution_id {
        check.bad(&field("execution_id"), "differs from that of the request");
    }
    let at: Option<Millis> = match &sent.timestamp {
        None => {
            check.bad(&field("timestamp"), "is required");
            None
        }
        Some(at) => match convert::millis(at) {
            None => {
                check.bad(&field("timestamp"), "must be a valid time in the years 1 to 9999");
                None
            }
            valid => valid,
        },
    };
    if sent.step_id.is_some_and(|id| id < 0) {
        check.bad(&field("step_id"), "must not be negative");
    }
    if let Some(key) = &sent.step_key {
        if !check.is_name(key) {
            let limit = check.limits().name_characters;
            check.bad(&field("step_key"), format!("must have 1 to {limit} characters"));
        }
        if sent.step_id.is_some() {
            check.bad(&field("step_key"), "cannot be combined with step_id");
        }
    }
    if sent.metrics.is_empty() {
        check.bad(&field("metrics"), "is required");
    }
    let fits = check.fits(&field("metrics"), sent.metrics.len(), "metrics", METRICS_PER_POINT);
    let (mut bad_names, mut bad_values) = (0, 0);
    for (name, value) in sent.metrics.iter().filter(|_| fits) {
        let fits = check.is_name(name) && !name.contains('\0');
        bad_names += usize::from(!fits);
        bad_values += usize::from(!value.is_finite());
    }
    if bad_names > 0 {
        let limit = check.limits().name_characters;
        check.bad(
            &field("metrics"),
            format!("has {bad_names} names that are empty, contain U+0000, or exceed the limit of {limit} characters"),
        );
    }
    if bad_values > 0 {
        check.bad(
            &field("metrics"),
            format!("has {bad_values} numbers that are NaN or infinite, which cannot be stored"),
        );
    }
    MetricPoint {
        at: at.unwrap_or_default(),
        step_id: sent.step_id,
        step_key: sent.step_key,
        metrics: sent.metrics.into_iter().collect(),
    }
}

/// The query and the length of its intervals, in milliseconds.
pub fn query(limits: &Limits, request: proto::QueryMetricsRequest) -> Result<(Query, Option<i64>)> {
    let mut check = Check::new(limits);
    check.execution_id(&request.execution_id);
    if check.fits("names", request.names.len(), "names", METRIC_NAMES)
        && request.names.iter().any(|name| !check.is_name(name))
    {
        let limit = limits.name_characters;
        check.bad("names", format!("must have 1 to {limit} characters each"));
    }
    let step = check.of_step(request.step_id, request.step_key.as_ref());
    let from = check.time("since", request.since.as_ref());
    let until = check.time("until", request.until.as_ref());
    if let (Some(from), Some(until)) = (from, until)
        && until <= from
    {
        check.bad("until", "must be after since");
    }
    let interval_ms = request.interval.map(|interval| {
        let whole = interval.nanos % 1_000_000 == 0;
        let ms = interval.seconds.checked_mul(1000);
        let ms = ms.and_then(|ms| ms.checked_add(i64::from(interval.nanos / 1_000_000)));
        match ms {
            Some(ms) if whole && INTERVAL_MS.contains(&ms) => ms,
            _ => {
                check.bad("interval", "must be whole milliseconds, from 1 ms to 366 days");
                1
            }
        }
    });
    let size = match usize::try_from(request.page_size) {
        Ok(0) => METRIC_PAGE_DEFAULT,
        Ok(size) if size <= METRIC_PAGE_RECORDS => size,
        Ok(size) => {
            let limit = METRIC_PAGE_RECORDS;
            check.bad("page_size", format!("is {size}, more than the limit of {limit}"));
            1
        }
        Err(_) => {
            check.bad("page_size", "must not be negative");
            1
        }
    };
    let mut names = request.names;
    names.sort();
    names.dedup();
    let span = Span { execution_id: request.execution_id, from, until };
    let (token, scope) = (request.page_token, AppScope::all());
    check.done((Query { span, step, names, size, token, scope }, interval_ms))
}
