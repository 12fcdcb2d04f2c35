//! Configurations as documents, and the switch of the active one.
//!
//! On a replica set a switch is one transaction. It begins with a write to a document of its scope in
//! `stepwell_meta`, so that two switches of one scope are never both executed: without that, two that find
//! nothing active would not touch the same document.
//!
//! A server that is killed in the midst of one leaves it open, and mongod would keep its locks for a minute. So
//! who waits for long ends what a server has left alone; a server that only stood still has to try again then.
//!
//! A standalone mongod has no transactions. There the same document holds the intent: which version is to be
//! active. It is written first, then the flags follow, the new one before the old one goes, then the intent is
//! marked as done. Whoever finds it not done (the next switch, the sweep) sets the flags again, and meanwhile a
//! reader that finds two flags believes the intent. So there is always one answer, whatever is killed when.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use bson::raw::{RawBsonRef, RawDocument, RawDocumentBuf};
use bson::{Bson, Document, doc};
use mongodb::action::Find;
use mongodb::error::{
    Error as DriverError, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT,
};
use mongodb::options::{
    CollectionOptions, Hint, ReadConcern, ReadPreference, ReturnDocument, SelectionCriteria,
    WriteConcern,
};
use mongodb::{ClientSession, Collection, Cursor, Database, SessionCursor};

use super::documents::{millis, object, small, text};
use super::{APP_NAME, Inner, MongoStore, Ready, documents, failure, schema};
use crate::domain::configuration::{ConfigurationQuery, Part, Place, Scope};
use crate::domain::query::Page;
use crate::domain::{Configuration, Refusal};
use crate::store::configurations::{ConfigurationStore, Listed, Stored};
use crate::store::{Error, Result};

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// Rounds of looking and writing before a race counts as lost.
const ROUNDS: usize = 5;
/// Switches of other servers that may overtake one, each of which it helps to its end.
const SWITCHES: usize = 100;
/// Sendings of a commit whose answer was lost.
const COMMITS: usize = 5;
/// A transaction takes milliseconds; nobody goes on with one that was left alone for so long.
const ABANDONED: Duration = Duration::from_secs(1);
/// Unfinished switches taken up by one sweep.
const SWEPT_AT_ONCE: i64 = 100;

/// A document as it was found.
struct Found {
    id: Bson,
    /// Whatever stands there, for the place in a list.
    created_at: Bson,
    record: Configuration,
}

fn found(raw: &RawDocument) -> Found {
    let field = |key: &str| raw.get(key).ok().flatten();
    let value = |key: &str| field(key).and_then(|value| Bson::try_from(value).ok());
    Found {
        id: value("_id").unwrap_or(Bson::Null),
        created_at: value("created_at").unwrap_or(Bson::Null),
        record: Configuration {
            app_id: field("app_id").and_then(small),
            app_name: field("app_name").and_then(text).unwrap_or_default(),
            sub_app_id: field("sub_app_id").and_then(small),
            sub_app_name: field("sub_app_name").and_then(text),
            version: field("version").map(version).unwrap_or_default(),
            configuration: field("configuration").map(object).unwrap_or_default(),
            active: field("active").and_then(RawBsonRef::as_bool).unwrap_or(false),
            created_at: field("created_at").and_then(millis),
            created_by: field("created_by").and_then(text),
        },
    }
}

/// Other programs store numbers too.
fn version(value: RawBsonRef<'_>) -> String {
    match (text(value), documents::integer(value)) {
        (Some(text), _) => text,
        (None, Some(number)) => number.to_string(),
        (None, None) => String::new(),
    }
}

fn new_document(record: &Configuration) -> Document {
    doc! {
        "_id": bson::oid::ObjectId::new(),
        "app_id": record.app_id,
        "app_name": &record.app_name,
        "sub_app_id": record.sub_app_id,
        "sub_app_name": record.sub_app_name.as_deref(),
        "version": &record.version,
        "configuration": record.configuration.clone(),
        "active": record.active,
        "created_at": record.created_at.map(documents::date),
        "created_by": record.created_by.as_deref(),
    }
}

fn in_scope(scope: &Scope) -> Document {
    match scope {
        Scope::Numbers { app_id, sub_app_id } => {
            doc! { "app_id": *app_id, "sub_app_id": *sub_app_id }
        }
        Scope::Names { app_name, sub_app_name } => {
            doc! { "app_id": null, "app_name": app_name, "sub_app_name": sub_app_name.as_deref() }
        }
    }
}

