//! Writes the chain of this server: its beginning, what waits to be recorded, what was counted, that the server is still
//! there, and its end. One task does all of it, in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::queue::Queued;
use super::room::{Beginning, Room};
use crate::domain::audit::record::{ALIVE, START, STOP, details_of_start};
use crate::domain::audit::{Entry, Head, Phase};
use crate::store::audit::{Appended, Opening};
use crate::store::{Error, Result};

/// How often it is looked whether something is due.
const LOOK: Duration = Duration::from_millis(250);
/// How long what could not be stored waits, unless somebody waits for it.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How often the newest record is named in the log.
const HEAD_EVERY: Duration = Duration::from_secs(60);
/// How often a server says that it is still there: by that it is known how old a beginning is that is gone.
const ALIVE_EVERY: Duration = Duration::from_secs(24 * 3600);
/// Heads asked for at a time.
const HEADS: usize = 1000;
/// Heads of chains without an end that a beginning lists, the newest ones; and of chains that have ended.
const LISTED: usize = 1000;
const LISTED_ENDED: usize = 100;

/// How far apart two records of a chain are at most.
pub fn alive_every(kept: Option<Duration>) -> Duration {
    kept.map_or(ALIVE_EVERY, |kept| (kept / 8).clamp(Duration::from_secs(1), ALIVE_EVERY))
}

