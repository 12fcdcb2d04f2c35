//! Ends executions that have gone silent. Every server of a cluster looks; the guard inside the write lets
//! exactly one of them mark an execution, and lets a genuine end that raced win.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::clock::Clock;
use crate::domain::ExecutionOp;
use crate::domain::limits::HEARTBEAT_TIMEOUT_MS;
use crate::store::{Answer, Op, Store};

/// How often to look when nothing needs more.
const IDLE: Duration = Duration::from_secs(1);
/// How often to look at most.
const BUSIEST: Duration = Duration::from_millis(25);

const _: () = assert!(
    BUSIEST.as_millis() * 4 <= *HEARTBEAT_TIMEOUT_MS.start() as u128
        && BUSIEST.as_millis() < IDLE.as_millis(),
    "even at the shortest timeout a look comes within a quarter of it, which leaves another quarter until the mark is \
     due to look again and to write"
);
/// Looks for silent executions.
pub struct Keeper {
    pub store: Arc<dyn Store>,
    pub engine: Engine,
    pub clock: Arc<dyn Clock>,
    /// Woken when a lease was made here, which may be shorter than all others.
    pub lease_made: Arc<Notify>,
    /// Told how many executions were marked.
    pub on_expired: Box<dyn Fn(usize) + Send + Sync>,
}

impl Keeper {
    /// Runs until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let mut pause = IDLE;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.lease_made.notified() => {}
            }
            pause = tokio::select! {
                () = stop.cancelled() => return,
                pause = self.look() => pause,
            };
        }
    }

    /// One look; how long to wait for the next. An eighth of the shortest timeout keeps the mark well within
    /// one and a half of it.
    async fn look(&self) -> Duration {
        let begun = Instant::now();
        let now = self.clock.now().millis();
        let leases = match self.store.leases(now).await {
            Ok(leases) => leases,
            Err(error) => {
                tracing::debug!(%error, "cannot look for silent executions");
                return IDLE;
            }
        };
        let mut expired = 0;
        for silent in leases.silent {
            let op = if silent.last_sign_of_life.saturating_add(silent.heartbeat_timeout_ms) > now {
                if !silent.seen_in_steps {
                    continue;
                }
                // Noted once per timeout, so that the next look need not search its steps.
                ExecutionOp::NoteSignOfLife { at: silent.last_sign_of_life }
            } else {
                // What was read is stale if this process stood still meanwhile; look again.
                let stale = begun.elapsed().as_millis() as i64 > silent.heartbeat_timeout_ms / 4;
                if stale {
                    return BUSIEST;
                }
                ExecutionOp::Expire { last_sign_of_life: silent.last_sign_of_life }
            };
            let is_mark = matches!(op, ExecutionOp::Expire { .. });
            let answer = self.engine.write(silent.execution_id.clone(), Op::Execution(op)).await;
            match answer {
                Ok(Answer::Execution(execution)) if is_mark && execution.ended_for_silence() => {
                    // Another server may have been first; then its mark is the older one.
                    if execution.updated_at >= Some(now) {
                        expired += 1;
                        tracing::info!(
                            execution.id = execution.execution_id,
                            heartbeat.timeout_ms = silent.heartbeat_timeout_ms,
                            "execution marked failed: no sign of life for too long"
                        );
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, execution.id = silent.execution_id, "cannot mark a silent execution as failed");
                }
            }
        }
        if expired > 0 {
            (self.on_expired)(expired);
        }
        match leases.smallest_timeout_ms {
            Some(ms) => Duration::from_millis(ms.max(0) as u64 / 8).clamp(BUSIEST, IDLE),
            None => IDLE,
        }
    }
}
