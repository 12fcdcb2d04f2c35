//! The client commands: the built program against a real server, on both stores.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use serde_json::{Value, json};
use stepwell::config::Config;
use stepwell::proto::*;

use support::backend::{Backend, Kind};
use support::client::*;
use support::values::*;
use support::*;

/// Runs a test on each store.
fn on_both<F: Future<Output = ()>>(test: impl Fn(Backend) -> F) {
    for kind in Kind::ALL {
        println!("on {}", kind.name());
        run(async {
            let backend = Backend::fresh(kind);
            test(backend.clone()).await;
            backend.remove().await;
        });
    }
}

/// What a command did.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    /// The lines of stdout as JSON.
    fn json_lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }

    /// Stdout as one JSON document.
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn code(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "{self:?}");
        assert!(!self.err.contains("panicked"), "{self:?}");
        self
    }
}

/// The program, talking to this address; what the environment says does not count.
fn program(address: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stepwell"));
    command.args(arguments).env_clear().env("STEPWELL_SERVER", address.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a command to its end, beside the server.
async fn cli_at(address: SocketAddr, arguments: &[&str]) -> Ran {
    ended(program(address, arguments)).await
}

async fn cli(server: &support::server::Server, arguments: &[&str]) -> Ran {
    cli_at(server.address(), arguments).await
}

async fn ended(mut command: Command) -> Ran {
    let child = command.spawn().expect("the program starts");
    wait(child).await
}

async fn wait(child: Child) -> Ran {
    let wait = tokio::task::spawn_blocking(move || child.wait_with_output());
    let output = in_time("the end of a command", wait).await.expect("joined").expect("it ends");
    Ran {
        code: output.status.code().expect("not ended by a signal"),
        out: String::from_utf8(output.stdout).expect("UTF-8"),
        err: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

// --- looking, stopping, deleting ---

#[test]
fn retention_is_run_and_counted_by_hand() {
    on_both(async |b| {
        let s = b.serve_with(|config| config.retention.interval = std::time::Duration::ZERO).await;
        for id in ["old", "new"] {
            s.create(id).await;
            s.start(id, 1).await;
            s.finish(id, ExecutionStatus::Completed).await;
        }
        b.age_execution("old", 400).await;
        let counted = cli(&s, &["retention", "run", "--dry-run"]).await.code(0);
        assert!(counted.err.contains("nothing was deleted"), "{counted:?}");
        let lines: Vec<Vec<&str>> =
            counted.out.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["COLLECTION", "RECORDS", "BYTES", "OLDEST", "KEPT"]);
        assert_eq!(lines[1][..3], ["executions", "1", "0"]);
        assert_eq!(lines[2][..3], ["execution_steps", "1", "0"]);
        assert_eq!(lines[3][..3], ["execution_artifacts", "0", "0"]);
        s.execution("old").await;
        let run = ["retention", "run", "--output", "json"];
        let ran = cli(&s, &run).await.code(0);
        let receipt = ran.json_lines().pop().expect("a receipt");
        assert_eq!(receipt["dry_run"], json!(false));
        assert_eq!(receipt["receipt"][0]["records"], json!(1));
        assert_eq!(receipt["receipt"][2]["oldest_kept"], Value::Null);
        assert!(receipt["receipt"][0]["oldest_kept"].is_string(), "{receipt}");
        s.try_execution("old").await.expect_err("it is gone");
        s.execution("new").await;
    });
}

#[test]
fn reports_are_drawn_and_told_as_json() {
    on_both(async |b| {
        let s = b.serve().await;
        for number in 0..4 {
            let id = format!("e{number}");
            s.create(&id).await;
            s.start(&id, 1).await;
            let broken = number == 0;
            let error = broken.then(|| run_error("no answer within 30 s"));
            let status = if broken { ExecutionStatus::Failed } else { ExecutionStatus::Completed };
            s.finish_execution(FinishExecutionRequest { error, ..finish(&id, status) }).await;
        }
        let report = cli(&s, &["report", "day", "-n", "2"]).await.code(0);
        assert_eq!(report.err, "");
        let today = report.out.lines().find(|line| line.contains('*')).expect("today");
        let words: Vec<&str> = today.split_whitespace().collect();
        assert_eq!(words[1], "4", "{today}");
        assert!(words[2].starts_with('█') && today.contains("75.0 %"), "{today}");
        assert!(!report.out.contains('\u{1b}'), "no colour where nobody looks");
        let told =
            cli(&s, &["report", "week", "--time-zone", "Asia/Kathmandu", "-o", "json"]).await;
        let week = told.code(0).json();
        assert_eq!(week["time_zone"], json!("Asia/Kathmandu"));
        assert_eq!(week["periods"].as_array().map(Vec::len), Some(7));
        assert_eq!(week["periods"][6]["executions"], json!(4));
        assert_eq!(week["freshness"]["complete"], json!(true));

        let errors = cli(&s, &["errors"]).await.code(0);
        assert!(errors.out.contains("no answer within <duration>"), "{errors:?}");
        let errors = cli(&s, &["errors", "--output", "json"]).await.code(0).json();
        assert_eq!(errors["errors"][0]["samples"][0]["execution_id"], json!("e0"));
        let none = cli(&s, &["errors", "--app-name", "nobody's"]).await.code(0);
        assert_eq!((none.out.as_str(), none.err.trim()), ("", "no errors"));

        let trends = cli(&s, &["trends", "--interval", "6h"]).await.code(0);
        assert!(trends.out.contains("too few durations to tell"), "{trends:?}");
        let trends = cli(&s, &["trends", "--output", "json"]).await.code(0).json();
        assert_eq!(trends["apps"][0]["direction"], json!("TREND_DIRECTION_UNKNOWN"));
        let activity = cli(&s, &["activity"]).await.code(0);
        assert!(activity.out.contains("Mon  ") && activity.out.contains('█'), "{activity:?}");
        let activity = cli(&s, &["activity", "--output", "json"]).await.code(0).json();
        assert_eq!(activity["executions"], json!(4));

        let wrong = cli(&s, &["report", "day", "--time-zone", "Mars"]).await.code(1);
        assert!(wrong.err.contains("time_zone"), "{wrong:?}");
        cli(&s, &["report", "year"]).await.code(2);
        cli(&s, &["trends", "--interval", "7m"]).await.code(1);
    });
}

#[test]
fn lists_filter_page_and_fit() {
    on_both(|backend| async move {
        let server = backend.serve().await;
        for number in 0..7 {
            let request = CreateExecutionRequest {
                app_id: Some(number % 2),
                app_name: "an app with a rather long name that has to be cut".to_owned(),
                user_id: Some(format!("user-{}", number % 3)),
                metadata: meta(json!({ "model": { "name": "m" }, "number": number })),
                started_at: Some(time(1_700_000_000_000 + i64::from(number) * 3_600_000)),
                ..create(&format!("list-{number}"))
            };
            ok(server.executions().create_execution(request).await);
        }
        server.finish("list-3", ExecutionStatus::Failed).await;
        let ids = async |arguments: &[&str]| {
            let mut all = vec!["executions", "list", "--output", "json"];
            all.extend_from_slice(arguments);
            let listed = cli(&server, &all).await.code(0).json_lines();
            let ids =
                listed.iter().map(|line| line["execution_id"].as_str().expect("an id").to_owned());
            ids.map(|id| id.trim_start_matches("list-").to_owned()).collect::<Vec<_>>().join("")
        };
        assert_eq!(ids(&[]).await, "6543210");
        assert_eq!(ids(&["--order", "oldest", "-n", "3"]).await, "012");
        assert_eq!(ids(&["--app-id", "1"]).await, "531");
        assert_eq!(ids(&["--user", "user-0", "--user", "user-1"]).await, "64310");
        assert_eq!(ids(&["--status", "failed"]).await, "3");
        assert_eq!(ids(&["--status", "running,failed", "--metadata", "number=3"]).await, "3");
        assert_eq!(ids(&["--metadata", "model.name=m", "--limit", "0"]).await, "6543210");
        assert_eq!(
            ids(&["--since", "2023-11-15T00:13:20+01:00", "--until", "2023-11-15T02:13:20Z"]).await,
            "321"
        );
        assert_eq!(ids(&["--since", "24h"]).await, "");
        assert_eq!(ids(&["--min-duration", "1s"]).await, "3");

        let mut narrow = program(server.address(), &["executions", "list", "-n", "2"]);
        let ran = ended_with(&mut narrow, "COLUMNS", "80").await.code(0);
        let lines: Vec<&str> = ran.out.lines().collect();
        assert_eq!(lines.len(), 3, "{ran:?}");
        assert!(lines[0].starts_with("EXECUTION ID"), "{ran:?}");
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{ran:?}");
        assert!(ran.out.contains('…') && !ran.out.contains('\u{1b}'), "{ran:?}");
        assert!(ran.err.contains("the first 2"), "{ran:?}");
    });
}

async fn ended_with(command: &mut Command, name: &str, value: &str) -> Ran {
    let child = command.env(name, value).spawn().expect("the program starts");
    wait(child).await
}

#[test]
fn an_execution_is_shown_stopped_and_deleted() {
    on_both(|backend| async move {
        let server = backend.serve().await;
        server.create("shown").await;
        for step in 1..=3 {
            let request = StartStepRequest {
                input: Some(value(json!({ "number": step }))),
                ..start("shown", step)
            };
            ok(server.steps().start_step(request).await);
        }
        let failed = FinishStepRequest {
            error: Some(run_error("it broke\nbadly")),
            ..finish_step("shown", 2, StepStatus::Failed)
        };
        ok(server.steps().finish_step(failed).await);

        let shown =
            cli(&server, &["executions", "show", "shown", "-o", "json", "--payloads"]).await;
        let shown = shown.code(0).json();
        assert_eq!(shown["execution"]["status"], "EXECUTION_STATUS_RUNNING");
        assert_eq!(shown["steps"].as_array().map(Vec::len), Some(3));
        assert_eq!(shown["steps"][1]["error"]["message"], "it broke\nbadly");
        assert_eq!(shown["steps"][2]["input"], json!({ "number": 3 }));
        let brief =
            cli(&server, &["executions", "show", "shown", "-o", "json", "--no-steps"]).await;
        assert!(brief.code(0).json().get("steps").is_none());
        let text = cli(&server, &["executions", "show", "shown"]).await.code(0);
        assert!(text.out.contains("error of step 2 "), "{text:?}");

        let absent = cli(&server, &["executions", "show", "absent"]).await.code(1);
        assert!(absent.err.contains("NOT_FOUND") && absent.out.is_empty(), "{absent:?}");

        let stop = ["executions", "cancel", "shown", "--reason", "enough", "-o", "json"];
        assert_eq!(cli(&server, &stop).await.code(0).json()["cancel_reason"], "enough");
        let kept = cli(&server, &["executions", "delete", "shown"]).await.code(1);
        assert!(kept.err.contains("FAILED_PRECONDITION"), "{kept:?}");
        let deleted = cli(&server, &["executions", "delete", "absent", "shown", "--force"]).await;
        assert_eq!(deleted.code(1).out, "deleted shown\n");
        assert!(server.try_execution("shown").await.is_err());

        let info = cli(&server, &["server-info", "-o", "json"]).await.code(0).json();
        assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(info["store"], backend.kind.name());
    });
}

#[test]
fn what_cannot_start_says_so_with_code_2() {
    run(async {
        let nobody = SocketAddr::from(([127, 0, 0, 1], support::process::free_port()));
        for arguments in [
            &["executions", "list"][..],
            &["executions", "watch", "x"],
            &["executions", "delete", "x"],
            &["server-info"],
            &["executions", "list", "--server", "https://127.0.0.1:1"],
            &["executions", "list", "--since", "yesterday"],
            &["executions", "list", "--no-such-flag"],
            &["import", "/no/such/folder"],
        ] {
            let ran = cli_at(nobody, arguments).await.code(2);
            assert!(ran.out.is_empty() && ran.err.starts_with("error: "), "{ran:?}");
        }
        let help = cli_at(nobody, &["--help"]).await.code(0);
        assert!(help.out.contains("Exit codes:"), "{help:?}");
    });
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    run(async {
        let backend = Backend::fresh(Kind::Sqlite);
        let server = backend.serve().await;
        for number in 0..300 {
            server.create(&format!("piped-{number}")).await;
        }
        let mut child = program(server.address(), &["executions", "list", "-n", "0", "-o", "json"])
            .spawn()
            .expect("the program starts");
        let first = tokio::task::spawn_blocking(move || {
            let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
            let mut line = String::new();
            stdout.read_line(&mut line).expect("a line");
            drop(stdout);
            (line, child)
        });
        let (line, child) = first.await.expect("read");
        assert!(line.starts_with('{'), "{line}");
        let ran = wait(child).await.code(0);
        assert_eq!(ran.err, "");
    });
}

// --- watching ---

/// Starts a watch whose lines can be read one by one.
fn watching(
    address: SocketAddr,
    arguments: &[&str],
) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = program(address, arguments).spawn().expect("the program starts");
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    (child, stdout)
}

type Lines = BufReader<std::process::ChildStdout>;

/// Reads events until one fits.
async fn until(mut lines: Lines, fits: impl Fn(&Value) -> bool + Send + 'static) -> (Value, Lines) {
    let read = tokio::task::spawn_blocking(move || {
        loop {
            let mut line = String::new();
            let read = lines.read_line(&mut line).expect("a line");
            assert!(read > 0, "the watch ended early");
            let event: Value = serde_json::from_str(&line).expect("a line of JSON");
            if fits(&event) {
                return (event, lines);
            }
        }
    });
    in_time("an event", read).await.expect("read")
}

#[test]
fn a_watch_goes_to_the_end_and_says_how_it_ended() {
    on_both(|backend| async move {
        let server = backend.serve().await;
        for (id, status, code) in [
            ("well", ExecutionStatus::Completed, 0),
            ("badly", ExecutionStatus::Failed, 1),
            ("stopped", ExecutionStatus::Cancelled, 1),
        ] {
            server.create(id).await;
            server.start(id, 1).await;
            let arguments = ["executions", "watch", id, "-o", "json"];
            let (child, lines) = watching(server.address(), &arguments);
            let (event, lines) =
                until(lines, |event| event.get("snapshot_complete").is_some()).await;
            let token = event["resume_token"].as_str().expect("a token").to_owned();
            server.end(id, 1, StepStatus::Completed).await;
            server.finish(id, status).await;
            let (event, _lines) = until(lines, |event| event.get("execution").is_some()).await;
            let shown = event["execution"]["execution"]["status"].clone();
            assert_eq!(shown, status.as_str_name());
            wait(child).await.code(code);

            // From the middle, and from a point after the end.
            let arguments = ["executions", "watch", id, "-o", "json", "--resume-token", &token];
            let resumed = cli(&server, &arguments).await.code(code).json_lines();
            assert_eq!(resumed[0]["step"]["step"]["status"], "STEP_STATUS_COMPLETED");
            let last = resumed.last().expect("events")["resume_token"].as_str().expect("a token");
            cli(&server, &["executions", "watch", id, "--resume-token", last]).await.code(code);
            // As text.
            let text = cli(&server, &["executions", "watch", id]).await.code(code);
            assert!(text.out.contains(&format!("execution {id} ")), "{text:?}");
        }
        let forged = ["executions", "watch", "well", "--resume-token", "forged"];
        assert!(cli(&server, &forged).await.code(1).err.contains("INVALID_ARGUMENT"));
        cli(&server, &["executions", "watch", "absent"]).await.code(1);
    });
}

/// A way to a server on which everything takes its time.
async fn slow_way_to(server: SocketAddr) -> SocketAddr {
    const LATENCY: Duration = Duration::from_millis(350);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = tokio::net::TcpStream::connect(server).await.expect("connected");
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move {
                tokio::io::copy(&mut from_client, &mut to_server).await.map(drop)
            });
            tokio::spawn(async move {
                let mut bytes = vec![0; 64 * 1024];
                loop {
                    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                    let read = from_server.read(&mut bytes).await?;
                    tokio::time::sleep(LATENCY).await;
                    if read == 0 {
                        return to_client.shutdown().await;
                    }
                    to_client.write_all(&bytes[..read]).await?;
                }
            });
        }
    });
    address
}

