//! A look at a MongoDB deployment: its indexes against the lookups of the data model, and how it is put up.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bson::{Bson, Document, doc};
use mongodb::options::Acknowledgment;

use super::db::role::{Difference, difference};
use super::db::values::number_of;
use super::db::{self, Connection, Db, MongoOptions, Unique};
use super::found::wanted;
use super::keys::all as all_keys;
use super::names::{EXECUTIONS, METRICS, Name};
use super::records::lists;
use super::shards;
use crate::clock::Clock;
use crate::store::inspect::{
    Access, Deployment, Disk, Documents, Durability, Facts, History, IndexCheck, Inspect, LOOKUPS,
    Lookup,
};
use crate::store::{Error, Result, keys};

/// How full the oplog is when it drops as much as it takes, as a part of its size.
const FULL: f64 = 0.9;

/// Odd documents that are counted, and how long that may take.
const COUNTED: u64 = 20_000;
const COUNTED_WITHIN: Duration = Duration::from_secs(8);
/// What lists of executions look for.
const INDEXED: [&str; 8] = [
    "execution_id",
    "app_id",
    "app_name",
    "sub_app_id",
    "user_id",
    "status",
    "started_at",
    "duration_ms",
];

/// A connection of its own to look at a database with.
pub struct Look {
    connection: Connection,
    clock: Arc<dyn Clock>,
}

impl Look {
    /// Connects as a server would, and makes nothing. `Error::Failed`: the URI is malformed.
    pub async fn at(options: &MongoOptions, clock: Arc<dyn Clock>) -> Result<Look> {
        // One question at a time needs one connection.
        let connection = Connection::open_one(options, options.check()?).await?;
        Ok(Look { connection, clock })
    }

    /// Options of a collection. `None`: it is not there.
    async fn options(&self, collection: Name) -> Result<Option<Document>> {
        let list = doc! { "listCollections": 1, "filter": { "name": collection } };
        let reply = self.connection.command(list).await?;
        let cursor = reply.get_document("cursor").ok();
        let first = cursor.and_then(|cursor| cursor.get_array("firstBatch").ok()?.first());
        let found = first.and_then(Bson::as_document);
        Ok(found.map(|found| found.get_document("options").cloned().unwrap_or_default()))
    }

    async fn check(&self, lookup: &Lookup, there: &[Document]) -> Result<IndexCheck> {
        let named = |index: &Document| index.get_str("name").unwrap_or_default().to_owned();
        if let Some(index) = there.iter().find(|index| serves(index, lookup)) {
            let served_by = Some(named(index));
            return Ok(IndexCheck { lookup: *lookup, served_by, advice: String::new() });
        }
        if lookup.keys == [("timestamp", 1)]
            && let Some(options) = self.options(METRICS).await?
            && options.contains_key("expireAfterSeconds")
        {
            // A time-series collection lets no index expire its points; the collection does it.
            let served_by = Some("the collection option expireAfterSeconds".to_owned());
            return Ok(IndexCheck { lookup: *lookup, served_by, advice: String::new() });
        }
        let advice = match there.iter().find(|index| begins_with(index, lookup)) {
            Some(index) => format!(
                "the index {} has these keys but is {}; drop it and start a server, which makes the right one",
                named(index),
                match lookup.unique && !index.get_bool("unique").unwrap_or(false) {
                    true => "not unique, or over more fields",
                    false => "hidden, sparse, partial, or with a collation",
                }
            ),
            None => {
                "start a server, which makes it; if one runs, its log says since its start what \
                     is in the way"
                    .to_owned()
            }
        };
        Ok(IndexCheck { lookup: *lookup, served_by: None, advice })
    }

