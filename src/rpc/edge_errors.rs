//! Turns the gRPC library's own complaints about a request into the contract's errors.
//!
//! A message that is too large, nested too deep or broken never reaches a handler: the library answers INTERNAL
//! or OUT_OF_RANGE by itself. For the client these are bad requests like any other: INVALID_ARGUMENT with
//! field, size and limit. `tests` holds the texts against the library's real answers, so an update that changes
//! them is noticed.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::{Code, Status};
use tower_layer::Layer;
use tower_service::Service;

use super::status;
use super::status::CUT_OFF;
use crate::app::Error;
use crate::domain::limits::NESTING_DEPTH;

/// The field that means the whole incoming message.
const MESSAGE: &str = "message";

/// The contract's answer instead of the library's, where it is one of the library's own.
pub fn rewrite(code: Code, message: &str) -> Option<Status> {
    if (code, message) == CUT_OFF {
        return Some(status::of(&Error::BrokenOff));
    }
    let (field, description) = bad_message(code, message)?;
    Some(status::of(&Error::invalid(field, description)))
}

/// The field and what is wrong with it, where the library complains of a message.
pub fn bad_message(code: Code, message: &str) -> Option<(String, String)> {
    match code {
        Code::OutOfRange => too_large(message),
        Code::ResourceExhausted => too_large_unpacked(message),
        Code::Internal => unreadable(message),
        _ => None,
    }
}

fn too_large(message: &str) -> Option<(String, String)> {
    let rest = message.strip_prefix("Error, decoded message length too large: found ")?;
    let (size, rest) = rest.split_once(" bytes, the limit is: ")?;
    let limit = rest.strip_suffix(" bytes")?;
    Some(larger_than(size, limit))
}

/// What is wrong with a message of so many bytes.
pub fn larger_than(
    size: impl std::fmt::Display,
    limit: impl std::fmt::Display,
) -> (String, String) {
    (MESSAGE.to_owned(), format!("is {size} bytes, more than the limit of {limit}"))
}

fn too_large_unpacked(message: &str) -> Option<(String, String)> {
    let rest = message.strip_prefix("Error decompressing: size limit, of ")?;
    let (limit, _) = rest.split_once(" bytes, exceeded")?;
    Some((MESSAGE.to_owned(), format!("is more than the limit of {limit} bytes when decompressed")))
}

/// What is wrong with a message that cannot be read, by the library's words: the field, and how.
pub fn unreadable(message: &str) -> Option<(String, String)> {
    if let Some(reason) = message.strip_prefix("failed to decode Protobuf message: ") {
        let (field, reason) = field_and_reason(reason);
        if reason == "recursion limit reached" {
            return Some((field, format!("is nested deeper than the limit of {NESTING_DEPTH}")));
        }
        return Some((field, format!("is not valid protobuf: {reason}")));
    }
    if message == "Missing request message." {
        return Some((MESSAGE.to_owned(), "is missing".to_owned()));
    }
    let broken = ["Unexpected EOF decoding stream.", "protocol error: ", "Error decompressing: "];
    broken
        .iter()
        .any(|start| message.starts_with(start))
        .then(|| (MESSAGE.to_owned(), "is not a valid gRPC message".to_owned()))
}

/// Takes `Struct.fields: StartStepRequest.input: why` apart: the path goes from the inside to the outside, so
/// its last segment is the request's own field.
fn field_and_reason(text: &str) -> (String, &str) {
    let mut field = MESSAGE;
    let mut rest = text;
    while let Some((segment, after)) = rest.split_once(": ")
        && let Some((_, name)) = segment.split_once('.').filter(|_| !segment.contains(' '))
    {
        (field, rest) = (name, after);
    }
    (field.to_owned(), rest)
}

/// Whether headers or trailers may hold an error of the library, by a cheap look.
fn suspicious(headers: &HeaderMap) -> bool {
    headers
        .get(Status::GRPC_STATUS)
        .is_some_and(|code| matches!(code.as_bytes(), b"13" | b"11" | b"10" | b"8"))
}

fn rewrite_in(headers: &mut HeaderMap) {
    if !suspicious(headers) {
        return;
    }
    let Some(found) = Status::from_header_map(headers) else { return };
    if let Some(better) = rewrite(found.code(), found.message()) {
        replace(headers, &better);
    }
}

/// Cuts what the library says in the words of its client, and which may be as long as its client likes.
fn bound_in(headers: &mut HeaderMap) {
    if headers.get(Status::GRPC_STATUS).is_none_or(|code| code == "0") {
        return;
    }
    let size = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 32;
    if headers.iter().map(size).sum::<usize>() > status::TRAILER_BYTES
        && let Some(found) = Status::from_header_map(headers)
    {
        replace(headers, &status::bounded(&found));
    }
}

