//! Whether a text is what was asked for, how well, and the piece of it that shows it.

use std::collections::HashMap;
use std::ops::Range;

use super::query::{Item, Query, Sequence, Term};
use super::tokens::{Token, tokens};

/// The constants of BM25, with a text of this many words counting as neither short nor long.
const K1: f64 = 1.2;
const B: f64 = 0.75;
const USUAL_WORDS: f64 = 200.0;
/// A word that this many texts have says nothing.
const OFTEN: f64 = 100_000.0;
/// Characters of a snippet.
const SNIPPET_CHARACTERS: usize = 240;
/// Characters before the first word that was found.
const LEAD_CHARACTERS: usize = 60;
/// Places shown in a snippet.
const HIGHLIGHTS: usize = 50;

/// What a text has of what was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Match {
    pub score: f64,
    /// In bytes of the text, in order, apart.
    pub spans: Vec<Range<usize>>,
}

/// A piece of the text. Places are counted in characters (Unicode code points) of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snippet {
    pub text: String,
    /// Offset and length.
    pub highlights: Vec<(u32, u32)>,
}

/// Where a term stands: the word it begins at, how many words it is, and its bytes.
#[derive(Debug, Clone)]
struct Place {
    position: u32,
    width: u32,
    span: Range<usize>,
}

type Places = Vec<Place>;

fn places_of<'a>(found: &'a HashMap<&Term, Places>, term: &Term) -> &'a [Place] {
    found.get(term).map_or(&[], Vec::as_slice)
}

/// Where it ends if all of these follow from this word on.
fn followed(rest: &[Term], position: u32, found: &HashMap<&Term, Places>) -> Option<Option<usize>> {
    let Some((term, rest)) = rest.split_first() else { return Some(None) };
    let places = places_of(found, term);
    let from = places.partition_point(|place| place.position < position);
    let here = places[from..].iter().take_while(|place| place.position == position);
    here.filter_map(|place| {
        let end = followed(rest, position + place.width, found)?;
        Some(Some(end.unwrap_or(0).max(place.span.end)))
    })
    .next()
}

/// How often the terms stand like this, and where.
fn occurrences(way: &Sequence, found: &HashMap<&Term, Places>, spans: &mut Places) -> usize {
    let Some((first, rest)) = way.0.split_first() else { return 0 };
    let mut count = 0;
    for place in places_of(found, first) {
        if let Some(end) = followed(rest, place.position + place.width, found) {
            count += 1;
            let end = end.unwrap_or(0).max(place.span.end);
            spans.push(Place { span: place.span.start..end, ..place.clone() });
        }
    }
    count
}

fn counted(item: &Item, found: &HashMap<&Term, Places>, spans: &mut Places) -> usize {
    item.ways.iter().map(|way| occurrences(way, found, spans)).sum()
}

/// How well a text matches, `None` if it does not. `texts` says in how many texts each wanted item's terms are.
pub fn matched(query: &Query, texts: &[u64], text: &str) -> Option<Match> {
    let mut found: HashMap<&Term, Places> = HashMap::new();
    let mut exact: HashMap<&str, &Term> = HashMap::new();
    let mut prefixes: Vec<&Term> = Vec::new();
    for item in query.wanted.iter().chain(&query.excluded) {
        for term in item.ways.iter().flat_map(|way| &way.0) {
            if term.prefix {
                prefixes.push(term);
            } else {
                exact.insert(term.text.as_str(), term);
            }
        }
    }
    prefixes.sort_by(|a, b| a.text.cmp(&b.text));
    prefixes.dedup();
    let mut words = 0_u32;
    let place = |token: &Token| Place {
        position: token.position,
        width: token.width,
        span: token.span.clone(),
    };
    for token in tokens(text) {
        words = token.position + 1;
        if let Some(term) = exact.get(token.term.as_str()) {
            found.entry(term).or_default().push(place(&token));
        }
        for term in prefixes.iter().filter(|term| token.term.starts_with(&term.text)) {
            let places = found.entry(term).or_default();
            // The joined words of an identifier begin where its first word does.
            if places.last().is_none_or(|last| last.position != token.position) {
                places.push(place(&token));
            }
        }
    }
    let mut spans = Places::new();
    let length = K1 * (1.0 - B + B * f64::from(words) / USUAL_WORDS);
    let mut score = 0.0;
    for (item, texts) in query.wanted.iter().zip(texts) {
        let count = counted(item, &found, &mut spans) as f64;
        if count == 0.0 {
            return None;
        }
        let rare = (1.0 + OFTEN / (*texts as f64 + 0.5)).ln();
        score += rare * count * (K1 + 1.0) / (count + length);
    }
    if query.excluded.iter().any(|item| counted(item, &found, &mut Places::new()) > 0) {
        return None;
    }
    let mut spans: Vec<Range<usize>> = spans.into_iter().map(|place| place.span).collect();
    spans.sort_by_key(|span| (span.start, span.end));
    let mut apart: Vec<Range<usize>> = Vec::new();
    for span in spans {
        match apart.last_mut() {
            Some(last) if span.start < last.end => last.end = last.end.max(span.end),
            _ => apart.push(span),
        }
    }
    Some(Match { score, spans: apart })
}

/// Where the most places that were found stand close together.
fn best(spans: &[Range<usize>], text: &str) -> usize {
    let reach = SNIPPET_CHARACTERS - LEAD_CHARACTERS;
    let (mut best, mut most) = (0, 0);
    let mut end = 0;
    for (i, span) in spans.iter().enumerate() {
        let limit = text[span.start..].char_indices().nth(reach);
        let limit = limit.map_or(text.len(), |(at, _)| span.start + at);
        while end < spans.len() && spans[end].end <= limit {
            end += 1;
        }
        if end.saturating_sub(i) > most {
            (best, most) = (i, end - i);
        }
    }
    best
}

/// The piece of the text around what was found, whole words where that costs little.
pub fn snippet(text: &str, spans: &[Range<usize>]) -> Snippet {
    let spans = &spans[..spans.len().min(1_000)];
    let from = spans.get(best(spans, text)).map_or(0, |span| span.start);
    let lead = text[..from].char_indices().rev().take(LEAD_CHARACTERS).last();
    let mut start = lead.map_or(0, |(at, _)| at);
    if start > 0
        && let Some(space) = text[start..from].find(char::is_whitespace)
        && space < 20
    {
        start += space + 1;
        // A space of more than one byte.
        while !text.is_char_boundary(start) {
            start += 1;
        }
    }
    let end = text[start..].char_indices().nth(SNIPPET_CHARACTERS);
    let end = end.map_or(text.len(), |(at, _)| start + at);
    let characters = |range: Range<usize>| text[range].chars().count() as u32;
    let shown = spans.iter().filter(|span| span.start >= start && span.start < end);
    let highlights = shown
        .take(HIGHLIGHTS)
        .map(|span| (characters(start..span.start), characters(span.start..span.end.min(end))))
        .collect();
    Snippet { text: text[start..end].to_owned(), highlights }
}
