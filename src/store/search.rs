//! What search needs of a store: an index of terms, derived from the log of changes by one server at a time. The store
//! finds texts that have the terms; whether they are what was asked for, and how well, is the same arithmetic on both.

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use super::{Cursor, RecordKey, Result};
use crate::domain::Millis;
use crate::domain::search::Kind;
use crate::domain::search::query::Term;

/// Which text of which record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EntryKey {
    pub execution_id: String,
    pub kind: Kind,
    pub step_id: Option<i32>,
    pub artifact_id: Option<String>,
}

impl EntryKey {
    /// What tells it apart among the texts of its execution.
    pub fn part(&self) -> String {
        match (&self.artifact_id, self.step_id) {
            (Some(artifact_id), _) => artifact_id.clone(),
            (None, Some(step_id)) => step_id.to_string(),
            (None, None) => String::new(),
        }
    }

    /// The record that has the text.
    pub fn record(&self) -> RecordKey {
        RecordKey {
            execution_id: self.execution_id.clone(),
            step_id: self.step_id.filter(|_| self.artifact_id.is_none()),
            artifact_id: self.artifact_id.clone(),
        }
    }
}

/// The term of a text whose bytes could not be read yet, which no query has: `§` is no part of a word.
pub const PENDING: &str = "§pending";

/// An indexed text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: EntryKey,
    /// Of the step, or of the artifact.
    pub name: Option<String>,
    pub text: String,
    /// There was more of it than is indexed.
    pub truncated: bool,
}

/// What is to be changed. The same batch may come again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SearchBatch {
    /// Executions that are gone with everything they had.
    pub gone_executions: Vec<String>,
    /// Texts that are gone.
    pub gone: Vec<EntryKey>,
    /// Texts with their terms, new or instead of what was there.
    pub put: Vec<(Entry, Vec<String>)>,
    /// When it was looked at.
    pub seen: Millis,
    /// Up to where everything is in now.
    pub cursor: Option<Cursor>,
}

/// Texts to look at: of these kinds (empty: all), with the terms of one list of each of the items.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CandidateQuery {
    pub kinds: Vec<Kind>,
    pub needs: Vec<Vec<Vec<Term>>>,
    /// First indexed before what has this place.
    pub before: Option<Vec<u8>>,
    /// Not before what has this place.
    pub from: Option<Vec<u8>>,
    /// At most so many.
    pub limit: usize,
}

/// A text to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// When it was first indexed: a number, the most significant byte first.
    pub place: Vec<u8>,
    /// `None`: of another version.
    pub entry: Option<Entry>,
}

/// Texts, the last that were first indexed coming first. Only some of them are in memory at a time.
pub type Candidates<'a> = BoxStream<'a, Result<Candidate>>;

/// Keeps the index.
#[async_trait]
pub trait SearchStore: Send + Sync + 'static {
    /// Up to where everything is in, by the rules of this version.
    async fn search_cursor(&self) -> Result<Option<Cursor>>;

    /// Changes the index, and remembers the cursor after everything else.
    async fn index(&self, batch: SearchBatch) -> Result<()>;

    /// Removes what was last seen before, which is what a rebuild did not come across.
    async fn forget(&self, before: Millis) -> Result<()>;

    /// In how many texts the terms of one of these lists are; more than `most` are not counted.
    async fn texts_with(&self, ways: &[Vec<Term>], most: u64) -> Result<u64>;

    fn candidates(&self, query: CandidateQuery) -> Candidates<'_>;
}
