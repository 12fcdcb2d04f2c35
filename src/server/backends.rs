//! Backends: the only file that names one. Opens what the configuration chooses and hands it out by its roles.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use crate::blobs::gridfs::{Bucket, GridFs};
use crate::blobs::local::Local;
use crate::blobs::room::Room;
use crate::blobs::s3::{S3, S3Options};
use crate::blobs::{Storage, Storages};
use crate::clock::Clock;
use crate::config::{Config, ConfigError, Mongodb, Secret, StorageKind, StoreChoice};
use crate::store::artifacts::ArtifactStore;
use crate::store::audit::AuditStore;
use crate::store::configurations::ConfigurationStore;
use crate::store::inspect::Inspect;
use crate::store::keys::KeyStore;
use crate::store::leads::Leads;
use crate::store::metrics::MetricStore;
use crate::store::mirrors::MirrorStore;
use crate::store::mongo::{self, MongoOptions, MongoStore};
use crate::store::notifications::NotificationStore;
use crate::store::observed::{Observed, Observer};
use crate::store::retention::RetentionStore;
use crate::store::rollups::RollupStore;
use crate::store::scan::ScanStore;
use crate::store::search::SearchStore;
use crate::store::signals::Signals;
use crate::store::sqlite::{self, SqliteOptions, SqliteStore};
use crate::store::{self, Store};

/// The store by its roles, one database behind all of them, and where the bytes of artifacts are.
pub(super) struct Stores {
    pub records: Arc<dyn Store>,
    pub configurations: Arc<dyn ConfigurationStore>,
    pub metrics: Arc<dyn MetricStore>,
    pub artifacts: Arc<dyn ArtifactStore>,
    pub retention: Arc<dyn RetentionStore>,
    pub rollups: Arc<dyn RollupStore>,
    pub search: Arc<dyn SearchStore>,
    pub keys: Arc<dyn KeyStore>,
    pub audit: Arc<dyn AuditStore>,
    pub notifications: Arc<dyn NotificationStore>,
    pub mirrors: Arc<dyn MirrorStore>,
    pub leads: Arc<dyn Leads>,
    pub scan: Arc<dyn ScanStore>,
    pub database: Arc<dyn Inspect>,
    pub storages: Storages,
    /// What calls of them meet.
    pub signals: Arc<Signals>,
}

impl Stores {
    /// Each role observed.
    fn observed(self, clock: &Arc<dyn Clock>) -> Stores {
        let observer = Observer { clock: Arc::clone(clock), signals: Arc::clone(&self.signals) };
        let observer = &observer;
        Stores {
            records: Arc::new(Observed::<dyn Store>::new(self.records, observer)),
            configurations: Arc::new(Observed::<dyn ConfigurationStore>::new(
                self.configurations,
                observer,
            )),
            metrics: Arc::new(Observed::<dyn MetricStore>::new(self.metrics, observer)),
            artifacts: Arc::new(Observed::<dyn ArtifactStore>::new(self.artifacts, observer)),
            retention: Arc::new(Observed::<dyn RetentionStore>::new(self.retention, observer)),
            rollups: Arc::new(Observed::<dyn RollupStore>::new(self.rollups, observer)),
            search: Arc::new(Observed::<dyn SearchStore>::new(self.search, observer)),
            keys: Arc::new(Observed::<dyn KeyStore>::new(self.keys, observer)),
            audit: Arc::new(Observed::<dyn AuditStore>::new(self.audit, observer)),
            notifications: Arc::new(Observed::<dyn NotificationStore>::new(
                self.notifications,
                observer,
            )),
            mirrors: Arc::new(Observed::<dyn MirrorStore>::new(self.mirrors, observer)),
            leads: Arc::new(Observed::<dyn Leads>::new(self.leads, observer)),
            scan: Arc::new(Observed::<dyn ScanStore>::new(self.scan, observer)),
            database: Arc::new(Observed::<dyn Inspect>::new(self.database, observer)),
            storages: self.storages,
            signals: self.signals,
        }
    }
}

/// Opens the database of a configuration. MongoDB may be away: it is connected to in the background.
pub(super) fn open(config: &Config, clock: &Arc<dyn Clock>) -> anyhow::Result<Stores> {
    let limits = config.limits.clone();
    let kept = |kept: Duration| Some(kept).filter(|kept| !kept.is_zero());
    let metrics_kept = kept(config.retention.metrics);
    let audit_kept = kept(config.retention.audit);
    let stores = match config.store() {
        StoreChoice::Sqlite { data_dir } => {
            let storages = storages(config, None)?;
            let options = SqliteOptions { metrics_kept, audit_kept, ..SqliteOptions::default() };
            let store = SqliteStore::open(data_dir, options, limits, Arc::clone(clock))?;
            Stores {
                records: store.clone(),
                configurations: store.clone(),
                metrics: store.clone(),
                artifacts: store.clone(),
                retention: store.clone(),
                rollups: store.clone(),
                search: store.clone(),
                keys: store.clone(),
                audit: store.clone(),
                notifications: store.clone(),
                mirrors: store.clone(),
                leads: store.clone(),
                scan: store.clone(),
                database: store,
                storages,
                signals: Arc::default(),
            }
        }
        StoreChoice::Mongodb { uri, settings } => {
            let read_only = config.read_only;
            let options = MongoOptions {
                metrics_kept,
                audit_kept,
                read_only,
                ..mongo_options(uri, settings)
            };
            let store = MongoStore::connect(options, limits, Arc::clone(clock));
            let store = store.map_err(|error| unusable(uri, &error))?;
            let database = Arc::clone(&store);
            let connect = move || {
                let store = Arc::clone(&database);
                Box::pin(async move {
                    let bucket = store.bucket().await?;
                    Ok(Bucket { files: bucket.files, chunks: bucket.chunks })
                }) as _
            };
            let gridfs = GridFs::new(Box::new(connect), Arc::clone(clock));
            let storages = storages(config, Some(Arc::new(gridfs)))?;
            Stores {
                configurations: store.configuration_store(),
                metrics: store.metric_store(),
                artifacts: store.artifact_store(),
                retention: store.retention_store(),
                rollups: store.rollup_store(),
                search: store.search_store(),
                keys: store.key_store(),
                audit: store.audit_store(),
                notifications: store.notification_store(),
                mirrors: store.mirror_store(),
                leads: store.leads(),
                scan: store.scan_store(),
                database: store.inspect(),
                records: store,
                storages,
                signals: Arc::default(),
            }
        }
    };
    Ok(stores.observed(clock))
}

