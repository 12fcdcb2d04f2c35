//! What one request may cost: violations, elements, decoded bytes, and the size of the answer that refuses it.

use prost::Message as _;
use prost_types::value::Kind as JsonKind;
use prost_types::{ListValue, Value};
use stepwell::proto::*;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};

use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::values::*;

const TRAILER_BYTES: u32 = 7 * 1024;
const MIB: usize = 1024 * 1024;

/// A client that loses an answer with more headers than that, as HTTP/2 counts them.
fn strict(client: &Client) -> Client {
    let endpoint = Endpoint::from_shared(format!("http://{}", client.address)).expect("an address");
    let endpoint = endpoint.http2_max_header_list_size(TRAILER_BYTES);
    Client { channel: endpoint.connect_lazy(), ..client.clone() }
}

/// How many violations the answer says there are, and how many it lists.
fn violations(status: &Status) -> (usize, usize) {
    let details = check_refusal(status, Code::InvalidArgument, "INVALID_ARGUMENT");
    let info = details.error_info().expect("checked");
    let count = info.metadata["violations"].parse().expect("a number");
    (count, details.bad_request().expect("checked").field_violations.len())
}

pub async fn an_error_fits_into_the_trailers_of_any_client(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let strict = strict(&s);

    let steps = |count: i32| {
        let bad =
            |_| PlannedStep { step_id: Some(-1), step_key: Some(text(2000)), ..Default::default() };
        PlanStepsRequest {
            execution_id: "e".into(),
            steps: (0..count).map(bad).collect(),
            ..Default::default()
        }
    };
    for (bad, least) in [(10, 30), (150, 450)] {
        let status = strict.try_plan_steps(steps(bad)).await.expect_err("bad steps");
        let (count, listed) = violations(&status);
        assert!(count >= least && (10..=30).contains(&listed), "{count} {listed}");
    }
    let one = PlannedStep { step_id: Some(1), step_name: String::new(), ..Default::default() };
    let plan = PlanStepsRequest { steps: vec![one], ..steps(0) };
    assert_eq!(violations(&strict.try_plan_steps(plan).await.expect_err("no name")), (1, 1));

    // Words of the client: all of them would be in the message, the resource and its description.
    for id in [text(2000), "é".repeat(4096), "\"".repeat(4096), "𝄞".repeat(1000)] {
        let request = GetExecutionRequest { execution_id: id.clone(), ..Default::default() };
        let status = strict.try_get_execution(request).await.expect_err("unknown");
        let details = check_refusal(&status, Code::NotFound, "EXECUTION_NOT_FOUND");
        let named = &details.resource_info().expect("checked").resource_name;
        assert!(named.ends_with('…') && id.starts_with(named.trim_end_matches('…')), "{named}");
        let status = strict.try_step(&id, 1).await.expect_err("unknown");
        assert_eq!(status.code(), Code::NotFound);
    }
    for key in ["k".repeat(256), "𝄞".repeat(256)] {
        let request =
            GetStepRequest { execution_id: "e".into(), step_key: Some(key), ..Default::default() };
        let status = strict.try_get_step(request).await.expect_err("unknown");
        check_refusal(&status, Code::NotFound, "STEP_NOT_FOUND");
    }
    let path = format!("{}\\", "𝄞".repeat(5000));
    let metadata = [(path, value(json!(1)))].into();
    let filter = Some(ExecutionFilter { metadata, ..Default::default() });
    let list = ListExecutionsRequest { filter, ..Default::default() };
    violations(&strict.try_list_executions(list).await.expect_err("a bad path"));

    // What the library says by itself.
    let mut request = Request::new(create("f"));
    let long: String = "x".repeat(7000);
    request.metadata_mut().insert("grpc-encoding", long.parse().expect("a value"));
    let status = strict.executions().create_execution(request).await.expect_err("unknown encoding");
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");

    // A status inside an answer of Ingest is as short.
    let plan = ingest_request::Write::PlanSteps(steps(150));
    let unknown = ingest_request::Write::StartStep(start(&"é".repeat(4096), 1));
    for answer in s.ingest_all(vec![plan, unknown]).await {
        let ingest_response::Result::Error(status) = answer else { panic!("{answer:?}") };
        assert!(status.encoded_len() < TRAILER_BYTES as usize, "{}", status.encoded_len());
    }
}

