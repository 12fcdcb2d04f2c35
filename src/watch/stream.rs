//! One watcher: snapshot, history and live events as one stream that is pulled by its reader.
//!
//! Events come in the order of the log, and the stream never goes back behind its own position: whatever is pushed
//! to it twice is taken once.
//!
//! Its reader may stop at any time. So it waits only for what is pushed to it in memory; whatever asks the database or
//! waits for others is a piece of `Work`, which a task of its own does to its end.

mod work;

use std::collections::VecDeque;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::ahead::Ahead;
use super::catch_up::request;
use super::ending::Ending;
use super::event::Event;
use super::hub::Hub;
use super::metrics::{Arrivals, Feed, Points};
use super::queue::{Next, Queue};
use super::snapshot::{Reading, Snapshot};
use super::subscriber::{Scope, Subscriber};
use super::waiting::Request;
use crate::detached::detached;
use crate::domain::Millis;
use crate::store::{ChangeKind, ChangeLog, Cursor, Error, Record};

/// What a watcher asked for.
#[derive(Debug, Clone)]
pub struct Options {
    pub scope: Scope,
    pub steps: bool,
    /// Only of one execution.
    pub artifacts: bool,
    pub payloads: bool,
    /// Points of metrics of the one execution, from here.
    pub metrics: Option<Arc<Arrivals>>,
    /// Go on after the execution has ended.
    pub follow: bool,
    pub snapshot: Snapshot,
    /// Where to go on, instead of a snapshot.
    pub resume: Option<Cursor>,
}

/// Why a stream ended before its time, or could not begin.
#[derive(Debug)]
pub enum Failure {
    ExecutionNotFound,
    ShuttingDown,
    Store(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Store(error)
    }
}

/// One message of the stream.
#[derive(Debug)]
pub enum Delivery {
    /// A record of the snapshot; it has no position.
    Current(Record, ChangeKind),
    /// A change, to resume after from its own position.
    Event(Arc<Event>),
    /// Resume after it from here.
    SnapshotComplete(Cursor),
    /// Points that arrived; the position is that of the changes before.
    Metrics(Points, Cursor),
    Keepalive(Cursor),
}

enum Phase {
    Snapshot(Box<Reading>),
    /// From history, up to the cursor.
    History {
        queue: Arc<Queue>,
        until: Cursor,
    },
    Live,
    Ended,
}

/// What a waiting stream woke up for.
enum Woken {
    Next(Next),
    Stopped,
    Keepalive,
    /// There are points of metrics.
    Metrics,
    /// The log may have reached the position that is waited for.
    Position,
}

/// A piece of work that takes more than what is in memory.
enum Work {
    /// Reads the next piece of the snapshot.
    Snapshot,
    /// Takes what was in the queue.
    Next(Next),
    /// Reads points that there was no room for.
    Metrics,
    /// Reads which steps are running.
    Steps,
    /// Looks for the last points.
    LastMetrics,
}

/// What the stream has come to.
enum Turn {
    Delivery(Delivery),
    Work(Work),
    /// It has ended in order.
    Ended,
    Failed(Failure),
}

/// Whether the watch of one execution is over.
enum Over {
    Yes,
    No,
    /// Only its steps can tell.
    AskSteps,
}

/// A watcher's stream.
pub struct Watch {
    /// `None` once a piece of work was given up by whoever waited for it.
    watching: Option<Box<Watching>>,
}

