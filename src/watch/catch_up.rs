//! History for watchers that resume or were too slow. Few readers, each for everybody who waits: ten thousand
//! watchers that come back with ten thousand tokens are served by one pass from the oldest of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::event::Event;
use super::hub::Hub;
use super::queue::{End, Pushed, Queue};
use super::resolve::{Interest, Pass};
use super::subscriber::{Scope, again};
use super::waiting::Request;
use crate::clock::Clock;
use crate::store::{ChangeLog, ChangeReader, Cursor, Error, RecordKey, Result};

/// How long a reader waits in vain for watchers that do not take their events, while others wait for the reader:
/// for one of them, and for all of them during one batch.
const PATIENCE: Duration = Duration::from_millis(50);
/// The same for the only watcher that is served.
const PATIENCE_ALONE: Duration = Duration::from_secs(2);
/// How long a reader waits during one batch for watchers that do take their events, but slowly.
const PATIENCE_BATCH: Duration = Duration::from_secs(1);
/// Events pushed before a reader lets other tasks run.
const PUSHES_AT_A_TIME: usize = 4096;
/// Memory of one pass for executions by which filters are decided.
const EXECUTIONS_BYTES: u64 = 8 * 1024 * 1024;

/// Queues the request; a reader serves it soon.
pub fn request(hub: &Arc<Hub>, request: Request) {
    let catch_up = &hub.catch_up;
    let mut waiting = catch_up.waiting.lock();
    waiting.push(request);
    if catch_up.running.load(Ordering::Relaxed) < catch_up.most {
        catch_up.running.fetch_add(1, Ordering::Relaxed);
        let hub = Arc::clone(hub);
        hub.tasks.clone().spawn(async move {
            while let Some(group) = hub.catch_up.take() {
                tokio::select! {
                    () = hub.stop.cancelled() => {}
                    () = serve(&hub, group) => {}
                }
            }
        });
    }
}

struct Member {
    request: Request,
    /// Whether it still takes events.
    open: bool,
}

impl Member {
    fn end(&mut self, end: End) {
        self.open = false;
        self.request.queue.end(end);
    }
}

/// The members of one pass.
#[derive(Default)]
struct Group {
    members: Vec<Member>,
    open: usize,
    by_execution: HashMap<String, Vec<usize>>,
    by_filter: Vec<usize>,
}

impl Interest for Group {
    fn of(&self, key: &RecordKey) -> bool {
        self.candidates(key).any(|index| {
            let member = &self.members[index];
            member.open && member.request.subscriber.wants_key(key)
        })
    }

    fn any(&self) -> bool {
        self.open > 0
    }

    fn by_filter(&self) -> bool {
        !self.by_filter.is_empty()
    }
}

impl Group {
    fn add(&mut self, requests: Vec<Request>) {
        for request in requests {
            let index = self.members.len();
            match &request.subscriber.scope {
                Scope::Execution(id) => {
                    self.by_execution.entry(id.clone()).or_default().push(index);
                }
                Scope::Filter(_) => self.by_filter.push(index),
            }
            self.members.push(Member { request, open: true });
            self.open += 1;
        }
    }

    fn candidates(&self, key: &RecordKey) -> impl Iterator<Item = usize> {
        let by_execution = self.by_execution.get(&key.execution_id).into_iter().flatten();
        by_execution.chain(&self.by_filter).copied()
    }

    fn end(&mut self, index: usize, end: End) {
        if self.members[index].open {
            self.members[index].end(end);
            self.open -= 1;
        }
    }

    /// Ends those who have everything up to their end.
    fn finish_up_to(&mut self, cursor: &Cursor) {
        for index in 0..self.members.len() {
            if self.members[index].open && self.members[index].request.until <= *cursor {
                self.end(index, End::Done);
            }
        }
    }

    fn fail_all(&mut self, error: &Error) {
        for index in 0..self.members.len() {
            if self.members[index].open {
                self.end(index, End::Failed(again(error)));
            }
        }
    }
}

