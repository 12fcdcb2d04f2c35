//! Workload `artifacts`: uploads and downloads through the server and, for comparison, the same bytes straight to a
//! storage.

mod direct;
mod pieces;
mod place;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;

use super::connect::Server;
use super::machine::Process;
use super::measure::median;
use super::report::{self, Report};
use super::watch::sampler::Sampler;
use pieces::Source;
use place::{Place, Served};
use stepwell::clock::{Clock as _, SystemClock};

/// A rest between two rounds, so that one does not pay for what the other left behind.
const REST: Duration = Duration::from_millis(500);
const MIB: u64 = 1024 * 1024;
/// Error messages that are kept; all errors are counted.
const MESSAGES: usize = 32;

/// Uploads artifacts and downloads them again as fast as the server lets it.
///
/// A round uploads artifacts that are all different, downloads them, and deletes them, which is not measured. With
/// one of the --direct options the same is done straight with a storage, in alternating rounds. The execution of the
/// artifacts is deleted afterwards.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = MEANING)]
pub struct Args {
    /// Size of an artifact, in MiB.
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=40 * 1024))]
    mib: u32,
    /// Transfers side by side, each of an artifact of its own.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=256))]
    at_once: u16,
    /// Rounds of each kind; the medians are reported.
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Process of the server, on this machine, to report its memory and its processor time.
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    #[command(flatten)]
    direct: Direct,
    #[command(flatten)]
    s3: direct::S3Options,
}

#[derive(Debug, Clone, clap::Args)]
#[group(multiple = false)]
struct Direct {
    /// Measure GridFS of the MongoDB driver too. A database of its own is made for it and dropped afterwards; give
    /// the server's replica set.
    #[arg(long, value_name = "URI", env = "STEPWELL_BENCH_DIRECT_MONGODB", hide_env_values = true)]
    direct_mongodb: Option<String>,
    /// Measure plain files too. A folder of its own is made for them in this one and removed afterwards; give one on
    /// the disk of the server's files.
    #[arg(long, value_name = "DIR")]
    direct_dir: Option<PathBuf>,
    /// Measure objects of an S3 bucket too, under keys of their own that are deleted afterwards. Credentials come
    /// from the usual environment.
    #[arg(long, value_name = "s3://BUCKET/PREFIX")]
    direct_s3: Option<String>,
}

impl Direct {
    /// Leaves nothing anywhere until something is written.
    async fn place(&self, s3: &direct::S3Options) -> anyhow::Result<Option<Arc<dyn Place>>> {
        Ok(if let Some(uri) = &self.direct_mongodb {
            Some(Arc::new(direct::GridFs::new(uri).await?))
        } else if let Some(directory) = &self.direct_dir {
            Some(Arc::new(direct::Folder::new(directory)))
        } else if let Some(url) = &self.direct_s3 {
            Some(Arc::new(direct::S3::new(url, s3)?))
        } else {
            None
        })
    }
}

const MEANING: &str = "\
What the numbers mean:
  MB/s             bytes of all artifacts of a round, in millions, divided by the time from the first byte sent to
                   the moment when all are stored (up), or have been read to the end (down); the median of the rounds
  range            the slowest and the fastest round
  server/direct    MB/s through the server divided by MB/s straight to the storage
  memory           highest resident set of the server (with --server-pid) that was seen, looked at five times a
                   second, and how much that is above the one before the first transfer
  CPU s/GB         processor time of the server (with --server-pid) and of this load generator, which makes the bytes
                   in every case, for a thousand million bytes. It is counted in hundredths of a second: of small
                   artifacts it says little
  errors           transfers that failed or had another length. Any makes the exit code 1

Artifacts are read right after they were written: what a machine keeps in memory of its disk is measured as such. The
server computes the SHA-256 of what it takes and of what it gives; nothing does that for the direct way.

What --direct-mongodb compares with: upload and download streams of the driver's GridFS, chunks of 1 MiB, write
concern majority with journal. --direct-dir: pieces of 1 MiB, the file and its folder made durable, a rename at the
end. --direct-s3: multipart uploads in parts of 5 MiB, two of them under way.";

