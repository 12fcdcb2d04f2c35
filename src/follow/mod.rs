//! What is derived from the log of changes: rollups for reports, the index of search. A follower reads the log in the
//! background, on one server of the cluster at a time, and hands it on in batches; nothing of this is in the way of a
//! write. Who wants to read what was derived waits until everything acknowledged before is taken in, which takes
//! milliseconds.
//!
//! While writes come in fast it pauses after each batch, in proportion to what the batch took, and takes more at a
//! time: the writers need the database more. It catches up when they are done.

pub mod pace;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{Mutex, Notify, watch};
use tokio_util::sync::CancellationToken;

use pace::{Applied, FOLLOWING, Newest, Pace};

use crate::clock::Clock;
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
}

/// How far a consumer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaughtUp {
    /// Everything that was acknowledged before the question is in.
    Yes,
    /// Not within the time given.
    Behind,
    /// A standalone mongod has no log.
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
    /// Held by a rebuild that somebody asked for, and by the following itself between two batches.
    turn: Mutex<()>,
    /// Somebody waits until it has caught up.
    awaited: Notify,
}

/// A reader, up to where what it read is taken in, and what it has read beyond.
type Opened = (Box<dyn ChangeReader>, Cursor, Vec<Change>);

enum Ended {
    Stopped,
    /// Another server leads.
    Lost,
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
            turn: Mutex::default(),
            awaited: Notify::new(),
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
            let lead = self.lead();
            let pause = match stop.run_until_cancelled(lead).await {
                None => break,
                Some(Ok(false)) => LEASE / 3,
                Some(Err(error)) => {
                    tracing::debug!(%error, name, "cannot find out which server follows the log");
                    RETRY_PAUSE
                }
                Some(Ok(true)) => {
                    let ended = stop.run_until_cancelled(self.follow(&stop)).await;
                    self.leading.store(false, Ordering::Release);
                    match ended {
                        None | Some(Ok(Ended::Stopped)) => break,
                        Some(Ok(Ended::NoLog)) => return,
                        Some(Ok(Ended::Lost)) => LEASE / 3,
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
        // Another server need not wait until the lease runs out.
        if let Err(error) = self.leads.cede(&self.lead, &self.holder, false).await {
            tracing::debug!(%error, name, "the lease for following the log was not released");
        }
    }

    /// Right after the lease was got.
    async fn follow(&self, stop: &CancellationToken) -> Result<Ended> {
        let begun = self.clock.instant();
        let log = match self.store.log() {
            Ok(log) => log,
            Err(Error::NoLog) => return Ok(Ended::NoLog),
            Err(error) => return Err(error),
        };
        let (mut reader, mut through, mut ahead) = match self.open(log.as_ref(), begun).await {
            Err(Error::NoLog) => return Ok(Ended::NoLog),
            opened => opened?,
        };
        if !self.lead().await? {
            return Ok(Ended::Lost);
        }
        let mut led = self.clock.instant();
        let mut remembered = self.clock.instant();
        let mut pace = Pace::new(FOLLOWING, Arc::clone(&self.applied), self.clock.instant());
        self.tell(log.as_ref(), &through);
        self.leading.store(true, Ordering::Release);
        while !stop.is_cancelled() {
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
            self.tell(log.as_ref(), &through);
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
        // Not opened again afterwards: it would have to go through all that the building writes.
        let built = self.consumer.rebuild(&through);
        let ahead = self.beside(built, reader.as_mut(), led).await?;
        Ok((reader, through, ahead))
    }

    /// Keeps the lease, got or renewed at `led`, beside work that takes long, until it is lost.
    async fn lose_the_lead(&self, mut led: Instant) -> Error {
        let mut pause = LEASE / 3;
        loop {
            tokio::time::sleep(pause).await;
            match self.lead().await {
                Ok(true) => (led, pause) = (self.clock.instant(), LEASE / 3),
                Ok(false) => return Error::Unavailable(None),
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
            Err(Error::NoLog) => return Ok(CaughtUp::NoLog),
            Err(error) => return Err(error),
        };
        let wait = async {
            let position = log.position().await?;
            self.reached(log.as_ref(), position).await
        };
        match tokio::time::timeout(patience, wait).await {
            Ok(Ok(())) => Ok(CaughtUp::Yes),
            Ok(Err(Error::NoLog)) => Ok(CaughtUp::NoLog),
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(CaughtUp::Behind),
        }
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
