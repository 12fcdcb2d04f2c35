//! Where artifacts go: through the server, or straight to a storage. Each place takes the same bytes and gives them
//! back.

use crate::connect::Channel;
use anyhow::Context as _;
use async_trait::async_trait;
use futures::{StreamExt as _, stream};

use super::pieces::Pieces;
use crate::connect::Server;
use crate::track::APP_NAME;
use stepwell::app::ids;
use stepwell::proto;
use stepwell::proto::artifact_service_client::ArtifactServiceClient;
use stepwell::proto::download_artifact_response::Part as Sent;
use stepwell::proto::execution_service_client::ExecutionServiceClient;
use stepwell::proto::upload_artifact_request::Part;

#[async_trait]
pub trait Place: Send + Sync {
    fn name(&self) -> &'static str;

    /// Stores the bytes and says what to read them by. They are durable then. `slot` tells transfers that happen
    /// side by side from each other.
    async fn write(&self, slot: usize, pieces: Pieces) -> anyhow::Result<String>;

    /// Reads all bytes and counts them.
    async fn read(&self, slot: usize, key: &str) -> anyhow::Result<u64>;

    async fn remove(&self, key: &str) -> anyhow::Result<()>;

    /// Leaves nothing behind.
    async fn close(&self) -> anyhow::Result<()>;
}

/// The server under test, with an execution for the artifacts. Each slot has a connection of its own.
pub struct Served {
    execution_id: String,
    channels: Vec<Channel>,
}

impl Served {
    pub async fn create(server: &Server, slots: usize) -> anyhow::Result<Self> {
        let channels = (0..slots).map(|_| server.for_writes()).collect::<Result<Vec<_>, _>>()?;
        let served = Served { execution_id: ids::execution_id(), channels };
        let request = proto::CreateExecutionRequest {
            execution_id: Some(served.execution_id.clone()),
            app_name: APP_NAME.to_owned(),
            ..Default::default()
        };
        let mut executions = ExecutionServiceClient::new(served.channel(0));
        let created = executions.create_execution(request).await;
        created.context("the execution of the artifacts could not be created")?;
        Ok(served)
    }

    fn channel(&self, slot: usize) -> Channel {
        self.channels[slot % self.channels.len()].clone()
    }
}

#[async_trait]
impl Place for Served {
    fn name(&self) -> &'static str {
        "server"
    }

    async fn write(&self, slot: usize, pieces: Pieces) -> anyhow::Result<String> {
        let size = i64::try_from(pieces.size())?;
        let description = proto::ArtifactDescription {
            execution_id: self.execution_id.clone(),
            artifact_type: "file".to_owned(),
            artifact_name: format!("artifact-{}", pieces.artifact()),
            size_bytes: Some(size),
            ..Default::default()
        };
        let parts = stream::iter([Part::Description(description)])
            .chain(stream::iter(pieces.map(Part::Chunk)))
            .map(|part| proto::UploadArtifactRequest { part: Some(part) });
        let answer = ArtifactServiceClient::new(self.channel(slot)).upload_artifact(parts).await?;
        let stored = answer.into_inner().artifact.context("the answer has no record")?;
        Ok(stored.artifact_id)
    }

    async fn read(&self, slot: usize, key: &str) -> anyhow::Result<u64> {
        let request =
            proto::DownloadArtifactRequest { artifact_id: key.to_owned(), ..Default::default() };
        let mut client = ArtifactServiceClient::new(self.channel(slot));
        let mut parts = client.download_artifact(request).await?.into_inner();
        let mut bytes = 0;
        while let Some(message) = parts.message().await? {
            if let Some(Sent::Chunk(chunk)) = message.part {
                bytes += chunk.len() as u64;
            }
        }
        Ok(bytes)
    }

    async fn remove(&self, key: &str) -> anyhow::Result<()> {
        let request = proto::DeleteArtifactRequest { artifact_id: key.to_owned() };
        ArtifactServiceClient::new(self.channel(0)).delete_artifact(request).await?;
        Ok(())
    }

    async fn close(&self) -> anyhow::Result<()> {
        let execution_id = self.execution_id.clone();
        let request = proto::DeleteExecutionRequest { execution_id, force: true };
        let mut executions = ExecutionServiceClient::new(self.channel(0));
        let deleted = executions.delete_execution(request).await;
        deleted.context("the execution of the artifacts could not be deleted")?;
        Ok(())
    }
}
