//! Connections, as bare sockets open them: what one costs, how long it may be silent, and who makes room for whom.

#![expect(clippy::disallowed_methods, reason = "tests measure real time")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use stepwell::proto::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use support::artifacts::describe;
use support::artifacts::noise;
use support::backend::{Backend, Kind};
use support::client::*;
use support::deaf::{Deaf, Windows};
use support::process::{Guarded, free_port};
use support::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// Types of frames.
const GOAWAY: u8 = 7;

async fn connect(address: impl ToString) -> TcpStream {
    let connecting = TcpStream::connect(address.to_string());
    in_time("a connection", connecting).await.expect("connected")
}

/// Everything that comes until the server closes.
async fn until_closed(socket: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    // A reset is an end as well.
    let _ = in_time("the end of a connection", socket.read_to_end(&mut all)).await;
    all
}

/// The types of the frames in these bytes.
fn frames(mut bytes: &[u8]) -> Vec<u8> {
    let mut types = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(9) {
        types.push(head[3]);
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        bytes = rest.get(length..).unwrap_or_default();
    }
    types
}

async fn probe(client: &Client) {
    let mut health = HealthClient::new(client.channel.clone());
    let check = health.check(HealthCheckRequest::default());
    in_time("the probe", check).await.expect("it answers");
}

/// A connection that has not said all of its settings in time is closed, wherever it stopped; one that has stays.
#[test]
fn a_handshake_has_its_time() {
    run(async {
        let backend = Backend::fresh(Kind::Sqlite);
        let handshake = Duration::from_millis(700);
        let server = backend.serve_with(|config| config.grpc.handshake = handshake).await;
        let began = Instant::now();
        let whole = [PREFACE, SETTINGS].concat();
        // A frame of settings that never comes whole, and one that announces more than there is.
        let unfinished = [PREFACE, &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3]].concat();
        let mut closed = Vec::new();
        for said in [&[][..], &PREFACE[..1], &PREFACE[..23], PREFACE, &whole[..32], &unfinished] {
            let mut socket = connect(server.address()).await;
            socket.write_all(said).await.expect("sent");
            closed.push(socket);
        }
        let mut open = connect(server.address()).await;
        open.write_all(&whole).await.expect("sent");
        for socket in &mut closed {
            until_closed(socket).await;
        }
        assert!(began.elapsed() >= handshake, "{:?}", began.elapsed());
        // A ping is answered.
        open.write_all(&[0, 0, 0, 4, 1, 0, 0, 0, 0]).await.expect("sent");
        open.write_all(&[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]).await.expect("sent");
        let mut answer = Vec::new();
        while !frames(&answer).contains(&6) {
            let mut some = [0; 256];
            let read = in_time("a pong", open.read(&mut some)).await.expect("open");
            assert!(read > 0, "it was closed");
            answer.extend_from_slice(&some[..read]);
        }
        // What is no HTTP/2 at all is told so at once.
        let mut odd = connect(server.address()).await;
        odd.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
        until_closed(&mut odd).await;
        probe(&server).await;
    });
}

/// Silent connections, as many as somebody likes, keep nobody out: not the honest, and not the probe.
#[test]
fn silent_connections_keep_nobody_out() {
    run(async {
        let backend = Backend::fresh(Kind::Sqlite);
        let server = backend.serve_with(|config| config.limits.connections = Some(40)).await;
        let mut watch = server.watch_all(watch_all()).await;
        while !watch.next().await.is_snapshot_complete() {}
        let settled = [PREFACE, SETTINGS].concat();
        let mut silent = Vec::new();
        for number in 0..400 {
            let mut socket = connect(server.address()).await;
            // Silent from the beginning, in the middle of the preface, and after the handshake.
            let said = [&[][..], &PREFACE[..10], &settled][number % 3];
            let _ = socket.write_all(said).await;
            silent.push(socket);
            if number % 50 == 0 {
                let honest = server.second_connection();
                probe(&honest).await;
                honest.create(&format!("e{number}")).await;
            }
        }
        // The first ones had to go, all of them but as many as there are places for.
        for socket in silent.iter_mut().take(350) {
            until_closed(socket).await;
        }
        // Who has a call open is not sent away.
        let honest = server.second_connection();
        honest.create("last").await;
        let seen =
            async { while watch.next().await.record().is_none_or(|(key, _)| key.0 != "last") {} };
        in_time("the change", seen).await;
    });
}

