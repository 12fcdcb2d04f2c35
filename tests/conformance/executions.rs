//! The life of an execution: creating, updating, finishing, cancelling, deleting.

use stepwell::proto::*;
use tonic::Code;

use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::values::*;

/// Every field that a client may send, and one of each kind of value.
fn full(id: &str) -> CreateExecutionRequest {
    CreateExecutionRequest {
        execution_id: Some(id.into()),
        app_id: Some(7),
        app_name: "Résumé parser".into(),
        sub_app_id: Some(-3),
        sub_app_name: Some("sub".into()),
        user_id: Some("user@example.org".into()),
        metadata: meta(json!({ "a": { "b": [1, "two", null, 3.5, true] }, "n": 1 })),
        started_at: Some(time(1_700_000_000_123)),
        heartbeat_timeout: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        parent_execution_id: Some("parent of it".into()),
        configuration_version: Some("2.1".into()),
    }
}

pub async fn a_created_execution_has_every_field_that_was_sent(b: Backend) {
    let s = b.serve().await;
    let before = wall_clock_ms();
    let created = s.create_execution(full("e")).await;
    let after = wall_clock_ms();
    assert_eq!(created.execution_id, "e");
    assert_eq!(created.app_id, Some(7));
    assert_eq!(created.app_name, "Résumé parser");
    assert_eq!(created.sub_app_id, Some(-3));
    assert_eq!(created.sub_app_name.as_deref(), Some("sub"));
    assert_eq!(created.user_id.as_deref(), Some("user@example.org"));
    assert_eq!(created.status(), ExecutionStatus::Running);
    assert_eq!(millis(&created.started_at), Some(1_700_000_000_123));
    assert_eq!((&created.completed_at, created.duration_ms), (&None, None));
    assert_eq!(created.error, None);
    assert_eq!(
        plain_meta(&created.metadata),
        json!({ "a": { "b": [1, "two", null, 3.5, true] }, "n": 1 })
    );
    assert_eq!(created.heartbeat_timeout_ms, Some(3_600_000));
    assert_eq!(created.parent_execution_id.as_deref(), Some("parent of it"));
    assert_eq!(created.configuration_version.as_deref(), Some("2.1"));
    assert_eq!((created.cancel_requested_at, created.cancel_reason.as_deref()), (None, None));
    assert!(!created.pinned.unwrap_or(false));
    for at in [&created.created_at, &created.updated_at] {
        let at = millis(at).expect("the server fills it");
        assert!((before..=after).contains(&at), "{before} {at} {after}");
    }
    assert_eq!(s.execution("e").await, created);
}

pub async fn the_server_fills_in_what_the_client_leaves_out(b: Backend) {
    let s = b.serve().await;
    let before = wall_clock_ms();
    let request = CreateExecutionRequest { app_name: "app".into(), ..Default::default() };
    let created = s.create_execution(request.clone()).await;
    let after = wall_clock_ms();
    let id = uuid::Uuid::parse_str(&created.execution_id).expect("a UUID");
    assert_eq!(id.get_version_num(), 4);
    assert_eq!(id.hyphenated().to_string(), created.execution_id);
    let started_at = millis(&created.started_at).expect("the server fills it");
    assert!((before..=after).contains(&started_at));
    assert_eq!((created.app_id, created.sub_app_id), (None, None));
    assert_eq!((&created.sub_app_name, &created.user_id), (&None, &None));
    assert_eq!(plain_meta(&created.metadata), json!({}));

    let other = s.create_execution(request).await;
    assert_ne!(other.execution_id, created.execution_id, "without an id every call is a new run");

    let ended = s.finish(&created.execution_id, ExecutionStatus::Completed).await;
    let completed_at = millis(&ended.completed_at).expect("the server fills it");
    assert_eq!(ended.duration_ms, Some(completed_at - started_at));
}

