//! ArtifactService.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use super::{artifact_requests, authenticate, convert, requests, shown, status};
use crate::app::artifacts::Artifacts;
use crate::app::{Error, PageRequest, Result};
use crate::domain::audit::Target;
use crate::domain::limits::UPLOAD_CHUNK_BYTES;
use crate::proto;
use crate::proto::download_artifact_response::Part as Sent;
use crate::proto::upload_artifact_request::Part;

/// Serves ArtifactService.
pub struct ArtifactCalls {
    pub artifacts: Arc<Artifacts>,
    pub tasks: TaskTracker,
}

/// Bytes in one message of a download. Each is copied on its way, and waits as a whole for the client.
const MESSAGE_BYTES: usize = 256 * 1024;

fn split(piece: Bytes) -> impl Iterator<Item = Bytes> {
    (0..piece.len())
        .step_by(MESSAGE_BYTES)
        .map(move |at| piece.slice(at..piece.len().min(at + MESSAGE_BYTES)))
}

fn chunk_of(message: proto::UploadArtifactRequest) -> Result<Bytes> {
    match message.part {
        Some(Part::Chunk(chunk)) if chunk.len() > UPLOAD_CHUNK_BYTES => {
            let bytes = chunk.len();
            let description =
                format!("has {bytes} bytes, more than the limit of {UPLOAD_CHUNK_BYTES}");
            Err(Error::invalid("chunk", description))
        }
        Some(Part::Chunk(chunk)) => Ok(chunk),
        Some(Part::Description(_)) => {
            Err(Error::invalid("description", "may be sent only once, as the first message"))
        }
        None => Err(Error::invalid("part", "is required")),
    }
}

/// What comes next in a call, unless the call is over. Whatever is read after that may be the client's answer to the end
/// that it was told of, and was not sent for the call: not even where it was there before anybody looked.
async fn unless_over<T>(over: &CancellationToken, next: impl Future<Output = T>) -> Option<T> {
    let next = over.run_until_cancelled(next).await?;
    (!over.is_cancelled()).then_some(next)
}

#[tonic::async_trait]
impl proto::artifact_service_server::ArtifactService for ArtifactCalls {
    async fn upload_artifact(
        &self,
        request: Request<Streaming<proto::UploadArtifactRequest>>,
    ) -> Result<Response<proto::UploadArtifactResponse>, Status> {
        let scope = authenticate::scope(&request)?;
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.and_then(|first| first.part);
        let description = match first {
            Some(Part::Description(sent)) => {
                artifact_requests::description(self.artifacts.app().limits(), sent)
            }
            _ => Err(Error::invalid("description", "is required as the first message")),
        };
        let description = description.map_err(|error| status::of(&error))?;
        // What the library says of a stream that breaks.
        let broke = Arc::new(Mutex::new(None));
        let breaks = Arc::clone(&broke);
        // A call that was given up, or whose deadline has passed, is not read on: whatever its client does with the
        // stream then, it is not the end of the file.
        let over = CancellationToken::new();
        let _over = over.clone().drop_guard();
        let chunks = stream::unfold(inbound, move |mut inbound| {
            let (breaks, over) = (Arc::clone(&breaks), over.clone());
            async move {
                let message = unless_over(&over, inbound.message()).await;
                let chunk = match message {
                    None => Err(Error::BrokenOff),
                    Some(Ok(message)) => chunk_of(message?),
                    Some(Err(status)) => {
                        *breaks.lock() = Some(status);
                        Err(Error::BrokenOff)
                    }
                };
                Some((chunk, inbound))
            }
        });
        // A task of its own: a call that is given up must end in order.
        let artifacts = Arc::clone(&self.artifacts);
        let upload = async move { artifacts.upload(description, &scope, chunks.boxed()).await };
        let uploaded = self.tasks.spawn(upload.in_current_span()).map(|ended| match ended {
            Ok(uploaded) => uploaded,
            Err(error) => Err(Error::Store(crate::store::Error::failed(error))),
        });
        match uploaded.await {
            Ok(stored) => {
                let artifact_id = Some(stored.artifact_id.clone());
                let artifact = Some(shown::artifact(&stored));
                let mut answer = Response::new(proto::UploadArtifactResponse { artifact });
                answer.extensions_mut().insert(Target { artifact_id, ..Target::default() });
                Ok(answer)
            }
            Err(error) => {
                let broke = broke.lock().take();
                Err(broke.unwrap_or_else(|| status::of(&error)))
            }
        }
    }

