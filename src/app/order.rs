//! The order of the writes of one stream: when a write may begin, in which order answers go out, and what a write
//! that failed for now means for those after it. It knows no protocol and does no work itself: whoever runs a stream
//! asks it before a write begins, and tells it what ended.
//!
//! Writes of one execution apply in the order in which they were sent. Most go through the lanes of the engine, which
//! keep that order. Those that go beside the lanes are kept in order here. Answers about one execution come in the
//! order of its writes, as their revisions do.
//!
//! Once a write of an execution has failed for now (`Error::is_for_now`), every later write of that execution on the
//! same stream is answered `Error::EarlierWriteFailed`: to apply it would leave out the one before. Those that were
//! under way by then may have been applied, and answer so all the same: the client sends all of them again.

use std::collections::HashMap;

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::error::{Error, Result};

/// Bytes of writes beside the lanes that one stream may have under way, unless one alone has more. Those in the lanes
/// are bounded for all streams together.
const BESIDE_BYTES: usize = 32 * 1024 * 1024;
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

    /// Whether a write has to wait until something that is under way has ended.
    pub fn has_to_wait(&self, place: &Place) -> bool {
        let about = self.beside.get(&place.about);
        let full = self.beside_bytes > 0 && self.beside_bytes + place.bytes > BESIDE_BYTES;
        match place.way {
            Way::Lane => about.is_some(),
            Way::Alone => about.is_some() || full,
            Way::Together => about.is_some_and(|about| about.alone > 0) || full,
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
            self.beside_bytes += place.bytes;
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
        if place.way != Way::Lane
            && let Some(about) = self.beside.get_mut(&place.about)
        {
            self.beside_bytes = self.beside_bytes.saturating_sub(place.bytes);
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
        assert!(!order.has_to_wait(&huge()), "one alone may have more");
        let turn = order.turn(1, huge());
        assert!(order.has_to_wait(&Place::apart("b".into(), 1)));
        assert!(!order.has_to_wait(&lane("b")), "the lanes have a bound of their own");
        let (_, ended) = turn.answer(ready(Ok(()))).await;
        order.ended(ended).expect("fine");
        assert!(!order.has_to_wait(&Place::apart("b".into(), 1)));
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
