//! What the parts of the store of metrics share: the way to the database, the ids it gives, and what this server has
//! lately said about hours.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::dirty::Marked;
use super::ids::Ids;
use super::pace::Pace;
use crate::clock::Clock;
use crate::store::Result;
use crate::store::mongo::db::{Connection, Db};

/// Points of metrics.
pub struct Metrics {
    pub(super) db: Arc<Db>,
    pub(super) clock: Arc<dyn Clock>,
    /// How long a point is kept; `None`: for ever.
    kept: Option<Duration>,
    pub(super) ids: Ids,
    /// Hours whose figures are computed together.
    pub(super) pace: Pace,
    /// Hours into which points may come.
    pub(super) marked: Marked,
    time_series: OnceLock<bool>,
}

impl Metrics {
    pub fn new(db: Arc<Db>, clock: Arc<dyn Clock>, kept: Option<Duration>) -> Metrics {
        Metrics {
            db,
            kept,
            ids: Ids::new(),
            pace: Pace::default(),
            marked: Marked::new(Arc::clone(&clock)),
            clock,
            time_series: OnceLock::new(),
        }
    }

    /// Before anything else is asked.
    pub fn prepare(&self, time_series: bool) {
        let _ = self.time_series.set(time_series);
    }

    pub fn kept(&self) -> Option<Duration> {
        self.kept
    }

    pub(super) async fn ready(&self) -> Result<Arc<Connection>> {
        self.db.ready().await
    }

    /// Whether the points are in a time series: then no index keeps their ids apart.
    pub(super) fn time_series(&self) -> bool {
        self.time_series.get().copied().unwrap_or(false)
    }

    pub(super) fn kept_ms(&self) -> Option<i64> {
        let kept = self.kept?;
        Some(i64::try_from(kept.as_millis()).unwrap_or(i64::MAX))
    }
}
