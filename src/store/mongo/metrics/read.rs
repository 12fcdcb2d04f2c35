//! Points by time and by arrival, and what the database makes of them per interval.
//!
//! A time series is read fast along its time and only so: a sort by time and id would unpack everything that
//! matches. So a page is sorted by time alone, and points of one time are put in order afterwards; those of the
//! last time, which the page may cut, are asked for by themselves. Ids that are no ObjectIds, as other programs choose them,
//! only the database can put in its order: `order` asks it to.

use std::ops::ControlFlow;

use bson::oid::ObjectId;
use bson::{Document, RawDocument, RawDocumentBuf, doc};

use super::dirty::HOUR_MS;
use super::hours::{self, Known};
use super::ids::{least, object_id, point_id};
use super::order::{Passed, in_order};
use super::points::{at, read_point, time_of, within};
use super::reach::reach;
use super::room::Metrics;
use super::stretch::{INTERVALS_TIME, parts, stretch_of};
use crate::domain::metric::interval_start;
use crate::domain::query::Page;
use crate::domain::{MetricInterval, MetricPoint, Millis};
use crate::store::Result;
use crate::store::metrics::{
    Arrived, EachArrived, IntervalKey, IntervalQuery, PointId, PointKey, Span,
};
use crate::store::mongo::db::{Collection, Connection};
use crate::store::mongo::names::METRICS;

/// Documents fetched at a time.
const FETCHED_AT_ONCE: u32 = 2000;
/// How much longer the next stretch of time is when one held less than half of a page.
const STRETCH: i64 = 8;
/// The longest stretch, unless an interval is longer: ten thousand hours.
const MOST_MS: i64 = 10_000 * HOUR_MS;
/// Executions asked about in one query.
const ASKED_AT_ONCE: usize = 500;

async fn find(
    ready: &Connection,
    points: &Collection,
    filter: Document,
    sort: Document,
    limit: usize,
) -> Result<Vec<RawDocumentBuf>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let find = points.find(filter).sort(sort).limit(limit).batch_size(FETCHED_AT_ONCE);
    ready.collect(find).await
}

pub async fn points(
    metrics: &Metrics,
    span: &Span,
    after: Option<&PointKey>,
    limit: usize,
) -> Result<Page<(PointKey, MetricPoint), PointKey>> {
    let ready = metrics.ready().await?;
    page_of(&ready, span, after, limit).await
}

/// A page of the points of an execution.
pub async fn page_of(
    ready: &Connection,
    span: &Span,
    after: Option<&PointKey>,
    limit: usize,
) -> Result<Page<(PointKey, MetricPoint), PointKey>> {
    let points = &ready.committed(METRICS);
    let of_it = || doc! { "execution_id": &span.execution_id };
    // One more tells whether there is more.
    let wanted = limit + 1;
    let mut passed = Passed::by(after)?;
    let mut found = Vec::new();
    let mut from = span.from;
    if let Some(after) = after {
        found = in_order(ready, points, at(of_it(), after.at), Some(&passed), wanted).await?;
        from = Some(after.at.saturating_add(1));
    }
    if found.len() < wanted {
        let room = wanted - found.len();
        let filter = within(of_it(), from, span.until);
        let mut later = find(ready, points, filter, doc! { "timestamp": 1 }, room).await?;
        let cut = (later.len() == room).then(|| later.iter().filter_map(|raw| time_of(raw)).max());
        let cut = cut.flatten();
        if let Some(cut) = cut {
            later.retain(|raw| time_of(raw).is_some_and(|at| at < cut));
        }
        later.sort_by_key(|raw| (time_of(raw), own_id(raw)));
        let same = |pair: &[RawDocumentBuf]| {
            time_of(&pair[0]) == time_of(&pair[1]) && own_id(&pair[0]) == own_id(&pair[1])
        };
        // In a time series several may have one.
        if later.iter().any(|raw| own_id(raw).is_none()) || later.windows(2).any(same) {
            let filter = within(of_it(), from, cut.or(span.until));
            later = in_order(ready, points, filter, None, room).await?;
        }
        found.append(&mut later);
        if let Some(cut) = cut {
            let room = wanted.saturating_sub(found.len());
            found.extend(in_order(ready, points, at(of_it(), cut), None, room.max(1)).await?);
        }
    }
    let more = found.len() > limit;
    let mut records: Vec<(PointKey, MetricPoint)> = Vec::with_capacity(found.len());
    for raw in found.iter().take(limit) {
        if let (Some(key), Some(point)) = (passed.one_more(raw), read_point(raw)) {
            records.push((key, point));
        }
    }
    let next = records.last().filter(|_| more).map(|(key, _)| key.clone());
    Ok(Page { records, next })
}

/// An id as servers give them, and nearly every program.
fn own_id(raw: &RawDocument) -> Option<ObjectId> {
    raw.get_object_id("_id").ok()
}

pub async fn has_points(metrics: &Metrics, execution_id: &str) -> Result<bool> {
    let ready = metrics.ready().await?;
    let points = &ready.committed(METRICS);
    Ok(ready.call(points.find_one(doc! { "execution_id": execution_id })).await?.is_some())
}

