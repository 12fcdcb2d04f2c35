//! The document of a record: what it says, between its place in a chain and the hashes that hold the chain together.

use bson::oid::ObjectId;
use bson::raw::{RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::spec::BinarySubtype;
use bson::{Binary, DateTime};
use sha2::{Digest as _, Sha256};

use super::entry::{Entry, Target};
use crate::domain::Millis;

/// SHA-256.
pub type Hash = [u8; 32];

/// What stands before the bytes of the hash in a document: a binary named `hash` of 32 bytes, of the usual kind.
const HASH_FIELD: [u8; 11] = [0x05, b'h', b'a', b's', b'h', 0, 32, 0, 0, 0, 0];

/// The place of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub id: [u8; 12],
    pub server: String,
    /// From 1.
    pub seq: i64,
    pub at: Millis,
    /// Zeros at first.
    pub prev: Hash,
}

/// A document with its hash.
#[derive(Debug, Clone, PartialEq)]
pub struct Sealed {
    pub document: RawDocumentBuf,
    pub hash: Hash,
}

/// The newest record of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub server: String,
    pub seq: i64,
    pub hash: Hash,
    pub at: Millis,
    /// Whether the server has ended it.
    pub stopped: bool,
}

/// The event of the first and of the last record of a chain, and of one that only says that the server is still there.
pub const START: &str = "server.start";
pub const STOP: &str = "server.stop";
pub const ALIVE: &str = "server.alive";

fn binary(bytes: &Hash) -> Binary {
    Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() }
}

/// Makes the document of a record. The fields are in this order for ever: the hash is of the bytes.
pub fn seal(link: &Link, entry: &Entry) -> Sealed {
    let mut document = RawDocumentBuf::new();
    document.append(cstr!("_id"), ObjectId::from_bytes(link.id));
    document.append(cstr!("server"), link.server.as_str());
    document.append(cstr!("seq"), link.seq);
    document.append(cstr!("at"), DateTime::from_millis(link.at));
    entry.append(&mut document);
    document.append(cstr!("prev"), binary(&link.prev));
    let hash = Sha256::digest(document.as_bytes()).into();
    document.append(cstr!("hash"), binary(&hash));
    Sealed { document, hash }
}

/// The hash of a stored document as it should be; `None`: it does not end with a hash, so it is no record.
pub fn expected_hash(document: &RawDocument) -> Option<Hash> {
    let bytes = document.as_bytes();
    // Length, fields, a zero.
    let end = bytes.len().checked_sub(1)?;
    let start = end.checked_sub(HASH_FIELD.len() + 32)?;
    if bytes.get(start..start + HASH_FIELD.len())? != HASH_FIELD {
        return None;
    }
    let length = i32::try_from(start + 1).ok()?;
    let mut hash = Sha256::new();
    hash.update(length.to_le_bytes());
    hash.update(bytes.get(4..start)?);
    hash.update([0]);
    Some(hash.finalize().into())
}

/// A record as it is read.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub id: String,
    pub server: String,
    pub seq: i64,
    pub at: Millis,
    pub event: String,
    pub phase: String,
    pub outcome: Option<String>,
    pub code: String,
    pub reason: Option<String>,
    pub actor: super::entry::Actor,
    pub peer: String,
    pub rpc: String,
    pub target: Target,
    pub count: i32,
    pub details: RawDocumentBuf,
    pub request_id: String,
    pub prev: Hash,
    pub hash: Hash,
}

fn field<'a>(document: &'a RawDocument, name: &str) -> Option<RawBsonRef<'a>> {
    document.get(name).ok().flatten()
}

fn text(document: &RawDocument, name: &str) -> Option<String> {
    field(document, name)?.as_str().map(str::to_owned)
}

fn hash(document: &RawDocument, name: &str) -> Option<Hash> {
    match field(document, name)? {
        RawBsonRef::Binary(binary) => binary.bytes.try_into().ok(),
        _ => None,
    }
}

/// Server, number, time and hash of a stored document.
pub fn head(document: &RawDocument) -> Option<Head> {
    Some(Head {
        server: text(document, "server")?,
        seq: field(document, "seq")?.as_i64()?,
        hash: hash(document, "hash")?,
        at: field(document, "at")?.as_datetime()?.timestamp_millis(),
        stopped: field(document, "event")?.as_str()? == STOP,
    })
}

impl Record {
    /// `None`: it is no record, whatever it is.
    pub fn read(document: &RawDocument) -> Option<Record> {
        let Head { server, seq, at, .. } = head(document)?;
        let actor = field(document, "actor")?.as_document()?;
        let target = field(document, "target")?.as_document()?;
        Some(Record {
            id: match field(document, "_id")? {
                RawBsonRef::ObjectId(id) => id.to_hex(),
                _ => return None,
            },
            server,
            seq,
            at,
            event: text(document, "event")?,
            phase: text(document, "phase")?,
            outcome: text(document, "outcome"),
            code: text(document, "code")?,
            reason: text(document, "reason"),
            actor: super::entry::Actor {
                kind: text(actor, "kind")?,
                id: text(actor, "id")?,
                name: text(actor, "name")?,
            },
            peer: text(document, "peer")?,
            rpc: text(document, "rpc")?,
            target: Target {
                execution_id: text(target, "execution_id"),
                step_id: field(target, "step_id").and_then(|id| id.as_i32()),
                artifact_id: text(target, "artifact_id"),
                key_id: text(target, "key_id"),
                app_name: text(target, "app_name"),
                version: text(target, "version"),
            },
            count: field(document, "count")?.as_i32()?,
            details: field(document, "details")?.as_document()?.to_owned(),
            request_id: text(document, "request_id")?,
            prev: hash(document, "prev")?,
            hash: hash(document, "hash")?,
        })
    }
}

