//! Clients that ask and do not read, at any point of any stream: everybody else goes on as if they were not there,
//! and they hold no cursor and no connection of the database.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::time::Duration;

use mongodb::bson::{Document, doc};
use stepwell::proto::*;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use support::artifacts::{describe, noise};
use support::backend::{Backend, Kind};
use support::client::*;
use support::deaf::{Deaf, Windows};
use support::mongod::Mongod;
use support::server::Server;
use support::values::*;
use support::*;

const WATCH: &str = "/stepwell.v1.ExecutionService/WatchExecution";
const WATCH_ALL: &str = "/stepwell.v1.ExecutionService/WatchExecutions";
const DOWNLOAD: &str = "/stepwell.v1.ArtifactService/DownloadArtifact";
const INGEST: &str = "/stepwell.v1.IngestService/Ingest";
const DIGESTS: &str = "/stepwell.v1.VerifyService/GetDigests";
const RETENTION: &str = "/stepwell.v1.AdminService/RunRetention";
const REBUILD: &str = "/stepwell.v1.AdminService/RebuildAnalytics";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

const WATCHES: usize = 200;
const DOWNLOADS: usize = 150;
/// As many as the server works on for one connection.
const DIGESTS_AT_ONCE: usize = 8;
const STEPS: i32 = 60;
/// What an honest client finds prompt, beside all other tests.
const PROMPT: Duration = Duration::from_secs(8);
/// Few, so that they are missed soon.
const CONNECTIONS: u32 = 20;

/// A server with an execution `e` of some steps, and the artifact of it.
struct Stage {
    backend: Backend,
    server: Server,
    artifact_id: String,
    own: Option<Mongod>,
    honest: usize,
}

impl Stage {
    async fn set(kind: Kind) -> Stage {
        // A database of its own: its cursors are counted.
        let own = (kind == Kind::Mongodb).then(Mongod::start);
        let backend = match &own {
            Some(own) => Backend::on(&own.uri()),
            None => Backend::fresh(kind),
        };
        let server = backend
            .serve_with(|config| {
                config.mongodb.max_pool_size = Some(CONNECTIONS);
                // Whoever does not read is not sent away before it was looked at what is held for them.
                config.limits.reply_idle = Duration::from_secs(3600);
            })
            .await;
        server.create("e").await;
        for step_id in 1..=STEPS {
            server.start("e", step_id).await;
        }
        let artifact = server.upload(describe("e", "log"), &noise(3 * 1024 * 1024 + 1, 1)).await;
        let artifact_id = artifact.artifact_id;
        Stage { backend, server, artifact_id, own, honest: 0 }
    }

    async fn connect(&self, windows: Windows) -> Deaf {
        Deaf::connect(&self.server.address().to_string(), windows).await
    }

    fn download(&self) -> DownloadArtifactRequest {
        let artifact_id = self.artifact_id.clone();
        DownloadArtifactRequest { artifact_id, ..Default::default() }
    }

    /// Everything that an honest client on a connection of its own does is done promptly.
    async fn goes_on(&mut self) {
        self.honest += 1;
        let id = format!("honest-{}", self.honest);
        let client = self.server.second_connection();
        promptly("a create", client.create(&id)).await;
        promptly("a start", client.start(&id, 1)).await;
        promptly("a read", client.execution("e")).await;
        promptly("a list", client.list_executions(ListExecutionsRequest::default())).await;
        promptly("a watch", async {
            let mut watch = client.watch(whole()).await;
            while !watch.next().await.is_snapshot_complete() {}
            let progress = self.honest as f64 / 10.0;
            let change = UpdateStepRequest { progress: Some(progress), ..update_step("e", 1) };
            let changed = client.update_step(change).await;
            watch.until_revision(("e", Some(1)), changed.revision).await;
        })
        .await;
        promptly("the probe", health(&client)).await;
        let own = noise(1024 * 1024 + 1, self.honest as u64);
        promptly("an upload", client.upload(describe(&id, "mine"), &own)).await;
        let bytes = promptly("a download", client.try_download(&self.artifact_id)).await;
        assert_eq!(ok(bytes).len(), 3 * 1024 * 1024 + 1);
    }

    async fn server_status(&self) -> Document {
        let admin = self.backend.mongodb().await.client().database("admin");
        admin.run_command(doc! { "serverStatus": 1 }).await.expect("a status")
    }

    async fn open_cursors(&self) -> i64 {
        let status = self.server_status().await;
        let of = |document: &Document, key: &str| document.get_document(key).expect(key).clone();
        let open = of(&of(&of(&status, "metrics"), "cursor"), "open");
        open.get_i64("total").expect("a number")
    }

