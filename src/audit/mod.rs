//! The record of who did what: what is recorded at which level, and that nothing is done that should be and cannot be
//! recorded. `windows` counts what may come often, `keep` writes the chain of this server, `read` shows and verifies what
//! is stored.
//!
//! Calls are observed in one place, the layers of the edge in front of every handler. What goes through the lanes is
//! recorded by the store along with it.

mod keep;
mod level;
mod queue;
pub mod read;
mod room;
mod windows;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::domain::audit::{Asked, Entry, Outcome, Phase, Target};
use crate::store::audit::AuditStore;

pub use level::Level;
use room::Room;
pub use room::{Settings, Unaudited};
use windows::Within;

/// What is begun and has not ended, at most. More is refused, as if it could not be recorded.
const OPEN: usize = 10_000;

/// The record that this server keeps. Cheap to clone.
#[derive(Clone)]
pub struct Audit(Option<Arc<Room>>);

/// Something that is begun, and recorded to be.
pub struct Open(Option<Begun>);

struct Begun {
    room: Arc<Room>,
    entry: Entry,
    seq: i64,
    slot: OwnedSemaphorePermit,
}

impl Audit {
    /// Records nothing.
    pub fn off() -> Audit {
        Audit(None)
    }

    /// Begins to record. The chain of this server begins as soon as the database can be reached; what has to be recorded
    /// waits for that.
    pub fn start(settings: Settings, store: Arc<dyn AuditStore>, clock: Arc<dyn Clock>) -> Audit {
        if settings.level == Level::Off {
            return Audit::off();
        }
        let room = Arc::new(Room {
            settings,
            store,
            clock,
            queue: Mutex::default(),
            wake: Notify::new(),
            windows: Mutex::default(),
            open: Arc::new(Semaphore::new(OPEN)),
            stop: CancellationToken::new(),
            beginning: watch::Sender::default(),
            keeper: Mutex::default(),
        });
        *room.keeper.lock() = Some(tokio::spawn(keep::run(Arc::clone(&room))));
        Audit(Some(room))
    }

    /// Waits until the chain of this server has begun, or it was tried once more and could not be.
    pub async fn begun(&self) {
        let Some(room) = &self.0 else { return };
        let mut beginning = room.beginning.subscribe();
        // One try may be under way, from before the database could be reached.
        let enough = beginning.borrow().tries + 2;
        // The sender is in the room.
        let _ = beginning.wait_for(|now| now.is_open || now.tries >= enough).await;
    }

    pub fn level(&self) -> Level {
        self.0.as_ref().map_or(Level::Off, |room| room.settings.level)
    }

    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Records that something begins. It may be done once this has answered, and is to be ended.
    pub async fn begin(
        &self,
        event: &'static str,
        asked: &Asked,
        target: Target,
    ) -> Result<Open, Unaudited> {
        let Some(room) = &self.0 else { return Ok(Open(None)) };
        let slot = Arc::clone(&room.open).try_acquire_owned().map_err(|_| Unaudited)?;
        let entry = Entry::begin(event, asked, target);
        let (seq, slot) = room.recorded(entry.clone(), slot).await?;
        Ok(Open(Some(Begun { room: Arc::clone(room), entry, seq, slot })))
    }

    /// Records what was done. Its result may be told once this has answered.
    pub async fn once(
        &self,
        event: &'static str,
        asked: &Asked,
        target: Target,
        (code, reason): (&'static str, Option<String>),
    ) -> Result<(), Unaudited> {
        let Some(room) = &self.0 else { return Ok(()) };
        let slot = Arc::clone(&room.open).try_acquire_owned().map_err(|_| Unaudited)?;
        let entry = Entry::begin(event, asked, target).ended(Phase::Once, code, reason);
        room.recorded(entry, slot).await.map(drop)
    }

    /// Records that somebody may not come in, counted by address and reason.
    pub fn refused(&self, asked: &Asked, reason: &'static str, code: &'static str) {
        let Some(room) = &self.0 else { return };
        let entry = Entry::begin(level::REFUSED, asked, Target::default());
        let entry = entry.ended(Phase::Once, code, Some(reason.to_owned()));
        room.counted(Entry { outcome: Some(Outcome::Denied), ..entry }, Within::Address);
    }

    /// Records that somebody may not do something, counted by caller, method and reason where it is often.
    pub fn denied(&self, asked: &Asked, target: Target, reason: String) {
        let Some(room) = &self.0 else { return };
        let entry = Entry::begin(level::DENIED, asked, target);
        let entry = entry.ended(Phase::Once, "PERMISSION_DENIED", Some(reason));
        room.counted(entry, Within::Caller);
    }

    /// Records that a file was read again: what is in it now is in force, or why it is not.
    pub fn reloaded(&self, what: &'static str, is_good: bool) {
        let Some(room) = &self.0 else { return };
        room.note(Entry {
            outcome: Some(if is_good { Outcome::Ok } else { Outcome::Failed }),
            code: if is_good { "OK" } else { "FAILED_PRECONDITION" },
            details: bson::rawdoc! { "what": what },
            ..Entry::of_server(level::RELOAD)
        });
    }

    /// Ends the chain, once nothing is done any more, within so much time.
    pub async fn stop(&self, within: Duration) {
        let Some(room) = &self.0 else { return };
        room.stop.cancel();
        let keeper = room.keeper.lock().take();
        let Some(mut keeper) = keeper else { return };
        if tokio::time::timeout(within, &mut keeper).await.is_err() {
            keeper.abort();
            tracing::warn!("the end of this server could not be recorded in time");
        }
    }
}

impl Open {
    /// Records how it ended. Nobody waits for that: without it what was begun is perhaps done.
    pub fn end(self, code: &'static str, reason: Option<String>, target: Target) {
        let Some(Begun { room, entry, seq, slot }) = self.0 else { return };
        let entry = Entry {
            target: entry.target.clone().or(target),
            details: bson::rawdoc! { "begin": seq },
            ..entry.ended(Phase::End, code, reason)
        };
        room.queue.lock().end(entry, slot);
        room.wake.notify_one();
    }
}

#[cfg(test)]
mod tests;
