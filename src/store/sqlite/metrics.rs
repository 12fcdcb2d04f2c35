//! Points of metrics in a table of their own, in order of arrival. A request and its id are one transaction, so
//! there is no half of either.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use bson::{Document, RawBsonRef, RawDocument};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::SqliteStore;
use super::batch::Batch;
use crate::domain::audit::entry::Written;
use crate::domain::metric::{Summary, admit, interval_start};
use crate::domain::query::Page;
use crate::domain::{MetricCounts, MetricInterval, MetricPoint, Millis, Refusal};
use crate::store::metrics::{
    Arrived, EachArrived, IntervalKey, IntervalQuery, MetricStore, PointId, PointKey, Recorded,
    Recording, RequestId, Span,
};
use crate::store::{Error, Result};

/// How long the id of a request is known.
const REQUEST_KNOWN_MS: i64 = 24 * 3600 * 1000;
/// Points, or ids of requests, that go in one transaction for their age.
const EXPIRED_AT_ONCE: i64 = 10_000;

#[async_trait]
impl MetricStore for SqliteStore {
    async fn record(&self, requests: Vec<Recording>) -> Vec<Result<Recorded>> {
        let count = requests.len();
        let kept_ms = self.metrics_kept_ms;
        let recorded = self
            .write(move |batch| {
                let written: Vec<_> = requests.iter().map(Recording::recorded).collect();
                let outcomes = requests
                    .into_iter()
                    .map(|request| Ok(record(batch, request, kept_ms)?.map_err(Error::Refused)));
                let outcomes = outcomes.collect::<Result<Vec<_>>>()?;
                let written =
                    written.into_iter().zip(&outcomes).filter_map(|(written, outcome)| {
                        Some(Written { code: Some(batch.code(outcome)), ..written? })
                    });
                let written: Vec<_> = written.collect();
                batch.record_writes(&written)?;
                Ok(outcomes)
            })
            .await;
        match recorded {
            Ok(outcomes) => outcomes,
            Err(Error::Unaudited(why)) => {
                (0..count).map(|_| Err(Error::unaudited(why.to_string()))).collect()
            }
            Err(Error::Unavailable(why)) => {
                (0..count).map(|_| Err(Error::Unavailable(why.again()))).collect()
            }
            Err(error) => {
                let words = error.to_string();
                (0..count).map(|_| Err(Error::failed(words.clone()))).collect()
            }
        }
    }

    fn metric_lanes(&self) -> usize {
        // There is one writer, but with a second call at hand it need not wait for the next.
        2
    }

    async fn points(
        &self,
        span: &Span,
        after: Option<&PointKey>,
        limit: usize,
    ) -> Result<Page<(PointKey, MetricPoint), PointKey>> {
        let (span, after) = (span.clone(), after.cloned());
        self.readers.run(move |connection| points(connection, &span, after, limit)).await
    }

    async fn intervals(&self, query: &IntervalQuery) -> Result<Page<MetricInterval, IntervalKey>> {
        let query = query.clone();
        self.readers.run(move |connection| intervals(connection, &query)).await
    }

    async fn has_points(&self, execution_id: &str) -> Result<bool> {
        let execution_id = execution_id.to_owned();
        self.readers
            .run(move |connection| {
                let found = connection
                    .prepare_cached("SELECT 1 FROM metrics WHERE execution_id = ?1 LIMIT 1")?
                    .exists([execution_id])?;
                Ok(found)
            })
            .await
    }

    fn arrivals_elsewhere(&self) -> bool {
        false
    }

    fn least_id(&self, _since: Millis) -> PointId {
        id_of(0)
    }

    async fn arrived_since(
        &self,
        _execution_ids: &[String],
        _since: Millis,
        _each: &mut EachArrived<'_>,
    ) -> Result<()> {
        Ok(())
    }

