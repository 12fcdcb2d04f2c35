//! Short ways to write and read the values of requests and records.

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Timestamp, Value};
pub use serde_json::json;

/// A protobuf value of some JSON.
pub fn value(json: serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(value),
        serde_json::Value::Number(number) => {
            Kind::NumberValue(number.as_f64().expect("a JSON number is a double"))
        }
        serde_json::Value::String(text) => Kind::StringValue(text),
        serde_json::Value::Array(values) => {
            Kind::ListValue(ListValue { values: values.into_iter().map(value).collect() })
        }
        serde_json::Value::Object(fields) => Kind::StructValue(object(fields.into())),
    };
    Value { kind: Some(kind) }
}

/// A protobuf struct of a JSON object.
pub fn object(json: serde_json::Value) -> Struct {
    let serde_json::Value::Object(fields) = json else {
        panic!("not an object: {json}");
    };
    Struct { fields: fields.into_iter().map(|(key, json)| (key, value(json))).collect() }
}

/// `Some(object)`, as requests want it.
pub fn meta(json: serde_json::Value) -> Option<Struct> {
    Some(object(json))
}

/// The JSON of a protobuf value. Integral numbers become integers, so that `1.0` compares equal to `1`.
pub fn plain(value: &Value) -> serde_json::Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => (*value).into(),
        Some(Kind::NumberValue(number)) => plain_number(*number),
        Some(Kind::StringValue(text)) => text.as_str().into(),
        Some(Kind::ListValue(list)) => list.values.iter().map(plain).collect(),
        Some(Kind::StructValue(fields)) => plain_object(fields),
    }
}

fn plain_number(number: f64) -> serde_json::Value {
    let integral = number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0;
    if integral { json!(number as i64) } else { json!(number) }
}

/// The JSON of a protobuf struct.
pub fn plain_object(object: &Struct) -> serde_json::Value {
    object.fields.iter().map(|(key, value)| (key.clone(), plain(value))).collect()
}

/// The JSON of a field; absent is null.
pub fn plain_field(value: &Option<Value>) -> serde_json::Value {
    value.as_ref().map_or(serde_json::Value::Null, plain)
}

/// The JSON of a metadata field; absent is `{}`.
pub fn plain_meta(value: &Option<Struct>) -> serde_json::Value {
    value.as_ref().map_or(json!({}), plain_object)
}

/// The moment `ms` milliseconds after the epoch.
pub fn time(ms: i64) -> Timestamp {
    Timestamp {
        seconds: ms.div_euclid(1000),
        nanos: i32::try_from(ms.rem_euclid(1000) * 1_000_000).expect("below a second"),
    }
}

/// Milliseconds after the epoch; the time must be in whole milliseconds.
pub fn millis(time: &Option<Timestamp>) -> Option<i64> {
    time.as_ref().map(|time| {
        assert_eq!(time.nanos % 1_000_000, 0, "a time finer than a millisecond");
        time.seconds * 1000 + i64::from(time.nanos / 1_000_000)
    })
}

/// The machine's clock in milliseconds after the epoch.
#[expect(clippy::disallowed_methods, reason = "tests compare server times with the real clock")]
pub fn wall_clock_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.expect("after 1970").as_millis()).expect("a sane clock")
}

/// Text of `length` characters.
pub fn text(length: usize) -> String {
    "x".repeat(length)
}

/// JSON objects nested `levels` deep; 1 is `{}`.
pub fn nested(levels: usize) -> serde_json::Value {
    (1..levels).fold(json!({}), |inner, _| json!({ "a": inner }))
}
