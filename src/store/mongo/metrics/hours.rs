//! Figures of whole hours, so that millions of points are not read again for every chart.
//!
//! A document per execution and hour says how often points were about to be stored in it (`g`, counted up before
//! they are) and when the last time was. Once nothing has come for half a minute, longer than any attempt may take,
//! the figures of the hour are computed in the database and written beside the number they are good for
//! (`computed`). They are good as long as the two are equal: the next point counts up first. One mark is enough for
//! all batches of a server that end within that half minute, since nothing is computed before. What has no such
//! document (points of other programs) is read itself, as ever.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bson::{Bson, DateTime, Document, RawDocument, RawDocumentBuf, doc};
use mongodb::Collection;
use parking_lot::Mutex;

use super::number;
use super::read::{INTERVALS_TIME, stretch_of};
use super::record::MARKED_WITHIN;
use crate::domain::metric::interval_start;
use crate::domain::{MetricInterval, Millis};
use crate::store::metrics::{IntervalQuery, Span};
use crate::store::mongo::command::Fate;
use crate::store::mongo::{Inner, Ready, failure};
use crate::store::{Error, Result};

pub(in crate::store::mongo) const METRIC_HOURS: &str = "stepwell_metric_hours";

pub(super) const HOUR_MS: i64 = 3_600_000;
/// How long nothing must have come into an hour until its figures are computed; longer where an attempt to store
/// points may take longer.
const QUIET_MS: i64 = 30_000;
/// A batch that took longer than this marks its hours once more.
const LONG: Duration = Duration::from_secs(20);
/// What is left of the quiet time when a batch that relies on an earlier mark has ended, whatever it took.
const MARGIN: Duration = Duration::from_secs(5);
const _: () = assert!(
    QUIET_MS as u128 / 2 > MARKED_WITHIN.as_millis() + MARGIN.as_millis(),
    "an earlier mark can be relied on for a while, however long an attempt may take: the quiet time is longer than that \
     by half of itself"
);
const _: () = assert!(
    LONG.as_millis() + MARKED_WITHIN.as_millis() + MARGIN.as_millis() <= QUIET_MS as u128,
    "a batch that took too long to rely on its mark marks its hours once more before their quiet time is over"
);
/// Marks that are remembered.
const MARKED: usize = 20_000;
/// A request over more hours than this makes no documents for those that have none.
const HOURS_OF_REQUEST: usize = 64;
/// Hours of which figures are computed in one query; fewer where that takes too long.
const HOURS_AT_ONCE: usize = 100;
/// How long one such query may take.
const COMPUTED_WITHIN: Duration = Duration::from_secs(10);
/// Hours whose figures are written with one command, so that it is never too long: a figure has some 100 bytes.
const WRITTEN_AT_ONCE: usize = 20;
/// How long one sweep computes figures.
const SWEEP: Duration = Duration::from_secs(5);
/// Metrics of an hour whose figures are kept; an hour with more is read itself.
const NAMES: usize = 1_000;
/// Gaps between hours with figures that are read one by one. With more of them everything is.
const GAPS: usize = 32;

/// How many hours were computed in one query without trouble.
pub(in crate::store::mongo) struct Pace(AtomicUsize);

impl Default for Pace {
    fn default() -> Self {
        Pace(AtomicUsize::new(HOURS_AT_ONCE))
    }
}

impl Pace {
    fn hours(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Fewer hours after a query that was too long, a little more after each that was not.
    fn learn(&self, hours: usize, succeeded: bool) {
        let next = match succeeded {
            true => (self.hours() + hours.div_ceil(4)).min(HOURS_AT_ONCE),
            false => (hours / 2).max(1),
        };
        self.0.store(next, Ordering::Relaxed);
    }
}

fn quiet_ms(inner: &Inner) -> i64 {
    let attempt = i64::try_from(inner.patience.as_millis()).unwrap_or(i64::MAX).saturating_mul(2);
    attempt.saturating_add(QUIET_MS / 2).max(QUIET_MS)
}

/// Hours that were marked a moment ago: no figures of them are computed as long as that is within the quiet time, so
/// that points may come into them without another mark.
#[derive(Default)]
pub(in crate::store::mongo) struct Marked(Mutex<HashMap<(String, i64), Moment>>);

/// By both clocks: the one stands still while the machine sleeps, the other may be set.
#[derive(Debug, Clone, Copy)]
struct Moment {
    instant: Instant,
    wall: Millis,
}

impl Moment {
    fn now(inner: &Inner) -> Moment {
        Moment { instant: Instant::now(), wall: inner.clock.now().millis() }
    }

