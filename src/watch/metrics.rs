//! Points of metrics as they arrive, for whoever watches an execution with them.
//!
//! The log has no points. What came through this server is told right after its commit; what came through another
//! one, or from another program, is found by one query for all watched executions, twice a second and only while
//! there are any. Ids of points begin with the time they were given, so the query asks for the last seconds, and
//! what was told already is known by its id.
//!
//! A watcher's inbox is bounded in bytes. When it is full, points are no longer kept there: the watcher reads them
//! from the store by id, from the least it missed on, until it has caught up. So a slow one loses nothing, slows
//! nobody, and costs no memory.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::domain::{MetricPoint, Millis};
use crate::store::Result;
use crate::store::metrics::{Arrived, MetricStore, PointId};

/// How often other servers' points are looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How far back a look goes: what the clocks of servers may differ, and what a write may take.
const SLACK_MS: i64 = 10_000;
/// Points of one look that are put in order together, in bytes.
const LOOK_BYTES: usize = 1024 * 1024;
/// Points waiting in one inbox, in bytes.
const INBOX_BYTES: usize = 256 * 1024;
/// Bytes of points sent as one event, roughly.
const EVENT_BYTES: usize = 256 * 1024;
/// Points read at a time by a watcher that catches up.
const CAUGHT_UP_AT_ONCE: usize = 200;
/// Points that a watcher remembers, so that none of them comes once more while it catches up.
const REMEMBERED: usize = 4 * CAUGHT_UP_AT_ONCE;

/// The points of one event.
pub type Points = Vec<MetricPoint>;

/// Tells watchers of points. One for a server.
pub struct Arrivals {
    store: Arc<dyn MetricStore>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    tasks: TaskTracker,
    watched: Mutex<Watched>,
}

impl std::fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arrivals").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Watched {
    executions: HashMap<String, Execution>,
    polling: bool,
}

/// One execution that somebody watches.
#[derive(Default)]
struct Execution {
    inboxes: Vec<Arc<Inbox>>,
    /// What was told, or was there before. Only where points arrive elsewhere, and of the last seconds.
    seen: BTreeSet<PointId>,
    /// Whether `seen` has what was there before.
    primed: Arc<OnceCell<()>>,
}

impl Execution {
    fn tell(&mut self, points: Vec<Arrived>) {
        if !points.is_empty() {
            let points = Arc::new(points);
            self.inboxes.iter().for_each(|inbox| inbox.push(&points));
        }
    }
}

impl Arrivals {
    pub fn new(
        store: Arc<dyn MetricStore>,
        clock: Arc<dyn Clock>,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        Arc::new(Arrivals { store, clock, stop, tasks, watched: Mutex::default() })
    }

    /// Told of what this server stored.
    pub fn recorded(&self, execution_id: &str, mut points: Vec<Arrived>) {
        let mut watched = self.watched.lock();
        if let Some(execution) = watched.executions.get_mut(execution_id) {
            if self.store.arrivals_elsewhere() {
                points.retain(|arrived| execution.seen.insert(arrived.id));
            }
            execution.tell(points);
        }
    }

    /// Registers a watcher: it gets every point that arrives after this has returned.
    pub(super) async fn feed(self: &Arc<Self>, execution_id: &str) -> Result<Feed> {
        let inbox = Arc::new(Inbox::default());
        let primed = {
            let mut watched = self.watched.lock();
            let execution = watched.executions.entry(execution_id.to_owned()).or_default();
            execution.inboxes.push(Arc::clone(&inbox));
            Arc::clone(&execution.primed)
        };
        // From here on dropping it takes the watcher back.
        let feed = Feed {
            arrivals: Arc::clone(self),
            execution_id: execution_id.to_owned(),
            inbox,
            behind: None,
            remembered: Remembered::default(),
            refreshed: false,
        };
        if self.store.arrivals_elsewhere() {
            primed.get_or_try_init(|| self.prime(execution_id)).await?;
            self.start_polling();
        }
        Ok(feed)
    }

    /// Notes what is there already.
    async fn prime(&self, execution_id: &str) -> Result<()> {
        let mut there = Vec::new();
        let since = self.clock.now().millis() - 2 * SLACK_MS;
        let ids = [execution_id.to_owned()];
        self.store.arrived_since(&ids, since, &mut |_, arrived| there.push(arrived.id)).await?;
        if let Some(execution) = self.watched.lock().executions.get_mut(execution_id) {
            execution.seen.extend(there);
        }
        Ok(())
    }

