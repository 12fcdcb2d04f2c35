//! The writer that watchers look at: numbered progress reports on the steps of one execution, over one Ingest
//! stream, at a rate or as fast as they are acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::connect::Channel;
use anyhow::Context as _;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::connect::Server;
use crate::measure::Recorder;
use stepwell::proto;
use stepwell::proto::execution_service_client::ExecutionServiceClient;
use stepwell::proto::ingest_request::Write;
use stepwell::proto::ingest_response::Result as Answer;
use stepwell::proto::ingest_service_client::IngestServiceClient;
use stepwell::proto::step_service_client::StepServiceClient;

pub const APP_NAME: &str = "stepwell-bench-watch";
/// How often a writer with a rate looks what is due.
const TICK: Duration = Duration::from_millis(1);
/// How long an acknowledgement may take before the writer gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// When changes were acknowledged, by their number, for the newest million of them.
#[derive(Debug)]
pub struct Acknowledgements {
    epoch: Instant,
    ring: Box<[AtomicU64]>,
}

const RING_BITS: u32 = 20;
/// Microseconds take the low bits, the ring's turn the high ones.
const TIME_BITS: u32 = 40;

/// What is known of a change when a watcher sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// So long after its acknowledgement.
    After(Duration),
    /// The writer has not yet read the acknowledgement.
    Before,
    /// Too long ago to tell.
    Forgotten,
}

impl Acknowledgements {
    pub fn new() -> Self {
        let ring = (0..1_u32 << RING_BITS).map(|_| AtomicU64::new(0)).collect();
        Acknowledgements { epoch: Instant::now(), ring }
    }

    fn slot(&self, sequence: u64) -> (&AtomicU64, u64) {
        let index = usize::try_from(sequence & ((1 << RING_BITS) - 1)).unwrap_or(0);
        // 0 means never written, so turns count from 1.
        (&self.ring[index], (sequence >> RING_BITS) + 1)
    }

    fn acknowledged(&self, sequence: u64) {
        let (slot, turn) = self.slot(sequence);
        let us = u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(0);
        slot.store((turn << TIME_BITS) | (us & ((1 << TIME_BITS) - 1)), Ordering::Release);
    }

    pub fn seen(&self, sequence: u64) -> Seen {
        let (slot, turn) = self.slot(sequence);
        let value = slot.load(Ordering::Acquire);
        let at = Duration::from_micros(value & ((1 << TIME_BITS) - 1));
        match (value >> TIME_BITS).cmp(&turn) {
            std::cmp::Ordering::Less => Seen::Before,
            std::cmp::Ordering::Equal => Seen::After(self.epoch.elapsed().saturating_sub(at)),
            std::cmp::Ordering::Greater => Seen::Forgotten,
        }
    }
}

/// The execution that is written to and watched.
#[derive(Debug, Clone)]
pub struct Busy {
    pub execution_id: String,
    pub steps: u32,
    channel: Channel,
}

impl Busy {
    /// Creates it, with its steps running.
    pub async fn create(server: &Server, steps: u32) -> anyhow::Result<Self> {
        let channel = server.for_writes()?;
        let execution_id = stepwell::app::ids::execution_id();
        ExecutionServiceClient::new(channel.clone())
            .create_execution(proto::CreateExecutionRequest {
                execution_id: Some(execution_id.clone()),
                app_name: APP_NAME.to_owned(),
                ..Default::default()
            })
            .await
            .context("the execution to watch could not be created")?;
        for step in 1..=steps {
            StepServiceClient::new(channel.clone())
                .start_step(proto::StartStepRequest {
                    execution_id: execution_id.clone(),
                    step_id: i32::try_from(step).ok(),
                    step_name: "busy".to_owned(),
                    ..Default::default()
                })
                .await
                .context("a step to watch could not be started")?;
        }
        Ok(Busy { execution_id, steps, channel })
    }

    pub async fn delete(&self) -> anyhow::Result<()> {
        let execution_id = self.execution_id.clone();
        ExecutionServiceClient::new(self.channel.clone())
            .delete_execution(proto::DeleteExecutionRequest { execution_id, force: true })
            .await
            .context("the watched execution could not be deleted")?;
        Ok(())
    }
}

/// A running writer.
#[derive(Debug)]
pub struct Writer {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<u64>,
}

/// How it writes.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Changes a second; 0: as fast as they are acknowledged.
    pub rate: f64,
    /// Changes that may be unacknowledged.
    pub outstanding: usize,
}

