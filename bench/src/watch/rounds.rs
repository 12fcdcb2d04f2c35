//! Rounds with a standing fleet of watchers; every other one with watchers that never read, if asked for.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::fleet::{Fleet, Leave, Stuck, Watcher};
use super::sampler::Peaks;
use super::writer::Writer;
use super::{Bench, PATIENCE};
use crate::measure::{Latency, Recorder, median};
use crate::report::{self, Report};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// Only watchers that read.
    Free,
    /// With watchers that never read beside them.
    Stuck,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Free => "free",
            Kind::Stuck => "stuck",
        }
    }
}

#[derive(Debug, Clone, Serialize)]
struct Outcome {
    writes_per_second: f64,
    write_latency: Latency,
    deliveries_per_second: f64,
    delivered_share: f64,
    delivered_megabytes_per_second: f64,
    latency_from_acknowledgement: Latency,
    early_share: f64,
    server_memory_peak_bytes: Option<u64>,
    /// Of a stuck round: from just before the stuck watchers came to the highest seen with them.
    server_memory_growth_bytes: Option<i64>,
    server_cpu_us_per_delivery: Option<f64>,
    open_cursors_peak: Option<i64>,
    errors: u64,
}

#[derive(Debug, Serialize)]
struct Summary {
    kind: Kind,
    writes_per_second: f64,
    write_latency: Latency,
    deliveries_per_second: f64,
    delivered_share: f64,
    delivered_megabytes_per_second: f64,
    latency_from_acknowledgement: Latency,
    early_share: f64,
    server_memory_peak_bytes: Option<u64>,
    server_memory_growth_bytes: Option<i64>,
    server_cpu_us_per_delivery: Option<f64>,
    open_cursors_peak: Option<i64>,
    errors: u64,
    rounds: Vec<Outcome>,
}

impl Summary {
    fn of(kind: Kind, rounds: Vec<Outcome>) -> Self {
        let middle = |pick: fn(&Outcome) -> f64| median(rounds.iter().map(pick));
        let latency = |pick: fn(&Outcome) -> Latency| {
            Latency::of_rounds(&rounds.iter().map(pick).collect::<Vec<_>>())
        };
        let cpu = rounds.iter().filter_map(|round| round.server_cpu_us_per_delivery);
        let has_cpu = rounds.iter().all(|round| round.server_cpu_us_per_delivery.is_some());
        Summary {
            kind,
            writes_per_second: middle(|round| round.writes_per_second),
            write_latency: latency(|round| round.write_latency),
            deliveries_per_second: middle(|round| round.deliveries_per_second),
            delivered_share: middle(|round| round.delivered_share),
            delivered_megabytes_per_second: middle(|round| round.delivered_megabytes_per_second),
            latency_from_acknowledgement: latency(|round| round.latency_from_acknowledgement),
            early_share: middle(|round| round.early_share),
            server_memory_peak_bytes: rounds
                .iter()
                .filter_map(|r| r.server_memory_peak_bytes)
                .max(),
            server_memory_growth_bytes: rounds
                .iter()
                .filter_map(|round| round.server_memory_growth_bytes)
                .max(),
            server_cpu_us_per_delivery: has_cpu.then(|| median(cpu)),
            open_cursors_peak: rounds.iter().filter_map(|round| round.open_cursors_peak).max(),
            errors: rounds.iter().map(|round| round.errors).sum(),
            rounds,
        }
    }
}

pub async fn run(bench: &Bench<'_>) -> anyhow::Result<Report> {
    let args = bench.args;
    let watchers = || Watcher { resume_token: None, leave: Leave::Never };
    let began = Instant::now();
    let fleet = Fleet::open(
        bench.server,
        &bench.target,
        &bench.acknowledgements,
        (0..args.watchers).map(|_| watchers()).collect(),
    )?;
    fleet.ready(PATIENCE).await?;
    let opened = began.elapsed();
    report::progress(&format!("{} watchers open after {opened:.2?}", args.watchers));
    let idle = bench.sampler.now().await;

    let mut messages = Vec::new();
    let mut next = 1;
    let (mut free, mut stuck) = (Vec::new(), Vec::new());
    for number in 1..=args.rounds {
        free.push(round(bench, &fleet, Kind::Free, number, &mut next, &mut messages).await?);
        if args.stuck > 0 {
            stuck.push(round(bench, &fleet, Kind::Stuck, number, &mut next, &mut messages).await?);
        }
    }
    fleet.close().await;
    let mut summaries = vec![Summary::of(Kind::Free, free)];
    if !stuck.is_empty() {
        summaries.push(Summary::of(Kind::Stuck, stuck));
    }
    Ok(render(bench, opened, idle, &summaries, messages))
}

