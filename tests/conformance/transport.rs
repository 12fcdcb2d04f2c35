//! The edge of the server: deadlines, compressed messages, the budget of bytes, and streams that stand still. Most of
//! it is asked by a client that speaks HTTP/2 itself, since a library would hide what the server does.

use std::io::Write as _;
use std::time::Duration;

use prost::Message as _;
use prost_types::value::Kind as JsonKind;
use prost_types::{ListValue, Value};
use stepwell::proto::*;
use tonic::Code;
use tonic::codec::CompressionEncoding;

use crate::support::artifacts::{chunk, describe, first, noise};
use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::deaf::{Deaf, Windows, framed, with_flag};
use crate::support::values::*;
use crate::support::{Client, in_time};

const MIB: usize = 1024 * 1024;
const CREATE: &str = "/stepwell.v1.ExecutionService/CreateExecution";
const GET: &str = "/stepwell.v1.ExecutionService/GetExecution";
const WATCH: &str = "/stepwell.v1.ExecutionService/WatchExecution";
const LIST: &str = "/stepwell.v1.ExecutionService/ListExecutions";
const GET_STEP: &str = "/stepwell.v1.StepService/GetStep";
const START: &str = "/stepwell.v1.StepService/StartStep";
const INGEST: &str = "/stepwell.v1.IngestService/Ingest";
const UPLOAD: &str = "/stepwell.v1.ArtifactService/UploadArtifact";
const METRICS: &str = "/stepwell.v1.MetricService/StreamMetrics";
const REPORT: &str = "/stepwell.v1.AnalyticsService/GetReport";