pub async fn a_list_of_millions_is_one_violation(b: Backend) {
    let server = b.serve().await;
    let s = strict(&server);
    let millions = || vec![99; 8 * MIB];
    let filter = || Some(ExecutionFilter { statuses: millions(), ..Default::default() });
    let list = ListExecutionsRequest { filter: filter(), ..Default::default() };
    let steps =
        ListStepsRequest { execution_id: "e".into(), statuses: millions(), ..Default::default() };
    let search = SearchRequest { query: "word".into(), kinds: millions(), ..Default::default() };
    let report = GetReportRequest { filter: filter(), ..Default::default() };
    let depends_on = StartStepRequest { depends_on: vec![-1; MIB], ..start("e", 1) };
    let names = QueryMetricsRequest { names: vec![String::new(); MIB], ..Default::default() };
    let answers = [
        ("filter.statuses", 50, s.try_list_executions(list).await.map(drop)),
        ("statuses", 50, s.try_list_steps(steps).await.map(drop)),
        ("kinds", 50, s.try_search(search).await.map(drop)),
        ("filter.statuses", 50, s.try_get_report(report).await.map(drop)),
        ("depends_on", 10_000, s.try_start_step(depends_on).await.map(drop)),
        ("names", 50, s.metrics().query_metrics(names).await.map(drop)),
    ];
    for (field, limit, answer) in answers {
        let about: Vec<_> =
            bad_fields(answer).into_iter().filter(|(named, _)| named == field).collect();
        let [(_, description)] = about.as_slice() else { panic!("{field}: {about:?}") };
        assert!(description.contains(&format!("more than the limit of {limit}")), "{about:?}");
    }
}

/// A list of this many nulls, each of four bytes on the wire.
fn nulls(count: usize) -> Option<Value> {
    let null = Value { kind: Some(JsonKind::NullValue(0)) };
    Some(Value { kind: Some(JsonKind::ListValue(ListValue { values: vec![null; count] })) })
}

pub async fn a_message_that_would_take_too_much_memory_is_refused(b: Backend) {
    let s = b.serve().await;
    s.create("e").await;
    let step = StartStepRequest { input: nulls(4 * MIB - 100), ..start("e", 1) };
    let whole = FinishStepRequest {
        output: nulls(3 * MIB),
        step_name: Some("work".into()),
        ..finish_step("e", 2, StepStatus::Completed)
    };
    let plan = PlanStepsRequest {
        execution_id: "e".into(),
        steps: vec![PlannedStep::default(); 4 * MIB],
        ..Default::default()
    };
    let points = RecordMetricsRequest {
        execution_id: "e".into(),
        points: vec![MetricPoint::default(); 4 * MIB],
        ..Default::default()
    };
    let answers = [
        s.try_start_step(step).await.map(drop),
        s.try_finish_step(whole).await.map(drop),
        s.try_plan_steps(plan).await.map(drop),
        s.metrics().record_metrics(points).await.map(drop),
    ];
    for answer in answers {
        let status = answer.expect_err("too much");
        let details = check_refusal(&status, Code::InvalidArgument, "MESSAGE_TOO_LARGE");
        let violation = &details.bad_request().expect("checked").field_violations[0];
        assert_eq!(violation.field, "message");
        assert!(violation.description.contains(&(256 * MIB).to_string()), "{violation:?}");
    }
    // As large as payloads may be of what is small: it passes.
    let step = StartStepRequest { input: nulls(650_000), ..start("e", 1) };
    assert_eq!(s.start_step(step).await.step_id, Some(1));
}
