//! The composition root: the only file that names a backend. Puts the parts together, starts them, and takes
//! them down in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use futures::TryStreamExt as _;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::sync::watch as signal;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::app::analytics::Analytics;
use crate::app::configurations::Configurations;
use crate::app::engine::{Bounds, Observer};
use crate::app::leases::Keeper;
use crate::app::metrics::{Metrics, Recorder};
use crate::app::rollups::{self, Rollups};
use crate::app::search::{self, Search};
use crate::app::{self, App, Artifacts, Engine, Retention};
use crate::blobs::gridfs::GridFs;
use crate::blobs::local::Local;
use crate::blobs::room::Room;
use crate::blobs::s3::{S3, S3Options};
use crate::blobs::{Storage, Storages};
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Config, ConfigError, Mongodb, Secret, StorageKind, StoreChoice};
use crate::domain::{ExecutionStatus, Millis, retention};
use crate::follow::{self, Follower};
use crate::proto;
use crate::rpc;
use crate::shutdown::{Ending, Shutdown};
use crate::store::artifacts::ArtifactStore;
use crate::store::configurations::ConfigurationStore;
use crate::store::inspect::Inspect;
use crate::store::leads::Leads;
use crate::store::metrics::{Arrived, MetricStore};
use crate::store::mongo::{self, MongoOptions, MongoStore};
use crate::store::observed::{Observed, ObservedConfigurations};
use crate::store::observed_artifacts::{ObservedArtifacts, ObservedRetention};
use crate::store::observed_metrics::ObservedMetrics;
use crate::store::retention::RetentionStore;
use crate::store::rollups::RollupStore;
use crate::store::search::SearchStore;
use crate::store::sqlite::{self, SqliteOptions, SqliteStore};
use crate::store::{self, Record, Store};
use crate::telemetry::metrics::{self, WatchMetrics, WriteMetrics};
use crate::watch::{self, Arrivals, Hub};

/// How often the database is asked whether it is there.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// Calls given up by their client before they were looked at, beyond which the connection is closed as an attack
/// (CVE-2023-44487). The library's 20 also meets a client whose calls all ran into their deadline while the
/// server stood still, and would take its watches along.
const PENDING_RESETS: usize = 1024;
/// Points of metrics stored together at most.
const BATCH_POINTS: usize = 10_000;
/// How often the store tidies up.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// A running server.
pub struct Server {
    addr: SocketAddr,
    http_addr: Option<SocketAddr>,
    stop: CancellationToken,
    ready: signal::Receiver<bool>,
    ended: tokio::task::JoinHandle<Ending>,
}

impl Server {
    /// Opens the store, binds the ports and serves. With MongoDB it returns although the database may be away:
    /// then the server waits for it, is not ready, and answers UNAVAILABLE.
    pub async fn start(config: Config) -> anyhow::Result<Server> {
        let shutdown = Shutdown::new(&config.shutdown);
        Self::start_with(config, shutdown).await
    }

