//! The plain fields of records, those of the data model that any program writes, in a form in which equal records are
//! equal bytes: their digests tell whether two databases hold the same. docs/moving.md says it so that other languages
//! can compute it; whatever changes here changes there.
//!
//! A value counts as the API shows it: what JSON lacks is text, every number is a double.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use bson::{Bson, Document};
use sha2::{Digest as _, Sha256};

use super::limits::NESTING_DEPTH;
use super::{Artifact, Configuration, Execution, MetricPoint, Millis, Step};

/// Greatest integer that a double, and so a number of JSON as most programs read it, holds exactly: 2^53.
pub const EXACT_INTEGER: i64 = 1 << 53;

/// The years 1 to 9999 in seconds since 1970: what a time can be that is shown.
pub const SHOWN_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Ranges that records are divided into.
pub const RANGES: usize = 4096;

/// Kinds of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Executions,
    Steps,
    Artifacts,
    Points,
    Configurations,
}

impl Part {
    pub const ALL: [Part; 5] =
        [Part::Executions, Part::Steps, Part::Artifacts, Part::Points, Part::Configurations];

    /// The collection in which they are.
    pub fn collection(self) -> &'static str {
        match self {
            Part::Executions => "executions",
            Part::Steps => "execution_steps",
            Part::Artifacts => "execution_artifacts",
            Part::Points => "execution_metrics",
            Part::Configurations => "app_configurations",
        }
    }
}

/// The range of what belongs to this execution, or of configurations of the app of this name: the first 12 bits of the
/// SHA-256.
pub fn range_of(id: &str) -> usize {
    let hash = Sha256::digest(id.as_bytes());
    usize::from(hash[0]) << 4 | usize::from(hash[1] >> 4)
}

/// A SHA-256.
pub type Sum = [u8; 32];

/// How many records there are, and the sum of their digests as numbers, modulo 2^256: the same in whatever order they
/// come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Total {
    pub count: u64,
    pub sum: Sum,
}

impl Total {
    pub fn add(&mut self, digest: &Sum) {
        self.count += 1;
        self.plus(digest);
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Total) {
        self.count += other.count;
        self.plus(&other.sum);
    }

    fn plus(&mut self, other: &Sum) {
        let mut carry = 0;
        for (byte, more) in self.sum.iter_mut().zip(other).rev() {
            let sum = u16::from(*byte) + u16::from(*more) + carry;
            *byte = (sum & 0xff) as u8;
            carry = sum >> 8;
        }
    }
}

/// The value of a plain field.
#[derive(Debug, Clone, PartialEq)]
pub enum Plain<'a> {
    Null,
    Bool(bool),
    Whole(i64),
    Time(Millis),
    Text(Cow<'a, str>),
    Object(&'a Document),
    Any(&'a Bson),
    Metrics(&'a BTreeMap<String, f64>),
}

impl<'a> Plain<'a> {
    fn whole(number: Option<impl Into<i64>>) -> Self {
        number.map_or(Plain::Null, |number| Plain::Whole(number.into()))
    }

    fn time(at: Option<Millis>) -> Self {
        match at {
            Some(at) if SHOWN_SECONDS.contains(&at.div_euclid(1000)) => Plain::Time(at),
            _ => Plain::Null,
        }
    }

    fn text(text: Option<&'a str>) -> Self {
        text.map_or(Plain::Null, |text| Plain::Text(text.into()))
    }

    /// Of a field that cannot be null: what is empty is not there.
    fn name(text: &'a str) -> Self {
        Plain::text(Some(text).filter(|text| !text.is_empty()))
    }

    /// Null and absent are an empty object.
    fn input(value: Option<&'a Bson>) -> Self {
        match value {
            None | Some(Bson::Null | Bson::Undefined) => Plain::Object(empty()),
            Some(value) => Plain::Any(value),
        }
    }

    fn output(value: Option<&'a Bson>) -> Self {
        match value {
            None | Some(Bson::Null | Bson::Undefined) => Plain::Null,
            Some(value) => Plain::Any(value),
        }
    }

    fn write(&self, to: &mut Vec<u8>) {
        match self {
            Plain::Null => to.push(b'n'),
            Plain::Bool(value) => to.push(if *value { b't' } else { b'f' }),
            Plain::Whole(number) => {
                to.push(b'i');
                to.extend(number.to_be_bytes());
            }
            Plain::Time(at) => {
                to.push(b'm');
                to.extend(at.to_be_bytes());
            }
            Plain::Text(text) => write_text(text, to),
            Plain::Object(object) => write_object(object, 1, to),
            Plain::Any(value) => write_value(value, 1, to),
            Plain::Metrics(metrics) => {
                to.push(b'{');
                for (name, number) in *metrics {
                    write_text(name, to);
                    write_number(*number, to);
                }
                to.push(b'}');
            }
        }
    }

    /// SHA-256 of the value by itself.
    pub fn digest(&self) -> Sum {
        let mut bytes = Vec::new();
        self.write(&mut bytes);
        Sha256::digest(&bytes).into()
    }

    /// As JSON; times as text.
    pub fn shown(&self) -> Bson {
        match self {
            Plain::Null => Bson::Null,
            Plain::Bool(value) => Bson::Boolean(*value),
            Plain::Whole(number) => Bson::Int64(*number),
            Plain::Time(at) => shown(&Bson::DateTime(bson::DateTime::from_millis(*at)), 1),
            Plain::Text(text) => Bson::String(text.clone().into_owned()),
            Plain::Object(object) => shown_object(object, 1),
            Plain::Any(value) => shown(value, 1),
            Plain::Metrics(metrics) => {
                let numbers = metrics.iter().map(|(name, n)| (name.clone(), Bson::Double(*n)));
                Bson::Document(numbers.collect())
            }
        }
    }
}

fn empty() -> &'static Document {
    static EMPTY: std::sync::LazyLock<Document> = std::sync::LazyLock::new(Document::new);
    &EMPTY
}

/// A record by its plain fields, each under its name, in the order in which they are digested.
#[derive(Debug, Clone, PartialEq)]
pub struct Fields<'a> {
    pub part: Part,
    pub fields: Vec<(&'static str, Plain<'a>)>,
}

impl Fields<'_> {
    /// SHA-256 of the kind, and of every field's name and value.
    pub fn digest(&self) -> Sum {
        self.digest_with(&mut Vec::new())
    }

    /// The same by means of a buffer, for who digests many.
    pub fn digest_with(&self, buffer: &mut Vec<u8>) -> Sum {
        buffer.clear();
        write_text(self.part.collection(), buffer);
        for (name, value) in &self.fields {
            write_text(name, buffer);
            value.write(buffer);
        }
        Sha256::digest(&buffer).into()
    }
}

