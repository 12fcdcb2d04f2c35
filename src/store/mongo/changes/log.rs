//! The log: one change stream over executions, steps and artifacts. It alone says what happened and in which order;
//! records are looked up only where the stream does not carry them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bson::oid::ObjectId;
use bson::{Bson, Document, RawDocumentBuf, doc};
use mongodb::options::{Acknowledgment, WriteConcern};

use super::event::{document_id, document_id_value};
use super::tail::{Reader, Reading, Width, open_stream};
use super::token::{complete_through, cursor_of_token, position, shortened};
use crate::domain::Millis;
use crate::store::mongo::artifact_documents;
use crate::store::mongo::db::{Connection, Db, failure};
use crate::store::mongo::names::{ARTIFACTS, EXECUTIONS, NUDGES, Name, STEPS};
use crate::store::mongo::records::step::no_payloads;
use crate::store::mongo::records::{execution, step};
use crate::store::{
    ChangeLog, ChangeReader, Changed, Collection, Cursor, Error, Record, RecordKey, Result,
};

/// How long a nudge waits for the majority.
const HURRY: Duration = Duration::from_secs(1);
/// How often a stream that was refused at once is opened again.
const OPENED_AGAIN: usize = 4;
const PROMPT: Duration = Duration::from_secs(1);

/// The collections that have records.
const LOGGED: [Name; 3] = [EXECUTIONS, STEPS, ARTIFACTS];

/// The place in the log that an answer names.
fn moment(reply: &Document) -> Option<u64> {
    match reply.get("operationTime") {
        Some(Bson::Timestamp(at)) => Some(u64::from(at.time) << 32 | u64::from(at.increment)),
        _ => None,
    }
}

/// The log of changes of one database.
pub struct Log {
    db: Arc<Db>,
}

impl Log {
    pub fn new(db: Arc<Db>) -> Self {
        Log { db }
    }
}

impl Log {
    async fn open_once(
        &self,
        ready: &Arc<Connection>,
        after: Option<&Cursor>,
    ) -> Result<Box<dyn ChangeReader>> {
        let (stream, width) = open_stream(ready, after, Width::Usual).await?;
        let cursor = stream.resume_token().as_ref().and_then(cursor_of_token);
        let Some(cursor) = cursor.or_else(|| after.cloned()) else {
            // That of a database of which nothing is there yet does not.
            self.write_nudge(ready, WriteConcern::majority()).await?;
            return Err(Error::failed("the change stream names no position"));
        };
        if after.is_none() {
            // The stream begins after what the primary has, of which the last may not be safe from a failover yet,
            // and so not be read by who reads only that. Once this is, so is what came before.
            self.write_nudge(ready, WriteConcern::majority()).await?;
            if ready.is_router()
                && let Some(at) = position(&cursor)
            {
                // That says it of one shard.
                ready.catch_up(&LOGGED, at).await?;
            }
        }
        let first = Reading { connection: Arc::clone(ready), stream, width };
        Ok(Box::new(Reader::of(Arc::clone(&self.db), first, cursor)))
    }
}

#[async_trait]
impl ChangeLog for Log {
    async fn open(&self, after: Option<&Cursor>) -> Result<Box<dyn ChangeReader>> {
        let ready = self.db.ready().await?;
        if !ready.replica_set() {
            return Err(Error::NoLog);
        }
        let begun = Instant::now();
        let mut left = OPENED_AGAIN;
        loop {
            match self.open_once(&ready, after).await {
                Ok(reader) => return Ok(reader),
                Err(error @ (Error::CursorExpired | Error::BadCursor | Error::NoLog)) => {
                    return Err(error);
                }
                Err(error) if left == 0 || begun.elapsed() > PROMPT => return Err(error),
                // The driver does not ask again for a stream whose session ended under it, as that of a transaction
                // that was given up for dead does.
                Err(error) => {
                    tracing::debug!(%error, "the log is opened once more");
                    left -= 1;
                }
            }
        }
    }

