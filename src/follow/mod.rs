//! What is derived from the log of changes: rollups for reports, the index of search. A follower reads the log in the
//! background, on one server of the cluster at a time, and hands it on in batches; nothing of this is in the way of a
//! write. Who wants to read what was derived waits until everything acknowledged before is taken in, which takes
//! milliseconds; where much more is waiting, as after a bulk load, nobody waits for it, and is told up to when
//! everything is in.
//!
//! A database without a log is gone through as a whole instead, for a consumer that can do with that (`passes`).
//!
//! While writes come in fast it pauses after each batch, in proportion to what the batch took, and takes more at a
//! time: the writers need the database more. It catches up when they are done.

pub mod pace;
mod passes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{Mutex, Notify, watch};
use tokio_util::sync::CancellationToken;

use pace::{Applied, FOLLOWING, Newest, Pace};

use crate::clock::Clock;
use crate::domain::Millis;
use crate::store::leads::{Claim, Leads, TAKEN_WITHIN};
use crate::store::{Change, ChangeLog, ChangeReader, Cursor, Error, Result, Store};

/// How long a server leads without a sign of life; it gives one three times as often.
const LEASE: Duration = Duration::from_secs(10);
/// Pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const _: () = assert!(
    LEASE.as_millis() / 3 + TAKEN_WITHIN.as_millis() < LEASE.as_millis(),
    "a lead that is renewed when a third of it is over is renewed before it runs out"
);
const _: () = assert!(
    RETRY_PAUSE.as_millis() < LEASE.as_millis() / 3,
    "a renewal that failed is tried again while there is time"
);
/// Changes taken in at a time, at most.
const CHANGES_AT_ONCE: usize = 4_000;
/// Changes read while others are taken in, about.
const READ_AHEAD: usize = 2_000;
/// How often the position is remembered while nothing happens, so that the log still covers it after a restart.
const REMEMBERED: Duration = Duration::from_secs(30);
/// Somebody who asks waits this long for a follower that is far behind, as it may be at the end of it.
const HOPE: Duration = Duration::from_millis(100);
/// So many changes at once, or fewer of which the last is older than that, tell that it is.
const FAR_BEHIND: usize = 2_000;
const SOME: usize = 100;
const LATE: Duration = Duration::from_secs(1);
/// Between two looks at how far the server that leads has come, at first and at last.
const LOOKS: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(40)];

/// What is derived.
#[async_trait]
pub trait Consumer: Send + Sync + 'static {
    /// Names its cursor and its lease.
    fn name(&self) -> &'static str;

    /// Up to where everything is taken in, durable. `None`: nothing yet, `rebuild` comes first.
    async fn cursor(&self) -> Result<Option<Cursor>>;

    /// Takes changes in, in the order of the log, and remembers `through` durably, after or with them: the same
    /// changes may come again and must then change nothing more. There may be none.
    async fn take(&self, changes: &[Change], through: &Cursor) -> Result<()>;

    /// Derives everything anew from what is stored, when there is no cursor or the log no longer reaches back to it;
    /// then remembers `through`, which is from before it began. May be cut short anywhere and begun again.
    async fn rebuild(&self, through: &Cursor) -> Result<()>;

    /// Waits until there is something to derive.
    async fn wanted(&self) {}

    /// Whether there still is.
    fn is_wanted(&self) -> bool {
        true
    }

    /// What else the server that leads does for it, all the time that it leads.
    async fn beside(&self) {
        std::future::pending().await
    }

    /// Whether it can live on rebuilding alone, where there is no log.
    fn rebuilds_without_log(&self) -> bool {
        false
    }
}

/// How far a consumer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaughtUp {
    /// Everything that was acknowledged before the question is in.
    Yes,
    /// Not within the time given.
    Behind,
    /// A standalone mongod has no log, and nothing is derived without one.
    NoLog,
}

/// One consumer and its way through the log.
pub struct Follower {
    store: Arc<dyn Store>,
    leads: Arc<dyn Leads>,
    consumer: Arc<dyn Consumer>,
    /// Names the lead.
    lead: String,
    /// Tells this server from others.
    holder: String,
    clock: Arc<dyn Clock>,
    applied: Applied,
    /// The number of the position up to which this server has taken everything in, as long as it leads.
    done: watch::Sender<u64>,
    leading: AtomicBool,
    /// It is working through more than anybody should wait for.
    far_behind: AtomicBool,
    /// Since when everything is derived anew.
    building: parking_lot::Mutex<Option<Instant>>,
    /// When the last change that was taken in was committed; 0: nobody knows.
    taken_until: AtomicI64,
    /// Held by a rebuild that somebody asked for, and by the following itself between two batches.
    turn: Mutex<()>,
    /// Somebody waits until it has caught up.
    awaited: Notify,
    /// How often everything was gone through, where there is no log.
    passes: Passes,
}

