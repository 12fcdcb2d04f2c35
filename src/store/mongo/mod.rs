//! The MongoDB backend: one database beside other programs, which read and write the same documents.
//!
//! `documents` says how records look, `schema` which indexes they need, `command` how a write is sent so that
//! it is executed once, `apply` and `delete` how writes become commands, `alive` and `marks` how the two of these
//! race, `read` and `changes` the rest.

mod alive;
mod apply;
mod artifact_documents;
mod artifacts;
mod cache;
mod changes;
mod command;
mod configurations;
mod delete;
mod documents;
mod failure;
pub mod inspect;
mod leases;
mod lists;
mod marks;
mod metrics;
mod pools;
mod read;
mod remove;
mod retention;
mod rollups;
mod schema;
mod search;
mod walks;

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bson::oid::ObjectId;
use bson::raw::RawDocumentBuf;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};
use mongodb::action::Action as _;
use mongodb::options::{
    Acknowledgment, CollectionOptions, ConnectionString, ReadConcern, ReadPreference,
    SelectionCriteria, WriteConcern,
};
use mongodb::{Client, Collection, Database};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::{Applied, ChangeLog, Error, Leases, RecordKey, Result, Store, StoreInfo, Write};
use crate::clock::Clock;
use crate::detached::outside_replies;
use crate::domain::limits::Limits;
use crate::domain::query::{
    ArtifactKey, ArtifactQuery, Count, CountQuery, ExecutionKey, ExecutionQuery, Page, StepCounts,
    StepQuery,
};
use crate::domain::{Artifact, Execution, MetricPoint, Millis, Step, StepRef};
use cache::Cache;
use command::Commander;
pub use metrics::METRICS;
use pools::{APP_NAME, Clients, connect, connect_both};
pub use schema::{ARTIFACTS, CONFIGURATIONS, EXECUTIONS, STEPS};

/// Calls of `apply` at a time. More make batches smaller, and each costs the database a flush of its journal: with
/// 64 clients four lanes take half again as much of its time for a change as two.
const LANES: usize = 2;
/// The same for points of metrics, which come many at a time anyway.
const METRIC_LANES: usize = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const SHUTDOWN: Duration = Duration::from_millis(700);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How to reach the database. Everything but the URI and the database is a default that the URI overrides.
#[derive(Clone, PartialEq, Eq)]
pub struct MongoOptions {
    pub uri: String,
    pub database: String,
    pub max_pool_size: u32,
    pub min_pool_size: u32,
    pub max_idle_ms: u64,
    pub server_selection_timeout_ms: u64,
    pub retry_writes: Option<bool>,
    /// How long a point of metrics is kept; `None`: for ever.
    pub metrics_kept: Option<Duration>,
    /// "majority", or a number of members, or a name of the deployment's own.
    pub write_concern: Option<String>,
}

impl Default for MongoOptions {
    fn default() -> Self {
        MongoOptions {
            uri: "mongodb://127.0.0.1:27017".to_owned(),
            database: "ai_apps".to_owned(),
            max_pool_size: 100,
            min_pool_size: 10,
            max_idle_ms: 30_000,
            server_selection_timeout_ms: 5_000,
            retry_writes: None,
            metrics_kept: Some(Duration::from_secs(30 * 24 * 3600)),
            write_concern: None,
        }
    }
}

impl std::fmt::Debug for MongoOptions {
    // The URI carries a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MongoOptions").field("database", &self.database).finish_non_exhaustive()
    }
}

/// Makes the indexes of a database that are missing, and its time series, as a server does when it starts.
pub async fn make_indexes(database: &Database) -> Result<()> {
    schema::prepare(database).await?;
    let kept = MongoOptions::default().metrics_kept;
    let options = CollectionOptions::default;
    metrics::prepare(database, kept, options(), options()).await.map(drop)
}

/// The document of a new execution, as this store inserts it.
pub fn new_execution(record: &Execution) -> Result<RawDocumentBuf> {
    documents::insert_execution(record)
}

/// The document of a new step, as this store inserts it.
pub fn new_step(record: &Step) -> Result<RawDocumentBuf> {
    documents::insert_step(record)
}

