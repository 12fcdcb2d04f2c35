//! Watching: snapshot, changes, tokens, ends, filters, and what slow or returning watchers get.

#![expect(clippy::disallowed_methods, reason = "tests measure real time")]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use stepwell::proto::ingest_request::Write as W;
use stepwell::proto::*;
use tonic::Code;

use crate::support::backend::{Backend, Kind};
use crate::support::client::*;
use crate::support::values::*;
use crate::support::watch::Event;
use crate::support::*;

fn everything() -> WatchExecutionsRequest {
    WatchExecutionsRequest { snapshot: WatchSnapshot::All.into(), ..watch_all() }
}

fn delete(id: &str) -> DeleteExecutionRequest {
    DeleteExecutionRequest { execution_id: id.into(), force: true }
}

pub async fn a_watch_begins_with_the_current_state(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    for step_id in [5, 0, 12, 3] {
        s.start("e", step_id).await;
    }
    let execution = s.execution("e").await;
    let mut watch = s.watch(watch("e")).await;
    let events = watch.snapshot().await;
    assert_eq!(events[0].execution(), Some((ChangeType::Created, &execution)));
    let ids: Vec<_> =
        events[1..].iter().map(|event| event.step().expect("a step").1.step_id).collect();
    assert_eq!(ids, [Some(0), Some(3), Some(5), Some(12)], "steps by id");
    assert!(
        events[1..].iter().all(|event| event.step().is_some_and(|(c, _)| c == ChangeType::Created))
    );

    // Then every later change, each with a token.
    let updated = s
        .update_execution(UpdateExecutionRequest {
            metadata: meta(json!({ "a": 1 })),
            ..update("e")
        })
        .await;
    let event = watch.next_change().await;
    assert_eq!(event.execution(), Some((ChangeType::Updated, &updated)));
    assert!(!event.token.is_empty());
    let started = s.start("e", 6).await;
    let event = watch.next_change().await;
    assert_eq!(event.step(), Some((ChangeType::Created, &started)));
    assert!(!event.token.is_empty());
    let ended = s.end("e", 6, StepStatus::Completed).await;
    let event = watch.next_change().await;
    assert_eq!(event.step(), Some((ChangeType::Updated, &ended)));
}

pub async fn watching_many_begins_with_what_was_asked_for(b: Backend) {
    let s = b.serve().await;
    for (id, status) in [
        ("running", None),
        ("completed", Some(ExecutionStatus::Completed)),
        ("failed", Some(ExecutionStatus::Failed)),
    ] {
        let request = CreateExecutionRequest { user_id: Some("ann".into()), ..create(id) };
        s.create_execution(request).await;
        s.start(id, 1).await;
        if let Some(status) = status {
            s.finish(id, status).await;
        }
    }
    s.create("of-nobody").await;
    let ann = || Some(ExecutionFilter { user_ids: vec!["ann".into()], ..Default::default() });
    let all = ["completed", "failed", "running"].as_slice();
    let cases: Vec<(WatchSnapshot, Option<ExecutionFilter>, Vec<&str>)> = vec![
        (WatchSnapshot::Unspecified, None, vec!["of-nobody", "running"]),
        (
            WatchSnapshot::Unspecified,
            Some(ExecutionFilter::default()),
            vec!["of-nobody", "running"],
        ),
        (WatchSnapshot::Unspecified, ann(), all.to_vec()),
        (WatchSnapshot::All, ann(), all.to_vec()),
        (WatchSnapshot::All, None, vec!["completed", "failed", "of-nobody", "running"]),
        (WatchSnapshot::Active, ann(), vec!["running"]),
        (WatchSnapshot::None, ann(), vec![]),
        (WatchSnapshot::None, None, vec![]),
    ];
    for (snapshot, filter, expected) in cases {
        for include_steps in [true, false] {
            let request = WatchExecutionsRequest {
                filter: filter.clone(),
                snapshot: snapshot.into(),
                include_steps,
                ..Default::default()
            };
            let mut watch = s.watch_all(request).await;
            let events = watch.snapshot().await;
            let mut found: Vec<&str> = events
                .iter()
                .filter_map(|event| Some(event.execution()?.1.execution_id.as_str()))
                .collect();
            found.sort();
            assert_eq!(found, expected, "{snapshot:?} {filter:?}");
            let steps = events.iter().filter(|event| event.step().is_some()).count();
            let with_steps = expected.iter().filter(|id| **id != "of-nobody").count();
            assert_eq!(
                steps,
                if include_steps { with_steps } else { 0 },
                "{snapshot:?} {filter:?}"
            );
        }
    }
}

