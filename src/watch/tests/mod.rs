//! Watching against the embedded store, whose log the tests hold up, cut off and take away.

mod rig;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bson::doc;
use futures::future::join_all;

use rig::{Rig, complete, end, many, next, next_told, one, settings, told, within};

use super::queue::{Bounds, End, Next, Pushed, Queue};
use super::{Delivery, Event, Failure, Options, Settings, Snapshot};
use crate::domain::query::ExecutionFilter;
use crate::domain::{ExecutionStatus, Payload, StepStatus};
use crate::store::{Change, ChangeKind, Changed, Cursor, Error, Record, RecordKey};

fn small_queue(events: usize) -> Settings {
    Settings { queue: Bounds { events, bytes: 1024 * 1024 }, ..settings() }
}

fn cursor_of(delivery: &Delivery) -> Option<Cursor> {
    match delivery {
        Delivery::Current(..) => None,
        Delivery::Event(event) => Some(event.cursor.clone()),
        Delivery::SnapshotComplete(cursor)
        | Delivery::Keepalive(cursor)
        | Delivery::Metrics(_, cursor) => Some(cursor.clone()),
    }
}

/// What every stream owes its watcher: tokens in order, revisions per record growing.
#[derive(Default)]
struct Checked {
    cursor: Option<Cursor>,
    revisions: HashMap<RecordKey, i64>,
}

impl Checked {
    fn take(&mut self, delivery: &Delivery) {
        if let Some(cursor) = cursor_of(delivery) {
            assert!(self.cursor.as_ref().is_none_or(|before| *before <= cursor));
            self.cursor = Some(cursor);
        }
        let record = match delivery {
            Delivery::Current(record, _) => Some(record),
            Delivery::Event(event) => event.record.as_ref(),
            _ => None,
        };
        if let Some(record) = record {
            let before = self.revisions.insert(record.key(), record.revision());
            assert!(before.is_none_or(|before| before < record.revision()), "{}", told(delivery));
        }
    }

    async fn until(&mut self, watch: &mut super::Watch, finals: &HashMap<RecordKey, i64>) {
        while !finals.iter().all(|(key, revision)| self.revisions.get(key) == Some(revision)) {
            let delivery = next(watch).await;
            self.take(&delivery);
        }
    }
}

#[tokio::test]
async fn the_state_comes_first_and_then_every_change_in_order() {
    let rig = Rig::new(settings());
    rig.create("e").await;
    rig.start("e", 2).await;
    rig.start("e", 1).await;
    let mut watch = rig.watch(one("e")).await.unwrap();
    for expected in ["+e", "+e/1", "+e/2", "complete"] {
        assert_eq!(next_told(&mut watch).await, expected);
    }
    rig.start("e", 3).await;
    rig.create("other").await;
    rig.finish_step("e", 1).await;
    rig.set("e", doc! { "a": 1 }).await;
    let mut checked = Checked::default();
    for expected in ["e/3 Created", "e/1 Updated", "e Updated"] {
        let delivery = next(&mut watch).await;
        checked.take(&delivery);
        assert_eq!(told(&delivery), expected);
    }
}

#[tokio::test]
async fn nothing_falls_between_the_snapshot_and_the_changes() {
    for own in [false, true] {
        let mut rig = Rig::new(small_queue(8));
        rig.own = own;
        let rig = &rig;
        rig.create("e").await;
        let write = async {
            let mut finals = HashMap::new();
            for step_id in 1..=60 {
                rig.start("e", step_id).await;
                let record = rig.finish_step("e", step_id).await;
                finals.insert(record.key(), record.revision());
                tokio::task::yield_now().await;
            }
            finals
        };
        let open = async {
            let mut watches = Vec::new();
            for _ in 0..20 {
                let mut watch = rig.watch(one("e")).await.unwrap();
                let mut checked = Checked::default();
                checked.take(&next(&mut watch).await);
                watches.push((watch, checked));
            }
            watches
        };
        let (finals, watches) = tokio::join!(write, open);
        for (mut watch, mut checked) in watches {
            checked.until(&mut watch, &finals).await;
        }
    }
}

