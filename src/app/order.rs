//! The order of the writes of one stream: when a write may begin, in which order answers go out, and what a write
//! that failed for now means for those after it. It knows no protocol and does no work itself: whoever runs a stream
//! asks it before a write begins, and tells it what ended.
//!
//! Writes of one execution apply in the order in which they were sent. Most go through the lanes of the engine, which
//! keep that order. Those that go beside the lanes are kept in order here: what has to wait for one of them is parked,
//! and what is about something else goes on. Answers about one execution come in the order of its writes, as their
//! revisions do.
//!
//! Once a write of an execution has failed for now (`Error::is_for_now`), every later write of that execution on the
//! same stream is answered `Error::EarlierWriteFailed`: to apply it would leave out the one before. Those that were
//! under way by then may have been applied, and answer so all the same: the client sends all of them again.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::error::{Error, Result};

/// Bytes of writes beside the lanes that one stream may have under way, unless one alone has more. Those in the lanes
/// are bounded for all streams together.
const BESIDE_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of the parked writes of one stream, and of all streams together, with which a stream is read on. One that has nothing
/// parked is read on in any case.
const PARKED_BYTES: usize = 8 * 1024 * 1024;
const ALL_PARKED_BYTES: usize = 128 * 1024 * 1024;
/// Executions of which the last write is remembered before those that are answered are let go of.
const REMEMBERED: usize = 1_024;
/// Executions with a write that failed for now that a stream remembers. With one more it has to end: forgetting one
/// would let a later write of it through.
pub const FAILED: usize = 10_000;

/// How a write gets done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Through the lanes of the engine.
    Lane,
    /// Beside the lanes, and never together with another one about the same.
    Alone,
    /// Beside the lanes, and together with others of this kind about the same.
    Together,
}

/// Where a write stands among the others of its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What it is about: an execution's id, or something with a space in it, which no such id has.
    about: String,
    way: Way,
    /// Whether it is one of the writes of the execution: it is answered in their order, and its failing holds up
    /// those after it.
    in_order: bool,
    bytes: usize,
}

impl Place {
    /// A write of an execution that goes through the lanes.
    pub fn lane(execution_id: String) -> Self {
        Place { about: execution_id, way: Way::Lane, in_order: true, bytes: 0 }
    }

    /// A write of an execution that goes beside the lanes.
    pub fn alone(execution_id: String) -> Self {
        Place { about: execution_id, way: Way::Alone, in_order: true, bytes: 0 }
    }

    /// Something that is done in the order in which it was sent but changes no execution: points of metrics, a
    /// configuration.
    pub fn apart(about: String, bytes: usize) -> Self {
        Place { about, way: Way::Alone, in_order: false, bytes }
    }

    /// Something that depends on its execution and not on others of its kind: the record of an artifact.
    pub fn together(about: String, bytes: usize) -> Self {
        Place { about, way: Way::Together, in_order: false, bytes }
    }
}

/// What is under way beside the lanes about one thing.
#[derive(Default)]
struct Beside {
    alone: usize,
    all: usize,
}

/// The order of the writes of one stream.
pub struct Order {
    beside: HashMap<String, Beside>,
    beside_bytes: usize,
    /// By execution: hears of the end of its last write, with the number of the failed one if one has failed.
    last: HashMap<String, oneshot::Receiver<i64>>,
    /// How many of them were left the last time that those which ended were let go of.
    left: usize,
    /// By execution: the number of the first write that failed for now.
    failed: HashMap<String, i64>,
    most_failed: usize,
}

impl Default for Order {
    fn default() -> Self {
        Order::remembering(FAILED)
    }
}

impl Order {
    /// Of a stream that remembers so many executions with a failed write.
    pub fn remembering(most_failed: usize) -> Self {
        Order {
            beside: HashMap::new(),
            beside_bytes: 0,
            last: HashMap::new(),
            left: 0,
            failed: HashMap::new(),
            most_failed,
        }
    }

    /// Whether there is no room for a write until something has ended.
    pub fn is_full_for(&self, place: &Place) -> bool {
        place.way != Way::Lane
            && self.beside_bytes > 0
            && self.beside_bytes + place.bytes > BESIDE_BYTES
    }

