//! The documents say what the code says: tables in the README and the list of error reasons.
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

/// Compares, or writes, what stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`.
fn table(name: &str, expected: &str) {
    let readme = read("README.md");
    let (begin, end) = (format!("<!-- {name}:begin -->\n"), format!("<!-- {name}:end -->"));
    let (head, rest) = readme.split_once(&begin).expect("the table's beginning is marked");
    let (found, tail) = rest.split_once(&end).expect("the table's end is marked");
    if std::env::var_os("UPDATE_README").is_some() {
        let text = format!("{head}{begin}{expected}{end}{tail}");
        fs::write(file("README.md"), text).expect("the README can be written");
        return;
    }
    assert_eq!(found, expected, "run `UPDATE_README=1 cargo test --test readme`");
}

#[test]
fn tables_are_those_of_the_code() {
    table("settings", &stepwell::config::reference_table());
    table("metrics", &stepwell::telemetry::metrics::reference_table());
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
