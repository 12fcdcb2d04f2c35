//! Group commit, generic over the work: what is queued is done in batches, each with one durable wait.
//!
//! Linger is 0: a lane takes what queued up while its last batch was in flight and never waits for more. A lane is
//! chosen by the execution's id, so the work on one execution is done in the order it came and is never in two
//! batches at once. The queue is bounded in number and bytes; full means `Error::QueueFull` for a single call, and
//! waiting for a stream, whose flow control then slows the client. What was queued is done whether or not its caller
//! waits for the answer.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::error::{Error, Result};
use crate::store;

/// Bounds of the queue and of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The count of one batch at most (`Work::count`); a single larger item goes alone.
    pub batch_count: usize,
    /// Bytes in one batch at most; a single larger item goes alone.
    pub batch_bytes: usize,
    /// Items waiting in one lane at most.
    pub lane_items: usize,
    /// Bytes waiting in all lanes at most.
    pub queue_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            batch_count: 500,
            batch_bytes: 8 * 1024 * 1024,
            lane_items: 4096,
            queue_bytes: 128 * 1024 * 1024,
        }
    }
}

/// What the lanes do.
pub trait Work: Send + Sync + 'static {
    type Item: Send + 'static;
    type Answer: Send + 'static;

    /// The execution an item is about.
    fn execution_id(item: &Self::Item) -> &str;

    /// Bytes an item takes in memory, roughly.
    fn bytes(item: &Self::Item) -> usize;

    /// What an item adds to the count of its batch.
    fn count(item: &Self::Item) -> usize;

    /// Whether `next` may be done together with what is in the batch, which is not empty.
    fn joins(batch: &[Self::Item], next: &Self::Item) -> bool;

    /// Does a batch, durably, and tells whoever else has to know of it. One answer per item, in their order.
    fn apply(
        &self,
        batch: Vec<Self::Item>,
    ) -> impl Future<Output = Vec<store::Result<Self::Answer>>> + Send;

    /// An item was refused because the queue is full.
    fn rejected(&self);
}

struct Queued<W: Work> {
    /// `None`: a barrier, which only wants to know when everything before it is done.
    item: Option<W::Item>,
    bytes: usize,
    waiting: Waiting<W>,
}

/// Whoever waits for an answer.
struct Waiting<W: Work> {
    answer: oneshot::Sender<store::Result<W::Answer>>,
    /// Gives the room in the queue back when the item is done.
    _room: OwnedSemaphorePermit,
}

/// Handle to the lanes. They end when it is gone and what is queued has been done.
pub struct Lanes<W: Work> {
    lanes: Vec<mpsc::Sender<Queued<W>>>,
    /// Room in the queue, in KiB.
    room: Arc<Semaphore>,
    room_kib: u32,
    work: Arc<W>,
}

/// The answer to come of an item that is in the queue. Dropping it does not take the item back.
pub struct Pending<A>(oneshot::Receiver<store::Result<A>>);

impl<A> Pending<A> {
    pub async fn answer(self) -> Result<A> {
        match self.0.await {
            Ok(outcome) => outcome.map_err(Error::from),
            // The lane ended with the process's work: whether the item was done is not known.
            Err(_) => Err(Error::ShuttingDown),
        }
    }
}

impl<W: Work> Lanes<W> {
    /// Starts so many lanes, at least one.
    pub fn start(work: W, lanes: usize, bounds: Bounds, tasks: &TaskTracker) -> Lanes<W> {
        let work = Arc::new(work);
        let lanes = (0..lanes.max(1))
            .map(|_| {
                let (sender, receiver) = mpsc::channel(bounds.lane_items.max(1));
                tasks.spawn(lane(receiver, Arc::clone(&work), bounds));
                sender
            })
            .collect();
        let room_kib = u32::try_from(bounds.queue_bytes / 1024).unwrap_or(u32::MAX >> 4).max(1);
        Lanes { lanes, room: Arc::new(Semaphore::new(room_kib as usize)), room_kib, work }
    }

