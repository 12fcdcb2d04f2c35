//! The MongoDB backend: one database beside other programs, which read and write the same documents.
//!
//! `db` is the ground on which everything stands. On it are rooms that each know their own documents: `records`
//! (executions and steps), `artifacts`, `configurations`, `metrics`, `rollups`, `search`, `changes` (the log), and what
//! takes away: `removal` and `retention`. Here they are put together.

#![expect(clippy::disallowed_methods, reason = "the clock is not handed to every part of it yet")]

mod artifact_documents;
mod artifacts;
mod audit;
mod changes;
mod configurations;
mod db;
mod found;
pub mod inspect;
mod keys;
mod leads;
mod metrics;
mod mirrors;
mod names;
mod notifications;
mod records;
mod removal;
mod retention;
mod rollups;
mod scan;
mod search;
mod secret;
mod shards;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bson::oid::ObjectId;
use bson::raw::RawDocumentBuf;
use bson::{Document, doc};
use futures::FutureExt as _;
use mongodb::Database;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;

use super::artifacts::ArtifactStore;
use super::audit::AuditStore;
use super::configurations::ConfigurationStore;
use super::inspect::Inspect;
use super::keys::KeyStore;
use super::leads::Leads;
use super::metrics::MetricStore;
use super::mirrors::MirrorStore;
use super::notifications::NotificationStore;
use super::retention::RetentionStore;
use super::rollups::RollupStore;
use super::scan::ScanStore;
use super::search::SearchStore;
use super::{Applied, ChangeLog, Lease, Result, Store, StoreInfo, Write};
use crate::clock::Clock;
use crate::domain::execution::SignOfLife;
use crate::domain::limits::Limits;
use crate::domain::query::{
    ArtifactKey, ArtifactQuery, Count, CountQuery, ExecutionKey, ExecutionQuery, Page, StepCounts,
    StepQuery,
};
use crate::domain::{Artifact, Execution, MetricPoint, Millis, Step, StepRef};
use artifacts::Artifacts;
use audit::Ledger;
use configurations::Configurations;
pub use db::MongoOptions;
use db::{Bucket, Connection, Db, failure};
use found::{Keeper, wanted};
use inspect::Inside;
use leads::LeadRoom;
use metrics::Metrics;
use names::META;
pub use names::{ARTIFACTS, CONFIGURATIONS, EXECUTIONS, METRICS, STEPS, Spread};
use records::{Records, execution, lists, read, step};
use removal::Removal;
use retention::Retention;
use rollups::RollupRoom;
use search::Texts;

/// Calls of `apply` at a time. More make batches smaller, and each costs the database a flush of its journal: with
/// 64 clients four lanes take half again as much of its time for a change as two.
const LANES: usize = 2;

/// Documents without a usable id that are counted.
const UNREADABLE: u64 = 20_000;

/// Makes the indexes of a database that are missing, and its time series, as a server does when it starts.
pub async fn make_indexes(database: &Database) -> Result<()> {
    let connection = Connection::to(database);
    db::make(&connection, wanted()).await?;
    metrics::prepare(&connection, MongoOptions::default().metrics_kept, false).await.map(drop)
}

/// The command that makes the role by which a server may do what it does in a database, and no more.
pub fn create_role(database: &str) -> Document {
    db::role::create_role(database)
}

/// The commands that spread a database over the shards of a cluster, for mongosh.
pub fn shard_plan(database: &str) -> String {
    db::shards::plan(database)
}

