//! The statements of write commands, and what became of each. Every statement of ours names its collation here.

use bson::raw::cstr;
use bson::{Bson, Document, RawArrayBuf, RawDocumentBuf, doc, rawdoc};

use super::collection::{simple_document, simple_raw};
use super::failure::{self, DUPLICATE_KEY};
use super::names::Name;
use super::values::integer_of;

/// Statements in one command at most; the server takes 100,000.
const STATEMENTS: usize = 1000;
/// Size up to which statements are put together. A command may have 16 MiB, and one record nearly as much.
const COMMAND_BYTES: usize = 10 * 1024 * 1024;
/// A hint that names no index any more; or a document with something else where updates are listed.
pub(super) const BAD_VALUE: i32 = 2;
/// A document with something else where digests are.
pub(super) const NO_OBJECT: i32 = 28;

/// The unique index that holds a key already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holder {
    pub index: String,
    /// Its fields.
    pub keys: Vec<String>,
    /// Whether it takes text for equal that is not.
    pub collated: bool,
}

impl Holder {
    fn of(error: &Document) -> Holder {
        let message = error.get_str("errmsg").unwrap_or_default();
        let keys = error.get_document("keyPattern").map(|keys| keys.keys().cloned().collect());
        Holder {
            index: failure::doubled_index(message).unwrap_or_default().to_owned(),
            keys: keys.unwrap_or_default(),
            collated: error.contains_key("collation"),
        }
    }

    /// Whether a document with the same values in these fields holds it.
    pub fn is_of(&self, fields: &[&str]) -> bool {
        !self.collated && self.keys == fields
    }
}

/// What became of one statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Applied; durably when its chain has ended as `Durability::Certain`.
    Done,
    /// A unique index holds the key already.
    Duplicate(Holder),
    /// It matched nothing, for sure.
    Unmatched,
    /// Part of a command in which some statements matched nothing; which ones is not known. Or of one that was sent
    /// again, and that the first sending made match nothing.
    Doubtful,
    /// Refused by the database for a reason of its own.
    Refused(i32),
    /// No answer: applied or not.
    Unknown,
}

impl Fate {
    /// After an election: what was done may be undone.
    pub fn or_doubtful(self) -> Fate {
        match self {
            Fate::Done => Fate::Doubtful,
            other => other,
        }
    }

    /// The same when nobody answers.
    pub fn or_unknown(self) -> Fate {
        match self {
            Fate::Done => Fate::Unknown,
            other => other,
        }
    }
}

/// A statement that updates the one document that matches.
pub fn update_statement(filter: RawDocumentBuf, update: RawDocumentBuf) -> RawDocumentBuf {
    rawdoc! { "q": filter, "u": update, "collation": simple_raw() }
}

/// The same for commands that are no hot path.
pub fn update_document(filter: Document, update: Document) -> Document {
    doc! { "q": filter, "u": update, "collation": simple_document() }
}

/// A statement that deletes the one document that matches.
pub fn delete_document(filter: Document) -> Document {
    doc! { "q": filter, "limit": 1, "collation": simple_document() }
}

pub(super) fn insert_command(collection: Name) -> impl Fn(RawArrayBuf) -> RawDocumentBuf {
    move |documents| {
        let mut command = rawdoc! { "insert": collection, "ordered": false };
        command.append(cstr!("documents"), documents);
        command
    }
}

/// The same, one document after the other, and none after one that is refused.
pub(super) fn ordered_insert_command(collection: Name, documents: RawArrayBuf) -> RawDocumentBuf {
    let mut command = rawdoc! { "insert": collection, "ordered": true };
    command.append(cstr!("documents"), documents);
    command
}

/// Of such a command: how many were inserted, and what became of the first that was not.
pub(super) fn read_ordered(reply: &Reply, count: usize) -> (usize, Option<Fate>) {
    let fates = read_reply(reply, count);
    let failed = |fate: &Fate| !matches!(fate, Fate::Done | Fate::Doubtful | Fate::Unmatched);
    match fates.iter().position(failed) {
        Some(place) => (place, fates.into_iter().nth(place)),
        None => (count, None),
    }
}

pub(super) fn update_command(collection: Name) -> impl Fn(RawArrayBuf) -> RawDocumentBuf {
    move |statements| {
        let mut command = rawdoc! { "update": collection, "ordered": false };
        command.append(cstr!("updates"), statements);
        command
    }
}

