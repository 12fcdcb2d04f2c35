//! History for watchers that resume or were too slow. Few readers, each for everybody who waits: ten thousand
//! watchers that come back with ten thousand tokens are served by one pass from the oldest of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::event::Event;
use super::hub::{Hub, Scope, Subscriber};
use super::queue::{End, Queue};
use super::resolve::{Interest, Want};
use crate::store::{ChangeLog, ChangeReader, Cursor, Error, RecordKey, Result};

/// How long a reader waits for a watcher that does not take its events, while others wait for the reader.
const PATIENCE_SHARED: Duration = Duration::from_millis(50);
/// The same while nobody else does.
const PATIENCE_ALONE: Duration = Duration::from_secs(5);

/// A watcher's wish: everything after `from` up to `until`, into the queue.
pub struct Request {
    pub subscriber: Arc<Subscriber>,
    pub from: Cursor,
    pub until: Cursor,
    pub queue: Arc<Queue>,
}

/// Readers of history.
pub struct CatchUp {
    waiting: Mutex<Vec<Request>>,
    running: AtomicUsize,
    most: usize,
}

impl CatchUp {
    pub fn new(most: usize) -> Self {
        CatchUp { waiting: Mutex::default(), running: AtomicUsize::new(0), most: most.max(1) }
    }

    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    fn others_wait(&self) -> bool {
        !self.waiting.lock().is_empty()
    }

    fn take(&self) -> Option<Vec<Request>> {
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() {
            // Under the lock: who comes next sees the free place.
            self.running.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(std::mem::take(&mut *waiting))
    }
}

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
                serve(&hub, group).await;
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
struct Group {
    members: Vec<Member>,
    by_execution: HashMap<String, Vec<usize>>,
    by_filter: Vec<usize>,
}

impl Interest for Group {
    fn of(&self, key: &RecordKey) -> Want {
        self.candidates(key)
            .filter(|index| self.members[*index].open)
            .map(|index| self.members[index].request.subscriber.want(key))
            .max()
            .unwrap_or(Want::Nothing)
    }

    fn any(&self) -> bool {
        self.members.iter().any(|member| member.open)
    }

    fn by_filter(&self) -> bool {
        !self.by_filter.is_empty()
    }
}

impl Group {
    fn new(requests: Vec<Request>) -> Self {
        let mut group =
            Group { members: Vec::new(), by_execution: HashMap::new(), by_filter: Vec::new() };
        for (index, request) in requests.into_iter().enumerate() {
            match &request.subscriber.scope {
                Scope::Execution(id) => {
                    group.by_execution.entry(id.clone()).or_default().push(index);
                }
                Scope::Filter(_) => group.by_filter.push(index),
            }
            group.members.push(Member { request, open: true });
        }
        group
    }

    fn candidates(&self, key: &RecordKey) -> impl Iterator<Item = usize> {
        let by_execution = self.by_execution.get(&key.execution_id).into_iter().flatten();
        by_execution.chain(&self.by_filter).copied()
    }

    /// Ends those who have everything up to their end.
    fn finish_up_to(&mut self, cursor: &Cursor) {
        for member in &mut self.members {
            if member.open && member.request.until <= *cursor {
                member.end(End::Done);
            }
        }
    }

    fn fail_all(&mut self, error: impl Fn() -> Error) {
        for member in self.members.iter_mut().filter(|member| member.open) {
            member.end(End::Failed(error()));
        }
    }
}

async fn serve(hub: &Arc<Hub>, mut requests: Vec<Request>) {
    requests.sort_by(|a, b| a.from.cmp(&b.from));
    let log = match hub.store.log() {
        Ok(log) => log,
        Err(_) => {
            Group::new(requests).fail_all(|| Error::NoLog);
            return;
        }
    };
    let (mut reader, first) = match open_oldest(log.as_ref(), &requests).await {
        Ok(opened) => opened,
        Err(_) => {
            Group::new(requests).fail_all(|| Error::Unavailable(None));
            return;
        }
    };
    for expired in requests.drain(..first) {
        expired.queue.end(End::Failed(Error::CursorExpired));
    }
    let Some(reader) = reader.as_mut() else { return };
    let mut group = Group::new(requests);
    loop {
        group.finish_up_to(&reader.cursor());
        if !group.any() {
            return;
        }
        let read = tokio::select! {
            () = hub.stop.cancelled() => return,
            read = reader.next() => read,
        };
        let events = match read {
            Ok(changes) => hub.resolver.resolve(log.as_ref(), changes, &group).await,
            Err(error) => Err(error),
        };
        match events {
            Ok(events) => {
                for event in events {
                    deliver(hub, &mut group, &event).await;
                }
            }
            Err(Error::CursorExpired) => group.fail_all(|| Error::CursorExpired),
            Err(error) => {
                tracing::debug!(%error, "history cannot be read");
                group.fail_all(|| Error::Unavailable(None));
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

async fn deliver(hub: &Arc<Hub>, group: &mut Group, event: &Arc<Event>) {
    let candidates: Vec<usize> = group.candidates(&event.key).collect();
    for index in candidates {
        let member = &mut group.members[index];
        let request = &member.request;
        let due = member.open
            && request.from < event.cursor
            && event.cursor <= request.until
            && request.subscriber.wants(event);
        if !due {
            continue;
        }
        while !request.queue.try_push(event) {
            // Those who read are waited for; those who do not come back when they do.
            let alone = group.by_execution.len() + group.by_filter.len() == 1
                && !hub.catch_up.others_wait();
            let patience = if alone { PATIENCE_ALONE } else { PATIENCE_SHARED };
            let drained = tokio::select! {
                () = hub.stop.cancelled() => false,
                drained = tokio::time::timeout(patience, request.queue.drained()) => drained.is_ok(),
            };
            if !drained {
                group.members[index].end(End::Full);
                break;
            }
        }
    }
}