impl Writer {
    /// Starts to write change number `first` and on. `written` hears of each acknowledgement.
    pub fn start(
        busy: &Busy,
        pace: Pace,
        first: u64,
        acknowledgements: Arc<Acknowledgements>,
        written: Arc<Recorder>,
    ) -> Self {
        let stop = CancellationToken::new();
        let run = Run {
            busy: busy.clone(),
            pace,
            next: first,
            acknowledgements,
            written,
            stop: stop.clone(),
        };
        Writer { stop, task: tokio::spawn(run.run()) }
    }

    /// Waits for what is outstanding and returns the number that the next change would have.
    pub async fn stop(self) -> anyhow::Result<u64> {
        self.stop.cancel();
        self.task.await.context("the writer broke")
    }
}

struct Run {
    busy: Busy,
    pace: Pace,
    next: u64,
    acknowledgements: Arc<Acknowledgements>,
    written: Arc<Recorder>,
    stop: CancellationToken,
}

impl Run {
    async fn run(mut self) -> u64 {
        if let Err(message) = self.write().await {
            self.written.failed(0, format!("writer: {message}"));
        }
        self.next
    }

    async fn write(&mut self) -> Result<(), String> {
        let (requests, outgoing) = mpsc::channel(self.pace.outstanding);
        let mut answers = IngestServiceClient::new(self.busy.channel.clone())
            .ingest(ReceiverStream::new(outgoing))
            .await
            .map_err(|status| status.to_string())?
            .into_inner();
        let mut sent_at: std::collections::HashMap<u64, Instant> = std::collections::HashMap::new();
        let began = Instant::now();
        let first = self.next;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut stopped = false;
        loop {
            // What is due by now and has room; without a rate everything that has room.
            let room = self.pace.outstanding - sent_at.len();
            let due = if stopped {
                0
            } else if self.pace.rate == 0.0 {
                room
            } else {
                let due = (began.elapsed().as_secs_f64() * self.pace.rate) as u64;
                usize::try_from(due.saturating_sub(self.next - first)).unwrap_or(room).min(room)
            };
            for _ in 0..due {
                sent_at.insert(self.next, Instant::now());
                requests
                    .try_send(self.request(self.next))
                    .map_err(|_| "the stream ended while it was written to".to_owned())?;
                self.next += 1;
            }
            if stopped && sent_at.is_empty() {
                return Ok(());
            }
            tokio::select! {
                biased;
                answer = answers.message() => {
                    let answer = answer
                        .map_err(|status| status.to_string())?
                        .ok_or_else(|| "the stream ended".to_owned())?;
                    let sequence = answer.sequence as u64;
                    let sent = sent_at.remove(&sequence).ok_or("an answer that nobody waits for")?;
                    match answer.result {
                        Some(Answer::Step(_)) => {
                            self.acknowledgements.acknowledged(sequence);
                            self.written.done(0, sent.elapsed(), 0);
                        }
                        other => self.written.failed(0, format!("writer: refused: {other:?}")),
                    }
                }
                _ = tick.tick(), if !stopped && self.pace.rate > 0.0 => {}
                () = self.stop.cancelled(), if !stopped => stopped = true,
                () = tokio::time::sleep(PATIENCE), if !sent_at.is_empty() => {
                    return Err(format!("{} changes were not acknowledged", sent_at.len()));
                }
            }
        }
    }

    fn request(&self, sequence: u64) -> proto::IngestRequest {
        let step = sequence % u64::from(self.busy.steps) + 1;
        proto::IngestRequest {
            sequence: sequence as i64,
            write: Some(Write::UpdateStep(proto::UpdateStepRequest {
                execution_id: self.busy.execution_id.clone(),
                step_id: i32::try_from(step).ok(),
                progress: Some((sequence % 1000) as f64 / 1000.0),
                progress_message: Some(sequence.to_string()),
                ..Default::default()
            })),
            mirrored: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_before_at_and_long_after_its_acknowledgement() {
        let acknowledgements = Acknowledgements::new();
        let newer = 5 + (1 << RING_BITS);
        assert_eq!(acknowledgements.seen(5), Seen::Before);
        acknowledgements.acknowledged(5);
        assert!(matches!(acknowledgements.seen(5), Seen::After(_)));
        assert_eq!(acknowledgements.seen(newer), Seen::Before);
        acknowledgements.acknowledged(newer);
        assert!(matches!(acknowledgements.seen(newer), Seen::After(_)));
        assert_eq!(acknowledgements.seen(5), Seen::Forgotten);
    }
}
