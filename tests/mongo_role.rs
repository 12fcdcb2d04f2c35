//! What a server may do in MongoDB: the role that `stepwell doctor --print-role` prints, on a mongod that asks everybody who
//! they are; and the ways to say who one is.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "every test binary uses a part of the harness")]
mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use mongodb::bson::{Bson, Document, doc};
use serde_json::Value;
use stepwell::proto::*;

use support::backend::Backend;
use support::client::*;
use support::mongod::{Mongod, address_of};
use support::{eventually, in_time, run};

/// A mongod that asks, and who may do everything there.
struct Asking {
    mongod: Mongod,
    admin: mongodb::Client,
}

impl Asking {
    async fn start() -> Asking {
        let mongod = tokio::task::spawn_blocking(Mongod::asking).await.expect("it starts");
        let admin =
            mongodb::Client::with_uri_str(mongod.admin_uri()).await.expect("the URI is valid");
        Asking { mongod, admin }
    }

    async fn order(&self, database: &str, command: Document) {
        let done = self.admin.database(database).run_command(command.clone()).await;
        done.unwrap_or_else(|error| panic!("{command}: {error}"));
    }

    /// Makes a user of this name, who has the role that the program prints for the database.
    async fn user(&self, database: &str, name: &str, mechanisms: &[&str]) -> String {
        self.order(database, role(database).await).await;
        let create = doc! { "createUser": name, "pwd": "pw", "roles": ["stepwell"], "mechanisms": mechanisms };
        self.order(database, create).await;
        self.uri(database, name)
    }

    fn uri(&self, database: &str, name: &str) -> String {
        let address = self.mongod.address();
        format!("mongodb://{name}:pw@{address}/?replicaSet=rs0&authSource={database}")
    }
}

async fn stepwell(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stepwell"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    let ran = tokio::task::spawn_blocking(move || command.output());
    let output = in_time("the end of it", ran).await.expect("joined").expect("it ends");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let code = output.status.code().expect("not ended by a signal");
    (code, text(output.stdout), text(output.stderr))
}

/// The role as the program prints it, for whoever runs it.
async fn role(database: &str) -> Document {
    let (code, out, err) =
        stepwell(&["doctor", "--print-role", "--mongodb-database", database]).await;
    assert_eq!(code, 0, "{err}");
    assert!(err.contains(database), "{err}");
    let json: Value = serde_json::from_str(&out).expect("JSON");
    let Bson::Document(command) = Bson::try_from(json).expect("BSON") else { panic!("{out}") };
    command
}

/// What doctor finds, by subject.
async fn findings(arguments: &[&str]) -> BTreeMap<String, Value> {
    let mut all = vec!["doctor", "--output", "json"];
    all.extend_from_slice(arguments);
    let (_, out, err) = stepwell(&all).await;
    let told: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {err}"));
    let findings = told["findings"].as_array().expect("a list").clone();
    let subject = |finding: &Value| finding["subject"].as_str().expect("text").to_owned();
    findings.into_iter().map(|finding| (subject(&finding), finding)).collect()
}

#[test]
fn the_printed_role_is_that_of_the_page() {
    run(async {
        let command = role("some_db").await;
        let mut actions = BTreeMap::new();
        for privilege in command.get_array("privileges").expect("a list") {
            let privilege = privilege.as_document().expect("an object");
            let resource = privilege.get_document("resource").expect("an object");
            assert_eq!(resource.get_str("db").expect("text"), "some_db");
            assert_eq!(resource.len(), 2);
            let collection = resource.get_str("collection").expect("text").to_owned();
            let words = privilege.get_array("actions").expect("a list").iter();
            let words: Vec<String> =
                words.map(|word| word.as_str().expect("text").to_owned()).collect();
            assert!(actions.insert(collection, words).is_none(), "told twice");
        }
        assert_eq!(command.get_array("roles").expect("a list").len(), 0);
        assert_eq!(
            actions.remove("").expect("all"),
            ["find", "listCollections", "listIndexes", "changeStream"]
        );
        let audit = actions.remove("audit_log").expect("of the audit");
        assert_eq!(audit, ["insert", "createCollection", "createIndex", "collMod"]);
        for (collection, words) in actions {
            let own = ["insert", "update", "remove", "createCollection", "createIndex", "collMod"];
            assert_eq!(words, own, "{collection}");
        }
    });
}

