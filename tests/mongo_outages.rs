//! What keeps MongoDB from working, caused for real: a database that hangs, takes no writes or is another one at the same
//! address, and changes that do not fit into its log.

#![expect(clippy::disallowed_methods, reason = "tests measure real time")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

#[path = "mongo_outages/large_changes.rs"]
mod large_changes;
#[path = "outages/running.rs"]
#[expect(dead_code, reason = "the embedded store has a test binary of its own")]
mod running;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use mongodb::bson::{Document, doc};
use nix::sys::signal::Signal;
use running::{Running, Told};
use stepwell::proto::{
    CreateExecutionRequest, GetServerInfoRequest, HeartbeatRequest, IngestRequest, ingest_request,
};
use support::client::*;
use support::mongod::{Mongod, StandIn};
use support::{eventually, in_time, run};
use tonic::Code;

const AWAY: Told = Told { code: Code::Unavailable, reason: "STORE_AWAY", outage: "away" };
const FULL: Told = Told { code: Code::Unavailable, reason: "STORE_FULL", outage: "full" };
const READ_ONLY: Told =
    Told { code: Code::Unavailable, reason: "STORE_READ_ONLY", outage: "read_only" };
/// Within which a write is answered, whatever the database does, and some time for the machine.
const ANSWERED_WITHIN: Duration = Duration::from_millis(10_500);

/// The administrator of a mongod.
async fn admin(mongod: &Mongod) -> mongodb::Database {
    let uri = format!("mongodb://{}/?directConnection=true", mongod.address());
    mongodb::Client::with_uri_str(uri).await.expect("the URI is valid").database("admin")
}

async fn order(admin: &mongodb::Database, command: Document) {
    let done = admin.run_command(command.clone()).await;
    done.unwrap_or_else(|error| panic!("{command}: {error}"));
}

/// An execution that nobody has made yet: a repeat of a known one needs no write.
fn another() -> CreateExecutionRequest {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    create(&format!("during-{}", MADE.fetch_add(1, Ordering::Relaxed)))
}

async fn write_during(server: &Running, told: &Told) {
    let began = Instant::now();
    told.refuses(server.client.try_create_execution(another()).await.map(drop));
    assert!(began.elapsed() < ANSWERED_WITHIN, "{:?}", began.elapsed());
    server.tells(told).await;
}

/// A write for which there is no database: its id, and how it was refused.
async fn write_in_vain(server: &Running) -> (String, tonic::Status) {
    let request = another();
    let id = request.execution_id.clone().expect("an id");
    let written = server.client.try_create_execution(request).await;
    (id, written.expect_err("there is no database to write to"))
}

/// Which of these executions are in the database of a server.
async fn stored(admin: &mongodb::Database, ids: &[String]) -> Vec<String> {
    let executions = admin.client().database("ai_apps").collection::<Document>("executions");
    let found = executions.find(doc! { "execution_id": { "$in": ids } }).await.expect("a cursor");
    let found: Vec<Document> = found.try_collect().await.expect("documents");
    let id = |document: &Document| document.get_str("execution_id").expect("an id").to_owned();
    found.iter().map(id).collect()
}

async fn is_over(server: &Running) {
    server.serves().await;
    eventually("writes go on", async || server.client.try_create_execution(another()).await.ok())
        .await;
    server.client.execution("before").await;
}

#[test]
fn a_database_that_hangs_is_away_and_every_write_is_answered() {
    run(async {
        let mut mongod = Mongod::start();
        let server = Running::on_mongodb(&mongod.uri()).await;
        server.client.create("before").await;
        mongod.signal(Signal::SIGSTOP);
        write_during(&server, &AWAY).await;
        mongod.signal(Signal::SIGCONT);
        is_over(&server).await;
    });
}

