//! Leases: a silent execution is ended by exactly one server, and that end is only a guess.

#![expect(clippy::disallowed_methods, reason = "tests measure real time")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use stepwell::proto::*;

use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::clock::SetClock;
use crate::support::server::Server;
use crate::support::values::*;
use crate::support::*;

const CODE: &str = "HEARTBEAT_TIMEOUT";

fn watched_over(id: &str, timeout_ms: i32) -> CreateExecutionRequest {
    let (seconds, ms) = (i64::from(timeout_ms / 1000), timeout_ms % 1000);
    CreateExecutionRequest {
        heartbeat_timeout: Some(prost_types::Duration { seconds, nanos: ms * 1_000_000 }),
        ..create(id)
    }
}

/// Timeouts to try one after the other, in milliseconds: a machine that is too busy to keep the first keeps a longer one.
const TIMEOUTS_MS: [i32; 3] = [1_500, 6_000, 30_000];

/// Ended in good time: after the timeout, and before half of it more had passed.
fn is_in_time(timeout_ms: i32, silence_ms: i64) -> bool {
    let timeout = i64::from(timeout_ms);
    assert!(
        silence_ms >= timeout,
        "ended after {silence_ms} ms of silence, the timeout is {timeout}"
    );
    silence_ms <= timeout * 3 / 2
}

fn beat(id: &str) -> HeartbeatRequest {
    HeartbeatRequest { execution_id: id.into() }
}

fn code(execution: &Execution) -> &str {
    execution.error.as_ref().map_or("", |error| error.code.as_str())
}

pub async fn silence_ends_an_execution_exactly_once_and_in_time(b: Backend) {
    let (one, two) = b.pair().await;
    let mut watch = two.watch_all(watch_all()).await;
    watch.snapshot().await;
    one.create("not-watched-over").await;
    let mut silences = Vec::new();
    for timeout_ms in TIMEOUTS_MS {
        let id = format!("e{timeout_ms}");
        let created = one.create_execution(watched_over(&id, timeout_ms)).await;
        let mut ended = None;
        while ended.is_none() {
            let event = watch.next_change().await;
            let (_, execution) = event.execution().expect("only executions change");
            if execution.execution_id == id && execution.revision > created.revision {
                ended = Some(execution.clone());
            }
        }
        let ended = ended.expect("seen");
        assert_eq!((ended.status(), code(&ended)), (ExecutionStatus::Failed, CODE));
        let silent_since = millis(&created.created_at).expect("set");
        let ended_at = millis(&ended.completed_at).expect("set");
        let took = ended_at - millis(&created.started_at).expect("set");
        assert_eq!(ended.duration_ms, Some(took));

        // Once: nothing more happens to it although two servers look after it.
        let marker = format!("marker{timeout_ms}");
        let created = one.create_execution(watched_over(&marker, 200)).await;
        watch
            .until("the marker's end", |event| {
                let (_, execution) = event.execution().expect("only executions change");
                assert!(execution.execution_id != id, "ended a second time: {execution:?}");
                execution.execution_id == marker && execution.revision > created.revision
            })
            .await;
        assert_eq!(one.execution(&id).await, ended);
        assert_eq!(one.execution("not-watched-over").await.status(), ExecutionStatus::Running);
        silences.push((timeout_ms, ended_at - silent_since));
        if is_in_time(timeout_ms, ended_at - silent_since) {
            return;
        }
    }
    panic!("ended too late: {silences:?}");
}

/// Waits until the execution has been ended for its silence.
async fn until_silent(s: &Client, id: &str) -> Execution {
    eventually("the silent execution is ended", async || {
        let execution = s.execution(id).await;
        (execution.status() != ExecutionStatus::Running).then_some(execution)
    })
    .await
}

pub async fn a_heartbeat_revives_what_silence_ended(b: Backend) {
    let s = b.serve().await;
    s.create_execution(watched_over("e", 300)).await;
    let mut watch = s.watch(WatchExecutionRequest { follow: true, ..watch("e") }).await;
    watch.snapshot().await;
    let ended = until_silent(&s, "e").await;
    assert_eq!(code(&ended), CODE);
    watch.until_revision(("e", None), ended.revision).await;
    assert!(!s.heartbeat(beat("e")).await.cancel_requested);
    let event = watch.next_change().await;
    let (_, revived) = event.execution().expect("it runs again");
    assert_eq!(revived.status(), ExecutionStatus::Running);
    assert_eq!((&revived.error, &revived.completed_at, revived.duration_ms), (&None, &None, None));
    assert!(revived.revision > ended.revision);
    // And it may go silent again.
    let again = until_silent(&s, "e").await;
    assert!(again.revision > revived.revision);
    assert_eq!(code(&again), CODE);
}

