//! The way to a server, and what its refusals say to a person.

use std::error::Error as _;
use std::time::Duration;

use clap::Args;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use super::exit::{Failure, Result};
use super::text;
use crate::proto::admin_service_client::AdminServiceClient;
use crate::proto::analytics_service_client::AnalyticsServiceClient;
use crate::proto::artifact_service_client::ArtifactServiceClient;
use crate::proto::execution_service_client::ExecutionServiceClient;
use crate::proto::ingest_service_client::IngestServiceClient;
use crate::proto::search_service_client::SearchServiceClient;
use crate::proto::step_service_client::StepServiceClient;

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
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// Address of the server.
    #[arg(
        long,
        value_name = "ADDR",
        env = "STEPWELL_SERVER",
        default_value = "http://127.0.0.1:50051",
        value_parser = parse_address,
        global = true
    )]
    pub server: String,
}

/// An address with its scheme; `host:port` alone means plain HTTP/2.
fn parse_address(given: &str) -> std::result::Result<String, String> {
    let address = if given.contains("://") { given.to_owned() } else { format!("http://{given}") };
    if address.starts_with("https://") {
        return Err("this build speaks plain gRPC only: use http://".to_owned());
    }
    let uri: http::Uri = address.parse().map_err(|error| format!("not an address: {error}"))?;
    if uri.scheme_str() != Some("http") {
        return Err("must be http://HOST:PORT or HOST:PORT".to_owned());
    }
    if uri.port_u16().is_none() {
        return Err("must include a port, such as http://127.0.0.1:50051".to_owned());
    }
    Ok(address)
}

/// A lazily opened connection; cheap to clone.
#[derive(Debug, Clone)]
pub struct Connection {
    channel: Channel,
}

impl ServerArgs {
    /// Prepares a connection. It opens with the first call, and again whenever it was lost.
    pub fn connect(&self) -> Result<Connection> {
        let endpoint = Endpoint::from_shared(self.server.clone())
            .map_err(|error| Failure::CouldNotStart(format!("--server {}: {error}", self.server)))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_EVERY)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(1024 * 1024)
            .initial_connection_window_size(4 * 1024 * 1024);
        Ok(Connection { channel: endpoint.connect_lazy() })
    }
}

impl Connection {
    pub fn executions(&self) -> ExecutionServiceClient<Channel> {
        ExecutionServiceClient::new(self.channel.clone()).max_decoding_message_size(REPLY_BYTES)
    }

    pub fn steps(&self) -> StepServiceClient<Channel> {
        StepServiceClient::new(self.channel.clone()).max_decoding_message_size(REPLY_BYTES)
    }

    pub fn ingest(&self) -> IngestServiceClient<Channel> {
        IngestServiceClient::new(self.channel.clone()).max_decoding_message_size(REPLY_BYTES)
    }

    pub fn artifacts(&self) -> ArtifactServiceClient<Channel> {
        ArtifactServiceClient::new(self.channel.clone())
    }

    pub fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    pub fn analytics(&self) -> AnalyticsServiceClient<Channel> {
        AnalyticsServiceClient::new(self.channel.clone())
    }

    pub fn searches(&self) -> SearchServiceClient<Channel> {
        SearchServiceClient::new(self.channel.clone())
    }

    pub fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel.clone())
    }
}

/// A call with its deadline.
pub fn call<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// Whether the same call may work a moment later.
pub fn is_passing(status: &Status) -> bool {
    // Made on this side of the wire: the connection broke, the server said nothing.
    let broke = status.source().is_some()
        && !matches!(status.code(), Code::OutOfRange | Code::InvalidArgument | Code::Unimplemented);
    broke || matches!(status.code(), Code::Unavailable | Code::ResourceExhausted | Code::Aborted)
}

/// A refusal as one line for people: the message, what is wrong with which field, and the code's name.
pub fn describe(status: &Status) -> String {
    let details = status.get_error_details();
    let fields: Vec<(&str, &str)> = details
        .bad_request()
        .map(|bad| bad.field_violations.iter())
        .into_iter()
        .flatten()
        .map(|violation| (violation.field.as_str(), violation.description.as_str()))
        .collect();
    let mut message = text::one_line(status.message());
    // Made on this side of the wire: what broke is said by the innermost cause.
    let mut cause = status.source();
    while let Some(error) = cause {
        cause = error.source();
        let said = text::one_line(&error.to_string());
        if cause.is_none() && !said.is_empty() && !message.contains(&said) {
            message = format!("{message}: {said}");
        }
    }
    sentence(&message, &fields, status.code())
}

/// Message, fields that the message does not name yet, and code.
pub fn sentence(message: &str, fields: &[(&str, &str)], code: Code) -> String {
    let mut said = text::one_line(message);
    for (field, description) in fields {
        if !message.contains(description) {
            let separator = if said.is_empty() { "" } else { "; " };
            said = format!("{said}{separator}{field} {}", text::one_line(description));
        }
    }
    if said.is_empty() {
        said = code.description().to_owned();
    }
    format!("{said} ({})", code_name(code))
}

/// The canonical name of a code.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_a_port_and_may_lack_the_scheme() {
        assert_eq!(parse_address("localhost:50051").as_deref(), Ok("http://localhost:50051"));
        assert_eq!(parse_address("http://[::1]:5").as_deref(), Ok("http://[::1]:5"));
        for wrong in ["localhost", "https://a:1", "ftp://a:1", "http://", "", "http://a b:1"] {
            assert!(parse_address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_refusal_names_each_field_once() {
        let fields = [("app_name", "is required"), ("metadata", "nests 40 deep")];
        assert_eq!(
            sentence("invalid request", &fields, Code::InvalidArgument),
            "invalid request; app_name is required; metadata nests 40 deep (INVALID_ARGUMENT)"
        );
        assert_eq!(
            sentence("app_name is required", &fields[..1], Code::InvalidArgument),
            "app_name is required (INVALID_ARGUMENT)"
        );
    }
}
