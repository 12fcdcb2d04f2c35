//! Workload `track`: clients that report executions of ten steps, through the server and, for comparison,
//! straight into MongoDB.

mod direct;
mod ingest;
mod script;
mod unary;

pub use direct::{Direct, database_of_its_own, name_of_its_own};
pub use script::APP_NAME;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;

use super::connect::Server;
use super::machine::Process;
use super::measure::{Latency, Measured, Recorder, median};
use super::report::{self, Report};

/// Clients whose calls share one connection.
const CLIENTS_PER_CONNECTION: usize = 32;
/// How long a client may take to end after a round before it counts as an error.
const PATIENCE: Duration = Duration::from_secs(30);
/// A rest between two rounds, so that one does not pay for what the other left behind.
const REST: Duration = Duration::from_millis(500);

/// Tracks executions of 10 steps as fast as the server takes them.
///
/// Each client loops over executions: CreateExecution, ten times StartStep (300 bytes of input) and FinishStep
/// (300 bytes of output), FinishExecution: 22 changes, one after the other. A client sends its next change when
/// the one before is acknowledged as durable, so there are as many writes outstanding as there are clients.
///
/// The executions stay in the server's store, with app_name "stepwell-bench". Use a database for it.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = MEANING)]
pub struct Args {
    /// How many writes are outstanding; several numbers are measured one after the other.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "64",
          value_parser = clap::value_parser!(u16).range(1..=4096))]
    clients: Vec<u16>,
    /// How long each round is measured.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = super::seconds)]
    seconds: f64,
    /// How long each round runs before it is measured.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = super::seconds)]
    warmup: f64,
    /// Rounds of each kind; the medians are reported.
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Write over IngestService streams instead of one call per change.
    #[arg(long)]
    ingest: bool,
    /// Ingest streams, each on a connection of its own, that the clients share. Default: one for every 64
    /// clients, 1 to 4.
    #[arg(long, value_name = "N", requires = "ingest",
          value_parser = clap::value_parser!(u16).range(1..=256))]
    streams: Option<u16>,
    /// Measure the same changes straight through the MongoDB driver too, in alternating rounds, and print the
    /// ratio. A database of its own is made for it and dropped afterwards; give the server's replica set.
    #[arg(long, value_name = "URI", env = "STEPWELL_BENCH_DIRECT", hide_env_values = true)]
    direct: Option<String>,
    /// Measure the same with another server too, in alternating rounds, and print the ratio: one with other
    /// settings, or of another version. Give the processes of both: a round begins when neither has anything left
    /// to do of the rounds before.
    #[arg(long, value_name = "ADDRESS", requires = "server_pid", requires = "beside_pid")]
    beside: Option<String>,
    /// Process of the other server, on this machine.
    #[arg(long, value_name = "PID", requires = "beside")]
    beside_pid: Option<u32>,
    /// Process of the server, on this machine, to report its processor time per change.
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
}

const MEANING: &str = "\
What the numbers mean:
  changes/s       acknowledged changes in the measured time, divided by it; the median of the rounds
  range           the lowest and the highest round
  p50 p90 p99     from sending a change to its acknowledgement, in milliseconds: half, 90 and 99 of 100 were
                  at least as quick; medians of the rounds. At full load this is mostly waiting for a turn
  max             the slowest change of all rounds
  errors          changes refused or unanswered, also outside the measured time. Any makes the exit code 1
  CPU us/change   processor time of the server (with --server-pid) and of this load generator, per change
  server/direct   changes/s through the server divided by changes/s straight through the driver, and the same
                  for p50
  server/beside   changes/s through the server divided by changes/s through the other one (with --beside), and
                  the same for p50

What --direct compares with: insert_one of the same documents into collections with the same indexes, update_one
by (execution_id, step_id) guarded by status, write concern majority with journal, a pool of 64 connections, as
many operations outstanding, the same order of operations per client.";

