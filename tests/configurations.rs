//! Configurations beyond what the conformance suite shows: the documents and other programs that write them, a
//! mongod without transactions, and servers killed in the midst of a switch.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use mongodb::bson::{Bson, DateTime, Document, doc, oid::ObjectId};
use stepwell::proto::*;
use tempfile::TempDir;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use support::backend::{Backend, Kind};
use support::client::*;
use support::mongod::Mongod;
use support::process::{Guarded, free_port};
use support::values::*;
use support::*;

/// A case on a database of its own.
fn conduct<F: Future<Output = ()>>(case: impl FnOnce(Backend) -> F) {
    run(async {
        let backend = Backend::fresh(Kind::Mongodb);
        case(backend.clone()).await;
        backend.remove().await;
    });
}

async fn documents(b: &Backend) -> mongodb::Collection<Document> {
    b.mongodb().await.collection("app_configurations")
}

fn numbered(version: &str) -> Configuration {
    Configuration {
        app_id: Some(1),
        app_name: "app".into(),
        sub_app_id: Some(2),
        version: version.into(),
        configuration: meta(json!({ "of": version })),
        ..Default::default()
    }
}

fn nameless(version: &str) -> Configuration {
    Configuration { app_id: None, sub_app_id: None, ..numbered(version) }
}

fn publish(configuration: Configuration, activate: bool) -> PublishConfigurationRequest {
    PublishConfigurationRequest { configuration: Some(configuration), activate }
}

fn get(version: Option<&str>) -> GetConfigurationRequest {
    GetConfigurationRequest {
        app_id: Some(1),
        sub_app_id: Some(2),
        version: version.map(Into::into),
        ..Default::default()
    }
}

fn activate(version: &str) -> ActivateConfigurationRequest {
    ActivateConfigurationRequest {
        app_id: Some(1),
        sub_app_id: Some(2),
        version: version.into(),
        ..Default::default()
    }
}

#[test]
fn a_configuration_is_stored_as_the_contract_says() {
    conduct(async |b| {
        let s = b.serve().await;
        let all = documents(&b).await;
        s.publish_configuration(publish(nameless("1"), false)).await;
        let bare = all.find_one(doc! { "version": "1" }).await.unwrap().expect("it is there");
        for nullable in ["app_id", "sub_app_id", "sub_app_name", "created_by"] {
            assert_eq!(bare.get(nullable), Some(&Bson::Null), "{nullable}");
        }
        assert!(matches!(bare["_id"], Bson::ObjectId(_)));
        assert_eq!((&bare["app_name"], &bare["active"]), (&"app".into(), &false.into()));
        assert!(matches!(bare["created_at"], Bson::DateTime(_)));

        let full = Configuration {
            sub_app_name: Some("part".into()),
            created_by: Some("me".into()),
            configuration: meta(
                json!({ "steps": [{ "id": 1, "$x": 1.5 }], "n": 5_000_000_000_i64 }),
            ),
            ..numbered("2")
        };
        s.publish_configuration(publish(full, true)).await;
        let full = all.find_one(doc! { "version": "2" }).await.unwrap().expect("it is there");
        let id = full.get_object_id("_id").expect("an ObjectId");
        let created_at = *full.get_datetime("created_at").expect("a date");
        let configuration = doc! { "n": 5_000_000_000_i64, "steps": [{ "$x": 1.5, "id": 1 }] };
        let mut expected = doc! {
            "_id": id, "app_id": 1, "app_name": "app", "sub_app_id": 2, "sub_app_name": "part",
            "version": "2", "configuration": configuration, "active": true, "created_at": created_at,
            "created_by": "me",
        };
        assert_eq!(full, expected);
        // A switch changes the flags and nothing else.
        s.publish_configuration(publish(numbered("3"), true)).await;
        let after = all.find_one(doc! { "version": "2" }).await.unwrap().expect("it is there");
        expected.insert("active", false);
        assert_eq!(after, expected);

        s.create_execution(CreateExecutionRequest {
            configuration_version: Some("3".into()),
            ..create("e")
        })
        .await;
        s.create("none").await;
        let run = async |id: &str| {
            let found = b.executions().await.find_one(doc! { "execution_id": id }).await;
            found.unwrap().expect("it is there")
        };
        assert_eq!(run("e").await["configuration_version"], Bson::from("3"));
        assert!(!run("none").await.contains_key("configuration_version"));
    });
}

