//! What documents are found by.

use bson::{Bson, Document, doc};

use crate::store::notifications::ToldKey;

/// The lease of the one that tells, and where it is in the log.
pub const LEAD: &str = "follow_notifications";

/// What was told of a record: subscription, execution and step (-1: the execution), in this order, so that what belongs
/// together lies together.
pub fn told_id(key: &ToldKey) -> Document {
    doc! { "s": &key.subscription, "e": &key.execution_id, "t": key.step_id.unwrap_or(-1) }
}

/// What was told of an execution and its steps.
pub fn told_of(subscription: &str, execution_id: &str) -> Document {
    let from = doc! { "s": subscription, "e": execution_id, "t": Bson::MinKey };
    let until = doc! { "s": subscription, "e": execution_id, "t": Bson::MaxKey };
    doc! { "_id": { "$gte": from, "$lt": until } }
}

/// What a subscription was told.
pub fn told_to(subscription: &str) -> Document {
    let from = doc! { "s": subscription, "e": Bson::MinKey };
    let until = doc! { "s": subscription, "e": Bson::MaxKey };
    doc! { "_id": { "$gte": from, "$lt": until } }
}
