//! Everything of one kind, along `_id`, and points along their executions. Each piece is read to its end before it is sent,
//! and the next is asked for once it was taken: no cursor waits for who does not read.

use std::sync::Arc;

use async_trait::async_trait;
use bson::{Bson, Document, RawDocument, doc};
use tokio::sync::mpsc;

use super::artifact_documents;
use super::configurations;
use super::db::types::{beyond, following};
use super::db::values::{field, id_of, is_marked, text};
use super::db::{Connection, Db};
use super::metrics;
use super::names::{ARTIFACTS, CONFIGURATIONS, EXECUTIONS, METRICS, Name, STEPS};
use super::records::{execution, step};
use crate::domain::plain::Part;
use crate::store::metrics::Span;
use crate::store::scan::{PIECE_BYTES, PIECE_RECORDS, ScanStore, Scanned};
use crate::store::{Error, Result};

fn collection(part: Part) -> Name {
    match part {
        Part::Executions => EXECUTIONS,
        Part::Steps => STEPS,
        Part::Artifacts => ARTIFACTS,
        Part::Points => METRICS,
        Part::Configurations => CONFIGURATIONS,
    }
}

/// Documents fetched at a time, and records of a piece: fewer of those that may be large.
fn fetched(part: Part) -> usize {
    if part == Part::Steps { PIECE_RECORDS / 2 } else { PIECE_RECORDS }
}

/// Reads whole collections.
pub struct Scans {
    db: Arc<Db>,
}

impl Scans {
    pub fn new(db: Arc<Db>) -> Scans {
        Scans { db }
    }
}

/// The record in a document. `None`: there is none any more, or none that anybody could be told of.
fn record(part: Part, raw: &RawDocument) -> Result<Option<Scanned>> {
    Ok(match part {
        Part::Executions if is_marked(raw) => None,
        Part::Executions => Some(Scanned::Execution(execution::read(raw)?)),
        Part::Steps if is_marked(raw) => None,
        Part::Steps => Some(Scanned::Step(step::read(raw, true)?)),
        Part::Artifacts => artifact_documents::read_any_alive(raw)?.map(Scanned::Artifact),
        Part::Points => {
            let point = metrics::read_point(raw).filter(|point| !point.metrics.is_empty());
            let execution_id = field(raw, "execution_id").and_then(text);
            match (execution_id, point) {
                (Some(execution_id), Some(point)) => Some(Scanned::Point { execution_id, point }),
                _ => None,
            }
        }
        Part::Configurations => Some(Scanned::Configuration(configurations::record_of(raw))),
    })
}

/// What one query found.
#[derive(Default)]
struct Piece {
    records: Vec<Scanned>,
    unreadable: u64,
    /// The last document that was looked at.
    last: Option<Bson>,
    /// Whether there was no more to be found.
    all: bool,
}