    /// The longer of both; for ever if the clock was set back.
    fn elapsed(&self, inner: &Inner) -> Duration {
        let wall = u64::try_from(inner.clock.now().millis() - self.wall).unwrap_or(u64::MAX);
        self.instant.elapsed().max(Duration::from_millis(wall))
    }
}

impl Marked {
    fn is_fresh(&self, inner: &Inner, execution_id: &str, hour: i64) -> bool {
        let all = self.0.lock();
        let marked = all.get(&(execution_id.to_owned(), hour));
        marked.is_some_and(|marked| marked.elapsed(inner) < fresh(inner))
    }

    fn add(&self, inner: &Inner, hours: &[(String, i64)], since: Moment) {
        let mut all = self.0.lock();
        if all.len() + hours.len() > MARKED {
            all.retain(|_, marked| marked.elapsed(inner) < fresh(inner));
        }
        let room = MARKED.saturating_sub(all.len());
        all.extend(hours.iter().take(room).map(|hour| (hour.clone(), since)));
    }
}

/// How long after a mark a batch may begin that ends within the quiet time.
fn fresh(inner: &Inner) -> Duration {
    let quiet = Duration::from_millis(quiet_ms(inner).unsigned_abs());
    quiet.saturating_sub(inner.patience * 2 + MARKED_WITHIN + MARGIN)
}

fn hour_of(at: Millis) -> i64 {
    at.div_euclid(HOUR_MS)
}

fn id_of(execution_id: &str, hour: i64) -> Document {
    doc! { "e": execution_id, "h": hour }
}

/// The documents of an execution from one hour to another.
fn hours_of(execution_id: &str, from: impl Into<Bson>, until: impl Into<Bson>) -> Document {
    let from = doc! { "e": execution_id, "h": from.into() };
    let until = doc! { "e": execution_id, "h": until.into() };
    doc! { "_id": { "$gte": from, "$lt": until } }
}

fn collection(ready: &Ready) -> Collection<RawDocumentBuf> {
    ready.metrics.hours.clone()
}

/// Hours into which points are about to be stored, or have been.
pub(super) struct Marks {
    /// All of them, and what marks those that are not marked yet.
    all: Vec<RawDocumentBuf>,
    missing: Vec<RawDocumentBuf>,
    /// What is marked then, and has a document.
    hours: Vec<(String, i64)>,
    since: Moment,
}

impl Marks {
    /// Of the points by request: the execution and their times.
    pub(super) fn of<'a, T: Iterator<Item = Millis>>(
        inner: &Inner,
        requests: impl Iterator<Item = (&'a str, T)>,
    ) -> Result<Marks> {
        let mut wanted: HashMap<(&str, i64), bool> = HashMap::new();
        for (execution_id, times) in requests {
            let hours: HashSet<i64> = times.map(hour_of).collect();
            let make = hours.len() <= HOURS_OF_REQUEST;
            for hour in hours {
                *wanted.entry((execution_id, hour)).or_default() |= make;
            }
        }
        let mut marks = Marks {
            all: Vec::with_capacity(wanted.len()),
            missing: Vec::new(),
            hours: Vec::new(),
            since: Moment::now(inner),
        };
        for ((execution_id, hour), make) in wanted {
            let mut set = doc! { "dirty": true };
            if let Some(kept) = inner.metrics_kept_ms() {
                let end = hour.saturating_add(1).saturating_mul(HOUR_MS).saturating_add(kept);
                set.insert("ends", DateTime::from_millis(end));
            }
            let statement = doc! {
                "q": { "_id": id_of(execution_id, hour) },
                "u": { "$inc": { "g": 1_i64 }, "$set": set, "$currentDate": { "at": true } },
                "upsert": make,
            };
            let statement = RawDocumentBuf::try_from(&statement).map_err(Error::failed)?;
            if !inner.marked.is_fresh(inner, execution_id, hour) {
                marks.missing.push(statement.clone());
                if make {
                    marks.hours.push((execution_id.to_owned(), hour));
                }
            }
            marks.all.push(statement);
        }
        Ok(marks)
    }

