//! The live view of one execution: a header with its status and clock, a bar for each running step, and a line
//! for each step that ended.

use std::collections::BTreeMap;
use std::time::Duration;

use prost_types::Timestamp;

use super::screen::{Row, Screen, room};
use super::view::View;
use crate::cli::exit::Result;
use crate::cli::output::Output;
use crate::cli::text;
use crate::clock::Clock;
use crate::proto;
use proto::watch_execution_response::Event;

/// Ended steps of the snapshot that are shown as lines; those before are only counted.
const ENDED_SHOWN: usize = 20;

pub struct OneView<'a> {
    screen: Screen<i32>,
    clock: &'a dyn Clock,
    execution: proto::Execution,
    running: BTreeMap<i32, proto::Step>,
    /// Status of every step, for the counts.
    steps: BTreeMap<i32, i32>,
    /// Lines of steps that ended before the snapshot was complete.
    before: Vec<String>,
    complete: bool,
}

impl<'a> OneView<'a> {
    pub fn new(execution_id: &str, output: &Output, clock: &'a dyn Clock) -> Self {
        OneView {
            screen: Screen::new(output),
            clock,
            execution: proto::Execution {
                execution_id: execution_id.to_owned(),
                ..Default::default()
            },
            running: BTreeMap::new(),
            steps: BTreeMap::new(),
            before: Vec::new(),
            complete: false,
        }
    }

    fn step(&mut self, changed: &proto::StepChange) {
        let Some(step) = &changed.step else { return };
        let Some(id) = step.step_id else { return };
        if changed.change_type() == proto::ChangeType::Deleted {
            self.running.remove(&id);
            self.steps.remove(&id);
            return;
        }
        let before = self.steps.insert(id, step.status);
        if step.status() == proto::StepStatus::Running {
            self.running.insert(id, step.clone());
            return;
        }
        self.running.remove(&id);
        if step.status() == proto::StepStatus::Pending || before == Some(step.status) {
            return;
        }
        let line = ended(step);
        if self.complete {
            self.screen.line(&line);
        } else {
            self.before.push(line);
        }
    }

    fn snapshot_complete(&mut self) {
        let skipped = self.before.len().saturating_sub(ENDED_SHOWN);
        if skipped > 0 {
            self.screen.line(&format!(
                "  … {} ended before these",
                text::count(skipped as u64, "step", "steps")
            ));
        }
        for line in self.before.drain(..).skip(skipped) {
            self.screen.line(&line);
        }
        self.complete = true;
    }

    fn draw(&mut self) {
        let now = self.clock.now().micros;
        self.screen.header(&header(&self.execution, &self.steps, now));
        let shown = self.running.iter().take(room());
        let rows = shown
            .map(|(id, step)| {
                let row = Row {
                    label: text::step_label(step),
                    progress: step.progress,
                    clock: since(step.started_at.as_ref(), now),
                    message: step.progress_message.clone().unwrap_or_default(),
                };
                (*id, row)
            })
            .collect();
        self.screen.rows(rows, self.running.len().saturating_sub(room()));
    }
}

impl View for OneView<'_> {
    fn event(&mut self, event: &proto::WatchExecutionResponse) -> Result<()> {
        match &event.event {
            Some(Event::Execution(changed)) => {
                if let Some(execution) = &changed.execution {
                    if changed.change_type() == proto::ChangeType::Deleted {
                        self.running.clear();
                        self.screen.line("the execution was deleted");
                    } else {
                        self.execution = execution.clone();
                    }
                }
            }
            Some(Event::Step(changed)) => self.step(changed),
            Some(Event::SnapshotComplete(_)) => self.snapshot_complete(),
            _ => {}
        }
        // A resumed watch has no snapshot; its first event with a token says that it is live.
        if !event.resume_token.is_empty() && !self.complete {
            self.snapshot_complete();
        }
        Ok(())
    }

    fn notice(&mut self, text: &str) {
        self.screen.line(&text::one_line(text));
    }

    fn restart(&mut self) {
        self.running.clear();
        self.steps.clear();
        self.before.clear();
        self.complete = false;
    }

    fn tick(&mut self) {
        self.draw();
    }

    fn finish(&mut self) {
        if !self.complete {
            self.snapshot_complete();
        }
        self.draw();
        self.screen.finish();
        if let Some(error) = &self.execution.error {
            self.screen.line(&format!("error: {}", text::error(Some(error))));
        }
    }
}

