//! Who may do what to which apps, as values: roles, the apps that a grant names, and the one predicate that decides
//! whether a record is in somebody's scope.

use std::fmt;
use std::sync::Arc;

use super::{Configuration, Execution, rollup::Group};

/// Apps that one grant names at most.
pub const APPS_PER_GRANT: usize = 50;
/// Grants of one caller at most.
pub const GRANTS: usize = 50;
/// The longest pattern, in bytes.
const PATTERN_BYTES: usize = 1024;

/// What a grant allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Reports runs.
    Reporter,
    /// Reads them.
    Viewer,
    /// Both, and changes what is there.
    Editor,
    /// Looks after the server.
    Operator,
    /// Sees who did what, and which keys there are.
    Auditor,
    /// Everything.
    Admin,
}

impl Role {
    pub const ALL: [Role; 6] =
        [Role::Reporter, Role::Viewer, Role::Editor, Role::Operator, Role::Auditor, Role::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Reporter => "reporter",
            Role::Viewer => "viewer",
            Role::Editor => "editor",
            Role::Operator => "operator",
            Role::Auditor => "auditor",
            Role::Admin => "admin",
        }
    }

    pub fn parse(word: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.as_str() == word)
    }
}

/// A role for some apps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub role: Role,
    pub apps: Vec<AppPattern>,
    /// Whether what is encrypted is shown in clear.
    pub reveal: bool,
}

impl Grant {
    /// All apps.
    pub fn everywhere(role: Role, reveal: bool) -> Grant {
        Grant { role, apps: vec![AppPattern::any()], reveal }
    }
}

/// A name, exact or by its beginning. Compared byte by byte.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Name {
    Exact(String),
    Beginning(String),
}

/// The number of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Number {
    /// Only apps without one.
    None,
    Exact(i32),
    Any,
}

/// A part of an app: by its number, or by its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Part {
    Any,
    Number(i32),
    Name(String),
}

/// `NAME[#ID][/PART]`, or `*` for everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AppPattern {
    pub name: Name,
    pub number: Number,
    pub part: Part,
}

/// Whose record something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct App<'a> {
    pub name: &'a str,
    pub number: Option<i32>,
    pub part: Option<i32>,
    pub part_name: Option<&'a str>,
}

