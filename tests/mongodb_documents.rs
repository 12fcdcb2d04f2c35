//! What only MongoDB can show: the documents themselves, and other programs that read and write them beside us.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::collections::BTreeSet;

use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, Decimal128, Document, doc, oid::ObjectId};
use stepwell::proto::*;
use tonic::Code;

use support::backend::{Backend, Kind};
use support::client::*;
use support::mongod::Mongod;
use support::values::*;
use support::watch::{Event, What};
use support::*;

/// A case on a database of its own.
fn conduct<F: Future<Output = ()>>(case: impl FnOnce(Backend) -> F) {
    run(async {
        let backend = Backend::fresh(Kind::Mongodb);
        case(backend.clone()).await;
        backend.remove().await;
    });
}

async fn stored_execution(b: &Backend, id: &str) -> Document {
    let found = b.executions().await.find_one(doc! { "execution_id": id }).await;
    found.expect("the query works").expect("the document is there")
}

async fn stored_step(b: &Backend, id: &str, step_id: i32) -> Document {
    let query = doc! { "execution_id": id, "step_id": step_id };
    b.steps().await.find_one(query).await.expect("the query works").expect("the document is there")
}

fn is_date(value: &Bson, ms: i64) -> bool {
    *value == Bson::DateTime(DateTime::from_millis(ms))
}

#[test]
fn an_execution_is_stored_as_the_contract_says() {
    conduct(async |b| {
        let s = b.serve().await;
        s.create("bare").await;
        let bare = stored_execution(&b, "bare").await;
        assert!(matches!(bare["_id"], Bson::ObjectId(_)));
        for nullable in [
            "app_id",
            "sub_app_id",
            "sub_app_name",
            "user_id",
            "completed_at",
            "duration_ms",
            "error",
        ] {
            assert_eq!(bare.get(nullable), Some(&Bson::Null), "{nullable}");
        }
        assert_eq!(bare["execution_id"], Bson::from("bare"));
        assert_eq!(bare["app_name"], Bson::from("app"));
        assert_eq!(bare["status"], Bson::from("running"));
        assert_eq!(bare["metadata"], Bson::Document(doc! {}));
        for date in ["started_at", "created_at", "updated_at"] {
            assert!(matches!(bare[date], Bson::DateTime(_)), "{date}");
        }
        assert!(matches!(bare["revision"], Bson::Int64(_)));

        s.create_execution(CreateExecutionRequest {
            app_id: Some(7),
            sub_app_id: Some(8),
            sub_app_name: Some("sub".into()),
            user_id: Some("u".into()),
            metadata: meta(json!({ "a.b": { "$c": 1 } })),
            started_at: Some(time(1_000)),
            heartbeat_timeout: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
            parent_execution_id: Some("p".into()),
            ..create("full")
        })
        .await;
        s.heartbeat(HeartbeatRequest { execution_id: "full".into() }).await;
        s.request_cancel(RequestCancelRequest { execution_id: "full".into(), reason: "r".into() })
            .await;
        s.update_execution(UpdateExecutionRequest { pinned: Some(true), ..update("full") }).await;
        let ended = s
            .finish_execution(FinishExecutionRequest {
                error: Some(Error {
                    message: "m".into(),
                    code: "c".into(),
                    stack_trace: "t".into(),
                    details: meta(json!({ "d": 1 })),
                }),
                completed_at: Some(time(3_000)),
                ..finish("full", ExecutionStatus::Failed)
            })
            .await;
        let full = stored_execution(&b, "full").await;
        assert_eq!((&full["app_id"], &full["sub_app_id"]), (&Bson::Int32(7), &Bson::Int32(8)));
        assert_eq!(
            (&full["sub_app_name"], &full["user_id"]),
            (&Bson::from("sub"), &Bson::from("u"))
        );
        assert_eq!(full["status"], Bson::from("failed"));
        assert!(is_date(&full["started_at"], 1_000) && is_date(&full["completed_at"], 3_000));
        assert_eq!(full["duration_ms"], Bson::Int64(2_000));
        assert_eq!(full["error"], Bson::from("m"));
        let info = full.get_document("error_info").expect("error_info");
        assert_eq!(*info, doc! { "code": "c", "stack_trace": "t", "details": { "d": 1 } });
        assert_eq!(full["metadata"], Bson::Document(doc! { "a.b": { "$c": 1 } }));
        assert!(matches!(full["heartbeat_timeout_ms"], Bson::Int64(60_000) | Bson::Int32(60_000)));
        for date in ["last_heartbeat_at", "cancel_requested_at"] {
            assert!(matches!(full[date], Bson::DateTime(_)), "{date}");
        }
        assert_eq!(full["cancel_reason"], Bson::from("r"));
        assert_eq!(full["parent_execution_id"], Bson::from("p"));
        assert_eq!(full["pinned"], Bson::Boolean(true));
        assert_eq!(full["revision"], Bson::Int64(ended.revision));
        assert_eq!(full["last_change"], Bson::from(format!("full//{}", ended.revision)));
    });
}