pub async fn a_finish_replaces_what_silence_ended(b: Backend) {
    let s = b.serve().await;
    for (id, status) in [
        ("a", ExecutionStatus::Completed),
        ("b", ExecutionStatus::Failed),
        ("c", ExecutionStatus::Cancelled),
    ] {
        s.create_execution(watched_over(id, 200)).await;
        let guessed = until_silent(&s, id).await;
        assert_eq!(code(&guessed), CODE);
        let request = FinishExecutionRequest {
            error: (status == ExecutionStatus::Failed).then(|| run_error("the true reason")),
            completed_at: Some(time(millis(&guessed.started_at).expect("set") + 7)),
            ..finish(id, status)
        };
        let ended = s.finish_execution(request.clone()).await;
        assert_eq!((ended.status(), ended.duration_ms), (status, Some(7)));
        assert_eq!(code(&ended), "");
        assert!(ended.revision > guessed.revision);
        assert_eq!(s.finish_execution(request).await, ended);
        s.heartbeat(beat(id)).await;
        assert_eq!(s.execution(id).await, ended, "a true end is not revived");
    }
}

pub async fn a_finish_that_races_the_timeout_wins(b: Backend) {
    let (one, two) = b.pair().await;
    for round in 0..5 {
        let id = format!("e{round}");
        let created = one.create_execution(watched_over(&id, 150)).await;
        let due = millis(&created.created_at).expect("set") + 150;
        eventually("the moment of the timeout", async || (wall_clock_ms() >= due).then_some(()))
            .await;
        let ended = two.finish(&id, ExecutionStatus::Completed).await;
        assert_eq!(ended.status(), ExecutionStatus::Completed, "whichever came first");
        let marker = format!("marker{round}");
        one.create_execution(watched_over(&marker, 150)).await;
        until_silent(&one, &marker).await;
        assert_eq!(one.execution(&id).await, ended);
    }
}

pub async fn every_write_is_a_sign_of_life(b: Backend) {
    for timeout_ms in TIMEOUTS_MS {
        if writes_are_signs_of_life(&b, timeout_ms).await {
            return;
        }
    }
    panic!("the machine is too busy for every timeout");
}

/// Writes more often than an execution may be silent. Whether the machine kept up.
async fn writes_are_signs_of_life(b: &Backend, timeout_ms: i32) -> bool {
    let timeout = i64::from(timeout_ms);
    let (one, two) = b.pair().await;
    let name = |id: &str| format!("{id}{timeout_ms}");
    let mut ids = Vec::new();
    let unchanging = ["same-progress", "same-start", "same-create", "same-finish", "nothing"];
    for id in ["beats", "updates", "steps", "repeats"].into_iter().chain(unchanging) {
        one.create_execution(watched_over(&name(id), timeout_ms)).await;
        ids.push(name(id));
    }
    for id in ["steps", "same-progress", "same-start"] {
        one.start(&name(id), 0).await;
    }
    let until = wall_clock_ms() + timeout * 5 / 2;
    let mut round = 0;
    let mut next = wall_clock_ms();
    // From before the first of a round to after the last of the next: what no two signs are further apart than.
    let (mut before, mut longest) = (wall_clock_ms(), 0);
    while next < until {
        let began = wall_clock_ms();
        next += timeout / 6;
        eventually("the next sign of life", async || (wall_clock_ms() >= next).then_some(())).await;
        round += 1;
        let client = if round % 2 == 0 { &one } else { &two };
        client.heartbeat(beat(&name("beats"))).await;
        let request = UpdateExecutionRequest {
            metadata: meta(json!({ "round": round })),
            ..update(&name("updates"))
        };
        client.update_execution(request).await;
        let request = UpdateStepRequest {
            metadata: meta(json!({ "round": round })),
            ..update_step(&name("steps"), 0)
        };
        client.update_step(request).await;
        client.start(&name("repeats"), round).await;
        // What changes nothing is said by somebody all the same.
        let progress =
            UpdateStepRequest { progress: Some(0.5), ..update_step(&name("same-progress"), 0) };
        client.update_step(progress).await;
        client.start(&name("same-start"), 0).await;
        client.create_execution(watched_over(&name("same-create"), timeout_ms)).await;
        let whole = FinishStepRequest {
            step_name: Some("whole".into()),
            ..finish_step(&name("same-finish"), 7, StepStatus::Completed)
        };
        client.finish_step(whole).await;
        client.update_execution(update(&name("nothing"))).await;
        longest = longest.max(wall_clock_ms() - before);
        before = began;
    }
    for id in ids {
        let execution = one.execution(&id).await;
        if execution.status() != ExecutionStatus::Running {
            assert!(longest > timeout / 2, "{id}: {execution:?}");
            return false;
        }
    }
    // A step that was written is life, and then silence counts from there.
    let ended = until_silent(&one, &name("steps")).await;
    let last = millis(&two.step(&name("steps"), 0).await.updated_at).expect("set");
    is_in_time(timeout_ms, millis(&ended.completed_at).expect("set") - last)
}

