//! Values of input, output and metadata: merging, depth and comparison.

use bson::{Bson, Document};

/// Merges `patch` into `target` key by key: two objects merge deeply, anything else replaces.
pub fn merge(target: &mut Document, patch: &Document) {
    for (key, value) in patch {
        match (target.get_mut(key), value) {
            (Some(Bson::Document(old)), Bson::Document(new)) => merge(old, new),
            (Some(slot), value) => *slot = value.clone(),
            (None, value) => {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}

/// How deep containers nest: 0 for a scalar, 1 for `{}`.
pub fn depth(value: &Bson) -> usize {
    match value {
        Bson::Document(document) => 1 + document.values().map(depth).max().unwrap_or(0),
        Bson::Array(values) => 1 + values.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Whether two values mean the same: numbers by value whatever their width, objects whatever the order of
/// their keys, everything else to the letter. Never reads an object as an operator.
pub fn same(a: &Bson, b: &Bson) -> bool {
    match (a, b) {
        (Bson::Document(a), Bson::Document(b)) => {
            a.len() == b.len()
                && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| same(value, other)))
        }
        (Bson::Array(a), Bson::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        _ => match (integer(a), integer(b)) {
            (Some(a), Some(b)) => a == b,
            _ => match (number(a), number(b)) {
                (Some(a), Some(b)) => a == b,
                _ => a == b,
            },
        },
    }
}

fn integer(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(value) => Some(i64::from(*value)),
        Bson::Int64(value) => Some(*value),
        _ => None,
    }
}

fn number(value: &Bson) -> Option<f64> {
    match value {
        Bson::Int32(value) => Some(f64::from(*value)),
        Bson::Int64(value) => Some(*value as f64),
        Bson::Double(value) => Some(*value),
        _ => None,
    }
}

/// Null and `{}` are the same as nothing, for input and metadata.
pub fn is_empty(value: &Bson) -> bool {
    match value {
        Bson::Null => true,
        Bson::Document(document) => document.is_empty(),
        _ => false,
    }
}

/// Size of a value as BSON, in bytes, as an element of a document.
pub fn size(value: &Bson) -> usize {
    match value {
        Bson::Document(document) => size_of_document(document),
        Bson::Array(values) => {
            5 + values
                .iter()
                .enumerate()
                .map(|(index, value)| {
                    2 + index.checked_ilog10().unwrap_or(0) as usize + 1 + size(value)
                })
                .sum::<usize>()
        }
        Bson::String(text) => 5 + text.len(),
        Bson::Int32(_) => 4,
        Bson::Int64(_) | Bson::Double(_) | Bson::DateTime(_) | Bson::Timestamp(_) => 8,
        Bson::Boolean(_) => 1,
        Bson::Null => 0,
        Bson::ObjectId(_) => 12,
        Bson::Decimal128(_) => 16,
        Bson::Binary(binary) => 5 + binary.bytes.len(),
        other => other.to_string().len(),
    }
}

/// Bytes that a value takes in memory, roughly: a null is nothing as BSON and is not nothing here.
pub fn weight(value: &Bson) -> usize {
    let more = match value {
        Bson::Document(document) => weight_of_document(document),
        Bson::Array(values) => values.iter().map(weight).sum(),
        other => size(other),
    };
    size_of::<Bson>() + more
}

/// The same of a document.
pub fn weight_of_document(document: &Document) -> usize {
    /// Key, hash and place in the index.
    const ENTRY: usize = 48;
    document.iter().map(|(key, value)| ENTRY + key.len() + weight(value)).sum()
}

/// Size of a document as BSON, in bytes.
pub fn size_of_document(document: &Document) -> usize {
    5 + document.iter().map(|(key, value)| 2 + key.len() + size(value)).sum::<usize>()
}