/// A way for changes to get in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Way {
    Unary,
    Ingest,
    Direct,
    /// As through the server, through another one.
    Beside,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Unary => "unary",
            Way::Ingest => "ingest",
            Way::Direct => "direct",
            Way::Beside => "beside",
        }
    }
}

/// What the clients of one round share.
#[derive(Debug)]
struct Round {
    recorder: Recorder,
    stop: AtomicBool,
}

impl Round {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// One round's figures.
#[derive(Debug, Clone, Serialize)]
struct Outcome {
    changes_per_second: f64,
    changes: u64,
    measured_seconds: f64,
    latency: Latency,
    errors: u64,
    server_cpu_us_per_change: Option<f64>,
    bench_cpu_us_per_change: Option<f64>,
}

/// The rounds of one way at one number of clients.
#[derive(Debug, Clone, Serialize)]
struct Summary {
    way: Way,
    changes_per_second: f64,
    latency: Latency,
    errors: u64,
    server_cpu_us_per_change: Option<f64>,
    bench_cpu_us_per_change: Option<f64>,
    rounds: Vec<Outcome>,
}

impl Summary {
    fn of(way: Way, rounds: Vec<Outcome>) -> Self {
        let latencies: Vec<Latency> = rounds.iter().map(|round| round.latency).collect();
        let known = |pick: fn(&Outcome) -> Option<f64>| {
            rounds
                .iter()
                .all(|round| pick(round).is_some())
                .then(|| median(rounds.iter().filter_map(pick)))
        };
        Summary {
            way,
            changes_per_second: median(rounds.iter().map(|round| round.changes_per_second)),
            latency: Latency::of_rounds(&latencies),
            errors: rounds.iter().map(|round| round.errors).sum(),
            server_cpu_us_per_change: known(|round| round.server_cpu_us_per_change),
            bench_cpu_us_per_change: known(|round| round.bench_cpu_us_per_change),
            rounds,
        }
    }
}

/// Everything at one number of clients.
#[derive(Debug, Serialize)]
struct Comparison {
    clients: usize,
    server: Summary,
    direct: Option<Summary>,
    beside: Option<Summary>,
    /// Server divided by direct: above 1 the server is faster.
    throughput_ratio: Option<f64>,
    /// Server divided by direct: below 1 the server is quicker.
    p50_ratio: Option<f64>,
    /// Server divided by the other one.
    beside_throughput_ratio: Option<f64>,
    beside_p50_ratio: Option<f64>,
}

impl Comparison {
    fn summaries(&self) -> impl Iterator<Item = &Summary> {
        [Some(&self.server), self.direct.as_ref(), self.beside.as_ref()].into_iter().flatten()
    }
}

struct Bench<'a> {
    server: &'a Server,
    args: &'a Args,
    direct: Option<direct::Direct>,
    beside: Option<Server>,
    messages: Vec<String>,
}