#[test]
fn a_step_is_stored_as_the_contract_says() {
    conduct(async |b| {
        let s = b.serve().await;
        s.create("e").await;
        s.start("e", 0).await;
        let bare = stored_step(&b, "e", 0).await;
        assert!(matches!(bare["_id"], Bson::ObjectId(_)));
        assert_eq!((&bare["execution_id"], &bare["step_id"]), (&Bson::from("e"), &Bson::Int32(0)));
        assert_eq!(
            (&bare["step_name"], &bare["status"]),
            (&Bson::from("work"), &Bson::from("running"))
        );
        for nullable in ["step_version", "completed_at", "duration_ms", "output", "error"] {
            assert_eq!(bare.get(nullable), Some(&Bson::Null), "{nullable}");
        }
        assert_eq!(bare["input"], Bson::Document(doc! {}));
        assert_eq!(bare["metadata"], Bson::Document(doc! {}));
        assert_eq!(bare["retry_count"], Bson::Int32(0));
        assert!(matches!(bare.get("step_key"), None | Some(Bson::Null)));

        s.start_step(StartStepRequest {
            step_key: Some("k".into()),
            step_version: Some("v".into()),
            input: Some(value(json!(["in", 1]))),
            depends_on: vec![0],
            parent_step_id: Some(0),
            started_at: Some(time(1_000)),
            ..start("e", 1)
        })
        .await;
        let failed = FinishStepRequest {
            completed_at: Some(time(1_500)),
            error: Some(run_error("first")),
            ..finish_step("e", 1, StepStatus::Failed)
        };
        s.finish_step(failed).await;
        let retry = StartStepRequest { started_at: Some(time(2_000)), ..start("e", 1) };
        s.start_step(retry).await;
        let request = UpdateStepRequest {
            progress: Some(0.5),
            progress_message: Some("half".into()),
            ..update_step("e", 1)
        };
        s.update_step(request).await;
        let ended = s
            .finish_step(FinishStepRequest {
                output: Some(value(json!("out"))),
                completed_at: Some(time(2_250)),
                ..finish_step("e", 1, StepStatus::Completed)
            })
            .await;
        let full = stored_step(&b, "e", 1).await;
        assert_eq!(
            (&full["step_key"], &full["step_version"]),
            (&Bson::from("k"), &Bson::from("v"))
        );
        assert_eq!(full["status"], Bson::from("completed"));
        assert!(is_date(&full["started_at"], 2_000) && is_date(&full["completed_at"], 2_250));
        assert_eq!(
            (&full["duration_ms"], &full["retry_count"]),
            (&Bson::Int64(250), &Bson::Int32(1))
        );
        assert_eq!(full["input"], Bson::Array(vec!["in".into(), 1.into()]));
        assert_eq!(full["output"], Bson::from("out"));
        assert_eq!(full["depends_on"], Bson::Array(vec![0.into()]));
        assert_eq!(full["parent_step_id"], Bson::Int32(0));
        assert_eq!(
            (&full["progress"], &full["progress_message"]),
            (&Bson::Double(0.5), &Bson::from("half"))
        );
        let attempts = full.get_array("attempts").expect("attempts");
        let attempt = attempts[0].as_document().expect("a document");
        assert!(is_date(&attempt["started_at"], 1_000) && is_date(&attempt["completed_at"], 1_500));
        assert_eq!(attempt["error"], Bson::from("first"));
        assert_eq!(full["last_change"], Bson::from(format!("e/1/{}", ended.revision)));
    });
}

#[test]
fn integers_are_stored_as_integers() {
    conduct(async |b| {
        let s = b.serve().await;
        let big = 1_i64 << 53;
        s.create_execution(CreateExecutionRequest {
            metadata: meta(json!({
                "small": 1, "large": i64::from(i32::MAX) + 1, "greatest": big, "least": -big,
                "beyond": 9_007_199_254_740_994.0_f64, "half": 0.5, "list": [1, 2.5]
            })),
            ..create("e")
        })
        .await;
        let metadata =
            stored_execution(&b, "e").await.get_document("metadata").expect("metadata").clone();
        assert_eq!(metadata["small"], Bson::Int32(1));
        assert_eq!(metadata["large"], Bson::Int64(i64::from(i32::MAX) + 1));
        assert_eq!(
            (&metadata["greatest"], &metadata["least"]),
            (&Bson::Int64(big), &Bson::Int64(-big))
        );
        assert_eq!(metadata["beyond"], Bson::Double(9_007_199_254_740_994.0));
        assert_eq!(metadata["half"], Bson::Double(0.5));
        assert_eq!(metadata["list"], Bson::Array(vec![Bson::Int32(1), Bson::Double(2.5)]));
    });
}

/// A document as an older program wrote it: without anything of ours, and with what JSON does not know.
fn foreign_execution(id: &str) -> Document {
    doc! {
        "execution_id": id,
        "app_name": "old app",
        "status": "running",
        "started_at": DateTime::from_millis(1_600_000_000_123),
        "metadata": odd_values(),
        "their_own_field": { "kept": [1, 2, { "x": Bson::Null }] },
    }
}

fn odd_values() -> Document {
    doc! {
        "date": DateTime::from_millis(1_600_000_000_123),
        "id": ObjectId::from_bytes([0xab; 12]),
        "bytes": Binary { subtype: BinarySubtype::Generic, bytes: vec![0, 1, 254, 255] },
        "decimal": "12345678901234567890.12".parse::<Decimal128>().expect("a decimal"),
        "long": i64::MAX,
        "nan": f64::NAN,
        "infinite": f64::NEG_INFINITY,
        "timestamp": Bson::Timestamp(mongodb::bson::Timestamp { time: 7, increment: 9 }),
        "regex": Bson::RegularExpression(mongodb::bson::Regex {
            pattern: "a+".try_into().expect("no zero"),
            options: "i".try_into().expect("no zero"),
        }),
        "least": Bson::MinKey,
        "double": 3.0,
        "nested": { "list": [DateTime::from_millis(0)] },
    }
}

#[test]
fn values_of_other_programs_are_shown_as_text() {
    conduct(async |b| {
        let s = b.serve().await;
        b.executions().await.insert_one(foreign_execution("old")).await.expect("inserted");
        let step = doc! {
            "execution_id": "old", "step_id": 1, "step_name": "old step", "status": "completed",
            "input": odd_values(), "output": [odd_values()],
        };
        b.steps().await.insert_one(step).await.expect("inserted");
        let check = |shown: &serde_json::Value| {
            assert_eq!(shown["date"], json!("2020-09-13T12:26:40.123Z"));
            assert_eq!(shown["id"], json!("abababababababababababab"));
            assert_eq!(shown["bytes"], json!("AAH+/w=="));
            assert_eq!(shown["decimal"], json!("12345678901234567890.12"));
            assert_eq!(shown["long"], json!(i64::MAX.to_string()));
            assert_eq!((&shown["nan"], &shown["infinite"]), (&json!("NaN"), &json!("-Infinity")));
            assert!(shown["timestamp"].is_string() && shown["regex"].is_string());
            assert_eq!(shown["double"], json!(3));
            assert_eq!(shown["nested"]["list"][0], json!("1970-01-01T00:00:00Z"));
        };
        let execution = s.execution("old").await;
        check(&plain_meta(&execution.metadata));
        let step = s.step("old", 1).await;
        check(&plain_field(&step.input));
        check(&plain_field(&step.output)[0]);
        let list = s.list_executions(ListExecutionsRequest::default()).await;
        check(&plain_meta(&list.executions[0].metadata));
    });
}