#[test]
fn versions_are_unique_whoever_writes_and_lookups_take_their_index() {
    conduct(async |b| {
        let s = b.serve().await;
        let all = documents(&b).await;
        for request in [publish(numbered("1"), true), publish(nameless("1"), true)] {
            s.publish_configuration(request).await;
        }
        let part = Configuration { sub_app_id: None, ..numbered("1") };
        s.publish_configuration(publish(part, true)).await;
        for twice in [
            doc! { "app_id": 1, "sub_app_id": 2, "version": "1" },
            doc! { "app_id": 1.0, "sub_app_id": 2_i64, "version": "1" },
            doc! { "app_id": 1, "version": "1" },
            doc! { "app_name": "app", "version": "1" },
            doc! { "app_id": null, "app_name": "app", "sub_app_name": null, "version": "1" },
        ] {
            let error = all.insert_one(twice.clone()).await.expect_err("refused");
            assert!(error.to_string().contains("E11000"), "{twice}: {error}");
        }
        let explained = async |filter: Document| {
            let explain = doc! {
                "explain": { "find": "app_configurations", "filter": filter },
                "verbosity": "queryPlanner",
            };
            let plan = b.mongodb().await.run_command(explain).await.unwrap();
            plan.get_document("queryPlanner").unwrap().get("winningPlan").unwrap().to_string()
        };
        for (filter, index) in [
            (
                doc! { "app_id": 1, "sub_app_id": 2, "version": "1" },
                "app_id_1_sub_app_id_1_version_1",
            ),
            (
                doc! { "app_id": null, "app_name": "app", "sub_app_name": null, "version": "1" },
                "app_name_1_sub_app_name_1_version_1",
            ),
            (doc! { "active": true }, "active_1"),
        ] {
            let plan = explained(filter).await;
            assert!(plan.contains(index), "{plan}");
        }
    });
}

/// All that is listed, one by one.
async fn versions(s: &Client, mut request: ListConfigurationsRequest) -> Vec<String> {
    request.page_size = 1;
    let mut versions = Vec::new();
    loop {
        let page = s.list_configurations(request.clone()).await;
        versions.extend(page.configurations.into_iter().map(|record| record.version));
        if page.next_page_token.is_empty() {
            return versions;
        }
        request.page_token = page.next_page_token;
    }
}

#[test]
fn lists_are_the_same_when_somebody_has_dropped_their_index() {
    conduct(async |b| {
        let s = b.serve().await;
        let all = documents(&b).await;
        let at = |app_id: i32, app_name: &str, version: &str, created_at: Bson| {
            doc! { "app_id": app_id, "app_name": app_name, "version": version, "created_at": created_at }
        };
        all.insert_many([
            at(1, "app", "same time, first", DateTime::from_millis(5).into()),
            at(1, "app", "same time, second", DateTime::from_millis(5).into()),
            at(1, "app", "words", "soon".into()),
            at(2, "other", "other", DateTime::from_millis(7).into()),
            at(1, "app", "null", Bson::Null),
            at(1, "app", "number", 3.into()),
            doc! { "app_id": 1, "app_name": "another", "version": "without" },
        ])
        .await
        .unwrap();
        let lists = [
            ListConfigurationsRequest::default(),
            ListConfigurationsRequest { app_id: Some(1), ..Default::default() },
            ListConfigurationsRequest { app_name: Some("app".into()), ..Default::default() },
        ];
        let mut before = Vec::new();
        for list in &lists {
            before.push(versions(&s, list.clone()).await);
        }
        assert_eq!(before.iter().map(Vec::len).collect::<Vec<_>>(), [7, 6, 6]);
        all.drop_indexes().await.unwrap();
        for (list, before) in lists.into_iter().zip(before) {
            assert_eq!(versions(&s, list).await, before);
        }
    });
}

