//! The one place that judges the driver's errors. What they say goes along as the source of a store's error: it reaches
//! the log and no client. Credentials and the values of documents are left out of it.

use bson::Document;
use mongodb::error::{
    Error as DriverError, ErrorKind, RETRYABLE_WRITE_ERROR, TRANSIENT_TRANSACTION_ERROR,
    UNKNOWN_TRANSACTION_COMMIT_RESULT, WriteFailure,
};

use super::values::integer_of;
use crate::store::{Cause, Denial, Error, Outage, Unavailable};

/// Codes of a server that cannot answer just now: stepping down, starting, shutting down, out of time.
const PASSING: [i32; 18] =
    [6, 7, 43, 50, 64, 79, 89, 91, 112, 134, 175, 225, 237, 262, 9001, 11600, 11601, 13435];
/// The disk of the database is full.
const FULL: i32 = 14031;
/// The deployment's own quota, of hosted ones, in words.
const HOSTED: i32 = 8000;
const QUOTA: &str = "space quota";
/// Writes are blocked by an operator.
const WRITES_BLOCKED: i32 = 371;
/// A server that is no primary, or not any more: there may be another one soon, or none.
const NOT_WRITABLE: [i32; 5] = [189, 10058, 10107, 11602, 13436];
/// A lock that another transaction has, a document that it changed, and a transaction that was ended because of that.
const CONFLICTS: [i32; 3] = [24, 112, 251];
/// A key that a unique index holds already.
pub const DUPLICATE_KEY: i32 = 11000;
/// The write is there, and not yet as safe as was asked for.
pub const CONCERN_NOT_MET: i32 = 64;
/// The validator of a collection does not accept a document.
const VALIDATOR: i32 = 121;
/// The user may not do that; so says the database, and so says a hosted one.
const NO_PRIVILEGE: [i32; 2] = [13, HOSTED];
/// What is about a collection as another program made it: a view, a capped one, a time series, an index that cannot
/// take the value of a field.
const OF_COLLECTION: [i32; 9] = [166, 171, 10003, 10334, 16755, 17261, 17262, 17280, 17419];
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
    outage_of(code, "").is_some()
}

/// What a code says of the database; `None`: nothing, the command itself is refused.
fn outage_of(code: i32, message: &str) -> Option<Outage> {
    match code {
        FULL => Some(Outage::Full),
        HOSTED if message.contains(QUOTA) => Some(Outage::Full),
        WRITES_BLOCKED => Some(Outage::ReadOnly),
        code if NOT_WRITABLE.contains(&code) => Some(Outage::ReadOnly),
        code if PASSING.contains(&code) => Some(Outage::Away),
        _ => None,
    }
}

/// The code of a failed command and what the server said.
fn said(error: &DriverError) -> Option<(i32, &str)> {
    let message = match error.kind.as_ref() {
        ErrorKind::Command(error) => &error.message,
        ErrorKind::Write(WriteFailure::WriteError(error)) => &error.message,
        ErrorKind::Write(WriteFailure::WriteConcernError(error)) => &error.message,
        _ => "",
    };
    Some((code(error)?, message))
}

/// Whether the database is away rather than unwilling.
pub fn is_passing(error: &DriverError) -> bool {
    outage(error).is_some()
}

