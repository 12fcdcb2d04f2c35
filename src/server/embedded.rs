//! A server inside of the process that uses it, over the database of somebody else: it listens nowhere, makes nothing,
//! writes nothing, and lets its one caller read.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower_layer::Layer as _;
use tower_service::Service as _;

use super::ending::Down;
use super::parts::Parts;
use super::{backends, doors, services};
use crate::audit::Audit;
use crate::clock::SystemClock;
use crate::config::{Config, Secret};
use crate::rpc::authenticate::Authenticate;
use crate::shutdown::Shutdown;
use crate::telemetry::metrics;

/// Answers a call.
type Answering =
    dyn Fn(http::Request<Body>) -> BoxFuture<'static, http::Response<Body>> + Send + Sync;

/// A server within this process.
pub struct Embedded {
    answer: Box<Answering>,
    down: parking_lot::Mutex<Option<Down>>,
    shutdown: Shutdown,
}

impl Embedded {
    /// Reads this database of MongoDB. Artifacts are where `config` says.
    pub fn reading(uri: &str, database: &str, config: Config) -> anyhow::Result<Arc<Embedded>> {
        metrics::install();
        let mut config = Config { read_only: true, ..config };
        config.mongodb.uri = Some(Secret::new(uri.to_owned()));
        config.mongodb.database = database.to_owned();
        config.search.enabled = false;
        let clock: Arc<dyn crate::clock::Clock> = Arc::new(SystemClock);
        let shutdown = Shutdown::new(&config.shutdown);
        let stores = backends::open(&config, &clock)?;
        let store = Arc::clone(&stores.records);
        let read = doors::read(&config, &clock)?;
        let audit = Audit::off();
        let doors = doors::Doors::start(&config, &clock, &stores.keys, read, &audit, &shutdown)?;
        let makers = Arc::clone(&doors.makers) as _;
        let gate = Arc::clone(&doors.entrance.gate);
        let lanes = TaskTracker::new();
        let parts = Parts::start(&config, clock, stores, makers, &shutdown, &lanes);
        let engine = parts.engine.clone();
        let (_, health) = tonic_health::server::health_reporter();
        let routes = services::routes(parts, doors, audit.clone(), &config, &shutdown, health)?;
        let service = Authenticate::new(gate, audit.clone()).layer(routes);
        let deadline = config.shutdown.deadline;
        let down = Down { store, engine, audit, shutdown: shutdown.clone(), lanes, deadline };
        let answer = move |request| {
            let mut service = service.clone();
            async move {
                match service.call(request).await {
                    Ok(answer) => answer.map(Body::new),
                    Err(never) => match never {},
                }
            }
            .boxed()
        };
        let down = parking_lot::Mutex::new(Some(down));
        Ok(Arc::new(Embedded { answer: Box::new(answer), down, shutdown }))
    }

    /// The answer to a call.
    pub fn call(&self, request: http::Request<Body>) -> BoxFuture<'static, http::Response<Body>> {
        (self.answer)(request)
    }

    /// Ends what is under way, and lets go of the database.
    pub async fn close(&self) {
        self.shutdown.soft.cancel();
        let down = self.down.lock().take();
        if let Some(down) = down {
            down.run().await;
        }
    }
}