fn replace(headers: &mut HeaderMap, better: &Status) {
    headers.remove(Status::GRPC_MESSAGE);
    headers.remove(Status::GRPC_STATUS_DETAILS);
    // Fails only on metadata that is no header; there is none.
    let _ = better.add_header(headers);
}

/// Everything that is done to headers and trailers.
fn mend(headers: &mut HeaderMap) {
    rewrite_in(headers);
    bound_in(headers);
}

/// Layer that applies `rewrite` to everything that leaves.
#[derive(Debug, Clone, Copy, Default)]
pub struct EdgeErrors;

impl<S> Layer<S> for EdgeErrors {
    type Service = EdgeErrorsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        EdgeErrorsService { inner }
    }
}

/// See `EdgeErrors`.
#[derive(Debug, Clone)]
pub struct EdgeErrorsService<S> {
    inner: S,
}

impl<S, Q, B> Service<http::Request<Q>> for EdgeErrorsService<S>
where
    S: Service<http::Request<Q>, Response = http::Response<B>>,
{
    type Response = http::Response<EdgeErrorsBody<B>>;
    type Error = S::Error;
    type Future = EdgeErrorsFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Q>) -> Self::Future {
        EdgeErrorsFuture { inner: self.inner.call(request) }
    }
}

pin_project! {
    /// See `EdgeErrors`.
    pub struct EdgeErrorsFuture<F> {
        #[pin]
        inner: F,
    }
}

impl<F, B, E> Future for EdgeErrorsFuture<F>
where
    F: Future<Output = Result<http::Response<B>, E>>,
{
    type Output = Result<http::Response<EdgeErrorsBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut response = ready!(self.project().inner.poll(context))?;
        mend(response.headers_mut());
        Poll::Ready(Ok(response.map(|inner| EdgeErrorsBody { inner })))
    }
}

/// See `EdgeErrors`.
#[derive(Debug, Default)]
pub struct EdgeErrorsBody<B> {
    inner: B,
}

