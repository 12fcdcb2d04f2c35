//! How to reach the database: what the connection string says, what it leaves to the settings, and what it does not
//! decide at all. docs/mongodb.md has a row for each option.

use std::future::IntoFuture as _;
use std::time::Duration;

use futures::FutureExt as _;
use mongodb::options::{
    Acknowledgment, ClientOptions, ConnectionString, ReadConcern, ReadPreference, WriteConcern,
};

use super::failure;
use crate::store::{Error, Result};

/// What servers call themselves to the database, unless the URI says another name.
pub const APP_NAME: &str = "stepwell";

/// In which ways somebody may say to the database who they are.
const MECHANISMS: [&str; 5] =
    ["SCRAM-SHA-1", "SCRAM-SHA-256", "MONGODB-X509", "PLAIN", "MONGODB-OIDC"];
/// Where a token for MONGODB-OIDC may come from: a file that the platform keeps up to date.
const TOKENS: &str = "k8s";

/// How to reach the database. Everything but the URI and the database is a default that the URI overrides.
#[derive(Clone, PartialEq, Eq)]
pub struct MongoOptions {
    pub uri: String,
    pub database: String,
    pub max_pool_size: u32,
    pub min_pool_size: u32,
    pub max_idle_ms: u64,
    pub server_selection_timeout_ms: u64,
    pub retry_writes: Option<bool>,
    /// How long a point of metrics is kept; `None`: for ever.
    pub metrics_kept: Option<Duration>,
    /// How long a record of who did what is kept; `None`: for ever.
    pub audit_kept: Option<Duration>,
    /// Whether points are kept in an ordinary collection where there is none yet, and not in a time series.
    pub ordinary_metrics: bool,
    /// "majority", or a number of members, or a name of the deployment's own.
    pub write_concern: Option<String>,
    /// Nothing is made or written, whatever is missing: the database is somebody else's.
    pub read_only: bool,
}

impl Default for MongoOptions {
    fn default() -> Self {
        MongoOptions {
            uri: "mongodb://127.0.0.1:27017".to_owned(),
            database: "ai_apps".to_owned(),
            max_pool_size: 100,
            min_pool_size: 10,
            max_idle_ms: 30_000,
            server_selection_timeout_ms: 5_000,
            retry_writes: None,
            metrics_kept: Some(Duration::from_secs(30 * 24 * 3600)),
            audit_kept: None,
            ordinary_metrics: false,
            write_concern: None,
            read_only: false,
        }
    }
}

impl std::fmt::Debug for MongoOptions {
    // The URI carries a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MongoOptions").field("database", &self.database).finish_non_exhaustive()
    }
}

impl MongoOptions {
    /// How long the database may take to be found. `Error::Failed`: the URI is malformed, or asks for what cannot be.
    pub fn check(&self) -> Result<Duration> {
        if let Some(refused) = refused_mechanism(&self.uri) {
            return Err(Error::failed(refused));
        }
        // The parser's own words may quote a piece of a password.
        let parsed = ConnectionString::parse(&self.uri)
            .map_err(|_| Error::failed("the MongoDB URI is malformed"))?;
        // What can be said without asking anybody: a URI that names its hosts is resolved at once.
        let resolved = ClientOptions::parse(&self.uri).into_future().now_or_never();
        if let Some(Err(error)) = resolved {
            return Err(Error::failed(failure::words(&error)));
        }
        let of_uri = parsed.write_concern.and_then(|concern| concern.w);
        if self.acknowledgment(of_uri) == Acknowledgment::Nodes(0) {
            return Err(Error::failed(
                "w=0 asks for writes that nobody acknowledges, so that none could be answered",
            ));
        }
        let default = Duration::from_millis(self.server_selection_timeout_ms.max(1));
        Ok(parsed.server_selection_timeout.unwrap_or(default))
    }

    /// The replica set that the URI names.
    pub fn set_of_uri(&self) -> Option<String> {
        ConnectionString::parse(&self.uri).ok()?.replica_set
    }

