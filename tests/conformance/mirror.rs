//! What is known of mirrors, and the export that goes on, which they read.

use export_response::Record;
use mirror_service_advance_request::Told;
use mirror_service_client::MirrorServiceClient;
use stepwell::proto::*;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::values::*;
use crate::support::*;

struct Mirrors(MirrorServiceClient<Channel>);

impl Mirrors {
    fn of(s: &Client) -> Mirrors {
        Mirrors(MirrorServiceClient::new(s.channel()))
    }

    async fn begin(&mut self, name: &str, source: &str) -> Answer<Mirror> {
        let request = MirrorServiceBeginRequest { name: name.into(), source: source.into() };
        let answer = in_time("begin", self.0.begin(request)).await;
        Ok(answer?.into_inner().mirror.expect("a mirror"))
    }

    async fn advance(&mut self, name: &str, session: i64, told: Told) -> Answer<Mirror> {
        let name = name.to_owned();
        let request = MirrorServiceAdvanceRequest { name, session, told: Some(told) };
        let answer = in_time("advance", self.0.advance(request)).await;
        Ok(answer?.into_inner().mirror.expect("a mirror"))
    }

    async fn get(&mut self, name: &str) -> Answer<Mirror> {
        let request = MirrorServiceGetRequest { name: name.into() };
        let answer = in_time("get", self.0.get(request)).await;
        Ok(answer?.into_inner().mirror.expect("a mirror"))
    }

    async fn finish(&mut self, name: &str, force: bool) -> Answer<Mirror> {
        let request = MirrorServiceFinishRequest { name: name.into(), force };
        let answer = in_time("finish", self.0.finish(request)).await;
        Ok(answer?.into_inner().mirror.expect("a mirror"))
    }
}

fn progress(lag_ms: Option<i64>, changed_position: i64) -> MirrorProgress {
    MirrorProgress {
        phase: MirrorPhase::Following.into(),
        resume_token: "token".into(),
        position: changed_position,
        changed_position,
        lag_ms,
        copied: Some(MirrorCounts { executions: 3, steps: 4, ..Default::default() }),
        refused: [("INVALID_ARGUMENT".to_owned(), 2)].into(),
        conflicts: 1,
    }
}

fn verification(clean: bool, position: i64) -> Told {
    let differences = i64::from(!clean);
    Told::Verification(MirrorVerification { clean, position, differences, at: None })
}

pub async fn a_mirror_is_run_by_one_and_keeps_its_place(b: Backend) {
    let s = b.serve().await;
    let mut mirrors = Mirrors::of(&s);
    refused(mirrors.get("m").await, Code::NotFound, "MIRROR_NOT_FOUND");
    let first = ok(mirrors.begin("m", "mongodb database ai_apps").await);
    let told = progress(Some(120), 7);
    ok(mirrors.advance("m", first.session, Told::Progress(told.clone())).await);
    let found = ok(mirrors.get("m").await);
    assert_eq!(found.progress, Some(told.clone()));
    assert_eq!((found.name.as_str(), found.source.as_str()), ("m", "mongodb database ai_apps"));
    // Whoever begins takes over, after a restart of the server too, and goes on where it was.
    s.shutdown().await;
    let s = b.serve().await;
    let mut mirrors = Mirrors::of(&s);
    // What one has brought would look to the other like what is gone at its source.
    refused(
        mirrors.begin("another", "grpc://another:50051").await,
        Code::FailedPrecondition,
        "MIRROR_SOURCE_DIFFERS",
    );
    let second = ok(mirrors.begin("m", "mongodb database ai_apps").await);
    assert!(second.session > first.session);
    assert_eq!(second.progress.expect("known").resume_token, "token");
    let late = mirrors.advance("m", first.session, Told::Progress(told)).await;
    refused(late, Code::Aborted, "MIRROR_TAKEN_OVER");
    refused(
        mirrors.begin("m", "grpc://other").await,
        Code::FailedPrecondition,
        "MIRROR_SOURCE_DIFFERS",
    );
    let bad = MirrorProgress { lag_ms: Some(-1), phase: 0, ..Default::default() };
    let fields = bad_fields(mirrors.advance("m", second.session, Told::Progress(bad)).await);
    let fields: Vec<&str> = fields.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["progress.lag_ms", "progress.phase"]);
    assert_eq!(bad_fields(mirrors.begin("", "").await).len(), 2);
}

