//! The built program as an operator meets it: exit codes, logs, probes, metrics, the end.

#![expect(clippy::disallowed_methods, reason = "tests measure real time")]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use stepwell::proto;
use stepwell::proto::execution_service_client::ExecutionServiceClient;

/// What is promised of the end of the process, whatever is open.
const SHUTDOWN: Duration = Duration::from_secs(20);

fn stepwell() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stepwell"));
    // What the surroundings configure is none of the tests' business.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("STEPWELL_") {
            command.env_remove(name);
        }
    }
    command
}

struct Server {
    child: Child,
    log: BufReader<ChildStderr>,
    lines: Vec<Value>,
    grpc: String,
    http: SocketAddr,
    _data: tempfile::TempDir,
}

impl Server {
    fn start(more: &[&str]) -> Server {
        let data = tempfile::tempdir().expect("a folder");
        let mut child = stepwell()
            .args(["serve", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"])
            .args(["--log-format", "json", "--data-dir"])
            .arg(data.path())
            .args(more)
            .env("STEPWELL_SERVICE_HOST", "10.0.0.1")
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut log = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut lines: Vec<Value> = Vec::new();
        let started = loop {
            let mut line = String::new();
            log.read_line(&mut line).expect("text");
            let line: Value = serde_json::from_str(&line).expect("every line is JSON");
            lines.push(line.clone());
            if line["message"] == "started" {
                break line;
            }
        };
        let address = |name: &str| started[name].as_str().expect("an address").to_owned();
        Server {
            grpc: format!("http://{}", address("grpc.listen")),
            http: address("http.listen").parse().expect("an address"),
            child,
            log,
            lines,
            _data: data,
        }
    }

    /// Status and body.
    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.http).expect("connected");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("a status"), body.to_owned())
    }

    /// Reads the log up to where the server says so; a server that ends before ends the log.
    fn until_ready(&mut self) {
        while self.lines.last().is_none_or(|line| line["message"] != "ready") {
            let mut line = String::new();
            let read = self.log.read_line(&mut line).expect("text");
            assert_ne!(read, 0, "never ready");
            self.lines.push(serde_json::from_str(&line).expect("every line is JSON"));
        }
        assert_eq!(self.get("/readyz").0, 200);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("a living process");
    }

    /// Exit code and every line of the log.
    fn ended(mut self) -> (Option<i32>, Vec<Value>) {
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).expect("text");
        self.lines.extend(
            rest.lines()
                .map(|line| serde_json::from_str::<Value>(line).expect("every line is JSON")),
        );
        (self.child.wait().expect("an end").code(), std::mem::take(&mut self.lines))
    }
}

