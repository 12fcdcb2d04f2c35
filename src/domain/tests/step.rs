use std::collections::HashMap;

use bson::{Bson, doc};

use super::at;
use crate::domain::limits::ATTEMPTS_KEPT;
use crate::domain::step::{Step, StepFields, StepOp, Target, check_plan, decide, fill_in_parents};
use crate::domain::{Decision, Payload, Refusal, RunError, StepRef, StepStatus};

fn start(attempt: Option<i32>) -> StepOp {
    StepOp::Start { step_name: "s".to_owned(), fields: StepFields::default(), attempt }
}

fn finish(status: StepStatus) -> StepOp {
    finish_with(status, None, None)
}

fn finish_with(status: StepStatus, output: Option<Bson>, step_name: Option<&str>) -> StepOp {
    StepOp::Finish {
        status,
        output,
        error: (status == StepStatus::Failed)
            .then(|| RunError { message: "x".repeat(9000), ..RunError::default() }),
        completed_at: None,
        step_name: step_name.map(str::to_owned),
        fields: StepFields::default(),
    }
}

fn update(output: Option<Bson>) -> StepOp {
    StepOp::Update {
        progress: Some(0.5),
        progress_message: None,
        metadata: doc! {"m": 1},
        output,
        update_sequence: None,
    }
}

fn plan(depends_on: &[i32]) -> StepOp {
    StepOp::Plan {
        step_name: "s".to_owned(),
        fields: StepFields { depends_on: depends_on.to_vec(), ..StepFields::default() },
    }
}

fn one(stored: Option<&Step>, op: &StepOp, ms: i64) -> Result<Decision<Step>, Refusal> {
    let named = StepRef { step_id: Some(1), step_key: None };
    decide(
        &Target { execution_id: "e", named: &named, step_id: 1, parent_step_id: None },
        stored,
        op,
        at(ms),
    )
}

fn run(ops: &[StepOp]) -> (Option<Step>, Result<bool, Refusal>) {
    let mut stored = None;
    let mut last = Ok(false);
    for (index, op) in ops.iter().enumerate() {
        last = match one(stored.as_ref(), op, 100 + index as i64) {
            Err(refusal) => Err(refusal),
            Ok(Decision::Put(record)) => {
                stored = Some(record);
                Ok(true)
            }
            Ok(_) => Ok(false),
        };
    }
    (stored, last)
}

#[test]
fn transitions_are_these_and_no_others() {
    use StepStatus::{Completed, Failed, Pending, Running, Skipped};
    // From, request, and what becomes of it: a status, or a refusal.
    let begun = |status| match status {
        Pending => vec![plan(&[])],
        Running => vec![start(None)],
        end => vec![start(None), finish(end)],
    };
    let table = [
        (Pending, start(None), Ok(Running)),
        (Pending, finish(Completed), Ok(Completed)),
        (Pending, finish(Failed), Ok(Failed)),
        (Pending, finish(Skipped), Ok(Skipped)),
        (Running, finish(Completed), Ok(Completed)),
        (Running, finish(Failed), Ok(Failed)),
        (Running, finish(Skipped), Ok(Skipped)),
        (Running, start(Some(2)), Err("status")),
        (Failed, start(None), Ok(Running)),
        (Failed, start(Some(2)), Ok(Running)),
        (Failed, finish(Completed), Err("status")),
        (Completed, start(Some(2)), Err("status")),
        (Completed, finish(Failed), Err("status")),
        (Completed, finish(Skipped), Err("status")),
        (Skipped, finish(Completed), Err("status")),
        (Skipped, start(Some(2)), Err("status")),
    ];
    for (from, op, expected) in table {
        let mut ops = begun(from);
        ops.push(op.clone());
        let (record, last) = run(&ops);
        match expected {
            Ok(status) => {
                assert_eq!(last, Ok(true), "{from:?} {op:?}");
                assert_eq!(record.unwrap().status, Some(status), "{from:?} {op:?}");
            }
            Err(_) => assert!(matches!(last, Err(Refusal::Status { .. })), "{from:?} {op:?}"),
        }
    }
}

#[test]
fn repeats_change_nothing() {
    use StepStatus::{Completed, Failed};
    for ops in [
        vec![start(None), start(None)],
        vec![start(Some(1)), start(Some(1))],
        vec![start(None), start(Some(1))],
        vec![start(None), update(None), start(None)],
        vec![start(None), finish(Completed), start(None)],
        vec![start(None), finish(Completed), finish(Completed)],
        vec![start(None), finish(Completed), update(None), finish(Completed)],
        vec![start(Some(1)), finish(Failed), start(Some(1))],
        vec![start(Some(1)), finish(Failed), start(Some(2)), start(Some(1))],
        vec![start(Some(1)), finish(Failed), start(Some(2)), start(Some(2))],
        vec![plan(&[]), start(None), plan(&[])],
        vec![plan(&[]), plan(&[])],
        vec![start(None), update(None), update(None)],
    ] {
        assert_eq!(run(&ops).1, Ok(false), "{ops:?}");
    }
}

