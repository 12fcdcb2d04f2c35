//! Collections of MongoDB are named in one list, from which the role of a server and the plan of shards are made.

use std::fs;
use std::path::Path;

use super::paths::{SRC, is_unit_test, sources};

const LIST: &str = "src/store/mongo/db/names.rs";

/// The names of the list.
fn listed() -> Vec<String> {
    let list =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(LIST)).expect("the list");
    let (_, rows) = list.split_once("\ncollections! {").expect("the list begins");
    let (rows, _) = rows.split_once("\n}").expect("the list ends");
    let rows =
        rows.lines().map(str::trim).filter(|line| !line.starts_with("//") && !line.is_empty());
    let name = |row: &str| row.split('"').nth(1).expect("each row has a name").to_owned();
    rows.map(name).collect()
}

#[test]
fn collections_are_named_in_one_list() {
    let listed = listed();
    assert!(listed.len() > 15, "the reader of the list found only {listed:?}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wrong = Vec::new();
    for file in sources(SRC).iter().filter(|file| !is_unit_test(SRC, file)) {
        let shown = file.strip_prefix(root).unwrap_or(file).display().to_string();
        let speaks_to_it = shown.starts_with("src/store/mongo/") || shown.starts_with("src/blobs/");
        if !speaks_to_it || shown == LIST {
            continue;
        }
        let text = fs::read_to_string(file).expect("a readable source");
        let (text, _) = text.split_once("\n#[cfg(test)]").unwrap_or((&text, ""));
        for (number, line) in text.lines().enumerate() {
            let literals = line.split('"').skip(1).step_by(2);
            let names = literals.filter(|literal| {
                listed.iter().any(|name| name == literal) || literal.starts_with("stepwell_")
            });
            wrong.extend(names.map(|name| format!("{shown}:{}: {name}", number + 1)));
        }
    }
    assert!(wrong.is_empty(), "collections are named in {LIST} alone:\n{}", wrong.join("\n"));
}
