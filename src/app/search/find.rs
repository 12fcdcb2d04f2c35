//! Answers searches. Texts that have the terms are looked at in windows, the last that were indexed first; what is
//! found in a window comes in the order of its score. A page never reaches beyond its window, and so may be short.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::app::token::{Kind as TokenKind, Tokens};
use crate::app::{Error, Result};
use crate::domain::Execution;
use crate::domain::query::ExecutionFilter;
use crate::domain::search::score::{Snippet, matched, snippet};
use crate::domain::search::{Kind, Query};
use crate::follow::{CaughtUp, Follower};
use crate::store::search::{CandidateQuery, Entry, SearchStore};
use crate::store::{Changed, Record, RecordKey, Store};

/// Texts of a window, and how many of them are read at a time.
const WINDOW: usize = 1_000;
const READ_AT_ONCE: usize = 50;
/// Bytes of texts after which a window ends early.
const WINDOW_BYTES: usize = 16 * 1024 * 1024;
/// Windows without a find that one call looks through.
const WINDOWS: usize = 5;
/// Texts are counted up to here for their score.
const COUNTED: u64 = 1_000;
/// Records looked up at a time.
const LOADED_AT_ONCE: usize = 200;
/// How long a search waits until everything acknowledged before is indexed.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question {
    pub query: Query,
    pub filter: ExecutionFilter,
    /// Empty: all.
    pub kinds: Vec<Kind>,
    pub size: usize,
    pub token: String,
}

/// A text that was found.
#[derive(Debug, Clone)]
pub struct Hit {
    pub entry: Entry,
    pub snippet: Snippet,
    pub score: f64,
}

/// A page.
#[derive(Debug, Clone)]
pub struct Found {
    pub hits: Vec<Hit>,
    pub next_page_token: String,
    /// Whether everything that was acknowledged before is indexed; `NoLog`: nothing is.
    pub caught_up: CaughtUp,
}

/// The operations of search.
pub struct Search {
    records: Arc<dyn Store>,
    index: Arc<dyn SearchStore>,
    follower: Option<Arc<Follower>>,
}

/// Where a page begins: in which window, and after how many of its hits.
#[derive(Debug, Default)]
struct Place {
    window: Option<Vec<u8>>,
    skipped: u32,
}

impl Place {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.skipped.to_be_bytes().to_vec();
        bytes.extend(self.window.iter().flatten());
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Place> {
        let (skipped, window) = bytes.split_first_chunk::<4>()?;
        let window = Some(window.to_vec()).filter(|window| !window.is_empty());
        Some(Place { window, skipped: u32::from_be_bytes(*skipped) })
    }
}

impl Search {
    /// Without a follower nothing is indexed, and nothing can be searched.
    pub fn new(
        records: Arc<dyn Store>,
        index: Arc<dyn SearchStore>,
        follower: Option<Arc<Follower>>,
    ) -> Search {
        Search { records, index, follower }
    }

    pub async fn search(&self, question: &Question) -> Result<Found> {
        let follower = self.follower.as_ref().ok_or(Error::SearchDisabled)?;
        let tokens = Tokens::new(&self.records.secret().await?);
        let identity =
            format!("{:?}\n{}\n{:?}", question.query, question.filter.identity(), question.kinds);
        let mut place = match question.token.as_str() {
            "" => Place::default(),
            token => tokens
                .open(TokenKind::SearchPage, identity.as_bytes(), token)
                .and_then(|bytes| Place::parse(&bytes))
                .ok_or(Error::BadToken("page_token"))?,
        };
        let caught_up = follower.caught_up(PATIENCE).await?;
        let mut found = Found { hits: Vec::new(), next_page_token: String::new(), caught_up };
        if caught_up == CaughtUp::NoLog {
            return Ok(found);
        }
        let mut texts = Vec::new();
        for item in &question.query.wanted {
            texts.push(self.index.texts_with(&item.needs(), COUNTED).await?);
        }
        let seal =
            |place: &Place| tokens.seal(TokenKind::SearchPage, identity.as_bytes(), &place.bytes());
        for _ in 0..WINDOWS {
            let (hits, next) = self.window(question, &texts, place.window.clone()).await?;
            let skipped = place.skipped as usize;
            let left = hits.len().saturating_sub(skipped);
            let taken = left.min(question.size - found.hits.len());
            found.hits.extend(hits.into_iter().skip(skipped).take(taken));
            if taken < left {
                place.skipped += u32::try_from(taken).unwrap_or(u32::MAX);
                found.next_page_token = seal(&place);
                return Ok(found);
            }
            let Some(next) = next else { return Ok(found) };
            place = Place { window: Some(next), skipped: 0 };
            if !found.hits.is_empty() {
                break;
            }
        }
        found.next_page_token = seal(&place);
        Ok(found)
    }

