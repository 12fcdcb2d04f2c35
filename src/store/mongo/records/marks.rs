//! Which executions are being deleted, as far as this server knows: so that it need not ask after every new step
//! whether the step's execution is still there.
//!
//! A server that writes a lot looks at all marks of deletes every `LOOK_EVERY`, and trusts a look for `TRUST`. A
//! delete leaves its mark for `GRACE`, longer than that, and takes the steps away only then. So a step that was
//! inserted while the last look was good either is of an execution whose mark that look saw, or is in the database
//! before the delete takes the steps away. What was found alive before looks began to follow each other
//! without a gap may have been deleted in the gap, and has to be looked up.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bson::Bson;
use parking_lot::Mutex;

/// A busy server looks this often.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long what a look saw is good for.
const TRUST: Duration = Duration::from_millis(100);
/// How long a mark stands before what is marked goes away.
pub const GRACE: Duration = Duration::from_millis(150);
/// A mark is remembered for longer than any write is under way, and than what was found alive is believed.
const REMEMBERED: Duration = Duration::from_secs(60);
const BELIEVED: Duration = Duration::from_secs(30);
/// Marks in one look, and marks remembered. With more of them nothing is trusted.
pub const MOST: usize = 2000;

const _: () = assert!(
    TRUST.as_millis() < GRACE.as_millis(),
    "a step that is inserted while the last look is good is in the database before a delete, whose mark that look did \
     not see, takes the steps away"
);
const _: () = assert!(
    LOOK_EVERY.as_millis() < TRUST.as_millis(),
    "the next look begins while the last one is still good, so that no gap is between them"
);
const _: () = assert!(
    BELIEVED.as_millis() < REMEMBERED.as_millis(),
    "what was found alive is not believed for longer than a mark that came after it is remembered"
);

#[derive(Default)]
struct Looks {
    /// Since when no two looks were further apart than `TRUST`.
    unbroken_since: Option<Instant>,
    last: Option<Instant>,
    last_asked: Option<Instant>,
    marked: HashMap<String, Instant>,
    /// Marks that this server waits for before it takes things away.
    graves: HashMap<String, Instant>,
}

/// What this server has seen of marks.
#[derive(Default)]
pub struct Marks {
    looks: Mutex<Looks>,
    looking: AtomicBool,
}

/// The turn to look. One at a time.
pub struct Turn<'a> {
    marks: &'a Marks,
    began: Instant,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.marks.looking.store(false, Ordering::Release);
    }
}

/// Tells whose being alive can be trusted at one moment.
pub struct Trust<'a> {
    marks: &'a Marks,
    now: Instant,
    unbroken_since: Option<Instant>,
}

impl Trust<'_> {
    /// Whether an execution that was found alive at `seen` still is, or is deleted by somebody who has not begun to
    /// take its steps away.
    pub fn is_alive(&self, execution_id: &str, seen: Option<Instant>) -> bool {
        let (Some(since), Some(seen)) = (self.unbroken_since, seen) else { return false };
        seen >= since
            && self.now.saturating_duration_since(seen) < BELIEVED
            && !self.marks.looks.lock().marked.contains_key(execution_id)
    }
}

impl Marks {
    /// Whether it is time for a look: the server is busy and the last one was a while ago.
    pub fn turn(&self, now: Instant) -> Option<Turn<'_>> {
        let mut looks = self.looks.lock();
        let asked = looks.last_asked.replace(now);
        let busy = asked.is_some_and(|asked| now.duration_since(asked) < LOOK_EVERY);
        let due = looks.last.is_none_or(|last| now.duration_since(last) >= LOOK_EVERY);
        if !busy || !due || self.looking.swap(true, Ordering::Acquire) {
            return None;
        }
        Some(Turn { marks: self, began: now })
    }

    /// Who can be trusted to be alive `now`, after something was inserted.
    pub fn trust(&self, now: Instant) -> Trust<'_> {
        let looks = self.looks.lock();
        let fresh = looks.last.is_some_and(|last| now.duration_since(last) <= TRUST);
        Trust { marks: self, now, unbroken_since: looks.unbroken_since.filter(|_| fresh) }
    }

    /// Forgets all looks.
    pub fn distrust(&self) {
        let mut looks = self.looks.lock();
        looks.last = None;
        looks.unbroken_since = None;
    }

    /// How long the marks of these documents of executions still have to stand.
    pub fn grace<'a>(&self, documents: impl Iterator<Item = &'a Bson>) -> Duration {
        let now = Instant::now();
        let mut looks = self.looks.lock();
        // Those that another server took away are not heard of again.
        looks.graves.retain(|_, seen| now.duration_since(*seen) < REMEMBERED);
        let graves = &mut looks.graves;
        let seen = documents.map(|id| *graves.entry(id.to_string()).or_insert(now)).max();
        seen.map_or(Duration::ZERO, |seen| (seen + GRACE).saturating_duration_since(now))
    }

    /// These are gone.
    pub fn bury<'a>(&self, documents: impl Iterator<Item = &'a Bson>) {
        let mut looks = self.looks.lock();
        for id in documents {
            looks.graves.remove(&id.to_string());
        }
    }
}

