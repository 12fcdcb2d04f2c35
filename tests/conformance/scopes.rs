//! Apps that a caller may not see: as if they were not there.

#![expect(clippy::disallowed_methods, reason = "tests measure real time")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use prost::Message;
use stepwell::proto::watch_execution_response::Event;
use stepwell::proto::*;
use stepwell::rpc::catalog;
use tonic::Code;

use super::access::{Fixture, configuration, fixture, messages, reason};
use crate::support::access::{Caller, Guarded};
use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::{eventually, in_time};

const GET: &str = "ExecutionService/GetExecution";
const LIST: &str = "ExecutionService/ListExecutions";
const CREATE: &str = "ExecutionService/CreateExecution";

/// What the answer to a call says, with the ids of what it is about left out.
fn said(answer: Answer<Vec<Vec<u8>>>, about: &Fixture) -> String {
    match answer {
        Ok(messages) => format!("{} messages", messages.len()),
        Err(status) => {
            let message =
                status.message().replace(&about.id, "ID").replace(&about.artifact, "ARTIFACT");
            format!("{:?} {} {message}", status.code(), reason(&status))
        }
    }
}

/// Every method about something of another app, and about something that never was: the same answers, word by word.
pub async fn absent_and_forbidden_cannot_be_told_apart(b: Backend) {
    let g = Guarded::start(&b).await;
    let editor = g.caller("editor", &["theirs"]).await;
    let publish = |app: &str| PublishConfigurationRequest {
        configuration: Some(configuration(app, "1")),
        activate: true,
    };
    let _: PublishConfigurationResponse =
        ok(g.admin.unary("ConfigurationService/PublishConfiguration", publish("mine")).await);
    let mut told = 0;
    for service in catalog::api() {
        for method in &service.methods {
            let method = format!("{}/{method}", service.name);
            if ["AdminService", "AuthService"].iter().any(|name| method.contains(name)) {
                continue;
            }
            let there = fixture(&g.admin, "mine", &method.replace(['/', '.'], "-")).await;
            let absent = Fixture {
                app: "mine",
                id: "x".repeat(there.id.len()),
                artifact: "0123456789abcdef01234567".to_owned(),
            };
            let path = format!("/{method}");
            let forbidden = editor.call(&path, messages(&method, &there)).await;
            if let Ok(answers) = &forbidden {
                for answer in answers {
                    let shown = String::from_utf8_lossy(answer);
                    // An answer of Ingest is a refusal that names what was asked for.
                    let is_theirs = method.ends_with("/Ingest") || !shown.contains(&there.id);
                    assert!(is_theirs && !shown.contains("words of a log"), "{method}: {shown}");
                }
            }
            let forbidden = said(forbidden, &there);
            let unknown = said(editor.call(&path, messages(&method, &absent)).await, &absent);
            assert_eq!(forbidden, unknown, "{method}");
            told += 1;
            // And it is as it was.
            let request = GetExecutionRequest {
                execution_id: there.id.clone(),
                view: ExecutionView::Full.into(),
            };
            let stored: GetExecutionResponse = ok(g.admin.unary(GET, request).await);
            let stored_steps: Vec<i32> =
                stored.steps.iter().filter_map(|step| step.step_id).collect();
            assert_eq!((stored_steps, stored.artifacts.len()), (vec![1], 1), "{method}");
            assert_eq!(stored.execution.expect("it is there").status(), ExecutionStatus::Running);
        }
    }
    assert!(told > 35, "{told}");
}

