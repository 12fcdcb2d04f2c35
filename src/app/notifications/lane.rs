//! What waits for one subscription: in order for each execution, of which one is under way at a time, and due when it is.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::domain::Millis;
use crate::store::notifications::Waiting;

/// One delivery in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub id: String,
    pub number: i64,
    pub tries: i32,
    pub next_at: Millis,
}

/// The deliveries of one subscription that are pending.
#[derive(Debug, Default)]
pub struct Lane {
    /// By execution, the first one first.
    queues: HashMap<Arc<str>, VecDeque<Item>>,
    /// The first of each execution of which none is under way, by the time at which it is due.
    due: BTreeSet<(Millis, i64, Arc<str>)>,
    /// Executions of which one is under way, and its number.
    busy: HashMap<Arc<str>, i64>,
    /// The greatest number that was added.
    newest: i64,
    pending: usize,
    /// The last try got no good answer, so one at a time is enough.
    pub struggling: bool,
    /// How often somebody asked to have something delivered again, when this was loaded.
    pub asked: i64,
}

impl Lane {
    /// With what a store says is pending, in order.
    pub fn of(waiting: Vec<Waiting>, asked: i64) -> Lane {
        let mut lane = Lane { asked, ..Lane::default() };
        waiting.into_iter().for_each(|one| lane.add(one));
        lane
    }

    /// The same again, where what is under way stays so.
    pub fn reload(&mut self, waiting: Vec<Waiting>, asked: i64) {
        let busy = std::mem::take(&mut self.busy);
        let (newest, struggling) = (self.newest, self.struggling);
        *self = Lane { busy, struggling, asked, ..Lane::default() };
        waiting.into_iter().for_each(|one| self.add(one));
        self.newest = self.newest.max(newest);
    }

    /// Adds one, unless it is known.
    pub fn add(&mut self, one: Waiting) {
        if one.number <= self.newest {
            return;
        }
        self.newest = one.number;
        self.pending += 1;
        let execution: Arc<str> = one.execution_id.into();
        let item = Item { id: one.id, number: one.number, tries: one.tries, next_at: one.next_at };
        let queue = self.queues.entry(Arc::clone(&execution)).or_default();
        queue.push_back(item);
        if queue.len() == 1 {
            self.ready(&execution);
        }
    }

    /// Makes the first of an execution due, where none is under way.
    fn ready(&mut self, execution: &Arc<str>) {
        if self.busy.contains_key(execution) {
            return;
        }
        if let Some(first) = self.queues.get(execution).and_then(VecDeque::front) {
            self.due.insert((first.next_at, first.number, Arc::clone(execution)));
        }
    }

    pub fn pending(&self) -> usize {
        self.pending
    }

    pub fn under_way(&self) -> usize {
        self.busy.len()
    }

    /// When the next one is due.
    pub fn next_at(&self) -> Option<Millis> {
        self.due.first().map(|(at, ..)| *at)
    }

    /// Takes one that is due; it is under way until `end` or `again`.
    pub fn begin(&mut self, now: Millis) -> Option<(Arc<str>, Item)> {
        if self.next_at()? > now {
            return None;
        }
        let (_, number, execution) = self.due.pop_first()?;
        let item = self.queues.get(&execution)?.iter().find(|item| item.number == number)?.clone();
        self.busy.insert(Arc::clone(&execution), number);
        Some((execution, item))
    }

    /// One is delivered, or dead: the next of its execution may go.
    pub fn end(&mut self, execution: &Arc<str>, number: i64) {
        self.busy.remove(execution);
        if let Some(queue) = self.queues.get_mut(execution) {
            let before = queue.len();
            queue.retain(|item| item.number != number);
            self.pending -= before - queue.len();
            if queue.is_empty() {
                self.queues.remove(execution);
            }
        }
        self.ready(execution);
    }

    /// One is to be tried again, then.
    pub fn again(&mut self, execution: &Arc<str>, number: i64, tries: i32, next_at: Millis) {
        self.busy.remove(execution);
        let queue = self.queues.get_mut(execution);
        if let Some(item) =
            queue.and_then(|queue| queue.iter_mut().find(|item| item.number == number))
        {
            (item.tries, item.next_at) = (tries, next_at);
        }
        self.ready(execution);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(number: i64, execution_id: &str, next_at: Millis) -> Waiting {
        let id = format!("d{number}");
        Waiting { id, number, execution_id: execution_id.to_owned(), tries: 0, next_at }
    }

    fn begin(lane: &mut Lane, now: Millis) -> Option<(Arc<str>, i64)> {
        lane.begin(now).map(|(execution, item)| (execution, item.number))
    }

    #[test]
    fn of_an_execution_one_goes_after_the_other() {
        let mut lane =
            Lane::of(vec![waiting(1, "a", 0), waiting(2, "a", 0), waiting(3, "b", 0)], 0);
        let (a, first) = begin(&mut lane, 0).unwrap();
        assert_eq!((&*a, first), ("a", 1));
        let (b, other) = begin(&mut lane, 0).unwrap();
        assert_eq!((&*b, other), ("b", 3));
        assert_eq!(begin(&mut lane, 0), None, "the second waits for the first");
        lane.again(&a, 1, 1, 500);
        assert_eq!(begin(&mut lane, 499), None);
        assert_eq!(lane.next_at(), Some(500));
        assert_eq!(begin(&mut lane, 500), Some((Arc::clone(&a), 1)));
        lane.end(&a, 1);
        assert_eq!(begin(&mut lane, 500), Some((Arc::clone(&a), 2)));
        lane.end(&b, 3);
        lane.end(&a, 2);
        assert_eq!((lane.pending(), lane.under_way(), lane.next_at()), (0, 0, None));
        lane.add(waiting(2, "a", 0));
        assert_eq!(lane.pending(), 0, "it is known");
        lane.add(waiting(4, "a", 0));
        assert_eq!(begin(&mut lane, 0), Some((a, 4)));
    }

    #[test]
    fn what_is_delivered_again_comes_before_what_is_newer() {
        let mut lane = Lane::of(vec![waiting(5, "a", 0), waiting(6, "a", 0)], 0);
        let (a, _) = begin(&mut lane, 0).unwrap();
        lane.reload(vec![waiting(2, "a", 0), waiting(5, "a", 0), waiting(6, "a", 0)], 1);
        assert_eq!(begin(&mut lane, 0), None, "one is under way");
        lane.end(&a, 5);
        assert_eq!(begin(&mut lane, 0), Some((Arc::clone(&a), 2)));
        lane.end(&a, 2);
        assert_eq!(begin(&mut lane, 0), Some((a, 6)));
        assert_eq!((lane.pending(), lane.asked), (1, 1));
    }
}
