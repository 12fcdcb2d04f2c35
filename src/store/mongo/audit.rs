//! The record of who did what. Records are inserted in the order of their numbers: the next one is sent only when it is
//! known that the one before was executed, and one of which that is not known is sent again first. So no answer that is
//! lost, and no election, leaves a gap in a chain.
//!
//! What a batch of writes is about to do goes into the log of the database before it, in the same chain of commands, and
//! is durable when the last of them is.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bson::oid::ObjectId;
use bson::raw::RawDocumentBuf;
use bson::{Document, doc};
use parking_lot::Mutex;

use super::db::values::{date, field, integer_of, millis, text};
use super::db::{self, Chain as Commands, Connection, Db, Durability, Fate, Index, failure};
use super::names::AUDIT_LOG;
use crate::clock::Clock;
use crate::domain::Millis;
use crate::domain::audit::entry::{Written, packed};
use crate::domain::audit::record::STOP;
use crate::domain::audit::{AuditFilter, Entry, Head, Phase};
use crate::domain::query::Page;
use crate::store::audit::{
    Appended, AuditKey, AuditQuery, AuditStore, Chain, Codes, Linked, Opening, count_lost, not_open,
};
use crate::store::{Error, Result};

/// The greatest age that an index can have: 68 years.
const LONGEST_SECONDS: i64 = i32::MAX as i64;
/// Records that may wait to be known as durable.
const UNSURE: usize = 10_000;
/// How long they wait for the end of the batch that they are about before it is found out.
const UNSURE_MS: i64 = 5_000;

/// The chain of this process, and its records in the database.
pub struct Ledger {
    db: Arc<Db>,
    clock: Arc<dyn Clock>,
    kept: Option<Duration>,
    state: tokio::sync::Mutex<State>,
    sure: Mutex<Sure>,
    /// Ends of batches, which go along with the next record.
    ends: Mutex<Vec<Entry>>,
    codes: OnceLock<Codes>,
}

#[derive(Default)]
struct State {
    chain: Option<Chain>,
    /// Those that have a place and perhaps are there. While there are any, no other gets a place.
    pending: Vec<Linked>,
    /// Which primary has executed the last one.
    election: Option<ObjectId>,
}

/// What is known of the records that the primary has executed.
#[derive(Default)]
struct Sure {
    /// Not known to be durable.
    unsure: VecDeque<Linked>,
    /// The newest that is.
    head: Option<Head>,
}

/// The records with which a batch began.
#[derive(Debug, Clone, Copy)]
pub struct Started {
    pub first: i64,
    pub through: i64,
}

/// Records that the primary has executed.
struct Added {
    /// The number of the first that was asked for, and how many of those are there.
    first: i64,
    count: usize,
    /// The last of all; `None`: nothing was sent.
    through: Option<i64>,
    /// What kept the others from being there, and whether they may be there all the same.
    failed: Option<(Error, bool)>,
}

fn documents<'a>(linked: impl IntoIterator<Item = &'a Linked>) -> Vec<RawDocumentBuf> {
    linked.into_iter().map(|linked| linked.document.clone()).collect()
}

impl Ledger {
    pub fn new(db: Arc<Db>, clock: Arc<dyn Clock>, kept: Option<Duration>) -> Ledger {
        let (state, sure, ends, codes) = Default::default();
        Ledger { db, clock, kept, state, sure, ends, codes }
    }

    async fn ready(&self) -> Result<Arc<Connection>> {
        self.db.ready().await.map_err(Error::unaudited)
    }

