//! How long records are kept, and that nothing else is deleted.

use std::collections::BTreeSet;
use std::time::Duration;

use stepwell::config::{Config, Outcome, RetentionRule};
use stepwell::proto::*;
use tonic::Code;

use crate::metrics::{point, record};
use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::values::time;
use crate::support::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn day(timestamp: &RetentionCount) -> i64 {
    let oldest = timestamp.oldest_kept.as_ref().expect("something is kept");
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    let now = i64::try_from(now).expect("for some time yet");
    // Rounded: the test itself takes a moment.
    (now - oldest.seconds + 3600) / (24 * 3600)
}

/// An ended execution with this many steps.
async fn ended(s: &Client, id: &str, steps: i32, status: ExecutionStatus) {
    s.create(id).await;
    for step in 1..=steps {
        s.start(id, step).await;
        s.end(id, step, StepStatus::Completed).await;
    }
    s.finish(id, status).await;
}

async fn completed(s: &Client, id: &str, steps: i32) {
    ended(s, id, steps, ExecutionStatus::Completed).await;
}

async fn ids(s: &Client) -> BTreeSet<String> {
    let list = s.list_executions(ListExecutionsRequest { page_size: 1000, ..Default::default() });
    list.await.executions.into_iter().map(|execution| execution.execution_id).collect()
}

/// No run but those that a test asks for.
fn by_hand(config: &mut Config) {
    config.retention.interval = Duration::ZERO;
}

pub async fn what_is_too_old_goes_with_everything_it_has(b: Backend) {
    let s = b.serve_with(by_hand).await;
    completed(&s, "old", 3).await;
    completed(&s, "younger", 2).await;
    completed(&s, "new", 1).await;
    s.shutdown().await;
    b.store_artifact("old", "a", 1000).await;
    b.store_artifact("old", "b", 234).await;
    b.store_artifact("new", "c", 5).await;
    b.age_execution("old", 366).await;
    b.age_execution("younger", 364).await;
    // Its steps are younger than it is; they go all the same.
    b.age_steps("old", 10).await;
    let s = b.serve_with(by_hand).await;
    let mut watching = s
        .watch_all(WatchExecutionsRequest { snapshot: WatchSnapshot::All.into(), ..watch_all() })
        .await;
    watching.snapshot().await;
    let receipt = s.run_retention(false).await;
    assert_eq!(receipt.records(), [1, 3, 2]);
    assert!(!receipt.dry_run);
    assert_eq!(
        [receipt.executions.bytes, receipt.steps.bytes, receipt.artifacts.bytes],
        [0, 0, 1234]
    );
    assert_eq!(day(&receipt.executions), 364);
    assert_eq!((day(&receipt.steps), day(&receipt.artifacts)), (0, 0));
    assert_eq!(b.stored().await, [2, 3, 1]);
    refused(s.try_execution("old").await, Code::NotFound, "EXECUTION_NOT_FOUND");
    s.create("marker").await;
    let told = watching.next_change().await;
    let (kind, execution) = told.execution().expect("its end covers what it had");
    assert_eq!((kind, execution.execution_id.as_str()), (ChangeType::Deleted, "old"));
    let told = watching.next_change().await;
    assert_eq!(told.execution().expect("the marker").1.execution_id, "marker");
    // Nothing is left to do.
    let again = s.run_retention(false).await;
    assert_eq!(again.records(), [0, 0, 0]);
}

