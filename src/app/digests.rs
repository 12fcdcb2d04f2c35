//! Digests of what is stored, by which two databases are compared: totals of ranges first, then records, then their
//! fields. Everything is read as it lies in the database where everything is asked for, and along executions where a
//! filter chooses some of them.

mod keyed;
mod sink;
mod told;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::sink::{Ended, Sink};
pub use self::sink::{digested, part_of, place_of};
pub use self::told::{
    Digested, FieldDigest, Key, Level, Named, Question, RangeTotal, Ranges, Told,
};
use super::export::{Exports, wants_configuration};
use super::{Error, Result};
use crate::clock::Clock;
use crate::domain::access::AppScope;
use crate::domain::configuration::{AppRef, ConfigurationQuery, Place};
use crate::domain::plain::Part;
use crate::domain::query::{ArtifactQuery, ExecutionOrder, ExecutionQuery, StepQuery};
use crate::store::metrics::Span;
use crate::store::scan::Scanned;

/// Executions and other small records asked of the store at a time.
const RECORDS: usize = 200;
/// Steps asked of the store at a time; they end earlier where their payloads are large.
const STEPS: usize = 500;
/// Points asked of the store at a time.
const POINTS: usize = 1_000;
/// Executions whose parts are read at the same time.
const AT_ONCE: usize = 8;
/// Pieces of records that wait to be digested.
const WAITING: usize = 2;
/// How long an error waits for a client that does not read.
const LAST_WITHIN: Duration = Duration::from_secs(3);

/// Digests over the stores.
pub struct Digests {
    exports: Arc<Exports>,
    clock: Arc<dyn Clock>,
}

/// One reading under way.
pub struct Reading {
    digests: Arc<Digests>,
    question: Question,
    out: mpsc::Sender<Result<Told>>,
}

impl Digests {
    pub fn new(exports: Arc<Exports>, clock: Arc<dyn Clock>) -> Arc<Digests> {
        Arc::new(Digests { exports, clock })
    }

    pub fn exports(&self) -> &Exports {
        &self.exports
    }

    /// Prepares a reading, whose answers go to `out`.
    pub fn read(self: &Arc<Self>, question: Question, out: mpsc::Sender<Result<Told>>) -> Reading {
        Reading { digests: Arc::clone(self), question, out }
    }
}

impl Reading {
    /// Sends everything, at last an error if there was one. Ends early when nobody receives it any more.
    pub async fn run(self, stop: CancellationToken) {
        let error = match stop.run_until_cancelled(self.all()).await {
            Some(Ok(()) | Err(Ended::Unread)) => return,
            Some(Err(Ended::Failed(error))) => error,
            None => Error::ShuttingDown,
        };
        // The client may be slow, but not slower than the shutdown.
        let _ = tokio::time::timeout(LAST_WITHIN, self.out.send(Err(error))).await;
    }

    async fn all(&self) -> std::result::Result<(), Ended> {
        let position = match self.digests.exports.log()? {
            None => None,
            Some(log) => match log.position().await {
                Err(crate::store::Error::NoLog) => None,
                position => Some(position?),
            },
        };
        let mut sink = Sink::new(&self.question, &self.out, Arc::clone(&self.digests.clock));
        sink.tell(Told::Begun(position)).await?;
        let unreadable = match &self.question.keys {
            Some(keys) => self.keyed(keys, &mut sink).await?,
            None if self.question.filter.is_empty() => self.scanned(&mut sink).await?,
            None => self.walked(&mut sink).await?,
        };
        sink.finish(unreadable).await
    }

    /// Everything, kind by kind.
    async fn scanned(&self, sink: &mut Sink<'_>) -> std::result::Result<u64, Ended> {
        let mut unreadable = 0;
        for part in Part::ALL.into_iter().filter(|part| self.question.wants(*part)) {
            let (pieces, mut read) = mpsc::channel(WAITING);
            let scan = self.digests.exports.scan().scan(part, pieces);
            let digest = async {
                while let Some(piece) = read.recv().await {
                    sink.take(piece).await?;
                }
                Ok::<(), Ended>(())
            };
            let (scanned, digested) = tokio::join!(scan, digest);
            digested?;
            unreadable += scanned?;
        }
        Ok(unreadable)
    }

    /// Executions that match, with what belongs to them.
    async fn walked(&self, sink: &mut Sink<'_>) -> std::result::Result<u64, Ended> {
        let (pieces, mut read) = mpsc::channel(WAITING);
        let walk = self.walk(pieces);
        let digest = async {
            while let Some(piece) = read.recv().await {
                sink.take(piece).await?;
            }
            Ok::<(), Ended>(())
        };
        let (walked, digested) = tokio::join!(walk, digest);
        digested?;
        walked?;
        Ok(0)
    }

