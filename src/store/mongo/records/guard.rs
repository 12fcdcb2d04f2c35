//! Updates that change a document only if it still is what the decision was made on, and what tells afterwards whether
//! one of them was applied.

use bson::raw::{CStr, RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::{Document, RawArrayBuf, rawdoc};

use crate::domain::{Digests, Millis};
use crate::store::Result;
use crate::store::mongo::db::update_statement;
use crate::store::mongo::db::values::{date, field, integer, raw};

/// The fields that differ between two states of a record, as absolute values, and what makes the update known
/// again.
pub struct Difference {
    pub set: RawDocumentBuf,
    unset: RawDocumentBuf,
    made: Option<[i64; 2]>,
}

impl Difference {
    pub fn new() -> Self {
        Difference { set: RawDocumentBuf::new(), unset: RawDocumentBuf::new(), made: None }
    }

    /// The field goes away.
    pub fn unset(&mut self, key: &'static CStr) {
        self.unset.append(key, true);
    }

    pub fn digests(&mut self, before: &Digests, after: &Digests) {
        let mut differs =
            |key, before: &Option<String>, after: &Option<String>| match after.as_deref() {
                _ if before == after => {}
                Some(after) => self.set.append(key, after),
                None => self.unset(key),
            };
        differs(cstr!("digests.create"), &before.create, &after.create);
        differs(cstr!("digests.start"), &before.start, &after.start);
        differs(cstr!("digests.finish"), &before.finish, &after.finish);
    }

    /// The revision that this update makes, with its mark.
    pub fn revision(&mut self, revision: i64, last_change: &str, mark: i64) {
        self.set.append(cstr!("revision"), revision);
        self.set.append(cstr!("last_change"), last_change);
        self.made = Some([revision, mark]);
    }

    fn is_empty(&self) -> bool {
        self.set.as_bytes().len() <= 5 && self.unset.as_bytes().len() <= 5
    }

    /// The update statement for the record that matches `query`.
    pub fn statement(mut self, query: RawDocumentBuf, execution_id: &str) -> RawDocumentBuf {
        if self.is_empty() {
            // Nothing to store: the guard alone is checked. The query matched this very value.
            self.set.append(cstr!("execution_id"), execution_id);
        }
        let mut update = rawdoc! { "$set": self.set };
        if self.unset.as_bytes().len() > 5 {
            update.append(cstr!("$unset"), self.unset);
        }
        if let Some(made) = self.made {
            let each: RawArrayBuf = made.into_iter().collect();
            let push = rawdoc! { "$each": each, "$slice": -(2 * LATEST_WRITES as i32) };
            update.append(cstr!("$push"), rawdoc! { WRITES: push });
        }
        update_statement(query, update)
    }
}

/// Guard on a date: absent, null and foreign types all read as `None`.
pub fn guard_date(query: &mut RawDocumentBuf, key: &'static CStr, at: Option<Millis>) {
    match at {
        Some(at) => query.append(key, date(at)),
        None => query.append(key, rawdoc! { "$not": { "$type": "date" } }),
    }
}

pub fn guard_revision(query: &mut RawDocumentBuf, revision: i64) {
    match revision {
        0 => query.append(cstr!("revision"), rawdoc! { "$in": [0_i64, null] }),
        revision => query.append(cstr!("revision"), revision),
    }
}

/// `$eq` takes the value literally, whatever its keys are called.
pub fn guard_document(
    query: &mut RawDocumentBuf,
    key: &'static CStr,
    document: &Document,
) -> Result<()> {
    if document.is_empty() {
        query.append(key, rawdoc! { "$in": [null, {}] });
    } else {
        query.append(key, rawdoc! { "$eq": raw(document)? });
    }
    Ok(())
}

/// Guards the very document that was read, whatever types another program chose: these fields are as they were. `None`:
/// one of them is too large to be sent along.
pub fn guard_stored(document: &RawDocument, fields: &[&'static CStr]) -> Option<RawDocumentBuf> {
    let equal = |value: RawBsonRef<'_>| {
        let mut same = RawDocumentBuf::new();
        same.append(cstr!("$eq"), value);
        same
    };
    let mut query = RawDocumentBuf::new();
    query.append(cstr!("_id"), equal(field(document, "_id")?));
    let mut bytes = 0;
    for name in fields {
        let same = match field(document, name.as_str()) {
            Some(value) => equal(value),
            None => rawdoc! { "$exists": false },
        };
        bytes += same.as_bytes().len();
        query.append(*name, same);
    }
    (bytes <= STORED_GUARDED_BYTES).then_some(query)
}

/// Of the fields of a document that are sent along to guard it.
const STORED_GUARDED_BYTES: usize = 2 * 1024 * 1024;

/// Metadata up to this size is guarded although the update does not touch it.
pub const METADATA_GUARDED_BYTES: usize = 16 * 1024;
/// Ids in `depends_on` up to this number are guarded one by one.
pub const DEPENDS_ON_GUARDED: usize = 64;

/// How much of a document an update guards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// What the decision was made on. Another program may have changed other fields meanwhile, so the document
    /// is not known in whole after the update.
    Decision,
    /// The same, and whose the execution is: some write of the batch is only allowed for some apps.
    Scoped,
    /// Everything that was read. The document is what `after` says, in whole, if the update matches; it never
    /// does where another program stored a type that reads as something else.
    Whole,
}

/// An update, and whether it matches only if the document is known in whole afterwards.
pub struct Update {
    pub statement: RawDocumentBuf,
    pub exact: bool,
}

/// Where the latest updates of a document are told: revision and mark of each, the oldest first. Two servers may
/// write the very same record in the same microsecond, and only one of them has changed it.
const WRITES: &CStr = cstr!("digests.writes");
const LATEST_WRITES: usize = 4;

/// The latest updates of a document by servers.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Writes(Vec<(i64, i64)>);

impl Writes {
    pub fn of(raw: &RawDocument) -> Writes {
        let listed = raw.get_document("digests").and_then(|digests| digests.get_array("writes"));
        let Ok(listed) = listed else { return Writes::default() };
        let numbers: Vec<i64> = listed.into_iter().flatten().filter_map(integer).collect();
        Writes(numbers.as_chunks().0.iter().map(|[revision, mark]| (*revision, *mark)).collect())
    }

    /// Whether an update from one revision to another has been applied to the document, whose revision is `stored`
    /// now. `None`: it cannot be told.
    pub fn tell_of(&self, before: i64, after: i64, mark: i64, stored: i64) -> Option<bool> {
        if self.0.iter().any(|(_, other)| *other == mark) {
            return Some(true);
        }
        if stored == before {
            return Some(false);
        }
        // Somebody changed it without telling, and may have dropped what was told before.
        if self.0.last().is_none_or(|(latest, _)| *latest != stored) {
            return None;
        }
        // Each update makes a greater revision than the one before.
        let reaches_back = self.0.first().is_some_and(|(oldest, _)| *oldest <= after);
        (self.0.len() < LATEST_WRITES || reaches_back).then_some(false)
    }
}
