//! Looks after the indexes while the store serves: other programs drop them, and collections with them. What is gone is
//! told, made again, and tried again where that fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::metrics::{counter, gauge};
use parking_lot::Mutex;

use super::configurations::{self, Configurations};
use super::db::{self, Connection, Db, Index, Indexes, Unique};
use super::metrics::{self, Metrics};
use super::names::CONFIGURATIONS;
use super::records::{self, Records};
use super::{artifacts, notifications, rollups, search};
use crate::store::Result;
use crate::telemetry::metrics::{STORE_INDEXES_LOST, STORE_INDEXES_MISSING};

/// Between two looks. A loss is known within five seconds.
const LOOK: Duration = Duration::from_millis(1500);
/// Before what could not be made is tried again, the first time and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// The indexes of all rooms.
pub fn wanted() -> Vec<Index> {
    [
        records::wanted(),
        configurations::wanted(),
        artifacts::wanted(),
        search::wanted(),
        rollups::wanted(),
        notifications::wanted(),
    ]
    .concat()
}

/// What a database was found to have.
pub struct Found {
    indexes: Indexes,
    time_series: bool,
}

/// What there is, with nothing made.
pub async fn look(connection: &Connection) -> Result<Found> {
    let indexes = db::look(connection, wanted()).await?;
    Ok(Found { indexes, time_series: false })
}

/// The rooms whose work depends on indexes.
pub struct Keeper {
    pub db: Arc<Db>,
    pub records: Arc<Records>,
    pub configurations: Arc<Configurations>,
    pub metrics: Arc<Metrics>,
    /// The indexes as they were when last looked at.
    pub known: Mutex<Option<Indexes>>,
}

impl Keeper {
    /// Makes what is missing.
    pub async fn make(&self, connection: &Connection) -> Result<Found> {
        let indexes = db::make(connection, wanted()).await?;
        let time_series =
            metrics::prepare(connection, self.metrics.kept(), self.metrics.ordinary()).await?;
        Ok(Found { indexes, time_series })
    }

    /// The rooms work with what was found from now on.
    pub fn take(&self, found: &Found) {
        let missing = found.indexes.missing().count();
        gauge!(STORE_INDEXES_MISSING).set(missing as f64);
        self.records.prepare(&found.indexes);
        self.configurations.prepare(found.indexes.unique(CONFIGURATIONS) == Unique::Whole);
        self.metrics.prepare(found.time_series);
        *self.known.lock() = Some(found.indexes.clone());
    }

    /// Looks again and again.
    pub async fn keep(&self) {
        let mut pause = FIRST_PAUSE;
        let mut next_try = Instant::now() + pause;
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(ready) = self.db.now() else { continue };
            let Ok(now) = db::look(&ready, wanted()).await else { continue };
            let Some(before) = self.known.lock().clone() else { continue };
            let lost = self.tell_lost(&before, &now);
            let incomplete = now.missing().next().is_some()
                || now.has_doubles()
                || !metrics::is_there(&ready).await.unwrap_or(true);
            let due = incomplete && Instant::now() >= next_try;
            if !lost && !due {
                if !now.same_as(&before) {
                    // Another server made them, or made them otherwise.
                    self.records.prepare(&now);
                    self.configurations.prepare(now.unique(CONFIGURATIONS) == Unique::Whole);
                    *self.known.lock() = Some(now);
                    ready.commander().trust_hints();
                }
                continue;
            }
            if lost {
                self.records.mend(&now);
                self.configurations.prepare(now.unique(CONFIGURATIONS) == Unique::Whole);
                pause = FIRST_PAUSE;
            }
            let made = self.make(&ready).await;
            next_try = Instant::now() + pause;
            pause = (pause * 2).min(LONGEST_PAUSE);
            match made {
                Ok(found) => {
                    self.take(&found);
                    ready.commander().trust_hints();
                    let missing = found.indexes.missing().count();
                    tracing::info!(missing, "the indexes are made again");
                }
                // The database went away meanwhile: what is left is seen once it is back.
                Err(error) => {
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, source, "cannot make indexes");
                }
            }
        }
    }

    /// Tells of indexes that are gone. Whether there are any.
    fn tell_lost(&self, before: &Indexes, now: &Indexes) -> bool {
        let mut lost = false;
        for (collection, keys) in now.lost_since(before) {
            lost = true;
            counter!(STORE_INDEXES_LOST, "collection" => collection.as_str()).increment(1);
            tracing::error!(
                %collection,
                %keys,
                "an index is gone that was there before: another program dropped it, or its collection. It is made \
                 again; ids that were doubled meanwhile are named then"
            );
        }
        lost
    }
}
