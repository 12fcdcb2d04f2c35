//! What is left of a message when everything is replaced that differs from one time to the next: numbers, ids,
//! addresses, times, quoted values. Words stay, in every script.

/// Characters of a message that are looked at.
const LOOKED_AT: usize = 2_000;
/// A quoted text is no longer than this, else its quote is only a character.
const QUOTED: usize = 300;
/// A name between quotes that is kept: of a key, a column, a module.
const QUOTED_NAME: usize = 60;
/// Letters and digits mixed are an id from this length on.
const ID: usize = 6;

/// Characters of a UUID.
const UUID: usize = 36;

const NUMBER: &str = "<number>";
const IDENTITY: &str = "<id>";
const TIME: &str = "<time>";
const ADDRESS: &str = "<address>";
const VALUE: &str = "<value>";

/// The message with placeholders for what differs from one time to the next.
pub fn pattern(message: &str) -> String {
    let lines = essential_lines(message);
    let chars: Vec<char> = lines.chars().take(LOOKED_AT).collect();
    let mut writer = Writer::default();
    writer.text(&chars);
    settle(&writer.out)
}

/// Without the frames of stack traces: where it was called from does not make it another error.
fn essential_lines(message: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut in_python_trace = false;
    for line in message.lines() {
        if line.trim_start().starts_with("Traceback (most recent call last)") {
            in_python_trace = true;
            continue;
        }
        let indented = line.starts_with([' ', '\t']);
        if in_python_trace && indented {
            continue;
        }
        in_python_trace = in_python_trace && line.trim().is_empty();
        let frame = indented && line.trim_start().starts_with("at ")
            || line.trim_start().starts_with("File \"") && line.contains(", line ");
        if !frame {
            kept.push(line);
        }
    }
    kept.join("\n")
}

#[derive(Default)]
struct Writer {
    out: String,
}

fn closing(quote: char) -> Option<char> {
    Some(match quote {
        '"' | '\'' | '`' => quote,
        '“' | '„' => '”',
        '‘' => '’',
        '«' => '»',
        '「' => '」',
        '『' => '』',
        _ => return None,
    })
}

/// Ends a word: what is neither part of a word nor inside of a path, a time or an address.
fn parts_words(c: char) -> bool {
    c.is_whitespace()
        || closing(c).is_some()
        || matches!(
            c,
            '”' | '’'
                | '»'
                | '」'
                | '』'
                | '('
                | ')'
                | '['
                | ']'
                | '{'
                | '}'
                | '<'
                | '>'
                | ','
                | ';'
                | '='
                | '|'
                | '，'
                | '。'
                | '；'
                | '（'
                | '）'
                | '、'
                | '：'
        )
}

impl Writer {
    fn text(&mut self, chars: &[char]) {
        let mut at = 0;
        while at < chars.len() {
            let c = chars[at];
            if c.is_whitespace() {
                if !self.out.ends_with(' ') {
                    self.out.push(' ');
                }
                at += 1;
            } else if let Some(length) = quoted(chars, at) {
                self.quote(&chars[at..at + length]);
                at += length;
            } else if parts_words(c) {
                self.out.push(c);
                at += 1;
            } else {
                let end = word_end(chars, at);
                self.word(&chars[at..end].iter().collect::<String>());
                at = end;
            }
        }
    }

    /// A name that is one word without digits is kept, a sentence is looked into, all else is a value.
    fn quote(&mut self, chars: &[char]) {
        let inside = &chars[1..chars.len() - 1];
        let words = inside.split(|c| c.is_whitespace()).filter(|word| !word.is_empty()).count();
        let name = words == 1
            && inside.len() <= QUOTED_NAME
            && inside.iter().all(|c| c.is_alphabetic() || matches!(c, '_' | '-' | '.' | '$' | '*'));
        // A value of JSON is a text of its own.
        let json = self.out.trim_end().ends_with(':') && words > 1;
        self.out.push(chars[0]);
        if name || words == 0 {
            self.out.extend(inside);
        } else if words > 2 || json {
            self.text(inside);
        } else {
            self.out.push_str(VALUE);
        }
        self.out.push(chars[chars.len() - 1]);
    }

