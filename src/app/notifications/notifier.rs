//! Reads the log for all subscriptions, as one consumer of it: what changed is told to all that are as far, in one
//! transaction with the position. One that is not, as it is new, or as too much of it is undelivered, has a cursor of its
//! own, and catches up beside (`catch_up`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::Mutex;

use super::body::{self, FAILED_STEPS, FailedStep, Happening};
use super::changes::{Records, looks};
use super::directory::{Directory, Known};
use super::outbox::Outbox;
use super::tell::{Draft, Listener, Made, Telling, keys};
use crate::clock::Clock;
use crate::domain::notification::DeliveryState;
use crate::domain::query::StepQuery;
use crate::domain::{Millis, StepStatus};
use crate::follow::Consumer;
use crate::store::notifications::{Delivery, Moved, NotificationBatch, NotificationStore, Waiting};
use crate::store::{Change, Cursor, Error, Result, Store};

/// Changes told at a time, at most; the more subscriptions there are, the fewer.
const CHANGES_AT_ONCE: usize = 500;
const TOLD_AT_ONCE: usize = 5_000;
/// Executions whose failed steps are looked up at a time, and steps looked at for each.
const LOOKED_UP_AT_ONCE: usize = 8;
const STEPS_EXAMINED: usize = 1_000;

/// Where the reading is.
#[derive(Default)]
pub struct Position {
    /// Everything up to here is told to all that are with it.
    pub head: Option<(Cursor, Millis)>,
    /// Those that are, with what each has been told beyond that, if anything.
    pub with: HashMap<String, Option<Cursor>>,
}

/// Tells subscriptions what happened.
pub struct Notifier {
    pub records: Arc<dyn Store>,
    pub store: Arc<dyn NotificationStore>,
    pub directory: Arc<Directory>,
    pub outbox: Arc<Outbox>,
    pub clock: Arc<dyn Clock>,
    /// As the lease of the follower names this server.
    pub holder: String,
    pub public_url: Option<String>,
    pub position: Mutex<Position>,
    numbered: AtomicI64,
}

impl Notifier {
    pub fn new(
        records: Arc<dyn Store>,
        store: Arc<dyn NotificationStore>,
        directory: Arc<Directory>,
        outbox: Arc<Outbox>,
        clock: Arc<dyn Clock>,
        holder: String,
        public_url: Option<String>,
    ) -> Notifier {
        Notifier {
            records,
            store,
            directory,
            outbox,
            clock,
            holder,
            public_url,
            position: Mutex::default(),
            numbered: AtomicI64::new(0),
        }
    }

    pub fn listener(&self, known: Arc<Known>, skip: Option<Cursor>) -> Listener {
        let waiting = self.outbox.waiting(known.id());
        let room = self.outbox.limit().saturating_sub(waiting);
        Listener { known, skip, room, empty: waiting == 0, stopped: None }
    }

    /// What these changes make for these subscriptions.
    pub async fn make(&self, changes: &[Change], listeners: &mut [Listener]) -> Result<Made> {
        let looks = looks(self.records.as_ref(), changes).await?;
        if looks.is_empty() || listeners.is_empty() {
            return Ok(Made::default());
        }
        let records = Records::load(self.records.as_ref(), &looks).await?;
        let told = self.store.told(&keys(listeners, &looks)).await?;
        let mut telling = Telling { records: &records, told, made: Made::default() };
        for look in &looks {
            for listener in listeners.iter_mut() {
                telling.tell(listener, look);
            }
        }
        Ok(telling.made)
    }

    /// Writes what was made, and has it sent.
    pub async fn commit(&self, made: Made, batch: NotificationBatch) -> Result<()> {
        let deliveries = self.deliveries(made.drafts).await?;
        let waiting: Vec<(String, Waiting)> = deliveries
            .iter()
            .map(|delivery| (delivery.subscription.clone(), Waiting::of(delivery)))
            .collect();
        let batch = NotificationBatch {
            numbered: self.numbered.load(Ordering::Acquire),
            told: made.told.into_iter().collect(),
            gone: made.gone,
            deliveries,
            ..batch
        };
        // Another server leads now, and tells the same.
        match self.store.notify(&self.holder, batch).await? {
            true => {
                self.outbox.add(waiting);
                Ok(())
            }
            false => Err(Error::away()),
        }
    }