    /// How many cursors there are without anybody: the log is followed, also for watches.
    async fn cursors_of_one_watch(&self) -> i64 {
        if self.own.is_none() {
            return 0;
        }
        let mut watch = self.server.watch(watch("e")).await;
        while !watch.next().await.is_snapshot_complete() {}
        let mut most = 0;
        for _ in 0..20 {
            most = most.max(self.open_cursors().await);
        }
        most
    }

    /// How many files of artifacts are open.
    fn open_files(&self) -> usize {
        let artifacts = self.backend.data_dir().join("artifacts");
        let open = std::fs::read_dir("/proc/self/fd").expect("descriptors");
        let links = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.starts_with(&artifacts)).count()
    }

    /// No cursor, no connection and no descriptor is kept for those who do not read.
    async fn nothing_is_held(&self, cursors: i64) {
        if self.own.is_none() {
            eventually("no file is open for those who do not read", async || {
                (self.open_files() == 0).then_some(())
            })
            .await;
            return;
        }
        eventually("no cursor is open for those who do not read", async || {
            (self.open_cursors().await <= cursors).then_some(())
        })
        .await;
        let admin = self.backend.mongodb().await.client().database("admin");
        let pipeline = vec![
            doc! { "$currentOp": { "allUsers": true, "idleConnections": true } },
            doc! { "$match": { "appName": "stepwell", "client": { "$exists": true } } },
        ];
        let mut found = admin.aggregate(pipeline).await.expect("a list of connections");
        let mut connections = 0;
        while found.advance().await.expect("a list of connections") {
            connections += 1;
        }
        // Each of the two pools also has two that look after the deployment.
        assert!(connections <= CONNECTIONS + 4, "{connections} connections");
    }
}

async fn promptly<T>(what: &str, done: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PROMPT, done).await {
        Ok(done) => done,
        Err(_) => panic!("{what} waited for {PROMPT:?}"),
    }
}

async fn health(client: &Client) {
    let mut health = HealthClient::new(client.channel.clone());
    let answer = health.check(HealthCheckRequest::default()).await.expect("an answer");
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
}

/// On each store: `deafen` makes the clients that do not read.
fn on_both(deafen: impl AsyncFn(&Stage) -> Vec<Deaf>) {
    for kind in Kind::ALL {
        println!("on {}", kind.name());
        run(async {
            let mut stage = Stage::set(kind).await;
            let cursors = stage.cursors_of_one_watch().await;
            let deaf = deafen(&stage).await;
            stage.goes_on().await;
            // What they have begun in the meantime has ended.
            stage.nothing_is_held(cursors).await;
            stage.goes_on().await;
            drop(deaf);
        });
    }
}

fn whole() -> WatchExecutionRequest {
    WatchExecutionRequest {
        include_steps: true,
        include_artifacts: true,
        include_payloads: true,
        ..watch("e")
    }
}

#[test]
fn watches_of_which_not_a_byte_is_read() {
    on_both(async |stage| {
        let mut deaf = stage.connect(Windows::ZERO).await;
        for _ in 0..WATCHES {
            deaf.ask(WATCH, &[whole()], false).await;
        }
        deaf.answered().await;
        vec![deaf]
    });
}

#[test]
fn downloads_of_which_not_a_byte_is_read() {
    on_both(async |stage| {
        let mut deaf = stage.connect(Windows::ZERO).await;
        for _ in 0..DOWNLOADS {
            deaf.ask(DOWNLOAD, &[stage.download()], false).await;
        }
        deaf.answered().await;
        vec![deaf]
    });
}

#[test]
fn an_unread_download_that_fills_the_window_of_its_connection() {
    on_both(async |stage| {
        let mut deaf = stage.connect(Windows::ONE_REPLY).await;
        deaf.ask(DOWNLOAD, &[stage.download()], false).await;
        deaf.answered().await;
        deaf.begun().await;
        for _ in 0..WATCHES {
            deaf.ask(WATCH, &[whole()], false).await;
        }
        for _ in 0..DOWNLOADS {
            deaf.ask(DOWNLOAD, &[stage.download()], false).await;
        }
        deaf.answered().await;
        vec![deaf]
    });
}

#[test]
fn clients_that_read_the_beginning_and_pause() {
    on_both(async |stage| {
        let mut deaf = stage.connect(Windows::PAUSE).await;
        for _ in 0..WATCHES {
            deaf.ask(WATCH, &[whole()], false).await;
            deaf.ask(WATCH_ALL, &[all()], false).await;
        }
        for _ in 0..DOWNLOADS {
            deaf.ask(DOWNLOAD, &[stage.download()], false).await;
        }
        deaf.answered().await;
        deaf.begun().await;
        vec![deaf]
    });
}

fn all() -> WatchExecutionsRequest {
    WatchExecutionsRequest { include_steps: true, include_payloads: true, ..watch_all() }
}