    fn word(&mut self, word: &str) {
        let bare = word.trim_end_matches(['.', ':', '!', '?', '…']);
        let (bare, end) = word.split_at(bare.len());
        if let Some((scheme, rest)) = bare.split_once("://") {
            self.url(scheme, rest);
        } else if is_mail(bare) {
            self.out.push_str(ADDRESS);
        } else if is_time(bare) {
            self.out.push_str(TIME);
        } else if is_internet_address(bare) {
            self.out.push_str(ADDRESS);
        } else if bare.contains(['/', '\\']) {
            self.path(bare);
        } else {
            self.parts(bare);
        }
        self.out.push_str(end);
    }

    /// Scheme, host and path; what is asked or pointed to in it is a value.
    fn url(&mut self, scheme: &str, rest: &str) {
        self.parts(scheme);
        self.out.push_str("://");
        let rest = rest.split(['?', '#']).next().unwrap_or(rest);
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        // Without a user and a password.
        let host = host.rsplit('@').next().unwrap_or(host);
        if is_internet_address(host) {
            self.out.push_str(ADDRESS);
        } else {
            self.parts(host.split(':').next().unwrap_or(host));
        }
        self.path(path);
    }

    fn path(&mut self, path: &str) {
        let mut of_a_person = false;
        for piece in path.split_inclusive(['/', '\\']) {
            let name = piece.trim_end_matches(['/', '\\']);
            if of_a_person && !name.is_empty() {
                self.out.push_str("<user>");
            } else {
                self.parts(name);
            }
            of_a_person = matches!(name, "home" | "Users");
            self.out.push_str(&piece[name.len()..]);
        }
    }

    /// Runs of ASCII letters and digits, one after the other.
    fn parts(&mut self, word: &str) {
        if let Some(hexadecimal) = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"))
            && !hexadecimal.is_empty()
            && hexadecimal.bytes().all(|byte| byte.is_ascii_hexdigit())
        {
            self.out.push_str(ADDRESS);
            return;
        }
        if is_number(word) && !begins_with_uuid(word) {
            self.out.push_str(NUMBER);
            return;
        }
        if let Some(units) = units_of(word) {
            for unit in units {
                self.out.push_str(NUMBER);
                self.out.push_str(unit);
            }
            return;
        }
        let mut rest = word;
        while let Some(first) = rest.chars().next() {
            if begins_with_uuid(rest) {
                self.out.push_str(IDENTITY);
                rest = &rest[UUID..];
                continue;
            }
            let length = if first.is_ascii_alphanumeric() {
                rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len())
            } else {
                rest.find(|c: char| c.is_ascii_alphanumeric()).unwrap_or(rest.len())
            };
            let (part, after) = rest.split_at(length);
            if is_identity(part) {
                self.out.push_str(IDENTITY);
            } else {
                self.without_digits(part);
            }
            rest = after;
        }
    }

    fn without_digits(&mut self, part: &str) {
        let mut in_digits = false;
        for c in part.chars() {
            let digit = c.is_numeric();
            if !digit {
                self.out.push(c);
            } else if !in_digits {
                self.out.push_str(NUMBER);
            }
            in_digits = digit;
        }
    }
}

/// Length of a quoted text with its quotes, if one begins here.
fn quoted(chars: &[char], at: usize) -> Option<usize> {
    let close = closing(chars[at])?;
    // In the middle of a word it is an apostrophe.
    if at > 0 && chars[at - 1].is_alphanumeric() {
        return None;
    }
    let mut escaped = false;
    for (length, c) in chars[at + 1..].iter().take(QUOTED).enumerate() {
        match c {
            '\n' => return None,
            '\\' if !escaped => escaped = true,
            c if *c == close && !escaped => {
                let ends = close != '\''
                    || chars.get(at + length + 2).is_none_or(|next| !next.is_alphanumeric());
                if ends {
                    return Some(length + 2);
                }
            }
            _ => escaped = false,
        }
    }
    None
}

fn word_end(chars: &[char], at: usize) -> usize {
    let mut end = at;
    let mut url = false;
    while let Some(c) = chars.get(end) {
        let apostrophe = *c == '\''
            && end > at
            && chars[end - 1].is_alphanumeric()
            && chars.get(end + 1).is_some_and(|next| next.is_alphanumeric());
        // A link goes on over `=`, `;` and `,`.
        if parts_words(*c) && !apostrophe && !(url && matches!(c, '=' | ';' | ',')) {
            // The groups of 1,234,567.
            let group = *c == ','
                && end > at
                && chars[end - 1].is_ascii_digit()
                && chars.get(end + 1).is_some_and(char::is_ascii_digit);
            if !group {
                break;
            }
        }
        url |= *c == '/' && end >= at + 2 && chars[end - 1] == '/' && chars[end - 2] == ':';
        end += 1;
    }
    end.max(at + 1)
}