pub async fn a_token_resumes_with_every_change_after_it(b: Backend) {
    let (one, two) = b.pair().await;
    one.create("e").await;
    let mut first = one.watch_all(everything()).await;
    first.snapshot().await;
    let mut tokens = vec![(first.token.clone(), 0)];
    let mut revisions = Vec::new();
    for n in 1..=20 {
        let step = one.start("e", n).await;
        revisions.push(step.revision);
        let event = first.next_change().await;
        assert_eq!(event.step().map(|(_, step)| step.revision), Some(step.revision));
        tokens.push((event.token, revisions.len()));
    }
    for (token, seen) in tokens {
        for server in [&one, &two] {
            let request =
                WatchExecutionsRequest { resume_token: Some(token.clone()), ..everything() };
            let mut again = server.watch_all(request).await;
            let mut found = Vec::new();
            while found.len() < revisions.len() - seen {
                let event = again.next_change().await;
                assert!(!event.token.is_empty());
                found.push(event.step().expect("only steps changed").1.revision);
            }
            assert_eq!(found, revisions[seen..], "no snapshot, no gap");
        }
    }
    // The same for one execution.
    let mut watch_one = one.watch(watch("e")).await;
    watch_one.snapshot().await;
    let token = watch_one.token.clone();
    let later = two.start("e", 21).await;
    let request = WatchExecutionRequest { resume_token: Some(token), ..watch("e") };
    let mut again = two.watch(request).await;
    let event = again.next_change().await;
    assert_eq!(event.step(), Some((ChangeType::Created, &later)));
}

pub async fn tokens_survive_a_restart(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let mut watch = s.watch(watch("e")).await;
    watch.snapshot().await;
    let before = s.start("e", 1).await;
    watch.until_revision(("e", Some(1)), before.revision).await;
    let token = watch.token.clone();
    let missed = s.start("e", 2).await;
    drop(watch);
    s.shutdown().await;

    let s = b.serve().await;
    let request = WatchExecutionRequest { resume_token: Some(token), ..one("e") };
    let mut watch = s.watch(request).await;
    let later = s.start("e", 3).await;
    let event = watch.next_change().await;
    assert_eq!(event.step(), Some((ChangeType::Created, &missed)));
    let event = watch.next_change().await;
    assert_eq!(event.step(), Some((ChangeType::Created, &later)));
}

/// `watch` under a name that a local variable does not hide.
fn one(id: &str) -> WatchExecutionRequest {
    watch(id)
}

pub async fn an_acknowledged_write_reaches_every_watcher(b: Backend) {
    let (left, right) = b.pair().await;
    let mut watchers = Vec::new();
    for n in 0..6 {
        let server = if n % 2 == 0 { &left } else { &right };
        let mut watch = server.watch_all(everything()).await;
        watch.snapshot().await;
        watchers.push(watch);
    }
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let client = if writer % 2 == 0 { (*left).clone() } else { (*right).clone() };
        writers.spawn(async move {
            let id = format!("e{writer}");
            let mut acknowledged = HashMap::new();
            let execution = client.create(&id).await;
            acknowledged.insert((id.clone(), None), execution.revision);
            for step_id in 0..10 {
                client.start(&id, step_id).await;
                let step = client.end(&id, step_id, StepStatus::Completed).await;
                acknowledged.insert((id.clone(), Some(step_id)), step.revision);
            }
            let execution = client.finish(&id, ExecutionStatus::Completed).await;
            acknowledged.insert((id, None), execution.revision);
            acknowledged
        });
    }
    let acknowledged: HashMap<_, _> = writers.join_all().await.into_iter().flatten().collect();
    for mut watch in watchers {
        let mut seen = HashMap::new();
        in_time("every acknowledged write", async {
            while seen != acknowledged {
                if let Some((key, revision)) = watch.next_change().await.record() {
                    seen.insert(key, revision);
                }
            }
        })
        .await;
    }
}

