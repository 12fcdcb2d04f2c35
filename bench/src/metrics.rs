//! Workload `metrics`: points per second through the server and straight into MongoDB, and how long hourly figures
//! of many points of one execution take.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;
use tokio::task::JoinSet;

use super::connect::Server;
use super::measure::{Latency, Recorder, median};
use super::report::{self, Report};
use super::track::Direct;
use stepwell::app::ids;
use stepwell::clock::{Clock as _, SystemClock};
use stepwell::domain::MetricPoint;
use stepwell::proto;
use stepwell::proto::execution_service_client::ExecutionServiceClient;
use stepwell::proto::metric_service_client::MetricServiceClient;
use stepwell::rpc::convert;

/// A rest between two rounds, so that one does not pay for what the other left behind.
const REST: Duration = Duration::from_millis(500);
/// Points in one call while an execution is filled for the queries.
const FILLED_AT_ONCE: u64 = 10_000;
/// What a query may take before it counts as failed.
const QUERY_PATIENCE: Duration = Duration::from_secs(120);
/// Queries after the first, which may find the database cold.
const QUERIES: usize = 3;
const HOUR_MS: i64 = 3_600_000;

/// Records points of metrics as fast as the server takes them.
///
/// Each client has an execution of its own and records its points one call after the other; a point has two
/// metrics, and a second passes from point to point. The executions stay in the server's store, with app_name
/// "stepwell-bench". Use a database for it.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Clients, each with one call outstanding.
    #[arg(long, value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: u16,
    /// Points in one call.
    #[arg(long, value_name = "N", default_value_t = 1000,
          value_parser = clap::value_parser!(u16).range(1..=10_000))]
    points: u16,
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
    /// Measure insert_many of the same points straight through the MongoDB driver too, in alternating rounds, into
    /// the same kind of collection, and print the ratio. A database of its own is made for it and dropped
    /// afterwards; give the server's replica set.
    #[arg(long, value_name = "URI", env = "STEPWELL_BENCH_DIRECT", hide_env_values = true)]
    direct: Option<String>,
    /// Then record so many points of one execution, a second apart, and ask for them by the hour. The server must
    /// keep them (retention.metrics = 0, or long enough).
    #[arg(long, value_name = "N", default_value_t = 0)]
    hourly: u64,
    /// Ask once more after so long: on MongoDB the figures of an hour are kept once nothing has come into it for a
    /// minute. 0: not.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    hourly_after: u64,
}

/// What the clients of one round share.
struct Round {
    recorder: Recorder,
    stop: AtomicBool,
    /// The time of the next point, in milliseconds.
    next: AtomicI64,
}

impl Round {
    /// The points of the next call. They end well before now, so that no clock has anything against them.
    fn points(&self, count: u16) -> Vec<MetricPoint> {
        let first = self.next.fetch_add(i64::from(count) * 1000, Ordering::Relaxed);
        (0..i64::from(count)).map(|n| point(first + n * 1000)).collect()
    }
}

fn point(at: i64) -> MetricPoint {
    let cpu = (at / 1000 % 1000) as f64 / 10.0;
    let metrics = [("cpu_usage_percent".to_owned(), cpu), ("memory_usage_mb".to_owned(), 512.5)];
    MetricPoint { at, step_id: None, metrics: metrics.into(), ..Default::default() }
}

/// One round's figures.
#[derive(Debug, Clone, Copy, serde::Serialize)]
struct Outcome {
    points_per_second: f64,
    call_latency: Latency,
}

struct Bench<'a> {
    server: &'a Server,
    args: &'a Args,
    direct: Option<Direct>,
    errors: u64,
    messages: Vec<String>,
}

