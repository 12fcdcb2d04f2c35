//! What is known of the servers behind an address: what the driver's monitors hear of them, which of them have been found
//! to hold the right database, and whether its pools have connections left.
//!
//! Calls pass the gate. It is shut from when a primary is heard of that nobody has looked at until it has been: a call that
//! is under way then ends, so that the driver does not send it again to a database of somebody else.

use std::collections::{HashMap, HashSet};
use std::future::IntoFuture as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bson::{Bson, Document, doc};
use mongodb::Database;
use mongodb::event::EventHandler;
use mongodb::event::cmap::CmapEvent;
use mongodb::event::sdam::SdamEvent;
use mongodb::options::{ReadPreference, SelectionCriteria};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::failure;
use crate::store::{Error, Outage, Result, Unavailable};

/// How long ago an answer may be for the database to be there.
const LATELY: Duration = Duration::from_secs(2);
/// How long what a write has met is the reason of its failure.
const MET: Duration = Duration::from_secs(10);
/// How long a call without an answer is asked about.
pub(super) const ASKED_FOR: Duration = Duration::from_millis(700);

/// Whether calls may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    /// There is a primary that has not been looked at.
    Shut,
    /// For good: this connection is given up.
    Left,
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Server {
    set: Option<String>,
    is_writable: bool,
    is_member: bool,
    /// Tells this process of this primary from all others.
    process: String,
}

impl Server {
    fn of(hello: &Document) -> Server {
        let is_router = hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid");
        let flag = |name: &str| hello.get_bool(name).unwrap_or(false);
        let set = hello.get_str("setName").ok().map(str::to_owned);
        Server {
            is_writable: flag("isWritablePrimary") || flag("ismaster") || is_router,
            is_member: set.is_some() && (flag("secondary") || flag("isWritablePrimary")),
            process: process(hello),
            set,
        }
    }
}

/// Tells one process of a server from all others, and its elections apart.
pub fn process(hello: &Document) -> String {
    let id = |document: &Document, name: &str| match document.get(name) {
        Some(Bson::ObjectId(id)) => id.to_hex(),
        _ => String::new(),
    };
    let version = hello.get_document("topologyVersion").map(|version| id(version, "processId"));
    format!("{}/{}", version.unwrap_or_default(), id(hello, "electionId"))
}

#[derive(Debug, Default)]
struct Seen {
    /// Those that the driver uses, by the pool whose monitor it is and the address.
    servers: HashMap<(usize, String), Server>,
    /// The set of every server that was heard of last, whether the driver uses it or not.
    sets: HashMap<(usize, String), Option<String>>,
    /// Processes that hold the right database.
    right: HashSet<String>,
    /// Whether processes are looked at before they are used.
    is_armed: bool,
    answered: Option<Instant>,
    /// What a write met last, and when.
    met: Option<(Instant, Unavailable)>,
    /// Why this connection was given up.
    left: Option<Unavailable>,
}

impl Seen {
    /// Whether some server takes writes that has not been looked at.
    fn has_stranger(&self) -> bool {
        self.is_armed
            && self
                .servers
                .values()
                .any(|server| server.is_writable && !self.right.contains(&server.process))
    }
}

/// How many connections of a pool are in use, and how many there may be.
#[derive(Debug, Default)]
struct Pool {
    used: AtomicU32,
    most: u32,
}

/// The servers behind one connection.
#[derive(Debug)]
pub struct View {
    seen: Mutex<Seen>,
    gate: watch::Sender<Gate>,
    pools: Vec<Pool>,
}

impl View {
    /// Of pools with at most so many connections each; 0 is no limit.
    pub fn of(pools: &[u32]) -> Arc<View> {
        let pools = pools.iter().map(|most| Pool { used: AtomicU32::new(0), most: *most });
        Arc::new(View {
            seen: Mutex::default(),
            gate: watch::Sender::new(Gate::Open),
            pools: pools.collect(),
        })
    }

