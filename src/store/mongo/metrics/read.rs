//! Points by time and by arrival, and what the database makes of them per interval.
//!
//! A time series is read fast along its time and only so: a sort by time and id would unpack everything that
//! matches. So a page is sorted by time alone, and points of one time are put in order afterwards; those of the
//! last time, which the page may cut, are asked for by themselves.

use std::time::Duration;

use bson::raw::RawBsonRef;
use bson::{Bson, DateTime, Document, RawDocument, RawDocumentBuf, doc};
use mongodb::Collection;

use super::hours::{self, HOUR_MS, Known};
use super::ids::{least, object_id, point_id};
use super::reach::reach;
use super::{number, read_point};
use crate::domain::metric::interval_start;
use crate::domain::query::Page;
use crate::domain::{MetricInterval, MetricPoint, Millis};
use crate::store::metrics::{
    Arrived, EachArrived, IntervalKey, IntervalQuery, PointId, PointKey, Span,
};
use crate::store::mongo::{Inner, Ready, failure};
use crate::store::{Error, Result};

/// How long the database may take over the intervals of a page: it may have to read millions of points.
pub(super) const INTERVALS_TIME: Duration = Duration::from_secs(60);
/// How much longer the next stretch of time is when one held less than half of a page.
const STRETCH: i64 = 8;
/// The longest stretch, unless an interval is longer: ten thousand hours.
const MOST_MS: i64 = 10_000 * HOUR_MS;
/// Stretches of so many intervals are worked on in parts.
const SPLIT_INTERVALS: i64 = 100;
const SPLIT_PARTS: i64 = 4;
/// Executions asked about in one query.
const ASKED_AT_ONCE: usize = 500;

pub(super) fn within(from: Option<Millis>, until: Option<Millis>) -> Document {
    // Said even where there is no bound: what has no date for a time is no point.
    let mut range = doc! { "$type": "date" };
    if let Some(from) = from {
        range.insert("$gte", DateTime::from_millis(from));
    }
    if let Some(until) = until {
        range.insert("$lt", DateTime::from_millis(until));
    }
    range
}

pub(super) fn time_of(document: &RawDocument) -> Option<Millis> {
    document.get_datetime("timestamp").ok().map(DateTime::timestamp_millis)
}

/// The key of a point: its time, and its `_id` whatever that is.
fn key_of(document: &RawDocument) -> Option<PointKey> {
    let at = time_of(document)?;
    let id = document.get("_id").ok().flatten()?;
    let id = match id {
        RawBsonRef::ObjectId(id) => Bson::ObjectId(id),
        other => Bson::try_from(other).ok()?,
    };
    Some(PointKey { at, id: doc! { "_": id }.to_vec().ok()? })
}

async fn find(
    inner: &Inner,
    points: &Collection<RawDocumentBuf>,
    filter: Document,
    sort: Document,
    limit: usize,
) -> Result<Vec<RawDocumentBuf>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    inner
        .call(async {
            let mut found = Vec::new();
            let mut cursor = points.find(filter).sort(sort).limit(limit).batch_size(2000).await?;
            while cursor.advance().await? {
                found.push(cursor.current().to_owned());
            }
            Ok(found)
        })
        .await
}

pub(super) async fn points(
    inner: &Inner,
    span: &Span,
    after: Option<&PointKey>,
    limit: usize,
) -> Result<Page<(PointKey, MetricPoint), PointKey>> {
    let ready = inner.ready().await?;
    let points = &ready.metrics.committed_points;
    let id = span.execution_id.as_str();
    // One more tells whether there is more.
    let wanted = limit + 1;
    let mut found = Vec::new();
    let mut from = span.from;
    if let Some(after) = after {
        let last = Document::from_reader(after.id.as_slice()).map_err(|_| Error::BadCursor)?;
        let last = last.get("_").cloned().ok_or(Error::BadCursor)?;
        let later = doc! { "$gt": ["$_id", { "$literal": last }] };
        let same = doc! {
            "execution_id": id,
            "timestamp": DateTime::from_millis(after.at),
            "$expr": later,
        };
        found = find(inner, points, same, doc! { "_id": 1 }, wanted).await?;
        from = Some(after.at.saturating_add(1));
    }
    if found.len() < wanted {
        let room = wanted - found.len();
        let filter = doc! { "execution_id": id, "timestamp": within(from, span.until) };
        let mut later = find(inner, points, filter, doc! { "timestamp": 1 }, room).await?;
        let cut = (later.len() == room).then(|| later.iter().filter_map(|raw| time_of(raw)).max());
        let cut = cut.flatten();
        if let Some(cut) = cut {
            later.retain(|raw| time_of(raw).is_some_and(|at| at < cut));
        }
        later.sort_by_key(|raw| (time_of(raw), raw.get_object_id("_id").ok()));
        found.append(&mut later);
        if let Some(cut) = cut {
            let same = doc! { "execution_id": id, "timestamp": DateTime::from_millis(cut) };
            let room = wanted - found.len();
            found.extend(find(inner, points, same, doc! { "_id": 1 }, room).await?);
        }
    }
    let more = found.len() > limit;
    let mut records: Vec<(PointKey, MetricPoint)> = Vec::with_capacity(found.len());
    for raw in found.iter().take(limit) {
        if let (Some(key), Some(point)) = (key_of(raw), read_point(raw)) {
            records.push((key, point));
        }
    }
    let next = records.last().filter(|_| more).map(|(key, _)| key.clone());
    Ok(Page { records, next })
}

