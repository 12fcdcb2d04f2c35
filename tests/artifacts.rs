//! Artifacts beyond the conformance suite: the commands, the real records, and servers that are killed in the
//! midst of uploads. Whatever happens, a record has all its bytes, and no bytes are left without a record.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use stepwell::proto::*;
use tokio::sync::Mutex;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use support::artifacts::{blob_of, describe, noise, sha256};
use support::backend::{Backend, Kind};
use support::client::*;
use support::process::{Guarded, free_port};
use support::*;

const STEPWELL: &str = env!("CARGO_BIN_EXE_stepwell");
const MIB: usize = 1024 * 1024;
const KILLS: usize = 20;
const UPLOADERS: usize = 6;

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

// --- the commands ---

/// What a command printed and said, and its exit code.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: Vec<u8>,
    err: String,
}

impl Ran {
    fn code(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "{self:?}");
        assert!(!self.err.contains("panicked"), "{self:?}");
        self
    }

    fn text(&self) -> String {
        String::from_utf8(self.out.clone()).expect("UTF-8")
    }

    fn json_lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

fn program(address: SocketAddr, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(STEPWELL);
    command.args(arguments).current_dir(folder);
    command.env_clear().env("STEPWELL_SERVER", address.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn wait(mut command: Command) -> Ran {
    let child = command.spawn().expect("the program starts");
    let wait = tokio::task::spawn_blocking(move || child.wait_with_output());
    let output = in_time("the end of a command", wait).await.expect("joined").expect("it ends");
    Ran {
        code: output.status.code().expect("not ended by a signal"),
        out: output.stdout,
        err: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

#[test]
fn files_go_up_and_come_down_with_the_command_line() {
    on_both(|backend| async move {
        let server = backend.serve().await;
        server.create("e").await;
        let folder = tempfile::tempdir().expect("a temp dir");
        let dir = folder.path();
        let bytes = noise(5 * MIB + 7, 1);
        fs::write(dir.join("shot.png"), &bytes).expect("a file");
        fs::write(dir.join("run.log"), b"line\n").expect("a file");
        let cli = async |arguments: &[&str]| {
            let mut all = vec!["artifacts"];
            all.extend_from_slice(arguments);
            wait(program(server.address(), dir, &all)).await
        };
        let put = ["put", "e", "shot.png", "run.log", "--step", "3", "--output", "json"];
        let stored = cli(&put).await.code(0).json_lines();
        assert_eq!(stored.len(), 2);
        let field = |record: &Value, name: &str| record[name].as_str().unwrap_or("").to_owned();
        assert_eq!(field(&stored[0], "artifact_name"), "shot.png");
        assert_eq!(field(&stored[0], "artifact_type"), "screenshot");
        assert_eq!(field(&stored[0], "mime_type"), "image/png");
        assert_eq!(field(&stored[0], "sha256"), sha256(&bytes));
        assert_eq!(field(&stored[1], "artifact_type"), "log");
        assert_eq!(stored[0]["step_id"], 3);
        // The same again is the same.
        assert_eq!(cli(&put).await.code(0).json_lines(), stored);
        let shot = field(&stored[0], "artifact_id");
        let listed = cli(&["list", "e", "-o", "json"]).await.code(0).json_lines();
        assert_eq!(listed, [stored[1].clone(), stored[0].clone()]);
        assert!(cli(&["list", "e", "--type", "log"]).await.code(0).text().contains("run.log"));

        cli(&["get", &shot, "copy.png"]).await.code(0);
        assert!(fs::read(dir.join("copy.png")).expect("a file") == bytes);
        assert!(!dir.join("copy.png.part").exists());
        assert!(cli(&["get", &shot, "-"]).await.code(0).out == bytes);
        let part = ["get", &shot, "-", "--offset", "1000", "--limit", "20"];
        assert_eq!(cli(&part).await.code(0).out, bytes[1000..1020]);
        let tail = cli(&["get", &shot, "-", "--tail", "9"]).await.code(0);
        assert_eq!(tail.out, bytes[bytes.len() - 9..]);
        // Its own name is taken, and never leads out of the folder.
        cli(&["get", &shot]).await.code(2);
        cli(&["get", &shot, "--force"]).await.code(0);
        let name = "../../outside.log";
        let named = cli(&["put", "e", "run.log", "--name", name, "-o", "json"]).await.code(0);
        let named = field(&named.json_lines()[0], "artifact_id");
        cli(&["get", &named]).await.code(0);
        assert_eq!(fs::read(dir.join("outside.log")).expect("inside"), b"line\n");

        cli(&["put", "e", "absent.log"]).await.code(2);
        cli(&["put", "nobody", "run.log"]).await.code(1);
        let gone = cli(&["rm", &shot, "0123456789abcdef01234567", "-o", "json"]).await.code(1);
        let deleted: Vec<bool> =
            gone.json_lines().iter().map(|line| line["deleted"] == true).collect();
        assert_eq!(deleted, [true, false]);
        cli(&["get", &shot, "x"]).await.code(1);
        assert!(!dir.join("x").exists() && !dir.join("x.part").exists());
    });
}

#[test]
fn an_upload_goes_on_after_the_restart_of_its_server() {
    on_both(|backend| async move {
        let server = backend.serve().await;
        let address = server.address();
        server.create("e").await;
        let folder = tempfile::tempdir().expect("a temp dir");
        let bytes = noise(160 * MIB, 1);
        fs::write(folder.path().join("great.bin"), &bytes).expect("a file");
        let arguments = ["artifacts", "put", "e", "great.bin", "-o", "json"];
        let mut child =
            program(address, folder.path(), &arguments).spawn().expect("the program starts");
        eventually("some bytes are stored", async || {
            (backend.stored_bytes().await > 4 * MIB).then_some(())
        })
        .await;
        server.shutdown().await;
        assert!(backend.stored_bytes().await < bytes.len(), "it was not at its end");
        let server = backend.serve_with(|config| config.listen = address).await;
        let ended = tokio::task::spawn_blocking(move || child.wait());
        assert!(in_time("its end", ended).await.expect("joined").expect("it ends").success());
        let stored = server.artifacts_of("e").await;
        assert_eq!(stored.len(), 1);
        assert_eq!(stored[0].sha256, Some(sha256(&bytes)));
        assert!(ok(server.try_download(&stored[0].artifact_id).await) == bytes);
        backend.blobs_become(&[&stored[0]]).await;
    });
}

/// Uploads of the same id and bytes through two servers at once, from the start or from where the other one is,
/// each until it is acknowledged.
#[test]
fn two_servers_may_be_at_one_upload() {
    const ROUNDS: usize = 40;
    run(async {
        let backend = Backend::fresh(Kind::Mongodb);
        let servers = [backend.serve().await, backend.serve().await];
        servers[0].create("e").await;
        let mut all = Vec::new();
        for round in 0..ROUNDS {
            let length = [1, MIB, 3 * MIB + 17, 9 * MIB][round % 4];
            let bytes = noise(length, round as u64);
            let racing = servers.iter().enumerate().map(|(number, server)| {
                let mut description = describe("e", &format!("{round}"));
                description.upload_id = Some(format!("upload-{round}"));
                let (client, bytes) = (Client::clone(server), bytes.clone());
                tokio::spawn(async move {
                    // One of them may come when the other is at any point.
                    for _ in 0..(round / 4) * number * 2 {
                        let _ = client.try_received(&format!("upload-{round}")).await;
                    }
                    for tried in 0.. {
                        let offset = usize::try_from(description.offset).expect("not negative");
                        match client.try_upload(description.clone(), &bytes.slice(offset..)).await {
                            Ok(artifact) => return artifact,
                            Err(status) => assert!(tried < 400, "{round} fails: {status:?}"),
                        }
                        let received = client.try_received(&format!("upload-{round}")).await;
                        // Who gives way more and more lets the other one end.
                        for _ in 0..tried * number {
                            continue_later().await;
                        }
                        description.offset = match tried % 2 == number {
                            true => received.unwrap_or_default(),
                            false => 0,
                        };
                    }
                    unreachable!("an attempt is the last one")
                })
            });
            for stored in futures::future::join_all(racing).await {
                all.push((stored.expect("nobody fails"), bytes.clone()));
            }
        }
        let records = servers[0].artifacts_of("e").await;
        assert_eq!(records.len(), ROUNDS, "the same is stored once");
        for (artifact, bytes) in &all {
            assert!(ok(servers[1].try_download(&artifact.artifact_id).await) == *bytes);
        }
        for server in servers {
            server.shutdown().await;
        }
        let server = backend
            .serve_with(|config| config.artifacts.upload_expiry = Duration::from_millis(10))
            .await;
        backend.blobs_become(&records.iter().collect::<Vec<_>>()).await;
        for (artifact, bytes) in &all {
            assert!(ok(server.try_download(&artifact.artifact_id).await) == *bytes);
        }
        backend.remove().await;
    });
}

// --- real records ---

/// Where real run records are, if they are here.
fn data_sets() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data");
    let folder =
        std::env::var_os("STEPWELL_DATA_SETS").map_or(PathBuf::from(beside), PathBuf::from);
    folder.is_dir().then_some(folder)
}

fn documents(path: &Path) -> Vec<Value> {
    let mut text = String::new();
    let file = fs::File::open(path).expect("a file");
    if path.extension().is_some_and(|ending| ending == "gz") {
        use std::io::Read as _;
        flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text).expect("gzip");
    } else {
        text = std::io::read_to_string(file).expect("text");
    }
    text.lines().map(|line| serde_json::from_str(line).expect("a document")).collect()
}

#[test]
fn real_artifacts_come_back_as_they_are() {
    let Some(root) = data_sets() else {
        println!("skipped: there are no data sets here");
        return;
    };
    let manifest = fs::read_to_string(root.join("manifest.json")).expect("a manifest");
    let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    let fields = [
        "step_id",
        "artifact_type",
        "artifact_name",
        "mime_type",
        "size_bytes",
        "storage_type",
        "storage_path",
        "metadata",
    ];
    on_both(|backend| {
        let (root, manifest) = (root.clone(), manifest.clone());
        async move {
            let server = backend.serve().await;
            let root_text = root.to_str().expect("UTF-8");
            let arguments = ["import", root_text, "--assume-status", "completed", "-o", "json"];
            let first = wait(program(server.address(), &root, &arguments)).await;
            let again = wait(program(server.address(), &root, &arguments)).await;
            let counts = |ran: &Ran, file: &Path| {
                let summary: Value = serde_json::from_slice(&ran.out).expect("JSON");
                let path = file.to_str().expect("UTF-8").to_owned();
                let files = summary["files"].as_array().expect("files").clone();
                files.into_iter().find(|found| found["file"] == path.as_str()).expect("it is there")
            };
            let mut all = 0;
            for (set, files) in manifest.as_object().expect("sets") {
                for (name, facts) in files.as_object().expect("files") {
                    if !name.starts_with("execution_artifacts.") {
                        continue;
                    }
                    let file = root.join(set).join(name);
                    let expected = &facts["documents"];
                    assert_eq!(&counts(&first, &file)["stored"], expected, "{set}");
                    assert_eq!(&counts(&again, &file)["already_there"], expected, "{set}");
                    let mut of: BTreeMap<String, Vec<Value>> = BTreeMap::new();
                    for document in documents(&file) {
                        all += 1;
                        let id = document["execution_id"].as_str().unwrap_or("").to_owned();
                        of.entry(id).or_default().push(document);
                    }
                    for (execution_id, expected) in of {
                        if execution_id.is_empty() {
                            continue;
                        }
                        let listed =
                            ["artifacts", "list", &execution_id, "--limit", "0", "-o", "json"];
                        let listed = wait(program(server.address(), &root, &listed)).await.code(0);
                        let key = |document: &Value| {
                            let fields = fields.map(|field| match &document[field] {
                                Value::Object(object) if object.is_empty() => Value::Null,
                                Value::String(text) if text.is_empty() => Value::Null,
                                other => plain_numbers(other),
                            });
                            serde_json::to_string(&fields).expect("JSON")
                        };
                        let mut found: Vec<_> = listed.json_lines().iter().map(key).collect();
                        let mut expected: Vec<_> = expected.iter().map(key).collect();
                        found.sort();
                        expected.sort();
                        assert!(found == expected, "{set}: {execution_id}");
                    }
                }
            }
            assert_eq!(backend.artifact_records().await, all);
            println!("{}: {all} artifacts", backend.kind.name());
        }
    });
}

fn plain_numbers(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            fields.iter().map(|(key, field)| (key.clone(), plain_numbers(field))).collect()
        }
        Value::Array(values) => values.iter().map(plain_numbers).collect(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if float.fract() == 0.0 && float.abs() < 9e15 => (float as i64).into(),
            _ => value.clone(),
        },
        other => other.clone(),
    }
}