    /// The same with the tokens of the process, which signals may cancel.
    pub async fn start_with(config: Config, shutdown: Shutdown) -> anyhow::Result<Server> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        // Before the ports: what cannot be configured like this ends the process before anybody connects.
        let stores = open_store(&config, &clock)?;
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {}", config.listen))?;
        let http = match config.http.listen {
            None => None,
            Some(listen) => Some(
                TcpListener::bind(listen)
                    .await
                    .with_context(|| format!("cannot listen on {listen} for HTTP"))?,
            ),
        };
        Self::serve(config, shutdown, clock, stores, listener, http).await
    }

    /// The address of the gRPC port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address of the HTTP port, if it is on.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http_addr
    }

    /// Waits until the health service says SERVING.
    pub async fn ready(&self) {
        // The sender lives as long as the server; without it nothing gets ready any more.
        let _ = self.ready.clone().wait_for(|ready| *ready).await;
    }

    /// Cancelled: the server drains and ends.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Waits for the end, which the stop token brings about.
    pub async fn ended(self) -> Ending {
        self.ended.await.unwrap_or_else(|error| {
            tracing::error!(%error, "the server task failed");
            Ending::Overdue { tasks: 1 }
        })
    }

    /// Drains and ends.
    pub async fn shutdown(self) -> Ending {
        self.stop.cancel();
        self.ended().await
    }

    async fn serve(
        config: Config,
        shutdown: Shutdown,
        clock: Arc<dyn Clock>,
        stores: Stores,
        listener: TcpListener,
        http: Option<TcpListener>,
    ) -> anyhow::Result<Server> {
        let store: Arc<dyn Store> = Arc::new(Observed::new(stores.records));
        let metric_store: Arc<dyn MetricStore> = Arc::new(ObservedMetrics::new(stores.metrics));
        let artifacts = Arc::new(ObservedArtifacts::new(stores.artifacts));
        let storages = stores.storages;
        metrics::install();
        metrics::build_info(store.info().name);
        let addr = listener.local_addr()?;
        let http_addr = http.as_ref().map(TcpListener::local_addr).transpose()?;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            grpc.listen = %addr,
            http.listen = http_addr.map(tracing::field::display),
            store = store.info().name,
            "started"
        );
        let stop = shutdown.soft.clone();
        let tasks = shutdown.tasks.clone();
        // The write path ends after everything that writes.
        let lanes = TaskTracker::new();
        let lease_made = Arc::new(Notify::new());

        let hub = Hub::new(
            Arc::clone(&store),
            Arc::clone(&clock),
            watch::Settings {
                keepalive: config.watch.keepalive,
                linger: config.watch.linger,
                queue: watch::Bounds {
                    events: config.watch.inbox_events,
                    bytes: config.watch.inbox_bytes,
                },
                readers: config.watch.catch_up_readers,
            },
            stop.clone(),
            tasks.clone(),
        );
        let applied = Arc::new(AtomicU64::new(0));
        let engine = Engine::start(
            Arc::clone(&store),
            Arc::clone(&clock),
            Arc::new(Committed {
                metrics: WriteMetrics::new(),
                hub: Arc::clone(&hub),
                applied: Arc::clone(&applied),
            }),
            Bounds {
                batch_writes: config.writes.batch_writes,
                batch_bytes: config.writes.batch_bytes,
                lane_writes: (config.writes.queue_writes / store.lanes().max(1)).max(1),
                queue_bytes: config.writes.queue_bytes,
            },
            &lanes,
        );
        let app = Arc::new(App::new(Arc::clone(&store), engine.clone(), config.limits.clone()));
        let configurations = Arc::new(Configurations::new(
            Arc::clone(&app),
            Arc::new(ObservedConfigurations::new(stores.configurations)),
            Arc::clone(&clock),
        ));

        let arrivals = Arrivals::new(
            Arc::clone(&metric_store),
            Arc::clone(&clock),
            stop.clone(),
            tasks.clone(),
        );
        let points = Arc::new(AtomicU64::new(0));
        let recorder = Recorder::start(
            Arc::clone(&metric_store),
            Arc::clone(&clock),
            Arc::new(CommittedMetrics {
                metrics: WriteMetrics::new(),
                arrivals: Arc::clone(&arrivals),
                recorded: Arc::clone(&points),
            }),
            app::metrics::Bounds {
                batch_points: BATCH_POINTS,
                batch_bytes: config.writes.batch_bytes,
                lane_requests: (config.writes.queue_writes / metric_store.metric_lanes().max(1))
                    .max(1),
                queue_bytes: config.writes.queue_bytes,
            },
            &lanes,
        );
        let recorded = Arc::new(Metrics::new(Arc::clone(&app), metric_store, recorder));

        let artifacts = Arc::new(Artifacts::new(
            Arc::clone(&app),
            artifacts,
            storages,
            Arc::clone(&clock),
            config.artifacts.upload_expiry,
            stop.clone(),
            tasks.clone(),
        ));

        // Made now: a counter that is there from the start shows its first increment as a change.
        let expired = metrics::leases_expired();
        for collection in ["executions", "execution_steps", "execution_artifacts"] {
            metrics::retention_removed(collection).increment(0);
        }
        let keeper = Keeper {
            store: Arc::clone(&store),
            engine: engine.clone(),
            clock: Arc::clone(&clock),
            lease_made: Arc::clone(&lease_made),
            on_expired: Box::new(move |count| expired.increment(count as u64)),
        };
        tasks.spawn(keeper.run(stop.clone()));
        tasks.spawn(sweep(Arc::clone(&store), stop.clone()));
        let often =
            (config.artifacts.upload_expiry / 2).clamp(Duration::from_secs(1), SWEEP_INTERVAL);
        tasks.spawn(sweep_artifacts(Arc::clone(&artifacts), often, stop.clone()));
        let policy = policy(&config.retention);
        let retention = Arc::new(Retention::new(
            Arc::new(ObservedRetention::new(stores.retention)),
            policy,
            Arc::clone(&clock),
            Arc::clone(app.sweeps()),
            Arc::new({
                let (applied, recorded) = (Arc::clone(&applied), Arc::clone(&points));
                move || applied.load(Ordering::Relaxed) + recorded.load(Ordering::Relaxed)
            }),
        ));
        tasks.spawn(Arc::clone(&retention).keep(config.retention.interval, stop.clone()));

        let applied: follow::Applied = Arc::new(move || applied.load(Ordering::Relaxed));
        let holder = app::ids::server();
        let keeper = Arc::new(rollups::Keeper::new(
            Arc::clone(&store),
            Arc::clone(&stores.rollups),
            Arc::clone(&clock),
            holder.clone(),
        ));
        let follower = Follower::new(
            Arc::clone(&store),
            Arc::clone(&stores.leads),
            Arc::clone(&keeper) as _,
            holder,
            Arc::clone(&applied),
        );
        tasks.spawn(Arc::clone(&follower).run(stop.clone()));
        let rollups = Rollups::new(rollups::Reader::new(stores.rollups), keeper, follower);
        let indexer = Follower::new(
            Arc::clone(&store),
            Arc::clone(&stores.leads),
            Arc::new(search::Keeper::new(
                Arc::clone(&store),
                Arc::clone(&stores.search),
                Arc::clone(&artifacts),
                Arc::clone(&clock),
            )),
            app::ids::server(),
            Arc::clone(&applied),
        );
        let searchable = config.search.enabled;
        if searchable {
            tasks.spawn(Arc::clone(&indexer).run(stop.clone()));
        }
        let indexer = searchable.then_some(indexer);
        let search = Arc::new(Search::new(Arc::clone(&store), stores.search, indexer));

        let analytics =
            Arc::new(Analytics::new(Arc::clone(&app), rollups.clone(), Arc::clone(&clock)));

        let (reporter, health) = tonic_health::server::health_reporter();
        let (ready_sender, ready) = signal::channel(false);
        set_ready(&reporter, false).await;
        let probe = Probe {
            store: Arc::clone(&store),
            reporter: reporter.clone(),
            ready: ready_sender,
            stop: stop.clone(),
        };
        tasks.spawn(probe.run());
        tasks.spawn(metrics::upkeep(stop.clone()));
        tasks.spawn(sample(engine.clone(), Arc::clone(&hub), stop.clone()));

        let reflection = |other_version| {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // The details of errors, so that clients that live off reflection can show them.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(other_version)
        };
        let observe = rpc::observe::Observe::described(&[proto::DESCRIPTORS], std::process::id());
        let request_bytes = config.limits.request_bytes;
        rpc::codec::limit_decoded_bytes(config.limits.decoded_bytes);
        let executions = proto::execution_service_server::ExecutionServiceServer::new(
            rpc::executions::Executions {
                app: Arc::clone(&app),
                lease_made: Arc::clone(&lease_made),
            },
        )
        .max_decoding_message_size(request_bytes);
        let watches = rpc::watch::WatchRoutes::new(executions, Arc::clone(&app), hub, arrivals);
        let steps = proto::step_service_server::StepServiceServer::new(rpc::steps::Steps {
            app: Arc::clone(&app),
            configurations: Arc::clone(&configurations),
        })
        .max_decoding_message_size(request_bytes);
        let metrics =
            proto::metric_service_server::MetricServiceServer::new(rpc::metrics::MetricRpc {
                app: Arc::clone(&app),
                metrics: Arc::clone(&recorded),
                stop: stop.clone(),
            })
            .max_decoding_message_size(request_bytes);
        let ingest = proto::ingest_service_server::IngestServiceServer::new(rpc::ingest::Ingest {
            app: Arc::clone(&app),
            configurations: Arc::clone(&configurations),
            metrics: recorded,
            artifacts: Arc::clone(&artifacts),
            lease_made,
            tasks: tasks.clone(),
            stop: stop.clone(),
            in_flight: config.writes.ingest_in_flight,
        })
        .max_decoding_message_size(request_bytes);
        let configurations = proto::configuration_service_server::ConfigurationServiceServer::new(
            rpc::configurations::Service { configurations },
        )
        .max_decoding_message_size(request_bytes);
        let searches =
            proto::search_service_server::SearchServiceServer::new(rpc::search::SearchRpc {
                app: Arc::clone(&app),
                search,
            })
            .max_decoding_message_size(request_bytes);
        let artifacts = proto::artifact_service_server::ArtifactServiceServer::new(
            rpc::artifacts::ArtifactCalls { artifacts, tasks: tasks.clone() },
        )
        .max_decoding_message_size(request_bytes);
        let analytics =
            proto::analytics_service_server::AnalyticsServiceServer::new(rpc::analytics::Reports {
                analytics,
            })
            .max_decoding_message_size(request_bytes);
        let admin = proto::admin_service_server::AdminServiceServer::new(rpc::admin::Admin {
            app,
            database: stores.database,
            retention,
            rollups,
            searchable,
            tasks: tasks.clone(),
            stop: stop.clone(),
        });

        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let incoming = incoming.map_ok(rpc::linger::Lingering::new);
        let serving = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(config.grpc.ping_interval))
            .http2_keepalive_timeout(Some(config.grpc.ping_timeout))
            .max_concurrent_streams(Some(config.grpc.streams_per_connection))
            .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
            .initial_stream_window_size(Some(1024 * 1024))
            .initial_connection_window_size(Some(8 * 1024 * 1024))
            .layer(observe)
            .layer(rpc::edge_errors::EdgeErrors)
            .layer(rpc::whole_requests::WholeRequests)
            .add_service(health)
            .add_service(reflection(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET).build_v1()?)
            .add_service(reflection(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET).build_v1alpha()?)
            .add_service(watches)
            .add_service(steps)
            .add_service(ingest)
            .add_service(configurations)
            .add_service(metrics)
            .add_service(searches)
            .add_service(artifacts)
            .add_service(analytics)
            .add_service(admin)
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());

        if let Some(listener) = http {
            tasks.spawn(crate::http::serve(
                listener,
                crate::http::HttpState { ready: ready.clone() },
                stop.clone(),
            ));
        }
        tasks.spawn(serve_grpc(serving, shutdown.clone()));
        let down = Down { store, engine, shutdown, lanes, deadline: config.shutdown.deadline };
        let ended = tokio::spawn(down.run());
        Ok(Server { addr, http_addr, stop, ready, ended })
    }
}

