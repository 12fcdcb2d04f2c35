//! Calls of every method with messages made from its descriptor, valid, odd, huge, deep and broken, against the real
//! program on both stores. Whatever arrives: no INTERNAL, no UNKNOWN, no panic, no process that ends or grows.
//!
//! `STEPWELL_TEST_CALLS` is how many calls a store gets, `STEPWELL_TEST_SECONDS` ends it earlier; `STEPWELL_TEST_SEED`
//! makes the same messages again, and `STEPWELL_TEST_CALL` sends only the one with this number.

#![expect(clippy::disallowed_methods, reason = "tests measure real time")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

#[path = "fuzz/maker.rs"]
mod maker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use http::uri::PathAndQuery;
use prost::bytes::{Buf as _, BufMut as _};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tempfile::TempDir;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use maker::{Manner, Method, Types};
use support::backend::{Backend, Kind};
use support::process::{Guarded, free_port};
use support::*;

/// Without `STEPWELL_TEST_CALLS`: some for every method.
const CALLS: u64 = 1_500;
const AT_ONCE: usize = 12;
const CONNECTIONS: usize = 3;
/// The program's memory at its largest.
const MOST_MEMORY: u64 = 700 * 1024 * 1024;
/// How long a stream that goes on is read.
const READ: Duration = Duration::from_millis(40);
/// Messages of a stream that are read at most.
const READ_AT_MOST: usize = 200;
/// No call takes longer: the server ends what takes a minute.
const LONGEST: Duration = Duration::from_secs(75);

#[test]
fn no_message_breaks_the_server_on_sqlite() {
    run(fuzz(Kind::Sqlite));
}

#[test]
fn no_message_breaks_the_server_on_mongodb() {
    run(fuzz(Kind::Mongodb));
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Messages as they are on the wire.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = usize;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = usize;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<usize>, Status> {
        let length = buffer.remaining();
        buffer.advance(length);
        Ok(Some(length))
    }
}

/// The program, serving.
struct Binary {
    process: Guarded,
    dir: TempDir,
    port: u16,
}

impl Binary {
    fn start(backend: &Backend) -> Binary {
        let dir = TempDir::with_prefix("stepwell-fuzz-").expect("a temp dir");
        let port = free_port();
        let text = |text: &str| text.to_owned();
        let mut args = vec![text("serve"), text("--listen"), format!("127.0.0.1:{port}")];
        match backend.kind {
            Kind::Sqlite => {
                args.extend([text("--data-dir"), dir.path().join("data").display().to_string()]);
            }
            Kind::Mongodb => args.extend([
                text("--mongodb-uri"),
                text(backend.uri()),
                text("--mongodb-database"),
                text(backend.database_name()),
            ]),
        }
        let log = dir.path().join("log");
        let program = std::path::Path::new(env!("CARGO_BIN_EXE_stepwell"));
        Binary { process: Guarded::start(program, &args, &log, None), dir, port }
    }

    async fn connect(&self) -> Channel {
        let endpoint =
            Endpoint::from_shared(format!("http://127.0.0.1:{}", self.port)).expect("a URI");
        eventually("the server listens", async || endpoint.connect().await.ok()).await
    }

    /// Its memory at its largest so far.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid()));
        let status = status.expect("the process is there");
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says it");
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kibibytes * 1024
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).expect("the log can be read")
    }
}

/// What one call sends, from the seed and its number alone.
struct Call {
    method: Method,
    manner: Manner,
    messages: Vec<Vec<u8>>,
    /// The client goes away in the middle.
    leaves: bool,
}

fn call(types: &Types, seed: u64, number: u64) -> Call {
    let mut random = StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let method = types.methods[random.random_range(0..types.methods.len())].clone();
    let manner = Manner::any(&mut random);
    let count = match method.client_streaming {
        true => random.random_range(0..6),
        false => 1,
    };
    let messages = (0..count).map(|_| types.make(&method.input, manner, &mut random)).collect();
    Call { method, manner, messages, leaves: random.random_range(0..50) == 0 }
}