/// So many documents of a query, or bytes of them, by what stands in this field.
async fn piece(
    ready: &Connection,
    part: Part,
    (filter, by): (Document, &str),
    limit: usize,
) -> Result<Piece> {
    let collection = ready.committed(collection(part));
    let wanted = u32::try_from(limit).unwrap_or(u32::MAX);
    // Another program's collation may keep the index from giving the order.
    let find = collection.find(filter).sort(doc! { by: 1 }).allow_disk_use(true);
    let mut rows = ready.rows(find.limit(i64::from(wanted)).batch_size(wanted)).await?;
    let (mut piece, mut examined, mut bytes) = (Piece::default(), 0, 0);
    while bytes < PIECE_BYTES {
        let Some(raw) = rows.next().await? else {
            piece.all = examined < limit;
            break;
        };
        examined += 1;
        piece.last = match by {
            ID => id_of(raw),
            by => field(raw, by).and_then(text).map(Bson::String),
        };
        match record(part, raw) {
            Ok(found) => {
                bytes += found.as_ref().map_or(0, Scanned::weight);
                piece.records.extend(found);
            }
            Err(Error::Corrupt { .. }) => piece.unreadable += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(piece)
}

/// It is not known where to read on: to leave the rest out would be an untrue answer.
fn unplaced(part: Part, field: &'static str) -> Error {
    Error::Corrupt { collection: collection(part).as_str(), id: "?".to_owned(), field }
}

const ID: &str = "_id";
const EXECUTION_ID: &str = "execution_id";

impl Scans {
    /// Along `_id`, through all types that it has.
    async fn along_ids(&self, part: Part, out: &mpsc::Sender<Vec<Scanned>>) -> Result<u64> {
        let mut unreadable = 0;
        let mut left = vec![Document::new()];
        while let Some(filter) = left.first() {
            let ready = self.db.ready().await?;
            let found = piece(&ready, part, (filter.clone(), ID), fetched(part)).await?;
            unreadable += found.unreadable;
            match found.last {
                None if !found.all => return Err(unplaced(part, ID)),
                Some(last) if !found.all => {
                    // The rest of its type, and of those behind it.
                    left = beyond(ID, &last, false);
                    left.extend(following(ID, &last, false));
                }
                _ => drop(left.remove(0)),
            }
            if !found.records.is_empty() && out.send(found.records).await.is_err() {
                break;
            }
        }
        Ok(unreadable)
    }

    /// Execution by execution, which is the one order that a time series and an ordinary collection have in common.
    /// Points without a text for an execution are none that anybody could be told of.
    async fn points(&self, out: &mpsc::Sender<Vec<Scanned>>) -> Result<()> {
        let mut after: Option<String> = None;
        loop {
            // A list with a text in it passes for one.
            let mut is_text = doc! { "$type": "string", "$not": { "$type": "array" } };
            if let Some(after) = &after {
                is_text.insert("$gt", after);
            }
            let filter = doc! { EXECUTION_ID: is_text };
            let ready = self.db.ready().await?;
            let limit = fetched(Part::Points);
            let found = piece(&ready, Part::Points, (filter, EXECUTION_ID), limit).await?;
            // Of the last execution it may have a part only, in no order: that one is read by itself.
            let cut = match found.last {
                _ if found.all => None,
                Some(Bson::String(last)) => Some(last),
                _ => return Err(unplaced(Part::Points, EXECUTION_ID)),
            };
            let mut records = found.records;
            if let Some(cut) = &cut {
                records.retain(|point| match point {
                    Scanned::Point { execution_id, .. } => execution_id != cut,
                    _ => true,
                });
            }
            if !records.is_empty() && out.send(records).await.is_err() {
                return Ok(());
            }
            let Some(cut) = cut else { return Ok(()) };
            if !self.points_of(&cut, out).await? {
                return Ok(());
            }
            after = Some(cut);
        }
    }

    /// False: nobody receives them any more.
    async fn points_of(
        &self,
        execution_id: &str,
        out: &mpsc::Sender<Vec<Scanned>>,
    ) -> Result<bool> {
        let span = Span { execution_id: execution_id.to_owned(), from: None, until: None };
        let mut after = None;
        loop {
            let ready = self.db.ready().await?;
            let limit = fetched(Part::Points);
            let page = metrics::page_of(&ready, &span, after.as_ref(), limit).await?;
            let points = page.records.into_iter().map(|(_, point)| point);
            let of_it = |point| Scanned::Point { execution_id: execution_id.to_owned(), point };
            // Of another program: without a number there is nothing to tell.
            let some: Vec<_> =
                points.filter(|point| !point.metrics.is_empty()).map(of_it).collect();
            if !some.is_empty() && out.send(some).await.is_err() {
                return Ok(false);
            }
            after = page.next;
            if after.is_none() {
                return Ok(true);
            }
        }
    }
}

#[async_trait]
impl ScanStore for Scans {
    async fn scan(&self, part: Part, out: mpsc::Sender<Vec<Scanned>>) -> Result<u64> {
        match part {
            Part::Points => self.points(&out).await.map(|()| 0),
            _ => self.along_ids(part, &out).await,
        }
    }
}