    /// How many members have to have a record before its writer is answered.
    fn acknowledgment(&self, of_uri: Option<Acknowledgment>) -> Acknowledgment {
        of_uri.unwrap_or_else(|| match self.write_concern.as_deref() {
            None | Some("majority") => Acknowledgment::Majority,
            Some(other) => match other.parse() {
                Ok(members) => Acknowledgment::Nodes(members),
                Err(_) => Acknowledgment::Custom(other.to_owned()),
            },
        })
    }

    /// The options of the driver. What reads and writes mean is not left to the URI: each says it by itself, and this
    /// is what the driver takes where nothing is said.
    pub async fn resolve(&self, patience: Duration) -> Result<ClientOptions> {
        let mut parsed = ClientOptions::parse(&self.uri).await.map_err(failure::error)?;
        parsed.max_pool_size.get_or_insert(self.max_pool_size);
        let most = parsed.max_pool_size.filter(|most| *most > 0).unwrap_or(u32::MAX);
        parsed.min_pool_size.get_or_insert(self.min_pool_size.min(most));
        parsed.max_idle_time.get_or_insert(Duration::from_millis(self.max_idle_ms));
        parsed.server_selection_timeout.get_or_insert(patience);
        parsed.connect_timeout.get_or_insert(patience);
        parsed.app_name.get_or_insert_with(|| APP_NAME.to_owned());
        if parsed.retry_writes.is_none() {
            parsed.retry_writes = self.retry_writes;
        }
        let mut concern = parsed.write_concern.take().unwrap_or_default();
        concern.w = Some(self.acknowledgment(concern.w.take()));
        // A majority that cannot be reached must not hold a caller for ever.
        concern.w_timeout.get_or_insert(patience);
        parsed.write_concern = Some(concern);
        parsed.selection_criteria = Some(ReadPreference::Primary.into());
        parsed.read_concern = Some(ReadConcern::local());
        Ok(parsed)
    }
}

/// Why the way in which a URI wants to say who one is cannot be. Of the URI nothing else is quoted.
fn refused_mechanism(uri: &str) -> Option<String> {
    let (_, options) = uri.rsplit_once('?')?;
    let option = |name: &str| {
        let mut options = options.split('&').filter_map(|option| option.split_once('='));
        let found = options.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.replace("%2D", "-").replace("%2d", "-").replace("%3A", ":"))
    };
    let mechanism = option("authMechanism")?;
    let is_word = |text: &str| {
        text.len() <= 40 && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_alphanumeric())
    };
    if !MECHANISMS.contains(&mechanism.as_str()) {
        let shown = if is_word(&mechanism) { mechanism } else { "(hidden)".to_owned() };
        return Some(format!(
            "authMechanism={shown} is not supported: use one of {}",
            MECHANISMS.join(", ")
        ));
    }
    if mechanism != "MONGODB-OIDC" {
        return None;
    }
    let properties = option("authMechanismProperties").unwrap_or_default();
    let environment = properties.split(',').find_map(|one| one.strip_prefix("ENVIRONMENT:"));
    if environment == Some(TOKENS) {
        return None;
    }
    let shown = match environment {
        Some(environment) if is_word(environment) => format!("ENVIRONMENT:{environment}"),
        Some(_) => "this ENVIRONMENT".to_owned(),
        None => "MONGODB-OIDC without an ENVIRONMENT".to_owned(),
    };
    Some(format!(
        "{shown} is not supported: set authMechanismProperties=ENVIRONMENT:{TOKENS}, which takes the token from a file"
    ))
}

/// What reads and writes wait for.
#[derive(Debug, Clone)]
pub struct Concerns {
    /// Writes of records, as the URI or the settings say.
    pub records: WriteConcern,
    /// Writes that the servers themselves go by.
    pub majority: WriteConcern,
    /// Reads for answers: what the writes that were answered have been waited for.
    pub answers: ReadConcern,
}

