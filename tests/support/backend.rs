//! A database of a test's own, on either backend, and what other programs do to it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{DateTime, Document, doc};
use stepwell::config::{Config, Secret};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::mongod::{self, Mongod};
use super::server::Server;

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Sqlite,
    Mongodb,
}

impl Kind {
    pub const ALL: [Kind; 2] = [Kind::Sqlite, Kind::Mongodb];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Sqlite => "sqlite",
            Kind::Mongodb => "mongodb",
        }
    }
}

/// A database that is empty at first and that no other test sees.
#[derive(Clone)]
pub struct Backend {
    pub kind: Kind,
    place: Arc<Place>,
}

struct Place {
    /// The data directory of SQLite; of MongoDB nothing is in it.
    dir: TempDir,
    /// As whoever may do everything reaches it.
    admin: String,
    /// As a server does.
    uri: String,
    database: String,
    /// A mongod of its own, where the shared one will not do.
    _own: Option<Mongod>,
    /// What other programs have done to the database: before the first server starts, and while that one serves.
    found: Option<OnceCell<()>>,
}

impl Backend {
    pub fn fresh(kind: Kind) -> Backend {
        let uri = match kind {
            Kind::Sqlite => String::new(),
            Kind::Mongodb => mongod::shared().to_owned(),
        };
        Backend::at(kind, uri, None)
    }

    /// A database of MongoDB as a server may find it.
    pub fn as_found() -> Backend {
        let mut backend = Backend::fresh(Kind::Mongodb);
        Arc::get_mut(&mut backend.place).expect("it is new").found = Some(OnceCell::new());
        backend
    }

    /// A database on this deployment of MongoDB.
    pub fn on(uri: &str) -> Backend {
        Backend::at(Kind::Mongodb, uri.to_owned(), None)
    }

    /// This database on a deployment of MongoDB.
    pub fn at_database(uri: &str, database: &str) -> Backend {
        Backend::named(Kind::Mongodb, uri.to_owned(), None, database.to_owned())
    }

    fn at(kind: Kind, uri: String, own: Option<Mongod>) -> Backend {
        Backend::named(kind, uri, own, format!("test_{:016x}", rand::random::<u64>()))
    }

    fn named(kind: Kind, uri: String, own: Option<Mongod>, database: String) -> Backend {
        let dir = TempDir::with_prefix("stepwell-test-").expect("a temp dir");
        let admin = uri;
        let uri = match kind {
            Kind::Sqlite => String::new(),
            Kind::Mongodb => {
                mongod::spread(&admin, &database);
                super::router::through(mongod::as_server(&admin, &database))
            }
        };
        let place = Place { dir, admin, uri, database, _own: own, found: None };
        Backend { kind, place: Arc::new(place) }
    }

    /// The same, where history can be made to be forgotten quickly.
    pub fn with_short_history(self) -> Backend {
        match self.kind {
            Kind::Sqlite => self,
            Kind::Mongodb => {
                // Only what a checkpoint covers is cut off.
                let own = Mongod::with(true, &["--oplogSize", "2", "--syncdelay", "1"]);
                let (uri, database) = (own.uri(), self.place.database.clone());
                Backend::named(Kind::Mongodb, uri, Some(own), database)
            }
        }
    }

    /// The configuration of a server on this database, on any free port.
    pub fn config(&self) -> Config {
        let mut config = Config { data_dir: self.data_dir(), ..Config::default() };
        config.listen.set_port(0);
        if self.kind == Kind::Mongodb {
            config.mongodb.uri = Some(Secret::new(&self.place.uri));
            config.mongodb.database = self.place.database.clone();
            // Many tests run side by side; none of them needs ten idle connections.
            config.mongodb.min_pool_size = Some(0);
        }
        config
    }

    /// Where a server finds the database.
    pub fn uri(&self) -> &str {
        &self.place.uri
    }

    pub fn database_name(&self) -> &str {
        &self.place.database
    }

    pub fn data_dir(&self) -> PathBuf {
        self.place.dir.path().join("data")
    }