    /// Says that points are about to come. Only then they may.
    pub(super) async fn set(&self, inner: &Inner, ready: &Ready) -> Result<()> {
        mark(ready, &self.missing).await?;
        inner.marked.add(inner, &self.hours, self.since);
        Ok(())
    }

    /// After the points: says so again if that took so long that somebody may have looked in between, or may yet
    /// take: what the database does with a command that was given up nobody knows.
    pub(super) async fn after(&self, inner: &Inner, ready: &Ready, known: bool) {
        if !known || self.since.elapsed(inner) > LONG {
            let _ = tokio::time::timeout(MARKED_WITHIN, mark(ready, &self.all)).await;
        }
    }
}

async fn mark(ready: &Ready, statements: &[RawDocumentBuf]) -> Result<()> {
    let mut left = statements.to_vec();
    // Of two servers that make the same document one is told that it is there.
    for _ in 0..3 {
        if left.is_empty() {
            return Ok(());
        }
        let fates = ready.commander.update(METRIC_HOURS, &left, None).await;
        // Without a document there is nothing to mark.
        let done = |fate: &Fate| matches!(fate, Fate::Done | Fate::Unmatched | Fate::Doubtful);
        let kept = left.iter().zip(&fates).filter(|(_, fate)| !done(fate));
        left = kept.map(|(statement, _)| statement.clone()).collect();
    }
    match left.is_empty() {
        true => Ok(()),
        false => Err(failure::away()),
    }
}

/// Lets go of the figures of executions whose points are gone.
pub(super) async fn forget(ready: &Ready, execution_ids: &[&str]) -> Result<()> {
    let of_one = |id: &&str| hours_of(id, Bson::MinKey, Bson::MaxKey);
    let all: Vec<Document> = execution_ids.iter().map(of_one).collect();
    collection(ready).delete_many(doc! { "$or": all }).await.map_err(failure::error)?;
    Ok(())
}

/// By the clock of the database, which also says when something came last.
fn is_quiet(inner: &Inner) -> Document {
    doc! { "$lt": ["$at", { "$subtract": ["$$NOW", quiet_ms(inner)] }] }
}

/// An hour whose figures have to be computed: the execution, the hour, and its number.
type Dirty = (String, i64, i64);

async fn dirty(inner: &Inner, ready: &Ready) -> Result<Vec<Dirty>> {
    let before = DateTime::from_millis(inner.clock.now().millis() - quiet_ms(inner));
    let hours = collection(ready);
    // Also by the clock of the database, before anything is computed.
    let filter = doc! { "dirty": true, "at": { "$lt": before }, "$expr": is_quiet(inner) };
    let find = hours.find(filter).sort(doc! { "at": 1 }).limit(HOURS_AT_ONCE as i64);
    let mut found = Vec::new();
    let mut cursor = inner.call(find).await?;
    while inner.call(cursor.advance()).await? {
        let raw = cursor.current();
        let Ok(id) = raw.get_document("_id") else { continue };
        if let (Ok(execution_id), Ok(hour), Ok(g)) =
            (id.get_str("e"), id.get_i64("h"), raw.get_i64("g"))
        {
            found.push((execution_id.to_owned(), hour, g));
        }
    }
    found.sort();
    Ok(found)
}

/// Computes the figures of hours into which nothing comes any more.
pub(in crate::store::mongo) async fn settle(inner: &Inner) -> Result<()> {
    let begun = Instant::now();
    let ready = inner.ready().await?;
    loop {
        let found = dirty(inner, &ready).await?;
        if found.is_empty() {
            return Ok(());
        }
        let mut rest = found.as_slice();
        while let Some((execution_id, first, _)) = rest.first() {
            if begun.elapsed() > SWEEP {
                return Ok(());
            }
            let together = (0_i64..)
                .zip(rest)
                .take(inner.hours.hours())
                .take_while(|(n, (id, hour, _))| id == execution_id && *hour == first + n)
                .count();
            let (run, after) = rest.split_at(together);
            let asked = Instant::now();
            let told = told_of(inner, &ready, execution_id, run).await;
            let too_long = told.is_err() && asked.elapsed() >= COMPUTED_WITHIN;
            if told.is_ok() || too_long {
                inner.hours.learn(run.len(), told.is_ok());
            }
            rest = match told {
                Ok(told) => {
                    keep(inner, &ready, run, told).await?;
                    after
                }
                Err(_) if too_long && run.len() > 1 => rest,
                // Too much also by itself: it goes behind all the others, and is read itself until then.
                Err(_) if too_long => {
                    put_off(&ready, run).await?;
                    after
                }
                Err(error) => return Err(error),
            };
        }
    }
}

/// The figures of hours that follow each other. `None`: there are too many.
async fn told_of(
    inner: &Inner,
    ready: &Ready,
    execution_id: &str,
    hours: &[Dirty],
) -> Result<Option<Vec<MetricInterval>>> {
    let (Some((_, first, _)), Some((_, last, _))) = (hours.first(), hours.last()) else {
        return Ok(None);
    };
    let (from, until) = (first * HOUR_MS, (last + 1) * HOUR_MS);
    let query = IntervalQuery {
        span: Span { execution_id: execution_id.to_owned(), from: Some(from), until: Some(until) },
        names: Vec::new(),
        interval_ms: HOUR_MS,
        after: None,
        limit: hours.len() * (NAMES + 1),
        examine: usize::MAX,
    };
    // As the primary has them, as it has the number: a failover that takes back the one takes back the other.
    let points = &ready.metrics.points;
    let told =
        stretch_of(inner, points, &query, (from, until), query.limit, COMPUTED_WITHIN).await?;
    Ok((told.len() < query.limit).then_some(told))
}

/// Lets hours wait as if something had just come into them.
async fn put_off(ready: &Ready, hours: &[Dirty]) -> Result<()> {
    let ids: Vec<Document> = hours.iter().map(|(id, hour, _)| id_of(id, *hour)).collect();
    let later = doc! { "$currentDate": { "at": true } };
    let put_off = collection(ready).update_many(doc! { "_id": { "$in": ids } }, later).await;
    put_off.map(drop).map_err(failure::error)
}

/// Writes figures down with the number they are good for; without any the hours are looked at no more until the
/// next point comes.
async fn keep(
    inner: &Inner,
    ready: &Ready,
    hours: &[Dirty],
    told: Option<Vec<MetricInterval>>,
) -> Result<()> {
    let told_any = told.is_some();
    let mut by_hour: HashMap<i64, Vec<Document>> = HashMap::new();
    for told in told.into_iter().flatten() {
        by_hour.entry(hour_of(told.start)).or_default().push(doc! {
            "k": told.name, "n": told.count, "m": told.mean, "a": told.min, "z": told.max,
            "l": told.last,
        });
    }
    let mut statements = Vec::with_capacity(hours.len());
    for (execution_id, hour, g) in hours {
        let figures = by_hour.remove(hour).unwrap_or_default();
        let mut set = doc! { "dirty": false };
        if told_any && figures.len() <= NAMES {
            set.insert("computed", *g);
            set.insert("m", figures);
        }
        let filter = doc! { "_id": id_of(execution_id, *hour), "g": *g, "$expr": is_quiet(inner) };
        let statement = doc! { "q": filter, "u": { "$set": set } };
        statements.push(RawDocumentBuf::try_from(&statement).map_err(Error::failed)?);
    }
    // Those that are not written stay to be computed.
    for statements in statements.chunks(WRITTEN_AT_ONCE) {
        let fates = ready.commander.update(METRIC_HOURS, statements, None).await;
        let known = |fate: &Fate| matches!(fate, Fate::Done | Fate::Unmatched | Fate::Doubtful);
        if !fates.iter().all(known) {
            return Err(failure::away());
        }
    }
    Ok(())
}

/// The figures that are good of the hours from one to another; and the hour before which there are enough of them,
/// which is not before `least`.
async fn figures(
    inner: &Inner,
    ready: &Ready,
    query: &IntervalQuery,
    (from, until): (i64, i64),
    (least, most): (Millis, usize),
) -> Result<(BTreeMap<i64, Vec<MetricInterval>>, Option<i64>)> {
    let oldest = inner.metrics_kept_ms().map(|kept| inner.clock.now().millis() - kept);
    let mut good = BTreeMap::new();
    let filter = hours_of(&query.span.execution_id, from, until);
    let hours = collection(ready);
    let find = hours.find(filter).sort(doc! { "_id": 1 }).batch_size(2000);
    let mut cursor = inner.call(find).await?;
    let mut count = 0;
    while inner.call(cursor.advance()).await? {
        let raw = cursor.current();
        let Ok(hour) = raw.get_document("_id").and_then(|id| id.get_i64("h")) else { continue };
        let is_good = match (raw.get_i64("g"), raw.get_i64("computed")) {
            (Ok(g), Ok(computed)) => g == computed,
            _ => false,
        };
        // Of an hour that is about to end the first points may be gone.
        if is_good && oldest.is_none_or(|oldest| hour * HOUR_MS > oldest) {
            let figures = read_figures(raw, &query.names, hour);
            count += figures.len().max(1);
            if count > most && hour * HOUR_MS >= least {
                return Ok((good, Some(hour)));
            }
            good.insert(hour, figures);
        }
    }
    Ok((good, None))
}

fn read_figures(raw: &RawDocument, names: &[String], hour: i64) -> Vec<MetricInterval> {
    let Ok(all) = raw.get_array("m") else { return Vec::new() };
    let figure = |raw: &RawDocument| {
        let name = raw.get_str("k").ok()?;
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            return None;
        }
        let value = |field| raw.get(field).ok().flatten().and_then(number);
        Some(MetricInterval {
            name: name.to_owned(),
            start: hour * HOUR_MS,
            min: value("a")?,
            max: value("z")?,
            mean: value("m").unwrap_or(f64::INFINITY),
            last: value("l")?,
            count: value("n")? as i64,
        })
    };
    all.into_iter().flatten().filter_map(|figure_of| figure(figure_of.as_document()?)).collect()
}

