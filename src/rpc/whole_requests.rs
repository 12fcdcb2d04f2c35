//! Requests that were cut off before their end. The library takes a stream that its client cancelled, or reset without
//! an error, for one that has ended: half a file would be stored as a whole one. Here a request has ended only if
//! the client closed its side (END_STREAM); everything else is an error that every handler meets when it reads on.
//! `edge_errors` turns it into BROKEN_OFF.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::status;

/// Layer that tells requests that were cut off from those that have ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct WholeRequests;

impl<S> Layer<S> for WholeRequests {
    type Service = WholeRequestsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WholeRequestsService { inner }
    }
}

/// See `WholeRequests`.
#[derive(Debug, Clone)]
pub struct WholeRequestsService<S> {
    inner: S,
}

impl<S> Service<http::Request<Body>> for WholeRequestsService<S>
where
    S: Service<http::Request<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.inner.call(request.map(|inner| Body::new(WholeBody { inner })))
    }
}

/// A body that ends with an error unless its sender ended it.
struct WholeBody {
    inner: Body,
}

impl http_body::Body for WholeBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
            Some(Ok(frame)) => Poll::Ready(Some(Ok(frame))),
            None if self.inner.is_end_stream() => Poll::Ready(None),
            None => Poll::Ready(Some(Err(status::cut_off()))),
            Some(Err(error)) => {
                tracing::debug!(%error, "a request was cut off");
                Poll::Ready(Some(Err(status::cut_off())))
            }
        }
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
    use std::collections::VecDeque;

    use tokio_stream::StreamExt as _;

    use super::*;
    use crate::proto;
    use crate::rpc::edge_errors;

    /// A body as the transport hands it over: frames, then its end, or that it was reset.
    struct Sent {
        frames: VecDeque<Result<Bytes, Status>>,
        closed: bool,
    }

    impl http_body::Body for Sent {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.frames.pop_front().map(|frame| frame.map(Frame::data)))
        }

        fn is_end_stream(&self) -> bool {
            self.frames.is_empty() && self.closed
        }
    }

    /// The messages of a stream, and how it ended.
    async fn read(frames: Vec<Result<Bytes, Status>>, closed: bool) -> (usize, Option<Status>) {
        let sent = Sent { frames: frames.into(), closed };
        let body = WholeBody { inner: Body::new(sent) };
        let codec = tonic_prost::ProstDecoder::<proto::StreamMetricsRequest>::default();
        let mut stream = tonic::Streaming::new_request(codec, body, None, None);
        let mut messages = 0;
        loop {
            match stream.next().await {
                Some(Ok(_)) => messages += 1,
                Some(Err(status)) => return (messages, Some(status)),
                None => return (messages, None),
            }
        }
    }

    #[tokio::test]
    async fn only_its_client_ends_a_stream() {
        // A gRPC message without a field.
        let message = || Ok(Bytes::from_static(&[0; 5]));
        let reset = || Err(Status::cancelled("h2 protocol error"));
        let (messages, end) = read(vec![message(), message()], true).await;
        assert!(messages == 2 && end.is_none());
        for (frames, closed) in [
            // RST_STREAM(CANCEL), which the library takes for the end; also when the end was announced before.
            (vec![message(), message(), reset()], false),
            (vec![message(), message(), reset()], true),
            // RST_STREAM(NO_ERROR), which the transport takes for it.
            (vec![message(), message()], false),
            (vec![message(), message(), Ok(Bytes::from_static(&[0; 3]))], false),
            (vec![message(), message(), Err(Status::unavailable("broken pipe"))], false),
        ] {
            let (messages, end) = read(frames, closed).await;
            let end = end.expect("it was cut off");
            let told = edge_errors::rewrite(end.code(), end.message()).expect("it is understood");
            assert_eq!((messages, told.code()), (2, tonic::Code::Cancelled));
        }
    }
}