/// The store by its roles, one database behind all of them, and where the bytes of artifacts are.
struct Stores {
    records: Arc<dyn Store>,
    configurations: Arc<dyn ConfigurationStore>,
    metrics: Arc<dyn MetricStore>,
    artifacts: Arc<dyn ArtifactStore>,
    retention: Arc<dyn RetentionStore>,
    rollups: Arc<dyn RollupStore>,
    search: Arc<dyn SearchStore>,
    leads: Arc<dyn Leads>,
    database: Arc<dyn Inspect>,
    storages: Storages,
}

impl Stores {
    fn of<S>(store: Arc<S>, storages: Storages) -> Stores
    where
        S: Store
            + ConfigurationStore
            + MetricStore
            + ArtifactStore
            + RetentionStore
            + RollupStore
            + SearchStore
            + Leads
            + Inspect,
    {
        Stores {
            records: Arc::<S>::clone(&store),
            configurations: Arc::<S>::clone(&store),
            metrics: Arc::<S>::clone(&store),
            artifacts: Arc::<S>::clone(&store),
            retention: Arc::<S>::clone(&store),
            rollups: Arc::<S>::clone(&store),
            search: Arc::<S>::clone(&store),
            leads: Arc::<S>::clone(&store),
            database: store,
            storages,
        }
    }
}

