//! The life cycle of one record, written from the contract and from nothing else: what a write makes of it.
//!
//! Plain on purpose: no clock (times are not compared), no digests (the request itself is kept), no store.

use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Map, Value};
use stepwell::proto::{Execution, Step};
use tonic::Code;

use super::support::values::plain_meta;

/// One write, with everything in it that matters to the model.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    Create { user: String, n: i64 },
    Update { key: &'static str, n: i64 },
    Finish { status: i32, error: Option<String> },
    Cancel { reason: String },
    Plan { step: i32 },
    Start { step: i32, n: i64, attempt: Option<i32> },
    Progress { step: i32, percent: i32 },
    FinishStep { step: i32, status: i32, named: bool, error: Option<String> },
}

const RUNNING: i32 = 1;
const PENDING: i32 = 1;
const STEP_RUNNING: i32 = 2;
const STEP_FAILED: i32 = 4;

impl Write {
    pub fn random(random: &mut StdRng) -> Write {
        let step = random.random_range(0..3);
        let error = random.random_bool(0.5).then(|| format!("error {}", random.random_range(0..2)));
        match random.random_range(0..20) {
            0..3 => Write::Create {
                user: format!("u{}", random.random_range(0..2)),
                n: random.random_range(0..2),
            },
            3..6 => Write::Update {
                key: ["a", "b", "n"][random.random_range(0..3)],
                n: random.random_range(0..3),
            },
            6 => Write::Finish { status: random.random_range(2..5), error },
            7 => Write::Cancel { reason: format!("reason {}", random.random_range(0..2)) },
            8 => Write::Plan { step },
            9..13 => Write::Start {
                step,
                n: random.random_range(0..2),
                attempt: random.random_bool(0.4).then(|| random.random_range(1..4)),
            },
            13..16 => Write::Progress { step, percent: random.random_range(0..=100) },
            _ => Write::FinishStep {
                step,
                // Mostly FAILED, so that there is something to retry.
                status: if random.random_bool(0.6) {
                    STEP_FAILED
                } else {
                    random.random_range(3..6)
                },
                named: random.random_bool(0.3),
                error,
            },
        }
    }

    /// Which record it is about; `None` is the execution.
    pub fn step(&self) -> Option<i32> {
        match self {
            Write::Plan { step }
            | Write::Start { step, .. }
            | Write::Progress { step, .. }
            | Write::FinishStep { step, .. } => Some(*step),
            _ => None,
        }
    }
}

/// A record as answers show it, without its times, and with the requests that made it, which only the model
/// knows.
#[derive(Debug, Clone)]
pub struct Record {
    pub revision: i64,
    status: i32,
    user: Option<String>,
    metadata: Value,
    error: Option<String>,
    cancel_reason: Option<String>,
    retry_count: i32,
    attempts: Vec<Option<String>>,
    progress: Option<i32>,
    /// The request that created, started and finished it.
    made_by: [Option<Write>; 3],
}

impl PartialEq for Record {
    fn eq(&self, other: &Record) -> bool {
        self.revision == other.revision && self.same_content(other)
    }
}

impl Record {
    pub fn of_execution(execution: &Execution) -> Record {
        Record {
            revision: execution.revision,
            status: execution.status,
            user: execution.user_id.clone(),
            metadata: plain_meta(&execution.metadata),
            error: execution.error.as_ref().map(|error| error.message.clone()),
            cancel_reason: execution.cancel_reason.clone(),
            retry_count: 0,
            attempts: Vec::new(),
            progress: None,
            made_by: [None, None, None],
        }
    }

    pub fn of_step(step: &Step) -> Record {
        let message =
            |error: &Option<stepwell::proto::Error>| error.as_ref().map(|e| e.message.clone());
        Record {
            revision: step.revision,
            status: step.status,
            user: None,
            metadata: plain_meta(&step.metadata),
            error: message(&step.error),
            cancel_reason: None,
            retry_count: step.retry_count,
            attempts: step.attempts.iter().map(|attempt| message(&attempt.error)).collect(),
            progress: step.progress.map(|progress| (progress * 100.0).round() as i32),
            made_by: [None, None, None],
        }
    }

    pub fn at(self, revision: i64) -> Record {
        Record { revision, ..self }
    }

    /// Equal in all that a client sees but the revision.
    pub fn same_content(&self, other: &Record) -> bool {
        self.status == other.status
            && self.user == other.user
            && self.metadata == other.metadata
            && self.error == other.error
            && self.cancel_reason == other.cancel_reason
            && self.retry_count == other.retry_count
            && self.attempts == other.attempts
            && self.progress == other.progress
    }

    fn new(status: i32, metadata: Value) -> Record {
        Record {
            revision: 0,
            status,
            user: None,
            metadata,
            error: None,
            cancel_reason: None,
            retry_count: 0,
            attempts: Vec::new(),
            progress: None,
            made_by: [None, None, None],
        }
    }

    fn set(&mut self, key: &str, n: i64) {
        let fields: &mut Map<String, Value> = self.metadata.as_object_mut().expect("an object");
        fields.insert(key.to_owned(), n.into());
    }
}

/// What the model says to a write.
#[derive(Debug)]
pub enum Answered {
    Changed(Record),
    Unchanged,
    Refused(Code),
}

use Answered::{Changed, Refused, Unchanged};

pub struct Model;

