//! What stands between servers and MongoDB in tests: it reads every command that a server sends, judges it by the rules of a
//! sharded cluster (`rules`), and may make the mongod behind it look like a router (mongos) of such a cluster.
//!
//! `STEPWELL_TEST_THROUGH` says which: `monitor` (a replica set as it is) or `mongos`. Without it servers go to MongoDB
//! directly.

pub mod listed;
pub mod rules;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};

use mongodb::bson::{Bson, Document, doc};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::mongod::{address_of, is_given};
use listed::{Listed, Scattered};
use rules::{Judgement, judge};
use wire::{Command, Message};

const VARIABLE: &str = "STEPWELL_TEST_THROUGH";
/// Names a file to which every kind of query is added that went to all shards.
pub const SCATTERED_VARIABLE: &str = "STEPWELL_TEST_SCATTERED";

/// What it looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looks {
    ReplicaSet,
    Mongos,
}

fn looks() -> Option<Looks> {
    match std::env::var(VARIABLE).as_deref() {
        Ok("mongos") => Some(Looks::Mongos),
        Ok("monitor") => Some(Looks::ReplicaSet),
        Ok("") | Err(_) => None,
        Ok(other) => panic!("{VARIABLE} is {other}: it is monitor or mongos"),
    }
}

/// A mongod as servers are to reach it, whose connection string this is.
pub fn through(uri: String) -> String {
    // One that is given may be many, of which each names the others.
    let Some(looks) = looks().filter(|_| !is_given()) else { return uri };
    let address = address_of(&uri);
    let port = *locked(&PORTS)
        .entry(address.clone())
        .or_insert_with_key(|address| start(address.clone(), looks));
    let uri = uri.replacen(&address, &format!("127.0.0.1:{port}"), 1);
    match looks {
        Looks::ReplicaSet => uri,
        // Nobody names the set of a router.
        Looks::Mongos => uri.replacen("replicaSet=rs0&", "", 1).replacen("?replicaSet=rs0", "", 1),
    }
}

/// Those of this process, by the mongod behind each.
static PORTS: Mutex<BTreeMap<String, u16>> = Mutex::new(BTreeMap::new());

/// Starts one, on a runtime of its own: those of the cases end with them.
pub fn start(to: String, looks: Looks) -> u16 {
    let (tell, port) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
            let port = listener.local_addr().expect("bound").port();
            tell.send(port).expect("somebody waits for it");
            while let Ok((near, _)) = listener.accept().await {
                let way = Way { to: to.clone(), port, looks };
                tokio::spawn(async move { way.go(near).await });
            }
        });
    });
    port.recv().expect("it starts")
}

/// What servers did on a database that the rules of a sharded cluster forbid. Told once.
pub fn breaches(database: &str) -> Vec<String> {
    let breaches = locked(&SEEN).breaches.remove(database);
    breaches.into_iter().flatten().collect()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics while holding it")
}

static SEEN: Mutex<Seen> =
    Mutex::new(Seen { breaches: BTreeMap::new(), scattered: BTreeSet::new(), listed: None });

struct Seen {
    /// By database.
    breaches: BTreeMap<String, BTreeSet<String>>,
    scattered: BTreeSet<Scattered>,
    listed: Option<Vec<Listed>>,
}

impl Seen {
    fn note(&mut self, database: &str, judgement: Judgement) {
        let mut breaches = judgement.breaches;
        for scattered in judgement.scattered {
            if self.scattered.insert(scattered.clone())
                && let Some(path) = std::env::var_os(SCATTERED_VARIABLE)
            {
                // In one piece, as other processes may write as well.
                let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
                let line = format!("{scattered}\n");
                file.and_then(|mut file| file.write_all(line.as_bytes())).expect("it is written");
            }
            let listed = self.listed.get_or_insert_with(listed::read);
            if !listed.iter().any(|listed| listed.has(&scattered)) {
                breaches.push(format!(
                    "goes to all shards, and {} lacks it: {scattered}",
                    listed::PAGE
                ));
            }
        }
        if !breaches.is_empty() {
            self.breaches.entry(database.to_owned()).or_default().extend(breaches);
        }
    }
}

/// One connection.
struct Way {
    to: String,
    port: u16,
    looks: Looks,
}

impl Way {
    async fn go(self, near: TcpStream) {
        let Ok(far) = TcpStream::connect(&self.to).await else { return };
        let _ = near.set_nodelay(true);
        let _ = far.set_nodelay(true);
        let (mut from_near, to_near) = near.into_split();
        let (mut from_far, mut to_far) = far.into_split();
        let to_near = Arc::new(tokio::sync::Mutex::new(to_near));
        let there = async {
            while let Some(message) = Message::receive(&mut from_near).await {
                let sent = match self.refused(&message) {
                    Some(answer) => {
                        let answer = message.answered(&answer);
                        to_near.lock().await.write_all(answer.bytes()).await
                    }
                    None => to_far.write_all(message.bytes()).await,
                };
                if sent.is_err() {
                    return;
                }
            }
        };
        let back = async {
            while let Some(message) = Message::receive(&mut from_far).await {
                let message = self.dressed(message);
                if to_near.lock().await.write_all(message.bytes()).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! { () = there => {}, () = back => {} }
    }

    /// Notes what a command breaks. The answer of a router that refuses it.
    fn refused(&self, message: &Message) -> Option<Document> {
        let is_router = self.looks == Looks::Mongos;
        let Some(command) = Command::of(message) else {
            // Nobody looks away from what cannot be read.
            let mut seen = locked(&SEEN);
            let unread = Judgement::of_one("a message that the monitor cannot read".to_owned());
            seen.note("", unread);
            return None;
        };
        let judgement = judge(&command, is_router);
        let refused = judgement.refused.clone().filter(|_| is_router);
        if !judgement.is_empty() {
            locked(&SEEN).note(&command.database, judgement);
        }
        refused.map(|(code, why)| doc! { "ok": 0.0, "errmsg": why, "code": code })
    }

    /// An answer as it looks from here.
    fn dressed(&self, message: Message) -> Message {
        let Some(body) = message.body() else { return message };
        let has = |field: &str| matches!(body.get(field), Ok(Some(_)));
        let is_hello = has("maxWireVersion");
        let is_router = self.looks == Looks::Mongos;
        let has_place = is_router && PLACES.iter().any(|field| has(field));
        if !is_hello && !has_place {
            return message;
        }
        let Ok(mut body) = Document::try_from(body) else { return message };
        if is_router {
            for field in PLACES {
                body.remove(field);
            }
        }
        if is_hello && is_router {
            for field in OF_MEMBERS {
                body.remove(field);
            }
            body.insert("msg", "isdbgrid");
        } else if is_hello && body.contains_key("hosts") {
            let here = format!("127.0.0.1:{}", self.port);
            body.insert("hosts", vec![Bson::from(here.clone())]);
            for field in ["me", "primary"] {
                if body.contains_key(field) {
                    body.insert(field, here.clone());
                }
            }
        }
        message.with_body(&body)
    }
}

/// What answers to writes say of a place in the log, and those of routers do not.
const PLACES: [&str; 2] = ["opTime", "electionId"];
/// What members of a replica set say of themselves.
const OF_MEMBERS: [&str; 12] = [
    "setName",
    "setVersion",
    "hosts",
    "me",
    "primary",
    "secondary",
    "lastWrite",
    "passives",
    "arbiters",
    "isreplicaset",
    "readOnly",
    "tags",
];