pub async fn execution_ids_are_1_to_128_printable_ascii_characters(b: Backend) {
    let s = b.serve().await;
    let longest = text(128);
    for id in ["a", "7f3a", "12345", "URL-safe_id~1", "!\"#$%&'()*+,/:;<=>?@[\\]^`{|}", &longest] {
        assert_eq!(s.create(id).await.execution_id, id);
        assert_eq!(s.execution(id).await.execution_id, id);
    }
    let too_long = text(129);
    for id in ["", "with space", "tab\t", "newline\n", "ünicode", "nul\0", "del\x7f", &too_long] {
        let fields = bad_fields(s.try_create_execution(create(id)).await);
        assert!(fields.iter().all(|(field, _)| field == "execution_id"), "{id:?}: {fields:?}");
    }
}

pub async fn ids_that_differ_only_in_case_are_different(b: Backend) {
    let s = b.serve().await;
    for (id, user) in [("abc", "one"), ("ABC", "two"), ("Abc", "three")] {
        let request = CreateExecutionRequest { user_id: Some(user.into()), ..create(id) };
        s.create_execution(request).await;
    }
    for (id, user) in [("abc", "one"), ("ABC", "two"), ("Abc", "three")] {
        assert_eq!(s.execution(id).await.user_id.as_deref(), Some(user));
    }
    for (number, key) in ["key", "KEY"].into_iter().enumerate() {
        let request =
            StartStepRequest { step_id: None, step_key: Some(key.into()), ..start("abc", 0) };
        let step = s.start_step(request).await;
        assert_eq!(step.step_id, Some(i32::try_from(number).expect("small") + 1));
    }
    assert_eq!(refused_code(s.try_execution("aBC").await), Code::NotFound);
    let filter = ExecutionFilter { user_ids: vec!["ONE".into()], ..Default::default() };
    let request = ListExecutionsRequest { filter: Some(filter), ..Default::default() };
    assert_eq!(s.list_executions(request).await.executions, []);
}

fn refused_code<T>(answer: Answer<T>) -> Code {
    answer.err().expect("refused").code()
}

pub async fn times_are_cut_to_milliseconds(b: Backend) {
    let s = b.serve().await;
    let fine = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
    let created = s
        .create_execution(CreateExecutionRequest {
            started_at: fine(1_700_000_000, 123_999_999),
            ..create("e")
        })
        .await;
    assert_eq!(millis(&created.started_at), Some(1_700_000_000_123));
    let step = s
        .finish_step(FinishStepRequest {
            step_name: Some("work".into()),
            // Before 1970 cutting goes to the earlier millisecond too: never rounded up.
            started_at: fine(-2, 999_999_999),
            completed_at: fine(1_700_000_000, 999_999),
            ..finish_step("e", 1, StepStatus::Completed)
        })
        .await;
    assert_eq!(millis(&step.started_at), Some(-1001));
    assert_eq!(millis(&step.completed_at), Some(1_700_000_000_000));
    let ended = s
        .finish_execution(FinishExecutionRequest {
            completed_at: fine(1_700_000_001, 999_999_999),
            ..finish("e", ExecutionStatus::Completed)
        })
        .await;
    assert_eq!(millis(&ended.completed_at), Some(1_700_000_001_999));
    assert_eq!(ended.duration_ms, Some(1_876));
    assert_eq!(s.execution("e").await, ended);
    assert_eq!(millis(&s.step("e", 1).await.started_at), Some(-1001));
}