    /// A server on this database.
    pub async fn serve(&self) -> Server {
        self.serve_with(|_| {}).await
    }

    pub async fn serve_with(&self, change: impl FnOnce(&mut Config)) -> Server {
        let mut config = self.config();
        change(&mut config);
        let Some(found) = &self.place.found else { return Server::start(config).await };
        let first = !found.initialized();
        if first {
            let prepare = async || super::found::prepare(&self.mongodb().await).await;
            found.get_or_init(prepare).await;
        }
        let server = Server::start(config).await;
        if first {
            super::found::drop_indexes(&self.mongodb().await).await;
        }
        server
    }

    /// Two ways in: two servers where the database can be shared, else two connections to one server.
    pub async fn pair(&self) -> (Server, Server) {
        let one = self.serve().await;
        let two = match self.kind {
            Kind::Sqlite => one.second_connection(),
            Kind::Mongodb => self.serve().await,
        };
        (one, two)
    }

    /// A server, and another one where the database can be shared.
    pub async fn pair_of_servers(&self) -> (Server, Option<Server>) {
        let one = self.serve().await;
        match self.kind {
            Kind::Sqlite => (one, None),
            Kind::Mongodb => (one, Some(self.serve().await)),
        }
    }

    /// The database as other programs see it.
    pub async fn mongodb(&self) -> mongodb::Database {
        assert_eq!(self.kind, Kind::Mongodb, "this is for MongoDB only");
        let client =
            mongodb::Client::with_uri_str(&self.place.admin).await.expect("the URI is valid");
        client.database(&self.place.database)
    }

    pub async fn executions(&self) -> mongodb::Collection<Document> {
        self.mongodb().await.collection("executions")
    }

    pub async fn steps(&self) -> mongodb::Collection<Document> {
        self.mongodb().await.collection("execution_steps")
    }

    /// The file of SQLite as other programs see it.
    pub fn sqlite(&self) -> rusqlite::Connection {
        let connection = rusqlite::Connection::open(self.data_dir().join("stepwell.db"))
            .expect("the database file can be opened");
        connection.busy_timeout(super::PATIENCE).expect("a timeout can be set");
        connection
    }

    /// Another program opens a transaction and writes in it; on MongoDB it marks the execution `late`.
    pub async fn open_transaction(&self, execution_id: &str) -> Foreign {
        match self.kind {
            Kind::Sqlite => {
                let connection = self.sqlite();
                connection.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes just now");
                Foreign::Sqlite(connection)
            }
            Kind::Mongodb => {
                let executions = self.executions().await;
                let mut session = executions.client().start_session().await.expect("a session");
                session.start_transaction().await.expect("a transaction");
                let changed = executions
                    .update_one(
                        doc! { "execution_id": execution_id },
                        doc! { "$set": { "metadata.late": true } },
                    )
                    .session(&mut session)
                    .await
                    .expect("the update is taken");
                assert_eq!(changed.matched_count, 1);
                Foreign::Mongodb(Box::new(session))
            }
        }
    }

    /// Makes the store forget all changes so far; the server is another one afterwards.
    pub async fn forget_history(&self, server: Server) -> Server {
        self.forget_history_of(server, |_| {}).await
    }

