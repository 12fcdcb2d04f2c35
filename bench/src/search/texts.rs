//! The texts that are searched: some sixty words each, of a vocabulary in which the n-th word comes 1/n times as often
//! as the first, with an identifier of code, and what is in one text alone.

use crate::dice::{Dice, Skewed};

/// Different words.
const VOCABULARY: usize = 50_000;
const SYLLABLES: [&str; 32] = [
    "ka", "lo", "mi", "ren", "tu", "sa", "vel", "do", "pra", "ni", "gor", "fe", "lin", "bo", "tar",
    "shu", "em", "qui", "ro", "das", "pe", "wol", "ja", "cun", "ti", "mor", "ze", "ha", "bri",
    "nox", "al", "yu",
];
const VERBS: [&str; 8] = ["fetch", "load", "parse", "store", "merge", "render", "queue", "check"];
const NOUNS: [&str; 10] = [
    "user", "record", "token", "invoice", "session", "prompt", "model", "batch", "answer", "index",
];
/// Stands in one of so many texts.
const PHRASE: &str = "connection reset by peer";
const PHRASE_EVERY: u64 = 1_000;

/// The word of a rank, the most frequent being 0.
fn word(rank: usize) -> String {
    // Two syllables for the first thousand, three for most.
    let mut word = String::new();
    let mut left = rank + SYLLABLES.len();
    while left > 0 {
        word.push_str(SYLLABLES[left % SYLLABLES.len()]);
        left /= SYLLABLES.len();
    }
    word
}

#[derive(Debug)]
pub struct Texts(Skewed);

impl Texts {
    pub fn new() -> Self {
        Texts(Skewed::new(VOCABULARY))
    }

    pub fn get(&self, number: u64) -> String {
        let mut dice = Dice::new(number);
        let mut text = format!("req{number}x ");
        for _ in 0..40 + dice.below(41) {
            text.push_str(&word(self.0.choose(&mut dice)));
            text.push(' ');
        }
        if number.is_multiple_of(PHRASE_EVERY) {
            text.push_str(PHRASE);
            text.push(' ');
        }
        let verb = VERBS[dice.below(VERBS.len())];
        let (one, two) = (NOUNS[dice.below(NOUNS.len())], NOUNS[dice.below(NOUNS.len())]);
        text.push_str(&format!("{verb}_{one}_{two}()"));
        text
    }
}

/// A kind of question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    OnlyOne,
    RareWord,
    Word,
    TwoWords,
    CommonWord,
    Phrase,
    Identifier,
    Prefix,
}

impl Kind {
    pub const ALL: [Kind; 8] = [
        Kind::OnlyOne,
        Kind::RareWord,
        Kind::Word,
        Kind::TwoWords,
        Kind::CommonWord,
        Kind::Phrase,
        Kind::Identifier,
        Kind::Prefix,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::OnlyOne => "in one text",
            Kind::RareWord => "rare word",
            Kind::Word => "word in 1 of 100",
            Kind::TwoWords => "two words in 1 of 20",
            Kind::CommonWord => "word in 1 of 3",
            Kind::Phrase => "phrase",
            Kind::Identifier => "identifier, other case",
            Kind::Prefix => "prefix*",
        }
    }

    /// Whether a text index of MongoDB has such a question.
    pub fn is_of_text_index(self) -> bool {
        !matches!(self, Kind::Identifier | Kind::Prefix)
    }
}

/// What is searched for, as the server and as a text index takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    pub server: String,
    pub text_index: String,
}

impl Question {
    pub fn new(kind: Kind, texts: u64, dice: &mut Dice) -> Self {
        let same = |query: String| Question { text_index: format!("\"{query}\""), server: query };
        match kind {
            Kind::OnlyOne => same(format!("req{}x", dice.below(texts as usize))),
            Kind::RareWord => same(word(VOCABULARY - 1 - dice.below(1_000))),
            Kind::Word => same(word(480 + dice.below(80))),
            Kind::TwoWords => {
                let (one, two) = (word(90 + dice.below(20)), word(112 + dice.below(20)));
                Question {
                    server: format!("{one} {two}"),
                    text_index: format!("\"{one}\" \"{two}\""),
                }
            }
            Kind::CommonWord => same(word(10 + dice.below(5))),
            Kind::Phrase => {
                Question { server: format!("\"{PHRASE}\""), text_index: format!("\"{PHRASE}\"") }
            }
            Kind::Identifier => {
                let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
                let (one, two) = (NOUNS[dice.below(NOUNS.len())], NOUNS[dice.below(NOUNS.len())]);
                let verb = VERBS[dice.below(VERBS.len())];
                same(format!("{verb}{}{}", capital(one), capital(two)))
            }
            Kind::Prefix => {
                let word = word(20_000 + dice.below(20_000));
                same(format!("{}*", &word[..word.len() - 1]))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_as_frequent_as_said() {
        let texts = Texts::new();
        let all: Vec<String> = (0..4_000).map(|number| texts.get(number)).collect();
        assert_eq!(all[7], Texts::new().get(7));
        let share = |word: &str| {
            let found = all.iter().filter(|text| text.split_whitespace().any(|one| one == word));
            found.count() as f64 / all.len() as f64
        };
        let between = |from: usize, until: usize| {
            let all: Vec<f64> = (from..until).map(|rank| share(&word(rank))).collect();
            all.iter().sum::<f64>() / all.len() as f64
        };
        assert!((0.25..0.5).contains(&between(10, 15)), "{}", between(10, 15));
        assert!((0.03..0.07).contains(&between(90, 132)), "{}", between(90, 132));
        assert!((0.007..0.013).contains(&between(480, 560)), "{}", between(480, 560));
        assert_eq!(all.iter().filter(|text| text.contains(PHRASE)).count(), 4);
    }

    #[test]
    fn words_differ() {
        let all: std::collections::HashSet<String> = (0..VOCABULARY).map(word).collect();
        assert_eq!(all.len(), VOCABULARY);
    }
}
