//! Hours into which points may come, said before they do. What figures were computed before is no longer good then.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bson::raw::cstr;
use bson::{Bson, DateTime, Document, RawDocumentBuf, doc};
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::domain::Millis;
use crate::store::Result;
use crate::store::mongo::db::values::raw;
use crate::store::mongo::db::{Connection, Fate, failure, update_statement};
use crate::store::mongo::names::METRIC_HOURS;

pub const HOUR_MS: i64 = 3_600_000;
/// How long nothing must have come into an hour until its figures are computed; longer where an attempt to store
/// points may take longer.
const QUIET_MS: i64 = 30_000;
/// A batch that took longer than this marks its hours once more.
const LONG: Duration = Duration::from_secs(20);
/// What is left of the quiet time when a batch that relies on an earlier mark has ended, whatever it took.
const MARGIN: Duration = Duration::from_secs(5);
/// Marks that are remembered.
const MARKED: usize = 20_000;
/// A request over more hours than this makes no documents for those that have none.
const HOURS_OF_REQUEST: usize = 64;
/// How long it may take to say that points are about to come.
pub const MARKED_WITHIN: Duration = Duration::from_secs(3);
const _: () = assert!(
    QUIET_MS as u128 / 2 > MARKED_WITHIN.as_millis() + MARGIN.as_millis(),
    "an earlier mark can be relied on for a while, however long an attempt may take: the quiet time is longer than that \
     by half of itself"
);
const _: () = assert!(
    LONG.as_millis() + MARKED_WITHIN.as_millis() + MARGIN.as_millis() <= QUIET_MS as u128,
    "a batch that took too long to rely on its mark marks its hours once more before their quiet time is over"
);

pub fn quiet_ms(patience: Duration) -> i64 {
    let attempt = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX).saturating_mul(2);
    attempt.saturating_add(QUIET_MS / 2).max(QUIET_MS)
}

/// Hours that were marked a moment ago: no figures of them are computed as long as that is within the quiet time, so
/// that points may come into them without another mark.
pub struct Marked {
    hours: Mutex<HashMap<(String, i64), Moment>>,
    clock: Arc<dyn Clock>,
}

/// By both clocks: the one stands still while the machine sleeps, the other may be set.
#[derive(Debug, Clone, Copy)]
struct Moment {
    instant: Instant,
    wall: Millis,
}

impl Marked {
    pub fn new(clock: Arc<dyn Clock>) -> Marked {
        Marked { hours: Mutex::default(), clock }
    }

    fn now(&self) -> Moment {
        Moment { instant: Instant::now(), wall: self.clock.now().millis() }
    }

    /// How long ago: the longer of both; for ever if the clock was set back.
    fn elapsed(&self, since: Moment) -> Duration {
        let wall = u64::try_from(self.clock.now().millis() - since.wall).unwrap_or(u64::MAX);
        since.instant.elapsed().max(Duration::from_millis(wall))
    }

    fn is_fresh(&self, patience: Duration, execution_id: &str, hour: i64) -> bool {
        let marked = self.hours.lock().get(&(execution_id.to_owned(), hour)).copied();
        marked.is_some_and(|marked| self.elapsed(marked) < fresh(patience))
    }

    fn add(&self, patience: Duration, hours: &[(String, i64)], since: Moment) {
        let mut all = self.hours.lock();
        if all.len() + hours.len() > MARKED {
            all.retain(|_, marked| self.elapsed(*marked) < fresh(patience));
        }
        let room = MARKED.saturating_sub(all.len());
        all.extend(hours.iter().take(room).map(|hour| (hour.clone(), since)));
    }
}

/// How long after a mark a batch may begin that ends within the quiet time.
fn fresh(patience: Duration) -> Duration {
    let quiet = Duration::from_millis(quiet_ms(patience).unsigned_abs());
    quiet.saturating_sub(patience * 2 + MARKED_WITHIN + MARGIN)
}

