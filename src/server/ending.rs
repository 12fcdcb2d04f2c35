//! How a server ends: calls drain, the parts are taken down in order.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use crate::app::Engine;
use crate::audit::Audit;
use crate::shutdown::{CLOSED_WITHIN, Ending, LANES_SHARE, RECORDED_WITHIN, Shutdown};
use crate::store::Store;

/// Serves until the calls have drained, or the time for that is over.
pub(super) async fn drain(serving: impl Future<Output = ()>, shutdown: Shutdown) {
    tokio::select! {
        () = serving => {}
        () = shutdown.hard.cancelled() => {}
    }
    // Without the port there is no server: let the process end.
    shutdown.soft.cancel();
}

/// Takes the parts down in order: no new calls, streams end, calls drain, queued writes are applied, the store
/// closes.
pub(super) struct Down {
    pub store: Arc<dyn Store>,
    pub engine: Engine,
    pub audit: Audit,
    pub shutdown: Shutdown,
    pub lanes: TaskTracker,
    pub deadline: Duration,
}

impl Down {
    pub async fn run(self) -> Ending {
        let ending = self.shutdown.finish().await;
        // The last handle: the lanes apply what is queued and end.
        drop(self.engine);
        self.lanes.close();
        let lanes = self.deadline.mul_f64(LANES_SHARE);
        if tokio::time::timeout(lanes, self.lanes.wait()).await.is_err() {
            tracing::warn!(
                "queued writes were not applied in time; none of them were acknowledged"
            );
        }
        self.audit.stop(RECORDED_WITHIN).await;
        if tokio::time::timeout(CLOSED_WITHIN, self.store.close()).await.is_err() {
            tracing::warn!("the store did not close in time");
        }
        ending
    }
}
