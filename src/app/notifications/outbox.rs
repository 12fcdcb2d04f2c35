//! Sends what waits: a few at a time to each receiver, in order for each execution, again and again until it is delivered
//! or was tried often enough. On the one server that also makes deliveries.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::courier::{Courier, Sent};
use super::directory::{Directory, Known, scope_of};
use super::lane::{Item, Lane};
use super::makers::{GONE, KEY_REVOKED, Makers, Rights, disable};
use crate::app::ids;
use crate::clock::Clock;
use crate::domain::Millis;
use crate::domain::notification::DeliveryState;
use crate::store::Result;
use crate::store::notifications::{Attempted, NotificationStore, Waiting};
use crate::telemetry::metrics;

/// After a failure of the database, and where nobody can say what a maker may do.
const PAUSE: Duration = Duration::from_millis(500);
const UNDECIDED: Duration = Duration::from_secs(5);
/// The longest sleep: clocks are set.
const NAP: Duration = Duration::from_secs(5);
/// Ends of tries that are not stored yet; beyond that nothing more is begun.
const NOT_NOTED: usize = 1_000;
/// Requests that are kept free for those of which none is under way.
const RESERVED: usize = 16;

/// How much goes at a time, and when again.
#[derive(Debug, Clone)]
pub struct Bounds {
    pub retries: Vec<Duration>,
    pub requests: usize,
    pub requests_each: usize,
    /// Undelivered of one subscription.
    pub undelivered: usize,
    pub kept: Duration,
}

impl Bounds {
    /// How long after so many tries the next one comes, a fifth more or less: `chance` between 0 and 1. `None`: never.
    fn pause(&self, tries: i32, chance: f64) -> Option<Duration> {
        let pause = self.retries.get(usize::try_from(tries).ok()?.checked_sub(1)?)?;
        Some(pause.mul_f64(0.8 + 0.4 * chance))
    }
}

/// How a try ended.
struct Ended {
    known: Arc<Known>,
    execution: Arc<str>,
    item: Item,
    came: Came,
}

enum Came {
    Sent(Sent),
    /// It is not there any more.
    Missing,
    /// Its maker may not see it any more.
    Forbidden,
    /// Its maker may do nothing any more.
    Revoked,
    /// Nobody can say, or the database cannot: it was not tried.
    Undecided,
}

/// What is to be sent.
pub struct Outbox {
    store: Arc<dyn NotificationStore>,
    directory: Arc<Directory>,
    courier: Arc<Courier>,
    makers: Arc<dyn Makers>,
    clock: Arc<dyn Clock>,
    bounds: Bounds,
    /// How much waits of each; a copy for others.
    waiting: Mutex<HashMap<String, usize>>,
    /// What was made since, and whether it has to be loaded instead.
    added: Mutex<Vec<(String, Waiting)>>,
    woken: Notify,
    ready: watch::Sender<bool>,
}

impl Outbox {
    pub fn new(
        store: Arc<dyn NotificationStore>,
        directory: Arc<Directory>,
        courier: Arc<Courier>,
        makers: Arc<dyn Makers>,
        clock: Arc<dyn Clock>,
        bounds: Bounds,
    ) -> Outbox {
        Outbox {
            store,
            directory,
            courier,
            makers,
            clock,
            bounds,
            waiting: Mutex::default(),
            added: Mutex::default(),
            woken: Notify::new(),
            ready: watch::Sender::new(false),
        }
    }

    /// Undelivered of one subscription, at most.
    pub fn limit(&self) -> usize {
        self.bounds.undelivered
    }

    pub fn kept(&self) -> Duration {
        self.bounds.kept
    }

    /// How much waits.
    pub fn waiting(&self, subscription: &str) -> usize {
        self.waiting.lock().get(subscription).copied().unwrap_or(0)
    }

    /// Waits until it is known how much waits.
    pub async fn ready(&self) {
        let mut ready = self.ready.subscribe();
        // The sender lives as long as this.
        let _ = ready.wait_for(|ready| *ready).await;
    }

