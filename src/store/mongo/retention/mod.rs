//! Retention on MongoDB: `owners` says to which execution a record belongs, `parts` deletes steps and artifacts, `store`
//! is the rest.

mod owners;
mod parts;
mod store;

pub use store::Retention;
