//! Signs of life: what shows that the client of an execution is alive, and what becomes of one that shows nothing.

use super::record::{Execution, ExecutionStatus, HEARTBEAT_TIMEOUT};
use crate::domain::terms::{Decision, Millis, Now, RunError, duration_ms};

pub(super) fn changed(mut record: Execution, now: Now) -> Decision<Execution> {
    record.revision = now.revision_after(record.revision);
    record.updated_at = Some(now.millis());
    Decision::Put(record)
}

pub(super) fn heartbeat(stored: &Execution, now: Now) -> Decision<Execution> {
    if stored.end_is_a_guess() {
        let mut next = stored.clone();
        next.status = Some(ExecutionStatus::Running);
        next.completed_at = None;
        next.duration_ms = None;
        next.error = None;
        next.digests.finish = None;
        next.last_heartbeat_at = Some(now.millis());
        return changed(next, now);
    }
    let Some(timeout_ms) = stored.heartbeat_timeout_ms else {
        return Decision::Keep;
    };
    let lately =
        is_lately(stored.last_heartbeat_at, timeout_ms, now) && !stored.is_held_elsewhere();
    if stored.status != Some(ExecutionStatus::Running) || lately {
        return Decision::Keep;
    }
    Decision::Touch(with_sign_of_life(stored, now))
}

/// The record with a sign of life of this moment, where that has to be stored: a write that changed nothing shows
/// its client alive as any other does. At most every quarter of the timeout.
pub fn alive(stored: &Execution, now: Now) -> Option<Execution> {
    let timeout_ms = stored.heartbeat_timeout_ms?;
    let lately =
        is_lately(SignOfLife::of(stored).at, timeout_ms, now) && !stored.is_held_elsewhere();
    if stored.status != Some(ExecutionStatus::Running) || stored.deleted_at.is_some() || lately {
        return None;
    }
    Some(with_sign_of_life(stored, now))
}

/// Whether a sign of life is so new that another one need not be stored. One from the future is not: somebody has set
/// a clock, and nobody knows how old it is.
pub(super) fn is_lately(sign: Option<Millis>, timeout_ms: i64, now: Now) -> bool {
    sign.is_some_and(|sign| (0..timeout_ms / 4).contains(&now.millis().saturating_sub(sign)))
}

/// Whoever looks sees another sign than before, whatever the clock says. What a mirror has brought is from now on this
/// database's to look after: its client has come here.
pub(super) fn with_sign_of_life(stored: &Execution, now: Now) -> Execution {
    let before = SignOfLife::of(stored).at;
    let at = before.map_or(now.millis(), |before| now.millis().max(before.saturating_add(1)));
    Execution { last_heartbeat_at: Some(at), mirrored_revision: None, ..stored.clone() }
}

/// What shows that the client of an execution is alive. It is another one after each write that counts as a sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignOfLife {
    /// The latest moment at which it was alive, by the time of day of whoever stored that.
    pub at: Option<Millis>,
    /// Another number after each change.
    pub writes: i64,
}

impl SignOfLife {
    /// What the record itself shows. Steps may show a later one.
    pub fn of(stored: &Execution) -> SignOfLife {
        let times = [stored.last_heartbeat_at, stored.updated_at, stored.created_at];
        SignOfLife { at: times.into_iter().flatten().max(), writes: stored.revision }
    }
}

pub(super) fn expire(stored: &Execution, seen: SignOfLife, now: Now) -> Decision<Execution> {
    let Some(timeout_ms) = stored.heartbeat_timeout_ms else {
        return Decision::Keep;
    };
    // What a server remembers may be older than what was seen; then the guard of the write finds that.
    let shown = SignOfLife::of(stored);
    let is_newer = shown.writes > seen.writes || shown.at > seen.at;
    if stored.status != Some(ExecutionStatus::Running) || is_newer {
        return Decision::Keep;
    }
    let mut next = stored.clone();
    next.status = Some(ExecutionStatus::Failed);
    next.completed_at = Some(now.millis());
    next.duration_ms = duration_ms(stored.started_at, now.millis());
    next.error = Some(RunError {
        message: format!("no sign of life for {timeout_ms} ms"),
        code: HEARTBEAT_TIMEOUT.to_owned(),
        ..RunError::default()
    });
    changed(next, now)
}
