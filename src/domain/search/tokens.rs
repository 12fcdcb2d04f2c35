//! Terms of a text. Words are folded: case, width, accents and letters that are written in more than one way. An
//! identifier gives its words, and all of them joined at the place of the first: `getUserName` gives `get`, `user`,
//! `name` and `getusername`, and so do `get_user_name` and `get-user-name`. Of words that only capitals tell apart,
//! neighbours are joined too: `ChatOpenAI` has `openai`. Scripts without spaces between words, and Korean, give each
//! character and each pair of neighbours.

use std::ops::Range;

use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::is_combining_mark;

/// Longest term in characters; what is longer is cut.
pub const TERM_CHARACTERS: usize = 64;

/// Neighbours that are joined of words that only capitals tell apart.
const NEIGHBOURS: usize = 3;
/// Letters of a word that is found without the number at its end, at least.
const NUMBERED_LETTERS: usize = 3;

/// A term at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub term: String,
    /// Which word it is; several terms may begin at one.
    pub position: u32,
    /// How many words it is: the next one after it has the position beyond.
    pub width: u32,
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

/// What is not seen, or only changes how the character before it looks.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{00AD}' | '\u{200B}'..='\u{200F}' | '\u{20D0}'..='\u{20FF}' | '\u{FE00}'..='\u{FE0F}'
        | '\u{FEFF}')
}

/// Vowels and final consonants of Korean that are written one by one.
fn goes_on_a_syllable(c: char) -> bool {
    matches!(c, '\u{1160}'..='\u{11FF}' | '\u{D7B0}'..='\u{D7FF}')
}

/// Where the decimal digits of other scripts begin.
const ZEROS: [u32; 18] = [
    0x0660, 0x06F0, 0x07C0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66,
    0x0E50, 0x0ED0, 0x0F20, 0x1040, 0x17E0, 0x1810,
];

/// The digit that a decimal digit of another script is.
fn digit(c: char) -> Option<char> {
    let number = u32::from(c);
    let zero = ZEROS.into_iter().find(|zero| (*zero..zero + 10).contains(&number))?;
    char::from_digit(number - zero, 10)
}

