//! Every event as one line: JSON, or text for pipes and logs.

use super::view::View;
use crate::cli::exit::Result;
use crate::cli::output::{Output, message};
use crate::cli::{json, text};
use crate::proto;
use proto::watch_execution_response::Event;

pub struct LinesView {
    output: Output,
    payloads: bool,
    /// Several executions are watched: lines of steps name theirs.
    several: bool,
}

impl LinesView {
    pub fn new(output: &Output, payloads: bool, several: bool) -> Self {
        LinesView { output: *output, payloads, several }
    }
}

impl View for LinesView {
    fn event(&mut self, event: &proto::WatchExecutionResponse) -> Result<()> {
        if self.output.is_json() {
            return self.output.json(&json::event(event, self.payloads));
        }
        match line(event, self.several) {
            Some(line) => self.output.line(&line),
            None => Ok(()),
        }
    }

    fn notice(&mut self, text: &str) {
        message(&format!("note: {text}"));
    }
}

/// An event in words; `None` for those that tell a person nothing.
fn line(event: &proto::WatchExecutionResponse, several: bool) -> Option<String> {
    let said = match event.event.as_ref()? {
        Event::Execution(changed) => {
            let execution = changed.execution.as_ref()?;
            if changed.change_type() == proto::ChangeType::Deleted {
                format!("execution {} deleted", execution.execution_id)
            } else {
                let mut said = format!(
                    "{} execution {} {} {}",
                    when(execution.updated_at.as_ref()),
                    execution.execution_id,
                    text::execution_status(execution.status),
                    text::app(execution),
                );
                if execution.duration_ms.is_some() {
                    said = format!("{said} in {}", text::duration_ms(execution.duration_ms));
                }
                if execution.cancel_requested_at.is_some()
                    && execution.status == i32::from(proto::ExecutionStatus::Running)
                {
                    let reason = execution.cancel_reason.as_deref().unwrap_or_default();
                    said = format!("{said}, asked to stop: {reason}");
                }
                with_error(said, execution.error.as_ref())
            }
        }
        Event::Step(changed) => {
            let step = changed.step.as_ref()?;
            let of = if several { format!(" of {}", step.execution_id) } else { String::new() };
            if changed.change_type() == proto::ChangeType::Deleted {
                format!("step {}{of} deleted", text::step_label(step))
            } else {
                let mut said = format!(
                    "{} step {}{of} {}",
                    when(step.updated_at.as_ref()),
                    text::step_label(step),
                    text::step_status(step.status),
                );
                if let Some(progress) = step.progress
                    && step.status == i32::from(proto::StepStatus::Running)
                {
                    said = format!("{said} {:.0} %", progress * 100.0);
                    if let Some(message) = &step.progress_message {
                        said = format!("{said} {message}");
                    }
                }
                if step.duration_ms.is_some() {
                    said = format!("{said} in {}", text::duration_ms(step.duration_ms));
                }
                if step.retry_count > 0 {
                    said = format!("{said}, try {}", step.retry_count.saturating_add(1));
                }
                with_error(said, step.error.as_ref())
            }
        }
        Event::Artifact(changed) => {
            let artifact = changed.artifact.as_ref()?;
            format!("artifact {} {}", artifact.artifact_type, artifact.artifact_name)
        }
        Event::Metrics(recorded) => {
            format!("{} of metrics", text::count(recorded.points.len() as u64, "point", "points"))
        }
        Event::SnapshotComplete(_) | Event::Keepalive(_) => return None,
    };
    Some(text::one_line(&said))
}

fn when(at: Option<&prost_types::Timestamp>) -> String {
    at.map_or_else(|| text::NOTHING.to_owned(), text::exact_time)
}

fn with_error(said: String, error: Option<&proto::Error>) -> String {
    match error {
        Some(_) => format!("{said}: {}", text::error(error)),
        None => said,
    }
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;

    #[test]
    fn each_event_is_one_line_of_words() {
        let event =
            |event| proto::WatchExecutionResponse { event: Some(event), ..Default::default() };
        let execution = proto::Execution {
            execution_id: "e-1".to_owned(),
            app_name: "app".to_owned(),
            sub_app_name: Some("part".to_owned()),
            status: proto::ExecutionStatus::Failed.into(),
            duration_ms: Some(1500),
            updated_at: Some(Timestamp { seconds: 1, nanos: 2_000_000 }),
            error: Some(proto::Error {
                message: "it\nbroke".to_owned(),
                code: "E1".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let changed = proto::ExecutionChange {
            change_type: proto::ChangeType::Updated.into(),
            execution: Some(execution.clone()),
        };
        assert_eq!(
            line(&event(Event::Execution(changed)), false).as_deref(),
            Some("1970-01-01T00:00:01.002Z execution e-1 failed app / part in 1.5s: E1: it broke")
        );
        let deleted = proto::ExecutionChange {
            change_type: proto::ChangeType::Deleted.into(),
            execution: Some(execution),
        };
        assert_eq!(
            line(&event(Event::Execution(deleted)), false).as_deref(),
            Some("execution e-1 deleted")
        );
        let step = proto::Step {
            execution_id: "e-1".to_owned(),
            step_id: Some(3),
            step_key: Some("k".to_owned()),
            step_name: "fetch".to_owned(),
            status: proto::StepStatus::Running.into(),
            progress: Some(0.25),
            progress_message: Some("1 of 4".to_owned()),
            retry_count: 1,
            ..Default::default()
        };
        let changed =
            proto::StepChange { change_type: proto::ChangeType::Updated.into(), step: Some(step) };
        assert_eq!(
            line(&event(Event::Step(changed)), true).as_deref(),
            Some("– step 3 fetch [k] of e-1 running 25 % 1 of 4, try 2")
        );
        assert_eq!(line(&event(Event::Keepalive(proto::Keepalive {})), true), None);
    }
}
