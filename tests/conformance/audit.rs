//! The record of who did what.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mongodb::bson::{Binary, Bson, Document, doc};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use stepwell::config::{AuditLevel, Config};
use stepwell::proto::*;
use tonic::Code;

use super::access::{configuration, fixture};
use crate::support::access::{Caller, Guarded, admin_key_file, grant, required};
use crate::support::backend::{Backend, Kind};
use crate::support::client::*;
use crate::support::{eventually, in_time};

/// A server that records at this level.
async fn guarded(b: &Backend, level: AuditLevel) -> Guarded {
    let (path, key) = admin_key_file(b);
    let server = b
        .serve_with(|config: &mut Config| {
            required(config, path);
            config.audit.level = Some(level);
        })
        .await;
    let admin = Caller::new(&server, key.expose());
    Guarded { server, admin, backend: b.clone() }
}

/// The stored documents, chain by chain.
async fn documents(b: &Backend) -> Vec<Document> {
    match b.kind {
        Kind::Sqlite => {
            let connection = b.sqlite();
            let mut statement = connection
                .prepare("SELECT document FROM audit_log ORDER BY server, seq")
                .expect("the table is there");
            let rows = statement.query_map([], |row| row.get::<_, Vec<u8>>(0)).expect("read");
            rows.map(|row| Document::from_reader(row.expect("a row").as_slice()).expect("BSON"))
                .collect()
        }
        Kind::Mongodb => {
            let all = b.mongodb().await.collection::<Document>("audit_log");
            let mut found =
                all.find(doc! {}).sort(doc! { "server": 1, "seq": 1 }).await.expect("found");
            let mut documents = Vec::new();
            while found.advance().await.expect("read") {
                documents.push(found.deserialize_current().expect("a document"));
            }
            documents
        }
    }
}

fn text<'a>(document: &'a Document, name: &str) -> &'a str {
    document.get_str(name).unwrap_or_else(|error| panic!("{name}: {error} in {document}"))
}

/// A number, however wide.
fn number(document: &Document, name: &str) -> i64 {
    let number = document
        .get(name)
        .and_then(|value| value.as_i64().or_else(|| value.as_i32().map(i64::from)));
    number.unwrap_or_else(|| panic!("{name} is no number in {document}"))
}

fn bytes(document: &Document, name: &str) -> Vec<u8> {
    document.get_binary_generic(name).expect("a binary").clone()
}

/// Recomputes every chain; their servers.
fn check_chains(documents: &[Document]) -> Vec<String> {
    let mut servers: Vec<String> = Vec::new();
    let mut last: Option<(i64, Vec<u8>)> = None;
    for document in documents {
        let server = text(document, "server");
        if servers.last().is_none_or(|known| known != server) {
            servers.push(server.to_owned());
            last = None;
        }
        let (seq, prev) = last.take().unwrap_or((0, vec![0; 32]));
        assert_eq!(document.get_i64("seq").expect("int64"), seq + 1, "{document}");
        assert_eq!(bytes(document, "prev"), prev, "{document}");
        let mut without = document.clone();
        without.remove("hash");
        let hash = Sha256::digest(without.to_vec().expect("BSON")).to_vec();
        assert_eq!(bytes(document, "hash"), hash, "{document}");
        last = Some((seq + 1, hash));
    }
    servers
}

/// Every record has these fields in this order; those in brackets not always.
const FIELDS: [&str; 18] = [
    "_id",
    "server",
    "seq",
    "at",
    "event",
    "phase",
    "outcome",
    "code",
    "reason",
    "actor",
    "peer",
    "rpc",
    "target",
    "count",
    "details",
    "request_id",
    "prev",
    "hash",
];
const SOMETIMES: [&str; 2] = ["outcome", "reason"];

fn check_fields(document: &Document) {
    let names: Vec<&str> = document.keys().map(String::as_str).collect();
    let expected: Vec<&str> = FIELDS
        .into_iter()
        .filter(|name| !SOMETIMES.contains(name) || names.contains(name))
        .collect();
    assert_eq!(names, expected);
    assert!(matches!(document.get("_id"), Some(Bson::ObjectId(_))));
    assert!(matches!(document.get("at"), Some(Bson::DateTime(_))));
    assert!(matches!(document.get("count"), Some(Bson::Int32(_))));
    let actor = document.get_document("actor").expect("an actor");
    assert_eq!(actor.keys().collect::<Vec<_>>(), ["kind", "id", "name"]);
    let target = document.get_document("target").expect("a target");
    let known = ["execution_id", "step_id", "artifact_id", "key_id", "app_name", "version"];
    let mut rest = known.iter();
    assert!(target.keys().all(|name| rest.any(|known| known == name)), "{target}");
    match text(document, "phase") {
        "begin" => assert!(!document.contains_key("outcome") && text(document, "code").is_empty()),
        "end" | "once" => {
            let outcome = text(document, "outcome");
            assert!(["ok", "denied", "failed"].contains(&outcome), "{document}");
        }
        other => panic!("{other} is no phase"),
    }
}

/// Event, phase, outcome, code and reason, as often as they are there.
fn told(documents: &[Document]) -> Vec<(String, String, String)> {
    let short = |document: &Document| {
        let outcome = document.get_str("outcome").unwrap_or_default().to_owned();
        (text(document, "event").to_owned(), text(document, "phase").to_owned(), outcome)
    };
    documents.iter().map(short).collect()
}

fn of<'a>(documents: &'a [Document], event: &str, phase: &str) -> Vec<&'a Document> {
    let is_it =
        |document: &&Document| text(document, "event") == event && text(document, "phase") == phase;
    documents.iter().filter(is_it).collect()
}

fn target<'a>(document: &'a Document, name: &str) -> Option<&'a str> {
    document.get_document("target").ok()?.get_str(name).ok()
}

async fn ingest(caller: &Caller, writes: Vec<ingest_request::Write>) -> Vec<IngestResponse> {
    let messages = writes
        .into_iter()
        .zip(1..)
        .map(|(write, sequence)| {
            IngestRequest { sequence, write: Some(write), mirrored: None }.encode_to_vec()
        })
        .collect();
    let answers = ok(caller.call("/stepwell.v1.IngestService/Ingest", messages).await);
    let answers = answers.iter();
    answers.map(|answer| IngestResponse::decode(answer.as_slice()).expect("an answer")).collect()
}