    fn lane(&self, execution_id: &str) -> &mpsc::Sender<Queued<W>> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(execution_id);
        &self.lanes[(hash % self.lanes.len() as u64) as usize]
    }

    /// Room in the queue that so many bytes take. What is larger than the whole queue waits until it is empty.
    fn kib(&self, bytes: usize) -> u32 {
        u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX).min(self.room_kib)
    }

    async fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        let room = Arc::clone(&self.room).acquire_many_owned(self.kib(bytes));
        room.await.map_err(|_| Error::ShuttingDown)
    }

    fn full(&self) -> Error {
        self.work.rejected();
        Error::QueueFull
    }

    /// Has one item done. Refuses at once when the queue is full.
    pub async fn submit(&self, item: W::Item) -> Result<W::Answer> {
        let bytes = W::bytes(&item);
        let room = Arc::clone(&self.room)
            .try_acquire_many_owned(self.kib(bytes))
            .map_err(|_| self.full())?;
        let (answer, pending) = oneshot::channel();
        self.lane(W::execution_id(&item))
            .try_send(Queued { item: Some(item), bytes, waiting: Waiting { answer, _room: room } })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => self.full(),
                mpsc::error::TrySendError::Closed(_) => Error::ShuttingDown,
            })?;
        Pending(pending).answer().await
    }

    /// Queues one item, waiting for room as long as it takes; the answer comes through `Pending`.
    pub async fn enqueue(&self, item: W::Item) -> Result<Pending<W::Answer>> {
        let bytes = W::bytes(&item);
        let room = self.room(bytes).await?;
        let (answer, pending) = oneshot::channel();
        self.lane(W::execution_id(&item))
            .send(Queued { item: Some(item), bytes, waiting: Waiting { answer, _room: room } })
            .await
            .map_err(|_| Error::ShuttingDown)?;
        Ok(Pending(pending))
    }

    /// Waits until everything about this execution that is queued now is done.
    pub async fn passed(&self, execution_id: &str) -> Result<()> {
        let room = self.room(0).await?;
        let (answer, passed) = oneshot::channel();
        self.lane(execution_id)
            .send(Queued { item: None, bytes: 0, waiting: Waiting { answer, _room: room } })
            .await
            .map_err(|_| Error::ShuttingDown)?;
        // Its sender is dropped when the lane has come to it.
        let _ = passed.await;
        Ok(())
    }

    /// Items waiting in all lanes.
    pub fn depth(&self) -> usize {
        self.lanes.iter().map(|lane| lane.max_capacity() - lane.capacity()).sum()
    }
}

/// A batch in the making.
struct Batch<W: Work> {
    items: Vec<W::Item>,
    waiting: Vec<Waiting<W>>,
    count: usize,
    bytes: usize,
    /// Barriers, told only after the batch: what comes before them may be in it.
    passing: Vec<Waiting<W>>,
}

impl<W: Work> Batch<W> {
    fn new() -> Self {
        let (items, waiting, passing) = (Vec::new(), Vec::new(), Vec::new());
        Batch { items, waiting, count: 0, bytes: 0, passing }
    }

    fn is_full(&self, bounds: &Bounds) -> bool {
        self.count + self.passing.len() >= bounds.batch_count
    }

    /// Takes one in, or gives it back: it comes first in the next batch.
    fn add(&mut self, queued: Queued<W>, bounds: &Bounds) -> Option<Queued<W>> {
        let Queued { item, bytes, waiting } = queued;
        match item {
            // Nothing is before it.
            None if self.items.is_empty() => {}
            None => self.passing.push(waiting),
            Some(item) => {
                let count = W::count(&item);
                let fits = self.items.is_empty()
                    || self.count + count <= bounds.batch_count
                        && self.bytes + bytes <= bounds.batch_bytes
                        && W::joins(&self.items, &item);
                if !fits {
                    return Some(Queued { item: Some(item), bytes, waiting });
                }
                self.items.push(item);
                self.waiting.push(waiting);
                self.count += count;
                self.bytes += bytes;
            }
        }
        None
    }
}