    /// Executes what is pending, then these. Another primary may have been elected since the last time and lack what
    /// was not durable: that is sent again.
    async fn add(&self, commands: &Commands<'_>, entries: Vec<Entry>) -> Result<Added> {
        let locked = tokio::time::timeout_at(commands.until().into(), self.state.lock());
        let mut state = locked.await.map_err(|_| Error::unaudited(failure::timeout()))?;
        let state = &mut *state;
        if state.chain.is_none() {
            return Err(not_open());
        }
        if self.sure.lock().unsure.len() >= UNSURE {
            return Err(Error::unaudited("too many records are not known to be durable"));
        }
        let before = self.sure.lock().unsure.len();
        let mut sent = !state.pending.is_empty();
        self.execute(state, commands).await.map_err(|(error, _)| error)?;
        let ends = std::mem::take(&mut *self.ends.lock());
        let Some(chain) = &mut state.chain else { return Err(not_open()) };
        let first = chain.next_seq() + i64::try_from(ends.len()).unwrap_or(i64::MAX);
        let now = self.clock.now().millis();
        state.pending = ends.iter().chain(&entries).map(|entry| chain.link(entry, now)).collect();
        sent |= !state.pending.is_empty();
        let failed = self.execute(state, commands).await.err();
        let through = self.through();
        let count = usize::try_from(through + 1 - first).unwrap_or(0).min(entries.len());
        if state.pending.is_empty() {
            // Those that found no place stay ends to be told.
            let told = usize::try_from(through + 1 - first + ends.len() as i64).unwrap_or(0);
            self.ends.lock().splice(0..0, ends.into_iter().skip(told));
        }
        if before > 0 && commands.election().is_some() && commands.election() != state.election {
            let earlier = documents(self.sure.lock().unsure.iter().take(before));
            let (_, missing) = commands.insert_in_order(AUDIT_LOG, &earlier, true).await;
            if let Some(fate) = missing {
                return Err(Error::unaudited(format!("an earlier record is lost: {fate:?}")));
            }
        }
        state.election = commands.election().or(state.election);
        Ok(Added { first, count, through: sent.then_some(through), failed })
    }

    /// Sends what is pending. What is refused has no place any more; what perhaps is there stays pending.
    async fn execute(
        &self,
        state: &mut State,
        commands: &Commands<'_>,
    ) -> Result<(), (Error, bool)> {
        if state.pending.is_empty() {
            return Ok(());
        }
        let sent = documents(&state.pending);
        let (done, fate) = commands.insert_in_order(AUDIT_LOG, &sent, true).await;
        let rest = state.pending.split_off(done);
        let executed = std::mem::replace(&mut state.pending, rest);
        self.sure.lock().unsure.extend(executed);
        match fate {
            None => Ok(()),
            Some(Fate::Unknown | Fate::Doubtful | Fate::Unmatched) => {
                count_lost(state.pending.len());
                Err((Error::unaudited(failure::timeout()), true))
            }
            Some(fate) => {
                count_lost(state.pending.len());
                state.pending.clear();
                // The chain ends with the last one that is there.
                let last = {
                    let sure = self.sure.lock();
                    sure.unsure.back().map(|linked| linked.head.clone()).or(sure.head.clone())
                };
                state.chain = state.chain.take().map(|chain| match last {
                    Some(last) => chain.back_to(&last),
                    None => chain.anew(),
                });
                let code = if let Fate::Refused(code) = fate { code } else { 0 };
                Err((Error::unaudited(failure::statement(code, &AUDIT_LOG)), false))
            }
        }
    }

    /// The last record that was executed.
    fn through(&self) -> i64 {
        let sure = self.sure.lock();
        let last = sure.unsure.back().map(|linked| linked.head.seq);
        last.or(sure.head.as_ref().map(|head| head.seq)).unwrap_or(0)
    }

    /// All up to this one are durable.
    pub fn confirm(&self, through: i64) {
        let mut sure = self.sure.lock();
        while sure.unsure.front().is_some_and(|linked| linked.head.seq <= through) {
            if let Some(linked) = sure.unsure.pop_front() {
                linked.count();
                sure.head = Some(linked.head);
            }
        }
    }

    /// Makes all durable that were executed, whatever primary has executed them.
    pub async fn settle(&self, ready: &Connection) -> Result<()> {
        let commands = ready.commander().chain();
        let locked = tokio::time::timeout_at(commands.until().into(), self.state.lock());
        let mut state = locked.await.map_err(|_| Error::unaudited(failure::timeout()))?;
        let unsure = documents(&self.sure.lock().unsure);
        if unsure.is_empty() {
            return Ok(());
        }
        let through = self.through();
        let (_, missing) = commands.insert_in_order(AUDIT_LOG, &unsure, false).await;
        let election = commands.election();
        match (missing, commands.finish().await) {
            (None, Durability::Certain) => {
                state.election = election.or(state.election);
                self.confirm(through);
                Ok(())
            }
            _ => Err(Error::unaudited(failure::timeout())),
        }
    }

