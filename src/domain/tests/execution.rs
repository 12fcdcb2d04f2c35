use bson::doc;

use super::at;
use crate::domain::execution::{
    CreateExecution, Execution, ExecutionOp, SignOfLife, alive, decide,
};
use crate::domain::{Decision, ExecutionStatus, Refusal, RunError};

fn create(app_name: &str) -> ExecutionOp {
    ExecutionOp::Create(Box::new(CreateExecution {
        app_name: app_name.to_owned(),
        heartbeat_timeout_ms: Some(1000),
        ..CreateExecution::default()
    }))
}

fn finish(status: ExecutionStatus) -> ExecutionOp {
    ExecutionOp::Finish { status, error: None, completed_at: None, metadata: doc! {} }
}

/// Applies writes one after the other and returns the record and the last decision's kind.
fn run(ops: &[(i64, ExecutionOp)]) -> (Option<Execution>, Result<&'static str, Refusal>) {
    let mut stored = None;
    let mut last = Ok("none");
    for (ms, op) in ops {
        last = match decide("e", stored.as_ref(), op, at(*ms)) {
            Err(refusal) => Err(refusal),
            Ok(Decision::Keep) => Ok("keep"),
            Ok(Decision::Superseded) => Ok("superseded"),
            Ok(Decision::Put(record)) => {
                stored = Some(record);
                Ok("put")
            }
            Ok(Decision::Touch(record)) => {
                stored = Some(record);
                Ok("touch")
            }
            Ok(Decision::Remove) => {
                stored = None;
                Ok("remove")
            }
        };
    }
    (stored, last)
}

#[test]
fn a_repeated_create_keeps_the_record_even_after_other_updates() {
    let update = ExecutionOp::Update {
        metadata: doc! {"a": 1},
        pinned: None,
        expected_revision: None,
        update_sequence: None,
    };
    let (record, last) = run(&[(1, create("app")), (2, update), (3, create("app"))]);
    assert_eq!(last, Ok("keep"));
    assert_eq!(record.unwrap().metadata, doc! {"a": 1});
}

#[test]
fn other_content_under_a_taken_id_is_refused() {
    let (_, last) = run(&[(1, create("app")), (2, create("other"))]);
    assert_eq!(last, Err(Refusal::ExecutionExists { execution_id: "e".to_owned() }));
}

#[test]
fn absent_and_empty_metadata_are_the_same_request() {
    let foreign = Execution {
        digests: Default::default(),
        revision: 0,
        ..run(&[(1, create("app"))]).0.unwrap()
    };
    assert_eq!(decide("e", Some(&foreign), &create("app"), at(5)), Ok(Decision::Keep));
}

#[test]
fn one_end_wins_and_its_repetition_is_welcome() {
    use ExecutionStatus::{Cancelled, Completed, Failed, Running};
    for status in [Completed, Failed, Cancelled] {
        let (record, last) = run(&[(1, create("app")), (5, finish(status)), (9, finish(status))]);
        assert_eq!(last, Ok("keep"));
        assert_eq!(record.as_ref().unwrap().duration_ms, Some(4));
        for other in [Completed, Failed, Cancelled].into_iter().filter(|other| *other != status) {
            let refused = decide("e", record.as_ref(), &finish(other), at(10));
            assert!(matches!(refused, Err(Refusal::Status { .. })), "{status:?} -> {other:?}");
        }
        assert_ne!(status, Running);
    }
}

#[test]
fn the_same_end_with_other_content_is_refused() {
    let other = ExecutionOp::Finish {
        status: ExecutionStatus::Completed,
        error: None,
        completed_at: Some(77),
        metadata: doc! {},
    };
    let (_, last) = run(&[(1, create("app")), (2, finish(ExecutionStatus::Completed)), (3, other)]);
    assert!(matches!(last, Err(Refusal::ExecutionExists { .. })));
}

