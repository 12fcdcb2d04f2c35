//! What a store promises about the record of who did what, and the chain of this process, which both backends write.
//!
//! Records are only added. Each is linked to the one before it when its place is taken, so a store writes them in that
//! order, and nothing follows a record of which it is not known that it is there.

use async_trait::async_trait;
use bson::raw::RawDocumentBuf;
use metrics::counter;
use sha2::{Digest as _, Sha256};

use super::error::{Error, Result};
use crate::domain::Millis;
use crate::domain::audit::{AuditFilter, Entry, Hash, Head, Link, Outcome, seal};
use crate::domain::query::Page;
use crate::telemetry::metrics::AUDIT_RECORDS;

/// The canonical code of a failure, for records that are written along with what they are about.
pub type Codes = fn(&Error) -> &'static str;

/// What became of records that were to be added. `first` is the number of the first of them; the others follow.
#[derive(Debug)]
pub enum Appended {
    /// They are durable.
    Surely { first: i64 },
    /// They have their places, and are there before anything that follows them; whether they are there now is not known.
    Perhaps { first: i64, error: Error },
    /// So many are durable, and the others were not added.
    Partly { first: i64, count: usize, error: Error },
}

/// The beginning of the chain of this process.
#[derive(Debug, Clone)]
pub struct Opening {
    /// Tells this process from all others.
    pub server: String,
    /// The first record.
    pub entry: Entry,
    pub codes: Codes,
}

/// Where a page of records ends, in the store's own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditKey(pub Vec<u8>);

/// A page of records.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditQuery {
    pub filter: AuditFilter,
    pub oldest_first: bool,
    pub after: Option<AuditKey>,
    pub limit: usize,
    /// Records looked at, at most.
    pub examine: usize,
    /// Bytes of records, at most, but always one.
    pub bytes: usize,
}

/// The record of who did what.
#[async_trait]
pub trait AuditStore: Send + Sync + 'static {
    /// Begins the chain of this process, durably. Until then nothing is added, and nothing is written that has to be
    /// recorded.
    async fn open_chain(&self, opening: Opening) -> Result<()>;

    /// Adds records to the chain, in order. An error means that none of them was added. With none it makes what is not
    /// known to be durable so.
    async fn append(&self, entries: Vec<Entry>) -> Result<Appended>;

    /// Whether there is something that `append` with no record would do.
    fn is_settled(&self) -> bool;

    /// The newest record of the chain of this process, as far as it is known to be stored.
    fn own_head(&self) -> Option<Head>;

    /// The newest record of each chain, by server, after this one.
    async fn heads(&self, after: Option<&str>, limit: usize) -> Result<Vec<Head>>;

    /// Records of a chain from this number on, in order: at most `limit`, and about so many bytes.
    async fn chain(
        &self,
        server: &str,
        from: i64,
        limit: usize,
        bytes: usize,
    ) -> Result<Vec<RawDocumentBuf>>;

    /// One page by time.
    async fn events(&self, query: &AuditQuery) -> Result<Page<RawDocumentBuf, AuditKey>>;
}

/// A record with its place.
#[derive(Debug, Clone)]
pub struct Linked {
    pub head: Head,
    pub document: RawDocumentBuf,
    outcome: Option<Outcome>,
}

impl Linked {
    /// It is stored.
    pub fn count(&self) {
        let outcome = self.outcome.map_or("begun", Outcome::as_str);
        counter!(AUDIT_RECORDS, "outcome" => outcome).increment(1);
    }
}

/// So many records could not be stored.
pub fn count_lost(records: usize) {
    counter!(AUDIT_RECORDS, "outcome" => "unavailable").increment(records as u64);
}

/// The chain of this process, as far as places are taken in it.
#[derive(Debug, Clone)]
pub struct Chain {
    server: String,
    /// Of the process, in the ids of its records.
    salt: [u8; 5],
    seq: i64,
    hash: Hash,
    at: Millis,
    codes: Codes,
}

impl Chain {
    pub fn new(server: &str, codes: Codes) -> Chain {
        let spread = Sha256::digest(server.as_bytes());
        let mut salt = [0; 5];
        salt.copy_from_slice(&spread[..5]);
        Chain { server: server.to_owned(), salt, seq: 0, hash: [0; 32], at: 0, codes }
    }

    /// Gives a record the next place. The time in a chain never goes back, whatever the clock does: what is too old
    /// goes from its beginning.
    pub fn link(&mut self, entry: &Entry, now: Millis) -> Linked {
        let (seq, at) = (self.seq + 1, now.max(self.at));
        let link =
            Link { id: self.id(seq, at), server: self.server.clone(), seq, at, prev: self.hash };
        let sealed = seal(&link, entry);
        (self.seq, self.hash, self.at) = (seq, sealed.hash, at);
        let head = Head {
            server: link.server,
            seq,
            hash: sealed.hash,
            at,
            stopped: entry.event == crate::domain::audit::record::STOP,
        };
        Linked { head, document: sealed.document, outcome: entry.outcome }
    }

    /// The number of the next record.
    pub fn next_seq(&self) -> i64 {
        self.seq + 1
    }

    /// The chain as it was when this was its newest record.
    pub fn back_to(self, head: &Head) -> Chain {
        Chain { seq: head.seq, hash: head.hash, at: head.at, ..self }
    }

    /// The chain as it is without a record.
    pub fn anew(self) -> Chain {
        Chain::new(&self.server, self.codes)
    }

    /// An id of MongoDB's kind: by time, then by server, then by number.
    fn id(&self, seq: i64, at: Millis) -> [u8; 12] {
        let mut id = [0; 12];
        let seconds = u32::try_from(at.div_euclid(1000)).unwrap_or(0);
        id[..4].copy_from_slice(&seconds.to_be_bytes());
        id[4..9].copy_from_slice(&self.salt);
        id[9..].copy_from_slice(&seq.to_be_bytes()[5..]);
        id
    }

    pub fn server(&self) -> &str {
        &self.server
    }

    /// The canonical code of what became of a write.
    pub fn code<T>(&self, outcome: &Result<T>) -> &'static str {
        match outcome {
            Ok(_) => "OK",
            Err(error) => (self.codes)(error),
        }
    }
}

/// There is no chain yet, so nothing may be done that has to be recorded.
pub fn not_open() -> Error {
    Error::unaudited("the chain of this server has not begun")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::audit::record::expected_hash;

    #[test]
    fn records_follow_each_other_and_time_never_goes_back() {
        let mut chain = Chain::new("s", |_| "INTERNAL");
        let entry = Entry::of_server("a.b");
        let one = chain.link(&entry, 5_000);
        let two = chain.link(&entry, 4_000);
        let three = chain.link(&entry, 6_000);
        assert_eq!([one.head.seq, two.head.seq, three.head.seq], [1, 2, 3]);
        assert_eq!([one.head.at, two.head.at, three.head.at], [5_000, 5_000, 6_000]);
        let prev = |linked: &Linked| linked.document.get_binary("prev").unwrap().bytes.to_vec();
        assert_eq!(prev(&one), [0; 32]);
        assert_eq!(prev(&two), one.head.hash);
        assert_eq!(prev(&three), two.head.hash);
        assert_eq!(expected_hash(&three.document), Some(three.head.hash));
        let id = |linked: &Linked| linked.document.get_object_id("_id").unwrap();
        assert!(id(&one) < id(&two) && id(&two) < id(&three));
    }
}
