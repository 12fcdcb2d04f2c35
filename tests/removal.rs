//! The built server killed in the midst of deletes and of retention: nobody ever sees half an execution, and after
//! the next start nothing of a deleted one is left.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::collections::BTreeSet;
use std::path::Path;

use stepwell::proto::*;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use support::backend::{Backend, Kind};
use support::client::*;
use support::process::{Guarded, free_port};
use support::*;

const DELETE_KILLS: usize = 6;
const RETENTION_KILLS: usize = 2;
/// Most steps in one PlanSteps.
const PLANNED_AT_ONCE: usize = 1000;

/// The built server on a database.
struct Binary {
    process: Guarded,
    client: Client,
    _dir: TempDir,
}

impl Binary {
    /// Retention runs this often; 0 is never.
    async fn start(b: &Backend, retention_seconds: f64) -> Binary {
        let dir = TempDir::with_prefix("stepwell-removal-").expect("a temp dir");
        let address = format!("127.0.0.1:{}", free_port());
        let mut args = vec![
            "serve".to_owned(),
            "--listen".to_owned(),
            address.clone(),
            "--retention-interval-seconds".to_owned(),
            retention_seconds.to_string(),
        ];
        args.extend(match b.kind {
            Kind::Sqlite => vec!["--data-dir".to_owned(), b.data_dir().display().to_string()],
            Kind::Mongodb => vec![
                "--mongodb-uri".to_owned(),
                b.uri().to_owned(),
                "--mongodb-database".to_owned(),
                b.database_name().to_owned(),
            ],
        });
        let program = Path::new(env!("CARGO_BIN_EXE_stepwell"));
        let process = Guarded::start(program, &args, &dir.path().join("server.log"), None);
        let client = Client::of(&address);
        eventually("the server is ready", async || {
            let mut health = HealthClient::new(client.channel.clone());
            let answer = health.check(HealthCheckRequest::default()).await.ok()?;
            (answer.into_inner().status() == ServingStatus::Serving).then_some(())
        })
        .await;
        Binary { process, client, _dir: dir }
    }

    async fn kill(mut self) {
        tokio::task::spawn_blocking(move || self.process.kill()).await.expect("it is gone");
    }
}

fn on_a_database<F: Future<Output = ()>>(kind: Kind, test: impl FnOnce(Backend) -> F) {
    run(async {
        let b = Backend::fresh(kind);
        test(b.clone()).await;
        b.remove().await;
    });
}

/// Ended executions with this many steps each.
async fn fill(client: &Client, ids: &[String], steps: i32) {
    use ingest_request::Write as W;
    let mut writes = Vec::new();
    for id in ids {
        writes.push(W::CreateExecution(create(id)));
        let planned = (1..=steps).map(|step_id| PlannedStep {
            step_id: Some(step_id),
            step_name: "work".into(),
            ..Default::default()
        });
        for steps in planned.collect::<Vec<_>>().chunks(PLANNED_AT_ONCE) {
            let plan = PlanStepsRequest {
                execution_id: id.clone(),
                steps: steps.to_vec(),
                ..Default::default()
            };
            writes.push(W::PlanSteps(plan));
        }
        writes.push(W::FinishExecution(finish(id, ExecutionStatus::Completed)));
    }
    for answer in client.ingest_all(writes).await {
        assert!(!matches!(answer, ingest_response::Result::Error(_)), "{answer:?}");
    }
}

/// The executions that are there, each with all its steps.
async fn whole_ones(client: &Client, steps: i32) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut page_token = String::new();
    loop {
        let request = ListExecutionsRequest { page_size: 1000, page_token, ..Default::default() };
        let page = client.list_executions(request).await;
        for execution in page.executions {
            let execution_id = execution.execution_id;
            let view = ExecutionView::Full.into();
            let request = GetExecutionRequest { execution_id: execution_id.clone(), view };
            match client.try_get_execution(request).await {
                Ok(whole) => {
                    assert_eq!(whole.steps.len(), steps as usize, "{execution_id} is halved");
                    found.insert(execution_id);
                }
                Err(status) => {
                    check_refusal(&status, Code::NotFound, "EXECUTION_NOT_FOUND");
                }
            }
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return found;
        }
    }
}