#[test]
fn a_watch_opens_however_long_that_takes() {
    on_both(|backend| async move {
        let server = backend.serve().await;
        server.create("ended").await;
        server.finish("ended", ExecutionStatus::Completed).await;
        let address = slow_way_to(server.address()).await;
        let watch = ["executions", "watch", "ended", "-o", "json"];
        let events = cli_at(address, &watch).await.code(0).json_lines();
        let token = events.last().expect("events")["resume_token"].as_str().expect("a token");
        let resumed = [&watch[..], &["--resume-token", token]].concat();
        cli_at(address, &resumed).await.code(0);
    });
}

#[test]
fn a_watch_survives_the_restart_of_its_server() {
    on_both(|backend| async move {
        let server = backend.serve().await;
        let address = server.address();
        server.create("long").await;
        let arguments = ["executions", "watch", "--app-name", "app", "-o", "json"];
        server.start("long", 1).await;
        let app_name = server.execution("long").await.app_name;
        let arguments =
            arguments.map(|argument| if argument == "app" { &app_name } else { argument });
        let (mut child, lines) = watching(address, &arguments);
        let (_, lines) = until(lines, |event| event.get("snapshot_complete").is_some()).await;
        server.shutdown().await;
        let server = backend.serve_with(|config| config.listen = address).await;
        server.end("long", 1, StepStatus::Completed).await;
        let ended = |event: &Value| event["step"]["step"]["status"] == "STEP_STATUS_COMPLETED";
        let (_, lines) = until(lines, ended).await;
        child.kill().expect("it runs");
        drop(lines);
        let mut said = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut said).expect("read");
        child.wait().expect("it ended");
        assert!(said.contains("connection lost, retrying"), "{said}");
    });
}

