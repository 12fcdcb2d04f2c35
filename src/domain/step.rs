//! Rules of a step's life: PENDING, RUNNING, then COMPLETED, FAILED or SKIPPED; FAILED may run again (a retry).
//!
//! Facts are never lost because of their order, so what only describes a step (progress, metadata, output) is
//! taken in every status; only the statuses themselves obey transitions.

use bson::{Bson, Document};

use super::digest::Digest;
use super::execution::{error_weight, is_superseded};
use super::limits::{ATTEMPT_ERROR_BYTES, ATTEMPTS_KEPT};
use super::{Decision, Digests, Millis, Now, Refusal, RunError, duration_ms, value};

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StepStatus {
    Pending,
    Running,
    Completed,
    Failed,
    Skipped,
}

impl StepStatus {
    pub const ALL: [Self; 5] =
        [Self::Pending, Self::Running, Self::Completed, Self::Failed, Self::Skipped];

    /// The word in the documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }

    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }
}

/// Input or output of a step. Most reads and writes never touch it, so a record may not have it at hand.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Payload {
    /// Whatever is stored; not loaded.
    #[default]
    Stored,
    /// This; `Bson::Null` is nothing.
    Value(Bson),
}

impl Payload {
    pub fn value(&self) -> Option<&Bson> {
        match self {
            Self::Stored => None,
            Self::Value(value) => Some(value),
        }
    }
}

/// How a request names a step: by number, or by the client's own key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct StepRef {
    pub step_id: Option<i32>,
    pub step_key: Option<String>,
}

impl std::fmt::Display for StepRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.step_id, &self.step_key) {
            (Some(id), _) => write!(f, "{id}"),
            (None, Some(key)) => f.write_str(key),
            (None, None) => f.write_str("?"),
        }
    }
}

/// One earlier try of a step that was retried.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Attempt {
    pub started_at: Option<Millis>,
    pub completed_at: Option<Millis>,
    pub duration_ms: Option<i64>,
    pub error: Option<RunError>,
}

/// A step as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub execution_id: String,
    pub step_id: i32,
    pub step_key: Option<String>,
    pub step_name: String,
    pub step_version: Option<String>,
    /// `None`: another program stored a word that is no status.
    pub status: Option<StepStatus>,
    pub started_at: Option<Millis>,
    pub completed_at: Option<Millis>,
    pub duration_ms: Option<i64>,
    pub input: Payload,
    pub output: Payload,
    pub error: Option<RunError>,
    pub retry_count: i32,
    pub metadata: Document,
    /// 0: another program wrote the record.
    pub revision: i64,
    pub created_at: Option<Millis>,
    pub updated_at: Option<Millis>,
    pub depends_on: Vec<i32>,
    pub parent_step_id: Option<i32>,
    pub progress: Option<f64>,
    pub progress_message: Option<String>,
    /// Of the latest update of this try that carried one; those that are not greater come too late.
    pub update_sequence: Option<i64>,
    pub attempts: Vec<Attempt>,
    pub digests: Digests,
}

impl Step {
    pub fn is_terminal(&self) -> bool {
        self.status.is_some_and(StepStatus::is_terminal)
    }

    /// The value of `last_change` after this record's current revision.
    pub fn last_change(&self) -> String {
        format!("{}/{}/{}", self.execution_id, self.step_id, self.revision)
    }

    /// The same record without its payloads at hand.
    pub fn without_payloads(&self) -> Step {
        Step {
            execution_id: self.execution_id.clone(),
            step_key: self.step_key.clone(),
            step_name: self.step_name.clone(),
            step_version: self.step_version.clone(),
            input: Payload::Stored,
            output: Payload::Stored,
            error: self.error.clone(),
            metadata: self.metadata.clone(),
            depends_on: self.depends_on.clone(),
            progress_message: self.progress_message.clone(),
            attempts: self.attempts.clone(),
            digests: self.digests.clone(),
            ..*self
        }
    }

