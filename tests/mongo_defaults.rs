//! Nothing that the MongoDB backend does depends on what a collection or a connection string says by default: not on
//! a collation, nor on a read preference, nor on a read or write concern.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::sync::Arc;
use std::time::Duration;

use bson::{DateTime, Document, doc};
use mongodb::{Client, Database};
use stepwell::clock::{Clock, SystemClock};
use stepwell::domain::configuration::Scope;
use stepwell::domain::execution::CreateExecution;
use stepwell::domain::limits::Limits;
use stepwell::domain::query::{
    CountQuery, ExecutionFilter, ExecutionOrder, ExecutionQuery, StepQuery,
};
use stepwell::domain::retention::{Ages, Kind, Policy};
use stepwell::domain::step::{StepFields, StepStatus};
use stepwell::domain::{
    Artifact, Configuration, ExecutionOp, ExecutionStatus, MetricPoint, Origin, Refusal, StepOp,
    StepRef,
};
use stepwell::store::artifacts::Created;
use stepwell::store::leads::Claim;
use stepwell::store::metrics::{Recording, Span};
use stepwell::store::mongo::{MongoOptions, MongoStore};
use stepwell::store::rollups::RollupBatch;
use stepwell::store::{Answer, Changed, Error, Op, RecordKey, Store, Write};

struct Bench {
    store: Arc<MongoStore>,
    database: Database,
}

/// A store on a database of the test's own, over a connection string with `options`, after `before` was done there.
async fn bench(name: &str, options: &str, before: impl AsyncFnOnce(&Database)) -> Bench {
    let uri = support::mongod::shared();
    let client = Client::with_uri_str(uri).await.unwrap();
    let database = client.database(&format!("stepwell_{name}_{}", std::process::id()));
    database.drop().await.unwrap();
    before(&database).await;
    let uri = &support::mongod::as_server(uri, database.name());
    let uri = match uri.contains('?') {
        _ if options.is_empty() => uri.to_owned(),
        true => format!("{uri}&{options}"),
        false => format!("{}/?{options}", uri.trim_end_matches('/')),
    };
    let store = connect(&uri, database.name()).unwrap();
    store.ping().await.unwrap();
    Bench { store, database }
}

fn connect(uri: &str, database: &str) -> Result<Arc<MongoStore>, Error> {
    let options = MongoOptions {
        uri: uri.to_owned(),
        database: database.to_owned(),
        ..MongoOptions::default()
    };
    MongoStore::connect(options, Limits::default(), Arc::new(SystemClock))
}

async fn nothing(_: &Database) {}

/// The collections of the data model as a program makes them that wants to find names in whatever case.
async fn case_insensitive(database: &Database) {
    for name in [
        "executions",
        "execution_steps",
        "execution_artifacts",
        "app_configurations",
        "execution_metrics",
    ] {
        let collation = doc! { "locale": "en", "strength": 2 };
        database.run_command(doc! { "create": name, "collation": collation }).await.unwrap();
    }
}

impl Bench {
    async fn one(&self, execution_id: &str, op: Op) -> Result<Answer, Error> {
        let write = Write {
            execution_id: execution_id.to_owned(),
            op,
            now: SystemClock.now(),
            scope: Default::default(),
            asked: None,
        };
        self.store.apply(vec![write]).await.outcomes.pop().unwrap()
    }

    async fn create(&self, execution_id: &str) -> Result<Answer, Error> {
        let request = CreateExecution {
            app_name: "app".to_owned(),
            user_id: Some(execution_id.to_owned()),
            ..CreateExecution::default()
        };
        self.one(execution_id, Op::Execution(ExecutionOp::Create(Box::new(request)))).await
    }

    async fn start(&self, execution_id: &str, key: Option<&str>) -> Result<Answer, Error> {
        let op = StepOp::Start {
            step_name: "s".to_owned(),
            fields: StepFields::default(),
            attempt: None,
        };
        let named = StepRef { step_id: None, step_key: key.map(str::to_owned) };
        self.one(execution_id, Op::Step { named, op: Box::new(op) }).await
    }