fn put(id: &str) -> ingest_request::Write {
    ingest_request::Write::PutExecution(Execution {
        execution_id: id.to_owned(),
        app_name: "mine".to_owned(),
        status: ExecutionStatus::Completed.into(),
        started_at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        completed_at: Some(prost_types::Timestamp { seconds: 1_700_000_001, nanos: 0 }),
        ..Default::default()
    })
}

async fn publish(caller: &Caller, version: &str) -> Answer<PublishConfigurationResponse> {
    let request = PublishConfigurationRequest {
        configuration: Some(configuration("mine", version)),
        activate: false,
    };
    caller.unary("ConfigurationService/PublishConfiguration", request).await
}

async fn delete(caller: &Caller, id: &str) -> Answer<DeleteExecutionResponse> {
    let request = DeleteExecutionRequest { execution_id: id.to_owned(), force: true };
    caller.unary("ExecutionService/DeleteExecution", request).await
}

async fn exists(caller: &Caller, id: &str) -> bool {
    let request = GetExecutionRequest { execution_id: id.to_owned(), ..Default::default() };
    let answer = caller.unary::<_, GetExecutionResponse>("ExecutionService/GetExecution", request);
    answer.await.is_ok()
}

pub async fn everything_about_security_is_recorded(b: Backend) {
    use ingest_request::Write;
    let g = guarded(&b, AuditLevel::Security).await;
    let reporter = g.caller("reporter", &["mine"]).await;
    let (key_id, secret) = g.key("viewer", &["mine"]).await;
    let one = fixture(&g.admin, "mine", "one").await;
    fixture(&g.admin, "mine", "two").await;
    fixture(&g.admin, "mine", "three").await;

    // Who may not come in, and who may not do what.
    for _ in 0..3 {
        let bad = Caller::new(&g.server, "swk_nonsense");
        refused(delete(&bad, "one").await, Code::Unauthenticated, "CREDENTIAL_INVALID");
    }
    refused(
        delete(&Caller::nobody(&g.server), "one").await,
        Code::Unauthenticated,
        "CREDENTIAL_MISSING",
    );
    refused(delete(&reporter, "one").await, Code::PermissionDenied, "ROLE_FORBIDS");
    let pin = UpdateExecutionRequest { pinned: Some(true), ..update("one") };
    let answer = reporter
        .unary::<_, UpdateExecutionResponse>("ExecutionService/UpdateExecution", pin.clone());
    refused(answer.await, Code::PermissionDenied, "ROLE_FORBIDS");
    let elsewhere = CreateExecutionRequest { app_name: "other".to_owned(), ..create("other") };
    let answer =
        reporter.unary::<_, CreateExecutionResponse>("ExecutionService/CreateExecution", elsewhere);
    refused(answer.await, Code::PermissionDenied, "SCOPE_FORBIDS");
    let cancel = |id: &str| RequestCancelRequest {
        execution_id: id.to_owned(),
        reason: "geheim".to_owned(),
    };
    ingest(
        &reporter,
        vec![
            Write::RequestCancel(cancel("one")),
            Write::Heartbeat(HeartbeatRequest { execution_id: "one".to_owned() }),
        ],
    )
    .await;

    // Keys.
    let rotate = RotateKeyRequest { key_id: key_id.clone(), overlap: None };
    let rotated: RotateKeyResponse = ok(g.admin.unary("AuthService/RotateKey", rotate).await);
    let revoke = RevokeKeyRequest { key_id: key_id.clone() };
    let _: RevokeKeyResponse = ok(g.admin.unary("AuthService/RevokeKey", revoke).await);
    // Somebody takes the key for its id.
    let mistaken = RevokeKeyRequest { key_id: rotated.secret.clone() };
    let answer = g.admin.unary::<_, RevokeKeyResponse>("AuthService/RevokeKey", mistaken);
    refused(answer.await, Code::InvalidArgument, "INVALID_ARGUMENT");

    // What only editors may do.
    ok(publish(&g.admin, "1").await);
    let activate = ActivateConfigurationRequest {
        app_name: Some("mine".to_owned()),
        version: "1".to_owned(),
        ..Default::default()
    };
    let _: ActivateConfigurationResponse =
        ok(g.admin.unary("ConfigurationService/ActivateConfiguration", activate).await);
    let _: UpdateExecutionResponse =
        ok(g.admin.unary("ExecutionService/UpdateExecution", pin).await);
    let _: RequestCancelResponse =
        ok(g.admin.unary("ExecutionService/RequestCancel", cancel("one")).await);
    let artifact = DeleteArtifactRequest { artifact_id: one.artifact.clone() };
    let _: DeleteArtifactResponse =
        ok(g.admin.unary("ArtifactService/DeleteArtifact", artifact).await);
    ok(delete(&g.admin, "one").await);
    refused(delete(&g.admin, "nobody").await, Code::NotFound, "EXECUTION_NOT_FOUND");
    let answers = ingest(
        &g.admin,
        vec![
            put("imported"),
            Write::RequestCancel(cancel("two")),
            Write::DeleteExecution(DeleteExecutionRequest {
                execution_id: "two".to_owned(),
                force: true,
            }),
            Write::PutConfiguration(configuration("mine", "2")),
            Write::PutArtifact(Artifact {
                execution_id: "three".to_owned(),
                artifact_type: "log".to_owned(),
                artifact_name: "l".to_owned(),
                storage_type: Some("local".to_owned()),
                storage_path: Some("file:x".to_owned()),
                ..Default::default()
            }),
            Write::Heartbeat(HeartbeatRequest { execution_id: "three".to_owned() }),
        ],
    )
    .await;
    for answer in &answers {
        let error = matches!(answer.result, Some(ingest_response::Result::Error(_)));
        assert!(!error, "{answer:?}");
    }

    // What only operators may do.
    let _: CheckIndexesResponse =
        ok(g.admin.unary("AdminService/CheckIndexes", CheckIndexesRequest {}).await);
    let dry = RunRetentionRequest { dry_run: true }.encode_to_vec();
    ok(g.admin.call("/stepwell.v1.AdminService/RunRetention", vec![dry]).await);
    ok(g.admin.call("/stepwell.v1.AdminService/RebuildAnalytics", vec![Vec::new()]).await);

    // A file is read again.
    let path = b.data_dir().with_file_name("admin-keys");
    let before = std::fs::read_to_string(&path).expect("readable");
    let another = stepwell::auth::key::Key::generate().expect("randomness");
    std::fs::write(&path, format!("{before}\n{}", another.expose())).expect("written");
    eventually("the file is read again", async || {
        let found = documents(&b).await;
        (!of(&found, "server.reload", "once").is_empty()).then_some(())
    })
    .await;

    let Guarded { server, .. } = g;
    server.shutdown().await;
    let all = documents(&b).await;
    assert_eq!(check_chains(&all).len(), 1);
    all.iter().for_each(check_fields);
    let whole = format!("{all:?}");
    for key in [secret.as_str(), rotated.secret.as_str(), another.expose()] {
        // Neither the key nor the part of it that is secret.
        assert!(!whole.contains(&key[20..60]), "{key} is in a record");
    }
    for words in ["geheim", "the words of a log"] {
        assert!(!whole.contains(words), "{words} is in a record");
    }
    let told: BTreeSet<(String, String, String)> = told(&all).into_iter().collect();
    let is_told = |event: &str, phase: &str, outcome: &str| {
        let one = (event.to_owned(), phase.to_owned(), outcome.to_owned());
        assert!(told.contains(&one), "{one:?} is not in {told:#?}");
    };
    for event in [
        "key.create",
        "key.rotate",
        "key.revoke",
        "configuration.publish",
        "configuration.activate",
        "execution.pin",
        "execution.cancel",
        "artifact.delete",
        "execution.delete",
        "indexes.check",
        "retention.run",
        "analytics.rebuild",
        "configuration.put",
        "artifact.put",
    ] {
        is_told(event, "begin", "");
        is_told(event, "end", "ok");
    }
    is_told("execution.delete", "end", "failed");
    is_told("execution.pin", "end", "denied");
    for (event, outcome) in [
        ("server.start", "ok"),
        ("server.stop", "ok"),
        ("server.reload", "ok"),
        ("credential.refuse", "denied"),
        ("call.deny", "denied"),
    ] {
        is_told(event, "once", outcome);
    }
    assert_eq!(text(&all[0], "event"), "server.start");
    assert_eq!(text(all.last().expect("records"), "event"), "server.stop");

    // A credential that is refused is told at once; those like it are counted.
    let bad = of(&all, "credential.refuse", "once");
    let count = |reason: &str| -> i32 {
        let these = bad.iter().filter(|one| text(one, "reason") == reason);
        these.map(|one| one.get_i32("count").expect("a count")).sum()
    };
    assert_eq!((count("CREDENTIAL_INVALID"), count("CREDENTIAL_MISSING")), (3, 1));
    assert!(bad.iter().all(|one| text(one, "peer") == "127.0.0.1"));
    let denied: Vec<(&str, &str)> = of(&all, "call.deny", "once")
        .into_iter()
        .map(|one| (text(one, "rpc").rsplit('/').next().expect("a method"), text(one, "reason")))
        .collect();
    for expected in [
        ("DeleteExecution", "ROLE_FORBIDS"),
        ("CreateExecution", "SCOPE_FORBIDS"),
        ("Ingest", "ROLE_FORBIDS"),
    ] {
        assert!(denied.contains(&expected), "{expected:?} is not in {denied:?}");
    }
    // What it was done to, by whom, and under which id.
    let made = of(&all, "key.create", "end");
    assert!(made.iter().any(|one| target(one, "key_id") == Some(&key_id)));
    let revoked = of(&all, "key.revoke", "begin");
    let named: Vec<_> = revoked.iter().map(|one| target(one, "key_id")).collect();
    assert_eq!(named, [Some(key_id.as_str()), None], "a key is not written down");
    let deleted = of(&all, "execution.delete", "begin");
    let ids: Vec<_> = deleted.iter().filter_map(|one| target(one, "execution_id")).collect();
    assert_eq!(ids, ["one", "nobody", "two"]);
    for one in &deleted {
        assert!(!text(one, "request_id").is_empty());
        assert_eq!(text(one.get_document("actor").expect("an actor"), "kind"), "admin_key");
        let seq = one.get_i64("seq").expect("a number");
        let ends = of(&all, "execution.delete", "end")
            .into_iter()
            .filter(|end| number(end.get_document("details").expect("details"), "begin") == seq);
        assert_eq!(ends.count(), 1, "{one}");
    }
    // Of what comes over a stream, what only editors may do is in the records of batches.
    let wrote = writes_of(&all);
    for rpc in ["put_execution", "request_cancel"] {
        assert!(wrote.iter().any(|(name, ..)| name.ends_with(rpc)), "{rpc}: {wrote:?}");
    }
    assert!(!wrote.iter().any(|(name, ..)| name.ends_with("heartbeat")), "{wrote:?}");
}

