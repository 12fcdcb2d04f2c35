//! Round trips of records through documents, and reading of what other programs store.

use bson::spec::BinarySubtype;
use bson::{Binary, Decimal128, bson};

use bson::oid::ObjectId;
use bson::raw::RawDocumentBuf;
use bson::{Bson, DateTime, Document};

use super::guard::{Guard, Writes};
use super::{execution as executions, step as steps};
use crate::domain::{
    Attempt, Digests, Execution, ExecutionStatus, Payload, RunError, Step, StepStatus,
};
use crate::store::Error;

fn execution() -> Execution {
    Execution {
        execution_id: "e/1".to_owned(),
        app_id: Some(7),
        app_name: "app".to_owned(),
        sub_app_id: None,
        sub_app_name: Some("sub".to_owned()),
        user_id: Some("u".to_owned()),
        status: Some(ExecutionStatus::Running),
        started_at: Some(1_700_000_000_123),
        completed_at: None,
        duration_ms: None,
        error: None,
        metadata: odd(),
        created_at: Some(1),
        updated_at: Some(2),
        revision: 1_700_000_000_123_456,
        heartbeat_timeout_ms: Some(30_000),
        last_heartbeat_at: None,
        cancel_requested_at: None,
        cancel_reason: None,
        parent_execution_id: None,
        pinned: None,
        odd_start: None,
        configuration_version: Some("1.0".to_owned()),
        update_sequence: Some(5),
        mirrored_position: Some(8),
        mirrored_revision: Some(9),
        digests: Digests { create: Some("d".to_owned()), ..Digests::default() },
        deleted_at: None,
    }
}

fn step() -> Step {
    Step {
        execution_id: "e/1".to_owned(),
        step_id: 3,
        step_key: None,
        step_name: "s".to_owned(),
        step_version: None,
        status: Some(StepStatus::Failed),
        started_at: Some(5),
        completed_at: Some(9),
        duration_ms: Some(4),
        input: Payload::Value(Bson::Document(odd())),
        output: Payload::Value(bson!(["text", 1_i32, 2_i64, 0.5, null, { "$ref": "x" }])),
        error: Some(RunError { message: "m".to_owned(), ..RunError::default() }),
        retry_count: 0,
        metadata: odd(),
        revision: 12,
        created_at: Some(1),
        updated_at: Some(2),
        depends_on: vec![1, 2],
        depends_on_keys: vec!["a.b".to_owned(), "$x".to_owned()],
        parent_step_id: Some(1),
        parent_step_key: Some("$p".to_owned()),
        progress: Some(0.5),
        progress_message: Some("half".to_owned()),
        update_sequence: Some(6),
        mirrored_position: Some(8),
        mirrored_revision: Some(9),
        attempts: Vec::new(),
        digests: Digests::default(),
    }
}

/// Keys and values that naive code breaks.
fn odd() -> Document {
    let mut document = Document::new();
    document.insert("a.b", 1_i32);
    document.insert("$set", "x");
    document.insert("$ref", Bson::Null);
    document.insert("größe ☃", i64::MAX);
    document.insert("", 0.25);
    document.insert("nested", bson::doc! { "$oid": "no", "list": [1_i32, [2_i64]] });
    document.insert("when", DateTime::from_millis(-1));
    document.insert("id", ObjectId::from_bytes([7; 12]));
    document.insert("bytes", Binary { subtype: BinarySubtype::Generic, bytes: vec![1, 2] });
    document.insert("money", "1.10".parse::<Decimal128>().unwrap());
    document
}

/// `document` with the `$set` and `$unset` of an update statement applied, as mongod would.
fn updated(document: &RawDocumentBuf, statement: &RawDocumentBuf) -> RawDocumentBuf {
    let mut document = Document::try_from(document).unwrap();
    let statement = Document::try_from(statement).unwrap();
    let update = statement.get_document("u").unwrap();
    let digest = |key: &str| key.strip_prefix("digests.").map(str::to_owned);
    let mut digests = document.get_document("digests").cloned().unwrap_or_default();
    for (key, value) in update.get_document("$set").unwrap() {
        match digest(key) {
            Some(digest) => digests.insert(digest, value.clone()),
            None => document.insert(key, value.clone()),
        };
    }
    for key in update.get_document("$unset").into_iter().flat_map(Document::keys) {
        match digest(key) {
            Some(digest) => digests.remove(digest),
            None => document.remove(key),
        };
    }
    if let Ok(push) = update.get_document("$push") {
        let push = push.get_document("digests.writes").unwrap();
        let mut writes = digests.get_array("writes").cloned().unwrap_or_default();
        writes.extend(push.get_array("$each").unwrap().iter().cloned());
        digests.insert("writes", writes);
    }
    if !digests.is_empty() {
        document.insert("digests", digests);
    }
    RawDocumentBuf::try_from(&document).unwrap()
}

