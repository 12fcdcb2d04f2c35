//! Random histories of all writes, from many clients on few records, against a plain model of the life cycle.
//!
//! The clients race, so the order in which the store took their writes is not known from outside. But every
//! change has a revision, and revisions of a record say that order: a history is right if the model, fed with
//! the changes by revision, gives the answers the clients got and the state that is stored in the end, and if
//! every answer that changed nothing fits a state that the record had while the call was under way.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

#[path = "model/lifecycle.rs"]
mod lifecycle;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use stepwell::proto::*;
use tonic::{Code, Status};

use lifecycle::{Answered, Model, Record, Write};
use support::backend::{Backend, Kind};
use support::client::*;
use support::values::*;
use support::*;

const CLIENTS: usize = 8;
const ROUNDS: usize = 12;
const WRITES_PER_CLIENT: usize = 40;
/// Writes of one record that may become one change.
const MOST_FOLDED: usize = 4;
/// Set it to repeat a history that failed.
const SEED_VARIABLE: &str = "STEPWELL_TEST_SEED";

/// One call: what was asked, what came back, and when, counted in calls begun and ended.
#[derive(Debug)]
struct Call {
    write: Write,
    answer: Result<Record, Status>,
    began: i64,
    ended: i64,
}

fn seed() -> u64 {
    match std::env::var(SEED_VARIABLE) {
        Ok(seed) => seed.parse().expect("a number"),
        Err(_) => rand::random(),
    }
}

#[test]
fn histories_of_many_clients_follow_the_model_on_sqlite() {
    histories(Kind::Sqlite);
}

#[test]
fn histories_of_many_clients_follow_the_model_on_mongodb() {
    histories(Kind::Mongodb);
}

fn histories(kind: Kind) {
    let seed = seed();
    println!("{SEED_VARIABLE}={seed}");
    run(async {
        let b = Backend::fresh(kind);
        let (one, two) = b.pair().await;
        let servers = [(*one).clone(), (*two).clone()];
        for round in 0..ROUNDS {
            let id = format!("e{round}");
            let calls = play(&servers, &id, seed.wrapping_add(round as u64)).await;
            check(&two, &id, calls).await;
            let delete = DeleteExecutionRequest { execution_id: id, force: true };
            one.delete_execution(delete).await;
        }
        let left = two.list_executions(ListExecutionsRequest::default()).await;
        assert_eq!(left.executions, []);
        b.remove().await;
    });
}

/// All clients write at once to one execution and its few steps.
async fn play(servers: &[Client], id: &str, seed: u64) -> Vec<Call> {
    let ticks = Arc::new(AtomicI64::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let server = servers[client % servers.len()].clone();
        let (id, ticks) = (id.to_owned(), Arc::clone(&ticks));
        let mut random = StdRng::seed_from_u64(seed.wrapping_mul(1000).wrapping_add(client as u64));
        clients.spawn(async move {
            let mut calls: Vec<Call> = Vec::new();
            for _ in 0..WRITES_PER_CLIENT {
                let write = match calls.last() {
                    // A client that lost the answer sends the same again.
                    Some(last) if random.random_ratio(1, 5) => last.write.clone(),
                    _ => Write::random(&mut random),
                };
                if random.random_ratio(1, 15) {
                    // No change, whatever the state: no answer below may show a trace of it.
                    let beat = HeartbeatRequest { execution_id: id.clone() };
                    let answer = server.try_heartbeat(beat).await;
                    assert!(answer.is_ok() || answer.is_err_and(|s| s.code() == Code::NotFound));
                }
                let began = ticks.fetch_add(1, Ordering::SeqCst);
                let answer = send(&server, &id, &write).await;
                let ended = ticks.fetch_add(1, Ordering::SeqCst);
                calls.push(Call { write, answer, began, ended });
            }
            calls
        });
    }
    clients.join_all().await.into_iter().flatten().collect()
}