pub async fn run(server: &Server, args: &Args) -> anyhow::Result<Report> {
    let direct = match &args.direct {
        None => None,
        Some(uri) => Some(direct::Direct::open(uri).await?),
    };
    let beside = args.beside.as_deref().map(Server::new).transpose()?;
    let mut bench = Bench { server, args, direct, beside, messages: Vec::new() };
    let compared = tokio::select! {
        compared = bench.compare() => compared,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if let Some(direct) = &bench.direct {
        direct.drop_database().await?;
    }
    Ok(report(args, &compared?, bench.messages))
}

impl Bench<'_> {
    async fn compare(&mut self) -> anyhow::Result<Vec<Comparison>> {
        let way = if self.args.ingest { Way::Ingest } else { Way::Unary };
        let mut all = Vec::new();
        for clients in self.args.clients.iter().copied().map(usize::from) {
            let (mut server, mut direct, mut beside) = (Vec::new(), Vec::new(), Vec::new());
            let others = [
                self.direct.is_some().then_some(Way::Direct),
                self.beside.is_some().then_some(Way::Beside),
            ];
            let mut ways: Vec<Way> = [Some(way)].into_iter().chain(others).flatten().collect();
            for round in 1..=self.args.rounds {
                for way in ways.iter().copied() {
                    let outcome = self.round(way, clients, round).await?;
                    match way {
                        Way::Unary | Way::Ingest => server.push(outcome),
                        Way::Direct => direct.push(outcome),
                        Way::Beside => beside.push(outcome),
                    }
                }
                // Whoever comes later in a round finds the machine in another state than whoever comes first.
                ways.reverse();
            }
            let server = Summary::of(way, server);
            let direct = (!direct.is_empty()).then(|| Summary::of(Way::Direct, direct));
            let beside = (!beside.is_empty()).then(|| Summary::of(Way::Beside, beside));
            let ratio = |other: &Option<Summary>, of: fn(&Summary) -> f64| {
                let other = other.as_ref().map(of).filter(|other| *other > 0.0)?;
                Some(of(&server) / other)
            };
            let rate = |summary: &Summary| summary.changes_per_second;
            let p50 = |summary: &Summary| summary.latency.p50_ms;
            all.push(Comparison {
                clients,
                throughput_ratio: ratio(&direct, rate),
                p50_ratio: ratio(&direct, p50),
                beside_throughput_ratio: ratio(&beside, rate),
                beside_p50_ratio: ratio(&beside, p50),
                server,
                direct,
                beside,
            });
        }
        Ok(all)
    }

    async fn round(&mut self, way: Way, clients: usize, number: u16) -> anyhow::Result<Outcome> {
        tokio::time::sleep(REST).await;
        if self.beside.is_some() {
            for process in [self.args.server_pid, self.args.beside_pid].into_iter().flatten() {
                if !Process::new(process).idle().await {
                    report::progress("a server is still busy: the figures include that");
                }
            }
        }
        let way_in = if self.args.ingest { Way::Ingest } else { Way::Unary };
        let (way_in, server) = match (way, &self.beside) {
            (Way::Beside, Some(beside)) => (way_in, beside),
            _ => (way, self.server),
        };
        let round = Arc::new(Round { recorder: Recorder::new(), stop: AtomicBool::new(false) });
        let mut tasks = JoinSet::new();
        match (way_in, &self.direct) {
            (Way::Unary, _) => unary::spawn(&mut tasks, server, clients, &round)?,
            (Way::Ingest, _) => {
                let streams = self.args.streams.map_or(clients.div_ceil(64).min(4), usize::from);
                ingest::spawn(&mut tasks, server, clients, streams.min(clients), &round)?;
            }
            (Way::Direct, Some(direct)) => direct.spawn(&mut tasks, clients, &round),
            (Way::Direct, None) | (Way::Beside, _) => {}
        }
        tokio::time::sleep(Duration::from_secs_f64(self.args.warmup)).await;
        let watched = match way {
            Way::Direct => None,
            Way::Beside => self.args.beside_pid,
            Way::Unary | Way::Ingest => self.args.server_pid,
        };
        let watched = watched.map(Process::new);
        let server_cpu = watched.and_then(Process::cpu_seconds);
        let bench_cpu = Process::this().cpu_seconds();
        round.recorder.begin();
        tokio::time::sleep(Duration::from_secs_f64(self.args.seconds)).await;
        let mut measured = round.recorder.end();
        let used = |before: Option<f64>, process: Option<Process>| {
            let seconds = process.and_then(Process::cpu_seconds)? - before?;
            Some(seconds * 1e6 / measured.count().max(1) as f64)
        };
        let server_cpu = used(server_cpu, watched);
        let bench_cpu = used(bench_cpu, Some(Process::this()));
        round.stop.store(true, Ordering::SeqCst);
        let ended = tokio::time::timeout(PATIENCE, async {
            while let Some(ended) = tasks.join_next().await {
                if let Err(error) = ended {
                    round.recorder.failed(0, format!("a client broke: {error}"));
                }
            }
        });
        if ended.await.is_err() {
            round.recorder.failed(0, format!("{} clients never ended", tasks.len()));
            tasks.abort_all();
        }
        round.recorder.add_late_errors(&mut measured);
        Ok(self.outcome(way, clients, number, measured, (server_cpu, bench_cpu)))
    }

    fn outcome(
        &mut self,
        way: Way,
        clients: usize,
        number: u16,
        measured: Measured,
        (server_cpu, bench_cpu): (Option<f64>, Option<f64>),
    ) -> Outcome {
        let latency = measured.latency();
        report::progress(&format!(
            "{clients} clients, {way}, round {number}: {rate} changes/s, p50 {p50} ms, p99 {p99} ms, \
             {errors} errors",
            way = way.name(),
            rate = report::whole(measured.per_second()),
            p50 = report::ms(latency.p50_ms),
            p99 = report::ms(latency.p99_ms),
            errors = measured.errors,
        ));
        self.messages
            .extend(measured.messages.iter().map(|message| format!("{}: {message}", way.name())));
        self.messages.dedup();
        self.messages.truncate(32);
        Outcome {
            changes_per_second: measured.per_second(),
            changes: measured.count(),
            measured_seconds: measured.seconds,
            latency,
            errors: measured.errors,
            server_cpu_us_per_change: server_cpu,
            bench_cpu_us_per_change: bench_cpu,
        }
    }
}

