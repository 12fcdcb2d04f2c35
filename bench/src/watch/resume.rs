//! All watchers drop out, each with another token, and come back at once.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use serde_json::json;

use super::fleet::{Fleet, Leave, Watcher};
use super::writer::{Pace, Writer};
use super::{Bench, PATIENCE};
use crate::measure::Recorder;
use crate::report::{self, Header, Report};

/// A writer that is as fast as can be would be far ahead before the first watcher has left.
const RATE_IF_NONE: f64 = 1000.0;
/// How long the writer goes on when everybody has left, at least.
const AWAY: Duration = Duration::from_secs(1);
const ASK_AGAIN: Duration = Duration::from_millis(50);

pub async fn run(bench: &Bench<'_>) -> anyhow::Result<Report> {
    let args = bench.args;
    let rate = if args.rate == 0 { RATE_IF_NONE } else { f64::from(args.rate) };
    let pace = Pace { rate, ..bench.pace() };
    let written = Arc::new(Recorder::new());
    written.begin();
    let write = |first| {
        let acknowledgements = Arc::clone(&bench.acknowledgements);
        Writer::start(&bench.target.busy, pace, first, acknowledgements, Arc::clone(&written))
    };

    // Watcher number n leaves with change n: as many tokens as watchers.
    let watchers = (0..u64::from(args.watchers))
        .map(|number| Watcher { resume_token: None, leave: Leave::At(number + 1) })
        .collect();
    let mut fleet = Fleet::open(bench.server, &bench.target, &bench.acknowledgements, watchers)?;
    fleet.ready(PATIENCE).await?;
    report::progress(&format!("{} watchers open", args.watchers));
    let writer = write(1);
    let left = fleet.all_left(PATIENCE).await?;
    ensure!(
        left.len() == args.watchers as usize,
        "{} watchers failed: {}",
        args.watchers as usize - left.len(),
        fleet.shared.deliveries.end().messages.join("; ")
    );
    let tokens: HashSet<&str> = left.iter().map(|left| left.token.as_str()).collect();
    let tokens = tokens.len();
    report::progress(&format!("all left, with {tokens} different tokens; writing on"));
    tokio::time::sleep(AWAY).await;
    let mut next = writer.stop().await?;
    // Every step changes once more when all have left, so that the newest state of each is news to all.
    let last_round = next + u64::from(args.steps);
    while next < last_round {
        let writer = write(next);
        tokio::time::sleep(Duration::from_secs_f64(f64::from(args.steps) / rate)).await;
        next = writer.stop().await?;
    }
    let last = next - 1;

    if let Some(command) = &args.between {
        report::progress(&format!("running: {command}"));
        let command = command.clone();
        // In a thread of its own: the standard library waits for the command.
        let status = tokio::task::spawn_blocking(move || {
            std::process::Command::new("sh").arg("-c").arg(command).status()
        });
        let status = status.await?.context("the command of --between could not be started")?;
        ensure!(status.success(), "the command of --between failed: {status}");
    }
    let asked = Instant::now();
    while let Err(error) = Header::of(bench.server).await {
        ensure!(asked.elapsed() < PATIENCE, "the server does not answer again: {error:#}");
        tokio::time::sleep(ASK_AGAIN).await;
    }

    let before = bench.sampler.now().await;
    bench.sampler.take_peaks();
    let count = u64::from(args.steps);
    let watchers = left
        .into_iter()
        .map(|left| Watcher {
            resume_token: Some(left.token),
            leave: Leave::CaughtUp { last, count },
        })
        .collect();
    let mut fleet = Fleet::open(bench.server, &bench.target, &bench.acknowledgements, watchers)?;
    fleet.shared.deliveries.begin();
    let back = fleet.all_left(PATIENCE).await?;
    let deliveries = fleet.shared.deliveries.end();
    let peaks = bench.sampler.take_peaks();
    let writes = written.end();

    let most_micros = u64::try_from(PATIENCE.as_micros()).unwrap_or(u64::MAX);
    let mut times = Histogram::<u64>::new_with_bounds(1, most_micros, 3).context("a histogram")?;
    for watcher in &back {
        times.saturating_record(u64::try_from(watcher.after.as_micros()).unwrap_or(u64::MAX));
    }
    let at = |quantile: f64| times.value_at_quantile(quantile) as f64 / 1e6;
    let (half, most, all) = (at(0.5), at(0.99), times.max() as f64 / 1e6);
    let mut table = report::table(&[
        "watchers",
        "tokens",
        "changes",
        "caught up p50 s",
        "p99 s",
        "all s",
        "deliveries",
        "deliveries/s",
        "errors",
    ]);
    let errors = deliveries.errors + writes.errors;
    table.add_row([
        report::whole(f64::from(args.watchers)),
        report::whole(tokens as f64),
        report::whole(last as f64),
        format!("{half:.2}"),
        format!("{most:.2}"),
        format!("{all:.2}"),
        report::whole(deliveries.count() as f64),
        report::whole(deliveries.count() as f64 / all.max(f64::EPSILON)),
        errors.to_string(),
    ]);
    let mut notes = vec![format!(
        "{} watchers resumed with {tokens} different tokens and had the newest state of {} steps",
        back.len(),
        args.steps
    )];
    if let (Some(before), Some(peak)) = (before.memory_bytes, peaks.memory_bytes) {
        notes.push(format!(
            "server memory: {} MiB before they came back, {} MiB at most",
            report::mib(before as f64),
            report::mib(peak as f64)
        ));
    }
    if let (Some(before), Some(peak)) = (before.cursors, peaks.cursors) {
        notes.push(format!("open cursors: {before} before they came back, {peak} at most"));
    }
    Ok(Report {
        json: json!({
            "workload": "watch",
            "settings": args.settings(),
            "different_tokens": tokens,
            "changes": last,
            "caught_up_watchers": back.len(),
            "caught_up_p50_seconds": half,
            "caught_up_p99_seconds": most,
            "caught_up_all_seconds": all,
            "deliveries": deliveries.count(),
            "deliveries_per_second": deliveries.count() as f64 / all.max(f64::EPSILON),
            "server_memory_before_bytes": before.memory_bytes,
            "server_memory_peak_bytes": peaks.memory_bytes,
            "open_cursors_before": before.cursors,
            "open_cursors_peak": peaks.cursors,
        }),
        tables: vec![table],
        notes,
        errors,
        messages: deliveries.messages.into_iter().chain(writes.messages).collect(),
    })
}