pub async fn a_watch_of_one_ends_when_all_has_ended(b: Backend) {
    let s = b.serve().await;
    // The execution ends last.
    s.create("e").await;
    s.start("e", 1).await;
    let mut open = s.watch(watch("e")).await;
    let mut followed = s.watch(WatchExecutionRequest { follow: true, ..watch("e") }).await;
    let mut stepless = s.watch(WatchExecutionRequest { include_steps: false, ..watch("e") }).await;
    for stream in [&mut open, &mut followed, &mut stepless] {
        stream.snapshot().await;
    }
    s.end("e", 1, StepStatus::Completed).await;
    let last = s.finish("e", ExecutionStatus::Completed).await;
    let (events, end) = open.rest().await;
    end.expect("the stream ends with OK");
    assert_eq!(events.last().and_then(Event::execution), Some((ChangeType::Updated, &last)));
    let (events, end) = stepless.rest().await;
    end.expect("the stream ends with OK");
    assert!(events.iter().all(|event| event.step().is_none()));
    followed.until_revision(("e", None), last.revision).await;
    let late = s.start("e", 2).await;
    let event = followed.next_change().await;
    assert_eq!(event.step(), Some((ChangeType::Created, &late)), "it goes on");

    // It has ended already, but for a step.
    let mut open = s.watch(watch("e")).await;
    open.snapshot().await;
    let ended = s.end("e", 2, StepStatus::Failed).await;
    let (events, end) = open.rest().await;
    end.expect("the stream ends with OK");
    assert_eq!(events.last().and_then(Event::step), Some((ChangeType::Updated, &ended)));

    // All has ended: the state, and the end.
    let mut open = s.watch(watch("e")).await;
    let events = open.snapshot().await;
    assert_eq!(events.len(), 3);
    let token = open.token.clone();
    let (events, end) = open.rest().await;
    end.expect("the stream ends with OK");
    assert!(events.is_empty());
    let resumed = WatchExecutionRequest { resume_token: Some(token), ..watch("e") };
    let (events, end) = s.watch(resumed).await.rest().await;
    end.expect("a resumed stream ends too");
    assert!(events.len() <= 1, "{events:?}");
}

pub async fn an_end_comes_after_the_steps_that_were_written_before_it(b: Backend) {
    const ROUNDS: usize = 40;
    let (one, two) = b.pair().await;
    for round in 0..ROUNDS {
        let id = format!("e{round}");
        one.create(&id).await;
        let mut here = one.watch(watch(&id)).await;
        let mut there = two.watch(watch(&id)).await;
        here.snapshot().await;
        there.snapshot().await;
        // All at once, so that they are stored together.
        let whole = FinishStepRequest {
            step_name: Some("whole".into()),
            ..finish_step(&id, 9, StepStatus::Completed)
        };
        let writes = vec![
            W::StartStep(start(&id, 1)),
            W::FinishStep(finish_step(&id, 1, StepStatus::Completed)),
            W::FinishStep(whole),
            W::FinishExecution(finish(&id, ExecutionStatus::Completed)),
        ];
        one.ingest_all(writes).await;
        for watch in [&mut here, &mut there] {
            let (events, end) = watch.rest().await;
            end.expect("the stream ends with OK");
            let last = events.last().and_then(Event::execution).expect("the end comes last");
            assert_eq!(last.1.status(), ExecutionStatus::Completed);
            for step_id in [1, 9] {
                let mut steps = events.iter().filter_map(Event::step).rev();
                let step = steps.find(|(_, step)| step.step_id == Some(step_id));
                let status = step.map(|(_, step)| step.status());
                assert_eq!(status, Some(StepStatus::Completed), "step {step_id} of {id}");
            }
        }
    }
}

pub async fn a_pending_step_does_not_keep_a_watch_open(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let steps =
        vec![PlannedStep { step_id: Some(1), step_name: "never".into(), ..Default::default() }];
    s.plan_steps(PlanStepsRequest { execution_id: "e".into(), steps, ..Default::default() }).await;
    let mut open = s.watch(watch("e")).await;
    open.snapshot().await;
    s.finish("e", ExecutionStatus::Cancelled).await;
    let (_, end) = open.rest().await;
    end.expect("the stream ends with OK");
}

