//! Shapes of words: what a time, an address, a number or an id looks like by itself.

/// Letters and digits mixed are an id from this length on.
const ID: usize = 6;
/// Characters of a UUID.
pub const UUID: usize = 36;

pub fn is_mail(word: &str) -> bool {
    let Some((name, host)) = word.split_once('@') else { return false };
    !name.is_empty()
        && host.contains('.')
        && !host.ends_with('.')
        && host.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-'))
}

/// A date, a time of the day, or both: digits in the shapes of ISO 8601 and its like.
pub fn is_time(word: &str) -> bool {
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
pub fn is_internet_address(word: &str) -> bool {
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

/// Of a device on the PCI bus: 0000:65:00.0, PCI:0000:b3:00.
pub fn is_bus_address(word: &str) -> bool {
    let word = word.strip_prefix("PCI:").unwrap_or(word);
    let word = word.split_once('.').map_or(word, |(address, _)| address);
    let groups: Vec<&str> = word.split(':').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    matches!(lengths[..], [4 | 8, 2, 2])
        && groups.iter().all(|group| group.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// 42, -1.5, 1,234, 3.2.1, 1e-9, 99%.
pub fn is_number(word: &str) -> bool {
    let word = word.trim_start_matches(['-', '+', '#', '$', '€', '~', '±']);
    let word = word.trim_end_matches('%');
    word.starts_with(char::is_numeric)
        && word
            .chars()
            .all(|c| c.is_numeric() || matches!(c, '.' | ',' | ':' | '-' | '+' | 'e' | 'E' | '_'))
        && word.ends_with(char::is_numeric)
}

/// Units of time and of size that are written right behind a number, and others.
const TIME_UNITS: [&str; 17] = [
    "ns", "us", "µs", "μs", "ms", "s", "sec", "secs", "m", "min", "mins", "h", "hr", "hrs", "d",
    "w", "y",
];
const SIZE_UNITS: [&str; 19] = [
    "b", "B", "kb", "kB", "KB", "mb", "MB", "gb", "GB", "tb", "TB", "Ki", "Mi", "Gi", "Ti", "KiB",
    "MiB", "GiB", "TiB",
];
const MULTIPLES: [&str; 5] = ["k", "K", "M", "G", "T"];
const OTHER_UNITS: [&str; 9] = ["x", "px", "pt", "Hz", "kHz", "MHz", "GHz", "W", "V"];

/// What a number with its unit tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    Duration,
    Size,
    Count,
    Of(&'static str),
}

/// 500ms, 1.5s, 1m30s, 64MiB, 10k, 3x.
pub fn quantity(word: &str) -> Option<Quantity> {
    let mut found = None;
    let mut rest = word.trim_start_matches(['-', '+', '~']);
    while !rest.is_empty() {
        let number =
            rest.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | ','));
        if number.len() == rest.len() || !rest.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let end = number.find(|c: char| c.is_ascii_digit()).unwrap_or(number.len());
        let (unit, after) = number.split_at(end);
        let one = if TIME_UNITS.contains(&unit) {
            Quantity::Duration
        } else if SIZE_UNITS.contains(&unit) {
            Quantity::Size
        } else if MULTIPLES.contains(&unit) {
            Quantity::Count
        } else {
            Quantity::Of(OTHER_UNITS.into_iter().find(|known| *known == unit)?)
        };
        if found.is_some_and(|found| found != one) {
            return None;
        }
        found = Some(one);
        rest = after;
    }
    found
}

pub fn begins_with_uuid(word: &str) -> bool {
    let bytes = word.as_bytes();
    bytes.len() >= UUID
        && bytes[..UUID].iter().enumerate().all(|(place, byte)| match place {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
        && bytes.get(UUID).is_none_or(|next| !next.is_ascii_alphanumeric())
}

/// Letters and digits as no word has them.
pub fn is_identity(part: &str) -> bool {
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
    // Letters and then a number: x100, where it is not hexadecimal, is a numbered thing.
    let letters = bytes.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
    if letters > 0
        && letters + digits == part.len()
        && bytes[letters..].iter().all(u8::is_ascii_digit)
    {
        return false;
    }
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