/// rpc, execution, step and code of the writes that are listed.
fn writes_of(documents: &[Document]) -> Vec<(String, String, Option<i32>, Option<String>)> {
    let mut all = Vec::new();
    for document in documents.iter().filter(|one| text(one, "event") == "records.write") {
        let details = document.get_document("details").expect("details");
        for write in details.get_array("writes").expect("writes") {
            let write = write.as_document().expect("an object");
            all.push((
                text(write, "rpc").to_owned(),
                text(write, "execution_id").to_owned(),
                write.get_i32("step_id").ok(),
                write.get_str("code").ok().map(str::to_owned),
            ));
        }
    }
    all
}

/// Nothing can be added to the log any more, or again.
async fn refuse_records(b: &Backend, refuse: bool) {
    match b.kind {
        Kind::Sqlite => {
            let sql = match refuse {
                true => {
                    "CREATE TRIGGER refuses BEFORE INSERT ON audit_log \
                     BEGIN SELECT RAISE(ABORT, 'no'); END"
                }
                false => "DROP TRIGGER refuses",
            };
            b.sqlite().execute_batch(sql).expect("the trigger is changed");
        }
        Kind::Mongodb => {
            let validator = match refuse {
                true => doc! { "never": { "$exists": true } },
                false => doc! {},
            };
            let change = doc! { "collMod": "audit_log", "validator": validator };
            b.mongodb().await.run_command(change).await.expect("the validator is changed");
        }
    }
}

