//! What lists of executions cost in MongoDB: the database itself tells, through its profiler, what it read for the
//! questions that the store really asks.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::sync::Arc;

use bson::{Bson, DateTime, Document, doc};
use futures::TryStreamExt as _;
use mongodb::{Client, Database};
use stepwell::domain::ExecutionStatus;
use stepwell::domain::query::{CountQuery, ExecutionFilter, ExecutionOrder, ExecutionQuery};
use stepwell::store::Store;
use stepwell::store::mongo::MongoStore;

const RECORDS: i32 = 20_000;
const PAGE: usize = 50;
const EXAMINE: usize = 20_000;

async fn filled(name: &str) -> (Arc<MongoStore>, Database) {
    let uri = support::mongod::shared();
    let client = Client::with_uri_str(uri).await.unwrap();
    let database = client.database(&format!("stepwell_{name}_{}", std::process::id()));
    database.drop().await.unwrap();
    let store = support::mongod::open(uri, database.name()).await;
    let documents: Vec<Document> = (0..RECORDS).map(document).collect();
    for documents in documents.chunks(5_000) {
        database.collection::<Document>("executions").insert_many(documents).await.unwrap();
    }
    (store, database)
}

/// One in twenty failed; one in 500 without a start time, which other programs do.
fn document(number: i32) -> Document {
    let status = match number % 20 {
        0 => "failed",
        1 => "running",
        2 => "cancelled",
        _ => "completed",
    };
    let app = number * 7 % 11;
    doc! {
        "execution_id": format!("e{number:06}"),
        "app_id": if number % 3 == 0 { Bson::Null } else { Bson::Int32(app) },
        "app_name": format!("app {app}"),
        "sub_app_id": number % 5,
        "user_id": format!("user {}", number * 13 % 17),
        "status": status,
        "started_at": match number % 500 {
            0 => Bson::Null,
            // Some at the same moment.
            _ => Bson::DateTime(DateTime::from_millis(i64::from(number / 3) * 1000)),
        },
        "duration_ms": match status {
            "running" => Bson::Null,
            _ => Bson::Int64(i64::from(number * 31 % 1000)),
        },
        "metadata": { "tier": number % 4 },
    }
}

fn none() -> ExecutionFilter {
    ExecutionFilter::default()
}

/// The filters that have an index of their own, without a window.
fn named() -> Vec<(&'static str, ExecutionFilter)> {
    let failed = vec![ExecutionStatus::Failed];
    let several = vec![ExecutionStatus::Failed, ExecutionStatus::Running];
    let user = vec!["user 3".to_owned()];
    let users: Vec<String> = (0..10).map(|number| format!("user {number}")).collect();
    let name = vec!["app 5".to_owned()];
    vec![
        ("nothing", none()),
        ("user", ExecutionFilter { user_ids: user.clone(), ..none() }),
        ("users", ExecutionFilter { user_ids: users.clone(), ..none() }),
        ("app", ExecutionFilter { app_ids: vec![5], ..none() }),
        ("apps", ExecutionFilter { app_ids: (0..50).collect(), ..none() }),
        ("name", ExecutionFilter { app_names: name.clone(), ..none() }),
        ("app, part", ExecutionFilter { app_ids: vec![5], sub_app_ids: vec![2], ..none() }),
        ("name, part", ExecutionFilter { app_names: name.clone(), sub_app_ids: vec![2], ..none() }),
        ("status", ExecutionFilter { statuses: failed.clone(), ..none() }),
        ("running", ExecutionFilter { statuses: vec![ExecutionStatus::Running], ..none() }),
        ("statuses", ExecutionFilter { statuses: several.clone(), ..none() }),
        ("user, status", ExecutionFilter { user_ids: user, statuses: failed.clone(), ..none() }),
        (
            "users, statuses",
            ExecutionFilter { user_ids: users, statuses: several.clone(), ..none() },
        ),
        ("app, status", ExecutionFilter { app_ids: vec![5], statuses: failed.clone(), ..none() }),
        (
            "apps, statuses",
            ExecutionFilter {
                app_ids: (0..50).collect(),
                statuses: ExecutionStatus::ALL.to_vec(),
                ..none()
            },
        ),
        ("name, status", ExecutionFilter { app_names: name, statuses: failed, ..none() }),
        ("app, long", ExecutionFilter { app_ids: vec![5], min_duration_ms: Some(900), ..none() }),
        (
            "name, long",
            ExecutionFilter {
                app_names: vec!["app 5".to_owned()],
                min_duration_ms: Some(900),
                ..none()
            },
        ),
        (
            "name, part, long",
            ExecutionFilter {
                app_names: vec!["app 5".to_owned()],
                sub_app_ids: vec![2],
                min_duration_ms: Some(900),
                ..none()
            },
        ),
    ]
}

