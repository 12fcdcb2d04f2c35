//! Workload `hostile`: what one hostile client costs an honest one.

mod kinds;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use stepwell::app::ids;
use stepwell::proto::execution_service_client::ExecutionServiceClient;
use stepwell::proto::{CreateExecutionRequest, ExecutionStatus, FinishExecutionRequest};

use super::connect::Server;
use super::machine::Process;
use super::measure::{Latency, Recorder};
use super::report::{self, Report};
use kinds::Kind;

/// Honest clients, each on a connection of its own.
const HONEST: usize = 4;
/// Between two calls of an honest client.
const PACE: Duration = Duration::from_millis(10);
/// How often the memory of the server is looked at.
const SAMPLED: Duration = Duration::from_millis(50);
/// Calls in flight at which a server does its best.
const BEST_AT: usize = 256;
pub const APP_NAME: &str = "stepwell-bench";

/// Measures honest clients alone, and again beside each kind of hostile client.
///
/// Honest clients create and finish executions, 100 calls a second each on a connection of their own. Hostile ones
/// do one thing as much as they can. What is shown of each kind is how long honest calls took beside it, how
/// many times as long as alone, and the memory of the server.
///
/// The executions stay in the server's store, with app_name "stepwell-bench". Use a database for it.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// How long each kind is measured.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = super::seconds)]
    seconds: f64,
    /// Only these kinds; all unless given.
    #[arg(long, value_name = "KIND,...", value_delimiter = ',')]
    only: Vec<Kind>,
    /// Calls in flight of the kind `calls`.
    #[arg(long, value_name = "N", default_value_t = 30_000)]
    calls: usize,
    /// The server's process, if it runs on this machine: its memory and processor time are measured.
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
}

/// What was measured beside one kind.
#[derive(Debug, Clone, Serialize)]
struct Outcome {
    kind: String,
    honest_per_second: f64,
    honest: Latency,
    p99_ratio: f64,
    server_mib: Option<f64>,
    server_cores: Option<f64>,
    /// What the hostile client got done a second, of what it counts.
    done_per_second: f64,
    refused_per_second: f64,
}

/// What hostile clients count.
#[derive(Debug, Default)]
pub struct Counted {
    done: AtomicU64,
    refused: AtomicU64,
}