#[test]
fn doctor_tells_what_a_user_may_not_and_what_is_too_much() {
    run(async {
        let asking = Asking::start().await;
        let uri = asking.user("own", "server", &["SCRAM-SHA-1"]).await;
        let b = Backend::at_database(&uri, "own");
        let s = b.serve().await;
        s.create("e").await;
        s.start("e", 1).await;
        s.finish_execution(finish("e", ExecutionStatus::Completed)).await;
        let arguments =
            |uri: &str| ["--mongodb-database", "own", "--mongodb-uri", uri].map(str::to_owned);
        let of = async |uri: &str| {
            let arguments = arguments(uri);
            findings(&arguments.each_ref().map(String::as_str)).await
        };
        let found = of(&uri).await;
        assert_eq!(found["privileges"]["state"], "ok", "{found:?}");
        assert_eq!(found["encryption"]["state"], "ok", "{found:?}");
        // Without one of them.
        let resource = doc! { "db": "own", "collection": "executions" };
        let revoke = doc! { "revokePrivilegesFromRole": "stepwell",
        "privileges": [{ "resource": resource, "actions": ["createIndex"] }] };
        asking.order("own", revoke).await;
        let found = of(&uri).await;
        let missing = &found["missing privileges"];
        assert_eq!(missing["state"], "to do");
        assert!(
            missing["says"].as_str().expect("text").contains("createIndex on own.executions"),
            "{missing}"
        );
        assert!(!found.contains_key("excess privileges"), "{found:?}");
        // And with one that nobody needs.
        let resource = doc! { "db": "own", "collection": "executions" };
        let grant = doc! { "grantPrivilegesToRole": "stepwell",
        "privileges": [{ "resource": resource, "actions": ["createIndex", "dropCollection"] }] };
        asking.order("own", grant).await;
        let found = of(&uri).await;
        let excess = &found["excess privileges"];
        assert!(
            excess["says"].as_str().expect("text").contains("dropCollection on own.executions"),
            "{excess}"
        );
        assert!(!found.contains_key("missing privileges"), "{found:?}");
        let found = of(&asking.mongod.admin_uri()).await;
        assert!(
            found.contains_key("excess privileges") && !found.contains_key("missing privileges"),
            "{found:?}"
        );
        // Nobody at all.
        let (code, _, err) = stepwell(&[
            "doctor",
            "--mongodb-uri",
            &format!("mongodb://{}/", asking.mongod.address()),
        ])
        .await;
        assert_eq!(code, 2, "{err}");
    });
}

#[test]
fn a_server_without_a_privilege_says_which_write_was_refused() {
    run(async {
        let asking = Asking::start().await;
        let uri = asking.user("own", "server", &["SCRAM-SHA-256"]).await;
        let b = Backend::at_database(&uri, "own");
        let s = b.serve().await;
        s.create("before").await;
        let resource = doc! { "db": "own", "collection": "executions" };
        let revoke = doc! { "revokePrivilegesFromRole": "stepwell",
        "privileges": [{ "resource": resource, "actions": ["insert"] }] };
        asking.order("own", revoke).await;
        let refused = eventually("a write is refused", async || {
            s.try_create_execution(create("after")).await.err()
        })
        .await;
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().contains("executions"), "{refused:?}");
        assert!(!refused.message().contains("server"), "{refused:?}");
    });
}

