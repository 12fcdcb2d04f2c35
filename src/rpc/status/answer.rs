//! What is said of a failure, and how it fits into the trailers of an answer.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::app::Violations;

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
pub const NAME_BYTES: usize = 256;
/// When to come back after UNAVAILABLE or RESOURCE_EXHAUSTED.
const RETRY_AFTER: Duration = Duration::from_millis(500);

pub struct Answer {
    pub code: Code,
    pub(super) reason: &'static str,
    pub message: String,
    details: ErrorDetails,
    /// Of a request that breaks rules; they join the details as far as there is room.
    violations: Option<Violations>,
    /// Of the ErrorInfo.
    metadata: HashMap<String, String>,
}

impl Answer {
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        let (message, details) = (message.into(), ErrorDetails::new());
        Answer { code, reason, message, details, metadata: HashMap::new(), violations: None }
    }

    pub fn metadata(mut self, name: &str, value: impl ToString) -> Self {
        self.metadata.insert(name.to_owned(), cut(value.to_string(), NAME_BYTES));
        self
    }

    pub fn violations(mut self, violations: Violations) -> Self {
        self.violations = Some(violations);
        self
    }

    pub fn resource(mut self, kind: &str, name: impl Into<String>) -> Self {
        let name = cut(name.into(), NAME_BYTES);
        let description = cut(self.message.clone(), MESSAGE_BYTES);
        self.details.set_resource_info(kind, name, "", description);
        self
    }

    pub fn retry(self) -> Self {
        self.retry_in(RETRY_AFTER)
    }

    pub fn retry_in(mut self, after: Duration) -> Self {
        self.details.set_retry_info(Some(after));
        self
    }

    pub fn field(mut self, field: &str) -> Self {
        let description = cut(self.message.clone(), MESSAGE_BYTES);
        self.details.add_bad_request_violation(field, description);
        self
    }
}

/// The status that says it, in as much detail as the trailers have room for.
pub fn status(answer: Answer) -> Status {
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
pub fn cut(mut text: String, bytes: usize) -> String {
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
