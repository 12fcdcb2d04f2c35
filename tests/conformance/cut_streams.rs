//! Streams that their client does not end: given up, past their deadline, or on a connection that closes. Only a stream
//! whose client closed its side is whole.

use std::any::Any;
use std::time::Duration;

use stepwell::proto::*;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::support::artifacts::{Uploading, chunk, describe, noise};
use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::values::{time, wall_clock_ms};
use crate::support::{eventually, in_time};

const MIB: usize = 1024 * 1024;
/// Long enough for a chunk to be stored, also on a busy machine.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
enum Cut {
    Cancel,
    Deadline,
    Connection,
}

/// Cuts an upload whose client has sent all it ever will, but not that this was all. What is returned keeps it from saying so.
async fn cut(uploading: Uploading, cut: Cut) -> Option<Box<dyn Any + Send>> {
    match cut {
        Cut::Cancel => Some(Box::new(uploading.cancel().await)),
        Cut::Connection => {
            uploading.break_off().await;
            None
        }
        Cut::Deadline => {
            let (answer, open) = uploading.outlast().await;
            let status = answer.expect_err("its deadline passes");
            let codes = [Code::DeadlineExceeded, Code::Cancelled];
            assert!(codes.contains(&status.code()), "{status:?}");
            Some(Box::new(open))
        }
    }
}

async fn an_upload_that_is_cut(b: Backend, way: Cut) {
    let s = b.serve().await;
    s.create("e").await;
    let kept = s.upload(describe("e", "kept"), &noise(MIB, 1)).await;
    let deadline = matches!(way, Cut::Deadline).then_some(DEADLINE);
    let bytes = noise(3 * MIB + 5, 2);
    let begin = async |description: ArtifactDescription, stored: usize| {
        let uploading = s.begin_upload_within(description, deadline).await;
        uploading.send(chunk(bytes.slice(..2 * MIB))).await;
        let is_stored = async || (b.stored_bytes().await >= stored).then_some(());
        eventually("the chunk is stored", is_stored).await;
        uploading
    };
    let uploading = begin(describe("e", "lost"), 3 * MIB).await;
    let _open = cut(uploading, way).await;
    b.blobs_become(&[&kept]).await;
    assert_eq!(s.artifacts_of("e").await, std::slice::from_ref(&kept), "{way:?}");

    let sent = ArtifactDescription { upload_id: Some("u".into()), ..describe("e", "resumed") };
    let uploading = begin(sent.clone(), 3 * MIB).await;
    let _open = cut(uploading, way).await;
    let is_safe = async || (s.try_received("u").await.ok()? == 2 * MIB as i64).then_some(());
    eventually("what came is safe", is_safe).await;
    assert_eq!(s.artifacts_of("e").await, std::slice::from_ref(&kept), "{way:?}");
    let rest = ArtifactDescription { offset: 2 * MIB as i64, ..sent };
    let stored = s.upload(rest, &bytes.slice(2 * MIB..)).await;
    assert_eq!(stored.size_bytes, Some(bytes.len() as i64), "{way:?}");
    assert!(ok(s.try_download(&stored.artifact_id).await) == bytes, "{way:?}");
    b.blobs_become(&[&kept, &stored]).await;
}

pub async fn an_upload_that_is_given_up_is_no_artifact(b: Backend) {
    an_upload_that_is_cut(b, Cut::Cancel).await;
}

pub async fn an_upload_past_its_deadline_is_no_artifact(b: Backend) {
    an_upload_that_is_cut(b, Cut::Deadline).await;
}

pub async fn an_upload_whose_connection_closes_is_no_artifact(b: Backend) {
    an_upload_that_is_cut(b, Cut::Connection).await;
}

pub async fn a_cut_stream_of_metrics_stores_what_was_read(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let message = |value: f64| StreamMetricsRequest {
        execution_id: "e".into(),
        points: vec![MetricPoint {
            timestamp: Some(time(wall_clock_ms() - 1000)),
            metrics: [("n".to_owned(), value)].into(),
            ..Default::default()
        }],
        request_id: None,
    };
    let (send, messages) = tokio::sync::mpsc::channel(4);
    let mut metrics = s.metrics();
    let call =
        tokio::spawn(async move { metrics.stream_metrics(ReceiverStream::new(messages)).await });
    for value in [1.0, 2.0] {
        send.send(message(value)).await.expect("the stream is open");
    }
    let query = QueryMetricsRequest { execution_id: "e".into(), ..Default::default() };
    let stored = async || s.query_metrics(query.clone()).await.points.len();
    eventually("both are stored", async || (stored().await == 2).then_some(())).await;
    call.abort();
    assert!(call.await.is_err(), "it was given up");
    // The same again is accepted: nothing of a cut stream stands in its way.
    let answer = ok(s.try_stream_metrics(vec![message(3.0)]).await);
    assert_eq!(answer.accepted, 1);
    assert_eq!(stored().await, 3);
}

pub async fn a_cut_ingest_applies_what_was_read(b: Backend) {
    let s = b.serve().await;
    let (send, requests) = tokio::sync::mpsc::channel(4);
    let mut ingest = s.ingest();
    let mut answers =
        ok(in_time("ingest", ingest.ingest(ReceiverStream::new(requests))).await).into_inner();
    let write = ingest_request::Write::CreateExecution(create("e"));
    send.send(IngestRequest { sequence: 1, write: Some(write), mirrored: None })
        .await
        .expect("it is open");
    let answer = ok(in_time("an answer", answers.message()).await).expect("an answer");
    assert_eq!(answer.sequence, 1);
    let write = ingest_request::Write::StartStep(start("e", 1));
    send.send(IngestRequest { sequence: 2, write: Some(write), mirrored: None })
        .await
        .expect("it is open");
    eventually("it is applied", async || s.try_get_step(step_of("e", 1)).await.ok()).await;
    drop(answers);
    // Sent again on another stream it is the same.
    let again = ingest_request::Write::StartStep(start("e", 1));
    let answer = s.ingest_all(vec![again]).await.remove(0);
    assert!(matches!(&answer, ingest_response::Result::Step(_)), "{answer:?}");
    drop(send);
}

fn step_of(execution_id: &str, step_id: i32) -> GetStepRequest {
    GetStepRequest {
        execution_id: execution_id.into(),
        step_id: Some(step_id),
        ..Default::default()
    }
}
