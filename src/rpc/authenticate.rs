//! The layer that lets calls in: who calls and whether they may is decided before anything else is done for a call, and a
//! stream ends once the credential it was opened with is good no more.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;
use tower_layer::Layer;
use tower_service::Service;

use super::catalog::DESCRIPTOR_SETS;
use super::connection::Peer;
use super::{audited, status};
use crate::app::Error;
use crate::audit::Audit;
use crate::auth::gate::{Decision, Source, Verdict};
use crate::auth::{Caller, CallerKind, Denied, Gate, Need, Permit};
use crate::domain::Refusal;
use crate::domain::access::AppScope;
use crate::domain::audit::Asked;
use crate::store::By;

/// The permit of a call, which the layer has put there. A call without one did not come through it, and is denied.
pub fn permit<T>(request: &tonic::Request<T>) -> Result<Permit, Status> {
    let permit = request.extensions().get::<Permit>();
    permit.cloned().ok_or_else(|| status::of_denied(Denied::Missing))
}

/// The apps that the call is about.
pub fn scope<T>(request: &tonic::Request<T>) -> Result<AppScope, Status> {
    permit(request).map(|permit| permit.scope())
}

/// The call, where it is recorded along with what it does.
pub fn asked<T>(request: &tonic::Request<T>) -> Option<Asked> {
    request.extensions().get::<Asked>().cloned()
}

/// Whoever asks for a write.
pub fn by<T>(request: &tonic::Request<T>) -> Result<By, Status> {
    Ok(By { scope: scope(request)?, asked: asked(request) })
}

/// The apps for which something within a call may be done that needs that.
pub fn scope_for(permit: &Permit, need: Need) -> Result<AppScope, Error> {
    permit.scope_for(need).ok_or(Error::Refused(Refusal::RoleForbids))
}

/// Methods of which at least one side is a stream, by their path.
static STREAMS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let mut streams = HashSet::new();
    for set in DESCRIPTOR_SETS {
        let set = FileDescriptorSet::decode(set).expect("descriptors that a build has encoded");
        for file in &set.file {
            for service in &file.service {
                let both = |method: &&prost_types::MethodDescriptorProto| {
                    method.client_streaming() || method.server_streaming()
                };
                streams.extend(service.method.iter().filter(both).map(|method| {
                    format!("/{}.{}/{}", file.package(), service.name(), method.name())
                }));
            }
        }
    }
    streams
});

/// Layer that lets calls in.
#[derive(Clone)]
pub struct Authenticate {
    gate: Arc<Gate>,
    audit: Audit,
}

impl Authenticate {
    pub fn new(gate: Arc<Gate>, audit: Audit) -> Authenticate {
        Authenticate { gate, audit }
    }
}

impl<S> Layer<S> for Authenticate {
    type Service = AuthenticateService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AuthenticateService { inner, gate: Arc::clone(&self.gate), audit: self.audit.clone() }
    }
}

/// See `Authenticate`.
#[derive(Clone)]
pub struct AuthenticateService<S> {
    inner: S,
    gate: Arc<Gate>,
    audit: Audit,
}

impl<S, Q, B> Service<http::Request<Q>> for AuthenticateService<S>
where
    S: Service<http::Request<Q>, Response = http::Response<B>> + Clone,
{
    type Response = http::Response<GuardedBody<B>>;
    type Error = S::Error;
    type Future = Admitted<S, Q>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Q>) -> Self::Future {
        let from = source(&request);
        match self.gate.admit(request.uri().path(), request.headers(), &from) {
            Decision::Made(Ok(permit)) => enter(&mut self.inner, &self.gate, request, permit),
            Decision::Made(Err(turned)) => {
                audited::turned_away(&self.audit, &request, &turned);
                Admitted::Denied { denied: turned.denied }
            }
            Decision::Later(deciding) => {
                // The one that is ready is the one that is here.
                let other = self.inner.clone();
                let inner = std::mem::replace(&mut self.inner, other);
                let (gate, audit) = (Arc::clone(&self.gate), self.audit.clone());
                let waiting = Some(Waiting { inner, gate, audit, request });
                Admitted::Later { deciding, waiting }
            }
        }
    }
}

/// Makes a call that was let in.
fn enter<S, Q>(
    inner: &mut S,
    gate: &Arc<Gate>,
    mut request: http::Request<Q>,
    permit: Option<Permit>,
) -> Admitted<S, Q>
where
    S: Service<http::Request<Q>>,
{
    let ended = permit
        .as_ref()
        .filter(|permit| permit.caller.kind != CallerKind::Anonymous)
        .filter(|_| STREAMS.contains(request.uri().path()))
        .map(|permit| Ended::with(&permit.caller, gate));
    if let Some(permit) = permit {
        request.extensions_mut().insert(permit);
    }
    Admitted::In { inner: inner.call(request), ended }
}