    /// Takes in what was made and stored.
    pub fn add(&self, made: Vec<(String, Waiting)>) {
        if made.is_empty() {
            return;
        }
        {
            let mut waiting = self.waiting.lock();
            for (subscription, _) in &made {
                match waiting.get_mut(subscription) {
                    Some(count) => *count += 1,
                    None => drop(waiting.insert(subscription.clone(), 1)),
                }
            }
        }
        self.added.lock().extend(made);
        self.woken.notify_one();
    }

    /// Sends until it is dropped.
    pub async fn run(&self) {
        self.ready.send_replace(false);
        let mut work = Work {
            outbox: self,
            lanes: HashMap::new(),
            tries: JoinSet::new(),
            ended: Vec::new(),
            noting: JoinSet::new(),
            unnoted: HashSet::new(),
            turn: 0,
        };
        while let Err(error) = work.load().await {
            tracing::debug!(%error, "what waits to be delivered cannot be read");
            tokio::time::sleep(PAUSE).await;
        }
        self.ready.send_replace(true);
        work.run().await;
    }
}

/// What one run knows.
struct Work<'a> {
    outbox: &'a Outbox,
    lanes: HashMap<String, Lane>,
    tries: JoinSet<Ended>,
    /// How tries ended, until that is being stored.
    ended: Vec<Attempted>,
    /// Stores the ends of some, one batch at a time; those that it could not come back.
    noting: JoinSet<(Vec<Attempted>, bool)>,
    /// Of what ended, what is not stored.
    unnoted: HashSet<String>,
    turn: usize,
}

