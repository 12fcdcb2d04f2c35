//! Reading executions, newest first and not without end, for what rollups cannot answer.

use tokio::sync::SemaphorePermit;

use super::{Analytics, Freshness};
use crate::app::error::Result;
use crate::domain::calendar::Window;
use crate::domain::query::{ExecutionFilter, ExecutionKey, ExecutionOrder, ExecutionQuery};
use crate::domain::{Execution, Millis};

/// Executions looked at for one answer, whether they match or not.
const EXAMINED: usize = 200_000;
/// Executions read at a time.
const AT_ONCE: usize = 1_000;
/// Executions looked at at a time.
const EXAMINED_AT_ONCE: usize = 20_000;

/// What may still be read for one answer.
pub(super) struct Budget<'a> {
    _permit: SemaphorePermit<'a>,
    /// Executions that may still be looked at.
    examine: usize,
    /// Executions that may still be found.
    find: usize,
    read: u64,
    /// Where the reading was cut: what started earlier is missing.
    cut: Option<Option<Millis>>,
}

impl Budget<'_> {
    pub(super) fn settle(&self, freshness: &mut Freshness) {
        freshness.executions_read += self.read;
        if let Some(read_from) = self.cut {
            freshness.complete = false;
            freshness.read_from = freshness.read_from.max(read_from);
        }
    }

    /// Nothing further is read, though there is more.
    pub(super) fn cut_at(&mut self, started_at: Option<Millis>) {
        self.cut = self.cut.max(Some(started_at));
        self.find = 0;
    }
}

impl Analytics {
    /// Waits for its turn.
    pub(super) async fn budget(&self, find: usize) -> Budget<'_> {
        let permit = self.direct.acquire().await;
        let _permit = permit.expect("the semaphore is as old as its owner and is never closed");
        Budget { _permit, examine: EXAMINED, find, read: 0, cut: None }
    }

    /// Hands over the executions that match the filter and started in the window, newest first, in pieces.
    pub(super) fn scan(&self, filter: &ExecutionFilter, window: Window) -> Scan<'_> {
        let end = |at: Millis| (at != i64::MIN && at != i64::MAX).then_some(at);
        let filter = ExecutionFilter {
            started_at_from: end(window.from),
            started_at_until: end(window.until),
            ..filter.clone()
        };
        Scan { analytics: self, filter, after: None, done: false }
    }
}

/// One pass over executions.
pub(super) struct Scan<'a> {
    analytics: &'a Analytics,
    filter: ExecutionFilter,
    after: Option<ExecutionKey>,
    done: bool,
}

impl Scan<'_> {
    /// The next ones; `None`: that was all, or all that may be read.
    pub(super) async fn next(&mut self, budget: &mut Budget<'_>) -> Result<Option<Vec<Execution>>> {
        if self.done {
            return Ok(None);
        }
        let limit = AT_ONCE.min(budget.find);
        let examine = EXAMINED_AT_ONCE.min(budget.examine);
        if limit == 0 || examine == 0 {
            self.done = true;
            // Whether anything is left nobody knows without looking.
            budget.cut_at(self.after.as_ref().and_then(|key| key.started_at));
            return Ok(None);
        }
        let query = ExecutionQuery {
            filter: self.filter.clone(),
            order: ExecutionOrder::StartedAtDesc,
            after: self.after.take(),
            limit,
            examine,
        };
        let page = self.analytics.app.store().executions(&query).await?;
        let found = page.records.len();
        // A page that is short and not the last has looked at all it may.
        let looked_at = if found < limit && page.next.is_some() { examine } else { found };
        budget.examine -= looked_at.min(budget.examine);
        budget.find -= found.min(budget.find);
        budget.read += found as u64;
        self.done = page.next.is_none();
        self.after = page.next;
        Ok(Some(page.records))
    }
}
