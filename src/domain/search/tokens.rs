//! Terms of a text. Words are folded: case, width, accents and letters that are written in more than one way. An
//! identifier gives its words, and all of them joined at the place of the first: `getUserName` gives `get`, `user`,
//! `name` and `getusername`, and so do `get_user_name` and `get-user-name`. Scripts without spaces between words,
//! and Korean, give each character and each pair of neighbours.

use std::ops::Range;

use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::is_combining_mark;

/// Longest term in characters; what is longer is cut.
pub const TERM_CHARACTERS: usize = 64;

/// Letters of a word that is found without the number at its end, at least.
const NUMBERED_LETTERS: usize = 3;

/// A term at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub term: String,
    /// Which word it is; several terms may begin at one.
    pub position: u32,
    /// Where it stands in the text, in bytes.
    pub span: Range<usize>,
    /// More than one word joined, or one character of a script that is asked for by pairs.
    pub extra: bool,
    /// Of a script that is indexed by characters.
    pub by_character: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Word,
    Character,
    Joiner,
    Other,
}

fn is_by_character(c: char) -> bool {
    matches!(u32::from(c),
        0x0E00..=0x0EFF // Thai, Lao
        | 0x0F00..=0x0FFF | 0x1000..=0x109F | 0x1780..=0x17FF // Tibetan, Burmese, Khmer
        | 0x1100..=0x11FF | 0x3130..=0x318F | 0xAC00..=0xD7FF // Korean
        | 0x3005..=0x3007 | 0x3040..=0x30FF | 0x31F0..=0x31FF | 0xFF66..=0xFF9F // Japanese
        | 0x3400..=0x4DBF | 0x4E00..=0x9FFF | 0xF900..=0xFAFF | 0x20000..=0x323AF)
}

fn class(c: char) -> Class {
    match c {
        '_' | '-' => Class::Joiner,
        '\u{30FB}' | '\u{0E2F}' | '\u{0E5A}' | '\u{0E5B}' => Class::Other,
        '\u{00AD}' | '\u{200B}'..='\u{200F}' | '\u{FEFF}' | '\u{0640}' => Class::Word,
        c if is_by_character(c) && (c.is_alphanumeric() || is_combining_mark(c)) => {
            Class::Character
        }
        c if c.is_alphanumeric() || is_combining_mark(c) => Class::Word,
        _ => Class::Other,
    }
}

/// What a word is compared by.
pub fn fold(word: &str) -> String {
    let mut folded = String::with_capacity(word.len());
    for c in word.nfkd() {
        match c {
            // Accents, vowel signs of Arabic and Hebrew, and what is not seen.
            '\u{0300}'..='\u{036F}' | '\u{064B}'..='\u{065F}' | '\u{0670}' | '\u{0640}' => {}
            '\u{0591}'..='\u{05BD}' | '\u{05BF}'..='\u{05C7}' => {}
            '\u{00AD}' | '\u{200B}'..='\u{200F}' | '\u{FEFF}' => {}
            'ß' | 'ẞ' => folded.push_str("ss"),
            'æ' | 'Æ' => folded.push_str("ae"),
            'œ' | 'Œ' => folded.push_str("oe"),
            'ø' | 'Ø' => folded.push('o'),
            'đ' | 'Đ' | 'ð' | 'Ð' => folded.push('d'),
            'ł' | 'Ł' => folded.push('l'),
            'þ' | 'Þ' => folded.push_str("th"),
            'ı' => folded.push('i'),
            'ς' => folded.push('σ'),
            'ى' | 'ی' => folded.push('ي'),
            'ک' => folded.push('ك'),
            'ة' => folded.push('ه'),
            c => folded.extend(c.to_lowercase().filter(|c| *c != '\u{0307}')),
        }
    }
    // Korean syllables and Japanese voiced sounds together again; and none of the punctuation that compatibility
    // forms fall apart into.
    folded.nfc().filter(|c| c.is_alphanumeric() || is_combining_mark(*c)).collect()
}

fn cut(term: String) -> String {
    match term.char_indices().nth(TERM_CHARACTERS) {
        Some((end, _)) => term[..end].to_owned(),
        None => term,
    }
}

