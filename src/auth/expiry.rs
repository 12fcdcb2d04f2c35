//! Credentials that end by themselves at a known time: their open streams end with them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::caller::Caller;
use crate::clock::Clock;
use crate::domain::Millis;

/// How often it is looked for those that have ended. Streams end within ten seconds.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Callers whose credential ends at a known time, while somebody has them.
#[derive(Debug)]
pub struct Expiring {
    clock: Arc<dyn Clock>,
    callers: Mutex<Vec<(Millis, Weak<Caller>)>>,
}

impl Expiring {
    pub fn new(clock: Arc<dyn Clock>) -> Expiring {
        Expiring { clock, callers: Mutex::default() }
    }

    /// Ends what this caller has open at that time.
    pub fn add(&self, at: Millis, caller: &Arc<Caller>) {
        self.callers.lock().push((at, Arc::downgrade(caller)));
    }

    fn look(&self) {
        let now = self.clock.now().millis();
        self.callers.lock().retain(|(at, caller)| {
            let Some(caller) = caller.upgrade() else { return false };
            if *at > now {
                return true;
            }
            caller.ended.cancel();
            false
        });
    }

    /// Looks until `stop`.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            self.look();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::caller::CallerKind;
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn a_caller_ends_at_its_time_and_is_forgotten_once_nobody_has_it() {
        let clock = Arc::new(ManualClock::at(1_000_000));
        let expiring = Expiring::new(Arc::clone(&clock) as _);
        let caller = || Arc::new(Caller::new(CallerKind::Oidc, "id", "name", Vec::new(), None));
        let (early, late, gone) = (caller(), caller(), caller());
        for (at, caller) in [(2_000, &early), (9_000, &late), (9_000, &gone)] {
            expiring.add(at, caller);
        }
        drop(gone);
        expiring.look();
        assert!(!early.ended.is_cancelled());
        assert_eq!(expiring.callers.lock().len(), 2);
        clock.advance_ms(1_000);
        expiring.look();
        assert!(early.ended.is_cancelled() && !late.ended.is_cancelled());
        assert_eq!(expiring.callers.lock().len(), 1);
    }
}