#[test]
fn an_end_before_the_start_lasts_zero_and_keeps_its_times() {
    let early = ExecutionOp::Finish {
        status: ExecutionStatus::Completed,
        error: None,
        completed_at: Some(400),
        metadata: doc! {},
    };
    let record = run(&[(1000, create("app")), (1001, early)]).0.unwrap();
    assert_eq!((record.duration_ms, record.completed_at), (Some(0), Some(400)));
}

#[test]
fn silence_marks_a_heartbeat_revives_and_a_finish_replaces() {
    let expire = ExecutionOp::Expire { seen: SignOfLife { at: Some(1), writes: 1000 } };
    let (marked, last) = run(&[(1, create("app")), (1001, expire.clone())]);
    assert_eq!(last, Ok("put"));
    let marked = marked.unwrap();
    assert!(marked.ended_for_silence());

    let (revived, _) =
        run(&[(1, create("app")), (1001, expire.clone()), (1500, ExecutionOp::Heartbeat)]);
    let revived = revived.unwrap();
    assert_eq!(revived.status, Some(ExecutionStatus::Running));
    assert_eq!((revived.error, revived.completed_at, revived.duration_ms), (None, None, None));
    assert!(revived.revision > marked.revision);

    let (replaced, last) =
        run(&[(1, create("app")), (1001, expire), (1500, finish(ExecutionStatus::Completed))]);
    assert_eq!(last, Ok("put"));
    assert_eq!(replaced.unwrap().status, Some(ExecutionStatus::Completed));
}

#[test]
fn a_sign_of_life_or_an_end_stops_the_mark() {
    let expire = ExecutionOp::Expire { seen: SignOfLife { at: Some(1), writes: 1000 } };
    let (_, last) =
        run(&[(1, create("app")), (900, ExecutionOp::Heartbeat), (1001, expire.clone())]);
    assert_eq!(last, Ok("keep"));
    let another = ExecutionOp::Expire { seen: SignOfLife { at: Some(1), writes: 999 } };
    assert_eq!(run(&[(1, create("app")), (1001, another)]).1, Ok("keep"));
    let ended = finish(ExecutionStatus::Failed);
    assert_eq!(run(&[(1, create("app")), (500, ended), (5000, expire)]).1, Ok("keep"));
}

#[test]
fn heartbeats_are_stored_once_a_quarter_and_are_no_change() {
    let beat = ExecutionOp::Heartbeat;
    let (first, last) = run(&[(1, create("app")), (100, beat.clone())]);
    assert_eq!(last, Ok("touch"));
    assert_eq!(first.unwrap().revision, 1000);
    assert_eq!(run(&[(1, create("app")), (100, beat.clone()), (300, beat.clone())]).1, Ok("keep"));
    assert_eq!(run(&[(1, create("app")), (100, beat.clone()), (350, beat)]).1, Ok("touch"));
}

#[test]
fn a_heartbeat_is_another_sign_of_life_also_where_the_clock_was_set_back() {
    let beat = ExecutionOp::Heartbeat;
    let beats = [(5000, create("app")), (100, beat.clone()), (101, beat.clone()), (102, beat)];
    let signs: Vec<_> = (1..=beats.len())
        .map(|n| SignOfLife::of(&run(&beats[..n]).0.unwrap()).at.unwrap())
        .collect();
    assert_eq!(signs, [5000, 5001, 5002, 5003]);
    let created = run(&beats[..1]).0.unwrap();
    assert_eq!(alive(&created, at(100)).unwrap().last_heartbeat_at, Some(5001));
    assert_eq!(alive(&created, at(5100)), None);
}

#[test]
fn a_stale_revision_is_refused_also_where_the_change_is_there_already() {
    let update = |expected| ExecutionOp::Update {
        metadata: doc! {"a": 1},
        pinned: Some(true),
        expected_revision: Some(expected),
        update_sequence: None,
    };
    assert!(matches!(
        run(&[(1, create("app")), (2, update(5))]).1,
        Err(Refusal::StaleRevision { expected: 5, stored: 1000, .. })
    ));
    assert_eq!(run(&[(1, create("app")), (2, update(1000))]).1, Ok("put"));
    let twice = [(1, create("app")), (2, update(1000)), (3, update(1000))];
    assert!(matches!(run(&twice).1, Err(Refusal::StaleRevision { expected: 1000, .. })));
    assert_eq!(run(&[(1, create("app")), (2, update(1000)), (3, update(2000))]).1, Ok("keep"));
}

