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

use super::catch_up::CatchUp;
use super::event::Event;
use super::queue::{Bounds, End, Queue};
use super::resolve::{Interest, Resolver, Want};
use crate::clock::Clock;
use crate::domain::query::ExecutionFilter;
use crate::store::{
    Change, ChangeReader, Changed, Cursor, Error, Record, RecordKey, Result, Store,
};

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

/// Whose changes a watcher wants.
#[derive(Debug, Clone, PartialEq)]
pub enum Scope {
    Execution(String),
    Filter(ExecutionFilter),
}

/// One registered watcher.
#[derive(Debug)]
pub struct Subscriber {
    id: u64,
    pub scope: Scope,
    pub steps: bool,
    pub payloads: bool,
    pub queue: Queue,
    /// Number of its last registration.
    registered: AtomicU64,
}

impl Subscriber {
    /// Whether it gets this event.
    pub fn wants(&self, event: &Event) -> bool {
        match &self.scope {
            Scope::Execution(id) => *id == event.key.execution_id,
            Scope::Filter(filter) => {
                (self.steps || event.key.step_id.is_none()) && event.is_for(filter)
            }
        }
    }

    /// What it adds to the counts of watchers of steps and of payloads.
    fn counts(&self) -> (usize, usize) {
        // A watcher of one execution follows its steps in any case, to know when it is over.
        let steps = self.steps || matches!(self.scope, Scope::Execution(_));
        (usize::from(steps), usize::from(self.steps && self.payloads))
    }

    /// What it needs of the record of this key, before the record is known.
    pub fn want(&self, key: &RecordKey) -> Want {
        match &self.scope {
            Scope::Execution(id) if *id != key.execution_id => Want::Nothing,
            Scope::Filter(_) if key.step_id.is_some() && !self.steps => Want::Nothing,
            _ if self.steps && self.payloads && key.step_id.is_some() => Want::Payloads,
            _ => Want::Record,
        }
    }
}

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
    /// Held while the tail is being started.
    starting: tokio::sync::Mutex<()>,
    /// Number of the position up to which everything was published.
    position: watch::Sender<u64>,
    next_id: AtomicU64,
    pub numbers: Numbers,
}

/// Watchers of one execution, or by filter. The counts answer what is wanted without asking each of them.
#[derive(Default)]
struct Watchers {
    by_id: IndexMap<u64, Arc<Subscriber>>,
    of_steps: usize,
    of_payloads: usize,
}

impl Watchers {
    fn insert(&mut self, subscriber: Arc<Subscriber>) {
        let (steps, payloads) = subscriber.counts();
        if self.by_id.insert(subscriber.id, subscriber).is_none() {
            self.of_steps += steps;
            self.of_payloads += payloads;
        }
    }

    fn remove(&mut self, subscriber: &Subscriber) {
        let (steps, payloads) = subscriber.counts();
        if self.by_id.swap_remove(&subscriber.id).is_some() {
            self.of_steps -= steps;
            self.of_payloads -= payloads;
        }
    }

    fn want(&self, key: &RecordKey) -> Want {
        match key.step_id {
            _ if self.by_id.is_empty() => Want::Nothing,
            None => Want::Record,
            Some(_) if self.of_payloads > 0 => Want::Payloads,
            Some(_) if self.of_steps > 0 => Want::Record,
            Some(_) => Want::Nothing,
        }
    }
}

#[derive(Default)]
struct Live {
    by_execution: HashMap<String, Watchers>,
    by_filter: Watchers,
    /// Everything up to here was published; `None` while there is no tail.
    cursor: Option<Cursor>,
    /// Registrations so far.
    registrations: u64,
    /// When the last watcher left.
    empty_since: Option<Instant>,
}

impl Live {
    fn is_empty(&self) -> bool {
        self.by_execution.is_empty() && self.by_filter.by_id.is_empty()
    }

    fn remove(&mut self, subscriber: &Subscriber) {
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
            self.empty_since = Some(Instant::now());
        }
    }

    /// The strongest want of the registered watchers.
    fn want(&self, key: &RecordKey) -> Want {
        let of_this = self.by_execution.get(&key.execution_id);
        of_this.map_or(Want::Nothing, |watchers| watchers.want(key)).max(self.by_filter.want(key))
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
}

/// The registered watchers, as the resolver sees them.
struct Registered<'a>(&'a Mutex<Live>);