pub async fn a_silent_stream_gets_keepalives_with_tokens(b: Backend) {
    let s = b.serve_with(|config| config.watch.keepalive = Duration::from_millis(100)).await;
    s.create("e").await;
    let mut watch = s.watch(watch("e")).await;
    watch.snapshot().await;
    for _ in 0..3 {
        let event = watch.next().await;
        assert!(event.is_keepalive(), "{event:?}");
        assert!(!event.token.is_empty());
    }
    let token = watch.token.clone();
    let started = s.start("e", 1).await;
    let request = WatchExecutionRequest { resume_token: Some(token), ..one("e") };
    let mut resumed = s.watch(request).await;
    assert_eq!(resumed.next_change().await.step(), Some((ChangeType::Created, &started)));
    let mut all = s.watch_all(everything()).await;
    all.snapshot().await;
    assert!(all.next().await.is_keepalive());
}

pub async fn a_keepalive_token_moves_on_past_changes_of_others(b: Backend) {
    let s = b.serve_with(|config| config.watch.keepalive = Duration::from_millis(50)).await;
    s.create("quiet").await;
    s.create("busy").await;
    let mut watch = s.watch(watch("quiet")).await;
    watch.snapshot().await;
    let mut all = s.watch_all(everything()).await;
    all.snapshot().await;
    for n in 0..50 {
        let step = s.start("busy", n).await;
        all.until_revision(("busy", Some(n)), step.revision).await;
    }
    let token = eventually("a keepalive after the changes", async || {
        let event = watch.next().await;
        assert!(event.is_keepalive(), "{event:?}");
        Some(event.token)
    })
    .await;
    let later = s.start("quiet", 1).await;
    let resumed = WatchExecutionRequest { resume_token: Some(token), ..one("quiet") };
    let mut resumed = s.watch(resumed).await;
    assert_eq!(resumed.next_change().await.step(), Some((ChangeType::Created, &later)));
}

pub async fn a_deletion_is_told_with_the_ids(b: Backend) {
    let (one, two) = b.pair().await;
    for id in ["e", "kept"] {
        one.create(id).await;
        one.start(id, 1).await;
        one.start(id, 2).await;
    }
    let mut of_one = two.watch(watch("e")).await;
    let mut of_all = two.watch_all(everything()).await;
    of_one.snapshot().await;
    of_all.snapshot().await;
    one.delete_execution(delete("e")).await;
    for stream in [&mut of_one, &mut of_all] {
        let event = stream
            .until("the deletion", |event| {
                event.execution().is_some_and(|(change, _)| change == ChangeType::Deleted)
            })
            .await;
        let (_, execution) = event.execution().expect("an execution");
        assert_eq!(execution.execution_id, "e");
        assert!(!event.token.is_empty());
    }
    // It covers its steps: the next event is of something else.
    let later = one.start("kept", 3).await;
    let event = of_all.next_change().await;
    assert_eq!(event.step(), Some((ChangeType::Created, &later)), "{event:?}");
}

pub async fn an_id_that_is_used_again_is_a_new_record(b: Backend) {
    let s = b.serve().await;
    let mut watch = s.watch_all(everything()).await;
    watch.snapshot().await;
    let mut kinds = Vec::new();
    for _ in 0..3 {
        s.create("e").await;
        s.delete_execution(delete("e")).await;
    }
    let last = s.create("e").await;
    loop {
        let event = watch.next_change().await;
        let (change, execution) = event.execution().expect("only executions");
        kinds.push(change);
        if execution.revision == last.revision {
            break;
        }
    }
    assert_eq!(*kinds.last().expect("seen"), ChangeType::Created, "{kinds:?}");
    assert!(kinds.contains(&ChangeType::Deleted), "{kinds:?}");
}