    /// What the monitors of a pool tell.
    pub fn monitors(self: &Arc<View>, pool: usize) -> EventHandler<SdamEvent> {
        let view = Arc::clone(self);
        EventHandler::callback(move |event| match event {
            SdamEvent::ServerHeartbeatSucceeded(event) => {
                let at = (pool, event.server_address.to_string());
                view.hear(at, Some(Server::of(&event.reply)));
            }
            SdamEvent::ServerHeartbeatFailed(event) => {
                let at = (pool, event.server_address.to_string());
                view.seen.lock().sets.remove(&at);
                view.hear(at, None);
            }
            SdamEvent::ServerClosed(event) => view.hear((pool, event.address.to_string()), None),
            _ => {}
        })
    }

    /// What happens to the connections of a pool.
    pub fn connections(self: &Arc<View>, pool: usize) -> EventHandler<CmapEvent> {
        let view = Arc::clone(self);
        EventHandler::callback(move |event| {
            let Some(pool) = view.pools.get(pool) else { return };
            match event {
                CmapEvent::ConnectionCheckedOut(_) => {
                    pool.used.fetch_add(1, Ordering::Relaxed);
                }
                CmapEvent::ConnectionCheckedIn(_) => {
                    let less = |used: u32| Some(used.saturating_sub(1));
                    let _ = pool.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
                }
                _ => {}
            }
        })
    }

    fn hear(&self, at: (usize, String), server: Option<Server>) {
        let mut seen = self.seen.lock();
        match server {
            Some(server) => {
                seen.sets.insert(at.clone(), server.set.clone());
                seen.servers.insert(at, server);
            }
            None => {
                seen.servers.remove(&at);
            }
        }
        self.set_gate(&seen);
    }

    fn set_gate(&self, seen: &Seen) {
        let wanted = if seen.has_stranger() { Gate::Shut } else { Gate::Open };
        self.gate.send_if_modified(|gate| {
            let changes = *gate != Gate::Left && *gate != wanted;
            if changes {
                *gate = wanted;
            }
            changes
        });
    }

    /// From now on only processes that have been looked at are used.
    pub fn arm(&self) {
        let mut seen = self.seen.lock();
        seen.is_armed = true;
        self.set_gate(&seen);
    }

    /// A process, or all there are of routers, has been found to hold the right database.
    pub fn trust(&self, process: Option<String>) {
        let mut seen = self.seen.lock();
        match process {
            Some(process) => {
                seen.right.insert(process);
            }
            None => {
                let all: Vec<String> =
                    seen.servers.values().map(|server| server.process.clone()).collect();
                seen.right.extend(all);
            }
        }
        self.set_gate(&seen);
    }

    /// Whether a process has been found to hold the right database; `None`: all that are in use now.
    pub fn is_right(&self, process: Option<&str>) -> bool {
        let seen = self.seen.lock();
        match process {
            Some(process) => seen.right.contains(process),
            None => !seen.has_stranger(),
        }
    }

    /// Ends every call that is under way, and lets nothing pass any more, for this reason.
    pub fn leave(&self, why: &Unavailable) {
        self.seen.lock().left = Some(why.again());
        self.gate.send_replace(Gate::Left);
    }

    /// Why a call cannot be sent, or does not go on. Nobody who holds the gate may ask: it is set by who holds what was
    /// seen.
    fn shut(&self) -> Error {
        match &self.seen.lock().left {
            Some(why) => Error::Unavailable(why.again()),
            None => failure::elected(),
        }
    }

    pub fn is_open(&self) -> bool {
        *self.gate.borrow() == Gate::Open
    }

    /// Waits until there is something to look at, or nothing more to wait for.
    pub async fn stranger(&self) {
        let mut gate = self.gate.subscribe();
        drop(gate.wait_for(|gate| *gate != Gate::Open).await);
    }