async fn send(channel: Channel, call: Call) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX);
    client.ready().await.map_err(|_| Status::unknown("the connection is not ready"))?;
    let path = PathAndQuery::try_from(call.method.path).expect("a path");
    let (leaves, endless) = (call.leaves, call.method.server_streaming);
    let request = Request::new(futures::stream::iter(call.messages));
    let talk = async {
        let mut answer = client.streaming(request, path, Raw).await?.into_inner();
        for _ in 0..READ_AT_MOST {
            let next = answer.next();
            let next = match endless {
                true => match tokio::time::timeout(READ, next).await {
                    Ok(next) => next,
                    Err(_) => return Ok(()),
                },
                false => next.await,
            };
            match next {
                Some(message) => drop(message?),
                None => return Ok(()),
            }
        }
        Ok::<(), Status>(())
    };
    if leaves {
        let _ = tokio::time::timeout(Duration::from_millis(3), talk).await;
        return Ok(());
    }
    match tokio::time::timeout(LONGEST, talk).await {
        Ok(done) => done,
        Err(_) => Err(Status::unknown("no answer")),
    }
}

fn may_be(code: Code) -> bool {
    !matches!(code, Code::Internal | Code::Unknown)
}

async fn fuzz(kind: Kind) {
    let seed = number("STEPWELL_TEST_SEED").unwrap_or_else(rand::random);
    let only = number("STEPWELL_TEST_CALL");
    let calls = number("STEPWELL_TEST_CALLS").unwrap_or(CALLS);
    println!("STEPWELL_TEST_SEED={seed} STEPWELL_TEST_CALLS={calls} on {}", kind.name());
    let types = Arc::new(Types::of(&[
        stepwell::proto::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ]));
    assert!(types.methods.len() > 40, "{} methods", types.methods.len());
    let backend = Backend::fresh(kind);
    let mut server = Binary::start(&backend);
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(server.connect().await);
    }
    let begun = Instant::now();
    let limit = number("STEPWELL_TEST_SECONDS").map(Duration::from_secs);
    let next = Arc::new(AtomicU64::new(only.unwrap_or(0)));
    let until = only.map_or(calls, |only| only + 1);
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..AT_ONCE {
        let (types, next) = (Arc::clone(&types), Arc::clone(&next));
        let channel = channels[task % channels.len()].clone();
        tasks.spawn(async move {
            let mut codes = [0_u64; 17];
            let mut wrong = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= until || limit.is_some_and(|limit| begun.elapsed() > limit) {
                    return (codes, wrong);
                }
                let call = call(&types, seed, number);
                let told = format!("{} {:?}", call.method.path, call.manner);
                let code = match send(channel.clone(), call).await {
                    Ok(()) => Code::Ok,
                    Err(status) => {
                        if !may_be(status.code()) && wrong.len() < 20 {
                            wrong.push(format!("STEPWELL_TEST_CALL={number} {told}: {status:?}"));
                        }
                        status.code()
                    }
                };
                codes[code as usize] += 1;
            }
        });
    }
    let (mut codes, mut wrong) = ([0_u64; 17], Vec::new());
    while let Some(done) = tasks.join_next().await {
        let (of_task, wrong_of_task) = done.expect("a task of the test does not panic");
        codes.iter_mut().zip(of_task).for_each(|(sum, one)| *sum += one);
        wrong.extend(wrong_of_task);
    }
    let sent: u64 = codes.iter().sum();
    let ended = server.process.has_ended();
    let memory = if ended { 0 } else { server.memory() };
    let told: Vec<String> = (0_i32..)
        .zip(codes)
        .filter(|(_, count)| *count > 0)
        .map(|(code, count)| format!("{:?} {count}", Code::from_i32(code)))
        .collect();
    println!(
        "{sent} calls in {:.0} s, memory at most {} MiB: {}",
        begun.elapsed().as_secs_f64(),
        memory / 1024 / 1024,
        told.join(", ")
    );
    let log = server.log();
    let panics: Vec<&str> = log.lines().filter(|line| line.contains("panicked")).collect();
    let about = format!("STEPWELL_TEST_SEED={seed} on {}", kind.name());
    assert!(!ended, "{about}: the server ended: {}", &log[log.len().saturating_sub(2_000)..]);
    assert!(panics.is_empty(), "{about}: {panics:#?}");
    assert!(wrong.is_empty(), "{about}: {wrong:#?}");
    assert!(memory < MOST_MEMORY, "{about}: {memory} bytes of memory");
    if only.is_none() {
        assert!(codes[Code::Ok as usize] > sent / 10, "{about}: {told:?}");
    }
    // It still does what it is there for.
    let check = Method {
        path: "/grpc.health.v1.Health/Check".to_owned(),
        input: String::new(),
        client_streaming: false,
        server_streaming: false,
    };
    let call = Call {
        method: check,
        manner: Manner::Plausible,
        messages: vec![Vec::new()],
        leaves: false,
    };
    send(server.connect().await, call).await.expect("the server is well");
    drop(server);
    backend.remove().await;
}