pub fn execution(record: &Execution) -> Fields<'_> {
    let fields = vec![
        ("execution_id", Plain::name(&record.execution_id)),
        ("app_id", Plain::whole(record.app_id)),
        ("app_name", Plain::name(&record.app_name)),
        ("sub_app_id", Plain::whole(record.sub_app_id)),
        ("sub_app_name", Plain::text(record.sub_app_name.as_deref())),
        ("user_id", Plain::text(record.user_id.as_deref())),
        ("status", Plain::text(record.status.map(|status| status.as_str()))),
        ("started_at", Plain::time(record.started_at)),
        ("completed_at", Plain::time(record.completed_at)),
        ("duration_ms", Plain::whole(record.duration_ms)),
        ("error", Plain::text(record.error.as_ref().map(|error| error.message.as_str()))),
        ("metadata", Plain::Object(&record.metadata)),
        ("created_at", Plain::time(record.created_at)),
        ("updated_at", Plain::time(record.updated_at)),
    ];
    Fields { part: Part::Executions, fields }
}

/// A step whose payloads are at hand.
pub fn step(record: &Step) -> Fields<'_> {
    let fields = vec![
        ("execution_id", Plain::name(&record.execution_id)),
        ("step_id", Plain::Whole(record.step_id.into())),
        ("step_name", Plain::name(&record.step_name)),
        ("step_version", Plain::text(record.step_version.as_deref())),
        ("status", Plain::text(record.status.map(|status| status.as_str()))),
        ("started_at", Plain::time(record.started_at)),
        ("completed_at", Plain::time(record.completed_at)),
        ("duration_ms", Plain::whole(record.duration_ms)),
        ("input", Plain::input(record.input.value())),
        ("output", Plain::output(record.output.value())),
        ("error", Plain::text(record.error.as_ref().map(|error| error.message.as_str()))),
        ("retry_count", Plain::Whole(record.retry_count.into())),
        ("metadata", Plain::Object(&record.metadata)),
    ];
    Fields { part: Part::Steps, fields }
}

pub fn artifact(record: &Artifact) -> Fields<'_> {
    let fields = vec![
        ("execution_id", Plain::name(&record.execution_id)),
        ("step_id", Plain::whole(record.step_id)),
        ("artifact_type", Plain::name(&record.artifact_type)),
        ("artifact_name", Plain::name(&record.artifact_name)),
        ("mime_type", Plain::text(record.mime_type.as_deref())),
        ("size_bytes", Plain::whole(record.size_bytes)),
        ("storage_type", Plain::text(record.storage_type.as_deref())),
        ("storage_path", Plain::text(record.storage_path.as_deref())),
        ("metadata", Plain::Object(&record.metadata)),
        ("created_at", Plain::time(record.created_at)),
    ];
    Fields { part: Part::Artifacts, fields }
}