fn is_mail(word: &str) -> bool {
    let Some((name, host)) = word.split_once('@') else { return false };
    !name.is_empty()
        && host.contains('.')
        && !host.ends_with('.')
        && host.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-'))
}

/// A date, a time of the day, or both: digits in the shapes of ISO 8601 and its like.
fn is_time(word: &str) -> bool {
    let shape: String = word.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    let digits = shape.matches('0').count();
    let date = ["0000-00-00", "0000/00/00", "00/00/0000", "00.00.0000", "00-00-0000"]
        .iter()
        .any(|form| shape.starts_with(form));
    let clock = shape.starts_with("00:00") || shape.starts_with("0:00");
    let rest_is_of_a_time = shape
        .chars()
        .all(|c| matches!(c, '0' | '-' | '/' | '.' | ':' | 'T' | 't' | 'Z' | 'z' | '+' | ','));
    (date || clock) && digits >= 3 && rest_is_of_a_time
}

/// Of the internet: four numbers, or groups of hexadecimal digits; perhaps with a port. Or of a network card.
fn is_internet_address(word: &str) -> bool {
    let word = word.split_once('/').map_or(word, |(address, _)| address);
    if word.parse::<std::net::SocketAddr>().is_ok() || word.parse::<std::net::IpAddr>().is_ok() {
        return true;
    }
    let of_a_card = |separator| {
        let groups = || word.split(separator);
        groups().count() == 6
            && groups()
                .all(|group| group.len() == 2 && group.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    if of_a_card(':') || of_a_card('-') {
        return true;
    }
    word.rsplit_once(':').is_some_and(|(host, port)| {
        host.parse::<std::net::Ipv4Addr>().is_ok() && port.bytes().all(|b| b.is_ascii_digit())
    })
}

/// 42, -1.5, 1,234, 3.2.1, 1e-9, 99%.
fn is_number(word: &str) -> bool {
    let word = word.trim_start_matches(['-', '+', '#', '$', '€', '~', '±']);
    let word = word.trim_end_matches('%');
    word.starts_with(char::is_numeric)
        && word
            .chars()
            .all(|c| c.is_numeric() || matches!(c, '.' | ',' | ':' | '-' | '+' | 'e' | 'E' | '_'))
        && word.ends_with(char::is_numeric)
}

/// Units that are written right behind a number.
const UNITS: [&str; 50] = [
    "ns", "us", "µs", "μs", "ms", "s", "sec", "secs", "m", "min", "mins", "h", "hr", "hrs", "d",
    "w", "b", "B", "k", "K", "M", "G", "T", "kb", "kB", "KB", "mb", "MB", "gb", "GB", "tb", "TB",
    "Ki", "Mi", "Gi", "Ti", "KiB", "MiB", "GiB", "TiB", "x", "px", "pt", "Hz", "kHz", "MHz", "GHz",
    "W", "V", "C",
];

/// The units of 500ms, 1.5s, 1m30s.
fn units_of(word: &str) -> Option<Vec<&str>> {
    let mut units = Vec::new();
    let mut rest = word.trim_start_matches(['-', '+', '~']);
    while !rest.is_empty() {
        let number =
            rest.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | ','));
        if number.len() == rest.len() || !rest.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let end = number.find(|c: char| c.is_ascii_digit()).unwrap_or(number.len());
        let (unit, after) = number.split_at(end);
        units.push(*UNITS.iter().find(|known| **known == unit)?);
        rest = after;
    }
    (!units.is_empty()).then_some(units)
}

