//! Values of users, ids among them: known by what stands before them.

use super::context::Before;

/// Words behind which a quoted text is a value, whatever it looks like.
const VALUES: [&str; 44] = [
    "value",
    "values",
    "input",
    "inputvalue",
    "literal",
    "entry",
    "string",
    "text",
    "user",
    "username",
    "email",
    "customer",
    "account",
    "query",
    "prompt",
    "title",
    "float",
    "integer",
    "int",
    "uuid",
    "boolean",
    "bool",
    "number",
    "date",
    "datetime",
    "timestamp",
    "decimal",
    "numeric",
    "data",
    "choice",
    "tenant",
    "password",
    "login",
    "phone",
    "address",
    "person",
    "owner",
    "city",
    "street",
    "session",
    "token",
    "secret",
    "key_value",
    "base",
];

/// Whether a quoted text is a value.
pub fn is_value(before: &Before) -> bool {
    let word = before.word(0);
    let close =
        before.gap.chars().all(|c| c.is_whitespace() || matches!(c, ':' | '=' | '(' | '\'' | '"'));
    if !close || word.is_empty() {
        return false;
    }
    // int() with base 10: 'a'
    VALUES.contains(&word) || is_id(before) || word == "10" && before.word(1) == "base"
}

/// Whether what follows is an id: `request_id=`, `traceId:`, `ID `.
pub fn is_id(before: &Before) -> bool {
    let raw = before.raw.first().map_or("", String::as_str);
    let small = raw.to_lowercase();
    matches!(
        small.as_str(),
        "id" | "uuid" | "guid" | "requestid" | "traceid" | "spanid" | "userid" | "runid"
    ) || small.ends_with("_id")
        || small.ends_with("_uuid")
        || raw.ends_with("Id") && raw.len() > 2
        || raw.ends_with("ID") && raw.len() > 2 && raw.starts_with(char::is_lowercase)
}

/// Whether a bare word is the value of an id before it.
pub fn is_bare_id(word: &str, before: &Before, behind: Option<&char>, next: Option<&char>) -> bool {
    let told = before.gap.trim();
    if !is_id(before) || !matches!(told, ":" | "=" | "#" | "=>") {
        return false;
    }
    let nothing =
        ["null", "none", "undefined", "empty", "missing", "required", "invalid", "nil", "unknown"];
    if nothing.contains(&word.to_lowercase().as_str()) {
        return false;
    }
    // `user_id: must be a number` says what is wrong with one.
    told == "="
        || behind.is_none_or(|c| !c.is_whitespace())
        || next.is_none_or(|c| !c.is_alphabetic())
}

/// Words behind which several words may as well be what went wrong.
pub fn may_speak(before: &Before) -> bool {
    matches!(before.word(0), "text" | "data" | "title" | "string" | "user" | "session" | "date")
}

/// What a model said.
pub fn is_said(before: &Before) -> bool {
    before.word(0) == "output" && matches!(before.word(1), "llm" | "model" | "agent")
}

/// A path of a file, which is a value between quotes.
pub fn is_path(inside: &[char]) -> bool {
    match inside {
        ['/', _, ..] => true,
        [drive, ':', '\\', ..] => drive.is_ascii_alphabetic(),
        _ => false,
    }
}
