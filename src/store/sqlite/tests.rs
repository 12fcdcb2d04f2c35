//! What the shared suite cannot see from outside.

use std::collections::HashSet;

use bson::{Bson, doc};

use super::*;
use crate::clock::ManualClock;
use crate::domain::access::AppScope;
use crate::domain::execution::CreateExecution;
use crate::domain::query::{ExecutionFilter, ExecutionOrder};
use crate::domain::step::StepFields;
use crate::domain::{Attempt, ExecutionOp, ExecutionStatus, Now, Payload, RunError, StepOp};
use crate::domain::{Refusal, StepStatus};
use crate::store::{Answer, ChangeKind, Changed, Cursor, Op, Record, RecordKey};

const NOW_MS: i64 = 1_700_000_000_000;

struct Fixture {
    store: Arc<SqliteStore>,
    clock: Arc<ManualClock>,
    dir: tempfile::TempDir,
}

fn open(dir: &Path, options: SqliteOptions, clock: &Arc<ManualClock>) -> Arc<SqliteStore> {
    let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(clock);
    SqliteStore::open(dir, options, Limits::default(), clock).unwrap()
}

fn fixture_with(options: SqliteOptions) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(NOW_MS * 1000));
    Fixture { store: open(dir.path(), options, &clock), clock, dir }
}

fn quick() -> SqliteOptions {
    SqliteOptions { synchronous: Synchronous::Normal, ..SqliteOptions::default() }
}

fn fixture() -> Fixture {
    fixture_with(quick())
}

fn write(id: &str, op: Op) -> Write {
    Write {
        execution_id: id.to_owned(),
        op,
        now: Now { micros: NOW_MS * 1000 },
        scope: AppScope::all(),
        asked: None,
    }
}

fn create_with(id: &str, request: CreateExecution) -> Write {
    write(id, Op::Execution(ExecutionOp::Create(Box::new(request))))
}

fn create(id: &str) -> Write {
    create_with(id, CreateExecution { app_name: "app".to_owned(), ..CreateExecution::default() })
}

fn delete(id: &str) -> Write {
    write(id, Op::Execution(ExecutionOp::Delete { force: true }))
}

fn by_id(step_id: i32) -> StepRef {
    StepRef { step_id: Some(step_id), step_key: None }
}

fn start_with(id: &str, named: StepRef, fields: StepFields) -> Write {
    let op = StepOp::Start { step_name: "work".to_owned(), fields, attempt: None };
    write(id, Op::Step { named, op: Box::new(op) })
}

fn start(id: &str, step_id: i32) -> Write {
    start_with(id, by_id(step_id), StepFields::default())
}

fn update_output(id: &str, step_id: i32, output: Bson) -> Write {
    let op = StepOp::Update {
        progress: None,
        progress_message: None,
        metadata: bson::Document::new(),
        output: Some(output),
        update_sequence: None,
    };
    write(id, Op::Step { named: by_id(step_id), op: Box::new(op) })
}

async fn apply(store: &SqliteStore, writes: Vec<Write>) -> Vec<Result<Answer>> {
    store.apply(writes).await.outcomes
}

async fn apply_all(store: &SqliteStore, writes: Vec<Write>) {
    for outcome in apply(store, writes).await {
        outcome.unwrap();
    }
}

fn newest_first(filter: ExecutionFilter, limit: usize, examine: usize) -> ExecutionQuery {
    ExecutionQuery { filter, order: ExecutionOrder::StartedAtDesc, after: None, limit, examine }
}

#[tokio::test]
async fn a_second_server_on_the_directory_is_refused_until_the_first_has_closed() {
    let first = fixture();
    let again = || {
        let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&first.clock);
        SqliteStore::open(first.dir.path(), quick(), Limits::default(), clock)
    };
    assert!(matches!(again(), Err(OpenError::InUse { .. })));
    apply_all(&first.store, vec![create("e")]).await;
    first.store.close().await;
    let second = again().unwrap();
    assert!(second.execution("e").await.unwrap().is_some());
    assert!(matches!(apply(&first.store, vec![create("f")]).await[0], Err(Error::Unavailable(_))));
}

