//! Whether chains are as they were written. Records are shown chain by chain, in the order of their numbers; what others
//! say of a chain (the first record of a later one, a list that somebody kept, the server that is writing it) is known
//! before.

use std::collections::HashMap;

use bson::raw::RawDocument;

use super::record::{self, Hash, Head, expected_hash};
use crate::domain::Millis;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flaw {
    /// A record is not what was written, or does not follow the one before it.
    Break,
    /// Records are missing in the middle, or at the beginning.
    Gap,
    /// The chain ends before a record that somebody knows.
    LostTail,
    /// There is no record of a chain that somebody knows.
    MissingChain,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub flaw: Flaw,
    pub server: String,
    /// Where: the number of the record, or of the first that is missing.
    pub seq: i64,
    /// A sentence without its end.
    pub words: String,
}

/// A chain that was gone through.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    pub records: u64,
    pub stopped: bool,
}

/// How old what is gone may be, and the slack of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ages {
    pub now: Millis,
    /// How long records are kept; `None`: for ever.
    pub kept: Option<Millis>,
    /// How far apart two records of a chain are at most, and how late what is too old goes.
    pub apart: Millis,
}

impl Ages {
    /// Whether a record of that time may be gone for its age.
    fn may_be_gone(&self, at: Millis) -> bool {
        self.kept.is_some_and(|kept| at.saturating_sub(self.apart) <= self.now.saturating_sub(kept))
    }
}

/// A head that is known, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    seq: i64,
    hash: Hash,
    at: Millis,
    by: String,
}

/// What is known of all chains.
#[derive(Debug)]
pub struct Verifier {
    ages: Ages,
    known: HashMap<String, Vec<Known>>,
}

impl Verifier {
    pub fn new(ages: Ages) -> Verifier {
        Verifier { ages, known: HashMap::new() }
    }

    /// Somebody says that this record was the newest of its chain once.
    pub fn know(&mut self, head: Head, by: &str) {
        let known = self.known.entry(head.server).or_default();
        let one = Known { seq: head.seq, hash: head.hash, at: head.at, by: by.to_owned() };
        if !known.iter().any(|other| other.seq == one.seq && other.hash == one.hash) {
            known.push(one);
        }
    }

    /// Begins with a chain.
    pub fn chain(&mut self, server: &str) -> Chain {
        let mut known = self.known.remove(server).unwrap_or_default();
        known.sort_by_key(|known| known.seq);
        Chain {
            server: server.to_owned(),
            ages: self.ages,
            known,
            last: None,
            summary: Summary::default(),
        }
    }

    /// The chains that are known and were not gone through.
    pub fn missing(self) -> Vec<Finding> {
        let ages = self.ages;
        let mut missing: Vec<Finding> = self
            .known
            .into_iter()
            .filter_map(|(server, mut known)| {
                known.sort_by_key(|known| known.seq);
                let last = known.pop()?;
                (!ages.may_be_gone(last.at)).then(|| Finding {
                    flaw: Flaw::MissingChain,
                    words: format!(
                        "no record of this chain is there; {} knows its record {}",
                        last.by, last.seq
                    ),
                    server,
                    seq: last.seq,
                })
            })
            .collect();
        missing.sort_by(|one, other| one.server.cmp(&other.server));
        missing
    }
}

/// One chain as it is gone through.
#[derive(Debug)]
pub struct Chain {
    server: String,
    ages: Ages,
    known: Vec<Known>,
    last: Option<Last>,
    summary: Summary,
}

#[derive(Debug)]
struct Last {
    seq: i64,
    hash: Hash,
    stopped: bool,
}

impl Chain {
    fn finding(&self, flaw: Flaw, seq: i64, words: impl Into<String>) -> Finding {
        Finding { flaw, server: self.server.clone(), seq, words: words.into() }
    }