pub(super) fn hinted(statement: &RawDocumentBuf, index: &str) -> RawDocumentBuf {
    let mut statement = statement.clone();
    if !matches!(statement.get("hint"), Ok(Some(_))) {
        statement.append(cstr!("hint"), index);
    }
    statement
}

/// The same update for a document in which another program has put something else where digests are, or where
/// updates are listed among them. `None`: it adds to no list.
pub(super) fn mended(statement: &RawDocumentBuf, code: i32) -> Option<RawDocumentBuf> {
    let mut statement = Document::try_from(statement).ok()?;
    let update = statement.get_document_mut("u").ok()?;
    let Some(Bson::Document(push)) = update.remove("$push") else { return None };
    let set = update.get_document_mut("$set").ok()?;
    for (field, value) in push {
        let listed = value.as_document()?.get("$each")?.clone();
        set.insert(field, listed);
    }
    if code == NO_OBJECT {
        const DIGESTS: &str = "digests.";
        let names: Vec<String> = set.keys().filter(|n| n.starts_with(DIGESTS)).cloned().collect();
        let mut digests = Document::new();
        for name in names {
            let value = set.remove(&name)?;
            digests.insert(&name[DIGESTS.len()..], value);
        }
        set.insert("digests", digests);
        // There is nothing to take out of what is no object.
        if let Ok(unset) = update.get_document_mut("$unset") {
            let names: Vec<String> = unset.keys().cloned().collect();
            for name in names.iter().filter(|name| name.starts_with(DIGESTS)) {
                unset.remove(name);
            }
            if unset.is_empty() {
                update.remove("$unset");
            }
        }
    }
    RawDocumentBuf::try_from(&statement).ok()
}

pub(super) struct Reply {
    pub document: Document,
    pub sent_again: bool,
}

/// Cuts statements into pieces that fit into a command.
pub(super) fn pieces(statements: &[RawDocumentBuf]) -> impl Iterator<Item = &[RawDocumentBuf]> {
    let mut rest = statements;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let mut count = 0;
        for statement in rest.iter().take(STATEMENTS) {
            bytes += statement.as_bytes().len() + 8;
            if count > 0 && bytes > COMMAND_BYTES {
                break;
            }
            count += 1;
        }
        let (piece, later) = rest.split_at(count);
        rest = later;
        (count > 0).then_some(piece)
    })
}

pub(super) fn refused(collection: Name, source: &dyn std::fmt::Display) -> Fate {
    tracing::error!(%collection, error = %source, "the database refused a write");
    Fate::Refused(0)
}

/// The write was executed, but whether it is durable is not known.
pub(super) fn concern_failure(reply: &Document) -> Option<i32> {
    let error = reply.get_document("writeConcernError").ok()?;
    let code = error.get_i32("code").unwrap_or(0);
    // Whatever it is (time out, step-down), only asking again tells; a wrong setting fails the same way for ever.
    Some(if failure::is_passing_code(code) || code == 100 { code.max(1) } else { 64 })
}

pub(super) fn read_reply(reply: &Reply, count: usize) -> Vec<Fate> {
    let Reply { document: reply, sent_again } = reply;
    let mut fates = vec![Fate::Done; count];
    let mut failed = 0;
    for error in reply.get_array("writeErrors").into_iter().flatten() {
        let Some(error) = error.as_document() else { continue };
        let index =
            error.get("index").and_then(integer_of).and_then(|index| usize::try_from(index).ok());
        let code = error.get("code").and_then(integer_of).and_then(|code| i32::try_from(code).ok());
        if let Some(fate) = index.and_then(|index| fates.get_mut(index)) {
            failed += 1;
            *fate = match code {
                Some(DUPLICATE_KEY) => Fate::Duplicate(Holder::of(error)),
                Some(code) if failure::is_passing_code(code) => Fate::Unknown,
                code => Fate::Refused(code.unwrap_or(0)),
            };
        }
    }
    let applied = reply.get("n").and_then(integer_of).unwrap_or(0);
    if usize::try_from(applied).unwrap_or(0) < count - failed {
        let fate = if applied == 0 && !sent_again { Fate::Unmatched } else { Fate::Doubtful };
        fates.iter_mut().filter(|one| **one == Fate::Done).for_each(|one| *one = fate.clone());
    }
    fates
}
