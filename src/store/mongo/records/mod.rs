//! Executions and steps: how their documents look, and everything that reads and writes them.
//!
//! `execution` and `step` are the documents, made of `fields`, `guard` how an update is guarded, `room` what the others
//! share. `apply` is the loop of a batch of writes: `facts` loads what the rules have to know, `persist` sends what they
//! changed (`failed`: why it could not, `recorded`: what of it is written down), and
//! `alive` and `marks` settle the race of new steps with deletes. `read` answers for one execution, `lists` along
//! `walks` for many, `segments` where a page of them begins.

mod alive;
mod apply;
mod cache;
mod delete;
pub mod execution;
mod facts;
mod failed;
mod fields;
pub mod guard;
mod indexes;
mod leases;
pub mod lists;
mod marks;
pub mod parts;
mod persist;
pub mod read;
mod recorded;
mod room;
mod segments;
pub mod step;
#[cfg(test)]
mod tests;
mod walks;

pub use alive::check_trusted;
pub use apply::apply;
pub use indexes::wanted;
pub use leases::{leases, signs_in_steps};
pub use room::Records;
