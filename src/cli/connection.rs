//! The way to a server.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use clap::Args;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tonic::body::Body;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};
use tonic_health::pb::health_client::HealthClient;
use tower_service::Service;

use super::exit::{Failure, Result};
pub use super::status::{code_name, describe, is_passing, sentence};
use crate::domain::hosts::is_loopback;
use crate::proto::admin_service_client::AdminServiceClient;
use crate::proto::analytics_service_client::AnalyticsServiceClient;
use crate::proto::artifact_service_client::ArtifactServiceClient;
use crate::proto::audit_service_client::AuditServiceClient;
use crate::proto::auth_service_client::AuthServiceClient;
use crate::proto::execution_service_client::ExecutionServiceClient;
use crate::proto::export_service_client::ExportServiceClient;
use crate::proto::ingest_service_client::IngestServiceClient;
use crate::proto::mirror_service_client::MirrorServiceClient;
use crate::proto::notification_service_client::NotificationServiceClient;
use crate::proto::search_service_client::SearchServiceClient;
use crate::proto::step_service_client::StepServiceClient;
use crate::proto::verify_service_client::VerifyServiceClient;
use crate::server::embedded::Embedded;

/// How long to wait for a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a single call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// A silent connection is asked for a sign of life this often; without an answer in as much time again it is
/// given up. Streams that wait for events notice a vanished server by it.
const PING_EVERY: Duration = Duration::from_secs(20);
/// Replies of a page stay below 4 MiB, but one record alone may be larger: 6 MiB of input and of output as
/// stored, which numbers can make several times as large on the wire.
const REPLY_BYTES: usize = 128 * 1024 * 1024;

/// Which server to talk to.
#[derive(Debug, Clone, Default, Args)]
pub struct ServerArgs {
    /// Address of the server: https://HOST:PORT, or http://HOST:PORT where it does not speak TLS.
    #[arg(
        long,
        value_name = "ADDR",
        env = "STEPWELL_SERVER",
        default_value = "http://127.0.0.1:50051",
        value_parser = parse_address,
        global = true
    )]
    pub server: String,
    /// File of the authorities in PEM that vouch for the server; without it, those of this machine.
    #[arg(long, value_name = "FILE", global = true)]
    pub tls_ca: Option<PathBuf>,
    /// File with a certificate in PEM to show to the server.
    #[arg(long, value_name = "FILE", requires = "tls_key", global = true)]
    pub tls_cert: Option<PathBuf>,
    /// File with the private key of that certificate in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert", global = true)]
    pub tls_key: Option<PathBuf>,
    /// File with the key to send to the server; without it, the key in STEPWELL_KEY is sent, if there is one.
    #[arg(long, value_name = "FILE", global = true)]
    pub key_file: Option<PathBuf>,
    /// Send the key to a server on another machine although the connection is not encrypted.
    #[arg(long, global = true)]
    pub key_in_clear: bool,
}

/// Holds the key to send.
pub const KEY_VARIABLE: &str = "STEPWELL_KEY";

/// An address with its scheme; `host:port` alone means without TLS.
pub fn parse_address(given: &str) -> std::result::Result<String, String> {
    let address = if given.contains("://") { given.to_owned() } else { format!("http://{given}") };
    let uri: http::Uri = address.parse().map_err(|error| format!("not an address: {error}"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("must be https://HOST:PORT, http://HOST:PORT or HOST:PORT".to_owned());
    }
    if uri.port_u16().is_none() {
        return Err("must include a port, such as http://127.0.0.1:50051".to_owned());
    }
    Ok(address)
}

/// A lazily opened connection; cheap to clone.
#[derive(Debug, Clone)]
pub struct Connection {
    way: Way,
    bearer: Bearer,
}

/// A connection that sends a key with every call.
pub type Keyed = InterceptedService<Way, Bearer>;

/// How calls get to their server.
#[derive(Clone)]
pub enum Way {
    Channel(Channel),
    /// It is in this process.
    Within(Arc<Embedded>),
}

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Way::Channel(_) => "Channel",
            Way::Within(_) => "Within",
        })
    }
}

impl Service<http::Request<Body>> for Way {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = BoxFuture<'static, std::result::Result<Self::Response, Self::Error>>;

