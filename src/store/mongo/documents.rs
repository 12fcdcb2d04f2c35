//! Records as MongoDB documents and back. Field names and types are shared with other programs, so writing is
//! exact and reading is tolerant. Knows nothing of connections and commands.

use bson::oid::ObjectId;
use bson::raw::{BindRawBsonRef, CStr, RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::{Bson, DateTime, Document, RawArrayBuf, rawdoc};

use super::cache::Birth;
use crate::domain::{
    Attempt, Digests, Execution, ExecutionStatus, Millis, Payload, RunError, Step, StepStatus,
    value,
};
use crate::store::{Error, Result};

/// A document as it goes out.
pub(super) fn raw(document: &Document) -> Result<RawDocumentBuf> {
    RawDocumentBuf::try_from(document).map_err(Error::failed)
}

pub(super) fn date(at: Millis) -> DateTime {
    DateTime::from_millis(at)
}

/// A field that is always there: null where there is no value.
pub(super) fn nullable(
    to: &mut RawDocumentBuf,
    key: &'static CStr,
    value: Option<impl BindRawBsonRef>,
) {
    match value {
        Some(value) => to.append(key, value),
        None => to.append(key, RawBsonRef::Null),
    }
}

/// A field that is absent where there is no value.
pub(super) fn present(
    to: &mut RawDocumentBuf,
    key: &'static CStr,
    value: Option<impl BindRawBsonRef>,
) {
    if let Some(value) = value {
        to.append(key, value);
    }
}

fn append_value(to: &mut RawDocumentBuf, key: &'static CStr, value: &Bson) -> Result<()> {
    match value {
        Bson::Null => to.append(key, RawBsonRef::Null),
        Bson::String(text) => to.append(key, text.as_str()),
        Bson::Document(document) => to.append(key, raw(document)?),
        other => to.append(key, bson::RawBson::try_from(other.clone()).map_err(Error::failed)?),
    }
    Ok(())
}

/// What of an error does not fit the seed field `error`.
fn error_info(error: Option<&RunError>) -> Result<Option<RawDocumentBuf>> {
    let Some(error) = error else { return Ok(None) };
    if error.code.is_empty() && error.stack_trace.is_empty() && error.details.is_empty() {
        return Ok(None);
    }
    let mut info = RawDocumentBuf::new();
    info.append(cstr!("code"), error.code.as_str());
    info.append(cstr!("stack_trace"), error.stack_trace.as_str());
    info.append(cstr!("details"), raw(&error.details)?);
    Ok(Some(info))
}

fn message(error: Option<&RunError>) -> Option<&str> {
    error.map(|error| error.message.as_str())
}

fn digests(digests: &Digests) -> Option<RawDocumentBuf> {
    if *digests == Digests::default() {
        return None;
    }
    let mut document = RawDocumentBuf::new();
    present(&mut document, cstr!("create"), digests.create.as_deref());
    present(&mut document, cstr!("start"), digests.start.as_deref());
    present(&mut document, cstr!("finish"), digests.finish.as_deref());
    Some(document)
}

fn integers(values: &[i32]) -> RawArrayBuf {
    values.iter().copied().collect()
}

fn attempts(attempts: &[Attempt]) -> Result<RawArrayBuf> {
    let mut array = RawArrayBuf::new();
    for attempt in attempts {
        let mut document = RawDocumentBuf::new();
        nullable(&mut document, cstr!("started_at"), attempt.started_at.map(date));
        nullable(&mut document, cstr!("completed_at"), attempt.completed_at.map(date));
        nullable(&mut document, cstr!("duration_ms"), attempt.duration_ms);
        nullable(&mut document, cstr!("error"), message(attempt.error.as_ref()));
        present(&mut document, cstr!("error_info"), error_info(attempt.error.as_ref())?);
        array.push(document);
    }
    Ok(array)
}

/// A new execution.
pub(super) fn insert_execution(record: &Execution) -> Result<RawDocumentBuf> {
    let mut to = RawDocumentBuf::new();
    to.append(cstr!("_id"), ObjectId::new());
    to.append(cstr!("execution_id"), record.execution_id.as_str());
    nullable(&mut to, cstr!("app_id"), record.app_id);
    to.append(cstr!("app_name"), record.app_name.as_str());
    nullable(&mut to, cstr!("sub_app_id"), record.sub_app_id);
    nullable(&mut to, cstr!("sub_app_name"), record.sub_app_name.as_deref());
    nullable(&mut to, cstr!("user_id"), record.user_id.as_deref());
    nullable(&mut to, cstr!("status"), record.status.map(ExecutionStatus::as_str));
    nullable(&mut to, cstr!("started_at"), record.started_at.map(date));
    nullable(&mut to, cstr!("completed_at"), record.completed_at.map(date));
    nullable(&mut to, cstr!("duration_ms"), record.duration_ms);
    nullable(&mut to, cstr!("error"), message(record.error.as_ref()));
    to.append(cstr!("metadata"), raw(&record.metadata)?);
    nullable(&mut to, cstr!("created_at"), record.created_at.map(date));
    nullable(&mut to, cstr!("updated_at"), record.updated_at.map(date));
    to.append(cstr!("revision"), record.revision);
    present(&mut to, cstr!("error_info"), error_info(record.error.as_ref())?);
    present(&mut to, cstr!("heartbeat_timeout_ms"), record.heartbeat_timeout_ms);
    present(&mut to, cstr!("last_heartbeat_at"), record.last_heartbeat_at.map(date));
    present(&mut to, cstr!("cancel_requested_at"), record.cancel_requested_at.map(date));
    present(&mut to, cstr!("cancel_reason"), record.cancel_reason.as_deref());
    present(&mut to, cstr!("parent_execution_id"), record.parent_execution_id.as_deref());
    present(&mut to, cstr!("pinned"), record.pinned);
    present(&mut to, cstr!("configuration_version"), record.configuration_version.as_deref());
    present(&mut to, cstr!("update_sequence"), record.update_sequence);
    present(&mut to, cstr!("digests"), digests(&record.digests));
    to.append(cstr!("last_change"), record.last_change().as_str());
    Ok(to)
}

/// A new step.
pub(super) fn insert_step(record: &Step) -> Result<RawDocumentBuf> {
    let mut to = RawDocumentBuf::new();
    to.append(cstr!("_id"), ObjectId::new());
    to.append(cstr!("execution_id"), record.execution_id.as_str());
    to.append(cstr!("step_id"), record.step_id);
    present(&mut to, cstr!("step_key"), record.step_key.as_deref());
    to.append(cstr!("step_name"), record.step_name.as_str());
    nullable(&mut to, cstr!("step_version"), record.step_version.as_deref());
    nullable(&mut to, cstr!("status"), record.status.map(StepStatus::as_str));
    nullable(&mut to, cstr!("started_at"), record.started_at.map(date));
    nullable(&mut to, cstr!("completed_at"), record.completed_at.map(date));
    nullable(&mut to, cstr!("duration_ms"), record.duration_ms);
    match record.input.value() {
        None | Some(Bson::Null) => to.append(cstr!("input"), RawDocumentBuf::new()),
        Some(input) => append_value(&mut to, cstr!("input"), input)?,
    }
    append_value(&mut to, cstr!("output"), record.output.value().unwrap_or(&Bson::Null))?;
    nullable(&mut to, cstr!("error"), message(record.error.as_ref()));
    to.append(cstr!("retry_count"), record.retry_count);
    to.append(cstr!("metadata"), raw(&record.metadata)?);
    to.append(cstr!("revision"), record.revision);
    nullable(&mut to, cstr!("created_at"), record.created_at.map(date));
    nullable(&mut to, cstr!("updated_at"), record.updated_at.map(date));
    present(&mut to, cstr!("error_info"), error_info(record.error.as_ref())?);
    to.append(cstr!("depends_on"), integers(&record.depends_on));
    present(&mut to, cstr!("parent_step_id"), record.parent_step_id);
    present(&mut to, cstr!("progress"), record.progress);
    present(&mut to, cstr!("progress_message"), record.progress_message.as_deref());
    present(&mut to, cstr!("update_sequence"), record.update_sequence);
    to.append(cstr!("attempts"), attempts(&record.attempts)?);
    present(&mut to, cstr!("digests"), digests(&record.digests));
    to.append(cstr!("last_change"), record.last_change().as_str());
    Ok(to)
}

/// The fields that differ between two states of a record, as absolute values, and what makes the update known
/// again.
struct Difference {
    set: RawDocumentBuf,
    unset: RawDocumentBuf,
    made: Option<[i64; 2]>,
}

impl Difference {
    fn new() -> Self {
        Difference { set: RawDocumentBuf::new(), unset: RawDocumentBuf::new(), made: None }
    }

    fn nullable(&mut self, key: &'static CStr, differs: bool, value: Option<impl BindRawBsonRef>) {
        if differs {
            nullable(&mut self.set, key, value);
        }
    }

    fn present(&mut self, key: &'static CStr, differs: bool, value: Option<impl BindRawBsonRef>) {
        match value {
            _ if !differs => {}
            Some(value) => self.set.append(key, value),
            None => self.unset.append(key, true),
        }
    }

    fn error(&mut self, before: Option<&RunError>, after: Option<&RunError>) -> Result<()> {
        if before != after {
            nullable(&mut self.set, cstr!("error"), message(after));
            let (old, new) = (error_info(before)?, error_info(after)?);
            self.present(cstr!("error_info"), old != new, new);
        }
        Ok(())
    }

    fn digests(&mut self, before: &Digests, after: &Digests) {
        let mut differs = |key, before: &Option<String>, after: &Option<String>| {
            self.present(key, before != after, after.as_deref());
        };
        differs(cstr!("digests.create"), &before.create, &after.create);
        differs(cstr!("digests.start"), &before.start, &after.start);
        differs(cstr!("digests.finish"), &before.finish, &after.finish);
    }

    /// The revision that this update makes, with its mark.
    fn made(&mut self, revision: i64, mark: i64) {
        self.made = Some([revision, mark]);
    }

    fn is_empty(&self) -> bool {
        self.set.as_bytes().len() <= 5 && self.unset.as_bytes().len() <= 5
    }

    /// The update statement for the record that matches `query`.
    fn statement(mut self, query: RawDocumentBuf, execution_id: &str) -> RawDocumentBuf {
        if self.is_empty() {
            // Nothing to store: the guard alone is checked. The query matched this very value.
            self.set.append(cstr!("execution_id"), execution_id);
        }
        let mut update = rawdoc! { "$set": self.set };
        if self.unset.as_bytes().len() > 5 {
            update.append(cstr!("$unset"), self.unset);
        }
        if let Some(made) = self.made {
            let each: RawArrayBuf = made.into_iter().collect();
            let push = rawdoc! { "$each": each, "$slice": -(2 * LATEST_WRITES as i32) };
            update.append(cstr!("$push"), rawdoc! { WRITES: push });
        }
        rawdoc! { "q": query, "u": update }
    }
}

/// Guard on a date: absent, null and foreign types all read as `None`.
fn guard_date(query: &mut RawDocumentBuf, key: &'static CStr, at: Option<Millis>) {
    match at {
        Some(at) => query.append(key, date(at)),
        None => query.append(key, rawdoc! { "$not": { "$type": "date" } }),
    }
}

pub(super) fn guard_revision(query: &mut RawDocumentBuf, revision: i64) {
    match revision {
        0 => query.append(cstr!("revision"), rawdoc! { "$in": [0_i64, null] }),
        revision => query.append(cstr!("revision"), revision),
    }
}

fn guard_status(query: &mut RawDocumentBuf, status: Option<&'static str>, known: &[&'static str]) {
    match status {
        Some(status) => query.append(cstr!("status"), status),
        None => {
            let known: RawArrayBuf = known.iter().copied().collect();
            query.append(cstr!("status"), rawdoc! { "$nin": known });
        }
    }
}