impl Concerns {
    pub fn of(records: WriteConcern, replica_set: bool, patience: Duration) -> Concerns {
        // The majority's snapshot is that of the journals. It lacks what was answered before it got there.
        let is_safe = records.w == Some(Acknowledgment::Majority) && records.journal != Some(false);
        let answers = match replica_set && is_safe {
            true => ReadConcern::majority(),
            false => ReadConcern::local(),
        };
        let wait = records.w_timeout.unwrap_or(patience);
        let majority =
            WriteConcern::builder().w(Acknowledgment::Majority).w_timeout(Some(wait)).build();
        Concerns { records, majority, answers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(w: Acknowledgment, journal: Option<bool>, replica_set: bool) -> ReadConcern {
        let records = WriteConcern::builder().w(w).journal(journal).build();
        Concerns::of(records, replica_set, Duration::from_secs(1)).answers
    }

    #[test]
    fn answers_have_what_writes_were_waited_for() {
        let (majority, local) = (ReadConcern::majority(), ReadConcern::local());
        assert_eq!(answers(Acknowledgment::Majority, None, true), majority);
        assert_eq!(answers(Acknowledgment::Majority, Some(true), true), majority);
        assert_eq!(answers(Acknowledgment::Majority, Some(false), true), local);
        assert_eq!(answers(Acknowledgment::Majority, None, false), local);
        assert_eq!(answers(Acknowledgment::Nodes(1), None, true), local);
        assert_eq!(answers(Acknowledgment::Nodes(3), None, true), local);
        assert_eq!(answers(Acknowledgment::Custom("dcs".to_owned()), None, true), local);
    }

    #[test]
    fn mechanisms_that_are_not_built_in_are_refused_by_name() {
        let oidc = "mongodb://h/?tls=true&authMechanism=MONGODB-OIDC&authMechanismProperties=";
        for (uri, named) in [
            ("mongodb://u:secret@h/?authMechanism=GSSAPI".to_owned(), Some("GSSAPI")),
            ("mongodb://u:secret@h/?w=1&AUTHMECHANISM=MONGODB-AWS".to_owned(), Some("MONGODB-AWS")),
            ("mongodb://u:secret@h/?authMechanism=MONGODB-CR".to_owned(), Some("MONGODB-CR")),
            ("mongodb://u:secret@h/?authMechanism=se:cret".to_owned(), Some("(hidden)")),
            (format!("{oidc}ENVIRONMENT:azure,TOKEN_RESOURCE:x"), Some("ENVIRONMENT:azure")),
            (format!("{oidc}TOKEN_RESOURCE:x"), Some("without an ENVIRONMENT")),
            (format!("{oidc}ENVIRONMENT:k8s"), None),
            ("mongodb://u:p@h/?authMechanism=SCRAM-SHA-1".to_owned(), None),
            ("mongodb://u:p@h/?authMechanism=SCRAM%2DSHA%2D256".to_owned(), None),
            ("mongodb://h/?tls=true&authMechanism=MONGODB-X509".to_owned(), None),
            ("mongodb://u:p@h/?tls=true&authMechanism=PLAIN&authSource=$external".to_owned(), None),
        ] {
            let options = MongoOptions { uri: uri.clone(), ..MongoOptions::default() };
            match (options.check(), named) {
                (Ok(_), None) => {}
                (Err(Error::Failed(why)), Some(named)) => {
                    let why = why.to_string();
                    assert!(why.contains(named) && !why.contains("secret"), "{uri}: {why}");
                }
                (other, _) => panic!("{uri}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn the_driver_is_told_nothing_about_reading_by_the_uri() {
        let options = MongoOptions {
            uri: "mongodb://a/?readPreference=nearest&readConcernLevel=linearizable&w=2".to_owned(),
            ..MongoOptions::default()
        };
        let resolved = options.resolve(options.check().unwrap()).await.unwrap();
        assert_eq!(resolved.read_concern, Some(ReadConcern::local()));
        assert_eq!(resolved.selection_criteria, Some(ReadPreference::Primary.into()));
        let concern = resolved.write_concern.unwrap();
        assert_eq!(concern.w, Some(Acknowledgment::Nodes(2)));
        assert_eq!(concern.w_timeout, Some(Duration::from_secs(5)));
    }
}
