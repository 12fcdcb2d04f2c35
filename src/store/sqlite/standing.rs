//! What a change says of where its record stands, as bytes in the table of changes. Most changes say nothing.

use bson::raw::{RawBsonRef, RawDocument};
use bson::{Document, doc};

use crate::domain::RunError;
use crate::domain::notification::{Standing, Status};
use crate::store::notifications::documents::{identity, read_identity};

/// `None`: it says nothing.
pub fn stored(standing: &Standing) -> Option<Vec<u8>> {
    if standing.is_empty() {
        return None;
    }
    let mut stored = Document::new();
    if let Some(status) = standing.status {
        stored.insert("s", status.as_str());
    }
    for (name, is_so) in [("h", standing.heard), ("c", standing.cancel_requested)] {
        if is_so {
            stored.insert(name, true);
        }
    }
    if let Some(failed) = standing.failed {
        stored.insert("f", failed);
    }
    if let Some(count) = standing.retry_count {
        stored.insert("r", count);
    }
    if let Some(error) = &standing.error {
        stored.insert("e", doc! { "m": &error.message, "c": &error.code });
    }
    if let Some(at) = standing.completed_at {
        stored.insert("t", at);
    }
    if let Some(whose) = &standing.whose {
        stored.insert("w", identity(whose));
    }
    stored.to_vec().ok()
}

/// What `stored` wrote; of what it does not know, nothing.
pub fn read(bytes: Option<&[u8]>) -> Standing {
    let Some(raw) = bytes.and_then(|bytes| RawDocument::from_bytes(bytes).ok()) else {
        return Standing::default();
    };
    let field = |name: &str| raw.get(name).ok().flatten();
    let flag = |name: &str| field(name).and_then(|value| value.as_bool());
    let error = field("e").and_then(RawBsonRef::as_document).map(|error| {
        let text = |name: &str| error.get_str(name).unwrap_or_default().to_owned();
        Box::new(RunError { message: text("m"), code: text("c"), ..RunError::default() })
    });
    Standing {
        status: field("s").and_then(|word| word.as_str()).and_then(Status::parse),
        heard: flag("h").unwrap_or(false),
        cancel_requested: flag("c").unwrap_or(false),
        failed: flag("f"),
        retry_count: field("r").and_then(RawBsonRef::as_i32),
        error,
        completed_at: field("t").and_then(RawBsonRef::as_i64),
        whose: field("w").and_then(RawBsonRef::as_document).map(|raw| Box::new(read_identity(raw))),
    }
}