    async fn position(&self) -> Result<u64> {
        let ready = self.db.ready().await?;
        if !ready.replica_set() {
            return Err(Error::NoLog);
        }
        if !ready.is_router() {
            let reply = ready.command(doc! { "ping": 1 }).await?;
            return moment(&reply).ok_or(Error::NoLog);
        }
        // A router knows how far those shards are that it has asked.
        let mut greatest = None;
        for name in LOGGED {
            let find = doc! {
                "find": name, "sort": { "_id": 1 }, "limit": 1, "projection": { "_id": 1 }, "singleBatch": true,
            };
            greatest = greatest.max(moment(&ready.command(find).await?));
        }
        greatest.ok_or(Error::NoLog)
    }

    async fn nudge(&self) -> Result<()> {
        let ready = self.db.ready().await?;
        // Readers see only what is safe from a failover, and nothing makes the database hurry to get there but a
        // writer that waits for it: without one that is the next flush of the journal, a tenth of a second away.
        let hurry = WriteConcern::builder().w(Acknowledgment::Majority).w_timeout(HURRY).build();
        self.write_nudge(&ready, hurry).await
    }

    fn position_of(&self, cursor: &Cursor) -> Option<u64> {
        position(cursor)
    }

    fn complete_through(&self, cursor: &Cursor) -> Option<u64> {
        complete_through(cursor)
    }

    fn shortened(&self, cursor: &Cursor) -> Option<Cursor> {
        shortened(cursor)
    }

    fn moment_of(&self, position: u64) -> Option<Millis> {
        // The time of the cluster: seconds, and a number within the second.
        i64::try_from(position >> 32).ok().map(|seconds| seconds * 1000)
    }

    async fn load(&self, what: &[Changed], payloads: bool) -> Result<Vec<(Changed, Record)>> {
        let ready = self.db.ready().await?;
        let mut executions = HashSet::new();
        let mut steps: HashMap<String, HashSet<i32>> = HashMap::new();
        let mut artifacts: HashSet<ObjectId> = HashSet::new();
        let mut execution_ids = HashMap::new();
        let mut step_ids = HashMap::new();
        let mut artifact_ids = HashMap::new();
        for changed in what {
            match changed {
                Changed::Record(RecordKey { execution_id, step_id, artifact_id }) => {
                    match (step_id, artifact_id) {
                        (Some(step_id), _) => {
                            steps.entry(execution_id.clone()).or_default().insert(*step_id);
                        }
                        (None, None) => {
                            executions.insert(execution_id.clone());
                        }
                        (None, Some(artifact_id)) => {
                            artifacts.extend(ObjectId::parse_str(artifact_id));
                        }
                    }
                }
                Changed::Unknown { collection, id } => {
                    let Some(value) = document_id_value(id) else { continue };
                    let ids = match collection {
                        Collection::Executions => &mut execution_ids,
                        Collection::Steps => &mut step_ids,
                        Collection::Artifacts => &mut artifact_ids,
                    };
                    ids.insert(id.clone(), value);
                }
            }
        }
        let mut execution_filters = Vec::new();
        if !executions.is_empty() {
            let ids: Vec<&String> = executions.iter().collect();
            execution_filters.push(doc! { "execution_id": { "$in": ids } });
        }
        if !execution_ids.is_empty() {
            let ids: Vec<Bson> = execution_ids.values().cloned().collect();
            execution_filters.push(doc! { "_id": { "$in": ids } });
        }
        let mut step_filters = step::alternatives(&steps, &HashMap::new());
        if !step_ids.is_empty() {
            let ids: Vec<Bson> = step_ids.values().cloned().collect();
            step_filters.push(doc! { "_id": { "$in": ids } });
        }
        let mut artifact_filters = Vec::new();
        if !artifacts.is_empty() || !artifact_ids.is_empty() {
            let ids = artifacts.iter().copied().map(Bson::ObjectId);
            let ids: Vec<Bson> = ids.chain(artifact_ids.values().cloned()).collect();
            artifact_filters.push(doc! { "_id": { "$in": ids } });
        }
        let (found_executions, found_steps, found_artifacts) = tokio::try_join!(
            find(&ready, EXECUTIONS, execution_filters, None),
            find(&ready, STEPS, step_filters, (!payloads).then(no_payloads)),
            find(&ready, ARTIFACTS, artifact_filters, None),
        )?;
        let mut loaded = Vec::new();
        for raw in found_executions {
            let Ok(execution) = execution::read(&raw) else { continue };
            if execution.deleted_at.is_some() {
                continue;
            }
            let by_key = executions.contains(&execution.execution_id);
            let key = RecordKey::execution(&execution.execution_id);
            let record = Record::Execution(Arc::new(execution));
            let id = document_id(&raw).filter(|id| execution_ids.contains_key(id));
            loaded.extend(answers(by_key.then_some(key), id, Collection::Executions, record));
        }
        for raw in found_steps {
            let Ok(step) = step::read(&raw, payloads) else { continue };
            let numbers = steps.get(&step.execution_id);
            let by_key = numbers.is_some_and(|numbers| numbers.contains(&step.step_id));
            let key = RecordKey::step(&step.execution_id, step.step_id);
            let record = Record::Step(Arc::new(step));
            let id = document_id(&raw).filter(|id| step_ids.contains_key(id));
            loaded.extend(answers(by_key.then_some(key), id, Collection::Steps, record));
        }
        for raw in found_artifacts {
            let Ok(Some(artifact)) = artifact_documents::read_alive(&raw) else { continue };
            let own_id = raw.get_object_id("_id").ok();
            let by_key = own_id.is_some_and(|id| artifacts.contains(&id));
            let key = RecordKey::artifact(&artifact.execution_id, &artifact.artifact_id);
            let record = Record::Artifact(Arc::new(artifact));
            let id = document_id(&raw).filter(|id| artifact_ids.contains_key(id));
            loaded.extend(answers(by_key.then_some(key), id, Collection::Artifacts, record));
        }
        Ok(loaded)
    }
}

