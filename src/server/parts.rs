//! The parts of a server, put together and started: the write path, watching, operations, and what keeps the store tidy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::backends::Stores;
use super::{notifications, upkeep};
use crate::app::analytics::Analytics;
use crate::app::artifacts::Artifacts;
use crate::app::configurations::Configurations;
use crate::app::digests::Digests;
use crate::app::engine::Observer;
use crate::app::export::Exports;
use crate::app::lanes::Bounds;
use crate::app::leases::Keeper;
use crate::app::metrics::{Metrics, Recorder};
use crate::app::mirrors::Mirrors;
use crate::app::notifications::{Makers, Notifications};
use crate::app::retention::Retention;
use crate::app::rollups::{self, Rollups};
use crate::app::search::{self, Search};
use crate::app::{self, App, Engine};
use crate::audit;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::domain::{ExecutionStatus, Millis, retention};
use crate::follow::{self, Follower};
use crate::shutdown::Shutdown;
use crate::store::inspect::Inspect;
use crate::store::leads::Leads;
use crate::store::metrics::{Arrived, MetricStore};
use crate::store::mirrors::MirrorStore;
use crate::store::notifications::NotificationStore;
use crate::store::retention::RetentionStore;
use crate::store::rollups::RollupStore;
use crate::store::search::SearchStore;
use crate::store::{Record, Store};
use crate::telemetry::metrics::{self, WriteMetrics};
use crate::watch::{self, Arrivals, Hub};

/// Points of metrics stored together at most.
const BATCH_POINTS: usize = 10_000;

/// What the services work with. Each holds the write path open: it ends once all of them are gone.
pub(super) struct Parts {
    pub clock: Arc<dyn Clock>,
    pub app: Arc<App>,
    pub engine: Engine,
    pub hub: Arc<Hub>,
    pub arrivals: Arc<Arrivals>,
    pub configurations: Arc<Configurations>,
    pub metrics: Arc<Metrics>,
    pub artifacts: Arc<Artifacts>,
    pub retention: Arc<Retention>,
    pub rollups: Rollups,
    pub search: Arc<Search>,
    pub exports: Arc<Exports>,
    pub digests: Arc<Digests>,
    pub notifications: Arc<Notifications>,
    pub mirrors: Arc<Mirrors>,
    pub analytics: Arc<Analytics>,
    pub database: Arc<dyn Inspect>,
    pub audited: Arc<audit::read::Reader>,
    pub lease_made: Arc<Notify>,
}

impl Parts {
    /// Puts them together and starts what runs by itself. `lanes` tracks the write path, which ends after everything
    /// that writes.
    pub fn start(
        config: &Config,
        clock: Arc<dyn Clock>,
        stores: Stores,
        makers: Arc<dyn Makers>,
        shutdown: &Shutdown,
        lanes: &TaskTracker,
    ) -> Parts {
        let ground = Ground {
            config,
            store: stores.records,
            clock,
            stop: shutdown.soft.clone(),
            tasks: shutdown.tasks.clone(),
            lanes,
            written: Arc::default(),
            recorded: Arc::default(),
        };
        let hub = ground.hub();
        let engine = ground.engine(&hub);
        let limits = config.limits.clone();
        let app = Arc::new(App::new(Arc::clone(&ground.store), engine.clone(), limits));
        let exports = Exports::new(
            Arc::clone(&app),
            Arc::clone(&stores.configurations),
            Arc::clone(&stores.metrics),
            stores.scan,
            Arc::clone(&ground.clock),
        );
        let clock = Arc::clone(&ground.clock);
        let digests = Digests::new(Arc::clone(&exports), clock);
        let configurations = Arc::new(Configurations::new(
            Arc::clone(&app),
            stores.configurations,
            Arc::clone(&ground.clock),
        ));
        let (arrivals, recorder) = ground.recorder(&stores.metrics);
        let metrics = Arc::new(Metrics::new(Arc::clone(&app), stores.metrics, recorder));
        let artifacts = Arc::new(Artifacts::new(
            Arc::clone(&app),
            stores.artifacts,
            stores.storages,
            Arc::clone(&ground.clock),
            config.artifacts.upload_expiry,
            ground.stop.clone(),
            ground.tasks.clone(),
        ));
        let lease_made = ground.leases(&engine, &stores.mirrors);
        ground.sweeps(&artifacts);
        let retention = ground.retention(stores.retention, &stores.leads, &app);
        let rollups = ground.rollups(stores.rollups, &stores.leads);
        let search = ground.search(stores.search, &stores.leads, &artifacts);
        let notifications = ground.notifications(stores.notifications, &stores.leads, makers);
        let mirrors = Mirrors::new(Arc::clone(&app), stores.mirrors, Arc::clone(&ground.clock));
        let analytics =
            Arc::new(Analytics::new(Arc::clone(&app), rollups.clone(), ground.clock.clone()));
        let kept = Some(config.retention.audit).filter(|kept| !kept.is_zero());
        let audited = audit::read::Reader::new(stores.audit, Arc::clone(&ground.clock), kept);
        ground.tasks.spawn(metrics::upkeep(ground.stop.clone()));
        let sample = upkeep::sample(engine.clone(), Arc::clone(&hub), ground.stop.clone());
        ground.tasks.spawn(sample);
        Parts {
            clock: ground.clock,
            app,
            engine,
            hub,
            arrivals,
            configurations,
            metrics,
            artifacts,
            retention,
            rollups,
            search,
            exports,
            digests,
            notifications,
            mirrors: Arc::new(mirrors),
            analytics,
            database: stores.database,
            audited: Arc::new(audited),
            lease_made,
        }
    }
}

