//! Connections to the server under test.

use std::time::Duration;

use anyhow::Context as _;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Endpoint;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// HTTP/2 flow control of one connection, in bytes that may be under way unread.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    pub stream: u32,
    pub connection: u32,
}

/// The key to call with, where servers ask who calls.
const KEY: &str = "STEPWELL_KEY";

/// A connection on which every call brings the key, if there is one.
pub type Channel = InterceptedService<tonic::transport::Channel, Credential>;

/// What every call brings along.
#[derive(Debug, Clone)]
pub struct Credential(Option<MetadataValue<Ascii>>);

impl Interceptor for Credential {
    fn call(&mut self, mut request: tonic::Request<()>) -> tonic::Result<tonic::Request<()>> {
        if let Some(bearer) = &self.0 {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        Ok(request)
    }
}

/// The server under test.
#[derive(Debug, Clone)]
pub struct Server {
    address: String,
    credential: Credential,
}

impl Server {
    /// `host:port` alone means plain HTTP/2.
    pub fn new(given: &str) -> anyhow::Result<Self> {
        let address =
            if given.contains("://") { given.to_owned() } else { format!("http://{given}") };
        Endpoint::from_shared(address.clone()).with_context(|| format!("--server {given}"))?;
        let bearer = match std::env::var(KEY) {
            Ok(key) => {
                let mut bearer = MetadataValue::try_from(format!("Bearer {key}"))
                    .with_context(|| format!("{KEY} is no key"))?;
                bearer.set_sensitive(true);
                Some(bearer)
            }
            Err(_) => None,
        };
        Ok(Server { address, credential: Credential(bearer) })
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
        Ok(InterceptedService::new(endpoint.connect_lazy(), self.credential.clone()))
    }

    /// A connection for calls and streams of writes.
    pub fn for_writes(&self) -> anyhow::Result<Channel> {
        self.connection(Windows { stream: 1 << 20, connection: 4 << 20 })
    }
}