/// Where the words of `ABCDef` and `abcDef` begin.
fn words(run: &str, start: usize) -> Vec<Range<usize>> {
    let characters: Vec<(usize, char)> = run.char_indices().collect();
    let mut words = Vec::new();
    let mut begun = 0;
    for i in 1..characters.len() {
        let (before, (at, c)) = (characters[i - 1].1, characters[i]);
        let next = characters.get(i + 1).map(|(_, next)| *next);
        let hump = c.is_uppercase()
            && (before.is_lowercase()
                || before.is_uppercase() && next.is_some_and(char::is_lowercase));
        if hump {
            words.push(start + begun..start + at);
            begun = at;
        }
    }
    words.push(start + begun..start + run.len());
    words
}

/// The terms of a text, by position.
pub fn tokens(text: &str) -> impl Iterator<Item = Token> + '_ {
    Tokens { text, at: 0, position: 0, ready: std::collections::VecDeque::new() }
}

struct Tokens<'a> {
    text: &'a str,
    at: usize,
    position: u32,
    ready: std::collections::VecDeque<Token>,
}

impl Tokens<'_> {
    /// From `at` while it is of this class.
    fn run(&self, wanted: Class, from: usize) -> usize {
        let rest = &self.text[from..];
        let end = rest.char_indices().find(|(_, c)| class(*c) != wanted);
        end.map_or(self.text.len(), |(at, _)| from + at)
    }

    fn push(&mut self, term: String, span: Range<usize>, extra: bool, by_character: bool) {
        let position = self.position;
        self.ready.push_back(Token { term: cut(term), position, span, extra, by_character });
    }

    fn identifier(&mut self) {
        let mut parts = Vec::new();
        let begun = self.at;
        loop {
            let end = self.run(Class::Word, self.at);
            parts.extend(words(&self.text[self.at..end], self.at));
            self.at = end;
            let joined = self.run(Class::Joiner, end);
            let next = self.text[joined..].chars().next();
            if joined == end || next.is_none_or(|c| class(c) != Class::Word) {
                break;
            }
            self.at = joined;
        }
        let folded: Vec<(String, Range<usize>)> = parts
            .into_iter()
            .map(|span| (fold(&self.text[span.clone()]), span))
            .filter(|(term, _)| !term.is_empty())
            .collect();
        if folded.len() > 1 {
            let joined: String = folded.iter().map(|(term, _)| term.as_str()).collect();
            if joined.chars().count() <= TERM_CHARACTERS {
                self.push(joined, begun..self.at, true, false);
            }
        }
        for (term, span) in folded {
            // `server2` is a server, too; a code like `E11000` is only itself.
            let letters = term.trim_end_matches(|c: char| c.is_ascii_digit());
            let digits = term.len() - letters.len();
            if digits > 0
                && letters.chars().count() >= NUMBERED_LETTERS
                && letters.chars().all(char::is_alphabetic)
                && self.text[span.clone()].ends_with(&term[letters.len()..])
            {
                self.push(letters.to_owned(), span.start..span.end - digits, true, false);
            }
            self.push(term, span, false, false);
            self.position += 1;
        }
    }

    fn characters(&mut self) {
        let end = self.run(Class::Character, self.at);
        // Half-width sounds are one character with their mark: what is folded is cut, not what stands there.
        let mut clusters: Vec<(String, Range<usize>)> = Vec::new();
        for (offset, c) in self.text[self.at..end].char_indices() {
            let span = self.at + offset..self.at + offset + c.len_utf8();
            match clusters.last_mut() {
                Some((_, last)) if is_combining_mark(c) || matches!(c, '\u{FF9E}' | '\u{FF9F}') => {
                    last.end = span.end;
                }
                _ => clusters.push((String::new(), span)),
            }
        }
        for (folded, span) in &mut clusters {
            *folded = fold(&self.text[span.clone()]);
        }
        clusters.retain(|(folded, _)| !folded.is_empty());
        for i in 0..clusters.len() {
            let (one, span) = clusters[i].clone();
            let pair = clusters
                .get(i + 1)
                .map(|(next, end)| (format!("{one}{next}"), span.start..end.end));
            let alone = clusters.len() == 1;
            self.push(one, span, !alone, true);
            if let Some((pair, span)) = pair {
                self.push(pair, span, false, true);
            }
            self.position += 1;
        }
        self.at = end;
    }
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        while self.ready.is_empty() {
            let c = self.text[self.at..].chars().next()?;
            match class(c) {
                Class::Word => self.identifier(),
                Class::Character => self.characters(),
                Class::Joiner | Class::Other => self.at += c.len_utf8(),
            }
        }
        self.ready.pop_front()
    }
}