// --- importing ---

/// Writes a file with these lines.
fn write(folder: &Path, name: &str, lines: &[&str]) -> PathBuf {
    let file = folder.join(name);
    fs::create_dir_all(file.parent().expect("a parent")).expect("a folder");
    fs::write(&file, lines.join("\n")).expect("a file");
    file
}

#[test]
fn refused_records_are_named_and_the_rest_goes_in() {
    on_both(|backend| async move {
        let server = backend.serve().await;
        let folder = tempfile::tempdir().expect("a temp dir");
        let long_id =
            format!(r#"{{"execution_id":"{}","app_name":"a","status":"failed"}}"#, "x".repeat(129));
        write(
            folder.path(),
            "sets/one/executions.jsonl",
            &[
                "\u{feff}{\"execution_id\":\"a\",\"app_name\":\"x\",\"status\":\"completed\"}\r",
                "",
                r#"{"execution_id":"b","app_name":"x","status":null}"#,
                r#"{"execution_id":"a","app_name":"x","status":"completed"}"#,
                r#"{"execution_id":"a","app_name":"other","status":"completed"}"#,
                r#"{"execution_id":"with space","app_name":"x","status":"completed"}"#,
                &long_id,
                "{broken",
                r#"{"execution_id":"c","app_name":"x","status":"completed",
                   "started_at":{"$date":{"$numberLong":"-1"}},"extra":1}"#
                    .replace('\n', " ")
                    .as_str(),
            ],
        );
        // In name before the executions, and with keys before numbers.
        write(
            folder.path(),
            "sets/execution_steps.jsonl",
            &[
                r#"{"execution_id":"a","step_id":"key","step_name":"s","status":"completed"}"#,
                r#"{"execution_id":"a","step_id":0,"step_name":"s","status":"completed","duration_ms":-5}"#,
                r#"{"execution_id":"a","step_id":7.0,"step_name":"s","status":"failed","error":"e"}"#,
                r#"{"execution_id":"unknown","step_id":1,"step_name":"s","status":"completed"}"#,
                r#"{"execution_id":"a","step_id":-1,"step_name":"s","status":"completed"}"#,
            ],
        );
        write(folder.path(), "sets/execution_metrics.jsonl", &["{}", "{}"]);
        let arguments = ["import", path(folder.path()), "-o", "json"];
        let ran = cli(&server, &arguments).await.code(1);
        let summary = ran.json();
        assert_eq!(
            summary["total"],
            json!({
                "documents": 15, "stored": 5, "already_there": 1, "refused": 9,
                "not_sent": 0, "too_old": 0, "assumed_status": 0, "unreadable": false,
            }),
            "{ran:?}"
        );
        let refused: BTreeMap<(String, u64), String> = summary["refusals"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|refusal| {
                let text = |name: &str| refusal[name].as_str().expect("text").to_owned();
                let file = text("file").rsplit('/').next().expect("a name").to_owned();
                ((file, refusal["line"].as_u64().expect("a line")), text("reason"))
            })
            .collect();
        for (file, line, reason) in [
            ("executions.jsonl", 3, "has no status"),
            ("executions.jsonl", 5, "ALREADY_EXISTS"),
            ("executions.jsonl", 6, "INVALID_ARGUMENT"),
            ("executions.jsonl", 7, "129"),
            ("executions.jsonl", 8, "not JSON"),
            ("execution_steps.jsonl", 4, "NOT_FOUND"),
            ("execution_steps.jsonl", 5, "negative"),
            ("execution_metrics.jsonl", 1, "has no timestamp"),
            ("execution_metrics.jsonl", 2, "has no timestamp"),
        ] {
            let said = &refused[&(file.to_owned(), line)];
            assert!(said.contains(reason), "{file}:{line}: {said}");
            assert!(ran.err.contains(&format!("{file}:{line}: {said}")), "{ran:?}");
        }
        assert!(ran.err.contains("\"extra\" is not a field"), "{ran:?}");

        let shown = cli(&server, &["executions", "show", "a", "-o", "json"]).await.code(0).json();
        let steps = shown["steps"].as_array().expect("a list");
        let ids: Vec<_> = steps.iter().map(|step| (&step["step_id"], &step["step_key"])).collect();
        assert_eq!(
            ids,
            [(&json!(0), &json!(null)), (&json!(7), &json!(null)), (&json!(8), &json!("key"))]
        );
        assert_eq!(steps[0]["duration_ms"], -5);
        assert_eq!(steps[0]["started_at"], json!(null));

        // The same again finds all of it there; the assumed status lets one more in.
        let again = cli(&server, &arguments).await.code(1).json();
        assert_eq!(
            (&again["total"]["stored"], &again["total"]["already_there"]),
            (&json!(0), &json!(6))
        );
        let mut assuming = arguments.to_vec();
        assuming.extend(["--assume-status", "cancelled"]);
        let assumed = cli(&server, &assuming).await.code(1).json();
        assert_eq!(
            (&assumed["total"]["stored"], &assumed["total"]["refused"]),
            (&json!(1), &json!(8))
        );
        assert_eq!(server.execution("b").await.status(), ExecutionStatus::Cancelled);
    });
}

