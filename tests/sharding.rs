//! MongoDB as a sharded cluster: what the monitor of commands finds, a mongod that looks like a router, the plan, and the page
//! that lists what goes to all shards.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::collections::BTreeSet;
use std::process::Command;

use mongodb::bson::{Document, doc};
use stepwell::proto::*;

use support::backend::Backend;
use support::client::*;
use support::mongod::{Mongod, shard_commands};
use support::router::listed::{self, Scattered};
use support::router::rules::{Target, carries, target};
use support::router::{self, Looks, SCATTERED_VARIABLE};
use support::{in_time, run};

#[test]
fn what_leads_to_one_shard_is_told_from_what_leads_to_more() {
    let key = ["execution_id"];
    for (filter, to, is_carried) in [
        (doc! { "execution_id": "e", "status": "x" }, Target::One, true),
        (doc! { "execution_id": { "$eq": "e" } }, Target::One, true),
        (doc! { "execution_id": null }, Target::One, true),
        (doc! { "execution_id": { "$in": ["e"] } }, Target::One, false),
        (doc! { "execution_id": { "$in": ["e", "f"] } }, Target::Some, false),
        (doc! { "execution_id": { "$gt": "e" } }, Target::All, false),
        (doc! { "execution_id": ["e"] }, Target::All, false),
        (doc! { "_id": 1 }, Target::All, false),
        (doc! { "$and": [{ "a": 1 }, { "execution_id": "e" }] }, Target::One, true),
        (doc! { "$or": [{ "execution_id": "e" }] }, Target::One, false),
        (doc! { "$or": [{ "execution_id": "e" }, { "execution_id": "f" }] }, Target::Some, false),
        (doc! { "$or": [{ "execution_id": "e" }, { "a": 1 }] }, Target::All, false),
        (doc! {}, Target::All, false),
    ] {
        assert_eq!(target(&filter, &key), to, "{filter}");
        assert_eq!(carries(&filter, &key), is_carried, "{filter}");
    }
    let pieces = ["files_id", "n"];
    for (filter, to, is_carried) in [
        (doc! { "files_id": "f", "n": 1 }, Target::One, true),
        (doc! { "files_id": "f", "n": { "$gte": 1 } }, Target::Some, false),
        (doc! { "files_id": "f" }, Target::Some, false),
        (doc! { "n": 1 }, Target::All, false),
    ] {
        assert_eq!(target(&filter, &pieces), to, "{filter}");
        assert_eq!(carries(&filter, &pieces), is_carried, "{filter}");
    }
}

/// The database `judged` of a mongod through one of these.
async fn judged(mongod: &Mongod, looks: Looks) -> mongodb::Database {
    let port = router::start(mongod.address(), looks);
    let uri = format!("mongodb://127.0.0.1:{port}/?w=majority");
    mongodb::Client::with_uri_str(uri).await.expect("the URI is valid").database("judged")
}

async fn mongod() -> Mongod {
    tokio::task::spawn_blocking(Mongod::start).await.expect("it starts")
}

