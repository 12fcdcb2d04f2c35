//! What the clients know: which records they ever asked for, and the last state of each that was acknowledged.

#![expect(clippy::disallowed_methods, reason = "tests measure real time")]

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use stepwell::proto::*;

use super::support::client::watch_all;
use super::support::values::plain_meta;
use super::support::{Client, eventually};

type Key = (String, Option<i32>);

/// What a client was told of a record.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    revision: i64,
    status: i32,
    retry_count: i32,
    attempts: usize,
    /// Unknown where the answer is short, as in Ingest.
    metadata: Option<serde_json::Value>,
}

/// Kept in the test, outside of every server.
#[derive(Debug, Default)]
pub struct Ledger {
    records: Mutex<HashMap<Key, Option<Told>>>,
    changes: AtomicU64,
}

impl Ledger {
    /// Somebody is about to ask for this record.
    pub fn attempt(&self, id: &str, step_id: Option<i32>) {
        self.records.lock().expect("no panic inside").entry((id.to_owned(), step_id)).or_default();
    }

    fn acknowledge(&self, key: Key, told: Told) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        let mut records = self.records.lock().expect("no panic inside");
        let slot = records.get_mut(&key).expect("asked for before");
        let before = slot.as_ref().map_or(0, |told| told.revision);
        assert!(told.revision >= before, "{key:?} went back from {before} to {told:?}");
        *slot = Some(told);
    }

    pub fn acknowledge_execution(&self, execution: &Execution) {
        self.acknowledge(
            (execution.execution_id.clone(), None),
            Told {
                revision: execution.revision,
                status: execution.status,
                retry_count: 0,
                attempts: 0,
                metadata: Some(plain_meta(&execution.metadata)),
            },
        );
    }

    pub fn acknowledge_step(&self, step: &Step) {
        self.acknowledge(
            (step.execution_id.clone(), step.step_id),
            Told {
                revision: step.revision,
                status: step.status,
                retry_count: step.retry_count,
                attempts: step.attempts.len(),
                metadata: Some(plain_meta(&step.metadata)),
            },
        );
    }

    /// The short answers of Ingest. Its steps are never retried.
    pub fn acknowledge_short(&self, id: &str, step_id: Option<i32>, revision: i64, status: i32) {
        let told = Told { revision, status, retry_count: 0, attempts: 0, metadata: None };
        self.acknowledge((id.to_owned(), step_id), told);
    }

    /// Waits until so many changes a second are acknowledged; the rate.
    pub async fn wait_for_rate(&self, least: f64) -> f64 {
        const WINDOW: Duration = Duration::from_millis(300);
        let mut began = Instant::now();
        let mut counted = self.changes.load(Ordering::SeqCst);
        eventually("the load is heavy enough", async || {
            if began.elapsed() < WINDOW {
                return None;
            }
            let now = self.changes.load(Ordering::SeqCst);
            let rate = (now - counted) as f64 / began.elapsed().as_secs_f64();
            (began, counted) = (Instant::now(), now);
            (rate >= least).then_some(rate)
        })
        .await
    }

    /// Compares with what is stored: nothing missing, nothing invented, nothing applied twice.
    pub async fn check(&self, server: &Client) {
        server.counts_right().await;
        let request = WatchExecutionsRequest { snapshot: WatchSnapshot::All.into(), ..watch_all() };
        let mut stored: HashMap<Key, Told> = HashMap::new();
        for event in server.watch_all(request).await.snapshot().await {
            let Some((key, revision)) = event.record() else { continue };
            let told = match (event.execution(), event.step()) {
                (Some((_, e)), _) => Told {
                    revision,
                    status: e.status,
                    retry_count: 0,
                    attempts: 0,
                    metadata: Some(plain_meta(&e.metadata)),
                },
                (_, Some((_, s))) => Told {
                    revision,
                    status: s.status,
                    retry_count: s.retry_count,
                    attempts: s.attempts.len(),
                    metadata: Some(plain_meta(&s.metadata)),
                },
                _ => continue,
            };
            stored.insert(key, told);
        }
        let records = self.records.lock().expect("no panic inside");
        let mut acknowledged = 0;
        for (key, told) in records.iter() {
            let Some(told) = told else { continue };
            acknowledged += 1;
            let found = stored.get(key).unwrap_or_else(|| panic!("{key:?} is missing: {told:?}"));
            let comparable = Told {
                metadata: told.metadata.clone().or_else(|| found.metadata.clone()),
                ..told.clone()
            };
            assert_eq!(*found, comparable, "{key:?} is not what was acknowledged last");
        }
        for key in stored.keys() {
            assert!(records.contains_key(key), "{key:?} was invented");
        }
        let changes = self.changes.load(Ordering::SeqCst);
        println!("{acknowledged} records after {changes} acknowledged changes");
    }
}