#[tokio::test]
async fn a_watcher_that_was_too_slow_goes_on_from_the_log() {
    let rig = Rig::new(small_queue(4));
    rig.create("e").await;
    let mut watch = rig.watch(one("e")).await.unwrap();
    let mut checked = Checked::default();
    checked.take(&next(&mut watch).await);
    let mut finals = HashMap::new();
    for round in 0..3 {
        for step_id in 0..100 {
            let record = rig.start("e", round * 100 + step_id).await;
            finals.insert(record.key(), record.revision());
        }
        checked.until(&mut watch, &finals).await;
    }
    assert!(rig.hub.numbers.detached.load(Ordering::Relaxed) > 0);
    // It is live again: the next change needs no reader of history.
    let opens = rig.control.opens.load(Ordering::SeqCst);
    rig.finish("e").await;
    assert_eq!(next_told(&mut watch).await, "e Updated");
    assert_eq!(rig.control.opens.load(Ordering::SeqCst), opens);
}

#[tokio::test]
async fn a_slow_watcher_may_miss_states_but_never_the_latest() {
    let mut rig = Rig::new(small_queue(4));
    rig.own = true;
    rig.create("e").await;
    rig.start("e", 1).await;
    let mut watch = rig.watch(one("e")).await.unwrap();
    complete(&mut watch).await;
    for progress in 1..=200 {
        rig.progress("e", 1, f64::from(progress) / 200.0).await;
    }
    let last = rig.finish_step("e", 1).await;
    let mut deliveries = 0;
    loop {
        deliveries += 1;
        if let Delivery::Event(event) = next(&mut watch).await
            && event.record.as_ref().map(Record::revision) == Some(last.revision())
        {
            break;
        }
    }
    assert!(deliveries < 201, "{deliveries}");
}

