//! Records that a mirror brings, again and again: the place in the log of their source decides, and nobody else's change is lost.

use ingest_request::Write as W;
use ingest_response::Result as R;
use stepwell::proto::*;
use tonic::{Code, Streaming};
use tonic_types::RpcStatusExt as _;

use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::values::*;
use crate::support::*;

/// One mirrored write after the other over one stream; their answers.
async fn mirror(s: &Client, writes: Vec<(i64, W)>) -> Vec<R> {
    let requests: Vec<_> = writes
        .into_iter()
        .zip(0..)
        .map(|((source_position, write), sequence)| IngestRequest {
            sequence,
            write: Some(write),
            mirrored: Some(Mirrored { source_position }),
        })
        .collect();
    let count = requests.len();
    let answers = in_time("ingest", s.ingest().ingest(tokio_stream::iter(requests))).await;
    let mut answers: Streaming<IngestResponse> = ok(answers).into_inner();
    let mut results: Vec<Option<R>> = vec![None; count];
    while let Some(answer) = ok(in_time("an answer of ingest", answers.message()).await) {
        results[usize::try_from(answer.sequence).expect("our own number")] = answer.result;
    }
    results.into_iter().map(|result| result.expect("every write is answered")).collect()
}

fn is_conflict(answer: &R) -> bool {
    let R::Error(status) = answer else { return false };
    let reason = status.get_details_error_info().map(|info| info.reason);
    (status.code, reason.as_deref()) == (Code::FailedPrecondition as i32, Some("MIRROR_CONFLICT"))
}

/// Whether the write of an execution or a step came too late; anything but an answer about one fails the test.
fn is_late(answer: &R) -> bool {
    match answer {
        R::Execution(answer) => answer.superseded,
        R::Step(answer) => answer.superseded,
        other => panic!("{other:?}"),
    }
}

fn execution(id: &str, n: i64) -> Execution {
    Execution {
        execution_id: id.into(),
        app_name: "app".into(),
        status: ExecutionStatus::Running.into(),
        started_at: Some(time(1_000)),
        metadata: meta(json!({ "n": n })),
        created_at: Some(time(1_000)),
        // The same in all of them: times are never compared.
        updated_at: Some(time(2_000)),
        ..Default::default()
    }
}

fn step(id: &str, step_id: i32, n: i64) -> Step {
    Step {
        execution_id: id.into(),
        step_id: Some(step_id),
        step_name: "work".into(),
        status: StepStatus::Completed.into(),
        input: Some(value(json!({ "n": n }))),
        output: Some(value(json!(n))),
        ..Default::default()
    }
}

pub async fn only_a_greater_place_replaces_a_record(b: Backend) {
    let s = b.serve().await;
    let put = |n| W::PutExecution(execution("e", n));
    let answers = mirror(&s, vec![(10, put(1)), (30, put(3)), (20, put(2)), (30, put(4))]).await;
    assert_eq!(answers.iter().map(is_late).collect::<Vec<_>>(), [false, false, true, true]);
    let stored = s.execution("e").await;
    assert_eq!(plain_meta(&stored.metadata), json!({ "n": 3 }));
    // Everything is replaced, also by nothing, and the revision grows.
    let end = Execution {
        status: ExecutionStatus::Failed.into(),
        error: Some(run_error("broken")),
        completed_at: Some(time(9_000)),
        duration_ms: Some(8_000),
        user_id: Some("u".into()),
        metadata: None,
        ..execution("e", 0)
    };
    mirror(&s, vec![(31, W::PutExecution(end.clone()))]).await;
    let replaced = s.execution("e").await;
    assert!(replaced.revision > stored.revision);
    let expected =
        Execution { revision: replaced.revision, metadata: Some(Default::default()), ..end };
    assert_eq!(replaced, expected);

    let put = |n| W::PutStep(step("e", 7, n));
    let answers = mirror(&s, vec![(10, put(1)), (30, put(3)), (20, put(2)), (30, put(4))]).await;
    assert_eq!(answers.iter().map(is_late).collect::<Vec<_>>(), [false, false, true, true]);
    let stored = s.step("e", 7).await;
    assert_eq!(stored.output.as_ref().map(plain), Some(json!(3)));
    assert_eq!(stored.input.as_ref().map(plain), Some(json!({ "n": 3 })));
    // Once more after a restart, when nothing is in memory.
    s.shutdown().await;
    let s = b.serve().await;
    let answers = mirror(&s, vec![(30, put(4)), (31, put(5))]).await;
    assert_eq!(answers.iter().map(is_late).collect::<Vec<_>>(), [true, false]);
    assert_eq!(s.step("e", 7).await.output.as_ref().map(plain), Some(json!(5)));
}