pub async fn a_deadline_that_passes_is_deadline_exceeded_on_every_path(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let mut raw = Deaf::connect(&s.address().to_string(), Windows::WIDE).await;
    let get = GetExecutionRequest { execution_id: "e".into(), ..Default::default() };
    let upload = first(describe("e", "log"));
    // Whole requests whose time is over before they come, and streams that go on past it.
    for (path, timeout, message, goes_on) in [
        (CREATE, "0n", create("late").encode_to_vec(), false),
        (GET, "1n", get.encode_to_vec(), false),
        (LIST, "1n", Vec::new(), false),
        (REPORT, "1n", Vec::new(), false),
        (UPLOAD, "100m", upload.encode_to_vec(), true),
        (INGEST, "100m", Vec::new(), true),
        (METRICS, "90000u", Vec::new(), true),
        (WATCH, "300m", watch("e").encode_to_vec(), false),
    ] {
        let headers = [("grpc-timeout", timeout)];
        let sent = (!message.is_empty() || !goes_on).then(|| framed(&message));
        let status = raw.outcome(path, &headers, sent, !goes_on).await;
        check_refusal(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    }
    // One that is long enough harms nobody, and one that cannot be read is none.
    for timeout in ["10S", "1H", "99999999M", "x", "1"] {
        let headers = [("grpc-timeout", timeout)];
        let message = Some(framed(&get.encode_to_vec()));
        let status = raw.outcome(GET, &headers, message, true).await;
        assert_eq!(status.code(), Code::Ok, "{timeout}");
    }
}

pub async fn more_calls_than_are_worked_on_are_refused_and_harm_no_other(b: Backend) {
    // A quarter of them for each connection.
    const CALLS: usize = 16;
    let s = b.serve_with(|config| config.limits.calls = CALLS).await;
    s.create("e").await;
    // Requests that do not come keep no place.
    let mut raw = Deaf::connect(&s.address().to_string(), Windows::WIDE).await;
    let nothing = bytes::Bytes::new;
    for _ in 0..2 * CALLS {
        raw.begin(CREATE, &[], nothing()).await;
    }
    let foreign = b.open_transaction("e").await;
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..=CALLS / 4 {
        let client = Client::clone(&s);
        let change =
            UpdateExecutionRequest { metadata: meta(json!({ "number": number })), ..update("e") };
        waiting.spawn(async move { client.executions().update_execution(change).await.map(drop) });
    }
    let first = in_time("a refusal", waiting.join_next()).await.expect("one").expect("no panic");
    refused(first, Code::ResourceExhausted, "TOO_MANY_CALLS");
    // Reads are worked on beside the changes, and other connections have places of their own.
    s.execution("e").await;
    let other = s.second_connection();
    let report = tokio::spawn(async move { other.try_create_execution(create("f")).await });
    foreign.abort().await;
    in_time("the answer", report).await.expect("no panic").expect("it had a place");
    while let Some(changed) = in_time("an answer", waiting.join_next()).await {
        changed.expect("no panic").expect("they had places");
    }
}

pub async fn readings_of_everything_have_few_places_and_give_them_back(b: Backend) {
    // A quarter of 32 for each connection.
    const OF_ONE: usize = 8;
    let s = b.serve().await;
    s.create("e").await;
    let follow = || ExportRequest { follow: true, ..Default::default() };
    let mut open = Vec::new();
    for _ in 0..OF_ONE {
        open.push(s.try_export(follow()).await.expect("a place"));
    }
    let one_more = s.try_export(follow()).await.map(drop);
    refused(one_more, Code::ResourceExhausted, "TOO_MANY_CALLS");
    let one_more = s.try_get_digests(GetDigestsRequest::default()).await.map(drop);
    refused(one_more, Code::ResourceExhausted, "TOO_MANY_CALLS");
    // Who writes, reads a record or comes over another connection has nothing to do with it.
    s.create("f").await;
    s.execution("e").await;
    let other = s.second_connection();
    other.try_export(follow()).await.expect("a place of its own");
    // One that ends, by itself or because nobody wants it any more, has none.
    drop(open.pop());
    for _ in 0..2 * OF_ONE {
        let mut answers = in_time("digests", async {
            loop {
                match s.try_get_digests(GetDigestsRequest::default()).await {
                    Ok(answers) => break answers,
                    Err(status) => {
                        check_refusal(&status, Code::ResourceExhausted, "TOO_MANY_CALLS");
                    }
                }
            }
        })
        .await;
        while in_time("digests", answers.message()).await.expect("they come").is_some() {}
    }
}

pub async fn uploads_have_places_and_give_them_back(b: Backend) {
    // A quarter of 256 for each connection.
    const OF_ONE: usize = 64;
    let s = b.serve().await;
    s.create("e").await;
    let mut silent = Deaf::connect(&s.address().to_string(), Windows::WIDE).await;
    let about = |name: &str, number: usize| describe("e", &format!("{name}-{number}"));
    let begins = |number: usize| framed(&first(about("silent", number)).encode_to_vec());
    // Their clients send nothing more, and do not end them.
    for number in 0..=OF_ONE {
        silent.begin(UPLOAD, &[], begins(number)).await;
    }
    let one_more = silent.first_refusal().await;
    check_refusal(&one_more, Code::ResourceExhausted, "TOO_MANY_CALLS");
    // Who does something else, or comes over another connection, has nothing to do with it.
    s.upload(about("other", 0), &noise(1000, 1)).await;
    drop(silent);
    for number in 0..2 * OF_ONE {
        s.upload(about("whole", number), &noise(10, number as u64)).await;
    }
}

pub async fn a_call_and_an_unfinished_request_end_in_time(b: Backend) {
    let s = b.serve_with(|config| config.limits.call = Duration::from_millis(600)).await;
    s.create("e").await;
    let mut raw = Deaf::connect(&s.address().to_string(), Windows::WIDE).await;
    let create = framed(&create("slow").encode_to_vec());
    let nothing = bytes::Bytes::new();
    for (path, part) in [
        (CREATE, create.slice(..create.len() - 1)),
        (CREATE, create.slice(..3)),
        (CREATE, nothing.clone()),
        // Whole, but its client does not say that this was all.
        (CREATE, create.clone()),
        (WATCH, nothing.clone()),
        (LIST, create.slice(..5)),
    ] {
        let status = raw.outcome(path, &[], Some(part), false).await;
        check_refusal(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    }
    // A watch has no such deadline.
    let mut open = s.watch(watch("e")).await;
    while !open.next().await.is_snapshot_complete() {}
    let status = raw.outcome(LIST, &[], None, false).await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let step = s.start("e", 1).await;
    open.until_revision(("e", Some(1)), step.revision).await;
}

pub async fn an_upload_that_stands_still_ends_and_can_be_resumed(b: Backend) {
    let idle = Duration::from_millis(700);
    let s = b.serve_with(|config| config.limits.upload_idle = idle).await;
    s.create("e").await;
    let bytes = noise(200_000, 3);
    let description = |name: &str| ArtifactDescription {
        upload_id: Some(format!("upload-{name}")),
        ..describe("e", name)
    };
    // Only described; one chunk; half a chunk.
    for (name, whole, half) in [("a", false, false), ("b", true, false), ("c", true, true)] {
        let uploading = s.begin_upload(description(name)).await;
        if whole {
            uploading.send(chunk(bytes.slice(..100_000))).await;
        }
        if half {
            uploading.send(chunk(bytes.slice(100_000..101_000))).await;
        }
        let status = in_time("the end", uploading.answer()).await.expect_err("it stands still");
        check_refusal(&status, Code::DeadlineExceeded, "STREAM_STANDS_STILL");
        let received = if whole { s.try_received(&format!("upload-{name}")).await } else { Ok(0) };
        let at = usize::try_from(ok(received)).expect("a length");
        // What is kept is kept in whole units of the storage.
        assert!(at <= [0, 100_000, 101_000][usize::from(whole) + usize::from(half)]);
        let rest = ArtifactDescription { offset: at as i64, ..description(name) };
        let stored = s.upload(rest, &bytes.slice(at..)).await;
        assert_eq!(stored.size_bytes, Some(200_000));
    }
    // Other streams may be silent between messages and not in the middle of one.
    let mut raw = Deaf::connect(&s.address().to_string(), Windows::WIDE).await;
    for path in [INGEST, METRICS] {
        let part = bytes::Bytes::from_static(&[0, 0, 0, 1, 0, 10]);
        let status = raw.outcome(path, &[], Some(part), false).await;
        check_refusal(&status, Code::DeadlineExceeded, "STREAM_STANDS_STILL");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).expect("memory")
}

/// A list of this many nulls, each of four bytes on the wire.
fn nulls(count: usize) -> Option<Value> {
    let null = Value { kind: Some(JsonKind::NullValue(0)) };
    Some(Value { kind: Some(JsonKind::ListValue(ListValue { values: vec![null; count] })) })
}

pub async fn messages_may_be_compressed(b: Backend) {
    let s = b.serve().await;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let id = format!("{encoding}");
        let mut executions = s.executions().send_compressed(encoding).accept_compressed(encoding);
        let metadata = meta(json!({ "text": "word ".repeat(10_000) }));
        let created = executions
            .create_execution(CreateExecutionRequest { metadata: metadata.clone(), ..create(&id) })
            .await;
        let created = created.expect("created");
        let answered = created.metadata().get("grpc-encoding").expect("compressed").to_str();
        assert_eq!(answered.expect("text"), id);
        let created = created.into_inner().execution.expect("an execution");
        assert_eq!(plain_meta(&created.metadata), plain_meta(&metadata));
        // The streams: of the client, of the server, and both.
        let of = id.clone();
        let writes = (1..=50).map(move |number| IngestRequest {
            sequence: number,
            write: Some(ingest_request::Write::StartStep(start(&of, number as i32))),
            mirrored: None,
        });
        let mut ingest = s.ingest().send_compressed(encoding).accept_compressed(encoding);
        let answers = ingest.ingest(tokio_stream::iter(writes)).await.expect("it begins");
        assert!(answers.metadata().get("grpc-encoding").is_some());
        let mut answers = answers.into_inner();
        let mut count = 0;
        while let Some(answer) = answers.message().await.expect("an answer") {
            let refused = matches!(answer.result, Some(ingest_response::Result::Error(_)));
            assert!(!refused, "{answer:?}");
            count += 1;
        }
        assert_eq!(count, 50);
        let bytes = noise(300_000, 5);
        let parts = [first(describe(&id, "log")), chunk(bytes.clone())];
        let mut artifacts = s.artifacts().send_compressed(encoding).accept_compressed(encoding);
        let stored = artifacts.upload_artifact(tokio_stream::iter(parts)).await.expect("stored");
        let artifact_id = stored.into_inner().artifact.expect("an artifact").artifact_id;
        assert_eq!(ok(s.try_download(&artifact_id).await), bytes);
        let mut watch = executions.watch_execution(watch(&id)).await.expect("a watch").into_inner();
        assert!(watch.message().await.expect("an event").is_some());
    }
    // A client that accepts nothing gets nothing compressed, and an unknown way is refused by name.
    let plain = s
        .executions()
        .get_execution(GetExecutionRequest { execution_id: "gzip".into(), ..Default::default() })
        .await
        .expect("found");
    assert!(plain.metadata().get("grpc-encoding").is_none());
    let mut raw = Deaf::connect(&s.address().to_string(), Windows::WIDE).await;
    for path in [CREATE, INGEST] {
        let headers = [("grpc-encoding", "br")];
        let status = raw.outcome(path, &headers, Some(framed(&[])), true).await;
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().contains("gzip"), "{status:?}");
    }
    let headers = [("grpc-encoding", "identity")];
    let message = framed(&create("identity").encode_to_vec());
    let status = raw.outcome(CREATE, &headers, Some(message), true).await;
    assert_eq!(status.code(), Code::Ok);
}