impl<B: Body<Data = Bytes> + Unpin> Body for EdgeErrorsBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            mend(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::{ListValue, Struct, Value, value::Kind};
    use tonic_types::StatusExt as _;

    use super::*;
    use crate::proto;

    fn nested(depth: usize) -> Value {
        let inner = if depth == 0 { Vec::new() } else { vec![nested(depth - 1)] };
        Value { kind: Some(Kind::ListValue(ListValue { values: inner })) }
    }

    fn nested_objects(depth: usize) -> Struct {
        let mut object = Struct::default();
        if depth > 0 {
            let inner = Kind::StructValue(nested_objects(depth - 1));
            object.fields.insert("k".to_owned(), Value { kind: Some(inner) });
        }
        object
    }

    fn violation(status: &Status) -> (String, String) {
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_error_details();
        assert_eq!(details.error_info().expect("ErrorInfo").reason, "INVALID_ARGUMENT");
        let violations = &details.bad_request().expect("BadRequest").field_violations;
        assert_eq!(violations.len(), 1);
        (violations[0].field.clone(), violations[0].description.clone())
    }

    fn rewritten(code: Code, message: &str) -> (String, String) {
        violation(&rewrite(code, message).unwrap_or_else(|| panic!("{message} is not understood")))
    }

    #[test]
    fn what_prost_says_about_deep_values_names_the_field() {
        let step = proto::StartStepRequest { input: Some(nested(60)), ..Default::default() };
        let error =
            proto::StartStepRequest::decode(step.encode_to_vec().as_slice()).expect_err("deep");
        let (field, description) = rewritten(Code::Internal, &error.to_string());
        assert_eq!(
            (field.as_str(), description.as_str()),
            ("input", "is nested deeper than the limit of 30")
        );

        let create = proto::CreateExecutionRequest {
            metadata: Some(nested_objects(60)),
            ..Default::default()
        };
        let error = proto::CreateExecutionRequest::decode(create.encode_to_vec().as_slice())
            .expect_err("deep");
        assert_eq!(rewritten(Code::Internal, &error.to_string()).0, "metadata");

        let error =
            proto::CreateExecutionRequest::decode(&b"\xff\xff\xff"[..]).expect_err("broken");
        let (field, description) = rewritten(Code::Internal, &error.to_string());
        assert_eq!(field, "message");
        assert!(description.starts_with("is not valid protobuf: "), "{description}");

        let error =
            proto::GetExecutionRequest::decode(&b"\x0a\x02\xff\xfe"[..]).expect_err("no UTF-8");
        assert_eq!(rewritten(Code::Internal, &error.to_string()).0, "execution_id");
    }

    #[test]
    fn everything_within_the_limit_can_be_decoded() {
        // Else clients would be refused here for what the contract allows.
        for input in [
            nested(NESTING_DEPTH),
            Value { kind: Some(Kind::StructValue(nested_objects(NESTING_DEPTH))) },
        ] {
            let step = proto::StartStepRequest { input: Some(input), ..Default::default() };
            let whole = proto::IngestRequest {
                write: Some(proto::ingest_request::Write::StartStep(step)),
                ..Default::default()
            };
            assert!(proto::IngestRequest::decode(whole.encode_to_vec().as_slice()).is_ok());
        }
    }

    #[test]
    fn sizes_are_named() {
        let text = "Error, decoded message length too large: found 17000000 bytes, the limit is: 16777216 bytes";
        assert_eq!(
            rewritten(Code::OutOfRange, text),
            ("message".to_owned(), "is 17000000 bytes, more than the limit of 16777216".to_owned())
        );
        let text = "Error decompressing: size limit, of 16777216 bytes, exceeded while decompressing message";
        assert_eq!(
            rewritten(Code::ResourceExhausted, text).1,
            "is more than the limit of 16777216 bytes when decompressed"
        );
        assert_eq!(rewritten(Code::Internal, "Missing request message.").1, "is missing");
    }

    #[test]
    fn our_own_errors_stay() {
        for (code, message) in [
            (Code::Internal, "the server failed to process the request"),
            (
                Code::OutOfRange,
                "history no longer covers the resume_token: start again without one",
            ),
            (Code::ResourceExhausted, "too many writes are waiting; nothing was applied"),
            (Code::NotFound, "failed to decode Protobuf message: x"),
        ] {
            assert!(rewrite(code, message).is_none(), "{message}");
        }
    }

    #[test]
    fn headers_are_replaced_whole() {
        let mut headers = HeaderMap::new();
        Status::with_details(
            Code::Internal,
            "Missing request message.",
            Bytes::from_static(b"old"),
        )
        .add_header(&mut headers)
        .expect("headers");
        rewrite_in(&mut headers);
        let status = Status::from_header_map(&headers).expect("a status");
        assert_eq!(violation(&status), ("message".to_owned(), "is missing".to_owned()));
        let mut fine = HeaderMap::new();
        Status::not_found("x").add_header(&mut fine).expect("headers");
        let before = fine.clone();
        rewrite_in(&mut fine);
        assert_eq!(fine, before);
    }

    /// A real server and a real client: the texts of this version of the library, and that the layers fit.
    #[tokio::test]
    async fn the_library_still_says_what_is_rewritten() {
        use tonic_health::pb::HealthCheckRequest;
        use tonic_health::pb::health_client::HealthClient;
        use tonic_health::pb::health_server::HealthServer;

        crate::telemetry::metrics::install();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let service = tonic_health::server::HealthService::from_health_reporter(
            tonic_health::server::HealthReporter::new(),
        );
        let service = HealthServer::new(service)
            .max_decoding_message_size(16)
            .accept_compressed(tonic::codec::CompressionEncoding::Gzip);
        let server = tonic::transport::Server::builder()
            .layer(crate::rpc::observe::Observe::served(
                1,
                false,
                std::sync::Arc::new(crate::clock::SystemClock),
            ))
            .layer(EdgeErrors)
            .add_service(service)
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
        let server = tokio::spawn(server);
        let channel = tonic::transport::Channel::from_shared(format!("http://{address}"))
            .expect("an address")
            .connect()
            .await
            .expect("connected");

        let request = || HealthCheckRequest { service: "x".repeat(100) };
        let mut client = HealthClient::new(channel.clone());
        let refused = client.check(request()).await.expect_err("too large");
        assert_eq!(
            violation(&refused),
            ("message".to_owned(), "is 102 bytes, more than the limit of 16".to_owned())
        );
        assert!(refused.metadata().get("x-request-id").is_some());

        let mut packing = HealthClient::new(channel.clone())
            .send_compressed(tonic::codec::CompressionEncoding::Gzip);
        let refused = packing.check(request()).await.expect_err("too large");
        assert!(violation(&refused).1.contains("more than the limit of 16"), "{refused:?}");

        let fine = client.check(HealthCheckRequest::default()).await.expect("small enough");
        assert!(fine.metadata().get("x-request-id").is_none());
        server.abort();
    }
}