impl<'a> App<'a> {
    pub fn of(execution: &'a Execution) -> App<'a> {
        App {
            name: &execution.app_name,
            number: execution.app_id,
            part: execution.sub_app_id,
            part_name: execution.sub_app_name.as_deref(),
        }
    }

    pub fn of_configuration(configuration: &'a Configuration) -> App<'a> {
        App {
            name: &configuration.app_name,
            number: configuration.app_id,
            part: configuration.sub_app_id,
            part_name: configuration.sub_app_name.as_deref(),
        }
    }

    pub fn of_group(group: &'a Group) -> App<'a> {
        App {
            name: &group.app_name,
            number: group.app_id,
            part: group.sub_app_id,
            part_name: group.sub_app_name.as_deref(),
        }
    }
}

impl AppPattern {
    /// `*`.
    pub fn any() -> AppPattern {
        AppPattern { name: Name::Beginning(String::new()), number: Number::Any, part: Part::Any }
    }

    fn is_any(&self) -> bool {
        *self == AppPattern::any()
    }

    /// Reads a pattern; else what is wrong with it, as the end of a sentence about it.
    pub fn parse(text: &str) -> Result<AppPattern, &'static str> {
        if text.len() > PATTERN_BYTES {
            return Err("is longer than 1024 bytes");
        }
        if text == "*" {
            return Ok(AppPattern::any());
        }
        let mut chars = text.chars().peekable();
        let (mut name, mut beginning) = (String::new(), false);
        while let Some(c) = chars.next_if(|c| !matches!(c, '#' | '/')) {
            if beginning {
                return Err(
                    "has a * that is not at the end of the name (write \\* for the character)",
                );
            }
            match c {
                '*' => beginning = true,
                '\\' => name.push(escaped(chars.next())?),
                c => name.push(c),
            }
        }
        let mut number = Number::None;
        if chars.next_if_eq(&'#').is_some() {
            let mut digits = String::new();
            while let Some(c) = chars.next_if(|c| *c != '/') {
                digits.push(c);
            }
            number = match digits.as_str() {
                "*" => Number::Any,
                digits => {
                    Number::Exact(integer(digits).ok_or("needs a whole number or * after #")?)
                }
            };
        }
        let mut part = Part::Any;
        if chars.next_if_eq(&'/').is_some() {
            let (mut text, mut plain) = (String::new(), true);
            while let Some(c) = chars.next() {
                match c {
                    '#' | '/' | '*' => {
                        return Err(
                            "has an unescaped #, / or * in the part (write a \\ before it)",
                        );
                    }
                    '\\' => {
                        plain = false;
                        text.push(escaped(chars.next())?);
                    }
                    c => text.push(c),
                }
            }
            let is_number = text.trim_start_matches(['-', '+']).chars().all(|c| c.is_ascii_digit());
            part = match integer(&text) {
                _ if text.is_empty() => return Err("names no part after /"),
                Some(number) if plain => Part::Number(number),
                None if plain && is_number => return Err("has a part that is no number of a part"),
                _ => Part::Name(text),
            };
        }
        match (beginning, name.is_empty()) {
            (false, true) => return Err("names no app"),
            (true, true) if number == Number::None => {
                return Err("is ambiguous: write *#* for every app, or name the app");
            }
            _ => {}
        }
        let name = if beginning { Name::Beginning(name) } else { Name::Exact(name) };
        Ok(AppPattern { name, number, part })
    }

    /// Whether a record of this app is one of those.
    pub fn holds(&self, app: App<'_>) -> bool {
        let name = match &self.name {
            Name::Exact(name) => app.name == name,
            Name::Beginning(name) => app.name.as_bytes().starts_with(name.as_bytes()),
        };
        let number = match self.number {
            Number::None => app.number.is_none(),
            Number::Exact(number) => app.number == Some(number),
            Number::Any => true,
        };
        let part = match &self.part {
            Part::Any => true,
            Part::Number(number) => app.part == Some(*number),
            Part::Name(name) => app.part_name == Some(name),
        };
        name && number && part
    }

    /// Whether everything that `other` holds is in this.
    fn covers(&self, other: &AppPattern) -> bool {
        let name = match (&self.name, &other.name) {
            (Name::Exact(own), Name::Exact(others)) => own == others,
            (Name::Exact(_), Name::Beginning(_)) => false,
            (Name::Beginning(own), Name::Exact(others) | Name::Beginning(others)) => {
                others.as_bytes().starts_with(own.as_bytes())
            }
        };
        let number = self.number == Number::Any || self.number == other.number;
        let part = self.part == Part::Any || self.part == other.part;
        name && number && part
    }
}

/// What stands after a backslash.
fn escaped(next: Option<char>) -> Result<char, &'static str> {
    match next {
        Some(c @ ('#' | '/' | '*' | '\\')) => Ok(c),
        _ => Err("has a \\ that is not before #, /, * or \\"),
    }
}

/// A number in its one form.
fn integer(text: &str) -> Option<i32> {
    text.parse().ok().filter(|number: &i32| number.to_string() == text)
}

impl fmt::Display for AppPattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn plain(out: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
            for c in text.chars() {
                if matches!(c, '#' | '/' | '*' | '\\') {
                    out.write_str("\\")?;
                }
                write!(out, "{c}")?;
            }
            Ok(())
        }
        if self.is_any() {
            return out.write_str("*");
        }
        match &self.name {
            Name::Exact(name) => plain(out, name)?,
            Name::Beginning(name) => {
                plain(out, name)?;
                out.write_str("*")?;
            }
        }
        match self.number {
            Number::None => {}
            Number::Exact(number) => write!(out, "#{number}")?,
            Number::Any => out.write_str("#*")?,
        }
        match &self.part {
            Part::Any => Ok(()),
            Part::Number(number) => write!(out, "/{number}"),
            Part::Name(name) => {
                out.write_str("/")?;
                plain(out, name)
            }
        }
    }
}

/// Whose records somebody may see or change. The default is everybody's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AppScope(Option<Arc<[AppPattern]>>);

impl AppScope {
    /// Every app.
    pub fn all() -> AppScope {
        AppScope(None)
    }

    /// What any of these holds.
    pub fn of(patterns: impl IntoIterator<Item = AppPattern>) -> AppScope {
        let mut patterns: Vec<AppPattern> = patterns.into_iter().collect();
        if patterns.iter().any(AppPattern::is_any) {
            return AppScope(None);
        }
        patterns.sort_by_key(ToString::to_string);
        patterns.dedup();
        AppScope(Some(patterns.into()))
    }

    pub fn is_all(&self) -> bool {
        self.0.is_none()
    }

    /// The one predicate: whether a record of this app is in the scope.
    pub fn holds(&self, app: App<'_>) -> bool {
        match &self.0 {
            None => true,
            Some(patterns) => patterns.iter().any(|pattern| pattern.holds(app)),
        }
    }

    pub fn holds_execution(&self, execution: &Execution) -> bool {
        self.is_all() || self.holds(App::of(execution))
    }

    /// What is in it; `None`: everything.
    pub fn patterns(&self) -> Option<&[AppPattern]> {
        self.0.as_deref()
    }

    /// What a page or resume token of somebody with this scope is bound to.
    pub fn identity(&self) -> String {
        let words: Vec<String> = self.words().collect();
        match self.is_all() {
            true => String::new(),
            false => format!("scope {words:?} "),
        }
    }

