//! A whole record as it is: imported once, or mirrored again and again.

use bson::Bson;

use super::fields::stored_input;
use super::held::Payload;
use super::op::{Target, exists};
use super::record::{FIELDS, Step};
use crate::domain::mirrored::{self, Mirrored, Verdict};
use crate::domain::refusal::Refusal;
use crate::domain::stored;
use crate::domain::terms::{Decision, Digests, Now};
use crate::domain::value;

pub(super) fn put(
    target: &Target<'_>,
    stored: Option<&Step>,
    record: &Step,
    now: Now,
) -> Result<Decision<Step>, Refusal> {
    let digest = match record.mirrored_position {
        None => stored::digest("put_step", FIELDS, record),
        // How it came is not what it says.
        Some(_) => {
            let unmirrored = Step { mirrored_position: None, ..record.clone() };
            stored::digest("put_step", FIELDS, &unmirrored)
        }
    };
    let whole = |step_id, revision, digest| {
        let mut step = record.clone();
        step.execution_id = target.execution_id.to_owned();
        step.step_id = step_id;
        step.input = Payload::Value(stored_input(record.input.value()));
        step.output = Payload::Value(record.output.value().cloned().unwrap_or(Bson::Null));
        step.revision = revision;
        step.mirrored_revision = record.mirrored_position.map(|_| revision);
        step.digests = Digests { create: Some(digest), ..Digests::default() };
        step
    };
    let Some(stored) = stored else {
        return Ok(Decision::Put(whole(target.step_id, now.revision_after(0), digest)));
    };
    if let Some(position) = record.mirrored_position {
        let untouched = stored.mirrored_revision == Some(stored.revision);
        let before = Mirrored { position: stored.mirrored_position, untouched };
        return match mirrored::judge(before, position, || same_content(stored, record))? {
            Verdict::Late => Ok(Decision::Superseded),
            Verdict::Replaces => {
                let revision = now.revision_after(stored.revision);
                Ok(Decision::Put(whole(stored.step_id, revision, digest)))
            }
            Verdict::Conflict => {
                let (step, id) = (stored.step_id, &stored.execution_id);
                Err(Refusal::MirrorConflict { what: format!("step {step} of execution {id}") })
            }
        };
    }
    let same = match &stored.digests.create {
        Some(stored) => *stored == digest,
        None if stored.digests != Digests::default() => false,
        None => same_content(stored, record)?,
    };
    if same { Ok(Decision::Keep) } else { Err(exists(target)) }
}

/// Whether a record says what is stored.
fn same_content(stored: &Step, record: &Step) -> Result<bool, Refusal> {
    let (Payload::Value(input), Payload::Value(output)) = (&stored.input, &stored.output) else {
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
    comparable.mirrored_position = stored.mirrored_position;
    comparable.mirrored_revision = stored.mirrored_revision;
    comparable.digests = stored.digests.clone();
    Ok(payload_equal(&record.input, input)
        && payload_equal(&record.output, output)
        && comparable == stored.without_payloads())
}
