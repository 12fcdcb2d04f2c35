//! The log: one change stream over executions, steps and artifacts. It alone says what happened and in which order; records
//! are looked up only where the stream does not carry them.
//!
//! The driver's stream must not be abandoned in the middle of a step, so a task of its own drives it and hands
//! the changes over through a bounded channel.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bson::oid::ObjectId;
use bson::raw::{RawBsonRef, RawDocument};
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, RawDocumentBuf, doc, rawdoc};
use mongodb::action::Action as _;
use mongodb::change_stream::ChangeStream;
use mongodb::change_stream::event::ResumeToken;
use mongodb::options::{Acknowledgment, WriteConcern};
use tokio::sync::mpsc;

use super::apply::step_alternatives;
use super::{Inner, Ready, artifact_documents, documents, failure, no_payloads, schema};
use crate::domain::{Millis, StepStatus};
use crate::store::{
    Change, ChangeKind, ChangeLog, ChangeReader, Changed, Collection, Cursor, Error, Record,
    RecordKey, Result,
};

/// How long the database waits for a change before it answers that there is none.
const WAIT: Duration = Duration::from_millis(800);
/// How long `next` waits.
const NEXT: Duration = Duration::from_secs(1);
const _: () = assert!(
    WAIT.as_millis() < NEXT.as_millis(),
    "an idle database says where its log is before `next` gives up on it"
);
const CHANGES_AT_ONCE: usize = 500;
/// Changes read ahead of the reader.
const READ_AHEAD: usize = 256;
const PAUSE: Duration = Duration::from_millis(250);
/// How long a stream may take at most to answer, where it had to be opened again and again.
const LONGEST_SILENCE: Duration = Duration::from_secs(600);
/// How long a nudge waits for the majority.
const HURRY: Duration = Duration::from_secs(1);
/// Last byte of a token's key string, and of a cursor that has nothing but that.
const END: u8 = 4;
/// Last byte of a cursor that carries type bits as well.
const WITH_TYPE_BITS: u8 = 1;
/// First byte of a token: a timestamp follows.
const TIMESTAMP: u8 = 0x82;
/// Where a token says of what it is: after the timestamp and the version.
const TOKEN_TYPE: usize = 11;
/// There, of a moment and not of an event.
const HIGH_WATER_MARK: u8 = 0x29;

pub(super) struct Log {
    inner: Arc<Inner>,
}

impl Log {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Log { inner }
    }
}

/// A resume token as bytes that sort in log order: its key string, then what else it has.
fn cursor_of(token: &RawDocument) -> Option<Cursor> {
    let mut bytes = hex::decode(token.get_str("_data").ok()?).ok()?;
    if let Ok(Some(RawBsonRef::Binary(bits))) = token.get("_typeBits") {
        let length = u16::try_from(bits.bytes.len()).ok()?;
        bytes.extend_from_slice(bits.bytes);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.push(WITH_TYPE_BITS);
    }
    Some(Cursor(bytes))
}

fn token_of(cursor: &Cursor) -> Option<ResumeToken> {
    position(cursor)?;
    let (last, rest) = cursor.0.split_last()?;
    let token = match *last {
        WITH_TYPE_BITS => {
            let (rest, length) = rest.split_last_chunk::<2>()?;
            let start = rest.len().checked_sub(usize::from(u16::from_be_bytes(*length)))?;
            let (data, bits) = rest.split_at(start);
            let bits = Binary { subtype: BinarySubtype::Generic, bytes: bits.to_vec() };
            doc! { "_data": hex::encode_upper(data), "_typeBits": bits }
        }
        _ => doc! { "_data": hex::encode_upper(&cursor.0) },
    };
    bson::deserialize_from_document(token).ok()
}

fn position(cursor: &Cursor) -> Option<u64> {
    let (first, rest) = cursor.0.split_first()?;
    let (number, rest) = rest.split_first_chunk::<8>()?;
    let ended = matches!(rest.last(), Some(&END | &WITH_TYPE_BITS));
    (*first == TIMESTAMP && ended).then(|| u64::from_be_bytes(*number))
}

fn cursor_of_token(token: &ResumeToken) -> Option<Cursor> {
    let document = bson::serialize_to_raw_document_buf(&TokenField { token }).ok()?;
    cursor_of(document.get_document("token").ok()?)
}

