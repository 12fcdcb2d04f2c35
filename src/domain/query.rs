//! Questions about executions: the filter that every list, watch and report takes, and pages.

use bson::Bson;

use super::access::AppScope;
use super::digest::Digest;
use super::value;
use super::{Execution, ExecutionStatus, Millis, StepStatus};

/// Which executions. Every part that is set must hold; within a list one value must match.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ExecutionFilter {
    pub app_ids: Vec<i32>,
    pub app_names: Vec<String>,
    pub sub_app_ids: Vec<i32>,
    pub user_ids: Vec<String>,
    pub statuses: Vec<ExecutionStatus>,
    /// Inclusive.
    pub started_at_from: Option<Millis>,
    /// Exclusive.
    pub started_at_until: Option<Millis>,
    pub min_duration_ms: Option<i64>,
    /// Path of keys in `metadata` and the value that must stand there.
    pub metadata: Vec<(Vec<String>, Bson)>,
    /// Whose executions may be told of at all, whatever is asked for.
    pub scope: AppScope,
}

fn any<T: PartialEq>(wanted: &[T], actual: Option<&T>) -> bool {
    wanted.is_empty() || actual.is_some_and(|actual| wanted.contains(actual))
}

impl ExecutionFilter {
    pub fn is_empty(&self) -> bool {
        *self == ExecutionFilter::default()
    }

    /// The same for somebody who may be told only of these. Where nothing else of it names an app or a user, the names of
    /// the scope are looked for, of which there is an index.
    pub fn within(self, scope: AppScope) -> ExecutionFilter {
        let named =
            !(self.app_ids.is_empty() && self.app_names.is_empty() && self.user_ids.is_empty());
        let app_names = match scope.names() {
            Some(names) if !named && !names.is_empty() => {
                names.into_iter().map(str::to_owned).collect()
            }
            _ => self.app_names,
        };
        ExecutionFilter { app_names, scope, ..self }
    }

    /// Tells this filter from others: the same filter has the same identity on every server.
    pub fn identity(&self) -> String {
        let ExecutionFilter {
            app_ids,
            app_names,
            sub_app_ids,
            user_ids,
            statuses,
            started_at_from,
            started_at_until,
            min_duration_ms,
            metadata,
            scope,
        } = self;
        let mut digest = Digest::new("execution_filter").integers("app_ids", app_ids);
        for name in app_names {
            digest = digest.text("app_name", Some(name));
        }
        digest = digest.integers("sub_app_ids", sub_app_ids);
        for id in user_ids {
            digest = digest.text("user_id", Some(id));
        }
        for status in statuses {
            digest = digest.text("status", Some(status.as_str()));
        }
        digest = digest
            .integer("started_at_from", *started_at_from)
            .integer("started_at_until", *started_at_until)
            .integer("min_duration_ms", *min_duration_ms);
        for word in scope.words() {
            digest = digest.text("scope", Some(&word));
        }
        if scope.patterns().is_some_and(<[_]>::is_empty) {
            digest = digest.text("scope", Some("nobody"));
        }
        for (path, wanted) in metadata {
            for key in path {
                digest = digest.text("metadata.key", Some(key));
            }
            let wanted = Bson::Array(vec![wanted.clone()]);
            digest = digest.value("metadata.value", Some(&wanted));
        }
        digest.finish()
    }

    /// The one meaning of a filter: lists of both stores and watches all come here.
    pub fn matches(&self, execution: &Execution) -> bool {
        let ExecutionFilter { statuses, min_duration_ms, metadata, .. } = self;
        self.matches_fixed(execution)
            && any(statuses, execution.status.as_ref())
            && min_duration_ms
                .is_none_or(|min| execution.duration_ms.is_some_and(|duration| duration >= min))
            && metadata.iter().all(|(path, wanted)| {
                at_path(&execution.metadata, path).is_some_and(|found| value::same(found, wanted))
            })
    }

    /// The part about fields that our own writes never change after the creation.
    pub fn matches_fixed(&self, execution: &Execution) -> bool {
        let ExecutionFilter {
            app_ids,
            app_names,
            sub_app_ids,
            user_ids,
            started_at_from,
            started_at_until,
            scope,
            // `matches` looks at these.
            statuses: _,
            min_duration_ms: _,
            metadata: _,
        } = self;
        scope.holds_execution(execution)
            && any(app_ids, execution.app_id.as_ref())
            && any(app_names, Some(&execution.app_name))
            && any(sub_app_ids, execution.sub_app_id.as_ref())
            && any(user_ids, execution.user_id.as_ref())
            && (started_at_from.is_none() && started_at_until.is_none()
                || execution.started_at.is_some_and(|at| {
                    started_at_from.is_none_or(|from| at >= from)
                        && started_at_until.is_none_or(|until| at < until)
                }))
    }
}