/// What is kept how long, as the rules of retention take it.
fn policy(settings: &config::Retention) -> retention::Policy {
    let age = |kept: Duration| {
        let millis = Millis::try_from(kept.as_millis()).unwrap_or(Millis::MAX);
        (millis > 0).then_some(millis)
    };
    let rule = |rule: &config::RetentionRule| retention::Rule {
        app_ids: rule.app_ids.clone(),
        app_names: rule.app_names.clone(),
        statuses: rule
            .statuses
            .iter()
            .map(|outcome| match outcome {
                config::Outcome::Completed => ExecutionStatus::Completed,
                config::Outcome::Failed => ExecutionStatus::Failed,
                config::Outcome::Cancelled => ExecutionStatus::Cancelled,
            })
            .collect(),
        ages: retention::Ages {
            executions: age(rule.executions.unwrap_or(settings.executions)),
            steps: age(rule.steps.unwrap_or(settings.steps)),
            artifacts: age(rule.artifacts.unwrap_or(settings.artifacts)),
        },
    };
    retention::Policy {
        ages: retention::Ages {
            executions: age(settings.executions),
            steps: age(settings.steps),
            artifacts: age(settings.artifacts),
        },
        rules: settings.rules.iter().map(rule).collect(),
    }
}

fn open_store(config: &Config, clock: &Arc<dyn Clock>) -> anyhow::Result<Stores> {
    let limits = config.limits.clone();
    let metrics_kept = Some(config.retention.metrics).filter(|kept| !kept.is_zero());
    Ok(match config.store() {
        StoreChoice::Sqlite { data_dir } => {
            let storages = storages(config, None)?;
            let options = SqliteOptions { metrics_kept, ..SqliteOptions::default() };
            let store = SqliteStore::open(data_dir, options, limits, Arc::clone(clock))?;
            Stores::of(store, storages)
        }
        StoreChoice::Mongodb { uri, settings } => {
            let options = MongoOptions { metrics_kept, ..mongo_options(uri, settings) };
            let store = MongoStore::connect(options, limits, Arc::clone(clock));
            let store = store.map_err(|_| malformed(uri))?;
            let database = Arc::clone(&store);
            let connect = move || {
                let store = Arc::clone(&database);
                Box::pin(async move { store.database().await }) as _
            };
            let gridfs = GridFs::new(Box::new(connect), Arc::clone(clock));
            let storages = storages(config, Some(Arc::new(gridfs)))?;
            Stores::of(store, storages)
        }
    })
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
                Err(store::Error::Failed(_)) => return Err(malformed(uri).into()),
                Err(error) => return Err(error.into()),
            }
        }
    })
}

