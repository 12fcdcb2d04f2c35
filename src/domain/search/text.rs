//! The text of records.

use bson::Bson;

use super::INDEXED_BYTES;
use crate::domain::{Artifact, RunError};

/// A text that ends at the limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Text {
    pub text: String,
    /// There was more.
    pub truncated: bool,
}

impl Text {
    fn push(&mut self, piece: &str) {
        let room = INDEXED_BYTES - self.text.len();
        if piece.len() <= room {
            self.text.push_str(piece);
            return;
        }
        let mut end = room;
        while !piece.is_char_boundary(end) {
            end -= 1;
        }
        self.text.push_str(&piece[..end]);
        self.truncated = true;
    }

    fn value(&mut self, value: &Bson) {
        if self.truncated {
            return;
        }
        match value {
            Bson::String(text) | Bson::Symbol(text) => self.push(text),
            Bson::Int32(number) => self.push(&number.to_string()),
            Bson::Int64(number) => self.push(&number.to_string()),
            Bson::Double(number) => self.push(&number.to_string()),
            Bson::Boolean(value) => self.push(&value.to_string()),
            Bson::ObjectId(id) => self.push(&id.to_hex()),
            Bson::Decimal128(number) => self.push(&number.to_string()),
            Bson::DateTime(at) => self.push(&at.try_to_rfc3339_string().unwrap_or_default()),
            Bson::Document(document) => {
                for (index, (key, value)) in document.iter().enumerate() {
                    self.push(if index == 0 { "" } else { "\n" });
                    self.push(key);
                    self.push(": ");
                    self.value(value);
                }
            }
            Bson::Array(values) => {
                for (index, value) in values.iter().enumerate() {
                    self.push(if index == 0 { "" } else { "\n" });
                    self.value(value);
                }
            }
            _ => {}
        }
    }
}

/// Keys and values of a value, depth first, in order.
pub fn of_value(value: &Bson) -> Text {
    let mut text = Text::default();
    text.value(value);
    text
}

/// Whether an artifact is text: by its mime type, and where that does not say, by its type.
pub fn is_text(artifact: &Artifact) -> bool {
    let mime = artifact.mime_type.as_deref().unwrap_or_default().to_ascii_lowercase();
    let mime = mime.split(';').next().unwrap_or_default().trim();
    const TEXTS: [&str; 16] = [
        "json",
        "xml",
        "yaml",
        "x-yaml",
        "toml",
        "javascript",
        "ecmascript",
        "sql",
        "x-sh",
        "csv",
        "x-ndjson",
        "ndjson",
        "jsonl",
        "typescript",
        "x-python",
        "x-httpd-php",
    ];
    if mime.starts_with("text/") || mime.ends_with("+json") || mime.ends_with("+xml") {
        return true;
    }
    if let Some(kind) = mime.strip_prefix("application/") {
        let kind = kind.strip_prefix("x-").unwrap_or(kind);
        if TEXTS.iter().any(|text| text.strip_prefix("x-").unwrap_or(text) == kind) {
            return true;
        }
    }
    const TYPES: [&str; 7] = ["code", "log", "logs", "report", "text", "diff", "patch"];
    let says_nothing = mime.is_empty() || mime == "application/octet-stream";
    says_nothing && TYPES.contains(&artifact.artifact_type.to_ascii_lowercase().as_str())
}

/// The beginning of a text artifact's bytes. `more`: there are others after it. `None`: this is no text.
pub fn of_bytes(bytes: &[u8], more: bool) -> Option<Text> {
    let mut text = Text::default();
    match bytes {
        [0xFF, 0xFE, rest @ ..] => text.push(&utf16(rest, u16::from_le_bytes)),
        [0xFE, 0xFF, rest @ ..] => text.push(&utf16(rest, u16::from_be_bytes)),
        // What is compressed or drawn.
        _ if bytes.iter().take(8_000).any(|byte| *byte == 0) => return None,
        [0xEF, 0xBB, 0xBF, rest @ ..] => text.push(&String::from_utf8_lossy(rest)),
        _ => text.push(&String::from_utf8_lossy(bytes)),
    }
    text.truncated |= more;
    Some(text)
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let units = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// What an error says: its code, its message, its details, and where it happened.
pub fn of_error(error: &RunError) -> Text {
    let mut text = Text::default();
    for part in [&error.code, &error.message] {
        if !part.is_empty() {
            text.push(part);
            text.push("\n");
        }
    }
    if !error.details.is_empty() {
        text.value(&Bson::Document(error.details.clone()));
        text.push("\n");
    }
    text.push(&error.stack_trace);
    text
}
