//! What the database makes of the points of one stretch of time: their figures per interval.

use std::time::Duration;

use bson::{Bson, RawDocument, doc};

use super::points::{points_of, within};
use crate::domain::metric::interval_start;
use crate::domain::{MetricInterval, Millis};
use crate::store::Result;
use crate::store::metrics::IntervalQuery;
use crate::store::mongo::db::values::{field, number};
use crate::store::mongo::db::{Collection, Connection};

/// How long the database may take over the intervals of a page: it may have to read millions of points.
pub const INTERVALS_TIME: Duration = Duration::from_secs(60);
/// Stretches of so many intervals are worked on in parts.
const SPLIT_INTERVALS: i64 = 100;
const SPLIT_PARTS: i64 = 4;

/// A long stretch in parts, which the database works on side by side; each ends where an interval does.
pub fn parts(
    from: Millis,
    until: Millis,
    interval_ms: i64,
) -> impl Iterator<Item = (Millis, Millis)> {
    let begin = interval_start(from, interval_ms);
    let intervals = until.saturating_sub(begin) / interval_ms;
    let count = if intervals >= SPLIT_INTERVALS { SPLIT_PARTS } else { 1 };
    let edge = move |part: i64| begin + intervals / count * part * interval_ms;
    (0..count).map(move |part| {
        let start = if part == 0 { from } else { edge(part) };
        (start, if part == count - 1 { until } else { edge(part + 1) })
    })
}

pub async fn stretch_of(
    ready: &Connection,
    points: &Collection,
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
    let wanted = points_of(&query.span.execution_id, query.step.as_ref());
    let mut pipeline = vec![doc! { "$match": within(wanted, Some(from), Some(until)) }];
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
    let aggregate = points.aggregate(pipeline).allow_disk_use(true).max_time(patience);
    let told = ready.collect_within(aggregate, patience + ready.patience()).await?;
    Ok(told.iter().filter_map(|raw| read_interval(raw)).collect())
}

fn read_interval(raw: &RawDocument) -> Option<MetricInterval> {
    let value = |document: &RawDocument, name| field(document, name).and_then(number);
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