pub async fn what_cannot_be_recorded_is_not_done(b: Backend) {
    use ingest_request::Write;
    let g = guarded(&b, AuditLevel::Security).await;
    let reporter = g.caller("reporter", &["mine"]).await;
    let about = fixture(&g.admin, "mine", "run").await;
    let before = documents(&b).await.len();
    refuse_records(&b, true).await;
    let unavailable = |what: &str, status: Option<tonic::Status>| {
        let status = status.unwrap_or_else(|| panic!("{what} was done"));
        check_refusal(&status, Code::Unavailable, "AUDIT_UNAVAILABLE");
    };
    unavailable("a delete", delete(&g.admin, "run").await.err());
    unavailable("a configuration", publish(&g.admin, "1").await.err());
    let request = CreateKeyRequest {
        name: "k".to_owned(),
        grants: vec![grant("viewer", &["*"])],
        ..Default::default()
    };
    let key = g.admin.unary::<_, CreateKeyResponse>("AuthService/CreateKey", request).await;
    unavailable("a key", key.err());
    let artifact = DeleteArtifactRequest { artifact_id: about.artifact.clone() };
    let gone =
        g.admin.unary::<_, DeleteArtifactResponse>("ArtifactService/DeleteArtifact", artifact);
    unavailable("the delete of an artifact", gone.await.err());
    let indexes = g
        .admin
        .unary::<_, CheckIndexesResponse>("AdminService/CheckIndexes", CheckIndexesRequest {});
    unavailable("a look at indexes", indexes.await.err());
    let dry = RunRetentionRequest { dry_run: true }.encode_to_vec();
    let retention = g.admin.call("/stepwell.v1.AdminService/RunRetention", vec![dry]).await;
    unavailable("retention", retention.err());
    // Beside what is reported, which is not recorded at this level and goes on.
    let answers = ingest(
        &g.admin,
        vec![
            put("imported"),
            Write::DeleteExecution(DeleteExecutionRequest {
                execution_id: "run".to_owned(),
                force: true,
            }),
            Write::PutConfiguration(configuration("mine", "2")),
            Write::CreateExecution(create("reported")),
        ],
    )
    .await;
    let mut done = BTreeMap::new();
    for answer in answers {
        done.insert(
            answer.sequence,
            match answer.result.expect("a result") {
                ingest_response::Result::Error(error) => Err(error.code),
                _ => Ok(()),
            },
        );
    }
    let no = Err(Code::Unavailable as i32);
    assert_eq!(done.into_values().collect::<Vec<_>>(), [no, no, no, Ok(())]);
    let _: StartStepResponse = ok(reporter.unary("StepService/StartStep", start("run", 5)).await);
    // Nobody who may not do it waits for the record of that.
    refused(delete(&reporter, "run").await, Code::PermissionDenied, "ROLE_FORBIDS");
    let bad = Caller::new(&g.server, "swk_nonsense");
    refused(delete(&bad, "run").await, Code::Unauthenticated, "CREDENTIAL_INVALID");

    assert!(exists(&g.admin, "run").await && exists(&g.admin, "reported").await);
    assert!(!exists(&g.admin, "imported").await);
    let keys: ListKeysResponse =
        ok(g.admin.unary("AuthService/ListKeys", ListKeysRequest::default()).await);
    assert_eq!(keys.keys.len(), 1, "{keys:?}");
    let list =
        ListConfigurationsRequest { app_name: Some("mine".to_owned()), ..Default::default() };
    let listed: ListConfigurationsResponse =
        ok(g.admin.unary("ConfigurationService/ListConfigurations", list).await);
    assert!(listed.configurations.is_empty(), "{listed:?}");
    assert_eq!(documents(&b).await.len(), before);

    refuse_records(&b, false).await;
    ok(publish(&g.admin, "1").await);
    ok(delete(&g.admin, "run").await);
    let Guarded { server, .. } = g;
    server.shutdown().await;
    let all = documents(&b).await;
    check_chains(&all);
    let denied = told(&all).into_iter().filter(|(event, ..)| event == "call.deny").count();
    let bad = told(&all).into_iter().filter(|(event, ..)| event == "credential.refuse").count();
    assert_eq!((denied, bad), (1, 1), "what nobody waited for is recorded later");
}

/// Changes what is stored behind the server's back.
async fn forge(b: &Backend, server: &str, seq: i64, change: impl Fn(&mut Document)) {
    let found = documents(b)
        .await
        .into_iter()
        .find(|one| text(one, "server") == server && number(one, "seq") == seq);
    let mut document = found.expect("there is such a record");
    change(&mut document);
    match b.kind {
        Kind::Sqlite => {
            let sql = "UPDATE audit_log SET document = ?1 WHERE server = ?2 AND seq = ?3";
            let bytes = document.to_vec().expect("BSON");
            let changed = b.sqlite().execute(sql, rusqlite::params![bytes, server, seq]);
            assert_eq!(changed, Ok(1));
        }
        Kind::Mongodb => {
            let all = b.mongodb().await.collection::<Document>("audit_log");
            let which = doc! { "server": server, "seq": seq };
            let changed = all.replace_one(which, document).await.expect("replaced");
            assert_eq!(changed.matched_count, 1);
        }
    }
}

/// Takes records away: those of a chain from this number on, and before that one.
async fn take(b: &Backend, server: &str, from: i64, until: i64) {
    let gone = match b.kind {
        Kind::Sqlite => {
            let sql = "DELETE FROM audit_log WHERE server = ?1 AND seq >= ?2 AND seq < ?3";
            let gone = b.sqlite().execute(sql, rusqlite::params![server, from, until]);
            gone.expect("deleted") as u64
        }
        Kind::Mongodb => {
            let all = b.mongodb().await.collection::<Document>("audit_log");
            let which = doc! { "server": server, "seq": { "$gte": from, "$lt": until } };
            all.delete_many(which).await.expect("deleted").deleted_count
        }
    };
    assert!(gone > 0, "there was nothing to take");
}

