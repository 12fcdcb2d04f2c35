//! Fills the server's store, over one stream per core of writes that come in whole.

use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::sample;
use crate::bench::connect::Server;
use crate::bench::report;
use crate::clock::{Clock as _, SystemClock};
use crate::domain::Millis;
use crate::proto;
use crate::proto::execution_service_client::ExecutionServiceClient;
use crate::proto::ingest_request::Write;
use crate::proto::ingest_response::Result as Answer;
use crate::proto::ingest_service_client::IngestServiceClient;

const STREAMS: u64 = 4;
/// Writes of a stream that wait to be sent.
const WAITING: usize = 1000;
/// Said on the way.
const SAID_EVERY: u64 = 500_000;

pub async fn fill(server: &Server, executions: u64) -> anyhow::Result<()> {
    report::progress(&format!("filling the store with {executions} executions"));
    let newest = SystemClock.now().millis();
    let mut streams = JoinSet::new();
    for stream in 0..STREAMS {
        let channel = server.for_writes()?;
        streams.spawn(async move {
            let (sender, receiver) = mpsc::channel(WAITING);
            let sending = async move {
                for number in (stream..executions).step_by(STREAMS as usize) {
                    let write = Write::PutExecution(sample::execution(number, newest));
                    let request =
                        proto::IngestRequest { sequence: number as i64, write: Some(write) };
                    if sender.send(request).await.is_err() {
                        break;
                    }
                    if number > 0 && number % SAID_EVERY == 0 {
                        report::progress(&format!("{number} executions are sent"));
                    }
                }
            };
            let receiving = async move {
                let mut service = IngestServiceClient::new(channel);
                let mut answers = service.ingest(ReceiverStream::new(receiver)).await?.into_inner();
                while let Some(answer) = answers.message().await? {
                    if let Some(Answer::Error(error)) = answer.result {
                        anyhow::bail!("execution {}: {}", answer.sequence, error.message);
                    }
                }
                anyhow::Ok(())
            };
            let ((), received) = tokio::join!(sending, receiving);
            received
        });
    }
    while let Some(stream) = streams.join_next().await {
        stream.context("a stream broke")??;
    }
    Ok(())
}

/// The start of the newest execution.
pub async fn newest(server: &Server) -> anyhow::Result<Millis> {
    let mut client = ExecutionServiceClient::new(server.for_writes()?);
    let mut request =
        tonic::Request::new(proto::ListExecutionsRequest { page_size: 1, ..Default::default() });
    request.set_timeout(Duration::from_secs(60));
    let page = client.list_executions(request).await?.into_inner();
    let newest = page.executions.first().and_then(|execution| execution.started_at);
    let newest = newest.context("the store holds no execution with a start")?;
    Ok(newest.seconds * 1000 + i64::from(newest.nanos) / 1_000_000)
}
