//! Lists of executions: filters, order, pages and their tokens.

use std::collections::HashMap;

use prost::Message as _;
use stepwell::proto::*;
use tonic::Code;

use crate::support::backend::Backend;
use crate::support::client::*;
use crate::support::values::*;

/// All pages of a list.
async fn all_pages(s: &Client, request: &ListExecutionsRequest) -> Vec<String> {
    let mut request = request.clone();
    let mut ids = Vec::new();
    loop {
        let page = s.list_executions(request.clone()).await;
        ids.extend(page.executions.into_iter().map(|execution| execution.execution_id));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return ids;
        }
    }
}

/// Whole records, as an import brings them.
async fn put_all(s: &Client, executions: Vec<Execution>) {
    let writes = executions.into_iter().map(ingest_request::Write::PutExecution).collect();
    for answer in s.ingest_all(writes).await {
        assert!(matches!(answer, ingest_response::Result::Execution(_)), "{answer:?}");
    }
}

fn record(id: &str, started_at: Option<i64>) -> Execution {
    Execution {
        execution_id: id.into(),
        app_name: "app".into(),
        status: ExecutionStatus::Completed.into(),
        started_at: started_at.map(time),
        ..Default::default()
    }
}

pub async fn pages_are_complete_with_equal_and_missing_start_times(b: Backend) {
    let s = b.serve().await;
    let records = [
        ("n1", None),
        ("n2", None),
        ("n3", None),
        ("N2", None),
        ("a", Some(5)),
        ("b", Some(5)),
        ("B", Some(5)),
        ("c", Some(5)),
        ("d", Some(5)),
        ("e", Some(4)),
        ("f", Some(6)),
        ("g", Some(-1)),
        ("h", Some(6)),
    ];
    put_all(&s, records.iter().map(|(id, at)| record(id, *at)).collect()).await;
    let times: HashMap<_, _> = records.into_iter().collect();
    for order in
        [ExecutionOrder::Unspecified, ExecutionOrder::StartedAtDesc, ExecutionOrder::StartedAtAsc]
    {
        let mut reference: Option<Vec<String>> = None;
        for page_size in [1, 2, 3, 4, 5, 12, 13, 14, 0] {
            let request =
                ListExecutionsRequest { order: order.into(), page_size, ..Default::default() };
            let ids = all_pages(&s, &request).await;
            let found: Vec<_> = ids.iter().map(|id| times[id.as_str()]).collect();
            let mut sorted = found.clone();
            // A missing start time is the oldest, as None is less than Some.
            sorted.sort();
            if order != ExecutionOrder::StartedAtAsc {
                sorted.reverse();
            }
            assert_eq!(found, sorted, "{order:?} by {page_size}");
            let mut unique = ids.clone();
            unique.sort();
            unique.dedup();
            assert_eq!(unique.len(), records.len(), "{order:?} by {page_size}: {ids:?}");
            assert_eq!(
                *reference.get_or_insert_with(|| ids.clone()),
                ids,
                "one order for all sizes"
            );
        }
    }
}

pub async fn pages_stay_in_place_while_records_come_and_go(b: Backend) {
    let s = b.serve().await;
    put_all(&s, (0..20).map(|n| record(&format!("e{n:02}"), Some(n))).collect()).await;
    let mut request = ListExecutionsRequest { page_size: 5, ..Default::default() };
    let mut ids = Vec::new();
    for round in 0..4 {
        let page = s.list_executions(request.clone()).await;
        ids.extend(page.executions.into_iter().map(|execution| execution.execution_id));
        request.page_token = page.next_page_token;
        // Newer ones are before the place, and what is deleted behind it has been seen.
        put_all(&s, vec![record(&format!("new{round}"), Some(100 + round))]).await;
        let gone = DeleteExecutionRequest { execution_id: ids[0].clone(), force: false };
        if round == 0 {
            s.delete_execution(gone).await;
        }
    }
    let expected: Vec<_> = (0..20).rev().map(|n| format!("e{n:02}")).collect();
    assert_eq!(ids, expected);
    let again =
        all_pages(&s, &ListExecutionsRequest { page_size: 1000, ..Default::default() }).await;
    assert_eq!(again.len(), 23);
}

