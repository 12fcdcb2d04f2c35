//! Executions by slot of time and group: from rollups as far as the slots lie on quarters of an hour, and from the
//! executions for what is left of the slots, or for all.

use std::collections::HashMap;

use super::{Analytics, Source, outcomes, selection};
use crate::app::error::Result;
use crate::app::rollups::{Apart, TallyQuery, TallyRow};
use crate::domain::Execution;
use crate::domain::calendar::Window;
use crate::domain::query::ExecutionFilter;
use crate::domain::rollup::{CountsAs, Group, Outcome, QUARTER_MS, Span, Tallies, Tally, quarter};

/// All of time, with executions of which nobody knows when they started.
pub(super) const ALWAYS: Window = Window { from: i64::MIN, until: i64::MAX };

/// Slots as rollups have them, and what they do not have. Each with the number of its slot.
pub(super) struct Split {
    pub spans: Vec<Span>,
    pub slots: Vec<usize>,
    pub ragged: Vec<(usize, Window)>,
}

pub(super) fn split(slots: &[Window]) -> Split {
    let mut split = Split { spans: Vec::new(), slots: Vec::new(), ragged: Vec::new() };
    for (slot, window) in slots.iter().enumerate() {
        let from = match window.from {
            i64::MIN => Span::ALL.from,
            from => -quarter(from.saturating_neg()),
        };
        let until = match window.until {
            i64::MAX => Span::ALL.until,
            until => quarter(until),
        };
        if from >= until {
            split.ragged.push((slot, *window));
            continue;
        }
        split.spans.push(Span { from, until });
        split.slots.push(slot);
        if window.from != i64::MIN {
            split.ragged.push((slot, Window { from: window.from, until: from * QUARTER_MS }));
        }
        if window.until != i64::MAX {
            split.ragged.push((slot, Window { from: until * QUARTER_MS, until: window.until }));
        }
    }
    split.ragged.retain(|(_, window)| !window.is_empty());
    split
}

/// The slot in which an execution started.
pub(super) fn slot_of(slots: &[Window], execution: &Execution) -> Option<usize> {
    let Some(at) = execution.started_at else {
        return (slots.first() == Some(&ALWAYS)).then_some(0);
    };
    let slot = slots.partition_point(|window| window.until <= at);
    slots.get(slot).is_some_and(|window| window.from <= at).then_some(slot)
}

/// From the beginning of the first to the end of the last.
pub(super) fn around(slots: &[Window]) -> Option<Window> {
    Some(Window { from: slots.first()?.from, until: slots.last()?.until })
}

impl Analytics {
    /// Executions of the slots, which are in order and do not overlap. `span` of a row is the number of its slot.
    pub(super) async fn tallies(
        &self,
        filter: &ExecutionFilter,
        slots: &[Window],
        apart: Apart,
        durations: bool,
        source: &mut Source,
    ) -> Result<Vec<TallyRow>> {
        let mut read: HashMap<(usize, Group), Tallies> = HashMap::new();
        let mut count = |slot: usize, execution: &Execution| {
            let counts_as = CountsAs::of(execution);
            let group = apart.group(&counts_as.group);
            read.entry((slot, group)).or_default().count(&counts_as, 1);
        };
        let mut rows = Vec::new();
        if source.rollups {
            let Split { spans, slots: of_spans, ragged } = split(slots);
            if !spans.is_empty() {
                let query = TallyQuery {
                    selection: selection(filter),
                    spans,
                    undated: slots.first() == Some(&ALWAYS),
                    apart,
                    durations,
                };
                rows = self.rollups.reader().tallies(&query).await?;
                let wanted = outcomes(filter);
                for row in &mut rows {
                    row.span = of_spans.get(row.span).copied().unwrap_or_default();
                    if !wanted.is_empty() {
                        let unwanted = Outcome::ALL.iter().filter(|one| !wanted.contains(one));
                        unwanted.for_each(|one| *row.tallies.of_mut(*one) = Tally::default());
                    }
                }
                rows.retain(|row| !row.tallies.is_empty());
            }
            if !ragged.is_empty() {
                let mut budget = self.budget(usize::MAX).await;
                for (slot, window) in ragged.into_iter().rev() {
                    let mut scan = self.scan(filter, window);
                    while let Some(executions) = scan.next(&mut budget).await? {
                        executions.iter().for_each(|execution| count(slot, execution));
                    }
                }
                budget.settle(&mut source.freshness);
            }
        } else if let Some(window) = around(slots) {
            let mut budget = self.budget(usize::MAX).await;
            let mut scan = self.scan(filter, window);
            while let Some(executions) = scan.next(&mut budget).await? {
                for execution in &executions {
                    if let Some(slot) = slot_of(slots, execution) {
                        count(slot, execution);
                    }
                }
            }
            budget.settle(&mut source.freshness);
        }
        if !read.is_empty() {
            for row in rows {
                read.entry((row.span, row.group)).or_default().merge(&row.tallies);
            }
            let row = |((span, group), tallies)| TallyRow { span, group, tallies };
            rows = read.into_iter().map(row).collect();
            rows.sort_by(|a, b| (a.span, &a.group).cmp(&(b.span, &b.group)));
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q: i64 = QUARTER_MS;

    #[test]
    fn a_slot_is_split_where_quarters_begin_and_end() {
        let window = |from, until| Window { from, until };
        let whole = split(&[window(0, 4 * Q), window(4 * Q, 8 * Q)]);
        assert_eq!(whole.spans, [Span { from: 0, until: 4 }, Span { from: 4, until: 8 }]);
        assert_eq!((whole.slots, whole.ragged), (vec![0, 1], vec![]));
        let ragged =
            split(&[window(-1, 1), window(Q + 1, 3 * Q - 1), window(3 * Q + 1, 3 * Q + 2)]);
        assert_eq!(ragged.spans, []);
        assert_eq!(ragged.ragged.len(), 3);
        let ends = split(&[window(Q - 5, 3 * Q + 5)]);
        assert_eq!(ends.spans, [Span { from: 1, until: 3 }]);
        assert_eq!(ends.ragged, [(0, window(Q - 5, Q)), (0, window(3 * Q, 3 * Q + 5))]);
        let always = split(&[ALWAYS]);
        assert_eq!((always.spans, always.ragged), (vec![Span::ALL], vec![]));
        let open = split(&[window(i64::MIN, 2 * Q + 1)]);
        assert_eq!(open.spans, [Span { from: Span::ALL.from, until: 2 }]);
        assert_eq!(open.ragged, [(0, window(2 * Q, 2 * Q + 1))]);
    }
}
