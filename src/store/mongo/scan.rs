//! Everything of one kind, as it lies in its collection: no index is needed for it, and none is read.

use std::sync::Arc;

use async_trait::async_trait;
use bson::{RawDocument, doc};
use tokio::sync::mpsc;

use super::artifact_documents;
use super::configurations;
use super::db::Db;
use super::db::values::{field, is_marked, text};
use super::metrics;
use super::names::{ARTIFACTS, CONFIGURATIONS, EXECUTIONS, METRICS, Name, STEPS};
use super::records::{execution, step};
use crate::domain::plain::Part;
use crate::store::scan::{Pieces, ScanStore, Scanned};
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

/// Documents fetched at a time: fewer of those that may be large.
fn fetched(part: Part) -> u32 {
    if part == Part::Steps { 500 } else { 2_000 }
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

#[async_trait]
impl ScanStore for Scans {
    async fn scan(&self, part: Part, out: mpsc::Sender<Vec<Scanned>>) -> Result<u64> {
        let ready = self.db.ready().await?;
        let all = ready.committed(collection(part));
        let mut rows = ready.rows(all.find(doc! {}).batch_size(fetched(part))).await?;
        let mut pieces = Pieces::new(out);
        let mut unreadable = 0;
        while let Some(raw) = rows.next().await? {
            let piece = match record(part, raw) {
                Ok(found) => found.and_then(|found| pieces.add(found)),
                Err(Error::Corrupt { .. }) => {
                    unreadable += 1;
                    None
                }
                Err(error) => return Err(error),
            };
            if let Some(piece) = piece
                && !pieces.send(piece).await
            {
                return Ok(unreadable);
            }
        }
        let rest = pieces.take();
        pieces.send(rest).await;
        Ok(unreadable)
    }
}