fn malformed(uri: &Secret) -> ConfigError {
    let reason = "is no connection string that the driver understands";
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
            endpoint: set.s3_endpoint.clone(),
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

/// Tells the watchers and the metrics what became durable.
struct Committed {
    metrics: WriteMetrics,
    hub: Arc<Hub>,
    /// How many records were written.
    applied: Arc<AtomicU64>,
}

impl Observer for Committed {
    fn written(&self, records: Vec<Record>) {
        self.applied.fetch_add(records.len() as u64, Ordering::Relaxed);
        self.hub.wrote(records);
    }

    fn rejected(&self) {
        self.metrics.rejected.increment(1);
    }
}

/// The same for points of metrics.
struct CommittedMetrics {
    metrics: WriteMetrics,
    arrivals: Arc<Arrivals>,
    /// How many points were recorded.
    recorded: Arc<AtomicU64>,
}

impl app::metrics::Observer for CommittedMetrics {
    fn recorded(&self, execution_id: &str, points: Vec<Arrived>) {
        self.recorded.fetch_add(points.len() as u64, Ordering::Relaxed);
        self.arrivals.recorded(execution_id, points);
    }

    fn rejected(&self) {
        self.metrics.rejected.increment(1);
    }
}

/// Shows what is counted elsewhere, once a second.
async fn sample(engine: Engine, hub: Arc<Hub>, stop: CancellationToken) {
    let depth = WriteMetrics::new().queue_depth;
    let watching = WatchMetrics::new();
    let mut every = tokio::time::interval(Duration::from_secs(1));
    while stop.run_until_cancelled(every.tick()).await.is_some() {
        depth.set(engine.depth() as f64);
        let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
        watching.watchers.set(count(&hub.numbers.watchers) as f64);
        watching.events.absolute(count(&hub.numbers.events));
        watching.coalesced.absolute(count(&hub.numbers.coalesced));
        watching.lookups.absolute(hub.lookups());
        watching.catch_up_readers.set(hub.readers() as f64);
    }
}

/// Every service that has a health of its own; `""` is the server.
async fn set_ready(reporter: &HealthReporter, ready: bool) {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in [
        "",
        "stepwell.v1.ExecutionService",
        "stepwell.v1.StepService",
        "stepwell.v1.IngestService",
        "stepwell.v1.ConfigurationService",
        "stepwell.v1.MetricService",
        "stepwell.v1.AdminService",
        "stepwell.v1.AnalyticsService",
        "stepwell.v1.ArtifactService",
    ] {
        reporter.set_service_status(service, status).await;
    }
}

/// Asks the database whether it is there, and says so through health and readiness.
struct Probe {
    store: Arc<dyn Store>,
    reporter: HealthReporter,
    ready: signal::Sender<bool>,
    stop: CancellationToken,
}

impl Probe {
    async fn run(self) {
        let mut known = None;
        loop {
            let up = tokio::select! {
                () = self.stop.cancelled() => break,
                outcome = self.store.ping() => outcome.is_ok(),
            };
            if known != Some(up) {
                set_ready(&self.reporter, up).await;
                self.ready.send_replace(up);
                metrics::store_up().set(if up { 1.0 } else { 0.0 });
                // Said when it is so: who reads the log may rely on it.
                match (known, up) {
                    (_, true) => tracing::info!("ready"),
                    (None, false) => tracing::warn!("waiting for the database"),
                    (Some(_), false) => tracing::warn!("the database is away"),
                }
                known = Some(up);
            }
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = tokio::time::sleep(PROBE_INTERVAL) => {}
            }
        }
        set_ready(&self.reporter, false).await;
        self.ready.send_replace(false);
    }
}