/// A record may have been asked for by its key, by its `_id`, or by both.
fn answers(
    key: Option<RecordKey>,
    id: Option<Vec<u8>>,
    collection: Collection,
    record: Record,
) -> impl Iterator<Item = (Changed, Record)> {
    let by_key = key.map(Changed::Record);
    let by_id = id.map(|id| Changed::Unknown { collection, id });
    by_key.into_iter().chain(by_id).map(move |changed| (changed, record.clone()))
}

impl Log {
    async fn write_nudge(&self, ready: &Connection, concern: WriteConcern) -> Result<()> {
        if self.db.is_read_only() {
            return self.wait_for_majority(ready).await;
        }
        let nudges = ready.own(NUDGES);
        let nudge = nudges
            .update_one(doc! { "_id": "nudge" }, doc! { "$inc": { "nudges": 1_i64 } })
            .upsert(true)
            .write_concern(concern);
        match ready.try_call(nudge).await? {
            Ok(_) => Ok(()),
            // Another server made the document just then.
            Err(error) if failure::code(&error) == Some(failure::DUPLICATE_KEY) => Ok(()),
            // It is there, and the majority is not; whoever waits does so as long as it has patience.
            Err(error) if failure::code(&error) == Some(failure::CONCERN_NOT_MET) => Ok(()),
            Err(error) => Err(failure::error(error)),
        }
    }
}

impl Log {
    /// Waits until all that the primary has is safe from a failover, without writing anything.
    async fn wait_for_majority(&self, ready: &Connection) -> Result<()> {
        let reply = ready.command(doc! { "ping": 1 }).await?;
        let Some(now @ Bson::Timestamp(_)) = reply.get("operationTime") else { return Ok(()) };
        let read = doc! {
            "find": EXECUTIONS,
            "limit": 1,
            "singleBatch": true,
            "projection": { "_id": 1 },
            "readConcern": { "level": "majority", "afterClusterTime": now.clone() },
        };
        ready.command(read).await.map(drop)
    }
}

/// All documents that one of the filters finds.
async fn find(
    ready: &Connection,
    collection: Name,
    filters: Vec<Document>,
    projection: Option<Document>,
) -> Result<Vec<RawDocumentBuf>> {
    const ALTERNATIVES: usize = 100;
    let collection = ready.committed(collection);
    let mut found = Vec::new();
    for filters in filters.chunks(ALTERNATIVES) {
        let filter = match filters {
            [one] => one.clone(),
            several => doc! { "$or": several },
        };
        found.extend(ready.all(&collection, filter, projection.clone()).await?);
    }
    Ok(found)
}