pub async fn clients_may_send_their_own_times_and_clocks_may_disagree(b: Backend) {
    let s = b.serve().await;
    s.create_execution(CreateExecutionRequest { started_at: Some(time(10_000)), ..create("e") })
        .await;
    let step = s
        .finish_step(FinishStepRequest {
            step_name: Some("work".into()),
            started_at: Some(time(20_000)),
            completed_at: Some(time(20_250)),
            ..finish_step("e", 1, StepStatus::Completed)
        })
        .await;
    assert_eq!(step.duration_ms, Some(250));
    // Real traces disagree by up to 15 minutes: the times are kept, the duration is 0.
    let step = s
        .finish_step(FinishStepRequest {
            step_name: Some("work".into()),
            started_at: Some(time(1_000_000)),
            completed_at: Some(time(100_000)),
            ..finish_step("e", 2, StepStatus::Failed)
        })
        .await;
    assert_eq!(
        (millis(&step.started_at), millis(&step.completed_at)),
        (Some(1_000_000), Some(100_000))
    );
    assert_eq!(step.duration_ms, Some(0));
    let ended = s
        .finish_execution(FinishExecutionRequest {
            completed_at: Some(time(9_000)),
            ..finish("e", ExecutionStatus::Cancelled)
        })
        .await;
    assert_eq!(
        (millis(&ended.started_at), millis(&ended.completed_at)),
        (Some(10_000), Some(9_000))
    );
    assert_eq!(ended.duration_ms, Some(0));
}

pub async fn an_execution_ends_once_and_in_one_of_three_ways(b: Backend) {
    let s = b.serve().await;
    let ends = [ExecutionStatus::Completed, ExecutionStatus::Failed, ExecutionStatus::Cancelled];
    for end in ends {
        let id = end.as_str_name();
        s.create(id).await;
        assert_eq!(s.finish(id, end).await.status(), end);
        for other in ends.into_iter().filter(|other| *other != end) {
            let answer = s.try_finish_execution(finish(id, other)).await;
            refused(answer, Code::FailedPrecondition, "WRONG_STATUS");
        }
        assert_eq!(s.execution(id).await.status(), end);
    }
    s.create("running").await;
    for no_end in [ExecutionStatus::Unspecified, ExecutionStatus::Running] {
        let fields = bad_fields(s.try_finish_execution(finish("running", no_end)).await);
        assert_eq!(fields[0].0, "status");
    }
    assert_eq!(s.execution("running").await.status(), ExecutionStatus::Running);
}

pub async fn an_error_is_stored_whole(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let error = Error {
        message: "It broke:\n\"badly\" \u{1F4A5}".into(),
        code: "E_BROKEN".into(),
        stack_trace: "at main\n  at 0x0".into(),
        details: meta(json!({ "line": 3, "in.file": "$x" })),
    };
    let ended = s
        .finish_execution(FinishExecutionRequest {
            error: Some(error.clone()),
            ..finish("e", ExecutionStatus::Failed)
        })
        .await;
    assert_eq!(ended.error, Some(error.clone()));
    assert_eq!(s.execution("e").await.error, Some(error.clone()));
    let step = s
        .finish_step(FinishStepRequest {
            step_name: Some("work".into()),
            error: Some(error.clone()),
            ..finish_step("e", 0, StepStatus::Failed)
        })
        .await;
    assert_eq!(step.error, Some(error.clone()));
    assert_eq!(s.step("e", 0).await.error, Some(error));
}

pub async fn metadata_is_merged_deeply(b: Backend) {
    let s = b.serve().await;
    s.create_execution(CreateExecutionRequest {
        metadata: meta(
            json!({ "keep": 1, "deep": { "a": 1, "b": { "c": [1, 2] } }, "list": [1, 2] }),
        ),
        ..create("e")
    })
    .await;
    let updated = s
        .update_execution(UpdateExecutionRequest {
            metadata: meta(json!({ "deep": { "b": { "d": null } }, "list": [3], "new": {} })),
            ..update("e")
        })
        .await;
    let expected = json!({
        "keep": 1, "deep": { "a": 1, "b": { "c": [1, 2], "d": null } }, "list": [3], "new": {}
    });
    assert_eq!(plain_meta(&updated.metadata), expected);
    let updated = s
        .update_execution(UpdateExecutionRequest {
            metadata: meta(json!({ "deep": "flat now", "keep": { "was": "a number" } })),
            ..update("e")
        })
        .await;
    let expected =
        json!({ "keep": { "was": "a number" }, "deep": "flat now", "list": [3], "new": {} });
    assert_eq!(plain_meta(&updated.metadata), expected);
    let ended = s
        .finish_execution(FinishExecutionRequest {
            metadata: meta(json!({ "keep": { "and": "more" } })),
            ..finish("e", ExecutionStatus::Completed)
        })
        .await;
    assert_eq!(plain_meta(&ended.metadata)["keep"], json!({ "was": "a number", "and": "more" }));
    assert_eq!(s.execution("e").await, ended);
}

