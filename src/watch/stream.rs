//! One watcher: snapshot, history and live events as one stream that is pulled by its reader.
//!
//! What a look-up returns may be newer than the place in the log that asked for it. The stream remembers such
//! records (`ahead`) and skips their changes that it has delivered already, so that per record the revisions only
//! grow.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::catch_up::{Request, request};
use super::event::Event;
use super::hub::{Hub, Scope, Subscriber};
use super::queue::{End, Next, Queue};
use crate::domain::query::{
    ExecutionFilter, ExecutionKey, ExecutionOrder, ExecutionQuery, StepQuery,
};
use crate::domain::{Execution, ExecutionStatus, Step, StepStatus};
use crate::store::{ChangeKind, Changed, Cursor, Error, Record, RecordKey};

/// Records of a snapshot read at a time.
const PAGE: usize = 200;
/// The same for steps with payloads, which may be large.
const PAGE_WITH_PAYLOADS: usize = 4;
/// Executions examined for one page of a snapshot.
const EXAMINE: usize = 5000;
/// How much clocks of servers may differ: a revision older than this is no news to the log.
const CLOCK_SKEW_MS: i64 = 60_000;
/// Remembered records before those that cannot matter any more are forgotten.
const AHEAD_KEPT: usize = 1024;
/// Pause before history that could not be read is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(300);

/// Which current state comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshot {
    All,
    Active,
    None,
}

/// What a watcher asked for.
#[derive(Debug, Clone)]
pub struct Options {
    pub scope: Scope,
    pub steps: bool,
    pub payloads: bool,
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
pub struct Delivery {
    /// Resume after it from here; `None` within the snapshot.
    pub cursor: Option<Cursor>,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    /// A record of the snapshot.
    Current(Record, ChangeKind),
    Event(Arc<Event>),
    SnapshotComplete,
    Keepalive,
}

enum Phase {
    Snapshot(Box<SnapshotState>),
    /// From history, up to the cursor.
    History {
        queue: Arc<Queue>,
        until: Cursor,
    },
    Live,
    Ended,
}

/// How far the snapshot is.
struct SnapshotState {
    /// Where the stream goes on after it.
    attached_at: Cursor,
    /// The executions still to come: `None` when all pages were read.
    next_page: Option<Option<ExecutionKey>>,
    executions: VecDeque<Execution>,
    /// Of the execution whose steps are being sent: its id, and after which step to go on.
    steps_of: Option<(String, Option<i32>)>,
    /// Sent again because history is gone: as updates, and without a second `snapshot_complete`.
    again: bool,
}

/// What tells that the watch of one execution is over.
#[derive(Default)]
struct Ending {
    terminal: bool,
    /// The end was seen in a record newer than its place in the log: what happened before it may still come.
    ahead: bool,
    running: HashSet<i32>,
    /// Not over before everything up to this position was seen.
    barrier: Option<u64>,
    deleted: bool,
}

/// A watcher's stream.
pub struct Watch {
    hub: Arc<Hub>,
    subscriber: Arc<Subscriber>,
    options: Options,
    /// Everything up to here was delivered.
    cursor: Cursor,
    phase: Phase,
    ahead: HashMap<RecordKey, i64>,
    ready: VecDeque<Delivery>,
    ending: Ending,
    position: watch::Receiver<u64>,
    /// Whether the cursor is still the client's token: then history that is gone is the client's affair.
    resumed: bool,
    next_keepalive: Instant,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.hub.detach(&self.subscriber);
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
        let subscriber = hub.subscriber(options.scope.clone(), options.steps, options.payloads);
        let attached_at = hub.attach(&subscriber).await?;
        hub.numbers.watchers.fetch_add(1, Ordering::Relaxed);
        let position = hub.position();
        let next_keepalive = Instant::now() + hub.settings.keepalive;
        // From here on dropping the stream takes the subscriber back.
        let mut watch = Watch {
            hub,
            subscriber,
            cursor: attached_at.clone(),
            phase: Phase::Live,
            ahead: HashMap::new(),
            ready: VecDeque::new(),
            ending: Ending::default(),
            position,
            resumed: options.resume.is_some(),
            next_keepalive,
            options,
        };
        match watch.options.resume.take() {
            Some(cursor) => watch.resume(cursor, attached_at).await?,
            None => watch.begin_snapshot(attached_at, false).await?,
        }
        Ok(watch)
    }