    async fn walk(&self, out: mpsc::Sender<Vec<Scanned>>) -> Result<()> {
        let mut after = None;
        loop {
            let query = ExecutionQuery {
                filter: self.question.filter.clone(),
                order: ExecutionOrder::StartedAtAsc,
                after,
                limit: RECORDS,
                examine: self.digests.exports.app().limits().page_examined_records,
            };
            let page = self.digests.exports.app().store().executions(&query).await?;
            after = page.next;
            let ids: Vec<String> =
                page.records.iter().map(|record| record.execution_id.clone()).collect();
            let executions = page.records.into_iter().map(Scanned::Execution).collect();
            if self.question.wants(Part::Executions) && out.send(executions).await.is_err() {
                return Ok(());
            }
            let mut wanted = ids;
            wanted.retain(|id| self.has_wanted_parts(id));
            let sink = &out;
            let mut parts = futures::stream::iter(wanted)
                .map(|id| async move { self.parts_of(&id, sink).await })
                .buffer_unordered(AT_ONCE);
            while let Some(done) = parts.next().await {
                done?;
            }
            if after.is_none() {
                break;
            }
        }
        if self.question.wants(Part::Configurations) {
            self.configurations(&out, |_| true).await?;
        }
        Ok(())
    }

    /// Whether anything that belongs to this execution may be asked for.
    fn has_wanted_parts(&self, execution_id: &str) -> bool {
        let parts = [Part::Steps, Part::Artifacts, Part::Points];
        if self.question.selections.is_empty() {
            return true;
        }
        let range = crate::domain::plain::range_of(execution_id);
        parts.iter().any(|part| match self.question.selections.get(part) {
            None => false,
            Some(None) => true,
            Some(Some(ranges)) => ranges.contains(&range),
        })
    }

    /// Steps, artifacts and points of an execution, as far as they are wanted. Nobody receiving them ends it early.
    async fn parts_of(&self, execution_id: &str, out: &mpsc::Sender<Vec<Scanned>>) -> Result<()> {
        if self.question.wants(Part::Steps) {
            self.steps_of(execution_id, out).await?;
        }
        if self.question.wants(Part::Artifacts) {
            self.artifacts_of(execution_id, out).await?;
        }
        if self.question.wants(Part::Points) {
            self.points_of(execution_id, out).await?;
        }
        Ok(())
    }

    async fn steps_of(&self, execution_id: &str, out: &mpsc::Sender<Vec<Scanned>>) -> Result<()> {
        let app = self.digests.exports.app();
        let limits = app.limits();
        let mut after = None;
        loop {
            let query = StepQuery {
                execution_id: execution_id.to_owned(),
                statuses: Vec::new(),
                after,
                limit: STEPS,
                examine: limits.page_examined_records,
                payloads: Some(limits.page_bytes),
            };
            let page = app.store().steps(&query).await?;
            after = page.next;
            let piece = page.records.into_iter().map(Scanned::Step).collect();
            if out.send(piece).await.is_err() || after.is_none() {
                return Ok(());
            }
        }
    }

    async fn artifacts_of(
        &self,
        execution_id: &str,
        out: &mpsc::Sender<Vec<Scanned>>,
    ) -> Result<()> {
        let mut after = None;
        loop {
            let query =
                ArtifactQuery { execution_id: execution_id.to_owned(), after, limit: RECORDS };
            let page = self.digests.exports.app().store().artifacts(&query).await?;
            after = page.next;
            let piece = page.records.into_iter().map(Scanned::Artifact).collect();
            if out.send(piece).await.is_err() || after.is_none() {
                return Ok(());
            }
        }
    }

    async fn points_of(&self, execution_id: &str, out: &mpsc::Sender<Vec<Scanned>>) -> Result<()> {
        let span = Span { execution_id: execution_id.to_owned(), from: None, until: None };
        let mut after = None;
        loop {
            let page = self.digests.exports.metrics().points(&span, after.as_ref(), POINTS).await?;
            after = page.next;
            let points = page.records.into_iter().map(|(_, point)| point);
            let piece = points
                // Of another program: without a number there is nothing to tell.
                .filter(|point| !point.metrics.is_empty())
                .map(|point| Scanned::Point { execution_id: execution_id.to_owned(), point })
                .collect();
            if out.send(piece).await.is_err() || after.is_none() {
                return Ok(());
            }
        }
    }

    /// Configurations of the apps of the filter whose app has such a name.
    async fn configurations(
        &self,
        out: &mpsc::Sender<Vec<Scanned>>,
        named: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let limits = self.digests.exports.app().limits();
        let mut after: Option<Place> = None;
        loop {
            let query = ConfigurationQuery {
                app: AppRef::default(),
                after,
                limit: RECORDS,
                examine: limits.page_examined_records,
                bytes: limits.page_bytes,
            };
            let all = AppScope::all();
            let page = self.digests.exports.configurations().configurations(&query, &all).await?;
            after = page.next;
            let wanted = page.records.into_iter().map(|listed| listed.record).filter(|record| {
                wants_configuration(&self.question.filter, record) && named(&record.app_name)
            });
            let piece = wanted.map(Scanned::Configuration).collect();
            if out.send(piece).await.is_err() || after.is_none() {
                return Ok(());
            }
        }
    }
}