impl Work<'_> {
    /// Reads what waits for everybody.
    async fn load(&mut self) -> Result<()> {
        self.outbox.directory.refresh().await?;
        // What is made from here on is added, and may be read as well.
        self.outbox.added.lock().clear();
        self.lanes.clear();
        for known in self.outbox.directory.all().iter() {
            let waiting = self.read(known).await?;
            self.lanes.insert(known.id().to_owned(), Lane::of(waiting, known.progress.asked));
        }
        self.share();
        Ok(())
    }

    async fn read(&self, known: &Known) -> Result<Vec<Waiting>> {
        // One change may have made more than there is room for.
        let most = self.outbox.bounds.undelivered * 2 + 1_000;
        self.outbox.store.waiting(known.id(), most).await
    }

    /// Tells others how much waits.
    fn share(&self) {
        let mut waiting = self.outbox.waiting.lock();
        *waiting = self.lanes.iter().map(|(id, lane)| (id.clone(), lane.pending())).collect();
        // What is made and not taken in yet.
        for (subscription, _) in self.outbox.added.lock().iter() {
            *waiting.entry(subscription.clone()).or_default() += 1;
        }
    }

    async fn run(&mut self) {
        let mut changes = self.outbox.directory.changes();
        loop {
            self.take_in();
            self.begin();
            self.note();
            self.share();
            let nap = self.nap();
            tokio::select! {
                Some(ended) = self.tries.join_next(), if !self.tries.is_empty() => {
                    if let Ok(ended) = ended {
                        self.end(ended).await;
                    }
                }
                Some(noted) = self.noting.join_next(), if !self.noting.is_empty() => {
                    if let Ok((tries, is_stored)) = noted {
                        self.noted(tries, is_stored);
                    }
                }
                () = self.outbox.woken.notified() => {}
                changed = changes.changed() => {
                    if changed.is_ok() {
                        self.reconcile().await;
                    }
                }
                () = tokio::time::sleep(nap) => {}
            }
        }
    }

    fn take_in(&mut self) {
        let added = std::mem::take(&mut *self.outbox.added.lock());
        for (subscription, waiting) in added {
            self.lanes.entry(subscription).or_default().add(waiting);
        }
    }

    /// Follows what became of subscriptions.
    async fn reconcile(&mut self) {
        let all = self.outbox.directory.all();
        self.lanes.retain(|id, _| all.iter().any(|known| known.id() == id));
        for known in all.iter() {
            let is_asked =
                self.lanes.get(known.id()).is_none_or(|lane| lane.asked != known.progress.asked);
            if !is_asked {
                continue;
            }
            // What is made in the middle of this is added afterwards, once more perhaps.
            let Ok(mut waiting) = self.read(known).await else { continue };
            waiting.retain(|one| !self.unnoted.contains(&one.id));
            let lane = self.lanes.entry(known.id().to_owned()).or_default();
            lane.reload(waiting, known.progress.asked);
        }
    }

    /// How long nothing has to be done.
    fn nap(&self) -> Duration {
        let now = self.outbox.clock.now().millis();
        let all = self.outbox.directory.all();
        let enabled = all.iter().filter(|known| known.subscription.enabled);
        let due = enabled.filter_map(|known| {
            let lane = self.lanes.get(known.id())?;
            let under_way = lane.under_way();
            let may = under_way < self.limit_of(lane) && !self.is_full(under_way == 0);
            may.then(|| lane.next_at()).flatten()
        });
        let left = due.min().map_or(i64::MAX, |at| at.saturating_sub(now));
        Duration::from_millis(u64::try_from(left).unwrap_or(0).max(1)).min(NAP)
    }

    fn limit_of(&self, lane: &Lane) -> usize {
        if lane.struggling { 1 } else { self.outbox.bounds.requests_each }
    }

    /// Whether no request may be begun: to one of which none is under way, or to another.
    fn is_full(&self, is_first: bool) -> bool {
        let most = self.outbox.bounds.requests;
        let reserved = if is_first { 0 } else { RESERVED.min(most / 4) };
        self.tries.len() + reserved >= most
    }

    /// Begins what is due, one of each in turn.
    fn begin(&mut self) {
        let all = self.outbox.directory.all();
        let now = self.outbox.clock.now().millis();
        let mut enabled: Vec<&Arc<Known>> =
            all.iter().filter(|known| known.subscription.enabled).collect();
        if enabled.is_empty() || self.unnoted.len() >= NOT_NOTED {
            return;
        }
        let first = self.turn % enabled.len();
        enabled.rotate_left(first);
        self.turn = self.turn.wrapping_add(1);
        loop {
            let mut begun = false;
            for known in &enabled {
                let Some(lane) = self.lanes.get(known.id()) else { continue };
                let under_way = lane.under_way();
                if under_way >= self.limit_of(lane) || self.is_full(under_way == 0) {
                    continue;
                }
                let Some(lane) = self.lanes.get_mut(known.id()) else { continue };
                let Some((execution, item)) = lane.begin(now) else { continue };
                let attempt = Try {
                    store: Arc::clone(&self.outbox.store),
                    courier: Arc::clone(&self.outbox.courier),
                    makers: Arc::clone(&self.outbox.makers),
                    known: Arc::clone(known),
                };
                self.tries.spawn(attempt.run(execution, item));
                begun = true;
            }
            if !begun {
                return;
            }
        }
    }

    /// Takes in how a try ended.
    async fn end(&mut self, ended: Ended) {
        let Ended { known, execution, item, came } = ended;
        let now = self.outbox.clock.now().millis();
        let Some(lane) = self.lanes.get_mut(known.id()) else { return };
        let later = |pause: Duration| {
            now.saturating_add(Millis::try_from(pause.as_millis()).unwrap_or(Millis::MAX))
        };
        let tries = item.tries.saturating_add(1);
        let (status, failure, state, next_at) = match came {
            Came::Missing => return lane.end(&execution, item.number),
            Came::Undecided => {
                return lane.again(&execution, item.number, item.tries, later(UNDECIDED));
            }
            Came::Revoked => {
                lane.again(&execution, item.number, item.tries, later(UNDECIDED));
                return self.disable(&known, KEY_REVOKED).await;
            }
            Came::Forbidden => (None, Some("scope"), DeliveryState::Dead, now),
            Came::Sent(sent) => {
                lane.struggling = !sent.is_delivered();
                if sent.is_delivered() {
                    (sent.status, None, DeliveryState::Delivered, now)
                } else {
                    let pause = self.outbox.bounds.pause(tries, ids::chance());
                    let (state, next_at) = match pause {
                        None => (DeliveryState::Dead, now),
                        Some(pause) => {
                            (DeliveryState::Pending, later(sent.retry_after.unwrap_or(pause)))
                        }
                    };
                    if sent.is_gone() {
                        self.disable(&known, GONE).await;
                        // What waits goes on once somebody enables it again.
                        (sent.status, sent.failure, DeliveryState::Pending, later(UNDECIDED))
                    } else {
                        (sent.status, sent.failure, state, next_at)
                    }
                }
            }
        };
        metrics::notification(match state {
            DeliveryState::Delivered => "delivered",
            DeliveryState::Dead => "dead",
            DeliveryState::Pending => "failed",
        })
        .increment(1);
        if let Some(failure) = failure {
            tracing::debug!(subscription = known.id(), failure, status, "not delivered");
        }
        let attempted = Attempted {
            id: item.id,
            subscription: known.id().to_owned(),
            tries,
            at: now,
            status,
            failure,
            state,
            next_at,
        };
        if let Some(lane) = self.lanes.get_mut(known.id()) {
            match state {
                DeliveryState::Pending => lane.again(&execution, item.number, tries, next_at),
                _ => lane.end(&execution, item.number),
            }
        }
        if state != DeliveryState::Pending {
            self.unnoted.insert(attempted.id.clone());
        }
        self.ended.push(attempted);
    }

    async fn disable(&self, known: &Known, reason: &'static str) {
        let (store, directory) = (&self.outbox.store, &self.outbox.directory);
        if let Err(error) = disable(store.as_ref(), directory, known.id(), reason).await {
            tracing::debug!(%error, "a subscription cannot be disabled just now");
        }
    }

    /// Has it stored how tries ended. After a crash what is not stored is sent once more.
    fn note(&mut self) {
        if self.ended.is_empty() || !self.noting.is_empty() {
            return;
        }
        let tries = std::mem::take(&mut self.ended);
        let store = Arc::clone(&self.outbox.store);
        self.noting.spawn(async move {
            let stored = store.attempted(&tries).await;
            if let Err(error) = &stored {
                tracing::debug!(%error, "how notifications ended cannot be stored just now");
                tokio::time::sleep(PAUSE).await;
            }
            (tries, stored.is_ok())
        });
    }

    fn noted(&mut self, tries: Vec<Attempted>, is_stored: bool) {
        match is_stored {
            true => {
                for tried in tries {
                    self.unnoted.remove(&tried.id);
                }
            }
            // In their order.
            false => drop(self.ended.splice(..0, tries)),
        }
    }
}