pub async fn merged_metadata_stays_within_its_bound(b: Backend) {
    let s = b.serve().await;
    s.create_execution(CreateExecutionRequest {
        metadata: meta(json!({ "a": text(200 * 1024) })),
        ..create("e")
    })
    .await;
    let answer = s
        .try_update_execution(UpdateExecutionRequest {
            metadata: meta(json!({ "b": text(200 * 1024) })),
            ..update("e")
        })
        .await;
    let fields = bad_fields(answer);
    assert_eq!(fields[0].0, "metadata", "the merged metadata would be 400 KiB");
    assert_eq!(plain_meta(&s.execution("e").await.metadata).as_object().map(|o| o.len()), Some(1));
}

pub async fn an_execution_can_be_pinned_and_unpinned(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    for pinned in [true, false, true] {
        let request = UpdateExecutionRequest { pinned: Some(pinned), ..update("e") };
        assert_eq!(s.update_execution(request).await.pinned, Some(pinned));
        assert_eq!(s.execution("e").await.pinned, Some(pinned));
    }
    let request = UpdateExecutionRequest { metadata: meta(json!({ "a": 1 })), ..update("e") };
    assert_eq!(s.update_execution(request).await.pinned, Some(true), "absent leaves it alone");
}

pub async fn a_stale_expected_revision_is_aborted(b: Backend) {
    let s = b.serve().await;
    let created = s.create("e").await;
    let with = |revision, value: i32| UpdateExecutionRequest {
        metadata: meta(json!({ "value": value })),
        expected_revision: Some(revision),
        ..update("e")
    };
    let first = s.update_execution(with(created.revision, 1)).await;
    assert!(first.revision > created.revision);
    let answer = s.try_update_execution(with(created.revision, 2)).await;
    refused(answer, Code::Aborted, "STALE_REVISION");
    assert_eq!(s.execution("e").await, first, "nothing of it was applied");
    let second = s.update_execution(with(first.revision, 2)).await;
    assert_eq!(plain_meta(&second.metadata), json!({ "value": 2 }));
    // Who claims something says the same as everybody who claims it.
    let answer = s.try_update_execution(with(first.revision, 2)).await;
    refused(answer, Code::Aborted, "STALE_REVISION");
    assert_eq!(s.update_execution(with(second.revision, 2)).await, second, "nothing changes");
}

pub async fn of_racing_claims_with_the_same_words_one_wins(b: Backend) {
    let (one, two) = b.pair().await;
    let created = one.create("e").await;
    let claims = (0..16).map(|n| {
        let client: Client = if n % 2 == 0 { (*one).clone() } else { (*two).clone() };
        let request = UpdateExecutionRequest {
            metadata: meta(json!({ "claimed": true })),
            expected_revision: Some(created.revision),
            ..update("e")
        };
        async move { client.try_update_execution(request).await }
    });
    let answers = futures::future::join_all(claims).await;
    let won = answers.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!(won, 1);
    for answer in answers.into_iter().filter(Result::is_err) {
        refused(answer, Code::Aborted, "STALE_REVISION");
    }
}

pub async fn of_racing_updates_with_one_expected_revision_one_wins(b: Backend) {
    let (one, two) = b.pair().await;
    let created = one.create("e").await;
    let mut racers = tokio::task::JoinSet::new();
    for racer in 0..16 {
        let client = if racer % 2 == 0 { (*one).clone() } else { (*two).clone() };
        let request = UpdateExecutionRequest {
            metadata: meta(json!({ "winner": racer })),
            expected_revision: Some(created.revision),
            ..update("e")
        };
        racers.spawn(async move { client.try_update_execution(request).await });
    }
    let (won, lost): (Vec<_>, Vec<_>) =
        racers.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1, "{lost:?}");
    for answer in lost {
        refused(answer, Code::Aborted, "STALE_REVISION");
    }
    assert_eq!(one.execution("e").await, ok(won.into_iter().next().expect("one won")));
}

