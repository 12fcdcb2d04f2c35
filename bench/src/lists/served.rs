//! The lists of the server, as any client reads them.

use std::ops::Range;
use std::sync::Arc;

use crate::connect::Channel;
use anyhow::Context as _;
use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use tonic::Code;

use super::Asked;
use super::data::{self, Run, Runs};
use super::questions::Question;
use crate::connect::Server;
use stepwell::proto::execution_service_client::ExecutionServiceClient;
use stepwell::proto::ingest_request::Write;
use stepwell::proto::ingest_response::Result as Answer;
use stepwell::proto::ingest_service_client::IngestServiceClient;
use stepwell::proto::{
    DeleteExecutionRequest, Error, Execution, GetExecutionRequest, IngestRequest,
};
use stepwell::rpc::convert;

/// Deletes side by side.
const SIDE_BY_SIDE: usize = 64;
/// How many answers between two words on how far it is.
const SAID_EVERY: u64 = 1000;

/// A connection for every client.
pub struct Served {
    channels: Vec<Channel>,
}

impl Served {
    pub fn new(server: &Server, clients: usize) -> anyhow::Result<Self> {
        let channels: Result<_, _> = (0..clients.max(1)).map(|_| server.for_writes()).collect();
        Ok(Served { channels: channels? })
    }

    fn executions(&self, client: usize) -> ExecutionServiceClient<Channel> {
        let channel = self.channels[client % self.channels.len()].clone();
        // A page is at most 4 MiB, and the rest of the message is small.
        ExecutionServiceClient::new(channel).max_decoding_message_size(8 * 1024 * 1024)
    }

    /// Whether the server has the execution of this number.
    pub async fn has(&self, number: u64) -> anyhow::Result<bool> {
        let execution_id = data::execution_id(number);
        let request = GetExecutionRequest { execution_id, ..Default::default() };
        match self.executions(0).get_execution(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(status).context("the server could not be asked for an execution"),
        }
    }

    /// Stores the executions of these numbers; those that are there already stay as they are.
    pub async fn fill(
        &self,
        runs: &Arc<Runs>,
        numbers: Range<u64>,
        said: impl Fn(u64),
    ) -> anyhow::Result<()> {
        let (begin, wanted) = (numbers.start, numbers.end - numbers.start);
        let runs = Arc::clone(runs);
        let writes = stream::iter(numbers.map(move |number| IngestRequest {
            sequence: i64::try_from(number).unwrap_or(i64::MAX),
            write: Some(Write::PutExecution(record(&runs.get(number)))),
            mirrored: None,
        }));
        let mut service = IngestServiceClient::new(self.channels[0].clone());
        let mut answers = service.ingest(writes).await?.into_inner();
        let mut stored = 0;
        while let Some(answer) = answers.message().await? {
            if let Some(Answer::Error(error)) = answer.result {
                anyhow::bail!("the server took no execution: {}", error.message);
            }
            stored += 1;
            if stored % SAID_EVERY == 0 {
                said(begin + stored);
            }
        }
        anyhow::ensure!(stored == wanted, "the server stored {stored} of {wanted} executions");
        Ok(())
    }

    /// Deletes the executions of these numbers.
    pub async fn remove(&self, numbers: Range<u64>) -> anyhow::Result<()> {
        let mut deletes = stream::iter(numbers)
            .map(|number| {
                let mut service = self.executions(number as usize);
                let execution_id = data::execution_id(number);
                let request = DeleteExecutionRequest { execution_id, force: true };
                async move { service.delete_execution(request).await }
            })
            .buffer_unordered(SIDE_BY_SIDE);
        while let Some(deleted) = deletes.next().await {
            match deleted {
                Err(status) if status.code() != Code::NotFound => {
                    return Err(status).context("the executions could not be deleted");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Asked for Served {
    fn name(&self) -> &'static str {
        "server"
    }

    async fn ask(&self, client: usize, question: &Question) -> Result<usize, String> {
        match self.executions(client).list_executions(question.request()).await {
            Ok(page) => Ok(page.into_inner().executions.len()),
            Err(status) => Err(format!("{:?}: {}", status.code(), status.message())),
        }
    }
}

fn record(run: &Run) -> Execution {
    Execution {
        execution_id: run.execution_id.clone(),
        app_id: data::app_id(run.app),
        app_name: data::app_name(run.app),
        sub_app_id: run.sub_app,
        sub_app_name: run.sub_app.map(|number| format!("part-{number}")),
        user_id: Some(data::user_id(run.user)),
        status: convert::execution_status(Some(run.status)).into(),
        started_at: Some(convert::timestamp(run.started_at)),
        completed_at: run.completed_at().map(convert::timestamp),
        duration_ms: run.duration_ms,
        error: run.error.map(|message| Error { message: message.to_owned(), ..Default::default() }),
        metadata: Some(convert::object(&run.metadata())),
        created_at: Some(convert::timestamp(run.started_at)),
        updated_at: Some(convert::timestamp(run.completed_at().unwrap_or(run.started_at))),
        ..Default::default()
    }
}
