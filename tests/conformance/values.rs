//! What input, output and metadata may hold, and that it comes back as it went in.

use stepwell::proto::*;
use tonic::Code;

use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::values::*;

/// Stores a value as input, output and, inside an object, as metadata; what comes back of each.
async fn round_trip(s: &Client, step_id: i32, json: serde_json::Value) -> [prost_types::Value; 3] {
    let sent = value(json.clone());
    s.start_step(StartStepRequest {
        input: Some(sent.clone()),
        metadata: meta(json!({ "value": json })),
        ..start("e", step_id)
    })
    .await;
    s.finish_step(FinishStepRequest {
        output: Some(sent),
        ..finish_step("e", step_id, StepStatus::Completed)
    })
    .await;
    let step = s.step("e", step_id).await;
    let metadata = step.metadata.expect("metadata").fields["value"].clone();
    [step.input.expect("input"), step.output.expect("output"), metadata]
}

pub async fn keys_may_have_dots_dollars_and_any_unicode(b: Backend) {
    let s = b.serve().await;
    let odd = json!({
        "a.b": { "c.d.": 1, ".": 2, "..": 3 },
        "$set": { "$inc": { "x": 1 } },
        "$ref": "collection", "$id": 5, "$db": "x",
        "": "the empty key",
        "ключ": "значение", "\u{1F511}": "\u{1F513}", "é": "composed", "e\u{301}": "decomposed",
        "with space": 1, "\"quoted\"": 2, "\\": 3, "line\nbreak": 4, "\u{7f}": 5, "\u{ffff}": 6,
        "__proto__": 7, "_id": 8, "0": 9, "00": 10,
        "nested": [{ "$oid": "not an id" }, { "$date": "no date" }, { "$numberLong": "7" }],
    });
    s.create_execution(CreateExecutionRequest { metadata: meta(odd.clone()), ..create("e") }).await;
    assert_eq!(plain_meta(&s.execution("e").await.metadata), odd);
    for found in round_trip(&s, 1, odd.clone()).await {
        assert_eq!(plain(&found), odd);
    }
    // Merging reaches exactly the key that is named, never a path.
    let updated = s
        .update_execution(UpdateExecutionRequest {
            metadata: meta(json!({
                "a.b": { "c.d.": 10 }, "$set": { "$inc": { "y": 2 } }, "$ref": "other", "a": { "b": 0 }
            })),
            ..update("e")
        })
        .await;
    let mut expected = odd.clone();
    expected["a.b"]["c.d."] = json!(10);
    expected["$set"]["$inc"]["y"] = json!(2);
    expected["$ref"] = json!("other");
    expected["a"] = json!({ "b": 0 });
    assert_eq!(plain_meta(&updated.metadata), expected);
    assert_eq!(plain_meta(&s.execution("e").await.metadata), expected);
    // A partial output too.
    let output = json!({ "a.b": { "$x": 1 }, "a": { "b": { "$x": 2 } } });
    s.update_step(UpdateStepRequest { output: Some(value(output)), ..update_step("e", 1) }).await;
    let stored = plain_field(&s.step("e", 1).await.output);
    assert_eq!(stored["a.b"], json!({ "c.d.": 1, ".": 2, "..": 3, "$x": 1 }));
    assert_eq!(stored["a"], json!({ "b": { "$x": 2 } }));
}

pub async fn a_key_with_a_zero_character_is_refused(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let bad = || json!({ "fine": [{ "ze\0ro": 1 }] });
    let answer =
        s.try_create_execution(CreateExecutionRequest { metadata: meta(bad()), ..create("other") });
    assert_eq!(bad_fields(answer.await)[0].0, "metadata");
    let answer = s.try_start_step(StartStepRequest { input: Some(value(bad())), ..start("e", 1) });
    assert_eq!(bad_fields(answer.await)[0].0, "input");
    let request = FinishStepRequest {
        output: Some(value(bad())),
        step_name: Some("work".into()),
        ..finish_step("e", 1, StepStatus::Completed)
    };
    assert_eq!(bad_fields(s.try_finish_step(request).await)[0].0, "output");
    // In a text it is a character like any other.
    for found in round_trip(&s, 1, json!(["ze\0ro"])).await {
        assert_eq!(plain(&found), json!(["ze\0ro"]));
    }
}

