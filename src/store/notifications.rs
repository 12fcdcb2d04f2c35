//! What notifications need of a store: who is told of what, what they were told of each record, and what is on its way
//! to them. One server at a time reads the log for all of them, and writes what it told, what is to be sent, and its
//! position in one transaction: whatever happens, nothing is told that did not change, and nothing that did is not.

pub mod documents;

use std::collections::HashMap;
use std::fmt;

use async_trait::async_trait;

use super::{Cursor, Result};
use crate::domain::Millis;
use crate::domain::access::Grant;
use crate::domain::notification::{
    DeliveryState, Event, ExecutionTold, Format, Identity, StepTold,
};
use crate::domain::query::{ExecutionFilter, Page};

/// Gaps that are kept of a subscription, the last ones.
pub const GAPS_KEPT: usize = 100;

/// A text or bytes that nothing prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden<T>(pub T);

impl<T> fmt::Debug for Hidden<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("***")
    }
}

/// What a signature is made with.
pub type Secret = Hidden<[u8; 32]>;

/// Who made a subscription, and what they may do: as far as it lets them be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maker {
    /// How they are known, as a word.
    pub kind: String,
    pub id: String,
    pub name: String,
    pub grants: Vec<Grant>,
}

/// Who is told of what, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Subscription {
    pub id: String,
    pub name: String,
    pub enabled: bool,
    /// Without a scope.
    pub filter: ExecutionFilter,
    pub events: Vec<Event>,
    pub url: Hidden<String>,
    /// Sent with each request, by name.
    pub headers: Vec<(String, Hidden<String>)>,
    pub format: Format,
    pub include_metadata: bool,
    /// Grows with every change of what is above and below.
    pub revision: i64,
    pub created_at: Millis,
    pub updated_at: Millis,
    pub maker: Maker,
    pub secret: Secret,
    /// The one before, and until when it signs too.
    pub previous_secret: Option<(Secret, Millis)>,
    /// Why the server itself has disabled it.
    pub disabled_reason: Option<String>,
}

/// A time of which nothing was told, since the log no longer had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    pub since: Millis,
    pub until: Millis,
}

/// How far a subscription is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Progress {
    /// Everything up to here is told. `None`: it is as far as the others.
    pub cursor: Option<Cursor>,
    /// When the last change up to there was committed.
    pub at: Option<Millis>,
    /// The last ones, the oldest first.
    pub gaps: Vec<Gap>,
    /// Of the last answer to a request.
    pub last_status: Option<u16>,
    /// How often somebody asked to have something delivered again.
    pub asked: i64,
}

/// A subscription and how far it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Subscribed {
    pub subscription: Subscription,
    pub progress: Progress,
}

/// Where the one server is that reads the log for all of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// Everything up to here is told to all that have no cursor of their own.
    pub cursor: Cursor,
    pub at: Millis,
    /// The greatest number of a delivery so far.
    pub numbered: i64,
}

/// Which record somebody was told of: an execution, or a step.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ToldKey {
    pub subscription: String,
    pub execution_id: String,
    pub step_id: Option<i32>,
}

/// What was told of a record.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// The last change that is in it: those up to there say nothing new.
    pub through: Cursor,
    pub at: Millis,
    pub what: ToldOf,
}

/// What was told of one.
#[derive(Debug, Clone, PartialEq)]
pub enum ToldOf {
    Execution {
        told: ExecutionTold,
        /// From its beginning on.
        seen: bool,
        whose: Identity,
    },
    Step(StepTold),
}

/// A notification of one event for one subscription.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// Tells it from others for the receiver, the same for every try and on every server.
    pub id: String,
    pub subscription: String,
    /// Its place among those of its subscription.
    pub number: i64,
    pub execution_id: String,
    pub step_id: Option<i32>,
    pub event: Event,
    /// When what it tells of was committed.
    pub at: Millis,
    pub created_at: Millis,
    pub state: DeliveryState,
    pub tries: i32,
    /// Not before that it is tried again.
    pub next_at: Millis,
    pub last_try_at: Option<Millis>,
    /// Of the answer to the last try; `None`: there was none.
    pub last_status: Option<u16>,
    /// Why the last try failed, as a word.
    pub last_failure: Option<String>,
    pub delivered_at: Option<Millis>,
    /// Whose the execution is.
    pub whose: Identity,
    /// What is told, as JSON; empty where it was not asked for.
    pub data: String,
}

/// A delivery that waits for its turn, as far as that needs to be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub id: String,
    pub number: i64,
    pub execution_id: String,
    pub tries: i32,
    pub next_at: Millis,
}