/// `$eq` takes the value literally, whatever its keys are called.
fn guard_document(
    query: &mut RawDocumentBuf,
    key: &'static CStr,
    document: &Document,
) -> Result<()> {
    if document.is_empty() {
        query.append(key, rawdoc! { "$in": [null, {}] });
    } else {
        query.append(key, rawdoc! { "$eq": raw(document)? });
    }
    Ok(())
}

/// Metadata up to this size is guarded although the update does not touch it.
const METADATA_GUARDED_BYTES: usize = 16 * 1024;
/// Ids in `depends_on` up to this number are guarded one by one.
const DEPENDS_ON_GUARDED: usize = 64;

/// How much of a document an update guards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guard {
    /// What the decision was made on. Another program may have changed other fields meanwhile, so the document
    /// is not known in whole after the update.
    Decision,
    /// Everything that was read. The document is what `after` says, in whole, if the update matches; it never
    /// does where another program stored a type that reads as something else.
    Whole,
}

/// An update, and whether it matches only if the document is known in whole afterwards.
pub(super) struct Update {
    pub(super) statement: RawDocumentBuf,
    pub(super) exact: bool,
}

/// Whether a step has nothing but what a size and a few values tell of its document.
fn is_plain(step: &Step) -> bool {
    step.error.is_none()
        && step.attempts.is_empty()
        && step.completed_at.is_none()
        && step.depends_on.len() <= DEPENDS_ON_GUARDED
        && value::size_of_document(&step.metadata) <= METADATA_GUARDED_BYTES
}