async fn kills_during_deletes(b: Backend) {
    const EXECUTIONS: usize = 6;
    const STEPS: i32 = 2400;
    for round in 0..DELETE_KILLS {
        let server = Binary::start(&b, 0.0).await;
        let ids: Vec<String> = (0..EXECUTIONS).map(|n| format!("r{round}-{n}")).collect();
        fill(&server.client, &ids, STEPS).await;
        server.kill().await;
        for id in &ids {
            b.store_artifact(id, "a", 1).await;
        }
        let server = Binary::start(&b, 0.0).await;
        let mut deletes = JoinSet::new();
        for id in &ids {
            let (client, execution_id) = (server.client.clone(), id.clone());
            deletes.spawn(async move {
                let request =
                    DeleteExecutionRequest { execution_id: execution_id.clone(), force: false };
                client.try_delete_execution(request).await.map(|_| execution_id)
            });
        }
        // Each round a little later: at first as soon as any step is gone, then after some of the answers.
        let all = (EXECUTIONS * STEPS as usize) as u64;
        eventually("steps are going", async || (b.stored().await[1] < all).then_some(())).await;
        let mut deleted = BTreeSet::new();
        for _ in 0..round / 2 {
            let ended = deletes.join_next().await.expect("six were begun").expect("no panic");
            deleted.insert(ok(ended));
        }
        server.kill().await;
        for ended in deletes.join_all().await {
            deleted.extend(ended);
        }
        let server = Binary::start(&b, 0.0).await;
        let mut left = whole_ones(&server.client, STEPS).await;
        assert!(left.is_disjoint(&deleted), "deleted and there: {left:?} {deleted:?}");
        let expected = [left.len(), left.len() * STEPS as usize, left.len()].map(|n| n as u64);
        eventually("the sweep has taken the rest", async || {
            (b.stored().await == expected).then_some(())
        })
        .await;
        println!("{}: {} deletes were answered, {} left", b.kind.name(), deleted.len(), left.len());
        while let Some(execution_id) = left.pop_first() {
            server
                .client
                .delete_execution(DeleteExecutionRequest { execution_id, force: false })
                .await;
        }
        assert_eq!(b.stored().await, [0, 0, 0]);
        server.kill().await;
    }
}

async fn kills_during_retention(b: Backend) {
    const OLD: usize = 1500;
    const YOUNG: usize = 50;
    const STEPS: i32 = 8;
    let server = Binary::start(&b, 0.0).await;
    let old: Vec<String> = (0..OLD).map(|n| format!("old{n:04}")).collect();
    fill(&server.client, &old, STEPS).await;
    b.age_all(400).await;
    let young: Vec<String> = (0..YOUNG).map(|n| format!("young{n:04}")).collect();
    fill(&server.client, &young, STEPS).await;
    server.kill().await;
    for _ in 0..RETENTION_KILLS {
        let server = Binary::start(&b, 0.2).await;
        let before = b.stored().await;
        // A third of those that were marked together are gone by now, and the others have all their steps yet.
        eventually("retention is at it", async || {
            (b.stored().await[1] + 1000 < before[1]).then_some(())
        })
        .await;
        server.kill().await;
        let server = Binary::start(&b, 0.0).await;
        let left = whole_ones(&server.client, STEPS).await;
        assert!(young.iter().all(|id| left.contains(id)), "a young one is gone");
        let expected = [left.len(), left.len() * STEPS as usize, 0].map(|n| n as u64);
        eventually("the sweep has taken the rest", async || {
            (b.stored().await == expected).then_some(())
        })
        .await;
        println!("{}: {} of {OLD} old ones left", b.kind.name(), left.len() - YOUNG);
        server.kill().await;
    }
    let server = Binary::start(&b, 0.2).await;
    let expected = [YOUNG, YOUNG * STEPS as usize, 0].map(|n| n as u64);
    eventually("retention has ended", async || (b.stored().await == expected).then_some(())).await;
    assert_eq!(whole_ones(&server.client, STEPS).await, young.into_iter().collect());
    server.kill().await;
}

#[test]
fn a_server_killed_during_deletes_leaves_nothing_half_on_sqlite() {
    on_a_database(Kind::Sqlite, kills_during_deletes);
}

#[test]
fn a_server_killed_during_deletes_leaves_nothing_half_on_mongodb() {
    on_a_database(Kind::Mongodb, kills_during_deletes);
}

#[test]
fn a_server_killed_during_retention_leaves_nothing_half_on_sqlite() {
    on_a_database(Kind::Sqlite, kills_during_retention);
}

#[test]
fn a_server_killed_during_retention_leaves_nothing_half_on_mongodb() {
    // Each time the lease of the killed server has to run out first.
    on_a_database(Kind::Mongodb, kills_during_retention);
}
