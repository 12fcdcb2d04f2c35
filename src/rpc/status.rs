//! The one table from failures to gRPC codes and `google.rpc` details. Nothing else makes a Status.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::app::{Error, Violations};
use crate::blobs;
use crate::domain::{MetricCounts, Refusal};
use crate::store;

/// Domain of every ErrorInfo.
pub const DOMAIN: &str = "stepwell";
/// What the trailers of an answer may take, as HTTP/2 counts them: names, values and 32 bytes each. Clients of some
/// languages accept 8 KiB of headers.
pub const TRAILER_BYTES: usize = 7 * 1024;
/// Of that, what is left to headers that are not about the error: content type, date, request id and the like, and
/// the names of those that are.
const OTHER_HEADER_BYTES: usize = 768;
/// Bytes of a message, of a description, and of a name. What is longer was made so by a client, and is cut.
const MESSAGE_BYTES: usize = 512;
const NAME_BYTES: usize = 256;
/// When to come back after UNAVAILABLE or RESOURCE_EXHAUSTED.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// How to give a standalone mongod a log.
const REPLICA_SET_ADVICE: &str = "watching needs a replica set, and this mongod is standalone: start it with \
     --replSet rs0 and run rs.initiate() once to make it a one-node replica set";

struct Answer {
    code: Code,
    reason: &'static str,
    message: String,
    details: ErrorDetails,
    /// Of a request that breaks rules; they join the details as far as there is room.
    violations: Option<Violations>,
    /// Of the ErrorInfo.
    metadata: HashMap<String, String>,
}

