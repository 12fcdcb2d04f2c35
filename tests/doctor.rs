//! `stepwell doctor`: the built program against real databases, beside the servers that have them open.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::process::{Command, Stdio};

use mongodb::bson::doc;
use serde_json::Value;

use support::backend::{Backend, Kind};
use support::mongod::Mongod;
use support::process::free_port;
use support::*;

/// Runs it with these arguments; its exit code, stdout and stderr.
async fn doctor(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stepwell"));
    command.arg("doctor").args(arguments).env_clear().stdin(Stdio::null());
    let ran = tokio::task::spawn_blocking(move || command.output());
    let output = in_time("the end of doctor", ran).await.expect("joined").expect("it ends");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let code = output.status.code().expect("not ended by a signal");
    (code, text(output.stdout), text(output.stderr))
}

/// The findings as JSON.
async fn findings(arguments: &[&str]) -> (i32, Vec<Value>) {
    let mut all = vec!["--output", "json"];
    all.extend_from_slice(arguments);
    let (code, out, err) = doctor(&all).await;
    let told: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {err}"));
    let findings = told["findings"].as_array().expect("a list").clone();
    let to_do = findings.iter().filter(|finding| finding["state"] == "to do").count();
    assert_eq!(told["to_do"], to_do);
    assert_eq!(code, i32::from(to_do > 0));
    (code, findings)
}

fn arguments(b: &Backend) -> Vec<String> {
    match b.kind {
        Kind::Sqlite => vec!["--data-dir".to_owned(), b.data_dir().display().to_string()],
        Kind::Mongodb => vec![
            "--mongodb-uri".to_owned(),
            b.uri().to_owned(),
            "--mongodb-database".to_owned(),
            b.database_name().to_owned(),
        ],
    }
}

fn of<'a>(findings: &'a [Value], subject: &str) -> &'a Value {
    let found = findings.iter().find(|finding| finding["subject"] == subject);
    found.unwrap_or_else(|| panic!("nothing about {subject}: {findings:?}"))
}

#[test]
fn it_looks_at_a_database_beside_its_server_and_changes_nothing() {
    for kind in Kind::ALL {
        run(async {
            let b = Backend::fresh(kind);
            let arguments = arguments(&b);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let (_, before) = findings(&arguments).await;
            match kind {
                Kind::Sqlite => {
                    assert_eq!(of(&before, "deployment")["state"], "note");
                    assert!(!b.data_dir().exists(), "it makes nothing");
                }
                Kind::Mongodb => {
                    assert_eq!(of(&before, "index executions (user_id)")["state"], "to do");
                    let names = b.mongodb().await.list_collection_names().await.unwrap();
                    assert!(names.is_empty(), "it makes nothing: {names:?}");
                }
            }
            let s = b.serve().await;
            s.create("e").await;
            let (_, found) = findings(&arguments).await;
            for subject in [
                "version",
                "deployment",
                "write concern",
                "history",
                "index executions (execution_id), unique",
                "index executions (user_id)",
                "index execution_steps (execution_id, step_key), unique",
                "index app_configurations (active)",
            ] {
                assert_eq!(of(&found, subject)["state"], "ok", "{subject}: {found:?}");
            }
            of(&found, "disk");
            match kind {
                Kind::Sqlite => {
                    b.sqlite().execute_batch("DROP INDEX executions_user").expect("dropped");
                }
                Kind::Mongodb => {
                    assert_eq!(of(&found, "clock")["state"], "ok");
                    let says = of(&found, "deployment")["says"].as_str().expect("text").to_owned();
                    assert!(says.contains("replica set rs0"), "{says}");
                    // A server would make them again.
                    s.shutdown().await;
                    for name in [
                        "user_id_1_started_at_-1_execution_id_-1_stepwell",
                        "user_id_1_status_1_started_at_-1_execution_id_-1_stepwell",
                    ] {
                        b.executions().await.drop_index(name).await.expect("dropped");
                    }
                }
            }
            let (code, found) = findings(&arguments).await;
            let missing = of(&found, "index executions (user_id)");
            assert_eq!((code, missing["state"].as_str()), (1, Some("to do")));
            assert!(!missing["advice"].as_str().expect("text").is_empty());
            let (code, out, _) = doctor(&arguments).await;
            assert_eq!(code, 1);
            let line = out.lines().position(|line| {
                line == "to do  index executions (user_id): not served by any index"
            });
            let advice = out.lines().nth(line.expect("the same in words") + 1).expect("a line");
            assert!(advice.trim_start().starts_with("-> "), "{advice}");
            b.remove().await;
        });
    }
}

#[test]
fn a_database_that_cannot_be_reached_is_exit_code_2() {
    run(async {
        let uri =
            format!("mongodb://me:secret@127.0.0.1:{}/?serverSelectionTimeoutMS=300", free_port());
        let (code, out, err) = doctor(&["--mongodb-uri", &uri]).await;
        assert_eq!((code, out.as_str()), (2, ""));
        assert!(err.contains("cannot inspect the database"), "{err}");
        assert!(!err.contains("secret"), "{err}");
        let dir = tempfile::tempdir().expect("a temp dir");
        let theirs = rusqlite::Connection::open(dir.path().join("stepwell.db")).expect("it opens");
        theirs.execute_batch("CREATE TABLE notes (text)").expect("a table");
        let (code, _, err) = doctor(&["--data-dir", dir.path().to_str().expect("UTF-8")]).await;
        assert_eq!(code, 2);
        assert!(err.contains("another program"), "{err}");
        let (code, _, err) = doctor(&["--mongodb-uri", "nonsense"]).await;
        assert_eq!(code, 78, "{err}");
        let (code, _, _) = doctor(&["--no-such-flag"]).await;
        assert_eq!(code, 2);
    });
}

#[test]
fn a_standalone_mongod_and_a_weak_write_concern_are_told() {
    run(async {
        let mongod = Mongod::with(false, &[]);
        let (code, found) = findings(&["--mongodb-uri", &mongod.uri()]).await;
        assert_eq!((code, of(&found, "deployment")["state"].as_str()), (1, Some("to do")));
        let client = mongodb::Client::with_uri_str(mongod.uri()).await.expect("the URI is valid");
        client.database("admin").run_command(doc! { "ping": 1 }).await.expect("it is there");
        let weak = ["--mongodb-write-concern", "0", "--mongodb-uri", &mongod.uri()];
        let (code, _, told) = doctor(&weak).await;
        assert!(code == 2 && told.contains("w=0"), "{code}: {told}");
    });
}