/// The database of a configuration, to be looked at beside a server that may have it open. Makes nothing.
pub async fn look_at(config: &Config, clock: &Arc<dyn Clock>) -> anyhow::Result<Box<dyn Inspect>> {
    let clock = Arc::clone(clock);
    Ok(match config.store() {
        StoreChoice::Sqlite { data_dir } => Box::new(sqlite::inspect::Look::at(data_dir, clock)?),
        StoreChoice::Mongodb { uri, settings } => {
            let options = mongo_options(uri, settings);
            match mongo::inspect::Look::at(&options, clock).await {
                Ok(look) => Box::new(look),
                Err(error @ store::Error::Failed(_)) => return Err(unusable(uri, &error).into()),
                Err(error) => return Err(error.into()),
            }
        }
    })
}

/// The command that makes the role of a server in a database of MongoDB, as JSON.
pub fn role(database: &str) -> String {
    let command = mongo::create_role(database);
    format!("{:#}", bson::Bson::from(command).into_relaxed_extjson())
}

/// The commands that spread a database of MongoDB over shards.
pub fn shard_plan(database: &str) -> String {
    mongo::shard_plan(database)
}

fn unusable(uri: &Secret, why: &store::Error) -> ConfigError {
    let reason =
        std::error::Error::source(why).map_or_else(|| why.to_string(), ToString::to_string);
    ConfigError::new("mongodb.uri", format!("{uri:?}"), reason)
}

fn mongo_options(uri: &Secret, settings: &Mongodb) -> MongoOptions {
    let defaults = MongoOptions::default();
    let millis = |set: Option<Duration>, default| {
        set.map_or(default, |set| u64::try_from(set.as_millis()).unwrap_or(default))
    };
    MongoOptions {
        uri: uri.expose().to_owned(),
        database: settings.database.clone(),
        max_pool_size: settings.max_pool_size.unwrap_or(defaults.max_pool_size),
        min_pool_size: settings.min_pool_size.unwrap_or(defaults.min_pool_size),
        max_idle_ms: millis(settings.max_idle, defaults.max_idle_ms),
        server_selection_timeout_ms: millis(
            settings.server_selection_timeout,
            defaults.server_selection_timeout_ms,
        ),
        retry_writes: settings.retry_writes,
        write_concern: settings.write_concern.clone(),
        metrics_kept: None,
        audit_kept: None,
        read_only: false,
        ordinary_metrics: settings.metrics_collection == "ordinary",
    }
}

/// Every storage that can be reached; new bytes go to the one that is set.
fn storages(config: &Config, gridfs: Option<Arc<dyn Storage>>) -> anyhow::Result<Storages> {
    let set = &config.artifacts;
    let dir = set.local_dir.clone().unwrap_or_else(|| config.data_dir.join("artifacts"));
    let local: Arc<dyn Storage> = Arc::new(Local::new(dir));
    let s3 = set.s3_bucket.as_ref().map(|bucket| {
        let options = S3Options {
            bucket: bucket.clone(),
            prefix: set.s3_prefix.clone().unwrap_or_default(),
            region: set.s3_region.clone(),
            endpoint: set.s3_endpoint.as_ref().map(|url| url.expose().to_owned()),
            allow_http: set.s3_allow_http,
        };
        S3::new(&options).map(|s3| Arc::new(s3) as Arc<dyn Storage>)
    });
    let s3 = s3.transpose().context("artifacts.s3_bucket: the bucket cannot be used")?;
    let kind = set.storage.unwrap_or(match gridfs {
        Some(_) => StorageKind::Gridfs,
        None => StorageKind::Local,
    });
    let missing = |reason| ConfigError::new("artifacts.storage", format!("{kind:?}"), reason);
    let default = match kind {
        StorageKind::Local => Arc::clone(&local),
        StorageKind::Gridfs => gridfs.clone().ok_or_else(|| missing("needs mongodb.uri"))?,
        StorageKind::S3 => s3.clone().ok_or_else(|| missing("needs artifacts.s3_bucket"))?,
    };
    let room = Room::default();
    Ok(Storages::new(room, default, [local].into_iter().chain(gridfs).chain(s3)))
}
