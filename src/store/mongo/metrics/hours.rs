//! Figures of whole hours, so that millions of points are not read again for every chart.
//!
//! A document per execution and hour says how often points were about to be stored in it (`g`, counted up before
//! they are) and when the last time was. Once nothing has come for half a minute, longer than any attempt may take,
//! the figures of the hour are computed in the database and written beside the number they are good for
//! (`computed`). They are good as long as the two are equal: the next point counts up first. One mark is enough for
//! all batches of a server that end within that half minute, since nothing is computed before. What has no such
//! document (points of other programs) is read itself, as ever.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use bson::{DateTime, Document, RawDocument, doc};

use super::dirty::{HOUR_MS, hour_of, hours_of, id_of, quiet_ms};
use super::pace::HOURS_AT_ONCE;
use super::room::Metrics;
use super::stretch::{INTERVALS_TIME, stretch_of};
use crate::domain::metric::interval_start;
use crate::domain::{MetricInterval, Millis};
use crate::store::Result;
use crate::store::metrics::{IntervalQuery, Span};
use crate::store::mongo::db::values::{field, number, raw};
use crate::store::mongo::db::{Connection, Fate, failure, update_statement};
use crate::store::mongo::names::{METRIC_HOURS, METRICS};

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

/// By the clock of the database, which also says when something came last.
fn is_quiet(ready: &Connection) -> Document {
    doc! { "$lt": ["$at", { "$subtract": ["$$NOW", quiet_ms(ready.patience())] }] }
}

/// An hour whose figures have to be computed: the execution, the hour, and its number.
type Dirty = (String, i64, i64);