pub async fn a_record_that_leaves_the_filter_is_sent_once_more(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    s.create("other").await;
    let running =
        ExecutionFilter { statuses: vec![ExecutionStatus::Running.into()], ..Default::default() };
    let request = WatchExecutionsRequest { filter: Some(running), ..everything() };
    let mut watch = s.watch_all(request.clone()).await;
    assert_eq!(watch.snapshot().await.len(), 2);
    let ended = s.finish("e", ExecutionStatus::Completed).await;
    let event = watch.next_change().await;
    assert_eq!(
        event.execution(),
        Some((ChangeType::Updated, &ended)),
        "with the change that moved it out"
    );
    // And then no more, neither it nor its steps.
    let gone = UpdateExecutionRequest { metadata: meta(json!({ "late": 1 })), ..update("e") };
    s.update_execution(gone).await;
    s.start("e", 1).await;
    let step = s.start("other", 1).await;
    let event = watch.next_change().await;
    assert_eq!(event.step(), Some((ChangeType::Created, &step)));

    // Also when the change is only seen after a resume.
    let token = watch.token.clone();
    drop(watch);
    let ended = s.finish("other", ExecutionStatus::Failed).await;
    let resumed = WatchExecutionsRequest { resume_token: Some(token), ..request };
    let mut watch = s.watch_all(resumed).await;
    let event = watch
        .until("the end", |event| event.execution().is_some_and(|(_, e)| e.execution_id == "other"))
        .await;
    assert_eq!(event.execution(), Some((ChangeType::Updated, &ended)));
}

pub async fn a_record_may_enter_a_filter(b: Backend) {
    let s = b.serve().await;
    let starred = ExecutionFilter {
        metadata: [("star".to_owned(), value(json!(true)))].into(),
        ..Default::default()
    };
    let request = WatchExecutionsRequest { filter: Some(starred), ..everything() };
    let mut watch = s.watch_all(request).await;
    assert!(watch.snapshot().await.is_empty());
    s.create("e").await;
    s.start("e", 1).await;
    let star =
        |on: bool| UpdateExecutionRequest { metadata: meta(json!({ "star": on })), ..update("e") };
    let entered = s.update_execution(star(true)).await;
    let event = watch.next_change().await;
    assert_eq!(event.execution().map(|(_, e)| e), Some(&entered));
    // Its steps follow.
    let step = s.end("e", 1, StepStatus::Completed).await;
    watch.until_revision(("e", Some(1)), step.revision).await;
    let left = s.update_execution(star(false)).await;
    watch.until_revision(("e", None), left.revision).await;
    s.start("e", 2).await;
    let back = s.update_execution(star(true)).await;
    let events = watch.until_revision(("e", None), back.revision).await;
    assert!(
        events.iter().all(|event| event.record().is_none_or(|(_, r)| r >= back.revision)),
        "{events:?}"
    );
}

pub async fn steps_follow_their_execution(b: Backend) {
    let s = b.serve().await;
    let ann = ExecutionFilter { user_ids: vec!["ann".into()], ..Default::default() };
    let request = WatchExecutionsRequest { filter: Some(ann), ..everything() };
    let mut watch = s.watch_all(request).await;
    watch.snapshot().await;
    for (id, user) in [("hers", "ann"), ("his", "bob")] {
        let request = CreateExecutionRequest { user_id: Some(user.into()), ..create(id) };
        s.create_execution(request).await;
    }
    for n in 0..5 {
        s.start("his", n).await;
        s.start("hers", n).await;
    }
    let last = s.finish("hers", ExecutionStatus::Completed).await;
    let events = watch.until_revision(("hers", None), last.revision).await;
    assert_eq!(events.len(), 7);
    assert!(events.iter().all(|event| event.record().expect("a record").0.0 == "hers"));
}