    /// Bytes it takes in memory, roughly: for bounded caches.
    pub fn weight(&self) -> usize {
        let payload = |payload: &Payload| payload.value().map_or(0, value::size);
        512 + self.step_name.len()
            + value::size_of_document(&self.metadata)
            + self.depends_on.len() * 4
            + self.error.as_ref().map_or(0, error_weight)
            + self
                .attempts
                .iter()
                .map(|attempt| 64 + attempt.error.as_ref().map_or(0, error_weight))
                .sum::<usize>()
            + payload(&self.input)
            + payload(&self.output)
    }
}

/// What describes a step, whichever request brings it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepFields {
    pub step_version: Option<String>,
    /// `None`: not sent.
    pub input: Option<Bson>,
    pub metadata: Document,
    pub depends_on: Vec<i32>,
    pub parent_step_id: Option<i32>,
    pub started_at: Option<Millis>,
}

/// One write about a step.
#[derive(Debug, Clone, PartialEq)]
pub enum StepOp {
    Plan {
        step_name: String,
        fields: StepFields,
    },
    Start {
        step_name: String,
        fields: StepFields,
        attempt: Option<i32>,
    },
    Update {
        progress: Option<f64>,
        progress_message: Option<String>,
        metadata: Document,
        /// An object is merged into the stored one, anything else replaces it. `None`: not sent.
        output: Option<Bson>,
        update_sequence: Option<i64>,
    },
    Finish {
        status: StepStatus,
        output: Option<Bson>,
        error: Option<RunError>,
        completed_at: Option<Millis>,
        /// Given: an unknown step is created. Its `fields.metadata` is what is merged.
        step_name: Option<String>,
        fields: StepFields,
    },
    /// A whole record as it is (import). Its revision and digests are ignored.
    Put(Box<Step>),
}

impl StepOp {
    /// Whether it may create the record.
    pub fn may_create(&self) -> bool {
        match self {
            Self::Plan { .. } | Self::Start { .. } | Self::Put(_) => true,
            Self::Update { .. } => false,
            Self::Finish { step_name, .. } => step_name.is_some(),
        }
    }

    /// Whether a store may try to insert without looking for the record first, because it hardly ever exists.
    pub fn expects_to_create(&self) -> bool {
        matches!(self, Self::Plan { .. } | Self::Start { .. } | Self::Put(_))
    }
}

/// Which step a write is about: the names the client gave, and the number the record has or will get.
#[derive(Debug, Clone, PartialEq)]
pub struct Target<'a> {
    pub execution_id: &'a str,
    /// As the client named it.
    pub named: &'a StepRef,
    /// The number of the record, if it has to be created.
    pub step_id: i32,
}

/// What `op` makes of the stored step. That its execution exists is the caller's to check.
pub fn decide(
    target: &Target<'_>,
    stored: Option<&Step>,
    op: &StepOp,
    now: Now,
) -> Result<Decision<Step>, Refusal> {
    if let Some(stored) = stored {
        // Both names were given: they must be of one step.
        let other_id = target.named.step_id.is_some_and(|id| id != stored.step_id);
        let other_key = match (&target.named.step_key, &stored.step_key) {
            (Some(named), Some(stored)) => named != stored,
            (Some(_), None) => !matches!(op, StepOp::Start { .. } | StepOp::Plan { .. }),
            (None, _) => false,
        };
        if other_id || other_key {
            return Err(if op.may_create() { exists(target) } else { not_found(target) });
        }
    }
    match (op, stored) {
        (StepOp::Plan { step_name, fields }, stored) => {
            plan(target, stored, step_name, fields, now)
        }
        (StepOp::Start { step_name, fields, attempt }, stored) => {
            start(target, stored, step_name, fields, *attempt, now)
        }
        (StepOp::Update { .. }, None) => Err(not_found(target)),
        (StepOp::Update { update_sequence, .. }, Some(stored))
            if is_superseded(stored.update_sequence, *update_sequence) =>
        {
            Ok(Decision::Superseded)
        }
        (
            StepOp::Update { progress, progress_message, metadata, output, update_sequence },
            Some(stored),
        ) => {
            let request = Update {
                progress: *progress,
                progress_message: progress_message.as_deref(),
                metadata,
                output: output.as_ref(),
                update_sequence: *update_sequence,
            };
            update(stored, &request, now)
        }
        (StepOp::Finish { status, output, error, completed_at, step_name, fields }, stored) => {
            let request = Finish {
                status: *status,
                output: output.as_ref(),
                error: error.as_ref(),
                completed_at: *completed_at,
                step_name: step_name.as_deref(),
                fields,
            };
            finish(target, stored, &request, now)
        }
        (StepOp::Put(record), stored) => put(target, stored, record, now),
    }
}

