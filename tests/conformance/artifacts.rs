//! Artifacts: bytes in, bytes out, and nothing left behind.

use std::time::Duration;

use bytes::Bytes;
use stepwell::proto::*;
use tonic::Code;

use crate::support::artifacts::{blob_of, chunk, describe, first, noise, sha256};
use crate::support::backend::{Backend, Kind};
use crate::support::client::{Client, bad_fields, check_refusal, ok, refused};
use crate::support::server::Server;
use crate::support::values::{json, meta, millis, plain_meta, text, time, wall_clock_ms};
use crate::support::{PATIENCE, eventually, in_time};

const MIB: usize = 1024 * 1024;

/// A server with the execution `e`.
async fn server(b: &Backend) -> Server {
    let s = b.serve().await;
    s.create("e").await;
    s
}

fn download(artifact_id: &str) -> DownloadArtifactRequest {
    DownloadArtifactRequest { artifact_id: artifact_id.into(), ..Default::default() }
}

async fn put(s: &Client, record: Artifact) -> Result<String, tonic_types::Status> {
    let write = ingest_request::Write::PutArtifact(record);
    match s.ingest_all(vec![write]).await.remove(0) {
        ingest_response::Result::Artifact(stored) => Ok(stored.artifact_id),
        ingest_response::Result::Error(status) => Err(status),
        other => panic!("an artifact is answered with one: {other:?}"),
    }
}

pub async fn an_uploaded_artifact_has_every_field_that_was_sent(b: Backend) {
    let s = server(&b).await;
    let bytes = noise(3 * MIB + 17, 1);
    let before = wall_clock_ms();
    let sent = ArtifactDescription {
        step_id: Some(0),
        artifact_type: "screenshot".into(),
        mime_type: Some("image/png".into()),
        metadata: meta(json!({ "width": 1280, "deep": { "a.b": [1, null] } })),
        size_bytes: Some(bytes.len() as i64),
        sha256: Some(sha256(&bytes).to_ascii_uppercase()),
        ..describe("e", "Bildschirm ü.png")
    };
    let stored = s.upload(sent, &bytes).await;
    assert_eq!(stored.artifact_id.len(), 24);
    assert_eq!((stored.execution_id.as_str(), stored.step_id), ("e", Some(0)));
    assert_eq!(stored.artifact_type, "screenshot");
    assert_eq!(stored.artifact_name, "Bildschirm ü.png");
    assert_eq!(stored.mime_type.as_deref(), Some("image/png"));
    assert_eq!(stored.size_bytes, Some(bytes.len() as i64));
    assert_eq!(stored.sha256, Some(sha256(&bytes)));
    assert_eq!(
        plain_meta(&stored.metadata),
        json!({ "width": 1280, "deep": { "a.b": [1, null] } })
    );
    let created = millis(&stored.created_at).expect("it has its time");
    assert!((before..=wall_clock_ms()).contains(&created));
    let (storage, path) = match b.kind {
        Kind::Sqlite => ("local", "file:"),
        Kind::Mongodb => ("gridfs", "gridfs://artifacts/"),
    };
    assert_eq!(stored.storage_type.as_deref(), Some(storage));
    assert!(stored.storage_path.as_ref().is_some_and(|found| found.starts_with(path)));
    assert_eq!(ok(s.try_artifact(&stored.artifact_id).await), stored);
    assert_eq!(s.artifacts_of("e").await, std::slice::from_ref(&stored));
    let (record, found) = ok(s.try_download_part(download(&stored.artifact_id)).await);
    assert!(record == stored && found == bytes, "the bytes come with their record");

    let unknown = s.try_upload(describe("nobody", "x"), &bytes).await;
    refused(unknown, Code::NotFound, "EXECUTION_NOT_FOUND");
    for id in [text(24), "0123456789abcdef01234567".into(), "x".into()] {
        refused(s.try_artifact(&id).await, Code::NotFound, "ARTIFACT_NOT_FOUND");
        refused(s.try_download(&id).await, Code::NotFound, "ARTIFACT_NOT_FOUND");
        refused(s.try_delete(&id).await, Code::NotFound, "ARTIFACT_NOT_FOUND");
    }
}

pub async fn bytes_of_every_length_come_back(b: Backend) {
    let s = server(&b).await;
    for length in [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 9 * MIB + 5] {
        let bytes = noise(length, length as u64);
        let stored = s.upload(describe("e", "x"), &bytes).await;
        assert_eq!(stored.size_bytes, Some(length as i64));
        assert_eq!(stored.sha256, Some(sha256(&bytes)));
        assert!(ok(s.try_download(&stored.artifact_id).await) == bytes, "{length} bytes");
    }
    // In pieces of any length, also of none and of the greatest.
    let bytes = noise(9 * MIB, 7);
    let mut sent = vec![first(describe("e", "pieces"))];
    let mut at = 0;
    for length in [1, 0, 4 * MIB, 3, MIB, 2 * MIB - 4, 64 * 1024] {
        sent.push(chunk(bytes.slice(at..at + length)));
        at += length;
    }
    sent.push(chunk(bytes.slice(at..at + 1)));
    sent.push(chunk(bytes.slice(at + 1..)));
    let stored = ok(s.try_upload_messages(sent.into_iter()).await);
    assert!(ok(s.try_download(&stored.artifact_id).await) == bytes, "pieces of any length");
}