pub async fn payloads_come_only_when_asked_for(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let request = StartStepRequest { input: Some(value(json!({ "in": 1 }))), ..start("e", 1) };
    s.start_step(request).await;
    let mut bare = s.watch(watch("e")).await;
    let mut full = s.watch(WatchExecutionRequest { include_payloads: true, ..watch("e") }).await;
    let mut all =
        s.watch_all(WatchExecutionsRequest { include_payloads: true, ..everything() }).await;
    let in_and_out = |event: &Event| {
        let (_, step) = event.step().expect("a step");
        (plain_field(&step.input), plain_field(&step.output))
    };
    let events = bare.snapshot().await;
    assert!(
        events[1].step().is_some_and(|(_, step)| step.input.is_none() && step.output.is_none())
    );
    for stream in [&mut full, &mut all] {
        let events = stream.snapshot().await;
        assert_eq!(in_and_out(&events[1]), (json!({ "in": 1 }), json!(null)));
    }
    let request = FinishStepRequest {
        output: Some(value(json!(["out"]))),
        ..finish_step("e", 1, StepStatus::Completed)
    };
    s.finish_step(request).await;
    let event = bare.next_change().await;
    assert!(event.step().is_some_and(|(_, step)| step.input.is_none() && step.output.is_none()));
    for stream in [&mut full, &mut all] {
        let event = stream.next_change().await;
        assert_eq!(in_and_out(&event), (json!({ "in": 1 }), json!(["out"])));
    }
}

pub async fn a_slow_watcher_gets_the_latest_and_slows_nobody(b: Backend) {
    const ROUNDS: i32 = 1500;
    let s = b.serve().await;
    // A connection of its own, that nobody reads: its flow control closes.
    let idle = Client::of(s.address());
    let mut slow = idle.watch_all(everything()).await;
    slow.snapshot().await;
    let mut quick = s.watch_all(everything()).await;
    quick.snapshot().await;
    let ids: Vec<String> = (0..5).map(|n| format!("e{n}")).collect();
    for id in &ids {
        s.create(id).await;
        s.start(id, 0).await;
    }
    let big = text(16 * 1024);
    let mut latest = HashMap::new();
    for round in 0..ROUNDS {
        let id = &ids[usize::try_from(round).expect("positive") % ids.len()];
        let request = UpdateStepRequest {
            progress: Some(f64::from(round) / f64::from(ROUNDS)),
            metadata: meta(json!({ "big": big })),
            ..update_step(id, 0)
        };
        let step = s.update_step(request).await;
        latest.insert((id.clone(), Some(0)), step.revision);
    }
    for watch in [&mut quick, &mut slow] {
        let mut seen = HashMap::new();
        in_time("the latest state", async {
            while latest.iter().any(|(key, revision)| seen.get(key) != Some(revision)) {
                if let Some((key, revision)) = watch.next_change().await.record() {
                    seen.insert(key, revision);
                }
            }
        })
        .await;
    }
    // Not disconnected: it goes on live.
    let later = s.end("e0", 0, StepStatus::Completed).await;
    slow.until_revision(("e0", Some(0)), later.revision).await;
}

pub async fn many_watchers_resume_together(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let mut first = s.watch_all(everything()).await;
    first.snapshot().await;
    let mut tokens = vec![first.token.clone()];
    let mut last = 0;
    for n in 0..100 {
        last = s.start("e", n).await.revision;
        tokens.push(first.next_change().await.token);
    }
    let mut watchers = tokio::task::JoinSet::new();
    for token in tokens {
        let client = (*s).clone();
        watchers.spawn(async move {
            let request = WatchExecutionsRequest { resume_token: Some(token), ..everything() };
            client.watch_all(request).await
        });
    }
    let mut watchers = watchers.join_all().await;
    let next = s.start("e", 100).await;
    assert!(next.revision > last);
    for watch in &mut watchers {
        watch.until_revision(("e", Some(100)), next.revision).await;
    }
}