/// Adds what comes later to what there is of an interval.
fn add(into: &mut MetricInterval, later: &MetricInterval) {
    let (before, more) = (into.count as f64, later.count as f64);
    into.min = into.min.min(later.min);
    into.max = into.max.max(later.max);
    into.mean = into.mean * (before / (before + more)) + later.mean * (more / (before + more));
    into.last = later.last;
    into.count += later.count;
}

/// The stretches of time between hours that have figures.
fn gaps(
    from: Millis,
    until: Millis,
    good: &BTreeMap<i64, Vec<MetricInterval>>,
) -> Vec<(Millis, Millis)> {
    let mut gaps = Vec::new();
    let mut at = from;
    for hour in good.keys() {
        let start = hour * HOUR_MS;
        if at < start {
            gaps.push((at, start));
        }
        at = start + HOUR_MS;
    }
    if at < until {
        gaps.push((at, until));
    }
    gaps
}

/// What is known of the hours between two times, and what is not.
pub(super) struct Known {
    good: BTreeMap<i64, Vec<MetricInterval>>,
    /// The stretches of time to be read from points.
    pub gaps: Vec<(Millis, Millis)>,
    /// Where the last interval ends that may be looked at.
    pub until: Millis,
}

impl Known {
    /// Of this stretch nothing.
    pub(super) fn nothing(from: Millis, until: Millis) -> Known {
        Known { good: BTreeMap::new(), gaps: vec![(from, until)], until }
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.good.is_empty()
    }