    fn start_polling(self: &Arc<Self>) {
        if std::mem::replace(&mut self.watched.lock().polling, true) {
            return;
        }
        let arrivals = Arc::clone(self);
        self.tasks.spawn(async move {
            let mut since = arrivals.clock.now().millis();
            let mut away = false;
            loop {
                tokio::select! {
                    () = arrivals.stop.cancelled() => return,
                    () = tokio::time::sleep(POLL_INTERVAL) => {}
                }
                let now = arrivals.clock.now().millis();
                let Some(ids) = arrivals.to_poll() else { return };
                // From the last look that had an answer.
                match arrivals.look(&ids, since.min(now) - SLACK_MS).await {
                    Ok(()) => {
                        arrivals.forget(since.min(now) - 2 * SLACK_MS);
                        (since, away) = (now, false);
                    }
                    Err(error) => {
                        if !away {
                            tracing::warn!(%error, "cannot look for new points; trying again");
                            away = true;
                        }
                    }
                }
            }
        });
    }

    /// The executions to look at; `None` ends the polling in the same moment.
    fn to_poll(&self) -> Option<Vec<String>> {
        let mut watched = self.watched.lock();
        if watched.executions.is_empty() {
            watched.polling = false;
            return None;
        }
        let primed = watched.executions.iter().filter(|(_, watched)| watched.primed.initialized());
        Some(primed.map(|(id, _)| id.clone()).collect())
    }

    /// Tells what arrived elsewhere since a moment.
    async fn look(&self, execution_ids: &[String], since: Millis) -> Result<()> {
        let mut found = Vec::new();
        let mut bytes = 0;
        let mut each = |id: &str, arrived: Arrived| {
            let new = {
                let mut watched = self.watched.lock();
                let execution = watched.executions.get_mut(id);
                execution.is_some_and(|execution| execution.seen.insert(arrived.id))
            };
            if new {
                bytes += arrived.point.weight();
                found.push((id.to_owned(), arrived));
            }
            if bytes >= LOOK_BYTES {
                bytes = 0;
                self.tell(std::mem::take(&mut found));
            }
        };
        let looked = self.store.arrived_since(execution_ids, since, &mut each).await;
        // Also what came before a failure: it counts as told.
        self.tell(found);
        looked
    }

    /// Tells points in order of arrival.
    fn tell(&self, mut found: Vec<(String, Arrived)>) {
        found.sort_by(|(id, arrived), (other_id, other)| {
            (id, arrived.id).cmp(&(other_id, other.id))
        });
        let mut watched = self.watched.lock();
        let mut found = found.into_iter().peekable();
        while let Some((id, first)) = found.next() {
            let mut points = vec![first];
            while let Some((_, arrived)) = found.next_if(|(other, _)| *other == id) {
                points.push(arrived);
            }
            if let Some(execution) = watched.executions.get_mut(&id) {
                execution.tell(points);
            }
        }
    }

    /// No look goes back that far any more.
    fn forget(&self, before: Millis) {
        let least = self.store.least_id(before);
        for execution in self.watched.lock().executions.values_mut() {
            execution.seen = execution.seen.split_off(&least);
        }
    }
}

/// Where points wait for one watcher.
#[derive(Default)]
struct Inbox(Mutex<InboxState>);

#[derive(Default)]
struct InboxState {
    waiting: VecDeque<Arc<Vec<Arrived>>>,
    bytes: usize,
    /// The least point that found no room since the watcher looked last.
    missed: Option<PointId>,
    /// The watcher reads from the store: nothing goes through here.
    catching_up: bool,
    waker: Option<Waker>,
}

impl Inbox {
    fn push(&self, points: &Arc<Vec<Arrived>>) {
        let bytes: usize = points.iter().map(|arrived| arrived.point.weight()).sum();
        let mut state = self.0.lock();
        if state.catching_up || state.missed.is_some() || state.bytes + bytes > INBOX_BYTES {
            let least = points.iter().map(|arrived| arrived.id).min();
            state.missed = state.missed.into_iter().chain(least).min();
        } else {
            state.bytes += bytes;
            state.waiting.push_back(Arc::clone(points));
        }
        if let Some(waker) = state.waker.take() {
            drop(state);
            waker.wake();
        }
    }
}

