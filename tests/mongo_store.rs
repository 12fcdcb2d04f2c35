//! What only the MongoDB backend can get wrong and the gRPC suite cannot see: lost acknowledgements, guards
//! against other programs, index use, the order of the log.

#![expect(clippy::disallowed_methods, reason = "tests measure real time")]
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::sync::Arc;
use std::time::Instant;

use bson::{Bson, DateTime, Document, doc};
use futures::future::BoxFuture;
use mongodb::{Client, Database};
use stepwell::clock::{Clock, SystemClock};
use stepwell::domain::execution::CreateExecution;
use stepwell::domain::limits::Limits;
use stepwell::domain::query::{ExecutionFilter, ExecutionOrder, ExecutionQuery, StepQuery};
use stepwell::domain::step::{StepFields, StepStatus};
use stepwell::domain::{ExecutionOp, ExecutionStatus, Refusal, StepOp, StepRef};
use stepwell::store::mongo::{MongoOptions, MongoStore};
use stepwell::store::{
    Answer, ChangeKind, ChangeReader, Changed, Collection, Error, Op, RecordKey, Store, Write,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use support::mongod::{address_of, as_server, open, through};
use support::{PATIENCE, in_time};

struct Bench {
    store: Arc<MongoStore>,
    database: Database,
    uri: String,
}

async fn bench(name: &str) -> Bench {
    bench_on(support::mongod::shared(), name).await
}

async fn bench_on(uri: &str, name: &str) -> Bench {
    let uri = uri.to_owned();
    let client = Client::with_uri_str(&uri).await.unwrap();
    let database = client.database(&format!("stepwell_{name}_{}", std::process::id()));
    database.drop().await.unwrap();
    let store = open(&uri, database.name()).await;
    Bench { store, database, uri }
}

impl Bench {
    async fn end(self) {
        self.store.close().await;
        self.database.drop().await.unwrap();
    }
}

fn write(execution_id: &str, op: Op) -> Write {
    Write {
        execution_id: execution_id.to_owned(),
        op,
        now: SystemClock.now(),
        scope: Default::default(),
        asked: None,
    }
}

fn create(execution_id: &str) -> Write {
    let request = CreateExecution {
        app_name: "app".to_owned(),
        app_id: Some(7),
        ..CreateExecution::default()
    };
    write(execution_id, Op::Execution(ExecutionOp::Create(Box::new(request))))
}

fn start(execution_id: &str, step_id: Option<i32>, name: &str) -> Write {
    let op = StepOp::Start {
        step_name: name.to_owned(),
        fields: StepFields { input: Some(Bson::String("in".to_owned())), ..StepFields::default() },
        attempt: None,
    };
    let named = StepRef { step_id, step_key: None };
    write(execution_id, Op::Step { named, op: Box::new(op) })
}

fn finish_step(execution_id: &str, step_id: i32) -> Write {
    let op = StepOp::Finish {
        status: StepStatus::Completed,
        output: Some(Bson::Document(doc! { "answer": 42 })),
        error: None,
        completed_at: None,
        step_name: None,
        fields: StepFields::default(),
    };
    let named = StepRef { step_id: Some(step_id), step_key: None };
    write(execution_id, Op::Step { named, op: Box::new(op) })
}

fn fail(execution_id: &str, step_id: i32) -> Write {
    let op = StepOp::Finish {
        status: StepStatus::Failed,
        output: None,
        error: None,
        completed_at: None,
        step_name: None,
        fields: StepFields::default(),
    };
    let named = StepRef { step_id: Some(step_id), step_key: None };
    write(execution_id, Op::Step { named, op: Box::new(op) })
}

fn update(execution_id: &str, metadata: Document) -> Write {
    let op = ExecutionOp::Update {
        metadata,
        pinned: None,
        expected_revision: None,
        update_sequence: None,
    };
    write(execution_id, Op::Execution(op))
}

fn finish(execution_id: &str, status: ExecutionStatus) -> Write {
    let op = ExecutionOp::Finish { status, error: None, completed_at: None, metadata: doc! {} };
    write(execution_id, Op::Execution(op))
}

async fn one(store: &MongoStore, write: Write) -> Result<Answer, Error> {
    store.apply(vec![write]).await.outcomes.pop().unwrap()
}

fn step_of(answer: Answer) -> Arc<stepwell::domain::Step> {
    match answer {
        Answer::Step(step) => step,
        other => panic!("not a step: {other:?}"),
    }
}

fn execution_of(answer: Answer) -> Arc<stepwell::domain::Execution> {
    match answer {
        Answer::Execution(execution) => execution,
        other => panic!("not an execution: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_in_one_batch_is_stored_whole_and_repeats_change_nothing() {
    let bench = bench("batch").await;
    let run = vec![
        create("e"),
        start("e", None, "a"),
        start("e", None, "b"),
        finish_step("e", 1),
        finish("e", ExecutionStatus::Completed),
    ];
    let applied = bench.store.apply(run.clone()).await;
    for outcome in &applied.outcomes {
        assert!(outcome.is_ok(), "{outcome:?}");
    }
    assert_eq!(applied.written.len(), 3);
    let step =
        bench.store.step("e", &StepRef { step_id: Some(1), step_key: None }, true).await.unwrap();
    let step = step.unwrap();
    assert_eq!(step.output.value(), Some(&Bson::Document(doc! { "answer": 42 })));
    let repeated = bench.store.apply(vec![run[0].clone(), run[3].clone(), run[4].clone()]).await;
    assert!(repeated.written.is_empty());
    for outcome in &repeated.outcomes {
        assert!(outcome.is_ok(), "{outcome:?}");
    }
    // The same from a server that knows nothing yet.
    let other = open(&bench.uri, bench.database.name()).await;
    let repeated = other.apply(vec![run[0].clone(), run[3].clone(), run[4].clone()]).await;
    assert!(repeated.written.is_empty());
    assert!(repeated.outcomes.iter().all(Result::is_ok), "{:?}", repeated.outcomes);
    let refused = one(&other, finish("e", ExecutionStatus::Failed)).await;
    assert!(matches!(refused, Err(Error::Refused(Refusal::Status { .. }))), "{refused:?}");
    let next = step_of(one(&other, start("e", None, "c")).await.unwrap());
    assert_eq!(next.step_id, 3);
    // And the first server, whose cache is behind now.
    let next = step_of(one(&bench.store, start("e", None, "d")).await.unwrap());
    assert_eq!(next.step_id, 4);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_finishes_on_two_servers_one_status_wins() {
    let bench = bench("race").await;
    let other = open(&bench.uri, bench.database.name()).await;
    other.ping().await.unwrap();
    for round in 0..20 {
        let id = format!("e{round}");
        one(&bench.store, create(&id)).await.unwrap();
        let (a, b) = tokio::join!(
            one(&bench.store, finish(&id, ExecutionStatus::Completed)),
            one(&other, finish(&id, ExecutionStatus::Failed)),
        );
        assert_eq!(usize::from(a.is_ok()) + usize::from(b.is_ok()), 1, "{a:?} {b:?}");
        let stored = bench.store.execution(&id).await.unwrap().unwrap();
        let winner = execution_of(a.or(b).unwrap());
        assert_eq!(stored.status, winner.status);
        assert_eq!(stored.revision, winner.revision);
    }
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_servers_that_write_the_same_in_the_same_microsecond_one_has_written() {
    let bench = bench("same_microsecond").await;
    let other = open(&bench.uri, bench.database.name()).await;
    other.ping().await.unwrap();
    for round in 0..20 {
        let id = format!("e{round}");
        let created = execution_of(one(&bench.store, create(&id)).await.unwrap());
        let claim = ExecutionOp::Update {
            metadata: doc! { "claimed": true },
            pinned: None,
            expected_revision: Some(created.revision),
            update_sequence: None,
        };
        // To the last bit the same write, of the same moment.
        let claim = write(&id, Op::Execution(claim));
        let (first, second) =
            tokio::join!(one(&bench.store, claim.clone()), one(&other, claim.clone()));
        assert_eq!(usize::from(first.is_ok()) + usize::from(second.is_ok()), 1, "{id}");
        let refused = [first, second].into_iter().find_map(Result::err).unwrap();
        assert!(matches!(refused, Error::Refused(Refusal::StaleRevision { .. })), "{refused:?}");
    }
    other.close().await;
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_assign_different_numbers() {
    let bench = bench("numbers").await;
    let other = open(&bench.uri, bench.database.name()).await;
    one(&bench.store, create("e")).await.unwrap();
    let mut numbers = Vec::new();
    for _ in 0..20 {
        let (a, b) = tokio::join!(
            one(&bench.store, start("e", None, "a")),
            one(&other, start("e", None, "b")),
        );
        numbers.push(step_of(a.unwrap()).step_id);
        numbers.push(step_of(b.unwrap()).step_id);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=40).collect::<Vec<i32>>());
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_programs_metadata_is_never_overwritten_by_what_was_read_before() {
    let bench = bench("guard").await;
    let odd = doc! { "$ref": "x", "$id": 1, "a.b": 2, "$inc": { "c": 1 }, "größe": "☃", "": 0 };
    one(&bench.store, create("e")).await.unwrap();
    one(&bench.store, update("e", odd.clone())).await.unwrap();
    one(&bench.store, update("e", doc! { "n": 1_i64 })).await.unwrap();
    // Another program replaces the metadata and leaves `revision` alone.
    let executions = bench.database.collection::<Document>("executions");
    let replaced =
        doc! { "$set": { "metadata": { "foreign": true, "at": DateTime::from_millis(5) } } };
    executions.update_one(doc! { "execution_id": "e" }, replaced).await.unwrap();
    let after = execution_of(one(&bench.store, update("e", doc! { "n": 2_i64 })).await.unwrap());
    let expected = doc! { "foreign": true, "at": DateTime::from_millis(5), "n": 2_i64 };
    assert_eq!(after.metadata, expected);
    let stored = executions.find_one(doc! { "execution_id": "e" }).await.unwrap().unwrap();
    assert_eq!(stored.get_document("metadata").unwrap(), &expected);
    // And one that finishes it: the cached record must not bring it back to life.
    let foreign = doc! { "$set": { "status": "failed", "error": "theirs" } };
    executions.update_one(doc! { "execution_id": "e" }, foreign).await.unwrap();
    let refused = one(&bench.store, finish("e", ExecutionStatus::Completed)).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    // A replaced document without any of our fields.
    let foreign =
        doc! { "execution_id": "e", "app_name": "theirs", "status": "running", "metadata": {} };
    executions.replace_one(doc! { "execution_id": "e" }, foreign).await.unwrap();
    let done =
        execution_of(one(&bench.store, finish("e", ExecutionStatus::Completed)).await.unwrap());
    assert_eq!(done.app_name, "theirs");
    assert!(done.revision > after.revision);
    let stored = executions.find_one(doc! { "execution_id": "e" }).await.unwrap().unwrap();
    assert_eq!(stored.get_str("status").unwrap(), "completed");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_an_execution_that_another_server_deleted_is_not_left_behind() {
    let bench = bench("orphan").await;
    let other = open(&bench.uri, bench.database.name()).await;
    one(&bench.store, create("e")).await.unwrap();
    one(&bench.store, start("e", None, "a")).await.unwrap();
    let delete = write("e", Op::Execution(ExecutionOp::Delete { force: true }));
    assert_eq!(one(&other, delete).await.unwrap(), Answer::Deleted);
    other.remove("e").await.unwrap();
    let refused = one(&bench.store, start("e", None, "b")).await;
    assert!(
        matches!(refused, Err(Error::Refused(Refusal::ExecutionNotFound { .. }))),
        "{refused:?}"
    );
    let steps = bench.database.collection::<Document>("execution_steps");
    assert_eq!(steps.count_documents(doc! {}).await.unwrap(), 0);
    assert!(bench.store.execution("e").await.unwrap().is_none());
    // The id is free again, and what the cache still has of the old run does no harm.
    one(&bench.store, create("e")).await.unwrap();
    assert_eq!(step_of(one(&bench.store, start("e", Some(1), "a")).await.unwrap()).step_id, 1);
    assert_eq!(steps.count_documents(doc! {}).await.unwrap(), 1);
    bench.end().await;
}

/// Where the proxy cuts.
#[derive(Clone, Default)]
struct Cut {
    /// Replies to commands of this name are swallowed and the connection is closed.
    command: Arc<std::sync::Mutex<Option<&'static str>>>,
    cuts: Arc<std::sync::atomic::AtomicUsize>,
    /// Done after the command was executed and before its sender notices that the answer is lost.
    meanwhile: Arc<std::sync::Mutex<Option<BoxFuture<'static, ()>>>>,
    /// The answer is late instead of lost.
    late: Arc<std::sync::atomic::AtomicBool>,
}

async fn read_message(from: &mut (impl AsyncReadExt + Unpin)) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).await.ok()?;
    let size = usize::try_from(u32::from_le_bytes(length)).unwrap();
    let mut message = vec![0; size];
    message[..4].copy_from_slice(&length);
    from.read_exact(&mut message[4..]).await.ok()?;
    Some(message)
}

/// A proxy that lets a command through to mongod and then loses the answer.
async fn proxy(to: String, cut: Cut) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (to, cut) = (to.clone(), cut.clone());
            tokio::spawn(async move {
                let mut far = TcpStream::connect(&to).await.unwrap();
                let (mut near_read, mut near_write) = near.split();
                let (mut far_read, mut far_write) = far.split();
                let lose = std::sync::atomic::AtomicBool::new(false);
                let there = async {
                    while let Some(message) = read_message(&mut near_read).await {
                        let wanted = *cut.command.lock().unwrap();
                        // The first element of the body of an OP_MSG names the command.
                        if let Some(wanted) = wanted
                            && message.get(26..26 + wanted.len()) == Some(wanted.as_bytes())
                        {
                            *cut.command.lock().unwrap() = None;
                            lose.store(true, std::sync::atomic::Ordering::SeqCst);
                        }
                        if far_write.write_all(&message).await.is_err() {
                            return;
                        }
                    }
                };
                let back = async {
                    while let Some(message) = read_message(&mut far_read).await {
                        if lose.load(std::sync::atomic::Ordering::SeqCst) {
                            cut.cuts.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                            let meanwhile = cut.meanwhile.lock().unwrap().take();
                            if let Some(meanwhile) = meanwhile {
                                meanwhile.await;
                            }
                            if !cut.late.load(std::sync::atomic::Ordering::SeqCst) {
                                return;
                            }
                            lose.store(false, std::sync::atomic::Ordering::SeqCst);
                        }
                        if near_write.write_all(&message).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! { () = there => {}, () = back => {} }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_acknowledgement_is_lost_is_applied_once_and_answered() {
    let bench = bench("lost").await;
    let cut = Cut::default();
    let port = proxy(address_of(&bench.uri), cut.clone()).await;
    let uri = through(&as_server(&bench.uri, bench.database.name()), port);
    let store = open(&uri, bench.database.name()).await;
    let cuts = || cut.cuts.load(std::sync::atomic::Ordering::SeqCst);

    *cut.command.lock().unwrap() = Some("insert");
    one(&store, create("e")).await.unwrap();
    assert_eq!(cuts(), 1);
    for expected in 1..=3 {
        *cut.command.lock().unwrap() = Some("insert");
        let step = step_of(one(&store, start("e", None, "s")).await.unwrap());
        assert_eq!(step.step_id, expected);
    }
    assert_eq!(cuts(), 4);
    *cut.command.lock().unwrap() = Some("update");
    let mut batch: Vec<Write> = (1..=3).map(|step_id| finish_step("e", step_id)).collect();
    batch.push(update("e", doc! { "n": 1 }));
    let applied = store.apply(batch).await;
    assert!(applied.outcomes.iter().all(Result::is_ok), "{:?}", applied.outcomes);
    assert_eq!(cuts(), 5);
    let steps = bench.database.collection::<Document>("execution_steps");
    assert_eq!(steps.count_documents(doc! {}).await.unwrap(), 3);
    for written in &applied.written {
        let key = written.key();
        let stored = match key.step_id {
            None => bench.store.execution("e").await.unwrap().unwrap().revision,
            Some(step_id) => {
                let named = StepRef { step_id: Some(step_id), step_key: None };
                bench.store.step("e", &named, true).await.unwrap().unwrap().revision
            }
        };
        assert_eq!(stored, written.revision());
    }
    // A retry counts its tries, so applying it twice would show.
    let failed = StepOp::Finish {
        status: StepStatus::Failed,
        output: None,
        error: None,
        completed_at: None,
        step_name: Some("r".to_owned()),
        fields: StepFields::default(),
    };
    let named = StepRef { step_id: Some(9), step_key: None };
    one(&store, write("e", Op::Step { named: named.clone(), op: Box::new(failed) })).await.unwrap();
    *cut.command.lock().unwrap() = Some("update");
    let again = step_of(one(&store, start("e", Some(9), "r")).await.unwrap());
    assert_eq!((again.retry_count, again.attempts.len()), (1, 1));
    let stored = bench.store.step("e", &named, true).await.unwrap().unwrap();
    assert_eq!((stored.retry_count, stored.attempts.len()), (1, 1));
    assert_eq!(cuts(), 6);

    // Another server goes on from there before the lost answer is noticed: the retry is known again.
    one(&store, fail("e", 9)).await.unwrap();
    let other = Arc::clone(&bench.store);
    *cut.meanwhile.lock().unwrap() = Some(Box::pin(async move {
        one(&other, fail("e", 9)).await.unwrap();
    }));
    *cut.command.lock().unwrap() = Some("update");
    let again = step_of(one(&store, start("e", Some(9), "r")).await.unwrap());
    assert_eq!((again.status, again.retry_count), (Some(StepStatus::Running), 2));
    let stored = bench.store.step("e", &named, true).await.unwrap().unwrap();
    assert_eq!((stored.retry_count, stored.attempts.len()), (2, 2));
    assert_eq!(stored.status, Some(StepStatus::Failed));
    assert_eq!(cuts(), 7);
    store.close().await;
    bench.end().await;
}

/// The answer of a command says how many of its updates were applied, not which. When another server changes the
/// record again before this one looks, what was applied must not be decided a second time.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_another_server_went_on_from_is_applied_once() {
    let bench = bench("went_on").await;
    let cut = Cut::default();
    cut.late.store(true, std::sync::atomic::Ordering::SeqCst);
    let port = proxy(address_of(&bench.uri), cut.clone()).await;
    let uri = through(&as_server(&bench.uri, bench.database.name()), port);
    let store = open(&uri, bench.database.name()).await;
    one(&store, create("e")).await.unwrap();
    let attempts = |stored: &stepwell::domain::Step| (stored.retry_count, stored.attempts.len());
    let named = |step_id| StepRef { step_id: Some(step_id), step_key: None };
    for (round, retries) in [(0, 1), (1, 2), (2, 6)] {
        let (lost, applied) = (2 * round + 1, 2 * round + 2);
        let both = [start("e", Some(lost), "a"), start("e", Some(applied), "b")];
        assert!(store.apply(both.into()).await.outcomes.iter().all(Result::is_ok));
        // The first of the two updates matches nothing.
        one(&bench.store, fail("e", lost)).await.unwrap();
        let other = Arc::clone(&bench.store);
        *cut.meanwhile.lock().unwrap() = Some(Box::pin(async move {
            for retry in 0..retries {
                if retry > 0 {
                    one(&other, fail("e", applied)).await.unwrap();
                }
                one(&other, start("e", Some(applied), "b")).await.unwrap();
            }
        }));
        *cut.command.lock().unwrap() = Some("update");
        let batch = vec![fail("e", applied), fail("e", lost)];
        let outcomes = store.apply(batch).await.outcomes;
        let [failed, repeated] = <[_; 2]>::try_from(outcomes).unwrap();
        assert_eq!(cut.cuts.load(std::sync::atomic::Ordering::SeqCst), round as usize + 1);
        assert_eq!(step_of(repeated.unwrap()).status, Some(StepStatus::Failed));
        if retries <= 2 {
            let failed = step_of(failed.unwrap());
            assert_eq!((failed.status, failed.retry_count), (Some(StepStatus::Failed), 0));
        } else {
            // So many updates have come since that it cannot be told: it is neither claimed nor done again.
            assert!(matches!(failed, Err(Error::Unavailable(_))), "{failed:?}");
        }
        let stored = bench.store.step("e", &named(applied), true).await.unwrap().unwrap();
        assert_eq!(attempts(&stored), (retries, retries as usize));
        assert_eq!(stored.status, Some(StepStatus::Running));
    }
    store.close().await;
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_program_left_in_place_of_digests_stops_no_update() {
    let bench = bench("digests").await;
    let steps = bench.database.collection::<Document>("execution_steps");
    one(&bench.store, create("e")).await.unwrap();
    for (step_id, digests) in [
        (1, doc! { "digests": null }),
        (2, doc! { "digests": "mine" }),
        (3, doc! { "digests": { "start": "s", "writes": null } }),
        (4, doc! { "digests": [1] }),
    ] {
        one(&bench.store, start("e", Some(step_id), "s")).await.unwrap();
        let named = doc! { "execution_id": "e", "step_id": step_id };
        steps.update_one(named.clone(), doc! { "$set": digests }).await.unwrap();
        // Beside one whose digests are as they were.
        let other = 10 + step_id;
        one(&bench.store, start("e", Some(other), "s")).await.unwrap();
        let outcomes = bench.store.apply(vec![fail("e", step_id), fail("e", other)]).await.outcomes;
        for outcome in outcomes {
            assert_eq!(step_of(outcome.unwrap()).status, Some(StepStatus::Failed), "{step_id}");
        }
        let again = step_of(one(&bench.store, start("e", Some(step_id), "s")).await.unwrap());
        assert_eq!((again.retry_count, again.attempts.len()), (1, 1));
        let stored = steps.find_one(named).await.unwrap().unwrap();
        let digests = stored.get_document("digests").unwrap();
        assert_eq!(digests.get_array("writes").unwrap().len(), 4, "{digests}");
        assert!(digests.contains_key("start"), "{digests}");
    }
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_database_loses_no_acknowledged_write_and_doubles_none() {
    let mut mongod = tokio::task::spawn_blocking(support::mongod::Mongod::start).await.unwrap();
    let bench = bench_on(&mongod.uri(), "kill").await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (done, progress) = tokio::sync::watch::channel(0_usize);
    let lanes: Vec<_> = (0..4)
        .map(|lane| {
            let (store, stop) = (Arc::clone(&bench.store), Arc::clone(&stop));
            let done = done.clone();
            tokio::spawn(async move {
                let id = format!("e{lane}");
                one(&store, create(&id)).await.unwrap();
                let mut acknowledged = Vec::new();
                let mut batch = 0;
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    batch += 1;
                    let names: Vec<String> = (0..8).map(|n| format!("s{batch}-{n}")).collect();
                    let mut writes: Vec<Write> =
                        names.iter().map(|name| start(&id, None, name)).collect();
                    let last = acknowledged.last().map(|(step_id, _)| *step_id);
                    writes.extend(last.map(|step_id| finish_step(&id, step_id)));
                    let outcomes = store.apply(writes).await.outcomes;
                    for (name, outcome) in names.into_iter().zip(outcomes) {
                        match outcome {
                            Ok(answer) => {
                                acknowledged.push((step_of(answer).step_id, name));
                                done.send_modify(|done| *done += 1);
                            }
                            Err(Error::Unavailable(_)) => {}
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                }
                (id, acknowledged)
            })
        })
        .collect();
    // In the midst of the work each time, and it goes on after the last.
    let more = async |count: usize| {
        let mut progress = progress.clone();
        let wanted = *progress.borrow() + count;
        let wait = progress.wait_for(|done| *done >= wanted);
        in_time("writes that go on", wait).await.unwrap();
    };
    for _ in 0..2 {
        more(200).await;
        mongod = tokio::task::spawn_blocking(move || {
            mongod.kill();
            mongod.restart();
            mongod
        })
        .await
        .unwrap();
    }
    more(200).await;
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let steps = bench.database.collection::<Document>("execution_steps");
    for lane in lanes {
        let (id, acknowledged) = lane.await.unwrap();
        assert!(acknowledged.len() > 16, "{}", acknowledged.len());
        let mut names = std::collections::HashMap::new();
        let mut found = steps.find(doc! { "execution_id": &id }).await.unwrap();
        while found.advance().await.unwrap() {
            let step = found.deserialize_current().unwrap();
            let before = names.insert(
                step.get_str("step_name").unwrap().to_owned(),
                step.get_i32("step_id").unwrap(),
            );
            assert_eq!(before, None, "applied twice: {step}");
        }
        for (step_id, name) in acknowledged {
            assert_eq!(names.get(&name), Some(&step_id), "{name} of {id} was acknowledged");
        }
    }
    bench.end().await;
    tokio::task::spawn_blocking(move || drop(mongod)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_database_is_unavailable_at_once_and_in_time() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let options = MongoOptions {
        uri: format!("mongodb://u:secret@127.0.0.1:{port}/"),
        database: "nowhere".to_owned(),
        server_selection_timeout_ms: 300,
        ..MongoOptions::default()
    };
    assert!(!format!("{options:?}").contains("secret"));
    let begun = Instant::now();
    let store = MongoStore::connect(options, Limits::default(), Arc::new(SystemClock)).unwrap();
    for outcome in [
        one(&store, create("e")).await.map(drop),
        store.ping().await,
        store.execution("e").await.map(drop),
        store.secret().await.map(drop),
        store.log().unwrap().position().await.map(drop),
    ] {
        assert!(matches!(outcome, Err(Error::Unavailable(_))), "{outcome:?}");
        assert!(!format!("{outcome:?}").contains("secret"));
    }
    assert!(begun.elapsed() < PATIENCE);
    let bad = MongoOptions { uri: "mongodb://a:se:cret@@".to_owned(), ..MongoOptions::default() };
    let refused = MongoStore::connect(bad, Limits::default(), Arc::new(SystemClock));
    let Err(Error::Failed(source)) = refused else { panic!("taken") };
    assert!(!source.to_string().contains("cret"));
}

async fn changes(reader: &mut dyn ChangeReader, count: usize) -> Vec<stepwell::store::Change> {
    let mut all = Vec::new();
    while all.len() < count {
        let more = in_time("more changes", reader.next()).await;
        all.extend(more.unwrap());
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_tells_every_change_in_order_and_resumes() {
    let bench = bench("log").await;
    let log = bench.store.log().unwrap();
    let mut reader = log.open(None).await.unwrap();
    one(&bench.store, create("a/b")).await.unwrap();
    one(&bench.store, start("a/b", None, "s")).await.unwrap();
    one(&bench.store, finish_step("a/b", 1)).await.unwrap();
    one(&bench.store, finish("a/b", ExecutionStatus::Completed)).await.unwrap();
    let executions = bench.database.collection::<Document>("executions");
    let foreign = doc! { "$set": { "metadata.x": 1 } };
    executions.update_one(doc! { "execution_id": "a/b" }, foreign).await.unwrap();
    let delete = write("a/b", Op::Execution(ExecutionOp::Delete { force: false }));
    one(&bench.store, delete).await.unwrap();
    bench.store.remove("a/b").await.unwrap();
    let told = changes(reader.as_mut(), 8).await;
    let kinds: Vec<ChangeKind> = told.iter().map(|change| change.kind).collect();
    use ChangeKind::{Created, Deleted, Updated};
    assert_eq!(kinds, [Created, Created, Updated, Updated, Updated, Deleted, Deleted, Deleted]);
    assert_eq!(told[0].what, Changed::Record(RecordKey::execution("a/b")));
    assert_eq!(told[1].what, Changed::Record(RecordKey::step("a/b", 1)));
    assert!(told[1].body.is_some() && told[1].revision.is_some());
    assert_eq!(told[2].what, Changed::Record(RecordKey::step("a/b", 1)));
    assert!(told[2].status_changed && !told[2].metadata_changed && told[2].body.is_none());
    assert!(
        matches!(told[4].what, Changed::Unknown { collection: Collection::Executions, .. }),
        "{:?}",
        told[4]
    );
    assert!(told[4].metadata_changed && !told[4].status_changed && told[4].revision.is_none());
    assert_eq!(told[5].what, Changed::Record(RecordKey::execution("a/b")));
    assert_eq!(told[4].document_id, told[0].document_id);
    assert!(told.windows(2).all(|pair| pair[0].cursor < pair[1].cursor));
    let positions: Vec<u64> =
        told.iter().map(|change| log.position_of(&change.cursor).unwrap()).collect();
    assert!(positions.windows(2).all(|pair| pair[0] <= pair[1]));
    // Resumed after the third, by another server.
    let other = open(&bench.uri, bench.database.name()).await;
    let mut resumed = other.log().unwrap().open(Some(&told[2].cursor)).await.unwrap();
    let rest = changes(resumed.as_mut(), 5).await;
    assert_eq!(rest, told[3..].to_vec());
    // The position of an idle log moves all the same.
    let barrier = log.position().await.unwrap();
    let passed = async {
        while log.position_of(&reader.cursor()).unwrap() < barrier {
            reader.next().await.unwrap();
        }
    };
    in_time("a position that moves", passed).await;
    // Forged ones.
    let forged = log.open(Some(&stepwell::store::Cursor(b"nonsense".to_vec()))).await;
    assert!(matches!(forged, Err(Error::BadCursor)));
    let mut old = told[0].cursor.clone();
    old.0[1..5].copy_from_slice(&1_u32.to_be_bytes());
    let expired = log.open(Some(&old)).await.map(drop);
    assert!(matches!(expired, Err(Error::CursorExpired)), "{expired:?}");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn load_finds_records_by_key_and_by_document() {
    let bench = bench("load").await;
    one(&bench.store, create("e")).await.unwrap();
    one(&bench.store, start("e", None, "s")).await.unwrap();
    let steps = bench.database.collection::<Document>("execution_steps");
    let step = steps.find_one(doc! {}).await.unwrap().unwrap();
    let mut id = Vec::new();
    doc! { "_id": step.get_object_id("_id").unwrap() }.to_writer(&mut id).unwrap();
    let asked = [
        Changed::Record(RecordKey::execution("e")),
        Changed::Record(RecordKey::step("e", 1)),
        Changed::Unknown { collection: Collection::Steps, id },
        Changed::Record(RecordKey::step("e", 2)),
        Changed::Record(RecordKey::execution("gone")),
    ];
    let log = bench.store.log().unwrap();
    let found = log.load(&asked, true).await.unwrap();
    let mut answered: Vec<&Changed> = found.iter().map(|(changed, _)| changed).collect();
    answered.sort_by_key(|changed| asked.iter().position(|asked| asked == *changed));
    assert_eq!(answered, asked[..3].iter().collect::<Vec<_>>());
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_walk_all_records_once_without_a_sort() {
    let bench = bench("pages").await;
    let executions = bench.database.collection::<Document>("executions");
    let mut documents = Vec::new();
    for n in 0..300_i32 {
        // Ties on purpose, and imported records without a start.
        let started_at = match n % 10 {
            0 => Bson::Null,
            _ => Bson::DateTime(DateTime::from_millis(1_700_000_000_000 + i64::from(n / 7))),
        };
        documents.push(doc! {
            "execution_id": format!("e{n:03}"), "app_id": n % 3, "sub_app_id": n % 2,
            "app_name": format!("app{}", n % 3), "user_id": format!("u{}", n % 5),
            "status": if n % 4 == 0 { "failed" } else { "completed" },
            "started_at": started_at, "metadata": { "n": n },
        });
    }
    executions.insert_many(&documents).await.unwrap();
    let filters = [
        ExecutionFilter::default(),
        ExecutionFilter { app_ids: vec![1], ..ExecutionFilter::default() },
        ExecutionFilter { app_ids: vec![0, 1], sub_app_ids: vec![1], ..ExecutionFilter::default() },
        ExecutionFilter {
            user_ids: vec!["u1".to_owned(), "u2".to_owned()],
            app_ids: vec![0, 2],
            statuses: vec![ExecutionStatus::Failed],
            ..ExecutionFilter::default()
        },
        ExecutionFilter {
            statuses: vec![ExecutionStatus::Failed],
            started_at_from: Some(1_700_000_000_003),
            started_at_until: Some(1_700_000_000_030),
            ..ExecutionFilter::default()
        },
        ExecutionFilter { app_names: vec!["app2".to_owned()], ..ExecutionFilter::default() },
        ExecutionFilter {
            metadata: vec![(vec!["n".to_owned()], Bson::Int64(77))],
            ..ExecutionFilter::default()
        },
    ];
    bench.database.run_command(doc! { "profile": 2 }).await.unwrap();
    for filter in &filters {
        for order in [ExecutionOrder::StartedAtDesc, ExecutionOrder::StartedAtAsc] {
            for (limit, examine) in [(7, 1000), (1000, 1000), (50, 11)] {
                let mut query =
                    ExecutionQuery { filter: filter.clone(), order, after: None, limit, examine };
                let mut found = Vec::new();
                loop {
                    let page = bench.store.executions(&query).await.unwrap();
                    assert!(page.records.len() <= limit);
                    found.extend(page.records);
                    match page.next {
                        None => break,
                        Some(next) => query.after = Some(next),
                    }
                }
                let whole = ExecutionQuery { after: None, limit: 1000, examine: 1000, ..query };
                let whole = bench.store.executions(&whole).await.unwrap();
                assert_eq!(found, whole.records, "{filter:?} {order:?} {limit} {examine}");
                let mut sorted = found.clone();
                sorted.sort_by_key(|e| (e.started_at, e.execution_id.clone()));
                if order == ExecutionOrder::StartedAtDesc {
                    sorted.reverse();
                }
                assert_eq!(found, sorted);
                let expected = documents.iter().filter(|document| {
                    let mut raw = (*document).clone();
                    raw.remove("_id");
                    found.iter().any(|e| e.execution_id == raw.get_str("execution_id").unwrap())
                });
                assert_eq!(expected.count(), found.len());
            }
        }
    }
    bench.database.run_command(doc! { "profile": 0 }).await.unwrap();
    let profile = bench.database.collection::<Document>("system.profile");
    let sorted = profile
        .find_one(doc! { "ns": executions.namespace().to_string(), "$or": [
            { "hasSortStage": true },
            { "planSummary": "COLLSCAN", "op": "query" },
        ] })
        .await
        .unwrap();
    assert!(sorted.is_none(), "{sorted:?}");
    let looked = profile
        .count_documents(doc! { "ns": executions.namespace().to_string(), "op": "query" })
        .await
        .unwrap();
    assert!(looked > 100);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_of_another_program_are_used_and_conflicts_are_lived_with() {
    let uri = support::mongod::shared();
    let client = Client::with_uri_str(uri).await.unwrap();
    let database = client.database(&format!("stepwell_indexes_{}", std::process::id()));
    database.drop().await.unwrap();
    let command = doc! { "createIndexes": "executions", "indexes": [
        { "key": { "execution_id": 1 }, "name": "theirs", "unique": true },
        { "key": { "user_id": 1, "started_at": -1, "execution_id": -1 }, "name": "also_theirs" },
        // In the way of ours.
        { "key": { "status": 1, "started_at": -1, "execution_id": -1 }, "name": "part",
          "partialFilterExpression": { "status": "running" } },
    ] };
    database.run_command(command).await.unwrap();
    // Two steps of one id: ours cannot be unique.
    let steps = database.collection::<Document>("execution_steps");
    let twin = doc! { "execution_id": "old", "step_id": 1, "step_name": "s" };
    steps.insert_many([twin.clone(), twin]).await.unwrap();
    let store = open(uri, database.name()).await;
    let executions = database.collection::<Document>("executions");
    let names = executions.list_index_names().await.unwrap();
    assert_eq!(
        names.iter().filter(|name| name.starts_with("execution_id")).count(),
        0,
        "{names:?}"
    );
    let theirs = names.iter().filter(|name| name.starts_with("user_id_1_started_at"));
    assert_eq!(theirs.count(), 0, "{names:?}");
    // Without a unique index it looks before it inserts.
    one(&store, create("e")).await.unwrap();
    one(&store, start("e", Some(1), "s")).await.unwrap();
    assert_eq!(step_of(one(&store, start("e", None, "t")).await.unwrap()).step_id, 2);
    let refused = one(&store, start("e", Some(1), "other")).await;
    assert!(matches!(refused, Err(Error::Refused(Refusal::StepExists { .. }))), "{refused:?}");
    let failed = ExecutionQuery {
        filter: ExecutionFilter {
            statuses: vec![ExecutionStatus::Failed],
            ..ExecutionFilter::default()
        },
        order: ExecutionOrder::StartedAtDesc,
        after: None,
        limit: 10,
        examine: 100,
    };
    assert!(store.executions(&failed).await.unwrap().records.is_empty());
    // A second start finds everything in place.
    let again = open(uri, database.name()).await;
    assert_eq!(again.secret().await.unwrap(), store.secret().await.unwrap());
    database.drop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_judged_by_steps_too_and_heartbeats_are_no_change() {
    let bench = bench("leases").await;
    let request = CreateExecution {
        app_name: "app".to_owned(),
        heartbeat_timeout_ms: Some(1_000),
        ..CreateExecution::default()
    };
    let op =
        |request: &CreateExecution| Op::Execution(ExecutionOp::Create(Box::new(request.clone())));
    let now = SystemClock.now();
    let before = stepwell::domain::Now { micros: now.micros - 5_000_000 };
    for id in ["silent", "busy"] {
        let write = Write {
            execution_id: id.to_owned(),
            op: op(&request),
            now: before,
            scope: Default::default(),
            asked: None,
        };
        one(&bench.store, write).await.unwrap();
    }
    one(&bench.store, start("busy", None, "s")).await.unwrap();
    let mut leases = bench.store.leases().await.unwrap();
    leases.sort_by(|a, b| a.execution_id.cmp(&b.execution_id));
    let shown = leases
        .iter()
        .map(|lease| (lease.execution_id.as_str(), lease.heartbeat_timeout_ms, lease.sign.at));
    let at = Some(before.millis());
    assert_eq!(shown.collect::<Vec<_>>(), [("busy", 1_000, at), ("silent", 1_000, at)]);
    let ids = ["busy", "silent"].map(str::to_owned);
    let signs = bench.store.signs_in_steps(&ids, now.millis()).await.unwrap();
    assert_eq!(signs.keys().collect::<Vec<_>>(), ["busy"]);
    assert!(signs["busy"].at >= Some(now.millis()), "{signs:?}");
    // Whatever the clock says, a write is another sign.
    let earlier = Write { now: before, ..start("busy", None, "t") };
    one(&bench.store, earlier).await.unwrap();
    let again = bench.store.signs_in_steps(&ids, now.millis()).await.unwrap();
    assert_eq!(again["busy"].at, signs["busy"].at);
    assert_ne!(again, signs);
    let log = bench.store.log().unwrap();
    let mut reader = log.open(None).await.unwrap();
    let beat = write("silent", Op::Execution(ExecutionOp::Heartbeat));
    let applied = bench.store.apply(vec![beat]).await;
    assert!(applied.written.is_empty() && applied.outcomes[0].is_ok());
    let stored = bench.store.execution("silent").await.unwrap().unwrap();
    assert!(stored.last_heartbeat_at.is_some());
    one(&bench.store, finish("silent", ExecutionStatus::Completed)).await.unwrap();
    let told = changes(reader.as_mut(), 1).await;
    assert!(told[0].status_changed, "{told:?}");
    assert_eq!(bench.store.leases().await.unwrap().len(), 1);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_are_listed_without_payloads() {
    let bench = bench("steps").await;
    one(&bench.store, create("e")).await.unwrap();
    let batch = (0..30).map(|n| start("e", None, &format!("s{n}"))).collect();
    assert!(bench.store.apply(batch).await.outcomes.iter().all(Result::is_ok));
    one(&bench.store, finish_step("e", 17)).await.unwrap();
    let mut query = StepQuery {
        execution_id: "e".to_owned(),
        statuses: vec![],
        after: None,
        limit: 7,
        examine: 100,
        payloads: None,
    };
    let mut found = Vec::new();
    loop {
        let page = bench.store.steps(&query).await.unwrap();
        found.extend(page.records.iter().map(|step| step.step_id));
        assert!(page.records.iter().all(|step| step.input.value().is_none()));
        match page.next {
            Some(next) => query.after = Some(next),
            None => break,
        }
    }
    assert_eq!(found, (1..=30).collect::<Vec<i32>>());
    let query =
        StepQuery { statuses: vec![StepStatus::Completed], after: None, examine: 10, ..query };
    let page = bench.store.steps(&query).await.unwrap();
    assert!(page.records.is_empty());
    assert_eq!(page.next, Some(10));
    bench.end().await;
}
