use bson::oid::ObjectId;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Decimal128, doc};
use prost_types::value::Kind;
use prost_types::{Timestamp, Value};

use crate::rpc::convert::{millis, stored, timestamp, value};

fn number(value: f64) -> Value {
    Value { kind: Some(Kind::NumberValue(value)) }
}

#[test]
fn integral_numbers_are_stored_as_integers_and_come_back_unchanged() {
    let exact = 9_007_199_254_740_992.0;
    for (sent, expected) in [
        (0.0, Bson::Int32(0)),
        (-7.0, Bson::Int32(-7)),
        (2_147_483_647.0, Bson::Int32(i32::MAX)),
        (2_147_483_648.0, Bson::Int64(2_147_483_648)),
        (exact, Bson::Int64(1 << 53)),
        (-exact, Bson::Int64(-(1 << 53))),
        (exact * 2.0, Bson::Double(exact * 2.0)),
        (1.5, Bson::Double(1.5)),
        (1e300, Bson::Double(1e300)),
    ] {
        let found = stored(&number(sent)).unwrap();
        assert_eq!(found, expected);
        assert_eq!(value(&found), number(sent));
    }
    for refused in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert!(stored(&number(refused)).is_err());
    }
}

#[test]
fn what_json_cannot_say_is_shown_as_text() {
    let id = ObjectId::from_bytes([1; 12]);
    for (found, shown) in [
        (Bson::DateTime(DateTime::from_millis(1_700_000_000_123)), "2023-11-14T22:13:20.123Z"),
        (Bson::ObjectId(id), "010101010101010101010101"),
        (Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: vec![1, 2, 3] }), "AQID"),
        (Bson::Decimal128("1.50".parse::<Decimal128>().unwrap()), "1.50"),
        (Bson::Int64((1 << 53) + 1), "9007199254740993"),
        (Bson::Int64(i64::MIN), "-9223372036854775808"),
        (Bson::Double(f64::NAN), "NaN"),
        (Bson::Double(f64::INFINITY), "Infinity"),
        (Bson::Double(f64::NEG_INFINITY), "-Infinity"),
    ] {
        assert_eq!(value(&found).kind, Some(Kind::StringValue(shown.to_owned())), "{found:?}");
    }
}

#[test]
fn what_nests_deeper_than_decoders_stand_is_text() {
    let mut deep = Bson::Int32(1);
    for _ in 0..60 {
        deep = Bson::Array(vec![deep]);
    }
    let mut shown = value(&deep);
    let mut levels = 0;
    while let Some(Kind::ListValue(list)) = shown.kind {
        shown = list.values.into_iter().next().unwrap();
        levels += 1;
    }
    assert!(matches!(shown.kind, Some(Kind::StringValue(_))));
    assert!((30..=32).contains(&levels), "{levels}");
}

#[test]
fn keys_are_kept_to_the_letter() {
    let document = doc! {"a.b": 1, "$set": {"$ref": "x"}, "": 2, "ключ": 3, "__proto__": 4};
    let shown = value(&Bson::Document(document.clone()));
    let Bson::Document(back) = stored(&shown).unwrap() else { panic!() };
    for (key, value) in &document {
        assert_eq!(back.get(key), Some(value), "{key}");
    }
    let nul = Value {
        kind: Some(Kind::StructValue(prost_types::Struct {
            fields: [("a\0b".to_owned(), number(1.0))].into(),
        })),
    };
    assert!(stored(&nul).is_err());
}

#[test]
fn times_are_cut_to_milliseconds_on_both_sides_of_the_epoch() {
    for (seconds, nanos, expected) in [
        (0, 999_999, Some(0)),
        (1, 1_999_999, Some(1001)),
        (-1, 999_999_999, Some(-1)),
        (-1, 0, Some(-1000)),
        (253_402_300_800, 0, None),
        (0, -1, None),
        (0, 1_000_000_000, None),
    ] {
        assert_eq!(millis(&Timestamp { seconds, nanos }), expected);
    }
    for ms in [0, 1, -1, -1001, 1_700_000_000_123] {
        assert_eq!(millis(&timestamp(ms)), Some(ms));
    }
}