pub async fn heartbeats_are_no_change_and_seldom_stored(b: Backend) {
    let s = b.serve().await;
    let created = s.create_execution(watched_over("e", 4000)).await;
    let mut watch = s.watch(watch("e")).await;
    watch.snapshot().await;
    let began = wall_clock_ms();
    let mut stored = Vec::new();
    while wall_clock_ms() < began + 1500 {
        s.heartbeat(beat("e")).await;
        stored.push(millis(&s.execution("e").await.last_heartbeat_at));
    }
    assert!(stored.len() > 20);
    stored.dedup();
    stored.retain(Option::is_some);
    assert!((1..=3).contains(&stored.len()), "stored {} times in 1.5 s of 4 s", stored.len());
    let mut apart = stored.windows(2).map(|pair| pair[1].expect("set") - pair[0].expect("set"));
    assert!(apart.all(|ms| ms >= 1000), "{stored:?}");
    let now = s.execution("e").await;
    assert_eq!((now.revision, now.updated_at), (created.revision, created.updated_at));
    let ended = s.finish("e", ExecutionStatus::Completed).await;
    let event = watch.next_change().await;
    assert_eq!(event.execution().map(|(_, e)| e.revision), Some(ended.revision), "no event before");
}

pub async fn a_heartbeat_needs_no_timeout(b: Backend) {
    let s = b.serve().await;
    let created = s.create("e").await;
    assert!(!s.heartbeat(beat("e")).await.cancel_requested);
    assert_eq!(s.execution("e").await, created, "nothing to store");
    let ended = s.finish("e", ExecutionStatus::Failed).await;
    s.heartbeat(beat("e")).await;
    assert_eq!(s.execution("e").await, ended);
}

pub async fn a_clock_that_is_set_neither_keeps_nor_ends_an_execution(b: Backend) {
    const TWO_HOURS_MS: i64 = 2 * 3_600_000;
    let clock = Arc::new(SetClock::default());
    let s = Server::start_by(b.config(), Arc::<SetClock>::clone(&clock)).await;
    for ahead_ms in [-TWO_HOURS_MS, TWO_HOURS_MS] {
        let mut kept_up = false;
        for timeout_ms in TIMEOUTS_MS {
            clock.set_ahead_ms(0);
            kept_up = a_set_clock_ends_only_the_silent(&s, &clock, ahead_ms, timeout_ms).await;
            if kept_up {
                break;
            }
        }
        assert!(kept_up, "the machine is too busy for every timeout");
    }
}

