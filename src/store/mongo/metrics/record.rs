//! Storing points, so that a request with an id is stored once however often it comes.
//!
//! A time series has no unique index and takes part in no transaction, so the order of steps has to do it:
//!
//! 1. A document per request is inserted first, with the digest of the points, the ids that they get, and until
//!    when this attempt may go on.
//! 2. The points are inserted under these ids.
//! 3. The request is marked as done, with its counts.
//!
//! A repeat finds the document. Done: it answers with the counts. Not done and the attempt may still be under way:
//! it is told to come again. Not done and past its time: it takes the request over, looks which of the ids are
//! there, inserts the others, and marks it. So nothing is lost whichever step was the last, and nothing is
//! doubled, as an attempt ends well before its time is over.
//!
//! Deleting an execution is a race that inserting cannot win by a guard. So the execution is looked at before and
//! after, as a mark of deletion comes before the removal of points: either the second look sees the mark, and what
//! was inserted is removed here, or the removal sees the points.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use bson::oid::ObjectId;
use bson::{DateTime, Document, RawDocumentBuf, doc};
use mongodb::error::ErrorKind;

use super::delete::delete;
use super::dirty::{MARKED_WITHIN, Marks};
use super::ids::{nth, point_id};
use super::points::{read_point, within, write_point};
use super::room::Metrics;
use crate::domain::metric::admit;
use crate::domain::{MetricCounts, MetricPoint, Millis, Refusal};
use crate::store::metrics::{Arrived, Recorded, Recording, RequestId};
use crate::store::mongo::db::failure::{self, DUPLICATE_KEY, again};
use crate::store::mongo::db::values::{is_marked, raw};
use crate::store::mongo::db::{Connection, update_statement};
use crate::store::mongo::names::{EXECUTIONS, METRIC_REQUESTS, METRICS};
use crate::store::{Error, Result};

const REQUEST_KNOWN_MS: i64 = 24 * 3600 * 1000;
/// What an attempt may take beyond the time of one call.
const ATTEMPT_SLACK: Duration = Duration::from_secs(5);
const _: () = assert!(
    MARKED_WITHIN.as_millis() < ATTEMPT_SLACK.as_millis(),
    "an attempt that has to mark hours and then takes the time of one call still ends before another server may take \
     its request over"
);
const ROUNDS: usize = 4;

/// One request on its way.
struct Attempt {
    place: usize,
    request: Recording,
    counts: MetricCounts,
    /// The id of the first point that is admitted; the others follow.
    first: ObjectId,
    /// When it first came, by which its points are judged.
    came: Millis,
    /// Whether an earlier attempt may have stored a part.
    again: bool,
    owner: ObjectId,
    /// When another server may take the request over: nothing of this attempt may come later.
    deadline: Option<Instant>,
    /// The points to insert, and their ids.
    arriving: Vec<Arrived>,
}

pub async fn record(room: &Metrics, requests: Vec<Recording>) -> Vec<Result<Recorded>> {
    let mut outcomes: Vec<Option<Result<Recorded>>> = requests.iter().map(|_| None).collect();
    match attempts(room, requests, &mut outcomes).await {
        Ok(()) => {}
        Err(error) => {
            for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_none()) {
                *outcome = Some(Err(again(&error)));
            }
        }
    }
    let missing = || Err(Error::failed("a request of metrics was left without an outcome"));
    outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(missing)).collect()
}