pub(super) async fn has_points(inner: &Inner, execution_id: &str) -> Result<bool> {
    let ready = inner.ready().await?;
    let points = &ready.metrics.committed_points;
    Ok(inner.call(points.find_one(doc! { "execution_id": execution_id })).await?.is_some())
}

/// Goes over the time in stretches, each from the next point there is, so that a page neither reads all that is
/// left nor looks at every empty interval.
pub(super) async fn intervals(
    inner: &Inner,
    query: &IntervalQuery,
) -> Result<Page<MetricInterval, IntervalKey>> {
    let ready = inner.ready().await?;
    let points = &ready.metrics.committed_points;
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
        let filter = doc! { "execution_id": id, "timestamp": within(from, query.span.until) };
        let next = find(inner, points, filter, doc! { "timestamp": 1 }, 1).await?;
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
        let known = hours::known(inner, &ready, query, (whole, until), least, left).await?;
        let known = known.unwrap_or_else(|| Known::nothing(first, until));
        let enough = known.until < until;
        let (until, used) = affordable(inner, &ready, query, &known, least, left).await?;
        left = if enough { 0 } else { left.saturating_sub(used) };
        let before = told.len();
        let room = query.limit - before;
        if known.is_nothing() {
            let parts = parts(first, until, interval);
            let parts =
                parts.map(|part| stretch_of(inner, points, query, part, room, INTERVALS_TIME));
            let parts = futures::future::try_join_all(parts).await?;
            told.extend(parts.into_iter().flatten().take(room));
        } else {
            let known = known.cut(until);
            told.extend(hours::intervals(inner, &ready, query, known, room).await?);
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
    inner: &Inner,
    ready: &Ready,
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
        let reach = reach(inner, ready, id, *gap, room).await?;
        points += reach.points;
        if let Some(end) = reach.end {
            let end = interval_start(end, query.interval_ms).max(least).min(until);
            return Ok((end, left));
        }
    }
    Ok((until, points + known.figures(until)))
}

/// A long stretch in parts, which the database works on side by side; each ends where an interval does.
fn parts(from: Millis, until: Millis, interval_ms: i64) -> impl Iterator<Item = (Millis, Millis)> {
    let begin = interval_start(from, interval_ms);
    let intervals = until.saturating_sub(begin) / interval_ms;
    let count = if intervals >= SPLIT_INTERVALS { SPLIT_PARTS } else { 1 };
    let edge = move |part: i64| begin + intervals / count * part * interval_ms;
    (0..count).map(move |part| {
        let start = if part == 0 { from } else { edge(part) };
        (start, if part == count - 1 { until } else { edge(part + 1) })
    })
}

