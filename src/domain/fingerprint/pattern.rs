//! What is left of a message when everything is replaced that differs from one time to the next: ids, counts,
//! addresses, times, sizes, quoted values. Words stay, in every script, and so do the codes that tell causes apart and
//! the digits of names.

use super::codes;
use super::context::{Before, before};
use super::names;
use super::settle::{ADDRESS, DURATION, IDENTITY, NUMBER, SIZE, TIME, VALUE, settle};
use super::shapes::{
    Quantity, UUID, begins_with_uuid, is_bus_address, is_identity, is_internet_address, is_mail,
    is_number, is_time, quantity,
};
use super::values;

/// Characters of a message that are looked at.
const LOOKED_AT: usize = 2_000;
/// A quoted text is no longer than this, else its quote is only a character.
const QUOTED: usize = 300;
/// A name between quotes that is kept: of a key, a column, a module.
const QUOTED_NAME: usize = 60;

/// The message with placeholders for what differs from one time to the next.
pub fn pattern(message: &str) -> String {
    let lines = essential_lines(message);
    let chars: Vec<char> = lines.chars().take(LOOKED_AT).collect();
    let mut writer = Writer { chars: &chars, out: String::new() };
    writer.text(0, chars.len());
    settle(&writer.out)
}

/// Without the frames of stack traces: where it was called from does not make it another error.
fn essential_lines(message: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut in_python_trace = false;
    for line in message.lines() {
        let bare = line.trim_start();
        if bare.starts_with("Traceback (most recent call last)") {
            in_python_trace = true;
            continue;
        }
        // All that follows is where it was called from.
        if bare.starts_with("stack backtrace:")
            || bare.starts_with("goroutine ") && bare.ends_with(":")
        {
            break;
        }
        let indented = line.starts_with([' ', '\t']);
        if in_python_trace && indented {
            continue;
        }
        in_python_trace = in_python_trace && line.trim().is_empty();
        let frame = indented && bare.starts_with("at ")
            || indented && bare.starts_with("... ") && bare.ends_with(" more")
            || bare.starts_with("frame #")
            || bare.starts_with("File \"") && line.contains(", line ");
        if !frame {
            kept.push(line);
        }
    }
    kept.join("\n")
}

struct Writer<'a> {
    chars: &'a [char],
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
    const OTHERS: &str = "”’»」』()[]{}<>,;=|，。；（）、：";
    c.is_whitespace() || closing(c).is_some() || OTHERS.contains(c)
}