    async fn resume(&mut self, cursor: Cursor, attached_at: Cursor) -> Result<(), Failure> {
        let log = self.hub.store.log()?;
        if let Scope::Execution(id) = &self.options.scope {
            // The state as of now, and the position by which the stream has seen everything that led to it.
            self.ending.barrier = Some(log.position().await?);
            let id = id.clone();
            match self.hub.store.execution(&id).await? {
                Some(execution) => self.ending.terminal = execution.is_terminal(),
                None => self.ending.deleted = true,
            }
            self.ending.running = self.running_steps(&id).await?;
        }
        self.cursor = cursor;
        self.read_history(attached_at);
        // History that is gone, or a token from elsewhere, is told before the stream begins.
        if let Phase::History { queue, .. } = &self.phase {
            let queue = Arc::clone(queue);
            loop {
                match queue.next() {
                    Next::Empty => tokio::select! {
                        () = queue.filled() => {}
                        // A long way to the first event is no failure.
                        () = tokio::time::sleep(Duration::from_secs(1)) => break,
                        () = self.hub.stop.cancelled() => return Err(Failure::ShuttingDown),
                    },
                    Next::Event(event) => {
                        self.take(event);
                        break;
                    }
                    Next::Ended(End::Failed(
                        error @ (Error::CursorExpired | Error::BadCursor | Error::NoLog),
                    )) => return Err(error.into()),
                    Next::Ended(end) => {
                        queue.end(end);
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    async fn running_steps(&self, execution_id: &str) -> Result<HashSet<i32>, Failure> {
        let mut running = HashSet::new();
        let mut after = None;
        loop {
            let query = StepQuery {
                execution_id: execution_id.to_owned(),
                statuses: vec![StepStatus::Running],
                after,
                limit: 1000,
                examine: 20_000,
            };
            let page = self.hub.store.steps(&query).await?;
            running.extend(page.records.iter().map(|step| step.step_id));
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(running),
            }
        }
    }

    async fn begin_snapshot(&mut self, attached_at: Cursor, again: bool) -> Result<(), Failure> {
        let mut state = SnapshotState {
            attached_at,
            next_page: Some(None),
            executions: VecDeque::new(),
            steps_of: None,
            again,
        };
        self.ending = Ending::default();
        if let Scope::Execution(id) = &self.options.scope {
            state.next_page = None;
            match self.hub.store.execution(id).await? {
                Some(execution) => state.executions.push_back(execution),
                None if again => self.ending.deleted = true,
                None => return Err(Failure::ExecutionNotFound),
            }
        } else if self.options.snapshot == Snapshot::None && !again {
            state.next_page = None;
        }
        self.phase = Phase::Snapshot(Box::new(state));
        Ok(())
    }

    /// The next message. `None`: the stream has ended in order. Cancel-safe between messages only: the caller
    /// polls one call to its end.
    pub async fn next(&mut self) -> Option<Result<Delivery, Failure>> {
        loop {
            if let Some(delivery) = self.ready.pop_front() {
                self.next_keepalive = Instant::now() + self.hub.settings.keepalive;
                return Some(Ok(delivery));
            }
            if matches!(self.phase, Phase::Ended) {
                return None;
            }
            if self.hub.stop.is_cancelled() {
                self.phase = Phase::Ended;
                return Some(Err(Failure::ShuttingDown));
            }
            if self.is_over() {
                self.phase = Phase::Ended;
                continue;
            }
            if let Err(failure) = self.advance().await {
                self.phase = Phase::Ended;
                return Some(Err(failure));
            }
        }
    }

    /// Does the next piece of work, which may or may not make messages.
    async fn advance(&mut self) -> Result<(), Failure> {
        match &mut self.phase {
            Phase::Snapshot(_) => self.advance_snapshot().await,
            Phase::History { queue, until } => {
                let queue = Arc::clone(queue);
                match queue.next() {
                    Next::Event(event) => self.take(event),
                    Next::Empty => self.wait(&queue).await,
                    Next::Ended(End::Done) => {
                        self.cursor = until.clone();
                        self.resumed = false;
                        self.phase = Phase::Live;
                    }
                    // Too slow for the reader: again from where we are.
                    Next::Ended(End::Full) => {
                        let until = until.clone();
                        self.read_history(until);
                    }
                    Next::Ended(End::Failed(error)) => {
                        let until = until.clone();
                        return self.history_failed(error, until).await;
                    }
                }
                Ok(())
            }
            Phase::Live => {
                let subscriber = Arc::clone(&self.subscriber);
                match subscriber.queue.next() {
                    Next::Event(event) => self.take(event),
                    Next::Empty => self.wait(&subscriber.queue).await,
                    Next::Ended(_) => match self.hub.attach(&subscriber).await {
                        Ok(until) => self.read_history(until),
                        Err(error) => self.pause(&error).await,
                    },
                }
                Ok(())
            }
            Phase::Ended => Ok(()),
        }
    }

    async fn history_failed(&mut self, error: Error, until: Cursor) -> Result<(), Failure> {
        match error {
            Error::CursorExpired if self.resumed => Err(error.into()),
            Error::CursorExpired => {
                // Only slow: the latest of everything is all it is promised, and that is the state as of now.
                self.begin_snapshot(until, true).await
            }
            Error::BadCursor | Error::NoLog => Err(error.into()),
            error => {
                self.pause(&error).await;
                self.read_history(until);
                Ok(())
            }
        }
    }

    /// The database is away: watchers stay connected and go on when it is back.
    async fn pause(&mut self, error: &Error) {
        tracing::debug!(%error, "a watcher waits for the log");
        if self.subscriber.queue.is_idle() && matches!(self.phase, Phase::Live) {
            // Nothing is registered: the next look must find that out again.
            self.subscriber.queue.end(End::Full);
        }
        tokio::select! {
            () = self.hub.stop.cancelled() => {}
            () = tokio::time::sleep(RETRY_PAUSE) => {}
            () = tokio::time::sleep_until(self.next_keepalive) => self.keepalive(),
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
    async fn wait(&mut self, queue: &Queue) {
        let live = matches!(self.phase, Phase::Live);
        let behind = live && self.ending.barrier.is_some();
        tokio::select! {
            () = queue.filled() => {}
            () = self.hub.stop.cancelled() => {}
            _ = self.position.changed(), if behind => {}
            () = tokio::time::sleep_until(self.next_keepalive) => self.keepalive(),
        }
        if live && let Some(seen) = self.hub.seen(&self.subscriber) {
            // Nothing for us up to there.
            self.cursor = seen;
        }
    }

    fn keepalive(&mut self) {
        if matches!(self.phase, Phase::Live)
            && let Some(seen) = self.hub.seen(&self.subscriber)
        {
            self.cursor = seen;
        }
        let delivery = Delivery { cursor: Some(self.cursor.clone()), what: What::Keepalive };
        self.ready.push_back(delivery);
    }

    /// Takes an event from the log: keeps the books, and delivers it unless it is old news.
    fn take(&mut self, event: Arc<Event>) {
        self.cursor = event.cursor.clone();
        let fresh = self.is_fresh(&event);
        if fresh && matches!(self.options.scope, Scope::Execution(_)) {
            self.note(&event);
        }
        if !fresh {
            let exact = !self.ahead.contains_key(&event.key);
            if exact && event.key.step_id.is_none() {
                self.ending.ahead = false;
            }
            return;
        }
        if self.options.steps || event.key.step_id.is_none() {
            let cursor = Some(self.cursor.clone());
            self.ready.push_back(Delivery { cursor, what: What::Event(event) });
        }
    }

    fn is_fresh(&mut self, event: &Event) -> bool {
        let Some(record) = &event.record else {
            self.ahead.remove(&event.key);
            return true;
        };
        let found = record.revision();
        let delivered = self.ahead.get(&event.key).copied();
        match event.revision {
            Some(revision) => {
                if let Some(delivered) = delivered
                    && found <= delivered
                {
                    if revision >= delivered {
                        self.ahead.remove(&event.key);
                    }
                    return false;
                }
                if found > revision {
                    self.remember(event.key.clone(), found, event.at);
                } else if delivered.is_some() {
                    self.ahead.remove(&event.key);
                }
                true
            }
            // Another program's change leaves the revision alone: only what is older than delivered is old news.
            None => {
                if delivered.is_some_and(|delivered| found < delivered) {
                    return false;
                }
                self.remember(event.key.clone(), found, event.at);
                true
            }
        }
    }

    /// Notes that the record was delivered at this revision, which the log may reach only later.
    fn remember(&mut self, key: RecordKey, revision: i64, at: i64) {
        if self.ahead.len() >= AHEAD_KEPT {
            self.ahead.retain(|_, revision| *revision / 1000 + CLOCK_SKEW_MS > at);
        }
        self.ahead.insert(key, revision);
    }

    /// Keeps track of whether the execution is over.
    fn note(&mut self, event: &Event) {
        match (&event.record, event.key.step_id) {
            (Some(Record::Execution(execution)), _) => {
                self.ending.terminal = execution.is_terminal();
                self.ending.deleted = false;
                self.ending.ahead =
                    event.revision.is_some_and(|revision| execution.revision > revision);
            }
            (Some(Record::Step(step)), _) => self.note_step(step),
            (None, Some(step_id)) => {
                self.ending.running.remove(&step_id);
            }
            (None, None) => {
                self.ending.deleted = true;
                self.ending.barrier = None;
            }
        }
    }

    fn note_step(&mut self, step: &Step) {
        if step.status == Some(StepStatus::Running) {
            self.ending.running.insert(step.step_id);
        } else {
            self.ending.running.remove(&step.step_id);
        }
    }

    fn is_over(&mut self) -> bool {
        let Scope::Execution(_) = self.options.scope else { return false };
        if matches!(self.phase, Phase::Snapshot(_)) {
            return false;
        }
        if let Some(barrier) = self.ending.barrier {
            let reached = matches!(self.phase, Phase::Live)
                && *self.position.borrow_and_update() >= barrier
                && self.hub.seen(&self.subscriber).is_some();
            if !reached {
                return false;
            }
            self.ending.barrier = None;
        }
        if self.ending.deleted {
            return true;
        }
        !self.options.follow
            && self.ending.terminal
            && !self.ending.ahead
            && self.ending.running.is_empty()
    }

    async fn advance_snapshot(&mut self) -> Result<(), Failure> {
        let Phase::Snapshot(state) = &mut self.phase else { return Ok(()) };
        if let Some((execution_id, after)) = state.steps_of.take() {
            return self.snapshot_steps(execution_id, after).await;
        }
        let kind = if state.again { ChangeKind::Updated } else { ChangeKind::Created };
        if let Some(execution) = state.executions.pop_front() {
            let of_one = matches!(self.options.scope, Scope::Execution(_));
            // The steps of a single execution are looked at in any case: they tell when it is over.
            if self.options.steps || of_one {
                state.steps_of = Some((execution.execution_id.clone(), None));
            }
            if of_one {
                self.ending.terminal = execution.is_terminal();
            }
            self.current(Record::Execution(Arc::new(execution)), kind);
            return Ok(());
        }
        if let Some(after) = state.next_page.take() {
            let Scope::Filter(filter) = &self.options.scope else { return Ok(()) };
            let mut filter: ExecutionFilter = filter.clone();
            if self.options.snapshot == Snapshot::Active {
                // Running and, by the filter, not running: nothing.
                if !filter.statuses.is_empty()
                    && !filter.statuses.contains(&ExecutionStatus::Running)
                {
                    return Ok(());
                }
                filter.statuses = vec![ExecutionStatus::Running];
            }
            let query = ExecutionQuery {
                filter,
                order: ExecutionOrder::StartedAtDesc,
                after,
                limit: PAGE,
                examine: EXAMINE,
            };
            let page = self.hub.store.executions(&query).await?;
            let Phase::Snapshot(state) = &mut self.phase else { return Ok(()) };
            state.executions = page.records.into();
            state.next_page = page.next.map(Some);
            return Ok(());
        }
        self.cursor = state.attached_at.clone();
        let again = state.again;
        self.resumed = false;
        self.phase = Phase::Live;
        if !again {
            let cursor = Some(self.cursor.clone());
            self.ready.push_back(Delivery { cursor, what: What::SnapshotComplete });
        }
        Ok(())
    }

    async fn snapshot_steps(
        &mut self,
        execution_id: String,
        after: Option<i32>,
    ) -> Result<(), Failure> {
        let payloads = self.options.payloads && self.options.steps;
        let query = StepQuery {
            execution_id: execution_id.clone(),
            statuses: Vec::new(),
            after,
            limit: if payloads { PAGE_WITH_PAYLOADS } else { PAGE },
            examine: EXAMINE,
        };
        let page = self.hub.store.steps(&query).await?;
        let mut steps: Vec<Arc<Step>> = page.records.into_iter().map(Arc::new).collect();
        if payloads && !steps.is_empty() {
            let wanted: Vec<Changed> = steps
                .iter()
                .map(|step| Changed::Record(RecordKey::step(&step.execution_id, step.step_id)))
                .collect();
            steps = self
                .hub
                .store
                .log()?
                .load(&wanted, true)
                .await?
                .into_iter()
                .filter_map(|(_, record)| match record {
                    Record::Step(step) => Some(step),
                    Record::Execution(_) => None,
                })
                .collect();
            steps.sort_by_key(|step| step.step_id);
        }
        let Phase::Snapshot(state) = &mut self.phase else { return Ok(()) };
        state.steps_of = page.next.map(|next| (execution_id, Some(next)));
        let kind = if state.again { ChangeKind::Updated } else { ChangeKind::Created };
        for step in steps {
            if matches!(self.options.scope, Scope::Execution(_)) {
                self.note_step(&step);
            }
            if self.options.steps {
                self.current(Record::Step(step), kind);
            }
        }
        Ok(())
    }

    /// Delivers a record of the snapshot. Its change may still be on its way through the log.
    fn current(&mut self, record: Record, kind: ChangeKind) {
        let now = self.hub.clock.now().millis();
        if record.revision() / 1000 + CLOCK_SKEW_MS > now {
            self.remember(record.key(), record.revision(), now);
        }
        self.ready.push_back(Delivery { cursor: None, what: What::Current(record, kind) });
    }
}
