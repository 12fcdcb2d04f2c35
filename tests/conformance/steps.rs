//! The life of a step: planning, starting, retrying, updating, finishing, and its ids.

use stepwell::proto::*;
use tonic::Code;

use crate::support::backend::{Backend, Kind};
use crate::support::client::*;
use crate::support::values::*;

fn planned(step_id: i32, depends_on: &[i32]) -> PlannedStep {
    PlannedStep {
        step_id: Some(step_id),
        step_name: format!("step {step_id}"),
        depends_on: depends_on.to_vec(),
        ..Default::default()
    }
}

fn plan(id: &str, steps: Vec<PlannedStep>) -> PlanStepsRequest {
    PlanStepsRequest { execution_id: id.into(), steps, ..Default::default() }
}

pub async fn the_statuses_of_a_step_obey_their_transitions(b: Backend) {
    use StepStatus::{Completed, Failed, Pending, Running, Skipped};
    let s = b.serve().await;
    s.create("e").await;
    let reach = async |step_id: i32, status: StepStatus| match status {
        Pending => {
            let step = PlannedStep { step_name: "work".into(), ..planned(step_id, &[]) };
            s.plan_steps(plan("e", vec![step])).await;
        }
        Running => {
            s.start("e", step_id).await;
        }
        end => {
            s.start("e", step_id).await;
            s.end("e", step_id, end).await;
        }
    };
    let mut step_id = 0;
    for from in [Pending, Running, Completed, Failed, Skipped] {
        for to in [Running, Completed, Failed, Skipped] {
            step_id += 1;
            reach(step_id, from).await;
            let before = s.step("e", step_id).await;
            assert_eq!(before.status(), from);
            let answer = match to {
                Running => s.try_start_step(start("e", step_id)).await,
                end => s.try_finish_step(finish_step("e", step_id, end)).await,
            };
            let after = s.step("e", step_id).await;
            match (from, to) {
                (Pending | Running, _) | (Failed, Running) if from != to => {
                    assert_eq!(ok(answer).status(), to, "{from:?} to {to:?}");
                    assert_eq!(after.status(), to);
                    assert_eq!(after.retry_count, i32::from(from == Failed));
                }
                // The same request again.
                (from, to) if from == to => {
                    ok(answer);
                    assert_eq!(after, before);
                }
                // The same start again, after the end: a late repeat, which changes nothing.
                (_, Running) => {
                    ok(answer);
                    assert_eq!(after, before);
                }
                _ => {
                    refused(answer, Code::FailedPrecondition, "WRONG_STATUS");
                    assert_eq!(after, before);
                }
            }
        }
    }
    for no_end in [StepStatus::Unspecified, Pending, Running] {
        let fields = bad_fields(s.try_finish_step(finish_step("e", 1, no_end)).await);
        assert_eq!(fields[0].0, "status");
    }
}

pub async fn racing_finishes_of_a_step_have_one_winner(b: Backend) {
    let (one, two) = b.pair().await;
    one.create("e").await;
    for step_id in 0..8 {
        one.start("e", step_id).await;
        let mut racers = tokio::task::JoinSet::new();
        for racer in 0..12 {
            let client = if racer % 2 == 0 { (*one).clone() } else { (*two).clone() };
            let status =
                [StepStatus::Completed, StepStatus::Failed, StepStatus::Skipped][racer % 3];
            let request = finish_step("e", step_id, status);
            racers.spawn(async move { (status, client.try_finish_step(request).await) });
        }
        let answers = racers.join_all().await;
        let winner = Step { input: None, output: None, ..one.step("e", step_id).await };
        for (status, answer) in answers {
            if status == winner.status() {
                assert_eq!(ok(answer), winner);
            } else {
                refused(answer, Code::FailedPrecondition, "WRONG_STATUS");
            }
        }
    }
}

