//! Reports: equal to what anybody computes who lists all executions.

#![expect(clippy::disallowed_methods, reason = "tests measure real time")]

use std::collections::{BTreeMap, HashMap};

use stepwell::proto::*;

use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::values::*;

const QUARTER: i64 = 15 * 60 * 1000;
const HOUR: i64 = 4 * QUARTER;
const DAY: i64 = 24 * HOUR;
/// 2026-03-20T00:00:00Z; nine days later the clocks of Europe go forward.
const START: i64 = 1_773_964_800_000;
const DAYS: i64 = 20;

/// Numbers that look random, the same in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: i64) -> i64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        i64::try_from(self.0 >> 33).expect("31 bits") % limit
    }
}

/// A record of some app, user, status, time and duration.
fn record(number: i64, chance: &mut Chance) -> Execution {
    let app = chance.below(4);
    let status = match chance.below(10) {
        0 => ExecutionStatus::Running,
        1 | 2 => ExecutionStatus::Failed,
        3 => ExecutionStatus::Cancelled,
        _ => ExecutionStatus::Completed,
    };
    let running = status == ExecutionStatus::Running;
    let started_at = (chance.below(20) > 0).then(|| START + chance.below(DAYS * DAY));
    let duration = chance.below(300) * chance.below(300) * (app + 1);
    Execution {
        execution_id: format!("e{number}"),
        app_id: (app > 0).then(|| i32::try_from(app).expect("below 4")),
        app_name: ["plain", "one", "two", "アプリ"][usize::try_from(app).expect("below 4")].into(),
        sub_app_id: (app == 2).then(|| i32::try_from(chance.below(2)).expect("below 2")),
        user_id: (chance.below(6) > 0).then(|| format!("u{}", chance.below(5))),
        status: status.into(),
        started_at: started_at.map(time),
        duration_ms: (!running && chance.below(15) > 0).then_some(duration),
        error: (status == ExecutionStatus::Failed)
            .then(|| run_error(&format!("worker {} timed out", chance.below(1000)))),
        metadata: meta(json!({ "kind": if number % 2 == 0 { "even" } else { "odd" } })),
        ..Default::default()
    }
}

async fn put_all(s: &Client, executions: &[Execution]) {
    let put = |execution: &Execution| ingest_request::Write::PutExecution(execution.clone());
    for answer in s.ingest_all(executions.iter().map(put).collect()).await {
        assert!(matches!(answer, ingest_response::Result::Execution(_)), "{answer:?}");
    }
}

/// Many records, stored.
async fn many(s: &Client) {
    let mut chance = Chance(0x5eed_1234_abcd);
    let records: Vec<Execution> = (0..900).map(|number| record(number, &mut chance)).collect();
    put_all(s, &records).await;
}

/// All executions that match, by listing them.
async fn listed(s: &Client, filter: &ExecutionFilter) -> Vec<Execution> {
    let mut request = ListExecutionsRequest {
        filter: Some(filter.clone()),
        page_size: 1000,
        ..Default::default()
    };
    let mut all = Vec::new();
    loop {
        let page = s.list_executions(request.clone()).await;
        all.extend(page.executions);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return all;
        }
    }
}

fn window(from: i64, until: i64) -> ExecutionFilter {
    ExecutionFilter {
        started_at_from: Some(time(from)),
        started_at_until: Some(time(until)),
        ..Default::default()
    }
}

fn filters() -> Vec<ExecutionFilter> {
    let whole = window(START, START + DAYS * DAY);
    let ragged = window(START + DAY + 12_345, START + 9 * DAY + 7 * HOUR + 77);
    let value = value(json!("odd"));
    vec![
        ExecutionFilter::default(),
        whole.clone(),
        ragged.clone(),
        window(START + 5 * DAY + 100, START + 5 * DAY + 9 * 60 * 1000),
        ExecutionFilter { started_at_until: None, ..ragged.clone() },
        ExecutionFilter { started_at_from: None, ..ragged.clone() },
        ExecutionFilter { app_ids: vec![2, 3], ..Default::default() },
        ExecutionFilter { app_names: vec!["plain".into()], ..ragged.clone() },
        ExecutionFilter { sub_app_ids: vec![1], ..whole.clone() },
        ExecutionFilter { user_ids: vec!["u1".into(), "u3".into()], ..ragged.clone() },
        ExecutionFilter {
            statuses: vec![ExecutionStatus::Failed.into(), ExecutionStatus::Running.into()],
            ..ragged.clone()
        },
        ExecutionFilter { min_duration_ms: Some(20_000), ..ragged.clone() },
        ExecutionFilter { metadata: HashMap::from([("kind".into(), value)]), ..whole },
    ]
}