    /// How many figures there are before a time.
    pub(super) fn figures(&self, until: Millis) -> usize {
        self.good.range(..hour_of(until)).map(|(_, figures)| figures.len()).sum()
    }

    /// The same up to the end of an interval.
    pub(super) fn cut(mut self, until: Millis) -> Known {
        self.good.retain(|hour, _| hour * HOUR_MS < until);
        self.gaps.retain(|gap| gap.0 < until);
        if let Some(last) = self.gaps.last_mut() {
            last.1 = last.1.min(until);
        }
        self
    }
}

/// What is known of intervals of whole hours between two times. `None`: too little to be of use.
pub(super) async fn known(
    inner: &Inner,
    ready: &Ready,
    query: &IntervalQuery,
    (from, until): (Millis, Millis),
    least: Millis,
    most: usize,
) -> Result<Option<Known>> {
    if query.interval_ms % HOUR_MS != 0 {
        return Ok(None);
    }
    let whole = (-(-from).div_euclid(HOUR_MS), hour_of(until));
    if whole.0 >= whole.1 {
        return Ok(None);
    }
    let (mut good, enough) = figures(inner, ready, query, whole, (least, most)).await?;
    let until = enough.map_or(until, |hour| interval_start(hour * HOUR_MS, query.interval_ms));
    good.retain(|hour, _| hour * HOUR_MS < until);
    let gaps = gaps(from, until, &good);
    Ok((!good.is_empty() && gaps.len() <= GAPS).then_some(Known { good, gaps, until }))
}

