//! What an operator can set: one struct per part. Defaults < TOML file < `STEPWELL_*` environment < flags.
//!
//! `settings` is the one table from which names, checks, help and documentation come; `load` puts the layers
//! together. Loading is a pure function of its inputs but for reading the file: it opens no port and no
//! database, so a bad configuration ends the process before anything else happens.

mod access;
mod audit;
mod database;
mod idle;
mod kind;
mod lists;
mod load;
pub mod log_filter;
mod print;
mod secret;
pub mod settings;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::limits::{Limits, seconds};

pub use access::{Auth, AuthMode, CertificateRule, ClientAuth, Oidc, OidcRule, Tls, TlsMode};
pub use audit::{Audit, AuditLevel};
pub use database::Safety;
pub use load::{ConfigError, Origin, Problem, ServeFlags, Warning};
pub use secret::{Secret, mask_uri};
pub use settings::reference_table;

/// Exit code of a process that refuses its configuration (`EX_CONFIG` of sysexits).
pub const EXIT_CODE: u8 = 78;

/// The effective configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub listen: SocketAddr,
    pub data_dir: PathBuf,
    pub auth: Auth,
    pub tls: Tls,
    pub audit: Audit,
    pub http: Http,
    pub mongodb: Mongodb,
    pub grpc: Grpc,
    pub writes: Writes,
    pub watch: Watch,
    pub retention: Retention,
    pub artifacts: Artifacts,
    pub search: Search,
    pub notifications: Notifications,
    pub limits: Limits,
    pub shutdown: Shutdown,
    pub log: Log,
    pub telemetry: Telemetry,
    /// For reading the database of somebody else: nothing is written to it, and nothing is done in the background.
    #[serde(skip)]
    pub read_only: bool,
    /// Where each setting that is not the default came from.
    #[serde(skip)]
    pub origins: BTreeMap<&'static str, Origin>,
}

/// Which database holds the data.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StoreChoice<'a> {
    /// The embedded store, in this directory.
    Sqlite { data_dir: &'a Path },
    /// A MongoDB deployment.
    Mongodb { uri: &'a Secret, settings: &'a Mongodb },
}

impl Config {
    /// Refuses what lets in whom nobody meant to let in. Before a port opens.
    pub fn check_doors(&self) -> Result<(), ConfigError> {
        let problems = load::doors(self);
        if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }) }
    }

    /// Whether the ports speak TLS.
    pub fn speaks_tls(&self) -> bool {
        self.tls.mode == Some(TlsMode::On)
    }

    /// Whether callers are asked who they are.
    pub fn asks_callers(&self) -> bool {
        self.auth.mode == Some(AuthMode::Required)
    }

    /// MongoDB when there is a URI for it, else the embedded store.
    pub fn store(&self) -> StoreChoice<'_> {
        match &self.mongodb.uri {
            Some(uri) => StoreChoice::Mongodb { uri, settings: &self.mongodb },
            None => StoreChoice::Sqlite { data_dir: &self.data_dir },
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 50051)),
            data_dir: PathBuf::from("./stepwell-data"),
            auth: Auth::default(),
            tls: Tls::default(),
            audit: Audit::default(),
            http: Http::default(),
            mongodb: Mongodb::default(),
            grpc: Grpc::default(),
            writes: Writes::default(),
            watch: Watch::default(),
            retention: Retention::default(),
            search: Search::default(),
            notifications: Notifications::default(),
            artifacts: Artifacts::default(),
            limits: Limits::default(),
            shutdown: Shutdown::default(),
            log: Log::default(),
            telemetry: Telemetry::default(),
            read_only: false,
            origins: BTreeMap::new(),
        }
    }
}

/// The HTTP port: metrics and probes.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    pub listen: Option<SocketAddr>,
    pub public_url: Option<Secret>,
}