pub async fn what_runs_or_is_pinned_is_kept_with_everything_it_has(b: Backend) {
    let s = b.serve_with(by_hand).await;
    s.create("running").await;
    s.start("running", 1).await;
    s.end("running", 1, StepStatus::Completed).await;
    completed(&s, "pinned", 2).await;
    let pin = UpdateExecutionRequest { pinned: Some(true), ..update("pinned") };
    s.update_execution(pin).await;
    completed(&s, "unpinned", 1).await;
    for pinned in [Some(true), Some(false)] {
        s.update_execution(UpdateExecutionRequest { pinned, ..update("unpinned") }).await;
    }
    s.shutdown().await;
    for id in ["running", "pinned", "unpinned"] {
        b.store_artifact(id, "a", 7).await;
        b.age_execution(id, 4000).await;
        b.age_steps(id, 4000).await;
        b.age_artifacts(id, 4000).await;
    }
    let s = b.serve_with(by_hand).await;
    let receipt = s.run_retention(false).await;
    assert_eq!(receipt.records(), [1, 1, 1]);
    assert_eq!([day(&receipt.executions), day(&receipt.steps), day(&receipt.artifacts)], [4000; 3]);
    assert_eq!(b.stored().await, [2, 3, 2]);
    // Ended, it is as old as it is.
    s.finish("running", ExecutionStatus::Failed).await;
    assert_eq!(s.run_retention(false).await.records(), [1, 1, 1]);
    assert_eq!(ids(&s).await, BTreeSet::from(["pinned".to_owned()]));
}

pub async fn old_steps_and_artifacts_go_while_their_execution_stays(b: Backend) {
    let s = b.serve_with(by_hand).await;
    completed(&s, "e", 3).await;
    s.shutdown().await;
    b.store_artifact("e", "old", 100).await;
    b.age_steps("e", 184).await;
    b.age_artifacts("e", 93).await;
    b.age_execution("e", 200).await;
    b.store_artifact("e", "new", 1).await;
    let s = b.serve_with(by_hand).await;
    s.start("e", 9).await;
    s.end("e", 9, StepStatus::Completed).await;
    let request = WatchExecutionRequest { include_artifacts: true, follow: true, ..watch("e") };
    let mut watching = s.watch(request).await;
    let snapshot = watching.snapshot().await;
    let old_artifact = snapshot.iter().find_map(|event| event.artifact()).expect("it is there");
    let old_artifact = old_artifact.1.artifact_id.clone();
    let receipt = s.run_retention(false).await;
    assert_eq!(receipt.records(), [0, 3, 1]);
    assert_eq!(receipt.artifacts.bytes, 100);
    assert_eq!(
        [day(&receipt.executions), day(&receipt.steps), day(&receipt.artifacts)],
        [200, 0, 0]
    );
    assert_eq!(b.stored().await, [1, 1, 1]);
    // Told one by one, with their ids.
    let mut steps = BTreeSet::new();
    let mut artifacts = Vec::new();
    for _ in 0..4 {
        let event = watching.next_change().await;
        if let Some((kind, step)) = event.step() {
            assert_eq!((kind, step.execution_id.as_str()), (ChangeType::Deleted, "e"));
            steps.insert(step.step_id.expect("its id"));
        } else {
            let (kind, artifact) = event.artifact().expect("a step or an artifact");
            assert_eq!((kind, artifact.execution_id.as_str()), (ChangeType::Deleted, "e"));
            artifacts.push(artifact.artifact_id.clone());
        }
    }
    assert_eq!((steps, artifacts), (BTreeSet::from([1, 2, 3]), vec![old_artifact]));
    // Once, and the execution did not change.
    s.update_execution(UpdateExecutionRequest { pinned: Some(true), ..update("e") }).await;
    let next = watching.next_change().await;
    assert_eq!(next.execution().expect("the pin").1.pinned, Some(true));
    refused(s.try_step("e", 1).await, Code::NotFound, "STEP_NOT_FOUND");
    s.step("e", 9).await;
    // A number that was used is not given to another step.
    let assigned = s.start_step(StartStepRequest { step_id: None, ..start("e", 0) }).await;
    assert_eq!(assigned.step_id, Some(10));
}

