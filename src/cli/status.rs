//! What a refusal says to a person.

use std::error::Error as _;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::text;

/// Whether the same call may work a moment later.
pub fn is_passing(status: &Status) -> bool {
    // Made on this side of the wire: the connection broke, the server said nothing.
    let broke = status.source().is_some()
        && !matches!(status.code(), Code::OutOfRange | Code::InvalidArgument | Code::Unimplemented);
    broke || matches!(status.code(), Code::Unavailable | Code::ResourceExhausted | Code::Aborted)
}

/// A refusal as one line for people: the message, what is wrong with which field, and the code's name.
pub fn describe(status: &Status) -> String {
    let details = status.get_error_details();
    let fields: Vec<(&str, &str)> = details
        .bad_request()
        .map(|bad| bad.field_violations.iter())
        .into_iter()
        .flatten()
        .map(|violation| (violation.field.as_str(), violation.description.as_str()))
        .collect();
    let mut message = text::one_line(status.message());
    // Made on this side of the wire: what broke is said by the innermost cause.
    let mut cause = status.source();
    while let Some(error) = cause {
        cause = error.source();
        let said = text::one_line(&error.to_string());
        if cause.is_none() && !said.is_empty() && !message.contains(&said) {
            message = format!("{message}: {said}");
        }
    }
    sentence(&message, &fields, status.code())
}

/// Message, fields that the message does not name yet, and code.
pub fn sentence(message: &str, fields: &[(&str, &str)], code: Code) -> String {
    let mut said = text::one_line(message);
    for (field, description) in fields {
        if !message.contains(description) {
            let separator = if said.is_empty() { "" } else { "; " };
            said = format!("{said}{separator}{field} {}", text::one_line(description));
        }
    }
    if said.is_empty() {
        said = code.description().to_owned();
    }
    format!("{said} ({})", code_name(code))
}

/// The canonical name of a code.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_each_field_once() {
        let fields = [("app_name", "is required"), ("metadata", "nests 40 deep")];
        assert_eq!(
            sentence("invalid request", &fields, Code::InvalidArgument),
            "invalid request; app_name is required; metadata nests 40 deep (INVALID_ARGUMENT)"
        );
        assert_eq!(
            sentence("app_name is required", &fields[..1], Code::InvalidArgument),
            "app_name is required (INVALID_ARGUMENT)"
        );
    }
}