pub async fn run(server: &Server, args: &Args) -> anyhow::Result<Report> {
    let direct = match &args.direct {
        None => None,
        Some(uri) => Some(Direct::open(uri).await?),
    };
    let mut bench = Bench { server, args, direct, errors: 0, messages: Vec::new() };
    let measured = tokio::select! {
        measured = bench.measure() => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if let Some(direct) = &bench.direct {
        direct.drop_database().await?;
    }
    measured
}

impl Bench<'_> {
    async fn measure(&mut self) -> anyhow::Result<Report> {
        let (mut server, mut direct) = (Vec::new(), Vec::new());
        for round in 1..=self.args.rounds {
            server.push(self.round(false, round).await?);
            if self.direct.is_some() {
                direct.push(self.round(true, round).await?);
            }
        }
        let rate = |rounds: &[Outcome]| median(rounds.iter().map(|round| round.points_per_second));
        let ratio = (!direct.is_empty()).then(|| rate(&server) / rate(&direct));
        let mut table =
            report::table(&["way", "points/s", "p50 ms a call", "p99 ms a call", "server/direct"]);
        for (way, rounds) in [("server", &server), ("direct", &direct)] {
            if rounds.is_empty() {
                continue;
            }
            let latencies: Vec<_> = rounds.iter().map(|round| round.call_latency).collect();
            let latency = Latency::of_rounds(&latencies);
            table.add_row([
                way.to_owned(),
                report::whole(rate(rounds)),
                report::ms(latency.p50_ms),
                report::ms(latency.p99_ms),
                ratio.filter(|_| way == "server").map_or(String::new(), |r| format!("{r:.2}x")),
            ]);
        }
        let mut tables = vec![table];
        let (mut hourly_ms, mut hourly_later_ms) = (Vec::new(), Vec::new());
        if self.args.hourly > 0 {
            (hourly_ms, hourly_later_ms) = self.hourly().await?;
            let mut table = report::table(&["hourly figures of one metric", "ms"]);
            let after = hourly_ms.iter().skip(1).copied();
            table.add_row(["the first time".to_owned(), report::ms(hourly_ms[0])]);
            table.add_row(["then, median".to_owned(), report::ms(median(after))]);
            if !hourly_later_ms.is_empty() {
                let label = format!("after {} s, median", self.args.hourly_after);
                table.add_row([label, report::ms(median(hourly_later_ms.iter().copied()))]);
            }
            tables.push(table);
        }
        Ok(Report {
            json: json!({
                "workload": "metrics",
                "settings": {
                    "clients": self.args.clients,
                    "points_per_call": self.args.points,
                    "seconds": self.args.seconds,
                    "warmup_seconds": self.args.warmup,
                    "rounds": self.args.rounds,
                    "direct": self.args.direct.is_some(),
                    "hourly_points": self.args.hourly,
                    "hourly_after_seconds": self.args.hourly_after,
                },
                "server": server,
                "direct": direct,
                "throughput_ratio": ratio,
                "hourly_ms": hourly_ms,
                "hourly_later_ms": hourly_later_ms,
            }),
            tables,
            notes: vec![format!(
                "{} clients, {} points a call; {} round(s) of {} s each; medians",
                self.args.clients, self.args.points, self.args.rounds, self.args.seconds
            )],
            errors: self.errors,
            messages: std::mem::take(&mut self.messages),
        })
    }

    async fn round(&mut self, direct: bool, number: u16) -> anyhow::Result<Outcome> {
        tokio::time::sleep(REST).await;
        let points = i64::from(self.args.points);
        let round = Arc::new(Round {
            recorder: Recorder::new(),
            stop: AtomicBool::new(false),
            // A fortnight of points, a second apart, is more than a round takes.
            next: AtomicI64::new(SystemClock.now().millis() - 14 * 24 * HOUR_MS),
        });
        let mut tasks = JoinSet::new();
        for client in 0..usize::from(self.args.clients) {
            let (round, count) = (Arc::clone(&round), self.args.points);
            if let (true, Some(database)) = (direct, &self.direct) {
                let writer = database.point_writer();
                let id = ids::execution_id();
                tasks.spawn(clients(round, client, count, async move |points| {
                    writer.insert(&id, &points).await
                }));
            } else {
                let (metrics, id) = self.execution().await?;
                tasks.spawn(clients(
                    round,
                    client,
                    count,
                    async move |points: Vec<MetricPoint>| {
                        let points = points.iter().map(|point| convert::metric_point("", point));
                        let request = proto::RecordMetricsRequest {
                            execution_id: id.clone(),
                            points: points.collect(),
                            request_id: None,
                        };
                        let sent = request.points.len() as i64;
                        let answer = metrics.clone().record_metrics(request).await;
                        let answer = answer.map_err(|status| status.to_string())?.into_inner();
                        match answer.accepted == sent {
                            true => Ok(()),
                            false => {
                                Err(format!("{} of {sent} points are stored", answer.accepted))
                            }
                        }
                    },
                ));
            }
        }
        tokio::time::sleep(Duration::from_secs_f64(self.args.warmup)).await;
        round.recorder.begin();
        tokio::time::sleep(Duration::from_secs_f64(self.args.seconds)).await;
        let mut measured = round.recorder.end();
        round.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = tasks.join_next().await {
            ended.context("a client broke")?;
        }
        round.recorder.add_late_errors(&mut measured);
        let outcome = Outcome {
            points_per_second: measured.per_second() * points as f64,
            call_latency: measured.latency(),
        };
        report::progress(&format!(
            "{}, round {number}: {} points/s, {} errors",
            if direct { "direct" } else { "server" },
            report::whole(outcome.points_per_second),
            measured.errors
        ));
        self.errors += measured.errors;
        self.messages.extend(measured.messages);
        Ok(outcome)
    }

    /// A client, and a new execution for it.
    async fn execution(
        &self,
    ) -> anyhow::Result<(MetricServiceClient<crate::connect::Channel>, String)> {
        let channel = self.server.for_writes()?;
        let id = ids::execution_id();
        ExecutionServiceClient::new(channel.clone())
            .create_execution(proto::CreateExecutionRequest {
                execution_id: Some(id.clone()),
                app_name: "stepwell-bench".to_owned(),
                ..Default::default()
            })
            .await?;
        Ok((MetricServiceClient::new(channel), id))
    }

    /// Fills an execution and asks for it by the hour: milliseconds of each time.
    async fn hourly(&self) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
        let (mut metrics, id) = self.execution().await?;
        let count = self.args.hourly;
        let span_ms = i64::try_from(count)?.checked_mul(1000).context("too many points")?;
        let first = SystemClock.now().millis() - span_ms;
        report::progress(&format!("recording {count} points of one execution"));
        let mut done = 0;
        while done < count {
            let now = FILLED_AT_ONCE.min(count - done);
            let points = (0..now)
                .map(|n| convert::metric_point("", &point(first + (done + n) as i64 * 1000)));
            let request = proto::RecordMetricsRequest {
                execution_id: id.clone(),
                points: points.collect(),
                request_id: None,
            };
            let accepted = metrics.record_metrics(request).await?.into_inner().accepted;
            anyhow::ensure!(accepted == now as i64, "{accepted} of {now} points are stored");
            done += now;
        }
        let at_once = self.hourly_times(&mut metrics, &id).await?;
        if self.args.hourly_after == 0 {
            return Ok((at_once, Vec::new()));
        }
        report::progress(&format!("waiting {} s", self.args.hourly_after));
        tokio::time::sleep(Duration::from_secs(self.args.hourly_after)).await;
        Ok((at_once, self.hourly_times(&mut metrics, &id).await?))
    }

    async fn hourly_times(
        &self,
        metrics: &mut MetricServiceClient<crate::connect::Channel>,
        id: &str,
    ) -> anyhow::Result<Vec<f64>> {
        let count = self.args.hourly;
        let mut times = Vec::new();
        for _ in 0..=QUERIES {
            let began = Instant::now();
            let mut page_token = String::new();
            let mut values = 0;
            loop {
                let mut request = tonic::Request::new(proto::QueryMetricsRequest {
                    execution_id: id.to_owned(),
                    names: vec!["cpu_usage_percent".to_owned()],
                    interval: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
                    page_size: 10_000,
                    page_token,
                    ..Default::default()
                });
                request.set_timeout(QUERY_PATIENCE);
                let page = metrics.query_metrics(request).await?.into_inner();
                values += page.intervals.iter().map(|interval| interval.count).sum::<i64>();
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
            times.push(began.elapsed().as_secs_f64() * 1000.0);
            anyhow::ensure!(values == count as i64, "{values} of {count} points are told");
            report::progress(&format!("hourly: {} ms", report::ms(times[times.len() - 1])));
        }
        Ok(times)
    }
}

/// One client: a call after the other until the round is over.
async fn clients(
    round: Arc<Round>,
    client: usize,
    count: u16,
    call: impl AsyncFn(Vec<MetricPoint>) -> Result<(), String>,
) {
    while !round.stop.load(Ordering::Relaxed) {
        let points = round.points(count);
        let sent = Instant::now();
        match call(points).await {
            Ok(()) => round.recorder.done(client, sent.elapsed(), 0),
            Err(message) => {
                round.recorder.failed(client, message);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