    /// The next record.
    pub fn record(&mut self, document: &RawDocument) -> Vec<Finding> {
        let mut found = Vec::new();
        self.summary.records += 1;
        let next = self.last.as_ref().map_or(1, |last| last.seq.saturating_add(1));
        let Some(head) = record::head(document) else {
            found.push(self.finding(Flaw::Break, next, "the record cannot be read"));
            return found;
        };
        let seq = head.seq;
        let prev = document.get_binary("prev").ok().and_then(|prev| prev.bytes.try_into().ok());
        match &self.last {
            None if seq == 1 => {
                if prev != Some([0; 32]) {
                    let words = "the first record does not begin a chain";
                    found.push(self.finding(Flaw::Break, seq, words));
                }
            }
            // What is older has gone for its age.
            None if self.ages.may_be_gone(head.at) => {}
            None => found.push(self.finding(
                Flaw::Gap,
                1,
                format!("records 1 to {} are missing, and are not old enough for that", seq - 1),
            )),
            Some(last) => {
                if seq <= last.seq {
                    let words = format!("there are several records with the number {seq}");
                    found.push(self.finding(Flaw::Break, seq, words));
                } else if seq > next {
                    let words = match seq - 1 == next {
                        true => format!("record {next} is missing"),
                        false => format!("records {next} to {} are missing", seq - 1),
                    };
                    found.push(self.finding(Flaw::Gap, next, words));
                } else if prev != Some(last.hash) {
                    let words = "the record does not follow the one before it";
                    found.push(self.finding(Flaw::Break, seq, words));
                } else if last.stopped {
                    let words = "the record comes after the end of its chain";
                    found.push(self.finding(Flaw::Break, seq, words));
                }
            }
        }
        if expected_hash(document) != Some(head.hash) {
            let words = "the record was changed: its hash is another one";
            found.push(self.finding(Flaw::Break, seq, words));
        }
        for known in self.known.iter().filter(|known| known.seq == seq && known.hash != head.hash) {
            let words = format!("the record is another one than {} knows", known.by);
            found.push(self.finding(Flaw::Break, seq, words));
        }
        self.last = Some(Last { seq, hash: head.hash, stopped: head.stopped });
        found
    }

    /// There are no more.
    pub fn end(self) -> (Vec<Finding>, Summary) {
        let Chain { server, ages, known, last, mut summary } = self;
        let last_seq = last.as_ref().map_or(0, |last| last.seq);
        summary.stopped = last.is_some_and(|last| last.stopped);
        let lost = known.iter().rev().find(|known| known.seq > last_seq);
        let lost = lost.filter(|known| !(last_seq == 0 && ages.may_be_gone(known.at)));
        let finding = lost.map(|known| Finding {
            flaw: Flaw::LostTail,
            seq: last_seq + 1,
            words: format!(
                "the chain ends with record {last_seq}, but {} knows its record {}",
                known.by, known.seq
            ),
            server,
        });
        (finding.into_iter().collect(), summary)
    }
}

#[cfg(test)]
mod tests {
    use bson::raw::RawDocumentBuf;

    use super::*;
    use crate::domain::audit::record::tests::link;
    use crate::domain::audit::record::{START, STOP, seal};
    use crate::domain::audit::{Entry, Sealed};

