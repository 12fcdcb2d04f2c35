//! Faults under load: servers and databases are killed, frozen and replaced in the middle of it, and what was
//! acknowledged is there once, with nothing beside it that nobody sent. Clients do no more than send again.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

#[path = "faults/ledger.rs"]
mod ledger;
#[path = "faults/load.rs"]
mod load;
#[path = "faults/others.rs"]
mod others;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mongodb::bson::{Bson, Document, doc};
use nix::sys::signal::Signal;
use stepwell::proto::*;
use tempfile::TempDir;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use ledger::Ledger;
use load::Load;
use others::Others;
use support::backend::Backend;
use support::client::*;
use support::mongod::Mongod;
use support::process::{Guarded, free_port};
use support::values::*;
use support::*;

const SERVER_KILLS: usize = 20;
const DATABASE_HITS: usize = 5;
const FREEZES: usize = 3;

/// The real binary, serving at a port that stays the same over its restarts.
struct Binary {
    dir: TempDir,
    port: u16,
    args: Vec<String>,
    process: Option<Guarded>,
}

impl Binary {
    /// On SQLite, or on the database of this URI.
    fn new(uri: Option<&str>) -> Binary {
        let dir = TempDir::with_prefix("stepwell-faults-").expect("a temp dir");
        let port = free_port();
        let mut args = vec!["serve".to_owned(), "--listen".to_owned(), format!("127.0.0.1:{port}")];
        match uri {
            None => {
                let data = dir.path().join("data").display().to_string();
                args.extend(["--data-dir".to_owned(), data]);
            }
            Some(uri) => args.extend(["--mongodb-uri".to_owned(), uri.to_owned()]),
        }
        Binary { dir, port, args, process: None }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    async fn start(&mut self) {
        let log = self.dir.path().join("server.log");
        let program = Path::new(env!("CARGO_BIN_EXE_stepwell"));
        self.process = Some(Guarded::start(program, &self.args, &log, None));
        eventually("the server is ready", async || {
            let mut health = HealthClient::new(Client::of(self.address()).channel);
            let answer = health.check(HealthCheckRequest::default()).await.ok()?;
            (answer.into_inner().status() == ServingStatus::Serving).then_some(())
        })
        .await;
    }

    fn signal(&mut self, signal: Signal) {
        self.process.as_mut().expect("it is running").signal(signal);
    }

    fn kill(&mut self) {
        self.process.as_mut().expect("it is running").kill();
    }
}

/// Waits until the load is heavy enough for a hit to hurt.
async fn under_load(ledger: &Ledger) {
    let rate = ledger.wait_for_rate(500.0).await;
    println!("a hit at {rate:.0} changes/s");
}

#[test]
fn a_killed_server_loses_nothing_on_sqlite() {
    run(async {
        let server = Binary::new(None);
        kill_servers(server).await;
    });
}

#[test]
fn a_killed_server_loses_nothing_on_mongodb() {
    run(async {
        let mongod = Mongod::start();
        let server = Binary::new(Some(&mongod.uri()));
        kill_servers(server).await;
    });
}

async fn kill_servers(mut server: Binary) {
    server.start().await;
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(&ledger, &[server.address()]);
    let others = Others::start(&ledger, &server.address());
    for _ in 0..SERVER_KILLS {
        under_load(&ledger).await;
        server.kill();
        server.start().await;
    }
    under_load(&ledger).await;
    load.end().await;
    others.check(&Client::of(server.address())).await;
    ledger.check(&Client::of(server.address())).await;
}

/// Ends of executions while servers are killed; a million is no more than a question of time.
const ENDS: usize = 10_000;
const REPORTERS: usize = 48;

/// Creates and ends executions, each until it is answered, through whichever server answers.
async fn report(servers: Vec<Client>, number: usize, ends: usize, ended: Arc<AtomicUsize>) {
    let statuses =
        [ExecutionStatus::Completed, ExecutionStatus::Failed, ExecutionStatus::Cancelled];
    for run in 0..ends {
        let id = format!("r{number}-{run}");
        let created = CreateExecutionRequest {
            app_name: format!("app{}", number % 7),
            user_id: Some(format!("user{}", run % 5)),
            ..create(&id)
        };
        let finished = finish(&id, statuses[run % statuses.len()]);
        let mut server = number + run;
        let mut done = 0;
        while done < 2 {
            let client = &servers[server % servers.len()];
            let answered = async {
                match done {
                    0 => client.try_create_execution(created.clone()).await.map(drop),
                    _ => client.try_finish_execution(finished.clone()).await.map(drop),
                }
            };
            match tokio::time::timeout(Duration::from_secs(2), answered).await {
                Ok(Ok(())) => done += 1,
                Ok(Err(status)) => {
                    assert!(load::may_retry(&status), "{status:?}");
                    server += 1;
                    tokio::task::yield_now().await;
                }
                Err(_) => server += 1,
            }
        }
        ended.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn servers_killed_at_random_count_every_end_once() {
    run(async {
        let mongod = Mongod::start();
        let uri = mongod.uri();
        let mut binaries = [Binary::new(Some(&uri)), Binary::new(Some(&uri))];
        for binary in &mut binaries {
            binary.start().await;
        }
        let servers: Vec<Client> =
            binaries.iter().map(|binary| Client::of(binary.address())).collect();
        let ends = std::env::var("STEPWELL_TEST_ENDS").ok();
        let ends = ends.map_or(ENDS, |ends| ends.parse().expect("STEPWELL_TEST_ENDS is a number"));
        let each = ends.div_ceil(REPORTERS);
        let ended = Arc::new(AtomicUsize::new(0));
        let mut reporters = tokio::task::JoinSet::new();
        for number in 0..REPORTERS {
            reporters.spawn(report(servers.clone(), number, each, Arc::clone(&ended)));
        }
        for hit in 1..SERVER_KILLS {
            let after = ends * hit / SERVER_KILLS;
            eventually("executions end", async || {
                (ended.load(Ordering::SeqCst) >= after).then_some(())
            })
            .await;
            // The one that leads is hit about every other time.
            let hit = (wall_clock_ms() % 2) as usize;
            binaries[hit].kill();
            binaries[hit].start().await;
        }
        while let Some(reporter) = reporters.join_next().await {
            reporter.expect("a reporter found a fault");
        }
        // First without any word of ours, straight from the documents: nothing may be left to a rebuild.
        let client = mongodb::Client::with_uri_str(&uri).await.expect("the URI is valid");
        let database = client.database("ai_apps");
        let by_day = database.collection::<Document>("stepwell_rollups");
        let executions = database.collection::<Document>("executions");
        for (letter, status) in [("c", "completed"), ("f", "failed"), ("x", "cancelled")] {
            let group = doc! {
                "_id": "$app_name", "n": { "$sum": 1 }, "s": { "$sum": "$duration_ms" },
            };
            let there = sums(&executions, doc! { "status": status }, group).await;
            assert_eq!(there.len(), 7);
            let sum = |field: &str| doc! { "$sum": format!("$p.0.{letter}.{field}") };
            let group = doc! { "_id": "$app_name", "n": sum("n"), "s": sum("s") };
            let mut counted = BTreeMap::new();
            // What the killed ones left is taken in by and by.
            while counted != there {
                counted = eventually("more executions are counted", async || {
                    let found = sums(&by_day, doc! { "_id.l": "day" }, group.clone()).await;
                    (found != counted).then_some(found)
                })
                .await;
            }
        }
        let all = i64::try_from(each * REPORTERS).expect("few");
        assert_eq!(servers[0].counts_right().await, all);
    });
}

/// What a grouping makes: by its `_id`, `n` and `s`.
async fn sums(
    collection: &mongodb::Collection<Document>,
    only: Document,
    group: Document,
) -> BTreeMap<String, (i64, i64)> {
    let pipeline = [doc! { "$match": only }, doc! { "$group": group }];
    let mut found = collection.aggregate(pipeline).await.expect("it can be grouped");
    let mut sums = BTreeMap::new();
    let number = |document: &Document, field: &str| match document.get(field) {
        Some(Bson::Int32(number)) => i64::from(*number),
        Some(Bson::Int64(number)) => *number,
        other => panic!("{field}: {other:?}"),
    };
    while found.advance().await.expect("the next") {
        let one = found.deserialize_current().expect("a document");
        let of = one.get_str("_id").expect("an app").to_owned();
        sums.insert(of, (number(&one, "n"), number(&one, "s")));
    }
    sums
}

#[test]
fn a_killed_or_deposed_database_loses_nothing() {
    run(async {
        let mut mongod = Mongod::start();
        let mut server = Binary::new(Some(&mongod.uri()));
        server.start().await;
        let ledger = Arc::new(Ledger::default());
        let load = Load::start(&ledger, &[server.address()]);
        for hit in 0..DATABASE_HITS {
            under_load(&ledger).await;
            if hit % 2 == 0 {
                mongod = tokio::task::spawn_blocking(move || {
                    mongod.kill();
                    mongod.restart();
                    mongod
                })
                .await
                .expect("mongod is back");
            } else {
                let client =
                    mongodb::Client::with_uri_str(mongod.uri()).await.expect("the URI is valid");
                let step_down = doc! { "replSetStepDown": 1, "force": true };
                client.database("admin").run_command(step_down).await.expect("it steps down");
            }
        }
        under_load(&ledger).await;
        load.end().await;
        ledger.check(&Client::of(server.address())).await;
    });
}

#[test]
fn a_server_frozen_past_its_leases_does_no_harm_on_mongodb() {
    run(async {
        let mongod = Mongod::start();
        let mut frozen = Binary::new(Some(&mongod.uri()));
        let mut other = Binary::new(Some(&mongod.uri()));
        frozen.start().await;
        other.start().await;
        let through_other = Client::of(other.address());
        let ledger = Arc::new(Ledger::default());
        let load = Load::start(&ledger, &[frozen.address(), other.address()]);
        for round in 0..FREEZES {
            let id = format!("leased{round}");
            ledger.attempt(&id, None);
            let leased = leased(&through_other, &id).await;
            let beating = heartbeats(Client::of(frozen.address()), id.clone());
            under_load(&ledger).await;
            frozen.signal(Signal::SIGSTOP);
            let marked = eventually("another server ends the silent execution", async || {
                let execution = through_other.execution(&id).await;
                (execution.status() == ExecutionStatus::Failed).then_some(execution)
            })
            .await;
            let code = marked.error.map(|error| error.code);
            assert_eq!(code.as_deref(), Some("HEARTBEAT_TIMEOUT"));
            assert!(marked.revision > leased.revision);
            frozen.signal(Signal::SIGCONT);
            eventually("the heartbeats revive it", async || {
                let execution = through_other.execution(&id).await;
                (execution.status() == ExecutionStatus::Running).then_some(())
            })
            .await;
            beating.abort();
            let ended = through_other.finish(&id, ExecutionStatus::Completed).await;
            ledger.acknowledge_execution(&ended);
        }
        under_load(&ledger).await;
        load.end().await;
        ledger.check(&through_other).await;
    });
}

#[test]
fn a_server_frozen_past_its_leases_does_no_harm_on_sqlite() {
    run(async {
        let mut server = Binary::new(None);
        server.start().await;
        let client = Client::of(server.address());
        let ledger = Arc::new(Ledger::default());
        let load = Load::start(&ledger, &[server.address()]);
        for round in 0..FREEZES {
            let id = format!("leased{round}");
            ledger.attempt(&id, None);
            leased(&client, &id).await;
            let beating = heartbeats(client.clone(), id.clone());
            under_load(&ledger).await;
            server.signal(Signal::SIGSTOP);
            let until = wall_clock_ms() + 2500;
            eventually("the leases have run out", async || (wall_clock_ms() > until).then_some(()))
                .await;
            server.signal(Signal::SIGCONT);
            // Whether it was marked in between or not: it is alive, and that is what counts.
            eventually("the heartbeats keep it alive", async || {
                let execution = client.try_execution(&id).await.ok()?;
                (execution.status() == ExecutionStatus::Running).then_some(())
            })
            .await;
            beating.abort();
            let ended = client.finish(&id, ExecutionStatus::Completed).await;
            ledger.acknowledge_execution(&ended);
        }
        under_load(&ledger).await;
        load.end().await;
        ledger.check(&client).await;
    });
}

async fn leased(client: &Client, id: &str) -> Execution {
    let timeout = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    client
        .create_execution(CreateExecutionRequest { heartbeat_timeout: timeout, ..create(id) })
        .await
}

/// Beats through one server, whatever it answers.
fn heartbeats(client: Client, id: String) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut pace = tokio::time::interval(Duration::from_millis(150));
        loop {
            pace.tick().await;
            let request = HeartbeatRequest { execution_id: id.clone() };
            let beat = client.try_heartbeat(request);
            // Lost beats are what this is about.
            let _ = tokio::time::timeout(Duration::from_millis(500), beat).await;
        }
    })
}

