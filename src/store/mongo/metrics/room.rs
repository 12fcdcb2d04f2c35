//! What the parts of the store of metrics share: the way to the database, the ids it gives, and what this server has
//! lately said about hours.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::dirty::Marked;
use super::ids::Ids;
use super::pace::Pace;
use crate::clock::Clock;
use crate::store::Result;
use crate::store::mongo::audit::Ledger;
use crate::store::mongo::db::{Connection, Db};

/// Points of metrics.
pub struct Metrics {
    pub(super) db: Arc<Db>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) ledger: Arc<Ledger>,
    /// How long a point is kept; `None`: for ever.
    kept: Option<Duration>,
    /// Whether a collection that is made is an ordinary one.
    ordinary: bool,
    pub(super) ids: Ids,
    /// Hours whose figures are computed together.
    pub(super) pace: Pace,
    /// Hours into which points may come.
    pub(super) marked: Marked,
    time_series: AtomicBool,
}

impl Metrics {
    pub fn new(
        db: Arc<Db>,
        clock: Arc<dyn Clock>,
        ledger: Arc<Ledger>,
        kept: Option<Duration>,
        ordinary: bool,
    ) -> Metrics {
        Metrics {
            db,
            ledger,
            kept,
            ordinary,
            ids: Ids::new(),
            pace: Pace::default(),
            marked: Marked::new(Arc::clone(&clock)),
            clock,
            time_series: AtomicBool::new(false),
        }
    }

    /// Before anything else is asked, and when the collection was made anew.
    pub fn prepare(&self, time_series: bool) {
        self.time_series.store(time_series, Ordering::Relaxed);
    }

    pub fn kept(&self) -> Option<Duration> {
        self.kept
    }

    /// Whether a collection that is made is an ordinary one.
    pub fn ordinary(&self) -> bool {
        self.ordinary
    }

    pub(super) async fn ready(&self) -> Result<Arc<Connection>> {
        self.db.ready().await
    }

    /// Whether the points are in a time series: then no index keeps their ids apart.
    pub(super) fn time_series(&self) -> bool {
        self.time_series.load(Ordering::Relaxed)
    }

    pub(super) fn kept_ms(&self) -> Option<i64> {
        let kept = self.kept?;
        Some(i64::try_from(kept.as_millis()).unwrap_or(i64::MAX))
    }
}
