//! One watcher: snapshot, history and live events as one stream that is pulled by its reader.
//!
//! Events come in the order of the log, and the stream never goes back behind its own position: whatever is pushed
//! to it twice is taken once.

use std::collections::VecDeque;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::ahead::Ahead;
use super::catch_up::{Request, request};
use super::ending::Ending;
use super::event::Event;
use super::hub::{Hub, Scope, Subscriber};
use super::metrics::{Arrivals, Feed, Points};
use super::queue::{End, Next, Queue};
use super::snapshot::{Plan, Reading, Snapshot, Steps, running_steps};
use crate::domain::Millis;
use crate::store::{ChangeKind, ChangeLog, Cursor, Error, Record};

/// Pause before history that could not be read is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(300);
/// How long a stream that resumes waits for its first event, to tell a token that is too old as the answer.
const FIRST_EVENT: Duration = Duration::from_secs(1);
/// What may have happened unseen before the last event a stream has seen.
const SLACK_MS: i64 = 60_000;

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

/// A watcher's stream.
pub struct Watch {
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

impl Drop for Watch {
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
        let mut watch = Watch {
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
        };
        if let (Some(arrivals), Scope::Execution(id)) =
            (&watch.options.metrics, &watch.options.scope)
        {
            watch.metrics = Some(arrivals.feed(id).await?);
        }
        match watch.options.resume.take() {
            Some(cursor) => watch.resume(cursor, attached_at).await?,
            None => watch.begin_snapshot(attached_at, false).await?,
        }
        Ok(watch)
    }

    async fn resume(&mut self, cursor: Cursor, attached_at: Cursor) -> Result<(), Failure> {
        if cursor > attached_at {
            // Ahead of this server, which another one may well be; but never ahead of the database.
            let position = self.log.position().await?;
            if self.log.position_of(&cursor).is_some_and(|of_token| of_token > position) {
                return Err(Error::CursorExpired.into());
            }
        }
        if let Scope::Execution(id) = &self.options.scope {
            match self.hub.store.execution(id).await? {
                Some(execution) => self.ending.terminal = execution.is_terminal(),
                None => {
                    self.ending.missing = true;
                    self.ending.barrier = Some(self.log.position().await?);
                }
            }
        }
        self.cursor = cursor;
        self.read_history(attached_at);
        let Phase::History { queue, .. } = &self.phase else { return Ok(()) };
        // History that is gone is told before the stream begins. A long way to the first event is no failure.
        let queue = Arc::clone(queue);
        let first = tokio::select! {
            () = self.hub.stop.cancelled() => return Err(Failure::ShuttingDown),
            first = tokio::time::timeout(FIRST_EVENT, poll_fn(|context| queue.poll_next(context))) => first,
        };
        match first {
            Ok(next) => self.history(next).await,
            Err(_) => Ok(()),
        }
    }

    async fn begin_snapshot(&mut self, attached_at: Cursor, again: bool) -> Result<(), Failure> {
        let mut first = None;
        if let Scope::Execution(id) = &self.options.scope {
            first = self.hub.store.execution(id).await?;
            if first.is_none() && !again {
                return Err(Failure::ExecutionNotFound);
            }
        }
        self.ahead.clear();
        self.ending = Ending::default();
        self.cursor = attached_at.clone();
        if let (Scope::Execution(id), None) = (&self.options.scope, &first) {
            let gone = Arc::new(Event::gone(attached_at, id));
            self.ending.deleted = true;
            self.phase = Phase::Live;
            self.ready.push_back(Delivery::Event(gone));
            return Ok(());
        }
        self.ending.terminal = first.as_ref().is_some_and(|execution| execution.is_terminal());
        let of_one = matches!(self.options.scope, Scope::Execution(_));
        let plan = Plan {
            scope: self.options.scope.clone(),
            snapshot: self.options.snapshot,
            steps: match self.options.steps {
                true => Steps::All,
                false if of_one && !self.options.follow => Steps::Running,
                false => Steps::None,
            },
            artifacts: self.options.artifacts,
            payloads: self.options.payloads,
            since: again.then_some(self.seen_at - SLACK_MS),
        };
        self.seen_at = self.hub.clock.now().millis();
        self.phase = Phase::Snapshot(Box::new(Reading::new(plan, attached_at, again, first)));
        Ok(())
    }