pub async fn limits_hold_for_what_a_message_expands_to(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let mut raw = Deaf::connect(&s.address().to_string(), Windows::WIDE).await;
    let zeros = vec![0; 17 * MIB];
    let heavy = StartStepRequest { input: nulls(4 * MIB - 100), ..start("e", 1) }.encode_to_vec();
    type Pack = fn(&[u8]) -> Vec<u8>;
    for (encoding, pack) in [("gzip", gzip as Pack), ("zstd", zstd as Pack)] {
        let headers = [("grpc-encoding", encoding)];
        let bomb = with_flag(1, &pack(&zeros));
        assert!(bomb.len() < MIB, "{}", bomb.len());
        for path in [CREATE, WATCH, UPLOAD, METRICS] {
            let status = raw.outcome(path, &headers, Some(bomb.clone()), true).await;
            check_refusal(&status, Code::InvalidArgument, "INVALID_ARGUMENT");
            assert!(status.message().contains("when decompressed"), "{status:?}");
        }
        let status = raw.outcome(INGEST, &headers, Some(bomb), true).await;
        check_refusal(&status, Code::InvalidArgument, "BAD_MESSAGE");
        let heavy = with_flag(1, &pack(&heavy));
        assert!(heavy.len() < MIB, "{}", heavy.len());
        let status = raw.outcome(START, &headers, Some(heavy.clone()), true).await;
        check_refusal(&status, Code::InvalidArgument, "MESSAGE_TOO_LARGE");
        // Cut, not what it says, and without saying what it is.
        for (headers, message) in [
            (&headers[..], heavy.slice(..heavy.len() - 20)),
            (&headers[..], with_flag(1, b"neither of them")),
            (&[][..], with_flag(1, &pack(b"x"))),
        ] {
            let status = raw.outcome(START, headers, Some(message), true).await;
            check_refusal(&status, Code::InvalidArgument, "INVALID_ARGUMENT");
        }
    }
}