async fn send(server: &Client, id: &str, write: &Write) -> Result<Record, Status> {
    match write {
        Write::Create { user, n } => {
            let request = CreateExecutionRequest {
                user_id: Some(user.clone()),
                metadata: meta(json!({ "n": n })),
                ..create(id)
            };
            server.try_create_execution(request).await.map(|e| Record::of_execution(&e))
        }
        Write::Update { key, n } => {
            let request =
                UpdateExecutionRequest { metadata: meta(json!({ *key: n })), ..update(id) };
            server.try_update_execution(request).await.map(|e| Record::of_execution(&e))
        }
        Write::Finish { status, error } => {
            let status = ExecutionStatus::try_from(*status).expect("a status");
            let request = FinishExecutionRequest {
                error: error.as_deref().map(run_error),
                ..finish(id, status)
            };
            server.try_finish_execution(request).await.map(|e| Record::of_execution(&e))
        }
        Write::Cancel { reason } => {
            let request = RequestCancelRequest { execution_id: id.into(), reason: reason.clone() };
            server.try_request_cancel(request).await.map(|e| Record::of_execution(&e))
        }
        Write::Plan { step } => {
            let planned = PlannedStep {
                step_id: Some(*step),
                step_name: "work".into(),
                ..Default::default()
            };
            let request = PlanStepsRequest {
                execution_id: id.into(),
                steps: vec![planned],
                ..Default::default()
            };
            let answer = server.try_plan_steps(request).await;
            answer.map(|answer| Record::of_step(&answer.steps[0]))
        }
        Write::Start { step, n, attempt } => {
            let request = StartStepRequest {
                metadata: meta(json!({ "n": n })),
                attempt: *attempt,
                ..start(id, *step)
            };
            server.try_start_step(request).await.map(|s| Record::of_step(&s))
        }
        Write::Progress { step, percent } => {
            let request = UpdateStepRequest {
                progress: Some(f64::from(*percent) / 100.0),
                ..update_step(id, *step)
            };
            server.try_update_step(request).await.map(|s| Record::of_step(&s))
        }
        Write::FinishStep { step, status, named, error } => {
            let status = StepStatus::try_from(*status).expect("a status");
            let request = FinishStepRequest {
                step_name: named.then(|| "work".to_owned()),
                error: error.as_deref().map(run_error),
                ..finish_step(id, *step, status)
            };
            server.try_finish_step(request).await.map(|s| Record::of_step(&s))
        }
    }
}

/// Replays the changes in the order of their revisions, and judges every answer.
async fn check(server: &Client, id: &str, calls: Vec<Call>) {
    let mut of_record: BTreeMap<Option<i32>, Vec<Call>> = BTreeMap::new();
    for call in calls {
        of_record.entry(call.write.step()).or_default().push(call);
    }
    let none = Vec::new();
    let executions = of_record.get(&None).unwrap_or(&none);
    // Steps need their execution: it exists from the first answer that showed it.
    let created = executions.iter().filter(|call| call.answer.is_ok()).map(|call| call.ended).min();
    let begun = executions
        .iter()
        .filter(|call| matches!(call.write, Write::Create { .. }))
        .map(|call| call.began)
        .min();
    for (step, calls) in &of_record {
        let history = replay(*step, calls);
        judge(*step, calls, &history, created, begun);
        let stored = match step {
            None => server.try_execution(id).await.map(|e| Record::of_execution(&e)),
            Some(step) => server.try_step(id, *step).await.map(|s| Record::of_step(&s)),
        };
        match history.last() {
            Some(last) => assert_eq!(ok(stored), last.state, "the stored state of {step:?}"),
            None => assert_eq!(stored.expect_err("nothing was stored").code(), Code::NotFound),
        }
    }
}

/// One change of a record.
#[derive(Debug)]
struct Change {
    cause: usize,
    state: Record,
    /// Several writes of one record may become one change of the store. Then only the last state was ever
    /// seen, and it answers all of them.
    visible: bool,
}