async fn restore(b: &Backend, document: &Document) {
    match b.kind {
        Kind::Sqlite => {
            let at = document.get_datetime("at").expect("a time").timestamp_millis();
            let seq = document.get_i64("seq").expect("a number");
            let sql = "INSERT OR REPLACE INTO audit_log (server, seq, at, document) \
                       VALUES (?1, ?2, ?3, ?4)";
            let bytes = document.to_vec().expect("BSON");
            let values = rusqlite::params![text(document, "server"), seq, at, bytes];
            assert_eq!(b.sqlite().execute(sql, values), Ok(1));
        }
        Kind::Mongodb => {
            let all = b.mongodb().await.collection::<Document>("audit_log");
            let id = doc! { "_id": document.get("_id").expect("an id") };
            all.replace_one(id, document).upsert(true).await.expect("stored");
        }
    }
}

/// What a verification finds: flaw, chain and number; then how many chains and records it looked at.
async fn verify(
    caller: &Caller,
    heads: Vec<AuditHead>,
) -> (Vec<(AuditFlaw, String, i64)>, AuditVerdict) {
    use verify_audit_response::Message;
    let request = VerifyAuditRequest { heads }.encode_to_vec();
    let steps = ok(caller.call("/stepwell.v1.AuditService/VerifyAudit", vec![request]).await);
    let (mut findings, mut verdict) = (Vec::new(), None);
    for step in steps {
        let step = VerifyAuditResponse::decode(step.as_slice()).expect("a step");
        match step.message.expect("a message") {
            Message::Finding(found) => {
                assert!(!found.description.is_empty());
                findings.push((found.flaw(), found.server, found.seq));
            }
            Message::Verdict(found) => verdict = Some(found),
            Message::Progress(_) => {}
        }
    }
    let verdict = verdict.expect("a verdict comes last");
    assert_eq!(verdict.findings, i64::try_from(findings.len()).expect("few"));
    (findings, verdict)
}

async fn heads(caller: &Caller) -> Vec<AuditHead> {
    let request = GetAuditHeadsRequest { page_size: 1, ..Default::default() };
    let mut page: GetAuditHeadsResponse =
        ok(caller.unary("AuditService/GetAuditHeads", request).await);
    let mut heads = page.heads;
    while !page.next_page_token.is_empty() {
        let request = GetAuditHeadsRequest { page_size: 1, page_token: page.next_page_token };
        page = ok(caller.unary("AuditService/GetAuditHeads", request).await);
        heads.extend(page.heads);
    }
    heads
}

pub async fn every_flaw_of_a_chain_is_found_by_name(b: Backend) {
    let first = guarded(&b, AuditLevel::Security).await;
    for version in ["1", "2", "3"] {
        ok(publish(&first.admin, version).await);
    }
    // Without an end, as after a kill: its last records are taken before the next server begins.
    let Guarded { server, .. } = first;
    server.shutdown().await;
    let all = documents(&b).await;
    let crashed = text(&all[0], "server").to_owned();
    let stop = all.last().expect("records").get_i64("seq").expect("a number");
    take(&b, &crashed, stop, stop + 1).await;
    let g = guarded(&b, AuditLevel::Security).await;
    ok(publish(&g.admin, "4").await);
    // Its end is recorded without anybody waiting for it.
    let all = eventually("all is stored", async || {
        let all = documents(&b).await;
        let ends = of(&all, "configuration.publish", "end").len();
        (ends == 4).then_some(all)
    })
    .await;
    let running = check_chains(&all).into_iter().find(|server| *server != crashed).expect("two");
    let start = all.iter().find(|one| text(one, "server") == running).expect("a start");
    let listed = start.get_document("details").expect("details").get_array("heads").expect("heads");
    let listed: Vec<&str> =
        listed.iter().map(|head| text(head.as_document().expect("a head"), "server")).collect();
    assert_eq!(listed, [crashed.as_str()], "a beginning names who has not ended");

    // What is verified is what the majority has, which may be a moment later.
    let (findings, verdict) = eventually("the majority has all", async || {
        let (findings, verdict) = verify(&g.admin, Vec::new()).await;
        (verdict.records == all.len() as i64).then_some((findings, verdict))
    })
    .await;
    assert_eq!((findings, verdict.chains), (Vec::new(), 2));
    let kept = heads(&g.admin).await;
    assert_eq!(kept.len(), 2);
    assert!(kept.windows(2).all(|pair| pair[0].server < pair[1].server));
    assert_eq!(verify(&g.admin, kept.clone()).await.0, []);
    let copy = |seq: i64| {
        let is_it = |one: &&Document| text(one, "server") == crashed && number(one, "seq") == seq;
        all.iter().find(is_it).expect("a record").clone()
    };

    // One byte.
    forge(&b, &crashed, 3, |one| drop(one.insert("peer", "127.0.0.2"))).await;
    let found = verify(&g.admin, Vec::new()).await.0;
    assert_eq!(found, [(AuditFlaw::Break, crashed.clone(), 3)]);
    // The same with a hash that fits: it does not fit what follows.
    forge(&b, &crashed, 3, |one| {
        one.remove("hash");
        let hash = Sha256::digest(one.to_vec().expect("BSON")).to_vec();
        let subtype = mongodb::bson::spec::BinarySubtype::Generic;
        one.insert("hash", Binary { subtype, bytes: hash });
    })
    .await;
    let found = verify(&g.admin, Vec::new()).await.0;
    assert_eq!(found, [(AuditFlaw::Break, crashed.clone(), 4)]);
    restore(&b, &copy(3)).await;
    // One record.
    take(&b, &crashed, 3, 4).await;
    let found = verify(&g.admin, Vec::new()).await.0;
    assert_eq!(found, [(AuditFlaw::Gap, crashed.clone(), 3)]);
    restore(&b, &copy(3)).await;
    // The beginning, which is not old enough to be gone.
    take(&b, &crashed, 1, 3).await;
    let found = verify(&g.admin, Vec::new()).await.0;
    assert_eq!(found, [(AuditFlaw::Gap, crashed.clone(), 1)]);
    restore(&b, &copy(1)).await;
    restore(&b, &copy(2)).await;
    // The tail of a chain whose head a later one knows.
    take(&b, &crashed, stop - 1, stop).await;
    let found = verify(&g.admin, Vec::new()).await.0;
    assert_eq!(found, [(AuditFlaw::LostTail, crashed.clone(), stop - 1)]);
    restore(&b, &copy(stop - 1)).await;
    assert_eq!(verify(&g.admin, kept.clone()).await.0, []);
    // A whole chain.
    take(&b, &crashed, 1, stop).await;
    let found = verify(&g.admin, Vec::new()).await.0;
    assert_eq!(found, [(AuditFlaw::MissingChain, crashed.clone(), stop - 1)]);
    for seq in 1..stop {
        restore(&b, &copy(seq)).await;
    }
    // The tail of the chain of the server that is asked.
    let own = kept.iter().find(|head| head.server == running).expect("its own");
    take(&b, &running, own.seq, own.seq + 1).await;
    let found = verify(&g.admin, Vec::new()).await.0;
    assert_eq!(found, [(AuditFlaw::LostTail, running.clone(), own.seq)]);
    // A list that somebody kept knows chains that no server does.
    let unknown =
        AuditHead { server: "gone".to_owned(), seq: 7, hash: vec![1; 32], ..Default::default() };
    let found = verify(&g.admin, vec![unknown]).await.0;
    assert!(found.contains(&(AuditFlaw::MissingChain, "gone".to_owned(), 7)), "{found:?}");
    let bad = AuditHead { server: String::new(), seq: 0, hash: vec![1], ..Default::default() };
    let request = VerifyAuditRequest { heads: vec![bad] };
    let answer =
        g.admin.call("/stepwell.v1.AuditService/VerifyAudit", vec![request.encode_to_vec()]).await;
    let fields: Vec<String> = bad_fields(answer).into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["heads[0].hash", "heads[0].seq", "heads[0].server"]);
}

