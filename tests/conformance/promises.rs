//! The table of promises in `docs/` against the registry of cases: a promise without a case fails the run, and
//! so does a name in the table that is no case.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::CASES;

/// A row of the table: a promise and the tests that show it.
struct Row {
    id: String,
    tests: Vec<String>,
}

fn rows() -> Vec<Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/promises.md");
    let table = std::fs::read_to_string(path).expect("docs/promises.md can be read");
    table
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|line| {
            let (id, rest) = line.split_once("` |").expect("a promise has an id");
            let (_, tests) =
                rest.trim_end_matches([' ', '|']).rsplit_once('|').expect("three columns");
            let tests = tests.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            Row { id: id.to_owned(), tests }
        })
        .collect()
}

/// Names of all test functions outside of this suite, as `file::function`.
fn other_tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("tests"), root.join("src")];
    let mut names = BTreeSet::new();
    while let Some(path) = files.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).expect("a folder of the repository");
            files.extend(entries.map(|entry| entry.expect("an entry").path()));
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let file = path.strip_prefix(root).expect("inside").with_extension("");
        let module = file.to_string_lossy().replace("tests/", "").replace('/', "::");
        let text = std::fs::read_to_string(&path).expect("a source file");
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if is_test && let Some((_, rest)) = line.split_once("fn ") {
                let function = rest.split('(').next().expect("a name");
                names.insert(format!("{module}::{function}"));
                is_test = false;
            }
        }
    }
    names
}

#[test]
fn every_promise_has_a_case() {
    let rows = rows();
    assert!(rows.len() > 50, "the table of promises is short of rows");
    let mut registered: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for case in CASES {
        for promise in case.promises {
            registered.entry(promise).or_default().insert(case.name);
        }
    }
    let others = other_tests();
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for Row { id, tests } in &rows {
        if !seen.insert(id.as_str()) {
            wrong.push(format!("{id} is in the table twice"));
        }
        if tests.is_empty() {
            wrong.push(format!("{id} has no case"));
        }
        let expected = registered.remove(id.as_str()).unwrap_or_default();
        let named: BTreeSet<&str> =
            tests.iter().map(String::as_str).filter(|test| !others.contains(*test)).collect();
        for test in named.difference(&expected) {
            wrong.push(format!("{id} names {test}, which is no test, or is not registered for it"));
        }
        for test in expected.difference(&named) {
            wrong.push(format!("{id} does not name {test}, which is registered for it"));
        }
    }
    for promise in registered.keys() {
        wrong.push(format!("{promise} has cases but is not in the table"));
    }
    assert!(wrong.is_empty(), "docs/promises.md:\n{}", wrong.join("\n"));
}
