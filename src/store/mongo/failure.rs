//! The one place that judges the driver's errors. Their texts name hosts and topologies, so only codes and the
//! server's own words pass.

use mongodb::error::{Error as DriverError, ErrorKind, RETRYABLE_WRITE_ERROR, WriteFailure};

use crate::store::Error;

/// Codes of a server that cannot answer just now: stepping down, starting, shutting down, out of time.
const PASSING: [i32; 22] = [
    6, 7, 43, 50, 64, 79, 89, 91, 112, 134, 175, 189, 225, 237, 262, 9001, 10107, 11600, 11601,
    11602, 13435, 13436,
];
/// A key that a unique index holds already.
pub(super) const DUPLICATE_KEY: i32 = 11000;
/// The write is there, and not yet as safe as was asked for.
pub(super) const CONCERN_NOT_MET: i32 = 64;
/// History no longer covers a resume token, or its stream cannot be continued.
const HISTORY_LOST: [i32; 3] = [286, 280, 222];
/// The bytes are no resume token, or one of another place.
const BAD_TOKEN: [i32; 5] = [260, 9, 40647, 50811, 40649];
/// Change streams exist only on replica sets.
const NO_REPLICA_SET: [i32; 1] = [40573];

/// A driver's error without anything that tells where the database is.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
struct Told {
    what: String,
}

fn told(what: impl Into<String>) -> Told {
    Told { what: what.into() }
}

/// The code of a failed command, whatever part of it failed.
pub(super) fn code(error: &DriverError) -> Option<i32> {
    match error.kind.as_ref() {
        ErrorKind::Command(error) => Some(error.code),
        ErrorKind::Write(WriteFailure::WriteError(error)) => Some(error.code),
        ErrorKind::Write(WriteFailure::WriteConcernError(error)) => Some(error.code),
        ErrorKind::InsertMany(error) => error
            .write_concern_error
            .as_ref()
            .map(|error| error.code)
            .or_else(|| error.write_errors.as_ref()?.first().map(|error| error.code)),
        _ => None,
    }
}

/// Whether a code says that the same command may succeed soon.
pub(super) fn is_passing_code(code: i32) -> bool {
    PASSING.contains(&code)
}

/// Whether the database is away rather than unwilling.
pub(super) fn is_passing(error: &DriverError) -> bool {
    if error.contains_label(RETRYABLE_WRITE_ERROR) {
        return true;
    }
    match error.kind.as_ref() {
        ErrorKind::Io(_)
        | ErrorKind::ConnectionPoolCleared { .. }
        | ErrorKind::ServerSelection { .. }
        | ErrorKind::DnsResolve { .. }
        | ErrorKind::Authentication { .. }
        | ErrorKind::InvalidResponse { .. }
        | ErrorKind::SessionsNotSupported
        | ErrorKind::Shutdown => true,
        _ => code(error).is_some_and(is_passing_code),
    }
}

fn describe(error: &DriverError) -> Told {
    match error.kind.as_ref() {
        ErrorKind::Command(error) => {
            told(format!("{} {}: {}", error.code, error.code_name, error.message))
        }
        ErrorKind::Io(error) => told(format!("connection failed: {:?}", error.kind())),
        ErrorKind::ConnectionPoolCleared { .. } => told("connection failed: pool cleared"),
        ErrorKind::ServerSelection { .. } => told("no server can be reached"),
        ErrorKind::DnsResolve { .. } => told("the name of the database host cannot be resolved"),
        ErrorKind::Authentication { .. } => told("authentication failed"),
        ErrorKind::InvalidArgument { message, .. } => told(format!("invalid argument: {message}")),
        ErrorKind::InvalidResponse { .. } => told("the server's answer cannot be read"),
        ErrorKind::Bson(_) => told("a document cannot be read"),
        _ => match code(error) {
            Some(code) => told(format!("failed with code {code}")),
            None => told("the driver failed"),
        },
    }
}

/// The error for the log.
pub(super) fn words(error: &DriverError) -> String {
    describe(error).what
}

/// What a failed call of the driver means to the callers of a store.
pub(super) fn error(error: DriverError) -> Error {
    if is_passing(&error) {
        Error::unavailable(describe(&error))
    } else {
        Error::failed(describe(&error))
    }
}

/// The same for a change stream.
pub(super) fn stream_error(error: DriverError) -> Error {
    match code(&error) {
        Some(code) if HISTORY_LOST.contains(&code) => Error::CursorExpired,
        Some(code) if BAD_TOKEN.contains(&code) => Error::BadCursor,
        Some(code) if NO_REPLICA_SET.contains(&code) => Error::NoLog,
        _ => self::error(error),
    }
}

/// A failure of a single statement of a command.
pub(super) fn statement(code: i32) -> Error {
    if is_passing_code(code) {
        Error::unavailable(told(format!("failed with code {code}")))
    } else {
        Error::failed(told(format!("refused by the database with code {code}")))
    }
}

/// The database did not answer in time.
pub(super) fn timeout() -> Error {
    Error::unavailable(told("no answer in time"))
}

/// A replica set's answer does not say where in its log the write is.
pub(super) fn no_op_time() -> Error {
    Error::unavailable(told("the server's answer lacks opTime"))
}

/// Another primary was elected between two writes that belong together.
pub(super) fn elected() -> Error {
    Error::unavailable(told("another primary was elected"))
}

/// Nothing could be asked yet.
pub(super) fn away() -> Error {
    Error::unavailable(told("not connected yet"))
}