    /// Records what a batch is about to do, before it and in its chain of commands. What this answers is to be confirmed
    /// when all of the chain is durable.
    pub async fn begin(&self, commands: &Commands<'_>, writes: &[Written]) -> Result<Started> {
        let added = self.add(commands, packed(Phase::Begin, writes, None)).await?;
        match added.failed {
            None => Ok(Started { first: added.first, through: added.through.unwrap_or_default() }),
            Some((error, _)) => Err(error),
        }
    }

    /// The same, durably, of what has no chain of commands.
    pub async fn begin_alone(&self, writes: &[Written]) -> Result<Started> {
        let entries = packed(Phase::Begin, writes, None);
        let through = i64::try_from(entries.len()).unwrap_or(i64::MAX) - 1;
        match self.append(entries).await? {
            Appended::Surely { first } => Ok(Started { first, through: first + through }),
            Appended::Perhaps { error, .. } | Appended::Partly { error, .. } => Err(error),
        }
    }

    /// What became of it, to be recorded with what comes next.
    pub fn end(&self, writes: &[Written], started: Option<Started>) {
        let entries = match started {
            Some(started) => packed(Phase::End, writes, Some(started.first)),
            // Nothing of it had to be stored.
            None => packed(Phase::Once, writes, None),
        };
        self.ends.lock().extend(entries);
    }

    /// The canonical code of what became of a write.
    pub fn code<T>(&self, outcome: &Result<T>) -> &'static str {
        match (outcome, self.codes.get()) {
            (Ok(_), _) => "OK",
            (Err(error), Some(code)) => code(error),
            (Err(_), None) => "",
        }
    }

    /// Whether records wait for longer than a batch takes.
    fn is_stale(&self) -> bool {
        let now = self.clock.now().millis();
        let sure = self.sure.lock();
        sure.unsure.front().is_some_and(|linked| linked.head.at < now.saturating_sub(UNSURE_MS))
    }
}

/// Makes the indexes, and sets how long records are kept.
async fn prepare(ready: &Connection, kept: Option<Duration>) -> Result<()> {
    let kept = kept.map(|kept| i64::try_from(kept.as_secs()).unwrap_or(i64::MAX).max(1));
    let seconds = kept.map(|kept| kept.min(LONGEST_SECONDS));
    let by_age = doc! { "at": 1 };
    let there = db::existing(ready, AUDIT_LOG).await?;
    let index = there.iter().find(|index| {
        index.get_document("key").is_ok_and(|keys| keys.len() == 1 && keys.contains_key("at"))
    });
    let mut wanted = vec![Index::plain(AUDIT_LOG, doc! { "server": 1, "seq": -1 })];
    match index {
        None => wanted.push(Index::ending(AUDIT_LOG, by_age, seconds)),
        Some(index) => {
            let set = index.get("expireAfterSeconds").and_then(integer_of);
            // An age that was set cannot be taken back, only made to be never reached.
            let age = seconds.or(set.map(|_| LONGEST_SECONDS));
            if set != age {
                let name = index.get_str("name").unwrap_or_default();
                let index = doc! { "name": name, "expireAfterSeconds": age };
                match ready.try_command(doc! { "collMod": AUDIT_LOG, "index": index }).await? {
                    Ok(_) => {
                        tracing::info!(
                            before = set,
                            now = age,
                            "audit records are kept for another time, in seconds"
                        );
                    }
                    Err(error) if failure::is_passing(&error) => return Err(failure::error(error)),
                    Err(error) => {
                        tracing::error!(
                            collection = AUDIT_LOG.as_str(),
                            error = %failure::words(&error),
                            "how long audit records are kept cannot be set: they are kept as before"
                        );
                    }
                }
            }
        }
    }
    db::make(ready, wanted).await.map(drop)
}