/// The last points a watcher got.
#[derive(Default)]
struct Remembered {
    order: VecDeque<PointId>,
    ids: HashSet<PointId>,
}

impl Remembered {
    /// Whether it is new.
    fn note(&mut self, id: PointId) -> bool {
        if !self.ids.insert(id) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

/// The points of one execution for one watcher.
pub(super) struct Feed {
    arrivals: Arc<Arrivals>,
    execution_id: String,
    inbox: Arc<Inbox>,
    /// While catching up: the least id to read next.
    behind: Option<PointId>,
    remembered: Remembered,
    refreshed: bool,
}

impl Drop for Feed {
    fn drop(&mut self) {
        let mut watched = self.arrivals.watched.lock();
        if let Some(execution) = watched.executions.get_mut(&self.execution_id) {
            execution.inboxes.retain(|inbox| !Arc::ptr_eq(inbox, &self.inbox));
            if execution.inboxes.is_empty() {
                watched.executions.remove(&self.execution_id);
            }
        }
    }
}

impl Feed {
    /// Ready when there is something to take.
    pub fn poll_ready(&self, context: &Context<'_>) -> Poll<()> {
        if self.behind.is_some() {
            return Poll::Ready(());
        }
        let mut state = self.inbox.0.lock();
        if !state.waiting.is_empty() || state.missed.is_some() {
            return Poll::Ready(());
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Whether there is something to take.
    pub fn has_more(&self) -> bool {
        let state = self.inbox.0.lock();
        self.behind.is_some() || !state.waiting.is_empty() || state.missed.is_some()
    }

    /// Looks, once and for the last time, for points that arrived elsewhere.
    pub async fn refresh(&mut self) -> Result<()> {
        if !std::mem::replace(&mut self.refreshed, true) && self.arrivals.store.arrivals_elsewhere()
        {
            let since = self.arrivals.clock.now().millis() - SLACK_MS;
            self.arrivals.look(std::slice::from_ref(&self.execution_id), since).await?;
        }
        Ok(())
    }

    /// What waits in the inbox, as the points of events. `None`: there is only what has to be read.
    pub fn take_waiting(&mut self) -> Option<Vec<Points>> {
        let waiting = {
            let mut state = self.inbox.0.lock();
            state.bytes = 0;
            let waiting = std::mem::take(&mut state.waiting);
            if waiting.is_empty()
                && let Some(missed) = state.missed.take()
            {
                state.catching_up = true;
                self.behind = Some(self.behind.map_or(missed, |behind| behind.min(missed)));
            }
            waiting
        };
        if waiting.is_empty() && self.behind.is_some() {
            return None;
        }
        let points = waiting.iter().flat_map(|points| points.iter());
        for arrived in points.clone() {
            self.remembered.note(arrived.id);
        }
        Some(events(points.map(|arrived| arrived.point.clone())))
    }

    /// What is there, as the points of events; may be nothing. After a failure it is still there.
    pub async fn take(&mut self) -> Result<Vec<Points>> {
        let waiting = self.take_waiting();
        let (None, Some(from)) = (&waiting, self.behind) else {
            return Ok(waiting.unwrap_or_default());
        };
        let store = &self.arrivals.store;
        let page = store.arrived_from(&self.execution_id, from, CAUGHT_UP_AT_ONCE).await?;
        self.behind = match page.last() {
            Some(last) if page.len() >= CAUGHT_UP_AT_ONCE => Some(after(last.id)),
            _ => {
                // Between the reading and now more may have been missed: then it goes on from there.
                let mut state = self.inbox.0.lock();
                state.catching_up = state.missed.is_some();
                state.missed.take()
            }
        };
        let new = page.into_iter().filter(|arrived| self.remembered.note(arrived.id));
        Ok(events(new.map(|arrived| arrived.point)))
    }
}

/// The id right after another.
fn after(id: PointId) -> PointId {
    let mut bytes = id.0;
    for byte in bytes.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            break;
        }
    }
    PointId(bytes)
}

fn events(points: impl Iterator<Item = MetricPoint>) -> Vec<Points> {
    let mut events = Vec::new();
    let mut bytes = EVENT_BYTES;
    for point in points {
        if bytes >= EVENT_BYTES {
            events.push(Points::new());
            bytes = 0;
        }
        bytes += point.weight();
        if let Some(event) = events.last_mut() {
            event.push(point);
        }
    }
    events
}
