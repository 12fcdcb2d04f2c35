//! One tail of the log per server, however many watchers. Routes each event to the queues of those it is for.
//!
//! Publishing a batch and registering a watcher exclude each other, so a watcher that registers at a position
//! gets everything after it: no gap between what it reads before and what is pushed to it afterwards.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::event::Event;
use super::queue::{Bounds, End, Pushed, Queue};
use super::resolve::{Interest, Pass, Resolver};
use super::subscriber::{Scope, Subscriber, again};
use super::waiting::CatchUp;
use crate::clock::Clock;
use crate::store::{
    Change, ChangeLog, ChangeReader, Cursor, Error, Record, RecordKey, Result, Store,
};
use crate::telemetry::metrics::watch_lag;

/// How watching behaves.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub keepalive: Duration,
    /// How long the tail goes on without watchers.
    pub linger: Duration,
    pub queue: Bounds,
    /// Readers of history at a time.
    pub readers: usize,
}

/// Pause before a log that could not be read is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(300);
/// Events pushed before the tail lets other tasks run.
const PUSHES_AT_A_TIME: u64 = 4096;
/// Memory for executions by which filters are decided.
const EXECUTIONS_BYTES: u64 = 16 * 1024 * 1024;

/// Counts, for telemetry.
#[derive(Debug, Default)]
pub struct Numbers {
    pub watchers: AtomicU64,
    pub events: AtomicU64,
    pub coalesced: AtomicU64,
    pub detached: AtomicU64,
}

/// The watchers of one server.
pub struct Hub {
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: Settings,
    pub(super) stop: CancellationToken,
    pub(super) resolver: Resolver,
    pub(super) catch_up: CatchUp,
    pub(super) tasks: TaskTracker,
    live: Mutex<Live>,
    /// Held while the tail is being started: how often that failed, and why.
    starting: tokio::sync::Mutex<()>,
    failures: Mutex<(u64, Option<Error>)>,
    /// Number of the position up to which everything was published.
    position: watch::Sender<u64>,
    next_id: AtomicU64,
    pub numbers: Numbers,
}

/// Watchers of one execution, or by filter.
#[derive(Default)]
struct Watchers {
    by_id: IndexMap<u64, Arc<Subscriber>>,
    /// How many of them get steps, and how many artifacts.
    of_steps: usize,
    of_artifacts: usize,
}

impl Watchers {
    fn insert(&mut self, subscriber: Arc<Subscriber>) {
        let (steps, artifacts) = (subscriber.steps, subscriber.artifacts);
        if self.by_id.insert(subscriber.id, subscriber).is_none() {
            self.of_steps += usize::from(steps);
            self.of_artifacts += usize::from(artifacts);
        }
    }

    fn remove(&mut self, subscriber: &Subscriber) {
        if self.by_id.swap_remove(&subscriber.id).is_some() {
            self.of_steps -= usize::from(subscriber.steps);
            self.of_artifacts -= usize::from(subscriber.artifacts);
        }
    }

    fn want(&self, key: &RecordKey) -> bool {
        match (key.step_id, &key.artifact_id) {
            (Some(_), _) => self.of_steps > 0,
            (None, Some(_)) => self.of_artifacts > 0,
            (None, None) => !self.by_id.is_empty(),
        }
    }
}

#[derive(Default)]
struct Live {
    by_execution: HashMap<String, Watchers>,
    by_filter: Watchers,
    /// The end of the batch that is being published; who registers gets what comes after it. `None` while there
    /// is no tail.
    claimed: Option<Cursor>,
    /// Everything up to here was published.
    published: Option<Cursor>,
    /// Number of the batch that ends at `claimed`.
    batch: u64,
    /// When the last watcher left.
    empty_since: Option<Instant>,
}

impl Live {
    fn is_empty(&self) -> bool {
        self.by_execution.is_empty() && self.by_filter.by_id.is_empty()
    }

    fn remove(&mut self, subscriber: &Subscriber, now: Instant) {
        match &subscriber.scope {
            Scope::Execution(id) => {
                if let Some(watchers) = self.by_execution.get_mut(id) {
                    watchers.remove(subscriber);
                    if watchers.by_id.is_empty() {
                        self.by_execution.remove(id);
                    }
                }
            }
            Scope::Filter(_) => {
                self.by_filter.remove(subscriber);
            }
        }
        if self.is_empty() {
            self.empty_since = Some(now);
        }
    }

    fn want(&self, key: &RecordKey) -> bool {
        self.by_filter.want(key)
            || self.by_execution.get(&key.execution_id).is_some_and(|watchers| watchers.want(key))
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Subscriber>> {
        self.by_execution
            .values()
            .chain([&self.by_filter])
            .flat_map(|watchers| watchers.by_id.values())
    }

    fn of(&self, key: &RecordKey) -> impl Iterator<Item = &Arc<Subscriber>> {
        let of_this = self.by_execution.get(&key.execution_id).into_iter();
        of_this.chain([&self.by_filter]).flat_map(|watchers| watchers.by_id.values())
    }

    /// There is no tail any more.
    fn end(&mut self, resolver: &Resolver) {
        self.claimed = None;
        self.published = None;
        resolver.set_active(false);
    }
}

/// The registered watchers, as the resolver sees them. Who registers meanwhile does not get this batch, so it
/// does not matter when during the batch they are asked.
struct Registered<'a>(&'a Mutex<Live>);

