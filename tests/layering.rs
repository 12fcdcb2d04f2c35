//! The rule of ARCHITECTURE.md about which way imports point, read off the sources themselves. A rule that no
//! tool checks will be broken.
//!
//! Every path in `src/` counts, in a `use` line or in the middle of an expression. Unit tests inside a module
//! do not: they may put a real store under whatever they test.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// One layer: the modules that belong to it, and what they may reach.
struct Layer {
    /// Module paths, longest match wins over other layers.
    modules: &'static [&'static str],
    /// Module paths of this crate it may name. A module of the same entry is always allowed.
    may_use: &'static [&'static str],
    /// Crates among `GUARDED_CRATES` it may name.
    crates: &'static [&'static str],
}

/// Crates that belong to certain layers only.
const GUARDED_CRATES: &[&str] = &[
    "axum",
    "clap",
    "comfy_table",
    "figment",
    "indicatif",
    "metrics_exporter_prometheus",
    "mongodb",
    "object_store",
    "opentelemetry",
    "opentelemetry_otlp",
    "opentelemetry_sdk",
    "prost",
    "prost_types",
    "rusqlite",
    "tonic",
    "tonic_health",
    "tonic_prost",
    "tonic_reflection",
    "tonic_types",
];

/// The backends. Of the layers above, only the composition root may name one.
const BACKENDS: &[&str] =
    &["store::sqlite", "store::mongo", "blobs::gridfs", "blobs::local", "blobs::s3"];

/// The files of the load generator that speak to a database or a storage, to compare with it or to look at it.
const MEASURED: &[&str] = &[
    "bench::artifacts::direct",
    "bench::lists::direct",
    "bench::track::direct",
    "bench::search::direct",
    "bench::watch::sampler",
];

/// What is open to everybody above the rules: time, and handles that count.
const COMMON: &[&str] = &["clock", "domain", "telemetry::metrics"];

/// What is open to those who read the log of changes.
const COMMON_AND_STORE: &[&str] = &["clock", "domain", "store", "telemetry::metrics"];

const LAYERS: &[Layer] = &[
    Layer { modules: &["domain"], may_use: &[], crates: &[] },
    Layer { modules: &["clock"], may_use: &["domain"], crates: &[] },
    // These two know each other: a log filter is checked when the configuration is loaded.
    Layer {
        modules: &["config"],
        may_use: &["domain::limits", "telemetry"],
        crates: &["clap", "figment"],
    },
    Layer {
        modules: &["telemetry"],
        may_use: &["clock", "config"],
        crates: &[
            "metrics_exporter_prometheus",
            "opentelemetry",
            "opentelemetry_otlp",
            "opentelemetry_sdk",
        ],
    },
    Layer { modules: &["store"], may_use: COMMON, crates: &[] },
    Layer {
        modules: &["store::sqlite"],
        may_use: &["clock", "domain", "store", "telemetry::metrics"],
        crates: &["rusqlite"],
    },
    Layer {
        modules: &["store::mongo"],
        may_use: &["clock", "domain", "store", "telemetry::metrics"],
        crates: &["mongodb"],
    },
    Layer { modules: &["blobs"], may_use: &["clock", "domain"], crates: &[] },
    Layer {
        modules: &["blobs::gridfs"],
        may_use: &["blobs", "clock", "store"],
        crates: &["mongodb"],
    },
    Layer { modules: &["blobs::s3"], may_use: &["blobs"], crates: &["object_store"] },
    Layer { modules: &["watch"], may_use: COMMON_AND_STORE, crates: &[] },
    Layer {
        modules: &["app"],
        may_use: &["blobs", "clock", "domain", "follow", "store", "telemetry::metrics", "watch"],
        crates: &[],
    },
    Layer { modules: &["follow"], may_use: COMMON_AND_STORE, crates: &[] },
    Layer { modules: &["proto"], may_use: &[], crates: &["prost", "prost_types", "tonic"] },
    Layer {
        modules: &["rpc"],
        may_use: &[
            "app",
            "blobs",
            "clock",
            "domain",
            "follow",
            "proto",
            "store",
            "telemetry",
            "watch",
        ],
        crates: &[
            "prost",
            "prost_types",
            "tonic",
            "tonic_health",
            "tonic_reflection",
            "tonic_types",
        ],
    },
    Layer { modules: &["http"], may_use: &["telemetry::metrics"], crates: &["axum"] },
    Layer { modules: &["shutdown"], may_use: &["config"], crates: &[] },
    // Beside the composition root, which opens the database for it to look at.
    Layer { modules: &["doctor"], may_use: &["clock", "config", "server", "store"], crates: &[] },
];