    /// Whether everything that these grants reach is in the scope.
    pub fn covers(&self, grants: &[Grant]) -> bool {
        let Some(own) = &self.0 else { return true };
        let mut apps = grants.iter().flat_map(|grant| &grant.apps);
        apps.all(|other| own.iter().any(|pattern| pattern.covers(other)))
    }

    /// The names of the apps, where each is named exactly: an index of names then holds everything of the scope.
    pub fn names(&self) -> Option<Vec<&str>> {
        let patterns = self.0.as_ref()?;
        let mut names = Vec::with_capacity(patterns.len());
        for pattern in patterns.iter() {
            match &pattern.name {
                Name::Exact(name) => names.push(name.as_str()),
                Name::Beginning(_) => return None,
            }
        }
        names.sort_unstable();
        names.dedup();
        Some(names)
    }

    /// Tells this scope from others, on every server.
    pub fn words(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().flat_map(|patterns| patterns.iter().map(ToString::to_string))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str, number: Option<i32>) -> App<'_> {
        App { name, number, part: None, part_name: None }
    }

    #[test]
    fn an_app_is_its_name_and_its_number() {
        let (plain, numbered) = (app("a", None), app("a", Some(7)));
        for (pattern, is_plain, is_numbered) in [
            ("a", true, false),
            ("a#7", false, true),
            ("a#8", false, false),
            ("a#*", true, true),
            ("*", true, true),
            ("*#7", false, true),
            ("b#7", false, false),
        ] {
            let pattern = AppPattern::parse(pattern).unwrap();
            assert_eq!(pattern.holds(plain), is_plain, "{pattern}");
            assert_eq!(pattern.holds(numbered), is_numbered, "{pattern}");
        }
    }

    #[test]
    fn names_are_compared_byte_by_byte() {
        let held =
            |pattern: &str, name: &str| AppPattern::parse(pattern).unwrap().holds(app(name, None));
        assert!(held("shop*", "shop") && held("shop*", "shop-eu") && !held("shop*", "Shop"));
        assert!(!held("shop", "shop-eu") && !held("shop", "SHOP"));
        assert!(held("a\\*", "a*") && !held("a\\*", "ab"));
        assert!(held("a\\#1\\/2\\\\", "a#1/2\\"));
    }

    #[test]
    fn a_part_is_named_by_its_number_or_its_name() {
        let part = |part, part_name| App { name: "a", number: None, part, part_name };
        let held = |pattern: &str, app| AppPattern::parse(pattern).unwrap().holds(app);
        assert!(held("a/5", part(Some(5), None)) && !held("a/5", part(Some(6), Some("5"))));
        assert!(held("a/x", part(Some(5), Some("x"))) && !held("a/x", part(None, None)));
        assert!(held("a", part(Some(5), Some("x"))));
    }

    #[test]
    fn what_is_ambiguous_is_refused_and_what_is_read_is_written_alike() {
        for wrong in [
            "",
            "#5",
            "/x",
            "a#",
            "a#x",
            "a#05",
            "a#+5",
            "a/",
            "a*b",
            "a**",
            "a/x*",
            "a/x/y",
            "a/x#1",
            "a\\",
            "a\\b",
            "*/x",
            "a#5#6",
            "a/007",
            "a#99999999999",
        ] {
            assert!(AppPattern::parse(wrong).is_err(), "{wrong}");
        }
        for right in [
            "*",
            "a",
            "a*",
            "a#5",
            "a#-5",
            "a#*",
            "a/5",
            "a/x",
            "a*#*/x",
            "*#7/2",
            "a\\#\\*\\/\\\\",
        ] {
            assert_eq!(AppPattern::parse(right).unwrap().to_string(), right);
        }
    }

    #[test]
    fn a_scope_covers_what_lies_within_it() {
        let scope =
            |words: &[&str]| AppScope::of(words.iter().map(|w| AppPattern::parse(w).unwrap()));
        let grants = |word: &str| {
            vec![Grant {
                role: Role::Viewer,
                apps: vec![AppPattern::parse(word).unwrap()],
                reveal: false,
            }]
        };
        for (own, other, covers) in [
            ("*", "*", true),
            ("a*", "a", true),
            ("a*", "ab*", true),
            ("a", "a*", false),
            ("a", "a#5", false),
            ("a#*", "a#5", true),
            ("a#*", "a", true),
            ("a", "a/5", true),
            ("a/5", "a", false),
            ("a", "*", false),
        ] {
            assert_eq!(scope(&[own]).covers(&grants(other)), covers, "{own} {other}");
        }
        assert_eq!(scope(&["b", "a", "b"]).names(), Some(vec!["a", "b"]));
        assert_eq!(scope(&["b", "a*"]).names(), None);
        assert!(AppScope::default().is_all() && AppScope::all().names().is_none());
        assert!(!AppScope::of([]).holds(app("a", None)), "no grant, no record");
    }
}
