//! What changes of the log are about: the records that have to be looked at, as they were with each change.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::domain::notification::{Basis, ExecutionNews, Identity, Standing, Status, StepNews};
use crate::domain::{Digests, Execution, Millis, Payload, RunError, Step, StepStatus, duration_ms};
use crate::store::{Change, ChangeKind, Changed, Collection, Record, RecordKey, Result, Store};

/// Records loaded at a time.
const LOADED_AT_ONCE: usize = 500;

/// A change that may have to be told.
pub struct Look<'a> {
    pub change: &'a Change,
    /// Its number in the batch.
    pub index: usize,
    pub execution_id: String,
    pub what: Of,
}

/// What it is about.
pub enum Of {
    /// An execution is gone, with its steps.
    Gone,
    Execution,
    Step(i32),
}

/// The records of a batch.
#[derive(Default)]
pub struct Records {
    executions: HashMap<String, Arc<Execution>>,
    steps: HashMap<(String, i32), Arc<Step>>,
    /// Of executions that are gone, as far as the log tells.
    identities: HashMap<String, Identity>,
}

/// Whether a change of an execution may be one that is told.
fn matters(change: &Change) -> bool {
    match (&change.standing, &change.body, change.kind) {
        (_, _, ChangeKind::Created | ChangeKind::Deleted) => true,
        (Some(standing), _, _) => !standing.is_empty(),
        // How the record is, or not even that.
        (None, _, _) => true,
    }
}

/// The same of a step.
fn step_matters(change: &Change) -> bool {
    match (&change.standing, &change.body, change.kind) {
        (_, _, ChangeKind::Deleted) => false,
        (Some(standing), _, _) => StepNews::said(standing).matters(),
        (None, Some(Record::Step(step)), _) => StepNews::of(step).matters(),
        (None, _, _) => true,
    }
}

/// Which changes have to be looked at; those of unknown records are looked up first.
pub async fn looks<'a>(records: &dyn Store, changes: &'a [Change]) -> Result<Vec<Look<'a>>> {
    let is_asked = |change: &&Change| match (&change.what, change.kind) {
        (_, ChangeKind::Deleted) => false,
        (Changed::Unknown { collection: Collection::Executions, .. }, _) => matters(change),
        (Changed::Unknown { collection: Collection::Steps, .. }, _) => step_matters(change),
        _ => false,
    };
    let mut asked: Vec<Changed> = Vec::new();
    let mut seen = HashSet::new();
    for change in changes.iter().filter(is_asked) {
        if seen.insert(&change.what) {
            asked.push(change.what.clone());
        }
    }
    let mut names: HashMap<Changed, RecordKey> = HashMap::new();
    let log = records.log()?;
    for piece in asked.chunks(LOADED_AT_ONCE) {
        let found = log.load(piece, false).await?;
        names.extend(found.into_iter().map(|(changed, record)| (changed, record.key())));
    }
    let look = |(index, change): (usize, &'a Change)| {
        let key = match &change.what {
            Changed::Record(key) => key,
            unknown => names.get(unknown)?,
        };
        let what = match (key.step_id, &key.artifact_id) {
            (_, Some(_)) => return None,
            (None, None) if change.kind == ChangeKind::Deleted => Of::Gone,
            (None, None) if matters(change) => Of::Execution,
            (Some(step_id), None) if step_matters(change) => Of::Step(step_id),
            _ => return None,
        };
        Some(Look { change, index, execution_id: key.execution_id.clone(), what })
    };
    Ok(changes.iter().enumerate().filter_map(look).collect())
}

