//! What a watcher was told before its place in the log came round.
//!
//! A look-up and a snapshot return the newest state, which may be newer than the place in the log that asked for
//! it. Remembering such records lets the stream skip the changes that it has delivered already, so that per record
//! the revisions only grow.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use super::event::Event;
use crate::domain::Millis;
use crate::store::{ChangeKind, Record, RecordKey};

/// How much clocks of servers may differ: a revision older than this is no news to the log.
const CLOCK_SKEW_MS: i64 = 60_000;
/// Remembered records before those that cannot matter any more are forgotten for the first time.
const KEPT: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Told {
    revision: i64,
    /// When the reading that found it had ended.
    read_at: Instant,
}

/// Records delivered at a revision that the log may reach only later.
#[derive(Debug, Default)]
pub struct Ahead {
    told: HashMap<RecordKey, Told>,
    prune_at: usize,
    /// Artifacts of the snapshot, whose creation the log may reach only later. They have no revision to tell that by.
    artifacts: HashSet<String>,
    /// When the last of them was read.
    artifacts_at: Millis,
}

impl Ahead {
    pub fn clear(&mut self) {
        *self = Ahead::default();
    }

    pub fn holds(&self, key: &RecordKey) -> bool {
        self.told.contains_key(key)
    }

    /// Notes that a record was read and is being delivered, at a moment of the log.
    pub fn read(&mut self, record: &Record, at: Millis, read_at: Instant) {
        if let Record::Artifact(artifact) = record {
            self.artifacts.insert(artifact.artifact_id.clone());
            self.artifacts_at = at;
            return;
        }
        self.remember(record.key(), record.revision(), at, read_at);
    }

    fn remember(&mut self, key: RecordKey, revision: i64, at: Millis, read_at: Instant) {
        if !is_news(revision, at) {
            self.told.remove(&key);
            return;
        }
        if self.told.len() >= self.prune_at.max(KEPT) {
            self.told.retain(|_, told| is_news(told.revision, at));
            self.prune_at = self.told.len() * 2;
        }
        self.told.insert(key, Told { revision, read_at });
    }

    /// Whether the event is news to the watcher. If so it counts as delivered.
    pub fn admit(&mut self, event: &Event) -> bool {
        if let Some(artifact_id) = &event.key.artifact_id {
            return self.admit_artifact(event, artifact_id);
        }
        let Some(record) = &event.record else {
            // With an execution all its steps are gone. What was told of a later record of the same id is told
            // once more, since the watcher forgets it now.
            if event.key.is_execution() {
                self.told.retain(|key, _| key.execution_id != event.key.execution_id);
                self.artifacts = HashSet::new();
            } else {
                self.told.remove(&event.key);
            }
            return true;
        };
        let found = record.revision();
        let told = self.told.get(&event.key).copied();
        let Some(revision) = event.revision else {
            return self.admit_foreign(event, found, told);
        };
        if let Some(told) = told
            && found <= told.revision
        {
            if revision >= told.revision {
                self.told.remove(&event.key);
            }
            return false;
        }
        match event.looked_up {
            Some((_, read_at)) if found > revision => {
                self.remember(event.key.clone(), found, event.at, read_at);
            }
            _ if told.is_some() => {
                self.told.remove(&event.key);
            }
            _ => {}
        }
        true
    }

    /// An artifact comes once and goes once. Only another program changes one.
    fn admit_artifact(&mut self, event: &Event, artifact_id: &str) -> bool {
        if !self.artifacts.is_empty() && event.at > self.artifacts_at + CLOCK_SKEW_MS {
            // The log is past everything that the snapshot may have seen.
            self.artifacts = HashSet::new();
        }
        match event.kind {
            ChangeKind::Created => !self.artifacts.remove(artifact_id),
            ChangeKind::Deleted => {
                self.artifacts.remove(artifact_id);
                true
            }
            ChangeKind::Updated => true,
        }
    }

    /// Another program's change leaves the revision alone, or takes it back: only what is known to be older than
    /// what was delivered is old news.
    fn admit_foreign(&mut self, event: &Event, found: i64, told: Option<Told>) -> bool {
        if let Some(told) = told
            && found < told.revision
        {
            let newer = event.looked_up.is_some_and(|(began, _)| began >= told.read_at);
            if newer {
                self.told.remove(&event.key);
            }
            return newer;
        }
        if let Some((_, read_at)) = event.looked_up {
            self.remember(event.key.clone(), found, event.at, read_at);
        }
        true
    }
}

/// Whether the log, at this moment of it, may still have to reach the revision, which is a time in microseconds.
fn is_news(revision: i64, at: Millis) -> bool {
    revision / 1000 + CLOCK_SKEW_MS > at
}