    /// Gives a write room, until it has ended. It may still have to wait for its turn.
    pub fn admit(&mut self, place: &Place) {
        self.beside_bytes += place.bytes;
    }

    /// Whether a write has to wait until something that is under way about the same has ended.
    pub fn has_to_wait(&self, place: &Place) -> bool {
        let about = self.beside.get(&place.about);
        match place.way {
            Way::Lane | Way::Alone => about.is_some(),
            Way::Together => about.is_some_and(|about| about.alone > 0),
        }
    }

    /// Refuses a write that may not begin, because an earlier one has failed for now.
    pub fn may_begin(&self, place: &Place) -> Result<()> {
        match self.failed.get(&place.about) {
            Some(failed) if place.in_order => Err(Error::EarlierWriteFailed { failed: *failed }),
            _ => Ok(()),
        }
    }

    /// The turn of a write that begins now, or was refused instead.
    pub fn turn(&mut self, sequence: i64, place: Place) -> Turn {
        if place.way != Way::Lane {
            let about = self.beside.entry(place.about.clone()).or_default();
            about.alone += usize::from(place.way == Way::Alone);
            about.all += 1;
        }
        let (mut before, mut ended) = (None, None);
        if place.in_order {
            if self.last.len() >= REMEMBERED.max(2 * self.left) {
                self.last.retain(|_, turn| matches!(turn.try_recv(), Err(TryRecvError::Empty)));
                self.left = self.last.len();
            }
            let (sender, receiver) = oneshot::channel();
            ended = Some(sender);
            before = self.last.insert(place.about.clone(), receiver);
        }
        Turn { sequence, place, before, ended }
    }

    /// Takes in that a write has ended, before anything else begins. An error: the stream has to end.
    pub fn ended(&mut self, ended: Ended) -> Result<()> {
        let Ended { place, failed } = ended;
        self.beside_bytes = self.beside_bytes.saturating_sub(place.bytes);
        if place.way != Way::Lane
            && let Some(about) = self.beside.get_mut(&place.about)
        {
            about.alone -= usize::from(place.way == Way::Alone);
            about.all -= 1;
            if about.all == 0 {
                self.beside.remove(&place.about);
            }
        }
        if let Some(failed) = failed {
            self.failed.entry(place.about).or_insert(failed);
            if self.failed.len() > self.most_failed {
                return Err(Error::TooManyFailed { limit: self.most_failed });
            }
        }
        Ok(())
    }
}

/// Writes of one stream that have to wait for others about the same, in the order in which they were sent.
pub struct Parked<W> {
    waiting: HashMap<String, VecDeque<Waiting<W>>>,
    /// What they are about of which something has ended.
    freed: Vec<String>,
    len: usize,
    bytes: usize,
    /// Of all streams.
    all: Arc<AtomicUsize>,
}

struct Waiting<W> {
    place: Place,
    bytes: usize,
    write: W,
}

