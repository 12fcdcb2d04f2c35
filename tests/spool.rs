//! `stepwell spool`: the built program against a real server, on both stores, with the files that the libraries for
//! Python and TypeScript leave. That these are what the libraries really write is shown by their own tests.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use prost::Message as _;
use serde_json::{Value, json};
use stepwell::proto::ingest_request::Write;
use stepwell::proto::*;

use support::access::Guarded;
use support::artifacts::sha256;
use support::backend::{Backend, Kind};
use support::client::*;
use support::values::*;
use support::*;

/// Of a process of Python, and of one of TypeScript that began later.
const PYTHON: &str = "1700000000000000-4242";
const NODE: &str = "1700000001000-4343-0a1b2c3d";

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

// --- what libraries leave ---

/// A folder with what is in a spool.
struct Spool(tempfile::TempDir);

impl Spool {
    fn new() -> Spool {
        Spool(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, bytes).expect("written");
        path
    }

    /// A file of the library for Python.
    fn python(&self, name: &str, note: &Value, writes: &[Write]) {
        let mut bytes = Vec::new();
        for record in records(note, writes) {
            bytes.extend(u32::try_from(record.len()).expect("short").to_le_bytes());
            bytes.extend(record);
        }
        self.write(name, &bytes);
    }

    /// What the library for Python writes behind writes.
    fn add_note(&self, name: &str, note: &Value) {
        let record = records(note, &[]).remove(0);
        let mut bytes = fs::read(self.path().join(name)).expect("readable");
        bytes.extend(u32::try_from(record.len()).expect("short").to_le_bytes());
        bytes.extend(record);
        self.write(name, &bytes);
    }

    /// A file of the library for TypeScript.
    fn node(&self, name: &str, note: &Value, writes: &[Write]) {
        let mut bytes = Vec::new();
        for record in records(note, writes) {
            prost::encode_length_delimiter(record.len(), &mut bytes).expect("a vector grows");
            bytes.extend(record);
        }
        self.write(name, &bytes);
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).expect("readable");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }

    /// What is in it but its locks, to be put back.
    fn contents(&self) -> Vec<(String, Vec<u8>, SystemTime)> {
        let read = |name: String| {
            let path = self.path().join(&name);
            let modified = fs::metadata(&path).and_then(|metadata| metadata.modified());
            (name, fs::read(&path).expect("readable"), modified.expect("readable"))
        };
        self.files().into_iter().filter(|name| !name.ends_with(".lock")).map(read).collect()
    }

    fn put_back(&self, contents: Vec<(String, Vec<u8>, SystemTime)>) {
        for (name, bytes, modified) in contents {
            let file = fs::File::options().write(true).open(self.write(&name, &bytes));
            file.expect("opened").set_modified(modified).expect("set");
        }
    }
}

/// A note, which is a request with field 1000, and requests.
fn records(note: &Value, writes: &[Write]) -> Vec<Vec<u8>> {
    let text = note.to_string();
    let mut record = vec![0xc2, 0x3e];
    prost::encode_length_delimiter(text.len(), &mut record).expect("a vector grows");
    record.extend(text.as_bytes());
    let requests = writes.iter().zip(1..).map(|(write, sequence)| {
        IngestRequest { sequence, write: Some(write.clone()), mirrored: None }.encode_to_vec()
    });
    std::iter::once(record).chain(requests).collect()
}

fn at(address: impl std::fmt::Display) -> Value {
    json!({ "stepwell": 1, "server": address.to_string() })
}

fn begun(id: &str, key: &str) -> Write {
    Write::StartStep(StartStepRequest {
        execution_id: id.into(),
        step_key: Some(key.into()),
        step_name: "work".into(),
        started_at: Some(time(DAY)),
        ..Default::default()
    })
}

fn ended(id: &str, key: &str) -> Write {
    Write::FinishStep(FinishStepRequest {
        execution_id: id.into(),
        step_key: Some(key.into()),
        status: StepStatus::Completed.into(),
        completed_at: Some(time(DAY + 5000)),
        ..Default::default()
    })
}

/// A moment that is long over, in milliseconds.
const DAY: i64 = 1_700_000_000_000;

fn made(id: &str) -> Write {
    let started_at = Some(time(DAY));
    Write::CreateExecution(CreateExecutionRequest { started_at, ..create(id) })
}

fn completed(id: &str) -> Write {
    Write::FinishExecution(finish(id, ExecutionStatus::Completed))
}

