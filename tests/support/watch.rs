//! A watch as tests read it: one kind of event for both calls, and every wait with a deadline.

use std::collections::HashMap;

use stepwell::proto;
use stepwell::proto::{Artifact, ChangeType, Execution, Step};
use tonic::{Code, Status, Streaming};

use super::in_time;

/// One event of a watch.
#[derive(Debug, Clone)]
pub struct Event {
    pub token: String,
    pub what: What,
}

#[derive(Debug, Clone)]
pub enum What {
    Execution(ChangeType, Execution),
    Step(ChangeType, Step),
    Metrics(Vec<proto::MetricPoint>),
    Artifact(ChangeType, Artifact),
    SnapshotComplete,
    Keepalive,
}

impl Event {
    pub fn execution(&self) -> Option<(ChangeType, &Execution)> {
        match &self.what {
            What::Execution(change, execution) => Some((*change, execution)),
            _ => None,
        }
    }

    pub fn step(&self) -> Option<(ChangeType, &Step)> {
        match &self.what {
            What::Step(change, step) => Some((*change, step)),
            _ => None,
        }
    }

    pub fn metrics(&self) -> Option<&[proto::MetricPoint]> {
        match &self.what {
            What::Metrics(points) => Some(points),
            _ => None,
        }
    }

    pub fn artifact(&self) -> Option<(ChangeType, &Artifact)> {
        match &self.what {
            What::Artifact(change, artifact) => Some((*change, artifact)),
            _ => None,
        }
    }

    pub fn is_snapshot_complete(&self) -> bool {
        matches!(self.what, What::SnapshotComplete)
    }

    pub fn is_keepalive(&self) -> bool {
        matches!(self.what, What::Keepalive)
    }

    /// Execution id, step id and revision of the record it carries.
    pub fn record(&self) -> Option<((String, Option<i32>), i64)> {
        match &self.what {
            What::Execution(_, e) => Some(((e.execution_id.clone(), None), e.revision)),
            What::Step(_, s) => Some(((s.execution_id.clone(), s.step_id), s.revision)),
            _ => None,
        }
    }
}

enum Source {
    One(Streaming<proto::WatchExecutionResponse>),
    Many(Streaming<proto::WatchExecutionsResponse>),
}

/// An open watch.
pub struct Watch {
    source: Source,
    /// The newest token seen.
    pub token: String,
    /// The greatest revision of each record; a stream that goes back fails the test.
    revisions: HashMap<(String, Option<i32>), i64>,
    foreign_changes: bool,
}

impl Watch {
    pub fn one(stream: Streaming<proto::WatchExecutionResponse>) -> Watch {
        Watch::new(Source::One(stream))
    }

    pub fn many(stream: Streaming<proto::WatchExecutionsResponse>) -> Watch {
        Watch::new(Source::Many(stream))
    }

    fn new(source: Source) -> Watch {
        Watch { source, token: String::new(), revisions: HashMap::new(), foreign_changes: false }
    }

    /// Other programs write too, and leave revisions alone: a revision may repeat.
    pub fn with_foreign_changes(mut self) -> Watch {
        self.foreign_changes = true;
        self
    }

    /// The next event, whatever it is; `None` at the end of the stream.
    pub async fn try_next(&mut self) -> Result<Option<Event>, Status> {
        let event = match &mut self.source {
            Source::One(stream) => stream.message().await?.map(|response| {
                use proto::watch_execution_response::Event as E;
                let what = match response.event.expect("an event says what happened") {
                    E::Execution(e) => execution(e),
                    E::Step(s) => step(s),
                    E::Metrics(recorded) => What::Metrics(recorded.points),
                    E::Artifact(a) => artifact(a),
                    E::SnapshotComplete(_) => What::SnapshotComplete,
                    E::Keepalive(_) => What::Keepalive,
                };
                Event { token: response.resume_token, what }
            }),
            Source::Many(stream) => stream.message().await?.map(|response| {
                use proto::watch_executions_response::Event as E;
                let what = match response.event.expect("an event says what happened") {
                    E::Execution(e) => execution(e),
                    E::Step(s) => step(s),
                    E::Artifact(a) => artifact(a),
                    E::SnapshotComplete(_) => What::SnapshotComplete,
                    E::Keepalive(_) => What::Keepalive,
                    other => panic!("an event that is not in this version: {other:?}"),
                };
                Event { token: response.resume_token, what }
            }),
        };
        if let Some(event) = &event {
            self.check(event);
        }
        Ok(event)
    }