/// One path named by one file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Import {
    /// Module of the file, without `crate::`; empty for lib.rs and main.rs.
    from: String,
    /// What it names: a module path of this crate, or an outside path.
    path: Vec<String>,
    inside: bool,
    line: usize,
    file: PathBuf,
}

impl fmt::Display for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = if self.inside { "crate::" } else { "" };
        write!(f, "{}:{}: {head}{}", self.file.display(), self.line, self.path.join("::"))
    }
}

fn is_under(path: &str, module: &str) -> bool {
    path == module || path.strip_prefix(module).is_some_and(|rest| rest.starts_with("::"))
}

/// The layer of a module, by the longest prefix.
fn layer_of(module: &str) -> Option<&'static Layer> {
    LAYERS
        .iter()
        .filter_map(|layer| {
            let longest =
                layer.modules.iter().filter(|own| is_under(module, own)).map(|own| own.len());
            longest.max().map(|length| (length, layer))
        })
        .max_by_key(|(length, _)| *length)
        .map(|(_, layer)| layer)
}

/// What is wrong with an import, if anything is.
fn violation(import: &Import) -> Option<String> {
    let layer = layer_of(&import.from);
    let path = import.path.join("::");
    if !import.inside {
        let name = import.path.first()?;
        if !GUARDED_CRATES.contains(&name.as_str()) {
            return None;
        }
        if ["mongodb", "object_store", "rusqlite"].contains(&name.as_str()) {
            let allowed = MEASURED.contains(&import.from.as_str())
                || layer.is_some_and(|layer| layer.crates.contains(&name.as_str()));
            return (!allowed).then(|| "a driver above the store and the storages".to_owned());
        }
        return layer
            .is_some_and(|layer| !layer.crates.contains(&name.as_str()))
            .then(|| format!("{} does not know the crate {name}", import.from));
    }
    let names_backend = BACKENDS.iter().find(|backend| is_under(&path, backend));
    if let Some(backend) = names_backend
        && !is_under(&import.from, backend)
        && import.from != "server"
        // It measures the driver on the indexes and documents of the store.
        && !["bench::lists::direct", "bench::track::direct"].contains(&import.from.as_str())
    {
        return Some("only server.rs names a backend".to_owned());
    }
    if is_under(&import.from, "cli") {
        // `rpc::convert` only turns values into messages.
        let data = [
            "app",
            "blobs",
            "store",
            "watch",
            "rpc::artifacts",
            "rpc::executions",
            "rpc::steps",
            "rpc::ingest",
            "rpc::admin",
        ];
        if data.iter().any(|module| is_under(&path, module)) {
            return Some("the command line reaches data only through gRPC".to_owned());
        }
    }
    let layer = layer?;
    let allowed = layer.modules.iter().chain(layer.may_use).any(|module| is_under(&path, module));
    (!allowed).then(|| format!("{} does not know {path}", import.from))
}

