//! What is derived from a database that keeps no log of changes: everything is gone through again and again, and whenever
//! somebody asks. That costs as much as there is, so it rests in between in proportion to what it took.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{CaughtUp, Ended, Follower, LEASE};
use crate::store::{Cursor, Result};

/// Between two passes that nobody asks for.
const EVERY: Duration = Duration::from_secs(60);
/// How much longer it rests than it worked.
const REST: u32 = 4;

impl Follower {
    /// Goes through everything, as long as this server leads.
    pub(super) async fn pass_again_and_again(&self, mut led: Instant) -> Result<Ended> {
        if !self.consumer.rebuilds_without_log() {
            return Ok(Ended::NoLog);
        }
        loop {
            let number = self.passes.begun.fetch_add(1, Ordering::AcqRel) + 1;
            let begun = self.clock.instant();
            {
                let _turn = self.turn.lock().await;
                // No log will ever know this place, so one that there is later begins anew.
                let nowhere = Cursor(Vec::new());
                tokio::select! {
                    built = self.consumer.rebuild(&nowhere) => built?,
                    error = self.lose_the_lead(led) => return Err(error),
                }
            }
            self.passes.done.send_replace(number);
            let rest = self.clock.elapsed(begun) * REST;
            let until = EVERY.max(rest);
            // Whoever asks does not wait for all of it, and the database not for whoever asks.
            tokio::time::sleep(rest.min(LEASE / 3)).await;
            let mut left = until.saturating_sub(rest.min(LEASE / 3));
            loop {
                if !self.lead().await? {
                    return Ok(Ended::Lost);
                }
                led = self.clock.instant();
                let piece = left.min(LEASE / 3);
                let asked = tokio::time::timeout(piece, self.awaited.notified()).await.is_ok();
                left = left.saturating_sub(piece);
                if asked || left.is_zero() {
                    break;
                }
            }
        }
    }

    /// Waits until everything was gone through that was there before.
    pub(super) async fn passed(&self, patience: Duration) -> CaughtUp {
        if !self.consumer.rebuilds_without_log() {
            return CaughtUp::NoLog;
        }
        // One that begins after now.
        let wanted = self.passes.begun.load(Ordering::Acquire) + 1;
        let mut done = self.passes.done.subscribe();
        let wait = async {
            self.awaited.notify_one();
            let _ = done.wait_for(|done| *done >= wanted).await;
        };
        match tokio::time::timeout(patience, wait).await {
            Ok(()) => CaughtUp::Yes,
            Err(_) => CaughtUp::Behind,
        }
    }
}