    /// The next message. `None`: the stream has ended in order. The caller polls one call to its end.
    pub async fn next(&mut self) -> Option<Result<Delivery, Failure>> {
        loop {
            if let Some(delivery) = self.ready.pop_front() {
                self.next_keepalive = Instant::now() + self.hub.settings.keepalive;
                return Some(Ok(delivery));
            }
            if matches!(self.phase, Phase::Ended) {
                return None;
            }
            let advanced = if self.hub.stop.is_cancelled() {
                Err(Failure::ShuttingDown)
            } else {
                match self.is_over().await {
                    Ok(true) => self.end().await,
                    Ok(false) => self.advance().await,
                    Err(failure) => Err(failure),
                }
            };
            if let Err(failure) = advanced {
                self.phase = Phase::Ended;
                return Some(Err(failure));
            }
        }
    }

    /// Does the next piece of work, which may or may not make messages.
    async fn advance(&mut self) -> Result<(), Failure> {
        let queue = match &self.phase {
            Phase::Snapshot(_) => return self.advance_snapshot().await,
            Phase::Ended => return Ok(()),
            Phase::History { queue, .. } => Arc::clone(queue),
            Phase::Live => {
                let subscriber = Arc::clone(&self.subscriber);
                return match self.wait(&subscriber.queue).await {
                    Some(next) => self.live(next).await,
                    None => Ok(()),
                };
            }
        };
        match self.wait(&queue).await {
            Some(next) => self.history(next).await,
            None => Ok(()),
        }
    }

    async fn live(&mut self, next: Next) -> Result<(), Failure> {
        match next {
            Next::Event(event) => self.take(event).await,
            // What was in the queue is taken: from here on from the log, and then live again.
            Next::Ended(_) => {
                let subscriber = Arc::clone(&self.subscriber);
                loop {
                    match self.hub.attach(&subscriber).await {
                        Ok(until) => {
                            self.read_history(until);
                            return Ok(());
                        }
                        Err(error) => {
                            self.pause(&error).await;
                            if self.hub.stop.is_cancelled() {
                                return Err(Failure::ShuttingDown);
                            }
                            if !self.ready.is_empty() {
                                // Not registered yet: the next look finds that out again.
                                subscriber.queue.end(End::Full);
                                return Ok(());
                            }
                        }
                    }
                }
            }
        }
    }

