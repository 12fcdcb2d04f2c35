//! A record with every field of the API keeps all of them, whichever way it goes: shown as JSON, exported and imported.

use std::collections::BTreeSet;

use super::record::{self, Converted, Refused};
use crate::cli::export::document;
use crate::cli::json;
use crate::rpc::tests::records::{execution, fields_of, steps};

fn imported<R>(converted: Result<Converted<R>, Refused>) -> R {
    let converted = converted.unwrap_or_else(|refused| panic!("refused: {refused:?}"));
    assert_eq!(converted.left_out, Vec::<String>::new());
    assert!(!converted.assumed);
    converted.record
}

#[test]
fn every_field_is_shown() {
    let [by_number, by_key] = steps();
    for (message, shown, absent) in [
        ("Execution", json::execution(&execution()), "none"),
        ("Step", json::step(&by_number, true), "depends_on_keys"),
        ("Step", json::step(&by_key, true), "depends_on"),
    ] {
        let shown = shown.as_object().unwrap();
        assert_eq!(shown.keys().cloned().collect::<BTreeSet<_>>(), fields_of(message));
        for (name, value) in shown {
            let is_empty = value.is_null() || *value == serde_json::json!([]);
            let is_absent = ["omitted_fields", absent].contains(&name.as_str());
            assert_eq!(is_empty, is_absent, "{message}.{name} is {value}");
        }
    }
}

#[test]
fn what_is_exported_is_imported_as_it_was() {
    assert_eq!(imported(record::execution(document::execution(&execution()), None)), execution());
    for step in steps() {
        assert_eq!(imported(record::step(document::step(&step), None)), step);
    }
}