fn of_version(scope: &Scope, version: &str) -> Document {
    let mut filter = in_scope(scope);
    filter.insert("version", version);
    filter
}

fn others(scope: &Scope, id: &Bson) -> Document {
    let mut filter = in_scope(scope);
    filter.insert("active", true);
    filter.insert("_id", doc! { "$ne": id });
    filter
}

/// `_id` of the document in `stepwell_meta` that all switches of a scope write to.
fn switch_id(scope: &Scope) -> String {
    format!("configuration/{}", scope.identity())
}

/// `_id` of the document in `stepwell_meta` which says that who stored a version made it active: doing so again
/// changes nothing.
fn published_id(scope: &Scope, version: &str) -> String {
    format!("configuration_published_active/{}/{version}", scope.identity())
}

fn intent(scope: &Scope, version: &str, done: bool) -> Document {
    let mut set = in_scope(scope);
    set.insert("version", version);
    set.insert("done", done);
    doc! { "$set": set, "$inc": { "number": 1_i64 } }
}

/// The update that notes it.
fn published(scope: &Scope, version: &str) -> (Document, Document) {
    (doc! { "_id": published_id(scope, version) }, doc! { "$set": { "version": version } })
}

/// Why a version becomes the active one.
#[derive(Clone, Copy)]
enum Why<'a> {
    /// It is stored now, as that.
    New(&'a Configuration),
    /// It was stored before, and now again as the active one.
    Published,
    Activated,
}

/// What became of an attempt to make a version the active one.
enum Switched {
    Done(Box<Configuration>),
    /// There is no such version.
    Missing,
    /// The version to insert is there already.
    Taken,
}

impl Ready {
    fn configurations(
        &self,
        database: &Database,
        concern: Option<ReadConcern>,
    ) -> Collection<RawDocumentBuf> {
        let mut options = CollectionOptions::default();
        let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
        options.selection_criteria = Some(primary);
        options.read_concern = concern;
        database.collection_with_options(schema::CONFIGURATIONS, options)
    }

    /// For decisions: what the primary has, committed or not.
    fn newest_configurations(&self) -> Collection<RawDocumentBuf> {
        self.configurations(&self.writes, Some(ReadConcern::local()))
    }

    /// For answers about one document: what a failover cannot take back.
    fn committed_configurations(&self) -> Collection<RawDocumentBuf> {
        self.configurations(&self.database, self.replica_set.then(ReadConcern::majority))
    }

    /// For answers about several: the same as of one moment. A plain query may see a switch in halves.
    async fn at_one_moment(
        &self,
        find: impl FnOnce(&Collection<RawDocumentBuf>) -> Find<'_, RawDocumentBuf>,
    ) -> Result<Rows, DriverError> {
        let all = self.configurations(&self.database, None);
        if !self.replica_set {
            return Ok(Rows::Plain(find(&all).await?));
        }
        let mut session = self.client.start_session().snapshot(true).await?;
        let cursor = find(&all).session(&mut session).await?;
        Ok(Rows::Snapshot(cursor, Box::new(session)))
    }

    fn switches(&self) -> Collection<Document> {
        self.writes.collection(schema::META)
    }
}

/// What a query finds, document by document.
enum Rows {
    Plain(Cursor<RawDocumentBuf>),
    Snapshot(SessionCursor<RawDocumentBuf>, Box<ClientSession>),
}

impl Rows {
    async fn next(&mut self) -> Result<Option<&RawDocument>, DriverError> {
        Ok(match self {
            Rows::Plain(cursor) => cursor.advance().await?.then(|| cursor.current()),
            Rows::Snapshot(cursor, session) => {
                cursor.advance(session).await?.then(|| cursor.current())
            }
        })
    }
}

impl Inner {
    async fn configuration_of_version(
        &self,
        ready: &Ready,
        scope: &Scope,
        version: &str,
    ) -> Result<Option<Found>> {
        let newest = ready.newest_configurations();
        let raw = self.call(newest.find_one(of_version(scope, version))).await?;
        Ok(raw.map(|raw| found(&raw)))
    }

