//! Values that never reach a log, a listing or an error message.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// What stands where a secret is hidden.
const MASK: &str = "***";

/// A connection string. `Debug`, `Display` and serialisation show it with its credentials masked; only
/// `expose` gives it away.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Secret(value.into())
    }

    /// The value itself, for the one who opens the connection.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&mask_uri(&self.0))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", mask_uri(&self.0))
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&mask_uri(&self.0))
    }
}

/// A URI without its password and without the options that carry secrets. Where the URI is malformed (a
/// password with an unescaped `@`, `/` or `?`) this hides too much rather than too little.
pub fn mask_uri(uri: &str) -> String {
    let Some((scheme, rest)) = uri.split_once("://") else {
        return MASK.to_owned();
    };
    let (credentials, rest) = match rest.rfind('@') {
        // The last `@`, because a raw one in a password is a common mistake.
        Some(at) => (Some(&rest[..at]), &rest[at + 1..]),
        None => (None, rest),
    };
    let mut masked = format!("{scheme}://");
    if let Some(credentials) = credentials {
        // An `@` in the options (`authSource=a@b`) makes "credentials" of the hosts; then all of it is hidden.
        match credentials.split_once(':') {
            Some((user, _)) => masked.push_str(&format!("{user}:{MASK}@")),
            // What stands alone is a name to a database, and a token to others.
            None if scheme.starts_with("mongodb") => masked.push_str(&format!("{credentials}@")),
            None => masked.push_str(&format!("{MASK}@")),
        }
    }
    match rest.split_once('?') {
        None => masked.push_str(rest),
        Some((place, options)) => {
            masked.push_str(place);
            let options: Vec<String> = options.split('&').map(mask_option).collect();
            masked.push('?');
            masked.push_str(&options.join("&"));
        }
    }
    masked
}

fn mask_option(option: &str) -> String {
    let Some((name, value)) = option.split_once('=') else {
        return option.to_owned();
    };
    let lower = name.to_ascii_lowercase();
    let secret = ["password", "properties", "secret", "token", "signature", "credential"]
        .iter()
        .any(|word| lower.contains(word))
        || lower.ends_with("key")
        || ["sig", "auth"].contains(&lower.as_str());
    format!("{name}={}", if secret { MASK } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_hidden() {
        for (uri, masked) in [
            ("mongodb://localhost:27017", "mongodb://localhost:27017"),
            (
                "mongodb://a:27017,b:27018/?replicaSet=rs",
                "mongodb://a:27017,b:27018/?replicaSet=rs",
            ),
            ("mongodb://eve:hunter2@h:27017/db", "mongodb://eve:***@h:27017/db"),
            ("mongodb+srv://eve:hunter2@h.example", "mongodb+srv://eve:***@h.example"),
            (
                "mongodb://eve@h/?authMechanism=MONGODB-X509",
                "mongodb://eve@h/?authMechanism=MONGODB-X509",
            ),
            ("mongodb://eve:p@ss@h/", "mongodb://eve:***@h/"),
            ("mongodb://eve:p/s?s@h/", "mongodb://eve:***@h/"),
            (
                "mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:abc&w=1",
                "mongodb://h/?authMechanismProperties=***&w=1",
            ),
            (
                "mongodb://h/?tlsCertificateKeyFilePassword=abc",
                "mongodb://h/?tlsCertificateKeyFilePassword=***",
            ),
            ("http://TOKEN@otlp:4317", "http://***@otlp:4317"),
            (
                "https://s3/b?X-Amz-Signature=a&sig=b&api_key=c&v=1",
                "https://s3/b?X-Amz-Signature=***&sig=***&api_key=***&v=1",
            ),
            ("hunter2", "***"),
        ] {
            assert_eq!(mask_uri(uri), masked, "{uri}");
            assert_eq!(format!("{:?}", Secret::new(uri)), format!("{masked:?}"));
            assert_eq!(Secret::new(uri).to_string(), masked);
        }
    }
}