pub async fn declared_size_and_digest_are_enforced(b: Backend) {
    let s = server(&b).await;
    let bytes = noise(2 * MIB + 100, 1);
    let size = bytes.len() as i64;
    for (declared, way) in
        [(size - 1, "more"), (size + 1, "fewer"), (0, "more"), (MIB as i64, "more")]
    {
        let sent = ArtifactDescription { size_bytes: Some(declared), ..describe("e", "x") };
        let fields = bad_fields(s.try_upload(sent, &bytes).await);
        assert_eq!(fields[0].0, "description.size_bytes", "{way}");
        assert!(fields[0].1.contains(&declared.to_string()), "{fields:?}");
    }
    let other = sha256(b"other bytes");
    let sent = ArtifactDescription { sha256: Some(other.clone()), ..describe("e", "x") };
    let fields = bad_fields(s.try_upload(sent, &bytes).await);
    assert_eq!(fields[0].0, "description.sha256");
    assert!(fields[0].1.contains(&other) && fields[0].1.contains(&sha256(&bytes)));
    assert_eq!(s.artifacts_of("e").await, []);
    b.blobs_become(&[]).await;
}

pub async fn a_broken_upload_leaves_nothing_behind(b: Backend) {
    let s = server(&b).await;
    let kept = s.upload(describe("e", "kept"), &noise(MIB, 1)).await;
    let uploading = s.begin_upload(describe("e", "broken")).await;
    for n in 0..5 {
        uploading.send(chunk(noise(MIB, n))).await;
    }
    eventually("some bytes are stored", async || (b.blobs().await.len() == 2).then_some(())).await;
    uploading.break_off().await;
    b.blobs_become(&[&kept]).await;
    assert_eq!(s.artifacts_of("e").await, [kept]);
    // What is no upload at all.
    let none = s.try_upload_messages(std::iter::empty()).await;
    assert_eq!(bad_fields(none)[0].0, "description");
    let no_description = s.try_upload_messages([chunk(noise(1, 1))].into_iter()).await;
    assert_eq!(bad_fields(no_description)[0].0, "description");
    let twice = [first(describe("e", "x")), first(describe("e", "x"))];
    assert_eq!(bad_fields(s.try_upload_messages(twice.into_iter()).await)[0].0, "description");
}

pub async fn nothing_is_visible_before_the_last_byte(b: Backend) {
    let s = server(&b).await;
    let mut watch = s.artifacts_of("e").await;
    let uploading = s.begin_upload(describe("e", "x")).await;
    for n in 0..4 {
        uploading.send(chunk(noise(MIB, n))).await;
    }
    eventually("some bytes are stored", async || (b.blobs().await.len() == 1).then_some(())).await;
    watch.extend(s.artifacts_of("e").await);
    assert_eq!(watch, []);
    let stored = ok(uploading.end().await);
    assert_eq!(s.artifacts_of("e").await, [stored]);
}

pub async fn the_same_upload_again_is_the_stored_artifact(b: Backend) {
    let s = server(&b).await;
    s.create("f").await;
    let bytes = noise(MIB + 1, 1);
    let described = |step_id| ArtifactDescription { step_id, ..describe("e", "x") };
    let stored = s.upload(described(Some(1)), &bytes).await;
    // Also where nothing but the bytes says that they are the same, and where it is said before they come.
    assert_eq!(s.upload(described(Some(1)), &bytes).await, stored);
    let known = ArtifactDescription { sha256: Some(sha256(&bytes)), ..described(Some(1)) };
    assert_eq!(s.upload(known, &bytes).await, stored);
    b.blobs_become(&[&stored]).await;
    let others = [
        s.upload(described(Some(2)), &bytes).await,
        s.upload(described(None), &bytes).await,
        s.upload(describe("e", "y"), &bytes).await,
        s.upload(describe("f", "x"), &bytes).await,
        s.upload(described(Some(1)), &noise(MIB + 1, 2)).await,
    ];
    let mut all: Vec<&Artifact> = others.iter().collect();
    all.push(&stored);
    b.blobs_become(&all).await;
    // Once deleted it is a new one.
    ok(s.try_delete(&stored.artifact_id).await);
    let again = s.upload(described(Some(1)), &bytes).await;
    assert_ne!(again.artifact_id, stored.artifact_id);
    assert!(ok(s.try_download(&again.artifact_id).await) == bytes);
}

pub async fn racing_uploads_of_the_same_bytes_are_stored_once(b: Backend) {
    let (one, two) = b.pair().await;
    one.create("e").await;
    let bytes = noise(2 * MIB + 1, 1);
    let racers = (0..16).map(|n| {
        let s: Client = if n % 2 == 0 { (*one).clone() } else { (*two).clone() };
        let bytes = bytes.clone();
        tokio::spawn(async move { s.upload(describe("e", "x"), &bytes).await })
    });
    let racers: Vec<_> = racers.collect();
    let mut stored = Vec::new();
    for racer in racers {
        stored.push(racer.await.expect("an upload"));
    }
    for other in &stored {
        assert_eq!(*other, stored[0]);
    }
    assert_eq!(one.artifacts_of("e").await, [stored[0].clone()]);
    b.blobs_become(&[&stored[0]]).await;
    assert!(ok(two.try_download(&stored[0].artifact_id).await) == bytes);
}

/// Uploads the first `come` bytes, breaks off once they are stored, and says how many are safe.
async fn half(
    b: &Backend,
    s: &Client,
    sent: &ArtifactDescription,
    bytes: &Bytes,
    come: usize,
) -> usize {
    let upload_id = sent.upload_id.clone().expect("an upload id");
    let before = b.stored_bytes().await;
    let uploading = s.begin_upload(sent.clone()).await;
    for piece in 0..come / MIB {
        uploading.send(chunk(bytes.slice(piece * MIB..(piece + 1) * MIB))).await;
    }
    let stored = async || (b.stored_bytes().await >= before + come).then_some(());
    eventually("the bytes are stored", stored).await;
    uploading.break_off().await;
    let end = sent.offset + come as i64;
    let safe = async || {
        (matches!(s.try_received(&upload_id).await, Ok(safe) if safe == end)).then_some(())
    };
    eventually("what came is safe", safe).await;
    usize::try_from(end).expect("not negative")
}