pub(super) async fn stretch_of(
    inner: &Inner,
    points: &Collection<RawDocumentBuf>,
    query: &IntervalQuery,
    (from, until): (Millis, Millis),
    limit: usize,
    patience: Duration,
) -> Result<Vec<MetricInterval>> {
    let at = doc! { "$toLong": "$timestamp" };
    let length = query.interval_ms;
    // The remainder has the sign of the time.
    let rest = doc! { "$mod": [{ "$add": [{ "$mod": [at.clone(), length] }, length] }, length] };
    let start = doc! { "$subtract": [at, rest] };
    let mut pipeline = vec![doc! { "$match": {
        "execution_id": &query.span.execution_id,
        "timestamp": within(Some(from), Some(until)),
    } }];
    // Finite numbers only: comparing sorts out other types, the bounds NaN and the infinite.
    let finite = doc! { "$gte": f64::MIN, "$lte": f64::MAX, "$not": { "$type": "array" } };
    let group = |start: Bson, name: Bson, time: &str, value: &str| {
        doc! { "$group": {
            "_id": { "s": start, "n": name },
            "min": { "$min": value },
            "max": { "$max": value },
            "mean": { "$avg": value },
            // Objects compare by their first field that differs: by time, then by arrival.
            "last": { "$max": { "t": time, "i": "$_id", "v": value } },
            "count": { "$sum": 1 },
        } }
    };
    match query.names.as_slice() {
        // Straight from the field, which is twice as fast as what follows.
        [name] if !name.starts_with('$') && !name.contains('.') => {
            let field = format!("metrics.{name}");
            let name = doc! { "$literal": name }.into();
            pipeline.push(doc! { "$match": { &field: finite } });
            pipeline.push(group(start.into(), name, "$timestamp", &format!("${field}")));
        }
        names => {
            let metric = |name: &String| {
                let field = doc! { "$literal": name };
                let value = doc! { "$getField": { "field": field.clone(), "input": "$metrics" } };
                Bson::Document(doc! { "k": field, "v": value })
            };
            let all = doc! { "$objectToArray": { "$cond": [
                { "$eq": [{ "$type": "$metrics" }, "object"] },
                "$metrics",
                { "$literal": {} },
            ] } };
            let metrics: Bson = match names {
                [] => all.into(),
                names => names.iter().map(metric).collect::<Vec<_>>().into(),
            };
            let fields = doc! { "_id": 1, "t": "$timestamp", "s": start, "m": metrics };
            pipeline.push(doc! { "$project": fields });
            pipeline.push(doc! { "$unwind": "$m" });
            pipeline.push(doc! { "$match": { "m.v": finite } });
            pipeline.push(group("$s".into(), "$m.k".into(), "$t", "$m.v"));
        }
    }
    if let Some((start, name)) = &query.after {
        let name = doc! { "_id.s": *start, "_id.n": { "$gt": name } };
        pipeline.push(doc! { "$match": { "$or": [{ "_id.s": { "$gt": *start } }, name] } });
    }
    pipeline.push(doc! { "$sort": { "_id.s": 1, "_id.n": 1 } });
    pipeline.push(doc! { "$limit": i64::try_from(limit).unwrap_or(i64::MAX) });
    let aggregate = points
        .aggregate(pipeline)
        .allow_disk_use(true)
        .max_time(patience)
        .with_type::<RawDocumentBuf>();
    let told = async {
        let mut told = Vec::new();
        let mut cursor = aggregate.await?;
        while cursor.advance().await? {
            told.extend(read_interval(cursor.current()));
        }
        Ok(told)
    };
    match tokio::time::timeout(patience + inner.patience, told).await {
        Ok(told) => told.map_err(failure::error),
        Err(_) => Err(failure::timeout()),
    }
}

fn read_interval(raw: &RawDocument) -> Option<MetricInterval> {
    let value = |document: &RawDocument, name| document.get(name).ok().flatten().and_then(number);
    let id = raw.get_document("_id").ok()?;
    let last = raw.get_document("last").ok()?;
    Some(MetricInterval {
        name: id.get_str("n").ok()?.to_owned(),
        start: value(id, "s")? as i64,
        min: value(raw, "min")?,
        max: value(raw, "max")?,
        // Of the greatest numbers the sum has no finite value, and the mean neither.
        mean: value(raw, "mean").unwrap_or(f64::INFINITY),
        last: value(last, "v")?,
        count: value(raw, "count")? as i64,
    })
}

fn arrived(raw: &RawDocument) -> Option<Arrived> {
    Some(Arrived { id: point_id(raw.get_object_id("_id").ok()?), point: read_point(raw)? })
}

pub(super) async fn arrived_since(
    inner: &Inner,
    execution_ids: &[String],
    since: Millis,
    each: &mut EachArrived<'_>,
) -> Result<()> {
    let ready = inner.ready().await?;
    for ids in execution_ids.chunks(ASKED_AT_ONCE) {
        let filter = doc! { "execution_id": { "$in": ids }, "_id": { "$gte": least(since) } };
        let find = ready.metrics.committed_points.find(filter).batch_size(2000);
        inner
            .call(async {
                let mut cursor = find.await?;
                while cursor.advance().await? {
                    let raw = cursor.current();
                    if let (Ok(id), Some(arrived)) = (raw.get_str("execution_id"), arrived(raw)) {
                        each(id, arrived);
                    }
                }
                Ok(())
            })
            .await?;
    }
    Ok(())
}

pub(super) async fn arrived_from(
    inner: &Inner,
    execution_id: &str,
    from: PointId,
    limit: usize,
) -> Result<Vec<Arrived>> {
    let ready = inner.ready().await?;
    let filter = doc! { "execution_id": execution_id, "_id": { "$gte": object_id(from) } };
    let points = &ready.metrics.committed_points;
    let found = find(inner, points, filter, doc! { "_id": 1 }, limit).await?;
    Ok(found.iter().filter_map(|raw| arrived(raw)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_stretch_are_the_stretch() {
        for (from, until, interval_ms) in [
            (7, 1000, 10),
            (7, 1003, 10),
            (-995, 5, 10),
            (0, 990, 10),
            (5, 6, 1),
            (123_456, 10_000_000, 7),
        ] {
            let parts: Vec<_> = parts(from, until, interval_ms).collect();
            assert_eq!((parts[0].0, parts[parts.len() - 1].1), (from, until));
            for pair in parts.windows(2) {
                assert_eq!(pair[0].1, pair[1].0);
                assert_eq!(pair[0].1.rem_euclid(interval_ms), 0, "ends where an interval does");
            }
            assert!(parts.iter().all(|(from, until)| from < until), "{parts:?}");
        }
    }
}
