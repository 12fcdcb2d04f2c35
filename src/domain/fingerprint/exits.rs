//! How a program ended, where nobody says that the number is a code: returned 137, killed (9), failed with -11. Counts
//! stand behind the same words, so what is around the number has to leave nothing that it could be the number of.

use super::context::Before;

/// Words whose number is what a program came back with.
const RETURNED: [&str; 4] = ["returned", "returns", "retval", "rv"];

/// Words for an end, whose number has to be set apart: in brackets, behind a colon, or negative.
const ENDED: [&str; 11] = [
    "exited",
    "terminated",
    "died",
    "crashed",
    "killed",
    "oomkilled",
    "aborted",
    "quit",
    "ended",
    "trap",
    "segfaulted",
];

/// Words for an end with something.
const ENDED_WITH: [&str; 4] = ["failed", "finished", "completed", "stopped"];

/// What may go on behind the number.
const GOES_ON: [&str; 6] = ["for", "from", "on", "when", "while", "after"];

/// What returns counts.
const COUNTING: [&str; 22] = [
    "count", "query", "select", "search", "lookup", "find", "findall", "len", "length", "size",
    "list", "scan", "cursor", "poll", "read", "write", "recv", "send", "fread", "fwrite", "sum",
    "expected",
];

/// What is said of a count behind it.
const COUNTED: [&str; 6] = ["expected", "wanted", "instead", "limit", "max", "min"];

/// A number that a program can end with: a byte, a signal below zero, or a status of Windows, also as it is with a sign.
fn is_status(digits: &str, negative: bool) -> bool {
    let Ok(number) = digits.parse::<u64>() else { return false };
    match digits.len() {
        1..=3 => number <= 255,
        _ if negative => (0x3fff_0000..=0x4000_0000).contains(&number),
        _ => (0xc000_0000..=0xc000_ffff).contains(&number),
    }
}

/// Whether nothing stands behind the number that it could be the number of.
fn stands(behind: &str) -> bool {
    let rest = behind.trim_start();
    let Some(first) = rest.chars().next() else { return true };
    let next_is_digit =
        || rest[first.len_utf8()..].trim_start().starts_with(|c: char| c.is_ascii_digit());
    if first.is_alphanumeric() {
        let word: String = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
        return behind.starts_with(' ') && GOES_ON.contains(&word.as_str());
    }
    match first {
        '/' | '%' | '_' | '$' | '°' | '€' => false,
        '.' | ',' | ':' | '-' => !next_is_digit(),
        _ => true,
    }
}

fn is_counted(before: &Before, behind: &str) -> bool {
    let lower = behind.to_lowercase();
    let mut words = lower.split(|c: char| !c.is_alphanumeric());
    before.words.iter().take(4).any(|word| COUNTING.contains(&word.as_str()))
        || words.any(|word| COUNTED.contains(&word))
}

/// Whether these digits, with a minus before them or not, are what a program ended with.
pub fn is_exit(digits: &str, negative: bool, before: &Before, behind: &str) -> bool {
    if !before.is_close()
        || !is_status(digits, negative)
        || !stands(behind)
        || is_counted(before, behind)
    {
        return false;
    }
    let (word, with) = (before.word(0), before.word(1));
    let returned = RETURNED.contains(&word);
    let ended = ENDED.contains(&word) && (negative || before.gap.contains(['(', '[', ':', '=']));
    let ended_with = word == "with"
        && (RETURNED.contains(&with) || ENDED.contains(&with) || ENDED_WITH.contains(&with));
    returned || ended || ended_with || word == "value" && matches!(with, "return" | "returned")
}