/// Intervals from figures and, where there are none, from points.
pub(super) async fn intervals(
    inner: &Inner,
    ready: &Ready,
    query: &IntervalQuery,
    known: Known,
    limit: usize,
) -> Result<Vec<MetricInterval>> {
    let points = &ready.metrics.committed_points;
    let unlimited = IntervalQuery { after: None, ..query.clone() };
    // Everything by the time at which it begins, so that the last is the last.
    let mut pieces: BTreeMap<Millis, Vec<MetricInterval>> = BTreeMap::new();
    for gap in known.gaps {
        let told = stretch_of(inner, points, &unlimited, gap, usize::MAX, INTERVALS_TIME).await?;
        pieces.insert(gap.0, told);
    }
    pieces.extend(known.good.into_iter().map(|(hour, figures)| (hour * HOUR_MS, figures)));
    let mut told: BTreeMap<(Millis, String), MetricInterval> = BTreeMap::new();
    for piece in pieces.into_values().flatten() {
        let start = interval_start(piece.start, query.interval_ms);
        let key = (start, piece.name.clone());
        if query.after.as_ref().is_some_and(|after| key <= *after) {
            continue;
        }
        match told.get_mut(&key) {
            Some(there) => add(there, &piece),
            None => {
                told.insert(key, MetricInterval { start, ..piece });
            }
        }
    }
    Ok(told.into_values().take(limit).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_has_no_figures() {
        let good = |hours: &[i64]| hours.iter().map(|hour| (*hour, Vec::new())).collect();
        let h = HOUR_MS;
        assert_eq!(gaps(5, 10 * h, &good(&[])), [(5, 10 * h)]);
        assert_eq!(gaps(0, 3 * h, &good(&[0, 1, 2])), []);
        assert_eq!(gaps(5, 3 * h + 7, &good(&[1, 2])), [(5, h), (3 * h, 3 * h + 7)]);
        assert_eq!(gaps(0, 4 * h, &good(&[0, 2])), [(h, 2 * h), (3 * h, 4 * h)]);
        assert_eq!(gaps(-h, 0, &good(&[-1])), []);
    }

    #[test]
    fn a_query_that_was_too_long_is_made_shorter() {
        let pace = Pace::default();
        assert_eq!(pace.hours(), HOURS_AT_ONCE);
        for hours in [100, 50, 25, 12, 6, 3, 1] {
            pace.learn(hours, false);
        }
        assert_eq!(pace.hours(), 1);
        pace.learn(1, false);
        assert_eq!(pace.hours(), 1);
        for _ in 0..40 {
            pace.learn(pace.hours(), true);
        }
        assert_eq!(pace.hours(), HOURS_AT_ONCE);
    }

    #[test]
    fn figures_add_up() {
        let figure = |mean: f64, count, last| MetricInterval {
            name: "a".to_owned(),
            start: 0,
            min: mean - 1.0,
            max: mean + 1.0,
            mean,
            last,
            count,
        };
        let mut sum = figure(10.0, 1, 10.0);
        add(&mut sum, &figure(20.0, 3, 19.0));
        assert_eq!((sum.min, sum.max, sum.mean, sum.last, sum.count), (9.0, 21.0, 17.5, 19.0, 4));
    }
}
