//! A server inside the test process. The only file here that knows how one is started.

use std::net::SocketAddr;
use std::ops::Deref;

use stepwell::config::Config;

use super::Client;

/// A running server and a connection to it. It goes down with the test's runtime at the latest.
pub struct Server {
    client: Client,
    address: SocketAddr,
    running: Option<stepwell::server::Server>,
}

impl Server {
    pub async fn start(config: Config) -> Server {
        let running = match stepwell::server::Server::start(config).await {
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
