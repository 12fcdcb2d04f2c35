//! The composition root: puts the parts together, starts them, and takes them down in order. Only `backends` names a
//! backend.

mod accept;
mod backends;
mod descriptors;
mod doors;
pub mod embedded;
mod ending;
mod files;
mod notifications;
mod parts;
mod probe;
mod recorded;
mod services;
mod tls;
mod upkeep;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::watch as signal;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::http::Readiness;
use crate::shutdown::{Ending, Shutdown};
use crate::telemetry::metrics;

use backends::Stores;
pub use backends::{look_at, role, shard_plan};
use ending::Down;
use parts::Parts;
use probe::Probe;

/// A running server.
pub struct Server {
    addr: SocketAddr,
    http_addr: Option<SocketAddr>,
    stop: CancellationToken,
    ready: signal::Receiver<Readiness>,
    ended: tokio::task::JoinHandle<Ending>,
}

impl Server {
    /// Opens the store, binds the ports and serves. With MongoDB it returns although the database may be away:
    /// then the server waits for it, is not ready, and answers UNAVAILABLE.
    pub async fn start(config: Config) -> anyhow::Result<Server> {
        let shutdown = Shutdown::new(&config.shutdown);
        Self::start_with(config, shutdown, Arc::new(SystemClock)).await
    }

    /// The same with the tokens of the process, which signals may cancel, and with the clock to go by.
    pub async fn start_with(
        config: Config,
        shutdown: Shutdown,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Server> {
        // Before any handle of a metric is made.
        metrics::install();
        // Before the ports: what cannot be configured like this ends the process before anybody connects.
        config.check_doors()?;
        let read = doors::read(&config, &clock)?;
        let stores = backends::open(&config, &clock)?;
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
        Self::serve(config, shutdown, clock, stores, read, listener, http).await
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
        let _ = self.ready.clone().wait_for(|ready| *ready == Readiness::Ready).await;
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
        read: doors::Read,
        listener: TcpListener,
        http: Option<TcpListener>,
    ) -> anyhow::Result<Server> {
        let (store, signals) = (Arc::clone(&stores.records), Arc::clone(&stores.signals));
        metrics::build_info(store.info().name);
        let addr = listener.local_addr()?;
        let http_addr = http.as_ref().map(TcpListener::local_addr).transpose()?;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            grpc.listen = %addr,
            http.listen = http_addr.map(tracing::field::display),
            tls = config.speaks_tls(),
            store = store.info().name,
            "started"
        );
        let (stop, tasks) = (shutdown.soft.clone(), shutdown.tasks.clone());
        // The write path ends after everything that writes.
        let lanes = TaskTracker::new();
        let audit = recorded::start(&config, &clock, &stores.audit);
        let doors = doors::Doors::start(&config, &clock, &stores.keys, read, &audit, &shutdown)?;
        let makers = Arc::clone(&doors.makers) as _;
        let parts = Parts::start(&config, Arc::clone(&clock), stores, makers, &shutdown, &lanes);
        let engine = parts.engine.clone();

        let (reporter, health) = tonic_health::server::health_reporter();
        let (ready_sender, ready) = signal::channel(probe::STARTING);
        probe::set_ready(&reporter, false).await;
        let probe = Probe {
            store: Arc::clone(&store),
            signals,
            audit: audit.clone(),
            clock: Arc::clone(&clock),
            reporter,
            ready: ready_sender,
            stop: stop.clone(),
        };
        tasks.spawn(probe.run());

        let entrance = (doors.entrance.clone(), audit.clone());
        let routes = services::routes(parts, doors, audit.clone(), &config, &shutdown, health)?;
        let serving = services::serve(listener, &config, routes, entrance, clock, &shutdown);
        if let Some(listener) = http {
            let state = crate::http::HttpState { ready: ready.clone() };
            tasks.spawn(crate::http::serve(listener, state, stop.clone()));
        }
        tasks.spawn(ending::drain(serving, shutdown.clone()));
        let deadline = config.shutdown.deadline;
        let down = Down { store, engine, audit, shutdown, lanes, deadline };
        let ended = tokio::spawn(down.run());
        Ok(Server { addr, http_addr, stop, ready, ended })
    }
}
