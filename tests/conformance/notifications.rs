//! What subscribers are told, when, and how.

#![expect(clippy::disallowed_methods, reason = "tests measure real time")]

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use stepwell::proto::*;
use tonic::Code;

use crate::support::access::{Guarded, required};
use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::eventually;
use crate::support::receiver::*;
use crate::support::server::Server;
use crate::support::values::{json, meta, time, value, wall_clock_ms};

async fn serve(b: &Backend) -> Server {
    b.serve_with(to_loopback).await
}

fn error(message: &str, code: &str) -> Error {
    Error {
        message: message.to_owned(),
        code: code.to_owned(),
        stack_trace: "the secret stack".to_owned(),
        details: meta(json!({ "a": "the secret detail" })),
    }
}

fn failed(id: &str, message: &str) -> FinishExecutionRequest {
    FinishExecutionRequest {
        error: Some(error(message, "X")),
        ..finish(id, ExecutionStatus::Failed)
    }
}

fn failed_step(id: &str, step_id: i32, message: &str) -> FinishStepRequest {
    FinishStepRequest {
        error: Some(error(message, "Y")),
        ..finish_step(id, step_id, StepStatus::Failed)
    }
}

pub async fn every_transition_is_told_once_and_in_order(b: Backend) {
    let s = serve(&b).await;
    let receiver = Receiver::start().await;
    s.create("before").await;
    subscribe(&s, subscription(&receiver.url())).await;

    // Of one that was there before, only what happens from now on.
    s.finish("before", ExecutionStatus::Completed).await;
    assert_eq!(receiver.until("before", "execution.completed").await, ["execution.completed"]);

    s.create("a").await;
    s.start("a", 1).await;
    s.finish_step(failed_step("a", 1, "first")).await;
    s.start_step(StartStepRequest { attempt: Some(2), ..start("a", 1) }).await;
    s.end("a", 1, StepStatus::Completed).await;
    s.request_cancel(RequestCancelRequest { execution_id: "a".into(), reason: "enough".into() })
        .await;
    s.finish("a", ExecutionStatus::Cancelled).await;
    assert_eq!(
        receiver.until("a", "execution.cancelled").await,
        [
            "execution.started",
            "step.failed",
            "step.retried",
            "execution.cancel_requested",
            "execution.cancelled",
        ]
    );

    // A guess that is taken back, and one that is replaced.
    let leased = |id: &str| CreateExecutionRequest {
        heartbeat_timeout: Some(prost_types::Duration { seconds: 0, nanos: 200_000_000 }),
        ..create(id)
    };
    s.create_execution(leased("b")).await;
    s.create_execution(leased("c")).await;
    receiver.until("b", "execution.heartbeat_timeout").await;
    receiver.until("c", "execution.heartbeat_timeout").await;
    s.heartbeat(HeartbeatRequest { execution_id: "b".into() }).await;
    s.finish("b", ExecutionStatus::Completed).await;
    s.finish_execution(failed("c", "real")).await;
    assert_eq!(
        receiver.until("b", "execution.completed").await,
        [
            "execution.started",
            "execution.heartbeat_timeout",
            "execution.revived",
            "execution.completed",
        ]
    );
    assert_eq!(
        receiver.until("c", "execution.failed").await,
        ["execution.started", "execution.heartbeat_timeout", "execution.failed"]
    );

    // Three attempts in one write: the two before it were never stored by themselves, but their number was.
    s.create("d").await;
    s.start_step(StartStepRequest { attempt: Some(3), ..start("d", 1) }).await;
    s.finish_step(failed_step("d", 1, "third")).await;
    // Later changes of one that has ended are nothing, and neither are those of other apps.
    s.create_execution(CreateExecutionRequest { app_name: "other".into(), ..create("x") }).await;
    s.finish("x", ExecutionStatus::Failed).await;
    for id in ["a", "c"] {
        let metadata = meta(json!({ "late": true }));
        s.update_execution(UpdateExecutionRequest { metadata, ..update(id) }).await;
        s.start(id, 7).await;
        s.end(id, 7, StepStatus::Completed).await;
    }
    s.finish_execution(failed("d", "last")).await;
    assert_eq!(
        receiver.until("d", "execution.failed").await,
        [
            "execution.started",
            "step.failed",
            "step.retried",
            "step.failed",
            "step.retried",
            "step.failed",
            "execution.failed",
        ]
    );
    assert_eq!(receiver.told("x"), Vec::<String>::new());
    assert_eq!(receiver.told("a").len(), 5);
    assert_eq!(receiver.told("c").len(), 3);
    let ids: BTreeSet<String> = receiver.received().iter().map(Received::id).collect();
    assert_eq!(ids.len(), receiver.received().len(), "each once, and none twice");
    // An id that is used again is another execution.
    s.delete_execution(DeleteExecutionRequest { execution_id: "a".into(), force: false }).await;
    s.create("a").await;
    eventually("it is told to have started once more", async || {
        (receiver.told("a").len() == 6).then_some(())
    })
    .await;
    assert_eq!(receiver.told("a")[5], "execution.started");
}