pub async fn forged_and_foreign_resume_tokens_are_refused(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    s.create("f").await;
    let mut open = s.watch(watch("e")).await;
    open.snapshot().await;
    let of_e = open.token.clone();
    let mut open = s.watch_all(everything()).await;
    open.snapshot().await;
    let of_all = open.token.clone();
    let page = ListExecutionsRequest { page_size: 1, ..Default::default() };
    let of_page = s.list_executions(page).await.next_page_token;
    assert!(!of_page.is_empty());

    let bad = |status: tonic::Status| {
        let details = check_refusal(&status, Code::InvalidArgument, "INVALID_TOKEN");
        let fields = &details.bad_request().expect("checked").field_violations;
        assert_eq!(fields[0].field, "resume_token");
    };
    let one = async |id: &str, token: &str| {
        let request = WatchExecutionRequest { resume_token: Some(token.into()), ..watch(id) };
        match s.try_watch(request).await {
            Ok(watch) => watch.broken().await,
            Err(status) => status,
        }
    };
    let many = async |filter: Option<ExecutionFilter>, token: &str| {
        let request =
            WatchExecutionsRequest { filter, resume_token: Some(token.into()), ..everything() };
        match s.try_watch_all(request).await {
            Ok(watch) => watch.broken().await,
            Err(status) => status,
        }
    };
    for forged in ["x", "AAAAAAAAAAAAAAAA", "%%%", &of_e[2..], &text(6000), &of_page] {
        bad(one("e", forged).await);
        bad(many(None, forged).await);
    }
    let mut flipped = of_e.clone().into_bytes();
    let middle = flipped.len() / 2;
    flipped[middle] = if flipped[middle] == b'A' { b'B' } else { b'A' };
    bad(one("e", &String::from_utf8(flipped).expect("ASCII")).await);
    bad(one("f", &of_e).await);
    bad(one("e", &of_all).await);
    bad(many(None, &of_e).await);
    let ann = ExecutionFilter { user_ids: vec!["ann".into()], ..Default::default() };
    bad(many(Some(ann), &of_all).await);
    // An empty token is none.
    let request = WatchExecutionRequest { resume_token: Some(String::new()), ..watch("e") };
    assert_eq!(s.watch(request).await.snapshot().await.len(), 1);
}

pub async fn a_token_that_history_no_longer_covers_is_out_of_range(b: Backend) {
    let b = b.with_short_history();
    let s = b.serve().await;
    s.create("e").await;
    let mut open = s.watch(watch("e")).await;
    open.snapshot().await;
    let token = open.token.clone();
    drop(open);
    let s = b.forget_history(s).await;
    let status = eventually("history is gone", async || {
        let request =
            WatchExecutionRequest { resume_token: Some(token.clone()), follow: true, ..watch("e") };
        match s.try_watch(request).await {
            Err(status) => Some(status),
            Ok(mut watch) => watch.try_next().await.err(),
        }
    })
    .await;
    check_refusal(&status, Code::OutOfRange, "RESUME_TOKEN_EXPIRED");
    let mut again = s.watch(watch("e")).await;
    assert_eq!(again.snapshot().await.len(), 1, "start again without one");
}

pub async fn a_graceful_shutdown_ends_every_stream_in_time(b: Backend) {
    let (one, two) = b.pair_of_servers().await;
    one.create("e").await;
    let mut watchers = Vec::new();
    for _ in 0..5 {
        let mut watch = one.watch(watch("e")).await;
        watch.snapshot().await;
        let mut all = one.watch_all(everything()).await;
        all.snapshot().await;
        watchers.extend([watch, all]);
    }
    let step = one.start("e", 1).await;
    let began = Instant::now();
    let down = tokio::spawn(one.shutdown());
    let mut ended = Vec::new();
    for mut watch in watchers {
        let (events, end) = watch.rest().await;
        let status = end.expect_err("a stream ends with UNAVAILABLE");
        check_refusal(&status, Code::Unavailable, "SHUTTING_DOWN");
        let seen = events.iter().any(|event| event.step().is_some());
        ended.push((watch.token.clone(), seen));
    }
    assert!(began.elapsed() < Duration::from_secs(5), "took {:?}", began.elapsed());
    down.await.expect("the server ends");
    let two = match two {
        Some(two) => two,
        None => b.serve().await,
    };
    let mut resumed = Vec::new();
    for (number, (token, seen)) in ended.into_iter().enumerate() {
        let resume_token = Some(token);
        let watch = if number % 2 == 0 {
            two.watch(WatchExecutionRequest { resume_token, ..watch("e") }).await
        } else {
            two.watch_all(WatchExecutionsRequest { resume_token, ..everything() }).await
        };
        resumed.push((watch, seen));
    }
    let later = two.end("e", 1, StepStatus::Completed).await;
    for (mut watch, seen) in resumed {
        let events = watch.until_revision(("e", Some(1)), later.revision).await;
        let (_, first) = events[0].record().expect("a record");
        assert!(seen || first == step.revision || first == later.revision, "{events:?}");
    }
}

