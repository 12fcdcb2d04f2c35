//! A database that is connected, and the only three ways to one of its collections. Each says by itself on which server
//! it reads, what a read and a write wait for, and how text is compared: neither a connection string nor a collection
//! decides that.

use std::future::IntoFuture;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bson::raw::{RawDocument, RawDocumentBuf, cstr};
use bson::{Bson, Document, Timestamp, doc, rawdoc};
use mongodb::action::{Find, Watch};
use mongodb::error::Result as DriverResult;
use mongodb::options::{
    CollectionOptions, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern,
};
use mongodb::{Client, Database};

use super::collection::{Collection, Query, Rows, simple_raw};
use super::command::Commander;
use super::failure;
use super::names::{CHUNKS, FILES, Name};
use super::options::{APP_NAME, Concerns, MongoOptions};
use super::pools::Clients;
use super::values::{any, field, integer_of};
use super::view::{View, process, silent};
use crate::detached::outside_replies;
use crate::store::{Error, Result};

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
    set: Option<String>,
    /// The process that was asked, unless they are many.
    process: Option<String>,
    version: String,
    view: Arc<View>,
}

/// The collections of the bytes of artifacts.
pub struct Bucket {
    pub files: mongodb::Collection<Document>,
    pub chunks: mongodb::Collection<RawDocumentBuf>,
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
        let mut resolved = options.resolve(patience).await?;
        if resolved.app_name.as_deref() == Some(APP_NAME) {
            resolved.app_name = Some(format!("{APP_NAME} doctor"));
        }
        let records = resolved.write_concern.clone().unwrap_or_else(WriteConcern::majority);
        let client = Client::with_options(resolved).map_err(failure::error)?;
        Ok(Connection::of(Clients::one(client), &options.database, records, patience))
    }

    fn of(clients: Clients, name: &str, records: WriteConcern, patience: Duration) -> Connection {
        let (reads, writes) = (clients.reads.database(name), clients.writes.database(name));
        let view = Arc::clone(&clients.view);
        let commander =
            Commander::new(writes.clone(), records.clone(), false, patience, Arc::clone(&view));
        Connection {
            commander: Arc::new(commander),
            concerns: Concerns::of(records, false, patience),
            clients,
            reads,
            writes,
            patience,
            replica_set: false,
            set: None,
            process: None,
            version: String::new(),
            view,
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
        self.set = hello.get_str("setName").ok().map(str::to_owned);
        let is_member = self.set.is_some();
        let is_router = hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid");
        self.process = (!is_router).then(|| process(&hello));
        self.replica_set = is_member || is_router;
        let build = self.command(doc! { "buildInfo": 1 }).await?;
        self.version = build.get_str("version").unwrap_or_default().to_owned();
        let records = self.concerns.records.clone();
        let logged = is_member;
        let commander = Commander::new(
            self.writes.clone(),
            records.clone(),
            logged,
            self.patience,
            Arc::clone(&self.view),
        );
        self.commander = Arc::new(commander);
        self.concerns = Concerns::of(records, self.replica_set, self.patience);
        Ok(self)
    }

    pub fn replica_set(&self) -> bool {
        self.replica_set
    }

    /// Whether these are routers before shards.
    pub fn is_router(&self) -> bool {
        self.replica_set && self.set.is_none()
    }

    /// What the database is called.
    pub fn name(&self) -> &str {
        self.reads.name()
    }

    /// The replica set that it is of.
    pub fn set(&self) -> Option<&str> {
        self.set.as_deref()
    }

    /// The failure of a write of which no more is known than that it failed, with what writes have met just now.
    pub fn explained(&self, error: Error) -> Error {
        self.view.explained(error)
    }

    /// The servers behind it.
    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// The process that greeted; `None`: one of many routers.
    pub(super) fn process(&self) -> Option<String> {
        self.process.clone()
    }

    /// The same for looking at servers that nobody may use before.
    pub(super) fn unguarded(&self) -> Connection {
        Connection { view: View::of(&[]), ..self.clone() }
    }

    /// Closes all connections. Calls have been ended before.
    pub(super) async fn leave(&self) {
        self.clients.leave().await;
    }

    /// Waits until a primary shows up that has not been looked at, or this connection is given up.
    pub async fn lost(&self) {
        self.view.stranger().await;
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

    /// For who speaks to the driver by itself.
    pub fn bucket(&self) -> Bucket {
        let mut options = CollectionOptions::default();
        options.selection_criteria = Some(primary());
        Bucket {
            files: self.reads.collection_with_options(&FILES, options.clone()),
            chunks: self.reads.collection_with_options(&CHUNKS, options),
        }
    }

    pub async fn shutdown(&self) {
        self.clients.shutdown().await;
    }

    /// For decisions about records: what the primary has, safe from a failover or not, over the connections of writes.
    /// Writes wait for what the connection string and the settings say.
    pub fn latest(&self, name: Name) -> Collection {
        let records = self.concerns.records.clone();
        let both = (&self.writes, &self.writes);
        Collection::open(both, name, ReadConcern::local(), records)
    }

    /// For answers: all that has been answered to its writer, and as safe from a failover as that was.
    pub fn committed(&self, name: Name) -> Collection {
        let Concerns { records, answers, .. } = self.concerns.clone();
        let both = (&self.reads, &self.writes);
        Collection::open(both, name, answers, records)
    }

    /// For what servers go by among themselves and do in the background: what the primary has, over the connections of
    /// reads, and writes that no failover takes back.
    pub fn own(&self, name: Name) -> Collection {
        let majority = self.concerns.majority.clone();
        let both = (&self.reads, &self.writes);
        Collection::open(both, name, ReadConcern::local(), majority)
    }

    /// One call of the driver, which alone would wait for ever on a connection that went silent.
    pub async fn call<T>(&self, call: impl IntoFuture<Output = DriverResult<T>>) -> Result<T> {
        self.try_call(call).await?.map_err(|error| self.view.judged(failure::error(error)))
    }

    /// The same for who judges the driver's error: `Err` is only that no answer came in time.
    pub async fn try_call<T>(
        &self,
        call: impl IntoFuture<Output = DriverResult<T>>,
    ) -> Result<DriverResult<T>> {
        let call = tokio::time::timeout(self.patience * 2, call.into_future());
        let answered = async {
            match outside_replies(call).await {
                Ok(answer) => {
                    if answer.as_ref().err().is_none_or(|error| failure::code(error).is_some()) {
                        self.view.heard();
                    }
                    Ok(answer)
                }
                Err(_) => Err(silent(&self.writes, &self.view).await),
            }
        };
        self.view.guarded(self.patience, answered).await
    }

    /// What a query finds, each document in its time.
    pub async fn rows(&self, query: impl Query) -> Result<Rows> {
        self.rows_within(query, self.patience * 2).await
    }

    /// The same of one that the database may take so long over.
    pub async fn rows_within(&self, query: impl Query, patience: Duration) -> Result<Rows> {
        let opened = self.view.guarded(self.patience, Rows::open(query, patience)).await;
        match opened {
            Ok(rows) => {
                self.view.heard();
                Ok(rows)
            }
            Err(error) if failure::is_timeout(&error) => {
                Err(silent(&self.writes, &self.view).await)
            }
            Err(error) => Err(self.view.judged(error)),
        }
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
        name: Name,
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

    /// Waits until every shard that has a part of these collections has all of this moment, safe from a failover.
    pub async fn catch_up(&self, names: &[Name], position: u64) -> Result<()> {
        let at = Timestamp { time: (position >> 32) as u32, increment: position as u32 };
        let both = (&self.reads, &self.writes);
        let majority = self.concerns.majority.clone();
        let caught_up = async {
            let mut session = self.clients.reads.start_session().causal_consistency(true).await?;
            session.advance_operation_time(at);
            for name in names {
                let all = Collection::open(both, *name, ReadConcern::majority(), majority.clone());
                // What is sorted is asked of all of them before anything is answered.
                let first = all.find_one(doc! {}).sort(doc! { "_id": 1 });
                first.projection(doc! { "_id": 1 }).session(&mut session).await?;
            }
            Ok(())
        };
        self.call(caught_up).await
    }

    /// How many documents match, by the index that is named. Cheaper than the documents, and than an aggregation.
    pub async fn count(
        &self,
        name: Name,
        filter: RawDocumentBuf,
        index: Option<&str>,
    ) -> Result<u64> {
        let mut command = rawdoc! {
            "count": name,
            "query": filter.clone(),
            "collation": simple_raw(),
            "readConcern": { "level": "local" },
        };
        if let Some(index) = index {
            command.append(cstr!("hint"), index);
        }
        if self.is_router() {
            // That command counts what a shard has given away and not yet removed, too.
            let filter = Document::try_from(filter).map_err(Error::failed)?;
            return self.call(self.latest(name).count_documents(filter)).await;
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
