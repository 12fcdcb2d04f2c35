//! The ground floor of the MongoDB backend: everything that speaks to the driver in the name of the store. It knows no
//! records and no other part of the store.
//!
//! `options`, `pools` and `link` reach the database, `identity` knows it again and `view` its servers, `connection` is the
//! only way to a collection, `command` sends writes so that they are executed once, `transaction` runs what has to happen
//! at once, `indexes` says which indexes there have to be and `making` makes them, `values` reads what
//! documents hold, `failure` judges what went wrong. `names` lists all collections, `role` what may be done in each, and `shards`
//! how they are spread, `types` in which order values of all types come.

mod collection;
mod command;
mod connection;
pub mod failure;
mod identity;
mod indexes;
mod link;
mod making;
pub mod names;
mod options;
mod pools;
pub mod role;
pub mod shards;
mod statements;
mod transaction;
pub mod types;
pub mod values;
mod view;

pub use collection::{Collection, Rows};
pub use command::{Chain, Durability};
pub use connection::{Bucket, Connection};
pub use indexes::{Index, Indexes, Unique, begins_with, existing, is_plain};
pub use link::Db;
pub use making::{doubles, look, make};
pub use options::MongoOptions;
pub use statements::{Fate, Holder, delete_document, update_document, update_statement};
pub use transaction::{Effort, Ended, Failed, Transaction};
