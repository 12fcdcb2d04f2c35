//! The collections, for the rooms: those of the one list of `db::names`.

pub use super::db::names::*;
