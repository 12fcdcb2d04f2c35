//! Failures that are found here but said as the gRPC library says its own: `edge_errors` turns both into answers.

use tonic::{Code, Status};

use super::answer::{NAME_BYTES, cut};

/// What the error of a request that was cut off says until it leaves, when `edge_errors` turns it into BROKEN_OFF. Its
/// code must not be CANCELLED, which the library would swallow.
pub const CUT_OFF: (Code, &str) = (Code::Aborted, "the request was cut off before its end");

/// A request that was cut off before its end.
pub fn cut_off() -> Status {
    let (code, message) = CUT_OFF;
    Status::new(code, message)
}

/// A message that would be larger than that when decompressed, in the words of the library.
pub fn unpacks_to_more_than(limit: usize) -> Status {
    let message = format!("Error decompressing: size limit, of {limit} bytes, exceeded");
    Status::resource_exhausted(message)
}

/// A message that cannot be decompressed, in the words of the library.
pub fn not_unpacked() -> Status {
    Status::internal("Error decompressing: it is not what it says")
}

/// Messages that are compressed in a way that nobody here knows.
pub fn unknown_encoding(encoding: &http::HeaderValue) -> Status {
    let encoding = String::from_utf8_lossy(encoding.as_bytes()).into_owned();
    let encoding = cut(encoding, NAME_BYTES);
    let mut status = Status::unimplemented(format!(
        "messages cannot be compressed by {encoding:?}: gzip and zstd are known, and identity"
    ));
    let known = tonic::metadata::MetadataValue::from_static("identity,gzip,zstd");
    status.metadata_mut().insert("grpc-accept-encoding", known);
    status
}

/// A method that this version does not have, as the library says it.
pub fn unknown_method() -> Status {
    Status::unimplemented("")
}

/// A message that is no protobuf, in the words of the library, which `edge_errors` turns into an answer.
pub fn undecodable(error: &prost::DecodeError) -> Status {
    Status::internal(error.to_string())
}
