//! A database that is connected, and the only three ways to one of its collections. Each says by itself on which server
//! it reads, what a read and a write wait for, and how text is compared: neither a connection string nor a collection
//! decides that.

use std::future::IntoFuture;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bson::raw::{RawDocument, RawDocumentBuf, cstr};
use bson::{Bson, Document, doc, rawdoc};
use mongodb::action::{Find, Watch};
use mongodb::error::Result as DriverResult;
use mongodb::options::{ReadConcern, ReadPreference, SelectionCriteria, WriteConcern};
use mongodb::{Client, Database};

use super::collection::{Collection, Query, Rows, simple_raw};
use super::command::Commander;
use super::failure;
use super::options::{APP_NAME, Concerns, MongoOptions};
use super::pools::Clients;
use super::values::{any, field, integer_of};
use crate::detached::outside_replies;
use crate::store::Result;

/// Documents fetched at a time where many are wanted.
const FETCHED_AT_ONCE: u32 = 1000;

/// A database once it can be asked.
#[derive(Clone)]
pub struct Connection {
    clients: Clients,
    /// Over the connections of reads and whatever else there is.
    reads: Database,
    /// Over those of writes and the probe.
    writes: Database,
    patience: Duration,
    concerns: Concerns,
    commander: Arc<Commander>,
    replica_set: bool,
    version: String,
}

fn primary() -> SelectionCriteria {
    SelectionCriteria::ReadPreference(ReadPreference::Primary)
}

impl Connection {
    /// Nothing has been asked yet, not even whether anybody is there.
    pub async fn open(options: &MongoOptions, patience: Duration) -> Result<Connection> {
        let resolved = options.resolve(patience).await?;
        let records = resolved.write_concern.clone().unwrap_or_else(WriteConcern::majority);
        Ok(Connection::of(Clients::open(resolved)?, &options.database, records, patience))
    }

    /// The same over one connection, for who asks one question after the other.
    pub async fn open_one(options: &MongoOptions, patience: Duration) -> Result<Connection> {
        let options = MongoOptions { min_pool_size: 0, ..options.clone() };
        let resolved = options.resolve(patience).await?;
        let records = resolved.write_concern.clone().unwrap_or_else(WriteConcern::majority);
        let client = Client::with_options(resolved).map_err(failure::error)?;
        Ok(Connection::of(Clients::one(client), &options.database, records, patience))
    }

    fn of(clients: Clients, name: &str, records: WriteConcern, patience: Duration) -> Connection {
        let (reads, writes) = (clients.reads.database(name), clients.writes.database(name));
        Connection {
            commander: Arc::new(Commander::new(writes.clone(), records.clone(), false, patience)),
            concerns: Concerns::of(records, false, patience),
            clients,
            reads,
            writes,
            patience,
            replica_set: false,
            version: String::new(),
        }
    }

    /// A connection of somebody else's, who has asked already.
    pub fn to(database: &Database) -> Connection {
        let patience = Duration::from_secs(30);
        let clients = Clients::one(database.client().clone());
        Connection::of(clients, database.name(), WriteConcern::majority(), patience)
    }

    /// Asks who is there.
    pub async fn greet(mut self) -> Result<Connection> {
        let hello = self.command(doc! { "hello": 1 }).await?;
        let is_member = hello.contains_key("setName");
        self.replica_set = is_member || hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid");
        let build = self.command(doc! { "buildInfo": 1 }).await?;
        self.version = build.get_str("version").unwrap_or_default().to_owned();
        let records = self.concerns.records.clone();
        let logged = is_member;
        let commander = Commander::new(self.writes.clone(), records.clone(), logged, self.patience);
        self.commander = Arc::new(commander);
        self.concerns = Concerns::of(records, self.replica_set, self.patience);
        Ok(self)
    }