pub async fn racing_finishes_of_an_execution_have_one_winner(b: Backend) {
    let (one, two) = b.pair().await;
    for round in 0..8 {
        let id = format!("e{round}");
        one.create(&id).await;
        let mut racers = tokio::task::JoinSet::new();
        for racer in 0..12 {
            let client = if racer % 2 == 0 { (*one).clone() } else { (*two).clone() };
            let status =
                [ExecutionStatus::Completed, ExecutionStatus::Failed, ExecutionStatus::Cancelled]
                    [racer % 3];
            let request = finish(&id, status);
            racers.spawn(async move { (status, client.try_finish_execution(request).await) });
        }
        let stored = |client: &Client| {
            let (client, id) = (client.clone(), id.clone());
            async move { client.execution(&id).await }
        };
        let answers = racers.join_all().await;
        let winner = stored(&one).await;
        assert_eq!(stored(&two).await, winner);
        for (status, answer) in answers {
            if status == winner.status() {
                assert_eq!(ok(answer), winner, "every repeat of the winner gets the stored record");
            } else {
                refused(answer, Code::FailedPrecondition, "WRONG_STATUS");
            }
        }
    }
}

pub async fn racing_creates_of_one_id_have_one_winner(b: Backend) {
    let (one, two) = b.pair().await;
    for round in 0..8 {
        let id = format!("e{round}");
        let mut racers = tokio::task::JoinSet::new();
        for racer in 0..12 {
            let client = if racer % 2 == 0 { (*one).clone() } else { (*two).clone() };
            let app = ["red", "green", "blue"][racer % 3];
            let request = CreateExecutionRequest { app_name: app.into(), ..create(&id) };
            racers.spawn(async move { (app, client.try_create_execution(request).await) });
        }
        let answers = racers.join_all().await;
        let winner = one.execution(&id).await;
        for (app, answer) in answers {
            if app == winner.app_name {
                assert_eq!(ok(answer), winner);
            } else {
                refused(answer, Code::AlreadyExists, "EXECUTION_ALREADY_EXISTS");
            }
        }
    }
}

pub async fn revisions_grow_with_every_change_and_are_microseconds(b: Backend) {
    let s = b.serve().await;
    let before = wall_clock_ms() * 1000;
    let mut last = s.create("e").await.revision;
    assert!(
        last >= before && last <= (wall_clock_ms() + 1) * 1000,
        "{last} is no time in microseconds"
    );
    for round in 0..20 {
        let request =
            UpdateExecutionRequest { metadata: meta(json!({ "round": round })), ..update("e") };
        let updated = s.update_execution(request).await;
        assert!(updated.revision > last);
        last = updated.revision;
    }
    let mut last = s.start("e", 1).await.revision;
    for round in 1..20 {
        let request =
            UpdateStepRequest { progress: Some(f64::from(round) / 20.0), ..update_step("e", 1) };
        let updated = s.update_step(request).await;
        assert!(updated.revision > last);
        last = updated.revision;
    }
}

pub async fn get_answers_basic_or_full(b: Backend) {
    let s = b.serve().await;
    let created = s.create("e").await;
    for step_id in [3, 0, 2, 11] {
        let request =
            StartStepRequest { input: Some(value(json!({ "a": 1 }))), ..start("e", step_id) };
        s.start_step(request).await;
        let request = FinishStepRequest {
            output: Some(value(json!("text"))),
            ..finish_step("e", step_id, StepStatus::Completed)
        };
        s.finish_step(request).await;
    }
    let get =
        |view: ExecutionView| GetExecutionRequest { execution_id: "e".into(), view: view.into() };
    for view in [ExecutionView::Unspecified, ExecutionView::Basic] {
        let answer = s.get_execution(get(view)).await;
        assert_eq!(answer.execution.as_ref(), Some(&created));
        assert!(answer.steps.is_empty() && answer.artifacts.is_empty() && !answer.steps_truncated);
    }
    let full = s.get_execution(get(ExecutionView::Full)).await;
    assert_eq!(full.execution.as_ref(), Some(&created));
    let ids: Vec<_> = full.steps.iter().map(|step| step.step_id).collect();
    assert_eq!(ids, [Some(0), Some(2), Some(3), Some(11)]);
    assert!(full.steps.iter().all(|step| step.input.is_none() && step.output.is_none()));
    assert!(full.steps.iter().all(|step| step.status() == StepStatus::Completed));
    assert!(!full.steps_truncated && full.artifacts.is_empty());
}