pub async fn a_new_record_outside_the_scope_is_refused(b: Backend) {
    let g = Guarded::start(&b).await;
    let numbered = g.caller("editor", &["mine#7"]).await;
    let create = |id: &str, app: &str, app_id| CreateExecutionRequest {
        execution_id: Some(id.to_owned()),
        app_name: app.to_owned(),
        app_id,
        ..Default::default()
    };
    let made: CreateExecutionResponse =
        ok(numbered.unary(CREATE, create("a", "mine", Some(7))).await);
    assert_eq!(made.execution.expect("made").app_id, Some(7));
    for (app, number) in [("mine", None), ("mine", Some(8)), ("theirs", Some(7)), ("theirs", None)]
    {
        let answer =
            numbered.unary::<_, CreateExecutionResponse>(CREATE, create("b", app, number)).await;
        refused(answer, Code::PermissionDenied, "SCOPE_FORBIDS");
        let put = ingest_request::Write::PutExecution(Execution {
            execution_id: "b".to_owned(),
            app_name: app.to_owned(),
            app_id: number,
            status: ExecutionStatus::Running.into(),
            ..Default::default()
        });
        let put = IngestRequest { sequence: 1, write: Some(put), mirrored: None }.encode_to_vec();
        let answers = ok(numbered.call("/stepwell.v1.IngestService/Ingest", vec![put]).await);
        let answer = IngestResponse::decode(answers[0].as_slice()).expect("an answer");
        let ingest_response::Result::Error(error) = answer.result.expect("a result") else {
            panic!("{app} {number:?} was put");
        };
        assert_eq!(error.code, Code::PermissionDenied as i32);
        let publish = PublishConfigurationRequest {
            configuration: Some(Configuration { app_id: number, ..configuration(app, "1") }),
            activate: true,
        };
        let answer = numbered.unary::<_, PublishConfigurationResponse>(
            "ConfigurationService/PublishConfiguration",
            publish,
        );
        refused(answer.await, Code::PermissionDenied, "SCOPE_FORBIDS");
    }
    // The same words, whatever is stored under an id that is taken: that it is taken cannot be hidden.
    let _: CreateExecutionResponse = ok(g.admin.unary(CREATE, create("c", "theirs", None)).await);
    let answer =
        numbered.unary::<_, CreateExecutionResponse>(CREATE, create("c", "mine", Some(7))).await;
    refused(answer, Code::AlreadyExists, "EXECUTION_ALREADY_EXISTS");
}

/// Runs of an app, the same for every app.
async fn fill(admin: &Caller, app: &str) {
    let at =
        |seconds: i64| Some(prost_types::Timestamp { seconds: 1_750_000_000 + seconds, nanos: 0 });
    for n in 0..12i64 {
        let id = format!("{app}-{n}");
        let request = CreateExecutionRequest {
            execution_id: Some(id.clone()),
            app_name: app.to_owned(),
            user_id: Some(format!("user{}", n % 3)),
            started_at: at(n * 600),
            ..Default::default()
        };
        let _: CreateExecutionResponse = ok(admin.unary(CREATE, request).await);
        let failed = n % 3 == 0;
        let error = failed.then(|| run_error(&format!("cannot open the valve {}", n % 2)));
        let request = FinishStepRequest {
            step_name: Some("work".to_owned()),
            started_at: at(n * 600),
            completed_at: at(n * 600 + n),
            error: error.clone(),
            ..finish_step(&id, 1, if failed { StepStatus::Failed } else { StepStatus::Completed })
        };
        let _: FinishStepResponse = ok(admin.unary("StepService/FinishStep", request).await);
        if n == 11 {
            continue;
        }
        let request = FinishExecutionRequest {
            completed_at: at(n * 600 + 2 * n),
            error,
            ..finish(&id, if failed { ExecutionStatus::Failed } else { ExecutionStatus::Completed })
        };
        let _: FinishExecutionResponse =
            ok(admin.unary("ExecutionService/FinishExecution", request).await);
    }
}

fn window() -> Option<ExecutionFilter> {
    let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    Some(ExecutionFilter {
        started_at_from: at(1_749_990_000),
        started_at_until: at(1_750_100_000),
        ..Default::default()
    })
}

