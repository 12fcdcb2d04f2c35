//! The MongoDB backend: one database beside other programs, which read and write the same documents.
//!
//! `db` is the ground on which everything stands. On it are rooms that each know their own documents: `records`
//! (executions and steps), `artifacts`, `configurations`, `metrics`, `rollups`, `search`, `changes` (the log), and what
//! takes away: `removal` and `retention`. Here they are put together.

#![expect(clippy::disallowed_methods, reason = "the clock is not handed to every part of it yet")]

mod artifact_documents;
mod artifacts;
mod changes;
mod configurations;
mod db;
pub mod inspect;
mod leads;
mod metrics;
mod names;
mod records;
mod removal;
mod retention;
mod rollups;
mod search;
mod secret;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bson::doc;
use bson::oid::ObjectId;
use bson::raw::RawDocumentBuf;
use futures::FutureExt as _;
use mongodb::Database;

use super::artifacts::ArtifactStore;
use super::configurations::ConfigurationStore;
use super::inspect::Inspect;
use super::leads::Leads;
use super::metrics::MetricStore;
use super::retention::RetentionStore;
use super::rollups::RollupStore;
use super::search::SearchStore;
use super::{Applied, ChangeLog, Error, Lease, Result, Store, StoreInfo, Write};
use crate::clock::Clock;
use crate::domain::execution::SignOfLife;
use crate::domain::limits::Limits;
use crate::domain::query::{
    ArtifactKey, ArtifactQuery, Count, CountQuery, ExecutionKey, ExecutionQuery, Page, StepCounts,
    StepQuery,
};
use crate::domain::{Artifact, Execution, MetricPoint, Millis, Step, StepRef};
use artifacts::Artifacts;
use configurations::Configurations;
pub use db::MongoOptions;
use db::{Connection, Db, Index, failure};
use inspect::Inside;
use leads::LeadRoom;
pub use metrics::METRICS;
use metrics::Metrics;
pub use names::{ARTIFACTS, CONFIGURATIONS, EXECUTIONS, STEPS};
use records::{Records, execution, lists, read, step};
use removal::Removal;
use retention::Retention;
use rollups::RollupRoom;
use search::Texts;

/// Calls of `apply` at a time. More make batches smaller, and each costs the database a flush of its journal: with
/// 64 clients four lanes take half again as much of its time for a change as two.
const LANES: usize = 2;

/// The indexes of all rooms.
fn wanted() -> Vec<Index> {
    [
        records::wanted(),
        configurations::wanted(),
        artifacts::wanted(),
        search::wanted(),
        rollups::wanted(),
    ]
    .concat()
}

/// Makes the indexes of a database that are missing, and its time series, as a server does when it starts.
pub async fn make_indexes(database: &Database) -> Result<()> {
    let connection = Connection::to(database);
    db::make(&connection, wanted()).await?;
    metrics::prepare(&connection, MongoOptions::default().metrics_kept).await.map(drop)
}

/// The document of a new execution, as this store inserts it.
pub fn new_execution(record: &Execution) -> Result<RawDocumentBuf> {
    execution::insert(record)
}

/// The document of a new step, as this store inserts it.
pub fn new_step(record: &Step) -> Result<RawDocumentBuf> {
    step::insert(record)
}

/// The document of a new point of metrics, as this store inserts it.
pub fn new_point(execution_id: &str, point: &MetricPoint) -> Result<RawDocumentBuf> {
    metrics::write_point(ObjectId::new(), execution_id, point)
}

/// Everything that is kept in one database.
pub struct MongoStore {
    db: Arc<Db>,
    clock: Arc<dyn Clock>,
    records: Arc<Records>,
    artifacts: Arc<Artifacts>,
    configurations: Arc<Configurations>,
    metrics: Arc<Metrics>,
    removal: Arc<Removal>,
    secret: Arc<OnceLock<[u8; 32]>>,
}