pub async fn steps_may_come_after_their_execution_ended(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    s.start("e", 1).await;
    let ended = s.finish("e", ExecutionStatus::Completed).await;
    assert_eq!(s.start("e", 2).await.status(), StepStatus::Running);
    assert_eq!(s.end("e", 1, StepStatus::Failed).await.status(), StepStatus::Failed);
    assert_eq!(s.end("e", 2, StepStatus::Completed).await.status(), StepStatus::Completed);
    s.plan_steps(plan("e", vec![planned(3, &[])])).await;
    let update =
        UpdateStepRequest { metadata: meta(json!({ "late": true })), ..update_step("e", 3) };
    s.update_step(update).await;
    assert_eq!(s.execution("e").await, ended);
}

pub async fn finish_creates_an_unknown_step_when_it_is_named(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let answer = s.try_finish_step(finish_step("e", 1, StepStatus::Completed)).await;
    let details = refused(answer, Code::NotFound, "STEP_NOT_FOUND");
    assert_eq!(details.resource_info().map(|r| r.resource_type.as_str()), Some("step"));

    let whole = FinishStepRequest {
        step_key: Some("the key".into()),
        step_name: Some("work".into()),
        step_version: Some("v2".into()),
        input: Some(value(json!({ "question": 1 }))),
        output: Some(value(json!(["answer", 42]))),
        error: None,
        started_at: Some(time(1_000)),
        completed_at: Some(time(3_500)),
        metadata: meta(json!({ "model": "m" })),
        depends_on: vec![4, 5],
        parent_step_id: Some(9),
        ..finish_step("e", 1, StepStatus::Completed)
    };
    let step = s.finish_step(whole.clone()).await;
    assert_eq!(step.status(), StepStatus::Completed);
    assert_eq!((step.step_id, step.step_key.as_deref()), (Some(1), Some("the key")));
    assert_eq!((step.step_name.as_str(), step.step_version.as_deref()), ("work", Some("v2")));
    assert_eq!((millis(&step.started_at), millis(&step.completed_at)), (Some(1_000), Some(3_500)));
    assert_eq!((step.duration_ms, step.retry_count), (Some(2_500), 0));
    assert_eq!((step.depends_on.as_slice(), step.parent_step_id), ([4, 5].as_slice(), Some(9)));
    assert_eq!(plain_meta(&step.metadata), json!({ "model": "m" }));
    let stored = s.step("e", 1).await;
    assert_eq!(plain_field(&stored.input), json!({ "question": 1 }));
    assert_eq!(plain_field(&stored.output), json!(["answer", 42]));
    assert_eq!(s.finish_step(whole).await, step, "the same again");

    // By its key alone: the server assigns the number.
    let by_key = FinishStepRequest {
        step_id: None,
        step_key: Some("other".into()),
        step_name: Some("work".into()),
        ..finish_step("e", 0, StepStatus::Skipped)
    };
    let step = s.finish_step(by_key.clone()).await;
    assert_eq!(step.step_id, Some(2));
    assert_eq!(s.finish_step(by_key).await, step);
}

pub async fn a_start_that_comes_after_its_end_loses_nothing(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let whole = FinishStepRequest {
        step_name: Some("work".into()),
        metadata: meta(json!({ "both": "end", "end": 1 })),
        completed_at: Some(time(9_000)),
        ..finish_step("e", 1, StepStatus::Completed)
    };
    s.finish_step(whole.clone()).await;
    let late = StartStepRequest {
        step_name: "work".into(),
        input: Some(value(json!({ "q": 1 }))),
        metadata: meta(json!({ "both": "start", "start": 1 })),
        step_version: Some("v1".into()),
        started_at: Some(time(4_000)),
        depends_on: vec![5],
        ..start("e", 1)
    };
    let started = s.start_step(late.clone()).await;
    assert_eq!(started.status(), StepStatus::Completed, "it stays at its end");
    assert_eq!((started.started_at, started.duration_ms), (Some(time(4_000)), Some(5_000)));
    assert_eq!((started.step_version.as_deref(), &started.depends_on), (Some("v1"), &vec![5]));
    assert_eq!(
        plain_meta(&started.metadata),
        json!({ "both": "end", "end": 1, "start": 1 }),
        "the end said it later"
    );
    assert_eq!(plain_field(&s.step("e", 1).await.input), json!({ "q": 1 }));

    // From here on it is as if the start had come first.
    assert_eq!(s.start_step(late.clone()).await, started);
    assert_eq!(s.finish_step(whole).await, started);
    let other = StartStepRequest { input: Some(value(json!({ "q": 2 }))), ..late };
    refused(s.try_start_step(other).await, Code::AlreadyExists, "STEP_ALREADY_EXISTS");
    let other = StartStepRequest { step_name: "other".into(), ..start("e", 1) };
    refused(s.try_start_step(other).await, Code::AlreadyExists, "STEP_ALREADY_EXISTS");
}

