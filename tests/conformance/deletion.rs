//! Deleting an execution with all it has, and what others see of it meanwhile; artifacts as part of an execution.

use stepwell::proto::*;
use tonic::Code;

use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::*;

fn delete(id: &str) -> DeleteExecutionRequest {
    DeleteExecutionRequest { execution_id: id.into(), force: true }
}

fn full(id: &str) -> GetExecutionRequest {
    GetExecutionRequest { execution_id: id.into(), view: ExecutionView::Full.into() }
}

fn names(artifacts: &[Artifact]) -> Vec<&str> {
    artifacts.iter().map(|artifact| artifact.artifact_name.as_str()).collect()
}

/// An execution `e` with two steps and two artifacts, and a server on it.
async fn with_artifacts(b: &Backend) -> server::Server {
    let s = b.serve().await;
    s.create("e").await;
    s.start("e", 1).await;
    s.start("e", 2).await;
    s.shutdown().await;
    b.store_artifact("e", "first", 10).await;
    b.store_artifact("e", "second", 20).await;
    b.serve().await
}

pub async fn the_full_view_and_the_snapshot_have_the_artifacts(b: Backend) {
    let s = with_artifacts(&b).await;
    let whole = s.get_execution(full("e")).await;
    assert_eq!(names(&whole.artifacts), ["first", "second"], "oldest first");
    assert_eq!((whole.steps.len(), whole.steps_truncated), (2, false));
    let first = &whole.artifacts[0];
    assert_eq!((first.execution_id.as_str(), first.size_bytes), ("e", Some(10)));
    let basic = GetExecutionRequest { execution_id: "e".into(), ..Default::default() };
    assert!(s.get_execution(basic).await.artifacts.is_empty());

    let with = WatchExecutionRequest { include_artifacts: true, ..watch("e") };
    let mut watching = s.watch(with.clone()).await;
    let snapshot = watching.snapshot().await;
    assert!(snapshot[0].execution().is_some());
    let steps: Vec<_> = snapshot[1..3].iter().map(|event| event.step().expect("a step")).collect();
    assert_eq!(steps[1].1.step_id, Some(2));
    let artifacts: Vec<Artifact> = snapshot[3..]
        .iter()
        .map(|event| event.artifact().expect("an artifact").1.clone())
        .collect();
    assert_eq!(artifacts, whole.artifacts);

    // Alone, without steps; and not when nobody asks for them.
    let alone = WatchExecutionRequest { include_steps: false, ..with };
    assert_eq!(s.watch(alone).await.snapshot().await.len(), 3);
    assert_eq!(s.watch(watch("e")).await.snapshot().await.len(), 3);
    // Artifacts are no steps and keep no watch open.
    s.end("e", 1, StepStatus::Completed).await;
    s.end("e", 2, StepStatus::Completed).await;
    s.finish("e", ExecutionStatus::Completed).await;
    let (rest, end) = watching.rest().await;
    end.expect("it ends in order");
    assert!(rest.iter().all(|event| event.artifact().is_none()), "told twice: {rest:?}");
}

pub async fn artifacts_are_told_when_they_come_and_go(b: Backend) {
    let s = with_artifacts(&b).await;
    let request = WatchExecutionRequest { include_artifacts: true, ..watch("e") };
    let mut watching = s.watch(request.clone()).await;
    watching.snapshot().await;
    let resume_token = Some(watching.token.clone());
    drop(watching);
    s.shutdown().await;
    let third = b.store_artifact("e", "third", 30).await;
    let other = b.store_artifact("other", "of another execution", 1).await;
    b.mark_artifact("e", &third).await;
    b.mark_artifact("other", &other).await;
    let fourth = b.store_artifact("e", "fourth", 40).await;
    let s = b.serve().await;
    let mut resumed = s.watch(WatchExecutionRequest { resume_token, ..request }).await;
    let mut told = Vec::new();
    while told.last() != Some(&(ChangeType::Created, fourth.clone(), "fourth".to_owned())) {
        let event = resumed.next_change().await;
        let (kind, artifact) = event.artifact().expect("nothing but artifacts changed");
        assert_eq!(artifact.execution_id, "e");
        told.push((kind, artifact.artifact_id.clone(), artifact.artifact_name.clone()));
    }
    // What is gone by now may have been told in whole; that it went is told with its ids.
    told.retain(|change| change.0 != ChangeType::Created || change.1 != third);
    let gone = (ChangeType::Deleted, third, String::new());
    assert_eq!(told, [gone, (ChangeType::Created, fourth, "fourth".to_owned())]);
    assert_eq!(names(&s.get_execution(full("e")).await.artifacts), ["first", "second", "fourth"]);
}