    /// Makes a version the active one, or inserts it as that.
    async fn switch(
        &self,
        ready: &Ready,
        scope: &Scope,
        version: &str,
        why: Why<'_>,
    ) -> Result<Switched> {
        if ready.replica_set {
            return self.switch_at_once(ready, scope, version, why).await;
        }
        if let Why::New(record) = why {
            let inactive = Configuration { active: false, ..record.clone() };
            if !self.insert(ready, &inactive).await? {
                return Ok(Switched::Taken);
            }
        }
        let switched = self.switch_step_by_step(ready, scope, version).await?;
        if !matches!(why, Why::Activated) && matches!(switched, Switched::Done(_)) {
            let (id, set) = published(scope, version);
            self.call(ready.switches().update_one(id, set).upsert(true)).await?;
        }
        Ok(switched)
    }

    /// In one transaction, again and again while others are in the way.
    async fn switch_at_once(
        &self,
        ready: &Ready,
        scope: &Scope,
        version: &str,
        why: Why<'_>,
    ) -> Result<Switched> {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let attempt = attempt(ready, scope, version, why);
            let error = match tokio::time::timeout(self.patience * 2, attempt).await {
                Ok(Ok(switched)) => return Ok(switched),
                Ok(Err(error)) => error,
                Err(_) => return Err(failure::timeout()),
            };
            let conflict = error.contains_label(TRANSIENT_TRANSACTION_ERROR);
            if !conflict && failure::code(&error) == Some(failure::DUPLICATE_KEY) {
                return Ok(Switched::Taken);
            }
            if !conflict && !failure::is_passing(&error) {
                return Err(failure::error(error));
            }
            if started.elapsed() >= self.patience {
                return Err(match failure::is_passing(&error) {
                    true => failure::error(error),
                    false => Error::Contention,
                });
            }
            if started.elapsed() >= ABANDONED {
                self.end_abandoned(ready, ABANDONED).await;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Ends transactions of servers that are gone. Where the database does not let us, they end by themselves
    /// in a minute.
    pub(super) async fn end_abandoned(&self, ready: &Ready, alone_for: Duration) {
        let admin = ready.client.database("admin");
        let micros = i64::try_from(alone_for.as_micros()).unwrap_or(i64::MAX);
        let find = [
            doc! { "$currentOp": { "allUsers": false, "idleSessions": true } },
            // Only of servers: another name in the URI may be another program's too.
            doc! { "$match": { "type": "idleSession", "appName": APP_NAME,
            "transaction.timeInactiveMicros": { "$gt": micros } } },
            doc! { "$project": { "lsid": 1 } },
        ];
        let ended = self.call(async {
            let mut cursor = admin.aggregate(find).await?;
            let mut sessions = Vec::new();
            while cursor.advance().await? {
                let session = cursor.deserialize_current()?;
                let id = session.get_document("lsid").ok().and_then(|lsid| lsid.get("id"));
                sessions.extend(id.map(|id| Bson::from(doc! { "id": id })));
            }
            if !sessions.is_empty() {
                admin.run_command(doc! { "killSessions": sessions }).await?;
            }
            mongodb::error::Result::Ok(())
        });
        if let Err(error) = ended.await {
            tracing::debug!(%error, "cannot end transactions that were left alone");
        }
    }

    async fn switch_step_by_step(
        &self,
        ready: &Ready,
        scope: &Scope,
        version: &str,
    ) -> Result<Switched> {
        if self.configuration_of_version(ready, scope, version).await?.is_none() {
            return Ok(Switched::Missing);
        }
        let id = doc! { "_id": switch_id(scope) };
        let noted = ready.switches();
        self.call(noted.update_one(id, intent(scope, version, false)).upsert(true)).await?;
        self.finish_switch(ready, scope).await?;
        match self.configuration_of_version(ready, scope, version).await? {
            Some(found) => Ok(Switched::Done(Box::new(Configuration {
                // Another switch may have come after this one; this one took place all the same.
                active: true,
                ..found.record
            }))),
            None => Ok(Switched::Missing),
        }
    }

    /// Sets the flags of a scope as its intent says.
    async fn finish_switch(&self, ready: &Ready, scope: &Scope) -> Result<()> {
        let (noted, newest) = (ready.switches(), ready.newest_configurations());
        let mut overtaken = false;
        for _ in 0..SWITCHES {
            let intent = self.call(noted.find_one(doc! { "_id": switch_id(scope) })).await?;
            let Some(intent) = intent else { return Ok(()) };
            if intent.get_bool("done").unwrap_or(false) && !overtaken {
                return Ok(());
            }
            let version = intent.get_str("version").unwrap_or_default();
            if let Some(target) = self.configuration_of_version(ready, scope, version).await? {
                let flag = newest
                    .update_one(doc! { "_id": &target.id }, doc! { "$set": { "active": true } });
                self.call(flag).await?;
                let unflag = newest
                    .update_many(others(scope, &target.id), doc! { "$set": { "active": false } });
                self.call(unflag).await?;
            }
            let number = intent.get("number").cloned().unwrap_or(Bson::Null);
            let this = doc! { "_id": switch_id(scope), "number": number };
            let closed =
                self.call(noted.update_one(this, doc! { "$set": { "done": true } })).await?;
            if closed.matched_count > 0 {
                return Ok(());
            }
            // Another server noted a later one, and may have set its flags before ours.
            overtaken = true;
        }
        Err(Error::Contention)
    }

    /// False: the version is taken.
    async fn insert(&self, ready: &Ready, record: &Configuration) -> Result<bool> {
        let all = ready.newest_configurations().clone_with_type::<Document>();
        match tokio::time::timeout(self.patience * 2, all.insert_one(new_document(record))).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(error)) if failure::code(&error) == Some(failure::DUPLICATE_KEY) => Ok(false),
            Ok(Err(error)) => Err(failure::error(error)),
            Err(_) => Err(failure::timeout()),
        }
    }

