//! The one table of settings. A setting has one name everywhere: `http.listen` in the file is
//! `STEPWELL_HTTP_LISTEN` in the environment and `--http-listen` on the command line.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::LazyLock;

use toml::Value;

/// Prefix of every environment variable of ours.
pub const ENV_PREFIX: &str = "STEPWELL_";

/// What a value has to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// IP address and port.
    Address,
    /// A directory.
    Directory,
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
}

/// One row of the table, as written below.
struct Row {
    key: &'static str,
    kind: Kind,
    /// Shown in the short help; all others only in the long one.
    common: bool,
    doc: &'static str,
}

const fn row(key: &'static str, kind: Kind, doc: &'static str) -> Row {
    Row { key, kind, common: false, doc }
}

const fn common(key: &'static str, kind: Kind, doc: &'static str) -> Row {
    Row { key, kind, common: true, doc }
}

const MIB: i64 = 1024 * 1024;
const CENTURY: f64 = 36_525.0 * 86_400.0;

/// The one part of the configuration that has no place in a variable or a flag: a list of tables in the file.
pub const RETENTION_RULES: &str = "retention.rules";

const ROWS: &[Row] = &[
    common("listen", Kind::Address, "Address of the gRPC port."),
    common(
        "data_dir",
        Kind::Directory,
        "Directory of the embedded store; created if missing. Not used with MongoDB.",
    ),
    common(
        "http.listen",
        Kind::Address,
        "Address of the HTTP port (metrics and probes); off unless set.",
    ),
    common(
        "mongodb.uri",
        Kind::MongoUri,
        "Connection string; selects MongoDB instead of the embedded store.",
    ),
    common("mongodb.database", Kind::Text(63), "Name of the MongoDB database."),
    row(
        "mongodb.max_pool_size",
        Kind::Integer(1, 10_000),
        "Maximum number of connections to a MongoDB server, unless the URI sets it; a quarter of them (at least 1, at most 16) is reserved for writes and the health probe. Unset: 100.",
    ),
    row(
        "mongodb.min_pool_size",
        Kind::Integer(0, 10_000),
        "Minimum number of connections kept open, unless the URI sets it. Unset: 10.",
    ),
    row(
        "mongodb.max_idle_seconds",
        Kind::Seconds(1.0, 86_400.0),
        "How long a connection may be idle before it is closed, unless the URI sets it. Unset: 30.",
    ),
    row(
        "mongodb.retry_writes",
        Kind::Bool,
        "Whether the driver retries writes, unless the URI sets it. Unset: true.",
    ),
    row(
        "mongodb.write_concern",
        Kind::Text(128),
        "\"majority\", or a number of members; less than a majority can lose acknowledged writes in a failover. The URI takes precedence. Unset: majority.",
    ),
    row(
        "mongodb.server_selection_timeout_seconds",
        Kind::Seconds(0.1, 600.0),
        "How long an operation waits for a MongoDB server that can take it, unless the URI sets it. Unset: 5.",
    ),
    row(
        "grpc.streams_per_connection",
        Kind::Integer(1, 1_000_000),
        "Maximum number of open calls per connection; further calls wait in the client.",
    ),
    row(
        "grpc.ping_interval_seconds",
        Kind::Seconds(1.0, 3600.0),
        "How often a silent connection is probed.",
    ),
    row(
        "grpc.ping_timeout_seconds",
        Kind::Seconds(1.0, 3600.0),
        "How long a probed connection may stay silent before it is closed.",
    ),
    row(
        "writes.queue_writes",
        Kind::Integer(1, 1_000_000),
        "Maximum number of writes waiting for the store; beyond it: RESOURCE_EXHAUSTED.",
    ),
    row(
        "writes.queue_bytes",
        Kind::Integer(MIB, 16 * 1024 * MIB),
        "Maximum size of the waiting writes together; beyond it: RESOURCE_EXHAUSTED.",
    ),
    row(
        "writes.batch_writes",
        Kind::Integer(1, 10_000),
        "Maximum number of writes in one batch to the store.",
    ),
    row(
        "writes.batch_bytes",
        Kind::Integer(64 * 1024, 40 * MIB),
        "Maximum size of one batch, unless a single write is larger.",
    ),
    row(
        "writes.ingest_in_flight",
        Kind::Integer(1, 100_000),
        "Maximum number of unanswered writes of one Ingest stream; beyond it the server stops reading.",
    ),
    row(
        "watch.keepalive_seconds",
        Kind::Seconds(0.05, 3600.0),
        "How often a silent watch stream gets a keepalive.",
    ),
    row(
        "watch.linger_seconds",
        Kind::Seconds(0.0, 3600.0),
        "How long the server goes on reading the log after the last watcher has left.",
    ),
    row(
        "watch.inbox_events",
        Kind::Integer(1, 100_000),
        "Maximum number of events waiting for one slow watcher; beyond it the watcher is caught up from the log.",
    ),
    row(
        "watch.inbox_bytes",
        Kind::Integer(1024, 64 * MIB),
        "Maximum size of the events waiting for one slow watcher.",
    ),
    row(
        "watch.catch_up_readers",
        Kind::Integer(1, 64),
        "Number of history readers shared by all resuming watchers.",
    ),
    row(
        "artifacts.storage",
        Kind::OneOf(&["gridfs", "local", "s3"]),
        "Where the bytes of new artifacts are stored. Unset: gridfs with MongoDB, local with the embedded store.",
    ),
    row(
        "artifacts.local_dir",
        Kind::Directory,
        "Directory of artifacts stored as files; all servers of a cluster need the same one. Unset: artifacts in data_dir.",
    ),
    row(
        "artifacts.s3_bucket",
        Kind::Text(255),
        "Bucket of artifacts stored in S3. Credentials come from the usual environment: AWS_ACCESS_KEY_ID and related variables, or the machine's role.",
    ),
    row("artifacts.s3_prefix", Kind::Text(256), "Prefix of the key of every object."),
    row(
        "artifacts.s3_region",
        Kind::Text(64),
        "Region of the bucket. Unset: AWS_REGION or AWS_DEFAULT_REGION.",
    ),
    row("artifacts.s3_endpoint", Kind::Url, "URL of an S3-compatible service. Unset: AWS."),
    row("artifacts.s3_allow_http", Kind::Bool, "Whether the endpoint may be used without TLS."),
    row(
        "artifacts.upload_expiry_seconds",
        Kind::Seconds(1.0, 30.0 * 86_400.0),
        "How long an unfinished upload is kept after its last bytes.",
    ),
    row("limits.name_characters", Kind::Integer(1, 4096), "Longest name or id."),
    row("limits.execution_id_characters", Kind::Integer(36, 1024), "Longest execution id."),
    row(
        "limits.message_characters",
        Kind::Integer(1, 65_536),
        "Longest progress message or cancel reason.",
    ),
    row("limits.metadata_bytes", Kind::Integer(1024, 4 * MIB), "Largest metadata, as BSON."),
    row("limits.error_message_bytes", Kind::Integer(256, MIB), "Longest error message."),
    row("limits.stack_trace_bytes", Kind::Integer(256, MIB), "Longest stack trace of an error."),
    row(
        "limits.payload_bytes",
        Kind::Integer(1024, 7 * MIB),
        "Largest input and largest output of a step, as BSON.",
    ),
    row(
        "limits.steps_per_execution",
        Kind::Integer(1, 1_000_000),
        "Maximum number of steps per execution.",
    ),
    row("limits.depends_on_ids", Kind::Integer(0, 10_000), "Maximum number of ids in depends_on."),
    row(
        "limits.artifact_bytes",
        Kind::Integer(1, 40 * 1024 * MIB),
        "Largest artifact that may be uploaded.",
    ),
    row(
        "limits.artifacts_per_execution",
        Kind::Integer(1, 1_000_000),
        "Maximum number of artifacts per execution.",
    ),
    row(
        "limits.artifact_bytes_per_execution",
        Kind::Integer(1, 1024 * 1024 * 1024 * MIB),
        "Maximum size of all artifacts of one execution together.",
    ),
    row("limits.request_bytes", Kind::Integer(64 * 1024, 64 * MIB), "Largest incoming message."),
    row(
        "limits.decoded_bytes",
        Kind::Integer(16 * MIB, 4096 * MIB),
        "Maximum memory for one decoded incoming message; estimated before it is decoded.",
    ),
    row("limits.page_records", Kind::Integer(1, 1000), "Maximum number of records per page."),
    row(
        "limits.page_bytes",
        Kind::Integer(64 * 1024, 4 * MIB),
        "Largest reply, unless a single record is larger; clients refuse more than 4 MiB by default.",
    ),
    row(
        "limits.page_examined_records",
        Kind::Integer(1000, 1_000_000),
        "Maximum number of records examined to fill one page.",
    ),
    row(
        "retention.executions",
        Kind::Seconds(0.0, CENTURY),
        "Seconds for which an execution is kept with all its data, counted from when it was stored. Running and pinned executions are kept. 0: forever. Different times per app or outcome: `[[retention.rules]]`, see docs/retention.md.",
    ),
    row(
        "retention.steps",
        Kind::Seconds(0.0, CENTURY),
        "Seconds for which a step is kept while its execution is kept. 0: as long as its execution.",
    ),
    row(
        "retention.artifacts",
        Kind::Seconds(0.0, CENTURY),
        "Seconds for which an artifact and its bytes are kept while its execution is kept. 0: as long as its execution.",
    ),
    row(
        "retention.metrics",
        Kind::Seconds(0.0, CENTURY),
        "Seconds for which metric points are kept, by their own timestamps; older points are not accepted. 0: forever.",
    ),
    row(
        "retention.interval_seconds",
        Kind::Seconds(0.0, 366.0 * 86_400.0),
        "How often one server of the cluster deletes what is too old. 0: only by `stepwell retention run`.",
    ),
    row(
        "search.enabled",
        Kind::Bool,
        "Whether texts are indexed and can be searched. When search is switched on again, texts stored in the meantime are indexed.",
    ),
    row(
        "shutdown.streams_seconds",
        Kind::Seconds(0.0, 5.0),
        "How long calls and streams may continue after SIGTERM.",
    ),
    row(
        "shutdown.deadline_seconds",
        Kind::Seconds(0.1, 20.0),
        "Latest time after SIGTERM at which the process ends.",
    ),
    common("log.format", Kind::OneOf(&["text", "json"]), "Format of log lines: text or json."),
    common(
        "log.level",
        Kind::LogFilter,
        "error, warn, info, debug, trace or off, or directives per module such as info,stepwell::watch=debug.",
    ),
    common(
        "telemetry.otlp_endpoint",
        Kind::Endpoint,
        "OTLP/gRPC collector that traces are sent to, such as http://localhost:4317; off unless set.",
    ),
    row("telemetry.service_name", Kind::Text(256), "service.name of exported traces."),
    row(
        "telemetry.sample_ratio",
        Kind::Ratio,
        "Share of traces exported when the caller has not already decided.",
    ),
];

