//! What is recorded of a batch along with it: what it is about to do, before the first of its commands and in their
//! chain, and what became of it, with whatever is recorded next.

use super::room::Records;
use crate::domain::audit::entry::Written;
use crate::store::mongo::audit::Started;
use crate::store::mongo::db::{Chain, Connection};
use crate::store::plan::Plan;
use crate::store::{Answer, Result, Write};

/// What is recorded of a batch.
pub struct Recorded<'a> {
    records: &'a Records,
    writes: Vec<One>,
    started: Option<Started>,
    is_durable: bool,
    /// It cannot be recorded, so nothing of it is done.
    has_failed: bool,
}

/// One write of the batch that is recorded.
struct One {
    place: usize,
    is_heartbeat: bool,
    execution_id: String,
    written: Written,
}

impl<'a> Recorded<'a> {
    pub fn of(records: &'a Records, writes: &[Write]) -> Recorded<'a> {
        let one = |(place, write): (usize, &Write)| {
            Some(One {
                place,
                is_heartbeat: write.is_heartbeat(),
                execution_id: write.execution_id.clone(),
                written: write.recorded()?,
            })
        };
        let writes = writes.iter().enumerate().filter_map(one).collect();
        Recorded { records, writes, started: None, is_durable: false, has_failed: false }
    }

    /// Before anything of a plan is stored. `places`: those of its writes in the batch.
    pub async fn begin(
        &mut self,
        chain: &Chain<'_>,
        ready: &Connection,
        places: &[usize],
        decided: &Plan,
    ) -> Result<()> {
        let stores = decided.executions.values().any(|dirty| dirty.stored)
            || decided.steps.values().any(|dirty| dirty.stored);
        if self.writes.is_empty() || self.has_failed || !stores {
            return Ok(());
        }
        if self.started.is_some() {
            return match self.is_durable {
                true => Ok(()),
                // Another primary may lack it.
                false => self.records.ledger.settle(ready).await,
            };
        }
        // A sign of life that changes nothing is no write.
        let changes = |id: &str| decided.executions.get(id).is_some_and(|dirty| dirty.changed);
        self.writes.retain(|one| !one.is_heartbeat || changes(&one.execution_id));
        for one in &mut self.writes {
            let planned = places.iter().position(|place| *place == one.place);
            let planned = planned.and_then(|place| decided.outcomes.get(place)?.as_ref().ok());
            let step_id = planned.and_then(|planned| planned.answer.step_id());
            one.written.step_id = step_id.or(one.written.step_id);
        }
        if self.writes.is_empty() {
            return Ok(());
        }
        let written: Vec<Written> = self.writes.iter().map(|one| one.written.clone()).collect();
        match self.records.ledger.begin(chain, &written).await {
            Ok(started) => {
                self.started = Some(started);
                Ok(())
            }
            Err(error) => {
                self.has_failed = true;
                Err(error)
            }
        }
    }

    /// All of the chain of commands is durable.
    pub fn durable(&mut self) {
        if let Some(started) = self.started {
            self.records.ledger.confirm(started.through);
            self.is_durable = true;
        }
    }

    /// Another primary was elected: what was begun is recorded there too before it is done again.
    pub async fn elected(&mut self, ready: &Connection) -> bool {
        if self.started.is_none() {
            return true;
        }
        self.is_durable = self.records.ledger.settle(ready).await.is_ok();
        self.is_durable
    }

    /// What became of it.
    pub fn end(self, outcomes: &[Result<Answer>]) {
        if self.has_failed || self.writes.is_empty() {
            return;
        }
        let ended = self.writes.into_iter().filter_map(|one| {
            let outcome = outcomes.get(one.place)?;
            if self.started.is_none() && one.is_heartbeat && outcome.is_ok() {
                return None;
            }
            let step_id = outcome.as_ref().ok().and_then(Answer::step_id);
            let code = Some(self.records.ledger.code(outcome));
            let step_id = step_id.or(one.written.step_id);
            Some(Written { code, step_id, ..one.written })
        });
        let ended: Vec<Written> = ended.collect();
        if !ended.is_empty() {
            self.records.ledger.end(&ended, self.started);
        }
    }
}
