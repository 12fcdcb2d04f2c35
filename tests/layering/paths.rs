//! Reads Rust without a compiler: which paths a file names, in a `use` line or in the middle of an expression.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// One path named by one file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    /// Module of the file, without `crate::`; empty for lib.rs and main.rs.
    pub from: String,
    /// What it names: a module path of this crate, or an outside path.
    pub path: Vec<String>,
    pub inside: bool,
    pub line: usize,
    pub file: PathBuf,
}

impl fmt::Display for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = if self.inside { "crate::" } else { "" };
        write!(f, "{}:{}: {head}{}", self.file.display(), self.line, self.path.join("::"))
    }
}

/// The folders of sources, from the root of the repository.
pub const SRC: &str = "src";
pub const BENCH: &str = "bench/src";

fn folder_of_sources(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}

pub fn sources(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder_of_sources(folder)];
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

pub fn module_of(folder: &str, file: &Path) -> String {
    let folder = folder_of_sources(folder);
    let relative = file.strip_prefix(folder).expect("a file of the folder").with_extension("");
    let mut parts: Vec<&str> =
        relative.iter().map(|part| part.to_str().expect("a module name in ASCII")).collect();
    if parts.last() == Some(&"mod") || parts == ["lib"] || parts == ["main"] {
        parts.pop();
    }
    parts.join("::")
}

/// Unit tests that live in files of their own: `tests.rs`, or below a folder `tests`.
pub fn is_unit_test(folder: &str, file: &Path) -> bool {
    module_of(folder, file).split("::").any(|part| part == "tests")
}

pub fn imports_in(folder: &str) -> Vec<Import> {
    sources(folder)
        .iter()
        .filter(|file| !is_unit_test(folder, file))
        .flat_map(|file| {
            let text = fs::read_to_string(file).expect("a readable source");
            let shown = file.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(file);
            imports_of(&text, &module_of(folder, file), shown)
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
        // Who may see something is not what it needs.
        if word(0) == Some("pub") && word(1) == Some("(") {
            at += 2;
            while at < tokens.len() && tokens[at].text != ")" {
                at += 1;
            }
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
        "crate" => rest = &rest[1..],
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
        pub(in crate::seen_by) struct Seen(pub(super) u8);
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
        let hidden = ["in_a_comment", "in_a_string", "raw", "only", "crate::no", "seen_by"];
        assert!(!hidden.iter().any(|word| path.contains(word)), "{path} is not code");
    }
}