fn not_found(target: &Target<'_>) -> Refusal {
    Refusal::StepNotFound {
        execution_id: target.execution_id.to_owned(),
        step: target.named.to_string(),
    }
}

fn exists(target: &Target<'_>) -> Refusal {
    Refusal::StepExists {
        execution_id: target.execution_id.to_owned(),
        step: match target.named.step_id.is_some() || target.named.step_key.is_some() {
            true => target.named.to_string(),
            false => target.step_id.to_string(),
        },
    }
}

fn wrong_status(stored: &Step, to: &'static str, why: &'static str) -> Refusal {
    Refusal::Status {
        what: format!("step {} of execution {}", stored.step_id, stored.execution_id),
        from: stored.status.map_or("unknown", StepStatus::as_str),
        to,
        why,
    }
}

fn changed(mut record: Step, now: Now) -> Decision<Step> {
    record.revision = now.revision_after(record.revision);
    record.updated_at = Some(now.millis());
    Decision::Put(record)
}

/// Input as stored: `{}` when none.
fn stored_input(input: Option<&Bson>) -> Bson {
    match input {
        None | Some(Bson::Null) => Bson::Document(Document::new()),
        Some(value) => value.clone(),
    }
}

fn blank(target: &Target<'_>, step_name: &str, fields: &StepFields, now: Now) -> Step {
    Step {
        execution_id: target.execution_id.to_owned(),
        step_id: target.step_id,
        step_key: target.named.step_key.clone(),
        step_name: step_name.to_owned(),
        step_version: fields.step_version.clone(),
        status: Some(StepStatus::Pending),
        started_at: None,
        completed_at: None,
        duration_ms: None,
        input: Payload::Value(stored_input(fields.input.as_ref())),
        output: Payload::Value(Bson::Null),
        error: None,
        retry_count: 0,
        metadata: fields.metadata.clone(),
        revision: now.revision_after(0),
        created_at: Some(now.millis()),
        updated_at: Some(now.millis()),
        depends_on: fields.depends_on.clone(),
        parent_step_id: fields.parent_step_id,
        progress: None,
        progress_message: None,
        update_sequence: None,
        attempts: Vec::new(),
        digests: Digests::default(),
    }
}

fn describe(
    digest: Digest,
    named: &StepRef,
    step_name: Option<&str>,
    fields: &StepFields,
) -> Digest {
    digest
        .text("step_key", named.step_key.as_deref())
        .text("step_name", step_name)
        .text("step_version", fields.step_version.as_deref())
        .value("input", fields.input.as_ref())
        .object("metadata", &fields.metadata)
        .integers("depends_on", &fields.depends_on)
        .integer("parent_step_id", fields.parent_step_id.map(i64::from))
        .integer("started_at", fields.started_at)
}

/// For a record without a digest: whether every field that was sent is what is stored.
fn fields_equal(
    stored: &Step,
    step_name: Option<&str>,
    fields: &StepFields,
) -> Result<bool, Refusal> {
    let input_equal = match (&fields.input, &stored.input) {
        (None, _) => true,
        (Some(_), Payload::Stored) => return Err(Refusal::NeedsPayload),
        (Some(sent), Payload::Value(stored)) => {
            value::same(sent, stored) || (value::is_empty(sent) && value::is_empty(stored))
        }
    };
    let mut merged = stored.metadata.clone();
    value::merge(&mut merged, &fields.metadata);
    Ok(input_equal
        && step_name.is_none_or(|name| name == stored.step_name)
        && fields.step_version.as_ref().is_none_or(|v| stored.step_version.as_ref() == Some(v))
        && merged == stored.metadata
        && (fields.depends_on.is_empty() || fields.depends_on == stored.depends_on)
        && fields.parent_step_id.is_none_or(|id| stored.parent_step_id == Some(id))
        && fields.started_at.is_none_or(|at| stored.started_at == Some(at)))
}