/// Where the stream stands.
struct Watching {
    hub: Arc<Hub>,
    log: Arc<dyn ChangeLog>,
    subscriber: Arc<Subscriber>,
    options: Options,
    /// Everything up to here was delivered.
    cursor: Cursor,
    /// When the newest change that was seen was committed.
    seen_at: Millis,
    phase: Phase,
    ahead: Ahead,
    ready: VecDeque<Delivery>,
    metrics: Option<Feed>,
    /// Whether the last thing taken was points: then changes are first.
    took_metrics: bool,
    ending: Ending,
    position: watch::Receiver<u64>,
    /// Whether the cursor is still the client's token: then history that is gone is the client's affair.
    resumed: bool,
    next_keepalive: Instant,
    sleep: Pin<Box<Sleep>>,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.hub.detach(&self.subscriber);
        if let Phase::History { queue, .. } = &self.phase {
            queue.close();
        }
        self.hub.numbers.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Watch {
    /// Registers first, and only then reads: nothing can fall between the snapshot and the changes.
    pub async fn start(hub: Arc<Hub>, options: Options) -> Result<Watch, Failure> {
        if hub.stop.is_cancelled() {
            return Err(Failure::ShuttingDown);
        }
        let log = hub.store.log()?;
        if let Some(cursor) = &options.resume
            && log.position_of(cursor).is_none()
        {
            return Err(Error::BadCursor.into());
        }
        let of_one = matches!(options.scope, Scope::Execution(_));
        let steps = options.steps || (of_one && !options.follow);
        let subscriber = hub.subscriber(options.scope.clone(), steps, options.artifacts);
        let attached_at = hub.attach(&subscriber).await?;
        hub.numbers.watchers.fetch_add(1, Ordering::Relaxed);
        let next_keepalive = Instant::now() + hub.settings.keepalive;
        // From here on dropping the stream takes the subscriber back.
        let mut watch = Box::new(Watching {
            log,
            subscriber,
            cursor: attached_at.clone(),
            seen_at: hub.clock.now().millis(),
            phase: Phase::Live,
            ahead: Ahead::default(),
            ready: VecDeque::new(),
            metrics: None,
            took_metrics: false,
            ending: Ending::default(),
            position: hub.position(),
            resumed: options.resume.is_some(),
            next_keepalive,
            sleep: Box::pin(tokio::time::sleep_until(next_keepalive)),
            stopped: Box::pin(hub.stop.clone().cancelled_owned()),
            hub,
            options,
        });
        if let (Some(arrivals), Scope::Execution(id)) =
            (&watch.options.metrics, &watch.options.scope)
        {
            watch.metrics = Some(arrivals.feed(id).await?);
        }
        match watch.options.resume.take() {
            Some(cursor) => watch.resume(cursor, attached_at).await?,
            None => watch.begin_snapshot(attached_at, false).await?,
        }
        Ok(Watch { watching: Some(watch) })
    }

    /// The next message. `None`: the stream has ended in order. The caller polls one call to its end.
    pub async fn next(&mut self) -> Option<Result<Delivery, Failure>> {
        loop {
            let watching = self.watching.as_mut()?;
            let work = match watching.turn().await {
                Turn::Delivery(delivery) => return Some(Ok(delivery)),
                Turn::Ended => return None,
                Turn::Failed(failure) => return Some(Err(failure)),
                Turn::Work(work) => work,
            };
            let mut watching = self.watching.take()?;
            let tasks = watching.hub.tasks.clone();
            let doing = async move {
                let done = watching.work(work).await;
                (watching, done)
            };
            let (watching, done) = detached(&tasks, doing).await;
            let watching = self.watching.insert(watching);
            if let Err(failure) = done {
                watching.phase = Phase::Ended;
                return Some(Err(failure));
            }
        }
    }
}

impl Watching {
    /// Goes on, as far as what is in memory goes and waiting for it.
    async fn turn(&mut self) -> Turn {
        loop {
            if let Some(delivery) = self.ready.pop_front() {
                self.next_keepalive = Instant::now() + self.hub.settings.keepalive;
                return Turn::Delivery(delivery);
            }
            if matches!(self.phase, Phase::Ended) {
                return Turn::Ended;
            }
            let over = match self.hub.stop.is_cancelled() {
                true => Err(Failure::ShuttingDown),
                false => self.over(),
            };
            let work = match over {
                Ok(Over::Yes) => self.end(),
                Ok(Over::No) => self.advance().await,
                Ok(Over::AskSteps) => Some(Work::Steps),
                Err(failure) => {
                    self.phase = Phase::Ended;
                    return Turn::Failed(failure);
                }
            };
            if let Some(work) = work {
                return Turn::Work(work);
            }
        }
    }

    /// Takes what is pushed next, which may or may not make messages.
    async fn advance(&mut self) -> Option<Work> {
        match &self.phase {
            Phase::Snapshot(_) => Some(Work::Snapshot),
            Phase::Ended => None,
            Phase::History { queue, .. } => {
                let queue = Arc::clone(queue);
                self.wait(&queue).await
            }
            Phase::Live => {
                let subscriber = Arc::clone(&self.subscriber);
                self.wait(&subscriber.queue).await
            }
        }
    }

    fn read_history(&mut self, until: Cursor) {
        let queue = Arc::new(Queue::new(self.hub.settings.queue));
        request(
            &self.hub,
            Request {
                subscriber: Arc::clone(&self.subscriber),
                from: self.cursor.clone(),
                until: until.clone(),
                queue: Arc::clone(&queue),
            },
        );
        self.phase = Phase::History { queue, until };
    }

    /// Waits for an event, the time for a keepalive, the position to wait for, or the end.
    async fn wait(&mut self, queue: &Queue) -> Option<Work> {
        let live = matches!(self.phase, Phase::Live);
        let woken = if live && self.ending.barrier.is_some() {
            let mut position = self.position.clone();
            tokio::select! {
                woken = poll_fn(|context| self.poll_woken(queue, context)) => woken,
                _ = position.changed() => Woken::Position,
            }
        } else {
            poll_fn(|context| self.poll_woken(queue, context)).await
        };
        match woken {
            Woken::Next(Next::Event(event)) => {
                self.took_metrics = false;
                return self.take_at_once(event).map(|event| Work::Next(Next::Event(event)));
            }
            Woken::Next(ended) => {
                self.took_metrics = false;
                return Some(Work::Next(ended));
            }
            Woken::Metrics => {
                self.took_metrics = true;
                match self.metrics.as_mut().map(Feed::take_waiting) {
                    Some(Some(events)) => self.deliver_metrics(events),
                    Some(None) => return Some(Work::Metrics),
                    None => {}
                }
            }
            Woken::Keepalive => self.keepalive(),
            Woken::Position => self.look_at_position(),
            Woken::Stopped => {}
        }
        None
    }