pub async fn only_what_was_asked_for_is_told(b: Backend) {
    let s = serve(&b).await;
    let (failures, great) = (Receiver::start().await, Receiver::start().await);
    let few = CreateSubscriptionRequest {
        events: vec![
            NotificationEvent::ExecutionFailed.into(),
            NotificationEvent::StepFailed.into(),
        ],
        ..subscription(&failures.url())
    };
    subscribe(&s, few).await;
    let filter = ExecutionFilter {
        metadata: [("tier".to_owned(), value(json!("gold")))].into(),
        statuses: vec![ExecutionStatus::Completed.into()],
        ..Default::default()
    };
    let gold = CreateSubscriptionRequest { filter: Some(filter), ..subscription(&great.url()) };
    subscribe(&s, gold).await;
    for (id, tier) in [("a", "gold"), ("b", "tin")] {
        let metadata = meta(json!({ "tier": tier }));
        s.create_execution(CreateExecutionRequest { metadata, ..create(id) }).await;
        s.start(id, 1).await;
        s.finish_step(failed_step(id, 1, "no")).await;
    }
    s.finish("b", ExecutionStatus::Completed).await;
    s.finish("a", ExecutionStatus::Completed).await;
    assert_eq!(great.until("a", "execution.completed").await, ["execution.completed"]);
    s.create("c").await;
    s.finish_execution(failed("c", "no")).await;
    assert_eq!(failures.until("c", "execution.failed").await, ["execution.failed"]);
    assert_eq!(failures.told("a"), ["step.failed"]);
    assert_eq!(failures.told("b"), ["step.failed"]);
    assert_eq!(great.told("b"), Vec::<String>::new());
}