#[test]
fn imports_point_one_way() {
    let imports = all_imports();
    let mut wrong = Vec::new();
    for import in &imports {
        if let Some(why) = violation(import) {
            wrong.push(format!("{import}: {why}"));
        }
    }
    assert!(imports.len() > 100, "the reader of `use` lines found only {} paths", imports.len());
    assert!(wrong.is_empty(), "{} imports break the rule:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn only_one_file_makes_a_status() {
    const CONSTRUCTORS: &[&str] = &[
        "aborted",
        "already_exists",
        "cancelled",
        "data_loss",
        "deadline_exceeded",
        "failed_precondition",
        "from_error",
        "internal",
        "invalid_argument",
        "new",
        "not_found",
        "out_of_range",
        "permission_denied",
        "resource_exhausted",
        "unauthenticated",
        "unavailable",
        "unimplemented",
        "unknown",
        "with_details",
        "with_details_and_metadata",
        "with_error_details",
        "with_error_details_vec",
        "with_metadata",
    ];
    let made: Vec<String> = all_imports()
        .into_iter()
        .filter(|import| import.from != "rpc::status")
        // Clients: what they make never leaves them.
        .filter(|import| !is_under(&import.from, "cli") && !is_under(&import.from, "bench"))
        .filter(|import| match import.path.as_slice() {
            [.., status, constructor] => {
                status == "Status" && CONSTRUCTORS.contains(&constructor.as_str())
            }
            _ => false,
        })
        .map(|import| import.to_string())
        .collect();
    assert!(made.is_empty(), "only rpc/status.rs makes a Status:\n{}", made.join("\n"));
}

#[test]
fn every_module_says_what_it_is_for() {
    let silent: Vec<String> = sources()
        .into_iter()
        .filter(|file| !is_unit_test(file))
        .filter(|file| !fs::read_to_string(file).expect("a readable source").starts_with("//!"))
        .map(|file| file.display().to_string())
        .collect();
    assert!(silent.is_empty(), "files that do not begin with `//!`:\n{}", silent.join("\n"));
}

#[test]
fn every_layer_of_the_rule_exists() {
    let modules: BTreeSet<String> = sources().iter().map(|file| module_of(file)).collect();
    for layer in LAYERS {
        for module in layer.modules.iter().chain(layer.may_use) {
            assert!(
                modules.iter().any(|existing| is_under(existing, module)),
                "the rule names {module}, which is not in src/"
            );
        }
    }
}

#[test]
fn the_reader_understands_rust() {
    let text = r##"
        //! crate::in_a_comment::X
        use crate::a::{self, b::C, d::{E, F as G}};
        use super::sibling::Thing;
        use std::{fmt, io};
        /* use crate::no; /* nested */ */
        const S: &str = "crate::in_a_string::X"; const R: &str = r#"crate::raw::"X""#;
        fn f<'a>(x: &'a str) -> char { tonic::Status::new(1, 2); crate::deep::call::<u8>(x); 'c' }
        #[cfg(test)]
        mod tests { use crate::only::in_tests; fn g() { let x = { 1 }; } }
        mod inner { use super::beside; fn f() { if x { y() } } }
        use crate::after;
    "##;
    let found: BTreeSet<String> = imports_of(text, "here::file", Path::new("x.rs"))
        .iter()
        .map(|import| {
            let head = if import.inside { "crate::" } else { "" };
            format!("{head}{}", import.path.join("::"))
        })
        .collect();
    let expected = [
        "crate::a",
        "crate::a::b::C",
        "crate::a::d::E",
        "crate::a::d::F",
        "crate::after",
        "crate::deep::call",
        "crate::here::file::beside",
        "crate::here::sibling::Thing",
        "std::fmt",
        "std::io",
        "tonic::Status::new",
    ];
    for path in expected {
        assert!(found.contains(path), "{path} was not found in {found:?}");
    }
    for path in &found {
        let hidden = ["in_a_comment", "in_a_string", "raw", "only", "crate::no"];
        assert!(!hidden.iter().any(|word| path.contains(word)), "{path} is not code");
    }
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![src()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("a folder entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn module_of(file: &Path) -> String {
    let relative = file.strip_prefix(src()).expect("a file of src/").with_extension("");
    let mut parts: Vec<&str> =
        relative.iter().map(|part| part.to_str().expect("a module name in ASCII")).collect();
    if parts.last() == Some(&"mod") || parts == ["lib"] || parts == ["main"] {
        parts.pop();
    }
    parts.join("::")
}

/// Unit tests that live in files of their own: `tests.rs`, or below a folder `tests`.
fn is_unit_test(file: &Path) -> bool {
    module_of(file).split("::").any(|part| part == "tests")
}

fn all_imports() -> Vec<Import> {
    sources()
        .iter()
        .filter(|file| !is_unit_test(file))
        .flat_map(|file| {
            let text = fs::read_to_string(file).expect("a readable source");
            let shown = file.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(file);
            imports_of(&text, &module_of(file), shown)
        })
        .collect()
}

/// Every path that a source names, unit tests left out.
fn imports_of(text: &str, module: &str, file: &Path) -> Vec<Import> {
    let tokens = without_unit_tests(tokens(text));
    let mut imports = Vec::new();
    // Modules written inside the file, each with the depth of braces at which it ends.
    let mut inner: Vec<(String, usize)> = Vec::new();
    let (mut at, mut depth) = (0, 0);
    while at < tokens.len() {
        let word = |offset: usize| tokens.get(at + offset).map(|token| token.text.as_str());
        if word(0) == Some("mod") && word(2) == Some("{") {
            inner.push((tokens[at + 1].text.clone(), depth));
            at += 2;
            continue;
        }
        let starts_path = tokens[at].is_name()
            && (at == 0 || !matches!(tokens[at - 1].text.as_str(), "::" | "." | "'"));
        if starts_path {
            let mut module: Vec<&str> =
                module.split("::").filter(|part| !part.is_empty()).collect();
            module.extend(inner.iter().map(|(name, _)| name.as_str()));
            let mut paths = Vec::new();
            at = read_tree(&tokens, at, &[], &mut paths);
            let module = module.join("::");
            imports.extend(
                paths.into_iter().filter_map(|(path, line)| resolve(path, line, &module, file)),
            );
            continue;
        }
        match tokens[at].text.as_str() {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                inner.pop_if(|(_, ends)| *ends == depth);
            }
            _ => {}
        }
        at += 1;
    }
    imports
}

/// Reads `a::b::{c, d::e}` from `at` and returns where it ends.
fn read_tree(
    tokens: &[Token],
    mut at: usize,
    prefix: &[String],
    paths: &mut Vec<(Vec<String>, usize)>,
) -> usize {
    let mut path = prefix.to_vec();
    let line = tokens[at].line;
    loop {
        match tokens.get(at) {
            Some(token) if token.is_name() => {
                if token.text != "self" || path.is_empty() {
                    path.push(token.text.clone());
                }
                at += 1;
            }
            Some(token) if token.text == "*" && at > 0 && tokens[at - 1].text == "::" => at += 1,
            Some(token) if token.text == "{" && at > 0 && tokens[at - 1].text == "::" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token.text != "}") {
                    let begins = tokens[at].is_name() || tokens[at].text == "*";
                    at = if begins { read_tree(tokens, at, &path, paths) } else { at + 1 };
                }
                return at + 1;
            }
            _ => break,
        }
        if tokens.get(at).is_some_and(|token| token.text == "::")
            && tokens.get(at + 1).is_some_and(|token| token.text != "<")
        {
            at += 1;
        } else {
            break;
        }
    }
    // The new name of `as` is not a path of its own.
    if tokens.get(at).is_some_and(|token| token.text == "as") {
        at += 2;
    }
    paths.push((path, line));
    at
}