#[tokio::test]
async fn a_record_comes_back_with_every_type_of_bson() {
    let Fixture { store, dir: _dir, .. } = fixture();
    let value = doc! {
        "a.b": 1_i32, "$c": 2_i64, "d": 1.5, "e": bson::DateTime::from_millis(7), "": Bson::Null,
        "f": bson::oid::ObjectId::from_bytes([7; 12]), "g": [true, "x", {}],
        "h": bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: vec![1, 2] },
        "i": bson::Timestamp { time: 1, increment: 2 }, "j": "1.5".parse::<bson::Decimal128>().unwrap(),
    };
    let error = RunError {
        message: "m".to_owned(),
        code: "c".to_owned(),
        stack_trace: "s".to_owned(),
        details: value.clone(),
    };
    let step = Step {
        execution_id: "e".to_owned(),
        step_id: 3,
        step_key: Some("key".to_owned()),
        step_name: "work".to_owned(),
        step_version: Some("1".to_owned()),
        status: Some(StepStatus::Failed),
        started_at: Some(1),
        completed_at: Some(2),
        duration_ms: Some(1),
        input: Payload::Value(Bson::Document(value.clone())),
        output: Payload::Value(Bson::String("x".repeat(3 * rows::INLINE_BYTES))),
        error: Some(error.clone()),
        retry_count: 2,
        metadata: value.clone(),
        revision: 0,
        created_at: None,
        updated_at: Some(4),
        depends_on: vec![1, 2],
        depends_on_keys: vec!["a".to_owned(), "\"b".to_owned()],
        parent_step_id: Some(1),
        parent_step_key: Some("p".to_owned()),
        progress: Some(0.5),
        progress_message: Some("half".to_owned()),
        update_sequence: Some(6),
        mirrored_position: None,
        mirrored_revision: None,
        attempts: vec![
            Attempt {
                started_at: Some(1),
                completed_at: None,
                duration_ms: Some(3),
                error: Some(error.clone()),
            },
            Attempt::default(),
        ],
        digests: Default::default(),
    };
    let execution = Execution {
        execution_id: "e".to_owned(),
        app_id: Some(-1),
        app_name: "app".to_owned(),
        sub_app_id: Some(2),
        sub_app_name: Some("sub".to_owned()),
        user_id: Some("user".to_owned()),
        status: None,
        started_at: None,
        completed_at: Some(5),
        duration_ms: Some(0),
        error: Some(RunError { message: String::new(), ..RunError::default() }),
        metadata: value,
        created_at: Some(1),
        updated_at: None,
        revision: 0,
        heartbeat_timeout_ms: Some(1000),
        last_heartbeat_at: Some(6),
        cancel_requested_at: Some(7),
        cancel_reason: Some("why".to_owned()),
        parent_execution_id: Some("p".to_owned()),
        pinned: Some(false),
        odd_start: None,
        configuration_version: Some("v".to_owned()),
        update_sequence: Some(5),
        mirrored_position: None,
        mirrored_revision: None,
        digests: Default::default(),
        deleted_at: None,
    };
    let put_step = Op::Step { named: by_id(3), op: Box::new(StepOp::Put(Box::new(step.clone()))) };
    let put = Op::Execution(ExecutionOp::Put(Box::new(execution.clone())));
    apply_all(&store, vec![write("e", put), write("e", put_step)]).await;

    let mut stored = store.execution("e").await.unwrap().unwrap();
    assert!(stored.revision > 0);
    (stored.revision, stored.digests) = (0, Default::default());
    assert_eq!(stored, execution);
    let by_key = StepRef { step_id: None, step_key: Some("key".to_owned()) };
    let mut stored = store.step("e", &by_key, true).await.unwrap().unwrap();
    (stored.revision, stored.digests) = (0, Default::default());
    assert_eq!(stored, step);
}

#[tokio::test]
async fn an_output_is_merged_whether_it_stands_in_its_row_or_apart() {
    let Fixture { store, dir: _dir, .. } = fixture();
    let long = "x".repeat(2 * rows::INLINE_BYTES);
    apply_all(&store, vec![create("e"), start("e", 1)]).await;
    apply_all(&store, vec![update_output("e", 1, doc! { "a": 1 }.into())]).await;
    apply_all(&store, vec![update_output("e", 1, doc! { "b": &long }.into())]).await;
    apply_all(&store, vec![update_output("e", 1, doc! { "c": 3 }.into())]).await;
    let step = store.step("e", &by_id(1), true).await.unwrap().unwrap();
    let merged = doc! { "a": 1, "b": long, "c": 3 };
    assert_eq!(step.output, Payload::Value(merged.into()));
    apply_all(&store, vec![update_output("e", 1, Bson::from("short"))]).await;
    let step = store.step("e", &by_id(1), true).await.unwrap().unwrap();
    assert_eq!(step.output, Payload::Value(Bson::from("short")));
    assert_eq!(step.input, Payload::Value(doc! {}.into()));
}

