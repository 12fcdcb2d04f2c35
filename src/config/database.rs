//! The connection string of MongoDB: from a file of its own, and what is weak about it.

use std::path::{Path, PathBuf};

use super::settings::by_key;
use super::{Config, Origin, Problem, Secret};
use crate::domain::hosts::is_loopback;

/// A connection string has some hundred characters.
const FILE_BYTES: usize = 64 * 1024;

/// Takes the connection string out of the file that is set for it.
pub(super) fn read_uri_file(config: &mut Config) -> Result<(), Problem> {
    const KEY: &str = "mongodb.uri_file";
    let Some(path) = config.mongodb.uri_file.clone() else { return Ok(()) };
    let refused = |reason: String| Problem::Conflict {
        key: KEY,
        value: format!("{:?}", path.display().to_string()),
        reason,
    };
    if config.mongodb.uri.is_some() {
        return Err(refused("cannot be set together with mongodb.uri: set one of them".to_owned()));
    }
    let text = std::fs::read_to_string(&path)
        .map_err(|error| refused(format!("the file cannot be read: {error}")))?;
    let uri = text.trim();
    if uri.is_empty() {
        return Err(refused("the file is empty".to_owned()));
    }
    let is_one = uri.len() <= FILE_BYTES
        && !uri.contains(char::is_whitespace)
        && by_key("mongodb.uri").is_some_and(|setting| setting.kind.parse(uri).is_ok());
    if !is_one {
        let expected =
            "the file has to hold one connection string: mongodb://... or mongodb+srv://...";
        return Err(refused(expected.to_owned()));
    }
    config.mongodb.uri = Some(Secret::new(uri));
    config.origins.insert("mongodb.uri", Origin::File(path));
    Ok(())
}

/// What a connection string says about safety.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Safety {
    /// Whether a host of it is another machine.
    pub elsewhere: bool,
    /// Whether it says who asks: by credentials, or by a mechanism that needs none in it.
    pub authenticates: bool,
    pub tls: bool,
    /// The option by which whoever answers is believed to be the database.
    pub unverified: Option<&'static str>,
    /// The client's certificate and key.
    pub key_file: Option<PathBuf>,
}

impl Safety {
    pub fn of(uri: &str) -> Safety {
        let (scheme, rest) = uri.split_once("://").unwrap_or(("", uri));
        let (credentials, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
        let (place, options) = rest.split_once('?').unwrap_or((rest, ""));
        let hosts = place.split('/').next().unwrap_or_default();
        let is_srv = scheme == "mongodb+srv";
        let option = |name: &str| {
            let mut options = options.split('&').filter_map(|option| option.split_once('='));
            options.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
        };
        let tls = option("tls").or_else(|| option("ssl"));
        let unverified = ["tlsInsecure", "tlsAllowInvalidCertificates"];
        let needs_none = option("authMechanism").is_some_and(|mechanism| {
            ["MONGODB-X509", "MONGODB-OIDC"].iter().any(|own| mechanism.eq_ignore_ascii_case(own))
        });
        Safety {
            elsewhere: is_srv || !hosts.split(',').all(is_here),
            authenticates: !credentials.is_empty() || needs_none,
            tls: tls.map_or(is_srv, |word| word == "true"),
            unverified: unverified.into_iter().find(|name| option(name) == Some("true")),
            key_file: option("tlsCertificateKeyFile").map(|path| {
                PathBuf::from(path.replace("%2F", "/").replace("%2f", "/").replace("%20", " "))
            }),
        }
    }
}

/// Whether a host of a connection string is this machine.
fn is_here(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    };
    let is_socket = host.to_ascii_lowercase().ends_with(".sock");
    is_socket || is_loopback(name)
}

impl Config {
    /// What the connection string says about safety; `None`: there is none.
    pub fn database_safety(&self) -> Option<Safety> {
        self.mongodb.uri.as_ref().map(|uri| Safety::of(uri.expose()))
    }

    /// Files whose content lets in whoever has it, each with the setting that names it.
    pub fn secret_files(&self) -> Vec<(&'static str, PathBuf)> {
        let mut files = Vec::new();
        let mut add = |key, path: &Path| files.push((key, path.to_owned()));
        if let Some(path) = &self.auth.admin_key_file {
            add("auth.admin_key_file", path);
        }
        if let Some(path) = &self.tls.key_file {
            add("tls.key_file", path);
        }
        if let Some(uri) = &self.mongodb.uri {
            if let Some(Origin::File(path)) = self.origins.get("mongodb.uri")
                && (self.mongodb.uri_file.is_some() || uri.expose().contains('@'))
            {
                add("mongodb.uri", path);
            }
            if let Some(path) = Safety::of(uri.expose()).key_file {
                add("tlsCertificateKeyFile", &path);
            }
        }
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_says_how_safe_it_is() {
        let of = |elsewhere, authenticates, tls, unverified| Safety {
            elsewhere,
            authenticates,
            tls,
            unverified,
            key_file: None,
        };
        for (uri, expected) in [
            ("mongodb://localhost:27017,127.0.0.1:5/x", of(false, false, false, None)),
            ("mongodb://[::1]:27017", of(false, false, false, None)),
            ("mongodb://%2Ftmp%2Fmongodb-27017.sock", of(false, false, false, None)),
            ("mongodb://u:p@localhost,db/?tls=true", of(true, true, true, None)),
            ("mongodb://u:p@db/?ssl=false&tlsInsecure=false", of(true, true, false, None)),
            ("mongodb+srv://u:p@db.example", of(true, true, true, None)),
            ("mongodb+srv://@db.example", of(true, false, true, None)),
            ("mongodb+srv://u:p@db.example/?tls=false", of(true, true, false, None)),
            ("mongodb://h/?authMechanism=mongodb-x509", of(true, true, false, None)),
            ("mongodb://h/?tls=true&TLSINSECURE=true", of(true, false, true, Some("tlsInsecure"))),
            (
                "mongodb://h/?tls=true&tlsAllowInvalidCertificates=true",
                of(true, false, true, Some("tlsAllowInvalidCertificates")),
            ),
        ] {
            assert_eq!(Safety::of(uri), expected, "{uri}");
        }
        let own = Safety::of("mongodb://h/?tls=true&tlsCertificateKeyFile=%2Fetc%2Fown.pem");
        assert_eq!(own.key_file, Some(PathBuf::from("/etc/own.pem")));
    }
}
