//! Export: everything there is, what changes meanwhile, and going on after an interruption.

use std::collections::BTreeMap;

use stepwell::proto::export_response::Record;
use stepwell::proto::ingest_request::Write;
use stepwell::proto::*;
use tonic::{Code, Streaming};

use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::values::*;
use crate::support::*;

type Exported = Streaming<ExportResponse>;

async fn all(mut stream: Exported) -> Vec<ExportResponse> {
    let mut found = Vec::new();
    while let Some(answer) = ok(in_time("the export", stream.message()).await) {
        found.push(answer);
    }
    assert!(matches!(
        found.last().and_then(|last| last.record.as_ref()),
        Some(Record::Complete(_))
    ));
    found
}

/// What someone has who takes in an export: of each record the last, without what was removed.
#[derive(Debug, Default, PartialEq)]
struct Held {
    executions: BTreeMap<String, Execution>,
    steps: BTreeMap<(String, i32), Step>,
    artifacts: BTreeMap<(String, String), Artifact>,
    points: BTreeMap<String, Vec<MetricPoint>>,
    configurations: Vec<Configuration>,
}

impl Held {
    fn of(answers: &[ExportResponse]) -> Held {
        let mut held = Held::default();
        let mut walked = false;
        let mut told_again = BTreeMap::new();
        for answer in answers {
            match answer.record.clone().expect("a record") {
                Record::Execution(record) => {
                    held.executions.insert(record.execution_id.clone(), record);
                }
                Record::Step(record) => {
                    let id = record.step_id.expect("a number");
                    held.steps.insert((record.execution_id.clone(), id), record);
                }
                Record::Artifact(record) => {
                    let key = (record.execution_id.clone(), record.artifact_id.clone());
                    held.artifacts.insert(key, record);
                }
                Record::Points(points) => {
                    let id = points.points[0].execution_id.clone();
                    let of = if walked { &mut told_again } else { &mut held.points };
                    of.entry(id).or_insert_with(Vec::new).extend(points.points);
                }
                Record::Configuration(record) => held.configurations.push(record),
                Record::Removed(removed) => held.remove(&removed),
                Record::Walked(_) => walked = true,
                Record::Complete(_) | Record::CaughtUp(_) => {}
            }
        }
        held.points.extend(told_again);
        held
    }

    fn remove(&mut self, removed: &ExportedRemoval) {
        let id = &removed.execution_id;
        match (removed.step_id, &removed.artifact_id) {
            (Some(step_id), _) => {
                self.steps.remove(&(id.clone(), step_id));
            }
            (None, Some(artifact_id)) => {
                self.artifacts.remove(&(id.clone(), artifact_id.clone()));
            }
            (None, None) => {
                self.executions.remove(id);
                self.steps.retain(|(execution_id, _), _| execution_id != id);
                self.artifacts.retain(|(execution_id, _), _| execution_id != id);
                self.points.remove(id);
            }
        }
    }
}

async fn point(s: &Client, id: &str, value: f64) {
    let timestamp = Some(time(wall_clock_ms()));
    let metrics = [("n".to_owned(), value)].into();
    let point = MetricPoint { timestamp, metrics, ..Default::default() };
    let request =
        RecordMetricsRequest { execution_id: id.into(), points: vec![point], request_id: None };
    s.record_metrics(request).await;
}

async fn configuration(s: &Client, name: &str, version: &str) {
    let configuration = Configuration {
        app_name: name.into(),
        version: version.into(),
        configuration: meta(json!({ "settings": { "max_retries": 2 } })),
        ..Default::default()
    };
    let request =
        PublishConfigurationRequest { configuration: Some(configuration), activate: true };
    s.publish_configuration(request).await;
}

async fn artifact(s: &Client, id: &str, name: &str) {
    let artifact = Artifact {
        execution_id: id.into(),
        artifact_type: "log".into(),
        artifact_name: name.into(),
        ..Default::default()
    };
    let answers = s.ingest_all(vec![Write::PutArtifact(artifact)]).await;
    assert!(matches!(answers[0], ingest_response::Result::Artifact(_)), "{answers:?}");
}

/// Three executions with steps, artifacts and points, and two configurations.
async fn filled(s: &Client) {
    for (n, id) in ["a", "b", "c"].into_iter().enumerate() {
        let started_at = Some(time(1_000_000 * (n as i64 + 1)));
        s.create_execution(CreateExecutionRequest { started_at, ..create(id) }).await;
        for step in 1..=3 {
            let input = Some(value(json!({ "n": step, "text": "é", "list": [1, 2.5, null] })));
            s.start_step(StartStepRequest { input, ..start(id, step) }).await;
        }
        s.end(id, 1, StepStatus::Completed).await;
        s.end(id, 2, StepStatus::Failed).await;
        artifact(s, id, "first").await;
        artifact(s, id, "second").await;
        point(s, id, n as f64).await;
        point(s, id, 0.5).await;
    }
    s.finish("b", ExecutionStatus::Failed).await;
    configuration(s, "app", "1").await;
    configuration(s, "other", "1").await;
}

