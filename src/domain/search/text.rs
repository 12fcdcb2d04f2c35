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

/// Of `application/...`, without `x-`: what is text.
const TEXTS: [&str; 40] = [
    "json",
    "json5",
    "xml",
    "yaml",
    "toml",
    "javascript",
    "ecmascript",
    "typescript",
    "sql",
    "sh",
    "shellscript",
    "csv",
    "ndjson",
    "jsonl",
    "jsonlines",
    "python",
    "python-code",
    "httpd-php",
    "php",
    "rust",
    "ruby",
    "perl",
    "java",
    "java-source",
    "kotlin",
    "scala",
    "go",
    "c",
    "c++",
    "csharp",
    "lua",
    "r",
    "graphql",
    "tex",
    "latex",
    "markdown",
    "log",
    "diff",
    "patch",
    "ini",
];
/// Types of artifacts that are text.
const TYPES: [&str; 22] = [
    "code",
    "source",
    "script",
    "notebook",
    "config",
    "configuration",
    "log",
    "logs",
    "trace",
    "output",
    "stdout",
    "stderr",
    "report",
    "summary",
    "text",
    "document",
    "markdown",
    "diff",
    "patch",
    "json",
    "prompt",
    "transcript",
];
/// Endings of the names of text.
const ENDINGS: [&str; 58] = [
    "txt",
    "text",
    "log",
    "out",
    "err",
    "md",
    "markdown",
    "rst",
    "adoc",
    "json",
    "json5",
    "jsonl",
    "ndjson",
    "yaml",
    "yml",
    "toml",
    "ini",
    "cfg",
    "conf",
    "env",
    "properties",
    "csv",
    "tsv",
    "xml",
    "html",
    "htm",
    "css",
    "svg",
    "js",
    "mjs",
    "jsx",
    "ts",
    "tsx",
    "py",
    "ipynb",
    "rs",
    "go",
    "java",
    "kt",
    "scala",
    "c",
    "h",
    "cc",
    "cpp",
    "hpp",
    "cs",
    "rb",
    "php",
    "pl",
    "lua",
    "r",
    "sql",
    "sh",
    "bash",
    "ps1",
    "tex",
    "diff",
    "patch",
];

/// Whether an artifact may be text: its mime type says so, or says nothing of it and the artifact's type or the end
/// of its name does. The bytes may still be none.
pub fn is_text(artifact: &Artifact) -> bool {
    let mime = artifact.mime_type.as_deref().unwrap_or_default().to_ascii_lowercase();
    let mime = mime.split(';').next().unwrap_or_default().trim();
    if mime.starts_with("text/") || mime.ends_with("+json") || mime.ends_with("+xml") {
        return true;
    }
    let kind = mime.strip_prefix("application/").unwrap_or_default();
    if TEXTS.contains(&kind.strip_prefix("x-").unwrap_or(kind)) {
        return true;
    }
    if !mime.is_empty() && kind != "octet-stream" {
        return false;
    }
    let kind = artifact.artifact_type.to_ascii_lowercase();
    let ending = artifact.artifact_name.rsplit_once('.').map_or("", |(_, ending)| ending);
    let ending = ending.to_ascii_lowercase();
    TYPES.contains(&kind.as_str()) || ENDINGS.contains(&ending.as_str())
}

/// The beginning of a text artifact's bytes. `more`: there are others after it. `None`: this is no text.
pub fn of_bytes(bytes: &[u8], more: bool) -> Option<Text> {
    let mut text = Text::default();
    let decoded = match bytes {
        [0xFF, 0xFE, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xFE, 0xFF, rest @ ..] => utf16(rest, u16::from_be_bytes),
        // What is compressed or drawn.
        _ if bytes.iter().take(8_000).any(|byte| *byte == 0) => return None,
        [0xEF, 0xBB, 0xBF, rest @ ..] => String::from_utf8_lossy(rest).into_owned(),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    };
    text.push(&unescaped(decoded));
    text.truncated |= more;
    Some(text)
}

/// With the characters that JSON of many programs writes as `\u4e2d`.
fn unescaped(text: String) -> String {
    if !text.contains("\\u") {
        return text;
    }
    let unit = |rest: &str| -> Option<u16> {
        let digits = rest.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))
    };
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find("\\u") {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let units = [unit(rest), rest.get(6..).and_then(unit)];
        let mut found = char::decode_utf16(units.into_iter().map_while(|unit| unit));
        match found.next() {
            // What is no character that is seen stays as it is written.
            Some(Ok(c)) if !c.is_control() => {
                out.push(c);
                rest = &rest[6 * c.len_utf16()..];
            }
            _ => {
                out.push_str(&rest[..2]);
                rest = &rest[2..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let units = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// What errors say: of each its code, its message, its details, and where it happened.
pub fn of_errors<'a>(errors: impl Iterator<Item = &'a RunError>) -> Text {
    let mut text = Text::default();
    for error in errors {
        if !text.text.is_empty() {
            text.push("\n");
        }
        of_error(&mut text, error);
    }
    text
}

fn of_error(text: &mut Text, error: &RunError) {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_json_writes_with_digits_are_characters() {
        for (written, text) in [
            (r#"{"a": "\u4e2d\u6587"}"#, r#"{"a": "中文"}"#),
            (r"\ud83d\ude00!", "😀!"),
            (r"\ud83d\u0041", r"\ud83dA"),
            (r"C:\users\u12", r"C:\users\u12"),
            (r"\u000a\u00e9", r"\u000aé"),
            (r"\u+123", r"\u+123"),
        ] {
            assert_eq!(unescaped(written.to_owned()), text);
        }
    }
}