/// Those of which an index decides a part.
fn others() -> Vec<(&'static str, ExecutionFilter)> {
    let tier = vec![(vec!["tier".to_owned()], Bson::Int32(1))];
    let user = vec!["user 3".to_owned()];
    vec![
        ("metadata", ExecutionFilter { metadata: tier.clone(), ..none() }),
        ("user, metadata", ExecutionFilter { user_ids: user.clone(), metadata: tier, ..none() }),
        ("long", ExecutionFilter { min_duration_ms: Some(990), ..none() }),
        ("part", ExecutionFilter { sub_app_ids: vec![3], ..none() }),
        (
            "user, app, status",
            ExecutionFilter {
                user_ids: user,
                app_ids: vec![5],
                statuses: vec![ExecutionStatus::Failed],
                ..none()
            },
        ),
    ]
}

/// What the database read for executions since it was asked last.
async fn read_since(database: &Database) -> (i64, i64, Vec<Document>) {
    database.run_command(doc! { "profile": 0 }).await.unwrap();
    let ns = format!("{}.executions", database.name());
    let profile = database.collection::<Document>("system.profile");
    let entries: Vec<Document> =
        profile.find(doc! { "ns": ns }).await.unwrap().try_collect().await.unwrap();
    profile.drop().await.unwrap();
    let sum = |field: &str| -> i64 {
        let number = |entry: &Document| match entry.get(field) {
            Some(Bson::Int32(number)) => i64::from(*number),
            Some(Bson::Int64(number)) => *number,
            _ => 0,
        };
        entries.iter().map(number).sum()
    };
    (sum("docsExamined"), sum("keysExamined"), entries)
}

/// All ids of a list, and of each page what the database read for it.
async fn listed(
    store: &MongoStore,
    database: &Database,
    what: &str,
    filter: &ExecutionFilter,
    order: ExecutionOrder,
    cost: impl Fn(usize, i64, i64),
) -> Vec<String> {
    let mut query = ExecutionQuery {
        filter: filter.clone(),
        order,
        after: None,
        limit: PAGE,
        examine: EXAMINE,
    };
    let mut ids = Vec::new();
    for page in 0.. {
        // The first pages and one deep inside tell; all others are as the latter.
        let profiled = page < 3 || page == 7;
        if profiled {
            database.run_command(doc! { "profile": 2 }).await.unwrap();
        }
        let found = store.executions(&query).await.unwrap();
        if profiled {
            let (documents, keys, entries) = read_since(database).await;
            assert!(!entries.is_empty(), "{what}: the profiler saw nothing");
            for entry in &entries {
                assert!(!entry.contains_key("hasSortStage"), "{what} sorts: {entry}");
                let plan = entry.get_str("planSummary").unwrap_or_default();
                assert!(!plan.contains("COLLSCAN"), "{what} scans: {entry}");
            }
            cost(found.records.len(), documents, keys);
        }
        ids.extend(found.records.into_iter().map(|execution| execution.execution_id));
        query.after = found.next;
        if query.after.is_none() {
            break;
        }
    }
    ids
}

fn with_window(filter: &ExecutionFilter) -> ExecutionFilter {
    ExecutionFilter {
        started_at_from: Some(500_000),
        started_at_until: Some(6_000_000),
        ..filter.clone()
    }
}