    async fn arrived_from(
        &self,
        execution_id: &str,
        from: PointId,
        limit: usize,
    ) -> Result<Vec<Arrived>> {
        let execution_id = execution_id.to_owned();
        self.readers
            .run(move |connection| {
                // Along the rows and not along the index by time: what is asked for came last.
                let mut statement = connection.prepare_cached(
                    "SELECT id, at, step_id, metrics, step_key FROM metrics \
                     WHERE id >= ?1 AND +execution_id = ?2 ORDER BY id LIMIT ?3",
                )?;
                let mut rows =
                    statement.query(params![row_of(from), execution_id, sql_limit(limit)])?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()? {
                    found.push(Arrived { id: id_of(row.get(0)?), point: read_point(row)? });
                }
                Ok(found)
            })
            .await
    }
}

fn id_of(row: i64) -> PointId {
    let mut id = [0; 12];
    id[4..].copy_from_slice(&row.to_be_bytes());
    PointId(id)
}

fn row_of(id: PointId) -> i64 {
    let mut row = [0; 8];
    row.copy_from_slice(&id.0[4..]);
    i64::from_be_bytes(row)
}

fn sql_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn write_metrics(metrics: &BTreeMap<String, f64>) -> Result<Vec<u8>> {
    let document: Document =
        metrics.iter().map(|(name, value)| (name.clone(), (*value).into())).collect();
    document.to_vec().map_err(Error::failed)
}

/// The point in the columns id, at, step_id, metrics, step_key.
pub(super) fn read_point(row: &Row<'_>) -> Result<MetricPoint> {
    let mut metrics = BTreeMap::new();
    each_metric(row, |name, value| {
        metrics.insert(name.to_owned(), value);
    })?;
    Ok(MetricPoint { at: row.get(1)?, step_id: row.get(2)?, step_key: row.get(4)?, metrics })
}

fn each_metric(row: &Row<'_>, mut each: impl FnMut(&str, f64)) -> Result<()> {
    let unreadable = || Error::Corrupt {
        collection: "metrics",
        id: row.get::<_, i64>(0).unwrap_or_default().to_string(),
        field: "metrics",
    };
    let bytes = row.get_ref(3)?.as_blob().map_err(Error::failed)?;
    let document = RawDocument::from_bytes(bytes).map_err(|_| unreadable())?;
    for element in document {
        if let (name, RawBsonRef::Double(value)) = element.map_err(|_| unreadable())? {
            each(name.as_str(), value);
        }
    }
    Ok(())
}

/// One request. The outer error rolls the transaction back, the inner one is the answer.
fn record(
    batch: &mut Batch<'_>,
    request: Recording,
    kept_ms: Option<i64>,
) -> Result<Result<Recorded, Refusal>> {
    let Recording { execution_id, mut points, request, put, now, .. } = request;
    let connection = batch.connection;
    if !put
        && !connection
            .prepare_cached(
                "SELECT 1 FROM executions WHERE execution_id = ?1 AND deleted_at IS NULL",
            )?
            .exists([&execution_id])?
    {
        return Ok(Err(Refusal::ExecutionNotFound { execution_id }));
    }
    if let Some(request) = &request
        && let Some((digest, counts)) = known_request(connection, &execution_id, request, now)?
    {
        if digest != request.digest {
            let request_id = request.id.clone();
            return Ok(Err(Refusal::MetricRequestExists { execution_id, request_id }));
        }
        let already_there = if put { counts.accepted } else { 0 };
        let counts = MetricCounts { already_there, ..counts };
        return Ok(Ok(Recorded { counts, stored: Vec::new() }));
    }
    let mut counts = admit(&mut points, now, kept_ms);
    let newest = points.iter().map(|point| point.at).max();
    if put {
        counts.already_there = leave_out_known(connection, &execution_id, &mut points)?;
    }
    let mut stored = Vec::with_capacity(points.len());
    let mut insert = connection.prepare_cached(
        "INSERT INTO metrics (execution_id, at, step_id, metrics, step_key) \
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for point in points {
        let metrics = write_metrics(&point.metrics)?;
        let MetricPoint { at, step_id, step_key, .. } = &point;
        let row = insert.insert(params![execution_id, at, step_id, metrics, step_key])?;
        stored.push(Arrived { id: id_of(row), point });
    }
    if let Some(request) = &request {
        let known_until = match (put, kept_ms) {
            (false, _) => Some(now.saturating_add(REQUEST_KNOWN_MS)),
            (true, Some(kept_ms)) => Some(newest.unwrap_or(now).max(now).saturating_add(kept_ms)),
            (true, None) => None,
        };
        connection
            .prepare_cached(
                "INSERT OR REPLACE INTO metric_requests \
                 (execution_id, request_id, known_until, digest, accepted, too_old, in_future) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                execution_id,
                request.id,
                known_until,
                request.digest,
                counts.accepted,
                counts.too_old,
                counts.in_future
            ])?;
    }
    Ok(Ok(Recorded { counts, stored }))
}