#[derive(serde::Serialize)]
struct TokenField<'a> {
    token: &'a ResumeToken,
}

type Stream = ChangeStream<RawDocumentBuf>;

/// How often a stream that was refused at once is opened again.
const OPENED_AGAIN: usize = 4;
const PROMPT: Duration = Duration::from_secs(1);

/// When a stream answers that is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// With its first changes, or when there are none; and with what is wrong with the cursor.
    First,
    /// At once. The database may have to go through a lot of its log before it comes to a change that is for us.
    AtOnce,
}

async fn open_stream(inner: &Inner, ready: &Ready, after: Option<&Cursor>) -> Result<Stream> {
    match open_stream_with(inner, ready, after, Answer::First).await {
        Opened::Silent if after.is_some() => {
            open_stream_with(inner, ready, after, Answer::AtOnce).await.into()
        }
        opened => opened.into(),
    }
}

enum Opened {
    Stream(Stream),
    Failed(Error),
    Silent,
}

impl From<Opened> for Result<Stream> {
    fn from(opened: Opened) -> Self {
        match opened {
            Opened::Stream(stream) => Ok(stream),
            Opened::Failed(error) => Err(error),
            Opened::Silent => Err(failure::timeout()),
        }
    }
}

async fn open_stream_with(
    inner: &Inner,
    ready: &Ready,
    after: Option<&Cursor>,
    answer: Answer,
) -> Opened {
    let token = match after {
        None => None,
        Some(cursor) => match token_of(cursor) {
            Some(token) => Some(token),
            None => return Opened::Failed(Error::BadCursor),
        },
    };
    let pipeline = [
        doc! { "$match": {
            "ns.coll": {
                "$in": [schema::EXECUTIONS, schema::STEPS, schema::ARTIFACTS, schema::NUDGES],
            },
            "operationType": { "$in": ["insert", "update", "replace", "delete"] },
        } },
        // Payloads may be huge, and hardly anybody asks for them.
        doc! { "$project": {
            "fullDocument.input": 0,
            "fullDocument.output": 0,
            "updateDescription.updatedFields.input": 0,
            "updateDescription.updatedFields.output": 0,
        } },
    ];
    let watch = ready.database.watch().pipeline(pipeline).max_await_time(WAIT);
    // `start_after` takes every token, also one of a database that was dropped since.
    let watch = watch.optional(token, |watch, token| watch.start_after(token));
    let watch = match answer {
        Answer::First => watch,
        Answer::AtOnce => watch.batch_size(0),
    };
    match tokio::time::timeout(inner.patience * 2, watch).await {
        Ok(Ok(stream)) => Opened::Stream(stream.with_type::<RawDocumentBuf>()),
        Ok(Err(error)) => Opened::Failed(failure::stream_error(error)),
        Err(_) => Opened::Silent,
    }
}

impl Log {
    async fn open_once(
        &self,
        ready: &Arc<Ready>,
        after: Option<&Cursor>,
    ) -> Result<Box<dyn ChangeReader>> {
        let stream = open_stream(&self.inner, ready, after).await?;
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
        }
        let (sender, receiver) = mpsc::channel(READ_AHEAD);
        let inner = Arc::clone(&self.inner);
        let task = tokio::spawn(drive(inner, Arc::clone(ready), stream, cursor.clone(), sender));
        Ok(Box::new(Reader { receiver, cursor, failed: None, task }))
    }
}

