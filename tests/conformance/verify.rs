//! Digests: equal records have equal ones wherever they are stored, and others have not.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};
use stepwell::proto::get_digests_response::Part;
use stepwell::proto::ingest_request::Write;
use stepwell::proto::*;
use tonic::Code;

use crate::support::access::Guarded;
use crate::support::backend::{Backend, Kind};
use crate::support::client::*;
use crate::support::values::*;
use crate::support::*;

/// What one reading told.
#[derive(Debug, Default)]
struct Told {
    position: Option<i64>,
    ranges: BTreeMap<(i32, i32), (i64, Vec<u8>)>,
    records: Vec<RecordDigest>,
    unreadable: Option<i64>,
}

async fn told(s: &Client, request: GetDigestsRequest) -> Told {
    let mut stream = ok(s.try_get_digests(request).await);
    let mut told = Told::default();
    let mut first = true;
    while let Some(answer) = ok(in_time("digests", stream.message()).await) {
        assert!(told.unreadable.is_none(), "complete is the last");
        match answer.part.expect("a part") {
            Part::Begun(begun) => {
                assert!(first, "begun is the first");
                told.position = begun.position;
            }
            Part::Ranges(ranges) => {
                for range in ranges.ranges {
                    assert!(range.count > 0 && range.digest.len() == 32);
                    let total = (range.count, range.digest);
                    assert!(told.ranges.insert((range.kind, range.range), total).is_none());
                }
            }
            Part::Records(records) => told.records.extend(records.records),
            Part::Progress(_) => {}
            Part::Complete(complete) => told.unreadable = Some(complete.unreadable),
        }
        first = false;
    }
    assert!(told.unreadable.is_some(), "complete");
    told
}

async fn ranges(s: &Client) -> BTreeMap<(i32, i32), (i64, Vec<u8>)> {
    told(s, GetDigestsRequest::default()).await.ranges
}

async fn records(s: &Client) -> Vec<RecordDigest> {
    let request = GetDigestsRequest { level: DigestLevel::Records.into(), ..Default::default() };
    told(s, request).await.records
}

fn range_of(id: &str) -> i32 {
    let hash = Sha256::digest(id.as_bytes());
    i32::from(hash[0]) * 16 + i32::from(hash[1] / 16)
}

/// The digest of a range, out of those of its records.
fn sum(digests: &[&[u8]]) -> Vec<u8> {
    let mut sum = vec![0_u8; 32];
    for digest in digests {
        let mut carry = 0;
        for n in (0..32).rev() {
            let byte = u16::from(sum[n]) + u16::from(digest[n]) + carry;
            sum[n] = byte as u8;
            carry = byte >> 8;
        }
    }
    sum
}

fn execution(id: &str, app: &str) -> Execution {
    Execution {
        execution_id: id.into(),
        app_name: app.into(),
        status: ExecutionStatus::Failed.into(),
        started_at: Some(time(1_700_000_000_123)),
        duration_ms: Some(5),
        error: Some(run_error("broke")),
        metadata: meta(json!({ "a.b": [1, 2.5, null], "é": { "$x": true } })),
        created_at: Some(time(1_700_000_000_123)),
        updated_at: Some(time(1_700_000_000_124)),
        ..Default::default()
    }
}

fn step(id: &str, step_id: i32) -> Step {
    Step {
        execution_id: id.into(),
        step_id: Some(step_id),
        step_name: "work".into(),
        status: StepStatus::Completed.into(),
        input: Some(value(json!({ "n": step_id, "list": [1, "x", null, 0.1] }))),
        output: Some(value(json!("done"))),
        retry_count: 2,
        ..Default::default()
    }
}

fn artifact(id: &str, name: &str) -> Artifact {
    Artifact {
        execution_id: id.into(),
        artifact_type: "log".into(),
        artifact_name: name.into(),
        created_at: Some(time(1_700_000_000_000)),
        ..Default::default()
    }
}