    /// The active one. Of several (other programs, a switch under way without transactions) the intended one.
    async fn active(&self, ready: &Ready, scope: &Scope) -> Result<Option<Configuration>> {
        let mut filter = in_scope(scope);
        filter.insert("active", true);
        let mut all = self
            .call(async {
                let mut rows = ready.at_one_moment(|all| all.find(filter)).await?;
                let mut active = Vec::new();
                while let Some(raw) = rows.next().await? {
                    active.push(found(raw).record);
                }
                Ok(active)
            })
            .await?;
        if all.len() > 1 {
            let intent = doc! { "_id": switch_id(scope) };
            let intent = self.call(ready.switches().find_one(intent)).await?.unwrap_or_default();
            let intended = intent.get_str("version").unwrap_or_default();
            if let Some(index) = all.iter().position(|record| record.version == intended) {
                return Ok(Some(all.swap_remove(index)));
            }
        }
        Ok(all.pop())
    }
}

/// One transaction. Dropping the session aborts what is not committed.
async fn attempt(
    ready: &Ready,
    scope: &Scope,
    version: &str,
    why: Why<'_>,
) -> Result<Switched, DriverError> {
    let all = ready.configurations(&ready.writes, None);
    let mut session = ready.writes.client().start_session().await?;
    let concern = ready.client.write_concern().cloned().unwrap_or_else(WriteConcern::majority);
    session
        .start_transaction()
        .read_concern(ReadConcern::snapshot())
        .write_concern(concern)
        .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
        .await?;
    ready
        .switches()
        .update_one(doc! { "_id": switch_id(scope) }, intent(scope, version, true))
        .upsert(true)
        .session(&mut session)
        .await?;
    if !matches!(why, Why::Activated) {
        let (id, set) = published(scope, version);
        ready.switches().update_one(id, set).upsert(true).session(&mut session).await?;
    }
    let (id, record) = match why {
        Why::New(record) => {
            let document = new_document(record);
            let id = document.get("_id").cloned().unwrap_or(Bson::Null);
            let all = all.clone_with_type::<Document>();
            all.insert_one(document).session(&mut session).await?;
            (id, record.clone())
        }
        Why::Published | Why::Activated => {
            let set = doc! { "$set": { "active": true } };
            let raw = all
                .find_one_and_update(of_version(scope, version), set)
                .return_document(ReturnDocument::After)
                .session(&mut session)
                .await?;
            let Some(raw) = raw else {
                session.abort_transaction().await?;
                return Ok(Switched::Missing);
            };
            let Found { id, record, .. } = found(&raw);
            (id, record)
        }
    };
    all.update_many(others(scope, &id), doc! { "$set": { "active": false } })
        .session(&mut session)
        .await?;
    commit(&mut session).await?;
    Ok(Switched::Done(Box::new(record)))
}

async fn commit(session: &mut ClientSession) -> Result<(), DriverError> {
    let mut sent = 1;
    loop {
        match session.commit_transaction().await {
            Err(error)
                if error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT) && sent < COMMITS =>
            {
                sent += 1;
                tokio::time::sleep(LONGEST_PAUSE).await;
            }
            ended => return ended,
        }
    }
}

fn exists(record: &Configuration) -> Error {
    Error::Refused(Refusal::ConfigurationExists {
        scope: record.scope().to_string(),
        version: record.version.clone(),
    })
}