pub async fn integers_up_to_2_to_the_53_come_back_unchanged(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let greatest = 1_i64 << 53;
    let integers = json!([
        0,
        1,
        -1,
        i32::MAX,
        i32::MIN,
        i64::from(i32::MAX) + 1,
        i64::from(i32::MIN) - 1,
        greatest,
        -greatest,
        greatest - 1,
        -(greatest - 1)
    ]);
    for found in round_trip(&s, 1, integers.clone()).await {
        assert_eq!(plain(&found), integers);
    }
    // Beyond, and between the integers, a number is a double and comes back as the same double.
    let doubles = [9_007_199_254_740_994.0, -1e300, 0.1, -2.5, f64::MIN_POSITIVE, f64::MAX, 5e-324];
    for found in round_trip(&s, 2, json!(doubles)).await {
        let Some(prost_types::value::Kind::ListValue(list)) = found.kind else {
            panic!("{found:?}")
        };
        let back: Vec<_> = list.values.into_iter().map(|value| value.kind).collect();
        let sent = doubles.map(|double| Some(prost_types::value::Kind::NumberValue(double)));
        assert_eq!(back, sent);
    }
}

pub async fn numbers_that_are_none_are_refused(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let bad = prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(number)) };
        let nested = prost_types::Struct { fields: [("a".to_owned(), bad.clone())].into() };
        let request = StartStepRequest {
            input: Some(bad.clone()),
            metadata: Some(nested.clone()),
            ..start("e", 1)
        };
        let fields = bad_fields(s.try_start_step(request).await);
        let names: Vec<_> = fields.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(names, ["input", "metadata"]);
        let request = UpdateStepRequest { output: Some(bad.clone()), ..update_step("e", 1) };
        assert_eq!(bad_fields(s.try_update_step(request).await)[0].0, "output");
        let request = FinishExecutionRequest {
            error: Some(Error { details: Some(nested), ..run_error("x") }),
            ..finish("e", ExecutionStatus::Failed)
        };
        assert_eq!(bad_fields(s.try_finish_execution(request).await)[0].0, "error.details");
        let filter =
            ExecutionFilter { metadata: [("a".to_owned(), bad)].into(), ..Default::default() };
        let request = ListExecutionsRequest { filter: Some(filter), ..Default::default() };
        assert_eq!(bad_fields(s.try_list_executions(request).await)[0].0, "filter.metadata");
    }
}

pub async fn values_nest_30_deep_and_no_deeper(b: Backend) {
    let s = b.serve().await;
    s.create_execution(CreateExecutionRequest { metadata: meta(nested(30)), ..create("e") }).await;
    assert_eq!(plain_meta(&s.execution("e").await.metadata), nested(30));
    let lists = (1..30).fold(json!([]), |inner, _| json!([inner]));
    let request = StartStepRequest { input: Some(value(lists.clone())), ..start("e", 1) };
    s.start_step(request).await;
    let request = UpdateStepRequest { output: Some(value(nested(30))), ..update_step("e", 1) };
    s.update_step(request).await;
    let stored = s.step("e", 1).await;
    assert_eq!(plain_field(&stored.input), lists);
    assert_eq!(plain_field(&stored.output), nested(30));

    let request = CreateExecutionRequest { metadata: meta(nested(31)), ..create("deep") };
    let fields = bad_fields(s.try_create_execution(request).await);
    assert_eq!(fields[0].0, "metadata");
    assert!(fields[0].1.contains("31") && fields[0].1.contains("30"), "{fields:?}");
    let request = StartStepRequest { input: Some(value(json!([lists]))), ..start("e", 2) };
    assert_eq!(bad_fields(s.try_start_step(request).await)[0].0, "input");
    let request = UpdateStepRequest { output: Some(value(nested(31))), ..update_step("e", 1) };
    assert_eq!(bad_fields(s.try_update_step(request).await)[0].0, "output");
}