#[test]
fn other_streams_of_which_not_a_byte_is_read() {
    on_both(async |stage| {
        for number in 0..300 {
            stage.server.create(&format!("e-{number}")).await;
        }
        let mut deaf = stage.connect(Windows::ZERO).await;
        for _ in 0..WATCHES {
            deaf.ask(WATCH_ALL, &[all()], false).await;
        }
        for number in 0..40 {
            let writes: Vec<IngestRequest> = (0..20)
                .map(|sequence| {
                    let created = create(&format!("i-{number}-{sequence}"));
                    let write = Some(ingest_request::Write::CreateExecution(created));
                    IngestRequest { sequence, write, mirrored: None }
                })
                .collect();
            deaf.ask(INGEST, &writes, true).await;
            let list = MessageRequest::ListServices(String::new());
            let list = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
            deaf.ask(REFLECTION, &vec![list; 10], true).await;
            deaf.ask(REBUILD, &[RebuildAnalyticsRequest {}], false).await;
        }
        // There is one at a time.
        deaf.ask(RETENTION, &[RunRetentionRequest { dry_run: true }], false).await;
        deaf.answered().await;
        vec![deaf]
    });
}

#[test]
fn digests_of_which_not_a_byte_is_read() {
    on_both(async |stage| {
        let now = wall_clock_ms();
        // More than a database gives at once, and than waits on its way to a client.
        for request in 0..4 {
            let points = (0..5_000).map(|number| MetricPoint {
                timestamp: Some(time(now - 5_000 * request - number)),
                metrics: [("n".to_owned(), number as f64)].into(),
                ..Default::default()
            });
            let points = points.collect();
            let execution_id = "e".to_owned();
            stage
                .server
                .record_metrics(RecordMetricsRequest { execution_id, points, request_id: None })
                .await;
        }
        let kind = ExportKind::Metrics.into();
        let question = GetDigestsRequest {
            level: DigestLevel::Fields.into(),
            selections: vec![DigestSelection { kind, ranges: Vec::new() }],
            ..Default::default()
        };
        let mut deaf = stage.connect(Windows::ZERO).await;
        for _ in 0..DIGESTS_AT_ONCE {
            deaf.ask(DIGESTS, std::slice::from_ref(&question), false).await;
        }
        deaf.answered().await;
        vec![deaf]
    });
}

#[test]
fn a_socket_that_is_not_read() {
    on_both(async |stage| {
        let mut deaf = stage.connect(Windows::WIDE).await;
        // The last of its replies are somewhere in the buffers of the socket when it stops.
        for _ in 0..DOWNLOADS {
            deaf.ask(DOWNLOAD, &[stage.download()], false).await;
        }
        for _ in 0..WATCHES {
            deaf.ask(WATCH, &[whole()], false).await;
        }
        deaf.answered().await;
        deaf.freeze();
        vec![deaf]
    });
}

#[test]
fn slow_reads_hold_up_no_write_and_no_probe() {
    run(async {
        let own = Mongod::with(true, &["--setParameter", "enableTestCommands=1"]);
        let backend = Backend::on(&own.uri());
        let server =
            backend.serve_with(|config| config.mongodb.max_pool_size = Some(CONNECTIONS)).await;
        server.create("e").await;
        server.start("e", 1).await;
        let admin = backend.mongodb().await.client().database("admin");
        let slow = doc! {
            "configureFailPoint": "failCommand",
            "mode": "alwaysOn",
            "data": {
                "failCommands": ["find"],
                "namespace": format!("{}.execution_steps", backend.database_name()),
                "blockConnection": true,
                "blockTimeMS": 6_000,
            },
        };
        admin.run_command(slow).await.expect("a test mongod can be slow");
        let reader = server.second_connection();
        let reads: Vec<_> = (0..200)
            .map(|_| {
                let client = reader.clone();
                let request =
                    ListStepsRequest { execution_id: "e".to_owned(), ..Default::default() };
                tokio::spawn(async move { client.try_list_steps(request).await.map(drop) })
            })
            .collect();
        eventually("reads have every connection that they get", async || {
            let pipeline = vec![
                doc! { "$currentOp": { "allUsers": true } },
                doc! { "$match": { "command.find": "execution_steps" } },
            ];
            let mut found = admin.aggregate(pipeline).await.ok()?;
            let mut slow = 0;
            while found.advance().await.ok()? {
                slow += 1;
            }
            (slow >= CONNECTIONS * 3 / 4).then_some(())
        })
        .await;
        let writes = async {
            for number in 0..5 {
                let id = format!("honest-{number}");
                server.create(&id).await;
                server.update_execution(update(&id)).await;
                server.finish(&id, ExecutionStatus::Completed).await;
                health(&server).await;
            }
        };
        promptly("writes and the probe", writes).await;
        reads.iter().for_each(tokio::task::JoinHandle::abort);
    });
}