fn plan(
    target: &Target<'_>,
    stored: Option<&Step>,
    step_name: &str,
    fields: &StepFields,
    now: Now,
) -> Result<Decision<Step>, Refusal> {
    let digest = describe(Digest::new("plan_step"), target.named, Some(step_name), fields).finish();
    let Some(stored) = stored else {
        let mut step = blank(target, step_name, fields, now);
        step.digests.create = Some(digest);
        return Ok(Decision::Put(step));
    };
    let same = match &stored.digests.create {
        Some(stored) => *stored == digest,
        // Started or finished before its plan came: what the plan says and nobody has said since is a fact.
        None if stored.digests != Digests::default() => {
            if stored.step_name != step_name {
                return Err(exists(target));
            }
            let mut next = stored.clone();
            fill(&mut next, target.named, fields)?;
            next.digests.create = Some(digest);
            return Ok(changed(next, now));
        }
        None => {
            stored.step_key == target.named.step_key
                && fields_equal(stored, Some(step_name), fields)?
        }
    };
    if same { Ok(Decision::Keep) } else { Err(exists(target)) }
}

fn start(
    target: &Target<'_>,
    stored: Option<&Step>,
    step_name: &str,
    fields: &StepFields,
    attempt: Option<i32>,
    now: Now,
) -> Result<Decision<Step>, Refusal> {
    let digest =
        describe(Digest::new("start_step"), target.named, Some(step_name), fields).finish();
    let started_at = Some(fields.started_at.unwrap_or(now.millis()));
    let Some(stored) = stored else {
        let mut step = blank(target, step_name, fields, now);
        step.status = Some(StepStatus::Running);
        step.started_at = started_at;
        // The tries before were never reported; their number is still a fact.
        step.retry_count = attempt.map_or(0, |attempt| attempt - 1);
        step.digests.start = Some(digest);
        return Ok(Decision::Put(step));
    };
    if stored.step_name != step_name {
        return Err(exists(target));
    }
    let current_attempt = stored.retry_count.saturating_add(1);
    let begins = match stored.status {
        Some(StepStatus::Pending) => true,
        Some(StepStatus::Failed) => match attempt {
            Some(attempt) => attempt > current_attempt,
            None => true,
        },
        status => {
            if attempt.is_some_and(|attempt| attempt > current_attempt) {
                return Err(wrong_status(
                    stored,
                    "running",
                    match status {
                        Some(StepStatus::Running) => {
                            "only a failed step can be retried; finish this attempt first"
                        }
                        _ => "only a failed step can be retried",
                    },
                ));
            }
            false
        }
    };
    if !begins {
        if attempt.is_some_and(|attempt| attempt < current_attempt) {
            // A late repeat of an earlier try, whose content is no longer stored.
            return Ok(Decision::Keep);
        }
        let same = match &stored.digests.start {
            Some(stored) => *stored == digest,
            // Its end came first: what the start says is what was said first.
            None if stored.digests != Digests::default() => {
                let mut next = stored.clone();
                override_with(&mut next, target.named, fields);
                if let Some(started_at) = fields.started_at {
                    next.started_at = Some(started_at);
                    next.duration_ms =
                        stored.completed_at.and_then(|end| duration_ms(next.started_at, end));
                }
                next.digests.start = Some(digest);
                return Ok(changed(next, now));
            }
            None => fields_equal(stored, Some(step_name), fields)?,
        };
        return if same { Ok(Decision::Keep) } else { Err(exists(target)) };
    }

    let mut next = stored.clone();
    if stored.status == Some(StepStatus::Failed) {
        next.retry_count = attempt.map_or(current_attempt, |attempt| attempt - 1);
        next.attempts.push(Attempt {
            started_at: stored.started_at,
            completed_at: stored.completed_at,
            duration_ms: stored.duration_ms,
            error: stored.error.as_ref().map(cut_error),
        });
        let excess = next.attempts.len().saturating_sub(ATTEMPTS_KEPT);
        next.attempts.drain(..excess);
        next.output = Payload::Value(Bson::Null);
        next.progress = None;
        next.progress_message = None;
        next.update_sequence = None;
    } else if let Some(attempt) = attempt {
        next.retry_count = attempt - 1;
    }
    next.status = Some(StepStatus::Running);
    next.started_at = started_at;
    next.completed_at = None;
    next.duration_ms = None;
    next.error = None;
    next.digests.start = Some(digest);
    next.digests.finish = None;
    let metadata = std::mem::take(&mut next.metadata);
    override_with(&mut next, target.named, fields);
    next.metadata = metadata;
    value::merge(&mut next.metadata, &fields.metadata);
    Ok(changed(next, now))
}