/// The digest and the counts of a request that came before.
fn known_request(
    connection: &Connection,
    execution_id: &str,
    request: &RequestId,
    now: Millis,
) -> Result<Option<(String, MetricCounts)>> {
    let known = connection
        .prepare_cached(
            "SELECT digest, accepted, too_old, in_future FROM metric_requests \
             WHERE execution_id = ?1 AND request_id = ?2 \
             AND (known_until IS NULL OR known_until > ?3)",
        )?
        .query_row(params![execution_id, request.id, now], |row| {
            let counts = MetricCounts {
                accepted: row.get(1)?,
                already_there: 0,
                too_old: row.get(2)?,
                in_future: row.get(3)?,
            };
            Ok((row.get(0)?, counts))
        })
        .optional()?;
    Ok(known)
}

/// Leaves out the points that are stored already, each as often as it is stored, and counts them.
fn leave_out_known(
    connection: &Connection,
    execution_id: &str,
    points: &mut Vec<MetricPoint>,
) -> Result<i64> {
    let times = points.iter().map(|point| point.at);
    let (Some(first), Some(last)) = (times.clone().min(), times.max()) else { return Ok(0) };
    let mut statement = connection.prepare_cached(
        "SELECT id, at, step_id, metrics, step_key FROM metrics \
         WHERE execution_id = ?1 AND at BETWEEN ?2 AND ?3",
    )?;
    let mut rows = statement.query(params![execution_id, first, last])?;
    let mut wanted: HashMap<[u8; 32], usize> = HashMap::new();
    for point in &*points {
        wanted.entry(point.digest()).or_default();
    }
    while let Some(row) = rows.next()? {
        if let Some(there) = wanted.get_mut(&read_point(row)?.digest()) {
            *there += 1;
        }
    }
    let before = points.len();
    points.retain(|point| match wanted.get_mut(&point.digest()) {
        Some(there) if *there > 0 => {
            *there -= 1;
            false
        }
        _ => true,
    });
    Ok((before - points.len()) as i64)
}

fn points(
    connection: &Connection,
    span: &Span,
    after: Option<PointKey>,
    limit: usize,
) -> Result<Page<(PointKey, MetricPoint), PointKey>> {
    let after = match after {
        None => (span.from.unwrap_or(i64::MIN), i64::MIN),
        Some(key) => {
            let id = <[u8; 8]>::try_from(key.id.as_slice()).map_err(|_| Error::BadCursor)?;
            (key.at, i64::from_be_bytes(id))
        }
    };
    let mut statement = connection.prepare_cached(
        "SELECT id, at, step_id, metrics, step_key FROM metrics \
         WHERE execution_id = ?1 AND at < ?2 AND (at, id) > (?3, ?4) ORDER BY at, id LIMIT ?5",
    )?;
    let mut rows = statement.query(params![
        span.execution_id,
        span.until.unwrap_or(i64::MAX),
        after.0,
        after.1,
        sql_limit(limit.saturating_add(1)),
    ])?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        if records.len() == limit {
            let next = records.last().map(|(key, _): &(PointKey, MetricPoint)| key.clone());
            return Ok(Page { records, next });
        }
        let point = read_point(row)?;
        let id = row.get::<_, i64>(0)?.to_be_bytes().to_vec();
        records.push((PointKey { at: point.at, id }, point));
    }
    Ok(Page { records, next: None })
}

