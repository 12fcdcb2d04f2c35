//! The one table from failures to gRPC codes and `google.rpc` details. Nothing else makes a Status.

mod answer;
mod library;

use tonic::{Code, Status};

use crate::app::Error;
use crate::auth::Denied;
use crate::blobs;
use crate::domain::{MetricCounts, Refusal};
use crate::store::{self, Outage};
use answer::{Answer, status};

pub use answer::{DOMAIN, TRAILER_BYTES, bounded};
pub use library::{
    CUT_OFF, cut_off, not_unpacked, undecodable, unknown_encoding, unknown_method,
    unpacks_to_more_than,
};

/// How to give a standalone mongod a log.
const REPLICA_SET_ADVICE: &str = "watching needs a replica set, and this mongod is standalone: start it with \
     --replSet rs0 and run rs.initiate() once to make it a one-node replica set";

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        of(&error)
    }
}

/// The status of a failure.
pub fn of(error: &Error) -> Status {
    status(answer(error))
}

/// The status of a message of a stream of metrics that was refused, with what became of the others.
pub fn of_metric_stream(error: &Error, message: u64, counts: MetricCounts) -> Status {
    let mut answer = answer(error)
        .metadata("message", message)
        .metadata("accepted", counts.accepted)
        .metadata("too_old", counts.too_old)
        .metadata("in_future", counts.in_future);
    answer.message = format!(
        "{} (message {message} of the stream; {} points of the other messages were stored)",
        answer.message, counts.accepted
    );
    status(answer)
}

/// The status of an Ingest stream that ends because a message of it cannot be read.
pub fn of_bad_message(field: &str, description: &str, last_sequence: Option<i64>) -> Status {
    let message = format!("{field} {description}");
    let mut answer = Answer::new(Code::InvalidArgument, "BAD_MESSAGE", message).field(field);
    if let Some(sequence) = last_sequence {
        answer = answer.metadata("last_sequence", sequence);
    }
    status(answer)
}

/// The same as a message, for answers inside a stream.
pub fn message_of(error: &Error) -> tonic_types::Status {
    use prost::Message as _;
    let status = of(error);
    tonic_types::Status::decode(status.details()).unwrap_or_else(|_| tonic_types::Status {
        code: status.code() as i32,
        message: status.message().to_owned(),
        details: Vec::new(),
    })
}

fn answer(error: &Error) -> Answer {
    let answer = looked_up(error);
    if matches!(answer.code, Code::Internal | Code::DataLoss) {
        tracing::error!(error.source = %chain(error), "request failed");
    }
    answer
}