#[async_trait]
impl ChangeLog for Log {
    async fn open(&self, after: Option<&Cursor>) -> Result<Box<dyn ChangeReader>> {
        let ready = self.inner.ready().await?;
        if !ready.replica_set {
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
        let ready = self.inner.ready().await?;
        if !ready.replica_set {
            return Err(Error::NoLog);
        }
        let reply = self.inner.call(ready.database.run_command(doc! { "ping": 1 })).await?;
        match reply.get("operationTime") {
            Some(Bson::Timestamp(at)) => Ok(u64::from(at.time) << 32 | u64::from(at.increment)),
            _ => Err(Error::NoLog),
        }
    }

    async fn nudge(&self) -> Result<()> {
        let ready = self.inner.ready().await?;
        // Readers see only what is safe from a failover, and nothing makes the database hurry to get there but a
        // writer that waits for it: without one that is the next flush of the journal, a tenth of a second away.
        let hurry = WriteConcern::builder().w(Acknowledgment::Majority).w_timeout(HURRY).build();
        self.write_nudge(&ready, hurry).await
    }

    fn position_of(&self, cursor: &Cursor) -> Option<u64> {
        position(cursor)
    }

    /// All inserts of one command may be one entry of the oplog, and their events have one time.
    fn complete_through(&self, cursor: &Cursor) -> Option<u64> {
        let number = position(cursor)?;
        let between_events = cursor.0.get(TOKEN_TYPE) != Some(&HIGH_WATER_MARK);
        Some(number - u64::from(between_events && number > 0))
    }

    async fn load(&self, what: &[Changed], payloads: bool) -> Result<Vec<(Changed, Record)>> {
        let ready = self.inner.ready().await?;
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
        let mut step_filters = step_alternatives(&steps, &HashMap::new());
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
            self.find(&ready.committed_executions, execution_filters, None),
            self.find(&ready.committed_steps, step_filters, (!payloads).then(no_payloads)),
            self.find(&ready.committed_artifacts, artifact_filters, None),
        )?;
        let mut loaded = Vec::new();
        for raw in found_executions {
            let Ok(execution) = documents::read_execution(&raw) else { continue };
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
            let Ok(step) = documents::read_step(&raw, payloads) else { continue };
            let numbers = steps.get(&step.execution_id);
            let by_key = numbers.is_some_and(|numbers| numbers.contains(&step.step_id));
            let key = RecordKey::step(&step.execution_id, step.step_id);
            let record = Record::Step(Arc::new(step));
            let id = document_id(&raw).filter(|id| step_ids.contains_key(id));
            loaded.extend(answers(by_key.then_some(key), id, Collection::Steps, record));
        }
        for raw in found_artifacts {
            let Ok(artifact) = artifact_documents::read(&raw) else { continue };
            if artifact_documents::deleted_at(&raw).is_some() {
                continue;
            }
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
    async fn write_nudge(&self, ready: &Ready, concern: WriteConcern) -> Result<()> {
        let nudges = ready.database.collection::<Document>(schema::NUDGES);
        let nudge = nudges
            .update_one(doc! { "_id": "nudge" }, doc! { "$inc": { "nudges": 1_i64 } })
            .upsert(true)
            .write_concern(concern);
        match self.inner.try_call(nudge).await? {
            Ok(_) => Ok(()),
            // Another server made the document just then.
            Err(error) if failure::code(&error) == Some(failure::DUPLICATE_KEY) => Ok(()),
            // It is there, and the majority is not; whoever waits does so as long as it has patience.
            Err(error) if failure::code(&error) == Some(failure::CONCERN_NOT_MET) => Ok(()),
            Err(error) => Err(failure::error(error)),
        }
    }

    /// All documents that one of the filters finds.
    async fn find(
        &self,
        collection: &mongodb::Collection<RawDocumentBuf>,
        filters: Vec<Document>,
        projection: Option<Document>,
    ) -> Result<Vec<RawDocumentBuf>> {
        const ALTERNATIVES: usize = 100;
        let mut found = Vec::new();
        for filters in filters.chunks(ALTERNATIVES) {
            let filter = match filters {
                [one] => one.clone(),
                several => doc! { "$or": several },
            };
            found.extend(self.inner.all(collection, filter, projection.clone()).await?);
        }
        Ok(found)
    }
}

/// The `_id` of a document as bytes, whatever type another program chose for it.
fn document_id(document: &RawDocument) -> Option<Vec<u8>> {
    let id = document.get("_id").ok().flatten()?;
    Some(rawdoc! { "_id": id }.into_bytes())
}

fn document_id_value(bytes: &[u8]) -> Option<Bson> {
    let document = RawDocument::from_bytes(bytes).ok()?;
    document.get("_id").ok().flatten().and_then(|id| Bson::try_from(id).ok())
}

/// What the task hands to its reader.
enum Item {
    Change(Box<Change>),
    /// Nothing to tell, but the position moved.
    Moved(Cursor),
    Failed(Error),
}

/// Reads the stream for as long as the reader lives, and opens it anew where the driver gives up.
async fn drive(
    inner: Arc<Inner>,
    ready: Arc<Ready>,
    stream: Stream,
    mut cursor: Cursor,
    sender: mpsc::Sender<Item>,
) {
    let least = WAIT + inner.patience * 2;
    let mut silence = least;
    let mut reached = cursor.clone();
    let mut stream = Some(stream);
    loop {
        let Some(open) = &mut stream else {
            let opened: Result<Stream> = match silence == least {
                true => open_stream(&inner, &ready, Some(&cursor)).await,
                // It went silent before.
                false => {
                    open_stream_with(&inner, &ready, Some(&cursor), Answer::AtOnce).await.into()
                }
            };
            match opened {
                Ok(open) => stream = Some(open),
                Err(error) => {
                    let passing = matches!(error, Error::Unavailable(_));
                    if sender.send(Item::Failed(error)).await.is_err() || !passing {
                        return;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
            continue;
        };
        let item = match tokio::time::timeout(silence, open.next_if_any()).await {
            Ok(Ok(Some(event))) => {
                let token = event.get_document("_id").ok().and_then(cursor_of);
                let Some(token) = token else { continue };
                cursor = token;
                match read_event(&event, &cursor) {
                    Some(change) => Item::Change(Box::new(change)),
                    None => Item::Moved(cursor.clone()),
                }
            }
            Ok(Ok(None)) => {
                if let Some(token) = open.resume_token().as_ref().and_then(cursor_of_token) {
                    cursor = token;
                }
                if !open.is_alive() {
                    stream = None;
                }
                Item::Moved(cursor.clone())
            }
            Ok(Err(error)) => match failure::stream_error(error) {
                Error::Unavailable(_) => {
                    stream = None;
                    continue;
                }
                error => {
                    let _ = sender.send(Item::Failed(error)).await;
                    return;
                }
            },
            // The connection went silent, or the database goes through much that is not for us before it answers.
            // Dropping the stream is the only safe thing to do with it now, and to wait longer for the next one.
            Err(_) => {
                silence = (silence * 2).min(LONGEST_SILENCE.max(least));
                tracing::info!(?silence, "the log has not answered, and is opened anew");
                stream = None;
                continue;
            }
        };
        // A stream that was just opened says that there is nothing before it has looked.
        if cursor != reached {
            silence = least;
            reached.clone_from(&cursor);
        }
        if sender.send(item).await.is_err() {
            return;
        }
    }
}

struct Reader {
    receiver: mpsc::Receiver<Item>,
    cursor: Cursor,
    /// A failure that came after changes which had to be told first.
    failed: Option<Error>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[async_trait]
impl ChangeReader for Reader {
    async fn next(&mut self) -> Result<Vec<Change>> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut changes = Vec::new();
        let mut item = match tokio::time::timeout(NEXT, self.receiver.recv()).await {
            Err(_) => return Ok(changes),
            Ok(None) => return Err(failure::away()),
            Ok(Some(item)) => Some(item),
        };
        while let Some(now) = item {
            match now {
                Item::Change(change) => {
                    self.cursor = change.cursor.clone();
                    changes.push(*change);
                }
                Item::Moved(cursor) => self.cursor = cursor,
                Item::Failed(error) if changes.is_empty() => return Err(error),
                Item::Failed(error) => {
                    self.failed = Some(error);
                    break;
                }
            }
            if changes.len() == CHANGES_AT_ONCE {
                break;
            }
            item = self.receiver.try_recv().ok();
        }
        Ok(changes)
    }

    fn cursor(&self) -> Cursor {
        self.cursor.clone()
    }
}

/// `execution_id/step_id/revision`, of an artifact `execution_id//artifact_id`; an execution id may itself have
/// slashes.
fn parse_last_change(collection: Collection, text: &str) -> Option<(RecordKey, i64)> {
    if collection == Collection::Artifacts {
        let (execution_id, artifact_id) = artifact_documents::parse_last_change(text)?;
        return Some((RecordKey::artifact(execution_id, artifact_id), 0));
    }
    let mut parts = text.rsplitn(3, '/');
    let revision = parts.next()?.parse().ok()?;
    let step_id = parts.next()?;
    let execution_id = parts.next()?;
    let key = match step_id {
        "" => RecordKey::execution(execution_id),
        step_id => RecordKey::step(execution_id, step_id.parse().ok()?),
    };
    Some((key, revision))
}

fn touches(name: &str, field: &str) -> bool {
    name.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn moment(event: &RawDocument) -> Millis {
    match (event.get("wallTime"), event.get("clusterTime")) {
        (Ok(Some(RawBsonRef::DateTime(at))), _) => at.timestamp_millis(),
        (_, Ok(Some(RawBsonRef::Timestamp(at)))) => i64::from(at.time) * 1000,
        _ => 0,
    }
}

/// What a change event means; `None` where it is no change of a record.
fn read_event(event: &RawDocument, cursor: &Cursor) -> Option<Change> {
    let collection = match event.get_document("ns").ok()?.get_str("coll").ok()? {
        schema::STEPS => Collection::Steps,
        schema::ARTIFACTS => Collection::Artifacts,
        schema::NUDGES => return None,
        _ => Collection::Executions,
    };
    let id = event.get_document("documentKey").ok().and_then(document_id);
    let mut change = Change {
        cursor: cursor.clone(),
        at: moment(event),
        what: Changed::Unknown { collection, id: id.clone().unwrap_or_default() },
        kind: ChangeKind::Updated,
        revision: None,
        status_changed: true,
        metadata_changed: true,
        failed: None,
        body: None,
        document_id: id,
    };
    match event.get_str("operationType").ok()? {
        operation @ ("insert" | "replace") => {
            let document = event.get_document("fullDocument").ok()?;
            let (record, deleted) = match collection {
                Collection::Steps => {
                    (Record::Step(Arc::new(documents::read_step(document, false).ok()?)), false)
                }
                Collection::Executions => {
                    let execution = documents::read_execution(document).ok()?;
                    let deleted = execution.deleted_at.is_some();
                    (Record::Execution(Arc::new(execution)), deleted)
                }
                Collection::Artifacts => {
                    let deleted = artifact_documents::deleted_at(document).is_some();
                    (Record::Artifact(Arc::new(artifact_documents::read(document).ok()?)), deleted)
                }
            };
            if deleted {
                return None;
            }
            change.what = Changed::Record(record.key());
            if let Record::Step(step) = &record {
                change.failed = Some(step.status == Some(StepStatus::Failed));
            }
            if operation == "insert" {
                change.kind = ChangeKind::Created;
                // We never replace, so only an insert can be ours.
                change.revision = Some(record.revision()).filter(|revision| *revision > 0);
            }
            change.body = Some(record);
        }
        "update" => {
            let description = event.get_document("updateDescription").ok()?;
            let updated = description.get_document("updatedFields").ok()?;
            let removed = description.get_array("removedFields").ok();
            let removed = removed.into_iter().flatten().flatten().filter_map(|name| name.as_str());
            let mut names: Vec<&str> = removed.collect();
            let mut last_change = None;
            let mut deleted = false;
            let mut status = None;
            for element in updated {
                let (name, value) = element.ok()?;
                match name.as_str() {
                    "last_change" => {
                        let parse = |text: &str| parse_last_change(collection, text);
                        last_change = value.as_str().and_then(parse);
                    }
                    "deleted_at" => deleted = true,
                    "status" => status = value.as_str(),
                    _ => {}
                }
                names.push(name.as_str());
            }
            change.failed = match status {
                // The words of the error may be others now.
                None if names.iter().any(|name| touches(name, "error")) => None,
                status => Some(status == Some(StepStatus::Failed.as_str())),
            };
            change.status_changed = names.iter().any(|name| touches(name, "status"));
            change.metadata_changed = names.iter().any(|name| touches(name, "metadata"));
            match last_change {
                Some((key, revision)) => {
                    change.what = Changed::Record(key);
                    change.revision = Some(revision);
                    if deleted {
                        change.kind = ChangeKind::Deleted;
                    }
                }
                // Stored, and no change: a heartbeat, or that retention was there.
                None if names == ["last_heartbeat_at"] || names == ["trims"] => return None,
                None => {}
            }
        }
        "delete" => change.kind = ChangeKind::Deleted,
        _ => return None,
    }
    Some(change)
}