pub async fn a_mirror_ends_once_it_was_compared_and_nothing_is_missing(b: Backend) {
    let s = b.serve().await;
    let mut mirrors = Mirrors::of(&s);
    let session = ok(mirrors.begin("m", "source").await).session;
    let not_ready = async |mirrors: &mut Mirrors| {
        refused(mirrors.finish("m", false).await, Code::FailedPrecondition, "MIRROR_NOT_READY");
    };
    not_ready(&mut mirrors).await;
    ok(mirrors.advance("m", session, Told::Progress(progress(Some(5), 7))).await);
    ok(mirrors.advance("m", 0, verification(true, 8)).await);
    not_ready(&mut mirrors).await;
    ok(mirrors.advance("m", session, Told::Progress(progress(Some(0), 9))).await);
    not_ready(&mut mirrors).await;
    ok(mirrors.advance("m", 0, verification(false, 9)).await);
    not_ready(&mut mirrors).await;
    ok(mirrors.advance("m", 0, verification(true, 9)).await);
    let finished = ok(mirrors.finish("m", false).await);
    assert_eq!(finished.progress.expect("known").phase(), MirrorPhase::Finished);
    assert!(finished.finished_at.is_some());
    let again = mirrors.advance("m", session, Told::Progress(progress(Some(0), 9))).await;
    refused(again, Code::FailedPrecondition, "MIRROR_FINISHED");
    refused(mirrors.begin("m", "source").await, Code::FailedPrecondition, "MIRROR_FINISHED");
    ok(mirrors.begin("forced", "source").await);
    ok(mirrors.finish("forced", true).await);
}

pub async fn once_a_mirror_has_ended_this_server_looks_after_what_it_brought(b: Backend) {
    let s = b.serve().await;
    let mut mirrors = Mirrors::of(&s);
    ok(mirrors.begin("m", "source").await);
    let held = Execution {
        execution_id: "held".into(),
        app_name: "app".into(),
        status: ExecutionStatus::Running.into(),
        heartbeat_timeout_ms: Some(200),
        ..Default::default()
    };
    let write = IngestRequest {
        sequence: 1,
        write: Some(ingest_request::Write::PutExecution(held)),
        mirrored: Some(Mirrored { source_position: 1 }),
    };
    let answers = in_time("ingest", s.ingest().ingest(tokio_stream::iter([write]))).await;
    let mut answers: Streaming<IngestResponse> = ok(answers).into_inner();
    while ok(answers.message().await).is_some() {}
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(s.execution("held").await.status(), ExecutionStatus::Running);
    ok(mirrors.finish("m", true).await);
    eventually("nobody shows it alive any more", async || {
        (s.execution("held").await.status() == ExecutionStatus::Failed).then_some(())
    })
    .await;
}

/// The messages of an export that goes on.
struct Following(Streaming<ExportResponse>, Option<i64>);

impl Following {
    async fn open(s: &Client, token: Option<String>) -> Following {
        let request = ExportRequest { follow: true, resume_token: token, ..Default::default() };
        Following(ok(s.try_export(request).await), None)
    }

    async fn next(&mut self) -> ExportResponse {
        let answer = in_time("a message of the export", self.0.message()).await;
        let answer = ok(answer).expect("it goes on");
        let position = answer.position.expect("there is a log");
        assert!(self.1 <= Some(position), "positions never go back");
        self.1 = Some(position);
        answer
    }

    /// The next record that is no marker.
    async fn record(&mut self) -> (String, Record) {
        loop {
            let answer = self.next().await;
            match answer.record.expect("a record") {
                Record::CaughtUp(_) | Record::Walked(_) | Record::Complete(_) => {}
                record => return (answer.resume_token, record),
            }
        }
    }

    async fn caught_up(&mut self) -> String {
        loop {
            let answer = self.next().await;
            if matches!(answer.record, Some(Record::CaughtUp(_))) {
                return answer.resume_token;
            }
        }
    }
}

