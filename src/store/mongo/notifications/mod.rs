//! Subscriptions, what they were told of each record, and deliveries, in collections of their own. What the one server
//! that tells writes is one transaction, which begins with the document that says who leads.

mod commit;
mod ids;
mod store;

pub use store::{NotificationRoom, wanted};