/// Without a call for too long, a client is told to go; with one open it may be silent as long as it likes.
#[test]
fn a_connection_without_a_call_is_told_to_go() {
    run(async {
        let backend = Backend::fresh(Kind::Sqlite);
        let idle = Duration::from_millis(600);
        let server = backend.serve_with(|config| config.grpc.idle = idle).await;
        server.create("e").await;
        let mut watch = server.second_connection().watch(watch("e")).await;
        while !watch.next().await.is_snapshot_complete() {}
        let began = Instant::now();
        let mut silent = connect(server.address()).await;
        silent.write_all(&[PREFACE, SETTINGS].concat()).await.expect("sent");
        let seen = until_closed(&mut silent).await;
        assert!(frames(&seen).contains(&GOAWAY), "{:?}", frames(&seen));
        assert!(began.elapsed() >= idle, "{:?}", began.elapsed());
        // The client that made calls before connects again by itself.
        server.start("e", 1).await;
        let seen = in_time("the watch", watch.next()).await;
        assert_eq!(seen.step().and_then(|(_, step)| step.step_id), Some(1));
    });
}

/// A reply that is not read is given up, and its connection goes on; a watch waits.
#[test]
fn a_reply_of_which_nothing_is_read_is_reset() {
    run(async {
        let backend = Backend::fresh(Kind::Sqlite);
        let idle = Duration::from_millis(700);
        let server = backend.serve_with(|config| config.limits.reply_idle = idle).await;
        server.create("e").await;
        let artifact = server.upload(describe("e", "log"), &noise(600_000, 1)).await;
        let address = server.address().to_string();
        let download =
            DownloadArtifactRequest { artifact_id: artifact.artifact_id, ..Default::default() };
        let get = GetExecutionRequest { execution_id: "e".into(), ..Default::default() };
        const EXECUTIONS: &str = "/stepwell.v1.ExecutionService";
        for windows in [Windows::ZERO, Windows::PAUSE] {
            let mut deaf = Deaf::connect(&address, windows).await;
            deaf.ask(&format!("{EXECUTIONS}/WatchExecution"), &[watch("e")], false).await;
            deaf.ask(
                "/stepwell.v1.ArtifactService/DownloadArtifact",
                std::slice::from_ref(&download),
                false,
            )
            .await;
            if windows.stream == 0 {
                deaf.ask(&format!("{EXECUTIONS}/GetExecution"), std::slice::from_ref(&get), false)
                    .await;
            }
            deaf.answered().await;
            let (watch, others) = deaf.replies().split_first_mut().expect("replies");
            for reply in others {
                let reason = in_time("a reset", Deaf::reset(reply)).await;
                assert_eq!(reason, Some(h2::Reason::CANCEL));
            }
            // It was there before them.
            let watch = Deaf::reset(watch).now_or_never();
            assert!(watch.is_none(), "{watch:?}");
        }
    });
}

/// Accepting does not spin and does not stop where descriptors run out, and the server raises its soft limit itself.
#[test]
fn descriptors_that_run_out_are_found_again() {
    const STEPWELL: &str = env!("CARGO_BIN_EXE_stepwell");
    run(async {
        let dir = tempfile::TempDir::with_prefix("stepwell-connections-").expect("a temp dir");
        let address = format!("127.0.0.1:{}", free_port());
        let serve = |limits: &str, more: &str| {
            let data = dir.path().display();
            let script = format!(
                "{limits}; exec {STEPWELL} serve --listen {address} --data-dir {data} {more}"
            );
            let args = ["-c".to_owned(), script];
            Guarded::start(Path::new("/bin/sh"), &args, &dir.path().join("log"), None)
        };
        let client = Client::of(&address);
        let up = async || {
            eventually("the server answers", async || {
                let list = client.try_list_executions(ListExecutionsRequest::default());
                list.await.ok().map(drop)
            })
            .await;
        };
        let log = || std::fs::read_to_string(dir.path().join("log")).expect("a log");

        // More connections than the soft limit has descriptors for, all of them in a call or not.
        let mut server = serve("ulimit -S -n 64", "");
        up().await;
        let mut silent = Vec::new();
        for _ in 0..200 {
            silent.push(connect(&address).await);
        }
        up().await;
        probe(&Client::of(&address)).await;
        assert!(!log().contains("cannot accept"), "{}", log());
        server.kill();
        drop(silent);

        // The hard limit is what there is: somebody has to go.
        let mut server = serve("ulimit -n 96", "--limits-connections 1000");
        up().await;
        let before = cpu_ticks(server.pid());
        let began = Instant::now();
        let mut silent = Vec::new();
        for _ in 0..300 {
            silent.push(connect(&address).await);
        }
        eventually("an honest client gets in", async || {
            let honest = Client::of(&address);
            honest.try_list_executions(ListExecutionsRequest::default()).await.ok().map(drop)
        })
        .await;
        let spent = cpu_ticks(server.pid()) - before;
        let whole = began.elapsed().as_millis() as u64 / 10;
        assert!(spent < whole / 2 + 50, "{spent} of {whole} ticks");
        assert_eq!(log().matches("cannot accept connections").count(), 1, "{}", log());
        server.kill();
    });
}

/// CPU time of a process in hundredths of a second.
fn cpu_ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
    let times = fields.split_whitespace().skip(11).take(2);
    times.map(|time| time.parse::<u64>().expect("a number")).sum()
}
