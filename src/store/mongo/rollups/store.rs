//! Reading rollups, and what they are made from.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use async_trait::async_trait;
use bson::raw::RawDocument;
use bson::{Document, doc};
use mongodb::options::Hint;

use super::commit;
use super::documents::{
    LEAD, between, counts_as, failure_of, failures_of, group_of, outcome_of, seen_filter, selected,
    time_of, undated,
};
use crate::domain::rollup::{
    Counted, CountsAs, Failure, FailureKey, Level, Parts, QUARTERS_OF_DAY, RULES, Rollup, RollupKey,
};
use crate::domain::{StepStatus, fingerprint};
use crate::store::mongo::db::values::{epoch, field, integer, millis, text};
use crate::store::mongo::db::{Connection, Db, Index};
use crate::store::mongo::names::{COUNTED, FAILURE_COUNTS, FAILURES, META, Name, ROLLUPS, STEPS};
use crate::store::mongo::records::Records;
use crate::store::mongo::records::step::{self, no_payloads};
use crate::store::rollups::{
    FAILURES_OF_ONE, FailureQuery, RollupBatch, RollupQuery, RollupState, RollupStore, Seen,
    Selection, read_rollup,
};
use crate::store::{Cursor, Error, Result};

/// Executions whose failures are asked for in one query.
const ASKED_AT_ONCE: usize = 100;
/// Documents fetched at a time.
const FETCHED_AT_ONCE: u32 = 2000;

/// Rollups.
pub struct RollupRoom {
    db: Arc<Db>,
    records: Arc<Records>,
}

impl RollupRoom {
    pub fn new(db: Arc<Db>, records: Arc<Records>) -> RollupRoom {
        RollupRoom { db, records }
    }
}

pub fn wanted() -> Vec<Index> {
    vec![
        Index::plain(COUNTED, doc! { "day": 1 }),
        Index::plain(FAILURES, doc! { "fingerprint": 1, "failed_at": -1 }),
        Index::partial(
            ROLLUPS,
            doc! { "user_id": 1, "_id.t": 1 },
            doc! { "user_id": { "$gt": "" } },
        ),
    ]
}

/// The counted executions a query finds, with their failures.
async fn counted(
    ready: &Connection,
    filter: Document,
    limit: Option<i64>,
) -> Result<Vec<(String, Counted)>> {
    let collection = ready.own(COUNTED);
    let mut found = Vec::new();
    let mut find = collection.find(filter).batch_size(FETCHED_AT_ONCE);
    if let Some(limit) = limit {
        find = find.sort(doc! { "_id": 1 }).limit(limit);
    }
    let all = ready.each(find, |raw| {
        found.extend(counts_as(raw));
        ControlFlow::Continue(())
    });
    all.await?;
    with_failures(ready, found).await
}