/// Everything that a caller can ask about many executions, in an order that does not depend on chance.
async fn everything(caller: &Caller) -> Vec<String> {
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListExecutionsRequest { page_size: 5, page_token, ..Default::default() };
        let page: ListExecutionsResponse = ok(caller.unary(LIST, request).await);
        all.extend(
            page.executions
                .iter()
                .map(|e| format!("{} {} {}", e.execution_id, e.app_name, e.status)),
        );
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    for statuses in [vec![], vec![ExecutionStatus::Failed as i32]] {
        let filter = Some(ExecutionFilter { statuses, ..Default::default() });
        let request = CountExecutionsRequest { filter, limit: 0 };
        let count: CountExecutionsResponse =
            ok(caller.unary("ExecutionService/CountExecutions", request).await);
        all.push(format!("{count:?}"));
    }
    let rates: GetSuccessRatesResponse = eventually("the reports are complete", async || {
        let request = GetSuccessRatesRequest { filter: window(), ..Default::default() };
        let rates: GetSuccessRatesResponse =
            ok(caller.unary("AnalyticsService/GetSuccessRates", request).await);
        rates.freshness.as_ref().is_some_and(|fresh| fresh.complete).then_some(rates)
    })
    .await;
    all.push(format!("{:?} {}", rates.groups, rates.total_groups));
    let request = GetReportRequest { filter: window(), ..Default::default() };
    let report: GetReportResponse = ok(caller.unary("AnalyticsService/GetReport", request).await);
    all.push(format!("{:?}", GetReportResponse { freshness: None, ..report }));
    let request = GetTrendsRequest { filter: window(), ..Default::default() };
    let trends: GetTrendsResponse = ok(caller.unary("AnalyticsService/GetTrends", request).await);
    all.push(format!("{:?}", GetTrendsResponse { freshness: None, ..trends }));
    let request = GetUserActivityRequest { filter: window(), ..Default::default() };
    let activity: GetUserActivityResponse =
        ok(caller.unary("AnalyticsService/GetUserActivity", request).await);
    all.push(format!("{:?}", GetUserActivityResponse { freshness: None, ..activity }));
    let request = ListSlowestStepsRequest { filter: window(), ..Default::default() };
    let steps: ListSlowestStepsResponse =
        ok(caller.unary("AnalyticsService/ListSlowestSteps", request).await);
    all.push(format!("{:?}", ListSlowestStepsResponse { freshness: None, ..steps }));
    let request = ListTopErrorsRequest { filter: window(), ..Default::default() };
    let errors: ListTopErrorsResponse =
        ok(caller.unary("AnalyticsService/ListTopErrors", request).await);
    all.push(format!("{:?}", ListTopErrorsResponse { freshness: None, ..errors }));
    let hits = eventually("search is up to date", async || {
        let request = SearchRequest { query: "valve".to_owned(), ..Default::default() };
        let found: SearchResponse = ok(caller.unary("SearchService/Search", request).await);
        found.up_to_date.then_some(found.hits)
    })
    .await;
    let mut hits: Vec<String> = hits
        .iter()
        .map(|hit| format!("{} {} {}", hit.execution_id, hit.kind, hit.snippet))
        .collect();
    hits.sort();
    all.extend(hits);
    all
}

/// A caller of one app, at a server that has another app with the same data and at one that never had.
pub async fn lists_counts_reports_and_search_are_as_if_alone(b: Backend) {
    let both = Guarded::start(&b).await;
    let other = Backend::fresh(b.kind);
    let alone = Guarded::start(&other).await;
    fill(&both.admin, "ours").await;
    fill(&both.admin, "theirs").await;
    fill(&alone.admin, "ours").await;
    for apps in [&["ours"][..], &["our*"], &["ours#*", "nobody"]] {
        let beside = everything(&both.caller("viewer", apps).await).await;
        let expected = everything(&alone.caller("viewer", apps).await).await;
        assert!(expected.len() > 20 && expected.iter().any(|line| line.contains("ours-11")));
        for (found, expected) in beside.iter().zip(&expected) {
            assert_eq!(found, expected, "{apps:?}");
        }
        assert_eq!(beside.len(), expected.len());
    }
    let stranger = everything(&both.caller("viewer", &["nobody"]).await).await;
    assert!(
        stranger.iter().all(|line| !line.contains("ours-") && !line.contains("theirs")),
        "{stranger:?}"
    );
    alone.server.shutdown().await;
    other.remove().await;
}

