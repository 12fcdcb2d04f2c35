//! The budget of the process. For bytes of messages: requests as they come, what they decode to, and replies until they
//! are on the wire. For calls: so many at a time that report runs, so many others of one reply, which may take long, few
//! that go through everything there is, and a fixed number of uploads (`places`).
//!
//! A connection may take bytes as long as it then has no more than a third of what is left. Alone it gets a quarter
//! of the budget. Each greedy one more takes a quarter of what the others leave, so several leave enough for a client that
//! wants little, and dozens leave next to nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::places::{Place, Places};

/// Whoever waits for bytes looks again after that. Waiting is rare, and nobody has to be told.
pub const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What all connections share.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    taken: AtomicUsize,
    reports: Arc<Places>,
    others: Arc<Places>,
    readings: Arc<Places>,
    uploads: Arc<Places>,
    /// Names connections.
    next: AtomicU64,
}

/// What one connection has taken.
#[derive(Debug)]
pub struct Account {
    budget: Arc<Budget>,
    taken: AtomicUsize,
    number: u64,
}

/// What a call does, as far as places go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// It reports a run.
    Report,
    /// It sends all that there is, record by record, for as long as its client reads.
    Reading,
    /// It brings the bytes of an artifact.
    Upload,
    Other,
}

/// Readings at a time: each may have some records in hand with all that belongs to them.
const READINGS: usize = 32;
/// Uploads at a time: each may have a file open, and descriptors for files are few where the limit of them is low.
const UPLOADS: usize = 256;

impl Budget {
    /// So many bytes, and so many calls of each kind at a time.
    pub fn new(limit: usize, calls: usize) -> Arc<Budget> {
        Arc::new(Budget {
            limit,
            taken: AtomicUsize::new(0),
            reports: Places::of(calls),
            others: Places::of(calls),
            readings: Places::of(READINGS),
            uploads: Places::of(UPLOADS),
            next: AtomicU64::new(0),
        })
    }

    /// For a connection.
    pub fn account(self: &Arc<Self>) -> Arc<Account> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Arc::new(Account { budget: Arc::clone(self), taken: AtomicUsize::new(0), number })
    }

    /// Bytes that are taken.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Account {
    /// Takes so many bytes; whether they were there.
    fn take(&self, bytes: usize) -> bool {
        // Both are added to before they are looked at: two who take at once never get more than there is, and at
        // worst both are refused.
        let own = self.taken.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let all = self.budget.taken.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let left = self.budget.limit.saturating_sub(all);
        if own <= left / 3 {
            return true;
        }
        self.give_back(bytes);
        false
    }

    fn give_back(&self, bytes: usize) {
        self.taken.fetch_sub(bytes, Ordering::AcqRel);
        self.budget.taken.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// A place for a call, if one becomes free soon enough.
    pub async fn place(&self, work: Work, within: Duration) -> Option<Place> {
        let places = match work {
            Work::Report => &self.budget.reports,
            Work::Reading => &self.budget.readings,
            Work::Upload => &self.budget.uploads,
            Work::Other => &self.budget.others,
        };
        places.take(self.number, within).await
    }

    /// Nothing yet, to be grown.
    pub fn hold(self: &Arc<Self>) -> Hold {
        Hold { account: Arc::clone(self), bytes: 0 }
    }
}

/// Bytes that are taken while it is there.
#[derive(Debug)]
pub struct Hold {
    account: Arc<Account>,
    bytes: usize,
}

impl Hold {
    /// Makes it so many bytes in all; whether they were there. To have fewer always works.
    #[must_use]
    pub fn resize(&mut self, bytes: usize) -> bool {
        if bytes > self.bytes {
            if !self.account.take(bytes - self.bytes) {
                return false;
            }
        } else {
            self.account.give_back(self.bytes - bytes);
        }
        self.bytes = bytes;
        true
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Waits until there are so many.
    pub async fn wait(&mut self, bytes: usize) {
        while !self.resize(bytes) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Bytes that keep what is taken for them until nobody has them any more.
    pub fn with(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Held { bytes, _hold: self })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.account.give_back(self.bytes);
    }
}

struct Held {
    bytes: Bytes,
    _hold: Hold,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1000;

    #[test]
    fn one_connection_gets_a_quarter_and_several_leave_some() {
        let budget = Budget::new(LIMIT, 1);
        let mut first = budget.account().hold();
        assert!(first.resize(LIMIT / 4));
        assert!(!first.resize(LIMIT / 4 + 1));
        assert_eq!((first.bytes(), budget.taken()), (250, 250));
        // Some that want all there is, byte by byte.
        let mut greedy: Vec<Hold> = (0..10).map(|_| budget.account().hold()).collect();
        for hold in &mut greedy {
            while hold.resize(hold.bytes() + 1) {}
            assert!(hold.bytes() <= LIMIT / 4);
        }
        let mut honest = budget.account().hold();
        assert!(budget.taken() < LIMIT, "{}", budget.taken());
        assert!(honest.resize(1), "{}", budget.taken());
        drop((greedy, honest));
        assert_eq!(budget.taken(), 250);
        assert!(first.resize(10));
        assert_eq!(budget.taken(), 10);
    }

    #[test]
    fn bytes_are_held_until_the_last_of_them_is_gone() {
        let budget = Budget::new(LIMIT, 1);
        let mut hold = budget.account().hold();
        assert!(hold.resize(5));
        let bytes = hold.with(Bytes::from_static(b"bytes"));
        assert_eq!(bytes, "bytes");
        let last = bytes.slice(4..);
        drop(bytes);
        assert_eq!((budget.taken(), &last[..]), (5, &b"s"[..]));
        drop(last);
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn many_at_once_never_take_more_than_there_is() {
        let budget = Budget::new(LIMIT, 1);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let account = budget.account();
                    for round in 0..10_000 {
                        let mut hold = account.hold();
                        if hold.resize(round % 300) {
                            assert!(hold.bytes() <= LIMIT / 4);
                        }
                    }
                });
            }
        });
        assert_eq!(budget.taken(), 0);
    }
}