    /// The same, with servers that are all configured so.
    pub async fn forget_history_of(&self, server: Server, configure: fn(&mut Config)) -> Server {
        let keepalive = |config: &mut Config| {
            configure(config);
            config.watch.keepalive = Duration::from_millis(100);
        };
        server.shutdown().await;
        match self.kind {
            Kind::Sqlite => {
                // What the server does by itself when its table of changes is full or old.
                let server = self.serve_with(configure).await;
                server.create("later").await;
                server.shutdown().await;
                let connection = self.sqlite();
                connection
                    .execute_batch(
                        "UPDATE meta SET value = (SELECT max(seq) FROM changes)
                             WHERE name = 'pruned_through';
                         DELETE FROM changes;",
                    )
                    .expect("the log can be cut");
            }
            Kind::Mongodb => {
                let client = self.mongodb().await.client().clone();
                let filler = client.database("filler").collection::<Document>("filler");
                let oplog = client.database("local").collection::<Document>("oplog.rs");
                let oldest = async || {
                    let entry = oplog.find_one(doc! {}).sort(doc! { "$natural": 1 }).await;
                    entry.expect("the log is readable").expect("it has entries")
                };
                let newest = oplog.find_one(doc! {}).sort(doc! { "$natural": -1 }).await;
                let newest = newest.expect("the log is readable").expect("it has entries");
                let newest = newest.get_timestamp("ts").expect("an entry has its time");
                let big = "x".repeat(1024 * 1024);
                super::eventually("the log is cut", async || {
                    filler.insert_one(doc! { "big": &big }).await.expect("inserted");
                    let oldest = oldest().await.get_timestamp("ts").expect("an entry has its time");
                    (oldest > newest).then_some(())
                })
                .await;
            }
        }
        self.serve_with(keepalive).await
    }

    pub async fn artifacts(&self) -> mongodb::Collection<Document> {
        self.mongodb().await.collection("execution_artifacts")
    }

    /// Another program stores an artifact; its id. The bytes are nowhere. On SQLite only while no server runs: the
    /// log of changes is the server's own.
    pub async fn store_artifact(&self, execution_id: &str, name: &str, bytes: i64) -> String {
        let id = ObjectId::new();
        match self.kind {
            Kind::Sqlite => {
                let now = DateTime::now().timestamp_millis();
                self.write_logged(
                    &[(execution_id, &id.to_hex(), 0)],
                    "INSERT INTO artifacts (artifact_id, execution_id, stored_at, artifact_type, \
                     artifact_name, size_bytes, storage_type, storage_path, created_at) \
                     VALUES (?1, ?2, ?3, 'log', ?4, ?5, 'local', 'file:x', ?3)",
                    rusqlite::params![id.to_hex(), execution_id, now, name, bytes],
                );
            }
            Kind::Mongodb => {
                let document = doc! {
                    "_id": id, "execution_id": execution_id, "step_id": null, "artifact_type": "log",
                    "artifact_name": name, "mime_type": null, "size_bytes": bytes,
                    "storage_type": "gridfs", "storage_path": format!("gridfs://artifacts/{id}"),
                    "metadata": {}, "created_at": DateTime::now(), "sha256": null,
                };
                self.artifacts().await.insert_one(document).await.expect("inserted");
            }
        }
        id.to_hex()
    }

    /// An artifact is marked as deleted, as a server does it. On SQLite only while no server runs.
    pub async fn mark_artifact(&self, execution_id: &str, artifact_id: &str) {
        match self.kind {
            Kind::Sqlite => self.write_logged(
                &[(execution_id, artifact_id, 2)],
                "UPDATE artifacts SET deleted_at = 1 WHERE artifact_id = ?1",
                rusqlite::params![artifact_id],
            ),
            Kind::Mongodb => {
                let id = ObjectId::parse_str(artifact_id).expect("an artifact's id");
                let last_change = format!("{execution_id}//{artifact_id}");
                let mark = doc! { "deleted_at": DateTime::now(), "last_change": last_change };
                let artifacts = self.artifacts().await;
                let marked = artifacts.update_one(doc! { "_id": id }, doc! { "$set": mark }).await;
                assert_eq!(marked.expect("updated").modified_count, 1);
            }
        }
    }

    /// Makes an execution look as if it had been stored so many days ago.
    pub async fn age_execution(&self, execution_id: &str, days: u32) {
        self.age("executions", execution_id, days).await;
    }

    /// The same for all its steps.
    pub async fn age_steps(&self, execution_id: &str, days: u32) {
        self.age("execution_steps", execution_id, days).await;
    }

    /// The same for all its artifacts, whose ids change with that on MongoDB.
    pub async fn age_artifacts(&self, execution_id: &str, days: u32) {
        self.age("execution_artifacts", execution_id, days).await;
    }