/// Executions in numbers, the simple way.
#[derive(Debug, Default, Clone)]
struct Sums {
    total: i64,
    by_status: BTreeMap<i32, i64>,
    durations: Vec<i64>,
}

impl Sums {
    fn add(&mut self, execution: &Execution) {
        self.total += 1;
        *self.by_status.entry(execution.status).or_default() += 1;
        self.durations.extend(execution.duration_ms);
        self.durations.sort_unstable();
    }

    fn of(&self, status: ExecutionStatus) -> i64 {
        self.by_status.get(&status.into()).copied().unwrap_or(0)
    }

    fn statuses(&self) -> [i64; 4] {
        use ExecutionStatus::*;
        [Completed, Failed, Cancelled, Running].map(|status| self.of(status))
    }

    fn success_rate(&self) -> f64 {
        if self.total == 0 {
            0.0
        } else {
            self.of(ExecutionStatus::Completed) as f64 / self.total as f64
        }
    }

    fn check_mean(&self, mean: Option<f64>) {
        let sum: i64 = self.durations.iter().sum();
        let wanted = (!self.durations.is_empty()).then(|| sum as f64 / self.durations.len() as f64);
        assert_eq!(mean.is_some(), wanted.is_some());
        if let (Some(mean), Some(wanted)) = (mean, wanted) {
            assert!((mean - wanted).abs() < 1e-6 * wanted.max(1.0), "{mean} {wanted}");
        }
    }

    fn check_quantiles(&self, told: [Option<i64>; 3]) {
        for (told, quantile) in told.into_iter().zip([0.5, 0.9, 0.99]) {
            let rank = (quantile * self.durations.len() as f64).ceil() as usize;
            let wanted = rank.checked_sub(1).and_then(|rank| self.durations.get(rank)).copied();
            assert_eq!(told.is_some(), wanted.is_some(), "{self:?}");
            if let (Some(told), Some(wanted)) = (told, wanted) {
                let off = (told - wanted).abs() as f64;
                assert!(off <= wanted as f64 / 100.0, "{quantile}: {told}, not {wanted}");
            }
        }
    }
}

fn sums<K: Ord>(executions: &[Execution], key: impl Fn(&Execution) -> K) -> BTreeMap<K, Sums> {
    let mut sums: BTreeMap<K, Sums> = BTreeMap::new();
    for execution in executions {
        sums.entry(key(execution)).or_default().add(execution);
    }
    sums
}

/// Asks until the servers have counted what was acknowledged before; they say whether they have, and wait for it
/// themselves.
macro_rules! settled {
    ($s:ident.$call:ident($request:expr)) => {{
        let request = $request;
        let deadline = std::time::Instant::now() + crate::support::PATIENCE;
        loop {
            let told = $s.$call(request.clone()).await;
            let freshness = told.freshness.as_ref().expect("a reply says what it covers");
            if freshness.counted_until.is_some() {
                break told;
            }
            assert!(std::time::Instant::now() < deadline, "never counted: {freshness:?}");
        }
    }};
}

fn complete(freshness: &Option<Freshness>) -> &Freshness {
    let freshness = freshness.as_ref().expect("a reply says what it covers");
    assert!(freshness.complete, "{freshness:?}");
    assert!(freshness.counted_until.is_some());
    freshness
}

