//! Search: an index that follows the log of changes, and the questions to it.

mod find;
mod keep;

pub use find::{Found, Hit, Question, Search};
pub use keep::Keeper;
