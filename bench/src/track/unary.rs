//! One call per change.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connect::Channel;
use tokio::task::JoinSet;
use tonic::Status;

use super::script::{self, Change, Script};
use super::{CLIENTS_PER_CONNECTION, Round};
use crate::connect::Server;
use stepwell::proto::execution_service_client::ExecutionServiceClient;
use stepwell::proto::step_service_client::StepServiceClient;

/// After an error a client waits, so that a broken server is not flooded.
const AFTER_ERROR: Duration = Duration::from_millis(50);

pub fn spawn(
    tasks: &mut JoinSet<()>,
    server: &Server,
    clients: usize,
    round: &Arc<Round>,
) -> anyhow::Result<()> {
    let connections: Vec<Channel> = (0..clients.div_ceil(CLIENTS_PER_CONNECTION))
        .map(|_| server.for_writes())
        .collect::<anyhow::Result<_>>()?;
    for client in 0..clients {
        let channel = connections[client % connections.len()].clone();
        tasks.spawn(run(client, channel, Arc::clone(round)));
    }
    Ok(())
}

async fn run(client: usize, channel: Channel, round: Arc<Round>) {
    let mut executions = ExecutionServiceClient::new(channel.clone());
    let mut steps = StepServiceClient::new(channel);
    let mut script = Script::new();
    while !round.is_over() || script.wind_up() {
        let began = Instant::now();
        let answer = call(&mut executions, &mut steps, &script).await;
        match answer {
            Ok(()) => {
                round.recorder.done(client, began.elapsed(), 0);
                script.advance();
            }
            Err(status) => {
                round.recorder.failed(client, status_text(&status));
                script.abandon();
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
    }
}

pub(super) fn status_text(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

async fn call(
    executions: &mut ExecutionServiceClient<Channel>,
    steps: &mut StepServiceClient<Channel>,
    script: &Script,
) -> Result<(), Status> {
    let id = script.execution_id.as_str();
    match script.change() {
        Change::Create => executions.create_execution(script::create_request(id)).await.map(drop),
        Change::Start(step) => steps.start_step(script::start_request(id, step)).await.map(drop),
        Change::Finish(step) => steps.finish_step(script::finish_request(id, step)).await.map(drop),
        Change::End => executions.finish_execution(script::end_request(id)).await.map(drop),
    }
}