impl Model {
    pub fn apply(before: Option<&Record>, write: &Write) -> Answered {
        match write.step() {
            None => execution(before, write),
            Some(_) => step(before, write),
        }
    }
}

/// A merge that leaves everything as it was is no change.
fn changed_from(before: &Record, after: Record) -> Answered {
    if before.same_content(&after) { Unchanged } else { Changed(after) }
}

fn repeat(made_by: &Option<Write>, write: &Write) -> Answered {
    if made_by.as_ref() == Some(write) { Unchanged } else { Refused(Code::AlreadyExists) }
}

fn execution(before: Option<&Record>, write: &Write) -> Answered {
    let Some(before) = before else {
        return match write {
            Write::Create { user, n } => {
                let mut record = Record::new(RUNNING, serde_json::json!({ "n": n }));
                record.user = Some(user.clone());
                record.made_by[0] = Some(write.clone());
                Changed(record)
            }
            _ => Refused(Code::NotFound),
        };
    };
    let mut after = before.clone();
    match write {
        Write::Create { .. } => repeat(&before.made_by[0], write),
        Write::Update { key, n } => {
            after.set(key, *n);
            changed_from(before, after)
        }
        Write::Finish { status, .. } if before.status != RUNNING => {
            if *status != before.status {
                Refused(Code::FailedPrecondition)
            } else {
                repeat(&before.made_by[2], write)
            }
        }
        Write::Finish { status, error } => {
            after.status = *status;
            after.error.clone_from(error);
            after.made_by[2] = Some(write.clone());
            Changed(after)
        }
        // The first request is kept.
        Write::Cancel { .. } if before.cancel_reason.is_some() => Unchanged,
        Write::Cancel { .. } if before.status != RUNNING => Refused(Code::FailedPrecondition),
        Write::Cancel { reason } => {
            after.cancel_reason = Some(reason.clone());
            Changed(after)
        }
        _ => unreachable!("a write to a step"),
    }
}

fn step(before: Option<&Record>, write: &Write) -> Answered {
    let Some(before) = before else {
        return match write {
            Write::Plan { .. } => {
                let mut record = Record::new(PENDING, serde_json::json!({}));
                record.made_by[0] = Some(write.clone());
                Changed(record)
            }
            Write::Start { n, attempt, .. } => {
                let mut record = Record::new(STEP_RUNNING, serde_json::json!({ "n": n }));
                record.retry_count = attempt.map_or(0, |attempt| attempt - 1);
                record.made_by[1] = Some(start_content(write));
                Changed(record)
            }
            Write::FinishStep { status, named: true, error, .. } => {
                let mut record = Record::new(*status, serde_json::json!({}));
                record.error.clone_from(error);
                record.made_by[2] = Some(write.clone());
                Changed(record)
            }
            _ => Refused(Code::NotFound),
        };
    };
    let mut after = before.clone();
    match write {
        // It comes late: the step was started or finished before.
        Write::Plan { .. } if before.made_by[0].is_none() => {
            after.made_by[0] = Some(write.clone());
            Changed(after)
        }
        Write::Plan { .. } => repeat(&before.made_by[0], write),
        Write::Start { n, attempt, .. } => {
            let current = before.retry_count + 1;
            let begins = match before.status {
                PENDING => true,
                STEP_FAILED => attempt.is_none_or(|attempt| attempt > current),
                _ => false,
            };
            if !begins {
                return match attempt {
                    Some(attempt) if *attempt > current => Refused(Code::FailedPrecondition),
                    Some(attempt) if *attempt < current => Unchanged,
                    // It comes late: the step was finished in one call before.
                    _ if before.made_by[1].is_none() => {
                        let fields = after.metadata.as_object_mut().expect("an object");
                        fields.entry("n").or_insert((*n).into());
                        after.made_by[1] = Some(start_content(write));
                        Changed(after)
                    }
                    _ => repeat(&before.made_by[1], &start_content(write)),
                };
            }
            if before.status == STEP_FAILED {
                after.attempts.push(before.error.clone());
                let excess = after.attempts.len().saturating_sub(20);
                after.attempts.drain(..excess);
                after.retry_count = attempt.map_or(current, |attempt| attempt - 1);
            } else if let Some(attempt) = attempt {
                after.retry_count = attempt - 1;
            }
            after.progress = if before.status == STEP_FAILED { None } else { before.progress };
            after.status = STEP_RUNNING;
            after.error = None;
            after.set("n", *n);
            after.made_by[1] = Some(start_content(write));
            after.made_by[2] = None;
            Changed(after)
        }
        Write::Progress { percent, .. } => {
            after.progress = Some(*percent);
            changed_from(before, after)
        }
        Write::FinishStep { status, .. } if !matches!(before.status, PENDING | STEP_RUNNING) => {
            if *status != before.status {
                Refused(Code::FailedPrecondition)
            } else {
                repeat(&before.made_by[2], write)
            }
        }
        Write::FinishStep { status, error, .. } => {
            after.status = *status;
            after.error.clone_from(error);
            after.made_by[2] = Some(write.clone());
            Changed(after)
        }
        _ => unreachable!("a write to the execution"),
    }
}

/// What a start says, without the attempt, which only tells a repeat from a retry.
fn start_content(write: &Write) -> Write {
    match write {
        Write::Start { step, n, .. } => Write::Start { step: *step, n: *n, attempt: None },
        other => other.clone(),
    }
}