#[test]
fn what_shards_forbid_is_found_and_a_router_refuses_it() {
    run(async {
        let mongod = mongod().await;
        for looks in [Looks::ReplicaSet, Looks::Mongos] {
            let is_router = looks == Looks::Mongos;
            let judged = judged(&mongod, looks).await;
            let breaches = || router::breaches("judged");
            let steps = judged.collection::<Document>("execution_steps");
            let set = || doc! { "$set": { "a": 1 } };
            let keyed = || doc! { "_id": 1, "execution_id": "e" };
            steps.update_one(keyed(), set()).upsert(true).await.expect("it carries the key");
            steps.delete_one(keyed()).await.expect("it carries the key");
            let many = doc! { "execution_id": { "$in": ["e", "f"] } };
            steps.delete_many(many).await.expect("it is not about one document");
            assert_eq!(breaches(), Vec::<String>::new());

            // Single writes without the key.
            let by_id = || doc! { "_id": 1 };
            let upsert = steps.update_one(doc! { "execution_id": { "$gt": "" } }, set());
            let refused = [
                steps.update_one(by_id(), set()).await.is_err(),
                steps.replace_one(by_id(), doc! { "b": 1 }).await.is_err(),
                steps.delete_one(by_id()).await.is_err(),
                steps.find_one_and_update(by_id(), set()).await.is_err(),
                upsert.upsert(true).await.is_err(),
            ];
            assert_eq!(refused, [is_router; 5]);
            let found = breaches();
            assert!(found.iter().all(|one| one.contains("without the shard key")), "{found:?}");
            assert_eq!(found.len(), 4, "two of them are alike: {found:?}");

            // What goes to all shards and is on no list.
            steps.find_one(doc! { "unheard_of": 1 }).await.expect("found nothing");
            steps.update_many(doc! { "unheard_of": 1 }, set()).await.expect("changed nothing");
            steps.count_documents(doc! { "unheard_of": 1 }).await.expect("counted");
            let found = breaches();
            let lacks = |one: &&String| one.contains("docs/sharding.md lacks it");
            assert_eq!(found.iter().filter(lacks).count(), 3, "{found:?}");

            let texts = judged.collection::<Document>("stepwell_search_texts");
            texts.update_one(by_id(), set()).await.expect("that is its key");
            judged.collection::<Document>("elsewhere").find_one(doc! {}).await.expect("nothing");
            let unique = doc! { "createIndexes": "executions", "indexes": [
                { "key": { "execution_id": 1, "user_id": 1 }, "name": "v", "unique": true },
                { "key": { "_id": 1, "user_id": 1 }, "name": "w", "unique": true },
            ] };
            judged.run_command(unique).await.expect("they begin with the key, or with _id");
            let unique = doc! { "createIndexes": "executions", "indexes": [
                { "key": { "user_id": 1 }, "name": "u", "unique": true },
            ] };
            assert_eq!(judged.run_command(unique).await.is_err(), is_router);
            let unique = doc! { "createIndexes": "artifacts.chunks", "indexes": [
                { "key": { "files_id": 1, "m": 1 }, "name": "u", "unique": true },
            ] };
            assert_eq!(judged.run_command(unique).await.is_err(), is_router);
            let found = breaches();
            assert_eq!(found.len(), 3, "{found:?}");

            // What a router does not have, or does not know.
            let local = judged.client().database("local").collection::<Document>("oplog.rs");
            assert_eq!(local.find_one(doc! {}).await.is_err(), is_router);
            assert_eq!(router::breaches("local").len(), 1);
            let admin = judged.client().database("admin");
            let status = admin.run_command(doc! { "replSetGetStatus": 1 }).await;
            assert_eq!(status.is_err(), is_router);
            assert_eq!(router::breaches("admin").len(), 1);
            let hello = judged.run_command(doc! { "hello": 1 }).await.expect("hello");
            assert_eq!(hello.contains_key("setName"), !is_router);
            assert_eq!(hello.get_str("msg").ok(), is_router.then_some("isdbgrid"));

            // A write that does not wait for itself.
            let insert = doc! { "insert": "execution_steps", "documents": [{ "a": 1 }] };
            for (concern, is_weak) in
                [(doc! { "w": 1 }, true), (doc! { "w": "majority" }, false), (doc! {}, true)]
            {
                let mut insert = insert.clone();
                insert.insert("writeConcern", concern);
                let answer = judged.run_command(insert).await.expect("inserted");
                assert_eq!(answer.contains_key("opTime"), !is_router, "{answer}");
                assert_eq!(breaches().len(), usize::from(is_router && is_weak));
            }
            let direct = mongodb::Client::with_uri_str(mongod.uri()).await.expect("it is valid");
            direct.database("judged").drop().await.expect("dropped");
        }
    });
}