impl Interest for Registered<'_> {
    fn of(&self, key: &RecordKey) -> bool {
        self.0.lock().want(key)
    }

    fn any(&self) -> bool {
        !self.0.lock().is_empty()
    }

    fn by_filter(&self) -> bool {
        !self.0.lock().by_filter.by_id.is_empty()
    }
}

impl Hub {
    pub fn new(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        settings: Settings,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Arc<Hub> {
        Arc::new(Hub {
            store,
            resolver: Resolver::new(Arc::clone(&clock)),
            clock,
            settings,
            stop,
            catch_up: CatchUp::new(settings.readers),
            tasks,
            live: Mutex::default(),
            starting: tokio::sync::Mutex::new(()),
            failures: Mutex::new((0, None)),
            position: watch::Sender::new(0),
            next_id: AtomicU64::new(1),
            numbers: Numbers::default(),
        })
    }

    /// The log to watch, if the database keeps one.
    pub fn log(&self) -> Result<Arc<dyn ChangeLog>> {
        self.store.log()
    }

    /// Told of what this server wrote: it spares the watchers a look-up.
    pub fn wrote(&self, records: Vec<Record>) {
        self.resolver.wrote(records);
    }

    /// Queries made to find records of events.
    pub fn lookups(&self) -> u64 {
        self.resolver.lookups.load(Ordering::Relaxed)
    }

    /// Readers of history that are open now.
    pub fn readers(&self) -> usize {
        self.catch_up.running()
    }

    pub(super) fn subscriber(&self, scope: Scope, steps: bool, artifacts: bool) -> Arc<Subscriber> {
        Arc::new(Subscriber {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            scope,
            steps,
            artifacts,
            queue: Queue::new(self.settings.queue),
            registered: AtomicU64::new(0),
        })
    }

    /// Registers: every change after the returned position will be pushed to the subscriber's queue.
    pub(super) async fn attach(self: &Arc<Self>, subscriber: &Arc<Subscriber>) -> Result<Cursor> {
        if let Some(cursor) = self.register(subscriber) {
            return Ok(cursor);
        }
        let failures_before = self.failures.lock().0;
        let _starting = self.starting.lock().await;
        if let Some(cursor) = self.register(subscriber) {
            return Ok(cursor);
        }
        {
            // A start that failed while this one waited for its turn answers for it as well.
            let failures = self.failures.lock();
            if let (true, Some(error)) = (failures.0 != failures_before, &failures.1) {
                return Err(again(error));
            }
        }
        let opened = match self.store.log() {
            Ok(log) => log.open(None).await,
            Err(error) => Err(error),
        };
        let reader = opened.inspect_err(|error| {
            let mut failures = self.failures.lock();
            *failures = (failures.0 + 1, Some(again(error)));
        })?;
        let cursor = reader.cursor();
        self.publish_position(&cursor);
        {
            let mut live = self.live.lock();
            self.resolver.set_active(true);
            live.claimed = Some(cursor.clone());
            live.published = Some(cursor);
        }
        // Before the tail runs: it ends when there is nobody to run for.
        let registered = self.register(subscriber).ok_or(Error::away());
        let hub = Arc::clone(self);
        self.tasks.spawn(async move { hub.tail(reader).await });
        registered
    }

    fn register(&self, subscriber: &Arc<Subscriber>) -> Option<Cursor> {
        let mut live = self.live.lock();
        let cursor = live.claimed.clone()?;
        live.empty_since = None;
        subscriber.registered.store(live.batch, Ordering::Relaxed);
        let subscriber = Arc::clone(subscriber);
        match &subscriber.scope {
            Scope::Execution(id) => {
                live.by_execution.entry(id.clone()).or_default().insert(subscriber);
            }
            Scope::Filter(_) => {
                live.by_filter.insert(subscriber);
            }
        }
        Some(cursor)
    }

    /// Nothing more is pushed to the subscriber.
    pub(super) fn detach(&self, subscriber: &Subscriber) {
        self.live.lock().remove(subscriber, self.clock.instant());
    }

    /// The position up to which an attached subscriber with nothing in its queue has seen everything.
    pub(super) fn seen(&self, subscriber: &Subscriber) -> Option<Cursor> {
        let live = self.live.lock();
        if subscriber.queue.is_idle() { live.published.clone() } else { None }
    }

    pub(super) fn position(&self) -> watch::Receiver<u64> {
        self.position.subscribe()
    }

    fn publish_position(&self, cursor: &Cursor) {
        if let Some(position) = self.store.log().ok().and_then(|log| log.position_of(cursor)) {
            self.position.send_if_modified(|known| {
                let newer = position > *known;
                *known = position.max(*known);
                newer
            });
        }
    }

    /// Reads the log to its end and goes on as it grows, until nobody has watched for a while.
    async fn tail(self: Arc<Self>, reader: Box<dyn ChangeReader>) {
        let pass = Pass::new(EXECUTIONS_BYTES);
        let mut reader = Some(reader);
        let mut away = false;
        loop {
            if self.idle() {
                return;
            }
            let Some(open) = reader.as_mut() else {
                tokio::select! {
                    () = self.stop.cancelled() => break,
                    () = tokio::time::sleep(RETRY_PAUSE) => {}
                }
                reader = tokio::select! {
                    () = self.stop.cancelled() => break,
                    reopened = self.reopen() => reopened,
                };
                if away && reader.is_some() {
                    tracing::info!("reading the log again");
                    away = false;
                }
                continue;
            };
            let read = tokio::select! {
                () = self.stop.cancelled() => break,
                read = open.next() => read,
            };
            let published = match read {
                Ok(changes) => {
                    let cursor = open.cursor();
                    if let Some(first) = changes.first() {
                        // The clocks may disagree by more than it takes.
                        let lag = self.clock.now().millis().saturating_sub(first.at).max(0);
                        watch_lag().set(lag as f64 / 1000.0);
                    }
                    tokio::select! {
                        () = self.stop.cancelled() => break,
                        published = self.publish(changes, cursor, &pass) => published,
                    }
                }
                Err(error) => Err(error),
            };
            if let Err(error) = published {
                // Watchers stay: the tail goes on from where it was as soon as it can.
                if !away {
                    tracing::warn!(%error, "cannot read the log; trying again");
                    away = true;
                }
                reader = None;
            }
        }
        self.live.lock().end(&self.resolver);
    }

    /// Whether nobody has watched for a while. From then on there is no tail, in the same moment.
    fn idle(&self) -> bool {
        let mut live = self.live.lock();
        let over = live.is_empty()
            && live
                .empty_since
                .is_none_or(|since| self.clock.elapsed(since) >= self.settings.linger);
        if over {
            live.end(&self.resolver);
        }
        over
    }

    async fn reopen(&self) -> Option<Box<dyn ChangeReader>> {
        let cursor = self.live.lock().published.clone();
        let log = self.store.log().ok()?;
        match log.open(cursor.as_ref()).await {
            Ok(reader) => Some(reader),
            Err(error @ (Error::CursorExpired | Error::BadCursor)) => {
                tracing::warn!(%error, "the log has a gap; watchers get the current state again");
                // The gap cannot be filled: everybody goes on from history, and learns there that it is gone.
                let reader = log.open(None).await.ok()?;
                let mut live = self.live.lock();
                let gone: Vec<Arc<Subscriber>> = live.all().cloned().collect();
                for subscriber in gone {
                    subscriber.queue.end(End::Full);
                    live.remove(&subscriber, self.clock.instant());
                }
                live.batch += 1;
                live.claimed = Some(reader.cursor());
                live.published = Some(reader.cursor());
                Some(reader)
            }
            Err(error) => {
                tracing::debug!(%error, "cannot open the log");
                None
            }
        }
    }

    async fn publish(&self, changes: Vec<Change>, cursor: Cursor, pass: &Pass) -> Result<()> {
        let batch = {
            let mut live = self.live.lock();
            live.batch += 1;
            live.claimed = Some(cursor.clone());
            live.batch
        };
        if !changes.is_empty() {
            let log = self.store.log()?;
            let registered = Registered(&self.live);
            let events = self.resolver.resolve(log.as_ref(), changes, &registered, pass).await?;
            self.push(&events, batch).await;
        }
        self.live.lock().published = Some(cursor.clone());
        self.publish_position(&cursor);
        Ok(())
    }

    /// Pushes events to all who registered before the batch.
    async fn push(&self, events: &[Arc<Event>], batch: u64) {
        let mut pushed_since_pause = 0;
        for event in events {
            let (mut delivered, mut coalesced, mut detached) = (0, 0, 0);
            {
                let mut live = self.live.lock();
                let mut ended: Vec<Arc<Subscriber>> = Vec::new();
                for subscriber in live.of(&event.key) {
                    let early = subscriber.registered.load(Ordering::Relaxed) < batch;
                    if !early || !subscriber.wants(event) {
                        continue;
                    }
                    let (merged, pushed) = subscriber.queue.push(event);
                    coalesced += merged as u64;
                    match pushed {
                        Pushed::Queued => delivered += 1,
                        Pushed::Full | Pushed::Gone => ended.push(Arc::clone(subscriber)),
                    }
                }
                for subscriber in ended {
                    live.remove(&subscriber, self.clock.instant());
                    detached += 1;
                }
            }
            self.numbers.events.fetch_add(delivered, Ordering::Relaxed);
            self.numbers.coalesced.fetch_add(coalesced, Ordering::Relaxed);
            self.numbers.detached.fetch_add(detached, Ordering::Relaxed);
            pushed_since_pause += delivered;
            if pushed_since_pause >= PUSHES_AT_A_TIME {
                pushed_since_pause = 0;
                tokio::task::yield_now().await;
            }
        }
    }
}