async fn put(inner: &Inner, record: Configuration) -> Result<Stored> {
    let ready = inner.ready().await?;
    let _turn = inner.configuration_turn().await?;
    let scope = record.scope();
    for _ in 0..ROUNDS {
        let there = inner.configuration_of_version(&ready, &scope, &record.version).await?;
        if let Some(Found { record: stored, .. }) = there {
            if !stored.same_content(&record) {
                return Err(exists(&record));
            }
            let repeated = async || {
                let id = doc! { "_id": published_id(&scope, &record.version) };
                Ok::<_, Error>(inner.call(ready.switches().find_one(id)).await?.is_some())
            };
            if !record.active || repeated().await? {
                return Ok(Stored { record: stored, created: false });
            }
            match inner.switch(&ready, &scope, &record.version, Why::Published).await? {
                Switched::Done(record) => return Ok(Stored { record: *record, created: false }),
                Switched::Missing | Switched::Taken => continue,
            }
        }
        let created = match record.active {
            false => {
                // Of a version that another program took away.
                let id = doc! { "_id": published_id(&scope, &record.version) };
                inner.call(ready.switches().delete_one(id)).await?;
                inner.insert(&ready, &record).await?
            }
            true => matches!(
                inner.switch(&ready, &scope, &record.version, Why::New(&record)).await?,
                Switched::Done(_)
            ),
        };
        if created {
            return Ok(Stored { record, created });
        }
        // Somebody else was first: look again.
    }
    // The version is taken and yet not found in its scope: another program's index knows no scopes by name.
    Err(exists(&record))
}

/// Goes on with switches that a crash cut short on a mongod without transactions.
pub(super) async fn sweep(inner: &Inner) -> Result<()> {
    let ready = inner.ready().await?;
    if ready.replica_set {
        return Ok(());
    }
    let _turn = inner.configuration_turn().await?;
    let noted = ready.switches();
    let unfinished = noted.find(doc! { "done": false }).limit(SWEPT_AT_ONCE);
    let unfinished: Vec<Document> = inner
        .call(async {
            let mut all = Vec::new();
            let mut cursor = unfinished.await?;
            while cursor.advance().await? {
                all.push(cursor.deserialize_current()?);
            }
            Ok(all)
        })
        .await?;
    for intent in unfinished {
        let name = |field: &str| intent.get_str(field).ok().map(str::to_owned);
        let scope = match (intent.get_i32("app_id"), name("app_name")) {
            (Ok(app_id), _) => {
                Scope::Numbers { app_id, sub_app_id: intent.get_i32("sub_app_id").ok() }
            }
            (Err(_), Some(app_name)) => {
                Scope::Names { app_name, sub_app_name: name("sub_app_name") }
            }
            (Err(_), None) => continue,
        };
        inner.finish_switch(&ready, &scope).await?;
    }
    Ok(())
}

/// The index that a list walks along, and the values of its leading keys.
fn walk(query: &ConfigurationQuery) -> (Document, Document) {
    match (query.app.app_id, &query.app.app_name) {
        (Some(app_id), _) => (schema::configurations_of_app(), doc! { "app_id": app_id }),
        (None, Some(app_name)) => (schema::configurations_of_name(), doc! { "app_name": app_name }),
        (None, None) => (schema::configurations_by_time(), doc! {}),
    }
}

fn place(found: &Found) -> Result<Place> {
    let key = doc! { "created_at": found.created_at.clone(), "_id": found.id.clone() };
    key.to_vec().map(Place).map_err(Error::failed)
}

/// What is at this place and after it, newest first, in the order that the index has: across types, and what is
/// missing is null.
fn from_place(leading: &Document, place: &Document) -> Document {
    let literal = |key: &str| doc! { "$literal": place.get(key).cloned().unwrap_or(Bson::Null) };
    let at = doc! { "$ifNull": ["$created_at", Bson::Null] };
    let mut filter = leading.clone();
    filter.insert(
        "$expr",
        doc! { "$or": [
            { "$lt": [at.clone(), literal("created_at")] },
            { "$and": [
                { "$eq": [at, literal("created_at")] },
                { "$lte": ["$_id", literal("_id")] },
            ] },
        ] },
    );
    filter
}