    async fn history(&self) -> Result<History> {
        let end = |way: i32| {
            doc! { "find": "oplog.rs", "sort": { "$natural": way }, "limit": 1,
            "projection": { "ts": 1 }, "singleBatch": true }
        };
        let mut seconds = [0_i64; 2];
        for (seconds, way) in seconds.iter_mut().zip([1, -1]) {
            let reply = self.connection.command_on("local", end(way)).await?;
            let cursor = reply.get_document("cursor").map_err(Error::failed)?;
            let entry = cursor.get_array("firstBatch").map_err(Error::failed)?.first();
            let entry = entry.and_then(Bson::as_document);
            let at = entry.and_then(|entry| entry.get_timestamp("ts").ok());
            *seconds = at.map_or(0, |at| i64::from(at.time));
        }
        let stats = self.connection.command_on("local", doc! { "collStats": "oplog.rs" }).await?;
        let number = |key: &str| stats.get(key).and_then(number_of);
        let full = match (number("size"), number("maxSize")) {
            (Some(size), Some(most)) if most > 0.0 => size >= most * FULL,
            _ => false,
        };
        Ok(History { covers_ms: (seconds[1] - seconds[0]).max(0) * 1000, full })
    }

    /// What other programs stored that is left out.
    async fn documents(&self) -> Result<Documents> {
        let executions = self.connection.own(EXECUTIONS);
        let count = async |filter: Document| {
            let count = executions.count_documents(filter).limit(COUNTED).max_time(COUNTED_WITHIN);
            self.connection.call(count).await
        };
        let unreadable = count(lists::without_id()).await?;
        let lists: Vec<Document> =
            INDEXED.iter().map(|name| doc! { *name: { "$type": "array" } }).collect();
        let lists = count(doc! { "$or": lists }).await?;
        let mut doubled = Vec::new();
        for index in wanted() {
            if index.is_unique() {
                let there = db::look(&self.connection, vec![index.clone()]).await?;
                if there.unique(index.collection()) != Unique::Whole {
                    let ids = db::doubles(&self.connection, &index).await?;
                    let named = |id| format!("{} {id}", index.collection());
                    doubled.extend(ids.into_iter().map(named));
                }
            }
        }
        Ok(Documents { unreadable, lists, doubled })
    }

    /// What the one may do who is connected.
    async fn access(&self) -> Result<Access> {
        let status = doc! { "connectionStatus": 1, "showPrivileges": true };
        let status = self.connection.command(status).await?;
        let info = status.get_document("authInfo").map_err(Error::failed)?;
        let documents = |name: &str| -> Vec<Document> {
            let listed = info.get_array(name).into_iter().flatten();
            listed.filter_map(Bson::as_document).cloned().collect()
        };
        let users = documents("authenticatedUsers");
        let Some(user) = users.first() else { return Ok(Access::default()) };
        let name = |field: &str| user.get_str(field).unwrap_or_default();
        let privileges = documents("authenticatedUserPrivileges");
        let Difference { missing, excess } = difference(self.connection.name(), &privileges);
        let user = format!("{} of {}", name("user"), name("db"));
        Ok(Access { user: Some(user), missing, excess })
    }

    async fn disk(&self) -> Option<Disk> {
        let stats = self.connection.command(doc! { "dbStats": 1 }).await.ok()?;
        let number = |key: &str| stats.get(key).and_then(number_of);
        let (total, used) = (number("fsTotalSize")?, number("fsUsedSize")?);
        Some(Disk { free_bytes: (total - used).max(0.0) as u64, total_bytes: total as u64 })
    }
}

fn begins_with(index: &Document, lookup: &Lookup) -> bool {
    let wanted: Document =
        lookup.keys.iter().map(|(key, way)| ((*key).to_owned(), Bson::from(*way))).collect();
    index.get_document("key").is_ok_and(|keys| db::begins_with(keys, &wanted))
}

/// Whether an index, as listIndexes describes it, serves a lookup.
fn serves(index: &Document, lookup: &Lookup) -> bool {
    if !begins_with(index, lookup) || !db::is_plain(index) {
        return false;
    }
    let partial = index.contains_key("partialFilterExpression");
    let keys = index.get_document("key").map_or(0, Document::len);
    let unique = index.get_bool("unique").unwrap_or(false) && keys == lookup.keys.len();
    let sparse = index.get_bool("sparse").unwrap_or(false);
    (unique || !lookup.unique) && ((!partial && !sparse) || lookup.where_given)
}

