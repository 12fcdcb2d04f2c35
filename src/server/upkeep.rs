//! What runs beside the calls: sweeps and samples.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::app::Engine;
use crate::app::artifacts::Artifacts;
use crate::store::Store;
use crate::telemetry::metrics::{WatchMetrics, WriteMetrics};
use crate::watch::Hub;

/// How often the store tidies up.
pub(super) const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Shows what is counted elsewhere, once a second.
pub(super) async fn sample(engine: Engine, hub: Arc<Hub>, stop: CancellationToken) {
    let depth = WriteMetrics::new().queue_depth;
    let watching = WatchMetrics::new();
    let mut every = tokio::time::interval(Duration::from_secs(1));
    while stop.run_until_cancelled(every.tick()).await.is_some() {
        depth.set(engine.depth() as f64);
        let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
        watching.watchers.set(count(&hub.numbers.watchers) as f64);
        watching.events.absolute(count(&hub.numbers.events));
        watching.coalesced.absolute(count(&hub.numbers.coalesced));
        watching.lookups.absolute(hub.lookups());
        watching.catch_up_readers.set(hub.readers() as f64);
    }
}

pub(super) async fn sweep(store: Arc<dyn Store>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            outcome = store.sweep() => {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "cannot sweep");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_INTERVAL) => {}
        }
    }
}

pub(super) async fn sweep_artifacts(
    artifacts: Arc<Artifacts>,
    often: Duration,
    stop: CancellationToken,
) {
    let sweeps = Arc::clone(artifacts.app().sweeps());
    loop {
        let asked = sweeps.begin();
        tokio::select! {
            () = stop.cancelled() => break,
            outcome = artifacts.sweep() => {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "cannot sweep artifacts");
                }
            }
        }
        sweeps.end(asked);
        tokio::select! {
            () = stop.cancelled() => break,
            () = sweeps.asked_after(asked) => {}
            () = tokio::time::sleep(often) => {}
        }
    }
    sweeps.close();
}