/// The ids that must come out, found without any index.
fn expected(filter: &ExecutionFilter, order: ExecutionOrder) -> Vec<String> {
    let kept = |number: &i32| {
        let record = document(*number);
        let text = |field: &str| record.get_str(field).unwrap_or_default().to_owned();
        let at = record.get_datetime("started_at").ok().map(|at| at.timestamp_millis());
        (filter.app_ids.is_empty()
            || record.get_i32("app_id").is_ok_and(|id| filter.app_ids.contains(&id)))
            && (filter.app_names.is_empty() || filter.app_names.contains(&text("app_name")))
            && (filter.sub_app_ids.is_empty()
                || filter.sub_app_ids.contains(&record.get_i32("sub_app_id").unwrap()))
            && (filter.user_ids.is_empty() || filter.user_ids.contains(&text("user_id")))
            && (filter.statuses.is_empty()
                || filter.statuses.iter().any(|status| status.as_str() == text("status")))
            && filter
                .min_duration_ms
                .is_none_or(|min| record.get_i64("duration_ms").is_ok_and(|ms| ms >= min))
            && (filter.metadata.is_empty()
                || record
                    .get_document("metadata")
                    .unwrap()
                    .get_i32("tier")
                    .is_ok_and(|tier| tier == 1))
            && filter.started_at_from.is_none_or(|from| at.is_some_and(|at| at >= from))
            && filter.started_at_until.is_none_or(|until| at.is_some_and(|at| at < until))
    };
    let mut numbers: Vec<i32> = (0..RECORDS).filter(kept).collect();
    let key = |number: &i32| {
        let record = document(*number);
        (record.get_datetime("started_at").ok().copied(), *number)
    };
    numbers.sort_by_key(key);
    if order == ExecutionOrder::StartedAtDesc {
        numbers.reverse();
    }
    numbers.into_iter().map(|number| format!("e{number:06}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn usual_lists_read_what_they_answer() {
    let (store, database) = filled("usual_lists").await;
    for (what, filter) in named() {
        for (what, filter) in
            [(what.to_owned(), filter.clone()), (format!("{what}, window"), with_window(&filter))]
        {
            for order in [ExecutionOrder::StartedAtDesc, ExecutionOrder::StartedAtAsc] {
                let what = format!("{what}, {order:?}");
                let ids =
                    listed(&store, &database, &what, &filter, order, |found, documents, _| {
                        let most = 2 * found.max(1) as i64;
                        assert!(documents <= most, "{what}: {documents} documents for {found}");
                    })
                    .await;
                assert_eq!(ids, expected(&filter, order), "{what}");
            }
        }
    }
    store.close().await;
    database.drop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_other_list_reads_no_more_than_it_may() {
    let (store, database) = filled("other_lists").await;
    for (what, filter) in others() {
        for order in [ExecutionOrder::StartedAtDesc, ExecutionOrder::StartedAtAsc] {
            let ids = listed(&store, &database, what, &filter, order, |_, documents, _| {
                assert!(documents <= EXAMINE as i64 + 1, "{what}: {documents} documents");
            })
            .await;
            assert_eq!(ids, expected(&filter, order), "{what}, {order:?}");
        }
    }
    // A page that may examine less than there is ends early, and goes on.
    let rare = ExecutionFilter { min_duration_ms: Some(999), ..none() };
    let mut query = ExecutionQuery {
        filter: rare,
        order: ExecutionOrder::StartedAtDesc,
        after: None,
        limit: PAGE,
        examine: 1_000,
    };
    let mut pages = 0;
    let mut ids = Vec::new();
    loop {
        let page = store.executions(&query).await.unwrap();
        ids.extend(page.records.into_iter().map(|execution| execution.execution_id));
        pages += 1;
        query.after = page.next;
        if query.after.is_none() {
            break;
        }
    }
    assert_eq!(ids, expected(&query.filter, query.order));
    assert_eq!(pages, 20);
    store.close().await;
    database.drop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_read_the_index_alone_where_it_decides() {
    let (store, database) = filled("counts").await;
    for (what, filter) in named() {
        for filter in [filter.clone(), with_window(&filter)] {
            let number = expected(&filter, ExecutionOrder::StartedAtDesc).len() as u64;
            database.run_command(doc! { "profile": 2 }).await.unwrap();
            let query = CountQuery { filter: filter.clone(), limit: 100_000, examine: EXAMINE };
            let counted = store.count_executions(&query).await.unwrap();
            let (documents, _, _) = read_since(&database).await;
            assert_eq!((counted.number, counted.exact), (number, true), "{what}");
            // What has no start time is told from what has none in its keys by its document alone.
            let without_time =
                i64::from(filter.min_duration_ms.is_some()) * i64::from(RECORDS / 500);
            assert!(documents <= without_time, "{what}: {documents} documents");
            let query = CountQuery { limit: 7, ..query };
            let counted = store.count_executions(&query).await.unwrap();
            assert_eq!((counted.number, counted.exact), (number.min(7), number <= 7), "{what}");
        }
    }
    store.close().await;
    database.drop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_go_beyond_what_is_not_shown() {
    let (store, database) = filled("beyond").await;
    let executions = database.collection::<Document>("executions");
    // The newest cannot be read, those before them are being deleted.
    let newest = i64::from(RECORDS) * 1000;
    let strange = (0..120).map(|number| {
        doc! { "execution_id": number, "started_at": DateTime::from_millis(newest + i64::from(number)) }
    });
    executions.insert_many(strange).await.unwrap();
    let deleted: Vec<String> =
        (RECORDS - 130..RECORDS - 1).map(|number| format!("e{number:06}")).collect();
    executions
        .update_many(
            doc! { "execution_id": { "$in": &deleted } },
            doc! { "$set": { "deleted_at": DateTime::from_millis(newest) } },
        )
        .await
        .unwrap();
    let mut all = expected(&none(), ExecutionOrder::StartedAtDesc);
    all.retain(|id| !deleted.contains(id));
    for limit in [1, 2, 7, 50, 250] {
        let mut query = ExecutionQuery {
            filter: none(),
            order: ExecutionOrder::StartedAtDesc,
            after: None,
            limit,
            examine: EXAMINE,
        };
        let mut ids: Vec<String> = Vec::new();
        for _ in 0..4 {
            let page = store.executions(&query).await.unwrap();
            assert_eq!(page.records.len(), limit, "pages are full");
            ids.extend(page.records.into_iter().map(|execution| execution.execution_id));
            query.after = Some(page.next.expect("there is more"));
        }
        assert_eq!(ids, all[..4 * limit]);
    }
    store.close().await;
    database.drop().await.unwrap();
}