pub async fn success_rates_equal_a_recount(b: Backend) {
    let s = b.serve().await;
    many(&s).await;
    type Key = (Option<i32>, String, Option<i32>, Option<String>, Option<String>);
    for filter in filters() {
        let executions = listed(&s, &filter).await;
        for by in [
            SuccessRateGroupBy::Unspecified,
            SuccessRateGroupBy::App,
            SuccessRateGroupBy::SubApp,
            SuccessRateGroupBy::User,
        ] {
            let key = |e: &Execution| -> Key {
                match by {
                    SuccessRateGroupBy::User => {
                        (None, String::new(), None, None, e.user_id.clone())
                    }
                    SuccessRateGroupBy::SubApp => {
                        (e.app_id, e.app_name.clone(), e.sub_app_id, e.sub_app_name.clone(), None)
                    }
                    _ => (e.app_id, e.app_name.clone(), None, None, None),
                }
            };
            let wanted = sums(&executions, key);
            let request = GetSuccessRatesRequest {
                filter: Some(filter.clone()),
                group_by: by.into(),
                ..Default::default()
            };
            let told = settled!(s.get_success_rates(request));
            let freshness = complete(&told.freshness);
            let from_records = filter.min_duration_ms.is_some() || !filter.metadata.is_empty();
            assert_eq!(freshness.exact_since.is_none(), from_records);
            assert_eq!(told.total_groups, told.groups.len() as i64);
            assert_eq!(told.groups.len(), wanted.len(), "{filter:?} {by:?}");
            assert!(told.groups.is_sorted_by_key(|group| -group.total));
            for group in &told.groups {
                let key = (
                    group.app_id,
                    group.app_name.clone(),
                    group.sub_app_id,
                    group.sub_app_name.clone(),
                    group.user_id.clone(),
                );
                let wanted = wanted.get(&key).unwrap_or_else(|| panic!("no group {key:?}"));
                assert_eq!(group.total, wanted.total, "{filter:?} {key:?}");
                let told = [group.completed, group.failed, group.cancelled, group.running];
                assert_eq!(told, wanted.statuses(), "{filter:?} {key:?}");
                assert_eq!(group.success_rate, wanted.success_rate());
                wanted.check_mean(group.mean_duration_ms);
            }
        }
    }
    let request = GetSuccessRatesRequest { limit: 2, ..Default::default() };
    let told = settled!(s.get_success_rates(request));
    assert_eq!((told.groups.len(), told.total_groups), (2, 4));
}

pub async fn a_report_counts_what_was_acknowledged_before(b: Backend) {
    let s = b.serve().await;
    let counts = async || {
        let request = GetReportRequest { periods: 2, ..Default::default() };
        let report = settled!(s.get_report(request));
        complete(&report.freshness);
        let today = report.periods.last().expect("today").clone();
        assert!(today.partial);
        [today.executions, today.completed, today.failed, today.running]
    };
    assert_eq!(counts().await, [0; 4]);
    s.create("a").await;
    s.create("b").await;
    assert_eq!(counts().await, [2, 0, 0, 2]);
    s.finish("a", ExecutionStatus::Completed).await;
    s.finish("b", ExecutionStatus::Failed).await;
    assert_eq!(counts().await, [2, 1, 1, 0]);
    let delete = DeleteExecutionRequest { execution_id: "b".into(), force: false };
    s.delete_execution(delete).await;
    assert_eq!(counts().await, [1, 1, 0, 0]);
}

pub async fn reports_equal_a_recount_in_every_time_zone(b: Backend) {
    let s = b.serve().await;
    many(&s).await;
    for (zone, period, filter) in [
        ("", ReportPeriod::Day, window(START, START + DAYS * DAY)),
        ("Europe/Berlin", ReportPeriod::Day, window(START, START + DAYS * DAY)),
        ("Asia/Kathmandu", ReportPeriod::Day, window(START + 5, START + 8 * DAY)),
        ("Australia/Lord_Howe", ReportPeriod::Week, window(START, START + DAYS * DAY)),
        ("America/St_Johns", ReportPeriod::Month, window(START, START + DAYS * DAY)),
        (
            "Europe/Berlin",
            ReportPeriod::Week,
            ExecutionFilter {
                user_ids: vec!["u2".into()],
                statuses: vec![ExecutionStatus::Completed.into(), ExecutionStatus::Failed.into()],
                ..window(START, START + DAYS * DAY)
            },
        ),
        (
            "Europe/Berlin",
            ReportPeriod::Day,
            ExecutionFilter { min_duration_ms: Some(5_000), ..window(START, START + DAYS * DAY) },
        ),
    ] {
        let executions = listed(&s, &filter).await;
        let request = GetReportRequest {
            filter: Some(filter.clone()),
            period: period.into(),
            time_zone: zone.into(),
            ..Default::default()
        };
        let report = settled!(s.get_report(request));
        complete(&report.freshness);
        assert_eq!(report.time_zone, if zone.is_empty() { "UTC" } else { zone });
        let counted: i64 = report.periods.iter().map(|row| row.executions).sum();
        assert_eq!(counted, executions.len() as i64, "{zone} {period:?}");
        assert!(report.periods.is_sorted_by_key(|row| millis(&row.start)));
        for two in report.periods.windows(2) {
            assert_eq!(two[0].end, two[1].start, "{zone} {period:?}");
        }
        for row in &report.periods {
            let span = millis(&row.start)..millis(&row.end);
            let inside: Vec<Execution> = executions
                .iter()
                .filter(|execution| span.contains(&millis(&execution.started_at)))
                .cloned()
                .collect();
            let all = sums(&inside, |_| ()).remove(&()).unwrap_or_default();
            assert_eq!(row.executions, all.total, "{zone} {}", row.label);
            let told = [row.completed, row.failed, row.cancelled, row.running];
            assert_eq!(told, all.statuses(), "{zone} {}", row.label);
            assert_eq!(row.success_rate, all.success_rate());
            all.check_mean(row.mean_duration_ms);
            all.check_quantiles([row.p50_duration_ms, row.p90_duration_ms, row.p99_duration_ms]);
            let apps = sums(&inside, |e| (e.app_id, e.app_name.clone()));
            assert_eq!(row.total_apps, apps.len() as i64);
            assert_eq!(row.apps.len(), apps.len());
            for app in &row.apps {
                let wanted = &apps[&(app.app_id, app.app_name.clone())];
                assert_eq!(app.executions, wanted.total);
                let told = [app.completed, app.failed, app.cancelled, app.running];
                assert_eq!(told, wanted.statuses());
                wanted.check_mean(app.mean_duration_ms);
                let told = [app.p50_duration_ms, app.p90_duration_ms, app.p99_duration_ms];
                wanted.check_quantiles(told);
            }
        }
        for two in report.periods.windows(2).filter(|two| !two[0].partial && !two[1].partial) {
            let change = two[1].change.as_ref().expect("a change between whole periods");
            assert_eq!(change.previous_executions, two[0].executions);
            if two[0].executions > 0 {
                let wanted = two[1].executions as f64 / two[0].executions as f64 - 1.0;
                assert_eq!(change.executions_change, Some(wanted));
            }
        }
    }
}

