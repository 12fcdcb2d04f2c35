//! What search finds in records of real runs, against a look at the raw documents that knows nothing of terms: the
//! needles of a query stand there as they are, with no letter or digit beside them. Texts of other languages, which
//! those runs do not have, are made here. States recall and precision; both must be at least 0.9.

use std::io::Read as _;
use std::path::Path;

use stepwell::domain::search::query::Query;
use stepwell::domain::search::score::matched;
use stepwell::domain::search::{terms, text};

const REAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data");

/// What is asked, and what must be found. `real_runs`: what must stand in a text, in any case: all of the needles,
/// each in one of its spellings. `other_languages`: which of `texts` a query must find.
const QUERIES: &str = include_str!("search_queries.json");

#[derive(serde::Deserialize)]
struct Queries {
    real_runs: Vec<OfRealRuns>,
    texts: Vec<String>,
    other_languages: Vec<OfTexts>,
}

#[derive(serde::Deserialize)]
struct OfRealRuns {
    query: String,
    stands: Vec<Vec<String>>,
}

#[derive(serde::Deserialize)]
struct OfTexts {
    query: String,
    texts: Vec<usize>,
}

fn queries() -> Queries {
    serde_json::from_str(QUERIES).expect("the queries can be read")
}

/// What stands in a value: its strings, keys and numbers, a line each.
fn raw(value: &serde_json::Value, into: &mut String) {
    match value {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                into.push_str(key);
                into.push('\n');
                raw(value, into);
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| raw(value, into)),
        serde_json::Value::String(text) => {
            into.push_str(text);
            into.push('\n');
        }
        other => into.push_str(&format!("{other}\n")),
    }
}

fn stands(text: &str, needle: &str) -> bool {
    let needle = needle.to_lowercase();
    text.match_indices(&needle).any(|(at, _)| {
        let beside = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        !beside(text[..at].chars().next_back()) && !beside(text[at + needle.len()..].chars().next())
    })
}

fn finds(query: &Query, text: &str, terms: &[String]) -> bool {
    // As a store does: only texts that have the terms are looked at.
    let candidate = query.wanted.iter().all(|item| {
        item.needs().iter().any(|way| {
            way.iter().all(|term| match term.prefix {
                true => terms.iter().any(|known| known.starts_with(&term.text)),
                false => terms.binary_search(&term.text).is_ok(),
            })
        })
    });
    candidate && matched(query, &vec![1; query.wanted.len()], text).is_some()
}

#[derive(Default)]
struct Quality {
    expected: usize,
    found: usize,
    right: usize,
}

impl Quality {
    fn add(&mut self, expected: &[usize], found: &[usize]) {
        self.expected += expected.len();
        self.found += found.len();
        self.right += found.iter().filter(|number| expected.contains(number)).count();
    }

    fn check(&self, what: &str) {
        let recall = self.right as f64 / self.expected.max(1) as f64;
        let precision = self.right as f64 / self.found.max(1) as f64;
        println!(
            "{what}: recall {recall:.3}, precision {precision:.3}, {} expected",
            self.expected
        );
        assert!(recall >= 0.9 && precision >= 0.9, "{what}: {recall} {precision}");
    }
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let bytes = std::fs::read(path).expect("the file can be read");
    let mut text = String::new();
    match path.extension().is_some_and(|extension| extension == "gz") {
        true => flate2::read::MultiGzDecoder::new(bytes.as_slice()).read_to_string(&mut text),
        false => bytes.as_slice().read_to_string(&mut text),
    }
    .expect("it is text");
    text.lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect()
}

#[test]
fn other_languages_are_found() {
    let mut quality = Quality::default();
    let Queries { texts, other_languages, .. } = queries();
    for OfTexts { query: asked, texts: expected } in other_languages {
        let query = Query::parse(&asked).expect("a query");
        let all = 0..texts.len();
        let found: Vec<usize> =
            all.filter(|i| finds(&query, &texts[*i], &terms(&texts[*i]).0)).collect();
        if found != expected {
            println!("{asked}: {found:?} instead of {expected:?}");
        }
        quality.add(&expected, &found);
    }
    quality.check("other languages");
}

#[test]
fn records_of_real_runs_are_found() {
    if !Path::new(REAL).exists() {
        println!("skipped: there are no records of real runs beside the repository");
        return;
    }
    let mut texts = Vec::new();
    for file in ["agents/execution_steps.jsonl.gz", "orchestrators/execution_steps.jsonl"] {
        for document in lines(&Path::new(REAL).join(file)) {
            for field in ["output", "error"] {
                let Some(value) = document.get(field).filter(|value| !value.is_null()) else {
                    continue;
                };
                let mut look = String::new();
                raw(value, &mut look);
                let value = bson::Bson::try_from(value.clone()).expect("extended JSON");
                let text = text::of_value(&value).text;
                let (terms, _) = terms(&text);
                texts.push((look.to_lowercase(), text, terms));
            }
        }
    }
    let mut quality = Quality::default();
    for OfRealRuns { query: asked, stands: needles } in queries().real_runs {
        let query = Query::parse(&asked).expect("a query");
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        for (number, (look, text, terms)) in texts.iter().enumerate() {
            if needles.iter().all(|one| one.iter().any(|needle| stands(look, needle))) {
                expected.push(number);
            }
            if finds(&query, text, terms) {
                found.push(number);
            }
        }
        assert!(!expected.is_empty(), "{asked} is in no record");
        let right = found.iter().filter(|number| expected.contains(number)).count();
        println!("{asked}: {} expected, {} found, {right} right", expected.len(), found.len());
        quality.add(&expected, &found);
    }
    quality.check("real runs");
}
