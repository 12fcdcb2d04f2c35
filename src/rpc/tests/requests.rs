use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Timestamp, Value};

use crate::app::Error;
use crate::domain::limits::Limits;
use crate::proto;
use crate::rpc::requests;

fn text(text: String) -> Value {
    Value { kind: Some(Kind::StringValue(text)) }
}

fn object(value: Value) -> Struct {
    Struct { fields: [("k".to_owned(), value)].into() }
}

fn nested(levels: usize) -> Value {
    (0..levels).fold(text(String::new()), |inner, _| Value {
        kind: Some(Kind::ListValue(ListValue { values: vec![inner] })),
    })
}

/// The fields named by a refusal.
fn fields<T: std::fmt::Debug>(outcome: Result<T, Error>) -> Vec<String> {
    match outcome {
        Ok(_) => Vec::new(),
        Err(Error::Invalid(violations)) => {
            violations.listed().iter().map(|violation| violation.field.clone()).collect()
        }
        Err(other) => panic!("{other:?}"),
    }
}

fn start(change: impl FnOnce(&mut proto::StartStepRequest)) -> Vec<String> {
    let mut request = proto::StartStepRequest {
        execution_id: "e".to_owned(),
        step_name: "s".to_owned(),
        ..Default::default()
    };
    change(&mut request);
    fields(requests::start_step(&Limits::default(), request))
}

fn create(change: impl FnOnce(&mut proto::CreateExecutionRequest)) -> Vec<String> {
    let mut request =
        proto::CreateExecutionRequest { app_name: "a".to_owned(), ..Default::default() };
    change(&mut request);
    fields(requests::create_execution(&Limits::default(), request, || "new".to_owned()))
}

fn finish(change: impl FnOnce(&mut proto::FinishStepRequest)) -> Vec<String> {
    let mut request = proto::FinishStepRequest {
        execution_id: "e".to_owned(),
        step_id: Some(1),
        status: proto::StepStatus::Completed.into(),
        ..Default::default()
    };
    change(&mut request);
    fields(requests::finish_step(&Limits::default(), request))
}

#[test]
fn bounds_hold_to_the_unit() {
    let none: [&str; 0] = [];
    assert_eq!(start(|r| r.step_name = "é".repeat(256)), none);
    assert_eq!(start(|r| r.step_name = "é".repeat(257)), ["step_name"]);
    assert_eq!(create(|r| r.execution_id = Some("e".repeat(128))), none);
    assert_eq!(create(|r| r.execution_id = Some("e".repeat(129))), ["execution_id"]);
    // Another program may have chosen a longer one.
    assert_eq!(start(|r| r.execution_id = "e".repeat(4096)), none);
    assert_eq!(start(|r| r.execution_id = "e".repeat(4097)), ["execution_id"]);
    assert_eq!(start(|r| r.input = Some(nested(30))), none);
    assert_eq!(start(|r| r.input = Some(nested(31))), ["input"]);
    assert_eq!(start(|r| r.metadata = Some(object(nested(29)))), none);
    assert_eq!(start(|r| r.metadata = Some(object(nested(30)))), ["metadata"]);
    // {k: text} is 5 + 2 + 1 + 5 + text bytes of BSON.
    let payload = |bytes: usize| Some(text("x".repeat(bytes - 5)));
    assert_eq!(start(|r| r.input = payload(6 << 20)), none);
    assert_eq!(start(|r| r.input = payload((6 << 20) + 1)), ["input"]);
    let metadata = |bytes: usize| Some(object(text("x".repeat(bytes - 13))));
    assert_eq!(start(|r| r.metadata = metadata(256 << 10)), none);
    assert_eq!(start(|r| r.metadata = metadata((256 << 10) + 1)), ["metadata"]);
    assert_eq!(start(|r| r.depends_on = vec![1; 10_000]), none);
    assert_eq!(start(|r| r.depends_on = vec![1; 10_001]), ["depends_on"]);
    let message =
        |bytes: usize| Some(proto::Error { message: "x".repeat(bytes), ..Default::default() });
    assert_eq!(finish(|r| r.error = message(64 << 10)), none);
    assert_eq!(finish(|r| r.error = message((64 << 10) + 1)), ["error.message"]);
}