pub async fn rules_keep_some_longer_or_shorter(b: Backend) {
    let rules = |config: &mut Config| {
        by_hand(config);
        config.retention.rules = vec![
            RetentionRule {
                statuses: vec![Outcome::Failed],
                executions: Some(Duration::ZERO),
                steps: Some(Duration::ZERO),
                ..Default::default()
            },
            RetentionRule {
                app_names: vec!["short".into()],
                app_ids: vec![7, 8],
                executions: Some(10 * DAY),
                ..Default::default()
            },
        ];
    };
    let s = b.serve_with(rules).await;
    let of_app = |id: &str, app_name: &str, app_id: Option<i32>| CreateExecutionRequest {
        app_name: app_name.into(),
        app_id,
        ..create(id)
    };
    let mut made = Vec::new();
    for (id, app_name, app_id, status, days) in [
        ("failed", "app", None, ExecutionStatus::Failed, 4000),
        ("failed-short", "short", Some(7), ExecutionStatus::Failed, 4000),
        ("completed", "app", None, ExecutionStatus::Completed, 366),
        ("cancelled", "app", None, ExecutionStatus::Cancelled, 300),
        ("short", "short", Some(7), ExecutionStatus::Completed, 11),
        ("short-young", "short", Some(8), ExecutionStatus::Completed, 9),
        ("other-number", "short", Some(9), ExecutionStatus::Completed, 11),
        ("no-number", "short", None, ExecutionStatus::Cancelled, 11),
    ] {
        s.create_execution(of_app(id, app_name, app_id)).await;
        s.start(id, 1).await;
        s.finish(id, status).await;
        made.push((id, days));
    }
    for (id, days) in made {
        b.age_execution(id, days).await;
        b.age_steps(id, days).await;
    }
    let receipt = s.run_retention(false).await;
    // Of "cancelled" the step is too old.
    assert_eq!(receipt.records(), [2, 3, 0]);
    let kept = ["failed", "failed-short", "cancelled", "short-young", "other-number", "no-number"];
    assert_eq!(ids(&s).await, kept.map(str::to_owned).into());
    assert_eq!(day(&receipt.executions), 4000);
}

pub async fn zero_keeps_for_ever(b: Backend) {
    let for_ever = |config: &mut Config| {
        by_hand(config);
        config.retention.executions = Duration::ZERO;
        config.retention.steps = Duration::ZERO;
        config.retention.artifacts = Duration::ZERO;
    };
    let s = b.serve_with(for_ever).await;
    completed(&s, "e", 2).await;
    b.age_execution("e", 10_000).await;
    b.age_steps("e", 10_000).await;
    let receipt = s.run_retention(false).await;
    assert_eq!(receipt.records(), [0, 0, 0]);
    assert_eq!([day(&receipt.executions), day(&receipt.steps)], [10_000; 2]);
    assert_eq!(receipt.artifacts.oldest_kept, None, "there is none");
}

pub async fn a_dry_run_counts_what_a_run_deletes(b: Backend) {
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis());
    let now = now.expect("for some time yet");
    let s = b.serve_with(by_hand).await;
    for n in 0..12 {
        completed(&s, &format!("e{n}"), n % 4).await;
        let points = (0..n).map(|second| point(now - 1000 * i64::from(second), [("loss", 1.0)]));
        s.record_metrics(record(&format!("e{n}"), points.collect())).await;
    }
    s.create("running").await;
    s.shutdown().await;
    for n in 0..12 {
        let id = format!("e{n}");
        if n % 3 == 0 {
            b.store_artifact(&id, "a", i64::from(n) * 100).await;
            b.age_artifacts(&id, 80 + 2 * n as u32).await;
        }
        b.age_execution(&id, 354 + 2 * n as u32).await;
        if n % 4 > 0 {
            b.age_steps(&id, 170 + 4 * n as u32).await;
        }
    }
    b.age_execution("running", 500).await;
    let s = b.serve_with(by_hand).await;
    let before = b.stored().await;
    let counted = s.run_retention(true).await;
    assert!(counted.dry_run);
    assert_eq!(b.stored().await, before, "it only counts");
    assert_eq!(s.run_retention(true).await, counted);
    let deleted = s.run_retention(false).await;
    // Which point is the oldest is only seen once those before it are gone.
    let oldest_kept = deleted.points.oldest_kept;
    let points = RetentionCount { oldest_kept, ..counted.points };
    assert_eq!(deleted, Receipt { dry_run: false, points, ..counted });
    let after = b.stored().await;
    let gone = [0, 1, 2].map(|kind| i64::try_from(before[kind] - after[kind]).expect("few"));
    assert_eq!(deleted.records(), gone);
    assert!(gone.iter().all(|count| *count > 0), "the test shows nothing: {gone:?}");
    let left = ids(&s).await;
    let of_those_gone = (0..12).filter(|n| !left.contains(&format!("e{n}"))).sum::<i32>();
    assert_eq!(
        deleted.points.records,
        i64::from(of_those_gone),
        "an execution's points go with it"
    );
    let oldest = deleted.points.oldest_kept.expect("some are kept");
    let of_those_left = (0..12).filter(|n| left.contains(&format!("e{n}"))).max();
    let expected = now - 1000 * i64::from(of_those_left.expect("some are left") - 1);
    assert_eq!(oldest, time(expected));
}

