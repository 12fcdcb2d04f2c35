//! Workload `search`: texts are indexed and searched through the server and, for comparison, with a text index of
//! MongoDB.

mod direct;
mod texts;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::connect::Channel;
use anyhow::Context as _;
use futures::{StreamExt as _, stream};
use serde_json::json;
use tokio::task::JoinSet;
use tonic::Code;

use super::connect::Server;
use super::dice::Dice;
use super::measure::{Latency, Recorder, median};
use super::report::{self, Report, ms, progress, whole};
use direct::Direct;
use stepwell::clock::{Clock as _, SystemClock};
use stepwell::domain::{ExecutionStatus, StepStatus};
use stepwell::proto::execution_service_client::ExecutionServiceClient;
use stepwell::proto::ingest_request::Write;
use stepwell::proto::ingest_response::Result as Answer;
use stepwell::proto::ingest_service_client::IngestServiceClient;
use stepwell::proto::search_service_client::SearchServiceClient;
use stepwell::proto::{
    DeleteExecutionRequest, Execution, GetExecutionRequest, IngestRequest, SearchRequest, Step,
};
use stepwell::rpc::convert;
use texts::{Kind, Question, Texts};

/// Texts that are asked for.
const PAGE: i64 = 50;
/// Texts of an execution: outputs of its steps.
const STEPS: u64 = 100;
const PREFIX: &str = "bench-search-";
const SAID_EVERY: u64 = 50_000;
const REST: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest wait for the index.
const INDEXED: Duration = Duration::from_secs(3600);
/// Deletes side by side.
const SIDE_BY_SIDE: usize = 16;

/// Indexes texts and searches them.
///
/// Outputs of steps are stored, 100 for each execution, and searched once they are indexed. They have some sixty words
/// each, of 50,000 of which the n-th comes 1/n times as often as the first, and an identifier. The executions are
/// deleted in the end.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = MEANING)]
pub struct Args {
    /// How many texts there are.
    #[arg(long, value_name = "N", default_value_t = 100_000,
          value_parser = clap::value_parser!(u64).range(1000..=100_000_000))]
    texts: u64,
    /// How many searches go on at the same time.
    #[arg(long, value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: u16,
    /// How long each round is measured.
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0, value_parser = super::seconds)]
    seconds: f64,
    /// How long each round runs before it is measured.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5, value_parser = super::seconds)]
    warmup: f64,
    /// Rounds of each kind; the medians are reported.
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Store the same texts in a database of their own with a text index of MongoDB, search them there in alternating
    /// rounds, and print the ratio.
    #[arg(long, value_name = "URI", env = "STEPWELL_BENCH_DIRECT", hide_env_values = true)]
    direct: Option<String>,
    /// Leave the texts where they are, for a run with --reuse.
    #[arg(long)]
    keep: bool,
    /// Take what a run with --keep left.
    #[arg(long)]
    reuse: bool,
}

const MEANING: &str = "\
What is searched for, 50 texts at most:
  in one text              a word of one text alone
  rare word                one that is in 1 of 10,000 texts
  word in 1 of 100
  two words in 1 of 20     both have to be there
  word in 1 of 3
  phrase                   of four words, in 1 of 1000 texts
  identifier, other case   renderUserToken where the text has render_user_token, which is in 1 of 800
  prefix*                  all of a rare word but its last letter

What the numbers mean:
  searches/s      answered searches in the measured time, divided by it; the median of the rounds
  p50 p99         from asking to having the texts, in milliseconds; medians of the rounds
  hits            texts in an answer, on average
  errors          searches that were refused, also outside the measured time. Any makes the exit code 1
  server/direct   searches/s through the server divided by searches/s with the text index
  texts/s         stored and indexed. Through the server the texts are acknowledged first and indexed behind that, so
                  both are told; the text index is written with its text. `without` stores the same with no index

What --direct compares with: find with $text, the words in quotation marks so that each has to be there, sorted by
textScore, whole documents. It has no identifiers spelled otherwise and no prefixes.";

/// One round's figures.
#[derive(Debug, Clone, serde::Serialize)]
struct Outcome {
    searches_per_second: f64,
    hits_per_search: f64,
    latency: Latency,
    errors: u64,
}