/// The document of a new point of metrics, as this store inserts it.
pub fn new_point(execution_id: &str, point: &MetricPoint) -> Result<RawDocumentBuf> {
    metrics::write_point(ObjectId::new(), execution_id, point)
}

/// The database once it has answered and is set up.
struct Ready {
    client: Client,
    database: Database,
    /// The same on connections of its own, for writes and the probe: however slow all reads are, these go on. The
    /// collections for decisions are of it, too.
    writes: Database,
    /// For decisions: what the primary has, committed or not.
    executions: Collection<RawDocumentBuf>,
    steps: Collection<RawDocumentBuf>,
    /// For answers: what a failover cannot take back.
    committed_executions: Collection<RawDocumentBuf>,
    committed_steps: Collection<RawDocumentBuf>,
    metrics: metrics::Metrics,
    artifacts: Collection<RawDocumentBuf>,
    committed_artifacts: Collection<RawDocumentBuf>,
    uploads: Collection<RawDocumentBuf>,
    commander: Commander,
    replica_set: bool,
    version: String,
    indexes: schema::Indexes,
    secret: [u8; 32],
}

#[derive(Clone)]
enum State {
    /// The first attempt is under way.
    Starting,
    /// The last attempt failed; another follows.
    Away,
    Ready(Arc<Ready>),
}

struct Inner {
    options: MongoOptions,
    limits: Limits,
    clock: Arc<dyn Clock>,
    cache: Cache,
    ids: metrics::Ids,
    state: watch::Sender<State>,
    patience: Duration,
    /// The next mark of an update.
    marks: AtomicI64,
    /// The marks of deletes.
    deletes: marks::Marks,
    /// New steps of executions that were trusted to be there.
    unchecked: parking_lot::Mutex<Vec<(RecordKey, ObjectId)>>,
    /// Writes of configurations come one at a time from this server; they are few, and would only be in each
    /// other's way.
    configurations: tokio::sync::Mutex<()>,
    /// Hours of metrics whose figures are computed together.
    hours: metrics::Pace,
    /// Hours of metrics into which points may come.
    marked: metrics::Marked,
}

/// Executions and steps in MongoDB.
pub struct MongoStore {
    inner: Arc<Inner>,
    preparing: tokio::task::JoinHandle<()>,
}