    pub fn replica_set(&self) -> bool {
        self.replica_set
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    /// How long the database may take to be found. One call may take twice as long.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Write commands that may be sent twice and are executed once.
    pub fn commander(&self) -> &Commander {
        &self.commander
    }

    /// What writes of records wait for.
    pub fn write_concern(&self) -> &WriteConcern {
        &self.concerns.records
    }

    /// The database for the bytes that are kept in it.
    pub fn database(&self) -> &Database {
        &self.reads
    }

    pub async fn shutdown(&self) {
        self.clients.shutdown().await;
    }

    /// For decisions about records: what the primary has, safe from a failover or not, over the connections of writes.
    /// Writes wait for what the connection string and the settings say.
    pub fn latest(&self, name: &str) -> Collection {
        let records = self.concerns.records.clone();
        let both = (&self.writes, &self.writes);
        Collection::open(both, name, ReadConcern::local(), records)
    }

    /// For answers: all that has been answered to its writer, and as safe from a failover as that was.
    pub fn committed(&self, name: &str) -> Collection {
        let Concerns { records, answers, .. } = self.concerns.clone();
        let both = (&self.reads, &self.writes);
        Collection::open(both, name, answers, records)
    }

    /// For what servers go by among themselves and do in the background: what the primary has, over the connections of
    /// reads, and writes that no failover takes back.
    pub fn own(&self, name: &str) -> Collection {
        let majority = self.concerns.majority.clone();
        let both = (&self.reads, &self.writes);
        Collection::open(both, name, ReadConcern::local(), majority)
    }

    /// One call of the driver, which alone would wait for ever on a connection that went silent.
    pub async fn call<T>(&self, call: impl IntoFuture<Output = DriverResult<T>>) -> Result<T> {
        self.try_call(call).await?.map_err(failure::error)
    }

    /// The same for who judges the driver's error: `Err` is only that no answer came in time.
    pub async fn try_call<T>(
        &self,
        call: impl IntoFuture<Output = DriverResult<T>>,
    ) -> Result<DriverResult<T>> {
        let call = tokio::time::timeout(self.patience * 2, call.into_future());
        outside_replies(call).await.map_err(|_| failure::timeout())
    }

    /// What a query finds, each document in its time.
    pub async fn rows(&self, query: impl Query) -> Result<Rows> {
        Rows::open(query, self.patience * 2).await
    }

    /// The same of one that the database may take so long over.
    pub async fn rows_within(&self, query: impl Query, patience: Duration) -> Result<Rows> {
        Rows::open(query, patience).await
    }

    /// Shows `visit` what a query finds, until it has enough.
    pub async fn each(
        &self,
        query: impl Query,
        mut visit: impl FnMut(&RawDocument) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut rows = self.rows(query).await?;
        while let Some(raw) = rows.next().await? {
            if visit(raw).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// All that a query finds. `Err` also when it does not come in time.
    pub async fn collect(&self, query: impl Query) -> Result<Vec<RawDocumentBuf>> {
        self.collect_within(query, self.patience * 2).await
    }

    /// The same of a query that the database may take so long over.
    pub async fn collect_within(
        &self,
        query: impl Query,
        patience: Duration,
    ) -> Result<Vec<RawDocumentBuf>> {
        let all = async {
            let mut rows = self.rows_within(query, patience).await?;
            let mut found = Vec::new();
            while let Some(raw) = rows.next().await? {
                found.push(raw.to_owned());
            }
            Ok(found)
        };
        match tokio::time::timeout(patience, all).await {
            Ok(all) => all,
            Err(_) => Err(failure::timeout()),
        }
    }

    /// All documents of a collection that match, or the fields of them that are wanted.
    pub async fn all(
        &self,
        collection: &Collection,
        filter: Document,
        fields: Option<Document>,
    ) -> Result<Vec<RawDocumentBuf>> {
        let find = collection.find(filter).batch_size(FETCHED_AT_ONCE);
        match fields {
            Some(fields) => self.collect(find.projection(fields)).await,
            None => self.collect(find).await,
        }
    }

    /// What a query finds, all of it as of one moment that no failover takes back. A plain query may see half of what
    /// one transaction changes.
    pub async fn at_one_moment(
        &self,
        name: &str,
        find: impl FnOnce(&Collection) -> Find<'_, RawDocumentBuf>,
    ) -> Result<Rows> {
        if !self.replica_set {
            return self.rows(find(&self.own(name))).await;
        }
        // The level has to be said: the driver leaves one that a collection has as it is, also in such a session.
        let both = (&self.reads, &self.writes);
        let majority = self.concerns.majority.clone();
        let all = Collection::open(both, name, ReadConcern::snapshot(), majority);
        let opened = async {
            let mut session = self.clients.reads.start_session().snapshot(true).await?;
            let cursor = find(&all).session(&mut session).await?;
            Ok((cursor, session))
        };
        let (cursor, session) = self.call(opened).await?;
        Ok(Rows::snapshot(cursor, session, self.patience * 2))
    }

    /// How many documents match, by the index that is named. Cheaper than the documents, and than an aggregation.
    pub async fn count(
        &self,
        name: &str,
        filter: RawDocumentBuf,
        index: Option<&str>,
    ) -> Result<u64> {
        let mut command = rawdoc! {
            "count": name,
            "query": filter,
            "collation": simple_raw(),
            "readConcern": { "level": "local" },
        };
        if let Some(index) = index {
            command.append(cstr!("hint"), index);
        }
        let count = self.writes.run_raw_command(command).selection_criteria(primary());
        let reply = self.call(count).await?;
        Ok(reply.get("n").and_then(integer_of).and_then(|n| u64::try_from(n).ok()).unwrap_or(0))
    }

    /// A command that is no write of a record.
    pub async fn command(&self, command: Document) -> Result<Document> {
        self.call(self.writes.run_command(command).selection_criteria(primary())).await
    }

    /// The same for who judges the driver's error.
    pub async fn try_command(&self, command: Document) -> Result<DriverResult<Document>> {
        self.try_call(self.writes.run_command(command).selection_criteria(primary())).await
    }

    /// The same for as long as the database takes over it.
    pub async fn slow_command(&self, command: Document) -> DriverResult<Document> {
        self.reads.run_command(command).selection_criteria(primary()).await
    }

    /// The same on another database.
    pub async fn command_on(&self, database: &str, command: Document) -> Result<Document> {
        let database = self.clients.writes.database(database);
        self.call(database.run_command(command).selection_criteria(primary())).await
    }

    /// The log of changes of the database. It tells only what no failover takes back.
    pub fn watch(&self, pipeline: impl IntoIterator<Item = Document>) -> Watch<'_> {
        let watch = self.reads.watch().pipeline(pipeline);
        watch.read_concern(ReadConcern::majority()).selection_criteria(primary())
    }

    /// For transactions: the connections and the database.
    pub(super) fn writes(&self) -> (&Client, &Database) {
        (&self.clients.writes, &self.writes)
    }

    pub(super) fn majority(&self) -> WriteConcern {
        self.concerns.majority.clone()
    }

    /// Ends transactions of servers that are gone. Where the database does not let us, they end by themselves
    /// in a minute.
    pub async fn end_abandoned(&self, alone_for: Duration) {
        let micros = i64::try_from(alone_for.as_micros()).unwrap_or(i64::MAX);
        let find = [
            doc! { "$currentOp": { "allUsers": false, "idleSessions": true } },
            // Only of servers: another name in the URI may be another program's too.
            doc! { "$match": {
                "type": "idleSession",
                "appName": APP_NAME,
                "transaction.timeInactiveMicros": { "$gt": micros },
            } },
            doc! { "$project": { "lsid": 1 } },
        ];
        // Whoever writes waits for this.
        let admin = self.clients.writes.database("admin");
        let find = admin.aggregate(find).selection_criteria(primary());
        let ended = async {
            let found = self.collect(find.with_type::<RawDocumentBuf>()).await?;
            let id =
                |raw: &RawDocumentBuf| field(raw.get_document("lsid").ok()?, "id").and_then(any);
            let sessions: Vec<Bson> =
                found.iter().filter_map(id).map(|id| Bson::from(doc! { "id": id })).collect();
            match sessions.is_empty() {
                true => Ok(()),
                false => {
                    let kill = doc! { "killSessions": sessions };
                    self.command_on("admin", kill).await.map(drop)
                }
            }
        };
        if let Err(error) = ended.await {
            tracing::debug!(%error, "cannot end transactions that were left alone");
        }
    }
}
