//! Puts the layers together: defaults < file < environment < flags, with every problem found at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use toml::{Table, Value};

use super::lists::{self, LISTS, List, RETENTION_RULES};
use super::settings::{ENV_PREFIX, Setting, by_key, nearest, settings};
use super::{Config, StorageKind, access, database, idle};

/// Names the configuration file.
pub const CONFIG_ENV: &str = "STEPWELL_CONFIG";
/// Variables of other commands and of the test suite: not settings of the server, and not typing errors.
const NOT_OURS: [&str; 3] = [CONFIG_ENV, "STEPWELL_KEY", "STEPWELL_SERVER"];
const NOT_OURS_PREFIXES: [&str; 3] = ["STEPWELL_TEST_", "STEPWELL_CI_", "STEPWELL_BENCH_"];

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    File(PathBuf),
    Environment(String),
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => out.write_str("default"),
            Origin::File(path) => write!(out, "{}", path.display()),
            Origin::Environment(name) => write!(out, "environment {name}"),
            Origin::Flag(name) => write!(out, "flag --{name}"),
        }
    }
}

/// Something suspicious that does not stop the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// A `STEPWELL_*` variable that means nothing here. Orchestrators inject such.
    UnknownVariable { name: String, suggestion: Option<String> },
    /// A setting that has no effect beside another.
    NoEffect { key: &'static str, origin: Origin, because: &'static str },
}

impl fmt::Display for Warning {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::UnknownVariable { name, suggestion } => {
                write!(
                    out,
                    "environment variable {name} is not a setting of Stepwell and is ignored"
                )?;
                match suggestion {
                    Some(suggestion) => write!(out, "; did you mean {suggestion}?"),
                    None => Ok(()),
                }
            }
            Warning::NoEffect { key, origin, because } => {
                write!(out, "{key} ({origin}) has no effect: {because}")
            }
        }
    }
}

/// One reason to refuse a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    FileUnreadable { path: PathBuf, reason: String },
    FileSyntax { path: PathBuf, reason: String },
    UnknownKey { path: PathBuf, key: String, suggestion: Option<String> },
    BadValue { key: &'static str, origin: Origin, value: String, expected: String },
    Conflict { key: &'static str, value: String, reason: String },
}

impl Problem {
    fn is_about(&self, name: &str) -> bool {
        match self {
            Problem::BadValue { key, .. } | Problem::Conflict { key, .. } => *key == name,
            Problem::FileUnreadable { .. }
            | Problem::FileSyntax { .. }
            | Problem::UnknownKey { .. } => false,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::FileUnreadable { path, reason } => {
                write!(out, "configuration file {} cannot be read: {reason}", path.display())
            }
            Problem::FileSyntax { path, reason } => {
                write!(out, "configuration file {} is not valid TOML: {reason}", path.display())
            }
            Problem::UnknownKey { path, key, suggestion } => {
                write!(out, "configuration file {}: unknown key {key}", path.display())?;
                match suggestion {
                    Some(suggestion) => write!(out, "; did you mean {suggestion}?"),
                    None => Ok(()),
                }
            }
            Problem::BadValue { key, origin, value, expected } => {
                write!(out, "{key} = {value} ({origin}): expected {expected}")
            }
            Problem::Conflict { key, value, reason } => write!(out, "{key} = {value}: {reason}"),
        }
    }
}

/// Every reason why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(.problems))]
pub struct ConfigError {
    pub problems: Vec<Problem>,
}

impl ConfigError {
    /// For who finds out only when using a value that it cannot be used.
    pub fn new(key: &'static str, shown: impl Into<String>, reason: impl Into<String>) -> Self {
        let problem = Problem::Conflict { key, value: shown.into(), reason: reason.into() };
        ConfigError { problems: vec![problem] }
    }
}

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// The flags of `stepwell serve` and `stepwell config`: one per setting, and `--config`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServeFlags {
    /// The configuration file.
    pub config: Option<PathBuf>,
    values: BTreeMap<&'static str, String>,
}

impl ServeFlags {
    /// The same with the flag of this setting given. For callers in the same process, such as tests; a key
    /// that does not exist is left out.
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        if let Some(setting) = by_key(key) {
            self.values.insert(setting.key, value.into());
        }
        self
    }
}

const CONFIG_FLAG: &str = "config";