pub fn hour_of(at: Millis) -> i64 {
    at.div_euclid(HOUR_MS)
}

pub fn id_of(execution_id: &str, hour: i64) -> Document {
    doc! { "e": execution_id, "h": hour }
}

/// The documents of an execution from one hour to another.
pub fn hours_of(execution_id: &str, from: impl Into<Bson>, until: impl Into<Bson>) -> Document {
    let from = doc! { "e": execution_id, "h": from.into() };
    let until = doc! { "e": execution_id, "h": until.into() };
    doc! { "_id": { "$gte": from, "$lt": until } }
}

/// Hours into which points are about to be stored, or have been.
pub struct Marks<'a> {
    marked: &'a Marked,
    patience: Duration,
    /// All of them, and what marks those that are not marked yet.
    all: Vec<RawDocumentBuf>,
    missing: Vec<RawDocumentBuf>,
    /// What is marked then, and has a document.
    hours: Vec<(String, i64)>,
    since: Moment,
}

impl<'a> Marks<'a> {
    /// Of the points by request: the execution and their times.
    pub fn of<T: Iterator<Item = Millis>>(
        marked: &'a Marked,
        (patience, kept_ms): (Duration, Option<i64>),
        requests: impl Iterator<Item = (&'a str, T)>,
    ) -> Result<Marks<'a>> {
        let mut wanted: HashMap<(&str, i64), bool> = HashMap::new();
        for (execution_id, times) in requests {
            let hours: HashSet<i64> = times.map(hour_of).collect();
            let make = hours.len() <= HOURS_OF_REQUEST;
            for hour in hours {
                *wanted.entry((execution_id, hour)).or_default() |= make;
            }
        }
        let mut marks = Marks {
            marked,
            patience,
            all: Vec::with_capacity(wanted.len()),
            missing: Vec::new(),
            hours: Vec::new(),
            since: marked.now(),
        };
        for ((execution_id, hour), make) in wanted {
            let mut set = doc! { "dirty": true };
            if let Some(kept) = kept_ms {
                let end = hour.saturating_add(1).saturating_mul(HOUR_MS).saturating_add(kept);
                set.insert("ends", DateTime::from_millis(end));
            }
            let update =
                doc! { "$inc": { "g": 1_i64 }, "$set": set, "$currentDate": { "at": true } };
            let id = doc! { "_id": id_of(execution_id, hour) };
            let mut statement = update_statement(raw(&id)?, raw(&update)?);
            statement.append(cstr!("upsert"), make);
            if !marked.is_fresh(patience, execution_id, hour) {
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
    pub async fn set(&self, ready: &Connection) -> Result<()> {
        mark(ready, &self.missing).await?;
        self.marked.add(self.patience, &self.hours, self.since);
        Ok(())
    }

    /// After the points: says so again if that took so long that somebody may have looked in between, or may yet
    /// take: what the database does with a command that was given up nobody knows.
    pub async fn after(&self, ready: &Connection, known: bool) {
        if !known || self.marked.elapsed(self.since) > LONG {
            let _ = tokio::time::timeout(MARKED_WITHIN, mark(ready, &self.all)).await;
        }
    }
}

async fn mark(ready: &Connection, statements: &[RawDocumentBuf]) -> Result<()> {
    let mut left = statements.to_vec();
    // Of two servers that make the same document one is told that it is there.
    for _ in 0..3 {
        if left.is_empty() {
            return Ok(());
        }
        let fates = ready.commander().update(METRIC_HOURS, &left, None).await;
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
pub async fn forget(ready: &Connection, execution_ids: &[&str]) -> Result<()> {
    let of_one = |id: &&str| hours_of(id, Bson::MinKey, Bson::MaxKey);
    let all: Vec<Document> = execution_ids.iter().map(of_one).collect();
    let hours = ready.own(METRIC_HOURS);
    hours.delete_many(doc! { "$or": all }).await.map(drop).map_err(failure::error)
}