async fn events(caller: &Caller, request: ListAuditEventsRequest) -> ListAuditEventsResponse {
    ok(caller.unary("AuditService/ListAuditEvents", request).await)
}

pub async fn records_are_listed_filtered_and_paged(b: Backend) {
    let g = guarded(&b, AuditLevel::Security).await;
    let mine = g.caller("admin", &["mine"]).await;
    let auditor = g.caller("auditor", &["*"]).await;
    let of_mine = g.caller("auditor", &["mine*"]).await;
    fixture(&g.admin, "mine", "run").await;
    ok(publish(&mine, "1").await);
    ok(delete(&g.admin, "run").await);
    refused(delete(&auditor, "run").await, Code::PermissionDenied, "ROLE_FORBIDS");
    let stored = async || documents(&b).await;
    // Ends are recorded without anybody waiting for them.
    eventually("all is stored", async || {
        let told = told(&stored().await);
        let is = |event: &str, phase: &str| told.iter().any(|(e, p, _)| e == event && p == phase);
        (is("execution.delete", "end") && is("call.deny", "once")).then_some(())
    })
    .await;
    // What is listed is safe from a failover, which takes a moment.
    let all = eventually("all is listed", async || {
        let request = ListAuditEventsRequest { page_size: 1000, ..Default::default() };
        let all = events(&auditor, request).await.events;
        (all.len() == stored().await.len()).then_some(all)
    })
    .await;
    assert!(all.windows(2).all(|pair| pair[0].seq > pair[1].seq), "the newest first");
    let one = &all[0];
    assert!(
        !one.id.is_empty() && one.at.is_some() && one.hash.len() == 32 && one.document.is_empty()
    );

    // In pages, in either direction.
    for oldest_first in [false, true] {
        let mut request =
            ListAuditEventsRequest { page_size: 3, oldest_first, ..Default::default() };
        let mut seen = Vec::new();
        loop {
            let page = events(&auditor, request.clone()).await;
            assert!(page.events.len() <= 3);
            seen.extend(page.events.into_iter().map(|event| event.seq));
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        let mut expected: Vec<i64> = all.iter().map(|event| event.seq).collect();
        if oldest_first {
            expected.reverse();
        }
        assert_eq!(seen, expected);
    }
    let page =
        events(&auditor, ListAuditEventsRequest { page_size: 1, ..Default::default() }).await;
    let other = ListAuditEventsRequest {
        page_size: 1,
        page_token: page.next_page_token,
        oldest_first: true,
        ..Default::default()
    };
    let answer = auditor.unary::<_, ListAuditEventsResponse>("AuditService/ListAuditEvents", other);
    refused(answer.await, Code::InvalidArgument, "INVALID_TOKEN");

    // By what is asked for.
    let found = async |request: ListAuditEventsRequest| -> BTreeSet<String> {
        let request = ListAuditEventsRequest { page_size: 1000, ..request };
        events(&auditor, request).await.events.into_iter().map(|event| event.event).collect()
    };
    let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let set = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<BTreeSet<_>>();
    let by_event =
        ListAuditEventsRequest { events: words(&["key.create", "x"]), ..Default::default() };
    assert_eq!(found(by_event).await, set(&["key.create"]));
    let denied = ListAuditEventsRequest { outcomes: words(&["denied"]), ..Default::default() };
    assert_eq!(found(denied).await, set(&["call.deny"]));
    let about = ListAuditEventsRequest { execution_id: "run".to_owned(), ..Default::default() };
    assert_eq!(found(about).await, set(&["execution.delete"]));
    let by_name =
        ListAuditEventsRequest { actors: words(&["admin of mine"]), ..Default::default() };
    assert_eq!(found(by_name).await, set(&["configuration.publish"]));
    let later = Some(prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 });
    let until = ListAuditEventsRequest { until: later, ..Default::default() };
    assert!(found(until).await.len() > 3);
    let since = ListAuditEventsRequest { since: later, ..Default::default() };
    assert!(found(since).await.is_empty());
    let since =
        ListAuditEventsRequest { since: all[2].at, oldest_first: true, ..Default::default() };
    let newest = events(&auditor, since).await.events;
    assert!(newest.iter().any(|event| event.seq == all[0].seq));

    // A document by which the hash can be computed elsewhere.
    let request = ListAuditEventsRequest { include_documents: true, ..Default::default() };
    for event in events(&auditor, request).await.events {
        let mut document = Document::from_reader(event.document.as_slice()).expect("BSON");
        document.remove("hash");
        assert_eq!(Sha256::digest(document.to_vec().expect("BSON")).to_vec(), event.hash);
    }

    // Of an auditor of some apps: what keys did that are of these apps alone.
    let request = ListAuditEventsRequest { page_size: 1000, ..Default::default() };
    let seen = events(&of_mine, request).await.events;
    let names: BTreeSet<String> =
        seen.iter().map(|event| event.actor.clone().expect("an actor").name).collect();
    assert_eq!(names, set(&["admin of mine"]));
    for method in ["GetAuditHeads", "VerifyAudit"] {
        let path = format!("/stepwell.v1.AuditService/{method}");
        let answer = of_mine.call(&path, vec![Vec::new()]).await;
        refused(answer, Code::PermissionDenied, "SCOPE_FORBIDS");
    }

    let wrong = ListAuditEventsRequest {
        outcomes: words(&["good"]),
        events: vec!["e".to_owned(); 51],
        page_size: 1001,
        ..Default::default()
    };
    let answer =
        auditor.unary::<_, ListAuditEventsResponse>("AuditService/ListAuditEvents", wrong).await;
    let fields: Vec<String> = bad_fields(answer).into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["events", "outcomes[0]", "page_size"]);
}