#[test]
fn documents_with_fields_missing_are_read_and_changed() {
    conduct(async |b| {
        let s = b.serve().await;
        let old = doc! { "execution_id": "old", "app_name": "old app", "status": "running" };
        b.executions().await.insert_one(old).await.expect("inserted");
        let least = doc! { "execution_id": "least" };
        b.executions().await.insert_one(least).await.expect("inserted");
        let odd =
            doc! { "execution_id": "with space and ü", "status": "exploded", "app_id": 7_i64 };
        b.executions().await.insert_one(odd).await.expect("inserted");
        let step =
            doc! { "execution_id": "old", "step_id": 3, "step_name": "s", "status": "running" };
        b.steps().await.insert_one(step).await.expect("inserted");

        let execution = s.execution("old").await;
        assert_eq!((execution.status(), execution.revision), (ExecutionStatus::Running, 0));
        assert_eq!((&execution.started_at, &execution.created_at), (&None, &None));
        assert_eq!(plain_meta(&execution.metadata), json!({}));
        assert_eq!(s.execution("least").await.status(), ExecutionStatus::Unspecified);
        let odd = s.execution("with space and ü").await;
        assert_eq!((odd.status(), odd.app_id), (ExecutionStatus::Unspecified, Some(7)));
        let list = s.list_executions(ListExecutionsRequest::default()).await;
        assert_eq!(list.executions.len(), 3);

        let step = s.end("old", 3, StepStatus::Completed).await;
        assert!(step.revision > 0);
        assert_eq!((step.started_at, step.duration_ms), (None, None));
        let assign = StartStepRequest { step_id: None, ..start("old", 0) };
        assert_eq!(s.start_step(assign).await.step_id, Some(4));
        let changed = s
            .update_execution(UpdateExecutionRequest {
                metadata: meta(json!({ "a": 1 })),
                ..update("old")
            })
            .await;
        assert!(changed.revision > 0);
        assert_eq!(
            s.finish("old", ExecutionStatus::Completed).await.status(),
            ExecutionStatus::Completed
        );
        assert_eq!(
            s.finish("least", ExecutionStatus::Failed).await.status(),
            ExecutionStatus::Failed
        );
        let delete =
            DeleteExecutionRequest { execution_id: "with space and ü".into(), force: true };
        s.delete_execution(delete).await;
        assert_eq!(s.list_executions(ListExecutionsRequest::default()).await.executions.len(), 2);
    });
}

#[test]
fn a_change_leaves_foreign_values_alone() {
    conduct(async |b| {
        let s = b.serve().await;
        b.executions().await.insert_one(foreign_execution("old")).await.expect("inserted");
        let mut before = stored_execution(&b, "old").await;
        let request = UpdateExecutionRequest {
            metadata: meta(json!({ "ours": { "x": 1 } })),
            ..update("old")
        };
        s.update_execution(request).await;
        s.update_execution(UpdateExecutionRequest { pinned: Some(true), ..update("old") }).await;
        s.finish("old", ExecutionStatus::Completed).await;
        let mut after = stored_execution(&b, "old").await;
        let metadata = after.get_document_mut("metadata").expect("metadata");
        assert_eq!(metadata.remove("ours"), Some(Bson::Document(doc! { "x": 1 })));
        let text = |document: &Document| format!("{document:?}");
        for (key, value) in before.iter_mut() {
            if key == "status" {
                continue;
            }
            // As text, because NaN is not equal to itself.
            assert_eq!(format!("{:?}", after[key]), format!("{value:?}"), "{key} was altered");
        }

        let step = doc! {
            "execution_id": "old", "step_id": 1, "step_name": "work", "status": "running",
            "started_at": DateTime::from_millis(5), "input": odd_values(), "output": odd_values(),
            "metadata": odd_values(), "their_own_field": 7,
        };
        b.steps().await.insert_one(&step).await.expect("inserted");
        let request = UpdateStepRequest {
            output: Some(value(json!({ "ours": 1 }))),
            metadata: meta(json!({ "ours": 2 })),
            ..update_step("old", 1)
        };
        s.update_step(request).await;
        s.end("old", 1, StepStatus::Completed).await;
        let mut after = stored_step(&b, "old", 1).await;
        for (part, ours) in [("output", 1), ("metadata", 2)] {
            let removed = after.get_document_mut(part).expect("a document").remove("ours");
            assert_eq!(removed, Some(Bson::Int32(ours)));
        }
        for part in ["input", "output", "metadata"] {
            assert_eq!(
                text(after.get_document(part).expect("a document")),
                text(&odd_values()),
                "{part}"
            );
        }
        assert_eq!(after["their_own_field"], Bson::Int32(7));
    });
}

#[test]
fn records_without_a_digest_are_compared_by_field() {
    conduct(async |b| {
        let s = b.serve().await;
        let request = CreateExecutionRequest {
            user_id: Some("u".into()),
            metadata: meta(json!({ "b": 1, "a": { "c": [1.0, 2] } })),
            ..create("old")
        };
        let old = doc! {
            "execution_id": "old", "app_name": "app", "user_id": "u", "status": "running",
            "started_at": DateTime::from_millis(9), "metadata": { "a": { "c": [1_i64, 2] }, "b": 1 },
        };
        b.executions().await.insert_one(old).await.expect("inserted");
        let stored = s.create_execution(request.clone()).await;
        assert_eq!(
            (stored.revision, millis(&stored.started_at)),
            (0, Some(9)),
            "the same, untouched"
        );
        for other in [
            CreateExecutionRequest { user_id: None, ..request.clone() },
            CreateExecutionRequest { metadata: meta(json!({ "b": 2 })), ..request.clone() },
            CreateExecutionRequest { started_at: Some(time(10)), ..request.clone() },
        ] {
            refused(
                s.try_create_execution(other).await,
                Code::AlreadyExists,
                "EXECUTION_ALREADY_EXISTS",
            );
        }
        let step = doc! {
            "execution_id": "old", "step_id": 1, "step_name": "work", "status": "completed",
            "input": { "q": 1 }, "output": "answer", "completed_at": DateTime::from_millis(20),
        };
        b.steps().await.insert_one(step).await.expect("inserted");
        let started = StartStepRequest { input: Some(value(json!({ "q": 1 }))), ..start("old", 1) };
        assert_eq!(s.start_step(started).await.revision, 0);
        let other = StartStepRequest { input: Some(value(json!({ "q": 2 }))), ..start("old", 1) };
        refused(s.try_start_step(other).await, Code::AlreadyExists, "STEP_ALREADY_EXISTS");
        let ended = FinishStepRequest {
            output: Some(value(json!("answer"))),
            ..finish_step("old", 1, StepStatus::Completed)
        };
        assert_eq!(s.finish_step(ended).await.revision, 0);
        let other = FinishStepRequest {
            output: Some(value(json!("another"))),
            ..finish_step("old", 1, StepStatus::Completed)
        };
        refused(s.try_finish_step(other).await, Code::AlreadyExists, "STEP_ALREADY_EXISTS");
        let other = s.try_finish_step(finish_step("old", 1, StepStatus::Failed)).await;
        refused(other, Code::FailedPrecondition, "WRONG_STATUS");
    });
}

