//! Rules of an execution's life: RUNNING, then COMPLETED, FAILED or CANCELLED.

mod life;
mod record;

use bson::Document;

use super::digest::Digest;
use super::mirrored::{self, Mirrored, Verdict};
use super::refusal::Refusal;
use super::stored;
use super::terms::{Decision, Digests, Millis, Now, RunError, duration_ms};
use super::value;
use life::{changed, expire, heartbeat};

pub use life::{SignOfLife, alive};
pub(in crate::domain) use record::error_weight;
pub use record::{Execution, ExecutionStatus, FIELDS, HEARTBEAT_TIMEOUT, PROCESS_DIED};

/// CreateExecution with its id chosen.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CreateExecution {
    pub app_id: Option<i32>,
    pub app_name: String,
    pub sub_app_id: Option<i32>,
    pub sub_app_name: Option<String>,
    pub user_id: Option<String>,
    pub metadata: Document,
    pub started_at: Option<Millis>,
    pub heartbeat_timeout_ms: Option<i64>,
    pub parent_execution_id: Option<String>,
    pub configuration_version: Option<String>,
}

/// One write about an execution.
#[derive(Debug, Clone, PartialEq)]
pub enum ExecutionOp {
    Create(Box<CreateExecution>),
    Update {
        metadata: Document,
        pinned: Option<bool>,
        expected_revision: Option<i64>,
        update_sequence: Option<i64>,
    },
    Finish {
        status: ExecutionStatus,
        error: Option<RunError>,
        completed_at: Option<Millis>,
        metadata: Document,
    },
    Heartbeat,
    /// Silence ended it: marks it FAILED if it has shown nothing since what the caller saw.
    Expire {
        seen: SignOfLife,
    },
    RequestCancel {
        reason: String,
    },
    Delete {
        force: bool,
    },
    /// It is gone at the source of a mirror.
    DeleteMirrored {
        position: i64,
    },
    /// A whole record as it is: import, or with a `mirrored_position` a mirror. Its revision and digests are ignored.
    Put(Box<Execution>),
}

impl ExecutionOp {
    /// Whether it may create the record, so that a store may try to insert without looking first.
    pub fn may_create(&self) -> bool {
        matches!(self, Self::Create(_) | Self::Put(_))
    }

    /// Whether it came from outside, and so shows somebody alive.
    pub fn is_by_client(&self) -> bool {
        match self {
            Self::Expire { .. } | Self::Delete { .. } | Self::DeleteMirrored { .. } => false,
            // What a mirror brings says nothing of who is alive.
            Self::Put(record) => record.mirrored_position.is_none(),
            _ => true,
        }
    }
}

/// What `op` makes of the stored record of `execution_id`.
pub fn decide(
    execution_id: &str,
    stored: Option<&Execution>,
    op: &ExecutionOp,
    now: Now,
) -> Result<Decision<Execution>, Refusal> {
    let stored = match stored {
        Some(stored) if stored.deleted_at.is_some() => {
            return match op {
                _ if op.may_create() => {
                    Err(Refusal::BeingDeleted { execution_id: execution_id.to_owned() })
                }
                // The delete was begun and not ended (a crash): go on with it.
                ExecutionOp::Delete { .. } | ExecutionOp::DeleteMirrored { .. } => {
                    Ok(Decision::Remove)
                }
                _ => Err(not_found(execution_id)),
            };
        }
        stored => stored,
    };
    match (op, stored) {
        (ExecutionOp::Create(request), stored) => create(execution_id, stored, request, now),
        (ExecutionOp::Put(record), stored) => put(execution_id, stored, record, now),
        (_, None) => Err(not_found(execution_id)),
        (ExecutionOp::Update { update_sequence, .. }, Some(stored))
            if is_superseded(stored.update_sequence, *update_sequence) =>
        {
            Ok(Decision::Superseded)
        }
        (
            ExecutionOp::Update { metadata, pinned, expected_revision, update_sequence },
            Some(stored),
        ) => update(stored, metadata, *pinned, *expected_revision, *update_sequence, now),
        (ExecutionOp::Finish { status, error, completed_at, metadata }, Some(stored)) => {
            finish(stored, *status, error.as_ref(), *completed_at, metadata, now)
        }
        (ExecutionOp::Heartbeat, Some(stored)) => Ok(heartbeat(stored, now)),
        (ExecutionOp::Expire { seen }, Some(stored)) => Ok(expire(stored, *seen, now)),
        (ExecutionOp::RequestCancel { reason }, Some(stored)) => {
            request_cancel(stored, reason, now)
        }
        (ExecutionOp::Delete { force }, Some(stored)) => {
            if stored.status == Some(ExecutionStatus::Running) && !force {
                return Err(Refusal::StillRunning { execution_id: execution_id.to_owned() });
            }
            Ok(Decision::Remove)
        }
        (ExecutionOp::DeleteMirrored { position }, Some(stored)) => {
            Ok(match verdict(stored, *position, || false)? {
                Verdict::Late => Decision::Superseded,
                _ => Decision::Remove,
            })
        }
    }
}

