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

fn beat(id: &str) -> HeartbeatRequest {
    HeartbeatRequest { execution_id: id.into() }
}

fn code(execution: &Execution) -> &str {
    execution.error.as_ref().map_or("", |error| error.code.as_str())
}

pub async fn silence_ends_an_execution_exactly_once_and_in_time(b: Backend) {
    const TIMEOUT: i64 = 1500;
    let (one, two) = b.pair().await;
    let mut watch = two.watch_all(watch_all()).await;
    watch.snapshot().await;
    let created = one.create_execution(watched_over("e", 1500)).await;
    one.create("not-watched-over").await;
    let mut ended = None;
    while ended.is_none() {
        let event = watch.next_change().await;
        let (_, execution) = event.execution().expect("only executions change");
        if execution.execution_id == "e" && execution.revision > created.revision {
            ended = Some(execution.clone());
        }
    }
    let ended = ended.expect("seen");
    assert_eq!((ended.status(), code(&ended)), (ExecutionStatus::Failed, CODE));
    let silent_since = millis(&created.created_at).expect("set");
    let ended_at = millis(&ended.completed_at).expect("set");
    let silence = ended_at - silent_since;
    assert!((TIMEOUT..=TIMEOUT * 3 / 2).contains(&silence), "ended after {silence} ms of silence");
    assert_eq!(ended.duration_ms, Some(ended_at - millis(&created.started_at).expect("set")));

    // Once: nothing more happens to it although two servers look after it.
    let marker = one.create_execution(watched_over("marker", 200)).await;
    watch
        .until("the marker's end", |event| {
            let (_, execution) = event.execution().expect("only executions change");
            assert!(execution.execution_id != "e", "ended a second time: {execution:?}");
            execution.execution_id == "marker" && execution.revision > marker.revision
        })
        .await;
    assert_eq!(one.execution("e").await, ended);
    assert_eq!(one.execution("not-watched-over").await.status(), ExecutionStatus::Running);
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
    const TIMEOUT: i64 = 1200;
    let (one, two) = b.pair().await;
    let mut ids = Vec::new();
    let unchanging = ["same-progress", "same-start", "same-create", "same-finish", "nothing"];
    for id in ["beats", "updates", "steps", "repeats"].into_iter().chain(unchanging) {
        one.create_execution(watched_over(id, 1200)).await;
        ids.push(id);
    }
    for id in ["steps", "same-progress", "same-start"] {
        one.start(id, 0).await;
    }
    let until = wall_clock_ms() + TIMEOUT * 5 / 2;
    let mut round = 0;
    let mut next = wall_clock_ms();
    while next < until {
        next += TIMEOUT / 6;
        eventually("the next sign of life", async || (wall_clock_ms() >= next).then_some(())).await;
        round += 1;
        let client = if round % 2 == 0 { &one } else { &two };
        client.heartbeat(beat("beats")).await;
        let request = UpdateExecutionRequest {
            metadata: meta(json!({ "round": round })),
            ..update("updates")
        };
        client.update_execution(request).await;
        let request = UpdateStepRequest {
            metadata: meta(json!({ "round": round })),
            ..update_step("steps", 0)
        };
        client.update_step(request).await;
        client.start("repeats", round).await;
        // What changes nothing is said by somebody all the same.
        let progress = UpdateStepRequest { progress: Some(0.5), ..update_step("same-progress", 0) };
        client.update_step(progress).await;
        client.start("same-start", 0).await;
        client.create_execution(watched_over("same-create", 1200)).await;
        let whole = FinishStepRequest {
            step_name: Some("whole".into()),
            ..finish_step("same-finish", 7, StepStatus::Completed)
        };
        client.finish_step(whole).await;
        client.update_execution(update("nothing")).await;
    }
    for id in ids {
        let execution = one.execution(id).await;
        assert_eq!(execution.status(), ExecutionStatus::Running, "{id}: {execution:?}");
    }
    // A step that was written is life, and then silence counts from there.
    let ended = until_silent(&one, "steps").await;
    let last = millis(&two.step("steps", 0).await.updated_at).expect("set");
    let silence = millis(&ended.completed_at).expect("set") - last;
    assert!((TIMEOUT..=TIMEOUT * 3 / 2).contains(&silence), "ended after {silence} ms of silence");
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
    const TIMEOUT: Duration = Duration::from_millis(1500);
    const TWO_HOURS_MS: i64 = 2 * 3_600_000;
    let clock = Arc::new(SetClock::default());
    let s = Server::start_by(b.config(), Arc::<SetClock>::clone(&clock)).await;
    for ahead_ms in [-TWO_HOURS_MS, TWO_HOURS_MS] {
        let names = ["silent", "alive", "steps"].map(|name| format!("{name}{ahead_ms}"));
        let [silent, alive, steps] = &names;
        let began = Instant::now();
        for id in &names {
            s.create_execution(watched_over(id, 1500)).await;
        }
        clock.set_ahead_ms(ahead_ms);
        let mut step_id = 0;
        eventually("the silent execution is ended", async || {
            s.heartbeat(beat(alive)).await;
            step_id += 1;
            s.start(steps, step_id).await;
            (s.execution(silent).await.status() != ExecutionStatus::Running).then_some(())
        })
        .await;
        assert!(began.elapsed() >= TIMEOUT, "{ahead_ms}: {:?}", began.elapsed());
        assert_eq!(code(&s.execution(silent).await), CODE, "{ahead_ms}");
        for id in [alive, steps] {
            assert_eq!(s.execution(id).await.status(), ExecutionStatus::Running, "{id}");
        }
    }
}