/// A reader, up to where what it read is taken in, and what it has read beyond.
type Opened = (Box<dyn ChangeReader>, Cursor, Vec<Change>);

/// Counts passes through everything.
#[derive(Debug, Default)]
struct Passes {
    begun: AtomicU64,
    done: watch::Sender<u64>,
}

enum Ended {
    Stopped,
    /// Another server leads.
    Lost,
    /// There is nothing to derive.
    Unwanted,
    NoLog,
}

impl Follower {
    pub fn new(
        store: Arc<dyn Store>,
        leads: Arc<dyn Leads>,
        consumer: Arc<dyn Consumer>,
        holder: String,
        clock: Arc<dyn Clock>,
        applied: Applied,
    ) -> Arc<Follower> {
        Arc::new(Follower {
            store,
            leads,
            lead: format!("follow_{}", consumer.name()),
            consumer,
            holder,
            clock,
            applied,
            done: watch::Sender::new(0),
            leading: AtomicBool::new(false),
            far_behind: AtomicBool::new(false),
            building: parking_lot::Mutex::default(),
            taken_until: AtomicI64::new(0),
            turn: Mutex::default(),
            awaited: Notify::new(),
            passes: Passes::default(),
        })
    }

    /// Gets or keeps the lead.
    async fn lead(&self) -> Result<bool> {
        self.leads.lead(&self.lead, &self.holder, LEASE, Claim::IfFree).await
    }

