//! Points on their way to the store: requests that wait are stored together, in the batches of `lanes`.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use crate::app::error::Result;
use crate::app::lanes::{self, Bounds, Lanes, Work};
use crate::clock::Clock;
use crate::domain::audit::Asked;
use crate::domain::{MetricCounts, MetricPoint, metric};
use crate::store;
use crate::store::metrics::{Arrived, MetricStore, Recorded, Recording, RequestId};

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
    /// The call, where it is recorded along with the points.
    pub asked: Option<Asked>,
}

/// The answer to come of a request that is in the queue.
pub type Pending = lanes::Pending<MetricCounts>;

/// Cheap handle. The lanes end when every handle is gone and what is queued is stored.
#[derive(Clone)]
pub struct Recorder {
    lanes: Arc<Lanes<Points>>,
    clock: Arc<dyn Clock>,
}

impl Recorder {
    /// Starts the lanes. The count of `bounds` is of points.
    pub fn start(
        store: Arc<dyn MetricStore>,
        clock: Arc<dyn Clock>,
        observer: Arc<dyn Observer>,
        bounds: Bounds,
        tasks: &TaskTracker,
    ) -> Recorder {
        let lanes = store.metric_lanes();
        let lanes = Lanes::start(Points { store, observer }, lanes, bounds, tasks);
        Recorder { lanes: Arc::new(lanes), clock }
    }

    fn taken(&self, request: Request) -> Recording {
        let Request { execution_id, points, request_id, put, asked } = request;
        let request = request_id.map(|id| RequestId { id, digest: metric::digest(&points) });
        let now = self.clock.now().millis();
        Recording { execution_id, points, request, put, now, asked }
    }

    /// Stores one request. Refuses at once when the queue is full.
    pub async fn record(&self, request: Request) -> Result<MetricCounts> {
        self.lanes.submit(self.taken(request)).await
    }

    /// Queues one request, waiting for room as long as it takes.
    pub async fn enqueue(&self, request: Request) -> Result<Pending> {
        self.lanes.enqueue(self.taken(request)).await
    }
}

/// Stores points.
struct Points {
    store: Arc<dyn MetricStore>,
    observer: Arc<dyn Observer>,
}

impl Work for Points {
    type Item = Recording;
    type Answer = MetricCounts;

    fn execution_id(request: &Recording) -> &str {
        &request.execution_id
    }

    fn bytes(request: &Recording) -> usize {
        256 + request.points.iter().map(MetricPoint::weight).sum::<usize>()
    }

    fn count(request: &Recording) -> usize {
        request.points.len()
    }

    /// What has to find the one before it stored is never in one batch with it.
    fn joins(batch: &[Recording], next: &Recording) -> bool {
        fn id(recording: &Recording) -> Option<&str> {
            recording.request.as_ref().map(|request| request.id.as_str())
        }
        !batch.iter().any(|other| {
            other.execution_id == next.execution_id
                && (next.put || (next.request.is_some() && id(other) == id(next)))
        })
    }

    async fn apply(&self, requests: Vec<Recording>) -> Vec<store::Result<MetricCounts>> {
        let ids: Vec<String> =
            requests.iter().map(|request| request.execution_id.clone()).collect();
        let outcomes = self.store.record(requests).await;
        let told = |(execution_id, outcome): (String, store::Result<Recorded>)| {
            let Recorded { counts, stored } = outcome?;
            if !stored.is_empty() {
                self.observer.recorded(&execution_id, stored);
            }
            Ok(counts)
        };
        ids.into_iter().zip(outcomes).map(told).collect()
    }

    fn rejected(&self) {
        self.observer.rejected();
    }
}
