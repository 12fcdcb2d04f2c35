//! Where records are that are compared or moved: files, a database of MongoDB, or another server.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use super::connection::{Connection, ServerArgs};
use super::exit::{Failure, Result};
use crate::config::{Config, ServeFlags};
use crate::server::embedded::Embedded;

/// As it is written on the command line.
#[derive(Clone, PartialEq, Eq)]
pub enum Source {
    /// A folder of files, or one of them.
    Files(PathBuf),
    Mongodb {
        uri: String,
        database: String,
    },
    /// With the scheme that connections have.
    Server(String),
}

impl std::fmt::Debug for Source {
    // A connection string may carry a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Files(path) => write!(f, "{}", path.display()),
            Source::Mongodb { database, .. } => write!(f, "mongodb database {database}"),
            Source::Server(address) => f.write_str(address),
        }
    }
}

impl Source {
    /// Where it is, told apart from all others, without who asks.
    pub fn place(&self) -> String {
        let Source::Mongodb { uri, .. } = self else { return self.to_string() };
        let rest = uri.split_once("://").map_or("", |(_, rest)| rest);
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let hosts = authority.rsplit('@').next().unwrap_or_default();
        format!("{self} at {hosts}")
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(given: &str) -> std::result::Result<Source, String> {
        if given.starts_with("mongodb://") || given.starts_with("mongodb+srv://") {
            let database = database_of(given)
                .ok_or("needs the name of the database, as in mongodb://HOST:PORT/DATABASE")?;
            return Ok(Source::Mongodb { uri: given.to_owned(), database });
        }
        if let Some(address) = given.strip_prefix("grpc://") {
            return super::connection::parse_address(&format!("http://{address}"))
                .map(Source::Server);
        }
        if let Some(address) = given.strip_prefix("grpcs://") {
            return super::connection::parse_address(&format!("https://{address}"))
                .map(Source::Server);
        }
        match given.split_once("://") {
            Some((scheme, _)) => Err(format!(
                "unknown scheme {scheme}: use a folder, mongodb://HOST:PORT/DATABASE or grpc://HOST:PORT"
            )),
            None => Ok(Source::Files(given.into())),
        }
    }
}

/// The path of a connection string, as far as it names a database.
fn database_of(uri: &str) -> Option<String> {
    let rest = uri.split_once("://")?.1;
    let path = rest.split_once('/')?.1;
    let name = path.split('?').next().unwrap_or_default();
    (!name.is_empty()).then(|| name.to_owned())
}

/// A source that answers calls, and what has to be closed afterwards.
pub struct Opened {
    pub connection: Connection,
    embedded: Option<Arc<Embedded>>,
}

impl Opened {
    /// Opens whatever is no files.
    pub fn open(source: &Source, server: &ServerArgs) -> Result<Option<Opened>> {
        Ok(Some(match source {
            Source::Files(_) => return Ok(None),
            Source::Server(address) => {
                Opened { connection: server.at(address).connect()?, embedded: None }
            }
            Source::Mongodb { uri, database } => {
                let embedded = Embedded::reading(uri, database, artifacts_of_environment()?);
                let embedded = embedded
                    .map_err(|error| Failure::CouldNotStart(format!("{source}: {error:#}")))?;
                let connection = Connection::within(Arc::clone(&embedded));
                Opened { connection, embedded: Some(embedded) }
            }
        }))
    }

    pub async fn close(self) {
        if let Some(embedded) = self.embedded {
            embedded.close().await;
        }
    }
}

/// Where the bytes of artifacts are, as the environment says it for a server of that database. Nothing else of it counts.
fn artifacts_of_environment() -> Result<Config> {
    let named = std::env::vars_os().filter(|(name, _)| {
        name.to_str().is_some_and(|name| name.starts_with("STEPWELL_ARTIFACTS_"))
    });
    let (config, _) = Config::load(&ServeFlags::default(), named)
        .map_err(|error| Failure::CouldNotStart(error.to_string()))?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_known_by_its_scheme() {
        assert_eq!("runs/2026".parse(), Ok(Source::Files("runs/2026".into())));
        assert_eq!("grpc://b:50051".parse(), Ok(Source::Server("http://b:50051".to_owned())));
        let uri = "mongodb://user:secret@a:1,b:2/ai_apps?replicaSet=rs0";
        let source: Source = uri.parse().expect("a source");
        assert_eq!(source, Source::Mongodb { uri: uri.to_owned(), database: "ai_apps".to_owned() });
        assert!(!format!("{source:?} {source}").contains("secret"));
        for wrong in
            ["mongodb://a:1", "mongodb://a:1/", "mongodb://a:1/?w=1", "grpc://b", "http://b:1"]
        {
            assert!(wrong.parse::<Source>().is_err(), "{wrong}");
        }
    }
}
