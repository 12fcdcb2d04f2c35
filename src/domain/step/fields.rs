//! What describes a step, whichever request brings it: as part of a digest, against what is stored, and into the record.

use bson::{Bson, Document};

use super::held::Payload;
use super::op::{StepFields, Target};
use super::record::{Step, StepRef, StepStatus};
use crate::domain::digest::Digest;
use crate::domain::refusal::Refusal;
use crate::domain::terms::{Decision, Now};
use crate::domain::value;

pub(super) fn changed(mut record: Step, now: Now) -> Decision<Step> {
    record.revision = now.revision_after(record.revision);
    record.updated_at = Some(now.millis());
    Decision::Put(record)
}

/// Input as stored: `{}` when none.
pub(super) fn stored_input(input: Option<&Bson>) -> Bson {
    match input {
        None | Some(Bson::Null) => Bson::Document(Document::new()),
        Some(value) => value.clone(),
    }
}

pub(super) fn blank(target: &Target<'_>, step_name: &str, fields: &StepFields, now: Now) -> Step {
    Step {
        execution_id: target.execution_id.to_owned(),
        step_id: target.step_id,
        step_key: target.named.step_key.clone(),
        step_name: step_name.to_owned(),
        step_version: fields.step_version.clone(),
        status: Some(StepStatus::Pending),
        input: Payload::Value(stored_input(fields.input.as_ref())),
        output: Payload::Value(Bson::Null),
        metadata: fields.metadata.clone(),
        revision: now.revision_after(0),
        created_at: Some(now.millis()),
        updated_at: Some(now.millis()),
        depends_on: fields.depends_on.clone(),
        depends_on_keys: fields.depends_on_keys.clone(),
        parent_step_id: fields.parent_step_id.or(target.parent_step_id),
        parent_step_key: fields.parent_step_key.clone(),
        ..Step::default()
    }
}

pub(super) fn describe(
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
        .texts("depends_on_keys", &fields.depends_on_keys)
        .integer("parent_step_id", fields.parent_step_id.map(i64::from))
        .text("parent_step_key", fields.parent_step_key.as_deref())
        .integer("started_at", fields.started_at)
}

/// For a record without a digest: whether every field that was sent is what is stored.
pub(super) fn fields_equal(
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
        && (fields.depends_on_keys.is_empty() || fields.depends_on_keys == stored.depends_on_keys)
        && fields.parent_step_id.is_none_or(|id| stored.parent_step_id == Some(id))
        && (fields.parent_step_key.is_none() || fields.parent_step_key == stored.parent_step_key)
        && fields.started_at.is_none_or(|at| stored.started_at == Some(at)))
}

/// Lets what a start says about its step stand over what the step had; of metadata what is stored stands, as it
/// was said later.
pub(super) fn override_with(next: &mut Step, target: &Target<'_>, fields: &StepFields) {
    if next.step_key.is_none() {
        next.step_key = target.named.step_key.clone();
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
    override_references(next, target, fields);
}

/// The steps that a step refers to: by number or by key, but never some of one and some of the other.
fn override_references(next: &mut Step, target: &Target<'_>, fields: &StepFields) {
    if !fields.depends_on.is_empty() || !fields.depends_on_keys.is_empty() {
        next.depends_on = fields.depends_on.clone();
        next.depends_on_keys = fields.depends_on_keys.clone();
    }
    if fields.parent_step_id.is_some() || fields.parent_step_key.is_some() {
        next.parent_step_id = fields.parent_step_id.or(target.parent_step_id);
        next.parent_step_key = fields.parent_step_key.clone();
    }
}

/// Fills what the step does not have yet.
pub(super) fn fill(
    next: &mut Step,
    target: &Target<'_>,
    fields: &StepFields,
) -> Result<(), Refusal> {
    if next.step_key.is_none() {
        next.step_key = target.named.step_key.clone();
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
    let (depends_on, depends_on_keys) = (next.depends_on.clone(), next.depends_on_keys.clone());
    let (parent_step_id, parent_step_key) = (next.parent_step_id, next.parent_step_key.clone());
    override_references(next, target, fields);
    if !depends_on.is_empty() || !depends_on_keys.is_empty() {
        (next.depends_on, next.depends_on_keys) = (depends_on, depends_on_keys);
    }
    if parent_step_id.is_some() || parent_step_key.is_some() {
        (next.parent_step_id, next.parent_step_key) = (parent_step_id, parent_step_key);
    }
    Ok(())
}
