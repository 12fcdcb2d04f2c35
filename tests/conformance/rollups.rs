//! Rollups: whatever happened, every execution counts once, as what it is.

use std::time::Duration;

use mongodb::bson::{Document, doc};
use stepwell::proto::*;

use crate::support::backend::{Backend, Kind};
use crate::support::client::*;
use crate::support::*;

pub async fn every_kind_of_change_is_counted(b: Backend) {
    let (s, other) = b.pair_of_servers().await;
    for (id, status) in [
        ("completed", ExecutionStatus::Completed),
        ("failed", ExecutionStatus::Failed),
        ("cancelled", ExecutionStatus::Cancelled),
    ] {
        s.create(id).await;
        s.finish(id, status).await;
    }
    assert_eq!(s.counts_right().await, 3);
    s.create("running").await;
    // A step that fails, is tried again and fails for another reason; one that is mended in the end.
    for (step_id, ends) in [(1, StepStatus::Failed), (2, StepStatus::Completed)] {
        s.start("running", step_id).await;
        s.end("running", step_id, StepStatus::Failed).await;
        s.counts_right().await;
        let again = StartStepRequest { attempt: Some(2), ..start("running", step_id) };
        s.start_step(again).await;
        s.end("running", step_id, ends).await;
    }
    assert_eq!(s.counts_right().await, 4);
    // An end that was a guess, and what replaces it.
    let heartbeat_timeout = Some(prost_types::Duration { seconds: 0, nanos: 200_000_000 });
    s.create_execution(CreateExecutionRequest { heartbeat_timeout, ..create("silent") }).await;
    eventually("its silence ends it", async || {
        (s.execution("silent").await.status() == ExecutionStatus::Failed).then_some(())
    })
    .await;
    assert_eq!(s.counts_right().await, 5);
    s.finish("silent", ExecutionStatus::Completed).await;
    // Deleted, and stored anew under the same id.
    for id in ["failed", "running"] {
        let request = DeleteExecutionRequest { execution_id: id.to_owned(), force: true };
        s.delete_execution(request).await;
    }
    assert_eq!(s.counts_right().await, 3);
    s.create("failed").await;
    // Through another server, where there can be one.
    let through = other.as_ref().unwrap_or(&s);
    through.finish("failed", ExecutionStatus::Failed).await;
    assert_eq!(through.counts_right().await, 4);
    assert_eq!(s.counts_right().await, 4);
}

pub async fn what_retention_deletes_no_longer_counts(b: Backend) {
    let s = b.serve_with(|config| config.retention.executions = Duration::from_secs(86_400)).await;
    for id in ["old", "young"] {
        s.create(id).await;
        s.start(id, 1).await;
        s.end(id, 1, StepStatus::Failed).await;
        s.finish(id, ExecutionStatus::Failed).await;
    }
    assert_eq!(s.counts_right().await, 2);
    b.age_execution("old", 3).await;
    assert_eq!(s.run_retention(false).await.executions.records, 1);
    assert_eq!(s.counts_right().await, 1);
}

pub async fn counting_goes_on_after_a_restart(b: Backend) {
    let s = b.serve().await;
    s.create("before").await;
    s.counts_right().await;
    s.create("unseen").await;
    s.shutdown().await;
    let s = b.serve().await;
    s.finish("before", ExecutionStatus::Completed).await;
    assert_eq!(s.counts_right().await, 2);
    s.finish("unseen", ExecutionStatus::Failed).await;
    assert_eq!(s.counts_right().await, 2);
}

/// Errors were grouped by other rules once: what was made by those is made anew.
pub async fn old_fingerprints_are_made_anew(b: Backend) {
    let s = b.serve().await;
    for (id, message) in [("e1", "exit status 1"), ("e2", "exit status 137")] {
        s.create(id).await;
        s.start(id, 1).await;
        let error = Some(run_error(message));
        s.finish_step(FinishStepRequest { error, ..finish_step(id, 1, StepStatus::Failed) }).await;
        s.finish(id, ExecutionStatus::Completed).await;
    }
    s.counts_right().await;
    s.shutdown().await;
    match b.kind {
        Kind::Sqlite => {
            let database = b.sqlite();
            let old = "UPDATE rollup_failures SET fingerprint = 'old'; \
                       UPDATE meta SET value = value - 1 WHERE name = 'rollups_rules';";
            database.execute_batch(old).expect("tampered with");
        }
        Kind::Mongodb => {
            let database = b.mongodb().await;
            let set = doc! { "$set": { "fingerprint": "old" } };
            let documents = database.collection::<Document>("stepwell_rollup_failures");
            documents.update_many(doc! {}, set).await.expect("tampered with");
            let meta = database.collection::<Document>("stepwell_meta");
            let older = doc! { "$inc": { "rules": -1_i64 } };
            let moved = meta.update_one(doc! { "_id": "follow_rollups" }, older).await;
            assert_eq!(moved.expect("tampered with").modified_count, 1);
        }
    }
    let s = b.serve().await;
    let request = ListTopErrorsRequest::default();
    let told = eventually("rollups are made anew", async || {
        let told = s.list_top_errors(request.clone()).await;
        let freshness = told.freshness.expect("a reply says what it covers");
        (freshness.complete && freshness.exact_since.is_some()).then_some(told)
    });
    let errors = told.await.errors;
    let mut found: Vec<(&str, i64)> =
        errors.iter().map(|error| (error.pattern.as_str(), error.count)).collect();
    found.sort_unstable();
    assert_eq!(found, [("exit status 1", 1), ("exit status 137", 1)]);
    assert_eq!(s.counts_right().await, 2);
}