pub async fn days_are_as_long_as_they_are_where_the_clock_changes(b: Backend) {
    let s = b.serve().await;
    // One execution each 15 minutes of the days around the change.
    let mut records = Vec::new();
    let begin = START + 7 * DAY;
    for number in 0..4 * 96 {
        records.push(Execution {
            execution_id: format!("q{number}"),
            app_name: "app".into(),
            status: ExecutionStatus::Completed.into(),
            started_at: Some(time(begin + number * QUARTER)),
            ..Default::default()
        });
    }
    put_all(&s, &records).await;
    for (zone, period, wanted) in [
        ("", ReportPeriod::Day, vec![("2026-03-28", 96), ("2026-03-29", 96)]),
        ("Europe/Berlin", ReportPeriod::Day, vec![("2026-03-28", 96), ("2026-03-29", 92)]),
        ("Europe/Berlin", ReportPeriod::Week, vec![("2026-W13", 280), ("2026-W14", 104)]),
        ("Asia/Kathmandu", ReportPeriod::Day, vec![("2026-03-28", 96), ("2026-03-29", 96)]),
        ("", ReportPeriod::Month, vec![("2026-03", 384)]),
    ] {
        let request = GetReportRequest {
            filter: Some(window(begin, begin + 4 * DAY)),
            period: period.into(),
            time_zone: zone.into(),
            ..Default::default()
        };
        let report = settled!(s.get_report(request));
        complete(&report.freshness);
        for (label, executions) in wanted {
            let row = report.periods.iter().find(|row| row.label == label);
            let row = row.unwrap_or_else(|| panic!("no {label} in {zone}"));
            assert_eq!(row.executions, executions, "{zone} {label}");
        }
    }
}

