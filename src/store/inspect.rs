//! A look at the database itself, for the people who run it: which lookup is served by which index, and how the
//! deployment is. Only looks; nothing is made, repaired or kept open by it.

use async_trait::async_trait;

use super::Result;

/// A lookup of the data model that has to be served by an index that begins with exactly these keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lookup {
    pub collection: &'static str,
    /// Name of the field, and 1 or -1 for its direction.
    pub keys: &'static [(&'static str, i32)],
    /// Whether no two records may have the same.
    pub unique: bool,
    /// Whether it is about those records only that have the fields at all.
    pub where_given: bool,
}

const fn plain(collection: &'static str, keys: &'static [(&'static str, i32)]) -> Lookup {
    Lookup { collection, keys, unique: false, where_given: false }
}

const fn unique(collection: &'static str, keys: &'static [(&'static str, i32)]) -> Lookup {
    Lookup { collection, keys, unique: true, where_given: false }
}

const fn unique_where_given(
    collection: &'static str,
    keys: &'static [(&'static str, i32)],
) -> Lookup {
    Lookup { collection, keys, unique: true, where_given: true }
}

/// Every lookup of the data model, and those of lists and counts.
pub const LOOKUPS: &[Lookup] = &[
    unique("executions", &[("execution_id", 1)]),
    plain("executions", &[("app_id", 1), ("sub_app_id", 1)]),
    plain("executions", &[("user_id", 1)]),
    plain("executions", &[("status", 1)]),
    plain("executions", &[("started_at", -1)]),
    plain("executions", &[("user_id", 1), ("status", 1)]),
    plain("executions", &[("app_id", 1), ("status", 1)]),
    plain("executions", &[("app_name", 1), ("started_at", -1)]),
    plain("executions", &[("app_name", 1), ("status", 1)]),
    unique("execution_steps", &[("execution_id", 1), ("step_id", 1)]),
    unique_where_given("execution_steps", &[("execution_id", 1), ("step_key", 1)]),
    plain("execution_steps", &[("execution_id", 1)]),
    plain("execution_steps", &[("execution_id", 1), ("status", 1)]),
    plain("execution_steps", &[("status", 1)]),
    plain("execution_steps", &[("step_name", 1)]),
    plain("execution_steps", &[("started_at", -1)]),
    unique_where_given("app_configurations", &[("app_id", 1), ("sub_app_id", 1), ("version", 1)]),
    unique_where_given(
        "app_configurations",
        &[("app_name", 1), ("sub_app_name", 1), ("version", 1)],
    ),
    plain("app_configurations", &[("active", 1)]),
    plain("execution_artifacts", &[("execution_id", 1), ("step_id", 1)]),
    plain("execution_artifacts", &[("artifact_type", 1)]),
    plain("execution_artifacts", &[("created_at", -1)]),
    plain("execution_metrics", &[("execution_id", 1), ("timestamp", 1)]),
    plain("execution_metrics", &[("timestamp", 1)]),
];

impl Lookup {
    /// The keys in words, for instance "execution_id, started_at desc".
    pub fn words(&self) -> String {
        let keys = self.keys.iter().map(|(key, way)| match way {
            -1 => format!("{key} desc"),
            _ => (*key).to_owned(),
        });
        keys.collect::<Vec<_>>().join(", ")
    }
}

/// What serves a lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexCheck {
    pub lookup: Lookup,
    /// Name of the real index.
    pub served_by: Option<String>,
    /// What to do when none serves it; else empty.
    pub advice: String,
}

/// How the database is put up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deployment {
    /// A file of the server's own.
    Embedded {
        /// Whether it is there; the first server makes it.
        exists: bool,
        /// Version of its schema, and the newest one that this program knows.
        schema: (i64, i64),
    },
    /// One mongod that is no replica set.
    Standalone,
    ReplicaSet {
        name: String,
        members: usize,
    },
    /// Behind a mongos.
    Sharded,
}

/// Room where the data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    pub free_bytes: u64,
    pub total_bytes: u64,
}

/// How far back a watch can be resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    pub covers_ms: i64,
    /// Whether older changes have been dropped; before that it only grows.
    pub full: bool,
}

/// When a write counts as done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Durability {
    /// When it cannot be lost any more: a majority of a replica set has it, or the disk.
    Safe(String),
    /// When a failover may still lose it.
    Weak(String),
}

/// What the database lets the one do who is connected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    /// Who that is; `None`: nobody is asked.
    pub user: Option<String>,
    /// What is needed and not allowed, in words.
    pub missing: Vec<String>,
    /// What is allowed and not needed, in words.
    pub excess: Vec<String>,
}

/// How a database is spread over the shards of a cluster.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Shards {
    pub collections: Vec<ShardedCollection>,
    /// Whether chunks move. `None` here and below: it may not be read.
    pub balancer: Option<bool>,
    /// The version whose features the cluster uses.
    pub features: Option<String>,
    /// How long after a change, which was made for this, the log tells of it.
    pub lag_ms: Option<i64>,
    /// What this user may not read.
    pub unread: Vec<String>,
}

/// One collection that has to be spread.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ShardedCollection {
    pub name: String,
    /// The key by which it is to be spread, and by which it is; `None`: it is not.
    pub wanted: String,
    pub key: Option<String>,
    /// Chunks by shard.
    pub chunks: Vec<(String, u64)>,
    pub jumbo: u64,
    /// Unique indexes that do not begin with the key.
    pub in_the_way: Vec<String>,
}

/// What was found out; `None` where the database did not tell.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    pub version: String,
    pub deployment: Deployment,
    pub durability: Durability,
    /// How far the database's clock is ahead of this machine's. An embedded one has no clock of its own.
    pub clock_ahead_ms: Option<i64>,
    pub disk: Option<Disk>,
    pub history: Option<History>,
    pub documents: Option<Documents>,
    /// An embedded database asks nobody.
    pub access: Option<Access>,
    /// Only of a cluster.
    pub shards: Option<Shards>,
    /// Keys of callers that nobody has used for long, by id and name.
    pub idle_keys: Vec<String>,
}

/// Documents of other programs that no server can work with as they are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Documents {
    /// Executions without a usable id.
    pub unreadable: u64,
    /// Executions with a list where lists of executions look for one value.
    pub lists: u64,
    /// Ids that several documents have, some of them, with their collection.
    pub doubled: Vec<String>,
}

/// A database that can be looked at.
#[async_trait]
pub trait Inspect: Send + Sync + 'static {
    /// What serves each lookup that this database is asked, by collection. A document database that other
    /// programs use too is asked all `LOOKUPS`; an embedded one only those that its server makes.
    async fn indexes(&self) -> Result<Vec<IndexCheck>>;

    /// How it is.
    async fn facts(&self) -> Result<Facts>;
}