pub async fn a_notification_says_what_happened_and_no_more(b: Backend) {
    let s = b
        .serve_with(|config| {
            to_loopback(config);
            let url = "https://runs.example/console";
            config.http.public_url = Some(stepwell::config::Secret::new(url));
        })
        .await;
    let (plain, full) = (Receiver::start().await, Receiver::start().await);
    let (id, secret) = subscribe(
        &s,
        CreateSubscriptionRequest {
            headers: [("X-Token".to_owned(), "hidden".to_owned())].into(),
            ..subscription(&plain.url())
        },
    )
    .await;
    let with_metadata =
        CreateSubscriptionRequest { include_metadata: true, ..subscription(&full.url()) };
    subscribe(&s, with_metadata).await;
    s.create_execution(CreateExecutionRequest {
        app_id: Some(7),
        user_id: Some("ann".into()),
        metadata: meta(json!({ "model": "m-1" })),
        ..create("e/1")
    })
    .await;
    s.start_step(StartStepRequest {
        input: Some(value(json!({ "secret": "input" }))),
        metadata: meta(json!({ "temperature": 1 })),
        ..start("e/1", 3)
    })
    .await;
    s.finish_step(FinishStepRequest {
        output: Some(value(json!("secret output"))),
        ..failed_step("e/1", 3, &"step ".repeat(2_000))
    })
    .await;
    s.finish_execution(failed("e/1", &"broke ".repeat(2_000))).await;
    plain.until("e/1", "execution.failed").await;
    full.until("e/1", "execution.failed").await;

    let server = s.get_server_info(GetServerInfoRequest {}).await;
    let received = plain.received();
    for one in &received {
        let event = one.json();
        assert_eq!(one.header("content-type"), "application/cloudevents+json");
        assert_eq!(one.header("x-token"), "hidden");
        assert_eq!(event["specversion"], "1.0");
        assert_eq!(event["id"], one.id());
        assert_eq!(event["source"], format!("/stepwell/{}", server.database_id));
        assert_eq!(event["subject"], "e/1");
        assert_eq!(event["datacontenttype"], "application/json");
        assert!(event["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{event}");
        assert_eq!(event["data"]["url"], "https://runs.example/console/executions/e%2F1");
        assert!(one.body.len() <= 64 * 1024 && !one.id().contains('.'));
        assert!(one.is_signed_with(&secret), "{event}");
        let text = String::from_utf8_lossy(&one.body);
        assert!(!text.contains("secret") && !text.contains("m-1"), "{text}");
        let execution = &event["data"]["execution"];
        assert_eq!((&execution["app_id"], &execution["user_id"]), (&json!(7), &json!("ann")));
    }
    let of = |kind: &str| {
        let found = received.iter().find(|one| one.kind() == kind).expect(kind);
        found.json()["data"].clone()
    };
    assert_eq!(of("execution.started")["execution"]["status"], "EXECUTION_STATUS_RUNNING");
    let step = &of("step.failed")["step"];
    assert_eq!((&step["step_id"], &step["status"]), (&json!(3), &json!("STEP_STATUS_FAILED")));
    assert_eq!(step["error"]["code"], "Y");
    let ended = of("execution.failed");
    assert_eq!(ended["execution"]["status"], "EXECUTION_STATUS_FAILED");
    let message = ended["execution"]["error"]["message"].as_str().expect("a message");
    assert_eq!(message.len(), 4096);
    assert_eq!(ended["failed_steps"][0]["step_id"], 3);
    assert_eq!(ended["failed_steps"][0]["step_name"], "work");
    let told = full.received().last().expect("told").json();
    assert_eq!(told["data"]["execution"]["metadata"], json!({ "model": "m-1" }));

    // What is shown of a subscription has no secret of its receiver, and none of ours.
    let shown = get(&s, &id).await;
    assert_eq!(shown.headers, HashMap::from([("x-token".to_owned(), String::new())]));
    assert!(!format!("{shown:?}").contains("hidden") && !format!("{shown:?}").contains("whsec_"));

    // For Slack it is a text and blocks.
    let slack = Receiver::start().await;
    let format = NotificationFormat::Slack.into();
    subscribe(&s, CreateSubscriptionRequest { format, ..subscription(&slack.url()) }).await;
    s.create("f").await;
    let message = slack.at_least(1).await[0].json();
    assert_eq!(message["text"], "*app* started");
    assert_eq!(message["blocks"][0]["type"], "section");
    assert_eq!(message.as_object().expect("an object").len(), 2);
}

pub async fn a_secret_is_rotated_and_the_one_before_signs_too(b: Backend) {
    let s = serve(&b).await;
    let receiver = Receiver::start().await;
    let (id, first) = subscribe(&s, subscription(&receiver.url())).await;
    assert!(first.starts_with("whsec_") && first.len() == 50, "{first}");
    s.create("a").await;
    let one = receiver.at_least(1).await.remove(0);
    assert!(one.is_signed_with(&first));
    let sent: i64 = one.header("webhook-timestamp").parse().expect("seconds");
    assert!((wall_clock_ms() / 1000 - sent).abs() < 60);
    let request = RotateSecretRequest { subscription_id: id.clone() };
    let rotated = notifications(&s).rotate_secret(request).await.expect("rotated").into_inner();
    assert_ne!(rotated.secret, first);
    s.create("b").await;
    let both = receiver.at_least(2).await.remove(1);
    assert!(both.is_signed_with(&first) && both.is_signed_with(&rotated.secret));
    assert_eq!(both.header("webhook-signature").split(' ').count(), 2);
}

pub async fn a_failed_delivery_is_tried_again_under_the_same_id(b: Backend) {
    let s = serve(&b).await;
    let receiver = Receiver::start().await;
    let other = Receiver::start().await;
    let elsewhere = other.url();
    let answers = [
        Reply::status(500),
        Reply::status(302).with("location", elsewhere),
        Reply::status(503).with("retry-after", "2"),
        Reply::status(200),
    ];
    let tries = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tries);
    receiver.answers(move |_| answers[count.fetch_add(1, Ordering::SeqCst).min(3)].clone());
    let (id, _) = subscribe(&s, subscription(&receiver.url())).await;
    s.create("e").await;
    s.finish("e", ExecutionStatus::Completed).await;
    receiver.until("e", "execution.completed").await;
    let received = receiver.received();
    let kinds: Vec<String> = received.iter().map(Received::kind).collect();
    let started = "execution.started";
    assert_eq!(kinds, [started, started, started, started, "execution.completed"], "in order");
    let ids: BTreeSet<String> = received[..4].iter().map(Received::id).collect();
    assert_eq!(ids.len(), 1, "one id for every try");
    let bodies: BTreeSet<_> = received[..4].iter().map(|one| one.body.clone()).collect();
    assert_eq!(bodies.len(), 1, "and one body");
    assert!(
        received[3].at - received[2].at >= Duration::from_millis(1_900),
        "it was asked to wait"
    );
    assert!(other.received().is_empty(), "nobody follows a redirect");
    let delivered = eventually("both are noted", async || {
        let all = deliveries(&s, &id, &[DeliveryState::Delivered]).await;
        (all.len() == 2).then_some(all)
    })
    .await;
    let first = &delivered[1];
    assert_eq!((first.attempts, first.last_status), (4, Some(200)));
    assert_eq!(first.delivery_id, received[0].id());
    assert!(first.delivered_at.is_some() && first.next_attempt_at.is_none());
    assert_eq!(first.event(), NotificationEvent::ExecutionStarted);
    let state = state(&s, &id).await;
    assert_eq!((state.pending, state.dead, state.last_status), (0, 0, Some(200)));
}

