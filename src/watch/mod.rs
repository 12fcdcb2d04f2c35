//! Watching: the current state, then every change, from the log and nothing but the log.
//!
//! Knows records and the log, no protocol: what an event looks like on the wire is the edge's affair.

mod catch_up;
mod event;
mod hub;
mod queue;
mod resolve;
mod stream;

pub use event::Event;
pub use hub::{Hub, Numbers, Scope, Settings};
pub use queue::Bounds;
pub use stream::{Delivery, Failure, Options, Snapshot, Watch, What};
