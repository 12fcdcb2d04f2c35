//! The record of who did what. `entry` is what a record says, `record` is the document with its place in a chain and its
//! hash, `query` asks for records, and `verify` finds out whether chains are as they were written.
//!
//! Each process of a server writes a chain of its own: every record has the hash of the one before it. The hash is the
//! SHA-256 of the document, as BSON, without its field `hash`.

pub mod entry;
pub mod query;
pub mod record;
pub mod verify;

pub use entry::{Actor, Asked, Entry, Outcome, Phase, RequestId, Target};
pub use query::AuditFilter;
pub use record::{Hash, Head, Link, Record, Sealed, seal};