    async fn failed_steps(&self, drafts: &[Draft]) -> Result<HashMap<String, Vec<FailedStep>>> {
        let failed = drafts.iter().filter(|draft| draft.event.is_failure() && draft.step.is_none());
        let ids: HashSet<String> =
            failed.map(|draft| draft.execution.execution_id.clone()).collect();
        let look_up = async |execution_id: String| {
            let query = StepQuery {
                execution_id: execution_id.clone(),
                statuses: vec![StepStatus::Failed],
                after: None,
                limit: FAILED_STEPS,
                examine: STEPS_EXAMINED,
                payloads: None,
            };
            let page = self.records.steps(&query).await?;
            let steps = page.records.into_iter().map(|step| FailedStep {
                step_id: step.step_id,
                step_name: step.step_name,
                message: step.error.map(|error| error.message).unwrap_or_default(),
            });
            Ok::<_, Error>((execution_id, steps.collect::<Vec<FailedStep>>()))
        };
        stream::iter(ids.into_iter().map(look_up))
            .buffer_unordered(LOOKED_UP_AT_ONCE)
            .try_collect()
            .await
    }

    async fn deliveries(&self, drafts: Vec<Draft>) -> Result<Vec<Delivery>> {
        let failed_steps = self.failed_steps(&drafts).await?;
        let now = self.clock.now().millis();
        let deliver = |draft: Draft| {
            let execution_id = draft.execution.execution_id.clone();
            let failed_steps = match draft.event.is_failure() && draft.step.is_none() {
                true => failed_steps.get(&execution_id).map_or(&[][..], Vec::as_slice),
                false => &[],
            };
            let data = body::data(&Happening {
                execution: &draft.execution,
                step: draft.step.as_deref(),
                failed_steps,
                include_metadata: draft.known.subscription.include_metadata,
                public_url: self.public_url.as_deref(),
            });
            Delivery {
                id: draft.id,
                subscription: draft.known.id().to_owned(),
                number: self.numbered.fetch_add(1, Ordering::AcqRel) + 1,
                execution_id,
                step_id: draft.step.map(|step| step.step_id),
                event: draft.event,
                at: draft.at,
                created_at: now,
                state: DeliveryState::Pending,
                tries: 0,
                next_at: now,
                last_try_at: None,
                last_status: None,
                last_failure: None,
                delivered_at: None,
                whose: draft.whose,
                data,
            }
        };
        Ok(drafts.into_iter().map(deliver).collect())
    }

    /// Those that are with the head and still are to be, by what is known of them now.
    fn listeners(&self, position: &mut Position) -> Vec<Listener> {
        let all = self.directory.all();
        let enabled: HashMap<&str, &Arc<Known>> = all
            .iter()
            .filter(|known| known.subscription.enabled)
            .map(|known| (known.id(), known))
            .collect();
        position.with.retain(|id, _| enabled.contains_key(id.as_str()));
        let with = position.with.iter();
        with.filter_map(|(id, skip)| {
            let known = enabled.get(id.as_str())?;
            Some(self.listener(Arc::clone(known), skip.clone()))
        })
        .collect()
    }

