//! Keeps the index of search up to date: looks up the records that changed and indexes the texts they have now.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bson::Bson;
use futures::{StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::app::artifacts::Artifacts;
use crate::app::artifacts::Part;
use crate::app::{self, Error};
use crate::blobs;
use crate::clock::Clock;
use crate::domain::access::AppScope;
use crate::domain::query::{
    ArtifactKey, ArtifactQuery, ExecutionFilter, ExecutionOrder, ExecutionQuery, StepQuery,
};
use crate::domain::search::query::Term;
use crate::domain::search::{self, INDEXED_BYTES, Kind, text};
use crate::domain::{Artifact, Execution, Step};
use crate::follow::Consumer;
use crate::store::search::{CandidateQuery, Entry, EntryKey, PENDING, SearchBatch, SearchStore};
use crate::store::{self, Change, ChangeKind, Changed, Cursor, Record, RecordKey, Result, Store};

/// Records loaded with their payloads at a time: each may be several MiB.
const LOADED_AT_ONCE: usize = 32;
/// Records without payloads, when everything is indexed anew.
const LISTED_AT_ONCE: usize = 200;
/// Texts written at a time, and their bytes.
const WRITTEN_AT_ONCE: usize = 1_000;
const BYTES_AT_ONCE: usize = 8 * 1024 * 1024;

/// Texts whose storage was away are tried again so often, so many at a time.
const RETRIED_EVERY: Duration = Duration::from_secs(15);
const RETRIED_AT_ONCE: usize = 100;

/// What became of looking for a text.
enum Found {
    /// Empty: there is none.
    Text(text::Text),
    Away,
}

/// Keeps the index up to date.
pub struct Keeper {
    records: Arc<dyn Store>,
    index: Arc<dyn SearchStore>,
    artifacts: Arc<Artifacts>,
    clock: Arc<dyn Clock>,
    /// When texts whose storage was away were last tried again, and up to where.
    retried: Mutex<(Instant, Option<Vec<u8>>)>,
    /// When the last rebuild began.
    seen_at_least: AtomicI64,
}

fn entry(key: EntryKey, name: Option<&str>, text: text::Text) -> Entry {
    Entry { key, name: name.map(str::to_owned), text: text.text, truncated: text.truncated }
}

/// Whether it is time to write it.
fn is_big(batch: &SearchBatch) -> bool {
    let bytes: usize = batch.put.iter().map(|(entry, _)| entry.text.len()).sum();
    let texts = batch.put.len() + batch.gone.len() + batch.gone_executions.len();
    texts >= WRITTEN_AT_ONCE || bytes >= BYTES_AT_ONCE
}

/// Puts a text, or takes it away where there is none.
fn place(batch: &mut SearchBatch, mut entry: Entry) {
    if entry.text.trim().is_empty() {
        batch.gone.push(entry.key);
        return;
    }
    let (terms, more) = search::terms(&entry.text);
    entry.truncated |= more;
    batch.put.push((entry, terms));
}

fn of_execution(batch: &mut SearchBatch, execution: &Execution) {
    let key = EntryKey {
        execution_id: execution.execution_id.clone(),
        kind: Kind::ExecutionError,
        step_id: None,
        artifact_id: None,
    };
    let error = text::of_errors(execution.error.iter());
    place(batch, entry(key, None, error));
}

fn of_step(batch: &mut SearchBatch, step: &Step) {
    let key = |kind| EntryKey {
        execution_id: step.execution_id.clone(),
        kind,
        step_id: Some(step.step_id),
        artifact_id: None,
    };
    // Those of attempts before, too: the last one first.
    let earlier = step.attempts.iter().rev().filter_map(|attempt| attempt.error.as_ref());
    let error = text::of_errors(step.error.iter().chain(earlier));
    place(batch, entry(key(Kind::StepError), Some(&step.step_name), error));
    if let Some(output) = step.output.value() {
        let output = text::of_value(output);
        place(batch, entry(key(Kind::StepOutput), Some(&step.step_name), output));
    }
}

impl Keeper {
    pub fn new(
        records: Arc<dyn Store>,
        index: Arc<dyn SearchStore>,
        artifacts: Arc<Artifacts>,
        clock: Arc<dyn Clock>,
    ) -> Keeper {
        let retried = Mutex::new((clock.instant(), None));
        let seen_at_least = AtomicI64::new(0);
        Keeper { records, index, artifacts, clock, retried, seen_at_least }
    }

    fn batch(&self) -> SearchBatch {
        let least = self.seen_at_least.load(Ordering::Relaxed);
        SearchBatch { seen: self.clock.now().millis().max(least), ..SearchBatch::default() }
    }

    /// The beginning of an artifact's bytes, if they are text and there. Where a run keeps the text with the record,
    /// that is it.
    async fn text_of(&self, artifact: &Artifact) -> Result<Found> {
        if let Some(content @ Bson::String(_)) = artifact.metadata.get("content") {
            return Ok(Found::Text(text::of_value(content)));
        }
        if !text::is_text(artifact) {
            return Ok(Found::Text(text::Text::default()));
        }
        match self.downloaded(artifact).await {
            Ok(text) => Ok(Found::Text(text.unwrap_or_default())),
            Err(Error::Bytes(blobs::Error::Unavailable(_))) => Ok(Found::Away),
            Err(Error::ShuttingDown) => Err(store::Error::away()),
            Err(Error::Store(error @ store::Error::Unavailable(_))) => Err(error),
            // Without bytes, or with others than were stored.
            Err(_) => Ok(Found::Text(text::Text::default())),
        }
    }

    async fn downloaded(&self, artifact: &Artifact) -> app::Result<Option<text::Text>> {
        // One more than is indexed tells whether there are more.
        let part = Part::From { offset: 0, limit: Some(INDEXED_BYTES as u64 + 1) };
        let mut download =
            self.artifacts.download(&artifact.artifact_id, part, &AppScope::all()).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = download.bytes.next().await {
            bytes.extend_from_slice(&piece?);
        }
        let more = bytes.len() > INDEXED_BYTES;
        bytes.truncate(INDEXED_BYTES);
        Ok(text::of_bytes(&bytes, more))
    }

    async fn of_artifact(&self, batch: &mut SearchBatch, artifact: &Artifact) -> Result<()> {
        let key = EntryKey {
            execution_id: artifact.execution_id.clone(),
            kind: Kind::ArtifactText,
            step_id: artifact.step_id,
            artifact_id: Some(artifact.artifact_id.clone()),
        };
        match self.text_of(artifact).await? {
            Found::Text(text) => place(batch, entry(key, Some(&artifact.artifact_name), text)),
            // One file that cannot be read must not hold up everything else.
            Found::Away => {
                tracing::debug!(artifact_id = artifact.artifact_id, "its text will be read later");
                let entry = entry(key, Some(&artifact.artifact_name), text::Text::default());
                batch.put.push((entry, vec![PENDING.to_owned()]));
            }
        }
        Ok(())
    }

    /// Tries texts again whose storage was away: some at a time, the last ones first.
    async fn retry(&self) -> Result<()> {
        let (since, before) = self.retried.lock().clone();
        if self.clock.elapsed(since) < RETRIED_EVERY {
            return Ok(());
        }
        let pending = Term { text: PENDING.to_owned(), prefix: false };
        let query = CandidateQuery {
            needs: vec![vec![vec![pending]]],
            before,
            limit: RETRIED_AT_ONCE,
            ..CandidateQuery::default()
        };
        let found: Vec<_> = self.index.candidates(query).try_collect().await?;
        let last = found.last().filter(|_| found.len() == RETRIED_AT_ONCE);
        *self.retried.lock() = (self.clock.instant(), last.map(|last| last.place.clone()));
        let entries = found.into_iter().filter_map(|candidate| candidate.entry);
        let keys: Vec<Changed> = entries.map(|entry| Changed::Record(entry.key.record())).collect();
        let mut batch = self.batch();
        self.load(&mut batch, &keys).await?;
        self.index.index(batch).await
    }

    /// Writes the batch if it is big.
    async fn drain(&self, batch: &mut SearchBatch) -> Result<()> {
        if !is_big(batch) {
            return Ok(());
        }
        let full = std::mem::replace(batch, self.batch());
        self.index.index(full).await
    }

    /// Indexes the records as they are now. The next ones are looked up while others are written, in their order.
    async fn load(&self, batch: &mut SearchBatch, what: &[Changed]) -> Result<()> {
        let log = self.records.log()?;
        let (full, mut filled) = mpsc::channel::<SearchBatch>(1);
        let write = async {
            while let Some(batch) = filled.recv().await {
                self.index.index(batch).await?;
            }
            Ok::<(), store::Error>(())
        };
        let look_up = async move {
            for piece in what.chunks(LOADED_AT_ONCE) {
                for (_, record) in log.load(piece, true).await? {
                    match record {
                        Record::Execution(execution) => of_execution(batch, &execution),
                        Record::Step(step) => of_step(batch, &step),
                        Record::Artifact(artifact) => self.of_artifact(batch, &artifact).await?,
                    }
                }
                if is_big(batch) {
                    let next = std::mem::replace(batch, self.batch());
                    // Nobody takes it any more where writing failed, which is told.
                    if full.send(next).await.is_err() {
                        break;
                    }
                }
            }
            Ok::<(), store::Error>(())
        };
        tokio::try_join!(look_up, write).map(drop)
    }

    async fn steps(&self, batch: &mut SearchBatch, execution_id: &str) -> Result<()> {
        let mut after = None;
        loop {
            let query = StepQuery {
                execution_id: execution_id.to_owned(),
                after,
                limit: LISTED_AT_ONCE,
                examine: LISTED_AT_ONCE * 4,
                statuses: Vec::new(),
                payloads: None,
            };
            let page = self.records.steps(&query).await?;
            let found = page.records.iter();
            let keys: Vec<Changed> = found
                .map(|step| Changed::Record(RecordKey::step(execution_id, step.step_id)))
                .collect();
            self.load(batch, &keys).await?;
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    async fn artifacts(&self, batch: &mut SearchBatch, execution_id: &str) -> Result<()> {
        let mut after: Option<ArtifactKey> = None;
        loop {
            let query = ArtifactQuery {
                execution_id: execution_id.to_owned(),
                after,
                limit: LISTED_AT_ONCE,
            };
            let page = self.records.artifacts(&query).await?;
            for artifact in &page.records {
                self.of_artifact(batch, artifact).await?;
                self.drain(batch).await?;
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }
}

#[async_trait]
impl Consumer for Keeper {
    fn name(&self) -> &'static str {
        "search"
    }

    async fn cursor(&self) -> Result<Option<Cursor>> {
        self.index.search_cursor().await
    }

    fn rebuilds_without_log(&self) -> bool {
        true
    }

    async fn take(&self, changes: &[Change], through: &Cursor) -> Result<()> {
        let mut batch = self.batch();
        // Only what became of a record counts, so each is looked at once; but an execution that was deleted takes
        // away what came before, and its id may be used again.
        let mut seen = HashSet::new();
        let mut looked = Vec::new();
        for change in changes.iter().rev().filter(|change| seen.insert(&change.what)) {
            match (&change.what, change.kind) {
                (Changed::Record(key), ChangeKind::Deleted) => gone(&mut batch, key),
                (Changed::Unknown { .. }, ChangeKind::Deleted) => {}
                (what, _) => looked.push(what.clone()),
            }
        }
        // All executions that were deleted, also where something came after it.
        for change in changes.iter().filter(|change| change.kind == ChangeKind::Deleted) {
            if let Changed::Record(key) = &change.what {
                gone(&mut batch, key);
            }
        }
        batch.gone.sort();
        batch.gone.dedup();
        batch.gone_executions.sort();
        batch.gone_executions.dedup();
        if !batch.gone.is_empty() || !batch.gone_executions.is_empty() {
            let full = std::mem::replace(&mut batch, self.batch());
            self.index.index(full).await?;
        }
        self.load(&mut batch, &looked).await?;
        batch.cursor = Some(through.clone());
        self.index.index(batch).await?;
        self.retry().await
    }

    async fn rebuild(&self, through: &Cursor) -> Result<()> {
        let begun = self.clock.now().millis();
        // Whatever becomes of the clock, what is come across counts as seen.
        self.seen_at_least.store(begun, Ordering::Relaxed);
        let mut batch = self.batch();
        let mut query = ExecutionQuery {
            filter: ExecutionFilter::default(),
            order: ExecutionOrder::StartedAtAsc,
            after: None,
            limit: LISTED_AT_ONCE,
            examine: LISTED_AT_ONCE * 4,
        };
        loop {
            let page = self.records.executions(&query).await?;
            for execution in &page.records {
                of_execution(&mut batch, execution);
                self.steps(&mut batch, &execution.execution_id).await?;
                self.artifacts(&mut batch, &execution.execution_id).await?;
                self.drain(&mut batch).await?;
            }
            match page.next {
                Some(next) => query.after = Some(next),
                None => break,
            }
        }
        self.index.index(batch).await?;
        self.index.forget(begun).await?;
        let done = SearchBatch { cursor: Some(through.clone()), ..self.batch() };
        self.index.index(done).await
    }
}

fn gone(batch: &mut SearchBatch, key: &RecordKey) {
    let kinds: &[Kind] = match (key.step_id, &key.artifact_id) {
        (None, None) => {
            batch.gone_executions.push(key.execution_id.clone());
            return;
        }
        (_, Some(_)) => &[Kind::ArtifactText],
        (Some(_), None) => &[Kind::StepError, Kind::StepOutput],
    };
    batch.gone.extend(kinds.iter().map(|kind| EntryKey {
        execution_id: key.execution_id.clone(),
        kind: *kind,
        step_id: key.step_id,
        artifact_id: key.artifact_id.clone(),
    }));
}