/// The heads that the first record of a chain lists: those of chains that had not ended, and of some that had.
pub fn listed_heads(document: &RawDocument) -> Vec<Head> {
    let Some(details) = field(document, "details").and_then(|details| details.as_document()) else {
        return Vec::new();
    };
    let mut heads = Vec::new();
    for (list, stopped) in [("heads", false), ("ended", true)] {
        let Some(listed) = field(details, list).and_then(|list| list.as_array()) else { continue };
        for head in listed.into_iter().flatten() {
            let Some(head) = head.as_document() else { continue };
            let read = || {
                Some(Head {
                    server: text(head, "server")?,
                    seq: field(head, "seq")?.as_i64()?,
                    hash: hash(head, "hash")?,
                    at: field(head, "at")?.as_datetime()?.timestamp_millis(),
                    stopped,
                })
            };
            heads.extend(read());
        }
    }
    heads
}

/// The same, to be written.
pub fn details_of_start(heads: &[Head]) -> RawDocumentBuf {
    let mut details = RawDocumentBuf::new();
    for (list, stopped) in [(cstr!("heads"), false), (cstr!("ended"), true)] {
        let mut listed = bson::raw::RawArrayBuf::new();
        for head in heads.iter().filter(|head| head.stopped == stopped) {
            let mut one = RawDocumentBuf::new();
            one.append(cstr!("server"), head.server.as_str());
            one.append(cstr!("seq"), head.seq);
            one.append(cstr!("hash"), binary(&head.hash));
            one.append(cstr!("at"), DateTime::from_millis(head.at));
            listed.push(one);
        }
        details.append(list, listed);
    }
    details
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::audit::entry::{Actor, Asked, Phase, RequestId};

    pub fn link(seq: i64, prev: Hash) -> Link {
        Link { id: [7; 12], server: "s".to_owned(), seq, at: 1_700_000_000_000 + seq, prev }
    }

    #[test]
    fn a_document_has_its_fields_in_order_and_is_read_back() {
        let asked = Asked {
            actor: Arc::new(Actor::new("key", "k", "ann")),
            peer: Some("10.0.0.1".parse().unwrap()),
            rpc: "a.B/C",
            request_id: Some(RequestId::Numbered { server: 7, number: 3 }),
        };
        let target = Target {
            execution_id: Some("e".to_owned()),
            step_id: Some(3),
            app_name: Some("app".to_owned()),
            ..Target::default()
        };
        let begin = Entry::begin("b.c", &asked, target.clone());
        let end = begin.clone().ended(Phase::End, "NOT_FOUND", Some("GONE".to_owned()));
        let sealed = seal(&link(2, [1; 32]), &end);
        let names: Vec<String> =
            sealed.document.iter().map(|element| element.unwrap().0.as_str().to_owned()).collect();
        assert_eq!(
            names,
            [
                "_id",
                "server",
                "seq",
                "at",
                "event",
                "phase",
                "outcome",
                "code",
                "reason",
                "actor",
                "peer",
                "rpc",
                "target",
                "count",
                "details",
                "request_id",
                "prev",
                "hash",
            ]
        );
        let record = Record::read(&sealed.document).unwrap();
        assert_eq!((record.target, record.code.as_str()), (target, "NOT_FOUND"));
        assert_eq!((record.outcome.as_deref(), record.hash), (Some("failed"), sealed.hash));
        assert_eq!(record.reason.as_deref(), Some("GONE"));
        assert_eq!((record.peer.as_str(), record.request_id.as_str()), ("10.0.0.1", "00000007-3"));
        let begun = seal(&link(1, [0; 32]), &begin);
        let record = Record::read(&begun.document).unwrap();
        assert_eq!((record.outcome, record.code.as_str(), record.reason), (None, "", None));
    }

    #[test]
    fn the_hash_is_of_the_document_without_it() {
        let sealed = seal(&link(1, [0; 32]), &Entry::of_server(START));
        let mut document = bson::Document::try_from(sealed.document.as_ref()).unwrap();
        document.remove("hash");
        let bytes = document.to_vec().unwrap();
        assert_eq!(sealed.hash, <Hash>::from(Sha256::digest(&bytes)));
        assert_eq!(expected_hash(&sealed.document), Some(sealed.hash));
        let without = RawDocumentBuf::try_from(&document).unwrap();
        assert_eq!(expected_hash(&without), None);
    }

    #[test]
    fn a_start_lists_the_heads_of_others() {
        let head = |server: &str, stopped| Head {
            server: server.to_owned(),
            seq: 4,
            hash: [9; 32],
            at: 5,
            stopped,
        };
        let heads = vec![head("a", false), head("b", true)];
        let entry = Entry { details: details_of_start(&heads), ..Entry::of_server(START) };
        let sealed = seal(&link(1, [0; 32]), &entry);
        assert_eq!(listed_heads(&sealed.document), heads);
    }
}