pub async fn no_connection_takes_more_than_its_share_of_the_budget(b: Backend) {
    let s = b
        .serve_with(|config| {
            config.limits.process_bytes = 64 * MIB;
            config.limits.decoded_bytes = 16 * MIB;
            config.limits.request_bytes = 8 * MIB;
            config.limits.payload_bytes = 4 * MIB;
        })
        .await;
    s.create("e").await;
    let address = s.address().to_string();
    let big = StartStepRequest { input: Some(value(json!("x".repeat(3 * MIB)))), ..start("e", 1) };
    ok(s.try_start_step(big.clone()).await);
    let whole = framed(&StartStepRequest { step_id: Some(2), ..big }.encode_to_vec());
    // Requests that never end: some wait, the others are told to come back.
    let mut unfinished = Deaf::connect(&address, Windows::WIDE).await;
    for _ in 0..20 {
        unfinished.begin(START, &[], whole.slice(..whole.len() - 1)).await;
    }
    let refused = unfinished.first_refusal().await;
    check_refusal(&refused, Code::ResourceExhausted, "OVER_BUDGET");
    // Replies that nobody reads.
    let mut unread = Deaf::connect(&address, Windows::ZERO).await;
    let get = GetStepRequest { execution_id: "e".into(), step_id: Some(1), ..Default::default() };
    for _ in 0..20 {
        unread.begin_whole(GET_STEP, &[], framed(&get.encode_to_vec())).await;
    }
    let refused = unread.first_refusal().await;
    check_refusal(&refused, Code::ResourceExhausted, "OVER_BUDGET");
    // Streams of messages that never end are not read on.
    let mut streams = Deaf::connect(&address, Windows::WIDE).await;
    let half = with_flag(0, &vec![8; 6 * MIB]).slice(..5 * MIB);
    for _ in 0..10 {
        streams.begin(INGEST, &[], half.clone()).await;
    }
    // Everybody else goes on.
    let honest = s.second_connection();
    honest.create("honest").await;
    honest.start("honest", 1).await;
    let upload = honest.upload(describe("honest", "log"), &noise(2 * MIB, 1));
    let stored = in_time("an upload", upload).await;
    assert_eq!(ok(honest.try_download(&stored.artifact_id).await).len(), 2 * MIB);
    let mut other = Deaf::connect(&address, Windows::WIDE).await;
    let status = in_time("a call", other.outcome(GET, &[], Some(framed(&[])), true));
    assert_eq!(status.await.code(), Code::InvalidArgument);
    // What was held is given back with its connection.
    drop((unfinished, unread, streams));
    let input = Some(value(json!("y".repeat(3 * MIB))));
    let again = StartStepRequest { input, ..start("honest", 2) };
    crate::support::eventually("there is room again", async || {
        honest.try_start_step(again.clone()).await.ok().map(drop)
    })
    .await;
}