pub async fn every_write_is_recorded_with_its_batch(b: Backend) {
    use ingest_request::Write;
    let g = guarded(&b, AuditLevel::Writes).await;
    let reporter = g.caller("reporter", &["mine"]).await;
    let mine = |id: &str| CreateExecutionRequest { app_name: "mine".to_owned(), ..create(id) };
    let _: CreateExecutionResponse =
        ok(reporter.unary("ExecutionService/CreateExecution", mine("run")).await);
    let assigned = StartStepRequest { step_id: None, ..start("run", 1) };
    let step: StartStepResponse = ok(reporter.unary("StepService/StartStep", assigned).await);
    let step = step.step.expect("a step").step_id.expect("a number");
    let answer =
        reporter.unary::<_, StartStepResponse>("StepService/StartStep", start("nobody", 1));
    refused(answer.await, Code::NotFound, "EXECUTION_NOT_FOUND");
    let mut writes: Vec<Write> = vec![Write::CreateExecution(mine("streamed"))];
    writes.extend((1..=200).map(|n| Write::StartStep(start("streamed", n))));
    writes.push(Write::Heartbeat(HeartbeatRequest { execution_id: "streamed".to_owned() }));
    ingest(&reporter, writes).await;
    let point = MetricPoint {
        timestamp: Some(crate::support::values::time(crate::support::values::wall_clock_ms())),
        metrics: [("m".to_owned(), 1.0)].into(),
        ..Default::default()
    };
    let points = RecordMetricsRequest {
        execution_id: "run".to_owned(),
        points: vec![point],
        ..Default::default()
    };
    let _: RecordMetricsResponse =
        ok(reporter.unary("MetricService/RecordMetrics", points.clone()).await);
    fixture(&g.admin, "mine", "whole").await;

    // With the log closed nothing is written, and nobody is told that it was.
    let before = documents(&b).await;
    refuse_records(&b, true).await;
    for _ in 0..3 {
        let answer = reporter
            .unary::<_, CreateExecutionResponse>("ExecutionService/CreateExecution", mine("never"));
        refused(answer.await, Code::Unavailable, "AUDIT_UNAVAILABLE");
    }
    let answer = reporter.unary::<_, RecordMetricsResponse>("MetricService/RecordMetrics", points);
    refused(answer.await, Code::Unavailable, "AUDIT_UNAVAILABLE");
    assert!(!exists(&g.admin, "never").await && exists(&g.admin, "run").await);
    assert!(documents(&b).await.len() <= before.len() + 1, "the end of the last one at most");
    refuse_records(&b, false).await;
    let _: CreateExecutionResponse =
        ok(reporter.unary("ExecutionService/CreateExecution", mine("never")).await);
    let Guarded { server, .. } = g;
    server.shutdown().await;

    let all = documents(&b).await;
    check_chains(&all);
    all.iter().for_each(check_fields);
    let batches: Vec<Document> =
        all.iter().filter(|one| text(one, "event") == "records.write").cloned().collect();
    let wrote = writes_of(&batches);
    let expect = |rpc: &str, id: &str, step: Option<i32>, code: &str| {
        let is_it =
            |(name, execution, number, ended): &&(String, String, Option<i32>, Option<String>)| {
                name.ends_with(rpc)
                    && execution == id
                    && *number == step
                    && ended.as_deref() == Some(code)
            };
        assert_eq!(
            wrote.iter().filter(is_it).count(),
            1,
            "{rpc} {id} {step:?} {code} in {wrote:?}"
        );
    };
    expect("ExecutionService/CreateExecution", "run", None, "OK");
    expect("StepService/StartStep", "run", Some(step), "OK");
    expect("StepService/StartStep", "nobody", Some(1), "NOT_FOUND");
    expect("Ingest/create_execution", "streamed", None, "OK");
    for n in 1..=200 {
        expect("Ingest/start_step", "streamed", Some(n), "OK");
    }
    expect("MetricService/RecordMetrics", "run", None, "OK");
    expect("ExecutionService/CreateExecution", "never", None, "OK");
    assert!(
        !wrote.iter().any(|(rpc, ..)| rpc.ends_with("heartbeat")),
        "no sign of life is a write"
    );
    assert!(batches.len() < 150, "they are packed: {}", batches.len());
    for one in &batches {
        let writes =
            one.get_document("details").expect("details").get_array("writes").expect("writes");
        assert_eq!(number(one, "count"), i64::try_from(writes.len()).expect("few"));
    }
    // Each upload by itself.
    let upload = of(&all, "artifact.upload", "end");
    assert!(
        target(upload[0], "artifact_id").is_some()
            && target(upload[0], "execution_id") == Some("whole")
    );
    // What is begun has an end, which says so.
    let begun: BTreeSet<i64> = of(&all, "records.write", "begin")
        .iter()
        .map(|one| one.get_i64("seq").expect("a number"))
        .collect();
    let ended: BTreeSet<i64> = of(&all, "records.write", "end")
        .iter()
        .map(|one| {
            one.get_document("details").expect("details").get_i64("begin").expect("a number")
        })
        .collect();
    assert_eq!(begun, ended);
    assert_eq!(begun.is_empty(), b.kind == Kind::Sqlite, "one transaction has neither");
}