impl MongoStore {
    /// A store on the database that `options` name. Returns at once: reaching the database and setting it up
    /// goes on in the background for as long as it takes. `Error::Failed`: the URI is malformed, or asks for what
    /// cannot be.
    ///
    /// Must be called within a tokio runtime.
    pub fn connect(
        options: MongoOptions,
        limits: Limits,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>> {
        let db = Db::new(&options)?;
        let records = Arc::new(Records::new(db.clone(), limits.clone()));
        let removal = Removal::new(db.clone(), clock.clone(), records.clone());
        let store = MongoStore {
            records,
            artifacts: Arc::new(Artifacts::new(db.clone(), limits, clock.clone())),
            configurations: Arc::new(Configurations::new(db.clone())),
            metrics: Arc::new(Metrics::new(db.clone(), clock.clone(), options.metrics_kept)),
            removal: Arc::new(removal),
            db,
            clock,
            secret: Arc::default(),
        };
        store.reach(options);
        Ok(Arc::new(store))
    }

    fn reach(&self, options: MongoOptions) {
        let records = Arc::clone(&self.records);
        let metrics = Arc::clone(&self.metrics);
        let secret = Arc::clone(&self.secret);
        let prepare = move |connection: Arc<Connection>| {
            let (records, metrics) = (Arc::clone(&records), Arc::clone(&metrics));
            let secret = Arc::clone(&secret);
            async move {
                // What was found counts only once all of it is there: what failed is looked at again.
                let indexes = db::make(&connection, wanted()).await?;
                let time_series = metrics::prepare(&connection, metrics.kept()).await?;
                let _ = secret.set(secret::shared(&connection).await?);
                records.prepare(&indexes);
                metrics.prepare(time_series);
                Ok(())
            }
            .boxed()
        };
        self.db.reach(options, Box::new(prepare));
    }

    /// The database, once it has answered, for the bytes that are kept in it.
    pub async fn database(&self) -> Result<Database> {
        Ok(self.db.ready().await?.database().clone())
    }

    pub fn artifact_store(&self) -> Arc<dyn ArtifactStore> {
        Arc::clone(&self.artifacts) as _
    }

    pub fn configuration_store(&self) -> Arc<dyn ConfigurationStore> {
        Arc::clone(&self.configurations) as _
    }

    pub fn metric_store(&self) -> Arc<dyn MetricStore> {
        Arc::clone(&self.metrics) as _
    }

    pub fn retention_store(&self) -> Arc<dyn RetentionStore> {
        let (db, clock) = (Arc::clone(&self.db), Arc::clone(&self.clock));
        let (records, removal) = (Arc::clone(&self.records), Arc::clone(&self.removal));
        Arc::new(Retention::new(db, clock, records, removal))
    }

    pub fn rollup_store(&self) -> Arc<dyn RollupStore> {
        Arc::new(RollupRoom::new(Arc::clone(&self.db), Arc::clone(&self.records)))
    }

    pub fn search_store(&self) -> Arc<dyn SearchStore> {
        Arc::new(Texts::new(Arc::clone(&self.db)))
    }

    pub fn leads(&self) -> Arc<dyn Leads> {
        Arc::new(LeadRoom::new(Arc::clone(&self.db)))
    }

    pub fn inspect(&self) -> Arc<dyn Inspect> {
        Arc::new(Inside::new(Arc::clone(&self.db), Arc::clone(&self.clock)))
    }
}

impl Drop for MongoStore {
    fn drop(&mut self) {
        self.db.abort();
    }
}

#[async_trait]
impl Store for MongoStore {
    async fn apply(&self, writes: Vec<Write>) -> Applied {
        records::apply(&self.records, writes).await
    }

    fn lanes(&self) -> usize {
        LANES
    }

    async fn execution(&self, execution_id: &str) -> Result<Option<Execution>> {
        read::execution(&self.records, execution_id).await
    }

    async fn is_being_deleted(&self, execution_id: &str) -> Result<bool> {
        read::is_being_deleted(&self.records, execution_id).await
    }

    async fn step(&self, execution_id: &str, step: &StepRef) -> Result<Option<Step>> {
        read::step(&self.records, execution_id, step).await
    }

    async fn executions(&self, query: &ExecutionQuery) -> Result<Page<Execution, ExecutionKey>> {
        lists::executions(&self.records, query).await
    }

    async fn count_executions(&self, query: &CountQuery) -> Result<Count> {
        lists::count(&self.records, query).await
    }

    async fn step_counts(
        &self,
        execution_ids: &[String],
        examine: usize,
    ) -> Result<Vec<StepCounts>> {
        lists::step_counts(&self.records, execution_ids, examine).await
    }

    async fn steps(&self, query: &StepQuery) -> Result<Page<Step, i32>> {
        read::steps(&self.records, query).await
    }

    async fn artifacts(&self, query: &ArtifactQuery) -> Result<Page<Artifact, ArtifactKey>> {
        artifacts::of_execution(&self.artifacts, query).await
    }

    async fn remove(&self, execution_id: &str) -> Result<u64> {
        self.removal.remove(execution_id).await
    }

    async fn leases(&self) -> Result<Vec<Lease>> {
        records::leases(&self.records).await
    }

    async fn signs_in_steps(
        &self,
        execution_ids: &[String],
        now: Millis,
    ) -> Result<HashMap<String, SignOfLife>> {
        records::signs_in_steps(&self.records, execution_ids, now).await
    }

    async fn secret(&self) -> Result<[u8; 32]> {
        self.db.ready().await?;
        self.secret.get().copied().ok_or_else(failure::away)
    }

    async fn ping(&self) -> Result<()> {
        self.db.ready().await?.command(doc! { "ping": 1 }).await.map(drop)
    }

    fn info(&self) -> StoreInfo {
        let (version, watchable) = match self.db.now() {
            Some(ready) => (ready.version().to_owned(), ready.replica_set()),
            None => (String::new(), true),
        };
        StoreInfo { name: "mongodb", version, watchable }
    }

    fn log(&self) -> Result<Arc<dyn ChangeLog>> {
        if self.db.now().is_some_and(|ready| !ready.replica_set()) {
            return Err(Error::NoLog);
        }
        Ok(Arc::new(changes::Log::new(Arc::clone(&self.db))))
    }

    async fn sweep(&self) -> Result<()> {
        self.removal.sweep().await?;
        metrics::settle(&self.metrics).await?;
        configurations::sweep(&self.configurations).await
    }

    async fn close(&self) {
        self.db.close().await;
    }
}