#[test]
fn a_write_sees_what_another_program_has_just_changed() {
    conduct(async |b| {
        let s = b.serve().await;
        // The server knows these records well, and yet not what happens behind its back.
        for id in ["a", "b", "c", "d"] {
            s.create(id).await;
            s.start(id, 1).await;
        }
        let executions = b.executions().await;
        let set = async |id: &str, fields: Document| {
            let query = doc! { "execution_id": id };
            executions.update_one(query, doc! { "$set": fields }).await.expect("updated");
        };
        set("a", doc! { "status": "completed", "completed_at": DateTime::from_millis(1) }).await;
        let answer = s.try_finish_execution(finish("a", ExecutionStatus::Failed)).await;
        refused(answer, Code::FailedPrecondition, "WRONG_STATUS");

        set("b", doc! { "metadata": { "theirs": DateTime::from_millis(7) } }).await;
        let request =
            UpdateExecutionRequest { metadata: meta(json!({ "ours": 1 })), ..update("b") };
        s.update_execution(request).await;
        let metadata =
            stored_execution(&b, "b").await.get_document("metadata").expect("metadata").clone();
        assert_eq!(metadata, doc! { "theirs": DateTime::from_millis(7), "ours": 1 });

        executions.delete_one(doc! { "execution_id": "c" }).await.expect("deleted");
        let answer = s.try_finish_execution(finish("c", ExecutionStatus::Failed)).await;
        refused(answer, Code::NotFound, "EXECUTION_NOT_FOUND");

        let query = doc! { "execution_id": "d", "step_id": 1 };
        let end = doc! { "$set": { "status": "failed", "error": "theirs" } };
        b.steps().await.update_one(query, end).await.expect("updated");
        let answer = s.try_finish_step(finish_step("d", 1, StepStatus::Completed)).await;
        refused(answer, Code::FailedPrecondition, "WRONG_STATUS");
        let retried = s.start("d", 1).await;
        assert_eq!((retried.retry_count, retried.attempts.len()), (1, 1));
        assert_eq!(retried.attempts[0].error, Some(run_error("theirs")));
    });
}

#[test]
fn an_answer_shows_what_another_program_has_changed_elsewhere_in_the_document() {
    conduct(async |b| {
        let s = b.serve().await;
        let mut watch = s.watch_all(watch_all()).await.with_foreign_changes();
        watch.snapshot().await;
        for id in ["plain", "odd"] {
            s.create(id).await;
            s.start(id, 1).await;
        }
        let theirs = |fields: Document| doc! { "$set": fields };
        let (executions, steps) = (b.executions().await, b.steps().await);
        let set = theirs(doc! { "user_id": "theirs", "metadata": { "theirs": 1 } });
        executions.update_one(doc! { "execution_id": "plain" }, set).await.expect("updated");
        let set = theirs(doc! { "step_version": "theirs", "metadata": { "theirs": 2 } });
        steps.update_one(doc! { "execution_id": "plain" }, set).await.expect("updated");
        // Types that read as none: no guard that is made of what was read matches them.
        let set = theirs(doc! { "user_id": 7, "duration_ms": "long", "error": { "message": "m" } });
        executions.update_one(doc! { "execution_id": "odd" }, set.clone()).await.expect("updated");
        steps.update_one(doc! { "execution_id": "odd" }, set).await.expect("updated");

        let step = s.finish_step(finish_step("plain", 1, StepStatus::Completed)).await;
        assert_eq!(step.step_version.as_deref(), Some("theirs"));
        assert_eq!(step.metadata, meta(json!({ "theirs": 2 })));
        let execution = s.finish("plain", ExecutionStatus::Completed).await;
        assert_eq!(execution.user_id.as_deref(), Some("theirs"));
        assert_eq!(execution.metadata, meta(json!({ "theirs": 1 })));
        let step = s.finish_step(finish_step("odd", 1, StepStatus::Completed)).await;
        assert_eq!(step.status(), StepStatus::Completed);
        let execution = s.finish("odd", ExecutionStatus::Completed).await;
        assert_eq!(execution.status(), ExecutionStatus::Completed);

        let mut ended = 0;
        while ended < 4 {
            match watch.next().await.what {
                What::Execution(_, e) if e.status() == ExecutionStatus::Completed => {
                    assert_eq!(e.user_id.is_some(), e.execution_id == "plain");
                    ended += 1;
                }
                What::Step(_, step) if step.status() == StepStatus::Completed => {
                    assert_eq!(step.step_version.is_some(), step.execution_id == "plain");
                    ended += 1;
                }
                _ => {}
            }
        }
    });
}

#[test]
fn long_ids_and_dates_beyond_the_calendar_of_other_programs_are_readable() {
    conduct(async |b| {
        let s = b.serve().await;
        let id = format!("long id é {}", "x".repeat(200));
        let far = DateTime::from_millis(1_000_000_000_000_000);
        let theirs = doc! {
            "execution_id": &id, "app_name": "theirs", "status": "completed", "started_at": far,
            "metadata": { "far": far, "before": DateTime::from_millis(-100_000_000_000_000) },
        };
        b.executions().await.insert_one(theirs).await.expect("inserted");
        let step = doc! { "execution_id": &id, "step_id": 1, "step_name": "theirs" };
        b.steps().await.insert_one(step).await.expect("inserted");
        // What no Timestamp can say is left out, or clients could not read the page it is on.
        let shown = s.execution(&id).await;
        assert_eq!(shown.started_at, None);
        let far = json!({ "far": "1000000000000000", "before": "-100000000000000" });
        assert_eq!(plain_meta(&shown.metadata), far);
        assert_eq!(plain_field(&s.step(&id, 1).await.input), json!({}));
        let list = s.list_executions(ListExecutionsRequest::default()).await;
        assert_eq!(list.executions, [shown]);
    });
}