impl Turn<'_> {
    /// Takes in what the look saw by now; `None`: it failed.
    pub fn saw(self, marked: Option<Vec<String>>, now: Instant) {
        let mut looks = self.marks.looks.lock();
        let began = self.began;
        let known = marked.filter(|marked| marked.len() < MOST && looks.marked.len() < 2 * MOST);
        looks.marked.retain(|_, seen| began.duration_since(*seen) < REMEMBERED);
        let Some(marked) = known else {
            looks.last = None;
            looks.unbroken_since = None;
            return;
        };
        // A mark that came after the last look began stood until this one had ended, or was seen by it.
        let follows = looks.last.is_some_and(|last| {
            began.duration_since(last) <= TRUST && now.duration_since(last) < GRACE
        });
        if !follows {
            looks.unbroken_since = Some(began);
        }
        looks.last = Some(began);
        looks.marked.extend(marked.into_iter().map(|id| (id, began)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    fn look(marks: &Marks, at: Instant, marked: &[&str]) -> bool {
        let turn = marks.turn(at);
        let looked = turn.is_some();
        if let Some(turn) = turn {
            turn.saw(Some(marked.iter().map(|id| (*id).to_owned()).collect()), at);
        }
        looked
    }

    #[test]
    fn only_a_busy_server_looks_and_only_now_and_then() {
        let (marks, start) = (Marks::default(), Instant::now());
        assert!(!look(&marks, start, &[]));
        assert!(look(&marks, after(start, 10), &[]));
        assert!(!look(&marks, after(start, 40), &[]));
        assert!(look(&marks, after(start, 61), &[]));
        assert!(!look(&marks, after(start, 500), &[]));
    }

    #[test]
    fn a_look_is_good_for_a_while_and_for_what_was_seen_since_the_last_gap() {
        let (marks, start) = (Marks::default(), Instant::now());
        look(&marks, start, &[]);
        look(&marks, after(start, 10), &["marked"]);
        let alive =
            |at, id, seen| marks.trust(after(start, at)).is_alive(id, Some(after(start, seen)));
        assert!(alive(110, "a", 10));
        assert!(!alive(111, "a", 10), "the look is too old");
        assert!(!alive(50, "a", 9), "was found alive before the looks began");
        assert!(!alive(50, "marked", 20));
        assert!(!marks.trust(after(start, 50)).is_alive("a", None));
        look(&marks, after(start, 40), &[]);
        assert!(look(&marks, after(start, 61), &[]));
        assert!(alive(120, "a", 10), "the looks follow each other");
        assert!(!alive(120, "marked", 70), "a mark is remembered after it is gone");
        assert!(!look(&marks, after(start, 300), &[]));
        assert!(look(&marks, after(start, 310), &[]));
        assert!(!alive(320, "a", 10), "there was a gap");
        assert!(alive(320, "a", 310));
    }

    #[test]
    fn a_slow_look_follows_no_other_and_nothing_is_believed_for_long() {
        let (marks, start) = (Marks::default(), Instant::now());
        look(&marks, start, &[]);
        look(&marks, after(start, 10), &[]);
        look(&marks, after(start, 40), &[]);
        let slow = marks.turn(after(start, 61)).unwrap();
        slow.saw(Some(Vec::new()), after(start, 160));
        assert!(!marks.trust(after(start, 160)).is_alive("a", Some(after(start, 20))));
        assert!(marks.trust(after(start, 160)).is_alive("a", Some(after(start, 61))));
        for at in (100..=40_000).step_by(40) {
            look(&marks, after(start, at), &[]);
        }
        let trust = marks.trust(after(start, 40_000));
        assert!(!trust.is_alive("a", Some(after(start, 9_000))));
        assert!(trust.is_alive("a", Some(after(start, 12_000))));
        marks.distrust();
        assert!(!marks.trust(after(start, 40_000)).is_alive("a", Some(after(start, 12_000))));
    }

    #[test]
    fn a_look_that_failed_or_saw_too_much_ends_all_trust() {
        let (marks, start) = (Marks::default(), Instant::now());
        look(&marks, start, &[]);
        look(&marks, after(start, 10), &[]);
        look(&marks, after(start, 40), &[]);
        marks.turn(after(start, 60)).unwrap().saw(None, after(start, 60));
        assert!(!marks.trust(after(start, 61)).is_alive("a", Some(after(start, 20))));
        assert!(look(&marks, after(start, 70), &[]));
        assert!(marks.trust(after(start, 71)).is_alive("a", Some(after(start, 70))));
        let many = (0..MOST).map(|id| id.to_string()).collect();
        assert!(marks.turn(after(start, 110)).is_none());
        marks.turn(after(start, 121)).unwrap().saw(Some(many), after(start, 121));
        assert!(!marks.trust(after(start, 122)).is_alive("a", Some(after(start, 121))));
    }

    #[test]
    fn marks_stand_for_their_grace() {
        let marks = Marks::default();
        let id = Bson::from("e");
        let first = marks.grace(std::iter::once(&id));
        assert!(first > GRACE / 2 && first <= GRACE);
        marks.bury(std::iter::once(&id));
        assert_eq!(marks.grace(std::iter::empty()), Duration::ZERO);
    }
}