// --- servers that are killed ---

/// The built server on a database and a storage, at a port that stays the same over its restarts.
struct Binary {
    port: u16,
    log: PathBuf,
    arguments: Vec<String>,
    variables: Vec<(&'static str, String)>,
    process: Option<Guarded>,
}

impl Binary {
    fn new(backend: &Backend, folder: &Path, more: &[String]) -> Binary {
        let port = free_port();
        let mut arguments = vec!["serve".to_owned(), format!("--listen=127.0.0.1:{port}")];
        match backend.kind {
            Kind::Sqlite => {
                arguments.push(format!("--data-dir={}", backend.data_dir().display()));
            }
            Kind::Mongodb => {
                arguments.push(format!("--mongodb-uri={}", backend.uri()));
                arguments.push(format!("--mongodb-database={}", backend.database_name()));
            }
        }
        arguments.extend_from_slice(more);
        let log = folder.join("server.log");
        Binary { port, log, arguments, variables: Vec::new(), process: None }
    }

    fn client(&self) -> Client {
        Client::of(format!("127.0.0.1:{}", self.port))
    }

    async fn start(&mut self, more: &[&str]) {
        let mut arguments = self.arguments.clone();
        arguments.extend(more.iter().map(|one| (*one).to_owned()));
        // `env` sets the variables, so that they are nobody's but this process's.
        let mut all: Vec<String> =
            self.variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
        all.push(STEPWELL.to_owned());
        all.extend(arguments);
        self.process = Some(Guarded::start(Path::new("/usr/bin/env"), &all, &self.log, None));
        let client = self.client();
        eventually("the server is ready", async || {
            let mut health = HealthClient::new(client.channel.clone());
            let answer = health.check(HealthCheckRequest::default()).await.ok()?;
            (answer.into_inner().status() == ServingStatus::Serving).then_some(())
        })
        .await;
    }

