//! Connections to the server under test.

use std::time::Duration;

use anyhow::Context as _;
use tonic::transport::{Channel, Endpoint};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// HTTP/2 flow control of one connection, in bytes that may be under way unread.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    pub stream: u32,
    pub connection: u32,
}

/// The server under test.
#[derive(Debug, Clone)]
pub struct Server {
    address: String,
}

impl Server {
    /// `host:port` alone means plain HTTP/2.
    pub fn new(given: &str) -> anyhow::Result<Self> {
        let address =
            if given.contains("://") { given.to_owned() } else { format!("http://{given}") };
        Endpoint::from_shared(address.clone()).with_context(|| format!("--server {given}"))?;
        Ok(Server { address })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// A connection of its own. It opens with the first call, and again when it was lost.
    pub fn connection(&self, windows: Windows) -> anyhow::Result<Channel> {
        let endpoint = Endpoint::from_shared(self.address.clone())?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(windows.stream)
            .initial_connection_window_size(windows.connection);
        Ok(endpoint.connect_lazy())
    }

    /// A connection for calls and streams of writes.
    pub fn for_writes(&self) -> anyhow::Result<Channel> {
        self.connection(Windows { stream: 1 << 20, connection: 4 << 20 })
    }
}
