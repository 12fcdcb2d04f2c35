//! The composition root: puts the parts together, starts them, and takes them down in order. Only `backends` names a
//! backend.

mod backends;
mod ending;
mod parts;
mod services;
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
use crate::shutdown::{Ending, Shutdown};
use crate::telemetry::metrics;

use backends::Stores;
pub use backends::look_at;
use ending::Down;
use parts::Parts;
use upkeep::Probe;

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
        let store = Arc::clone(&stores.records);
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
        let (stop, tasks) = (shutdown.soft.clone(), shutdown.tasks.clone());
        // The write path ends after everything that writes.
        let lanes = TaskTracker::new();
        let parts = Parts::start(&config, Arc::clone(&clock), stores, &shutdown, &lanes);
        let engine = parts.engine.clone();

        let (reporter, health) = tonic_health::server::health_reporter();
        let (ready_sender, ready) = signal::channel(false);
        upkeep::set_ready(&reporter, false).await;
        let (probed, stopped) = (Arc::clone(&store), stop.clone());
        let probe = Probe { store: probed, reporter, ready: ready_sender, stop: stopped };
        tasks.spawn(probe.run());

        let routes = services::routes(parts, &config, &shutdown, health)?;
        let serving = services::serve(listener, &config.grpc, routes, clock, stop.clone());
        if let Some(listener) = http {
            let state = crate::http::HttpState { ready: ready.clone() };
            tasks.spawn(crate::http::serve(listener, state, stop.clone()));
        }
        tasks.spawn(ending::drain(serving, shutdown.clone()));
        let down = Down { store, engine, shutdown, lanes, deadline: config.shutdown.deadline };
        let ended = tokio::spawn(down.run());
        Ok(Server { addr, http_addr, stop, ready, ended })
    }
}