/// The transfers of one round in one direction.
#[derive(Debug, Clone, Serialize)]
struct Transfers {
    megabytes_per_second: f64,
    bytes: u64,
    seconds: f64,
    server_memory_peak_bytes: Option<u64>,
    server_cpu_seconds_per_gigabyte: Option<f64>,
    bench_cpu_seconds_per_gigabyte: Option<f64>,
    errors: u64,
}

/// One round's figures.
#[derive(Debug, Clone, Serialize)]
struct Outcome {
    up: Transfers,
    down: Transfers,
}

/// The rounds of one way in one direction.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Summary {
    megabytes_per_second: f64,
    slowest_megabytes_per_second: f64,
    fastest_megabytes_per_second: f64,
    server_memory_peak_bytes: Option<u64>,
    server_memory_growth_bytes: Option<i64>,
    server_cpu_seconds_per_gigabyte: Option<f64>,
    bench_cpu_seconds_per_gigabyte: Option<f64>,
    errors: u64,
}

impl Summary {
    fn of(rounds: &[&Transfers], memory_before: Option<u64>) -> Self {
        let rates = || rounds.iter().map(|round| round.megabytes_per_second);
        let known = |pick: fn(&Transfers) -> Option<f64>| {
            let known: Option<Vec<f64>> = rounds.iter().map(|round| pick(round)).collect();
            known.filter(|known| !known.is_empty()).map(|known| median(known.into_iter()))
        };
        let peak = rounds.iter().filter_map(|round| round.server_memory_peak_bytes).max();
        Summary {
            megabytes_per_second: median(rates()),
            slowest_megabytes_per_second: rates().reduce(f64::min).unwrap_or_default(),
            fastest_megabytes_per_second: rates().fold(0.0, f64::max),
            server_memory_peak_bytes: peak,
            server_memory_growth_bytes: peak
                .zip(memory_before)
                .and_then(|(peak, before)| peak.cast_signed().checked_sub_unsigned(before)),
            server_cpu_seconds_per_gigabyte: known(|round| round.server_cpu_seconds_per_gigabyte),
            bench_cpu_seconds_per_gigabyte: known(|round| round.bench_cpu_seconds_per_gigabyte),
            errors: rounds.iter().map(|round| round.errors).sum(),
        }
    }
}

/// All rounds of one way.
#[derive(Debug, Serialize)]
struct Way {
    way: &'static str,
    up: Summary,
    down: Summary,
    rounds: Vec<Outcome>,
}

impl Way {
    fn of(way: &'static str, rounds: Vec<Outcome>, memory_before: Option<u64>) -> Self {
        let of = |pick: fn(&Outcome) -> &Transfers| {
            Summary::of(&rounds.iter().map(pick).collect::<Vec<_>>(), memory_before)
        };
        Way { way, up: of(|round| &round.up), down: of(|round| &round.down), rounds }
    }
}

/// Server divided by direct: above 1 the server is faster.
fn ratio(server: &Summary, direct: Option<&Summary>) -> Option<f64> {
    let direct = direct.map(|direct| direct.megabytes_per_second);
    direct.filter(|direct| *direct > 0.0).map(|direct| server.megabytes_per_second / direct)
}

struct Bench<'a> {
    args: &'a Args,
    size: u64,
    source: Source,
    server: Arc<dyn Place>,
    direct: Option<Arc<dyn Place>>,
    sampler: Sampler,
    /// Of the server, before anything was sent.
    memory_before: Option<u64>,
    /// Number of the next artifact.
    next: u32,
    /// Artifacts that could not be deleted.
    left_behind: u64,
    messages: Vec<String>,
}

