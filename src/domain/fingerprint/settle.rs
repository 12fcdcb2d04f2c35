//! Joins placeholders that belong together, so that ids of several parts, lists of any length, and amounts in any unit
//! are alike.

pub const NUMBER: &str = "<number>";
pub const IDENTITY: &str = "<id>";
pub const TIME: &str = "<time>";
pub const ADDRESS: &str = "<address>";
pub const VALUE: &str = "<value>";
pub const DURATION: &str = "<duration>";
pub const SIZE: &str = "<size>";

const UNITS_OF_TIME: [&str; 26] = [
    "nanoseconds",
    "nanosecond",
    "microseconds",
    "microsecond",
    "milliseconds",
    "millisecond",
    "millis",
    "msecs",
    "msec",
    "seconds",
    "second",
    "secs",
    "sec",
    "minutes",
    "minute",
    "mins",
    "min",
    "hours",
    "hour",
    "hrs",
    "days",
    "day",
    "weeks",
    "week",
    "ms",
    "s",
];
const UNITS_OF_SIZE: [&str; 20] = [
    "kilobytes",
    "megabytes",
    "gigabytes",
    "bytes",
    "byte",
    "KiB",
    "MiB",
    "GiB",
    "TiB",
    "kB",
    "KB",
    "MB",
    "GB",
    "TB",
    "Ki",
    "Mi",
    "Gi",
    "kb",
    "mb",
    "gb",
];

/// The long ones first: the short ones begin them.
const MONTHS: [&str; 23] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
];

/// With `new` for `old` wherever that begins a word.
fn replaced_at_words(text: &str, old: &str, new: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(old) {
        let before = rest[..at].chars().next_back().or(out.chars().next_back());
        let begins = before.is_none_or(|c| !c.is_alphanumeric());
        out.push_str(&rest[..at]);
        out.push_str(if begins { new } else { old });
        rest = &rest[at + old.len()..];
    }
    out.push_str(rest);
    out
}

/// Lists of the same with other placeholders' values: call_<id>, call_<id>.
fn without_repeats(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (index, piece) in text.split(", ").enumerate() {
        let head = &piece[..piece.find([' ', '.', ')', ']', '}']).unwrap_or(piece.len())];
        if index > 0 && head.contains('<') && out.ends_with(head) {
            out.push_str(&piece[head.len()..]);
            continue;
        }
        out.push_str(if index > 0 { ", " } else { "" });
        out.push_str(piece);
    }
    out
}

/// Amounts of time and of bytes, whatever their unit.
fn with_units(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(NUMBER) {
        out.push_str(&rest[..at]);
        rest = &rest[at + NUMBER.len()..];
        let unit = rest.strip_prefix([' ', '-']).unwrap_or_default();
        let word: &str = &unit[..unit.find(|c: char| !c.is_alphabetic()).unwrap_or(unit.len())];
        let kind = match word {
            word if UNITS_OF_TIME.contains(&word) => DURATION,
            word if UNITS_OF_SIZE.contains(&word) => SIZE,
            _ => {
                out.push_str(NUMBER);
                continue;
            }
        };
        out.push_str(kind);
        rest = &unit[word.len()..];
    }
    out.push_str(rest);
    out
}

/// What a pattern says, however it is written: small letters, one kind of quotes, of one or of many.
pub fn key(pattern: &str) -> String {
    singular(pattern).to_lowercase().replace(['"', '`'], "'")
}

/// A row and rows are one kind.
fn singular(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    for (index, piece) in pattern.split(NUMBER).enumerate() {
        if index == 0 {
            out.push_str(piece);
            continue;
        }
        out.push_str(NUMBER);
        let Some(rest) = piece.strip_prefix(' ') else {
            out.push_str(piece);
            continue;
        };
        let (word, after) =
            rest.split_at(rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len()));
        let after = after.strip_prefix("(s)").unwrap_or(after);
        let one = match word.strip_suffix('s') {
            Some(one) if one.len() >= 3 && !one.ends_with('s') => one,
            _ => word,
        };
        out.push(' ');
        out.push_str(one);
        out.push_str(after);
    }
    out
}

/// Joins placeholders that belong together, so that ids of several parts and lists of any length are alike.
pub fn settle(text: &str) -> String {
    let mut text = with_units(text.trim());
    for month in MONTHS {
        if !text.contains(month) {
            continue;
        }
        for date in [
            format!("{NUMBER} {month} {NUMBER}"),
            format!("{NUMBER}/{month}/{NUMBER}"),
            format!("{NUMBER}-{month}-{NUMBER}"),
        ] {
            text = text.replace(&date, TIME);
        }
        for date in [format!("{month} {NUMBER}, {NUMBER}"), format!("{month} {NUMBER}")] {
            text = replaced_at_words(&text, &date, TIME);
        }
    }
    for day in ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"] {
        text = text.replace(&format!("{day}, {TIME}"), TIME);
        text = text.replace(&format!("{day} {TIME}"), TIME);
    }
    let mut joined = Vec::new();
    for (kind, others) in [
        (IDENTITY, &[IDENTITY, NUMBER][..]),
        (TIME, &[TIME, NUMBER]),
        (NUMBER, &[NUMBER, IDENTITY]),
    ] {
        for other in others {
            let glues: &[&str] = match kind {
                TIME => &[" "],
                IDENTITY => &["-", "_", ""],
                _ => &["-", "_"],
            };
            let result = if *other == IDENTITY { IDENTITY } else { kind };
            joined.extend(glues.iter().map(|glue| (format!("{kind}{glue}{other}"), result)));
        }
    }
    for kind in [NUMBER, IDENTITY, TIME, ADDRESS, DURATION, SIZE] {
        joined.extend([", ", ",", " "].map(|glue| (format!("{kind}{glue}{kind}"), kind)));
    }
    for quote in ["'", "\""] {
        let value = format!("{quote}{VALUE}{quote}");
        let two = format!("{value}, {value}");
        while text.contains(&two) {
            text = text.replace(&two, &value);
        }
    }
    // Said by some answers and not by others, of the same error.
    for quote in ["'", "\""] {
        text = text.replace(&format!(", {quote}request_id{quote}: {quote}{VALUE}{quote}"), "");
    }
    // Every replacement makes the text shorter.
    loop {
        let before = text.len();
        text = without_repeats(&text);
        for (two, one) in &joined {
            if text.contains(two.as_str()) {
                text = text.replace(two.as_str(), one);
            }
        }
        if text.len() == before {
            return text;
        }
    }
}