#[test]
fn configurations_are_imported_as_they_are() {
    on_both(|backend| async move {
        let server = backend.serve().await;
        let folder = tempfile::tempdir().expect("a temp dir");
        write(
            folder.path(),
            "app_configurations.jsonl",
            &[
                r#"{"app_id":1,"app_name":"a","version":"1","configuration":{"steps":[]},"active":true,
                    "created_at":{"$date":1000},"created_by":null}"#
                    .replace('\n', " ")
                    .as_str(),
                r#"{"app_id":1,"app_name":"a","version":"1","configuration":{"steps":[]},"active":null,
                    "created_at":{"$date":2000},"metadata":{"day":2}}"#
                    .replace('\n', " ")
                    .as_str(),
                r#"{"app_id":1,"app_name":"a","version":"1","configuration":{"steps":[1]}}"#,
                r#"{"app_id":null,"app_name":"b","version":"1","configuration":{"a.b":{"$date":0}}}"#,
                r#"{"app_id":1,"app_name":"a","version":2,"configuration":{}}"#,
                r#"{"app_id":1,"app_name":"a","version":"3","configuration":{"steps":[{"id":1},{"id":1}]}}"#,
            ],
        );
        let arguments = ["import", path(folder.path()), "-o", "json"];
        for (stored, already_there) in [(2, 1), (0, 3)] {
            let ran = cli(&server, &arguments).await.code(1);
            let total = &ran.json()["total"];
            assert_eq!(
                (&total["documents"], &total["stored"], &total["already_there"], &total["refused"]),
                (&json!(6), &json!(stored), &json!(already_there), &json!(3)),
                "{ran:?}"
            );
            assert!(
                ran.err.contains("\"metadata\" is not a field of app_configurations"),
                "{ran:?}"
            );
        }
        let get = GetConfigurationRequest { app_id: Some(1), ..Default::default() };
        let stored = server.get_configuration(get).await;
        assert_eq!((stored.version.as_str(), millis(&stored.created_at)), ("1", Some(1_000)));
        let get = GetConfigurationRequest {
            app_name: Some("b".to_owned()),
            version: Some("1".to_owned()),
            ..Default::default()
        };
        let stored = server.get_configuration(get).await;
        assert_eq!(plain_meta(&stored.configuration), json!({ "a.b": "1970-01-01T00:00:00Z" }));
        assert_eq!((stored.active, stored.created_at), (false, None));
    });
}