#[test]
fn a_server_serves_through_what_looks_like_a_router() {
    run(async {
        let mongod = mongod().await;
        let port = router::start(mongod.address(), Looks::Mongos);
        let b = Backend::at_database(&format!("mongodb://127.0.0.1:{port}/"), "routed");
        let s = b.serve().await;
        let mut watch = s.watch_all(watch_all()).await;
        s.create("e").await;
        s.start("e", 1).await;
        s.finish("e", ExecutionStatus::Completed).await;
        in_time("an event", async {
            while watch.next().await.execution().is_none_or(|(_, e)| e.execution_id != "e") {}
        })
        .await;
        s.delete_execution(DeleteExecutionRequest { execution_id: "e".into(), force: true }).await;
        s.shutdown().await;
        assert_eq!(router::breaches("routed"), Vec::<String>::new());
        assert_eq!(router::breaches("local"), Vec::<String>::new());
    });
}

#[test]
fn the_plan_is_printed_and_runs_as_it_is_printed() {
    run(async {
        let mongod = mongod().await;
        let b = Backend::at_database(&mongod.uri(), "planned");
        let s = b.serve().await;
        s.create("e").await;
        let printed = Command::new(env!("CARGO_BIN_EXE_stepwell"))
            .args(["shard", "plan", "--mongodb-database", "planned"])
            // It is printed without asking anybody.
            .args(["--mongodb-uri", "mongodb://nobody.invalid"])
            .output()
            .expect("it ends");
        assert!(printed.status.success(), "{printed:?}");
        let plan = String::from_utf8(printed.stdout).expect("UTF-8");
        // What a mongod can do of it: the indexes, on the collections as a server made them.
        let commands = shard_commands(&plan);
        assert_eq!(commands.len(), 8, "{plan}");
        for command in commands {
            let place = command.get_str("shardCollection").expect("a name");
            let collection = place.strip_prefix("planned.").expect("of this database");
            let line = format!("getCollection(\"{collection}\").createIndex(");
            let line = plan.lines().find(|one| one.contains(&line)).expect("its index is made");
            let key = command.get_document("key").expect("a key").clone();
            let mut index = doc! { "key": key, "name": "planned" };
            if line.contains("collation") {
                index.insert("collation", doc! { "locale": "simple" });
            }
            let create = doc! { "createIndexes": collection, "indexes": [index] };
            let done = b.mongodb().await.run_command(create).await;
            // One that is there already under another name does as well.
            let is_there =
                |error: &mongodb::error::Error| error.to_string().contains("already exists");
            assert!(done.as_ref().err().is_none_or(is_there), "{collection}: {done:?}");
        }
        s.create("f").await;
    });
}