pub async fn run(server: &Server, args: &Args) -> anyhow::Result<Report> {
    let sampler = Sampler::start(args.server_pid, None).await?;
    let memory_before = sampler.now().await.memory_bytes;
    anyhow::ensure!(
        args.server_pid.is_none() || memory_before.is_some(),
        "--server-pid: there is no such process on this machine"
    );
    let direct = args.direct.place(&args.s3).await?;
    let server = Arc::new(Served::create(server, usize::from(args.at_once)).await?);
    let mut bench = Bench {
        args,
        size: u64::from(args.mib) * MIB,
        source: Source::new(SystemClock.now().micros.cast_unsigned()),
        server,
        direct,
        sampler,
        memory_before,
        next: 0,
        left_behind: 0,
        messages: Vec::new(),
    };
    let measured = tokio::select! {
        measured = bench.measure() => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    let deleted = bench.server.close().await;
    let removed = match &bench.direct {
        Some(direct) => direct.close().await,
        None => Ok(()),
    };
    let report = measured?;
    deleted?;
    removed?;
    Ok(report)
}

impl Bench<'_> {
    async fn measure(&mut self) -> anyhow::Result<Report> {
        let places = [Some(Arc::clone(&self.server)), self.direct.clone()];
        // Connections are opened, and whatever a storage has to prepare is there, before anything is measured.
        for place in places.iter().flatten() {
            let outcome = self.round(place, self.size.min(MIB)).await?;
            if outcome.up.errors + outcome.down.errors > 0 {
                let why = self.messages.first().cloned().unwrap_or_default();
                anyhow::bail!("no artifact can be stored and read: {why}");
            }
        }
        let mut rounds = [Vec::new(), Vec::new()];
        for number in 1..=self.args.rounds {
            for (place, rounds) in places.iter().zip(&mut rounds) {
                let Some(place) = place else { continue };
                tokio::time::sleep(REST).await;
                let outcome = self.round(place, self.size).await?;
                report::progress(&format!(
                    "{}, round {number}: {:.1} MB/s up, {:.1} MB/s down, {} errors",
                    place.name(),
                    outcome.up.megabytes_per_second,
                    outcome.down.megabytes_per_second,
                    outcome.up.errors + outcome.down.errors
                ));
                rounds.push(outcome);
            }
        }
        let [server, direct] = rounds;
        let server = Way::of(self.server.name(), server, self.memory_before);
        let direct = self.direct.as_ref().map(|place| Way::of(place.name(), direct, None));
        Ok(self.report(&server, direct.as_ref()))
    }

    /// Uploads, downloads and deletes.
    async fn round(&mut self, place: &Arc<dyn Place>, size: u64) -> anyhow::Result<Outcome> {
        let mut writes = JoinSet::new();
        let began = self.begin(place);
        for slot in 0..usize::from(self.args.at_once) {
            let pieces = self.source.pieces(self.next, size);
            self.next += 1;
            let place = Arc::clone(place);
            writes.spawn(async move { (slot, place.write(slot, pieces).await) });
        }
        let mut stored = Vec::new();
        let mut errors = 0;
        while let Some(written) = writes.join_next().await {
            match written.context("a transfer broke")? {
                (slot, Ok(key)) => stored.push((slot, key)),
                (_, Err(error)) => errors += self.failed(place, "up", &error),
            }
        }
        let up = self.end(&began, size * stored.len() as u64, errors).await;

        let mut reads = JoinSet::new();
        let began = self.begin(place);
        for (slot, key) in stored.clone() {
            let place = Arc::clone(place);
            reads.spawn(async move { place.read(slot, &key).await });
        }
        let (mut bytes, mut errors) = (0, 0);
        while let Some(read) = reads.join_next().await {
            match read.context("a transfer broke")? {
                Ok(read) if read == size => bytes += read,
                Ok(read) => {
                    let error = anyhow::anyhow!("{read} of {size} bytes came back");
                    errors += self.failed(place, "down", &error);
                }
                Err(error) => errors += self.failed(place, "down", &error),
            }
        }
        let down = self.end(&began, bytes, errors).await;

        for (_, key) in stored {
            if let Err(error) = place.remove(&key).await {
                self.left_behind += self.failed(place, "delete", &error);
            }
        }
        Ok(Outcome { up, down })
    }

    /// Keeps the message of an error, and counts it.
    fn failed(&mut self, place: &Arc<dyn Place>, what: &str, error: &anyhow::Error) -> u64 {
        let message = format!("{}, {what}: {error:#}", place.name());
        if self.messages.len() < MESSAGES && !self.messages.contains(&message) {
            self.messages.push(message);
        }
        1
    }

    fn begin(&self, place: &Arc<dyn Place>) -> Began {
        let is_server = Arc::ptr_eq(place, &self.server);
        self.sampler.take_peaks();
        Began {
            is_server,
            server_cpu: self.sampler.cpu_seconds().filter(|_| is_server),
            bench_cpu: Process::this().cpu_seconds(),
            at: Instant::now(),
        }
    }

    async fn end(&self, began: &Began, bytes: u64, errors: u64) -> Transfers {
        let seconds = began.at.elapsed().as_secs_f64();
        let per_gigabyte = |before: Option<f64>, after: Option<f64>| {
            let used = after? - before?;
            (bytes > 0).then(|| used * 1e9 / bytes as f64)
        };
        let server_cpu = per_gigabyte(began.server_cpu, self.sampler.cpu_seconds());
        let bench_cpu = per_gigabyte(began.bench_cpu, Process::this().cpu_seconds());
        // Short transfers end between two looks.
        let memory = self.sampler.take_peaks().memory_bytes;
        let memory = memory.max(self.sampler.now().await.memory_bytes);
        Transfers {
            megabytes_per_second: bytes as f64 / seconds.max(f64::EPSILON) / 1e6,
            bytes,
            seconds,
            server_memory_peak_bytes: memory.filter(|_| began.is_server),
            server_cpu_seconds_per_gigabyte: server_cpu,
            bench_cpu_seconds_per_gigabyte: bench_cpu,
            errors,
        }
    }

    fn report(&mut self, server: &Way, direct: Option<&Way>) -> Report {
        let mut table = report::table(&[
            "direction",
            "way",
            "MB/s",
            "range",
            "server/direct",
            "server memory MiB",
            "growth MiB",
            "server CPU s/GB",
            "bench CPU s/GB",
            "errors",
        ]);
        let optional =
            |value: Option<f64>, show: fn(f64) -> String| value.map_or(String::new(), show);
        let (up_ratio, down_ratio) = (
            ratio(&server.up, direct.map(|direct| &direct.up)),
            ratio(&server.down, direct.map(|direct| &direct.down)),
        );
        let rows = [
            ("up", server.way, Some(&server.up), up_ratio),
            ("up", direct.map_or("", |way| way.way), direct.map(|way| &way.up), None),
            ("down", server.way, Some(&server.down), down_ratio),
            ("down", direct.map_or("", |way| way.way), direct.map(|way| &way.down), None),
        ];
        for (direction, way, summary, ratio) in rows {
            let Some(summary) = summary else { continue };
            table.add_row([
                direction.to_owned(),
                way.to_owned(),
                format!("{:.1}", summary.megabytes_per_second),
                format!(
                    "{:.1}-{:.1}",
                    summary.slowest_megabytes_per_second, summary.fastest_megabytes_per_second
                ),
                optional(ratio, |ratio| format!("{ratio:.2}x")),
                optional(summary.server_memory_peak_bytes.map(|bytes| bytes as f64), report::mib),
                optional(summary.server_memory_growth_bytes.map(|bytes| bytes as f64), report::mib),
                optional(summary.server_cpu_seconds_per_gigabyte, report::ms),
                optional(summary.bench_cpu_seconds_per_gigabyte, report::ms),
                summary.errors.to_string(),
            ]);
        }
        let mut notes = vec![format!(
            "{} artifact(s) of {} MiB at once; {} round(s); medians",
            self.args.at_once, self.args.mib, self.args.rounds
        )];
        if let Some(before) = self.memory_before {
            let before = report::mib(before as f64);
            notes.push(format!("memory of the server before the first transfer: {before} MiB"));
        }
        let errors = [Some(server), direct].into_iter().flatten();
        let errors: u64 = errors.map(|way| way.up.errors + way.down.errors).sum();
        Report {
            json: json!({
                "workload": "artifacts",
                "settings": {
                    "artifact_bytes": self.size,
                    "at_once": self.args.at_once,
                    "rounds": self.args.rounds,
                    "direct": direct.map(|direct| direct.way),
                },
                "server_memory_before_bytes": self.memory_before,
                "server": server,
                "direct": direct,
                "up_ratio": up_ratio,
                "down_ratio": down_ratio,
                "left_behind": self.left_behind,
            }),
            tables: vec![table],
            notes,
            errors: errors + self.left_behind,
            messages: std::mem::take(&mut self.messages),
        }
    }
}

