//! The ground floor of the MongoDB backend: everything that speaks to the driver in the name of the store. It knows no
//! records and no other part of the store.
//!
//! `options`, `pools` and `link` reach the database, `connection` is the only way to a collection, `command` sends writes so that
//! they are executed once, `transaction` runs what has to happen at once, `indexes` makes indexes, `values` reads what
//! documents hold, `failure` judges what went wrong.

mod collection;
mod command;
mod connection;
pub mod failure;
mod indexes;
mod link;
mod options;
mod pools;
mod statements;
mod transaction;
pub mod values;

pub use collection::{Collection, META, Rows};
pub use command::Durability;
pub use connection::Connection;
pub use indexes::{Index, Indexes, begins_with, existing, is_plain, make};
pub use link::Db;
pub use options::MongoOptions;
pub use statements::{Fate, delete_document, update_document, update_statement};
pub use transaction::{Effort, Ended, Failed, Transaction};