    /// The same for some documents of MongoDB.
    pub async fn age_all_of(&self, collection: &str, filter: Document, days: u32) {
        let collection = self.mongodb().await.collection::<Document>(collection);
        assert!(self.store_anew(&collection, filter, days).await > 0);
    }

    /// The same for everything there is.
    pub async fn age_all(&self, days: u32) {
        match self.kind {
            Kind::Sqlite => {
                let at = DateTime::now().timestamp_millis() - i64::from(days) * 24 * 3600 * 1000;
                let set = format!(
                    "UPDATE executions SET stored_at = {at}; UPDATE steps SET stored_at = {at}; \
                     UPDATE artifacts SET stored_at = {at};"
                );
                self.sqlite().execute_batch(&set).expect("updated");
            }
            Kind::Mongodb => {
                for name in ["executions", "execution_steps", "execution_artifacts"] {
                    let collection = self.mongodb().await.collection::<Document>(name);
                    self.store_anew(&collection, doc! {}, days).await;
                }
            }
        }
    }

    /// The age of a document is in its `_id`, so it is stored anew.
    async fn store_anew(
        &self,
        collection: &mongodb::Collection<Document>,
        filter: Document,
        days: u32,
    ) -> usize {
        let stored_at = DateTime::now().timestamp_millis() / 1000 - i64::from(days) * 24 * 3600;
        let seconds = u32::try_from(stored_at).expect("in this century");
        let mut found = collection.find(filter.clone()).await.expect("found");
        let mut aged = Vec::new();
        while found.advance().await.expect("read") {
            let mut document = found.deserialize_current().expect("a document");
            // In the order in which they were.
            let number = u32::try_from(aged.len()).expect("few").to_be_bytes();
            let counter = [number[1], number[2], number[3]];
            document.insert("_id", ObjectId::from_parts(seconds, rand::random(), counter));
            aged.push(document);
        }
        if !aged.is_empty() {
            collection.delete_many(filter).await.expect("deleted");
            collection.insert_many(&aged).await.expect("inserted");
        }
        aged.len()
    }

    async fn age(&self, collection: &str, execution_id: &str, days: u32) {
        let stored_at = DateTime::now().timestamp_millis() - i64::from(days) * 24 * 3600 * 1000;
        match self.kind {
            Kind::Sqlite => {
                let (table, which) = match collection {
                    "executions" => ("executions", "execution_id = ?2"),
                    "execution_artifacts" => ("artifacts", "execution_id = ?2"),
                    _ => {
                        ("steps", "execution = (SELECT id FROM executions WHERE execution_id = ?2)")
                    }
                };
                let sql = format!("UPDATE {table} SET stored_at = ?1 WHERE {which}");
                let changed =
                    self.sqlite().execute(&sql, rusqlite::params![stored_at, execution_id]);
                assert!(changed.expect("updated") > 0, "{collection} of {execution_id}");
            }
            Kind::Mongodb => {
                let collection = self.mongodb().await.collection::<Document>(collection);
                let filter = doc! { "execution_id": execution_id };
                let aged = self.store_anew(&collection, filter, days).await;
                assert!(aged > 0, "{} of {execution_id}", collection.name());
            }
        }
    }

    /// Makes a key look as if it had been made so many days ago.
    pub async fn age_key(&self, id: &str, days: u32) {
        let at = DateTime::now().timestamp_millis() - i64::from(days) * 24 * 3600 * 1000;
        match self.kind {
            Kind::Sqlite => {
                let sql = "UPDATE keys SET created_at = ?1, last_used_at = NULL WHERE id = ?2";
                let changed = self.sqlite().execute(sql, rusqlite::params![at, id]);
                assert_eq!(changed.expect("updated"), 1);
            }
            Kind::Mongodb => {
                let keys = self.mongodb().await.collection::<Document>("stepwell_keys");
                let set = doc! { "$set": { "created_at": DateTime::from_millis(at) }, "$unset": { "last_used_at": "" } };
                let changed = keys.update_one(doc! { "_id": id }, set).await.expect("updated");
                assert_eq!(changed.matched_count, 1);
            }
        }
    }