pub async fn an_upload_goes_on_where_it_broke_off(b: Backend) {
    let s = server(&b).await;
    let bytes = noise(12 * MIB + 345, 1);
    let sent = ArtifactDescription {
        upload_id: Some("my upload".into()),
        size_bytes: Some(bytes.len() as i64),
        ..describe("e", "x")
    };
    refused(s.try_received("my upload").await, Code::NotFound, "UPLOAD_NOT_FOUND");
    let safe = half(&b, &s, &sent, &bytes, 4 * MIB).await;
    assert_eq!(safe, 4 * MIB);
    assert_eq!(s.artifacts_of("e").await, []);
    // Again and again, from wherever it is.
    let next = ArtifactDescription { offset: safe as i64, ..sent.clone() };
    let safe = half(&b, &s, &next, &bytes.slice(safe..), 3 * MIB).await;
    assert_eq!(safe, 7 * MIB);
    let next = ArtifactDescription { offset: safe as i64, ..sent.clone() };
    let stored = s.upload(next, &bytes.slice(safe..)).await;
    assert_eq!(stored.sha256, Some(sha256(&bytes)), "the digest is of the whole");
    assert_eq!(stored.size_bytes, Some(bytes.len() as i64));
    assert!(ok(s.try_download(&stored.artifact_id).await) == bytes);
    b.blobs_become(&[&stored]).await;
    // Too few bytes end nothing: the others may follow.
    let other = noise(3 * MIB + 5, 2);
    let sent = ArtifactDescription {
        upload_id: Some("short".into()),
        size_bytes: Some(other.len() as i64),
        ..describe("e", "short")
    };
    let fields = bad_fields(s.try_upload(sent.clone(), &other.slice(..2 * MIB)).await);
    assert_eq!(fields[0].0, "description.size_bytes");
    assert_eq!(ok(s.try_received("short").await), 2 * MIB as i64);
    let rest = ArtifactDescription { offset: 2 * MIB as i64, ..sent };
    let stored = s.upload(rest, &other.slice(2 * MIB..)).await;
    assert!(ok(s.try_download(&stored.artifact_id).await) == other);
}

pub async fn an_upload_goes_on_through_another_server(b: Backend) {
    let (one, two) = b.pair().await;
    one.create("e").await;
    let bytes = noise(7 * MIB + 1, 1);
    let sent = ArtifactDescription { upload_id: Some("u".into()), ..describe("e", "x") };
    let safe = half(&b, &one, &sent, &bytes, 4 * MIB).await;
    assert_eq!(ok(two.try_received("u").await), safe as i64);
    let next = ArtifactDescription { offset: safe as i64, ..sent };
    let stored = two.upload(next, &bytes.slice(safe..)).await;
    assert!(ok(one.try_download(&stored.artifact_id).await) == bytes);
    b.blobs_become(&[&stored]).await;
}

pub async fn an_upload_goes_on_from_no_other_place(b: Backend) {
    let s = server(&b).await;
    let bytes = noise(6 * MIB, 1);
    let sent = ArtifactDescription { upload_id: Some("u".into()), ..describe("e", "x") };
    let unknown = ArtifactDescription { offset: 5, ..sent.clone() };
    let refusal = s.try_upload(unknown, &bytes.slice(5..)).await;
    refused(refusal, Code::NotFound, "UPLOAD_NOT_FOUND");
    let safe = half(&b, &s, &sent, &bytes, 4 * MIB).await;
    for offset in [1, safe as i64 - 1, safe as i64 + 1, 100 * MIB as i64] {
        let next = ArtifactDescription { offset, ..sent.clone() };
        refused(s.try_upload(next, &bytes).await, Code::OutOfRange, "UPLOAD_OFFSET");
    }
    assert_eq!(ok(s.try_received("u").await), safe as i64, "a refusal costs nothing");
    // From the first byte on it is a new start, with any bytes.
    let other = noise(2 * MIB + 1, 2);
    let stored = s.upload(sent, &other).await;
    assert!(ok(s.try_download(&stored.artifact_id).await) == other);
    b.blobs_become(&[&stored]).await;
}

pub async fn an_upload_id_belongs_to_its_description(b: Backend) {
    let s = server(&b).await;
    s.create("f").await;
    let bytes = noise(4 * MIB, 1);
    let sent = ArtifactDescription { upload_id: Some("u".into()), ..describe("e", "x") };
    let safe = half(&b, &s, &sent, &bytes, 2 * MIB).await;
    let upload_id = Some("u".to_owned());
    for other in [
        ArtifactDescription { upload_id: upload_id.clone(), ..describe("f", "x") },
        ArtifactDescription { artifact_name: "y".into(), ..sent.clone() },
        ArtifactDescription { step_id: Some(1), ..sent.clone() },
        ArtifactDescription { mime_type: Some("text/plain".into()), ..sent.clone() },
        ArtifactDescription { metadata: meta(json!({ "a": 1 })), ..sent.clone() },
        ArtifactDescription { size_bytes: Some(4 * MIB as i64), ..sent.clone() },
    ] {
        for offset in [0, safe as i64] {
            let other = ArtifactDescription { offset, ..other.clone() };
            let refusal = s.try_upload(other, &bytes).await;
            refused(refusal, Code::AlreadyExists, "UPLOAD_ALREADY_EXISTS");
        }
    }
    let rest = ArtifactDescription { offset: safe as i64, ..sent };
    let stored = s.upload(rest, &bytes.slice(safe..)).await;
    assert!(ok(s.try_download(&stored.artifact_id).await) == bytes);
}