fn class(c: char) -> Class {
    match c {
        '_' | '-' => Class::Joiner,
        '\u{30FB}' | '\u{0E2F}' | '\u{0E5A}' | '\u{0E5B}' => Class::Other,
        '\u{0640}' => Class::Word,
        c if is_invisible(c) => Class::Word,
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
            c if is_invisible(c) => {}
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
            c if digit(c).is_some() => folded.extend(digit(c)),
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

/// The digits of `15T10`, `00Z` and `20240115T100000Z`, as times are written.
fn digits_of_a_time(run: &str) -> Option<Vec<Range<usize>>> {
    let digits = run.strip_suffix('Z').unwrap_or(run);
    let (date, clock) = match digits.split_once('T') {
        Some((date, clock)) => (date, Some(clock)),
        None if digits.len() < run.len() => (digits, None),
        None => return None,
    };
    let number = |part: &str| {
        (2..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    if !number(date) || !clock.is_none_or(number) {
        return None;
    }
    let clock = clock.map(|clock| date.len() + 1..date.len() + 1 + clock.len());
    Some(std::iter::once(0..date.len()).chain(clock).collect())
}

/// Where the words of `ABCDef`, `abcDef` and `Abc2Def` are.
fn words(run: &str, start: usize) -> Vec<Range<usize>> {
    if let Some(digits) = digits_of_a_time(run) {
        return digits.into_iter().map(|span| start + span.start..start + span.end).collect();
    }
    let characters: Vec<(usize, char)> = run.char_indices().collect();
    let mut words = Vec::new();
    let mut begun = 0;
    for i in 1..characters.len() {
        let (before, (at, c)) = (characters[i - 1].1, characters[i]);
        let next = characters.get(i + 1).map(|(_, next)| *next);
        let small = next.is_some_and(char::is_lowercase);
        // The plural of `URL`.
        let plural = next == Some('s')
            && characters.get(i + 2).is_none_or(|(_, after)| !after.is_lowercase());
        let hump = c.is_uppercase()
            && (before.is_lowercase()
                || before.is_uppercase() && small && !plural
                || before.is_numeric() && small);
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
        let width = 1;
        self.ready.push_back(Token { term: cut(term), position, width, span, extra, by_character });
    }

    /// Words joined to one, which begins at the first of them.
    fn push_joined(&mut self, parts: &[(String, Range<usize>)]) {
        let (Some((_, first)), Some((_, last))) = (parts.first(), parts.last()) else { return };
        let term: String = parts.iter().map(|(term, _)| term.as_str()).collect();
        if term.chars().count() <= TERM_CHARACTERS {
            self.ready.push_back(Token {
                term,
                position: self.position,
                width: u32::try_from(parts.len()).unwrap_or(u32::MAX),
                span: first.start..last.end,
                extra: true,
                by_character: false,
            });
        }
    }

    fn identifier(&mut self) {
        let mut parts = Vec::new();
        // Which parts are one word but for its capitals.
        let mut together: Vec<Range<usize>> = Vec::new();
        loop {
            let end = self.run(Class::Word, self.at);
            let first = parts.len();
            for span in words(&self.text[self.at..end], self.at) {
                let term = fold(&self.text[span.clone()]);
                if !term.is_empty() {
                    parts.push((term, span));
                }
            }
            together.push(first..parts.len());
            self.at = end;
            let joined = self.run(Class::Joiner, end);
            let next = self.text[joined..].chars().next();
            if joined == end || next.is_none_or(|c| class(c) != Class::Word) {
                break;
            }
            self.at = joined;
        }
        let mut together = together.into_iter().peekable();
        for (index, (term, span)) in parts.iter().enumerate() {
            while together.next_if(|word| word.end <= index).is_some() {}
            let word = together.peek().cloned().unwrap_or(0..0);
            // The longest first: the last of those that begin here is the word alone.
            if index == 0 && parts.len() > 1 {
                self.push_joined(&parts);
            }
            if word.start == index && word.len() > NEIGHBOURS && word.len() < parts.len() {
                self.push_joined(&parts[word.clone()]);
            }
            for length in (2..=NEIGHBOURS).rev() {
                if index + length <= word.end && length < parts.len() {
                    self.push_joined(&parts[index..index + length]);
                }
            }
            self.alone(term, span);
            self.position += 1;
        }
    }

    /// A word, and what it is found by beside itself.
    fn alone(&mut self, term: &str, span: &Range<usize>) {
        // `server2` is a server, too; a code like `E11000` is only itself; `v1` is the version 1.
        let letters = term.trim_end_matches(|c: char| c.is_ascii_digit());
        let digits = term.len() - letters.len();
        let as_written = self.text[span.clone()].ends_with(&term[letters.len()..]);
        if digits > 0
            && letters.chars().count() >= NUMBERED_LETTERS
            && letters.chars().all(char::is_alphabetic)
            && as_written
        {
            self.push(letters.to_owned(), span.start..span.end - digits, true, false);
        }
        if digits > 0 && letters == "v" && as_written {
            self.push(term[1..].to_owned(), span.end - digits..span.end, true, false);
        }
        self.push(term.to_owned(), span.clone(), false, false);
    }

    /// Where a run of characters ends. What is not seen between two of them does not end it: some scripts mark words
    /// so.
    fn characters_end(&self) -> usize {
        let mut end = self.at;
        for (offset, c) in self.text[self.at..].char_indices() {
            match class(c) {
                Class::Character => end = self.at + offset + c.len_utf8(),
                _ if is_invisible(c) => {}
                _ => break,
            }
        }
        end
    }

    /// Beyond a sequence that sets the colour on a terminal, if one begins here.
    fn colour(&self) -> Option<usize> {
        let rest = self.text[self.at..].strip_prefix("\u{1B}[")?;
        let end = rest.find(|c: char| !matches!(c, '0'..='9' | ';' | '?'))?;
        let last = rest[end..].chars().next().filter(char::is_ascii_alphabetic)?;
        Some(self.text.len() - rest.len() + end + last.len_utf8())
    }

    fn characters(&mut self) {
        let end = self.characters_end();
        // Half-width sounds are one character with their mark: what is folded is cut, not what stands there.
        let mut clusters: Vec<(String, Range<usize>)> = Vec::new();
        for (offset, c) in self.text[self.at..end].char_indices() {
            let span = self.at + offset..self.at + offset + c.len_utf8();
            match clusters.last_mut() {
                Some((_, last))
                    if is_combining_mark(c)
                        || is_invisible(c)
                        || goes_on_a_syllable(c)
                        || matches!(c, '\u{FF9E}' | '\u{FF9F}') =>
                {
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
                Class::Joiner | Class::Other => {
                    self.at = self.colour().unwrap_or(self.at + c.len_utf8());
                }
            }
        }
        self.ready.pop_front()
    }
}