/// Why the database cannot do it just now, if that is what the error says.
fn outage(error: &DriverError) -> Option<Outage> {
    let said = said(error).and_then(|(code, message)| outage_of(code, message));
    if said.is_some() {
        return said;
    }
    let is_away = error.contains_label(RETRYABLE_WRITE_ERROR)
        || matches!(
            error.kind.as_ref(),
            ErrorKind::Io(_)
                | ErrorKind::ConnectionPoolCleared { .. }
                | ErrorKind::ServerSelection { .. }
                | ErrorKind::DnsResolve { .. }
                | ErrorKind::Authentication { .. }
                | ErrorKind::InvalidResponse { .. }
                | ErrorKind::SessionsNotSupported
                | ErrorKind::Shutdown
        );
    is_away.then_some(Outage::Away)
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

/// The index whose key a write would have doubled, as the server's words name it.
pub fn doubled_index(message: &str) -> Option<&str> {
    let (_, rest) = message.strip_prefix("E11000")?.split_once(" index: ")?;
    let name = rest.split(" dup key").next().unwrap_or(rest);
    Some(name.split(" collation: {").next().unwrap_or(name))
}

/// The same of a call that failed. `None`: it failed otherwise.
pub fn doubled(error: &DriverError) -> Option<String> {
    if code(error) != Some(DUPLICATE_KEY) {
        return None;
    }
    let message = match error.kind.as_ref() {
        ErrorKind::Command(error) => error.message.as_str(),
        ErrorKind::Write(WriteFailure::WriteError(error)) => error.message.as_str(),
        ErrorKind::InsertMany(error) => {
            error.write_errors.as_ref()?.first().map_or("", |error| error.message.as_str())
        }
        _ => "",
    };
    Some(doubled_index(message).unwrap_or_default().to_owned())
}

/// The error for the log.
pub fn words(error: &DriverError) -> String {
    describe(error).what
}

/// What in the database refuses, by the code of a failure. `None`: it is no refusal of that kind.
fn cause(code: i32) -> Option<Cause> {
    match code {
        VALIDATOR => Some(Cause::Validator),
        code if NO_PRIVILEGE.contains(&code) => Some(Cause::Privilege),
        code if OF_COLLECTION.contains(&code) => Some(Cause::Code(code)),
        _ => None,
    }
}

/// What a failed call of the driver means to the callers of a store.
pub fn error(error: DriverError) -> Error {
    if let Some(outage) = outage(&error) {
        return Error::out(outage, describe(&error));
    }
    match code(&error).and_then(cause) {
        Some(cause) => {
            tracing::error!(error = words(&error), "the database refused a call");
            Denial { cause, collection: None }.into()
        }
        None => Error::failed(describe(&error)),
    }
}

/// What kept the statements of a command from being executed, if it was not they themselves.
pub fn met_by_statements(reply: &Document) -> Option<Error> {
    let errors = reply.get_array("writeErrors").into_iter().flatten();
    let errors = errors.filter_map(|error| error.as_document());
    let met = |error: &Document| {
        let code = error.get("code").and_then(integer_of)?;
        let code = i32::try_from(code).ok()?;
        let message = error.get_str("errmsg").unwrap_or_default();
        let said = || told(format!("{code}: {}", without_keys(message)));
        outage_of(code, message).map(|outage| Error::out(outage, said()))
    };
    errors.into_iter().find_map(met)
}

/// An event of a change stream that does not fit into a document.
const TOO_LARGE: [i32; 2] = [10334, 16493];

/// Whether a change stream failed on an event that is too large to be told.
pub fn is_too_large(error: &DriverError) -> bool {
    code(error).is_some_and(|code| TOO_LARGE.contains(&code))
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

/// A failure of a single statement of a command on a collection.
pub fn statement(code: i32, collection: &str) -> Error {
    if let Some(outage) = outage_of(code, "") {
        return Error::out(outage, told(format!("failed with code {code}")));
    }
    match cause(code) {
        Some(cause) => Denial::new(cause, collection).into(),
        None => Error::failed(told(format!("refused by the database with code {code}"))),
    }
}

/// What was written is not as safe as was asked for.
pub fn concern(code: i32) -> Error {
    match outage_of(code, "") {
        Some(outage) => Error::out(outage, told(format!("failed with code {code}"))),
        None => Error::failed(told(format!("the write concern failed with code {code}"))),
    }
}

/// The database did not answer in time.
pub fn timeout() -> Error {
    Error::Unavailable(Unavailable::unanswered())
}

/// Whether that is what it says.
pub fn is_timeout(error: &Error) -> bool {
    matches!(error, Error::Unavailable(why) if why.is_unanswered())
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
        Error::Unavailable(unavailable) => Error::Unavailable(unavailable.again()),
        Error::Failed(_) => Error::failed(told(source.unwrap_or_default())),
        Error::Denied(denial) => Error::Denied(denial.clone()),
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
        let refused = "E11000 duplicate key error collection: t.a index: u 1 collation: { locale: \
                       \"en\" } dup key: { x: \"0x290105\" }";
        assert_eq!(doubled_index(refused), Some("u 1"));
        assert_eq!(doubled_index("something else"), None);
    }

    #[test]
    fn a_failure_that_strikes_several_tells_each_why() {
        let error = again(&Error::unavailable("the disk is gone"));
        assert!(
            matches!(&error, Error::Unavailable(why) if why.why().as_deref() == Some("the disk is gone"))
        );
        assert!(matches!(again(&Error::Contention), Error::Failed(_)));
    }
}