pub async fn an_upload_whose_answer_was_lost_is_found(b: Backend) {
    let s = server(&b).await;
    let bytes = noise(3 * MIB + 1, 1);
    let sent = ArtifactDescription { upload_id: Some("u".into()), ..describe("e", "x") };
    let stored = s.upload(sent.clone(), &bytes).await;
    assert_eq!(ok(s.try_received("u").await), bytes.len() as i64);
    let at_the_end = ArtifactDescription { offset: bytes.len() as i64, ..sent.clone() };
    assert_eq!(s.upload(at_the_end.clone(), &Bytes::new()).await, stored);
    assert_eq!(s.upload(sent.clone(), &bytes).await, stored);
    ok(s.try_delete(&stored.artifact_id).await);
    refused(s.try_received("u").await, Code::NotFound, "UPLOAD_NOT_FOUND");
    let refusal = s.try_upload(at_the_end, &Bytes::new()).await;
    refused(refusal, Code::OutOfRange, "UPLOAD_OFFSET");
    let again = s.upload(sent, &bytes).await;
    assert_ne!(again.artifact_id, stored.artifact_id);
    b.blobs_become(&[&again]).await;
}

pub async fn a_new_connection_takes_an_upload_over(b: Backend) {
    let s = server(&b).await;
    let bytes = noise(6 * MIB, 1);
    let sent = ArtifactDescription { upload_id: Some("u".into()), ..describe("e", "x") };
    // It goes silent, and nobody tells the server.
    let silent = s.begin_upload(sent.clone()).await;
    for piece in 0..3 {
        silent.send(chunk(bytes.slice(piece * MIB..(piece + 1) * MIB))).await;
    }
    eventually("some bytes are stored", async || (b.blobs().await.len() == 1).then_some(())).await;
    let stored = s.upload(sent, &bytes).await;
    refused(silent.answer().await, Code::Aborted, "UPLOAD_TAKEN");
    assert!(ok(s.try_download(&stored.artifact_id).await) == bytes);
    b.blobs_become(&[&stored]).await;
}

pub async fn another_artifact_never_takes_an_upload_over(b: Backend) {
    let s = server(&b).await;
    let bytes = noise(3 * MIB, 1);
    let sent = ArtifactDescription { upload_id: Some("u".into()), ..describe("e", "x") };
    let going = s.begin_upload(sent.clone()).await;
    going.send(chunk(bytes.slice(..2 * MIB))).await;
    eventually("some bytes are stored", async || (b.blobs().await.len() == 1).then_some(())).await;
    let other = ArtifactDescription { artifact_name: "y".into(), ..sent };
    refused(s.try_upload(other, &bytes).await, Code::AlreadyExists, "UPLOAD_ALREADY_EXISTS");
    going.send(chunk(bytes.slice(2 * MIB..))).await;
    let stored = ok(going.end().await);
    assert!(ok(s.try_download(&stored.artifact_id).await) == bytes);
}

pub async fn a_graceful_shutdown_ends_a_download(b: Backend) {
    // On a busy machine what is under way takes its time.
    let ends_late = |config: &mut stepwell::config::Config| {
        config.shutdown.deadline = PATIENCE;
        config.shutdown.streams = PATIENCE;
    };
    let s = b.serve_with(ends_late).await;
    s.create("e").await;
    let bytes = noise(32 * MIB, 1);
    let stored = s.upload(describe("e", "x"), &bytes).await;
    let answer = s.artifacts().download_artifact(download(&stored.artifact_id)).await;
    let mut stream = answer.expect("it begins").into_inner();
    for _ in 0..2 {
        in_time("the beginning of a download", stream.message()).await.expect("a message");
    }
    // Far more is left than can be under way.
    let mut down = Box::pin(s.shutdown());
    assert!(futures::poll!(&mut down).is_pending(), "it waits for the download");
    let down = tokio::spawn(down);
    let end = loop {
        match in_time("the end of a download", stream.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended as if it were whole"),
            Err(status) => break status,
        }
    };
    check_refusal(&end, Code::Unavailable, "SHUTTING_DOWN");
    down.await.expect("the server ends");
}

pub async fn a_download_of_what_is_deleted_meanwhile_says_so(b: Backend) {
    let s = b.serve().await;
    let bytes = noise(32 * MIB, 1);
    let delete = || DeleteExecutionRequest { execution_id: "e".into(), force: true };
    for with_its_execution in [false, true] {
        s.create("e").await;
        let stored = s.upload(describe("e", "x"), &bytes).await;
        let answer = s.artifacts().download_artifact(download(&stored.artifact_id)).await;
        let mut stream = answer.expect("it begins").into_inner();
        for _ in 0..2 {
            in_time("the beginning of a download", stream.message()).await.expect("a message");
        }
        // Far more is left than can be under way.
        match with_its_execution {
            true => drop(s.delete_execution(delete()).await),
            false => drop(ok(s.try_delete(&stored.artifact_id).await)),
        }
        b.blobs_become(&[]).await;
        let end = loop {
            match in_time("the end of a download", stream.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended as if it were whole"),
                Err(status) => break status,
            }
        };
        check_refusal(&end, Code::NotFound, "ARTIFACT_NOT_FOUND");
        if !with_its_execution {
            s.delete_execution(delete()).await;
        }
    }
}