/// Folds the points as the index has them, by time, so that a page reads no further than its last interval.
fn intervals(
    connection: &Connection,
    query: &IntervalQuery,
) -> Result<Page<MetricInterval, IntervalKey>> {
    let from = query.span.from.unwrap_or(i64::MIN);
    let from = query.after.as_ref().map_or(from, |(start, _)| from.max(*start));
    let mut statement = connection.prepare_cached(
        "SELECT id, at, step_id, metrics, step_key FROM metrics \
         WHERE execution_id = ?1 AND at >= ?2 AND at < ?3 ORDER BY at, id",
    )?;
    let mut rows = statement.query(params![
        query.span.execution_id,
        from,
        query.span.until.unwrap_or(i64::MAX)
    ])?;
    let mut told = Vec::new();
    let mut start = i64::MIN;
    let mut summaries: BTreeMap<String, Summary> = BTreeMap::new();
    let mut examined = 0;
    while let Some(row) = rows.next()? {
        let here = interval_start(row.get(1)?, query.interval_ms);
        if here != start {
            tell(&mut told, &mut summaries, start, query.limit);
            if told.len() >= query.limit {
                return Ok(Page { records: told, next: None });
            }
            if examined >= query.examine {
                return Ok(Page { records: told, next: Some((here, String::new())) });
            }
            start = here;
        }
        examined += 1;
        if let Some(step) = &query.step
            && !step.is(row.get(2)?, row.get_ref(4)?.as_str_or_null().map_err(Error::failed)?)
        {
            continue;
        }
        let after = query.after.as_ref().filter(|(at, _)| *at == here);
        each_metric(row, |name, value| {
            let asked = query.names.is_empty() || query.names.iter().any(|asked| asked == name);
            if !asked || after.is_some_and(|(_, after)| name <= after.as_str()) {
                return;
            }
            match summaries.get_mut(name) {
                Some(summary) => summary.add(value),
                None => {
                    summaries.insert(name.to_owned(), Summary::of(value));
                    // One that goes is greater than all that stay, so it never comes back in.
                    if summaries.len() > query.limit {
                        summaries.pop_last();
                    }
                }
            }
        })?;
    }
    tell(&mut told, &mut summaries, start, query.limit);
    Ok(Page { records: told, next: None })
}

fn tell(
    told: &mut Vec<MetricInterval>,
    summaries: &mut BTreeMap<String, Summary>,
    start: Millis,
    limit: usize,
) {
    let room = limit - told.len();
    let summaries = std::mem::take(summaries).into_iter().take(room);
    told.extend(summaries.map(|(name, summary)| summary.interval(name, start)));
}

/// Deletes what was recorded of an execution, at most so many rows, and says how many. Fewer: that was all.
pub fn delete(connection: &Connection, execution_id: &str, most: usize) -> Result<(usize, usize)> {
    let gone = |sql, most: usize| -> Result<usize> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        Ok(connection.prepare_cached(sql)?.execute(params![execution_id, most])?)
    };
    let points = gone(
        "DELETE FROM metrics WHERE id IN (SELECT id FROM metrics WHERE execution_id = ?1 LIMIT ?2)",
        most,
    )?;
    let requests = gone(
        "DELETE FROM metric_requests WHERE (execution_id, request_id) IN (\
         SELECT execution_id, request_id FROM metric_requests WHERE execution_id = ?1 LIMIT ?2)",
        most - points,
    )?;
    Ok((points, requests))
}

