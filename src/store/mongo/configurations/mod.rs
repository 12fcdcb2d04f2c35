//! Configurations: `documents` says how they look, `switch` makes one of them the active one, `store` is the rest.

mod documents;
mod store;
mod switch;

pub use documents::{record_of, wanted};
pub use store::{Configurations, sweep};
