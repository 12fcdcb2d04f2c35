//! Export of spans with OpenTelemetry (OTLP over gRPC), off unless an endpoint is configured.
//!
//! Spans wait in a bounded queue that a thread of its own empties; when the collector is away or slow they are
//! dropped, and no call ever waits for it.

use std::sync::LazyLock;
use std::time::Duration;

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::{Level, Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::registry::LookupSpan;

use crate::config;

/// How long the collector may take for one batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the end of the process may wait for the last batch.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// A running export.
pub struct Export {
    provider: SdkTracerProvider,
}

impl Export {
    /// Begins to export, if an endpoint is configured. The connection is made when there is something to send.
    pub fn start(settings: &config::Telemetry) -> Result<Option<Export>, ExporterBuildError> {
        let Some(endpoint) = &settings.otlp_endpoint else { return Ok(None) };
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint.expose())
            .with_timeout(EXPORT_TIMEOUT)
            .build()?;
        let resource = Resource::builder()
            .with_service_name(settings.service_name.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let sampler = Sampler::TraceIdRatioBased(settings.sample_ratio);
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource)
            .with_sampler(Sampler::ParentBased(Box::new(sampler)))
            .build();
        Ok(Some(Export { provider }))
    }

    /// The layer that makes our spans into exported ones.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("stepwell"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(exported).with_max_level_hint(LevelFilter::DEBUG))
    }

    /// Sends what waits and ends, within seconds whether the collector answers or not.
    pub async fn finish(self) {
        // Waits on another thread, and so must not on one of the runtime.
        let waited =
            tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(FLUSH_TIMEOUT))
                .await;
        if let Ok(Err(error)) = waited {
            tracing::warn!(error.source = %error, "the last traces could not be exported");
        }
    }
}

/// Our spans, and our warnings inside them; never the libraries', for the exporter itself would then make spans
/// by exporting spans.
fn exported(metadata: &Metadata<'_>) -> bool {
    let ours = metadata.target().split("::").next() == Some("stepwell");
    let wanted = if metadata.is_span() { Level::DEBUG } else { Level::WARN };
    ours && *metadata.level() <= wanted
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

static PROPAGATOR: LazyLock<TraceContextPropagator> = LazyLock::new(TraceContextPropagator::new);

/// The caller's place in a trace by its W3C `traceparent`, if it has sent a good one.
fn caller(headers: &HeaderMap) -> Option<Context> {
    headers.get("traceparent")?;
    let context = PROPAGATOR.extract_with_context(&Context::new(), &Headers(headers));
    context.has_active_span().then_some(context)
}

/// Makes a span part of the caller's trace.
pub fn continue_trace(span: &Span, headers: &HeaderMap) {
    if let Some(context) = caller(headers) {
        // Refused when nothing is exported; then there is nothing to be part of.
        let _ = span.set_parent(context);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(traceparent: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", traceparent.parse().expect("a value"));
        headers
    }

    #[test]
    fn a_good_traceparent_is_honoured_and_a_bad_one_ignored() {
        let context = caller(&headers("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
            .expect("a parent");
        let span = context.span().span_context().clone();
        assert_eq!(span.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(span.span_id().to_string(), "b7ad6b7169203331");
        assert!(span.is_remote() && span.is_sampled());
        for bad in ["", "x", "00-0-0-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01"]
        {
            assert!(caller(&headers(bad)).is_none(), "{bad}");
        }
        assert!(caller(&HeaderMap::new()).is_none());
    }

    #[test]
    fn off_without_an_endpoint() {
        assert!(Export::start(&config::Telemetry::default()).expect("nothing to fail").is_none());
    }

    #[expect(clippy::disallowed_methods, reason = "tests measure real time")]
    #[tokio::test(flavor = "multi_thread")]
    async fn a_collector_that_is_away_stops_nobody() {
        let settings = config::Telemetry {
            // A port that nobody listens on: it is given back before it is used.
            otlp_endpoint: Some({
                let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
                config::Secret::new(format!("http://{}", port.expect("a port")))
            }),
            ..config::Telemetry::default()
        };
        let export = Export::start(&settings).expect("started").expect("on");
        let subscriber = {
            use tracing_subscriber::layer::SubscriberExt as _;
            tracing_subscriber::registry().with(export.layer())
        };
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..10_000 {
                tracing::debug_span!("rpc", otel.kind = "server").in_scope(|| ());
            }
        });
        let began = std::time::Instant::now();
        export.finish().await;
        assert!(began.elapsed() < FLUSH_TIMEOUT + Duration::from_secs(2), "{:?}", began.elapsed());
    }
}
