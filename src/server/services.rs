//! The gRPC port: every service over the parts, and the layers in front of them.

use std::sync::Arc;

use futures::TryStreamExt as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic_health::pb::health_server::{Health, HealthServer};

use super::parts::Parts;
use crate::app::ingest::Ingest;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::proto;
use crate::proto::admin_service_server::AdminServiceServer;
use crate::proto::analytics_service_server::AnalyticsServiceServer;
use crate::proto::artifact_service_server::ArtifactServiceServer;
use crate::proto::configuration_service_server::ConfigurationServiceServer;
use crate::proto::execution_service_server::ExecutionServiceServer;
use crate::proto::metric_service_server::MetricServiceServer;
use crate::proto::search_service_server::SearchServiceServer;
use crate::proto::step_service_server::StepServiceServer;
use crate::rpc::{self, catalog};
use crate::shutdown::Shutdown;

/// Calls given up by their client before they were looked at, beyond which the connection is closed as an attack
/// (CVE-2023-44487). The library's 20 also meets a client whose calls all ran into their deadline while the
/// server stood still, and would take its watches along.
const PENDING_RESETS: usize = 1024;

/// Serves until `stop`, then until the calls have drained.
pub(super) fn serve(
    listener: TcpListener,
    settings: &config::Grpc,
    routes: Routes,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) -> impl Future<Output = Result<(), tonic::transport::Error>> + Send + 'static {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let incoming = incoming.map_ok(rpc::linger::Lingering::new);
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(settings.ping_interval))
        .http2_keepalive_timeout(Some(settings.ping_timeout))
        .max_concurrent_streams(Some(settings.streams_per_connection))
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .initial_stream_window_size(Some(rpc::eager::STREAM_WINDOW))
        .initial_connection_window_size(Some(rpc::eager::CONNECTION_WINDOW))
        .layer(rpc::observe::Observe::served(std::process::id(), clock))
        .layer(rpc::edge_errors::EdgeErrors)
        .layer(rpc::whole_requests::WholeRequests)
        .layer(rpc::eager::Eager::described(proto::DESCRIPTORS))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
}

/// Every service: the API, health and reflection.
pub(super) fn routes(
    parts: Parts,
    config: &Config,
    shutdown: &Shutdown,
    health: HealthServer<impl Health>,
) -> anyhow::Result<Routes> {
    let (tasks, stop) = (&shutdown.tasks, &shutdown.soft);
    let request_bytes = config.limits.request_bytes;
    rpc::codec::limit_decoded_bytes(config.limits.decoded_bytes);
    let app = || parts.app.clone();
    let executions = ExecutionServiceServer::new(rpc::executions::Executions {
        app: app(),
        lease_made: parts.lease_made.clone(),
    });
    let steps = StepServiceServer::new(rpc::steps::Steps {
        app: app(),
        configurations: parts.configurations.clone(),
    });
    let metrics = MetricServiceServer::new(rpc::metrics::MetricRpc {
        app: app(),
        metrics: parts.metrics.clone(),
        stop: stop.clone(),
    });
    let ingest = rpc::ingest::IngestRoutes::new(Arc::new(Ingest {
        app: app(),
        configurations: parts.configurations.clone(),
        metrics: parts.metrics,
        artifacts: parts.artifacts.clone(),
        lease_made: parts.lease_made,
        tasks: tasks.clone(),
        stop: stop.clone(),
        in_flight: config.writes.ingest_in_flight.max(1),
    }));
    let configurations = ConfigurationServiceServer::new(rpc::configurations::Service {
        configurations: parts.configurations,
    });
    let search =
        SearchServiceServer::new(rpc::search::SearchRpc { app: app(), search: parts.search });
    let artifacts = ArtifactServiceServer::new(rpc::artifacts::ArtifactCalls {
        artifacts: parts.artifacts,
        tasks: tasks.clone(),
    });
    let analytics =
        AnalyticsServiceServer::new(rpc::analytics::Reports { analytics: parts.analytics });
    let admin = AdminServiceServer::new(rpc::admin::Admin {
        app: app(),
        database: parts.database,
        retention: parts.retention,
        rollups: parts.rollups,
        searchable: config.search.enabled,
        clock: parts.clock,
        tasks: tasks.clone(),
        stop: stop.clone(),
    });
    let executions = executions.max_decoding_message_size(request_bytes);
    let watches = rpc::watch::WatchRoutes::new(executions, parts.app, parts.hub, parts.arrivals);
    Ok(with_reflection(Routes::new(health))?
        .add_service(watches)
        .add_service(steps.max_decoding_message_size(request_bytes))
        .add_service(metrics.max_decoding_message_size(request_bytes))
        .add_service(ingest)
        .add_service(configurations.max_decoding_message_size(request_bytes))
        .add_service(search.max_decoding_message_size(request_bytes))
        .add_service(artifacts.max_decoding_message_size(request_bytes))
        .add_service(analytics.max_decoding_message_size(request_bytes))
        .add_service(admin)
        .prepare())
}

/// Both versions of reflection show all that is served.
fn with_reflection(routes: Routes) -> anyhow::Result<Routes> {
    let builder = || {
        let builder = tonic_reflection::server::Builder::configure();
        catalog::DESCRIPTOR_SETS
            .into_iter()
            .fold(builder, |builder, set| builder.register_encoded_file_descriptor_set(set))
    };
    Ok(routes.add_service(builder().build_v1()?).add_service(builder().build_v1alpha()?))
}
