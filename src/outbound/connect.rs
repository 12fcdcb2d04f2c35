//! Connections to addresses that were checked, and requests over them. One that is idle is used again only while its
//! address is among those that were checked for the request at hand.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use http::{Request, response};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::failure::Failure;
use crate::clock::Clock;

/// How long one address may take, where a name has several.
const CONNECT: Duration = Duration::from_secs(5);
/// What an answer may take before its body, and how many headers.
const HEAD_BYTES: usize = 64 * 1024;
const HEADERS: usize = 100;
/// Of a body, what is read for the connection to be used again, and for how long.
const BODY_BYTES: usize = 16 * 1024;
const BODY_WITHIN: Duration = Duration::from_millis(100);
/// Connections that wait for the next request, and for how long.
const IDLE: usize = 64;
const IDLE_OF_ONE: usize = 8;
const IDLE_FOR: Duration = Duration::from_secs(15);

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    secure: bool,
    host: Host<String>,
    port: u16,
}

impl Place {
    pub fn of(url: &Url) -> Option<Place> {
        let secure = url.scheme() == "https";
        Some(Place { secure, host: url.host()?.to_owned(), port: url.port_or_known_default()? })
    }

    pub fn host(&self) -> &Host<String> {
        &self.host
    }

    /// As in the header `host`.
    pub fn authority(&self) -> String {
        match (self.secure, self.port) {
            (true, 443) | (false, 80) => self.host.to_string(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }

    fn server_name(&self) -> Option<ServerName<'static>> {
        match &self.host {
            Host::Domain(name) => ServerName::try_from(name.clone()).ok(),
            Host::Ipv4(address) => Some(ServerName::from(IpAddr::V4(*address))),
            Host::Ipv6(address) => Some(ServerName::from(IpAddr::V6(*address))),
        }
    }
}

type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An open connection. Nothing happens on it while nobody drives it.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: Driver,
    address: IpAddr,
    idle_since: Instant,
}

/// Opens connections, and keeps some.
pub struct Connections {
    clock: Arc<dyn Clock>,
    tls: OnceLock<Option<Arc<ClientConfig>>>,
    idle: Mutex<HashMap<Place, VecDeque<Connection>>>,
}

/// With the certificates that the system trusts.
fn tls() -> Option<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_platform_verifier());
    match config {
        Ok(config) => {
            let mut config = config.with_no_client_auth();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Some(Arc::new(config))
        }
        Err(error) => {
            tracing::error!(%error, "no certificate of this system can be used: https fails");
            None
        }
    }
}

/// The driver goes on while something else is waited for.
async fn drive<T>(driver: &mut Driver, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    let mut over = false;
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = &mut *driver, if !over => over = true,
        }
    }
}

impl Connections {
    pub fn new(clock: Arc<dyn Clock>) -> Connections {
        Connections { clock, tls: OnceLock::new(), idle: Mutex::default() }
    }

    /// Sends a request to one of these addresses; the head of the answer.
    pub async fn send(
        &self,
        place: &Place,
        addresses: &[IpAddr],
        request: impl Fn() -> Result<Request<Full<Bytes>>, Failure>,
    ) -> Result<response::Parts, Failure> {
        // The other side may have closed one that was idle; then nothing was sent over it, or the same is sent again.
        if let Some(idle) = self.take(place, addresses)
            && let Ok(head) = self.exchange(place, idle, request()?).await
        {
            return Ok(head);
        }
        let fresh = self.connect(place, addresses).await?;
        self.exchange(place, fresh, request()?).await
    }

    async fn exchange(
        &self,
        place: &Place,
        mut connection: Connection,
        request: Request<Full<Bytes>>,
    ) -> Result<response::Parts, Failure> {
        let Connection { sender, driver, .. } = &mut connection;
        let answer = drive(driver, async {
            sender.ready().await?;
            sender.send_request(request).await
        });
        let (head, mut body) = answer.await.map_err(|_| Failure::NoAnswer)?.into_parts();
        let rest = async {
            let mut left = BODY_BYTES;
            while let Some(frame) = body.frame().await {
                let bytes = frame.ok()?.into_data().map_or(0, |data| data.len());
                left = left.checked_sub(bytes)?;
            }
            Some(())
        };
        let read = drive(driver, tokio::time::timeout(BODY_WITHIN, rest)).await;
        if matches!(read, Ok(Some(()))) && !connection.sender.is_closed() {
            self.put(place, connection);
        }
        Ok(head)
    }

    async fn connect(&self, place: &Place, addresses: &[IpAddr]) -> Result<Connection, Failure> {
        for address in addresses {
            let to = SocketAddr::new(*address, place.port);
            let Ok(Ok(stream)) = tokio::time::timeout(CONNECT, TcpStream::connect(to)).await else {
                continue;
            };
            // Without it some requests wait for an acknowledgement; with it none do.
            let _ = stream.set_nodelay(true);
            if !place.secure {
                return self.handshake(*address, stream).await;
            }
            let config = self.tls.get_or_init(tls).clone().ok_or(Failure::Tls)?;
            let name = place.server_name().ok_or(Failure::Url)?;
            let stream = TlsConnector::from(config).connect(name, stream).await;
            return self.handshake(*address, stream.map_err(|_| Failure::Tls)?).await;
        }
        Err(Failure::NotConnected)
    }

    async fn handshake(
        &self,
        address: IpAddr,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Connection, Failure> {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES)
            .max_headers(HEADERS)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| Failure::NoAnswer)?;
        // How it ends is seen by whoever waits for an answer.
        let driver = Box::pin(connection.map(drop).fuse());
        Ok(Connection { sender, driver, address, idle_since: self.clock.instant() })
    }

    /// An idle connection to one of these addresses.
    fn take(&self, place: &Place, addresses: &[IpAddr]) -> Option<Connection> {
        let mut idle = self.idle.lock();
        let of_place = idle.get_mut(place)?;
        while let Some(mut connection) = of_place.pop_back() {
            let is_fresh = self.clock.elapsed(connection.idle_since) < IDLE_FOR;
            let is_checked = addresses.contains(&connection.address);
            // Whether the other side has closed it meanwhile.
            let is_open =
                (&mut connection.driver).now_or_never().is_none() && !connection.sender.is_closed();
            if is_fresh && is_checked && is_open {
                return Some(connection);
            }
        }
        idle.remove(place);
        None
    }

    fn put(&self, place: &Place, mut connection: Connection) {
        connection.idle_since = self.clock.instant();
        let mut idle = self.idle.lock();
        idle.retain(|_, connections| {
            connections.retain(|one| self.clock.elapsed(one.idle_since) < IDLE_FOR);
            !connections.is_empty()
        });
        let all: usize = idle.values().map(VecDeque::len).sum();
        let of_place = idle.entry(place.clone()).or_default();
        if of_place.len() >= IDLE_OF_ONE || all >= IDLE {
            of_place.pop_front();
        }
        if all < IDLE || !of_place.is_empty() {
            of_place.push_back(connection);
        }
    }
}