pub async fn a_writer_that_opens_first_and_commits_last_is_not_missed(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    s.create("f").await;
    let mut watch = s.watch_all(everything()).await.with_foreign_changes();
    watch.snapshot().await;
    // Another program opens a transaction, and holds it while others write and commit.
    let early = b.open_transaction("e").await;
    let mut last = None;
    if b.kind == Kind::Mongodb {
        for n in 0..20 {
            last = Some(s.start("f", n).await.revision);
        }
        watch.until_revision(("f", Some(19)), last.expect("written")).await;
        early.commit().await;
        watch
            .until("the change of the late commit", |event| {
                event
                    .execution()
                    .is_some_and(|(_, e)| plain_meta(&e.metadata)["late"] == json!(true))
            })
            .await;
    } else {
        // On the embedded store whoever writes holds up the others: ours wait, and then are seen.
        let client = (*s).clone();
        let writing = tokio::spawn(async move { client.start("f", 0).await });
        early.commit().await;
        let step = writing.await.expect("the write goes through");
        watch.until_revision(("f", Some(0)), step.revision).await;
    }
    // Resuming from before all of it misses nothing either.
    let later = s.start("f", 100).await;
    watch.until_revision(("f", Some(100)), later.revision).await;
    assert!(last.is_none_or(|last| last < later.revision));
}

pub async fn an_unknown_execution_cannot_be_watched(b: Backend) {
    let s = b.serve().await;
    let answer = match s.try_watch(watch("nobody")).await {
        Ok(watch) => watch.broken().await,
        Err(status) => status,
    };
    let details = check_refusal(&answer, Code::NotFound, "EXECUTION_NOT_FOUND");
    assert_eq!(details.resource_info().map(|r| r.resource_name.as_str()), Some("nobody"));
    // A filter that nothing matches is no error.
    let nobody = ExecutionFilter { user_ids: vec!["nobody".into()], ..Default::default() };
    let request = WatchExecutionsRequest { filter: Some(nobody), ..everything() };
    assert!(s.watch_all(request).await.snapshot().await.is_empty());
}

pub async fn a_great_snapshot_arrives_whole(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let steps = (0..3000).map(|step_id| ingest_request::Write::StartStep(start("e", step_id)));
    s.ingest_all(steps.collect()).await;
    let mut watch = s.watch(watch("e")).await;
    let events = watch.snapshot().await;
    let ids: Vec<_> = events[1..].iter().filter_map(|event| event.step()?.1.step_id).collect();
    assert_eq!(ids, (0..3000).collect::<Vec<_>>());
    let later = s.end("e", 2999, StepStatus::Completed).await;
    watch.until_revision(("e", Some(2999)), later.revision).await;
}

pub async fn a_write_during_the_snapshot_is_not_lost(b: Backend) {
    let (one, two) = b.pair().await;
    one.create("e").await;
    let steps = (0..500).map(|step_id| ingest_request::Write::StartStep(start("e", step_id)));
    one.ingest_all(steps.collect()).await;
    for round in 0..10 {
        let writer = (*two).clone();
        let writing = tokio::spawn(async move {
            let mut latest = HashMap::new();
            for step_id in (0..500).step_by(25) {
                let request = UpdateStepRequest {
                    metadata: meta(json!({ "round": round })),
                    ..update_step("e", step_id)
                };
                latest.insert(step_id, writer.update_step(request).await.revision);
            }
            latest
        });
        let mut watch = one.watch(watch("e")).await;
        let mut seen: HashMap<i32, i64> = HashMap::new();
        for event in watch.snapshot().await {
            if let Some((_, step)) = event.step() {
                seen.insert(step.step_id.expect("set"), step.revision);
            }
        }
        assert_eq!(seen.len(), 500);
        let latest = writing.await.expect("written");
        in_time("the latest of each", async {
            while latest.iter().any(|(id, revision)| seen[id] != *revision) {
                if let Some((_, step)) = watch.next_change().await.step() {
                    seen.insert(step.step_id.expect("set"), step.revision);
                }
            }
        })
        .await;
    }
}