    /// Whether calls may be sent now.
    pub async fn pass(&self, patience: Duration) -> Result<()> {
        if *self.gate.borrow() == Gate::Open {
            return Ok(());
        }
        let mut gate = self.gate.subscribe();
        let decided = async {
            // Only its value: who still holds the gate while waiting for what was seen waits for whoever sets it.
            let decided = gate.wait_for(|gate| *gate != Gate::Shut).await;
            decided.is_ok_and(|gate| *gate == Gate::Open)
        };
        match tokio::time::timeout(patience, decided).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(self.shut()),
        }
    }

    /// A call that is sent to the right database alone.
    pub async fn guarded<T>(
        &self,
        patience: Duration,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.pass(patience).await?;
        tokio::select! {
            biased;
            () = self.stranger() => Err(self.shut()),
            done = call => done,
        }
    }

    /// Notes what a write has met.
    pub fn met(&self, error: &Error) {
        if let Error::Unavailable(why) = error {
            self.seen.lock().met = Some((now(), why.again()));
        }
    }

    /// The failure of a write of which no more is known than that it failed, with what writes have met just now.
    pub fn explained(&self, error: Error) -> Error {
        let seen = self.seen.lock();
        match &seen.met {
            Some((at, why)) if failure::is_timeout(&error) && now().duration_since(*at) < MET => {
                Error::Unavailable(why.again())
            }
            _ => error,
        }
    }

    /// A call was answered, whatever it was told.
    pub fn heard(&self) {
        self.seen.lock().answered = Some(now());
    }

    /// Whether a call was answered lately.
    pub fn answered_lately(&self) -> bool {
        self.seen.lock().answered.is_some_and(|at| now().duration_since(at) < LATELY)
    }

    /// Whether all connections of one of the pools are in use.
    pub fn is_full(&self) -> bool {
        self.pools
            .iter()
            .any(|pool| pool.most > 0 && pool.used.load(Ordering::Relaxed) >= pool.most)
    }

    /// A failure with what the servers say of themselves.
    pub fn judged(&self, error: Error) -> Error {
        match error {
            Error::Unavailable(why) if why.outage == Outage::Away && self.lacks_primary() => {
                let said = why.why().unwrap_or_default();
                Error::out(Outage::ReadOnly, format!("the replica set has no primary: {said}"))
            }
            other => other,
        }
    }

    /// Whether there are members of the set, and no primary among them.
    pub fn lacks_primary(&self) -> bool {
        let seen = self.seen.lock();
        seen.servers.values().any(|server| server.is_member)
            && !seen.servers.values().any(|server| server.is_writable)
    }

    /// What is at the address and is not of this set, in words.
    pub fn other_than(&self, set: Option<&str>) -> Option<String> {
        let set = set?;
        let seen = self.seen.lock();
        Some(match seen.sets.values().find(|other| other.as_deref() != Some(set))? {
            Some(other) => {
                format!("a member of the replica set {other} is at the address, not of {set}")
            }
            None => format!("a server without a replica set is at the address, not one of {set}"),
        })
    }
}

/// Why a call has no answer: what the database itself says, if it does.
pub async fn silent(database: &Database, view: &View) -> Error {
    if view.is_full() && view.answered_lately() {
        return Error::out(Outage::Busy, "no connection became free in time");
    }
    let admin = database.client().database("admin");
    let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
    // Whose operations these are does not matter: the answer says whether writes are locked.
    let command = doc! { "currentOp": 1, "$ownOps": true, "ns": "nothing" };
    let asked = admin.run_command(command).selection_criteria(primary);
    match tokio::time::timeout(ASKED_FOR, asked.into_future()).await {
        Ok(Ok(reply)) if reply.get_bool("fsyncLock").unwrap_or(false) => {
            Error::out(Outage::ReadOnly, "the database is locked (fsyncLock)")
        }
        _ => failure::timeout(),
    }
}