pub async fn what_others_changed_is_not_overwritten(b: Backend) {
    let s = b.serve().await;
    let put = |n| W::PutExecution(execution("e", n));
    let put_step = |n| W::PutStep(step("e", 1, n));
    mirror(&s, vec![(10, put(1)), (10, put_step(1))]).await;
    let pinned = UpdateExecutionRequest { pinned: Some(true), ..update("e") };
    s.update_execution(pinned).await;
    s.update_step(UpdateStepRequest { progress: Some(0.5), ..update_step("e", 1) }).await;
    let (before, step_before) = (s.execution("e").await, s.step("e", 1).await);
    let answers = mirror(&s, vec![(20, put(2)), (20, put_step(2)), (10, put(3))]).await;
    assert!(is_conflict(&answers[0]) && is_conflict(&answers[1]), "{answers:?}");
    assert!(is_late(&answers[2]), "what is not newer is no error, whoever changed the record");
    assert_eq!(s.execution("e").await, before);
    assert_eq!(s.step("e", 1).await, step_before);

    // Nor what others have stored, unless it is the same; from then on the mirror has it.
    s.create("own").await;
    s.start("own", 1).await;
    let writes =
        vec![(5, W::PutExecution(execution("own", 1))), (5, W::PutStep(step("own", 1, 1)))];
    assert!(mirror(&s, writes).await.iter().all(is_conflict));
    let imported =
        vec![W::PutExecution(execution("imported", 1)), W::PutStep(step("imported", 1, 1))];
    s.ingest_all(imported.clone()).await;
    let same = imported.into_iter().map(|write| (5, write)).collect();
    assert!(!mirror(&s, same).await.iter().any(is_late));
    let newer = vec![
        (6, W::PutExecution(execution("imported", 2))),
        (6, W::PutStep(step("imported", 1, 2))),
    ];
    assert!(!mirror(&s, newer).await.iter().any(is_late));
    assert_eq!(plain_meta(&s.execution("imported").await.metadata), json!({ "n": 2 }));
    assert_eq!(s.step("imported", 1).await.output.as_ref().map(plain), Some(json!(2)));
}

pub async fn of_racing_mirrors_the_greatest_place_stays(b: Backend) {
    const PLACES: i64 = 60;
    let (one, two) = b.pair().await;
    mirror(&one, vec![(0, W::PutExecution(execution("e", 0)))]).await;
    let places = |odd| (1..=PLACES).filter(move |n| n % 2 == odd);
    let write = |n| (n, W::PutExecution(execution("e", n)));
    let (first, second) = tokio::join!(
        mirror(&one, places(0).map(write).collect()),
        mirror(&two, places(1).map(write).collect()),
    );
    // A write that lost every race is refused for now, and brought again.
    let lost =
        |answer: &R| matches!(answer, R::Error(status) if status.code == Code::Aborted as i32);
    assert!(first.iter().chain(&second).all(|answer| lost(answer) || !is_conflict(answer)));
    mirror(&one, (1..=PLACES).map(write).collect()).await;
    let stored = s_n(&one.execution("e").await);
    assert_eq!(stored, json!({ "n": PLACES }));
}

fn s_n(execution: &Execution) -> serde_json::Value {
    plain_meta(&execution.metadata)
}

