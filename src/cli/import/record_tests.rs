//! The conversion as tables: what comes in, what is put, and what is refused with which words.

use super::*;
use crate::cli::import::extended_json;
use crate::cli::json;

fn parsed(text: &str) -> Document {
    extended_json::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A step with some fields on top of those that it must have.
fn step_with(fields: &str) -> Result<Converted<proto::Step>, Refused> {
    let comma = if fields.is_empty() { "" } else { "," };
    step(
        parsed(&format!(
            r#"{{"execution_id":"e","step_id":1,"step_name":"n","status":"completed"{comma}{fields}}}"#
        )),
        None,
    )
}

fn execution_with(fields: &str) -> Result<Converted<proto::Execution>, Refused> {
    let comma = if fields.is_empty() { "" } else { "," };
    execution(
        parsed(&format!(
            r#"{{"execution_id":"e","app_name":"a","status":"completed"{comma}{fields}}}"#
        )),
        None,
    )
}

#[test]
fn a_whole_execution_is_put_as_it_is() {
    let converted = execution_with(
        r#""_id":{"$oid":"0123456789abcdef01234567"},"app_id":1,"sub_app_id":{"$numberLong":"2"},
           "sub_app_name":"s","user_id":"u","started_at":{"$date":"2019-01-14T01:49:46.952Z"},
           "completed_at":{"$date":"2019-01-14T01:49:08.952Z"},"duration_ms":-38000,"error":"broke",
           "error_info":{"code":"E1","stack_trace":"at x","details":{"a.b":1}},
           "metadata":{"k":{"$date":"2019-01-14T01:49:46.952Z"},"$ref":"r"},
           "created_at":{"$date":0},"updated_at":{"$date":1},"revision":7,"last_change":"e//7",
           "heartbeat_timeout_ms":1000,"last_heartbeat_at":{"$date":2},"cancel_requested_at":{"$date":3},
           "cancel_reason":"why","parent_execution_id":"p","pinned":true,"configuration_version":"v",
           "update_sequence":{"$numberLong":"9"}"#,
    )
    .expect("converted");
    assert!(!converted.assumed);
    assert_eq!(converted.left_out, Vec::<String>::new());
    let record = converted.record;
    let mut shown = json::execution(&record);
    assert_eq!(
        shown["metadata"].take(),
        serde_json::json!({"k": "2019-01-14T01:49:46.952Z", "$ref": "r"})
    );
    assert_eq!(
        shown,
        serde_json::json!({
            "execution_id": "e", "app_id": 1, "app_name": "a", "sub_app_id": 2, "sub_app_name": "s",
            "user_id": "u", "status": "EXECUTION_STATUS_COMPLETED",
            "started_at": "2019-01-14T01:49:46.952Z", "completed_at": "2019-01-14T01:49:08.952Z",
            "duration_ms": -38000,
            "error": {"message": "broke", "code": "E1", "stack_trace": "at x", "details": {"a.b": 1}},
            "metadata": null, "created_at": "1970-01-01T00:00:00Z",
            "updated_at": "1970-01-01T00:00:00.001Z", "revision": 0, "heartbeat_timeout_ms": 1000,
            "last_heartbeat_at": "1970-01-01T00:00:00.002Z",
            "cancel_requested_at": "1970-01-01T00:00:00.003Z", "cancel_reason": "why",
            "parent_execution_id": "p", "pinned": true, "configuration_version": "v", "update_sequence": 9,
            "omitted_fields": [],
        })
    );
}

#[test]
fn nulls_stay_nulls_and_nothing_is_invented() {
    let nulls = r#""app_id":null,"sub_app_id":null,"sub_app_name":null,"user_id":null,"started_at":null,
        "completed_at":null,"duration_ms":null,"error":null,"error_info":null,"created_at":null,
        "updated_at":null,"metadata":null"#;
    for fields in ["", nulls] {
        let record = execution_with(fields).expect("converted").record;
        let expected = proto::Execution {
            execution_id: "e".to_owned(),
            app_name: "a".to_owned(),
            status: proto::ExecutionStatus::Completed.into(),
            ..Default::default()
        };
        assert_eq!(record, expected);
    }
    let nulls = r#""step_key":null,"step_version":null,"started_at":null,"completed_at":null,
        "duration_ms":null,"input":null,"output":null,"error":null,"retry_count":null,"metadata":null,
        "depends_on":null,"attempts":null,"progress":null"#;
    for fields in ["", nulls] {
        let record = step_with(fields).expect("converted").record;
        let expected = proto::Step {
            execution_id: "e".to_owned(),
            step_id: Some(1),
            step_name: "n".to_owned(),
            status: proto::StepStatus::Completed.into(),
            ..Default::default()
        };
        assert_eq!(record, expected);
    }
}

#[test]
fn a_whole_step_is_put_as_it_is() {
    let record = step_with(
        r#""step_key":"k","step_version":"1.0","started_at":"2019-01-14T01:49:46.952+01:00",
           "duration_ms":{"$numberLong":"12"},"input":"text","output":[1,{"$oid":"0123456789abcdef01234567"}],
           "retry_count":3,"depends_on":[0,{"$numberInt":"2"}],"parent_step_id":0,"progress":1,
           "progress_message":"done","attempts":[{"started_at":{"$date":0},"error":"once","duration_ms":5}]"#,
    )
    .expect("converted")
    .record;
    assert_eq!(record.step_key.as_deref(), Some("k"));
    assert_eq!(
        record.started_at.map(|at| at.to_string()).as_deref(),
        Some("2019-01-14T00:49:46.952Z")
    );
    assert_eq!((record.duration_ms, record.retry_count), (Some(12), 3));
    assert_eq!(json::value(record.input.as_ref()), serde_json::json!("text"));
    assert_eq!(
        json::value(record.output.as_ref()),
        serde_json::json!([1, "0123456789abcdef01234567"])
    );
    assert_eq!((record.depends_on, record.parent_step_id), (vec![0, 2], Some(0)));
    assert_eq!(record.progress, Some(1.0));
    let attempt = &record.attempts[0];
    assert_eq!(attempt.error.as_ref().map(|error| error.message.as_str()), Some("once"));
    assert_eq!((attempt.duration_ms, attempt.completed_at), (Some(5), None));
}

#[test]
fn step_ids_are_numbers_and_texts_become_keys() {
    for (fields, id, key) in [
        (r#""step_id":0"#, Some(0), None),
        (r#""step_id":3.0"#, Some(3), None),
        (r#""step_id":{"$numberLong":"4"}"#, Some(4), None),
        (r#""step_id":"17""#, None, Some("17")),
        (r#""step_id":"a b""#, None, Some("a b")),
        (r#""step_id":"k","step_key":"k""#, None, Some("k")),
        (r#""step_id":5,"step_key":"k""#, Some(5), Some("k")),
        (r#""step_key":"k""#, None, Some("k")),
        (r#""step_id":null,"step_key":"k""#, None, Some("k")),
    ] {
        let text = format!(r#"{{"execution_id":"e","step_name":"n","status":"failed",{fields}}}"#);
        let record = step(parsed(&text), None).expect(fields).record;
        assert_eq!((record.step_id, record.step_key.as_deref()), (id, key), "{fields}");
    }
}

#[test]
fn a_status_that_is_absent_is_assumed_and_one_that_is_wrong_is_not() {
    use AssumedStatus::{Cancelled, Completed, Failed, Running};
    for status in [r#""status":null,"#, ""] {
        let record =
            format!(r#"{{{status}"execution_id":"e","app_name":"a","step_id":1,"step_name":"n"}}"#);
        for (assume, of_execution, of_step) in [
            (Completed, proto::ExecutionStatus::Completed, proto::StepStatus::Completed),
            (Failed, proto::ExecutionStatus::Failed, proto::StepStatus::Failed),
            (Cancelled, proto::ExecutionStatus::Cancelled, proto::StepStatus::Skipped),
            (Running, proto::ExecutionStatus::Running, proto::StepStatus::Running),
        ] {
            let found = execution(parsed(&record), Some(assume)).expect("assumed");
            assert_eq!((found.assumed, found.record.status()), (true, of_execution));
            let found = step(parsed(&record), Some(assume)).expect("assumed");
            assert_eq!((found.assumed, found.record.status()), (true, of_step));
        }
        let refused = execution(parsed(&record), None).expect_err("refused");
        assert_eq!(refused, "has no status (--assume-status gives it one)");
        assert_eq!(step(parsed(&record), None).expect_err("refused"), refused);
    }
    for word in ["", "COMPLETED", "success", "skipped"] {
        let record = format!(r#"{{"status":"{word}","execution_id":"e","app_name":"a"}}"#);
        let refused = execution(parsed(&record), Some(Completed)).expect_err("refused");
        assert!(refused.starts_with(&format!("status is {word:?}, not running")), "{refused}");
    }
    let known = execution_with("").expect("its own");
    assert!(!known.assumed);
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason() {
    let deep = format!(r#""input":{}1{}"#, "[".repeat(31), "]".repeat(31));
    for (fields, reason) in [
        (r#""step_id":-1"#, "step_id is -1, which is negative"),
        (r#""step_id":1.5"#, "step_id is the number 1.5, not a whole number"),
        (r#""step_id":99999999999"#, "step_id is 99999999999, which is not a 32-bit number"),
        (
            r#""step_id":18446744073709551616"#,
            "step_id is the number 18446744073709552000, not a whole number",
        ),
        (r#""step_id":"""#, "step_id is empty"),
        (r#""step_id":"a","step_key":"b""#, r#"step_id is the text "a", but step_key is "b""#),
        (r#""step_id":null"#, "has neither step_id nor step_key"),
        (r#""step_id":[1]"#, "step_id is a list, not a whole number"),
        (r#""step_name":null"#, "has no step_name"),
        (r#""step_name":"""#, "step_name is empty"),
        (r#""step_name":7"#, "step_name is the number 7, not text"),
        (
            r#""execution_id":{"$oid":"0123456789abcdef01234567"}"#,
            "execution_id is an ObjectId, not text",
        ),
        (
            r#""started_at":"2019-01-14T01:49:46""#,
            r#"started_at is "2019-01-14T01:49:46", not a time with its zone"#,
        ),
        (r#""started_at":1547430586952"#, "started_at is the number 1547430586952, not a date"),
        (r#""duration_ms":12.5"#, "duration_ms is the number 12.5, not a whole number"),
        (r#""duration_ms":"12""#, r#"duration_ms is the text "12", not a whole number"#),
        (r#""error":{"message":"m"}"#, "error is an object, not text"),
        (r#""error_info":{"code":1}"#, "error_info.code is the number 1, not text"),
        (r#""metadata":[1]"#, "metadata is a list, not an object"),
        (r#""depends_on":["a",1]"#, r#"depends_on has the text "a", which is not a step number"#),
        (r#""depends_on":[1],"depends_on_keys":["a"]"#, "has both depends_on and depends_on_keys"),
        (r#""depends_on_keys":[1]"#, "depends_on_keys has the number 1, which is not a step key"),
        (r#""depends_on_keys":"a""#, r#"depends_on_keys is the text "a", not a list of step keys"#),
        (r#""parent_step_id":-1"#, "parent_step_id is -1, which is negative"),
        (
            r#""parent_step_id":"p","parent_step_key":"q""#,
            r#"parent_step_id is the text "p", but parent_step_key is "q""#,
        ),
        (r#""attempts":[1]"#, "attempts is the number 1, not a list of objects"),
        (&deep, "input is nested 31 levels deep, more than the limit of 30"),
    ] {
        // The last of two equal keys counts.
        let refused = step_with(fields).expect_err(fields);
        assert_eq!(refused, reason, "{fields}");
    }
    for (fields, reason) in [
        (r#""app_name":null"#, "has no app_name"),
        (r#""execution_id":"""#, "execution_id is empty"),
        (r#""app_id":"7""#, r#"app_id is the text "7", not a whole number"#),
        (r#""pinned":"yes""#, r#"pinned is the text "yes", not true or false"#),
    ] {
        assert_eq!(execution_with(fields).expect_err(fields), reason, "{fields}");
    }
}

#[test]
fn a_text_in_the_place_of_a_number_is_the_key_of_a_step() {
    let record =
        step_with(r#""depends_on":["a","b"],"parent_step_id":"p""#).expect("converted").record;
    assert_eq!(
        (record.depends_on.len(), record.depends_on_keys),
        (0, vec!["a".into(), "b".into()])
    );
    assert_eq!((record.parent_step_id, record.parent_step_key.as_deref()), (None, Some("p")));
    let both = step_with(r#""parent_step_id":1,"parent_step_key":"p""#).expect("converted").record;
    assert_eq!((both.parent_step_id, both.parent_step_key.as_deref()), (Some(1), Some("p")));
    let of = |fields: &str| {
        let document = format!(r#"{{"execution_id":"e","artifact_name":"x",{fields}}}"#);
        let record = artifact(parsed(&document)).expect("converted").record;
        (record.step_id, record.step_key)
    };
    assert_eq!(of(r#""step_id":"k""#), (None, Some("k".to_owned())));
    assert_eq!(of(r#""step_key":"k""#), (None, Some("k".to_owned())));
    assert_eq!(of(r#""step_id":3,"step_key":"k""#), (Some(3), None), "one of them is enough");
    // What lacks fields is refused by the server.
    let lacking = step_with(r#""omitted_fields":["input"]"#).expect("converted").record;
    assert_eq!(lacking.omitted_fields, ["input"]);
}

#[test]
fn keys_that_are_no_fields_are_named_unless_they_say_nothing() {
    let found =
        step_with(r#""extra":1,"empty":null,"_id":1,"last_change":"x""#).expect("converted");
    assert_eq!(found.left_out, ["extra"]);
}

#[test]
fn values_keep_their_meaning() {
    let input = r#"{"large":9007199254740993,"exact":9007199254740992,"double":1.0,"nan":{"$numberDouble":"NaN"},
        "decimal":{"$numberDecimal":"1.10"},"bytes":{"$binary":{"base64":"AQI=","subType":"00"}},"a.b":{"$x":1}}"#;
    let record = step_with(&format!(r#""input":{input}"#)).expect("converted").record;
    assert_eq!(
        json::value(record.input.as_ref()),
        serde_json::json!({
            "large": "9007199254740993", "exact": 9_007_199_254_740_992_i64, "double": 1, "nan": "NaN",
            "decimal": "1.10", "bytes": "AQI=", "a.b": {"$x": 1},
        })
    );
}

#[test]
fn a_point_of_metrics_is_taken_as_it_is_or_refused_with_its_reason() {
    let point = |fields: &str| metric_point(parsed(&format!("{{{fields}}}")));
    let good = point(
        r#""_id":{"$oid":"0123456789abcdef01234567"},"execution_id":"e","timestamp":{"$date":1500},
           "step_id":0,"metrics":{"a.b":1,"$c":{"$numberLong":"5000000000"},"d":0.1},"more":1"#,
    )
    .expect("converted");
    assert_eq!(good.left_out, ["more"]);
    assert_eq!(good.record.execution_id, "e");
    assert_eq!(good.record.timestamp, Some(Timestamp { seconds: 1, nanos: 500_000_000 }));
    assert_eq!(good.record.step_id, Some(0));
    let metrics = [("a.b", 1.0), ("$c", 5e9), ("d", 0.1)];
    assert_eq!(good.record.metrics, metrics.map(|(name, value)| (name.to_owned(), value)).into());
    for (fields, reason) in [
        (r#""execution_id":"e","metrics":{"a":1}"#, "has no timestamp"),
        (
            r#""execution_id":"e","timestamp":5,"metrics":{"a":1}"#,
            "timestamp is the number 5, not a date",
        ),
        (r#""execution_id":"e","timestamp":{"$date":0}"#, "has no metrics"),
        (r#""execution_id":"e","timestamp":{"$date":0},"metrics":{}"#, "has no metrics"),
        (
            r#""execution_id":"e","timestamp":{"$date":0},"metrics":[1]"#,
            "metrics is a list, not an object",
        ),
        (
            r#""execution_id":"e","timestamp":{"$date":0},"metrics":{"a":"1"}"#,
            "metrics.a is the text \"1\", not a finite number",
        ),
        (
            r#""execution_id":"e","timestamp":{"$date":0},"metrics":{"a":{"$numberDouble":"NaN"}}"#,
            "metrics.a is the number NaN, not a finite number",
        ),
        (r#""timestamp":{"$date":0},"metrics":{"a":1}"#, "has no execution_id"),
        (
            r#""execution_id":"e","timestamp":{"$date":0},"metrics":{"a":1},"step_id":-1"#,
            "step_id is -1, which is negative",
        ),
    ] {
        assert_eq!(point(fields).expect_err("refused"), reason, "{fields}");
    }
}
