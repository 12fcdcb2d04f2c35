//! The transitions of a step's life.

use bson::{Bson, Document};

use super::fields::{blank, changed, describe, fields_equal, fill, override_with};
use super::held::{Attempt, Payload};
use super::op::{StepFields, Target, exists, not_found, wrong_status};
use super::record::{Step, StepStatus};
use crate::domain::digest::Digest;
use crate::domain::limits::{ATTEMPT_ERROR_BYTES, ATTEMPTS_KEPT};
use crate::domain::refusal::Refusal;
use crate::domain::terms::{Decision, Digests, Millis, Now, RunError, duration_ms};
use crate::domain::value;

pub(super) fn plan(
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
            fill(&mut next, target, fields)?;
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

pub(super) fn start(
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
                override_with(&mut next, target, fields);
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
    override_with(&mut next, target, fields);
    next.metadata = metadata;
    value::merge(&mut next.metadata, &fields.metadata);
    Ok(changed(next, now))
}

pub(super) fn cut_error(error: &RunError) -> RunError {
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

pub(super) struct Update<'a> {
    pub progress: Option<f64>,
    pub progress_message: Option<&'a str>,
    pub metadata: &'a Document,
    pub output: Option<&'a Bson>,
    pub update_sequence: Option<i64>,
}

pub(super) fn update(
    stored: &Step,
    request: &Update<'_>,
    now: Now,
) -> Result<Decision<Step>, Refusal> {
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

pub(super) struct Finish<'a> {
    pub status: StepStatus,
    pub output: Option<&'a Bson>,
    pub error: Option<&'a RunError>,
    pub completed_at: Option<Millis>,
    pub step_name: Option<&'a str>,
    pub fields: &'a StepFields,
}

pub(super) fn finish(
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
    fill(&mut next, target, request.fields)?;
    // What the end says of metadata is the latest word.
    value::merge(&mut next.metadata, &request.fields.metadata);
    next.digests.finish = Some(digest);
    Ok(changed(next, now))
}
