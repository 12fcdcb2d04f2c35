//! A server inside the test process. The only file here that knows how one is started.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

use stepwell::clock::{Clock, SystemClock};
use stepwell::config::Config;
use stepwell::shutdown::Shutdown;

use super::Client;

/// A running server and a connection to it. It goes down with the test's runtime at the latest.
pub struct Server {
    client: Client,
    address: SocketAddr,
    running: Option<stepwell::server::Server>,
}

impl Server {
    pub async fn start(config: Config) -> Server {
        Server::start_by(config, Arc::new(SystemClock)).await
    }

    /// A server that goes by this clock.
    pub async fn start_by(config: Config, clock: Arc<dyn Clock>) -> Server {
        let shutdown = Shutdown::new(&config.shutdown);
        let started = stepwell::server::Server::start_with(config, shutdown, clock).await;
        let running = match started {
            Ok(running) => running,
            Err(error) => panic!("the server does not start: {error:#}"),
        };
        let address = running.addr();
        super::in_time("a server that is ready", running.ready()).await;
        Server { client: Client::of(address), address, running: Some(running) }
    }

    /// Another connection to the same server.
    pub fn second_connection(&self) -> Server {
        Server { client: Client::of(self.address), address: self.address, running: None }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it as SIGTERM does, and returns when it is down.
    pub async fn shutdown(self) {
        if let Some(running) = self.running {
            super::in_time("the end of the server", running.shutdown()).await;
        }
    }
}

impl Deref for Server {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}