pub async fn cancelling_is_cooperative(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let mut watch = s.watch(watch("e")).await;
    watch.snapshot().await;
    assert!(!s.heartbeat(HeartbeatRequest { execution_id: "e".into() }).await.cancel_requested);

    let cancel =
        |reason: &str| RequestCancelRequest { execution_id: "e".into(), reason: reason.into() };
    let before = wall_clock_ms();
    let asked = s.request_cancel(cancel("too expensive")).await;
    assert_eq!(asked.status(), ExecutionStatus::Running, "only asked for");
    assert_eq!(asked.cancel_reason.as_deref(), Some("too expensive"));
    assert!(millis(&asked.cancel_requested_at).expect("set") >= before);

    let event = watch.next_change().await;
    let (change, seen) = event.execution().expect("the execution changed");
    assert_eq!((change, seen), (ChangeType::Updated, &asked), "watchers see it at once");
    assert!(s.heartbeat(HeartbeatRequest { execution_id: "e".into() }).await.cancel_requested);

    let again = s.request_cancel(cancel("another reason")).await;
    assert_eq!(again, asked, "the first request is kept");

    let ended = s.finish("e", ExecutionStatus::Cancelled).await;
    assert_eq!(ended.status(), ExecutionStatus::Cancelled);
    assert_eq!(ended.cancel_reason.as_deref(), Some("too expensive"));

    s.create("ended").await;
    s.finish("ended", ExecutionStatus::Completed).await;
    let late = RequestCancelRequest { execution_id: "ended".into(), reason: String::new() };
    refused(s.try_request_cancel(late).await, Code::FailedPrecondition, "WRONG_STATUS");
}

pub async fn deleting_takes_the_steps_along(b: Backend) {
    let s = b.serve().await;
    let delete = |id: &str, force| DeleteExecutionRequest { execution_id: id.into(), force };
    s.create("e").await;
    for step_id in 1..=5 {
        s.start("e", step_id).await;
    }
    s.create("other").await;
    s.start("other", 1).await;

    let answer = s.try_delete_execution(delete("e", false)).await;
    refused(answer, Code::FailedPrecondition, "EXECUTION_RUNNING");
    s.delete_execution(delete("e", true)).await;

    refused(s.try_execution("e").await, Code::NotFound, "EXECUTION_NOT_FOUND");
    assert_eq!(s.try_step("e", 1).await.expect_err("gone").code(), Code::NotFound);
    let late = s.try_start_step(start("e", 6)).await;
    refused(late, Code::NotFound, "EXECUTION_NOT_FOUND");
    let late = s.try_finish_step(finish_step("e", 1, StepStatus::Completed)).await;
    assert_eq!(late.expect_err("gone").code(), Code::NotFound);
    let again = s.try_delete_execution(delete("e", true)).await;
    refused(again, Code::NotFound, "EXECUTION_NOT_FOUND");
    assert_eq!(s.list_executions(ListExecutionsRequest::default()).await.executions.len(), 1);
    assert_eq!(s.step("other", 1).await.step_id, Some(1));

    // The id is free again, and nothing of the old record comes back.
    s.create("e").await;
    let steps =
        s.list_steps(ListStepsRequest { execution_id: "e".into(), ..Default::default() }).await;
    assert_eq!(steps.steps, []);
    s.finish("e", ExecutionStatus::Failed).await;
    s.delete_execution(delete("e", false)).await;
    refused(s.try_execution("e").await, Code::NotFound, "EXECUTION_NOT_FOUND");
}