pub async fn the_default_page_has_50_and_the_greatest_1000_records(b: Backend) {
    let s = b.serve().await;
    put_all(&s, (0..1005).map(|n| record(&format!("e{n}"), Some(n))).collect()).await;
    let list = |page_size| ListExecutionsRequest { page_size, ..Default::default() };
    assert_eq!(s.list_executions(list(0)).await.executions.len(), 50);
    assert_eq!(s.list_executions(list(1000)).await.executions.len(), 1000);
    assert_eq!(all_pages(&s, &list(1000)).await.len(), 1005);
    for bad in [1001, -1] {
        let fields = bad_fields(s.try_list_executions(list(bad)).await);
        assert_eq!(fields[0].0, "page_size");
    }
    s.create("steps").await;
    let bad =
        ListStepsRequest { execution_id: "steps".into(), page_size: 1001, ..Default::default() };
    let fields = bad_fields(s.try_list_steps(bad).await);
    assert_eq!(fields[0].0, "page_size");
    assert!(fields[0].1.contains("1001") && fields[0].1.contains("1000"), "{fields:?}");
}

pub async fn filters_mean_what_they_say(b: Backend) {
    let s = b.serve().await;
    let sample = [
        (
            "a",
            Some(1),
            "alpha",
            Some(10),
            Some("ann"),
            ExecutionStatus::Completed,
            Some(100),
            Some(5),
        ),
        (
            "b",
            Some(1),
            "alpha",
            Some(11),
            Some("bob"),
            ExecutionStatus::Failed,
            Some(200),
            Some(50),
        ),
        ("c", Some(2), "beta", None, Some("ann"), ExecutionStatus::Running, Some(300), None),
        ("d", None, "gamma", None, None, ExecutionStatus::Cancelled, None, None),
        (
            "e",
            Some(2),
            "Beta",
            Some(10),
            Some("ann"),
            ExecutionStatus::Completed,
            Some(400),
            Some(500),
        ),
    ];
    let records =
        sample.into_iter().map(|(id, app_id, app, sub, user, status, at, duration_ms)| Execution {
            app_id,
            app_name: app.into(),
            sub_app_id: sub,
            user_id: user.map(Into::into),
            status: status.into(),
            duration_ms,
            ..record(id, at)
        });
    put_all(&s, records.collect()).await;
    let none = ExecutionFilter::default;
    let statuses = |list: &[ExecutionStatus]| list.iter().map(|status| (*status).into()).collect();
    let cases: Vec<(ExecutionFilter, &str)> = vec![
        (none(), "abcde"),
        (ExecutionFilter { app_ids: vec![1], ..none() }, "ab"),
        (ExecutionFilter { app_ids: vec![1, 2, 99], ..none() }, "abce"),
        (ExecutionFilter { app_names: vec!["beta".into()], ..none() }, "c"),
        (ExecutionFilter { app_names: vec!["alpha".into(), "gamma".into()], ..none() }, "abd"),
        (ExecutionFilter { sub_app_ids: vec![10], ..none() }, "ae"),
        (ExecutionFilter { user_ids: vec!["ann".into()], ..none() }, "ace"),
        (ExecutionFilter { user_ids: vec!["an".into()], ..none() }, ""),
        (ExecutionFilter { statuses: statuses(&[ExecutionStatus::Running]), ..none() }, "c"),
        (
            ExecutionFilter {
                statuses: statuses(&[ExecutionStatus::Completed, ExecutionStatus::Cancelled]),
                ..none()
            },
            "ade",
        ),
        (ExecutionFilter { started_at_from: Some(time(200)), ..none() }, "bce"),
        (ExecutionFilter { started_at_until: Some(time(300)), ..none() }, "ab"),
        (
            ExecutionFilter {
                started_at_from: Some(time(200)),
                started_at_until: Some(time(400)),
                ..none()
            },
            "bc",
        ),
        (ExecutionFilter { min_duration_ms: Some(50), ..none() }, "be"),
        (ExecutionFilter { min_duration_ms: Some(0), ..none() }, "abe"),
        (
            ExecutionFilter {
                app_ids: vec![1, 2],
                user_ids: vec!["ann".into()],
                statuses: statuses(&[ExecutionStatus::Completed]),
                started_at_from: Some(time(101)),
                min_duration_ms: Some(6),
                ..none()
            },
            "e",
        ),
    ];
    for (filter, expected) in cases {
        for page_size in [0, 1] {
            let request = ListExecutionsRequest {
                filter: Some(filter.clone()),
                page_size,
                ..Default::default()
            };
            let mut found = all_pages(&s, &request).await;
            found.sort();
            assert_eq!(found.concat(), expected, "{filter:?}");
        }
    }
}