async fn dirty(room: &Metrics, ready: &Connection) -> Result<Vec<Dirty>> {
    let before = DateTime::from_millis(room.clock.now().millis() - quiet_ms(ready.patience()));
    let hours = ready.own(METRIC_HOURS);
    // Also by the clock of the database, before anything is computed.
    let filter = doc! { "dirty": true, "at": { "$lt": before }, "$expr": is_quiet(ready) };
    let find = hours.find(filter).sort(doc! { "at": 1 }).limit(HOURS_AT_ONCE as i64);
    let mut found = Vec::new();
    let mut rows = ready.rows(find).await?;
    while let Some(raw) = rows.next().await? {
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
pub async fn settle(room: &Metrics) -> Result<()> {
    let begun = Instant::now();
    let ready = room.ready().await?;
    loop {
        let found = dirty(room, &ready).await?;
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
                .take(room.pace.hours())
                .take_while(|(n, (id, hour, _))| id == execution_id && *hour == first + n)
                .count();
            let (run, after) = rest.split_at(together);
            let asked = Instant::now();
            let told = told_of(&ready, execution_id, run).await;
            let too_long = told.is_err() && asked.elapsed() >= COMPUTED_WITHIN;
            if told.is_ok() || too_long {
                room.pace.learn(run.len(), told.is_ok());
            }
            rest = match told {
                Ok(told) => {
                    keep(&ready, run, told).await?;
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
    ready: &Connection,
    execution_id: &str,
    hours: &[Dirty],
) -> Result<Option<Vec<MetricInterval>>> {
    let (Some((_, first, _)), Some((_, last, _))) = (hours.first(), hours.last()) else {
        return Ok(None);
    };
    let (from, until) = (first * HOUR_MS, (last + 1) * HOUR_MS);
    let query = IntervalQuery {
        span: Span { execution_id: execution_id.to_owned(), from: Some(from), until: Some(until) },
        step: None,
        names: Vec::new(),
        interval_ms: HOUR_MS,
        after: None,
        limit: hours.len() * (NAMES + 1),
        examine: usize::MAX,
    };
    // As the primary has them, as it has the number: a failover that takes back the one takes back the other.
    let points = &ready.own(METRICS);
    let told =
        stretch_of(ready, points, &query, (from, until), query.limit, COMPUTED_WITHIN).await?;
    Ok((told.len() < query.limit).then_some(told))
}

/// Lets hours wait as if something had just come into them.
async fn put_off(ready: &Connection, hours: &[Dirty]) -> Result<()> {
    let ids: Vec<Document> = hours.iter().map(|(id, hour, _)| id_of(id, *hour)).collect();
    let later = doc! { "$currentDate": { "at": true } };
    let hours = ready.own(METRIC_HOURS);
    let put_off = hours.update_many(doc! { "_id": { "$in": ids } }, later).await;
    put_off.map(drop).map_err(failure::error)
}

/// Writes figures down with the number they are good for; without any the hours are looked at no more until the
/// next point comes.
async fn keep(
    ready: &Connection,
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
        let filter = doc! { "_id": id_of(execution_id, *hour), "g": *g, "$expr": is_quiet(ready) };
        let update = doc! { "$set": set };
        statements.push(update_statement(raw(&filter)?, raw(&update)?));
    }
    // Those that are not written stay to be computed.
    for statements in statements.chunks(WRITTEN_AT_ONCE) {
        let fates = ready.commander().update(METRIC_HOURS, statements, None).await;
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
    room: &Metrics,
    ready: &Connection,
    query: &IntervalQuery,
    (from, until): (i64, i64),
    (least, most): (Millis, usize),
) -> Result<(BTreeMap<i64, Vec<MetricInterval>>, Option<i64>)> {
    let oldest = room.kept_ms().map(|kept| room.clock.now().millis() - kept);
    let mut good = BTreeMap::new();
    let filter = hours_of(&query.span.execution_id, from, until);
    let hours = ready.own(METRIC_HOURS);
    let find = hours.find(filter).sort(doc! { "_id": 1 }).batch_size(2000);
    let mut rows = ready.rows(find).await?;
    let mut count = 0;
    while let Some(raw) = rows.next().await? {
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
        let value = |name| field(raw, name).and_then(number);
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
pub struct Known {
    good: BTreeMap<i64, Vec<MetricInterval>>,
    /// The stretches of time to be read from points.
    pub gaps: Vec<(Millis, Millis)>,
    /// Where the last interval ends that may be looked at.
    pub until: Millis,
}

impl Known {
    /// Of this stretch nothing.
    pub fn nothing(from: Millis, until: Millis) -> Known {
        Known { good: BTreeMap::new(), gaps: vec![(from, until)], until }
    }

    pub fn is_nothing(&self) -> bool {
        self.good.is_empty()
    }

    /// How many figures there are before a time.
    pub fn figures(&self, until: Millis) -> usize {
        self.good.range(..hour_of(until)).map(|(_, figures)| figures.len()).sum()
    }

    /// The same up to the end of an interval.
    pub fn cut(mut self, until: Millis) -> Known {
        self.good.retain(|hour, _| hour * HOUR_MS < until);
        self.gaps.retain(|gap| gap.0 < until);
        if let Some(last) = self.gaps.last_mut() {
            last.1 = last.1.min(until);
        }
        self
    }
}

/// What is known of intervals of whole hours between two times. `None`: too little to be of use.
pub async fn known(
    room: &Metrics,
    ready: &Connection,
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
    let (mut good, enough) = figures(room, ready, query, whole, (least, most)).await?;
    let until = enough.map_or(until, |hour| interval_start(hour * HOUR_MS, query.interval_ms));
    good.retain(|hour, _| hour * HOUR_MS < until);
    let gaps = gaps(from, until, &good);
    Ok((!good.is_empty() && gaps.len() <= GAPS).then_some(Known { good, gaps, until }))
}

/// Intervals from figures and, where there are none, from points.
pub async fn intervals(
    ready: &Connection,
    query: &IntervalQuery,
    known: Known,
    limit: usize,
) -> Result<Vec<MetricInterval>> {
    let points = &ready.committed(METRICS);
    let unlimited = IntervalQuery { after: None, ..query.clone() };
    // Everything by the time at which it begins, so that the last is the last.
    let mut pieces: BTreeMap<Millis, Vec<MetricInterval>> = BTreeMap::new();
    for gap in known.gaps {
        let told = stretch_of(ready, points, &unlimited, gap, usize::MAX, INTERVALS_TIME).await?;
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
