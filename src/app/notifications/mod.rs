//! Notifications: who is told of what happens to executions and steps, over HTTP. `directory` has the subscriptions,
//! `notifier` reads the log for them (`changes`, `tell`: what it means for each; `catch_up`: those that are behind), and
//! `outbox` sends what waits, from a `lane` for each, by the `courier` (`body`, `sign`). Here is what people do with them.

mod body;
mod catch_up;
mod changes;
mod courier;
mod directory;
mod lane;
pub mod makers;
mod notifier;
mod outbox;
mod sign;
mod tell;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::{Error, Result, ids};
use crate::clock::Clock;
use crate::domain::access::AppScope;
use crate::domain::notification::{Event, Format};
use crate::domain::query::{ExecutionFilter, Page};
use crate::domain::{Millis, Refusal};
use crate::outbound::{self, Rules};
use crate::store::notifications::{
    Delivery, DeliveryQuery, Hidden, Maker, Moved, NotificationStore, Progress, Secret, Subscribed,
    Subscription, Undelivered,
};
use crate::store::{self, Cursor, Store};

pub use courier::{Courier, Sent};
pub use directory::{Directory, scope_of};
use makers::{KEY_REVOKED, ROUNDS};
pub use makers::{Makers, Rights};
pub use notifier::Notifier;
pub use outbox::{Bounds, Outbox};

/// How long the secret before a rotation signs too.
const OVERLAP: Duration = Duration::from_secs(24 * 3600);
/// Tests at a time.
const TESTS: usize = 8;
/// Pieces of what a subscription had that are removed while its delete waits.
const PIECES: usize = 50;

/// What somebody wants to be told of, and where.
#[derive(Debug, Clone)]
pub struct NewSubscription {
    pub name: String,
    pub enabled: bool,
    pub filter: ExecutionFilter,
    pub events: Vec<Event>,
    pub url: String,
    pub headers: Vec<(String, Hidden<String>)>,
    pub format: Format,
    pub include_metadata: bool,
}

/// What becomes of a subscription; what is `None` stays.
#[derive(Debug, Clone, Default)]
pub struct SubscriptionChange {
    pub name: Option<String>,
    pub enabled: Option<bool>,
    pub filter: Option<ExecutionFilter>,
    pub events: Option<Vec<Event>>,
    pub url: Option<String>,
    /// Set; without a value it goes.
    pub headers: Vec<(String, Option<Hidden<String>>)>,
    pub format: Option<Format>,
    pub include_metadata: Option<bool>,
    pub expected_revision: Option<i64>,
}

/// A subscription with how it is.
#[derive(Debug, Clone)]
pub struct Shown {
    pub subscribed: Subscribed,
    pub undelivered: Undelivered,
    pub lag: Duration,
}

/// Headers of a subscription, at most.
pub const HEADERS_MOST: usize = 20;

