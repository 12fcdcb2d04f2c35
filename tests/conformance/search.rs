//! Search: what stands in errors, outputs and text artifacts is found by its words, as it is now.

use std::collections::BTreeSet;

use stepwell::proto::*;
use tonic::Code;

use crate::support::artifacts::describe;
use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::eventually;
use crate::support::values::*;

fn ask(query: &str) -> SearchRequest {
    SearchRequest { query: query.into(), ..Default::default() }
}

/// Kind and execution of everything that is found, page by page.
async fn found(s: &Client, asked: SearchRequest) -> BTreeSet<(SearchKind, String)> {
    let mut found = BTreeSet::new();
    let mut token = String::new();
    loop {
        // What is far behind is not waited for.
        let page = eventually("everything is indexed", async || {
            let asked = SearchRequest { page_token: token.clone(), ..asked.clone() };
            Some(s.search(asked).await).filter(|page| page.up_to_date)
        });
        let page = page.await;
        for hit in page.hits {
            found.insert((hit.kind(), hit.execution_id));
        }
        token = page.next_page_token;
        if token.is_empty() {
            return found;
        }
    }
}

async fn executions(s: &Client, query: &str) -> Vec<String> {
    found(s, ask(query)).await.into_iter().map(|(_, id)| id).collect()
}

async fn fail(s: &Client, id: &str, message: &str) {
    s.create(id).await;
    let error = Some(run_error(message));
    s.finish_execution(FinishExecutionRequest { error, ..finish(id, ExecutionStatus::Failed) })
        .await;
}

async fn output(s: &Client, id: &str, step_id: i32, output: serde_json::Value) {
    s.start(id, step_id).await;
    let output = Some(value(output));
    s.finish_step(FinishStepRequest { output, ..finish_step(id, step_id, StepStatus::Completed) })
        .await;
}

pub async fn what_came_while_search_was_off_is_found_once_it_is_on(b: Backend) {
    let s = b.serve_with(|config| config.search.enabled = false).await;
    fail(&s, "a", "heartbeat lost").await;
    let features = s.get_server_info(GetServerInfoRequest {}).await.features;
    assert!(!features.iter().any(|feature| feature == "search"), "{features:?}");
    refused(s.try_search(ask("heartbeat")).await, Code::FailedPrecondition, "SEARCH_DISABLED");
    s.shutdown().await;
    let s = b.serve().await;
    assert_eq!(executions(&s, "heartbeat").await, ["a"]);
    s.shutdown().await;
    let s = b.serve_with(|config| config.search.enabled = false).await;
    fail(&s, "b", "heartbeat lost again").await;
    s.delete_execution(DeleteExecutionRequest { execution_id: "a".into(), force: false }).await;
    s.shutdown().await;
    let s = b.serve().await;
    assert_eq!(executions(&s, "heartbeat").await, ["b"]);
}

pub async fn texts_of_every_kind_are_found(b: Backend) {
    let s = b.serve().await;
    fail(&s, "a", "worker lost its heartbeat").await;
    s.create("b").await;
    output(&s, "b", 1, json!({ "summary": { "heartbeat": [17, "fine"] } })).await;
    s.start("b", 2).await;
    let error = Some(Error { code: "E_HEART".into(), ..run_error("no heartbeat") });
    s.finish_step(FinishStepRequest { error, ..finish_step("b", 2, StepStatus::Failed) }).await;
    s.create("c").await;
    s.upload(describe("c", "run.log"), &"12:00 heartbeat sent\n".as_bytes().to_vec().into()).await;
    let all = found(&s, ask("heartbeat")).await;
    let expected = [
        (SearchKind::ExecutionError, "a"),
        (SearchKind::StepError, "b"),
        (SearchKind::StepOutput, "b"),
        (SearchKind::ArtifactText, "c"),
    ];
    assert_eq!(all, expected.map(|(kind, id)| (kind, id.to_owned())).into());
    let kinds = vec![SearchKind::StepOutput.into()];
    let of_kind = found(&s, SearchRequest { kinds, ..ask("heartbeat") }).await;
    assert_eq!(of_kind, [(SearchKind::StepOutput, "b".to_owned())].into());
    let hit = s.search(ask("e_heart")).await.hits.remove(0);
    assert_eq!((hit.step_id, hit.step_name.as_deref()), (Some(2), Some("work")));
    let page_size = 1;
    assert_eq!(found(&s, SearchRequest { page_size, ..ask("heartbeat") }).await, all);
    assert_eq!(executions(&s, "fine 17").await, ["b"]);
}