pub async fn what_was_tried_too_often_is_dead_and_can_be_delivered_again(b: Backend) {
    let s = b
        .serve_with(|config| {
            to_loopback(config);
            config.notifications.retry_seconds = vec![0.05, 0.05];
        })
        .await;
    let receiver = Receiver::start().await;
    receiver.answers(|one| match one.kind().as_str() {
        "execution.started" => Reply::status(400),
        _ => Reply::status(200),
    });
    let (id, _) = subscribe(&s, subscription(&receiver.url())).await;
    for execution in ["a", "b"] {
        s.create(execution).await;
        s.finish(execution, ExecutionStatus::Completed).await;
        // The next one goes once the one before is dead.
        receiver.until(execution, "execution.completed").await;
    }
    let dead = eventually("both are dead", async || {
        let dead = deliveries(&s, &id, &[DeliveryState::Dead]).await;
        (dead.len() == 2).then_some(dead)
    })
    .await;
    assert!(dead.iter().all(|one| one.attempts == 3 && one.last_status == Some(400)), "{dead:?}");
    assert!(dead.iter().all(|one| one.last_failure.as_deref() == Some("status")));
    assert_eq!(state(&s, &id).await.dead, 2);
    receiver.answers(|_| Reply::status(201));
    let before = receiver.received().len();
    let one = dead[0].delivery_id.clone();
    let target = Some(redeliver_request::Target::DeliveryId(one.clone()));
    let answer = notifications(&s).redeliver(RedeliverRequest { target }).await;
    assert_eq!(answer.expect("redelivered").into_inner().redelivered, 1);
    let again = receiver.at_least(before + 1).await;
    assert_eq!(again[before].id(), one, "under the same id");
    let target = Some(redeliver_request::Target::SubscriptionId(id.clone()));
    let answer = notifications(&s).redeliver(RedeliverRequest { target }).await;
    assert_eq!(answer.expect("redelivered").into_inner().redelivered, 1);
    let again = receiver.at_least(before + 2).await;
    assert_eq!(again[before + 1].id(), dead[1].delivery_id);
    eventually("nothing is dead", async || {
        let state = state(&s, &id).await;
        (state.dead == 0 && state.pending == 0).then_some(())
    })
    .await;
    let all = deliveries(&s, &id, &[]).await;
    assert_eq!(all.len(), 4);
    assert!(all.windows(2).all(|pair| {
        let at = |one: &Delivery| one.created_at.map(|at| (at.seconds, at.nanos));
        at(&pair[0]) >= at(&pair[1])
    }));
    let unknown = Some(redeliver_request::Target::DeliveryId("msg_unknown".into()));
    let answer = notifications(&s).redeliver(RedeliverRequest { target: unknown }).await;
    refused(answer, Code::NotFound, "DELIVERY_NOT_FOUND");
}

pub async fn a_receiver_that_is_gone_is_told_nothing_more(b: Backend) {
    let s = serve(&b).await;
    let receiver = Receiver::start().await;
    receiver.answers(|_| Reply::status(410));
    let (id, _) = subscribe(&s, subscription(&receiver.url())).await;
    s.create("a").await;
    let gone = eventually("it is disabled", async || {
        let found = get(&s, &id).await;
        (!found.enabled).then_some(found)
    })
    .await;
    let state = gone.state.expect("a state");
    assert_eq!(state.disabled_reason.as_deref(), Some("GONE"));
    // Once this is answered its server knows.
    let request = UpdateSubscriptionRequest {
        subscription_id: id.clone(),
        name: Some("gone".into()),
        ..Default::default()
    };
    notifications(&s).update_subscription(request).await.expect("renamed");
    s.create("b").await;
    let requests = receiver.received().len();
    // Enabled again it goes on with what waited, but not with what happened meanwhile.
    receiver.answers(|_| Reply::status(200));
    let request = UpdateSubscriptionRequest {
        subscription_id: id.clone(),
        enabled: Some(true),
        ..Default::default()
    };
    let enabled = notifications(&s).update_subscription(request).await.expect("enabled");
    let enabled = enabled.into_inner().subscription.expect("as stored");
    assert!(enabled.enabled && enabled.state.expect("a state").disabled_reason.is_none());
    s.create("c").await;
    assert_eq!(receiver.until("c", "execution.started").await, ["execution.started"]);
    receiver.until("a", "execution.started").await;
    assert_eq!(receiver.told("b"), Vec::<String>::new());
    receiver.at_least(requests + 2).await;
}

