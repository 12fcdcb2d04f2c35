//! Answers searches. Texts that have the terms are looked at in windows, the last that were indexed first; what is
//! found in a window comes in the order of its score. A page never reaches beyond its window, and so may be short.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::app::token::{Kind as TokenKind, Tokens};
use crate::app::{Error, Result};
use crate::domain::query::ExecutionFilter;
use crate::domain::search::score::{Snippet, matched, snippet};
use crate::domain::search::{Kind, Query};
use crate::domain::{Execution, Millis};
use crate::follow::{CaughtUp, Follower};
use crate::store::search::{CandidateQuery, Entry, EntryKey, SearchStore};
use crate::store::{self, Changed, Record, RecordKey, Store};

/// Texts of a window, and how many of them are scored at a time.
const WINDOW: usize = 1_000;
const SCORED_AT_ONCE: usize = 50;
/// Searches that look through texts, at a time.
const AT_ONCE: usize = 4;
/// Bytes of texts after which a window ends early.
const WINDOW_BYTES: usize = 16 * 1024 * 1024;
/// Windows without a find that one call looks through.
const WINDOWS: usize = 5;
/// Texts are counted up to here for their score.
const COUNTED: u64 = 1_000;
/// Hits whose records are looked up at a time.
const LOOKED_UP_AT_ONCE: usize = 100;
/// How long a search waits until everything acknowledged before is indexed, as long as that may be soon.
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
    /// Where not everything is: since when what was acknowledged may be missing.
    pub not_indexed_since: Option<Millis>,
}

/// The operations of search.
pub struct Search {
    records: Arc<dyn Store>,
    index: Arc<dyn SearchStore>,
    follower: Option<Arc<Follower>>,
    turns: Semaphore,
}

/// Where a page goes on. What is indexed meanwhile is in no window that a page has begun.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Place {
    /// The window: texts first indexed before this one,
    #[serde(rename = "b")]
    before: Option<Vec<u8>>,
    /// and not before this one, once that is known.
    #[serde(rename = "f")]
    from: Option<Vec<u8>>,
    /// Its hits after this one.
    #[serde(rename = "a")]
    after: Option<(u64, EntryKey)>,
    /// How many texts have each item, as counted for the first page: so that every page has the same scores.
    #[serde(rename = "t")]
    texts: Vec<u64>,
}

/// What is found in a window, the best first, whether or not its record is still there.
struct Window {
    hits: Vec<Hit>,
    /// The window as it has become.
    place: Place,
    /// Where the next one ends.
    next: Option<Vec<u8>>,
}

/// The place right after this one, which a bound that leaves out its own place has to have.
fn after(place: &[u8]) -> Vec<u8> {
    let mut next = place.to_vec();
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            break;
        }
    }
    next
}

fn order(a: (f64, &EntryKey), b: (f64, &EntryKey)) -> Ordering {
    b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1))
}

impl Search {
    /// Without a follower nothing is indexed, and nothing can be searched.
    pub fn new(
        records: Arc<dyn Store>,
        index: Arc<dyn SearchStore>,
        follower: Option<Arc<Follower>>,
    ) -> Search {
        Search { records, index, follower, turns: Semaphore::new(AT_ONCE) }
    }

    pub async fn search(&self, question: &Question) -> Result<Found> {
        let follower = self.follower.as_ref().ok_or(Error::SearchDisabled)?;
        let tokens = Tokens::new(&self.records.secret().await?);
        let identity =
            format!("{:?}\n{}\n{:?}", question.query, question.filter.identity(), question.kinds);
        let mut place = match question.token.as_str() {
            "" => None,
            token => tokens
                .open(TokenKind::SearchPage, identity.as_bytes(), token)
                .and_then(|bytes| serde_json::from_slice::<Place>(&bytes).ok())
                .map(Some)
                .ok_or(Error::BadToken("page_token"))?,
        };
        let caught_up = follower.soon_caught_up(PATIENCE).await?;
        let not_indexed_since = match caught_up {
            CaughtUp::Behind => follower.taken_until().await,
            _ => None,
        };
        let mut found = Found {
            hits: Vec::new(),
            next_page_token: String::new(),
            caught_up,
            not_indexed_since,
        };
        if caught_up == CaughtUp::NoLog {
            return Ok(found);
        }
        let _turn = self.turns.acquire().await.map_err(|_| Error::ShuttingDown)?;
        let mut place = match place.take() {
            Some(place) => place,
            None => {
                let mut texts = Vec::new();
                for item in &question.query.wanted {
                    // The index is of all apps: to whom some are hidden a word counts the same however many texts have it.
                    texts.push(match question.filter.scope.is_all() {
                        true => self.index.texts_with(&item.needs(), COUNTED).await?,
                        false => COUNTED,
                    });
                }
                Place { texts, ..Place::default() }
            }
        };
        for _ in 0..WINDOWS {
            let window = self.window(question, place).await?;
            place = window.place;
            let mut left = window.hits;
            if let Some((score, key)) = &place.after {
                let last = (f64::from_bits(*score), key);
                left.retain(|hit| order(last, (hit.score, &hit.entry.key)).is_lt());
            }
            let room = question.size - found.hits.len();
            let mut left = self.there(question, left, room + 1).await?;
            let more = left.len() > room;
            left.truncate(room);
            found.hits.extend(left);
            if more {
                let last = found.hits.last();
                place.after = last.map(|hit| (hit.score.to_bits(), hit.entry.key.clone()));
                break;
            }
            let Some(next) = window.next else { return Ok(found) };
            place = Place { before: Some(next), from: None, after: None, ..place };
            if !found.hits.is_empty() {
                break;
            }
        }
        let place = serde_json::to_vec(&place).map_err(store::Error::failed)?;
        found.next_page_token = tokens.seal(TokenKind::SearchPage, identity.as_bytes(), &place);
        Ok(found)
    }