    async fn finish_step(&self, execution_id: &str, step_id: i32) -> Result<Answer, Error> {
        let op = StepOp::Finish {
            status: StepStatus::Completed,
            output: None,
            error: None,
            completed_at: None,
            step_name: None,
            fields: StepFields::default(),
        };
        let named = StepRef { step_id: Some(step_id), step_key: None };
        self.one(execution_id, Op::Step { named, op: Box::new(op) }).await
    }

    async fn finish(&self, execution_id: &str) -> Result<Answer, Error> {
        let op = ExecutionOp::Finish {
            status: ExecutionStatus::Completed,
            error: None,
            completed_at: None,
            metadata: doc! {},
        };
        self.one(execution_id, Op::Execution(op)).await
    }

    async fn delete(&self, execution_id: &str) -> Result<Answer, Error> {
        self.one(execution_id, Op::Execution(ExecutionOp::Delete { force: true })).await
    }

    async fn end(self) {
        self.store.close().await;
        self.database.drop().await.unwrap();
    }
}

fn is_unknown(outcome: &Result<Answer, Error>) -> bool {
    matches!(outcome, Err(Error::Refused(Refusal::ExecutionNotFound { .. })))
}

fn configuration(app: &str, version: &str, active: bool) -> Configuration {
    Configuration {
        app_id: None,
        app_name: app.to_owned(),
        sub_app_id: None,
        sub_app_name: None,
        version: version.to_owned(),
        configuration: doc! { "name": app },
        active,
        created_at: Some(SystemClock.now().millis()),
        created_by: None,
    }
}

fn scope(app: &str) -> Scope {
    Scope::Names { app_name: app.to_owned(), sub_app_name: None }
}

fn artifact(execution_id: &str) -> Artifact {
    Artifact {
        artifact_id: bson::oid::ObjectId::new().to_hex(),
        execution_id: execution_id.to_owned(),
        step_id: None,
        step_key: None,
        artifact_type: "log".to_owned(),
        artifact_name: "out".to_owned(),
        mime_type: None,
        size_bytes: Some(1),
        storage_type: None,
        storage_path: None,
        metadata: doc! {},
        created_at: Some(1),
        sha256: None,
        origin: Origin::Uploaded,
    }
}

fn recording(execution_id: &str, value: f64) -> Recording {
    let now = SystemClock.now().millis();
    let point = MetricPoint {
        at: now,
        metrics: [("m".to_owned(), value)].into(),
        ..MetricPoint::default()
    };
    Recording {
        execution_id: execution_id.to_owned(),
        points: vec![point],
        request: None,
        put: false,
        now,
        asked: None,
    }
}

fn span(execution_id: &str) -> Span {
    Span { execution_id: execution_id.to_owned(), from: None, until: None }
}

/// A policy that keeps nothing that has ended.
fn keeps_nothing() -> Arc<Policy> {
    let ages = Ages { executions: Some(1), steps: Some(1), artifacts: Some(1) };
    Arc::new(Policy { ages, rules: Vec::new() })
}