pub async fn a_receiver_that_hangs_delays_no_other(b: Backend) {
    let s = b
        .serve_with(|config| {
            to_loopback(config);
            config.notifications.timeout = Duration::from_secs(20);
            // So few that one alone could take all of them.
            config.notifications.requests = 8;
            config.notifications.requests_per_subscription = 8;
        })
        .await;
    let (hanging, quick) = (Receiver::start().await, Receiver::start().await);
    hanging.answers(|_| Reply::status(200).after(Duration::from_secs(3600)));
    subscribe(&s, subscription(&hanging.url())).await;
    subscribe(&s, subscription(&quick.url())).await;
    let began = Instant::now();
    for number in 0..40 {
        s.create(&format!("e{number}")).await;
    }
    for number in 0..40 {
        quick.until(&format!("e{number}"), "execution.started").await;
    }
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert!(hanging.received().len() <= 8, "{}", hanging.received().len());
}

pub async fn too_much_that_is_undelivered_waits_in_the_log(b: Backend) {
    let s = b
        .serve_with(|config| {
            to_loopback(config);
            config.notifications.undelivered = 20;
        })
        .await;
    let (down, up) = (Receiver::start().await, Receiver::start().await);
    down.answers(|_| Reply::status(500));
    let (id, _) = subscribe(&s, subscription(&down.url())).await;
    subscribe(&s, subscription(&up.url())).await;
    for number in 0..100 {
        let id = format!("e{number}");
        s.create(&id).await;
        s.finish(&id, ExecutionStatus::Completed).await;
    }
    for number in 0..100 {
        up.until(&format!("e{number}"), "execution.completed").await;
    }
    let waiting = state(&s, &id).await;
    assert!((10..=20).contains(&waiting.pending), "{waiting:?}");
    assert!(waiting.lag_seconds > 0.0 && waiting.gaps.is_empty(), "{waiting:?}");
    down.answers(|_| Reply::status(200));
    for number in 0..100 {
        let told = down.until(&format!("e{number}"), "execution.completed").await;
        assert_eq!(told, ["execution.started", "execution.completed"], "nothing is missing");
    }
    eventually("it is with the others again", async || {
        let state = state(&s, &id).await;
        (state.pending == 0 && state.lag_seconds == 0.0).then_some(())
    })
    .await;
}

pub async fn what_history_has_lost_meanwhile_is_a_gap(b: Backend) {
    let b = b.with_short_history();
    fn one_at_a_time(config: &mut stepwell::config::Config) {
        to_loopback(config);
        config.notifications.undelivered = 2;
    }
    let s = b.serve_with(one_at_a_time).await;
    let receiver = Receiver::start().await;
    receiver.answers(|_| Reply::status(500));
    let (id, _) = subscribe(&s, subscription(&receiver.url())).await;
    for number in 0..10 {
        s.create(&format!("lost{number}")).await;
    }
    eventually("it waits", async || (state(&s, &id).await.pending == 2).then_some(())).await;
    // A server that may not send to the receiver would put off the next try for hours.
    b.forget_history_of(s, one_at_a_time).await.shutdown().await;
    let s = b.serve_with(one_at_a_time).await;
    eventually("history is gone", async || {
        // Whatever it takes for the log to be cut off.
        receiver.answers(|_| Reply::status(200));
        let gaps = state(&s, &id).await.gaps;
        gaps.first().cloned()
    })
    .await;
    let state = state(&s, &id).await;
    let gap = state.gaps.last().expect("a gap");
    let at = |at: &Option<prost_types::Timestamp>| at.map(|at| (at.seconds, at.nanos));
    assert!(at(&gap.since) <= at(&gap.until) && gap.since.is_some(), "{gap:?}");
    s.create("after").await;
    receiver.until("after", "execution.started").await;
}

pub async fn it_goes_on_after_a_restart(b: Backend) {
    let s = serve(&b).await;
    let receiver = Receiver::start().await;
    receiver.answers(|_| Reply::status(500));
    subscribe(&s, subscription(&receiver.url())).await;
    s.create("a").await;
    receiver.at_least(1).await;
    s.finish("a", ExecutionStatus::Completed).await;
    s.shutdown().await;
    // Nobody notifies, and another server does what it does.
    let quiet = b.serve_with(|_| {}).await;
    quiet.create("b").await;
    quiet.shutdown().await;
    receiver.answers(|_| Reply::status(200));
    let s = serve(&b).await;
    s.create("c").await;
    assert_eq!(
        receiver.until("a", "execution.completed").await,
        ["execution.started", "execution.completed"]
    );
    receiver.until("b", "execution.started").await;
    receiver.until("c", "execution.started").await;
    let ids: BTreeSet<String> = receiver.received().iter().map(Received::id).collect();
    assert_eq!(ids.len(), 4, "each under one id, before and after");
}