#[test]
fn documents_of_other_programs_are_read_as_far_as_they_go() {
    conduct(async |b| {
        let s = b.serve().await;
        let all = documents(&b).await;
        let odd = [
            doc! { "app_id": 1, "sub_app_id": 2, "version": 7, "active": "yes", "created_at": "soon" },
            doc! { "app_id": 1, "sub_app_id": 2, "version": "text", "configuration": "none" },
            doc! { "app_id": 1, "sub_app_id": 2, "app_name": 3, "created_at": DateTime::from_millis(9),
            "configuration": { "at": DateTime::from_millis(0), "id": ObjectId::from_bytes([1; 12]) },
            "version": "newest", "active": true },
        ];
        all.insert_many(odd).await.unwrap();
        // What has a time comes first, then other kinds of values, then none.
        let by_number = ListConfigurationsRequest { app_id: Some(1), ..Default::default() };
        assert_eq!(versions(&s, by_number).await, ["newest", "7", "text"]);
        let active = s.get_configuration(get(None)).await;
        assert_eq!((active.version.as_str(), active.app_name.as_str()), ("newest", ""));
        assert_eq!(
            plain_meta(&active.configuration),
            json!({ "at": "1970-01-01T00:00:00Z", "id": "01".repeat(12) })
        );
        let switched = s.activate_configuration(activate("text")).await;
        assert_eq!((switched.active, plain_meta(&switched.configuration)), (true, json!({})));
        assert_eq!(all.count_documents(doc! { "active": true }).await.unwrap(), 1);
        let text = all.find_one(doc! { "version": "text" }).await.unwrap().expect("it is there");
        assert_eq!(text["configuration"], Bson::from("none"), "what is not set stays");
    });
}

#[test]
fn an_index_that_another_program_made_is_used_as_it_is() {
    conduct(async |b| {
        let all = documents(&b).await;
        let index = mongodb::IndexModel::builder()
            .keys(doc! { "app_id": 1, "sub_app_id": 1, "version": 1 })
            .options(mongodb::options::IndexOptions::builder().unique(true).build())
            .build();
        let name = all.create_index(index).await.unwrap().index_name;
        let s = b.serve().await;
        s.publish_configuration(publish(numbered("1"), true)).await;
        s.publish_configuration(publish(nameless("1"), true)).await;
        // Theirs takes all apps without a number for one.
        let other = Configuration { app_name: "other".into(), ..nameless("1") };
        for activate in [false, true] {
            let answer = s.try_publish_configuration(publish(other.clone(), activate)).await;
            let details = refused(answer, Code::FailedPrecondition, "STORE_REFUSED");
            assert_eq!(details.error_info().expect("checked by refused").metadata["index"], name);
        }
        let checks = s.check_indexes(CheckIndexesRequest {}).await.indexes;
        let check = checks.iter().find(|check| check.keys == "app_id, sub_app_id, version");
        assert_eq!(check.and_then(|check| check.served_by.as_ref()), Some(&name));
    });
}

#[test]
fn without_transactions_a_switch_is_safe_and_a_crash_is_made_good() {
    run(async {
        let mongod = Mongod::with(false, &[]);
        let b = Backend::on(&mongod.uri());
        let (one, two) = b.pair().await;
        for n in 0..8 {
            let client = if n % 2 == 0 { &one } else { &two };
            client.publish_configuration(publish(numbered(&format!("v{n}")), n % 3 == 0)).await;
        }
        assert_eq!(one.get_configuration(get(None)).await.version, "v6");
        let switches = (0..40).map(|n| {
            let client = if n % 2 == 0 { one.clone() } else { two.clone() };
            async move { client.activate_configuration(activate(&format!("v{}", n % 8))).await }
        });
        futures::future::join_all(switches).await;
        let all = documents(&b).await;
        assert_eq!(all.count_documents(doc! { "active": true }).await.unwrap(), 1);
        refused(
            one.try_activate_configuration(activate("v9")).await,
            Code::NotFound,
            "CONFIGURATION_NOT_FOUND",
        );

        // As a server leaves it that is killed after it set the new flag.
        one.activate_configuration(activate("v1")).await;
        let meta = b.mongodb().await.collection::<Document>("stepwell_meta");
        let noted = meta.find_one(doc! { "version": "v1" }).await.unwrap().expect("the intent");
        let this = doc! { "_id": noted["_id"].clone() };
        let intent =
            doc! { "$set": { "version": "v2", "done": false }, "$inc": { "number": 1_i64 } };
        meta.update_one(this.clone(), intent).await.unwrap();
        all.update_one(doc! { "version": "v2" }, doc! { "$set": { "active": true } })
            .await
            .unwrap();
        assert_eq!(all.count_documents(doc! { "active": true }).await.unwrap(), 2);
        assert_eq!(one.get_configuration(get(None)).await.version, "v2", "the intent decides");
        // A server tidies up when it starts.
        let _three = b.serve().await;
        eventually("the flags follow the intent", async || {
            let noted = meta.find_one(this.clone()).await.unwrap().expect("the intent");
            noted.get_bool("done").unwrap().then_some(())
        })
        .await;
        let active = all.find_one(doc! { "active": true }).await.unwrap().expect("one is active");
        assert_eq!(active["version"], Bson::from("v2"));
        assert_eq!(all.count_documents(doc! { "active": true }).await.unwrap(), 1);
    });
}