fn looked_up(error: &Error) -> Answer {
    match error {
        Error::Invalid(violations) => {
            let message = match violations.listed() {
                [one] => format!("{} {}", one.field, one.description),
                [one, ..] => {
                    let more = violations.count() - 1;
                    format!("{} {} (and {more} more)", one.field, one.description)
                }
                [] => "the request is invalid".to_owned(),
            };
            let answer = Answer::new(Code::InvalidArgument, "INVALID_ARGUMENT", message);
            answer.violations(violations.clone())
        }
        Error::MessageTooLarge { bytes, limit } => Answer::new(
            Code::InvalidArgument,
            "MESSAGE_TOO_LARGE",
            format!(
                "message would take about {bytes} bytes of memory once decoded, more than the limit of {limit}"
            ),
        )
        .field("message"),
        Error::Refused(refusal) => refused(refusal),
        Error::BadToken(field) => Answer::new(
            Code::InvalidArgument,
            "INVALID_TOKEN",
            format!("{field} is not valid for this request: it is damaged, forged, or from another request"),
        )
        .field(field),
        Error::QueueFull => Answer::new(
            Code::ResourceExhausted,
            "QUEUE_FULL",
            "too many writes are waiting; nothing was applied",
        )
        .retry(),
        Error::OverBudget => Answer::new(
            Code::ResourceExhausted,
            "OVER_BUDGET",
            "the messages of this connection, or of all connections together, take as much memory as they may; send fewer \
             at a time",
        )
        .retry(),
        Error::TooManyCalls => Answer::new(
            Code::ResourceExhausted,
            "TOO_MANY_CALLS",
            "too many calls are waiting; nothing was done",
        )
        .retry(),
        Error::DeadlineExceeded => Answer::new(
            Code::DeadlineExceeded,
            "DEADLINE_EXCEEDED",
            "the deadline has passed; a write may or may not have been applied",
        ),
        Error::StandsStill => Answer::new(
            Code::DeadlineExceeded,
            "STREAM_STANDS_STILL",
            "too little came for too long; what has arrived is kept if there is an upload_id",
        ),
        Error::ShuttingDown => Answer::new(
            Code::Unavailable,
            "SHUTTING_DOWN",
            "the server is shutting down; connect to another one",
        )
        .retry(),
        Error::BrokenOff => Answer::new(
            Code::Cancelled,
            "BROKEN_OFF",
            "the stream was cut off; what has arrived is kept if there is an upload_id",
        ),
        Error::Bytes(blobs::Error::Unavailable(_)) => Answer::new(
            Code::Unavailable,
            "STORAGE_UNAVAILABLE",
            "the artifact storage is unavailable; send the same request again",
        )
        .retry(),
        Error::Bytes(blobs::Error::Missing | blobs::Error::Failed(_)) => {
            Answer::new(Code::Internal, "INTERNAL", "the server failed to process the request")
        }
        Error::EarlierWriteFailed { failed } => Answer::new(
            Code::Aborted,
            "EARLIER_WRITE_FAILED",
            format!(
                "an earlier write of this execution failed (sequence {failed}); open a new stream and resend from that write"
            ),
        )
        .metadata("failed_sequence", failed),
        Error::TooManyFailed { limit } => Answer::new(
            Code::Unavailable,
            "TOO_MANY_WRITES_FAILED",
            format!(
                "writes of more than {limit} executions failed on this stream; open a new one and resend from the first \
                 write that failed"
            ),
        )
        .retry(),
        Error::RetentionRunning => Answer::new(
            Code::Aborted,
            "RETENTION_RUNNING",
            "retention is already running on this server or another one; try again when it has finished",
        ),
        Error::SearchDisabled => Answer::new(
            Code::FailedPrecondition,
            "SEARCH_DISABLED",
            "search is switched off on this server (search.enabled)",
        ),
        Error::Unaudited => unaudited(),
        Error::Store(error) => store_failed(error),
    }
}

/// The verb before a status: "cannot be cancelled", but "cannot become failed".
fn to_be(status: &str) -> &'static str {
    if matches!(status, "completed" | "cancelled" | "skipped") { "be" } else { "become" }
}