#[tokio::test]
async fn a_token_resumes_after_its_event() {
    let rig = Rig::new(settings());
    rig.create("e").await;
    let mut watch = rig.watch(one("e")).await.unwrap();
    let mut cursors = vec![complete(&mut watch).await];
    let mut expected = Vec::new();
    for step_id in 1..=5 {
        rig.start("e", step_id).await;
        let delivery = next(&mut watch).await;
        expected.push(told(&delivery));
        cursors.extend(cursor_of(&delivery));
    }
    for (seen, cursor) in cursors.into_iter().enumerate() {
        let resume = Some(cursor);
        let mut resumed = rig.watch(Options { resume, ..one("e") }).await.unwrap();
        for expected in &expected[seen..] {
            assert_eq!(next_told(&mut resumed).await, *expected);
        }
        let step_id = 100 + i32::try_from(seen).unwrap();
        rig.start("e", step_id).await;
        loop {
            if next_told(&mut resumed).await == format!("e/{step_id} Created") {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_token_that_history_no_longer_covers_is_expired() {
    let rig = Rig::new(settings());
    rig.create("e").await;
    let mut watch = rig.watch(one("e")).await.unwrap();
    let resume = Some(complete(&mut watch).await);
    rig.start("e", 1).await;
    rig.control.gone_through.store(rig.newest().await, Ordering::SeqCst);
    for options in [one("e"), many(ExecutionFilter::default())] {
        let outcome = rig.watch(Options { resume: resume.clone(), ..options }).await;
        assert!(matches!(outcome.err(), Some(Failure::Store(Error::CursorExpired))));
    }
    let resume = Some(Cursor(vec![1]));
    let outcome = rig.watch(Options { resume, ..one("e") }).await;
    assert!(matches!(outcome.err(), Some(Failure::Store(Error::BadCursor))));
}

#[tokio::test]
async fn a_slow_watcher_whose_history_is_gone_gets_the_state_again() {
    let rig = Rig::new(small_queue(4));
    rig.create("e").await;
    let mut watch = rig.watch(one("e")).await.unwrap();
    complete(&mut watch).await;
    for step_id in 1..=50 {
        rig.start("e", step_id).await;
    }
    // A second watcher that reads shows that the tail has pushed all of it.
    let mut witness = rig.watch(one("e")).await.unwrap();
    complete(&mut witness).await;
    rig.start("e", 51).await;
    while next_told(&mut witness).await != "e/51 Created" {}
    rig.control.gone_through.store(rig.newest().await, Ordering::SeqCst);
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 51 {
        match next(&mut watch).await {
            Delivery::Current(Record::Step(step), ChangeKind::Updated) => {
                seen.insert(step.step_id);
            }
            Delivery::Event(event) => seen.extend(event.key.step_id),
            _ => {}
        }
    }
    while !matches!(next(&mut watch).await, Delivery::SnapshotComplete(_)) {}
    rig.start("e", 52).await;
    assert_eq!(next_told(&mut watch).await, "e/52 Created");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_watchers_that_come_back_share_two_readers() {
    let rig = Rig::new(settings());
    for execution in 0..100 {
        rig.create(&format!("e{execution}")).await;
    }
    let mut all = rig.watch(many(ExecutionFilter::default())).await.unwrap();
    let mut tokens = vec![complete(&mut all).await];
    for execution in 0..100 {
        for step_id in 1..=5 {
            rig.start(&format!("e{execution}"), step_id).await;
            tokens.extend(cursor_of(&next(&mut all).await));
        }
    }
    let before = rig.control.opens.load(Ordering::SeqCst);
    rig.control.most_open.store(0, Ordering::SeqCst);
    let resumed = join_all((0..10_000).map(|watcher| {
        let resume = Some(tokens[watcher % tokens.len()].clone());
        rig.watch(Options { resume, ..one(&format!("e{}", watcher % 100)) })
    }))
    .await;
    rig.let_read(true);
    for execution in 0..100 {
        rig.start(&format!("e{execution}"), 6).await;
    }
    let last = join_all(resumed.into_iter().map(async |watch| {
        let mut watch = watch.unwrap();
        let mut checked = Checked::default();
        loop {
            let delivery = next(&mut watch).await;
            checked.take(&delivery);
            if told(&delivery).ends_with("/6 Created") {
                break;
            }
        }
    }))
    .await;
    assert_eq!(last.len(), 10_000);
    // The tail and two readers of history.
    assert!(rig.control.most_open.load(Ordering::SeqCst) <= 3);
    assert!(rig.control.opens.load(Ordering::SeqCst) - before < 200);
}

#[test]
fn a_queue_holds_no_more_than_its_bounds() {
    let queue = Queue::new(Bounds { events: 64, bytes: 32 * 1024 });
    let event = |step_id: i32, number: i64| {
        Arc::new(Event {
            key: RecordKey::step("e", step_id),
            kind: ChangeKind::Updated,
            revision: Some(number),
            ..Event::gone(Cursor(number.to_be_bytes().to_vec()), "e")
        })
    };
    // One hot record: only its newest states wait.
    for number in 0..1000 {
        assert_eq!(queue.push(&event(1, number)).1, Pushed::Queued);
    }
    let mut last = None;
    let mut held = 0;
    while let Some(Next::Event(event)) = queue.next() {
        last = event.revision;
        held += 1;
    }
    assert!(held <= 64 && last == Some(999), "{held} {last:?}");
    // Many records: the queue ends, and what is in it stays.
    let accepted = (0..1000)
        .take_while(|step_id| {
            queue.push(&event(*step_id, 1000 + i64::from(*step_id))).1 != Pushed::Full
        })
        .count();
    assert!((1..=64).contains(&accepted), "{accepted}");
    let drained = std::iter::from_fn(|| queue.next())
        .take_while(|next| matches!(next, Next::Event(_)))
        .count();
    assert_eq!(drained, accepted);
    // Open again, as for a watcher that registers again.
    assert_eq!(queue.push(&event(1, 5000)).1, Pushed::Queued);
    queue.end(End::Done);
    queue.close();
    assert_eq!(queue.try_push(&event(1, 5001)), Pushed::Gone);
}

#[tokio::test]
async fn watchers_that_never_read_hold_nobody_up() {
    let rig = Rig::new(small_queue(4));
    rig.create("e").await;
    let mut stuck = Vec::new();
    for _ in 0..50 {
        stuck.push(rig.watch(one("e")).await.unwrap());
    }
    let mut watch = rig.watch(one("e")).await.unwrap();
    complete(&mut watch).await;
    for step_id in 1..=200 {
        rig.start("e", step_id).await;
        assert_eq!(next_told(&mut watch).await, format!("e/{step_id} Created"));
    }
    assert_eq!(rig.hub.numbers.watchers.load(Ordering::Relaxed), 51);
}

#[tokio::test]
async fn what_leaves_the_filter_is_sent_once_more() {
    for own in [false, true] {
        let mut rig = Rig::new(settings());
        rig.own = own;
        let filter =
            ExecutionFilter { statuses: vec![ExecutionStatus::Running], ..Default::default() };
        let mut running = rig.watch(many(filter)).await.unwrap();
        complete(&mut running).await;
        let filter = ExecutionFilter {
            metadata: vec![(vec!["stage".to_owned()], "b".into())],
            ..Default::default()
        };
        let mut staged = rig.watch(many(filter)).await.unwrap();
        complete(&mut staged).await;

        rig.create("e").await;
        assert_eq!(next_told(&mut running).await, "e Created");
        rig.set("e", doc! { "stage": "a" }).await;
        assert_eq!(next_told(&mut running).await, "e Updated");
        rig.set("e", doc! { "stage": "b" }).await;
        assert_eq!(next_told(&mut running).await, "e Updated");
        // Where the version before is not known, a change of the metadata may be the one that left the filter.
        while !matches!(&next(&mut staged).await, Delivery::Event(event)
            if event.record.as_ref().is_some_and(|record| matches!(record,
                Record::Execution(execution) if execution.metadata.get_str("stage").ok() == Some("b"))))
        {
        }
        rig.start("e", 1).await;
        assert_eq!(next_told(&mut running).await, "e/1 Created");
        assert_eq!(next_told(&mut staged).await, "e/1 Created");
        rig.set("e", doc! { "stage": "c" }).await;
        assert_eq!(next_told(&mut running).await, "e Updated");
        assert_eq!(next_told(&mut staged).await, "e Updated");
        rig.later(5);
        rig.finish("e").await;
        assert_eq!(next_told(&mut running).await, "e Updated");
        // Neither the execution nor its steps match any more.
        rig.later(5);
        rig.finish_step("e", 1).await;
        rig.set("e", doc! { "more": true }).await;
        rig.create("f").await;
        assert_eq!(next_told(&mut running).await, "f Created");
    }
}

#[tokio::test]
async fn a_filter_snapshot_has_what_matches_and_no_more() {
    let rig = Rig::new(settings());
    for number in 0..40 {
        let id = format!("e{number:02}");
        rig.create_of(&id, if number % 2 == 0 { "even" } else { "odd" }).await;
        if number % 4 == 0 {
            rig.finish(&id).await;
        }
    }
    let even = ExecutionFilter { app_names: vec!["even".to_owned()], ..Default::default() };
    for (snapshot, expected) in [(Snapshot::All, 20), (Snapshot::Active, 10), (Snapshot::None, 0)] {
        let options = Options { snapshot, ..many(even.clone()) };
        let mut watch = rig.watch(options).await.unwrap();
        let mut count = 0;
        while let Delivery::Current(..) = next(&mut watch).await {
            count += 1;
        }
        assert_eq!(count, expected, "{snapshot:?}");
    }
}

#[tokio::test]
async fn another_programs_change_is_delivered_with_its_revision_unchanged() {
    let rig = Rig::new(settings());
    rig.create("e").await;
    let mut watch = rig.watch(one("e")).await.unwrap();
    complete(&mut watch).await;
    let record = rig.start("e", 1).await;
    assert_eq!(next_told(&mut watch).await, "e/1 Created");
    let foreign = Change {
        cursor: Cursor(Vec::new()),
        at: record.revision() / 1000,
        what: Changed::Record(record.key()),
        kind: ChangeKind::Updated,
        revision: None,
        status_changed: true,
        metadata_changed: true,
        failed: None,
        standing: None,
        body: None,
        document_id: None,
    };
    let next_place = rig.newest().await + 1;
    rig.control.foreign.lock().push_back((next_place, foreign.clone()));
    rig.start("e", 2).await;
    assert_eq!(next_told(&mut watch).await, "e/2 Created");
    let delivery = next(&mut watch).await;
    assert_eq!(told(&delivery), "e/1 Updated");
    let Delivery::Event(event) = delivery else { panic!("no event") };
    assert_eq!(event.record.as_ref().map(Record::revision), Some(record.revision()));
    // What comes after it is not held back by it.
    rig.finish_step("e", 1).await;
    assert_eq!(next_told(&mut watch).await, "e/1 Updated");
}

#[tokio::test]
async fn a_watch_ends_when_its_execution_has_ended_and_no_step_runs() {
    for steps in [true, false] {
        let rig = Rig::new(settings());
        rig.create("e").await;
        rig.start("e", 1).await;
        let mut watch = rig.watch(Options { steps, ..one("e") }).await.unwrap();
        let mut follower = rig.watch(Options { steps, follow: true, ..one("e") }).await.unwrap();
        complete(&mut watch).await;
        complete(&mut follower).await;
        rig.start("e", 2).await;
        rig.finish_step("e", 1).await;
        rig.finish("e").await;
        rig.finish_step("e", 2).await;
        let (mut ended, mut second) = (false, None);
        while let Some(delivery) = within(watch.next()).await {
            let Delivery::Event(event) = delivery.unwrap() else { panic!("only changes follow") };
            match event.record.as_ref().unwrap() {
                Record::Execution(execution) => ended = execution.is_terminal(),
                Record::Step(step) if step.step_id == 2 => second = step.status,
                Record::Step(_) | Record::Artifact(_) => {}
            }
        }
        // All that led to the end was told before it, the steps to whoever asked for them.
        assert!(ended);
        assert_eq!(second, steps.then_some(StepStatus::Completed));
        let mut ended = rig.watch(Options { steps, ..one("e") }).await.unwrap();
        complete(&mut ended).await;
        assert!(end(&mut ended).await.is_ok());
        rig.set("e", doc! { "late": true }).await;
        rig.set("e", doc! { "late": 2 }).await;
        // Several changes may come as one, the latest; the latest comes.
        loop {
            if let Delivery::Event(event) = next(&mut follower).await
                && let Some(Record::Execution(execution)) = &event.record
                && execution.metadata == doc! { "late": 2 }
            {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_resumed_watch_ends_as_well() {
    let rig = Rig::new(settings());
    rig.create("e").await;
    rig.start("e", 1).await;
    let mut watch = rig.watch(one("e")).await.unwrap();
    let first = complete(&mut watch).await;
    rig.finish("e").await;
    let delivery = next(&mut watch).await;
    assert_eq!(told(&delivery), "e Updated");
    let after_finish = cursor_of(&delivery);
    // The step is still running: the watch goes on, and ends with it.
    let mut resumed =
        rig.watch(Options { resume: after_finish.clone(), ..one("e") }).await.unwrap();
    rig.finish_step("e", 1).await;
    assert_eq!(next_told(&mut resumed).await, "e/1 Updated");
    assert!(end(&mut resumed).await.is_ok());
    for (resume, expected) in [(Some(first), 2), (after_finish, 1)] {
        let mut resumed = rig.watch(Options { resume, ..one("e") }).await.unwrap();
        for _ in 0..expected {
            next(&mut resumed).await;
        }
        assert!(end(&mut resumed).await.is_ok());
    }
    let mut at_the_end = rig.watch(one("e")).await.unwrap();
    let resume = Some(complete(&mut at_the_end).await);
    let mut resumed = rig.watch(Options { resume, ..one("e") }).await.unwrap();
    assert!(end(&mut resumed).await.is_ok());
}

#[tokio::test]
async fn a_deleted_execution_is_told_and_ends_the_watch() {
    let rig = Rig::new(settings());
    rig.create("e").await;
    rig.start("e", 1).await;
    let mut watch = rig.watch(Options { follow: true, ..one("e") }).await.unwrap();
    let mut all = rig.watch(many(ExecutionFilter::default())).await.unwrap();
    let resume = Some(complete(&mut watch).await);
    complete(&mut all).await;
    rig.delete("e").await;
    for watch in [&mut watch, &mut all] {
        assert_eq!(next_told(watch).await, "e Deleted");
    }
    assert!(end(&mut watch).await.is_ok());
    // A watch by filter never ends by itself.
    rig.create("f").await;
    assert_eq!(next_told(&mut all).await, "f Created");
    let mut resumed = rig.watch(Options { resume: resume.clone(), ..one("e") }).await.unwrap();
    assert_eq!(next_told(&mut resumed).await, "e Deleted");
    assert!(end(&mut resumed).await.is_ok());
    let unknown = rig.watch(one("e")).await;
    assert!(matches!(unknown.err(), Some(Failure::ExecutionNotFound)));
    let mut unknown = rig.watch(Options { resume, ..one("never") }).await.unwrap();
    assert!(matches!(end(&mut unknown).await, Err(Failure::ExecutionNotFound)));
}

#[tokio::test]
async fn an_artifact_of_the_snapshot_is_not_told_again() {
    let rig = Rig::new(settings());
    rig.create("e").await;
    let with = || Options { artifacts: true, follow: true, ..one("e") };
    // The log is held up: what the snapshot has comes round in it only later.
    rig.let_read(false);
    let mut first = rig.watch(with()).await.unwrap();
    let early = name_of(&rig.artifact("e").await);
    assert_eq!(next_told(&mut first).await, "+e");
    assert_eq!(next_told(&mut first).await, format!("+{early}"));
    complete(&mut first).await;
    let late = rig.artifact("e").await;
    rig.create("other").await;
    rig.artifact("other").await;
    rig.let_read(true);
    assert_eq!(next_told(&mut first).await, format!("{} Created", name_of(&late)));
    rig.delete_artifact(late.clone()).await;
    assert_eq!(next_told(&mut first).await, format!("{} Deleted", name_of(&late)));
    // Nobody else is told, neither without asking nor by filter.
    let mut without = rig.watch(Options { artifacts: false, ..with() }).await.unwrap();
    let mut all = rig.watch(many(ExecutionFilter::default())).await.unwrap();
    for watch in [&mut without, &mut all] {
        complete(watch).await;
    }
    rig.artifact("e").await;
    rig.start("e", 1).await;
    for watch in [&mut without, &mut all] {
        assert_eq!(next_told(watch).await, "e/1 Created");
    }
    // What was forgotten as long past is told when the log brings it.
    rig.later(120_000);
    let latest = name_of(&rig.artifact("e").await);
    let mut told = next_told(&mut first).await;
    while told != format!("{latest} Created") {
        told = next_told(&mut first).await;
    }
}

fn name_of(key: &RecordKey) -> String {
    let id = key.artifact_id.as_deref().unwrap_or_default();
    format!("{}#{}", key.execution_id, id.trim_start_matches('0'))
}

#[tokio::test]
async fn nothing_is_told_of_an_execution_after_its_end_until_it_is_made_anew() {
    let rig = Rig::new(settings());
    rig.create("e").await;
    let step = rig.start("e", 1).await;
    let mut all = rig.watch(many(ExecutionFilter::default())).await.unwrap();
    complete(&mut all).await;
    // Another server may change a step that is about to go.
    let late = Change {
        cursor: Cursor(Vec::new()),
        at: 0,
        what: Changed::Record(step.key()),
        kind: ChangeKind::Updated,
        revision: Some(step.revision() + 1),
        status_changed: false,
        metadata_changed: false,
        failed: None,
        standing: None,
        body: Some(step),
        document_id: None,
    };
    let end = rig.newest().await + 1;
    rig.control.foreign.lock().push_back((end, late));
    rig.delete("e").await;
    rig.create("e").await;
    rig.start("e", 1).await;
    for told in ["e Deleted", "e Created", "e/1 Created"] {
        assert_eq!(next_told(&mut all).await, told);
    }
}

#[tokio::test]
async fn watchers_stay_connected_while_the_database_is_away() {
    let rig = Rig::new(Settings { keepalive: Duration::from_millis(30), ..small_queue(4) });
    rig.create("e").await;
    let mut live = rig.watch(one("e")).await.unwrap();
    let mut slow = rig.watch(one("e")).await.unwrap();
    complete(&mut live).await;
    complete(&mut slow).await;
    let mut finals = HashMap::new();
    for step_id in 1..=20 {
        let record = rig.start("e", step_id).await;
        finals.insert(record.key(), record.revision());
    }
    let mut checked = [Checked::default(), Checked::default()];
    checked[0].until(&mut live, &finals).await;
    rig.control.away.store(true, Ordering::SeqCst);
    for step_id in 21..=40 {
        let record = rig.start("e", step_id).await;
        finals.insert(record.key(), record.revision());
    }
    for (watch, checked) in [&mut live, &mut slow].into_iter().zip(&mut checked) {
        let mut keepalives = 0;
        while keepalives < 3 {
            let delivery = next(watch).await;
            checked.take(&delivery);
            keepalives += usize::from(matches!(delivery, Delivery::Keepalive(_)));
        }
    }
    rig.control.away.store(false, Ordering::SeqCst);
    for (watch, checked) in [&mut live, &mut slow].into_iter().zip(&mut checked) {
        checked.until(watch, &finals).await;
    }
}

#[tokio::test]
async fn a_keepalive_has_a_token_that_resumes() {
    let rig = Rig::new(Settings { keepalive: Duration::from_millis(20), ..settings() });
    rig.create("e").await;
    let mut watch = rig.watch(one("e")).await.unwrap();
    complete(&mut watch).await;
    rig.create("other").await;
    let newest = rig.newest().await;
    let resume = loop {
        if let Delivery::Keepalive(cursor) = next(&mut watch).await
            && cursor.0 == newest.to_be_bytes()
        {
            break Some(cursor);
        }
    };
    rig.start("e", 1).await;
    let mut resumed = rig.watch(Options { resume, ..one("e") }).await.unwrap();
    assert_eq!(next_told(&mut resumed).await, "e/1 Created");
}

#[tokio::test]
async fn a_server_without_watchers_reads_nothing() {
    let mut rig = Rig::new(settings());
    rig.own = true;
    rig.create("e").await;
    assert_eq!(rig.control.opens.load(Ordering::SeqCst), 0);
    let watch = rig.watch(one("e")).await.unwrap();
    assert_eq!(rig.control.open_now.load(Ordering::SeqCst), 1);
    drop(watch);
    within(async {
        while rig.control.open_now.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    rig.start("e", 1).await;
    assert_eq!(rig.control.loads.load(Ordering::SeqCst), 0);
    // And the next watcher starts it again.
    let mut watch = rig.watch(one("e")).await.unwrap();
    complete(&mut watch).await;
    rig.start("e", 2).await;
    assert_eq!(next_told(&mut watch).await, "e/2 Created");
}

#[tokio::test]
async fn own_writes_and_unwatched_records_need_no_look_up() {
    let mut rig = Rig::new(settings());
    rig.create("e").await;
    let mut watch = rig.watch(one("e")).await.unwrap();
    complete(&mut watch).await;
    rig.let_read(false);
    rig.create("other").await;
    rig.own = true;
    for step_id in 1..=20 {
        rig.start("e", step_id).await;
    }
    rig.let_read(true);
    for step_id in 1..=20 {
        assert_eq!(next_told(&mut watch).await, format!("e/{step_id} Created"));
    }
    assert_eq!(rig.control.loads.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn who_registers_while_a_batch_is_looked_up_misses_and_repeats_nothing() {
    let rig = Rig::new(settings());
    rig.create("e").await;
    let mut early = rig.watch(one("e")).await.unwrap();
    complete(&mut early).await;
    rig.let_load(false);
    let loads = rig.control.loads.load(Ordering::SeqCst);
    rig.start("e", 1).await;
    within(async {
        while rig.control.loads.load(Ordering::SeqCst) == loads {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The look-up has read the step as started; the snapshot sees it finished.
    let finished = rig.finish_step("e", 1).await;
    let mut late = rig.watch(one("e")).await.unwrap();
    let mut all = rig.watch(many(ExecutionFilter::default())).await.unwrap();
    let mut late_checked = Checked::default();
    let mut all_checked = Checked::default();
    rig.let_load(true);
    let last = rig.start("e", 2).await;
    let finals =
        HashMap::from([(finished.key(), finished.revision()), (last.key(), last.revision())]);
    late_checked.until(&mut late, &finals).await;
    all_checked.until(&mut all, &finals).await;
    Checked::default().until(&mut early, &finals).await;
}

#[tokio::test]
async fn the_end_of_the_server_ends_every_stream() {
    let rig = Rig::new(settings());
    rig.create("e").await;
    let mut live = rig.watch(one("e")).await.unwrap();
    complete(&mut live).await;
    let mut in_snapshot = rig.watch(one("e")).await.unwrap();
    let waiting = async { within(live.next()).await };
    let stopping = async {
        tokio::task::yield_now().await;
        rig.stop.cancel();
    };
    let (ended, ()) = tokio::join!(waiting, stopping);
    assert!(matches!(ended, Some(Err(Failure::ShuttingDown))));
    loop {
        match within(in_snapshot.next()).await {
            Some(Ok(_)) => {}
            Some(Err(failure)) => break assert!(matches!(failure, Failure::ShuttingDown)),
            None => panic!("ended without a reason"),
        }
    }
    assert!(matches!(rig.watch(one("e")).await.err(), Some(Failure::ShuttingDown)));
}

#[tokio::test]
async fn payloads_come_when_asked_for() {
    let rig = Rig::new(settings());
    rig.create("e").await;
    for step_id in 1..=5 {
        rig.start("e", step_id).await;
    }
    let mut with = rig.watch(Options { payloads: true, ..one("e") }).await.unwrap();
    let mut without = rig.watch(one("e")).await.unwrap();
    let input = |record: &Record| match record {
        Record::Step(step) => Some(matches!(step.input, Payload::Value(_))),
        Record::Execution(_) | Record::Artifact(_) => None,
    };
    for (watch, expected) in [(&mut with, true), (&mut without, false)] {
        let mut steps = 0;
        while let Delivery::Current(record, _) = next(watch).await {
            steps += usize::from(input(&record) == Some(expected));
        }
        assert_eq!(steps, 5);
    }
    rig.start("e", 6).await;
    for (watch, expected) in [(&mut with, true), (&mut without, false)] {
        let Delivery::Event(event) = next(watch).await else { panic!("no event") };
        assert_eq!(event.record.as_ref().and_then(input), Some(expected));
    }
}