async fn attempts(
    room: &Metrics,
    requests: Vec<Recording>,
    outcomes: &mut [Option<Result<Recorded>>],
) -> Result<()> {
    let ready = room.ready().await?;
    let before = living(&ready, requests.iter()).await?;
    let mut attempts = Vec::with_capacity(requests.len());
    for (place, request) in requests.into_iter().enumerate() {
        if !request.put && !before.contains(&request.execution_id) {
            let execution_id = request.execution_id;
            outcomes[place] = Some(Err(Refusal::ExecutionNotFound { execution_id }.into()));
            continue;
        }
        match begin(room, &ready, place, request).await {
            Ok(Begun::Attempt(attempt)) => attempts.push(*attempt),
            Ok(Begun::Known(counts)) => {
                outcomes[place] = Some(Ok(Recorded { counts, stored: Vec::new() }));
            }
            Err(error) => outcomes[place] = Some(Err(error)),
        }
    }
    let failed = insert(room, &ready, &attempts).await;
    // What a deletion may have missed.
    let at_risk = |attempt: &&Attempt| before.contains(&attempt.request.execution_id);
    let at_risk: Vec<&Recording> =
        attempts.iter().filter(at_risk).map(|attempt| &attempt.request).collect();
    let after = living(&ready, at_risk.iter().copied()).await?;
    let gone: HashSet<&str> = at_risk
        .iter()
        .map(|request| request.execution_id.as_str())
        .filter(|id| !after.contains(*id))
        .collect();
    delete(&ready, &gone.iter().copied().collect::<Vec<_>>()).await?;
    let mut done = Vec::new();
    for attempt in &attempts {
        let execution_id = &attempt.request.execution_id;
        outcomes[attempt.place] = if gone.contains(execution_id.as_str()) {
            let execution_id = execution_id.clone();
            Some(Err(Refusal::ExecutionNotFound { execution_id }.into()))
        } else if let Some(error) = failed.get(&attempt.place) {
            Some(Err(again(error)))
        } else {
            done.extend(attempt.done());
            None
        };
    }
    if !done.is_empty() {
        // One that is not marked is found to be complete when it comes again.
        let _ = ready.commander().update(METRIC_REQUESTS, &done, None).await;
    }
    for attempt in attempts {
        let outcome = &mut outcomes[attempt.place];
        if outcome.is_none() {
            *outcome = Some(Ok(Recorded { counts: attempt.counts, stored: attempt.arriving }));
        }
    }
    Ok(())
}

/// Which of the executions are there and not being deleted.
async fn living<'a>(
    ready: &Connection,
    requests: impl Iterator<Item = &'a Recording>,
) -> Result<HashSet<String>> {
    let ids: HashSet<&str> = requests.map(|request| request.execution_id.as_str()).collect();
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    let filter = doc! { "execution_id": { "$in": ids.into_iter().collect::<Vec<_>>() } };
    let projection = doc! { "_id": 0, "execution_id": 1, "deleted_at": 1 };
    let found = ready.all(&ready.latest(EXECUTIONS), filter, Some(projection)).await?;
    let living = found.iter().filter(|raw| !is_marked(raw));
    Ok(living.filter_map(|raw| raw.get_str("execution_id").ok().map(str::to_owned)).collect())
}

enum Begun {
    Attempt(Box<Attempt>),
    /// It is stored.
    Known(MetricCounts),
}

async fn begin(
    room: &Metrics,
    ready: &Connection,
    place: usize,
    mut request: Recording,
) -> Result<Begun> {
    let mut points = std::mem::take(&mut request.points);
    let came = request.now;
    let mut attempt = Attempt {
        place,
        counts: MetricCounts::default(),
        first: room.ids.take(came, points.len()),
        came,
        again: false,
        owner: room.ids.take(came, 1),
        deadline: None,
        arriving: Vec::with_capacity(points.len()),
        request,
    };
    if let Some(id) = attempt.request.request.clone()
        && let Some(counts) = attempt.claim(room, ready, &id, &points).await?
    {
        return Ok(Begun::Known(counts));
    }
    attempt.counts = admit(&mut points, attempt.came, room.kept_ms());
    let first = attempt.first;
    let numbered = points.into_iter().enumerate();
    attempt.arriving =
        numbered.map(|(n, point)| Arrived { id: point_id(nth(first, n)), point }).collect();
    if attempt.again || attempt.request.put {
        attempt.leave_out_known(ready).await?;
    }
    Ok(Begun::Attempt(Box::new(attempt)))
}

impl Attempt {
    fn key(&self, id: &RequestId) -> Document {
        doc! { "execution_id": &self.request.execution_id, "request_id": &id.id }
    }