#[tokio::test]
async fn a_write_that_cannot_be_stored_fails_alone() {
    let Fixture { store, dir: _dir, .. } = fixture();
    // BSON has no key with U+0000 in it. The edge refuses it; here it stands for any such write.
    let poison = CreateExecution { metadata: doc! { "a\0b": 1 }, ..CreateExecution::default() };
    let applied = store.apply(vec![create("a"), create_with("b", poison), create("c")]).await;
    assert!(applied.outcomes[0].is_ok());
    assert!(matches!(applied.outcomes[1], Err(Error::Failed(_))));
    assert!(applied.outcomes[2].is_ok());
    assert_eq!(applied.written.len(), 2);
    assert!(store.execution("c").await.unwrap().is_some());
    assert!(store.execution("b").await.unwrap().is_none());
    assert_eq!(store.log().unwrap().position().await.unwrap(), 2);
}

#[tokio::test]
async fn a_key_that_belongs_to_another_step_is_taken() {
    let Fixture { store, dir: _dir, .. } = fixture();
    let named = |step_id, key: Option<&str>| StepRef {
        step_id: Some(step_id),
        step_key: key.map(str::to_owned),
    };
    let plan = |step_id| {
        let op = StepOp::Plan { step_name: "work".to_owned(), fields: StepFields::default() };
        write("e", Op::Plan(vec![(by_id(step_id), op)]))
    };
    let first = start_with("e", named(1, Some("k")), StepFields::default());
    apply_all(&store, vec![create("e"), first, plan(2)]).await;
    let second = start_with("e", named(2, Some("k")), StepFields::default());
    let outcomes = apply(&store, vec![second, start("e", 3)]).await;
    assert!(matches!(outcomes[0], Err(Error::Refused(Refusal::StepExists { .. }))));
    assert!(outcomes[1].is_ok());
}

#[tokio::test]
async fn a_deleted_execution_takes_steps_and_payloads_along() {
    let Fixture { store, dir: _dir, .. } = fixture();
    let long = Bson::from("x".repeat(2 * rows::INLINE_BYTES));
    let fields = StepFields { input: Some(long), ..StepFields::default() };
    apply_all(&store, vec![create("e"), start_with("e", by_id(1), fields)]).await;
    apply_all(&store, vec![delete("e")]).await;
    store.remove("e").await.unwrap();
    let left: i64 = store
        .readers
        .run(|connection| {
            let sql = "SELECT (SELECT count(*) FROM executions) + (SELECT count(*) FROM steps) \
                       + (SELECT count(*) FROM step_payloads)";
            Ok(connection.query_row(sql, [], |row| row.get(0))?)
        })
        .await
        .unwrap();
    assert_eq!(left, 0);
    let mut reader = store.log().unwrap().open(Some(&Cursor(vec![0; 8]))).await.unwrap();
    let changes = reader.next().await.unwrap();
    let kinds: Vec<_> = changes.iter().map(|change| change.kind).collect();
    assert_eq!(kinds, [ChangeKind::Created, ChangeKind::Created, ChangeKind::Deleted]);
    assert_eq!(changes[2].what, Changed::Record(RecordKey::execution("e")));
    assert!(changes[2].revision > changes[0].revision);
}