#[test]
fn who_one_is_may_be_said_in_each_way_that_is_built_in() {
    run(async {
        let asking = Asking::start().await;
        for mechanism in ["SCRAM-SHA-1", "SCRAM-SHA-256"] {
            let database = mechanism.to_lowercase();
            let uri = asking.user(&database, "server", &[mechanism]).await;
            for uri in [uri.clone(), format!("{uri}&authMechanism={mechanism}")] {
                let s = Backend::at_database(&uri, &database).serve().await;
                s.create(&format!("e{}", uri.len())).await;
                s.shutdown().await;
            }
        }
        // What this mongod does not offer gets as far as asking it.
        let host = address_of(&asking.mongod.uri());
        for (mechanism, rest) in [
            ("PLAIN", "authSource=$external"),
            ("MONGODB-OIDC", "authMechanismProperties=ENVIRONMENT:k8s"),
        ] {
            let user = if mechanism == "PLAIN" { "u:p@" } else { "" };
            let uri = format!(
                "mongodb://{user}{host}/?authMechanism={mechanism}&{rest}&serverSelectionTimeoutMS=500"
            );
            let (code, _, err) = stepwell(&["doctor", "--mongodb-uri", &uri]).await;
            assert_eq!(code, 2, "{mechanism}: {err}");
            assert!(!err.contains("not supported"), "{mechanism}: {err}");
        }
        for mechanism in ["GSSAPI", "MONGODB-AWS", "MONGODB-CR"] {
            let uri = format!("mongodb://u:secret@{host}/?authMechanism={mechanism}");
            let (code, _, err) =
                stepwell(&["serve", "--listen", "127.0.0.1:0", "--mongodb-uri", &uri]).await;
            assert_eq!(code, 78, "{mechanism}: {err}");
            assert!(err.contains(&format!("authMechanism={mechanism} is not supported")), "{err}");
            assert!(err.contains("SCRAM-SHA-256") && !err.contains("secret"), "{err}");
        }
    });
}

#[test]
fn a_server_takes_its_connection_string_from_a_file() {
    run(async {
        let asking = Asking::start().await;
        let uri = asking.user("own", "server", &["SCRAM-SHA-256"]).await;
        let dir = tempfile::tempdir().expect("a temp dir");
        let path = dir.path().join("uri");
        std::fs::write(&path, format!("{uri}\n")).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("changed");
        let shown = path.to_str().expect("UTF-8");
        let arguments = ["--mongodb-database", "own", "--mongodb-uri-file", shown];
        let found = findings(&arguments).await;
        let readable = &found["file of mongodb.uri"];
        assert_eq!(readable["state"], "to do", "{found:?}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("changed");
        let found = findings(&arguments).await;
        assert!(!found.contains_key("file of mongodb.uri"), "{found:?}");
        assert_eq!(found["privileges"]["state"], "ok", "{found:?}");
        let (code, out, err) = stepwell(&["config", "--mongodb-uri-file", shown]).await;
        assert_eq!(code, 0, "{err}");
        assert!(out.contains("uri_file = ") && !out.contains(":pw@"), "{out}");
        std::fs::write(&path, "").expect("written");
        let (code, _, err) = stepwell(&["serve", "--mongodb-uri-file", shown]).await;
        assert_eq!(code, 78, "{err}");
        assert!(err.contains("mongodb.uri_file") && err.contains("is empty"), "{err}");
    });
}

#[test]
fn keys_that_nobody_uses_are_told() {
    run(async {
        for kind in support::backend::Kind::ALL {
            let b = Backend::fresh(kind);
            let guarded = support::access::Guarded::start(&b).await;
            let (id, _) = guarded.key("viewer", &["*"]).await;
            b.age_key(&id, 91).await;
            let arguments = match kind {
                support::backend::Kind::Sqlite => {
                    vec!["--data-dir".to_owned(), b.data_dir().display().to_string()]
                }
                support::backend::Kind::Mongodb => {
                    ["--mongodb-uri", b.uri(), "--mongodb-database", b.database_name()]
                        .map(str::to_owned)
                        .to_vec()
                }
            };
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let found = findings(&arguments).await;
            let idle = &found["idle keys"];
            assert_eq!(idle["state"], "to do");
            assert!(idle["says"].as_str().expect("text").contains(&id), "{idle}");
            b.remove().await;
        }
    });
}
