//! How many executions match, and how many steps of each stand where.

use stepwell::proto::*;

use crate::support::backend::Backend;
use crate::support::client::*;

fn user(id: &str) -> Option<ExecutionFilter> {
    Some(ExecutionFilter { user_ids: vec![id.into()], ..Default::default() })
}

async fn count(s: &Client, filter: Option<ExecutionFilter>, limit: i32) -> (i64, bool) {
    let counted = s.count_executions(CountExecutionsRequest { filter, limit }).await;
    (counted.count, counted.exact)
}

pub async fn executions_are_counted_as_far_as_asked(b: Backend) {
    let s = b.serve().await;
    assert_eq!(count(&s, None, 0).await, (0, true));
    for number in 0..12 {
        let request = CreateExecutionRequest {
            execution_id: Some(format!("e{number:02}")),
            app_name: "app".into(),
            app_id: Some(number % 2),
            sub_app_id: Some(number % 3),
            user_id: Some(if number < 8 { "ann" } else { "bob" }.into()),
            ..Default::default()
        };
        s.create_execution(request).await;
    }
    for number in 0..4 {
        s.finish(&format!("e{number:02}"), ExecutionStatus::Failed).await;
    }
    let failed = vec![ExecutionStatus::Failed.into()];
    let filters = [
        (None, 12),
        (user("ann"), 8),
        (user("eve"), 0),
        (Some(ExecutionFilter { app_ids: vec![1], ..Default::default() }), 6),
        (Some(ExecutionFilter { app_ids: vec![0, 1, 2], ..Default::default() }), 12),
        (Some(ExecutionFilter { app_ids: vec![1], sub_app_ids: vec![1], ..Default::default() }), 2),
        (Some(ExecutionFilter { app_names: vec!["app".into()], ..Default::default() }), 12),
        (Some(ExecutionFilter { statuses: failed.clone(), ..Default::default() }), 4),
        (Some(ExecutionFilter { statuses: failed.clone(), ..user("ann").expect("a filter") }), 4),
        (Some(ExecutionFilter { statuses: failed, app_ids: vec![1], ..Default::default() }), 2),
        // No index decides these two.
        (Some(ExecutionFilter { sub_app_ids: vec![2], ..user("bob").expect("a filter") }), 2),
        (Some(ExecutionFilter { min_duration_ms: Some(0), ..Default::default() }), 4),
    ];
    for (filter, expected) in filters {
        assert_eq!(count(&s, filter.clone(), 0).await, (expected, true), "{filter:?}");
        assert_eq!(count(&s, filter.clone(), 12).await, (expected, true), "{filter:?}");
        let limited = (expected.min(3), expected <= 3);
        assert_eq!(count(&s, filter.clone(), 3).await, limited, "{filter:?}");
    }
    s.delete_execution(DeleteExecutionRequest { execution_id: "e00".into(), force: false }).await;
    assert_eq!(count(&s, None, 0).await, (11, true));
    for bad in [-1, 100_001] {
        let request = CountExecutionsRequest { filter: None, limit: bad };
        assert_eq!(bad_fields(s.try_count_executions(request).await)[0].0, "limit");
    }
}

pub async fn a_count_that_would_examine_too_much_says_so(b: Backend) {
    let s = b.serve_with(|config| config.limits.page_examined_records = 1000).await;
    let writes = (0..1500).map(|number| {
        ingest_request::Write::CreateExecution(CreateExecutionRequest {
            execution_id: Some(format!("e{number:04}")),
            app_name: "app".into(),
            sub_app_id: Some(number % 2),
            ..Default::default()
        })
    });
    s.ingest_all(writes.collect()).await;
    assert_eq!(count(&s, None, 0).await, (1500, true));
    let part = Some(ExecutionFilter { sub_app_ids: vec![1], ..Default::default() });
    let (number, exact) = count(&s, part, 0).await;
    assert!(!exact && (300..=750).contains(&number), "{number}");
}

pub async fn steps_of_a_page_are_counted_by_status(b: Backend) {
    let s = b.serve().await;
    for id in ["none", "some", "more"] {
        s.create(id).await;
    }
    for step_id in 0..6 {
        s.start("some", step_id).await;
    }
    for (step_id, status) in
        [(0, StepStatus::Completed), (1, StepStatus::Completed), (2, StepStatus::Failed)]
    {
        s.finish_step(finish_step("some", step_id, status)).await;
    }
    s.finish_step(finish_step("some", 3, StepStatus::Skipped)).await;
    let plan = PlanStepsRequest {
        execution_id: "more".into(),
        steps: (0..3)
            .map(|step_id| PlannedStep {
                step_id: Some(step_id),
                step_name: "later".into(),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    s.plan_steps(plan).await;
    let mut request = ListExecutionsRequest { page_size: 2, ..Default::default() };
    assert!(s.list_executions(request.clone()).await.step_counts.is_empty());
    request.include_step_counts = true;
    let mut seen = 0;
    loop {
        let page = s.list_executions(request.clone()).await;
        assert_eq!(page.step_counts.len(), page.executions.len());
        for (execution, counts) in page.executions.iter().zip(&page.step_counts) {
            let exact = StepCounts { exact: true, ..Default::default() };
            let expected = match execution.execution_id.as_str() {
                "some" => StepCounts { running: 2, completed: 2, failed: 1, skipped: 1, ..exact },
                "more" => StepCounts { pending: 3, ..exact },
                _ => exact,
            };
            assert_eq!(*counts, expected, "{}", execution.execution_id);
            seen += 1;
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, 3);
}

pub async fn steps_too_many_to_count_are_said_to_be_more(b: Backend) {
    let s = b.serve_with(|config| config.limits.page_examined_records = 1000).await;
    for (id, steps) in [("a", 400), ("b", 900), ("c", 10)] {
        s.create(id).await;
        let steps = (0..steps).map(|step_id| ingest_request::Write::StartStep(start(id, step_id)));
        s.ingest_all(steps.collect()).await;
    }
    let mut request = ListExecutionsRequest { include_step_counts: true, ..Default::default() };
    let counted = async |request: &ListExecutionsRequest| {
        let page = s.list_executions(request.clone()).await;
        let mut counted: Vec<_> = page
            .executions
            .iter()
            .zip(&page.step_counts)
            .map(|(execution, counts)| {
                (execution.execution_id.clone(), counts.running, counts.exact)
            })
            .collect();
        counted.sort();
        (counted, page.next_page_token)
    };
    let (all, _) = counted(&request).await;
    assert_eq!(all[0], ("a".to_owned(), 400, true));
    assert!(!all[1].2 && (600..900).contains(&all[1].1), "{all:?}");
    assert_eq!(all[2], ("c".to_owned(), 0, false));
    // A smaller page has room.
    request.page_size = 1;
    let mut exact = Vec::new();
    loop {
        let (one, token) = counted(&request).await;
        exact.extend(one);
        request.page_token = token;
        if request.page_token.is_empty() {
            break;
        }
    }
    exact.sort();
    let expected = [("a", 400), ("b", 900), ("c", 10)];
    assert_eq!(exact, expected.map(|(id, number)| (id.to_owned(), number, true)));
}
