//! What stands before a place in a message: the words that say what a number or a value is.

/// Characters looked back at.
const REACH: usize = 80;
/// Words looked back at.
const WORDS: usize = 6;

/// The words before a place, the nearest first.
#[derive(Debug, Default)]
pub struct Before {
    /// As they are written.
    pub raw: Vec<String>,
    /// In small letters, without `_`.
    pub words: Vec<String>,
    /// What stands between the nearest of them and the place.
    pub gap: String,
}

impl Before {
    pub fn word(&self, index: usize) -> &str {
        self.words.get(index).map_or("", String::as_str)
    }

    /// Nothing stands between that separates statements.
    pub fn is_close(&self) -> bool {
        !self.gap.contains([',', ';', '\n', '/', '.', '|', '!', '?', '}'])
    }
}

fn is_part_of_word(chars: &[char], at: usize) -> bool {
    let c = chars[at];
    let between = || {
        at > 0
            && chars[at - 1].is_alphanumeric()
            && chars.get(at + 1).is_some_and(|next| next.is_alphanumeric())
    };
    c.is_alphanumeric() || c == '_' || matches!(c, '.' | '/' | '\'') && between()
}

/// Reads backwards from `at`. A remark in parentheses right before it is passed over.
pub fn before(chars: &[char], at: usize) -> Before {
    let floor = at.saturating_sub(REACH);
    let mut found = Before::default();
    let mut gap = Vec::new();
    let mut place = at;
    while place > floor && found.words.len() < WORDS {
        let c = chars[place - 1];
        if c == ')' && found.words.is_empty() {
            let open = (floor..place - 1).rev().find(|at| chars[*at] == '(');
            if let Some(open) = open {
                place = open;
                continue;
            }
        }
        // The place itself may be in the middle of a word that begins before it.
        let joined = found.words.is_empty() && place == at && c == '.';
        if joined || !is_part_of_word(chars, place - 1) {
            if found.words.is_empty() {
                gap.push(c);
            }
            place -= 1;
            continue;
        }
        let end = place;
        while place > floor && is_part_of_word(chars, place - 1) {
            place -= 1;
        }
        let raw: String = chars[place..end].iter().collect();
        found.words.push(raw.to_lowercase().replace('_', ""));
        found.raw.push(raw);
    }
    gap.reverse();
    found.gap = gap.into_iter().collect();
    found
}
