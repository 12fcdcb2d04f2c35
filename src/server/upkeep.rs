//! What runs beside the calls: the probe of the database, sweeps and samples.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch as signal;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::app::{Artifacts, Engine};
use crate::rpc::catalog;
use crate::store::Store;
use crate::telemetry::metrics::{self, WatchMetrics, WriteMetrics};
use crate::watch::Hub;

/// How often the database is asked whether it is there.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
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

/// Sets the health of the server, which is `""`, and of every service of the API.
pub(super) async fn set_ready(reporter: &HealthReporter, ready: bool) {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    reporter.set_service_status("", status).await;
    for service in catalog::api() {
        reporter.set_service_status(&service.name, status).await;
    }
}

/// Asks the database whether it is there, and says so through health and readiness.
pub(super) struct Probe {
    pub store: Arc<dyn Store>,
    pub reporter: HealthReporter,
    pub ready: signal::Sender<bool>,
    pub stop: CancellationToken,
}

impl Probe {
    pub async fn run(self) {
        let mut known = None;
        loop {
            let up = tokio::select! {
                () = self.stop.cancelled() => break,
                outcome = self.store.ping() => outcome.is_ok(),
            };
            if known != Some(up) {
                set_ready(&self.reporter, up).await;
                self.ready.send_replace(up);
                metrics::store_up().set(if up { 1.0 } else { 0.0 });
                // Said when it is so: who reads the log may rely on it.
                match (known, up) {
                    (_, true) => tracing::info!("ready"),
                    (None, false) => tracing::warn!("waiting for the database"),
                    (Some(_), false) => tracing::warn!("the database is unavailable"),
                }
                known = Some(up);
            }
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = tokio::time::sleep(PROBE_INTERVAL) => {}
            }
        }
        set_ready(&self.reporter, false).await;
        self.ready.send_replace(false);
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