pub async fn null_absent_and_empty_are_told_apart_inside_values(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let json =
        json!({ "null": null, "object": {}, "list": [], "text": "", "nulls": [null, {}, []] });
    for found in round_trip(&s, 1, json.clone()).await {
        assert_eq!(plain(&found), json);
    }
    // As a whole, no input is an empty object and no output is null.
    s.start("e", 2).await;
    let step = s.step("e", 2).await;
    assert_eq!(plain_field(&step.input), json!({}));
    assert_eq!(plain_field(&step.output), json!(null));
    let request = FinishStepRequest {
        output: Some(value(json!({}))),
        ..finish_step("e", 2, StepStatus::Completed)
    };
    s.finish_step(request).await;
    assert_eq!(plain_field(&s.step("e", 2).await.output), json!({}));
    let empty_text = CreateExecutionRequest { user_id: Some(String::new()), ..create("empty") };
    assert_eq!(s.create_execution(empty_text).await.user_id.as_deref(), Some(""));
    assert_eq!(s.create("absent").await.user_id, None);
}

pub async fn input_and_output_are_any_json_value(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let values = [
        json!("text"),
        json!(""),
        json!(0),
        json!(-1.5),
        json!(true),
        json!(false),
        json!([]),
        json!([1, "a", null]),
        json!({ "a": 1 }),
    ];
    for (step_id, json) in (1..).zip(values) {
        for found in round_trip(&s, step_id, json.clone()).await {
            assert_eq!(plain(&found), json);
        }
    }
}

pub async fn a_change_leaves_alone_what_it_does_not_set(b: Backend) {
    let s = b.serve().await;
    let created = s
        .create_execution(CreateExecutionRequest {
            app_id: Some(3),
            user_id: Some("u".into()),
            metadata: meta(json!({ "a": { "deep": [1, { "x": null }] }, "b": 2 })),
            ..create("e")
        })
        .await;
    let pinned =
        s.update_execution(UpdateExecutionRequest { pinned: Some(true), ..update("e") }).await;
    let expected = Execution {
        pinned: Some(true),
        revision: pinned.revision,
        updated_at: pinned.updated_at,
        ..created
    };
    assert_eq!(s.execution("e").await, expected);
    let ended = s.finish("e", ExecutionStatus::Completed).await;
    let expected = Execution {
        status: ExecutionStatus::Completed.into(),
        completed_at: ended.completed_at,
        duration_ms: ended.duration_ms,
        revision: ended.revision,
        updated_at: ended.updated_at,
        ..expected
    };
    assert_eq!(s.execution("e").await, expected);

    let request = StartStepRequest {
        step_key: Some("k".into()),
        step_version: Some("v".into()),
        input: Some(value(json!({ "in": [1] }))),
        metadata: meta(json!({ "m": { "n": 1 } })),
        depends_on: vec![5],
        parent_step_id: Some(6),
        ..start("e", 1)
    };
    s.start_step(request).await;
    let before = s.step("e", 1).await;
    let request = UpdateStepRequest { progress: Some(0.5), ..update_step("e", 1) };
    let updated = s.update_step(request).await;
    let expected = Step {
        progress: Some(0.5),
        revision: updated.revision,
        updated_at: updated.updated_at,
        ..before
    };
    assert_eq!(s.step("e", 1).await, expected);
}

pub async fn great_values_come_back_whole(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let input = json!({ "text": text(6 * 1024 * 1024 - 100) });
    let output = json!(text(6 * 1024 * 1024 - 100));
    let request = StartStepRequest { input: Some(value(input.clone())), ..start("e", 1) };
    s.start_step(request).await;
    let request = FinishStepRequest {
        output: Some(value(output.clone())),
        ..finish_step("e", 1, StepStatus::Completed)
    };
    s.finish_step(request).await;
    let step = s.step("e", 1).await;
    assert!(plain_field(&step.input) == input && plain_field(&step.output) == output);
    let list = ListStepsRequest { execution_id: "e".into(), ..Default::default() };
    assert_eq!(s.list_steps(list).await.steps.len(), 1, "lists leave input and output out");
    let merge = UpdateStepRequest {
        output: Some(value(json!(text(6 * 1024 * 1024)))),
        ..update_step("e", 1)
    };
    assert_eq!(
        s.try_update_step(merge).await.expect_err("too large").code(),
        Code::InvalidArgument
    );
}