    fn poll_woken(&mut self, queue: &Queue, context: &mut Context<'_>) -> Poll<Woken> {
        let points = |context: &mut Context<'_>| {
            self.metrics.as_ref().is_some_and(|feed| feed.poll_ready(context).is_ready())
        };
        // By turns, so that neither waits for an end of the other.
        if !self.took_metrics && points(context) {
            return Poll::Ready(Woken::Metrics);
        }
        if let Poll::Ready(next) = queue.poll_next(context) {
            return Poll::Ready(Woken::Next(next));
        }
        if points(context) {
            return Poll::Ready(Woken::Metrics);
        }
        if self.stopped.as_mut().poll(context).is_ready() {
            return Poll::Ready(Woken::Stopped);
        }
        // Deliveries move the time of the keepalive, not the timer: it finds out when it fires.
        while self.sleep.as_mut().poll(context).is_ready() {
            if Instant::now() >= self.next_keepalive {
                return Poll::Ready(Woken::Keepalive);
            }
            self.sleep.as_mut().reset(self.next_keepalive);
        }
        Poll::Pending
    }

    /// With nothing waiting for it, a live stream has seen what was published.
    fn look_at_position(&mut self) {
        if matches!(self.phase, Phase::Live)
            && let Some(seen) = self.hub.seen(&self.subscriber)
            && seen > self.cursor
        {
            self.cursor = seen;
        }
    }

    fn keepalive(&mut self) {
        self.look_at_position();
        self.next_keepalive = Instant::now() + self.hub.settings.keepalive;
        self.sleep.as_mut().reset(self.next_keepalive);
        self.ready.push_back(Delivery::Keepalive(self.cursor.clone()));
    }

    fn deliver_metrics(&mut self, events: Vec<Points>) {
        self.look_at_position();
        for points in events {
            self.ready.push_back(Delivery::Metrics(points, self.cursor.clone()));
        }
    }

    /// The watch is over, once the points that arrived before are delivered.
    fn end(&mut self) -> Option<Work> {
        if self.metrics.is_some() && !self.ending.deleted {
            return Some(Work::LastMetrics);
        }
        self.phase = Phase::Ended;
        None
    }

    /// Whether an event is sent with what the log does not carry.
    fn needs_payloads(&self, event: &Event) -> bool {
        self.options.payloads
            && self.options.steps
            && event.cursor > self.cursor
            && event.key.step_id.is_some()
            && event.record.is_some()
    }

    /// Takes an event for which everything is at hand, and gives back another one.
    fn take_at_once(&mut self, event: Arc<Event>) -> Option<Arc<Event>> {
        let news = match self.needs_payloads(&event) {
            false => Some(Arc::clone(&event)),
            true => match self.hub.resolver.payloads_at_hand(&event) {
                Some(loaded) => loaded,
                None => return Some(event),
            },
        };
        self.take(&event, news);
        None
    }

    /// Takes an event from the log: keeps the books, and delivers it, with what belongs to it, unless it is old
    /// news.
    fn take(&mut self, event: &Event, news: Option<Arc<Event>>) {
        self.resumed = false;
        if event.cursor <= self.cursor {
            return;
        }
        let sent = event.key.step_id.is_none() || self.options.steps;
        if let Some(news) = news.filter(|news| self.ahead.admit(news)) {
            if matches!(self.options.scope, Scope::Execution(_)) {
                self.ending.note(&news);
            }
            if sent {
                self.ready.push_back(Delivery::Event(news));
            }
        } else if event.key.is_execution() && !self.ahead.holds(&event.key) {
            // The place in the log of what was told before.
            self.ending.ahead = false;
        }
        self.seen_at = self.seen_at.max(event.at);
        self.cursor.0.clone_from(&event.cursor.0);
    }

    fn over(&mut self) -> Result<Over, Failure> {
        if self.ending.deleted {
            return Ok(Over::Yes);
        }
        let over = self.ending.terminal && !self.options.follow && !self.ending.ahead;
        if !(over || self.ending.missing) || matches!(self.phase, Phase::Snapshot(_)) {
            return Ok(Over::No);
        }
        if !matches!(self.options.scope, Scope::Execution(_)) {
            return Ok(Over::No);
        }
        if over && !self.ending.steps_known {
            return Ok(Over::AskSteps);
        }
        if let Some(barrier) = self.ending.barrier {
            let reached = matches!(self.phase, Phase::Live)
                && *self.position.borrow_and_update() >= barrier
                && self.hub.seen(&self.subscriber).is_some();
            if !reached {
                return Ok(Over::No);
            }
            self.ending.barrier = None;
        }
        if self.ending.missing {
            return Err(Failure::ExecutionNotFound);
        }
        Ok(if self.ending.running.is_empty() { Over::Yes } else { Over::No })
    }
}