pub async fn an_export_goes_on_with_what_changes(b: Backend) {
    let s = b.serve().await;
    s.create("before").await;
    let mut following = Following::open(&s, None).await;
    let (_, record) = following.record().await;
    assert!(matches!(record, Record::Execution(execution) if execution.execution_id == "before"));
    following.caught_up().await;
    s.create("e").await;
    let (_, record) = following.record().await;
    assert!(matches!(record, Record::Execution(execution) if execution.execution_id == "e"));
    s.start("e", 1).await;
    let step = s.end("e", 1, StepStatus::Completed).await;
    loop {
        match following.record().await.1 {
            Record::Step(found) if found.revision == step.revision => break,
            Record::Step(_) | Record::Execution(_) => {}
            other => panic!("{other:?}"),
        }
    }
    // What has no log comes too.
    let point = MetricPoint {
        timestamp: Some(time(wall_clock_ms())),
        metrics: [("m".to_owned(), 1.5)].into(),
        ..Default::default()
    };
    let recorded = RecordMetricsRequest {
        execution_id: "e".into(),
        points: vec![point],
        ..Default::default()
    };
    s.record_metrics(recorded.clone()).await;
    s.publish_configuration(PublishConfigurationRequest {
        configuration: Some(Configuration {
            app_id: Some(1),
            app_name: "app".into(),
            version: "v1".into(),
            configuration: meta(json!({ "n": 1 })),
            ..Default::default()
        }),
        activate: true,
    })
    .await;
    let (mut points, mut configurations) = (0, 0);
    while points == 0 || configurations == 0 {
        match following.record().await.1 {
            Record::Points(found) => points += found.points.len(),
            Record::Configuration(found) => configurations += usize::from(found.active),
            Record::Execution(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((points, configurations), (1, 1), "each once");
    // It goes on after any message, and from then on only with what is new to whoever reads it.
    let token = following.caught_up().await;
    s.delete_execution(DeleteExecutionRequest { execution_id: "e".into(), force: true }).await;
    let mut resumed = Following::open(&s, Some(token)).await;
    for following in [&mut following, &mut resumed] {
        loop {
            match following.record().await.1 {
                Record::Removed(gone) => {
                    assert_eq!((gone.execution_id.as_str(), gone.step_id), ("e", None));
                    break;
                }
                Record::Configuration(_) | Record::Points(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    // Of an execution that was there before, the same points are new: with it they have gone wherever they were brought.
    s.create("e").await;
    s.record_metrics(recorded).await;
    loop {
        match following.record().await.1 {
            Record::Points(found) => {
                assert_eq!(found.points.len(), 1);
                break;
            }
            Record::Execution(_) | Record::Removed(_) | Record::Configuration(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let filter = ExecutionFilter { app_names: vec!["app".into()], ..Default::default() };
    let bad = ExportRequest { follow: true, filter: Some(filter), ..Default::default() };
    assert_eq!(bad_fields(s.try_export(bad).await.map(drop))[0].0, "follow");
}

pub async fn what_is_gone_at_its_source_goes_here(b: Backend) {
    let s = b.serve().await;
    let put = |id: &str| {
        ingest_request::Write::PutExecution(Execution {
            execution_id: id.into(),
            app_name: "app".into(),
            status: ExecutionStatus::Completed.into(),
            ..Default::default()
        })
    };
    let delete = |id: &str| {
        let request = DeleteExecutionRequest { execution_id: id.into(), force: false };
        ingest_request::Write::DeleteExecution(request)
    };
    let mirror = async |place, write| {
        let mirrored = Some(Mirrored { source_position: place });
        let request = IngestRequest { sequence: 1, write: Some(write), mirrored };
        let answers = in_time("ingest", s.ingest().ingest(tokio_stream::iter([request]))).await;
        let mut answers: Streaming<IngestResponse> = ok(answers).into_inner();
        ok(answers.message().await).expect("an answer").result.expect("a result")
    };
    mirror(5, put("a")).await;
    mirror(5, delete("a")).await;
    assert_eq!(s.execution("a").await.execution_id, "a", "it came back at this place");
    let gone = mirror(6, delete("a")).await;
    assert!(matches!(gone, ingest_response::Result::Deleted(_)), "{gone:?}");
    refused(s.try_execution("a").await, Code::NotFound, "EXECUTION_NOT_FOUND");
    let again = mirror(6, delete("a")).await;
    assert!(matches!(again, ingest_response::Result::Deleted(_)), "{again:?}");
    s.create("own").await;
    let own = mirror(9, delete("own")).await;
    let ingest_response::Result::Error(status) = own else { panic!("{own:?}") };
    assert_eq!(status.code, Code::FailedPrecondition as i32);
    s.execution("own").await;
}