#[test]
fn revisions_survive_a_document_replaced_by_another_program() {
    conduct(async |b| {
        let s = b.serve().await;
        let mut watch = s.watch_all(watch_all()).await;
        watch.snapshot().await;
        let mut last = s.create("e").await.revision;
        for round in 0..5 {
            let replacement = doc! {
                "execution_id": "e", "app_name": "replaced", "status": "running", "metadata": { "round": round },
            };
            b.executions()
                .await
                .replace_one(doc! { "execution_id": "e" }, replacement)
                .await
                .expect("replaced");
            let request =
                UpdateExecutionRequest { metadata: meta(json!({ "ours": round })), ..update("e") };
            let updated = s.update_execution(request).await;
            assert!(updated.revision > last, "{} after {last}", updated.revision);
            assert_eq!(plain_meta(&updated.metadata), json!({ "round": round, "ours": round }));
            assert_eq!(updated.app_name, "replaced");
            last = updated.revision;
        }
    });
}

#[test]
fn a_foreign_change_is_delivered_with_its_revision_unchanged() {
    conduct(async |b| {
        let s = b.serve().await;
        let created = s.create("e").await;
        let started = s.start("e", 1).await;
        let mut of_all = s.watch_all(watch_all()).await.with_foreign_changes();
        let mut of_one = s.watch(watch("e")).await.with_foreign_changes();
        of_all.snapshot().await;
        of_one.snapshot().await;
        for round in 0..5 {
            let set = doc! { "$set": { "metadata.round": round } };
            b.executions()
                .await
                .update_one(doc! { "execution_id": "e" }, set.clone())
                .await
                .expect("updated");
            for watch in [&mut of_all, &mut of_one] {
                let event = watch.next_change().await;
                let (change, execution) = event.execution().expect("the execution changed");
                assert_eq!((change, execution.revision), (ChangeType::Updated, created.revision));
                assert_eq!(plain_meta(&execution.metadata), json!({ "round": round }));
                assert!(!event.token.is_empty());
            }
            let query = doc! { "execution_id": "e", "step_id": 1 };
            b.steps().await.update_one(query, set.clone()).await.expect("updated");
            for watch in [&mut of_all, &mut of_one] {
                let event = watch.next_change().await;
                let (_, step) = event.step().expect("the step changed");
                assert_eq!(step.revision, started.revision);
                assert_eq!(plain_meta(&step.metadata), json!({ "round": round }));
            }
        }
        // A change of the status by another program ends the watch of one, as ours would.
        let query = doc! { "execution_id": "e", "step_id": 1 };
        let end = doc! { "$set": { "status": "completed" } };
        b.steps().await.update_one(query, end.clone()).await.expect("updated");
        b.executions().await.update_one(doc! { "execution_id": "e" }, end).await.expect("updated");
        let (events, end) = of_one.rest().await;
        end.expect("the stream ends with OK");
        assert!(events.last().and_then(Event::execution).is_some(), "{events:?}");
    });
}

#[test]
fn foreign_inserts_and_deletes_are_seen() {
    conduct(async |b| {
        let s = b.serve().await;
        let mut watch = s.watch_all(watch_all()).await.with_foreign_changes();
        watch.snapshot().await;
        b.executions().await.insert_one(foreign_execution("old")).await.expect("inserted");
        let event = watch.next_change().await;
        let (change, execution) = event.execution().expect("the execution is new");
        assert_eq!((change, execution.execution_id.as_str()), (ChangeType::Created, "old"));
        let step =
            doc! { "execution_id": "old", "step_id": 1, "step_name": "s", "status": "running" };
        b.steps().await.insert_one(step).await.expect("inserted");
        let event = watch.next_change().await;
        assert_eq!(
            event.step().map(|(change, s)| (change, s.step_id)),
            Some((ChangeType::Created, Some(1)))
        );
        let replacement =
            doc! { "execution_id": "old", "app_name": "replaced", "status": "running" };
        let query = doc! { "execution_id": "old" };
        b.executions().await.replace_one(query.clone(), replacement).await.expect("replaced");
        let event = watch.next_change().await;
        assert_eq!(event.execution().map(|(_, e)| e.app_name.as_str()), Some("replaced"));
        b.executions().await.delete_one(query).await.expect("deleted");
        let later = s.create("later").await;
        let events = watch.until_revision(("later", None), later.revision).await;
        // Foreign deletes are best effort; this server has just seen the record, so it knows.
        let deleted = events.iter().any(|event| {
            event
                .execution()
                .is_some_and(|(change, e)| change == ChangeType::Deleted && e.execution_id == "old")
        });
        assert!(deleted, "{events:?}");
    });
}

#[test]
fn foreign_ends_count_and_foreign_deletes_are_found() {
    conduct(async |b| {
        let s = b.serve().await;
        s.create("ours").await;
        s.counts_right().await;
        b.executions().await.insert_one(foreign_execution("theirs")).await.expect("inserted");
        let step = |step_id: i32, status: &str| {
            doc! { "execution_id": "theirs", "step_id": step_id, "step_name": "load", "status": status,
            "error": "out of memory" }
        };
        b.steps().await.insert_one(step(1, "failed")).await.expect("inserted");
        b.steps().await.insert_one(step(2, "running")).await.expect("inserted");
        for id in ["ours", "theirs"] {
            let end = doc! { "$set": { "status": "failed", "duration_ms": 1500 } };
            b.executions().await.update_one(doc! { "execution_id": id }, end).await.expect("ended");
        }
        let end = doc! { "$set": { "status": "failed" } };
        let second = doc! { "execution_id": "theirs", "step_id": 2 };
        b.steps().await.update_one(second.clone(), end).await.expect("ended");
        assert_eq!(s.counts_right().await, 2);
        let database = b.mongodb().await;
        let failures = database.collection::<Document>("stepwell_rollup_failures");
        let count =
            async |filter: Document| failures.count_documents(filter).await.expect("counted");
        assert_eq!(count(doc! { "_id.e": "theirs" }).await, 3);
        assert_eq!(count(doc! { "_id.e": "theirs", "step_name": "load" }).await, 2);
        let end = doc! { "$set": { "status": "completed" } };
        b.steps().await.update_one(second, end).await.expect("mended");
        assert_eq!(s.counts_right().await, 2);
        assert_eq!(count(doc! { "_id.e": "theirs" }).await, 2);

        // No log says which record this was.
        b.executions().await.delete_one(doc! { "execution_id": "theirs" }).await.expect("deleted");
        let found = s.rebuild_analytics().await;
        assert_eq!((found.executions, found.wrong, found.gone, found.rollups_wrong), (1, 0, 1, 0));
        assert_eq!(count(doc! { "_id.e": "theirs" }).await, 0);
        assert_eq!(s.counts_right().await, 1);

        // What somebody spoils is found and mended.
        let rollups = database.collection::<Document>("stepwell_rollups");
        let spoil = doc! { "$inc": { "p.0.f.n": 5_i64 } };
        rollups.update_one(doc! { "_id.l": "day" }, spoil).await.expect("spoilt");
        let counted = database.collection::<Document>("stepwell_rollup_counted");
        let spoil = doc! { "$set": { "outcome": "c" } };
        counted.update_one(doc! { "_id": "ours" }, spoil).await.expect("spoilt");
        let found = s.rebuild_analytics().await;
        assert_eq!((found.wrong, found.gone), (1, 0));
        assert!(found.rollups_wrong > 0, "{found:?}");
        assert_eq!(s.counts_right().await, 1);
    });
}