    /// Marks an execution as a delete does that a crash cut short so many seconds ago.
    pub async fn mark_execution(&self, execution_id: &str, seconds_ago: i64) {
        let at = DateTime::from_millis(DateTime::now().timestamp_millis() - seconds_ago * 1000);
        let changed = match self.kind {
            Kind::Sqlite => {
                let sql = "UPDATE executions SET deleted_at = ?1 WHERE execution_id = ?2";
                let parameters = rusqlite::params![at.timestamp_millis(), execution_id];
                self.sqlite().execute(sql, parameters).expect("updated") as u64
            }
            Kind::Mongodb => {
                let mark = doc! { "$set": { "deleted_at": at } };
                let filter = doc! { "execution_id": execution_id };
                self.executions()
                    .await
                    .update_one(filter, mark)
                    .await
                    .expect("updated")
                    .modified_count
            }
        };
        assert_eq!(changed, 1);
    }

    /// What is stored, visible or not: executions, steps, and artifacts that are not marked as deleted.
    pub async fn stored(&self) -> [u64; 3] {
        match self.kind {
            Kind::Sqlite => {
                let sql = "SELECT (SELECT count(*) FROM executions), (SELECT count(*) FROM steps), \
                           (SELECT count(*) FROM artifacts WHERE deleted_at IS NULL)";
                let count = |row: &rusqlite::Row<'_>, place| row.get::<_, i64>(place);
                let counts = self
                    .sqlite()
                    .query_row(sql, [], |row| Ok([count(row, 0)?, count(row, 1)?, count(row, 2)?]));
                counts.expect("counted").map(i64::unsigned_abs)
            }
            Kind::Mongodb => {
                let alive = doc! { "deleted_at": { "$not": { "$type": "date" } } };
                // What has no usable id is no record.
                let named = || doc! { "execution_id": { "$type": "string" } };
                [
                    self.executions().await.count_documents(named()).await.expect("counted"),
                    self.steps().await.count_documents(named()).await.expect("counted"),
                    self.artifacts().await.count_documents(alive).await.expect("counted"),
                ]
            }
        }
    }

    /// Writes to the file of SQLite with entries in the log: execution, artifact and kind of change.
    fn write_logged(
        &self,
        changes: &[(&str, &str, i64)],
        sql: &str,
        parameters: impl rusqlite::Params,
    ) {
        let mut connection = self.sqlite();
        let behavior = rusqlite::TransactionBehavior::Immediate;
        let transaction = connection.transaction_with_behavior(behavior).expect("a transaction");
        assert_eq!(transaction.execute(sql, parameters).expect("written"), 1);
        for change in changes {
            let entry = "INSERT INTO changes (seq, at, execution_id, kind, flags, revision, artifact_id) \
                         SELECT max(seq) + 1, max(at), ?1, ?3, 0, 0, ?2 FROM changes";
            transaction.execute(entry, *change).expect("logged");
        }
        transaction.commit().expect("committed");
    }

    /// Takes the database away.
    pub async fn remove(&self) {
        if self.kind == Kind::Mongodb {
            // Only tidiness: the whole deployment goes away in the end.
            let _ = self.mongodb().await.drop().await;
        }
    }
}

/// A transaction of another program.
pub enum Foreign {
    Sqlite(rusqlite::Connection),
    Mongodb(Box<mongodb::ClientSession>),
}

impl Foreign {
    pub async fn commit(self) {
        match self {
            Foreign::Sqlite(connection) => connection.execute_batch("COMMIT").expect("committed"),
            Foreign::Mongodb(mut session) => session.commit_transaction().await.expect("committed"),
        }
    }

    pub async fn abort(self) {
        match self {
            Foreign::Sqlite(connection) => {
                connection.execute_batch("ROLLBACK").expect("rolled back")
            }
            Foreign::Mongodb(mut session) => session.abort_transaction().await.expect("aborted"),
        }
    }
}