    /// Everything that is found in a window, the best first, and where the next one begins.
    async fn window(
        &self,
        question: &Question,
        texts: &[u64],
        before: Option<Vec<u8>>,
    ) -> Result<(Vec<Hit>, Option<Vec<u8>>)> {
        let mut query = CandidateQuery {
            kinds: question.kinds.clone(),
            needs: question.query.wanted.iter().map(|item| item.needs()).collect(),
            before,
            limit: READ_AT_ONCE,
        };
        let (mut hits, mut looked_at, mut bytes) = (Vec::new(), 0, 0);
        let next = loop {
            let candidates = self.index.candidates(&query).await?;
            looked_at += candidates.entries.len();
            bytes += candidates.entries.iter().map(|entry| entry.text.len()).sum::<usize>();
            // Many words are taken apart here: not on a thread that serves.
            let (asked, texts) = (question.query.clone(), texts.to_vec());
            let work = move || scored(&asked, &texts, candidates.entries);
            let scored = tokio::task::spawn_blocking(work).await;
            hits.extend(scored.map_err(|_| Error::ShuttingDown)?);
            match candidates.next {
                Some(next) if looked_at < WINDOW && bytes < WINDOW_BYTES => {
                    query.before = Some(next);
                }
                next => break next,
            }
        };
        let mut hits = self.there(question, hits).await?;
        let order = |a: &Hit, b: &Hit| {
            let score = b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal);
            score.then_with(|| a.entry.key.cmp(&b.entry.key))
        };
        hits.sort_by(order);
        Ok((hits, next))
    }

    /// Those whose record is still there, and whose execution is what is asked for as it is now.
    async fn there(&self, question: &Question, hits: Vec<Hit>) -> Result<Vec<Hit>> {
        let mut keys: Vec<RecordKey> = Vec::new();
        for hit in &hits {
            keys.push(hit.entry.key.record());
            keys.push(RecordKey::execution(&hit.entry.key.execution_id));
        }
        let mut known = std::collections::HashSet::new();
        keys.retain(|key| known.insert(key.clone()));
        let keys: Vec<Changed> = keys.into_iter().map(Changed::Record).collect();
        let log = self.records.log()?;
        let mut executions: HashMap<String, Arc<Execution>> = HashMap::new();
        let mut records = std::collections::HashSet::new();
        for piece in keys.chunks(LOADED_AT_ONCE) {
            for (_, record) in log.load(piece, false).await? {
                records.insert(record.key());
                if let Record::Execution(execution) = record {
                    executions.insert(execution.execution_id.clone(), execution);
                }
            }
        }
        let there = |hit: &Hit| {
            records.contains(&hit.entry.key.record())
                && executions
                    .get(&hit.entry.key.execution_id)
                    .is_some_and(|execution| question.filter.matches(execution))
        };
        Ok(hits.into_iter().filter(there).collect())
    }
}

fn scored(query: &Query, texts: &[u64], entries: Vec<Entry>) -> Vec<Hit> {
    let found = entries.into_iter().filter_map(|mut entry| {
        let found = matched(query, texts, &entry.text)?;
        let snippet = snippet(&entry.text, &found.spans);
        entry.text = String::new();
        Some(Hit { entry, snippet, score: found.score })
    });
    found.collect()
}
