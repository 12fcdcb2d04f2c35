//! Every bound of the public API in one place. Units are the end of the name.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Nesting of input, output, metadata and configuration. Decoders of other languages fail soon after.
pub const NESTING_DEPTH: usize = 30;
/// Page size when the request does not say.
pub const PAGE_SIZE_DEFAULT: usize = 50;
/// How far executions are counted when the request does not say.
pub const COUNT_DEFAULT: usize = 10_000;
/// How far executions are counted at most.
pub const COUNT_MOST: usize = 100_000;
/// Shortest and longest heartbeat timeout, in milliseconds.
pub const HEARTBEAT_TIMEOUT_MS: std::ops::RangeInclusive<i64> = 100..=30 * 24 * 3600 * 1000;
/// Earlier tries kept with a step.
pub const ATTEMPTS_KEPT: usize = 20;
/// Length to which the texts of an earlier try's error are cut.
pub const ATTEMPT_ERROR_BYTES: usize = 4 * 1024;
/// Values per list of an `ExecutionFilter`.
pub const FILTER_VALUES: usize = 50;

/// Encoded bytes of a record in a reply or an event, from which on its largest fields are left out: with its frame it is
/// less than what clients take by default.
pub const RECORD_BYTES: usize = 3 * 1024 * 1024;

/// Steps of a configuration that are a graph, and so a plan.
pub const PLANNED_STEPS: usize = 10_000;

/// Points in one request of metrics.
pub const METRIC_POINTS: usize = 10_000;
/// Metrics in one point.
pub const METRICS_PER_POINT: usize = 1000;
/// Points or intervals in one reply, and when the request does not say.
pub const METRIC_PAGE_RECORDS: usize = 10_000;
pub const METRIC_PAGE_DEFAULT: usize = 1000;
/// Names in one query of metrics.
pub const METRIC_NAMES: usize = 50;
/// The `request_id` of a request of metrics.
pub const REQUEST_ID_CHARACTERS: usize = 128;

/// Records that one request may name whose digests are wanted.
pub const DIGEST_KEYS: usize = 1000;

/// What whoever runs a mirror may keep with it: where to go on, and reasons for which records were refused.
pub const MIRROR_TOKEN_BYTES: usize = 64 * 1024;
pub const MIRROR_REASONS: usize = 100;

/// Bytes in one message of an upload.
pub const UPLOAD_CHUNK_BYTES: usize = 4 * 1024 * 1024;

/// Memory that all transfers of artifacts of a server share for what each could do without: parts for S3 that are
/// being filled, and what is read ahead. It is divided first come, first served; without it a part is filled on
/// the disk and nothing is read ahead.
pub const TRANSFER_SPARE_BYTES: usize = 48 * 1024 * 1024;
/// Memory for parts from the disk that a storage is taking, in turn.
pub const TRANSFER_TURN_BYTES: usize = 20 * 1024 * 1024;

/// The bounds an operator may set; each is refused with INVALID_ARGUMENT naming field, size and limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    pub name_characters: usize,
    pub execution_id_characters: usize,
    pub message_characters: usize,
    pub metadata_bytes: usize,
    pub error_message_bytes: usize,
    pub stack_trace_bytes: usize,
    pub payload_bytes: usize,
    pub inline_payload_bytes: usize,
    pub steps_per_execution: usize,
    pub depends_on_ids: usize,
    pub request_bytes: usize,
    pub decoded_bytes: usize,
    pub page_records: usize,
    pub page_bytes: usize,
    pub page_examined_records: usize,
    pub artifact_bytes: usize,
    pub artifacts_per_execution: usize,
    pub artifact_bytes_per_execution: usize,
    /// Of clients; `None` leaves it to the descriptors that the process may have.
    pub connections: Option<usize>,
    /// Bytes of messages of all connections together.
    pub process_bytes: usize,
    /// Calls of one request and one reply that are worked on at a time.
    pub calls: usize,
    #[serde(with = "seconds", rename = "call_seconds")]
    pub call: Duration,
    #[serde(with = "seconds", rename = "upload_idle_seconds")]
    pub upload_idle: Duration,
    #[serde(with = "seconds", rename = "reply_idle_seconds")]
    pub reply_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            name_characters: 256,
            execution_id_characters: 128,
            message_characters: 4096,
            metadata_bytes: 256 * 1024,
            error_message_bytes: 64 * 1024,
            stack_trace_bytes: 256 * 1024,
            payload_bytes: 6 * 1024 * 1024,
            inline_payload_bytes: 1024 * 1024,
            steps_per_execution: 100_000,
            depends_on_ids: 10_000,
            request_bytes: 16 * 1024 * 1024,
            decoded_bytes: 256 * 1024 * 1024,
            page_records: 1000,
            page_bytes: 4 * 1024 * 1024,
            page_examined_records: 20_000,
            artifact_bytes: 5 * 1024 * 1024 * 1024,
            artifacts_per_execution: 10_000,
            artifact_bytes_per_execution: 100 * 1024 * 1024 * 1024,
            connections: None,
            process_bytes: 1024 * 1024 * 1024,
            calls: 4096,
            call: Duration::from_secs(60),
            upload_idle: Duration::from_secs(60),
            reply_idle: Duration::from_secs(60),
        }
    }
}

/// A duration as a number of seconds, whole where it is.
pub mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &Duration, out: S) -> Result<S::Ok, S::Error> {
        if value.subsec_nanos() == 0 {
            out.serialize_u64(value.as_secs())
        } else {
            out.serialize_f64(value.as_secs_f64())
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(from)?).map_err(D::Error::custom)
    }
}