fn begins_with_uuid(word: &str) -> bool {
    let bytes = word.as_bytes();
    bytes.len() >= UUID
        && bytes[..UUID].iter().enumerate().all(|(place, byte)| match place {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
        && bytes.get(UUID).is_none_or(|next| !next.is_ascii_alphanumeric())
}

/// Letters and digits as no word has them.
fn is_identity(part: &str) -> bool {
    if part.len() < ID || !part.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return false;
    }
    let digits = part.bytes().filter(u8::is_ascii_digit).count();
    let hexadecimal = part.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digits == part.len() {
        return false;
    }
    if hexadecimal && (digits > 0 && part.len() >= 8 || part.len() >= 16) {
        return true;
    }
    if digits == 0 {
        return false;
    }
    let bytes = part.as_bytes();
    let changes =
        bytes.windows(2).filter(|two| two[0].is_ascii_digit() != two[1].is_ascii_digit()).count();
    // The longest run of letters that a word could be: small ones, or capitals only.
    let mut longest = 0;
    let mut run = 0;
    for (index, byte) in bytes.iter().enumerate() {
        let goes_on = index > 0
            && (byte.is_ascii_lowercase() && bytes[index - 1].is_ascii_lowercase()
                || byte.is_ascii_uppercase() && bytes[index - 1].is_ascii_uppercase());
        run = match byte {
            byte if !byte.is_ascii_alphabetic() => 0,
            _ if goes_on => run + 1,
            _ => 1,
        };
        longest = longest.max(run);
    }
    digits >= 2 && (changes >= 3 || longest <= 3)
}

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

/// Joins placeholders that belong together, so that ids of several parts and lists of any length are alike.
fn settle(text: &str) -> String {
    let mut text = text.trim().to_owned();
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
    for kind in [NUMBER, IDENTITY, TIME, ADDRESS] {
        joined.extend([", ", ",", " "].map(|glue| (format!("{kind}{glue}{kind}"), kind)));
    }
    for quote in ["'", "\""] {
        let value = format!("{quote}{VALUE}{quote}");
        let two = format!("{value}, {value}");
        while text.contains(&two) {
            text = text.replace(&two, &value);
        }
    }
    // Every replacement makes the text shorter.
    loop {
        let before = text.len();
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages that are the same error.
    const SAME: &[&[&str]] = &[
        &[
            "timeout after 30 s",
            "timeout after 31 s",
            "timeout after 1,200 s",
            "timeout after 0.5 s",
        ],
        &["exit code: -11", "exit code: 137"],
        &["gave up after 500ms", "gave up after 5000ms", "gave up after 1.5ms"],
        &["needs 64MiB of memory", "needs 4096MiB of memory"],
        &["waited 1m30s for a turn", "waited 10m5s for a turn"],
        &["expired Dec 1, 2026", "expired Jan 25, 2027", "expired November 25, 2025"],
        &["silent since Dec 1", "silent since May 31"],
        &["log begins 25/Nov/2026:10:00:00", "log begins 01/Dec/2025:23:59:59"],
        &["no lease for 00:1a:2b:3c:4d:5e", "no lease for ff:ee:dd:cc:bb:aa"],
        &[
            "no execution 5f2b7c1e-8a3d-4f60-9c1b-2d3e4f506172 is stored",
            "no execution 00000000-0000-4000-8000-000000000000 is stored",
        ],
        &["cannot find 65a1b2c3d4e5f60718293a4b", "cannot find 5eb63bbbe01eeed093cb22bb"],
        &["tool call call_abc123XYZ failed", "tool call call_q9W8e7R6t5 failed"],
        &["request req_011CQ5KxT refused", "request req_7f8A9b0Cd refused"],
        &["job batch-2024-77-a9f3c1 is gone", "job batch-2025-78-0bd4f2 is gone"],
        &["connect ECONNREFUSED 127.0.0.1:5432", "connect ECONNREFUSED 10.1.22.7:6000"],
        &["no route to [2001:db8::1]:443", "no route to [fe80::aa:1]:8443"],
        &["segfault at 0x7ffd3c2a10", "segfault at 0xdeadbeef"],
        &["<Object object at 0x10f3a2b50> is no model", "<Object object at 0x7f01aa> is no model"],
        &["mail to ann@example.com bounced", "mail to bo.b+x@mail.example.org bounced"],
        &[
            "started 2026-11-25T12:13:14.123Z, gave up",
            "started 2025-01-02T03:04:05+01:00, gave up",
            "started 2025-01-02 03:04:05, gave up",
        ],
        &["retry after Wed, 21 Oct 2015 07:28:00 GMT", "retry after Mon, 02 Mar 2026 17:08:59 GMT"],
        &[
            "GET https://api.example.com/v1/threads/thread_a1B2c3D4/runs?limit=20&after=x failed: 500",
            "GET https://api.example.com/v1/threads/thread_Zz9Yy8Xx7/runs?limit=1 failed: 503",
        ],
        &["no such file: /tmp/run-17/out_3.json", "no such file: /tmp/run-4/out_12.json"],
        &["cannot open /home/ann/data/a.txt", "cannot open /home/bob/data/a.txt"],
        &[r"cannot open C:\Users\ann\x7.log", r"cannot open C:\Users\bob\x12.log"],
        &["line 3, column 14: bad token", "line 120, column 1: bad token"],
        &["shapes (3, 4) and (5, 6, 7) do not fit", "shapes (3, 4, 9) and (1, 2) do not fit"],
        &["invalid literal for int(): '12a'", "invalid literal for int(): '99zz'"],
        &["cannot parse \"A-17 x\" as a number", "cannot parse \"B 9\" as a number"],
        &[
            "Error code: 429 - {'error': {'message': 'Rate limit reached for gpt-4 in org-aB3dE6: limit 10000', 'type': 'tokens'}}",
            "Error code: 429 - {'error': {'message': 'Rate limit reached for gpt-4 in org-zY9xW8: limit 200', 'type': 'tokens'}}",
        ],
        &["用户123不存在", "用户98不存在"],
        &["接続がタイムアウトしました（30秒）", "接続がタイムアウトしました（5秒）"],
        &["Ошибка: файл 17 не найден", "Ошибка: файл 4096 не найден"],
        &["انتهت المهلة بعد ٣٠ ثانية", "انتهت المهلة بعد ٤٥ ثانية"],
        &["Übertragung abgebrochen nach 3,5 MB", "Übertragung abgebrochen nach 12,25 MB"],
        &["a  b\n c 1", "a b c 2"],
        &[
            "Traceback (most recent call last):\n  File \"a.py\", line 3, in f\n    x()\nValueError: bad value 3",
            "Traceback (most recent call last):\n  File \"b.py\", line 77, in <module>\n    y()\nValueError: bad value 8",
        ],
        &[
            "TypeError: x is not a function\n    at run (/srv/app/a.js:10:3)\n    at main (/srv/app/b.js:1:1)",
            "TypeError: x is not a function\n    at go (/srv/app/c.js:99:8)",
        ],
        &[
            "task [train] failed on worker-3.cluster-a9f1c22e7b.local",
            "task [train] failed on worker-12.cluster-0c4b18aa9d.local",
        ],
    ];

    #[test]
    fn what_differs_from_time_to_time_does_not_count() {
        let mut patterns: Vec<String> = Vec::new();
        for same in SAME {
            let first = pattern(same[0]);
            for other in *same {
                assert_eq!(pattern(other), first, "{other:?} and {:?}", same[0]);
            }
            assert!(!first.is_empty());
            patterns.push(first);
        }
        // And all these errors are different ones.
        patterns.sort();
        patterns.dedup();
        assert_eq!(patterns.len(), SAME.len());
    }

    #[test]
    fn words_do_count() {
        for (one, other) in [
            ("KeyError: 'model'", "KeyError: 'user'"),
            ("cannot read users", "cannot write users"),
            ("用户不存在", "用户已存在"),
            ("connection refused", "connection reset"),
            ("No module named 'numpy'", "No module named 'scipy'"),
            ("HttpError in S3UploadFailedError", "HttpError in S3DownloadFailedError"),
            ("can't open", "won't open"),
            ("GET https://a.example/x failed", "GET https://b.example/x failed"),
            ("column \"name\" is missing", "column \"age\" is missing"),
        ] {
            assert_ne!(pattern(one), pattern(other), "{one} {other}");
        }
    }

    #[test]
    fn patterns_can_be_read() {
        for (message, told) in [
            (
                "timeout after 30 s (try 2 of 3)",
                "timeout after <number> s (try <number> of <number>)",
            ),
            ("user 42 at ann@example.com", "user <number> at <address>"),
            ("base64Decode of Neo4jError", "base<number>Decode of Neo<number>jError"),
            ("don't use 'a b'", "don't use '<value>'"),
            ("", ""),
            ("'", "'"),
            ("\"unfinished 7", "\"unfinished <number>"),
        ] {
            assert_eq!(pattern(message), told);
        }
    }

    #[test]
    fn any_text_has_a_pattern_and_a_long_one_is_cut() {
        let odd =
            ["\u{0}", "''''", "://", "@", "0x", "::", "<number>", "é\u{301}1", "\\", "/", "=,=,"];
        for text in odd {
            pattern(text);
        }
        let long = "wörd 1 ".repeat(10_000);
        assert!(pattern(&long).len() < 4 * LOOKED_AT);
    }
}