impl Writer<'_> {
    fn string(&self, at: usize, end: usize) -> String {
        self.chars[at..end].iter().collect()
    }

    fn before(&self, at: usize) -> Before {
        before(self.chars, at)
    }

    fn text(&mut self, from: usize, until: usize) {
        let mut at = from;
        while at < until {
            let c = self.chars[at];
            if c.is_whitespace() {
                if !self.out.ends_with(' ') {
                    self.out.push(' ');
                }
                at += 1;
            } else if let Some(length) = quoted(&self.chars[..until], at) {
                self.quote(at, at + length);
                at += length;
            } else if let Some(end) = self.given(at, until) {
                self.out.push_str(&format!("({VALUE})"));
                at = end;
            } else if parts_words(c) {
                self.out.push(c);
                at += 1;
            } else {
                let end = word_end(&self.chars[..until], at);
                self.word(at, end);
                at = end;
            }
        }
    }

    /// Key (email)=(ann@example.com): what is given for a name in parentheses.
    fn given(&self, at: usize, until: usize) -> Option<usize> {
        if self.chars[at] != '(' || at == 0 || self.chars[at - 1] != '=' {
            return None;
        }
        let close = self.chars[at..until].iter().take(QUOTED).position(|c| *c == ')')?;
        Some(at + close + 1)
    }

    /// A name that is one word is kept as far as its digits belong to it, a sentence is looked into, all else is a value.
    fn quote(&mut self, at: usize, end: usize) {
        let (from, until) = (at + 1, end - 1);
        let inside = &self.chars[from..until];
        let words = inside.split(|c| c.is_whitespace()).filter(|word| !word.is_empty()).count();
        let before = self.before(at);
        // A value of JSON is a text of its own.
        let json = self.out.trim_end().ends_with(':') && words > 1;
        self.out.push(self.chars[at]);
        if values::is_value(&before) && (words < 2 || !values::may_speak(&before)) {
            self.out.push_str(VALUE);
        } else if words == 0 {
            self.out.extend(inside);
        } else if values::is_path(inside) || words > 1 && values::is_said(&before) {
            self.out.push_str(VALUE);
        } else if words == 1 {
            self.quoted_word(from, until, &before);
        } else if words > 2 || json || self.is_status(from, until) {
            self.text(from, until);
        } else {
            self.out.push_str(VALUE);
        }
        self.out.push(self.chars[end - 1]);
    }

    /// '404 Not Found'
    fn is_status(&self, from: usize, until: usize) -> bool {
        let digits = self.chars[from..until].iter().take_while(|c| c.is_ascii_digit()).count();
        digits == 3 && codes::is_code(&self.chars[..until], from, from + digits)
    }

    fn quoted_word(&mut self, from: usize, until: usize, before: &Before) {
        let inside = &self.chars[from..until];
        let word = self.string(from, until);
        if word.contains("://") {
            self.word(from, until);
            return;
        }
        let plain = inside.len() <= QUOTED_NAME
            && inside
                .iter()
                .all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '$' | '*' | ':'));
        let in_program = matches!(
            before.word(0),
            "attribute"
                | "module"
                | "argument"
                | "parameter"
                | "function"
                | "method"
                | "property"
                | "symbol"
                | "package"
        );
        let name = plain && !word.contains(char::is_numeric);
        let named =
            plain && in_program && word.starts_with(|c: char| c.is_alphabetic() || c == '_');
        let known = (name || named && word.len() < UUID) && !word.contains(':');
        if word.len() <= QUOTED_NAME
            && (known || names::is_model(&word, before) || names::ends_in_version(&word))
        {
            self.out.push_str(&word);
            return;
        }
        let mut alone = Writer { chars: &self.chars[..until], out: String::new() };
        if plain {
            alone.parts(from, until);
        }
        let kept = !alone.out.is_empty() && !alone.out.contains('<');
        self.out.push_str(if kept { &alone.out } else { VALUE });
    }

    fn word(&mut self, at: usize, end: usize) {
        let word = self.string(at, end);
        let bare = word.trim_end_matches(['.', ':', '!', '?', '…']);
        let bare_end = at + bare.chars().count();
        let tail: String = self.string(bare_end, end);
        let before = self.before(at);
        if let Some(place) = bare.find("://") {
            self.url(at, at + bare[..place].chars().count(), bare_end);
        } else if is_mail(bare) {
            self.out.push_str(ADDRESS);
        } else if is_time(bare) && !names::is_version_of_api(&before) {
            // A place in a file looks like a time of the day: [17:44].
            let place = bare.len() < 6 && at > 0 && self.chars[at - 1] == '[';
            self.out.push_str(if place { NUMBER } else { TIME });
        } else if is_internet_address(bare) || is_bus_address(bare) {
            self.out.push_str(ADDRESS);
        } else if bare.contains("***") {
            self.out.push_str(VALUE);
        } else if values::is_bare_id(
            bare,
            &before,
            self.chars.get(end),
            self.chars[end..].iter().find(|c| !c.is_whitespace()),
        ) {
            self.out.push_str(IDENTITY);
        } else if names::is_whole(bare) {
            self.out.push_str(&bare.to_lowercase());
        } else if names::is_model(bare, &before) {
            self.model(bare);
        } else if bare.contains(['/', '\\']) {
            self.path(at, bare_end);
        } else {
            self.parts(at, bare_end);
        }
        self.out.push_str(&tail);
    }

    /// Without what tells one tuned model from another.
    fn model(&mut self, word: &str) {
        match word.strip_prefix("ft:").and_then(|tuned| tuned.split_once(':')) {
            Some((base, _)) => self.out.push_str(&format!("ft:{base}:{IDENTITY}")),
            None => self.out.push_str(word),
        }
    }

    /// Scheme, host and path; what is asked or pointed to in it is a value.
    fn url(&mut self, at: usize, scheme_end: usize, end: usize) {
        self.parts(at, scheme_end);
        self.out.push_str("://");
        let from = scheme_end + 3;
        let until = self.until_query(from, end);
        let slash = self.chars[from..until].iter().position(|c| *c == '/');
        let host_end = slash.map_or(until, |slash| from + slash);
        // Without a user and a password.
        let user = self.chars[from..host_end].iter().rposition(|c| *c == '@');
        let host_from = user.map_or(from, |user| from + user + 1);
        if is_internet_address(&self.string(host_from, host_end)) {
            self.out.push_str(ADDRESS);
        } else {
            let port = self.chars[host_from..host_end].iter().position(|c| *c == ':');
            self.parts(host_from, port.map_or(host_end, |port| host_from + port));
        }
        self.path(host_end, until);
    }

    fn until_query(&self, from: usize, end: usize) -> usize {
        let query = self.chars[from..end].iter().position(|c| matches!(c, '?' | '#'));
        query.map_or(end, |query| from + query)
    }

    fn path(&mut self, from: usize, end: usize) {
        let end = self.until_query(from, end);
        // Directories whose own are one person's or one process's.
        let mut of_somebody = 0;
        let mut at = from;
        while at < end {
            let slash = self.chars[at..end].iter().position(|c| matches!(c, '/' | '\\'));
            let name_end = slash.map_or(end, |slash| at + slash);
            let name = self.string(at, name_end);
            if of_somebody > 0 && !name.is_empty() {
                self.out.push_str("<user>");
                of_somebody -= 1;
            } else if name.len() == 11 && name.starts_with("tmp") {
                self.out.push_str(IDENTITY);
            } else if names::is_model(&name, &Before::default()) {
                self.out.push_str(&name);
            } else {
                self.parts(at, name_end);
            }
            match name.as_str() {
                "home" | "Users" => of_somebody = 1,
                "folders" => of_somebody = 2,
                _ => {}
            }
            if name_end < end {
                self.out.push(self.chars[name_end]);
            }
            at = name_end + 1;
        }
    }

    /// Runs of ASCII letters and digits, one after the other.
    fn parts(&mut self, at: usize, end: usize) {
        let word = self.string(at, end);
        if let Some(digits) = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"))
            && !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        {
            match codes::is_hexadecimal_code(self.chars, at, end) {
                true => self.out.push_str(&word.to_lowercase()),
                false => self.out.push_str(ADDRESS),
            }
            return;
        }
        if codes::is_dashed(self.chars, at, end) {
            self.out.push_str(&word);
            return;
        }
        if is_number(&word) && !begins_with_uuid(&word) {
            self.number(at, end);
            return;
        }
        match quantity(&word) {
            Some(Quantity::Duration) => return self.out.push_str(DURATION),
            Some(Quantity::Size) => return self.out.push_str(SIZE),
            Some(Quantity::Count) => return self.out.push_str(NUMBER),
            Some(Quantity::Of(unit)) => {
                self.out.push_str(NUMBER);
                self.out.push_str(unit);
                return;
            }
            None => {}
        }
        let mut from = at;
        let mut random = false;
        while from < end {
            if begins_with_uuid(&self.string(from, end)) {
                self.out.push_str(IDENTITY);
                from += UUID;
                random = true;
                continue;
            }
            let ascii = self.chars[from].is_ascii_alphanumeric();
            let until = (from..end)
                .find(|at| self.chars[*at].is_ascii_alphanumeric() != ascii)
                .unwrap_or(end);
            random = match ascii {
                true => self.part((from, until), (at, end), random),
                false => {
                    let others = self.string(from, until);
                    self.without_digits(&others);
                    random && others == "-"
                }
            };
            from = until;
        }
    }

    /// A number by itself, with what belongs to one.
    fn number(&mut self, at: usize, end: usize) {
        let sign = self.chars[at..end].iter().take_while(|c| !c.is_numeric()).count();
        let from = at + sign;
        let digits = self.chars[from..end].iter().take_while(|c| c.is_ascii_digit()).count();
        let whole = from + digits == end
            || self.chars[from + digits] == '.'
                && self.chars[from + digits + 1..end].iter().all(char::is_ascii_digit);
        if whole && codes::is_code(self.chars, from, from + digits) {
            let minus = sign > 0 && self.chars[from - 1] == '-';
            self.out.push_str(if minus { "-" } else { "" });
            let kept = self.string(from, end);
            self.out.push_str(&kept);
        } else if names::is_version_of_api(&self.before(at)) {
            let kept = self.string(at, end);
            self.out.push_str(&kept);
        } else {
            self.out.push_str(NUMBER);
        }
    }

    /// One run of letters and digits of a word; whether it was an id, or what is behind one.
    fn part(
        &mut self,
        (from, until): (usize, usize),
        (at, end): (usize, usize),
        random: bool,
    ) -> bool {
        let part = self.string(from, until);
        let digits = part.bytes().filter(u8::is_ascii_digit).count();
        if digits == part.len() {
            let joined = from > at && matches!(self.chars[from - 1], '_' | '-');
            match !joined && codes::is_code(self.chars, from, until)
                || joined && self.is_joined_code(from, until)
            {
                true => self.out.push_str(&part),
                false => self.out.push_str(NUMBER),
            }
            return false;
        }
        let of_object =
            from > at && self.chars[from - 1] == '@' && part.bytes().all(|b| b.is_ascii_hexdigit());
        if of_object || random && is_suffix(&part) || is_pod(&part, from > at, until == end) {
            self.out.push_str(IDENTITY);
            return true;
        }
        if codes::is_lettered(self.chars, from, until)
            || codes::is_state_of_sql(self.chars, from, until)
            || names::keeps_digits(&part)
        {
            self.out.push_str(&part);
            return false;
        }
        if is_identity(&part) {
            self.out.push_str(IDENTITY);
            return true;
        }
        let ordinal = ["st", "nd", "rd", "th"].iter().any(|end| {
            part.strip_suffix(end)
                .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
        });
        match ordinal {
            true => self.out.push_str("<number>th"),
            false => self.without_digits(&part),
        }
        false
    }

    /// HTTP_429, status-503, exit-137.
    fn is_joined_code(&self, from: usize, until: usize) -> bool {
        let before = self.before(from);
        matches!(
            before.word(0),
            "http"
                | "status"
                | "code"
                | "errno"
                | "exit"
                | "httpstatus"
                | "statuscode"
                | "exitcode"
        ) && codes::is_code(self.chars, from, until)
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

/// Five characters of those that Kubernetes takes for what it makes up.
fn is_suffix(part: &str) -> bool {
    part.len() == 5 && part.bytes().all(|byte| b"bcdfghjklmnpqrstvwxz2456789".contains(&byte))
}

/// The end of the name of a pod: fluentd-x2x4v.
fn is_pod(part: &str, joined: bool, last: bool) -> bool {
    joined && last && is_suffix(part) && part.bytes().any(|byte| byte.is_ascii_digit())
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
        // What is asked in a link without a host, too.
        url |= *c == '?' && chars[at] == '/';
        end += 1;
    }
    end.max(at + 1)
}