async fn round(
    bench: &Bench<'_>,
    fleet: &Fleet,
    kind: Kind,
    number: u16,
    next: &mut u64,
    messages: &mut Vec<String>,
) -> anyhow::Result<Outcome> {
    let args = bench.args;
    let memory_before = bench.sampler.now().await.memory_bytes;
    let held = match kind {
        Kind::Free => None,
        Kind::Stuck => {
            let watchers = usize::try_from(args.stuck).unwrap_or(usize::MAX);
            Some(Stuck::open(bench.server, &bench.target, watchers).await?)
        }
    };
    let written = Arc::new(Recorder::new());
    let writer = Writer::start(
        &bench.target.busy,
        bench.pace(),
        *next,
        Arc::clone(&bench.acknowledgements),
        Arc::clone(&written),
    );
    tokio::time::sleep(Duration::from_secs_f64(args.warmup)).await;
    bench.sampler.take_peaks();
    let early_before = fleet.shared.early.load(Ordering::Relaxed);
    let cpu_before = bench.sampler.cpu_seconds();
    fleet.shared.deliveries.begin();
    written.begin();
    tokio::time::sleep(Duration::from_secs_f64(args.seconds)).await;
    let mut deliveries = fleet.shared.deliveries.end();
    let mut writes = written.end();
    let cpu = cpu_before.and_then(|before| Some(bench.sampler.cpu_seconds()? - before));
    let peaks = bench.sampler.take_peaks();
    let early = fleet.shared.early.load(Ordering::Relaxed) - early_before;
    *next = writer.stop().await?;
    if let Some(held) = held {
        report::progress(&format!("{} watchers that never read are let go", held.len()));
    }
    written.add_late_errors(&mut writes);
    fleet.shared.deliveries.add_late_errors(&mut deliveries);

    let possible = writes.count() as f64 * f64::from(args.watchers);
    let outcome = Outcome {
        writes_per_second: writes.per_second(),
        write_latency: writes.latency(),
        deliveries_per_second: deliveries.per_second(),
        delivered_share: deliveries.count() as f64 / possible.max(1.0),
        delivered_megabytes_per_second: deliveries.bytes as f64 / deliveries.seconds / 1e6,
        latency_from_acknowledgement: deliveries.latency(),
        early_share: early as f64 / deliveries.count().max(1) as f64,
        server_memory_peak_bytes: peaks.memory_bytes,
        server_memory_growth_bytes: match (kind, peaks.memory_bytes, memory_before) {
            (Kind::Stuck, Some(peak), Some(before)) => {
                peak.cast_signed().checked_sub_unsigned(before)
            }
            _ => None,
        },
        server_cpu_us_per_delivery: cpu.map(|cpu| cpu * 1e6 / deliveries.count().max(1) as f64),
        open_cursors_peak: peaks.cursors,
        errors: writes.errors + deliveries.errors,
    };
    report::progress(&format!(
        "{}, round {number}: {} writes/s, {} deliveries/s, p50 {} ms, p99 {} ms after the acknowledgement, \
         {} errors",
        kind.name(),
        report::whole(outcome.writes_per_second),
        report::whole(outcome.deliveries_per_second),
        report::ms(outcome.latency_from_acknowledgement.p50_ms),
        report::ms(outcome.latency_from_acknowledgement.p99_ms),
        outcome.errors,
    ));
    messages.extend(writes.messages);
    messages.extend(deliveries.messages);
    messages.truncate(32);
    Ok(outcome)
}

