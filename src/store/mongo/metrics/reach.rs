//! How far in time a look at so many points goes, found out without reading them.
//!
//! The buckets of a time series say how many points they hold and from when on. Who may not see them, and an
//! ordinary collection, is counted along the index.

use bson::{DateTime, RawDocumentBuf, doc};

use super::points::{time_of, within};
use super::room::Metrics;
use crate::domain::Millis;

use crate::store::mongo::db::Connection;
use crate::store::mongo::db::values::{field, millis, number};
use crate::store::mongo::names::{BUCKETS, METRICS};
use crate::store::{Error, Result};

/// Buckets looked at for one stretch of time. With more of them the stretch ends earlier.
const BUCKETS_AT_ONCE: i64 = 20_000;

/// What there is from one time to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Points up to `end`, at most.
    pub points: usize,
    /// Before this there are no more points than may be looked at. `None`: so it is with all of them.
    pub end: Option<Millis>,
}

pub async fn reach(
    room: &Metrics,
    ready: &Connection,
    execution_id: &str,
    (from, until): (Millis, Millis),
    most: usize,
) -> Result<Reach> {
    if room.time_series()
        && let Some(buckets) = buckets(ready, execution_id, (from, until)).await?
    {
        let reach = along(&buckets, most);
        // Buckets that overlap say too little.
        if reach.end.is_none_or(|end| end > from) {
            return Ok(reach);
        }
    }
    counted(ready, execution_id, (from, until), most).await
}

/// Buckets by the time from which they hold points, with how many. `None`: they are not for us to see.
async fn buckets(
    ready: &Connection,
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
        doc! { "$limit": BUCKETS_AT_ONCE },
        doc! { "$project": {
            "_id": 0,
            "t": "$control.min.timestamp",
            "n": { "$ifNull": ["$control.count", { "$size": unpacked }] },
        } },
    ];
    let buckets = ready.committed(BUCKETS);
    let read = buckets.aggregate(pipeline).batch_size(BUCKETS_AT_ONCE as u32);
    match ready.collect(read).await {
        Ok(found) => {
            let bucket = |raw: &RawDocumentBuf| {
                let points = field(raw, "n").and_then(number)?;
                Some((field(raw, "t").and_then(millis)?, points as usize))
            };
            Ok(Some(found.iter().filter_map(bucket).collect()))
        }
        Err(Error::Failed(source)) => {
            tracing::debug!(collection = %METRICS, error = %source, "no buckets");
            Ok(None)
        }
        Err(Error::Denied(_)) => Ok(None),
        Err(error) => Err(error),
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
        Some((at, _)) if buckets.len() as i64 >= BUCKETS_AT_ONCE => {
            Reach { points, end: Some(*at) }
        }
        _ => Reach { points, end: None },
    }
}

async fn counted(
    ready: &Connection,
    execution_id: &str,
    (from, until): (Millis, Millis),
    most: usize,
) -> Result<Reach> {
    let points = &ready.committed(METRICS);
    let filter = within(doc! { "execution_id": execution_id }, Some(from), Some(until));
    let skip = most as u64;
    let find = points
        .find(filter.clone())
        .sort(doc! { "timestamp": 1 })
        .projection(doc! { "_id": 0, "timestamp": 1 })
        .skip(skip)
        .limit(1);
    if let Some(beyond) = ready.rows(find).await?.next().await? {
        return Ok(Reach { points: most, end: time_of(beyond) });
    }
    let count = points.count_documents(filter);
    let count = ready.call(count).await?;
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
        let many = vec![(5, 1); BUCKETS_AT_ONCE as usize];
        assert_eq!(along(&many, usize::MAX), Reach { points: many.len(), end: Some(5) });
        assert_eq!(along(&[], 0), Reach { points: 0, end: None });
    }
}