/// What every part is made of.
struct Ground<'a> {
    config: &'a Config,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    tasks: TaskTracker,
    lanes: &'a TaskTracker,
    /// How many records were written.
    written: Arc<AtomicU64>,
    /// How many points of metrics were recorded.
    recorded: Arc<AtomicU64>,
}

impl Ground<'_> {
    /// Does something of its own accord, unless the database is only read.
    fn background(&self, task: impl Future<Output = ()> + Send + 'static) {
        if !self.config.read_only {
            self.tasks.spawn(task);
        }
    }

    fn hub(&self) -> Arc<Hub> {
        metrics::changes_skipped().increment(0);
        metrics::watch_lag().set(0.0);
        let settings = &self.config.watch;
        Hub::new(
            Arc::clone(&self.store),
            Arc::clone(&self.clock),
            watch::Settings {
                keepalive: settings.keepalive,
                linger: settings.linger,
                queue: watch::Bounds { events: settings.inbox_events, bytes: settings.inbox_bytes },
                readers: settings.catch_up_readers,
            },
            self.stop.clone(),
            self.tasks.clone(),
        )
    }

    fn engine(&self, hub: &Arc<Hub>) -> Engine {
        let settings = &self.config.writes;
        Engine::start(
            Arc::clone(&self.store),
            Arc::clone(&self.clock),
            Arc::new(Committed {
                metrics: WriteMetrics::new(),
                hub: Arc::clone(hub),
                applied: Arc::clone(&self.written),
            }),
            Bounds {
                batch_count: settings.batch_writes,
                batch_bytes: settings.batch_bytes,
                lane_items: (settings.queue_writes / self.store.lanes().max(1)).max(1),
                queue_bytes: settings.queue_bytes,
            },
            self.lanes,
        )
    }

    fn recorder(&self, store: &Arc<dyn MetricStore>) -> (Arc<Arrivals>, Recorder) {
        let settings = &self.config.writes;
        let (store, clock) = (Arc::clone(store), Arc::clone(&self.clock));
        let lane_items = (settings.queue_writes / store.metric_lanes().max(1)).max(1);
        let arrivals = Arrivals::new(
            Arc::clone(&store),
            Arc::clone(&clock),
            self.stop.clone(),
            self.tasks.clone(),
        );
        let observer = CommittedMetrics {
            metrics: WriteMetrics::new(),
            arrivals: Arc::clone(&arrivals),
            recorded: Arc::clone(&self.recorded),
        };
        let bounds = Bounds {
            batch_count: BATCH_POINTS,
            batch_bytes: settings.batch_bytes,
            lane_items,
            queue_bytes: settings.queue_bytes,
        };
        let recorder = Recorder::start(store, clock, Arc::new(observer), bounds, self.lanes);
        (arrivals, recorder)
    }

    /// Starts the keeper of leases, which is woken where one was made.
    fn leases(&self, engine: &Engine, mirrors: &Arc<dyn MirrorStore>) -> Arc<Notify> {
        let lease_made = Arc::new(Notify::new());
        // Made now: a counter that is there from the start shows its first increment as a change.
        let expired = metrics::leases_expired();
        let keeper = Keeper {
            store: Arc::clone(&self.store),
            mirrors: Arc::clone(mirrors),
            engine: engine.clone(),
            clock: Arc::clone(&self.clock),
            lease_made: Arc::clone(&lease_made),
            on_expired: Box::new(move |count| expired.increment(count as u64)),
        };
        self.background(keeper.run(self.stop.clone()));
        lease_made
    }

    fn sweeps(&self, artifacts: &Arc<Artifacts>) {
        self.background(upkeep::sweep(Arc::clone(&self.store), self.stop.clone()));
        let often = (self.config.artifacts.upload_expiry / 2)
            .clamp(Duration::from_secs(1), upkeep::SWEEP_INTERVAL);
        let sweep = upkeep::sweep_artifacts(Arc::clone(artifacts), often, self.stop.clone());
        self.background(sweep);
    }

    fn retention(
        &self,
        store: Arc<dyn RetentionStore>,
        leads: &Arc<dyn Leads>,
        app: &Arc<App>,
    ) -> Arc<Retention> {
        for collection in ["executions", "execution_steps", "execution_artifacts"] {
            metrics::retention_removed(collection).increment(0);
        }
        let retention = Arc::new(Retention::new(
            store,
            Arc::clone(leads),
            policy(&self.config.retention),
            Arc::clone(&self.clock),
            Arc::clone(app.sweeps()),
            Arc::new({
                let (written, recorded) = (Arc::clone(&self.written), Arc::clone(&self.recorded));
                move || written.load(Ordering::Relaxed) + recorded.load(Ordering::Relaxed)
            }),
        ));
        let interval = self.config.retention.interval;
        self.background(Arc::clone(&retention).keep(interval, self.stop.clone()));
        retention
    }

    fn rollups(&self, store: Arc<dyn RollupStore>, leads: &Arc<dyn Leads>) -> Rollups {
        let holder = app::ids::server();
        let keeper = Arc::new(rollups::Keeper::new(
            Arc::clone(&self.store),
            Arc::clone(&store),
            Arc::clone(&self.clock),
            holder.clone(),
        ));
        let follower = self.follower(leads, Arc::clone(&keeper) as _, holder);
        self.background(Arc::clone(&follower).run(self.stop.clone()));
        Rollups::new(rollups::Reader::new(store), keeper, follower)
    }

    fn search(
        &self,
        store: Arc<dyn SearchStore>,
        leads: &Arc<dyn Leads>,
        artifacts: &Arc<Artifacts>,
    ) -> Arc<Search> {
        let indexer = self.config.search.enabled.then(|| {
            let keeper = Arc::new(search::Keeper::new(
                Arc::clone(&self.store),
                Arc::clone(&store),
                Arc::clone(artifacts),
                Arc::clone(&self.clock),
            ));
            let indexer = self.follower(leads, keeper, app::ids::server());
            self.background(Arc::clone(&indexer).run(self.stop.clone()));
            indexer
        });
        Arc::new(Search::new(Arc::clone(&self.store), store, indexer))
    }

    fn notifications(
        &self,
        store: Arc<dyn NotificationStore>,
        leads: &Arc<dyn Leads>,
        makers: Arc<dyn Makers>,
    ) -> Arc<Notifications> {
        let made = notifications::make(
            self.config,
            Arc::clone(&self.store),
            store,
            makers,
            Arc::clone(&self.clock),
        );
        self.background(made.directory.keep(self.stop.clone()));
        let follower = self.follower(leads, made.notifier, made.holder);
        self.background(follower.run(self.stop.clone()));
        made.operations
    }

    fn follower(
        &self,
        leads: &Arc<dyn Leads>,
        consumer: Arc<dyn follow::Consumer>,
        holder: String,
    ) -> Arc<Follower> {
        let written = Arc::clone(&self.written);
        Follower::new(
            Arc::clone(&self.store),
            Arc::clone(leads),
            consumer,
            holder,
            Arc::clone(&self.clock),
            Arc::new(move || written.load(Ordering::Relaxed)),
        )
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