/// Lets what a start says about its step stand over what the step had; of metadata what is stored stands, as it
/// was said later.
fn override_with(next: &mut Step, named: &StepRef, fields: &StepFields) {
    if next.step_key.is_none() {
        next.step_key = named.step_key.clone();
    }
    if fields.step_version.is_some() {
        next.step_version = fields.step_version.clone();
    }
    if let Some(input) = &fields.input
        && !matches!(input, Bson::Null)
    {
        next.input = Payload::Value(input.clone());
    }
    let later = std::mem::replace(&mut next.metadata, fields.metadata.clone());
    value::merge(&mut next.metadata, &later);
    if !fields.depends_on.is_empty() {
        next.depends_on = fields.depends_on.clone();
    }
    if fields.parent_step_id.is_some() {
        next.parent_step_id = fields.parent_step_id;
    }
}

/// Fills what the step does not have yet.
fn fill(next: &mut Step, named: &StepRef, fields: &StepFields) -> Result<(), Refusal> {
    if next.step_key.is_none() {
        next.step_key = named.step_key.clone();
    }
    if next.step_version.is_none() {
        next.step_version = fields.step_version.clone();
    }
    if let Some(input) = &fields.input
        && !value::is_empty(input)
    {
        match &next.input {
            Payload::Stored => return Err(Refusal::NeedsPayload),
            Payload::Value(old) if value::is_empty(old) => {
                next.input = Payload::Value(input.clone());
            }
            Payload::Value(_) => {}
        }
    }
    let later = std::mem::replace(&mut next.metadata, fields.metadata.clone());
    value::merge(&mut next.metadata, &later);
    if next.depends_on.is_empty() {
        next.depends_on = fields.depends_on.clone();
    }
    next.parent_step_id = next.parent_step_id.or(fields.parent_step_id);
    Ok(())
}

fn cut_error(error: &RunError) -> RunError {
    let cut = |text: &str| {
        let mut end = text.len().min(ATTEMPT_ERROR_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text[..end].to_owned()
    };
    let details_fit = value::size_of_document(&error.details) <= ATTEMPT_ERROR_BYTES;
    RunError {
        message: cut(&error.message),
        code: error.code.clone(),
        stack_trace: cut(&error.stack_trace),
        details: if details_fit { error.details.clone() } else { Document::new() },
    }
}

struct Update<'a> {
    progress: Option<f64>,
    progress_message: Option<&'a str>,
    metadata: &'a Document,
    output: Option<&'a Bson>,
    update_sequence: Option<i64>,
}

fn update(stored: &Step, request: &Update<'_>, now: Now) -> Result<Decision<Step>, Refusal> {
    let mut next = stored.clone();
    if request.progress.is_some() {
        next.progress = request.progress;
    }
    if let Some(message) = request.progress_message {
        next.progress_message = Some(message.to_owned());
    }
    next.update_sequence = request.update_sequence.or(next.update_sequence);
    value::merge(&mut next.metadata, request.metadata);
    match request.output {
        None => {}
        Some(Bson::Document(patch)) => match &stored.output {
            Payload::Stored => return Err(Refusal::NeedsPayload),
            Payload::Value(Bson::Document(old)) => {
                let mut merged = old.clone();
                value::merge(&mut merged, patch);
                next.output = Payload::Value(Bson::Document(merged));
            }
            Payload::Value(_) => next.output = Payload::Value(Bson::Document(patch.clone())),
        },
        Some(other) => next.output = Payload::Value(other.clone()),
    }
    if next == *stored {
        return Ok(Decision::Keep);
    }
    Ok(changed(next, now))
}