/// A step that ended, as a line.
fn ended(step: &proto::Step) -> String {
    let mark = match step.status() {
        proto::StepStatus::Completed => "✔",
        proto::StepStatus::Failed => "✘",
        _ => "–",
    };
    let mut said =
        format!("{mark} step {} {}", text::step_label(step), text::step_status(step.status));
    if step.duration_ms.is_some() {
        said = format!("{said} in {}", text::duration_ms(step.duration_ms));
    }
    if step.error.is_some() {
        said = format!("{said}: {}", text::error(step.error.as_ref()));
    }
    text::one_line(&said)
}

fn header(execution: &proto::Execution, steps: &BTreeMap<i32, i32>, now_micros: i64) -> String {
    let status =
        if execution.status == 0 { "…" } else { text::execution_status(execution.status) };
    let clock = match execution.status() {
        proto::ExecutionStatus::Running => since(execution.started_at.as_ref(), now_micros),
        _ => text::duration_ms(execution.duration_ms),
    };
    let mut said =
        format!("{status}  {clock}  {}  {}", text::app(execution), execution.execution_id);
    let count = |wanted: proto::StepStatus| {
        steps.values().filter(|status| **status == i32::from(wanted)).count()
    };
    let counts = [
        (proto::StepStatus::Completed, "completed"),
        (proto::StepStatus::Running, "running"),
        (proto::StepStatus::Failed, "failed"),
        (proto::StepStatus::Skipped, "skipped"),
        (proto::StepStatus::Pending, "pending"),
    ];
    let counts: Vec<String> = counts
        .into_iter()
        .map(|(status, word)| (count(status), word))
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    if !counts.is_empty() {
        said = format!("{said}  steps: {}", counts.join(", "));
    }
    if execution.cancel_requested_at.is_some()
        && execution.status() == proto::ExecutionStatus::Running
    {
        said = format!("{said}  asked to stop");
    }
    said
}

/// A clock since a start; nothing where the start is unknown.
pub(super) fn since(start: Option<&Timestamp>, now_micros: i64) -> String {
    let Some(start) = start else { return text::NOTHING.to_owned() };
    let start =
        start.seconds.saturating_mul(1_000_000).saturating_add(i64::from(start.nanos) / 1000);
    let micros = now_micros.saturating_sub(start).max(0);
    text::elapsed(Duration::from_micros(micros.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_says_status_clock_and_counts() {
        let mut execution = proto::Execution {
            execution_id: "e-1".to_owned(),
            app_name: "app".to_owned(),
            status: proto::ExecutionStatus::Running.into(),
            started_at: Some(Timestamp { seconds: 10, nanos: 0 }),
            ..Default::default()
        };
        let steps = BTreeMap::from([(1, 3), (2, 3), (3, 2), (4, 4)]);
        assert_eq!(
            header(&execution, &steps, 75_000_000),
            "running  01:05  app  e-1  steps: 2 completed, 1 running, 1 failed"
        );
        execution.status = proto::ExecutionStatus::Completed.into();
        execution.duration_ms = Some(1500);
        assert_eq!(header(&execution, &BTreeMap::new(), 0), "completed  1.5s  app  e-1");
    }

    #[test]
    fn a_clock_of_a_start_in_the_future_stands_still() {
        assert_eq!(since(Some(&Timestamp { seconds: 10, nanos: 0 }), 0), "00:00");
        assert_eq!(since(None, 0), "–");
    }
}