/// A kind of question, one way.
#[derive(Debug, Clone, serde::Serialize)]
struct Summary {
    question: Kind,
    way: &'static str,
    searches_per_second: f64,
    hits_per_search: f64,
    latency: Latency,
    errors: u64,
    rounds: Vec<Outcome>,
}

impl Summary {
    fn of(question: Kind, way: &'static str, rounds: Vec<Outcome>) -> Summary {
        let latencies: Vec<Latency> = rounds.iter().map(|round| round.latency).collect();
        Summary {
            question,
            way,
            searches_per_second: median(rounds.iter().map(|round| round.searches_per_second)),
            hits_per_search: median(rounds.iter().map(|round| round.hits_per_search)),
            latency: Latency::of_rounds(&latencies),
            errors: rounds.iter().map(|round| round.errors).sum(),
            rounds,
        }
    }
}

/// How fast texts came in.
#[derive(Debug, Clone, Default, serde::Serialize)]
struct Filled {
    acknowledged_per_second: Option<f64>,
    indexed_per_second: Option<f64>,
    direct_without_index_per_second: Option<f64>,
    direct_with_index_per_second: Option<f64>,
    direct_index_bytes: Option<f64>,
}

struct Bench<'a> {
    args: &'a Args,
    channels: Vec<Channel>,
    texts: Arc<Texts>,
    direct: Option<Arc<Direct>>,
    messages: Vec<String>,
}

