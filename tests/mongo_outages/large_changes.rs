//! Changes of other programs that do not fit into an event of the log, and keys that do not fit into a token.

use mongodb::bson::{Bson, Document, doc};
use stepwell::proto::*;

use super::support::backend::{Backend, Kind};
use super::support::client::*;
use super::support::server::Server;
use super::support::{Watch, eventually, in_time, run};

/// What a resume token may have.
const TOKEN_BYTES: usize = 2048;

/// A document as another program writes it.
fn foreign(id: &str) -> Document {
    let now = mongodb::bson::DateTime::now();
    doc! {
        "execution_id": id, "app_id": 1, "app_name": "other", "status": "completed",
        "started_at": now, "completed_at": now, "created_at": now, "updated_at": now, "metadata": {},
    }
}

/// Waits for an event of this execution, over whatever else there is.
async fn event_of(watch: &mut Watch, id: &str) {
    loop {
        let event = in_time("an event", watch.try_next()).await.expect("open").expect("open");
        assert!(event.token.len() <= TOKEN_BYTES, "{} bytes", event.token.len());
        if event.execution().is_some_and(|(_, execution)| execution.execution_id == id) {
            return;
        }
    }
}

async fn counted(server: &Server) -> i64 {
    let rates = server.get_success_rates(GetSuccessRatesRequest::default()).await;
    rates.groups.iter().map(|group| group.total).sum()
}

/// That everything which reads the log has come past: the open watch, a new one, one that resumes from before, reports
/// and search.
async fn all_go_on(server: &Server, watch: &mut Watch, before: &str, round: usize) {
    let id = format!("after{round}");
    server.create(&id).await;
    let error = Some(Error { message: format!("boom{round} happened"), ..Default::default() });
    let failed = ExecutionStatus::Failed.into();
    let finish = FinishExecutionRequest {
        execution_id: id.clone(),
        status: failed,
        error,
        ..Default::default()
    };
    server.finish_execution(finish).await;
    event_of(watch, &id).await;
    let all = || WatchExecutionsRequest { snapshot: WatchSnapshot::None.into(), ..watch_all() };
    let mut new = server.watch_all(all()).await.with_foreign_changes();
    in_time("the beginning", new.try_next()).await.expect("open").expect("open");
    let resumed = WatchExecutionsRequest { resume_token: Some(before.to_owned()), ..all() };
    let mut resumed = server.watch_all(resumed).await.with_foreign_changes();
    event_of(&mut resumed, &id).await;
    let next = format!("next{round}");
    server.create(&next).await;
    event_of(&mut new, &next).await;
    eventually("search finds what came after", async || {
        let query = format!("boom{round}");
        let found = server.try_search(SearchRequest { query, ..Default::default() }).await.ok()?;
        (!found.hits.is_empty()).then_some(())
    })
    .await;
}

#[test]
fn changes_that_are_too_large_for_the_log_hold_nobody_up() {
    run(async {
        let backend = Backend::fresh(Kind::Mongodb);
        let server = backend.serve().await;
        server.create("before").await;
        let all = WatchExecutionsRequest { snapshot: WatchSnapshot::None.into(), ..watch_all() };
        let mut watch = server.watch_all(all).await.with_foreign_changes();
        in_time("the beginning", watch.try_next()).await.expect("open").expect("open");
        let executions = backend.executions().await;
        let mib = |count: usize| "x".repeat(count * 1024 * 1024);
        let fifteen = || format!("{}{}", mib(15), "x".repeat(900 * 1024));

        let mut round = 0;
        let mut before = watch.token.clone();
        let mut past = async |watch: &mut Watch| {
            all_go_on(&server, watch, &before, round).await;
            round += 1;
            before = watch.token.clone();
        };

        // 12,000 fields below a long key, changed at once: 3 MB, and each is told with its whole path.
        let fields: Document = (0..12_000).map(|n| (format!("f{n}"), Bson::Int32(0))).collect();
        let key = "k".repeat(4_000);
        let mut many = foreign("many");
        many.insert("metadata", doc! { &key: fields.clone() });
        executions.insert_one(&many).await.expect("inserted");
        event_of(&mut watch, "many").await;
        // Computed by the server, so that the command itself is small.
        let ones = doc! { "$map": {
            "input": { "$objectToArray": format!("$metadata.{key}") },
            "in": { "k": "$$this.k", "v": 1 },
        } };
        let set = doc! { "$set": { format!("metadata.{key}"): { "$arrayToObject": ones } } };
        let filter = doc! { "execution_id": "many" };
        executions.update_one(filter, vec![set]).await.expect("updated");
        event_of(&mut watch, "many").await;
        past(&mut watch).await;

        // A document that is as large as it may be: with the rest of its event it is larger.
        let mut huge = foreign("huge");
        huge.insert("metadata", doc! { "text": fifteen() });
        huge.insert("padding", "x".repeat(90 * 1024));
        executions.insert_one(&huge).await.expect("inserted");
        event_of(&mut watch, "huge").await;
        past(&mut watch).await;
        // Replaced by another one.
        huge.insert("status", "failed");
        executions.replace_one(doc! { "execution_id": "huge" }, &huge).await.expect("replaced");
        event_of(&mut watch, "huge").await;
        past(&mut watch).await;

        // Several in a row.
        for _ in 0..3 {
            let set = doc! { "$set": { "metadata.text": fifteen(), "padding": "" } };
            executions.update_one(doc! { "execution_id": "huge" }, set).await.expect("updated");
            let set = doc! { "$set": { "metadata.text": "", "padding": fifteen() } };
            executions.update_one(doc! { "execution_id": "huge" }, set).await.expect("updated");
        }
        past(&mut watch).await;

        // Keys: too long for a token, for a cursor, and for the log.
        for (name, key) in [
            ("long", "i".repeat(3_000)),
            ("mib", "i".repeat(1_500_000)),
            ("log", "i".repeat(5 * 1024 * 1024)),
        ] {
            let mut keyed = foreign(name);
            keyed.insert("_id", key);
            executions.insert_one(&keyed).await.expect("inserted");
            if name == "long" {
                event_of(&mut watch, name).await;
            }
            past(&mut watch).await;
        }
        assert!(counted(&server).await > 0);
    });
}

#[test]
fn a_token_of_a_long_key_resumes_without_a_gap() {
    run(async {
        let backend = Backend::fresh(Kind::Mongodb);
        let server = backend.serve().await;
        let all = || WatchExecutionsRequest { snapshot: WatchSnapshot::None.into(), ..watch_all() };
        let mut watch = server.watch_all(all()).await.with_foreign_changes();
        in_time("the beginning", watch.try_next()).await.expect("open").expect("open");
        let executions = backend.executions().await;
        // All of one command, and so perhaps of one time in the log.
        let records: Vec<Document> = (0..20)
            .map(|n| {
                let mut record = foreign(&format!("r{n}"));
                record.insert("_id", format!("{n}{}", "i".repeat(100 * n)));
                record
            })
            .collect();
        executions.insert_many(&records).await.expect("inserted");
        for n in 0..20 {
            event_of(&mut watch, &format!("r{n}")).await;
            // From each of them all that follow come.
            let token = Some(watch.token.clone());
            let mut resumed = server
                .watch_all(WatchExecutionsRequest { resume_token: token, ..all() })
                .await
                .with_foreign_changes();
            for later in n + 1..20 {
                event_of(&mut resumed, &format!("r{later}")).await;
            }
        }
    });
}
