//! What comes after an export that goes on: what belongs to no execution, then changes as they happen, for as long as
//! somebody reads them. Points and configurations have no log; they are looked at again and again, and sent where they differ
//! from what was sent.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::parts::{POINTS, some_of};
use super::sent::{hash, hash_of_point};
use super::{At, Ended, Export, Part, Piece, Within, wants_configuration};
use crate::app::Error;
use crate::domain::access::AppScope;
use crate::domain::configuration::{AppRef, ConfigurationQuery};
use crate::domain::{Artifact, MetricPoint, Step};
use crate::store::scan::Scanned;
use crate::store::{self, Changed, Cursor, RecordKey};

/// How often it is asked where the log is.
const ASK: Duration = Duration::from_millis(250);
/// How often points and configurations are looked at, at most; and for this part of the time.
const LOOK_AT_POINTS: Duration = Duration::from_secs(5);
const LOOK_AT_CONFIGURATIONS: Duration = Duration::from_secs(1);
const REST: u32 = 20;
/// Configurations asked of the store at a time.
const RECORDS: usize = 100;
/// Pieces of a scan that wait.
const PIECES: usize = 2;

/// Executions of which points are missed, and how long it took to look through all points.
struct Differing {
    execution_ids: Vec<String>,
    took: Duration,
}

/// When something is looked at next.
struct Turn {
    next: Instant,
    least: Duration,
}

impl Turn {
    fn taken(&mut self, began: Instant, now: Instant) {
        self.next = now + self.least.max(now.saturating_duration_since(began) * REST);
    }
}

impl Export {
    /// Steps and artifacts whose execution is not stored, and how many documents are no records. Points come by themselves,
    /// of whatever execution they are.
    pub(super) async fn without_execution(&mut self) -> Result<u64, Ended> {
        let mut unreadable = self.exports.store().unreadable_executions().await?;
        for part in [Part::Steps, Part::Artifacts, Part::Points] {
            let (mut pieces, scanning) = self.scan(part);
            while let Some(piece) = pieces.recv().await {
                self.orphans(piece).await?;
            }
            let found = scanning.await.map_err(|_| Error::ShuttingDown)?;
            unreadable += found?;
        }
        Ok(unreadable)
    }

    async fn orphans(&mut self, piece: Vec<Scanned>) -> Result<(), Ended> {
        let of = |scanned: &Scanned| match scanned {
            Scanned::Step(step) => step.execution_id.clone(),
            Scanned::Artifact(artifact) => artifact.execution_id.clone(),
            Scanned::Point { .. } | Scanned::Execution(_) | Scanned::Configuration(_) => {
                String::new()
            }
        };
        let ids: HashSet<String> = piece.iter().map(of).filter(|id| !id.is_empty()).collect();
        let there = self.there(&ids).await?;
        for scanned in piece {
            if there.contains(&of(&scanned)) {
                continue;
            }
            let piece = match scanned {
                Scanned::Step(step) => Piece::Step(Arc::<Step>::new(step)),
                Scanned::Artifact(artifact) => Piece::Artifact(Arc::<Artifact>::new(artifact)),
                Scanned::Point { .. } | Scanned::Execution(_) | Scanned::Configuration(_) => {
                    continue;
                }
            };
            self.push(piece).await?;
        }
        Ok(())
    }

    /// Which of these executions are stored.
    async fn there(&self, ids: &HashSet<String>) -> Result<HashSet<String>, Ended> {
        let what: Vec<Changed> =
            ids.iter().map(|id| Changed::Record(RecordKey::execution(id))).collect();
        let mut there = HashSet::new();
        let Some(log) = self.exports.log()? else { return Ok(there) };
        for some in what.chunks(500) {
            for (_, record) in log.load(some, false).await? {
                there.insert(record.key().execution_id);
            }
        }
        Ok(there)
    }

    /// Changes as they happen. Ends only with an error.
    pub(super) async fn follow(&mut self, after: Cursor) -> Result<(), Ended> {
        let Some(log) = self.exports.log()? else {
            return Err(Error::Store(crate::store::Error::NoLog).into());
        };
        let clock = Arc::clone(self.exports.clock());
        let mut reader = log.open(Some(&after)).await?;
        let mut asked: Option<(u64, Instant)> = None;
        let mut ask_at = clock.instant();
        let mut points = Turn { next: clock.instant(), least: LOOK_AT_POINTS };
        let mut configurations = Turn { next: clock.instant(), least: LOOK_AT_CONFIGURATIONS };
        let mut differing: Option<Differing> = None;
        loop {
            let through = reader.cursor();
            let reached = log.complete_through(&through);
            if let Some((position, at)) = asked.filter(|(position, _)| reached >= Some(*position)) {
                // What has no log is as new as that too, once it was looked at.
                self.at_position(Some(position));
                let now = clock.instant();
                if now >= configurations.next {
                    self.changed_configurations().await?;
                    configurations.taken(now, clock.instant());
                }
                let now = clock.instant();
                if let Some(found) = differing.take() {
                    let began = now.checked_sub(found.took).unwrap_or(now);
                    self.points_of(found).await?;
                    points.taken(began, clock.instant());
                } else if now >= points.next {
                    let found = self.differing_points().await?;
                    if found.execution_ids.is_empty() {
                        points.taken(now, clock.instant());
                    } else {
                        // Executions that were made meanwhile come before their points: of one that comes and goes before
                        // it was read, points would stay wherever they were sent.
                        differing = Some(found);
                        asked = None;
                        ask_at = clock.instant();
                    }
                }
                if differing.is_some() {
                    continue;
                }
                let age = clock.elapsed(at);
                self.push(Piece::CaughtUp { position, age }).await?;
                self.moved_to(At::Follow { after: through.0 }).await?;
                asked = None;
            }
            if asked.is_none() && clock.instant() >= ask_at {
                let at = clock.instant();
                asked = Some((log.position().await?, at));
                ask_at = at + ASK;
                if reached >= asked.map(|(position, _)| position) {
                    continue;
                }
            }
            let changes = reader.next().await?;
            if !changes.is_empty() {
                let cursor = reader.cursor();
                self.at_position(log.position_of(&cursor));
                self.changed(log.as_ref(), &changes).await?;
                self.moved_to(At::Follow { after: cursor.0 }).await?;
            }
        }
    }