pub async fn an_upload_that_does_not_go_on_expires(b: Backend) {
    let s =
        b.serve_with(|config| config.artifacts.upload_expiry = Duration::from_millis(1500)).await;
    s.create("e").await;
    let kept = s.upload(describe("e", "kept"), &noise(MIB, 3)).await;
    let bytes = noise(4 * MIB, 1);
    let sent = ArtifactDescription { upload_id: Some("u".into()), ..describe("e", "x") };
    let uploading = s.begin_upload(sent.clone()).await;
    for piece in 0..3 {
        uploading.send(chunk(bytes.slice(piece * MIB..(piece + 1) * MIB))).await;
    }
    uploading.break_off().await;
    eventually("it has expired", async || s.try_received("u").await.err()).await;
    b.blobs_become(&[&kept]).await;
    let refusal = s.try_upload(ArtifactDescription { offset: MIB as i64, ..sent.clone() }, &bytes);
    let refusal = refusal.await.expect_err("it has expired");
    assert!(matches!(refusal.code(), Code::NotFound | Code::OutOfRange), "{refusal:?}");
    let stored = s.upload(sent, &bytes).await;
    b.blobs_become(&[&kept, &stored]).await;
}

pub async fn a_download_may_be_of_a_part(b: Backend) {
    let s = server(&b).await;
    let bytes = noise(3 * MIB + 1000, 1);
    let size = bytes.len();
    let id = s.upload(describe("e", "x"), &bytes).await.artifact_id;
    let ask = |offset: Option<usize>, limit: Option<usize>, tail: Option<usize>| {
        let number = |number: Option<usize>| number.map(|number| number as i64);
        DownloadArtifactRequest {
            offset: number(offset),
            limit: number(limit),
            tail: number(tail),
            ..download(&id)
        }
    };
    for (request, expected) in [
        (ask(None, None, None), 0..size),
        (ask(Some(0), None, None), 0..size),
        (ask(Some(5), None, None), 5..size),
        (ask(Some(MIB), Some(MIB), None), MIB..2 * MIB),
        (ask(Some(MIB - 1), Some(2), None), MIB - 1..MIB + 1),
        (ask(Some(MIB + 7), Some(2 * MIB), None), MIB + 7..3 * MIB + 7),
        (ask(None, Some(10), None), 0..10),
        (ask(None, Some(0), None), 0..0),
        (ask(Some(size - 1), Some(100), None), size - 1..size),
        (ask(Some(size), None, None), size..size),
        (ask(Some(size + 100), Some(5), None), size..size),
        (ask(None, None, Some(100)), size - 100..size),
        (ask(None, None, Some(MIB + 1)), size - MIB - 1..size),
        (ask(None, None, Some(0)), size..size),
        (ask(None, None, Some(10 * size)), 0..size),
    ] {
        let shown = format!("{request:?}");
        let (_, found) = ok(s.try_download_part(request).await);
        assert!(
            found == bytes[expected.clone()],
            "{shown}: {} bytes, not {expected:?}",
            found.len()
        );
    }
    for (request, field) in [
        (DownloadArtifactRequest { offset: Some(-1), ..download(&id) }, "offset"),
        (DownloadArtifactRequest { limit: Some(-1), ..download(&id) }, "limit"),
        (DownloadArtifactRequest { tail: Some(-1), ..download(&id) }, "tail"),
        (DownloadArtifactRequest { tail: Some(1), offset: Some(1), ..download(&id) }, "tail"),
        (DownloadArtifactRequest { tail: Some(1), limit: Some(1), ..download(&id) }, "tail"),
        (download(""), "artifact_id"),
    ] {
        assert_eq!(bad_fields(s.try_download_part(request).await)[0].0, field);
    }
}

pub async fn bytes_that_are_damaged_or_gone_are_data_loss(b: Backend) {
    let s = server(&b).await;
    let bytes = noise(MIB / 2, 1);
    let lost = async |artifact: &Artifact| {
        let answer = s.try_download(&artifact.artifact_id).await;
        refused(answer.map(|bytes| bytes.len()), Code::DataLoss, "ARTIFACT_BYTES_LOST");
    };
    let damaged = s.upload(describe("e", "damaged"), &bytes).await;
    let mut other = bytes.to_vec();
    other[1000] ^= 1;
    b.tamper(&damaged, Some(&other)).await;
    lost(&damaged).await;
    // A part has no digest of its own.
    let part = DownloadArtifactRequest { limit: Some(10), ..download(&damaged.artifact_id) };
    assert_eq!(ok(s.try_download_part(part).await).1, bytes[..10]);
    b.tamper(&damaged, Some(&bytes)).await;
    assert!(ok(s.try_download(&damaged.artifact_id).await) == bytes);

    let short = s.upload(describe("e", "short"), &bytes).await;
    b.tamper(&short, Some(&bytes[..1000])).await;
    lost(&short).await;
    let gone = s.upload(describe("e", "gone"), &bytes).await;
    b.tamper(&gone, None).await;
    lost(&gone).await;
    let part = DownloadArtifactRequest { limit: Some(10), ..download(&gone.artifact_id) };
    let answer = s.try_download_part(part).await;
    refused(answer, Code::DataLoss, "ARTIFACT_BYTES_LOST");
    // The records are there, and can be deleted.
    for artifact in [&short, &gone] {
        assert_eq!(ok(s.try_artifact(&artifact.artifact_id).await), *artifact);
        ok(s.try_delete(&artifact.artifact_id).await);
    }
    assert_eq!(s.artifacts_of("e").await, [damaged]);
}