/// One try.
struct Try {
    store: Arc<dyn NotificationStore>,
    courier: Arc<Courier>,
    makers: Arc<dyn Makers>,
    known: Arc<Known>,
}

impl Try {
    async fn run(self, execution: Arc<str>, item: Item) -> Ended {
        let came = self.send(&item).await;
        Ended { known: self.known, execution, item, came }
    }

    async fn send(&self, item: &Item) -> Came {
        let subscription = &self.known.subscription;
        let grants = match self.makers.rights(&subscription.maker) {
            Rights::Has(grants) => grants,
            Rights::Revoked => return Came::Revoked,
            Rights::Unknown => return Came::Undecided,
        };
        let delivery = match self.store.delivery(&item.id).await {
            Ok(Some(delivery)) if delivery.state == DeliveryState::Pending => delivery,
            Ok(_) => return Came::Missing,
            Err(_) => return Came::Undecided,
        };
        if !scope_of(&grants).holds(delivery.whose.app()) {
            return Came::Forbidden;
        }
        Came::Sent(self.courier.send(subscription, &delivery).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_try_comes_a_fifth_sooner_or_later_than_it_is_set() {
        let bounds = Bounds {
            retries: vec![Duration::from_secs(10), Duration::from_secs(100)],
            requests: 1,
            requests_each: 1,
            undelivered: 1,
            kept: Duration::ZERO,
        };
        let pause = |tries, chance| bounds.pause(tries, chance).map(|pause| pause.as_secs());
        assert_eq!((pause(1, 0.0), pause(1, 0.5), pause(1, 1.0)), (Some(8), Some(10), Some(12)));
        assert_eq!((pause(2, 0.5), pause(3, 0.5), pause(0, 0.5)), (Some(100), None, None));
    }
}