/// One lane: take what is there, do it, answer, again.
async fn lane<W: Work>(mut queue: mpsc::Receiver<Queued<W>>, work: Arc<W>, bounds: Bounds) {
    // What was taken from the queue but did not fit into the batch.
    let mut next: Option<Queued<W>> = None;
    loop {
        let first = match next.take() {
            Some(first) => first,
            None => match queue.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        let mut batch = Batch::new();
        next = batch.add(first, &bounds);
        while next.is_none() && !batch.is_full(&bounds) {
            let Ok(queued) = queue.try_recv() else { break };
            next = batch.add(queued, &bounds);
        }
        let Batch { items, waiting, passing, .. } = batch;
        if items.is_empty() {
            continue;
        }
        let outcomes = work.apply(items).await;
        debug_assert_eq!(outcomes.len(), waiting.len());
        for (waiting, outcome) in waiting.into_iter().zip(outcomes) {
            // The caller may have gone; what was done stands all the same.
            let _ = waiting.answer.send(outcome);
        }
        drop(passing);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use parking_lot::Mutex;
    use tokio::sync::Notify;

    use super::*;

    /// Work that stands still until it is let go on, and notes its batches. An item is an execution and a number;
    /// negative ones go alone.
    #[derive(Default)]
    struct Slow {
        batches: Arc<Mutex<Vec<Vec<i64>>>>,
        begun: Arc<Notify>,
        go_on: Arc<Notify>,
        rejected: Arc<AtomicUsize>,
    }

    type Item = (&'static str, i64);

    impl Work for Slow {
        type Item = Item;
        type Answer = i64;

        fn execution_id(item: &Item) -> &str {
            item.0
        }

        fn bytes(_: &Item) -> usize {
            1024
        }

        fn count(_: &Item) -> usize {
            1
        }

        fn joins(batch: &[Item], next: &Item) -> bool {
            next.1 >= 0 && batch[0].1 >= 0
        }

        async fn apply(&self, batch: Vec<Item>) -> Vec<store::Result<i64>> {
            self.batches.lock().push(batch.iter().map(|item| item.1).collect());
            self.begun.notify_one();
            self.go_on.notified().await;
            batch.into_iter().map(|item| Ok(item.1)).collect()
        }

        fn rejected(&self) {
            self.rejected.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Rig {
        lanes: Lanes<Slow>,
        batches: Arc<Mutex<Vec<Vec<i64>>>>,
        begun: Arc<Notify>,
        go_on: Arc<Notify>,
        rejected: Arc<AtomicUsize>,
    }

    fn rig(bounds: Bounds) -> Rig {
        let work = Slow::default();
        let (batches, begun) = (Arc::clone(&work.batches), Arc::clone(&work.begun));
        let (go_on, rejected) = (Arc::clone(&work.go_on), Arc::clone(&work.rejected));
        let lanes = Lanes::start(work, 1, bounds, &TaskTracker::new());
        Rig { lanes, batches, begun, go_on, rejected }
    }

    impl Rig {
        /// Queues these behind a first batch of 0 alone, and gives the batches they make.
        async fn batches_of(self, numbers: &[i64]) -> Vec<Vec<i64>> {
            let mut pending = vec![self.lanes.enqueue(("e", 0)).await.expect("room")];
            self.begun.notified().await;
            for number in numbers {
                pending.push(self.lanes.enqueue(("e", *number)).await.expect("room"));
            }
            for (pending, number) in pending.into_iter().zip([0].iter().chain(numbers)) {
                let answer = pending.answer();
                tokio::pin!(answer);
                loop {
                    tokio::select! {
                        biased;
                        answer = &mut answer => break assert_eq!(answer.expect("done"), *number),
                        () = self.begun.notified() => self.go_on.notify_one(),
                        () = std::future::ready(()) => {
                            self.go_on.notify_one();
                            tokio::task::yield_now().await;
                        }
                    }
                }
            }
            let mut batches = self.batches.lock().clone();
            batches.remove(0);
            batches
        }
    }

    #[tokio::test]
    async fn what_queued_up_meanwhile_is_the_next_batch() {
        assert_eq!(rig(Bounds::default()).batches_of(&[1, 2, 3]).await, [[1, 2, 3]]);
    }

    #[tokio::test]
    async fn a_batch_is_bounded_in_number_and_bytes_and_what_goes_alone_does() {
        let few = Bounds { batch_count: 2, ..Bounds::default() };
        assert_eq!(rig(few).batches_of(&[1, 2, 3]).await, [vec![1, 2], vec![3]]);
        let small = Bounds { batch_bytes: 2 * 1024, ..Bounds::default() };
        assert_eq!(rig(small).batches_of(&[1, 2, 3]).await, [vec![1, 2], vec![3]]);
        let none = Bounds { batch_bytes: 1, ..Bounds::default() };
        assert_eq!(rig(none).batches_of(&[1, 2]).await, [[1], [2]], "one always fits");
        let alone = rig(Bounds::default()).batches_of(&[1, -2, 3, 4]).await;
        assert_eq!(alone, [vec![1], vec![-2], vec![3, 4]]);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_a_call_and_makes_a_stream_wait() {
        for bounds in [
            Bounds { lane_items: 1, ..Bounds::default() },
            // One is under way and one waits; each takes two KiB.
            Bounds { queue_bytes: 4 * 1024, ..Bounds::default() },
        ] {
            let rig = rig(bounds);
            let first = rig.lanes.enqueue(("e", 0)).await.expect("room");
            rig.begun.notified().await;
            let second = rig.lanes.enqueue(("e", 1)).await.expect("room");
            assert!(matches!(rig.lanes.submit(("e", 2)).await, Err(Error::QueueFull)));
            assert_eq!(rig.rejected.load(Ordering::Relaxed), 1);
            let mut third = Box::pin(rig.lanes.enqueue(("e", 3)));
            assert!(futures::poll!(third.as_mut()).is_pending(), "it waits for room");
            rig.go_on.notify_one();
            assert_eq!(first.answer().await.expect("done"), 0);
            let third = third.await.expect("room");
            rig.begun.notified().await;
            rig.go_on.notify_one();
            assert_eq!(second.answer().await.expect("done"), 1);
            rig.begun.notified().await;
            rig.go_on.notify_one();
            assert_eq!(third.answer().await.expect("done"), 3);
        }
    }

    #[tokio::test]
    async fn a_barrier_passes_after_what_was_queued_before_it() {
        let rig = rig(Bounds::default());
        rig.lanes.passed("e").await.expect("nothing is before it");
        let first = rig.lanes.enqueue(("e", 0)).await.expect("room");
        rig.begun.notified().await;
        let second = rig.lanes.enqueue(("e", 1)).await.expect("room");
        let mut passed = Box::pin(rig.lanes.passed("e"));
        assert!(futures::poll!(passed.as_mut()).is_pending());
        rig.go_on.notify_one();
        assert_eq!(first.answer().await.expect("done"), 0);
        rig.begun.notified().await;
        assert!(futures::poll!(passed.as_mut()).is_pending(), "the second is under way");
        rig.go_on.notify_one();
        passed.await.expect("it passes");
        assert_eq!(second.answer().await.expect("done"), 1);
    }

    #[tokio::test]
    async fn the_lanes_end_with_their_handle_when_all_is_done() {
        let tasks = TaskTracker::new();
        let work = Slow::default();
        let (begun, go_on) = (Arc::clone(&work.begun), Arc::clone(&work.go_on));
        let lanes = Lanes::start(work, 1, Bounds::default(), &tasks);
        let pending = lanes.enqueue(("e", 1)).await.expect("room");
        drop(lanes);
        tasks.close();
        begun.notified().await;
        go_on.notify_one();
        tasks.wait().await;
        assert_eq!(pending.answer().await.expect("done"), 1);
    }
}