#[test]
fn doctor_tells_how_a_cluster_is_spread() {
    run(async {
        let mongod = mongod().await;
        let port = router::start(mongod.address(), Looks::Mongos);
        let uri = format!("mongodb://127.0.0.1:{port}/");
        let b = Backend::at_database(&uri, "looked");
        let s = b.serve().await;
        s.create("e").await;
        // What the config servers of a cluster would say.
        let client = mongodb::Client::with_uri_str(mongod.uri()).await.expect("the URI is valid");
        let config = client.database("config");
        let collections = config.collection::<Document>("collections");
        let chunks = config.collection::<Document>("chunks");
        let entry =
            |name: &str, key: Document| doc! { "_id": format!("looked.{name}"), "key": key };
        let right = entry("executions", doc! { "execution_id": "hashed" });
        let wrong = entry("execution_steps", doc! { "step_name": 1 });
        collections.insert_many([right, wrong]).await.expect("inserted");
        let chunk = |shard: &str, jumbo: bool| doc! { "ns": "looked.executions", "shard": shard, "jumbo": jumbo };
        chunks.insert_many([chunk("a", false), chunk("b", true)]).await.expect("inserted");
        for (collection, key) in [
            ("execution_artifacts", doc! { "storage_path": 1 }),
            ("artifacts.chunks", doc! { "files_id": 1, "m": 1 }),
        ] {
            let index = doc! { "key": key, "name": "theirs", "unique": true,
            "partialFilterExpression": { "storage_path": { "$gt": "" } } };
            let create = doc! { "createIndexes": collection, "indexes": [index] };
            client.database("looked").run_command(create).await.expect("made");
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_stepwell"));
        command.args(["doctor", "--output", "json", "--mongodb-uri", &uri]);
        command.args(["--mongodb-database", "looked"]);
        let output = tokio::task::spawn_blocking(move || command.output()).await;
        let output = output.expect("joined").expect("it ends");
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let findings = told["findings"].as_array().expect("a list");
        let says = |subject: &str| {
            let found = findings.iter().find(|finding| finding["subject"] == subject);
            let found = found.unwrap_or_else(|| panic!("nothing about {subject}: {findings:?}"));
            let text = |field: &str| found[field].as_str().expect("text").to_owned();
            format!("{}: {}", text("state"), text("says"))
        };
        assert_eq!(says("deployment"), "ok: a sharded cluster");
        assert_eq!(
            says("shards of executions"),
            "to do: by execution_id: hashed; chunks: a 1, b 1; jumbo: 1"
        );
        for (subject, words) in [
            ("shards of execution_steps", "to do: it is sharded by step_name: 1"),
            ("shards of execution_artifacts", "do not begin with its shard key: theirs"),
            ("shards of artifacts.chunks", "do not begin with its shard key: theirs"),
            ("shards of stepwell_search_texts", "not sharded"),
            ("watch lag", "after"),
            ("feature compatibility", "6.0"),
            ("shards", "balancerStatus"),
        ] {
            assert!(says(subject).contains(words), "{subject}: {}", says(subject));
        }
    });
}

#[test]
fn every_listed_query_has_its_purpose_and_cost() {
    let rows = listed::read();
    assert!(rows.len() > 10, "{rows:?}");
    let mut seen = BTreeSet::new();
    for row in &rows {
        let (_, collection) = row.what.split_once(' ').expect("a command and a collection");
        let spread = stepwell::store::mongo::spread_of(collection);
        let spread = spread.unwrap_or_else(|| panic!("{collection} is no collection"));
        assert!(!spread.key().is_empty(), "{collection} is on one shard");
        assert!(!row.purpose.is_empty() && row.cost.contains("*n*"), "{row:?}");
        assert!(seen.insert((row.what.clone(), row.fields.clone())), "twice: {row:?}");
    }
}

#[test]
fn a_list_that_is_not_what_was_seen_is_told() {
    let page = "\
        | Query | For | Cost |\n\
        | --- | --- | --- |\n\
        | `executions` | no query |\n\
        | `find executions` by `status`, `user_id` | lists | *n* |\n\
        | `find executions` | a walk | *n* |\n\
        | `delete execution_steps` by `_id` | removing | *n* |\n";
    let rows = listed::rows(page);
    let differences = |seen: &[&str]| {
        let seen: Vec<Scattered> =
            seen.iter().map(|one| Scattered::read(one).expect("a query")).collect();
        listed::differences(&rows, &seen).join("; ")
    };
    let whole = [
        "find executions: status",
        "find executions: user_id",
        "find executions: ",
        "delete execution_steps: _id",
    ];
    assert_eq!(differences(&whole), "");
    let unheard_of = [&whole[..], &["find executions: app_id"]].concat();
    let said = "went to all shards and is not listed: find executions: app_id";
    assert_eq!(differences(&unheard_of), said);
    let said = "is listed and did not go to all shards: delete execution_steps";
    assert_eq!(differences(&whole[..3]), said);
    assert_eq!(differences(&whole[1..]), "no filter of find executions names [\"status\"]");
}

/// After the conformance suite has written down what went to all shards, as `.ci/run shards` does it.
#[test]
#[ignore = "the suite has to be there before"]
fn the_page_lists_what_went_to_all_shards_and_nothing_else() {
    let path = std::env::var_os(SCATTERED_VARIABLE);
    let path = path.unwrap_or_else(|| panic!("{SCATTERED_VARIABLE} names the file"));
    let text = std::fs::read_to_string(path).expect("the suite has written it");
    let seen: BTreeSet<Scattered> = text.lines().filter_map(Scattered::read).collect();
    let differences = listed::differences(&listed::read(), &Vec::from_iter(seen));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