#[async_trait]
impl AuditStore for Ledger {
    async fn open_chain(&self, opening: Opening) -> Result<()> {
        let _ = self.codes.set(opening.codes);
        let ready = self.ready().await?;
        prepare(&ready, self.kept).await.map_err(Error::unaudited)?;
        let entries = {
            let mut state = self.state.lock().await;
            match &state.chain {
                // It has its first record, which perhaps is there.
                Some(chain) if chain.next_seq() > 1 => Vec::new(),
                _ => {
                    state.chain = Some(Chain::new(&opening.server, opening.codes));
                    vec![opening.entry]
                }
            }
        };
        match self.append(entries).await? {
            Appended::Surely { .. } => Ok(()),
            Appended::Perhaps { error, .. } | Appended::Partly { error, .. } => Err(error),
        }
    }

    async fn append(&self, entries: Vec<Entry>) -> Result<Appended> {
        let ready = self.ready().await?;
        let commands = ready.commander().chain();
        let Added { first, count, through, failed } = self.add(&commands, entries).await?;
        let durable = match commands.finish().await {
            Durability::Certain => {
                through.into_iter().for_each(|through| self.confirm(through));
                // What lanes have left as perhaps durable is looked after as well.
                if self.is_stale() { self.settle(&ready).await } else { Ok(()) }
            }
            Durability::Elected => self.settle(&ready).await,
            Durability::Unknown => Err(Error::unaudited(failure::timeout())),
        };
        Ok(match (failed, durable) {
            (None, Ok(())) => Appended::Surely { first },
            (None, Err(error)) | (Some((error, true)), _) => Appended::Perhaps { first, error },
            (Some((error, false)), _) => Appended::Partly { first, count, error },
        })
    }

    fn is_settled(&self) -> bool {
        self.ends.lock().is_empty() && !self.is_stale()
    }

    fn own_head(&self) -> Option<Head> {
        self.sure.lock().head.clone()
    }

    async fn heads(&self, after: Option<&str>, limit: usize) -> Result<Vec<Head>> {
        let ready = self.db.ready().await?;
        let all = ready.committed(AUDIT_LOG);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        // From one server to the next along the index, and not over all records.
        let pipeline = [
            doc! { "$match": { "server": { "$gt": after.unwrap_or_default() } } },
            doc! { "$sort": { "server": 1, "seq": -1 } },
            doc! { "$group": {
                "_id": "$server",
                "seq": { "$first": "$seq" },
                "hash": { "$first": "$hash" },
                "at": { "$first": "$at" },
                "event": { "$first": "$event" },
            } },
            doc! { "$sort": { "_id": 1 } },
            doc! { "$limit": limit },
        ];
        let found = ready.collect(all.aggregate(pipeline)).await?;
        let head = |raw: &RawDocumentBuf| {
            Some(Head {
                server: field(raw, "_id").and_then(text)?,
                seq: raw.get_i64("seq").ok()?,
                hash: raw.get_binary("hash").ok().and_then(|hash| hash.bytes.try_into().ok())?,
                at: field(raw, "at").and_then(millis)?,
                stopped: raw.get_str("event").is_ok_and(|event| event == STOP),
            })
        };
        // What cannot be read is a chain all the same, which is found to be broken.
        let unread = |raw: &RawDocumentBuf| {
            let server = field(raw, "_id").and_then(text)?;
            Some(Head { server, seq: 0, hash: [0; 32], at: 0, stopped: false })
        };
        Ok(found.iter().filter_map(|raw| head(raw).or_else(|| unread(raw))).collect())
    }

    async fn chain(
        &self,
        server: &str,
        from: i64,
        limit: usize,
        bytes: usize,
    ) -> Result<Vec<RawDocumentBuf>> {
        let ready = self.db.ready().await?;
        let all = ready.committed(AUDIT_LOG);
        let filter = doc! { "server": server, "seq": { "$gte": from } };
        let find = all.find(filter).sort(doc! { "seq": 1 });
        let find = find.limit(i64::try_from(limit).unwrap_or(i64::MAX));
        let mut rows = ready.rows(find).await?;
        let (mut found, mut size) = (Vec::new(), 0);
        while let Some(raw) = rows.next().await? {
            size += raw.as_bytes().len();
            if size > bytes && !found.is_empty() {
                break;
            }
            found.push(raw.to_owned());
        }
        Ok(found)
    }