pub async fn metadata_filters_compare_values_at_paths(b: Backend) {
    let s = b.serve().await;
    let sample = [
        ("a", json!({ "model": "m1", "n": 1, "deep": { "x": { "y": true } } })),
        ("b", json!({ "model": "m2", "n": 1.5, "deep": { "x.y": true } })),
        ("c", json!({ "model": { "$gt": "" }, "n": "1", "dot.key": { "in.ner": 1 } })),
        ("d", json!({ "model": null, "n": [1], "back\\slash": 1, "deep": { "x": 7 } })),
        ("e", json!({ "model": { "b": 1, "a": [1, { "c": null }] }, "n": -1, "": { "": 5 } })),
        ("f", json!({})),
    ];
    for (id, metadata) in sample {
        s.create_execution(CreateExecutionRequest { metadata: meta(metadata), ..create(id) }).await;
    }
    let cases = [
        ("model", json!("m1"), "a"),
        ("n", json!(1), "a"),
        ("n", json!(1.5), "b"),
        ("n", json!("1"), "c"),
        ("n", json!([1]), "d"),
        ("n", json!(-1), "e"),
        ("deep.x.y", json!(true), "a"),
        (r"deep.x\.y", json!(true), "b"),
        (r"dot\.key.in\.ner", json!(1), "c"),
        ("dot.key.in.ner", json!(1), ""),
        (r"back\\slash", json!(1), "d"),
        ("deep.x", json!(7), "d"),
        (".", json!(5), "e"),
        // A value is data, never an operator.
        ("model", json!({ "$gt": "" }), "c"),
        ("model", json!({ "$exists": true }), ""),
        ("model", json!({ "$ne": "m1" }), ""),
        ("model", json!({ "$regex": "m" }), ""),
        // An object is compared by equality, whatever the order of its keys.
        ("model", json!({ "a": [1, { "c": null }], "b": 1 }), "e"),
        ("model", json!({ "b": 1 }), ""),
        // Null is a value too, and an absent key is none.
        ("model", json!(null), "d"),
    ];
    for (path, wanted, expected) in cases {
        let filter = ExecutionFilter {
            metadata: [(path.to_owned(), value(wanted.clone()))].into(),
            ..Default::default()
        };
        let request = ListExecutionsRequest { filter: Some(filter), ..Default::default() };
        let mut found = all_pages(&s, &request).await;
        found.sort();
        assert_eq!(found.concat(), expected, "{path} = {wanted}");
    }
    let both = ExecutionFilter {
        metadata: [("model".to_owned(), value(json!("m1"))), ("n".to_owned(), value(json!(1)))]
            .into(),
        ..Default::default()
    };
    let request = ListExecutionsRequest { filter: Some(both), ..Default::default() };
    assert_eq!(all_pages(&s, &request).await, ["a"]);
    for path in ["", "a\\", "a\\x"] {
        let filter = ExecutionFilter {
            metadata: [(path.to_owned(), value(json!(1)))].into(),
            ..Default::default()
        };
        let request = ListExecutionsRequest { filter: Some(filter), ..Default::default() };
        let fields = bad_fields(s.try_list_executions(request).await);
        assert_eq!(fields[0].0, "filter.metadata", "{path:?}");
    }
}