struct Finish<'a> {
    status: StepStatus,
    output: Option<&'a Bson>,
    error: Option<&'a RunError>,
    completed_at: Option<Millis>,
    step_name: Option<&'a str>,
    fields: &'a StepFields,
}

fn finish(
    target: &Target<'_>,
    stored: Option<&Step>,
    request: &Finish<'_>,
    now: Now,
) -> Result<Decision<Step>, Refusal> {
    let digest =
        describe(Digest::new("finish_step"), target.named, request.step_name, request.fields)
            .text("status", Some(request.status.as_str()))
            .value("output", request.output)
            .error(request.error)
            .integer("completed_at", request.completed_at)
            .finish();
    let completed_at = request.completed_at.unwrap_or(now.millis());
    let Some(stored) = stored else {
        let Some(step_name) = request.step_name else {
            return Err(not_found(target));
        };
        let mut step = blank(target, step_name, request.fields, now);
        step.status = Some(request.status);
        // The server fills the start with the latest moment it can have been.
        step.started_at = match request.status {
            StepStatus::Skipped => request.fields.started_at,
            _ => Some(request.fields.started_at.unwrap_or(completed_at.min(now.millis()))),
        };
        step.completed_at = Some(completed_at);
        step.duration_ms = duration_ms(step.started_at, completed_at);
        step.output = Payload::Value(request.output.cloned().unwrap_or(Bson::Null));
        step.error = request.error.cloned();
        step.digests.finish = Some(digest);
        return Ok(Decision::Put(step));
    };
    if request.step_name.is_some_and(|name| name != stored.step_name) {
        return Err(exists(target));
    }
    if let Some(from) = stored.status
        && from.is_terminal()
    {
        if from != request.status {
            return Err(wrong_status(stored, request.status.as_str(), "it has already ended"));
        }
        let same = match &stored.digests.finish {
            Some(stored) => *stored == digest,
            None => {
                let output_equal = match (request.output, &stored.output) {
                    (None, _) => true,
                    (Some(_), Payload::Stored) => return Err(Refusal::NeedsPayload),
                    (Some(sent), Payload::Value(stored)) => value::same(sent, stored),
                };
                output_equal
                    && stored.error.as_ref() == request.error
                    && (request.completed_at.is_none()
                        || stored.completed_at == request.completed_at)
                    && fields_equal(stored, request.step_name, request.fields)?
            }
        };
        return if same { Ok(Decision::Keep) } else { Err(exists(target)) };
    }

    let mut next = stored.clone();
    next.status = Some(request.status);
    next.started_at = stored.started_at.or(request.fields.started_at);
    if stored.status == Some(StepStatus::Pending) && request.status != StepStatus::Skipped {
        // As for a step that was never heard of: the latest moment it can have begun.
        next.started_at = next.started_at.or(Some(completed_at.min(now.millis())));
    }
    next.completed_at = Some(completed_at);
    next.duration_ms = duration_ms(next.started_at, completed_at);
    if let Some(output) = request.output {
        next.output = Payload::Value(output.clone());
    }
    next.error = request.error.cloned();
    fill(&mut next, target.named, request.fields)?;
    // What the end says of metadata is the latest word.
    value::merge(&mut next.metadata, &request.fields.metadata);
    next.digests.finish = Some(digest);
    Ok(changed(next, now))
}