fn render(
    bench: &Bench<'_>,
    opened: Duration,
    idle: Peaks,
    summaries: &[Summary],
    messages: Vec<String>,
) -> Report {
    let args = bench.args;
    let mut table = report::table(&[
        "rounds",
        "writes/s",
        "write p50 ms",
        "write p99 ms",
        "deliveries/s",
        "delivered",
        "MB/s",
        "latency p50 ms",
        "p90 ms",
        "p99 ms",
        "max ms",
        "early",
        "CPU us/delivery",
        "errors",
    ]);
    for summary in summaries {
        let latency = summary.latency_from_acknowledgement;
        table.add_row([
            summary.kind.name().to_owned(),
            report::whole(summary.writes_per_second),
            report::ms(summary.write_latency.p50_ms),
            report::ms(summary.write_latency.p99_ms),
            report::whole(summary.deliveries_per_second),
            format!("{:.1} %", summary.delivered_share * 100.0),
            format!("{:.1}", summary.delivered_megabytes_per_second),
            report::ms(latency.p50_ms),
            report::ms(latency.p90_ms),
            report::ms(latency.p99_ms),
            report::ms(latency.max_ms),
            format!("{:.1} %", summary.early_share * 100.0),
            summary.server_cpu_us_per_delivery.map_or(String::new(), |us| format!("{us:.2}")),
            summary.errors.to_string(),
        ]);
    }
    let mut notes = vec![format!(
        "{} watchers, open after {:.2} s, on {} connections; {} round(s) of {} s after {} s of warm-up; medians",
        args.watchers,
        opened.as_secs_f64(),
        args.watchers.div_ceil(u32::from(args.per_connection)),
        args.rounds,
        args.seconds,
        args.warmup
    )];
    let peak = summaries.iter().filter_map(|summary| summary.server_memory_peak_bytes).max();
    let per_watcher = match (bench.before.memory_bytes, peak) {
        (Some(before), Some(peak)) => {
            Some((peak as f64 - before as f64) / f64::from(args.watchers) / 1024.0)
        }
        _ => None,
    };
    if let (Some(before), Some(idle), Some(peak)) =
        (bench.before.memory_bytes, idle.memory_bytes, peak)
    {
        notes.push(format!(
            "server memory: {} MiB before the watchers, {} MiB with them and nothing written, {} MiB at most",
            report::mib(before as f64),
            report::mib(idle as f64),
            report::mib(peak as f64),
        ));
    }
    if let (Some(per_watcher), 0) = (per_watcher, args.stuck) {
        notes.push(format!("server memory per watcher: {per_watcher:.1} KiB"));
    }
    let cursors = summaries.iter().filter_map(|summary| summary.open_cursors_peak).max();
    if let (Some(before), Some(peak)) = (bench.before.cursors, cursors) {
        notes.push(format!("open cursors: {before} before the watchers, {peak} at most with them"));
    }
    let rate = |kind: Kind| {
        let of = summaries.iter().find(|summary| summary.kind == kind)?;
        Some(of.writes_per_second).filter(|rate| *rate > 0.0)
    };
    let ratio = rate(Kind::Stuck).and_then(|stuck| Some(stuck / rate(Kind::Free)?));
    if let Some(ratio) = ratio {
        notes.push(format!(
            "writer's rate with {} stuck watchers: {ratio:.2} of without",
            args.stuck
        ));
    }
    let growth = summaries.iter().filter_map(|summary| summary.server_memory_growth_bytes).max();
    if let Some(growth) = growth {
        notes.push(format!(
            "server memory growth with {} stuck watchers: {} MiB, {:.1} KiB each",
            args.stuck,
            report::mib(growth as f64),
            growth as f64 / 1024.0 / f64::from(args.stuck.max(1)),
        ));
    }
    Report {
        json: json!({
            "workload": "watch",
            "settings": args.settings(),
            "watchers_open_after_seconds": opened.as_secs_f64(),
            "server_memory_before_bytes": bench.before.memory_bytes,
            "server_memory_idle_bytes": idle.memory_bytes,
            "server_memory_peak_bytes": peak,
            "server_memory_per_watcher_kib": per_watcher.filter(|_| args.stuck == 0),
            "open_cursors_before": bench.before.cursors,
            "open_cursors_peak": cursors,
            "stuck_write_ratio": ratio,
            "stuck_memory_growth_bytes": growth,
            "results": summaries,
        }),
        tables: vec![table],
        notes,
        errors: summaries.iter().map(|summary| summary.errors).sum(),
        messages,
    }
}