fn refused(refusal: &Refusal) -> Answer {
    match refusal {
        Refusal::ExecutionNotFound { execution_id } => Answer::new(
            Code::NotFound,
            "EXECUTION_NOT_FOUND",
            format!("there is no execution {execution_id}"),
        )
        .resource("execution", execution_id),
        Refusal::StepNotFound { execution_id, step } => Answer::new(
            Code::NotFound,
            "STEP_NOT_FOUND",
            format!("there is no step {step} in execution {execution_id}"),
        )
        .resource("step", format!("{execution_id}/{step}")),
        Refusal::ExecutionExists { execution_id } => Answer::new(
            Code::AlreadyExists,
            "EXECUTION_ALREADY_EXISTS",
            format!("execution {execution_id} already exists with different content"),
        )
        .resource("execution", execution_id),
        Refusal::StepExists { execution_id, step } => Answer::new(
            Code::AlreadyExists,
            "STEP_ALREADY_EXISTS",
            format!("step {step} of execution {execution_id} already exists with different content"),
        )
        .resource("step", format!("{execution_id}/{step}")),
        Refusal::Status { what, from, to, why } => Answer::new(
            Code::FailedPrecondition,
            "WRONG_STATUS",
            format!("{what} is {from} and cannot {} {to}: {why}", to_be(to)),
        ),
        Refusal::DuplicateId { execution_id, step } => {
            let what = match step {
                Some(step) => format!("step {step} of execution {execution_id}"),
                None => format!("execution {execution_id}"),
            };
            Answer::new(
                Code::FailedPrecondition,
                "DUPLICATE_ID",
                format!("{what} is stored more than once, and another one of these records has been changed since"),
            )
        }
        Refusal::MirrorConflict { what } => Answer::new(
            Code::FailedPrecondition,
            "MIRROR_CONFLICT",
            format!("{what} was stored or changed here by somebody else than the mirror, which leaves it as it is"),
        ),
        Refusal::MirrorNotFound { name } => {
            Answer::new(Code::NotFound, "MIRROR_NOT_FOUND", format!("there is no mirror {name}"))
                .resource("mirror", name)
        }
        Refusal::MirrorTakenOver { name } => Answer::new(
            Code::Aborted,
            "MIRROR_TAKEN_OVER",
            format!("somebody else runs mirror {name} now"),
        ),
        Refusal::MirrorFinished { name } => Answer::new(
            Code::FailedPrecondition,
            "MIRROR_FINISHED",
            format!("mirror {name} is finished"),
        ),
        Refusal::MirrorNotReady { name, why } => Answer::new(
            Code::FailedPrecondition,
            "MIRROR_NOT_READY",
            format!("mirror {name} cannot be finished yet: {why}"),
        ),
        Refusal::MirrorSourceDiffers { name, stored } => Answer::new(
            Code::FailedPrecondition,
            "MIRROR_SOURCE_DIFFERS",
            format!("mirror {name} is one of another source: {stored}"),
        ),
        Refusal::StaleRevision { execution_id, expected, stored } => Answer::new(
            Code::Aborted,
            "STALE_REVISION",
            format!("execution {execution_id} is at revision {stored}, not the expected {expected}"),
        ),
        Refusal::StillRunning { execution_id } => Answer::new(
            Code::FailedPrecondition,
            "EXECUTION_RUNNING",
            format!("execution {execution_id} is running; finish it first, or delete it with force"),
        ),
        Refusal::BeingDeleted { execution_id } => Answer::new(
            Code::Aborted,
            "EXECUTION_BEING_DELETED",
            format!("execution {execution_id} is being deleted; its id will be free again shortly"),
        ),
        Refusal::UnknownDependency { step_id, depends_on } => Answer::new(
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
            format!("step {step_id} depends on step {depends_on}, which is neither stored nor in this plan"),
        )
        .field("steps.depends_on"),
        Refusal::UnknownParent { step_id, parent } => Answer::new(
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
            format!("step {step_id} is part of step {parent}, which is neither stored nor in this plan"),
        )
        .field("steps.parent_step"),
        Refusal::StepIdsExhausted { execution_id } => Answer::new(
            Code::FailedPrecondition,
            "STEP_IDS_EXHAUSTED",
            format!(
                "execution {execution_id} has a step with the greatest number there is, so none can be assigned: \
                 bring a step_id"
            ),
        ),
        Refusal::DependencyCycle { step_id } => Answer::new(
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
            format!("the dependencies form a cycle through step {step_id}"),
        )
        .field("steps.depends_on"),
        Refusal::ArtifactNotFound { artifact_id } => Answer::new(
            Code::NotFound,
            "ARTIFACT_NOT_FOUND",
            format!("there is no artifact {artifact_id}"),
        )
        .resource("artifact", artifact_id),
        Refusal::ArtifactExists { artifact_id } => Answer::new(
            Code::AlreadyExists,
            "ARTIFACT_ALREADY_EXISTS",
            format!("artifact {artifact_id} already exists with different content"),
        )
        .resource("artifact", artifact_id),
        Refusal::ArtifactWithoutBytes { artifact_id } => Answer::new(
            Code::FailedPrecondition,
            "ARTIFACT_WITHOUT_BYTES",
            format!("artifact {artifact_id} is only a record: this server does not store its bytes"),
        ),
        Refusal::ArtifactBytesLost { artifact_id } => Answer::new(
            Code::DataLoss,
            "ARTIFACT_BYTES_LOST",
            format!("the bytes of artifact {artifact_id} are damaged: they are not those that were stored"),
        ),
        Refusal::ArtifactLimit { field, size, limit } => Answer::new(
            Code::InvalidArgument,
            "ARTIFACT_LIMIT",
            format!("{field}: the execution would have {size}, more than the limit of {limit}"),
        )
        .field(field),
        Refusal::UploadNotFound { upload_id } => Answer::new(
            Code::NotFound,
            "UPLOAD_NOT_FOUND",
            format!("upload {upload_id} does not exist or has expired"),
        )
        .resource("upload", upload_id),
        Refusal::UploadExists { upload_id } => Answer::new(
            Code::AlreadyExists,
            "UPLOAD_ALREADY_EXISTS",
            format!("upload {upload_id} was begun with a different description"),
        )
        .resource("upload", upload_id),
        Refusal::UploadOffset { upload_id, offset, received } => Answer::new(
            Code::OutOfRange,
            "UPLOAD_OFFSET",
            format!(
                "upload {upload_id} cannot continue at byte {offset}: {received} bytes have arrived \
                 (use offset 0 to start over)"
            ),
        ),
        Refusal::UploadTaken { upload_id } => Answer::new(
            Code::Aborted,
            "UPLOAD_TAKEN",
            format!("another connection has taken over upload {upload_id}"),
        ),
        Refusal::TooLarge { field: field @ ("metadata" | "output"), size, limit } => Answer::new(
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
            format!("{field} would have {size} bytes when merged, more than the limit of {limit}"),
        )
        .field(field),
        Refusal::TooLarge { field, size, limit } => Answer::new(
            Code::InvalidArgument,
            "TOO_MANY_STEPS",
            format!("{field}: {size} exceeds the limit of {limit}"),
        )
        .field(field),
        Refusal::ConfigurationNotFound { scope, version } => {
            let (message, name) = match version {
                Some(version) => (
                    format!("{scope} has no configuration version {version}"),
                    format!("{scope}/{version}"),
                ),
                None => (format!("{scope} has no active configuration"), format!("{scope}/active")),
            };
            Answer::new(Code::NotFound, "CONFIGURATION_NOT_FOUND", message)
                .resource("configuration", name)
        }
        Refusal::ConfigurationExists { scope, version } => Answer::new(
            Code::AlreadyExists,
            "CONFIGURATION_ALREADY_EXISTS",
            format!("version {version} of {scope} already exists with different content"),
        )
        .resource("configuration", format!("{scope}/{version}")),
        Refusal::NoPlan { version, why } => Answer::new(
            Code::FailedPrecondition,
            "CONFIGURATION_MAKES_NO_PLAN",
            format!("configuration version {version} cannot be planned: {why}"),
        ),
        Refusal::MetricRequestExists { execution_id, request_id } => Answer::new(
            Code::AlreadyExists,
            "METRIC_REQUEST_ALREADY_EXISTS",
            format!("request {request_id} of execution {execution_id} was already used for different points"),
        )
        .resource("metric_request", format!("{execution_id}/{request_id}")),
        Refusal::KeyNotFound { key_id } => {
            Answer::new(Code::NotFound, "KEY_NOT_FOUND", format!("there is no key {key_id}"))
                .resource("key", key_id)
        }
        Refusal::SubscriptionNotFound { subscription_id } => Answer::new(
            Code::NotFound,
            "SUBSCRIPTION_NOT_FOUND",
            format!("there is no subscription {subscription_id}"),
        )
        .resource("subscription", subscription_id),
        Refusal::StaleSubscription { subscription_id, expected, stored } => Answer::new(
            Code::Aborted,
            "STALE_REVISION",
            format!("subscription {subscription_id} is at revision {stored}, not the expected {expected}"),
        ),
        Refusal::DeliveryNotFound { delivery_id } => Answer::new(
            Code::NotFound,
            "DELIVERY_NOT_FOUND",
            format!("there is no delivery {delivery_id}"),
        )
        .resource("delivery", delivery_id),
        Refusal::RoleForbids => denied(Denied::Role),
        Refusal::ScopeForbids => denied(Denied::Scope),
        Refusal::NeedsPayload | Refusal::NeedsStepCount => {
            Answer::new(Code::Internal, "INTERNAL", "the server failed to process the request")
        }
    }
}