/// How many points an execution has.
pub fn number(connection: &Connection, execution_id: &str) -> Result<u64> {
    let sql = "SELECT count(*) FROM metrics WHERE execution_id = ?1";
    let number: i64 =
        connection.prepare_cached(sql)?.query_row([execution_id], |row| row.get(0))?;
    Ok(number.unsigned_abs())
}

/// The time of the oldest point.
pub fn oldest(connection: &Connection) -> Result<Option<Millis>> {
    let sql = "SELECT min(at) FROM metrics";
    Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}

/// Lets go of a piece of what is too old. `false`: there was no more.
pub fn expire(connection: &Connection, now: Millis, kept_ms: Option<i64>) -> Result<bool> {
    let mut gone = 0;
    if let Some(kept_ms) = kept_ms {
        gone += connection
            .prepare_cached(
                "DELETE FROM metrics WHERE id IN (SELECT id FROM metrics WHERE at < ?1 LIMIT ?2)",
            )?
            .execute([now.saturating_sub(kept_ms), EXPIRED_AT_ONCE])?;
    }
    gone += connection
        .prepare_cached(
            "DELETE FROM metric_requests WHERE (execution_id, request_id) IN (\
             SELECT execution_id, request_id FROM metric_requests \
             WHERE known_until <= ?1 LIMIT ?2)",
        )?
        .execute([now, EXPIRED_AT_ONCE])?;
    Ok(gone >= EXPIRED_AT_ONCE as usize)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::clock::{Clock, ManualClock};
    use crate::domain::limits::Limits;
    use crate::store::Store as _;
    use crate::store::sqlite::{SqliteOptions, Synchronous};

    const DAY_MS: i64 = 24 * 3600 * 1000;

    #[tokio::test]
    async fn points_and_requests_go_when_they_are_too_old() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(100 * DAY_MS * 1000));
        let options = SqliteOptions {
            synchronous: Synchronous::Normal,
            metrics_kept: Some(Duration::from_secs(10 * 24 * 3600)),
            ..SqliteOptions::default()
        };
        let clocked: Arc<dyn Clock> = Arc::clone(&clock) as _;
        let store = SqliteStore::open(dir.path(), options, Limits::default(), clocked).unwrap();
        let point = |day: i64| MetricPoint {
            at: day * DAY_MS,
            step_id: None,
            step_key: None,
            metrics: BTreeMap::from([("n".to_owned(), day as f64)]),
        };
        // More than goes at once.
        let mut points = vec![point(91); 12_000];
        points.push(point(99));
        let request = |put| Recording {
            execution_id: "e".to_owned(),
            points: points.clone(),
            request: Some(RequestId { id: format!("{put}"), digest: String::new() }),
            put,
            now: clock.now().millis(),
            asked: None,
        };
        let counts = async |request| store.record(vec![request]).await.remove(0).unwrap().counts;
        assert_eq!(counts(request(true)).await.accepted, 12_001);
        let left = async || {
            store.sweep().await.unwrap();
            let connection = schema_connection(dir.path());
            let count = |table: &str| -> i64 {
                let sql = format!("SELECT count(*) FROM {table}");
                connection.query_row(&sql, [], |row| row.get(0)).unwrap()
            };
            (count("metrics"), count("metric_requests"))
        };
        assert_eq!(left().await, (12_001, 1));
        clock.advance_ms(DAY_MS + 1);
        assert_eq!(left().await, (1, 1), "the request is known as long as its last point");
        assert_eq!(counts(request(true)).await.already_there, 12_001, "and answers as before");
        clock.advance_ms(8 * DAY_MS);
        assert_eq!(left().await, (0, 1));
        clock.advance_ms(DAY_MS);
        assert_eq!(left().await, (0, 0));
        assert_eq!(counts(request(true)).await.too_old, 12_001);
    }

    fn schema_connection(dir: &std::path::Path) -> Connection {
        Connection::open(dir.join("stepwell.db")).unwrap()
    }
}