/// MongoDB. What is `None` is left to the URI, and to the defaults there: pool 10 to 100, 30 s idle,
/// retryable writes, write concern majority.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mongodb {
    pub uri: Option<Secret>,
    /// Where the URI is, instead.
    pub uri_file: Option<PathBuf>,
    /// The database is on a network that nobody else reaches.
    pub trusted_network: bool,
    pub database: String,
    pub max_pool_size: Option<u32>,
    pub min_pool_size: Option<u32>,
    #[serde(with = "optional_seconds", rename = "max_idle_seconds")]
    pub max_idle: Option<Duration>,
    pub retry_writes: Option<bool>,
    pub write_concern: Option<String>,
    pub metrics_collection: String,
    #[serde(with = "optional_seconds", rename = "server_selection_timeout_seconds")]
    pub server_selection_timeout: Option<Duration>,
}

impl Default for Mongodb {
    fn default() -> Self {
        Mongodb {
            uri: None,
            uri_file: None,
            trusted_network: false,
            database: "ai_apps".to_owned(),
            max_pool_size: None,
            min_pool_size: None,
            max_idle: None,
            retry_writes: None,
            write_concern: None,
            metrics_collection: "timeseries".to_owned(),
            server_selection_timeout: None,
        }
    }
}

/// Connections of gRPC clients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Grpc {
    pub streams_per_connection: u32,
    #[serde(with = "seconds", rename = "ping_interval_seconds")]
    pub ping_interval: Duration,
    #[serde(with = "seconds", rename = "ping_timeout_seconds")]
    pub ping_timeout: Duration,
    #[serde(with = "seconds", rename = "handshake_seconds")]
    pub handshake: Duration,
    #[serde(with = "seconds", rename = "idle_seconds")]
    pub idle: Duration,
}

impl Default for Grpc {
    fn default() -> Self {
        Grpc {
            streams_per_connection: 16_384,
            ping_interval: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(20),
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(300),
        }
    }
}

/// The write path: what may wait, and how much goes to the store at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Writes {
    pub queue_writes: usize,
    pub queue_bytes: usize,
    pub batch_writes: usize,
    pub batch_bytes: usize,
    pub ingest_in_flight: usize,
}

impl Default for Writes {
    fn default() -> Self {
        Writes {
            queue_writes: 16_384,
            queue_bytes: 128 * 1024 * 1024,
            batch_writes: 500,
            batch_bytes: 8 * 1024 * 1024,
            ingest_in_flight: 1024,
        }
    }
}

/// Watch streams.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Watch {
    #[serde(with = "seconds", rename = "keepalive_seconds")]
    pub keepalive: Duration,
    #[serde(with = "seconds", rename = "linger_seconds")]
    pub linger: Duration,
    pub inbox_events: usize,
    pub inbox_bytes: usize,
    pub catch_up_readers: usize,
}

impl Default for Watch {
    fn default() -> Self {
        Watch {
            keepalive: Duration::from_secs(15),
            linger: Duration::from_secs(30),
            inbox_events: 64,
            inbox_bytes: 32 * 1024,
            catch_up_readers: 2,
        }
    }
}

/// How long records are kept, counted from when they were stored, points of metrics by their own time; 0: for ever.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    #[serde(with = "seconds")]
    pub executions: Duration,
    #[serde(with = "seconds")]
    pub steps: Duration,
    #[serde(with = "seconds")]
    pub artifacts: Duration,
    #[serde(with = "seconds")]
    pub metrics: Duration,
    #[serde(with = "seconds")]
    pub audit: Duration,
    /// 0: never by itself.
    #[serde(with = "seconds", rename = "interval_seconds")]
    pub interval: Duration,
    /// Only in the file, as `[[retention.rules]]`. The first that applies to an execution decides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RetentionRule>,
}

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Default for Retention {
    fn default() -> Self {
        Retention {
            executions: 365 * DAY,
            steps: 183 * DAY,
            artifacts: 92 * DAY,
            metrics: 30 * DAY,
            audit: 730 * DAY,
            interval: Duration::from_secs(3600),
            rules: Vec::new(),
        }
    }
}