    /// Makes the request this attempt's own. `Some`: it was stored before.
    async fn claim(
        &mut self,
        room: &Metrics,
        ready: &Connection,
        id: &RequestId,
        points: &[MetricPoint],
    ) -> Result<Option<MetricCounts>> {
        let requests = &ready.latest(METRIC_REQUESTS);
        let now = self.request.now;
        // From now on, and not from when it came: it may have waited for its turn.
        self.deadline = Some(Instant::now() + attempt_time(ready));
        let length = i64::try_from(attempt_time(ready).as_millis()).unwrap_or(i64::MAX / 4);
        let until = room.clock.now().millis().saturating_add(length);
        let until = DateTime::from_millis(until);
        let fresh = raw(&doc! {
            "_id": self.key(id),
            "execution_id": &self.request.execution_id,
            "digest": &id.digest,
            "first": self.first,
            "came": DateTime::from_millis(self.came),
            "known_until": self.known_until(room, points).map(DateTime::from_millis),
            "done": false,
            "owner": self.owner,
            "until": until,
        })?;
        for _ in 0..ROUNDS {
            match ready.try_call(requests.insert_one(&fresh)).await? {
                Ok(_) => return Ok(None),
                Err(error) if failure::code(&error) == Some(DUPLICATE_KEY) => {}
                Err(error) => return Err(failure::error(error)),
            }
            let find = requests.find_one(doc! { "_id": self.key(id) });
            let Some(known) = ready.call(find).await? else { continue };
            let time = |name| known.get_datetime(name).map(|at| at.timestamp_millis()).ok();
            let unreadable = |field| Error::Corrupt {
                collection: METRIC_REQUESTS.as_str(),
                id: format!("{}/{}", self.request.execution_id, id.id),
                field,
            };
            if time("known_until").is_some_and(|until| until <= now) {
                // The database lets go of it within a minute; for us it is gone.
                let over = doc! { "$lte": DateTime::from_millis(now) };
                let gone = doc! { "_id": self.key(id), "known_until": over };
                ready.call(requests.delete_one(gone)).await?;
                continue;
            }
            if known.get_str("digest").ok() != Some(id.digest.as_str()) {
                return Err(Error::Refused(Refusal::MetricRequestExists {
                    execution_id: self.request.execution_id.clone(),
                    request_id: id.id.clone(),
                }));
            }
            if known.get_bool("done").unwrap_or(false) {
                let count = |name| known.get_i64(name).map_err(|_| unreadable("counts"));
                let accepted = count("accepted")?;
                return Ok(Some(MetricCounts {
                    accepted,
                    already_there: if self.request.put { accepted } else { 0 },
                    too_old: count("too_old")?,
                    in_future: count("in_future")?,
                }));
            }
            let owner = known.get_object_id("owner").map_err(|_| unreadable("owner"))?;
            if time("until").is_some_and(|until| until > now) {
                return Err(Error::unavailable("the same request is under way"));
            }
            let taken = requests.update_one(
                doc! { "_id": self.key(id), "owner": owner, "done": false },
                doc! { "$set": { "owner": self.owner, "until": until } },
            );
            if ready.call(taken).await?.matched_count == 1 {
                self.first = known.get_object_id("first").map_err(|_| unreadable("first"))?;
                self.came = time("came").ok_or_else(|| unreadable("came"))?;
                self.again = true;
                return Ok(None);
            }
        }
        Err(Error::Contention)
    }

    /// Until when the request is known; `None`: for ever.
    fn known_until(&self, room: &Metrics, points: &[MetricPoint]) -> Option<Millis> {
        if !self.request.put {
            return Some(self.came.saturating_add(REQUEST_KNOWN_MS));
        }
        let newest = points.iter().map(|point| point.at).max();
        let kept = room.kept_ms()?;
        Some(newest.unwrap_or(self.came).max(self.came).saturating_add(kept))
    }

    /// Leaves out the points that are stored: those with their own ids, and for points that are put as they are
    /// also equal ones, each as often as it is stored.
    async fn leave_out_known(&mut self, ready: &Connection) -> Result<()> {
        let times = self.arriving.iter().map(|arriving| arriving.point.at);
        let (Some(first), Some(last)) = (times.clone().min(), times.max()) else { return Ok(()) };
        let points = ready.latest(METRICS);
        let id = doc! { "execution_id": &self.request.execution_id };
        let find = points.find(within(id, Some(first), Some(last.saturating_add(1))));
        let own: HashSet<_> = self.arriving.iter().map(|arriving| arriving.id).collect();
        let mut there = HashSet::new();
        let mut equal: HashMap<[u8; 32], usize> = HashMap::new();
        if self.request.put {
            equal.extend(self.arriving.iter().map(|arriving| (arriving.point.digest(), 0)));
        }
        let mut rows = ready.rows(find).await?;
        while let Some(found) = rows.next().await? {
            let id = found.get_object_id("_id").map(point_id);
            if let Ok(id) = id
                && own.contains(&id)
            {
                there.insert(id);
            } else if self.request.put
                && let Some(point) = read_point(found)
                && let Some(count) = equal.get_mut(&point.digest())
            {
                *count += 1;
            }
        }
        let before = self.arriving.len();
        self.arriving.retain(|arriving| {
            if there.contains(&arriving.id) {
                return false;
            }
            match equal.get_mut(&arriving.point.digest()) {
                Some(count) if *count > 0 => {
                    *count -= 1;
                    false
                }
                _ => true,
            }
        });
        if self.request.put {
            self.counts.already_there = (before - self.arriving.len()) as i64;
        }
        Ok(())
    }

