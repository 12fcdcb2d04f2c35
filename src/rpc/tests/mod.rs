//! What requests may hold, and how records look to clients, as tables.

mod convert;
pub mod records;
mod requests;
