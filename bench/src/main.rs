//! The `stepwell-bench` program: measures a running server from outside, over gRPC like any other client, and
//! the database without it for comparison. It knows nothing of how the server works; only the modules named
//! `direct`, and the sampler of open cursors, reach a database or a storage.

#![expect(clippy::disallowed_methods, reason = "what is measured here is real time")]

mod artifacts;
mod connect;
mod dice;
mod hostile;
mod lists;
mod machine;
mod measure;
mod metrics;
mod report;
mod search;
mod track;
mod watch;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};

/// Measures a running server: how fast it takes changes and files, how fast watchers see them, and
/// how fast it answers lists and searches.
///
/// The load generator runs in this process. When server, database and load generator share a machine they
/// share its cores too: compare ratios measured in one run, not figures of different machines. Any error during a
/// measurement is printed and makes the exit code 1. A key in STEPWELL_KEY is sent with every call.
#[derive(Debug, Parser)]
#[command(name = "stepwell-bench", version, max_term_width = 110)]
struct Args {
    /// Address of the server.
    #[arg(
        long,
        value_name = "ADDR",
        env = "STEPWELL_SERVER",
        default_value = "http://127.0.0.1:50051",
        global = true
    )]
    server: String,
    /// How to write the results. Progress goes to stderr.
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t, global = true)]
    output: Format,
    #[command(subcommand)]
    workload: Workload,
}

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: one object; every name ends in its unit.
    Json,
}

#[derive(Debug, Subcommand)]
enum Workload {
    Track(track::Args),
    Watch(watch::Args),
    Lists(lists::Args),
    Metrics(metrics::Args),
    Artifacts(artifacts::Args),
    Search(search::Args),
    Hostile(hostile::Args),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let ended = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start threads")
        .and_then(|runtime| runtime.block_on(run(args)));
    ended.unwrap_or_else(|error| {
        report::progress(&format!("error: {error:#}"));
        ExitCode::from(2)
    })
}

/// Runs a workload and prints what it measured. The code is 1 if anything went wrong on the way.
async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let server = connect::Server::new(&args.server)?;
    let header = report::Header::of(&server).await?;
    report::progress(&header.line());
    let report = match args.workload {
        Workload::Track(track) => track::run(&server, &track).await?,
        Workload::Watch(watch) => watch::run(&server, &watch).await?,
        Workload::Lists(lists) => lists::run(&server, &lists).await?,
        Workload::Metrics(metrics) => metrics::run(&server, &metrics).await?,
        Workload::Artifacts(artifacts) => artifacts::run(&server, &artifacts).await?,
        Workload::Search(search) => search::run(&server, &search).await?,
        Workload::Hostile(hostile) => hostile::run(&server, &hostile).await?,
    };
    report.print(&header, args.output)?;
    Ok(if report.errors == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// A duration of the command line, in seconds.
fn seconds(given: &str) -> Result<f64, String> {
    let seconds: f64 = given.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=86_400.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("must be from 0 to 86400".to_owned())
    }
}