async fn serve(hub: &Arc<Hub>, mut requests: Vec<Request>) {
    requests.sort_by(|a, b| a.from.cmp(&b.from));
    let mut group = Group::default();
    let opened = match hub.store.log() {
        Ok(log) => open_oldest(log.as_ref(), &requests).await.map(|opened| (log, opened)),
        Err(error) => Err(error),
    };
    let (log, (reader, expired)) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            group.add(requests);
            group.fail_all(&error);
            return;
        }
    };
    for expired in requests.drain(..expired) {
        expired.queue.end(End::Failed(Error::CursorExpired));
    }
    let Some(mut reader) = reader else { return };
    group.add(requests);
    let pass = Pass::new(EXECUTIONS_BYTES);
    loop {
        let cursor = reader.cursor();
        group.add(hub.catch_up.take_after(&cursor));
        group.finish_up_to(&cursor);
        if !group.any() {
            return;
        }
        let events = match reader.next().await {
            Ok(changes) => hub.resolver.resolve(log.as_ref(), changes, &group, &pass).await,
            Err(error) => Err(error),
        };
        match events {
            Ok(events) => deliver(hub, &mut group, &events).await,
            Err(error) => {
                tracing::debug!(%error, "cannot read history");
                group.fail_all(&error);
            }
        }
    }
}

/// Opens the log at the oldest request that history still covers. The number is how many are too old.
async fn open_oldest(
    log: &dyn ChangeLog,
    requests: &[Request],
) -> Result<(Option<Box<dyn ChangeReader>>, usize)> {
    let open = async |index: usize| match log.open(Some(&requests[index].from)).await {
        Ok(reader) => Ok(Some(reader)),
        Err(Error::CursorExpired | Error::BadCursor) => Ok(None),
        Err(error) => Err(error),
    };
    if let Some(reader) = open(0).await? {
        return Ok((Some(reader), 0));
    }
    // Sorted: what is too old comes first, so the border is found by halving.
    let (mut expired, mut border, mut found) = (0, requests.len(), None);
    while border - expired > 1 {
        let middle = expired + (border - expired) / 2;
        match open(middle).await? {
            Some(reader) => (border, found) = (middle, Some(reader)),
            None => expired = middle,
        }
    }
    Ok((found, border))
}

/// What is left of a reader's patience during one batch.
struct Patience<'a> {
    clock: &'a dyn Clock,
    began: Instant,
    in_vain: Duration,
}

impl Patience<'_> {
    /// Waits until the watcher took something. False: it is not waited for.
    async fn wait(&mut self, queue: &Queue, alone: bool) -> bool {
        let limit = if alone { PATIENCE_ALONE } else { PATIENCE };
        let left = limit.saturating_sub(self.in_vain);
        if left.is_zero() || (!alone && self.clock.elapsed(self.began) >= PATIENCE_BATCH) {
            return false;
        }
        let began = self.clock.instant();
        let drained = tokio::time::timeout(left, queue.drained()).await.is_ok();
        if !drained {
            self.in_vain += self.clock.elapsed(began);
        }
        drained
    }
}

async fn deliver(hub: &Arc<Hub>, group: &mut Group, events: &[Arc<Event>]) {
    let clock = &*hub.clock;
    let mut patience = Patience { clock, began: clock.instant(), in_vain: Duration::ZERO };
    let mut pushed = 0;
    for event in events {
        let candidates: Vec<usize> = group.candidates(&event.key).collect();
        for index in candidates {
            let member = &group.members[index];
            let request = &member.request;
            let due = member.open
                && request.from < event.cursor
                && event.cursor <= request.until
                && request.subscriber.wants(event);
            if !due {
                continue;
            }
            let queue = Arc::clone(&request.queue);
            loop {
                match queue.try_push(event) {
                    Pushed::Queued => break,
                    Pushed::Gone => {
                        group.end(index, End::Full);
                        break;
                    }
                    Pushed::Full => {}
                }
                // Those who read are waited for; those who do not come back when they do.
                let alone = group.open == 1 && !hub.catch_up.others_wait();
                if !patience.wait(&queue, alone).await {
                    group.end(index, End::Full);
                    break;
                }
            }
            pushed += 1;
            if pushed % PUSHES_AT_A_TIME == 0 {
                tokio::task::yield_now().await;
            }
        }
        if !group.any() {
            return;
        }
    }
}
