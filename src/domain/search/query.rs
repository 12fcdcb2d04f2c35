//! What is asked: words that must all be there, "phrases", prefixes* and -exclusions.

use super::tokens::{Token, tokens};

/// Longest query in characters.
pub const QUERY_CHARACTERS: usize = 1_000;
/// Most words, phrases and exclusions of a query.
pub const QUERY_ITEMS: usize = 32;
/// Most terms of all of them.
pub const QUERY_TERMS: usize = 200;
/// Identifiers of one piece of a query that may stand there in one word, too.
const IDENTIFIERS: usize = 3;
/// Shortest beginning of a word that can be asked for, in characters.
pub const PREFIX_CHARACTERS: usize = 2;

/// One term, or all that begin with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Term {
    pub text: String,
    pub prefix: bool,
}

/// Terms that stand one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence(pub Vec<Term>);

/// A word or phrase of the query: one of its ways to stand in a text must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub ways: Vec<Sequence>,
}

impl Item {
    /// The terms a text must have at least: those of one of these lists.
    pub fn needs(&self) -> Vec<Vec<Term>> {
        // The first letter of a word narrows nothing down.
        let narrow = |term: &&Term| !term.prefix || term.text.chars().count() >= PREFIX_CHARACTERS;
        let terms = |way: &Sequence| way.0.iter().filter(narrow).cloned().collect();
        self.ways.iter().map(terms).collect()
    }
}

/// A query that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    pub wanted: Vec<Item>,
    pub excluded: Vec<Item>,
}

/// Why it cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadQuery {
    Empty,
    TooLong(usize),
    TooManyItems,
    TooManyTerms,
    OnlyExclusions,
    ShortPrefix(String),
    OpenQuote,
}

impl std::fmt::Display for BadQuery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BadQuery::Empty => write!(f, "must contain a word to search for"),
            BadQuery::TooLong(characters) => {
                write!(f, "has {characters} characters; the limit is {QUERY_CHARACTERS}")
            }
            BadQuery::TooManyItems => {
                write!(f, "has too many words, phrases and exclusions; the limit is {QUERY_ITEMS}")
            }
            BadQuery::TooManyTerms => write!(f, "has too many terms; the limit is {QUERY_TERMS}"),
            BadQuery::OnlyExclusions => {
                write!(f, "only excludes words; name at least one word to search for")
            }
            BadQuery::ShortPrefix(prefix) => write!(
                f,
                "has the prefix \"{prefix}\", which is shorter than the least of {PREFIX_CHARACTERS} \
                 characters"
            ),
            BadQuery::OpenQuote => write!(f, "has a quotation mark that is not closed"),
        }
    }
}

/// A piece of the query as it is written.
struct Written<'a> {
    excluded: bool,
    prefix: bool,
    text: &'a str,
}

fn is_quote(c: char) -> bool {
    matches!(c, '"' | '\u{201C}' | '\u{201D}' | '\u{201E}' | '\u{FF02}')
}

fn is_minus(c: char) -> bool {
    matches!(c, '-' | '\u{FF0D}')
}

fn is_star(c: char) -> bool {
    matches!(c, '*' | '\u{FF0A}')
}

fn split(query: &str) -> Result<Vec<Written<'_>>, BadQuery> {
    let mut pieces = Vec::new();
    let mut rest = query.trim_start();
    while !rest.is_empty() {
        let excluding = rest.strip_prefix(is_minus).filter(|beyond| !beyond.is_empty());
        let excluded = excluding.is_some();
        rest = excluding.unwrap_or(rest);
        let first = rest.chars().next().unwrap_or(' ');
        let (text, quoted) = match is_quote(first) {
            true => {
                let inner = &rest[first.len_utf8()..];
                let end = inner.find(is_quote).ok_or(BadQuery::OpenQuote)?;
                let close = inner[end..].chars().next().map_or(0, char::len_utf8);
                rest = &inner[end + close..];
                (&inner[..end], true)
            }
            false => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                let text = &rest[..end];
                rest = &rest[end..];
                (text, false)
            }
        };
        let starred = text.ends_with(is_star);
        let beyond = rest.strip_prefix(is_star).filter(|_| quoted);
        let after = beyond.is_some();
        rest = beyond.unwrap_or(rest);
        pieces.push(Written { excluded, prefix: starred || after, text });
        rest = rest.trim_start();
    }
    Ok(pieces)
}

fn item(written: &Written<'_>) -> Result<Option<Item>, BadQuery> {
    let found: Vec<Token> = tokens(written.text).collect();
    let plain: Vec<&Token> = found.iter().filter(|token| !token.extra).collect();
    let (Some(first), Some(last)) = (plain.first(), plain.last()) else { return Ok(None) };
    let prefix = written.prefix && !last.by_character;
    if prefix && plain.len() == 1 && last.term.chars().count() < PREFIX_CHARACTERS {
        return Err(BadQuery::ShortPrefix(last.term.clone()));
    }
    let end = last.position + last.width;
    let term = |token: &Token| Term {
        text: token.term.clone(),
        prefix: prefix && token.position + token.width == end,
    };
    // Each identifier as its words, or in one word; the longest of those that begin at a place.
    let mut ways: Vec<Vec<Term>> = vec![Vec::new()];
    let (mut identifiers, mut beyond) = (0, first.position);
    let mut rest = plain.iter().copied().peekable();
    while let Some(token) = rest.peek().copied() {
        let joined = found
            .iter()
            .filter(|joined| joined.position == token.position && joined.width > 1)
            .max_by_key(|joined| joined.width)
            .filter(|_| token.position >= beyond && identifiers < IDENTIFIERS);
        beyond = token.position + joined.map_or(token.width, |joined| joined.width);
        let mut words = Vec::new();
        while let Some(word) = rest.next_if(|word| word.position < beyond) {
            words.push(term(word));
        }
        let in_one: Vec<Vec<Term>> = match joined {
            None => Vec::new(),
            Some(joined) => {
                identifiers += 1;
                let with = |way: &Vec<Term>| way.iter().cloned().chain([term(joined)]).collect();
                ways.iter().map(with).collect()
            }
        };
        for way in &mut ways {
            way.extend(words.iter().cloned());
        }
        ways.extend(in_one);
    }
    Ok(Some(Item { ways: ways.into_iter().map(Sequence).collect() }))
}

impl Query {
    pub fn parse(query: &str) -> Result<Query, BadQuery> {
        let characters = query.chars().count();
        if characters > QUERY_CHARACTERS {
            return Err(BadQuery::TooLong(characters));
        }
        let mut parsed = Query { wanted: Vec::new(), excluded: Vec::new() };
        for written in split(query)? {
            let Some(item) = item(&written)? else { continue };
            let items = match written.excluded {
                true => &mut parsed.excluded,
                false => &mut parsed.wanted,
            };
            if !items.contains(&item) {
                items.push(item);
            }
        }
        if parsed.wanted.is_empty() {
            let only = !parsed.excluded.is_empty();
            return Err(if only { BadQuery::OnlyExclusions } else { BadQuery::Empty });
        }
        if parsed.wanted.len() + parsed.excluded.len() > QUERY_ITEMS {
            return Err(BadQuery::TooManyItems);
        }
        let items = parsed.wanted.iter().chain(&parsed.excluded);
        let terms: usize = items.flat_map(|item| &item.ways).map(|way| way.0.len()).sum();
        match terms > QUERY_TERMS {
            true => Err(BadQuery::TooManyTerms),
            false => Ok(parsed),
        }
    }
}
