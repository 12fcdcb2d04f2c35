//! What may come often is counted: the first of a kind within ten seconds have records of their own, the others one
//! together when the ten seconds are over.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::domain::audit::{Actor, Entry, Target};

/// How long is counted.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Records of their own, of what a caller may not do. A caller is known, and each of them says what was tried.
const OWN: u32 = 20;
/// Kinds that are counted at a time. Beyond it they are counted without who it was.
const WINDOWS: usize = 10_000;

/// By what is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Within {
    /// Address and reason.
    Address,
    /// Caller, method and reason.
    Caller,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    event: &'static str,
    reason: Option<String>,
    peer: Option<IpAddr>,
    actor: Option<Arc<Actor>>,
    rpc: &'static str,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    /// Records of their own.
    own: u32,
    /// Those without.
    rest: i32,
    like: Entry,
}

/// What is counted just now.
#[derive(Debug, Default)]
pub struct Windows(HashMap<Key, Window>);

impl Windows {
    /// Counts one. `Some`: it gets a record of its own.
    pub fn count(&mut self, entry: Entry, within: Within, now: Instant) -> Option<Entry> {
        let (key, own) = match within {
            Within::Address => {
                let (peer, rpc) = (entry.peer, "");
                let reason = entry.reason.clone();
                (Key { event: entry.event, reason, peer, actor: None, rpc }, 1)
            }
            Within::Caller => {
                let actor = Some(Arc::clone(&entry.actor));
                let (reason, rpc) = (entry.reason.clone(), entry.rpc);
                (Key { event: entry.event, reason, peer: None, actor, rpc }, OWN)
            }
        };
        let Some(window) = self.window(key, &entry, now) else {
            self.anybody(&entry, 1, now);
            return None;
        };
        if window.own < own {
            window.own += 1;
            return Some(entry);
        }
        window.rest = window.rest.saturating_add(1);
        None
    }

    /// There is no room for a record: it is told with others like it.
    pub fn put_back(&mut self, entry: Entry, now: Instant) {
        let count = entry.count;
        self.anybody(&entry, count, now);
    }

    fn window(&mut self, key: Key, entry: &Entry, now: Instant) -> Option<&mut Window> {
        if self.0.len() >= WINDOWS && !self.0.contains_key(&key) {
            return None;
        }
        let new = || Window { since: now, own: 0, rest: 0, like: entry.clone() };
        Some(self.0.entry(key).or_insert_with(new))
    }

    /// Counts without saying who it was; there are few such kinds.
    fn anybody(&mut self, entry: &Entry, count: i32, now: Instant) {
        let reason = entry.reason.clone();
        let key = Key { event: entry.event, reason, peer: None, actor: None, rpc: "" };
        let like = Entry {
            actor: Arc::default(),
            peer: None,
            rpc: "",
            target: Target::default(),
            request_id: None,
            ..entry.clone()
        };
        let new = || Window { since: now, own: 0, rest: 0, like };
        let window = self.0.entry(key).or_insert_with(new);
        window.rest = window.rest.saturating_add(count);
    }

    /// What was counted in times that are over, or in all.
    pub fn over(&mut self, now: Instant, all: bool) -> Vec<Entry> {
        let mut over = Vec::new();
        self.0.retain(|_, window| {
            if !all && now.saturating_duration_since(window.since) < WINDOW {
                return true;
            }
            if window.rest > 0 {
                let target = Target::default();
                over.push(Entry { count: window.rest, target, ..window.like.clone() });
            }
            false
        });
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock as _, SystemClock};
    use crate::domain::audit::{Asked, Phase};

    fn entry(peer: u8, actor: &str, reason: &str) -> Entry {
        let asked = Asked {
            actor: Arc::new(Actor::new("key", actor, actor)),
            peer: Some(IpAddr::from([10, 0, 0, peer])),
            rpc: "a.B/C",
            request_id: None,
        };
        let begin = Entry::begin("x.y", &asked, Target::execution("e"));
        begin.ended(Phase::Once, "UNAUTHENTICATED", Some(reason.to_owned()))
    }

    #[test]
    fn the_first_of_an_address_has_a_record_and_the_others_one_together() {
        let start = SystemClock.instant();
        let at = |ms| start + Duration::from_millis(ms);
        let mut windows = Windows::default();
        assert!(windows.count(entry(1, "", "BAD"), Within::Address, at(0)).is_some());
        for n in 0..30 {
            assert!(windows.count(entry(1, "", "BAD"), Within::Address, at(n)).is_none());
        }
        assert!(windows.count(entry(2, "", "BAD"), Within::Address, at(5)).is_some());
        assert!(windows.count(entry(1, "", "MISSING"), Within::Address, at(5)).is_some());
        assert!(windows.over(at(9_999), false).is_empty());
        let over = windows.over(at(10_000), false);
        let counts: Vec<_> = over.iter().map(|entry| (entry.count, entry.peer)).collect();
        assert_eq!(counts, [(30, Some(IpAddr::from([10, 0, 0, 1])))]);
        assert!(windows.count(entry(1, "", "BAD"), Within::Address, at(10_001)).is_some());
        assert!(windows.over(at(40_000), false).is_empty(), "nothing was counted since");
    }

    #[test]
    fn what_a_caller_may_not_do_is_told_one_by_one_as_long_as_it_is_few() {
        let now = SystemClock.instant();
        let mut windows = Windows::default();
        let own = (0..50)
            .filter(|_| windows.count(entry(1, "ann", "ROLE"), Within::Caller, now).is_some());
        assert_eq!(own.count(), 20);
        assert!(windows.count(entry(1, "bob", "ROLE"), Within::Caller, now).is_some());
        let over = windows.over(now, true);
        assert_eq!((over.len(), over[0].count), (1, 30));
        assert_eq!(over[0].target, Target::default());
    }

    #[test]
    fn the_memory_for_counting_is_bounded_and_no_count_is_lost() {
        let now = SystemClock.instant();
        let mut windows = Windows::default();
        let mut told = 0;
        for n in 0..30_000 {
            let one = entry(1, &format!("caller {n}"), "ROLE");
            told += i32::from(windows.count(one, Within::Caller, now).is_some());
        }
        assert!(windows.0.len() <= WINDOWS + 1);
        windows.put_back(Entry { count: 7, ..entry(1, "x", "ROLE") }, now);
        let rest: i32 = windows.over(now, true).iter().map(|entry| entry.count).sum();
        assert_eq!(told + rest, 30_007);
    }
}