    /// Tells a piece of changes to those that are with the head.
    async fn tell(
        &self,
        position: &mut Position,
        changes: &[Change],
        through: Cursor,
        at: Millis,
    ) -> Result<()> {
        let before = position.head.clone();
        let mut listeners = self.listeners(position);
        let made = self.make(changes, &mut listeners).await?;
        let mut moved = Vec::new();
        let mut with = HashMap::new();
        for listener in listeners {
            let subscription = listener.known.id().to_owned();
            match (listener.stopped, listener.skip) {
                // It goes on from before the change for which there was no room.
                (Some(index), skip) => {
                    let last = index.checked_sub(1).and_then(|last| changes.get(last));
                    let stopped =
                        last.map(|last| (last.cursor.clone(), last.at)).or(before.clone());
                    let (cursor, at) = match (stopped, skip) {
                        (Some((cursor, at)), Some(skip)) => (Some(cursor.max(skip)), Some(at)),
                        (Some((cursor, at)), None) => (Some(cursor), Some(at)),
                        (None, skip) => (skip, None),
                    };
                    tracing::warn!(subscription, "too much is undelivered: it is told later");
                    moved.push(Moved { subscription, cursor, at, gap: None });
                }
                (None, Some(skip)) if skip > through => {
                    with.insert(subscription, Some(skip));
                }
                (None, skip) => {
                    if skip.is_some() {
                        let moved_on = subscription.clone();
                        moved.push(Moved {
                            subscription: moved_on,
                            cursor: None,
                            at: None,
                            gap: None,
                        });
                    }
                    with.insert(subscription, None);
                }
            }
        }
        let head = (through, at);
        let batch =
            NotificationBatch { head: Some(head.clone()), moved, ..NotificationBatch::default() };
        self.commit(made, batch).await?;
        position.head = Some(head);
        position.with = with;
        Ok(())
    }

    /// How many changes are told at a time.
    fn piece(&self, position: &Position) -> usize {
        (TOLD_AT_ONCE / position.with.len().max(1)).clamp(20, CHANGES_AT_ONCE)
    }
}

#[async_trait]
impl Consumer for Notifier {
    fn name(&self) -> &'static str {
        "notifications"
    }

    async fn wanted(&self) {
        self.directory.wanted().await;
    }

    fn is_wanted(&self) -> bool {
        self.directory.is_wanted()
    }

    async fn beside(&self) {
        tokio::join!(self.outbox.run(), self.catch_up(), self.tidy());
    }

    async fn cursor(&self) -> Result<Option<Cursor>> {
        self.directory.refresh().await?;
        let head = self.store.notification_head().await?;
        let numbered = head.as_ref().map_or(0, |head| head.numbered);
        self.numbered.fetch_max(numbered, Ordering::AcqRel);
        let all = self.directory.all();
        let with: HashMap<String, Option<Cursor>> = all
            .iter()
            .filter(|known| known.subscription.enabled && known.progress.cursor.is_none())
            .map(|known| (known.id().to_owned(), None))
            .collect();
        let mut position = self.position.lock().await;
        // Where nobody is with it, it goes on from now: each of the others knows where it is.
        let head = head.filter(|_| !with.is_empty()).map(|head| (head.cursor, head.at));
        *position = Position { head: head.clone(), with };
        Ok(head.map(|(cursor, _)| cursor))
    }

    async fn take(&self, changes: &[Change], through: &Cursor) -> Result<()> {
        self.outbox.ready().await;
        let mut position = self.position.lock().await;
        let mut at = position.head.as_ref().map_or(0, |(_, at)| *at);
        let mut left = changes;
        loop {
            let size = self.piece(&position).min(left.len());
            let (piece, rest) = left.split_at(size);
            let cursor = match (rest.is_empty(), piece.last()) {
                (false, Some(last)) => last.cursor.clone(),
                _ => through.clone(),
            };
            at = match piece.last() {
                Some(last) => last.at,
                // Nothing has happened up to now.
                None => at.max(self.clock.now().millis()),
            };
            self.tell(&mut position, piece, cursor, at).await?;
            left = rest;
            if left.is_empty() {
                return Ok(());
            }
        }
    }

    /// There is nothing to build: who was with it goes on from where it was, by itself, and what is gone from there on it
    /// finds out.
    async fn rebuild(&self, through: &Cursor) -> Result<()> {
        let mut position = self.position.lock().await;
        let moved = |(subscription, skip): (String, Option<Cursor>)| {
            let (cursor, at) = position.head.clone()?;
            let cursor = Some(skip.unwrap_or(cursor));
            Some(Moved { subscription, cursor, at: Some(at), gap: None })
        };
        let with = position.with.clone();
        let moved: Vec<Moved> = with.into_iter().filter_map(moved).collect();
        let head = (through.clone(), self.clock.now().millis());
        let batch =
            NotificationBatch { head: Some(head.clone()), moved, ..NotificationBatch::default() };
        self.commit(Made::default(), batch).await?;
        *position = Position { head: Some(head), with: HashMap::new() };
        self.directory.refresh().await
    }
}
