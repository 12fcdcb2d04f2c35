//! Many changes over a few streams. A stream carries several clients: each has one change outstanding, so the
//! concurrency is that of the other ways.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connect::Channel;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::Round;
use super::script::{self, Change, Script};
use super::unary::status_text;
use crate::connect::Server;
use stepwell::proto::IngestRequest;
use stepwell::proto::ingest_request::Write;
use stepwell::proto::ingest_response::Result as Answer;
use stepwell::proto::ingest_service_client::IngestServiceClient;

/// After a broken stream the next one waits, so that a broken server is not flooded.
const AFTER_ERROR: Duration = Duration::from_millis(200);

pub fn spawn(
    tasks: &mut JoinSet<()>,
    server: &Server,
    clients: usize,
    streams: usize,
    round: &Arc<Round>,
) -> anyhow::Result<()> {
    for stream in 0..streams {
        // The first streams carry one more when the clients do not divide evenly.
        let own = clients / streams + usize::from(stream < clients % streams);
        let channel = server.for_writes()?;
        tasks.spawn(run(stream, own, channel, Arc::clone(round)));
    }
    Ok(())
}

async fn run(stream: usize, clients: usize, channel: Channel, round: Arc<Round>) {
    let mut service = IngestServiceClient::new(channel);
    while !round.is_over() {
        if let Err(message) = one_stream(stream, clients, &mut service, &round).await {
            round.recorder.failed(stream, message);
            tokio::time::sleep(AFTER_ERROR).await;
        }
    }
}

/// A client of the stream.
struct Slot {
    script: Script,
    sequence: i64,
    sent: Instant,
}

async fn one_stream(
    stream: usize,
    clients: usize,
    service: &mut IngestServiceClient<Channel>,
    round: &Round,
) -> Result<(), String> {
    // Room for a change of every client: sending never waits.
    let (requests, outgoing) = mpsc::channel(clients);
    let send = |slot: &mut Slot| -> Result<(), String> {
        slot.sent = Instant::now();
        let write = write(&slot.script);
        requests
            .try_send(IngestRequest { sequence: slot.sequence, write: Some(write), mirrored: None })
            .map_err(|_| "the stream ended while it was written to".to_owned())
    };
    let mut slots = Vec::with_capacity(clients);
    for sequence in 0..clients {
        let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
        let mut slot = Slot { script: Script::new(), sequence, sent: Instant::now() };
        send(&mut slot)?;
        slots.push(slot);
    }
    let mut answers = service
        .ingest(ReceiverStream::new(outgoing))
        .await
        .map_err(|status| status_text(&status))?
        .into_inner();
    let mut outstanding = clients;
    while outstanding > 0 {
        let answer = match answers.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(format!("the stream ended with {outstanding} unanswered")),
            Err(status) => return Err(status_text(&status)),
        };
        let index = usize::try_from(answer.sequence).unwrap_or(usize::MAX) % clients;
        let slot = &mut slots[index];
        if slot.sequence != answer.sequence {
            return Err(format!("an answer to {} that nobody waits for", answer.sequence));
        }
        outstanding -= 1;
        match answer.result {
            Some(Answer::Error(error)) => {
                let code = tonic::Code::from_i32(error.code);
                round.recorder.failed(stream, format!("{code:?}: {}", error.message));
                slot.script.abandon();
            }
            None => {
                round.recorder.failed(stream, "an answer without a result");
                slot.script.abandon();
            }
            Some(_) => {
                round.recorder.done(stream, slot.sent.elapsed(), 0);
                slot.script.advance();
            }
        }
        if !round.is_over() || slot.script.wind_up() {
            slot.sequence += i64::try_from(clients).unwrap_or(i64::MAX);
            send(slot)?;
            outstanding += 1;
        }
    }
    Ok(())
}

fn write(script: &Script) -> Write {
    let id = script.execution_id.as_str();
    match script.change() {
        Change::Create => Write::CreateExecution(script::create_request(id)),
        Change::Start(step) => Write::StartStep(script::start_request(id, step)),
        Change::Finish(step) => Write::FinishStep(script::finish_request(id, step)),
        Change::End => Write::FinishExecution(script::end_request(id)),
    }
}
