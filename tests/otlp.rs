//! Spans reach a collector: a real OTLP receiver, the real exporter, the real layer of the gRPC edge.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use stepwell::config;
use stepwell::rpc::observe::Observe;
use stepwell::telemetry::traces::Export;
use tokio::sync::mpsc;
use tower::{ServiceExt as _, service_fn};
use tower_layer::Layer as _;
use tracing_subscriber::layer::SubscriberExt as _;

struct Receiver(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.send(request.into_inner()).expect("the test listens");
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn receiver() -> (SocketAddr, mpsc::UnboundedReceiver<ExportTraceServiceRequest>) {
    let (sender, received) = mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(Receiver(sender)))
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)),
    );
    (address, received)
}

fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?;
    match value.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

async fn call(observe: &Observe, traceparent: Option<&str>, code: &'static str) {
    let mut request = http::Request::new(());
    *request.uri_mut() = "/stepwell.v1.StepService/StartStep".parse().expect("a path");
    if let Some(traceparent) = traceparent {
        request.headers_mut().insert("traceparent", traceparent.parse().expect("a value"));
    }
    let service = observe.layer(service_fn(move |_| async move {
        let mut response = http::Response::new(Empty::<Bytes>::new());
        response.headers_mut().insert("grpc-status", code.parse().expect("a code"));
        Ok::<_, Infallible>(response)
    }));
    let response = service.oneshot(request).await.expect("an answer");
    response.into_body().collect().await.expect("a body");
}

#[tokio::test]
async fn spans_of_calls_reach_the_collector() {
    let (address, mut received) = receiver().await;
    let settings = config::Telemetry {
        otlp_endpoint: Some(stepwell::config::Secret::new(format!("http://{address}"))),
        service_name: "well-7".to_owned(),
        sample_ratio: 1.0,
    };
    let export = Export::start(&settings).expect("started").expect("on");
    let subscriber = tracing_subscriber::registry().with(export.layer());
    let as_default = tracing::subscriber::set_default(subscriber);

    let observe = Observe::served(1, false, std::sync::Arc::new(stepwell::clock::SystemClock));
    call(&observe, Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), "0").await;
    // The caller decided against this trace.
    call(&observe, Some("00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"), "0").await;
    call(&observe, None, "13").await;
    drop(as_default);
    export.finish().await;

    let mut spans = Vec::new();
    while let Ok(request) = received.try_recv() {
        for part in request.resource_spans {
            let resource = part.resource.expect("a resource").attributes;
            assert_eq!(attribute(&resource, "service.name").as_deref(), Some("well-7"));
            spans.extend(part.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    assert_eq!(spans.len(), 2, "{spans:?}");
    let continued = spans.iter().find(|span| !span.parent_span_id.is_empty()).expect("a child");
    assert_eq!(continued.trace_id[..2], [0x0a, 0xf7]);
    assert_eq!(continued.parent_span_id[..2], [0xb7, 0xad]);
    assert_eq!(continued.name, "stepwell.v1.StepService/StartStep");
    assert_eq!(continued.kind, SpanKind::Server as i32);
    for (key, value) in [
        ("rpc.system", "grpc"),
        ("rpc.service", "stepwell.v1.StepService"),
        ("rpc.method", "StartStep"),
        ("rpc.grpc.status_code", "0"),
    ] {
        assert_eq!(attribute(&continued.attributes, key).as_deref(), Some(value), "{key}");
    }
    let failed = spans.iter().find(|span| span.parent_span_id.is_empty()).expect("a root");
    assert_eq!(attribute(&failed.attributes, "rpc.grpc.status_code").as_deref(), Some("13"));
    assert_eq!(failed.status.as_ref().map(|status| status.code), Some(2), "{failed:?}");
}