impl Answer {
    fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        let (message, details) = (message.into(), ErrorDetails::new());
        Answer { code, reason, message, details, metadata: HashMap::new(), violations: None }
    }

    fn metadata(mut self, name: &str, value: impl ToString) -> Self {
        self.metadata.insert(name.to_owned(), value.to_string());
        self
    }

    fn resource(mut self, kind: &str, name: impl Into<String>) -> Self {
        let name = cut(name.into(), NAME_BYTES);
        let description = cut(self.message.clone(), MESSAGE_BYTES);
        self.details.set_resource_info(kind, name, "", description);
        self
    }

    fn retry(mut self) -> Self {
        self.details.set_retry_info(Some(RETRY_AFTER));
        self
    }

    fn field(mut self, field: &str) -> Self {
        let description = cut(self.message.clone(), MESSAGE_BYTES);
        self.details.add_bad_request_violation(field, description);
        self
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

fn status(answer: Answer) -> Status {
    let Answer { code, reason, message, mut details, mut metadata, violations } = answer;
    let message = cut(message, MESSAGE_BYTES);
    if let Some(violations) = &violations {
        metadata.insert("violations".to_owned(), violations.count().to_string());
    }
    details.set_error_info(reason, DOMAIN, metadata);
    let Some(violations) = violations else {
        return Status::with_error_details(code, message, details);
    };
    // As many violations as there is room for.
    details.set_bad_request(Vec::new());
    let bare = Status::with_error_details(code, message.as_str(), details.clone());
    let room = (TRAILER_BYTES - OTHER_HEADER_BYTES).saturating_sub(percent_encoded(&message));
    // Four characters of base64 for three bytes, and a few bytes for the lengths of what contains the violations.
    let room = (room / 4 * 3).saturating_sub(bare.details().len() + 16);
    let mut taken = 0;
    for violation in violations.listed() {
        let field = cut(violation.field.clone(), NAME_BYTES);
        let description = cut(violation.description.clone(), MESSAGE_BYTES);
        // Two strings in a message, each of the three with a tag and two bytes of length at most.
        taken += field.len() + description.len() + 9;
        if taken > room {
            break;
        }
        details.add_bad_request_violation(field, description);
    }
    Status::with_error_details(code, message, details)
}

/// The text, or its beginning where it is longer than that.
fn cut(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        let mut end = bytes - '…'.len_utf8();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Length of a message in a header, where all but plain ASCII takes three characters a byte.
fn percent_encoded(message: &str) -> usize {
    let quote = 0x22;
    let plain =
        |byte: &u8| byte.is_ascii_graphic() && *byte != quote && !b"#%<>`?{}".contains(byte);
    message.as_bytes().iter().map(|byte| if plain(byte) { 1 } else { 3 }).sum()
}

/// An error of the gRPC library's own that does not fit into `TRAILER_BYTES`, made to.
pub fn bounded(status: &Status) -> Status {
    Status::new(status.code(), cut(status.message().to_owned(), MESSAGE_BYTES))
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

/// What the error of a request that was cut off says until it leaves, when `edge_errors` turns it into BROKEN_OFF. Its
/// code must not be CANCELLED, which the library would swallow.
pub const CUT_OFF: (Code, &str) = (Code::Aborted, "the request was cut off before its end");

/// A request that was cut off before its end.
pub fn cut_off() -> Status {
    let (code, message) = CUT_OFF;
    Status::new(code, message)
}

/// A method that this version does not have, as the library says it.
pub fn unknown_method() -> Status {
    Status::unimplemented("")
}

/// A message that is no protobuf, in the words of the library, which `edge_errors` turns into an answer.
pub fn undecodable(error: &prost::DecodeError) -> Status {
    Status::internal(error.to_string())
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
            Answer { violations: Some(violations.clone()), ..answer }
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
        Refusal::NeedsPayload => {
            Answer::new(Code::Internal, "INTERNAL", "the server failed to process the request")
        }
    }
}

fn store_failed(error: &store::Error) -> Answer {
    match error {
        store::Error::Refused(refusal) => refused(refusal),
        store::Error::Unavailable(_) => Answer::new(
            Code::Unavailable,
            "STORE_UNAVAILABLE",
            "the database is unavailable; send the same request again",
        )
        .retry(),
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
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_its_code_and_reason() {
        let id = || "e".to_owned();
        let table: Vec<(Error, Code, &str)> = vec![
            (Error::invalid("f", "is bad"), Code::InvalidArgument, "INVALID_ARGUMENT"),
            (
                Error::MessageTooLarge { bytes: 2, limit: 1 },
                Code::InvalidArgument,
                "MESSAGE_TOO_LARGE",
            ),
            (Error::BadToken("page_token"), Code::InvalidArgument, "INVALID_TOKEN"),
            (Error::QueueFull, Code::ResourceExhausted, "QUEUE_FULL"),
            (Error::ShuttingDown, Code::Unavailable, "SHUTTING_DOWN"),
            (Error::RetentionRunning, Code::Aborted, "RETENTION_RUNNING"),
            (Error::SearchDisabled, Code::FailedPrecondition, "SEARCH_DISABLED"),
            (
                Error::Refused(Refusal::ExecutionNotFound { execution_id: id() }),
                Code::NotFound,
                "EXECUTION_NOT_FOUND",
            ),
            (
                Error::Refused(Refusal::StepNotFound { execution_id: id(), step: id() }),
                Code::NotFound,
                "STEP_NOT_FOUND",
            ),
            (
                Error::Refused(Refusal::ExecutionExists { execution_id: id() }),
                Code::AlreadyExists,
                "EXECUTION_ALREADY_EXISTS",
            ),
            (
                Error::Refused(Refusal::StepExists { execution_id: id(), step: id() }),
                Code::AlreadyExists,
                "STEP_ALREADY_EXISTS",
            ),
            (
                Error::Refused(Refusal::Status { what: id(), from: "a", to: "b", why: "c" }),
                Code::FailedPrecondition,
                "WRONG_STATUS",
            ),
            (
                Error::Refused(Refusal::StaleRevision {
                    execution_id: id(),
                    expected: 1,
                    stored: 2,
                }),
                Code::Aborted,
                "STALE_REVISION",
            ),
            (
                Error::Refused(Refusal::StillRunning { execution_id: id() }),
                Code::FailedPrecondition,
                "EXECUTION_RUNNING",
            ),
            (
                Error::Refused(Refusal::BeingDeleted { execution_id: id() }),
                Code::Aborted,
                "EXECUTION_BEING_DELETED",
            ),
            (
                Error::Refused(Refusal::UnknownDependency { step_id: 1, depends_on: 2 }),
                Code::InvalidArgument,
                "INVALID_ARGUMENT",
            ),
            (
                Error::Refused(Refusal::DependencyCycle { step_id: 1 }),
                Code::InvalidArgument,
                "INVALID_ARGUMENT",
            ),
            (
                Error::Refused(Refusal::TooLarge { field: "steps", size: 2, limit: 1 }),
                Code::InvalidArgument,
                "TOO_MANY_STEPS",
            ),
            (
                Error::Refused(Refusal::TooLarge { field: "metadata", size: 2, limit: 1 }),
                Code::InvalidArgument,
                "INVALID_ARGUMENT",
            ),
            (
                Error::Refused(Refusal::ConfigurationNotFound { scope: id(), version: None }),
                Code::NotFound,
                "CONFIGURATION_NOT_FOUND",
            ),
            (
                Error::Refused(Refusal::ConfigurationExists { scope: id(), version: id() }),
                Code::AlreadyExists,
                "CONFIGURATION_ALREADY_EXISTS",
            ),
            (
                Error::Refused(Refusal::NoPlan { version: id(), why: id() }),
                Code::FailedPrecondition,
                "CONFIGURATION_MAKES_NO_PLAN",
            ),
            (
                Error::Refused(Refusal::MetricRequestExists {
                    execution_id: id(),
                    request_id: id(),
                }),
                Code::AlreadyExists,
                "METRIC_REQUEST_ALREADY_EXISTS",
            ),
            (
                Error::Refused(Refusal::ArtifactNotFound { artifact_id: id() }),
                Code::NotFound,
                "ARTIFACT_NOT_FOUND",
            ),
            (
                Error::Refused(Refusal::ArtifactExists { artifact_id: id() }),
                Code::AlreadyExists,
                "ARTIFACT_ALREADY_EXISTS",
            ),
            (
                Error::Refused(Refusal::ArtifactWithoutBytes { artifact_id: id() }),
                Code::FailedPrecondition,
                "ARTIFACT_WITHOUT_BYTES",
            ),
            (
                Error::Refused(Refusal::ArtifactBytesLost { artifact_id: id() }),
                Code::DataLoss,
                "ARTIFACT_BYTES_LOST",
            ),
            (
                Error::Refused(Refusal::ArtifactLimit { field: "artifacts", size: 2, limit: 1 }),
                Code::InvalidArgument,
                "ARTIFACT_LIMIT",
            ),
            (
                Error::Refused(Refusal::UploadNotFound { upload_id: id() }),
                Code::NotFound,
                "UPLOAD_NOT_FOUND",
            ),
            (
                Error::Refused(Refusal::UploadExists { upload_id: id() }),
                Code::AlreadyExists,
                "UPLOAD_ALREADY_EXISTS",
            ),
            (
                Error::Refused(Refusal::UploadOffset { upload_id: id(), offset: 2, received: 1 }),
                Code::OutOfRange,
                "UPLOAD_OFFSET",
            ),
            (
                Error::Refused(Refusal::UploadTaken { upload_id: id() }),
                Code::Aborted,
                "UPLOAD_TAKEN",
            ),
            (Error::BrokenOff, Code::Cancelled, "BROKEN_OFF"),
            (Error::EarlierWriteFailed { failed: 2 }, Code::Aborted, "EARLIER_WRITE_FAILED"),
            (Error::TooManyFailed { limit: 2 }, Code::Unavailable, "TOO_MANY_WRITES_FAILED"),
            (
                Error::Bytes(blobs::Error::Unavailable("secret mongodb://user:pass@host".into())),
                Code::Unavailable,
                "STORAGE_UNAVAILABLE",
            ),
            (
                Error::Bytes(blobs::Error::Failed("secret mongodb://user:pass@host".into())),
                Code::Internal,
                "INTERNAL",
            ),
            (Error::Refused(Refusal::NeedsPayload), Code::Internal, "INTERNAL"),
            (Error::Store(store::Error::Unavailable(None)), Code::Unavailable, "STORE_UNAVAILABLE"),
            (Error::Store(store::Error::Contention), Code::Aborted, "CONTENTION"),
            (Error::Store(store::Error::CursorExpired), Code::OutOfRange, "RESUME_TOKEN_EXPIRED"),
            (Error::Store(store::Error::BadCursor), Code::InvalidArgument, "INVALID_TOKEN"),
            (
                Error::Store(store::Error::NoLog),
                Code::FailedPrecondition,
                "WATCH_NEEDS_REPLICA_SET",
            ),
            (
                Error::Store(store::Error::Corrupt { collection: "c", id: id(), field: "f" }),
                Code::DataLoss,
                "RECORD_UNREADABLE",
            ),
            (
                Error::Store(store::Error::failed("secret mongodb://user:pass@host")),
                Code::Internal,
                "INTERNAL",
            ),
        ];
        for (error, code, reason) in table {
            let status = of(&error);
            assert_eq!(status.code(), code, "{error:?}");
            let details = status.get_error_details();
            let info = details.error_info().expect("an ErrorInfo");
            assert_eq!((info.domain.as_str(), info.reason.as_str()), (DOMAIN, reason));
            assert!(!status.message().contains("mongodb://"), "{}", status.message());
            let retry = matches!(code, Code::Unavailable | Code::ResourceExhausted);
            assert!(!retry || details.retry_info().is_some(), "{error:?}");
            assert_eq!(details.retry_info().is_some(), error.is_for_now(), "{error:?}");
            assert!(code != Code::NotFound || details.resource_info().is_some(), "{error:?}");
        }
    }

    /// Bytes of the headers, as HTTP/2 counts them.
    fn trailer_bytes(status: &Status) -> usize {
        let mut headers = http::HeaderMap::new();
        status.add_header(&mut headers).expect("no metadata");
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
    }

    #[test]
    fn no_error_has_more_trailers_than_clients_take() {
        for text in ["x", "é", "\"", "𝄞"].map(|text| text.repeat(4000)) {
            let mut violations = Violations::default();
            for number in 0..1000 {
                violations.add(&format!("steps[{number}].{text}"), text.clone());
            }
            let id = || text.clone();
            for error in [
                Error::Invalid(violations),
                Error::invalid("f", id()),
                Refusal::ExecutionNotFound { execution_id: id() }.into(),
                Refusal::StepNotFound { execution_id: id(), step: id() }.into(),
                Refusal::StepExists { execution_id: id(), step: id() }.into(),
                Refusal::ConfigurationExists { scope: id(), version: id() }.into(),
                Refusal::MetricRequestExists { execution_id: id(), request_id: id() }.into(),
                Refusal::UploadOffset { upload_id: id(), offset: 1, received: 0 }.into(),
                Refusal::NoPlan { version: id(), why: id() }.into(),
            ] {
                let bytes = trailer_bytes(&of(&error));
                assert!(bytes <= TRAILER_BYTES - 512, "{bytes} bytes of {}", of(&error).code());
            }
        }
        let mut violations = Violations::default();
        for number in 0..150 {
            violations.add(&format!("steps[{number}].step_name"), "is required");
        }
        let status = of(&Error::Invalid(violations));
        let details = status.get_error_details();
        assert_eq!(details.error_info().expect("ErrorInfo").metadata["violations"], "150");
        assert_eq!(details.bad_request().expect("BadRequest").field_violations.len(), 30);
    }
}
