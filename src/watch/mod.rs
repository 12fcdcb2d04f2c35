//! Watching: the current state, then every change, from the log and nothing but the log. Points of metrics, which
//! have no log, come beside it.
//!
//! Knows records and the log, no protocol: what an event looks like on the wire is the edge's affair.

mod ahead;
mod catch_up;
mod ending;
mod event;
mod hub;
mod metrics;
mod queue;
mod resolve;
mod snapshot;
mod stream;
mod subscriber;
mod waiting;

#[cfg(test)]
mod tests;

pub use event::Event;
pub use hub::{Hub, Numbers, Settings};
pub use metrics::Arrivals;
pub use queue::Bounds;
pub use snapshot::Snapshot;
pub use stream::{Delivery, Failure, Options, Watch};
pub use subscriber::Scope;
