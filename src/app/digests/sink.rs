//! Takes records in and tells of them: totals at the end, records as they come.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bson::Bson;
use tokio::sync::mpsc;

use super::told::{Digested, FieldDigest, Level, Named, Question, RangeTotal, Told};
use crate::app::{Error, Result};
use crate::clock::Clock;
use crate::domain::Configuration;
use crate::domain::plain::{self, Fields, Part, RANGES, Total};
use crate::store::scan::Scanned;

/// How often it is told how far reading is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Totals in one message.
const RANGES_AT_ONCE: usize = 1_000;
/// Records in one message, and fields.
const RECORDS_AT_ONCE: usize = 1_000;
const FIELDS_AT_ONCE: usize = 100;
/// Length to which values are cut.
const VALUE_CHARACTERS: usize = 1_024;

/// The reader is gone, or reading failed.
pub enum Ended {
    Unread,
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Ended {
    fn from(error: E) -> Self {
        Ended::Failed(error.into())
    }
}

/// Ranges that are wanted.
type Wanted = Option<Box<[bool; RANGES]>>;

pub struct Sink<'a> {
    level: Level,
    /// Absent kinds are all wanted if there is none.
    wanted: HashMap<Part, Wanted>,
    out: &'a mpsc::Sender<Result<Told>>,
    clock: Arc<dyn Clock>,
    totals: HashMap<Part, Box<[Total; RANGES]>>,
    records: Vec<Digested>,
    read: u64,
    told_at: Instant,
    buffer: Vec<u8>,
}

impl<'a> Sink<'a> {
    pub fn new(
        question: &Question,
        out: &'a mpsc::Sender<Result<Told>>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let wanted = question.selections.iter().map(|(part, ranges)| {
            let ranges = ranges.as_ref().map(|ranges| {
                let mut wanted = Box::new([false; RANGES]);
                ranges.iter().for_each(|range| wanted[*range] = true);
                wanted
            });
            (*part, ranges)
        });
        Sink {
            level: question.level,
            wanted: wanted.collect(),
            out,
            told_at: clock.instant(),
            clock,
            totals: HashMap::new(),
            records: Vec::new(),
            read: 0,
            buffer: Vec::new(),
        }
    }

    pub async fn tell(&self, told: Told) -> std::result::Result<(), Ended> {
        self.out.send(Ok(told)).await.map_err(|_| Ended::Unread)
    }

    pub async fn take(&mut self, piece: Vec<Scanned>) -> std::result::Result<(), Ended> {
        self.read += piece.len() as u64;
        let full = match self.level {
            Level::Fields { .. } => FIELDS_AT_ONCE,
            Level::Ranges | Level::Records => RECORDS_AT_ONCE,
        };
        for record in piece {
            self.digest(record);
            if self.records.len() >= full {
                let records = std::mem::take(&mut self.records);
                self.tell(Told::Records(records)).await?;
            }
        }
        if self.clock.elapsed(self.told_at) >= PROGRESS_EVERY {
            self.told_at = self.clock.instant();
            self.tell(Told::Progress(self.read)).await?;
        }
        Ok(())
    }

    fn digest(&mut self, record: Scanned) {
        let part = part_of(&record);
        let range = plain::range_of(place_of(&record));
        let is_wanted = match self.wanted.get(&part) {
            None => self.wanted.is_empty(),
            Some(None) => true,
            Some(Some(ranges)) => ranges[range],
        };
        if !is_wanted {
            return;
        }
        if self.level == Level::Ranges {
            let digest = fields_of(&record).digest_with(&mut self.buffer);
            let totals = self.totals.entry(part);
            let totals = totals.or_insert_with(|| Box::new([Total::default(); RANGES]));
            return totals[range].add(&digest);
        }
        self.records.push(digested(record, self.level, &mut self.buffer));
    }

    /// Tells what is left.
    pub async fn finish(mut self, unreadable: u64) -> std::result::Result<(), Ended> {
        let mut told = Vec::new();
        for part in Part::ALL {
            let Some(totals) = self.totals.remove(&part) else { continue };
            let there = totals.iter().enumerate().filter(|(_, total)| total.count > 0);
            told.extend(there.map(|(range, total)| RangeTotal { part, range, total: *total }));
        }
        for ranges in told.chunks(RANGES_AT_ONCE) {
            self.tell(Told::Ranges(ranges.to_vec())).await?;
        }
        if !self.records.is_empty() {
            let records = std::mem::take(&mut self.records);
            self.tell(Told::Records(records)).await?;
        }
        self.tell(Told::Complete(unreadable)).await
    }
}

/// The kind of a record.
pub fn part_of(record: &Scanned) -> Part {
    match record {
        Scanned::Execution(_) => Part::Executions,
        Scanned::Step(_) => Part::Steps,
        Scanned::Artifact(_) => Part::Artifacts,
        Scanned::Point { .. } => Part::Points,
        Scanned::Configuration(_) => Part::Configurations,
    }
}

/// What decides on the range of a record.
pub fn place_of(record: &Scanned) -> &str {
    match record {
        Scanned::Execution(record) => &record.execution_id,
        Scanned::Step(record) => &record.execution_id,
        Scanned::Artifact(record) => &record.execution_id,
        Scanned::Point { execution_id, .. } => execution_id,
        Scanned::Configuration(record) => &record.app_name,
    }
}

fn fields_of(record: &Scanned) -> Fields<'_> {
    match record {
        Scanned::Execution(record) => plain::execution(record),
        Scanned::Step(record) => plain::step(record),
        Scanned::Artifact(record) => plain::artifact(record),
        Scanned::Point { execution_id, point } => plain::point(execution_id, point),
        Scanned::Configuration(record) => plain::configuration(record),
    }
}

/// What is told of a record; by means of a buffer, for who digests many.
pub fn digested(record: Scanned, level: Level, buffer: &mut Vec<u8>) -> Digested {
    let all = fields_of(&record);
    let digest = all.digest_with(buffer);
    let fields = match level {
        Level::Ranges | Level::Records => Vec::new(),
        Level::Fields { values } => each_field(&all, values),
    };
    drop(all);
    Digested { named: named(record), digest, fields }
}

fn each_field(fields: &Fields<'_>, values: bool) -> Vec<FieldDigest> {
    let each = fields.fields.iter().map(|(name, value)| FieldDigest {
        name,
        digest: value.digest(),
        value: values.then(|| cut(value.shown())),
    });
    each.collect()
}

/// A value as JSON, cut.
pub fn cut(value: Bson) -> String {
    let mut text = value.into_relaxed_extjson().to_string();
    if let Some((end, _)) = text.char_indices().nth(VALUE_CHARACTERS) {
        text.truncate(end);
        text.push('…');
    }
    text
}

fn named(record: Scanned) -> Named {
    match record {
        Scanned::Execution(record) => Named::Execution { execution_id: record.execution_id },
        Scanned::Step(record) => Named::Step {
            execution_id: record.execution_id,
            step_id: record.step_id,
            step_key: record.step_key,
        },
        Scanned::Artifact(record) => Named::Artifact { artifact: Box::new(record) },
        Scanned::Point { execution_id, point } => Named::Point {
            execution_id,
            at: point.at,
            step_id: point.step_id,
            step_key: point.step_key,
        },
        Scanned::Configuration(record) => Named::Configuration {
            record: Box::new(Configuration { configuration: bson::Document::new(), ..record }),
        },
    }
}