#[test]
fn a_retry_keeps_the_last_tries_with_cut_errors() {
    let mut ops = vec![start(None)];
    for _ in 0..25 {
        ops.push(finish(StepStatus::Failed));
        ops.push(start(None));
    }
    let step = run(&ops).0.unwrap();
    assert_eq!(step.retry_count, 25);
    assert_eq!(step.attempts.len(), ATTEMPTS_KEPT);
    let error = step.attempts[0].error.as_ref().unwrap();
    assert_eq!(error.message.len(), 4096);
    assert_eq!((step.error, step.completed_at, step.duration_ms), (None, None, None));
}

#[test]
fn finish_alone_creates_only_with_a_name() {
    let (_, last) = run(&[finish(StepStatus::Completed)]);
    assert!(matches!(last, Err(Refusal::StepNotFound { .. })));
    let whole = finish_with(StepStatus::Completed, Some(Bson::String("out".to_owned())), Some("s"));
    let (step, last) = run(&[whole.clone(), whole]);
    assert_eq!(last, Ok(false));
    let step = step.unwrap();
    assert_eq!(step.output, Payload::Value(Bson::String("out".to_owned())));
    assert_eq!(step.input, Payload::Value(Bson::Document(doc! {})));
    assert_eq!(step.duration_ms, Some(0));
}

#[test]
fn an_output_object_is_merged_and_anything_else_replaces() {
    let object = |n: i32| Some(Bson::Document(doc! {"k": {"n": n}, format!("a{n}"): n}));
    let (step, _) = run(&[start(None), update(object(1)), update(object(2))]);
    assert_eq!(
        step.unwrap().output,
        Payload::Value(Bson::Document(doc! {"k": {"n": 2}, "a1": 1, "a2": 2}))
    );
    let list = Bson::Array(vec![Bson::Int32(1)]);
    let (step, _) = run(&[start(None), update(object(1)), update(Some(list.clone()))]);
    assert_eq!(step.unwrap().output, Payload::Value(list));
}

#[test]
fn an_output_that_is_not_at_hand_is_asked_for_before_it_is_merged() {
    let stored = run(&[start(None)]).0.unwrap().without_payloads();
    let merge = update(Some(Bson::Document(doc! {"a": 1})));
    assert_eq!(one(Some(&stored), &merge, 200), Err(Refusal::NeedsPayload));
    let replace = update(Some(Bson::Int32(1)));
    assert!(matches!(one(Some(&stored), &replace, 200), Ok(Decision::Put(_))));
}

#[test]
fn keys_and_numbers_must_be_of_one_step() {
    let named = StepRef { step_id: Some(1), step_key: Some("k".to_owned()) };
    let target = Target { execution_id: "e", named: &named, step_id: 1, parent_step_id: None };
    let Ok(Decision::Put(step)) = decide(&target, None, &start(None), at(1)) else { panic!() };
    assert_eq!(step.step_key.as_deref(), Some("k"));
    let other = StepRef { step_id: Some(1), step_key: Some("other".to_owned()) };
    let target = Target { execution_id: "e", named: &other, step_id: 1, parent_step_id: None };
    assert!(matches!(
        decide(&target, Some(&step), &start(None), at(2)),
        Err(Refusal::StepExists { .. })
    ));
    assert!(matches!(
        decide(&target, Some(&step), &update(None), at(2)),
        Err(Refusal::StepNotFound { .. })
    ));
}

#[test]
fn plans_know_their_steps_and_never_go_round() {
    let known: HashMap<i32, Vec<i32>> = HashMap::from([(10, vec![]), (11, vec![3])]);
    let check = |planned: &[(i32, &[i32])]| {
        let owned = |(id, edges): &(i32, &[i32])| (*id, edges.to_vec());
        check_plan(&planned.iter().map(owned).collect::<Vec<_>>(), &known)
    };
    assert_eq!(check(&[(1, &[]), (2, &[1]), (3, &[1, 2, 10])]), Ok(()));
    assert!(matches!(
        check(&[(1, &[7])]),
        Err(Refusal::UnknownDependency { step_id: 1, depends_on }) if depends_on == "7"
    ));
    for cycle in [
        &[(1, &[1][..])][..],
        &[(1, &[2]), (2, &[1])],
        &[(1, &[2]), (2, &[3]), (3, &[1])],
        // Through a stored step.
        &[(3, &[11])],
    ] {
        assert!(matches!(check(cycle), Err(Refusal::DependencyCycle { .. })), "{cycle:?}");
    }
    let chain: Vec<(i32, Vec<i32>)> = (0..100_000).map(|id| (id, vec![id - 1])).skip(1).collect();
    let mut planned: Vec<(i32, &[i32])> = vec![(0, &[])];
    planned.extend(chain.iter().map(|(id, edges)| (*id, edges.as_slice())));
    assert_eq!(check(&planned), Ok(()));
}