    /// What holds for every event of every stream.
    fn check(&mut self, event: &Event) {
        if !event.token.is_empty() {
            self.token.clone_from(&event.token);
        }
        let deleted = match &event.what {
            What::Execution(change, _) | What::Step(change, _) => *change == ChangeType::Deleted,
            _ => return,
        };
        let Some((key, revision)) = event.record() else { return };
        if deleted {
            // The id may be used again by a new record; with an execution its steps are gone.
            self.revisions
                .retain(|known, _| *known != key && (key.1.is_some() || known.0 != key.0));
            return;
        }
        if let Some(before) = self.revisions.insert(key.clone(), revision) {
            let grows = if self.foreign_changes { revision >= before } else { revision > before };
            assert!(grows, "{key:?} goes from revision {before} to {revision}");
        }
    }

    /// The next event.
    pub async fn next(&mut self) -> Event {
        match in_time("an event", self.try_next()).await {
            Ok(Some(event)) => event,
            Ok(None) => panic!("the stream ended"),
            Err(status) => panic!("the stream broke: {status:?}"),
        }
    }

    /// The next event that is no keepalive.
    pub async fn next_change(&mut self) -> Event {
        loop {
            let event = self.next().await;
            if !event.is_keepalive() {
                return event;
            }
        }
    }

    /// Reads until an event pleases.
    pub async fn until(&mut self, what: &str, mut pleases: impl FnMut(&Event) -> bool) -> Event {
        in_time(what, async {
            loop {
                let event = self.next().await;
                if pleases(&event) {
                    return event;
                }
            }
        })
        .await
    }

    /// Reads the current state, up to and without `snapshot_complete`.
    pub async fn snapshot(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.next().await;
            if event.is_snapshot_complete() {
                assert!(!event.token.is_empty(), "snapshot_complete has no token");
                return events;
            }
            if !event.is_keepalive() {
                assert!(event.token.is_empty(), "an event of the snapshot has a token: {event:?}");
                events.push(event);
            }
        }
    }

    /// Reads until this record is seen with this revision or a later one; the events on the way.
    pub async fn until_revision(&mut self, key: (&str, Option<i32>), revision: i64) -> Vec<Event> {
        let mut seen = Vec::new();
        in_time("a revision", async {
            loop {
                let event = self.next_change().await;
                let record = event.record();
                seen.push(event);
                if let Some(((execution, step), found)) = record
                    && (execution.as_str(), step) == key
                    && found >= revision
                {
                    return;
                }
            }
        })
        .await;
        seen
    }

    /// Reads the rest of a stream that ends by itself: `Ok` or the status it breaks with.
    pub async fn rest(&mut self) -> (Vec<Event>, Result<(), Status>) {
        let mut events = Vec::new();
        let end = in_time("the end of the stream", async {
            loop {
                match self.try_next().await {
                    Ok(Some(event)) if event.is_keepalive() => {}
                    Ok(Some(event)) => events.push(event),
                    Ok(None) => return Ok(()),
                    Err(status) => return Err(status),
                }
            }
        })
        .await;
        (events, end)
    }

    /// Reads a stream that must break, to its status.
    pub async fn broken(mut self) -> Status {
        match self.rest().await {
            (_, Err(status)) => status,
            (events, Ok(())) => panic!("the stream ended with {:?} after {events:?}", Code::Ok),
        }
    }
}

fn execution(change: proto::ExecutionChange) -> What {
    let kind = change.change_type();
    What::Execution(kind, change.execution.expect("a change carries its execution"))
}

fn artifact(change: proto::ArtifactChange) -> What {
    let kind = change.change_type();
    What::Artifact(kind, change.artifact.expect("a change carries its artifact"))
}

fn step(change: proto::StepChange) -> What {
    let kind = change.change_type();
    What::Step(kind, change.step.expect("a change carries its step"))
}