    async fn get_upload(
        &self,
        request: Request<proto::GetUploadRequest>,
    ) -> Result<Response<proto::GetUploadResponse>, Status> {
        let scope = authenticate::scope(&request)?;
        let request = request.into_inner();
        let mut check = requests::Check::new(self.artifacts.app().limits());
        check.upload_id("upload_id", &request.upload_id);
        check.done(()).map_err(|error| status::of(&error))?;
        let received = self.artifacts.received(&request.upload_id, &scope).await;
        let received = received.map_err(|error| status::of(&error))?;
        let received_bytes = i64::try_from(received).unwrap_or(i64::MAX);
        Ok(Response::new(proto::GetUploadResponse { received_bytes }))
    }

    type DownloadArtifactStream =
        BoxStream<'static, Result<proto::DownloadArtifactResponse, Status>>;

    async fn download_artifact(
        &self,
        request: Request<proto::DownloadArtifactRequest>,
    ) -> Result<Response<Self::DownloadArtifactStream>, Status> {
        let scope = authenticate::scope(&request)?;
        let request = request.into_inner();
        let part = artifact_requests::part(self.artifacts.app().limits(), &request);
        let download = match part {
            Ok(part) => self.artifacts.download(&request.artifact_id, part, &scope).await,
            Err(error) => Err(error),
        };
        let download = download.map_err(|error| status::of(&error))?;
        let message = |part| proto::DownloadArtifactResponse { part: Some(part) };
        let record = message(Sent::Artifact(shown::artifact(&download.artifact)));
        let bytes = download.bytes.flat_map(move |piece| {
            let messages: Vec<_> = match piece {
                Ok(piece) => split(piece).map(|part| Ok(message(Sent::Chunk(part)))).collect(),
                Err(error) => vec![Err(status::of(&error))],
            };
            stream::iter(messages)
        });
        Ok(Response::new(stream::once(async { Ok(record) }).chain(bytes).boxed()))
    }

    async fn get_artifact(
        &self,
        request: Request<proto::GetArtifactRequest>,
    ) -> Result<Response<proto::GetArtifactResponse>, Status> {
        let scope = authenticate::scope(&request)?;
        let request = request.into_inner();
        let mut check = requests::Check::new(self.artifacts.app().limits());
        check.artifact_id(&request.artifact_id);
        check.done(()).map_err(|error| status::of(&error))?;
        let found = self.artifacts.artifact(&request.artifact_id, &scope).await;
        let found = found.map_err(|error| status::of(&error))?;
        let artifact = Some(convert::artifact(&found));
        Ok(Response::new(proto::GetArtifactResponse { artifact }))
    }

    async fn list_artifacts(
        &self,
        request: Request<proto::ListArtifactsRequest>,
    ) -> Result<Response<proto::ListArtifactsResponse>, Status> {
        let scope = authenticate::scope(&request)?;
        let request = request.into_inner();
        let mut check = requests::Check::new(self.artifacts.app().limits());
        check.execution_id(&request.execution_id);
        let step = check.of_step(request.step_id, request.step_key.as_ref());
        check.optional_name("artifact_type", request.artifact_type.as_ref());
        let size = check.page_size(request.page_size);
        check.done(()).map_err(|error| status::of(&error))?;
        let page = PageRequest { size, token: request.page_token };
        let found = self
            .artifacts
            .list(&request.execution_id, &scope, step, request.artifact_type, page, |record| {
                shown::artifact(record).encoded_len()
            })
            .await
            .map_err(|error| status::of(&error))?;
        Ok(Response::new(proto::ListArtifactsResponse {
            artifacts: found.records.iter().map(shown::artifact).collect(),
            next_page_token: found.next_page_token,
        }))
    }

    async fn delete_artifact(
        &self,
        request: Request<proto::DeleteArtifactRequest>,
    ) -> Result<Response<proto::DeleteArtifactResponse>, Status> {
        let scope = authenticate::scope(&request)?;
        let request = request.into_inner();
        let mut check = requests::Check::new(self.artifacts.app().limits());
        check.artifact_id(&request.artifact_id);
        check.done(()).map_err(|error| status::of(&error))?;
        let deleted = self.artifacts.delete(&request.artifact_id, &scope).await;
        deleted.map_err(|error| status::of(&error))?;
        Ok(Response::new(proto::DeleteArtifactResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    #[tokio::test]
    async fn what_is_read_once_a_call_is_over_is_not_of_the_call() {
        let over = CancellationToken::new();
        assert_eq!(unless_over(&over, ready("a chunk")).await, Some("a chunk"));
        // The deadline has passed, the client was told so and has closed its side: the end of the file is there to be read.
        over.cancel();
        assert_eq!(unless_over(&over, ready("the end")).await, None);
        // Also where the call is over while somebody is reading.
        let over = CancellationToken::new();
        let end = async {
            over.cancel();
            "the end"
        };
        assert_eq!(unless_over(&over, end).await, None);
    }
}