/// The index of texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Search {
    pub enabled: bool,
}

impl Default for Search {
    fn default() -> Self {
        Search { enabled: true }
    }
}

/// Telling others what happens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Notifications {
    pub retry_seconds: Vec<f64>,
    #[serde(with = "seconds", rename = "timeout_seconds")]
    pub timeout: Duration,
    pub allow_http: bool,
    pub allow_networks: Vec<String>,
    pub subscriptions: usize,
    pub undelivered: usize,
    pub requests: usize,
    pub requests_per_subscription: usize,
    #[serde(with = "seconds", rename = "keep_seconds")]
    pub keep: Duration,
}

impl Default for Notifications {
    fn default() -> Self {
        let retry_seconds = [5, 30, 300, 1_800, 7_200, 18_000, 36_000, 86_400];
        Notifications {
            retry_seconds: retry_seconds.map(f64::from).to_vec(),
            timeout: Duration::from_secs(15),
            allow_http: false,
            allow_networks: Vec::new(),
            subscriptions: 100,
            undelivered: 10_000,
            requests: 64,
            requests_per_subscription: 8,
            keep: 30 * DAY,
        }
    }
}

/// The bytes of artifacts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Artifacts {
    pub storage: Option<StorageKind>,
    pub local_dir: Option<PathBuf>,
    pub s3_bucket: Option<String>,
    pub s3_prefix: Option<String>,
    pub s3_region: Option<String>,
    pub s3_endpoint: Option<Secret>,
    pub s3_allow_http: bool,
    #[serde(with = "seconds", rename = "upload_expiry_seconds")]
    pub upload_expiry: Duration,
}

impl Default for Artifacts {
    fn default() -> Self {
        Artifacts {
            storage: None,
            local_dir: None,
            s3_bucket: None,
            s3_prefix: None,
            s3_region: None,
            s3_endpoint: None,
            s3_allow_http: false,
            upload_expiry: Duration::from_secs(24 * 3600),
        }
    }
}

/// Where the bytes of new artifacts are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageKind {
    Gridfs,
    Local,
    S3,
}

/// Other times for some executions and what they have. A list that is left out holds everything; a time that is
/// left out is the general one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionRule {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub app_ids: Vec<i32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub app_names: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub statuses: Vec<Outcome>,
    #[serde(with = "optional_seconds")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executions: Option<Duration>,
    #[serde(with = "optional_seconds")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<Duration>,
    #[serde(with = "optional_seconds")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<Duration>,
}

/// How an execution ended. What still runs is kept whatever a rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Completed,
    Failed,
    Cancelled,
}

/// How the process ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shutdown {
    #[serde(with = "seconds", rename = "streams_seconds")]
    pub streams: Duration,
    #[serde(with = "seconds", rename = "deadline_seconds")]
    pub deadline: Duration,
}

impl Shutdown {
    pub const DEFAULT_STREAMS: Duration = Duration::from_secs(4);
    pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(18);
}

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown { streams: Self::DEFAULT_STREAMS, deadline: Self::DEFAULT_DEADLINE }
    }
}

/// Logs, on stderr.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub format: LogFormat,
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Log { format: LogFormat::Text, level: "info".to_owned() }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// Export of traces with OpenTelemetry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    pub otlp_endpoint: Option<Secret>,
    pub service_name: String,
    pub sample_ratio: f64,
}

impl Default for Telemetry {
    fn default() -> Self {
        Telemetry { otlp_endpoint: None, service_name: "stepwell".to_owned(), sample_ratio: 1.0 }
    }
}

/// The same for one that may be left open.
mod optional_seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &Option<Duration>, out: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::seconds::serialize(value, out),
            None => out.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        Option::<f64>::deserialize(from)?
            .map(|value| Duration::try_from_secs_f64(value).map_err(D::Error::custom))
            .transpose()
    }
}
