//! When the watch of one execution is over: the execution has ended and no step of it is running, or it is gone.

use std::collections::HashSet;

use super::event::Event;
use crate::domain::{Step, StepStatus};
use crate::store::Record;

/// What a stream knows about the end of its execution.
#[derive(Debug, Default)]
pub struct Ending {
    pub terminal: bool,
    /// The end was seen in a record newer than its place in the log: what happened before it may still come.
    pub ahead: bool,
    /// Steps that are running; not all of them are known unless `steps_known`.
    pub running: HashSet<i32>,
    pub steps_known: bool,
    /// Nothing is over before everything up to this position was seen.
    pub barrier: Option<u64>,
    /// The execution was deleted, and the watcher has been told.
    pub deleted: bool,
    /// There was no execution when the stream began; history up to the barrier says whether there ever was.
    pub missing: bool,
}

impl Ending {
    /// Takes note of an event that is being delivered.
    pub fn note(&mut self, event: &Event) {
        match (&event.record, event.key.step_id) {
            (Some(Record::Execution(execution)), _) => {
                self.terminal = execution.is_terminal();
                self.missing = false;
                self.ahead = event.looked_up.is_some()
                    && event.revision.is_some_and(|revision| execution.revision > revision);
            }
            (Some(Record::Step(step)), _) => self.note_step(step),
            (Some(Record::Artifact(_)), _) => {}
            (None, Some(step_id)) => {
                self.running.remove(&step_id);
            }
            (None, None) => self.deleted |= event.key.is_execution(),
        }
    }

    pub fn note_step(&mut self, step: &Step) {
        if step.status == Some(StepStatus::Running) {
            self.running.insert(step.step_id);
        } else {
            self.running.remove(&step.step_id);
        }
    }
}