    fn poll_ready(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<std::result::Result<(), Self::Error>> {
        match self {
            Way::Channel(channel) => channel.poll_ready(context),
            Way::Within(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self {
            Way::Channel(channel) => Box::pin(channel.call(request)),
            Way::Within(embedded) => Box::pin(embedded.call(request).map(Ok)),
        }
    }
}

/// Sends a key, if there is one.
#[derive(Debug, Clone, Default)]
pub struct Bearer(Option<AsciiMetadataValue>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert("authorization", key.clone());
        }
        Ok(request)
    }
}

/// Whether what is sent there stays on this machine.
fn stays_here(server: &str) -> bool {
    let uri: Option<http::Uri> = server.parse().ok();
    is_loopback(uri.as_ref().and_then(http::Uri::host).unwrap_or_default())
}

/// What is in a file that a flag names.
fn read(flag: &str, path: &Path) -> Result<String> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::CouldNotStart(format!("{flag} {}: {error}", path.display())))
}

impl ServerArgs {
    /// Prepares a connection. It opens with the first call, and again whenever it was lost.
    pub fn connect(&self) -> Result<Connection> {
        Ok(Connection { bearer: self.bearer()?, ..self.connect_without_key()? })
    }

    /// The same without the key, for a server that nobody has named who may give it away.
    pub fn connect_without_key(&self) -> Result<Connection> {
        let bad = |error| Failure::CouldNotStart(format!("--server {}: {error}", self.server));
        let mut endpoint = Endpoint::from_shared(self.server.clone())
            .map_err(bad)?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_EVERY)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(1024 * 1024)
            .initial_connection_window_size(4 * 1024 * 1024);
        if let Some(tls) = self.tls()? {
            endpoint = endpoint.tls_config(tls).map_err(|error| {
                let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
                Failure::CouldNotStart(format!("--tls-ca, --tls-cert, --tls-key: {why}"))
            })?;
        }
        Ok(Connection { way: Way::Channel(endpoint.connect_lazy()), bearer: Bearer::default() })
    }

    /// The same for another server.
    pub fn at(&self, server: &str) -> ServerArgs {
        let mut args = ServerArgs { server: server.to_owned(), ..self.clone() };
        if !server.starts_with("https:") {
            (args.tls_ca, args.tls_cert, args.tls_key) = (None, None, None);
        }
        args
    }

    /// How the server is known, and what is shown to it; `None`: without TLS.
    fn tls(&self) -> Result<Option<ClientTlsConfig>> {
        if !self.server.starts_with("https:") {
            let given =
                [&self.tls_ca, &self.tls_cert, &self.tls_key].into_iter().any(Option::is_some);
            let why = "--tls-ca, --tls-cert and --tls-key need --server https://HOST:PORT";
            return if given { Err(Failure::CouldNotStart(why.to_owned())) } else { Ok(None) };
        }
        // Whoever comes first decides for the process; nobody here wants another one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut tls = match &self.tls_ca {
            Some(path) => {
                let authorities = read("--tls-ca", path)?;
                if !authorities.contains("BEGIN CERTIFICATE") {
                    let why = format!("--tls-ca {}: has no certificate in PEM", path.display());
                    return Err(Failure::CouldNotStart(why));
                }
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authorities))
            }
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) {
            let certificate = read("--tls-cert", certificate)?;
            tls = tls.identity(Identity::from_pem(certificate, read("--tls-key", key)?));
        }
        Ok(Some(tls.timeout(CONNECT_TIMEOUT)))
    }

    /// The key to send: that of the file, else that of the environment.
    fn bearer(&self) -> Result<Bearer> {
        let key = match &self.key_file {
            Some(path) => read("--key-file", path)?,
            None => std::env::var(KEY_VARIABLE).unwrap_or_default(),
        };
        let key = key.trim();
        if key.is_empty() {
            return match &self.key_file {
                Some(path) => Err(Failure::CouldNotStart(format!(
                    "--key-file {}: has no key",
                    path.display()
                ))),
                None => Ok(Bearer::default()),
            };
        }
        if !self.server.starts_with("https:") && !self.key_in_clear && !stays_here(&self.server) {
            return Err(Failure::CouldNotStart(format!(
                "the connection to {} is not encrypted, and the key would be sent in clear: use https, or \
                 --key-in-clear where nobody else is on the way",
                self.server
            )));
        }
        let mut value: AsciiMetadataValue = format!("Bearer {key}").parse().map_err(|_| {
            Failure::CouldNotStart("the key has characters that cannot be sent".to_owned())
        })?;
        value.set_sensitive(true);
        Ok(Bearer(Some(value)))
    }
}

