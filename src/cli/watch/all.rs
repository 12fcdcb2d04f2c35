//! The live view of many executions: a header that counts them, a bar for each that runs, and a line for each
//! that ended.

use std::collections::BTreeMap;

use super::one::since;
use super::screen::{Row, Screen, room};
use super::view::View;
use crate::cli::exit::Result;
use crate::cli::output::Output;
use crate::cli::text;
use crate::clock::Clock;
use crate::proto;
use proto::watch_execution_response::Event;

/// Ended executions of the snapshot that are shown as lines; those before are only counted.
const ENDED_SHOWN: usize = 20;

pub struct AllView<'a> {
    screen: Screen<String>,
    clock: &'a dyn Clock,
    running: BTreeMap<String, Running>,
    ended: u64,
    before: Vec<String>,
    complete: bool,
}

/// A running execution and what is known of its steps.
#[derive(Default)]
struct Running {
    execution: proto::Execution,
    /// The running steps.
    steps: BTreeMap<i32, proto::Step>,
    ended_steps: u64,
}

impl<'a> AllView<'a> {
    pub fn new(output: &Output, clock: &'a dyn Clock) -> Self {
        AllView {
            screen: Screen::new(output),
            clock,
            running: BTreeMap::new(),
            ended: 0,
            before: Vec::new(),
            complete: false,
        }
    }

    fn execution(&mut self, changed: &proto::ExecutionChange) {
        let Some(execution) = &changed.execution else { return };
        if changed.change_type() == proto::ChangeType::Deleted {
            self.running.remove(&execution.execution_id);
            self.say(format!("– {} deleted", execution.execution_id));
            return;
        }
        if execution.status() == proto::ExecutionStatus::Running {
            self.running.entry(execution.execution_id.clone()).or_default().execution =
                execution.clone();
            return;
        }
        self.running.remove(&execution.execution_id);
        self.ended += 1;
        let mark = match execution.status() {
            proto::ExecutionStatus::Completed => "✔",
            proto::ExecutionStatus::Failed => "✘",
            _ => "–",
        };
        let mut said = format!(
            "{mark} {} {} {}",
            execution.execution_id,
            text::app(execution),
            text::execution_status(execution.status)
        );
        if execution.duration_ms.is_some() {
            said = format!("{said} in {}", text::duration_ms(execution.duration_ms));
        }
        if execution.error.is_some() {
            said = format!("{said}: {}", text::error(execution.error.as_ref()));
        }
        self.say(said);
    }

    fn step(&mut self, changed: &proto::StepChange) {
        let Some(step) = &changed.step else { return };
        let (Some(id), Some(running)) = (step.step_id, self.running.get_mut(&step.execution_id))
        else {
            return;
        };
        if changed.change_type() != proto::ChangeType::Deleted
            && step.status() == proto::StepStatus::Running
        {
            running.steps.insert(id, step.clone());
        } else if running.steps.remove(&id).is_some() || !self.complete {
            running.ended_steps += u64::from(step.status() != proto::StepStatus::Pending);
        }
    }

    fn say(&mut self, line: String) {
        let line = text::one_line(&line);
        if self.complete {
            self.screen.line(&line);
        } else {
            self.before.push(line);
            // Only the last ones are shown.
            if self.before.len() >= 2 * ENDED_SHOWN {
                self.before.drain(..ENDED_SHOWN);
            }
        }
    }

    fn snapshot_complete(&mut self) {
        let shown = self.before.len().min(ENDED_SHOWN);
        let earlier = self.ended.saturating_sub(shown as u64);
        if earlier > 0 {
            let said = text::count(earlier, "execution", "executions");
            self.screen.line(&format!("  … {said} ended before these"));
        }
        let skipped = self.before.len() - shown;
        for line in self.before.drain(..).skip(skipped) {
            self.screen.line(&line);
        }
        self.complete = true;
    }

    fn draw(&mut self) {
        let now = self.clock.now().micros;
        self.screen.header(&format!("{} running, {} ended", self.running.len(), self.ended));
        let rows = self
            .running
            .iter()
            .take(room())
            .map(|(id, running)| (id.clone(), row(running, now)))
            .collect();
        self.screen.rows(rows, self.running.len().saturating_sub(room()));
    }
}

fn row(running: &Running, now: i64) -> Row {
    let steps: Vec<String> = running
        .steps
        .values()
        .map(|step| match step.progress {
            Some(progress) => format!("{} {:.0} %", step.step_name, progress * 100.0),
            None => step.step_name.clone(),
        })
        .collect();
    let done = match running.ended_steps {
        0 => String::new(),
        done => format!("{} done  ", text::count(done, "step", "steps")),
    };
    Row {
        label: format!("{} {}", text::app(&running.execution), running.execution.execution_id),
        progress: None,
        clock: since(running.execution.started_at.as_ref(), now),
        message: format!("{done}{}", steps.join(", ")),
    }
}

impl View for AllView<'_> {
    fn event(&mut self, event: &proto::WatchExecutionResponse) -> Result<()> {
        match &event.event {
            Some(Event::Execution(changed)) => self.execution(changed),
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
        self.before.clear();
        self.ended = 0;
        self.complete = false;
    }

    fn tick(&mut self) {
        self.draw();
    }

    fn finish(&mut self) {
        self.draw();
        self.screen.finish();
    }
}