fn points(id: &str, at: i64) -> RecordMetricsRequest {
    let point = |n: i64| MetricPoint {
        timestamp: Some(time(at + n)),
        metrics: [("n".to_owned(), n as f64), ("cost".to_owned(), 0.25)].into(),
        ..Default::default()
    };
    RecordMetricsRequest {
        execution_id: id.into(),
        points: vec![point(0), point(1)],
        request_id: None,
    }
}

fn configuration(app: &str, version: &str) -> Configuration {
    Configuration {
        app_name: app.into(),
        version: version.into(),
        configuration: meta(json!({ "settings": { "max_retries": 2 } })),
        created_at: Some(time(1_700_000_000_000)),
        ..Default::default()
    }
}

/// Ten executions with all they may have.
fn writes(at: i64) -> Vec<Write> {
    let mut writes = Vec::new();
    for n in 0..10 {
        let id = format!("run-{n}");
        writes.push(Write::PutExecution(execution(&id, if n < 5 { "app" } else { "other" })));
        writes.extend((1..=3).map(|number| Write::PutStep(step(&id, number))));
        writes.push(Write::PutArtifact(artifact(&id, "first")));
        writes.push(Write::PutMetrics(points(&id, at)));
    }
    writes.push(Write::PutConfiguration(configuration("app", "1")));
    writes.push(Write::PutConfiguration(configuration("other", "1")));
    writes
}

async fn put(s: &Client, writes: Vec<Write>) {
    for answer in s.ingest_all(writes).await {
        assert!(!matches!(answer, ingest_response::Result::Error(_)), "{answer:?}");
    }
}