/// Matches the document of a step as this server has inserted it. A third of the predicates of `guarded_step` and
/// three quarters of its time: the size stands for all fields without a value.
fn born_step(step: &Step, birth: Birth) -> Result<RawDocumentBuf> {
    let mut query = rawdoc! { "_id": birth.id };
    query.append(cstr!("revision"), step.revision);
    present(&mut query, cstr!("status"), step.status.map(StepStatus::as_str));
    query.append(cstr!("step_name"), step.step_name.as_str());
    present(&mut query, cstr!("step_key"), step.step_key.as_deref());
    present(&mut query, cstr!("step_version"), step.step_version.as_deref());
    present(&mut query, cstr!("started_at"), step.started_at.map(date));
    present(&mut query, cstr!("duration_ms"), step.duration_ms);
    present(&mut query, cstr!("created_at"), step.created_at.map(date));
    present(&mut query, cstr!("updated_at"), step.updated_at.map(date));
    query.append(cstr!("retry_count"), step.retry_count);
    if !step.metadata.is_empty() {
        query.append(cstr!("metadata"), rawdoc! { "$eq": raw(&step.metadata)? });
    }
    if !step.depends_on.is_empty() {
        query.append(cstr!("depends_on"), integers(&step.depends_on));
    }
    present(&mut query, cstr!("parent_step_id"), step.parent_step_id);
    present(&mut query, cstr!("progress"), step.progress);
    present(&mut query, cstr!("progress_message"), step.progress_message.as_deref());
    present(&mut query, cstr!("update_sequence"), step.update_sequence);
    let size = rawdoc! { "$bsonSize": "$$ROOT" };
    query.append(cstr!("$expr"), rawdoc! { "$eq": [size, birth.bytes] });
    Ok(query)
}