impl Connection {
    /// To a server in this process.
    pub fn within(embedded: Arc<Embedded>) -> Connection {
        Connection { way: Way::Within(embedded), bearer: Bearer::default() }
    }

    fn service(&self) -> Keyed {
        InterceptedService::new(self.way.clone(), self.bearer.clone())
    }

    pub fn audits(&self) -> AuditServiceClient<Keyed> {
        AuditServiceClient::new(self.service()).max_decoding_message_size(REPLY_BYTES)
    }

    pub fn auth(&self) -> AuthServiceClient<Keyed> {
        AuthServiceClient::new(self.service())
    }

    pub fn notifications(&self) -> NotificationServiceClient<Keyed> {
        NotificationServiceClient::new(self.service())
    }

    pub fn executions(&self) -> ExecutionServiceClient<Keyed> {
        ExecutionServiceClient::new(self.service()).max_decoding_message_size(REPLY_BYTES)
    }

    pub fn steps(&self) -> StepServiceClient<Keyed> {
        StepServiceClient::new(self.service()).max_decoding_message_size(REPLY_BYTES)
    }

    pub fn ingest(&self) -> IngestServiceClient<Keyed> {
        IngestServiceClient::new(self.service()).max_decoding_message_size(REPLY_BYTES)
    }

    pub fn artifacts(&self) -> ArtifactServiceClient<Keyed> {
        ArtifactServiceClient::new(self.service())
    }

    pub fn admin(&self) -> AdminServiceClient<Keyed> {
        AdminServiceClient::new(self.service())
    }

    pub fn exports(&self) -> ExportServiceClient<Keyed> {
        ExportServiceClient::new(self.service()).max_decoding_message_size(REPLY_BYTES)
    }

    pub fn mirrors(&self) -> MirrorServiceClient<Keyed> {
        MirrorServiceClient::new(self.service())
    }

    pub fn verify(&self) -> VerifyServiceClient<Keyed> {
        VerifyServiceClient::new(self.service()).max_decoding_message_size(REPLY_BYTES)
    }

    pub fn analytics(&self) -> AnalyticsServiceClient<Keyed> {
        AnalyticsServiceClient::new(self.service())
    }

    pub fn searches(&self) -> SearchServiceClient<Keyed> {
        SearchServiceClient::new(self.service())
    }

    pub fn health(&self) -> HealthClient<Keyed> {
        HealthClient::new(self.service())
    }
}

/// A call with its deadline.
pub fn call<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_a_port_and_may_lack_the_scheme() {
        assert_eq!(parse_address("localhost:50051").as_deref(), Ok("http://localhost:50051"));
        assert_eq!(parse_address("http://[::1]:5").as_deref(), Ok("http://[::1]:5"));
        assert_eq!(parse_address("https://a:1").as_deref(), Ok("https://a:1"));
        for wrong in ["localhost", "https://a", "ftp://a:1", "http://", "", "http://a b:1"] {
            assert!(parse_address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_key_goes_in_clear_to_this_machine_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "swk_x\n").unwrap();
        let sent = |server: &str, key_in_clear| {
            let key_file = Some(path.clone());
            let args = ServerArgs {
                server: server.to_owned(),
                key_file,
                key_in_clear,
                ..ServerArgs::default()
            };
            args.bearer().map(|bearer| bearer.0.is_some())
        };
        for here in ["http://127.0.0.1:5", "http://localhost:5", "http://[::1]:5"] {
            assert!(sent(here, false).unwrap(), "{here}");
        }
        assert!(sent("https://10.0.0.1:5", false).unwrap());
        for elsewhere in
            ["http://10.0.0.1:5", "http://localhost.example:5", "http://127.0.0.1.example:5"]
        {
            assert!(
                sent(elsewhere, false).is_err() && sent(elsewhere, true).unwrap(),
                "{elsewhere}"
            );
        }
    }
}