pub async fn a_report_tells_which_steps_fail_and_what_changed(b: Backend) {
    let s = b.serve().await;
    let mut writes = Vec::new();
    for day in 0..2_i64 {
        for number in 0..10_i64 {
            let id = format!("d{day}n{number}");
            let failed = number < 2 + day * 3;
            writes.push(ingest_request::Write::PutExecution(Execution {
                execution_id: id.clone(),
                app_id: Some(7),
                app_name: "app".into(),
                user_id: Some(format!("u{}", number % 2)),
                status: if failed { ExecutionStatus::Failed } else { ExecutionStatus::Completed }
                    .into(),
                started_at: Some(time(START + day * DAY + number * HOUR)),
                duration_ms: Some(1000 * (day + 1)),
                ..Default::default()
            }));
            for (step_id, name, fails) in [(1, "load", failed), (2, "write", number == 0)] {
                writes.push(ingest_request::Write::PutStep(Step {
                    execution_id: id.clone(),
                    step_id: Some(step_id),
                    step_name: name.into(),
                    status: if fails { StepStatus::Failed } else { StepStatus::Completed }.into(),
                    error: fails.then(|| run_error(&format!("cannot {name} row {number}"))),
                    ..Default::default()
                }));
            }
        }
    }
    s.ingest_all(writes).await;
    for user_ids in [vec![], vec!["u0".to_owned(), "u1".to_owned()]] {
        let filter = ExecutionFilter { user_ids, ..window(START, START + 2 * DAY) };
        let request = GetReportRequest { filter: Some(filter), ..Default::default() };
        let report = settled!(s.get_report(request));
        complete(&report.freshness);
        let [first, second] = &report.periods[..] else { panic!("two days") };
        let failing = |row: &ReportRow| -> Vec<(String, i64, i64)> {
            let steps = row.top_failing_steps.iter();
            steps.map(|step| (step.step_name.clone(), step.failed, step.errors)).collect()
        };
        assert_eq!(failing(first), [("load".into(), 2, 1), ("write".into(), 1, 1)]);
        assert_eq!(failing(second), [("load".into(), 5, 1), ("write".into(), 1, 1)]);
        assert_eq!(second.top_failing_steps[0].app_id, Some(7));
        assert_eq!(second.top_failing_steps[0].top_fingerprint.len(), 16);
        let change = second.change.as_ref().expect("a change");
        assert_eq!((change.previous_executions, change.executions_change), (10, Some(0.0)));
        assert!((change.success_rate_change.expect("a change") + 0.3).abs() < 1e-9);
        assert!((change.p90_duration_change.expect("a change") - 1.0).abs() < 0.03);
        assert_eq!(change.mean_duration_change, Some(1.0));
        assert_eq!(second.apps[0].change.as_ref(), Some(change));
        // Nothing ran on the day before.
        let change = first.change.as_ref().expect("compared with an empty day");
        assert_eq!((change.previous_executions, change.executions_change), (0, None));
    }
}

pub async fn trends_equal_a_recount_and_flag_what_became_slower(b: Backend) {
    let s = b.serve().await;
    let mut chance = Chance(0x7e57);
    let mut records = Vec::new();
    for (app, late, usual) in
        [("slower", 3000, 1000), ("faster", 300, 1000), ("steady", 1000, 1000)]
    {
        for number in 0..400_i64 {
            let at = START + number * DAY / 40;
            let base = if number >= 320 { late } else { usual };
            records.push(Execution {
                execution_id: format!("{app}{number}"),
                app_name: app.into(),
                status: ExecutionStatus::Completed.into(),
                started_at: Some(time(at)),
                duration_ms: Some(base + chance.below(base / 2)),
                ..Default::default()
            });
        }
    }
    for number in 0..5_i64 {
        records.push(Execution {
            execution_id: format!("few{number}"),
            app_name: "few".into(),
            status: ExecutionStatus::Failed.into(),
            started_at: Some(time(START + number * DAY)),
            duration_ms: Some(10_i64.pow(u32::try_from(number).expect("few"))),
            ..Default::default()
        });
    }
    put_all(&s, &records).await;
    for (interval, zone) in [(DAY, ""), (DAY, "Asia/Kathmandu"), (5 * HOUR, ""), (QUARTER, "")] {
        let filter = window(START, START + 10 * DAY);
        let executions = listed(&s, &filter).await;
        let request = GetTrendsRequest {
            filter: Some(filter),
            interval: Some(prost_types::Duration { seconds: interval / 1000, nanos: 0 }),
            time_zone: zone.into(),
            ..Default::default()
        };
        let trends = settled!(s.get_trends(request));
        complete(&trends.freshness);
        let counted: i64 = trends.intervals.iter().map(|interval| interval.executions).sum();
        assert_eq!(counted, executions.len() as i64);
        for told in &trends.intervals {
            let span = millis(&told.start)..millis(&told.end);
            assert_eq!(span.end.zip(span.start).map(|(end, start)| end - start), Some(interval));
            let inside = executions.iter().filter(|execution| {
                execution.app_name == told.app_name && span.contains(&millis(&execution.started_at))
            });
            let mut wanted = Sums::default();
            inside.for_each(|execution| wanted.add(execution));
            assert_eq!(told.executions, wanted.total);
            let statuses = [told.completed, told.failed, told.cancelled, told.running];
            assert_eq!(statuses, wanted.statuses());
            wanted.check_mean(told.mean_duration_ms);
            let told = [told.p50_duration_ms, told.p90_duration_ms, told.p99_duration_ms];
            wanted.check_quantiles(told);
        }
        let directions: BTreeMap<&str, (TrendDirection, bool)> = trends
            .apps
            .iter()
            .map(|app| (app.app_name.as_str(), (app.direction(), app.significant)))
            .collect();
        assert_eq!(directions["slower"], (TrendDirection::Slower, true));
        assert_eq!(directions["faster"], (TrendDirection::Faster, true));
        assert_eq!(directions["steady"], (TrendDirection::Steady, false));
        assert_eq!(directions["few"], (TrendDirection::Unknown, false));
        let slower = trends.apps.iter().find(|app| app.app_name == "slower").expect("it is there");
        assert!(slower.text.starts_with("slower: p90 1."), "{}", slower.text);
        assert!(slower.text.contains("s → 4."), "{}", slower.text);
        assert_eq!(trends.total_apps, 4);
    }
}