/// The database cannot do it just now.
fn out(outage: Outage) -> Answer {
    let (code, reason, message) = match outage {
        Outage::Away => {
            (Code::Unavailable, "STORE_AWAY", "the database is away; send the same request again")
        }
        Outage::Full => (
            Code::Unavailable,
            "STORE_FULL",
            "the disk of the database is full; send the same request again when there is room",
        ),
        Outage::ReadOnly => (
            Code::Unavailable,
            "STORE_READ_ONLY",
            "the database cannot be written to just now; send the same request again later",
        ),
        Outage::Gone => (
            Code::Unavailable,
            "STORE_GONE",
            "the files of the database were deleted or replaced; nothing is stored until they are back",
        ),
        Outage::Busy => (
            Code::ResourceExhausted,
            "STORE_BUSY",
            "all connections of this server to the database are in use; send the same request again",
        ),
    };
    Answer::new(code, reason, message).retry()
}

/// The status of a call that is not let in.
pub fn of_denied(why: Denied) -> Status {
    status(denied(why))
}

/// Code and reason of a call that is not let in.
pub fn denied_words(why: Denied) -> (Code, &'static str) {
    let answer = denied(why);
    (answer.code, answer.reason)
}

/// Code and reason of a failure.
pub fn words(error: &Error) -> (Code, &'static str) {
    let answer = looked_up(error);
    (answer.code, answer.reason)
}

