//! How far in time a look at so many points goes, found out without reading them.
//!
//! The buckets of a time series say how many points they hold and from when on. Who may not see them, and an
//! ordinary collection, is counted along the index.

use bson::{DateTime, RawDocumentBuf, doc};

use super::METRICS;
use super::number;
use super::read::{time_of, within};
use crate::domain::Millis;
use crate::store::Result;
use crate::store::mongo::{Inner, Ready, failure};

/// Buckets looked at for one stretch of time. With more of them the stretch ends earlier.
const BUCKETS: i64 = 20_000;

/// What there is from one time to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reach {
    /// Points up to `end`, at most.
    pub points: usize,
    /// Before this there are no more points than may be looked at. `None`: so it is with all of them.
    pub end: Option<Millis>,
}

pub(super) async fn reach(
    inner: &Inner,
    ready: &Ready,
    execution_id: &str,
    (from, until): (Millis, Millis),
    most: usize,
) -> Result<Reach> {
    if ready.metrics.time_series
        && let Some(buckets) = buckets(inner, ready, execution_id, (from, until)).await?
    {
        let reach = along(&buckets, most);
        // Buckets that overlap say too little.
        if reach.end.is_none_or(|end| end > from) {
            return Ok(reach);
        }
    }
    counted(inner, ready, execution_id, (from, until), most).await
}

/// Buckets by the time from which they hold points, with how many. `None`: they are not for us to see.
async fn buckets(
    inner: &Inner,
    ready: &Ready,
    execution_id: &str,
    (from, until): (Millis, Millis),
) -> Result<Option<Vec<(Millis, usize)>>> {
    // A bucket that is still open may not say its count, but then its points are not packed.
    let unpacked = doc! { "$objectToArray": { "$ifNull": ["$data.timestamp", {}] } };
    let pipeline = [
        doc! { "$match": {
            "meta": execution_id,
            "control.min.timestamp": { "$lt": DateTime::from_millis(until) },
            "control.max.timestamp": { "$gte": DateTime::from_millis(from) },
        } },
        doc! { "$sort": { "control.min.timestamp": 1 } },
        doc! { "$limit": BUCKETS },
        doc! { "$project": {
            "_id": 0,
            "t": "$control.min.timestamp",
            "n": { "$ifNull": ["$control.count", { "$size": unpacked }] },
        } },
    ];
    let mut found = Vec::new();
    let read = async {
        let aggregate = ready.metrics.buckets.aggregate(pipeline).batch_size(BUCKETS as u32);
        let mut cursor = aggregate.with_type::<RawDocumentBuf>().await?;
        while cursor.advance().await? {
            let raw = cursor.current();
            if let (Ok(at), Some(points)) =
                (raw.get_datetime("t"), raw.get("n").ok().flatten().and_then(number))
            {
                found.push((at.timestamp_millis(), points as usize));
            }
        }
        Ok::<_, mongodb::error::Error>(())
    };
    match tokio::time::timeout(inner.patience * 2, read).await {
        Ok(Ok(())) => Ok(Some(found)),
        Ok(Err(error)) if failure::is_passing(&error) => Err(failure::error(error)),
        Ok(Err(error)) => {
            tracing::debug!(collection = METRICS, error = %failure::words(&error), "no buckets");
            Ok(None)
        }
        Err(_) => Err(failure::timeout()),
    }
}

fn along(buckets: &[(Millis, usize)], most: usize) -> Reach {
    let mut points = 0;
    for (at, more) in buckets {
        if points + more > most {
            return Reach { points, end: Some(*at) };
        }
        points += more;
    }
    match buckets.last() {
        Some((at, _)) if buckets.len() as i64 >= BUCKETS => Reach { points, end: Some(*at) },
        _ => Reach { points, end: None },
    }
}

async fn counted(
    inner: &Inner,
    ready: &Ready,
    execution_id: &str,
    (from, until): (Millis, Millis),
    most: usize,
) -> Result<Reach> {
    let points = &ready.metrics.committed_points;
    let filter =
        doc! { "execution_id": execution_id, "timestamp": within(Some(from), Some(until)) };
    let skip = most as u64;
    let find = points
        .find(filter.clone())
        .sort(doc! { "timestamp": 1 })
        .projection(doc! { "_id": 0, "timestamp": 1 })
        .skip(skip)
        .limit(1);
    let mut cursor = inner.call(find).await?;
    if inner.call(cursor.advance()).await? {
        return Ok(Reach { points: most, end: time_of(cursor.current()) });
    }
    let count = points.count_documents(filter);
    let count = inner.call(count).await?;
    Ok(Reach { points: usize::try_from(count).unwrap_or(usize::MAX), end: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_say_how_far_it_goes() {
        let buckets = [(10, 3), (20, 4), (30, 1)];
        assert_eq!(along(&buckets, 8), Reach { points: 8, end: None });
        assert_eq!(along(&buckets, 7), Reach { points: 7, end: Some(30) });
        assert_eq!(along(&buckets, 6), Reach { points: 3, end: Some(20) });
        assert_eq!(along(&buckets, 0), Reach { points: 0, end: Some(10) });
        let many = vec![(5, 1); BUCKETS as usize];
        assert_eq!(along(&many, usize::MAX), Reach { points: many.len(), end: Some(5) });
        assert_eq!(along(&[], 0), Reach { points: 0, end: None });
    }
}