pub fn point<'a>(execution_id: &'a str, record: &'a MetricPoint) -> Fields<'a> {
    let fields = vec![
        ("timestamp", Plain::time(Some(record.at))),
        ("execution_id", Plain::name(execution_id)),
        ("metrics", Plain::Metrics(&record.metrics)),
    ];
    Fields { part: Part::Points, fields }
}

pub fn configuration(record: &Configuration) -> Fields<'_> {
    let fields = vec![
        ("app_id", Plain::whole(record.app_id)),
        ("app_name", Plain::name(&record.app_name)),
        ("sub_app_id", Plain::whole(record.sub_app_id)),
        ("sub_app_name", Plain::text(record.sub_app_name.as_deref())),
        ("version", Plain::name(&record.version)),
        ("configuration", Plain::Object(&record.configuration)),
        ("active", Plain::Bool(record.active)),
        ("created_at", Plain::time(record.created_at)),
        ("created_by", Plain::text(record.created_by.as_deref())),
    ];
    Fields { part: Part::Configurations, fields }
}

/// What JSON has no word for, as text. `None`: it has one.
pub fn as_text(value: &Bson) -> Option<String> {
    Some(match value {
        Bson::Int64(number) if !(-EXACT_INTEGER..=EXACT_INTEGER).contains(number) => {
            number.to_string()
        }
        Bson::Double(number) if number.is_nan() => "NaN".to_owned(),
        Bson::Double(number) if number.is_infinite() => {
            if *number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
        }
        Bson::Null
        | Bson::Undefined
        | Bson::Boolean(_)
        | Bson::Int32(_)
        | Bson::Int64(_)
        | Bson::Double(_)
        | Bson::String(_)
        | Bson::Array(_)
        | Bson::Document(_) => return None,
        Bson::Symbol(text) => text.clone(),
        Bson::DateTime(at) => {
            let millis = at.timestamp_millis();
            // RFC 3339 has four digits for the year.
            let shown = SHOWN_SECONDS
                .contains(&millis.div_euclid(1000))
                .then(|| at.try_to_rfc3339_string().ok());
            shown.flatten().unwrap_or_else(|| millis.to_string())
        }
        Bson::ObjectId(id) => id.to_hex(),
        Bson::Binary(binary) => base64::engine::general_purpose::STANDARD.encode(&binary.bytes),
        Bson::Decimal128(number) => number.to_string(),
        other => other.clone().into_relaxed_extjson().to_string(),
    })
}

/// Other programs may nest deeper than decoders of other languages stand: from there on, text.
pub fn too_deep(value: &Bson, depth: usize) -> Option<String> {
    (depth > NESTING_DEPTH + 1).then(|| value.clone().into_relaxed_extjson().to_string())
}

fn write_text(text: &str, to: &mut Vec<u8>) {
    to.push(b's');
    to.extend((text.len() as u64).to_be_bytes());
    to.extend(text.as_bytes());
}

fn write_number(number: f64, to: &mut Vec<u8>) {
    to.push(b'd');
    // The two zeros are equal, and their bytes are not.
    let number = if number == 0.0 { 0.0 } else { number };
    to.extend(number.to_be_bytes());
}

fn write_object(object: &Document, depth: usize, to: &mut Vec<u8>) {
    let mut fields: Vec<_> = object.iter().collect();
    fields.sort_by(|a, b| a.0.cmp(b.0));
    to.push(b'{');
    for (key, value) in fields {
        write_text(key, to);
        write_value(value, depth + 1, to);
    }
    to.push(b'}');
}

fn write_value(value: &Bson, depth: usize, to: &mut Vec<u8>) {
    if let Some(text) = as_text(value) {
        return write_text(&text, to);
    }
    match value {
        Bson::Boolean(value) => to.push(if *value { b't' } else { b'f' }),
        Bson::Int32(number) => write_number(f64::from(*number), to),
        Bson::Int64(number) => write_number(*number as f64, to),
        Bson::Double(number) => write_number(*number, to),
        Bson::String(text) => write_text(text, to),
        Bson::Array(values) => match too_deep(value, depth) {
            Some(text) => write_text(&text, to),
            None => {
                to.push(b'[');
                values.iter().for_each(|value| write_value(value, depth + 1, to));
                to.push(b']');
            }
        },
        Bson::Document(object) => match too_deep(value, depth) {
            Some(text) => write_text(&text, to),
            None => write_object(object, depth, to),
        },
        _ => to.push(b'n'),
    }
}

fn shown_object(object: &Document, depth: usize) -> Bson {
    let fields = object.iter().map(|(key, value)| (key.clone(), shown(value, depth + 1)));
    Bson::Document(fields.collect())
}