impl Counted {
    pub fn done(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

pub async fn run(server: &Server, args: &Args) -> anyhow::Result<Report> {
    let measured = Duration::from_secs_f64(args.seconds);
    let recorder = Arc::new(Recorder::new());
    let stop = CancellationToken::new();
    let mut honest = JoinSet::new();
    for client in 0..HONEST {
        honest.spawn(report_runs(server.clone(), client, Arc::clone(&recorder), stop.clone())?);
    }
    let process = args.server_pid.map(Process::new);
    let mut outcomes: Vec<Outcome> = Vec::new();
    let alone = beside(None, server, args, &recorder, process, measured).await?;
    let p99_alone = alone.honest.p99_ms;
    outcomes.push(alone);
    let kinds = if args.only.is_empty() { Kind::ALL.to_vec() } else { args.only.clone() };
    for kind in kinds {
        let mut outcome = beside(Some(kind), server, args, &recorder, process, measured).await?;
        outcome.p99_ratio = outcome.honest.p99_ms / p99_alone.max(f64::EPSILON);
        outcomes.push(outcome);
    }
    stop.cancel();
    while honest.join_next().await.is_some() {}
    let mut ended = recorder.end();
    recorder.add_late_errors(&mut ended);
    Ok(report(outcomes, ended.errors, ended.messages))
}

async fn beside(
    kind: Option<Kind>,
    server: &Server,
    args: &Args,
    recorder: &Recorder,
    process: Option<Process>,
    measured: Duration,
) -> anyhow::Result<Outcome> {
    let name = kind.map_or_else(|| "alone".to_owned(), |kind| kind.name().to_owned());
    report::progress(&name);
    let counted = Arc::<Counted>::default();
    let stop = CancellationToken::new();
    let mut clients = JoinSet::new();
    if let Some(kind) = kind {
        let calls = if kind == Kind::Best { BEST_AT } else { args.calls };
        kind.begin(&mut clients, server, calls, &counted, &stop)?;
    }
    // Hostile clients need a moment to get going.
    tokio::time::sleep(measured.mul_f64(0.2)).await;
    let cpu = process.and_then(Process::cpu_seconds);
    let before = (counted.done.load(Ordering::Relaxed), counted.refused.load(Ordering::Relaxed));
    recorder.begin();
    let until = Instant::now() + measured;
    let mut most = None;
    while Instant::now() < until {
        tokio::time::sleep(SAMPLED).await;
        most = most.max(process.and_then(Process::resident_bytes));
    }
    let ended = recorder.end();
    let since = |count: &AtomicU64, before: u64| {
        (count.load(Ordering::Relaxed) - before) as f64 / ended.seconds
    };
    let outcome = Outcome {
        kind: name,
        honest_per_second: ended.per_second(),
        honest: ended.latency(),
        p99_ratio: 1.0,
        server_mib: most.map(|bytes| bytes as f64 / 1_048_576.0),
        server_cores: cpu
            .zip(process.and_then(Process::cpu_seconds))
            .map(|(before, after)| (after - before) / ended.seconds),
        done_per_second: since(&counted.done, before.0),
        refused_per_second: since(&counted.refused, before.1),
    };
    for message in ended.messages {
        report::progress(&format!("an honest call failed: {message}"));
    }
    stop.cancel();
    while clients.join_next().await.is_some() {}
    Ok(outcome)
}

/// One honest client.
fn report_runs(
    server: Server,
    client: usize,
    recorder: Arc<Recorder>,
    stop: CancellationToken,
) -> anyhow::Result<impl Future<Output = ()> + Send> {
    let mut executions = ExecutionServiceClient::new(server.for_writes()?);
    Ok(async move {
        let mut pace = tokio::time::interval(PACE);
        let mut open: Option<String> = None;
        while !stop.is_cancelled() {
            pace.tick().await;
            let began = Instant::now();
            let answer = match open.take() {
                None => {
                    let request = create();
                    open.clone_from(&request.execution_id);
                    executions.create_execution(request).await.map(drop)
                }
                Some(execution_id) => {
                    let request = FinishExecutionRequest {
                        execution_id,
                        status: ExecutionStatus::Completed.into(),
                        ..Default::default()
                    };
                    executions.finish_execution(request).await.map(drop)
                }
            };
            match answer {
                Ok(()) => recorder.done(client, began.elapsed(), 0),
                Err(status) => {
                    open = None;
                    recorder.failed(client, format!("{:?}: {}", status.code(), status.message()));
                }
            }
        }
    })
}

pub fn create() -> CreateExecutionRequest {
    CreateExecutionRequest {
        execution_id: Some(ids::execution_id()),
        app_name: APP_NAME.to_owned(),
        ..Default::default()
    }
}

fn report(outcomes: Vec<Outcome>, errors: u64, messages: Vec<String>) -> Report {
    let mut table = report::table(&[
        "beside",
        "honest calls/s",
        "p50 ms",
        "p99 ms",
        "max ms",
        "p99 ratio",
        "server MiB",
        "server cores",
        "done/s",
        "refused/s",
    ]);
    let some = |value: Option<f64>| value.map_or_else(|| "?".to_owned(), report::ms);
    for outcome in &outcomes {
        table.add_row([
            outcome.kind.clone(),
            report::whole(outcome.honest_per_second),
            report::ms(outcome.honest.p50_ms),
            report::ms(outcome.honest.p99_ms),
            report::ms(outcome.honest.max_ms),
            report::ms(outcome.p99_ratio),
            outcome.server_mib.map_or_else(|| "?".to_owned(), report::whole),
            some(outcome.server_cores),
            report::whole(outcome.done_per_second),
            report::whole(outcome.refused_per_second),
        ]);
    }
    let notes = vec![
        "done and refused are calls of the hostile client that were answered; other kinds count none".to_owned(),
    ];
    Report { json: json!({ "hostile": outcomes }), tables: vec![table], notes, errors, messages }
}