/// What becomes of a mirrored write over a stored record; a conflict is the refusal.
fn verdict(
    stored: &Execution,
    position: i64,
    same: impl FnOnce() -> bool,
) -> Result<Verdict, Refusal> {
    let untouched = stored.is_held_elsewhere();
    let before = Mirrored { position: stored.mirrored_position, untouched };
    match mirrored::judge(before, position, || Ok(same()))? {
        Verdict::Conflict => {
            let what = format!("execution {}", stored.execution_id);
            Err(Refusal::MirrorConflict { what })
        }
        verdict => Ok(verdict),
    }
}

fn not_found(execution_id: &str) -> Refusal {
    Refusal::ExecutionNotFound { execution_id: execution_id.to_owned() }
}

fn create(
    execution_id: &str,
    stored: Option<&Execution>,
    request: &CreateExecution,
    now: Now,
) -> Result<Decision<Execution>, Refusal> {
    let CreateExecution {
        app_id,
        app_name,
        sub_app_id,
        sub_app_name,
        user_id,
        metadata,
        started_at,
        heartbeat_timeout_ms,
        parent_execution_id,
        configuration_version,
    } = request;
    let digest = Digest::new("create_execution")
        .integer("app_id", app_id.map(i64::from))
        .text("app_name", Some(app_name))
        .integer("sub_app_id", sub_app_id.map(i64::from))
        .text("sub_app_name", sub_app_name.as_deref())
        .text("user_id", user_id.as_deref())
        .object("metadata", metadata)
        .integer("started_at", *started_at)
        .integer("heartbeat_timeout_ms", *heartbeat_timeout_ms)
        .text("parent_execution_id", parent_execution_id.as_deref())
        .text("configuration_version", configuration_version.as_deref())
        .finish();
    if let Some(stored) = stored {
        let same = match &stored.digests.create {
            Some(stored) => *stored == digest,
            None => {
                stored.app_id == *app_id
                    && stored.app_name == *app_name
                    && stored.sub_app_id == *sub_app_id
                    && stored.sub_app_name == *sub_app_name
                    && stored.user_id == *user_id
                    && value::same(&stored.metadata.clone().into(), &metadata.clone().into())
                    && (started_at.is_none() || stored.started_at == *started_at)
                    && stored.heartbeat_timeout_ms == *heartbeat_timeout_ms
                    && stored.parent_execution_id == *parent_execution_id
                    && stored.configuration_version == *configuration_version
            }
        };
        return if same {
            Ok(Decision::Keep)
        } else {
            Err(Refusal::ExecutionExists { execution_id: execution_id.to_owned() })
        };
    }
    Ok(Decision::Put(Execution {
        execution_id: execution_id.to_owned(),
        app_id: *app_id,
        app_name: app_name.clone(),
        sub_app_id: *sub_app_id,
        sub_app_name: sub_app_name.clone(),
        user_id: user_id.clone(),
        status: Some(ExecutionStatus::Running),
        started_at: Some(started_at.unwrap_or(now.millis())),
        metadata: metadata.clone(),
        created_at: Some(now.millis()),
        updated_at: Some(now.millis()),
        revision: now.revision_after(0),
        heartbeat_timeout_ms: *heartbeat_timeout_ms,
        parent_execution_id: parent_execution_id.clone(),
        configuration_version: configuration_version.clone(),
        digests: Digests { create: Some(digest), ..Digests::default() },
        ..Execution::default()
    }))
}

