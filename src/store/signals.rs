//! What calls of a store have met, for whoever judges how the database is.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use super::Outage;

/// Outages that calls have met since the last look.
#[derive(Debug, Default)]
pub struct Signals {
    met: [AtomicBool; Outage::ALL.len()],
    notify: Notify,
}

impl Signals {
    pub fn met(&self, outage: Outage) {
        if !self.met[outage as usize].swap(true, Ordering::AcqRel) {
            self.notify.notify_one();
        }
    }

    /// What was met since the last time; it is forgotten with that.
    pub fn take(&self) -> Vec<Outage> {
        let met = |outage: &Outage| self.met[*outage as usize].swap(false, Ordering::AcqRel);
        Outage::ALL.into_iter().filter(met).collect()
    }

    /// Waits until something is met that was not before.
    pub async fn news(&self) {
        self.notify.notified().await;
    }
}