fn resolve(path: Vec<String>, line: usize, module: &str, file: &Path) -> Option<Import> {
    let here = || module.split("::").filter(|part| !part.is_empty()).map(str::to_owned);
    let mut rest = path.as_slice();
    let mut inside = true;
    let mut full: Vec<String> = Vec::new();
    match rest.first()?.as_str() {
        "crate" | "stepwell" => rest = &rest[1..],
        "self" => {
            full = here().collect();
            rest = &rest[1..];
        }
        "super" => {
            full = here().collect();
            while rest.first().is_some_and(|part| part == "super") {
                full.pop();
                rest = &rest[1..];
            }
        }
        // A lone word is a local name; only paths can leave the module.
        _ if rest.len() < 2 => return None,
        _ => inside = false,
    }
    full.extend_from_slice(rest);
    if full.is_empty() {
        // The `crate` of `pub(crate)`.
        return None;
    }
    Some(Import { from: module.to_owned(), path: full, inside, line, file: file.to_owned() })
}

#[derive(Debug, Clone)]
struct Token {
    text: String,
    line: usize,
}

impl Token {
    fn is_name(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphabetic() || c == '_') && self.text != "as"
    }
}

/// Names and punctuation; comments, strings and numbers are dropped.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    let mut push = |text: String, line: usize| tokens.push(Token { text, line });
    while at < chars.len() {
        let next = chars.get(at + 1).copied();
        match chars[at] {
            '\n' => {
                line += 1;
                at += 1;
            }
            '/' if next == Some('/') => {
                while at < chars.len() && chars[at] != '\n' {
                    at += 1;
                }
            }
            '/' if next == Some('*') => {
                let mut depth = 0;
                loop {
                    match (chars.get(at), chars.get(at + 1)) {
                        (Some('/'), Some('*')) => {
                            depth += 1;
                            at += 2;
                        }
                        (Some('*'), Some('/')) => {
                            depth -= 1;
                            at += 2;
                        }
                        (Some(c), _) => {
                            line += usize::from(*c == '\n');
                            at += 1;
                        }
                        (None, _) => break,
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            '"' => {
                at += 1;
                while at < chars.len() && chars[at] != '"' {
                    line += usize::from(chars[at] == '\n');
                    // The character after a backslash may be the end of a line.
                    if chars[at] == '\\' {
                        at += 1;
                        line += usize::from(chars.get(at) == Some(&'\n'));
                    }
                    at += 1;
                }
                at += 1;
            }
            'r' if matches!(next, Some('"' | '#')) && is_raw_string(&chars, at) => {
                let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
                at += hashes + 2;
                let ends = |at: usize| {
                    chars[at] == '"'
                        && chars[at + 1..].iter().take(hashes).filter(|c| **c == '#').count()
                            == hashes
                };
                while at < chars.len() && !ends(at) {
                    line += usize::from(chars[at] == '\n');
                    at += 1;
                }
                at += hashes + 1;
            }
            '\'' => {
                // A character literal has its closing quote right behind; a lifetime has none.
                if next == Some('\\') {
                    at += 3;
                    while at < chars.len() && chars[at] != '\'' {
                        at += 1;
                    }
                    at += 1;
                } else if chars.get(at + 2) == Some(&'\'') {
                    at += 3;
                } else {
                    push("'".to_owned(), line);
                    at += 1;
                }
            }
            c if c.is_alphanumeric() || c == '_' => {
                let start = at;
                while at < chars.len() && (chars[at].is_alphanumeric() || chars[at] == '_') {
                    at += 1;
                }
                push(chars[start..at].iter().collect(), line);
            }
            ':' if next == Some(':') => {
                push("::".to_owned(), line);
                at += 2;
            }
            c if c.is_whitespace() => at += 1,
            c => {
                push(c.to_string(), line);
                at += 1;
            }
        }
    }
    tokens
}

fn is_raw_string(chars: &[char], at: usize) -> bool {
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    chars.get(at + 1 + hashes) == Some(&'"')
}

/// Drops every `#[cfg(test)] mod … { … }`.
fn without_unit_tests(tokens: Vec<Token>) -> Vec<Token> {
    let mark = ["#", "[", "cfg", "(", "test", ")", "]", "mod"];
    let mut kept = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        let here = tokens[at..].iter().take(mark.len()).map(|token| token.text.as_str());
        if !here.eq(mark) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        let mut depth = 0;
        while at < tokens.len() {
            match tokens[at].text.as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            let ended = match tokens[at].text.as_str() {
                "}" => depth == 0,
                ";" => depth == 0,
                _ => false,
            };
            at += 1;
            if ended {
                break;
            }
        }
    }
    kept
}