pub async fn a_plan_that_comes_after_its_steps_loses_nothing(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let begun = StartStepRequest {
        step_name: "step 1".into(),
        input: Some(value(json!({ "of": "start" }))),
        ..start("e", 1)
    };
    s.start_step(begun.clone()).await;
    let steps = vec![
        PlannedStep {
            input: Some(value(json!({ "of": "plan" }))),
            step_version: Some("v1".into()),
            ..planned(1, &[2])
        },
        planned(2, &[]),
    ];
    let late = s.plan_steps(plan("e", steps.clone())).await.steps;
    assert_eq!([late[0].status(), late[1].status()], [StepStatus::Running, StepStatus::Pending]);
    assert_eq!((late[0].step_version.as_deref(), &late[0].depends_on), (Some("v1"), &vec![2]));
    assert_eq!(plain_field(&s.step("e", 1).await.input), json!({ "of": "start" }));
    assert_eq!(s.plan_steps(plan("e", steps)).await.steps, late, "again it changes nothing");
    assert_eq!(s.start_step(begun).await, late[0]);
    let other = vec![PlannedStep { step_version: Some("v2".into()), ..planned(1, &[2]) }];
    let answer = s.try_plan_steps(plan("e", other)).await;
    refused(answer, Code::AlreadyExists, "STEP_ALREADY_EXISTS");
}

pub async fn writes_answer_with_everything_but_input_and_output(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let bare = |step: &Step| assert!(step.input.is_none() && step.output.is_none(), "{step:?}");
    let input = || Some(value(json!({ "big": "input" })));
    let steps = vec![PlannedStep { input: input(), ..planned(1, &[]) }];
    let answer = s.plan_steps(plan("e", steps)).await;
    bare(&answer.steps[0]);
    let request = StartStepRequest {
        step_name: "step 1".into(),
        metadata: meta(json!({ "m": 1 })),
        input: input(),
        ..start("e", 1)
    };
    let step = s.start_step(request).await;
    bare(&step);
    assert_eq!(plain_meta(&step.metadata), json!({ "m": 1 }));
    let request =
        UpdateStepRequest { output: Some(value(json!({ "a": 1 }))), ..update_step("e", 1) };
    bare(&s.update_step(request).await);
    let request = FinishStepRequest {
        output: Some(value(json!({ "b": 2 }))),
        ..finish_step("e", 1, StepStatus::Completed)
    };
    bare(&s.finish_step(request).await);
    let stored = s.step("e", 1).await;
    assert_eq!(plain_field(&stored.input), json!({ "big": "input" }));
    assert_eq!(plain_field(&stored.output), json!({ "b": 2 }), "FinishStep sets the output");
}