impl Interest for Registered<'_> {
    fn of(&self, key: &RecordKey) -> Want {
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
            clock,
            settings,
            stop,
            resolver: Resolver::new(),
            catch_up: CatchUp::new(settings.readers),
            tasks,
            live: Mutex::default(),
            starting: tokio::sync::Mutex::new(()),
            position: watch::Sender::new(0),
            next_id: AtomicU64::new(1),
            numbers: Numbers::default(),
        })
    }

    /// Whether the database keeps a log to watch.
    pub fn check(&self) -> Result<()> {
        self.store.log().map(|_| ())
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

    pub(super) fn subscriber(&self, scope: Scope, steps: bool, payloads: bool) -> Arc<Subscriber> {
        Arc::new(Subscriber {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            scope,
            steps,
            payloads,
            queue: Queue::new(self.settings.queue),
            registered: AtomicU64::new(0),
        })
    }

    /// Registers: every change after the returned position will be pushed to the subscriber's queue.
    pub(super) async fn attach(self: &Arc<Self>, subscriber: &Arc<Subscriber>) -> Result<Cursor> {
        if let Some(cursor) = self.register(subscriber) {
            return Ok(cursor);
        }
        let _starting = self.starting.lock().await;
        if let Some(cursor) = self.register(subscriber) {
            return Ok(cursor);
        }
        let reader = self.store.log()?.open(None).await?;
        let cursor = reader.cursor();
        self.publish_position(&cursor);
        self.resolver.set_active(true);
        self.live.lock().cursor = Some(cursor);
        let hub = Arc::clone(self);
        self.tasks.spawn(async move { hub.tail(reader).await });
        self.register(subscriber).ok_or(Error::Unavailable(None))
    }

    fn register(&self, subscriber: &Arc<Subscriber>) -> Option<Cursor> {
        let mut live = self.live.lock();
        let cursor = live.cursor.clone()?;
        live.empty_since = None;
        live.registrations += 1;
        subscriber.registered.store(live.registrations, Ordering::Relaxed);
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
        self.live.lock().remove(subscriber);
    }

    /// The position up to which an attached subscriber with nothing in its queue has seen everything.
    pub(super) fn seen(&self, subscriber: &Subscriber) -> Option<Cursor> {
        let live = self.live.lock();
        if subscriber.queue.is_idle() { live.cursor.clone() } else { None }
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
        let mut reader = Some(reader);
        loop {
            let Some(open) = reader.as_mut() else {
                tokio::select! {
                    () = self.stop.cancelled() => break,
                    () = tokio::time::sleep(RETRY_PAUSE) => {}
                }
                if self.idle() {
                    break;
                }
                reader = self.reopen().await;
                continue;
            };
            let read = tokio::select! {
                () = self.stop.cancelled() => break,
                read = open.next() => read,
            };
            let published = match read {
                Ok(changes) => self.publish(changes, open.cursor()).await,
                Err(error) => Err(error),
            };
            if let Err(error) = published {
                // Watchers stay: the tail goes on from where it was as soon as it can.
                tracing::warn!(%error, "the log cannot be read; trying again");
                reader = None;
            }
            if self.idle() {
                break;
            }
        }
        self.live.lock().cursor = None;
        self.resolver.set_active(false);
    }

    /// Whether nobody has watched for a while. From then on there is no tail, in the same moment.
    fn idle(&self) -> bool {
        let mut live = self.live.lock();
        let over = live.is_empty()
            && live.empty_since.is_some_and(|since| since.elapsed() >= self.settings.linger);
        if over {
            live.cursor = None;
        }
        over
    }

    async fn reopen(&self) -> Option<Box<dyn ChangeReader>> {
        let cursor = self.live.lock().cursor.clone();
        let log = self.store.log().ok()?;
        match log.open(cursor.as_ref()).await {
            Ok(reader) => Some(reader),
            Err(Error::CursorExpired) => {
                // The gap cannot be filled: everybody goes on from history, and learns there that it is gone.
                let reader = log.open(None).await.ok()?;
                let mut live = self.live.lock();
                let gone: Vec<Arc<Subscriber>> = live.all().cloned().collect();
                for subscriber in gone {
                    subscriber.queue.end(End::Full);
                    live.remove(&subscriber);
                }
                live.cursor = Some(reader.cursor());
                Some(reader)
            }
            Err(error) => {
                tracing::debug!(%error, "the log cannot be opened");
                None
            }
        }
    }

    async fn publish(&self, changes: Vec<Change>, cursor: Cursor) -> Result<()> {
        if !changes.is_empty() {
            self.publish_changes(changes, &cursor).await?;
        } else {
            self.live.lock().cursor = Some(cursor.clone());
        }
        self.publish_position(&cursor);
        Ok(())
    }

    async fn publish_changes(&self, changes: Vec<Change>, cursor: &Cursor) -> Result<()> {
        let keys: Vec<RecordKey> = changes
            .iter()
            .filter_map(|change| match &change.what {
                Changed::Record(key) => Some(key.clone()),
                Changed::Unknown { .. } => None,
            })
            .collect();
        let some_unknown = keys.len() < changes.len();
        let log = self.store.log()?;
        let registered_before = self.live.lock().registrations;
        let events = self.resolver.resolve(log.as_ref(), changes, &Registered(&self.live)).await?;

        let (mut delivered, mut coalesced) = (0, 0);
        let mut full: Vec<Arc<Subscriber>> = Vec::new();
        {
            let mut live = self.live.lock();
            // Who registered while the records were looked up may want what nobody wanted then: it goes on from
            // history, where this batch is.
            if live.registrations != registered_before {
                for subscriber in live.all() {
                    let late = subscriber.registered.load(Ordering::Relaxed) > registered_before;
                    let touched =
                        some_unknown || keys.iter().any(|key| subscriber.want(key) > Want::Nothing);
                    if late && touched {
                        subscriber.queue.end(End::Full);
                        full.push(Arc::clone(subscriber));
                    }
                }
            }
            for event in &events {
                for subscriber in live.of(&event.key) {
                    if !subscriber.wants(event) {
                        continue;
                    }
                    let (merged, ended) = subscriber.queue.push(event);
                    coalesced += merged as u64;
                    if ended {
                        full.push(Arc::clone(subscriber));
                    } else {
                        delivered += 1;
                    }
                }
            }
            full.sort_by_key(|subscriber| subscriber.id);
            full.dedup_by_key(|subscriber| subscriber.id);
            for subscriber in &full {
                live.remove(subscriber);
            }
            live.cursor = Some(cursor.clone());
        }
        self.numbers.events.fetch_add(delivered, Ordering::Relaxed);
        self.numbers.coalesced.fetch_add(coalesced, Ordering::Relaxed);
        self.numbers.detached.fetch_add(full.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}