#[expect(clippy::disallowed_methods, reason = "the clock is not handed to every part of it yet")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use bson::oid::ObjectId;

    use super::*;

    fn hello(process: ObjectId, set: Option<&str>, is_primary: bool) -> Document {
        let mut hello = doc! {
            "isWritablePrimary": is_primary,
            "secondary": set.is_some() && !is_primary,
            "topologyVersion": { "processId": process, "counter": 1_i64 },
        };
        if let Some(set) = set {
            hello.insert("setName", set);
        }
        hello
    }

    fn at(view: &View, address: &str, hello: &Document) {
        view.hear((0, address.to_owned()), Some(Server::of(hello)));
    }

    #[tokio::test]
    async fn nothing_passes_while_a_primary_is_unknown() {
        let view = View::of(&[4]);
        let (first, second) = (ObjectId::new(), ObjectId::new());
        let short = Duration::from_millis(1);
        at(&view, "a", &hello(first, Some("rs0"), true));
        view.trust(Some(process(&hello(first, Some("rs0"), true))));
        view.arm();
        view.pass(short).await.unwrap();
        // A secondary takes no writes.
        at(&view, "b", &hello(second, Some("rs0"), false));
        view.pass(short).await.unwrap();
        let under_way = view.guarded(short, async {
            at(&view, "b", &hello(second, Some("rs0"), true));
            std::future::pending::<Result<()>>().await
        });
        assert!(matches!(under_way.await, Err(Error::Unavailable(_))));
        assert!(view.pass(short).await.is_err());
        view.trust(Some(process(&hello(second, Some("rs0"), true))));
        view.pass(short).await.unwrap();
        let Error::Unavailable(why) = Error::out(Outage::ReadOnly, "no primary") else {
            unreachable!("it is one")
        };
        view.leave(&why);
        view.trust(None);
        let left = view.pass(short).await.unwrap_err();
        assert_eq!(left.outage(), Some(Outage::ReadOnly), "for good");
    }

    #[test]
    fn calls_that_are_refused_and_servers_that_are_heard_of_do_not_wait_for_each_other() {
        const TIMES: usize = 20_000;
        let view = View::of(&[4]);
        view.arm();
        let stranger = hello(ObjectId::new(), Some("rs0"), true);
        let calls = Arc::clone(&view);
        let (ended, end) = std::sync::mpsc::channel();
        let told = ended.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            runtime.expect("a runtime can be made").block_on(async {
                for _ in 0..TIMES {
                    let call = std::future::pending::<Result<()>>();
                    let _ = tokio::time::timeout(
                        Duration::from_micros(10),
                        calls.guarded(Duration::ZERO, call),
                    )
                    .await;
                }
            });
            told.send(()).expect("somebody waits");
        });
        std::thread::spawn(move || {
            for _ in 0..TIMES {
                at(&view, "a", &stranger);
                view.hear((0, "a".to_owned()), None);
            }
            view.leave(&match Error::unavailable("it is over") {
                Error::Unavailable(why) => why,
                _ => unreachable!("it is one"),
            });
            ended.send(()).expect("somebody waits");
        });
        for _ in 0..2 {
            end.recv_timeout(Duration::from_secs(60)).expect("both come to their end");
        }
    }

    #[test]
    fn what_is_at_the_address_is_told() {
        let view = View::of(&[0]);
        at(&view, "a", &hello(ObjectId::new(), Some("rs0"), false));
        assert!(view.lacks_primary());
        assert_eq!(view.other_than(Some("rs0")), None);
        at(&view, "a", &hello(ObjectId::new(), None, true));
        assert!(!view.lacks_primary());
        assert!(view.other_than(Some("rs0")).unwrap().contains("without a replica set"));
        at(&view, "a", &hello(ObjectId::new(), Some("rs1"), true));
        assert!(view.other_than(Some("rs0")).unwrap().contains("replica set rs1"));
        assert_eq!(view.other_than(None), None);
    }
}
