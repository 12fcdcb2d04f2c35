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
    /// "majority", or a number of members, or a name of the deployment's own.
    pub write_concern: Option<String>,
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
            write_concern: None,
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