pub async fn one_server_tells_what_happened_through_all(b: Backend) {
    let one = serve(&b).await;
    let two = match b.kind {
        crate::support::backend::Kind::Sqlite => one.second_connection(),
        crate::support::backend::Kind::Mongodb => serve(&b).await,
    };
    let receiver = Receiver::start().await;
    let (id, _) = subscribe(&two, subscription(&receiver.url())).await;
    for number in 0..20 {
        let (first, second) = if number % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let id = format!("e{number}");
        first.create(&id).await;
        second.finish(&id, ExecutionStatus::Completed).await;
    }
    for number in 0..20 {
        let told = receiver.until(&format!("e{number}"), "execution.completed").await;
        assert_eq!(told, ["execution.started", "execution.completed"]);
    }
    assert_eq!(receiver.received().len(), 40, "nothing is told twice");
    // Through either, whichever one leads.
    for server in [&one, &two] {
        let request = UpdateSubscriptionRequest {
            subscription_id: id.clone(),
            name: Some("renamed".into()),
            ..Default::default()
        };
        notifications(server).update_subscription(request).await.expect("changed");
        assert_eq!(get(server, &id).await.name, "renamed");
    }
}

pub async fn subscriptions_are_made_listed_changed_and_deleted(b: Backend) {
    let s = b
        .serve_with(|config| {
            to_loopback(config);
            config.notifications.subscriptions = 3;
        })
        .await;
    let receiver = Receiver::start().await;
    let filter = ExecutionFilter {
        app_ids: vec![1, 2],
        app_names: vec!["a".into()],
        sub_app_ids: vec![3],
        user_ids: vec!["u".into()],
        statuses: vec![ExecutionStatus::Failed.into()],
        started_at_from: Some(time(1_000)),
        started_at_until: Some(time(2_000)),
        min_duration_ms: Some(4),
        metadata: [(r"a\.b.c".to_owned(), value(json!({ "x": [1] })))].into(),
    };
    let request = CreateSubscriptionRequest {
        name: "all of it".into(),
        filter: Some(filter.clone()),
        events: vec![NotificationEvent::StepRetried.into(), NotificationEvent::StepFailed.into()],
        url: receiver.url(),
        headers: [("Authorization".to_owned(), "Bearer x".to_owned())].into(),
        format: NotificationFormat::Slack.into(),
        include_metadata: true,
        enabled: Some(false),
    };
    let (id, _) = subscribe(&s, request).await;
    let stored = get(&s, &id).await;
    assert_eq!(stored.filter, Some(filter));
    assert_eq!((stored.name.as_str(), stored.enabled), ("all of it", false));
    assert_eq!(stored.events.len(), 2);
    assert_eq!(stored.url, receiver.url());
    assert_eq!(stored.format(), NotificationFormat::Slack);
    assert!(stored.include_metadata && stored.created_at.is_some() && stored.revision > 0);
    assert_eq!(stored.headers.keys().collect::<Vec<_>>(), ["authorization"]);

    let (second, _) = subscribe(&s, subscription(&receiver.url())).await;
    let (third, _) = subscribe(&s, subscription(&receiver.url())).await;
    let many = notifications(&s).create_subscription(subscription(&receiver.url())).await;
    let fields = bad_fields(many.map(|_| ()));
    assert_eq!(fields[0].0, "name");
    let mut listed = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListSubscriptionsRequest { page_size: 2, page_token };
        let page =
            notifications(&s).list_subscriptions(request).await.expect("a page").into_inner();
        listed.extend(page.subscriptions.into_iter().map(|one| one.subscription_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let all = BTreeSet::from([id.clone(), second.clone(), third.clone()]);
    assert_eq!(listed, all.into_iter().collect::<Vec<_>>());
    let forged = ListSubscriptionsRequest { page_token: "forged".into(), page_size: 0 };
    let forged = notifications(&s).list_subscriptions(forged).await;
    refused(forged.map(|_| ()), Code::InvalidArgument, "INVALID_TOKEN");

    let change = UpdateSubscriptionRequest {
        subscription_id: second.clone(),
        name: Some("other".into()),
        headers: [("b".to_owned(), "2".to_owned()), ("c".to_owned(), "3".to_owned())].into(),
        expected_revision: Some(get(&s, &second).await.revision),
        ..Default::default()
    };
    let changed = notifications(&s).update_subscription(change.clone()).await.expect("changed");
    let changed = changed.into_inner().subscription.expect("as stored");
    assert_eq!((changed.name.as_str(), changed.url.as_str()), ("other", receiver.url().as_str()));
    let stale = notifications(&s).update_subscription(change).await;
    refused(stale.map(|_| ()), Code::Aborted, "STALE_REVISION");
    let change = UpdateSubscriptionRequest {
        subscription_id: second.clone(),
        headers: [("b".to_owned(), String::new())].into(),
        filter: Some(ExecutionFilter::default()),
        events: all_events(),
        ..Default::default()
    };
    let changed = notifications(&s).update_subscription(change).await.expect("changed");
    let changed = changed.into_inner().subscription.expect("as stored");
    assert_eq!(changed.headers.keys().collect::<Vec<_>>(), ["c"]);
    assert_eq!(changed.filter, Some(ExecutionFilter::default()));
    assert_eq!(changed.events.len(), 9);

    // A test is sent to one that is disabled, too, and says what came of it.
    let request = TestSubscriptionRequest { subscription_id: id.clone() };
    let sent =
        notifications(&s).test_subscription(request.clone()).await.expect("sent").into_inner();
    assert_eq!((sent.delivered, sent.status, sent.failure), (true, Some(204), None));
    assert_eq!(receiver.received().last().expect("a test").header("authorization"), "Bearer x");
    receiver.answers(|_| Reply::status(302));
    let sent = notifications(&s).test_subscription(request).await.expect("sent").into_inner();
    assert_eq!(
        (sent.delivered, sent.status, sent.failure.as_deref()),
        (false, Some(302), Some("redirect"))
    );

    // What is deleted is told nothing more, and has nothing more.
    s.create("e").await;
    eventually("it is tried", async || {
        (!deliveries(&s, &third, &[]).await.is_empty()).then_some(())
    })
    .await;
    for one in [&id, &second, &third] {
        let request = DeleteSubscriptionRequest { subscription_id: one.clone() };
        notifications(&s).delete_subscription(request.clone()).await.expect("deleted");
        let again = notifications(&s).delete_subscription(request).await;
        refused(again.map(|_| ()), Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
    }
    let request = ListDeliveriesRequest { subscription_id: third, ..Default::default() };
    let gone = notifications(&s).list_deliveries(request).await;
    refused(gone.map(|_| ()), Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
    let listed = notifications(&s).list_subscriptions(ListSubscriptionsRequest::default()).await;
    assert!(listed.expect("a page").into_inner().subscriptions.is_empty());
}

pub async fn every_bad_field_of_a_subscription_is_named(b: Backend) {
    let s = b.serve().await;
    let bad = async |request: CreateSubscriptionRequest| {
        let answer = notifications(&s).create_subscription(request).await;
        bad_fields(answer.map(|_| ()))
    };
    let names = |fields: &[(String, String)]| -> Vec<String> {
        fields.iter().map(|(field, _)| field.clone()).collect()
    };
    let nothing = bad(CreateSubscriptionRequest::default()).await;
    assert_eq!(names(&nothing), ["events", "name", "url"]);
    let headers = [
        ("host", "x"),
        ("Webhook-Id", "x"),
        ("a b", "x"),
        ("empty", ""),
        ("great", &"x".repeat(5_000)),
        ("line", "hidden\r\nx: y"),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let wrong = bad(CreateSubscriptionRequest {
        name: "n".repeat(300),
        events: vec![0, 99],
        url: format!("https://example.com/{}", "x".repeat(3_000)),
        headers: headers.into(),
        format: 9,
        filter: Some(ExecutionFilter { app_ids: vec![0; 51], ..Default::default() }),
        ..Default::default()
    })
    .await;
    let found: BTreeSet<String> = names(&wrong).into_iter().collect();
    for field in ["events", "filter.app_ids", "format", "headers", "headers.great", "name", "url"] {
        assert!(found.contains(field), "{field}: {wrong:?}");
    }
    assert!(!format!("{wrong:?}").contains("hidden"), "{wrong:?}");
    // Without a word of what operators may allow, every address has to be public and every scheme https.
    for url in [
        "http://example.com",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://0177.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://169.254.169.254/",
        "https://[fe80::1]/",
        "https://[fc00::1]/",
        "https://100.64.0.1/",
        "https://0.0.0.0/",
        "https://user:word@example.com/",
        "ftp://example.com",
        "example.com",
    ] {
        let request = CreateSubscriptionRequest { url: url.into(), ..subscription("") };
        assert_eq!(names(&bad(request).await), ["url"], "{url}");
    }
}

pub async fn a_name_that_leads_inside_gets_nothing(b: Backend) {
    let s = b
        .serve_with(|config| {
            config.notifications.allow_http = true;
            config.notifications.retry_seconds = vec![0.05];
        })
        .await;
    let receiver = Receiver::start().await;
    let url = format!("http://localhost:{}/", receiver.port());
    let (id, _) = subscribe(&s, subscription(&url)).await;
    let request = TestSubscriptionRequest { subscription_id: id.clone() };
    let sent = notifications(&s).test_subscription(request).await.expect("sent").into_inner();
    assert_eq!(sent.failure.as_deref(), Some("forbidden_address"));
    s.create("e").await;
    let dead =
        eventually("it is dead", async || deliveries(&s, &id, &[DeliveryState::Dead]).await.pop())
            .await;
    assert_eq!((dead.attempts, dead.last_status), (2, None));
    assert_eq!(dead.last_failure.as_deref(), Some("forbidden_address"));
    assert!(receiver.received().is_empty());
}

pub async fn who_made_it_decides_what_it_is_told(b: Backend) {
    let g = Guarded::start(&b).await;
    let path = b.data_dir().with_file_name("admin-keys");
    let receiver = Receiver::start().await;
    // The first server would tell nobody on loopback.
    let Guarded { server, admin, .. } = g;
    server.shutdown().await;
    let server = b
        .serve_with(|config| {
            required(config, path);
            to_loopback(config);
        })
        .await;
    let admin = admin.at(&server);
    let g = Guarded { server, admin, backend: b.clone() };
    let (key_id, secret) = g.key("editor", &["mine"]).await;
    let mine = crate::support::access::Caller::new(&g.server, &secret);
    let theirs = g.caller("editor", &["theirs"]).await;
    let viewer = g.caller("viewer", &["mine"]).await;
    let request = CreateSubscriptionRequest { filter: None, ..subscription(&receiver.url()) };
    let create_it = "NotificationService/CreateSubscription";
    let made: CreateSubscriptionResponse = ok(mine.unary(create_it, request.clone()).await);
    let made = made.subscription.expect("as stored");
    assert_eq!(made.created_by, "editor of mine");
    let none = viewer.unary::<_, CreateSubscriptionResponse>(create_it, request).await;
    refused(none, Code::PermissionDenied, "ROLE_FORBIDS");
    let id = made.subscription_id;
    let ask = async |caller: &crate::support::access::Caller| {
        let request = GetSubscriptionRequest { subscription_id: id.clone() };
        let method = "NotificationService/GetSubscription";
        caller.unary::<_, GetSubscriptionResponse>(method, request).await
    };
    refused(ask(&theirs).await, Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
    ok(ask(&mine).await);
    ok(ask(&g.admin).await);
    let list = async |caller: &crate::support::access::Caller| {
        let method = "NotificationService/ListSubscriptions";
        let all = caller.unary(method, ListSubscriptionsRequest::default()).await;
        let all: ListSubscriptionsResponse = ok(all);
        all.subscriptions.len()
    };
    assert_eq!((list(&mine).await, list(&theirs).await, list(&g.admin).await), (1, 0, 1));
    let create_in = async |id: &str, app: &str| {
        let request = CreateExecutionRequest { app_name: app.into(), ..create(id) };
        let made = g.admin.unary("ExecutionService/CreateExecution", request).await;
        let _: CreateExecutionResponse = ok(made);
    };
    create_in("a", "theirs").await;
    create_in("b", "mine").await;
    receiver.until("b", "execution.started").await;
    assert_eq!(receiver.told("a"), Vec::<String>::new());

    // Once the key is revoked nothing is told any more.
    receiver.answers(|_| Reply::status(500));
    create_in("c", "mine").await;
    let request = RevokeKeyRequest { key_id };
    let _: RevokeKeyResponse = ok(g.admin.unary("AuthService/RevokeKey", request).await);
    let disabled = eventually("it is disabled", async || {
        let found = ok(ask(&g.admin).await).subscription.expect("it is there");
        (!found.enabled).then_some(found)
    })
    .await;
    let reason = disabled.state.expect("a state").disabled_reason;
    assert_eq!(reason.as_deref(), Some("KEY_REVOKED"));
    receiver.answers(|_| Reply::status(200));
    let before = receiver.received().len();
    create_in("d", "mine").await;
    // Somebody else may take it over.
    let request = UpdateSubscriptionRequest {
        subscription_id: id.clone(),
        enabled: Some(true),
        filter: Some(ExecutionFilter { app_names: vec!["mine".into()], ..Default::default() }),
        ..Default::default()
    };
    let method = "NotificationService/UpdateSubscription";
    let _: UpdateSubscriptionResponse = ok(g.admin.unary(method, request).await);
    create_in("e", "mine").await;
    receiver.until("e", "execution.started").await;
    assert_eq!(receiver.told("d"), Vec::<String>::new());
    assert!(receiver.received().len() > before);
}

pub async fn what_is_gone_already_is_told_all_the_same(b: Backend) {
    let s = serve(&b).await;
    let receiver = Receiver::start().await;
    subscribe(&s, subscription(&receiver.url())).await;
    // Each is deleted right after its end: whoever tells of it may find nothing any more.
    for number in 0..30 {
        let id = format!("e{number}");
        s.create(&id).await;
        s.finish_execution(failed(&id, "broke")).await;
        s.delete_execution(DeleteExecutionRequest { execution_id: id, force: false }).await;
    }
    for number in 0..30 {
        let id = format!("e{number}");
        let told = receiver.until(&id, "execution.failed").await;
        assert_eq!(told, ["execution.started", "execution.failed"], "{id}");
    }
    let last = receiver.received().into_iter().rfind(|one| one.kind() == "execution.failed");
    let last = last.expect("told").json();
    assert_eq!(last["data"]["execution"]["app_name"], "app");
    assert_eq!(last["data"]["execution"]["status"], "EXECUTION_STATUS_FAILED");
    assert_eq!(last["data"]["execution"]["error"]["message"], "broke");
}