fn guarded_step(before: &Step, after: &Step, guard: Guard) -> Result<(RawDocumentBuf, bool)> {
    let mut exact = guard == Guard::Whole;
    let mut query = rawdoc! {
        "execution_id": before.execution_id.as_str(),
        "step_id": before.step_id,
    };
    guard_revision(&mut query, before.revision);
    guard_status(
        &mut query,
        before.status.map(StepStatus::as_str),
        &StepStatus::ALL.map(StepStatus::as_str),
    );
    guard_date(&mut query, cstr!("started_at"), before.started_at);
    guard_date(&mut query, cstr!("updated_at"), before.updated_at);
    if before.metadata != after.metadata {
        guard_document(&mut query, cstr!("metadata"), &before.metadata)?;
    }
    if guard == Guard::Whole {
        if before.metadata == after.metadata {
            exact = guard_metadata(&mut query, &before.metadata)?;
        }
        let mut rest = Rest(&mut query);
        rest.text(cstr!("step_key"), before.step_key.as_ref(), after.step_key.as_ref());
        rest.text(cstr!("step_name"), Some(&before.step_name), Some(&after.step_name));
        rest.text(cstr!("step_version"), before.step_version.as_ref(), after.step_version.as_ref());
        rest.date(cstr!("completed_at"), before.completed_at, after.completed_at);
        rest.value(cstr!("duration_ms"), before.duration_ms, after.duration_ms);
        rest.error(before.error.as_ref(), after.error.as_ref())?;
        rest.date(cstr!("created_at"), before.created_at, after.created_at);
        rest.integers(cstr!("depends_on"), &before.depends_on, &after.depends_on);
        rest.value(cstr!("parent_step_id"), before.parent_step_id, after.parent_step_id);
        rest.value(cstr!("progress"), before.progress, after.progress);
        rest.text(
            cstr!("progress_message"),
            before.progress_message.as_ref(),
            after.progress_message.as_ref(),
        );
        rest.value(cstr!("update_sequence"), before.update_sequence, after.update_sequence);
    }
    if guard == Guard::Whole
        || before.retry_count != after.retry_count
        || before.attempts != after.attempts
    {
        match before.retry_count {
            0 => query.append(cstr!("retry_count"), rawdoc! { "$in": [0, null] }),
            count => query.append(cstr!("retry_count"), count),
        }
        match i32::try_from(before.attempts.len()) {
            Ok(0) | Err(_) => {
                query.append(cstr!("attempts"), rawdoc! { "$in": [null, []] });
            }
            Ok(count) => query.append(cstr!("attempts"), rawdoc! { "$size": count }),
        }
    }
    if before.output != after.output
        && let (Payload::Value(Bson::Document(read)), Payload::Value(Bson::Document(_))) =
            (&before.output, &after.output)
    {
        // Merged into what was read.
        guard_document(&mut query, cstr!("output"), read)?;
    }
    Ok((query, exact))
}

/// Where the latest updates of a document are told: revision and mark of each, the oldest first. Two servers may
/// write the very same record in the same microsecond, and only one of them has changed it.
const WRITES: &CStr = cstr!("digests.writes");
const LATEST_WRITES: usize = 4;

/// The latest updates of a document by servers.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Writes(Vec<(i64, i64)>);

impl Writes {
    pub(super) fn of(raw: &RawDocument) -> Writes {
        let listed = raw.get_document("digests").and_then(|digests| digests.get_array("writes"));
        let Ok(listed) = listed else { return Writes::default() };
        let numbers: Vec<i64> = listed.into_iter().flatten().filter_map(integer).collect();
        Writes(numbers.as_chunks().0.iter().map(|[revision, mark]| (*revision, *mark)).collect())
    }

    /// Whether an update from one revision to another has been applied to the document, whose revision is `stored`
    /// now. `None`: it cannot be told.
    pub(super) fn tell_of(&self, before: i64, after: i64, mark: i64, stored: i64) -> Option<bool> {
        if self.0.iter().any(|(_, other)| *other == mark) {
            return Some(true);
        }
        if stored == before {
            return Some(false);
        }
        // Somebody changed it without telling, and may have dropped what was told before.
        if self.0.last().is_none_or(|(latest, _)| *latest != stored) {
            return None;
        }
        // Each update makes a greater revision than the one before.
        let reaches_back = self.0.first().is_some_and(|(oldest, _)| *oldest <= after);
        (self.0.len() < LATEST_WRITES || reaches_back).then_some(false)
    }
}

/// Guards on the fields that an update leaves alone: those that it sets are known afterwards anyway. Plain
/// equality, which null has with absent too; a foreign type that reads as none is equal to nothing.
struct Rest<'a>(&'a mut RawDocumentBuf);