#[test]
fn a_database_that_is_away_is_unavailable_and_comes_back() {
    run(async {
        let mut mongod = Mongod::start();
        let b = Backend::on(&mongod.uri());
        let quick = |config: &mut stepwell::config::Config| {
            config.mongodb.server_selection_timeout = Some(Duration::from_millis(500));
        };
        let s = b.serve_with(quick).await;
        s.create("e").await;
        s.start("e", 1).await;
        let mut open = s.watch(watch("e")).await;
        open.snapshot().await;
        mongod = tokio::task::spawn_blocking(move || {
            mongod.kill();
            mongod
        })
        .await
        .expect("mongod is killed");
        let away = async |answer: Answer<()>| {
            check_refusal(&answer.expect_err("no database"), Code::Unavailable, "STORE_AWAY");
        };
        away(s.try_execution("e").await.map(drop)).await;
        away(s.try_create_execution(create("f")).await.map(drop)).await;
        away(s.try_finish_step(finish_step("e", 1, StepStatus::Completed)).await.map(drop)).await;
        away(s.try_list_executions(ListExecutionsRequest::default()).await.map(drop)).await;
        let watch_now = match s.try_watch(watch("e")).await {
            Ok(watch) => Err(watch.broken().await),
            Err(status) => Err(status),
        };
        away(watch_now).await;
        let mut health = HealthClient::new(s.channel.clone());
        eventually("the health service tells", async || {
            let answer = health.check(HealthCheckRequest::default()).await.ok()?;
            (answer.into_inner().status() == ServingStatus::NotServing).then_some(())
        })
        .await;

        // A server that starts now waits for it.
        let mut waiting = Binary::new(Some(&mongod.uri()));
        let (_mongod, ()) = tokio::join!(
            async {
                tokio::task::spawn_blocking(move || {
                    mongod.restart();
                    mongod
                })
                .await
                .expect("mongod is back")
            },
            waiting.start(),
        );
        // And the one that was there goes on by itself, its watchers too.
        let step = eventually("the server recovers", async || {
            s.try_finish_step(finish_step("e", 1, StepStatus::Completed)).await.ok()
        })
        .await;
        let mut seen = 0;
        while seen < step.revision {
            match in_time("the watcher's event", open.try_next()).await {
                Ok(Some(event)) => {
                    let of_step = event.step().map_or(0, |(_, step)| step.revision);
                    seen = seen.max(of_step);
                }
                Ok(None) => panic!("the stream ended"),
                // A stream may also have been ended, with a token to resume.
                Err(status) => {
                    check_refusal(&status, Code::Unavailable, "STORE_AWAY");
                    let resume_token = Some(open.token.clone());
                    open = s.watch(WatchExecutionRequest { resume_token, ..watch("e") }).await;
                }
            }
        }
    });
}