pub async fn a_retry_keeps_the_earlier_tries(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let long = "é".repeat(4000);
    for attempt in 0..25 {
        let request = StartStepRequest { started_at: Some(time(1000 * attempt)), ..start("e", 1) };
        let step = s.start_step(request).await;
        assert_eq!(i64::from(step.retry_count), attempt);
        assert_eq!(step.status(), StepStatus::Running);
        assert_eq!((&step.error, &step.completed_at, step.duration_ms), (&None, &None, None));
        let request = FinishStepRequest {
            completed_at: Some(time(1000 * attempt + 10)),
            error: Some(Error {
                message: format!("try {attempt} {long}"),
                code: "E".into(),
                stack_trace: long.clone(),
                details: None,
            }),
            ..finish_step("e", 1, StepStatus::Failed)
        };
        s.finish_step(request).await;
    }
    let step = s.step("e", 1).await;
    assert_eq!(step.retry_count, 24);
    assert!(
        step.error.as_ref().is_some_and(|error| error.message.ends_with(&long)),
        "the last is whole"
    );
    assert_eq!(step.attempts.len(), 20, "the last 20 are kept");
    for (attempt, number) in step.attempts.iter().zip(4..) {
        assert_eq!(millis(&attempt.started_at), Some(1000 * number));
        assert_eq!(millis(&attempt.completed_at), Some(1000 * number + 10));
        assert_eq!(attempt.duration_ms, Some(10));
        let error = attempt.error.as_ref().expect("each try failed with an error");
        assert!(error.message.starts_with(&format!("try {number} é")));
        for text in [&error.message, &error.stack_trace] {
            assert!((4000..=4096).contains(&text.len()), "errors are cut to 4 KiB: {}", text.len());
        }
        assert_eq!(error.code, "E");
    }
}

pub async fn a_retry_starts_afresh(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let request = StartStepRequest {
        input: Some(value(json!({ "a": 1 }))),
        metadata: meta(json!({ "kept": true })),
        ..start("e", 1)
    };
    s.start_step(request).await;
    let request = UpdateStepRequest {
        progress: Some(0.5),
        progress_message: Some("half".into()),
        output: Some(value(json!({ "partial": 1 }))),
        ..update_step("e", 1)
    };
    s.update_step(request).await;
    s.end("e", 1, StepStatus::Failed).await;
    s.start("e", 1).await;
    let step = s.step("e", 1).await;
    assert_eq!((step.progress, step.progress_message.as_deref()), (None, None));
    assert_eq!(plain_field(&step.output), json!(null));
    assert_eq!(plain_field(&step.input), json!({ "a": 1 }), "what was not sent again stays");
    assert_eq!(plain_meta(&step.metadata), json!({ "kept": true }));
    assert_eq!(step.attempts.len(), 1);
}

pub async fn the_attempt_tells_a_repeat_from_a_retry(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let attempt = |number| StartStepRequest { attempt: Some(number), ..start("e", 1) };
    let first = s.start_step(attempt(1)).await;
    assert_eq!(s.start_step(attempt(1)).await, first, "a repeat");
    let answer = s.try_start_step(attempt(2)).await;
    refused(answer, Code::FailedPrecondition, "WRONG_STATUS");
    let failed = s.end("e", 1, StepStatus::Failed).await;
    assert_eq!(s.start_step(attempt(1)).await, failed, "still a repeat: attempt 1 was started");
    let second = s.start_step(attempt(2)).await;
    assert_eq!((second.retry_count, second.status()), (1, StepStatus::Running));
    assert_eq!(s.start_step(attempt(2)).await, second);
    assert_eq!(s.start_step(attempt(1)).await, second, "a late repeat of the first try");
    s.end("e", 1, StepStatus::Completed).await;
    assert_eq!(s.start_step(attempt(2)).await.status(), StepStatus::Completed);
    let answer = s.try_start_step(attempt(3)).await;
    refused(answer, Code::FailedPrecondition, "WRONG_STATUS");
    for bad in [0, -1] {
        assert_eq!(bad_fields(s.try_start_step(attempt(bad)).await)[0].0, "attempt");
    }
}