impl Rest<'_> {
    fn value<T: BindRawBsonRef + PartialEq>(
        &mut self,
        key: &'static CStr,
        before: Option<T>,
        after: Option<T>,
    ) {
        if before == after {
            nullable(self.0, key, before);
        }
    }

    fn text(&mut self, key: &'static CStr, before: Option<&String>, after: Option<&String>) {
        if before == after {
            nullable(self.0, key, before.map(String::as_str));
        }
    }

    fn date(&mut self, key: &'static CStr, before: Option<Millis>, after: Option<Millis>) {
        if before == after {
            nullable(self.0, key, before.map(date));
        }
    }

    fn error(&mut self, before: Option<&RunError>, after: Option<&RunError>) -> Result<()> {
        if before == after {
            nullable(self.0, cstr!("error"), message(before));
            match error_info(before)? {
                Some(info) => self.0.append(cstr!("error_info"), rawdoc! { "$eq": info }),
                None => self.0.append(cstr!("error_info"), RawBsonRef::Null),
            }
        }
        Ok(())
    }

    fn integers(&mut self, key: &'static CStr, before: &[i32], after: &[i32]) {
        if before != after {
            return;
        }
        match (before.len(), i32::try_from(before.len())) {
            (0, _) => self.0.append(key, rawdoc! { "$in": [null, []] }),
            (count, Ok(size)) if count > DEPENDS_ON_GUARDED => {
                self.0.append(key, rawdoc! { "$size": size });
            }
            _ => self.0.append(key, integers(before)),
        }
    }
}

/// Guards metadata that the update leaves alone. False: it is too large for that.
fn guard_metadata(query: &mut RawDocumentBuf, metadata: &Document) -> Result<bool> {
    if value::size_of_document(metadata) > METADATA_GUARDED_BYTES {
        return Ok(false);
    }
    guard_document(query, cstr!("metadata"), metadata)?;
    Ok(true)
}

/// An update of an execution from one state to another, which changes nothing unless the document still is what
/// the decision was made on. Another program leaves `revision` alone, so everything that was read is guarded.
pub(super) fn update_execution(
    before: &Execution,
    after: &Execution,
    guard: Guard,
    mark: i64,
) -> Result<Update> {
    let mut query = rawdoc! { "execution_id": before.execution_id.as_str() };
    let mut exact = guard == Guard::Whole;
    guard_revision(&mut query, before.revision);
    guard_status(
        &mut query,
        before.status.map(ExecutionStatus::as_str),
        &ExecutionStatus::ALL.map(ExecutionStatus::as_str),
    );
    guard_date(&mut query, cstr!("started_at"), before.started_at);
    guard_date(&mut query, cstr!("updated_at"), before.updated_at);
    if before.metadata != after.metadata {
        guard_document(&mut query, cstr!("metadata"), &before.metadata)?;
    }
    if before.last_heartbeat_at != after.last_heartbeat_at
        || (after.ended_for_silence() && !before.ended_for_silence())
    {
        guard_date(&mut query, cstr!("last_heartbeat_at"), before.last_heartbeat_at);
    }
    if guard == Guard::Whole {
        if before.metadata == after.metadata {
            exact = guard_metadata(&mut query, &before.metadata)?;
        }
        // A heartbeat is no change: that another server stored one makes nobody decide again.
        let mut rest = Rest(&mut query);
        rest.value(cstr!("app_id"), before.app_id, after.app_id);
        rest.text(cstr!("app_name"), Some(&before.app_name), Some(&after.app_name));
        rest.value(cstr!("sub_app_id"), before.sub_app_id, after.sub_app_id);
        rest.text(cstr!("sub_app_name"), before.sub_app_name.as_ref(), after.sub_app_name.as_ref());
        rest.text(cstr!("user_id"), before.user_id.as_ref(), after.user_id.as_ref());
        rest.date(cstr!("completed_at"), before.completed_at, after.completed_at);
        rest.value(cstr!("duration_ms"), before.duration_ms, after.duration_ms);
        rest.error(before.error.as_ref(), after.error.as_ref())?;
        rest.date(cstr!("created_at"), before.created_at, after.created_at);
        rest.value(
            cstr!("heartbeat_timeout_ms"),
            before.heartbeat_timeout_ms,
            after.heartbeat_timeout_ms,
        );
        rest.date(
            cstr!("cancel_requested_at"),
            before.cancel_requested_at,
            after.cancel_requested_at,
        );
        rest.text(
            cstr!("cancel_reason"),
            before.cancel_reason.as_ref(),
            after.cancel_reason.as_ref(),
        );
        rest.text(
            cstr!("parent_execution_id"),
            before.parent_execution_id.as_ref(),
            after.parent_execution_id.as_ref(),
        );
        rest.value(cstr!("pinned"), before.pinned, after.pinned);
        rest.text(
            cstr!("configuration_version"),
            before.configuration_version.as_ref(),
            after.configuration_version.as_ref(),
        );
        rest.value(cstr!("update_sequence"), before.update_sequence, after.update_sequence);
    }

    let mut to = Difference::new();
    let status = after.status.map(ExecutionStatus::as_str);
    to.nullable(cstr!("status"), before.status != after.status, status);
    to.nullable(
        cstr!("completed_at"),
        before.completed_at != after.completed_at,
        after.completed_at.map(date),
    );
    to.nullable(cstr!("duration_ms"), before.duration_ms != after.duration_ms, after.duration_ms);
    to.error(before.error.as_ref(), after.error.as_ref())?;
    if before.metadata != after.metadata {
        to.set.append(cstr!("metadata"), raw(&after.metadata)?);
    }
    to.nullable(
        cstr!("updated_at"),
        before.updated_at != after.updated_at,
        after.updated_at.map(date),
    );
    to.present(
        cstr!("last_heartbeat_at"),
        before.last_heartbeat_at != after.last_heartbeat_at,
        after.last_heartbeat_at.map(date),
    );
    to.present(
        cstr!("cancel_requested_at"),
        before.cancel_requested_at != after.cancel_requested_at,
        after.cancel_requested_at.map(date),
    );
    to.present(
        cstr!("cancel_reason"),
        before.cancel_reason != after.cancel_reason,
        after.cancel_reason.as_deref(),
    );
    to.present(cstr!("pinned"), before.pinned != after.pinned, after.pinned);
    to.present(
        cstr!("update_sequence"),
        before.update_sequence != after.update_sequence,
        after.update_sequence,
    );
    to.present(
        cstr!("deleted_at"),
        before.deleted_at != after.deleted_at,
        after.deleted_at.map(date),
    );
    if before.revision != after.revision {
        to.set.append(cstr!("revision"), after.revision);
        to.set.append(cstr!("last_change"), after.last_change().as_str());
        to.digests(&before.digests, &after.digests);
        to.made(after.revision, mark);
    }
    Ok(Update { statement: to.statement(query, &before.execution_id), exact })
}

