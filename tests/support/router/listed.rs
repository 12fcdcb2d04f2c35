//! The queries that go to all shards, as docs/sharding.md lists them: a row has the command and the collection, the fields that
//! its filters name, what it is for, and what it costs.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

pub const PAGE: &str = "docs/sharding.md";

/// A kind of query that goes to all shards.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scattered {
    /// The command and the collection.
    pub what: String,
    /// The fields that its filter names, each by the first part of its path.
    pub fields: BTreeSet<String>,
}

impl fmt::Display for Scattered {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields: Vec<&str> = self.fields.iter().map(String::as_str).collect();
        write!(out, "{}: {}", self.what, fields.join(" "))
    }
}

impl Scattered {
    /// As it was printed.
    pub fn read(line: &str) -> Option<Scattered> {
        let (what, fields) = line.split_once(':')?;
        let fields = fields.split_whitespace().map(str::to_owned).collect();
        Some(Scattered { what: what.to_owned(), fields })
    }
}

/// A row of the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub what: String,
    /// All that filters of such queries name; each names some of them.
    pub fields: BTreeSet<String>,
    pub purpose: String,
    pub cost: String,
}

impl Listed {
    /// Whether a query is one of these. That of a row without fields has no filter.
    pub fn has(&self, scattered: &Scattered) -> bool {
        self.what == scattered.what
            && self.fields.is_superset(&scattered.fields)
            && self.fields.is_empty() == scattered.fields.is_empty()
    }
}

/// The rows of the page.
pub fn read() -> Vec<Listed> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = std::fs::read_to_string(path).expect("the page can be read");
    rows(&page)
}

/// Rows whose first cell begins with a command and its collection.
pub fn rows(page: &str) -> Vec<Listed> {
    let mut rows = Vec::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let mut words = cells[0].split('`').skip(1).step_by(2);
        let what = words.next().unwrap_or_default();
        let Some((command, _)) = what.split_once(' ') else { continue };
        if !["find", "aggregate", "count", "distinct", "update", "delete"].contains(&command) {
            continue;
        }
        let [_, purpose, cost] = cells[..] else { panic!("three cells: {line}") };
        rows.push(Listed {
            what: what.to_owned(),
            fields: words.map(str::to_owned).collect(),
            purpose: purpose.to_owned(),
            cost: cost.to_owned(),
        });
    }
    rows
}

/// What the page says and what was seen do not agree in, in words.
pub fn differences(listed: &[Listed], seen: &[Scattered]) -> Vec<String> {
    let lacks = seen.iter().filter(|one| !listed.iter().any(|listed| listed.has(one)));
    let mut differences: Vec<String> =
        lacks.map(|one| format!("went to all shards and is not listed: {one}")).collect();
    for row in listed {
        let these: Vec<&Scattered> = seen.iter().filter(|one| row.has(one)).collect();
        if these.is_empty() {
            differences.push(format!("is listed and did not go to all shards: {}", row.what));
            continue;
        }
        let named: BTreeSet<String> = these.iter().flat_map(|one| one.fields.clone()).collect();
        let rest: Vec<&String> = row.fields.difference(&named).collect();
        if !rest.is_empty() {
            differences.push(format!("no filter of {} names {rest:?}", row.what));
        }
    }
    differences
}