impl Args for ServeFlags {
    fn augment_args(command: Command) -> Command {
        let defaults = Config::default();
        let command = command.arg(
            Arg::new(CONFIG_FLAG)
                .long(CONFIG_FLAG)
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help(format!("Configuration file (TOML). [env: {CONFIG_ENV}]")),
        );
        settings().iter().fold(command, |command, setting| {
            let default = defaults
                .value(setting.key)
                .map_or_else(String::new, |value| format!(" [default: {}]", bare(&value)));
            command.arg(
                Arg::new(setting.key)
                    .long(setting.flag.as_str())
                    .value_name(setting.kind.value_name())
                    .action(ArgAction::Set)
                    .hide_short_help(!setting.common)
                    .help(format!("{} [env: {}]{default}", setting.doc, setting.env)),
            )
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ServeFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = ServeFlags::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        if let Some(path) = matches.get_one::<PathBuf>(CONFIG_FLAG) {
            self.config = Some(path.clone());
        }
        for setting in settings() {
            if let Some(value) = matches.get_one::<String>(setting.key) {
                self.values.insert(setting.key, value.clone());
            }
        }
        Ok(())
    }
}

/// A value as one types it: text without quotes.
fn bare(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The layers as far as they are put together.
#[derive(Default)]
struct Layers {
    values: BTreeMap<&'static str, Value>,
    origins: BTreeMap<&'static str, Origin>,
    problems: Vec<Problem>,
    warnings: Vec<Warning>,
}

impl Layers {
    fn put(
        &mut self,
        setting: &'static Setting,
        origin: Origin,
        shown: &str,
        value: Result<Value, String>,
    ) {
        match value {
            Ok(value) => {
                self.values.insert(setting.key, value);
                self.origins.insert(setting.key, origin);
            }
            Err(expected) => self.problems.push(Problem::BadValue {
                key: setting.key,
                origin,
                value: if setting.secret { "(hidden)".to_owned() } else { shown.to_owned() },
                expected,
            }),
        }
    }

    fn file(&mut self, path: &Path) {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                let problem =
                    Problem::FileUnreadable { path: path.to_owned(), reason: error.to_string() };
                return self.problems.push(problem);
            }
        };
        match text.parse::<Table>() {
            Ok(table) => self.table(path, "", table),
            Err(error) => {
                // Only line and reason: the parser's own display quotes the line, and a line may hold a secret.
                let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
                let reason = format!("line {line}: {}", error.message());
                self.problems.push(Problem::FileSyntax { path: path.to_owned(), reason });
            }
        }
    }

    fn table(&mut self, path: &Path, prefix: &str, table: Table) {
        for (name, value) in table {
            let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
            if let Some(setting) = by_key(&key) {
                let shown = value.to_string();
                let origin = Origin::File(path.to_owned());
                let checked = setting.kind.check(value);
                self.put(setting, origin, &shown, checked);
                continue;
            }
            if let Some(list) = lists::by_key(&key) {
                self.list(path, list, value);
                continue;
            }
            let inside = format!("{key}.");
            match value {
                Value::Table(table) if settings().iter().any(|s| s.key.starts_with(&inside)) => {
                    self.table(path, &key, table);
                }
                _ => {
                    let suggestion = nearest(&key, known_keys()).map(str::to_owned);
                    self.problems.push(Problem::UnknownKey {
                        path: path.to_owned(),
                        key,
                        suggestion,
                    });
                }
            }
        }
    }

    /// The tables of a list are checked one by one, so that what is wrong with one says with which.
    fn list(&mut self, path: &Path, list: &'static List, value: Value) {
        let origin = Origin::File(path.to_owned());
        let Value::Array(tables) = value else {
            return self.problems.push(Problem::BadValue {
                key: list.key,
                origin,
                value: value.to_string(),
                expected: format!("tables, each beginning with [[{}]]", list.key),
            });
        };
        let mut refuse = |value, reason| {
            self.problems.push(Problem::Conflict { key: list.key, value, reason });
        };
        if tables.len() > list.most {
            refuse(
                format!("{} entries", tables.len()),
                format!("at most {} are allowed", list.most),
            );
        }
        for (index, table) in tables.iter().enumerate() {
            if let Err(reason) = (list.check)(table.clone()) {
                refuse(format!("rule {}", index + 1), reason);
            }
        }
        self.values.insert(list.key, Value::Array(tables));
        self.origins.insert(list.key, origin);
    }

    fn variables(&mut self, variables: Vec<Variable>) {
        for Variable { name, value } in variables {
            if NOT_OURS.contains(&name.as_str())
                || NOT_OURS_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            {
                continue;
            }
            let Some(setting) = settings().iter().find(|setting| setting.env == name) else {
                let suggestion =
                    nearest(&name, settings().iter().map(|s| s.env.as_str())).map(str::to_owned);
                self.warnings.push(Warning::UnknownVariable { name, suggestion });
                continue;
            };
            // An empty variable is one that is not set: compose files pass them on like that.
            if value.is_empty() {
                continue;
            }
            let shown = value.to_string_lossy();
            let parsed = match value.to_str() {
                Some(text) => setting.kind.parse(text),
                None => Err("UTF-8 text".to_owned()),
            };
            self.put(setting, Origin::Environment(name), &format!("{shown:?}"), parsed);
        }
    }

    fn flags(&mut self, flags: &ServeFlags) {
        for (key, value) in &flags.values {
            if let Some(setting) = by_key(key) {
                let origin = Origin::Flag(setting.flag.clone());
                self.put(setting, origin, &format!("{value:?}"), setting.kind.parse(value));
            }
        }
    }

    fn finish(mut self) -> Result<(Config, Vec<Warning>), ConfigError> {
        let is_bad = |list: &&List| self.problems.iter().any(|problem| problem.is_about(list.key));
        let bad: Vec<&List> = LISTS.iter().filter(is_bad).collect();
        for list in &bad {
            self.values.remove(list.key);
        }
        let mut whole = Table::new();
        for (key, value) in self.values {
            insert(&mut whole, key, value);
        }
        let config = match whole.try_into::<Config>() {
            Ok(config) => Some(Config { origins: self.origins, ..config }),
            Err(error) => {
                // Every value was checked against its kind; a test sets each of them. Still no reason to die.
                self.problems.push(Problem::Conflict {
                    key: "configuration",
                    value: "(whole)".to_owned(),
                    reason: error.message().to_owned(),
                });
                None
            }
        };
        let mut config = config;
        if let Some(config) = &mut config
            && let Err(problem) = database::read_uri_file(config)
        {
            self.problems.push(problem);
        }
        if let Some(config) = &config {
            // What is wrong with a list was said: without it, it looks as if it were not there.
            let is_said = |problem: &Problem| bad.iter().any(|list| problem.is_about(list.key));
            self.problems.extend(conflicts(config).into_iter().filter(|one| !is_said(one)));
            let idle = idle::without_effect(config).into_iter().filter_map(|(key, because)| {
                let origin = config.origins.get(key)?.clone();
                Some(Warning::NoEffect { key, origin, because })
            });
            self.warnings.extend(idle);
        }
        match config {
            Some(config) if self.problems.is_empty() => Ok((config, self.warnings)),
            _ => Err(ConfigError { problems: self.problems }),
        }
    }
}

/// A variable with our prefix.
struct Variable {
    name: String,
    value: OsString,
}

/// What is ours among the environment, sorted, so that warnings and problems come in a stable order.
fn ours(environment: impl Iterator<Item = (OsString, OsString)>) -> Vec<Variable> {
    let mut found: Vec<Variable> = environment
        .filter_map(|(name, value)| {
            let name = name.to_str().filter(|name| name.starts_with(ENV_PREFIX))?.to_owned();
            Some(Variable { name, value })
        })
        .collect();
    found.sort_by(|left, right| left.name.cmp(&right.name));
    found
}

fn insert(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((part, rest)) => {
            let inner = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

/// Keys and the names of their sections.
fn known_keys() -> impl Iterator<Item = &'static str> {
    settings()
        .iter()
        .flat_map(|setting| {
            [Some(setting.key), setting.key.rsplit_once('.').map(|(section, _)| section)]
        })
        .flatten()
        .chain(LISTS.iter().map(|list| list.key))
}

/// What lets in whom nobody meant to let in.
pub(super) fn doors(config: &Config) -> Vec<Problem> {
    let problem = |(key, reason)| {
        let value =
            config.value(key).map_or_else(|| "(not set)".to_owned(), |value| value.to_string());
        Problem::Conflict { key, value, reason }
    };
    access::conflicts(config).into_iter().map(problem).collect()
}

/// Settings that are fine alone and not together.
fn conflicts(config: &Config) -> Vec<Problem> {
    let mut problems = doors(config);
    let mut refuse = |key: &'static str, reason: String| {
        let value =
            config.value(key).map_or_else(|| "(not set)".to_owned(), |value| value.to_string());
        problems.push(Problem::Conflict { key, value, reason });
    };
    if config.shutdown.streams > config.shutdown.deadline {
        refuse(
            "shutdown.streams_seconds",
            format!(
                "must not exceed shutdown.deadline_seconds = {}",
                config.shutdown.deadline.as_secs_f64()
            ),
        );
    }
    let limits = &config.limits;
    // MongoDB keeps a document within 16 MiB; one MiB is left for everything that has no limit of its own.
    let step = 2 * limits.payload_bytes
        + limits.metadata_bytes
        + limits.error_message_bytes
        + limits.stack_trace_bytes;
    let most = 15 * 1024 * 1024;
    if step > most {
        refuse(
            "limits.payload_bytes",
            format!(
                "input, output, metadata and error of a step may add up to {step} bytes, but no document in \
                 the store may exceed {most}"
            ),
        );
    }
    let longest = Duration::from_secs(100 * 366 * 24 * 3600);
    let rules = config.retention.rules.iter();
    let times = rules.flat_map(|rule| [rule.executions, rule.steps, rule.artifacts]);
    if times.flatten().any(|time| time > longest) {
        refuse(
            RETENTION_RULES,
            "a time is longer than the limit of 100 years; use 0 to keep records forever"
                .to_owned(),
        );
    }
    if limits.payload_bytes > limits.request_bytes {
        refuse(
            "limits.payload_bytes",
            format!("must not exceed limits.request_bytes = {}", limits.request_bytes),
        );
    }
    let share = limits.process_bytes / 4;
    if share < limits.request_bytes || share < limits.decoded_bytes {
        refuse(
            "limits.process_bytes",
            format!(
                "a connection gets a quarter of it, which must be at least limits.request_bytes = {} and \
                 limits.decoded_bytes = {}",
                limits.request_bytes, limits.decoded_bytes
            ),
        );
    }
    if config.writes.queue_bytes < limits.request_bytes {
        refuse(
            "writes.queue_bytes",
            format!(
                "must be at least limits.request_bytes = {}, the size of one request",
                limits.request_bytes
            ),
        );
    }
    if let (Some(least), Some(most)) = (config.mongodb.min_pool_size, config.mongodb.max_pool_size)
        && least > most
    {
        refuse("mongodb.min_pool_size", format!("must not exceed mongodb.max_pool_size = {most}"));
    }
    let database = &config.mongodb.database;
    if database.contains(['/', '\\', '.', ' ', '"', '$', '*', '<', '>', ':', '|', '?']) {
        refuse("mongodb.database", "is not a valid name of a MongoDB database".to_owned());
    }
    if config.http.listen.is_some_and(|http| http.port() != 0 && http == config.listen) {
        refuse("http.listen", "must differ from the address of the gRPC port".to_owned());
    }
    let artifacts = &config.artifacts;
    match artifacts.storage {
        Some(StorageKind::Gridfs) if config.mongodb.uri.is_none() => {
            refuse(
                "artifacts.storage",
                "needs mongodb.uri, because GridFS is part of MongoDB".to_owned(),
            );
        }
        Some(StorageKind::S3) if artifacts.s3_bucket.is_none() => {
            refuse("artifacts.storage", "needs artifacts.s3_bucket".to_owned());
        }
        _ => {}
    }
    if artifacts.s3_endpoint.as_ref().is_some_and(|url| url.expose().starts_with("http:"))
        && !artifacts.s3_allow_http
    {
        refuse(
            "artifacts.s3_endpoint",
            "has no TLS: use https, or set artifacts.s3_allow_http".to_owned(),
        );
    }
    problems
}

impl Config {
    /// The effective configuration out of defaults, file, environment and flags, and what is suspicious about
    /// it; or every reason to refuse it. Nothing but the configuration file is touched.
    pub fn load(
        flags: &ServeFlags,
        environment: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<(Config, Vec<Warning>), ConfigError> {
        let mut layers = Layers::default();
        let variables = ours(environment);
        let named = variables
            .iter()
            .find(|variable| variable.name == CONFIG_ENV && !variable.value.is_empty())
            .map(|variable| PathBuf::from(&variable.value));
        if let Some(path) = flags.config.clone().or(named) {
            layers.file(&path);
        }
        layers.variables(variables);
        layers.flags(flags);
        layers.finish()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