pub async fn artifacts_are_listed_newest_first(b: Backend) {
    let s = server(&b).await;
    s.create("f").await;
    let mut stored = Vec::new();
    for n in 0..12 {
        let sent = ArtifactDescription {
            step_id: Some(n % 3),
            artifact_type: if n % 2 == 0 { "log" } else { "code" }.into(),
            ..describe("e", &format!("x{n}"))
        };
        stored.push(s.upload(sent, &noise(10, 1)).await);
    }
    s.upload(describe("f", "other"), &noise(10, 1)).await;
    stored.reverse();
    assert_eq!(s.artifacts_of("e").await, stored);
    let ask =
        || ListArtifactsRequest { execution_id: "e".into(), page_size: 2, ..Default::default() };
    let all = async |mut request: ListArtifactsRequest| {
        let mut found = Vec::new();
        loop {
            let page = s.list_artifacts(request.clone()).await;
            assert!(page.artifacts.len() <= 2);
            found.extend(page.artifacts);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return found;
            }
        }
    };
    assert_eq!(all(ask()).await, stored);
    let by_step = ListArtifactsRequest { step_id: Some(0), ..ask() };
    let wanted: Vec<_> = stored.iter().filter(|one| one.step_id == Some(0)).cloned().collect();
    assert_eq!(all(by_step).await, wanted);
    let by_type = ListArtifactsRequest { artifact_type: Some("code".into()), ..ask() };
    let wanted: Vec<_> = stored.iter().filter(|one| one.artifact_type == "code").cloned().collect();
    assert_eq!(all(by_type.clone()).await, wanted);
    // What comes meanwhile does not move the pages.
    let page = s.list_artifacts(ask()).await;
    s.upload(describe("e", "later"), &noise(10, 1)).await;
    ok(s.try_delete(&stored[1].artifact_id).await);
    let next = ListArtifactsRequest { page_token: page.next_page_token.clone(), ..ask() };
    assert_eq!(s.list_artifacts(next).await.artifacts, stored[2..4]);

    let token = page.next_page_token;
    for forged in [
        ListArtifactsRequest { page_token: token.clone(), ..by_type },
        ListArtifactsRequest { page_token: token.clone(), execution_id: "f".into(), ..ask() },
        ListArtifactsRequest { page_token: token[1..].into(), ..ask() },
        ListArtifactsRequest { page_token: "x".into(), ..ask() },
    ] {
        let status = s.try_list_artifacts(forged).await.expect_err("no token of this request");
        check_refusal(&status, Code::InvalidArgument, "INVALID_TOKEN");
    }
    let bad = ListArtifactsRequest { page_size: 1001, execution_id: String::new(), ..ask() };
    let fields = bad_fields(s.try_list_artifacts(bad).await);
    let names: Vec<_> = fields.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["execution_id", "page_size"]);
    let unknown = ListArtifactsRequest { execution_id: "nobody".into(), ..ask() };
    refused(s.try_list_artifacts(unknown).await, Code::NotFound, "EXECUTION_NOT_FOUND");
}

pub async fn a_deleted_artifact_is_gone_with_its_bytes(b: Backend) {
    let s = server(&b).await;
    let kept = s.upload(describe("e", "kept"), &noise(MIB, 1)).await;
    let gone = s.upload(describe("e", "gone"), &noise(3 * MIB, 2)).await;
    b.blobs_become(&[&kept, &gone]).await;
    ok(s.try_delete(&gone.artifact_id).await);
    let blobs = b.blobs().await;
    assert_eq!(blobs, [blob_of(&kept)].into(), "the bytes are gone with the answer");
    refused(s.try_artifact(&gone.artifact_id).await, Code::NotFound, "ARTIFACT_NOT_FOUND");
    refused(s.try_download(&gone.artifact_id).await, Code::NotFound, "ARTIFACT_NOT_FOUND");
    refused(s.try_delete(&gone.artifact_id).await, Code::NotFound, "ARTIFACT_NOT_FOUND");
    assert_eq!(s.artifacts_of("e").await, std::slice::from_ref(&kept));
    // One that a crash left marked goes with the next sweep, and is not seen meanwhile.
    b.mark_artifact_alone(&kept.artifact_id).await;
    refused(s.try_artifact(&kept.artifact_id).await, Code::NotFound, "ARTIFACT_NOT_FOUND");
    refused(s.try_download(&kept.artifact_id).await, Code::NotFound, "ARTIFACT_NOT_FOUND");
    assert_eq!(s.artifacts_of("e").await, []);
    s.shutdown().await;
    let s = b.serve().await;
    b.blobs_become(&[]).await;
    eventually("the record is gone", async || (b.artifact_records().await == 0).then_some(()))
        .await;
    s.shutdown().await;
}

pub async fn bytes_go_with_their_execution(b: Backend) {
    let s = server(&b).await;
    s.upload(describe("e", "one"), &noise(MIB, 1)).await;
    s.upload(describe("e", "two"), &noise(2 * MIB, 2)).await;
    s.create("other").await;
    let kept = s.upload(describe("other", "kept"), &noise(MIB, 3)).await;
    let timestamp = Some(time(wall_clock_ms()));
    let metrics = [("loss".to_owned(), 1.0)].into();
    let point = MetricPoint { timestamp, metrics, ..Default::default() };
    s.record_metrics(RecordMetricsRequest {
        execution_id: "other".into(),
        points: vec![point],
        ..Default::default()
    })
    .await;
    s.delete_execution(DeleteExecutionRequest { execution_id: "e".into(), force: true }).await;
    assert_eq!(b.blobs().await, [blob_of(&kept)].into(), "the bytes are gone with the answer");
    assert_eq!(b.artifact_records().await, 1);
    // While an execution is being deleted, nobody gets what it still has.
    b.mark_execution("other", 0).await;
    refused(s.try_artifact(&kept.artifact_id).await, Code::NotFound, "ARTIFACT_NOT_FOUND");
    refused(s.try_download(&kept.artifact_id).await, Code::NotFound, "ARTIFACT_NOT_FOUND");
    refused(s.try_delete(&kept.artifact_id).await, Code::NotFound, "ARTIFACT_NOT_FOUND");
    let query = QueryMetricsRequest { execution_id: "other".into(), ..Default::default() };
    refused(s.try_query_metrics(query.clone()).await, Code::NotFound, "EXECUTION_NOT_FOUND");
    let interval = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let query = QueryMetricsRequest { interval, ..query };
    refused(s.try_query_metrics(query).await, Code::NotFound, "EXECUTION_NOT_FOUND");
    s.delete_execution(DeleteExecutionRequest { execution_id: "other".into(), force: true }).await;
    assert_eq!(b.blobs().await, [].into());
    s.shutdown().await;
}

