//! Workload `lists`: pages of executions out of small and large sets, through the server and, for comparison,
//! straight through the driver.

mod data;
mod direct;
mod questions;
mod report;
mod served;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::task::JoinSet;

use super::connect::Server;
use super::dice::Dice;
use super::machine::Process;
use super::measure::{Measured, Recorder};
use super::report::{Report, ms, progress, whole};
use data::{Runs, SIZES};
use direct::Direct;
use questions::{Kind, Question};
use report::{Outcome, Result, Summary};
use served::Served;

/// A rest between two rounds, so that one does not pay for what the other left behind.
const REST: Duration = Duration::from_millis(500);
/// How long a client may take to end after a round before it counts as an error.
const PATIENCE: Duration = Duration::from_secs(30);
/// A client that was refused waits, so that a broken server is not flooded.
const AFTER_ERROR: Duration = Duration::from_millis(50);

/// Lists executions out of small and large sets, as fast as the server answers.
///
/// The executions of the first size are stored and their lists are measured, then those up to the next size, and so
/// on. They look like a year of real use: 200 apps and 10,000 users of which the first ones are the busiest, 5 of
/// 100 failed, half took less than 20 s. They are deleted in the end.
///
/// Use a database for it: other executions of it are counted in some of the lists.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = MEANING)]
pub struct Args {
    /// How many executions there are; several numbers are measured one after the other, the smallest first. Each
    /// is one of 2000, 20000, 100000, 1000000, 10000000.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "20000",
          value_parser = size)]
    executions: Vec<u64>,
    /// How many lists are asked for at the same time.
    #[arg(long, value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: u16,
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
    /// How long nothing is done after executions were stored. With --server-pid it takes longer if need be, until
    /// the server has nothing left to do.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = super::seconds)]
    settle: f64,
    /// Ask the MongoDB driver for the same lists too, in alternating rounds, and print the ratio. Give the
    /// server's own database: the executions are stored through the driver as well.
    #[arg(long, value_name = "URI", env = "STEPWELL_BENCH_DIRECT", hide_env_values = true)]
    direct: Option<String>,
    /// Name of the server's database.
    #[arg(long, value_name = "NAME", default_value = "ai_apps", requires = "direct")]
    direct_database: String,
    /// Leave the executions where they are, for a run with --reuse.
    #[arg(long)]
    keep: bool,
    /// Take what a run with --keep left, and store only what is missing.
    #[arg(long)]
    reuse: bool,
    /// Process of the server, on this machine, to report its processor time.
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
}

const MEANING: &str = "\
What is asked for, 50 executions at most, the newest first:
  user + status     completed ones of one of the 20 busiest users
  failed, last 24 h failed ones of the last day of the year
  app in a window   ones of one of the 5 busiest apps, in 60 days somewhere in the year

What the numbers mean:
  lists/s         answered lists in the measured time, divided by it; the median of the rounds
  range           the lowest and the highest round
  p50 p99         from asking to having the whole page, in milliseconds: half and 99 of 100 were at least as
                  quick; medians of the rounds. At full load this is mostly waiting for a turn
  records         executions in a page, on average. Small sets do not fill every page
  errors          lists that were refused, also outside the measured time. Any makes the exit code 1
  server CPU us   processor time of the server (with --server-pid) for a list
  server/direct   lists/s through the server divided by lists/s straight through the driver
  to smallest     p50 divided by that of the smallest set: 1 means that size does not matter

What --direct compares with: find with the same conditions, sort by started_at, limit 50, every document decoded, on
the same collection and indexes, a pool of 64 connections. The driver has no server to share the cores with.";

fn size(given: &str) -> std::result::Result<u64, String> {
    let size = given.parse().map_err(|_| "not a number".to_owned())?;
    let sizes = SIZES.map(|size| size.to_string()).join(", ");
    SIZES.contains(&size).then_some(size).ok_or_else(|| format!("must be one of {sizes}"))
}