/// Writes until the end.
pub async fn run(room: Arc<Room>) {
    let now = room.clock.instant();
    let mut keeper = Keeper {
        room: &room,
        is_open: false,
        again_at: None,
        is_failing: false,
        head_told_at: now,
        alive_at: now,
    };
    loop {
        let stops = room.stop.is_cancelled();
        keeper.look(stops);
        if keeper.is_due() || stops {
            keeper.write().await;
        }
        if stops {
            return keeper.end().await;
        }
        tokio::select! {
            biased;
            () = room.stop.cancelled() => {}
            () = room.wake.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

struct Keeper<'a> {
    room: &'a Room,
    is_open: bool,
    again_at: Option<Instant>,
    is_failing: bool,
    head_told_at: Instant,
    alive_at: Instant,
}

impl Keeper<'_> {
    /// What is due by the clock.
    fn look(&mut self, all: bool) {
        let room = self.room;
        let now = room.clock.instant();
        let over = room.windows.lock().over(now, all);
        over.into_iter().for_each(|entry| room.note(entry));
        if self.is_open && room.clock.elapsed(self.alive_at) >= alive_every(room.settings.kept) {
            self.alive_at = now;
            room.note(Entry::of_server(ALIVE));
        }
        if room.clock.elapsed(self.head_told_at) >= HEAD_EVERY {
            self.head_told_at = now;
            self.tell_head();
        }
    }

    /// Somebody who keeps the log can tell later whether the chain is still the one that it was.
    fn tell_head(&self) {
        if let Some(Head { server, seq, hash, at, .. }) = self.room.store.own_head() {
            let hash = hex::encode(hash);
            tracing::info!(server, seq, hash, at, "the newest audit record");
        }
    }

    fn is_due(&self) -> bool {
        let queue = self.room.queue.lock();
        if queue.somebody_waits() {
            return true;
        }
        if self.again_at.is_some_and(|at| self.room.clock.instant() < at) {
            return false;
        }
        !self.is_open || !queue.is_empty() || !self.room.store.is_settled()
    }

    async fn write(&mut self) {
        let written = self.all().await;
        if !self.room.beginning.borrow().is_open {
            let is_open = self.is_open;
            self.room.beginning.send_modify(|beginning| {
                *beginning = Beginning { is_open, tries: beginning.tries + 1 };
            });
        }
        match written {
            Ok(()) => {
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!("what has to be recorded can be recorded again");
                }
                self.again_at = None;
            }
            Err(error) => {
                self.room.queue.lock().give_up_waiting();
                if !std::mem::replace(&mut self.is_failing, true) {
                    let cause = &error as &dyn std::error::Error;
                    tracing::error!(
                        error = cause,
                        "audit records cannot be stored: what has to be recorded is refused"
                    );
                }
                self.again_at = Some(self.room.clock.instant() + AGAIN_AFTER);
            }
        }
    }

    async fn all(&mut self) -> Result<()> {
        if !self.is_open {
            self.open().await?;
            self.is_open = true;
            self.alive_at = self.room.clock.instant();
        }
        loop {
            let taken = self.room.queue.lock().take();
            if taken.is_empty() && self.room.store.is_settled() {
                return Ok(());
            }
            let settles = taken.is_empty();
            self.append(taken).await?;
            if settles {
                return Ok(());
            }
        }
    }

    async fn append(&self, taken: Vec<Queued>) -> Result<()> {
        let entries = taken.iter().map(|queued| queued.entry.clone()).collect();
        let mut left = taken.into_iter();
        let appended = match self.room.store.append(entries).await {
            Ok(appended) => appended,
            Err(error) => {
                self.keep_for_later(left);
                return Err(error);
            }
        };
        let (first, stored, error) = match appended {
            Appended::Surely { first } => (first, left.len(), None),
            // They will be there, and what they begin was not done.
            Appended::Perhaps { first, error } => {
                let perhaps = (first..).zip(left);
                perhaps.for_each(|(seq, queued)| self.not_done(seq, queued));
                return Err(error);
            }
            Appended::Partly { first, count, error } => (first, count, Some(error)),
        };
        for (seq, queued) in (first..).zip(left.by_ref().take(stored)) {
            self.stored(seq, queued);
        }
        self.keep_for_later(left);
        error.map_or(Ok(()), Err)
    }

    fn stored(&self, seq: i64, queued: Queued) {
        let Queued { entry, slot, told } = queued;
        if let (Some(told), Some(slot)) = (told, slot)
            && let Err((_, slot)) = told.send((seq, slot))
        {
            self.not_done(seq, Queued { entry, slot: Some(slot), told: None });
        }
    }

    /// Whoever was to do it has gone, or was told that it cannot be recorded.
    fn not_done(&self, seq: i64, queued: Queued) {
        let Queued { entry, slot, .. } = queued;
        if let Some(slot) = slot.filter(|_| entry.phase == Phase::Begin) {
            let reason = Some("AUDIT_UNAVAILABLE".to_owned());
            let details = bson::rawdoc! { "begin": seq };
            let end = Entry { details, ..entry.ended(Phase::End, "UNAVAILABLE", reason) };
            self.room.queue.lock().end(end, slot);
        }
    }

    /// What nobody waits for is stored some time; who waits is told that it cannot be.
    fn keep_for_later(&self, left: impl Iterator<Item = Queued>) {
        let later = left.filter(|queued| queued.told.is_none()).collect();
        self.room.queue.lock().put_back(later);
    }

    /// Begins the chain. Its first record names the newest one of every chain that has not ended.
    async fn open(&self) -> Result<()> {
        let store = &self.room.store;
        let settings = &self.room.settings;
        let (mut running, mut ended) = (Vec::new(), Vec::new());
        let mut after: Option<String> = None;
        loop {
            let heads = store.heads(after.as_deref(), HEADS).await.map_err(Error::unaudited)?;
            let is_last = heads.len() < HEADS;
            after = heads.last().map(|head| head.server.clone());
            for head in heads {
                let list = if head.stopped { &mut ended } else { &mut running };
                list.push(head);
            }
            newest(&mut running, LISTED);
            newest(&mut ended, LISTED_ENDED);
            if is_last {
                break;
            }
        }
        running.append(&mut ended);
        let mut details = details_of_start(&running);
        details.append(bson::raw::cstr!("level"), settings.level.as_str());
        details.append(bson::raw::cstr!("version"), settings.version);
        let entry = Entry { details, ..Entry::of_server(START) };
        let (server, codes) = (settings.server.clone(), settings.codes);
        store.open_chain(Opening { server, entry, codes }).await?;
        self.tell_head();
        Ok(())
    }

    /// Ends the chain, where it has begun. Nothing follows.
    async fn end(mut self) {
        self.room.queue.lock().close();
        if !self.is_open {
            return;
        }
        // The ends of what was begun, which came meanwhile.
        self.write().await;
        let stop = vec![Entry::of_server(STOP)];
        match self.room.store.append(stop).await {
            Ok(Appended::Surely { .. }) => self.tell_head(),
            Ok(Appended::Perhaps { error, .. } | Appended::Partly { error, .. }) | Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the end of this server could not be recorded");
            }
        }
    }
}

/// Leaves the newest ones, by server.
fn newest(heads: &mut Vec<Head>, most: usize) {
    if heads.len() > most {
        heads.sort_by_key(|head| std::cmp::Reverse(head.at));
        heads.truncate(most);
    }
    heads.sort_by(|one, other| one.server.cmp(&other.server));
}