/// Whether the machine kept up.
async fn a_set_clock_ends_only_the_silent(
    s: &Server,
    clock: &SetClock,
    ahead_ms: i64,
    timeout_ms: i32,
) -> bool {
    let timeout = Duration::from_millis(timeout_ms.unsigned_abs().into());
    let names = ["silent", "alive", "steps"].map(|name| format!("{name}{ahead_ms}-{timeout_ms}"));
    let [silent, alive, steps] = &names;
    let began = Instant::now();
    for id in &names {
        s.create_execution(watched_over(id, timeout_ms)).await;
    }
    clock.set_ahead_ms(ahead_ms);
    let (mut step_id, mut before, mut longest) = (0, began, Duration::ZERO);
    loop {
        let this = Instant::now();
        s.heartbeat(beat(alive)).await;
        step_id += 1;
        s.start(steps, step_id).await;
        longest = longest.max(before.elapsed());
        before = this;
        if s.execution(silent).await.status() != ExecutionStatus::Running {
            break;
        }
        assert!(began.elapsed() < timeout + PATIENCE, "the silent execution is not ended");
        tokio::time::sleep(timeout / 100).await;
    }
    assert!(began.elapsed() >= timeout, "{ahead_ms}: {:?}", began.elapsed());
    assert_eq!(code(&s.execution(silent).await), CODE, "{ahead_ms}");
    for id in [alive, steps] {
        let status = s.execution(id).await.status();
        if status != ExecutionStatus::Running {
            assert!(longest > timeout / 2, "{id}: {status:?}");
            return false;
        }
    }
    true
}

/// Who saw the process go may be wrong: that end is a guess as silence is.
pub async fn an_end_because_the_process_died_is_a_guess(b: Backend) {
    let s = b.serve().await;
    let died = |id: &str| FinishExecutionRequest {
        error: Some(Error {
            code: "PROCESS_DIED".into(),
            details: meta(serde_json::json!({ "signal": 9 })),
            ..run_error("killed")
        }),
        ..finish(id, ExecutionStatus::Failed)
    };
    // With a lease and without one.
    s.create("plain").await;
    s.create_execution(watched_over("leased", 60_000)).await;
    for id in ["plain", "leased"] {
        let mut watch = s.watch(WatchExecutionRequest { follow: true, ..watch(id) }).await;
        watch.snapshot().await;
        let ended = s.finish_execution(died(id)).await;
        assert_eq!((ended.status(), code(&ended)), (ExecutionStatus::Failed, "PROCESS_DIED"));
        assert!(ended.completed_at.is_some());
        assert_eq!(s.finish_execution(died(id)).await, ended, "the same again");
        s.heartbeat(beat(id)).await;
        let revived = s.execution(id).await;
        assert_eq!(revived.status(), ExecutionStatus::Running);
        assert_eq!((&revived.error, &revived.completed_at), (&None, &None));
        watch.until_revision((id, None), revived.revision).await;
        // It died after all, and then its own end was found.
        let again = s.finish_execution(died(id)).await;
        assert_eq!(code(&again), "PROCESS_DIED");
        assert!(again.revision > revived.revision);
        let other = FinishExecutionRequest { completed_at: Some(time(7)), ..died(id) };
        assert!(s.finish_execution(other).await.revision > again.revision, "a better guess");
        let end = FinishExecutionRequest {
            metadata: meta(serde_json::json!({ "n": 1 })),
            ..finish(id, ExecutionStatus::Completed)
        };
        let replaced = s.finish_execution(end.clone()).await;
        assert_eq!((replaced.status(), &replaced.error), (ExecutionStatus::Completed, &None));
        assert_eq!(s.finish_execution(end).await, replaced);
        // No guess replaces an end.
        refused(
            s.try_finish_execution(died(id)).await,
            tonic::Code::FailedPrecondition,
            "WRONG_STATUS",
        );
        s.heartbeat(beat(id)).await;
        assert_eq!(s.execution(id).await, replaced);
    }
    // Only a failure is a guess, and only by this code.
    for (id, request) in [
        (
            "cancelled",
            FinishExecutionRequest {
                status: ExecutionStatus::Cancelled.into(),
                ..died("cancelled")
            },
        ),
        (
            "other",
            FinishExecutionRequest { error: Some(run_error("PROCESS_DIED")), ..died("other") },
        ),
    ] {
        s.create(id).await;
        let ended = s.finish_execution(request).await;
        s.heartbeat(beat(id)).await;
        assert_eq!(s.execution(id).await, ended);
    }
    // Any finish replaces what silence ended, also a guess; a cancel of a guess is welcome.
    s.create_execution(watched_over("silent", 200)).await;
    until_silent(&s, "silent").await;
    assert_eq!(code(&s.finish_execution(died("silent")).await), "PROCESS_DIED");
    let request = RequestCancelRequest { execution_id: "silent".into(), reason: "no use".into() };
    assert!(s.request_cancel(request).await.cancel_requested_at.is_some());
    assert!(s.heartbeat(beat("silent")).await.cancel_requested);
}