#[test]
fn foreign_artifacts_are_seen_when_they_come_change_and_go() {
    conduct(async |b| {
        let s = b.serve().await;
        s.create("e").await;
        let before = b.store_artifact("e", "before", 1).await;
        let request = WatchExecutionRequest { include_artifacts: true, follow: true, ..watch("e") };
        let mut watch = s.watch(request).await;
        let snapshot = watch.snapshot().await;
        assert_eq!(snapshot[1].artifact().map(|(_, a)| a.artifact_id.clone()), Some(before));
        let id = b.store_artifact("e", "name", 5).await;
        let told = async |watch: &mut Watch| {
            let event = watch.next_change().await;
            let (kind, artifact) = event.artifact().expect("of an artifact");
            (kind, artifact.artifact_id.clone(), artifact.artifact_name.clone())
        };
        // Neither is told twice.
        let expected = (ChangeType::Created, id.clone(), "name".to_owned());
        assert_eq!(told(&mut watch).await, expected);
        let query = doc! { "_id": ObjectId::parse_str(&id).expect("an id") };
        let artifacts = b.artifacts().await;
        let rename = doc! { "$set": { "artifact_name": "other" } };
        artifacts.update_one(query.clone(), rename).await.expect("updated");
        let expected = (ChangeType::Updated, id.clone(), "other".to_owned());
        assert_eq!(told(&mut watch).await, expected);
        artifacts.delete_one(query).await.expect("deleted");
        assert_eq!(told(&mut watch).await, (ChangeType::Deleted, id, String::new()));
        // Our own deletion is told when it is marked, and not again when the document goes.
        let marked = b.store_artifact("e", "marked", 5).await;
        told(&mut watch).await;
        b.mark_artifact("e", &marked).await;
        assert_eq!(told(&mut watch).await, (ChangeType::Deleted, marked, String::new()));
        artifacts.delete_one(doc! { "artifact_name": "marked" }).await.expect("deleted");
        s.start("e", 1).await;
        assert!(watch.next_change().await.step().is_some());
    });
}

#[test]
fn retention_leaves_alone_what_has_no_age_and_what_it_does_not_delete() {
    conduct(async |b| {
        let s = b.serve_with(|config| config.retention.interval = std::time::Duration::ZERO).await;
        let mut old = foreign_execution("without-a-time");
        old.insert("_id", "a text");
        old.insert("status", "completed");
        b.executions().await.insert_one(old).await.expect("inserted");
        s.create("e").await;
        s.start("e", 1).await;
        s.finish("e", ExecutionStatus::Completed).await;
        let odd = doc! { "$set": { "theirs": { "a.b": [1, 2] } } };
        b.executions().await.update_one(doc! { "execution_id": "e" }, odd).await.expect("updated");
        b.age_all_of("executions", doc! { "execution_id": "e" }, 200).await;
        b.age_steps("e", 200).await;
        // A step of an execution that nobody knows is no older than any other.
        let orphan = |n: i32| doc! { "execution_id": "nobody", "step_id": n, "step_name": "s" };
        b.steps().await.insert_many([orphan(1), orphan(2)]).await.expect("inserted");
        b.age_all_of("execution_steps", doc! { "step_id": 2 }, 200).await;
        // And one that does not say whose it is.
        let homeless = doc! { "step_id": 3, "execution_id": 17 };
        b.steps().await.insert_one(homeless).await.expect("inserted");
        b.age_all_of("execution_steps", doc! { "step_id": 3 }, 4000).await;
        let before = stored_execution(&b, "e").await;
        let counted = s.run_retention(true).await.records();
        assert_eq!(counted, [0, 2, 0]);
        assert_eq!(s.run_retention(false).await.records(), counted);
        let mut after = stored_execution(&b, "e").await;
        assert_eq!(after.remove("trims"), Some(Bson::Int32(1)));
        assert_eq!(after, before, "nothing else of it changed");
        let left = b.steps().await.distinct("step_id", doc! {}).await.expect("found");
        assert_eq!(left, [Bson::Int32(1), Bson::Int32(3)]);
        assert_eq!(b.executions().await.count_documents(doc! {}).await.expect("counted"), 2);
    });
}

#[test]
fn another_server_that_runs_retention_is_waited_for_until_its_lease_ends() {
    conduct(async |b| {
        let s = b.serve().await;
        let meta = b.mongodb().await.collection::<Document>("stepwell_meta");
        let later = DateTime::from_millis(DateTime::now().timestamp_millis() + 60_000);
        let lease = doc! { "_id": "retention", "holder": "another", "expires_at": later };
        meta.insert_one(lease).await.expect("inserted");
        for dry_run in [true, false] {
            let run = s.try_run_retention(dry_run).await.map(drop);
            refused(run, Code::Aborted, "RETENTION_RUNNING");
        }
        // It was killed: its lease ran out.
        let over = doc! { "$set": { "expires_at": DateTime::now() } };
        meta.update_one(doc! { "_id": "retention" }, over).await.expect("updated");
        s.run_retention(false).await;
        let lease = meta.find_one(doc! { "_id": "retention" }).await.expect("found").expect("kept");
        assert!(!lease.contains_key("holder") && lease.get_datetime("ended_at").is_ok(), "{lease}");
    });
}