#[test]
fn an_import_survives_the_restart_of_its_server() {
    on_both(|backend| async move {
        const EXECUTIONS: usize = 300;
        const STEPS: usize = 20;
        let server = backend.serve().await;
        let address = server.address();
        let folder = tempfile::tempdir().expect("a temp dir");
        let execution = |number| {
            format!(r#"{{"execution_id":"e-{number}","app_name":"x","status":"completed"}}"#)
        };
        let step = |number, step| {
            let text = "t".repeat(400);
            format!(
                r#"{{"execution_id":"e-{number}","step_id":{step},"step_name":"s","status":"completed","input":"{text}"}}"#
            )
        };
        let executions: Vec<String> = (0..EXECUTIONS).map(execution).collect();
        let steps: Vec<String> = (0..EXECUTIONS)
            .flat_map(|number| (0..STEPS).map(move |index| step(number, index)))
            .collect();
        fs::write(folder.path().join("executions.jsonl"), executions.join("\n")).expect("a file");
        fs::write(folder.path().join("execution_steps.jsonl"), steps.join("\n")).expect("a file");
        let child = program(address, &["import", path(folder.path()), "-o", "json"])
            .spawn()
            .expect("the program starts");
        eventually("some are in", async || server.try_step("e-5", 0).await.ok()).await;
        server.shutdown().await;
        let server = backend.serve_with(|config| config.listen = address).await;
        let ran = wait(child).await.code(0);
        let total = &ran.json()["total"];
        let documents = EXECUTIONS * (1 + STEPS);
        assert_eq!(total["documents"], documents, "{ran:?}");
        assert_eq!(total["stored"], documents, "{ran:?}");
        let last = EXECUTIONS - 1;
        let listed = ListStepsRequest { execution_id: format!("e-{last}"), ..Default::default() };
        assert_eq!(ok(server.steps().list_steps(listed).await).into_inner().steps.len(), STEPS);
    });
}

/// Real run records, where the place has them.
const REAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data");

#[test]
fn real_records_come_back_as_they_are() {
    if !Path::new(REAL).is_dir() {
        println!("skipped: there is no folder {REAL}");
        return;
    }
    let manifest = fs::read_to_string(Path::new(REAL).join("manifest.json")).expect("a manifest");
    let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    on_both(|backend| {
        let manifest = manifest.clone();
        async move {
            let keep_all = |config: &mut Config| config.retention.metrics = Duration::ZERO;
            let server = backend.serve_with(keep_all).await;
            let arguments = ["import", REAL, "--assume-status", "completed", "-o", "json"];
            let first = cli(&server, &arguments).await.code(0).json();
            let again = cli(&server, &arguments).await.code(0).json();
            let (mut executions, mut steps, mut points) = (0, 0, 0);
            for (set, files) in manifest.as_object().expect("sets") {
                for (file, facts) in files.as_object().expect("files") {
                    let documents = &facts["documents"];
                    let name = format!("/{set}/{file}");
                    let found = |summary: &Value| {
                        let files = summary["files"].as_array().expect("files");
                        let ends = |of: &&Value| {
                            of["file"].as_str().is_some_and(|path| path.ends_with(&name))
                        };
                        files
                            .iter()
                            .find(ends)
                            .unwrap_or_else(|| panic!("{name} is not there"))
                            .clone()
                    };
                    if file.starts_with("app_configurations.") {
                        // Versions that come again come unchanged, and are stored once.
                        let stored = versions(&read(&Path::new(REAL).join(set).join(file)));
                        let all = documents.as_u64().expect("a number");
                        for (summary, stored) in [(&first, stored), (&again, 0)] {
                            let counts = found(summary);
                            assert_eq!(
                                (&counts["stored"], &counts["already_there"], &counts["refused"]),
                                (&json!(stored), &json!(all - stored), &json!(0)),
                                "{name}"
                            );
                        }
                        continue;
                    }
                    let counts = found(&first);
                    assert_eq!(&counts["documents"], documents, "{name}");
                    assert_eq!(&counts["stored"], documents, "{name}");
                    assert_eq!(counts["refused"], 0, "{name}");
                    let counts = found(&again);
                    assert_eq!(
                        (&counts["already_there"], &counts["stored"]),
                        (documents, &json!(0)),
                        "{name}"
                    );
                    let documents = read(&Path::new(REAL).join(set).join(file));
                    if file.starts_with("executions.") {
                        executions += documents.len();
                    } else if file.starts_with("execution_steps.") {
                        steps += documents.len();
                    } else if file.starts_with("execution_metrics.") {
                        points += compare_points(&server, documents).await;
                    }
                }
            }
            let listed =
                cli(&server, &["executions", "list", "-n", "0", "-o", "json"]).await.code(0);
            assert_eq!(listed.out.lines().count(), executions);
            let compared = compare_all(&server, &manifest).await;
            assert_eq!(compared, (executions, steps));
            println!(
                "{}: {executions} executions, {steps} steps and {points} points of metrics",
                backend.kind.name()
            );
        }
    });
}

#[test]
fn real_metrics_that_are_too_old_are_counted() {
    let metrics = Path::new(REAL).join("metrics");
    if !metrics.is_dir() {
        println!("skipped: there is no folder {}", metrics.display());
        return;
    }
    on_both(|backend| {
        let metrics = metrics.clone();
        async move {
            // Thirty days are kept, and the newest of these is from 2014.
            let server = backend.serve().await;
            let ran = cli(&server, &["import", path(&metrics), "-o", "json"]).await.code(1);
            let total = &ran.json()["total"];
            assert!(total["documents"].as_u64() > Some(0), "{ran:?}");
            assert_eq!(
                (&total["stored"], &total["refused"], &total["too_old"]),
                (&json!(0), &total["documents"], &total["documents"]),
                "{ran:?}"
            );
            assert!(ran.err.contains("retention.metrics"), "{ran:?}");
        }
    });
}

#[test]
fn points_of_metrics_are_imported_once_and_bad_ones_are_named() {
    on_both(|backend| async move {
        let server = backend.serve().await;
        let folder = tempfile::tempdir().expect("a temp dir");
        let now = wall_clock_ms();
        let mut lines: Vec<String> = (0..2500)
            .map(|n| {
                format!(
                    r#"{{"execution_id":"e{}","timestamp":{{"$date":{}}},"metrics":{{"n":{n}}}}}"#,
                    n % 2,
                    now - 5000 + n
                )
            })
            .collect();
        lines.push(r#"{"execution_id":"e0","timestamp":{"$date":0},"metrics":{"n":"x"}}"#.into());
        lines.push(r#"{"execution_id":"e0","timestamp":{"$date":1000},"metrics":{"n":1}}"#.into());
        let file = write(
            folder.path(),
            "execution_metrics.jsonl",
            &lines.iter().map(String::as_str).collect::<Vec<_>>(),
        );
        let total = async |stored: u64, already_there: u64| {
            let ran = cli(&server, &["import", path(&file), "-o", "json"]).await.code(1);
            let total = &ran.json()["total"];
            let count = |name: &str| total[name].as_u64().expect("a number");
            assert_eq!(
                (count("stored"), count("already_there"), count("refused"), count("too_old")),
                (stored, already_there, 2, 1),
                "{ran:?}"
            );
            assert!(ran.err.contains("2501: metrics.n is the text"), "{ran:?}");
        };
        total(2500, 0).await;
        total(0, 2500).await;
        // The same file with more in it: its last requests hold other points than before.
        lines.insert(2500, lines[0].replace("\"n\":0", "\"n\":-1"));
        fs::write(&file, lines.join("\n")).expect("a file");
        let ran = cli(&server, &["import", path(&file), "-o", "json"]).await.code(1).json();
        assert_eq!(
            (&ran["total"]["stored"], &ran["total"]["already_there"]),
            (&json!(1), &json!(2500))
        );
    });
}

/// How many versions of configurations these documents are of.
fn versions(documents: &[Value]) -> u64 {
    let key = |document: &Value| match document["app_id"].is_null() {
        true => json!([document["app_name"], document["sub_app_name"], document["version"]]),
        false => json!([document["app_id"], document["sub_app_id"], document["version"]]),
    };
    let different: BTreeSet<String> =
        documents.iter().map(|document| key(document).to_string()).collect();
    different.len() as u64
}

/// The documents of a file.
fn read(path: &Path) -> Vec<Value> {
    let mut bytes = fs::read(path).expect("a file");
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut unpacked = Vec::new();
        MultiGzDecoder::new(&bytes[..]).read_to_end(&mut unpacked).expect("gzip");
        bytes = unpacked;
    }
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).expect("a document")).collect()
}