pub async fn activity_equals_a_recount_by_hour_of_the_week(b: Backend) {
    let s = b.serve().await;
    many(&s).await;
    for (zone, offset) in
        [("", 0), ("Asia/Kathmandu", 5 * HOUR + 3 * QUARTER), ("Asia/Tokyo", 9 * HOUR)]
    {
        for filter in [
            window(START + 77, START + DAYS * DAY),
            ExecutionFilter { app_ids: vec![1], ..window(START, START + 9 * DAY) },
            ExecutionFilter { min_duration_ms: Some(100), ..window(START, START + 9 * DAY) },
        ] {
            let executions = listed(&s, &filter).await;
            // The epoch was a Thursday.
            let hour = |e: &Execution| {
                let local = millis(&e.started_at).expect("in the window") + offset + 3 * DAY;
                i32::try_from(local.rem_euclid(7 * DAY) / HOUR).expect("below 168")
            };
            let request = GetUserActivityRequest {
                filter: Some(filter.clone()),
                time_zone: zone.into(),
                ..Default::default()
            };
            let activity = settled!(s.get_user_activity(request));
            complete(&activity.freshness);
            assert_eq!(activity.executions, executions.len() as i64);
            let told = |hours: &[HourActivity]| -> BTreeMap<i32, i64> {
                hours.iter().map(|hour| (hour.hour_of_week, hour.executions)).collect()
            };
            let count = |some: &[Execution]| -> BTreeMap<i32, i64> {
                sums(some, hour).into_iter().map(|(hour, sums)| (hour, sums.total)).collect()
            };
            assert_eq!(told(&activity.hours), count(&executions), "{zone}");
            let users = sums(&executions, |e| e.user_id.clone());
            assert_eq!(activity.users.len(), users.len());
            for user in &activity.users {
                let of_user: Vec<Execution> =
                    executions.iter().filter(|e| e.user_id == user.user_id).cloned().collect();
                assert_eq!(user.executions, of_user.len() as i64);
                assert_eq!(told(&user.hours), count(&of_user), "{zone} {:?}", user.user_id);
            }
        }
    }
}

pub async fn the_slowest_steps_come_first(b: Backend) {
    let s = b.serve().await;
    let mut chance = Chance(0x51033);
    let mut writes = Vec::new();
    let mut durations: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for number in 0..60_i64 {
        let id = format!("e{number}");
        writes.push(ingest_request::Write::PutExecution(Execution {
            execution_id: id.clone(),
            app_name: "app".into(),
            status: ExecutionStatus::Completed.into(),
            started_at: Some(time(START + number * HOUR)),
            ..Default::default()
        }));
        for (step_id, name, scale) in [(1, "fetch", 100), (2, "think", 9000), (3, "save", 7)] {
            let duration = chance.below(scale) + scale;
            durations.entry(name).or_default().push(duration);
            writes.push(ingest_request::Write::PutStep(Step {
                execution_id: id.clone(),
                step_id: Some(step_id),
                step_name: name.into(),
                status: if number % 10 == 0 { StepStatus::Failed } else { StepStatus::Completed }
                    .into(),
                duration_ms: Some(duration),
                ..Default::default()
            }));
        }
    }
    s.ingest_all(writes).await;
    let told = settled!(s.list_slowest_steps(ListSlowestStepsRequest::default()));
    complete(&told.freshness);
    let names: Vec<&str> = told.steps.iter().map(|step| step.step_name.as_str()).collect();
    assert_eq!(names, ["think", "fetch", "save"]);
    assert_eq!((told.steps_read, told.total_steps), (180, 3));
    for step in &told.steps {
        let mut wanted =
            Sums { durations: durations[step.step_name.as_str()].clone(), ..Default::default() };
        wanted.durations.sort_unstable();
        assert_eq!((step.count, step.failed, step.timed), (60, 6, 60));
        wanted.check_mean(Some(step.mean_duration_ms));
        let quantiles = [step.p50_duration_ms, step.p90_duration_ms, step.p99_duration_ms];
        wanted.check_quantiles(quantiles.map(Some));
        assert_eq!(Some(&step.max_duration_ms), wanted.durations.last());
        let slowest = s.step(&step.execution_id, step.step_id.expect("its number")).await;
        assert_eq!(slowest.duration_ms, Some(step.max_duration_ms));
    }
    // The newest ten only.
    let request = ListSlowestStepsRequest { max_executions: 10, limit: 1, ..Default::default() };
    let told = settled!(s.list_slowest_steps(request));
    assert_eq!((told.steps.len(), told.total_steps, told.steps_read), (1, 3, 30));
    assert_eq!(told.steps[0].count, 10);
    let freshness = told.freshness.expect("a reply says what it covers");
    assert!(!freshness.complete);
    assert_eq!(freshness.executions_read, 10);
    assert_eq!(millis(&freshness.read_from), Some(START + 50 * HOUR));
}