/// A setting with its names.
#[derive(Debug)]
pub struct Setting {
    /// Dotted path in the file.
    pub key: &'static str,
    /// Environment variable.
    pub env: String,
    /// Flag, without the dashes.
    pub flag: String,
    pub kind: Kind,
    pub secret: bool,
    pub common: bool,
    pub doc: &'static str,
}

static SETTINGS: LazyLock<Vec<Setting>> = LazyLock::new(|| {
    ROWS.iter()
        .map(|row| Setting {
            key: row.key,
            env: format!("{ENV_PREFIX}{}", row.key.replace('.', "_").to_ascii_uppercase()),
            flag: row.key.replace(['.', '_'], "-"),
            kind: row.kind,
            // Every URL may carry a password.
            secret: matches!(row.kind, Kind::MongoUri | Kind::Endpoint | Kind::Url),
            common: row.common,
            doc: row.doc,
        })
        .collect()
});

/// Every setting, in the order in which they are printed.
pub fn settings() -> &'static [Setting] {
    &SETTINGS
}

/// The setting of this key.
pub fn by_key(key: &str) -> Option<&'static Setting> {
    settings().iter().find(|setting| setting.key == key)
}

impl Setting {
    /// Placeholder of the value in the help.
    pub fn value_name(&self) -> &'static str {
        match self.kind {
            Kind::Address => "ADDR",
            Kind::Directory => "DIR",
            Kind::Text(_) => "NAME",
            Kind::MongoUri => "URI",
            Kind::Endpoint | Kind::Url => "URL",
            Kind::LogFilter => "LEVEL",
            Kind::OneOf(_) => "FORMAT",
            Kind::Bool => "BOOL",
            Kind::Integer(..) => "N",
            Kind::Seconds(..) => "SECONDS",
            Kind::Ratio => "RATIO",
        }
    }

    /// The value out of text (environment, flag), or what is expected instead.
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        let value = match self.kind {
            Kind::Bool => text.parse().map(Value::Boolean).map_err(|_| self.expected())?,
            Kind::Integer(..) => text.parse().map(Value::Integer).map_err(|_| self.expected())?,
            Kind::Seconds(..) | Kind::Ratio => {
                text.parse().map(Value::Float).map_err(|_| self.expected())?
            }
            _ => Value::String(text.to_owned()),
        };
        self.check(value)
    }

    /// The value if it is of the kind and within the bounds, in its normal form; else what is expected.
    pub fn check(&self, value: Value) -> Result<Value, String> {
        let good = match (self.kind, &value) {
            (Kind::Address, Value::String(text)) => {
                return address(text)
                    .map(|address| Value::String(address.to_string()))
                    .ok_or_else(|| self.expected());
            }
            (Kind::Directory, Value::String(text)) => !text.is_empty() && !text.contains('\0'),
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
                !text.is_empty() && crate::telemetry::filter(text).is_ok()
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
            _ => false,
        };
        if good { Ok(value) } else { Err(self.expected()) }
    }

    fn expected(&self) -> String {
        match self.kind {
            Kind::Address => "an IP address and a port, such as 127.0.0.1:50051".to_owned(),
            Kind::Directory => "a directory".to_owned(),
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
        }
    }
}

fn address(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}").parse().ok(),
        None => text.parse().ok(),
    }
}

/// The known name nearest to a mistyped one, if any is near.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (distance(name, candidate), candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).clamp(1, 4))
        .map(|(_, candidate)| candidate)
}

/// Edit distance.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let change = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

/// The table of settings as Markdown, for `docs/settings.md`. The flag is the key with dashes instead of dots and
/// underscores.
pub fn reference_table() -> String {
    let defaults = super::Config::default();
    let mut table = String::from(
        "| Key in the file | Environment | Default | Meaning |\n| --- | --- | --- | --- |\n",
    );
    for setting in settings() {
        let default =
            defaults.value(setting.key).map_or_else(String::new, |value| format!("`{value}`"));
        let doc = setting.doc.replace('|', "\\|");
        // Writing into a String cannot fail.
        let _ = writeln!(table, "| `{}` | `{}` | {default} | {doc} |", setting.key, setting.env);
    }
    table
}