pub async fn names_of_artifacts_are_data(b: Backend) {
    let s = server(&b).await;
    let names = [
        "../../../../etc/passwd",
        "/etc/passwd",
        "..\\..\\boot.ini",
        "a/b/c",
        ".",
        "nul\u{0}inside",
        "$where",
        "zeile\nzeile",
        "🦀",
    ];
    let mut stored = Vec::new();
    for name in names {
        let bytes = Bytes::copy_from_slice(name.as_bytes());
        let artifact = s.upload(describe("e", name), &bytes).await;
        assert_eq!(artifact.artifact_name, name);
        assert!(ok(s.try_download(&artifact.artifact_id).await) == bytes);
        stored.push(artifact);
    }
    let all: Vec<&Artifact> = stored.iter().collect();
    b.blobs_become(&all).await;
}

pub async fn artifacts_are_bounded(b: Backend) {
    let s = b
        .serve_with(|config| {
            config.limits.artifact_bytes = 2 * MIB;
            config.limits.artifact_bytes_per_execution = 3 * MIB;
        })
        .await;
    s.create("e").await;
    let bad = ArtifactDescription {
        execution_id: String::new(),
        step_id: Some(-1),
        artifact_type: text(257),
        artifact_name: String::new(),
        mime_type: Some(text(257)),
        metadata: meta(json!({ "text": text(256 * 1024) })),
        size_bytes: Some(2 * MIB as i64 + 1),
        sha256: Some("abc".into()),
        upload_id: Some(text(129)),
        offset: -1,
        ..Default::default()
    };
    let fields = bad_fields(s.try_upload(bad, &Bytes::new()).await);
    let names: Vec<_> = fields.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "artifact_name",
        "artifact_type",
        "execution_id",
        "metadata",
        "mime_type",
        "offset",
        "sha256",
        "size_bytes",
        "step_id",
        "upload_id",
    ];
    assert_eq!(names, expected.map(|name| format!("description.{name}")));
    let lonely = ArtifactDescription { offset: 1, ..describe("e", "x") };
    assert_eq!(bad_fields(s.try_upload(lonely, &Bytes::new()).await)[0].0, "description.offset");

    let great = [first(describe("e", "x")), chunk(noise(4 * MIB + 1, 1))];
    let fields = bad_fields(s.try_upload_messages(great.into_iter()).await);
    assert_eq!(fields[0].0, "chunk");
    assert!(fields[0].1.contains("4194305") && fields[0].1.contains("4194304"), "{fields:?}");
    // What is not declared is counted.
    let fields = bad_fields(s.try_upload(describe("e", "x"), &noise(2 * MIB + 1, 1)).await);
    assert_eq!(fields[0].0, "chunk");
    assert!(fields[0].1.contains("2097152"), "{fields:?}");

    let stored = s.upload(describe("e", "x"), &noise(2 * MIB, 1)).await;
    let more = noise(MIB + 1, 2);
    let known = ArtifactDescription { size_bytes: Some(more.len() as i64), ..describe("e", "y") };
    for sent in [known, describe("e", "y")] {
        let answer = s.try_upload(sent, &more).await;
        refused(answer, Code::InvalidArgument, "ARTIFACT_LIMIT");
    }
    let last = s.upload(describe("e", "y"), &more.slice(..MIB)).await;
    b.blobs_become(&[&stored, &last]).await;
    ok(s.try_delete(&stored.artifact_id).await);
    s.upload(describe("e", "y"), &more).await;
}

pub async fn an_execution_has_a_bounded_number_of_artifacts(b: Backend) {
    let s = b.serve_with(|config| config.limits.artifacts_per_execution = 3).await;
    s.create("e").await;
    s.create("f").await;
    s.upload(describe("e", "x"), &noise(10, 1)).await;
    s.upload(describe("e", "y"), &noise(10, 1)).await;
    let record = |name: &str| Artifact {
        execution_id: "e".into(),
        artifact_name: name.into(),
        ..Default::default()
    };
    put(&s, record("recorded")).await.expect("there is room");
    let answer = s.try_upload(describe("e", "z"), &noise(10, 1)).await;
    refused(answer, Code::InvalidArgument, "ARTIFACT_LIMIT");
    let refusal = put(&s, record("one more")).await.expect_err("there is no room");
    assert_eq!(refusal.code, Code::InvalidArgument as i32);
    // What is there already is no more.
    s.upload(describe("e", "y"), &noise(10, 1)).await;
    s.upload(describe("f", "z"), &noise(10, 1)).await;
    assert_eq!(s.artifacts_of("e").await.len(), 3);
}