fn by_user(user: &str) -> ExecutionFilter {
    ExecutionFilter { user_ids: vec![user.to_owned()], ..ExecutionFilter::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_differ_in_case_in_collections_that_ignore_it() {
    let bench = bench("collation", "", case_insensitive).await;
    let store = &bench.store;
    bench.create("Run-1").await.unwrap();
    assert!(is_unknown(&bench.delete("RUN-1").await));
    assert!(is_unknown(&bench.start("RUN-1", None).await));
    assert!(store.execution("RUN-1").await.unwrap().is_none());
    assert!(store.execution("Run-1").await.unwrap().is_some());

    bench.create("RUN-1").await.unwrap();
    for id in ["Run-1", "RUN-1"] {
        bench.start(id, Some("Key")).await.unwrap();
        bench.start(id, Some("KEY")).await.unwrap();
        bench.finish_step(id, 1).await.unwrap();
        let query = StepQuery {
            execution_id: id.to_owned(),
            statuses: Vec::new(),
            after: None,
            limit: 10,
            examine: 10,
            payloads: None,
        };
        assert_eq!(store.steps(&query).await.unwrap().records.len(), 2);
        let named = StepRef { step_id: None, step_key: Some("KEY".to_owned()) };
        assert_eq!(store.step(id, &named, true).await.unwrap().unwrap().step_id, 2);
        let list = ExecutionQuery {
            filter: by_user(id),
            order: ExecutionOrder::StartedAtDesc,
            after: None,
            limit: 10,
            examine: 100,
        };
        let listed = store.executions(&list).await.unwrap().records;
        assert_eq!(listed.iter().map(|found| &found.execution_id).collect::<Vec<_>>(), [id]);
        let count = CountQuery { filter: by_user(id), limit: 10, examine: 100 };
        assert_eq!(store.count_executions(&count).await.unwrap().number, 1);
    }

    let artifacts = store.artifact_store();
    for id in ["Run-1", "RUN-1"] {
        let created = artifacts.create_artifact(&artifact(id), &format!("digest of {id}")).await;
        assert!(matches!(created, Ok(Created::New(_))), "{created:?}");
        assert_eq!(artifacts.artifact_usage(id).await.unwrap().artifacts, 1);
    }
    let metrics = store.metric_store();
    for id in ["Run-1", "RUN-1"] {
        for recorded in metrics.record(vec![recording(id, 1.0)]).await {
            recorded.unwrap();
        }
        assert_eq!(metrics.points(&span(id), None, 10).await.unwrap().records.len(), 1);
    }
    let configurations = store.configuration_store();
    for app in ["App", "APP"] {
        let stored = configurations.put_configuration(configuration(app, "v1", true)).await;
        assert!(stored.unwrap().created);
    }
    let active = configurations.configuration(&scope("App"), None).await.unwrap().unwrap();
    assert_eq!(active.app_name, "App", "the active one of another app was made inactive");

    bench.delete("RUN-1").await.unwrap();
    store.remove("RUN-1").await.unwrap();
    assert!(store.execution("RUN-1").await.unwrap().is_none());
    assert!(store.execution("Run-1").await.unwrap().is_some());
    let named = StepRef { step_id: Some(1), step_key: None };
    assert!(store.step("Run-1", &named, true).await.unwrap().is_some());
    assert_eq!(metrics.points(&span("Run-1"), None, 10).await.unwrap().records.len(), 1);
    assert_eq!(artifacts.artifact_usage("Run-1").await.unwrap().artifacts, 1);
    bench.end().await;
}

/// Everything that reads or writes in a way of its own, over a connection string that says something else.
async fn works_over(name: &str, options: &str) {
    let bench = bench(name, options, nothing).await;
    let store = &bench.store;
    let log = store.log().unwrap();
    let mut reader = log.open(None).await.unwrap();
    bench.create("e").await.unwrap();
    bench.start("e", None).await.unwrap();
    bench.finish_step("e", 1).await.unwrap();
    bench.finish("e").await.unwrap();
    assert!(store.execution("e").await.unwrap().is_some());
    let mut seen = Vec::new();
    while seen.len() < 4 {
        log.nudge().await.unwrap();
        seen.extend(reader.next().await.unwrap());
    }
    let what = [Changed::Record(RecordKey::execution("e"))];
    assert_eq!(log.load(&what, false).await.unwrap().len(), 1);

    let configurations = store.configuration_store();
    for version in ["v1", "v2"] {
        configurations.put_configuration(configuration("app", version, true)).await.unwrap();
        let active = configurations.configuration(&scope("app"), None).await.unwrap().unwrap();
        assert_eq!(active.version, version);
    }

    let rollups = store.rollup_store();
    assert!(
        store
            .leads()
            .lead("follow_rollups", "me", Duration::from_secs(10), Claim::IfFree)
            .await
            .unwrap()
    );
    let batch = RollupBatch { exact_since: Some(7), ..RollupBatch::default() };
    assert!(rollups.commit("me", batch).await.unwrap());
    store.artifact_store().create_artifact(&artifact("e"), "d").await.unwrap();
    for recorded in store.metric_store().record(vec![recording("e", 1.0)]).await {
        recorded.unwrap();
    }

    let retention = store.retention_store();
    let later = SystemClock.now().millis() + 3_600_000;
    for kind in [Kind::Steps, Kind::Artifacts] {
        let found = retention.by_age(kind, None, 10).await.unwrap().records;
        let removed = retention.expire_parts(kind, found, keeps_nothing(), later).await.unwrap();
        assert_eq!(removed.steps + removed.artifacts, 1, "{kind:?}");
    }
    let found = retention.by_age(Kind::Executions, None, 10).await.unwrap().records;
    let marked = retention.expire_executions(found, keeps_nothing(), later).await.unwrap();
    assert_eq!(marked, ["e"]);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_preference_changes_nothing() {
    works_over("preference", "readPreference=secondaryPreferred").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_and_staleness_change_nothing() {
    let options = "readPreference=secondary&readPreferenceTags=dc:nowhere&maxStalenessSeconds=120";
    works_over("tags", options).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_concern_changes_nothing() {
    for level in ["local", "available", "majority"] {
        works_over(level, &format!("readConcernLevel={level}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_read_back_whatever_the_write_concern() {
    for (name, options) in
        [("one", "w=1"), ("volatile", "journal=false"), ("custom", "w=1&journal=false")]
    {
        let bench = bench(name, options, nothing).await;
        let store = &bench.store;
        let configurations = store.configuration_store();
        for number in 0..50 {
            let id = format!("e{number}");
            bench.create(&id).await.unwrap();
            assert!(store.execution(&id).await.unwrap().is_some(), "{options}: {id}");
            bench.start(&id, None).await.unwrap();
            let named = StepRef { step_id: Some(1), step_key: None };
            assert!(store.step(&id, &named, true).await.unwrap().is_some(), "{options}: {id}");
            let stored = artifact(&id);
            store.artifact_store().create_artifact(&stored, &id).await.unwrap();
            let found = store.artifact_store().artifact(&stored.artifact_id).await.unwrap();
            assert!(found.is_some(), "{options}: {id}");
            for recorded in store.metric_store().record(vec![recording(&id, 1.0)]).await {
                recorded.unwrap();
            }
            assert!(store.metric_store().has_points(&id).await.unwrap(), "{options}: {id}");
            let version = format!("v{number}");
            configurations.put_configuration(configuration("app", &version, true)).await.unwrap();
            let active = configurations.configuration(&scope("app"), None).await.unwrap();
            assert_eq!(active.unwrap().version, version, "{options}");
            let draft = format!("d{number}");
            configurations.put_configuration(configuration("app", &draft, false)).await.unwrap();
            let found = configurations.configuration(&scope("app"), Some(&draft)).await.unwrap();
            assert!(found.is_some(), "{options}: {draft}");
        }
        bench.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_at_the_start() {
    for (options, named) in [
        ("w=0", "w=0"),
        ("maxPoolSize=0", "maxPoolSize"),
        ("socketTimeoutMS=1000", "socketTimeoutMS"),
        ("directConnection=maybe", "malformed"),
        ("whatever=1", "malformed"),
    ] {
        let uri = format!("mongodb://u:secret@127.0.0.1:1/?{options}");
        let Err(Error::Failed(why)) = connect(&uri, "nowhere") else {
            panic!("{options} was taken")
        };
        assert!(why.to_string().contains(named), "{options}: {why}");
        assert!(!why.to_string().contains("secret"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_are_made_without_the_collation_of_their_collection() {
    let bench = bench("indexes", "", case_insensitive).await;
    let executions = bench.database.collection::<Document>("executions");
    let document = |id: &str| doc! { "execution_id": id, "started_at": DateTime::from_millis(1) };
    executions.insert_one(document("a")).await.unwrap();
    executions.insert_one(document("A")).await.unwrap();
    assert!(executions.insert_one(document("A")).await.is_err(), "ids are no longer unique");
    bench.end().await;
}
