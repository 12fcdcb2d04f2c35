//! Steps named by the client's own keys wherever they may be named by number, in either order.

use serde_json::json;
use stepwell::proto::*;
use tonic::Code;

use ingest_request::Write as W;
use ingest_response::Result as R;

use crate::support::artifacts::*;
use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::server::Server;
use crate::support::values::*;

use super::metrics::{point, record};

fn keyed(id: &str, key: &str, parent: Option<&str>) -> StartStepRequest {
    StartStepRequest {
        step_id: None,
        step_key: Some(key.into()),
        parent_step_key: parent.map(str::to_owned),
        ..start(id, 0)
    }
}

fn strings(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

async fn all_steps(s: &Server, id: &str) -> Vec<Step> {
    let list = ListStepsRequest { execution_id: id.into(), ..Default::default() };
    s.list_steps(list).await.steps
}

pub async fn a_step_names_its_parent_by_key_in_either_order(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let parent = s.start_step(keyed("e", "parent", None)).await;
    let child = s.start_step(keyed("e", "child", Some("parent"))).await;
    assert_eq!(child.parent_step_key.as_deref(), Some("parent"));
    assert_eq!(child.parent_step_id, parent.step_id, "stored before its child");

    // The other way round nobody has to wait.
    let orphan = s.start_step(keyed("e", "orphan", Some("later"))).await;
    assert_eq!((orphan.parent_step_id, orphan.parent_step_key.as_deref()), (None, Some("later")));
    let mut watch =
        s.watch(WatchExecutionRequest { follow: true, include_steps: true, ..watch("e") }).await;
    watch.snapshot().await;
    let later = s.start_step(keyed("e", "later", None)).await;
    let stored = s.step("e", orphan.step_id()).await;
    assert_eq!((stored.parent_step_id, stored.revision), (None, orphan.revision));
    let event = watch.next_change().await;
    let (_, seen) = event.step().expect("a step");
    assert_eq!(seen.step_id, later.step_id, "no event of the child");

    // Where the parent is at hand it is filled in, and stored is what was.
    let listed = all_steps(&s, "e").await;
    let full = GetExecutionRequest { execution_id: "e".into(), view: ExecutionView::Full.into() };
    let full = s.get_execution(full).await.steps;
    for steps in [listed, full] {
        let filled = steps.iter().find(|step| step.step_id == orphan.step_id).expect("listed");
        assert_eq!((filled.parent_step_id, filled.revision), (later.step_id, orphan.revision));
    }
    // Not on a page without it.
    let running = ListStepsRequest { execution_id: "e".into(), page_size: 3, ..Default::default() };
    let page = s.list_steps(running).await;
    assert_eq!(page.steps[2].step_id, orphan.step_id);
    assert_eq!(page.steps[2].parent_step_id, None);
    // The same request again is the stored record, although the parent is there by now.
    let again = s.start_step(keyed("e", "orphan", Some("later"))).await;
    assert_eq!((again.parent_step_id, again.revision), (None, orphan.revision));
    // Another parent is other content.
    refused(
        s.try_start_step(keyed("e", "orphan", Some("parent"))).await,
        Code::AlreadyExists,
        "STEP_ALREADY_EXISTS",
    );
    // What comes after stands.
    let ended = s
        .finish_step(FinishStepRequest {
            step_id: None,
            step_key: Some("orphan".into()),
            ..finish_step("e", 0, StepStatus::Completed)
        })
        .await;
    assert_eq!((ended.parent_step_id, ended.parent_step_key.as_deref()), (None, Some("later")));
}

pub async fn a_finish_and_a_put_name_steps_by_key(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    s.start_step(keyed("e", "root", None)).await;
    let whole = FinishStepRequest {
        step_id: None,
        step_key: Some("whole".into()),
        step_name: Some("work".into()),
        parent_step_key: Some("root".into()),
        depends_on_keys: strings(&["later", "root"]),
        ..finish_step("e", 0, StepStatus::Completed)
    };
    let stored = s.finish_step(whole.clone()).await;
    assert_eq!((stored.parent_step_id, &stored.depends_on), (Some(1), &vec![]));
    assert_eq!(stored.depends_on_keys, ["later", "root"]);
    assert_eq!(s.finish_step(whole.clone()).await, stored);
    let other = FinishStepRequest { depends_on_keys: strings(&["root"]), ..whole };
    refused(s.try_finish_step(other).await, Code::AlreadyExists, "STEP_ALREADY_EXISTS");

    let put = Step {
        execution_id: "e".into(),
        step_key: Some("put".into()),
        step_name: "work".into(),
        status: StepStatus::Completed.into(),
        parent_step_key: Some("root".into()),
        depends_on_keys: strings(&["a", "b"]),
        ..Default::default()
    };
    let answers = s.ingest_all(vec![W::PutStep(put.clone()), W::PutStep(put.clone())]).await;
    let [R::Step(first), R::Step(second)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(first, second, "the same again");
    let stored = s.step("e", first.step_id.expect("assigned")).await;
    assert_eq!(stored.parent_step_key.as_deref(), Some("root"));
    assert_eq!((stored.depends_on_keys.len(), stored.parent_step_id), (2, None), "as it was sent");
    // What was read back can be put elsewhere, with both names of its parent.
    s.create("copy").await;
    let copy = Step { execution_id: "copy".into(), parent_step_id: Some(1), ..stored };
    let answers = s.ingest_all(vec![W::PutStep(copy)]).await;
    assert!(matches!(&answers[..], [R::Step(_)]), "{answers:?}");
    let changed = Step { depends_on_keys: strings(&["a"]), ..put };
    let answers = s.ingest_all(vec![W::PutStep(changed)]).await;
    assert!(matches!(&answers[..], [R::Error(error)] if error.code == Code::AlreadyExists as i32));
}

pub async fn a_retry_and_a_late_start_keep_what_they_refer_to(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let request =
        StartStepRequest { depends_on_keys: strings(&["x"]), ..keyed("e", "a", Some("p")) };
    s.start_step(request.clone()).await;
    let failed = FinishStepRequest {
        step_id: None,
        step_key: Some("a".into()),
        ..finish_step("e", 0, StepStatus::Failed)
    };
    s.finish_step(failed).await;
    s.start_step(keyed("e", "p", None)).await;
    let retried =
        s.start_step(StartStepRequest { attempt: Some(2), ..keyed("e", "a", None) }).await;
    assert_eq!(retried.retry_count, 1);
    assert_eq!((retried.parent_step_id, retried.parent_step_key.as_deref()), (None, Some("p")));
    assert_eq!(retried.depends_on_keys, ["x"]);
    // An end that came first knew nothing of its parent.
    let end = FinishStepRequest {
        step_name: Some("work".into()),
        step_id: None,
        step_key: Some("late".into()),
        ..finish_step("e", 0, StepStatus::Completed)
    };
    s.finish_step(end).await;
    let late = s.start_step(keyed("e", "late", Some("p"))).await;
    assert_eq!((late.parent_step_key.as_deref(), late.parent_step_id), (Some("p"), Some(2)));
    assert_eq!(late.status(), StepStatus::Completed);
}

pub async fn a_plan_knows_the_keys_it_refers_to(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let planned = |step_id: i32, key: &str, depends_on: &[&str]| PlannedStep {
        step_id: Some(step_id),
        step_key: Some(key.into()),
        step_name: key.into(),
        depends_on_keys: strings(depends_on),
        ..Default::default()
    };
    let plan = |steps: Vec<PlannedStep>| PlanStepsRequest {
        execution_id: "e".into(),
        steps,
        ..Default::default()
    };
    let stored = s.start_step(keyed("e", "stored", None)).await;
    assert_eq!(stored.step_id, Some(1));
    let steps = vec![
        planned(10, "b", &["a", "stored"]),
        PlannedStep { parent_step_key: Some("b".into()), ..planned(11, "a", &[]) },
        PlannedStep { parent_step_key: Some("stored".into()), ..planned(12, "c", &["b"]) },
    ];
    let answer = s.plan_steps(plan(steps.clone())).await.steps;
    assert_eq!(answer[0].depends_on_keys, ["a", "stored"]);
    assert_eq!(answer[2].parent_step_id, Some(1));
    assert_eq!(s.plan_steps(plan(steps)).await.steps, answer, "the same again");

    let unknown = |step: PlannedStep| s.try_plan_steps(plan(vec![step]));
    for step in [
        planned(20, "x", &["nobody"]),
        planned(20, "x", &["a", "nobody"]),
        PlannedStep { parent_step_key: Some("nobody".into()), ..planned(20, "x", &[]) },
        PlannedStep { parent_step_id: Some(99), ..planned(20, "x", &[]) },
        PlannedStep { depends_on: vec![99], ..planned(20, "x", &[]) },
    ] {
        let shown = format!("{step:?}");
        let fields = bad_fields(unknown(step).await);
        assert!(fields[0].0.starts_with("steps."), "{shown}: {fields:?}");
    }
    // Circles, also through a stored step that waits by key for one that is planned only now.
    for circle in [
        vec![planned(20, "x", &["x"])],
        vec![planned(20, "x", &["y"]), planned(21, "y", &["x"])],
        vec![
            PlannedStep { depends_on: vec![21], ..planned(20, "x", &[]) },
            planned(21, "y", &["x"]),
        ],
    ] {
        let fields = bad_fields(s.try_plan_steps(plan(circle)).await);
        assert!(fields[0].1.contains("cycle"), "{fields:?}");
    }
    s.start_step(StartStepRequest {
        depends_on_keys: strings(&["x"]),
        ..keyed("e", "waits", None)
    })
    .await;
    let fields = bad_fields(s.try_plan_steps(plan(vec![planned(20, "x", &["waits"])])).await);
    assert!(fields[0].1.contains("cycle"), "{fields:?}");
    assert_eq!(s.try_step("e", 20).await.expect_err("nothing of it").code(), Code::NotFound);
}

pub async fn a_number_and_a_key_at_once_are_refused(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let both = StartStepRequest {
        parent_step_id: Some(1),
        depends_on: vec![1],
        depends_on_keys: strings(&["a"]),
        ..keyed("e", "x", Some("a"))
    };
    let named = |fields: Vec<(String, String)>| -> Vec<String> {
        fields.into_iter().map(|(field, _)| field).collect()
    };
    let expected = ["depends_on_keys", "parent_step_key"];
    assert_eq!(named(bad_fields(s.try_start_step(both).await)), expected);
    let both = FinishStepRequest {
        parent_step_id: Some(1),
        parent_step_key: Some("a".into()),
        depends_on: vec![1],
        depends_on_keys: strings(&["a"]),
        ..finish_step("e", 1, StepStatus::Completed)
    };
    assert_eq!(named(bad_fields(s.try_finish_step(both).await)), expected);
    let both = PlannedStep {
        step_id: Some(1),
        step_name: "work".into(),
        parent_step_id: Some(1),
        parent_step_key: Some("a".into()),
        depends_on: vec![1],
        depends_on_keys: strings(&["a"]),
        ..Default::default()
    };
    let plan =
        PlanStepsRequest { execution_id: "e".into(), steps: vec![both], ..Default::default() };
    let expected = ["steps[0].depends_on_keys", "steps[0].parent_step_key"];
    assert_eq!(named(bad_fields(s.try_plan_steps(plan).await)), expected);
    let both =
        ArtifactDescription { step_id: Some(1), step_key: Some("a".into()), ..describe("e", "x") };
    let fields = bad_fields(s.try_upload(both, &noise(1, 1)).await);
    assert_eq!(named(fields), ["description.step_key"]);
    let both = ListArtifactsRequest {
        execution_id: "e".into(),
        step_id: Some(1),
        step_key: Some("a".into()),
        ..Default::default()
    };
    assert_eq!(named(bad_fields(s.try_list_artifacts(both).await)), ["step_key"]);
    let at = wall_clock_ms();
    let both =
        MetricPoint { step_id: Some(1), step_key: Some("a".into()), ..point(at, [("m", 1.0)]) };
    let fields = bad_fields(s.try_record_metrics(record("e", vec![both])).await);
    assert_eq!(named(fields), ["points[0].step_key"]);
    let both = QueryMetricsRequest {
        execution_id: "e".into(),
        step_id: Some(1),
        step_key: Some("a".into()),
        ..Default::default()
    };
    assert_eq!(named(bad_fields(s.try_query_metrics(both).await)), ["step_key"]);
    // Keys have the bounds of names and are as many as ids.
    let long = StartStepRequest {
        depends_on_keys: vec![text(257)],
        parent_step_key: Some(String::new()),
        ..start("e", 1)
    };
    let fields = bad_fields(s.try_start_step(long).await);
    assert_eq!(named(fields), ["depends_on_keys", "parent_step_key"]);
    let many = StartStepRequest { depends_on_keys: vec!["k".into(); 10_001], ..start("e", 1) };
    let fields = bad_fields(s.try_start_step(many).await);
    assert!(fields[0].1.contains("10001") && fields[0].1.contains("10000"), "{fields:?}");
}

pub async fn what_belongs_to_a_step_is_found_under_either_name(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let of = |name: &str, step_id: Option<i32>, step_key: Option<&str>| ArtifactDescription {
        step_id,
        step_key: step_key.map(str::to_owned),
        ..describe("e", name)
    };
    let bytes = noise(10, 1);
    // Before the step is stored.
    let early = s.upload(of("by key", None, Some("k")), &bytes).await;
    assert_eq!((early.step_id, early.step_key.as_deref()), (None, Some("k")));
    assert_eq!(ok(s.try_artifact(&early.artifact_id).await), early);
    let at = wall_clock_ms();
    let by_key = MetricPoint { step_key: Some("k".into()), ..point(at, [("m", 1.0)]) };
    s.record_metrics(record("e", vec![by_key.clone()])).await;
    let named = async |step_id: Option<i32>, step_key: Option<&str>| {
        let step_key = step_key.map(str::to_owned);
        let list = ListArtifactsRequest {
            execution_id: "e".into(),
            step_id,
            step_key: step_key.clone(),
            page_size: 1,
            ..Default::default()
        };
        let (mut names, mut token) = (Vec::new(), String::new());
        loop {
            let page = ListArtifactsRequest { page_token: token, ..list.clone() };
            let page = s.list_artifacts(page).await;
            names.extend(page.artifacts.into_iter().map(|artifact| artifact.artifact_name));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        let query = QueryMetricsRequest {
            execution_id: "e".into(),
            step_id,
            step_key,
            ..Default::default()
        };
        let points = s.query_metrics(query.clone()).await.points;
        let values: Vec<f64> = points.iter().map(|point| point.metrics["m"]).collect();
        let interval = Some(prost_types::Duration { seconds: 3600 * 24, nanos: 0 });
        let told = s.query_metrics(QueryMetricsRequest { interval, ..query }).await.intervals;
        assert_eq!(told.iter().map(|told| told.count).sum::<i64>(), values.len() as i64);
        (names, values)
    };
    let found = (strings(&["by key"]), vec![1.0]);
    assert_eq!(named(None, Some("k")).await, found, "without the step");
    assert_eq!(named(None, Some("other")).await, (vec![], vec![]));

    let step = s.start_step(keyed("e", "k", None)).await.step_id;
    s.upload(of("by number", step, None), &bytes).await;
    s.upload(of("of another", Some(77), None), &bytes).await;
    let by_number = MetricPoint { step_id: step, ..point(at + 1, [("m", 2.0)]) };
    let others = [
        MetricPoint { step_id: Some(77), ..point(at + 2, [("m", 3.0)]) },
        MetricPoint { step_key: Some("other".into()), ..point(at + 3, [("m", 4.0)]) },
        point(at + 4, [("m", 5.0)]),
    ];
    s.record_metrics(record("e", [&[by_number], &others[..]].concat())).await;
    let found = (strings(&["by number", "by key"]), vec![1.0, 2.0]);
    assert_eq!(named(None, Some("k")).await, found);
    assert_eq!(named(step, None).await, found);
    assert_eq!(named(Some(77), None).await, (strings(&["of another"]), vec![3.0]));
    assert_eq!(named(None, Some("other")).await, (vec![], vec![4.0]));
    let all = QueryMetricsRequest { execution_id: "e".into(), ..Default::default() };
    let all = s.query_metrics(all).await.points;
    assert_eq!(all.len(), 5);
    assert_eq!((all[0].step_id, all[0].step_key.as_deref()), (None, Some("k")), "as it was sent");
    // Points and artifacts of two keys are two.
    let again = s.ingest_all(vec![W::PutMetrics(record("e", vec![by_key.clone()]))]).await;
    assert!(matches!(&again[..], [R::Metrics(counts)] if counts.already_there == 1), "{again:?}");
    let other = MetricPoint { step_key: Some("k2".into()), ..by_key };
    let put = s.ingest_all(vec![W::PutMetrics(record("e", vec![other]))]).await;
    assert!(matches!(&put[..], [R::Metrics(counts)] if counts.already_there == 0), "{put:?}");
    let record = |key: &str| Artifact {
        execution_id: "e".into(),
        artifact_name: "put".into(),
        step_key: Some(key.into()),
        metadata: meta(json!({ "a": 1 })),
        ..Default::default()
    };
    let put = s.ingest_all(["a", "b", "a"].map(|key| W::PutArtifact(record(key))).to_vec()).await;
    let created: Vec<bool> = put
        .iter()
        .map(|answer| match answer {
            R::Artifact(artifact) => artifact.created,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(created.iter().filter(|created| **created).count(), 2, "{created:?}");
    assert_eq!(named(None, Some("b")).await.0, ["put"]);
}

pub async fn a_stream_of_writes_refers_by_key_without_waiting(b: Backend) {
    let s = b.serve().await;
    let mut writes = vec![W::CreateExecution(create("e"))];
    for n in 0..50 {
        // Each under the one after it, which is not stored yet, and the last under the first.
        let parent = format!("s{}", (n + 1) % 50);
        writes.push(W::StartStep(keyed("e", &format!("s{n}"), Some(&parent))));
    }
    let answers = s.ingest_all(writes).await;
    assert!(answers[1..].iter().all(|answer| matches!(answer, R::Step(_))), "{answers:?}");
    let list = ListStepsRequest { execution_id: "e".into(), page_size: 100, ..Default::default() };
    for step in s.list_steps(list).await.steps {
        let expected = if step.step_id() == 50 { 1 } else { step.step_id() + 1 };
        assert_eq!(step.parent_step_id, Some(expected), "{step:?}");
    }
    let stored = s.step("e", 50).await;
    assert_eq!(stored.parent_step_id, Some(1), "the first was stored before the last");
    assert_eq!(s.step("e", 1).await.parent_step_id, None);
}
