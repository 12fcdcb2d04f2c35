//! Subject alternative names of certificates, and patterns of them.

use std::fmt;

/// The longest pattern, in bytes.
const PATTERN_BYTES: usize = 1024;

/// A name in a certificate that says whose it is. Others, such as addresses and the common name, say nothing here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SanName {
    Uri(String),
    Dns(String),
}

impl SanName {
    pub fn as_str(&self) -> &str {
        match self {
            SanName::Uri(name) | SanName::Dns(name) => name,
        }
    }
}

/// A URI or a DNS name, exact or ending in `*`. What has a colon is a URI: no DNS name has one, and every URI has. URIs are
/// compared byte by byte, DNS names without regard to case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SanPattern {
    /// Without its `*`; of a DNS name in lower case.
    text: String,
    is_beginning: bool,
}

impl SanPattern {
    /// Reads a pattern; else what is wrong with it, as the end of a sentence about it.
    pub fn parse(text: &str) -> Result<SanPattern, &'static str> {
        if text.is_empty() {
            return Err("names nobody");
        }
        if text.len() > PATTERN_BYTES {
            return Err("is longer than 1024 bytes");
        }
        let (name, is_beginning) = match text.strip_suffix('*') {
            Some(name) => (name, true),
            None => (text, false),
        };
        if name.contains('*') {
            return Err("has a * that is not at its end");
        }
        if name.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("has a character that is in no URI and no DNS name");
        }
        let is_uri = name.contains(':');
        let text = if is_uri { name.to_owned() } else { name.to_ascii_lowercase() };
        Ok(SanPattern { text, is_beginning })
    }

    pub fn holds(&self, name: &SanName) -> bool {
        let is_any = self.text.is_empty();
        let is_uri = self.text.contains(':');
        let name = match name {
            SanName::Uri(name) if is_uri || is_any => name.clone(),
            SanName::Dns(name) if !is_uri => name.to_ascii_lowercase(),
            _ => return false,
        };
        match self.is_beginning {
            true => name.as_bytes().starts_with(self.text.as_bytes()),
            false => name == self.text,
        }
    }
}

impl fmt::Display for SanPattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}{}", self.text, if self.is_beginning { "*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_matched_exactly_or_by_its_beginning_and_within_its_kind() {
        let uri = |name: &str| SanName::Uri(name.to_owned());
        let dns = |name: &str| SanName::Dns(name.to_owned());
        for (pattern, name, holds) in [
            ("spiffe://org/app", uri("spiffe://org/app"), true),
            ("spiffe://org/app", uri("spiffe://org/app/2"), false),
            ("spiffe://org/app", uri("spiffe://org/App"), false),
            ("spiffe://org/*", uri("spiffe://org/app"), true),
            ("spiffe://org/*", uri("spiffe://org.evil/app"), false),
            ("urn:app:*", uri("urn:app:7"), true),
            ("app.example", dns("app.example"), true),
            ("App.example", dns("APP.example"), true),
            ("app.example", dns("app.example.evil"), false),
            ("app.*", dns("app.example"), true),
            // A URI is no DNS name, whatever it says.
            ("app.*", uri("app.example"), false),
            ("spiffe://*", dns("spiffe"), false),
            ("*", uri("urn:x"), true),
            ("*", dns("app"), true),
        ] {
            let read = SanPattern::parse(pattern).unwrap();
            assert_eq!(read.holds(&name), holds, "{pattern} {name:?}");
        }
        for bad in ["", "*.example", "a*b", "**", "a b", "a\n", &"a".repeat(1025)] {
            assert!(SanPattern::parse(bad).is_err(), "{bad}");
        }
    }
}