pub async fn equal_records_have_equal_digests_on_every_server(b: Backend) {
    let s = b.serve().await;
    let elsewhere = Backend::fresh(Kind::Sqlite);
    let other = elsewhere.serve().await;
    let at = wall_clock_ms() - 60_000;
    put(&s, writes(at)).await;
    let mut shuffled = writes(at);
    // Executions come first, and what belongs to them in any order.
    shuffled.sort_by_key(|write| match write {
        Write::PutExecution(_) => 0,
        Write::PutConfiguration(_) => 1,
        _ => 2,
    });
    put(&other, shuffled).await;
    // The servers' own affair.
    let update = UpdateExecutionRequest {
        execution_id: "run-3".into(),
        pinned: Some(true),
        ..Default::default()
    };
    let before = ranges(&s).await;
    assert_eq!(before, ranges(&other).await);
    let kinds: Vec<i64> = (1..=5)
        .map(|kind| before.iter().filter(|((of, _), _)| *of == kind).map(|(_, (n, _))| n).sum())
        .collect();
    assert_eq!(kinds, [10, 30, 10, 20, 2]);
    let records = records(&s).await;
    assert_eq!(records.len(), 72);
    // Records add up to their ranges.
    let mut by_range: BTreeMap<(i32, i32), Vec<&[u8]>> = BTreeMap::new();
    for record in &records {
        let id = match &record.configuration {
            Some(key) => key.app_name(),
            None => &record.execution_id,
        };
        by_range.entry((record.kind, range_of(id))).or_default().push(&record.digest);
    }
    let summed: BTreeMap<_, _> = by_range
        .iter()
        .map(|(range, digests)| (*range, (digests.len() as i64, sum(digests))))
        .collect();
    assert_eq!(summed, before);
    // `updated_at` is of the data model, `pinned` is not.
    s.update_execution(update).await;
    let after = ranges(&s).await;
    let differing: Vec<_> = after.iter().filter(|(key, total)| before[*key] != **total).collect();
    let range = (ExportKind::Executions as i32, range_of("run-3"));
    assert_eq!(differing.iter().map(|(key, _)| **key).collect::<Vec<_>>(), [range]);
    let fields = |s: Client| async move {
        let keys = vec![DigestKey {
            kind: ExportKind::Executions.into(),
            execution_id: "run-3".into(),
            ..Default::default()
        }];
        let request = GetDigestsRequest {
            level: DigestLevel::Fields.into(),
            keys,
            include_values: true,
            ..Default::default()
        };
        let told = told(&s, request).await;
        assert_eq!(told.records.len(), 1);
        told.records[0].fields.clone()
    };
    let (ours, theirs) = (fields((*s).clone()).await, fields((*other).clone()).await);
    let names: Vec<_> = ours
        .iter()
        .zip(&theirs)
        .filter(|(ours, theirs)| ours.digest != theirs.digest)
        .map(|(ours, _)| ours.name.as_str())
        .collect();
    assert_eq!(names, ["updated_at"]);
    let shown = |name: &str| {
        let field = theirs.iter().find(|field| field.name == name).expect("a field");
        field.value.clone().expect("a value")
    };
    assert_eq!(shown("started_at"), "\"2023-11-14T22:13:20.123Z\"");
    assert_eq!(shown("metadata"), r#"{"a.b":[1,2.5,null],"é":{"$x":true}}"#);
    assert_eq!((shown("app_id").as_str(), shown("duration_ms").as_str()), ("null", "5"));
    elsewhere.remove().await;
}

pub async fn every_difference_is_in_the_digest_of_its_record(b: Backend) {
    let s = b.serve().await;
    let elsewhere = Backend::fresh(Kind::Sqlite);
    let other = elsewhere.serve().await;
    let at = wall_clock_ms() - 60_000;
    put(&s, writes(at)).await;
    let mut planted = BTreeSet::new();
    let mut changed = Vec::new();
    for (n, mut write) in writes(at).into_iter().enumerate() {
        let id = match &mut write {
            Write::PutExecution(record) if record.execution_id == "run-1" => {
                record.user_id = Some("somebody".into());
                "run-1/execution"
            }
            Write::PutExecution(record) if record.execution_id == "run-2" => {
                record.metadata = meta(json!({ "a.b": [1, 2.5], "é": { "$x": true } }));
                "run-2/execution"
            }
            Write::PutStep(record)
                if record.execution_id == "run-3" && record.step_id == Some(2) =>
            {
                record.output = Some(value(json!("Done")));
                "run-3/step"
            }
            Write::PutStep(record)
                if record.execution_id == "run-4" && record.step_id == Some(1) =>
            {
                record.input = Some(value(json!({ "n": 1, "list": [1, "x", null, 0.2] })));
                "run-4/step"
            }
            Write::PutArtifact(record) if record.execution_id == "run-5" => {
                record.created_at = Some(time(1_700_000_000_001));
                "run-5/artifact"
            }
            Write::PutMetrics(request) if request.execution_id == "run-6" => {
                request.points[1].metrics.insert("cost".into(), 0.26);
                "run-6/points"
            }
            Write::PutConfiguration(record) if record.app_name == "other" => {
                record.created_by = Some("x".into());
                "other/configuration"
            }
            _ => {
                // One is not there at all.
                if n != 2 {
                    changed.push(write);
                }
                continue;
            }
        };
        planted.insert(id);
        changed.push(write);
    }
    assert_eq!(planted.len(), 7);
    put(&other, changed).await;
    let (ours, theirs) = (ranges(&s).await, ranges(&other).await);
    let differing: BTreeSet<_> = ours
        .keys()
        .chain(theirs.keys())
        .filter(|key| ours.get(key) != theirs.get(key))
        .copied()
        .collect();
    let range = |kind: ExportKind, id: &str| (kind as i32, range_of(id));
    let expected = BTreeSet::from([
        range(ExportKind::Executions, "run-1"),
        range(ExportKind::Executions, "run-2"),
        range(ExportKind::Steps, "run-0"),
        range(ExportKind::Steps, "run-3"),
        range(ExportKind::Steps, "run-4"),
        range(ExportKind::Artifacts, "run-5"),
        range(ExportKind::Metrics, "run-6"),
        range(ExportKind::Configurations, "other"),
    ]);
    assert_eq!(differing, expected);
    // Only what is in these ranges is told.
    let selections = vec![DigestSelection {
        kind: ExportKind::Steps.into(),
        ranges: vec![range_of("run-3"), range_of("run-4")],
    }];
    let request =
        GetDigestsRequest { level: DigestLevel::Records.into(), selections, ..Default::default() };
    let of = |records: Vec<RecordDigest>| -> BTreeMap<(String, i32), Vec<u8>> {
        let named = records.into_iter().map(|record| {
            assert_eq!(record.kind(), ExportKind::Steps);
            ((record.execution_id.clone(), record.step_id()), record.digest)
        });
        named.collect()
    };
    let ours = of(told(&s, request.clone()).await.records);
    let theirs = of(told(&other, request).await.records);
    let ids: BTreeSet<_> = ours.keys().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, BTreeSet::from(["run-3", "run-4"]));
    let differing: Vec<_> = ours
        .iter()
        .filter(|(key, digest)| theirs.get(*key) != Some(digest))
        .map(|((id, step_id), _)| (id.as_str(), *step_id))
        .collect();
    assert_eq!(differing, [("run-3", 2), ("run-4", 1)]);
    elsewhere.remove().await;
}