/// After a bulk load a reply does not wait until it is counted: it comes at once, and says what is missing.
pub async fn reports_do_not_wait_for_a_bulk_load(b: Backend) {
    const EXECUTIONS: i64 = 12_000;
    let s = b.serve().await;
    let mut chance = Chance(7);
    let records: Vec<Execution> = (0..EXECUTIONS)
        .map(|number| Execution {
            error: Some(run_error(&format!("disk {number} is full"))),
            ..record(number, &mut chance)
        })
        .collect();
    put_all(&s, &records).await;
    let request = GetSuccessRatesRequest::default();
    let search = SearchRequest { query: "disk full".into(), ..Default::default() };
    let (mut answers, mut late) = (0, 0);
    let deadline = std::time::Instant::now() + 2 * crate::support::PATIENCE;
    let told = loop {
        let asked = std::time::Instant::now();
        let told = s.get_success_rates(request.clone()).await;
        let page = s.search(search.clone()).await;
        answers += 1;
        late += i32::from(asked.elapsed() > std::time::Duration::from_millis(1_500));
        let freshness = told.freshness.as_ref().expect("a reply says what it covers");
        assert_eq!(freshness.complete, freshness.counted_until.is_some());
        assert!(!(freshness.complete && freshness.not_counted_since.is_some()));
        assert!(!(page.up_to_date && page.not_indexed_since.is_some()));
        if freshness.complete && page.up_to_date {
            break told;
        }
        // What is there already is told all the same.
        let counted: i64 = told.groups.iter().map(|group| group.total).sum();
        assert!(counted <= EXECUTIONS);
        assert!(std::time::Instant::now() < deadline, "never counted: {freshness:?}");
    };
    // The last ones may wait for what is nearly there.
    assert!(late * 2 <= answers + 4, "{late} of {answers} answers waited");
    assert_eq!(told.groups.iter().map(|group| group.total).sum::<i64>(), EXECUTIONS);
}

