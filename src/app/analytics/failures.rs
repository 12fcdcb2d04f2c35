//! Failures by slot of time, group, step name and fingerprint, from where `tallies` come from.

use std::collections::HashMap;

use super::tallies::{Split, around, slot_of, split};
use super::{Analytics, Source, outcomes, selection};
use crate::app::error::Result;
use crate::app::rollups::{Apart, FailureTally, FailuresQuery};
use crate::domain::calendar::Window;
use crate::domain::query::ExecutionFilter;
use crate::domain::rollup::{Failure, Group};
use crate::domain::{Execution, fingerprint};
use crate::store::rollups::Seen;

type Key = (usize, Group, Option<String>, String);

/// Failures that were read.
pub(super) struct Failures {
    pub tallies: Vec<FailureTally>,
    /// What was read of each error, if all was read. By fingerprint.
    pub seen: Option<HashMap<String, Seen>>,
}

/// Counts what is read.
struct Counter {
    apart: Apart,
    samples: usize,
    sums: HashMap<Key, i64>,
    seen: HashMap<String, Seen>,
}

impl Counter {
    fn add(&mut self, slot: usize, execution: &Execution, failure: Failure) {
        let group = self.apart.group(&Group::of(execution));
        let key = (slot, group, failure.step_name.clone(), failure.fingerprint.clone());
        *self.sums.entry(key).or_default() += 1;
        let seen = self.seen.entry(failure.fingerprint.clone()).or_insert_with(|| Seen {
            fingerprint: failure.fingerprint.clone(),
            ..Seen::default()
        });
        if let Some(at) = failure.failed_at {
            seen.first = Some(seen.first.map_or(at, |first| first.min(at)));
            seen.last = Some(seen.last.map_or(at, |last| last.max(at)));
        }
        seen.samples.push((execution.execution_id.clone(), failure));
        if seen.samples.len() > self.samples * 2 {
            newest(&mut seen.samples, self.samples);
        }
    }
}

fn newest(samples: &mut Vec<(String, Failure)>, most: usize) {
    samples.sort_by_key(|(_, failure)| std::cmp::Reverse(failure.failed_at));
    samples.truncate(most);
}

impl Analytics {
    /// Failures of executions that started in the slots, and of their steps. `samples`: how many of each error are kept
    /// when executions are read.
    pub(super) async fn failures(
        &self,
        filter: &ExecutionFilter,
        slots: &[Window],
        apart: Apart,
        samples: usize,
        source: &mut Source,
    ) -> Result<Failures> {
        let sums = HashMap::new();
        let mut counter = Counter { apart, samples, sums, seen: HashMap::new() };
        let mut tallies = Vec::new();
        let mut to_read = Vec::new();
        if source.rollups {
            let Split { spans, slots: of_spans, ragged } = split(slots);
            to_read = ragged.into_iter().map(|(slot, window)| (Some(slot), window)).collect();
            if !spans.is_empty() {
                let query = FailuresQuery {
                    selection: selection(filter),
                    spans,
                    undated: false,
                    outcomes: outcomes(filter),
                    apart,
                };
                tallies = self.rollups.reader().failures(&query).await?;
                for tally in &mut tallies {
                    tally.span = of_spans.get(tally.span).copied().unwrap_or_default();
                }
            }
        } else {
            to_read.extend(around(slots).map(|window| (None, window)));
        }
        if !to_read.is_empty() {
            let mut budget = self.budget(usize::MAX).await;
            for (slot, window) in to_read.into_iter().rev() {
                let mut scan = self.scan(filter, window);
                while let Some(executions) = scan.next(&mut budget).await? {
                    let of = |execution: &Execution| slot.or_else(|| slot_of(slots, execution));
                    self.read_failures(&executions, of, &mut counter).await?;
                }
            }
            budget.settle(&mut source.freshness);
        }
        if !counter.sums.is_empty() {
            for tally in tallies.drain(..) {
                let key = (tally.span, tally.group, tally.step_name, tally.fingerprint);
                *counter.sums.entry(key).or_default() += tally.count;
            }
            let tally = |((span, group, step_name, fingerprint), count)| FailureTally {
                span,
                group,
                step_name,
                fingerprint,
                count,
            };
            tallies = counter.sums.into_iter().map(tally).collect();
        }
        let seen = (!source.rollups).then(|| {
            counter.seen.values_mut().for_each(|seen| newest(&mut seen.samples, samples));
            counter.seen
        });
        Ok(Failures { tallies, seen })
    }

    async fn read_failures(
        &self,
        executions: &[Execution],
        slot_of: impl Fn(&Execution) -> Option<usize>,
        counter: &mut Counter,
    ) -> Result<()> {
        let ids: Vec<String> =
            executions.iter().map(|execution| execution.execution_id.clone()).collect();
        let mut of_steps = self.rollups.reader().failed_steps(&ids).await?;
        for execution in executions {
            let Some(slot) = slot_of(execution) else { continue };
            let own = fingerprint::failure_of_execution(execution);
            let steps = of_steps.remove(&execution.execution_id).unwrap_or_default();
            for failure in own.into_iter().chain(steps) {
                counter.add(slot, execution, failure);
            }
        }
        Ok(())
    }
}