pub async fn a_step_has_a_number_and_may_have_a_key(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    s.create("other").await;
    let keyed = |step_id, key: &str| StartStepRequest {
        step_id,
        step_key: Some(key.into()),
        ..start("e", 0)
    };
    let step = s.start_step(keyed(Some(5), "parse")).await;
    assert_eq!((step.step_id, step.step_key.as_deref()), (Some(5), Some("parse")));
    assert_eq!(s.start_step(keyed(None, "parse")).await, step, "the key alone names it");

    let get = |step_id, key: Option<&str>| GetStepRequest {
        execution_id: "e".into(),
        step_id,
        step_key: key.map(Into::into),
        ..Default::default()
    };
    let bare = |step: Step| Step { input: None, output: None, ..step };
    assert_eq!(bare(s.get_step(get(Some(5), None)).await), step);
    assert_eq!(bare(s.get_step(get(None, Some("parse"))).await), step);
    assert_eq!(bare(s.get_step(get(Some(5), Some("parse"))).await), step);
    for wrong in [get(None, Some("Parse")), get(Some(6), None), get(Some(5), Some("other"))] {
        refused(s.try_get_step(wrong).await, Code::NotFound, "STEP_NOT_FOUND");
    }
    // A key is unique in its execution, and only there.
    let taken = s.try_start_step(keyed(Some(6), "parse")).await;
    refused(taken, Code::AlreadyExists, "STEP_ALREADY_EXISTS");
    let taken = s.try_start_step(keyed(Some(5), "another key")).await;
    refused(taken, Code::AlreadyExists, "STEP_ALREADY_EXISTS");
    s.start_step(StartStepRequest { execution_id: "other".into(), ..keyed(Some(6), "parse") })
        .await;

    // Step names repeat in loops.
    s.start_step(keyed(None, "second round")).await;

    let by_key = UpdateStepRequest {
        step_id: None,
        step_key: Some("parse".into()),
        progress: Some(1.0),
        ..update_step("e", 0)
    };
    assert_eq!(s.update_step(by_key).await.step_id, Some(5));
    let by_key = FinishStepRequest {
        step_id: None,
        step_key: Some("parse".into()),
        ..finish_step("e", 0, StepStatus::Completed)
    };
    assert_eq!(s.finish_step(by_key).await.status(), StepStatus::Completed);
    let nameless = GetStepRequest { execution_id: "e".into(), ..Default::default() };
    assert_eq!(bad_fields(s.try_get_step(nameless).await)[0].0, "step_id");
}

pub async fn assigned_step_ids_start_at_1_and_exceed_every_id_seen(b: Backend) {
    let (one, two) = b.pair().await;
    one.create("e").await;
    let assign = || StartStepRequest { step_id: None, ..start("e", 0) };
    assert_eq!(one.start_step(assign()).await.step_id, Some(1));
    assert_eq!(two.start_step(assign()).await.step_id, Some(2));
    two.start("e", 70).await;
    assert_eq!(one.start_step(assign()).await.step_id, Some(71));
    one.plan_steps(plan("e", vec![planned(90, &[])])).await;
    assert_eq!(two.start_step(assign()).await.step_id, Some(91));
    one.create("zero").await;
    one.start("zero", 0).await;
    let request = StartStepRequest { execution_id: "zero".into(), ..assign() };
    assert_eq!(one.start_step(request).await.step_id, Some(1), "they start at 1");

    let mut racers = tokio::task::JoinSet::new();
    for racer in 0..40 {
        let client = if racer % 2 == 0 { (*one).clone() } else { (*two).clone() };
        racers.spawn(async move { client.start_step(assign()).await.step_id });
    }
    let mut ids = racers.join_all().await;
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 40, "two steps got one number");
    assert!(ids.iter().all(|id| *id > Some(91)));
}

pub async fn one_key_started_by_many_is_one_step(b: Backend) {
    let (one, two) = b.pair().await;
    one.create("e").await;
    for round in 0..6 {
        let mut racers = tokio::task::JoinSet::new();
        for racer in 0..12 {
            let client = if racer % 2 == 0 { (*one).clone() } else { (*two).clone() };
            let request = StartStepRequest {
                step_id: None,
                step_key: Some(format!("key {round}")),
                ..start("e", 0)
            };
            racers.spawn(async move { client.start_step(request).await });
        }
        let steps = racers.join_all().await;
        assert!(steps.iter().all(|step| *step == steps[0]), "{steps:?}");
    }
    let list = ListStepsRequest { execution_id: "e".into(), ..Default::default() };
    assert_eq!(two.list_steps(list).await.steps.len(), 6);
}

