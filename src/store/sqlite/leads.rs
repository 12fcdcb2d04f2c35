//! Who leads in what. Only one server uses a data directory, so this need not outlive it, and what matters is that
//! the parts of this server do not get in each other's way.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;

use super::SqliteStore;
use crate::store::Result;
use crate::store::leads::{Claim, Leads};

/// All leads, by name.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<HashMap<String, Lead>>);

#[derive(Debug, Default)]
struct Lead {
    holder: Option<(String, Instant)>,
    done_at: Option<Instant>,
}

impl Table {
    fn take(&self, name: &str, holder: &str, length: Duration, claim: Claim, now: Instant) -> bool {
        let mut leads = self.0.lock();
        let lead = leads.entry(name.to_owned()).or_default();
        let free = lead.holder.as_ref().is_none_or(|(by, until)| by == holder || *until <= now);
        let may = match claim {
            Claim::IfFree => free,
            Claim::IfHeld => lead.holder.as_ref().is_some_and(|(by, _)| by == holder),
            Claim::UnlessDoneWithin(within) => {
                free && lead.done_at.is_none_or(|at| now.duration_since(at) >= within)
            }
            Claim::ByForce => true,
        };
        if may {
            lead.holder = Some((holder.to_owned(), now + length));
        }
        may
    }

    fn give_back(&self, name: &str, holder: &str, done: bool, now: Instant) {
        let mut leads = self.0.lock();
        let Some(lead) = leads.get_mut(name) else { return };
        if lead.holder.as_ref().is_some_and(|(by, _)| by == holder) {
            lead.holder = None;
            if done {
                lead.done_at = Some(now);
            }
        }
    }

    /// Whether anybody leads.
    pub(super) fn is_held(&self, name: &str, now: Instant) -> bool {
        let leads = self.0.lock();
        let holder = leads.get(name).and_then(|lead| lead.holder.as_ref());
        holder.is_some_and(|(_, until)| *until > now)
    }
}

#[async_trait]
impl Leads for SqliteStore {
    async fn lead(&self, name: &str, holder: &str, length: Duration, claim: Claim) -> Result<bool> {
        Ok(self.leads.take(name, holder, length, claim, self.clock.instant()))
    }

    async fn cede(&self, name: &str, holder: &str, done: bool) -> Result<()> {
        self.leads.give_back(name, holder, done, self.clock.instant());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock as _, SystemClock};

    #[test]
    fn one_leads_until_it_gives_back_or_falls_silent() {
        let (table, start) = (Table::default(), SystemClock.instant());
        let length = Duration::from_secs(10);
        let at = |seconds| start + Duration::from_secs(seconds);
        let take = |holder, claim, seconds| table.take("x", holder, length, claim, at(seconds));
        assert!(take("a", Claim::IfFree, 0));
        assert!(take("a", Claim::IfFree, 5), "it goes on");
        assert!(take("a", Claim::IfHeld, 5), "it gives a sign of life");
        assert!(!take("b", Claim::IfHeld, 5), "who does not have it has none to give");
        assert!(!take("b", Claim::IfFree, 14));
        assert!(table.take("y", "b", length, Claim::IfFree, at(14)), "something else");
        assert!(take("b", Claim::IfFree, 15), "it fell silent");
        assert!(!take("a", Claim::IfFree, 16));
        assert!(take("a", Claim::ByForce, 16));
        table.give_back("x", "b", true, at(17));
        assert!(!take("b", Claim::IfFree, 18), "it was not b's to give");
        table.give_back("x", "a", false, at(18));
        let hour = Claim::UnlessDoneWithin(Duration::from_secs(3600));
        assert!(take("b", hour, 18), "nothing is done yet");
        table.give_back("x", "b", true, at(20));
        assert!(!take("a", hour, 3619));
        assert!(take("b", Claim::IfFree, 3619), "whoever does not ask for that");
        table.give_back("x", "b", false, at(3619));
        assert!(take("a", hour, 3620));
    }
}