    /// Everything that is found in a window, the best first, and where the next one begins.
    async fn window(&self, question: &Question, mut place: Place) -> Result<Window> {
        let mut candidates = self.index.candidates(CandidateQuery {
            kinds: question.kinds.clone(),
            needs: question.query.wanted.iter().map(|item| item.needs()).collect(),
            before: place.before.clone(),
            from: place.from.clone(),
            limit: WINDOW,
        });
        let (mut hits, mut looked_at, mut bytes) = (Vec::new(), 0, 0);
        let mut last = None;
        loop {
            let mut entries = Vec::new();
            let mut over = true;
            while let Some(candidate) = candidates.try_next().await? {
                looked_at += 1;
                bytes += candidate.entry.as_ref().map_or(0, |entry| entry.text.len());
                if place.before.is_none() {
                    place.before = Some(after(&candidate.place));
                }
                last = Some(candidate.place);
                entries.extend(candidate.entry);
                over = looked_at >= WINDOW || bytes >= WINDOW_BYTES && place.from.is_none();
                if over || entries.len() >= SCORED_AT_ONCE {
                    break;
                }
                over = true;
            }
            // Many words are taken apart here: not on a thread that serves.
            let (asked, texts) = (question.query.clone(), place.texts.clone());
            let scored = tokio::task::spawn_blocking(move || scored(&asked, &texts, entries)).await;
            hits.extend(scored.map_err(|_| Error::ShuttingDown)?);
            if over {
                break;
            }
        }
        let cut = looked_at >= WINDOW || bytes >= WINDOW_BYTES;
        // A window that is known already goes on where it ended.
        let next = match &place.from {
            Some(from) => Some(from.clone()),
            None => last.filter(|_| cut),
        };
        place.from.clone_from(&next);
        hits.sort_by(|a, b| order((a.score, &a.entry.key), (b.score, &b.entry.key)));
        Ok(Window { hits, place, next })
    }

    /// The first `most` of those whose record is still there, and whose execution is what is asked for as it is now.
    async fn there(&self, question: &Question, hits: Vec<Hit>, most: usize) -> Result<Vec<Hit>> {
        let log = self.records.log()?;
        let mut executions: HashMap<String, Option<Arc<Execution>>> = HashMap::new();
        let mut there = Vec::new();
        let mut hits = hits.into_iter();
        while there.len() < most {
            let some: Vec<Hit> = hits.by_ref().take(LOOKED_UP_AT_ONCE).collect();
            if some.is_empty() {
                break;
            }
            let mut keys: HashSet<RecordKey> = HashSet::new();
            for hit in &some {
                keys.insert(hit.entry.key.record());
                let execution_id = &hit.entry.key.execution_id;
                if !executions.contains_key(execution_id) {
                    keys.insert(RecordKey::execution(execution_id));
                    executions.insert(execution_id.clone(), None);
                }
            }
            let keys: Vec<Changed> = keys.into_iter().map(Changed::Record).collect();
            let mut records = HashSet::new();
            for (_, record) in log.load(&keys, false).await? {
                records.insert(record.key());
                if let Record::Execution(execution) = record {
                    executions.insert(execution.execution_id.clone(), Some(execution));
                }
            }
            there.extend(some.into_iter().filter(|hit| {
                let execution = executions.get(&hit.entry.key.execution_id);
                records.contains(&hit.entry.key.record())
                    && execution.is_some_and(|execution| {
                        execution.as_ref().is_some_and(|e| question.filter.matches(e))
                    })
            }));
        }
        there.truncate(most);
        Ok(there)
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