pub async fn run(server: &Server, args: &Args) -> anyhow::Result<Report> {
    let direct = match &args.direct {
        None => None,
        Some(uri) => Some(Arc::new(Direct::open(uri).await?)),
    };
    let channels: anyhow::Result<Vec<_>> =
        (0..args.clients.max(1)).map(|_| server.for_writes()).collect();
    let texts = Arc::new(Texts::new());
    let mut bench = Bench { args, channels: channels?, texts, direct, messages: Vec::new() };
    let kept = bench.check().await?;
    let measured = tokio::select! {
        measured = bench.measure(kept) => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    let dropped = match &bench.direct {
        Some(direct) => direct.remove().await,
        None => Ok(()),
    };
    if !args.keep {
        bench.remove().await?;
    }
    dropped?;
    measured
}

fn execution_id(number: u64) -> String {
    format!("{PREFIX}{number:09}")
}

/// The execution of a text, where it is the first one, and its step.
fn writes(texts: &Texts, number: u64) -> impl Iterator<Item = Write> + use<> {
    let now = Some(convert::timestamp(SystemClock.now().millis()));
    let execution = number.is_multiple_of(STEPS).then(|| {
        Write::PutExecution(Execution {
            execution_id: execution_id(number / STEPS),
            app_name: "bench-search".to_owned(),
            status: convert::execution_status(Some(ExecutionStatus::Completed)).into(),
            started_at: now,
            completed_at: now,
            created_at: now,
            updated_at: now,
            ..Default::default()
        })
    });
    let step = Write::PutStep(Step {
        execution_id: execution_id(number / STEPS),
        step_id: Some((number % STEPS) as i32),
        step_name: "answer".to_owned(),
        status: convert::step_status(Some(StepStatus::Completed)).into(),
        started_at: now,
        completed_at: now,
        output: Some(convert::value(&texts.get(number).into())),
        ..Default::default()
    });
    execution.into_iter().chain([step])
}

impl Bench<'_> {
    fn executions(&self) -> ExecutionServiceClient<Channel> {
        ExecutionServiceClient::new(self.channels[0].clone())
    }

    async fn has(&self, number: u64) -> anyhow::Result<bool> {
        let request =
            GetExecutionRequest { execution_id: execution_id(number), ..Default::default() };
        match self.executions().get_execution(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(status).context("the server could not be asked for an execution"),
        }
    }

    /// Refuses to mix with what is there. Whether the texts are.
    async fn check(&self) -> anyhow::Result<bool> {
        let last = (self.args.texts - 1) / STEPS;
        anyhow::ensure!(
            !self.has(last + 1).await?,
            "the server has more texts of an earlier run than that: ask for as many, with --reuse"
        );
        let kept = self.has(last).await?;
        anyhow::ensure!(
            self.args.reuse && kept || !self.has(0).await?,
            "the server has texts of an earlier run: ask for as many, with --reuse"
        );
        Ok(kept)
    }

    async fn fill(&self, kept: bool) -> anyhow::Result<Filled> {
        let count = self.args.texts;
        let mut filled = Filled::default();
        if let Some(direct) = &self.direct {
            progress("storing texts straight, without and with a text index");
            let (without, with) = direct.fill(&self.texts, count).await?;
            filled.direct_without_index_per_second = Some(without);
            filled.direct_with_index_per_second = Some(with);
            filled.direct_index_bytes = Some(direct.index_bytes().await?);
        }
        let began = Instant::now();
        if kept {
            self.wait_for_index(began).await?;
            return Ok(filled);
        }
        let texts = Arc::clone(&self.texts);
        let writes = stream::iter((0..count).flat_map(move |number| writes(&texts, number)));
        let requests =
            writes.map(|write| IngestRequest { sequence: 0, write: Some(write), mirrored: None });
        let mut service = IngestServiceClient::new(self.channels[0].clone());
        let mut answers = service.ingest(requests).await?.into_inner();
        let mut stored = 0_u64;
        while let Some(answer) = answers.message().await? {
            if let Some(Answer::Error(error)) = answer.result {
                anyhow::bail!("the server took no text: {}", error.message);
            }
            stored += 1;
            if stored.is_multiple_of(SAID_EVERY) {
                progress(&format!("{} of {} texts", whole(stored as f64), whole(count as f64)));
            }
        }
        let expected = count + count.div_ceil(STEPS);
        anyhow::ensure!(stored == expected, "the server answered {stored} of {expected} writes");
        filled.acknowledged_per_second = Some(count as f64 / began.elapsed().as_secs_f64());
        self.wait_for_index(began).await?;
        filled.indexed_per_second = Some(count as f64 / began.elapsed().as_secs_f64());
        Ok(filled)
    }

    /// Until everything that was acknowledged is indexed.
    async fn wait_for_index(&self, since: Instant) -> anyhow::Result<()> {
        let mut service = SearchServiceClient::new(self.channels[0].clone());
        let query = format!("req{}x", self.args.texts - 1);
        loop {
            let request = SearchRequest { query: query.clone(), ..Default::default() };
            let answer = service.search(request).await?.into_inner();
            if answer.up_to_date {
                anyhow::ensure!(answer.hits.len() == 1, "the last text is not found");
                return Ok(());
            }
            anyhow::ensure!(since.elapsed() < INDEXED, "the index does not catch up");
            // The server itself has waited two seconds.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn remove(&self) -> anyhow::Result<()> {
        let ids = (0..self.args.texts.div_ceil(STEPS)).map(execution_id);
        let mut deletes = stream::iter(ids)
            .map(|execution_id| {
                let mut service = self.executions();
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

    async fn measure(&mut self, kept: bool) -> anyhow::Result<Report> {
        let filled = self.fill(kept).await?;
        let mut results = Vec::new();
        for kind in Kind::ALL {
            let (mut server, mut direct) = (Vec::new(), Vec::new());
            for number in 1..=self.args.rounds {
                server.push(self.round(None, kind, number).await);
                if let Some(asked) = self.direct.clone()
                    && kind.is_of_text_index()
                {
                    direct.push(self.round(Some(asked), kind, number).await);
                }
            }
            results.push(Summary::of(kind, "server", server));
            if !direct.is_empty() {
                results.push(Summary::of(kind, "direct", direct));
            }
        }
        Ok(self.report(&filled, &results))
    }

    async fn round(&mut self, direct: Option<Arc<Direct>>, kind: Kind, number: u16) -> Outcome {
        tokio::time::sleep(REST).await;
        let recorder = Arc::new(Recorder::new());
        let over = Arc::new(AtomicBool::new(false));
        let texts = self.args.texts;
        let mut clients = JoinSet::new();
        for client in 0..usize::from(self.args.clients) {
            let (recorder, over, direct) =
                (Arc::clone(&recorder), Arc::clone(&over), direct.clone());
            let mut service = SearchServiceClient::new(self.channels[client].clone());
            // The same questions in the same order, whoever is asked.
            let mut dice = Dice::new((client as u64) << 32 | u64::from(number));
            clients.spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let question = Question::new(kind, texts, &mut dice);
                    let began = Instant::now();
                    let found = match &direct {
                        Some(direct) => direct.ask(&question).await,
                        None => {
                            let page_size = PAGE as i32;
                            let query = question.server;
                            let request = SearchRequest { query, page_size, ..Default::default() };
                            let found = service.search(request).await;
                            found.map(|found| found.into_inner().hits.len()).map_err(|status| {
                                format!("{:?}: {}", status.code(), status.message())
                            })
                        }
                    };
                    match found {
                        Ok(hits) => recorder.done(client, began.elapsed(), hits),
                        Err(message) => {
                            recorder.failed(client, message);
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                    }
                }
            });
        }
        tokio::time::sleep(Duration::from_secs_f64(self.args.warmup)).await;
        recorder.begin();
        tokio::time::sleep(Duration::from_secs_f64(self.args.seconds)).await;
        let mut measured = recorder.end();
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
        let way = if direct.is_some() { "direct" } else { "server" };
        let latency = measured.latency();
        progress(&format!(
            "{}, {way}, round {number}: {} searches/s, p50 {} ms, {} errors",
            kind.name(),
            whole(measured.per_second()),
            ms(latency.p50_ms),
            measured.errors,
        ));
        self.messages.extend(measured.messages.iter().map(|message| format!("{way}: {message}")));
        self.messages.dedup();
        self.messages.truncate(32);
        Outcome {
            searches_per_second: measured.per_second(),
            hits_per_search: measured.bytes as f64 / measured.count().max(1) as f64,
            latency,
            errors: measured.errors,
        }
    }

    fn report(&self, filled: &Filled, results: &[Summary]) -> Report {
        let mut table = report::table(&[
            "question",
            "way",
            "searches/s",
            "p50 ms",
            "p99 ms",
            "hits",
            "errors",
            "server/direct",
        ]);
        for summary in results {
            let ratio = results
                .iter()
                .find(|other| other.question == summary.question && other.way == "direct")
                .filter(|direct| summary.way == "server" && direct.searches_per_second > 0.0)
                .map(|direct| summary.searches_per_second / direct.searches_per_second);
            table.add_row([
                summary.question.name().to_owned(),
                summary.way.to_owned(),
                whole(summary.searches_per_second),
                ms(summary.latency.p50_ms),
                ms(summary.latency.p99_ms),
                format!("{:.1}", summary.hits_per_search),
                summary.errors.to_string(),
                ratio.map_or(String::new(), |ratio| format!("{ratio:.2}x")),
            ]);
        }
        let mut stored = report::table(&["texts stored", "texts/s"]);
        for (name, rate) in [
            ("server, acknowledged", filled.acknowledged_per_second),
            ("server, indexed", filled.indexed_per_second),
            ("direct, without an index", filled.direct_without_index_per_second),
            ("direct, with a text index", filled.direct_with_index_per_second),
        ] {
            if let Some(rate) = rate {
                stored.add_row([name.to_owned(), whole(rate)]);
            }
        }
        let args = self.args;
        let mut notes = vec![format!(
            "{} texts, {} clients, {} round(s) of {} s each after {} s of warm-up; medians",
            whole(args.texts as f64),
            args.clients,
            args.rounds,
            args.seconds,
            args.warmup
        )];
        if let Some(bytes) = filled.direct_index_bytes {
            notes.push(format!("the text index has {} MiB", report::mib(bytes)));
        }
        Report {
            json: json!({
                "workload": "search",
                "settings": {
                    "texts": args.texts,
                    "clients": args.clients,
                    "page_size": PAGE,
                    "seconds": args.seconds,
                    "warmup_seconds": args.warmup,
                    "rounds": args.rounds,
                    "direct": args.direct.is_some(),
                },
                "stored": filled,
                "results": results,
            }),
            tables: vec![stored, table],
            notes,
            errors: results.iter().map(|summary| summary.errors).sum(),
            messages: self.messages.clone(),
        }
    }
}