/// The code of a failure of the store.
pub fn code_of_store(error: &store::Error) -> Code {
    store_failed(error).code
}

fn denied(why: Denied) -> Answer {
    match why {
        Denied::Missing => Answer::new(
            Code::Unauthenticated,
            "CREDENTIAL_MISSING",
            "this server needs a credential: send the header `authorization: Bearer` with a key or token",
        ),
        Denied::Invalid => Answer::new(
            Code::Unauthenticated,
            "CREDENTIAL_INVALID",
            "the credential is not valid on this server",
        ),
        Denied::Expired => {
            Answer::new(Code::Unauthenticated, "CREDENTIAL_EXPIRED", "the credential has expired")
        }
        Denied::Role => Answer::new(
            Code::PermissionDenied,
            "ROLE_FORBIDS",
            "no role of the caller allows this (see AuthService.WhoAmI)",
        ),
        Denied::Scope => Answer::new(
            Code::PermissionDenied,
            "SCOPE_FORBIDS",
            "the caller's role allows this for other apps only (see AuthService.WhoAmI)",
        ),
        Denied::Unavailable => Answer::new(
            Code::Unavailable,
            "AUTH_UNAVAILABLE",
            "credentials cannot be checked just now; send the same request again",
        )
        .retry(),
        Denied::RateLimited { retry_after } => {
            Answer::new(Code::ResourceExhausted, "RATE_LIMITED", "too many calls")
                .retry_in(retry_after)
        }
    }
}

fn unaudited() -> Answer {
    let message = "the call cannot be recorded in the audit log, so nothing was done; send the same request again";
    Answer::new(Code::Unavailable, "AUDIT_UNAVAILABLE", message).retry()
}

fn store_failed(error: &store::Error) -> Answer {
    match error {
        store::Error::Refused(refusal) => refused(refusal),
        store::Error::Unavailable(unavailable) => out(unavailable.outage),
        store::Error::Denied(denial) => {
            let message = format!("{denial}; nothing was applied");
            let answer = Answer::new(Code::FailedPrecondition, "STORE_REFUSED", message);
            let answer = answer.metadata("cause", denial.cause.name());
            let answer = match &denial.collection {
                Some(collection) => answer.metadata("collection", collection),
                None => answer,
            };
            match &denial.cause {
                store::Cause::Index(name) => answer.metadata("index", name),
                store::Cause::Code(code) => answer.metadata("code", code),
                _ => answer,
            }
        }
        store::Error::Unaudited(_) => unaudited(),
        store::Error::Contention => Answer::new(
            Code::Aborted,
            "CONTENTION",
            "other writers kept changing the record; nothing was applied",
        )
        .retry(),
        store::Error::CursorExpired => Answer::new(
            Code::OutOfRange,
            "RESUME_TOKEN_EXPIRED",
            "history no longer covers the resume_token: start again without one",
        ),
        store::Error::BadCursor => Answer::new(
            Code::InvalidArgument,
            "INVALID_TOKEN",
            "resume_token does not belong to this database",
        )
        .field("resume_token"),
        store::Error::NoLog => {
            Answer::new(Code::FailedPrecondition, "WATCH_NEEDS_REPLICA_SET", REPLICA_SET_ADVICE)
        }
        store::Error::Corrupt { collection, id, field } => Answer::new(
            Code::DataLoss,
            "RECORD_UNREADABLE",
            format!("the stored record {id} in {collection} cannot be read: field {field}"),
        ),
        store::Error::Failed(_) => {
            Answer::new(Code::Internal, "INTERNAL", "the server failed to process the request")
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
#[path = "tests/status.rs"]
mod tests;