/// How a collection of the list is spread over shards; `None`: it is not in the list.
pub fn spread_of(collection: &str) -> Option<Spread> {
    let name = names::Name::of(collection)?;
    names::LISTED.iter().find(|listed| listed.name == name).map(|listed| listed.spread)
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
    ledger: Arc<Ledger>,
    secret: Arc<OnceLock<[u8; 32]>>,
    /// Looks after the indexes.
    keeper: Mutex<Option<JoinHandle<()>>>,
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
        let ledger = Ledger::new(db.clone(), clock.clone(), options.audit_kept);
        let ledger = Arc::new(ledger);
        let records = Arc::new(Records::new(db.clone(), limits.clone(), ledger.clone()));
        let removal = Removal::new(db.clone(), clock.clone(), records.clone());
        let store = MongoStore {
            records,
            artifacts: Arc::new(Artifacts::new(db.clone(), limits, clock.clone())),
            configurations: Arc::new(Configurations::new(db.clone())),
            metrics: Arc::new(Metrics::new(
                db.clone(),
                clock.clone(),
                ledger.clone(),
                options.metrics_kept,
                options.ordinary_metrics,
            )),
            removal: Arc::new(removal),
            ledger,
            db,
            clock,
            secret: Arc::default(),
            keeper: Mutex::default(),
        };
        store.reach(options);
        Ok(Arc::new(store))
    }

    fn reach(&self, options: MongoOptions) {
        let keeper = Arc::new(Keeper {
            db: Arc::clone(&self.db),
            records: Arc::clone(&self.records),
            configurations: Arc::clone(&self.configurations),
            metrics: Arc::clone(&self.metrics),
            known: Mutex::default(),
        });
        let secret = Arc::clone(&self.secret);
        if options.read_only {
            let prepare = move |connection: Arc<Connection>| {
                let (keeper, secret) = (Arc::clone(&keeper), Arc::clone(&secret));
                async move {
                    keeper.records.forget_everything();
                    keeper.take(&found::look(&connection).await?);
                    // Tokens go nowhere but to this process and to who started it.
                    let _ = secret.set(Sha256::digest(b"a reader of this database").into());
                    Ok(())
                }
                .boxed()
            };
            return self.db.reach(options, Box::new(prepare));
        }
        let at_work = Arc::clone(&keeper);
        let prepare = move |connection: Arc<Connection>| {
            let (keeper, secret) = (Arc::clone(&keeper), Arc::clone(&secret));
            async move {
                keeper.records.forget_everything();
                // What was found counts only once all of it is there: what failed is looked at again.
                let found = keeper.make(&connection).await?;
                let _ = secret.set(secret::shared(&connection).await?);
                keeper.take(&found);
                Ok(())
            }
            .boxed()
        };
        self.db.reach(options, Box::new(prepare));
        *self.keeper.lock() = Some(tokio::spawn(async move { at_work.keep().await }));
    }

    fn stop_keeping(&self) {
        if let Some(keeper) = self.keeper.lock().take() {
            keeper.abort();
        }
    }

    /// Where the bytes of artifacts are kept in the database, once it has answered.
    pub async fn bucket(&self) -> Result<Bucket> {
        Ok(self.db.ready().await?.bucket())
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

    pub fn mirror_store(&self) -> Arc<dyn MirrorStore> {
        Arc::new(mirrors::MirrorRoom::new(Arc::clone(&self.db)))
    }

    pub fn notification_store(&self) -> Arc<dyn NotificationStore> {
        Arc::new(notifications::NotificationRoom::new(Arc::clone(&self.db)))
    }

    pub fn key_store(&self) -> Arc<dyn KeyStore> {
        Arc::new(keys::KeyRoom::new(Arc::clone(&self.db)))
    }

    pub fn audit_store(&self) -> Arc<dyn AuditStore> {
        Arc::clone(&self.ledger) as _
    }

    pub fn scan_store(&self) -> Arc<dyn ScanStore> {
        Arc::new(scan::Scans::new(Arc::clone(&self.db)))
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
        self.stop_keeping();
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

    async fn step(
        &self,
        execution_id: &str,
        step: &StepRef,
        payloads: bool,
    ) -> Result<Option<Step>> {
        read::step(&self.records, execution_id, step, payloads).await
    }

    async fn executions(&self, query: &ExecutionQuery) -> Result<Page<Execution, ExecutionKey>> {
        lists::executions(&self.records, query).await
    }

    async fn count_executions(&self, query: &CountQuery) -> Result<Count> {
        lists::count(&self.records, query).await
    }

    async fn unreadable_executions(&self) -> Result<u64> {
        lists::unreadable(&self.records, UNREADABLE).await
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

    async fn probe_write(&self) -> Result<()> {
        let ready = self.db.ready().await?;
        let meta = ready.own(META);
        let one_more = doc! { "$inc": { "writes": 1_i64 } };
        let write = meta.update_one(doc! { "_id": "probe" }, one_more).upsert(true);
        ready.call(write).await.map(drop)
    }

    fn info(&self) -> StoreInfo {
        let (version, watchable) = match self.db.now() {
            Some(ready) => (ready.version().to_owned(), ready.replica_set()),
            None => (String::new(), true),
        };
        let database_id = self.db.id().unwrap_or_default();
        StoreInfo { name: "mongodb", version, database_id, watchable }
    }

    fn log(&self) -> Result<Arc<dyn ChangeLog>> {
        // Without a replica set it can still look records up.
        Ok(Arc::new(changes::Log::new(Arc::clone(&self.db))))
    }

    async fn sweep(&self) -> Result<()> {
        self.removal.sweep().await?;
        metrics::settle(&self.metrics).await?;
        configurations::sweep(&self.configurations).await
    }

    async fn close(&self) {
        self.stop_keeping();
        self.db.close().await;
    }
}