pub async fn digests_of_a_filter_and_by_name(b: Backend) {
    let s = b.serve().await;
    put(&s, writes(wall_clock_ms() - 60_000)).await;
    let filter = Some(ExecutionFilter { app_names: vec!["app".into()], ..Default::default() });
    let some = told(&s, GetDigestsRequest { filter: filter.clone(), ..Default::default() }).await;
    let all = ranges(&s).await;
    let count = |kind: ExportKind| -> i64 {
        let of_kind = some.ranges.iter().filter(|((of, _), _)| *of == kind as i32);
        of_kind.map(|(_, (count, _))| count).sum()
    };
    assert_eq!(
        [
            ExportKind::Executions,
            ExportKind::Steps,
            ExportKind::Artifacts,
            ExportKind::Metrics,
            ExportKind::Configurations
        ]
        .map(count),
        [5, 15, 5, 10, 1]
    );
    // The same as without the filter, where nothing else is in the range.
    let alone = (ExportKind::Steps as i32, range_of("run-0"));
    assert!((1..10).all(|n| range_of(&format!("run-{n}")) != alone.1));
    assert_eq!(some.ranges[&alone], all[&alone]);
    assert!(some.position.is_some());
    let key = |kind: ExportKind, id: &str, step_id| DigestKey {
        kind: kind.into(),
        execution_id: id.into(),
        step_id,
        app_name: String::new(),
    };
    let keys = vec![
        key(ExportKind::Steps, "run-1", Some(2)),
        key(ExportKind::Steps, "run-1", Some(99)),
        key(ExportKind::Executions, "nobody", None),
        key(ExportKind::Artifacts, "run-1", None),
        key(ExportKind::Metrics, "run-1", None),
        // Not of the app.
        key(ExportKind::Executions, "run-7", None),
        key(ExportKind::Steps, "run-7", Some(1)),
        key(ExportKind::Artifacts, "run-7", None),
        key(ExportKind::Metrics, "run-7", None),
        DigestKey {
            kind: ExportKind::Configurations.into(),
            app_name: "app".into(),
            ..Default::default()
        },
        DigestKey {
            kind: ExportKind::Configurations.into(),
            app_name: "other".into(),
            ..Default::default()
        },
    ];
    let level = DigestLevel::Records.into();
    let request = GetDigestsRequest { filter, level, keys, ..Default::default() };
    let named: Vec<_> = told(&s, request.clone())
        .await
        .records
        .into_iter()
        .map(|record| (record.kind(), record.execution_id.clone(), record.step_id))
        .collect();
    let of_run = |kind| (kind, "run-1".to_owned(), None);
    assert_eq!(
        named,
        [
            (ExportKind::Steps, "run-1".to_owned(), Some(2)),
            of_run(ExportKind::Artifacts),
            of_run(ExportKind::Metrics),
            of_run(ExportKind::Metrics),
            (ExportKind::Configurations, String::new(), None),
        ]
    );
    // Without the filter all of them.
    let all = told(&s, GetDigestsRequest { filter: None, ..request }).await.records;
    assert_eq!(all.len(), named.len() + 6);
}