fn at_path<'a>(metadata: &'a bson::Document, path: &[String]) -> Option<&'a Bson> {
    let (first, rest) = path.split_first()?;
    let found = metadata.get(first)?;
    if rest.is_empty() {
        return Some(found);
    }
    match found {
        Bson::Document(inner) => at_path(inner, rest),
        _ => None,
    }
}

/// Splits a metadata path: dots part keys, `\.` is a dot inside a key, `\\` a backslash.
pub fn parse_path(path: &str) -> Option<Vec<String>> {
    let mut keys = vec![String::new()];
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '.' => keys.push(String::new()),
            '\\' => match chars.next()? {
                escaped @ ('.' | '\\') => keys.last_mut()?.push(escaped),
                _ => return None,
            },
            c => keys.last_mut()?.push(c),
        }
    }
    (!path.is_empty()).then_some(keys)
}

/// Order of a list of executions. Records without a start time count as the oldest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExecutionOrder {
    #[default]
    StartedAtDesc,
    StartedAtAsc,
}

/// Where a record stands in a list: everything after this key follows on the next page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutionKey {
    pub started_at: Option<Millis>,
    pub execution_id: String,
    /// What stands there instead, where another program stored something that is no time, or an id that is none: in the
    /// form in which the store keeps it.
    pub odd: Option<Vec<u8>>,
    /// How many records with this very key have been passed, if several have it.
    pub passed: u32,
}

impl ExecutionKey {
    pub fn of(execution: &Execution) -> Self {
        ExecutionKey {
            started_at: execution.started_at,
            execution_id: execution.execution_id.clone(),
            odd: execution.odd_start.clone(),
            passed: 0,
        }
    }
}

/// One page of a list of executions.
#[derive(Debug, Clone, PartialEq)]
pub struct ExecutionQuery {
    pub filter: ExecutionFilter,
    pub order: ExecutionOrder,
    /// Only records after this one.
    pub after: Option<ExecutionKey>,
    /// Records at most.
    pub limit: usize,
    /// Records read at most, found or not.
    pub examine: usize,
}

/// How many executions match a filter.
#[derive(Debug, Clone, PartialEq)]
pub struct CountQuery {
    pub filter: ExecutionFilter,
    /// Counted at most.
    pub limit: usize,
    /// Records read at most where the database's indexes don't decide.
    pub examine: usize,
}

/// A number, or the least it can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    pub number: u64,
    pub exact: bool,
    /// How many more are stored without a usable id, so that nobody can name them.
    pub unreadable: u64,
}

/// How many steps of an execution stand where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepCounts {
    /// In the order of `StepStatus::ALL`. Steps of no known status are in none.
    pub by_status: [u64; StepStatus::ALL.len()],
    /// Whether these are all: not more steps could be counted for one page.
    pub exact: bool,
}

impl StepCounts {
    pub fn of(&self, status: StepStatus) -> u64 {
        self.by_status[status as usize]
    }

    pub fn add(&mut self, status: StepStatus, number: u64) {
        self.by_status[status as usize] += number;
    }
}

/// One page of the steps of an execution, by step_id.
#[derive(Debug, Clone, PartialEq)]
pub struct StepQuery {
    pub execution_id: String,
    /// Empty: all.
    pub statuses: Vec<StepStatus>,
    pub after: Option<i32>,
    pub limit: usize,
    pub examine: usize,
    /// With input and output; then the page ends with the record that makes it larger than this many bytes.
    pub payloads: Option<usize>,
}

/// Where an artifact stands among those of its execution: bytes of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactKey(pub Vec<u8>);

/// One page of the artifacts of an execution, in the order in which they were stored.
#[derive(Debug, Clone, PartialEq)]
pub struct ArtifactQuery {
    pub execution_id: String,
    pub after: Option<ArtifactKey>,
    pub limit: usize,
}

/// A page: what was found, and the key from which to go on. `None`: that was all.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T, K> {
    pub records: Vec<T>,
    pub next: Option<K>,
}