    fn kill(&mut self) {
        self.process.as_mut().expect("it is running").kill();
    }
}

/// What uploaders were told is stored.
#[derive(Default)]
struct Acknowledged {
    all: Mutex<Vec<(Artifact, Bytes)>>,
    count: AtomicUsize,
    resumed: AtomicUsize,
    over: AtomicBool,
}

/// Uploads one artifact after the other until told to stop, each again and again until it is acknowledged.
async fn upload(client: Client, number: usize, acknowledged: Arc<Acknowledged>) {
    for round in 0.. {
        if acknowledged.over.load(Ordering::SeqCst) {
            return;
        }
        let name = format!("{number}-{round}");
        let length = [0, 1, MIB, 3 * MIB + 17, 8 * MIB + 1, 32 * MIB][(number + round) % 6];
        let bytes = noise(length, (number * 1000 + round) as u64);
        let resumable = number.is_multiple_of(2);
        let mut description = describe("e", &name);
        description.upload_id = resumable.then(|| name.clone());
        let mut tries = 0;
        let artifact = loop {
            if let Some(upload_id) = &description.upload_id {
                match client.try_received(upload_id).await {
                    Ok(received) => description.offset = received,
                    Err(status) if status.code() == tonic::Code::NotFound => description.offset = 0,
                    Err(_) => continue_later().await,
                }
            }
            let offset = usize::try_from(description.offset).expect("not negative");
            if offset > 0 && offset < length {
                acknowledged.resumed.fetch_add(1, Ordering::SeqCst);
            }
            match client.try_upload(description.clone(), &bytes.slice(offset..)).await {
                Ok(artifact) => break artifact,
                Err(status) => {
                    let passing = [tonic::Code::InvalidArgument, tonic::Code::DataLoss];
                    assert!(!passing.contains(&status.code()), "{status:?}");
                    tries += 1;
                    assert!(tries < 400, "{name} does not get in: {status:?}");
                    continue_later().await;
                }
            }
        };
        assert_eq!(artifact.sha256, Some(sha256(&bytes)));
        acknowledged.all.lock().await.push((artifact, bytes));
        acknowledged.count.fetch_add(1, Ordering::SeqCst);
    }
}

/// A client that sends again does so at a pace.
async fn continue_later() {
    tokio::time::interval_at(
        tokio::time::Instant::now() + Duration::from_millis(50),
        Duration::from_millis(50),
    )
    .tick()
    .await;
}

/// Kills the server again and again in the midst of uploads; then compares records with bytes.
async fn kill_during_uploads(
    backend: Backend,
    mut server: Binary,
    blobs: impl AsyncFn() -> BTreeSet<String>,
) {
    server.start(&[]).await;
    let client = server.client();
    client.create("e").await;
    let acknowledged = Arc::new(Acknowledged::default());
    let uploaders: Vec<_> = (0..UPLOADERS)
        .map(|number| tokio::spawn(upload(client.clone(), number, Arc::clone(&acknowledged))))
        .collect();
    for _ in 0..KILLS {
        let before = acknowledged.count.load(Ordering::SeqCst);
        eventually("uploads end, and others are under way", async || {
            (acknowledged.count.load(Ordering::SeqCst) >= before + UPLOADERS / 2).then_some(())
        })
        .await;
        server.kill();
        server.start(&[]).await;
        // Whatever is visible is complete, at any moment.
        let client = server.client();
        for artifact in client.artifacts_of("e").await.iter().take(3) {
            let bytes = ok(client.try_download(&artifact.artifact_id).await);
            assert_eq!(artifact.sha256, Some(sha256(&bytes)));
        }
    }
    acknowledged.over.store(true, Ordering::SeqCst);
    for uploader in uploaders {
        // Its last upload may be a great one, through a debug build.
        let ended = tokio::time::timeout(4 * PATIENCE, uploader).await;
        ended.expect("an uploader ends in time").expect("no uploader fails");
    }
    // A kill right before a sweep is where something would be left.
    server.kill();
    let left = blobs().await.len();
    server.start(&["--artifacts-upload-expiry-seconds=1"]).await;
    let client = server.client();
    let records = client.artifacts_of("e").await;
    let kept: BTreeSet<String> = records.iter().map(blob_of).collect();
    assert_eq!(kept.len(), records.len(), "every record has bytes of its own");
    let swept = tokio::time::timeout(PATIENCE, async {
        while blobs().await != kept {
            continue_later().await;
        }
    });
    if swept.await.is_err() {
        let found = blobs().await;
        let orphans: Vec<_> = found.difference(&kept).collect();
        let lost: Vec<_> = kept.difference(&found).collect();
        panic!("bytes without a record: {orphans:?}, records without bytes: {lost:?}");
    }
    let acknowledged = Arc::into_inner(acknowledged).expect("the uploaders are gone");
    let resumed = acknowledged.resumed.into_inner();
    let all = acknowledged.all.into_inner();
    let stored: BTreeMap<&str, &Artifact> =
        records.iter().map(|record| (record.artifact_id.as_str(), record)).collect();
    for (artifact, bytes) in &all {
        assert_eq!(stored.get(artifact.artifact_id.as_str()), Some(&artifact));
        assert!(ok(client.try_download(&artifact.artifact_id).await) == *bytes);
    }
    assert_eq!(all.len(), records.len(), "what was not acknowledged is not there either");
    assert!(resumed > 0, "no upload was gone on with: the kills hit nothing");
    println!(
        "{KILLS} kills: {} artifacts, {resumed} uploads gone on with, {} bytes without a record swept",
        all.len(),
        left - kept.len()
    );
    backend.remove().await;
}

#[test]
fn a_killed_server_leaves_no_half_artifact_in_files() {
    run(kill_with_default_storage(Kind::Sqlite));
}

#[test]
fn a_killed_server_leaves_no_half_artifact_in_gridfs() {
    run(kill_with_default_storage(Kind::Mongodb));
}

async fn kill_with_default_storage(kind: Kind) {
    let backend = Backend::fresh(kind);
    let folder = tempfile::tempdir().expect("a temp dir");
    let server = Binary::new(&backend, folder.path(), &[]);
    let kept = backend.clone();
    kill_during_uploads(backend, server, async || kept.blobs().await).await;
}

// --- S3 ---

/// A real S3 server on a folder, with one bucket.
struct S3Server {
    folder: tempfile::TempDir,
    port: u16,
    _process: Guarded,
}

const BUCKET: &str = "runs";
const KEY: &str = "stepwell-test";

impl S3Server {
    /// Starts the program that the environment names, if there is one.
    async fn start() -> Option<S3Server> {
        let Some(program) = std::env::var_os("STEPWELL_TEST_S3_SERVER") else {
            println!("skipped: STEPWELL_TEST_S3_SERVER names no s3s-fs");
            return None;
        };
        let folder = tempfile::tempdir().expect("a temp dir");
        fs::create_dir(folder.path().join(BUCKET)).expect("a bucket");
        let port = free_port();
        let arguments = [
            "--host=127.0.0.1".to_owned(),
            format!("--port={port}"),
            format!("--access-key={KEY}"),
            format!("--secret-key={KEY}"),
            folder.path().display().to_string(),
        ];
        let log = folder.path().join("s3.log");
        let process = Guarded::start(Path::new(&program), &arguments, &log, None);
        eventually("the S3 server listens", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        Some(S3Server { folder, port, _process: process })
    }

    /// A server of ours that keeps new bytes here.
    fn stepwell(&self, backend: &Backend, storage: &str) -> Binary {
        let more = [
            format!("--artifacts-storage={storage}"),
            format!("--artifacts-s3-bucket={BUCKET}"),
            "--artifacts-s3-prefix=artifacts".to_owned(),
            format!("--artifacts-s3-endpoint=http://127.0.0.1:{}", self.port),
            "--artifacts-s3-region=us-east-1".to_owned(),
            "--artifacts-s3-allow-http=true".to_owned(),
        ];
        let mut server = Binary::new(backend, self.folder.path(), &more);
        server.variables =
            vec![("AWS_ACCESS_KEY_ID", KEY.to_owned()), ("AWS_SECRET_ACCESS_KEY", KEY.to_owned())];
        server
    }

    fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten() {
                let path = entry.expect("a readable folder").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.file_name().expect("a file has a name");
                    found.push(name.to_string_lossy().into_owned());
                }
            }
        }
        found
    }

    /// Names of the objects, and of the multipart uploads that hold bytes.
    ///
    /// One without a part holds none: a server that is killed before it has written down the id leaves such. And
    /// parts alone are nothing that S3 knows: when the caller of CompleteMultipartUpload dies, this server forgets
    /// the upload and leaves its parts lying, where S3 completes it or does not.
    fn blobs(&self) -> BTreeSet<String> {
        let files = self.files();
        let id = |name: &str, begin: &str, end: &str| {
            Some(name.strip_prefix(begin)?.split(end).next()?.to_owned())
        };
        let known: BTreeSet<String> =
            files.iter().filter_map(|name| id(name, ".upload-", ".json")).collect();
        let with_parts: BTreeSet<String> =
            files.iter().filter_map(|name| id(name, ".upload_id-", ".part-")).collect();
        let objects = files.iter().filter(|name| name.len() == 36 && !name.starts_with('.'));
        objects.cloned().chain(known.intersection(&with_parts).cloned()).collect()
    }

    /// How many parts of objects that are not complete there are.
    fn parts(&self) -> usize {
        self.files().iter().filter(|name| name.starts_with(".upload_id-")).count()
    }

    /// Where the bytes of an artifact are in the folder.
    fn file(&self, artifact: &Artifact) -> PathBuf {
        let path = artifact.storage_path.as_deref().expect("it has its path");
        self.folder.path().join(path.strip_prefix("s3://").expect("it is in S3"))
    }
}