#[tokio::test]
async fn an_execution_made_anew_has_none_of_the_old_steps() {
    let Fixture { store, dir: _dir, .. } = fixture();
    let keyed = |step_id| StepRef { step_id, step_key: Some("k".to_owned()) };
    let old = start_with("e", keyed(Some(1)), StepFields::default());
    apply_all(&store, vec![create("e"), old, start("e", 7)]).await;
    apply_all(&store, vec![delete("e")]).await;
    assert!(store.step("e", &by_id(1), true).await.unwrap().is_none());
    store.remove("e").await.unwrap();
    apply_all(&store, vec![create("f"), start("f", 1), create("e"), start("e", 2)]).await;
    let gone = [update_output("e", 1, Bson::Null), update_output("e", 7, Bson::Null)];
    for outcome in apply(&store, gone.to_vec()).await {
        assert!(matches!(outcome, Err(Error::Refused(Refusal::StepNotFound { .. }))));
    }
    let new = start_with("e", keyed(None), StepFields::default());
    match apply(&store, vec![new]).await.remove(0).unwrap() {
        Answer::Step(step) => assert_eq!(step.step_id, 3),
        other => panic!("{other:?}"),
    }
    let steps = StepQuery {
        execution_id: "e".to_owned(),
        statuses: Vec::new(),
        after: None,
        limit: 10,
        examine: 10,
        payloads: None,
    };
    let page = store.steps(&steps).await.unwrap();
    assert_eq!(page.records.iter().map(|step| step.step_id).collect::<Vec<_>>(), [2, 3]);
}

