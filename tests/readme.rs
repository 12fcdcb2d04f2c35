//! The documents say what the code says: the tables of settings and metrics, the list of error reasons, and the tree
//! of the sources.
//!
//! With `UPDATE_README=1` in the environment the tables are written instead of compared.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(file(name)).expect("a file of the repository")
}

/// Compares, or writes, what stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->` in a document.
fn table(document: &str, name: &str, expected: &str) {
    let text = read(document);
    let (begin, end) = (format!("<!-- {name}:begin -->\n"), format!("<!-- {name}:end -->"));
    let (head, rest) = text.split_once(&begin).expect("the table's beginning is marked");
    let (found, tail) = rest.split_once(&end).expect("the table's end is marked");
    if std::env::var_os("UPDATE_README").is_some() {
        let text = format!("{head}{begin}{expected}{end}{tail}");
        fs::write(file(document), text).expect("the document can be written");
        return;
    }
    assert_eq!(found, expected, "run `UPDATE_README=1 cargo test --test readme`");
}

#[test]
fn tables_are_those_of_the_code() {
    table("docs/settings.md", "settings", &stepwell::config::reference_table());
    table("docs/operating.md", "metrics", &stepwell::telemetry::metrics::reference_table());
}

#[test]
fn every_error_reason_has_its_section() {
    let source = read("src/rpc/status.rs");
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    let reasons: BTreeSet<&str> = code
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| text.len() > 3 && text.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .collect();
    assert!(reasons.len() > 10, "{reasons:?}");
    let errors = read("docs/errors.md");
    let documented: BTreeSet<&str> =
        errors.lines().filter_map(|line| line.strip_prefix("## ")).map(str::trim).collect();
    assert_eq!(documented, reasons);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut documents = vec!["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
        .into_iter()
        .map(file)
        .collect::<Vec<_>>();
    let docs = fs::read_dir(file("docs")).expect("a folder of documents");
    documents.extend(docs.map(|entry| entry.expect("a folder entry").path()));
    for document in documents {
        let text = fs::read_to_string(&document).expect("a readable document");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let folder = document.parent().expect("a document is in a folder");
            assert!(folder.join(target).exists(), "{}: {link}", document.display());
        }
    }
}

/// The tree in ARCHITECTURE.md: an entry of `src/` is indented by two spaces, and what is in a folder by four. Names
/// stand before the first two spaces in a row, several of one purpose separated by commas; a folder ends in `/`, a
/// file is named without its `.rs`.
fn tree() -> BTreeSet<String> {
    let text = read("ARCHITECTURE.md");
    let from_src = text.split_once("\nsrc/\n").expect("the tree has src/").1;
    let mut folder = String::new();
    let mut named = BTreeSet::new();
    for line in from_src.lines().take_while(|line| line.starts_with(' ')) {
        let entry = line.trim_start();
        let names = entry.split("  ").next().unwrap_or_default().split(", ");
        match line.len() - entry.len() {
            2 => {
                for name in names {
                    named.insert(name.to_owned());
                    folder = name.to_owned();
                }
            }
            4 => named.extend(names.map(|name| format!("{folder}{name}"))),
            // Goes on with what the line before says.
            _ => {}
        }
    }
    named
}

/// What is in a folder, named as the tree names it.
fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a readable folder").map(|entry| {
        let path = entry.expect("a folder entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name in ASCII");
        match name.strip_suffix(".rs") {
            Some(file) => file.to_owned(),
            None => format!("{name}/"),
        }
    });
    entries.filter(|name| !["mod", "tests", "tests/"].contains(&name.as_str())).collect()
}

#[test]
fn the_tree_in_the_architecture_is_that_of_the_sources() {
    let mut sources = BTreeSet::new();
    for entry in entries(&file("src")) {
        if entry.ends_with('/') {
            let inside = entries(&file("src").join(&entry));
            sources.extend(inside.into_iter().map(|name| format!("{entry}{name}")));
        }
        sources.insert(entry);
    }
    let tree = tree();
    let left_out: Vec<_> = sources.difference(&tree).collect();
    let gone: Vec<_> = tree.difference(&sources).collect();
    assert!(
        left_out.is_empty() && gone.is_empty(),
        "the tree in ARCHITECTURE.md leaves out {left_out:?} and names {gone:?}, which are not in src/"
    );
}