/// Whoever answers.
#[async_trait]
trait Asked: Send + Sync {
    fn name(&self) -> &'static str;

    /// How many executions the page has. `client` is one of those that ask at the same time.
    async fn ask(&self, client: usize, question: &Question) -> std::result::Result<usize, String>;
}

struct Bench<'a> {
    args: &'a Args,
    /// From the smallest to the largest.
    sizes: Vec<u64>,
    runs: Arc<Runs>,
    served: Arc<Served>,
    direct: Option<Arc<Direct>>,
    messages: Vec<String>,
}

pub async fn run(server: &Server, args: &Args) -> anyhow::Result<Report> {
    let mut sizes = args.executions.clone();
    sizes.sort_unstable();
    sizes.dedup();
    let direct = match &args.direct {
        None => None,
        Some(uri) => Some(Arc::new(Direct::open(uri, &args.direct_database).await?)),
    };
    let served = Arc::new(Served::new(server, usize::from(args.clients))?);
    let runs = Arc::new(Runs::new());
    let mut bench = Bench { args, sizes, runs, served, direct, messages: Vec::new() };
    bench.check().await?;
    let measured = tokio::select! {
        measured = bench.measure() => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if !args.keep {
        bench.remove().await?;
    }
    Ok(report::report(args, &measured?, bench.messages))
}

impl Bench<'_> {
    /// The numbers of each step of the sizes, from the one to before the other.
    fn steps() -> impl Iterator<Item = (u64, u64)> {
        SIZES.into_iter().scan(0, |begin, end| Some((std::mem::replace(begin, end), end)))
    }

    fn largest(&self) -> u64 {
        self.sizes.last().copied().unwrap_or_default()
    }

    /// Refuses to mix with what is there.
    async fn check(&self) -> anyhow::Result<()> {
        let allowed =
            if self.args.reuse { self.sizes.first().copied().unwrap_or_default() } else { 0 };
        for (begin, _) in Self::steps().filter(|(begin, _)| *begin >= allowed) {
            anyhow::ensure!(
                !self.served.has(begin).await?,
                "the server has more than {allowed} executions of an earlier run: ask for more of them, with --reuse"
            );
        }
        Ok(())
    }

    async fn measure(&mut self) -> anyhow::Result<Vec<Result>> {
        let mut results = Vec::new();
        for size in self.sizes.clone() {
            self.fill(size).await?;
            for kind in Kind::ALL {
                let (mut server, mut direct) = (Vec::new(), Vec::new());
                for number in 1..=self.args.rounds {
                    let served: Arc<dyn Asked> = Arc::<Served>::clone(&self.served);
                    server.push(self.round(served, size, kind, number).await);
                    if let Some(asked) = self.direct.clone() {
                        direct.push(self.round(asked, size, kind, number).await);
                    }
                }
                let direct = (!direct.is_empty()).then(|| Summary::of("direct", direct));
                results.push(Result::new(size, kind, Summary::of("server", server), direct));
            }
        }
        report::compare_sizes(&mut results);
        Ok(results)
    }

    /// Stores what is missing of the first `size` executions. The last one of a step is stored after all others of
    /// it: where it is, all are.
    async fn fill(&self, size: u64) -> anyhow::Result<()> {
        let mut stored = false;
        for (begin, end) in Self::steps().filter(|(_, end)| *end <= size) {
            if self.served.has(end - 1).await? {
                continue;
            }
            let began = Instant::now();
            let said = |number: u64| {
                if number.is_multiple_of((end / 20).max(1000)) {
                    progress(&format!(
                        "{} of {} executions",
                        whole(number as f64),
                        whole(end as f64)
                    ));
                }
            };
            for numbers in [begin..end - 1, end - 1..end] {
                match &self.direct {
                    Some(direct) => direct.fill(&self.runs, numbers, said).await?,
                    None => self.served.fill(&self.runs, numbers, said).await?,
                }
            }
            anyhow::ensure!(
                self.served.has(end - 1).await?,
                "the server does not see what is stored straight: is --direct-database the server's?"
            );
            let seconds = began.elapsed().as_secs_f64();
            progress(&format!("{} executions stored, {seconds:.0} s", whole((end - begin) as f64)));
            stored = true;
        }
        if stored {
            self.settle().await;
        }
        Ok(())
    }

    /// Waits until the server has done what there was to do after executions were stored.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs_f64(self.args.settle)).await;
        let Some(server) = self.args.server_pid.map(Process::new) else { return };
        if !server.idle().await {
            progress("the server is still busy with something else: the figures include it");
        }
    }

    async fn round(
        &mut self,
        asked: Arc<dyn Asked>,
        size: u64,
        kind: Kind,
        number: u16,
    ) -> Outcome {
        tokio::time::sleep(REST).await;
        let recorder = Arc::new(Recorder::new());
        let over = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for client in 0..usize::from(self.args.clients) {
            let (asked, recorder, over) =
                (Arc::clone(&asked), Arc::clone(&recorder), Arc::clone(&over));
            // The same questions in the same order, whoever is asked.
            let mut dice = Dice::new((client as u64) << 32 | u64::from(number));
            clients.spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let question = Question::new(kind, &mut dice);
                    let began = Instant::now();
                    match asked.ask(client, &question).await {
                        Ok(records) => recorder.done(client, began.elapsed(), records),
                        Err(message) => {
                            recorder.failed(client, message);
                            tokio::time::sleep(AFTER_ERROR).await;
                        }
                    }
                }
            });
        }
        tokio::time::sleep(Duration::from_secs_f64(self.args.warmup)).await;
        let through_server = asked.name() == self.served.name();
        let server = self.args.server_pid.filter(|_| through_server).map(Process::new);
        let cpu = server.and_then(Process::cpu_seconds);
        recorder.begin();
        tokio::time::sleep(Duration::from_secs_f64(self.args.seconds)).await;
        let mut measured = recorder.end();
        let cpu =
            server.and_then(Process::cpu_seconds).zip(cpu).map(|(after, before)| after - before);
        over.store(true, Ordering::SeqCst);
        let ended = tokio::time::timeout(PATIENCE, async {
            while let Some(ended) = clients.join_next().await {
                if let Err(error) = ended {
                    recorder.failed(0, format!("a client broke: {error}"));
                }
            }
        });
        if ended.await.is_err() {
            recorder.failed(0, format!("{} clients never ended", clients.len()));
            clients.abort_all();
        }
        recorder.add_late_errors(&mut measured);
        self.outcome(asked.name(), size, kind, number, &measured, cpu)
    }

    fn outcome(
        &mut self,
        way: &'static str,
        size: u64,
        kind: Kind,
        number: u16,
        measured: &Measured,
        cpu: Option<f64>,
    ) -> Outcome {
        let latency = measured.latency();
        progress(&format!(
            "{}, {} executions, {way}, round {number}: {} lists/s, p50 {} ms, p99 {} ms, {} errors",
            kind.name(),
            whole(size as f64),
            whole(measured.per_second()),
            ms(latency.p50_ms),
            ms(latency.p99_ms),
            measured.errors,
        ));
        self.messages.extend(measured.messages.iter().map(|message| format!("{way}: {message}")));
        self.messages.dedup();
        self.messages.truncate(32);
        let lists = measured.count().max(1) as f64;
        Outcome {
            lists_per_second: measured.per_second(),
            lists: measured.count(),
            records_per_list: measured.bytes as f64 / lists,
            measured_seconds: measured.seconds,
            latency,
            server_cpu_us_per_list: cpu.map(|seconds| seconds * 1e6 / lists),
            errors: measured.errors,
        }
    }

    async fn remove(&self) -> anyhow::Result<()> {
        progress("deleting the executions");
        match &self.direct {
            Some(direct) => direct.remove().await,
            None => self.served.remove(0..self.largest()).await,
        }
    }
}