#[test]
fn artifacts_live_in_s3() {
    run(async {
        let Some(s3) = S3Server::start().await else { return };
        let backend = Backend::fresh(Kind::Sqlite);
        let mut server = s3.stepwell(&backend, "s3");
        server.start(&[]).await;
        let client = server.client();
        client.create("e").await;
        let mut stored = Vec::new();
        for length in [0, 1, MIB, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 17 * MIB + 3] {
            let bytes = noise(length, length as u64);
            let artifact = client.upload(describe("e", &format!("{length}")), &bytes).await;
            let path = artifact.storage_path.as_deref().expect("it has its path");
            assert!(path.starts_with("s3://runs/artifacts/"), "{path}");
            assert_eq!(artifact.storage_type.as_deref(), Some("s3"));
            assert!(ok(client.try_download(&artifact.artifact_id).await) == bytes, "{length}");
            assert!(fs::read(s3.file(&artifact)).expect("an object") == bytes, "{length}");
            stored.push((artifact, bytes));
        }
        // The same again takes no room, and a part is a part.
        let (great, bytes) = stored.last().expect("there are some").clone();
        let again = client.upload(describe("e", &format!("{}", bytes.len())), &bytes).await;
        assert_eq!(again, great);
        assert_eq!(s3.blobs(), stored.iter().map(|(artifact, _)| blob_of(artifact)).collect());
        let part = DownloadArtifactRequest {
            artifact_id: great.artifact_id.clone(),
            offset: Some(5 * MIB as i64 - 3),
            limit: Some(2 * MIB as i64),
            ..Default::default()
        };
        let (_, part) = ok(client.try_download_part(part).await);
        assert!(part == bytes[5 * MIB - 3..7 * MIB - 3]);
        // A broken upload leaves no part of an object.
        let uploading = client.begin_upload(describe("e", "broken")).await;
        for n in 0..12 {
            uploading.send(support::artifacts::chunk(noise(MIB, n))).await;
        }
        eventually("some parts are stored", async || (s3.parts() > 0).then_some(())).await;
        uploading.break_off().await;
        eventually("they are gone", async || {
            (s3.parts() == 0 && s3.blobs().len() == stored.len()).then_some(())
        })
        .await;
        // Bytes stay readable where they are when new ones go elsewhere.
        server.kill();
        let mut server = s3.stepwell(&backend, "local");
        server.start(&[]).await;
        let client = server.client();
        assert!(ok(client.try_download(&great.artifact_id).await) == bytes);
        let local = client.upload(describe("e", "local"), &bytes).await;
        assert_eq!(local.storage_type.as_deref(), Some("local"));
        let file = s3.file(&great);
        let mut damaged = bytes.to_vec();
        damaged[7] ^= 1;
        fs::write(&file, &damaged).expect("the object can be written");
        let lost = client.try_download(&great.artifact_id).await.map(|bytes| bytes.len());
        refused(lost, tonic::Code::DataLoss, "ARTIFACT_BYTES_LOST");
        for (artifact, _) in &stored {
            ok(client.try_delete(&artifact.artifact_id).await);
        }
        assert_eq!(s3.blobs(), BTreeSet::new());
    });
}

#[test]
fn a_killed_server_leaves_no_half_artifact_in_s3() {
    run(async {
        let Some(s3) = S3Server::start().await else { return };
        let backend = Backend::fresh(Kind::Sqlite);
        let server = s3.stepwell(&backend, "s3");
        kill_during_uploads(backend, server, async || s3.blobs()).await;
    });
}