#[test]
fn a_database_that_takes_no_writes_is_read_only() {
    run(async {
        let mongod = Mongod::start();
        let server = Running::on_mongodb(&mongod.uri()).await;
        server.client.create("before").await;
        let admin = admin(&mongod).await;
        for (cause, end) in [
            (doc! { "fsync": 1, "lock": true }, doc! { "fsyncUnlock": 1 }),
            (
                doc! { "setUserWriteBlockMode": 1, "global": true },
                doc! { "setUserWriteBlockMode": 1, "global": false },
            ),
            (doc! { "replSetStepDown": 120, "force": true }, doc! { "replSetFreeze": 0 }),
        ] {
            println!("{cause}");
            order(&admin, cause).await;
            write_during(&server, &READ_ONLY).await;
            order(&admin, end).await;
            is_over(&server).await;
        }
    });
}

#[test]
fn a_database_whose_disk_is_full_says_so() {
    run(async {
        let mongod = Mongod::with(true, &["--setParameter", "enableTestCommands=1"]);
        let server = Running::on_mongodb(&mongod.uri()).await;
        server.client.create("before").await;
        let admin = admin(&mongod).await;
        // What mongod answers by itself where it has noticed in time.
        let full = doc! {
            "configureFailPoint": "failCommand",
            "mode": "alwaysOn",
            "data": { "failCommands": ["insert", "update"], "errorCode": 14031 },
        };
        order(&admin, full).await;
        write_during(&server, &FULL).await;
        order(&admin, doc! { "configureFailPoint": "failCommand", "mode": "off" }).await;
        is_over(&server).await;
    });
}

#[test]
fn reads_that_find_no_connection_are_busy_and_the_server_stays_ready() {
    run(async {
        let mongod = Mongod::with(true, &["--setParameter", "enableTestCommands=1"]);
        let uri = format!("{}&maxPoolSize=8", mongod.uri());
        let server = Running::on_mongodb(&uri).await;
        server.client.create("before").await;
        let admin = admin(&mongod).await;
        let slow = doc! {
            "configureFailPoint": "failCommand",
            "mode": "alwaysOn",
            "data": {
                "failCommands": ["find"], "blockConnection": true, "blockTimeMS": 60_000,
                "namespace": "ai_apps.executions",
            },
        };
        order(&admin, slow).await;
        let mut reads = tokio::task::JoinSet::new();
        for _ in 0..24 {
            let client = server.client.clone();
            reads.spawn(async move { client.try_execution("before").await.map(drop) });
        }
        let busy = Told { code: Code::ResourceExhausted, reason: "STORE_BUSY", outage: "busy" };
        let mut told = 0;
        while let Some(read) = support::in_time("an answer", reads.join_next()).await {
            if read.as_ref().is_ok_and(|read| {
                read.as_ref().is_err_and(|status| status.code() == Code::ResourceExhausted)
            }) {
                busy.refuses(read.expect("an answer"));
                told += 1;
            }
        }
        assert!(told > 0, "nobody was told");
        order(&admin, doc! { "configureFailPoint": "failCommand", "mode": "off" }).await;
        let metrics = server.get("/metrics");
        let counted = "stepwell_store_errors_total{operation=\"execution\",kind=\"busy\"} ";
        let count =
            metrics.lines().find_map(|line| line.strip_prefix(counted)?.parse::<u64>().ok());
        assert!(count.is_some_and(|count| count > 0), "{metrics}");
        assert!(metrics.lines().any(|line| line == "stepwell_store_up 1"), "{metrics}");
        assert!(server.log().iter().any(|line| line["outage"] == "busy"), "{:#?}", server.log());
    });
}

