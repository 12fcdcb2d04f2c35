//! Rules of an execution's life: RUNNING, then COMPLETED, FAILED or CANCELLED.

use bson::Document;

use super::digest::Digest;
use super::{Decision, Digests, Millis, Now, Refusal, RunError, duration_ms, value};

/// Where an execution stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExecutionStatus {
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl ExecutionStatus {
    pub const ALL: [Self; 4] = [Self::Running, Self::Completed, Self::Failed, Self::Cancelled];

    /// The word in the documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }

    pub fn is_terminal(self) -> bool {
        self != Self::Running
    }
}

/// Error code of an execution that was ended for its silence. The mark is a guess: a heartbeat takes it back.
pub const HEARTBEAT_TIMEOUT: &str = "HEARTBEAT_TIMEOUT";

/// An execution as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Execution {
    pub execution_id: String,
    pub app_id: Option<i32>,
    pub app_name: String,
    pub sub_app_id: Option<i32>,
    pub sub_app_name: Option<String>,
    pub user_id: Option<String>,
    /// `None`: another program stored a word that is no status.
    pub status: Option<ExecutionStatus>,
    pub started_at: Option<Millis>,
    pub completed_at: Option<Millis>,
    pub duration_ms: Option<i64>,
    pub error: Option<RunError>,
    pub metadata: Document,
    pub created_at: Option<Millis>,
    pub updated_at: Option<Millis>,
    /// 0: another program wrote the record.
    pub revision: i64,
    pub heartbeat_timeout_ms: Option<i64>,
    pub last_heartbeat_at: Option<Millis>,
    pub cancel_requested_at: Option<Millis>,
    pub cancel_reason: Option<String>,
    pub parent_execution_id: Option<String>,
    pub pinned: Option<bool>,
    /// The version of the app's configuration that it ran with, as its client said.
    pub configuration_version: Option<String>,
    /// Of the latest update that carried one; those that are not greater come too late.
    pub update_sequence: Option<i64>,
    pub digests: Digests,
    /// Set while the record and its steps are being deleted; such a record exists for nobody.
    pub deleted_at: Option<Millis>,
}

impl Execution {
    pub fn is_terminal(&self) -> bool {
        self.status.is_some_and(ExecutionStatus::is_terminal)
    }

    /// Whether its end is only the guess of a server that heard nothing.
    pub fn ended_for_silence(&self) -> bool {
        self.status == Some(ExecutionStatus::Failed)
            // A client may choose the same code for an end of its own.
            && self.digests.finish.is_none()
            && self.error.as_ref().is_some_and(|error| error.code == HEARTBEAT_TIMEOUT)
    }

    /// The value of `last_change` after this record's current revision.
    pub fn last_change(&self) -> String {
        format!("{}//{}", self.execution_id, self.revision)
    }

    /// Bytes it takes in memory, roughly: for bounded caches.
    pub fn weight(&self) -> usize {
        512 + self.app_name.len()
            + value::size_of_document(&self.metadata)
            + self.error.as_ref().map_or(0, error_weight)
    }
}

pub(super) fn error_weight(error: &RunError) -> usize {
    error.message.len() + error.stack_trace.len() + value::size_of_document(&error.details)
}

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
    /// A whole record as it is (import). Its revision and digests are ignored.
    Put(Box<Execution>),
}

impl ExecutionOp {
    /// Whether it may create the record, so that a store may try to insert without looking first.
    pub fn may_create(&self) -> bool {
        matches!(self, Self::Create(_) | Self::Put(_))
    }

    /// Whether it came from outside, and so shows somebody alive.
    pub fn is_by_client(&self) -> bool {
        !matches!(self, Self::Expire { .. } | Self::Delete { .. })
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
                ExecutionOp::Delete { .. } => Ok(Decision::Remove),
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
    }
}

fn not_found(execution_id: &str) -> Refusal {
    Refusal::ExecutionNotFound { execution_id: execution_id.to_owned() }
}

fn changed(mut record: Execution, now: Now) -> Decision<Execution> {
    record.revision = now.revision_after(record.revision);
    record.updated_at = Some(now.millis());
    Decision::Put(record)
}