#[tokio::test]
async fn what_another_program_wrote_is_seen_by_the_next_write() {
    let Fixture { store, dir, .. } = fixture();
    apply_all(&store, vec![create("e"), start("e", 1)]).await;
    let theirs = Connection::open(dir.path().join(DATABASE_FILE)).unwrap();
    theirs.execute("UPDATE executions SET app_name = 'theirs', revision = 0", []).unwrap();
    let cancel = ExecutionOp::RequestCancel { reason: String::new() };
    match apply(&store, vec![write("e", Op::Execution(cancel))]).await.remove(0).unwrap() {
        Answer::Execution(execution) => assert_eq!(execution.app_name, "theirs"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_log_tells_every_change_once_and_in_order() {
    let Fixture { store, dir: _dir, .. } = fixture();
    let log = store.log().unwrap();
    let mut reader = log.open(None).await.unwrap();
    let finish = ExecutionOp::Finish {
        status: ExecutionStatus::Completed,
        error: None,
        completed_at: None,
        metadata: doc! { "a": 1 },
    };
    apply_all(&store, vec![create("e"), start("e", 1)]).await;
    // The same again is no change.
    apply_all(&store, vec![create("e"), start("e", 1)]).await;
    apply_all(&store, vec![write("e", Op::Execution(finish)), start("e", 2)]).await;
    let changes = reader.next().await.unwrap();
    let told: Vec<_> = changes
        .iter()
        .map(|change| {
            let Changed::Record(key) = &change.what else { panic!() };
            (key.step_id, change.kind, change.status_changed, change.metadata_changed)
        })
        .collect();
    assert_eq!(
        told,
        [
            (None, ChangeKind::Created, false, false),
            (Some(1), ChangeKind::Created, false, false),
            (None, ChangeKind::Updated, true, true),
            (Some(2), ChangeKind::Created, false, false),
        ]
    );
    assert_eq!(log.position_of(&reader.cursor()), Some(log.position().await.unwrap()));
    let keys: Vec<_> = changes.into_iter().map(|change| change.what).collect();
    let loaded = log.load(&keys, false).await.unwrap();
    assert_eq!(loaded.len(), 4);
    assert!(matches!(&loaded[1].1, Record::Step(step) if step.input == Payload::Stored));
}

#[tokio::test]
async fn a_change_wakes_a_waiting_reader() {
    let Fixture { store, dir: _dir, .. } = fixture();
    let mut reader = store.log().unwrap().open(None).await.unwrap();
    let waiting = tokio::spawn(async move {
        loop {
            let changes = reader.next().await.unwrap();
            if !changes.is_empty() {
                return changes;
            }
        }
    });
    tokio::task::yield_now().await;
    apply_all(&store, vec![create("e")]).await;
    assert_eq!(waiting.await.unwrap().len(), 1);
}

#[tokio::test]
async fn pruned_changes_expire_their_cursors_and_numbers_go_on_after_a_restart() {
    let options = SqliteOptions { changes_kept: 2, ..quick() };
    let Fixture { store, clock, dir } = fixture_with(options.clone());
    let log = store.log().unwrap();
    let start_of_log = log.open(None).await.unwrap().cursor();
    let mut slow = log.open(Some(&start_of_log)).await.unwrap();
    apply_all(&store, (0..5).map(|n| create(&format!("e{n}"))).collect()).await;
    store.sweep().await.unwrap();
    assert!(matches!(log.open(Some(&start_of_log)).await, Err(Error::CursorExpired)));
    assert!(matches!(slow.next().await, Err(Error::CursorExpired)));
    let third = Cursor(3_u64.to_be_bytes().to_vec());
    let mut reader = log.open(Some(&third)).await.unwrap();
    assert_eq!(reader.next().await.unwrap().len(), 2);

    clock.advance_ms(8 * 24 * 3600 * 1000);
    store.sweep().await.unwrap();
    assert!(matches!(log.open(Some(&third)).await, Err(Error::CursorExpired)));
    store.close().await;
    let store = open(dir.path(), options, &clock);
    let log = store.log().unwrap();
    assert_eq!(log.position().await.unwrap(), 5);
    let mut reader = log.open(None).await.unwrap();
    apply_all(&store, vec![create("f")]).await;
    assert_eq!(reader.next().await.unwrap()[0].cursor, Cursor(6_u64.to_be_bytes().to_vec()));
}

#[tokio::test]
async fn a_cursor_from_elsewhere_is_refused() {
    let Fixture { store, dir: _dir, .. } = fixture();
    let log = store.log().unwrap();
    for bytes in [vec![], vec![1, 2, 3], 9_u64.to_be_bytes().to_vec()] {
        assert!(matches!(log.open(Some(&Cursor(bytes))).await, Err(Error::BadCursor)));
    }
}

/// 60 executions of 3 apps and 2 users, half of them ended, some with equal or no start times.
async fn fill(store: &SqliteStore) {
    let mut writes = Vec::new();
    for n in 0..60_i32 {
        let id = format!("e{n:02}");
        let request = CreateExecution {
            app_id: Some(n % 3),
            app_name: format!("app{}", n % 3),
            sub_app_id: Some(n % 2),
            user_id: Some(format!("user{}", n % 2)),
            started_at: Some(NOW_MS + i64::from(n / 4)),
            metadata: doc! { "n": n },
            ..CreateExecution::default()
        };
        writes.push(create_with(&id, request));
        if n % 4 < 2 {
            let status = ExecutionStatus::ALL[1 + n as usize % 3];
            let finish = ExecutionOp::Finish {
                status,
                error: None,
                completed_at: None,
                metadata: bson::Document::new(),
            };
            writes.push(write(&id, Op::Execution(finish)));
        }
    }
    apply_all(store, writes).await;
    for id in ["x1", "x2"] {
        let stored = store.execution("e00").await.unwrap().unwrap();
        let imported = Execution { started_at: None, status: None, ..stored };
        apply_all(store, vec![write(id, Op::Execution(ExecutionOp::Put(Box::new(imported))))])
            .await;
    }
}

#[tokio::test]
async fn pages_of_every_filter_together_are_the_matches_in_order() {
    let Fixture { store, dir: _dir, .. } = fixture();
    fill(&store).await;
    let all =
        store.executions(&newest_first(ExecutionFilter::default(), 1000, 1000)).await.unwrap();
    assert_eq!(all.records.len(), 62);
    assert_eq!(all.next, None);
    let empty = ExecutionFilter::default;
    let statuses = vec![ExecutionStatus::Running, ExecutionStatus::Failed];
    let filters = [
        empty(),
        ExecutionFilter { user_ids: vec!["user1".into(), "user1".into()], ..empty() },
        ExecutionFilter { user_ids: vec!["user0".into()], statuses: statuses.clone(), ..empty() },
        ExecutionFilter { app_ids: vec![0, 2], ..empty() },
        ExecutionFilter { app_ids: vec![0, 2], sub_app_ids: vec![1], ..empty() },
        ExecutionFilter { app_ids: vec![1], statuses: statuses.clone(), ..empty() },
        ExecutionFilter { app_names: vec!["app1".into(), "none".into()], ..empty() },
        ExecutionFilter { statuses, started_at_until: Some(NOW_MS + 9), ..empty() },
        ExecutionFilter { sub_app_ids: vec![0], started_at_from: Some(NOW_MS + 3), ..empty() },
        ExecutionFilter {
            app_ids: vec![0, 1, 2],
            started_at_from: Some(NOW_MS + 3),
            started_at_until: Some(NOW_MS + 9),
            ..empty()
        },
        ExecutionFilter { started_at_from: Some(5), started_at_until: Some(5), ..empty() },
        ExecutionFilter { min_duration_ms: Some(1), ..empty() },
        ExecutionFilter { metadata: vec![(vec!["n".into()], Bson::Int64(7))], ..empty() },
    ];
    for filter in filters {
        let newest: Vec<_> =
            all.records.iter().filter(|execution| filter.matches(execution)).cloned().collect();
        let oldest: Vec<_> = newest.iter().rev().cloned().collect();
        for (order, expected) in
            [(ExecutionOrder::StartedAtDesc, newest), (ExecutionOrder::StartedAtAsc, oldest)]
        {
            for (limit, examine) in [(1, 7), (5, 1000), (1000, 3)] {
                let mut query =
                    ExecutionQuery { order, ..newest_first(filter.clone(), limit, examine) };
                let mut found = Vec::new();
                loop {
                    let page = store.executions(&query).await.unwrap();
                    assert!(page.records.len() <= limit.min(examine));
                    found.extend(page.records);
                    query.after = page.next;
                    if query.after.is_none() {
                        break;
                    }
                }
                assert_eq!(found, expected, "{filter:?} {order:?} {limit} {examine}");
            }
        }
    }
}

#[tokio::test]
async fn a_page_ends_where_the_examined_records_end() {
    let Fixture { store, dir: _dir, .. } = fixture();
    fill(&store).await;
    let rare = vec![(vec!["n".to_owned()], Bson::Int32(0))];
    let filter = ExecutionFilter { metadata: rare, ..ExecutionFilter::default() };
    let page = store.executions(&newest_first(filter, 10, 20)).await.unwrap();
    assert_eq!(page.records, []);
    assert_eq!(page.next.unwrap().execution_id, "e40");

    apply_all(&store, (1..=9).map(|step_id| start("e40", step_id)).collect()).await;
    let query = StepQuery {
        execution_id: "e40".to_owned(),
        statuses: vec![StepStatus::Failed],
        after: None,
        limit: 10,
        examine: 4,
        payloads: None,
    };
    let page = store.steps(&query).await.unwrap();
    assert_eq!((page.records.len(), page.next), (0, Some(4)));
    let running =
        StepQuery { statuses: vec![StepStatus::Running], after: Some(4), limit: 5, ..query };
    let page = store.steps(&StepQuery { examine: 100, ..running }).await.unwrap();
    let ids: Vec<_> = page.records.iter().map(|step| step.step_id).collect();
    assert_eq!((ids, page.next), (vec![5, 6, 7, 8, 9], None));
}

#[tokio::test]
async fn every_list_is_one_walk_along_an_index() {
    let Fixture { store, dir: _dir, .. } = fixture();
    let empty = ExecutionFilter::default;
    let after =
        ExecutionKey { started_at: Some(1), execution_id: "e".to_owned(), odd: None, passed: 0 };
    let filters = [
        empty(),
        ExecutionFilter { user_ids: vec!["u".into()], ..empty() },
        ExecutionFilter { app_ids: vec![1], ..empty() },
        ExecutionFilter { app_ids: vec![1], sub_app_ids: vec![1], ..empty() },
        ExecutionFilter { app_names: vec!["a".into()], ..empty() },
        ExecutionFilter { statuses: vec![ExecutionStatus::Failed], ..empty() },
        ExecutionFilter { app_ids: (0..50).collect(), min_duration_ms: Some(9), ..empty() },
        ExecutionFilter {
            user_ids: vec!["u".into(), "v".into()],
            statuses: vec![ExecutionStatus::Failed],
            ..empty()
        },
    ];
    let mut queries = Vec::new();
    for filter in filters {
        for order in [ExecutionOrder::StartedAtDesc, ExecutionOrder::StartedAtAsc] {
            for after in [None, Some(after.clone())] {
                for window in [None, Some(0)] {
                    let filter = ExecutionFilter {
                        started_at_from: window,
                        started_at_until: window.map(|_| 10),
                        ..filter.clone()
                    };
                    let after = after.clone();
                    queries.push(ExecutionQuery { filter, order, after, limit: 1, examine: 1 });
                }
            }
        }
    }
    let plans = store
        .readers
        .run(move |connection| {
            let mut plans = HashSet::new();
            for query in queries {
                for (sql, values) in lists::scans(&query) {
                    let bounded = sql.contains("started_at <") || sql.contains("started_at >");
                    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
                    let mut rows = statement.query(rusqlite::params_from_iter(values))?;
                    while let Some(row) = rows.next()? {
                        plans.insert((bounded, row.get::<_, String>(3)?));
                    }
                }
            }
            let sql = format!("EXPLAIN QUERY PLAN {}", lists::STEPS_BY_STATUS);
            let mut statement = connection.prepare(&sql)?;
            let mut rows = statement.query(rusqlite::params!["[\"e\"]", 1])?;
            while let Some(row) = rows.next()? {
                let plan: String = row.get(3)?;
                // The ids that were asked for are a list, and no table.
                if !plan.contains("json_each") && !plan.contains("SUBQUERY") {
                    plans.insert((false, plan));
                }
            }
            Ok(plans)
        })
        .await
        .unwrap();
    assert!(plans.len() >= 8);
    for (bounded, plan) in plans {
        assert!(plan.contains("INDEX") && !plan.contains("TEMP B-TREE"), "{plan}");
        assert!(!bounded || plan.contains("started_at"), "{plan}");
        // All executions without a window are a walk along the whole of one index.
        let whole = plan == "SCAN executions USING INDEX executions_started";
        assert!(whole || plan.starts_with("SEARCH"), "{plan}");
    }
}

#[tokio::test]
async fn a_lease_counts_signs_of_life_of_the_steps() {
    let Fixture { store, dir: _dir, .. } = fixture();
    let leased = |id, timeout_ms| {
        create_with(
            id,
            CreateExecution { heartbeat_timeout_ms: Some(timeout_ms), ..Default::default() },
        )
    };
    apply_all(&store, vec![leased("a", 1000), leased("b", 1000), leased("c", 9000), create("d")])
        .await;
    let later = Write { now: Now { micros: (NOW_MS + 800) * 1000 }, ..start("b", 1) };
    apply_all(&store, vec![later]).await;
    let mut leases: Vec<(String, i64, Option<Millis>)> = store
        .leases()
        .await
        .unwrap()
        .into_iter()
        .map(|lease| (lease.execution_id, lease.heartbeat_timeout_ms, lease.sign.at))
        .collect();
    leases.sort();
    let at = Some(NOW_MS);
    assert_eq!(
        leases,
        [("a".to_owned(), 1000, at), ("b".to_owned(), 1000, at), ("c".to_owned(), 9000, at)]
    );
    let ids = ["a", "b", "nowhere"].map(str::to_owned);
    let before = store.signs_in_steps(&ids, NOW_MS).await.unwrap();
    assert_eq!(before.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(before["b"].at, Some(NOW_MS + 800));
    // Whatever the clock says, a write is another sign.
    let earlier = Write { now: Now { micros: NOW_MS * 500 }, ..start("b", 2) };
    apply_all(&store, vec![earlier]).await;
    let after = store.signs_in_steps(&ids, NOW_MS).await.unwrap();
    assert_eq!(after["b"].at, before["b"].at);
    assert_ne!(after["b"], before["b"]);
}

#[tokio::test]
async fn concurrent_calls_all_get_their_own_answers() {
    let Fixture { store, dir: _dir, .. } = fixture();
    let calls = (0..50).map(|n| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let id = format!("e{n}");
            let outcomes =
                apply(&store, vec![create(&id), start("nowhere", 1), start(&id, 1)]).await;
            assert!(matches!(&outcomes[0], Ok(Answer::Execution(e)) if e.execution_id == id));
            assert!(matches!(outcomes[1], Err(Error::Refused(Refusal::ExecutionNotFound { .. }))));
            assert!(matches!(&outcomes[2], Ok(Answer::Step(step)) if step.execution_id == id));
            assert!(store.step(&id, &by_id(1), true).await.unwrap().is_some());
        })
    });
    for call in futures::future::join_all(calls).await {
        call.unwrap();
    }
    assert_eq!(store.log().unwrap().position().await.unwrap(), 100);
}

#[tokio::test]
async fn the_probe_waits_for_no_read() {
    let f = fixture();
    let all = u32::try_from(f.store.readers.count).unwrap();
    let _taken = f.store.readers.permits.acquire_many(all).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), f.store.ping()).await.unwrap().unwrap();
}