    async fn events(&self, query: &AuditQuery) -> Result<Page<RawDocumentBuf, AuditKey>> {
        let ready = self.db.ready().await?;
        let all = ready.committed(AUDIT_LOG);
        let way = if query.oldest_first { 1 } else { -1 };
        let mut ids = id_range(&query.filter);
        if let Some(key) = &query.after {
            let id = key.0.as_slice().try_into().map_err(|_| Error::BadCursor)?;
            let beyond = if query.oldest_first { "$gt" } else { "$lt" };
            ids.push(doc! { "_id": { beyond: ObjectId::from_bytes(id) } });
        }
        let within = |conditions: Vec<Document>| match conditions.is_empty() {
            true => doc! {},
            false => doc! { "$and": conditions },
        };
        // The last record that may be looked at.
        let mut last = None;
        if !query.filter.is_all() {
            let find = all.find(within(ids.clone())).sort(doc! { "_id": way });
            let find = find.skip(query.examine.saturating_sub(1) as u64).limit(1);
            let found = ready.collect(find.projection(doc! { "_id": 1 })).await?;
            last = found.first().and_then(|raw| raw.get_object_id("_id").ok());
        }
        if let Some(last) = last {
            let through = if query.oldest_first { "$lte" } else { "$gte" };
            ids.push(doc! { "_id": { through: last } });
        }
        ids.extend(conditions(&query.filter));
        let filter = within(ids);
        let limit = i64::try_from(query.limit).unwrap_or(i64::MAX).saturating_add(1);
        let mut rows = ready.rows(all.find(filter).sort(doc! { "_id": way }).limit(limit)).await?;
        let key = |id: ObjectId| AuditKey(id.bytes().to_vec());
        let (mut records, mut size, mut newest) = (Vec::<RawDocumentBuf>::new(), 0, None);
        while let Some(raw) = rows.next().await? {
            size += raw.as_bytes().len();
            if !records.is_empty() && (records.len() >= query.limit || size > query.bytes) {
                return Ok(Page { records, next: newest.map(key) });
            }
            newest = raw.get_object_id("_id").ok();
            records.push(raw.to_owned());
        }
        Ok(Page { records, next: last.map(key) })
    }
}

/// Ids begin with the second of their record.
fn id_range(filter: &AuditFilter) -> Vec<Document> {
    let id = |at: Millis| {
        let seconds = u32::try_from(at.div_euclid(1000).max(0)).unwrap_or(u32::MAX);
        ObjectId::from_parts(seconds, [0; 5], [0; 3])
    };
    let mut range = Vec::new();
    if let Some(since) = filter.since {
        range.push(doc! { "_id": { "$gte": id(since) } });
    }
    if let Some(until) = filter.until {
        range.push(doc! { "_id": { "$lt": id(until.saturating_add(1000)) } });
    }
    range
}

/// What else decides.
fn conditions(filter: &AuditFilter) -> Vec<Document> {
    let list = |values: &[String]| doc! { "$in": values.to_vec() };
    let mut conditions = Vec::new();
    if let Some(since) = filter.since {
        conditions.push(doc! { "at": { "$gte": date(since) } });
    }
    if let Some(until) = filter.until {
        conditions.push(doc! { "at": { "$lt": date(until) } });
    }
    if !filter.events.is_empty() {
        conditions.push(doc! { "event": list(&filter.events) });
    }
    if !filter.outcomes.is_empty() {
        conditions.push(doc! { "outcome": list(&filter.outcomes) });
    }
    if let Some(keys) = &filter.keys {
        conditions.push(doc! { "actor.kind": "key", "actor.id": list(keys) });
    }
    if !filter.actors.is_empty() {
        let (id, name) = (list(&filter.actors), list(&filter.actors));
        conditions.push(doc! { "$or": [{ "actor.id": id }, { "actor.name": name }] });
    }
    if let Some(id) = &filter.execution_id {
        let target = doc! { "target.execution_id": { "$eq": id } };
        let write = doc! { "details.writes.execution_id": { "$eq": id } };
        conditions.push(doc! { "$or": [target, write] });
    }
    conditions
}