fn report(args: &Args, compared: &[Comparison], messages: Vec<String>) -> Report {
    let mut table = report::table(&[
        "clients",
        "way",
        "changes/s",
        "range",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "max ms",
        "errors",
        "server CPU us/change",
        "bench CPU us/change",
        "server/direct",
        "p50 ratio",
        "server/beside",
        "p50 ratio",
    ]);
    let optional = |value: Option<f64>, show: fn(f64) -> String| value.map_or(String::new(), show);
    for comparison in compared {
        for summary in comparison.summaries() {
            let rates = || summary.rounds.iter().map(|round| round.changes_per_second);
            let ratios = matches!(summary.way, Way::Unary | Way::Ingest);
            let times = |ratio: Option<f64>| {
                optional(ratio.filter(|_| ratios), |ratio| format!("{ratio:.2}x"))
            };
            table.add_row([
                comparison.clients.to_string(),
                summary.way.name().to_owned(),
                report::whole(summary.changes_per_second),
                format!(
                    "{}-{}",
                    report::whole(rates().fold(f64::INFINITY, f64::min)),
                    report::whole(rates().fold(0.0, f64::max))
                ),
                report::ms(summary.latency.p50_ms),
                report::ms(summary.latency.p90_ms),
                report::ms(summary.latency.p99_ms),
                report::ms(summary.latency.max_ms),
                summary.errors.to_string(),
                optional(summary.server_cpu_us_per_change, report::whole),
                optional(summary.bench_cpu_us_per_change, report::whole),
                times(comparison.throughput_ratio),
                times(comparison.p50_ratio),
                times(comparison.beside_throughput_ratio),
                times(comparison.beside_p50_ratio),
            ]);
        }
    }
    let summaries = compared.iter().flat_map(Comparison::summaries);
    Report {
        json: json!({
            "workload": "track",
            "settings": {
                "mode": if args.ingest { "ingest" } else { "unary" },
                "clients": args.clients,
                "seconds": args.seconds,
                "warmup_seconds": args.warmup,
                "rounds": args.rounds,
                "steps_per_execution": script::STEPS,
                "payload_bytes": script::PAYLOAD_BYTES,
                "direct": args.direct.is_some(),
                "beside": args.beside.is_some(),
            },
            "results": compared,
        }),
        tables: vec![table],
        notes: vec![format!(
            "{} round(s) of {} s each after {} s of warm-up; medians",
            args.rounds, args.seconds, args.warmup
        )],
        errors: summaries.map(|summary| summary.errors).sum(),
        messages,
    }
}