pub async fn a_plan_is_pending_steps(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let request = plan(
        "e",
        vec![
            planned(3, &[1, 2]),
            PlannedStep {
                step_key: Some("first".into()),
                step_version: Some("v1".into()),
                input: Some(value(json!([1]))),
                metadata: meta(json!({ "m": 1 })),
                ..planned(1, &[])
            },
            planned(2, &[1]),
        ],
    );
    let answer = s.plan_steps(request.clone()).await;
    let ids: Vec<_> = answer.steps.iter().map(|step| step.step_id).collect();
    assert_eq!(ids, [Some(3), Some(1), Some(2)], "in the order of the request");
    for step in &answer.steps {
        assert_eq!(step.status(), StepStatus::Pending);
        assert_eq!((&step.started_at, &step.completed_at, step.duration_ms), (&None, &None, None));
    }
    assert_eq!(answer.steps[0].depends_on, [1, 2]);
    assert_eq!(answer.steps[1].step_key.as_deref(), Some("first"));
    let stored = s.step("e", 1).await;
    assert_eq!(plain_field(&stored.input), json!([1]));
    assert_eq!(plain_meta(&stored.metadata), json!({ "m": 1 }));
    assert_eq!(s.plan_steps(request.clone()).await, answer, "the same again");

    // A planned step is started with more, and the plan is still the same request.
    let started = s
        .start_step(StartStepRequest {
            step_name: "step 1".into(),
            metadata: meta(json!({ "n": 2 })),
            ..start("e", 1)
        })
        .await;
    assert_eq!(plain_meta(&started.metadata), json!({ "m": 1, "n": 2 }));
    assert_eq!(started.step_version.as_deref(), Some("v1"));
    assert_eq!(started.step_key.as_deref(), Some("first"));
    let again = s.plan_steps(request.clone()).await;
    assert_eq!(again.steps[1], started, "the stored record, changed or not");
    let mut other = request;
    other.steps[2].step_name = "another name".into();
    refused(s.try_plan_steps(other).await, Code::AlreadyExists, "STEP_ALREADY_EXISTS");
    // A later plan may depend on what is stored.
    s.plan_steps(plan("e", vec![planned(4, &[1, 3])])).await;
}

pub async fn a_plan_with_a_cycle_or_an_unknown_step_is_refused_whole(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    s.start("e", 1).await;
    let refused_plans = [
        vec![planned(2, &[2])],
        vec![planned(2, &[3]), planned(3, &[2])],
        vec![planned(2, &[1]), planned(3, &[2, 5]), planned(4, &[3]), planned(5, &[4])],
        vec![planned(2, &[1]), planned(3, &[77])],
        vec![planned(2, &[]), planned(2, &[])],
    ];
    for steps in refused_plans {
        let shown = format!("{steps:?}");
        let status = s.try_plan_steps(plan("e", steps)).await.expect_err(&shown);
        check_refusal(&status, Code::InvalidArgument, "INVALID_ARGUMENT");
        let list = ListStepsRequest { execution_id: "e".into(), ..Default::default() };
        assert_eq!(s.list_steps(list).await.steps.len(), 1, "{shown} left something behind");
    }
    // A chain of thousands is no cycle.
    let chain: Vec<_> = (2..=3001).map(|id| planned(id, &[id - 1])).collect();
    assert_eq!(s.plan_steps(plan("e", chain)).await.steps.len(), 3000);
    assert_eq!(bad_fields(s.try_plan_steps(plan("e", vec![])).await)[0].0, "steps");
}