/// Goes over the time in stretches, each from the next point there is, so that a page neither reads all that is
/// left nor looks at every empty interval.
pub async fn intervals(
    metrics: &Metrics,
    query: &IntervalQuery,
) -> Result<Page<MetricInterval, IntervalKey>> {
    let ready = metrics.ready().await?;
    let points = &ready.committed(METRICS);
    let id = query.span.execution_id.as_str();
    let interval = query.interval_ms;
    let mut told = Vec::new();
    let mut from = query.span.from;
    if let Some((start, _)) = &query.after {
        from = Some(from.map_or(*start, |from| from.max(*start)));
    }
    let most = (MOST_MS / interval).max(1);
    let mut stretch = i64::try_from(query.limit).unwrap_or(i64::MAX).clamp(1, most);
    let mut left = query.examine;
    while told.len() < query.limit {
        let filter = within(doc! { "execution_id": id }, from, query.span.until);
        let next = find(&ready, points, filter, doc! { "timestamp": 1 }, 1).await?;
        let Some(first) = next.first().and_then(|raw| time_of(raw)) else { break };
        if left == 0 {
            let next = Some((interval_start(first, interval), String::new()));
            return Ok(Page { records: told, next });
        }
        let begin = interval_start(first, interval);
        let end = begin.saturating_add(interval.saturating_mul(stretch));
        let until = query.span.until.map_or(end, |until| until.min(end));
        // From where the interval begins, unless it is not wanted from there: so that hours are whole.
        let whole = from.map_or(begin, |from| from.max(begin));
        let least = begin.saturating_add(interval).min(until);
        // Figures of whole hours are those of all steps.
        let known = match query.step {
            None => hours::known(metrics, &ready, query, (whole, until), least, left).await?,
            Some(_) => None,
        };
        let known = known.unwrap_or_else(|| Known::nothing(first, until));
        let enough = known.until < until;
        let (until, used) = affordable(metrics, &ready, query, &known, least, left).await?;
        left = if enough { 0 } else { left.saturating_sub(used) };
        let before = told.len();
        let room = query.limit - before;
        if known.is_nothing() {
            let parts = parts(first, until, interval);
            let parts =
                parts.map(|part| stretch_of(&ready, points, query, part, room, INTERVALS_TIME));
            let parts = futures::future::try_join_all(parts).await?;
            told.extend(parts.into_iter().flatten().take(room));
        } else {
            let known = known.cut(until);
            told.extend(hours::intervals(&ready, query, known, room).await?);
        }
        if told.len() - before < query.limit / 2 {
            stretch = stretch.saturating_mul(STRETCH).min(most);
        }
        from = Some(until);
        if query.span.until == Some(until) || until == i64::MAX {
            break;
        }
    }
    Ok(Page { records: told, next: None })
}

/// Up to where no more is looked at than there may be, but at least to the end of the first interval; and how much
/// that is.
async fn affordable(
    metrics: &Metrics,
    ready: &Connection,
    query: &IntervalQuery,
    known: &Known,
    least: Millis,
    left: usize,
) -> Result<(Millis, usize)> {
    let until = known.until;
    let id = query.span.execution_id.as_str();
    let mut points = 0;
    for gap in &known.gaps {
        let figures = known.figures(gap.0);
        let room = left.saturating_sub(points + figures);
        let reach = reach(metrics, ready, id, *gap, room).await?;
        points += reach.points;
        if let Some(end) = reach.end {
            let end = interval_start(end, query.interval_ms).max(least).min(until);
            return Ok((end, left));
        }
    }
    Ok((until, points + known.figures(until)))
}

fn arrived(raw: &RawDocument) -> Option<Arrived> {
    Some(Arrived { id: point_id(raw.get_object_id("_id").ok()?), point: read_point(raw)? })
}

pub async fn arrived_since(
    metrics: &Metrics,
    execution_ids: &[String],
    since: Millis,
    each: &mut EachArrived<'_>,
) -> Result<()> {
    let ready = metrics.ready().await?;
    for ids in execution_ids.chunks(ASKED_AT_ONCE) {
        let filter = doc! { "execution_id": { "$in": ids }, "_id": { "$gte": least(since) } };
        let points = ready.committed(METRICS);
        let found = ready.each(points.find(filter).batch_size(FETCHED_AT_ONCE), |raw| {
            if let (Ok(id), Some(arrived)) = (raw.get_str("execution_id"), arrived(raw)) {
                each(id, arrived);
            }
            ControlFlow::Continue(())
        });
        found.await?;
    }
    Ok(())
}

pub async fn arrived_from(
    metrics: &Metrics,
    execution_id: &str,
    from: PointId,
    limit: usize,
) -> Result<Vec<Arrived>> {
    let ready = metrics.ready().await?;
    let filter = doc! { "execution_id": execution_id, "_id": { "$gte": object_id(from) } };
    let points = &ready.committed(METRICS);
    let found = find(&ready, points, filter, doc! { "_id": 1 }, limit).await?;
    Ok(found.iter().filter_map(|raw| arrived(raw)).collect())
}