#[test]
fn a_bad_configuration_ends_the_program_before_it_begins() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("stepwell.toml");
    std::fs::write(&file, "[log]\nlevle = \"info\"\n").expect("written");
    let file = file.to_str().expect("a path in UTF-8");
    for (arguments, code, said) in [
        (&["--config", file][..], 78, "unknown key log.levle; did you mean log.level?"),
        (&["--log-level", "loud"], 78, "log.level = \"loud\" (flag --log-level)"),
        (&["--config", "/does/not/exist"], 78, "/does/not/exist cannot be read"),
        (&["--mongodb-uri", "mongodb://eve:hunter2@h:99999"], 78, "mongodb.uri"),
        (&["--lisen", "127.0.0.1:0"], 2, "--lisen"),
    ] {
        for command in ["serve", "config"] {
            if command == "config" && said == "mongodb.uri" {
                // Only the driver knows.
                continue;
            }
            let output = stepwell()
                .arg(command)
                .args(arguments)
                .current_dir(folder.path())
                .output()
                .expect("the program runs");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(code), "{command} {arguments:?}: {text}");
            assert!(text.contains(said), "{command} {arguments:?}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
    assert!(!folder.path().join("stepwell-data").exists(), "nothing was opened");
}

#[test]
fn the_effective_configuration_is_printed_without_secrets() {
    let output = stepwell()
        .args(["config", "--http-listen", "127.0.0.1:9090"])
        .env("STEPWELL_MONGODB_URI", "mongodb://eve:hunter2@db:27017")
        .env("STEPWELL_LISTN", "x")
        .output()
        .expect("the program runs");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("text");
    for line in [
        "uri = \"mongodb://eve:***@db:27017\" # environment STEPWELL_MONGODB_URI",
        "listen = \"127.0.0.1:9090\" # flag --http-listen",
        "database = \"ai_apps\"",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\nnot in\n{text}");
    }
    toml::from_str::<toml::Table>(&text).expect("TOML");
    let warned = String::from_utf8(output.stderr).expect("text");
    assert!(warned.contains("STEPWELL_LISTN") && warned.contains("STEPWELL_LISTEN?"), "{warned}");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_probes_metrics_and_a_quiet_end() {
    let mut server = Server::start(&[]);
    server.until_ready();
    assert_eq!(server.get("/livez").0, 200);

    let mut client = ExecutionServiceClient::connect(server.grpc.clone()).await.expect("connected");
    let create = proto::CreateExecutionRequest { app_name: "a".to_owned(), ..Default::default() };
    client.create_execution(create).await.expect("created");
    let unknown =
        proto::GetExecutionRequest { execution_id: "nope".to_owned(), ..Default::default() };
    let refused = client.get_execution(unknown).await.expect_err("unknown");
    assert!(refused.metadata().get("x-request-id").is_some());

    let (status, text) = server.get("/metrics");
    assert_eq!(status, 200);
    let mut known: BTreeSet<&str> =
        stepwell::telemetry::metrics::METRICS.iter().map(|metric| metric.name).collect();
    // There is no certificate.
    assert!(known.remove("stepwell_certificate_expiry_seconds"));
    let shown: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    // Each metric there is is shown, and nothing else.
    assert_eq!(shown, known);
    for line in [
        "stepwell_rpc_requests_total{service=\"stepwell.v1.ExecutionService\",method=\"CreateExecution\",code=\"OK\"} 1",
        "stepwell_rpc_requests_total{service=\"stepwell.v1.ExecutionService\",method=\"GetExecution\",code=\"NOT_FOUND\"} 1",
        "stepwell_writes_total{outcome=\"applied\"} 1",
        "stepwell_store_up 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\nnot in\n{text}");
    }

    let began = Instant::now();
    server.signal(Signal::SIGTERM);
    let (code, lines) = server.ended();
    assert_eq!(code, Some(0), "{lines:?}");
    assert!(began.elapsed() < SHUTDOWN, "{:?}", began.elapsed());
    let messages: Vec<&str> = lines.iter().filter_map(|line| line["message"].as_str()).collect();
    for message in ["started", "ready", "shutting down", "drained"] {
        assert!(messages.contains(&message), "{messages:?}");
    }
    assert!(
        messages.iter().any(|message| message.contains("STEPWELL_SERVICE_HOST")),
        "{messages:?}"
    );
    assert!(lines.iter().all(|line| line["timestamp"].is_string() && line["level"].is_string()));
}

#[test]
fn a_database_that_is_away_is_waited_for() {
    // Nobody listens on port 1.
    let uri = "mongodb://eve:hunter2@127.0.0.1:1/?serverSelectionTimeoutMS=200";
    let server = Server::start(&["--mongodb-uri", uri]);
    assert_eq!(server.get("/livez").0, 200);
    assert_eq!(server.get("/readyz").0, 503);
    let began = Instant::now();
    server.signal(Signal::SIGINT);
    let (code, lines) = server.ended();
    assert_eq!(code, Some(0), "{lines:?}");
    assert!(began.elapsed() < SHUTDOWN, "{:?}", began.elapsed());
    assert!(!format!("{lines:?}").contains("hunter2"), "{lines:?}");
}
