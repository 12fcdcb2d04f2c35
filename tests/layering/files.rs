//! Files by themselves: how large each is, and that none of them needs another one that needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::is_under;
use super::paths::{BENCH, SRC, imports_in, is_unit_test, module_of, sources};

/// Lines of a file at most.
const LINES: usize = 600;

/// Files that are longer, until somebody divides them.
const LONG: &[(&str, &str)] = &[
    ("src/store/sqlite/tests.rs", "unit tests of the whole backend"),
    ("src/watch/tests/mod.rs", "one harness and all cases of watching"),
    ("tests/artifacts.rs", "cases, to be divided by what they are about"),
    ("tests/cli.rs", "cases, to be divided by what they are about"),
    ("tests/conformance/analytics.rs", "cases, to be divided by what they are about"),
    ("tests/conformance/artifacts.rs", "cases, to be divided by what they are about"),
    ("tests/conformance/audit.rs", "cases, to be divided by what they are about"),
    ("tests/conformance/configurations.rs", "cases, to be divided by what they are about"),
    ("tests/conformance/executions.rs", "cases, to be divided by what they are about"),
    ("tests/conformance/ingest.rs", "cases, to be divided by what they are about"),
    ("tests/conformance/metrics.rs", "cases, to be divided by what they are about"),
    ("tests/conformance/notifications.rs", "cases, to be divided by what they are about"),
    ("tests/conformance/steps.rs", "cases, to be divided by what they are about"),
    ("tests/conformance/watching.rs", "cases, to be divided by what they are about"),
    ("tests/mongo_store.rs", "cases, to be divided by what they are about"),
    ("tests/mongodb_documents.rs", "cases, to be divided by what they are about"),
];

/// Circles that are left, by the modules within which they are.
const CIRCLES: &[(&[&str], &str)] = &[
    (&["config"], "one struct has what all parts of the configuration read and check"),
    (&["store::sqlite"], "one struct has what all parts of the backend keep"),
];

#[test]
fn every_module_says_what_it_is_for() {
    let silent: Vec<String> = [SRC, BENCH]
        .into_iter()
        .flat_map(|folder| sources(folder).into_iter().map(move |file| (folder, file)))
        .filter(|(folder, file)| !is_unit_test(folder, file))
        .filter(|(_, file)| {
            !fs::read_to_string(file).expect("a readable source").starts_with("//!")
        })
        .map(|(_, file)| file.display().to_string())
        .collect();
    assert!(silent.is_empty(), "files that do not begin with `//!`:\n{}", silent.join("\n"));
}

#[test]
fn no_file_is_too_long() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = [SRC, BENCH, "tests"].into_iter().flat_map(sources);
    let mut wrong = Vec::new();
    for file in files {
        let lines = fs::read_to_string(&file).expect("a readable source").lines().count();
        let shown = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        let known = LONG.iter().any(|(long, _)| *long == shown);
        if lines > LINES && !known {
            wrong.push(format!(
                "{shown} has {lines} lines, and may have {LINES}: divide it by what its parts do"
            ));
        }
        if lines <= LINES && known {
            wrong.push(format!("{shown} is short enough by now: take it off the list"));
        }
    }
    let gone = LONG.iter().filter(|(long, _)| !root.join(long).exists());
    wrong.extend(gone.map(|(long, _)| format!("{long} is gone: take it off the list")));
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn no_files_go_round_in_a_circle() {
    let circles = circles(&graph());
    let is_within = |circle: &[String], modules: &[&str]| {
        circle.iter().all(|file| modules.iter().any(|module| is_under(file, module)))
    };
    let mut wrong: Vec<String> = circles
        .iter()
        .filter(|circle| !CIRCLES.iter().any(|(modules, _)| is_within(circle, modules)))
        .map(|circle| format!("these files need each other: {}", circle.join(", ")))
        .collect();
    let over = CIRCLES
        .iter()
        .filter(|(modules, _)| !circles.iter().any(|circle| is_within(circle, modules)));
    wrong.extend(
        over.map(|(modules, _)| format!("no circle is left in {modules:?}: take it off the list")),
    );
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn circles_are_found() {
    let edges = |all: &[(&str, &[&str])]| -> Graph {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        all.iter().map(|(from, to)| ((*from).to_owned(), owned(to))).collect()
    };
    let none = edges(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])]);
    assert!(circles(&none).is_empty());
    let two =
        edges(&[("a", &["b"]), ("b", &["c", "d"]), ("c", &["a"]), ("d", &["e"]), ("e", &["d"])]);
    assert_eq!(circles(&two), [vec!["a", "b", "c"], vec!["d", "e"]]);
}

/// Which files each file names, by their modules.
type Graph = BTreeMap<String, BTreeSet<String>>;

fn graph() -> Graph {
    let files: BTreeSet<String> = sources(SRC)
        .iter()
        .filter(|file| !is_unit_test(SRC, file))
        .map(|file| module_of(SRC, file))
        .filter(|module| !module.is_empty())
        .collect();
    let mut graph: Graph = files.iter().map(|file| (file.clone(), BTreeSet::new())).collect();
    for import in imports_in(SRC) {
        let path = match import.inside {
            true => import.path,
            // A child of the module may be named without `self::`.
            false => {
                let mut path: Vec<String> = import.from.split("::").map(str::to_owned).collect();
                path.extend(import.path);
                path
            }
        };
        let longest = (1..=path.len()).rev().map(|length| path[..length].join("::"));
        let to = longest.into_iter().find(|module| files.contains(module));
        if let (Some(to), Some(from)) = (to, graph.get_mut(&import.from))
            && to != import.from
        {
            from.insert(to);
        }
    }
    graph
}

/// Files that can be reached from each other, sorted.
fn circles(graph: &Graph) -> Vec<Vec<String>> {
    let reached: BTreeMap<&str, BTreeSet<&str>> =
        graph.keys().map(|file| (file.as_str(), reachable(graph, file))).collect();
    let mut circles = BTreeSet::new();
    for (file, from_it) in &reached {
        if from_it.contains(file) {
            let back = from_it.iter().filter(|other| reached[*other].contains(file));
            circles.insert(back.map(|other| (*other).to_owned()).collect::<Vec<String>>());
        }
    }
    circles.into_iter().collect()
}

fn reachable<'a>(graph: &'a Graph, from: &str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&str> = graph[from].iter().map(String::as_str).collect();
    while let Some(file) = next.pop() {
        if reached.insert(file) {
            next.extend(graph[file].iter().map(String::as_str));
        }
    }
    reached
}