#[test]
fn a_late_repeat_of_an_update_undoes_nothing_and_a_retry_begins_anew() {
    let progress = |progress, sequence| StepOp::Update {
        progress: Some(progress),
        progress_message: None,
        metadata: doc! {},
        output: None,
        update_sequence: Some(sequence),
    };
    let ops = [start(None), progress(0.2, 10), progress(0.9, 11), progress(0.2, 10)];
    let (step, last) = run(&ops);
    let step = step.unwrap();
    assert_eq!((step.progress, step.update_sequence, last), (Some(0.9), Some(11), Ok(false)));
    assert_eq!(one(Some(&step), &progress(0.1, 11), 200), Ok(Decision::Superseded));
    // Far ahead is no reason to refuse one.
    let far = run(&[start(None), progress(0.2, i64::MAX)]).0.unwrap();
    assert_eq!(far.update_sequence, Some(i64::MAX));
    let retried = [start(None), progress(0.9, 11), finish(StepStatus::Failed), start(Some(2))];
    let retried = run(&retried).0.unwrap();
    assert_eq!((retried.progress, retried.update_sequence), (None, None));
}

#[test]
fn references_by_key_are_one_thing_with_those_by_number() {
    let named = StepRef { step_id: Some(1), step_key: None };
    let run = |stored: Option<&Step>, parent: Option<i32>, fields: StepFields| {
        let target =
            Target { execution_id: "e", named: &named, step_id: 1, parent_step_id: parent };
        let op = StepOp::Start { step_name: "s".to_owned(), fields, attempt: None };
        decide(&target, stored, &op, at(1))
    };
    let put = |decision: Result<Decision<Step>, Refusal>| match decision {
        Ok(Decision::Put(step)) => step,
        other => panic!("{other:?}"),
    };
    let by_key = |key: &str| StepFields {
        parent_step_key: Some(key.to_owned()),
        depends_on_keys: vec![key.to_owned()],
        ..StepFields::default()
    };
    let by_number =
        StepFields { parent_step_id: Some(5), depends_on: vec![6], ..StepFields::default() };
    let stored = put(run(None, None, by_key("p")));
    assert_eq!((stored.parent_step_id, stored.parent_step_key.as_deref()), (None, Some("p")));
    // The digest is of what was sent: that the parent is there by now makes no other request of it.
    assert_eq!(run(Some(&stored), Some(9), by_key("p")), Ok(Decision::Keep));
    assert!(matches!(run(Some(&stored), None, by_key("q")), Err(Refusal::StepExists { .. })));
    assert_eq!(put(run(None, Some(9), by_key("p"))).parent_step_id, Some(9));
    // What a start says stands over what a plan said, as one: never the number of one parent and the key of another.
    let mut pending = stored.clone();
    pending.status = Some(StepStatus::Pending);
    let started = put(run(Some(&pending), None, by_number));
    assert_eq!((started.parent_step_id, started.parent_step_key), (Some(5), None));
    assert_eq!((started.depends_on, started.depends_on_keys), (vec![6], vec![]));
    let nothing = put(run(Some(&pending), None, StepFields::default()));
    assert_eq!(nothing.parent_step_key.as_deref(), Some("p"));
    assert_eq!(nothing.depends_on_keys, ["p"]);
}

#[test]
fn parents_are_filled_in_where_they_are_at_hand() {
    let step = |step_id: i32, key: &str, parent: Option<&str>| {
        let named = StepRef { step_id: Some(step_id), step_key: Some(key.to_owned()) };
        let target = Target { execution_id: "e", named: &named, step_id, parent_step_id: None };
        let parent_step_key = parent.map(str::to_owned);
        let fields = StepFields { parent_step_key, ..StepFields::default() };
        let op = StepOp::Start { step_name: "s".to_owned(), fields, attempt: None };
        match decide(&target, None, &op, at(1)) {
            Ok(Decision::Put(step)) => step,
            other => panic!("{other:?}"),
        }
    };
    let mut steps = [
        step(1, "a", Some("c")),
        step(2, "b", Some("nobody")),
        step(3, "c", None),
        step(4, "d", Some("d")),
    ];
    steps[3].parent_step_id = Some(77);
    fill_in_parents(&mut steps);
    assert_eq!(steps.map(|step| step.parent_step_id), [Some(3), None, None, Some(77)]);
}