/// How things were when transfers began.
struct Began {
    is_server: bool,
    server_cpu: Option<f64>,
    bench_cpu: Option<f64>,
    at: Instant,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn parsed(args: &[&str]) -> Result<Args, clap::Error> {
        let all = std::iter::once(&"artifacts").chain(args);
        Command::try_parse_from(all).map(|command| command.args)
    }

    #[test]
    fn there_is_at_most_one_direct_way() {
        let direct = parsed(&["--direct-dir", "/tmp/x", "--mib", "1024"]).unwrap();
        assert_eq!(direct.direct.direct_dir, Some(PathBuf::from("/tmp/x")));
        assert_eq!(direct.mib, 1024);
        assert!(parsed(&[]).is_ok());
        let ways = [["--direct-dir", "/tmp/x"], ["--direct-mongodb", "m"], ["--direct-s3", "s"]];
        for (one, other) in [(0, 1), (0, 2), (1, 2)] {
            assert!(parsed(&[ways[one], ways[other]].concat()).is_err());
        }
    }

    #[test]
    fn sizes_and_numbers_have_their_limits() {
        for bad in [
            ["--mib", "0"],
            ["--mib", "40961"],
            ["--at-once", "0"],
            ["--at-once", "257"],
            ["--rounds", "0"],
        ] {
            assert!(parsed(&bad).is_err(), "{bad:?}");
        }
    }