fn put(
    execution_id: &str,
    stored: Option<&Execution>,
    record: &Execution,
    now: Now,
) -> Result<Decision<Execution>, Refusal> {
    let digest = match record.mirrored_position {
        None => stored::digest("put_execution", FIELDS, record),
        // How it came is not what it says.
        Some(_) => {
            let unmirrored = Execution { mirrored_position: None, ..record.clone() };
            stored::digest("put_execution", FIELDS, &unmirrored)
        }
    };
    let whole = |revision| Execution {
        execution_id: execution_id.to_owned(),
        revision,
        mirrored_revision: record.mirrored_position.map(|_| revision),
        digests: Digests { create: Some(digest.clone()), ..Digests::default() },
        deleted_at: None,
        ..record.clone()
    };
    let Some(stored) = stored else {
        return Ok(Decision::Put(whole(now.revision_after(0))));
    };
    if let Some(position) = record.mirrored_position {
        let same = || {
            let comparable = Execution {
                mirrored_position: stored.mirrored_position,
                mirrored_revision: stored.mirrored_revision,
                digests: stored.digests.clone(),
                ..whole(stored.revision)
            };
            comparable == *stored
        };
        return Ok(match verdict(stored, position, same)? {
            Verdict::Late => Decision::Superseded,
            _ => Decision::Put(whole(now.revision_after(stored.revision))),
        });
    }
    let same = match &stored.digests.create {
        Some(stored) => *stored == digest,
        None => {
            let mut comparable = whole(stored.revision);
            comparable.digests = stored.digests.clone();
            comparable == *stored
        }
    };
    if same {
        Ok(Decision::Keep)
    } else {
        Err(Refusal::ExecutionExists { execution_id: execution_id.to_owned() })
    }
}

/// Whether an update comes after a later one of the same client, or once more.
pub(in crate::domain) fn is_superseded(stored: Option<i64>, sent: Option<i64>) -> bool {
    stored.zip(sent).is_some_and(|(stored, sent)| sent <= stored)
}

fn update(
    stored: &Execution,
    metadata: &Document,
    pinned: Option<bool>,
    expected_revision: Option<i64>,
    update_sequence: Option<i64>,
    now: Now,
) -> Result<Decision<Execution>, Refusal> {
    // Also where the content is what is stored already: of several who claim something with the same words and
    // the same revision, one may win.
    if let Some(expected) = expected_revision
        && expected != stored.revision
    {
        return Err(Refusal::StaleRevision {
            execution_id: stored.execution_id.clone(),
            expected,
            stored: stored.revision,
        });
    }
    let mut next = stored.clone();
    value::merge(&mut next.metadata, metadata);
    if pinned.is_some() {
        next.pinned = pinned;
    }
    next.update_sequence = update_sequence.or(next.update_sequence);
    if next == *stored { Ok(Decision::Keep) } else { Ok(changed(next, now)) }
}

fn finish(
    stored: &Execution,
    status: ExecutionStatus,
    error: Option<&RunError>,
    completed_at: Option<Millis>,
    metadata: &Document,
    now: Now,
) -> Result<Decision<Execution>, Refusal> {
    let digest = Digest::new("finish_execution")
        .text("status", Some(status.as_str()))
        .error(error)
        .integer("completed_at", completed_at)
        .object("metadata", metadata)
        .finish();
    if stored.end_is_a_guess() && stored.digests.finish.as_ref() == Some(&digest) {
        return Ok(Decision::Keep);
    }
    if let Some(from) = stored.status
        && from.is_terminal()
        && !stored.end_is_a_guess()
    {
        if from != status {
            return Err(Refusal::Status {
                what: format!("execution {}", stored.execution_id),
                from: from.as_str(),
                to: status.as_str(),
                why: "it has already ended",
            });
        }
        let same = match &stored.digests.finish {
            Some(stored) => *stored == digest,
            None => {
                let mut merged = stored.metadata.clone();
                value::merge(&mut merged, metadata);
                stored.error.as_ref() == error
                    && (completed_at.is_none() || stored.completed_at == completed_at)
                    && merged == stored.metadata
            }
        };
        return if same {
            Ok(Decision::Keep)
        } else {
            Err(Refusal::ExecutionExists { execution_id: stored.execution_id.clone() })
        };
    }
    let completed_at = completed_at.unwrap_or(now.millis());
    let mut next = stored.clone();
    value::merge(&mut next.metadata, metadata);
    next.status = Some(status);
    next.completed_at = Some(completed_at);
    next.duration_ms = duration_ms(stored.started_at, completed_at);
    next.error = error.cloned();
    next.digests.finish = Some(digest);
    Ok(changed(next, now))
}

fn request_cancel(
    stored: &Execution,
    reason: &str,
    now: Now,
) -> Result<Decision<Execution>, Refusal> {
    if stored.cancel_requested_at.is_some() {
        // The first request is kept, and a repeat of it is welcome even after the end.
        return Ok(Decision::Keep);
    }
    match stored.status {
        Some(from) if from.is_terminal() && !stored.end_is_a_guess() => Err(Refusal::Status {
            what: format!("execution {}", stored.execution_id),
            from: from.as_str(),
            to: "cancelled",
            why: "it has already ended",
        }),
        _ => {
            let mut next = stored.clone();
            next.cancel_requested_at = Some(now.millis());
            next.cancel_reason = (!reason.is_empty()).then(|| reason.to_owned());
            Ok(changed(next, now))
        }
    }
}