pub async fn deleting_takes_the_artifacts_along(b: Backend) {
    let s = with_artifacts(&b).await;
    let request = WatchExecutionRequest { include_artifacts: true, follow: true, ..watch("e") };
    let mut watching = s.watch(request).await;
    watching.snapshot().await;
    assert_eq!(b.stored().await, [1, 2, 2]);
    s.delete_execution(delete("e")).await;
    assert_eq!(b.stored().await, [0, 0, 0]);
    let (told, end) = watching.rest().await;
    end.expect("the end of the execution is the end of the watch");
    let [last] = told.as_slice() else { panic!("its end covers all it had: {told:?}") };
    assert_eq!(last.execution().expect("of the execution").0, ChangeType::Deleted);
    // The id is free, and what comes under it has nothing of the old one.
    s.create("e").await;
    let whole = s.get_execution(full("e")).await;
    assert!(whole.steps.is_empty() && whole.artifacts.is_empty());
}

pub async fn what_is_being_deleted_is_there_for_nobody(b: Backend) {
    let s = with_artifacts(&b).await;
    s.create("other").await;
    b.mark_execution("e", 0).await;
    refused(s.try_execution("e").await, Code::NotFound, "EXECUTION_NOT_FOUND");
    refused(s.try_get_execution(full("e")).await, Code::NotFound, "EXECUTION_NOT_FOUND");
    let list = s.list_executions(ListExecutionsRequest::default()).await.executions;
    assert_eq!(list.iter().map(|e| e.execution_id.as_str()).collect::<Vec<_>>(), ["other"]);
    refused(s.try_step("e", 1).await, Code::NotFound, "EXECUTION_NOT_FOUND");
    let steps = ListStepsRequest { execution_id: "e".into(), ..Default::default() };
    refused(s.try_list_steps(steps).await, Code::NotFound, "EXECUTION_NOT_FOUND");
    refused(s.try_watch(watch("e")).await.map(drop), Code::NotFound, "EXECUTION_NOT_FOUND");
    for id in [1, 3] {
        refused(s.try_start_step(start("e", id)).await, Code::NotFound, "EXECUTION_NOT_FOUND");
    }
    let progress = UpdateStepRequest { progress: Some(0.5), ..update_step("e", 1) };
    refused(s.try_update_step(progress).await, Code::NotFound, "EXECUTION_NOT_FOUND");
    let end = finish_step("e", 2, StepStatus::Completed);
    refused(s.try_finish_step(end).await, Code::NotFound, "EXECUTION_NOT_FOUND");
    let end = finish("e", ExecutionStatus::Completed);
    refused(s.try_finish_execution(end).await, Code::NotFound, "EXECUTION_NOT_FOUND");
    let again = s.try_create_execution(create("e")).await;
    refused(again, Code::Aborted, "EXECUTION_BEING_DELETED");
    // The same delete again goes on where the first was cut short.
    s.delete_execution(delete("e")).await;
    assert_eq!(b.stored().await, [1, 0, 0]);
    s.create("e").await;
}

pub async fn a_delete_that_was_cut_short_is_ended_by_the_server(b: Backend) {
    let s = with_artifacts(&b).await;
    s.create("other").await;
    s.start("other", 1).await;
    s.shutdown().await;
    b.mark_execution("e", 60).await;
    let s = b.serve().await;
    eventually("all of it is gone", async || (b.stored().await == [1, 1, 0]).then_some(())).await;
    s.create("e").await;
    assert_eq!(s.execution("other").await.execution_id, "other");
}

