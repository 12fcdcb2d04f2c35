//! What waits to be recorded, and who waits for it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::level::Level;
use super::queue::Queue;
use super::windows::{Windows, Within};
use crate::clock::Clock;
use crate::domain::audit::Entry;
use crate::store::audit::{AuditStore, Codes};

/// Records that nobody waits for, beside the ends of what is begun. More are counted until there is room.
const NOTES: usize = 5_000;
/// How long a call waits for its record.
const RECORDED_WITHIN: Duration = Duration::from_secs(9);

/// It cannot be recorded, so it is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it cannot be recorded")]
pub struct Unaudited;

/// What a server needs to keep its record.
pub struct Settings {
    pub level: Level,
    /// Tells this process from all others.
    pub server: String,
    pub version: &'static str,
    /// How long records are kept; `None`: for ever.
    pub kept: Option<Duration>,
    pub codes: Codes,
}

/// Whether the chain of this server has begun, and how often that was tried.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beginning {
    pub is_open: bool,
    pub tries: u64,
}

/// What the handle and the task that writes share.
pub struct Room {
    pub settings: Settings,
    pub store: Arc<dyn AuditStore>,
    pub clock: Arc<dyn Clock>,
    pub queue: Mutex<Queue>,
    /// There is something in the queue.
    pub wake: Notify,
    pub windows: Mutex<Windows>,
    pub open: Arc<Semaphore>,
    pub stop: CancellationToken,
    pub beginning: watch::Sender<Beginning>,
    pub keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Room {
    /// Has a record stored, and says under which number.
    pub async fn recorded(
        &self,
        entry: Entry,
        slot: OwnedSemaphorePermit,
    ) -> Result<(i64, OwnedSemaphorePermit), Unaudited> {
        let (told, stored) = oneshot::channel();
        if !self.queue.lock().wait_for(entry, slot, told) {
            return Err(Unaudited);
        }
        self.wake.notify_one();
        match tokio::time::timeout(RECORDED_WITHIN, stored).await {
            Ok(Ok(stored)) => Ok(stored),
            // It could not be stored, or not in time, or nobody stores any more.
            Ok(Err(_)) | Err(_) => Err(Unaudited),
        }
    }

    /// Has a record stored some time, or counted with others like it.
    pub fn counted(&self, entry: Entry, within: Within) {
        let now = self.clock.instant();
        let own = self.windows.lock().count(entry, within, now);
        if let Some(entry) = own {
            self.note(entry);
        }
    }

    pub fn note(&self, entry: Entry) {
        let left = self.queue.lock().note(entry, NOTES);
        match left {
            None => self.wake.notify_one(),
            Some(entry) => self.windows.lock().put_back(entry, self.clock.instant()),
        }
    }
}