pub async fn bad_questions_about_digests_are_refused(b: Backend) {
    let s = b.serve().await;
    let selection = |kind: i32, ranges: Vec<i32>| DigestSelection { kind, ranges };
    let bad = GetDigestsRequest {
        selections: vec![
            selection(0, vec![]),
            selection(1, vec![4096]),
            selection(2, vec![-1, 1]),
            selection(3, vec![]),
            selection(3, vec![]),
            selection(4, vec![1; 5000]),
        ],
        level: 9,
        include_values: true,
        ..Default::default()
    };
    let fields = bad_fields(s.try_get_digests(bad).await.map(drop));
    let fields: Vec<_> = fields.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "include_values",
            "level",
            "selections.kind",
            "selections.kind",
            "selections.ranges",
            "selections.ranges",
            "selections.ranges"
        ]
    );
    let key = DigestKey { kind: ExportKind::Steps.into(), ..Default::default() };
    let bad = GetDigestsRequest {
        keys: vec![key],
        selections: vec![selection(1, vec![])],
        ..Default::default()
    };
    let fields = bad_fields(s.try_get_digests(bad).await.map(drop));
    let fields: Vec<_> = fields.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["keys", "keys", "keys.step_id"]);
    let key = DigestKey { kind: ExportKind::Executions.into(), ..Default::default() };
    let level = DigestLevel::Records.into();
    let many = GetDigestsRequest { keys: vec![key; 1001], level, ..Default::default() };
    let fields = bad_fields(s.try_get_digests(many).await.map(drop));
    assert_eq!(fields[0].0, "keys");
}

pub async fn digests_are_told_only_of_what_a_caller_may_see(b: Backend) {
    let guarded = Guarded::start(&b).await;
    let editor = guarded.caller("editor", &["*"]).await;
    let messages: Vec<IngestRequest> = writes(wall_clock_ms() - 60_000)
        .into_iter()
        .zip(1..)
        .map(|(write, sequence)| IngestRequest { sequence, write: Some(write), mirrored: None })
        .collect();
    let encode = |message: &IngestRequest| prost::Message::encode_to_vec(message);
    let path = "/stepwell.v1.IngestService/Ingest";
    let answers = ok(editor.call(path, messages.iter().map(encode).collect()).await);
    assert_eq!(answers.len(), messages.len());
    let viewer = guarded.caller("viewer", &["other"]).await;
    let told = async |request: GetDigestsRequest| -> Vec<GetDigestsResponse> {
        let path = "/stepwell.v1.VerifyService/GetDigests";
        let message = prost::Message::encode_to_vec(&request);
        let answers = ok(viewer.call(path, vec![message]).await);
        let decode = |bytes: &Vec<u8>| prost::Message::decode(bytes.as_slice()).expect("a message");
        answers.iter().map(decode).collect()
    };
    let level = DigestLevel::Records.into();
    let mut names = BTreeMap::new();
    for answer in told(GetDigestsRequest { level, ..Default::default() }).await {
        if let Some(Part::Records(records)) = answer.part {
            for record in records.records {
                assert!(
                    record.execution_id.is_empty() || record.execution_id.as_str() >= "run-5",
                    "{record:?}"
                );
                if let Some(key) = &record.configuration {
                    assert_eq!(key.app_name(), "other");
                }
                *names.entry(record.kind).or_insert(0) += 1;
            }
        }
    }
    assert_eq!(names.into_values().collect::<Vec<_>>(), [5, 15, 5, 10, 1]);
    let keys = ["run-1", "run-6"].map(|id| DigestKey {
        kind: ExportKind::Executions.into(),
        execution_id: id.into(),
        ..Default::default()
    });
    let answers = told(GetDigestsRequest { level, keys: keys.into(), ..Default::default() }).await;
    let ids: Vec<_> = answers
        .into_iter()
        .filter_map(|answer| match answer.part {
            Some(Part::Records(records)) => Some(records.records),
            _ => None,
        })
        .flatten()
        .map(|record| record.execution_id)
        .collect();
    assert_eq!(ids, ["run-6"]);
    let reporter = guarded.caller("reporter", &["*"]).await;
    let path = "/stepwell.v1.VerifyService/GetDigests";
    refused(reporter.call(path, vec![vec![]]).await, Code::PermissionDenied, "ROLE_FORBIDS");
}
