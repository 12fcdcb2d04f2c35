//! Rollups: kept up to date from the log of changes, read by reports.

mod keep;
mod read;

use std::sync::Arc;
use std::time::Duration;

use super::error::Result;
use crate::domain::Millis;
use crate::follow::{CaughtUp, Follower};
use crate::store::rollups::RollupState;

pub use keep::{Keeper, Rebuilt};
pub use read::{Apart, FailureTally, FailuresQuery, Reader, TallyQuery, TallyRow};

/// How long a question waits until everything acknowledged before it is counted.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a rebuild waits for the same.
const PATIENCE_OF_REBUILD: Duration = Duration::from_secs(30);

/// The rollups, for who asks.
#[derive(Clone)]
pub struct Rollups {
    reader: Reader,
    keeper: Arc<Keeper>,
    follower: Arc<Follower>,
}

impl Rollups {
    pub fn new(reader: Reader, keeper: Arc<Keeper>, follower: Arc<Follower>) -> Rollups {
        Rollups { reader, keeper, follower }
    }

    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Waits until everything that was acknowledged before is counted, as long as that may be soon, and says whether it
    /// is. `CaughtUp::NoLog`: there are no rollups, and never will be.
    pub async fn caught_up(&self) -> Result<(CaughtUp, RollupState)> {
        let caught_up = self.follower.soon_caught_up(PATIENCE).await?;
        Ok((caught_up, self.reader.state().await?))
    }

    /// Up to when everything is counted, where not everything is.
    pub async fn counted_until(&self) -> Option<Millis> {
        self.follower.taken_until().await
    }

    /// How far a rebuild on this server is, or what the last one did.
    pub fn rebuilt(&self) -> Rebuilt {
        self.keeper.rebuilt()
    }

    /// Counts everything anew and says what was wrong.
    pub async fn rebuild(&self) -> Result<Rebuilt> {
        // What is only late is not wrong.
        self.follower.caught_up(PATIENCE_OF_REBUILD).await?;
        self.follower.rebuild().await?;
        Ok(self.keeper.rebuilt())
    }
}