pub async fn every_read_and_stream_is_recorded_where_all_is(b: Backend) {
    let g = guarded(&b, AuditLevel::All).await;
    let viewer = g.caller("viewer", &["mine"]).await;
    fixture(&g.admin, "mine", "run").await;
    assert!(exists(&viewer, "run").await && !exists(&viewer, "nobody").await);
    ok(viewer
        .call("/stepwell.v1.ExecutionService/WatchExecution", vec![watch("run").encode_to_vec()])
        .await);
    ingest(
        &g.admin,
        vec![ingest_request::Write::Heartbeat(HeartbeatRequest { execution_id: "run".to_owned() })],
    )
    .await;
    let list = ListExecutionsRequest::default();
    refuse_records(&b, true).await;
    let answer =
        viewer.unary::<_, ListExecutionsResponse>("ExecutionService/ListExecutions", list.clone());
    refused(answer.await, Code::Unavailable, "AUDIT_UNAVAILABLE");
    let answer = viewer
        .call("/stepwell.v1.ExecutionService/WatchExecution", vec![watch("run").encode_to_vec()]);
    refused(answer.await, Code::Unavailable, "AUDIT_UNAVAILABLE");
    refuse_records(&b, false).await;
    let _: ListExecutionsResponse = ok(viewer.unary("ExecutionService/ListExecutions", list).await);
    let Guarded { server, .. } = g;
    server.shutdown().await;
    let all = documents(&b).await;
    check_chains(&all);
    all.iter().for_each(check_fields);
    let read: Vec<(Option<&str>, &str)> = of(&all, "execution.get", "once")
        .into_iter()
        .map(|one| (target(one, "execution_id"), text(one, "code")))
        .collect();
    assert_eq!(read, [(Some("run"), "OK"), (Some("nobody"), "NOT_FOUND")]);
    assert!(!of(&all, "executions.list", "once").is_empty());
    for event in ["execution.watch", "records.ingest"] {
        let (begun, ended) = (of(&all, event, "begin"), of(&all, event, "end"));
        assert_eq!((begun.len(), ended.len()), (1, 1), "{event}");
    }
}

pub async fn each_process_has_a_chain_of_its_own(b: Backend) {
    let g = guarded(&b, AuditLevel::Security).await;
    let second = match b.kind {
        // One after the other.
        Kind::Sqlite => None,
        Kind::Mongodb => Some(g.second().await),
    };
    let publish_at = async |caller: &Caller, version: &str| ok(publish(caller, version).await);
    match &second {
        None => drop(publish_at(&g.admin, "1").await),
        Some(second) => {
            let other = g.admin.at(second);
            let work = (0..10).map(|n| {
                let caller = if n % 2 == 0 { g.admin.clone() } else { other.clone() };
                async move { ok(publish(&caller, &format!("v{n}")).await) }
            });
            futures::future::join_all(work).await;
        }
    }
    let Guarded { server, backend, .. } = g;
    if let Some(second) = second {
        second.shutdown().await;
    }
    server.shutdown().await;
    let g = guarded(&backend, AuditLevel::Security).await;
    eventually("the new chain begins", async || (!documents(&b).await.is_empty()).then_some(()))
        .await;
    assert_eq!(verify(&g.admin, Vec::new()).await.0, []);
    let Guarded { server, .. } = g;
    in_time("the end", server.shutdown()).await;
    let all = documents(&b).await;
    let expected = if b.kind == Kind::Mongodb { 3 } else { 2 };
    assert_eq!(check_chains(&all).len(), expected);
    for event in ["server.start", "server.stop"] {
        assert_eq!(of(&all, event, "once").len(), expected);
    }
}

pub async fn records_go_for_their_age(b: Backend) {
    let g = guarded(&b, AuditLevel::Security).await;
    ok(publish(&g.admin, "1").await);
    let Guarded { server, .. } = g;
    server.shutdown().await;
    let old = documents(&b).await;
    assert!(old.len() >= 4);
    let (path, key) = admin_key_file(&b);
    let server = b
        .serve_with(|config: &mut Config| {
            required(config, path);
            config.retention.audit = Duration::from_secs(3600);
        })
        .await;
    let admin = Caller::new(&server, key.expose());
    match b.kind {
        // Two hours later.
        Kind::Sqlite => {
            let set = "UPDATE audit_log SET at = at - 7200000 WHERE server = ?1 AND seq < 3";
            let changed = b.sqlite().execute(set, [text(&old[0], "server")]);
            assert_eq!(changed, Ok(2));
            eventually("what is too old is gone", async || {
                let server = text(&old[0], "server").to_owned();
                let left = documents(&b).await;
                let left = left.iter().filter(|one| text(one, "server") == server).count();
                (left == old.len() - 2).then_some(())
            })
            .await;
        }
        // The database does it, once a minute.
        Kind::Mongodb => {
            eventually("the index says so", async || {
                let list = doc! { "listIndexes": "audit_log" };
                let reply = b.mongodb().await.run_command(list).await.ok()?;
                let batch =
                    reply.get_document("cursor").ok()?.get_array("firstBatch").ok()?.clone();
                batch.iter().filter_map(Bson::as_document).find(|index| {
                    index.get_document("key").is_ok_and(|key| *key == doc! { "at": 1 })
                        && index.get("expireAfterSeconds").is_some_and(|age| {
                            age.as_i64().or(age.as_i32().map(i64::from)) == Some(3600)
                        })
                })?;
                Some(())
            })
            .await;
        }
    }
    ok(publish(&admin, "2").await);
}