#[test]
fn every_write_sets_last_change() {
    conduct(async |b| {
        let s = b.serve().await;
        let of_execution = async |revision: i64| {
            let stored = stored_execution(&b, "e").await;
            assert_eq!(stored["last_change"], Bson::from(format!("e//{revision}")));
            assert_eq!(stored["revision"], Bson::Int64(revision));
        };
        of_execution(s.create("e").await.revision).await;
        let request = UpdateExecutionRequest { metadata: meta(json!({ "a": 1 })), ..update("e") };
        of_execution(s.update_execution(request).await.revision).await;
        let request = RequestCancelRequest { execution_id: "e".into(), reason: "r".into() };
        of_execution(s.request_cancel(request).await.revision).await;
        of_execution(s.finish("e", ExecutionStatus::Cancelled).await.revision).await;
        let of_step = async |revision: i64| {
            let stored = stored_step(&b, "e", 5).await;
            assert_eq!(stored["last_change"], Bson::from(format!("e/5/{revision}")));
        };
        let steps =
            vec![PlannedStep { step_id: Some(5), step_name: "work".into(), ..Default::default() }];
        let planned = s
            .plan_steps(PlanStepsRequest { execution_id: "e".into(), steps, ..Default::default() })
            .await;
        of_step(planned.steps[0].revision).await;
        of_step(s.start("e", 5).await.revision).await;
        let request = UpdateStepRequest { progress: Some(0.5), ..update_step("e", 5) };
        of_step(s.update_step(request).await.revision).await;
        of_step(s.end("e", 5, StepStatus::Completed).await.revision).await;
        let put = Execution {
            execution_id: "put".into(),
            app_name: "app".into(),
            status: ExecutionStatus::Completed.into(),
            ..Default::default()
        };
        s.ingest_all(vec![ingest_request::Write::PutExecution(put)]).await;
        let stored = stored_execution(&b, "put").await;
        let revision = stored.get_i64("revision").expect("a revision");
        assert_eq!(stored["last_change"], Bson::from(format!("put//{revision}")));
    });
}

/// Whether the winning plan uses an index whose leading keys are exactly these, and the index's properties.
async fn served_by(b: &Backend, collection: &str, keys: &[&str]) -> Option<Document> {
    let indexes = b
        .mongodb()
        .await
        .run_command(doc! { "listIndexes": collection })
        .await
        .expect("indexes are listed");
    let batch = indexes.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    batch.expect("a batch").iter().find_map(|index| {
        let index = index.as_document()?;
        let key = index.get_document("key").ok()?;
        let leading: BTreeSet<&str> = key.keys().take(keys.len()).map(String::as_str).collect();
        (leading == keys.iter().copied().collect()).then(|| index.clone())
    })
}

#[test]
fn every_lookup_of_the_contract_has_its_index() {
    conduct(async |b| {
        let s = b.serve().await;
        s.create("e").await;
        s.start("e", 1).await;
        let executions: [&[&str]; 5] = [
            &["execution_id"],
            &["app_id", "sub_app_id"],
            &["user_id"],
            &["status"],
            &["started_at"],
        ];
        let steps: [&[&str]; 6] = [
            &["execution_id", "step_id"],
            &["execution_id", "step_key"],
            &["execution_id"],
            &["status"],
            &["step_name"],
            &["started_at"],
        ];
        // Points end by an option of their time series.
        let metrics: [&[&str]; 1] = [&["execution_id", "timestamp"]];
        for (collection, indexes) in [
            ("executions", &executions[..]),
            ("execution_steps", &steps[..]),
            ("execution_metrics", &metrics[..]),
        ] {
            for keys in indexes {
                let index = served_by(&b, collection, keys).await;
                let index = index.unwrap_or_else(|| panic!("{collection}: no index on {keys:?}"));
                let unique = index.get_bool("unique").unwrap_or(false);
                let must_be_unique = matches!(keys, [_, "step_id"] | [_, "step_key"])
                    || (collection == "executions" && keys[0] == "execution_id");
                assert!(unique || !must_be_unique, "{collection}: {keys:?} is not unique");
            }
        }
        // The rule is the database's: another program cannot break it either.
        let twice = b.executions().await.insert_one(doc! { "execution_id": "e" }).await;
        assert!(twice.is_err(), "a second document of one execution_id");
        let twice = b.steps().await.insert_one(doc! { "execution_id": "e", "step_id": 1 }).await;
        assert!(twice.is_err(), "a second document of one step");
        for step_id in [10, 11] {
            let keyless = doc! { "execution_id": "e", "step_id": step_id, "step_key": Bson::Null };
            b.steps().await.insert_one(keyless).await.expect("keys may be missing");
        }
    });
}

#[test]
fn the_usual_lists_are_served_by_an_index() {
    conduct(async |b| {
        let s = b.serve().await;
        let writes = (0..400).map(|n| {
            ingest_request::Write::PutExecution(Execution {
                execution_id: format!("e{n}"),
                app_id: Some(n % 4),
                app_name: format!("app {}", n % 4),
                sub_app_id: Some(n % 3),
                user_id: Some(format!("u{}", n % 10)),
                status: (1 + n % 4),
                started_at: Some(time(i64::from(n))),
                ..Default::default()
            })
        });
        s.ingest_all(writes.collect()).await;
        let database = b.mongodb().await;
        let namespace = format!("{}.executions", b.database_name());
        // Its collection holds 1 MiB and forgets the oldest first: nothing but what is looked at may be in it.
        let only = doc! { "ns": &namespace, "op": { "$in": ["query", "command"] } };
        database.run_command(doc! { "profile": 1, "filter": only }).await.expect("profiling is on");
        let none = ExecutionFilter::default;
        let window = || ExecutionFilter {
            started_at_from: Some(time(100)),
            started_at_until: Some(time(300)),
            ..none()
        };
        let filters = [
            none(),
            window(),
            ExecutionFilter { user_ids: vec!["u1".into()], ..none() },
            ExecutionFilter { app_ids: vec![1], ..none() },
            ExecutionFilter { app_ids: vec![1], sub_app_ids: vec![2], ..none() },
            ExecutionFilter { statuses: vec![2], ..none() },
            ExecutionFilter { user_ids: vec!["u1".into()], statuses: vec![2], ..none() },
            ExecutionFilter { app_ids: vec![1], statuses: vec![2], ..none() },
            ExecutionFilter { user_ids: vec!["u1".into()], ..window() },
            ExecutionFilter { app_ids: vec![1], ..window() },
            ExecutionFilter { statuses: vec![2], ..window() },
            ExecutionFilter { user_ids: vec!["u1".into()], statuses: vec![1, 2], ..window() },
        ];
        for filter in filters {
            for order in [ExecutionOrder::StartedAtDesc, ExecutionOrder::StartedAtAsc] {
                let request = ListExecutionsRequest {
                    filter: Some(filter.clone()),
                    order: order.into(),
                    page_size: 10,
                    ..Default::default()
                };
                s.list_executions(request).await;
            }
        }
        database.run_command(doc! { "profile": 0 }).await.expect("profiling is off");
        let profile = database.collection::<Document>("system.profile");
        let query = doc! { "ns": namespace, "planSummary": { "$exists": true } };
        let mut found = profile.find(query).await.expect("the profile is readable");
        let mut count = 0;
        while found.advance().await.expect("readable") {
            let entry: Document = found.deserialize_current().expect("a document");
            count += 1;
            let shown = format!(
                "{} {:?}",
                entry.get_str("planSummary").unwrap_or(""),
                entry.get("command")
            );
            assert!(shown.contains("IXSCAN"), "not by an index: {shown}");
            assert!(!entry.get_bool("hasSortStage").unwrap_or(false), "sorted in memory: {shown}");
        }
        assert!(count >= 24, "only {count} queries were seen");
    });
}