impl MongoStore {
    /// A store on the database that `options` name. Returns at once: reaching the database and setting it up
    /// goes on in the background for as long as it takes. Fails only on a malformed URI.
    ///
    /// Must be called within a tokio runtime.
    pub fn connect(
        options: MongoOptions,
        limits: Limits,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>> {
        // The parser's own words may quote a piece of a password.
        let parsed = ConnectionString::parse(&options.uri)
            .map_err(|_| Error::failed("the MongoDB URI is malformed"))?;
        let default_ms = options.server_selection_timeout_ms;
        let inner = Arc::new(Inner {
            limits,
            clock,
            cache: Cache::new(),
            ids: metrics::Ids::new(),
            state: watch::Sender::new(State::Starting),
            patience: parsed
                .server_selection_timeout
                .unwrap_or(Duration::from_millis(default_ms.max(1))),
            options,
            marks: AtomicI64::new(first_mark()),
            deletes: marks::Marks::default(),
            unchecked: parking_lot::Mutex::default(),
            configurations: tokio::sync::Mutex::new(()),
            hours: metrics::Pace::default(),
            marked: metrics::Marked::default(),
        });
        let preparing = tokio::spawn(prepare_until_it_works(Arc::clone(&inner)));
        Ok(Arc::new(MongoStore { inner, preparing }))
    }
}

impl MongoStore {
    /// The database, once it has answered, for the bytes that are kept in it.
    pub async fn database(&self) -> Result<Database> {
        Ok(self.inner.ready().await?.database.clone())
    }
}

impl Drop for MongoStore {
    fn drop(&mut self) {
        self.preparing.abort();
    }
}

async fn prepare_until_it_works(inner: Arc<Inner>) {
    let mut pause = FIRST_PAUSE;
    let mut clients = None;
    loop {
        match prepare(&inner, &mut clients).await {
            Ok(ready) => {
                tracing::info!(
                    version = ready.version,
                    replica_set = ready.replica_set,
                    "MongoDB is ready"
                );
                if !ready.replica_set {
                    tracing::warn!(
                        "this mongod is no replica set: nothing can be watched, and a write whose \
                         answer is lost has to be repeated by its client"
                    );
                }
                inner.state.send_replace(State::Ready(Arc::new(ready)));
                return;
            }
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(error = %error, source, retry_ms = pause.as_millis(), "MongoDB is not ready");
                inner.state.send_replace(State::Away);
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The write concern as commands carry it. A majority that cannot be reached must not hold a caller for ever.
fn concern_document(concern: Option<&WriteConcern>, patience: Duration) -> RawDocumentBuf {
    let mut document = RawDocumentBuf::new();
    match concern.and_then(|concern| concern.w.clone()) {
        Some(Acknowledgment::Nodes(nodes)) => {
            document.append(bson::raw::cstr!("w"), i32::try_from(nodes).unwrap_or(1).max(1));
        }
        Some(Acknowledgment::Custom(tag)) => document.append(bson::raw::cstr!("w"), tag.as_str()),
        _ => document.append(bson::raw::cstr!("w"), "majority"),
    }
    if let Some(journal) = concern.and_then(|concern| concern.journal) {
        document.append(bson::raw::cstr!("j"), journal);
    }
    let wait = concern.and_then(|concern| concern.w_timeout).unwrap_or(patience);
    let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
    document.append(bson::raw::cstr!("wtimeout"), wait);
    document
}

async fn prepare(inner: &Inner, clients: &mut Option<Clients>) -> Result<Ready> {
    let Clients { reads: client, writes } = match clients {
        Some(clients) => clients.clone(),
        None => clients.insert(connect_both(&inner.options, inner.patience).await?).clone(),
    };
    let writes = writes.database(&inner.options.database);
    let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
    let database = client.database(&inner.options.database);
    let hello = database.run_command(doc! { "hello": 1 }).selection_criteria(primary.clone());
    let hello = inner.call(hello).await?;
    let is_member = hello.contains_key("setName");
    let replica_set = is_member || hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid");
    let build = inner.call(database.run_command(doc! { "buildInfo": 1 })).await?;
    let version = build.get_str("version").unwrap_or_default().to_owned();

    let options = |concern: Option<ReadConcern>| {
        let mut options = CollectionOptions::default();
        options.selection_criteria = Some(primary.clone());
        options.read_concern = concern;
        options
    };
    let collection = |name: &str, concern| {
        database.collection_with_options::<RawDocumentBuf>(name, options(concern))
    };
    let decisions = |name: &str| {
        let local = options(Some(ReadConcern::local()));
        writes.collection_with_options::<RawDocumentBuf>(name, local)
    };
    let committed = replica_set.then(ReadConcern::majority);
    let concern = concern_document(client.write_concern(), inner.patience);
    let indexes = schema::prepare(&database).await?;
    let kept = inner.options.metrics_kept;
    let (local, majority) = (options(Some(ReadConcern::local())), options(committed.clone()));
    let metrics = metrics::prepare(&database, kept, local, majority).await?.writing(&writes);
    let secret = secret(&database, replica_set).await?;
    Ok(Ready {
        executions: decisions(schema::EXECUTIONS),
        steps: decisions(schema::STEPS),
        artifacts: decisions(schema::ARTIFACTS),
        committed_executions: collection(schema::EXECUTIONS, committed.clone()),
        committed_steps: collection(schema::STEPS, committed.clone()),
        metrics,
        committed_artifacts: collection(schema::ARTIFACTS, committed),
        uploads: decisions(schema::UPLOADS),
        commander: Commander::new(writes.clone(), concern, is_member, inner.patience),
        replica_set,
        version,
        indexes,
        secret,
        database,
        writes,
        client,
    })
}

#[expect(clippy::disallowed_methods, reason = "a key is made here once for each database")]
fn new_secret() -> [u8; 32] {
    // 244 random bits from the operating system, spread evenly.
    let mut hash = Sha256::new();
    hash.update(uuid::Uuid::new_v4().as_bytes());
    hash.update(uuid::Uuid::new_v4().as_bytes());
    hash.finalize().into()
}

/// Where a server begins to count its marks: anywhere, so that no two servers use the same.
#[expect(clippy::disallowed_methods, reason = "made once for each server")]
fn first_mark() -> i64 {
    let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
    (high >> 1) as i64
}

/// The secret that all servers on this database share. The first one to insert it wins.
async fn secret(database: &Database, replica_set: bool) -> Result<[u8; 32]> {
    const ID: &str = "token_secret";
    let mut options = CollectionOptions::default();
    options.selection_criteria = Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
    options.read_concern = replica_set.then(ReadConcern::majority);
    options.write_concern = Some(WriteConcern::majority());
    let meta = database.collection_with_options::<Document>(schema::META, options);
    for _ in 0..10 {
        if let Some(found) = meta.find_one(doc! { "_id": ID }).await.map_err(failure::error)? {
            let bytes = match found.get("value") {
                Some(Bson::Binary(binary)) => <[u8; 32]>::try_from(binary.bytes.as_slice()).ok(),
                _ => None,
            };
            return bytes.ok_or(Error::Corrupt {
                collection: schema::META,
                id: ID.to_owned(),
                field: "value",
            });
        }
        let value = Binary { subtype: BinarySubtype::Generic, bytes: new_secret().to_vec() };
        match meta.insert_one(doc! { "_id": ID, "value": value }).await {
            Ok(_) => {}
            // Another server was first; majority reads see its secret in a moment.
            Err(error) if failure::code(&error) == Some(failure::DUPLICATE_KEY) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(failure::error(error)),
        }
    }
    Err(failure::away())
}

impl Inner {
    /// A number that no other update carries.
    fn mark(&self) -> i64 {
        self.marks.fetch_add(1, Ordering::Relaxed)
    }

    /// The database, or why there is none. Waits only for the first attempt to reach it.
    async fn ready(&self) -> Result<Arc<Ready>> {
        if let State::Ready(ready) = &*self.state.borrow() {
            return Ok(Arc::clone(ready));
        }
        let mut state = self.state.subscribe();
        let decided = state.wait_for(|state| !matches!(state, State::Starting));
        match tokio::time::timeout(self.patience, decided).await {
            Ok(Ok(state)) => match &*state {
                State::Ready(ready) => Ok(Arc::clone(ready)),
                State::Starting | State::Away => Err(failure::away()),
            },
            Ok(Err(_)) | Err(_) => Err(failure::away()),
        }
    }

    /// One call of the driver, which alone would wait for ever on a connection that went silent.
    async fn call<T, F>(&self, call: F) -> Result<T>
    where
        F: IntoFuture<Output = mongodb::error::Result<T>>,
    {
        let call = tokio::time::timeout(self.patience * 2, call.into_future());
        match outside_replies(call).await {
            Ok(answer) => answer.map_err(failure::error),
            Err(_) => Err(failure::timeout()),
        }
    }

    /// The turn of a write of configurations.
    async fn configuration_turn(&self) -> Result<tokio::sync::MutexGuard<'_, ()>> {
        let turn = tokio::time::timeout(self.patience, self.configurations.lock());
        turn.await.map_err(|_| failure::timeout())
    }

    /// The same for who judges the driver's error: `Err` is only that no answer came in time.
    async fn try_call<T, F>(&self, call: F) -> Result<mongodb::error::Result<T>>
    where
        F: IntoFuture<Output = mongodb::error::Result<T>>,
    {
        let answer = tokio::time::timeout(self.patience * 2, call.into_future()).await;
        answer.map_err(|_| failure::timeout())
    }

    /// All documents that a query finds. `Err` also when they do not come in time.
    async fn all(
        &self,
        collection: &Collection<RawDocumentBuf>,
        filter: Document,
        projection: Option<Document>,
    ) -> Result<Vec<RawDocumentBuf>> {
        self.call(async {
            let mut found = Vec::new();
            let find = collection.find(filter).batch_size(1000);
            let mut cursor =
                find.optional(projection, |find, wanted| find.projection(wanted)).await?;
            while cursor.advance().await? {
                found.push(cursor.current().to_owned());
            }
            Ok(found)
        })
        .await
    }
}

impl Inner {
    /// All documents that a pipeline makes.
    async fn aggregate(
        &self,
        collection: &Collection<RawDocumentBuf>,
        pipeline: impl IntoIterator<Item = Document>,
    ) -> Result<Vec<RawDocumentBuf>> {
        let aggregate = collection.aggregate(pipeline).with_type::<RawDocumentBuf>();
        self.call(async {
            let mut found = Vec::new();
            let mut cursor = aggregate.await?;
            while cursor.advance().await? {
                found.push(cursor.current().to_owned());
            }
            Ok(found)
        })
        .await
    }
}

/// The projection for steps without payloads.
fn no_payloads() -> Document {
    doc! { "input": 0, "output": 0 }
}

#[async_trait]
impl Store for MongoStore {
    async fn apply(&self, writes: Vec<Write>) -> Applied {
        apply::apply(&self.inner, writes).await
    }

    fn lanes(&self) -> usize {
        LANES
    }

    async fn execution(&self, execution_id: &str) -> Result<Option<Execution>> {
        read::execution(&self.inner, execution_id).await
    }

    async fn is_being_deleted(&self, execution_id: &str) -> Result<bool> {
        read::is_being_deleted(&self.inner, execution_id).await
    }

    async fn step(&self, execution_id: &str, step: &StepRef) -> Result<Option<Step>> {
        read::step(&self.inner, execution_id, step).await
    }

    async fn executions(&self, query: &ExecutionQuery) -> Result<Page<Execution, ExecutionKey>> {
        lists::executions(&self.inner, query).await
    }

    async fn count_executions(&self, query: &CountQuery) -> Result<Count> {
        lists::count(&self.inner, query).await
    }

    async fn step_counts(
        &self,
        execution_ids: &[String],
        examine: usize,
    ) -> Result<Vec<StepCounts>> {
        lists::step_counts(&self.inner, execution_ids, examine).await
    }

    async fn steps(&self, query: &StepQuery) -> Result<Page<Step, i32>> {
        read::steps(&self.inner, query).await
    }

    async fn artifacts(&self, query: &ArtifactQuery) -> Result<Page<Artifact, ArtifactKey>> {
        read::artifacts(&self.inner, query).await
    }

    async fn remove(&self, execution_id: &str) -> Result<u64> {
        remove::remove(&self.inner, execution_id).await
    }

    async fn leases(&self, now: Millis) -> Result<Leases> {
        leases::leases(&self.inner, now).await
    }

    async fn secret(&self) -> Result<[u8; 32]> {
        Ok(self.inner.ready().await?.secret)
    }

    async fn ping(&self) -> Result<()> {
        let ready = self.inner.ready().await?;
        self.inner.call(ready.writes.run_command(doc! { "ping": 1 })).await?;
        Ok(())
    }

    fn info(&self) -> StoreInfo {
        let (version, watchable) = match &*self.inner.state.borrow() {
            State::Ready(ready) => (ready.version.clone(), ready.replica_set),
            State::Starting | State::Away => (String::new(), true),
        };
        StoreInfo { name: "mongodb", version, watchable }
    }

    fn log(&self) -> Result<Arc<dyn ChangeLog>> {
        if let State::Ready(ready) = &*self.inner.state.borrow()
            && !ready.replica_set
        {
            return Err(Error::NoLog);
        }
        Ok(Arc::new(changes::Log::new(Arc::clone(&self.inner))))
    }

    async fn sweep(&self) -> Result<()> {
        remove::sweep(&self.inner).await?;
        metrics::settle(&self.inner).await?;
        configurations::sweep(&self.inner).await
    }

    async fn close(&self) {
        self.preparing.abort();
        let state = self.inner.state.send_replace(State::Away);
        if let State::Ready(ready) = state {
            // Ends cursors and sessions of ours in the database; it would end them by itself later.
            let reads = ready.client.clone().shutdown();
            let writes = ready.writes.client().clone().shutdown();
            let both = async { tokio::join!(reads, writes) };
            let _ = tokio::time::timeout(SHUTDOWN, both).await;
        }
    }
}