/// A server on a mongod of its own whose writes fail soon after it freezes.
async fn with_mongod() -> (Mongod, support::server::Server) {
    let mongod = Mongod::start();
    let server = Backend::on(&mongod.uri())
        .serve_with(|config| {
            config.mongodb.server_selection_timeout = Some(Duration::from_secs(1));
        })
        .await;
    (mongod, server)
}

#[test]
fn writes_wait_for_a_new_stream_after_a_freeze() {
    run(async {
        use ingest_request::Write;
        use ingest_response::Result as Outcome;
        use tonic_types::RpcStatusExt as _;

        let (mut mongod, s) = with_mongod().await;
        s.create("e").await;
        s.start("e", 1).await;
        let request = |sequence: i64| {
            let progress = Some(sequence as f64 / 10.0);
            let write = UpdateStepRequest { progress, ..update_step("e", 1) };
            IngestRequest { sequence, write: Some(Write::UpdateStep(write)), mirrored: None }
        };
        let (send, requests) = tokio::sync::mpsc::channel(16);
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut answers = ok(s.ingest().ingest(requests).await).into_inner();
        let mut answer = async |sequence: i64| {
            let answer = ok(in_time("an answer", answers.message()).await).expect("an answer");
            assert_eq!(answer.sequence, sequence);
            answer.result.expect("a result")
        };
        send.send(request(1)).await.expect("open");
        assert!(matches!(answer(1).await, Outcome::Step(_)));
        mongod.signal(Signal::SIGSTOP);
        send.send(request(2)).await.expect("open");
        send.send(request(3)).await.expect("open");
        let Outcome::Error(failed) = answer(2).await else { panic!("it is applied") };
        assert_eq!(failed.code, Code::Unavailable as i32, "{failed:?}");
        mongod.signal(Signal::SIGCONT);
        for sequence in 4..=8 {
            send.send(request(sequence)).await.expect("open");
        }
        for sequence in 3..=8 {
            let Outcome::Error(status) = answer(sequence).await else {
                panic!("{sequence} is applied, {} is not", sequence - 1)
            };
            let info = status.get_details_error_info().expect("an ErrorInfo");
            assert_eq!(info.reason, "EARLIER_WRITE_FAILED");
            assert_eq!(info.metadata["failed_sequence"], "2");
        }
        let progress = eventually("the database is back", async || {
            s.try_step("e", 1).await.ok().and_then(|step| step.progress)
        });
        assert!(progress.await <= 0.3, "what came after the failure is not applied");
        // Until the server has found its database again, with everything that follows.
        let mut first = 2;
        eventually("everything is applied", async || {
            let requests = tokio_stream::iter((first..=8).map(request));
            let mut answers = s.ingest().ingest(requests).await.ok()?.into_inner();
            while let Some(answer) = answers.message().await.ok()? {
                match answer.result {
                    Some(Outcome::Step(_)) => first = answer.sequence + 1,
                    _ => break,
                }
            }
            (first == 9).then_some(())
        })
        .await;
        assert_eq!(s.step("e", 1).await.progress, Some(0.8));
    });
}

