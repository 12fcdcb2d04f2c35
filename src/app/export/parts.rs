//! What belongs to an execution: its steps, artifacts and points, page by page, and the first pages of a few executions ahead.

use std::mem::discriminant;
use std::sync::Arc;

use futures::future;

use super::{At, Ended, Export, Exports, Key, Part, Piece, Pieces, Question, RECORDS, Within};
use crate::app::Result;
use crate::domain::query::{ArtifactKey, ArtifactQuery, StepQuery};
use crate::store::metrics::{PointKey, Span};

/// Steps asked of the store at a time; they end earlier where their payloads are large.
const STEPS: usize = 250;
/// Points in one message.
pub(super) const POINTS: usize = 1_000;

impl Export {
    /// What belongs to an execution, as far as it is left.
    pub(super) async fn parts_of(&mut self, key: Key, mut within: Within) -> Result<(), Ended> {
        let id = key.1.clone();
        while within != Within::Nothing {
            let (pieces, next) = self.some_of(&id, &within).await?;
            for (after_it, piece) in pieces {
                self.push(piece).await?;
                if let Some(within) = after_it {
                    self.moved_to(At::Executions { after: Some(key.clone()), within }).await?;
                }
            }
            within = next.clone();
            self.moved_to(At::Executions { after: Some(key.clone()), within: next }).await?;
        }
        Ok(())
    }

    /// Reads the first pages of a few executions.
    pub(super) async fn read_ahead(&mut self, ids: impl Iterator<Item = &String>) -> Result<()> {
        let (exports, question) = (&self.exports, &self.question);
        let firsts = [Within::Steps(None), Within::Artifacts(None), Within::Points(None)];
        let firsts = if question.follow { &firsts[..2] } else { &firsts };
        let all = ids.flat_map(|id| firsts.iter().map(move |first| (id, first)));
        let read = all.map(async |(id, first)| {
            let pages = some_of(exports, question, id, first).await?;
            Ok::<_, crate::app::Error>(((id.clone(), discriminant(first)), pages))
        });
        self.ahead = future::try_join_all(read).await?.into_iter().collect();
        Ok(())
    }

    /// The next pieces of an execution, and what is left after them. Points of what is followed come by themselves.
    pub(super) async fn some_of(
        &mut self,
        execution_id: &str,
        within: &Within,
    ) -> Result<Pieces, Ended> {
        if self.question.follow && matches!(within, Within::Points(_)) {
            return Ok((Vec::new(), Within::Nothing));
        }
        let is_first =
            matches!(within, Within::Steps(None) | Within::Artifacts(None) | Within::Points(None));
        let kind = (execution_id.to_owned(), discriminant(within));
        let ahead = self.ahead.remove(&kind).filter(|_| is_first);
        Ok(match ahead {
            Some(some) => some,
            None => some_of(&self.exports, &self.question, execution_id, within).await?,
        })
    }
}

pub(super) async fn some_of(
    exports: &Exports,
    question: &Question,
    execution_id: &str,
    within: &Within,
) -> Result<Pieces> {
    let (limits, store) = (exports.app.limits(), exports.store());
    Ok(match within {
        Within::Steps(_) if !question.wants(Part::Steps) => (Vec::new(), Within::Artifacts(None)),
        Within::Steps(after) => {
            let query = StepQuery {
                execution_id: execution_id.to_owned(),
                statuses: Vec::new(),
                after: *after,
                limit: STEPS,
                examine: limits.page_examined_records,
                payloads: Some(limits.page_bytes),
            };
            let page = store.steps(&query).await?;
            let pieces = page
                .records
                .into_iter()
                .map(|step| (Some(Within::Steps(Some(step.step_id))), Piece::Step(Arc::new(step))));
            let next = page.next.map_or(Within::Artifacts(None), |id| Within::Steps(Some(id)));
            (pieces.collect(), next)
        }
        Within::Artifacts(_) if !question.wants(Part::Artifacts) => {
            (Vec::new(), Within::Points(None))
        }
        Within::Artifacts(after) => {
            let query = ArtifactQuery {
                execution_id: execution_id.to_owned(),
                after: after.clone().map(ArtifactKey),
                limit: RECORDS,
            };
            let page = store.artifacts(&query).await?;
            let next = page.next.map(|key| Within::Artifacts(Some(key.0)));
            // The place of each is the store's secret.
            let pieces = page
                .records
                .into_iter()
                .map(|artifact| (None, Piece::Artifact(Arc::new(artifact))));
            (pieces.collect(), next.unwrap_or(Within::Points(None)))
        }
        Within::Points(_) if !question.wants(Part::Points) => (Vec::new(), Within::Nothing),
        Within::Points(after) => {
            let after = after.clone().map(|(at, id)| PointKey { at, id });
            let span = Span { execution_id: execution_id.to_owned(), from: None, until: None };
            let page = exports.metrics.points(&span, after.as_ref(), POINTS).await?;
            let next =
                page.next.map_or(Within::Nothing, |key| Within::Points(Some((key.at, key.id))));
            let points: Vec<_> = page
                .records
                .into_iter()
                .map(|(_, point)| point)
                // Of another program: without a number there is nothing to tell.
                .filter(|point| !point.metrics.is_empty())
                .collect();
            let piece = Piece::Points { execution_id: execution_id.to_owned(), points };
            let empty = matches!(&piece, Piece::Points { points, .. } if points.is_empty());
            (if empty { Vec::new() } else { vec![(None, piece)] }, next)
        }
        Within::Nothing => (Vec::new(), Within::Nothing),
    })
}
