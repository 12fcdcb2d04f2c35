//! Rollups in collections of their own. A rollup's `_id` is its level, time and group, in this order, so that those of
//! a stretch of time lie together; its numbers stand under `p` (part, status, number), where they are incremented.
//! Everything a batch changes is one transaction, which begins with the document that says who leads.

mod commit;
mod documents;
mod store;

pub use store::{RollupRoom, wanted};
