//! Values of every type in the order that an index has them in. Comparisons know one type only, and other programs choose
//! another than ours; so what comes behind a value is taken type by type.

use bson::{Bson, Document, doc};

/// Names of types in the order of the index, each with those that are mixed with it. An array is indexed by what is in
/// it, so it has no place of its own.
const TYPES: [&[&str]; 14] = [
    &["minKey"],
    // With it is what is missing.
    &["null"],
    &["number"],
    &["string", "symbol"],
    &["object"],
    &["binData"],
    &["objectId"],
    &["bool"],
    &["date"],
    &["timestamp"],
    &["regex"],
    &["dbPointer"],
    &["javascript", "javascriptWithScope"],
    &["maxKey"],
];
const NULL: usize = 1;
const NUMBER: usize = 2;
pub const TEXT: usize = 3;
/// From here on nothing but an expression compares.
const REGEX: usize = 10;

/// The place of a value's type in that order.
pub fn rank(value: &Bson) -> usize {
    match value {
        Bson::MinKey => 0,
        Bson::Null | Bson::Undefined => NULL,
        Bson::Double(_) | Bson::Int32(_) | Bson::Int64(_) | Bson::Decimal128(_) => NUMBER,
        Bson::String(_) | Bson::Symbol(_) => TEXT,
        Bson::Document(_) | Bson::Array(_) => 4,
        Bson::Binary(_) => 5,
        Bson::ObjectId(_) => 6,
        Bson::Boolean(_) => 7,
        Bson::DateTime(_) => 8,
        Bson::Timestamp(_) => 9,
        Bson::RegularExpression(_) => REGEX,
        Bson::DbPointer(_) => 11,
        Bson::JavaScriptCode(_) | Bson::JavaScriptCodeWithScope(_) => 12,
        Bson::MaxKey => 13,
    }
}

/// Conditions for all types of these ranks, in the order of the index.
fn of_types(ranks: std::ops::Range<usize>, descending: bool) -> Vec<Bson> {
    let names: Vec<&str> = ranks
        .clone()
        .filter(|rank| *rank > NULL)
        .flat_map(|rank| TYPES[rank].iter().copied())
        .collect();
    let mut conditions = Vec::new();
    if ranks.contains(&0) {
        conditions.push(doc! { "$type": "minKey" }.into());
    }
    if ranks.contains(&NULL) {
        conditions.push(Bson::Null);
    }
    if !names.is_empty() {
        conditions.push(doc! { "$type": names }.into());
    }
    if descending {
        conditions.reverse();
    }
    conditions
}

fn is_nan(value: &Bson) -> bool {
    match value {
        Bson::Double(value) => value.is_nan(),
        Bson::Decimal128(value) => value.to_string().contains("NaN"),
        _ => false,
    }
}

/// Filters for what has a value beyond this one and of its type, in the order of the index.
pub fn beyond(field: &str, value: &Bson, descending: bool) -> Vec<Document> {
    let way = if descending { "$lt" } else { "$gt" };
    let compared = || vec![doc! { field: { way: value.clone() } }];
    match rank(value) {
        0 | NULL | 13 => Vec::new(),
        // Below all numbers.
        NUMBER if is_nan(value) && descending => Vec::new(),
        NUMBER if is_nan(value) => vec![doc! { field: { "$gte": f64::NEG_INFINITY } }],
        NUMBER if descending => {
            let mut numbers = compared();
            numbers.push(doc! { field: f64::NAN });
            numbers
        }
        rank if rank >= REGEX || matches!(value, Bson::Symbol(_)) => vec![doc! {
            field: { "$type": TYPES[rank].to_vec() },
            "$expr": { way: [format!("${field}"), { "$literal": value.clone() }] },
        }],
        _ => compared(),
    }
}

/// Filters for what has a value of the types behind that of this one, in the order of the index.
pub fn following(field: &str, value: &Bson, descending: bool) -> Vec<Document> {
    let here = rank(value);
    let ranks = if descending { 0..here } else { here + 1..TYPES.len() };
    let types = of_types(ranks, descending).into_iter();
    types.map(|condition| doc! { field: condition }).collect()
}
