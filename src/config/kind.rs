//! What the value of a setting has to be.

use std::net::SocketAddr;

use toml::Value;

use crate::domain::notification::address::Network;

/// What a value has to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// IP address and port.
    Address,
    /// A directory.
    Directory,
    /// A file that is there.
    File,
    /// Text of 1 to so many characters.
    Text(usize),
    /// A MongoDB connection string.
    MongoUri,
    /// An `http://` URL.
    Endpoint,
    /// An `http://` or `https://` URL.
    Url,
    /// A level, or `tracing` directives.
    LogFilter,
    /// One of these words.
    OneOf(&'static [&'static str]),
    Bool,
    /// A whole number between these.
    Integer(i64, i64),
    /// Seconds between these, fractions allowed.
    Seconds(f64, f64),
    /// A number between 0 and 1.
    Ratio,
    /// At most so many numbers of seconds between these, in text separated by commas.
    SecondsList(f64, f64, usize),
    /// At most so many networks as address/bits, in text separated by commas.
    Networks(usize),
}

impl Kind {
    /// Placeholder of the value in the help.
    pub fn value_name(self) -> &'static str {
        match self {
            Kind::Address => "ADDR",
            Kind::Directory => "DIR",
            Kind::File => "FILE",
            Kind::Text(_) => "NAME",
            Kind::MongoUri => "URI",
            Kind::Endpoint | Kind::Url => "URL",
            Kind::LogFilter => "LEVEL",
            Kind::OneOf(_) => "FORMAT",
            Kind::Bool => "BOOL",
            Kind::Integer(..) => "N",
            Kind::Seconds(..) => "SECONDS",
            Kind::Ratio => "RATIO",
            Kind::SecondsList(..) => "SECONDS,...",
            Kind::Networks(_) => "NETWORK,...",
        }
    }

    /// The value out of text (environment, flag), or what is expected instead.
    pub fn parse(self, text: &str) -> Result<Value, String> {
        let value = match self {
            Kind::Bool => text.parse().map(Value::Boolean).map_err(|_| self.expected())?,
            Kind::Integer(..) => text.parse().map(Value::Integer).map_err(|_| self.expected())?,
            Kind::Seconds(..) | Kind::Ratio => {
                text.parse().map(Value::Float).map_err(|_| self.expected())?
            }
            Kind::SecondsList(..) => {
                let numbers: Option<Vec<Value>> =
                    parts(text).map(|part| part.parse().map(Value::Float).ok()).collect();
                numbers.map(Value::Array).ok_or_else(|| self.expected())?
            }
            Kind::Networks(_) => {
                Value::Array(parts(text).map(|part| Value::String(part.to_owned())).collect())
            }
            _ => Value::String(text.to_owned()),
        };
        self.check(value)
    }

    /// The value if it is of the kind and within the bounds, in its normal form; else what is expected.
    pub fn check(self, value: Value) -> Result<Value, String> {
        let good = match (self, &value) {
            (Kind::Address, Value::String(text)) => {
                return address(text)
                    .map(|address| Value::String(address.to_string()))
                    .ok_or_else(|| self.expected());
            }
            (Kind::Directory | Kind::File, Value::String(text)) => {
                !text.is_empty() && !text.contains('\0')
            }
            (Kind::Text(longest), Value::String(text)) => {
                (1..=longest).contains(&text.chars().count()) && !text.contains('\0')
            }
            (Kind::MongoUri, Value::String(text)) => ["mongodb://", "mongodb+srv://"]
                .iter()
                .any(|scheme| text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty())),
            (Kind::Endpoint, Value::String(text)) => {
                text.strip_prefix("http://").is_some_and(|_| {
                    text.parse::<http::Uri>()
                        .is_ok_and(|uri| uri.host().is_some_and(|host| !host.is_empty()))
                })
            }
            (Kind::Url, Value::String(text)) => text.parse::<http::Uri>().is_ok_and(|uri| {
                matches!(uri.scheme_str(), Some("http" | "https"))
                    && uri.host().is_some_and(|host| !host.is_empty())
            }),
            (Kind::LogFilter, Value::String(text)) => {
                !text.is_empty() && super::log_filter::filter(text).is_ok()
            }
            (Kind::OneOf(words), Value::String(text)) => words.contains(&text.as_str()),
            (Kind::Bool, Value::Boolean(_)) => true,
            (Kind::Integer(least, most), Value::Integer(number)) => (least..=most).contains(number),
            (Kind::Seconds(..) | Kind::Ratio, Value::Integer(number)) => {
                // A whole number of seconds is as good as a fraction.
                return self.check(Value::Float(*number as f64));
            }
            (Kind::Seconds(least, most), Value::Float(number)) => (least..=most).contains(number),
            (Kind::Ratio, Value::Float(number)) => (0.0..=1.0).contains(number),
            (Kind::SecondsList(least, most, count), Value::Array(values)) => {
                let number = |value: &Value| match value {
                    Value::Integer(number) => Some(*number as f64),
                    value => value.as_float(),
                };
                let good = |value: &Value| number(value).filter(|n| (least..=most).contains(n));
                let numbers: Option<Vec<Value>> =
                    values.iter().map(|value| good(value).map(Value::Float)).collect();
                return numbers
                    .filter(|numbers| numbers.len() <= count)
                    .map(Value::Array)
                    .ok_or_else(|| self.expected());
            }
            (Kind::Networks(count), Value::Array(values)) => {
                let is_network = |value: &Value| {
                    value.as_str().is_some_and(|text| Network::parse(text).is_some())
                };
                values.len() <= count && values.iter().all(is_network)
            }
            _ => false,
        };
        if good { Ok(value) } else { Err(self.expected()) }
    }

    fn expected(self) -> String {
        match self {
            Kind::Address => "an IP address and a port, such as 127.0.0.1:50051".to_owned(),
            Kind::Directory => "a directory".to_owned(),
            Kind::File => "a file".to_owned(),
            Kind::Text(longest) => format!("text of 1 to {longest} characters"),
            Kind::MongoUri => "a connection string: mongodb://... or mongodb+srv://...".to_owned(),
            Kind::Endpoint => "a URL such as http://localhost:4317 (without TLS)".to_owned(),
            Kind::Url => "a URL such as https://s3.example.com".to_owned(),
            Kind::LogFilter => {
                "error, warn, info, debug, trace or off, or directives such as info,stepwell::watch=debug"
                    .to_owned()
            }
            Kind::OneOf(words) => format!("one of: {}", words.join(", ")),
            Kind::Bool => "true or false".to_owned(),
            Kind::Integer(least, most) => format!("a whole number from {least} to {most}"),
            Kind::Seconds(least, most) => format!("seconds from {least} to {most}"),
            Kind::Ratio => "a number from 0 to 1".to_owned(),
            Kind::SecondsList(least, most, count) => {
                format!("at most {count} numbers of seconds from {least} to {most}")
            }
            Kind::Networks(count) => {
                format!("at most {count} networks such as 10.0.0.0/8 or fd00::/8")
            }
        }
    }
}

/// What stands between commas.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn address(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}").parse().ok(),
        None => text.parse().ok(),
    }
}