#[test]
fn bad_values_are_named() {
    let none: [&str; 0] = [];
    assert_eq!(start(|r| r.step_id = Some(-1)), ["step_id"]);
    assert_eq!(start(|r| r.step_id = Some(0)), none);
    assert_eq!(start(|r| r.step_key = Some(String::new())), ["step_key"]);
    assert_eq!(start(|r| r.attempt = Some(0)), ["attempt"]);
    assert_eq!(
        start(|r| r.started_at = Some(Timestamp { seconds: i64::MAX, nanos: 0 })),
        ["started_at"]
    );
    assert_eq!(finish(|r| r.status = 0), ["status"]);
    assert_eq!(finish(|r| r.status = 99), ["status"]);
    assert_eq!(finish(|r| r.status = proto::StepStatus::Running.into()), ["status"]);
    assert_eq!(finish(|r| r.step_id = None), ["step_id"]);
    for (id, ok) in [("a b", false), ("é", false), ("", false), ("a/b~!", true), ("a\n", false)] {
        assert_eq!(create(|r| r.execution_id = Some(id.to_owned())).is_empty(), ok, "{id:?}");
    }
    for (seconds, nanos, ok) in
        [(0, 99_999_999, false), (0, 100_000_000, true), (i64::MAX, 0, false), (-1, 0, false)]
    {
        let timeout = Some(prost_types::Duration { seconds, nanos });
        assert_eq!(create(|r| r.heartbeat_timeout = timeout).is_empty(), ok, "{seconds} {nanos}");
    }
}

#[test]
fn every_bad_field_is_named_at_once() {
    let found = start(|r| {
        r.execution_id = String::new();
        r.step_name = String::new();
        r.step_id = Some(-1);
        r.metadata = Some(object(Value { kind: Some(Kind::NumberValue(f64::NAN)) }));
        r.attempt = Some(-3);
    });
    for field in ["execution_id", "step_name", "step_id", "metadata", "attempt"] {
        assert!(found.iter().any(|name| name == field), "{field} in {found:?}");
    }
}

#[test]
fn plans_name_the_step_that_is_wrong() {
    let step = |id, name: &str| proto::PlannedStep {
        step_id: id,
        step_name: name.to_owned(),
        ..Default::default()
    };
    let plan = |steps| {
        let request =
            proto::PlanStepsRequest { execution_id: "e".to_owned(), steps, ..Default::default() };
        fields(requests::plan_steps(&Limits::default(), request))
    };
    assert_eq!(plan(vec![]), ["steps"]);
    assert_eq!(plan(vec![step(Some(1), "a"), step(None, "b")]), ["steps[1].step_id"]);
    assert_eq!(
        plan(vec![step(Some(1), "a"), step(Some(1), "")]),
        ["steps[1].step_id", "steps[1].step_name"]
    );
    let many = |count| (0..count).map(|id| step(Some(id), "a")).collect();
    assert_eq!(plan(many(10_000)), [""; 0]);
    assert_eq!(plan(many(100_001)), ["steps"]);
}

#[test]
fn filters_are_bounded() {
    let limits = Limits::default();
    let mut check = requests::Check::new(&limits);
    let filter = proto::ExecutionFilter {
        app_ids: vec![1; 51],
        user_ids: vec!["u".to_owned(); 50],
        statuses: vec![0],
        metadata: [("a\\".to_owned(), text("x".to_owned()))].into(),
        ..Default::default()
    };
    check.filter(Some(&filter));
    assert_eq!(fields(check.done(())), ["filter.app_ids", "filter.statuses", "filter.metadata"]);
}