#[test]
fn records_come_back_as_they_were() {
    let execution = execution();
    let raw = executions::insert(&execution).unwrap();
    assert_eq!(executions::read(&raw).unwrap(), execution);
    let step = step();
    let raw = steps::insert(&step).unwrap();
    assert_eq!(steps::read(&raw, true).unwrap(), step);
    assert_eq!(steps::read(&raw, false).unwrap(), step.without_payloads());
}

#[test]
fn seed_fields_are_null_and_others_absent() {
    let raw = Document::try_from(executions::insert(&execution()).unwrap()).unwrap();
    for key in ["sub_app_id", "completed_at", "duration_ms", "error"] {
        assert_eq!(raw.get(key), Some(&Bson::Null), "{key}");
    }
    for key in [
        "error_info",
        "last_heartbeat_at",
        "cancel_requested_at",
        "cancel_reason",
        "parent_execution_id",
        "pinned",
        "deleted_at",
    ] {
        assert!(!raw.contains_key(key), "{key}");
    }
    assert!(matches!(raw.get("app_id"), Some(Bson::Int32(7))));
    assert!(matches!(raw.get("revision"), Some(Bson::Int64(_))));
    assert!(matches!(raw.get("started_at"), Some(Bson::DateTime(_))));
    assert_eq!(raw.get_str("last_change").unwrap(), "e/1//1700000000123456");
    let mut plain = step();
    plain.output = Payload::Value(Bson::Null);
    plain.input = Payload::Value(Bson::Null);
    let raw = Document::try_from(steps::insert(&plain).unwrap()).unwrap();
    assert_eq!(raw.get("input"), Some(&Bson::Document(Document::new())));
    for key in ["step_version", "output"] {
        assert_eq!(raw.get(key), Some(&Bson::Null), "{key}");
    }
    for key in ["step_key", "digests", "error_info"] {
        assert!(!raw.contains_key(key), "{key}");
    }
    assert!(matches!(raw.get("duration_ms"), Some(Bson::Int64(4))));
    assert_eq!(raw.get_str("last_change").unwrap(), "e/1/3/12");
}

#[test]
fn an_update_makes_the_new_record_out_of_the_old_document() {
    let before = execution();
    let mut ended = before.clone();
    ended.status = Some(ExecutionStatus::Failed);
    ended.completed_at = Some(1_700_000_000_200);
    ended.duration_ms = Some(77);
    ended.error = Some(RunError {
        message: "m".to_owned(),
        code: "C".to_owned(),
        stack_trace: "t".to_owned(),
        details: odd(),
    });
    ended.metadata.insert("new.key", 1);
    ended.updated_at = Some(3);
    ended.revision += 1;
    ended.last_heartbeat_at = Some(4);
    ended.cancel_requested_at = Some(5);
    ended.cancel_reason = Some("r".to_owned());
    ended.pinned = Some(true);
    ended.digests.finish = Some("f".to_owned());
    let raw = executions::insert(&before).unwrap();
    let raw = updated(
        &raw,
        &executions::update(&before, &ended, Guard::Whole, None, 7).unwrap().statement,
    );
    assert_eq!(executions::read(&raw).unwrap(), ended);
    let raw = updated(
        &raw,
        &executions::update(&ended, &before, Guard::Whole, None, 7).unwrap().statement,
    );
    assert_eq!(executions::read(&raw).unwrap(), before);

    let before = step();
    let mut retried = before.clone();
    retried.step_key = Some("k".to_owned());
    retried.step_version = Some("2".to_owned());
    retried.status = Some(StepStatus::Running);
    retried.started_at = Some(10);
    retried.completed_at = None;
    retried.duration_ms = None;
    retried.input = Payload::Value(Bson::String("in".to_owned()));
    retried.output = Payload::Value(Bson::Null);
    retried.error = None;
    retried.retry_count = 1;
    retried.metadata.insert("x", 1);
    retried.revision += 1;
    retried.updated_at = Some(11);
    retried.depends_on = vec![];
    retried.parent_step_id = None;
    retried.progress = None;
    retried.progress_message = None;
    retried.attempts = vec![Attempt {
        started_at: Some(5),
        completed_at: Some(9),
        duration_ms: Some(4),
        error: Some(RunError { code: "C".to_owned(), ..RunError::default() }),
    }];
    retried.digests.start = Some("s".to_owned());
    let raw = steps::insert(&before).unwrap();
    let raw = updated(
        &raw,
        &steps::update(&before, &retried, Guard::Whole, None, None, 7).unwrap().statement,
    );
    assert_eq!(steps::read(&raw, true).unwrap(), retried);
    let raw = updated(
        &raw,
        &steps::update(&retried, &before, Guard::Whole, None, None, 7).unwrap().statement,
    );
    assert_eq!(steps::read(&raw, true).unwrap(), before);
    // Payloads that were never read stay as they are.
    let light = before.without_payloads();
    let mut renamed = light.clone();
    renamed.revision += 1;
    let raw = updated(
        &raw,
        &steps::update(&light, &renamed, Guard::Whole, None, None, 7).unwrap().statement,
    );
    assert_eq!(steps::read(&raw, true).unwrap().output, before.output);
}

