//! What is recorded, and what is not done, over a store that fails when it is told to.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bson::raw::RawDocumentBuf;

use super::*;
use crate::clock::SystemClock;
use crate::domain::audit::{Actor, Head};
use crate::domain::query::Page;
use crate::store::audit::{Appended, AuditKey, AuditQuery, Opening};
use crate::store::{Error, Result};

/// What a store does with the next records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Good,
    Refuses,
    /// Takes them, and loses the answer.
    Mute,
}

struct Memory {
    mood: Mutex<Mood>,
    entries: Mutex<Vec<Entry>>,
    opened: AtomicUsize,
}

#[async_trait]
impl AuditStore for Memory {
    async fn open_chain(&self, opening: Opening) -> Result<()> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        match self.append(vec![opening.entry]).await? {
            Appended::Surely { .. } => Ok(()),
            Appended::Perhaps { error, .. } | Appended::Partly { error, .. } => Err(error),
        }
    }

    async fn append(&self, entries: Vec<Entry>) -> Result<Appended> {
        let mood = *self.mood.lock();
        let mut all = self.entries.lock();
        let first = all.len() as i64 + 1;
        match mood {
            Mood::Good => {
                all.extend(entries);
                Ok(Appended::Surely { first })
            }
            Mood::Mute => {
                all.extend(entries);
                Ok(Appended::Perhaps { first, error: Error::away() })
            }
            Mood::Refuses => Err(Error::unaudited("no")),
        }
    }

    fn is_settled(&self) -> bool {
        true
    }

    fn own_head(&self) -> Option<Head> {
        None
    }

    async fn heads(&self, _: Option<&str>, _: usize) -> Result<Vec<Head>> {
        Ok(Vec::new())
    }

    async fn chain(&self, _: &str, _: i64, _: usize, _: usize) -> Result<Vec<RawDocumentBuf>> {
        Ok(Vec::new())
    }

    async fn events(&self, _: &AuditQuery) -> Result<Page<RawDocumentBuf, AuditKey>> {
        Ok(Page { records: Vec::new(), next: None })
    }
}

impl Memory {
    fn told(&self) -> Vec<(&'static str, &'static str)> {
        self.entries.lock().iter().map(|entry| (entry.event, entry.phase.as_str())).collect()
    }
}

fn rig(mood: Mood) -> (Audit, Arc<Memory>) {
    let store = Arc::new(Memory {
        mood: Mutex::new(mood),
        entries: Mutex::default(),
        opened: AtomicUsize::new(0),
    });
    let settings = Settings {
        level: Level::Security,
        server: "s".to_owned(),
        version: "0",
        kept: None,
        codes: |_| "INTERNAL",
    };
    let audit = Audit::start(settings, Arc::clone(&store) as _, Arc::new(SystemClock));
    (audit, store)
}

fn asked() -> Asked {
    let actor = Arc::new(Actor::new("key", "k", "ann"));
    Asked { actor, peer: None, rpc: "a.B/C", request_id: None }
}

#[tokio::test]
async fn what_begins_is_recorded_before_it_is_done_and_ends() {
    let (audit, store) = rig(Mood::Good);
    let open = audit.begin("x.y", &asked(), Target::default()).await.expect("it is recorded");
    assert_eq!(store.told(), [("server.start", "once"), ("x.y", "begin")]);
    open.end("OK", None, Target::execution("made"));
    audit.stop(Duration::from_secs(5)).await;
    let told = store.told();
    assert_eq!(told[2..], [("x.y", "end"), ("server.stop", "once")]);
    let end = store.entries.lock()[2].clone();
    assert_eq!(end.details.get_i64("begin").ok(), Some(2));
    assert_eq!(end.target, Target::execution("made"));
    assert!(audit.begin("x.y", &asked(), Target::default()).await.is_err(), "the chain has ended");
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_done_and_the_server_recovers() {
    let (audit, store) = rig(Mood::Refuses);
    assert!(audit.begin("x.y", &asked(), Target::default()).await.is_err());
    audit.denied(&asked(), Target::default(), "ROLE_FORBIDS".to_owned());
    assert!(audit.once("x.y", &asked(), Target::default(), ("OK", None)).await.is_err());
    assert!(store.told().is_empty());
    *store.mood.lock() = Mood::Good;
    let open = audit.begin("x.y", &asked(), Target::default()).await.expect("it is recorded");
    open.end("OK", None, Target::default());
    audit.stop(Duration::from_secs(5)).await;
    let events: Vec<&str> = store.told().into_iter().map(|(event, _)| event).collect();
    assert_eq!(events, ["server.start", "call.deny", "x.y", "x.y", "server.stop"]);
}

#[tokio::test]
async fn a_beginning_that_is_perhaps_recorded_is_not_done_and_ends() {
    let (audit, store) = rig(Mood::Good);
    drop(audit.begin("first", &asked(), Target::default()).await);
    *store.mood.lock() = Mood::Mute;
    assert!(audit.begin("x.y", &asked(), Target::default()).await.is_err());
    *store.mood.lock() = Mood::Good;
    audit.stop(Duration::from_secs(5)).await;
    let told = store.told();
    assert_eq!(told[2..], [("x.y", "begin"), ("x.y", "end"), ("server.stop", "once")]);
    let end = store.entries.lock()[3].clone();
    assert_eq!((end.code, end.reason.as_deref()), ("UNAVAILABLE", Some("AUDIT_UNAVAILABLE")));
    assert_eq!(end.details.get_i64("begin").ok(), Some(3));
}

#[tokio::test]
async fn without_a_level_nothing_is_recorded_and_nothing_waits() {
    let audit = Audit::off();
    audit.begin("x.y", &asked(), Target::default()).await.expect("off").end(
        "OK",
        None,
        Target::default(),
    );
    audit.once("x.y", &asked(), Target::default(), ("OK", None)).await.expect("off");
    audit.denied(&asked(), Target::default(), String::new());
    audit.stop(Duration::ZERO).await;
    assert!(!audit.is_on() && audit.level() == Level::Off);
}

#[tokio::test]
async fn a_server_waits_for_its_chain_to_begin_and_no_longer_than_for_one_more_try() {
    let (audit, store) = rig(Mood::Refuses);
    audit.begun().await;
    assert!(store.told().is_empty(), "it could not begin");
    assert!((1..=2).contains(&store.opened.load(Ordering::SeqCst)));
    *store.mood.lock() = Mood::Good;
    audit.begun().await;
    assert_eq!(store.told(), [("server.start", "once")]);
    audit.begun().await;
    audit.stop(Duration::from_secs(5)).await;
    Audit::off().begun().await;
}