pub async fn artifacts_and_configurations_are_replaced_too(b: Backend) {
    let s = b.serve().await;
    mirror(&s, vec![(1, W::PutExecution(execution("e", 1)))]).await;
    let artifact = |name: &str| {
        W::PutArtifact(Artifact {
            artifact_id: "0123456789abcdef01234567".into(),
            execution_id: "e".into(),
            artifact_type: "log".into(),
            artifact_name: name.into(),
            storage_type: Some("local".into()),
            storage_path: Some("file:///etc/passwd".into()),
            created_at: Some(time(1_000)),
            ..Default::default()
        })
    };
    for (place, name) in [(10, "a"), (30, "c"), (20, "b")] {
        let answers = mirror(&s, vec![(place, artifact(name))]).await;
        assert!(matches!(&answers[0], R::Artifact(_)), "{answers:?}");
    }
    let id = "0123456789abcdef01234567".to_owned();
    let get = GetArtifactRequest { artifact_id: id.clone() };
    let stored = s.get_artifact(get).await;
    assert_eq!(stored.artifact_name, "c");
    // It names bytes, and has none.
    let download = DownloadArtifactRequest { artifact_id: id, ..Default::default() };
    let download = s.artifacts().download_artifact(download).await;
    refused(download.map(drop), Code::FailedPrecondition, "ARTIFACT_WITHOUT_BYTES");

    let configuration = |version: &str, n: i64, active| {
        W::PutConfiguration(Configuration {
            app_id: Some(1),
            app_name: "app".into(),
            version: version.into(),
            configuration: meta(json!({ "n": n })),
            active,
            created_at: Some(time(1_000)),
            ..Default::default()
        })
    };
    let all = [
        (10, configuration("v1", 1, true)),
        (20, configuration("v2", 1, true)),
        (20, configuration("v1", 1, false)),
        (30, configuration("v1", 2, true)),
        (30, configuration("v2", 1, false)),
        (25, configuration("v2", 9, true)),
    ];
    for (place, write) in all {
        let answers = mirror(&s, vec![(place, write)]).await;
        assert!(matches!(&answers[0], R::Configuration(_)), "{answers:?}");
    }
    let get = |version: Option<&str>| GetConfigurationRequest {
        app_id: Some(1),
        version: version.map(str::to_owned),
        ..Default::default()
    };
    let active = s.get_configuration(get(None)).await;
    assert_eq!(
        (active.version.as_str(), plain_meta(&active.configuration)),
        ("v1", json!({ "n": 2 }))
    );
    let other = s.get_configuration(get(Some("v2"))).await;
    assert_eq!((other.active, plain_meta(&other.configuration)), (false, json!({ "n": 1 })));
    // Switched here: what the source says once more undoes nothing, what it says anew does.
    let activate = ActivateConfigurationRequest {
        app_id: Some(1),
        version: "v2".into(),
        ..Default::default()
    };
    s.activate_configuration(activate).await;
    mirror(&s, vec![(40, configuration("v1", 2, true))]).await;
    mirror(&s, vec![(40, configuration("v2", 1, false))]).await;
    assert_eq!(s.get_configuration(get(None)).await.version, "v2");
    mirror(&s, vec![(50, configuration("v1", 3, true))]).await;
    assert_eq!(s.get_configuration(get(None)).await.version, "v2");
    let first = s.get_configuration(get(Some("v1"))).await;
    assert_eq!((first.active, plain_meta(&first.configuration)), (false, json!({ "n": 3 })));
    mirror(&s, vec![(60, configuration("v1", 3, false))]).await;
    mirror(&s, vec![(70, configuration("v1", 3, true))]).await;
    assert_eq!(s.get_configuration(get(None)).await.version, "v1");
    // Of two that the source called the active one after the other, the first one may be that again.
    mirror(&s, vec![(80, configuration("v2", 1, true))]).await;
    mirror(&s, vec![(90, configuration("v1", 3, true))]).await;
    assert_eq!(s.get_configuration(get(None)).await.version, "v1");
    // One that somebody published here is not overwritten.
    let own = Configuration {
        app_id: Some(2),
        app_name: "app".into(),
        version: "v1".into(),
        configuration: meta(json!({ "own": true })),
        ..Default::default()
    };
    s.publish_configuration(PublishConfigurationRequest {
        configuration: Some(own),
        activate: false,
    })
    .await;
    let W::PutConfiguration(of_one) = configuration("v1", 1, true) else { unreachable!() };
    let of_two = W::PutConfiguration(Configuration { app_id: Some(2), ..of_one });
    assert!(is_conflict(&mirror(&s, vec![(99, of_two)]).await[0]));
}

pub async fn what_is_alive_at_its_source_is_not_ended_here(b: Backend) {
    let s = b.serve().await;
    let held = |id: &str| Execution {
        heartbeat_timeout_ms: Some(200),
        last_heartbeat_at: Some(time(1_000)),
        ..execution(id, 1)
    };
    mirror(&s, vec![(1, W::PutExecution(held("held"))), (1, W::PutExecution(held("moved")))]).await;
    s.ingest_all(vec![W::PutExecution(held("imported"))]).await;
    let ended = async |id: &str| {
        eventually("the silent execution is ended", async || {
            (s.execution(id).await.status() == ExecutionStatus::Failed).then_some(())
        })
        .await;
    };
    ended("imported").await;
    // One that came later is ended too: by then the one that is held had been silent for longer than its timeout.
    s.ingest_all(vec![W::PutExecution(held("later"))]).await;
    ended("later").await;
    let stored = s.execution("held").await;
    assert_eq!(stored, Execution { revision: stored.revision, ..held("held") });
    // Its client has come here: from now on this server looks after it.
    s.heartbeat(HeartbeatRequest { execution_id: "moved".into() }).await;
    ended("moved").await;
    assert!(is_conflict(&mirror(&s, vec![(2, W::PutExecution(held("moved")))]).await[0]));
    assert!(!is_late(&mirror(&s, vec![(2, W::PutExecution(held("held")))]).await[0]));
}

pub async fn only_whole_records_are_mirrored(b: Backend) {
    let s = b.serve().await;
    for (place, write, field) in [
        (1, W::CreateExecution(create("e")), "mirrored"),
        (-1, W::PutExecution(execution("e", 1)), "mirrored.source_position"),
    ] {
        let answers = mirror(&s, vec![(place, write)]).await;
        let R::Error(status) = &answers[0] else { panic!("{answers:?}") };
        let bad = status.get_details_bad_request().expect("fields");
        assert_eq!(bad.field_violations[0].field, field);
    }
    refused(s.try_execution("e").await, Code::NotFound, "EXECUTION_NOT_FOUND");
}