async fn sweep(store: Arc<dyn Store>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            outcome = store.sweep() => {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "cannot sweep");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_INTERVAL) => {}
        }
    }
}

async fn sweep_artifacts(artifacts: Arc<Artifacts>, often: Duration, stop: CancellationToken) {
    let sweeps = Arc::clone(artifacts.app().sweeps());
    loop {
        let asked = sweeps.begin();
        tokio::select! {
            () = stop.cancelled() => break,
            outcome = artifacts.sweep() => {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "cannot sweep artifacts");
                }
            }
        }
        sweeps.end(asked);
        tokio::select! {
            () = stop.cancelled() => break,
            () = sweeps.asked_after(asked) => {}
            () = tokio::time::sleep(often) => {}
        }
    }
    sweeps.close();
}

/// Serves until the calls have drained, or the time for that is over.
async fn serve_grpc(
    serving: impl Future<Output = Result<(), tonic::transport::Error>>,
    shutdown: Shutdown,
) {
    tokio::select! {
        outcome = serving => {
            if let Err(error) = outcome {
                tracing::error!(%error, "the gRPC port failed");
            }
        }
        () = shutdown.hard.cancelled() => {}
    }
    // Without the port there is no server: let the process end.
    shutdown.soft.cancel();
}

/// Takes the parts down in order: no new calls, streams end, calls drain, queued writes are applied, the store
/// closes.
struct Down {
    store: Arc<dyn Store>,
    engine: Engine,
    shutdown: Shutdown,
    lanes: TaskTracker,
    deadline: Duration,
}

impl Down {
    async fn run(self) -> Ending {
        let ending = self.shutdown.finish().await;
        // The last handle: the lanes apply what is queued and end.
        drop(self.engine);
        self.lanes.close();
        if tokio::time::timeout(self.deadline / 4, self.lanes.wait()).await.is_err() {
            tracing::warn!("queued writes were not applied in time; none of them was acknowledged");
        }
        if tokio::time::timeout(Duration::from_secs(1), self.store.close()).await.is_err() {
            tracing::warn!("the store did not close in time");
        }
        ending
    }
}