#[test]
fn the_pool_keeps_ten_connections_unless_told_otherwise() {
    run(async {
        let mongod = Mongod::start();
        let connections = async |uri: &str| {
            let b = Backend::on(uri);
            let _s = b.serve_with(|config| config.mongodb.min_pool_size = None).await;
            let admin =
                mongodb::Client::with_uri_str(mongod.uri()).await.expect("valid").database("admin");
            let name = "stepwell-pool-test";
            let wanted = if uri.contains("minPoolSize=30") { 30 } else { 10 };
            eventually("the pool has its least size", async || {
                let pipeline = vec![
                    doc! { "$currentOp": { "allUsers": true, "idleConnections": true } },
                    doc! { "$match": { "appName": name, "client": { "$exists": true } } },
                ];
                let mut found = admin.aggregate(pipeline).await.ok()?;
                let mut count = 0;
                while found.advance().await.ok()? {
                    count += 1;
                }
                (count >= wanted).then_some(count)
            })
            .await
        };
        let with_name = format!("{}&appName=stepwell-pool-test", mongod.uri());
        let ten = connections(&with_name).await;
        assert!(ten < 30, "{ten} connections, though nobody says so");
        connections(&format!("{with_name}&minPoolSize=30")).await;
    });
}

#[test]
fn a_standalone_mongod_does_everything_but_watching() {
    run(async {
        let mongod = Mongod::with(false, &[]);
        let b = Backend::on(&mongod.uri());
        let s = b.serve().await;
        s.create("e").await;
        s.start("e", 1).await;
        s.update_step(UpdateStepRequest { progress: Some(0.5), ..update_step("e", 1) }).await;
        s.end("e", 1, StepStatus::Completed).await;
        s.finish("e", ExecutionStatus::Completed).await;
        assert_eq!(s.list_executions(ListExecutionsRequest::default()).await.executions.len(), 1);
        let answers = s.ingest_all(vec![ingest_request::Write::CreateExecution(create("f"))]).await;
        assert!(matches!(answers[0], ingest_response::Result::Execution(_)));
        let point = MetricPoint {
            timestamp: Some(time(wall_clock_ms())),
            metrics: [("n".to_owned(), 1.0)].into(),
            ..Default::default()
        };
        let points = RecordMetricsRequest {
            execution_id: "e".into(),
            points: vec![point],
            request_id: Some("r".into()),
        };
        for _ in 0..2 {
            assert_eq!(s.record_metrics(points.clone()).await.accepted, 1);
        }
        let query = QueryMetricsRequest { execution_id: "e".into(), ..Default::default() };
        assert_eq!(s.query_metrics(query).await.points.len(), 1);
        for answer in [s.try_watch(watch("e")).await, s.try_watch_all(watch_all()).await] {
            let status = match answer {
                Ok(watch) => watch.broken().await,
                Err(status) => status,
            };
            check_refusal(&status, Code::FailedPrecondition, "WATCH_NEEDS_REPLICA_SET");
            assert!(
                status.message().contains("--replSet") && status.message().contains("rs.initiate")
            );
        }
        let info = s.get_server_info(GetServerInfoRequest {}).await;
        assert!(!info.features.iter().any(|feature| feature == "watch"), "{:?}", info.features);
        assert!(info.features.iter().any(|feature| feature == "search"), "{:?}", info.features);
        // Search, of what this server wrote, of what another program did, and no more of what is gone.
        let found = async |query: &str, count: usize| {
            eventually("the search is up to date", async || {
                let request = SearchRequest { query: query.to_owned(), ..Default::default() };
                let found = s.search(request).await;
                (found.up_to_date && found.hits.len() == count).then_some(())
            })
            .await;
        };
        s.create("failing").await;
        let error = |message: &str| Some(Error { message: message.into(), ..Default::default() });
        s.finish_execution(FinishExecutionRequest {
            error: error("the quota was exceeded"),
            ..finish("failing", ExecutionStatus::Failed)
        })
        .await;
        found("quota", 1).await;
        s.start("failing", 1).await;
        let output = Some(value(json!({ "answer": "a rare bird" })));
        let step = finish_step("failing", 1, StepStatus::Completed);
        s.finish_step(FinishStepRequest { output, ..step }).await;
        found("rare bird", 1).await;
        let set = doc! { "$set": { "error": "a foreign hand was here" } };
        let failing = doc! { "execution_id": "failing" };
        b.executions().await.update_one(failing, set).await.expect("updated");
        found("foreign", 1).await;
        found("quota", 0).await;
        let delete = DeleteExecutionRequest { execution_id: "failing".into(), force: true };
        s.delete_execution(delete).await;
        found("rare bird", 0).await;
        found("foreign", 0).await;
        // Reports, too.
        let rates = s.get_success_rates(GetSuccessRatesRequest::default()).await;
        assert_eq!(rates.groups.iter().map(|group| group.total).sum::<i64>(), 2);
        let delete = DeleteExecutionRequest { execution_id: "e".into(), force: false };
        s.delete_execution(delete).await;
        s.start("f", 1).await;
        s.finish("f", ExecutionStatus::Completed).await;
        b.age_all(200).await;
        assert_eq!(s.run_retention(false).await.records(), [0, 1, 0]);
        b.age_all(400).await;
        assert_eq!(s.run_retention(false).await.records(), [1, 0, 0]);
        assert_eq!(b.stored().await, [0, 0, 0]);
    });
}