const KILLS: usize = 12;
const VERSIONS: usize = 6;

/// The real binary, killed and started again at the same port.
struct Binary {
    dir: TempDir,
    port: u16,
    args: Vec<String>,
    process: Option<Guarded>,
}

impl Binary {
    async fn start(&mut self) {
        let log = self.dir.path().join("server.log");
        let program = Path::new(env!("CARGO_BIN_EXE_stepwell"));
        self.process = Some(Guarded::start(program, &self.args, &log, None));
        eventually("the server is ready", async || {
            let mut health = HealthClient::new(self.client().channel);
            let answer = health.check(HealthCheckRequest::default()).await.ok()?;
            (answer.into_inner().status() == ServingStatus::Serving).then_some(())
        })
        .await;
    }

    fn client(&self) -> Client {
        Client::of(format!("127.0.0.1:{}", self.port))
    }
}

/// Switches on and on through servers that are killed, while `active` looks at the database itself.
async fn kill_in_the_midst(uri: Option<&str>, active: impl AsyncFn(&Path) -> i64) {
    let dir = TempDir::with_prefix("stepwell-configurations-").expect("a temp dir");
    let port = free_port();
    let mut args = vec!["serve".to_owned(), "--listen".to_owned(), format!("127.0.0.1:{port}")];
    let data = dir.path().join("data");
    match uri {
        None => args.extend(["--data-dir".to_owned(), data.display().to_string()]),
        Some(uri) => args.extend(["--mongodb-uri".to_owned(), uri.to_owned()]),
    }
    let mut server = Binary { dir, port, args, process: None };
    server.start().await;
    let client = server.client();
    for n in 0..VERSIONS {
        client.publish_configuration(publish(numbered(&format!("v{n}")), n == 0)).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let switching = (0..4).map(|who: usize| {
        let (stop, done, client) = (Arc::clone(&stop), Arc::clone(&done), server.client());
        tokio::spawn(async move {
            let mut n = who;
            while !stop.load(Ordering::SeqCst) {
                n += 1;
                let request = activate(&format!("v{}", n % VERSIONS));
                match client.try_activate_configuration(request).await {
                    Ok(record) => {
                        assert!(record.active);
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                    // It is down: send again.
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        })
    });
    let switching: Vec<_> = switching.collect();
    for _ in 0..KILLS {
        let before = done.load(Ordering::SeqCst);
        eventually("some switches are done", async || {
            assert_eq!(active(&data).await, 1, "while switching");
            (done.load(Ordering::SeqCst) > before + 4).then_some(())
        })
        .await;
        server.process.as_mut().expect("it runs").kill();
        assert_eq!(active(&data).await, 1, "after a kill");
        server.start().await;
    }
    stop.store(true, Ordering::SeqCst);
    for task in switching {
        in_time("the end of the switching", task).await.expect("no panic");
    }
    println!("{} switches, {KILLS} kills", done.load(Ordering::SeqCst));
    assert_eq!(active(&data).await, 1);
    assert!(client.get_configuration(get(None)).await.active);
}

#[test]
fn a_switch_cut_short_leaves_one_active_on_sqlite() {
    run(kill_in_the_midst(None, async |data: &Path| {
        let connection = rusqlite::Connection::open(data.join("stepwell.db")).expect("it opens");
        connection.busy_timeout(PATIENCE).expect("a timeout can be set");
        let count = "SELECT count(*) FROM configurations WHERE active = 1";
        connection.query_row(count, [], |row| row.get::<_, i64>(0)).expect("it counts")
    }));
}

#[test]
fn a_switch_cut_short_leaves_one_active_on_mongodb() {
    run(async {
        let mongod = Mongod::start();
        let client = mongodb::Client::with_uri_str(mongod.uri()).await.expect("the URI is valid");
        let database = client.database("ai_apps");
        kill_in_the_midst(Some(&mongod.uri()), async |_: &Path| {
            // As of one moment, which a plain find over several documents need not be.
            let find = doc! {
                "find": "app_configurations", "filter": { "active": true },
                "readConcern": { "level": "snapshot" },
            };
            let found = database.run_command(find).await.expect("it can be asked");
            let cursor = found.get_document("cursor").expect("a cursor");
            cursor.get_array("firstBatch").expect("a batch").len() as i64
        })
        .await;
    });
}