pub async fn an_update_of_a_step_merges(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    s.start("e", 1).await;
    let output = |json| UpdateStepRequest { output: Some(value(json)), ..update_step("e", 1) };
    let stored = async || plain_field(&s.step("e", 1).await.output);
    s.update_step(output(json!({ "a": { "x": 1 }, "b": [1] }))).await;
    s.update_step(output(json!({ "a": { "y": 2 }, "b": [2, 3] }))).await;
    assert_eq!(
        stored().await,
        json!({ "a": { "x": 1, "y": 2 }, "b": [2, 3] }),
        "an object is merged"
    );
    for other in [json!([1, 2]), json!("text"), json!(7), json!(false)] {
        s.update_step(output(other.clone())).await;
        assert_eq!(stored().await, other, "anything else replaces");
    }
    s.update_step(output(json!({ "fresh": 1 }))).await;
    assert_eq!(stored().await, json!({ "fresh": 1 }));

    let step = s
        .update_step(UpdateStepRequest {
            progress: Some(0.25),
            progress_message: Some("reading".into()),
            metadata: meta(json!({ "a": { "b": 1 } })),
            ..update_step("e", 1)
        })
        .await;
    assert_eq!((step.progress, step.progress_message.as_deref()), (Some(0.25), Some("reading")));
    let step = s
        .update_step(UpdateStepRequest {
            metadata: meta(json!({ "a": { "c": 2 } })),
            ..update_step("e", 1)
        })
        .await;
    assert_eq!(plain_meta(&step.metadata), json!({ "a": { "b": 1, "c": 2 } }));
    assert_eq!((step.progress, step.progress_message.as_deref()), (Some(0.25), Some("reading")));
    for progress in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        let request = UpdateStepRequest { progress: Some(progress), ..update_step("e", 1) };
        assert_eq!(bad_fields(s.try_update_step(request).await)[0].0, "progress");
    }
    // The end leaves the partial output alone when it brings none.
    s.end("e", 1, StepStatus::Completed).await;
    assert_eq!(stored().await, json!({ "fresh": 1 }));
    let late = UpdateStepRequest { metadata: meta(json!({ "late": 1 })), ..update_step("e", 1) };
    assert_eq!(s.update_step(late).await.status(), StepStatus::Completed);
    let unknown = s.try_update_step(update_step("e", 9)).await;
    refused(unknown, Code::NotFound, "STEP_NOT_FOUND");
}

pub async fn steps_are_listed_by_id_without_payloads(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let ids = [9, 0, 4, 100, 7, 2, 55];
    for step_id in ids {
        let request = StartStepRequest { input: Some(value(json!([1]))), ..start("e", step_id) };
        s.start_step(request).await;
        if step_id % 2 == 0 {
            s.end("e", step_id, StepStatus::Completed).await;
        }
    }
    let list = |statuses: &[StepStatus], page_size, page_token: &str| ListStepsRequest {
        execution_id: "e".into(),
        statuses: statuses.iter().map(|status| (*status).into()).collect(),
        page_size,
        page_token: page_token.into(),
        ..Default::default()
    };
    let all = s.list_steps(list(&[], 0, "")).await;
    let found: Vec<_> = all.steps.iter().filter_map(|step| step.step_id).collect();
    assert_eq!(found, [0, 2, 4, 7, 9, 55, 100]);
    assert_eq!(all.next_page_token, "");
    assert!(all.steps.iter().all(|step| step.input.is_none() && step.output.is_none()));
    for (statuses, expected) in [
        (vec![StepStatus::Running], vec![7, 9, 55]),
        (vec![StepStatus::Completed], vec![0, 2, 4, 100]),
        (vec![StepStatus::Failed], vec![]),
        (vec![StepStatus::Completed, StepStatus::Running], vec![0, 2, 4, 7, 9, 55, 100]),
    ] {
        for page_size in [1, 2, 3, 1000] {
            let (mut found, mut token) = (Vec::new(), String::new());
            loop {
                let page = s.list_steps(list(&statuses, page_size, &token)).await;
                assert!(page.steps.len() <= usize::try_from(page_size).expect("small"));
                found.extend(page.steps.iter().filter_map(|step| step.step_id));
                token = page.next_page_token;
                if token.is_empty() {
                    break;
                }
            }
            assert_eq!(found, expected, "{statuses:?} by {page_size}");
        }
    }
}