pub async fn a_step_that_races_a_delete_leaves_nothing_behind(b: Backend) {
    let (one, two) = b.pair().await;
    for round in 0..10 {
        let id = format!("e{round}");
        one.create(&id).await;
        two.start(&id, 0).await;
        let mut racers = tokio::task::JoinSet::new();
        for step_id in 1..=6 {
            let client = if step_id % 2 == 0 { (*one).clone() } else { (*two).clone() };
            let request = start(&id, step_id);
            racers.spawn(async move { client.try_start_step(request).await.map(drop) });
        }
        let request = DeleteExecutionRequest { execution_id: id.clone(), force: true };
        one.delete_execution(request).await;
        for answer in racers.join_all().await {
            if answer.is_err() {
                refused(answer, Code::NotFound, "EXECUTION_NOT_FOUND");
            }
        }
        one.create(&id).await;
        let steps =
            two.list_steps(ListStepsRequest { execution_id: id, ..Default::default() }).await;
        assert_eq!(steps.steps, [], "a step of the deleted execution came back");
    }
}

pub async fn an_unknown_execution_is_not_found(b: Backend) {
    let s = b.serve().await;
    let id = || "nobody".to_owned();
    let not_found = |answer: Answer<()>| {
        let details = refused(answer, Code::NotFound, "EXECUTION_NOT_FOUND");
        let resource = details.resource_info().expect("checked by refused");
        assert_eq!(
            (resource.resource_type.as_str(), resource.resource_name.as_str()),
            ("execution", "nobody")
        );
    };
    not_found(s.try_execution("nobody").await.map(drop));
    not_found(s.try_update_execution(update("nobody")).await.map(drop));
    not_found(s.try_finish_execution(finish("nobody", ExecutionStatus::Failed)).await.map(drop));
    not_found(s.try_heartbeat(HeartbeatRequest { execution_id: id() }).await.map(drop));
    let cancel = RequestCancelRequest { execution_id: id(), ..Default::default() };
    not_found(s.try_request_cancel(cancel).await.map(drop));
    let delete = DeleteExecutionRequest { execution_id: id(), force: false };
    not_found(s.try_delete_execution(delete).await.map(drop));
    not_found(s.try_start_step(start("nobody", 1)).await.map(drop));
    let plan = PlanStepsRequest {
        execution_id: id(),
        steps: vec![PlannedStep {
            step_id: Some(1),
            step_name: "work".into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    not_found(s.try_plan_steps(plan).await.map(drop));
    let whole = FinishStepRequest {
        step_name: Some("work".into()),
        ..finish_step("nobody", 1, StepStatus::Completed)
    };
    not_found(s.try_finish_step(whole).await.map(drop));
    let list = ListStepsRequest { execution_id: id(), ..Default::default() };
    not_found(s.try_list_steps(list).await.map(drop));
    let answer = s.try_watch(watch("nobody")).await;
    let answer = match answer {
        Ok(watch) => Err(watch.broken().await),
        Err(status) => Err(status),
    };
    not_found(answer);
    for answer in [
        s.try_step("nobody", 1).await,
        s.try_update_step(update_step("nobody", 1)).await,
        s.try_finish_step(finish_step("nobody", 1, StepStatus::Completed)).await,
    ] {
        assert_eq!(answer.expect_err("unknown").code(), Code::NotFound);
    }
}

pub async fn a_write_is_read_by_its_writer_at_once(b: Backend) {
    let (one, two) = b.pair().await;
    for round in 0..20 {
        let id = format!("e{round}");
        let created = one.create(&id).await;
        assert_eq!(two.execution(&id).await, created, "also through another server");
        let started = two.start(&id, 1).await;
        let stored = one.step(&id, 1).await;
        assert_eq!(Step { input: None, output: None, ..stored }, started);
    }
}