fn shown(value: &Bson, depth: usize) -> Bson {
    if let Some(text) = as_text(value) {
        return Bson::String(text);
    }
    match value {
        Bson::Array(values) => match too_deep(value, depth) {
            Some(text) => Bson::String(text),
            None => Bson::Array(values.iter().map(|value| shown(value, depth + 1)).collect()),
        },
        Bson::Document(object) => match too_deep(value, depth) {
            Some(text) => Bson::String(text),
            None => shown_object(object, depth),
        },
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;

    fn of(value: &Bson) -> Vec<u8> {
        let mut bytes = Vec::new();
        Plain::Any(value).write(&mut bytes);
        bytes
    }

    #[test]
    fn equal_values_are_equal_bytes_and_others_are_not() {
        let date = bson::DateTime::from_millis(1_700_000_000_123);
        for (one, other) in [
            (Bson::Int32(7), Bson::Double(7.0)),
            (Bson::Int64(7), Bson::Int32(7)),
            (Bson::Double(-0.0), Bson::Int32(0)),
            (Bson::Null, Bson::Undefined),
            (date.into(), Bson::String("2023-11-14T22:13:20.123Z".to_owned())),
            (Bson::Int64(EXACT_INTEGER + 1), Bson::String("9007199254740993".to_owned())),
            (Bson::Double(f64::NAN), Bson::String("NaN".to_owned())),
            (doc! { "b": 1, "a": [1_i64] }.into(), doc! { "a": [1.0], "b": 1.0 }.into()),
        ] {
            assert_eq!(of(&one), of(&other), "{one} and {other}");
        }
        let all = [
            Bson::Null,
            Bson::Boolean(false),
            Bson::Int32(0),
            Bson::String("0".to_owned()),
            Bson::String(String::new()),
            Bson::Array(vec![]),
            Bson::Document(doc! {}),
            doc! { "a": Bson::Null }.into(),
            Bson::Array(vec![Bson::Null]),
            Bson::Array(vec![Bson::Array(vec![]), Bson::Null]),
            Bson::Array(vec![Bson::Array(vec![Bson::Null])]),
            Bson::Double(0.1),
            Bson::Double(0.1 + f64::EPSILON),
        ];
        for (n, one) in all.iter().enumerate() {
            for other in &all[n + 1..] {
                assert_ne!(of(one), of(other), "{one} and {other}");
            }
        }
    }

    #[test]
    fn the_form_is_what_the_documentation_says() {
        let bytes = of(&doc! { "é": [true, Bson::Null, 1.5], "a": "x" }.into());
        let expected = b"{s\0\0\0\0\0\0\0\x01as\0\0\0\0\0\0\0\x01xs\0\0\0\0\0\0\0\x02\xc3\xa9[tnd\x3f\xf8\0\0\0\0\0\0]}";
        assert_eq!(bytes, expected);
        let point =
            MetricPoint { at: 5, metrics: [("n".to_owned(), 2.0)].into(), ..Default::default() };
        let mut expected = Vec::new();
        write_text("execution_metrics", &mut expected);
        write_text("timestamp", &mut expected);
        expected.extend(b"m\0\0\0\0\0\0\0\x05");
        write_text("execution_id", &mut expected);
        write_text("run", &mut expected);
        write_text("metrics", &mut expected);
        expected.extend(b"{s\0\0\0\0\0\0\0\x01nd\x40\0\0\0\0\0\0\0}");
        let expected: Sum = Sha256::digest(&expected).into();
        assert_eq!(super::point("run", &point).digest(), expected);
    }

    #[test]
    fn sums_do_not_depend_on_the_order_and_carry() {
        let (mut one, mut other) = (Total::default(), Total::default());
        let digests = [[0xff; 32], [0x01; 32], [0x80; 32]];
        digests.iter().for_each(|digest| one.add(digest));
        digests.iter().rev().for_each(|digest| other.add(digest));
        assert_eq!(one, other);
        let mut expected = [0x80; 32];
        expected[31] = 0x80;
        // ff…ff + 01…01 is 01…0100 modulo 2^256; and 80…80.
        expected.iter_mut().take(31).for_each(|byte| *byte = 0x81);
        assert_eq!((one.count, one.sum), (3, expected));
        let mut both = Total::default();
        both.merge(&one);
        both.merge(&Total::default());
        assert_eq!(both, one);
    }

    #[test]
    fn ranges_are_the_first_bits_of_the_hash() {
        // SHA-256 of nothing begins with e3b0.
        assert_eq!(range_of(""), 0xe3b);
        // That of "abc" begins with ba78.
        assert_eq!(range_of("abc"), 0xba7);
    }
}