    async fn history(&mut self, next: Next) -> Result<(), Failure> {
        let Phase::History { until, .. } = &self.phase else { return Ok(()) };
        let until = until.clone();
        match next {
            Next::Event(event) => {
                self.resumed = false;
                self.take(event).await
            }
            Next::Ended(End::Done) => {
                self.cursor = until.max(self.cursor.clone());
                self.resumed = false;
                self.phase = Phase::Live;
                Ok(())
            }
            // Too slow for the reader: again from where we are.
            Next::Ended(End::Full) => {
                self.read_history(until);
                Ok(())
            }
            Next::Ended(End::Failed(error)) => match error {
                Error::CursorExpired | Error::BadCursor if self.resumed => {
                    Err(Error::CursorExpired.into())
                }
                Error::CursorExpired | Error::BadCursor => {
                    // Only slow: the latest of everything is all it is promised, and that is the state as of now.
                    match self.begin_snapshot(until.clone(), true).await {
                        Err(Failure::Store(error)) if error.is_retryable() => {
                            self.pause(&error).await;
                            self.read_history(until);
                            Ok(())
                        }
                        begun => begun,
                    }
                }
                Error::NoLog => Err(error.into()),
                error => {
                    self.pause(&error).await;
                    self.read_history(until);
                    Ok(())
                }
            },
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

    /// The database is away: watchers stay connected and go on when it is back.
    async fn pause(&mut self, error: &Error) {
        tracing::debug!(%error, "a watcher waits for the database");
        let retry = Instant::now() + RETRY_PAUSE;
        tokio::select! {
            () = self.hub.stop.cancelled() => {}
            () = tokio::time::sleep_until(retry) => {}
            () = tokio::time::sleep_until(self.next_keepalive) => self.keepalive(),
        }
    }

    /// Waits for an event, the time for a keepalive, the position to wait for, or the end.
    async fn wait(&mut self, queue: &Queue) -> Option<Next> {
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
            Woken::Next(next) => {
                self.took_metrics = false;
                return Some(next);
            }
            Woken::Metrics => {
                self.took_metrics = true;
                self.take_metrics().await;
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

    /// Delivers points that arrived.
    async fn take_metrics(&mut self) {
        let Some(feed) = &mut self.metrics else { return };
        match feed.take().await {
            Ok(events) => {
                self.look_at_position();
                for points in events {
                    self.ready.push_back(Delivery::Metrics(points, self.cursor.clone()));
                }
            }
            Err(error) => self.pause(&error).await,
        }
    }

    /// The watch is over, once the points that arrived before are delivered.
    async fn end(&mut self) -> Result<(), Failure> {
        if let Some(feed) = self.metrics.as_mut().filter(|_| !self.ending.deleted) {
            if let Err(error) = feed.refresh().await {
                tracing::debug!(%error, "the last points of other servers are not known");
            }
            if feed.has_more() {
                self.take_metrics().await;
                return Ok(());
            }
        }
        self.phase = Phase::Ended;
        Ok(())
    }

    /// Takes an event from the log: keeps the books, and delivers it unless it is old news.
    async fn take(&mut self, event: Arc<Event>) -> Result<(), Failure> {
        if event.cursor <= self.cursor {
            return Ok(());
        }
        let sent = event.key.step_id.is_none() || self.options.steps;
        let mut news = Some(Arc::clone(&event));
        if sent && self.options.payloads && event.key.step_id.is_some() && event.record.is_some() {
            news = self.with_payloads(&event).await?;
        }
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
        Ok(())
    }

    /// `None`: the step is gone, and its deletion or that of its execution comes later.
    async fn with_payloads(&mut self, event: &Event) -> Result<Option<Arc<Event>>, Failure> {
        loop {
            let loaded = self.hub.resolver.with_payloads(self.log.as_ref(), event).await;
            match loaded {
                Ok(loaded) => return Ok(loaded),
                // It is not passed over, so the stream waits here.
                Err(error) if error.is_retryable() => self.pause(&error).await,
                Err(error) => return Err(error.into()),
            }
            if self.hub.stop.is_cancelled() {
                return Err(Failure::ShuttingDown);
            }
        }
    }

    /// Whether the watch of one execution is over.
    async fn is_over(&mut self) -> Result<bool, Failure> {
        if self.ending.deleted {
            return Ok(true);
        }
        let over = self.ending.terminal && !self.options.follow && !self.ending.ahead;
        if !(over || self.ending.missing) || matches!(self.phase, Phase::Snapshot(_)) {
            return Ok(false);
        }
        let Scope::Execution(id) = &self.options.scope else { return Ok(false) };
        if over && !self.ending.steps_known {
            // After a resume: the steps as of now, and the position by which all that led to them was seen.
            let running = running_steps(self.hub.store.as_ref(), id).await;
            let looked = match running {
                Ok(running) => self.log.position().await.map(|position| (running, position)),
                Err(error) => Err(error),
            };
            match looked {
                Ok((running, position)) => {
                    self.ending.running = running.into_iter().collect();
                    self.ending.barrier = Some(position);
                    self.ending.steps_known = true;
                }
                Err(error) if error.is_retryable() => {
                    self.pause(&error).await;
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(barrier) = self.ending.barrier {
            let reached = matches!(self.phase, Phase::Live)
                && *self.position.borrow_and_update() >= barrier
                && self.hub.seen(&self.subscriber).is_some();
            if !reached {
                return Ok(false);
            }
            self.ending.barrier = None;
        }
        if self.ending.missing {
            return Err(Failure::ExecutionNotFound);
        }
        Ok(self.ending.running.is_empty())
    }

    async fn advance_snapshot(&mut self) -> Result<(), Failure> {
        let Phase::Snapshot(reading) = &mut self.phase else { return Ok(()) };
        let again = reading.again;
        let piece = match reading.next(self.hub.store.as_ref(), self.log.as_ref()).await {
            Ok(piece) => piece,
            // A new watcher hears of it; one that is only slow waits.
            Err(error) if again && error.is_retryable() => {
                self.pause(&error).await;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let Some((records, read_at)) = piece else {
            let attached_at = reading.attached_at.clone();
            self.ending.steps_known = true;
            self.resumed = false;
            self.phase = Phase::Live;
            self.ready.push_back(Delivery::SnapshotComplete(attached_at));
            return Ok(());
        };
        let kind = if again { ChangeKind::Updated } else { ChangeKind::Created };
        let now = self.hub.clock.now().millis();
        for record in records {
            // Its change may still be on its way through the log.
            self.ahead.read(&record, now, read_at);
            if let Record::Step(step) = &record {
                if matches!(self.options.scope, Scope::Execution(_)) {
                    self.ending.note_step(step);
                }
                if !self.options.steps {
                    continue;
                }
            }
            self.ready.push_back(Delivery::Current(record, kind));
        }
        Ok(())
    }
}
