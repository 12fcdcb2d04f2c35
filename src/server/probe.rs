//! Whether the server can serve: asks the database, listens to what calls meet, and says so through health, readiness,
//! metrics and the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch as signal;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::audit::Audit;
use crate::clock::Clock;
use crate::http::Readiness;
use crate::rpc::catalog;
use crate::store::signals::Signals;
use crate::store::{Error, Outage, Result, Store};
use crate::telemetry::metrics;

/// How often the database is asked whether it is there.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long it may take over an answer.
const PATIENCE: Duration = Duration::from_millis(3_500);
/// How often a write is tried while the database takes none.
const WRITE_INTERVAL: Duration = Duration::from_secs(2);
/// Within which an outage has to be told.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
const _: () = assert!(
    INTERVAL.as_millis() + PATIENCE.as_millis() < TOLD_WITHIN.as_millis(),
    "a database that does not answer is noticed in time"
);
const NO_ANSWER: &str = "no answer in time";
/// How often it is logged that calls find no free connection.
const BUSY_TOLD_EVERY: Duration = Duration::from_secs(60);

/// What readiness says while nothing is wrong.
pub(super) const STARTING: Readiness = Readiness::Not("the server is starting");
const ENDING: Readiness = Readiness::Not("the server is shutting down");

/// Sets the health of the server, which is `""`, and of every service of the API.
pub(super) async fn set_ready(reporter: &HealthReporter, ready: bool) {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    reporter.set_service_status("", status).await;
    for service in catalog::api() {
        reporter.set_service_status(&service.name, status).await;
    }
}

/// Asks the database whether it can be used, and says so.
pub(super) struct Probe {
    pub store: Arc<dyn Store>,
    pub signals: Arc<Signals>,
    pub audit: Audit,
    pub clock: Arc<dyn Clock>,
    pub reporter: HealthReporter,
    pub ready: signal::Sender<Readiness>,
    pub stop: CancellationToken,
}

/// Writes that fail, until one of the probe's own succeeds.
struct Failing {
    outage: Outage,
    why: String,
    /// When a write was tried last, or met it.
    tried: Instant,
    /// Whether that it is so has been seen, and not only been said by a read.
    certain: bool,
}

/// What a look found.
type Found = Result<(), (Outage, String)>;

impl Probe {
    pub async fn run(self) {
        let mut known = None;
        let mut failing = None;
        let mut busy_told = None;
        loop {
            let found = tokio::select! {
                () = self.stop.cancelled() => break,
                found = self.look(&mut failing, &mut busy_told) => found,
            };
            // Who is told that the server serves is not refused because nothing can be recorded yet.
            if found.is_ok() && known != Some(None) {
                tokio::select! {
                    () = self.stop.cancelled() => break,
                    () = self.audit.begun() => {}
                }
            }
            self.tell(&mut known, found).await;
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = self.signals.news() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
        set_ready(&self.reporter, false).await;
        self.ready.send_replace(ENDING);
    }

    async fn look(&self, failing: &mut Option<Failing>, busy_told: &mut Option<Instant>) -> Found {
        for outage in self.signals.take() {
            let (why, tried) = ("said to a call".to_owned(), self.clock.instant());
            match outage {
                Outage::Busy => self.tell_busy(busy_told),
                Outage::Full | Outage::ReadOnly => {
                    *failing = Some(Failing { outage, why, tried, certain: true });
                }
                // The look that follows finds out.
                Outage::Gone => {}
                // Reads may go on all the same.
                Outage::Away if failing.is_none() => {
                    *failing = Some(Failing { outage, why, tried, certain: false });
                }
                Outage::Away => {}
            }
        }
        within(self.store.ping()).await?;
        let Some(writes) = failing else { return Ok(()) };
        if writes.certain && self.clock.elapsed(writes.tried) < WRITE_INTERVAL {
            return Err((writes.outage, writes.why.clone()));
        }
        match within(self.store.probe_write()).await {
            Ok(()) => {
                *failing = None;
                Ok(())
            }
            Err((found, why)) => {
                let tried = self.clock.instant();
                // Silence does not say that the reason is another one.
                let kept = writes.certain && why == NO_ANSWER;
                let outage = if kept { writes.outage } else { found };
                *failing = Some(Failing { outage, why: why.clone(), tried, certain: true });
                Err((outage, why))
            }
        }
    }

    async fn tell(&self, known: &mut Option<Option<Outage>>, found: Found) {
        let outage = found.as_ref().err().map(|(outage, _)| *outage);
        if *known == Some(outage) {
            return;
        }
        let is_ready = outage.is_none();
        set_ready(&self.reporter, is_ready).await;
        self.ready.send_replace(match outage {
            None => Readiness::Ready,
            Some(outage) => Readiness::Not(outage.words()),
        });
        metrics::store_up().set(if is_ready { 1.0 } else { 0.0 });
        // A server whose own connections are all in use goes on with them.
        for reason in Outage::ALL.into_iter().filter(|reason| *reason != Outage::Busy) {
            let is_so = outage == Some(reason);
            metrics::store_outage(reason.name()).set(if is_so { 1.0 } else { 0.0 });
        }
        // Said when it is so: who reads the log may rely on it.
        match (*known, found) {
            (_, Ok(())) => tracing::info!("ready"),
            (None, Err((Outage::Away, why))) => tracing::warn!(why, "waiting for the database"),
            (_, Err((outage, why))) => {
                tracing::warn!(outage = outage.name(), why, "{}", outage.words());
            }
        }
        *known = Some(outage);
    }

    fn tell_busy(&self, told: &mut Option<Instant>) {
        let now = self.clock.instant();
        if told.is_none_or(|told| now.duration_since(told) >= BUSY_TOLD_EVERY) {
            *told = Some(now);
            let outage = Outage::Busy;
            tracing::warn!(outage = outage.name(), "{}", outage.words());
        }
    }
}

/// What a call to the database says about it.
async fn within(call: impl Future<Output = Result<()>>) -> Found {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Error::Unavailable(why))) => Err((why.outage, why.why().unwrap_or_default())),
        Ok(Err(error)) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            Err((Outage::Away, cause.unwrap_or_else(|| error.to_string())))
        }
        Err(_) => Err((Outage::Away, NO_ANSWER.to_owned())),
    }
}