pub async fn everything_is_exported_as_it_is_stored(b: Backend) {
    let s = b.serve().await;
    filled(&s).await;
    let answers = all(ok(s.try_export(ExportRequest::default()).await)).await;
    let held = Held::of(&answers);
    assert_eq!(held.executions.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    for (id, record) in &held.executions {
        assert_eq!(*record, s.execution(id).await);
    }
    assert_eq!(held.steps.len(), 9);
    for ((id, number), record) in &held.steps {
        assert_eq!(*record, s.step(id, *number).await, "with input and output");
    }
    assert_eq!(held.artifacts.len(), 6);
    for ((_, id), record) in &held.artifacts {
        let request = GetArtifactRequest { artifact_id: id.clone() };
        assert_eq!(*record, s.get_artifact(request).await);
    }
    let values =
        |id: &str| -> Vec<f64> { held.points[id].iter().map(|point| point.metrics["n"]).collect() };
    assert_eq!((values("a"), values("c")), (vec![0.0, 0.5], vec![2.0, 0.5]));
    let names: Vec<_> = held.configurations.iter().map(|record| &record.app_name).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let Some(Record::Complete(complete)) = &answers[answers.len() - 1].record else { panic!() };
    assert!(
        complete.since_position.is_some() && complete.until_position >= complete.since_position
    );

    // A part of it.
    let filter = Some(ExecutionFilter {
        statuses: vec![ExecutionStatus::Failed.into()],
        ..Default::default()
    });
    let kinds = vec![ExportKind::Steps.into(), ExportKind::Metrics.into()];
    let some = ExportRequest { filter, kinds, ..Default::default() };
    let some = Held::of(&all(ok(s.try_export(some).await)).await);
    assert!(some.executions.is_empty() && some.artifacts.is_empty());
    assert!(some.configurations.is_empty());
    assert_eq!(some.steps.keys().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["b"; 3]);
    assert_eq!(some.points.keys().collect::<Vec<_>>(), ["b"]);
}

pub async fn an_export_goes_on_after_any_of_its_messages(b: Backend) {
    let s = b.serve().await;
    filled(&s).await;
    let whole = all(ok(s.try_export(ExportRequest::default()).await)).await;
    let records = |answers: &[ExportResponse]| -> Vec<Record> {
        answers
            .iter()
            .filter_map(|answer| answer.record.clone())
            // Where the log is may differ, and what came since is told.
            .take_while(|record| !matches!(record, Record::Walked(_)))
            .collect()
    };
    let walk = records(&whole);
    assert_eq!(walk.len(), 3 + 9 + 6 + 3 + 2);
    for (n, answer) in whole.iter().enumerate().take(walk.len()) {
        let request =
            ExportRequest { resume_token: Some(answer.resume_token.clone()), ..Default::default() };
        let rest = all(ok(s.try_export(request).await)).await;
        // Only what has the token of the message before is sent again.
        let again = whole[..=n]
            .iter()
            .rev()
            .take_while(|earlier| n > 0 && earlier.resume_token == answer.resume_token)
            .count()
            .saturating_sub(1);
        assert_eq!(records(&rest), walk[n + 1 - again..], "after message {n}");
        assert!(answer.resume_token.len() <= 2048);
    }
}

pub async fn what_changes_during_an_export_is_in_it(b: Backend) {
    let s = b.serve().await;
    filled(&s).await;
    // More than a connection takes that nobody reads.
    let text = "x".repeat(1024 * 1024);
    for step in 10..40 {
        let input = Some(value(json!(text)));
        s.start_step(StartStepRequest { input, ..start("b", step) }).await;
    }
    let alone = Client::of(&s.address);
    let mut stream = ok(alone.try_export(ExportRequest::default()).await);
    let mut answers = vec![ok(in_time("the first", stream.message()).await).expect("one")];
    // Of what was sent, of what is being sent, and of what was not.
    s.end("a", 3, StepStatus::Completed).await;
    s.start("a", 4).await;
    s.finish("a", ExecutionStatus::Completed).await;
    let first =
        s.list_artifacts(ListArtifactsRequest { execution_id: "a".into(), ..Default::default() });
    let first = first.await.artifacts.remove(0);
    s.delete_artifact(DeleteArtifactRequest { artifact_id: first.artifact_id }).await;
    s.end("b", 20, StepStatus::Failed).await;
    s.delete_execution(DeleteExecutionRequest { execution_id: "c".into(), force: true }).await;
    let made = CreateExecutionRequest { started_at: Some(time(1)), ..create("new") };
    s.create_execution(made).await;
    s.start("new", 1).await;
    artifact(&s, "new", "only").await;
    point(&s, "new", 7.0).await;
    answers.extend(all(stream).await);
    let held = Held::of(&answers);
    let now = Held::of(&all(ok(s.try_export(ExportRequest::default()).await)).await);
    assert_eq!(held.executions, now.executions);
    assert_eq!(held.executions.keys().collect::<Vec<_>>(), ["a", "b", "new"]);
    assert!(held.steps == now.steps, "steps differ");
    let told: Vec<_> = answers
        .iter()
        .filter(|answer| {
            matches!(
                answer.record,
                Some(Record::Removed(_) | Record::Artifact(_) | Record::Walked(_))
            )
        })
        .collect();
    assert!(held.artifacts == now.artifacts, "{told:#?}");
    assert_eq!(held.points, now.points);
}

pub async fn executions_come_and_go_with_the_filter_of_an_export(b: Backend) {
    let s = b.serve().await;
    filled(&s).await;
    let text = "x".repeat(1024 * 1024);
    for step in 10..40 {
        let input = Some(value(json!(text)));
        s.start_step(StartStepRequest { input, ..start("a", step) }).await;
    }
    let running = ExportRequest {
        filter: Some(ExecutionFilter {
            statuses: vec![ExecutionStatus::Running.into()],
            ..Default::default()
        }),
        ..Default::default()
    };
    let marked = ExportRequest {
        filter: Some(ExecutionFilter {
            metadata: [("mark".to_owned(), value(json!(1)))].into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mark = async |id: &str, mark: i32| {
        let metadata = meta(json!({ "mark": mark }));
        let request =
            UpdateExecutionRequest { execution_id: id.into(), metadata, ..Default::default() };
        s.update_execution(request).await;
    };
    mark("a", 1).await;
    let (one, two) = (Client::of(&s.address), Client::of(&s.address));
    let mut first = ok(one.try_export(running).await);
    let mut second = ok(two.try_export(marked).await);
    let mut of_first = vec![ok(in_time("the first", first.message()).await).expect("one")];
    let mut of_second = vec![ok(in_time("the first", second.message()).await).expect("one")];
    // It leaves the one filter, and others come into the other.
    s.finish("a", ExecutionStatus::Completed).await;
    mark("b", 1).await;
    mark("c", 2).await;
    of_first.extend(all(first).await);
    of_second.extend(all(second).await);
    let of_first = Held::of(&of_first);
    assert_eq!(of_first.executions.keys().collect::<Vec<_>>(), ["c"]);
    assert!(of_first.steps.keys().all(|(id, _)| id == "c"));
    let of_second = Held::of(&of_second);
    assert_eq!(of_second.executions.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(of_second.steps.keys().filter(|(id, _)| id == "b").count(), 3, "with all it has");
    assert_eq!(of_second.points["b"].len(), 2);
}

pub async fn bad_exports_are_refused(b: Backend) {
    let s = b.serve().await;
    filled(&s).await;
    let bad = ExportRequest { kinds: vec![0, 1, 99], ..Default::default() };
    let fields = bad_fields(s.try_export(bad).await.map(drop));
    assert_eq!(fields.iter().map(|(field, _)| field.as_str()).collect::<Vec<_>>(), ["kinds"; 2]);
    let many = ExportRequest { kinds: vec![1; 10_000], ..Default::default() };
    assert_eq!(bad_fields(s.try_export(many).await.map(drop)).len(), 1);
    let forged = ExportRequest { resume_token: Some("forged".into()), ..Default::default() };
    refused(s.try_export(forged).await.map(drop), Code::InvalidArgument, "INVALID_TOKEN");
    let whole = all(ok(s.try_export(ExportRequest::default()).await)).await;
    let other = ExportRequest {
        kinds: vec![ExportKind::Steps.into()],
        resume_token: Some(whole[0].resume_token.clone()),
        ..Default::default()
    };
    refused(s.try_export(other).await.map(drop), Code::InvalidArgument, "INVALID_TOKEN");
}

pub async fn an_export_that_history_no_longer_covers_begins_anew(b: Backend) {
    let b = b.with_short_history();
    let s = b.serve().await;
    filled(&s).await;
    let whole = all(ok(s.try_export(ExportRequest::default()).await)).await;
    let resume_token = Some(whole[0].resume_token.clone());
    let s = b.forget_history(s).await;
    let status = eventually("history is gone", async || {
        let request = ExportRequest { resume_token: resume_token.clone(), ..Default::default() };
        let mut stream = ok(s.try_export(request).await);
        loop {
            match in_time("the export", stream.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status),
            }
        }
    })
    .await;
    check_refusal(&status, Code::OutOfRange, "RESUME_TOKEN_EXPIRED");
}