pub async fn one_run_at_a_time(b: Backend) {
    let (one, two) = b.pair().await;
    let writes = (0..1500).flat_map(|n| {
        let id = format!("e{n:04}");
        let end = finish(&id, ExecutionStatus::Completed);
        let create = ingest_request::Write::CreateExecution(create(&id));
        [create, ingest_request::Write::FinishExecution(end)]
    });
    one.ingest_all(writes.collect()).await;
    for attempt in 0.. {
        assert!(attempt < 200, "two runs at a time");
        // That of the attempt before may not have ended yet.
        let Ok(first) = one.try_run_retention(true).await else { continue };
        let second = two.try_run_retention(false).await.map(drop);
        assert_eq!(receipt_of(first).await.records(), [0, 0, 0]);
        // The first one may have ended before the second one came.
        if second.is_err() {
            refused(second, Code::Aborted, "RETENTION_RUNNING");
            break;
        }
    }
    // A client that goes away takes its run along.
    drop(ok(one.try_run_retention(true).await));
    eventually("another run may begin", async || match two.try_run_retention(true).await {
        Ok(run) => Some(receipt_of(run).await),
        Err(status) => {
            check_refusal(&status, Code::Aborted, "RETENTION_RUNNING");
            None
        }
    })
    .await;
}

pub async fn it_runs_by_itself(b: Backend) {
    let s = b.serve_with(by_hand).await;
    completed(&s, "old", 2).await;
    completed(&s, "new", 1).await;
    b.age_execution("old", 400).await;
    s.shutdown().await;
    let often = |config: &mut Config| config.retention.interval = Duration::from_secs(1);
    let s = b.serve_with(often).await;
    eventually("the old one is gone", async || (b.stored().await == [1, 1, 0]).then_some(())).await;
    s.execution("new").await;
}

pub async fn who_pins_just_then_keeps_it(b: Backend) {
    const EXECUTIONS: usize = 600;
    let (one, two) = b.pair().await;
    let writes = (0..EXECUTIONS).flat_map(|n| {
        let id = format!("e{n:04}");
        use ingest_request::Write as W;
        let end = finish(&id, ExecutionStatus::Completed);
        [W::CreateExecution(create(&id)), W::StartStep(start(&id, 1)), W::FinishExecution(end)]
    });
    one.ingest_all(writes.collect()).await;
    b.age_all(400).await;
    let run = tokio::spawn({
        let client = one.clone();
        async move { client.run_retention(false).await }
    });
    // From the youngest on, so that the two meet.
    let mut pinned = BTreeSet::new();
    let mut too_late = 0;
    for n in (0..EXECUTIONS).rev() {
        let id = format!("e{n:04}");
        let pin = UpdateExecutionRequest { pinned: Some(true), ..update(&id) };
        match two.try_update_execution(pin).await {
            Ok(_) => {
                pinned.insert(id);
            }
            Err(status) => {
                check_refusal(&status, Code::NotFound, "EXECUTION_NOT_FOUND");
                too_late += 1;
            }
        }
        if run.is_finished() {
            break;
        }
    }
    let receipt = run.await.expect("a receipt");
    let kept = ids(&one).await;
    assert!(pinned.is_subset(&kept), "pinned and gone: {:?}", pinned.difference(&kept));
    assert_eq!(receipt.executions.records as usize, EXECUTIONS - kept.len());
    assert_eq!(receipt.executions.records, receipt.steps.records, "each with its step");
    assert_eq!(b.stored().await[1] as usize, kept.len());
    println!("{} pinned in time, {too_late} too late", pinned.len());
}