pub async fn words_phrases_prefixes_and_exclusions_are_told_apart(b: Backend) {
    let s = b.serve().await;
    fail(&s, "a", "connection to the database timed out").await;
    fail(&s, "b", "out of memory, connection timed").await;
    fail(&s, "c", "Verbindung nach Zürich: getUserName fehlt").await;
    fail(&s, "d", "无法连接数据库服务器").await;
    assert_eq!(executions(&s, "timed connection").await, ["a", "b"]);
    assert_eq!(executions(&s, "\"timed out\"").await, ["a"]);
    assert_eq!(executions(&s, "conn* data*").await, ["a"]);
    assert_eq!(executions(&s, "conn*").await, ["a", "b"]);
    assert_eq!(executions(&s, "connection -memory").await, ["a"]);
    assert_eq!(executions(&s, "zurich").await, ["c"]);
    for query in ["user name", "get_user_name", "getusername", "GetUserName", "getuser*"] {
        assert_eq!(executions(&s, query).await, ["c"], "{query}");
    }
    assert_eq!(executions(&s, "数据库").await, ["d"]);
    assert_eq!(executions(&s, "库数").await, Vec::<String>::new());
    let hit = s.search(ask("zurich")).await.hits.remove(0);
    let place = hit.highlights[0];
    let marked: String = hit
        .snippet
        .chars()
        .skip(usize::try_from(place.offset).expect("not negative"))
        .take(usize::try_from(place.length).expect("not negative"))
        .collect();
    assert_eq!(marked, "Zürich");
    assert!(hit.score > 0.0);
}

pub async fn the_index_follows_updates_and_deletes(b: Backend) {
    let s = b.serve().await;
    s.create("a").await;
    s.start("a", 1).await;
    let before = Some(value(json!({ "word": "quokka" })));
    s.update_step(UpdateStepRequest { output: before, ..update_step("a", 1) }).await;
    assert_eq!(executions(&s, "quokka").await, ["a"]);
    let after = Some(value(json!({ "word": "numbat" })));
    s.update_step(UpdateStepRequest { output: after, ..update_step("a", 1) }).await;
    assert_eq!(executions(&s, "quokka").await, Vec::<String>::new());
    assert_eq!(executions(&s, "numbat").await, ["a"]);
    let running = |status: ExecutionStatus| {
        let filter = ExecutionFilter { statuses: vec![status.into()], ..Default::default() };
        SearchRequest { filter: Some(filter), ..ask("numbat") }
    };
    assert_eq!(found(&s, running(ExecutionStatus::Running)).await.len(), 1);
    s.finish("a", ExecutionStatus::Completed).await;
    // The step was indexed before its execution ended.
    assert_eq!(found(&s, running(ExecutionStatus::Running)).await.len(), 0);
    assert_eq!(found(&s, running(ExecutionStatus::Completed)).await.len(), 1);
    s.delete_execution(DeleteExecutionRequest { execution_id: "a".into(), ..Default::default() })
        .await;
    assert_eq!(executions(&s, "numbat").await, Vec::<String>::new());
    fail(&s, "a", "bilby").await;
    assert_eq!(executions(&s, "bilby").await, ["a"]);
    assert_eq!(executions(&s, "numbat").await, Vec::<String>::new());
}

pub async fn a_bad_query_is_named_with_its_limit(b: Backend) {
    let s = b.serve().await;
    for query in ["", "!!", "-a", "a*", "\"open", &text(1001)] {
        let bad = bad_fields(s.try_search(ask(query)).await);
        assert_eq!(bad.len(), 1, "{query}");
        assert_eq!(bad[0].0, "query");
    }
    let bad = bad_fields(s.try_search(SearchRequest { kinds: vec![9], ..ask("") }).await);
    let fields: Vec<&str> = bad.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["kinds", "query"]);
    let bad = bad_fields(s.try_search(ask(&text(1001))).await);
    assert!(bad[0].1.contains("1000"), "{}", bad[0].1);
}

pub async fn what_is_too_long_is_indexed_up_to_the_limit_and_says_so(b: Backend) {
    let s = b.serve().await;
    s.create("a").await;
    let log = format!("wombat {} dingo", "x ".repeat(200_000));
    s.upload(describe("a", "long.log"), &log.into_bytes().into()).await;
    let hit = s.search(ask("wombat")).await.hits.remove(0);
    assert!(hit.truncated);
    assert_eq!(hit.artifact_name.as_deref(), Some("long.log"));
    assert_eq!(executions(&s, "dingo").await, Vec::<String>::new());
}
