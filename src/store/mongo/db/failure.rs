//! The one place that judges the driver's errors. What they say goes along as the source of a store's error: it reaches
//! the log and no client. Credentials and the values of documents are left out of it.

use mongodb::error::{
    Error as DriverError, ErrorKind, RETRYABLE_WRITE_ERROR, TRANSIENT_TRANSACTION_ERROR,
    UNKNOWN_TRANSACTION_COMMIT_RESULT, WriteFailure,
};

use crate::store::Error;

/// Codes of a server that cannot answer just now: stepping down, starting, shutting down, out of time.
const PASSING: [i32; 22] = [
    6, 7, 43, 50, 64, 79, 89, 91, 112, 134, 175, 189, 225, 237, 262, 9001, 10107, 11600, 11601,
    11602, 13435, 13436,
];
/// A lock that another transaction has, a document that it changed, and a transaction that was ended because of that.
const CONFLICTS: [i32; 3] = [24, 112, 251];
/// A key that a unique index holds already.
pub const DUPLICATE_KEY: i32 = 11000;
/// The write is there, and not yet as safe as was asked for.
pub const CONCERN_NOT_MET: i32 = 64;
/// History no longer covers a resume token, or its stream cannot be continued.
const HISTORY_LOST: [i32; 3] = [286, 280, 222];
/// The bytes are no resume token, or one of another place.
const BAD_TOKEN: [i32; 5] = [260, 9, 40647, 50811, 40649];
/// Change streams exist only on replica sets.
const NO_REPLICA_SET: [i32; 1] = [40573];

/// What is told of a driver's error: for the log, never for a client.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
struct Told {
    what: String,
}

fn told(what: impl Into<String>) -> Told {
    Told { what: what.into() }
}

/// The code of a failed command, whatever part of it failed.
pub fn code(error: &DriverError) -> Option<i32> {
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
pub fn is_passing_code(code: i32) -> bool {
    PASSING.contains(&code)
}

/// Whether the database is away rather than unwilling.
pub fn is_passing(error: &DriverError) -> bool {
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

/// What went wrong, without the values that a document or a key had.
fn describe(error: &DriverError) -> Told {
    match error.kind.as_ref() {
        ErrorKind::Command(error) => {
            told(format!("{} {}: {}", error.code, error.code_name, without_keys(&error.message)))
        }
        ErrorKind::Write(WriteFailure::WriteError(error)) => {
            told(format!("{}: {}", error.code, without_keys(&error.message)))
        }
        ErrorKind::Write(WriteFailure::WriteConcernError(error)) => {
            told(format!("{} {}: {}", error.code, error.code_name, error.message))
        }
        ErrorKind::InsertMany(error) => {
            let refused = error.write_errors.iter().flatten().next();
            let refused = refused.map(|error| (error.code, error.message.as_str()));
            let unsafe_yet = error.write_concern_error.as_ref();
            let unsafe_yet = unsafe_yet.map(|error| (error.code, error.message.as_str()));
            match refused.or(unsafe_yet) {
                Some((code, message)) => told(format!("{code}: {}", without_keys(message))),
                None => told("an insert failed"),
            }
        }
        ErrorKind::Io(error) => told(format!("connection failed: {error}")),
        // Where a connection string is quoted, a password is.
        ErrorKind::Authentication { .. } => told("authentication failed"),
        ErrorKind::Bson(_) => told("a document cannot be read"),
        kind => told(kind.to_string()),
    }
}

/// The server quotes the key that was there already.
fn without_keys(message: &str) -> &str {
    message.split(" dup key").next().unwrap_or(message)
}

/// The error for the log.
pub fn words(error: &DriverError) -> String {
    describe(error).what
}

/// What a failed call of the driver means to the callers of a store.
pub fn error(error: DriverError) -> Error {
    if is_passing(&error) {
        Error::unavailable(describe(&error))
    } else {
        Error::failed(describe(&error))
    }
}

/// The same for a change stream.
pub fn stream_error(error: DriverError) -> Error {
    match code(&error) {
        Some(code) if HISTORY_LOST.contains(&code) => Error::CursorExpired,
        Some(code) if BAD_TOKEN.contains(&code) => Error::BadCursor,
        Some(code) if NO_REPLICA_SET.contains(&code) => Error::NoLog,
        _ => self::error(error),
    }
}

/// A failure of a single statement of a command.
pub fn statement(code: i32) -> Error {
    if is_passing_code(code) {
        Error::unavailable(told(format!("failed with code {code}")))
    } else {
        Error::failed(told(format!("refused by the database with code {code}")))
    }
}

/// The database did not answer in time.
pub fn timeout() -> Error {
    Error::unavailable(told("no answer in time"))
}

/// A replica set's answer does not say where in its log the write is.
pub fn no_op_time() -> Error {
    Error::unavailable(told("the server's answer lacks opTime"))
}

/// Another primary was elected between two writes that belong together.
pub fn elected() -> Error {
    Error::unavailable(told("another primary was elected"))
}

/// Nothing could be asked yet.
pub fn away() -> Error {
    Error::unavailable(told("not connected yet"))
}

/// Whether a transaction that failed so was undone as a whole, and may be tried again from its start.
pub fn is_transient(error: &DriverError) -> bool {
    error.contains_label(TRANSIENT_TRANSACTION_ERROR)
}

/// Whether other writers were in its way.
pub(super) fn is_conflict(error: &DriverError) -> bool {
    code(error).is_some_and(|code| CONFLICTS.contains(&code))
}

/// Whether this is a commit of which nobody knows whether it took place. It may be sent again.
pub fn is_unknown_commit(error: &DriverError) -> bool {
    error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT)
}

/// A failure told once more, for another of the writes that it struck.
pub fn again(error: &Error) -> Error {
    let source = std::error::Error::source(error).map(ToString::to_string);
    match error {
        Error::Unavailable(_) => Error::unavailable(told(source.unwrap_or_default())),
        Error::Failed(_) => Error::failed(told(source.unwrap_or_default())),
        other => Error::failed(told(other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_learns_why_and_keys_are_left_out() {
        let why = DriverError::custom("the session was pooled twice".to_owned());
        assert!(words(&why).contains("the session was pooled twice"), "{}", words(&why));
        let Error::Failed(source) = error(why) else { panic!("judged as passing") };
        assert!(source.to_string().contains("the session was pooled twice"));
        let refused = "E11000 duplicate key error index: a_1 dup key: { a: \"secret\" }";
        assert_eq!(without_keys(refused), "E11000 duplicate key error index: a_1");
    }

    #[test]
    fn a_failure_that_strikes_several_tells_each_why() {
        let error = again(&Error::unavailable("the disk is gone"));
        assert!(
            matches!(&error, Error::Unavailable(Some(source)) if source.to_string() == "the disk is gone")
        );
        assert!(matches!(again(&Error::Contention), Error::Failed(_)));
    }
}