    /// Follows the log until the token is cancelled, whenever no other server does.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let name = self.consumer.name();
        loop {
            if stop.run_until_cancelled(self.consumer.wanted()).await.is_none() {
                break;
            }
            let lead = self.lead();
            let pause = match stop.run_until_cancelled(lead).await {
                None => break,
                Some(Ok(false)) => LEASE / 3,
                Some(Err(error)) => {
                    tracing::debug!(%error, name, "cannot find out which server follows the log");
                    RETRY_PAUSE
                }
                Some(Ok(true)) => {
                    let ended = stop.run_until_cancelled(self.lead_on(&stop)).await;
                    self.leading.store(false, Ordering::Release);
                    self.far_behind.store(false, Ordering::Release);
                    match ended {
                        None | Some(Ok(Ended::Stopped)) => break,
                        Some(Ok(Ended::NoLog)) => return,
                        Some(Ok(Ended::Lost)) => LEASE / 3,
                        Some(Ok(Ended::Unwanted)) => {
                            self.cede().await;
                            RETRY_PAUSE
                        }
                        Some(Err(error)) if error.is_retryable() => RETRY_PAUSE,
                        Some(Err(error)) => {
                            tracing::warn!(%error, name, "following the log stopped early");
                            RETRY_PAUSE
                        }
                    }
                }
            };
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                break;
            }
        }
        self.cede().await;
    }

    /// Follows, and does beside it what the consumer does while it leads.
    async fn lead_on(&self, stop: &CancellationToken) -> Result<Ended> {
        tokio::select! {
            ended = self.follow(stop) => ended,
            () = self.consumer.beside() => Ok(Ended::Lost),
        }
    }

    /// Another server need not wait until the lease runs out.
    async fn cede(&self) {
        let name = self.consumer.name();
        if let Err(error) = self.leads.cede(&self.lead, &self.holder, false).await {
            tracing::debug!(%error, name, "the lease for following the log was not released");
        }
    }

    /// Right after the lease was got.
    async fn follow(&self, stop: &CancellationToken) -> Result<Ended> {
        let begun = self.clock.instant();
        let log = match self.store.log() {
            Ok(log) => log,
            Err(Error::NoLog) => return self.pass_again_and_again(begun).await,
            Err(error) => return Err(error),
        };
        let (mut reader, mut through, mut ahead) = match self.open(log.as_ref(), begun).await {
            Err(Error::NoLog) => return self.pass_again_and_again(begun).await,
            opened => opened?,
        };
        if !self.lead().await? {
            return Ok(Ended::Lost);
        }
        let mut led = self.clock.instant();
        let mut remembered = self.clock.instant();
        let mut pace = Pace::new(FOLLOWING, Arc::clone(&self.applied), self.clock.instant());
        self.tell(log.as_ref(), &through);
        self.far_behind.store(false, Ordering::Release);
        self.leading.store(true, Ordering::Release);
        while !stop.is_cancelled() {
            if !self.consumer.is_wanted() {
                return Ok(Ended::Unwanted);
            }
            if self.clock.elapsed(led) > LEASE / 3 {
                if !self.lead().await? {
                    return Ok(Ended::Lost);
                }
                led = self.clock.instant();
            }
            let waiting = self.clock.instant();
            let mut changes = std::mem::take(&mut ahead);
            if changes.is_empty() && reader.cursor() == through {
                changes = reader.next().await?;
            }
            while changes.len() < CHANGES_AT_ONCE && !changes.is_empty() {
                // Only what is there already: an empty answer would be waited for.
                let more = tokio::time::timeout(Duration::ZERO, reader.next()).await;
                match more {
                    Ok(Ok(more)) if !more.is_empty() => changes.extend(more),
                    Ok(Err(error)) => return Err(error),
                    _ => break,
                }
            }
            // Somebody may be waiting for the position alone, on this server or on another.
            let asked = changes.is_empty() && self.clock.elapsed(waiting) < RETRY_PAUSE;
            let begun = self.clock.instant();
            through = reader.cursor();
            self.look_back(&changes);
            if !changes.is_empty() || asked || self.clock.elapsed(remembered) > REMEMBERED {
                let _turn = self.turn.lock().await;
                if self.clock.elapsed(led) > LEASE / 3 {
                    if !self.lead().await? {
                        return Ok(Ended::Lost);
                    }
                    led = self.clock.instant();
                }
                let taken = self.consumer.take(&changes, &through);
                ahead = self.beside(taken, reader.as_mut(), led).await?;
                remembered = self.clock.instant();
            }
            if let Some(last) = changes.last() {
                self.taken_until.store(last.at, Ordering::Release);
            }
            self.tell(log.as_ref(), &through);
            if ahead.len() < SOME {
                self.far_behind.store(false, Ordering::Release);
            }
            if !changes.is_empty() {
                let now = self.clock.instant();
                let pause = pace.rest(now.duration_since(begun), Newest::NotAsked, now);
                if !pause.is_zero() {
                    // Who waits for it goes first.
                    let _ = tokio::time::timeout(pause, self.awaited.notified()).await;
                }
            }
        }
        Ok(Ended::Stopped)
    }

    /// Sees from what was read whether it is far behind.
    fn look_back(&self, changes: &[Change]) {
        let late = || {
            let now = self.clock.now().millis();
            let age = changes.last().map_or(0, |last| now.saturating_sub(last.at));
            u128::try_from(age).is_ok_and(|age| age > LATE.as_millis())
        };
        let far = changes.len() >= FAR_BEHIND || changes.len() >= SOME && late();
        self.far_behind.store(far, Ordering::Release);
    }

    /// Goes on reading while something is done with what was read, and keeps the lease, got or renewed at `led`. The
    /// two do not wait for each other: renewing waits for the transaction that the work is in the middle of.
    async fn beside(
        &self,
        work: impl Future<Output = Result<()>>,
        reader: &mut dyn ChangeReader,
        led: Instant,
    ) -> Result<Vec<Change>> {
        let lost = self.lose_the_lead(led);
        tokio::pin!(work, lost);
        let mut ahead = Vec::new();
        let mut failed = None;
        loop {
            let reads = failed.is_none() && ahead.len() < READ_AHEAD;
            tokio::select! {
                biased;
                done = &mut work => {
                    done?;
                    return match failed {
                        // It may be back.
                        None | Some(Error::Unavailable(_)) => Ok(ahead),
                        Some(error) => Err(error),
                    };
                }
                error = &mut lost => return Err(error),
                more = reader.next(), if reads => match more {
                    Ok(more) => ahead.extend(more),
                    Err(error) => failed = Some(error),
                },
            }
        }
    }

    /// The log from where the consumer is, which is built anew where that is nowhere; and what of it was read
    /// already.
    async fn open(&self, log: &dyn ChangeLog, led: Instant) -> Result<Opened> {
        if let Some(cursor) = self.consumer.cursor().await? {
            // The database may have to go through much of its log first.
            let opened = tokio::select! {
                opened = log.open(Some(&cursor)) => opened,
                error = self.lose_the_lead(led) => return Err(error),
            };
            match opened {
                Err(Error::CursorExpired | Error::BadCursor) => {
                    tracing::info!(name = self.consumer.name(), "the log has a gap: rebuilding");
                }
                opened => {
                    let reader = opened?;
                    let through = reader.cursor();
                    return Ok((reader, through, Vec::new()));
                }
            }
        }
        let _turn = self.turn.lock().await;
        let mut reader = log.open(None).await?;
        let through = reader.cursor();
        *self.building.lock() = Some(self.clock.instant());
        // Not opened again afterwards: it would have to go through all that the building writes.
        let built = self.consumer.rebuild(&through);
        let built = self.beside(built, reader.as_mut(), led).await;
        *self.building.lock() = None;
        Ok((reader, through, built?))
    }

    /// Keeps the lease, got or renewed at `led`, beside work that takes long, until it is lost.
    async fn lose_the_lead(&self, mut led: Instant) -> Error {
        let mut pause = LEASE / 3;
        loop {
            tokio::time::sleep(pause).await;
            match self.lead().await {
                Ok(true) => (led, pause) = (self.clock.instant(), LEASE / 3),
                Ok(false) => return Error::away(),
                Err(error) if self.clock.elapsed(led) > LEASE => return error,
                Err(_) => pause = RETRY_PAUSE,
            }
        }
    }

    fn tell(&self, log: &dyn ChangeLog, cursor: &Cursor) {
        if let Some(position) = log.complete_through(cursor) {
            self.done.send_if_modified(|done| std::mem::replace(done, position) != position);
        }
    }

    /// Derives everything anew, on this server, whichever one has led so far.
    pub async fn rebuild(&self) -> Result<()> {
        let log = self.store.log()?;
        let _turn = self.turn.lock().await;
        self.leads.lead(&self.lead, &self.holder, LEASE, Claim::ByForce).await?;
        let led = self.clock.instant();
        let through = log.open(None).await?.cursor();
        tokio::select! {
            built = self.consumer.rebuild(&through) => built,
            error = self.lose_the_lead(led) => Err(error),
        }
    }

    /// Waits until everything that was acknowledged before is taken in, for `patience` at most.
    pub async fn caught_up(&self, patience: Duration) -> Result<CaughtUp> {
        let log = match self.store.log() {
            Ok(log) => log,
            Err(Error::NoLog) => return Ok(self.passed(patience).await),
            Err(error) => return Err(error),
        };
        let wait = async {
            let position = log.position().await?;
            self.reached(log.as_ref(), position).await
        };
        match tokio::time::timeout(patience, wait).await {
            Ok(Ok(())) => Ok(CaughtUp::Yes),
            Ok(Err(Error::NoLog)) => Ok(self.passed(patience).await),
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(CaughtUp::Behind),
        }
    }

    /// The same, unless it is so far behind that waiting is of no use, which is told after a moment.
    pub async fn soon_caught_up(&self, patience: Duration) -> Result<CaughtUp> {
        tokio::select! {
            biased;
            caught_up = self.caught_up(patience) => caught_up,
            () = self.hopeless() => Ok(CaughtUp::Behind),
        }
    }

    /// Ends when the follower is far behind.
    async fn hopeless(&self) {
        let mut before = None;
        loop {
            tokio::time::sleep(HOPE).await;
            let building = *self.building.lock();
            let builds_long = building.is_some_and(|since| self.clock.elapsed(since) > LATE);
            if builds_long || self.far_behind.load(Ordering::Acquire) {
                return;
            }
            if self.leading.load(Ordering::Acquire) {
                continue;
            }
            // Another server leads, and only its position tells: it moves, and has far to go. One that stands still has
            // nothing to do, and is about to say so.
            let until = self.taken_until().await;
            let moved = before.is_some() && before != Some(until);
            before.get_or_insert(until);
            if moved && until.is_some() && self.is_late(until).await {
                return;
            }
        }
    }

    async fn is_late(&self, until: Option<Millis>) -> bool {
        let Ok(log) = self.store.log() else { return false };
        let newest = log.position().await.ok().and_then(|position| log.moment_of(position));
        let behind = newest.zip(until).map_or(0, |(newest, until)| newest.saturating_sub(until));
        u128::try_from(behind).is_ok_and(|behind| behind > 2 * LATE.as_millis())
    }

    /// When the last change was committed that is taken in. `None`: nobody knows.
    pub async fn taken_until(&self) -> Option<Millis> {
        if self.leading.load(Ordering::Acquire) {
            return Some(self.taken_until.load(Ordering::Acquire)).filter(|at| *at > 0);
        }
        let log = self.store.log().ok()?;
        let cursor = self.consumer.cursor().await.ok()??;
        log.moment_of(log.complete_through(&cursor)?)
    }

    async fn reached(&self, log: &dyn ChangeLog, position: u64) -> Result<()> {
        if self.leading.load(Ordering::Acquire) && *self.done.borrow() >= position {
            return Ok(());
        }
        // The follower may be waiting for a change that never comes, or for writers.
        self.awaited.notify_one();
        log.nudge().await?;
        let mut pause = LOOKS[0];
        let mut done = self.done.subscribe();
        loop {
            if self.leading.load(Ordering::Acquire) {
                self.awaited.notify_one();
                let reached = done.wait_for(|done| *done >= position);
                if let Ok(Ok(_)) = tokio::time::timeout(LOOKS[1], reached).await {
                    return Ok(());
                }
                continue;
            }
            let cursor = self.consumer.cursor().await?;
            let reached = cursor.and_then(|cursor| log.complete_through(&cursor));
            if reached.is_some_and(|reached| reached >= position) {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOKS[1]);
        }
    }
}