impl Records {
    /// Loads what these changes are about, as it is now.
    pub async fn load(records: &dyn Store, looks: &[Look<'_>]) -> Result<Records> {
        let mut loaded = Records::default();
        let mut keys = HashSet::new();
        for look in looks {
            if let Some(whose) = look.change.standing.as_ref().and_then(|said| said.whose.as_ref())
            {
                loaded.identities.insert(look.execution_id.clone(), (**whose).clone());
            }
            if let Some(Record::Execution(execution)) = &look.change.body {
                let whose = Identity::of(execution);
                loaded.identities.insert(look.execution_id.clone(), whose);
            }
            match look.what {
                Of::Gone => {}
                Of::Execution => {
                    keys.insert(RecordKey::execution(&look.execution_id));
                }
                Of::Step(step_id) => {
                    keys.insert(RecordKey::execution(&look.execution_id));
                    keys.insert(RecordKey::step(&look.execution_id, step_id));
                }
            }
        }
        let keys: Vec<Changed> = keys.into_iter().map(Changed::Record).collect();
        let log = records.log()?;
        for piece in keys.chunks(LOADED_AT_ONCE) {
            for (_, record) in log.load(piece, false).await? {
                match record {
                    Record::Execution(execution) => {
                        loaded.executions.insert(execution.execution_id.clone(), execution);
                    }
                    Record::Step(step) => {
                        loaded.steps.insert((step.execution_id.clone(), step.step_id), step);
                    }
                    Record::Artifact(_) => {}
                }
            }
        }
        Ok(loaded)
    }

    /// The execution as it is now, or what is known of one that is gone. `None`: nothing.
    pub fn execution(&self, execution_id: &str, told: Option<&Identity>) -> Option<Arc<Execution>> {
        if let Some(execution) = self.executions.get(execution_id) {
            return Some(Arc::clone(execution));
        }
        let whose = self.identities.get(execution_id).or(told)?;
        Some(Arc::new(whose.execution(execution_id, None)))
    }

    pub fn step(&self, execution_id: &str, step_id: i32) -> Option<&Arc<Step>> {
        self.steps.get(&(execution_id.to_owned(), step_id))
    }
}

/// What a change says, and how it knows: of an execution. `since`: when who is told of it began to listen.
pub fn execution_news(
    change: &Change,
    record: &Execution,
    since: Millis,
) -> (ExecutionNews, Basis) {
    let whole = match &change.body {
        Some(Record::Execution(body)) => Some(body.as_ref()),
        _ => None,
    };
    let record = whole.unwrap_or(record);
    let ended_at = record.completed_at.or(record.updated_at);
    let ended = ended_at.is_some_and(|at| at >= since);
    match (&change.standing, change.kind) {
        (Some(said), ChangeKind::Created) => (ExecutionNews::said(said), Basis::New),
        (None, ChangeKind::Created) => (ExecutionNews::of(record), Basis::New),
        (Some(said), _) => (ExecutionNews::said(said), Basis::Changed),
        (None, _) => (ExecutionNews::of(record), Basis::Whole { ended }),
    }
}

/// The same of a step. `None`: it is gone, and nothing is known of it.
pub fn step_news(
    change: &Change,
    record: Option<&Step>,
    since: Millis,
) -> Option<(StepNews, Basis)> {
    let whole = match &change.body {
        Some(Record::Step(body)) => Some(body.as_ref()),
        _ => record,
    };
    Some(match (&change.standing, change.kind) {
        (Some(said), ChangeKind::Created) => (StepNews::said(said), Basis::New),
        (None, ChangeKind::Created) => (StepNews::of(whole?), Basis::New),
        (Some(said), _) => (StepNews::said(said), Basis::Changed),
        (None, _) => {
            let whole = whole?;
            let ended_at = whole.completed_at.or(whole.updated_at);
            let ended = ended_at.is_some_and(|at| at >= since);
            (StepNews::of(whole), Basis::Whole { ended })
        }
    })
}

/// An execution as it was with a change, as far as that is known: it may have gone on since.
pub fn as_of(change: &Change, now: &Execution, status: Option<Status>, cancel: bool) -> Execution {
    if let Some(Record::Execution(body)) = &change.body {
        return body.as_ref().clone();
    }
    let mut record = now.clone();
    if change.revision == Some(now.revision) && now.revision > 0 {
        return record;
    }
    let said = change.standing.clone().unwrap_or_default();
    if !cancel {
        record.cancel_requested_at = None;
        record.cancel_reason = None;
    }
    let Some(status) = status else { return record };
    let same = record.status == Some(status.stored());
    record.status = Some(status.stored());
    if status == Status::Running {
        record.completed_at = None;
        record.duration_ms = None;
        record.error = None;
        return record;
    }
    if !same || said.completed_at.is_some() {
        record.completed_at = said.completed_at.or(Some(change.at));
        let ended_at = record.completed_at.unwrap_or(change.at);
        record.duration_ms = duration_ms(record.started_at, ended_at);
    }
    if let Some(error) = said.error {
        record.error = Some(*error);
    } else if !same {
        record.error = None;
    }
    record
}

/// An execution that still had this status: it may have gone on since.
pub fn with_status(now: &Execution, status: Status) -> Execution {
    let mut record = now.clone();
    if record.status != Some(status.stored()) {
        record.status = Some(status.stored());
        (record.completed_at, record.duration_ms, record.error) = (None, None, None);
    }
    record
}

/// A step as it was in one of its attempts (from 1), failed in it or begun anew with it.
pub fn in_attempt(
    execution_id: &str,
    step_id: i32,
    now: Option<&Step>,
    said: Option<&Standing>,
    attempt: i32,
    failed: bool,
) -> Step {
    let mut record = match now {
        Some(step) => step.without_payloads(),
        None => unknown(execution_id, step_id),
    };
    let current = record.retry_count.saturating_add(1);
    if now.is_some() && attempt == current {
        // It may have gone on since, and only that is not known.
        let is_failed = record.status == Some(StepStatus::Failed);
        if failed && !is_failed {
            record.status = Some(StepStatus::Failed);
            record.error = said.and_then(|said| said.error.as_deref().cloned());
        } else if !failed {
            record.status = Some(StepStatus::Running);
            record.error = None;
            (record.completed_at, record.duration_ms) = (None, None);
        }
        return record;
    }
    let earlier = earlier(&record, attempt);
    record.retry_count = attempt.saturating_sub(1);
    record.status = Some(if failed { StepStatus::Failed } else { StepStatus::Running });
    let (started_at, completed_at, error) = earlier.unwrap_or((None, None, None));
    record.started_at = started_at;
    record.completed_at = completed_at.filter(|_| failed);
    record.duration_ms =
        record.completed_at.and_then(|completed_at| duration_ms(started_at, completed_at));
    let said = said.and_then(|said| said.error.as_deref().cloned());
    record.error = error.or(said).filter(|_| failed);
    record
}

/// What is kept of an earlier attempt: when it began and ended, and its error.
type Earlier = (Option<Millis>, Option<Millis>, Option<RunError>);

fn earlier(record: &Step, attempt: i32) -> Option<Earlier> {
    // The last of those that are kept is the one before the current one.
    let back = usize::try_from(record.retry_count.checked_sub(attempt)?.checked_add(1)?).ok()?;
    let found = record.attempts.get(record.attempts.len().checked_sub(back)?)?;
    Some((found.started_at, found.completed_at, found.error.clone()))
}

fn unknown(execution_id: &str, step_id: i32) -> Step {
    Step {
        execution_id: execution_id.to_owned(),
        step_id,
        step_key: None,
        step_name: String::new(),
        step_version: None,
        status: None,
        started_at: None,
        completed_at: None,
        duration_ms: None,
        input: Payload::Stored,
        output: Payload::Stored,
        error: None,
        retry_count: 0,
        metadata: Default::default(),
        revision: 0,
        created_at: None,
        updated_at: None,
        depends_on: Vec::new(),
        depends_on_keys: Vec::new(),
        parent_step_id: None,
        parent_step_key: None,
        progress: None,
        progress_message: None,
        update_sequence: None,
        mirrored_position: None,
        mirrored_revision: None,
        attempts: Vec::new(),
        digests: Digests::default(),
    }
}