pub async fn a_watch_tells_only_of_the_scope(b: Backend) {
    let g = Guarded::start(&b).await;
    let viewer = g.caller("viewer", &["ours"]).await;
    fixture(&g.admin, "ours", "ours-first").await;
    fixture(&g.admin, "theirs", "theirs-0").await;
    let request = WatchExecutionsRequest { snapshot: WatchSnapshot::All.into(), ..watch_all() };
    let path = "/stepwell.v1.ExecutionService/WatchExecutions";
    let mut stream = ok(viewer.open(path, vec![request.encode_to_vec()]).await);
    let mut seen = BTreeSet::new();
    let mut token = String::new();
    let mut deleted = false;
    let mut complete = false;
    while !deleted {
        let bytes = in_time("an event", stream.message()).await.expect("the watch goes on");
        let event =
            WatchExecutionResponse::decode(bytes.expect("an event").as_slice()).expect("an event");
        if !event.resume_token.is_empty() {
            token = event.resume_token;
        }
        match event.event {
            Some(Event::Execution(change)) => {
                deleted = change.change_type() == ChangeType::Deleted;
                seen.insert(change.execution.expect("a record").execution_id);
            }
            Some(Event::Step(change)) => {
                seen.insert(change.step.expect("a record").execution_id);
            }
            Some(Event::SnapshotComplete(_)) if !complete => {
                complete = true;
                for id in ["theirs-1", "ours-1"] {
                    fixture(&g.admin, if id.starts_with("ours") { "ours" } else { "theirs" }, id)
                        .await;
                }
                for id in ["theirs-0", "theirs-1", "ours-1"] {
                    let request =
                        DeleteExecutionRequest { execution_id: id.to_owned(), force: true };
                    let _: DeleteExecutionResponse =
                        ok(g.admin.unary("ExecutionService/DeleteExecution", request).await);
                }
            }
            _ => {}
        }
    }
    assert_eq!(seen, BTreeSet::from(["ours-1", "ours-first"].map(str::to_owned)));
    // A token is good for whom it was given to.
    let other = g.caller("viewer", &["theirs"]).await;
    let resumed = WatchExecutionsRequest { resume_token: Some(token), ..request };
    ok(viewer.open(path, vec![resumed.encode_to_vec()]).await);
    let answer = other.call(path, vec![resumed.encode_to_vec()]).await;
    refused(answer, Code::InvalidArgument, "INVALID_TOKEN");
    fill(&g.admin, "ours").await;
    let page = |page_token: String| ListExecutionsRequest {
        page_size: 2,
        page_token,
        ..Default::default()
    };
    let first: ListExecutionsResponse = ok(viewer.unary(LIST, page(String::new())).await);
    let _: ListExecutionsResponse =
        ok(viewer.unary(LIST, page(first.next_page_token.clone())).await);
    for stranger in [&other, &g.admin] {
        let answer =
            stranger.unary::<_, ListExecutionsResponse>(LIST, page(first.next_page_token.clone()));
        refused(answer.await, Code::InvalidArgument, "INVALID_TOKEN");
    }
}

/// Another program gives an execution to another app.
pub async fn a_foreign_change_of_an_app_counts_within_a_second(b: Backend) {
    let g = Guarded::start(&b).await;
    let reporter = g.caller("editor", &["ours"]).await;
    fixture(&g.admin, "ours", "run").await;
    let beat = || async {
        let request = UpdateStepRequest { progress: Some(0.5), ..update_step("run", 1) };
        reporter.unary::<_, UpdateStepResponse>("StepService/UpdateStep", request).await
    };
    ok(beat().await);
    if b.kind == crate::support::backend::Kind::Sqlite {
        // Nobody else writes into the embedded store.
        return;
    }
    let set = mongodb::bson::doc! { "$set": { "app_name": "theirs" } };
    let only = mongodb::bson::doc! { "execution_id": "run" };
    b.executions().await.update_one(only, set).await.expect("updated");
    let changed = Instant::now();
    loop {
        // What is asked later than a second after the change finds nothing.
        let asked = changed.elapsed();
        let answer = beat().await;
        if answer.is_err() {
            refused(answer, Code::NotFound, "EXECUTION_NOT_FOUND");
            break;
        }
        assert!(asked < Duration::from_secs(1), "{asked:?}");
    }
    let request = GetExecutionRequest { execution_id: "run".to_owned(), ..Default::default() };
    let answer = reporter.unary::<_, GetExecutionResponse>(GET, request).await;
    refused(answer, Code::NotFound, "EXECUTION_NOT_FOUND");
}