/// What to try again.
pub enum Redelivered<'a> {
    One(&'a str),
    DeadOf(&'a str),
}

/// The operations on subscriptions.
pub struct Notifications {
    pub records: Arc<dyn Store>,
    pub store: Arc<dyn NotificationStore>,
    pub directory: Arc<Directory>,
    pub courier: Arc<Courier>,
    pub clock: Arc<dyn Clock>,
    /// How many there may be.
    pub most: usize,
    /// Undelivered of one.
    pub undelivered: usize,
    tests: Semaphore,
}

fn not_found(subscription_id: &str) -> Error {
    Refusal::SubscriptionNotFound { subscription_id: subscription_id.to_owned() }.into()
}

fn new_secret() -> Result<Secret> {
    let made = ids::secret().map(Hidden);
    made.ok_or_else(|| store::Error::failed("the system has no randomness").into())
}

impl Notifications {
    pub fn new(
        records: Arc<dyn Store>,
        store: Arc<dyn NotificationStore>,
        directory: Arc<Directory>,
        courier: Arc<Courier>,
        clock: Arc<dyn Clock>,
        most: usize,
        undelivered: usize,
    ) -> Notifications {
        let tests = Semaphore::new(TESTS);
        Notifications { records, store, directory, courier, clock, most, undelivered, tests }
    }

    /// Where requests may go.
    pub fn rules(&self) -> &Rules {
        self.courier.outbound.rules()
    }

    fn now(&self) -> Millis {
        self.clock.now().millis()
    }

    /// From here on everything is told that is acknowledged after this answer.
    async fn here(&self) -> Result<Cursor> {
        Ok(self.records.log()?.open(None).await?.cursor())
    }

    /// Those that somebody of this scope may see, by id.
    pub async fn list(&self, scope: &AppScope) -> Result<Vec<Subscribed>> {
        let mut all = self.store.subscriptions().await?;
        all.retain(|one| scope.covers(&one.subscription.maker.grants));
        Ok(all)
    }

    pub async fn get(&self, id: &str, scope: &AppScope) -> Result<Subscribed> {
        let mut all = self.list(scope).await?.into_iter();
        all.find(|one| one.subscription.id == id).ok_or_else(|| not_found(id))
    }

    /// With how it is.
    pub async fn show(&self, subscribed: Subscribed) -> Result<Shown> {
        let undelivered = self.store.undelivered(&subscribed.subscription.id).await?;
        let since = |at: Millis| {
            let late = self.now().saturating_sub(at);
            Duration::from_millis(u64::try_from(late).unwrap_or(0))
        };
        let oldest = undelivered.oldest_at.map(since).unwrap_or_default();
        // One of which too much is undelivered waits in the log.
        let waits = undelivered.pending as usize > self.undelivered / 2;
        let progress = &subscribed.progress;
        let behind = progress.at.filter(|_| waits && progress.cursor.is_some()).map(since);
        let lag = oldest.max(behind.unwrap_or_default());
        Ok(Shown { subscribed, undelivered, lag })
    }

    pub async fn create(&self, maker: Maker, new: NewSubscription) -> Result<(Shown, Secret)> {
        let secret = new_secret()?;
        let cursor = self.here().await?;
        let now = self.now();
        let subscription = Subscription {
            id: ids::subscription_id(),
            name: new.name,
            enabled: new.enabled,
            filter: new.filter,
            events: new.events,
            url: Hidden(new.url),
            headers: new.headers,
            format: new.format,
            include_metadata: new.include_metadata,
            revision: self.clock.now().revision_after(0),
            created_at: now,
            updated_at: now,
            maker,
            secret: secret.clone(),
            previous_secret: None,
            disabled_reason: None,
        };
        let progress = Progress { cursor: Some(cursor), at: Some(now), ..Progress::default() };
        let subscribed = Subscribed { subscription, progress };
        if !self.store.add_subscription(&subscribed, self.most).await? {
            let most = self.most;
            return Err(Error::invalid(
                "name",
                format!("is of one subscription too many: there are {most}, the limit"),
            ));
        }
        self.known().await;
        Ok((self.show(subscribed).await?, secret))
    }

    /// Changes a subscription, again where somebody else was faster.
    async fn change(
        &self,
        id: &str,
        scope: &AppScope,
        expected: Option<i64>,
        change: impl Fn(&mut Subscription) -> Result<()>,
    ) -> Result<Subscribed> {
        for _ in 0..ROUNDS {
            let Subscribed { subscription: before, progress } = self.get(id, scope).await?;
            if let Some(expected) = expected
                && expected != before.revision
            {
                let stored = before.revision;
                let subscription_id = id.to_owned();
                return Err(Refusal::StaleSubscription { subscription_id, expected, stored }.into());
            }
            let mut after = before.clone();
            change(&mut after)?;
            if after == before {
                return Ok(Subscribed { subscription: before, progress });
            }
            after.revision = self.clock.now().revision_after(before.revision);
            after.updated_at = self.now();
            // What happened while it was disabled is not told.
            let moved = match after.enabled && !before.enabled {
                true => Some(Moved {
                    subscription: id.to_owned(),
                    cursor: Some(self.here().await?),
                    at: Some(self.now()),
                    gap: None,
                }),
                false => None,
            };
            let store = &self.store;
            if store.change_subscription(&after, before.revision, moved.as_ref()).await? {
                self.known().await;
                return self.get(id, scope).await;
            }
        }
        Err(store::Error::Contention.into())
    }

    pub async fn update(
        &self,
        id: &str,
        scope: &AppScope,
        caller: Maker,
        change: SubscriptionChange,
    ) -> Result<Shown> {
        let changed = self.change(id, scope, change.expected_revision, |subscription| {
            fn set<T: Clone>(field: &mut T, value: &Option<T>) {
                if let Some(value) = value {
                    field.clone_from(value);
                }
            }
            set(&mut subscription.name, &change.name);
            set(&mut subscription.enabled, &change.enabled);
            set(&mut subscription.filter, &change.filter);
            set(&mut subscription.events, &change.events);
            set(&mut subscription.url.0, &change.url);
            set(&mut subscription.format, &change.format);
            set(&mut subscription.include_metadata, &change.include_metadata);
            for (name, value) in &change.headers {
                subscription.headers.retain(|(other, _)| other != name);
                subscription.headers.extend(value.clone().map(|value| (name.clone(), value)));
            }
            subscription.headers.sort_by(|a, b| a.0.cmp(&b.0));
            if subscription.headers.len() > HEADERS_MOST {
                return Err(Error::invalid(
                    "headers",
                    format!("would be more than the limit of {HEADERS_MOST}"),
                ));
            }
            if subscription.enabled
                && let Some(reason) = subscription.disabled_reason.take()
                && reason == KEY_REVOKED
            {
                // Whoever enables it answers for it from now on.
                subscription.maker = caller.clone();
            }
            Ok(())
        });
        self.show(changed.await?).await
    }

    pub async fn rotate(&self, id: &str, scope: &AppScope) -> Result<(Shown, Secret)> {
        let secret = new_secret()?;
        let overlap = Millis::try_from(OVERLAP.as_millis()).unwrap_or(Millis::MAX);
        let until = self.now().saturating_add(overlap);
        let changed = self.change(id, scope, None, |subscription| {
            let before = std::mem::replace(&mut subscription.secret, secret.clone());
            subscription.previous_secret = Some((before, until));
            Ok(())
        });
        Ok((self.show(changed.await?).await?, secret))
    }

    pub async fn delete(&self, id: &str, scope: &AppScope) -> Result<()> {
        self.get(id, scope).await?;
        if !self.store.remove_subscription(id).await? {
            return Err(not_found(id));
        }
        self.known().await;
        for _ in 0..PIECES {
            match self.store.purge_subscription(id).await {
                Ok(true) => {}
                // The server that tells does the rest.
                _ => break,
            }
        }
        Ok(())
    }

    /// Sends a notification that is about nothing, and says what came of it.
    pub async fn test(&self, id: &str, scope: &AppScope) -> Result<Sent> {
        let subscribed = self.get(id, scope).await?;
        let Ok(_turn) = self.tests.try_acquire() else { return Err(Error::QueueFull) };
        let test = format!("msg_test_{}", ids::blob_id().replace('-', ""));
        Ok(self.courier.test(&subscribed.subscription, &test).await)
    }

    pub async fn deliveries(
        &self,
        query: DeliveryQuery,
        scope: &AppScope,
    ) -> Result<Page<Delivery, i64>> {
        self.get(&query.subscription, scope).await?;
        Ok(self.store.deliveries(&query).await?)
    }

    /// Has something delivered again, under the same id. How many deliveries.
    pub async fn redeliver(&self, what: Redelivered<'_>, scope: &AppScope) -> Result<u64> {
        let now = self.now();
        let done = match what {
            Redelivered::One(id) => {
                let missing =
                    || Error::from(Refusal::DeliveryNotFound { delivery_id: id.to_owned() });
                let found = self.store.delivery(id).await?.ok_or_else(missing)?;
                self.get(&found.subscription, scope).await.map_err(|error| match error {
                    Error::Refused(Refusal::SubscriptionNotFound { .. }) => missing(),
                    error => error,
                })?;
                u64::from(self.store.redeliver(id, now).await?)
            }
            Redelivered::DeadOf(id) => {
                self.get(id, scope).await?;
                let pending = self.store.undelivered(id).await?.pending;
                let pending = usize::try_from(pending).unwrap_or(usize::MAX);
                let room = self.undelivered.saturating_sub(pending);
                match room {
                    0 => 0,
                    room => self.store.redeliver_dead(id, room, now).await?,
                }
            }
        };
        self.known().await;
        Ok(done)
    }

    /// This server need not wait for its next read.
    async fn known(&self) {
        if let Err(error) = self.directory.refresh().await {
            tracing::debug!(%error, "the subscriptions are read a little later");
        }
    }
}

/// What is wrong with a URL, as the end of a sentence about it.
pub fn check_url(url: &str, rules: &Rules) -> std::result::Result<(), &'static str> {
    outbound::check_url(url, rules).map(drop)
}
