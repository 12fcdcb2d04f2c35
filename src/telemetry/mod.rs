//! What the server tells about itself: logs, traces, and every metric in one list.
//!
//! Field names are dotted and a field with a unit ends with it (`duration_ms`, `size_bytes`). Never logged,
//! at any level and by nobody: input, output, metadata and errors of runs; connection strings and their parts;
//! tokens; whole requests or documents. Ids of executions and steps may be logged.

pub mod logs;
pub mod metrics;
mod process;
pub mod traces;

use tracing_subscriber::Layer as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config;

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("log.level: {0}")]
    Filter(String),
    #[error("telemetry.otlp_endpoint: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error("logs are set up already")]
    Twice,
}

/// Logs and traces of this process, until `flush`.
#[must_use = "traces that wait are lost without flush"]
pub struct Telemetry {
    traces: Option<traces::Export>,
}

/// Sets up logs and the export of traces for the whole process, and begins to count. Needs the runtime when
/// traces are exported.
pub fn init(log: &config::Log, telemetry: &config::Telemetry) -> Result<Telemetry, Error> {
    let filter = config::log_filter::filter(&log.level).map_err(Error::Filter)?;
    let traces = traces::Export::start(telemetry)?;
    tracing_subscriber::registry()
        .with(logs::layer(log.format, std::io::stderr).with_filter(filter))
        .with(traces.as_ref().map(traces::Export::layer))
        .try_init()
        .map_err(|_| Error::Twice)?;
    metrics::install();
    Ok(Telemetry { traces })
}

impl Telemetry {
    /// Sends the traces that wait. Takes a few seconds at most, whether the collector answers or not.
    pub async fn flush(self) {
        if let Some(traces) = self.traces {
            traces.finish().await;
        }
    }
}
