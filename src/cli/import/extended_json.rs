//! MongoDB Extended JSON v2, canonical and relaxed, to BSON values.

use bson::Bson;
use serde_json::{Map, Value};

use crate::cli::time::rfc3339;
use crate::rpc::convert;

/// The keys that make an object a typed value. Others that begin with `$`, such as those of a reference
/// (`$ref`), are keys like any.
const WRAPPERS: [&str; 16] = [
    "$oid",
    "$date",
    "$numberInt",
    "$numberLong",
    "$numberDouble",
    "$numberDecimal",
    "$binary",
    "$uuid",
    "$timestamp",
    "$regularExpression",
    "$symbol",
    "$code",
    "$minKey",
    "$maxKey",
    "$dbPointer",
    "$undefined",
];

/// Deepest nesting that is followed; far beyond what a server takes, and far from the end of the stack.
const DEPTH: usize = 200;

/// Reads one document. `Err`: what is wrong with it, and where.
pub fn parse(text: &[u8]) -> Result<bson::Document, String> {
    let text = std::str::from_utf8(text)
        .map_err(|error| format!("not UTF-8 after {} bytes", error.valid_up_to()))?;
    let json: Value = serde_json::from_str(text).map_err(|error| {
        // Its line is always 1, and ours is said by the caller.
        let said = error.to_string();
        let said = said.split(" at line ").next().unwrap_or_default();
        format!("not JSON: {said} (column {})", error.column())
    })?;
    let Value::Object(fields) = json else {
        return Err("not a document: expected a JSON object".to_owned());
    };
    match object(fields, "", 0)? {
        Bson::Document(document) => Ok(document),
        _ => Err("not a document: expected a JSON object".to_owned()),
    }
}

fn object(fields: Map<String, Value>, path: &str, depth: usize) -> Result<Bson, String> {
    if depth > DEPTH {
        return Err(format!("{} is nested too deeply", named(path)));
    }
    let Some(wrapper) = WRAPPERS.iter().find(|wrapper| fields.contains_key(**wrapper)) else {
        let mut document = bson::Document::new();
        for (key, field) in fields {
            let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            document.insert(key, value(field, &inner, depth + 1)?);
        }
        return Ok(Bson::Document(document));
    };
    if *wrapper == "$date" {
        return date(&fields)
            .map(|ms| Bson::DateTime(bson::DateTime::from_millis(ms)))
            .ok_or_else(|| format!("{} has no valid $date", named(path)));
    }
    Bson::try_from(Value::Object(fields))
        .map_err(|error| format!("{} has no valid {wrapper}: {error}", named(path)))
}

fn value(json: Value, path: &str, depth: usize) -> Result<Bson, String> {
    match json {
        Value::Object(fields) => object(fields, path, depth),
        Value::Array(values) => {
            if depth > DEPTH {
                return Err(format!("{} is nested too deeply", named(path)));
            }
            let values = values.into_iter().enumerate();
            let values = values
                .map(|(index, element)| value(element, &format!("{path}[{index}]"), depth + 1));
            Ok(Bson::Array(values.collect::<Result<_, _>>()?))
        }
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            // Too large for BSON's integers; as text, as every integer is that a double cannot hold.
            (None, Some(large)) => Ok(Bson::String(large.to_string())),
            _ => Bson::try_from(Value::Number(number))
                .map_err(|error| format!("{} is not a number: {error}", named(path))),
        },
        scalar => Bson::try_from(scalar).map_err(|error| format!("{}: {error}", named(path))),
    }
}

fn named(path: &str) -> &str {
    if path.is_empty() { "the document" } else { path }
}

/// Milliseconds of `{"$date": …}`: ISO text with a zone, `{"$numberLong": "…"}`, or a number as older tools
/// wrote it. Finer times are cut, also before 1970.
fn date(fields: &Map<String, Value>) -> Option<i64> {
    if fields.len() != 1 {
        return None;
    }
    match fields.get("$date")? {
        Value::String(text) => convert::millis(&rfc3339(text)?),
        Value::Number(ms) => ms.as_i64(),
        Value::Object(inner) if inner.len() == 1 => match inner.get("$numberLong")? {
            Value::String(ms) => ms.parse().ok(),
            Value::Number(ms) => ms.as_i64(),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bson::{Binary, DateTime, doc, oid::ObjectId, spec::BinarySubtype};

    use super::*;

    #[test]
    fn both_forms_and_older_dates_are_read() {
        let date = Bson::DateTime(DateTime::from_millis(1_547_430_586_952));
        let oid = ObjectId::parse_str("0123456789abcdef01234567").expect("an id");
        for (text, expected) in [
            (r#"{"$date":"2019-01-14T01:49:46.952Z"}"#, date.clone()),
            (r#"{"$date":"2019-01-14T02:49:46.952999+01:00"}"#, date.clone()),
            (r#"{"$date":"2019-01-14T01:49:46.952+0000"}"#, date.clone()),
            (r#"{"$date":{"$numberLong":"1547430586952"}}"#, date.clone()),
            (r#"{"$date":1547430586952}"#, date),
            (r#"{"$date":"1969-12-31T23:59:59.9995Z"}"#, DateTime::from_millis(-1).into()),
            (r#"{"$oid":"0123456789abcdef01234567"}"#, oid.into()),
            (r#"{"$numberInt":"7"}"#, Bson::Int32(7)),
            (r#"{"$numberLong":"9007199254740993"}"#, Bson::Int64(9_007_199_254_740_993)),
            (r#"{"$numberDouble":"0.5"}"#, Bson::Double(0.5)),
            ("7", Bson::Int32(7)),
            ("7.0", Bson::Double(7.0)),
            ("5000000000", Bson::Int64(5_000_000_000)),
            ("18446744073709551615", Bson::String("18446744073709551615".to_owned())),
            (
                r#"{"$binary":{"base64":"AQI=","subType":"00"}}"#,
                Binary { subtype: BinarySubtype::Generic, bytes: vec![1, 2] }.into(),
            ),
            (r##"{"$ref":"#/x","a":[{"$date":0}]}"##, {
                let zero = DateTime::from_millis(0);
                doc! { "$ref": "#/x", "a": [zero] }.into()
            }),
        ] {
            let document = parse(format!("{{\"v\":{text}}}").as_bytes());
            assert_eq!(document, Ok(doc! { "v": expected }), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let deep = format!("{}1{}", "[".repeat(300), "]".repeat(300));
        for (text, said) in [
            (&b"{\"a\":\"\xff\"}"[..], "not UTF-8 after 6 bytes"),
            (b"{\"a\":}", "not JSON: expected value (column 6)"),
            (b"{} {}", "not JSON: trailing characters (column 4)"),
            (b"[1]", "not a document: expected a JSON object"),
            (b"{\"$date\":0}", "not a document: expected a JSON object"),
            (b"{\"a\":[{\"b\":{\"$date\":\"soon\"}}]}", "a[0].b has no valid $date"),
            (b"{\"a\":{\"$date\":\"2019-01-14T01:49:46\"}}", "a has no valid $date"),
            (b"{\"a\":{\"$oid\":\"zz\"}}", "a has no valid $oid: "),
            (b"{\"a\":{\"$numberLong\":\"99999999999999999999\"}}", "a has no valid $numberLong: "),
            (deep.as_bytes(), "not JSON: recursion limit exceeded"),
        ] {
            let error = parse(text).expect_err("refused");
            assert!(error.starts_with(said), "{error:?} does not begin with {said:?}");
        }
    }
}
