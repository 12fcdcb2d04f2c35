//! Search: one way to make terms of a text, for what is indexed and for what is asked, whichever store keeps the
//! index. So both find the same, and count it the same.

use serde::{Deserialize, Serialize};

pub mod query;
pub mod score;
pub mod text;
pub mod tokens;

#[cfg(test)]
mod tests;

pub use query::Query;
pub use tokens::{Token, tokens};

/// Of one record no more text than this is indexed, in bytes of UTF-8; the entry says that it was cut.
pub const INDEXED_BYTES: usize = 256 * 1024;
/// Nor more different terms than this.
pub const INDEXED_TERMS: usize = 20_000;
/// Rules of the index: an index by others is built anew.
pub const RULES: i64 = 2;

/// Which text of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    ExecutionError = 1,
    StepError = 2,
    StepOutput = 3,
    ArtifactText = 4,
}

impl Kind {
    pub const ALL: [Kind; 4] =
        [Kind::ExecutionError, Kind::StepError, Kind::StepOutput, Kind::ArtifactText];

    pub fn from_number(number: i32) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as i32 == number)
    }
}

/// The different terms of a text, sorted, and whether there were more.
pub fn terms(text: &str) -> (Vec<String>, bool) {
    let mut terms = std::collections::BTreeSet::new();
    for token in tokens(text) {
        terms.insert(token.term);
        if terms.len() >= INDEXED_TERMS {
            return (terms.into_iter().collect(), true);
        }
    }
    (terms.into_iter().collect(), false)
}