/// Starts what stands at the address of a database, with its name.
type Stands = (&'static str, fn(&Mongod) -> StandIn);

/// What may stand at the address of a database.
fn stand_ins() -> [Stands; 4] {
    [
        ("a standalone of its own", |mongod| mongod.stand_in(None, true)),
        ("the same files without the set", |mongod| mongod.stand_in(None, false)),
        ("another set", |mongod| mongod.stand_in(Some("rs1"), true)),
        ("a set of the same name", |mongod| mongod.stand_in(Some("rs0"), true)),
    ]
}

#[test]
fn another_database_at_the_address_is_away_and_never_written_to() {
    for with_set in [true, false] {
        run(async {
            let mut mongod = Mongod::start();
            let uri = match with_set {
                true => mongod.uri(),
                false => format!("mongodb://{}/", mongod.address()),
            };
            let server = Running::on_mongodb(&uri).await;
            let info = server.client.get_server_info(GetServerInfoRequest {}).await;
            assert!(!info.database_id.is_empty());
            server.client.create("before").await;
            // What has been refused, and is nowhere.
            let mut refused = Vec::new();
            for (what, stand_in) in stand_ins() {
                println!("{what}, the URI names the set: {with_set}");
                let (stopped, mut other) = tokio::task::spawn_blocking(move || {
                    mongod.kill();
                    let other = stand_in(&mongod);
                    (mongod, other)
                })
                .await
                .expect("another one stands there");
                mongod = stopped;
                let lines = server.log().len();
                let said = eventually("the log says why", async || {
                    refused.push(write_in_vain(&server).await.0);
                    let log = server.log().split_off(lines);
                    let why = |line: &serde_json::Value| {
                        let text = line.to_string();
                        text.contains("another database is at the address").then_some(text)
                    };
                    log.iter().rev().find_map(why)
                });
                println!("{}", said.await);
                for _ in 0..3 {
                    let (id, status) = write_in_vain(&server).await;
                    AWAY.refuses(Err(status));
                    refused.push(id);
                }
                server.tells(&AWAY).await;
                let admin = admin(&mongod).await;
                let names = admin.client().list_database_names().await.expect("names");
                if what == "the same files without the set" {
                    assert_eq!(stored(&admin, &refused).await, Vec::<String>::new());
                } else {
                    assert!(!names.contains(&"ai_apps".to_owned()), "{names:?}");
                }
                mongod = tokio::task::spawn_blocking(move || {
                    other.kill();
                    mongod.restart();
                    mongod
                })
                .await
                .expect("the right one is back");
                is_over(&server).await;
                let same = server.client.get_server_info(GetServerInfoRequest {}).await;
                assert_eq!(same.database_id, info.database_id);
            }
        });
    }
}

/// Writes as small as there are, on each of some streams of one connection.
const SMALL_STREAMS: usize = 3;
const SMALL_WRITES: i64 = 90_000;

/// Each of them in a frame of its own, as fast as the connection takes them.
fn small_writes(sent: Arc<AtomicUsize>) -> impl futures::Stream<Item = IngestRequest> {
    let (mut sequence, mut flushed) = (0, true);
    futures::stream::poll_fn(move |context| {
        flushed = !flushed;
        if flushed {
            // The client sends what it has before it asks again.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if sequence == SMALL_WRITES {
            // Until the test ends.
            return Poll::Pending;
        }
        sequence += 1;
        sent.fetch_add(1, Ordering::SeqCst);
        let beat = HeartbeatRequest { execution_id: "e".to_owned() };
        let write = Some(ingest_request::Write::Heartbeat(beat));
        Poll::Ready(Some(IngestRequest { sequence, write, mirrored: None }))
    })
}

#[test]
fn small_writes_on_a_few_streams_before_a_frozen_store_end_no_connection() {
    run(async {
        let mut mongod = Mongod::start();
        let server = Running::on_mongodb(&mongod.uri()).await;
        server.client.create("e").await;
        mongod.signal(Signal::SIGSTOP);
        let sent = Arc::<AtomicUsize>::default();
        let mut streams = Vec::new();
        for _ in 0..SMALL_STREAMS {
            let writes = small_writes(Arc::clone(&sent));
            streams.push(ok(server.client.ingest().ingest(writes).await).into_inner());
        }
        eventually("all is sent", async || {
            (sent.load(Ordering::SeqCst) == SMALL_STREAMS * SMALL_WRITES as usize).then_some(())
        })
        .await;
        mongod.signal(Signal::SIGCONT);
        for answers in &mut streams {
            for _ in 0..1_000 {
                let answer = ok(in_time("an answer", answers.message()).await);
                assert!(answer.expect("the stream goes on").result.is_some());
            }
        }
    });
}
