//! The table of failures against every one of them.

use tonic_types::StatusExt as _;

use super::*;
use crate::app::Violations;

#[test]
fn every_failure_has_its_code_and_reason() {
    let id = || "e".to_owned();
    let out = |outage| Error::Store(store::Error::out(outage, "secret mongodb://user:pass@host"));
    let table: Vec<(Error, Code, &str)> = vec![
        (Error::invalid("f", "is bad"), Code::InvalidArgument, "INVALID_ARGUMENT"),
        (Error::MessageTooLarge { bytes: 2, limit: 1 }, Code::InvalidArgument, "MESSAGE_TOO_LARGE"),
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
            Error::Refused(Refusal::DuplicateId { execution_id: id(), step: None }),
            Code::FailedPrecondition,
            "DUPLICATE_ID",
        ),
        (
            Error::Refused(Refusal::MirrorNotFound { name: id() }),
            Code::NotFound,
            "MIRROR_NOT_FOUND",
        ),
        (
            Error::Refused(Refusal::MirrorTakenOver { name: id() }),
            Code::Aborted,
            "MIRROR_TAKEN_OVER",
        ),
        (
            Error::Refused(Refusal::MirrorFinished { name: id() }),
            Code::FailedPrecondition,
            "MIRROR_FINISHED",
        ),
        (
            Error::Refused(Refusal::MirrorNotReady { name: id(), why: id() }),
            Code::FailedPrecondition,
            "MIRROR_NOT_READY",
        ),
        (
            Error::Refused(Refusal::MirrorSourceDiffers { name: id(), stored: id() }),
            Code::FailedPrecondition,
            "MIRROR_SOURCE_DIFFERS",
        ),
        (
            Error::Refused(Refusal::MirrorConflict { what: id() }),
            Code::FailedPrecondition,
            "MIRROR_CONFLICT",
        ),
        (
            Error::Refused(Refusal::StaleRevision { execution_id: id(), expected: 1, stored: 2 }),
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
            Error::Refused(Refusal::UnknownDependency { step_id: 1, depends_on: id() }),
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
        ),
        (
            Error::Refused(Refusal::UnknownParent { step_id: 1, parent: id() }),
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
        ),
        (
            Error::Refused(Refusal::StepIdsExhausted { execution_id: id() }),
            Code::FailedPrecondition,
            "STEP_IDS_EXHAUSTED",
        ),
        (Error::Refused(Refusal::NeedsStepCount), Code::Internal, "INTERNAL"),
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
            Error::Refused(Refusal::MetricRequestExists { execution_id: id(), request_id: id() }),
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
        (Error::Refused(Refusal::UploadTaken { upload_id: id() }), Code::Aborted, "UPLOAD_TAKEN"),
        (Error::Refused(Refusal::KeyNotFound { key_id: id() }), Code::NotFound, "KEY_NOT_FOUND"),
        (
            Error::Refused(Refusal::SubscriptionNotFound { subscription_id: id() }),
            Code::NotFound,
            "SUBSCRIPTION_NOT_FOUND",
        ),
        (
            Error::Refused(Refusal::StaleSubscription {
                subscription_id: id(),
                expected: 1,
                stored: 2,
            }),
            Code::Aborted,
            "STALE_REVISION",
        ),
        (
            Error::Refused(Refusal::DeliveryNotFound { delivery_id: id() }),
            Code::NotFound,
            "DELIVERY_NOT_FOUND",
        ),
        (Error::Refused(Refusal::RoleForbids), Code::PermissionDenied, "ROLE_FORBIDS"),
        (Error::Refused(Refusal::ScopeForbids), Code::PermissionDenied, "SCOPE_FORBIDS"),
        (Error::BrokenOff, Code::Cancelled, "BROKEN_OFF"),
        (Error::OverBudget, Code::ResourceExhausted, "OVER_BUDGET"),
        (Error::TooManyCalls, Code::ResourceExhausted, "TOO_MANY_CALLS"),
        (Error::DeadlineExceeded, Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        (Error::StandsStill, Code::DeadlineExceeded, "STREAM_STANDS_STILL"),
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
        (Error::Store(store::Error::away()), Code::Unavailable, "STORE_AWAY"),
        (out(Outage::Away), Code::Unavailable, "STORE_AWAY"),
        (out(Outage::Full), Code::Unavailable, "STORE_FULL"),
        (out(Outage::ReadOnly), Code::Unavailable, "STORE_READ_ONLY"),
        (out(Outage::Gone), Code::Unavailable, "STORE_GONE"),
        (out(Outage::Busy), Code::ResourceExhausted, "STORE_BUSY"),
        (
            Error::Store(
                store::Denial::new(store::Cause::Index("by_name".to_owned()), "executions").into(),
            ),
            Code::FailedPrecondition,
            "STORE_REFUSED",
        ),
        (Error::Unaudited, Code::Unavailable, "AUDIT_UNAVAILABLE"),
        (Error::Store(store::Error::Contention), Code::Aborted, "CONTENTION"),
        (Error::Store(store::Error::CursorExpired), Code::OutOfRange, "RESUME_TOKEN_EXPIRED"),
        (Error::Store(store::Error::BadCursor), Code::InvalidArgument, "INVALID_TOKEN"),
        (Error::Store(store::Error::NoLog), Code::FailedPrecondition, "WATCH_NEEDS_REPLICA_SET"),
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