/// Writers that pour steps into their executions through one server while another one deletes these.
pub async fn no_step_outlives_a_delete_on_a_busy_server(b: Backend) {
    const WRITERS: usize = 8;
    const ROUNDS: usize = 6;
    let (one, two) = b.pair().await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (one, two) = ((*one).clone(), (*two).clone());
        writers.spawn(async move {
            for round in 0..ROUNDS {
                let id = format!("w{writer}-{round}");
                two.create(&id).await;
                let mut step = 0;
                for _ in 0..10 + 7 * writer {
                    step += 1;
                    two.start(&id, step).await;
                }
                let deleting = tokio::spawn({
                    let (one, id) = (one.clone(), id.clone());
                    async move { one.delete_execution(delete(&id)).await }
                });
                // Until the delete is heard of: each is stored before it, or refused.
                loop {
                    let answered = deleting.is_finished();
                    step += 1;
                    let answer = two.try_start_step(start(&id, step)).await;
                    if answer.is_err() {
                        refused(answer, Code::NotFound, "EXECUTION_NOT_FOUND");
                        break;
                    }
                    assert!(!answered, "step {step} of {id} was taken after its delete");
                }
                deleting.await.expect("deleted");
                let late = two.try_start_step(start(&id, step + 1)).await;
                refused(late, Code::NotFound, "EXECUTION_NOT_FOUND");
            }
        });
    }
    writers.join_all().await;
    assert_eq!(b.stored().await, [0, 0, 0]);
}

pub async fn a_great_execution_is_deleted_beside_other_writes(b: Backend) {
    const STEPS: i32 = 4_000;
    let s = b.serve().await;
    s.create("great").await;
    s.create("other").await;
    for first in (1..=STEPS).step_by(1000) {
        let steps = (first..first + 1000).map(|step_id| PlannedStep {
            step_id: Some(step_id),
            step_name: "work".into(),
            ..Default::default()
        });
        s.plan_steps(PlanStepsRequest {
            execution_id: "great".into(),
            steps: steps.collect(),
            ..Default::default()
        })
        .await;
    }
    let mut watching = s.watch_all(watch_all()).await;
    watching.snapshot().await;
    let client = s.clone();
    let deleting = tokio::spawn(async move { client.delete_execution(delete("great")).await });
    // Invisible with the first piece, long before the last.
    let mut written = 0;
    while !deleting.is_finished() {
        written += 1;
        s.start("other", written).await;
    }
    deleting.await.expect("deleted");
    assert_eq!(b.stored().await, [1, u64::try_from(written).expect("some"), 0]);
    s.finish("other", ExecutionStatus::Completed).await;
    let mut deleted = 0;
    loop {
        let event = watching.next_change().await;
        if let Some((_, step)) = event.step() {
            assert_eq!(step.execution_id, "other", "its end covers its steps");
        } else if let Some((kind, execution)) = event.execution() {
            if execution.execution_id == "other" {
                break;
            }
            assert_eq!(kind, ChangeType::Deleted);
            deleted += 1;
        }
    }
    assert_eq!(deleted, 1);
}

pub async fn writes_after_a_delete_in_one_stream_find_the_id_free(b: Backend) {
    use ingest_request::Write as W;
    let s = b.serve().await;
    let writes = vec![
        W::CreateExecution(create("e")),
        W::StartStep(start("e", 1)),
        W::DeleteExecution(delete("e")),
        W::CreateExecution(create("e")),
        W::StartStep(start("e", 3)),
        W::DeleteExecution(delete("unknown")),
    ];
    let answers = s.ingest_all(writes).await;
    let failed: Vec<usize> = answers
        .iter()
        .enumerate()
        .filter(|(_, answer)| matches!(answer, ingest_response::Result::Error(_)))
        .map(|(place, _)| place)
        .collect();
    assert_eq!(failed, [5], "{answers:?}");
    assert!(
        matches!(&answers[2], ingest_response::Result::Deleted(gone) if gone.execution_id == "e")
    );
    assert_eq!(b.stored().await, [1, 1, 0]);
    assert_eq!(s.step("e", 3).await.step_id, Some(3));

    // Records of artifacts go beside the other writes, and all the same not ahead of a delete.
    let artifact = |name: &str| {
        W::PutArtifact(Artifact {
            execution_id: "a".into(),
            artifact_type: "log".into(),
            artifact_name: name.into(),
            ..Default::default()
        })
    };
    for _ in 0..20 {
        let answers = s
            .ingest_all(vec![
                W::CreateExecution(create("a")),
                artifact("gone"),
                W::DeleteExecution(delete("a")),
                W::CreateExecution(create("a")),
                artifact("kept"),
            ])
            .await;
        let failed = answers.iter().find(|a| matches!(a, ingest_response::Result::Error(_)));
        assert!(failed.is_none(), "{failed:?}");
        assert_eq!(names(&s.get_execution(full("a")).await.artifacts), ["kept"]);
        s.delete_execution(delete("a")).await;
    }
}