fn put(
    target: &Target<'_>,
    stored: Option<&Step>,
    record: &Step,
    now: Now,
) -> Result<Decision<Step>, Refusal> {
    let mut digest = Digest::new("put_step")
        .text("step_key", record.step_key.as_deref())
        .text("step_name", Some(&record.step_name))
        .text("step_version", record.step_version.as_deref())
        .text("status", record.status.map(StepStatus::as_str))
        .integer("started_at", record.started_at)
        .integer("completed_at", record.completed_at)
        .integer("duration_ms", record.duration_ms)
        .value("input", record.input.value())
        .value("output", record.output.value())
        .error(record.error.as_ref())
        .integer("retry_count", Some(i64::from(record.retry_count)))
        .object("metadata", &record.metadata)
        .integer("created_at", record.created_at)
        .integer("updated_at", record.updated_at)
        .integers("depends_on", &record.depends_on)
        .integer("parent_step_id", record.parent_step_id.map(i64::from))
        .value("progress", record.progress.map(Bson::Double).as_ref())
        .text("progress_message", record.progress_message.as_deref())
        .integer("update_sequence", record.update_sequence);
    for attempt in &record.attempts {
        digest = digest
            .integer("attempt.started_at", attempt.started_at)
            .integer("attempt.completed_at", attempt.completed_at)
            .integer("attempt.duration_ms", attempt.duration_ms)
            .error(attempt.error.as_ref());
    }
    let digest = digest.finish();
    let Some(stored) = stored else {
        let mut step = record.clone();
        step.execution_id = target.execution_id.to_owned();
        step.step_id = target.step_id;
        step.input = Payload::Value(stored_input(record.input.value()));
        step.output = Payload::Value(record.output.value().cloned().unwrap_or(Bson::Null));
        step.revision = now.revision_after(0);
        step.digests = Digests { create: Some(digest), ..Digests::default() };
        return Ok(Decision::Put(step));
    };
    let same = match &stored.digests.create {
        Some(stored) => *stored == digest,
        None if stored.digests != Digests::default() => false,
        None => {
            let (Payload::Value(input), Payload::Value(output)) = (&stored.input, &stored.output)
            else {
                return Err(Refusal::NeedsPayload);
            };
            let payload_equal = |sent: &Payload, stored: &Bson| match sent.value() {
                None => value::is_empty(stored),
                Some(sent) => {
                    value::same(sent, stored) || (value::is_empty(sent) && value::is_empty(stored))
                }
            };
            let mut comparable = record.without_payloads();
            comparable.step_id = stored.step_id;
            comparable.execution_id = stored.execution_id.clone();
            comparable.revision = stored.revision;
            comparable.digests = stored.digests.clone();
            payload_equal(&record.input, input)
                && payload_equal(&record.output, output)
                && comparable == stored.without_payloads()
        }
    };
    if same { Ok(Decision::Keep) } else { Err(exists(target)) }
}

/// Checks that the dependencies of planned steps lead to known steps and never in a circle. `known` are the
/// steps already stored, with their own dependencies.
pub fn check_plan(
    planned: &[(i32, &[i32])],
    known: &std::collections::HashMap<i32, Vec<i32>>,
) -> Result<(), Refusal> {
    let new: std::collections::HashMap<i32, &[i32]> = planned.iter().copied().collect();
    let edges = |id: i32| -> Option<&[i32]> {
        new.get(&id).copied().or_else(|| known.get(&id).map(Vec::as_slice))
    };
    for (step_id, depends_on) in planned {
        for dependency in *depends_on {
            if edges(*dependency).is_none() {
                return Err(Refusal::UnknownDependency {
                    step_id: *step_id,
                    depends_on: *dependency,
                });
            }
        }
    }
    // Depth first, without recursion: a plan may be one chain of a thousand.
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        Open,
        Done,
    }
    let mut marks = std::collections::HashMap::new();
    for (root, _) in planned {
        let mut stack = vec![(*root, 0usize)];
        while let Some((id, next)) = stack.pop() {
            if next == 0 {
                match marks.get(&id) {
                    Some(Mark::Done) => continue,
                    Some(Mark::Open) => return Err(Refusal::DependencyCycle { step_id: id }),
                    None => {
                        marks.insert(id, Mark::Open);
                    }
                }
            }
            match edges(id).and_then(|edges| edges.get(next)) {
                Some(dependency) => {
                    stack.push((id, next + 1));
                    if marks.get(dependency) == Some(&Mark::Open) {
                        return Err(Refusal::DependencyCycle { step_id: *dependency });
                    }
                    stack.push((*dependency, 0));
                }
                None => {
                    marks.insert(id, Mark::Done);
                }
            }
        }
    }
    Ok(())
}
