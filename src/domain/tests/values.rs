use bson::{Bson, Document, doc};

use crate::domain::query::{ExecutionFilter, parse_path};
use crate::domain::value;

#[test]
fn merging_goes_deep_into_objects_and_replaces_the_rest() {
    let mut target = doc! {"a": {"x": 1, "y": [1]}, "b": 1, "c.d": 1, "$e": 1};
    value::merge(&mut target, &doc! {"a": {"y": [2], "z": null}, "b": {"n": 1}, "c.d": 2, "$e": 2});
    assert_eq!(target, doc! {"a": {"x": 1, "y": [2], "z": null}, "b": {"n": 1}, "c.d": 2, "$e": 2});
}

#[test]
fn sizes_are_those_of_bson() {
    for document in [
        doc! {},
        doc! {"a": 1, "b": 2i64, "c": 1.5, "d": "text", "e": [1, "x", {"y": null}], "f": true},
        doc! {"n": (0..120).collect::<Vec<i32>>()},
    ] {
        assert_eq!(value::size_of_document(&document), document.to_vec().unwrap().len());
    }
}

#[test]
fn depth_counts_containers() {
    for (found, depth) in [
        (Bson::Int32(1), 0),
        (Bson::Document(Document::new()), 1),
        (Bson::Array(vec![Bson::Document(doc! {"a": [1]})]), 3),
    ] {
        assert_eq!(value::depth(&found), depth);
    }
}

#[test]
fn values_are_the_same_by_meaning() {
    for (a, b, same) in [
        (Bson::Int32(1), Bson::Int64(1), true),
        (Bson::Int32(1), Bson::Double(1.0), true),
        (Bson::Int64(9_007_199_254_740_993), Bson::Int64(9_007_199_254_740_992), false),
        (Bson::Document(doc! {"a": 1, "b": 2}), Bson::Document(doc! {"b": 2, "a": 1i64}), true),
        (Bson::Document(doc! {"$gt": 1}), Bson::Int32(2), false),
        (Bson::Null, Bson::Document(doc! {}), false),
    ] {
        assert_eq!(value::same(&a, &b), same, "{a:?} {b:?}");
    }
}

#[test]
fn paths_part_at_dots_that_are_not_escaped() {
    let keys = |keys: &[&str]| Some(keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>());
    for (path, parsed) in [
        ("a", keys(&["a"])),
        ("a.b", keys(&["a", "b"])),
        (r"gen_ai\.usage.x", keys(&["gen_ai.usage", "x"])),
        (r"a\\.b", keys(&[r"a\", "b"])),
        ("", None),
        (r"a\", None),
        (r"a\x", None),
    ] {
        assert_eq!(parse_path(path), parsed, "{path}");
    }
}

#[test]
fn the_identity_of_a_filter_tells_lists_apart() {
    let filters = [
        ExecutionFilter::default(),
        ExecutionFilter { app_names: vec!["a".to_owned()], ..Default::default() },
        ExecutionFilter { user_ids: vec!["a".to_owned()], ..Default::default() },
        ExecutionFilter { app_ids: vec![1, 2], ..Default::default() },
        ExecutionFilter { app_ids: vec![1], sub_app_ids: vec![2], ..Default::default() },
        ExecutionFilter {
            metadata: vec![(vec!["a".to_owned()], Bson::Null)],
            ..Default::default()
        },
        ExecutionFilter {
            metadata: vec![(vec!["a".to_owned()], Bson::Document(doc! {}))],
            ..Default::default()
        },
    ];
    let identities: std::collections::HashSet<String> =
        filters.iter().map(ExecutionFilter::identity).collect();
    assert_eq!(identities.len(), filters.len());
}