pub async fn a_page_examines_a_bounded_number_of_records(b: Backend) {
    let s = b.serve_with(|config| config.limits.page_examined_records = 50).await;
    let mut records: Vec<_> = (0..300).map(|n| record(&format!("e{n:03}"), Some(n))).collect();
    records[0].metadata = meta(json!({ "rare": true }));
    records[150].metadata = meta(json!({ "rare": true }));
    put_all(&s, records).await;
    let filter = ExecutionFilter {
        metadata: [("rare".to_owned(), value(json!(true)))].into(),
        ..Default::default()
    };
    for order in [ExecutionOrder::StartedAtDesc, ExecutionOrder::StartedAtAsc] {
        let mut request = ListExecutionsRequest {
            filter: Some(filter.clone()),
            order: order.into(),
            ..Default::default()
        };
        let (mut found, mut pages, mut empty) = (Vec::new(), 0, 0);
        loop {
            let page = s.list_executions(request.clone()).await;
            pages += 1;
            empty += usize::from(page.executions.is_empty());
            found.extend(page.executions.into_iter().map(|execution| execution.execution_id));
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        found.sort();
        assert_eq!(found, ["e000", "e150"]);
        assert!(pages >= 6, "300 records at 50 a page are 6 pages, not {pages}");
        assert!(empty >= 3, "pages without a find are empty, with a token");
    }
    s.create("steps").await;
    let steps = (0..120).map(|step_id| {
        ingest_request::Write::PutStep(Step {
            execution_id: "steps".into(),
            step_id: Some(step_id),
            step_name: "work".into(),
            status: if step_id == 119 { StepStatus::Failed } else { StepStatus::Completed }.into(),
            ..Default::default()
        })
    });
    s.ingest_all(steps.collect()).await;
    let mut request = ListStepsRequest {
        execution_id: "steps".into(),
        statuses: vec![StepStatus::Failed.into()],
        ..Default::default()
    };
    let mut found = Vec::new();
    loop {
        let page = s.list_steps(request.clone()).await;
        found.extend(page.steps.into_iter().filter_map(|step| step.step_id));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(found, [119]);
}

pub async fn a_page_ends_early_at_4_mib(b: Backend) {
    const LIMIT: usize = 4 * 1024 * 1024;
    let s = b.serve().await;
    let metadata = || meta(json!({ "text": text(250 * 1024) }));
    for n in 0..20 {
        let request =
            CreateExecutionRequest { metadata: metadata(), ..create(&format!("e{n:02}")) };
        s.create_execution(request).await;
    }
    let (mut found, mut pages) = (0, 0);
    let mut request = ListExecutionsRequest { page_size: 1000, ..Default::default() };
    loop {
        let page = s.list_executions(request.clone()).await;
        assert!(page.encoded_len() <= LIMIT, "a page of {} bytes", page.encoded_len());
        assert!(
            page.encoded_len() > LIMIT / 2 || page.next_page_token.is_empty(),
            "pages are well filled"
        );
        found += page.executions.len();
        pages += 1;
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!((found, pages), (20, 2));

    for step_id in 0..20 {
        let request = StartStepRequest { metadata: metadata(), ..start("e00", step_id) };
        s.start_step(request).await;
    }
    let mut found = Vec::new();
    let mut request =
        ListStepsRequest { execution_id: "e00".into(), page_size: 1000, ..Default::default() };
    loop {
        let page = s.list_steps(request.clone()).await;
        assert!(page.encoded_len() <= LIMIT);
        found.extend(page.steps.into_iter().filter_map(|step| step.step_id));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(found, (0..20).collect::<Vec<_>>());
    let full = GetExecutionRequest { execution_id: "e00".into(), view: ExecutionView::Full.into() };
    let full = s.get_execution(full).await;
    assert!(full.encoded_len() <= LIMIT);
    assert!(full.steps_truncated, "20 steps of 250 KiB do not fit beside the execution");
    let ids: Vec<_> = full.steps.iter().filter_map(|step| step.step_id).collect();
    assert_eq!(ids, (0..i32::try_from(ids.len()).expect("few")).collect::<Vec<_>>());
    assert!(ids.len() >= 10, "{ids:?}");
}

pub async fn forged_and_foreign_page_tokens_are_refused(b: Backend) {
    let s = b.serve().await;
    put_all(&s, (0..10).map(|n| record(&format!("e{n}"), Some(n))).collect()).await;
    let by_app = |app: &str| {
        let filter = ExecutionFilter { app_names: vec![app.into()], ..Default::default() };
        ListExecutionsRequest { filter: Some(filter), page_size: 2, ..Default::default() }
    };
    let token = s.list_executions(by_app("app")).await.next_page_token;
    assert!(!token.is_empty());
    let bad = async |request: ListExecutionsRequest| {
        let shown = format!("{request:?}");
        let status = s.try_list_executions(request).await.expect_err(&shown);
        let details = check_refusal(&status, Code::InvalidArgument, "INVALID_TOKEN");
        let fields = &details.bad_request().expect("checked").field_violations;
        assert_eq!(fields[0].field, "page_token");
    };
    for forged in ["x", "AAAA", "!!!", " ", &text(5000), &token[1..], &token[..token.len() - 1]] {
        bad(ListExecutionsRequest { page_token: forged.into(), ..by_app("app") }).await;
    }
    for place in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[place] = if bytes[place] == b'A' { b'Q' } else { b'A' };
        let forged = String::from_utf8(bytes).expect("ASCII");
        bad(ListExecutionsRequest { page_token: forged, ..by_app("app") }).await;
    }
    // Another filter, another order, no filter.
    bad(ListExecutionsRequest { page_token: token.clone(), ..by_app("other") }).await;
    let ascending = ExecutionOrder::StartedAtAsc.into();
    bad(ListExecutionsRequest { page_token: token.clone(), order: ascending, ..by_app("app") })
        .await;
    bad(ListExecutionsRequest { page_token: token.clone(), ..Default::default() }).await;

    s.create("e").await;
    s.create("f").await;
    for (id, step_id) in [("e", 1), ("e", 2), ("f", 1), ("f", 2)] {
        s.start(id, step_id).await;
    }
    let steps = |id: &str, token: &str| ListStepsRequest {
        execution_id: id.into(),
        page_size: 1,
        page_token: token.into(),
        ..Default::default()
    };
    let step_token = s.list_steps(steps("e", "")).await.next_page_token;
    assert_eq!(s.list_steps(steps("e", &step_token)).await.steps[0].step_id, Some(2));
    let by_status =
        ListStepsRequest { statuses: vec![StepStatus::Running.into()], ..steps("e", &step_token) };
    for foreign in [steps("f", &step_token), steps("e", &token), by_status] {
        let status = s.try_list_steps(foreign).await.expect_err("a token of another request");
        check_refusal(&status, Code::InvalidArgument, "INVALID_TOKEN");
    }
    bad(ListExecutionsRequest { page_token: step_token, ..by_app("app") }).await;
}

pub async fn page_tokens_are_good_on_every_server(b: Backend) {
    let (one, two) = b.pair().await;
    put_all(&one, (0..10).map(|n| record(&format!("e{n}"), Some(n))).collect()).await;
    let mut request = ListExecutionsRequest { page_size: 3, ..Default::default() };
    let mut ids = Vec::new();
    for client in [&one, &two, &one, &two] {
        let page = client.list_executions(request.clone()).await;
        ids.extend(page.executions.into_iter().map(|execution| execution.execution_id));
        request.page_token = page.next_page_token;
    }
    assert_eq!(request.page_token, "");
    assert_eq!(ids, (0..10).rev().map(|n| format!("e{n}")).collect::<Vec<_>>());
}
