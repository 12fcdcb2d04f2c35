//! The gRPC port: every service over the parts, and the layers in front of them.

use std::sync::Arc;

use tokio::net::TcpListener;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic_health::pb::health_server::{Health, HealthServer};
use tower_layer::Layer as _;

use super::accept::Way;
use super::doors::{Doors, Entrance};
use super::parts::Parts;
use super::{accept, descriptors};
use crate::app::ingest::Ingest;
use crate::audit::Audit;
use crate::clock::Clock;
use crate::config::Config;
use crate::proto;
use crate::proto::admin_service_server::AdminServiceServer;
use crate::proto::analytics_service_server::AnalyticsServiceServer;
use crate::proto::artifact_service_server::ArtifactServiceServer;
use crate::proto::audit_service_server::AuditServiceServer;
use crate::proto::auth_service_server::AuthServiceServer;
use crate::proto::configuration_service_server::ConfigurationServiceServer;
use crate::proto::execution_service_server::ExecutionServiceServer;
use crate::proto::export_service_server::ExportServiceServer;
use crate::proto::metric_service_server::MetricServiceServer;
use crate::proto::mirror_service_server::MirrorServiceServer;
use crate::proto::notification_service_server::NotificationServiceServer;
use crate::proto::search_service_server::SearchServiceServer;
use crate::proto::step_service_server::StepServiceServer;
use crate::proto::verify_service_server::VerifyServiceServer;
use crate::rpc::audited::Audited;
use crate::rpc::authenticate::Authenticate;
use crate::rpc::budget::Budget;
use crate::rpc::calls::{CallLimits, Calls};
use crate::rpc::eager::Eager;
use crate::rpc::edge_errors::EdgeErrors;
use crate::rpc::observe::Observe;
use crate::rpc::whole_requests::WholeRequests;
use crate::rpc::{self, catalog, connection};
use crate::shutdown::Shutdown;

/// Serves until `stop`, then until the calls have drained.
pub(super) fn serve(
    listener: TcpListener,
    config: &Config,
    routes: Routes,
    (entrance, audit): (Entrance, Audit),
    clock: Arc<dyn Clock>,
    shutdown: &Shutdown,
) -> impl Future<Output = ()> + Send + use<> {
    let (tasks, stop) = (shutdown.tasks.clone(), shutdown.soft.clone());
    let limits = &config.limits;
    let eager = Eager::described(proto::DESCRIPTORS, limits.request_bytes, limits.upload_idle);
    let calls = CallLimits { request_bytes: limits.request_bytes, call: limits.call };
    let recorded = audit.is_on();
    let service = Audited::new(audit.clone(), tasks.clone()).layer(routes);
    let service = Calls::new(calls, tasks).layer(eager.layer(service));
    let service = Authenticate::new(entrance.gate, audit).layer(WholeRequests.layer(service));
    let service = EdgeErrors.layer(service);
    let service = Observe::served(std::process::id(), recorded, clock).layer(service);
    let settings = connection::Settings {
        streams: config.grpc.streams_per_connection,
        ping_interval: config.grpc.ping_interval,
        ping_timeout: config.grpc.ping_timeout,
        handshake: config.grpc.handshake,
        idle: config.grpc.idle,
        reply_idle: config.limits.reply_idle,
        endless: &rpc::watch::PATHS,
    };
    let limit = descriptors::connections(config.limits.connections, descriptors::raised());
    let budget = Budget::new(limits.process_bytes, limits.calls);
    let way = Way { settings, tls: entrance.tls, certificates: entrance.certificates };
    accept::serve(listener, service, way, budget, limit, stop)
}

/// Every service: the API, health and reflection.
pub(super) fn routes(
    parts: Parts,
    doors: Doors,
    audit: Audit,
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
    let clock = Arc::clone(&parts.clock);
    let ingest = Arc::new(Ingest {
        app: app(),
        configurations: parts.configurations.clone(),
        metrics: parts.metrics,
        artifacts: parts.artifacts.clone(),
        audit: audit.clone(),
        codes: rpc::audited::words_of,
        lease_made: parts.lease_made,
        tasks: tasks.clone(),
        stop: stop.clone(),
        in_flight: config.writes.ingest_in_flight.max(1),
        parked: Arc::default(),
    });
    let ingest = rpc::ingest::IngestRoutes::new(ingest, clock);
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
    let exports = ExportServiceServer::new(rpc::export::ExportRpc {
        exports: parts.exports,
        tasks: tasks.clone(),
        stop: stop.clone(),
    });
    let verify = VerifyServiceServer::new(rpc::verify::VerifyRpc {
        digests: parts.digests,
        tasks: tasks.clone(),
        stop: stop.clone(),
    });
    let notifications = NotificationServiceServer::new(rpc::notifications::NotificationRpc {
        app: app(),
        notifications: parts.notifications,
    });
    let mirrors = MirrorServiceServer::new(rpc::mirrors::MirrorRpc { mirrors: parts.mirrors });
    let admin = AdminServiceServer::new(rpc::admin::Admin {
        app: app(),
        database: parts.database,
        retention: parts.retention,
        rollups: parts.rollups,
        searchable: config.search.enabled,
        recorded: audit.is_on(),
        clock: parts.clock,
        tasks: tasks.clone(),
        stop: stop.clone(),
    });
    let audits = AuditServiceServer::new(rpc::audit::AuditCalls {
        app: app(),
        reader: parts.audited,
        keys: doors.keys.clone(),
        tasks: tasks.clone(),
        stop: stop.clone(),
    });
    let auth = AuthServiceServer::new(rpc::auth::AuthCalls { app: app(), keys: doors.keys });
    macro_rules! bounded {
        ($service:expr) => {
            $service
                .max_decoding_message_size(request_bytes)
                .send_compressed(CompressionEncoding::Zstd)
                .send_compressed(CompressionEncoding::Gzip)
        };
    }
    let executions = bounded!(executions);
    let watches = rpc::watch::WatchRoutes::new(executions, parts.app, parts.hub, parts.arrivals);
    Ok(with_reflection(Routes::new(health))?
        .add_service(watches)
        .add_service(bounded!(steps))
        .add_service(bounded!(metrics))
        .add_service(ingest)
        .add_service(bounded!(configurations))
        .add_service(bounded!(search))
        .add_service(bounded!(artifacts))
        .add_service(bounded!(analytics))
        .add_service(bounded!(admin))
        .add_service(bounded!(exports))
        .add_service(bounded!(audits))
        .add_service(bounded!(verify))
        .add_service(bounded!(notifications))
        .add_service(bounded!(mirrors))
        .add_service(bounded!(auth))
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