#[async_trait]
impl Inspect for Look {
    async fn indexes(&self) -> Result<Vec<IndexCheck>> {
        let mut checks = Vec::with_capacity(LOOKUPS.len());
        let mut there = (String::new(), Vec::new());
        for lookup in LOOKUPS {
            if there.0 != lookup.collection {
                let found = match Name::of(lookup.collection) {
                    Some(name) => db::existing(&self.connection, name).await?,
                    None => Vec::new(),
                };
                there = (lookup.collection.to_owned(), found);
            }
            checks.push(self.check(lookup, &there.1).await?);
        }
        Ok(checks)
    }

    async fn facts(&self) -> Result<Facts> {
        let asked = self.clock.now();
        let hello = self.connection.command(doc! { "hello": 1 }).await?;
        let answered = self.clock.now();
        let build = self.connection.command(doc! { "buildInfo": 1 }).await?;
        let midway = (asked.micros + (answered.micros - asked.micros) / 2).div_euclid(1000);
        let local = hello.get_datetime("localTime").ok();
        let deployment = if hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid") {
            Deployment::Sharded
        } else {
            match hello.get_str("setName") {
                Err(_) => Deployment::Standalone,
                Ok(name) => Deployment::ReplicaSet {
                    name: name.to_owned(),
                    members: hello.get_array("hosts").map_or(1, Vec::len),
                },
            }
        };
        let history = match deployment {
            // Not everybody may read the oplog.
            Deployment::ReplicaSet { .. } => self.history().await.ok(),
            _ => None,
        };
        let durability = match self.connection.write_concern().w.clone() {
            None | Some(Acknowledgment::Majority) => {
                Durability::Safe("a write is answered when a majority has it".to_owned())
            }
            // A name stands for what the deployment says that it does.
            Some(Acknowledgment::Custom(name)) => Durability::Safe(format!("w: {name}")),
            Some(Acknowledgment::Nodes(nodes)) => {
                let members = match &deployment {
                    Deployment::ReplicaSet { members, .. } => *members,
                    _ => 1,
                };
                match nodes as usize > members / 2 {
                    true => Durability::Safe(format!("w: {nodes} of {members}")),
                    false => Durability::Weak(format!("w: {nodes} of {members}")),
                }
            }
            Some(_) => Durability::Weak("an unknown write concern".to_owned()),
        };
        let shards = match deployment {
            Deployment::Sharded => Some(shards::look(&self.connection).await),
            _ => None,
        };
        Ok(Facts {
            version: build.get_str("version").unwrap_or_default().to_owned(),
            deployment,
            durability,
            clock_ahead_ms: local.map(|local| local.timestamp_millis() - midway),
            disk: self.disk().await,
            history,
            documents: self.documents().await.ok(),
            access: self.access().await.ok(),
            shards,
            idle_keys: keys::idle(&all_keys(&self.connection).await.unwrap_or_default(), midway),
        })
    }
}

/// A look over the connection that the store has.
pub struct Inside {
    db: Arc<Db>,
    clock: Arc<dyn Clock>,
}

impl Inside {
    pub fn new(db: Arc<Db>, clock: Arc<dyn Clock>) -> Inside {
        Inside { db, clock }
    }

    async fn look(&self) -> Result<Look> {
        let connection = self.db.ready().await?.as_ref().clone();
        Ok(Look { connection, clock: Arc::clone(&self.clock) })
    }
}

#[async_trait]
impl Inspect for Inside {
    async fn indexes(&self) -> Result<Vec<IndexCheck>> {
        self.look().await?.indexes().await
    }

    async fn facts(&self) -> Result<Facts> {
        self.look().await?.facts().await
    }
}
