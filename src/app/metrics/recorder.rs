//! Group commit of points: requests that wait are stored together. As in `engine`, linger is 0, a lane is chosen by
//! the execution, so its points are stored in the order they came, and a full queue is `QueueFull` for a call and
//! waiting for a stream. A request that was queued is stored whether or not its caller waits for the answer.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::app::error::{Error, Result};
use crate::clock::Clock;
use crate::domain::{MetricCounts, MetricPoint, metric};
use crate::store;
use crate::store::metrics::{Arrived, MetricStore, Recorded, Recording, RequestId};

/// Bounds of the recorder.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Points stored together at most; a single larger request goes alone.
    pub batch_points: usize,
    pub batch_bytes: usize,
    /// Requests waiting in one lane at most.
    pub lane_requests: usize,
    /// Bytes waiting in all lanes at most.
    pub queue_bytes: usize,
}

/// Told of points that became durable, before whoever recorded them hears of it.
pub trait Observer: Send + Sync + 'static {
    fn recorded(&self, execution_id: &str, points: Vec<Arrived>);

    /// A request was refused because the queue is full.
    fn rejected(&self);
}

/// What a client wants stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub execution_id: String,
    pub points: Vec<MetricPoint>,
    pub request_id: Option<String>,
    /// As they are; see `Recording`.
    pub put: bool,
}

struct Queued {
    request: Recording,
    bytes: usize,
    answer: oneshot::Sender<store::Result<MetricCounts>>,
    _room: OwnedSemaphorePermit,
}

/// Cheap handle. The lanes end when every handle is gone and what is queued is stored.
#[derive(Clone)]
pub struct Recorder {
    inner: Arc<Inner>,
}

struct Inner {
    lanes: Vec<mpsc::Sender<Queued>>,
    /// Room in the queue, in KiB.
    room: Arc<Semaphore>,
    room_kib: u32,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
}

/// The answer to come. Dropping it does not take the request back.
pub struct Pending(oneshot::Receiver<store::Result<MetricCounts>>);

impl Pending {
    pub async fn answer(self) -> Result<MetricCounts> {
        match self.0.await {
            Ok(outcome) => outcome.map_err(Error::from),
            Err(_) => Err(Error::ShuttingDown),
        }
    }
}

impl Recorder {
    pub fn start(
        store: Arc<dyn MetricStore>,
        clock: Arc<dyn Clock>,
        observer: Arc<dyn Observer>,
        bounds: Bounds,
        tasks: &TaskTracker,
    ) -> Recorder {
        let lanes = (0..store.metric_lanes().max(1))
            .map(|_| {
                let (sender, receiver) = mpsc::channel(bounds.lane_requests.max(1));
                tasks.spawn(lane(receiver, Arc::clone(&store), Arc::clone(&observer), bounds));
                sender
            })
            .collect();
        let room_kib = u32::try_from(bounds.queue_bytes / 1024).unwrap_or(u32::MAX >> 4).max(1);
        Recorder {
            inner: Arc::new(Inner {
                lanes,
                room: Arc::new(Semaphore::new(room_kib as usize)),
                room_kib,
                clock,
                observer,
            }),
        }
    }

    fn queued(&self, request: Request) -> (Recording, usize, u32) {
        let Request { execution_id, points, request_id, put } = request;
        let bytes = 256 + points.iter().map(MetricPoint::weight).sum::<usize>();
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX).min(self.inner.room_kib);
        let request = request_id.map(|id| RequestId { id, digest: metric::digest(&points) });
        let now = self.inner.clock.now().millis();
        (Recording { execution_id, points, request, put, now }, bytes, kib)
    }

    fn lane(&self, execution_id: &str) -> &mpsc::Sender<Queued> {
        let lanes = &self.inner.lanes;
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(execution_id);
        &lanes[(hash % lanes.len() as u64) as usize]
    }

    fn full(&self) -> Error {
        self.inner.observer.rejected();
        Error::QueueFull
    }

    /// Stores one request. Refuses at once when the queue is full.
    pub async fn record(&self, request: Request) -> Result<MetricCounts> {
        let (request, bytes, kib) = self.queued(request);
        let room =
            Arc::clone(&self.inner.room).try_acquire_many_owned(kib).map_err(|_| self.full())?;
        let (answer, pending) = oneshot::channel();
        self.lane(&request.execution_id)
            .try_send(Queued { request, bytes, answer, _room: room })
            .map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => self.full(),
            mpsc::error::TrySendError::Closed(_) => Error::ShuttingDown,
        })?;
        Pending(pending).answer().await
    }

    /// Queues one request, waiting for room as long as it takes.
    pub async fn enqueue(&self, request: Request) -> Result<Pending> {
        let (request, bytes, kib) = self.queued(request);
        let room = Arc::clone(&self.inner.room)
            .acquire_many_owned(kib)
            .await
            .map_err(|_| Error::ShuttingDown)?;
        let (answer, pending) = oneshot::channel();
        self.lane(&request.execution_id)
            .send(Queued { request, bytes, answer, _room: room })
            .await
            .map_err(|_| Error::ShuttingDown)?;
        Ok(Pending(pending))
    }
}

/// One lane: take what is there, store it, answer, again.
async fn lane(
    mut queue: mpsc::Receiver<Queued>,
    store: Arc<dyn MetricStore>,
    observer: Arc<dyn Observer>,
    bounds: Bounds,
) {
    let mut next: Option<Queued> = None;
    loop {
        let first = match next.take() {
            Some(first) => first,
            None => match queue.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        let (mut points, mut bytes) = (first.request.points.len(), first.bytes);
        let mut batch = vec![first];
        while points < bounds.batch_points {
            let Ok(queued) = queue.try_recv() else { break };
            points += queued.request.points.len();
            bytes += queued.bytes;
            // What has to find the one before it stored is never in one batch with it.
            let request = &queued.request;
            let id =
                |request: &Recording| request.request.as_ref().map(|request| request.id.clone());
            let repeats = |other: &Queued| {
                other.request.execution_id == request.execution_id
                    && (request.put
                        || (request.request.is_some() && id(&other.request) == id(request)))
            };
            if points > bounds.batch_points
                || bytes > bounds.batch_bytes
                || batch.iter().any(repeats)
            {
                next = Some(queued);
                break;
            }
            batch.push(queued);
        }
        let mut requests = Vec::with_capacity(batch.len());
        let mut waiting = Vec::with_capacity(batch.len());
        for queued in batch {
            waiting.push((queued.request.execution_id.clone(), queued.answer, queued._room));
            requests.push(queued.request);
        }
        let outcomes = store.record(requests).await;
        debug_assert_eq!(outcomes.len(), waiting.len());
        for ((execution_id, answer, _room), outcome) in waiting.into_iter().zip(outcomes) {
            let outcome = outcome.map(|Recorded { counts, stored }| {
                if !stored.is_empty() {
                    observer.recorded(&execution_id, stored);
                }
                counts
            });
            // The caller may have gone; the points stand all the same.
            let _ = answer.send(outcome);
        }
    }
}