impl Waiting {
    pub fn of(delivery: &Delivery) -> Waiting {
        Waiting {
            id: delivery.id.clone(),
            number: delivery.number,
            execution_id: delivery.execution_id.clone(),
            tries: delivery.tries,
            next_at: delivery.next_at,
        }
    }
}

/// How one try ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempted {
    pub id: String,
    pub subscription: String,
    /// Which try it was, from 1: one that was made meanwhile counts instead.
    pub tries: i32,
    pub at: Millis,
    pub status: Option<u16>,
    pub failure: Option<&'static str>,
    pub state: DeliveryState,
    /// Of one that is tried again.
    pub next_at: Millis,
}

/// Where a subscription goes on.
#[derive(Debug, Clone, PartialEq)]
pub struct Moved {
    pub subscription: String,
    /// `None`: with the others.
    pub cursor: Option<Cursor>,
    pub at: Option<Millis>,
    pub gap: Option<Gap>,
}

/// One transaction.
#[derive(Debug, Clone, Default)]
pub struct NotificationBatch {
    /// Up to where everything is told to all that have no cursor of their own, and when that was committed.
    pub head: Option<(Cursor, Millis)>,
    /// The greatest number of a delivery so far.
    pub numbered: i64,
    /// Each once.
    pub told: Vec<(ToldKey, Told)>,
    /// Executions that are gone, with their steps.
    pub gone: Vec<(String, String)>,
    pub deliveries: Vec<Delivery>,
    pub moved: Vec<Moved>,
}

/// A page of the deliveries of a subscription, the last ones first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryQuery {
    pub subscription: String,
    /// Empty: all.
    pub states: Vec<DeliveryState>,
    /// Only those before this number.
    pub before: Option<i64>,
    pub limit: usize,
}

/// What of a subscription is not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Undelivered {
    pub pending: u64,
    pub dead: u64,
    /// When the oldest one that is pending was committed.
    pub oldest_at: Option<Millis>,
}

/// Counted of the dead ones, at most.
pub const DEAD_COUNTED: u64 = 100_000;

/// Keeps notifications.
#[async_trait]
pub trait NotificationStore: Send + Sync + 'static {
    /// All subscriptions, by id. One that cannot be read is left out: it is told nothing.
    async fn subscriptions(&self) -> Result<Vec<Subscribed>>;

    /// Stores a new one. False: there are `most`, or the id is taken.
    async fn add_subscription(&self, new: &Subscribed, most: usize) -> Result<bool>;

    /// Makes one what it should be, if its revision still is `from`; and where it goes on, if that is said.
    async fn change_subscription(
        &self,
        subscription: &Subscription,
        from: i64,
        moved: Option<&Moved>,
    ) -> Result<bool>;

    /// Takes one away. False: there is none. What it has goes by `purge_subscription`.
    async fn remove_subscription(&self, id: &str) -> Result<bool>;

    /// Takes away a piece of what belongs to a subscription that is gone. Whether there may be more.
    async fn purge_subscription(&self, id: &str) -> Result<bool>;

    /// Where the log is read from. `None`: it never was.
    async fn notification_head(&self) -> Result<Option<Head>>;

    /// What was told of these records, of at most a few thousand.
    async fn told(&self, keys: &[ToldKey]) -> Result<HashMap<ToldKey, Told>>;

    /// Writes a batch, whole or not at all, if `holder` still leads (`Leads`); `false`: it has not, and nothing is
    /// written. A delivery that is there already stays as it is.
    async fn notify(&self, holder: &str, batch: NotificationBatch) -> Result<bool>;

    /// What of a subscription is pending, in order, at most so many.
    async fn waiting(&self, subscription: &str, limit: usize) -> Result<Vec<Waiting>>;

    /// One delivery with what it tells.
    async fn delivery(&self, id: &str) -> Result<Option<Delivery>>;

    /// Notes how tries ended, of those that are still pending and were not tried since.
    async fn attempted(&self, tries: &[Attempted]) -> Result<()>;

    /// One page of deliveries, without what they tell.
    async fn deliveries(&self, query: &DeliveryQuery) -> Result<Page<Delivery, i64>>;

    /// Has a delivery tried again at once, as if it was never tried. False: there is none.
    async fn redeliver(&self, id: &str, now: Millis) -> Result<bool>;

    /// The same of the oldest dead ones of a subscription, at most so many. How many.
    async fn redeliver_dead(&self, subscription: &str, limit: usize, now: Millis) -> Result<u64>;

    /// What is not delivered. Dead ones are counted up to `DEAD_COUNTED`.
    async fn undelivered(&self, subscription: &str) -> Result<Undelivered>;

    /// Takes away a piece of what is older than that. Whether there may be more.
    async fn forget_deliveries(&self, before: Millis) -> Result<bool>;
}