    fn transfers(rate: f64, memory: Option<u64>, cpu: Option<f64>) -> Transfers {
        Transfers {
            megabytes_per_second: rate,
            bytes: 1,
            seconds: 1.0,
            server_memory_peak_bytes: memory,
            server_cpu_seconds_per_gigabyte: cpu,
            bench_cpu_seconds_per_gigabyte: Some(1.0),
            errors: 1,
        }
    }

    #[test]
    fn rounds_are_summed_up() {
        let rounds = [
            transfers(30.0, Some(50), Some(2.0)),
            transfers(10.0, Some(90), Some(4.0)),
            transfers(20.0, None, Some(3.0)),
        ];
        let summary = Summary::of(&rounds.each_ref(), Some(40));
        let expected = Summary {
            megabytes_per_second: 20.0,
            slowest_megabytes_per_second: 10.0,
            fastest_megabytes_per_second: 30.0,
            server_memory_peak_bytes: Some(90),
            server_memory_growth_bytes: Some(50),
            server_cpu_seconds_per_gigabyte: Some(3.0),
            bench_cpu_seconds_per_gigabyte: Some(1.0),
            errors: 3,
        };
        assert_eq!(summary, expected);
        let direct = Summary::of(&[&transfers(40.0, None, None)], None);
        assert_eq!(direct.server_memory_growth_bytes, None);
        assert_eq!(direct.server_cpu_seconds_per_gigabyte, None);
        assert_eq!(ratio(&summary, Some(&direct)), Some(0.5));
        assert_eq!(ratio(&summary, None), None);
        assert_eq!(ratio(&summary, Some(&Summary::of(&[], None))), None);
    }
}