/// The same for a step.
pub(super) fn update_step(
    before: &Step,
    after: &Step,
    guard: Guard,
    birth: Option<Birth>,
    mark: i64,
) -> Result<Update> {
    let merged = before.output != after.output
        && matches!(before.output.value(), Some(Bson::Document(_)))
        && matches!(after.output.value(), Some(Bson::Document(_)));
    let plain = guard == Guard::Whole && is_plain(before) && !merged;
    let (query, exact) = match birth.filter(|_| plain) {
        Some(birth) => (born_step(before, birth)?, true),
        None => guarded_step(before, after, guard)?,
    };
    let mut to = Difference::new();
    to.present(cstr!("step_key"), before.step_key != after.step_key, after.step_key.as_deref());
    to.nullable(
        cstr!("step_version"),
        before.step_version != after.step_version,
        after.step_version.as_deref(),
    );
    let status = after.status.map(StepStatus::as_str);
    to.nullable(cstr!("status"), before.status != after.status, status);
    to.nullable(
        cstr!("started_at"),
        before.started_at != after.started_at,
        after.started_at.map(date),
    );
    to.nullable(
        cstr!("completed_at"),
        before.completed_at != after.completed_at,
        after.completed_at.map(date),
    );
    to.nullable(cstr!("duration_ms"), before.duration_ms != after.duration_ms, after.duration_ms);
    if let Some(input) = after.input.value()
        && before.input != after.input
    {
        append_value(&mut to.set, cstr!("input"), input)?;
    }
    if let Some(output) = after.output.value()
        && before.output != after.output
    {
        append_value(&mut to.set, cstr!("output"), output)?;
    }
    to.error(before.error.as_ref(), after.error.as_ref())?;
    if before.retry_count != after.retry_count {
        to.set.append(cstr!("retry_count"), after.retry_count);
    }
    if before.metadata != after.metadata {
        to.set.append(cstr!("metadata"), raw(&after.metadata)?);
    }
    to.nullable(
        cstr!("updated_at"),
        before.updated_at != after.updated_at,
        after.updated_at.map(date),
    );
    if before.depends_on != after.depends_on {
        to.set.append(cstr!("depends_on"), integers(&after.depends_on));
    }
    to.present(
        cstr!("parent_step_id"),
        before.parent_step_id != after.parent_step_id,
        after.parent_step_id,
    );
    to.present(cstr!("progress"), before.progress != after.progress, after.progress);
    to.present(
        cstr!("progress_message"),
        before.progress_message != after.progress_message,
        after.progress_message.as_deref(),
    );
    to.present(
        cstr!("update_sequence"),
        before.update_sequence != after.update_sequence,
        after.update_sequence,
    );
    if before.attempts != after.attempts {
        to.set.append(cstr!("attempts"), attempts(&after.attempts)?);
    }
    if before.revision != after.revision {
        to.set.append(cstr!("revision"), after.revision);
        to.set.append(cstr!("last_change"), after.last_change().as_str());
        to.digests(&before.digests, &after.digests);
        to.made(after.revision, mark);
    }
    let by_id = query.get_object_id("_id").is_ok();
    let mut statement = to.statement(query, &before.execution_id);
    if by_id {
        statement.append(cstr!("hint"), "_id_");
    }
    Ok(Update { statement, exact })
}