/// Where a call comes from.
fn source<Q>(request: &http::Request<Q>) -> Source {
    let Some(peer) = request.extensions().get::<Peer>() else { return Source::default() };
    Source { address: Some(peer.address.ip().to_canonical()), certified: peer.certified.clone() }
}

/// Ends a stream with the credential that it was opened with.
pub struct Ended {
    /// Whoever knows when a credential ends knows it of those that somebody has.
    caller: Arc<Caller>,
    gate: Arc<Gate>,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Ended {
    fn with(caller: &Arc<Caller>, gate: &Arc<Gate>) -> Ended {
        let over = Box::pin(caller.ended.clone().cancelled_owned());
        Ended { caller: Arc::clone(caller), gate: Arc::clone(gate), over }
    }
}

/// Why the credential is good no more, once it is; else the task is woken then.
fn why_over(ended: &mut Option<Ended>, context: &mut Context<'_>) -> Option<Denied> {
    let ended = ended.as_mut()?;
    let is_over = ended.over.as_mut().poll(context).is_ready();
    is_over.then(|| ended.gate.why_ended(&ended.caller))
}

/// A call of which it is not decided yet whether it is made.
pub struct Waiting<S, Q> {
    inner: S,
    gate: Arc<Gate>,
    audit: Audit,
    request: http::Request<Q>,
}

pin_project! {
    /// See `Authenticate`.
    #[project = AdmittedProjection]
    pub enum Admitted<S, Q>
    where
        S: Service<http::Request<Q>>,
    {
        In { #[pin] inner: S::Future, ended: Option<Ended> },
        Denied { denied: Denied },
        Later { deciding: BoxFuture<'static, Verdict>, waiting: Option<Waiting<S, Q>> },
    }
}

impl<S, Q, B> Future for Admitted<S, Q>
where
    S: Service<http::Request<Q>, Response = http::Response<B>>,
{
    type Output = Result<http::Response<GuardedBody<B>>, S::Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let denied = loop {
            let next = match self.as_mut().project() {
                AdmittedProjection::Denied { denied } => break *denied,
                AdmittedProjection::In { inner, ended } => match inner.poll(context) {
                    Poll::Ready(answer) => {
                        let ended = ended.take();
                        let guarded = |inner| GuardedBody { inner: Some(inner), ended };
                        return Poll::Ready(answer.map(|answer| answer.map(guarded)));
                    }
                    Poll::Pending => match why_over(ended, context) {
                        Some(denied) => break denied,
                        None => return Poll::Pending,
                    },
                },
                AdmittedProjection::Later { deciding, waiting } => {
                    match (ready!(deciding.as_mut().poll(context)), waiting.take()) {
                        (Ok(permit), Some(Waiting { mut inner, gate, request, .. })) => {
                            enter(&mut inner, &gate, request, permit)
                        }
                        (Err(turned), waiting) => {
                            if let Some(Waiting { audit, request, .. }) = waiting {
                                audited::turned_away(&audit, &request, &turned);
                            }
                            Admitted::Denied { denied: turned.denied }
                        }
                        (Ok(_), None) => Admitted::Denied { denied: Denied::Invalid },
                    }
                }
            };
            self.set(next);
        };
        let answer = status::of_denied(denied).into_http::<()>();
        Poll::Ready(Ok(answer.map(|()| GuardedBody { inner: None, ended: None })))
    }
}

/// A body that ends once the credential is good no more.
pub struct GuardedBody<B> {
    /// `None`: there is nothing more to come.
    inner: Option<B>,
    ended: Option<Ended>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for GuardedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        if let Some(denied) = why_over(&mut this.ended, context) {
            (this.inner, this.ended) = (None, None);
            let mut trailers = http::HeaderMap::new();
            // Fails only on metadata that is no header; there is none.
            let _ = status::of_denied(denied).add_header(&mut trailers);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        match &mut this.inner {
            Some(inner) => Pin::new(inner).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::auth::need;
    use crate::rpc::catalog;

    #[test]
    fn every_method_that_is_served_has_a_row_and_every_row_a_method() {
        let served: BTreeSet<String> = catalog::all()
            .flat_map(|service| {
                let name = service.name;
                service.methods.into_iter().map(move |method| format!("{name}/{method}"))
            })
            .collect();
        let rows: BTreeSet<String> = need::methods().map(|(method, _)| method).collect();
        assert_eq!(rows, served, "auth/need.rs and the descriptors");
    }

    #[test]
    fn streams_are_known_by_the_descriptors() {
        for path in [
            "/stepwell.v1.ExecutionService/WatchExecutions",
            "/stepwell.v1.IngestService/Ingest",
            "/stepwell.v1.ArtifactService/UploadArtifact",
        ] {
            assert!(STREAMS.contains(path), "{path}");
        }
        assert!(!STREAMS.contains("/stepwell.v1.ExecutionService/GetExecution"));
    }
}
