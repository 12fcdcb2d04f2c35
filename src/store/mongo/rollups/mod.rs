//! Rollups in collections of their own. A rollup's `_id` is its level, time and group, in this order, so that those of
//! a stretch of time lie together; its numbers stand under `p` (part, status, number), where they are incremented.
//! Everything a batch changes is one transaction, which begins with the document that says who leads.

mod commit;

use std::collections::HashMap;
use std::future::IntoFuture as _;
use std::time::Duration;

use async_trait::async_trait;
use bson::raw::RawBsonRef;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, RawDocumentBuf, doc};
use mongodb::Collection;
use mongodb::options::{CollectionOptions, Hint, ReadConcern, ReadPreference, WriteConcern};

use super::{Inner, MongoStore, Ready, documents, failure, no_payloads, schema};
use crate::domain::rollup::{
    Counted, CountsAs, Failure, FailureKey, Group, Level, Outcome, Parts, QUARTERS_OF_DAY, RULES,
    Rollup, RollupKey,
};
use crate::domain::{StepStatus, fingerprint};
use crate::store::leads::{Claim, Leads, TAKEN_WITHIN};
use crate::store::rollups::{
    FAILURES_OF_ONE, FailureQuery, RollupBatch, RollupQuery, RollupState, RollupStore, Seen,
    Selection, read_rollup,
};
use crate::store::{Cursor, Error, Result};

pub(super) const COUNTED: &str = "stepwell_rollup_counted";
pub(super) const FAILURES: &str = "stepwell_rollup_failures";
pub(super) const ROLLUPS: &str = "stepwell_rollups";
pub(super) const FAILURE_COUNTS: &str = "stepwell_rollup_failure_counts";

const _: () = assert!(
    TAKEN_WITHIN.as_millis() > commit::ABANDONED.as_millis(),
    "whoever waits for a lease that the transaction of a dead server holds can then end that transaction"
);
/// Executions whose failures are asked for in one query.
const ASKED_AT_ONCE: usize = 100;

/// The document of who leads in the rollups, which says how far they are, too.
const LEAD: &str = "follow_rollups";

