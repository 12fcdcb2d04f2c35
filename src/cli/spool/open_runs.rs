//! Which runs and steps a process has begun and not ended: what has to be ended if it is gone.

use std::collections::BTreeSet;

use indexmap::{IndexMap, IndexSet};
use prost_types::Timestamp;
use serde_json::Value as Json;

use crate::proto;
use crate::proto::ingest_request::Write;

/// What the error of a run says whose process is gone.
const PROCESS_DIED: &str = "PROCESS_DIED";

#[derive(Debug, Default)]
pub struct OpenRuns {
    runs: IndexMap<String, IndexSet<String>>,
    /// Somebody else goes on with them.
    shared: BTreeSet<String>,
}

impl OpenRuns {
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// From a note.
    pub fn restore(&mut self, note: &Json) {
        for (run, steps) in note["open"].as_object().into_iter().flatten() {
            let steps = steps.as_array().into_iter().flatten().filter_map(Json::as_str);
            self.runs.entry(run.clone()).or_default().extend(steps.map(str::to_owned));
        }
        let shared = note["shared"].as_array().into_iter().flatten().filter_map(Json::as_str);
        self.shared.extend(shared.map(str::to_owned));
    }

    /// A write was made.
    pub fn observe(&mut self, write: &Write) {
        match write {
            Write::CreateExecution(create) => {
                self.runs.entry(create.execution_id.clone().unwrap_or_default()).or_default();
            }
            Write::FinishExecution(finish) => {
                self.runs.shift_remove(&finish.execution_id);
                self.shared.remove(&finish.execution_id);
            }
            Write::StartStep(start) => {
                if let (Some(steps), Some(key)) =
                    (self.runs.get_mut(&start.execution_id), &start.step_key)
                {
                    steps.insert(key.clone());
                }
            }
            Write::FinishStep(finish) => {
                if let (Some(steps), Some(key)) =
                    (self.runs.get_mut(&finish.execution_id), &finish.step_key)
                {
                    steps.shift_remove(key);
                }
            }
            _ => {}
        }
    }

    /// The writes that end what nobody else can end: a guess, which a later sign of life takes back.
    pub fn ends(self, at: Timestamp) -> Vec<Write> {
        let error = |what: &str| {
            Some(proto::Error {
                message: format!("the process ended while the {what}"),
                code: PROCESS_DIED.to_owned(),
                ..proto::Error::default()
            })
        };
        let mut writes = Vec::new();
        for (execution_id, steps) in self.runs {
            if self.shared.contains(&execution_id) {
                continue;
            }
            for key in steps {
                writes.push(Write::FinishStep(proto::FinishStepRequest {
                    execution_id: execution_id.clone(),
                    step_key: Some(key),
                    status: proto::StepStatus::Failed.into(),
                    error: error("step was running"),
                    completed_at: Some(at),
                    ..proto::FinishStepRequest::default()
                }));
            }
            writes.push(Write::FinishExecution(proto::FinishExecutionRequest {
                execution_id,
                status: proto::ExecutionStatus::Failed.into(),
                error: error("run was open"),
                completed_at: Some(at),
                ..proto::FinishExecutionRequest::default()
            }));
        }
        writes
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_open_is_ended_but_what_is_shared() {
        let mut open = OpenRuns::default();
        assert!(open.is_empty());
        open.restore(&json!({"open": {"a": ["k", "l"], "b": [], "c": []}, "shared": ["b"]}));
        open.observe(&Write::FinishExecution(proto::FinishExecutionRequest {
            execution_id: "c".to_owned(),
            ..proto::FinishExecutionRequest::default()
        }));
        open.observe(&Write::CreateExecution(proto::CreateExecutionRequest {
            execution_id: Some("d".to_owned()),
            ..proto::CreateExecutionRequest::default()
        }));
        for (execution, key) in [("d", "m"), ("unknown", "n")] {
            open.observe(&Write::StartStep(proto::StartStepRequest {
                execution_id: execution.to_owned(),
                step_key: Some(key.to_owned()),
                ..proto::StartStepRequest::default()
            }));
        }
        open.observe(&Write::FinishStep(proto::FinishStepRequest {
            execution_id: "a".to_owned(),
            step_key: Some("k".to_owned()),
            ..proto::FinishStepRequest::default()
        }));
        let kinds: Vec<_> = open
            .ends(Timestamp::default())
            .iter()
            .map(|write| match write {
                Write::FinishStep(step) => format!("{}/{}", step.execution_id, step.step_key()),
                Write::FinishExecution(run) => run.execution_id.clone(),
                _ => String::new(),
            })
            .collect();
        assert_eq!(kinds, ["a/l", "a", "d/m", "d"]);
    }
}