    /// The statement that marks the request as stored.
    fn done(&self) -> Option<RawDocumentBuf> {
        let id = self.request.request.as_ref()?;
        let own = doc! { "_id": self.key(id), "owner": self.owner };
        let done = doc! { "$set": {
            "done": true,
            "accepted": self.counts.accepted,
            "too_old": self.counts.too_old,
            "in_future": self.counts.in_future,
        } };
        Some(update_statement(raw(&own).ok()?, raw(&done).ok()?))
    }
}

fn attempt_time(ready: &Connection) -> Duration {
    ready.patience() * 2 + ATTEMPT_SLACK
}

/// Inserts the points of all attempts together. Which attempts failed, by their place.
async fn insert(room: &Metrics, ready: &Connection, attempts: &[Attempt]) -> HashMap<usize, Error> {
    let mut failed = HashMap::new();
    let mut documents = Vec::new();
    let mut places = Vec::new();
    let latest = Instant::now() + ready.patience() * 2 + MARKED_WITHIN;
    for attempt in attempts {
        // A repetition that took the request over would store the same again.
        if attempt.deadline.is_some_and(|deadline| latest > deadline) {
            let late = Error::unavailable("the request waited too long for its turn");
            failed.insert(attempt.place, late);
            continue;
        }
        for arriving in &attempt.arriving {
            let id = ObjectId::from_bytes(arriving.id.0);
            match write_point(id, &attempt.request.execution_id, &arriving.point) {
                Ok(document) => {
                    documents.push(document);
                    places.push(attempt.place);
                }
                Err(error) => {
                    failed.insert(attempt.place, error);
                }
            }
        }
    }
    if documents.is_empty() {
        return failed;
    }
    let requests = attempts.iter().map(|attempt| {
        let times = attempt.arriving.iter().map(|arriving| arriving.point.at);
        (attempt.request.execution_id.as_str(), times)
    });
    let kept = (ready.patience(), room.kept_ms());
    let marks = match Marks::of(&room.marked, kept, requests) {
        Ok(marks) => marks,
        Err(error) => {
            failed.extend(places.into_iter().map(|place| (place, again(&error))));
            return failed;
        }
    };
    let marked = tokio::time::timeout(MARKED_WITHIN, marks.set(ready)).await;
    if let Err(error) = marked.unwrap_or_else(|_| Err(failure::timeout())) {
        failed.extend(places.into_iter().map(|place| (place, again(&error))));
        return failed;
    }
    // Through the driver, which repeats a lost command under its transaction number: executed once.
    let points = ready.latest(METRICS);
    let inserted = points.insert_many(&documents).ordered(false);
    let inserted = ready.try_call(inserted).await;
    marks.after(ready, matches!(inserted, Ok(Ok(_)))).await;
    let error = match inserted {
        Ok(Ok(_)) => return failed,
        Ok(Err(error)) => error,
        Err(error) => {
            failed.extend(places.into_iter().map(|place| (place, again(&error))));
            return failed;
        }
    };
    if let ErrorKind::InsertMany(errors) = error.kind.as_ref()
        && errors.write_concern_error.is_none()
        && let Some(errors) = &errors.write_errors
    {
        for error in errors {
            // The driver's own repetition on an ordinary collection: the id is ours, so the point is as well.
            if error.code == DUPLICATE_KEY && !room.time_series() {
                continue;
            }
            if let Some(place) = places.get(error.index) {
                tracing::error!(code = error.code, "the database refused a point of metrics");
                failed.insert(*place, failure::statement(error.code, &METRICS));
            }
        }
        return failed;
    }
    let error = failure::error(error).of_collection(&METRICS);
    failed.extend(places.into_iter().map(|place| (place, again(&error))));
    failed
}