/// Bounds of the index decide where a page begins, not comparisons: those know dates only, and other programs
/// may have stored something else.
async fn page(inner: &Inner, query: &ConfigurationQuery) -> Result<Page<Listed, Place>> {
    let ready = inner.ready().await?;
    let (index, leading) = walk(query);
    let mut begin = leading.clone();
    match &query.after {
        None => begin.extend(doc! { "created_at": Bson::MaxKey, "_id": Bson::MaxKey }),
        Some(after) => {
            begin.extend(Document::from_reader(after.0.as_slice()).map_err(|_| Error::BadCursor)?);
        }
    }
    let mut end = leading.clone();
    end.extend(doc! { "created_at": Bson::MinKey, "_id": Bson::MinKey });
    // The first may be the one that the page before ended with, and one more tells whether that was all.
    let limit = i64::try_from(query.examine + 2).unwrap_or(i64::MAX);
    let along = ready.at_one_moment(|all| {
        all.find(doc! {}).hint(Hint::Keys(index)).min(begin.clone()).max(end).limit(limit)
    });
    let mut rows = match inner.call(along).await {
        Ok(rows) => rows,
        Err(Error::Failed(_)) => {
            // Somebody dropped the index. A sort keeps no more than the page while it looks at all there are.
            let filter = from_place(&leading, &begin);
            let sorted = ready.at_one_moment(|all| {
                let newest_first = doc! { "created_at": -1, "_id": -1 };
                all.find(filter).sort(newest_first).limit(limit)
            });
            inner.call(sorted).await?
        }
        Err(error) => return Err(error),
    };
    let mut page = Page { records: Vec::new(), next: None };
    let (mut examined, mut bytes) = (0, 0);
    let mut last = None;
    while let Some(raw) = inner.call(rows.next()).await? {
        let found = found(raw);
        let place = place(&found)?;
        if query.after.as_ref() == Some(&place) {
            continue;
        }
        let weight = found.record.weight();
        let full = page.records.len() == query.limit
            || examined == query.examine
            || (bytes + weight > query.bytes && !page.records.is_empty());
        if full {
            page.next = last;
            break;
        }
        examined += 1;
        last = Some(place.clone());
        if query.app.lists(&found.record) {
            bytes += weight;
            page.records.push(Listed { record: found.record, place });
        }
    }
    Ok(page)
}

#[async_trait]
impl ConfigurationStore for MongoStore {
    async fn put_configuration(&self, record: Configuration) -> Result<Stored> {
        put(&self.inner, record).await
    }

    async fn activate_configuration(&self, scope: &Scope, version: &str) -> Result<Configuration> {
        let ready = self.inner.ready().await?;
        let _turn = self.inner.configuration_turn().await?;
        match self.inner.switch(&ready, scope, version, Why::Activated).await? {
            Switched::Done(record) => Ok(*record),
            Switched::Missing | Switched::Taken => {
                Err(Error::Refused(Refusal::ConfigurationNotFound {
                    scope: scope.to_string(),
                    version: Some(version.to_owned()),
                }))
            }
        }
    }

    async fn configuration(
        &self,
        scope: &Scope,
        version: Option<&str>,
    ) -> Result<Option<Configuration>> {
        let ready = self.inner.ready().await?;
        let Some(version) = version else { return self.inner.active(&ready, scope).await };
        let committed = ready.committed_configurations();
        let raw = self.inner.call(committed.find_one(of_version(scope, version))).await?;
        Ok(raw.map(|raw| found(&raw).record))
    }

    async fn scopes_named(&self, app_name: &str, limit: usize) -> Result<Vec<Part>> {
        let ready = self.inner.ready().await?;
        let pipeline = [
            doc! { "$match": { "app_name": app_name } },
            doc! { "$group": { "_id": {
                "app_id": "$app_id",
                "sub_app_id": "$sub_app_id",
                "sub_app_name": "$sub_app_name",
            } } },
            doc! { "$limit": i64::try_from(limit).unwrap_or(i64::MAX) },
            doc! { "$replaceWith": "$_id" },
        ];
        let found = self.inner.aggregate(&ready.committed_configurations(), pipeline).await?;
        let parts = found.iter().map(|raw| {
            let field = |key: &str| raw.get(key).ok().flatten();
            Part {
                app_id: field("app_id").and_then(small),
                sub_app_id: field("sub_app_id").and_then(small),
                sub_app_name: field("sub_app_name").and_then(text),
            }
        });
        Ok(parts.collect())
    }

    async fn configurations(&self, query: &ConfigurationQuery) -> Result<Page<Listed, Place>> {
        page(&self.inner, query).await
    }
}