pub async fn alike_errors_are_one_error(b: Backend) {
    let s = b.serve().await;
    let mut writes = Vec::new();
    for number in 0..30_i64 {
        let id = format!("e{number}");
        let at = START + number * HOUR;
        let message = format!("timeout after {number} s at 10.0.0.{number}:80 for user-{number}");
        writes.push(ingest_request::Write::PutExecution(Execution {
            execution_id: id.clone(),
            app_name: if number % 3 == 0 { "b" } else { "a" }.into(),
            user_id: Some("u".into()),
            status: ExecutionStatus::Failed.into(),
            started_at: Some(time(at)),
            completed_at: Some(time(at + 1000)),
            error: Some(run_error(&message)),
            ..Default::default()
        }));
        if number < 10 {
            writes.push(ingest_request::Write::PutStep(Step {
                execution_id: id,
                step_id: Some(4),
                step_name: "load".into(),
                status: StepStatus::Failed.into(),
                completed_at: Some(time(at + 500)),
                error: Some(run_error("cannot read the table")),
                ..Default::default()
            }));
        }
    }
    s.ingest_all(writes).await;
    // From rollups, and from the records.
    for user_ids in [vec![], vec!["u".to_owned()]] {
        let filter = ExecutionFilter { user_ids, ..window(START, START + 2 * DAY) };
        let request = ListTopErrorsRequest { filter: Some(filter.clone()), ..Default::default() };
        let told = settled!(s.list_top_errors(request));
        let freshness = complete(&told.freshness);
        assert_eq!(freshness.exact_since.is_some(), filter.user_ids.is_empty());
        let [timeout, load] = &told.errors[..] else { panic!("two errors: {:?}", told.errors) };
        assert_eq!((timeout.count, timeout.executions, timeout.steps), (30, 30, 0));
        assert_eq!(timeout.pattern, "timeout after <duration> at <address> for user-<number>");
        assert_eq!(millis(&timeout.first_seen), Some(START + 1000));
        assert_eq!(millis(&timeout.last_seen), Some(START + 29 * HOUR + 1000));
        assert_eq!(timeout.app_names, ["a", "b"]);
        let samples: Vec<&str> =
            timeout.samples.iter().map(|sample| sample.execution_id.as_str()).collect();
        assert_eq!(samples, ["e29", "e28", "e27"]);
        assert_eq!((load.count, load.executions, load.steps), (10, 0, 10));
        assert_eq!(load.step_names, ["load"]);
        assert_eq!(load.samples[0].step_id, Some(4));
        assert_eq!(load.samples[0].message, "cannot read the table");
        assert_eq!(told.total_errors, 2);
        for error in &told.errors {
            assert_eq!(error.trend.len(), told.interval_starts.len());
            assert_eq!(error.trend.iter().sum::<i64>(), error.count);
        }
        assert!(load.trend.iter().rev().take(5).all(|count| *count == 0));
        // A part of the window, on no quarter of an hour.
        let part = window(START + HOUR - 1, START + 4 * HOUR + 1);
        let part = ExecutionFilter { user_ids: filter.user_ids.clone(), ..part };
        let request = ListTopErrorsRequest { filter: Some(part), limit: 1, ..Default::default() };
        let told = settled!(s.list_top_errors(request));
        assert_eq!((told.errors.len(), told.total_errors, told.errors[0].count), (1, 2, 4));
    }
}

pub async fn every_bad_field_of_a_report_is_named(b: Backend) {
    let s = b.serve().await;
    let filter = || Some(ExecutionFilter { app_ids: vec![1; 51], ..Default::default() });
    let fields = |named: Vec<(String, String)>| -> Vec<String> {
        named.into_iter().map(|(field, _)| field).collect()
    };
    let request = GetSuccessRatesRequest { filter: filter(), group_by: 9, limit: 1001 };
    let named = fields(bad_fields(s.try_get_success_rates(request).await));
    assert_eq!(named, ["filter.app_ids", "group_by", "limit"]);
    let request = GetReportRequest {
        filter: filter(),
        period: 9,
        time_zone: "Europe/Atlantis".into(),
        periods: 401,
        limit: -1,
    };
    let named = fields(bad_fields(s.try_get_report(request).await));
    assert_eq!(named, ["filter.app_ids", "limit", "period", "periods", "time_zone"]);
    for seconds in [0, -900, 60, 901, 367 * 24 * 3600, i64::MAX] {
        let interval = Some(prost_types::Duration { seconds, nanos: 0 });
        let request = GetTrendsRequest { interval, time_zone: "x".into(), ..Default::default() };
        let named = fields(bad_fields(s.try_get_trends(request).await));
        assert_eq!(named, ["interval", "time_zone"]);
    }
    let request =
        GetUserActivityRequest { time_zone: "Mars".into(), limit: 1001, filter: filter() };
    let named = fields(bad_fields(s.try_get_user_activity(request).await));
    assert_eq!(named, ["filter.app_ids", "limit", "time_zone"]);
    let request = ListSlowestStepsRequest { limit: 1001, max_executions: 10_001, filter: None };
    let named = fields(bad_fields(s.try_list_slowest_steps(request).await));
    assert_eq!(named, ["limit", "max_executions"]);
    let request = ListTopErrorsRequest { limit: 201, samples: 11, filter: filter() };
    let named = fields(bad_fields(s.try_list_top_errors(request).await));
    assert_eq!(named, ["filter.app_ids", "limit", "samples"]);
    // Windows that would be cut into too much.
    let long = || Some(window(START, START + 500 * DAY));
    let request = GetReportRequest { filter: long(), ..Default::default() };
    assert_eq!(fields(bad_fields(s.try_get_report(request).await)), ["filter.started_at_from"]);
    let interval = Some(prost_types::Duration { seconds: 900, nanos: 0 });
    let request = GetTrendsRequest { filter: long(), interval, ..Default::default() };
    assert_eq!(fields(bad_fields(s.try_get_trends(request).await)), ["interval"]);
    let request = GetUserActivityRequest { filter: long(), ..Default::default() };
    assert_eq!(
        fields(bad_fields(s.try_get_user_activity(request).await)),
        ["filter.started_at_from"]
    );
}