    fn chain(events: &[&'static str]) -> Vec<Sealed> {
        let mut prev = [0; 32];
        let mut sealed = Vec::new();
        for (number, event) in events.iter().enumerate() {
            let record = seal(&link(number as i64 + 1, prev), &Entry::of_server(event));
            prev = record.hash;
            sealed.push(record);
        }
        sealed
    }

    fn head_of(sealed: &Sealed) -> Head {
        record::head(&sealed.document).unwrap()
    }

    fn ages(kept: Option<Millis>) -> Ages {
        Ages { now: 1_700_000_001_000, kept, apart: 0 }
    }

    fn check(verifier: &mut Verifier, documents: &[&RawDocumentBuf]) -> Vec<(Flaw, i64)> {
        let mut chain = verifier.chain("s");
        let mut found: Vec<Finding> =
            documents.iter().flat_map(|document| chain.record(document)).collect();
        found.extend(chain.end().0);
        found.into_iter().map(|finding| (finding.flaw, finding.seq)).collect()
    }

    fn alone(documents: &[&RawDocumentBuf]) -> Vec<(Flaw, i64)> {
        check(&mut Verifier::new(ages(None)), documents)
    }

    #[test]
    fn a_whole_chain_has_no_flaw() {
        let all = chain(&[START, "a.b", "c.d", STOP]);
        let documents: Vec<_> = all.iter().map(|one| &one.document).collect();
        assert_eq!(alone(&documents), []);
        let mut verifier = Verifier::new(ages(None));
        for one in &all {
            verifier.know(head_of(one), "somebody");
        }
        assert_eq!(check(&mut verifier, &documents), []);
        assert_eq!(verifier.missing(), []);
    }

    #[test]
    fn every_changed_byte_is_found() {
        let all = chain(&[START, "a.b", "c.d"]);
        let changed = &all[1].document;
        for place in 4..changed.as_bytes().len() - 1 {
            let mut bytes = changed.as_bytes().to_vec();
            bytes[place] ^= 1;
            let Ok(forged) = RawDocumentBuf::from_bytes(bytes) else { continue };
            let found = alone(&[&all[0].document, &forged, &all[2].document]);
            assert!(!found.is_empty(), "byte {place}");
        }
    }

    #[test]
    fn what_is_gone_is_found() {
        let all = chain(&[START, "a.b", "c.d", "e.f"]);
        let [one, two, three, four] = [0, 1, 2, 3].map(|n| &all[n].document);
        assert_eq!(alone(&[one, three, four]), [(Flaw::Gap, 2)]);
        assert_eq!(alone(&[one, four]), [(Flaw::Gap, 2)]);
        assert_eq!(alone(&[two, three, four]), [(Flaw::Gap, 1)]);
        assert_eq!(alone(&[one, two, two, three, four]), [(Flaw::Break, 2)]);
        let mut verifier = Verifier::new(ages(None));
        verifier.know(head_of(&all[3]), "a later server");
        assert_eq!(check(&mut verifier, &[one, two]), [(Flaw::LostTail, 3)]);
        let mut verifier = Verifier::new(ages(None));
        verifier.know(head_of(&all[3]), "a later server");
        let missing = verifier.missing();
        assert_eq!((missing[0].flaw, missing[0].seq), (Flaw::MissingChain, 4));
        assert!(missing[0].words.contains("a later server"));
    }

    #[test]
    fn another_chain_in_its_place_is_found_by_who_knows_its_head() {
        let all = chain(&[START, "a.b", "c.d"]);
        let forged = chain(&[START, "x.y", "c.d"]);
        let documents: Vec<_> = forged.iter().map(|one| &one.document).collect();
        assert_eq!(alone(&documents), [], "a chain without a key can be made anew");
        let mut verifier = Verifier::new(ages(None));
        verifier.know(head_of(&all[1]), "a list");
        assert_eq!(check(&mut verifier, &documents), [(Flaw::Break, 2)]);
    }

    #[test]
    fn a_chain_goes_on_with_nothing_after_its_end() {
        let all = chain(&[START, STOP, "a.b"]);
        let documents: Vec<_> = all.iter().map(|one| &one.document).collect();
        assert_eq!(alone(&documents), [(Flaw::Break, 3)]);
    }

    #[test]
    fn a_beginning_and_a_chain_may_be_gone_for_their_age() {
        let all = chain(&[START, "a.b", "c.d"]);
        let mut verifier = Verifier::new(ages(Some(500)));
        assert_eq!(check(&mut verifier, &[&all[1].document, &all[2].document]), []);
        verifier.know(Head { server: "other".to_owned(), ..head_of(&all[2]) }, "a later server");
        assert_eq!(verifier.missing(), []);
        let mut verifier = Verifier::new(ages(Some(5000)));
        let found = check(&mut verifier, &[&all[1].document, &all[2].document]);
        assert_eq!(found, [(Flaw::Gap, 1)]);
    }
}
