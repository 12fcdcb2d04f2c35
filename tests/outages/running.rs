//! The real binary, and everything it says about its database.

#![expect(clippy::disallowed_methods, reason = "tests measure real time")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use stepwell::proto::CreateExecutionRequest;
use tempfile::TempDir;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use super::support::client::create;
use super::support::process::{Guarded, free_port};
use super::support::values::meta;
use super::support::{Client, eventually};

/// Within which an outage is told, and some time to ask.
const TOLD_WITHIN: Duration = Duration::from_millis(5_500);

/// How an outage is told.
pub struct Told {
    pub code: Code,
    pub reason: &'static str,
    /// In the log and in metrics.
    pub outage: &'static str,
}

impl Told {
    pub fn refuses(&self, answer: Result<(), Status>) {
        let status = answer.expect_err("nothing is answered");
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.clone()).unwrap_or_default();
        assert_eq!((status.code(), reason.as_str()), (self.code, self.reason), "{status:?}");
        assert!(details.retry_info().is_some(), "{status:?}");
        for secret in ["/", "mongodb", "stepwell.db"] {
            assert!(!status.message().contains(secret), "{}", status.message());
        }
    }
}

pub struct Running {
    pub client: Client,
    dir: TempDir,
    http: u16,
    program: PathBuf,
    args: Vec<String>,
    process: Option<Guarded>,
}

impl Running {
    pub async fn on_files(data: &Path) -> Running {
        Running::with(&["--data-dir", &data.display().to_string()], None).await
    }

    pub async fn on_mongodb(uri: &str) -> Running {
        Running::with(&["--mongodb-uri", uri], None).await
    }

    /// No file may have more than so many KiB.
    pub async fn limited(data: &Path, kib: u64) -> Running {
        Running::with(&["--data-dir", &data.display().to_string()], Some(kib)).await
    }

    async fn with(store: &[&str], file_kib: Option<u64>) -> Running {
        let dir = TempDir::with_prefix("stepwell-outages-").expect("a temp dir");
        let (grpc, http) = (free_port(), free_port());
        let listen = |port: u16| format!("127.0.0.1:{port}");
        let mut args: Vec<String> = ["serve", "--listen", &listen(grpc), "--http-listen"]
            .into_iter()
            .chain([listen(http).as_str(), "--log-format", "json"])
            .chain(store.iter().copied())
            .map(str::to_owned)
            .collect();
        let mut program = PathBuf::from(env!("CARGO_BIN_EXE_stepwell"));
        if let Some(kib) = file_kib {
            let limited = format!("ulimit -f {}; exec \"$@\"", kib * 2);
            let binary = program.display().to_string();
            args.splice(0..0, ["-c".to_owned(), limited, "limited".to_owned(), binary]);
            program = PathBuf::from("/bin/sh");
        }
        let client = Client::of(listen(grpc));
        let mut server = Running { client, dir, http, program, args, process: None };
        server.start().await;
        server
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    pub async fn start(&mut self) {
        let started = Guarded::start(&self.program, &self.args, &self.log_file(), None);
        self.process = Some(started);
        self.serves().await;
    }

    pub fn kill(&mut self) {
        self.process.as_mut().expect("it is running").kill();
    }

    pub async fn restart(&mut self) {
        self.kill();
        self.start().await;
    }

    async fn health(&self) -> Option<ServingStatus> {
        let mut health = HealthClient::new(self.client.channel.clone());
        let answer = health.check(HealthCheckRequest::default()).await.ok()?;
        Some(answer.into_inner().status())
    }

    /// Waits until the server is ready, by itself.
    pub async fn serves(&self) {
        eventually("the server is ready", async || {
            (self.health().await? == ServingStatus::Serving).then_some(())
        })
        .await;
    }

    /// The outage is told by everything that tells: within 5 seconds of now.
    pub async fn tells(&self, told: &Told) {
        let began = Instant::now();
        eventually("the server is not ready", async || {
            (self.health().await? == ServingStatus::NotServing).then_some(())
        })
        .await;
        assert!(began.elapsed() < TOLD_WITHIN, "{:?}", began.elapsed());
        let metric = format!("stepwell_store_outage{{reason=\"{}\"}} 1", told.outage);
        let metrics = self.get("/metrics");
        assert!(metrics.lines().any(|line| line == metric), "{metric} is not in {metrics}");
        assert!(metrics.lines().any(|line| line == "stepwell_store_up 0"), "{metrics}");
        let others = metrics.lines().filter(|line| line.starts_with("stepwell_store_outage{"));
        assert_eq!(others.filter(|line| line.ends_with(" 1")).count(), 1, "{metrics}");
        let ready = self.get("/readyz");
        assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
        let log = self.log();
        let said = log.iter().rev().find(|line| line["outage"] == told.outage);
        let said = said.unwrap_or_else(|| panic!("{} is not in {log:#?}", told.outage));
        // Readiness and the log say the same.
        assert!(ready.contains(said["message"].as_str().expect("a message")), "{said} and {ready}");
    }

    pub fn log(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.log_file()).expect("a log");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    pub fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http)).expect("connected");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    /// Writes until there is no room; the ids of what was acknowledged.
    pub async fn write_until_refused(&self, told: &Told, round: usize) -> Vec<String> {
        let mut acknowledged = Vec::new();
        for number in 0..2000 {
            let id = format!("r{round}n{number}");
            let text = "x".repeat(64 * 1024);
            let request = CreateExecutionRequest {
                metadata: meta(serde_json::json!({ "text": text })),
                ..create(&id)
            };
            match self.client.try_create_execution(request).await {
                Ok(_) => acknowledged.push(id),
                Err(refused) => {
                    told.refuses(Err(refused));
                    return acknowledged;
                }
            }
        }
        panic!("everything was stored");
    }

    /// Waits until so many writes were applied.
    pub async fn eventually_written(&self, count: u64) {
        eventually("there are writes", async || {
            let metrics = self.get("/metrics");
            let applied = "stepwell_writes_total{outcome=\"applied\"} ";
            let line = metrics.lines().find_map(|line| line.strip_prefix(applied))?;
            (line.parse::<u64>().ok()? >= count).then_some(())
        })
        .await;
    }
}
