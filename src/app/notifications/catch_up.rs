//! Subscriptions that have a cursor of their own: those that are new, and those of which too much was undelivered. Each
//! reads the log from there until it is as far as the others. What the log no longer has is a gap.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future;

use super::directory::Known;
use super::notifier::Notifier;
use crate::domain::Millis;
use crate::store::notifications::{Gap, Moved, NotificationBatch};
use crate::store::{ChangeLog, ChangeReader, Cursor, Error, Result};
use crate::telemetry::metrics;

/// Between two looks who has to catch up.
const LOOK: Duration = Duration::from_millis(200);
/// Those that catch up at a time, and for how long before it is the turn of others.
const AT_ONCE: usize = 4;
const TURN: Duration = Duration::from_secs(5);
/// Changes told at a time.
const CHANGES_AT_ONCE: usize = 500;
/// After a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two sweeps of what is too old.
const SWEEP: Duration = Duration::from_secs(60);

/// Where somebody is.
#[derive(Debug, Clone)]
struct Place {
    cursor: Cursor,
    at: Option<Millis>,
    /// Set where it was changed from outside meanwhile.
    revision: i64,
}

impl Notifier {
    /// Lets those that have a cursor of their own catch up, again and again.
    pub(super) async fn catch_up(&self) {
        self.outbox.ready().await;
        let mut places: HashMap<String, Place> = HashMap::new();
        let mut turn = 0;
        loop {
            let late = self.late(&mut places).await;
            if late.is_empty() {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            let chosen = late.iter().cycle().skip(turn % late.len()).take(AT_ONCE.min(late.len()));
            turn = turn.wrapping_add(AT_ONCE);
            let ran = chosen.map(async |(known, place)| {
                let place = self.one(known, place.clone()).await;
                (known.id().to_owned(), place)
            });
            for (id, place) in future::join_all(ran).await {
                match place {
                    Ok(place) => drop(places.insert(id, place)),
                    Err(error) => {
                        tracing::debug!(%error, "a subscription cannot catch up just now");
                        // From where the database says.
                        places.remove(&id);
                        tokio::time::sleep(PAUSE).await;
                        let _ = self.directory.refresh().await;
                    }
                }
            }
        }
    }

    /// Those that are not with the head and for which there is room, and where each is.
    async fn late(&self, places: &mut HashMap<String, Place>) -> Vec<(Arc<Known>, Place)> {
        let position = self.position.lock().await;
        if position.head.is_none() {
            return Vec::new();
        }
        let all = self.directory.all();
        let mut late = Vec::new();
        for known in all.iter().filter(|known| known.subscription.enabled) {
            if position.with.contains_key(known.id()) {
                places.remove(known.id());
                continue;
            }
            // Half of it has to be delivered first: to begin reading has its price.
            let waits = self.outbox.waiting(known.id());
            if waits > self.outbox.limit() / 2 {
                continue;
            }
            let told = places
                .get(known.id())
                .filter(|place| place.revision == known.subscription.revision);
            let place = match (told, &known.progress.cursor) {
                (Some(place), _) => place.clone(),
                (None, Some(cursor)) => Place {
                    cursor: cursor.clone(),
                    at: known.progress.at,
                    revision: known.subscription.revision,
                },
                // What was read last is from before it was moved.
                (None, None) => continue,
            };
            late.push((Arc::clone(known), place));
        }
        late
    }

    /// Reads on for one, until it is with the others, there is no more room, or its turn is over. Where it is then.
    async fn one(&self, known: &Arc<Known>, mut place: Place) -> Result<Place> {
        let log = self.records.log()?;
        let began = self.clock.instant();
        let mut reader = match self.open(log.as_ref(), known, &mut place).await {
            Err(Error::CursorExpired | Error::BadCursor) => {
                return self.lost(log.as_ref(), known, place).await;
            }
            reader => reader?,
        };
        let mut changes = Vec::new();
        loop {
            {
                let mut position = self.position.lock().await;
                let is_there =
                    position.head.as_ref().is_some_and(|(head, _)| place.cursor >= *head);
                if is_there && changes.is_empty() {
                    position.with.insert(known.id().to_owned(), Some(place.cursor.clone()));
                    return Ok(place);
                }
            }
            if self.clock.elapsed(began) > TURN {
                return Ok(place);
            }
            if changes.is_empty() {
                changes = match reader.next().await {
                    Err(Error::CursorExpired | Error::BadCursor) => {
                        return self.lost(log.as_ref(), known, place).await;
                    }
                    changes => changes?,
                };
            }
            let size = changes.len().min(CHANGES_AT_ONCE);
            let rest = changes.split_off(size);
            let piece = std::mem::replace(&mut changes, rest);
            let mut listener = self.listener(Arc::clone(known), Some(place.cursor.clone()));
            let made = self.make(&piece, std::slice::from_mut(&mut listener)).await?;
            let told = listener.stopped.map_or(piece.len(), |index| index);
            let last = told.checked_sub(1).and_then(|last| piece.get(last));
            if let Some(last) = last {
                place.cursor = place.cursor.max(last.cursor.clone());
                place.at = Some(last.at);
            }
            if listener.stopped.is_none() && changes.is_empty() {
                place.cursor = place.cursor.max(reader.cursor());
            }
            let moved = Moved {
                subscription: known.id().to_owned(),
                cursor: Some(place.cursor.clone()),
                at: place.at,
                gap: None,
            };
            let batch = NotificationBatch { moved: vec![moved], ..NotificationBatch::default() };
            self.commit(made, batch).await?;
            if listener.stopped.is_some() {
                return Ok(place);
            }
        }
    }

    async fn open(
        &self,
        log: &dyn ChangeLog,
        known: &Known,
        place: &mut Place,
    ) -> Result<Box<dyn ChangeReader>> {
        let opened = log.open(Some(&place.cursor)).await;
        tracing::debug!(subscription = known.id(), "a subscription catches up");
        opened
    }

    /// Notes that the log has lost what comes next, and goes on with what it still has.
    async fn lost(&self, log: &dyn ChangeLog, known: &Known, place: Place) -> Result<Place> {
        let since = place.at.unwrap_or(known.subscription.created_at);
        let oldest = match log.oldest() {
            Some(oldest) => {
                let mut reader = log.open(Some(&oldest)).await?;
                let first = reader.next().await?.first().map(|first| first.at);
                Some((oldest, first.unwrap_or_else(|| self.clock.now().millis())))
            }
            None => self.position.lock().await.head.clone(),
        };
        let (cursor, until) = oldest.ok_or_else(Error::away)?;
        let until = until.max(since);
        tracing::error!(
            subscription = known.id(),
            seconds = (until - since) / 1000,
            "the log no longer has what a subscription was to be told next: that is a gap"
        );
        let moved = Moved {
            subscription: known.id().to_owned(),
            cursor: Some(cursor.clone()),
            at: Some(until),
            gap: Some(Gap { since, until }),
        };
        let batch = NotificationBatch { moved: vec![moved], ..NotificationBatch::default() };
        self.commit(Default::default(), batch).await?;
        metrics::notification_gaps().increment(1);
        Ok(Place { cursor, at: Some(until), revision: place.revision })
    }

    /// Takes away what is too old, and what belongs to subscriptions that are gone.
    pub(super) async fn tidy(&self) {
        let mut known: Vec<String> = Vec::new();
        loop {
            let now: Vec<String> =
                self.directory.all().iter().map(|known| known.id().to_owned()).collect();
            for gone in known.iter().filter(|id| !now.contains(id)) {
                while let Ok(true) = self.store.purge_subscription(gone).await {}
            }
            known = now;
            let kept = Millis::try_from(self.outbox.kept().as_millis()).unwrap_or(Millis::MAX);
            let before = self.clock.now().millis().saturating_sub(kept);
            match self.store.forget_deliveries(before).await {
                Ok(true) => {}
                Ok(false) => tokio::time::sleep(SWEEP).await,
                Err(error) => {
                    tracing::debug!(%error, "old notifications cannot be removed just now");
                    tokio::time::sleep(SWEEP).await;
                }
            }
        }
    }
}