/// The limit counts steps and never numbers.
pub async fn sparse_step_ids_are_as_many_as_others(b: Backend) {
    let few = |config: &mut stepwell::config::Config| config.limits.steps_per_execution = 5;
    let one = b.serve_with(few).await;
    let two = match b.kind {
        Kind::Sqlite => one.second_connection(),
        Kind::Mongodb => b.serve_with(few).await,
    };
    let assigned = |id: &str| StartStepRequest { step_id: None, ..start(id, 0) };
    let too_many = async |answer: Answer<Step>| {
        let details = refused(answer, Code::InvalidArgument, "TOO_MANY_STEPS");
        let fields = &details.bad_request().expect("checked").field_violations;
        assert!(
            fields[0].description.contains('6') && fields[0].description.contains('5'),
            "{fields:?}"
        );
    };
    // Assigned numbers, given ones, a plan and whole steps, each after a number far beyond the limit.
    for (id, first) in [("next", 4), ("far", 99_998), ("farther", 2_000_000_000)] {
        one.create(id).await;
        one.start(id, first).await;
        for n in 1..=4 {
            let step = if n % 2 == 0 { &one } else { &two }.start_step(assigned(id)).await;
            assert_eq!(step.step_id, Some(first + n), "{id}");
        }
        too_many(one.try_start_step(assigned(id)).await).await;
        too_many(two.try_start_step(start(id, first - 1)).await).await;
        too_many(two.try_start_step(start(id, 0)).await).await;
        // Those that are there go on.
        one.end(id, first, StepStatus::Completed).await;
        two.start(id, first + 1).await;
    }
    one.create("given").await;
    for step_id in [1000, 2000, 3000] {
        one.start("given", step_id).await;
    }
    let sparse = |ids: &[i32]| plan("given", ids.iter().map(|id| planned(*id, &[])).collect());
    refused(one.try_plan_steps(sparse(&[1, 2, 3])).await, Code::InvalidArgument, "TOO_MANY_STEPS");
    one.plan_steps(sparse(&[1, 5000])).await;
    let whole = FinishStepRequest {
        step_name: Some("work".into()),
        ..finish_step("given", 2, StepStatus::Completed)
    };
    too_many(one.try_finish_step(whole).await).await;
    let listed = ListStepsRequest { execution_id: "given".into(), ..Default::default() };
    assert_eq!(one.list_steps(listed).await.steps.len(), 5);

    // Many at once.
    one.create("raced").await;
    one.start("raced", 1_000_000).await;
    let racing = (0..12).map(|n| {
        let s = Client::clone(&one);
        async move {
            let request = match n % 2 {
                0 => StartStepRequest {
                    step_id: None,
                    step_key: Some(format!("k{n}")),
                    ..start("raced", 0)
                },
                _ => start("raced", 10_000 * n),
            };
            s.try_start_step(request).await
        }
    });
    let outcomes = futures::future::join_all(racing).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 4);
    for outcome in outcomes.into_iter().filter(Result::is_err) {
        too_many(outcome).await;
    }
}

pub async fn only_where_the_greatest_number_is_taken_none_can_be_assigned(b: Backend) {
    let s = b.serve().await;
    let assigned = |id: &str| StartStepRequest { step_id: None, ..start(id, 0) };
    s.create("e").await;
    s.start("e", i32::MAX - 1).await;
    assert_eq!(s.start_step(assigned("e")).await.step_id, Some(i32::MAX));
    let whole = FinishStepRequest {
        step_id: None,
        step_key: Some("k".into()),
        step_name: Some("work".into()),
        ..finish_step("e", 0, StepStatus::Completed)
    };
    for _ in 0..2 {
        refused(
            s.try_start_step(assigned("e")).await,
            Code::FailedPrecondition,
            "STEP_IDS_EXHAUSTED",
        );
        refused(
            s.try_finish_step(whole.clone()).await,
            Code::FailedPrecondition,
            "STEP_IDS_EXHAUSTED",
        );
        // Numbers that are given are good.
        s.start("e", 17).await;
    }
    let named = FinishStepRequest { step_id: Some(18), ..whole.clone() };
    assert_eq!(s.finish_step(named).await.step_id, Some(18));
    // The key is known by now.
    s.update_step(UpdateStepRequest {
        step_id: None,
        step_key: Some("k".into()),
        ..update_step("e", 0)
    })
    .await;
    assert_eq!(s.finish_step(whole).await.step_id, Some(18));
}