/// The states a record went through, with the call that made each.
fn replay(step: Option<i32>, calls: &[Call]) -> Vec<Change> {
    // The answers say the state after a change, and which call made it is to be found: one whose write turns
    // the state before into exactly that, and that was under way.
    let mut states: BTreeMap<i64, &Record> = BTreeMap::new();
    for call in calls {
        if let Ok(record) = &call.answer {
            let known = states.insert(record.revision, record);
            assert!(
                known.is_none_or(|known| known == record),
                "one revision of {step:?} with two contents: {known:?} and {record:?}"
            );
        }
    }
    let mut history: Vec<Change> = Vec::new();
    for state in states.into_values() {
        let before = history.last().map(|change| &change.state);
        let used = |number: &usize| history.iter().any(|change| change.cause == *number);
        let mut causes: Vec<usize> = (0..calls.len())
            .filter(|number| !used(number) && calls[*number].answer.as_ref().ok() == Some(state))
            .collect();
        // Of several that would do (one and its repeat), the one that began first explains all others.
        causes.sort_by_key(|number| calls[*number].began);
        let Some(path) =
            (1..=MOST_FOLDED).find_map(|length| path(before, state, &causes, calls, length))
        else {
            panic!("{step:?}: no write leads from {before:?} to {state:?}; calls: {calls:#?}");
        };
        let last = path.len() - 1;
        history.extend(path.into_iter().enumerate().map(|(place, (cause, after))| Change {
            cause,
            state: if place == last { after.at(state.revision) } else { after },
            visible: place == last,
        }));
    }
    history
}

/// Exactly `length` of these calls, in an order that leads to `state`.
fn path(
    before: Option<&Record>,
    state: &Record,
    causes: &[usize],
    calls: &[Call],
    length: usize,
) -> Option<Vec<(usize, Record)>> {
    causes.iter().find_map(|cause| {
        let Answered::Changed(after) = Model::apply(before, &calls[*cause].write) else {
            return None;
        };
        if length == 1 {
            return after.same_content(state).then(|| vec![(*cause, after)]);
        }
        let others: Vec<usize> = causes.iter().copied().filter(|other| other != cause).collect();
        let mut rest = path(Some(&after), state, &others, calls, length - 1)?;
        rest.insert(0, (*cause, after));
        Some(rest)
    })
}

/// Whether each answer is what the model gives in some state the record may have been in during the call.
fn judge(
    step: Option<i32>,
    calls: &[Call],
    history: &[Change],
    created: Option<i64>,
    begun: Option<i64>,
) {
    for (number, call) in calls.iter().enumerate() {
        // A change took effect between beginning and end of its call: that bounds the states which this call
        // may have met.
        let not_before = history.iter().rposition(|change| calls[change.cause].ended < call.began);
        let first = not_before.map_or(0, |position| position + 1);
        let possible = (first..=history.len()).filter(|position| {
            // The state after `position` changes: all of them had begun before this call ended.
            history[..*position].iter().all(|change| calls[change.cause].began < call.ended)
        });
        let mut met = Vec::new();
        let fits = possible.into_iter().any(|position| {
            let before = position.checked_sub(1).map(|last| &history[last].state);
            let expected = Model::apply(before, &call.write);
            met.push(format!("{expected:?}"));
            match (&call.answer, expected) {
                (Ok(answer), Answered::Changed(_)) => {
                    history.get(position).is_some_and(|change| change.cause == number)
                        && history[position..]
                            .iter()
                            .find(|change| change.visible)
                            .map(|c| &c.state)
                            == Some(answer)
                }
                (Ok(answer), Answered::Unchanged) => before == Some(answer),
                (Err(status), Answered::Refused(code)) => status.code() == code,
                _ => false,
            }
        });
        // Without its execution a step cannot be; whether there was one is known but for a short while.
        let no_execution = step.is_some()
            && call.answer.as_ref().is_err_and(|status| status.code() == Code::NotFound)
            && begun.is_none_or(|_| created.is_none_or(|created| call.began < created));
        assert!(fits || no_execution, "{step:?}: {call:#?} fits none of {met:?} in {history:#?}");
    }
}
