//! Workload `watch`: one writer, many watchers of what it writes.

mod codec;
mod fleet;
mod resume;
mod rounds;
pub mod sampler;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::connect::Server;
use super::report::Report;
use fleet::Target;
use sampler::{Peaks, Sampler};
use writer::{Acknowledgements, Busy, Pace};

/// How long watchers may take to open, to leave or to catch up.
const PATIENCE: Duration = Duration::from_secs(180);

/// Fans the changes of one busy execution out to many watchers.
///
/// A writer reports progress on the running steps of one execution over an Ingest stream; every watcher gets every
/// change. The execution is deleted afterwards.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = MEANING)]
pub struct Args {
    /// Watchers that read what they get.
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    watchers: u32,
    /// Watch all executions of the load generator (WatchExecutions with a filter) instead of the one.
    #[arg(long)]
    all_executions: bool,
    /// Changes a second that the writer makes; 0: as many as are acknowledged.
    #[arg(long, value_name = "N", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    rate: u32,
    /// Changes of the writer that may be unacknowledged. With a rate it only matters when the server is slower.
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u16).range(1..=4096))]
    outstanding: u16,
    /// Running steps that the writer reports on in turn. Changes of one step that wait together are stored as one.
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    steps: u16,
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
    /// Streams on one connection.
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    per_connection: u16,
    /// Watchers that never read, opened in every other round: what they cost the writer and the server's memory.
    #[arg(long, value_name = "N", default_value_t = 0,
          value_parser = clap::value_parser!(u32).range(..=100_000))]
    stuck: u32,
    /// Let all watchers drop out, each with another token, write on without them, and resume all at once.
    #[arg(long, conflicts_with = "stuck")]
    resume: bool,
    /// With --resume: a shell command to run while no watcher is there, for instance one that restarts the server.
    #[arg(long, value_name = "COMMAND", requires = "resume")]
    between: Option<String>,
    /// Process of the server, on this machine, to report its memory and its processor time.
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// The server's MongoDB, to report the cursors open there (serverStatus metrics.cursor.open.total).
    #[arg(long, value_name = "URI", env = "STEPWELL_MONGODB_URI", hide_env_values = true)]
    mongodb_uri: Option<String>,
}

const MEANING: &str = "\
What the numbers mean:
  writes/s           changes that were acknowledged to the writer in the measured time, divided by it
  write p50 p99      from sending a change to its acknowledgement, in milliseconds
  deliveries/s       changes that arrived at watchers, all together, divided by the measured time
  delivered          deliveries divided by writes times watchers. Below 100 % changes of a step arrived as one, the
                     latest: watchers or machine were slower than the writer. Never a lost latest state
  latency            from the moment the writer read the acknowledgement to the moment a watcher read the change, in
                     milliseconds, over all deliveries. Those that came first (early) count as 0.001
  MB/s               bytes of the delivered events, in millions a second
  server memory      resident set of the server (with --server-pid) before the watchers, with them, and the
                     highest seen; growth divided by watchers
  open cursors       in the database (with --mongodb-uri) before the watchers and the highest seen
  CPU us/delivery    processor time of the server per delivery, its other work included
With --stuck, rounds alternate between free (without) and stuck (with the watchers that never read); the ratio is
the writer's rate with them divided by that without. Measure with --rate 0.
With --resume: how many different tokens the watchers left with, and the time from the start of the resume until
each had the newest state of every step. The way to the connection is part of it, and with --between no part of the
restart is: the resume starts when the server answers again.

Watchers look only at the fields that are measured and share connections, so that they take as little as possible
of the processor that the server may share with them. They do take some: the server alone would do better.";

/// What everything here needs.
struct Bench<'a> {
    server: &'a Server,
    args: &'a Args,
    target: Target,
    acknowledgements: Arc<Acknowledgements>,
    sampler: Sampler,
    /// Before any watcher.
    before: Peaks,
}

impl Bench<'_> {
    fn pace(&self) -> Pace {
        Pace { rate: f64::from(self.args.rate), outstanding: usize::from(self.args.outstanding) }
    }
}

/// The settings, for JSON.
#[derive(Debug, Serialize)]
struct Settings {
    watchers: u32,
    all_executions: bool,
    writer_rate_per_second: u32,
    writer_outstanding: u16,
    steps: u16,
    seconds: f64,
    warmup_seconds: f64,
    rounds: u16,
    streams_per_connection: u16,
    stuck_watchers: u32,
    resume: bool,
}

impl Args {
    fn settings(&self) -> Settings {
        Settings {
            watchers: self.watchers,
            all_executions: self.all_executions,
            writer_rate_per_second: self.rate,
            writer_outstanding: self.outstanding,
            steps: self.steps,
            seconds: self.seconds,
            warmup_seconds: self.warmup,
            rounds: self.rounds,
            streams_per_connection: self.per_connection,
            stuck_watchers: self.stuck,
            resume: self.resume,
        }
    }
}

pub async fn run(server: &Server, args: &Args) -> anyhow::Result<Report> {
    let sampler = Sampler::start(args.server_pid, args.mongodb_uri.as_deref()).await?;
    let busy = Busy::create(server, u32::from(args.steps)).await?;
    let bench = Bench {
        server,
        args,
        target: Target {
            busy,
            all_executions: args.all_executions,
            per_connection: usize::from(args.per_connection),
        },
        acknowledgements: Arc::new(Acknowledgements::new()),
        before: sampler.now().await,
        sampler,
    };
    let measured = tokio::select! {
        measured = async {
            if args.resume { resume::run(&bench).await } else { rounds::run(&bench).await }
        } => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    let deleted = bench.target.busy.delete().await;
    let report = measured?;
    deleted?;
    Ok(report)
}