#[test]
fn looking_at_a_record_stores_nothing() {
    let execution = execution();
    let raw = executions::insert(&execution).unwrap();
    assert_eq!(
        updated(
            &raw,
            &executions::update(&execution, &execution, Guard::Whole, None, 7).unwrap().statement
        ),
        raw
    );
    let step = step();
    let raw = steps::insert(&step).unwrap();
    assert_eq!(
        updated(&raw, &steps::update(&step, &step, Guard::Whole, None, None, 7).unwrap().statement),
        raw
    );
}

#[test]
fn what_other_programs_store_is_read_leniently() {
    let foreign = bson::doc! {
        "_id": 5, "execution_id": "x", "app_id": 7.0, "sub_app_id": 8_i64, "status": "paused",
        "started_at": "2024-01-01", "duration_ms": 12_i32, "error": { "message": "boom" },
        "metadata": "text", "revision": "none", "pinned": 1,
    };
    let read = executions::read(&RawDocumentBuf::try_from(&foreign).unwrap()).unwrap();
    assert_eq!((read.app_id, read.sub_app_id, read.status), (Some(7), Some(8), None));
    assert_eq!((read.started_at, read.duration_ms, read.revision), (None, Some(12), 0));
    assert_eq!(read.error.unwrap().message, "boom");
    assert!(read.metadata.is_empty() && read.pinned.is_none() && read.app_name.is_empty());

    let foreign = bson::doc! { "execution_id": "x", "step_id": 3.0, "output": [1, "two"] };
    let read = steps::read(&RawDocumentBuf::try_from(&foreign).unwrap(), true).unwrap();
    assert_eq!((read.step_id, read.status, read.retry_count), (3, None, 0));
    assert_eq!(read.input, Payload::Value(Bson::Document(Document::new())));
    assert_eq!(read.output, Payload::Value(bson!([1, "two"])));

    for (broken, field) in [
        (bson::doc! { "_id": "b", "execution_id": "x", "step_id": "three" }, "step_id"),
        (bson::doc! { "_id": "b", "step_id": 3 }, "execution_id"),
    ] {
        let error = steps::read(&RawDocumentBuf::try_from(&broken).unwrap(), true).unwrap_err();
        assert!(matches!(error, Error::Corrupt { field: f, .. } if f == field), "{error:?}");
    }
}

#[test]
fn an_update_is_known_again_among_the_latest_ones() {
    let of = |writes: &[i64]| {
        let listed: Vec<Bson> = writes.iter().map(|number| Bson::Int64(*number)).collect();
        Writes::of(
            &RawDocumentBuf::try_from(&bson::doc! { "digests": { "writes": listed } }).unwrap(),
        )
    };
    let told = |writes: &[i64], stored| of(writes).tell_of(3, 5, 50, stored);
    // Nothing has happened.
    assert_eq!(told(&[], 3), Some(false));
    assert_eq!(told(&[3, 30], 3), Some(false));
    assert_eq!(told(&[5, 50], 5), Some(true));
    // Another server made the same revision.
    assert_eq!(told(&[5, 51], 5), Some(false));
    assert_eq!(told(&[5, 50, 6, 60, 7, 70, 8, 80], 8), Some(true));
    assert_eq!(told(&[4, 40, 6, 60, 7, 70, 8, 80], 8), Some(false));
    assert_eq!(told(&[6, 60, 7, 70, 8, 80], 8), Some(false));
    // It may have been there and have made room.
    assert_eq!(told(&[6, 60, 7, 70, 8, 80, 9, 90], 9), None);
    // Another program changed it, or made it anew.
    assert_eq!(told(&[], 6), None);
    assert_eq!(told(&[4, 40], 0), None);
    assert_eq!(told(&[4, 40], 6), None);
    let foreign =
        RawDocumentBuf::try_from(&bson::doc! { "digests": { "writes": "mine" } }).unwrap();
    assert_eq!(Writes::of(&foreign), Writes::default());
}