impl<W> Drop for Parked<W> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl<W> Parked<W> {
    /// Of a stream; `all` counts the bytes of all streams.
    pub fn counted_in(all: &Arc<AtomicUsize>) -> Self {
        let (waiting, all) = (HashMap::new(), Arc::clone(all));
        Parked { waiting, freed: Vec::new(), len: 0, bytes: 0, all }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether as much waits as may.
    pub fn is_full(&self) -> bool {
        let all = self.all.load(Ordering::Relaxed);
        self.bytes >= PARKED_BYTES || self.bytes > 0 && all >= ALL_PARKED_BYTES
    }

    /// Whether a write has to wait for one that waits here.
    pub fn holds_up(&self, place: &Place) -> bool {
        self.len > 0 && self.waiting.contains_key(&place.about)
    }

    /// Parks a write of so many bytes behind those about the same. Something about it is under way.
    pub fn park(&mut self, place: Place, bytes: usize, write: W) {
        self.len += 1;
        self.bytes += bytes;
        self.all.fetch_add(bytes, Ordering::Relaxed);
        let behind = self.waiting.entry(place.about.clone()).or_default();
        behind.push_back(Waiting { place, bytes, write });
    }

    /// Takes in that a write has ended.
    pub fn ended(&mut self, ended: &Ended) {
        if self.len > 0 && self.waiting.contains_key(&ended.place.about) {
            self.freed.push(ended.place.about.clone());
        }
    }

    /// A write that has to wait no longer.
    pub fn next(&mut self, order: &Order) -> Option<(Place, W)> {
        while let Some(about) = self.freed.pop() {
            let Entry::Occupied(mut waiting) = self.waiting.entry(about) else { continue };
            match waiting.get().front() {
                Some(first) if order.has_to_wait(&first.place) => continue,
                _ => {}
            }
            let first = waiting.get_mut().pop_front();
            match waiting.get().is_empty() {
                true => drop(waiting.remove()),
                // The one behind it may begin too.
                false => self.freed.push(waiting.key().clone()),
            }
            if let Some(Waiting { place, bytes, write }) = first {
                self.len -= 1;
                self.bytes -= bytes;
                self.all.fetch_sub(bytes, Ordering::Relaxed);
                return Some((place, write));
            }
        }
        None
    }
}

/// The turn of one write.
pub struct Turn {
    sequence: i64,
    place: Place,
    before: Option<oneshot::Receiver<i64>>,
    ended: Option<oneshot::Sender<i64>>,
}

/// A write that has ended; `Order::ended` wants it.
#[must_use]
pub struct Ended {
    place: Place,
    /// The number of the write if it is the first of its execution that failed for now.
    failed: Option<i64>,
}

impl Turn {
    /// The answer of the write in its turn: after those to earlier writes of the same execution, and none of its own
    /// if one of them has failed.
    pub async fn answer<T>(self, answer: impl Future<Output = Result<T>>) -> (Result<T>, Ended) {
        let Turn { sequence, place, before, ended } = self;
        let mut answer = answer.await;
        let earlier = match before {
            // It ends without a word when none has failed.
            Some(before) => before.await.ok(),
            None => None,
        };
        let failed = match earlier {
            Some(failed) => {
                answer = Err(Error::EarlierWriteFailed { failed });
                None
            }
            None if place.in_order => {
                answer.as_ref().err().filter(|error| error.is_for_now()).map(|_| sequence)
            }
            None => None,
        };
        if let (Some(ended), Some(failed)) = (ended, earlier.or(failed)) {
            // Nobody has to wait for it.
            let _ = ended.send(failed);
        }
        (answer, Ended { place, failed })
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use futures::StreamExt as _;
    use futures::stream::FuturesUnordered;

    use super::*;

    fn lane(id: &str) -> Place {
        Place::lane(id.to_owned())
    }

    fn for_now() -> Error {
        Error::QueueFull
    }

    fn refusal() -> Error {
        Error::invalid("f", "is bad")
    }

    /// The number of the earlier write for which this one was answered.
    fn held_up_by(answer: &Result<()>) -> Option<i64> {
        match answer {
            Err(Error::EarlierWriteFailed { failed }) => Some(*failed),
            _ => None,
        }
    }

    impl Order {
        /// A write that begins and ends at once.
        async fn write(&mut self, sequence: i64, place: Place, outcome: Result<()>) -> Result<()> {
            let outcome = self.may_begin(&place).and(outcome);
            let (answer, ended) = self.turn(sequence, place).answer(ready(outcome)).await;
            self.ended(ended)?;
            answer
        }
    }

    #[tokio::test]
    async fn answers_about_one_execution_come_in_the_order_of_its_writes() {
        let mut order = Order::default();
        let waiting = FuturesUnordered::new();
        let mut answers = Vec::new();
        for number in 0..6_usize {
            let (send, receive) = oneshot::channel();
            let turn = order.turn(number as i64, lane(["a", "b"][number % 2]));
            waiting.push(turn.answer(async move { Ok(receive.await.expect("it is answered")) }));
            answers.push(send);
        }
        // The last ones are there first.
        for (number, answer) in answers.into_iter().enumerate().rev() {
            answer.send(number).expect("somebody waits");
        }
        let found: Vec<usize> = waiting.map(|(answer, _)| answer.expect("fine")).collect().await;
        let of = |rest: usize| -> Vec<usize> {
            found.iter().copied().filter(|number| number % 2 == rest).collect()
        };
        assert_eq!((of(0), of(1)), (vec![0, 2, 4], vec![1, 3, 5]));
    }

    #[tokio::test]
    async fn what_is_answered_is_let_go_of() {
        let mut order = Order::default();
        for number in 0..10 * REMEMBERED {
            order.write(number as i64, lane(&number.to_string()), Ok(())).await.expect("fine");
        }
        assert!(order.last.len() <= REMEMBERED, "{}", order.last.len());
    }

    #[tokio::test]
    async fn what_goes_beside_the_lanes_waits_and_is_waited_for() {
        let about = |id: &str| id.to_owned();
        let places = |id: &str| {
            [
                lane(id),
                Place::alone(about(id)),
                Place::apart(about(id), 1),
                Place::together(about(id), 1),
            ]
        };
        let waiting = |order: &Order, id: &str| -> Vec<bool> {
            places(id).iter().map(|place| order.has_to_wait(place)).collect()
        };
        for (place, expected) in places("e").into_iter().zip([
            [false, false, false, false],
            [true, true, true, true],
            [true, true, true, true],
            [true, true, true, false],
        ]) {
            let mut order = Order::default();
            order.admit(&place);
            let turn = order.turn(1, place.clone());
            assert_eq!(waiting(&order, "e"), expected, "{place:?}");
            assert_eq!(waiting(&order, "other"), [false; 4], "{place:?}");
            let (_, ended) = turn.answer(ready(Ok(()))).await;
            order.ended(ended).expect("fine");
            assert_eq!(waiting(&order, "e"), [false; 4], "{place:?}");
        }
    }

    #[tokio::test]
    async fn what_is_beside_the_lanes_is_bounded_in_bytes() {
        let mut order = Order::default();
        let huge = || Place::together("a".into(), 2 * BESIDE_BYTES);
        assert!(!order.is_full_for(&huge()), "one alone may have more");
        order.admit(&huge());
        assert!(order.is_full_for(&Place::apart("b".into(), 1)));
        assert!(!order.is_full_for(&lane("b")), "the lanes have a bound of their own");
        let turn = order.turn(1, huge());
        let (_, ended) = turn.answer(ready(Ok(()))).await;
        order.ended(ended).expect("fine");
        assert!(!order.is_full_for(&Place::apart("b".into(), 1)));
    }

    /// Which writes begin now.
    fn begin(parked: &mut Parked<i64>, order: &mut Order) -> Vec<(i64, Turn)> {
        std::iter::from_fn(|| {
            let (place, sequence) = parked.next(order)?;
            Some((sequence, order.turn(sequence, place)))
        })
        .collect()
    }

    #[tokio::test]
    async fn what_has_to_wait_begins_in_its_order_and_holds_up_nothing_else() {
        let (mut order, mut parked) = (Order::default(), Parked::counted_in(&Arc::default()));
        let alone = order.turn(1, Place::alone("e".into()));
        for (sequence, place) in [
            (2, lane("e")),
            (3, lane("e")),
            (4, Place::together("e".into(), 1)),
            (5, Place::together("e".into(), 1)),
            (6, lane("e")),
        ] {
            assert!(order.has_to_wait(&place) || parked.holds_up(&place), "{sequence}");
            parked.park(place, 1, sequence);
        }
        assert!(!order.has_to_wait(&lane("other")) && !parked.holds_up(&lane("other")));
        assert!(begin(&mut parked, &mut order).is_empty(), "nothing has ended");
        let end = async |turn: Turn, parked: &mut Parked<i64>, order: &mut Order| {
            let (_, ended) = turn.answer(ready(Ok(()))).await;
            parked.ended(&ended);
            order.ended(ended).expect("fine");
            begin(parked, order)
        };
        let mut begun = end(alone, &mut parked, &mut order).await;
        let numbers: Vec<i64> = begun.iter().map(|(sequence, _)| *sequence).collect();
        assert_eq!(numbers, [2, 3, 4, 5], "the last one waits for those beside the lanes");
        assert!(parked.holds_up(&lane("e")), "and what comes now waits for it");
        for (sequence, turn) in begun.drain(..) {
            let next = end(turn, &mut parked, &mut order).await;
            let numbers: Vec<i64> = next.iter().map(|(sequence, _)| *sequence).collect();
            assert_eq!(numbers, if sequence == 5 { vec![6] } else { vec![] }, "after {sequence}");
        }
        assert!(parked.is_empty() && parked.waiting.is_empty() && parked.bytes == 0);
    }

    #[test]
    fn what_waits_is_bounded_in_bytes() {
        let all = Arc::default();
        let mut parked = Parked::counted_in(&all);
        parked.park(lane("a"), PARKED_BYTES - 1, ());
        assert!(!parked.is_full());
        parked.park(lane("b"), 1, ());
        assert!(parked.is_full());
        let (mut other, mut third) = (Parked::counted_in(&all), Parked::counted_in(&all));
        other.park(lane("c"), ALL_PARKED_BYTES, ());
        third.park(lane("d"), 1, ());
        assert!(third.is_full(), "others have too much");
        assert!(!Parked::<()>::counted_in(&all).is_full(), "it has nothing");
        drop(other);
        assert!(!third.is_full());
    }

    #[tokio::test]
    async fn nothing_follows_a_write_that_failed_for_now() {
        let mut order = Order::default();
        order.write(1, lane("e"), Ok(())).await.expect("fine");
        let failed = order.write(2, lane("e"), Err(for_now())).await;
        assert!(matches!(failed, Err(Error::QueueFull)), "its own failure");
        for (sequence, place) in [(3, lane("e")), (4, Place::alone("e".into()))] {
            assert!(order.may_begin(&place).is_err());
            let answer = order.write(sequence, place, Err(for_now())).await;
            assert_eq!(held_up_by(&answer), Some(2), "the first that failed");
        }
        order.write(5, lane("other"), Ok(())).await.expect("another execution");
        order.write(6, Place::apart("e".into(), 1), Ok(())).await.expect("points");
        order.write(7, Place::together("e".into(), 1), Ok(())).await.expect("an artifact");
    }

    #[tokio::test]
    async fn what_was_under_way_with_it_is_sent_again_too() {
        let mut order = Order::default();
        let (send, receive) = oneshot::channel::<()>();
        let first = order.turn(1, lane("e")).answer(async move {
            receive.await.expect("it is answered");
            Err::<(), _>(for_now())
        });
        let second = order.turn(2, lane("e")).answer(ready(Ok(())));
        let third = order.turn(3, lane("e")).answer(ready(Err::<(), _>(refusal())));
        let mut all = Box::pin(futures::future::join3(first, second, third));
        assert!(futures::poll!(all.as_mut()).is_pending());
        send.send(()).expect("somebody waits");
        let ((first, ended), (second, _), (third, _)) = all.await;
        assert!(matches!(first, Err(Error::QueueFull)));
        assert_eq!(held_up_by(&second), Some(1), "applied or not");
        assert_eq!(held_up_by(&third), Some(1), "the earlier one may be why it was refused");
        order.ended(ended).expect("fine");
        assert!(order.may_begin(&lane("e")).is_err());
    }

    #[tokio::test]
    async fn refusals_points_and_artifacts_hold_nothing_up() {
        let mut order = Order::default();
        for (sequence, place, error) in [
            (1, lane("e"), refusal()),
            (2, Place::apart("e".into(), 1), for_now()),
            (3, Place::together("e".into(), 1), for_now()),
        ] {
            assert!(order.write(sequence, place, Err(error)).await.is_err());
            order.may_begin(&lane("e")).expect("nothing is held up");
        }
        order.write(4, lane("e"), Ok(())).await.expect("it goes on");
    }

    #[tokio::test]
    async fn a_stream_with_too_many_failed_executions_has_to_end() {
        let mut order = Order::remembering(2);
        for (sequence, id) in [(1, "a"), (2, "a"), (3, "b")] {
            let (_, ended) =
                order.turn(sequence, lane(id)).answer(ready(Err::<(), _>(for_now()))).await;
            order.ended(ended).expect("still remembered");
        }
        let (_, ended) = order.turn(4, lane("c")).answer(ready(Err::<(), _>(for_now()))).await;
        assert!(matches!(order.ended(ended), Err(Error::TooManyFailed { limit: 2 })));
    }
}