/// Every point against what a query says of its execution. How many there were.
async fn compare_points(server: &support::server::Server, documents: Vec<Value>) -> usize {
    let count = documents.len();
    let mut of: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for document in documents {
        let id = document["execution_id"].as_str().expect("an id").to_owned();
        of.entry(id).or_default().push(document);
    }
    for (execution_id, documents) in of {
        let mut found = Vec::new();
        let mut page_token = String::new();
        loop {
            let page = server
                .query_metrics(QueryMetricsRequest {
                    execution_id: execution_id.clone(),
                    page_size: 1500,
                    page_token,
                    ..Default::default()
                })
                .await;
            found.extend(page.points);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        // The real ones are in order and have no equal times.
        assert_eq!(found.len(), documents.len(), "{execution_id}");
        for (point, document) in found.iter().zip(&documents) {
            let text = document["timestamp"]["$date"].as_str().expect("a date");
            assert_eq!(point.timestamp, text.parse().ok(), "{document}");
            let metrics = document["metrics"].as_object().expect("an object");
            let metrics = metrics
                .iter()
                .map(|(name, value)| (name.clone(), value.as_f64().expect("a number")));
            assert_eq!(point.metrics, metrics.collect(), "{document}");
        }
    }
    count
}

/// Every document against what `show` says of it, and every execution watched to its end. How many there were.
async fn compare_all(server: &support::server::Server, manifest: &Value) -> (usize, usize) {
    let (mut executions, mut steps) = (0, 0);
    for set in manifest.as_object().expect("sets").keys() {
        let load = |name: &str| {
            let folder = Path::new(REAL).join(set);
            let names =
                [folder.join(format!("{name}.jsonl")), folder.join(format!("{name}.jsonl.gz"))];
            names.iter().find(|path| path.is_file()).map(|path| read(path)).unwrap_or_default()
        };
        let mut of: BTreeMap<String, BTreeMap<i64, Value>> = BTreeMap::new();
        for step in load("execution_steps") {
            let id = step["execution_id"].as_str().expect("an id").to_owned();
            of.entry(id).or_default().insert(step["step_id"].as_i64().expect("a number"), step);
        }
        for (position, document) in load("executions").into_iter().enumerate() {
            let id = document["execution_id"].as_str().expect("an id");
            let shown = cli(server, &["executions", "show", id, "--payloads", "-o", "json"]).await;
            let shown = shown.code(0).json();
            check(&document, &shown["execution"]);
            executions += 1;
            let expected = of.remove(id).unwrap_or_default();
            let found = shown["steps"].as_array().expect("a list");
            assert_eq!(found.len(), expected.len(), "steps of {id}");
            for (step, document) in found.iter().zip(expected.values()) {
                check(document, step);
                steps += 1;
            }
            // The first of each set is watched, too; one that never ended would go on.
            let over = found.iter().all(|step| step["status"] != "STEP_STATUS_RUNNING");
            if position == 0 && over && shown["execution"]["status"] == "EXECUTION_STATUS_COMPLETED"
            {
                let watched = cli(server, &["executions", "watch", id, "-o", "json"]).await.code(0);
                assert_eq!(watched.out.lines().count(), 1 + found.len() + 1, "{id}");
            }
        }
    }
    (executions, steps)
}

/// Whether a record shows each field of its document as it is.
fn check(document: &Value, shown: &Value) {
    for (key, expected) in document.as_object().expect("a document") {
        let id = (&document["execution_id"], &document["step_id"], key);
        let found = &shown[key];
        let expected = plain_json(expected);
        match key.as_str() {
            "status" => {
                let word = expected.as_str().unwrap_or("completed").to_uppercase();
                assert!(
                    found.as_str().is_some_and(|name| name.ends_with(&format!("_{word}"))),
                    "{id:?}"
                );
            }
            "error" => {
                assert_eq!(found.get("message").unwrap_or(&Value::Null), &expected, "{id:?}")
            }
            "retry_count" if expected.is_null() => assert_eq!(found, &json!(0), "{id:?}"),
            "input" | "metadata" if expected.is_null() => {
                assert!(found.is_null() || found == &json!({}), "{id:?}");
            }
            _ => assert_eq!(&plain_json(found), &expected, "{id:?}"),
        }
    }
}

/// Dates as text in one form, integral numbers as integers.
fn plain_json(value: &Value) -> Value {
    match value {
        Value::Object(fields) if fields.len() == 1 && fields.contains_key("$date") => {
            plain_json(&fields["$date"])
        }
        Value::Object(fields) => Value::Object(
            fields.iter().map(|(key, field)| (key.clone(), plain_json(field))).collect(),
        ),
        Value::Array(values) => values.iter().map(plain_json).collect(),
        Value::String(text) => match text.parse::<prost_types::Timestamp>() {
            // As many digits of the second as it takes.
            Ok(at) if text.ends_with('Z') => {
                Value::String(format!("{}.{:09}", at.seconds, at.nanos))
            }
            _ => value.clone(),
        },
        Value::Number(number) => match number.as_f64() {
            Some(float) if float.fract() == 0.0 && float.abs() < 9e15 => json!(float as i64),
            _ => value.clone(),
        },
        other => other.clone(),
    }
}