async fn with_failures(
    ready: &Connection,
    found: Vec<(String, CountsAs, i64)>,
) -> Result<Vec<(String, Counted)>> {
    let having: Vec<String> =
        found.iter().filter(|(.., failures)| *failures > 0).map(|(id, ..)| id.clone()).collect();
    let collection = ready.own(FAILURES);
    let mut failures: HashMap<String, Vec<Failure>> = HashMap::new();
    for ids in having.chunks(ASKED_AT_ONCE) {
        let of_any: Vec<Document> = ids.iter().map(|id| failures_of(id)).collect();
        for raw in ready.all(&collection, doc! { "$or": of_any }, None).await? {
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

#[async_trait]
impl RollupStore for RollupRoom {
    async fn state(&self) -> Result<RollupState> {
        let ready = self.db.ready().await?;
        let meta = ready.own(META);
        let found = ready.call(meta.find_one(doc! { "_id": LEAD })).await?;
        let Some(found) = found.filter(|found| found.get_i64("rules").ok() == Some(RULES)) else {
            return Ok(RollupState::default());
        };
        let cursor = found.get_binary("cursor").ok();
        let cursor = cursor.map(|cursor| Cursor(cursor.bytes.to_vec()));
        let exact_since = field(&found, "exact_since").and_then(millis);
        Ok(RollupState { cursor, exact_since })
    }

    async fn counted(&self, execution_ids: &[String]) -> Result<HashMap<String, Counted>> {
        let ready = self.db.ready().await?;
        let filter = doc! { "_id": { "$in": execution_ids } };
        Ok(counted(&ready, filter, None).await?.into_iter().collect())
    }

    async fn counted_after(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Counted)>> {
        let ready = self.db.ready().await?;
        let filter = doc! { "_id": { "$gt": after.unwrap_or_default() } };
        counted(&ready, filter, Some(i64::try_from(limit).unwrap_or(i64::MAX))).await
    }

    async fn counted_on(
        &self,
        day: Option<i64>,
        visit: &mut (dyn FnMut(String, Counted) + Send),
    ) -> Result<()> {
        const PIECE: usize = 5_000;
        let ready = self.db.ready().await?;
        let collection = ready.own(COUNTED);
        let mut found = Vec::new();
        let find = collection.find(doc! { "day": day }).batch_size(FETCHED_AT_ONCE);
        let mut rows = ready.rows(find).await?;
        loop {
            let more = match rows.next().await? {
                Some(raw) => {
                    found.extend(counts_as(raw));
                    true
                }
                None => false,
            };
            if found.len() >= PIECE || !more {
                let piece = std::mem::take(&mut found);
                let counted = with_failures(&ready, piece).await?;
                counted.into_iter().for_each(|(id, counted)| visit(id, counted));
            }
            if !more {
                return Ok(());
            }
        }
    }

    async fn day_after(&self, day: Option<i64>) -> Result<Option<i64>> {
        let ready = self.db.ready().await?;
        let after = day.unwrap_or(i64::MIN);
        let first = async |name: Name, filter: Document, sort: Document| {
            let collection = ready.own(name);
            ready.call(collection.find_one(filter).sort(sort)).await
        };
        let counted = doc! { "day": { "$gt": after } };
        let counted = first(COUNTED, counted, doc! { "day": 1 }).await?;
        let mut next = counted.as_ref().and_then(|raw| field(raw, "day").and_then(integer));
        for collection in [ROLLUPS, FAILURE_COUNTS] {
            for level in Level::ALL {
                let of_day = QUARTERS_OF_DAY / level.quarters();
                let from = after.saturating_add(1).saturating_mul(of_day);
                let filter = between(level, from, i64::MAX);
                let found = first(collection, filter, doc! { "_id": 1 }).await?;
                let at =
                    found.as_ref().and_then(|raw| time_of(raw)).map(|at| at.div_euclid(of_day));
                next = next.into_iter().chain(at).min();
            }
        }
        Ok(next)
    }

    async fn failed_steps(
        &self,
        execution_ids: &[String],
    ) -> Result<HashMap<String, Vec<Failure>>> {
        let ready = self.db.ready().await?;
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
            let steps = ready.own(STEPS);
            let find = steps.find(filter).projection(no_payloads()).batch_size(FETCHED_AT_ONCE);
            let all = ready.each(find, |raw| {
                if let Ok(step) = step::read(raw, false) {
                    let failure = fingerprint::failure_of_step(&step);
                    let of_it = failures.entry(step.execution_id).or_default();
                    of_it.push(failure);
                    if of_it.len() >= 2 * FAILURES_OF_ONE {
                        cut(of_it);
                    }
                }
                ControlFlow::Continue(())
            });
            all.await?;
        }
        failures.values_mut().for_each(cut);
        Ok(failures)
    }

    async fn with_failed_steps(
        &self,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<(Vec<String>, Option<Vec<u8>>)> {
        let ready = self.db.ready().await?;
        let after = match after {
            None => String::new(),
            Some(bytes) => String::from_utf8(bytes.to_vec()).map_err(|_| Error::BadCursor)?,
        };
        let filter = doc! {
            "status": StepStatus::Failed.as_str(),
            "execution_id": { "$gt": after },
        };
        let steps = ready.own(STEPS);
        let mut find = steps
            .find(filter)
            .projection(doc! { "_id": 0, "execution_id": 1 })
            .sort(doc! { "execution_id": 1 })
            .batch_size(FETCHED_AT_ONCE);
        if let Some(name) = self.records.steps_by_status() {
            find = find.hint(Hint::Name(name.to_owned()));
        }
        let mut ids: Vec<String> = Vec::new();
        let mut rows = ready.rows(find).await?;
        while let Some(raw) = rows.next().await? {
            if let Ok(id) = raw.get_str("execution_id")
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
        commit::commit(&self.db, holder, &batch).await
    }

    async fn rollups(
        &self,
        query: &RollupQuery,
        visit: &mut (dyn FnMut(RollupKey, Rollup) + Send),
    ) -> Result<()> {
        let ready = self.db.ready().await?;
        let collection = ready.own(ROLLUPS);
        let mut found = |raw: &RawDocument| {
            if let Ok(parts) = raw.get_document("p") {
                let rollup = read_rollup(parts, query.durations);
                let key = RollupKey { level: query.level, at: time_of(raw), group: group_of(raw) };
                visit(key, rollup);
            }
            ControlFlow::Continue(())
        };
        let mut stretches = vec![between(query.level, query.from, query.until)];
        if query.undated {
            stretches.push(undated(query.level));
        }
        for mut filter in stretches {
            filter.extend(selected(&query.selection));
            let find = collection.find(filter).batch_size(FETCHED_AT_ONCE);
            ready.each(find, &mut found).await?;
        }
        Ok(())
    }

    async fn failures(
        &self,
        query: &FailureQuery,
        visit: &mut (dyn FnMut(FailureKey, Parts) + Send),
    ) -> Result<()> {
        let ready = self.db.ready().await?;
        let collection = ready.own(FAILURE_COUNTS);
        let mut found = |raw: &RawDocument| {
            let parts = raw.get_document("p").ok();
            let part =
                |name| parts.and_then(|parts| field(parts, name)).and_then(integer).unwrap_or(0);
            let key = FailureKey {
                level: query.level,
                at: time_of(raw),
                group: group_of(raw),
                outcome: outcome_of(raw),
                step_name: field(raw, "step_name").and_then(text),
                fingerprint: field(raw, "fingerprint").and_then(text).unwrap_or_default(),
            };
            visit(key, [part("0"), part("1"), part("2"), part("3")]);
            ControlFlow::Continue(())
        };
        let selection = Selection { user_ids: Vec::new(), ..query.selection.clone() };
        let mut stretches = vec![between(query.level, query.from, query.until)];
        if query.undated {
            stretches.push(undated(query.level));
        }
        for mut filter in stretches {
            filter.extend(selected(&selection));
            let find = collection.find(filter).batch_size(FETCHED_AT_ONCE);
            ready.each(find, &mut found).await?;
        }
        Ok(())
    }

    async fn seen(
        &self,
        fingerprints: &[String],
        selection: &Selection,
        samples: usize,
    ) -> Result<Vec<Seen>> {
        let ready = self.db.ready().await?;
        let collection = ready.own(FAILURES);
        let mut all = Vec::new();
        for fingerprint in fingerprints {
            let filter = seen_filter(fingerprint, selection);
            let latest = collection
                .find(filter.clone())
                .sort(doc! { "failed_at": -1 })
                .limit(i64::try_from(samples.max(1)).unwrap_or(i64::MAX));
            let latest = ready.collect(latest).await?;
            let mut found: Vec<_> = latest.iter().filter_map(|raw| failure_of(raw)).collect();
            let mut dated = filter;
            dated.insert("failed_at", doc! { "$gt": epoch() });
            let first = collection.find_one(dated).sort(doc! { "failed_at": 1 });
            let first = ready.call(first).await?;
            let last = found.iter().find_map(|(_, failure)| failure.failed_at);
            found.truncate(samples);
            all.push(Seen {
                fingerprint: fingerprint.clone(),
                first: first.as_ref().and_then(|raw| field(raw, "failed_at").and_then(millis)),
                last,
                samples: found,
            });
        }
        Ok(all)
    }
}
