//! The one table of settings. A setting has one name everywhere: `http.listen` in the file is
//! `STEPWELL_HTTP_LISTEN` in the environment and `--http-listen` on the command line.

use std::fmt::Write as _;
use std::sync::LazyLock;

pub use super::kind::Kind;

/// Prefix of every environment variable of ours.
pub const ENV_PREFIX: &str = "STEPWELL_";

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

const ROWS: &[Row] = &[
    common("listen", Kind::Address, "Address of the gRPC port."),
    common(
        "data_dir",
        Kind::Directory,
        "Directory of the embedded store; created if missing. Not used with MongoDB.",
    ),
    common(
        "auth.mode",
        Kind::OneOf(&["off", "required"]),
        "Whether callers are asked who they are. Unset: off on a loopback address; on any other the server does not start.",
    ),
    common(
        "auth.admin_key_file",
        Kind::File,
        "File of admin keys, one a line: a key, or sha256: and the SHA-256 of one in hexadecimal. Two lines are a rotation. `stepwell keys generate` makes a key.",
    ),
    row(
        "auth.oidc.issuer",
        Kind::Text(1024),
        "Identity provider whose tokens are accepted, exactly as in their claim iss. Which claims give which grants say `[[auth.oidc.rules]]`, see docs/security.md.",
    ),
    row("auth.oidc.audience", Kind::Text(1024), "What the claim aud of a token has to contain."),
    row(
        "auth.oidc.jwks_uri",
        Kind::Url,
        "Where the provider publishes its keys (JWKS): https, or http on a loopback address. Unset, without auth.oidc.jwks_file: what the provider says at /.well-known/openid-configuration.",
    ),
    row("auth.oidc.jwks_file", Kind::File, "File with the keys of the provider (JWKS) instead."),
    common(
        "tls.mode",
        Kind::OneOf(&["off", "on"]),
        "Whether the gRPC port speaks TLS (1.2 and 1.3). Unset: off on a loopback address; on any other the server does not start.",
    ),
    common(
        "tls.cert_file",
        Kind::File,
        "Certificate of the server in PEM, followed by those between it and its authority. Read again when it changes, as all files of tls and auth are.",
    ),
    common("tls.key_file", Kind::File, "Private key of the certificate in PEM."),
    row(
        "tls.client_ca_file",
        Kind::File,
        "Authorities in PEM that issue the certificates of clients; without it clients are not asked for one. Whose certificate gives which grants say `[[auth.certificates]]`, see docs/security.md.",
    ),
    row(
        "tls.client_crl_file",
        Kind::File,
        "Revocation lists of these authorities in PEM. With it, a certificate of an authority without a list is refused.",
    ),
    row(
        "tls.client_auth",
        Kind::OneOf(&["optional", "required"]),
        "Whether a client has to show a certificate for a connection. Unset: optional.",
    ),
    common(
        "audit.level",
        Kind::OneOf(&["off", "security", "writes", "all"]),
        "What the audit log records. security: refused credentials, denials, keys, deletes, what only editors and operators may do, start and stop; writes: every write too; all: every read and stream too. What has to be recorded and cannot be is refused. Unset: security with auth.mode = required, else off.",
    ),
    common(
        "http.listen",
        Kind::Address,
        "Address of the HTTP port (metrics and probes); off unless set.",
    ),
    row(
        "http.public_url",
        Kind::Url,
        "URL under which people reach this server's console; notifications link to it.",
    ),
    common(
        "mongodb.uri",
        Kind::MongoUri,
        "Connection string; selects MongoDB instead of the embedded store.",
    ),
    row(
        "mongodb.uri_file",
        Kind::File,
        "File that holds the connection string, in place of mongodb.uri: so it is in no environment and in no list of processes.",
    ),
    row(
        "mongodb.trusted_network",
        Kind::Bool,
        "Allows a database on another machine without credentials or TLS while auth.mode is required.",
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
        "mongodb.metrics_collection",
        Kind::OneOf(&["timeseries", "ordinary"]),
        "Which kind of collection a server makes for metrics where there is none: a time series, or an ordinary one for programs that make the index which ends points themselves.",
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
        "grpc.handshake_seconds",
        Kind::Seconds(0.1, 600.0),
        "How long a new connection may take for its handshake before it is closed.",
    ),
    row(
        "grpc.idle_seconds",
        Kind::Seconds(0.1, 86_400.0),
        "How long a connection may be open without a call before its client is told to go (GOAWAY); it connects again when it needs to.",
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
    row(
        "limits.connections",
        Kind::Integer(16, 1_000_000),
        "Maximum number of connections to the gRPC port. At the limit a new one takes the place of the one that is longest without a call; 8 places are kept for loopback addresses. Unset: 10000, or the limit of open files less 512 if that is lower.",
    ),
    row(
        "limits.process_bytes",
        Kind::Integer(64 * MIB, 1024 * 1024 * MIB),
        "Maximum memory for messages of all connections together: requests as they come, what they decode to, and replies until they are sent. One connection has at most a quarter, and less beside others. Beyond it unary calls are RESOURCE_EXHAUSTED, and streams are not read on.",
    ),
    row(
        "limits.calls",
        Kind::Integer(16, 1_000_000),
        "Maximum number of calls with one request and one reply that are worked on at a time: so many that report runs, and so many others; of one connection a quarter. More of them wait for two seconds and are then RESOURCE_EXHAUSTED.",
    ),
    row(
        "limits.call_seconds",
        Kind::Seconds(0.1, 86_400.0),
        "Maximum duration of a call with one request and one reply, counted from its headers; beyond it: DEADLINE_EXCEEDED. The request of any other call has as long to come.",
    ),
    row(
        "limits.upload_idle_seconds",
        Kind::Seconds(0.1, 86_400.0),
        "How long the server waits for an upload to go on, or for the rest of a message of another stream; less than 64 KiB in that time counts as waiting. An upload can be resumed.",
    ),
    row(
        "limits.reply_idle_seconds",
        Kind::Seconds(0.1, 86_400.0),
        "How long a reply other than a watch waits for a client that reads nothing of it before it is reset.",
    ),
    row("limits.request_bytes", Kind::Integer(64 * 1024, 64 * MIB), "Largest incoming message."),
    row(
        "limits.decoded_bytes",
        Kind::Integer(16 * MIB, 4096 * MIB),
        "Maximum memory for one decoded incoming message; estimated before it is decoded.",
    ),
    row(
        "limits.inline_payload_bytes",
        Kind::Integer(0, 2 * MIB),
        "Largest input or output sent in lists and watches; larger ones are left out and named in omitted_fields.",
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
        "retention.audit",
        Kind::Seconds(0.0, CENTURY),
        "Seconds for which audit records are kept. 0: forever.",
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
        "notifications.retry_seconds",
        Kind::SecondsList(0.0, 7.0 * 86_400.0, 32),
        "Seconds after which a notification that is not delivered is tried again, after the first try, the second, and so on; each a fifth more or less. After the last it is dead.",
    ),
    row(
        "notifications.timeout_seconds",
        Kind::Seconds(0.1, 60.0),
        "How long a receiver may take to answer, from the lookup of its name on.",
    ),
    row("notifications.allow_http", Kind::Bool, "Whether notifications may be sent without TLS."),
    row(
        "notifications.allow_networks",
        Kind::Networks(100),
        "Networks, such as 10.0.0.0/8, to which notifications may be sent although their addresses are not public.",
    ),
    row("notifications.subscriptions", Kind::Integer(1, 1_000), "Maximum number of subscriptions."),
    row(
        "notifications.undelivered",
        Kind::Integer(1, 100_000),
        "Maximum number of undelivered notifications per subscription; beyond it the subscription waits in the log of changes.",
    ),
    row("notifications.requests", Kind::Integer(1, 1_024), "Maximum number of requests under way."),
    row(
        "notifications.requests_per_subscription",
        Kind::Integer(1, 256),
        "Maximum number of requests under way for one subscription.",
    ),
    row(
        "notifications.keep_seconds",
        Kind::Seconds(60.0, 366.0 * 86_400.0),
        "How long deliveries are kept, counted from when they were made.",
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