fn create(
    execution_id: &str,
    stored: Option<&Execution>,
    request: &CreateExecution,
    now: Now,
) -> Result<Decision<Execution>, Refusal> {
    let digest = Digest::new("create_execution")
        .integer("app_id", request.app_id.map(i64::from))
        .text("app_name", Some(&request.app_name))
        .integer("sub_app_id", request.sub_app_id.map(i64::from))
        .text("sub_app_name", request.sub_app_name.as_deref())
        .text("user_id", request.user_id.as_deref())
        .object("metadata", &request.metadata)
        .integer("started_at", request.started_at)
        .integer("heartbeat_timeout_ms", request.heartbeat_timeout_ms)
        .text("parent_execution_id", request.parent_execution_id.as_deref())
        .text("configuration_version", request.configuration_version.as_deref())
        .finish();
    if let Some(stored) = stored {
        let same = match &stored.digests.create {
            Some(stored) => *stored == digest,
            None => {
                stored.app_id == request.app_id
                    && stored.app_name == request.app_name
                    && stored.sub_app_id == request.sub_app_id
                    && stored.sub_app_name == request.sub_app_name
                    && stored.user_id == request.user_id
                    && value::same(
                        &stored.metadata.clone().into(),
                        &request.metadata.clone().into(),
                    )
                    && (request.started_at.is_none() || stored.started_at == request.started_at)
                    && stored.heartbeat_timeout_ms == request.heartbeat_timeout_ms
                    && stored.parent_execution_id == request.parent_execution_id
                    && stored.configuration_version == request.configuration_version
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
        app_id: request.app_id,
        app_name: request.app_name.clone(),
        sub_app_id: request.sub_app_id,
        sub_app_name: request.sub_app_name.clone(),
        user_id: request.user_id.clone(),
        status: Some(ExecutionStatus::Running),
        started_at: Some(request.started_at.unwrap_or(now.millis())),
        completed_at: None,
        duration_ms: None,
        error: None,
        metadata: request.metadata.clone(),
        created_at: Some(now.millis()),
        updated_at: Some(now.millis()),
        revision: now.revision_after(0),
        heartbeat_timeout_ms: request.heartbeat_timeout_ms,
        last_heartbeat_at: None,
        cancel_requested_at: None,
        cancel_reason: None,
        parent_execution_id: request.parent_execution_id.clone(),
        pinned: None,
        configuration_version: request.configuration_version.clone(),
        update_sequence: None,
        digests: Digests { create: Some(digest), ..Digests::default() },
        deleted_at: None,
    }))
}

fn put(
    execution_id: &str,
    stored: Option<&Execution>,
    record: &Execution,
    now: Now,
) -> Result<Decision<Execution>, Refusal> {
    let digest = Digest::new("put_execution")
        .integer("app_id", record.app_id.map(i64::from))
        .text("app_name", Some(&record.app_name))
        .integer("sub_app_id", record.sub_app_id.map(i64::from))
        .text("sub_app_name", record.sub_app_name.as_deref())
        .text("user_id", record.user_id.as_deref())
        .text("status", record.status.map(ExecutionStatus::as_str))
        .integer("started_at", record.started_at)
        .integer("completed_at", record.completed_at)
        .integer("duration_ms", record.duration_ms)
        .error(record.error.as_ref())
        .object("metadata", &record.metadata)
        .integer("created_at", record.created_at)
        .integer("updated_at", record.updated_at)
        .integer("heartbeat_timeout_ms", record.heartbeat_timeout_ms)
        .integer("last_heartbeat_at", record.last_heartbeat_at)
        .integer("cancel_requested_at", record.cancel_requested_at)
        .text("cancel_reason", record.cancel_reason.as_deref())
        .text("parent_execution_id", record.parent_execution_id.as_deref())
        .integer("pinned", record.pinned.map(i64::from))
        .text("configuration_version", record.configuration_version.as_deref())
        .integer("update_sequence", record.update_sequence)
        .finish();
    let whole = |revision| Execution {
        execution_id: execution_id.to_owned(),
        revision,
        digests: Digests { create: Some(digest.clone()), ..Digests::default() },
        deleted_at: None,
        ..record.clone()
    };
    let Some(stored) = stored else {
        return Ok(Decision::Put(whole(now.revision_after(0))));
    };
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
pub(super) fn is_superseded(stored: Option<i64>, sent: Option<i64>) -> bool {
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
    if let Some(from) = stored.status
        && from.is_terminal()
        && !stored.ended_for_silence()
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

fn heartbeat(stored: &Execution, now: Now) -> Decision<Execution> {
    if stored.ended_for_silence() {
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
    let lately = is_lately(stored.last_heartbeat_at, timeout_ms, now);
    if stored.status != Some(ExecutionStatus::Running) || lately {
        return Decision::Keep;
    }
    Decision::Touch(with_sign_of_life(stored, now))
}

/// The record with a sign of life of this moment, where that has to be stored: a write that changed nothing shows
/// its client alive as any other does. At most every quarter of the timeout.
pub fn alive(stored: &Execution, now: Now) -> Option<Execution> {
    let timeout_ms = stored.heartbeat_timeout_ms?;
    let lately = is_lately(SignOfLife::of(stored).at, timeout_ms, now);
    if stored.status != Some(ExecutionStatus::Running) || stored.deleted_at.is_some() || lately {
        return None;
    }
    Some(with_sign_of_life(stored, now))
}

/// Whether a sign of life is so new that another one need not be stored. One from the future is not: somebody has set
/// a clock, and nobody knows how old it is.
fn is_lately(sign: Option<Millis>, timeout_ms: i64, now: Now) -> bool {
    sign.is_some_and(|sign| (0..timeout_ms / 4).contains(&now.millis().saturating_sub(sign)))
}

/// Whoever looks sees another sign than before, whatever the clock says.
fn with_sign_of_life(stored: &Execution, now: Now) -> Execution {
    let before = SignOfLife::of(stored).at;
    let at = before.map_or(now.millis(), |before| now.millis().max(before.saturating_add(1)));
    Execution { last_heartbeat_at: Some(at), ..stored.clone() }
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

fn expire(stored: &Execution, seen: SignOfLife, now: Now) -> Decision<Execution> {
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
        Some(from) if from.is_terminal() && !stored.ended_for_silence() => Err(Refusal::Status {
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