pub(super) fn text(value: RawBsonRef<'_>) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// An integer, whatever numeric type another program chose for it.
pub(super) fn integer(value: RawBsonRef<'_>) -> Option<i64> {
    match value {
        RawBsonRef::Int32(value) => Some(i64::from(value)),
        RawBsonRef::Int64(value) => Some(value),
        RawBsonRef::Double(value) if value.fract() == 0.0 && value.abs() < 9e15 => {
            Some(value as i64)
        }
        _ => None,
    }
}

pub(super) fn small(value: RawBsonRef<'_>) -> Option<i32> {
    integer(value).and_then(|value| i32::try_from(value).ok())
}

fn number(value: RawBsonRef<'_>) -> Option<f64> {
    match value {
        RawBsonRef::Double(value) => Some(value),
        RawBsonRef::Int32(value) => Some(f64::from(value)),
        RawBsonRef::Int64(value) => Some(value as f64),
        _ => None,
    }
}

pub(super) fn millis(value: RawBsonRef<'_>) -> Option<Millis> {
    value.as_datetime().map(DateTime::timestamp_millis)
}

/// An object; anything else another program put there reads as none.
pub(super) fn object(value: RawBsonRef<'_>) -> Document {
    value.as_document().and_then(|raw| Document::try_from(raw).ok()).unwrap_or_default()
}

fn any(value: RawBsonRef<'_>) -> Option<Bson> {
    Bson::try_from(value).ok()
}

/// Other programs store text, some an object with a message.
fn error_message(value: RawBsonRef<'_>) -> Option<String> {
    match value {
        RawBsonRef::Null | RawBsonRef::Undefined => None,
        RawBsonRef::String(text) => Some(text.to_owned()),
        RawBsonRef::Document(document) => match document.get("message") {
            Ok(Some(RawBsonRef::String(text))) => Some(text.to_owned()),
            _ => Some(Bson::Document(object(value)).into_relaxed_extjson().to_string()),
        },
        other => any(other).map(|value| value.into_relaxed_extjson().to_string()),
    }
}

fn read_error(message: Option<String>, info: Option<&RawDocument>) -> Option<RunError> {
    if message.is_none() && info.is_none() {
        return None;
    }
    let mut error = RunError { message: message.unwrap_or_default(), ..RunError::default() };
    if let Some(info) = info {
        let field = |key: &str| info.get(key).ok().flatten();
        error.code = field("code").and_then(text).unwrap_or_default();
        error.stack_trace = field("stack_trace").and_then(text).unwrap_or_default();
        error.details = field("details").map(object).unwrap_or_default();
    }
    Some(error)
}

pub(super) fn read_digests(value: RawBsonRef<'_>) -> Digests {
    let Some(document) = value.as_document() else { return Digests::default() };
    let field = |key: &str| document.get(key).ok().flatten().and_then(text);
    Digests { create: field("create"), start: field("start"), finish: field("finish") }
}

fn read_attempts(value: RawBsonRef<'_>) -> Vec<Attempt> {
    let Some(array) = value.as_array() else { return Vec::new() };
    let entries = array.into_iter().flatten().filter_map(RawBsonRef::as_document);
    entries
        .map(|entry| {
            let field = |key: &str| entry.get(key).ok().flatten();
            Attempt {
                started_at: field("started_at").and_then(millis),
                completed_at: field("completed_at").and_then(millis),
                duration_ms: field("duration_ms").and_then(integer),
                error: read_error(
                    field("error").and_then(error_message),
                    field("error_info").and_then(RawBsonRef::as_document),
                ),
            }
        })
        .collect()
}

pub(super) fn corrupt(collection: &'static str, raw: &RawDocument, field: &'static str) -> Error {
    let id = match raw.get("_id") {
        Ok(Some(RawBsonRef::ObjectId(id))) => id.to_hex(),
        Ok(Some(value)) => any(value).map_or_else(String::new, |value| value.to_string()),
        _ => String::new(),
    };
    Error::Corrupt { collection, id, field }
}

/// An execution as some program stored it. Only `execution_id` has to be readable.
pub(super) fn read_execution(raw: &RawDocument) -> Result<Execution> {
    const COLLECTION: &str = super::schema::EXECUTIONS;
    let mut execution_id = None;
    let mut error = None;
    let mut info = None;
    let mut record = Execution {
        execution_id: String::new(),
        app_id: None,
        app_name: String::new(),
        sub_app_id: None,
        sub_app_name: None,
        user_id: None,
        status: None,
        started_at: None,
        completed_at: None,
        duration_ms: None,
        error: None,
        metadata: Document::new(),
        created_at: None,
        updated_at: None,
        revision: 0,
        heartbeat_timeout_ms: None,
        last_heartbeat_at: None,
        cancel_requested_at: None,
        cancel_reason: None,
        parent_execution_id: None,
        pinned: None,
        configuration_version: None,
        update_sequence: None,
        digests: Digests::default(),
        deleted_at: None,
    };
    for element in raw {
        let (key, value) = element.map_err(|_| corrupt(COLLECTION, raw, "document"))?;
        match key.as_str() {
            "execution_id" => execution_id = text(value),
            "app_id" => record.app_id = small(value),
            "app_name" => record.app_name = text(value).unwrap_or_default(),
            "sub_app_id" => record.sub_app_id = small(value),
            "sub_app_name" => record.sub_app_name = text(value),
            "user_id" => record.user_id = text(value),
            "status" => record.status = value.as_str().and_then(ExecutionStatus::parse),
            "started_at" => record.started_at = millis(value),
            "completed_at" => record.completed_at = millis(value),
            "duration_ms" => record.duration_ms = integer(value),
            "error" => error = error_message(value),
            "error_info" => info = value.as_document(),
            "metadata" => record.metadata = object(value),
            "created_at" => record.created_at = millis(value),
            "updated_at" => record.updated_at = millis(value),
            "revision" => record.revision = integer(value).unwrap_or(0),
            "heartbeat_timeout_ms" => record.heartbeat_timeout_ms = integer(value),
            "last_heartbeat_at" => record.last_heartbeat_at = millis(value),
            "cancel_requested_at" => record.cancel_requested_at = millis(value),
            "cancel_reason" => record.cancel_reason = text(value),
            "parent_execution_id" => record.parent_execution_id = text(value),
            "pinned" => record.pinned = value.as_bool(),
            "configuration_version" => record.configuration_version = text(value),
            "update_sequence" => record.update_sequence = integer(value),
            "digests" => record.digests = read_digests(value),
            "deleted_at" => record.deleted_at = millis(value),
            _ => {}
        }
    }
    record.execution_id = execution_id.ok_or_else(|| corrupt(COLLECTION, raw, "execution_id"))?;
    record.error = read_error(error, info);
    Ok(record)
}

/// A step as some program stored it. With `payloads` the document was read whole, so an absent input or output
/// is none; without, they were left out of the question.
pub(super) fn read_step(raw: &RawDocument, payloads: bool) -> Result<Step> {
    const COLLECTION: &str = super::schema::STEPS;
    let mut execution_id = None;
    let mut step_id = None;
    let mut error = None;
    let mut info = None;
    let absent = || match payloads {
        true => Payload::Value(Bson::Null),
        false => Payload::Stored,
    };
    let mut record = Step {
        execution_id: String::new(),
        step_id: 0,
        step_key: None,
        step_name: String::new(),
        step_version: None,
        status: None,
        started_at: None,
        completed_at: None,
        duration_ms: None,
        input: match payloads {
            true => Payload::Value(Bson::Document(Document::new())),
            false => Payload::Stored,
        },
        output: absent(),
        error: None,
        retry_count: 0,
        metadata: Document::new(),
        revision: 0,
        created_at: None,
        updated_at: None,
        depends_on: Vec::new(),
        parent_step_id: None,
        progress: None,
        progress_message: None,
        update_sequence: None,
        attempts: Vec::new(),
        digests: Digests::default(),
    };
    for element in raw {
        let (key, value) = element.map_err(|_| corrupt(COLLECTION, raw, "document"))?;
        match key.as_str() {
            "execution_id" => execution_id = text(value),
            "step_id" => step_id = small(value),
            "step_key" => record.step_key = text(value).filter(|key| !key.is_empty()),
            "step_name" => record.step_name = text(value).unwrap_or_default(),
            "step_version" => record.step_version = text(value),
            "status" => record.status = value.as_str().and_then(StepStatus::parse),
            "started_at" => record.started_at = millis(value),
            "completed_at" => record.completed_at = millis(value),
            "duration_ms" => record.duration_ms = integer(value),
            "input" if payloads => {
                record.input = Payload::Value(any(value).unwrap_or(Bson::Null));
            }
            "output" if payloads => {
                record.output = Payload::Value(any(value).unwrap_or(Bson::Null));
            }
            "error" => error = error_message(value),
            "error_info" => info = value.as_document(),
            "retry_count" => record.retry_count = small(value).unwrap_or(0),
            "metadata" => record.metadata = object(value),
            "revision" => record.revision = integer(value).unwrap_or(0),
            "created_at" => record.created_at = millis(value),
            "updated_at" => record.updated_at = millis(value),
            "depends_on" => {
                if let Some(array) = value.as_array() {
                    record.depends_on = array.into_iter().flatten().filter_map(small).collect();
                }
            }
            "parent_step_id" => record.parent_step_id = small(value),
            "progress" => record.progress = number(value),
            "progress_message" => record.progress_message = text(value),
            "update_sequence" => record.update_sequence = integer(value),
            "attempts" => record.attempts = read_attempts(value),
            "digests" => record.digests = read_digests(value),
            _ => {}
        }
    }
    record.execution_id = execution_id.ok_or_else(|| corrupt(COLLECTION, raw, "execution_id"))?;
    record.step_id = step_id.ok_or_else(|| corrupt(COLLECTION, raw, "step_id"))?;
    record.error = read_error(error, info);
    Ok(record)
}

#[cfg(test)]
#[path = "documents_tests.rs"]
mod tests;