fn measured(id: &str) -> Write {
    let metrics = [("tokens".to_owned(), 5.0)].into();
    Write::RecordMetrics(RecordMetricsRequest {
        execution_id: id.into(),
        points: vec![MetricPoint {
            timestamp: Some(time(wall_clock_ms() - 60_000)),
            metrics,
            ..Default::default()
        }],
        request_id: Some(format!("points of {id}")),
    })
}

// --- the command ---

/// What a command did.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn code(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "{self:?}");
        assert!(!self.err.contains("panicked"), "{self:?}");
        self
    }

    fn json_lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }
}

async fn spool(spool: &Spool, arguments: &[&str], key: Option<&str>) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stepwell"));
    command.arg("spool").args(arguments).arg("--spool-dir").arg(spool.path()).env_clear();
    // Only what files and flags say counts.
    command.env("STEPWELL_SERVER", "127.0.0.1:9").stdin(Stdio::null());
    command.envs(key.map(|key| ("STEPWELL_KEY", key)));
    let ran = tokio::task::spawn_blocking(move || command.output());
    let output = in_time("the end of the command", ran).await.expect("joined").expect("it ends");
    Ran {
        code: output.status.code().expect("not ended by a signal"),
        out: String::from_utf8(output.stdout).expect("UTF-8"),
        err: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

async fn send(spooled: &Spool) -> Ran {
    spool(spooled, &["send", "--output", "json"], None).await
}

async fn listed(spooled: &Spool) -> Vec<Value> {
    spool(spooled, &["list", "--output", "json"], None).await.code(0).json_lines()
}

fn sent(address: SocketAddr, counts: [u64; 4]) -> Value {
    let [writes, artifacts, refused, left] = counts;
    json!({
        "server": format!("http://{address}"),
        "writes": writes,
        "artifacts": artifacts,
        "refused": refused,
        "left": left,
    })
}

#[test]
fn what_was_left_behind_is_sent_once() {
    on_both(async |b| {
        let s = b.serve().await;
        let left = Spool::new();
        // Python: a run that ended over two files, one that was open as its process died, one that somebody else goes
        // on with, and an artifact.
        let begin = [made("a"), begun("a", "k"), measured("a")];
        left.python(&format!("{PYTHON}.spool"), &at(s.address()), &begin);
        let note = json!({
            "stepwell": 1, "server": s.address().to_string(),
            "open": { "a": ["k"] }, "shared": [],
        });
        let rest =
            [ended("a", "k"), completed("a"), made("shared"), made("open"), begun("open", "l")];
        left.python(&format!("{PYTHON}.1.spool"), &note, &rest);
        left.add_note(&format!("{PYTHON}.1.spool"), &json!({ "shared": ["shared"] }));
        let description = ArtifactDescription {
            execution_id: "a".into(),
            artifact_type: "report".into(),
            artifact_name: "of python".into(),
            upload_id: Some("0d9c1c1e".into()),
            ..Default::default()
        };
        left.write(&format!("{PYTHON}.0d9c1c1e.blob"), b"bytes of python");
        left.write(&format!("{PYTHON}.0d9c1c1e.artifact"), &description.encode_to_vec());
        left.write(&format!("{PYTHON}.7777.blob"), b"of which nothing is known");
        // TypeScript: the same in its own way, with a lock that nobody holds any more.
        left.node(&format!("{NODE}~1.nodespool"), &at(s.address()), &[made("n")]);
        drop(std::os::unix::net::UnixListener::bind(left.path().join(format!("{NODE}.lock"))));
        left.write(&format!("{NODE}~2.nodeblob"), b"bytes of node");
        let said = json!({
            "executionId": "n", "type": "report", "name": "of node", "uploadId": "77", "since": 0,
            "metadata": { "pages": 3 }, "mimeType": "text/plain", "server": s.address().to_string(),
            "blob": format!("/where/it/was/{NODE}~2.nodeblob"),
        });
        left.write(&format!("{NODE}~3.nodeartifact"), said.to_string().as_bytes());
        let file = left.path().with_extension("bytes");
        fs::write(&file, b"bytes of the app").expect("written");
        let elsewhere = json!({
            "executionId": "n", "type": "log", "name": "of the app", "uploadId": "78", "since": 0,
            "file": file, "server": s.address().to_string(),
        });
        left.write(&format!("{NODE}~4.nodeartifact"), elsewhere.to_string().as_bytes());
        let before = left.contents();

        let rows = listed(&left).await;
        let shown: Vec<_> = rows
            .iter()
            .map(|row| (&row["written_by"], &row["state"], &row["writes"], &row["artifacts"]))
            .collect();
        let (python, node, behind) = (json!("python"), json!("typescript"), json!("left behind"));
        assert_eq!(
            shown,
            [(&python, &behind, &json!(8), &json!(1)), (&node, &behind, &json!(1), &json!(2))]
        );
        assert_eq!((&rows[0]["pid"], &rows[1]["pid"]), (&json!(4242), &json!(4343)));
        let table = spool(&left, &["list"], None).await.code(0);
        assert!(table.out.contains("left behind") && table.out.contains("4343"), "{table:?}");

        let ran = send(&left).await.code(0);
        assert_eq!(ran.json_lines(), [sent(s.address(), [9, 3, 0, 0])], "{ran:?}");
        assert_eq!(left.files(), [""; 0]);
        let check = async || {
            let a = s.execution("a").await;
            assert_eq!(a.status(), ExecutionStatus::Completed);
            assert_eq!(a.started_at, Some(time(DAY)));
            assert_eq!(s.execution("shared").await.status(), ExecutionStatus::Running);
            for id in ["open", "n"] {
                let open = s.execution(id).await;
                assert_eq!(open.status(), ExecutionStatus::Failed);
                assert_eq!(open.error.expect("an error").code, "PROCESS_DIED");
            }
            let steps = s
                .list_steps(ListStepsRequest { execution_id: "open".into(), ..Default::default() });
            assert_eq!(steps.await.steps[0].status(), StepStatus::Failed);
            let points = s.query_metrics(QueryMetricsRequest {
                execution_id: "a".into(),
                ..Default::default()
            });
            assert_eq!(points.await.points.len(), 1);
            let artifacts = s.artifacts_of("n").await;
            let mut names: Vec<&str> =
                artifacts.iter().map(|artifact| artifact.artifact_name.as_str()).collect();
            names.sort_unstable();
            assert_eq!(names, ["of node", "of the app"]);
            let of_python = s.artifacts_of("a").await;
            assert_eq!(of_python.len(), 1);
            assert_eq!(of_python[0].sha256(), sha256(b"bytes of python"));
            let of_node = artifacts.iter().find(|artifact| artifact.artifact_name == "of node");
            assert_eq!(of_node.expect("it is there").sha256(), sha256(b"bytes of node"));
            assert_eq!(s.count_executions(CountExecutionsRequest::default()).await.count, 4);
            let mut revisions = Vec::new();
            for id in ["a", "open", "n", "shared"] {
                revisions.push(s.execution(id).await.revision);
            }
            revisions
        };
        let revisions = check().await;

        // There is nothing left to send; and where the answers were lost, the same again changes nothing.
        let again = send(&left).await.code(0);
        assert_eq!(again.out, "");
        assert!(listed(&left).await.is_empty());
        left.put_back(before);
        send(&left).await.code(0);
        assert_eq!(left.files(), [""; 0]);
        assert_eq!(check().await, revisions);
        fs::remove_file(file).expect("it is the app's, and stays");
    });
}

#[test]
fn what_is_refused_is_kept_and_named() {
    on_both(async |b| {
        let s = b.serve().await;
        let left = Spool::new();
        let nameless = Write::CreateExecution(CreateExecutionRequest {
            app_name: String::new(),
            ..create("x")
        });
        let late = Write::StartStep(StartStepRequest {
            execution_id: "a".into(),
            step_key: Some("late".into()),
            ..Default::default()
        });
        let writes = [made("a"), nameless, begun("x", "k"), late, completed("a")];
        left.python(&format!("{PYTHON}.spool"), &at(s.address()), &writes);
        // A record that is whole, and nothing that anybody knows.
        let mut bytes = fs::read(left.path().join(format!("{PYTHON}.spool"))).expect("readable");
        bytes.extend([4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        left.write(&format!("{PYTHON}.spool"), &bytes);
        let description = ArtifactDescription {
            execution_id: "x".into(),
            artifact_type: "report".into(),
            artifact_name: "of a run that is refused".into(),
            upload_id: Some("0d9c".into()),
            ..Default::default()
        };
        left.write(&format!("{PYTHON}.0d9c.blob"), b"bytes");
        left.write(&format!("{PYTHON}.0d9c.artifact"), &description.encode_to_vec());
        // Of the app, which are read from where they are.
        let said = json!({
            "executionId": "n", "type": "log", "name": "gone", "uploadId": "77", "since": 0,
            "file": left.path().join("gone"), "server": s.address().to_string(),
        });
        left.node(&format!("{NODE}~1.nodespool"), &at(s.address()), &[made("n"), completed("n")]);
        left.write(&format!("{NODE}~2.nodeartifact"), said.to_string().as_bytes());

        let ran = send(&left).await.code(1);
        let expected = sent(s.address(), [4, 0, 6, 0]);
        assert_eq!(ran.json_lines(), [expected], "{ran:?}");
        let named: Vec<&str> =
            ran.err.lines().filter(|line| line.starts_with("refused: ")).collect();
        assert_eq!(named.len(), 6, "{ran:?}");
        for part in ["create_execution x: ", "app_name", "start_step a step late: ", "a write: "] {
            assert!(ran.err.contains(part), "{part}: {ran:?}");
        }
        assert!(ran.err.contains("1 write about execution x: its creation was refused"), "{ran:?}");
        assert!(ran.err.contains("artifact of a run that is refused of execution x"), "{ran:?}");
        assert_eq!(s.execution("a").await.status(), ExecutionStatus::Completed);

        // The libraries have nothing left to send, or to give up.
        let names = left.files();
        let is_kept = |name: &String| name.contains(".refused");
        assert!(names.iter().all(is_kept), "{names:?}");
        let kept = |rows: &[Value]| {
            let sum = |of: fn(&Value) -> u64| rows.iter().map(of).sum::<u64>();
            let refusals = rows.iter().flat_map(|row| row["refusals"].as_array().expect("a list"));
            let mut writes: Vec<String> =
                refusals.map(|refusal| refusal["write"].as_str().expect("a text").into()).collect();
            writes.sort();
            assert!(rows.iter().all(|row| row["state"] == "refused"), "{rows:?}");
            let writes_of = sum(|row| row["writes"].as_u64().expect("a number"));
            (writes_of, sum(|row| row["artifacts"].as_u64().expect("a number")), writes)
        };
        let expected = (
            4,
            2,
            [
                "a write",
                "artifact gone of execution n",
                "artifact of a run that is refused of execution x",
                "create_execution x",
                "start_step a step late",
                "start_step x step k",
            ]
            .map(str::to_owned)
            .to_vec(),
        );
        assert_eq!(kept(&listed(&left).await), expected);

        // Sent again they are refused again, and kept.
        let again = send(&left).await.code(1);
        assert_eq!(again.json_lines(), [sent(s.address(), [0, 0, 6, 0])], "{again:?}");
        assert_eq!(kept(&listed(&left).await), expected);

        // Once the reason is gone, they are stored.
        s.create("x").await;
        let more = send(&left).await.code(1);
        assert_eq!(more.json_lines(), [sent(s.address(), [1, 1, 4, 0])], "{more:?}");
        assert_eq!(s.artifacts_of("x").await[0].sha256(), sha256(b"bytes"));
        let refused = spool(&left, &["drop", "--refused"], None).await.code(2);
        assert!(refused.err.contains("--yes"), "{refused:?}");
        assert!(!left.files().is_empty());
        left.python(&format!("{PYTHON}.spool"), &at(s.address()), &[made("later")]);
        spool(&left, &["drop", "--refused", "--yes"], None).await.code(0);
        assert_eq!(left.files(), [format!("{PYTHON}.spool")]);
        spool(&left, &["drop", "--yes"], None).await.code(0);
        assert_eq!(left.files(), [""; 0]);
        s.try_execution("later").await.expect_err("it was never sent");
    });
}

#[test]
fn what_waits_for_its_run_stays() {
    on_both(async |b| {
        let s = b.serve().await;
        let left = Spool::new();
        // The process that goes on with a run is the older one, and its maker is among what is left.
        left.python("1600000000000000-1.spool", &at(s.address()), &[begun("n", "k")]);
        let mut shared = at(s.address());
        shared["shared"] = json!(["n"]);
        left.python("1650000000000000-2.spool", &shared, &[made("n")]);
        left.python(&format!("{PYTHON}.spool"), &at(s.address()), &[begun("later", "k")]);
        let file = format!("{PYTHON}.spool");
        let before = fs::read(left.path().join(&file)).expect("readable");
        let ran = send(&left).await.code(1);
        assert_eq!(ran.json_lines(), [sent(s.address(), [2, 0, 0, 1])], "{ran:?}");
        assert!(ran.err.contains("the server does not know the execution later"), "{ran:?}");
        let steps = async |id: &str| {
            let steps = ListStepsRequest { execution_id: id.into(), ..Default::default() };
            s.list_steps(steps).await.steps.len()
        };
        assert_eq!(steps("n").await, 1);
        assert_eq!(left.files(), [file.as_str()]);
        assert_eq!(fs::read(left.path().join(&file)).expect("readable"), before);
        s.create("later").await;
        send(&left).await.code(0);
        assert_eq!(left.files(), [""; 0]);
        assert_eq!(steps("later").await, 1);
    });
}

#[test]
fn a_key_goes_only_to_a_server_that_is_named() {
    run(async {
        let b = Backend::fresh(Kind::Sqlite);
        let guarded = Guarded::start(&b).await;
        let address = guarded.server.address();
        let (_, other) = guarded.key("reporter", &["other"]).await;
        let (_, key) = guarded.key("reporter", &["app"]).await;
        let left = Spool::new();
        left.python(&format!("{PYTHON}.spool"), &at(address), &[made("a"), completed("a")]);
        let before = left.contents();
        // Nobody said that the server that a file names may have the key.
        let ran = spool(&left, &["send"], Some(&key)).await.code(1);
        assert!(ran.err.contains("UNAUTHENTICATED"), "{ran:?}");
        assert_eq!(left.contents(), before);
        // One that may not write this is refused for who asks: another one may.
        let named = ["send", "--server", &address.to_string()];
        let ran = spool(&left, &named, Some(&other)).await.code(1);
        assert!(ran.err.contains("PERMISSION_DENIED"), "{ran:?}");
        assert_eq!(left.contents(), before);
        // What is for another server is not sent to this one.
        left.python("1600000000000000-1.spool", &at("127.0.0.1:9"), &[made("elsewhere")]);
        let ran = spool(&left, &named, Some(&key)).await.code(0);
        assert!(ran.out.contains("2 writes and 0 artifacts sent"), "{ran:?}");
        assert_eq!(left.files(), ["1600000000000000-1.spool"]);
        // What does not say for which server it is goes to the one that is named, and to no other.
        fs::remove_file(left.path().join("1600000000000000-1.spool")).expect("removed");
        left.python(&format!("{PYTHON}.spool"), &json!({ "stepwell": 1 }), &[made("b")]);
        let ran = spool(&left, &["send"], Some(&key)).await.code(1);
        assert!(ran.err.contains("--server"), "{ran:?}");
        spool(&left, &named, Some(&key)).await.code(0);
        assert_eq!(left.files(), [""; 0]);
        b.remove().await;
    });
}

#[test]
fn what_is_not_its_own_is_left_alone() {
    run(async {
        let b = Backend::fresh(Kind::Sqlite);
        let s = b.serve().await;
        let left = Spool::new();
        left.python(&format!("{PYTHON}.spool"), &json!({ "stepwell": 2 }), &[made("a")]);
        left.write("1-2.spool", b"this is somebody's own file, whatever it is called");
        left.write("notes.txt", b"notes");
        left.node("1-3-0a1b2c3d~1.nodespool", &at(s.address()), &[made("c")]);
        let held = std::os::unix::net::UnixListener::bind(left.path().join("1-3-0a1b2c3d.lock"));
        let held = held.expect("a socket");
        let before = left.files();
        let rows = listed(&left).await;
        let states: Vec<&str> =
            rows.iter().map(|row| row["state"].as_str().expect("text")).collect();
        assert_eq!(states, ["unreadable", "in use", "unreadable"]);
        let named = ["send", "--server", &s.address().to_string()];
        let ran = spool(&left, &named, None).await.code(1);
        assert!(ran.err.contains("is of another version of the library"), "{ran:?}");
        assert!(ran.err.contains("is no spool"), "{ran:?}");
        spool(&left, &["drop", "--yes"], None).await.code(0);
        assert_eq!(left.files(), before);
        assert_eq!(s.count_executions(CountExecutionsRequest::default()).await.count, 0);
        // The one that lived is gone, as after kill -9.
        drop(held);
        spool(&left, &named, None).await.code(1);
        assert_eq!(s.count_executions(CountExecutionsRequest::default()).await.count, 1);
        assert_eq!(left.files(), ["1-2.spool", &format!("{PYTHON}.spool"), "notes.txt"]);
        b.remove().await;
    });
}