pub async fn an_upload_that_races_a_delete_leaves_nothing_behind(b: Backend) {
    let (one, two) = b.pair().await;
    for round in 0..8 {
        let id = format!("e{round}");
        one.create(&id).await;
        let uploading = one.begin_upload(describe(&id, "x")).await;
        uploading.send(chunk(noise(MIB + 1, round))).await;
        let delete = DeleteExecutionRequest { execution_id: id.clone(), force: true };
        // In even rounds before the end of the upload, in odd ones at the same moment.
        let answer = if round % 2 == 0 {
            two.delete_execution(delete).await;
            uploading.end().await
        } else {
            let (answer, _) = tokio::join!(uploading.end(), two.delete_execution(delete));
            answer
        };
        match answer {
            Err(status) => {
                check_refusal(&status, Code::NotFound, "EXECUTION_NOT_FOUND");
            }
            Ok(stored) => {
                assert!(round % 2 == 1, "the execution was gone before");
                // The delete of the execution takes its artifacts along; this one came first.
                let _ = one.try_delete(&stored.artifact_id).await;
            }
        }
    }
    b.blobs_become(&[]).await;
}

pub async fn a_whole_artifact_record_is_kept_as_it_is(b: Backend) {
    let s = server(&b).await;
    let full = Artifact {
        artifact_id: "0123456789abcdef01234567".into(),
        execution_id: "e".into(),
        step_id: Some(3),
        artifact_type: "code".into(),
        artifact_name: "patch".into(),
        mime_type: Some("text/x-diff".into()),
        size_bytes: Some(16_666_667),
        storage_type: Some("tape".into()),
        storage_path: Some("tape:17/4".into()),
        metadata: meta(json!({ "content": "diff", "n": 1 })),
        created_at: Some(time(1234)),
        sha256: Some(sha256(b"x")),
        ..Default::default()
    };
    assert_eq!(put(&s, full.clone()).await.expect("stored"), full.artifact_id);
    assert_eq!(put(&s, full.clone()).await.expect("stored"), full.artifact_id);
    assert_eq!(ok(s.try_artifact(&full.artifact_id).await), full);
    let other = Artifact { artifact_name: "other".into(), ..full.clone() };
    let refusal = put(&s, other).await.expect_err("the id is taken");
    assert_eq!(refusal.code, Code::AlreadyExists as i32);
    // Without an id the same record again is the same record, whenever it says it was created.
    let bare =
        Artifact { execution_id: "e".into(), metadata: meta(json!({})), ..Default::default() };
    let id = put(&s, bare.clone()).await.expect("stored");
    let again = Artifact { created_at: Some(time(5)), ..bare.clone() };
    assert_eq!(put(&s, again).await.expect("found"), id);
    let stored = ok(s.try_artifact(&id).await);
    assert_eq!(stored, Artifact { artifact_id: id.clone(), ..bare.clone() }, "nothing is invented");
    let another = Artifact { step_id: Some(1), ..bare.clone() };
    assert_ne!(put(&s, another).await.expect("stored"), id);
    // One of no execution.
    let free = Artifact { artifact_name: "free".into(), ..Default::default() };
    let id = put(&s, free.clone()).await.expect("stored");
    assert_eq!(put(&s, free).await.expect("found"), id);
    assert_eq!(ok(s.try_artifact(&id).await).execution_id, "");
    let unknown = Artifact { execution_id: "nobody".into(), ..Default::default() };
    let refusal = put(&s, unknown).await.expect_err("there is no such execution");
    assert_eq!(refusal.code, Code::NotFound as i32);
    let bad = Artifact {
        artifact_id: "x".into(),
        size_bytes: Some(-1),
        sha256: Some("y".into()),
        ..Default::default()
    };
    assert_eq!(put(&s, bad).await.expect_err("bad").code, Code::InvalidArgument as i32);
    // In one stream with its execution, in order.
    let writes = vec![
        ingest_request::Write::CreateExecution(crate::support::client::create("g")),
        ingest_request::Write::PutArtifact(Artifact {
            execution_id: "g".into(),
            ..Default::default()
        }),
        ingest_request::Write::DeleteExecution(DeleteExecutionRequest {
            execution_id: "g".into(),
            force: true,
        }),
    ];
    for (index, answer) in s.ingest_all(writes).await.into_iter().enumerate() {
        let refused = matches!(answer, ingest_response::Result::Error(_));
        assert!(!refused, "write {index}: {answer:?}");
    }
}

pub async fn a_record_never_leads_to_bytes_of_others(b: Backend) {
    let s = server(&b).await;
    let secret = b.data_dir().join("stepwell.db");
    let storages = ["local", "gridfs", "s3", "file", ""];
    let paths = [
        "file:///etc/passwd".to_owned(),
        "/etc/passwd".into(),
        "file:../stepwell.db".into(),
        format!("file://{}", secret.display()),
        "raw/test_failure.png".into(),
        "gridfs://../x".into(),
        "s3://bucket/key".into(),
    ];
    for (index, path) in paths.iter().enumerate() {
        for storage in storages {
            let record = Artifact {
                execution_id: "e".into(),
                artifact_name: format!("{storage}{index}"),
                storage_type: Some(storage.into()),
                storage_path: Some(path.clone()),
                ..Default::default()
            };
            let id = put(&s, record).await.expect("kept as it is");
            let answer = s.try_download(&id).await;
            refused(answer, Code::FailedPrecondition, "ARTIFACT_WITHOUT_BYTES");
            ok(s.try_delete(&id).await);
        }
    }
    assert!(b.kind == Kind::Mongodb || secret.exists(), "nothing of ours was removed");
    // Bytes go with the last record that names them.
    let bytes = noise(MIB, 1);
    let stored = s.upload(describe("e", "x"), &bytes).await;
    let second =
        Artifact { artifact_id: String::new(), artifact_name: "y".into(), ..stored.clone() };
    let second = put(&s, second).await.expect("stored");
    ok(s.try_delete(&second).await);
    assert!(ok(s.try_download(&stored.artifact_id).await) == bytes);
    ok(s.try_delete(&stored.artifact_id).await);
    b.blobs_become(&[]).await;
}
