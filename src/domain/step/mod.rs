//! Rules of a step's life: PENDING, RUNNING, then COMPLETED, FAILED or SKIPPED; FAILED may run again (a retry).
//!
//! Facts are never lost because of their order, so what only describes a step (progress, metadata, output) is
//! taken in every status; only the statuses themselves obey transitions.

mod fields;
pub mod held;
mod life;
mod op;
mod plan;
mod put;
mod record;

use crate::domain::execution::is_superseded;
use crate::domain::refusal::Refusal;
use crate::domain::terms::{Decision, Now};
use life::{Finish, Update, finish, plan, start, update};
use op::{exists, not_found};
use put::put;

pub use held::{Attempt, Payload};
pub use op::{StepFields, StepOp, Target};
pub use plan::check_plan;
pub use record::{FIELDS, Step, StepNames, StepRef, StepStatus, fill_in_parents};

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
