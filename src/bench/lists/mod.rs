//! Workload `lists`: the questions that people ask most about many executions, through the server and straight
//! through the driver on the same documents.

mod direct;
mod fill;
mod sample;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::connect::Server;
use super::measure::{Latency, Recorder, median};
use super::report::{self, Report};
use crate::domain::Millis;
use crate::proto;
use crate::proto::execution_service_client::ExecutionServiceClient;
use direct::Direct;
use sample::{Chance, PAGE, Question};

/// A rest between two rounds, so that one does not pay for what the other left behind.
const REST: Duration = Duration::from_millis(300);
const AFTER_ERROR: Duration = Duration::from_millis(50);

/// Asks for pages of executions as fast as the server answers.
///
/// First it fills the store with executions of a year (200 apps, 10,000 users, 5 % failed), then each client asks
/// one question after the other: a user's latest 50 by status, what failed in the last 24 hours, and a page of an app
/// in a week. The executions stay in the server's store: use a database for it.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Executions to fill the store with.
    #[arg(long, value_name = "N", default_value_t = 20_000,
          value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    executions: u64,
    /// Fill nothing: an earlier run did, and the store holds nothing else.
    #[arg(long)]
    reuse: bool,
    /// Clients, each with one call outstanding.
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
    /// Ask the same straight through the MongoDB driver too, in alternating rounds, and print the ratio: the
    /// server's own database, of which it only reads.
    #[arg(long, value_name = "URI", env = "STEPWELL_BENCH_DIRECT", hide_env_values = true)]
    direct: Option<String>,
    /// The server's database at --direct.
    #[arg(long, value_name = "NAME", default_value = "ai_apps")]
    direct_database: String,
}

/// One round's figures.
#[derive(Debug, Clone, Copy, serde::Serialize)]
struct Outcome {
    pages_per_second: f64,
    records_per_page: f64,
    latency: Latency,
}

/// Who is asked.
#[derive(Clone)]
enum Way {
    Server(ExecutionServiceClient<Channel>),
    Direct(Direct),
}

impl Way {
    /// How many records came.
    async fn ask(&mut self, filter: proto::ExecutionFilter) -> Result<usize, String> {
        match self {
            Way::Direct(direct) => direct.ask(&filter).await,
            Way::Server(client) => {
                let request = proto::ListExecutionsRequest {
                    filter: Some(filter),
                    page_size: PAGE as i32,
                    ..Default::default()
                };
                let answer = client.list_executions(request).await;
                let page = answer.map_err(|status| status.to_string())?.into_inner();
                Ok(page.executions.len())
            }
        }
    }
}

struct Bench<'a> {
    server: &'a Server,
    args: &'a Args,
    direct: Option<Direct>,
    newest: Millis,
    errors: u64,
    messages: Vec<String>,
}

pub async fn run(server: &Server, args: &Args) -> anyhow::Result<Report> {
    let direct = match &args.direct {
        None => None,
        Some(uri) => Some(Direct::open(uri, &args.direct_database).await?),
    };
    if !args.reuse {
        fill::fill(server, args.executions).await?;
    }
    let newest = fill::newest(server).await?;
    Bench { server, args, direct, newest, errors: 0, messages: Vec::new() }.measure().await
}

impl Bench<'_> {
    async fn measure(&mut self) -> anyhow::Result<Report> {
        let titles = ["question", "way", "pages/s", "records", "p50 ms", "p99 ms", "server/direct"];
        let mut table = report::table(&titles);
        let mut figures = Vec::new();
        for question in Question::ALL {
            let (mut server, mut direct) = (Vec::new(), Vec::new());
            for round in 1..=self.args.rounds {
                let client = ExecutionServiceClient::new(self.server.for_writes()?);
                server.push(self.round(question, Way::Server(client), round).await?);
                if let Some(database) = self.direct.clone() {
                    direct.push(self.round(question, Way::Direct(database), round).await?);
                }
            }
            let rate = |rounds: &[Outcome]| median(rounds.iter().map(|one| one.pages_per_second));
            let ratio = (!direct.is_empty()).then(|| rate(&server) / rate(&direct));
            for (way, rounds) in [("server", &server), ("direct", &direct)] {
                if rounds.is_empty() {
                    continue;
                }
                let latencies: Vec<_> = rounds.iter().map(|one| one.latency).collect();
                let latency = Latency::of_rounds(&latencies);
                table.add_row([
                    question.name().to_owned(),
                    way.to_owned(),
                    report::whole(rate(rounds)),
                    report::whole(median(rounds.iter().map(|one| one.records_per_page))),
                    report::ms(latency.p50_ms),
                    report::ms(latency.p99_ms),
                    ratio.filter(|_| way == "server").map_or(String::new(), |r| format!("{r:.2}x")),
                ]);
            }
            figures.push(json!({
                "question": question.name(),
                "server": server,
                "direct": direct,
                "throughput_ratio": ratio,
            }));
        }
        Ok(Report {
            json: json!({
                "workload": "lists",
                "settings": {
                    "executions": self.args.executions,
                    "clients": self.args.clients,
                    "seconds": self.args.seconds,
                    "warmup_seconds": self.args.warmup,
                    "rounds": self.args.rounds,
                    "direct": self.args.direct.is_some(),
                },
                "questions": figures,
            }),
            tables: vec![table],
            notes: vec![format!(
                "{} clients, pages of {PAGE}; {} round(s) of {} s each; medians",
                self.args.clients, self.args.rounds, self.args.seconds
            )],
            errors: self.errors,
            messages: std::mem::take(&mut self.messages),
        })
    }

    async fn round(
        &mut self,
        question: Question,
        way: Way,
        number: u16,
    ) -> anyhow::Result<Outcome> {
        tokio::time::sleep(REST).await;
        let recorder = Arc::new(Recorder::new());
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        let name = if matches!(way, Way::Server(_)) { "server" } else { "direct" };
        for client in 0..usize::from(self.args.clients) {
            let (recorder, stop, mut way) = (Arc::clone(&recorder), Arc::clone(&stop), way.clone());
            let newest = self.newest;
            // Both ways are asked the same.
            let mut chance = Chance::new(u64::from(number) << 32 | client as u64);
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let filter = question.filter(&mut chance, newest);
                    let sent = Instant::now();
                    match way.ask(filter).await {
                        // Bytes count records here.
                        Ok(records) => recorder.done(client, sent.elapsed(), records),
                        Err(message) => {
                            recorder.failed(client, message);
                            tokio::time::sleep(AFTER_ERROR).await;
                        }
                    }
                }
            });
        }
        tokio::time::sleep(Duration::from_secs_f64(self.args.warmup)).await;
        recorder.begin();
        tokio::time::sleep(Duration::from_secs_f64(self.args.seconds)).await;
        let mut measured = recorder.end();
        stop.store(true, Ordering::SeqCst);
        while let Some(ended) = tasks.join_next().await {
            ended.context("a client broke")?;
        }
        recorder.add_late_errors(&mut measured);
        let outcome = Outcome {
            pages_per_second: measured.per_second(),
            records_per_page: measured.bytes as f64 / measured.count().max(1) as f64,
            latency: measured.latency(),
        };
        report::progress(&format!(
            "{}, {name}, round {number}: {} pages/s, {} errors",
            question.name(),
            report::whole(outcome.pages_per_second),
            measured.errors
        ));
        self.errors += measured.errors;
        self.messages.extend(measured.messages);
        Ok(outcome)
    }
}