fn day_of(quarter: Option<i64>) -> Option<i64> {
    quarter.map(|quarter| quarter.div_euclid(QUARTERS_OF_DAY))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl Ready {
    fn rollup_collection<T: Send + Sync>(&self, name: &str) -> Collection<T> {
        let mut options = CollectionOptions::default();
        options.read_concern = Some(ReadConcern::local());
        // Whatever the URI says: what is added next is computed from what was read.
        options.selection_criteria = Some(ReadPreference::Primary.into());
        self.database.collection_with_options(name, options)
    }

    /// Who leads in what; a document's `_id` is the name.
    pub(super) fn leases(&self) -> Collection<Document> {
        let mut options = CollectionOptions::default();
        options.write_concern = Some(WriteConcern::majority());
        options.selection_criteria = Some(ReadPreference::Primary.into());
        self.database.collection_with_options(schema::META, options)
    }
}

fn group_fields(group: &Group) -> Document {
    let mut fields = doc! {
        "app_id": group.app_id,
        "app_name": &group.app_name,
        "sub_app_id": group.sub_app_id,
        "sub_app_name": &group.sub_app_name,
    };
    if let Some(user_id) = &group.user_id {
        fields.insert("user_id", user_id);
    }
    fields
}

fn text(raw: &RawDocumentBuf, name: &str) -> Option<String> {
    raw.get_str(name).ok().map(str::to_owned)
}

fn integer(raw: &RawDocumentBuf, name: &str) -> Option<i64> {
    number(raw.get(name).ok().flatten())
}

fn number(value: Option<RawBsonRef<'_>>) -> Option<i64> {
    match value? {
        RawBsonRef::Int32(number) => Some(i64::from(number)),
        RawBsonRef::Int64(number) => Some(number),
        RawBsonRef::DateTime(at) => Some(at.timestamp_millis()),
        _ => None,
    }
}

fn group_of(raw: &RawDocumentBuf) -> Group {
    Group {
        app_id: integer(raw, "app_id").and_then(|id| i32::try_from(id).ok()),
        app_name: text(raw, "app_name").unwrap_or_default(),
        sub_app_id: integer(raw, "sub_app_id").and_then(|id| i32::try_from(id).ok()),
        sub_app_name: text(raw, "sub_app_name"),
        user_id: text(raw, "user_id"),
    }
}

fn outcome_of(raw: &RawDocumentBuf) -> Outcome {
    raw.get_str("outcome").ok().and_then(Outcome::parse).unwrap_or(Outcome::Unknown)
}

/// What an execution counts as, and how many failures of it are written down.
fn counts_as(raw: &RawDocumentBuf) -> Option<(String, CountsAs, i64)> {
    let counts_as = CountsAs {
        group: group_of(raw),
        quarter: integer(raw, "quarter"),
        outcome: outcome_of(raw),
        duration_ms: integer(raw, "duration_ms"),
    };
    Some((text(raw, "_id")?, counts_as, integer(raw, "failures").unwrap_or(0)))
}

fn failure_of(raw: &RawDocumentBuf) -> Option<(String, Failure)> {
    let id = raw.get_document("_id").ok()?;
    let step_id = number(id.get("s").ok().flatten()).and_then(|id| i32::try_from(id).ok());
    let failure = Failure {
        step_id: step_id.filter(|id| *id >= 0),
        step_name: text(raw, "step_name"),
        failed_at: integer(raw, "failed_at"),
        fingerprint: text(raw, "fingerprint")?,
        message: text(raw, "message").unwrap_or_default(),
    };
    Some((id.get_str("e").ok()?.to_owned(), failure))
}

/// The failures of an execution: `_id` is its id and the step's, -1 for its own.
fn failures_of(execution_id: &str) -> Document {
    let from = doc! { "e": execution_id, "s": Bson::MinKey };
    let until = doc! { "e": execution_id, "s": Bson::MaxKey };
    doc! { "_id": { "$gte": from, "$lt": until } }
}

fn selected(selection: &Selection) -> Document {
    let mut filter = Document::new();
    let mut one_of = |field: &str, wanted: Vec<Bson>| match wanted.len() {
        0 => {}
        1 => {
            filter.extend(wanted.into_iter().map(|only| (field.to_owned(), only)));
        }
        _ => {
            filter.insert(field, doc! { "$in": wanted });
        }
    };
    one_of("app_id", selection.app_ids.iter().copied().map(Bson::from).collect());
    one_of("app_name", selection.app_names.iter().cloned().map(Bson::from).collect());
    one_of("sub_app_id", selection.sub_app_ids.iter().copied().map(Bson::from).collect());
    one_of("user_id", selection.user_ids.iter().cloned().map(Bson::from).collect());
    filter
}

/// The rollups of a stretch of time.
fn between(level: Level, from: i64, until: i64) -> Document {
    let word = level.word();
    doc! { "_id": { "$gte": { "l": word, "t": from }, "$lt": { "l": word, "t": until } } }
}

/// Those of no time.
fn undated(level: Level) -> Document {
    let word = level.word();
    let (from, until) =
        (doc! { "l": word, "t": null }, doc! { "l": word, "t": null, "g": Bson::MaxKey });
    doc! { "_id": { "$gte": from, "$lt": until } }
}

fn time_of(raw: &RawDocumentBuf) -> Option<i64> {
    number(raw.get_document("_id").ok()?.get("t").ok().flatten())
}

impl Inner {
    /// Each document that a query finds, handed to `visit` as it comes.
    async fn each(
        &self,
        collection: &Collection<RawDocumentBuf>,
        filter: Document,
        projection: Option<Document>,
        visit: &mut (dyn FnMut(RawDocumentBuf) + Send),
    ) -> Result<()> {
        let find = collection.find(filter).batch_size(2000);
        let find = match projection {
            Some(projection) => find.projection(projection),
            None => find,
        };
        let mut cursor = self.call(find).await?;
        while self.call(cursor.advance()).await? {
            visit(cursor.current().to_owned());
        }
        Ok(())
    }

    /// The counted executions a query finds, with their failures.
    async fn counted(
        &self,
        ready: &Ready,
        filter: Document,
        limit: Option<i64>,
    ) -> Result<Vec<(String, Counted)>> {
        let collection = ready.rollup_collection::<RawDocumentBuf>(COUNTED);
        let mut found = Vec::new();
        let mut find = collection.find(filter).batch_size(2000);
        if let Some(limit) = limit {
            find = find.sort(doc! { "_id": 1 }).limit(limit);
        }
        let mut cursor = self.call(find).await?;
        while self.call(cursor.advance()).await? {
            found.extend(counts_as(&cursor.current().to_owned()));
        }
        self.with_failures(ready, found).await
    }

    async fn with_failures(
        &self,
        ready: &Ready,
        found: Vec<(String, CountsAs, i64)>,
    ) -> Result<Vec<(String, Counted)>> {
        let having: Vec<String> = found
            .iter()
            .filter(|(.., failures)| *failures > 0)
            .map(|(id, ..)| id.clone())
            .collect();
        let collection = ready.rollup_collection::<RawDocumentBuf>(FAILURES);
        let mut failures: HashMap<String, Vec<Failure>> = HashMap::new();
        for ids in having.chunks(ASKED_AT_ONCE) {
            let of_any: Vec<Document> = ids.iter().map(|id| failures_of(id)).collect();
            for raw in self.all(&collection, doc! { "$or": of_any }, None).await? {
                if let Some((id, failure)) = failure_of(&raw) {
                    failures.entry(id).or_default().push(failure);
                }
            }
        }
        let counted = |(id, counts_as, _): (String, CountsAs, i64)| {
            let mut failures = failures.remove(&id).unwrap_or_default();
            failures.sort_by_key(|failure| failure.step_id);
            (id, Counted { counts_as, failures })
        };
        Ok(found.into_iter().map(counted).collect())
    }
}

fn seen_filter(fingerprint: &str, selection: &Selection) -> Document {
    let mut filter = doc! { "fingerprint": fingerprint };
    filter.extend(selected(selection));
    filter
}

#[async_trait]
impl Leads for MongoStore {
    async fn lead(&self, name: &str, holder: &str, length: Duration, claim: Claim) -> Result<bool> {
        let ready = self.inner.ready().await?;
        let leases = ready.leases();
        // By the clock of the database, which all servers share.
        let time = |field: &str| doc! { "$ifNull": [field, schema::epoch()] };
        let free = doc! { "$or": [
            { "$eq": ["$holder", holder] },
            { "$lte": [time("$expires_at"), "$$NOW"] },
        ] };
        let filter = match claim {
            Claim::ByForce => doc! { "_id": name },
            Claim::IfFree => doc! { "_id": name, "$expr": free },
            Claim::UnlessDoneWithin(within) => {
                let since = doc! { "$subtract": ["$$NOW", millis(within)] };
                let rested = doc! { "$lte": [time("$ended_at"), since] };
                doc! { "_id": name, "$expr": { "$and": [free, rested] } }
            }
        };
        let until = doc! { "$add": ["$$NOW", millis(length)] };
        let update = vec![doc! { "$set": { "holder": holder, "expires_at": until } }];
        for _ in 0..2 {
            let taken = leases.update_one(filter.clone(), update.clone()).into_future();
            let taken = match tokio::time::timeout(TAKEN_WITHIN, taken).await {
                Ok(taken) => taken.map_err(failure::error)?,
                // A server that died in the middle of its transaction still holds the document.
                Err(_) => {
                    self.inner.end_abandoned(&ready, commit::ABANDONED).await;
                    self.inner.call(leases.update_one(filter.clone(), update.clone())).await?
                }
            };
            if taken.matched_count == 1 {
                return Ok(true);
            }
            match self.inner.try_call(leases.insert_one(doc! { "_id": name })).await? {
                Ok(_) => {}
                Err(error) if failure::code(&error) == Some(failure::DUPLICATE_KEY) => {
                    return Ok(false);
                }
                Err(error) => return Err(failure::error(error)),
            }
        }
        Ok(false)
    }

    async fn cede(&self, name: &str, holder: &str, done: bool) -> Result<()> {
        let ready = self.inner.ready().await?;
        let mut set = doc! { "expires_at": schema::epoch() };
        if done {
            set.insert("ended_at", "$$NOW");
        }
        let update = vec![doc! { "$set": set }, doc! { "$unset": "holder" }];
        let filter = doc! { "_id": name, "holder": holder };
        self.inner.call(ready.leases().update_one(filter, update)).await.map(drop)
    }
}

#[async_trait]
impl RollupStore for MongoStore {
    async fn state(&self) -> Result<RollupState> {
        let ready = self.inner.ready().await?;
        let leases = ready.leases();
        let found = self.inner.call(leases.find_one(doc! { "_id": LEAD })).await?;
        let Some(found) = found.filter(|found| found.get_i64("rules").ok() == Some(RULES)) else {
            return Ok(RollupState::default());
        };
        let cursor = match found.get("cursor") {
            Some(Bson::Binary(binary)) => Some(Cursor(binary.bytes.clone())),
            _ => None,
        };
        let exact_since = found.get_datetime("exact_since").ok().map(|at| at.timestamp_millis());
        Ok(RollupState { cursor, exact_since })
    }

    async fn counted(&self, execution_ids: &[String]) -> Result<HashMap<String, Counted>> {
        let ready = self.inner.ready().await?;
        let filter = doc! { "_id": { "$in": execution_ids } };
        Ok(self.inner.counted(&ready, filter, None).await?.into_iter().collect())
    }

    async fn counted_after(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Counted)>> {
        let ready = self.inner.ready().await?;
        let filter = doc! { "_id": { "$gt": after.unwrap_or_default() } };
        self.inner.counted(&ready, filter, Some(i64::try_from(limit).unwrap_or(i64::MAX))).await
    }

    async fn counted_on(
        &self,
        day: Option<i64>,
        visit: &mut (dyn FnMut(String, Counted) + Send),
    ) -> Result<()> {
        const PIECE: usize = 5_000;
        let ready = self.inner.ready().await?;
        let collection = ready.rollup_collection::<RawDocumentBuf>(COUNTED);
        let mut found = Vec::new();
        let mut cursor =
            self.inner.call(collection.find(doc! { "day": day }).batch_size(2000)).await?;
        loop {
            let more = self.inner.call(cursor.advance()).await?;
            if more {
                found.extend(counts_as(&cursor.current().to_owned()));
            }
            if found.len() >= PIECE || !more {
                let piece = std::mem::take(&mut found);
                let counted = self.inner.with_failures(&ready, piece).await?;
                counted.into_iter().for_each(|(id, counted)| visit(id, counted));
            }
            if !more {
                return Ok(());
            }
        }
    }

    async fn day_after(&self, day: Option<i64>) -> Result<Option<i64>> {
        let ready = self.inner.ready().await?;
        let after = day.unwrap_or(i64::MIN);
        let first = async |name: &str, filter: Document, sort: Document| {
            let collection = ready.rollup_collection::<RawDocumentBuf>(name);
            self.inner.call(collection.find_one(filter).sort(sort)).await
        };
        let counted = doc! { "day": { "$gt": after } };
        let counted = first(COUNTED, counted, doc! { "day": 1 }).await?;
        let mut next = counted.as_ref().and_then(|raw| integer(raw, "day"));
        for collection in [ROLLUPS, FAILURE_COUNTS] {
            for level in Level::ALL {
                let of_day = QUARTERS_OF_DAY / level.quarters();
                let from = after.saturating_add(1).saturating_mul(of_day);
                let filter = between(level, from, i64::MAX);
                let found = first(collection, filter, doc! { "_id": 1 }).await?;
                let at = found.as_ref().and_then(time_of).map(|at| at.div_euclid(of_day));
                next = next.into_iter().chain(at).min();
            }
        }
        Ok(next)
    }

    async fn failed_steps(
        &self,
        execution_ids: &[String],
    ) -> Result<HashMap<String, Vec<Failure>>> {
        let ready = self.inner.ready().await?;
        let mut failures: HashMap<String, Vec<Failure>> = HashMap::new();
        let cut = |failures: &mut Vec<Failure>| {
            failures.sort_by_key(|failure| failure.step_id);
            failures.truncate(FAILURES_OF_ONE - 1);
        };
        for ids in execution_ids.chunks(ASKED_AT_ONCE) {
            let filter = doc! {
                "execution_id": { "$in": ids },
                "status": StepStatus::Failed.as_str(),
            };
            let mut add = |raw: RawDocumentBuf| {
                if let Ok(step) = documents::read_step(&raw, false) {
                    let failure = fingerprint::failure_of_step(&step);
                    let of_it = failures.entry(step.execution_id).or_default();
                    of_it.push(failure);
                    if of_it.len() >= 2 * FAILURES_OF_ONE {
                        cut(of_it);
                    }
                }
            };
            self.inner.each(&ready.steps, filter, Some(no_payloads()), &mut add).await?;
        }
        failures.values_mut().for_each(cut);
        Ok(failures)
    }

    async fn with_failed_steps(
        &self,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<(Vec<String>, Option<Vec<u8>>)> {
        let ready = self.inner.ready().await?;
        let after = match after {
            None => String::new(),
            Some(bytes) => String::from_utf8(bytes.to_vec()).map_err(|_| Error::BadCursor)?,
        };
        let filter = doc! {
            "status": StepStatus::Failed.as_str(),
            "execution_id": { "$gt": after },
        };
        let mut find = ready
            .steps
            .find(filter)
            .projection(doc! { "_id": 0, "execution_id": 1 })
            .sort(doc! { "execution_id": 1 })
            .batch_size(2000);
        if let Some(name) = &ready.indexes.steps_by_status {
            find = find.hint(Hint::Name(name.clone()));
        }
        let mut ids: Vec<String> = Vec::new();
        let mut cursor = self.inner.call(find).await?;
        while self.inner.call(cursor.advance()).await? {
            if let Ok(id) = cursor.current().get_str("execution_id")
                && ids.last().is_none_or(|last| last != id)
            {
                if ids.len() == limit {
                    let last = ids.last().map(|last| last.as_bytes().to_vec());
                    return Ok((ids, last));
                }
                ids.push(id.to_owned());
            }
        }
        Ok((ids, None))
    }

    async fn commit(&self, holder: &str, batch: RollupBatch) -> Result<bool> {
        commit::commit(&self.inner, holder, &batch).await
    }

    async fn rollups(
        &self,
        query: &RollupQuery,
        visit: &mut (dyn FnMut(RollupKey, Rollup) + Send),
    ) -> Result<()> {
        let ready = self.inner.ready().await?;
        let collection = ready.rollup_collection::<RawDocumentBuf>(ROLLUPS);
        let mut found = |raw: RawDocumentBuf| {
            let Ok(parts) = raw.get_document("p") else { return };
            let rollup = read_rollup(parts, query.durations);
            visit(
                RollupKey { level: query.level, at: time_of(&raw), group: group_of(&raw) },
                rollup,
            );
        };
        let mut stretches = vec![between(query.level, query.from, query.until)];
        if query.undated {
            stretches.push(undated(query.level));
        }
        for mut filter in stretches {
            filter.extend(selected(&query.selection));
            self.inner.each(&collection, filter, None, &mut found).await?;
        }
        Ok(())
    }

    async fn failures(
        &self,
        query: &FailureQuery,
        visit: &mut (dyn FnMut(FailureKey, Parts) + Send),
    ) -> Result<()> {
        let ready = self.inner.ready().await?;
        let collection = ready.rollup_collection::<RawDocumentBuf>(FAILURE_COUNTS);
        let mut found = |raw: RawDocumentBuf| {
            let parts = raw.get_document("p").ok();
            let part = |name: &str| {
                parts.and_then(|parts| number(parts.get(name).ok().flatten())).unwrap_or(0)
            };
            let key = FailureKey {
                level: query.level,
                at: time_of(&raw),
                group: group_of(&raw),
                outcome: outcome_of(&raw),
                step_name: text(&raw, "step_name"),
                fingerprint: text(&raw, "fingerprint").unwrap_or_default(),
            };
            visit(key, [part("0"), part("1"), part("2"), part("3")]);
        };
        let selection = Selection { user_ids: Vec::new(), ..query.selection.clone() };
        let mut stretches = vec![between(query.level, query.from, query.until)];
        if query.undated {
            stretches.push(undated(query.level));
        }
        for mut filter in stretches {
            filter.extend(selected(&selection));
            self.inner.each(&collection, filter, None, &mut found).await?;
        }
        Ok(())
    }

    async fn seen(
        &self,
        fingerprints: &[String],
        selection: &Selection,
        samples: usize,
    ) -> Result<Vec<Seen>> {
        let ready = self.inner.ready().await?;
        let collection = ready.rollup_collection::<RawDocumentBuf>(FAILURES);
        let mut all = Vec::new();
        for fingerprint in fingerprints {
            let filter = seen_filter(fingerprint, selection);
            let latest = collection
                .find(filter.clone())
                .sort(doc! { "failed_at": -1 })
                .limit(i64::try_from(samples.max(1)).unwrap_or(i64::MAX));
            let mut cursor = self.inner.call(latest).await?;
            let mut found = Vec::new();
            while self.inner.call(cursor.advance()).await? {
                found.extend(failure_of(&cursor.current().to_owned()));
            }
            let mut dated = filter;
            dated.insert("failed_at", doc! { "$gt": schema::epoch() });
            let first = collection.find_one(dated).sort(doc! { "failed_at": 1 });
            let first = self.inner.call(first).await?;
            let last = found.iter().find_map(|(_, failure)| failure.failed_at);
            found.truncate(samples);
            all.push(Seen {
                fingerprint: fingerprint.clone(),
                first: first.as_ref().and_then(|raw| integer(raw, "failed_at")),
                last,
                samples: found,
            });
        }
        Ok(all)
    }
}

/// A cursor as it is stored.
fn cursor_value(cursor: &Cursor) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: cursor.0.clone() })
}