    /// What is sent from now on is as new as that.
    pub(super) fn at_position(&mut self, position: Option<u64>) {
        self.position = self.position.max(position);
    }

    /// Configurations that are not as they were sent.
    async fn changed_configurations(&mut self) -> Result<(), Ended> {
        let mut after = None;
        while self.question.wants(Part::Configurations) {
            let limits = self.exports.app().limits();
            let query = ConfigurationQuery {
                app: AppRef::default(),
                after,
                limit: RECORDS,
                examine: limits.page_examined_records,
                bytes: limits.page_bytes,
            };
            let page =
                self.exports.configurations().configurations(&query, &AppScope::all()).await?;
            for listed in page.records {
                if wants_configuration(&self.question.filter, &listed.record)
                    && self.sent.is_new(&listed.record)
                {
                    self.push(Piece::Configuration(listed.record)).await?;
                }
            }
            match page.next {
                Some(place) => after = Some(place),
                None => break,
            }
        }
        Ok(())
    }

    /// Executions that have other points than were sent.
    async fn differing_points(&mut self) -> Result<Differing, Ended> {
        let clock = Arc::clone(self.exports.clock());
        let began = clock.instant();
        if !self.question.wants(Part::Points) {
            return Ok(Differing { execution_ids: Vec::new(), took: Duration::ZERO });
        }
        let mut found: HashMap<u64, (u64, u64)> = HashMap::new();
        let mut names: HashMap<u64, String> = HashMap::new();
        let (mut pieces, scanning) = self.scan(Part::Points);
        while let Some(piece) = pieces.recv().await {
            for (execution_id, point) in points_in(piece) {
                let id = hash(&execution_id);
                let (count, sum) = found.entry(id).or_default();
                *count += 1;
                *sum = sum.wrapping_add(hash_of_point(&point));
                // Points come together by execution, nearly always: few names are held at a time.
                names.entry(id).or_insert(execution_id);
            }
            names.retain(|id, _| self.sent.points.get(id) != found.get(id));
        }
        scanning.await.map_err(|_| Error::ShuttingDown)??;
        self.sent.points.retain(|id, _| found.contains_key(id));
        Ok(Differing { execution_ids: names.into_values().collect(), took: clock.elapsed(began) })
    }

    /// Sends the points of these executions.
    async fn points_of(&mut self, found: Differing) -> Result<(), Ended> {
        let clock = Arc::clone(self.exports.clock());
        let began = clock.instant();
        let mut left = found.execution_ids.into_iter();
        while clock.elapsed(began) <= found.took
            && let Some(execution_id) = left.next()
        {
            self.points_of_one(&execution_id).await?;
        }
        // Of many, or without an index, it is faster to look through all of them once more.
        self.points_of_many(left.collect()).await
    }

    async fn points_of_one(&mut self, execution_id: &str) -> Result<(), Ended> {
        self.sent.begin_points(execution_id);
        let mut within = Within::Points(None);
        while within != Within::Nothing {
            let (exports, question) = (&self.exports, &self.question);
            let (pieces, next) = some_of(exports, question, execution_id, &within).await?;
            for (_, piece) in pieces {
                if let Piece::Points { points, .. } = &piece {
                    self.sent.points(execution_id, points);
                }
                self.push(piece).await?;
            }
            within = next;
        }
        Ok(())
    }

    async fn points_of_many(&mut self, execution_ids: HashSet<String>) -> Result<(), Ended> {
        if execution_ids.is_empty() {
            return Ok(());
        }
        execution_ids.iter().for_each(|id| self.sent.begin_points(id));
        let (mut pieces, scanning) = self.scan(Part::Points);
        while let Some(piece) = pieces.recv().await {
            let mut by_execution: HashMap<String, Vec<MetricPoint>> = HashMap::new();
            for (execution_id, point) in points_in(piece) {
                if execution_ids.contains(&execution_id) {
                    by_execution.entry(execution_id).or_default().push(point);
                }
            }
            for (execution_id, mut points) in by_execution {
                points.sort_by_key(|point| point.at);
                self.sent.points(&execution_id, &points);
                for some in points.chunks(POINTS) {
                    let (execution_id, points) = (execution_id.clone(), some.to_vec());
                    self.push(Piece::Points { execution_id, points }).await?;
                }
            }
        }
        scanning.await.map_err(|_| Error::ShuttingDown)??;
        Ok(())
    }

    /// Everything of a kind.
    fn scan(&self, part: Part) -> (mpsc::Receiver<Vec<Scanned>>, Scanning) {
        let (out, pieces) = mpsc::channel(PIECES);
        let scan = Arc::clone(self.exports.scan());
        (pieces, tokio::spawn(async move { scan.scan(part, out).await }))
    }
}

/// With how many documents are no records.
type Scanning = JoinHandle<store::Result<u64>>;

/// Of another program: without a number there is nothing to tell.
fn points_in(piece: Vec<Scanned>) -> impl Iterator<Item = (String, MetricPoint)> {
    piece.into_iter().filter_map(|scanned| match scanned {
        Scanned::Point { execution_id, point } if !point.metrics.is_empty() => {
            Some((execution_id, point))
        }
        _ => None,
    })
}