/// Small records that one client sends, each in a frame of its own.
const SMALL_RECORDS: i64 = 60_000;

#[test]
fn a_client_that_sends_faster_than_the_store_takes_is_slowed_down() {
    run(async {
        let (mut mongod, s) = with_mongod().await;
        s.create("e").await;
        mongod.signal(Signal::SIGSTOP);
        let sent = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&sent);
        let mut next = 0;
        let mut flushed = true;
        let requests = futures::stream::poll_fn(move |context| {
            flushed = !flushed;
            if flushed {
                // The client sends what it has before it asks again.
                context.waker().wake_by_ref();
                return std::task::Poll::Pending;
            }
            counter.store(next as usize, Ordering::SeqCst);
            if next == SMALL_RECORDS {
                return std::task::Poll::Ready(None);
            }
            let beat = HeartbeatRequest { execution_id: format!("n{next}") };
            let write = Some(ingest_request::Write::Heartbeat(beat));
            let request = IngestRequest { sequence: next, write, mirrored: None };
            next += 1;
            std::task::Poll::Ready(Some(request))
        });
        let mut answers = ok(s.ingest().ingest(requests).await).into_inner();
        eventually("much is on the wire", async || {
            (sent.load(Ordering::SeqCst) >= 45_000).then_some(())
        })
        .await;
        mongod.signal(Signal::SIGCONT);
        let mut answered = 0;
        while let Some(answer) = ok(in_time("an answer", answers.message()).await) {
            assert!(answer.result.is_some());
            answered += 1;
        }
        assert_eq!(answered, SMALL_RECORDS);
    });
}
