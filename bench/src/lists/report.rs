//! What was measured, in figures.

use serde::Serialize;
use serde_json::json;

use super::Args;
use super::questions::{Kind, PAGE};
use crate::measure::{Latency, median};
use crate::report::{self, Report};

/// One round's figures.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub lists_per_second: f64,
    pub lists: u64,
    pub records_per_list: f64,
    pub measured_seconds: f64,
    pub latency: Latency,
    pub server_cpu_us_per_list: Option<f64>,
    pub errors: u64,
}

/// The rounds of one way.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub way: &'static str,
    pub lists_per_second: f64,
    pub records_per_list: f64,
    pub latency: Latency,
    pub server_cpu_us_per_list: Option<f64>,
    pub errors: u64,
    pub rounds: Vec<Outcome>,
}

impl Summary {
    pub fn of(way: &'static str, rounds: Vec<Outcome>) -> Self {
        let latencies: Vec<Latency> = rounds.iter().map(|round| round.latency).collect();
        let cpu: Option<Vec<f64>> =
            rounds.iter().map(|round| round.server_cpu_us_per_list).collect();
        Summary {
            way,
            lists_per_second: median(rounds.iter().map(|round| round.lists_per_second)),
            records_per_list: median(rounds.iter().map(|round| round.records_per_list)),
            latency: Latency::of_rounds(&latencies),
            server_cpu_us_per_list: cpu
                .filter(|cpu| !cpu.is_empty())
                .map(|cpu| median(cpu.into_iter())),
            errors: rounds.iter().map(|round| round.errors).sum(),
            rounds,
        }
    }
}

/// One question to one size of set.
#[derive(Debug, Clone, Serialize)]
pub struct Result {
    pub executions: u64,
    pub question: Kind,
    pub server: Summary,
    pub direct: Option<Summary>,
    /// Server divided by direct: above 1 the server is faster.
    pub throughput_ratio: Option<f64>,
    /// p50 of the server divided by that of the smallest set: 1 means that size does not matter.
    pub p50_to_smallest: Option<f64>,
}

impl Result {
    pub fn new(executions: u64, question: Kind, server: Summary, direct: Option<Summary>) -> Self {
        let throughput_ratio = direct
            .as_ref()
            .filter(|direct| direct.lists_per_second > 0.0)
            .map(|direct| server.lists_per_second / direct.lists_per_second);
        Result { executions, question, server, direct, throughput_ratio, p50_to_smallest: None }
    }
}

/// Compares every size with the smallest one.
pub fn compare_sizes(results: &mut [Result]) {
    for question in Kind::ALL {
        let smallest = results.iter().filter(|result| result.question == question);
        let smallest = smallest.min_by_key(|result| result.executions);
        let Some(p50_ms) = smallest.map(|result| result.server.latency.p50_ms) else { continue };
        for result in results.iter_mut().filter(|result| result.question == question) {
            let p50 = result.server.latency.p50_ms;
            result.p50_to_smallest = (p50_ms > 0.0).then(|| p50 / p50_ms);
        }
    }
}

pub fn report(args: &Args, results: &[Result], messages: Vec<String>) -> Report {
    let mut table = report::table(&[
        "question",
        "executions",
        "way",
        "lists/s",
        "range",
        "p50 ms",
        "p99 ms",
        "records",
        "errors",
        "server CPU us",
        "server/direct",
        "to smallest",
    ]);
    let times = |ratio: Option<f64>| ratio.map_or(String::new(), |ratio| format!("{ratio:.2}x"));
    let results_of = |kind| results.iter().filter(move |result| result.question == kind);
    for result in Kind::ALL.into_iter().flat_map(results_of) {
        for summary in [Some(&result.server), result.direct.as_ref()].into_iter().flatten() {
            let rates = || summary.rounds.iter().map(|round| round.lists_per_second);
            let of_server = std::ptr::eq(summary, &raw const result.server);
            table.add_row([
                result.question.name().to_owned(),
                report::whole(result.executions as f64),
                summary.way.to_owned(),
                report::whole(summary.lists_per_second),
                format!(
                    "{}-{}",
                    report::whole(rates().fold(f64::INFINITY, f64::min)),
                    report::whole(rates().fold(0.0, f64::max))
                ),
                report::ms(summary.latency.p50_ms),
                report::ms(summary.latency.p99_ms),
                format!("{:.1}", summary.records_per_list),
                summary.errors.to_string(),
                summary.server_cpu_us_per_list.map_or(String::new(), report::whole),
                times(result.throughput_ratio.filter(|_| of_server)),
                times(result.p50_to_smallest.filter(|_| of_server)),
            ]);
        }
    }
    let summaries = results
        .iter()
        .flat_map(|result| [Some(&result.server), result.direct.as_ref()].into_iter().flatten());
    Report {
        json: json!({
            "workload": "lists",
            "settings": {
                "executions": args.executions,
                "clients": args.clients,
                "page_size": PAGE,
                "seconds": args.seconds,
                "warmup_seconds": args.warmup,
                "rounds": args.rounds,
                "direct": args.direct.is_some(),
            },
            "results": results,
        }),
        tables: vec![table],
        notes: vec![format!(
            "{} clients, {} round(s) of {} s each after {} s of warm-up; medians",
            args.clients, args.rounds, args.seconds, args.warmup
        )],
        errors: summaries.map(|summary| summary.errors).sum(),
        messages,
    }
}