#[test]
fn an_update_that_comes_after_a_later_one_is_dropped_whole() {
    let update = |n: i32, update_sequence| ExecutionOp::Update {
        metadata: doc! {"n": n},
        pinned: Some(n == 2),
        // Stale: it is not looked at.
        expected_revision: (n == 0).then_some(1),
        update_sequence,
    };
    let newest = [(1, create("app")), (2, update(1, Some(5))), (3, update(2, Some(7)))];
    for (late, expected) in [
        (update(1, Some(5)), "superseded"),
        (update(2, Some(7)), "superseded"),
        (update(0, Some(6)), "superseded"),
        (update(3, Some(8)), "put"),
        (update(3, None), "put"),
    ] {
        let mut ops = newest.to_vec();
        ops.push((4, late));
        let (record, last) = run(&ops);
        assert_eq!(last, Ok(expected));
        let n = if expected == "put" { 3 } else { 2 };
        let record = record.unwrap();
        assert_eq!((record.metadata, record.pinned), (doc! {"n": n}, Some(n == 2)));
        assert!(record.update_sequence >= Some(7));
    }
}

#[test]
fn the_first_cancel_request_is_kept() {
    let cancel = |reason: &str| ExecutionOp::RequestCancel { reason: reason.to_owned() };
    let (record, last) = run(&[(1, create("app")), (2, cancel("a")), (3, cancel("b"))]);
    assert_eq!(last, Ok("keep"));
    assert_eq!(record.unwrap().cancel_reason.as_deref(), Some("a"));
    let ended = finish(ExecutionStatus::Completed);
    assert!(matches!(
        run(&[(1, create("app")), (2, ended.clone()), (3, cancel("a"))]).1,
        Err(Refusal::Status { .. })
    ));
    assert_eq!(
        run(&[(1, create("app")), (2, cancel("a")), (3, ended), (4, cancel("a"))]).1,
        Ok("keep")
    );
}

#[test]
fn a_running_execution_is_deleted_only_by_force() {
    let delete = |force| ExecutionOp::Delete { force };
    assert!(matches!(
        run(&[(1, create("app")), (2, delete(false))]).1,
        Err(Refusal::StillRunning { .. })
    ));
    assert_eq!(run(&[(1, create("app")), (2, delete(true))]).1, Ok("remove"));
    assert!(matches!(run(&[(2, delete(true))]).1, Err(Refusal::ExecutionNotFound { .. })));
}

#[test]
fn revisions_never_go_back_whatever_the_clock_says() {
    let pin = |pinned| ExecutionOp::Update {
        metadata: doc! {},
        pinned: Some(pinned),
        expected_revision: None,
        update_sequence: None,
    };
    let (record, _) = run(&[(1000, create("app")), (5, pin(true)), (4, pin(false))]);
    assert_eq!(record.unwrap().revision, 1_000_002);
}

#[test]
fn an_imported_record_is_kept_as_it_is() {
    let imported = Execution {
        started_at: None,
        created_at: None,
        updated_at: None,
        duration_ms: Some(-5),
        status: Some(ExecutionStatus::Failed),
        error: Some(RunError { message: "boom".to_owned(), ..RunError::default() }),
        ..run(&[(1, create("app"))]).0.unwrap()
    };
    let put = ExecutionOp::Put(Box::new(imported.clone()));
    let (record, last) = run(&[(9, put.clone()), (10, put)]);
    assert_eq!(last, Ok("keep"));
    let record = record.unwrap();
    assert_eq!(record.duration_ms, Some(-5));
    assert_eq!((record.started_at, record.created_at, record.updated_at), (None, None, None));
    let other = Execution { duration_ms: Some(6), ..imported };
    assert!(matches!(
        decide("e", Some(&record), &ExecutionOp::Put(Box::new(other)), at(11)),
        Err(Refusal::ExecutionExists { .. })
    ));
}
